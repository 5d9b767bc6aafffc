//! Publishing: persistent, mandatory, confirmed, a window at a time.
//!
//! A window goes out in groups on one channel. The broker answers each message with a confirm, or with a return and a
//! confirm, or, when it objects to one (no such exchange, no right to write), by closing the channel without saying
//! anything about the rest. Then the unanswered messages are published again on a new channel: without those that the
//! objection names, or, where it names none, in halves, until the culprit is alone. So a message that stands next to a
//! culprit may be published twice, under the same id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};

use super::errors::{Failure, code};
use super::group::{Sent, publish_group};
use super::link::{Link, Live};
use super::returns::{Item, Known};
use super::values::{header_frame_size, properties_to_amqp, short};
use crate::broker::{BrokerError, Outgoing, Published, Publisher};

/// Messages published before the first answer is awaited.
const GROUP_MESSAGES: usize = 1000;

/// Channels kept open for the next window.
const MAX_IDLE: usize = 8;

/// What all publishers of a broker share.
pub(super) struct Publishing {
    link: Link,
    idle: Mutex<Vec<Channel>>,
    pub(super) timeout: Duration,
}

impl Publishing {
    pub(super) fn new(link: Link, timeout: Duration) -> Self {
        Self { link, idle: Mutex::default(), timeout }
    }

    pub(super) async fn close(&self) {
        // In this order: a channel that is dropped on a live connection is closed by lapin, see `Live::finish`.
        self.link.close().await;
        self.idle().clear();
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Channel> {
        let mut idle = self.idle();
        std::iter::from_fn(|| idle.pop()).find(|channel| channel.status().connected())
    }

    /// Keeps a channel for the next window; returns it if there are enough.
    pub(super) fn keep_idle(&self, channel: Channel) -> Option<Channel> {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE && channel.status().connected() {
            idle.push(channel);
            return None;
        }
        Some(channel)
    }
}

/// A publisher on the connection that publishes.
pub(super) struct AmqpPublisher(pub(super) Arc<Publishing>);

#[async_trait]
impl Publisher for AmqpPublisher {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Published> {
        let mut answers: Vec<Option<Published>> = vec![None; window.len()];
        let mut wires = Vec::with_capacity(window.len());
        for (index, message) in window.iter().enumerate() {
            match Wire::of(index, message) {
                Ok(wire) => wires.push(wire),
                Err(reason) => answers[index] = Some(Published::Refused(reason)),
            }
        }
        Sending { publishing: &self.0, answers: &mut answers, refused: HashMap::new(), stuck: HashMap::new() }
            .send_all(wires)
            .await;
        let unanswered = || Published::Unknown("it was not published".to_owned());
        answers.into_iter().map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }
}

/// A message in AMQP's words.
#[derive(Clone)]
pub(super) struct Wire {
    /// Its place in the window.
    index: usize,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl Wire {
    fn of(index: usize, message: &Outgoing) -> Result<Self, String> {
        Ok(Self {
            index,
            exchange: short("the exchange's name", &message.exchange)?,
            routing_key: short("the routing key", &message.routing_key)?,
            properties: properties_to_amqp(&message.properties)?,
            body: message.body.clone(),
        })
    }

    pub(super) fn item(&self) -> Item<'_> {
        let message_id = self.properties.message_id().as_ref().map(ShortString::as_str);
        let known = Known { exchange: self.exchange.as_str(), routing_key: self.routing_key.as_str(), message_id };
        Item { known, body: &self.body }
    }
}

/// One window on its way.
struct Sending<'a> {
    publishing: &'a Arc<Publishing>,
    answers: &'a mut [Option<Published>],
    /// Exchanges that the broker refused, and how.
    refused: HashMap<ShortString, String>,
    /// Exchanges and routing keys for which no answer came when a group stalled, and how that is said. The second group
    /// that does is the end.
    stuck: HashMap<(ShortString, ShortString), String>,
}

impl Sending<'_> {
    async fn send_all(&mut self, wires: Vec<Wire>) {
        let frame_max = match self.publishing.link.get().await {
            Ok(live) => live.frame_max(),
            Err(error) => return self.give_up(&wires, &error.to_string()),
        };
        let wires = self.refuse_oversized(wires, frame_max);
        // What lapin's buffer holds at once. If the channel closes while frames wait behind a full buffer, they are
        // sent on a channel that is gone, and that closes the connection.
        let group_bytes = frame_max.saturating_mul(16);
        let mut groups = split(wires, group_bytes);
        groups.reverse();
        while let Some(group) = groups.pop() {
            let group = self.without_answered(group);
            if group.is_empty() {
                continue;
            }
            let sent = self.send(group.clone()).await;
            for (wire, answer) in group.iter().zip(sent.answers) {
                self.answers[wire.index] = answer;
            }
            let unanswered: Vec<Wire> = group.into_iter().filter(|wire| self.answers[wire.index].is_none()).collect();
            match sent.failure {
                None => {}
                Some(failure) if failure.blames_the_request() => {
                    let (culprits, again) = single_out(unanswered, &failure);
                    for wire in culprits {
                        self.refuse(&wire, failure.words());
                        if names_exchange(&failure, wire.exchange.as_str()) {
                            self.refused.insert(wire.exchange, failure.words().to_owned());
                        }
                    }
                    groups.extend(again.into_iter().rev());
                }
                Some(failure) if sent.stalled && self.stuck.is_empty() => {
                    self.give_up(&unanswered, failure.words());
                    let reason = failure.words();
                    let target = |wire: Wire| ((wire.exchange, wire.routing_key), reason.to_owned());
                    self.stuck.extend(unanswered.into_iter().map(target));
                }
                Some(failure) => {
                    self.give_up(&unanswered, failure.words());
                    groups.iter().for_each(|group| self.give_up(group, failure.words()));
                    return;
                }
            }
        }
    }

    /// Answers for exchanges that the broker has refused already, and for queues that have not answered, without asking
    /// it again. Returns the rest.
    fn without_answered(&mut self, group: Vec<Wire>) -> Vec<Wire> {
        if self.refused.is_empty() && self.stuck.is_empty() {
            return group;
        }
        let mut rest = Vec::with_capacity(group.len());
        for wire in group {
            let target = (wire.exchange.clone(), wire.routing_key.clone());
            if let Some(reason) = self.refused.get(&wire.exchange).cloned() {
                self.refuse(&wire, &reason);
            } else if let Some(reason) = self.stuck.get(&target).cloned() {
                self.give_up(&[wire], &reason);
            } else {
                rest.push(wire);
            }
        }
        rest
    }

    fn give_up(&mut self, wires: &[Wire], reason: &str) {
        for wire in wires {
            self.answers[wire.index] = Some(Published::Unknown(reason.to_owned()));
        }
    }

    fn refuse(&mut self, wire: &Wire, reason: &str) {
        self.answers[wire.index] = Some(Published::Refused(reason.to_owned()));
    }

    fn refuse_oversized(&mut self, wires: Vec<Wire>, frame_max: usize) -> Vec<Wire> {
        let (fitting, oversized): (Vec<_>, Vec<_>) =
            wires.into_iter().partition(|wire| header_frame_size(&wire.properties) <= frame_max);
        for wire in &oversized {
            let size = header_frame_size(&wire.properties);
            self.refuse(wire, &format!("its properties take {size} bytes, and this broker takes {frame_max}"));
        }
        fitting
    }

    /// Publishes one group and waits for its answers.
    async fn send(&self, group: Vec<Wire>) -> Sent {
        match self.open().await {
            Ok((live, channel)) => publish_group(self.publishing, live, channel, group).await,
            Err(reason) => Sent::lost(group.len(), reason),
        }
    }

    /// A channel that confirms, unless the broker accepts nothing now. A connection that turns out to be lost is
    /// replaced once.
    async fn open(&self) -> Result<(Arc<Live>, Channel), String> {
        let mut lost = String::new();
        for _ in 0..2 {
            let live = self.publishing.link.get().await.map_err(|error: BrokerError| error.to_string())?;
            if let Some(reason) = live.blocked() {
                return Err(blocked(&reason));
            }
            if let Some(channel) = self.publishing.take_idle() {
                return Ok((live, channel));
            }
            match open_confirming(&live).await {
                Ok(channel) => return Ok((live, channel)),
                Err(failure) => lost = failure.words().to_owned(),
            }
        }
        Err(lost)
    }
}

async fn open_confirming(live: &Live) -> Result<Channel, Failure> {
    let channel = live.channel().await?;
    live.request("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

pub(super) fn blocked(reason: &str) -> String {
    format!("publishing is blocked by the broker: {reason}")
}

/// The broker objects to one of `unanswered`, which are not empty: those that it means, and what to publish again.
fn single_out(mut unanswered: Vec<Wire>, failure: &Failure) -> (Vec<Wire>, Vec<Vec<Wire>>) {
    let named = |wire: &Wire| names_exchange(failure, wire.exchange.as_str());
    if unanswered.iter().any(named) {
        let (culprits, rest): (Vec<_>, Vec<_>) = unanswered.into_iter().partition(named);
        return (culprits, vec![rest]);
    }
    if unanswered.len() == 1 {
        return (unanswered, vec![]);
    }
    let second = unanswered.split_off(unanswered.len() / 2);
    (vec![], vec![unanswered, second])
}

/// True if the broker's objection names this exchange, so that it holds for every message to it.
fn names_exchange(failure: &Failure, exchange: &str) -> bool {
    match failure {
        Failure::Refused { code: code::NOT_FOUND, text, .. } => text.contains(&format!("no exchange '{exchange}' in ")),
        // A refusal by topic reads "access to topic 'k' in exchange 'x'": that is about the routing key.
        Failure::Refused { code: code::ACCESS_REFUSED, text, .. } => {
            let exchange = if exchange.is_empty() { "amq.default" } else { exchange };
            text.contains(&format!("access to exchange '{exchange}' in "))
        }
        _ => false,
    }
}

/// Cuts a window into groups that are published at once.
fn split(wires: Vec<Wire>, group_bytes: usize) -> Vec<Vec<Wire>> {
    let mut groups: Vec<Vec<Wire>> = Vec::new();
    let mut bytes = 0;
    for wire in wires {
        let size = wire.body.len() + header_frame_size(&wire.properties);
        match groups.last_mut() {
            Some(group) if group.len() < GROUP_MESSAGES && bytes + size <= group_bytes => {
                bytes += size;
                group.push(wire);
            }
            _ => {
                bytes = size;
                groups.push(vec![wire]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(index: usize, exchange: &str, size: usize) -> Wire {
        let message = Outgoing {
            exchange: exchange.into(),
            routing_key: "k".into(),
            properties: Default::default(),
            body: vec![0; size].into(),
        };
        Wire::of(index, &message).unwrap()
    }

    #[test]
    fn groups_are_bounded_by_number_and_bytes_and_keep_the_order() {
        let lengths = |groups: Vec<Vec<Wire>>| groups.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lengths(split((0..2500).map(|n| wire(n, "x", 1)).collect(), 1 << 20)), [1000, 1000, 500]);
        assert_eq!(lengths(split((0..5).map(|n| wire(n, "x", 1000)).collect(), 2500)), [2, 2, 1]);
        assert_eq!(lengths(split(vec![wire(0, "x", 9999), wire(1, "x", 9999)], 10)), [1, 1]);
        assert!(split(vec![], 10).is_empty());
    }

    #[test]
    fn an_objection_to_an_exchange_holds_for_every_message_to_it() {
        let refused = |code, text: &str| Failure::Refused { code, text: text.into() };
        let missing = refused(404, "NOT_FOUND - no exchange 'a.b' in vhost '/'");
        assert!(names_exchange(&missing, "a.b") && !names_exchange(&missing, "b"));
        let old = refused(403, "ACCESS_REFUSED - access to exchange 'a' in vhost '/' refused for user 'u'");
        let new = refused(403, "ACCESS_REFUSED - write access to exchange 'a' in vhost '/' refused for user 'u'");
        assert!(names_exchange(&old, "a") && names_exchange(&new, "a"));
        let default =
            refused(403, "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'u'");
        assert!(names_exchange(&default, "") && !names_exchange(&default, "a"));
        let topic = refused(403, "ACCESS_REFUSED - write access to topic 'k' in exchange 'a' in vhost '/' refused");
        assert!(!names_exchange(&topic, "a"));
    }

    #[test]
    fn an_objection_that_names_nothing_halves_until_one_is_left() {
        let failure = Failure::Refused { code: 406, text: "PRECONDITION_FAILED - x".into() };
        let mut pending = vec![(0..9).map(|n| wire(n, "x", 1)).collect::<Vec<_>>()];
        let mut refused = Vec::new();
        while let Some(group) = pending.pop() {
            let (culprits, again) = single_out(group, &failure);
            refused.extend(culprits.iter().map(|wire| wire.index));
            pending.extend(again.into_iter().rev());
        }
        assert_eq!(refused, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn an_objection_to_an_exchange_takes_out_its_messages_only() {
        let failure = Failure::Refused { code: 404, text: "NOT_FOUND - no exchange 'b' in vhost '/'".into() };
        let (culprits, again) = single_out(vec![wire(0, "a", 1), wire(1, "b", 1), wire(2, "a", 1)], &failure);
        let indexes = |wires: &[Wire]| wires.iter().map(|wire| wire.index).collect::<Vec<_>>();
        assert_eq!(
            (indexes(&culprits), again.iter().map(|group| indexes(group)).collect()),
            (vec![1], vec![vec![0, 2]])
        );
    }
}
