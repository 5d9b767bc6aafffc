//! The path of a message: handled once, retried, parked, deferred, whatever is repeated or killed.

use crate::world::on_stages;

on_stages! {
    a_message_takes_effect_once_however_often_it_comes: [MariaDb, Postgres, Embedded];
    what_another_process_has_handled_is_settled_almost_without_transactions: [MariaDb, Postgres];
    a_failed_message_runs_again_after_the_policys_delay: [MariaDb, Postgres, Embedded];
    a_killed_host_loses_and_doubles_nothing: [MariaDb, Postgres, Embedded];
}

mod scenarios {
    use std::time::Duration;

    use hapax_tests::TestResult;
    use serde_json::json;

    use crate::hold::Figures;
    use crate::world::{Consumer, World, effect};

    pub(super) async fn a_message_takes_effect_once_however_often_it_comes(world: World) -> TestResult {
        let mut host = world.host(Consumer::default()).await?;
        let messages = (0..200).map(|n| effect(&format!("m{}", n % 50), &[]));
        world.publish(messages).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 50).await?;
        world.publish((0..50).map(|n| effect(&format!("m{n}"), &[]))).await?;
        world.publish([effect("last", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'last'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 51);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        Ok(())
    }

    pub(super) async fn what_another_process_has_handled_is_settled_almost_without_transactions(
        world: World,
    ) -> TestResult {
        let figures = Figures::new()?;
        let messages = || (0..1000).map(|n| effect(&format!("m{n}"), &[]));
        let mut host = world.host(Consumer::default().top(&figures.listen())).await?;
        world.publish(messages()).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1000).await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        // All at once for one that remembers nothing, with something new among them.
        world.publish(messages().chain([effect("new", &[])])).await?;
        let _host = world.another_host("the second host").await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'new'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 1001);
        assert!((figures.consumers("hapax_duplicates_total").await? - 1000.0).abs() < 0.5);
        let transactions = figures.consumers("hapax_batch_size_count").await?;
        assert!(transactions < 10.0, "{transactions} transactions; a thousand messages are 16 batches");
        Ok(())
    }

    pub(super) async fn a_failed_message_runs_again_after_the_policys_delay(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 5, initial_interval = \"7m\", multiplier = 3.0, max_interval = \"1h\", jitter = 0.0 }";
        let _host = world.host(Consumer::default().with(retry)).await?;
        world.publish([effect("again", &[json!({ "fail-until-attempt": 3 })])]).await?;
        // Both times are of one statement, by the server's clock.
        for (attempts, minutes) in [(1, 7), (2, 21)] {
            let parked = format!("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = {attempts}");
            world.wait_number(&parked, 1).await?;
            let delay = world.number("SELECT due_at - updated_at FROM hapax_parked").await?;
            assert_eq!(delay, minutes * 60_000, "milliseconds after failure {attempts}");
            assert_eq!(world.effects("again").await?, 0);
            world.prepare(&["UPDATE hapax_parked SET due_at = 1"]).await?;
        }
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'again'", 1).await?;
        world.quiet().await?;
        let rows = world.rows("SELECT value FROM effects WHERE name = 'again'").await?;
        assert_eq!(rows, [[hapax::ledger::value::Value::Text("3".into())]], "the third attempt's effect, and no other");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_killed_host_loses_and_doubles_nothing(world: World) -> TestResult {
        let mut host = world.host(Consumer::default().with("rescue_after = \"1s\"")).await?;
        let orders = 2000;
        world.publish((0..orders).map(|n| effect(&format!("k{n}"), &[json!({ "sleep-ms": 4 })]))).await?;
        for part in 1..=2 {
            let reached = format!("SELECT CASE WHEN COUNT(*) >= {} THEN 1 ELSE 0 END FROM effects", orders * part / 4);
            world.wait_number(&reached, 1).await?;
            host.kill9().await?;
            let left = orders - world.number("SELECT COUNT(*) FROM effects").await?;
            assert!(left > 0, "it was killed in the middle of its work");
            host = world.another_host(&format!("host after kill {part}")).await?;
        }
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", orders).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, orders);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, orders);
        Ok(())
    }
}
