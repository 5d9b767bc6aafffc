//! Rows and claims that somebody else has locked: what meets them waits or runs again, uncounted, and nothing else does.

use crate::world::on_stages;

on_stages! {
    a_locked_row_holds_up_its_own_message_only: [MariaDb, Postgres];
    a_row_that_stays_locked_is_given_up_for_contention: [MariaDb, Postgres];
    a_statement_whose_time_goes_by_in_waiting_is_contention: [MariaDb, Postgres];
    an_attempt_whose_time_goes_by_in_waiting_is_contention: [MariaDb, Postgres];
    two_lanes_that_deadlock_both_complete_uncounted: [MariaDb, Postgres];
    a_claim_of_somebody_who_rolls_back_holds_up_its_own_message_only: [MariaDb, Postgres];
    a_claim_of_somebody_who_commits_makes_its_message_a_duplicate: [MariaDb, Postgres];
}

mod scenarios {
    use std::time::Duration;

    use hapax::identity::{PartitionRule, lane_of, slot};
    use hapax::message::{BodyDigest, Message, MessageId, Properties};
    use hapax_tests::TestResult;
    use hapax_tests::proc::Process;
    use serde_json::json;

    use crate::hold::{Figures, Held, through};
    use crate::world::{CONSUMER, Consumer, PATIENCE, Stage, World, effect, message};

    /// The shortest wait for a row lock that MariaDB knows.
    const SHORT_WAIT: &str = "limits = { sql_lock_time = \"1s\" }";
    const LOCKED: &str = "UPDATE stock SET quantity = quantity + 1 WHERE goods_id = 1";

    /// Publishes one message that meets a locked row, in the middle of eight that do not.
    async fn meet_a_locked_row(world: &World, limits: &str) -> anyhow::Result<(Process, Held)> {
        world.prepare(&["INSERT INTO stock (goods_id, quantity) VALUES (1, 0)"]).await?;
        let figures = Figures::new()?;
        let mut host = world.host(Consumer::default().top(&figures.listen()).with(limits)).await?;
        let locked = world.hold(&[LOCKED]).await?;
        let mut batch: Vec<_> = (0..8).map(|n| effect(&format!("n{n}"), &[])).collect();
        let steps = json!({
            "do": [
                { "sql": LOCKED },
                { "sql": "INSERT INTO effects (name, value) VALUES ('held up', ?)", "params": [{ "$": "attempt" }] },
            ],
            "compensate": [
                { "sql": "INSERT INTO effects (name, value) VALUES ('given up', ?)", "params": [{ "$": "death-reason" }] },
            ],
        });
        batch.insert(4, message("held up", steps.to_string()));
        world.publish_as_one_batch(&mut host, &figures, batch).await?;
        Ok((host, locked))
    }

    async fn assert_neighbours_ran_once(world: &World) -> TestResult {
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%' AND value = '1'").await?, 8);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%'").await?, 8);
        Ok(())
    }

    pub(super) async fn a_locked_row_holds_up_its_own_message_only(world: World) -> TestResult {
        let (_host, locked) = meet_a_locked_row(&world, SHORT_WAIT).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%'", 8).await?;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM hapax_parked").await?,
            0,
            "its neighbours did not have to wait until it was given up"
        );
        locked.rollback().await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'held up' AND value = '1'", 1).await?;
        world.quiet().await?;
        assert_neighbours_ran_once(&world).await?;
        assert_eq!(world.number("SELECT quantity FROM stock").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_row_that_stays_locked_is_given_up_for_contention(world: World) -> TestResult {
        give_up_a_locked_row(world, SHORT_WAIT).await
    }

    pub(super) async fn a_statement_whose_time_goes_by_in_waiting_is_contention(world: World) -> TestResult {
        give_up_a_locked_row(world, "limits = { sql_time = \"1s\", sql_lock_time = \"10s\" }").await
    }

    pub(super) async fn an_attempt_whose_time_goes_by_in_waiting_is_contention(world: World) -> TestResult {
        give_up_a_locked_row(world, "limits = { time = \"1s\", sql_time = \"10s\", sql_lock_time = \"10s\" }").await
    }

    /// Whatever ends the wait, the message is tried again, uncounted, until it is given up.
    async fn give_up_a_locked_row(world: World, limits: &str) -> TestResult {
        let (_host, locked) = meet_a_locked_row(&world, limits).await?;
        world.wait_dead("contention", 1).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'contention'").await?, 1);
        assert_eq!(world.effects("held up").await?, 0);
        let told = "SELECT COUNT(*) FROM effects WHERE name = 'given up' AND value = 'contention'";
        assert_eq!(world.number(told).await?, 1, "the compensation is told why, once");
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name LIKE 'n%'", 8).await?;
        world.quiet().await?;
        assert_neighbours_ran_once(&world).await?;
        locked.rollback().await?;
        assert_eq!(world.number("SELECT quantity FROM stock").await?, 0);
        Ok(())
    }

    /// An id that goes to that lane of two, by itself.
    fn id_in_lane(lane: u16) -> anyhow::Result<String> {
        let message = Message {
            exchange: String::new(),
            routing_key: String::new(),
            properties: Properties::default(),
            body: Vec::new().into(),
        };
        for n in 0..1000 {
            let id = format!("candidate {n}");
            let slot = slot(&PartitionRule::MessageId, &message, &MessageId::new(id.as_str())?);
            if lane_of(slot, 2) == lane {
                return Ok(id);
            }
        }
        anyhow::bail!("a thousand ids, and none in lane {lane}")
    }

    pub(super) async fn two_lanes_that_deadlock_both_complete_uncounted(world: World) -> TestResult {
        world.prepare(&["INSERT INTO stock (goods_id, quantity) VALUES (1, 0), (2, 0)"]).await?;
        let consumer = Consumer::default()
            .with("concurrency = 2")
            .with("partition_by = \"message-id\"")
            .with("limits = { sql_lock_time = \"20s\", sql_time = \"30s\" }");
        let mut host = world.host(consumer).await?;
        let (one, other) = (world.latch("one").await?, world.latch("other").await?);
        let take = |goods: i64| json!({ "affects": "UPDATE stock SET quantity = quantity + 1 WHERE goods_id = ?", "params": [goods], "rows": 1 });
        let (first, second) = (id_in_lane(0)?, id_in_lane(1)?);
        // Each takes its row, waits until the other has its own, and then wants that too.
        let crossing = |id: &str, latch: &str, goods: [i64; 2]| {
            effect(
                id,
                &[take(goods[0]), json!({ "print": format!("{latch} has its row") }), through(latch), take(goods[1])],
            )
        };
        world.publish([crossing(&first, "one", [1, 2]), crossing(&second, "other", [2, 1])]).await?;
        host.wait_for_log(PATIENCE, "one has its row").await?;
        host.wait_for_log(PATIENCE, "other has its row").await?;
        one.commit().await?;
        other.commit().await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2).await?;
        world.quiet().await?;
        assert!(host.log().matches("has its row").count() > 2, "one of them ran again, or this was no deadlock");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '1'").await?, 2, "no attempt was counted");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 2);
        assert_eq!(world.number("SELECT SUM(quantity) FROM stock").await?, 4);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        Ok(())
    }

    /// Publishes eight messages as one batch, with somebody else holding the claim on one of them, as a host would whose
    /// transaction lasts.
    async fn meet_a_claim(world: &World, figures: &Figures) -> anyhow::Result<(Process, Held)> {
        let mut host = world.host(Consumer::default().top(&figures.listen()).with(SHORT_WAIT)).await?;
        let batch: Vec<_> = (0..8).map(|n| effect(&format!("m{n}"), &[])).collect();
        let digest: String = BodyDigest::of(&batch[3].body).0.iter().map(|byte| format!("{byte:02x}")).collect();
        let bytes = |hex: &str| match world.stage {
            Stage::MariaDb => format!("X'{hex}'"),
            _ => format!("'\\x{hex}'"),
        };
        let claim = format!(
            "INSERT INTO hapax_inbox (consumer, message_id, status, body_digest, updated_at) \
             VALUES ('{CONSUMER}', {}, 1, {}, 4102444800000)",
            bytes("6d33"), // m3
            bytes(&digest),
        );
        let held = world.hold(&[&claim]).await?;
        world.publish_as_one_batch(&mut host, figures, batch).await?;
        // Seven, and the message at the door; the eighth is put off again and again.
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 8).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state = 3", 1).await?;
        assert_eq!(world.effects("m3").await?, 0, "somebody else may be about to complete it");
        Ok((host, held))
    }

    async fn assert_ran_once(world: &World, names: &[&str]) -> TestResult {
        for name in names {
            let once = format!("SELECT COUNT(*) FROM effects WHERE name = '{name}' AND value = '1'");
            assert_eq!(world.number(&once).await?, 1, "{name}, in its first attempt");
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, i64::try_from(names.len())?);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_claim_of_somebody_who_rolls_back_holds_up_its_own_message_only(world: World) -> TestResult {
        let (_host, held) = meet_a_claim(&world, &Figures::new()?).await?;
        held.rollback().await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 9).await?;
        world.quiet().await?;
        assert_ran_once(&world, &["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"]).await
    }

    pub(super) async fn a_claim_of_somebody_who_commits_makes_its_message_a_duplicate(world: World) -> TestResult {
        let figures = Figures::new()?;
        let (_host, held) = meet_a_claim(&world, &figures).await?;
        held.commit().await?;
        world.quiet().await?;
        figures.wait("hapax_duplicates_total", 1.0).await?;
        assert_ran_once(&world, &["m0", "m1", "m2", "m4", "m5", "m6", "m7"]).await
    }
}
