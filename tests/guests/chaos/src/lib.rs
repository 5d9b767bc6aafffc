//! A handler whose messages say what it does, so that one component can play every well-behaved and every hostile guest.
//!
//! The body is JSON: `{"do": [step, …], "compensate": [step, …]}`. `handle` runs the steps of `do` in order and returns
//! ok; `compensate` runs those of `compensate` (none: ok). A body that is not such an object is taken from the config
//! value `chaos-default`, if that is granted (so a body may be anything); otherwise `handle` fails for good with the code
//! `bad-body`, and `compensate` returns ok.
//!
//! A step is an object, known by one of these keys:
//!
//! | step | effect |
//! |---|---|
//! | `{"sql": "UPDATE …", "params": […], "times": n}` | `execute`, n times (1) |
//! | `{"query": "SELECT …", "params": […], "into": "TABLE", "expect": [[…]]}` | `query`; `into` writes the rows as one JSON text; other rows than `expect` fail with the code `unexpected` |
//! | `{"many": "INSERT …", "rows": [[…], …]}` | `execute-many` |
//! | `{"affects": "UPDATE …", "params": […], "rows": n, "advice": …}` | `execute`; fails with the code `unexpected` unless n rows were affected, with the advice of `fail` |
//! | `{"publish": {"exchange", "routing_key", "body", "headers": {…}, "properties": {…}, "times": n}}` | outbox; the body is text or JSON; properties by their contract names (`content-type`, `user-id`, …) |
//! | `{"flood-outbox": n}` | publishes n tiny messages to the default exchange, routing key `flood`, until one is refused, and fails with that refusal |
//! | `{"fail": {"code", "message", "detail", "advice": "policy" \| "never" \| {"after-ms": n}}}` | returns that failure |
//! | `{"fail-until-attempt": n}` | fails by policy (code `not-yet`) on attempts before n |
//! | `{"until-attempt": n, "do": [step, …]}` | runs those steps on attempts before n |
//! | `{"panic": "text"}` | panics |
//! | `{"exit": n}` | `std::process::exit` |
//! | `{"loop": true}` | spins in wasm for ever |
//! | `{"sleep-ms": n}` | `std::thread::sleep` |
//! | `{"spin-sql": "SELECT 1"}` | runs that query for ever |
//! | `{"eat-memory": true}` | allocates and touches memory until it is refused; `{"eat-memory": n}` keeps n bytes for good |
//! | `{"recurse": true}` | overflows the stack |
//! | `{"ignore-error": step}` | runs the step and swallows its failure; the variable `error` remembers it |
//! | `{"garbage": true}` | fails with a message of 1 MiB, a code of 100 kB with control characters and newlines, a detail of 4 MiB |
//! | `{"print": "text"}`, `{"stderr": "text"}` | a line to stdout or stderr; `"times": n` |
//! | `{"count": "name", "into": "TABLE"}` | increments a counter in this instance's memory, which shows whether instances are reused |
//! | `{"config": "key", "into": "TABLE"}` | the granted value, or NULL |
//! | `{"idempotency-key": "purpose", "into": "TABLE"}` | |
//! | `{"context": true, "into": "TABLE"}` | every value of the context, one row each |
//! | `{"message": true, "into": "TABLE"}` | the message as it arrived (all but its body) as one JSON text |
//! | `{"write": value, "name": "x", "into": "TABLE"}` | one row: a value, for example a variable |
//! | `{"clock": "wall" \| "monotonic"}`, `{"random": n}`, `{"read-file": "/etc/passwd"}`, `{"env": "HOME"}` | what WASI gives; a file or a variable that can be read is written `into` |
//!
//! `into` names a table with two text columns, `name` and `value`; the step's key (or the context value's name, or
//! `name`) goes to the first. A *value* in `params` is null, a boolean, an integer, a float or a string, or an object
//! with one key: `{"int": …}`, `{"float": …}`, `{"text"|"decimal"|"uuid"|"date"|"time"|"timestamp"|"timestamptz"|"json":
//! "…"}`, `{"blob": "hex"}`, `{"other": ["type", "text"]}`, or a variable: `{"$": "message-id" | "attempt" |
//! "routing-key" | "count:NAME" | "outbox-id" | "rows-affected" | "last-insert-id" | "error" | "phase" | "death-reason" |
//! "death-attempts" | "death-code" | "body-bytes" | "body-digest" (FNV-1a, 64 bits, in hex) | "config:KEY" | "idempotency-key:PURPOSE" | "text:LENGTH"}`.
//! Rows that are read come out in the same notation: integers, floats, strings, booleans and null plainly, the rest as
//! one-key objects.
//!
//! A statement or an outbox call that is refused ends the attempt as a failure by policy with the code `sql-KIND` or
//! `outbox-KIND` and the host's message.
#![cfg(target_arch = "wasm32")]

mod steps;
mod values;

mod bindings {
    wit_bindgen::generate!({ world: "compensating-handler", path: "../../../wit" });
}

use bindings::exports::hapax::handler::{compensation, handler};
use bindings::hapax::handler::context;
use bindings::hapax::handler::types::{Advice, Death, Failure, Message};
use serde_json::Value as Json;

struct Chaos;
bindings::export!(Chaos with_types_in bindings);

impl handler::Guest for Chaos {
    fn handle(message: Message) -> Result<(), Failure> {
        let Some(program) = program(&message.body) else {
            return Err(failure("bad-body", "the body is not a JSON object of commands", Advice::Never));
        };
        steps::Run::new(message, None).all(&program["do"])
    }
}

impl compensation::Guest for Chaos {
    fn compensate(message: Message, death: Death) -> Result<(), Failure> {
        match program(&message.body) {
            Some(program) => steps::Run::new(message, Some(death)).all(&program["compensate"]),
            None => Ok(()),
        }
    }
}

/// The commands: from the body, or from the config where the body has none.
fn program(body: &[u8]) -> Option<Json> {
    let commands = |bytes: &[u8]| {
        serde_json::from_slice::<Json>(bytes)
            .ok()
            .filter(|json| json.get("do").is_some() || json.get("compensate").is_some())
    };
    commands(body).or_else(|| commands(context::config("chaos-default")?.as_bytes()))
}

fn failure(code: &str, message: impl Into<String>, advice: Advice) -> Failure {
    Failure { advice, code: Some(code.to_owned()), message: message.into(), detail: None }
}
