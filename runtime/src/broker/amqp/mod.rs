//! AMQP 0-9-1: RabbitMQ, and whatever else speaks it.
//!
//! ```no_run
//! # async fn example() -> Result<(), hapax::broker::BrokerError> {
//! use hapax::broker::{Broker as _, Settings, amqp::Amqp};
//!
//! let broker = Amqp::new("amqp://shop:secret@localhost/%2f", Settings::default())?;
//! println!("{}", broker.describe().await?); // RabbitMQ 4.1.0
//! # Ok(())
//! # }
//! ```
//!
//! Consuming and publishing have a connection each: a broker that runs out of memory or disk stops reading from
//! connections that publish, and with them acknowledgements would stop. Each is built when it is first needed, by one
//! task at a time, and again when it is lost. lapin's own recovery is not used: a subscription whose channel is gone
//! ends, because its delivery tags are void, and its owner must know.

mod comebacks;
mod consume;
mod declare;
mod errors;
#[cfg(test)]
mod fuzz;
mod group;
mod link;
mod prefetch;
mod publish;
mod returns;
mod rights;
mod sieve;
mod tap;
mod values;

use std::sync::Arc;

use async_trait::async_trait;

use self::comebacks::Comebacks;
use self::link::{Address, Link, connect};
use self::publish::{AmqpPublisher, Publishing};
use super::{Broker, BrokerError, Declare, Features, Lack, Need, Publisher, QueueSpec, Settings, Subscription};

/// Connections on which it is tried to find out what a user may do.
const CHECKS: u32 = 3;

/// A broker that speaks AMQP 0-9-1. Nothing is connected before it is used.
pub struct Amqp {
    address: Arc<Address>,
    settings: Arc<Settings>,
    consuming: Link,
    publishing: Arc<Publishing>,
    comebacks: Arc<Comebacks>,
}

impl Amqp {
    /// A broker at an `amqp://` or `amqps://` URL with its credentials inside; they are never shown. Parameters of the
    /// URL: `heartbeat` (seconds), `frame_max`, `channel_max`, `auth_mechanism`. Fails if the URL is not one.
    pub fn new(url: &str, settings: Settings) -> Result<Self, BrokerError> {
        let address = Arc::new(Address::parse(url, &settings)?);
        let settings = Arc::new(settings);
        let link = |role| Link::new(address.clone(), settings.clone(), role);
        Ok(Self {
            consuming: link("consuming"),
            publishing: Arc::new(Publishing::new(link("publishing"), settings.publish_timeout)),
            comebacks: Arc::default(),
            address,
            settings,
        })
    }
}

#[async_trait]
impl Broker for Amqp {
    fn features(&self) -> Features {
        Features {
            refuses_unknown_exchange: true,
            queue_arguments: true,
            shared: true,
            creates_bound_exchanges: false,
            competing_consumers: true,
            expires_messages: true,
            server_closes: true,
        }
    }

    async fn describe(&self) -> Result<String, BrokerError> {
        let (product, version) = self.consuming.get().await?.product();
        Ok(format!("{product} {version}").trim_end().to_owned())
    }

    async fn declare(&self, spec: &QueueSpec) -> Result<(), BrokerError> {
        match spec.declare {
            Declare::None => Ok(()),
            Declare::Passive => {
                let live = self.consuming.get().await?;
                declare::declare(&live, &self.address, spec).await
            }
            Declare::Create => {
                // Some arguments make a broker close the whole connection: not the one that others consume on.
                let live = connect(&self.address, &self.settings, "declaring").await?;
                let result = declare::declare(&live, &self.address, spec).await;
                live.close().await;
                result
            }
        }
    }

    async fn subscribe(&self, spec: &QueueSpec) -> Result<Subscription, BrokerError> {
        self.declare(spec).await?;
        let live = self.consuming.get().await?;
        let (address, comebacks) = (self.address.clone(), self.comebacks.clone());
        consume::subscribe(live, address, spec, comebacks, self.settings.quiet).await
    }

    async fn lacks(&self, needs: &[Need]) -> Result<Vec<Lack>, BrokerError> {
        let mut connections = 0;
        loop {
            let live = connect(&self.address, &self.settings, "checking").await?;
            connections += 1;
            let lacks = rights::lacks(&live, &self.address, needs).await;
            live.close().await;
            // What the broker thinks of a request can cost the connection: then it is asked again on another.
            if lacks.is_ok() || connections == CHECKS {
                return lacks;
            }
        }
    }

    fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(AmqpPublisher(self.publishing.clone()))
    }

    async fn close(&self) {
        futures::join!(self.consuming.close(), self.publishing.close());
    }
}
