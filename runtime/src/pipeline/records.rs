//! What one transaction writes, collected while its members run and written in the one order that every host keeps to:
//! parked rows, outbox, claims taken back, transitions of inbox rows last.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::member::{DEAD_ID_HEADER, GENERATION_HEADER, Member, Origin};
use crate::broker::Outgoing;
use crate::guest::Failure;
use crate::ledger::Ledger;
use crate::ledger::database::{Connection, DbError};
use crate::ledger::inbox::{InboxMove, Status};
use crate::ledger::outbox::{OutboxId, OutboxRow};
use crate::ledger::parked::{Carried, NewParked, ParkedId, ParkedMove, ParkedRow, Phase, RunToken};
use crate::message::{HeaderValue, Message, MessageId, Properties};
use crate::outcome::{Disposition, Outcome, Reason};
use crate::sabotage::{self, Breach, Step};

/// Where copies of dead letters go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterTarget {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// What the records depend on, besides the members.
pub struct Scene<'a> {
    /// The consumer's name.
    pub consumer: &'a str,
    /// The module that ran.
    pub module: [u8; 8],
    /// Where copies of dead letters go.
    pub dead_letter: Option<&'a DeadLetterTarget>,
    /// How long the outbox rows are left to this host's relay.
    pub grace: Duration,
}

/// The writes of one transaction.
#[derive(Default)]
pub struct Records {
    deleted: HashMap<RunToken, Vec<std::sync::Arc<ParkedRow>>>,
    parked: Vec<NewParked>,
    moves: Vec<ParkedMove>,
    /// Published by this host's relay once the transaction has committed.
    pub outbox: Vec<OutboxRow>,
    unclaimed: Vec<MessageId>,
    inbox: Vec<InboxMove>,
    /// How long until each of what is to be run again is due.
    pub delays: Vec<Duration>,
}

impl Records {
    /// Notes what a disposition writes. `is_leader`: the member made a new claim in this transaction.
    pub fn note(
        &mut self,
        member: &Member,
        outcome: &Outcome,
        disposition: &Disposition,
        is_leader: bool,
        scene: &Scene<'_>,
    ) {
        match disposition {
            Disposition::Acknowledge => self.drop_row(&member.origin),
            Disposition::Complete => self.complete(member, scene),
            Disposition::Retry { attempts, delay, failure } => {
                self.retry(member, outcome, *attempts, *delay, failure.as_ref(), scene);
            }
            Disposition::Defer(delay) => self.defer(member, *delay),
            Disposition::Compensate(reason, failure) => self.compensate(member, *reason, failure, scene),
            Disposition::Dead(reason, failure) => self.dead(member, *reason, failure.as_ref(), scene),
            Disposition::DeadApart(reason, error) => self.dead_apart(member, *reason, error, scene),
            Disposition::DeadCompensated => self.dead_compensated(member, scene),
            Disposition::GiveBack | Disposition::Again => self.give_back(member, is_leader),
        }
    }

    /// What a handler asked to publish.
    pub fn publish(&mut self, member: &Member, outgoing: Vec<Outgoing>, scene: &Scene<'_>) {
        self.outbox.extend(outgoing.into_iter().map(|outgoing| {
            let message_id = outgoing.properties.message_id.as_deref().unwrap_or_default();
            let id = OutboxId::of_message(scene.consumer, message_id);
            OutboxRow { id, message_id: member.carried.id.clone(), parked_id: None, outgoing }
        }));
    }

    fn drop_row(&mut self, origin: &Origin) {
        if let Origin::Parked { row, token } = origin {
            self.deleted.entry(*token).or_default().push(row.clone());
        }
    }

    fn complete(&mut self, member: &Member, scene: &Scene<'_>) {
        if let Some((row, _)) = member.origin.owned_row() {
            self.move_inbox(member, (Status::Parked, Some(row.id)), (Status::Completed, None), scene);
        }
        self.drop_row(&member.origin);
    }

    fn retry(
        &mut self,
        member: &Member,
        outcome: &Outcome,
        attempts: u32,
        delay: Duration,
        failure: Option<&Failure>,
        scene: &Scene<'_>,
    ) {
        self.delays.push(delay);
        match &member.origin {
            Origin::Parked { row, token } => {
                let module = Some(scene.module);
                self.moves.push(ParkedMove::retry(row, *token, attempts, delay, failure, module));
                if row.phase == Phase::Deliver {
                    self.move_inbox(member, (Status::Completed, None), (Status::Parked, Some(row.id)), scene);
                }
            }
            Origin::Delivery { .. } => {
                let row = NewParked::retry(carried(member, scene), attempts, delay, failure);
                // The claim of a redelivered message points to its row from the start.
                if *outcome != Outcome::Redelivered {
                    self.move_inbox(member, (Status::Completed, None), (Status::Parked, Some(row.id)), scene);
                }
                self.parked.push(row);
            }
        }
    }

    fn defer(&mut self, member: &Member, delay: Duration) {
        self.delays.push(delay);
        match &member.origin {
            Origin::Parked { row, token } => self.moves.push(ParkedMove::put_off(row, *token, delay)),
            Origin::Delivery { .. } => self.parked.push(NewParked::deferred(member.carried.clone(), delay)),
        }
    }

    fn compensate(&mut self, member: &Member, reason: Reason, failure: &Failure, scene: &Scene<'_>) {
        self.delays.push(Duration::ZERO);
        let attempts = member.attempts() + 1;
        match &member.origin {
            Origin::Parked { row, token } => {
                let module = Some(scene.module);
                self.moves.push(ParkedMove::compensate(row, *token, reason, attempts, failure, module));
                if row.phase == Phase::Deliver {
                    self.move_inbox(member, (Status::Completed, None), (Status::Parked, Some(row.id)), scene);
                }
            }
            Origin::Delivery { .. } => {
                let row = NewParked::compensate(carried(member, scene), reason, attempts, failure);
                self.move_inbox(member, (Status::Completed, None), (Status::Parked, Some(row.id)), scene);
                self.parked.push(row);
            }
        }
    }

    fn dead(&mut self, member: &Member, reason: Reason, failure: Option<&Failure>, scene: &Scene<'_>) {
        let attempts = member.attempts() + 1;
        let (id, generation) = match &member.origin {
            Origin::Parked { row, token } => {
                let module = Some(scene.module);
                self.moves.push(ParkedMove::dead(row, *token, reason, attempts, failure, module));
                let from = match row.phase {
                    Phase::Deliver => (Status::Completed, None),
                    Phase::Handle | Phase::Compensate => (Status::Parked, Some(row.id)),
                };
                self.move_inbox(member, from, (Status::Dead, Some(row.id)), scene);
                (row.id, row.generation)
            }
            Origin::Delivery { .. } => {
                let row = NewParked::dead(carried(member, scene), reason, attempts, failure);
                self.move_inbox(member, (Status::Completed, None), (Status::Dead, Some(row.id)), scene);
                let id = row.id;
                self.parked.push(row);
                (id, 0)
            }
        };
        let code = failure.and_then(|failure| failure.code.as_deref());
        self.copy(member, id, generation, reason.as_str(), code, scene);
    }

    fn dead_apart(&mut self, member: &Member, reason: Reason, error: &str, scene: &Scene<'_>) {
        let once = once_key(member, reason, scene);
        let (id, generation) = match &member.origin {
            // One that was redriven and dies of the same again stays the row, and of the generation, that it is.
            Origin::Parked { row, token } if once.is_none_or(|once| once == row.id) => {
                self.moves.push(ParkedMove::dead_apart(row, *token, reason, error));
                (row.id, row.generation)
            }
            origin => {
                self.drop_row(origin);
                let row = NewParked::dead_apart(member.carried.clone(), reason, error, once);
                let id = row.id;
                self.parked.push(row);
                (id, 0)
            }
        };
        self.copy(member, id, generation, reason.as_str(), None, scene);
    }

    fn dead_compensated(&mut self, member: &Member, scene: &Scene<'_>) {
        let Some((row, token)) = member.origin.owned_row() else { return };
        let reason = row.reason.clone().unwrap_or_default();
        self.moves.push(ParkedMove::compensated(row, token));
        self.move_inbox(member, (Status::Parked, Some(row.id)), (Status::Dead, Some(row.id)), scene);
        self.copy(member, row.id, row.generation, &reason, row.code.as_deref(), scene);
    }

    fn give_back(&mut self, member: &Member, is_leader: bool) {
        if matches!(member.origin, Origin::Parked { .. }) {
            self.defer(member, Duration::ZERO);
        }
        if is_leader && !sabotage::broken(Breach::ClaimLeftIn) {
            self.unclaimed.extend(member.carried.id.clone());
        }
    }

    fn move_inbox(
        &mut self,
        member: &Member,
        from: (Status, Option<ParkedId>),
        to: (Status, Option<ParkedId>),
        scene: &Scene<'_>,
    ) {
        if let Some(id) = &member.carried.id {
            self.inbox.push(InboxMove { id: id.clone(), from, to, module: Some(scene.module) });
        }
    }

    fn copy(
        &mut self,
        member: &Member,
        id: ParkedId,
        generation: u32,
        reason: &str,
        code: Option<&str>,
        scene: &Scene<'_>,
    ) {
        if let Some(target) = scene.dead_letter {
            let message = &member.carried.message;
            let id_of_message = member.carried.id.clone();
            self.outbox.push(dead_letter_copy(message, id_of_message, id, generation, (reason, code), target));
        }
    }

    /// Writes everything, in the lane's transaction.
    pub async fn write(
        &self,
        ledger: &Ledger,
        connection: &mut dyn Connection,
        scene: &Scene<'_>,
    ) -> Result<(), DbError> {
        for (token, rows) in &self.deleted {
            let rows: Vec<&ParkedRow> = rows.iter().map(AsRef::as_ref).collect();
            ledger.delete_parked(connection, *token, &rows).await?;
        }
        ledger.move_parked(connection, &self.moves).await?;
        ledger.park(connection, scene.consumer, &self.parked).await?;
        if !self.moves.is_empty() || !self.parked.is_empty() {
            sabotage::at(Step::Parking);
        }
        if !sabotage::broken(Breach::OutboxOutside) {
            ledger.add_to_outbox(connection, scene.consumer, &self.outbox, scene.grace).await?;
        }
        let unclaimed: Vec<&MessageId> = self.unclaimed.iter().collect();
        ledger.unclaim(connection, scene.consumer, &unclaimed).await?;
        ledger.move_inbox(connection, scene.consumer, &self.inbox).await
    }
}

/// Dead letters that must be stored once however often their message comes.
fn once_key(member: &Member, reason: Reason, scene: &Scene<'_>) -> Option<ParkedId> {
    let id = member.carried.id.as_ref()?;
    let parts: [&[u8]; 4] =
        [reason.as_str().as_bytes(), scene.consumer.as_bytes(), id.as_bytes(), &member.carried.digest.0];
    matches!(reason, Reason::IdConflict | Reason::StaleCopy).then(|| ParkedId::derived(&parts))
}

fn carried(member: &Member, scene: &Scene<'_>) -> Carried {
    Carried { module: Some(scene.module), ..member.carried.clone() }
}

/// A dead letter's copy for a broker queue. Properties that would make it evaporate, be refused, fan out again or be
/// dropped as a cycle are left out; SQL keeps the originals.
pub fn dead_letter_copy(
    message: &Message,
    message_id: Option<MessageId>,
    id: ParkedId,
    generation: u32,
    (reason, code): (&str, Option<&str>),
    target: &DeadLetterTarget,
) -> OutboxRow {
    const DROPPED: [&str; 5] = ["CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count"];
    let mut headers: Vec<(String, HeaderValue)> = message
        .properties
        .headers
        .iter()
        .filter(|(name, _)| !DROPPED.contains(&name.as_str()) && !name.starts_with("x-hapax-"))
        .filter(|(name, _)| !name.starts_with("x-first-death") && !name.starts_with("x-last-death"))
        .cloned()
        .collect();
    let mut add = |name: &str, value: HeaderValue| headers.push((name.to_owned(), value));
    add(DEAD_ID_HEADER, HeaderValue::Text(id.to_string()));
    add(GENERATION_HEADER, HeaderValue::Integer(generation.into()));
    add("x-hapax-reason", HeaderValue::Text(reason.to_owned()));
    if let Some(code) = code {
        add("x-hapax-code", HeaderValue::Text(code.to_owned()));
    }
    add("x-hapax-exchange", HeaderValue::Text(message.exchange.clone()));
    add("x-hapax-routing-key", HeaderValue::Text(message.routing_key.clone()));
    let properties =
        Properties { headers, expiration: None, user_id: None, delivery_mode: Some(2), ..message.properties.clone() };
    OutboxRow {
        id: OutboxId::of_copy(id, generation),
        message_id,
        parked_id: Some(id),
        outgoing: Outgoing {
            exchange: target.exchange.clone(),
            routing_key: target.routing_key.clone(),
            properties,
            body: Bytes::new(),
        },
    }
}
