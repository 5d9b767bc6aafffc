//! A component that uses every item of `hapax:handler@0.1.0`. Its behaviour is described in ../../README.md.

mod bindings {
    wit_bindgen::generate!({ world: "compensating-handler", path: "wit" });
}

use bindings::exports::hapax::handler::{compensation, handler};
use bindings::hapax::handler::sql::Value;
use bindings::hapax::handler::types::{Advice, Death, Failure, HeaderValue, Message, Properties};
use bindings::hapax::handler::{context, outbox, sql};

struct Golden;
bindings::export!(Golden with_types_in bindings);

const INSERT: &str = "INSERT INTO golden (name, value) VALUES (?, ?)";

impl handler::Guest for Golden {
    fn handle(message: Message) -> Result<(), Failure> {
        let word = String::from_utf8_lossy(&message.body).into_owned();
        sql::execute_many(INSERT, &facts(&message)).map_err(sql_failure)?;
        if let Some(kind) = word.strip_prefix("sql:") {
            sql::execute(kind, &[]).map_err(sql_failure)?;
        }
        copy_values()?;
        let id = outbox::publish("golden", "golden.done", &properties(&message), &message.body);
        let id = id.map_err(outbox_failure)?;
        sql::execute(INSERT, &[text("outbox-id"), text(&id)]).map_err(sql_failure)?;
        match word.as_str() {
            "policy" => Err(fail(Advice::ByPolicy, "golden-policy", "by policy", Some("a detail\nof two lines"))),
            "later" => Err(fail(Advice::AfterMs(1_500), "golden-later", "after 1500 ms", None)),
            "never" => Err(Failure { advice: Advice::Never, code: None, message: "never".into(), detail: None }),
            "trap" => panic!("golden panics"),
            _ => Ok(()),
        }
    }
}

impl compensation::Guest for Golden {
    fn compensate(message: Message, death: Death) -> Result<(), Failure> {
        let last = death.failure.as_ref();
        let advice = last.map(|failure| match failure.advice {
            Advice::ByPolicy => "by-policy".to_owned(),
            Advice::AfterMs(milliseconds) => format!("after-ms {milliseconds}"),
            Advice::Never => "never".to_owned(),
        });
        let rows = [
            row("compensated", Some(message.id)),
            row("death-reason", Some(death.reason)),
            row("death-attempts", Some(death.attempts.to_string())),
            row("death-advice", advice),
            row("death-code", last.and_then(|failure| failure.code.clone())),
            row("death-message", last.map(|failure| failure.message.clone())),
            row("death-detail", last.and_then(|failure| failure.detail.clone())),
        ];
        sql::execute_many(INSERT, &rows).map(|_| ()).map_err(sql_failure)
    }
}

/// The context and the message, one row each.
fn facts(message: &Message) -> Vec<Vec<Value>> {
    let properties = &message.properties;
    let mut rows = vec![
        row("consumer", Some(context::consumer())),
        row("queue", Some(context::queue())),
        row("attempt", Some(context::attempt().to_string())),
        row("max-attempts", Some(context::max_attempts().to_string())),
        row("has-time", Some((context::remaining_ms() > 0).to_string())),
        row("traceparent", context::traceparent()),
        row("tracestate", context::tracestate()),
        row("idempotency-key", Some(context::idempotency_key("golden"))),
        row("config", context::config("golden")),
        row("id", Some(message.id.clone())),
        row("exchange", Some(message.exchange.clone())),
        row("routing-key", Some(message.routing_key.clone())),
        row("content-type", properties.content_type.clone()),
        row("content-encoding", properties.content_encoding.clone()),
        row("delivery-mode", properties.delivery_mode.map(|mode| mode.to_string())),
        row("priority", properties.priority.map(|priority| priority.to_string())),
        row("correlation-id", properties.correlation_id.clone()),
        row("reply-to", properties.reply_to.clone()),
        row("expiration", properties.expiration.clone()),
        row("message-id", properties.message_id.clone()),
        row("timestamp", properties.timestamp.map(|seconds| seconds.to_string())),
        row("type", properties.type_.clone()),
        row("user-id", properties.user_id.clone()),
        row("app-id", properties.app_id.clone()),
    ];
    rows.extend(properties.headers.iter().map(|(name, value)| row(&format!("header {name}"), Some(header(value)))));
    rows
}

fn header(value: &HeaderValue) -> String {
    match value {
        HeaderValue::Null => "null".to_owned(),
        HeaderValue::Text(text) => format!("text {text}"),
        HeaderValue::Integer(integer) => format!("integer {integer}"),
        HeaderValue::Float(float) => format!("float {float}"),
        HeaderValue::Boolean(boolean) => format!("boolean {boolean}"),
        HeaderValue::Bytes(bytes) => format!("bytes {bytes:?}"),
        HeaderValue::Timestamp(seconds) => format!("timestamp {seconds}"),
        HeaderValue::Decimal(text) => format!("decimal {text}"),
        HeaderValue::Json(text) => format!("json {text}"),
    }
}

/// Reads every row of golden_values and writes it to golden_copy, each value as it came.
fn copy_values() -> Result<(), Failure> {
    let result = sql::query("SELECT * FROM golden_values", &[]).map_err(sql_failure)?;
    let places = vec!["?"; result.columns.len()].join(", ");
    let insert = format!("INSERT INTO golden_copy ({}) VALUES ({places})", result.columns.join(", "));
    for values in &result.rows {
        let executed = sql::execute(&insert, values).map_err(sql_failure)?;
        let kinds: Vec<&str> = values.iter().map(kind).collect();
        let told = format!("{} {} {}", executed.rows_affected, executed.last_insert_id.is_some(), kinds.join(" "));
        sql::execute(INSERT, &[text("copied"), text(&told)]).map_err(sql_failure)?;
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Boolean(_) => "boolean",
        Value::Int64(_) => "int64",
        Value::Float64(_) => "float64",
        Value::Text(_) => "text",
        Value::Blob(_) => "blob",
        Value::Decimal(_) => "decimal",
        Value::Uuid(_) => "uuid",
        Value::Date(_) => "date",
        Value::Time(_) => "time",
        Value::Timestamp(_) => "timestamp",
        Value::Timestamptz(_) => "timestamptz",
        Value::Json(_) => "json",
        Value::Other(_) => "other",
    }
}

/// Everything that a guest may set.
fn properties(message: &Message) -> Properties {
    Properties {
        content_type: Some("text/plain".into()),
        content_encoding: Some("identity".into()),
        headers: vec![
            ("null".into(), HeaderValue::Null),
            ("text".into(), HeaderValue::Text("é".into())),
            ("integer".into(), HeaderValue::Integer(i64::MIN)),
            ("float".into(), HeaderValue::Float(0.5)),
            ("boolean".into(), HeaderValue::Boolean(true)),
            ("bytes".into(), HeaderValue::Bytes(vec![0, 255])),
            ("timestamp".into(), HeaderValue::Timestamp(1_700_000_000)),
            ("decimal".into(), HeaderValue::Decimal("1.50".into())),
            ("json".into(), HeaderValue::Json("{\"a\":[1,null]}".into())),
        ],
        delivery_mode: None,
        priority: Some(3),
        correlation_id: Some(message.id.clone()),
        reply_to: Some("golden.replies".into()),
        expiration: Some("3600000".into()),
        message_id: None,
        timestamp: Some(1_700_000_000),
        type_: Some("golden".into()),
        user_id: None,
        app_id: Some("golden".into()),
    }
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn row(name: &str, value: Option<String>) -> Vec<Value> {
    vec![text(name), value.map_or(Value::Null, Value::Text)]
}

fn fail(advice: Advice, code: &str, message: &str, detail: Option<&str>) -> Failure {
    Failure { advice, code: Some(code.into()), message: message.into(), detail: detail.map(Into::into) }
}

fn sql_failure(error: sql::Error) -> Failure {
    let code = match error.kind {
        sql::ErrorKind::Denied => "sql-denied",
        sql::ErrorKind::Invalid => "sql-invalid",
        sql::ErrorKind::Constraint => "sql-constraint",
        sql::ErrorKind::Transient => "sql-transient",
        sql::ErrorKind::TooLarge => "sql-too-large",
        sql::ErrorKind::Poisoned => "sql-poisoned",
        sql::ErrorKind::Other => "sql-other",
    };
    let detail = format!("code {:?}, constraint {:?}", error.code, error.constraint);
    fail(Advice::ByPolicy, code, &error.message, Some(&detail))
}

fn outbox_failure(error: outbox::Error) -> Failure {
    let code = match error.kind {
        outbox::ErrorKind::Denied => "outbox-denied",
        outbox::ErrorKind::Invalid => "outbox-invalid",
        outbox::ErrorKind::TooLarge => "outbox-too-large",
        outbox::ErrorKind::TooMany => "outbox-too-many",
        outbox::ErrorKind::Other => "outbox-other",
    };
    fail(Advice::ByPolicy, code, &error.message, None)
}
