use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::super::*;
use super::{MINIMAL, clean, env, parse, render};
use crate::broker::{Binding, Declare};
use crate::identity::{IdRule, PartitionRule};
use crate::ledger::database::Dialect;
use crate::message::HeaderValue;
use crate::retry::{RetryMode, RetryPolicy};

const CLASSIC: &str = r#"
[broker]
url = "amqp://shop@localhost/%2f"          # amqps:// too; embedded:PATH
password = "${AMQP_PASSWORD}"
[lock]
url = "redis://localhost"                   # rediss:// too; local:
[database]
url = "mysql://shop@localhost/shop"         # postgres://, sqlite://PATH; a consumer may name its own
password = "file:secrets/db"
[defaults]                                  # any consumer key; inline tables merge key by key
retry = { max_attempts = 5, initial_interval = "3s", multiplier = 1.0, max_interval = "10s", jitter = 0.0, mode = "delayed" }

[consumers.reduce-stock]                    # queue, module and grants suffice
queue = "reduce_stock_queue"
module = "reduce_stock.wasm"
message_id = ["property"]                   # property | header:NAME | cloudevents | json:/pointer | body-digest, tried in order
partition_by = "body"                       # body | message-id | routing-key | header:NAME | json:/pointer
concurrency = 4                             # lanes
grants = { tables = { stock = ["select", "update"] }, publish = [{ exchange = "shop", routing_key = "stock.*" }] }
declare = "passive"                         # create | none
arguments = { x-queue-type = "quorum" }     # verbatim, for create
bindings = [{ exchange = "shop", routing_key = "order.created" }]
dead_letter = { exchange = "", routing_key = "reduce-stock.dead" }   # a copy; the truth is in SQL
"#;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn url(text: &str) -> ServerUrl {
    ServerUrl::new(url::Url::parse(text).unwrap())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_classic_example_means_exactly_this() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("secrets")).unwrap();
    std::fs::write(dir.path().join("secrets/db"), "pa ss\n").unwrap();
    let path = dir.path().join("hapax.toml");
    std::fs::write(&path, CLASSIC).unwrap();

    let text = std::fs::read_to_string(&path).unwrap();
    let (config, warnings) = Config::parse_with_env(&text, &path, &env).unwrap();
    assert_eq!(render(&warnings), "");
    let database = DatabaseConfig::MySql(url("mysql://shop:pa%20ss@localhost/shop"));
    let expected = Config {
        path: path.clone(),
        broker: BrokerConfig::Amqp(url("amqp://shop:s3cr3t%2F%40@localhost/%2f")),
        lock: LockConfig::Redis(url("redis://localhost")),
        database: database.clone(),
        consumers: vec![classic_consumer(dir.path(), database)],
        listen: None,
        log: LogConfig { format: LogFormat::Auto, level: "info".into() },
        drain: seconds(25),
        module_cache: ModuleCacheConfig { dir: "/home/shop/.cache/hapax".into() },
    };
    assert_eq!(config, expected);
}

fn classic_consumer(dir: &Path, database: DatabaseConfig) -> ConsumerConfig {
    ConsumerConfig {
        name: "reduce-stock".into(),
        queue: "reduce_stock_queue".into(),
        module: dir.join("reduce_stock.wasm"),
        message_id: vec![IdRule::Property],
        partition_by: Some(PartitionRule::Body),
        concurrency: 4,
        grants: Grants {
            tables: BTreeMap::from([("stock".into(), BTreeSet::from([Verb::Select, Verb::Update]))]),
            publish: vec![PublishGrant { exchange: "shop".into(), routing_key: "stock.*".into() }],
            ..Grants::default()
        },
        declare: Declare::Passive,
        arguments: BTreeMap::from([("x-queue-type".into(), HeaderValue::Text("quorum".into()))]),
        bindings: vec![Binding { exchange: "shop".into(), routing_key: "order.created".into() }],
        dead_letter: Some(DeadLetterCopy { exchange: String::new(), routing_key: "reduce-stock.dead".into() }),
        retry: RetryPolicy {
            max_attempts: 5,
            initial_interval: seconds(3),
            multiplier: 1.0,
            max_interval: seconds(10),
            jitter: 0.0,
            mode: RetryMode::Delayed,
        },
        prefetch: Prefetch { messages: 1024, bytes: 64 * MIB },
        batch: Batch { max_messages: 64, max_time: seconds(1), run_ahead: true },
        limits: Limits {
            memory: 64 * MIB,
            time: seconds(30),
            sql_rows: 10_000,
            sql_bytes: 16 * MIB,
            sql_rows_affected: 100_000,
            sql_text: 64 * KIB,
            sql_time: seconds(5),
            sql_lock_time: seconds(2),
            sql_statements: 1000,
            outbox_messages: 1000,
            outbox_bytes: 16 * MIB,
            output: 64 * KIB,
        },
        lock: LockPolicy {
            ttl: seconds(10),
            on_unavailable: OnUnavailable::Continue,
            wait: Duration::from_millis(200),
        },
        max_crashes: 3,
        retention: seconds(30 * 24 * 3600),
        reuse: Reuse { calls: 10_000, memory: 16 * MIB },
        parked_max: 100_000,
        outbox_max: 100_000,
        mass_failure: Some(MassFailure { threshold: 0.9, window: 100 }),
        rescue_after: seconds(5),
        database,
    }
}

#[test]
fn nothing_secret_is_in_the_debug_output_of_a_config() {
    let text = format!("{MINIMAL}grants = {{ config = {{ api_key = \"hunter2\" }} }}\n")
        .replace("[database]", "password = \"${AMQP_PASSWORD}\"\n[database]")
        .replace("mysql://", "mysql://u:${LANES}hunter2@");
    let config = clean(&text);
    let shown = format!("{config:?} {} {} {}", config.broker, config.lock, config.database);
    assert!(!shown.contains("hunter2") && !shown.contains("s3cr3t"), "{shown}");
    assert_eq!(config.consumers[0].grants.config["api_key"].expose(), "hunter2");
    assert_eq!(config.database.to_string(), "mysql://localhost/shop");
}

/// Whatever a secret is made of, it reaches the clients' own parsers as it was written.
#[test]
fn a_password_reaches_its_client_unchanged() {
    use redis::IntoConnectionInfo as _;
    use sqlx::ConnectOptions as _;
    let secret = "a%41%2f+b @/:?#[]&=ä$\\";
    let env = |name: &str| (name == "SECRET").then(|| secret.to_owned());
    let parse = |lock: &str, database: &str| {
        let password = "password = \"${SECRET}\"\n";
        let text = format!("[lock]\nurl = \"{lock}\"\n{password}{MINIMAL}")
            .replace("[database]", &format!("{password}[database]"))
            .replace("url = \"mysql://localhost/shop\"", &format!("url = \"{database}\"\n{password}"));
        let (config, warnings) =
            Config::parse_with_env(&text, "hapax.toml", &env).map_err(|found| render(&found)).unwrap();
        assert_eq!(render(&warnings), "");
        config
    };
    let decoded = |url: &url::Url| {
        let password = url.password().unwrap();
        percent_encoding::percent_decode_str(password).decode_utf8().unwrap().into_owned()
    };
    for lock in ["redis://localhost", "rediss://shop@localhost/1", "redis+unix:///run/redis.sock?db=1"] {
        let LockConfig::Redis(url) = parse(lock, "mysql://shop@localhost/shop").lock else { panic!("{lock}") };
        let client = url.expose().into_connection_info().unwrap();
        assert_eq!(client.redis_settings().password(), Some(secret), "{lock}");
    }
    let config = parse("redis://localhost", "mysql://shop@localhost/shop");
    let (BrokerConfig::Amqp(broker), DatabaseConfig::MySql(database)) = (config.broker, config.database) else {
        panic!("not servers")
    };
    let client: lapin::uri::AMQPUri = broker.expose().parse().unwrap();
    assert_eq!(client.authority.userinfo.password, secret);
    let client: sqlx::mysql::MySqlConnectOptions = database.expose().parse().unwrap();
    assert_eq!(decoded(&client.to_url_lossy()), secret);
    let DatabaseConfig::Postgres(database) = parse("redis://localhost", "postgres://shop@localhost/shop").database
    else {
        panic!("not Postgres")
    };
    let client: sqlx::postgres::PgConnectOptions = database.expose().parse().unwrap();
    assert_eq!(decoded(&client.to_url_lossy()), secret);
}

#[test]
fn servers_may_be_behind_sockets() {
    let config = clean(&format!("{MINIMAL}[lock]\nurl = \"redis+unix:///run/redis.sock?db=2\"\n"));
    assert_eq!(config.lock, LockConfig::Redis(url("redis+unix:///run/redis.sock?db=2")));
    assert_eq!(config.lock.to_string(), "redis+unix:///run/redis.sock");
    let socket = |text: &str| clean(&MINIMAL.replace("mysql://localhost/shop", text)).database;
    let DatabaseConfig::MySql(mysql) = socket("mysql://shop@localhost/shop?socket=/run/mysqld/mysqld.sock") else {
        panic!("not MySQL")
    };
    let client: sqlx::mysql::MySqlConnectOptions = mysql.expose().parse().unwrap();
    assert_eq!(client.get_socket().map(PathBuf::as_path), Some(Path::new("/run/mysqld/mysqld.sock")));
    let DatabaseConfig::Postgres(postgres) = socket("postgres://shop@localhost/shop?host=/run/postgresql") else {
        panic!("not Postgres")
    };
    let client: sqlx::postgres::PgConnectOptions = postgres.expose().parse().unwrap();
    assert_eq!(client.get_socket().map(PathBuf::as_path), Some(Path::new("/run/postgresql")));
}

#[test]
fn servers_may_be_files_or_nothing() {
    let text = MINIMAL.replace("amqp://localhost/%2f", "embedded:data/broker.db");
    let config = clean(&text.replace("mysql://localhost/shop", "sqlite:///var/lib/ledger.db"));
    assert_eq!(config.broker, BrokerConfig::Embedded("conf/data/broker.db".into()));
    assert_eq!(config.database, DatabaseConfig::Sqlite("/var/lib/ledger.db".into()));
    assert_eq!(config.lock, LockConfig::Local);
    let local = clean(&format!("{MINIMAL}[lock]\nurl = \"local:\"\n"));
    assert_eq!(local.lock, LockConfig::Local);
    let relative = clean(&text.replace("mysql://localhost/shop", "sqlite://ledger.db"));
    assert_eq!(relative.database, DatabaseConfig::Sqlite("conf/ledger.db".into()));
}

#[test]
fn tables_merge_key_by_key_and_the_rest_is_replaced() {
    let text = format!(
        "{MINIMAL}retry = {{ max_attempts = 9 }}\nmessage_id = \"body-digest\"\n\
         grants.tables.stock = [\"select\"]\ndead_letter = false\n\
         [defaults]\nmessage_id = [\"property\", \"header:x\"]\ndead_letter = {{ routing_key = \"dead\" }}\n\
         [defaults.retry]\nmax_attempts = 2\njitter = 0\n[defaults.grants.tables]\naudit = [\"insert\"]\n\
         [consumers.other]\nqueue = \"other\"\nmodule = \"other.wasm\"\n"
    );
    let config = clean(&text);
    let (orders, other) = (&config.consumers[0], &config.consumers[1]);
    assert_eq!((orders.retry.max_attempts, orders.retry.jitter), (9, 0.0));
    assert_eq!((other.retry.max_attempts, other.retry.jitter), (2, 0.0));
    assert_eq!(orders.message_id, [IdRule::BodyDigest]);
    assert_eq!(orders.grants.tables.keys().collect::<Vec<_>>(), ["audit", "stock"]);
    assert_eq!(other.grants.tables.keys().collect::<Vec<_>>(), ["audit"]);
    assert_eq!(orders.dead_letter, None);
    let copy = DeadLetterCopy { exchange: String::new(), routing_key: "dead".into() };
    assert_eq!(other.dead_letter, Some(copy));
}

#[test]
fn a_consumer_may_name_a_ledger_of_its_own() {
    let with = |database: &str| clean(&format!("{MINIMAL}database = {database}\n")).consumers[0].database.clone();
    assert_eq!(with("\"postgres://localhost/own\""), DatabaseConfig::Postgres(url("postgres://localhost/own")));
    assert_eq!(
        with("{ url = \"mariadb://u@db/own\", password = \"${EMPTY:-p}\" }"),
        DatabaseConfig::MySql(url("mariadb://u:p@db/own"))
    );
    assert_eq!(clean(MINIMAL).consumers[0].database.dialect(), Dialect::MySql);
}

#[test]
fn every_switch_takes_true_and_false() {
    let with = |line: &str| clean(&format!("{MINIMAL}{line}\n")).consumers.remove(0);
    assert_eq!(with("reuse = false").reuse.calls, 1);
    assert_eq!(with("reuse = true").reuse, with("").reuse);
    assert_eq!(with("reuse = { calls = 7 }").reuse, Reuse { calls: 7, memory: 16 * MIB });
    assert_eq!(with("mass_failure = false").mass_failure, None);
    assert_eq!(with("mass_failure = true").mass_failure, with("").mass_failure);
    assert_eq!(with("mass_failure.window = 50").mass_failure, Some(MassFailure { threshold: 0.9, window: 50 }));
}

#[test]
fn limits_reach_the_guest_as_they_are_written() {
    let limits = |keys: &str| {
        let config = clean(&format!("{MINIMAL}limits = {{ {keys} }}\n")).consumers.remove(0);
        (crate::host::consumer_context(&config).limits, config.session_settings())
    };
    let (default, session) = limits("");
    assert_eq!(default, crate::guest::grants::Limits::default());
    assert_eq!(session.statement_timeout, default.sql_time);
    let (written, session) = limits(
        "memory = \"1MiB\", time = \"2m\", sql_rows = 1, sql_bytes = \"2KiB\", sql_rows_affected = 3, sql_text = \"4KiB\", \
         sql_time = \"1m\", sql_statements = 5, outbox_messages = 6, outbox_bytes = \"7KiB\", output = \"8KiB\"",
    );
    assert_eq!((written.memory, written.time), (1 << 20, Duration::from_secs(120)));
    assert_eq!((written.sql_rows, written.sql_bytes, written.sql_rows_affected), (1, 2 << 10, 3));
    assert_eq!((written.sql_text, written.sql_time), (4 << 10, Duration::from_secs(60)));
    assert_eq!(session.statement_timeout, Duration::from_secs(60), "the database keeps the limit");
    assert_eq!((written.sql_statements, written.outbox_messages), (5, 6));
    assert_eq!((written.outbox_bytes, written.output), (7 << 10, 8 << 10));
}

#[test]
fn one_call_of_the_host_carries_whatever_another_limit_allows() {
    for (keys, needed) in [
        ("", 64 << 20),
        ("memory = \"16MiB\"", 16 << 20),
        ("outbox_bytes = \"512MiB\"", 512 << 20),
        ("sql_bytes = \"1GiB\"", 1 << 30),
        ("memory = \"4GiB\"", 128 << 20),
    ] {
        let config = clean(&format!("{MINIMAL}limits = {{ {keys} }}\n")).consumers.remove(0);
        let carried = crate::host::consumer_context(&config).limits.host_call;
        assert!(carried > needed && carried < needed + (4 << 20), "{keys}: {carried}");
    }
}

#[test]
fn numbers_may_come_from_variables() {
    let text = format!(
        "{MINIMAL}partition_by = \"routing-key\"\nconcurrency = \"${{LANES}}\"\nretry.jitter = \"0.${{LANES}}\"\n"
    );
    let config = clean(&text);
    assert_eq!((config.consumers[0].concurrency, config.consumers[0].retry.jitter), (3, 0.3));
}

#[test]
fn arguments_are_taken_verbatim() {
    let text = format!(
        "{MINIMAL}arguments = {{ a = \"${{x}}\", b = 0x10, c = -1, d = 1.5, e = true, f = [1, \"x\"], g = {{ h = 2 }} }}\n"
    );
    let arguments = clean(&text).consumers.remove(0).arguments;
    let expected = [
        ("a", HeaderValue::Text("${x}".into())),
        ("b", HeaderValue::Integer(16)),
        ("c", HeaderValue::Integer(-1)),
        ("d", HeaderValue::Float(1.5)),
        ("e", HeaderValue::Boolean(true)),
        ("f", HeaderValue::Json("[1,\"x\"]".into())),
        ("g", HeaderValue::Json("{\"h\":2}".into())),
    ];
    assert_eq!(arguments, expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
}

#[test]
fn defaults_keep_to_the_limits_that_are_set() {
    let with = |line: &str| clean(&format!("{MINIMAL}{line}\n")).consumers.remove(0);
    let quick = with("limits = { time = \"300ms\" }");
    assert_eq!(quick.batch.max_time, Duration::from_millis(300));
    assert_eq!(quick.limits.sql_time, Duration::from_millis(300));
    assert_eq!(quick.limits.sql_lock_time, Duration::from_millis(150));
    assert_eq!(with("batch = { max_messages = 10 }").prefetch.messages, 40);
    assert_eq!(with("retry.max_interval = \"2s\"").retry.initial_interval, seconds(2));
    assert_eq!(with("retry.initial_interval = \"1h\"").retry.max_interval, seconds(3600));
    let wide = with("concurrency = 256\npartition_by = \"body\"\nbatch = { max_messages = 4096 }");
    assert_eq!(wide.prefetch.messages, u16::MAX);
}

#[test]
fn sqlite_has_one_lane() {
    let text = MINIMAL.replace("mysql://localhost/shop", "sqlite:ledger.db");
    let (config, warnings) = parse(&format!("{text}concurrency = 4\npartition_by = \"body\"\n")).unwrap();
    assert_eq!(config.consumers[0].concurrency, 1);
    assert_eq!(warnings.len(), 1);
}

#[test]
fn a_consumer_converts_to_what_the_seams_take() {
    let consumer = clean(&format!("{MINIMAL}declare = \"create\"\nprefetch = {{ messages = 99, bytes = \"1kB\" }}\n"))
        .consumers
        .remove(0);
    let spec = consumer.queue_spec();
    assert_eq!((spec.queue.as_str(), spec.consumer.as_str(), spec.declare), ("orders", "orders", Declare::Create));
    assert_eq!((spec.prefetch_messages, spec.prefetch_bytes, spec.ordered), (99, 1000, false));
    let blocking = clean(&format!("{MINIMAL}retry.mode = \"blocking\"\n")).consumers.remove(0);
    assert!(blocking.queue_spec().ordered);
    let session = consumer.session_settings();
    assert_eq!((session.lock_timeout, session.statement_timeout), (seconds(2), seconds(5)));
    assert_eq!(session.idle_in_transaction, seconds(10));
}

#[test]
fn the_rest_of_the_file_is_read() {
    let text = format!(
        "listen = \"[::1]:9090\"\ndrain = \"1m\"\n{MINIMAL}[log]\nformat = \"json\"\nlevel = \"warn,hapax=trace\"\n\
         [module_cache]\ndir = \"cache\"\n"
    );
    let config = clean(&text);
    assert_eq!(config.listen, Some("[::1]:9090".parse().unwrap()));
    assert_eq!(config.drain, seconds(60));
    assert_eq!(config.log, LogConfig { format: LogFormat::Json, level: "warn,hapax=trace".into() });
    assert_eq!(config.module_cache.dir, PathBuf::from("conf/cache"));
    let (homeless, _) = Config::parse_with_env(MINIMAL, "hapax.toml", &|_| None).unwrap();
    assert_eq!(homeless.module_cache.dir, PathBuf::from(".hapax-cache"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n|=|\"|\\[|\\]|\\{|\\}|\\.|[a-z]){0,120}") {
        let _ = parse(&text).map_err(|found| render(&found));
    }

    /// Cuts and damage at every place of a real file: there is always an answer.
    #[test]
    fn no_damage_makes_it_panic(at in 0..CLASSIC.len(), cut in 0..40usize, put in "\\PC{0,3}") {
        let mut damaged: String = CLASSIC.chars().take(at).collect();
        damaged.push_str(&put);
        damaged.extend(CLASSIC.chars().skip(at + cut));
        if let Err(found) = parse(&damaged) {
            prop_assert!(found.iter().any(Diagnostic::is_error));
            let lines = damaged.lines().count() + 1;
            prop_assert!(found.iter().filter_map(|d| d.place.as_ref()).all(|place| (1..=lines).contains(&place.line)));
            prop_assert!(!render(&found).is_empty());
        }
    }
}

/// What people and editors put in wrong places.
const DAMAGE: [&str; 25] = [
    "", "\"", "'", "=", "[", "]", "{", "}", "\n", "#", "a", " ", ",", "\"#", "\n=", "\n\"", "=\n", "\"\"\"", "'''",
    "[\n", "]]", "\n\n", "a=\n", "\n=\n\"", "\\",
];

/// Whatever is broken around it, a password in the file is not shown.
#[test]
fn no_damage_shows_a_password() {
    let text = "[broker]\nurl = \"amqp://u:hunter2@h/\"\npassword = \"hunter2\"\n\
                [database]\nurl = \"mysql://h\"\npasword=\"hunter2\"\n";
    // Damage inside the secret, its key or what leads to it makes another text, which nobody can know to be secret.
    let intact = |at: usize, part: &str| text.match_indices(part).all(|(s, _)| at <= s || at >= s + part.len());
    let intact = |at: &usize| ["hunter2", "password", "\npasword", "://u:h"].into_iter().all(|part| intact(*at, part));
    for at in (0..=text.len()).filter(intact) {
        for put in DAMAGE {
            let damaged = format!("{}{put}{}", &text[..at], &text[at..]);
            let shown = parse(&damaged).map_or_else(|found| render(&found), |(_, found)| render(&found));
            assert!(!shown.contains("hunter2"), "{damaged}\n---\n{shown}");
        }
    }
}
