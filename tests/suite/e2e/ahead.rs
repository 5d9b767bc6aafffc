//! Running ahead: handlers go on with the answers that their statements always have, and what the database says
//! differently afterwards has never happened.
//!
//! Each scenario first sends messages enough for the host to be sure of its statements.

use crate::world::on_stages;

on_stages! {
    a_handler_that_went_on_from_a_wrong_answer_is_called_again: [MariaDb, Postgres, Embedded];
    a_statement_that_fails_behind_its_handlers_back_fails_that_handler: [MariaDb, Postgres, Embedded];
    a_failure_after_statements_that_wait_undoes_only_its_own: [MariaDb, Postgres, Embedded];
    a_query_sees_what_was_put_off: [MariaDb, Postgres, Embedded];
    a_consumer_may_be_told_to_wait_for_every_answer: [Postgres];
}

mod scenarios {
    use hapax_tests::TestResult;
    use serde_json::{Value as Json, json};

    use crate::hold::Figures;
    use crate::world::{Consumer, Stage, World, effect, message};

    const AGAIN: &str = "hapax_attempts_refuted_total";

    fn record(name: &str) -> Json {
        json!({ "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [name, { "$": "attempt" }] })
    }

    /// Takes one from the stock, or fails for good.
    fn take(goods: i64) -> Json {
        let update = "UPDATE stock SET quantity = quantity - 1 WHERE goods_id = ? AND quantity > 0";
        json!({ "affects": update, "params": [goods], "rows": 1, "advice": "never" })
    }

    async fn figures_and_host(world: &World, consumer: Consumer) -> TestResult<(Figures, hapax_tests::proc::Process)> {
        let figures = Figures::new()?;
        let host = world.host(consumer.top(&figures.listen())).await?;
        Ok((figures, host))
    }

    pub(super) async fn a_handler_that_went_on_from_a_wrong_answer_is_called_again(world: World) -> TestResult {
        // Every fifth order is for goods of which there are 20; the last orders get none.
        world.prepare(&["INSERT INTO stock (goods_id, quantity) VALUES (1, 20), (2, 1000)"]).await?;
        world.bind("told", "shop", "order.done").await?;
        let (figures, _host) = figures_and_host(&world, Consumer::default()).await?;
        let orders = (0..300).map(|n| {
            let told =
                json!({ "publish": { "exchange": "shop", "routing_key": "order.done", "body": format!("o{n}") } });
            let goods = if n % 5 == 0 { 1 } else { 2 };
            message(&format!("o{n}"), json!({ "do": [take(goods), record(&format!("o{n}")), told] }).to_string())
        });
        world.publish(orders).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 260).await?;
        world.wait_dead("permanent", 40).await?;
        world.quiet().await?;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?,
            260,
            "each in its first attempt"
        );
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, 260);
        assert_eq!(world.number("SELECT quantity FROM stock WHERE goods_id = 1").await?, 0);
        assert_eq!(world.number("SELECT quantity FROM stock WHERE goods_id = 2").await?, 760);
        let once = "SELECT COUNT(*) FROM hapax_parked WHERE code = 'unexpected' AND handler_attempts = 1";
        assert_eq!(world.number(once).await?, 40, "what was told in advance is nobody's attempt");
        let told = world.collect("told", |arrived| arrived.len() >= 260).await?;
        assert_eq!(told.len(), 260, "nothing is published for a belief");
        assert!(figures.consumers(AGAIN).await? >= 1.0, "somebody was called again");
        Ok(())
    }

    pub(super) async fn a_statement_that_fails_behind_its_handlers_back_fails_that_handler(world: World) -> TestResult {
        world.prepare(&["CREATE TABLE ticket (name VARCHAR(20) PRIMARY KEY)"]).await?;
        let consumer = Consumer::default()
            .with("grants = { tables = { effects = [\"insert\"], ticket = [\"insert\"] } }")
            .with("retry = { max_attempts = 1 }");
        let (figures, _host) = figures_and_host(&world, consumer).await?;
        // Every tenth wants a ticket that is taken.
        let wants = (0..200).map(|n| {
            let ticket = if n % 10 == 9 { "t0".to_owned() } else { format!("t{n}") };
            let draw = json!({ "sql": "INSERT INTO ticket (name) VALUES (?)", "params": [ticket] });
            message(&format!("m{n}"), json!({ "do": [draw, record(&format!("m{n}"))] }).to_string())
        });
        world.publish(wants).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 180).await?;
        world.wait_dead("exhausted", 20).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 180);
        assert_eq!(world.number("SELECT COUNT(*) FROM ticket").await?, 180);
        let failed = "SELECT COUNT(*) FROM hapax_parked WHERE code = 'sql-constraint' AND handler_attempts = 1";
        assert_eq!(world.number(failed).await?, 20, "the handler has met the error itself");
        // In SQLite every inserted row has a new number, which nobody can know in advance.
        if world.stage != Stage::Embedded {
            assert!(figures.consumers(AGAIN).await? >= 1.0, "somebody was called again");
        }
        Ok(())
    }

    pub(super) async fn a_failure_after_statements_that_wait_undoes_only_its_own(world: World) -> TestResult {
        world.prepare(&["INSERT INTO stock (goods_id, quantity) VALUES (1, 1000)"]).await?;
        let retry = "retry = { max_attempts = 3, initial_interval = \"50ms\", max_interval = \"50ms\", jitter = 0.0 }";
        let (figures, _host) = figures_and_host(&world, Consumer::default().with(retry)).await?;
        let orders = (0..300).map(|n| {
            let fails = if n % 7 == 3 { json!({ "fail-until-attempt": 2 }) } else { json!({ "count": "calls" }) };
            effect(&format!("o{n}"), &[take(1), record(&format!("again o{n}")), fails])
        });
        world.publish(orders).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 300).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT quantity FROM stock").await?, 700);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'o%'").await?, 300);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'again%'").await?, 300);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'o%' AND value = '2'").await?, 43);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        assert!(figures.consumers(AGAIN).await? < 1.0, "a handler that fails has been told the truth");
        Ok(())
    }

    pub(super) async fn a_query_sees_what_was_put_off(world: World) -> TestResult {
        world.prepare(&["INSERT INTO stock (goods_id, quantity) VALUES (1, 500)"]).await?;
        let (figures, _host) = figures_and_host(&world, Consumer::default()).await?;
        let look = "SELECT quantity FROM stock WHERE goods_id = 1";
        let orders = (0..200).map(|n| {
            let mut steps = vec![take(1)];
            if n % 3 == 0 {
                steps.push(json!({ "query": look, "expect": [[499 - n]] }));
            }
            effect(&format!("o{n}"), &steps)
        });
        world.publish(orders).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 200).await?;
        world.quiet().await?;
        assert_eq!(world.number(look).await?, 300);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 200);
        assert!(figures.consumers(AGAIN).await? < 1.0);
        Ok(())
    }

    pub(super) async fn a_consumer_may_be_told_to_wait_for_every_answer(world: World) -> TestResult {
        world.prepare(&["INSERT INTO stock (goods_id, quantity) VALUES (1, 100)"]).await?;
        let (figures, _host) =
            figures_and_host(&world, Consumer::default().with("batch = { run_ahead = false }")).await?;
        world.publish((0..150).map(|n| effect(&format!("o{n}"), &[take(1)]))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 100).await?;
        world.wait_dead("permanent", 50).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 100);
        assert!(figures.consumers(AGAIN).await? < 1.0, "nobody was told anything in advance");
        Ok(())
    }
}
