//! What is measured: each variant by the name that stands in the table.

mod list;
mod setup;

use serde::Serialize;

use crate::stage::Database;
use crate::workload::Shape;

pub(crate) use list::{all, named, names};
pub(crate) use setup::{Consumer, hapax_toml};

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
    pub(crate) scene: Scene,
}

/// What drains the queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum Program {
    /// A bare consumer; `each` waits for each acknowledgement.
    Bare { each: bool },
    /// The classic recipe in Rust.
    Classic { workers: u16 },
    /// The classic recipe without its lock: for messages that were handled before, one SQL look-up each.
    LookUp { workers: u16 },
    /// The classic recipe in another language.
    Script { language: Language, workers: u16, processes: u16 },
    /// The released binary, as a user runs it.
    Hapax(Hapax),
}

/// Languages besides Rust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Language {
    Node,
    Python,
}

/// How Hapax is set up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Hapax {
    pub(crate) handler: Handler,
    /// Processes that consume the same queue.
    pub(crate) hosts: u16,
    /// `concurrency`.
    pub(crate) lanes: u16,
    /// `batch.max_messages`.
    pub(crate) batch: u16,
    /// Locks in Redis, or in the process's own memory.
    pub(crate) redis: bool,
    /// Spreads messages over lanes by the goods they are for.
    pub(crate) partitioned: bool,
    /// `batch.run_ahead`.
    pub(crate) ahead: bool,
    /// `prefetch.messages`, where it is not the default.
    pub(crate) prefetch: Option<u16>,
    /// `retention`, where it is not the default.
    pub(crate) retention: Option<&'static str>,
}

impl Hapax {
    /// Four lanes by the goods, batches of 64 and Redis.
    pub(crate) const USUAL: Self = Self {
        handler: Handler::Rust,
        hosts: 1,
        lanes: 4,
        batch: 64,
        redis: true,
        partitioned: true,
        ahead: true,
        prefetch: None,
        retention: None,
    };
    /// What a config that names nothing of it gets.
    pub(crate) const DEFAULT: Self = Self { lanes: 1, partitioned: false, ..Self::USUAL };
    /// One lane, and with it no partitions, and large batches: nothing else runs while it commits.
    pub(crate) const ONE_LANE: Self = Self { lanes: 1, partitioned: false, batch: 512, ..Self::USUAL };
}

/// What the handler is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Handler {
    Rust,
    Python,
    TypeScript,
}

/// How a variant is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Scene {
    /// A full queue is emptied.
    Drain,
    /// A full queue is emptied of messages that have all been handled before.
    Repeats(Remembered),
}

/// Where it is remembered that messages have been handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Remembered {
    /// In the database alone: another process has handled them.
    ByAnother,
    /// In the same process too, which has handled them just before.
    ByItself,
    /// In the flow table, where they were put by hand.
    InTable,
}

impl Variant {
    fn new(name: impl Into<String>, program: Program, database: Database, shape: Shape) -> Self {
        let name = name.into();
        Self { name, program, database, shape, quorum: false, group: None, scene: Scene::Drain }
    }

    /// The name of its line: that of its group, if it has one.
    pub(crate) fn line(&self) -> &str {
        self.group.unwrap_or(&self.name)
    }

    /// Is it Hapax that is measured?
    pub(crate) fn is_hapax(&self) -> bool {
        matches!(self.program, Program::Hapax(_))
    }

    /// Messages that a drain gets, of those of a run: where they take long, fewer give the same rate. What people write
    /// by hand is several times as slow as Hapax, and most of a round would be spent on it.
    pub(crate) fn messages(&self, all: u64, quick: bool) -> u64 {
        match &self.program {
            // Lanes that meet each other's locks are slow, and wait now and then for a second.
            Program::Hapax(hapax) if hapax.lanes > 1 && !hapax.partitioned => all / 4,
            Program::Classic { .. } | Program::Script { .. } if quick => all / 2,
            Program::Script { .. } => all / 8,
            Program::Classic { .. } => all / 4,
            Program::LookUp { .. } if !quick => all / 2,
            _ => all,
        }
    }
}
