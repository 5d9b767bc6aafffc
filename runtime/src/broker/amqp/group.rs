//! One group of a window on one channel: published together, and waited for until the broker has answered, or answers
//! nothing any more.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use lapin::message::BasicReturnMessage;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use super::errors::Failure;
use super::link::Live;
use super::publish::{Publishing, Wire, blocked};
use super::returns::{Item, Known, match_returns};
use crate::broker::Published;
use crate::sabotage::{self, Step};

/// A group that gets no further answer for this long (at most twice as long) is answered for as far as it goes. A queue
/// that confirms nothing (a quorum queue without its majority) must not hold up what goes elsewhere.
const STALL: Duration = Duration::from_secs(3);

/// How long a blocked connection may come back before the window is given up.
const BLOCK_PATIENCE: Duration = Duration::from_secs(1);

/// A negative confirm says nothing against the message: the queue is full and rejects what does not fit, or its node is
/// in trouble. It is worth another try.
const NACKED: &str = "a queue took no more: it is full, or in trouble (negative confirm)";

/// What became of a group.
pub(super) struct Sent {
    /// In the order of the group; none where the broker has not said.
    pub(super) answers: Vec<Option<Published>>,
    /// Why some are missing.
    pub(super) failure: Option<Failure>,
    /// They just did not come; others may.
    pub(super) stalled: bool,
}

impl Sent {
    pub(super) fn lost(count: usize, reason: String) -> Self {
        Self { answers: vec![None; count], failure: Some(Failure::Lost(reason)), stalled: false }
    }
}

/// Publishes a group from a task of its own, so that a caller who goes away does not leave half of it behind.
pub(super) async fn publish_group(
    publishing: &Arc<Publishing>,
    live: Arc<Live>,
    channel: Channel,
    group: Vec<Wire>,
) -> Sent {
    let count = group.len();
    let (report, sent) = oneshot::channel();
    tokio::spawn(drive(publishing.clone(), live, channel, group, report));
    sent.await.unwrap_or_else(|_| Sent::lost(count, "publishing was ended".into()))
}

/// What became of a message, once it is known.
type Answer = Option<lapin::Result<Confirmation>>;

type Confirming<'a> = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send + 'a>>;

async fn drive(
    publishing: Arc<Publishing>,
    live: Arc<Live>,
    channel: Channel,
    group: Vec<Wire>,
    report: oneshot::Sender<Sent>,
) {
    let mut confirming: Vec<Confirming<'_>> = group.iter().map(|wire| confirm(&channel, wire)).collect();
    let mut results: Vec<Answer> = Vec::with_capacity(group.len());
    for future in &mut confirming {
        // The first poll queues the message, so this is the order in which they are published.
        results.push(match futures::poll!(future.as_mut()) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        });
    }
    sabotage::at(Step::Published);
    let started = Instant::now();
    let mut stalled = false;
    let gave_up = tokio::select! {
        stall = await_answers(&mut confirming, &mut results, publishing.timeout.min(STALL)) => {
            stalled = stall.is_some();
            stall
        }
        failure = lose_patience(&live) => {
            look(&mut confirming, &mut results);
            Some(failure)
        }
    };
    let unfinished: Vec<bool> = results.iter().map(Option::is_none).collect();
    let (answers, failure) = conclude(&group, results, gave_up);
    let sent = Sent { answers, failure, stalled };
    let clean = sent.failure.is_none() && !unfinished.contains(&true);
    let _ = report.send(sent);
    let rest = confirming.iter_mut().zip(unfinished).filter(|(_, unfinished)| *unfinished);
    let answered = outlast(&live, rest.map(|(future, _)| future), started + publishing.timeout).await;
    drop(confirming);
    let superfluous = if clean { publishing.keep_idle(channel) } else { Some(channel) };
    if let Some(channel) = superfluous
        && !live.finish(channel).await
        && !answered
    {
        // It answers nothing at all.
        live.cut();
    }
}

/// Waits for answers that nobody is told any more: what is still queued goes out when the broker reads again, and the
/// channel must live until then. False if they did not come in time.
async fn outlast<'a, 'b: 'a>(live: &Live, rest: impl Iterator<Item = &'a mut Confirming<'b>>, until: Instant) -> bool {
    let answers = async {
        for future in rest {
            let _ = future.await;
        }
    };
    let over = async {
        tokio::time::sleep_until(until).await;
        // While it is blocked, the time does not count.
        let _ = live.watch_blocked().wait_for(Option::is_none).await;
    };
    tokio::select! {
        () = answers => true,
        () = over => false,
    }
}

fn confirm<'a>(channel: &'a Channel, wire: &'a Wire) -> Confirming<'a> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let (exchange, key) = (wire.exchange.clone(), wire.routing_key.clone());
    let published = channel.basic_publish(exchange, key, options, &wire.body, wire.properties.clone());
    Box::pin(async move { published.await?.await })
}

/// Waits for the answers; ends early with a failure when none came for the length of a stall.
async fn await_answers(confirming: &mut [Confirming<'_>], results: &mut [Answer], stall: Duration) -> Option<Failure> {
    loop {
        let before = results.iter().flatten().count();
        if tokio::time::timeout(stall, await_all(confirming, results)).await.is_ok() {
            return None;
        }
        // They are awaited in their order: later ones may be there.
        look(confirming, results);
        if results.iter().flatten().count() == before {
            return Some(Failure::timed_out("a published message", stall));
        }
    }
}

async fn await_all(confirming: &mut [Confirming<'_>], results: &mut [Answer]) {
    for (future, result) in confirming.iter_mut().zip(results) {
        if result.is_none() {
            *result = Some(future.as_mut().await);
        }
    }
}

/// Takes every answer that is there. A return may sit in one that nobody has waited for yet, or that came while others
/// were looked at.
fn look(confirming: &mut [Confirming<'_>], results: &mut [Answer]) {
    loop {
        let before = results.iter().flatten().count();
        for (future, result) in confirming.iter_mut().zip(results.iter_mut()) {
            if result.is_none() {
                *result = future.as_mut().now_or_never();
            }
        }
        if results.iter().flatten().count() == before {
            return;
        }
    }
}

/// Ends when it makes no sense to wait longer: the broker accepts nothing.
async fn lose_patience(live: &Live) -> Failure {
    let mut blocked_now = live.watch_blocked();
    loop {
        if blocked_now.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
        let relieved = tokio::time::timeout(BLOCK_PATIENCE, blocked_now.wait_for(Option::is_none)).await;
        if let (Err(_), Some(reason)) = (relieved, live.blocked()) {
            return Failure::Lost(blocked(&reason));
        }
    }
}

/// Turns what the channel said into answers, and why some are missing. Where anything was returned, no message counts as
/// confirmed before every return has found its message.
fn conclude(
    group: &[Wire],
    results: Vec<Answer>,
    gave_up: Option<Failure>,
) -> (Vec<Option<Published>>, Option<Failure>) {
    let mut failure = gave_up;
    let mut returns: Vec<BasicReturnMessage> = Vec::new();
    let mut answers: Vec<Option<Published>> = Vec::with_capacity(group.len());
    for result in results {
        answers.push(match result {
            None => None,
            Some(Ok(Confirmation::Ack(returned))) => {
                returns.extend(returned);
                Some(Published::Confirmed)
            }
            Some(Ok(Confirmation::Nack(returned))) => {
                returns.extend(returned);
                Some(Published::Unknown(NACKED.to_owned()))
            }
            Some(Ok(Confirmation::NotRequested)) => Some(Published::Unknown("the channel does not confirm".to_owned())),
            Some(Err(error)) => {
                let found = Failure::of(&error);
                if failure.is_none() || found.blames_the_request() {
                    failure = Some(found);
                }
                None
            }
        });
    }
    if !returns.is_empty() {
        settle_returns(group, &returns, &mut answers);
    }
    if answers.iter().all(Option::is_some) {
        failure = None;
    }
    (answers, failure)
}

fn settle_returns(group: &[Wire], returns: &[BasicReturnMessage], answers: &mut [Option<Published>]) {
    let items: Vec<Item<'_>> = group.iter().map(Wire::item).collect();
    let returned: Vec<Item<'_>> = returns.iter().map(returned_item).collect();
    let matched = match_returns(&items, &returned);
    debug!(returned = returns.len(), in_doubt = matched.in_doubt.len(), "messages came back");
    for index in matched.in_doubt {
        let reason = "one of these messages came back, and which one cannot be told";
        answers[index] = Some(Published::Unknown(reason.to_owned()));
    }
    for (index, message) in matched.returned.into_iter().zip(returns) {
        if let Some(index) = index {
            answers[index] = Some(Published::Returned(reason(message)));
        }
    }
}

fn returned_item(message: &BasicReturnMessage) -> Item<'_> {
    let message_id = message.properties.message_id().as_ref().map(ShortString::as_str);
    let (exchange, routing_key) = (message.exchange.as_str(), message.routing_key.as_str());
    Item { known: Known { exchange, routing_key, message_id }, body: &message.data }
}

fn reason(message: &BasicReturnMessage) -> String {
    format!(
        "no queue for exchange {:?} and routing key {:?} ({} {})",
        message.exchange.as_str(),
        message.routing_key.as_str(),
        message.reply_code,
        message.reply_text
    )
}
