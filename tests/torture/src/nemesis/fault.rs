//! What the nemesis may do, and how a seed chooses among it.

use std::collections::BTreeSet;
use std::time::Duration;

use hapax::sabotage::Step;
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::fleet::Trap;
use crate::stage::Setting;
use crate::wire::{Heard, Way, Weather};

/// A fault, as one of the arms of the nemesis can do it.
pub(crate) trait Fault: Copy {
    /// What it is counted as.
    fn kind(&self) -> String;

    /// One of each kind, some more than once: hosts and databases that die at the wrong moment find most.
    fn all(random: &mut StdRng) -> Vec<Self>;

    /// True if there is an invariant that, broken, is hardly noticed without it; `is_broken`: one is.
    fn is_telling(&self, is_broken: bool) -> bool;

    /// False if there is nothing in this setting that it could be done to.
    fn fits(&self, setting: &Setting) -> bool;

    /// True if messages are sent again because of it, and perhaps one among them that was lost before.
    fn hides_losses(&self) -> bool {
        false
    }
}

/// All faults, shuffled: every kind comes up, in an order that the seed makes, before one comes up again. One of each
/// telling kind comes before all others, so that short runs prove something too; three, where an invariant is broken.
pub(crate) struct Deck<F> {
    random: StdRng,
    setting: Setting,
    /// Kinds in whose names this is.
    only: String,
    /// An invariant is broken: what could hide a loss is left out.
    is_broken: bool,
    cards: Vec<F>,
}

impl<F: Fault> Deck<F> {
    pub(crate) fn new(random: StdRng, setting: Setting, only: &str, is_broken: bool) -> Self {
        let mut deck = Self { random, setting, only: only.to_owned(), is_broken, cards: Vec::new() };
        deck.shuffle();
        // They are taken from the end.
        let mut rest = std::mem::take(&mut deck.cards);
        let mut first = Vec::new();
        let rounds = if is_broken { 3 } else { 1 };
        for _ in 0..rounds {
            let mut seen = BTreeSet::new();
            let telling = rest.extract_if(.., |fault| fault.is_telling(is_broken) && seen.insert(fault.kind()));
            first.splice(0..0, telling.collect::<Vec<_>>());
        }
        deck.cards = [rest, first].concat();
        deck
    }

    fn shuffle(&mut self) {
        self.cards = F::all(&mut self.random);
        self.cards.retain(|fault| {
            let hides = self.is_broken && fault.hides_losses();
            fault.fits(&self.setting) && fault.kind().contains(&self.only) && !hides
        });
        self.cards.shuffle(&mut self.random);
    }

    /// The next one, and how long to rest after it, of at most `longest`.
    pub(crate) fn draw(&mut self, longest: Duration) -> Option<(F, Duration)> {
        if self.cards.is_empty() {
            self.shuffle();
        }
        let rest = longest.mul_f64(self.random.random_range(0.1..1.0));
        Some((self.cards.pop()?, rest))
    }
}

/// What is done to hosts, and to what they run. `host` is a number; hosts are counted round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostFault {
    /// A host is killed.
    Kill { host: usize },
    /// A host dies or freezes at a step of the path; see [`Trap`].
    Trapped { host: usize, trap: Trap, frozen: Duration },
    /// A host is frozen for a time.
    Frozen { host: usize, time: Duration },
    /// A host is stopped in good order, and started again.
    Stopped { host: usize },
    /// Modules are exchanged, good ones and bad ones, several a second.
    Swaps { times: u32, seed: u64 },
    /// Dead letters are redriven.
    Redriven,
}

/// What the first host of every run suffers, twice, before anything else happens.
pub(crate) const WHILE_MIGRATING: HostFault =
    HostFault::Trapped { host: 0, trap: Trap::Kill(Step::Migrating, 1), frozen: Duration::ZERO };

/// Steps that are reached only once they are brought about: nobody freezes there.
const RARE: [Step; 3] = [Step::Rescuing, Step::Redriving, Step::Forgetting];

impl Fault for HostFault {
    fn kind(&self) -> String {
        match self {
            Self::Kill { .. } => "host killed".to_owned(),
            Self::Trapped { trap: Trap::Kill(step, _), .. } => format!("host killed at {:?}", step.name()),
            Self::Trapped { trap: Trap::Stop(step, _), .. } => format!("host frozen at {:?}", step.name()),
            Self::Frozen { .. } => "host frozen".to_owned(),
            Self::Stopped { .. } => "host stopped in good order".to_owned(),
            Self::Swaps { .. } => "modules exchanged".to_owned(),
            Self::Redriven => "dead letters redriven".to_owned(),
        }
    }

    fn all(random: &mut StdRng) -> Vec<Self> {
        let host = |random: &mut StdRng| random.random_range(0..64);
        let mut all = Vec::new();
        for _ in 0..6 {
            all.push(Self::Kill { host: host(random) });
        }
        for _ in 0..4 {
            all.push(Self::Frozen { host: host(random), time: freeze(random) });
        }
        for _ in 0..3 {
            all.push(Self::Stopped { host: host(random) });
            all.push(Self::Swaps { times: random.random_range(6..20), seed: random.random() });
        }
        all.push(Self::Redriven);
        // For the other step see WHILE_MIGRATING.
        for step in Step::ALL.iter().copied().filter(|step| *step != Step::Migrating) {
            let times = if RARE.contains(&step) || step == Step::Swapping { 1 } else { random.random_range(1..15) };
            all.push(Self::Trapped { host: host(random), trap: Trap::Kill(step, times), frozen: Duration::ZERO });
            if !RARE.contains(&step) {
                all.push(Self::Trapped { host: host(random), trap: Trap::Stop(step, times), frozen: freeze(random) });
            }
        }
        all
    }

    fn is_telling(&self, is_broken: bool) -> bool {
        match self {
            Self::Kill { .. } | Self::Frozen { .. } | Self::Stopped { .. } | Self::Swaps { .. } => true,
            // The broker has it, and SQL does not know that: it is published again.
            Self::Trapped { trap: Trap::Kill(Step::Confirmed, _), .. } => is_broken,
            Self::Trapped { trap: Trap::Kill(step, _), .. } => {
                matches!(step, Step::Locked | Step::Handled | Step::Committing | Step::Published)
            }
            Self::Trapped { .. } | Self::Redriven => false,
        }
    }

    fn fits(&self, setting: &Setting) -> bool {
        match self {
            Self::Trapped { trap, .. } => match trap.step() {
                // Both are steps of the AMQP client; and a file is never sent a COMMIT.
                Step::Acknowledged | Step::Published => !setting.is_embedded(),
                Step::CommitSent => !setting.is_file(),
                _ => true,
            },
            _ => true,
        }
    }
}

/// Mostly longer than a lease, sometimes longer than a heartbeat.
fn freeze(random: &mut StdRng) -> Duration {
    Duration::from_millis(match random.random_range(0..30) {
        0 => random.random_range(20_000..26_000),
        1..15 => random.random_range(100..1500),
        _ => random.random_range(2500..5000),
    })
}

/// What is done to servers, and to the network between them and the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerFault {
    /// The broker is killed and started again; twice in a row.
    BrokerKilled { twice: bool },
    /// In a cluster the node that leads a quorum queue is killed, and started again after a time.
    LeaderKilled { time: Duration },
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
    /// Some statements fail as if transactions could not be put in an order.
    Unserializable { time: Duration },
    /// There is no room left on the database's disk.
    DiskFull { time: Duration },
    /// The database server is frozen for a time.
    DatabaseFrozen { time: Duration },
    /// The lock server is killed and started again, empty.
    LocksKilled,
    /// All locks are deleted.
    LocksFlushed,
    /// Somebody else takes the locks that are held, as if their leases had ended.
    LocksTaken,
    /// The lock server is frozen for a time.
    LocksFrozen { time: Duration },
    /// The lock server is out of memory.
    LocksFull { time: Duration },
    /// The lock server is read-only.
    LocksReadOnly { time: Duration },
    /// The network between a host and a server.
    Network { host: usize, target: Target, weather: Weather, time: Duration },
}

/// What a host is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Broker,
    Locks,
    Database,
}

impl Fault for ServerFault {
    fn kind(&self) -> String {
        let kind = match self {
            Self::BrokerKilled { twice: false } => "broker killed",
            Self::BrokerKilled { twice: true } => "broker killed twice in a row",
            Self::LeaderKilled { .. } => "leader of a quorum queue killed",
            Self::BrokerCloses => "connections closed by the broker",
            Self::BrokerAlarm { .. } => "memory alarm of the broker",
            Self::ExchangeDeleted { .. } => "exchange deleted",
            Self::QueueDeleted { .. } => "queue deleted",
            Self::CopiesMovedBack => "copies of dead letters moved back",
            Self::DatabaseKilled => "database killed",
            Self::SessionsEnded => "connections ended by the database",
            Self::RowsLocked { .. } => "rows locked by somebody else",
            Self::Unserializable { .. } => "serialization failures",
            Self::DiskFull { .. } => "disk of the database full",
            Self::DatabaseFrozen { .. } => "database frozen",
            Self::LocksKilled => "lock server killed, and empty",
            Self::LocksFlushed => "locks flushed",
            Self::LocksTaken => "locks taken by somebody else",
            Self::LocksFrozen { .. } => "lock server frozen",
            Self::LocksFull { .. } => "lock server out of memory",
            Self::LocksReadOnly { .. } => "lock server read-only",
            Self::Network { target, weather, .. } => return network(*target, *weather),
        };
        kind.to_owned()
    }

    fn all(random: &mut StdRng) -> Vec<Self> {
        let mut time = || Duration::from_millis(random.random_range(500..3000));
        let mut all = vec![
            Self::BrokerKilled { twice: false },
            Self::BrokerKilled { twice: true },
            Self::BrokerAlarm { time: time() },
            Self::ExchangeDeleted { time: time() },
            Self::CopiesMovedBack,
            Self::Unserializable { time: time() },
            Self::Unserializable { time: time() },
            Self::DiskFull { time: time() },
            Self::DiskFull { time: time() },
            Self::DatabaseFrozen { time: time() },
            Self::LocksKilled,
            Self::LocksFlushed,
            Self::LocksTaken,
            Self::LocksFrozen { time: time() },
            Self::LocksFull { time: time() },
            Self::LocksReadOnly { time: time() },
        ];
        // Few runs have a cluster.
        all.extend((0..6).map(|_| Self::LeaderKilled { time: time() }));
        for _ in 0..3 {
            all.extend([
                Self::BrokerCloses,
                Self::DatabaseKilled,
                Self::SessionsEnded,
                Self::RowsLocked { time: time() },
            ]);
        }
        all.push(Self::QueueDeleted { time: time(), which: random.random_range(0..64) });
        for heard in [Heard::Yes, Heard::No, Heard::Yes, Heard::No, Heard::No] {
            let (host, weather) = (random.random_range(0..64), Weather::CommitCut(heard));
            // It ends earlier, with the last of a few COMMITs.
            let time = Duration::from_millis(random.random_range(2000..5000));
            all.push(Self::Network { host, target: Target::Database, weather, time });
        }
        for target in [Target::Broker, Target::Locks, Target::Database] {
            for weather in [
                Weather::Cut,
                Weather::Silent(Way::ToServer),
                Weather::Silent(Way::ToHost),
                Weather::Silent(Way::Both),
                Weather::Slow(Duration::from_millis(random.random_range(5..100))),
                Weather::Reset,
            ] {
                let time = Duration::from_millis(random.random_range(500..3000));
                all.push(Self::Network { host: random.random_range(0..64), target, weather, time });
            }
        }
        all
    }

    fn is_telling(&self, is_broken: bool) -> bool {
        match self {
            // Transactions run out of time, and give back what they have not come to.
            Self::RowsLocked { .. } | Self::Network { target: Target::Database, weather: Weather::Slow(_), .. } => {
                is_broken
            }
            Self::BrokerKilled { twice: false }
            | Self::DatabaseKilled
            | Self::SessionsEnded
            | Self::DatabaseFrozen { .. }
            | Self::LocksTaken => true,
            Self::Network { target: Target::Database, weather, .. } => {
                matches!(weather, Weather::CommitCut(Heard::No) | Weather::Cut | Weather::Reset)
            }
            _ => false,
        }
    }

    fn hides_losses(&self) -> bool {
        matches!(self, Self::QueueDeleted { .. })
    }

    fn fits(&self, setting: &Setting) -> bool {
        match self {
            Self::LeaderKilled { .. } => setting.is_cluster(),
            // The whole of a cluster is not killed: nothing would be left of what its queues promise.
            Self::BrokerKilled { .. } => !setting.is_embedded() && !setting.is_cluster(),
            Self::BrokerCloses
            | Self::BrokerAlarm { .. }
            | Self::ExchangeDeleted { .. }
            | Self::QueueDeleted { .. }
            | Self::CopiesMovedBack
            | Self::LocksKilled
            | Self::LocksFlushed
            | Self::LocksTaken
            | Self::LocksFrozen { .. }
            | Self::LocksFull { .. }
            | Self::LocksReadOnly { .. } => !setting.is_embedded(),
            Self::DatabaseKilled
            | Self::SessionsEnded
            | Self::RowsLocked { .. }
            | Self::Unserializable { .. }
            | Self::DatabaseFrozen { .. } => !setting.is_file(),
            Self::DiskFull { .. } => setting.small_disk,
            Self::Network { target: Target::Database, .. } => !setting.is_file(),
            Self::Network { .. } => !setting.is_embedded(),
        }
    }
}

fn network(target: Target, weather: Weather) -> String {
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
        Weather::CommitCut(Heard::Yes) => "cut before the answer to COMMIT",
        Weather::CommitCut(Heard::No) => "cut before COMMIT arrives",
    };
    format!("network to the {target} {weather}")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;
    use crate::stage::{BrokerKind, DatabaseKind};

    const SETTING: Setting = Setting { database: DatabaseKind::Postgres, broker: BrokerKind::Amqp, small_disk: true };

    fn draw<F: Fault>(seed: u64, count: usize) -> Vec<F> {
        let mut deck = Deck::new(StdRng::seed_from_u64(seed), SETTING, "", false);
        (0..count).filter_map(|_| deck.draw(Duration::from_secs(1))).map(|(fault, _)| fault).collect()
    }

    #[test]
    fn a_seed_draws_the_same_faults() {
        assert_eq!(draw::<HostFault>(1, 200), draw(1, 200));
        assert_ne!(draw::<HostFault>(1, 200), draw(2, 200));
        assert_eq!(draw::<ServerFault>(1, 200), draw(1, 200));
    }

    #[test]
    fn telling_faults_come_first_one_of_each_kind() {
        let drawn = draw::<ServerFault>(3, 10);
        let (first, rest) = drawn.split_at(8);
        assert!(first.iter().all(|fault| fault.is_telling(false)), "{first:?}");
        assert_eq!(first.iter().map(Fault::kind).collect::<BTreeSet<_>>().len(), 8);
        assert!(!rest.iter().all(|fault| fault.is_telling(false)), "{rest:?}");
    }

    #[test]
    fn where_an_invariant_is_broken_telling_faults_come_twice() {
        let mut deck = Deck::<ServerFault>::new(StdRng::seed_from_u64(3), SETTING, "", true);
        let drawn: Vec<String> =
            (0..14).filter_map(|_| deck.draw(Duration::ZERO)).map(|(fault, _)| fault.kind()).collect();
        let cuts = drawn.iter().filter(|kind| *kind == "network to the database cut before COMMIT arrives").count();
        assert_eq!(cuts, 2, "{drawn:?}");
        let mut deck = Deck::<HostFault>::new(StdRng::seed_from_u64(3), SETTING, "", true);
        let drawn: Vec<String> =
            (0..9).filter_map(|_| deck.draw(Duration::ZERO)).map(|(fault, _)| fault.kind()).collect();
        assert!(drawn.contains(&"host killed at \"confirmed\"".to_owned()), "{drawn:?}");
    }

    #[test]
    fn nothing_hides_what_a_broken_invariant_has_lost() {
        let deck = |is_broken| Deck::<ServerFault>::new(StdRng::seed_from_u64(1), SETTING, "", is_broken).cards;
        assert!(deck(false).iter().any(Fault::hides_losses));
        assert!(!deck(true).iter().any(Fault::hides_losses));
    }

    #[test]
    fn every_step_is_a_place_to_die_before_one_comes_again() {
        let count = HostFault::all(&mut StdRng::seed_from_u64(1)).len();
        let drawn: BTreeSet<String> = draw::<HostFault>(1, count).iter().map(Fault::kind).collect();
        for step in Step::ALL.iter().filter(|step| **step != Step::Migrating) {
            let kind = HostFault::Trapped { host: 0, trap: Trap::Kill(*step, 1), frozen: Duration::ZERO }.kind();
            assert!(drawn.contains(&kind), "{kind} is never done");
        }
    }
}
