//! What is measured: each variant by the name that stands in the table.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, Result};
use hapax_tests::proc::{Launch, Process};
use serde::Serialize;

use crate::stage::{Database, Place};
use crate::worker::QUEUE;
use crate::workload::Shape;

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) database: Database,
    pub(crate) shape: Shape,
    pub(crate) quorum: bool,
    /// The group of variants of which the best counts: the classic recipe, at its best number of workers.
    pub(crate) group: Option<&'static str>,
}

/// What drains the queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum Program {
    /// A bare consumer; `each` waits for each acknowledgement.
    Bare { each: bool },
    /// The classic recipe in Rust.
    Classic { workers: u16 },
    /// The released binary, as a user runs it.
    Hapax { lanes: u16, batch: u16, redis: bool },
}

/// How many workers the classic recipe is tried with.
const WORKERS: [u16; 4] = [8, 16, 32, 64];

/// Every variant, in the order in which a round runs them.
pub(crate) fn all() -> Vec<Variant> {
    use Database as D;
    let hapax = |lanes, redis| Program::Hapax { lanes, batch: 64, redis };
    let mut variants = vec![
        Variant::new("bare consumer, one ack a batch", Program::Bare { each: false }, D::None, Shape::PLAIN),
        Variant::new("bare consumer, each ack awaited", Program::Bare { each: true }, D::None, Shape::PLAIN),
    ];
    for (group, database) in [
        ("classic recipe, Rust, Postgres", D::Postgres),
        ("classic recipe, Rust, MariaDB", D::MariaDb),
        ("classic recipe, Rust, SQLite", D::Sqlite),
    ] {
        // One writer a file: more workers than a few only wait.
        let workers = if database == D::Sqlite { &WORKERS[..1] } else { &WORKERS[..] };
        for &workers in workers {
            let name = format!("{group}, {workers} workers");
            let variant = Variant::new(&name, Program::Classic { workers }, database, Shape::PLAIN);
            variants.push(Variant { group: Some(group), ..variant });
        }
    }
    let hot = Variant::new("classic recipe, hot row", Program::Classic { workers: 32 }, D::Postgres, Shape::HOT);
    let half = Shape::HALF_DUPLICATES;
    variants.extend([
        hot,
        Variant::new("Hapax, Postgres", hapax(4, true), D::Postgres, Shape::PLAIN),
        Variant {
            quorum: true,
            ..Variant::new("Hapax, Postgres, quorum queue", hapax(4, true), D::Postgres, Shape::PLAIN)
        },
        Variant::new("Hapax, Postgres, local lock", hapax(4, false), D::Postgres, Shape::PLAIN),
        Variant::new("Hapax, Postgres, one lane", hapax(1, true), D::Postgres, Shape::PLAIN),
        Variant::new("Hapax, Postgres, hot row", hapax(1, true), D::Postgres, Shape::HOT),
        Variant::new("Hapax, Postgres, 50 % duplicates", hapax(4, true), D::Postgres, half),
        Variant::new("Hapax, MariaDB", hapax(4, true), D::MariaDb, Shape::PLAIN),
        Variant::new("Hapax, SQLite", hapax(1, false), D::Sqlite, Shape::PLAIN),
    ]);
    variants
}

impl Variant {
    fn new(name: &str, program: Program, database: Database, shape: Shape) -> Self {
        Self { name: name.to_owned(), program, database, shape, quorum: false, group: None }
    }

    /// Starts it on a place.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&self, place: &Place, module: &Path) -> Result<Process> {
        match &self.program {
            Program::Hapax { lanes, batch, redis } => {
                let config = place.folder.path().join("hapax.toml");
                std::fs::write(&config, hapax_toml(place, module, *lanes, *batch, *redis))?;
                Launch::hapax(["run".into(), "-c".into(), config.into_os_string()]).name(&self.name).start()
            }
            worker => {
                let exe = std::env::current_exe().context("finding this program's own path")?;
                Launch::program(exe, worker_args(worker, place)).name(&self.name).start()
            }
        }
    }
}

/// Where a bare consumer says how far it is.
pub(crate) fn counter_file(place: &Place) -> std::path::PathBuf {
    place.folder.path().join("counter")
}

fn worker_args(program: &Program, place: &Place) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["worker".into(), "--amqp".into(), place.vhost.url().into()];
    match program {
        Program::Bare { each } => {
            args.extend(["--counter".into(), counter_file(place).into_os_string()]);
            args.push(if *each { "bare-each".into() } else { "bare-batch".into() });
        }
        Program::Classic { workers } => {
            args.extend(["--redis".into(), place.locks.url().into(), "--database".into(), (&place.database).into()]);
            args.extend(["--workers".into(), workers.to_string().into(), "classic".into()]);
        }
        Program::Hapax { .. } => {}
    }
    args
}

/// What a user would write, and nothing else.
fn hapax_toml(place: &Place, module: &Path, lanes: u16, batch: u16, redis: bool) -> String {
    // Strings of JSON are strings of TOML too.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let lock = if redis { place.locks.url() } else { "local:" };
    let partition = if lanes > 1 { "partition_by = \"json:/goods_id\"\n" } else { "" };
    format!(
        r#"[broker]
url = {}
[lock]
url = {}
[database]
url = {}
[log]
level = "warn"
[consumers.reduce-stock]
queue = "{QUEUE}"
module = {}
concurrency = {lanes}
{partition}batch = {{ max_messages = {batch} }}
grants = {{ tables = {{ stock = ["select", "update"] }} }}
"#,
        quoted(place.vhost.url()),
        quoted(lock),
        quoted(&place.database),
        quoted(&module.to_string_lossy()),
    )
}
