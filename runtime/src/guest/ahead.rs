//! Running ahead of the database.
//!
//! Most statements of a handler have the same answer each time: `UPDATE … WHERE id = ?` changes one row. Once a
//! statement has answered alike for a while, the handler is given that answer at once, and the statement waits, to be
//! sent in one round trip with those of the messages after it. So a batch takes a few round trips, and not one for each
//! statement.
//!
//! What keeps this exact:
//!
//! - Statements reach the database in the order in which handlers made them: whatever needs an answer of its own, a query
//!   above all, sends what waits first.
//! - Every answer is compared with the one that was given. Where one differs, or is an error, the handler went on from
//!   something untrue: its work is undone, with that of everyone after it, and it is called again, not running ahead.
//! - Nothing commits, and no failure counts, before all answers are in.
//!
//! So no handler's word counts that rests on an answer which the database did not give.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::sql_guard::Checked;
use crate::ledger::database::{Connection, DbError, Statement};
use crate::ledger::value::{Executed, Param};

/// Equal answers in a row after which the next one is expected to be equal too.
///
/// A wrong guess makes half a group run again, which is some statements' worth; a right one saves a round trip. So a
/// statement of which one in ten answers differs should not be guessed, and hardly is: 16 equal ones are rare there.
const SURE_AFTER: u32 = 16;

/// Statements that may wait: past this, a round trip more makes no difference.
const MAX_WAITING: usize = 128;

/// Bytes of parameters that may wait.
const MAX_BYTES: u64 = 256 * 1024;

/// What one round trip should take at most: the slower the statements, the fewer go together, so that a batch can still
/// be cut short when it takes too long.
const TRIP: Duration = Duration::from_millis(50);

/// Statement texts whose answers are remembered.
const HABITS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// What a lane knows about its statements, and those that it has not sent yet.
#[derive(Debug)]
pub struct Ahead {
    habits: LruCache<Arc<str>, Habit>,
    waiting: Vec<Waiting>,
    bytes: u64,
    /// How many may wait.
    room: usize,
    /// The member whose attempt is being made.
    place: usize,
    allowed: bool,
    /// How many of those that wait are other attempts'.
    others: usize,
    /// A statement of this attempt that may have changed something has reached the database.
    arrived: bool,
}

/// How a statement has answered lately.
#[derive(Debug)]
struct Habit {
    answer: Executed,
    /// How often in a row.
    times: u32,
}

/// A statement that was answered before it was sent.
#[derive(Debug)]
struct Waiting {
    place: usize,
    checked: Arc<Checked>,
    params: Vec<Param>,
    expected: Executed,
}

/// The statements of one attempt.
#[derive(Debug)]
pub struct Parted(Vec<Waiting>);

/// A handler was given an answer that turned out not to be the database's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuted {
    /// The member whose attempt it was.
    pub place: usize,
    /// What the database said instead; none: another number of rows.
    pub error: Option<DbError>,
}

impl Default for Ahead {
    fn default() -> Self {
        let habits = LruCache::new(HABITS);
        Self {
            habits,
            waiting: Vec::new(),
            bytes: 0,
            room: MAX_WAITING,
            place: 0,
            allowed: false,
            others: 0,
            arrived: false,
        }
    }
}

impl Ahead {
    /// An attempt begins, for the member at this place. `allowed`: it may run ahead.
    pub fn begin(&mut self, place: usize, allowed: bool) {
        self.place = place;
        self.allowed = allowed;
        self.others = self.waiting.len();
        self.arrived = false;
    }

    /// Takes the statements of the attempt that was made last away from those that wait, if all of them still do: what
    /// is done before they are put back is done before that attempt.
    pub fn part(&mut self) -> Option<Parted> {
        (!self.arrived).then(|| Parted(self.waiting.split_off(self.others)))
    }

    /// Puts them back.
    pub fn rejoin(&mut self, parted: Parted) {
        self.others = self.waiting.len();
        self.waiting.extend(parted.0);
    }

    /// Notes that a statement of this attempt that may have changed something has reached the database.
    pub(crate) fn arrived(&mut self) {
        self.arrived = true;
    }

    /// True if nothing waits.
    pub fn is_level(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what waits: its transaction is rolled back.
    pub fn forget(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
        self.others = 0;
    }

    /// How many statements wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The member whose statement has waited longest; the one of the running attempt if none waits.
    pub(crate) fn first(&self) -> usize {
        self.waiting.first().map_or(self.place, |waiting| waiting.place)
    }

    /// True if what waits should be sent before more is put to it.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= self.room || self.bytes >= MAX_BYTES
    }

    /// The answer that the handler need not wait for, if the attempt may run ahead and the statement is known well enough.
    pub(crate) fn expected(&mut self, sql: &str) -> Option<Executed> {
        if !self.allowed {
            return None;
        }
        let habit = self.habits.get(sql)?;
        (habit.times >= SURE_AFTER).then_some(habit.answer)
    }

    /// Puts a statement to those that wait.
    pub(crate) fn put_off(&mut self, checked: &Arc<Checked>, params: Vec<Param>, expected: Executed) {
        self.bytes += params.iter().map(size).sum::<u64>();
        self.waiting.push(Waiting { place: self.place, checked: Arc::clone(checked), params, expected });
    }

    /// Notes an answer of the database.
    pub(crate) fn answered(&mut self, sql: &str, answer: Executed) {
        // A generated key is never the same again.
        if answer.last_insert_id.is_some() {
            return;
        }
        match self.habits.get_mut(sql) {
            Some(habit) if habit.answer == answer => habit.times = habit.times.saturating_add(1),
            Some(habit) => *habit = Habit { answer, times: 1 },
            None => drop(self.habits.push(sql.into(), Habit { answer, times: 1 })),
        }
    }

    /// Sends what waits, and compares the answers. Afterwards nothing waits.
    ///
    /// # Errors
    /// The first statement whose answer is another one than its handler was given. The transaction is to be undone up to
    /// a point before that handler's attempt.
    pub async fn catch_up(&mut self, connection: &mut dyn Connection) -> Result<(), Refuted> {
        if self.is_level() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.bytes = 0;
        self.arrived |= waiting.len() > self.others;
        self.others = 0;
        let started = Instant::now();
        let statements: Vec<Statement<'_>> =
            waiting.iter().map(|waiting| Statement { sql: &waiting.checked.sql, params: &waiting.params }).collect();
        let mut executed = Vec::with_capacity(waiting.len());
        let result = connection.execute_all(&statements, &mut executed).await;
        self.room = room(started.elapsed(), waiting.len());
        for (waiting, &answer) in waiting.iter().zip(&executed) {
            self.answered(&waiting.checked.sql, answer);
            if answer != waiting.expected {
                return Err(Refuted { place: waiting.place, error: None });
            }
        }
        result.map_err(|error| {
            let failed = waiting.get(executed.len()).or(waiting.last());
            if let Some(failed) = failed {
                self.habits.pop(failed.checked.sql.as_str());
            }
            Refuted { place: failed.map_or(self.place, |failed| failed.place), error: Some(error) }
        })
    }
}

/// How many statements may wait after so many took so long.
fn room(took: Duration, statements: usize) -> usize {
    let each = took.as_secs_f64() / statements.max(1) as f64;
    ((TRIP.as_secs_f64() / each.max(f64::EPSILON)) as usize).clamp(1, MAX_WAITING)
}

fn size(param: &Param) -> u64 {
    match param {
        Param::One(value) => value.size(),
        // The host's own.
        Param::Ints(_) | Param::Texts(_) | Param::Blobs(_) => 0,
    }
}

/// A lane's connection, and what it is ahead of.
pub struct Line {
    /// The connection.
    pub connection: Box<dyn Connection>,
    /// What the lane's handlers have run ahead of on it.
    pub ahead: Ahead,
}

impl From<Box<dyn Connection>> for Line {
    /// Nothing runs ahead on it.
    fn from(connection: Box<dyn Connection>) -> Self {
        Self { connection, ahead: Ahead::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql_guard::Kind;
    use super::super::testing::Fake;
    use super::*;
    use crate::ledger::database::DbErrorKind;

    const ONE: Executed = Executed { rows_affected: 1, last_insert_id: None };

    fn checked(sql: &str) -> Arc<Checked> {
        let sql = sql.to_owned();
        Arc::new(Checked { sql, parameters: 0, order: Vec::new(), kind: Kind::Write, returns_rows: false })
    }

    /// A lane that is sure of `a` and `b`.
    fn sure() -> Ahead {
        let mut ahead = Ahead::default();
        for _ in 0..SURE_AFTER {
            ahead.answered("a", ONE);
            ahead.answered("b", ONE);
        }
        ahead.begin(0, true);
        ahead
    }

    #[test]
    fn an_answer_is_expected_once_it_has_been_the_same_for_a_while() {
        let mut ahead = Ahead::default();
        ahead.begin(0, true);
        for _ in 1..SURE_AFTER {
            ahead.answered("a", ONE);
        }
        assert_eq!(ahead.expected("a"), None);
        ahead.answered("a", ONE);
        assert_eq!(ahead.expected("a"), Some(ONE));
        ahead.begin(1, false);
        assert_eq!(ahead.expected("a"), None, "this attempt is not to run ahead");
        ahead.begin(2, true);
        ahead.answered("a", Executed::default());
        assert_eq!(ahead.expected("a"), None);
        for _ in 0..2 * SURE_AFTER {
            ahead.answered("insert", Executed { rows_affected: 1, last_insert_id: Some(7) });
        }
        assert_eq!(ahead.expected("insert"), None, "a key is never the same again");
    }

    #[tokio::test]
    async fn what_waits_is_sent_in_order_and_compared() {
        let (mut ahead, mut fake) = (sure(), Fake::default());
        for (place, sql) in [(0, "a"), (0, "b"), (1, "a")] {
            ahead.begin(place, true);
            ahead.put_off(&checked(sql), Vec::new(), ONE);
        }
        assert_eq!(ahead.catch_up(&mut fake).await, Ok(()));
        assert_eq!(fake.sent(), ["a/0", "b/0", "a/0"]);
        assert!(ahead.is_level());
    }

    #[tokio::test]
    async fn the_first_answer_that_differs_tells_whose_attempt_is_void() {
        let error = DbError { kind: DbErrorKind::Constraint, ..DbError::infrastructure("unique") };
        for (answers, expected) in [
            (vec![Ok(ONE), Ok(Executed::default()), Ok(ONE)], Refuted { place: 1, error: None }),
            (vec![Ok(ONE), Ok(ONE), Err(error.clone())], Refuted { place: 2, error: Some(error.clone()) }),
            (vec![Ok(Executed::default()), Err(error.clone())], Refuted { place: 0, error: None }),
        ] {
            let (mut ahead, mut fake) = (sure(), Fake::default());
            for place in 0..3 {
                ahead.begin(place, true);
                ahead.put_off(&checked("a"), Vec::new(), ONE);
            }
            answers.into_iter().for_each(|answer| fake.answer(answer));
            assert_eq!(ahead.catch_up(&mut fake).await, Err(expected));
            assert!(ahead.is_level());
            assert_eq!(ahead.expected("a"), None, "it is not sure of it any more");
        }
    }

    #[test]
    fn the_slower_statements_are_the_fewer_go_together() {
        assert_eq!(room(Duration::from_millis(1), 64), MAX_WAITING);
        assert_eq!(room(Duration::from_millis(320), 64), 10);
        assert_eq!(room(Duration::from_secs(9), 3), 1);
        assert_eq!(room(Duration::ZERO, 1), MAX_WAITING);
        let mut ahead = sure();
        for _ in 0..MAX_WAITING {
            assert!(!ahead.is_full());
            ahead.put_off(&checked("a"), Vec::new(), ONE);
        }
        assert!(ahead.is_full());
    }
}
