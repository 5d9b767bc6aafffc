//! What makes the order of events certain: rows that the test locks, a lane that it keeps busy, figures that it waits for.

use anyhow::{Context as _, Result, bail};
use hapax::broker::Outgoing;
use hapax::ledger::database::Connection;
use hapax_tests::proc::Process;
use hapax_tests::wait_for;
use serde_json::{Value as Json, json};

use crate::world::{CONSUMER, PATIENCE, World, message};

/// Rows that the test has locked, until it lets go.
pub(crate) struct Held(Box<dyn Connection>);

impl Held {
    /// Ends the transaction, and with it its locks.
    pub(crate) async fn commit(mut self) -> Result<()> {
        Ok(self.0.commit().await?)
    }

    /// Ends the transaction as if it had never been.
    pub(crate) async fn rollback(mut self) -> Result<()> {
        Ok(self.0.rollback().await?)
    }
}

impl World {
    /// Runs statements in a transaction of the test's own, and keeps what they lock.
    pub(crate) async fn hold(&self, statements: &[&str]) -> Result<Held> {
        let mut connection = self.begin().await?;
        for statement in statements {
            connection.execute(statement, &[]).await?;
        }
        Ok(Held(connection))
    }

    /// Makes a latch and closes it: whoever changes its row waits until it is let go.
    pub(crate) async fn latch(&self, name: &str) -> Result<Held> {
        self.prepare(&[&format!("INSERT INTO latch (name, value) VALUES ('{name}', 0)")]).await?;
        self.hold(&[&format!("UPDATE latch SET value = 1 WHERE name = '{name}'")]).await
    }

    /// Publishes these so that the one lane of a consumer finds all of them at once: a message that waits for a latch
    /// keeps it busy until the host has received them.
    pub(crate) async fn publish_as_one_batch(
        &self,
        host: &mut Process,
        figures: &Figures,
        messages: Vec<Outgoing>,
    ) -> Result<()> {
        let door = self.latch("door").await?;
        let steps = json!({ "do": [{ "print": "at the door" }, through("door")] });
        let before = figures.consumers("hapax_deliveries_received_total").await?;
        self.publish([message("door", steps.to_string())]).await?;
        host.wait_for_log(PATIENCE, "at the door").await?;
        let all = before + 1.0 + f64::from(u32::try_from(messages.len())?);
        self.publish(messages).await?;
        figures.wait("hapax_deliveries_received_total", all).await?;
        door.commit().await
    }
}

/// A step that waits until that latch is let go.
pub(crate) fn through(latch: &str) -> Json {
    json!({ "affects": "UPDATE latch SET value = value + 1 WHERE name = ?", "params": [latch], "rows": 1 })
}

/// The metrics of a host that listens.
pub(crate) struct Figures {
    port: u16,
}

impl Figures {
    /// On a port that nobody listens on.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { port: std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port() })
    }

    /// What makes a host serve them: for the head of its config.
    pub(crate) fn listen(&self) -> String {
        format!("listen = \"127.0.0.1:{}\"", self.port)
    }

    /// One figure of the consumer under test.
    pub(crate) async fn consumers(&self, name: &str) -> Result<f64> {
        let metrics = reqwest::get(format!("http://127.0.0.1:{}/metrics", self.port)).await?.text().await?;
        let mut lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(CONSUMER));
        let line = lines.next_back().with_context(|| format!("no {name} in {metrics}"))?;
        Ok(line.rsplit(' ').next().context("a metric without a figure")?.parse()?)
    }

    /// Waits until a figure of the consumer under test is at least that high.
    pub(crate) async fn wait(&self, name: &str, least: f64) -> Result<()> {
        wait_for(PATIENCE, format!("{name} >= {least}"), async || {
            let found = self.consumers(name).await?;
            if found >= least { Ok(()) } else { bail!("it is {found}") }
        })
        .await
    }
}
