//! What the nemesis may do, and how a seed chooses among it.

use std::time::Duration;

use hapax::sabotage::Step;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::fleet::Trap;
use crate::stage::{BrokerKind, DatabaseKind};
use crate::wire::{Way, Weather};

/// One fault. `host` is a number; hosts are counted round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A host is killed.
    Kill { host: usize },
    /// A host dies or freezes at a step of the path; see [`Trap`].
    Trapped { host: usize, trap: Trap, frozen: Duration },
    /// A host is frozen for a time.
    Frozen { host: usize, time: Duration },
    /// A host is stopped in good order, and started again.
    Stopped { host: usize },
    /// The broker is killed and started again; twice in a row.
    BrokerKilled { twice: bool },
    /// The broker closes all connections.
    BrokerCloses,
    /// The broker takes nothing from those who publish.
    BrokerAlarm { time: Duration },
    /// The exchange that handlers publish to is deleted, and declared again.
    ExchangeDeleted { time: Duration },
    /// A queue is deleted with what is in it, and declared again; its producer sends again what was not handled.
    QueueDeleted { which: usize, time: Duration },
    /// Copies of dead letters are moved back to the queue that they came from.
    CopiesMovedBack,
    /// The database server is killed and started again.
    DatabaseKilled,
    /// Every connection to the database is ended by the server.
    SessionsEnded,
    /// Somebody holds the rows that handlers change.
    RowsLocked { time: Duration },
    /// The database server is frozen for a time.
    DatabaseFrozen { time: Duration },
    /// The lock server is killed and started again, empty.
    LocksKilled,
    /// All locks are deleted.
    LocksFlushed,
    /// The lock server is frozen for a time.
    LocksFrozen { time: Duration },
    /// The lock server is out of memory.
    LocksFull { time: Duration },
    /// The lock server is read-only.
    LocksReadOnly { time: Duration },
    /// The network between a host and a server.
    Network { host: usize, target: Target, weather: Weather, time: Duration },
    /// Modules are exchanged, good ones and bad ones, several a second.
    Swaps { times: u32 },
    /// Dead letters are redriven.
    Redriven,
}

/// What a host is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Broker,
    Locks,
    Database,
}

/// Steps that messages pass all the time.
const COMMON: [Step; 18] = [
    Step::Received,
    Step::Locked,
    Step::Begun,
    Step::Owned,
    Step::Claimed,
    Step::Handled,
    Step::Compensated,
    Step::Parking,
    Step::Committing,
    Step::CommitSent,
    Step::Committed,
    Step::Acknowledging,
    Step::Acknowledged,
    Step::Taken,
    Step::Publishing,
    Step::Published,
    Step::Confirmed,
    Step::Swapping,
];

/// Steps that have to be brought about.
const RARE: [Step; 3] = [Step::Rescuing, Step::Redriving, Step::Forgetting];

impl Fault {
    /// What it is counted as.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Kill { .. } => "host killed".to_owned(),
            Self::Trapped { trap: Trap::Kill(step, _), .. } => format!("host killed at {:?}", step.name()),
            Self::Trapped { trap: Trap::Stop(step, _), .. } => format!("host frozen at {:?}", step.name()),
            Self::Frozen { .. } => "host frozen".to_owned(),
            Self::Stopped { .. } => "host stopped in good order".to_owned(),
            Self::BrokerKilled { twice: false } => "broker killed".to_owned(),
            Self::BrokerKilled { twice: true } => "broker killed twice in a row".to_owned(),
            Self::BrokerCloses => "connections closed by the broker".to_owned(),
            Self::BrokerAlarm { .. } => "memory alarm of the broker".to_owned(),
            Self::ExchangeDeleted { .. } => "exchange deleted".to_owned(),
            Self::QueueDeleted { .. } => "queue deleted".to_owned(),
            Self::CopiesMovedBack => "copies of dead letters moved back".to_owned(),
            Self::DatabaseKilled => "database killed".to_owned(),
            Self::SessionsEnded => "connections ended by the database".to_owned(),
            Self::RowsLocked { .. } => "rows locked by somebody else".to_owned(),
            Self::DatabaseFrozen { .. } => "database frozen".to_owned(),
            Self::LocksKilled => "lock server killed, and empty".to_owned(),
            Self::LocksFlushed => "locks flushed".to_owned(),
            Self::LocksFrozen { .. } => "lock server frozen".to_owned(),
            Self::LocksFull { .. } => "lock server out of memory".to_owned(),
            Self::LocksReadOnly { .. } => "lock server read-only".to_owned(),
            Self::Network { target, weather, .. } => {
                let target = match target {
                    Target::Broker => "broker",
                    Target::Locks => "lock server",
                    Target::Database => "database",
                };
                let weather = match weather {
                    Weather::Fair => "fair",
                    Weather::Cut => "cut",
                    Weather::Silent(Way::ToServer) => "silent towards the server",
                    Weather::Silent(Way::ToHost) => "silent towards the host",
                    Weather::Silent(Way::Both) => "silent both ways",
                    Weather::Slow(_) => "slow",
                    Weather::Reset => "reset in the middle of a packet",
                };
                format!("network to the {target} {weather}")
            }
            Self::Swaps { .. } => "modules exchanged".to_owned(),
            Self::Redriven => "dead letters redriven".to_owned(),
        }
    }

    /// Draws one that makes sense with these servers.
    pub(crate) fn draw(random: &mut StdRng, database: DatabaseKind, broker: BrokerKind) -> Self {
        loop {
            let fault = Self::draw_any(random);
            if fault.fits(database, broker) {
                return fault;
            }
        }
    }

    fn draw_any(random: &mut StdRng) -> Self {
        let host = random.random_range(0..64);
        let time = Duration::from_millis(random.random_range(500..3000));
        match random.random_range(0..100) {
            0..6 => Self::Kill { host },
            6..30 => Self::Trapped { host, trap: Self::trap(random), frozen: Self::freeze(random) },
            30..36 => Self::Frozen { host, time: Self::freeze(random) },
            36..40 => Self::Stopped { host },
            40..43 => Self::BrokerKilled { twice: random.random_bool(0.3) },
            43..46 => Self::BrokerCloses,
            46..48 => Self::BrokerAlarm { time },
            48..50 => Self::ExchangeDeleted { time },
            50 => Self::QueueDeleted { which: host, time },
            51 => Self::CopiesMovedBack,
            52..55 => Self::DatabaseKilled,
            55..59 => Self::SessionsEnded,
            59..62 => Self::RowsLocked { time },
            62..64 => Self::DatabaseFrozen { time },
            64..66 => Self::LocksKilled,
            66..68 => Self::LocksFlushed,
            68..70 => Self::LocksFrozen { time },
            70..72 => Self::LocksFull { time },
            72..74 => Self::LocksReadOnly { time },
            74..92 => Self::Network { host, target: Self::target(random), weather: Self::weather(random), time },
            92..97 => Self::Swaps { times: random.random_range(3..12) },
            _ => Self::Redriven,
        }
    }

    fn trap(random: &mut StdRng) -> Trap {
        if random.random_bool(0.15) {
            return Trap::Kill(RARE.choose(random).copied().unwrap_or(Step::Rescuing), 1);
        }
        let step = COMMON.choose(random).copied().unwrap_or(Step::Committed);
        let times = if step == Step::Swapping { 1 } else { random.random_range(1..15) };
        match random.random_bool(0.25) {
            true => Trap::Stop(step, times),
            false => Trap::Kill(step, times),
        }
    }

    /// Mostly longer than a lease, sometimes longer than a heartbeat.
    fn freeze(random: &mut StdRng) -> Duration {
        Duration::from_millis(match random.random_range(0..20) {
            0 => random.random_range(20_000..26_000),
            1..8 => random.random_range(100..1500),
            _ => random.random_range(2500..6000),
        })
    }

    fn target(random: &mut StdRng) -> Target {
        [Target::Broker, Target::Locks, Target::Database, Target::Database]
            .choose(random)
            .copied()
            .unwrap_or(Target::Database)
    }

    fn weather(random: &mut StdRng) -> Weather {
        match random.random_range(0..6) {
            0 => Weather::Cut,
            1 => Weather::Silent(Way::ToServer),
            2 => Weather::Silent(Way::ToHost),
            3 => Weather::Silent(Way::Both),
            4 => Weather::Slow(Duration::from_millis(random.random_range(5..100))),
            _ => Weather::Reset,
        }
    }

    /// Files have no network, and no server.
    fn fits(&self, database: DatabaseKind, broker: BrokerKind) -> bool {
        let (is_file, is_embedded) = (database == DatabaseKind::Sqlite, broker == BrokerKind::Embedded);
        match self {
            Self::Kill { .. } | Self::Frozen { .. } | Self::Stopped { .. } | Self::Swaps { .. } | Self::Redriven => {
                true
            }
            Self::Trapped { trap, .. } => match trap.step() {
                // Both are steps of the AMQP client; and a file is never sent a COMMIT.
                Step::Acknowledged | Step::Published => !is_embedded,
                Step::CommitSent => !is_file,
                _ => true,
            },
            Self::BrokerKilled { .. }
            | Self::BrokerCloses
            | Self::BrokerAlarm { .. }
            | Self::ExchangeDeleted { .. }
            | Self::QueueDeleted { .. }
            | Self::CopiesMovedBack
            | Self::LocksKilled
            | Self::LocksFlushed
            | Self::LocksFrozen { .. }
            | Self::LocksFull { .. }
            | Self::LocksReadOnly { .. } => !is_embedded,
            Self::DatabaseKilled | Self::SessionsEnded | Self::RowsLocked { .. } | Self::DatabaseFrozen { .. } => {
                !is_file
            }
            Self::Network { target: Target::Database, .. } => !is_file,
            Self::Network { .. } => !is_embedded,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_seed_draws_the_same_faults() {
        let draw = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..200).map(|_| Fault::draw(&mut random, DatabaseKind::Postgres, BrokerKind::Amqp)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn every_step_is_a_place_to_die() {
        let drawn: Vec<Step> = COMMON.into_iter().chain(RARE).collect();
        for step in Step::ALL {
            // The first host of every run dies there.
            assert!(drawn.contains(step) || *step == Step::Migrating, "{step:?} is never reached");
        }
    }
}
