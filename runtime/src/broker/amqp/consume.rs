//! A subscription: one channel, one task that brings deliveries in, one that takes acknowledgements out.
//!
//! The two share the [`Window`] of unsettled deliveries. Delivery tags belong to the channel, so the prefetch count can
//! change (by cancelling the consumer and consuming again on the same channel, see [`prefetch`](super::prefetch)) while
//! tags stay valid.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::comebacks::Comebacks;
use super::declare::{Asked, Problem};
use super::errors::Failure;
use super::link::{Address, Live};
use super::prefetch::{Advice, Prefetch};
use super::values::{properties_from_amqp, short};
use crate::broker::window::{Ack, Window};
use crate::broker::{BrokerError, Delivery, QueueSpec, Settler, Subscription};
use crate::message::{HeaderValue, Message};
use crate::sabotage::{self, Step};

/// How long acknowledgements wait behind an earlier delivery that is still open, for it to be settled and one frame to
/// cover them all: told one by one they cost the broker twice the CPU (`make bench`). Lanes that work in parallel leave
/// such gaps all the time, and close them within a batch or two. Nobody waits for an acknowledgement but the broker,
/// and that only once half of its window is held back: then they go out at once.
const GAP_PATIENCE: Duration = Duration::from_millis(50);

/// How long acknowledgements wait for the window to fill when the prefetch count should grow. If it does not fill in
/// this time, a larger one is not needed.
const GROWTH_PATIENCE: Duration = Duration::from_millis(10);

/// How long each step of an orderly end may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A body whose allocation is this much larger than itself is moved.
const WASTE: usize = 64 << 10;

/// Subscribes to a queue that exists.
pub(super) async fn subscribe(
    live: Arc<Live>,
    address: Arc<Address>,
    spec: &QueueSpec,
    comebacks: Arc<Comebacks>,
    quiet: Duration,
) -> Result<Subscription, BrokerError> {
    let explain = |problem: Problem| problem.explain(&address, spec, Asked::Consumed);
    let queue = short("the queue's name", &spec.queue).map_err(|reason| explain(Problem::Unspeakable(reason)))?;
    // Consuming again hands a queue with a single active consumer to the next one in line. Whether it has one cannot be
    // asked of the broker, so whoever relies on order says so.
    let single_active = spec.arguments.get("x-single-active-consumer") == Some(&HeaderValue::Boolean(true));
    let prefetch = if spec.ordered || single_active { Prefetch::fixed } else { Prefetch::adaptive };
    let prefetch = prefetch(spec.prefetch_messages, spec.prefetch_bytes);
    let channel = live.channel().await.map_err(|failure| explain(failure.into()))?;
    let tags = Tags::new(&spec.consumer);
    let consumer = start(&live, &channel, queue.clone(), tags.tag(0), prefetch.count());
    let consumer = consumer.await.map_err(|failure| explain(failure.into()))?;

    let (out, deliveries) = mpsc::channel(usize::from(spec.prefetch_messages) + 1);
    #[expect(
        clippy::disallowed_methods,
        reason = "bounded by the prefetch: only tags of unsettled deliveries go through"
    )]
    let (commands, received) = mpsc::unbounded_channel();
    let flow = Flow { window: Window::new(), count: prefetch.count(), growing: false, switching: false };
    let shared = Arc::new(Shared { flow: Mutex::new(flow), settled: Notify::new(), switched: Notify::new() });
    let (stop, void, pump_ended) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let pump = Pump {
        live,
        channel: channel.clone(),
        address,
        comebacks,
        queue,
        tags,
        consumer,
        prefetch,
        max_messages: usize::from(spec.prefetch_messages.max(1)),
        first: 1,
        shared: shared.clone(),
        out,
        stop: stop.clone(),
        void: void.clone(),
        quiet,
        _ended: pump_ended.clone().drop_guard(),
    };
    tokio::spawn(pump.run());
    let acknowledger = Acknowledger {
        channel,
        shared,
        commands: received,
        stop,
        void,
        pump_ended,
        patient_until: None,
        gap_until: None,
        lost: false,
    };
    tokio::spawn(acknowledger.run());
    Ok(Subscription { deliveries, settler: Box::new(AmqpSettler { commands }) })
}

/// Consumes with a prefetch count.
async fn start(
    live: &Live,
    channel: &Channel,
    queue: ShortString,
    tag: ShortString,
    count: u16,
) -> Result<Consumer, Failure> {
    live.request("basic.qos", channel.basic_qos(count, BasicQosOptions::default())).await?;
    let options = BasicConsumeOptions::default();
    live.request("basic.consume", channel.basic_consume(queue, tag, options, FieldTable::default())).await
}

/// Consumer tags: what the broker's tools show for us, and unique on the connection.
struct Tags {
    prefix: String,
    last: u32,
}

impl Tags {
    fn new(consumer: &str) -> Self {
        let end = consumer.char_indices().map(|(at, character)| at + character.len_utf8());
        let end = end.take_while(|end| *end <= 180).last().unwrap_or(0);
        Self { prefix: format!("hapax.{}.{}", &consumer[..end], uuid::Uuid::new_v4().simple()), last: 0 }
    }

    fn tag(&self, number: u32) -> ShortString {
        // 6 + 180 + 1 + 32 + 1 + 10 bytes at most
        ShortString::try_new(format!("{}.{number}", self.prefix)).unwrap_or_default()
    }

    fn next(&mut self) -> ShortString {
        self.last = self.last.wrapping_add(1);
        self.tag(self.last)
    }
}

/// Brings deliveries from lapin's stream to the subscriber, and minds the prefetch count.
struct Pump {
    live: Arc<Live>,
    channel: Channel,
    address: Arc<Address>,
    comebacks: Arc<Comebacks>,
    queue: ShortString,
    tags: Tags,
    consumer: Consumer,
    prefetch: Prefetch,
    max_messages: usize,
    /// The first tag of the present consumer.
    first: u64,
    shared: Arc<Shared>,
    out: mpsc::Sender<Result<Delivery, BrokerError>>,
    stop: CancellationToken,
    /// To be cancelled when the tags are void.
    void: CancellationToken,
    /// How long nothing must have come, with nothing in hand, until the subscriber is to subscribe anew.
    quiet: Duration,
    _ended: DropGuard,
}

/// Why the pump ended.
enum End {
    /// The subscriber wants no more.
    Wanted,
    /// Nothing comes.
    Quiet,
    /// The broker or the connection ended it.
    Suffered(BrokerError),
}

impl Pump {
    async fn run(mut self) {
        match self.pump().await {
            // What was delivered may still be acknowledged: the channel stays until the settler closes it.
            End::Wanted => {
                let options = BasicCancelOptions::default();
                let cancel = self.channel.basic_cancel(self.consumer.tag(), options);
                let _ = timeout(CLOSE_TIMEOUT, cancel).await;
                self.shared.nothing_is_replaced();
            }
            // The channel stays until the settler closes it, and gives back what comes after this.
            End::Quiet => {
                let quiet = BrokerError::Quiet { queue: self.queue.to_string(), lasting: self.quiet };
                let _ = self.out.try_send(Err(quiet));
            }
            End::Suffered(error) => {
                debug!(queue = %self.queue, %error, "subscription ended");
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    _ = self.out.send(Err(error)) => {}
                }
                self.void.cancel();
            }
        }
    }

    async fn pump(&mut self) -> End {
        loop {
            if self.stop.is_cancelled() || self.out.is_closed() {
                return End::Wanted;
            }
            // Under load there is always one, and waiting for three things costs more than looking at one.
            let next = match self.consumer.next().now_or_never() {
                Some(next) => next,
                None => tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return End::Wanted,
                    () = self.out.closed() => return End::Wanted,
                    next = self.consumer.next() => next,
                    () = tokio::time::sleep(self.quiet) => {
                        if self.shared.lock().window.is_empty() {
                            return End::Quiet;
                        }
                        continue;
                    }
                },
            };
            let next = next.map(|next| next.map_err(|error| Failure::of(&error)));
            let step = match next {
                Some(Ok(delivery)) => self.deliver(delivery).await,
                Some(Err(failure)) => Err(self.suffered(&failure)),
                None => Err(End::Suffered(BrokerError::Ended {
                    queue: self.queue.to_string(),
                    reason: "the broker cancelled the consumer: the queue was deleted, or its node went away".into(),
                })),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Hands a delivery over, and changes the prefetch count if its size asks for it.
    async fn deliver(&mut self, delivery: lapin::message::Delivery) -> Result<(), End> {
        let size = delivery.data.len();
        self.hand_over(delivery).await?;
        let advice = self.prefetch.saw(size);
        self.shared.lock().growing = matches!(advice, Advice::GrowSoon | Advice::Grow(_));
        match advice {
            Advice::Grow(count) if self.nothing_is_on_the_way() => self.consume_again(count).await,
            Advice::Shrink(count) => self.consume_again(count).await,
            Advice::Stay | Advice::GrowSoon | Advice::Grow(_) => Ok(()),
        }
    }

    /// True if the broker has sent all that it may, and so sends nothing before it is told of something. From then on
    /// it is told nothing, until the consumer was replaced.
    fn nothing_is_on_the_way(&self) -> bool {
        let mut flow = self.shared.lock();
        flow.switching = flow.window.untold_from(self.first) >= usize::from(self.prefetch.count());
        flow.switching
    }

    async fn hand_over(&mut self, delivery: lapin::message::Delivery) -> Result<(), End> {
        if self.shared.lock().window.open() >= self.max_messages {
            tokio::select! {
                () = self.stop.cancelled() => return Err(End::Wanted),
                () = self.out.closed() => return Err(End::Wanted),
                () = self.shared.has_room(self.max_messages) => {}
            }
        }
        let tag = self.shared.lock().window.delivered(0, delivery.data.len() as u64);
        if tag != delivery.delivery_tag {
            let reason = format!("delivery tag {} came where {tag} was due", delivery.delivery_tag);
            return Err(End::Suffered(BrokerError::Ended { queue: self.queue.to_string(), reason }));
        }
        let delivery = Delivery {
            message: Message {
                exchange: delivery.exchange.to_string(),
                routing_key: delivery.routing_key.to_string(),
                properties: properties_from_amqp(&delivery.properties),
                body: body(delivery.data),
            },
            redelivered: delivery.redelivered,
            tag,
        };
        if delivery.redelivered {
            self.comebacks.look(&delivery.message.properties, self.queue.as_str(), &self.address, &self.live);
        }
        // There is room for everything that may be open.
        self.out.try_send(Ok(delivery)).map_err(|_| End::Wanted)
    }

    /// Replaces the consumer by one with another prefetch count, in one round trip: RabbitMQ applies a count to the
    /// consumers that start after it. What was on its way to the old one comes first.
    async fn consume_again(&mut self, count: u16) -> Result<(), End> {
        debug!(queue = %self.queue, count, "prefetch count changes");
        let (old, new) = (self.consumer.tag(), self.tags.next());
        let options = BasicConsumeOptions::default();
        let cancel = self.channel.basic_cancel(old, BasicCancelOptions::default());
        let qos = self.channel.basic_qos(count, BasicQosOptions::default());
        let consume = self.channel.basic_consume(self.queue.clone(), new, options, FieldTable::default());
        let all = async { tokio::try_join!(biased; cancel, qos, consume) };
        let result = self.live.request("basic.consume", all).await;
        let ((), (), new) = result.map_err(|failure| self.suffered(&failure))?;
        let mut old = std::mem::replace(&mut self.consumer, new);
        while let Some(Ok(delivery)) = old.next().await {
            self.hand_over(delivery).await?;
        }
        self.prefetch.changed(count);
        {
            let mut flow = self.shared.lock();
            flow.count = count;
            self.first = flow.window.next_tag();
        }
        self.shared.nothing_is_replaced();
        Ok(())
    }

    fn suffered(&self, failure: &Failure) -> End {
        End::Suffered(match failure {
            Failure::Lost(_) => failure.unavailable(&self.address.server),
            Failure::Refused { text, .. } => BrokerError::Ended { queue: self.queue.to_string(), reason: text.clone() },
        })
    }
}

/// The body, without the room that grew while it was received.
fn body(mut data: Vec<u8>) -> Bytes {
    if data.capacity() - data.len() > WASTE {
        data.shrink_to_fit();
    }
    data.into()
}

/// What the two tasks share.
struct Shared {
    flow: Mutex<Flow>,
    /// Something was settled.
    settled: Notify,
    /// The consumer was replaced.
    switched: Notify,
}

struct Flow {
    window: Window,
    /// The prefetch count.
    count: u16,
    /// The prefetch count should grow: acknowledgements wait a little, so that the window can fill.
    growing: bool,
    /// The consumer is being replaced: acknowledgements wait.
    switching: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No consumer is being replaced: acknowledgements wait for nothing.
    fn nothing_is_replaced(&self) {
        let mut flow = self.lock();
        (flow.growing, flow.switching) = (false, false);
        drop(flow);
        self.switched.notify_one();
    }

    /// Waits until fewer than `max` deliveries are open. The broker counts for each consumer by itself, so for a while
    /// after the count has changed it sends more.
    async fn has_room(&self, max: usize) {
        while self.lock().window.open() >= max {
            self.settled.notified().await;
        }
    }
}

enum Command {
    Acknowledge(Vec<u64>),
    Close(oneshot::Sender<()>),
}

/// The subscriber's end of the acknowledger. Its queue has no limit of its own: it holds at most the tags of unsettled
/// deliveries, and those are bounded by the prefetch count.
struct AmqpSettler {
    commands: mpsc::UnboundedSender<Command>,
}

#[async_trait]
impl Settler for AmqpSettler {
    fn acknowledge(&self, tags: Vec<u64>) {
        // The acknowledger is gone when its channel is: then the tags are void.
        let _ = self.commands.send(Command::Acknowledge(tags));
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).is_ok() {
            let _ = closed.await;
        }
    }
}

/// The one task that acknowledges on a channel, and so the only one that knows its watermark.
struct Acknowledger {
    channel: Channel,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    stop: CancellationToken,
    void: CancellationToken,
    pump_ended: CancellationToken,
    /// While the window should fill: until when.
    patient_until: Option<Instant>,
    /// While something settled waits behind an open delivery: until when.
    gap_until: Option<Instant>,
    /// The channel took no more.
    lost: bool,
}

impl Acknowledger {
    async fn run(mut self) {
        let mut closers = Vec::new();
        self.work(&mut closers).await;
        self.stop.cancel();
        let _ = timeout(2 * CLOSE_TIMEOUT, self.pump_ended.cancelled()).await;
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            self.take(command, &mut closers);
        }
        self.shared.lock().switching = false;
        self.tell(Window::take_prefix);
        self.tell(Window::take_past_gap);
        if self.channel.status().connected() {
            let _ = timeout(CLOSE_TIMEOUT, self.channel.close(200, "done".into())).await;
        }
        for closer in closers {
            let _ = closer.send(());
        }
    }

    /// Acknowledges until somebody closes the subscription or drops it, or its tags are void. That nobody takes
    /// deliveries any more is no reason to end: those taken before are still being worked on.
    async fn work(&mut self, closers: &mut Vec<oneshot::Sender<()>>) {
        let mut wait = None;
        while closers.is_empty() {
            let waiting = async {
                match wait {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.take(command, closers);
                        while let Ok(command) = self.commands.try_recv() {
                            self.take(command, closers);
                        }
                    }
                    None => return,
                },
                () = self.void.cancelled() => return,
                () = self.shared.switched.notified() => {}
                () = waiting => {}
            }
            wait = self.step();
        }
    }

    /// Tells the broker what it may be told now; returns when to look again, if nothing happens before.
    fn step(&mut self) -> Option<Instant> {
        let (growing, switching) = {
            let flow = self.shared.lock();
            (flow.growing, flow.switching)
        };
        if switching {
            return None;
        }
        if growing {
            let until = *self.patient_until.get_or_insert_with(|| Instant::now() + GROWTH_PATIENCE);
            if Instant::now() < until {
                return Some(until);
            }
        }
        self.patient_until = None;
        if self.tell(Window::take_prefix) {
            self.gap_until = None;
        }
        let (held_back, count) = {
            let flow = self.shared.lock();
            (flow.window.held_back(), usize::from(flow.count))
        };
        if held_back == 0 {
            self.gap_until = None;
            return None;
        }
        let until = *self.gap_until.get_or_insert_with(|| Instant::now() + GAP_PATIENCE);
        if Instant::now() < until && 2 * held_back < count {
            return Some(until);
        }
        self.tell(Window::take_past_gap);
        self.gap_until = None;
        None
    }

    fn take(&mut self, command: Command, closers: &mut Vec<oneshot::Sender<()>>) {
        match command {
            Command::Acknowledge(tags) => {
                let mut flow = self.shared.lock();
                tags.into_iter().for_each(|tag| flow.window.settle(tag));
                self.shared.settled.notify_one();
            }
            Command::Close(closer) => closers.push(closer),
        }
    }

    /// Tells the broker of what `take` takes from the window, unless the consumer is being replaced. True if that was
    /// anything.
    fn tell<A: IntoIterator<Item = Ack>>(&mut self, take: impl FnOnce(&mut Window) -> A) -> bool {
        let acks = {
            let mut flow = self.shared.lock();
            if flow.switching {
                return false;
            }
            take(&mut flow.window)
        };
        let mut told = false;
        for ack in acks {
            self.send(ack);
            told = true;
        }
        told
    }

    /// Queues one acknowledgement on the connection. lapin's future queues it when it is first polled, and then waits
    /// until the I/O thread has written it, which costs 40 µs and tells nothing: the broker does not answer.
    fn send(&mut self, ack: Ack) {
        if !self.lost {
            let options = BasicAckOptions { multiple: ack.multiple };
            self.lost = matches!(self.channel.basic_ack(ack.tag, options).now_or_never(), Some(Err(_)));
            sabotage::at(Step::Acknowledged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_tag_fits_whatever_the_consumer_is_called() {
        for name in ["", "orders", &"é".repeat(300)] {
            let mut tags = Tags::new(name);
            tags.last = u32::MAX - 1;
            let tag = tags.next();
            assert!(tag.as_str().starts_with("hapax.") && tag.as_str().len() <= 255);
            assert_ne!(tag, tags.next());
        }
    }
}
