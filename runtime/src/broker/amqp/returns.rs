//! Which of the messages of a window a returned message is.
//!
//! The broker returns a message it cannot route before it confirms it, and says nothing about which one it was. lapin
//! hands each return to the next confirm that it reads, which under `multiple` confirms is often another message's. So
//! returns are matched by what they are: exchange, routing key, message id, and among copies of one id by their
//! bodies. Two messages that agree in all of that have the same route, and whichever of them is said to be returned,
//! the answer is true. Nothing is added to a message for this, so consumers see what the producer wrote.

use std::collections::HashMap;

/// What a message is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Known<'a> {
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
    pub(super) message_id: Option<&'a str>,
}

/// A message, or a return.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) known: Known<'a>,
    pub(super) body: &'a [u8],
}

/// What the returns say about a window.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Matched {
    /// For each return the message it is.
    pub(super) returned: Vec<Option<usize>>,
    /// Messages one of which is a return that could not be told: nothing is known of them.
    pub(super) in_doubt: Vec<usize>,
}

/// Matches returns to the messages of a window.
pub(super) fn match_returns(window: &[Item<'_>], returns: &[Item<'_>]) -> Matched {
    let mut candidates: HashMap<Known<'_>, Vec<usize>> = HashMap::new();
    for (index, item) in window.iter().enumerate().rev() {
        candidates.entry(item.known).or_default().push(index);
    }
    let mut matched = Matched::default();
    for item in returns {
        // The copies of one id that are left, the first of the window last: equal bodies, then the first of all.
        let left = candidates.get_mut(&item.known).filter(|left| !left.is_empty());
        let found = left.map(|left| {
            let equal = left.iter().rposition(|index| window[*index].body == item.body);
            left.remove(equal.unwrap_or(left.len() - 1))
        });
        matched.returned.push(found);
        if found.is_none() {
            matched.in_doubt.extend(in_doubt(window, item));
        }
    }
    matched
}

/// A return that is none of the messages: the broker has changed it. It is one of those with the same address.
fn in_doubt(window: &[Item<'_>], item: &Item<'_>) -> Vec<usize> {
    let address = |known: &Known<'_>| (known.exchange.to_owned(), known.routing_key.to_owned());
    let same = (0..window.len()).filter(|index| address(&window[*index].known) == address(&item.known));
    let same: Vec<usize> = same.collect();
    if same.is_empty() { (0..window.len()).collect() } else { same }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item<'a>(key: &'a str, id: &'a str, body: &'a str) -> Item<'a> {
        let known = Known { exchange: "x", routing_key: key, message_id: Some(id) };
        Item { known, body: body.as_bytes() }
    }

    #[test]
    fn a_return_is_the_message_with_its_id() {
        let window = [item("k", "1", "a"), item("k", "2", "a"), item("j", "3", "a")];
        let matched = match_returns(&window, &[item("j", "3", "a"), item("k", "1", "a")]);
        assert_eq!(matched, Matched { returned: vec![Some(2), Some(0)], in_doubt: vec![] });
    }

    #[test]
    fn copies_of_an_id_are_told_apart_by_their_bodies() {
        let window = [item("k", "1", "a"), item("k", "1", "b"), item("k", "1", "a")];
        let matched = match_returns(&window, &[item("k", "1", "b"), item("k", "1", "a"), item("k", "1", "a")]);
        assert_eq!(matched.returned, [Some(1), Some(0), Some(2)]);
    }

    #[test]
    fn a_return_that_was_changed_leaves_those_of_its_address_in_doubt() {
        let window = [item("k", "1", "a"), item("j", "2", "a")];
        assert_eq!(match_returns(&window, &[item("k", "9", "a")]), Matched { returned: vec![None], in_doubt: vec![0] });
        assert_eq!(match_returns(&window, &[item("z", "9", "a")]).in_doubt, [0, 1]);
    }
}
