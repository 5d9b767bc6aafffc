//! Handlers under test on the host: no wasm, no database, no broker.
//!
//! A [`Fake`] stands in for Hapax in the thread that made it. Tests say what statements answer, call the handler, and
//! look at what it did.
//!
//! ```
//! use hapax_guest::{Failure, Message, handler, sql, testing::Fake};
//!
//! #[handler]
//! fn ship(id: String) -> Result<(), Failure> {
//!     sql::execute("UPDATE parcel SET state = 'sent' WHERE id = ?", (id,))?;
//!     Ok(())
//! }
//!
//! let fake = Fake::new();
//! fake.when("UPDATE parcel").affects(1);
//! fake.handle::<ship>(Message::text("p-1")).unwrap();
//! assert_eq!(fake.statements()[0].params, ["p-1".into()]);
//!
//! fake.forget();
//! fake.when("UPDATE parcel").fails(sql::ErrorKind::Constraint);
//! assert_eq!(fake.handle::<ship>(Message::text("p-1")).unwrap_err().code.as_deref(), Some("sql-constraint"));
//! ```
//!
//! What only a real database can answer (is this SQL right?), `hapax invoke` does, with SQLite in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::argument::{Compensation, Handler};
use crate::message::{Message, Properties};
use crate::sql::{Error, ErrorKind, Executed, Params, ResultSet, Value};
use crate::{Death, Failure, outbox};

thread_local! {
    static CURRENT: RefCell<Option<Rc<RefCell<State>>>> = const { RefCell::new(None) };
}

/// A statement that the handler issued.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// Its text, as the handler wrote it.
    pub text: String,
    /// Its parameters; for `execute_many`, one statement is recorded for each row.
    pub params: Vec<Value>,
}

/// A message that the handler put into the outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The id that `send` returned.
    pub id: String,
    /// Its exchange.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its properties.
    pub properties: Properties,
    /// Its body.
    pub body: Vec<u8>,
}

impl Published {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none: this is for tests.
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.body) {
            Ok(json) => json,
            Err(error) => panic!("the published body is not JSON: {error}"),
        }
    }
}

/// Stands in for the host, in this thread, until it is dropped.
#[derive(Debug)]
pub struct Fake {
    state: Rc<RefCell<State>>,
}

#[derive(Debug)]
struct State {
    scripts: Vec<Script>,
    statements: Vec<Statement>,
    outbox: Vec<Published>,
    refuse_outbox: Option<outbox::ErrorKind>,
    config: BTreeMap<String, String>,
    poisoned: bool,
    attempt: u32,
    max_attempts: u32,
    remaining: Duration,
    consumer: String,
    queue: String,
    traceparent: Option<String>,
}

#[derive(Debug, Clone)]
struct Script {
    part: String,
    answer: Answer,
    times_left: Option<u32>,
}

#[derive(Debug, Clone)]
enum Answer {
    Affects(Executed),
    Rows(ResultSet),
    Fails(Error),
}

impl Fake {
    /// Stands in for the host from here on: attempt 1 of 5, no config, nothing scripted.
    ///
    /// # Panics
    /// If this thread has one already.
    #[expect(clippy::new_without_default, reason = "it takes effect on its thread, which a default should not")]
    #[must_use = "the fake goes away when it is dropped"]
    pub fn new() -> Self {
        let state = Rc::new(RefCell::new(State {
            scripts: Vec::new(),
            statements: Vec::new(),
            outbox: Vec::new(),
            refuse_outbox: None,
            config: BTreeMap::new(),
            poisoned: false,
            attempt: 1,
            max_attempts: 5,
            remaining: Duration::from_secs(30),
            consumer: "test-consumer".to_owned(),
            queue: "test-queue".to_owned(),
            traceparent: None,
        }));
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "this thread already has a Fake: drop it before making another");
            *current = Some(Rc::clone(&state));
        });
        Self { state }
    }

    /// Says what statements that contain `part` answer (runs of white space are one space). The first script that
    /// matches counts; a statement that none matches fails the test.
    pub fn when(&self, part: &str) -> When<'_> {
        When { fake: self, part: one_spaced(part), times: None }
    }

    /// Forgets scripts, statements and outbox; keeps the context and the config.
    pub fn forget(&self) {
        let mut state = self.state.borrow_mut();
        state.scripts.clear();
        state.statements.clear();
        state.outbox.clear();
        state.poisoned = false;
    }

    /// Sets the number of the attempt.
    pub fn attempt(&self, attempt: u32) -> &Self {
        self.state.borrow_mut().attempt = attempt;
        self
    }

    /// Sets how many attempts there may be.
    pub fn max_attempts(&self, attempts: u32) -> &Self {
        self.state.borrow_mut().max_attempts = attempts;
        self
    }

    /// Sets the time left.
    pub fn remaining(&self, time: Duration) -> &Self {
        self.state.borrow_mut().remaining = time;
        self
    }

    /// Sets the names of consumer and queue.
    pub fn consumer(&self, consumer: &str, queue: &str) -> &Self {
        let mut state = self.state.borrow_mut();
        (state.consumer, state.queue) = (consumer.to_owned(), queue.to_owned());
        drop(state);
        self
    }

    /// Sets the trace context.
    pub fn traceparent(&self, traceparent: &str) -> &Self {
        self.state.borrow_mut().traceparent = Some(traceparent.to_owned());
        self
    }

    /// Grants a config value.
    pub fn config(&self, key: &str, value: &str) -> &Self {
        self.state.borrow_mut().config.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Lets the outbox refuse every message from now on.
    pub fn refuse_outbox(&self, kind: outbox::ErrorKind) -> &Self {
        self.state.borrow_mut().refuse_outbox = Some(kind);
        self
    }

    /// Every statement issued, in order, failed ones too.
    pub fn statements(&self) -> Vec<Statement> {
        self.state.borrow().statements.clone()
    }

    /// What would be published if the attempt committed.
    pub fn outbox(&self) -> Vec<Published> {
        self.state.borrow().outbox.clone()
    }

    /// Calls a handler with a message as the host would: decodes the parameters, drops the outbox of a failed attempt,
    /// and counts an attempt that swallowed a failed statement as failed. `H` is the handler's name.
    ///
    /// # Errors
    /// The handler's failure, or the host's in its place (code `sql-error-ignored`).
    pub fn handle<H: Handler>(&self, message: Message) -> Result<(), Failure> {
        self.call(|| H::handle(message))
    }

    /// Calls a compensation, in the same way.
    ///
    /// # Errors
    /// As [`Fake::handle`].
    pub fn compensate<C: Compensation>(&self, message: Message, death: Death) -> Result<(), Failure> {
        self.call(|| C::compensate(message, death))
    }

    fn call(&self, attempt: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        self.state.borrow_mut().poisoned = false;
        let mut result = attempt();
        let mut state = self.state.borrow_mut();
        if result.is_ok() && state.poisoned {
            let message = "the handler returned ok although a statement had failed";
            result = Err(Failure::transient("sql-error-ignored", message));
        }
        if result.is_err() {
            state.outbox.clear();
        }
        result
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(Option::take);
    }
}

/// A script under construction; it counts once it has an answer.
#[derive(Debug)]
#[must_use = "say what the statement answers: `.affects(1)`, `.returns(…)` or `.fails(…)`"]
pub struct When<'a> {
    fake: &'a Fake,
    part: String,
    times: Option<u32>,
}

impl When<'_> {
    /// Answers this many times, then leaves it to later scripts.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Answers once, then leaves it to later scripts.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Answers `execute` with this number of affected rows.
    pub fn affects(self, rows: u64) {
        self.answer(Answer::Affects(Executed { rows_affected: rows, last_insert_id: None }));
    }

    /// Answers `execute` with a generated key.
    pub fn inserts(self, last_insert_id: u64) {
        self.answer(Answer::Affects(Executed { rows_affected: 1, last_insert_id: Some(last_insert_id) }));
    }

    /// Answers a query with rows: `.returns(["id", "name"], [(1, "a"), (2, "b")])`.
    ///
    /// # Panics
    /// If a row has another number of values than there are columns.
    pub fn returns<const N: usize, P: Params>(self, columns: [&str; N], rows: impl IntoIterator<Item = P>) {
        let rows = rows.into_iter().map(|row| match row.into_values() {
            Ok(values) if values.len() == N => values,
            Ok(values) => panic!("a scripted row has {} values for {N} columns", values.len()),
            Err(error) => panic!("a scripted row cannot be a SQL row: {error}"),
        });
        let rows = rows.collect();
        self.answer(Answer::Rows(ResultSet { columns: columns.map(str::to_owned).to_vec(), rows }));
    }

    /// Answers with an error; later statements of the attempt are then refused as poisoned.
    pub fn fails(self, kind: ErrorKind) {
        let message = format!("scripted: {}", kind.code());
        self.fails_with(Error::local(kind, message));
    }

    /// The same with every detail.
    pub fn fails_with(self, error: Error) {
        self.answer(Answer::Fails(error));
    }

    fn answer(self, answer: Answer) {
        let script = Script { part: self.part, answer, times_left: self.times };
        self.fake.state.borrow_mut().scripts.push(script);
    }
}

impl State {
    fn answer(&mut self, text: &str, params: &[Value]) -> Result<Answer, Error> {
        self.statements.push(Statement { text: text.to_owned(), params: params.to_vec() });
        if self.poisoned {
            return Err(Error::local(ErrorKind::Poisoned, "an earlier statement of this attempt failed"));
        }
        let spaced = one_spaced(text);
        let script =
            self.scripts.iter_mut().find(|script| script.times_left != Some(0) && spaced.contains(&script.part));
        let Some(script) = script else {
            panic!("no script for this statement: {spaced}\nadd fake.when(\"…\").affects(1), .returns(…) or .fails(…)");
        };
        if let Some(times) = &mut script.times_left {
            *times -= 1;
        }
        match script.answer.clone() {
            Answer::Fails(error) => {
                self.poisoned = true;
                Err(error)
            }
            answer => Ok(answer),
        }
    }
}

fn one_spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn with_current<T>(f: impl FnOnce(&mut State) -> T) -> T {
    let state = CURRENT.with_borrow(Option::clone);
    match state {
        Some(state) => f(&mut state.borrow_mut()),
        None => panic!("outside of wasm a handler runs under a Fake: `let fake = hapax_guest::testing::Fake::new();`"),
    }
}

/// The contract's imports, with the signatures that the bindings have on wasm.
pub(crate) mod host {
    pub(crate) mod context {
        use super::super::with_current;

        pub(crate) fn consumer() -> String {
            with_current(|state| state.consumer.clone())
        }

        pub(crate) fn queue() -> String {
            with_current(|state| state.queue.clone())
        }

        pub(crate) fn attempt() -> u32 {
            with_current(|state| state.attempt)
        }

        pub(crate) fn max_attempts() -> u32 {
            with_current(|state| state.max_attempts)
        }

        pub(crate) fn remaining_ms() -> u64 {
            with_current(|state| u64::try_from(state.remaining.as_millis()).unwrap_or(u64::MAX))
        }

        pub(crate) fn traceparent() -> Option<String> {
            with_current(|state| state.traceparent.clone())
        }

        pub(crate) fn tracestate() -> Option<String> {
            None
        }

        pub(crate) fn idempotency_key(purpose: &str) -> String {
            with_current(|state| format!("{}:{purpose}", state.consumer))
        }

        pub(crate) fn config(key: &str) -> Option<String> {
            with_current(|state| state.config.get(key).cloned())
        }
    }

    pub(crate) mod sql {
        use super::super::{Answer, with_current};
        use crate::sql::{Error, Executed, ResultSet, Value};

        pub(crate) fn execute(statement: &str, params: &[Value]) -> Result<Executed, Error> {
            match with_current(|state| state.answer(statement, params))? {
                Answer::Affects(executed) => Ok(executed),
                _ => panic!("execute met a script with rows; say .affects(n): {statement}"),
            }
        }

        pub(crate) fn execute_many(statement: &str, rows: &[Vec<Value>]) -> Result<u64, Error> {
            rows.iter().map(|row| execute(statement, row).map(|executed| executed.rows_affected)).sum()
        }

        pub(crate) fn query(statement: &str, params: &[Value]) -> Result<ResultSet, Error> {
            match with_current(|state| state.answer(statement, params))? {
                Answer::Rows(rows) => Ok(rows),
                _ => panic!("a query met a script without rows; say .returns(columns, rows): {statement}"),
            }
        }
    }

    pub(crate) mod outbox {
        use super::super::{Published, with_current};
        use crate::message::Properties;
        use crate::outbox::Error;

        pub(crate) fn publish(
            exchange: &str,
            routing_key: &str,
            properties: &Properties,
            body: &[u8],
        ) -> Result<String, Error> {
            with_current(|state| {
                if let Some(kind) = state.refuse_outbox {
                    return Err(Error { kind, message: format!("scripted: {}", kind.code()) });
                }
                let id = format!("outbox-{}", state.outbox.len() + 1);
                state.outbox.push(Published {
                    id: id.clone(),
                    exchange: exchange.to_owned(),
                    routing_key: routing_key.to_owned(),
                    properties: properties.clone(),
                    body: body.to_vec(),
                });
                Ok(id)
            })
        }
    }
}
