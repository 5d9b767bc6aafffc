//! One message of a batch, wherever it came from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::broker::{Delivery, Settler};
use crate::identity::{self, IdRule, PartitionRule};
use crate::ledger::parked::{Carried, ParkedId, ParkedRow, Phase, RunToken};
use crate::message::{BodyDigest, HeaderValue, Message, MessageId};
use crate::outcome::{Outcome, Reason};

/// The header by which a dead letter's copy says which dead letter it is a copy of.
pub const DEAD_ID_HEADER: &str = "x-hapax-dead-id";
/// The header with that dead letter's generation.
pub const GENERATION_HEADER: &str = "x-hapax-generation";

/// A live subscription, shared by the deliveries that came through it.
pub struct Link {
    settler: Box<dyn Settler>,
    open: AtomicBool,
}

impl Link {
    /// Wraps the settler of a new subscription.
    pub fn new(settler: Box<dyn Settler>) -> Arc<Self> {
        Arc::new(Self { settler, open: AtomicBool::new(true) })
    }

    /// False once the subscription has ended: what came through it comes again, and need not be begun.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Acknowledges; a lost subscription ignores it.
    pub fn acknowledge(&self, tags: Vec<u64>) {
        self.settler.acknowledge(tags);
    }

    /// Ends the subscription: what is unsettled goes back to the queue.
    pub async fn close(&self) {
        self.open.store(false, Ordering::Release);
        self.settler.close().await;
    }

    /// The subscription has ended by itself.
    pub fn ended(&self) {
        self.open.store(false, Ordering::Release);
    }
}

/// Where a member came from, and so how it is settled.
#[derive(Clone)]
pub enum Origin {
    /// From the broker.
    Delivery {
        /// Its subscription.
        link: Arc<Link>,
        /// Its delivery tag.
        tag: u64,
    },
    /// From SQL, taken under a token.
    Parked {
        /// The row as it was taken; its phase is `Handle` or `Compensate` if the inbox points to it, `Deliver` if not.
        row: Arc<ParkedRow>,
        /// The run that owns it.
        token: RunToken,
    },
}

impl Origin {
    /// The parked row that the inbox points to for this member's id, if that is where it came from.
    pub fn owned_row(&self) -> Option<(&ParkedRow, RunToken)> {
        match self {
            Self::Parked { row, token } if row.phase != Phase::Deliver => Some((row, *token)),
            _ => None,
        }
    }
}

/// What is to be done with a member inside the transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Claim its id (or lock its row), and call the handler.
    Run,
    /// Call the compensation.
    Compensate,
    /// Claim its id, but park it: its host may have died of it.
    ParkFirst,
    /// It is the copy of a dead letter that came back: reopen that.
    Reopen(ParkedId, u32),
    /// Nothing to find out any more.
    Record(Outcome),
}

/// One message of a batch.
#[derive(Clone)]
pub struct Member {
    /// Where it came from.
    pub origin: Origin,
    /// The message and its id.
    pub carried: Carried,
    /// What orders members of a batch that touch the same row next to each other.
    pub key: u64,
    /// What to do with it.
    pub plan: Plan,
    /// A verdict of an earlier, rolled-back run that counts all the same, because nothing had run before it there.
    pub judged: Option<Outcome>,
    /// Deadlocks, serialization failures and lock time-outs in its own statements.
    pub contentions: u32,
    /// Infrastructure failures under the batches it was in, the server answering probes.
    pub faults: u32,
    /// Those of them that it met alone.
    pub lone_faults: u32,
    /// The lock was tried this often.
    pub lock_tries: u32,
    /// It has failed after others in a transaction, and took them with it: it gets a savepoint of its own.
    pub failed_among_others: bool,
    /// Must not share a transaction with anything else.
    pub alone: bool,
}

/// The rules by which a consumer reads identity out of a message.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Message id, tried in order.
    pub id: Vec<IdRule>,
    /// Partition, where the config names one.
    pub partition: Option<PartitionRule>,
}

impl Member {
    /// Identifies a delivery: id, digest, partition; and says what is to become of it.
    pub fn identify(delivery: Delivery, link: &Arc<Link>, rules: &Rules) -> Self {
        let Delivery { message, redelivered, tag } = delivery;
        let digest = BodyDigest::of(&message.body);
        let (id, refused) = match identity::extract(&rules.id, &message) {
            Ok(id) => (Some(id), None),
            Err(none) => {
                let reason = if none.reason() == Reason::NoId.as_str() { Reason::NoId } else { Reason::BadId };
                (None, Some(Outcome::Unidentified(reason, none.to_string())))
            }
        };
        let (slot, key) = partition(rules, &message, id.as_ref());
        let plan = match (refused, returning_copy(&message)) {
            (_, Some((dead, generation))) => Plan::Reopen(dead, generation),
            (Some(outcome), None) => Plan::Record(outcome),
            (None, None) if redelivered => Plan::ParkFirst,
            (None, None) => Plan::Run,
        };
        let carried = Carried { row_id: ParkedId::new(), id, slot, digest, message: Arc::new(message), module: None };
        Self::new(Origin::Delivery { link: link.clone(), tag }, carried, key, plan)
    }

    /// A parked row that was taken.
    pub fn parked(row: ParkedRow, token: RunToken, rules: &Rules) -> Self {
        let row = Arc::new(row);
        let (slot, key) = partition(rules, &row.message, row.message_id.as_ref());
        let plan = match (&row.message_id, row.phase) {
            (None, _) => Plan::Record(Outcome::Unidentified(Reason::NoId, "it was parked without a message id".into())),
            (Some(_), Phase::Compensate) => Plan::Compensate,
            (Some(_), Phase::Handle | Phase::Deliver) => Plan::Run,
        };
        let carried = Carried {
            row_id: row.id,
            id: row.message_id.clone(),
            slot: if row.phase == Phase::Deliver { slot } else { row.slot },
            digest: row.digest,
            message: row.message.clone(),
            module: row.module,
        };
        let alone = row.phase == Phase::Compensate || row.crashes > 0;
        Self { alone, ..Self::new(Origin::Parked { row, token }, carried, key, plan) }
    }

    fn new(origin: Origin, carried: Carried, key: u64, plan: Plan) -> Self {
        Self {
            origin,
            carried,
            key,
            plan,
            judged: None,
            contentions: 0,
            faults: 0,
            lone_faults: 0,
            lock_tries: 0,
            failed_among_others: false,
            alone: false,
        }
    }

    /// The id, for logs.
    pub fn name(&self) -> &str {
        self.carried.id.as_ref().map_or("(no id)", MessageId::as_str)
    }

    /// Failed attempts in its phase so far.
    pub fn attempts(&self) -> u32 {
        match &self.origin {
            Origin::Delivery { .. } => 0,
            Origin::Parked { row, .. } => row.attempts,
        }
    }

    /// Where it is acknowledged, if it came from the broker.
    pub fn tag(&self) -> Option<(Arc<Link>, u64)> {
        match &self.origin {
            Origin::Delivery { link, tag } => Some((link.clone(), *tag)),
            Origin::Parked { .. } => None,
        }
    }

    /// True for a parked message that has cost a host.
    pub fn is_suspect(&self) -> bool {
        matches!(&self.origin, Origin::Parked { row, .. } if row.crashes > 0)
    }

    /// True if its id has to be claimed: it is not the one that the inbox points to already.
    pub fn claims(&self) -> bool {
        self.origin.owned_row().is_none() && matches!(self.plan, Plan::Run | Plan::ParkFirst)
    }

    /// True for a delivery whose subscription is gone: it comes again.
    pub fn is_stale(&self) -> bool {
        matches!(&self.origin, Origin::Delivery { link, .. } if !link.is_open())
    }
}

/// Slot and order. Without a partition rule messages spread over lanes by their ids and stay in the order in which they
/// came; one without an id has nothing to go by and needs nothing.
pub fn partition(rules: &Rules, message: &Message, id: Option<&MessageId>) -> (u16, u64) {
    match (id, &rules.partition) {
        (None, _) => (0, 0),
        (Some(id), None) => (identity::slot(&PartitionRule::MessageId, message, id), 0),
        (Some(id), Some(rule)) => {
            let key = identity::partition_key(rule, message, id);
            (key.slot(), key.0)
        }
    }
}

/// Reads the headers of a dead letter's copy.
fn returning_copy(message: &Message) -> Option<(ParkedId, u32)> {
    let dead = message.properties.header(DEAD_ID_HEADER)?.as_text()?;
    let dead = uuid::Uuid::parse_str(&dead).ok()?;
    let generation = match message.properties.header(GENERATION_HEADER)? {
        HeaderValue::Integer(generation) => u32::try_from(*generation).ok()?,
        other => other.as_text()?.parse().ok()?,
    };
    Some((ParkedId(*dead.as_bytes()), generation))
}
