//! The orders of a run: what each one's handler does, and so what must become of it.
//!
//! An order is one message to two consumers, each of which handles it by itself. Everything about it follows from the
//! seed and its number.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value as Json, json};

use crate::stage::ORDER;

/// Goods that orders take from; few, so that lanes and hosts meet at rows.
pub(crate) const GOODS: u64 = 20;
/// Pieces of each at the start: more than any run takes.
pub(crate) const STOCK: i64 = 1_000_000_000;

/// Calls of a handler, and of a compensation, in all.
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// Longer than any attempt may take.
const FOREVER_MS: u64 = 600_000;

/// Of so many orders one hangs.
const HANGS_EVERY: u64 = 10_000;

/// A body that does not fit one row of a parked message.
const LARGE: usize = 1_200_000;

/// How an order's handler behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Succeeds at once.
    Plain,
    /// Publishes a message, which another consumer handles.
    Telling,
    /// Holds the row that everybody wants for a while.
    Hot,
    /// Has a body of more than a megabyte, and fails once.
    Large,
    /// Fails once or twice after it has written and published.
    Flaky(u32),
    /// Traps once after it has written.
    Trapping,
    /// Runs past its time limit once.
    Hanging,
    /// Ignores the error of a statement once, and returns ok.
    Heedless,
    /// Tries to end its transaction once, and fails.
    Sneaky,
    /// Fails unless all switches that failing attempts turn are off: nothing of them may be seen.
    Watchful,
    /// Breaks a constraint once that is checked at COMMIT, where the database has such.
    Deferred,
    /// Has an id that cannot be used.
    Nameless,
    /// Refuses for good; its compensation succeeds.
    Refused,
    /// Fails always; its compensation succeeds.
    Exhausted,
    /// Refuses for good; its compensation fails once.
    Reluctant,
    /// Refuses for good, and its compensation fails always.
    Hopeless,
}

/// What must have become of an order, once for each consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It took effect, on this attempt.
    Effect { attempt: u32 },
    /// It is dead for this reason, and compensated on this attempt.
    Compensated { reason: &'static str, attempt: u32 },
    /// It is dead, and nothing of it took effect.
    Dead { reason: &'static str },
    /// It is a dead letter of its own each time that it comes.
    Apart { reason: &'static str },
}

/// One order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    pub(crate) goods: u64,
    pub(crate) repeats: Repeats,
    id: String,
    /// See [`Repeats::Forged`].
    is_forged: bool,
}

/// When an order's message comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    Never,
    /// Right behind itself.
    AtOnce,
    /// After so many others.
    After(u64),
    /// Once everything is done.
    AtTheEnd,
    /// After so many others, and with another body: a message that pretends to be this one.
    Forged(u64),
}

impl Order {
    /// The order of that number.
    pub(crate) fn of(seed: u64, number: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let kind = match random.random_range(0..10_000) {
            // Nothing else moves for as long as it takes: few, but one in every run.
            _ if number % HANGS_EVERY == HANGS_EVERY / 20 => Kind::Hanging,
            0..4300 => Kind::Plain,
            4300..4900 => Kind::Watchful,
            4900..4970 => Kind::Deferred,
            4970..5000 => Kind::Nameless,
            5000..6800 => Kind::Telling,
            6800..7600 => Kind::Hot,
            7600..7620 => Kind::Large,
            7620..8640 => Kind::Flaky(random.random_range(1..MAX_ATTEMPTS)),
            8640..8900 => Kind::Trapping,
            8900..9100 => Kind::Heedless,
            9100..9250 => Kind::Sneaky,
            9250..9550 => Kind::Refused,
            9550..9750 => Kind::Exhausted,
            9750..9900 => Kind::Reluctant,
            _ => Kind::Hopeless,
        };
        let repeats = match random.random_range(0..100) {
            0..8 => Repeats::AtOnce,
            8..14 => Repeats::After(random.random_range(1..2000)),
            14..18 => Repeats::AtTheEnd,
            18..20 if kind == Kind::Plain => Repeats::Forged(random.random_range(1..2000)),
            _ => Repeats::Never,
        };
        // Random, as producers' ids mostly are.
        let id = format!("{:016x}-{number}", random.random::<u64>());
        let id = if kind == Kind::Nameless { format!("{id}\0") } else { id };
        let goods = if kind == Kind::Hot { 0 } else { random.random_range(0..GOODS) };
        Self { number, kind, goods, repeats, id, is_forged: false }
    }

    /// The message that pretends to be this one, if there is to be one. Of the two the one that comes first takes effect,
    /// and the other one is dead.
    pub(crate) fn forged(&self) -> Option<Self> {
        matches!(self.repeats, Repeats::Forged(_)).then(|| Self { is_forged: true, ..self.clone() })
    }

    /// What its producer sends again after a queue was lost whose consumer knows its id, or does not. Of two bodies under
    /// one id it may know either.
    pub(crate) fn sent_again(self, is_known: bool) -> Vec<Self> {
        match self.forged() {
            Some(forged) => vec![self, forged],
            None if is_known => Vec::new(),
            None => vec![self],
        }
    }

    /// Its message id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// What must become of it.
    pub(crate) fn fate(&self) -> Fate {
        match self.kind {
            Kind::Plain | Kind::Telling | Kind::Hot | Kind::Watchful => Fate::Effect { attempt: 1 },
            Kind::Flaky(failures) => Fate::Effect { attempt: failures + 1 },
            Kind::Large | Kind::Trapping | Kind::Hanging | Kind::Heedless | Kind::Sneaky | Kind::Deferred => {
                Fate::Effect { attempt: 2 }
            }
            Kind::Nameless => Fate::Apart { reason: "bad-id" },
            Kind::Refused => Fate::Compensated { reason: "permanent", attempt: 1 },
            Kind::Exhausted => Fate::Compensated { reason: "exhausted", attempt: 1 },
            Kind::Reluctant => Fate::Compensated { reason: "permanent", attempt: 2 },
            Kind::Hopeless => Fate::Dead { reason: "compensation-failed" },
        }
    }

    /// Where its message is published to. What has no usable id is known by it.
    pub(crate) fn routing_key(&self) -> String {
        if self.kind == Kind::Nameless { format!("{ORDER}.{}", self.number) } else { ORDER.to_owned() }
    }

    /// True if its handler publishes a message.
    pub(crate) fn tells(&self) -> bool {
        matches!(self.kind, Kind::Telling | Kind::Flaky(_))
    }

    /// The body of its message: the program of its handler.
    pub(crate) fn body(&self) -> Vec<u8> {
        let fails = |advice: &str| json!({ "fail": { "code": "planned", "message": "as planned", "advice": advice } });
        let sell = json!({
            "affects": "UPDATE stock SET quantity = quantity - 1 WHERE goods_id = ? AND quantity > 0",
            "params": [self.goods], "rows": 1,
        });
        let mut steps = vec![sell, self.effect()];
        if self.tells() {
            steps.push(self.tell());
        }
        match self.kind {
            Kind::Plain | Kind::Telling | Kind::Nameless => {}
            Kind::Watchful => steps.push(json!({
                "query": "SELECT COUNT(*) FROM switch WHERE turned > 0", "expect": [[0]],
            })),
            Kind::Deferred => steps.push(first(&[
                self.turn_switch(),
                json!({ "sql": "INSERT INTO late (goods_id) VALUES (-1)" }),
            ])),
            Kind::Hot => steps.insert(1, json!({ "sleep-ms": self.number % 20 })),
            Kind::Large => steps.push(json!({ "fail-until-attempt": 2 })),
            Kind::Flaky(failures) => {
                steps.push(first(&[self.turn_switch()]));
                steps.push(json!({ "fail-until-attempt": failures + 1 }));
            }
            Kind::Trapping => steps.push(first(&[json!({ "panic": "as planned" })])),
            Kind::Hanging => steps.push(first(&[json!({ "sleep-ms": FOREVER_MS })])),
            Kind::Heedless => steps.push(first(&[json!({
                "ignore-error": { "sql": "INSERT INTO stock (goods_id, quantity) VALUES (?, 0)", "params": [self.goods] },
            })])),
            Kind::Sneaky => {
                steps.push(first(&[json!({ "ignore-error": { "sql": "COMMIT" } }), fails("policy")]));
            }
            Kind::Refused | Kind::Reluctant | Kind::Hopeless => steps.push(fails("never")),
            Kind::Exhausted => steps.push(fails("policy")),
        }
        let compensation = match self.kind {
            Kind::Reluctant => vec![self.effect(), json!({ "fail-until-attempt": 2 })],
            Kind::Hopeless => vec![self.effect(), fails("policy")],
            _ => vec![self.effect()],
        };
        let padding = if self.kind == Kind::Large { "x".repeat(LARGE) } else { String::new() };
        let program = json!({
            "goods": self.goods, "do": steps, "compensate": compensation, "padding": padding, "forged": self.is_forged,
        });
        program.to_string().into()
    }

    /// A row for each time that a handler or a compensation took effect; nothing keeps a second one out.
    fn effect(&self) -> Json {
        let columns = ["consumer", "message_id", "origin", "phase", "attempt", "reason", "goods_id"];
        json!({
            "sql": format!("INSERT INTO effects ({}) VALUES (?, ?, ?, ?, ?, ?, ?)", columns.join(", ")),
            "params": [
                { "$": "config:consumer" }, { "$": "message-id" }, self.id, { "$": "phase" }, { "$": "attempt" },
                { "$": "death-reason" }, self.goods,
            ],
        })
    }

    /// What nobody may ever see, since the attempt fails.
    fn turn_switch(&self) -> Json {
        json!({ "sql": "UPDATE switch SET turned = turned + 1 WHERE goods_id = ?", "params": [self.goods] })
    }

    /// What another consumer hears of it: a program that writes down who told it.
    fn tell(&self) -> Json {
        json!({ "publish": {
            "exchange": crate::stage::EXCHANGE, "routing_key": crate::stage::TOLD, "body": { "do": [self.effect()] },
        } })
    }
}

fn first(steps: &[Json]) -> Json {
    json!({ "until-attempt": 2, "do": steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_follows_from_the_seed_and_its_number() {
        for number in 0..100 {
            let (one, same) = (Order::of(7, number), Order::of(7, number));
            assert_eq!((one.id(), one.body()), (same.id(), same.body()));
        }
        assert_ne!(Order::of(7, 1).id(), Order::of(8, 1).id());
    }

    #[test]
    fn of_two_bodies_under_one_id_both_are_sent_again() {
        let orders: Vec<Order> = (0..1000).map(|number| Order::of(1, number)).collect();
        for order in orders {
            let forged = order.forged().map(|forged| forged.body());
            let again = |is_known| order.clone().sent_again(is_known).iter().map(Order::body).collect::<Vec<_>>();
            let both: Vec<_> = [Some(order.body()), forged.clone()].into_iter().flatten().collect();
            assert_eq!(again(false), both);
            assert_eq!(again(true), if forged.is_some() { both } else { vec![] });
        }
    }

    #[test]
    fn a_tenth_comes_again_and_a_tenth_fails() {
        let orders: Vec<Order> = (0..10_000).map(|number| Order::of(1, number)).collect();
        let repeated = orders.iter().filter(|order| order.repeats != Repeats::Never).count();
        let failing = orders.iter().filter(|order| order.fate() != Fate::Effect { attempt: 1 }).count();
        assert!(repeated > 1000 && failing > 1000, "{repeated} come again, {failing} fail");
    }
}
