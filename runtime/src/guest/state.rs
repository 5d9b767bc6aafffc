//! What a guest's store holds: the host's side of one instance.

use std::sync::Arc;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::engine::TABLE_ELEMENTS;
use super::grants::ConsumerContext;
use super::host::context::ContextHost;
use super::host::outbox::OutboxHost;
use super::host::sql::SqlHost;
use super::lent::Lent;
use super::output::{Output, Stream};

/// The data of a store.
pub(crate) struct State {
    pub(crate) context: ContextHost,
    pub(crate) sql: SqlHost,
    pub(crate) outbox: OutboxHost,
    pub(crate) memory: MemoryLimiter,
    wasi: WasiCtx,
    resources: ResourceTable,
}

impl State {
    /// A guest sees clocks, random numbers, and its own output going to the log: no files, arguments, environment, input
    /// or network.
    pub(crate) fn new(consumer: &Arc<ConsumerContext>, lent: &Arc<Lent>, output: &Arc<Output>) -> Self {
        let wasi = WasiCtx::builder()
            .stdout(output.stream(Stream::Stdout))
            .stderr(output.stream(Stream::Stderr))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        Self {
            context: ContextHost::new(Arc::clone(consumer)),
            sql: SqlHost::new(Arc::clone(consumer), Arc::clone(lent)),
            outbox: OutboxHost::new(Arc::clone(consumer)),
            memory: MemoryLimiter::new(consumer.limits.memory),
            wasi,
            resources: ResourceTable::new(),
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.resources }
    }
}

/// Limits the linear memory of a store, all memories together, and remembers that it had to.
#[derive(Debug)]
pub(crate) struct MemoryLimiter {
    limit: usize,
    used: usize,
    last_growth: usize,
    refused: bool,
}

impl MemoryLimiter {
    fn new(limit: u64) -> Self {
        Self { limit: usize::try_from(limit).unwrap_or(usize::MAX), used: 0, last_growth: 0, refused: false }
    }

    /// Linear memory in bytes.
    pub(crate) fn used(&self) -> u64 {
        self.used as u64
    }

    /// Whether a growth was refused since the last time this was asked.
    pub(crate) fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }
}

impl wasmtime::ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current);
        let fits = self.used.checked_add(growth).is_some_and(|used| used <= self.limit);
        if !fits || maximum.is_some_and(|maximum| desired > maximum) {
            self.refused = true;
            return Ok(false);
        }
        self.used += growth;
        self.last_growth = growth;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refused = true;
        self.used = self.used.saturating_sub(std::mem::take(&mut self.last_growth));
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::ResourceLimiter as _;

    use super::*;

    #[test]
    fn all_memories_together_stay_below_the_limit() {
        let mut limiter = MemoryLimiter::new(100);
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(!limiter.memory_growing(0, 60, None).unwrap());
        assert!(limiter.memory_growing(0, 40, None).unwrap());
        assert!(limiter.take_refused());
        assert!(!limiter.take_refused());
        assert_eq!(limiter.used(), 100);
    }

    #[test]
    fn a_growth_that_the_system_refused_is_not_charged() {
        let mut limiter = MemoryLimiter::new(100);
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        limiter.memory_grow_failed(wasmtime::format_err!("no memory")).unwrap();
        assert_eq!(limiter.used(), 0);
    }
}
