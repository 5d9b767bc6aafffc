//! A message under which the infrastructure keeps failing, while it works for everybody else.

use crate::world::on_stages;

on_stages! {
    a_message_that_breaks_its_connection_is_found_out_and_nobody_else_is_counted: [MariaDb, Postgres];
}

mod scenarios {
    use hapax_tests::TestResult;
    use hapax_tests::proxy::Proxy;
    use serde_json::json;

    use crate::hold::Figures;
    use crate::world::{Consumer, PATIENCE, World, effect};

    /// Failures of the infrastructure under a message that is alone, before one counts as an attempt.
    const LONE_FAULTS: usize = 5;

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
}
