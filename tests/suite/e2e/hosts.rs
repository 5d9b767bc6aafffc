//! Hosts: several at once, frozen, killed again and again by one message, swapped under load, stopped, started too early.

use crate::world::on_stages;

on_stages! {
    two_hosts_on_one_queue_share_the_work_and_double_nothing: [MariaDb, Postgres];
    a_host_frozen_past_its_lease_loses_and_doubles_nothing: [MariaDb, Postgres];
    a_message_that_kills_its_host_each_time_is_given_up_and_the_others_are_handled: [MariaDb, Postgres, Embedded];
    a_module_swapped_under_load_fails_and_loses_no_message: [MariaDb, Postgres, Embedded];
    a_module_that_does_not_load_never_replaces_one_that_works: [MariaDb, Postgres, Embedded];
    a_stopped_host_finishes_what_it_has_begun: [MariaDb, Postgres, Embedded];
    an_idle_host_subscribes_anew_and_nobody_notices: [Postgres];
    what_outlasts_the_drain_is_given_back_uncounted: [MariaDb, Postgres, Embedded];
    a_host_started_before_its_queue_says_so_and_waits: [MariaDb, Postgres];
    a_host_started_before_its_module_says_so_and_waits: [MariaDb, Postgres, Embedded];
    a_queue_that_is_missing_stops_no_other_consumer: [MariaDb, Postgres];
    a_queue_with_other_arguments_is_named_and_stops_no_other_consumer: [MariaDb, Postgres];
}

mod scenarios {
    use std::time::Duration;

    use anyhow::Context as _;
    use hapax::broker::Settings;
    use hapax_tests::component::{rebuilt, trapping_at_start, with_core_module};
    use hapax_tests::{TestResult, wait_until};
    use serde_json::json;

    use crate::world::{Consumer, PATIENCE, QUEUE, World, effect, guest};

    /// Long enough for a drain of 5 s on a slow machine.
    const STOP: Duration = Duration::from_secs(20);

    async fn at_least(world: &World, effects: i64) -> anyhow::Result<()> {
        world.wait_number(&format!("SELECT CASE WHEN COUNT(*) >= {effects} THEN 1 ELSE 0 END FROM effects"), 1).await
    }

    pub(super) async fn two_hosts_on_one_queue_share_the_work_and_double_nothing(world: World) -> TestResult {
        let _one = world.host(Consumer::default()).await?;
        let _other = world.another_host("the other host").await?;
        wait_until(PATIENCE, "two consumers on the queue", async || {
            world.vhost().queue(QUEUE).await.is_ok_and(|queue| queue.consumers == 2)
        })
        .await?;
        // Each comes twice, and the two may well go to different hosts.
        world.publish((0..2000).map(|n| effect(&format!("m{}", n / 2), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1000).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 1000);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, 1000);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_host_frozen_past_its_lease_loses_and_doubles_nothing(world: World) -> TestResult {
        let mut frozen = world.host(Consumer::default().with("lock = { ttl = \"1s\" }")).await?;
        let slow = || effect("slow", &[json!({ "print": "in the middle" }), json!({ "sleep-ms": 1500 })]);
        world.publish([slow()]).await?;
        frozen.wait_for_log(PATIENCE, "in the middle").await?;
        frozen.sigstop()?;
        let _awake = world.another_host("the host that is awake").await?;
        // The frozen one still has its share of these; a copy of what it was doing goes to the other.
        world.publish([slow(), slow()]).await?;
        world.publish((0..100).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'slow'", 1).await?;
        frozen.sigcont()?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 101).await?;
        world.quiet().await?;
        assert_eq!(world.effects("slow").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 101);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_message_that_kills_its_host_each_time_is_given_up_and_the_others_are_handled(
        world: World,
    ) -> TestResult {
        let consumer = Consumer::default().with("rescue_after = \"1s\"").with("max_crashes = 1");
        let mut host = world.host(consumer).await?;
        let killer = effect("killer", &[json!({ "print": "the end is near" }), json!({ "sleep-ms": 5000 })]);
        world.publish([killer]).await?;
        world.publish((0..30).map(|n| effect(&format!("m{n}"), &[]))).await?;
        // On the fast path, parked among others, and alone: each of these may cost a host, and no more.
        let mut kills = 0;
        while kills < 5 {
            let mut dead = false;
            wait_until(PATIENCE, "the message to run or to be given up", async || {
                dead = world.dead("crashed").await.is_ok_and(|dead| dead == 1);
                dead || host.log().contains("the end is near")
            })
            .await?;
            if dead {
                break;
            }
            host.kill9().await?;
            kills += 1;
            host = world.another_host(&format!("host after kill {kills}")).await?;
        }
        assert!((2..=4).contains(&kills), "it killed {kills} hosts");
        world.wait_dead("crashed", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 30).await?;
        world.quiet().await?;
        assert_eq!(world.effects("killer").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 30);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 3").await?, 1);
        Ok(())
    }

    /// Puts a file in the place of another as deployments do: by renaming, so that no reader sees half of it.
    fn put(world: &World, bytes: &[u8]) -> anyhow::Result<()> {
        let new = world.path("module.new");
        std::fs::write(&new, bytes)?;
        std::fs::rename(new, world.path("module.wasm")).context("renaming the module")
    }

    pub(super) async fn a_module_swapped_under_load_fails_and_loses_no_message(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        world.publish((0..1000).map(|n| effect(&format!("m{n}"), &[json!({ "sleep-ms": 2 })]))).await?;
        at_least(&world, 1).await?;
        put(&world, &rebuilt(&std::fs::read(guest("chaos")?)?, b"build"))?;
        host.wait_for_log(PATIENCE, "module swapped").await?;
        world.publish((1000..1200).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1200).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 1200, "no attempt failed");
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, 1200);
        assert_eq!(world.number("SELECT COUNT(DISTINCT module) FROM hapax_inbox").await?, 2, "both modules worked");
        Ok(())
    }

    pub(super) async fn a_module_that_does_not_load_never_replaces_one_that_works(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        world.publish([effect("before", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 1).await?;
        let good = std::fs::read(guest("chaos")?)?;
        let wrong_world = std::fs::read(guest("wrong_world").or_else(|_| guest("wrong-world"))?)?;
        let trapping = with_core_module(&good, &trapping_at_start());
        let bad: [(&str, &[u8]); 5] = [
            ("trapping at its start", &trapping),
            ("truncated", &good[..good.len() / 2]),
            ("empty", &[]),
            ("text", b"not wasm"),
            ("of another world", &wrong_world),
        ];
        for (refused, (name, bytes)) in bad.into_iter().enumerate() {
            put(&world, bytes)?;
            wait_until(PATIENCE, format!("the module that is {name} to be refused"), async || {
                host.log().matches("new module refused").count() > refused
            })
            .await?;
            world.publish([effect(&format!("after {name}"), &[])]).await?;
            world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2 + i64::try_from(refused)?).await?;
        }
        assert_eq!(world.number("SELECT COUNT(DISTINCT module) FROM hapax_inbox").await?, 1);
        put(&world, &rebuilt(&good, b"build"))?;
        host.wait_for_log(PATIENCE, "module swapped").await?;
        world.publish([effect("mended", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'mended'", 1).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 7);
        assert_eq!(world.number("SELECT COUNT(DISTINCT module) FROM hapax_inbox").await?, 2);
        Ok(())
    }

    pub(super) async fn an_idle_host_subscribes_anew_and_nobody_notices(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        world.publish([effect("before", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 1).await?;
        host.wait_for_log(3 * Settings::default().quiet, "subscribed anew").await?;
        wait_until(PATIENCE, "one consumer, not two", async || {
            world.vhost().queue(QUEUE).await.is_ok_and(|queue| queue.consumers == 1)
        })
        .await?;
        world.publish([effect("after", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'after'", 1).await?;
        assert_eq!(host.log().matches("INFO hapax::consumer: consuming").count(), 1, "{}", host.log_tail());
        assert!(!host.log().contains("WARN"), "{}", host.log_tail());
        assert!(host.terminate(PATIENCE).await?.success());
        Ok(())
    }

    pub(super) async fn a_stopped_host_finishes_what_it_has_begun(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        let steps =
            [json!({ "fail-until-attempt": 2 }), json!({ "print": "second attempt" }), json!({ "sleep-ms": 1000 })];
        world.publish([effect("parked", &steps)]).await?;
        host.wait_for_log(PATIENCE, "second attempt").await?;
        assert!(host.terminate(STOP).await?.success());
        assert_eq!(world.effects("parked").await?, 1, "it was finished");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);

        let mut host = world.another_host("second host").await?;
        world.publish((0..500).map(|n| effect(&format!("m{n}"), &[json!({ "sleep-ms": 5 })]))).await?;
        at_least(&world, 2).await?;
        assert!(host.terminate(STOP).await?.success());
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE state = 2").await?, 0);
        let _host = world.another_host("third host").await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 501).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 500, "nothing was counted");
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, 501);
        Ok(())
    }

    pub(super) async fn what_outlasts_the_drain_is_given_back_uncounted(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        let steps =
            [json!({ "fail-until-attempt": 2 }), json!({ "print": "second attempt" }), json!({ "sleep-ms": 25_000 })];
        world.publish([effect("long", &steps)]).await?;
        host.wait_for_log(PATIENCE, "second attempt").await?;
        assert!(host.terminate(STOP).await?.success(), "it does not wait for longer than the drain");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1").await?, 1);
        assert_eq!(world.number("SELECT crashes FROM hapax_parked").await?, 0, "a stop is not a crash");
        Ok(())
    }

    pub(super) async fn a_host_started_before_its_queue_says_so_and_waits(world: World) -> TestResult {
        world.vhost().delete_queue(QUEUE).await?;
        let mut host = world.start(Consumer::default())?;
        host.wait_for_log(PATIENCE, &format!("waiting for queue {QUEUE:?}")).await?;
        world.vhost().declare_queue(QUEUE, json!({})).await?;
        host.wait_consuming(PATIENCE).await?;
        world.publish([effect("m", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'm'", 1).await?;
        Ok(())
    }

    pub(super) async fn a_queue_that_is_missing_stops_no_other_consumer(world: World) -> TestResult {
        let module = guest("chaos")?;
        let other = format!("[consumers.stranded]\nqueue = \"missing\"\nmodule = {:?}\n", module.display().to_string());
        let mut host = world.host(Consumer::default().more(other)).await?;
        host.wait_for_log(PATIENCE, "waiting for queue \"missing\"").await?;
        world.publish((0..20).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.quiet().await?;
        assert!(host.terminate(STOP).await?.success(), "waiting for a queue does not keep it from stopping");
        Ok(())
    }

    pub(super) async fn a_host_started_before_its_module_says_so_and_waits(world: World) -> TestResult {
        let module = world.path("later.wasm").display().to_string();
        let mut host = world.start(Consumer::default().with(format!("module = {module:?}")))?;
        host.wait_for_log(PATIENCE, &format!("waiting for module {module}")).await?;
        std::fs::rename(world.path("module.wasm"), world.path("later.wasm"))?;
        host.wait_consuming(PATIENCE).await?;
        world.publish([effect("m", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'm'", 1).await?;
        Ok(())
    }

    pub(super) async fn a_queue_with_other_arguments_is_named_and_stops_no_other_consumer(world: World) -> TestResult {
        world.vhost().declare_queue("long", json!({ "x-max-length": 5 })).await?;
        let module = guest("chaos")?;
        let other = format!(
            "[consumers.mistaken]\nqueue = \"long\"\nmodule = {:?}\ndeclare = \"create\"\narguments = {{ x-max-length = 7 }}\n",
            module.display().to_string()
        );
        let mut host = world.host(Consumer::default().more(other)).await?;
        host.wait_for_log(PATIENCE, "waiting for queue \"long\"").await?;
        let log = host.log();
        let told = log.lines().find(|line| line.contains("waiting for queue \"long\"")).unwrap_or_default();
        assert!(
            told.contains("x-max-length") && told.contains('5') && told.contains('7'),
            "both sides are named: {told}"
        );
        world.publish((0..20).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.quiet().await?;
        Ok(())
    }
}
