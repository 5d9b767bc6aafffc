//! Every variant, in the order in which a round runs them.

use anyhow::{Context as _, Result};

use super::{Handler, Hapax, Language, Program, Remembered, Scene, Variant};
use crate::stage::Database;
use crate::workload::Shape;

/// Names that more than the list knows: what is compared with what.
pub(crate) mod names {
    /// Takes messages and does nothing with them: as fast as it can get.
    pub(crate) const CEILING: &str = "bare consumer, one ack a batch";
    /// The same without batched acknowledgements.
    pub(crate) const EACH_ACK: &str = "bare consumer, each ack awaited";
    /// The baseline of most ratios.
    pub(crate) const CLASSIC: &str = "classic recipe, Rust, Postgres";
    pub(crate) const CLASSIC_MARIADB: &str = "classic recipe, Rust, MariaDB";
    pub(crate) const CLASSIC_SQLITE: &str = "classic recipe, Rust, SQLite";
    pub(crate) const CLASSIC_NODE: &str = "classic recipe, Node";
    pub(crate) const CLASSIC_PYTHON: &str = "classic recipe, Python";
    pub(crate) const CLASSIC_HOT: &str = "classic recipe, hot row";
    pub(crate) const CLASSIC_FEW_GOODS: &str = "classic recipe, 100 goods";
    pub(crate) const LOOK_UP: &str = "one look-up a message, 100 % duplicates";
    pub(crate) const HAPAX: &str = "Hapax, Postgres";
    pub(crate) const HAPAX_QUORUM: &str = "Hapax, Postgres, quorum queue";
    pub(crate) const HAPAX_ONE_LANE: &str = "Hapax, Postgres, one lane, batches of 512";
    pub(crate) const HAPAX_HOT: &str = "Hapax, Postgres, hot row, one lane, batches of 512";
    pub(crate) const HAPAX_FEW_GOODS: &str = "Hapax, Postgres, 100 goods, 4 lanes without partitions";
    pub(crate) const HAPAX_TWO_HOSTS: &str = "Hapax, Postgres, two hosts";
    pub(crate) const HAPAX_TOLD: &str = "Hapax, Postgres, one outbox message an order";
    pub(crate) const HAPAX_FAILING_1: &str = "Hapax, Postgres, 1 % of first attempts fail";
    pub(crate) const HAPAX_FAILING_20: &str = "Hapax, Postgres, 20 % of first attempts fail";
    pub(crate) const HAPAX_COLD: &str = "Hapax, Postgres, 100 % duplicates, handled by another process";
    pub(crate) const HAPAX_WARM: &str = "Hapax, Postgres, 100 % duplicates, handled by the same process";
    pub(crate) const HAPAX_PYTHON: &str = "Hapax, Postgres, Python handler";
    pub(crate) const HAPAX_TYPESCRIPT: &str = "Hapax, Postgres, TypeScript handler";
    pub(crate) const HAPAX_MARIADB: &str = "Hapax, MariaDB";
    pub(crate) const HAPAX_SQLITE: &str = "Hapax, SQLite, batches of 512";
}

/// How many workers the hand-written programs are tried with; with `quick`, those that have always been the best.
const WORKERS: [u16; 4] = [8, 16, 32, 64];
const WORKERS_QUICK: [u16; 2] = [16, 32];

/// Every variant. `quick` leaves out numbers of workers that are not the best.
pub(crate) fn all(quick: bool) -> Vec<Variant> {
    let mut variants = vec![
        Variant::new(names::CEILING, Program::Bare { each: false }, Database::None, Shape::PLAIN),
        Variant::new(names::EACH_ACK, Program::Bare { each: true }, Database::None, Shape::PLAIN),
    ];
    variants.extend(by_hand(quick));
    variants.extend(in_other_languages(quick));
    variants.extend(hapax());
    variants
}

/// The variant of that name.
///
/// # Errors
/// When there is none.
pub(crate) fn named(name: &str) -> Result<Variant> {
    let found = all(false).into_iter().find(|variant| variant.name == name);
    found.with_context(|| format!("no variant is called {name:?}"))
}

/// What people write, in Rust.
fn by_hand(quick: bool) -> Vec<Variant> {
    use Database as D;
    let workers = if quick { &WORKERS_QUICK[..] } else { &WORKERS[..] };
    // One writer a file: more workers than a few only wait.
    let few = &WORKERS[..1];
    let mut variants = Vec::new();
    for (group, database, workers) in [
        (names::CLASSIC, D::Postgres, workers),
        (names::CLASSIC_MARIADB, D::MariaDb, workers),
        (names::CLASSIC_SQLITE, D::Sqlite, few),
    ] {
        variants.extend(workers.iter().map(|&workers| {
            let name = format!("{group}, {workers} workers");
            Variant::new(name, Program::Classic { workers }, database, Shape::PLAIN).in_group(group)
        }));
    }
    for (name, shape) in [(names::CLASSIC_HOT, Shape::HOT), (names::CLASSIC_FEW_GOODS, Shape::FEW_GOODS)] {
        variants.push(Variant::new(name, Program::Classic { workers: 32 }, D::Postgres, shape));
    }
    variants.extend(workers.iter().map(|&workers| {
        let name = format!("{}, {workers} workers", names::LOOK_UP);
        let variant = Variant::new(name, Program::LookUp { workers }, D::Postgres, Shape::PLAIN);
        variant.in_group(names::LOOK_UP).repeats(Remembered::InTable)
    }));
    variants
}

/// What people write, in other languages.
fn in_other_languages(quick: bool) -> Vec<Variant> {
    let (one, two) = (WORKERS.map(|workers| (workers, 1)), [(32, 2)]);
    let crews = if quick { vec![(32, 1)] } else { [&one[..], &two[..]].concat() };
    let mut variants = Vec::new();
    for (group, language) in [(names::CLASSIC_NODE, Language::Node), (names::CLASSIC_PYTHON, Language::Python)] {
        variants.extend(crews.iter().map(|&(workers, processes)| {
            let plural = if processes == 1 { String::new() } else { format!(" in {processes} processes") };
            let name = format!("{group}, {workers} workers{plural}");
            let program = Program::Script { language, workers, processes };
            Variant::new(name, program, Database::Postgres, Shape::PLAIN).in_group(group)
        }));
    }
    variants
}

fn hapax() -> Vec<Variant> {
    let postgres = |name, hapax, shape| Variant::new(name, Program::Hapax(hapax), Database::Postgres, shape);
    let (usual, one_lane, plain) = (Hapax::USUAL, Hapax::ONE_LANE, Shape::PLAIN);
    let handler = |handler| Hapax { handler, ..usual.clone() };
    vec![
        postgres(names::HAPAX, usual.clone(), plain),
        postgres(names::HAPAX_QUORUM, usual.clone(), plain).on_quorum_queue(),
        postgres("Hapax, Postgres, local lock", Hapax { redis: false, ..usual.clone() }, plain),
        postgres("Hapax, Postgres, every answer awaited", Hapax { ahead: false, ..usual.clone() }, plain),
        postgres("Hapax, Postgres, batches of 256", Hapax { batch: 256, ..usual.clone() }, plain),
        postgres(names::HAPAX_ONE_LANE, one_lane.clone(), plain),
        postgres(names::HAPAX_HOT, one_lane.clone(), Shape::HOT),
        postgres(names::HAPAX_FEW_GOODS, Hapax { partitioned: false, ..usual.clone() }, Shape::FEW_GOODS),
        postgres(names::HAPAX_TWO_HOSTS, Hapax { hosts: 2, ..usual.clone() }, plain),
        postgres("Hapax, Postgres, 50 % duplicates", usual.clone(), Shape::HALF_DUPLICATES),
        postgres(names::HAPAX_COLD, usual.clone(), plain).repeats(Remembered::ByAnother),
        postgres(names::HAPAX_WARM, usual.clone(), plain).repeats(Remembered::ByItself),
        postgres(names::HAPAX_FAILING_1, usual.clone(), Shape::failing(1)),
        postgres(names::HAPAX_FAILING_20, usual.clone(), Shape::failing(20)),
        postgres(names::HAPAX_TOLD, usual.clone(), Shape::TOLD),
        postgres(names::HAPAX_PYTHON, handler(Handler::Python), plain),
        postgres(names::HAPAX_TYPESCRIPT, handler(Handler::TypeScript), plain),
        Variant::new(names::HAPAX_MARIADB, Program::Hapax(usual.clone()), Database::MariaDb, plain),
        // Locks in Redis are for several processes, and a file has one.
        Variant::new(names::HAPAX_SQLITE, Program::Hapax(Hapax { redis: false, ..one_lane }), Database::Sqlite, plain),
    ]
}

impl Variant {
    fn in_group(self, group: &'static str) -> Self {
        Self { group: Some(group), ..self }
    }

    fn on_quorum_queue(self) -> Self {
        Self { quorum: true, ..self }
    }

    fn repeats(self, remembered: Remembered) -> Self {
        Self { scene: Scene::Repeats(remembered), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_a_name_of_its_own_and_a_quick_run_has_every_line() {
        let (full, quick) = (all(false), all(true));
        let names: std::collections::HashSet<_> = full.iter().map(|variant| &variant.name).collect();
        assert_eq!(names.len(), full.len());
        let lines = |variants: &[Variant]| {
            let mut lines: Vec<String> = variants.iter().map(|variant| variant.line().to_owned()).collect();
            lines.dedup();
            lines
        };
        assert_eq!(lines(&full), lines(&quick));
        assert!(quick.len() < full.len());
    }
}
