//! Settings of a consumer that change whom it remembers, what its module may do, and what is logged.

use crate::world::on_stages;

on_stages! {
    consumers_of_one_host_keep_to_databases_of_their_own: [MariaDb, Postgres, Embedded];
    a_function_is_refused_until_it_is_granted: [MariaDb, Postgres, Embedded];
    without_reuse_every_message_gets_a_fresh_instance: [Embedded];
    ids_come_from_the_first_rule_that_finds_one: [MariaDb, Postgres, Embedded];
    a_log_in_json_has_one_object_on_each_line: [Embedded];
}

mod scenarios {
    use std::time::Duration;

    use hapax::broker::Outgoing;
    use hapax::ledger::database;
    use hapax::ledger::value::{RowLimits, Value};
    use hapax::message::HeaderValue;
    use hapax_tests::proc::Launch;
    use hapax_tests::servers::shared;
    use hapax_tests::{TestResult, wait_until};
    use serde_json::{Value as Json, json};

    use crate::world::{CONSUMER, Consumer, DEAD_QUEUE, PATIENCE, SESSION, Stage, World, effect, guest, message};

    pub(super) async fn consumers_of_one_host_keep_to_databases_of_their_own(world: World) -> TestResult {
        let url = match world.stage {
            Stage::MariaDb => shared().mariadb().await?.fresh_database("other").await?.url().to_owned(),
            Stage::Postgres => shared().postgres().await?.fresh_database("other").await?.url().to_owned(),
            Stage::Embedded => format!("sqlite://{}", world.path("other.db").display()),
        };
        let other = database::open(&url, SESSION)?;
        let mut connection = other.connect().await?;
        connection.execute("CREATE TABLE effects (name VARCHAR(300), value VARCHAR(2000))", &[]).await?;
        let (queue, declare) = match world.stage {
            Stage::Embedded => ("other", "create"),
            _ => (DEAD_QUEUE, "passive"),
        };
        let more = format!(
            "[consumers.elsewhere]\nqueue = {queue:?}\ndeclare = {declare:?}\nmodule = {:?}\ndatabase = {url:?}\n\
             grants = {{ tables = {{ effects = [\"insert\"] }}, publish = [{{ exchange = \"\", routing_key = \"#\" }}] }}\n\
             retry = {{ initial_interval = \"100ms\" }}\n",
            guest("chaos")?.display().to_string()
        );
        let mut host = world.host(Consumer::default().more(more)).await?;
        host.wait_for_log(PATIENCE, &format!("queue={queue}")).await?;
        // The same ids in both: a consumer knows only its own. Each tells the world's queue of it, by its own outbox.
        let here = effect("same", &[json!({ "fail-until-attempt": 2 })]);
        let tell = json!({ "publish": { "routing_key": crate::world::QUEUE, "properties": { "message-id": "ignored" },
            "body": json!({ "do": [{ "sql": "INSERT INTO effects (name, value) VALUES ('told', '1')" }] }) } });
        let mut there = effect("same", &[json!({ "fail-until-attempt": 2 }), tell]);
        queue.clone_into(&mut there.routing_key);
        world.publish([here.clone(), there.clone(), here, there]).await?;
        // What was told is the second message of the world's own consumer.
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2).await?;
        world.quiet().await?;
        assert_eq!(world.effects("same").await?, 1);
        assert_eq!(world.effects("told").await?, 1);
        assert_eq!(world.number(&format!("SELECT COUNT(*) FROM hapax_inbox WHERE consumer = '{CONSUMER}'")).await?, 2);
        let mut rows = async |sql: &str| -> anyhow::Result<Vec<Vec<Value>>> {
            Ok(connection.query(sql, &[], RowLimits::NONE).await?.rows)
        };
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(rows("SELECT name, value FROM effects").await?, [[text("same"), text("2")]]);
        assert_eq!(
            rows("SELECT consumer, message_id FROM hapax_inbox").await?,
            [[text("elsewhere"), Value::Blob(b"same".to_vec())]]
        );
        assert_eq!(rows("SELECT id FROM hapax_outbox").await?.len(), 0, "what it told was published");
        Ok(())
    }

    pub(super) async fn a_function_is_refused_until_it_is_granted(world: World) -> TestResult {
        let (function, call) = match world.stage {
            Stage::MariaDb => {
                world.prepare(&["CREATE FUNCTION twice(n BIGINT) RETURNS BIGINT DETERMINISTIC RETURN 2 * n"]).await?;
                ("twice", "twice(2) = 4")
            }
            Stage::Postgres => {
                let create = "CREATE FUNCTION twice(n BIGINT) RETURNS BIGINT LANGUAGE SQL AS 'SELECT 2 * n'";
                world.prepare(&[create]).await?;
                ("twice", "twice(2) = 4")
            }
            // No functions of anybody's own are there, and this one is not on the list of those that may be used.
            Stage::Embedded => ("zeroblob", "length(zeroblob(2)) = 2"),
        };
        let retry = "retry = { max_attempts = 1 }";
        let mut host = world.host(Consumer::default().with(retry)).await?;
        let ask = |id: &str| {
            let query = format!("SELECT 1 FROM effects WHERE name = '{id}' AND {call}");
            effect(id, &[json!({ "query": query, "expect": [[1]] })])
        };
        world.publish([ask("refused")]).await?;
        world.wait_dead("exhausted", 1).await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked WHERE code = 'sql-denied'").await?, 1);
        assert!(host.terminate(Duration::from_secs(20)).await?.success());

        let grants =
            format!("grants = {{ tables = {{ effects = [\"select\", \"insert\"] }}, functions = [\"{function}\"] }}");
        let _host = world.host(Consumer::default().with(retry).with(grants)).await?;
        world.publish([ask("granted")]).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'granted' AND value = '1'", 1).await?;
        assert_eq!(world.effects("refused").await?, 0);
        Ok(())
    }

    pub(super) async fn without_reuse_every_message_gets_a_fresh_instance(world: World) -> TestResult {
        let counting = |id: &str| {
            let counted = json!({ "write": { "$": "count:calls" }, "name": id, "into": "effects" });
            message(id, json!({ "do": [{ "count": "calls" }, counted] }).to_string())
        };
        for (reuse, calls) in [("reuse = true", ["1", "2", "3"]), ("reuse = false", ["1", "1", "1"])] {
            let mut host = world.host(Consumer::default().with(reuse)).await?;
            for (n, expected) in calls.into_iter().enumerate() {
                let id = format!("{reuse} {n}");
                world.publish([counting(&id)]).await?;
                world.wait_number(&format!("SELECT COUNT(*) FROM effects WHERE name = '{id}'"), 1).await?;
                let seen = world.rows(&format!("SELECT value FROM effects WHERE name = '{id}'")).await?;
                assert_eq!(seen, [[Value::Text(expected.into())]], "call {n} with {reuse}");
            }
            assert!(host.terminate(Duration::from_secs(20)).await?.success());
        }
        Ok(())
    }

    pub(super) async fn ids_come_from_the_first_rule_that_finds_one(world: World) -> TestResult {
        let rules = "message_id = [\"cloudevents\", \"json:/order/id\", \"body-digest\"]";
        let _host = world.host(Consumer::default().with(rules)).await?;
        // Nothing looks at the property, which differs from copy to copy.
        let with = |property: &str, more: &Json, headers: &[(&str, &str)], content_type: Option<&str>| -> Outgoing {
            let mut body = json!({ "do": [
                { "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [{ "$": "message-id" }, { "$": "attempt" }] },
            ] });
            for (name, value) in more.as_object().into_iter().flatten() {
                body[name] = value.clone();
            }
            let mut sent = message(property, body.to_string());
            sent.properties.headers =
                headers.iter().map(|(name, value)| ((*name).to_owned(), HeaderValue::Text((*value).into()))).collect();
            sent.properties.content_type = content_type.map(str::to_owned);
            sent
        };
        let binary = [("cloudEvents:id", "7"), ("cloudEvents:source", "/shop")];
        let copies = |copy: &str| {
            [
                with(copy, &json!({ "n": 0 }), &binary, None),
                with(
                    copy,
                    &json!({ "id": "8", "source": "/shop" }),
                    &[],
                    Some("application/cloudevents+json; charset=utf-8"),
                ),
                with(copy, &json!({ "order": { "id": 1_234_567_890_123_456_789_i64 } }), &[], None),
                with(copy, &json!({ "order": { "id": "text" } }), &[], None),
                with(copy, &json!({ "order": {} }), &[], None),
            ]
        };
        world.publish(copies("one").into_iter().chain(copies("another"))).await?;
        // A CloudEvent is told apart by its source too.
        world.publish([with("x", &json!({ "n": 1 }), &[binary[0], ("cloudEvents:source", "/other")], None)]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 6).await?;
        world.quiet().await?;
        let rows = world.rows("SELECT name FROM effects WHERE value = '1'").await?;
        let mut names: Vec<String> = rows
            .into_iter()
            .flatten()
            .filter_map(|value| if let Value::Text(name) = value { Some(name) } else { None })
            .collect();
        names.sort();
        let [first, second, third, number, digest, text] = names.as_slice() else {
            return Err(anyhow::anyhow!("{names:?}").into());
        };
        assert_eq!(
            [first, second, third, number, text].map(String::as_str),
            ["/other 7", "/shop 7", "/shop 8", "1234567890123456789", "text"]
        );
        assert!(digest.starts_with("sha256:") && digest.len() == 7 + 64, "{digest}");
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_parked").await?, 0);
        Ok(())
    }

    pub(super) async fn a_log_in_json_has_one_object_on_each_line(world: World) -> TestResult {
        let config = world.configure(Consumer::default().with("retry = { max_attempts = 1 }"))?;
        let mut host =
            Launch::hapax(["run".into(), "-c".into(), config.into_os_string(), "--log".into(), "json".into()])
                .name("host")
                .start()?;
        host.wait_consuming(PATIENCE).await?;
        // Line breaks, quotes and control characters of a handler's own stay inside their string.
        let failure =
            json!({ "fail": { "code": "no", "message": "two\nlines \"quoted\" \u{1b}[31m", "advice": "never" } });
        let noise = json!({ "print": "{\"not\": \"ours\"}\nanother line" });
        world.publish([effect("failing", &[noise, failure])]).await?;
        wait_until(PATIENCE, "the dead letter", async || world.dead("permanent").await.is_ok_and(|dead| dead == 1))
            .await?;
        assert!(host.terminate(Duration::from_secs(20)).await?.success());
        let log = host.log();
        let mut lines = Vec::new();
        for line in log.lines() {
            let parsed: Json = serde_json::from_str(line).map_err(|error| anyhow::anyhow!("{error} in {line:?}"))?;
            assert!(parsed.is_object(), "{line}");
            lines.push(parsed);
        }
        let failed = lines.iter().find(|line| line.to_string().contains("failed for good"));
        let failed = failed.ok_or_else(|| anyhow::anyhow!("no line tells of the failure:\n{log}"))?.to_string();
        for told in ["\"failing\"", CONSUMER, "WARN", "two"] {
            assert!(failed.contains(told), "{told} is missing in {failed}");
        }
        Ok(())
    }
}
