//! Headers as a producer's library puts them on the wire, in every type that AMQP has.

use crate::world::on_stages;

on_stages! {
    every_type_of_header_on_the_wire_reaches_the_handler: [MariaDb, Postgres];
}

mod scenarios {
    use hapax::ledger::value::Value;
    use hapax_tests::TestResult;
    use hapax_tests::vhost::Message;
    use lapin::types::{AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable};
    use serde_json::{Value as Json, json};

    use crate::world::{Consumer, QUEUE, World};

    /// All but the short string, which RabbitMQ reads as an integer, and floats that are no numbers, of which its
    /// connection dies.
    fn sent() -> Vec<(&'static str, AMQPValue, Json)> {
        let mut inner = FieldTable::default();
        inner.insert("short".into(), AMQPValue::ShortInt(-2));
        inner.insert("void".into(), AMQPValue::Void);
        let mut table = FieldTable::default();
        table.insert("text".into(), AMQPValue::LongString("grüße".into()));
        table.insert("inner".into(), AMQPValue::FieldTable(inner));
        let array = FieldArray::from(vec![
            AMQPValue::Boolean(true),
            AMQPValue::LongUInt(7),
            AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString("x".into())])),
        ]);
        vec![
            ("boolean", AMQPValue::Boolean(true), json!(true)),
            ("short-short", AMQPValue::ShortShortInt(i8::MIN), json!(i8::MIN)),
            ("short-short unsigned", AMQPValue::ShortShortUInt(u8::MAX), json!(u8::MAX)),
            ("short", AMQPValue::ShortInt(i16::MIN), json!(i16::MIN)),
            ("short unsigned", AMQPValue::ShortUInt(u16::MAX), json!(u16::MAX)),
            ("long", AMQPValue::LongInt(i32::MIN), json!(i32::MIN)),
            ("long unsigned", AMQPValue::LongUInt(u32::MAX), json!(u32::MAX)),
            ("long long", AMQPValue::LongLongInt(i64::MIN), json!(i64::MIN)),
            ("float", AMQPValue::Float(0.25), json!({ "float": "0.25" })),
            ("double", AMQPValue::Double(1e300), json!({ "float": 1e300_f64.to_string() })),
            ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 1250 }), json!({ "decimal": "12.50" })),
            ("text", AMQPValue::LongString("grüße\n".into()), json!("grüße\n")),
            ("not text", AMQPValue::LongString(vec![0xff, 0x00].into()), json!({ "bytes": "ff00" })),
            ("bytes", AMQPValue::ByteArray(ByteArray::from(vec![0, 255, 16])), json!({ "bytes": "00ff10" })),
            ("timestamp", AMQPValue::Timestamp(1_700_000_000), json!({ "timestamp": 1_700_000_000 })),
            ("void", AMQPValue::Void, Json::Null),
            ("table", AMQPValue::FieldTable(table), json!({ "text": "grüße", "inner": { "short": -2, "void": null } })),
            ("array", AMQPValue::FieldArray(array), json!([true, 7, ["x"]])),
        ]
    }

    pub(super) async fn every_type_of_header_on_the_wire_reaches_the_handler(world: World) -> TestResult {
        let _host = world.host(Consumer::default()).await?;
        let mut headers = FieldTable::default();
        for (name, value, _) in sent() {
            headers.insert(name.into(), value);
        }
        // In the first attempt as they came from the broker, in the second as SQL kept them.
        for (id, attempt) in [("delivered", 1), ("parked", 2)] {
            let steps = json!({ "do": [{ "fail-until-attempt": attempt }, { "message": true, "into": "effects" }] });
            let mut message = Message::to_queue(QUEUE, Some(id), steps.to_string());
            message.properties = message.properties.with_headers(headers.clone());
            assert_eq!(world.vhost().publish([message]).await?, 0);
            world.wait_number(&format!("SELECT COUNT(*) FROM effects WHERE value LIKE '%\"{id}\"%'"), 1).await?;
        }
        let rows = world.rows("SELECT value FROM effects").await?;
        assert_eq!(rows.len(), 2);
        for row in rows {
            let [Value::Text(described)] = row.as_slice() else { return Err(anyhow::anyhow!("{row:?}").into()) };
            let described: Json = serde_json::from_str(described)?;
            for (name, _, expected) in sent() {
                let headers = described["headers"].as_array().into_iter().flatten();
                let found: Vec<&Json> = headers.filter(|header| header[0] == name).map(|header| &header[1]).collect();
                let [found] = found.as_slice() else {
                    return Err(anyhow::anyhow!("{} headers {name} in {described}", found.len()).into());
                };
                // Nested ones arrive as JSON text, whose spacing and order are nobody's business.
                let found = match found["json"].as_str() {
                    Some(text) => serde_json::from_str(text)?,
                    None => (*found).clone(),
                };
                assert_eq!(found, expected, "header {name} of {}", described["id"]);
            }
        }
        Ok(())
    }
}
