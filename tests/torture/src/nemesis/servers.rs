//! Faults of the broker, the lock server and the database.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hapax_tests::servers::{Kind, Rabbit, Redis, Server};
use hapax_tests::vhost::Vhost;

use super::{Felt, Nemesis};
use crate::books::Reader;
use crate::order::Order;
use crate::stage::{DEAD_OF, DEAD_QUEUE, DatabaseServer, EXCHANGE, ORDERED, again, bind, declare};

/// RabbitMQ's own mark, as a share of memory.
const USUAL_MEMORY_MARK: &str = "0.4";

impl Nemesis {
    fn rabbit(&mut self) -> Result<&mut Rabbit> {
        self.stage.rabbit.as_mut().context("there is no RabbitMQ here")
    }

    fn vhost(&self) -> Result<&Vhost> {
        self.stage.vhost.as_ref().context("there is no RabbitMQ here")
    }

    fn redis(&mut self) -> Result<&mut Redis> {
        self.stage.redis.as_mut().context("there is no Redis here")
    }

    pub(super) async fn kill_broker(&mut self, twice: bool) -> Result<Felt> {
        let rabbit = self.rabbit()?;
        crash(rabbit).await?;
        if twice {
            crash(rabbit).await?;
        }
        self.flows_again("broker killed").await?;
        Ok(Felt::Yes)
    }

    pub(super) async fn close_connections(&mut self) -> Result<Felt> {
        Ok((self.vhost()?.close_connections().await? > 0).into())
    }

    pub(super) async fn raise_alarm(&mut self, time: Duration) -> Result<Felt> {
        let rabbit = self.rabbit()?;
        rabbit.ctl(&["set_vm_memory_high_watermark", "0.0000001"]).await?;
        tokio::time::sleep(time).await;
        rabbit.ctl(&["set_vm_memory_high_watermark", USUAL_MEMORY_MARK]).await?;
        Ok(Felt::Yes)
    }

    pub(super) async fn delete_exchange(&mut self, time: Duration) -> Result<Felt> {
        let vhost = self.vhost()?;
        vhost.delete_exchange(EXCHANGE).await?;
        tokio::time::sleep(time).await;
        vhost.declare_exchange(EXCHANGE, "topic").await?;
        bind(vhost).await?;
        let refused = self.stage.reader.number("COUNT(*)", "FROM hapax_outbox WHERE state = 2").await?;
        self.retry_outbox().await?;
        Ok((refused > 0).into())
    }

    /// Deletes a queue with what is in it. Its producer sends again what it takes for lost, and some that is not.
    pub(super) async fn delete_queue(&mut self, which: usize, time: Duration) -> Result<Felt> {
        let queue = ORDERED[which % ORDERED.len()];
        let vhost = self.vhost()?;
        let lost = vhost.queue(queue).await?.messages;
        vhost.delete_queue(queue).await?;
        tokio::time::sleep(time).await;
        declare(vhost, queue).await?;
        let published = self.progress.published();
        let known = self.stage.reader.known(queue).await?;
        let unknown =
            (0..published).map(|number| Order::of(self.task.seed, number)).filter(|order| !known.contains(order.id()));
        vhost.publish(unknown.map(|order| again(queue, &order))).await?;
        Ok((lost > 0).into())
    }

    pub(super) async fn move_copies_back(&mut self) -> Result<Felt> {
        Ok((self.vhost()?.move_messages(DEAD_QUEUE, DEAD_OF).await? > 0).into())
    }

    pub(super) async fn kill_database(&mut self) -> Result<Felt> {
        match &mut self.stage.database {
            DatabaseServer::Postgres(server) => crash(server).await?,
            DatabaseServer::MariaDb(server) => crash(server).await?,
            DatabaseServer::None => return Ok(Felt::No),
        }
        self.flows_again("database killed").await?;
        Ok(Felt::Yes)
    }

    pub(super) async fn freeze_database(&mut self, time: Duration) -> Result<Felt> {
        match &mut self.stage.database {
            DatabaseServer::Postgres(server) => hold_still(server, time).await?,
            DatabaseServer::MariaDb(server) => hold_still(server, time).await?,
            DatabaseServer::None => return Ok(Felt::No),
        }
        Ok(Felt::Yes)
    }

    pub(super) async fn end_sessions(&mut self) -> Result<Felt> {
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
    pub(super) async fn lock_rows(&mut self, time: Duration) -> Result<Felt> {
        const HOLD: &str = "UPDATE stock SET quantity = quantity WHERE goods_id < 5";
        macro_rules! hold {
            ($pool:expr) => {{
                let mut transaction = $pool.begin().await?;
                // It may lose against handlers: then it holds nothing.
                if sqlx::query(HOLD).execute(&mut *transaction).await.is_err() {
                    return Ok(Felt::No);
                }
                tokio::time::sleep(time).await;
                let waiting = self.waiting_sessions().await?;
                transaction.rollback().await?;
                waiting
            }};
        }
        let waiting = match &self.stage.reader {
            Reader::Postgres(pool) => hold!(pool),
            Reader::MariaDb(pool) => hold!(pool),
            Reader::Sqlite(_) => 0,
        };
        Ok((waiting > 0).into())
    }

    /// How many sessions wait for a lock.
    async fn waiting_sessions(&self) -> Result<i64> {
        let reader = &self.stage.reader;
        match reader {
            Reader::Postgres(_) => reader.number("COUNT(*)", "FROM pg_locks WHERE NOT granted").await,
            Reader::MariaDb(_) => {
                reader.number("COUNT(*)", "FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'").await
            }
            Reader::Sqlite(_) => Ok(0),
        }
    }

    pub(super) async fn kill_locks(&mut self) -> Result<Felt> {
        crash(self.redis()?).await?;
        self.flows_again("lock server killed").await?;
        Ok(Felt::Yes)
    }

    pub(super) async fn flush_locks(&mut self) -> Result<Felt> {
        // How many keys there were says whether it mattered.
        let held: i64 = self.ask_locks(&["DBSIZE"]).await?;
        let _: String = self.ask_locks(&["FLUSHALL"]).await?;
        Ok((held > 0).into())
    }

    pub(super) async fn freeze_locks(&mut self, time: Duration) -> Result<Felt> {
        hold_still(self.redis()?, time).await?;
        Ok(Felt::Yes)
    }

    pub(super) async fn fill_locks(&mut self, time: Duration) -> Result<Felt> {
        let _: String = self.ask_locks(&["CONFIG", "SET", "maxmemory", "1"]).await?;
        tokio::time::sleep(time).await;
        let _: String = self.ask_locks(&["CONFIG", "SET", "maxmemory", "0"]).await?;
        Ok(Felt::Yes)
    }

    pub(super) async fn seal_locks(&mut self, time: Duration) -> Result<Felt> {
        // Nobody listens on port 1: it stays a replica without a master.
        let _: String = self.ask_locks(&["REPLICAOF", "127.0.0.1", "1"]).await?;
        tokio::time::sleep(time).await;
        let _: String = self.ask_locks(&["REPLICAOF", "NO", "ONE"]).await?;
        Ok(Felt::Yes)
    }

    pub(crate) async fn ask_locks<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let client = redis::Client::open(self.stage.lock_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await.context("connecting to Redis")?;
        let (name, args) = words.split_first().context("nothing to ask")?;
        redis::cmd(name).arg(args).query_async(&mut connection).await.with_context(|| format!("asking Redis {words:?}"))
    }
}

/// Kills a server, and starts it again.
async fn crash<K: Kind>(server: &mut Server<K>) -> Result<()> {
    server.kill9().await?;
    server.restart().await
}

/// Freezes a server for a time.
async fn hold_still<K: Kind>(server: &mut Server<K>, time: Duration) -> Result<()> {
    server.sigstop()?;
    tokio::time::sleep(time).await;
    server.sigcont()
}
