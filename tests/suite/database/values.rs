//! Values on their way in and out.

use hapax::ledger::database::{DbErrorKind, Dialect};
use hapax::ledger::value::{Param, RowLimits, Value};

use crate::backend::{Backend, Client, other, text};

fn decimal(text: &str) -> Value {
    Value::Decimal(text.to_owned())
}

fn uuid(text: &str) -> Value {
    Value::Uuid(text.to_owned())
}

fn json(text: &str) -> Value {
    Value::Json(text.to_owned())
}

fn date(text: &str) -> Value {
    Value::Date(text.to_owned())
}

fn time(text: &str) -> Value {
    Value::Time(text.to_owned())
}

fn timestamp(text: &str) -> Value {
    Value::Timestamp(text.to_owned())
}

fn timestamptz(text: &str) -> Value {
    Value::Timestamptz(text.to_owned())
}

/// Writes values into a column of a type, one after the other, and reads each back: sent alone, and in one round trip
/// with others. Each table has a name of its own: what becomes of statements whose table changes is another matter.
async fn both_ways(client: &mut Client, column: &str, cases: &[(Value, Value)]) {
    let table = format!("v{}", uuid::Uuid::new_v4().simple());
    client.run(&format!("CREATE TABLE {table} (c {column})"), &[]).await;
    for (written, expected) in cases {
        let wrote = client.try_run(&format!("INSERT INTO {table} VALUES (?)"), std::slice::from_ref(written)).await;
        wrote.unwrap_or_else(|error| panic!("{written:?} into {column}: {error}"));
        let insert = format!("INSERT INTO {table} VALUES (?)");
        let together = client.try_run_all(&[(insert.as_str(), written); 3]).await;
        together.unwrap_or_else(|(_, error)| panic!("{written:?} into {column}, together: {error}"));
        for row in client.query(&format!("SELECT c FROM {table}"), &[]).await {
            assert_eq!(&row, std::slice::from_ref(expected), "{written:?} into {column}");
        }
        client.run(&format!("DELETE FROM {table}"), &[]).await;
    }
}

const ID: &str = "0190f5fe-7c00-7a00-8000-0123456789ab";
const LONG: &str = "12345678901234567890123456789.0123456789";

pub(crate) async fn every_kind_of_value_goes_both_ways(backend: &Backend) {
    let mut client = backend.connect().await;
    let yes = backend.pick(Value::Boolean(true), Value::Int(1), Value::Int(1));
    both_ways(&mut client, "BOOLEAN", &[(Value::Boolean(true), yes)]).await;
    let same = |values: &[Value]| values.iter().map(|value| (value.clone(), value.clone())).collect::<Vec<_>>();
    both_ways(&mut client, "SMALLINT", &same(&[Value::Int(-32_768), Value::Int(32_767)])).await;
    both_ways(&mut client, "INTEGER", &same(&[Value::Int(-2_147_483_648), Value::Int(2_147_483_647)])).await;
    both_ways(&mut client, "BIGINT", &same(&[Value::Int(i64::MIN), Value::Int(0), Value::Int(i64::MAX)])).await;
    let floats = [0.1, -0.0, f64::MAX, f64::MIN_POSITIVE].map(Value::Float);
    both_ways(&mut client, "DOUBLE PRECISION", &same(&floats)).await;
    let texts = ["", "ä€😀", "a'b\"c\\d $1 ? %"].map(text);
    both_ways(&mut client, backend.pick("TEXT", "TEXT CHARACTER SET utf8mb4", "TEXT"), &same(&texts)).await;
    let blobs = [vec![], vec![0, 255, 39, 92], (0..=255).collect()].map(Value::Blob);
    both_ways(&mut client, backend.pick("BYTEA", "BLOB", "BLOB"), &same(&blobs)).await;

    let column = backend.pick("NUMERIC", "DECIMAL(65, 10)", "TEXT");
    let read = backend.pick(decimal(LONG), decimal(LONG), text(LONG));
    both_ways(&mut client, column, &[(decimal(LONG), read)]).await;
    let column = backend.pick("UUID", "CHAR(36)", "TEXT");
    let read = backend.pick(uuid(ID), text(ID), text(ID));
    both_ways(&mut client, column, &[(uuid(ID), read.clone()), (text(ID), read)]).await;
    let column = backend.pick("DATE", "DATE", "TEXT");
    let day = "2024-02-29";
    let read = backend.pick(date(day), date(day), text(day));
    both_ways(&mut client, column, &[(date(day), read.clone()), (text(day), read)]).await;
    let column = backend.pick("TIME", "TIME(6)", "TEXT");
    let noon = "12:00:00.5";
    let read = backend.pick(time(noon), time(noon), text(noon));
    both_ways(&mut client, column, &[(time(noon), read.clone()), (text(noon), read)]).await;
    let column = backend.pick("TIMESTAMP", "DATETIME(6)", "TEXT");
    let moment = "2024-02-29 23:59:59.000001";
    let read = backend.pick(timestamp(moment), timestamp(moment), text(moment));
    both_ways(&mut client, column, &[(timestamp(moment), read.clone()), (text(moment), read)]).await;
    let column = backend.pick("TIMESTAMPTZ", "TIMESTAMP(6)", "TEXT");
    let (east, utc) = ("2024-03-01 01:59:59.5+02:00", "2024-02-29 23:59:59.5+00:00");
    let read = backend.pick(timestamptz(utc), timestamptz(utc), text(east));
    both_ways(&mut client, column, &[(timestamptz(east), read)]).await;
    // A point in time in a column without a zone is that point in UTC.
    let column = backend.pick("TIMESTAMP", "DATETIME(6)", "TEXT");
    let plain = "2024-02-29 23:59:59.5";
    let read = backend.pick(timestamp(plain), timestamp(plain), text(east));
    both_ways(&mut client, column, &[(timestamptz(east), read)]).await;
    let column = backend.pick("JSON", "JSON", "TEXT");
    let object = r#"{"a": [1, null, "é"]}"#;
    let read = backend.pick(json(object), text(object), text(object));
    both_ways(&mut client, column, &[(json(object), read.clone()), (text(object), read)]).await;
}

pub(crate) async fn null_goes_anywhere(backend: &Backend) {
    let mut client = backend.connect().await;
    let columns = backend.pick(
        &[
            "BOOLEAN",
            "INT",
            "FLOAT8",
            "TEXT",
            "BYTEA",
            "NUMERIC",
            "UUID",
            "DATE",
            "TIMESTAMPTZ",
            "JSONB",
            "INT[]",
            "INET",
        ][..],
        &["BOOLEAN", "INT", "DOUBLE", "TEXT", "BLOB", "DECIMAL(9, 2)", "DATE", "TIME", "DATETIME", "JSON", "BIT(3)"],
        &["INTEGER", "TEXT", "BLOB", "REAL"],
    );
    for column in columns {
        both_ways(&mut client, &format!("{column} NULL"), &[(Value::Null, Value::Null)]).await;
    }
}

pub(crate) async fn types_of_the_dialect_go_both_ways(backend: &Backend) {
    let mut client = backend.connect().await;
    match backend.dialect {
        Dialect::Postgres => postgres_types(&mut client).await,
        Dialect::MySql => mysql_types(&mut client, backend).await,
        Dialect::Sqlite => {
            both_ways(&mut client, "", &[(Value::Int(1), Value::Int(1)), (text("1"), text("1"))]).await;
            both_ways(&mut client, "NUMERIC", &[(text("12"), Value::Int(12)), (decimal("1.5"), Value::Float(1.5))])
                .await;
        }
    }
}

async fn postgres_types(client: &mut Client) {
    client.run("CREATE TYPE mood AS ENUM ('sad', 'so so')", &[]).await;
    client.run("CREATE DOMAIN positive AS INT CHECK (VALUE > 0)", &[]).await;
    client.run("CREATE TYPE pair AS (a INT, b TEXT)", &[]).await;
    for (column, written, expected) in [
        ("NUMERIC(10, 2)", text("12.345"), decimal("12.35")),
        ("NUMERIC", Value::Int(i64::MIN), decimal("-9223372036854775808")),
        ("NUMERIC", Value::Float(0.1), decimal("0.1")),
        ("NUMERIC", decimal("1e-20"), decimal("0.00000000000000000001")),
        ("REAL", Value::Float(0.5), Value::Float(0.5)),
        ("REAL", Value::Int(7), Value::Float(7.0)),
        ("FLOAT8", decimal("0.1"), Value::Float(0.1)),
        ("FLOAT8", Value::Float(f64::NEG_INFINITY), Value::Float(f64::NEG_INFINITY)),
        ("INT", text("42"), Value::Int(42)),
        ("INT", Value::Boolean(true), Value::Int(1)),
        ("BOOLEAN", text("yes"), Value::Boolean(true)),
        ("VARCHAR(10)", Value::Int(5), text("5")),
        ("CHAR(3)", text("ab"), text("ab ")),
        ("NAME", text("n"), text("n")),
        ("\"char\"", text("x"), text("x")),
        ("OID", Value::Int(4_294_967_295), Value::Int(4_294_967_295)),
        ("JSONB", text(r#"{"b":1,"a":2}"#), json(r#"{"a": 2, "b": 1}"#)),
        ("JSONB", Value::Int(3), json("3")),
        ("UUID", other("uuid", ID), uuid(ID)),
        ("INT[]", text("{1,NULL,3}"), other("integer[]", "{1,NULL,3}")),
        ("TEXT[][]", other("text[]", r#"{{a,"b c"},{"\"",NULL}}"#), other("text[]", r#"{{a,"b c"},{"\"",NULL}}"#)),
        ("INET", text("10.0.0.1"), other("inet", "10.0.0.1")),
        ("CIDR", text("10.0.0.0/8"), other("cidr", "10.0.0.0/8")),
        ("pair", text("(,)"), other("pair", "(,)")),
        ("INET", text("10.0.0.1/8"), other("inet", "10.0.0.1/8")),
        ("MACADDR", text("08:00:2b:01:02:03"), other("macaddr", "08:00:2b:01:02:03")),
        ("INTERVAL", other("interval", "1 day 02:00:00"), other("interval", "1 day 02:00:00")),
        ("TIMETZ", text("12:00:00+02"), other("time with time zone", "12:00:00+02")),
        ("TIME", time("24:00:00"), time("24:00:00")),
        ("BIT(4)", text("1010"), other("bit", "1010")),
        ("BIT VARYING", text("101"), other("bit varying", "101")),
        ("INT4RANGE", text("[1,5)"), other("int4range", "[1,5)")),
        ("POINT", text("(1,2)"), other("point", "(1,2)")),
        ("XML", text("<a/>"), other("xml", "<a/>")),
        ("TSVECTOR", text("'a' 'b'"), other("tsvector", "'a' 'b'")),
        ("mood", text("so so"), text("so so")),
        ("mood[]", text("{sad,\"so so\"}"), other("mood[]", "{sad,\"so so\"}")),
        ("positive", Value::Int(3), Value::Int(3)),
        ("positive", text("4"), Value::Int(4)),
        ("pair", text("(1,x)"), other("pair", "(1,x)")),
    ] {
        both_ways(client, column, &[(written, expected)]).await;
    }
    // Statements of every kind with columns that come as text.
    client.run("CREATE TABLE nets (id INT, net INET)", &[]).await;
    let net = |text| other("inet", text);
    let insert = "INSERT INTO nets VALUES (?, ?), (2, '10.0.0.2') RETURNING id, net; -- done";
    let rows = client.query(insert, &[Value::Int(1), text("10.0.0.1")]).await;
    assert_eq!(rows, [[Value::Int(1), net("10.0.0.1")], [Value::Int(2), net("10.0.0.2")]]);
    let list =
        "WITH moved AS (UPDATE nets SET net = net + ? RETURNING id, net) SELECT net FROM moved WHERE id = ? ORDER BY 1";
    assert_eq!(client.query(list, &[Value::Int(10), Value::Int(2)]).await, [[net("10.0.0.12")]]);
    let rows = client.query("(SELECT net FROM nets WHERE id = ?) UNION ALL VALUES ('::1'::inet)", &[text("1")]).await;
    assert_eq!(rows, [[net("10.0.0.11")], [net("::1")]]);
    let rows = client.query("SELECT net FROM nets ORDER BY id DESC FOR UPDATE", &[]).await;
    assert_eq!(rows, [[net("10.0.0.12")], [net("10.0.0.11")]]);
    assert_eq!(client.query("DELETE FROM nets WHERE net << ? RETURNING *", &[text("10.0.0.0/8")]).await.len(), 2);
    assert_eq!(client.value("SELECT pg_sleep(0)", &[]).await, Value::Null);
    assert_eq!(client.value("SELECT ?", &[Value::Int(1)]).await, text("1"));
    // More statements than are kept: those that are forgotten are prepared again, NULL or not.
    for round in 0..2 {
        for number in 0..400 {
            let sql = format!("SELECT coalesce(?::uuid, ?::uuid) AS u, {number} AS n");
            let (first, second) = if round == 0 { (text(ID), Value::Null) } else { (Value::Null, text(ID)) };
            assert_eq!(client.query(&sql, &[first, second]).await, [[uuid(ID), Value::Int(number)]]);
        }
    }
    // One placeholder at two places, in a statement that was sent in another way before.
    for value in [uuid(ID), text(ID), Value::Null, text(ID)] {
        let expected = if value == Value::Null { Value::Null } else { uuid(ID) };
        let params = [Param::One(value)];
        let sql = "SELECT coalesce($1::uuid, $1::uuid) AS u";
        let set = client.connection.query(sql, &params, RowLimits::NONE).await.expect("a uuid");
        assert_eq!(set.rows, [[expected]]);
    }
}

async fn mysql_types(client: &mut Client, backend: &Backend) {
    for (column, written, expected) in [
        (
            "BIGINT UNSIGNED",
            other("BIGINT UNSIGNED", "18446744073709551615"),
            other("BIGINT UNSIGNED", "18446744073709551615"),
        ),
        ("BIGINT UNSIGNED", Value::Int(7), Value::Int(7)),
        ("TINYINT UNSIGNED", Value::Int(255), Value::Int(255)),
        ("TINYINT(1)", Value::Int(-128), Value::Int(-128)),
        ("TINYINT(1) UNSIGNED", Value::Int(200), Value::Int(200)),
        ("MEDIUMINT", Value::Int(-8_388_608), Value::Int(-8_388_608)),
        ("INT UNSIGNED", Value::Int(4_294_967_295), Value::Int(4_294_967_295)),
        ("YEAR", Value::Int(2155), Value::Int(2155)),
        ("DECIMAL(65, 30)", text(LONG), decimal(&format!("{LONG}00000000000000000000"))),
        ("DECIMAL(10, 2)", Value::Int(5), decimal("5.00")),
        ("FLOAT", Value::Float(0.5), Value::Float(0.5)),
        ("BIT(9)", Value::Int(257), Value::Int(257)),
        ("BIT(64)", other("BIT", "18446744073709551615"), other("BIT", "18446744073709551615")),
        ("ENUM('a', 'b c')", text("b c"), text("b c")),
        ("SET('a', 'b')", text("a,b"), text("a,b")),
        ("BINARY(4)", Value::Blob(vec![1, 0, 2, 0]), Value::Blob(vec![1, 0, 2, 0])),
        ("VARBINARY(4)", Value::Blob(vec![255]), Value::Blob(vec![255])),
        ("VARCHAR(9) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", text("é"), text("é")),
        ("VARCHAR(9) CHARACTER SET latin1", text("é"), text("é")),
        ("TIME", text("-26:03:04"), other("TIME", "-26:03:04")),
        ("TIME", text("838:59:59"), other("TIME", "838:59:59")),
        ("DATETIME(3)", text("9999-12-31 23:59:59.999"), timestamp("9999-12-31 23:59:59.999")),
        ("LONGTEXT CHARACTER SET utf8mb4", text("x"), text("x")),
    ] {
        both_ways(client, column, &[(written, expected)]).await;
    }
    // A decimal is compared as one, not as a float.
    let equal = client.value(&format!("SELECT CAST('{LONG}' AS DECIMAL(65, 10)) = ?"), &[decimal(LONG)]).await;
    assert_eq!(equal, Value::Int(1));
    let last = LONG.len() - 1;
    let nearly = format!("{}8", &LONG[..last]);
    let equal = client.value(&format!("SELECT CAST('{LONG}' AS DECIMAL(65, 10)) = ?"), &[decimal(&nearly)]).await;
    assert_eq!(equal, Value::Int(0));
    let Value::Blob(point) = client.value("SELECT ST_GeomFromText('POINT(1 2)')", &[]).await else {
        panic!("a geometry comes as bytes");
    };
    both_ways(client, "GEOMETRY", &[(Value::Blob(point.clone()), Value::Blob(point))]).await;
    if backend.database().features().await.expect("features").insert_returning {
        both_ways(client, "UUID", &[(uuid(ID), text(ID)), (text(ID), text(ID))]).await;
        both_ways(client, "INET6", &[(text("::1"), text("::1"))]).await;
        client.run("CREATE TABLE r (id INT AUTO_INCREMENT PRIMARY KEY, v INT UNIQUE)", &[]).await;
        let insert = "INSERT IGNORE INTO r (v) VALUES (?), (?) RETURNING v";
        assert_eq!(client.query(insert, &[Value::Int(1), Value::Int(2)]).await.len(), 2);
        assert_eq!(client.query(insert, &[Value::Int(2), Value::Int(3)]).await, [[Value::Int(3)]]);
    }
}

pub(crate) async fn unreadable_values_are_text_or_errors_but_never_a_panic(backend: &Backend) {
    let mut client = backend.connect().await;
    match backend.dialect {
        Dialect::Postgres => {
            let without = "timestamp without time zone";
            for (expression, expected) in [
                ("'infinity'::date", other("date", "infinity")),
                ("'-infinity'::timestamp", other(without, "-infinity")),
                ("'infinity'::timestamptz", other("timestamp with time zone", "infinity")),
                ("'12024-01-02'::date", other("date", "12024-01-02")),
                ("'0044-03-15 BC'::date", other("date", "0044-03-15 BC")),
                ("'294276-12-31 23:59:59.999999'::timestamp", other(without, "294276-12-31 23:59:59.999999")),
                (
                    "'4713-01-01 00:00:00+00 BC'::timestamptz",
                    other("timestamp with time zone", "4713-01-01 00:00:00+00 BC"),
                ),
                ("'NaN'::numeric", other("numeric", "NaN")),
                ("'1e-100'::numeric * 1e3", decimal(&format!("0.{}1000", "0".repeat(96)))),
                ("1e300::numeric", decimal(&format!("1{}", "0".repeat(300)))),
            ] {
                let read = client.value(&format!("SELECT {expression}"), &[]).await;
                assert_eq!(read, expected, "{expression}");
                // What it prints is what the database prints.
                if let Value::Other { text: printed, .. } = &read {
                    let same = client.value(&format!("SELECT ({expression})::text = ?"), &[text(printed)]).await;
                    assert_eq!(same, Value::Boolean(true), "{expression}");
                }
            }
        }
        Dialect::MySql => {
            client.run("CREATE TABLE z (d DATE, t DATETIME)", &[]).await;
            // Rows that were written when zero dates were allowed.
            client.run("SET SESSION sql_mode = ''", &[]).await;
            client.run("INSERT INTO z VALUES ('0000-00-00', '0000-00-00'), ('2024-00-00', NULL)", &[]).await;
            let rows = client.query("SELECT d, t FROM z ORDER BY d", &[]).await;
            assert_eq!(rows[0], [other("DATE", "0000-00-00"), other("DATETIME", "0000-00-00 00:00:00")]);
            assert_eq!(rows[1], [other("DATE", "2024-00-00"), Value::Null]);
            for float in [f64::NAN, f64::INFINITY] {
                let error = client.try_query("SELECT ?", &[Value::Float(float)]).await.expect_err("no such number");
                assert_eq!(error.kind, DbErrorKind::Invalid);
            }
        }
        Dialect::Sqlite => {
            let read = client.value("SELECT CAST(x'FF41' AS TEXT)", &[]).await;
            assert_eq!(read, Value::Blob(vec![0xFF, 0x41]));
            assert_eq!(client.value("SELECT 9e999", &[]).await, Value::Float(f64::INFINITY));
            let error = client.try_query("SELECT ?", &[Value::Float(f64::NAN)]).await.expect_err("no such number");
            assert_eq!(error.kind, DbErrorKind::Invalid);
        }
    }
}

pub(crate) async fn columns_keep_their_names(backend: &Backend) {
    let mut client = backend.connect().await;
    let quoted = backend.pick("\"Ünit, \"\"x\"\"\"", "`Ünit, \"x\"`", "\"Ünit, \"\"x\"\"\"");
    let extra = backend.pick("'::1'::inet AS net", "1 AS net", "1 AS net");
    let sql = format!("SELECT 1 AS a, 2 AS a, 3 AS {quoted}, {extra}");
    for _ in 0..2 {
        let set = client.try_query(&sql, &[]).await.expect("a row");
        assert_eq!(set.columns, ["a", "a", "Ünit, \"x\"", "net"]);
        assert_eq!(set.rows[0][..3], [Value::Int(1), Value::Int(2), Value::Int(3)]);
    }
    let none = client.try_query(&format!("SELECT 1 AS a, {extra} WHERE 1 = 0"), &[]).await.expect("no row");
    assert_eq!((none.columns, none.rows.len()), (vec!["a".to_owned(), "net".to_owned()], 0));
}

pub(crate) async fn placeholders_in_literals_are_left_alone(backend: &Backend) {
    let mut client = backend.connect().await;
    let (sql, expected) = backend.pick(
        (
            "SELECT '$1', $$ $1 $$, E'\\'$1', \"$1\".v, CAST($1 AS uuid)::text /* $1 /* $1 */ */ FROM (SELECT 1 AS v) AS \"$1\" -- $1",
            vec![text("$1"), text(" $1 "), text("'$1"), Value::Int(1), text(ID)],
        ),
        ("SELECT '?', `?`.v, ? /* ? */ FROM (SELECT 1 AS v) AS `?` -- ?", vec![text("?"), Value::Int(1), text(ID)]),
        ("SELECT '?', \"?\".v, ? /* ? */ FROM (SELECT 1 AS v) AS \"?\" -- ?", vec![text("?"), Value::Int(1), text(ID)]),
    );
    let set = client.connection.query(sql, &[Param::One(text(ID))], RowLimits::NONE).await.expect(sql);
    assert_eq!(set.rows, [expected]);
}

pub(crate) async fn wrong_parameters_are_the_statements_fault(backend: &Backend) {
    let mut client = backend.connect().await;
    let sql = backend.pick("SELECT ?::int + 1", "SELECT ? + 1", "SELECT ? + 1");
    for params in [&[][..], &[Value::Int(1), Value::Int(2)]] {
        let error = client.try_query(sql, params).await.expect_err("wrong number of parameters");
        assert_eq!(error.kind, DbErrorKind::Invalid);
        assert!(error.message.contains("1 placeholders"), "{error}");
    }
    assert_eq!(client.query(sql, &[Value::Int(1)]).await.len(), 1);
    if backend.dialect == Dialect::Postgres {
        for (sql, value, says) in [
            ("SELECT ?::int2", Value::Int(40_000), "40000 is out of range for type smallint"),
            ("SELECT ?::int", Value::Int(i64::MAX), "out of range for type integer"),
            ("SELECT ?::real", Value::Float(1e300), "out of range for type real"),
            ("SELECT ?::uuid", uuid("nonsense"), "uuid"),
            ("SELECT ?::uuid", text("nonsense"), "uuid"),
            ("SELECT ?::date", date("2024-02-30"), "date"),
            ("SELECT ?::text", Value::Blob(vec![1]), "a blob cannot go"),
            ("SELECT ?::text", text("a\0b"), "encoding"),
            ("SELECT ?::int", Value::Float(1.5), "integer"),
        ] {
            let error = client.try_query(sql, &[value]).await.expect_err(sql);
            assert_eq!(error.kind, DbErrorKind::Invalid, "{error}");
            assert!(error.message.contains(says), "{error}");
        }
    }
}

pub(crate) async fn generated_keys_and_counts(backend: &Backend) {
    let mut client = backend.connect().await;
    let key = backend.pick("SERIAL PRIMARY KEY", "INT AUTO_INCREMENT PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT");
    client.run(&format!("CREATE TABLE g (id {key}, v INT)"), &[]).await;
    let inserted = client.run("INSERT INTO g (v) VALUES (?)", &[Value::Int(5)]).await;
    assert_eq!((inserted.rows_affected, inserted.last_insert_id), (1, backend.pick(None, Some(1), Some(1))));
    assert_eq!(client.run("INSERT INTO g (v) VALUES (5), (5)", &[]).await.rows_affected, 2);
    let updated = client.run("UPDATE g SET v = 5 WHERE id >= 2", &[]).await;
    // Rows that matched, changed or not: a guard that finds its row has found it.
    assert_eq!((updated.rows_affected, updated.last_insert_id), (2, None));
    assert_eq!(client.run("UPDATE g SET v = 6 WHERE id = 77", &[]).await.rows_affected, 0);
    let created = client.run("CREATE TABLE h (id INT)", &[]).await;
    assert_eq!((created.rows_affected, created.last_insert_id), (0, None));
    assert_eq!(client.run("DELETE FROM g", &[]).await.rows_affected, 3);
}

pub(crate) async fn arrays_work_on_postgres_only(backend: &Backend) {
    let mut client = backend.connect().await;
    let params = [
        Param::Ints(vec![Some(1), None, Some(i64::MAX)]),
        Param::Texts(vec![Some("a,b".to_owned()), None, Some(String::new())]),
        Param::Blobs(vec![Some(vec![0, 1]), None, Some(vec![])]),
    ];
    if backend.dialect != Dialect::Postgres {
        let error = client.connection.execute("SELECT ?, ?, ?", &params).await.expect_err("no arrays here");
        assert_eq!(error.kind, DbErrorKind::Infrastructure);
        return;
    }
    let sql = "SELECT * FROM unnest($1::int8[], $2::text[], $3::bytea[])";
    let set = client.connection.query(sql, &params, RowLimits::NONE).await.expect("three columns");
    assert_eq!(
        set.rows,
        [
            [Value::Int(1), text("a,b"), Value::Blob(vec![0, 1])],
            [Value::Null, Value::Null, Value::Null],
            [Value::Int(i64::MAX), text(""), Value::Blob(vec![])],
        ]
    );
    let sql = "SELECT count(*) FROM generate_series(1, 5) AS n WHERE n = ANY($1::int[])";
    for (ints, expected) in [(vec![Some(2), Some(4)], 2), (vec![], 0)] {
        let set = client.connection.query(sql, &[Param::Ints(ints)], RowLimits::NONE).await.expect("a count");
        assert_eq!(set.rows, [[Value::Int(expected)]]);
    }
    let set =
        client.connection.query("SELECT $1::uuid[]", &[Param::Texts(vec![Some(ID.to_owned())])], RowLimits::NONE).await;
    assert_eq!(set.expect("uuids").rows, [[other("uuid[]", &format!("{{{ID}}}"))]]);
}
