//! What came of it, and whether that is what had to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};
use hapax::message::Message;

use crate::books::Ledger;
use crate::play::Performance;
use crate::scenario::{Expected, Fate, Scenario};
use crate::stage::{ORDERS, REDUCED, Stage};

/// Ids named in a complaint.
const NAMED: usize = 5;

/// Everything that can be seen afterwards.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    ledger: Ledger,
    /// What others were told: outbox message id and the order it speaks of.
    told: Vec<(String, String)>,
    attempts: Attempts,
    published: usize,
    kills: usize,
    /// Messages still in the queue of orders.
    left: usize,
}

/// Failed attempts of the handler, from the hosts' logs: one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Attempts {
    /// Those that were tried again, by the code of the failure.
    again: BTreeMap<String, usize>,
    /// Those after which there was no other.
    for_good: usize,
}

/// Looks at everything. The host must have stopped.
///
/// # Errors
/// When broker or database do not answer.
pub(crate) async fn gather(stage: &Stage, performance: Performance) -> Result<Found> {
    let ledger = stage.books().await?.read().await?;
    let told = stage.drain(REDUCED).await?.iter().map(read_reduced).collect();
    let left = stage.drain(ORDERS).await?.len();
    let mut attempts = Attempts::default();
    performance.logs.iter().flat_map(|log| log.lines()).for_each(|line| attempts.count(line));
    Ok(Found { ledger, told, attempts, published: performance.published, kills: performance.kills, left })
}

fn read_reduced(message: &Message) -> (String, String) {
    let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap_or_default();
    let order = body["order"].as_str().unwrap_or_default().to_owned();
    (message.properties.message_id.clone().unwrap_or_default(), order)
}

impl Attempts {
    fn count(&mut self, line: &str) {
        // The last line of a host that was killed may be cut.
        let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else { return };
        let Some(message) = event["message"].as_str().and_then(|text| text.strip_prefix("attempt failed")) else {
            return;
        };
        if message.starts_with(", again") {
            *self.again.entry(event["code"].as_str().unwrap_or("-").to_owned()).or_default() += 1;
        } else if !message.contains("(compensation-failed)") {
            self.for_good += 1;
        }
    }

    fn rolled_back(&self) -> usize {
        self.again.values().sum()
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    what: String,
    /// None where there is nothing to compare with.
    expected: Option<i64>,
    found: i64,
    /// What is wrong beside the figures, in words; empty if nothing is.
    wrong: String,
}

impl Line {
    fn agrees(&self) -> bool {
        self.wrong.is_empty() && self.expected.is_none_or(|expected| expected == self.found)
    }
}

/// What was expected and what was found, side by side.
pub(crate) struct Report {
    lines: Vec<Line>,
    notes: Vec<String>,
}

impl Report {
    /// Compares.
    pub(crate) fn new(scenario: &Scenario, found: &Found) -> Self {
        let mut report = Self { lines: Vec::new(), notes: Vec::new() };
        report.messages(scenario, found);
        report.attempts(found);
        report.dead_letters(&scenario.expected, found);
        report.effects(&scenario.expected, found);
        report
    }

    fn line(&mut self, what: &str, expected: impl Into<Option<i64>>, found: impl TryInto<i64>, wrong: String) {
        let found = found.try_into().unwrap_or(i64::MAX);
        self.lines.push(Line { what: what.to_owned(), expected: expected.into(), found, wrong });
    }

    fn messages(&mut self, scenario: &Scenario, found: &Found) {
        let (expected, ledger) = (&scenario.expected, &found.ledger);
        let ids: BTreeSet<&String> = ledger.completed.iter().chain(&ledger.dead).chain(&ledger.unsettled).collect();
        let lost = expected.fates.keys().filter(|id| !ids.contains(id));
        let strange = ids.iter().copied().filter(|id| !expected.fates.contains_key(*id));
        let mut wrong = named("lost", lost);
        wrong += &named("never published", strange);
        wrong += &named("neither completed nor dead", &ledger.unsettled);
        self.line("published, duplicates and all", count(scenario.messages()), found.published, String::new());
        self.line("unique message ids", count(expected.fates.len()), ids.len(), wrong);
        // What came with an id and a body known before, and left no trace.
        let with_id = found.published.saturating_sub(expected.no_id + letters(ledger, "id-conflict").len());
        let suppressed = with_id.saturating_sub(ids.len());
        self.line("duplicates suppressed", count(expected.duplicates), suppressed, String::new());
        self.line("left in the queue", 0, found.left, String::new());
    }

    fn attempts(&mut self, found: &Found) {
        let Attempts { again, for_good } = &found.attempts;
        let rolled_back = found.attempts.rolled_back();
        self.line("attempts", None, rolled_back + for_good + found.ledger.completed.len(), String::new());
        let wrong = if rolled_back == 0 { "none of the attempts failed".to_owned() } else { String::new() };
        self.line("failures rolled back", None, rolled_back, wrong);
        self.line("hosts killed with SIGKILL", 2, found.kills, String::new());
        self.notes.push(
            "Attempts and failures are counted from the hosts' logs, where each failed attempt is a line; a line or two may \
             be lost with a host that is killed."
                .to_owned(),
        );
        for (code, times) in again.iter().filter(|(code, _)| *code != "simulated") {
            self.notes.push(format!("{times} attempts failed with {code}, which nobody simulated, and were repeated."));
        }
    }

    fn dead_letters(&mut self, expected: &Expected, found: &Found) {
        let ledger = &found.ledger;
        let by_code = |code: &str| -> BTreeSet<&String> {
            ledger.letters.iter().filter(|l| l.code.as_deref() == Some(code)).filter_map(|l| l.id.as_ref()).collect()
        };
        for (code, orders) in &expected.refused {
            let dead = by_code(code);
            let others = dead.iter().copied().filter(|id| match expected.fates.get(*id) {
                Some(Fate::Refused(demanded)) => demanded != code,
                Some(Fate::Either) => *code != "out-of-stock",
                _ => true,
            });
            self.line(
                &format!("dead letters: {code}"),
                count(*orders),
                dead.len(),
                named("not to be refused so", others),
            );
        }
        let garbage = by_code("undecodable");
        let others = garbage.iter().copied().filter(|id| expected.fates.get(*id) != Some(&Fate::Undecodable));
        let wrong = named("not garbage", others);
        self.line("dead letters: undecodable", count(expected.undecodable), garbage.len(), wrong);
        self.line(
            "dead letters: id-conflict",
            count(expected.conflicts),
            letters(ledger, "id-conflict").len(),
            String::new(),
        );

        let no_id = letters(ledger, "no-id");
        let bodies: BTreeSet<&[u8]> = no_id.iter().map(|letter| letter.body.as_slice()).collect();
        self.line("dead letters: no-id", count(expected.no_id), bodies.len(), String::new());
        if no_id.len() > bodies.len() {
            self.notes.push(format!(
                "{} messages without an id are kept twice: their host was killed after it had stored them and before it had \
                 acknowledged them, and there is no id to recognise them by.",
                no_id.len() - bodies.len()
            ));
        }
        let mut others: BTreeMap<String, usize> = BTreeMap::new();
        let known =
            |code: Option<&str>| code.is_some_and(|code| code == "undecodable" || expected.refused.contains_key(code));
        for letter in ledger.letters.iter().filter(|l| !["no-id", "id-conflict"].contains(&l.reason.as_str())) {
            if !known(letter.code.as_deref()) {
                let code = letter.code.as_deref().unwrap_or("-");
                *others.entry(format!("dead letters: {}, {code}", letter.reason)).or_default() += 1;
            }
        }
        for (what, times) in others {
            self.line(&what, 0, times, String::new());
        }
    }

    fn effects(&mut self, expected: &Expected, found: &Found) {
        let ledger = &found.ledger;
        let refused: usize = expected.refused.values().sum();
        let refusals =
            ledger.letters.iter().filter(|l| l.code.as_deref().is_some_and(|code| expected.refused.contains_key(code)));
        let refusals: BTreeMap<&String, &str> =
            refusals.filter_map(|l| Some((l.id.as_ref()?, l.code.as_deref()?))).collect();
        let unpaired = ledger.refused.iter().filter(|(id, reason)| refusals.get(id) != Some(&reason.as_str()));
        let wrong = named("recorded and not dead for that reason", unpaired.map(|(id, _)| id));
        self.line("refused orders compensated", count(refused), ledger.refused.len(), wrong);

        let astray = ledger
            .completed
            .iter()
            .filter(|id| !matches!(expected.fates.get(*id), Some(Fate::Completed | Fate::Either)));
        self.line(
            "orders completed",
            count(expected.completed),
            ledger.completed.len(),
            named("not to be completed", astray),
        );

        let told: BTreeSet<&String> = found.told.iter().map(|(_, order)| order).collect();
        let ids: BTreeSet<&String> = found.told.iter().map(|(id, _)| id).collect();
        let mut wrong = named("completed and not told", ledger.completed.iter().filter(|id| !told.contains(id)));
        wrong += &named("told and not completed", told.iter().copied().filter(|id| !ledger.completed.contains(*id)));
        self.line("outbox messages published", count(expected.completed), ids.len(), wrong);
        if found.told.len() > ids.len() {
            let again = found.told.len() - ids.len();
            self.notes.push(format!("{again} outbox messages were published twice, under the same ids, as promised."));
        }
        self.line("left in the outbox", 0, ledger.undeliverable, String::new());

        let differing = expected.stock.iter().filter(|(goods, left)| ledger.stock.get(goods) != Some(left));
        let mut wrong = String::new();
        for (goods, left) in differing {
            let found = ledger.stock.get(goods).copied().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = write!(wrong, "; goods {goods}: {left} expected, {found} found");
        }
        self.line(
            "stock left, all goods",
            expected.stock.values().sum::<i64>(),
            ledger.stock.values().sum::<i64>(),
            wrong,
        );
    }

    /// The table, and what has to be said about it.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["", "expected", "found", ""]);
        let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        for line in &self.lines {
            let expected = line.expected.map(|expected| expected.to_string()).unwrap_or_default();
            let verdict = match (line.agrees(), line.expected) {
                (false, _) => "DIFFERS",
                (true, Some(_)) => "ok",
                (true, None) => "",
            };
            table.add_row([
                Cell::new(&line.what),
                number(expected),
                number(line.found.to_string()),
                Cell::new(verdict),
            ]);
        }
        self.notes.iter().fold(table.to_string(), |text, note| text + "\n" + note)
    }

    /// What does not agree, in words.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        let differing = self.lines.iter().filter(|line| !line.agrees());
        differing
            .map(|line| {
                let expected = line.expected.map(|expected| format!("{expected} expected, ")).unwrap_or_default();
                format!("{}: {expected}{} found{}", line.what, line.found, line.wrong)
            })
            .collect()
    }

    /// What to say when something does not agree.
    pub(crate) fn complaint(&self, seed: u64, orders: u32, folder: &Path) -> String {
        format!(
            "\nNot everything agrees, which is a bug in Hapax:\n  {}\n\
             The config, the logs and the embedded files are kept in {}; --seed {seed} --orders {orders} publishes the same \
             messages again.",
            self.disagreements().join("\n  "),
            folder.display()
        )
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn letters<'a>(ledger: &'a Ledger, reason: &str) -> Vec<&'a crate::books::DeadLetter> {
    ledger.letters.iter().filter(|letter| letter.reason == reason).collect()
}

/// "; 3 are lost: a, b, c", or nothing if there are none.
fn named<'a>(what: &str, ids: impl IntoIterator<Item = &'a String>) -> String {
    let ids: Vec<&str> = ids.into_iter().map(String::as_str).collect();
    if ids.is_empty() {
        return String::new();
    }
    let more = if ids.len() > NAMED { ", …" } else { "" };
    format!("; {} {what}: {}{more}", ids.len(), ids[..ids.len().min(NAMED)].join(", "))
}

/// What was shown, and what to do next.
pub(crate) fn closing_words(servers: bool) -> String {
    let next = if servers {
        "`make demo SERVERS=1 DATABASE=postgres` does the same on Postgres"
    } else {
        "`make demo SERVERS=1` does the same on RabbitMQ, Redis and MariaDB"
    };
    format!(
        "Duplicates, failures and crashes went in, and each order took effect once: every effect was committed together with \
         the memory of its message.\n{next}; README.md tells how it works and how to write a handler."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::DeadLetter;

    /// What a faultless run leaves behind.
    fn faultless(scenario: &Scenario) -> Found {
        let expected = &scenario.expected;
        let mut found = Found { published: scenario.messages(), kills: 2, ..Found::default() };
        found.attempts.again.insert("simulated".to_owned(), 1);
        found.ledger.stock = expected.stock.clone();
        let mut scarce_left =
            expected.completed - expected.fates.values().filter(|fate| **fate == Fate::Completed).count();
        for (id, fate) in &expected.fates {
            let code = match fate {
                Fate::Completed => None,
                Fate::Either if scarce_left > 0 => {
                    scarce_left -= 1;
                    None
                }
                Fate::Either => Some("out-of-stock"),
                Fate::Refused(code) => Some(*code),
                Fate::Undecodable => Some("undecodable"),
            };
            let Some(code) = code else {
                found.ledger.completed.insert(id.clone());
                found.told.push((format!("outbox of {id}"), id.clone()));
                continue;
            };
            found.ledger.dead.insert(id.clone());
            found.ledger.letters.push(letter(Some(id), "permanent", Some(code)));
            if code != "undecodable" {
                found.ledger.refused.insert(id.clone(), code.to_owned());
            }
        }
        let conflicts = (0..expected.conflicts).map(|_| letter(Some("x"), "id-conflict", None));
        found.ledger.letters.extend(conflicts);
        let anonymous =
            (0..expected.no_id).map(|n| DeadLetter { body: n.to_be_bytes().to_vec(), ..letter(None, "no-id", None) });
        found.ledger.letters.extend(anonymous);
        found
    }

    fn letter(id: Option<&str>, reason: &str, code: Option<&str>) -> DeadLetter {
        DeadLetter { id: id.map(str::to_owned), reason: reason.to_owned(), code: code.map(str::to_owned), body: vec![] }
    }

    fn differing(change: impl FnOnce(&Expected, &mut Found)) -> Vec<String> {
        let scenario = Scenario::new(500, 1);
        let mut found = faultless(&scenario);
        change(&scenario.expected, &mut found);
        let lines = Report::new(&scenario, &found).disagreements();
        lines.into_iter().map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn a_faultless_run_agrees() {
        assert_eq!(differing(|_, _| {}), [""; 0]);
    }

    #[test]
    fn an_order_that_took_effect_twice_is_seen_in_the_stock() {
        assert_eq!(differing(|_, found| *found.ledger.stock.get_mut(&1).unwrap() -= 3), ["stock left, all goods"]);
    }

    #[test]
    fn errors_that_cancel_out_in_the_sum_are_seen() {
        let changed = differing(|_, found| {
            *found.ledger.stock.get_mut(&1).unwrap() -= 3;
            *found.ledger.stock.get_mut(&2).unwrap() += 3;
        });
        assert_eq!(changed, ["stock left, all goods"]);
    }

    #[test]
    fn a_lost_order_is_seen() {
        let changed = differing(|_, found| {
            let id = found.ledger.completed.pop_first().unwrap();
            found.told.retain(|(_, order)| *order != id);
        });
        let lines = ["unique message ids", "duplicates suppressed", "orders completed", "outbox messages published"];
        assert_eq!(changed, lines);
    }

    #[test]
    fn an_order_of_the_wrong_fate_is_seen() {
        let changed = differing(|expected, found| {
            let refused = |(_, fate): &(&String, &Fate)| **fate == Fate::Refused("unknown-goods");
            let (id, _) = expected.fates.iter().find(refused).unwrap();
            found.ledger.refused.remove(id);
        });
        assert_eq!(changed, ["refused orders compensated"]);
    }

    #[test]
    fn a_dead_letter_of_another_reason_is_seen() {
        let changed =
            differing(|_, found| found.ledger.letters.push(letter(Some("y"), "exhausted", Some("simulated"))));
        assert_eq!(changed, ["dead letters"]);
    }

    #[test]
    fn what_is_told_twice_under_one_id_counts_once_and_under_two_ids_is_seen() {
        assert_eq!(differing(|_, found| found.told.extend_from_within(..1)), [""; 0]);
        let changed = differing(|_, found| {
            let (_, order) = found.told[0].clone();
            found.told.push(("another id".to_owned(), order));
        });
        assert_eq!(changed, ["outbox messages published"]);
    }

    #[test]
    fn a_message_without_an_id_may_be_stored_twice_and_not_lost() {
        let again = |found: &mut Found| {
            let letter = found.ledger.letters.iter().find(|letter| letter.reason == "no-id").unwrap().clone();
            found.ledger.letters.push(letter);
        };
        assert_eq!(differing(|_, found| again(found)), [""; 0]);
        let lose = |found: &mut Found| found.ledger.letters.retain(|letter| letter.body != 0_usize.to_be_bytes());
        assert_eq!(differing(|_, found| lose(found)), ["dead letters"]);
    }

    #[test]
    fn failed_attempts_are_counted_by_what_follows() {
        let mut attempts = Attempts::default();
        for line in [
            r#"{"level":"WARN","message":"attempt failed, again in 30ms: x","code":"simulated","attempt":1}"#,
            r#"{"level":"WARN","message":"attempt failed, again in 30ms: x","code":"sql-40001","attempt":1}"#,
            r#"{"level":"WARN","message":"attempt failed for good (permanent), compensating: x","code":"out-of-stock"}"#,
            r#"{"level":"WARN","message":"attempt failed for good, dead letter (compensation-failed): x","code":"undecodable"}"#,
            r#"{"level":"INFO","message":"consuming"}"#,
            r#"{"level":"WARN","message":"attempt failed, again in"#,
        ] {
            attempts.count(line);
        }
        assert_eq!((attempts.rolled_back(), attempts.for_good), (2, 1));
        assert_eq!(attempts.again["simulated"], 1);
    }
}
