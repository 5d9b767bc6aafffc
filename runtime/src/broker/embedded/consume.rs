//! A subscription to a queue of the file: one task that fetches ahead, deletes what was settled, and knows how far the
//! queue was delivered.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Notify, mpsc, oneshot};

use super::store::{self, Place, Queue};
use crate::broker::window::Window;
use crate::broker::{BrokerError, Delivery, QueueSpec, Settler, Subscription};

/// How often an idle subscription looks for messages of other processes.
const POLL: Duration = Duration::from_millis(25);

/// How far ahead of the deliveries the mark is written, in ids of the file. After a crash, up to so many messages are
/// flagged as redelivered that were not; in exchange a delivery needs no commit of its own.
const MARK_AHEAD: i64 = 2000;

/// Rows of one fetch at most.
const FETCH: usize = 512;

/// Settled messages are deleted when there is nothing to fetch, and at the latest when there are this many.
const FLUSH_AT: usize = 512;

/// Subscribes to a queue that exists.
pub(super) async fn subscribe(
    place: Place,
    lock: ConsumerLock,
    queue: Queue,
    spec: &QueueSpec,
    published: Arc<Notify>,
) -> Result<Subscription, BrokerError> {
    let reader = place.connect().await?;
    let writer = place.connect().await?;
    let (out, deliveries) = mpsc::channel(usize::from(spec.prefetch_messages) + 1);
    #[expect(
        clippy::disallowed_methods,
        reason = "bounded by the prefetch: only tags of unsettled deliveries go through"
    )]
    let (commands, received) = mpsc::unbounded_channel();
    let feeder = Feeder {
        name: spec.queue.clone(),
        queue: queue.id,
        place,
        reader,
        writer,
        window: Window::new(),
        pending: 0,
        max_messages: usize::from(spec.prefetch_messages.max(1)),
        max_bytes: spec.prefetch_bytes,
        last: 0,
        flagged: queue.delivered,
        mark: queue.delivered,
        out,
        commands: received,
        published,
        _lock: lock,
    };
    tokio::spawn(feeder.run());
    Ok(Subscription { deliveries, settler: Box::new(EmbeddedSettler { commands }) })
}

/// Held by the one subscription of a queue. The kernel takes it back when the process ends, however it ends.
pub(super) struct ConsumerLock {
    _file: File,
}

impl ConsumerLock {
    pub(super) fn take(path: &Path, queue: &str) -> Result<Self, BrokerError> {
        let path = store::consumer_lock_path(path, queue);
        let unusable = |error: std::io::Error| BrokerError::Queue {
            queue: queue.to_owned(),
            reason: format!("its lock file {} cannot be used: {error}", path.display()),
            hint: "the folder must be writable, and on a file system that has locks".to_owned(),
        };
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(&mut file, &path, queue)),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        let mut note = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note().map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

fn in_use(file: &mut File, path: &Path, queue: &str) -> BrokerError {
    let mut pid = String::new();
    let _ = file.take(32).read_to_string(&mut pid);
    let holder = match pid.trim() {
        "" => "another process".to_owned(),
        pid if pid == std::process::id().to_string() => format!("this process ({pid}) already"),
        pid => format!("process {pid}"),
    };
    BrokerError::Queue {
        queue: queue.to_owned(),
        reason: format!("{holder} consumes it (lock file {})", path.display()),
        hint: "a queue of the embedded broker has one consumer: stop the other one, or use RabbitMQ to share a queue"
            .to_owned(),
    }
}

enum Command {
    Acknowledge(Vec<u64>),
    Close(oneshot::Sender<()>),
}

/// The subscriber's end. Its queue holds at most the tags of unsettled deliveries, which prefetch bounds.
struct EmbeddedSettler {
    commands: mpsc::UnboundedSender<Command>,
}

#[async_trait]
impl Settler for EmbeddedSettler {
    fn acknowledge(&self, tags: Vec<u64>) {
        let _ = self.commands.send(Command::Acknowledge(tags));
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).is_ok() {
            let _ = closed.await;
        }
    }
}

/// The one task of a subscription.
struct Feeder {
    name: String,
    queue: i64,
    place: Place,
    reader: SqliteConnection,
    writer: SqliteConnection,
    window: Window,
    /// Settled messages that are not deleted yet.
    pending: usize,
    max_messages: usize,
    max_bytes: u64,
    /// The last id that was delivered.
    last: i64,
    /// Ids up to this one may have been delivered by an earlier subscription.
    flagged: i64,
    /// What the file says of that.
    mark: i64,
    out: mpsc::Sender<Result<Delivery, BrokerError>>,
    commands: mpsc::UnboundedReceiver<Command>,
    published: Arc<Notify>,
    _lock: ConsumerLock,
}

/// What to do after a step.
enum Step {
    /// There may be more to fetch.
    Again,
    /// Nothing to do before something happens.
    Wait,
}

impl Feeder {
    async fn run(mut self) {
        let mut closers = Vec::new();
        let result = self.feed(&mut closers).await;
        if let Err(error) = result {
            let _ = self.out.try_send(Err(error));
        }
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            self.take(command, &mut closers);
        }
        // What remains was delivered if its id is not above the last one: the mark can be exact again.
        let delivered = self.last.max(self.flagged);
        let runs = self.window.take_runs();
        if let Err(error) = store::settle(&mut self.writer, self.queue, &runs, Some(delivered)).await {
            // Those that were settled come again; that is allowed.
            tracing::warn!(queue = %self.name, error = %store::words(&error), "acknowledgements were not written");
        }
        drop(self);
        for closer in closers {
            let _ = closer.send(());
        }
    }

    /// Delivers and deletes until the subscriber closes or goes away. If it only takes no more deliveries, those that it
    /// took are still being worked on: they can be acknowledged.
    async fn feed(&mut self, closers: &mut Vec<oneshot::Sender<()>>) -> Result<(), BrokerError> {
        let published = self.published.clone();
        loop {
            // Made before the fetch, so that what is published after it is noticed.
            let news = published.notified();
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.take(command, closers),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            if !closers.is_empty() {
                return Ok(());
            }
            let step = self.fetch().await?;
            if self.pending >= FLUSH_AT || (self.pending > 0 && matches!(step, Step::Wait)) {
                self.flush().await?;
            }
            if matches!(step, Step::Wait) && !self.wait(closers, news).await? {
                return Ok(());
            }
        }
    }

    /// Sleeps until there may be something to do; false if the subscriber has gone.
    async fn wait(
        &mut self,
        closers: &mut Vec<oneshot::Sender<()>>,
        news: impl Future<Output = ()>,
    ) -> Result<bool, BrokerError> {
        tokio::select! {
            biased;
            command = self.commands.recv() => match command {
                Some(command) => self.take(command, closers),
                None => return Ok(false),
            },
            () = news, if !self.out.is_closed() => {}
            () = tokio::time::sleep(POLL) => {
                if !store::exists(&mut self.reader, self.queue).await.map_err(|error| self.failed(&error))? {
                    let reason = "the queue was deleted".to_owned();
                    return Err(BrokerError::Ended { queue: self.name.clone(), reason });
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, command: Command, closers: &mut Vec<oneshot::Sender<()>>) {
        match command {
            Command::Acknowledge(tags) => {
                let before = self.window.open();
                tags.into_iter().for_each(|tag| self.window.settle(tag));
                self.pending += before - self.window.open();
            }
            Command::Close(closer) => closers.push(closer),
        }
    }

    /// Delivers what fits within the limits.
    async fn fetch(&mut self) -> Result<Step, BrokerError> {
        let room = self.max_messages.saturating_sub(self.window.open()).min(FETCH);
        if self.out.is_closed() || room == 0 || (self.window.open() > 0 && self.window.open_bytes() >= self.max_bytes) {
            return Ok(Step::Wait);
        }
        let upcoming = store::upcoming(&mut self.reader, self.queue, self.last, room).await;
        let upcoming = upcoming.map_err(|error| self.failed(&error))?;
        let Some((first, last)) = self.fitting(&upcoming) else { return Ok(Step::Wait) };
        if last > self.mark {
            self.write_mark(last + MARK_AHEAD).await?;
        }
        let messages = store::messages(&mut self.reader, self.queue, first, last).await;
        for (id, message) in messages.map_err(|error| self.failed(&error))? {
            let tag = self.window.delivered(id, message.body.len() as u64);
            self.last = id;
            let delivery = Delivery { message, redelivered: id <= self.flagged, tag };
            if self.out.try_send(Ok(delivery)).is_err() {
                // Nobody takes it: there is room for everything that prefetch allows.
                return Ok(Step::Wait);
            }
        }
        Ok(Step::Again)
    }

    /// The first and last of the upcoming messages whose bodies fit; one always fits an empty window.
    fn fitting(&self, upcoming: &[(i64, u64)]) -> Option<(i64, i64)> {
        let mut bytes = self.window.open_bytes();
        let mut range = None;
        for (id, size) in upcoming {
            bytes = bytes.saturating_add(*size);
            if bytes > self.max_bytes && (self.window.open() > 0 || range.is_some()) {
                break;
            }
            range = Some((range.map_or(*id, |(first, _)| first), *id));
        }
        range
    }

    /// Deletes what was settled, and writes the mark along if it will soon be needed.
    async fn flush(&mut self) -> Result<(), BrokerError> {
        let runs = self.window.take_runs();
        let mark = (self.mark - self.last < MARK_AHEAD / 2).then_some(self.last + MARK_AHEAD);
        let settled = store::settle(&mut self.writer, self.queue, &runs, mark).await;
        settled.map_err(|error| self.failed(&error))?;
        self.mark = mark.unwrap_or(self.mark).max(self.mark);
        self.pending = 0;
        Ok(())
    }

    async fn write_mark(&mut self, mark: i64) -> Result<(), BrokerError> {
        let written = store::settle(&mut self.writer, self.queue, &[], Some(mark)).await;
        written.map_err(|error| self.failed(&error))?;
        self.mark = mark;
        Ok(())
    }

    fn failed(&self, error: &sqlx::Error) -> BrokerError {
        self.place.unavailable(error)
    }
}
