//! Guests, from a file to a verdict: every kind of good and hostile handler, on a connection that records.
//!
//! The guests are built by `make guests`. Most tests command `chaos`, whose messages say what it does.

#[path = "guest/attempts.rs"]
mod attempts;
#[path = "guest/fake.rs"]
mod fake;
#[path = "guest/modules.rs"]
mod modules;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use hapax::guest::cache::ModuleCache;
use hapax::guest::compile::Compiler;
use hapax::guest::engine::{Engine, EngineSettings};
use hapax::guest::grants::{ConfigValues, ConsumerContext, Grants, Limits, PublishGrant, Reuse};
use hapax::guest::instance::Instance;
use hapax::guest::module::Module;
use hapax::guest::sql_guard::{TableGrants, Verb};
use hapax::guest::{Call, Finished, Phase};
use hapax::ledger::database::Dialect;
use hapax::message::{HeaderValue, Message, MessageId, Properties};
use serde_json::{Value as Json, json};
use tokio::sync::OnceCell;

use fake::Fake;

/// Every guest of `tests/guests`, with a test that cannot exist without it.
macro_rules! guests {
    ($($folder:literal => $test:path),* $(,)?) => {
        #[test]
        fn every_guest_has_a_test() {
            $( let _ = $test; )*
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests");
            let guests = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
            let guests = guests.filter(|entry| entry.path().join("Cargo.toml").exists());
            let mut names: Vec<_> = guests.map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            assert_eq!(names, [$($folder),*], "a guest without a test, or a test without its guest");
        }
    };
}

guests! {
    "chaos" => attempts::a_handled_message_has_sql_and_outbox,
    "plain" => modules::plain_is_inspected_and_has_no_compensation,
    "wrong-world" => modules::wrong_world_is_named_with_what_it_exports,
}

/// A guest built by `make guests`, by its file name without extension.
fn guest_path(name: &str) -> PathBuf {
    hapax_tests::proc::guest(name).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The engine that all tests share: each reserves much address space.
fn engine() -> &'static Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(EngineSettings::default()).unwrap());
    &ENGINE
}

/// What instances of most tests may have.
const MEMORY: u64 = 64 << 20;

/// The chaos guest, loaded once.
struct Bench {
    module: Arc<Module>,
}

async fn bench() -> &'static Bench {
    static BENCH: OnceCell<Bench> = OnceCell::const_new();
    let load = || async {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-cache");
        let cache = ModuleCache::open(dir, Compiler::InProcess).unwrap();
        Bench { module: Module::load(engine(), &cache, &guest_path("chaos"), MEMORY).await.unwrap() }
    };
    BENCH.get_or_init(load).await
}

/// Settings that a test may change.
struct Settings {
    limits: Limits,
    reuse: Option<Reuse>,
    ping_every: Duration,
}

/// A consumer that may use a few tables, publish to one exchange, and read one config value.
fn consumer(change: impl FnOnce(&mut Settings)) -> Arc<ConsumerContext> {
    let reuse = Some(Reuse { calls: 10_000, growth: 16 << 20 });
    let mut settings = Settings { limits: Limits::default(), reuse, ping_every: Duration::from_secs(60) };
    change(&mut settings);
    let all = [Verb::Select, Verb::Insert, Verb::Update, Verb::Delete];
    let tables = fake::TABLES.iter().chain(&["stock", "t"]).map(|table| ((*table).to_owned(), all.into()));
    let grants = Grants {
        tables: TableGrants(tables.collect()),
        functions: Vec::new(),
        publish: vec![
            PublishGrant { exchange: "shop".into(), routing_key: "stock.*".into() },
            PublishGrant { exchange: String::new(), routing_key: "flood".into() },
        ],
        config: ConfigValues(BTreeMap::from([("region".to_owned(), "eu".to_owned())])),
    };
    let Settings { limits, reuse, ping_every } = settings;
    Arc::new(ConsumerContext::new("shop", "orders", Dialect::Sqlite, grants, limits, reuse, ping_every))
}

/// The first attempt at message `m-1`, whose body tells chaos to take these steps. Any other JSON is the body itself.
fn attempt(steps: &Json) -> Call {
    let body = match steps {
        Json::Array(_) => json!({"do": steps, "compensate": steps}).to_string(),
        other => other.to_string(),
    };
    let traceparent = ("traceparent".to_owned(), HeaderValue::Text("00-1-2-01".into()));
    Call {
        phase: Phase::Handle,
        id: MessageId::new("m-1").unwrap(),
        message: Arc::new(Message {
            exchange: "shop".into(),
            routing_key: "order.created".into(),
            properties: Properties { headers: vec![traceparent], ..Properties::default() },
            body: Bytes::from(body),
        }),
        attempt: 1,
        max_attempts: 5,
        generation: 0,
        compensations: 0,
        time_limit: Duration::from_secs(20),
    }
}

/// Runs chaos once, on an instance of its own.
async fn run(consumer: &Arc<ConsumerContext>, call: Call) -> (Finished, Fake) {
    let fake = Fake::default();
    let instance = Instance::new(&bench().await.module, consumer).await.unwrap();
    (instance.call(call, fake.boxed()).await, fake)
}
