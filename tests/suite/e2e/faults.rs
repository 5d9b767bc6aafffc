//! A message under which the infrastructure keeps failing, while it works for everybody else.

use crate::world::on_stages;

on_stages! {
    what_only_upkeep_meets_is_said: [MariaDb, Postgres];
    a_message_that_breaks_its_connection_is_found_out_and_nobody_else_is_counted: [MariaDb, Postgres];
    a_query_that_fails_before_anything_else_is_an_attempt_and_no_outage: [MariaDb, Postgres, Embedded];
    a_write_that_takes_too_long_is_an_attempt_and_no_outage: [Postgres, Embedded];
    many_writes_that_take_too_long_are_an_attempt_and_no_outage: [Postgres, Embedded];
}

mod scenarios {
    use hapax_tests::TestResult;
    use hapax_tests::proxy::Proxy;
    use serde_json::{Value as Json, json};

    use crate::hold::Figures;
    use crate::world::{Consumer, PATIENCE, Stage, World, effect, message};

    /// Failures of the infrastructure under a message that is alone, before one counts as an attempt.
    const LONE_FAULTS: usize = 5;

    pub(super) async fn what_only_upkeep_meets_is_said(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        // Whoever publishes nothing has no use for this table, except to count what is in it.
        world.prepare(&["ALTER TABLE hapax_outbox RENAME TO elsewhere"]).await?;
        host.wait_for_log(PATIENCE, "upkeep fails").await?;
        world.publish([effect("served", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'served'", 1).await?;
        world.prepare(&["ALTER TABLE elsewhere RENAME TO hapax_outbox"]).await?;
        assert!(host.terminate(PATIENCE).await?.success());
        Ok(())
    }

    pub(super) async fn a_message_that_breaks_its_connection_is_found_out_and_nobody_else_is_counted(
        world: World,
    ) -> TestResult {
        // What the handler makes of its message, and only that: its row can be parked.
        let marker = "x".repeat(300);
        let proxy = Proxy::to(world.database_url()).await?;
        proxy.cut_every(&marker);
        let figures = Figures::new()?;
        let consumer = Consumer::default()
            .top(&figures.listen())
            .database(&proxy.through(world.database_url())?)
            // Each of its attempts takes a while, and its host is not lost meanwhile.
            .with("rescue_after = \"5m\"")
            .with("retry = { max_attempts = 2, initial_interval = \"50ms\", jitter = 0.0 }");
        let mut host = world.host(consumer).await?;
        let write = json!({ "sql": "INSERT INTO effects (name, value) VALUES ('too large', ?)", "params": [{ "$": "text:300" }] });
        let mut batch: Vec<_> = (0..9).map(|n| effect(&format!("n{n}"), &[])).collect();
        batch.insert(5, effect("breaker", &[write]));
        world.publish_as_one_batch(&mut host, &figures, batch).await?;
        host.wait_for_log(PATIENCE, "pausing").await?;
        // The neighbours, and the message at the door.
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 10).await?;
        world.wait_dead("exhausted", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'infrastructure'").await?, 1);
        assert_eq!(world.number("SELECT handler_attempts FROM hapax_parked").await?, 2);
        assert_eq!(world.number("SELECT crashes FROM hapax_parked").await?, 0);
        // Once among the others, and then alone.
        let cuts = proxy.cuts();
        assert!((2 * LONE_FAULTS..=2 * LONE_FAULTS + 2).contains(&cuts), "{cuts} connections were cut");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '1'").await?, 9);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 9);
        Ok(())
    }

    pub(super) async fn a_query_that_fails_before_anything_else_is_an_attempt_and_no_outage(
        world: World,
    ) -> TestResult {
        world.prepare(&["INSERT INTO latch (name, value) VALUES ('a', 1), ('b', 1)"]).await?;
        fail_twice(&world, "sql_rows = 1", json!({ "query": "SELECT value FROM latch" }), "sql-too-large").await
    }

    pub(super) async fn a_write_that_takes_too_long_is_an_attempt_and_no_outage(world: World) -> TestResult {
        let write = json!({ "sql": slow_write(&world).await?, "params": [0] });
        fail_twice(&world, "sql_time = \"500ms\"", write, "sql-other").await
    }

    pub(super) async fn many_writes_that_take_too_long_are_an_attempt_and_no_outage(world: World) -> TestResult {
        let writes = json!({ "many": slow_write(&world).await?, "rows": [[0], [0], [0]] });
        fail_twice(&world, "sql_time = \"500ms\"", writes, "sql-other").await
    }

    /// A statement that would run for hours before it changes anything.
    async fn slow_write(world: &World) -> anyhow::Result<&'static str> {
        let stock: Vec<String> = (1..=200).map(|goods| format!("({goods}, 10)")).collect();
        world.prepare(&[&format!("INSERT INTO stock (goods_id, quantity) VALUES {}", stock.join(", "))]).await?;
        Ok(
            "INSERT INTO effects (name, value) SELECT 'slow', 'slow' FROM stock a CROSS JOIN stock b CROSS JOIN stock c \
            CROSS JOIN stock d CROSS JOIN stock e WHERE a.quantity + b.quantity + c.quantity + d.quantity + e.quantity < ?",
        )
    }

    /// A message whose only step fails with that code, among others and twice.
    async fn fail_twice(world: &World, limits: &str, step: Json, code: &str) -> TestResult {
        let figures = Figures::new()?;
        let consumer = Consumer::default()
            .top(&figures.listen())
            .with(format!("limits = {{ {limits} }}"))
            .with("retry = { max_attempts = 2, initial_interval = \"50ms\", jitter = 0.0 }");
        let mut host = world.host(consumer).await?;
        let mut batch: Vec<_> = (0..9).map(|n| effect(&format!("n{n}"), &[])).collect();
        batch.insert(5, message("failing", json!({ "do": [step] }).to_string()));
        match world.stage {
            // Its one writer would have to wait at the door as well.
            Stage::Embedded => world.publish(batch).await?,
            _ => world.publish_as_one_batch(&mut host, &figures, batch).await?,
        }
        world.wait_dead("exhausted", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM effects", 9).await?;
        world.quiet().await?;
        assert!(!host.log().contains("pausing"), "{}", host.log());
        assert_eq!(world.number(&format!("SELECT COUNT(*) FROM hapax_parked WHERE code = '{code}'")).await?, 1);
        assert_eq!(world.number("SELECT handler_attempts FROM hapax_parked").await?, 2);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '1'").await?, 9);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 9);
        Ok(())
    }
}
