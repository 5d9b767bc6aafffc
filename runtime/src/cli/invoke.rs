//! `hapax invoke`: one call of a handler, and everything that it did.

mod grants;
mod record;
mod report;
mod sandbox;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::error::{failure, usage};
use super::output::tell;
use super::{ConfigArg, USAGE, open};
use crate::broker::Outgoing;
use crate::config::{ConsumerConfig, default_module_cache};
use crate::guest::cache::ModuleCache;
use crate::guest::compile::Compiler;
use crate::guest::engine::{Engine, EngineSettings};
use crate::guest::grants::{ConsumerContext, Reuse};
use crate::guest::instance::Instance;
use crate::guest::module::Module;
use crate::guest::{Advice, Call, Death, Failure, Finished, Phase, Verdict};
use crate::host::{consumer_context, database_url};
use crate::identity;
use crate::ledger::Ledger;
use crate::ledger::database::{self, Connection, Database};
use crate::ledger::inbox::{Claim, Claimed, InboxRow, Status};
use crate::ledger::outbox::{OutboxId, OutboxRow};
use crate::message::{BodyDigest, HeaderValue, Message, MessageId, Properties};
use record::Recording;
use report::Outcome;
use sandbox::Sandbox;

pub(super) const HELP: &str = "\
Examples:
  hapax invoke handler.wasm --message order.json --schema schema/sqlite.sql --schema seed.sql
  echo 42 | hapax invoke handler.wasm --message - --schema schema.sql --grant config:exchange=shop
  hapax invoke new.wasm --message order.json -c hapax.toml --consumer reduce-stock
  hapax invoke handler.wasm --message order.json --schema schema.sql --compensate --reason exhausted

Without --consumer the handler works on a SQLite database of its own, made from the --schema files and thrown away, and \
may do everything to the tables that they make, and publish anywhere. With --consumer it works on that consumer's \
database with that consumer's grants, and holds its row locks until it ends; what it did is rolled back unless \
--commit is given. With --commit the message id is claimed in the same transaction, as `hapax run` would: an id that is there already is not \
handled again, and outbox messages are stored for the next host to publish.

Grants (--grant, repeatable):
  stock=select,update      a table and its rights; replaces the rights on the tables of the schema
  publish:shop=stock.*     an exchange (empty: the default one) and a pattern of routing keys;
                           without any of these it may publish anywhere: nothing is sent
  function:similarity      a SQL function
  config:exchange=shop     a value for the handler's `config`

Exit codes: 0 the handler returned ok, 1 it failed (or could not be run), 2 wrong usage, or the config has errors.";

/// Run a handler once, show what it did, and roll it back
///
/// Prints the result, every SQL statement that was sent (with its parameters, rows and time), the outbox messages, and
/// time and memory. Nothing remains of it unless --commit is given.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The handler, a component
    module: PathBuf,
    /// The message's body; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    message: PathBuf,
    #[command(flatten)]
    config: ConfigArg,
    /// Work on this consumer's database, with its grants and limits
    #[arg(long, value_name = "NAME", conflicts_with_all = ["schema", "grant"])]
    consumer: Option<String>,
    /// SQL that makes the tables, for SQLite; repeatable, in order
    #[arg(long, value_name = "FILE")]
    schema: Vec<PathBuf>,
    /// What the handler may do; see below
    #[arg(long, value_name = "GRANT")]
    grant: Vec<grants::Grant>,
    /// The message id; by default the consumer's rules find it, or a new one is made
    #[arg(long)]
    id: Option<String>,
    /// An application header; repeatable
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = super::publish::header)]
    headers: Vec<(String, HeaderValue)>,
    /// MIME type of the body; by default application/json for files that end in .json
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The exchange it was published to
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    exchange: String,
    /// The routing key it was published with; the queue's name otherwise
    #[arg(long, value_name = "KEY")]
    routing_key: Option<String>,
    /// Which attempt the handler is told that this is
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    attempt: u32,
    /// Keep what it did, and record the message id as handled
    #[arg(long, requires = "consumer", conflicts_with = "compensate")]
    commit: bool,
    /// Call the compensation instead
    #[arg(long)]
    compensate: bool,
    /// Why the message died, for --compensate
    #[arg(long, default_value = "permanent", requires = "compensate")]
    reason: String,
    /// The code of its last failure, for --compensate
    #[arg(long, requires = "compensate")]
    code: Option<String>,
}

/// Where the handler runs.
struct Ground {
    database: Arc<dyn Database>,
    context: Arc<ConsumerContext>,
    cache: PathBuf,
    max_attempts: u32,
    /// Kept until the end: it owns the file.
    _sandbox: Option<Sandbox>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match &args.consumer {
        None => None,
        Some(_) => match super::load(&args.config.config) {
            Some(config) => Some(config),
            None => return Ok(ExitCode::from(USAGE)),
        },
    };
    let consumer = match (&config, &args.consumer) {
        (Some(config), Some(name)) => Some(open::consumer(config, name)?),
        _ => None,
    };
    let ground = match (&config, consumer) {
        (Some(config), Some(consumer)) => at_consumer(consumer, &config.module_cache.dir)?,
        _ => in_sandbox(&args).await?,
    };
    let message = Arc::new(message(&args, &ground.context.queue)?);
    let call = Call {
        phase: phase(&args),
        id: message_id(&args, consumer, &message)?,
        message,
        attempt: args.attempt,
        max_attempts: ground.max_attempts.max(args.attempt),
        generation: 0,
        compensations: 0,
        time_limit: ground.context.limits.time,
    };
    let loading = Instant::now();
    let module = load(&args.module, &ground).await?;
    if args.compensate && !module.has_compensation {
        let hint = "it is optional: without one, a message that will never be handled becomes a dead letter at once";
        return Err(failure(format!("{} exports no compensation", args.module.display()), hint).into());
    }
    let loaded = loading.elapsed();
    let outcome =
        if args.commit { commit(&ground, &module, &call).await? } else { roll_back(&ground, &module, &call).await? };
    report::print(&args.module, &call, &outcome, loaded)?;
    Ok(if outcome.finished.verdict == Verdict::Ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The consumer's own database, grants and limits.
fn at_consumer(consumer: &ConsumerConfig, cache: &Path) -> anyhow::Result<Ground> {
    Ok(Ground {
        // As a lane of `hapax run` has it: a statement that is too slow there is too slow here.
        database: database::open(&database_url(&consumer.database), consumer.session_settings())
            .with_context(|| format!("cannot use the database {}", consumer.database))?,
        context: kept(consumer_context(consumer)),
        cache: cache.to_owned(),
        max_attempts: consumer.retry.max_attempts,
        _sandbox: None,
    })
}

/// A SQLite database of this call's own.
async fn in_sandbox(args: &Args) -> anyhow::Result<Ground> {
    let sandbox = Sandbox::open(&args.schema).await?;
    let context = kept(grants::context(&args.grant, &sandbox.tables));
    let max_attempts = crate::retry::RetryPolicy::default().max_attempts;
    let database = Arc::clone(&sandbox.database);
    let cache = default_module_cache(&std::env::temp_dir(), &|name| std::env::var(name).ok());
    Ok(Ground { database, context, cache, max_attempts, _sandbox: Some(sandbox) })
}

/// The instance is kept after the call, so that its memory can be looked at.
fn kept(context: ConsumerContext) -> Arc<ConsumerContext> {
    Arc::new(ConsumerContext { reuse: Some(Reuse { calls: u32::MAX, growth: u64::MAX }), ..context })
}

async fn load(path: &Path, ground: &Ground) -> anyhow::Result<Arc<Module>> {
    let memory_per_instance = ground.context.limits.memory;
    let engine = Engine::new(EngineSettings { max_instances: 2, memory_per_instance })?;
    let compiler = Compiler::current_exe().context("cannot find this program's own file to compile modules with")?;
    let cache = ModuleCache::open(&ground.cache, compiler)?;
    Ok(Module::load(&engine, &cache, path, memory_per_instance).await?)
}

fn message(args: &Args, queue: &str) -> anyhow::Result<Message> {
    let body = read(&args.message)?;
    let is_json = args.message.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let content_type = args.content_type.clone().or_else(|| is_json.then(|| "application/json".to_owned()));
    Ok(Message {
        exchange: args.exchange.clone(),
        routing_key: args.routing_key.clone().unwrap_or_else(|| queue.to_owned()),
        properties: Properties {
            content_type,
            headers: args.headers.clone(),
            message_id: args.id.clone(),
            ..Properties::default()
        },
        body: body.into(),
    })
}

/// A file, or standard input for `-`.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).context("cannot read standard input")?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `--id`, or what the consumer's rules find, or a new one.
fn message_id(args: &Args, consumer: Option<&ConsumerConfig>, message: &Message) -> anyhow::Result<MessageId> {
    if let Some(id) = &args.id {
        let id = MessageId::new(id.as_str());
        return id
            .map_err(|bad| usage("--id cannot be a message id", "1 to 255 bytes without NUL").because(bad).into());
    }
    if let Some(consumer) = consumer {
        match identity::extract(&consumer.message_id, message) {
            Ok(id) => return Ok(id),
            Err(none) if args.commit => {
                let hint = "--id ID, or --header where a rule of the consumer looks for it";
                return Err(usage("the message has no id to be recorded under", hint).because(none).into());
            }
            Err(none) => tell!("note: {none}; `hapax run` would make it a dead letter. A new id is used here"),
        }
    }
    Ok(MessageId::new(uuid::Uuid::now_v7().to_string())?)
}

fn phase(args: &Args) -> Phase {
    if !args.compensate {
        return Phase::Handle;
    }
    let failure = args.code.clone().map(|code| Failure {
        advice: Advice::Never,
        code: Some(code),
        message: "(invoked by hand)".to_owned(),
        detail: None,
    });
    Phase::Compensate(Death { reason: args.reason.clone(), attempts: args.attempt, failure })
}

/// An attempt whose transaction is rolled back.
async fn roll_back(ground: &Ground, module: &Arc<Module>, call: &Call) -> anyhow::Result<Outcome> {
    let mut connection = ground.database.connect().await?;
    connection.begin().await?;
    let (mut finished, statements) = attempt(ground, module, call, connection).await;
    if let Some(mut connection) = finished.connection.take() {
        connection.rollback().await.context("cannot roll back")?;
    }
    Ok(Outcome { finished, statements, committed: false })
}

/// An attempt as `hapax run` makes one: the claim, the handler's effects and its outbox messages commit together.
async fn commit(ground: &Ground, module: &Arc<Module>, call: &Call) -> anyhow::Result<Outcome> {
    let ledger = Ledger::open(Arc::clone(&ground.database)).await?;
    let consumer = &ground.context.consumer;
    let mut connection = ground.database.connect().await?;
    connection.begin().await?;
    let claim = Claim {
        id: call.id.clone(),
        status: Status::Completed,
        parked_id: None,
        digest: Some(BodyDigest::of(&call.message.body)),
        module: Some(module.inbox_digest()),
    };
    let claimed = ledger.claim(connection.as_mut(), consumer, &[claim]).await;
    let claimed = claimed.context("cannot claim the message id (are the tables there? `hapax migrate`)")?;
    if let Some(Claimed::Existing(row)) = claimed.first() {
        let known = already(row, BodyDigest::of(&call.message.body));
        let hint = format!(
            "`hapax explain {consumer} {}` says more; nothing was run. Another --id is another message",
            call.id
        );
        return Err(failure(format!("consumer {consumer} knows message {} already: {known}", call.id), hint).into());
    }
    let (mut finished, statements) = attempt(ground, module, call, connection).await;
    let Some(mut connection) = finished.connection.take() else {
        return Ok(Outcome { finished, statements, committed: false });
    };
    if finished.verdict != Verdict::Ok {
        connection.rollback().await.context("cannot roll back")?;
        return Ok(Outcome { finished, statements, committed: false });
    }
    let row = |outgoing: &Outgoing| {
        let message_id = outgoing.properties.message_id.as_deref().unwrap_or_default();
        let id = OutboxId::of_message(consumer, message_id);
        OutboxRow { id, message_id: Some(call.id.clone()), parked_id: None, outgoing: outgoing.clone() }
    };
    let rows: Vec<OutboxRow> = finished.outbox.iter().map(row).collect();
    ledger.add_to_outbox(connection.as_mut(), consumer, &rows, Duration::ZERO).await?;
    connection.commit().await.context("cannot commit; `hapax explain` says whether it happened all the same")?;
    Ok(Outcome { finished, statements, committed: true })
}

fn already(row: &InboxRow, digest: BodyDigest) -> &'static str {
    match (row.status, row.is_same_message(digest)) {
        (_, false) => "with another body, an id conflict",
        (Status::Completed, _) => "it is handled",
        (Status::Parked, _) => "it is parked",
        (Status::Dead, _) => "it is a dead letter",
    }
}

/// One call on a connection whose transaction is open, statements recorded.
async fn attempt(
    ground: &Ground,
    module: &Arc<Module>,
    call: &Call,
    connection: Box<dyn Connection>,
) -> (Finished, Vec<record::Statement>) {
    let (recording, log) = Recording::around(connection);
    let recording: Box<dyn Connection> = Box::new(recording);
    let finished = Instance::start_and_call(module, &ground.context, call.clone(), recording).await;
    (finished, log.take())
}
