//! Order per key: across lanes, and where a failing message holds up those behind it, across hosts too.

use crate::world::on_stages;

on_stages! {
    each_key_keeps_its_order_over_four_lanes: [MariaDb, Postgres];
    blocking_retry_keeps_the_order_when_its_host_is_killed: [MariaDb, Postgres, Embedded];
    the_single_active_consumer_of_a_queue_declared_elsewhere_stays_the_same: [MariaDb];
    what_another_host_has_parked_blocks_a_lane_no_longer_than_it_is_there: [MariaDb, Postgres];
    who_takes_over_begins_with_what_the_other_has_parked: [MariaDb, Postgres];
}

mod scenarios {
    use std::time::Duration;

    use anyhow::Context as _;
    use hapax::broker::Outgoing;
    use hapax_tests::TestResult;
    use serde_json::{Value as Json, json};

    use crate::hold::through;
    use crate::world::{Consumer, PATIENCE, QUEUE, Stage, World, effect, message};

    /// The `n`-th message of a key, which insists on its place; it writes under its key which attempt it was.
    fn in_place(key: &str, n: usize, steps: &[Json]) -> Outgoing {
        let mut all = steps.to_vec();
        all.extend([
            json!({ "query": "SELECT COUNT(*) FROM effects WHERE name = ?", "params": [key], "expect": [[n]] }),
            json!({ "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [key, { "$": "attempt" }] }),
        ]);
        message(&format!("{key}-{n}"), json!({ "do": all, "key": key }).to_string())
    }

    pub(super) async fn each_key_keeps_its_order_over_four_lanes(world: World) -> TestResult {
        const KEYS: usize = 16;
        const EACH: usize = 25;
        let consumer = Consumer::default()
            .with("concurrency = 4")
            .with("partition_by = \"json:/key\"")
            .with("batch = { max_messages = 8 }")
            // All of them: what waits in one lane must not keep the broker from filling the others.
            .with("prefetch = { messages = 1000 }")
            .with("limits = { sql_lock_time = \"20s\", sql_time = \"30s\" }");
        let mut host = world.host(consumer).await?;
        let latch = world.latch("first").await?;
        // The first message of one key waits, and so does its lane; the others do not.
        let held_up = [json!({ "print": "waiting" }), through("first")];
        let messages = (0..EACH).flat_map(|n| {
            let held_up = &held_up;
            (0..KEYS).map(move |key| {
                let steps: &[Json] = if (key, n) == (0, 0) { held_up } else { &[] };
                in_place(&format!("key{key}"), n, steps)
            })
        });
        world.publish(messages).await?;
        host.wait_for_log(PATIENCE, "waiting").await?;
        let complete = format!(
            "SELECT CASE WHEN COUNT(*) > 0 THEN 1 ELSE 0 END FROM (SELECT name FROM effects GROUP BY name HAVING COUNT(*) = {EACH}) done"
        );
        world.wait_number(&complete, 1).await?;
        assert_eq!(world.effects("key0").await?, 0);
        latch.commit().await?;
        let all = i64::try_from(KEYS * EACH)?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", all).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, all);
        let early = world.number("SELECT COUNT(*) FROM effects WHERE value <> '1'").await?;
        assert_eq!(early, 0, "so many came before their turn");
        Ok(())
    }

    pub(super) async fn blocking_retry_keeps_the_order_when_its_host_is_killed(world: World) -> TestResult {
        const MESSAGES: usize = 20;
        if world.stage != Stage::Embedded {
            // One consumer at a time, and the next one when that is gone.
            world.vhost().delete_queue(QUEUE).await?;
            world.vhost().declare_queue(QUEUE, json!({ "x-single-active-consumer": true })).await?;
        }
        let consumer = Consumer::default()
            .with("arguments = { x-single-active-consumer = true }")
            .with("rescue_after = \"1s\"")
            .with("retry = { max_attempts = 5, initial_interval = \"300ms\", jitter = 0.0, mode = \"blocking\" }");
        let mut hosts = vec![world.host(consumer).await?];
        if world.stage != Stage::Embedded {
            // They wait already when the active one is killed.
            hosts.extend([world.another_host("the second host").await?, world.another_host("the third host").await?]);
        }
        // The third fails twice, the eighth and the thirteenth each cost a host in its middle.
        let messages = (0..MESSAGES).map(|n| {
            let steps = match n {
                3 => vec![json!({ "fail-until-attempt": 3 })],
                8 | 13 => vec![json!({ "print": format!("message {n} begins") }), json!({ "sleep-ms": 3000 })],
                _ => Vec::new(),
            };
            in_place("key", n, &steps)
        });
        world.publish(messages).await?;
        for n in [8, 13] {
            // Deliveries go to one host; what is parked, to whichever looks first.
            let begins = format!("message {n} begins");
            let at = world.wait_for(&begins, async || {
                hosts.iter().position(|host| host.log().contains(&begins)).context("nobody has said so")
            });
            let at = at.await?;
            hosts.swap_remove(at).kill9().await?;
            if hosts.is_empty() {
                hosts.push(world.another_host("the next host").await?);
            }
        }
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", i64::try_from(MESSAGES)?).await?;
        world.quiet().await?;
        assert_eq!(world.effects("key").await?, i64::try_from(MESSAGES)?);
        // A message that runs before its turn fails, which is counted; only the third may have been.
        let rows = world.rows("SELECT value, COUNT(*) FROM effects GROUP BY value ORDER BY value").await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 19, "{rows:?}");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '3'").await?, 1, "{rows:?}");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn what_another_host_has_parked_blocks_a_lane_no_longer_than_it_is_there(
        world: World,
    ) -> TestResult {
        const ROUNDS: usize = 4;
        const MESSAGES: usize = 20;
        let retry = "retry = { max_attempts = 5, initial_interval = \"1s\", jitter = 0.0, mode = \"blocking\" }";
        let _one = world.host(Consumer::default().with(retry)).await?;
        let _others = [world.another_host("the second host").await?, world.another_host("the third host").await?];
        // By then all have seen that nothing is parked.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for round in 0..ROUNDS {
            // When it is due, all look for it, and who does not come first finds it running.
            let slow = [json!({ "fail-until-attempt": 2 }), json!({ "sleep-ms": 700 })];
            world.publish([effect(&format!("slow{round}"), &slow)]).await?;
            let slow = format!("SELECT COUNT(*) FROM effects WHERE name = 'slow{round}'");
            world.wait_number(&slow, 1).await?;
            // Each gets its share of these.
            world.publish((0..MESSAGES).map(|n| effect(&format!("round{round}-{n}"), &[]))).await?;
            let all = i64::try_from((round + 1) * (MESSAGES + 1))?;
            world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", all).await?;
        }
        world.quiet().await?;
        Ok(())
    }

    pub(super) async fn who_takes_over_begins_with_what_the_other_has_parked(world: World) -> TestResult {
        world.vhost().delete_queue(QUEUE).await?;
        world.vhost().declare_queue(QUEUE, json!({ "x-single-active-consumer": true })).await?;
        let retry = "retry = { max_attempts = 5, initial_interval = \"5s\", jitter = 0.0, mode = \"blocking\" }";
        let mut active = world.host(Consumer::default().with(retry)).await?;
        let _next = world.another_host("the host that waits").await?;
        // By then it has seen that nothing is parked.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        world.publish([in_place("key", 0, &[json!({ "fail-until-attempt": 2 })])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1", 1).await?;
        assert!(active.terminate(PATIENCE).await?.success());
        world.publish([in_place("key", 1, &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2).await?;
        world.quiet().await?;
        // One that runs before its turn fails, which is counted.
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '2'").await?, 1);
        Ok(())
    }

    pub(super) async fn the_single_active_consumer_of_a_queue_declared_elsewhere_stays_the_same(
        world: World,
    ) -> TestResult {
        const MESSAGES: usize = 300;
        world.vhost().delete_queue(QUEUE).await?;
        world.vhost().declare_queue(QUEUE, json!({ "x-single-active-consumer": true })).await?;
        // The config says nothing of the queue's arguments: it need not, for a queue that exists.
        let retry = "retry = { max_attempts = 5, initial_interval = \"100ms\", jitter = 0.0, mode = \"blocking\" }";
        let active = world.host(Consumer::default().with(retry)).await?;
        let waiting = world.another_host("the host that waits").await?;
        world.publish((0..MESSAGES).map(|n| in_place("key", n, &[json!({ "print": "a message runs" })]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status IN (1, 3)", i64::try_from(MESSAGES)?).await?;
        world.quiet().await?;
        assert!(!waiting.log().contains("a message runs"), "it was not its turn");
        assert!(active.log().contains("a message runs"));
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, i64::try_from(MESSAGES)?);
        Ok(())
    }
}
