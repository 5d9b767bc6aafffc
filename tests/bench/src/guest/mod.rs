//! The guest alone, by the host's own code: what a call costs in CPU time when the database answers at once. No
//! throughput: a bound on what a faster engine for guests could save.

mod memory_sql;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use hapax::guest::cache::ModuleCache;
use hapax::guest::compile::Compiler;
use hapax::guest::engine::{Engine, EngineSettings};
use hapax::guest::grants::{ConsumerContext, Grants, Limits, Reuse};
use hapax::guest::instance::Instance;
use hapax::guest::module::Module;
use hapax::guest::sql_guard::{TableGrants, Verb};
use hapax::guest::{Call, Phase, Verdict};
use hapax::ledger::database::{Connection, Dialect};
use hapax::message::{Message, MessageId, Properties};
use rustix::time::{ClockId, clock_gettime};

use crate::extra::Run;
use crate::fleet::CONSUMER;
use crate::report::{Row, Section};
use crate::stats::median;
use crate::variant::Handler;
use crate::worker::QUEUE;
use crate::workload::{Order, Shape, orders};
use hapax_tests::usage::resident_memory;
use memory_sql::MemorySql;

/// The row that the targets are about, and its figure.
pub(crate) const RUST: &str = "Rust";
pub(crate) const IN_GUEST: &str = "of it in the guest µs";

/// Calls of a batch, and batches of which the median counts. A fresh instance is dearer by orders of magnitude.
const REUSED_CALLS: u32 = 5_000;
const FRESH_CALLS: u32 = 200;
const BATCHES: u32 = 5;

/// Instances that memory is divided by.
const INSTANCES: u64 = 32;

/// Measures every handler that was built.
///
/// # Errors
/// When a module does not load, or a call does not succeed.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    let mut rows = Vec::new();
    let languages = [(RUST, Handler::Rust), ("Python", Handler::Python), ("TypeScript", Handler::TypeScript)];
    for (name, handler) in languages {
        // The first is always there; without the toolchains of the others, their drains are left out too.
        let Ok(module) = run.programs.module(handler) else { continue };
        rows.push(Row::new(name, on_a_thread(&module, Limits::default()).await?));
        if handler == Handler::Rust {
            rows.push(Row::new("Rust, limits out of reach", on_a_thread(&module, out_of_reach()).await?));
        }
    }
    Ok(Section {
        title,
        legend: format!(
            "CPU time of the calling thread, by the host's own code, on a connection in memory that answers at once; \
             medians of {BATCHES} batches. A call is one order: message in, one UPDATE through the guard, verdict out; of it \
             in the guest is what is left without the host's work on the statement, wasm boundary included (wall-clock). \
             Compiling (in a child) and loading (from the cache, with the link check and the first start) are \
             wall-clock. Memory is resident memory divided by {INSTANCES} instances that have made one call each. \
             Interruption by epochs and the memory limit are always on; there is no fuel."
        ),
        rows,
    })
}

/// Nothing that the config can limit is limited.
fn out_of_reach() -> Limits {
    let (memory, most) = (1 << 30, 1 << 40);
    Limits {
        memory,
        time: Duration::from_secs(86_400),
        host_call: most,
        sql_statements: u32::MAX,
        sql_text: 1 << 20,
        sql_rows: most,
        sql_bytes: most,
        sql_rows_affected: most,
        sql_time: Duration::from_secs(86_400),
        outbox_messages: u32::MAX,
        outbox_bytes: most,
        output: most,
    }
}

type Figures = Vec<(&'static str, f64)>;

/// On a thread of its own, whose CPU time is then that of the calls.
async fn on_a_thread(module: &Path, limits: Limits) -> Result<Figures> {
    let module = module.to_owned();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(alone(&module, limits))
    };
    tokio::task::spawn_blocking(work).await.context("the measuring thread panicked")?
}

async fn alone(path: &Path, limits: Limits) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let engine = Engine::new(EngineSettings::default())?;
    let compiler = Compiler::Child(hapax_tests::proc::hapax_bin()?);
    let cache = ModuleCache::open(folder.path().join("cache"), compiler)?;
    let load = async || {
        let began = Instant::now();
        let module = Module::load(&engine, &cache, path, limits.memory).await?;
        anyhow::Ok((module, began.elapsed().as_secs_f64() * 1e3))
    };
    let (_, first_millis) = load().await?;
    let (module, load_millis) = load().await?;
    let bench = Bench { module, consumer: consumer(limits), order: orders(Shape::PLAIN, 1).0.remove(0) };
    let memory = bench.memory_of_an_instance().await?;
    let (start, fresh) = bench.fresh().await?;
    let (reused, in_guest) = bench.reused().await?;
    Ok(vec![
        ("reused call µs", reused),
        (IN_GUEST, in_guest),
        ("fresh call µs", fresh),
        ("of it start µs", start),
        ("compile ms", first_millis - load_millis),
        ("load ms", load_millis),
        ("KiB an instance", memory / 1024.0),
    ])
}

fn consumer(limits: Limits) -> Arc<ConsumerContext> {
    let tables = [("stock".to_owned(), [Verb::Select, Verb::Update].into())].into_iter().collect();
    let grants = Grants { tables: TableGrants(tables), ..Grants::default() };
    // Never worn: a fresh instance is measured apart.
    let reuse = Some(Reuse { calls: u32::MAX, growth: u64::MAX });
    let ping_every = Duration::from_secs(60);
    Arc::new(ConsumerContext::new(CONSUMER, QUEUE, Dialect::Postgres, grants, limits, reuse, ping_every))
}

struct Bench {
    module: Arc<Module>,
    consumer: Arc<ConsumerContext>,
    order: Order,
}

impl Bench {
    async fn instance(&self) -> Result<Instance> {
        Instance::new(&self.module, &self.consumer).await.map_err(|error| anyhow!("no instance: {error:?}"))
    }

    /// One call, and what is left of it.
    async fn call(&self, instance: Instance, call: Call, sql: Box<dyn Connection>) -> Result<Used> {
        let finished = instance.call(call, sql).await;
        if finished.verdict != Verdict::Ok {
            bail!("the handler did not succeed: {:?}", finished.verdict);
        }
        Ok(Used {
            instance: finished.instance.context("the instance was not kept")?,
            sql: finished.connection.context("the connection was not given back")?,
            in_guest: finished.in_guest,
        })
    }

    fn first_attempt(&self) -> Result<Call> {
        Ok(Call {
            phase: Phase::Handle,
            id: MessageId::new(self.order.id.as_str()).map_err(|error| anyhow!("{error:?}"))?,
            message: Arc::new(Message {
                exchange: String::new(),
                routing_key: QUEUE.to_owned(),
                properties: Properties { message_id: Some(self.order.id.clone()), ..Properties::default() },
                body: Bytes::from(self.order.body.clone()),
            }),
            attempt: 1,
            max_attempts: 5,
            generation: 0,
            compensations: 0,
            time_limit: Duration::from_secs(30),
        })
    }

    /// CPU time of a call of an instance that has served before, and how much of it is the guest's, in microseconds.
    async fn reused(&self) -> Result<(f64, f64)> {
        let call = self.first_attempt()?;
        let mut used = self.call(self.instance().await?, call.clone(), Box::new(MemorySql)).await?;
        let (mut calls, mut guests) = (Vec::new(), Vec::new());
        for _ in 0..=BATCHES {
            let (began, mut guest) = (cpu_micros(), Duration::ZERO);
            for _ in 0..REUSED_CALLS {
                used = self.call(used.instance, call.clone(), used.sql).await?;
                guest += used.in_guest;
            }
            calls.push((cpu_micros() - began) / f64::from(REUSED_CALLS));
            guests.push(guest.as_secs_f64() * 1e6 / f64::from(REUSED_CALLS));
        }
        // The first filled the caches.
        calls.remove(0);
        guests.remove(0);
        Ok((median(calls), median(guests)))
    }

    /// CPU time until an instance has started; and that of the start, a call and the end of it together, in
    /// microseconds.
    async fn fresh(&self) -> Result<(f64, f64)> {
        let call = self.first_attempt()?;
        let mut sql: Box<dyn Connection> = Box::new(MemorySql);
        let (mut starts, mut calls) = (Vec::new(), Vec::new());
        for _ in 0..BATCHES {
            let began = cpu_micros();
            let mut start = 0.0;
            for _ in 0..FRESH_CALLS {
                let starting = cpu_micros();
                let instance = self.instance().await?;
                start += cpu_micros() - starting;
                sql = self.call(instance, call.clone(), sql).await?.sql;
            }
            starts.push(start / f64::from(FRESH_CALLS));
            calls.push((cpu_micros() - began) / f64::from(FRESH_CALLS));
        }
        Ok((median(starts), median(calls)))
    }

    /// Resident memory of an instance that has made a call, in bytes. To be asked first: places in the pool that were
    /// used before keep some of their memory.
    async fn memory_of_an_instance(&self) -> Result<f64> {
        let call = self.first_attempt()?;
        // What all instances share.
        let first = self.call(self.instance().await?, call.clone(), Box::new(MemorySql)).await?;
        let before = resident_memory(std::process::id())?;
        let mut alive = Vec::new();
        for _ in 0..INSTANCES {
            alive.push(self.call(self.instance().await?, call.clone(), Box::new(MemorySql)).await?);
        }
        let after = resident_memory(std::process::id())?;
        drop((first, alive));
        Ok(after.saturating_sub(before) as f64 / INSTANCES as f64)
    }
}

/// What is left of a call.
struct Used {
    instance: Instance,
    sql: Box<dyn Connection>,
    /// Time in the guest's code and at its boundary.
    in_guest: Duration,
}

/// CPU time of this thread so far, in microseconds.
fn cpu_micros() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
