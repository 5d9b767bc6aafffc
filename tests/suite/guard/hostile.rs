//! Hostile statements: refused, or run in a transaction that afterwards is still the same one, with all around it as
//! it was.

use hapax::guest::sql_guard::{Checked, Guard};
use hapax::ledger::database::Dialect;
use hapax_tests::TestResult;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::bench::Bench;
use crate::{ACCEPTED, REFUSED, corpus, guard};

/// Random statements per database.
const ROUNDS: usize = 10_000;

/// Runs what the guard made of `original`, and looks around.
pub(crate) async fn probe(bench: &mut Bench, before: &str, original: &str, checked: &Checked) -> TestResult<bool> {
    let ran = bench.run(checked).await.is_ok();
    if ran {
        let after = bench.surroundings().await?;
        assert_eq!(after, before, "{original}\n  sent as: {}", checked.sql);
    }
    let undone = bench.exec("ROLLBACK TO SAVEPOINT start").await;
    assert!(undone.is_ok(), "{original}\n  sent as: {}: {undone:?}", checked.sql);
    if !ran {
        let after = bench.surroundings().await?;
        assert_eq!(after, before, "{original}\n  sent as, and failed: {}", checked.sql);
        bench.exec("ROLLBACK TO SAVEPOINT start").await?;
    }
    Ok(ran)
}

/// Statements to take apart.
struct Material {
    good: Vec<&'static str>,
    bad: Vec<&'static str>,
}

impl Material {
    /// Mostly a good one, or the guard would refuse nearly all that comes out.
    fn statement(&self, random: &mut StdRng) -> Vec<&'static str> {
        let from = if random.random_ratio(3, 4) { &self.good } else { &self.bad };
        from.choose(random).map(|statement| statement.split(' ').collect()).unwrap_or_default()
    }

    /// A statement with words of it exchanged for words of others, or with a piece of another put into it.
    fn mutant(&self, random: &mut StdRng) -> String {
        let mut mutant = self.statement(random);
        for _ in 0..random.random_range(1..=2) {
            let other = self.statement(random);
            let from = random.random_range(0..other.len());
            let to = random.random_range(from + 1..=other.len().min(from + 5));
            let at = random.random_range(0..mutant.len());
            let removed = random.random_range(0..=2).min(mutant.len() - at);
            mutant.splice(at..at + removed, other[from..to].iter().copied());
        }
        mutant.join(" ")
    }
}

async fn attack(dialect: Dialect) -> TestResult {
    let guard: Guard = guard(dialect);
    let mut bench = Bench::open(dialect).await?;
    let before = bench.surroundings().await?;
    assert!(before.lines().count() >= 6, "{before}");

    let material = Material { good: corpus(ACCEPTED, dialect), bad: corpus(REFUSED, dialect) };
    let mut random = StdRng::seed_from_u64(20);
    let (mut passed, mut ran) = (0, 0);
    for round in 0..ROUNDS {
        let sql = match material.bad.get(round) {
            Some(sql) => (*sql).to_owned(),
            None => material.mutant(&mut random),
        };
        if let Ok(checked) = guard.check(&sql) {
            passed += 1;
            ran += usize::from(probe(&mut bench, &before, &sql, &checked).await?);
        }
    }
    println!("{dialect:?}: {ROUNDS} statements, {passed} passed the guard, {ran} of them ran");
    assert!(ran > 100, "only {ran} statements ran: the test lost its teeth");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_on_postgres_moves_nothing_of_the_hosts() -> TestResult {
    attack(Dialect::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_on_mariadb_moves_nothing_of_the_hosts() -> TestResult {
    attack(Dialect::MySql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_on_sqlite_moves_nothing_of_the_hosts() -> TestResult {
    attack(Dialect::Sqlite).await
}
