//! The arm that strikes at the broker, the lock server, the database, and the network to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hapax_tests::servers::{Kind, Rabbit, Redis, Server};
use hapax_tests::vhost::Vhost;
use hapax_tests::wait_for;

use super::fault::{ServerFault, Target};
use super::{Arm, Felt, START_LIMIT, retry_outbox};
use crate::books::Reader;
use crate::fleet::Commands;
use crate::order::Order;
use crate::producer::Progress;
use crate::stage::{
    DEAD_OF, DEAD_QUEUE, DatabaseServer, EXCHANGE, LEASE_SECONDS, ORDERED, Stage, Wires, again, bind, declare,
};
use crate::wire::{Weather, Wire};

/// RabbitMQ's own mark, as a share of memory.
const USUAL_MEMORY_MARK: &str = "0.4";

/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(50);

/// How many COMMITs are cut off: not every transaction is one of messages.
const COMMITS: usize = 6;

/// How soon it is noticed that one was, and how long its host is then left alone.
const GLANCE: Duration = Duration::from_millis(5);
const RESPITE: Duration = Duration::from_millis(300);

/// Who is no host, and holds locks; and for how long, in milliseconds.
const SOMEBODY_ELSE: &str = "somebody else";
const LEASE_OF_ANOTHER: &str = "500";

/// How often whatever is locked is taken over.
const TAKEOVERS: u32 = 10;

/// How long it is waited for somebody to be hit.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long after it was killed RabbitMQ is looked at, and how long it may take to answer.
const SETTLED: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(5);

/// Deletes all locks, if there are any, and counts them.
const FLUSH_LOCKS: &str = "local count = redis.call('DBSIZE') \
     if count > 0 then redis.call('FLUSHALL') end \
     return count";

/// Gives locks to somebody else, and counts them: those whose lease has just begun, or has just been renewed, for their
/// holders live, and come back to them.
const TAKE_LOCKS: &str = "local taken = 0 \
     for _, key in ipairs(redis.call('KEYS', '*')) do \
     if redis.call('PTTL', key) > tonumber(ARGV[3]) then \
     redis.call('SET', key, ARGV[1], 'XX', 'PX', ARGV[2]) taken = taken + 1 end end \
     return taken";

/// What is left of such a lease, in milliseconds, at least.
const FRESH: u64 = LEASE_SECONDS * 1000 - 200;

/// See [the module](self).
pub(super) struct ServersArm<'a> {
    pub(super) stage: &'a mut Stage,
    /// Between the hosts and their servers.
    pub(super) wires: Vec<Arc<Wires>>,
    pub(super) commands: Commands,
    /// What orders follow from.
    pub(super) seed: u64,
    pub(super) progress: Arc<Progress>,
    /// When RabbitMQ was killed, until it was seen to have got over it.
    pub(super) broker_killed: Option<Instant>,
}

impl Arm for ServersArm<'_> {
    type Fault = ServerFault;

    async fn strike(&mut self, fault: ServerFault) -> Result<Felt> {
        if self.broker_killed.is_some_and(|killed| killed.elapsed() >= SETTLED) {
            self.see_to_leader().await?;
        }
        match fault {
            ServerFault::BrokerKilled { twice } => self.kill_broker(twice).await,
            ServerFault::LeaderKilled { time } => self.kill_leader(time).await,
            ServerFault::BrokerCloses => self.close_connections().await,
            ServerFault::BrokerAlarm { time } => self.raise_alarm(time).await,
            ServerFault::ExchangeDeleted { time } => self.delete_exchange(time).await,
            ServerFault::QueueDeleted { which, time } => self.delete_queue(which, time).await,
            ServerFault::CopiesMovedBack => self.move_copies_back().await,
            ServerFault::DatabaseKilled => self.kill_database().await,
            ServerFault::SessionsEnded => self.end_sessions().await,
            ServerFault::RowsLocked { time } => self.lock_rows(time).await,
            ServerFault::Unserializable { time } => self.sicken(time).await,
            ServerFault::DiskFull { time } => self.fill_disk(time).await,
            ServerFault::DatabaseFrozen { time } => self.freeze_database(time).await,
            ServerFault::LocksKilled => self.kill_locks().await,
            ServerFault::LocksFlushed => self.flush_locks().await,
            ServerFault::LocksTaken => self.take_locks().await,
            ServerFault::LocksFrozen { time } => self.freeze_locks(time).await,
            ServerFault::LocksFull { time } => self.fill_locks(time).await,
            ServerFault::LocksReadOnly { time } => self.seal_locks(time).await,
            ServerFault::Network { host, target, weather, time } => {
                self.spoil_network(host, target, weather, time).await
            }
        }
    }
}

impl ServersArm<'_> {
    fn rabbit(&mut self) -> Result<&mut Rabbit> {
        self.stage.rabbits.first_mut().context("there is no RabbitMQ here")
    }

    fn vhost(&self) -> Result<&Vhost> {
        self.stage.vhost.as_deref().context("there is no RabbitMQ here")
    }

    fn redis(&mut self) -> Result<&mut Redis> {
        self.stage.redis.as_mut().context("there is no Redis here")
    }

    async fn kill_broker(&mut self, twice: bool) -> Result<Felt> {
        let rabbit = self.rabbit()?;
        rabbit.crash().await?;
        if twice {
            rabbit.crash().await?;
        }
        self.broker_killed = Some(Instant::now());
        Ok(Felt::Yes)
    }

    /// RabbitMQ 3.10, killed while it came back, now and then never finds a leader for its quorum queue again ("leader
    /// not known"), and answers nobody who asks for it. Its operator would start it again.
    pub(super) async fn see_to_leader(&mut self) -> Result<()> {
        let Some(killed) = self.broker_killed.take() else { return Ok(()) };
        tokio::time::sleep(SETTLED.saturating_sub(killed.elapsed())).await;
        let vhost = self.vhost()?;
        if wait_for(ANSWER, "the quorum queue to be counted", async || vhost.queue(ORDERED[1]).await).await.is_err() {
            tracing::warn!("RabbitMQ has found no leader for {:?}: it is started again", ORDERED[1]);
            self.kill_broker(false).await?;
        }
        Ok(())
    }

    /// Kills the node that leads the quorum queue, while the others live.
    async fn kill_leader(&mut self, time: Duration) -> Result<Felt> {
        let leader = self.vhost()?.leader(ORDERED[1]).await?;
        let node = self.stage.rabbits.iter_mut().find(|node| node.node_name().is_ok_and(|name| name == leader));
        let node = node.with_context(|| format!("the queue is led by a node that is not known here: {leader}"))?;
        node.kill9().await?;
        tokio::time::sleep(time).await;
        node.restart().await?;
        Ok(Felt::Yes)
    }

    async fn close_connections(&mut self) -> Result<Felt> {
        Ok((self.vhost()?.close_connections().await? > 0).into())
    }

    async fn raise_alarm(&mut self, time: Duration) -> Result<Felt> {
        let rabbit = self.rabbit()?;
        rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await?;
        // The broker looks at its memory now and then.
        let (vhost, end) = (self.vhost()?, Instant::now() + PATIENCE);
        let mut blocked = 0;
        while blocked == 0 && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
            blocked = vhost.blocked_connections().await?;
        }
        tokio::time::sleep(time).await;
        self.rabbit()?.ctl(&["set_vm_memory_high_watermark", USUAL_MEMORY_MARK]).await?;
        Ok((blocked > 0).into())
    }

    async fn delete_exchange(&mut self, time: Duration) -> Result<Felt> {
        let vhost = self.vhost()?;
        vhost.delete_exchange(EXCHANGE).await?;
        tokio::time::sleep(time).await;
        vhost.declare_exchange(EXCHANGE, "topic").await?;
        bind(vhost).await?;
        self.write_declarations().await?;
        let refused = self.stage.reader.number("COUNT(*)", "FROM hapax_outbox WHERE state = 2").await?;
        retry_outbox(&self.commands).await?;
        Ok((refused > 0).into())
    }

    /// Deletes a queue with what is in it. Its producer sends again what it takes for lost, and some that is not.
    async fn delete_queue(&mut self, which: usize, time: Duration) -> Result<Felt> {
        let queue = ORDERED[which % ORDERED.len()];
        let vhost = self.vhost()?;
        // A queue that has just come back has not been counted yet.
        let lost = wait_for(START_LIMIT, "the queue to be counted", async || vhost.queue(queue).await).await?.messages;
        vhost.delete_queue(queue).await?;
        tokio::time::sleep(time).await;
        declare(vhost, queue, self.stage.setting.is_cluster()).await?;
        self.write_declarations().await?;
        let published = self.progress.published();
        let known = self.stage.reader.known(queue).await?;
        let orders = (0..published).map(|number| Order::of(self.seed, number));
        let missing = orders.flat_map(|order| {
            let is_known = known.contains(order.id());
            order.sent_again(is_known)
        });
        vhost.publish(missing.map(|order| again(queue, &order))).await?;
        Ok((lost > 0).into())
    }

    /// So that a node that is killed next has them still.
    async fn write_declarations(&self) -> Result<()> {
        futures::future::try_join_all(self.stage.rabbits.iter().map(Rabbit::write_declarations)).await.map(drop)
    }

    async fn move_copies_back(&mut self) -> Result<Felt> {
        Ok((self.vhost()?.move_messages(DEAD_QUEUE, DEAD_OF).await? > 0).into())
    }

    async fn kill_database(&mut self) -> Result<Felt> {
        Ok(self.stage.database.crash().await?.into())
    }

    async fn freeze_database(&mut self, time: Duration) -> Result<Felt> {
        match &mut self.stage.database {
            DatabaseServer::Postgres(server) => hold_still(server, time).await?,
            DatabaseServer::MariaDb(server) => hold_still(server, time).await?,
            DatabaseServer::None => return Ok(Felt::No),
        }
        Ok(Felt::Yes)
    }

    /// Fails some of the statements that write effects.
    async fn sicken(&mut self, time: Duration) -> Result<Felt> {
        let reader = &self.stage.reader;
        let number = match reader {
            Reader::Postgres(_) => "nextval('sickened')",
            Reader::MariaDb(_) => "NEXTVAL(sickened)",
            Reader::Sqlite(_) => return Ok(Felt::No),
        };
        let before = reader.number(number, "").await?;
        // Handlers read that row: against them it may lose a deadlock.
        let set = async |sick: u8| {
            wait_for(START_LIMIT, "the trigger to be set", async || {
                reader.execute(&format!("UPDATE health SET sick = {sick}")).await
            })
            .await
        };
        set(1).await?;
        tokio::time::sleep(time).await;
        set(0).await?;
        Ok((reader.number(number, "").await? > before + 1).into())
    }

    /// Leaves no room on the database's disk; a server that cannot live with that is started again.
    async fn fill_disk(&mut self, time: Duration) -> Result<Felt> {
        let Some(disk) = self.stage.small_disk() else { return Ok(Felt::No) };
        disk.fill()?;
        tokio::time::sleep(time).await;
        let was_full = disk.is_full()?;
        disk.free()?;
        match &mut self.stage.database {
            DatabaseServer::Postgres(server) => revive(server, &self.stage.reader).await?,
            DatabaseServer::MariaDb(server) => revive(server, &self.stage.reader).await?,
            DatabaseServer::None => {}
        }
        Ok(was_full.into())
    }

    async fn end_sessions(&mut self) -> Result<Felt> {
        let reader = &self.stage.reader;
        let (list, kill): (_, fn(&str) -> String) = match reader {
            Reader::Postgres(_) => (
                "SELECT CAST(pid AS TEXT) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
                |id| format!("SELECT pg_terminate_backend({id})"),
            ),
            Reader::MariaDb(_) => (
                "SELECT CAST(id AS CHAR) FROM information_schema.processlist \
                 WHERE db = database() AND id <> connection_id()",
                |id| format!("KILL CONNECTION {id}"),
            ),
            Reader::Sqlite(_) => return Ok(Felt::No),
        };
        let sessions: Vec<String> = reader.rows(list).await?.into_iter().flatten().flatten().collect();
        for id in &sessions {
            // One that has ended by itself in the meantime is no matter.
            let _ = reader.execute(&kill(id)).await;
        }
        Ok((!sessions.is_empty()).into())
    }

    /// Holds the rows that handlers change, for a while.
    async fn lock_rows(&mut self, time: Duration) -> Result<Felt> {
        let reader = &self.stage.reader;
        let Some(held) = reader.hold_rows().await? else { return Ok(Felt::No) };
        tokio::time::sleep(time).await;
        let waited = reader.is_anybody_waiting().await?;
        held.release().await?;
        Ok(waited.into())
    }

    async fn kill_locks(&mut self) -> Result<Felt> {
        self.redis()?.crash().await?;
        Ok(Felt::Yes)
    }

    async fn flush_locks(&mut self) -> Result<Felt> {
        self.hit_locks(1, &["EVAL", FLUSH_LOCKS, "0"]).await
    }

    async fn take_locks(&mut self) -> Result<Felt> {
        self.hit_locks(TAKEOVERS, &["EVAL", TAKE_LOCKS, "0", SOMEBODY_ELSE, LEASE_OF_ANOTHER, &FRESH.to_string()]).await
    }

    /// Runs a script that returns how many locks it has found, until it has found some so many times. Locks are held for
    /// milliseconds, and now and then nobody has anything to do.
    async fn hit_locks(&mut self, times: u32, script: &[&str]) -> Result<Felt> {
        let (mut hits, end) = (0, Instant::now() + PATIENCE);
        while hits < times && Instant::now() < end {
            hits += u32::from(self.stage.ask_locks::<u64>(script).await? > 0);
            tokio::time::sleep(LOOK).await;
        }
        Ok((hits > 0).into())
    }

    async fn freeze_locks(&mut self, time: Duration) -> Result<Felt> {
        hold_still(self.redis()?, time).await?;
        Ok(Felt::Yes)
    }

    async fn fill_locks(&mut self, time: Duration) -> Result<Felt> {
        let refused = self.refusals("OOM").await?;
        let _: String = self.stage.ask_locks(&["CONFIG", "SET", "maxmemory", "1"]).await?;
        tokio::time::sleep(time).await;
        let _: String = self.stage.ask_locks(&["CONFIG", "SET", "maxmemory", "0"]).await?;
        Ok((self.refusals("OOM").await? > refused).into())
    }

    async fn seal_locks(&mut self, time: Duration) -> Result<Felt> {
        let refused = self.refusals("READONLY").await?;
        // Nobody listens on port 1: it stays a replica without a master.
        let _: String = self.stage.ask_locks(&["REPLICAOF", "127.0.0.1", "1"]).await?;
        tokio::time::sleep(time).await;
        let _: String = self.stage.ask_locks(&["REPLICAOF", "NO", "ONE"]).await?;
        Ok((self.refusals("READONLY").await? > refused).into())
    }

    /// How often it has refused something with that word: "errorstat_OOM:count=3".
    async fn refusals(&self, word: &str) -> Result<u64> {
        let info: String = self.stage.ask_locks(&["INFO", "errorstats"]).await?;
        let count = info.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{word}:count=")));
        Ok(count.and_then(|count| count.trim().parse().ok()).unwrap_or(0))
    }

    async fn spoil_network(&self, host: usize, target: Target, weather: Weather, time: Duration) -> Result<Felt> {
        let wires = &self.wires[host % self.wires.len()];
        let wire = match target {
            Target::Broker => &wires.broker,
            Target::Locks => &wires.lock,
            Target::Database => &wires.database,
        };
        let Some(wire) = wire else { return Ok(Felt::No) };
        let touched = match weather {
            Weather::CommitCut(_) => cut_commits(wire, weather, time).await,
            _ => {
                wire.set(weather);
                tokio::time::sleep(time).await;
                wire.touched()
            }
        };
        wire.set(Weather::Fair);
        Ok((touched > 0).into())
    }
}

/// Cuts off one COMMIT after the other, each once the host works again: one that cannot even begin has nothing to commit.
async fn cut_commits(wire: &Wire, weather: Weather, time: Duration) -> usize {
    let (mut cut, end) = (0, Instant::now() + time);
    while Instant::now() < end && cut < COMMITS {
        wire.set(weather);
        while Instant::now() < end && wire.touched() == 0 {
            tokio::time::sleep(GLANCE).await;
        }
        cut += wire.touched();
        wire.set(Weather::Fair);
        tokio::time::sleep(RESPITE).await;
    }
    cut
}

/// Freezes a server for a time.
async fn hold_still<K: Kind>(server: &mut Server<K>, time: Duration) -> Result<()> {
    server.sigstop()?;
    tokio::time::sleep(time).await;
    server.sigcont()
}

/// Waits until it answers again, and starts it if it has ended.
async fn revive<K: Kind>(server: &mut Server<K>, reader: &Reader) -> Result<()> {
    wait_for(START_LIMIT, "the database to answer", async || {
        if !server.is_running() {
            server.restart().await?;
        }
        reader.number("1", "").await
    })
    .await
    .map(drop)
}
