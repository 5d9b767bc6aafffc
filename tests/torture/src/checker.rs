//! The judge: what the books say against what was published. Knows orders and tables, and nothing of the runtime.

use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::books::{Books, Effect, Parked};
use crate::order::{Fate, MAX_ATTEMPTS, Order, STOCK};
use crate::stage::{OLD, ORDERED, TOLD};

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// The message that it happened to; none for what is about all of them.
    pub(crate) message: Option<String>,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message.as_deref().unwrap_or("-"), self.what)
    }
}

/// What messages are found under: their consumer and their id.
type Key<'a> = (&'a str, &'a str);

/// States of rows of `hapax_inbox` and `hapax_parked`.
const COMPLETED: i64 = 1;
const DEAD_ID: i64 = 3;
const DEAD: i64 = 4;

/// Everything that is wrong.
pub(crate) fn check(orders: &[Order], books: &Books) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut court = Court { books: Index::new(books), found: &mut found };
    for order in orders {
        for consumer in ORDERED {
            court.order(order, consumer);
        }
        court.told(order);
    }
    court.strangers(orders, books);
    court.leftovers(books);
    court.stock(orders, books);
    found.sort();
    found
}

/// The books, by message.
struct Index<'a> {
    effects: HashMap<Key<'a>, Vec<&'a Effect>>,
    /// Effects of told messages, by the order that they come from.
    told: HashMap<&'a str, Vec<&'a Effect>>,
    known: HashMap<Key<'a>, i64>,
    parked: HashMap<Key<'a>, Vec<&'a Parked>>,
}

impl<'a> Index<'a> {
    fn new(books: &'a Books) -> Self {
        let (mut effects, mut told) = (HashMap::<Key, Vec<_>>::new(), HashMap::<&str, Vec<_>>::new());
        for effect in &books.effects {
            if effect.consumer == TOLD {
                told.entry(&effect.origin).or_default().push(effect);
            } else {
                effects.entry((&effect.consumer, &effect.message_id)).or_default().push(effect);
            }
        }
        let mut parked = HashMap::<Key, Vec<_>>::new();
        for row in &books.parked {
            let name = row.message_id.as_deref().unwrap_or(&row.routing_key);
            parked.entry((&row.consumer, name)).or_default().push(row);
        }
        let known = books.known.iter().map(|row| ((row.consumer.as_str(), row.message_id.as_str()), row.status));
        Self { effects, told, known: known.collect(), parked }
    }
}

struct Court<'a> {
    books: Index<'a>,
    found: &'a mut Vec<Violation>,
}

impl Court<'_> {
    fn say(&mut self, message: &str, what: String) {
        self.found.push(Violation { message: Some(message.to_owned()), what });
    }

    fn order(&mut self, order: &Order, consumer: &'static str) {
        if let Fate::Apart { reason } = order.fate() {
            return self.apart(order, consumer, reason);
        }
        let key = (consumer, order.id());
        let effects = self.books.effects.get(&key).cloned().unwrap_or_default();
        let status = self.books.known.get(&key).copied();
        let dead = self.books.parked.get(&key).into_iter().flatten().copied().filter(|row| row.state == DEAD);
        let (forged, dead): (Vec<&Parked>, Vec<&Parked>) =
            dead.partition(|row| row.reason.as_deref() == Some("id-conflict"));
        if forged.len() != usize::from(order.forged().is_some()) {
            self.say(order.id(), format!("{consumer}: of its two bodies these are dead as forged: {forged:?}"));
        }
        let of_phase = |phase: &str| -> Vec<u32> {
            effects.iter().filter(|effect| effect.phase == phase).map(|effect| effect.attempt).collect()
        };
        let (handled, compensated) = (of_phase("handle"), of_phase("compensate"));
        let (wanted, attempts) = match order.fate() {
            Fate::Effect { attempt } => {
                if handled != [attempt] {
                    self.say(order.id(), format!("{consumer}: effects of attempts {handled:?} instead of [{attempt}]"));
                }
                (COMPLETED, None)
            }
            Fate::Compensated { reason, attempt } => {
                self.compensated(order, consumer, (reason, attempt), &compensated, &dead);
                (DEAD_ID, (reason == "exhausted").then_some(MAX_ATTEMPTS))
            }
            Fate::Dead { reason } => {
                if dead.len() != 1 || dead[0].reason.as_deref() != Some(reason) {
                    self.say(order.id(), format!("{consumer}: dead letters {dead:?} instead of one, {reason}"));
                }
                (DEAD_ID, None)
            }
            Fate::Apart { .. } => return,
        };
        if wanted != COMPLETED && !handled.is_empty() {
            self.say(order.id(), format!("{consumer}: it took effect, on attempts {handled:?}, and is to be dead"));
        }
        if !matches!(order.fate(), Fate::Compensated { .. }) && !compensated.is_empty() {
            self.say(order.id(), format!("{consumer}: compensated, on attempts {compensated:?}, and was not to be"));
        }
        if wanted == COMPLETED && !dead.is_empty() {
            self.say(order.id(), format!("{consumer}: completed, and dead: {dead:?}"));
        }
        if status != Some(wanted) {
            self.say(order.id(), format!("{consumer}: status {status:?} in the inbox instead of {wanted}"));
        }
        if let (Some(attempts), [dead]) = (attempts, &dead[..])
            && dead.handler_attempts != attempts
        {
            self.say(order.id(), format!("{consumer}: died after {} attempts, not {attempts}", dead.handler_attempts));
        }
    }

    /// Dead letters that nothing was done for; as many as there were deliveries.
    fn apart(&mut self, order: &Order, consumer: &'static str, reason: &str) {
        let key = order.routing_key();
        let dead = self.books.parked.get(&(consumer, key.as_str())).cloned().unwrap_or_default();
        let as_it_should = |row: &&Parked| row.state == DEAD && row.reason.as_deref() == Some(reason);
        if dead.is_empty() || !dead.iter().all(as_it_should) {
            self.say(&key, format!("{consumer}: {dead:?} instead of dead letters, {reason}"));
        }
        if self.books.effects.contains_key(&(consumer, order.id())) {
            self.say(&key, format!("{consumer}: it took effect, and has no usable id"));
        }
    }

    /// One dead letter, and one compensation for each time that it died.
    fn compensated(
        &mut self,
        order: &Order,
        consumer: &str,
        (reason, attempt): (&str, u32),
        compensated: &[u32],
        dead: &[&Parked],
    ) {
        let [dead] = dead else {
            return self.say(order.id(), format!("{consumer}: dead letters {dead:?} instead of one"));
        };
        let times = dead.generation as usize + 1;
        if compensated.len() != times || compensated.iter().any(|found| *found != attempt) {
            self.say(
                order.id(),
                format!("{consumer}: compensated on attempts {compensated:?} instead of {times} times on {attempt}"),
            );
        }
        if dead.compensations as usize != times || dead.reason.as_deref() != Some(reason) {
            self.say(order.id(), format!("{consumer}: dead letter {dead:?} instead of {reason}, compensated {times}"));
        }
    }

    /// What each consumer's handler published took effect once at the other end, under an id of its own.
    fn told(&mut self, order: &Order) {
        let told = self.books.told.get(order.id()).cloned().unwrap_or_default();
        let ids: HashSet<&str> = told.iter().map(|effect| effect.message_id.as_str()).collect();
        let wanted = if order.tells() { ORDERED.len() } else { 0 };
        if told.len() != wanted || ids.len() != wanted {
            let ids: Vec<&str> = told.iter().map(|effect| effect.message_id.as_str()).collect();
            self.say(order.id(), format!("told {wanted} times, and that took effect under these ids: {ids:?}"));
        }
    }

    /// Nothing took effect that nobody ordered.
    fn strangers(&mut self, orders: &[Order], books: &Books) {
        let ids: HashSet<&str> = orders.iter().map(Order::id).collect();
        for effect in &books.effects {
            if !ids.contains(effect.origin.as_str()) {
                self.say(&effect.message_id, format!("{effect:?} comes from no order"));
            }
        }
        for row in books.known.iter().filter(|row| !row.message_id.starts_with(OLD)) {
            if ORDERED.contains(&row.consumer.as_str()) && !ids.contains(row.message_id.as_str()) {
                self.say(&row.message_id, format!("{row:?} comes from no order"));
            }
        }
    }

    /// Nothing waits any more.
    fn leftovers(&mut self, books: &Books) {
        for row in books.parked.iter().filter(|row| row.state != DEAD) {
            let message = row.message_id.clone();
            self.found.push(Violation { message, what: format!("{}: still parked: {row:?}", row.consumer) });
        }
        for (state, rows) in &books.outbox {
            self.found.push(Violation { message: None, what: format!("{rows} outbox rows left in state {state}") });
        }
    }

    /// Every piece is where it should be.
    fn stock(&mut self, orders: &[Order], books: &Books) {
        let mut sold: HashMap<u64, i64> = HashMap::new();
        for order in orders.iter().filter(|order| matches!(order.fate(), Fate::Effect { .. })) {
            *sold.entry(order.goods).or_default() += i64::try_from(ORDERED.len()).unwrap_or(i64::MAX);
        }
        for (goods, quantity) in &books.stock {
            let wanted = STOCK - sold.get(goods).copied().unwrap_or(0);
            if *quantity != wanted {
                let what = format!("{quantity} pieces of goods {goods} are left, and should be {wanted}");
                self.found.push(Violation { message: None, what });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::Known;
    use crate::order::GOODS;

    /// Orders, and books that are as they should be.
    fn fair() -> (Vec<Order>, Books) {
        let orders: Vec<Order> = (0..2000).map(|number| Order::of(3, number)).collect();
        let mut books = Books { stock: (0..GOODS).map(|goods| (goods, STOCK)).collect(), ..Books::default() };
        for order in &orders {
            for consumer in ORDERED {
                enter(&mut books, order, consumer);
            }
        }
        (orders, books)
    }

    fn enter(books: &mut Books, order: &Order, consumer: &str) {
        let effect = |consumer: &str, id: &str, phase: &str, attempt| Effect {
            consumer: consumer.to_owned(),
            message_id: id.to_owned(),
            origin: order.id().to_owned(),
            phase: phase.to_owned(),
            attempt,
            reason: None,
            goods: order.goods,
        };
        let row = |reason: &str, compensations| Parked {
            consumer: consumer.to_owned(),
            message_id: Some(order.id().to_owned()),
            state: DEAD,
            generation: 0,
            compensations,
            attempts: 0,
            handler_attempts: if reason == "exhausted" { MAX_ATTEMPTS } else { 1 },
            reason: Some(reason.to_owned()),
            routing_key: order.routing_key(),
        };
        let status = match order.fate() {
            Fate::Effect { attempt } => {
                books.parked.extend(order.forged().map(|_| row("id-conflict", 0)));
                books.effects.push(effect(consumer, order.id(), "handle", attempt));
                books.stock[order.goods as usize].1 -= 1;
                if order.tells() {
                    books.effects.push(effect(TOLD, &format!("{consumer}:{}", order.id()), "handle", 1));
                }
                COMPLETED
            }
            Fate::Compensated { reason, attempt } => {
                books.effects.push(effect(consumer, order.id(), "compensate", attempt));
                books.parked.push(row(reason, 1));
                DEAD_ID
            }
            Fate::Dead { reason } => {
                books.parked.push(row(reason, 0));
                DEAD_ID
            }
            Fate::Apart { reason } => {
                books.parked.push(Parked { message_id: None, ..row(reason, 0) });
                return;
            }
        };
        books.known.push(Known { consumer: consumer.to_owned(), message_id: order.id().to_owned(), status });
    }

    #[test]
    fn fair_books_are_found_fair() {
        let (orders, books) = fair();
        assert_eq!(check(&orders, &books), []);
    }

    #[test]
    fn every_kind_of_wrong_is_found() {
        let wrongs: [fn(&mut Books); 12] = [
            |books| drop(books.effects.remove(0)),
            |books| books.effects.push(books.effects[0].clone()),
            |books| books.effects[0].attempt += 1,
            |books| books.effects[0].origin = "nobody".to_owned(),
            |books| drop(books.known.pop()),
            |books| books.known[0].status = 2,
            |books| drop(books.parked.remove(0)),
            |books| books.parked[0].state = 1,
            |books| books.parked[0].compensations += 1,
            |books| books.parked.retain(|row| row.reason.as_deref() != Some("id-conflict")),
            |books| books.outbox.push((1, 1)),
            |books| books.stock[0].1 += 1,
        ];
        for (number, wrong) in wrongs.into_iter().enumerate() {
            let (orders, mut books) = fair();
            wrong(&mut books);
            assert_ne!(check(&orders, &books), [], "wrong {number} was not found");
        }
    }

    #[test]
    fn a_redriven_dead_letter_is_compensated_once_more() {
        let (orders, mut books) = fair();
        let dead = books.parked.iter_mut().find(|row| row.compensations == 1);
        let dead = dead.expect("a dead letter was compensated");
        (dead.generation, dead.compensations) = (1, 2);
        let key = (dead.consumer.clone(), dead.message_id.clone().unwrap_or_default());
        assert_ne!(check(&orders, &books), []);
        let again = books.effects.iter().find(|effect| (&effect.consumer, &effect.message_id) == (&key.0, &key.1));
        let again = again.expect("its compensation took effect").clone();
        books.effects.push(again);
        assert_eq!(check(&orders, &books), []);
    }
}
