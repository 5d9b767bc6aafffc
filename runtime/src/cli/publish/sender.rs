//! Windows of messages, and what became of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::super::output::{clean, count};
use crate::broker::{Outgoing, Published, Publisher};

/// A window is sent when its bodies hold this many bytes, whatever its length.
const WINDOW_BYTES: usize = 16 << 20;

/// Waits before messages whose answer was lost are published again.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(6)];

/// Distinct reasons that are reported; the rest is counted.
const REASONS: usize = 10;

/// Publishes in windows, and counts.
pub(super) struct Sender {
    publisher: Box<dyn Publisher>,
    window: Vec<Outgoing>,
    bytes: usize,
    limit: usize,
    tally: Tally,
}

/// What became of the messages.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// All of them.
    pub(super) published: u64,
    /// The id of the first one.
    pub(super) single: Option<String>,
    confirmed: u64,
    returned: u64,
    refused: u64,
    unknown: u64,
    reasons: BTreeMap<String, (u64, String)>,
}

impl Sender {
    /// Waits for the answers of at most `limit` messages at once.
    pub(super) fn new(publisher: Box<dyn Publisher>, limit: usize) -> Self {
        Self { publisher, window: Vec::new(), bytes: 0, limit, tally: Tally::default() }
    }

    /// Adds a message, and publishes the window if that fills it.
    pub(super) async fn add(&mut self, message: Outgoing) -> anyhow::Result<()> {
        self.bytes += message.body.len();
        self.window.push(message);
        if self.window.len() >= self.limit || self.bytes >= WINDOW_BYTES {
            self.flush().await;
        }
        Ok(())
    }

    /// Publishes what is waiting. Where the answer is lost, again under the same ids: consumers see duplicates, and know
    /// them as such.
    pub(super) async fn flush(&mut self) {
        let mut window = std::mem::take(&mut self.window);
        self.bytes = 0;
        self.tally.published += window.len() as u64;
        if let Some(first) = window.first() {
            self.tally.single.get_or_insert_with(|| clean(first.properties.message_id.as_deref().unwrap_or_default()));
        }
        let mut waits = AGAIN.iter();
        while !window.is_empty() {
            let answers = self.publisher.publish(&window).await;
            let wait = waits.next();
            let mut again = Vec::new();
            for (message, answer) in window.into_iter().zip(answers) {
                match (answer, wait) {
                    (Published::Unknown(_), Some(_)) => again.push(message),
                    (answer, _) => self.tally.add(&message, answer),
                }
            }
            window = again;
            if let (Some(wait), false) = (wait, window.is_empty()) {
                tokio::time::sleep(*wait).await;
            }
        }
    }

    /// What became of everything so far.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Tally {
    fn add(&mut self, message: &Outgoing, answer: Published) {
        let (kind, reason) = match answer {
            Published::Confirmed => {
                self.confirmed += 1;
                return;
            }
            Published::Returned(reason) => {
                self.returned += 1;
                ("returned", reason)
            }
            Published::Refused(reason) => {
                self.refused += 1;
                ("refused", reason)
            }
            Published::Unknown(reason) => {
                self.unknown += 1;
                ("no answer", reason)
            }
        };
        let reason = format!("{kind}: {}", clean(&reason));
        if self.reasons.len() < REASONS || self.reasons.contains_key(&reason) {
            let id = || clean(message.properties.message_id.as_deref().unwrap_or_default());
            self.reasons.entry(reason).or_insert_with(|| (0, id())).0 += 1;
        }
    }

    /// Every message was confirmed.
    pub(super) fn is_complete(&self) -> bool {
        self.confirmed == self.published
    }

    /// Why others were not.
    pub(super) fn reasons(&self) -> impl Iterator<Item = String> {
        self.reasons.iter().map(|(reason, (number, first))| match number {
            1 => format!("{reason} (message {first})"),
            _ => format!("{reason} ({}, the first is {first})", count(*number, "message")),
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} confirmed, {} returned", self.confirmed, self.returned)?;
        if self.refused > 0 {
            write!(f, ", {} refused", self.refused)?;
        }
        if self.unknown > 0 {
            write!(f, ", {} without an answer", self.unknown)?;
        }
        Ok(())
    }
}
