//! Members of one batch: what one of them does must not be felt by another.

use crate::world::on_stages;

on_stages! {
    a_verdict_that_hung_on_what_was_rolled_back_does_not_count: [MariaDb, Postgres];
    an_instance_that_saw_a_rolled_back_transaction_is_not_used_again: [MariaDb, Postgres];
    a_statement_that_outlasts_its_attempt_costs_its_own_attempt_and_the_connection: [MariaDb, Postgres];
    a_constraint_checked_at_commit_fails_the_one_that_broke_it: [Postgres, Embedded];
    an_attempt_that_fails_after_more_than_a_batchs_time_is_counted: [MariaDb, Postgres];
    what_a_batch_had_no_time_for_shares_the_next_transactions: [MariaDb, Postgres];
}

mod scenarios {
    use hapax_tests::{TestResult, wait_for};
    use serde_json::{Value as Json, json};

    use crate::hold::Figures;
    use crate::world::{Consumer, PATIENCE, Stage, World, effect, message};

    /// Grants for a table besides those that the batch's own steps need.
    fn grants(table: &str) -> String {
        format!(
            "grants = {{ tables = {{ effects = [\"select\", \"insert\"], stock = [\"select\", \"update\"], \
             latch = [\"select\", \"update\"], {table} = [\"select\", \"insert\"] }} }}"
        )
    }

    fn record(name: &str, value: &Json) -> Json {
        json!({ "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [name, value] })
    }

    pub(super) async fn a_verdict_that_hung_on_what_was_rolled_back_does_not_count(world: World) -> TestResult {
        let counter = match world.stage {
            Stage::MariaDb => "BIGINT AUTO_INCREMENT",
            _ => "BIGINT GENERATED ALWAYS AS IDENTITY",
        };
        world
            .prepare(&[
                &format!("CREATE TABLE ticket (id {counter} PRIMARY KEY, buyer VARCHAR(20))"),
                "INSERT INTO stock (goods_id, quantity) VALUES (1, 1)",
            ])
            .await?;
        let figures = Figures::new()?;
        let mut host = world.host(Consumer::default().top(&figures.listen()).with(grants("ticket"))).await?;
        // The first buyer takes the last one only with the first ticket, and tickets that were drawn in a transaction
        // that is rolled back are used up: in the second run it leaves the last one where it is.
        let first = json!({ "do": [
            { "sql": "INSERT INTO ticket (buyer) VALUES ('first')" },
            { "sql": "UPDATE stock SET quantity = quantity - 1 WHERE goods_id = 1 AND EXISTS (SELECT 1 FROM ticket WHERE id = 1)" },
            record("first", &json!({ "$": "attempt" })),
        ] });
        let second = json!({ "do": [
            { "affects": "UPDATE stock SET quantity = quantity - 1 WHERE goods_id = 1 AND quantity > 0",
              "rows": 1, "advice": "never" },
            record("second", &json!({ "$": "attempt" })),
        ] });
        let orders = vec![message("first", first.to_string()), message("second", second.to_string())];
        world.publish_as_one_batch(&mut host, &figures, orders).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status IN (1, 3)", 3).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT MAX(id) FROM ticket").await?, 2, "the batch was run twice");
        assert_eq!(world.effects("first").await?, 1);
        assert_eq!(world.effects("second").await?, 1, "it was refused for lack of what nobody took");
        assert_eq!(world.number("SELECT quantity FROM stock").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 2, "no attempt was counted");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn an_instance_that_saw_a_rolled_back_transaction_is_not_used_again(world: World) -> TestResult {
        let figures = Figures::new()?;
        let retry = "retry = { max_attempts = 5, initial_interval = \"1h\", max_interval = \"1h\", jitter = 0.0 }";
        let mut host = world.host(Consumer::default().top(&figures.listen()).with(retry)).await?;
        let counting = |id: &str| {
            let steps = json!({ "do": [{ "count": "calls" }, record(id, &json!({ "$": "count:calls" }))] });
            message(id, steps.to_string())
        };
        let batch = vec![counting("counted"), effect("failing", &[json!({ "fail-until-attempt": 2 })])];
        world.publish_as_one_batch(&mut host, &figures, batch).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1", 1).await?;
        for (id, calls) in [("counted", 1), ("after the failure", 1), ("and then", 2)] {
            if id != "counted" {
                world.publish([counting(id)]).await?;
            }
            let counted = format!("SELECT COUNT(*) FROM effects WHERE name = '{id}'");
            world.wait_number(&counted, 1).await?;
            let seen = world.number(&format!("SELECT CAST(value AS DECIMAL) FROM effects WHERE name = '{id}'")).await?;
            assert_eq!(seen, calls, "{id:?} was called in an instance that remembers what never happened");
        }
        Ok(())
    }

    pub(super) async fn a_statement_that_outlasts_its_attempt_costs_its_own_attempt_and_the_connection(
        world: World,
    ) -> TestResult {
        // The connection on which the statement runs, as the server sees it.
        let running = match world.stage {
            Stage::MariaDb => {
                "SELECT COALESCE(MAX(id), 0) FROM information_schema.processlist \
                 WHERE db = DATABASE() AND info LIKE '%CROSS JOIN%' AND id <> CONNECTION_ID()"
            }
            _ => {
                "SELECT COALESCE(MAX(pid), 0) FROM pg_stat_activity \
                 WHERE datname = current_database() AND query LIKE '%CROSS JOIN%' AND pid <> pg_backend_pid()"
            }
        };
        let gone = match world.stage {
            Stage::MariaDb => "SELECT COUNT(*) FROM information_schema.processlist WHERE id",
            _ => "SELECT COUNT(*) FROM pg_stat_activity WHERE pid",
        };
        let figures = Figures::new()?;
        let consumer = Consumer::default()
            .top(&figures.listen())
            .with("limits = { time = \"5s\", sql_time = \"30s\" }")
            .with("retry = { max_attempts = 1 }");
        let mut host = world.host(consumer).await?;
        let stock: Vec<String> = (1..=100).map(|goods| format!("({goods}, 10)")).collect();
        world.prepare(&[&format!("INSERT INTO stock (goods_id, quantity) VALUES {}", stock.join(", "))]).await?;
        let endless = json!({ "query":
            "SELECT COUNT(*) FROM stock a CROSS JOIN stock b CROSS JOIN stock c CROSS JOIN stock d CROSS JOIN stock e" });
        let mut batch: Vec<_> = (0..9).map(|n| effect(&format!("n{n}"), &[])).collect();
        batch.insert(5, effect("endless", &[endless]));
        world.publish_as_one_batch(&mut host, &figures, batch).await?;
        let connection = wait_for(PATIENCE, "the statement to run", async || match world.number(running).await? {
            0 => anyhow::bail!("nobody runs it"),
            connection => Ok(connection),
        });
        let connection = connection.await?;
        world.wait_dead("exhausted", 1).await?;
        world.publish([effect("after", &[])]).await?;
        // The nine, the message at the door, and the one that came after.
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 11).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'timeout'").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '1'").await?, 9);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 10);
        world.wait_number(&format!("{gone} = {connection}"), 0).await?;
        Ok(())
    }

    pub(super) async fn an_attempt_that_fails_after_more_than_a_batchs_time_is_counted(world: World) -> TestResult {
        let figures = Figures::new()?;
        let consumer = Consumer::default()
            .top(&figures.listen())
            .with("limits = { time = \"1s\" }")
            .with("retry = { max_attempts = 5, initial_interval = \"1s\", multiplier = 1.0, max_interval = \"1s\", jitter = 0.0 }")
            .with("batch = { max_time = \"500ms\" }");
        let mut host = world.host(consumer).await?;
        // Half of them fail among others at first, and come again as one batch of parked rows, with savepoints. What
        // runs there before the one that hangs is undone with it, and by then there is no time left for anything.
        let fails = [json!({ "query": "SELECT quantity FROM stock" }), json!({ "fail-until-attempt": 2 })];
        let order = |n: u32| effect(&format!("n{n}"), if n.is_multiple_of(2) { &[] } else { &fails });
        let mut orders: Vec<_> = (0..60).map(order).collect();
        let hangs = json!({ "until-attempt": 3, "do": [{ "print": "it hangs" }, { "sleep-ms": 600_000 }] });
        orders.insert(10, effect("hanging", &[&fails[..], &[hangs]].concat()));
        world.publish_as_one_batch(&mut host, &figures, orders).await?;
        // And the message at the door.
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 62).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '2'").await?, 30);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name = 'hanging' AND value = '3'").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 61);
        // Once among others, and then apart.
        assert!(host.log().matches("it hangs").count() <= 2, "the same attempt is made again and again");
        Ok(())
    }

    pub(super) async fn what_a_batch_had_no_time_for_shares_the_next_transactions(world: World) -> TestResult {
        let figures = Figures::new()?;
        let consumer = Consumer::default().top(&figures.listen()).with("batch = { max_time = \"500ms\" }");
        let mut host = world.host(consumer).await?;
        let slow = (0..60).map(|n| effect(&format!("n{n}"), &[json!({ "sleep-ms": 20 })])).collect();
        world.publish_as_one_batch(&mut host, &figures, slow).await?;
        // And the message at the door.
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 61).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '1'").await?, 60);
        // Some 25 fit into the time of each; were what is left run one by one, there would be 36.
        let transactions = figures.consumers("hapax_commit_seconds_count").await?;
        assert!(transactions < 20.0, "{transactions} transactions for 61 messages");
        Ok(())
    }

    pub(super) async fn a_constraint_checked_at_commit_fails_the_one_that_broke_it(world: World) -> TestResult {
        world
            .prepare(&[
                "CREATE TABLE customer (id BIGINT PRIMARY KEY)",
                "CREATE TABLE purchase (customer BIGINT REFERENCES customer (id) DEFERRABLE INITIALLY DEFERRED)",
                "INSERT INTO customer (id) VALUES (1)",
            ])
            .await?;
        let figures = Figures::new()?;
        let consumer = Consumer::default()
            .top(&figures.listen())
            .with(grants("purchase"))
            .with("retry = { max_attempts = 2, initial_interval = \"50ms\", jitter = 0.0 }");
        let mut host = world.host(consumer).await?;
        let buy = |id: &str, customer: i64| {
            effect(id, &[json!({ "sql": "INSERT INTO purchase (customer) VALUES (?)", "params": [customer] })])
        };
        let mut batch: Vec<_> = (0..8).map(|n| buy(&format!("n{n}"), 1)).collect();
        batch.insert(3, buy("guilty", 2));
        let mut handled = 8;
        if world.stage == Stage::Embedded {
            // Nobody else can write while the host is in a transaction: they come as they come.
            world.publish(batch).await?;
        } else {
            world.publish_as_one_batch(&mut host, &figures, batch).await?;
            handled += 1;
        }
        world.wait_dead("exhausted", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", handled).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT handler_attempts FROM hapax_parked").await?, 2, "it is the handler's fault");
        assert_eq!(world.effects("guilty").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '1'").await?, 8);
        assert_eq!(world.number("SELECT COUNT(*) FROM purchase WHERE customer = 1").await?, 8);
        assert_eq!(world.number("SELECT COUNT(*) FROM purchase").await?, 8);
        Ok(())
    }
}
