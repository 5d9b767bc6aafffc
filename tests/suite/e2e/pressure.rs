//! Back-pressure: while too much waits in SQL, no deliveries are taken, and nothing is lost by that.

use crate::world::on_stages;

on_stages! {
    deliveries_wait_in_their_queue_while_too_much_is_parked: [MariaDb, Postgres, Embedded];
    deliveries_wait_in_their_queue_while_too_much_is_unpublished: [MariaDb, Postgres, Embedded];
}

mod scenarios {
    use std::time::Duration;

    use hapax::broker::Outgoing;
    use hapax::ledger::Ledger;
    use hapax::ledger::database;
    use hapax::ledger::outbox::{OutboxId, OutboxRow};
    use hapax_tests::proc::{Launch, Process};
    use hapax_tests::usage::cpu_micros;
    use hapax_tests::{TestResult, wait_until};
    use serde_json::json;

    use crate::world::{CONSUMER, Consumer, PATIENCE, QUEUE, SESSION, Stage, World, effect};

    const STOPPED: &str = "no deliveries are taken until less is";
    const GOES_ON: &str = "deliveries are taken again";
    const RUNS: &str = "one of those that waited runs";

    pub(super) async fn deliveries_wait_in_their_queue_while_too_much_is_parked(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 3, initial_interval = \"1h\", max_interval = \"1h\", jitter = 0.0 }";
        let consumer = Consumer::default().with(retry).with("parked = { max = 20 }").with("mass_failure = false");
        let mut host = world.host(consumer).await?;
        let failing = |n| effect(&format!("failing{n}"), &[json!({ "fail-until-attempt": 2 })]);
        world.publish((0..21).map(failing)).await?;
        host.wait_for_log(PATIENCE, STOPPED).await?;
        publish_waiting(&world).await?;
        // Parked messages run on, or there would never be fewer.
        world.prepare(&["UPDATE hapax_parked SET due_at = 1"]).await?;
        host.wait_for_log(PATIENCE, GOES_ON).await?;
        let ran_first = world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'failing%'").await?;
        assert!(ran_first > 0, "what is parked made room");
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name LIKE 'waiting%'", 10).await?;
        world.quiet().await?;
        assert_waited(&host);
        // That there was too much wakes nobody any more.
        let before = cpu_micros(host.pid())?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = cpu_micros(host.pid())? - before;
        assert!(used < 500_000, "{used} µs of CPU in two idle seconds");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 31);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, 31);
        Ok(())
    }

    pub(super) async fn deliveries_wait_in_their_queue_while_too_much_is_unpublished(world: World) -> TestResult {
        world.host(Consumer::default()).await?.terminate(PATIENCE).await?;
        // As if the broker had taken nothing for a while.
        let ledger = Ledger::open(database::open(world.database_url(), SESSION)?).await?;
        let rows: Vec<OutboxRow> = (0..30).map(unpublished).collect();
        let mut connection = ledger.connect().await?;
        connection.begin().await?;
        ledger.add_to_outbox(connection.as_mut(), CONSUMER, &rows, Duration::from_secs(3600)).await?;
        connection.commit().await?;

        let config = world.configure(Consumer::default().with("outbox = { max = 20 }"))?;
        let mut host = Launch::hapax(["run".into(), "-c".into(), config.into_os_string()]).start()?;
        host.wait_for_log(PATIENCE, STOPPED).await?;
        publish_waiting(&world).await?;
        world.prepare(&["UPDATE hapax_outbox SET next_at = 1"]).await?;
        host.wait_for_log(PATIENCE, GOES_ON).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 40).await?;
        world.quiet().await?;
        assert_waited(&host);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_outbox").await?, 0, "all of it was published");
        Ok(())
    }

    /// Publishes ten messages that must wait, and sees them do it.
    async fn publish_waiting(world: &World) -> anyhow::Result<()> {
        let waiting = |n| effect(&format!("waiting{n}"), &[json!({ "print": RUNS })]);
        world.publish((0..10).map(waiting)).await?;
        if world.stage != Stage::Embedded {
            wait_until(PATIENCE, "the messages to wait in their queue", async || {
                world.vhost().queue(QUEUE).await.is_ok_and(|queue| (queue.ready, queue.unacknowledged) == (10, 0))
            })
            .await?;
        }
        let ran = world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'waiting%'").await?;
        anyhow::ensure!(ran == 0, "{ran} messages did not wait");
        Ok(())
    }

    /// None of those that waited ran before the host said that it takes deliveries again.
    fn assert_waited(host: &Process) {
        let log = host.log();
        let (stopped, goes_on, runs) = (log.find(STOPPED), log.find(GOES_ON), log.find(RUNS));
        assert!(
            stopped.is_some() && stopped < goes_on && goes_on < runs,
            "{stopped:?}, {goes_on:?}, {runs:?} in\n{log}"
        );
    }

    fn unpublished(n: usize) -> OutboxRow {
        let id = format!("old{n}");
        let outgoing: Outgoing = effect(&id, &[]);
        OutboxRow { id: OutboxId::of_message(CONSUMER, &id), message_id: None, parked_id: None, outgoing }
    }
}
