//! The steps, one function for each family.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value as Json, json};

use crate::bindings::hapax::handler::types::{Advice, Death, Failure, Message};
use crate::bindings::hapax::handler::{context, outbox, sql};
use crate::failure;
use crate::values;

thread_local! {
    /// What outlives a call when the instance is reused: counters, and memory that is never given back.
    static COUNTERS: RefCell<BTreeMap<String, i64>> = const { RefCell::new(BTreeMap::new()) };
    static HOARD: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// One call: the message, and the variables its steps have set.
pub(crate) struct Run {
    message: Message,
    death: Option<Death>,
    error: Option<Failure>,
    outbox_id: Option<String>,
    executed: Option<sql::Executed>,
}

type Step<'a> = &'a Json;

impl Run {
    pub(crate) fn new(message: Message, death: Option<Death>) -> Self {
        Self { message, death, error: None, outbox_id: None, executed: None }
    }

    /// Runs a list of steps in order; what is not a list has none.
    pub(crate) fn all(&mut self, steps: &Json) -> Result<(), Failure> {
        steps.as_array().into_iter().flatten().try_for_each(|step| self.one(step))
    }

    fn one(&mut self, step: Step) -> Result<(), Failure> {
        let Some(key) = step.as_object().and_then(|object| object.keys().find(|key| KEYS.contains(&key.as_str())))
        else {
            return Err(bad(format!("no such step: {step}")));
        };
        let value = &step[key.as_str()];
        match key.as_str() {
            "sql" | "affects" => self.execute(step, value),
            "query" => self.query(step, value),
            "many" => self.execute_many(step, value),
            "spin-sql" => loop {
                sql::query(text(value)?, &[]).map_err(sql_failure)?;
            },
            "publish" => self.publish(value),
            "flood-outbox" => self.flood(value),
            "fail" => Err(commanded(value)),
            "fail-until-attempt" => self.fail_until(value),
            "until-attempt" if u64::from(context::attempt()) < value.as_u64().unwrap_or(0) => self.all(&step["do"]),
            "until-attempt" => Ok(()),
            "ignore-error" => {
                self.error = self.one(value).err();
                Ok(())
            }
            "garbage" => Err(garbage()),
            "print" | "stderr" => self.print(key, value, times(step)),
            "count" => self.count(step, value),
            "config" => self.write(step, "config", context::config(text(value)?).map(Json::from)),
            "idempotency-key" => {
                let key = context::idempotency_key(text(value)?);
                self.write(step, "idempotency-key", Some(json!(key)))
            }
            "context" => self.context(step),
            "message" => {
                let described = values::describe(&self.message);
                self.write(step, "message", Some(json!(described.to_string())))
            }
            "write" => self.write(step, step["name"].as_str().unwrap_or("write"), Some(value.clone())),
            "clock" | "random" | "read-file" | "env" => self.wasi(step, key, value),
            _ => misbehave(key, value),
        }
    }

    fn execute(&mut self, step: Step, statement: &Json) -> Result<(), Failure> {
        let params = self.params(&step["params"])?;
        for _ in 0..times(step) {
            let executed = sql::execute(text(statement)?, &params).map_err(sql_failure)?;
            if step.get("affects").is_some() && Some(executed.rows_affected) != step["rows"].as_u64() {
                let failure = unexpected(format!("{} rows affected", executed.rows_affected));
                return Err(Failure { advice: advice(&step["advice"]), ..failure });
            }
            self.executed = Some(executed);
        }
        Ok(())
    }

    fn query(&mut self, step: Step, statement: &Json) -> Result<(), Failure> {
        let params = self.params(&step["params"])?;
        let result = sql::query(text(statement)?, &params).map_err(sql_failure)?;
        let rows: Vec<Vec<Json>> = result.rows.iter().map(|row| row.iter().map(values::from_sql).collect()).collect();
        let rows = json!(rows);
        if step.get("expect").is_some_and(|expected| *expected != rows) {
            return Err(unexpected(format!("the query returned {rows}")));
        }
        match step.get("into") {
            Some(_) => self.write(step, "query", Some(json!(rows.to_string()))),
            None => Ok(()),
        }
    }

    fn execute_many(&mut self, step: Step, statement: &Json) -> Result<(), Failure> {
        let rows = step["rows"].as_array().into_iter().flatten();
        let rows = rows.map(|row| self.params(row)).collect::<Result<Vec<_>, _>>()?;
        let rows_affected = sql::execute_many(text(statement)?, &rows).map_err(sql_failure)?;
        self.executed = Some(sql::Executed { rows_affected, last_insert_id: None });
        Ok(())
    }

    fn publish(&mut self, what: &Json) -> Result<(), Failure> {
        let properties = values::properties(&what["headers"], &what["properties"]).map_err(bad)?;
        let body = match &what["body"] {
            Json::Null => Vec::new(),
            Json::String(text) => text.clone().into_bytes(),
            Json::Object(object) if object.contains_key("$") => {
                self.resolve(&what["body"])?.to_string().trim_matches('"').as_bytes().to_vec()
            }
            other => other.to_string().into_bytes(),
        };
        let exchange = what["exchange"].as_str().unwrap_or("");
        let routing_key = what["routing_key"].as_str().unwrap_or("");
        for _ in 0..times(what) {
            let id = outbox::publish(exchange, routing_key, &properties, &body).map_err(outbox_failure)?;
            self.outbox_id = Some(id);
        }
        Ok(())
    }

    fn flood(&mut self, how_many: &Json) -> Result<(), Failure> {
        let properties = values::properties(&Json::Null, &Json::Null).map_err(bad)?;
        for number in 0..how_many.as_u64().unwrap_or(100_000) {
            let id =
                outbox::publish("", "flood", &properties, number.to_string().as_bytes()).map_err(outbox_failure)?;
            self.outbox_id = Some(id);
        }
        Ok(())
    }

    fn fail_until(&self, attempt: &Json) -> Result<(), Failure> {
        let now = context::attempt();
        match u64::from(now) < attempt.as_u64().unwrap_or(0) {
            true => Err(failure("not-yet", format!("attempt {now} of {attempt}"), Advice::ByPolicy)),
            false => Ok(()),
        }
    }

    fn print(&self, key: &str, value: &Json, times: u64) -> Result<(), Failure> {
        let line = text(value)?;
        for _ in 0..times {
            match key {
                "print" => println!("{line}"),
                _ => eprintln!("{line}"),
            }
        }
        Ok(())
    }

    fn count(&mut self, step: Step, name: &Json) -> Result<(), Failure> {
        let name = text(name)?;
        let count = COUNTERS.with_borrow_mut(|counters| {
            let counter = counters.entry(name.to_owned()).or_default();
            *counter += 1;
            *counter
        });
        match step.get("into") {
            Some(_) => self.write(step, name, Some(json!(count.to_string()))),
            None => Ok(()),
        }
    }

    fn context(&mut self, step: Step) -> Result<(), Failure> {
        let values = [
            ("consumer", Some(context::consumer())),
            ("queue", Some(context::queue())),
            ("attempt", Some(context::attempt().to_string())),
            ("max-attempts", Some(context::max_attempts().to_string())),
            ("remaining-ms", Some(context::remaining_ms().to_string())),
            ("traceparent", context::traceparent()),
            ("tracestate", context::tracestate()),
            ("phase", Some(self.phase().to_owned())),
            ("death-reason", self.death.as_ref().map(|death| death.reason.clone())),
            ("death-attempts", self.death.as_ref().map(|death| death.attempts.to_string())),
        ];
        values.into_iter().try_for_each(|(name, value)| self.write(step, name, value.map(Json::from)))
    }

    /// One row into the table that `into` names.
    fn write(&mut self, step: Step, name: &str, value: Option<Json>) -> Result<(), Failure> {
        let table = step["into"].as_str().ok_or_else(|| bad(format!("{step} names no table in `into`")))?;
        let value = match self.resolve(&value.unwrap_or(Json::Null))? {
            plain @ (Json::Null | Json::String(_)) => plain,
            other => json!(other.to_string()),
        };
        let value = values::to_sql(&value).map_err(bad)?;
        let statement = format!("INSERT INTO {table} (name, value) VALUES (?, ?)");
        sql::execute(&statement, &[sql::Value::Text(name.to_owned()), value]).map_err(sql_failure)?;
        Ok(())
    }

    fn wasi(&mut self, step: Step, key: &str, value: &Json) -> Result<(), Failure> {
        let found = match key {
            "clock" if value == "monotonic" => {
                black_box(Instant::now());
                None
            }
            "clock" => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                now.ok().map(|now| now.as_millis().to_string())
            }
            // The standard library seeds its hash maps from wasi:random.
            "random" => {
                use std::hash::{BuildHasher as _, RandomState};
                Some(RandomState::new().hash_one(1).to_string())
            }
            "read-file" => std::fs::read_to_string(text(value)?).ok(),
            _ => std::env::var(text(value)?).ok(),
        };
        match step.get("into") {
            Some(_) => self.write(step, key, found.map(Json::from)),
            None => Ok(()),
        }
    }

    fn params(&self, params: &Json) -> Result<Vec<sql::Value>, Failure> {
        let params = params.as_array().into_iter().flatten();
        params.map(|param| values::to_sql(&self.resolve(param)?).map_err(bad)).collect()
    }

    fn phase(&self) -> &'static str {
        if self.death.is_some() { "compensate" } else { "handle" }
    }

    /// Replaces a variable by its value.
    fn resolve(&self, json: &Json) -> Result<Json, Failure> {
        let Some(name) = json.get("$") else { return Ok(json.clone()) };
        let name = text(name)?;
        let death = self.death.as_ref();
        let failure = death.and_then(|death| death.failure.as_ref());
        Ok(match name.split_once(':').unwrap_or((name, "")) {
            ("message-id", _) => json!(self.message.id),
            ("routing-key", _) => json!(self.message.routing_key),
            ("body-bytes", _) => json!(self.message.body.len()),
            ("body-digest", _) => json!(values::digest(&self.message.body)),
            ("attempt", _) => json!(context::attempt()),
            ("phase", _) => json!(self.phase()),
            ("outbox-id", _) => json!(self.outbox_id),
            ("rows-affected", _) => json!(self.executed.map(|executed| executed.rows_affected)),
            ("last-insert-id", _) => json!(self.executed.and_then(|executed| executed.last_insert_id)),
            ("error", _) => json!(self.error.as_ref().map(|error| &error.message)),
            ("death-reason", _) => json!(death.map(|death| &death.reason)),
            ("death-attempts", _) => json!(death.map(|death| death.attempts)),
            ("death-code", _) => json!(failure.and_then(|failure| failure.code.as_ref())),
            ("count", counter) => json!(COUNTERS.with_borrow(|counters| counters.get(counter).copied())),
            ("config", key) => json!(context::config(key)),
            ("idempotency-key", purpose) => json!(context::idempotency_key(purpose)),
            ("text", length) => json!("x".repeat(length.parse().map_err(|_| bad("text:LENGTH takes a number"))?)),
            _ => return Err(bad(format!("no such variable: {name}"))),
        })
    }
}

/// Every key that names a step.
const KEYS: &[&str] = &[
    "sql",
    "affects",
    "query",
    "many",
    "spin-sql",
    "publish",
    "flood-outbox",
    "fail",
    "fail-until-attempt",
    "until-attempt",
    "ignore-error",
    "garbage",
    "print",
    "stderr",
    "count",
    "config",
    "idempotency-key",
    "context",
    "message",
    "write",
    "clock",
    "random",
    "read-file",
    "env",
    "panic",
    "exit",
    "loop",
    "sleep-ms",
    "eat-memory",
    "recurse",
];

/// What no good guest does.
fn misbehave(key: &str, value: &Json) -> Result<(), Failure> {
    match key {
        "panic" => panic!("{}", value.as_str().unwrap_or("commanded to panic")),
        "exit" => std::process::exit(value.as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(1)),
        "loop" => loop {
            black_box(());
        },
        "sleep-ms" => std::thread::sleep(Duration::from_millis(value.as_u64().unwrap_or(0))),
        "eat-memory" => eat(value.as_u64()),
        _ => {
            black_box(recurse(0));
        }
    }
    Ok(())
}

/// Takes `bytes` of memory, or all there is, and keeps it for as long as the instance lives.
fn eat(bytes: Option<u64>) {
    const PIECE: u64 = 64 * 1024;
    let pieces = bytes.map_or(u64::MAX, |bytes| bytes.div_ceil(PIECE));
    for piece in 0..pieces {
        let filler = u8::try_from(piece % 255).unwrap_or(0) + 1;
        HOARD.with_borrow_mut(|hoard| hoard.push(vec![filler; 64 * 1024]));
    }
}

#[expect(unconditional_recursion, reason = "overflowing the stack is the point")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(black_box(depth + 1)) + frame[0]
}

fn garbage() -> Failure {
    Failure {
        advice: Advice::AfterMs(u64::MAX),
        code: Some("\u{0}\n\r\u{1b}[31m; DROP TABLE stock; --".repeat(4_000)),
        message: "\u{202e}😀\n\0".repeat(120_000),
        detail: Some("x".repeat(4 << 20)),
    }
}

fn commanded(value: &Json) -> Failure {
    let text = |name: &str| value[name].as_str().map(str::to_owned);
    let message = text("message").unwrap_or_default();
    Failure { advice: advice(&value["advice"]), code: text("code"), message, detail: text("detail") }
}

fn advice(value: &Json) -> Advice {
    match value {
        Json::String(word) if word == "never" => Advice::Never,
        Json::Object(object) => match object.get("after-ms").and_then(Json::as_u64) {
            Some(milliseconds) => Advice::AfterMs(milliseconds),
            None => Advice::ByPolicy,
        },
        _ => Advice::ByPolicy,
    }
}

fn times(step: Step) -> u64 {
    step["times"].as_u64().unwrap_or(1)
}

fn text(json: &Json) -> Result<&str, Failure> {
    json.as_str().ok_or_else(|| bad(format!("{json} should be a string")))
}

fn bad(message: impl Into<String>) -> Failure {
    failure("bad-step", message, Advice::Never)
}

fn unexpected(message: String) -> Failure {
    failure("unexpected", message, Advice::ByPolicy)
}

fn sql_failure(error: sql::Error) -> Failure {
    let kind = match error.kind {
        sql::ErrorKind::Denied => "sql-denied",
        sql::ErrorKind::Invalid => "sql-invalid",
        sql::ErrorKind::Constraint => "sql-constraint",
        sql::ErrorKind::Transient => "sql-transient",
        sql::ErrorKind::TooLarge => "sql-too-large",
        sql::ErrorKind::Poisoned => "sql-poisoned",
        sql::ErrorKind::Other => "sql-other",
    };
    failure(
        kind,
        format!("{} (code {:?}, constraint {:?})", error.message, error.code, error.constraint),
        Advice::ByPolicy,
    )
}

fn outbox_failure(error: outbox::Error) -> Failure {
    let kind = match error.kind {
        outbox::ErrorKind::Denied => "outbox-denied",
        outbox::ErrorKind::Invalid => "outbox-invalid",
        outbox::ErrorKind::TooLarge => "outbox-too-large",
        outbox::ErrorKind::TooMany => "outbox-too-many",
        outbox::ErrorKind::Other => "outbox-other",
    };
    failure(kind, error.message, Advice::ByPolicy)
}
