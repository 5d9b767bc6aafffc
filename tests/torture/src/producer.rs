//! The producer: publishes orders as fast as they are handled, some of them again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hapax::broker::{Broker, Outgoing, Published, Publisher};
use hapax::message::Properties;
use tokio_util::sync::CancellationToken;

use crate::books::Reader;
use crate::order::{Fate, Order, Repeats};
use crate::stage::{EXCHANGE, ORDERED, Stage};

/// Orders published together.
const WINDOW: u64 = 100;

/// Orders published and not handled, at most.
const BACKLOG: i64 = 2000;

/// How often it looks how many were handled.
const LOOK: Duration = Duration::from_millis(500);

/// How long it rests after the broker refused something.
const PAUSE: Duration = Duration::from_millis(100);

/// What a producer needs.
pub(crate) struct Producer {
    pub(crate) broker: Arc<dyn Broker>,
    reader: Reader,
    seed: u64,
    /// Orders a second at most.
    rate: Option<u32>,
    progress: Arc<Progress>,
    given_up: CancellationToken,
}

/// How far a producer is.
#[derive(Default)]
pub(crate) struct Progress {
    /// Orders that it has published, or is about to.
    published: AtomicU64,
    /// Messages published and not handled.
    backlog: AtomicI64,
}

impl Progress {
    /// Orders that were published, or are about to be: all below this number.
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    /// True while something is to be done.
    pub(crate) fn is_busy(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) > 0
    }

    fn begins(&self, orders: u64) {
        self.published.fetch_add(orders, Ordering::SeqCst);
        self.backlog.fetch_add(orders as i64, Ordering::Relaxed);
    }
}

/// What it has published.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) orders: Vec<Order>,
    /// Those of them that have a usable id.
    pub(crate) named: usize,
    /// Those whose handlers publish something.
    pub(crate) telling: usize,
    /// Those that another message pretends to be.
    pub(crate) forged: usize,
    /// Copies besides the first of each, those included that the broker may or may not have got.
    pub(crate) copies: u64,
    /// Those that are to come again once everything is done.
    at_the_end: Vec<u64>,
}

impl Sent {
    /// What a third consumer is to be told in all.
    pub(crate) fn told(&self) -> u64 {
        (self.telling * ORDERED.len()) as u64
    }
}

impl Producer {
    /// One that publishes the orders of a seed.
    ///
    /// # Errors
    /// When the broker does not let it in.
    pub(crate) async fn new(stage: &Stage, seed: u64, rate: Option<u32>, progress: Arc<Progress>) -> Result<Self> {
        let (broker, reader) = (stage.broker().await?, stage.reader.clone());
        Ok(Self { broker, reader, seed, rate, progress, given_up: CancellationToken::new() })
    }

    /// Has it wait for confirms no more: what is not confirmed yet counts as published, and will be missing.
    pub(crate) fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Publishes until the time is over.
    pub(crate) async fn run(&self, until: Instant) -> Sent {
        let mut sent = Sent::default();
        let mut later: BTreeMap<u64, Vec<Order>> = BTreeMap::new();
        let mut looked = Instant::now();
        let pause = self.rate.map(|rate| Duration::from_secs(WINDOW) / rate);
        while Instant::now() < until {
            let began = Instant::now();
            let next = sent.orders.len() as u64;
            let mut window = Vec::new();
            for number in next..next + WINDOW {
                let order = Order::of(self.seed, number);
                window.push(order.clone());
                match order.repeats {
                    Repeats::Never => {}
                    Repeats::AtOnce => window.push(order.clone()),
                    Repeats::After(others) => later.entry(number + others).or_default().push(order.clone()),
                    Repeats::AtTheEnd => sent.at_the_end.push(number),
                    Repeats::Forged(others) => later.entry(number + others).or_default().extend(order.forged()),
                }
                sent.named += usize::from(!matches!(order.fate(), Fate::Apart { .. }));
                sent.telling += usize::from(order.tells());
                sent.forged += usize::from(order.forged().is_some());
                sent.orders.push(order);
                if let Some(due) = later.remove(&number) {
                    window.extend(due);
                }
            }
            self.progress.begins(WINDOW);
            sent.copies += window.len() as u64 - WINDOW + self.publish(&window).await;
            if looked.elapsed() >= LOOK || self.progress.backlog.load(Ordering::Relaxed) > BACKLOG {
                looked = Instant::now();
                self.wait_for_room(sent.named, until).await;
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause.saturating_sub(began.elapsed())).await;
            }
        }
        let left: Vec<Order> = later.into_values().flatten().collect();
        for part in left.chunks(WINDOW as usize) {
            sent.copies += part.len() as u64 + self.publish(part).await;
        }
        sent
    }

    /// Publishes what is to come once everything is done.
    pub(crate) async fn repeat(&self, sent: &mut Sent) {
        let again: Vec<Order> =
            std::mem::take(&mut sent.at_the_end).into_iter().map(|number| Order::of(self.seed, number)).collect();
        for part in again.chunks(WINDOW as usize) {
            sent.copies += part.len() as u64 + self.publish(part).await;
        }
    }

    /// Waits until enough was handled. A database that is away has handled nothing.
    async fn wait_for_room(&self, published: usize, until: Instant) {
        while Instant::now() < until {
            if let Ok(handled) = self.handled().await {
                let backlog = i64::try_from(published).unwrap_or(i64::MAX) - handled;
                self.progress.backlog.store(backlog, Ordering::Relaxed);
                if backlog <= BACKLOG {
                    return;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How many orders the slower consumer knows.
    async fn handled(&self) -> Result<i64> {
        let mut least = i64::MAX;
        for consumer in ORDERED {
            let table = format!("FROM hapax_inbox WHERE consumer = '{consumer}'");
            let count = tokio::time::timeout(Duration::from_secs(5), self.reader.number("COUNT(*)", &table));
            least = least.min(count.await.context("no answer")??);
        }
        Ok(least)
    }

    /// Publishes until every message is confirmed, or it is to give up; returns how many had to be sent again.
    pub(crate) async fn publish(&self, orders: &[Order]) -> u64 {
        publish(&*self.broker.publisher(), orders, &self.given_up).await
    }
}

async fn publish(publisher: &dyn Publisher, orders: &[Order], given_up: &CancellationToken) -> u64 {
    let mut window: Vec<Outgoing> = orders.iter().map(outgoing).collect();
    let mut again = 0;
    while let Some(answers) = given_up.run_until_cancelled(publisher.publish(&window)).await {
        let unconfirmed = window.into_iter().zip(answers).filter(|(_, answer)| *answer != Published::Confirmed);
        window = unconfirmed.map(|(message, _)| message).collect();
        if window.is_empty() {
            break;
        }
        again += window.len() as u64;
        tokio::time::sleep(PAUSE).await;
    }
    again
}

fn outgoing(order: &Order) -> Outgoing {
    let properties =
        Properties { message_id: Some(order.id().to_owned()), delivery_mode: Some(2), ..Properties::default() };
    Outgoing { exchange: EXCHANGE.to_owned(), routing_key: order.routing_key(), properties, body: order.body().into() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use async_trait::async_trait;

    use super::*;

    /// Refuses the first window, and then answers no more, as RabbitMQ does while a queue has no leader.
    #[derive(Default)]
    struct Mute(AtomicBool);

    #[async_trait]
    impl Publisher for Mute {
        async fn publish(&self, window: &[Outgoing]) -> Vec<Published> {
            if self.0.swap(true, Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            vec![Published::Unknown("not now".into()); window.len()]
        }
    }

    #[tokio::test]
    async fn a_broker_that_confirms_nothing_does_not_hold_a_run_for_ever() {
        let given_up = CancellationToken::new();
        let orders: Vec<Order> = (0..3).map(|number| Order::of(1, number)).collect();
        let mute = Mute::default();
        let (again, ()) = tokio::join!(publish(&mute, &orders, &given_up), async {
            tokio::time::sleep(PAUSE * 2).await;
            given_up.cancel();
        });
        assert_eq!(again, 3, "each was sent again once");
    }
}
