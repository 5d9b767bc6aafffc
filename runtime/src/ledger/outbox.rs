//! The outbox: messages waiting to be published because an attempt committed.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;

use super::database::{Connection, DbError};
use super::parked::{ParkedId, derived_uuid, millis, parse_properties, properties_json, statements};
use super::statements::Args;
use super::value::Value;
use super::{Ledger, Reader, STATEMENT_ROWS, execute, own_transaction, query};
use crate::broker::Outgoing;
use crate::message::MessageId;

/// An outbox row's key: derived from what caused it, so that every publication of it carries the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutboxId(pub [u8; 16]);

impl OutboxId {
    /// The key of a dead letter's copy.
    pub fn of_copy(dead: ParkedId, generation: u32) -> Self {
        Self(*derived_uuid(&[b"dead-letter-copy", &dead.0, &generation.to_be_bytes()]).as_bytes())
    }

    /// The key of what a guest sent; `message_id` is the one that the guest was told.
    pub fn of_message(consumer: &str, message_id: &str) -> Self {
        match uuid::Uuid::parse_str(message_id) {
            Ok(id) => Self(*id.as_bytes()),
            Err(_) => Self(*derived_uuid(&[b"outbox", consumer.as_bytes(), message_id.as_bytes()]).as_bytes()),
        }
    }
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxRow {
    /// Its key.
    pub id: OutboxId,
    /// The message whose attempt sent it.
    pub message_id: Option<MessageId>,
    /// The parked row whose body it carries, for copies of dead letters: its own is empty.
    pub parked_id: Option<ParkedId>,
    /// What to publish, and where.
    pub outgoing: Outgoing,
}

/// An outbox row as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEntry {
    /// The row.
    pub row: OutboxRow,
    /// The consumer whose handler sent it.
    pub consumer: String,
    /// False while it waits to be published, true once the broker has refused or returned it.
    pub undeliverable: bool,
    /// Publications that failed.
    pub attempts: u32,
    /// When the next one is due, in milliseconds since the Unix epoch.
    pub next_at: i64,
    /// What the broker said.
    pub error: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub created_at: i64,
}

/// Bodies of one page at most, in bytes; a single larger one is a page of its own.
const PAGE_BYTES: u64 = 32 << 20;

/// Longest error in bytes: MySQL's TEXT ends at 64 KiB.
const MAX_ERROR: usize = 16 << 10;

const PENDING: i64 = 1;
const UNDELIVERABLE: i64 = 2;

impl Ledger {
    /// Adds rows in the lane's transaction. The host that adds them publishes them at once; after `grace` any host may.
    /// Copies of dead letters are left to the next sweep of any host.
    pub async fn add_to_outbox(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        rows: &[OutboxRow],
        grace: Duration,
    ) -> Result<(), DbError> {
        let text = |text: &str| Some(text.to_owned());
        for rows in statements(rows, |row| row.outgoing.body.len()) {
            let args = Args::new()
                .one("consumer", consumer)
                .ints("grace", rows.iter().map(|row| Some(if row.parked_id.is_some() { 0 } else { millis(grace) })))
                .blobs("id", rows.iter().map(|row| Some(row.id.0.to_vec())))
                .blobs("message_id", rows.iter().map(|row| row.message_id.as_ref().map(|id| id.as_bytes().to_vec())))
                .blobs("parked_id", rows.iter().map(|row| row.parked_id.map(|id| id.0.to_vec())))
                .texts("exchange", rows.iter().map(|row| text(&row.outgoing.exchange)))
                .texts("routing_key", rows.iter().map(|row| text(&row.outgoing.routing_key)))
                .texts("properties", rows.iter().map(|row| Some(properties_json(&row.outgoing.properties))))
                .blobs("body", rows.iter().map(|row| Some(row.outgoing.body.to_vec())));
            execute(connection, &self.statements.outbox_add, args).await?;
        }
        Ok(())
    }

    /// Rows that are due, put off by `grace` so that no other host publishes them meanwhile: at most `limit`, and as many
    /// as 32 MiB allows. Bodies of copies are filled in; a copy whose dead letter is gone has nothing to carry
    /// and is dropped.
    pub async fn outbox_due(&self, limit: usize, grace: Duration) -> Result<Vec<OutboxEntry>, DbError> {
        own_transaction!(self, |connection| {
            let mut entries = self.lock_page(connection, limit).await?;
            let ids: Vec<OutboxId> = entries.iter().map(|entry| entry.row.id).collect();
            for ids in ids.chunks(STATEMENT_ROWS) {
                let args = row_ids(ids).one("grace", millis(grace));
                execute(connection, &self.statements.outbox_hold, args).await?;
            }
            self.fill_in_bodies(connection, &mut entries).await?;
            Ok(entries)
        })
    }

    /// Locks the rows of one page, without their bodies.
    async fn lock_page(&self, connection: &mut dyn Connection, limit: usize) -> Result<Vec<OutboxEntry>, DbError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found = query(connection, &self.statements.outbox_due, Args::new().one("limit", limit)).await?;
        let due = found.rows.into_iter().map(read_due).collect::<Result<Vec<_>, _>>()?;
        let copies = self.sizes_of_copies(connection, &due).await?;
        let mut page = Vec::with_capacity(due.len());
        let mut room = PAGE_BYTES;
        for Due { entry, bytes } in due {
            let size = match entry.row.parked_id {
                None => bytes,
                Some(dead) => match copies.get(&dead.0) {
                    Some(size) => *size,
                    None => {
                        execute(connection, &self.statements.outbox_done, row_ids(&[entry.row.id])).await?;
                        continue;
                    }
                },
            };
            if size > room && !page.is_empty() {
                break;
            }
            room = room.saturating_sub(size);
            page.push(entry);
        }
        Ok(page)
    }

    /// The sizes of the dead letters that are there, of which these rows are copies.
    async fn sizes_of_copies(
        &self,
        connection: &mut dyn Connection,
        due: &[Due],
    ) -> Result<HashMap<[u8; 16], u64>, DbError> {
        let dead: Vec<ParkedId> = due.iter().filter_map(|due| due.entry.row.parked_id).collect();
        let mut sizes = HashMap::new();
        for dead in dead.chunks(STATEMENT_ROWS) {
            let args = Args::new().blobs("row_id", dead.iter().map(|id| Some(id.0.to_vec())));
            for row in query(connection, &self.statements.outbox_copies, args).await?.rows {
                let mut row = Reader::new(row);
                sizes.insert(row.array()?, row.int()?.max(0).unsigned_abs());
            }
        }
        Ok(sizes)
    }

    async fn fill_in_bodies(
        &self,
        connection: &mut dyn Connection,
        entries: &mut [OutboxEntry],
    ) -> Result<(), DbError> {
        let own = entries.iter().filter(|entry| entry.row.parked_id.is_none());
        let own: Vec<OutboxId> = own.map(|entry| entry.row.id).collect();
        let mut bodies = HashMap::new();
        for ids in own.chunks(STATEMENT_ROWS) {
            for row in query(connection, &self.statements.outbox_bodies, row_ids(ids)).await?.rows {
                let mut row = Reader::new(row);
                bodies.insert(OutboxId(row.array()?), Bytes::from(row.maybe_blob()?.unwrap_or_default()));
            }
        }
        for entry in entries {
            let body = match entry.row.parked_id {
                None => bodies.remove(&entry.row.id),
                Some(dead) => self.parked_in(connection, dead).await?.map(|row| row.message.body.clone()),
            };
            entry.row.outgoing.body = body.unwrap_or_default();
        }
        Ok(())
    }

    /// Deletes rows that the broker confirmed.
    pub async fn outbox_done(&self, ids: &[OutboxId]) -> Result<(), DbError> {
        if ids.is_empty() {
            return Ok(());
        }
        own_transaction!(self, |connection| {
            for ids in ids.chunks(STATEMENT_ROWS) {
                execute(connection, &self.statements.outbox_done, row_ids(ids)).await?;
            }
            Ok(())
        })
    }

    /// Records that the broker will not take a row as it is. The others flow.
    pub async fn outbox_undeliverable(&self, id: OutboxId, error: &str) -> Result<(), DbError> {
        let args = Args::new().one("id", id.0.as_slice()).one("error", stored(error));
        own_transaction!(self, |connection| {
            execute(connection, &self.statements.outbox_undeliverable, args).await.map(drop)
        })
    }

    /// Records a publication that came to nothing, to be tried again after `delay`.
    pub async fn outbox_retry(&self, id: OutboxId, error: &str, delay: Duration) -> Result<(), DbError> {
        let args = Args::new().one("id", id.0.as_slice()).one("error", stored(error)).one("delay", millis(delay));
        own_transaction!(self, |connection| execute(connection, &self.statements.outbox_retry, args).await.map(drop))
    }

    /// How many rows of a consumer wait to be published, and the age of the oldest.
    pub async fn outbox_stats(&self, consumer: &str) -> Result<(u64, Duration), DbError> {
        self.outbox_in(consumer, PENDING).await
    }

    /// How many rows of a consumer the broker will not take, and the age of the oldest.
    pub async fn outbox_undeliverables(&self, consumer: &str) -> Result<(u64, Duration), DbError> {
        self.outbox_in(consumer, UNDELIVERABLE).await
    }

    async fn outbox_in(&self, consumer: &str, state: i64) -> Result<(u64, Duration), DbError> {
        let args = Args::new().one("state", state).one("consumer", consumer);
        let found = self.own_query(&self.statements.outbox_stats, args).await?;
        let Some(row) = found.rows.into_iter().next() else { return Ok((0, Duration::ZERO)) };
        let mut row = Reader::new(row);
        let rows = row.number()?;
        Ok((rows, Duration::from_millis(row.int()?.max(0).unsigned_abs())))
    }

    /// Makes a consumer's undeliverable rows pending again; returns how many.
    pub async fn outbox_requeue(&self, consumer: &str) -> Result<u64, DbError> {
        let args = Args::new().one("consumer", consumer);
        let done =
            own_transaction!(self, |connection| execute(connection, &self.statements.outbox_requeue, args).await)?;
        Ok(done.rows_affected)
    }

    /// The outbox rows that a message caused, without bodies.
    pub async fn outbox_of_message(&self, consumer: &str, id: &MessageId) -> Result<Vec<OutboxEntry>, DbError> {
        let args = Args::new().one("consumer", consumer).one("message_id", id.as_bytes());
        let found = self.own_query(&self.statements.outbox_of_message, args).await?;
        found.rows.into_iter().map(read_entry).collect()
    }
}

/// The beginning of an error, as every database can hold it.
fn stored(error: &str) -> String {
    error[..error.floor_char_boundary(MAX_ERROR)].replace('\0', "\u{fffd}")
}

fn row_ids(ids: &[OutboxId]) -> Args {
    Args::new().blobs("row_id", ids.iter().map(|id| Some(id.0.to_vec())))
}

/// A row that is due, without its body.
struct Due {
    entry: OutboxEntry,
    /// The size of its body; 0 for a copy.
    bytes: u64,
}

fn read_due(mut row: Vec<Value>) -> Result<Due, DbError> {
    // The last column; those before it are an entry's.
    let size = row.pop().into_iter().collect();
    let bytes = Reader::new(size).int()?.max(0).unsigned_abs();
    Ok(Due { entry: read_entry(row)?, bytes })
}

fn read_entry(row: Vec<Value>) -> Result<OutboxEntry, DbError> {
    let mut row = Reader::new(row);
    let id = OutboxId(row.array()?);
    let consumer = row.text()?;
    let message_id = row.maybe_blob()?.and_then(|bytes| MessageId::from_bytes(&bytes).ok());
    let parked_id = row.maybe_array()?.map(ParkedId);
    let (exchange, routing_key) = (row.text()?, row.text()?);
    let properties = parse_properties(&row.text()?)?;
    let body = Bytes::from(row.maybe_blob()?.unwrap_or_default());
    let undeliverable = row.int()? == UNDELIVERABLE;
    let attempts = row.number()?;
    let next_at = row.int()?;
    let error = row.maybe_text()?;
    let created_at = row.int()?;
    let outgoing = Outgoing { exchange, routing_key, properties, body };
    let row = OutboxRow { id, message_id, parked_id, outgoing };
    Ok(OutboxEntry { row, consumer, undeliverable, attempts, next_at, error, created_at })
}
