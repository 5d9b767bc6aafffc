//! Which queues a message goes to.

use std::collections::{BTreeSet, HashMap};

/// How an exchange chooses among its bindings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// The routing key equals the binding's.
    Direct,
    /// Every binding.
    Fanout,
    /// The binding's key is a pattern of words between dots: `*` stands for one word, `#` for any number of words.
    Topic,
}

impl ExchangeKind {
    /// Its name, as AMQP has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Direct, Self::Fanout, Self::Topic].into_iter().find(|kind| kind.name() == name)
    }

    fn matches(self, pattern: &str, key: &str) -> bool {
        match self {
            Self::Direct => pattern == key,
            Self::Fanout => true,
            Self::Topic => topic_matches(pattern, key),
        }
    }
}

/// All exchanges, queues and bindings of a file at one moment.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Ids of the queues by name: what the default exchange routes by.
    pub(super) queues: HashMap<String, i64>,
    /// Exchanges with their bindings: pattern and queue id.
    pub(super) exchanges: HashMap<String, (ExchangeKind, Vec<(String, i64)>)>,
}

impl Routes {
    /// The queues of a message, each once; `None` if there is no such exchange.
    pub(super) fn of(&self, exchange: &str, key: &str) -> Option<BTreeSet<i64>> {
        if exchange.is_empty() {
            return Some(self.queues.get(key).copied().into_iter().collect());
        }
        let (kind, bindings) = self.exchanges.get(exchange)?;
        let matching = bindings.iter().filter(|(pattern, _)| kind.matches(pattern, key));
        Some(matching.map(|(_, queue)| *queue).collect())
    }
}

/// The usual wildcard algorithm, on words: after a mismatch, the last `#` takes one word more. So it is quadratic at
/// worst, whatever the pattern.
fn topic_matches(pattern: &str, key: &str) -> bool {
    let words = |text: &'_ str| -> Vec<String> {
        if text.is_empty() { vec![] } else { text.split('.').map(str::to_owned).collect() }
    };
    let (pattern, key) = (words(pattern), words(key));
    let (mut at_pattern, mut at_key) = (0, 0);
    let mut last_hash: Option<(usize, usize)> = None;
    while at_key < key.len() {
        match pattern.get(at_pattern).map(String::as_str) {
            Some("#") => {
                last_hash = Some((at_pattern, at_key));
                at_pattern += 1;
            }
            Some(word) if word == "*" || word == key[at_key] => {
                at_pattern += 1;
                at_key += 1;
            }
            _ => match &mut last_hash {
                Some((hash, taken)) => {
                    *taken += 1;
                    (at_pattern, at_key) = (*hash + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at_pattern..].iter().all(|word| word == "#")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn topics_match_word_by_word() {
        for (pattern, key, expected) in [
            ("order.created", "order.created", true),
            ("order.created", "order.creates", false),
            ("order.*", "order.created", true),
            ("order.*", "order", false),
            ("order.*", "order.created.eu", false),
            ("order.#", "order", true),
            ("order.#", "order.created.eu", true),
            ("#", "", true),
            ("#", "a.b", true),
            ("*", "", false),
            ("*", "a", true),
            ("", "", true),
            ("", "a", false),
            ("#.eu", "order.created.eu", true),
            ("#.eu", "order.created.us", false),
            ("a.#.b.#.c", "a.x.b.b.y.c", true),
            ("#.#", "", true),
            ("*.#.*", "a", false),
            ("a..b", "a..b", true),
            ("a.*.b", "a..b", true),
        ] {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern:?} and {key:?}");
        }
    }

    /// The definition, taken literally.
    fn plainly(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => plainly(rest, key) || (!key.is_empty() && plainly(pattern, &key[1..])),
            (Some((word, pattern)), Some((first, key))) => (*word == "*" || word == first) && plainly(pattern, key),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_fast_way_agrees_with_the_definition(pattern in "[ab*#](\\.[ab*#]){0,5}", key in "[ab](\\.[ab]){0,5}") {
            let split = |text: &'_ str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
            let (p, k) = (split(&pattern), split(&key));
            let p: Vec<&str> = p.iter().map(String::as_str).collect();
            let k: Vec<&str> = k.iter().map(String::as_str).collect();
            prop_assert_eq!(topic_matches(&pattern, &key), plainly(&p, &k));
        }
    }

    #[test]
    fn a_queue_gets_a_message_once_and_the_default_exchange_goes_by_name() {
        let bindings = vec![("a.*".to_owned(), 1), ("#".to_owned(), 1), ("b".to_owned(), 2)];
        let mut routes = Routes::default();
        routes.exchanges.insert("x".to_owned(), (ExchangeKind::Topic, bindings));
        routes.queues.insert("q".to_owned(), 7);
        assert_eq!(routes.of("x", "a.b"), Some(BTreeSet::from([1])));
        assert_eq!(routes.of("", "q"), Some(BTreeSet::from([7])));
        assert_eq!(routes.of("", "nobody"), Some(BTreeSet::new()));
        assert_eq!(routes.of("nowhere", "q"), None);
    }
}
