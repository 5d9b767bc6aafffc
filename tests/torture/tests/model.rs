//! A model of what can become of one message id: two hosts, two copies of the message, and every interleaving of the
//! steps that the pipeline makes (`runtime/src/pipeline/mod.rs`, `consumer/lane.rs`, `consumer/upkeep.rs`), with hosts
//! that crash or freeze between any two of them, transactions that end without an answer, and a lock that is lost at any
//! time. Each broken rule of [`Rule`] must be found out: a model that cannot see them proves nothing.

use stateright::{Checker as _, HasDiscoveries, Model, Property};

/// What must hold in every state.
const SAFETY: [&str; 4] = [
    "the handler takes effect once at most",
    "a generation is handled or compensated, once",
    "what the broker has forgotten SQL owns",
    "what has come to rest is settled",
];

const HOSTS: usize = 2;
/// Calls of the handler, and of the compensation, in all.
const MAX_ATTEMPTS: u8 = 2;

/// What `hapax_inbox` says of the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Completed,
    Parked,
    Dead,
}

/// The parked row that counts for the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    state: RowState,
    compensating: bool,
    attempts: u8,
    generation: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum RowState {
    Retry,
    /// Under a token; the host that took it may be gone.
    Running(u8),
    Dead,
}

/// Where a member that claims its id came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Delivery {
        redelivered: bool,
    },
    /// A stored delivery, taken by this host.
    Deferred,
}

/// What a transaction writes when it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Write {
    /// Nothing: the row that is there is what counts.
    Nothing,
    Complete,
    Park {
        attempts: u8,
    },
    Compensate,
    Compensated,
    CompensationFailed,
    Defer,
}

/// How far a host is with the one member that its lane has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Idle,
    /// It has the member, and no lock.
    Holding(Source),
    /// It has the lock, or goes on without one.
    Locked(Source),
    /// Its transaction is open; `new`: it has inserted the row.
    Claimed {
        source: Source,
        new: bool,
    },
    /// The handler has run, or need not.
    Ready {
        source: Source,
        write: Write,
        new: bool,
    },
    /// Committed; the broker does not know.
    Committed,
    /// It has taken the parked row.
    Taken(Run),
    /// It has locked it in its transaction.
    Owned(Run),
    /// The handler has run on it.
    Finished {
        run: Run,
        write: Write,
    },
}

/// A parked row as it was when it was taken: that is what a host goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    token: u8,
    row: Row,
}

impl At {
    /// The row that it has inserted is seen by nobody, and waited for by all.
    fn has_inserted(self) -> bool {
        matches!(self, Self::Claimed { new: true, .. } | Self::Ready { new: true, .. })
    }

    fn has_row_locked(self) -> bool {
        matches!(self, Self::Owned(_) | Self::Finished { .. })
    }

    /// It is at a stored delivery.
    fn has_deferred(self) -> bool {
        matches!(
            self,
            Self::Holding(Source::Deferred)
                | Self::Locked(Source::Deferred)
                | Self::Claimed { source: Source::Deferred, .. }
                | Self::Ready { source: Source::Deferred, .. }
        )
    }

    /// The member is what it was before its transaction.
    fn back(self) -> Self {
        match self {
            Self::Claimed { source, .. } | Self::Ready { source, .. } => Self::Holding(source),
            Self::Owned(run) | Self::Finished { run, .. } => Self::Taken(run),
            other => other,
        }
    }
}

/// The world.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    /// Copies in the queue, each redelivered or not.
    queue: Vec<bool>,
    /// Deliveries at each host that are not acknowledged: none, fresh or redelivered.
    unacknowledged: [Option<bool>; HOSTS],
    deferred: u8,
    status: Option<Status>,
    row: Option<Row>,
    /// Whose the lock is.
    lock: Option<usize>,
    at: [At; HOSTS],
    next_token: u8,
    /// Effects of the handler and of the compensation, by generation.
    handled: [u8; 2],
    compensated: [u8; 2],
    /// How much may still go wrong.
    crashes: u8,
    lost_answers: u8,
    failures: u8,
    redrives: u8,
}

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Deliver(usize),
    TakeDeferred(usize),
    Lock(usize),
    /// Without a lock server.
    GoWithout(usize),
    /// Its lock is somebody else's.
    FindHeld(usize),
    LockExpires,
    Claim(usize),
    Handle(usize, Verdict),
    Commit(usize),
    /// COMMIT without an answer; done or not.
    LoseAnswer(usize, bool),
    /// The transaction fails for reasons of its own.
    Fail(usize),
    Acknowledge(usize),
    Crash(usize),
    Take(usize),
    Own(usize),
    /// Nobody has locked the running row, and its host has given no sign of life.
    Rescue,
    Redrive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// May succeed later.
    Transient,
    Permanent,
}

/// A rule that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    AcknowledgeAfterCommit,
    NeverAcknowledgeHeld,
    UniqueKey,
    TakeClaimsBack,
    GuardByToken,
}

struct Hapax {
    broken: Option<Rule>,
}

impl Hapax {
    fn breaks(&self, rule: Rule) -> bool {
        self.broken == Some(rule)
    }
}

impl Model for Hapax {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            queue: vec![false, false],
            unacknowledged: [None; HOSTS],
            deferred: 0,
            status: None,
            row: None,
            lock: None,
            at: [At::Idle; HOSTS],
            next_token: 0,
            handled: [0; 2],
            compensated: [0; 2],
            crashes: 2,
            lost_answers: 1,
            failures: 1,
            redrives: 1,
        }]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        for host in 0..HOSTS {
            world.actions_of(host, events);
        }
        if world.lock.is_some() {
            events.push(Event::LockExpires);
        }
        if let Some(row) = world.row {
            let is_locked = world.at.iter().any(|at| at.has_row_locked());
            if matches!(row.state, RowState::Running(_)) && world.crashes > 0 && !is_locked {
                events.push(Event::Rescue);
            }
            // The host is gone and nothing more may go wrong: it is rescued all the same.
            let is_lost = !world.at.iter().any(|at| world.is_runner(*at));
            if matches!(row.state, RowState::Running(_)) && is_lost && !is_locked {
                events.push(Event::Rescue);
            }
            if row.state == RowState::Dead && world.redrives > 0 {
                events.push(Event::Redrive);
            }
        }
    }

    fn next_state(&self, world: &World, event: Event) -> Option<World> {
        let mut next = world.clone();
        match event {
            Event::Deliver(host) => {
                let redelivered = next.queue.remove(0);
                next.unacknowledged[host] = Some(redelivered);
                next.at[host] = At::Holding(Source::Delivery { redelivered });
                if self.breaks(Rule::AcknowledgeAfterCommit) {
                    next.unacknowledged[host] = None;
                }
            }
            Event::TakeDeferred(host) => {
                next.deferred -= 1;
                next.at[host] = At::Holding(Source::Deferred);
            }
            Event::Lock(host) => {
                next.lock = Some(host);
                next.at[host] = world.locked(host)?;
            }
            Event::GoWithout(host) => next.at[host] = world.locked(host)?,
            Event::FindHeld(host) => {
                let At::Holding(source) = world.at[host] else { return None };
                let write = if self.breaks(Rule::NeverAcknowledgeHeld) { Write::Nothing } else { Write::Defer };
                next.at[host] = At::Ready { source, write, new: false };
            }
            Event::LockExpires => next.lock = None,
            Event::Claim(host) => {
                let At::Locked(source) = world.at[host] else { return None };
                let new = world.status.is_none() || self.breaks(Rule::UniqueKey);
                let redelivered = matches!(source, Source::Delivery { redelivered: true });
                next.at[host] = match new {
                    false => At::Ready { source, write: Write::Nothing, new },
                    true if redelivered => At::Ready { source, write: Write::Park { attempts: 0 }, new },
                    true => At::Claimed { source, new },
                };
            }
            Event::Handle(host, verdict) => next.at[host] = world.handled_by(host, verdict)?,
            Event::Commit(host) => {
                self.commit(&mut next, host);
                next.finish(host);
            }
            Event::LoseAnswer(host, done) => {
                next.lost_answers -= 1;
                if done {
                    self.commit(&mut next, host);
                }
                next.at[host] = world.at[host].back();
            }
            Event::Fail(host) => {
                next.failures -= 1;
                // Among others it may be given back in a transaction that commits.
                if self.breaks(Rule::TakeClaimsBack) && world.at[host].has_inserted() {
                    next.status = Some(Status::Completed);
                }
                next.at[host] = world.at[host].back();
            }
            Event::Acknowledge(host) => {
                next.unacknowledged[host] = None;
                next.at[host] = At::Idle;
            }
            Event::Crash(host) => next.crash(host),
            Event::Take(host) => {
                let token = next.next_token;
                next.next_token += 1;
                let row = next.row.as_mut()?;
                row.state = RowState::Running(token);
                next.at[host] = At::Taken(Run { token, row: *row });
            }
            Event::Own(host) => {
                let At::Taken(run) = world.at[host] else { return None };
                let is_ours = world.row.is_some_and(|row| row.state == RowState::Running(run.token));
                let is_there = world.row.is_some() && self.breaks(Rule::GuardByToken);
                next.at[host] = if is_ours || is_there { At::Owned(run) } else { At::Idle };
            }
            Event::Rescue => {
                next.crashes = next.crashes.saturating_sub(1);
                next.row.as_mut()?.state = RowState::Retry;
            }
            Event::Redrive => {
                next.redrives -= 1;
                let row = next.row.as_mut()?;
                *row = Row { state: RowState::Retry, compensating: false, attempts: 0, generation: row.generation + 1 };
                next.status = Some(Status::Parked);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(SAFETY[0], |_, world: &World| world.handled.iter().sum::<u8>() <= 1),
            Property::always(SAFETY[1], |_, world: &World| {
                world.handled.iter().zip(world.compensated).all(|(handled, compensated)| handled + compensated <= 1)
            }),
            Property::always(SAFETY[2], |_, world: &World| {
                world.is_at_broker() || world.status.is_some() || world.has_deferred()
            }),
            Property::always(SAFETY[3], |_, world: &World| !world.is_at_rest() || world.is_settled()),
            Property::sometimes("it completes after a crash", |_, world: &World| {
                world.crashes == 0 && world.handled[0] == 1 && world.is_at_rest()
            }),
            Property::sometimes("it is compensated", |_, world: &World| {
                world.compensated[0] == 1 && world.is_at_rest()
            }),
            Property::sometimes("it is redriven, and handled", |_, world: &World| world.handled[1] == 1),
            Property::sometimes("its compensation fails for good", |_, world: &World| {
                world.status == Some(Status::Dead) && world.compensated == [0, 0] && world.is_at_rest()
            }),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.next_token < 12
    }
}

impl Hapax {
    /// What a transaction changes, all of it at once.
    fn commit(&self, next: &mut World, host: usize) {
        match next.at[host] {
            At::Ready { write, new, .. } => {
                let first = Row { state: RowState::Retry, compensating: false, attempts: 0, generation: 0 };
                match write {
                    Write::Complete => {
                        next.status = Some(Status::Completed);
                        next.handled[0] += 1;
                    }
                    Write::Park { attempts } if new => {
                        next.status = Some(Status::Parked);
                        next.row = Some(Row { attempts, ..first });
                    }
                    Write::Compensate => {
                        next.status = Some(Status::Parked);
                        next.row = Some(Row { compensating: true, ..first });
                    }
                    Write::Defer => next.deferred += 1,
                    _ => {}
                }
            }
            At::Finished { run, write } => {
                let Some(row) = next.row.as_mut() else { return };
                // Zero rows matched by a guard: nothing is written at all.
                if row.state != RowState::Running(run.token) && !self.breaks(Rule::GuardByToken) {
                    return;
                }
                let generation = usize::from(run.row.generation.min(1));
                match write {
                    Write::Complete => {
                        next.status = Some(Status::Completed);
                        next.handled[generation] += 1;
                        next.row = None;
                    }
                    Write::Park { attempts } => (row.state, row.attempts) = (RowState::Retry, attempts),
                    Write::Compensate => {
                        *row = Row { state: RowState::Retry, compensating: true, attempts: 0, ..*row };
                    }
                    Write::Compensated | Write::CompensationFailed => {
                        row.state = RowState::Dead;
                        next.status = Some(Status::Dead);
                        next.compensated[generation] += u8::from(write == Write::Compensated);
                    }
                    Write::Nothing | Write::Defer => {}
                }
            }
            _ => {}
        }
    }
}

impl World {
    fn actions_of(&self, host: usize, events: &mut Vec<Event>) {
        let inserted_by_other = (0..HOSTS).any(|other| other != host && self.at[other].has_inserted());
        match self.at[host] {
            At::Idle => {
                if !self.queue.is_empty() && self.unacknowledged[host].is_none() {
                    events.push(Event::Deliver(host));
                }
                if self.deferred > 0 {
                    events.push(Event::TakeDeferred(host));
                }
                if self.row.is_some_and(|row| row.state == RowState::Retry) {
                    events.push(Event::Take(host));
                }
            }
            At::Holding(_) => {
                events.push(Event::GoWithout(host));
                match self.lock {
                    None => events.push(Event::Lock(host)),
                    Some(holder) if holder != host => events.push(Event::FindHeld(host)),
                    Some(_) => {}
                }
            }
            // It waits for whoever has inserted the row.
            At::Locked(_) if inserted_by_other => {}
            At::Locked(_) => events.push(Event::Claim(host)),
            At::Claimed { .. } | At::Owned(_) => {
                events.extend(
                    [Verdict::Ok, Verdict::Transient, Verdict::Permanent].map(|verdict| Event::Handle(host, verdict)),
                );
            }
            At::Ready { .. } | At::Finished { .. } => {
                events.push(Event::Commit(host));
                if self.lost_answers > 0 {
                    events.extend([true, false].map(|done| Event::LoseAnswer(host, done)));
                }
            }
            At::Committed => events.push(Event::Acknowledge(host)),
            At::Taken(_) => {
                let is_locked = (0..HOSTS).any(|other| other != host && self.at[other].has_row_locked());
                if !is_locked {
                    events.push(Event::Own(host));
                }
            }
        }
        let in_transaction =
            self.at[host].has_row_locked() || matches!(self.at[host], At::Claimed { .. } | At::Ready { .. });
        if in_transaction && self.failures > 0 {
            events.push(Event::Fail(host));
        }
        if self.crashes > 0 && self.at[host] != At::Idle {
            events.push(Event::Crash(host));
        }
    }

    fn locked(&self, host: usize) -> Option<At> {
        let At::Holding(source) = self.at[host] else { return None };
        Some(At::Locked(source))
    }

    /// The handler, or the compensation, has returned.
    fn handled_by(&self, host: usize, verdict: Verdict) -> Option<At> {
        match self.at[host] {
            At::Claimed { source, new } => {
                let write = match verdict {
                    Verdict::Ok => Write::Complete,
                    Verdict::Transient => Write::Park { attempts: 1 },
                    Verdict::Permanent => Write::Compensate,
                };
                Some(At::Ready { source, write, new })
            }
            At::Owned(run) => {
                let row = run.row;
                let attempts = row.attempts + 1;
                let write = match (row.compensating, verdict) {
                    (false, Verdict::Ok) => Write::Complete,
                    (true, Verdict::Ok) => Write::Compensated,
                    (_, Verdict::Transient) if attempts < MAX_ATTEMPTS => Write::Park { attempts },
                    (false, _) => Write::Compensate,
                    (true, _) => Write::CompensationFailed,
                };
                Some(At::Finished { run, write })
            }
            _ => None,
        }
    }

    /// After its COMMIT: the lock is released, under its token, and a delivery is still to be acknowledged.
    fn finish(&mut self, host: usize) {
        if self.lock == Some(host) {
            self.lock = None;
        }
        let came_by_delivery = matches!(self.at[host], At::Ready { source: Source::Delivery { .. }, .. });
        self.at[host] = if came_by_delivery { At::Committed } else { At::Idle };
    }

    /// Its transaction is rolled back, its deliveries go back to the queue, its lock stays until it expires, and what it
    /// has taken stays taken.
    fn crash(&mut self, host: usize) {
        self.crashes -= 1;
        if self.unacknowledged[host].take().is_some() {
            self.queue.push(true);
            self.queue.sort_unstable();
        }
        // Rescued at once: nobody else can do anything with it before.
        self.deferred += u8::from(self.at[host].has_deferred());
        self.at[host] = At::Idle;
    }

    fn is_runner(&self, at: At) -> bool {
        let Some(Row { state: RowState::Running(token), .. }) = self.row else { return false };
        matches!(at, At::Taken(run) | At::Owned(run) | At::Finished { run, .. } if run.token == token)
    }

    fn is_at_broker(&self) -> bool {
        !self.queue.is_empty() || self.unacknowledged.iter().any(Option::is_some)
    }

    /// A stored delivery waits, or a host is at it.
    fn has_deferred(&self) -> bool {
        self.deferred > 0 || self.at.iter().any(|at| at.has_deferred())
    }

    /// Nothing is left to do.
    fn is_at_rest(&self) -> bool {
        let is_pending = self.row.is_some_and(|row| row.state != RowState::Dead);
        !self.is_at_broker() && self.deferred == 0 && self.at == [At::Idle; HOSTS] && !is_pending
    }

    /// It took effect once; or it is dead, and compensated unless that has failed for good.
    fn is_settled(&self) -> bool {
        match (self.status, self.row) {
            (Some(Status::Completed), None) => self.handled.iter().sum::<u8>() == 1,
            (Some(Status::Dead), Some(row)) => {
                let generation = usize::from(row.generation.min(1));
                row.state == RowState::Dead && self.handled[generation] == 0
            }
            _ => false,
        }
    }
}

#[test]
fn no_interleaving_loses_or_doubles_a_message() {
    let checker = Hapax { broken: None }.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn every_broken_rule_is_found_out() {
    let rules = [
        Rule::AcknowledgeAfterCommit,
        Rule::NeverAcknowledgeHeld,
        Rule::UniqueKey,
        Rule::TakeClaimsBack,
        Rule::GuardByToken,
    ];
    for rule in rules {
        let first = HasDiscoveries::AnyFailures;
        let checker = Hapax { broken: Some(rule) }.checker().threads(2).finish_when(first).spawn_bfs().join();
        let noticed = SAFETY.iter().any(|name| checker.discovery(name).is_some());
        assert!(noticed, "{rule:?} is broken, and nobody has noticed");
    }
}
