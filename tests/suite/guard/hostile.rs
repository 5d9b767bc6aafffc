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
const ROUNDS: usize = 6_000;

/// Runs what the guard made of `original`, and looks around.
async fn probe(bench: &mut Bench, before: &str, original: &str, checked: &Checked) -> TestResult<bool> {
    let ran = bench.run(checked).await.is_ok();
    if ran {
        let after = bench.surroundings().await?;
        assert_eq!(after, before, "{original}\n  sent as: {}", checked.sql);
    }
    // Fails if the transaction is gone.
    bench.exec("ROLLBACK TO SAVEPOINT start").await?;
    if !ran {
        let after = bench.surroundings().await?;
        assert_eq!(after, before, "{original}\n  sent as, and failed: {}", checked.sql);
        bench.exec("ROLLBACK TO SAVEPOINT start").await?;
    }
    Ok(ran)
}

/// A statement with some of its words exchanged for words of others.
fn mutated(random: &mut StdRng, statements: &[&str], words: &[&str]) -> String {
    let statement = statements.choose(random).copied().unwrap_or_default();
    let mut mutant: Vec<&str> = statement.split(' ').collect();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=mutant.len());
        let word = words.choose(random).copied().unwrap_or_default();
        match random.random_range(0..3) {
            0 => mutant.insert(at, word),
            1 if at < mutant.len() => mutant[at] = word,
            _ => {
                let other = statements.choose(random).copied().unwrap_or_default().split(' ').collect::<Vec<_>>();
                let from = random.random_range(0..other.len());
                let to = random.random_range(from..=other.len().min(from + 6));
                mutant.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    mutant.join(" ")
}

async fn attack(dialect: Dialect) -> TestResult {
    let guard: Guard = guard(dialect);
    let mut bench = Bench::open(dialect).await?;
    let before = bench.surroundings().await?;
    assert!(before.lines().count() >= 6, "{before}");

    let refused = corpus(REFUSED, dialect);
    let statements: Vec<_> = corpus(ACCEPTED, dialect).into_iter().chain(refused.iter().copied()).collect();
    let words: Vec<_> = statements.iter().flat_map(|statement| statement.split(' ')).collect();
    let mut random = StdRng::seed_from_u64(20);
    let (mut passed, mut ran) = (0, 0);
    for round in 0..ROUNDS {
        let sql = match refused.get(round) {
            Some(sql) => (*sql).to_owned(),
            None => mutated(&mut random, &statements, &words),
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
