//! A witness of the lock server: hears every command, and notices a lock that somebody else than its holder renews or
//! releases.
//!
//! No message is lost or doubled by that, for SQL is the judge of those; so nobody else would notice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use redis::Client;
use tokio_util::task::AbortOnDropHandle;

/// Near the end of its lease nobody knows from outside whether a lock still stands.
const VAGUE_SECONDS: f64 = 0.1;

/// How long it waits for a lock server that is away.
const PAUSE: Duration = Duration::from_millis(20);

/// Listens until it is dropped.
pub(crate) struct Witness {
    found: Arc<Mutex<Vec<String>>>,
    _listener: AbortOnDropHandle<()>,
}

impl Witness {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the URL is none.
    pub(crate) fn of(url: &str) -> Result<Self> {
        let client = Client::open(url)?;
        let found = Arc::<Mutex<Vec<String>>>::default();
        let listener = tokio::spawn(listen(client, found.clone()));
        Ok(Self { found, _listener: AbortOnDropHandle::new(listener) })
    }

    /// What it has noticed.
    pub(crate) fn found(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn listen(client: Client, found: Arc<Mutex<Vec<String>>>) {
    loop {
        if let Ok(monitor) = client.get_async_monitor().await {
            // What it has not heard it does not know.
            let mut locks = Locks::default();
            let mut lines = std::pin::pin!(monitor.into_on_message::<String>());
            while let Some(line) = lines.next().await {
                if let Some(wrong) = locks.hear(&line) {
                    found.lock().unwrap_or_else(PoisonError::into_inner).push(wrong);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Which lock is held by which token, and until when, as far as one can hear.
#[derive(Default)]
struct Locks {
    /// By whom, if that is known, and until when.
    held: HashMap<String, (Option<String>, f64)>,
    /// The arguments of the script that runs.
    script: Vec<String>,
}

impl Locks {
    /// Takes in one line: `1700000000.123 [1 127.0.0.1:50000] "EVALSHA" "…" "1" "key" "token"`. What a script does comes
    /// after it, from "lua".
    fn hear(&mut self, line: &str) -> Option<String> {
        let (time, rest) = line.split_once(' ')?;
        let now: f64 = time.parse().ok()?;
        let (source, words) = rest.strip_prefix('[')?.split_once("] ")?;
        let words = words_of(words);
        let (name, args) = words.split_first()?;
        match (source.ends_with(" lua"), name.to_ascii_uppercase().as_str(), args) {
            (false, "EVALSHA" | "EVAL", _) => self.script = args.to_vec(),
            (_, "FLUSHALL" | "FLUSHDB", _) => self.held.clear(),
            (true, "SET", [key, token, when, .., lease]) if when == "XX" => {
                self.held.insert(key.clone(), (Some(token.clone()), now + seconds(lease)));
            }
            (true, "SET", [key, token, .., lease]) => self.set(key, token, now, lease),
            (true, "PEXPIRE", [key, lease]) => return self.renew(key, now, lease),
            (true, "DEL", keys) => {
                let wrong = keys.iter().filter_map(|key| self.delete(key, now)).collect::<Vec<_>>();
                return (!wrong.is_empty()).then(|| wrong.join("; "));
            }
            _ => {}
        }
        None
    }

    fn renew(&mut self, key: &str, now: f64, lease: &str) -> Option<String> {
        let (holder, until) = self.held.get(key)?.clone();
        self.held.insert(key.to_owned(), (holder.clone(), now + seconds(lease)));
        self.wrong(key, &holder?, until, now, "renewed")
    }

    /// It is taken if nobody holds it.
    fn set(&mut self, key: &str, token: &str, now: f64, lease: &str) {
        let until = now + seconds(lease);
        let holder = match self.held.get(key) {
            Some((Some(_), end)) if *end > now + VAGUE_SECONDS => return,
            // It may or may not have been taken; and if nobody knows by whom, it may be taken until that has ended.
            Some((_, end)) if *end > now - VAGUE_SECONDS => None,
            _ => Some(token.to_owned()),
        };
        self.held.insert(key.to_owned(), (holder, until));
    }

    fn delete(&mut self, key: &str, now: f64) -> Option<String> {
        let (holder, until) = self.held.remove(key)?;
        self.wrong(key, &holder?, until, now, "released")
    }

    fn wrong(&self, key: &str, holder: &str, until: f64, now: f64, done: &str) -> Option<String> {
        let by_holder = self.script.iter().any(|word| word == holder);
        (!by_holder && until > now + VAGUE_SECONDS)
            .then(|| format!("the lock {key} of {holder} was {done} by a call that does not name its token"))
    }
}

fn seconds(milliseconds: &str) -> f64 {
    milliseconds.parse::<f64>().unwrap_or(0.0) / 1000.0
}

/// `"SET" "a key" "b\"c"`: the words, without what stands around and inside of them to keep them apart.
fn words_of(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut characters = line.chars();
    while characters.by_ref().any(|character| character == '"') {
        let mut word = String::new();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => word.extend(characters.next()),
                other => word.push(other),
            }
        }
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(lines: &[impl AsRef<str>]) -> Vec<String> {
        let mut locks = Locks::default();
        lines.iter().filter_map(|line| locks.hear(line.as_ref())).collect()
    }

    const TAKEN: [&str; 2] = [
        r#"100.0 [1 127.0.0.1:5] "EVALSHA" "aa" "1" "k" "2000" "one""#,
        r#"100.0 [1 lua] "SET" "k" "one" "NX" "PX" "2000""#,
    ];

    #[test]
    fn a_holder_may_release() {
        let released = [r#"100.5 [1 127.0.0.1:5] "EVALSHA" "bb" "1" "k" "one""#, r#"100.5 [1 lua] "DEL" "k""#];
        assert_eq!(hear(&[TAKEN, released].concat()), [""; 0]);
    }

    #[test]
    fn nobody_else_may() {
        let released = [r#"100.5 [1 127.0.0.1:5] "EVALSHA" "bb" "1" "k" "other""#, r#"100.5 [1 lua] "DEL" "k""#];
        assert_eq!(hear(&[TAKEN, released].concat()).len(), 1);
    }

    #[test]
    fn nor_renew_it() {
        let renewed =
            [r#"100.5 [1 127.0.0.1:5] "EVALSHA" "bb" "1" "k" "2000" "other""#, r#"100.5 [1 lua] "PEXPIRE" "k" "2000""#];
        assert_eq!(hear(&[TAKEN, renewed].concat()).len(), 1);
    }

    #[test]
    fn what_was_taken_over_is_the_takers() {
        let over =
            [r#"100.2 [1 127.0.0.1:6] "EVAL" "cc" "0" "two""#, r#"100.2 [1 lua] "SET" "k" "two" "XX" "PX" "500""#];
        let by = |token: &str| format!(r#"100.3 [1 127.0.0.1:5] "EVALSHA" "bb" "1" "k" "{token}""#);
        for (token, wrong) in [("one", 1), ("two", 0)] {
            let by = by(token);
            let released = [by.as_str(), r#"100.3 [1 lua] "DEL" "k""#];
            assert_eq!(hear(&[TAKEN, over, released].concat()).len(), wrong, "{token}");
        }
    }

    #[test]
    fn a_lease_that_has_ended_is_nobodys() {
        let released = [r#"103.0 [1 127.0.0.1:5] "EVALSHA" "bb" "1" "k" "other""#, r#"103.0 [1 lua] "DEL" "k""#];
        assert_eq!(hear(&[TAKEN, released].concat()), [""; 0]);
    }

    #[test]
    fn who_comes_at_the_end_of_a_lease_may_have_it_or_not() {
        let takes = |time: f64, token: &str| {
            [
                format!(r#"{time} [1 127.0.0.1:5] "EVALSHA" "aa" "1" "k" "2000" "{token}""#),
                format!(r#"{time} [1 lua] "SET" "k" "{token}" "NX" "PX" "2000""#),
            ]
        };
        let renews = |time: f64, token: &str| {
            [
                format!(r#"{time} [1 127.0.0.1:5] "EVALSHA" "bb" "1" "k" "2000" "{token}""#),
                format!(r#"{time} [1 lua] "PEXPIRE" "k" "2000""#),
            ]
        };
        // Which of the three has it after the first one's lease, only the lock server knows.
        let others = [takes(101.95, "two"), takes(101.99, "three"), takes(102.01, "four")].concat();
        for token in ["two", "three", "four"] {
            let lines = [takes(100.0, "one").as_slice(), &others, &renews(102.5, token)].concat();
            assert_eq!(hear(&lines), [""; 0], "{token}");
        }
        let late = [takes(100.0, "one"), takes(102.2, "two"), renews(102.5, "three")].concat();
        assert_eq!(hear(&late).len(), 1);
    }

    #[test]
    fn words_may_hold_anything() {
        assert_eq!(words_of(r#""a b" "c\"d" "" "e\\f""#), ["a b", "c\"d", "", "e\\f"]);
    }
}
