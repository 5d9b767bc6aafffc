//! A virtual host of one test: topology and depths by the management API, messages by AMQP, where nothing of their
//! properties is lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use lapin::Confirmation;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use url::Url;

use crate::admin::Admin;
use crate::wait::block_on;

/// Longest wait for AMQP to do one thing.
const LIMIT: Duration = Duration::from_secs(30);
/// Publishes on the way at once.
const WINDOW: usize = 200;

/// A virtual host with a name of its own. Dropped with this value on a user's own server; a private one goes as a whole.
pub struct Vhost {
    name: String,
    url: Url,
    admin: Admin,
    private: bool,
}

/// What a queue holds, as the management API sees it (200 ms old on a private server, 5 s on others).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Ready and unacknowledged messages together.
    pub messages: u64,
    /// Messages waiting for a consumer.
    pub ready: u64,
    /// Messages delivered and not settled.
    pub unacknowledged: u64,
    /// AMQP consumers.
    pub consumers: u64,
}

/// A message taken from a queue, or to be published.
#[derive(Clone, Debug)]
pub struct Message {
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
    /// Its properties, headers included, as they were.
    pub properties: BasicProperties,
    /// Its body.
    pub body: Vec<u8>,
}

impl Message {
    /// A persistent message to a queue through the default exchange.
    pub fn to_queue(queue: &str, message_id: Option<&str>, body: impl Into<Vec<u8>>) -> Self {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(id) = message_id {
            properties = properties.with_message_id(id.into());
        }
        Self { exchange: String::new(), routing_key: queue.to_owned(), properties, body: body.into() }
    }
}

impl Vhost {
    pub(crate) async fn create(server: &Url, admin: Admin, name: String, private: bool) -> Result<Self> {
        admin.create_vhost(&name).await?;
        let mut url = server.clone();
        url.path_segments_mut().ok().context("the AMQP URL has no path")?.clear().push(&name);
        Ok(Self { name, url, admin, private })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, with user and password.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// The client of the management API.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// Declares a durable queue with these arguments (`{"x-queue-type": "quorum"}`).
    ///
    /// # Errors
    /// When RabbitMQ refuses, as it does if the queue has other arguments.
    pub async fn declare_queue(&self, queue: &str, arguments: Value) -> Result<()> {
        let body = json!({ "durable": true, "arguments": arguments });
        self.admin.put(&["queues", &self.name, queue], &body).await
    }

    /// Deletes a queue.
    ///
    /// # Errors
    /// When RabbitMQ refuses.
    pub async fn delete_queue(&self, queue: &str) -> Result<()> {
        self.admin.delete(&["queues", &self.name, queue]).await
    }

    /// Removes the ready messages of a queue.
    ///
    /// # Errors
    /// When RabbitMQ refuses.
    pub async fn purge_queue(&self, queue: &str) -> Result<()> {
        self.admin.delete(&["queues", &self.name, queue, "contents"]).await
    }

    /// Declares a durable exchange ("direct", "topic", "fanout", "headers").
    ///
    /// # Errors
    /// When RabbitMQ refuses.
    pub async fn declare_exchange(&self, exchange: &str, kind: &str) -> Result<()> {
        self.admin.put(&["exchanges", &self.name, exchange], &json!({ "type": kind, "durable": true })).await
    }

    /// Deletes an exchange.
    ///
    /// # Errors
    /// When RabbitMQ refuses.
    pub async fn delete_exchange(&self, exchange: &str) -> Result<()> {
        self.admin.delete(&["exchanges", &self.name, exchange]).await
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// When one of them is missing.
    pub async fn bind_queue(&self, exchange: &str, queue: &str, routing_key: &str) -> Result<()> {
        let path = ["bindings", &self.name, "e", exchange, "q", queue];
        self.admin.post(&path, &json!({ "routing_key": routing_key })).await.map(drop)
    }

    /// Binds an exchange to another one, from which it gets messages then.
    ///
    /// # Errors
    /// When one of them is missing.
    pub async fn bind_exchange(&self, source: &str, exchange: &str, routing_key: &str) -> Result<()> {
        let path = ["bindings", &self.name, "e", source, "e", exchange];
        self.admin.post(&path, &json!({ "routing_key": routing_key })).await.map(drop)
    }

    /// Sets a policy on queues whose name matches `pattern`: `{"message-ttl": 1000}`, `{"max-length": 1}`, ….
    ///
    /// # Errors
    /// When RabbitMQ refuses.
    pub async fn set_policy(&self, policy: &str, pattern: &str, definition: Value) -> Result<()> {
        let body = json!({ "pattern": pattern, "definition": definition, "apply-to": "queues" });
        self.admin.put(&["policies", &self.name, policy], &body).await
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// When RabbitMQ refuses.
    pub async fn delete_policy(&self, policy: &str) -> Result<()> {
        self.admin.delete(&["policies", &self.name, policy]).await
    }

    /// Does the queue exist?
    ///
    /// # Errors
    /// When RabbitMQ does not answer.
    pub async fn queue_exists(&self, queue: &str) -> Result<bool> {
        Ok(self.admin.find(&["queues", &self.name, queue]).await?.is_some())
    }

    /// How many messages and consumers a queue has.
    ///
    /// # Errors
    /// When there is no such queue, or its figures have not been collected yet.
    pub async fn queue(&self, queue: &str) -> Result<QueueState> {
        let state = self.admin.get(&["queues", &self.name, queue]).await?;
        let number = |field: &str| {
            state[field].as_u64().with_context(|| format!("RabbitMQ has not counted `{field}` of queue {queue} yet"))
        };
        Ok(QueueState {
            messages: number("messages")?,
            ready: number("messages_ready")?,
            unacknowledged: number("messages_unacknowledged")?,
            consumers: number("consumers")?,
        })
    }

    /// Names of the connections to this virtual host.
    ///
    /// # Errors
    /// When RabbitMQ does not answer.
    pub async fn connections(&self) -> Result<Vec<String>> {
        self.of_connections("name").await
    }

    /// How many deliveries each channel has not settled.
    ///
    /// # Errors
    /// When RabbitMQ does not answer.
    pub async fn unacknowledged_of_channels(&self) -> Result<Vec<u64>> {
        let list = self.admin.get(&["vhosts", &self.name, "channels"]).await?;
        let channels = list.as_array().into_iter().flatten();
        Ok(channels.filter_map(|channel| channel["messages_unacknowledged"].as_u64()).collect())
    }

    /// How many connections are kept from publishing, by an alarm.
    ///
    /// # Errors
    /// When RabbitMQ does not answer.
    pub async fn blocked_connections(&self) -> Result<usize> {
        let states = self.of_connections("state").await?;
        Ok(states.iter().filter(|state| matches!(state.as_str(), "blocked" | "blocking")).count())
    }

    /// One field of each connection to this virtual host.
    async fn of_connections(&self, field: &str) -> Result<Vec<String>> {
        let list = self.admin.get(&["vhosts", &self.name, "connections"]).await?;
        let fields = list.as_array().into_iter().flatten().filter_map(|connection| connection[field].as_str());
        Ok(fields.map(str::to_owned).collect())
    }

    /// The node that leads a quorum queue.
    ///
    /// # Errors
    /// When there is no such queue, or nobody leads it.
    pub async fn leader(&self, queue: &str) -> Result<String> {
        let found = self.admin.get(&["queues", &self.name, queue]).await?;
        found["leader"].as_str().map(str::to_owned).with_context(|| format!("nobody leads {queue}"))
    }

    /// Closes every connection to this virtual host, as an operator would; returns how many there were.
    ///
    /// # Errors
    /// When RabbitMQ does not answer.
    pub async fn close_connections(&self) -> Result<usize> {
        let names = self.connections().await?;
        for name in &names {
            self.admin.delete(&["connections", name]).await?;
        }
        Ok(names.len())
    }

    /// An AMQP connection of the test's own.
    ///
    /// # Errors
    /// When RabbitMQ does not let it in.
    pub async fn connect(&self) -> Result<Connection> {
        let connection = Connection::connect(self.url(), ConnectionProperties::default());
        within("connecting", connection).await
    }

    /// Publishes in order, mandatory and confirmed, and returns the number of messages that no queue took.
    ///
    /// # Errors
    /// When RabbitMQ refuses a message or does not confirm it in time.
    pub async fn publish(&self, messages: impl IntoIterator<Item = Message>) -> Result<usize> {
        let connection = self.connect().await?;
        let channel = within("opening a channel", connection.create_channel()).await?;
        let returned = publish_on(&channel, messages).await?;
        within("closing the connection", connection.close(200, "done".into())).await?;
        Ok(returned)
    }

    /// Takes up to `limit` messages out of a queue and acknowledges them.
    ///
    /// # Errors
    /// When there is no such queue.
    pub async fn take(&self, queue: &str, limit: usize) -> Result<Vec<Message>> {
        let connection = self.connect().await?;
        let channel = within("opening a channel", connection.create_channel()).await?;
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some(message) = get(&channel, queue).await? else { break };
            within("acknowledging", message.ack(BasicAckOptions::default())).await?;
            taken.push(from_get(message));
        }
        within("closing the connection", connection.close(200, "done".into())).await?;
        Ok(taken)
    }

    /// Moves the messages that a queue holds now to another queue, as an operator's shovel does: through the default
    /// exchange, with all their properties, acknowledged when confirmed. Returns how many.
    ///
    /// # Errors
    /// When a queue is missing; what was not confirmed stays where it was.
    pub async fn move_messages(&self, from: &str, to: &str) -> Result<usize> {
        let connection = self.connect().await?;
        let channel = within("opening a channel", connection.create_channel()).await?;
        let mut moved = 0;
        let mut left = usize::MAX;
        while left > 0 {
            let Some(message) = get(&channel, from).await? else { break };
            // So that it ends when both are one queue, or the other end brings them back.
            left = left.min(message.message_count as usize + 1) - 1;
            let acker = message.acker.clone();
            let copy = Message { exchange: String::new(), routing_key: to.to_owned(), ..from_get(message) };
            ensure!(publish_on(&channel, [copy]).await? == 0, "there is no queue {to} to move messages to");
            within("acknowledging", acker.ack(BasicAckOptions::default())).await?;
            moved += 1;
        }
        within("closing the connection", connection.close(200, "done".into())).await?;
        Ok(moved)
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        if self.private {
            return;
        }
        let (admin, name) = (self.admin.clone(), self.name.clone());
        if let Err(error) = block_on(async move { admin.delete_vhost(&name).await }) {
            eprintln!("the virtual host {} stays on your server: {error:#}", self.name);
        }
    }
}

async fn get(channel: &Channel, queue: &str) -> Result<Option<BasicGetMessage>> {
    within("getting a message", channel.basic_get(queue.into(), BasicGetOptions::default())).await
}

fn from_get(message: BasicGetMessage) -> Message {
    let delivery = message.delivery;
    Message {
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
        properties: delivery.properties,
        body: delivery.data,
    }
}

async fn publish_on(channel: &Channel, messages: impl IntoIterator<Item = Message>) -> Result<usize> {
    within("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let publishes = futures::stream::iter(messages).map(async |message| {
        let Message { exchange, routing_key, properties, body } = message;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let sent = channel.basic_publish(exchange.into(), routing_key.into(), options, &body, properties);
        let confirm = within("publishing", sent).await?;
        within("waiting for a confirm", confirm).await
    });
    let mut returned = 0;
    let mut confirms = publishes.buffered(WINDOW);
    while let Some(confirmation) = confirms.next().await {
        match confirmation? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(_)) => returned += 1,
            other => anyhow::bail!("RabbitMQ refused a message: {other:?}"),
        }
    }
    Ok(returned)
}

/// A limit on everything that AMQP may never answer.
async fn within<T>(what: &str, work: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    let result = tokio::time::timeout(LIMIT, work).await;
    result.with_context(|| format!("{what} took longer than {LIMIT:?}"))?.with_context(|| what.to_owned())
}
