//! What a user can choose, and what each choice comes to: lanes, batches and prefetch, and the latency that is left at a
//! load. For those who read SIZING.md beside the results.

pub(crate) mod batches;
pub(crate) mod load;
pub(crate) mod prefetch;

use anyhow::{Context as _, Result};

use crate::drain;
use crate::extra::Run;
use crate::report::Row;
use crate::variant::{Hapax, Program, Variant, named, names};

/// The figures of a drain.
pub(crate) const RATE: &str = "msg/s";
const CPU: &str = "CPU µs/msg";
const MEMORY: &str = "MiB";

/// Hapax on Postgres, set up like that.
fn variant(name: &str, hapax: Hapax) -> Result<Variant> {
    Ok(Variant { name: name.to_owned(), program: Program::Hapax(hapax), ..named(names::HAPAX)? })
}

/// One drain of the plain workload.
async fn drained(run: &Run<'_>, name: String, hapax: Hapax, messages: u64) -> Result<Row> {
    let variant = variant(&name, hapax)?;
    let found = drain::drain(run.stage, &variant, messages, run.programs).await.with_context(|| name.clone())?;
    let mib = found.memory as f64 / f64::from(1 << 20);
    eprintln!("  {:8.0} msg/s  {name}", found.rate);
    Ok(Row::new(name, vec![(RATE, found.rate), (CPU, found.cpu.total()), (MEMORY, mib)]))
}
