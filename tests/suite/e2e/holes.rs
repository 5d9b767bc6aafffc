//! The holes of the classic recipe, one test each: what that recipe loses, blocks, forgets or drops is handled here.

use crate::world::on_stages;

on_stages! {
    a_message_whose_lock_another_holds_is_kept_until_the_lock_is_free: [MariaDb, Postgres];
    a_lock_of_another_is_neither_released_nor_waited_for_without_end: [MariaDb, Postgres];
    a_lock_left_by_a_killed_host_costs_seconds: [MariaDb, Postgres];
    without_a_lock_server_messages_are_handled_once: [MariaDb, Postgres];
    a_lock_server_that_dies_stops_nothing: [Postgres];
    without_a_lock_server_a_consumer_told_to_pause_waits_for_it: [Postgres];
    a_message_without_an_id_is_a_dead_letter_and_the_queue_flows_on: [MariaDb, Postgres, Embedded];
    the_same_id_with_another_body_is_kept_as_a_conflict: [MariaDb, Postgres, Embedded];
    a_failing_message_does_not_hold_up_those_behind_it: [MariaDb, Postgres, Embedded];
    blocking_retry_keeps_the_order_behind_a_failing_message: [MariaDb, Postgres, Embedded];
    a_database_outage_burns_no_attempts: [MariaDb, Postgres];
    an_idle_consumer_survives_a_restart_of_its_database: [MariaDb, Postgres];
    messages_share_transactions: [MariaDb, Postgres, Embedded];
    retention_forgets_completed_messages_and_keeps_parked_and_dead_ones: [MariaDb, Postgres, Embedded];
}

mod scenarios {
    use std::time::Duration;

    use hapax_tests::TestResult;
    use hapax_tests::servers::Redis;
    use serde_json::json;

    use crate::hold::Figures;
    use crate::own_database::Server;
    use crate::world::{CONSUMER, Consumer, PATIENCE, World, effect, message};

    /// Where nobody listens: port 1 is reserved and never given out.
    const NOWHERE: &str = "redis://127.0.0.1:1";

    fn key(id: &str) -> String {
        format!("hapax:{CONSUMER}:{id}")
    }

    pub(super) async fn a_message_whose_lock_another_holds_is_kept_until_the_lock_is_free(world: World) -> TestResult {
        let mut redis = world.redis().await?;
        let () =
            redis::cmd("SET").arg(key("held")).arg("somebody").arg("PX").arg(120_000).query_async(&mut redis).await?;
        let _host = world.host(Consumer::default().with("lock = { ttl = \"60s\" }")).await?;
        world.publish([effect("held", &[]), effect("free", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 3", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'free'", 1).await?;
        assert_eq!(world.effects("held").await?, 0, "it waits for the lock");
        // The holder fails and lets go, as the classic recipe does on an exception.
        let () = redis::cmd("DEL").arg(key("held")).query_async(&mut redis).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'held'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 2);
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?,
            2,
            "waiting counts no attempt"
        );
        Ok(())
    }

    pub(super) async fn a_lock_of_another_is_neither_released_nor_waited_for_without_end(world: World) -> TestResult {
        let mut redis = world.redis().await?;
        // The classic recipe's own value: with the key for a token, anyone's release would take it for his.
        let () = redis::cmd("SET").arg(key("m")).arg(key("m")).arg("PX").arg(300_000).query_async(&mut redis).await?;
        let mut host = world.host(Consumer::default().with("lock = { ttl = \"1s\" }")).await?;
        world.publish([effect("m", &[])]).await?;
        // Two leases later SQL decides; the classic recipe's 300 s are not over.
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'm'", 1).await?;
        world.quiet().await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        let value: Option<String> = redis::cmd("GET").arg(key("m")).query_async(&mut redis).await?;
        assert_eq!(value, Some(key("m")), "nobody else's lock is released");
        Ok(())
    }

    pub(super) async fn a_lock_left_by_a_killed_host_costs_seconds(world: World) -> TestResult {
        let mut redis = world.redis().await?;
        let mut host = world.host(Consumer::default()).await?;
        world.publish([effect("m", &[json!({ "print": "working" }), json!({ "sleep-ms": 2000 })])]).await?;
        host.wait_for_log(PATIENCE, "working").await?;
        host.kill9().await?;
        let left: i64 = redis::cmd("PTTL").arg(key("m")).query_async(&mut redis).await?;
        assert!((1..=10_000).contains(&left), "the dead host's lock lives for at most its lease: {left} ms");
        let _host = world.another_host("the next host").await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'm'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 1);
        Ok(())
    }

    pub(super) async fn without_a_lock_server_messages_are_handled_once(world: World) -> TestResult {
        let _host = world.host(Consumer::default().lock(NOWHERE)).await?;
        world.publish((0..100).map(|n| effect(&format!("m{}", n % 50), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 50).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 50);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_lock_server_that_dies_stops_nothing(world: World) -> TestResult {
        let Some(mut redis) = Redis::private().await? else { return Ok(()) };
        let _host = world.host(Consumer::default().lock(redis.url())).await?;
        world.publish((0..50).map(|n| effect(&format!("before{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 50).await?;
        redis.kill9().await?;
        world.publish((0..50).map(|n| effect(&format!("during{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 100).await?;
        redis.restart().await?;
        world.publish((0..50).map(|n| effect(&format!("after{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 150).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 150);
        Ok(())
    }

    pub(super) async fn without_a_lock_server_a_consumer_told_to_pause_waits_for_it(world: World) -> TestResult {
        let Some(mut redis) = Redis::private().await? else { return Ok(()) };
        redis.kill9().await?;
        let consumer = Consumer::default().lock(redis.url()).with("lock = { on_unavailable = \"pause\" }");
        let mut host = world.host(consumer).await?;
        world.publish((0..50).map(|n| effect(&format!("m{n}"), &[]))).await?;
        host.wait_for_log(PATIENCE, "pausing").await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 0);
        redis.restart().await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 50).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 50);
        Ok(())
    }

    pub(super) async fn a_message_without_an_id_is_a_dead_letter_and_the_queue_flows_on(world: World) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        let mut nameless = effect("nameless", &[]);
        nameless.properties.message_id = None;
        world.publish([nameless]).await?;
        world.publish((0..20).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_dead("no-id", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.quiet().await?;
        assert_eq!(world.effects("nameless").await?, 0);
        assert_eq!(
            world.number("SELECT attempts FROM hapax_parked").await?,
            0,
            "it is not retried for ever, but not at all"
        );
        Ok(())
    }

    pub(super) async fn the_same_id_with_another_body_is_kept_as_a_conflict(world: World) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        world.publish([effect("m", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1).await?;
        let other = effect("m", &[json!({ "print": "another body" })]);
        let body = other.body.len();
        world.publish([other, effect("m", &[]), effect("next", &[])]).await?;
        world.wait_dead("id-conflict", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'next'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("m").await?, 1, "the original's effect, and no other");
        assert_eq!(
            world.number("SELECT body_bytes FROM hapax_parked").await?,
            i64::try_from(body)?,
            "it is there to be looked at"
        );
        let listed = world.hapax(&["dead", "list"]).await?;
        assert!(listed.contains("id-conflict"), "{listed}");
        Ok(())
    }

    pub(super) async fn a_failing_message_does_not_hold_up_those_behind_it(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 5, initial_interval = \"10m\", max_interval = \"10m\", jitter = 0.0 }";
        let _host = world.host(Consumer::default().with(retry)).await?;
        world.publish([effect("bad", &[json!({ "fail-until-attempt": 2 })])]).await?;
        world.publish((0..100).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 100).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1", 1).await?;
        assert_eq!(world.effects("bad").await?, 0);
        Ok(())
    }

    pub(super) async fn blocking_retry_keeps_the_order_behind_a_failing_message(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 5, initial_interval = \"300ms\", jitter = 0.0, mode = \"blocking\" }";
        let _host = world.host(Consumer::default().with(retry)).await?;
        // Each message insists on its place; message 3 fails twice before it succeeds.
        let messages = (0..20).map(|n| {
            let fail = if n == 3 { 3 } else { 1 };
            let steps = json!({ "do": [
                { "fail-until-attempt": fail },
                { "query": "SELECT COUNT(*) FROM effects", "expect": [[n]] },
                { "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [format!("m{n}"), { "$": "attempt" }] },
            ]});
            message(&format!("m{n}"), steps.to_string())
        });
        world.publish(messages).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.quiet().await?;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?,
            19,
            "none failed for being early"
        );
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name = 'm3' AND value = '3'").await?, 1);
        Ok(())
    }

    pub(super) async fn an_idle_consumer_survives_a_restart_of_its_database(shared: World) -> TestResult {
        let Some((mut server, world)) = Server::start(shared.stage).await? else { return Ok(()) };
        let _host = world.host(Consumer::default()).await?;
        world.publish([effect("before", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1).await?;
        server.restart().await?;
        world.publish([effect("after", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 2);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_database_outage_burns_no_attempts(shared: World) -> TestResult {
        let Some((mut server, world)) = Server::start(shared.stage).await? else { return Ok(()) };
        let mut host = world.host(Consumer::default()).await?;
        let all = 400;
        world.publish((0..all).map(|n| effect(&format!("m{n}"), &[json!({ "sleep-ms": 5 })]))).await?;
        world.wait_number("SELECT CASE WHEN COUNT(*) >= 50 THEN 1 ELSE 0 END FROM effects", 1).await?;
        server.kill9().await?;
        host.wait_for_log(PATIENCE, "pausing").await?;
        server.restart().await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", all).await?;
        world.quiet().await?;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?,
            all,
            "each in its first attempt"
        );
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, all);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn messages_share_transactions(world: World) -> TestResult {
        let figures = Figures::new()?;
        // The embedded queue is made by the host that consumes it.
        drop(world.host(Consumer::default().top(&figures.listen())).await?);
        world.publish((0..1000).map(|n| effect(&format!("m{n}"), &[]))).await?;
        let _host = world.another_host("host").await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1000).await?;
        let commits = figures.consumers("hapax_commit_seconds_count").await?;
        assert!((1.0..=250.0).contains(&commits), "{commits} commits for 1000 messages");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 1000);
        Ok(())
    }

    pub(super) async fn retention_forgets_completed_messages_and_keeps_parked_and_dead_ones(
        world: World,
    ) -> TestResult {
        let retry = "retry = { max_attempts = 5, initial_interval = \"24h\", max_interval = \"24h\", jitter = 0.0 }";
        let consumer = || Consumer::default().with(retry).with("retention = \"1m\"");
        let mut host = world.host(consumer()).await?;
        world.publish((0..20).map(|n| effect(&format!("old{n}"), &[]))).await?;
        let dead = json!({ "fail": { "code": "no", "message": "never", "advice": "never" } });
        world.publish([effect("parked", &[json!({ "fail-until-attempt": 9 })]), effect("dead", &[dead])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.wait_dead("permanent", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1", 1).await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        world
            .prepare(&[
                "UPDATE hapax_inbox SET updated_at = updated_at - 3600000",
                "UPDATE hapax_parked SET updated_at = updated_at - 3600000",
            ])
            .await?;
        let _host = world.host(consumer()).await?;
        world.publish([effect("young", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'young'", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox", 3).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 1, "the young one");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE state IN (1, 4)").await?, 2);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 21, "what took effect stays");
        Ok(())
    }
}
