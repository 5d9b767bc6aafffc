//! Dead letters again: redriven, discarded, compensated, and their copies in a broker queue.

use crate::world::on_stages;

on_stages! {
    a_redriven_message_is_handled_once_however_often_it_is_redriven: [MariaDb, Postgres, Embedded];
    a_discarded_message_stays_given_up: [MariaDb, Postgres, Embedded];
    a_compensated_message_is_redriven_by_force_only_and_compensated_once_more: [MariaDb, Postgres, Embedded];
    a_compensation_that_keeps_failing_dies_with_that_reason: [MariaDb, Postgres, Embedded];
    a_compensation_that_works_at_last_takes_effect_once: [MariaDb, Postgres, Embedded];
    without_a_compensation_a_permanent_failure_is_dead_at_once: [MariaDb, Postgres, Embedded];
    a_copy_says_what_it_is_of_and_carries_nothing_that_would_undo_it: [MariaDb, Postgres];
    a_copy_moved_back_reopens_its_dead_letter_once: [MariaDb, Postgres];
    a_copy_waits_for_whoever_is_at_its_dead_letter: [MariaDb, Postgres];
    a_copy_of_a_forgotten_dead_letter_is_a_dead_letter_itself: [MariaDb, Postgres];
    a_copy_of_what_has_no_usable_id_changes_nothing: [MariaDb, Postgres];
}

mod scenarios {
    use std::time::Duration;

    use hapax_tests::TestResult;
    use hapax_tests::vhost::{Message, Vhost};
    use hapax_tests::wait_until;
    use lapin::types::{AMQPValue, FieldArray, FieldTable};
    use serde_json::json;

    use crate::world::{Consumer, DEAD_QUEUE, PATIENCE, QUEUE, World, effect, message};

    const REDRIVE: [&str; 4] = ["dead", "redrive", "--all", "--yes"];

    /// Two attempts, and no compensation.
    fn plain() -> Consumer {
        Consumer::default().guest("plain").with(quick(2))
    }

    fn quick(attempts: u32) -> String {
        format!("retry = {{ max_attempts = {attempts}, initial_interval = \"50ms\", multiplier = 1.0, jitter = 0.0 }}")
    }

    /// Dead letters that have been reopened that often.
    async fn wait_dead_again(world: &World, generation: u32, wanted: i64) -> TestResult {
        let sql = format!("SELECT COUNT(*) FROM hapax_parked WHERE state = 4 AND generation = {generation}");
        Ok(world.wait_number(&sql, wanted).await?)
    }

    /// For the guest `plain`: fails as long as [`block`]ed.
    fn insert(name: &str) -> String {
        format!("INSERT INTO refused_order (message_id, goods_id, quantity, reason) VALUES ('{name}', 1, 1, 'handled')")
    }

    async fn block(world: &World, name: &str) -> TestResult {
        let sql =
            format!("INSERT INTO refused_order (message_id, goods_id, quantity, reason) VALUES ('{name}', 0, 0, '')");
        Ok(world.prepare(&[&sql]).await?)
    }

    async fn unblock(world: &World, name: &str) -> TestResult {
        Ok(world.prepare(&[&format!("DELETE FROM refused_order WHERE message_id = '{name}' AND reason = ''")]).await?)
    }

    const HANDLED: &str = "SELECT COUNT(*) FROM refused_order WHERE reason = 'handled'";

    pub(super) async fn a_redriven_message_is_handled_once_however_often_it_is_redriven(world: World) -> TestResult {
        for name in ["one", "two"] {
            block(&world, name).await?;
        }
        let mut host = world.host(plain()).await?;
        world.publish([message("one", insert("one")), message("two", insert("two"))]).await?;
        world.wait_dead("exhausted", 2).await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        unblock(&world, "one").await?;
        // Nobody runs them meanwhile, so that the second command meets what the first left.
        let said = world.hapax(&REDRIVE).await?;
        assert!(said.contains("2 dead letters redriven"), "{said}");
        let said = world.hapax(&REDRIVE).await?;
        assert!(said.contains("0 dead letters redriven"), "{said}");
        let _host = world.another_host("host after redrive").await?;
        world.wait_number(HANDLED, 1).await?;
        // The other fails as before, and is a dead letter again, with a fresh count of attempts.
        wait_dead_again(&world, 1, 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 1);
        assert_eq!(world.number("SELECT attempts FROM hapax_parked").await?, 2);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 3").await?, 1);
        unblock(&world, "two").await?;
        world.hapax(&REDRIVE).await?;
        world.wait_number(HANDLED, 2).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_discarded_message_stays_given_up(world: World) -> TestResult {
        block(&world, "given-up").await?;
        let _host = world.host(plain()).await?;
        world.publish([message("given-up", insert("given-up"))]).await?;
        world.wait_dead("exhausted", 1).await?;
        let said = world.hapax(&["dead", "discard", "--all", "--yes"]).await?;
        assert!(said.contains("1 dead letter discarded"), "{said}");
        unblock(&world, "given-up").await?;
        let said = world.hapax(&REDRIVE).await?;
        assert!(said.contains("0 dead letters redriven"), "{said}");
        // A late duplicate is still recognised.
        world.publish([message("given-up", insert("given-up")), message("after", insert("after"))]).await?;
        world.wait_number(HANDLED, 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM refused_order WHERE message_id = 'given-up'").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE state = 5").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 1);
        Ok(())
    }

    pub(super) async fn a_compensated_message_is_redriven_by_force_only_and_compensated_once_more(
        world: World,
    ) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        let body = json!({
            "do": [{ "fail": { "code": "no", "message": "no", "advice": "never" } }],
            "compensate": [{ "sql": "INSERT INTO effects (name, value) VALUES ('compensated', ?)", "params": [{ "$": "message-id" }] }],
        });
        world.publish([message("undone", body.to_string())]).await?;
        world.wait_dead("permanent", 1).await?;
        let said = world.hapax_refuses(&REDRIVE).await?;
        assert!(said.contains("compensation took effect") && said.contains("--force"), "{said}");
        assert_eq!(world.number("SELECT generation FROM hapax_parked").await?, 0);
        assert_eq!(world.effects("compensated").await?, 1);
        for generation in 1..=2 {
            world.hapax(&["dead", "redrive", "--all", "--yes", "--force"]).await?;
            wait_dead_again(&world, generation, 1).await?;
            world.quiet().await?;
            assert_eq!(world.effects("compensated").await?, i64::from(generation) + 1);
            assert_eq!(world.number("SELECT compensations FROM hapax_parked").await?, i64::from(generation) + 1);
        }
        Ok(())
    }

    pub(super) async fn a_compensation_that_keeps_failing_dies_with_that_reason(world: World) -> TestResult {
        let _host = world.host(Consumer::default().with(quick(3))).await?;
        let body = json!({
            "do": [{ "fail": { "code": "no", "message": "no", "advice": "never" } }],
            "compensate": [
                { "sql": "INSERT INTO effects (name, value) VALUES ('compensated', '')" },
                { "fail": { "code": "stuck", "message": "it cannot be undone" } },
            ],
        });
        world.publish([message("stuck", body.to_string()), effect("flows", &[])]).await?;
        world.wait_dead("compensation-failed", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("compensated").await?, 0);
        assert_eq!(world.effects("flows").await?, 1);
        assert_eq!(world.number("SELECT attempts FROM hapax_parked").await?, 3);
        assert_eq!(world.number("SELECT handler_attempts FROM hapax_parked").await?, 1);
        assert_eq!(world.number("SELECT compensations FROM hapax_parked").await?, 0);
        // Nothing of a compensation took effect, so no force is needed.
        world.hapax(&REDRIVE).await?;
        wait_dead_again(&world, 1, 1).await?;
        assert_eq!(world.dead("compensation-failed").await?, 1);
        Ok(())
    }

    pub(super) async fn a_compensation_that_works_at_last_takes_effect_once(world: World) -> TestResult {
        let _host = world.host(Consumer::default().with(quick(3))).await?;
        let body = json!({
            "do": [{ "fail": { "code": "no", "message": "no", "advice": "never" } }],
            "compensate": [
                { "sql": "INSERT INTO effects (name, value) VALUES ('compensated', ?)", "params": [{ "$": "attempt" }] },
                { "fail-until-attempt": 2 },
            ],
        });
        world.publish([message("at-last", body.to_string())]).await?;
        world.wait_dead("permanent", 1).await?;
        world.quiet().await?;
        assert_eq!(world.effects("compensated").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM effects WHERE value = '2'").await?, 1, "of its second attempt");
        assert_eq!(world.number("SELECT compensations FROM hapax_parked").await?, 1);
        Ok(())
    }

    pub(super) async fn without_a_compensation_a_permanent_failure_is_dead_at_once(world: World) -> TestResult {
        let _host = world.host(Consumer::default().guest("plain")).await?;
        world.publish([message("not-text", [0xff, 0xfe].as_slice()), message("fine", insert("fine"))]).await?;
        world.wait_dead("permanent", 1).await?;
        world.wait_number(HANDLED, 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT attempts FROM hapax_parked").await?, 1);
        assert_eq!(world.number("SELECT compensations FROM hapax_parked").await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'undecodable'").await?, 1);
        Ok(())
    }

    /// A consumer whose dead letters are copied to a queue.
    fn copying() -> Consumer {
        plain().with(format!("dead_letter = {{ exchange = \"\", routing_key = {DEAD_QUEUE:?} }}"))
    }

    /// Takes copies until there are that many.
    async fn copies(world: &World, wanted: usize) -> anyhow::Result<Vec<Message>> {
        let mut found: Vec<Message> = Vec::new();
        wait_until(PATIENCE, "copies of dead letters", async || {
            found.extend(world.vhost().take(DEAD_QUEUE, wanted - found.len()).await.unwrap_or_default());
            found.len() == wanted
        })
        .await?;
        Ok(found)
    }

    fn header<'m>(message: &'m Message, name: &str) -> Option<&'m AMQPValue> {
        message.properties.headers().as_ref()?.inner().get(name)
    }

    /// A header of text or of an integer, as text.
    fn text(message: &Message, name: &str) -> String {
        match header(message, name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            Some(AMQPValue::LongLongInt(number)) => number.to_string(),
            Some(AMQPValue::LongInt(number)) => number.to_string(),
            other => panic!("header {name} is {other:?}"),
        }
    }

    async fn send_back(vhost: &Vhost, copy: &Message) -> TestResult {
        let copy = Message { exchange: String::new(), routing_key: QUEUE.to_owned(), ..copy.clone() };
        assert_eq!(vhost.publish([copy]).await?, 0);
        Ok(())
    }

    pub(super) async fn a_copy_says_what_it_is_of_and_carries_nothing_that_would_undo_it(world: World) -> TestResult {
        let _host = world.host(copying()).await?;
        world.vhost().declare_queue("elsewhere", json!({})).await?;
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("acme".into()));
        let elsewhere = FieldArray::from(vec![AMQPValue::LongString("elsewhere".into())]);
        headers.insert("CC".into(), AMQPValue::FieldArray(elsewhere));
        let mut death = FieldTable::default();
        death.insert("queue".into(), AMQPValue::LongString(DEAD_QUEUE.into()));
        death.insert("reason".into(), AMQPValue::LongString("rejected".into()));
        death.insert("count".into(), AMQPValue::LongLongInt(1));
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])));
        let mut original = Message::to_queue(QUEUE, Some("copied"), [0xff]);
        original.properties =
            original.properties.with_headers(headers).with_expiration("600000".into()).with_app_id("shop".into());
        assert_eq!(world.vhost().publish([original]).await?, 0);
        let copy = copies(&world, 1).await?.remove(0);
        assert_eq!(text(&copy, "x-hapax-reason"), "permanent");
        assert_eq!(text(&copy, "x-hapax-code"), "undecodable");
        assert_eq!(text(&copy, "x-hapax-generation"), "0");
        assert_eq!(text(&copy, "x-hapax-routing-key"), QUEUE);
        assert_eq!(text(&copy, "tenant"), "acme");
        let shown = world.hapax(&["dead", "show", &text(&copy, "x-hapax-dead-id")]).await?;
        assert!(shown.contains("copied"), "{shown}");
        for gone in ["CC", "BCC", "x-death"] {
            assert_eq!(header(&copy, gone), None, "{gone}");
        }
        assert_eq!(*copy.properties.expiration(), None);
        assert_eq!(*copy.properties.delivery_mode(), Some(2));
        assert_eq!(copy.properties.message_id().as_ref().map(ToString::to_string).as_deref(), Some("copied"));
        assert_eq!(copy.properties.app_id().as_ref().map(ToString::to_string).as_deref(), Some("shop"));
        assert_eq!(copy.body, [0xff]);
        world.quiet().await?;
        assert_eq!(world.vhost().take("elsewhere", 10).await?.len(), 1, "the producer's own, and none of the copy's");
        Ok(())
    }

    pub(super) async fn a_copy_moved_back_reopens_its_dead_letter_once(world: World) -> TestResult {
        for name in ["mine", "other"] {
            block(&world, name).await?;
        }
        let _host = world.host(copying()).await?;
        world.publish([message("mine", insert("mine")), message("other", insert("other"))]).await?;
        let first = copies(&world, 2).await?;
        let mine = |copy: &&Message| String::from_utf8_lossy(&copy.body) == insert("mine");
        let copy = first.iter().find(mine).expect("a copy of each");
        send_back(world.vhost(), copy).await?;
        // It fails as before: a dead letter of the next generation, with a copy of its own.
        let second = copies(&world, 1).await?.remove(0);
        assert_eq!(text(&second, "x-hapax-generation"), "1");
        assert_eq!(text(&second, "x-hapax-dead-id"), text(copy, "x-hapax-dead-id"));
        wait_dead_again(&world, 1, 1).await?;
        // The copy of the first generation has done what it could.
        send_back(world.vhost(), copy).await?;
        world.publish([message("later", insert("later"))]).await?;
        world.wait_number(HANDLED, 1).await?;
        world.quiet().await?;
        wait_dead_again(&world, 1, 1).await?;
        wait_dead_again(&world, 0, 1).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 2);
        // That of the second still can, moved by the broker's own means.
        unblock(&world, "mine").await?;
        world
            .vhost()
            .publish([Message { exchange: String::new(), routing_key: DEAD_QUEUE.to_owned(), ..second }])
            .await?;
        assert_eq!(world.vhost().move_messages(DEAD_QUEUE, QUEUE).await?, 1);
        world.wait_number(HANDLED, 2).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 1);
        wait_dead_again(&world, 0, 1).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 2);
        Ok(())
    }

    pub(super) async fn a_copy_waits_for_whoever_is_at_its_dead_letter(world: World) -> TestResult {
        block(&world, "mine").await?;
        let mut host = world.host(copying().with("limits = { sql_lock_time = \"100ms\" }")).await?;
        world.publish([message("mine", insert("mine"))]).await?;
        let copy = copies(&world, 1).await?.remove(0);
        unblock(&world, "mine").await?;
        let held = world.hold(&["UPDATE hapax_parked SET updated_at = updated_at"]).await?;
        send_back(world.vhost(), &copy).await?;
        // It has lost against it so often that its lane gives up for a while.
        host.wait_for_log(PATIENCE, "pausing").await?;
        held.rollback().await?;
        world.wait_number(HANDLED, 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_copy_of_what_has_no_usable_id_changes_nothing(world: World) -> TestResult {
        let _host = world.host(copying()).await?;
        let mut nameless = message("", insert("nameless"));
        nameless.properties.message_id = None;
        world.publish([nameless]).await?;
        let copy = copies(&world, 1).await?.remove(0);
        send_back(world.vhost(), &copy).await?;
        world.publish([message("later", insert("later"))]).await?;
        world.wait_number(HANDLED, 1).await?;
        world.quiet().await?;
        assert_eq!(world.dead("no-id").await?, 1, "SQL had it already");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 1);
        // The same copy may have been published twice, where its confirmation was late; but not one of anything else.
        for again in world.vhost().take(DEAD_QUEUE, 10).await? {
            assert_eq!(text(&again, "x-hapax-dead-id"), text(&copy, "x-hapax-dead-id"));
            assert_eq!(text(&again, "x-hapax-generation"), "0");
        }
        Ok(())
    }

    pub(super) async fn a_copy_of_a_forgotten_dead_letter_is_a_dead_letter_itself(world: World) -> TestResult {
        block(&world, "forgotten").await?;
        let _host = world.host(copying()).await?;
        world.publish([message("forgotten", insert("forgotten"))]).await?;
        let copy = copies(&world, 1).await?.remove(0);
        world.hapax(&["dead", "discard", "--all", "--yes"]).await?;
        unblock(&world, "forgotten").await?;
        // What retention does in the end.
        world
            .prepare(&["DELETE FROM hapax_parked WHERE state = 5", "DELETE FROM hapax_inbox WHERE status = 3"])
            .await?;
        send_back(world.vhost(), &copy).await?;
        world.wait_dead("stale-copy", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number(HANDLED).await?, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox").await?, 0);
        // Once, however often it comes back.
        send_back(world.vhost(), &copy).await?;
        world.publish([message("later", insert("later"))]).await?;
        world.wait_number(HANDLED, 1).await?;
        world.quiet().await?;
        assert_eq!(world.dead("stale-copy").await?, 1);
        Ok(())
    }
}
