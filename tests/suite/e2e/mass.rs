//! Something that every handler depends on is down: nothing is used up by that, and nothing dies of it.

use crate::world::on_stages;

on_stages! {
    while_nearly_everything_fails_one_lane_probes_and_counts_nothing: [MariaDb, Postgres, Embedded];
    while_nearly_everything_fails_two_lanes_probe_and_count_nothing: [MariaDb, Postgres];
}

mod scenarios {
    use hapax_tests::TestResult;
    use serde_json::json;

    use crate::world::{Consumer, PATIENCE, World, effect};

    /// Verdicts that the consumer looks at, and members of one of its batches.
    const WINDOW: i64 = 20;
    const BATCH: i64 = 10;
    const MESSAGES: i64 = 80;

    pub(super) async fn while_nearly_everything_fails_one_lane_probes_and_counts_nothing(world: World) -> TestResult {
        probe(&world, Consumer::default(), 1).await
    }

    pub(super) async fn while_nearly_everything_fails_two_lanes_probe_and_count_nothing(world: World) -> TestResult {
        let consumer = Consumer::default().with("concurrency = 2").with("partition_by = \"message-id\"");
        probe(&world, consumer, 2).await
    }

    async fn probe(world: &World, consumer: Consumer, lanes: i64) -> TestResult {
        world.prepare(&["INSERT INTO latch (name, value) VALUES ('the service is down', 1)"]).await?;
        let consumer = consumer
            .with(format!("mass_failure = {{ window = {WINDOW} }}"))
            .with(format!("batch = {{ max_messages = {BATCH} }}"))
            .with("retry = { max_attempts = 3, initial_interval = \"100ms\", multiplier = 1.0, jitter = 0.0 }");
        let mut host = world.host(consumer).await?;
        let is_up = json!({ "query": "SELECT value FROM latch WHERE name = 'the service is down'", "expect": [[0]] });
        world.publish((0..MESSAGES).map(|n| effect(&format!("m{n}"), std::slice::from_ref(&is_up)))).await?;
        host.wait_for_log(PATIENCE, "probing with single messages").await?;
        // Failed and not counted: probes, of messages that had not been tried before.
        let probes = "SELECT CASE WHEN COUNT(*) >= 2 THEN 1 ELSE 0 END FROM hapax_parked WHERE attempts = 0 AND code = 'unexpected'";
        world.wait_number(probes, 1).await?;
        let counted = world.number("SELECT SUM(attempts) FROM hapax_parked").await?;
        let most = WINDOW + lanes * BATCH;
        assert!((WINDOW..=most).contains(&counted), "{counted} attempts were counted, at most {most} were made before");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE state = 4").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 0);

        world.prepare(&["UPDATE latch SET value = 0 WHERE name = 'the service is down'"]).await?;
        host.wait_for_log(PATIENCE, "probing ends").await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", MESSAGES).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, MESSAGES);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, MESSAGES);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0, "nothing died");
        Ok(())
    }
}
