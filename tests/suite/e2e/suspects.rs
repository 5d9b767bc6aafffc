//! Messages whose host was lost while it ran them.

use crate::world::on_stages;

on_stages! {
    many_suspects_run_alone_but_without_a_pause_between_them: [MariaDb, Postgres, Embedded];
    suspects_do_not_wait_for_others_that_keep_coming: [MariaDb, Postgres, Embedded];
    while_a_suspect_runs_no_lane_has_taken_another: [MariaDb, Postgres];
}

mod scenarios {
    use std::time::Duration;

    use hapax_tests::TestResult;
    use serde_json::json;

    use crate::world::{Consumer, World, effect};

    pub(super) async fn many_suspects_run_alone_but_without_a_pause_between_them(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 3, initial_interval = \"1h\", multiplier = 1.0, max_interval = \"1h\", jitter = 0.0 }";
        let mut host = world.host(Consumer::default().with(retry)).await?;
        // Fewer than a mass failure, more than the wait below would see if they ran one a second.
        let suspects = 90;
        let message = |n| effect(&format!("s{n}"), &[json!({ "fail-until-attempt": 2 })]);
        world.publish((0..suspects).map(message)).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1", suspects).await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        // As if the host had been lost with all of them.
        world.prepare(&["UPDATE hapax_parked SET crashes = 1, due_at = 1"]).await?;
        let _host = world.another_host("host after the loss").await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", suspects).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, suspects);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, suspects);
        Ok(())
    }

    pub(super) async fn suspects_do_not_wait_for_others_that_keep_coming(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 100_000, initial_interval = \"1h\", multiplier = 1.0, max_interval = \"1h\", jitter = 0.0 }";
        let mut host = world.host(Consumer::default().with(retry)).await?;
        let suspects = 40;
        let message = |n| effect(&format!("s{n}"), &[json!({ "fail-until-attempt": 2 })]);
        let again = json!({ "fail": { "code": "restless", "message": "again", "advice": { "after-ms": 1 } } });
        world.publish((0..suspects).map(message).chain([effect("restless", &[again])])).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'not-yet'", suspects).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'restless'", 1).await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        world.prepare(&["UPDATE hapax_parked SET crashes = 1, due_at = 1 WHERE code = 'not-yet'"]).await?;
        let attempts = "SELECT attempts FROM hapax_parked WHERE code = 'restless'";
        let before = world.number(attempts).await?;
        let _host = world.another_host("host after the loss").await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", suspects).await?;
        // Their turns come one for one; a suspect that is looked for once a second meets dozens.
        let meanwhile = world.number(attempts).await? - before;
        assert!(meanwhile < 3 * suspects, "{meanwhile} attempts of one message while {suspects} suspects waited");
        Ok(())
    }

    pub(super) async fn while_a_suspect_runs_no_lane_has_taken_another(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 3, initial_interval = \"1h\", multiplier = 1.0, max_interval = \"1h\", jitter = 0.0 }";
        let consumer = Consumer::default().with(retry).with("concurrency = 4").with("partition_by = \"message-id\"");
        let mut host = world.host(consumer).await?;
        let suspects = 12;
        let steps = [json!({ "fail-until-attempt": 2 }), json!({ "sleep-ms": 200 })];
        world.publish((0..suspects).map(|n| effect(&format!("s{n}"), &steps))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 1 AND attempts = 1", suspects).await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        world.prepare(&["UPDATE hapax_parked SET crashes = 1, due_at = 1"]).await?;
        let _host = world.another_host("host after the loss").await?;
        // Whatever is taken when the host dies costs it, whether it has begun or waits for its turn.
        let mut seen = 0;
        while world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await? < suspects {
            let taken = world.number("SELECT COUNT(*) FROM hapax_parked WHERE state = 2").await?;
            assert!(taken <= 1, "{taken} suspects are taken");
            seen += taken;
        }
        assert!(seen > 0, "it was looked while none ran");
        Ok(())
    }
}
