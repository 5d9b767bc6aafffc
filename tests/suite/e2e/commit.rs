//! COMMITs of which nobody knows what became: the connection is lost between COMMIT and its answer.

use crate::world::on_stages;

on_stages! {
    a_commit_whose_answer_is_lost_took_effect_once: [MariaDb, Postgres];
    a_commit_that_never_arrived_is_made_again: [MariaDb, Postgres];
}

mod scenarios {
    use hapax_tests::TestResult;
    use hapax_tests::proxy::{Loss, Proxy};
    use serde_json::json;

    use crate::world::{Consumer, World, effect};

    pub(super) async fn a_commit_whose_answer_is_lost_took_effect_once(world: World) -> TestResult {
        lose(world, Loss::Answer).await
    }

    pub(super) async fn a_commit_that_never_arrived_is_made_again(world: World) -> TestResult {
        lose(world, Loss::Request).await
    }

    /// First with messages that are new, then with one that SQL holds already and runs a second time.
    async fn lose(world: World, loss: Loss) -> TestResult {
        let proxy = Proxy::to(world.database_url()).await?;
        let through = proxy.through(world.database_url())?;
        let retry = "retry = { max_attempts = 5, initial_interval = \"1h\", max_interval = \"1h\", jitter = 0.0 }";
        let _host = world.host(Consumer::default().database(&through).with(retry)).await?;
        for round in 0..3 {
            let marker = format!("unsure-{round}-0");
            proxy.cut_once(&marker, "COMMIT", loss);
            world.publish((0..5).map(|n| effect(&format!("unsure-{round}-{n}"), &[]))).await?;
            world.wait_number(&format!("SELECT COUNT(*) FROM effects WHERE name LIKE 'unsure-{round}-%'"), 5).await?;
            world.quiet().await?;
            assert!(proxy.has_cut(), "the commit went through undisturbed");
        }
        world.publish([effect("resumed", &[json!({ "fail-until-attempt": 2 })])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1", 1).await?;
        // The claim is not made again, but what the handler writes is sent again.
        proxy.cut_once("resumed", "COMMIT", loss);
        world.prepare(&["UPDATE hapax_parked SET due_at = 1"]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 16).await?;
        world.quiet().await?;
        assert!(proxy.has_cut(), "the commit of the second attempt went through undisturbed");

        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 16);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, 16);
        let counted = world.number("SELECT COUNT(*) FROM effects WHERE value = '1' AND name LIKE 'unsure-%'").await?;
        assert_eq!(counted, 15, "a lost connection is no attempt");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '2' AND name = 'resumed'").await?, 1);
        Ok(())
    }
}
