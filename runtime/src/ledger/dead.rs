//! Dead letters, as operators and returning copies act on them.

use std::time::Duration;

use super::database::{Connection, DbError};
use super::inbox::{InboxMove, InboxRow, Status};
use super::parked::{ParkedId, ParkedRow, State, millis, read_row};
use super::statements::Args;
use super::{Ledger, execute, own_transaction, query};
use crate::message::MessageId;
use crate::sabotage::{self, Step};

/// Which parked rows to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this consumer only.
    pub consumer: Option<String>,
    /// With this reason only.
    pub reason: Option<String>,
    /// With this failure code only.
    pub code: Option<String>,
    /// Last changed at or after this, in milliseconds since the Unix epoch.
    pub since: Option<i64>,
    /// Last changed before this.
    pub until: Option<i64>,
}

/// What became of a redrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redriven {
    /// It will be handled again.
    Yes,
    /// It is not a dead letter of that generation any more: somebody was faster.
    Already,
    /// Its compensation took effect; only force reopens it.
    AlreadyCompensated,
    /// There is no such row.
    Gone,
    /// Today's rules find no valid message id in it.
    NoId,
}

/// What SQL knows of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Its inbox row.
    pub inbox: Option<InboxRow>,
    /// Its parked rows, without bodies: the one that counts, deferred deliveries, conflicts.
    pub parked: Vec<ParkedRow>,
}

impl Ledger {
    /// A page of dead letters in the order of their keys, without bodies; `after` is the last key of the page before.
    /// Keys are made when a message arrives, so that older ones come first; those of conflicts are derived, and come
    /// anywhere.
    pub async fn dead_letters(
        &self,
        filter: &Filter,
        after: Option<ParkedId>,
        limit: usize,
    ) -> Result<Vec<ParkedRow>, DbError> {
        let args = Args::new()
            .one("state", State::Dead.code())
            .one("after", after.map(|id| id.0.to_vec()).unwrap_or_default())
            .one("consumer", filter.consumer.clone())
            .one("reason", filter.reason.clone())
            .one("code", filter.code.clone())
            .one("since", filter.since.unwrap_or(0))
            .one("until", filter.until.unwrap_or(i64::MAX))
            .one("limit", i64::try_from(limit).unwrap_or(i64::MAX));
        let found = self.own_query(&self.statements.dead_list, args).await?;
        found.rows.into_iter().map(read_row).collect()
    }

    /// The parked rows whose keys lie between two, at most two of them, with bodies.
    pub(super) async fn parked_between(
        &self,
        connection: &mut dyn Connection,
        first: ParkedId,
        last: ParkedId,
    ) -> Result<Vec<ParkedRow>, DbError> {
        let args = Args::new().one("first", first.0.as_slice()).one("last", last.0.as_slice());
        let found = query(connection, &self.statements.parked_get, args).await?;
        let mut rows = found.rows.into_iter().map(read_row).collect::<Result<Vec<_>, _>>()?;
        for row in &mut rows {
            self.load_body(connection, row).await?;
        }
        Ok(rows)
    }

    /// One parked row with its body.
    pub async fn parked_row(&self, id: ParkedId) -> Result<Option<ParkedRow>, DbError> {
        own_transaction!(self, |connection| self.parked_in(connection, id).await)
    }

    /// The rows whose keys begin with these hex digits, at most two: people shorten ids.
    pub async fn parked_by_prefix(&self, first: ParkedId, last: ParkedId) -> Result<Vec<ParkedRow>, DbError> {
        own_transaction!(self, |connection| self.parked_between(connection, first, last).await)
    }

    /// What the inbox and the parked rows say of a message.
    pub async fn known(&self, consumer: &str, id: &MessageId) -> Result<Known, DbError> {
        own_transaction!(self, |connection| {
            let inbox = self.existing(connection, consumer, &[id]).await?.into_values().next();
            let args = Args::new().one("consumer", consumer).one("message_id", id.as_bytes());
            let found = query(connection, &self.statements.parked_of_message, args).await?;
            let parked = found.rows.into_iter().map(read_row).collect::<Result<Vec<_>, _>>()?;
            Ok(Known { inbox, parked })
        })
    }

    /// One parked row with its body, in the caller's transaction.
    pub async fn parked_in(&self, connection: &mut dyn Connection, id: ParkedId) -> Result<Option<ParkedRow>, DbError> {
        Ok(self.parked_between(connection, id, id).await?.into_iter().next())
    }

    /// Reopens a dead letter under guard of its generation, in a transaction of its own. See [`Self::redrive_in`].
    pub async fn redrive(
        &self,
        row: &ParkedRow,
        delay: Duration,
        forced: bool,
        target: Option<(MessageId, u16)>,
    ) -> Result<Redriven, DbError> {
        own_transaction!(self, |connection| self.redrive_in(connection, row, delay, forced, target).await)
    }

    /// dead → retry in the caller's transaction; safe to run twice. A dead letter that the inbox does not point to (no
    /// id, bad id, conflict) becomes a deferred delivery, under the id and slot that today's rules find in it.
    pub async fn redrive_in(
        &self,
        connection: &mut dyn Connection,
        row: &ParkedRow,
        delay: Duration,
        forced: bool,
        target: Option<(MessageId, u16)>,
    ) -> Result<Redriven, DbError> {
        let args = guard(row.id, row.generation).one("delay", millis(delay));
        if !self.is_owner(connection, row).await? {
            let Some((id, slot)) = target else {
                return Ok(self.why_not(connection, row).await?.unwrap_or(Redriven::NoId));
            };
            let args = args.one("message_id", id.as_bytes()).one("slot", i64::from(slot));
            let done = execute(connection, &self.statements.redrive_as_delivery, args).await?;
            return match done.rows_affected {
                0 => Ok(self.why_not(connection, row).await?.unwrap_or(Redriven::Already)),
                _ => Ok(Redriven::Yes),
            };
        }
        let done = execute(connection, &self.statements.redrive, args.one("forced", i64::from(forced))).await?;
        if done.rows_affected == 0 {
            return Ok(self.why_not(connection, row).await?.unwrap_or(Redriven::AlreadyCompensated));
        }
        if let Some(id) = row.message_id.clone() {
            let (from, to) = ((Status::Dead, Some(row.id)), (Status::Parked, Some(row.id)));
            let moved = InboxMove { id, from, to, module: None };
            self.move_inbox(connection, &row.consumer, &[moved]).await?;
        }
        sabotage::at(Step::Redriving);
        Ok(Redriven::Yes)
    }

    /// Why a row is no dead letter of that generation; none if it is.
    async fn why_not(&self, connection: &mut dyn Connection, row: &ParkedRow) -> Result<Option<Redriven>, DbError> {
        Ok(match self.parked_in(connection, row.id).await? {
            None => Some(Redriven::Gone),
            Some(found) if found.state == State::Dead && found.generation == row.generation => None,
            Some(_) => Some(Redriven::Already),
        })
    }

    /// True if the inbox row of the message names this parked row.
    pub async fn is_owner(&self, connection: &mut dyn Connection, row: &ParkedRow) -> Result<bool, DbError> {
        let Some(id) = &row.message_id else { return Ok(false) };
        let found = self.existing(connection, &row.consumer, &[id]).await?.into_values().next();
        Ok(found.is_some_and(|inbox| inbox.parked_id == Some(row.id)))
    }

    /// dead → discarded. False if it is not a dead letter of that generation any more.
    pub async fn discard(&self, row: &ParkedRow) -> Result<bool, DbError> {
        let args = guard(row.id, row.generation);
        let done = own_transaction!(self, |connection| execute(connection, &self.statements.discard, args).await)?;
        Ok(done.rows_affected == 1)
    }
}

fn guard(id: ParkedId, generation: u32) -> Args {
    Args::new().one("id", id.0.as_slice()).one("generation", i64::from(generation))
}
