//! One live copy of a module, and the call of it: one attempt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument as _, Span};
use wasmtime::Store;
use wasmtime::component::TypedFunc;

use super::ahead::{Ahead, Line};
use super::bindings::types;
use super::engine::EngineError;
use super::grants::ConsumerContext;
use super::lent::{Lent, gone};
use super::module::Module;
use super::output::Output;
use super::patience::within;
use super::state::State;
use super::verdict::{Ending, MemoryState, host_failure, judge, still_starting, timed_out, trapped};
use super::{Advice, Call, Failure, Finished, Phase, Verdict, convert};
use crate::ledger::database::{Connection, DbError};
use crate::sabotage::{self, Breach};

type Answer = (Result<(), types::Failure>,);
type Handle = TypedFunc<(types::Message,), Answer>;
type Compensate = TypedFunc<(types::Message, types::Death), Answer>;

/// Objects of the host (streams, timers) that a guest may hold at once.
const MAX_HANDLES: usize = 10_000;

/// A live copy of a module, with a memory of its own. A lane keeps one and calls it for message after message.
pub struct Instance(Box<Inner>);

struct Inner {
    module: Arc<Module>,
    consumer: Arc<ConsumerContext>,
    store: Store<State>,
    handle: Handle,
    compensate: Option<Compensate>,
    lent: Arc<Lent>,
    output: Arc<Output>,
    calls: u32,
    /// Of the last call, without what the host did for its statements.
    in_guest: Duration,
    /// Linear memory once it had started: what a language's runtime takes is no growth.
    initial_memory: u64,
    // Declared last, dropped last: the place in the pool is free only when the store is gone.
    _permit: OwnedSemaphorePermit,
}

/// Why there is no instance.
#[derive(Debug)]
pub enum InstanceError {
    /// No place in the pool, or the pool failed: not the module's fault.
    Engine(EngineError),
    /// An export has another type than the contract says.
    Contract(String),
    /// The module's own start code trapped or took too long, or it needs more memory than the consumer allows.
    Start(Failure),
}

impl Instance {
    /// Makes an instance and an attempt on it, on a connection whose transaction is open: it is kept alive meanwhile.
    pub async fn start_and_call(
        module: &Arc<Module>,
        consumer: &Arc<ConsumerContext>,
        call: Call,
        line: impl Into<Line>,
    ) -> Finished {
        let span = attempt_span(module, consumer, &call);
        Self::started_and_called(module, consumer, call, line.into()).instrument(span).await
    }

    async fn started_and_called(
        module: &Arc<Module>,
        consumer: &Arc<ConsumerContext>,
        call: Call,
        line: Line,
    ) -> Finished {
        let started = Instant::now();
        let lent = Lent::default();
        lent.lend(line).await;
        let (made, ping) = lent.beside(consumer.ping_every, Self::new(module, consumer)).await;
        let verdict = match (made, lent.take_back().await, ping) {
            (Ok(instance), Some(line), None) => {
                let mut finished = instance.attempt(call, line).await;
                finished.elapsed = started.elapsed();
                return finished;
            }
            (Err(error), Some(line), None) => {
                return not_run(module, error.into_verdict(), Some(line), started);
            }
            (_, _, Some(error)) => Verdict::Infrastructure(error),
            (_, None, None) => Verdict::Infrastructure(gone()),
        };
        not_run(module, verdict, None, started)
    }

    /// Makes an instance, within the consumer's time limit of an attempt. What it prints on the way goes to the log,
    /// without a message id.
    pub async fn new(module: &Arc<Module>, consumer: &Arc<ConsumerContext>) -> Result<Self, InstanceError> {
        let permit = module.engine.permit().await.map_err(InstanceError::Engine)?;
        let _running = module.engine.runs_guest();
        let (lent, output) =
            (Arc::new(Lent::default()), Arc::new(Output::new(&consumer.consumer, module.short_digest())));
        output.begin(None, consumer.limits.output);
        let mut store = Store::new(module.engine.wasmtime(), State::new(consumer, &lent, &output));
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(usize::try_from(consumer.limits.host_call).unwrap_or(usize::MAX));
        store.set_max_component_handles(MAX_HANDLES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let limit = consumer.limits.time;
        let instance = match tokio::time::timeout(limit, module.pre.instantiate_async(&mut store)).await {
            Ok(Ok(instance)) => instance,
            Ok(Err(error)) => return Err(not_started(&error, &mut store, consumer, &output)),
            Err(_) => return Err(InstanceError::Start(still_starting(limit, output.finish()))),
        };
        let contract = |error: wasmtime::Error| InstanceError::Contract(format!("{error:#}"));
        let handle = instance.get_typed_func(&mut store, module.handle).map_err(contract)?;
        let compensate = match &module.compensate {
            Some(index) => Some(instance.get_typed_func(&mut store, *index).map_err(contract)?),
            None => None,
        };
        let (module, consumer) = (Arc::clone(module), Arc::clone(consumer));
        let (calls, initial_memory) = (0, store.data().memory.used());
        Ok(Self(Box::new(Inner {
            module,
            consumer,
            store,
            handle,
            compensate,
            lent,
            output,
            calls,
            in_guest: Duration::ZERO,
            initial_memory,
            _permit: permit,
        })))
    }

    /// The module that it is a copy of.
    pub fn module(&self) -> &Arc<Module> {
        &self.0.module
    }

    /// Linear memory in bytes.
    pub fn memory(&self) -> u64 {
        self.0.store.data().memory.used()
    }

    /// Makes one attempt on the lane's connection, in the transaction that is open there.
    ///
    /// It always ends about as soon as the time limit: whatever the guest does, whatever the database does. Dropping the
    /// future drops the instance, and stops a running statement at the server.
    pub async fn call(self, call: Call, line: impl Into<Line>) -> Finished {
        let span = attempt_span(&self.0.module, &self.0.consumer, &call);
        self.attempt(call, line.into()).instrument(span).await
    }

    async fn attempt(mut self, call: Call, line: Line) -> Finished {
        let started = Instant::now();
        let inner = &mut *self.0;
        let mut limit = call.time_limit.min(inner.consumer.limits.time);
        if sabotage::broken(Breach::Endless) {
            limit = Duration::from_secs(86_400);
        }
        inner.begin(&call, line, started + limit).await;
        let (ending, ping) = inner.run(&call, limit).await;
        let in_guest = std::mem::take(&mut inner.in_guest);
        let spent = matches!(ending, Ending::Stopped(_)) || inner.is_worn();
        let sql = inner.store.data_mut().sql.finish();
        let outbox = inner.store.data_mut().outbox.finish();
        inner.store.data_mut().context.finish();
        let (lent, module) = (Arc::clone(&inner.lent), inner.module.digest);
        // The guest's memory goes before the wait for the database.
        let instance = (!spent).then_some(self);
        let (connection, ahead) = parts(lent.take_back().await);
        let ending = match ending {
            Ending::Stopped(failure) if lent.waited() => Ending::Waiting(failure.message),
            ending => ending,
        };
        let verdict = match judge(ending, sql.failure, ping) {
            // Whatever became of the connection, the transaction went with it.
            Verdict::Ok if connection.is_none() => Verdict::Infrastructure(gone()),
            verdict => verdict,
        };
        let outbox = if verdict == Verdict::Ok { outbox } else { Vec::new() };
        let elapsed = started.elapsed();
        Finished { verdict, outbox, connection, ahead, touched_sql: sql.touched, instance, module, elapsed, in_guest }
    }
}

impl Inner {
    async fn begin(&mut self, call: &Call, line: Line, deadline: Instant) {
        self.calls = self.calls.saturating_add(1);
        self.output.begin(Some(call), self.consumer.limits.output);
        self.lent.lend(line).await;
        let state = self.store.data_mut();
        state.context.begin(call.clone(), deadline);
        state.sql.begin();
        state.outbox.begin(call.clone());
        state.memory.take_refused();
        self.store.set_epoch_deadline(1);
    }

    /// Runs the guest, with a pinging timer beside it. Returns how it ended, and the error of the ping that failed.
    async fn run(&mut self, call: &Call, limit: Duration) -> (Ending, Option<DbError>) {
        let (lent, every) = (Arc::clone(&self.lent), self.consumer.ping_every);
        let (ended, ping_error) = lent.beside(every, within(limit, self.invoke(call))).await;
        let in_statement = lent.is_busy();
        let stderr = self.output.finish();
        let refused = self.store.data_mut().memory.take_refused();
        let ending = match ended {
            Ok(Ok(result)) => Ending::Returned(result.map_err(convert::failure)),
            Ok(Err(error)) => {
                let memory = MemoryState { refused, limit: self.consumer.limits.memory };
                Ending::Stopped(trapped(&error, memory, stderr))
            }
            Err(_) => Ending::Stopped(timed_out(limit, in_statement, stderr)),
        };
        (ending, ping_error)
    }

    async fn invoke(&mut self, call: &Call) -> wasmtime::Result<Result<(), types::Failure>> {
        let message = convert::message(call);
        let _running = self.module.engine.runs_guest();
        let began = Instant::now();
        let (result,) = match (&call.phase, &self.compensate) {
            (Phase::Handle, _) => self.handle.call_async(&mut self.store, (message,)).await?,
            (Phase::Compensate(death), Some(compensate)) => {
                compensate.call_async(&mut self.store, (message, convert::death(death))).await?
            }
            (Phase::Compensate(_), None) => (Err(no_compensation()),),
        };
        self.in_guest = began.elapsed().saturating_sub(self.store.data().sql.took());
        Ok(result)
    }

    /// Whether it has served long enough.
    fn is_worn(&self) -> bool {
        match self.consumer.reuse {
            Some(reuse) => {
                let growth = self.store.data().memory.used().saturating_sub(self.initial_memory);
                self.calls >= reuse.calls || growth > reuse.growth
            }
            None => true,
        }
    }
}

/// A swap may have brought a module that cannot compensate any more, after the message was parked for it.
fn no_compensation() -> types::Failure {
    types::Failure {
        advice: types::Advice::ByPolicy,
        code: Some("no-compensation".to_owned()),
        message: "the current module does not export compensation; the one that handled this message did".to_owned(),
        detail: None,
    }
}

fn not_started(
    error: &wasmtime::Error,
    store: &mut Store<State>,
    consumer: &ConsumerContext,
    output: &Output,
) -> InstanceError {
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        // The semaphore is sized so that this does not happen; if it does, it is the host's fault.
        return InstanceError::Engine(EngineError::Setting(format!("the pool of instances is too small: {error:#}")));
    }
    let memory = MemoryState { refused: store.data_mut().memory.take_refused(), limit: consumer.limits.memory };
    InstanceError::Start(trapped(error, memory, output.finish()))
}

/// What everything that is logged inside of an attempt carries. Where nobody listens at this level it costs a look at it.
fn attempt_span(module: &Module, consumer: &ConsumerContext, call: &Call) -> Span {
    tracing::debug_span!(
        "attempt",
        consumer = %consumer.consumer,
        message_id = %call.id,
        attempt = call.attempt,
        module = %module.short_digest(),
    )
}

/// What is left of an attempt without an instance.
fn not_run(module: &Module, verdict: Verdict, line: Option<Line>, started: Instant) -> Finished {
    let (connection, ahead) = parts(line);
    Finished {
        verdict,
        outbox: Vec::new(),
        connection,
        ahead,
        touched_sql: false,
        instance: None,
        module: module.digest,
        elapsed: started.elapsed(),
        in_guest: Duration::ZERO,
    }
}

/// A lost connection takes with it what ran ahead on it.
fn parts(line: Option<Line>) -> (Option<Box<dyn Connection>>, Ahead) {
    line.map_or_else(Default::default, |line| (Some(line.connection), line.ahead))
}

impl InstanceError {
    /// What this means for the message that was to be handled.
    pub fn into_verdict(self) -> Verdict {
        match self {
            Self::Engine(error) => Verdict::Infrastructure(DbError::infrastructure(error.to_string())),
            Self::Contract(reason) => Verdict::Failed(host_failure("trap", reason, None)),
            Self::Start(failure) => Verdict::Failed(Failure {
                advice: Advice::ByPolicy,
                message: format!("the module fails to start: {}", failure.message),
                ..failure
            }),
        }
    }
}
