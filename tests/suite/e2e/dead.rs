//! Dead letters: how messages come to be them, what is compensated, and how they are reopened.

use crate::world::on_stages;

on_stages! {
    an_exhausted_message_is_a_dead_letter_and_the_queue_flows_on: [MariaDb, Postgres, Embedded];
    a_refused_message_is_compensated_once: [MariaDb, Postgres, Embedded];
    a_compensation_whose_host_is_killed_takes_effect_once: [MariaDb, Postgres, Embedded];
    messages_without_a_usable_id_and_conflicts_die_apart: [MariaDb, Postgres, Embedded];
}

mod scenarios {
    use hapax_tests::TestResult;
    use serde_json::json;

    use crate::world::{Consumer, PATIENCE, World, effect, message};

    pub(super) async fn an_exhausted_message_is_a_dead_letter_and_the_queue_flows_on(world: World) -> TestResult {
        let retry = "retry = { max_attempts = 3, initial_interval = \"50ms\", multiplier = 1.0, jitter = 0.0 }";
        let _host = world.host(Consumer::default().guest("plain").with(retry)).await?;
        let good = "INSERT INTO effects (name, value) VALUES ('good', '1')";
        world.publish([message("bad", "UPDATE effects SET nothing = 1"), message("good", good)]).await?;
        world.wait_dead("exhausted", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("good").await?, 1);
        assert_eq!(world.number("SELECT attempts FROM hapax_parked").await?, 3);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 3").await?, 1);
        Ok(())
    }

    pub(super) async fn a_refused_message_is_compensated_once(world: World) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        let refused = json!({
            "do": [
                { "sql": "INSERT INTO effects (name, value) VALUES ('refused', 'handled')" },
                { "fail": { "code": "no-more", "message": "there is no more", "advice": "never" } },
            ],
            "compensate": [
                { "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [{ "$": "death-reason" }, { "$": "death-code" }] },
            ],
        });
        world.publish([message("refused", refused.to_string()), effect("fine", &[])]).await?;
        world.wait_dead("permanent", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("refused").await?, 0, "what the failed attempt did is undone");
        assert_eq!(world.effects("permanent").await?, 1, "the compensation ran once, and was told why");
        assert_eq!(world.effects("fine").await?, 1);
        assert_eq!(world.number("SELECT compensations FROM hapax_parked").await?, 1);
        // A late duplicate of a dead message changes nothing.
        world.publish([message("refused", refused.to_string()), effect("later", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'later'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("permanent").await?, 1);
        assert_eq!(world.dead("permanent").await?, 1);
        Ok(())
    }

    pub(super) async fn a_compensation_whose_host_is_killed_takes_effect_once(world: World) -> TestResult {
        let mut host = world.host(Consumer::default().with("rescue_after = \"1s\"")).await?;
        let refused = json!({
            "do": [
                { "sql": "INSERT INTO effects (name, value) VALUES ('refused', 'handled')" },
                { "fail": { "code": "no-more", "message": "there is no more", "advice": "never" } },
            ],
            "compensate": [
                { "sql": "INSERT INTO effects (name, value) VALUES ('compensated', ?)", "params": [{ "$": "death-code" }] },
                { "print": "compensating" },
                { "sleep-ms": 3000 },
            ],
        });
        world.publish([message("refused", refused.to_string()), effect("fine", &[])]).await?;
        for kill in 1..=2 {
            host.wait_for_log(PATIENCE, "compensating").await?;
            host.kill9().await?;
            assert_eq!(world.effects("compensated").await?, 0, "it was killed in the middle");
            host = world.another_host(&format!("host after kill {kill}")).await?;
        }
        world.wait_dead("permanent", 1).await?;
        world.quiet().await?;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE name = 'compensated' AND value = 'no-more'").await?,
            1
        );
        assert_eq!(world.effects("refused").await?, 0);
        assert_eq!(world.effects("fine").await?, 1);
        assert_eq!(world.number("SELECT compensations FROM hapax_parked").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 3").await?, 1);
        Ok(())
    }

    pub(super) async fn messages_without_a_usable_id_and_conflicts_die_apart(world: World) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        let mut nameless = effect("", &[]);
        nameless.properties.message_id = None;
        let long = "x".repeat(255);
        // An AMQP property that holds nothing is there, and is no id.
        let unusable = effect("", &[]);
        world.publish([nameless, unusable, effect(&long, &[]), effect("twice", &[])]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2).await?;
        for _ in 0..3 {
            world.publish([effect("twice", &[json!({ "print": "another body" })])]).await?;
        }
        world.wait_dead("no-id", 1).await?;
        world.wait_dead("bad-id", 1).await?;
        world.wait_dead("id-conflict", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("twice").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox").await?, 2, "the inbox knows the original only");
        Ok(())
    }
}
