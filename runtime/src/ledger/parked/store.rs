//! Parking, taking, locking, moving and deleting rows.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::transition::{move_args, park_args};
use super::{CHUNK_BYTES, Incarnation, NewParked, ParkedId, ParkedMove, ParkedRow, RunToken, State, read_rows};
use crate::ledger::database::{Connection, DbError};
use crate::ledger::statements::Args;
use crate::ledger::{Ledger, Reader, STATEMENT_ROWS, all_moved, execute, own_transaction, query};
use crate::sabotage::{self, Breach};

/// At most about this many bytes of bodies travel in one statement, far below any server's packet limit.
const STATEMENT_BYTES: usize = 4 << 20;

/// Rows whose bodies have more than this together are not taken at once, unless it is a single one: a lane holds them
/// all in memory.
const TAKE_BYTES: u64 = 64 << 20;

/// Which due rows to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that never cost a host, first due first.
    Innocent,
    /// One that did: those taken with it would share its next crash.
    Suspect,
}

impl Which {
    /// True for a row with so many crashes.
    fn fits(self, crashes: u32) -> bool {
        (self == Self::Suspect) == (crashes > 0)
    }
}

/// What to take, for one lane.
#[derive(Debug, Clone)]
pub struct Take<'a> {
    /// The consumer.
    pub consumer: &'a str,
    /// The lane's slots.
    pub slots: RangeInclusive<u16>,
    /// At most this many rows.
    pub limit: usize,
    /// Who takes them.
    pub incarnation: Incarnation,
    /// Which rows.
    pub which: Which,
    /// For blocking retry: only what nothing older is in the way of, oldest first.
    pub in_order: bool,
}

impl Ledger {
    /// Inserts rows in the lane's transaction. One whose key exists stays as it is.
    pub async fn park(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        rows: &[NewParked],
    ) -> Result<(), DbError> {
        for part in statements(rows, |row| row.body_len().min(CHUNK_BYTES)) {
            execute(connection, &self.statements.park, park_args(consumer, part)).await?;
        }
        for row in rows.iter().filter(|row| row.body_len() > CHUNK_BYTES) {
            for (ordinal, chunk) in row.message.body.chunks(CHUNK_BYTES).enumerate() {
                let args = Args::new()
                    .one("parked_id", row.id.0.as_slice())
                    .one("ordinal", i64::try_from(ordinal).unwrap_or(i64::MAX))
                    .one("bytes", chunk);
                execute(connection, &self.statements.park_chunk, args).await?;
            }
        }
        Ok(())
    }

    /// Takes due rows in a committed transaction of its own, on the lane's connection. They are then ours until we
    /// move them, give them back, or somebody rescues them.
    pub async fn take_due(
        &self,
        connection: &mut dyn Connection,
        take: &Take<'_>,
    ) -> Result<(RunToken, Vec<ParkedRow>), DbError> {
        let token = RunToken(*Uuid::new_v4().as_bytes());
        connection.begin().await?;
        let taken = self.take_in_transaction(connection, take, token).await;
        match taken {
            Ok(rows) if rows.is_empty() => connection.rollback().await.map(|()| (token, rows)),
            Ok(rows) => connection.commit().await.map(|()| (token, rows)),
            Err(error) => {
                if !error.connection_lost {
                    connection.rollback().await?;
                }
                Err(error)
            }
        }
    }

    /// True if there is anything to take. Takes nothing.
    pub async fn is_due(&self, connection: &mut dyn Connection, take: &Take<'_>) -> Result<bool, DbError> {
        Ok(!self.due(connection, take).await?.is_empty())
    }

    /// What there is to take, in the order in which it is to be run, as far as there is room for it.
    async fn due(&self, connection: &mut dyn Connection, take: &Take<'_>) -> Result<Vec<ParkedId>, DbError> {
        let args = Args::new()
            .one("consumer", take.consumer)
            .one("first_slot", i64::from(*take.slots.start()))
            .one("last_slot", i64::from(*take.slots.end()));
        let limit = i64::try_from(take.limit).unwrap_or(i64::MAX);
        let found = match (take.in_order, take.which) {
            (true, _) => query(connection, &self.statements.due_in_order, args.one("limit", limit)).await?,
            (false, Which::Innocent) => query(connection, &self.statements.due, args.one("limit", limit)).await?,
            (false, Which::Suspect) => query(connection, &self.statements.due_suspect, args).await?,
        };
        let (mut due, mut bytes) = (Vec::new(), 0);
        for row in found.rows {
            let mut row = Reader::new(row);
            let (id, crashes, size, is_due) = (ParkedId(row.array()?), row.number()?, row.number::<u64>()?, row.int()?);
            bytes += size;
            let has_room = due.is_empty() || (take.which == Which::Innocent && bytes <= TAKE_BYTES);
            if is_due == 0 || !take.which.fits(crashes) || !has_room {
                break;
            }
            due.push(id);
        }
        Ok(due)
    }

    /// The rows of these keys as they are now, locked. Where order counts, up to the first that others are at.
    async fn due_rows(
        &self,
        connection: &mut dyn Connection,
        due: &[ParkedId],
        take: &Take<'_>,
    ) -> Result<Vec<ParkedRow>, DbError> {
        let mut found = HashMap::with_capacity(due.len());
        for ids in due.chunks(STATEMENT_ROWS) {
            let args = Args::new().blobs("row_id", ids.iter().map(|id| Some(id.0.to_vec())));
            let rows = read_rows(query(connection, &self.statements.due_rows, args).await?)?;
            found.extend(rows.into_iter().map(|row| (row.id, row)));
        }
        let rows = due.iter().map(|id| found.remove(id).filter(|row| take.which.fits(row.crashes)));
        Ok(if take.in_order { rows.map_while(|row| row).collect() } else { rows.flatten().collect() })
    }

    async fn take_in_transaction(
        &self,
        connection: &mut dyn Connection,
        take: &Take<'_>,
        token: RunToken,
    ) -> Result<Vec<ParkedRow>, DbError> {
        let due = self.due(connection, take).await?;
        let mut rows = self.due_rows(connection, &due, take).await?;
        for rows in rows.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("run_token", token.0.as_slice())
                .one("incarnation", take.incarnation.0.as_slice())
                .blobs("row_id", rows.iter().map(|row| Some(row.id.0.to_vec())));
            let taken = execute(connection, &self.statements.take, args).await?;
            all_moved(taken, rows.len(), "a parked row")?;
        }
        for row in &mut rows {
            self.load_body(connection, row).await?;
        }
        Ok(rows)
    }

    /// Reads a body that is kept in chunks.
    pub(in crate::ledger) async fn load_body(
        &self,
        connection: &mut dyn Connection,
        row: &mut ParkedRow,
    ) -> Result<(), DbError> {
        if row.body_bytes as usize <= CHUNK_BYTES {
            return Ok(());
        }
        let body = self.chunks(connection, row.id, row.body_bytes).await?;
        let mut message = (*row.message).clone();
        message.body = body;
        row.message = Arc::new(message);
        Ok(())
    }

    pub(in crate::ledger) async fn chunks(
        &self,
        connection: &mut dyn Connection,
        id: ParkedId,
        bytes: u64,
    ) -> Result<Bytes, DbError> {
        let args = Args::new().one("parked_id", id.0.as_slice());
        let found = query(connection, &self.statements.chunks, args).await?;
        let mut body = BytesMut::with_capacity(bytes as usize);
        for row in found.rows {
            body.extend_from_slice(&Reader::new(row).blob()?);
        }
        if body.len() as u64 != bytes {
            return Err(DbError::infrastructure(format!(
                "the body of parked row {id} has {} of its {bytes} bytes in hapax_parked_chunks",
                body.len()
            )));
        }
        Ok(body.freeze())
    }

    /// Locks what was taken, to the end of the lane's transaction. Returns the keys that are still ours.
    pub async fn lock_running(
        &self,
        connection: &mut dyn Connection,
        token: RunToken,
        ids: &[ParkedId],
    ) -> Result<Vec<ParkedId>, DbError> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        let mut ours = Vec::with_capacity(ids.len());
        for ids in sorted.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("run_token", token.0.as_slice())
                .blobs("row_id", ids.iter().map(|id| Some(id.0.to_vec())));
            for row in query(connection, &self.statements.lock_running, args).await?.rows {
                ours.push(ParkedId(Reader::new(row).array()?));
            }
        }
        Ok(ours)
    }

    /// Writes transitions of running rows.
    pub async fn move_parked(&self, connection: &mut dyn Connection, moves: &[ParkedMove]) -> Result<(), DbError> {
        for moves in moves.chunks(STATEMENT_ROWS) {
            let moved = execute(connection, &self.statements.parked_move, move_args(moves)).await?;
            all_moved(moved, moves.len(), "a parked row")?;
        }
        Ok(())
    }

    /// Deletes running rows that are done with, and their chunks.
    pub async fn delete_parked(
        &self,
        connection: &mut dyn Connection,
        token: RunToken,
        rows: &[&ParkedRow],
    ) -> Result<(), DbError> {
        for rows in rows.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("run_token", token.0.as_slice())
                .blobs("row_id", rows.iter().map(|row| Some(row.id.0.to_vec())));
            let deleted = execute(connection, &self.statements.parked_delete, args).await?;
            all_moved(deleted, rows.len(), "a parked row")?;
        }
        let large: Vec<ParkedId> =
            rows.iter().filter(|row| row.body_bytes as usize > CHUNK_BYTES).map(|row| row.id).collect();
        self.delete_chunks(connection, &large).await
    }

    pub(in crate::ledger) async fn delete_chunks(
        &self,
        connection: &mut dyn Connection,
        ids: &[ParkedId],
    ) -> Result<(), DbError> {
        for ids in ids.chunks(STATEMENT_ROWS) {
            let args = Args::new().blobs("parked_id", ids.iter().map(|id| Some(id.0.to_vec())));
            execute(connection, &self.statements.chunks_delete, args).await?;
        }
        Ok(())
    }

    /// Gives back what a run of this host took and will not finish, uncounted, due again after `delay`.
    pub async fn give_back(
        &self,
        consumer: &str,
        incarnation: Incarnation,
        token: RunToken,
        delay: Duration,
    ) -> Result<(), DbError> {
        own_transaction!(self, |connection| {
            let args = Args::new()
                .one("consumer", consumer)
                .one("incarnation", incarnation.0.as_slice())
                .one("run_token", token.0.as_slice());
            if sabotage::broken(Breach::ShutdownCounted) {
                connection.execute("UPDATE hapax_parked SET attempts = attempts + 1 WHERE state = 1", &[]).await?;
            }
            let mut ids = Vec::new();
            for row in query(connection, &self.statements.taken, args).await?.rows {
                ids.push(Some(Reader::new(row).blob()?));
            }
            for ids in ids.chunks(STATEMENT_ROWS) {
                let args = Args::new()
                    .one("run_token", token.0.as_slice())
                    .one("delay", millis(delay))
                    .blobs("row_id", ids.iter().cloned());
                // Fewer, where some have been rescued in the meantime.
                execute(connection, &self.statements.give_back, args).await?;
            }
            Ok(())
        })
    }

    /// Which slots have something due within `horizon`, and in how long.
    pub async fn due_slots(&self, consumer: &str, horizon: Duration) -> Result<Vec<(u16, Duration)>, DbError> {
        let args = Args::new().one("consumer", consumer).one("horizon", millis(horizon));
        let found = self.own_query(&self.statements.due_slots, args).await?;
        found
            .rows
            .into_iter()
            .map(|row| {
                let mut row = Reader::new(row);
                let slot = row.number()?;
                let wait = row.int()?;
                Ok((slot, Duration::from_millis(wait.max(0).unsigned_abs())))
            })
            .collect()
    }

    /// True if anything that came earlier is still to be run for these slots.
    pub async fn slots_blocked(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        slots: RangeInclusive<u16>,
    ) -> Result<bool, DbError> {
        let args = Args::new()
            .one("consumer", consumer)
            .one("first_slot", i64::from(*slots.start()))
            .one("last_slot", i64::from(*slots.end()));
        let found = query(connection, &self.statements.slots_blocked, args).await?;
        Ok(!found.rows.is_empty())
    }

    /// How many rows stand in each of these states.
    pub async fn parked_counts(
        &self,
        consumer: &str,
        states: RangeInclusive<State>,
    ) -> Result<Vec<(State, u64)>, DbError> {
        let args =
            Args::new().one("consumer", consumer).one("first", states.start().code()).one("last", states.end().code());
        let found = self.own_query(&self.statements.parked_counts, args).await?;
        found
            .rows
            .into_iter()
            .map(|row| {
                let mut row = Reader::new(row);
                Ok((State::from_code(row.int()?)?, row.number()?))
            })
            .collect()
    }
}

/// Cuts rows up so that each part makes one statement of bearable size.
pub(in crate::ledger) fn statements<T>(rows: &[T], bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(STATEMENT_ROWS).take_while(|row| {
            bytes += bytes_of(row);
            bytes <= STATEMENT_BYTES
        });
        let (now, later) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Milliseconds, as SQL takes them; what does not fit is as good as never.
pub(in crate::ledger) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}
