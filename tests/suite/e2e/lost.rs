//! Parked rows between the hands of two runs: taken and lost, held through an outage, taken by a host that lives.

use crate::world::on_stages;

on_stages! {
    a_stored_delivery_that_was_lost_in_the_meantime_claims_nothing: [MariaDb, Postgres];
    a_lost_connection_is_no_crash: [MariaDb, Postgres];
    compensations_that_take_their_time_are_no_crashes: [MariaDb, Postgres];
}

mod scenarios {
    use std::time::Duration;

    use hapax_tests::TestResult;
    use hapax_tests::servers::Redis;
    use serde_json::json;

    use crate::world::{CONSUMER, Consumer, PATIENCE, World, effect};

    /// What a host says that has put another's row back.
    const RESCUED: &str = "the host that ran this message was lost";

    pub(super) async fn a_stored_delivery_that_was_lost_in_the_meantime_claims_nothing(world: World) -> TestResult {
        let Some(mut redis) = Redis::private().await? else { return Ok(()) };
        let consumer =
            Consumer::default().lock(redis.url()).with("lock = { on_unavailable = \"pause\", wait = \"0s\" }");
        let _host = world.host(consumer).await?;
        // Deferred, because somebody holds its lock; then taken, and held while there is no lock server.
        let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
        let key = format!("hapax:{CONSUMER}:deferred");
        let () = redis::cmd("SET").arg(key).arg("somebody").arg("PX").arg(600_000).query_async(&mut connection).await?;
        world.publish([effect("deferred", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 3", 1).await?;
        redis.kill9().await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 2", 1).await?;
        // As a rescue does it.
        let later = "UPDATE hapax_parked SET state = 3, run_token = NULL, incarnation = NULL, taken_at = NULL, due_at = 9999999999999";
        world.prepare(&[later]).await?;
        redis.restart().await?;
        // The lane comes to this one after what it held.
        world.publish([effect("after", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'after'", 1).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox").await?, 1, "nothing was claimed for the lost one");
        world.prepare(&["UPDATE hapax_parked SET due_at = 1"]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2).await?;
        world.quiet().await?;
        assert_eq!(world.effects("deferred").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 2);
        Ok(())
    }

    pub(super) async fn a_lost_connection_is_no_crash(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 2, initial_interval = \"100ms\", max_interval = \"1s\", jitter = 0.0 }";
        let consumer = Consumer::default().with("rescue_after = \"1s\"").with("max_crashes = 0").with(retry);
        let mut first = world.host(consumer).await?;
        let mut second = world.another_host("second host").await?;
        // In its second attempt, from SQL, it runs for longer than `rescue_after` when its connection goes.
        let steps = [json!({ "fail-until-attempt": 2 }), json!({ "print": "under way" }), json!({ "sleep-ms": 4000 })];
        world.publish([effect("slow", &steps)]).await?;
        hapax_tests::wait_until(PATIENCE, "the second attempt", async || {
            first.log().contains("under way") || second.log().contains("under way")
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.cut_connections().await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'slow' AND value = '2'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 1);
        for host in [&mut first, &mut second] {
            assert!(!host.log().contains(RESCUED), "{}", host.log_tail());
            assert!(host.terminate(PATIENCE).await?.success());
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0, "and nothing died");
        Ok(())
    }

    pub(super) async fn compensations_that_take_their_time_are_no_crashes(world: World) -> TestResult {
        let consumer = Consumer::default().with("rescue_after = \"1s\"").with("max_crashes = 0");
        let mut host = world.host(consumer).await?;
        let _second = world.another_host("second host").await?;
        let never = json!({ "fail": { "code": "no", "message": "never", "advice": "never" } });
        // Taken together, run one after the other: the last begin long after they were taken.
        let messages = 12;
        let refused = |n| {
            let body = json!({
                "do": [never],
                "compensate": [
                    { "sleep-ms": 300 },
                    { "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [format!("c{n}"), "compensated"] },
                ],
            });
            crate::world::message(&format!("c{n}"), body.to_string())
        };
        world.publish((0..messages).map(refused)).await?;
        world.wait_dead("permanent", messages).await?;
        world.quiet().await?;
        assert_eq!(world.dead("crashed").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = 'compensated'").await?, messages);
        assert_eq!(world.number("SELECT COUNT(DISTINCT name) FROM effects").await?, messages);
        assert!(!host.log().contains(RESCUED), "{}", host.log_tail());
        assert!(host.terminate(PATIENCE).await?.success());
        Ok(())
    }
}
