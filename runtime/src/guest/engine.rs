//! The wasm engine that all consumers share: code generation, the pool of instances, the clock that interrupts guests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::{InstanceAllocationStrategy, PoolingAllocationConfig, WasmBacktraceDetails};

/// How often running guests look whether they should yield. The finer, the sooner others get the thread; each tick costs
/// running guests one trip through the scheduler.
const TICK: Duration = Duration::from_millis(10);

/// How often the ticker looks whether the engine is gone while no guest runs.
const IDLE: Duration = Duration::from_secs(5);

/// Native stack of guest code in bytes.
const WASM_STACK: usize = 1 << 20;
/// The whole stack that a call runs on: guest code, and the host functions that it calls.
const ASYNC_STACK: usize = 2 << 20;

/// Core instances in one component instance. A Python component has about 14, each of its native extensions adds one.
const CORE_INSTANCES: u32 = 32;
/// Linear memories in one component instance. Most have one; components composed of several bring one each.
const MEMORIES: u32 = 8;
/// Tables in one component instance, and their elements.
const TABLES: u32 = 32;
pub(crate) const TABLE_ELEMENTS: usize = 100_000;

/// How long a lane waits for a free place in the pool before it says that there are too few.
const PERMIT_WAIT: Duration = Duration::from_secs(30);

/// Sizes of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// Component instances alive at once: one for each lane, and a few for modules that are being checked.
    pub max_instances: u32,
    /// The largest linear memory that any consumer may allow, in bytes; at most 4 GiB.
    pub memory_per_instance: u64,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { max_instances: 64, memory_per_instance: 1 << 30 }
    }
}

/// Why no engine could be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A setting is out of range.
    #[error("{0}")]
    Setting(String),
    /// The pool's address space could not be reserved, or this machine is not supported.
    #[error(
        "the wasm engine cannot start with {instances} instances: {reason}; \
         allow fewer lanes, or more address space (`ulimit -v`)"
    )]
    Start {
        /// Instances asked for.
        instances: u32,
        /// The engine's words.
        reason: String,
    },
    /// Every place in the pool was taken for a long time.
    #[error("all {0} component instances have been in use for {PERMIT_WAIT:?}; raise the engine's number of instances")]
    Busy(u32),
}

/// The engine. Cheap to clone; the ticker thread ends with the last clone and the last module.
#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
    permits: Arc<Semaphore>,
    settings: EngineSettings,
    ticker: Arc<Ticker>,
}

impl Engine {
    /// Reserves the pool and starts the ticker.
    pub fn new(settings: EngineSettings) -> Result<Self, EngineError> {
        if settings.max_instances == 0 || settings.max_instances > 10_000 {
            return Err(EngineError::Setting(format!(
                "the engine can hold 1 to 10000 instances, not {}",
                settings.max_instances
            )));
        }
        let memory = usize::try_from(settings.memory_per_instance).ok().filter(|&bytes| (1..=4 << 30).contains(&bytes));
        let Some(memory) = memory else {
            return Err(EngineError::Setting(format!(
                "an instance can have 1 byte to 4 GiB of memory, not {} bytes",
                settings.memory_per_instance
            )));
        };
        let mut config = code_config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(settings.max_instances, memory)));
        let inner = wasmtime::Engine::new(&config)
            .map_err(|error| EngineError::Start { instances: settings.max_instances, reason: format!("{error:#}") })?;
        let ticker = Ticker::start(&inner)
            .map_err(|error| EngineError::Start { instances: settings.max_instances, reason: error.to_string() })?;
        let permits = Arc::new(Semaphore::new(settings.max_instances as usize));
        Ok(Self { inner, permits, settings, ticker: Arc::new(ticker) })
    }

    /// Waits for a place in the pool, up to a limit.
    pub(crate) async fn permit(&self) -> Result<OwnedSemaphorePermit, EngineError> {
        match tokio::time::timeout(PERMIT_WAIT, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // Nobody closes the semaphore; were it closed, there would be no free place either.
            Ok(Err(_)) | Err(_) => Err(EngineError::Busy(self.settings.max_instances)),
        }
    }

    /// Guest code runs until this is dropped: it is interrupted now and then meanwhile. Without it nothing would stop it.
    pub(crate) fn runs_guest(&self) -> Running {
        if self.ticker.running.fetch_add(1, Ordering::AcqRel) == 0 {
            self.ticker.thread.unpark();
        }
        Running(Arc::clone(&self.ticker))
    }

    /// The settings it was made with.
    pub fn settings(&self) -> EngineSettings {
        self.settings
    }

    /// Component instances alive now.
    #[cfg(test)]
    fn instances_in_use(&self) -> usize {
        self.settings.max_instances as usize - self.permits.available_permits()
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner
    }
}

/// Everything that generated code depends on. The child that compiles and the host that runs must agree in each of these,
/// so both take them from here.
pub(crate) fn code_config() -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .consume_fuel(false)
        .parallel_compilation(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Enable)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(ASYNC_STACK);
    config
}

fn pool(instances: u32, memory: usize) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances * CORE_INSTANCES)
        .max_core_instances_per_component(CORE_INSTANCES)
        .total_memories(instances * MEMORIES)
        .max_memories_per_component(MEMORIES)
        .max_memory_size(memory)
        .total_tables(instances * TABLES)
        .max_tables_per_component(TABLES)
        .table_elements(TABLE_ELEMENTS)
        .max_component_instance_size(8 << 20)
        .total_stacks(instances)
        // What a fresh instance touches is cleared by hand; giving it back to the system costs page faults each time.
        .linear_memory_keep_resident(512 << 10)
        .table_keep_resident(64 << 10);
    pool
}

/// Advances the epoch while guests run, and sleeps while none does.
struct Ticker {
    running: Arc<AtomicUsize>,
    thread: Thread,
}

/// Some guest code runs.
pub(crate) struct Running(Arc<Ticker>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Ticker {
    /// It ends with the engine.
    fn start(engine: &wasmtime::Engine) -> std::io::Result<Self> {
        let (engine, running) = (engine.weak(), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&running);
        let thread = std::thread::Builder::new().name("hapax-epoch".to_owned()).spawn(move || {
            while let Some(engine) = engine.upgrade() {
                engine.increment_epoch();
                drop(engine);
                if seen.load(Ordering::Acquire) == 0 {
                    std::thread::park_timeout(IDLE);
                }
                std::thread::sleep(TICK);
            }
        })?;
        Ok(Self { running, thread: thread.thread().clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_in_words() {
        let refused = |settings| Engine::new(settings).err().unwrap().to_string();
        assert!(refused(EngineSettings { max_instances: 0, ..Default::default() }).contains("1 to 10000 instances"));
        assert!(refused(EngineSettings { memory_per_instance: 5 << 30, ..Default::default() }).contains("4 GiB"));
    }

    #[tokio::test]
    async fn a_permit_is_given_back_when_dropped() {
        let engine = Engine::new(EngineSettings { max_instances: 1, ..Default::default() }).unwrap();
        let permit = engine.permit().await.unwrap();
        assert_eq!(engine.instances_in_use(), 1);
        drop(permit);
        assert_eq!(engine.instances_in_use(), 0);
    }
}
