//! What a campaign is to reach, and what it does next.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use clap::ValueEnum;
use hapax::sabotage::Breach;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::{clean_runs, runs};
use crate::nemesis::fault::{Fault, HostFault, ServerFault, WHILE_MIGRATING};
use crate::record::{Found, Line, Run};
use crate::stage::{BrokerKind, DatabaseKind};

/// Messages in all, and on each of two databases over RabbitMQ.
const MESSAGES: u64 = 1_000_000;
const MESSAGES_OF_EACH: u64 = 200_000;
const OF_EACH: [DatabaseKind; 2] = [DatabaseKind::Postgres, DatabaseKind::Mariadb];

/// Faults in all, and of each kind.
const FAULTS: u64 = 2000;
const FAULTS_OF_EACH: u64 = 20;

/// Modules exchanged with attempts of the old one in flight.
const SWAPS: u64 = 1000;

/// Each breach is tried on so many seeds, for so many seconds.
pub(super) const SEEDS_OF_BREACHES: RangeInclusive<u64> = 1..=3;
const BREACH_SECONDS: u64 = 55;

const RUN_SECONDS: u64 = 400;
const SOAK_SECONDS: u64 = 3600;
/// Orders a second: half of what two hosts on two cores manage while the nemesis strikes as hard as it can.
const SOAK_RATE: u32 = 60;
const SOAK_SEED: u64 = 1;

/// How often each server and a host is killed, and how long messages may stand still after that.
const KILLS: usize = 9;
const SERVER_BACK_SECONDS: f64 = 2.0;
const HOST_LOST_SECONDS: f64 = 10.0;

/// What runs are on, one after the other.
const SETTINGS: [(DatabaseKind, BrokerKind); 12] = [
    (DatabaseKind::Postgres, BrokerKind::Amqp),
    (DatabaseKind::Mariadb, BrokerKind::Amqp),
    (DatabaseKind::Mariadb, BrokerKind::Amqp),
    (DatabaseKind::Postgres, BrokerKind::Amqp),
    (DatabaseKind::Postgres, BrokerKind::Cluster),
    (DatabaseKind::Sqlite, BrokerKind::Amqp),
    (DatabaseKind::Mariadb, BrokerKind::Cluster),
    (DatabaseKind::Mariadb, BrokerKind::Amqp),
    (DatabaseKind::Postgres, BrokerKind::Amqp),
    (DatabaseKind::Postgres, BrokerKind::Embedded),
    (DatabaseKind::Sqlite, BrokerKind::Embedded),
    (DatabaseKind::Mariadb, BrokerKind::Embedded),
];

/// One call of this program.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Job {
    Breach(Breach, u64),
    Run(DatabaseKind, BrokerKind, u64),
    Recovery(DatabaseKind),
    Soak,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Breach(breach, seed) => write!(f, "{}, seed {seed}", breach.name()),
            Self::Run(database, broker, seed) => write!(f, "{}, {}, seed {seed}", database.title(), broker.title()),
            Self::Recovery(database) => write!(f, "recovery, {}", database.title()),
            Self::Soak => write!(f, "soak"),
        }
    }
}

impl Job {
    /// True if nothing else may run meanwhile: it measures time. (A soak measures memory, and leaves a core to others.)
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Recovery(_))
    }

    /// Arguments of this program.
    pub(super) fn args(&self) -> Vec<String> {
        let args = match self {
            Self::Breach(breach, seed) => {
                format!("--seconds {BREACH_SECONDS} --seed {seed} --breach {}", breach.name())
            }
            Self::Run(database, broker, seed) => {
                format!("--seconds {RUN_SECONDS} --seed {seed} --database {} --broker {}", word(database), word(broker))
            }
            Self::Recovery(database) => format!("recovery --times {KILLS} --seed 1 --database {}", word(database)),
            Self::Soak => format!("--soak --seconds {SOAK_SECONDS} --rate {SOAK_RATE} --seed {SOAK_SEED}"),
        };
        args.split(' ').map(str::to_owned).collect()
    }

    /// True if this line is what it came to.
    pub(super) fn is(&self, line: &Line) -> bool {
        match (self, &line.found) {
            (Self::Breach(breach, seed), Found::Run(run)) => {
                run.breach.as_deref() == Some(breach.name()) && line.seed == *seed
            }
            (Self::Run(database, broker, seed), Found::Run(run)) => {
                is_plain(run) && (line.database, line.broker, line.seed) == (*database, *broker, *seed)
            }
            (Self::Recovery(database), Found::Recovery(_)) => line.database == *database,
            (Self::Soak, Found::Run(run)) => run.soak.is_some(),
            _ => false,
        }
    }
}

/// How a value is written as an argument.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// True for a run that is nothing but a run.
fn is_plain(run: &Run) -> bool {
    run.breach.is_none() && run.soak.is_none()
}

/// What a record comes to: what it is called, how much there is, and how much there is to be.
pub(super) fn targets(lines: &[Line]) -> Vec<(String, u64, u64)> {
    let sum = |of: &dyn Fn(&Line, &Run) -> u64| clean_runs(lines).map(|(line, run)| of(line, run)).sum::<u64>();
    let mut targets = vec![("messages".to_owned(), sum(&|_, run| run.messages), MESSAGES)];
    for database in OF_EACH {
        let on_it = |line: &Line| line.database == database && line.broker == BrokerKind::Amqp;
        let messages = sum(&|line, run| if on_it(line) { run.messages } else { 0 });
        targets.push((format!("messages on {} and RabbitMQ", database.title()), messages, MESSAGES_OF_EACH));
    }
    targets.push(("faults that took effect".to_owned(), sum(&|_, run| run.faults()), FAULTS));
    let (rarest, times) = felt(lines).into_iter().min_by_key(|(_, times)| *times).unwrap_or_default();
    targets.push((format!("the rarest kind of fault: {rarest}"), times, FAULTS_OF_EACH));
    targets.push(("modules exchanged with attempts in flight".to_owned(), sum(&|_, run| run.swaps), SWAPS));
    targets
}

/// How often each kind of fault took effect, those included that never did.
pub(super) fn felt(lines: &[Line]) -> BTreeMap<String, u64> {
    let random = &mut StdRng::seed_from_u64(0);
    let mut felt = BTreeMap::from([(WHILE_MIGRATING.kind(), 0)]);
    felt.extend(HostFault::all(random).iter().map(|fault| (fault.kind(), 0)));
    felt.extend(ServerFault::all(random).iter().map(|fault| (fault.kind(), 0)));
    for (kind, times) in clean_runs(lines).flat_map(|(_, run)| &run.felt) {
        *felt.entry(kind.clone()).or_default() += times;
    }
    felt
}

/// All breaches, on all their seeds.
pub(super) fn breaches() -> impl Iterator<Item = (Breach, u64)> {
    SEEDS_OF_BREACHES.flat_map(|seed| Breach::ALL.iter().map(move |breach| (*breach, seed)))
}

/// The next thing to do, if anything is missing that is not under way. What takes longest comes first, and what must be
/// alone last.
pub(super) fn next(lines: &[Line], running: &[Job]) -> Option<Job> {
    let is_new = |job: &Job| !running.contains(job) && !lines.iter().any(|line| job.is(line));
    let breaches = breaches().map(|(breach, seed)| Job::Breach(breach, seed));
    let first = [Job::Soak].into_iter().chain(breaches).find(is_new);
    let is_short = || targets(lines).iter().any(|(_, reached, wanted)| reached < wanted);
    let again = || {
        let mut seeds = (1..).zip(SETTINGS.into_iter().cycle());
        seeds.find_map(|(seed, (database, broker))| Some(Job::Run(database, broker, seed)).filter(is_new))
    };
    let last = || OF_EACH.map(Job::Recovery).into_iter().find(is_new);
    first.or_else(|| if is_short() { again() } else { last() })
}

/// What a finished record does not reach, in words.
pub(super) fn missed(lines: &[Line]) -> Vec<String> {
    let mut missed = Vec::new();
    for (what, reached, wanted) in targets(lines) {
        if reached < wanted {
            missed.push(format!("{what}: {reached} of {wanted}"));
        }
    }
    for (line, run) in runs(lines) {
        match &run.breach {
            Some(breach) if run.violations == 0 => {
                missed.push(format!("{breach} was not caught on seed {}", line.seed))
            }
            None if run.violations > 0 => missed.push(format!("{} violations on seed {}", run.violations, line.seed)),
            _ => {}
        }
    }
    for line in lines {
        let Found::Recovery(times) = &line.found else { continue };
        for (what, times) in times {
            let longest = times.iter().copied().fold(0.0, f64::max);
            if longest > limit(what) {
                missed.push(format!("{}: {longest:.1} s after the {what} was killed", line.database.title()));
            }
        }
    }
    missed
}

/// For how many seconds messages may stand still after that was killed.
pub(super) fn limit(killed: &str) -> f64 {
    if killed == "host" { HOST_LOST_SECONDS } else { SERVER_BACK_SECONDS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::line;

    /// The record of a run as long as this on the first settings.
    fn run(messages: u64, times_of_each: u64) -> Line {
        let felt = felt(&[]).into_keys().map(|kind| (kind, times_of_each)).collect();
        line(|run| *run = Run { messages, felt, swaps: messages, ..run.clone() })
    }

    /// What is done before all runs.
    fn first() -> Vec<Job> {
        let mut running = Vec::new();
        while let Some(job) = next(&[], &running).filter(|job| !matches!(job, Job::Run(..))) {
            running.push(job);
        }
        running
    }

    #[test]
    fn the_soak_comes_first_and_then_what_is_broken() {
        let first = first();
        assert_eq!(first.len(), breaches().count() + 1);
        assert_eq!(first.first(), Some(&Job::Soak));
        assert_eq!(next(&[], &first), Some(Job::Run(DatabaseKind::Postgres, BrokerKind::Amqp, 1)));
    }

    #[test]
    fn runs_go_on_until_all_is_reached_and_recoveries_come_last() {
        let short = run(1000, 1);
        assert_eq!(next(&[short], &first()), Some(Job::Run(DatabaseKind::Mariadb, BrokerKind::Amqp, 2)));
        let enough = [run(MESSAGES, 20), Line { database: DatabaseKind::Mariadb, ..run(MESSAGES, 20) }];
        let mut running = first();
        for database in OF_EACH {
            assert_eq!(next(&enough, &running), Some(Job::Recovery(database)));
            running.push(Job::Recovery(database));
        }
        assert_eq!(next(&enough, &running), None);
        assert_eq!(missed(&enough), [""; 0]);
    }

    #[test]
    fn what_is_not_reached_is_said() {
        let unnoticed = line(|run| run.breach = Some("endless".to_owned()));
        let violated = line(|run| run.violations = 2);
        let slow = Found::Recovery(BTreeMap::from([("broker".to_owned(), vec![0.5, 2.5])]));
        let missed = missed(&[unnoticed, violated, Line { found: slow, ..line(|_| {}) }]);
        assert_eq!(
            missed[missed.len() - 3..],
            [
                "endless was not caught on seed 1",
                "2 violations on seed 1",
                "Postgres: 2.5 s after the broker was killed",
            ]
        );
        assert!(missed.contains(&"messages: 0 of 1000000".to_owned()), "{missed:?}");
    }
}
