//! What guests publish: at least once, always under one id, and only if what published it took effect.

use crate::world::on_stages;

on_stages! {
    each_order_publishes_under_one_id_though_half_of_the_attempts_fail: [MariaDb, Postgres, Embedded];
    a_killed_host_publishes_everything_and_nothing_under_two_ids: [MariaDb, Postgres, Embedded];
    an_outbox_id_is_the_same_in_every_attempt: [MariaDb, Postgres, Embedded];
    what_a_failed_attempt_published_is_never_seen: [MariaDb, Postgres, Embedded];
    an_undeliverable_message_waits_for_its_queue_while_others_flow: [MariaDb, Postgres, Embedded];
    what_a_full_queue_rejects_is_published_once_there_is_room: [MariaDb];
    a_restarted_broker_loses_nothing: [MariaDb];
}

mod scenarios {
    use std::collections::{BTreeMap, BTreeSet};

    use hapax::broker::Outgoing;
    use hapax::ledger::value::Value;
    use hapax_tests::TestResult;
    use hapax_tests::servers::Rabbit;
    use serde_json::{Value as Json, json};

    use crate::world::{Arrived, Consumer, World, effect};

    /// Where the published messages are looked for.
    const RESULTS: &str = "results";

    /// A step that publishes the name of an order.
    fn told(order: &str) -> Json {
        json!({ "publish": { "exchange": "shop", "routing_key": "order.done", "body": order } })
    }

    fn order(name: &str, then: &[Json]) -> Outgoing {
        let steps: Vec<Json> = std::iter::once(told(name)).chain(then.iter().cloned()).collect();
        effect(name, &steps)
    }

    /// The ids under which each body arrived.
    fn ids_by_body(arrived: &[Arrived]) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut ids: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for message in arrived {
            ids.entry(&message.body).or_default().insert(&message.id);
        }
        ids
    }

    /// Every order was told of, under one id of its own, however often.
    fn assert_one_id_each(arrived: &[Arrived], orders: usize) {
        let ids = ids_by_body(arrived);
        assert_eq!(ids.len(), orders, "an order that nobody was told of, or one that never was");
        for (body, ids) in &ids {
            assert_eq!(ids.len(), 1, "{body} came under several ids: {ids:?}");
        }
        let distinct: BTreeSet<&str> = arrived.iter().map(|message| message.id.as_str()).collect();
        assert_eq!(distinct.len(), orders, "two orders share an id");
        assert!(!distinct.contains(""), "a message came without an id");
    }

    /// All orders, and whatever came twice.
    async fn collect_all(world: &World, orders: usize) -> anyhow::Result<Vec<Arrived>> {
        world.collect(RESULTS, |arrived| ids_by_body(arrived).len() >= orders).await
    }

    pub(super) async fn each_order_publishes_under_one_id_though_half_of_the_attempts_fail(world: World) -> TestResult {
        world.bind(RESULTS, "shop", "order.done").await?;
        let _host = world.host(Consumer::default()).await?;
        let orders = 200;
        // Two attempts for most, so that half of all attempts fail after they published.
        let message = |n: usize| {
            let attempt = [1, 2, 2, 3][n % 4];
            order(&format!("o{n}"), &[json!({ "fail-until-attempt": attempt })])
        };
        world.publish((0..orders).map(message)).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 200).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_outbox").await?, 0);
        let arrived = collect_all(&world, orders).await?;
        assert_one_id_each(&arrived, orders);
        assert_eq!(arrived.len(), orders, "nothing disturbed the relay, so nothing was published twice");
        Ok(())
    }

    pub(super) async fn a_killed_host_publishes_everything_and_nothing_under_two_ids(world: World) -> TestResult {
        world.bind(RESULTS, "shop", "order.done").await?;
        let mut host = world.host(Consumer::default().with("rescue_after = \"1s\"")).await?;
        let orders = 1200;
        world.publish((0..orders).map(|n| order(&format!("o{n}"), &[json!({ "sleep-ms": 4 })]))).await?;
        for part in 1..=2 {
            let reached = format!("SELECT CASE WHEN COUNT(*) >= {} THEN 1 ELSE 0 END FROM effects", orders * part / 4);
            world.wait_number(&reached, 1).await?;
            host.kill9().await?;
            assert!(world.number("SELECT COUNT(*) FROM effects").await? < orders, "killed in the middle of its work");
            host = world.another_host(&format!("host after kill {part}")).await?;
        }
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", orders).await?;
        world.quiet().await?;
        let orders = usize::try_from(orders)?;
        assert_one_id_each(&collect_all(&world, orders).await?, orders);
        Ok(())
    }

    pub(super) async fn an_outbox_id_is_the_same_in_every_attempt(world: World) -> TestResult {
        world.bind(RESULTS, "shop", "order.done").await?;
        let retry = "retry = { max_attempts = 10000, initial_interval = \"50ms\", multiplier = 1.0, jitter = 0.0 }";
        let _host = world.host(Consumer::default().with(retry)).await?;
        // Fails, with its outbox id in the failure, until the row `go` is there.
        let id_is_hidden = "SELECT value FROM effects WHERE name = 'id' AND NOT EXISTS \
                            (SELECT 1 FROM effects AS other WHERE other.name = 'go')";
        let message = order(
            "stable",
            &[
                json!({ "sql": "INSERT INTO effects (name, value) VALUES ('id', ?)", "params": [{ "$": "outbox-id" }] }),
                json!({ "query": id_is_hidden, "expect": [] }),
            ],
        );
        world.publish([message]).await?;
        let mut errors = BTreeSet::new();
        for attempts in [1, 3] {
            let sql = format!("SELECT CASE WHEN MAX(attempts) >= {attempts} THEN 1 ELSE 0 END FROM hapax_parked");
            world.wait_number(&sql, 1).await?;
            for row in world.rows("SELECT error FROM hapax_parked WHERE error IS NOT NULL").await? {
                let [Value::Text(error)] = row.as_slice() else { panic!("an error is text, not {row:?}") };
                errors.insert(error.clone());
            }
        }
        world.prepare(&["INSERT INTO effects (name, value) VALUES ('go', '1')"]).await?;
        let arrived = collect_all(&world, 1).await?;
        assert_eq!(arrived.len(), 1, "{arrived:?}");
        assert_eq!(errors.len(), 1, "one id in all failures: {errors:?}");
        assert!(errors.iter().all(|error| error.contains(&arrived[0].id)), "{errors:?} name {arrived:?}");
        Ok(())
    }

    pub(super) async fn what_a_failed_attempt_published_is_never_seen(world: World) -> TestResult {
        world.bind(RESULTS, "shop", "order.done").await?;
        let _host =
            world.host(Consumer::default().with("retry = { max_attempts = 2, initial_interval = \"50ms\" }")).await?;
        let never = json!({ "fail": { "code": "no", "message": "no", "advice": "never" } });
        let failures = [never, json!({ "fail": { "message": "not now" } }), json!({ "panic": "at the end" })];
        let message = |n: usize| match n % 4 {
            3 => order(&format!("good{n}"), &[]),
            kind => order(&format!("bad{n}"), &failures[kind..=kind]),
        };
        world.publish((0..40).map(message)).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 10).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 3", 30).await?;
        world.quiet().await?;
        let arrived = collect_all(&world, 10).await?;
        assert!(arrived.iter().all(|message| message.body.starts_with("good")), "{arrived:?}");
        assert_one_id_each(&arrived, 10);
        Ok(())
    }

    pub(super) async fn an_undeliverable_message_waits_for_its_queue_while_others_flow(world: World) -> TestResult {
        world.bind(RESULTS, "shop", "order.done").await?;
        let _host = world.host(Consumer::default()).await?;
        let stray = json!({ "publish": { "exchange": "shop", "routing_key": "order.stray", "body": "stray" } });
        let messages = (0..20).map(|n| match n {
            7 => effect("stray", std::slice::from_ref(&stray)),
            _ => order(&format!("o{n}"), &[]),
        });
        world.publish(messages).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_outbox WHERE state = 2", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 20).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_outbox").await?, 1);
        assert_one_id_each(&collect_all(&world, 19).await?, 19);
        world.bind("stray", "shop", "order.stray").await?;
        world.hapax(&["outbox", "retry", "under-test"]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_outbox", 0).await?;
        let arrived = world.collect("stray", |arrived| !arrived.is_empty()).await?;
        assert_eq!(arrived.iter().map(|message| message.body.as_str()).collect::<Vec<_>>(), ["stray"]);
        Ok(())
    }

    pub(super) async fn what_a_full_queue_rejects_is_published_once_there_is_room(world: World) -> TestResult {
        world.bind(RESULTS, "shop", "order.done").await?;
        let full = json!({ "max-length": 3, "overflow": "reject-publish" });
        world.vhost().set_policy("full", RESULTS, full).await?;
        let _host = world.host(Consumer::default()).await?;
        world.publish((0..10).map(|n| order(&format!("o{n}"), &[]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 10).await?;
        // A classic queue takes a few more than its limit before it rejects.
        let rejected =
            "SELECT CASE WHEN COUNT(*) > 0 THEN 1 ELSE 0 END FROM hapax_outbox WHERE state = 1 AND attempts > 0";
        world.wait_number(rejected, 1).await?;
        let arrived = collect_all(&world, 10).await?;
        assert_one_id_each(&arrived, 10);
        world.wait_number("SELECT COUNT(*) FROM hapax_outbox", 0).await?;
        Ok(())
    }

    pub(super) async fn a_restarted_broker_loses_nothing(world: World) -> TestResult {
        let Some(mut rabbit) = Rabbit::private().await? else { return Ok(()) };
        let world = world.on_broker(rabbit.vhost("restarted").await?).await?;
        world.bind(RESULTS, "shop", "order.done").await?;
        let _host = world.host(Consumer::default()).await?;
        let orders = 2000;
        world.publish((0..orders).map(|n| order(&format!("o{n}"), &[json!({ "sleep-ms": 3 })]))).await?;
        let reached = format!("SELECT CASE WHEN COUNT(*) >= {} THEN 1 ELSE 0 END FROM effects", orders / 4);
        world.wait_number(&reached, 1).await?;
        assert!(world.number("SELECT COUNT(*) FROM effects").await? < orders, "stopped in the middle of the work");
        rabbit.stop().await?;
        rabbit.restart().await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", orders).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, orders);
        let orders = usize::try_from(orders)?;
        assert_one_id_each(&collect_all(&world, orders).await?, orders);
        Ok(())
    }
}
