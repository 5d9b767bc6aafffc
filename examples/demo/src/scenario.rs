//! What is published, and what must come of it. Pure: the same number and seed give the same messages.
//!
//! Everything that chance decides at run time (which attempt fails when, which order meets the last item in stock, when
//! the host dies) must not change any figure here. So goods are either plentiful, or unknown, or ordered in amounts that
//! were never there, or scarce and ordered one at a time: then exactly as many orders succeed as there are items.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

/// How many goods there is enough of, with ids from 1.
const PLENTIFUL: i64 = 20;
/// Goods of which there are half as many as are ordered.
const SCARCE: [i64; 2] = [101, 102];
/// Goods ids past 2^53 that differ in their last digit: a program that reads them as floating point numbers takes them
/// for one.
const LONG_IDS: [i64; 2] = [1_234_567_890_123_456_788, CLASSIC];
/// What the bare ids of classic producers stand for.
const CLASSIC: i64 = 1_234_567_890_123_456_789;
/// Goods that do not exist.
const UNKNOWN: i64 = 404;
/// More than there ever is.
const TOO_MANY: i64 = 1_000_000_000;

/// How far behind its original a duplicate comes that does not come at once, in messages.
const LATER: std::ops::Range<usize> = 20..500;

/// What nobody can read as an order.
const GARBAGE: [&[u8]; 5] =
    [b"", b"not an order", b"{\"goods_id\":", b"\xff\xfe\x00\x01", b"{\"goods_id\":1,\"quantity\":-3}"];

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    /// The message id; some producers forget it.
    pub(crate) id: Option<String>,
    /// MIME type of the body.
    pub(crate) content_type: &'static str,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// What must become of a message id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its stock is reduced, once.
    Completed,
    /// It is refused for this reason, once: a dead letter, and a row in `refused_order`.
    Refused(&'static str),
    /// One of the two: which, depends on who came first.
    Either,
    /// It is a dead letter; there is nothing to compensate in a body that cannot be read.
    Undecodable,
}

/// What must have come of it all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Each valid message id, and what must become of it.
    pub(crate) fates: BTreeMap<String, Fate>,
    /// How many message ids are completed.
    pub(crate) completed: usize,
    /// How many orders are refused, by the code of the handler's failure.
    pub(crate) refused: BTreeMap<&'static str, usize>,
    /// How many message ids have bodies that cannot be read.
    pub(crate) undecodable: usize,
    /// How many messages have no id.
    pub(crate) no_id: usize,
    /// How many messages carry the id of another one.
    pub(crate) conflicts: usize,
    /// How many messages repeat another one, id and body.
    pub(crate) duplicates: usize,
    /// What must be left of each of the goods.
    pub(crate) stock: BTreeMap<i64, i64>,
}

/// What is published, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// What is in stock before.
    pub(crate) stock: BTreeMap<i64, i64>,
    /// What is published while the host works.
    pub(crate) flow: Vec<Publication>,
    /// What is published once everything in `flow` is done: the latest of duplicates.
    pub(crate) late: Vec<Publication>,
    /// What must have come of it all.
    pub(crate) expected: Expected,
}

/// How many messages of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    duplicates: usize,
    no_id: usize,
    conflicts: usize,
    garbage: usize,
    scarce: usize,
    too_many: usize,
    unknown: usize,
    classic: usize,
    plain: usize,
}

impl Counts {
    fn of(messages: u32) -> Self {
        let total = messages as usize;
        let percent = |percent: usize| (total * percent / 100).max(2);
        let mut counts = Self {
            duplicates: percent(30),
            no_id: percent(2),
            conflicts: percent(1),
            garbage: percent(1),
            scarce: percent(2),
            too_many: percent(1),
            unknown: percent(1),
            classic: percent(7),
            plain: 0,
        };
        let rest = [
            counts.duplicates,
            counts.no_id,
            counts.conflicts,
            counts.garbage,
            counts.scarce,
            counts.too_many,
            counts.unknown,
            counts.classic,
        ];
        counts.plain = total.saturating_sub(rest.iter().sum());
        counts
    }
}

/// An order, and what must become of it.
#[derive(Debug, Clone)]
struct Order {
    message: Publication,
    goods: i64,
    quantity: i64,
    fate: Fate,
}

impl Scenario {
    /// A scenario of so many messages, duplicates and all.
    pub(crate) fn new(messages: u32, seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let counts = Counts::of(messages);
        let orders = orders(counts, &mut chance);
        let (stock, mut expected) = settle(&orders, &mut chance);

        let mut flow: Vec<Publication> = orders.iter().map(|order| order.message.clone()).collect();
        flow.extend((0..counts.no_id).map(|number| {
            // Told apart by their bodies, for want of an id.
            let body = format!("{{\"goods_id\":1,\"quantity\":1,\"order\":{number}}}");
            Publication { id: None, content_type: "application/json", body: body.into_bytes() }
        }));
        flow.shuffle(&mut chance);

        let (near, mut late) = duplicates(&flow, counts.duplicates, &mut chance);
        let (reused, reused_late) = conflicts(&orders, counts.conflicts, &mut chance);
        late.extend(reused_late);
        late.shuffle(&mut chance);
        let flow = mix(flow, near, reused, &mut chance);

        expected.duplicates = counts.duplicates;
        expected.conflicts = counts.conflicts;
        expected.no_id = counts.no_id;
        Self { stock, flow, late, expected }
    }

    /// How many messages there are.
    pub(crate) fn messages(&self) -> usize {
        self.flow.len() + self.late.len()
    }

    /// Attempts that no order exceeds by mere bad luck: with half of the attempts failing, the chance that any of the
    /// orders uses them up is below one in a billion.
    pub(crate) fn max_attempts(&self) -> u32 {
        let orders = self.expected.fates.len().max(1) as f64;
        (orders * 1e9).log2().ceil() as u32
    }
}

/// Every order, in no particular sequence.
fn orders(counts: Counts, chance: &mut StdRng) -> Vec<Order> {
    let mut orders = Vec::new();
    for _ in 0..counts.plain {
        let goods = match chance.random_range(0..=PLENTIFUL) {
            0 => *LONG_IDS.choose(chance).unwrap_or(&CLASSIC),
            goods => goods,
        };
        orders.push(order(goods, chance.random_range(1..=5), Fate::Completed, chance));
    }
    for number in 0..counts.scarce {
        orders.push(order(SCARCE[number % SCARCE.len()], 1, Fate::Either, chance));
    }
    for _ in 0..counts.too_many {
        let goods = chance.random_range(1..=PLENTIFUL);
        orders.push(order(goods, TOO_MANY, Fate::Refused("out-of-stock"), chance));
    }
    for _ in 0..counts.unknown {
        orders.push(order(UNKNOWN, 1, Fate::Refused("unknown-goods"), chance));
    }
    for number in 0..counts.garbage {
        let mut garbage = order(0, 0, Fate::Undecodable, chance);
        garbage.message.body = GARBAGE[number % GARBAGE.len()].to_vec();
        orders.push(garbage);
    }
    for _ in 0..counts.classic {
        let mut classic = order(CLASSIC, 1, Fate::Completed, chance);
        classic.message.content_type = "text/plain";
        classic.message.body = CLASSIC.to_string().into_bytes();
        orders.push(classic);
    }
    for (number, order) in orders.iter_mut().enumerate() {
        order.message.id = Some(new_id(number, chance));
    }
    orders
}

/// An order in JSON, with the id of the goods as a number or as a string.
fn order(goods: i64, quantity: i64, fate: Fate, chance: &mut StdRng) -> Order {
    let body = match chance.random_bool(0.5) {
        true => format!("{{\"goods_id\":{goods},\"quantity\":{quantity}}}"),
        false => format!("{{\"goods_id\":\"{goods}\",\"quantity\":{quantity}}}"),
    };
    let message = Publication { id: None, content_type: "application/json", body: body.into_bytes() };
    Order { message, goods, quantity, fate }
}

/// A time-ordered UUID, as producers should use; the seed decides it.
fn new_id(number: usize, chance: &mut StdRng) -> String {
    const BEGIN: u64 = 1_750_000_000_000;
    uuid::Builder::from_unix_timestamp_millis(BEGIN + number as u64, &chance.random()).into_uuid().to_string()
}

/// What must be in stock before, and what comes of the orders.
fn settle(orders: &[Order], chance: &mut StdRng) -> (BTreeMap<i64, i64>, Expected) {
    let mut expected = Expected::default();
    let mut stock: BTreeMap<i64, i64> = BTreeMap::new();
    for goods in (1..=PLENTIFUL).chain(LONG_IDS) {
        let left = chance.random_range(100..1000);
        expected.stock.insert(goods, left);
        stock.insert(goods, left);
    }
    let mut scarce: BTreeMap<i64, usize> = SCARCE.into_iter().map(|goods| (goods, 0)).collect();
    for order in orders {
        match order.fate {
            Fate::Completed => {
                *stock.entry(order.goods).or_default() += order.quantity;
                expected.completed += 1;
            }
            Fate::Refused(code) => *expected.refused.entry(code).or_default() += 1,
            Fate::Either => *scarce.entry(order.goods).or_default() += 1,
            Fate::Undecodable => expected.undecodable += 1,
        }
        if let Some(id) = &order.message.id {
            expected.fates.insert(id.clone(), order.fate);
        }
    }
    for (goods, ordered) in scarce {
        let items = ordered / 2;
        stock.insert(goods, i64::try_from(items).unwrap_or(i64::MAX));
        expected.stock.insert(goods, 0);
        expected.completed += items;
        *expected.refused.entry("out-of-stock").or_default() += ordered - items;
    }
    (stock, expected)
}

/// Duplicates: those that come soon, each with the place of its original in `flow` and its distance from it, and those
/// that come after everything else.
fn duplicates(
    flow: &[Publication],
    count: usize,
    chance: &mut StdRng,
) -> (Vec<(usize, Publication)>, Vec<Publication>) {
    let originals: Vec<usize> = (0..flow.len()).filter(|&place| flow[place].id.is_some()).collect();
    let (mut near, mut late) = (Vec::new(), Vec::new());
    for number in 0..count {
        let Some(&place) = originals.choose(chance) else { break };
        let copy = flow[place].clone();
        match number % 4 {
            0 | 1 => near.push((place, copy)),
            2 => near.push((place + chance.random_range(LATER), copy)),
            _ => late.push(copy),
        }
    }
    (near, late)
}

/// Messages that carry the id of another one: while the work goes on, a changed remark (either of the two may come
/// first, and their effect is the same); and after it, another order altogether.
fn conflicts(orders: &[Order], count: usize, chance: &mut StdRng) -> (Vec<Publication>, Vec<Publication>) {
    let reusable: Vec<&Order> = orders
        .iter()
        .filter(|order| order.fate == Fate::Completed && order.message.content_type == "application/json")
        .collect();
    let (mut soon, mut late) = (Vec::new(), Vec::new());
    for (number, order) in reusable.choose_multiple(chance, count).enumerate() {
        let Order { goods, quantity, .. } = order;
        let now = number % 2 == 0;
        let body = match now {
            true => format!("{{\"goods_id\":{goods},\"quantity\":{quantity},\"remark\":\"urgent\"}}"),
            false => format!("{{\"goods_id\":1,\"quantity\":{}}}", quantity + 7),
        };
        let copy = Publication { body: body.into_bytes(), ..order.message.clone() };
        if now { soon.push(copy) } else { late.push(copy) }
    }
    (soon, late)
}

/// Puts copies behind their originals.
fn mix(
    flow: Vec<Publication>,
    near: Vec<(usize, Publication)>,
    reused: Vec<Publication>,
    chance: &mut StdRng,
) -> Vec<Publication> {
    let places: BTreeMap<Option<String>, usize> =
        flow.iter().enumerate().map(|(place, message)| (message.id.clone(), place)).collect();
    let behind = reused.into_iter().map(|message| {
        let original = places.get(&message.id).copied().unwrap_or(0);
        (original + chance.random_range(LATER), message)
    });
    let copies: Vec<(usize, Publication)> = near.into_iter().chain(behind).collect();
    let mut placed: Vec<(usize, Publication)> = flow.into_iter().enumerate().collect();
    placed.extend(copies);
    // Stable: what has the same place comes after the original.
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, message)| message).collect()
}

/// Says what is going to be shown.
pub(crate) fn introduce(scenario: &Scenario, servers: bool) {
    let expected = &scenario.expected;
    println!(
        "{} messages for {} orders go to a queue: {} are duplicates, {} have no id, {} reuse another's id, {} are garbage.",
        scenario.messages(),
        expected.fates.len() - expected.undecodable,
        expected.duplicates,
        expected.no_id,
        expected.conflicts,
        expected.undecodable,
    );
    println!(
        "The handler fails after its UPDATE half of the time, and `hapax run` is killed with SIGKILL twice. \
         Each order must take effect once."
    );
    if servers {
        println!("Starting private servers; RabbitMQ takes some seconds …");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SIZES: [u32; 4] = [200, 1234, 5000, 20_000];

    fn ids(messages: &[Publication]) -> impl Iterator<Item = &String> {
        messages.iter().filter_map(|message| message.id.as_ref())
    }

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(Scenario::new(1000, 7), Scenario::new(1000, 7));
        assert_ne!(Scenario::new(1000, 7), Scenario::new(1000, 8));
    }

    #[test]
    fn it_is_as_large_as_asked_and_three_in_ten_are_duplicates() {
        for size in SIZES {
            let scenario = Scenario::new(size, 1);
            assert_eq!(scenario.messages(), size as usize);
            assert_eq!(scenario.expected.duplicates, size as usize * 3 / 10);
        }
    }

    #[test]
    fn what_is_expected_adds_up_to_what_is_published() {
        for size in SIZES {
            let Scenario { expected, flow, late, .. } = Scenario::new(size, 2);
            let refused: usize = expected.refused.values().sum();
            assert_eq!(expected.completed + refused + expected.undecodable, expected.fates.len());
            let others = expected.duplicates + expected.conflicts + expected.no_id;
            assert_eq!(expected.fates.len() + others, flow.len() + late.len());
        }
    }

    #[test]
    fn duplicates_equal_their_originals_and_conflicts_do_not() {
        let Scenario { expected, flow, late, .. } = Scenario::new(5000, 3);
        let mut bodies: BTreeMap<&str, BTreeMap<&[u8], usize>> = BTreeMap::new();
        for message in flow.iter().chain(&late) {
            if let Some(id) = &message.id {
                *bodies.entry(id).or_default().entry(&message.body).or_default() += 1;
            }
        }
        let conflicts = bodies.values().filter(|bodies| bodies.len() == 2).count();
        assert!(bodies.values().all(|bodies| bodies.len() <= 2));
        assert_eq!(conflicts, expected.conflicts);
        let copies: usize = bodies.values().flat_map(BTreeMap::values).sum::<usize>() - bodies.len() - conflicts;
        assert_eq!(copies, expected.duplicates);
    }

    #[test]
    fn some_duplicates_come_at_once_some_later_and_some_when_all_is_done() {
        let Scenario { flow, late, expected, .. } = Scenario::new(5000, 4);
        let (mut seen, mut distances) = (BTreeMap::new(), Vec::new());
        for (place, message) in flow.iter().enumerate() {
            if let Some(id) = &message.id
                && let Some(before) = seen.insert(id, place)
            {
                distances.push(place - before);
            }
        }
        assert!(distances.iter().filter(|&&distance| distance <= 2).count() > 500);
        assert!(distances.iter().filter(|&&distance| distance > 20).count() > 200);
        assert!(late.len() >= expected.duplicates / 4);
        let in_flow: BTreeSet<&String> = ids(&flow).collect();
        assert!(ids(&late).all(|id| in_flow.contains(id)), "everything late has come before");
    }

    #[test]
    fn the_stock_expected_is_what_the_orders_leave() {
        let Scenario { stock, expected, flow, .. } = Scenario::new(5000, 5);
        let mut left = stock;
        let mut seen = BTreeSet::new();
        for message in &flow {
            let Some(id) = &message.id else { continue };
            if !matches!(expected.fates[id], Fate::Completed | Fate::Either) || !seen.insert(id) {
                continue;
            }
            let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
            let number = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let (goods, quantity) = match body.get("goods_id") {
                Some(goods) => (number(goods), body["quantity"].as_i64().unwrap()),
                None => (body.to_string(), 1),
            };
            let goods: i64 = goods.parse().unwrap();
            let left = left.get_mut(&goods).unwrap();
            if *left >= quantity {
                *left -= quantity;
            }
        }
        assert_eq!(left, expected.stock);
    }

    #[test]
    fn scarce_goods_are_ordered_more_often_than_there_are_and_one_at_a_time() {
        let Scenario { stock, expected, .. } = Scenario::new(200, 6);
        let ordered = expected.fates.values().filter(|fate| **fate == Fate::Either).count();
        let items: i64 = SCARCE.iter().map(|goods| stock[goods]).sum();
        assert!(items > 0 && (items as usize) < ordered, "{items} of {ordered}");
    }

    #[test]
    fn nobody_dies_of_bad_luck() {
        let scenario = Scenario::new(5000, 7);
        let chance = scenario.expected.fates.len() as f64 * 0.5_f64.powf(scenario.max_attempts().into());
        assert!(chance <= 1e-9, "{chance}");
        assert!(scenario.max_attempts() < 60);
    }
}
