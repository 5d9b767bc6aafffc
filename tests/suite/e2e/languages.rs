//! The same handler in other languages, and the component that was built when the contract was first published.

use crate::world::on_stages;

on_stages! {
    the_classic_scenario_in_python: [MariaDb];
    the_classic_scenario_in_typescript: [MariaDb];
    the_golden_component_runs: [Embedded];
}

mod scenarios {
    use std::time::Duration;

    use hapax_tests::TestResult;

    use crate::classic::{Size, run};
    use crate::world::{Consumer, World, message};

    /// A host built without optimisation compiles a Python component for about a minute, unless it is cached.
    const COMPILING: Duration = Duration::from_secs(300);

    const SMALL: Size = Size { goods: 10, orders: 300, patience: COMPILING };

    pub(super) async fn the_classic_scenario_in_python(world: World) -> TestResult {
        Ok(run(&world, "reduce_stock_python", &SMALL).await?)
    }

    pub(super) async fn the_classic_scenario_in_typescript(world: World) -> TestResult {
        Ok(run(&world, "reduce_stock_typescript", &SMALL).await?)
    }

    pub(super) async fn the_golden_component_runs(world: World) -> TestResult {
        world
            .prepare(&[
                "CREATE TABLE golden (name TEXT NOT NULL, value TEXT)",
                "CREATE TABLE golden_values (a INTEGER, b TEXT, c BLOB, d REAL)",
                "CREATE TABLE golden_copy (a INTEGER, b TEXT, c BLOB, d REAL)",
                "INSERT INTO golden_values VALUES (-9223372036854775808, 'é', x'00ff', 0.5), (NULL, NULL, NULL, NULL)",
            ])
            .await?;
        world.bind("golden", "golden", "golden.done").await?;
        let consumer = Consumer::default()
            .guest("golden")
            .with("retry = { max_attempts = 2, initial_interval = \"50ms\", multiplier = 1.0, jitter = 0.0 }")
            .with(
                "grants = { tables = { golden = [\"insert\"], golden_values = [\"select\"], golden_copy = [\"insert\"] }, \
                 publish = [{ exchange = \"golden\", routing_key = \"golden.done\" }], config = { golden = \"granted\" } }",
            );
        let _host = world.host(consumer).await?;
        world
            .publish([message("g1", "ok"), message("g2", "never"), message("g3", "trap"), message("g4", "policy")])
            .await?;
        world.wait_dead("permanent", 1).await?;
        world.wait_dead("exhausted", 2).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 1);

        let value = async |name: &str, value: &str| {
            world.number(&format!("SELECT COUNT(*) FROM golden WHERE name = '{name}' AND value = '{value}'")).await
        };
        for (name, wanted) in [("consumer", "under-test"), ("queue", "work"), ("id", "g1"), ("config", "granted")] {
            assert_eq!(value(name, wanted).await?, 1, "{name} = {wanted}, from the one attempt that was handled");
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM golden WHERE name = 'outbox-id'").await?, 1);
        let same = "SELECT COUNT(*) FROM golden_copy AS copy JOIN golden_values AS original \
                    ON copy.a IS original.a AND copy.b IS original.b AND copy.c IS original.c AND copy.d IS original.d";
        assert_eq!(world.number(same).await?, 2, "every value came back as it was");
        assert_eq!(world.number("SELECT COUNT(*) FROM golden_copy").await?, 2);
        for (id, reason) in [("g2", "permanent"), ("g3", "exhausted"), ("g4", "exhausted")] {
            assert_eq!(value("compensated", id).await?, 1, "{id} died as {reason}");
        }
        assert_eq!(value("death-reason", "permanent").await?, 1);
        assert_eq!(value("death-reason", "exhausted").await?, 2);
        assert_eq!(value("death-code", "golden-policy").await?, 1);

        let arrived = world.collect("golden", |arrived| !arrived.is_empty()).await?;
        assert_eq!(arrived.len(), 1, "{arrived:?}");
        assert_eq!(arrived[0].body, "ok");
        assert_eq!(value("outbox-id", &arrived[0].id).await?, 1);
        Ok(())
    }
}
