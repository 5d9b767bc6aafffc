//! Bad input, and what it gets: a clear failure, a dead letter with its reason, and a queue that flows on.

use crate::world::on_stages;

on_stages! {
    bodies_of_any_kind_are_parked_and_handled_whole: [MariaDb, Postgres, Embedded];
    ids_are_told_apart_as_bytes_and_unusable_ones_die_apart: [MariaDb, Postgres, Embedded];
    headers_of_every_type_reach_the_handler_unchanged: [MariaDb, Postgres, Embedded];
    properties_that_would_harm_a_copy_do_not: [MariaDb, Postgres];
    bad_sql_is_a_failure_with_a_code_and_harms_nobody_else: [MariaDb, Postgres, Embedded];
    misbehaving_handlers_are_stopped_and_harm_nobody_else: [MariaDb, Postgres, Embedded];
    outbox_messages_that_cannot_be_delivered_hold_up_no_others: [MariaDb, Postgres];
}

mod scenarios {
    use hapax::broker::Outgoing;
    use hapax::ledger::value::Value;
    use hapax::message::HeaderValue;
    use hapax_tests::TestResult;
    use hapax_tests::vhost::Message;
    use lapin::types::{AMQPValue, FieldArray, FieldTable};
    use serde_json::{Value as Json, json};

    use crate::world::{Consumer, DEAD_QUEUE, QUEUE, Stage, World, effect, message};

    /// Few and quick attempts.
    fn attempts(most: u32) -> String {
        format!("retry = {{ max_attempts = {most}, initial_interval = \"50ms\", multiplier = 1.0, jitter = 0.0 }}")
    }

    /// The usual grants, and steps for bodies that hold none.
    fn default_steps(steps: &Json) -> String {
        format!(
            "grants = {{ tables = {{ effects = [\"insert\"] }}, config = {{ chaos-default = '{}' }} }}",
            json!({ "do": steps })
        )
    }

    pub(super) async fn bodies_of_any_kind_are_parked_and_handled_whole(world: World) -> TestResult {
        let steps = json!([
            { "fail-until-attempt": 2 },
            { "sql": "INSERT INTO effects (name, value) VALUES (?, ?)",
              "params": [{ "$": "message-id" }, { "$": "body-digest" }] },
        ]);
        let _host = world.host(Consumer::default().with(default_steps(&steps)).with("mass_failure = false")).await?;
        let long: Vec<u8> = (0..16_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let bodies: [(&str, Vec<u8>); 6] = [
            ("empty", Vec::new()),
            ("one byte", vec![b'x']),
            ("not UTF-8", vec![0xff, 0xfe, 0x00, 0x80]),
            ("NUL", vec![0; 3]),
            ("other JSON", b"[1, 2, 3]".to_vec()),
            ("16 MiB", long),
        ];
        world.publish(bodies.iter().map(|(id, body)| message(id, body.clone()))).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 6).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 6);
        for (id, body) in &bodies {
            let query = format!("SELECT value FROM effects WHERE name = '{id}'");
            assert_eq!(world.rows(&query).await?, [[Value::Text(digest(body))]], "{id}");
        }
        Ok(())
    }

    /// FNV-1a with 64 bits, in hex, as the guest computes it: chunks that change places or bytes show.
    fn digest(body: &[u8]) -> String {
        let hash = body
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("{hash:016x}")
    }

    pub(super) async fn ids_are_told_apart_as_bytes_and_unusable_ones_die_apart(world: World) -> TestResult {
        // In a header, which carries what an AMQP property cannot: more than 255 bytes.
        let _host = world.host(Consumer::default().with("message_id = [\"header:id\"]")).await?;
        let with_header = |id: HeaderValue| {
            let mut message = effect("any", &[]);
            message.properties.headers = vec![("id".into(), id)];
            message
        };
        let good: Vec<String> = vec![
            "x".repeat(255),
            "é".repeat(127),
            "Case".into(),
            "case".into(),
            "CASE".into(),
            "a".into(),
            "a ".into(),
            "a  ".into(),
            " a".into(),
            "\u{e9}".into(),
            "e\u{301}".into(),
            "e".into(),
            "ключ".into(),
            "'; DROP TABLE effects; --".into(),
            "%_\\".into(),
            "line\nbreak\t\u{1}".into(),
        ];
        let bad = [
            HeaderValue::Text("x".repeat(256)),
            HeaderValue::Text("é".repeat(128)),
            HeaderValue::Text("a\0b".into()),
            HeaderValue::Text(String::new()),
            HeaderValue::Bytes(vec![0xff, 0xfe]),
            HeaderValue::Boolean(true),
            HeaderValue::Json("[1]".into()),
        ];
        let count = i64::try_from(good.len())?;
        // All twice: the second of each is a duplicate.
        for _ in 0..2 {
            world.publish(good.iter().map(|id| with_header(HeaderValue::Text(id.clone())))).await?;
        }
        world.publish(bad.iter().cloned().map(with_header)).await?;
        world.wait_dead("bad-id", i64::try_from(bad.len())?).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", count).await?;
        world.quiet().await?;
        assert_eq!(world.effects("any").await?, count);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_inbox").await?, count);
        let stored = world.rows("SELECT message_id FROM hapax_inbox").await?;
        for id in &good {
            assert!(stored.contains(&vec![Value::Blob(id.as_bytes().to_vec())]), "{id:?} is not stored as it is");
        }
        Ok(())
    }

    pub(super) async fn headers_of_every_type_reach_the_handler_unchanged(world: World) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        // Parked on the way, so that they survive SQL too.
        let steps = json!({ "do": [{ "fail-until-attempt": 2 }, { "message": true, "into": "effects" }] });
        let mut sent = message("m", steps.to_string());
        let nested = r#"{"list":[1,"two",{"three":3.5}],"nothing":null,"yes":true}"#;
        let headers: Vec<(&str, HeaderValue, Json)> = vec![
            ("null", HeaderValue::Null, Json::Null),
            ("text", HeaderValue::Text("grüße\n".into()), json!("grüße\n")),
            ("empty", HeaderValue::Text(String::new()), json!("")),
            ("integer", HeaderValue::Integer(i64::MIN), json!(i64::MIN)),
            ("float", HeaderValue::Float(0.5), json!({ "float": "0.5" })),
            ("boolean", HeaderValue::Boolean(true), json!(true)),
            ("bytes", HeaderValue::Bytes(vec![0, 255, 16]), json!({ "bytes": "00ff10" })),
            ("timestamp", HeaderValue::Timestamp(1_700_000_000), json!({ "timestamp": 1_700_000_000 })),
            ("decimal", HeaderValue::Decimal("12.50".into()), json!({ "decimal": "12.50" })),
            ("array", HeaderValue::Json("[1,[2,[3]]]".into()), json!({ "json": "[1,[2,[3]]]" })),
            ("table", HeaderValue::Json(nested.into()), json!({ "json": nested })),
        ];
        sent.properties.headers = headers.iter().map(|(name, value, _)| ((*name).to_owned(), value.clone())).collect();
        sent.properties.content_type = Some("application/json".into());
        sent.properties.priority = Some(7);
        sent.properties.correlation_id = Some("c".into());
        sent.properties.timestamp = Some(1_700_000_001);
        world.publish([sent]).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 1).await?;
        let rows = world.rows("SELECT value FROM effects").await?;
        let [row] = rows.as_slice() else { return Err(anyhow::anyhow!("{} rows", rows.len()).into()) };
        let [Value::Text(described)] = row.as_slice() else { return Err(anyhow::anyhow!("{row:?}").into()) };
        let described: Json = serde_json::from_str(described)?;
        let arrived = |name: &str| {
            let headers = described["headers"].as_array().into_iter().flatten();
            let found: Vec<&Json> = headers.filter(|header| header[0] == name).map(|header| &header[1]).collect();
            found.first().map(|value| (*value).clone())
        };
        for (name, _, expected) in headers {
            assert_eq!(arrived(name), Some(expected), "header {name} in {described}");
        }
        assert_eq!(described["content-type"], "application/json");
        assert_eq!(described["priority"], 7);
        assert_eq!(described["correlation-id"], "c");
        assert_eq!(described["timestamp"], 1_700_000_001);
        Ok(())
    }

    pub(super) async fn properties_that_would_harm_a_copy_do_not(world: World) -> TestResult {
        let copy = format!("dead_letter = {{ exchange = \"\", routing_key = {DEAD_QUEUE:?} }}");
        let _host = world.host(Consumer::default().with(attempts(2)).with(copy)).await?;
        world.vhost().declare_queue("carbon", json!({})).await?;
        let mut death = FieldTable::default();
        death.insert("queue".into(), AMQPValue::LongString(DEAD_QUEUE.into()));
        death.insert("reason".into(), AMQPValue::LongString("expired".into()));
        death.insert("count".into(), AMQPValue::LongLongInt(20));
        let mut headers = FieldTable::default();
        let carbon = FieldArray::from(vec![AMQPValue::LongString("carbon".into())]);
        headers.insert("CC".into(), AMQPValue::FieldArray(carbon));
        headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])));
        let harmful = |id: &str, steps: &[Json]| {
            let mut sent = Message::to_queue(QUEUE, Some(id), effect(id, steps).body.to_vec());
            let properties = sent.properties.with_expiration("600000".into()).with_user_id("guest".into());
            sent.properties = properties.with_headers(headers.clone());
            sent
        };
        let again = harmful("again", &[json!({ "fail-until-attempt": 2 })]);
        let refused = harmful("refused", &[json!({ "fail": { "code": "no", "message": "never", "advice": "never" } })]);
        assert_eq!(world.vhost().publish([again, refused]).await?, 0);
        world.wait_dead("permanent", 1).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'again' AND value = '2'", 1).await?;
        world.quiet().await?;
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 1);
        assert_eq!(world.number("SELECT COUNT(*) FROM hapax_outbox").await?, 0, "the copy was published");
        let copies = world.vhost().take(DEAD_QUEUE, 10).await?;
        assert_eq!(copies.len(), 1, "one copy of the dead letter");
        assert_eq!(*copies[0].properties.expiration(), None, "a copy that expires would be lost");
        assert_eq!(world.vhost().take("carbon", 10).await?.len(), 2, "only the producer's own copies were fanned out");
        Ok(())
    }

    /// A message that is to fail in that step, after having written what must be undone.
    fn failing(id: &str, step: &Json) -> Outgoing {
        effect(id, std::slice::from_ref(step))
    }

    /// Publishes failing messages among good ones, and checks that each is a dead letter with one of its codes, that
    /// nothing of it is left, and that every good one is handled in its first attempt.
    async fn fail_among_good_ones(world: &World, failures: &[(&str, Json, &[&str])]) -> TestResult {
        let all = i64::try_from(failures.len())?;
        let messages = failures.iter().flat_map(|(id, step, _)| {
            [effect(&format!("good before {id}"), &[]), failing(id, step), effect(&format!("good after {id}"), &[])]
        });
        world.publish(messages).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 2 * all).await?;
        let ended = "SELECT COUNT(*) FROM hapax_inbox WHERE status IN (1, 3)";
        world.wait_number(ended, 3 * all).await?;
        world.quiet().await?;
        let rows = world.rows("SELECT message_id, reason, code FROM hapax_parked WHERE state = 4").await?;
        let mut wrong = Vec::new();
        for (id, step, codes) in failures {
            let row = rows.iter().find(|row| row[0] == Value::Blob(id.as_bytes().to_vec()));
            let code = row.and_then(|row| match row.as_slice() {
                [_, Value::Text(reason), Value::Text(code)] if reason == "exhausted" => Some(code.clone()),
                _ => None,
            });
            if !code.as_ref().is_some_and(|code| codes.contains(&code.as_str())) {
                wrong.push(format!("{id} ({step}): {row:?}, expected a code of {codes:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(
            world.number("SELECT COUNT(*) FROM effects WHERE name LIKE 'good%' AND value = '1'").await?,
            2 * all
        );
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 2 * all, "a failed attempt leaves nothing");
        Ok(())
    }

    pub(super) async fn bad_sql_is_a_failure_with_a_code_and_harms_nobody_else(world: World) -> TestResult {
        const REFUSED: &[&str] = &["sql-denied", "sql-invalid"];
        let consumer = Consumer::default()
            .with(attempts(2))
            .with("limits = { sql_time = \"2s\", sql_rows = 1000 }")
            .with("mass_failure = false");
        let _host = world.host(consumer).await?;
        let stock: Vec<String> = (1..=100).map(|goods| format!("({goods}, 10)")).collect();
        world.prepare(&[&format!("INSERT INTO stock (goods_id, quantity) VALUES {}", stock.join(", "))]).await?;
        let statements = [
            "COMMIT",
            "ROLLBACK",
            "BEGIN",
            "START TRANSACTION",
            "SAVEPOINT mine",
            "CREATE TABLE evil (n INT)",
            "DROP TABLE effects",
            "ALTER TABLE effects ADD COLUMN evil INT",
            "TRUNCATE TABLE effects",
            "SET autocommit = 1",
            "SET SESSION sql_mode = ''",
            "SET search_path = evil",
            "SET @evil = 1",
            "PRAGMA foreign_keys = OFF",
            "ATTACH DATABASE 'evil' AS evil",
            "VACUUM",
            "LOCK TABLES effects WRITE",
            "CALL evil()",
            "INSERT INTO effects (name, value) VALUES ('evil', '1'); INSERT INTO effects (name, value) VALUES ('evil', '2')",
            "UPDATE stock SET quantity = 0; COMMIT",
            "DELETE FROM hapax_inbox",
            "DELETE FROM HAPAX_inbox",
            "UPDATE hapax_parked SET attempts = 0",
            "INSERT INTO effects (name, value) SELECT name, value FROM hapax_outbox",
            "DELETE FROM stock",
            "INSERT INTO nowhere (n) VALUES (1)",
            "UPDATE effects SET nothing = 1",
            "SELEC 1",
            "",
        ];
        let mut failures: Vec<(String, Json, &[&str])> =
            statements.iter().map(|sql| (format!("sql {sql:.80}"), json!({ "sql": sql }), REFUSED)).collect();
        let queries = [
            "SELECT message_id FROM hapax_inbox",
            "SELECT name FROM effects UNION SELECT consumer FROM hapax_inbox",
            "SELECT name FROM effects WHERE EXISTS (SELECT 1 FROM hapax_parked)",
            "SELECT name INTO evil FROM effects",
            "SELECT name FROM effects INTO OUTFILE '/tmp/evil'",
            "TABLE effects",
            "SELECT set_config('search_path', 'evil', false)",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_terminate_backend(1)",
            "SELECT query_to_xml('SELECT 1', true, true, '')",
            "SELECT GET_LOCK('evil', 1)",
            "SELECT load_extension('evil')",
            "SELECT SLEEP(10)",
            "SELECT @@version",
            "SELECT name FROM effects FOR",
        ];
        failures.extend(queries.iter().map(|sql| (format!("query {sql}"), json!({ "query": sql }), REFUSED)));
        let too_many = "SELECT a.goods_id FROM stock a CROSS JOIN stock b";
        failures.push(("ten thousand rows".into(), json!({ "query": too_many }), &["sql-too-large"]));
        // Rows past the limit are read and dropped, so a slow machine may meet the time limit first.
        let million = "SELECT a.goods_id FROM stock a CROSS JOIN stock b CROSS JOIN stock c";
        failures.push(("a million rows".into(), json!({ "query": million }), &["sql-too-large", "sql-other"]));
        let slow =
            "SELECT COUNT(*) FROM stock a CROSS JOIN stock b CROSS JOIN stock c CROSS JOIN stock d CROSS JOIN stock e";
        failures.push(("slow".into(), json!({ "query": slow }), &["sql-other"]));
        let unfilled = "INSERT INTO refused_order (message_id, goods_id, quantity, reason) VALUES ('x', NULL, 1, 'y')";
        failures.push(("constraint".into(), json!({ "sql": unfilled }), &["sql-constraint"]));
        let swallowed = json!({ "ignore-error": { "sql": "UPDATE effects SET nothing = 1" } });
        failures.push(("swallowed".into(), swallowed, &["sql-error-ignored"]));
        // What MySQL takes for code and others for a comment is refused everywhere.
        let hidden = "INSERT INTO effects (name, value) VALUES ('hidden', '1') /*!50000 , ('evil', '2') */";
        failures.push(("versioned comment".into(), json!({ "sql": hidden }), &["sql-denied"]));
        let many_times = json!({ "sql": "UPDATE stock SET quantity = quantity + 0 WHERE goods_id = 1", "times": 1001 });
        failures.push(("too many statements".into(), many_times, &["sql-too-large"]));
        let failures: Vec<_> = failures.iter().map(|(id, step, codes)| (id.as_str(), step.clone(), *codes)).collect();
        fail_among_good_ones(&world, &failures).await?;

        assert_eq!(world.effects("evil").await?, 0);
        assert_eq!(world.number("SELECT SUM(quantity) FROM stock").await?, 1000);
        Ok(())
    }

    pub(super) async fn misbehaving_handlers_are_stopped_and_harm_nobody_else(world: World) -> TestResult {
        let consumer = Consumer::default()
            .with(attempts(1))
            .with("limits = { time = \"2s\", sql_time = \"2s\" }")
            .with("mass_failure = false");
        let mut host = world.host(consumer).await?;
        let failures: [(&str, Json, &[&str]); 9] = [
            ("panics", json!({ "panic": "on purpose" }), &["trap"]),
            ("exits", json!({ "exit": 3 }), &["trap"]),
            ("loops", json!({ "loop": true }), &["timeout"]),
            ("sleeps", json!({ "sleep-ms": 600_000 }), &["timeout"]),
            ("eats memory", json!({ "eat-memory": true }), &["trap"]),
            ("recurses", json!({ "recurse": true }), &["trap"]),
            ("floods the outbox", json!({ "flood-outbox": 100_000 }), &["outbox-too-many"]),
            ("publishes without a grant", json!({ "publish": { "exchange": "secret" } }), &["outbox-denied"]),
            ("publishes too much", json!({ "publish": { "routing_key": "x".repeat(300) } }), &["outbox-invalid"]),
        ];
        fail_among_good_ones(&world, &failures).await?;
        assert_eq!(
            world.number("SELECT COUNT(*) FROM hapax_outbox").await?,
            0,
            "nothing of a failed attempt is published"
        );
        assert!(host.log().contains("on purpose"), "what a handler said last is in the log");

        // A failure of 5 MiB of control characters is stored, cut, and does not break the log's lines.
        world.publish([failing("garbage", &json!({ "garbage": true })), effect("after garbage", &[])]).await?;
        world.wait_dead("exhausted", i64::try_from(failures.len())? + 1).await?;
        world.wait_number("SELECT COUNT(*) FROM effects WHERE name = 'after garbage'", 1).await?;
        assert!(!host.log().contains("\u{1b}[31m"), "control characters do not reach the terminal");
        assert!(host.is_running());
        Ok(())
    }

    pub(super) async fn outbox_messages_that_cannot_be_delivered_hold_up_no_others(world: World) -> TestResult {
        assert_ne!(world.stage, Stage::Embedded);
        let grants = "grants = { tables = { effects = [\"insert\"] }, publish = [{ exchange = \"nowhere\", \
                      routing_key = \"#\" }, { exchange = \"shop\", routing_key = \"#\" }, { exchange = \"\", routing_key = \"#\" }] }";
        let _host = world.host(Consumer::default().with(grants)).await?;
        let publish =
            |exchange: &str, key: &str| json!({ "publish": { "exchange": exchange, "routing_key": key, "body": "x" } });
        let messages = (0..10).flat_map(|n| {
            let steps = [publish("nowhere", "a"), publish("shop", "nobody.listens"), publish("", DEAD_QUEUE)];
            [effect(&format!("m{n}"), &steps)]
        });
        world.publish(messages).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1", 10).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_outbox WHERE state = 2", 20).await?;
        world.wait_number("SELECT COUNT(*) FROM hapax_outbox", 20).await?;
        world.quiet().await?;
        let arrived = world.vhost().take(DEAD_QUEUE, 100).await?;
        let mut ids: Vec<String> =
            arrived.iter().filter_map(|copy| copy.properties.message_id().as_ref().map(ToString::to_string)).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 10, "each once, or again under the same id");
        assert_eq!(world.number("SELECT COUNT(*) FROM effects").await?, 10);
        Ok(())
    }
}
