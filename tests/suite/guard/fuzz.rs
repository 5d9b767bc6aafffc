//! Statements that nobody has thought of: whatever the guard lets through is run, on a database in this process.

use std::sync::{LazyLock, Mutex, PoisonError};

use hapax::guest::sql_guard::Guard;
use hapax::ledger::database::Dialect;
use tokio::runtime::{Builder, Runtime};

use crate::bench::Bench;
use crate::guard;
use crate::hostile::probe;

/// What statements are tried on.
struct Range {
    runtime: Runtime,
    others: [Guard; 2],
    guard: Guard,
    bench: Mutex<Bench>,
    before: String,
}

static RANGE: LazyLock<Range> = LazyLock::new(|| {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime starts");
    let mut bench = runtime.block_on(Bench::open(Dialect::Sqlite)).expect("a database opens");
    let before = runtime.block_on(bench.surroundings()).expect("there is something around");
    let others = [Dialect::Postgres, Dialect::MySql].map(guard);
    Range { runtime, others, guard: guard(Dialect::Sqlite), bench: Mutex::new(bench), before }
});

/// Whatever a text is, it is refused in words, or moves nothing of the host's.
#[test]
fn any_text_is_refused_or_moves_nothing() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Range { runtime, others, guard, bench, before } = &*RANGE;
        let sql = String::from_utf8_lossy(bytes);
        for other in others {
            let _ = other.check(&sql);
        }
        if let Ok(checked) = guard.check(&sql) {
            let mut bench = bench.lock().unwrap_or_else(PoisonError::into_inner);
            let probed = runtime.block_on(probe(&mut bench, before, &sql, &checked));
            assert!(probed.is_ok(), "{sql}: {probed:?}");
        }
    });
}
