//! Attempts: what a handler does, and what becomes of it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hapax::guest::grants::{Limits, Reuse};
use hapax::guest::instance::Instance;
use hapax::guest::{Advice, Call, Death, Failure, Finished, Phase, Verdict};
use hapax::ledger::database::DbErrorKind;
use serde_json::{Value as Json, json};
use tracing_subscriber::fmt::MakeWriter;

use super::fake::Fake;
use super::{attempt, bench, consumer, run};

/// How long past its limit an attempt may last on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// Runs chaos with the default limits.
async fn chaos(steps: Json) -> (Finished, Fake) {
    run(&consumer(|_| {}), attempt(&steps)).await
}

#[track_caller]
fn failure(finished: &Finished) -> &Failure {
    match &finished.verdict {
        Verdict::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

#[track_caller]
fn code(finished: &Finished) -> &str {
    failure(finished).code.as_deref().unwrap_or_default()
}

#[tokio::test]
pub(crate) async fn a_handled_message_has_sql_and_outbox() {
    let publish = json!({"exchange": "shop", "routing_key": "stock.reduced", "body": "x", "times": 2});
    let update = json!({"sql": "UPDATE stock SET n = n - ?", "params": [1], "times": 3});
    let (finished, fake) = chaos(json!([update, {"publish": publish}])).await;
    assert_eq!(finished.verdict, Verdict::Ok);
    assert_eq!(fake.count("UPDATE"), 3);
    assert!(finished.touched_sql && finished.connection.is_some() && finished.instance.is_some());
    let ids: Vec<_> = finished.outbox.iter().map(|message| message.properties.message_id.clone().unwrap()).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1]);
    let again = Call { attempt: 2, ..attempt(&json!([{"publish": publish}])) };
    let (finished, _) = run(&consumer(|_| {}), again).await;
    assert_eq!(finished.outbox[0].properties.message_id.as_ref(), Some(&ids[0]), "every attempt has the same ids");
}

#[tokio::test]
async fn a_handlers_failure_arrives_as_it_was_meant() {
    let fail = |advice: Json| json!([{"fail": {"code": "c", "message": "m", "detail": "d", "advice": advice}}]);
    for (advice, expected) in [
        (json!("policy"), Advice::ByPolicy),
        (json!("never"), Advice::Never),
        (json!({"after-ms": 86_400_000}), Advice::After(Duration::from_secs(86_400))),
    ] {
        let (finished, _) = chaos(fail(advice)).await;
        let expected =
            Failure { advice: expected, code: Some("c".into()), message: "m".into(), detail: Some("d".into()) };
        assert_eq!(failure(&finished), &expected);
        assert!(finished.instance.is_some() && finished.connection.is_some() && !finished.touched_sql);
    }
}

#[tokio::test]
async fn a_failed_attempt_publishes_nothing() {
    let publish = json!({"publish": {"exchange": "shop", "routing_key": "stock.reduced"}});
    let (finished, _) = chaos(json!([publish, {"fail": {"code": "c"}}])).await;
    assert!(finished.outbox.is_empty() && code(&finished) == "c");
    let (finished, _) = chaos(json!([publish, {"panic": "x"}])).await;
    assert!(finished.outbox.is_empty() && code(&finished) == "trap");
}

#[tokio::test]
async fn a_panic_is_a_failure_with_the_panics_words() {
    let (finished, _) = chaos(json!([{"panic": "the cupboard is bare"}])).await;
    let failure = failure(&finished);
    assert_eq!((failure.advice, failure.code.as_deref()), (Advice::ByPolicy, Some("trap")));
    assert_eq!(failure.message, "wasm `unreachable` executed (a panic or abort?)");
    let detail = failure.detail.as_deref().unwrap();
    assert!(detail.contains("the cupboard is bare"), "{detail}");
    assert!(detail.contains("wasm backtrace"), "{detail}");
    assert!(finished.instance.is_none(), "an instance that trapped is not used again");
    assert!(finished.connection.is_some(), "no statement was on its way");
}

#[tokio::test]
async fn an_exit_is_a_failure_even_with_status_0() {
    for status in [0, 3] {
        let (finished, _) = chaos(json!([{"exit": status}])).await;
        assert_eq!(code(&finished), "trap");
        let message = &failure(&finished).message;
        assert!(message.starts_with("the handler called exit("), "{message}");
    }
}

/// On one thread: a guest that never yields would starve the ticking task, and its own time limit.
#[tokio::test]
async fn guests_that_never_end_are_stopped_while_others_run_on() {
    bench().await;
    let ticks = Arc::new(Mutex::new(0_u32));
    let counter = Arc::clone(&ticks);
    let ticker = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            *counter.lock().unwrap() += 1;
        }
    });
    for step in [json!({"loop": true}), json!({"sleep-ms": 60_000}), json!({"spin-sql": "SELECT 1"})] {
        let (before, started) = (*ticks.lock().unwrap(), Instant::now());
        let limit = Duration::from_millis(300);
        let consumer = consumer(|settings| settings.limits.sql_statements = u32::MAX);
        let (finished, _) = run(&consumer, Call { time_limit: limit, ..attempt(&json!([step])) }).await;
        assert!(started.elapsed() >= limit && started.elapsed() < limit + SLACK, "{step}: {:?}", started.elapsed());
        assert_eq!((code(&finished), failure(&finished).advice), ("timeout", Advice::ByPolicy), "{step}");
        assert!(failure(&finished).message.contains("300ms"), "{}", failure(&finished).message);
        assert!(finished.instance.is_none());
        assert!(*ticks.lock().unwrap() - before >= 3, "{step}: the other task was starved");
    }
    ticker.abort();
}

#[tokio::test]
async fn the_consumers_time_limit_holds_too() {
    let consumer = consumer(|settings| settings.limits.time = Duration::from_millis(100));
    let (finished, _) = run(&consumer, attempt(&json!([{"loop": true}]))).await;
    assert_eq!(code(&finished), "timeout");
    assert!(finished.connection.is_some(), "it was idle");
}

#[tokio::test]
async fn a_time_limit_inside_a_statement_kills_it() {
    let call = attempt(&json!([{"sql": "UPDATE slow SET n = 1"}]));
    let (finished, fake) = run(&consumer(|_| {}), Call { time_limit: Duration::from_millis(200), ..call }).await;
    assert_eq!(code(&finished), "timeout");
    assert!(failure(&finished).message.contains("inside a SQL statement"), "{}", failure(&finished).message);
    assert!(finished.connection.is_none() && finished.touched_sql);
    assert_eq!(fake.sent().last().map(String::as_str), Some("kill"));
}

#[tokio::test]
async fn a_time_limit_inside_a_statement_that_waits_for_locks_is_contention() {
    let call = attempt(&json!([{"sql": "UPDATE held SET n = 1"}]));
    let (finished, fake) = run(&consumer(|_| {}), Call { time_limit: Duration::from_millis(200), ..call }).await;
    let Verdict::Contention(error) = &finished.verdict else { panic!("{:?}", finished.verdict) };
    assert!(error.message.contains("waited for locks of other transactions"), "{error}");
    assert!(finished.connection.is_none() && finished.touched_sql);
    assert_eq!(fake.sent().last().map(String::as_str), Some("kill"));
}

#[tokio::test]
async fn an_attempt_that_is_dropped_kills_its_statement() {
    let (fake, consumer) = (Fake::default(), consumer(|_| {}));
    let instance = Instance::new(&bench().await.module, &consumer).await.unwrap();
    let call = instance.call(attempt(&json!([{"sql": "UPDATE slow SET n = 1"}])), fake.boxed());
    assert!(tokio::time::timeout(Duration::from_millis(200), call).await.is_err());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.sent().last().map(String::as_str), Some("kill"));
}

#[tokio::test]
async fn an_eater_of_memory_meets_its_limit() {
    let consumer = consumer(|settings| settings.limits.memory = 32 << 20);
    let (finished, _) = run(&consumer, attempt(&json!([{"eat-memory": true}]))).await;
    assert_eq!((code(&finished), failure(&finished).message.as_str()), ("trap", "memory limit of 32 MiB reached"));
    let (finished, _) = run(&consumer, attempt(&json!([{"eat-memory": 8 << 20}]))).await;
    assert_eq!(finished.verdict, Verdict::Ok);
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    let (finished, _) = chaos(json!([{"recurse": true}])).await;
    let message = &failure(&finished).message;
    assert!(message.contains("stack overflow"), "{message}");
    assert_eq!(code(&finished), "trap");
}

#[tokio::test]
async fn a_flood_of_messages_is_refused_at_the_limit() {
    let (finished, _) = chaos(json!([{"flood-outbox": 100_000}])).await;
    assert_eq!(code(&finished), "outbox-too-many", "{:?}", finished.verdict);
    assert!(finished.outbox.is_empty());
}

#[tokio::test]
async fn too_much_data_in_one_call_is_a_trap_and_not_the_hosts_memory() {
    let consumer = consumer(|settings| settings.limits = Limits { host_call: 1 << 20, ..Limits::default() });
    let big = json!([{"sql": "UPDATE t SET n = ?", "params": [{"$": "text:4000000"}]}]);
    let (finished, fake) = run(&consumer, attempt(&big)).await;
    assert_eq!(code(&finished), "trap", "{:?}", finished.verdict);
    assert!(fake.sent().is_empty());
}

#[tokio::test]
async fn garbage_is_cut_to_size() {
    let (finished, _) = chaos(json!([{"garbage": true}])).await;
    let failure = failure(&finished);
    assert!(failure.message.len() <= 4 << 10 && failure.detail.as_ref().unwrap().len() <= 16 << 10);
    let code = failure.code.as_ref().unwrap();
    assert!(code.len() <= 128 && !code.contains(char::is_control), "{code:?}");
}

#[tokio::test]
async fn after_a_failed_statement_nothing_is_sent_and_ok_does_not_count() {
    for first in ["INSERT INTO taken (n) VALUES (1)", "COMMIT"] {
        let steps = json!([{"ignore-error": {"sql": first}}, {"ignore-error": {"sql": "UPDATE stock SET n = 1"}}]);
        let (finished, fake) = chaos(steps).await;
        assert_eq!((code(&finished), failure(&finished).advice), ("sql-error-ignored", Advice::ByPolicy), "{first}");
        assert_eq!(fake.count("stock"), 0, "{first}");
        assert!(finished.instance.is_some());
    }
    let (finished, _) = chaos(json!([{"ignore-error": {"sql": "UPDATE taken SET n = 1"}}, {"sql": "SELECT 1"}])).await;
    assert_eq!(code(&finished), "sql-poisoned");
}

#[tokio::test]
async fn what_the_database_did_outranks_what_the_guest_made_of_it() {
    for (table, lost) in [("deadlock", false), ("down", false), ("lost", true)] {
        let statement = json!({"ignore-error": {"sql": format!("UPDATE {table} SET n = 1")}});
        for then in [json!({"print": "ok"}), json!({"fail": {"code": "mine"}}), json!({"panic": "x"})] {
            let (finished, _) = chaos(json!([statement, then])).await;
            match &finished.verdict {
                Verdict::Contention(error) => assert_eq!((table, error.kind), ("deadlock", DbErrorKind::Contention)),
                Verdict::Infrastructure(_) => assert_ne!(table, "deadlock"),
                other => panic!("{table}, then {then}: {other:?}"),
            }
            assert_eq!(finished.connection.is_none(), lost, "{table}");
            assert!(finished.touched_sql);
        }
    }
}

#[tokio::test]
async fn an_instance_is_reused_until_it_is_worn() {
    let count = attempt(&json!([{"count": "c", "into": "t"}]));
    let (fake, consumer) = (Fake::default(), consumer(|s| s.reuse = Some(Reuse { calls: 3, growth: u64::MAX })));
    let mut instance = Instance::new(&bench().await.module, &consumer).await.unwrap();
    for _ in 0..2 {
        instance = instance.call(count.clone(), fake.boxed()).await.instance.expect("not yet");
    }
    assert!(instance.call(count.clone(), fake.boxed()).await.instance.is_none(), "three calls are enough");
    assert_eq!(fake.written("c"), ["1", "2", "3"].map(|n| Some(n.to_owned())));
}

#[tokio::test]
async fn an_instance_that_has_grown_is_replaced() {
    let consumer = consumer(|s| s.reuse = Some(Reuse { calls: 100, growth: 8 << 20 }));
    let (finished, _) = run(&consumer, attempt(&json!([]))).await;
    assert!(finished.instance.is_some());
    let (finished, _) = run(&consumer, attempt(&json!([{"eat-memory": 10 << 20}]))).await;
    assert!(finished.verdict == Verdict::Ok && finished.instance.is_none());
}

#[tokio::test]
async fn what_a_runtime_takes_to_start_is_no_growth() {
    let started = Instance::new(&bench().await.module, &consumer(|_| {})).await.unwrap().memory();
    let consumer = consumer(|s| s.reuse = Some(Reuse { calls: 100, growth: started / 2 }));
    let (finished, _) = run(&consumer, attempt(&json!([]))).await;
    assert!(finished.instance.is_some(), "{started} bytes at the start");
    let (finished, _) = run(&consumer, attempt(&json!([{"eat-memory": started}]))).await;
    assert!(finished.verdict == Verdict::Ok && finished.instance.is_none());
}

#[tokio::test]
async fn without_reuse_every_message_has_a_fresh_instance() {
    let (finished, _) = run(&consumer(|settings| settings.reuse = None), attempt(&json!([]))).await;
    assert!(finished.verdict == Verdict::Ok && finished.instance.is_none());
}

#[tokio::test]
async fn a_guest_knows_its_attempt_and_what_it_was_granted() {
    let steps = json!([
        {"context": true, "into": "t"},
        {"config": "region", "into": "t"},
        {"config": "password", "into": "t"},
        {"idempotency-key": "charge", "into": "t"},
    ]);
    let (finished, fake) = run(&consumer(|_| {}), Call { attempt: 2, ..attempt(&steps) }).await;
    assert_eq!(finished.verdict, Verdict::Ok);
    let one = |name: &str| fake.written(name).swap_remove(0).unwrap_or_default();
    assert_eq!([one("consumer"), one("queue"), one("attempt")], ["shop", "orders", "2"]);
    assert_eq!([one("traceparent"), one("tracestate"), one("phase")], ["00-1-2-01", "", "handle"]);
    assert_eq!(fake.written("config"), [Some("eu".to_owned()), None]);
    let key = fake.written("idempotency-key");
    assert!(key[0].is_some());
    let (_, fake) = run(&consumer(|_| {}), attempt(&steps)).await;
    assert_eq!(fake.written("idempotency-key"), key, "the same on every attempt");
}

#[tokio::test]
async fn a_compensation_is_told_why() {
    let death = Death {
        reason: "exhausted".into(),
        attempts: 5,
        failure: Some(Failure { advice: Advice::Never, code: Some("c".into()), message: "m".into(), detail: None }),
    };
    let steps = json!([
        {"write": {"$": "death-reason"}, "name": "reason", "into": "t"},
        {"write": {"$": "death-code"}, "name": "code", "into": "t"},
    ]);
    let (finished, fake) = run(&consumer(|_| {}), Call { phase: Phase::Compensate(death), ..attempt(&steps) }).await;
    assert_eq!(finished.verdict, Verdict::Ok);
    assert_eq!(fake.written("reason"), [Some("exhausted".to_owned())]);
    assert_eq!(fake.written("code"), [Some("c".to_owned())]);
}

#[tokio::test]
async fn a_guest_sees_clocks_and_chance_and_nothing_else_of_the_machine() {
    let steps = json!([
        {"clock": "wall", "into": "t"},
        {"random": 1, "into": "t"},
        {"ignore-error": {"read-file": "/etc/passwd", "into": "t"}},
        {"ignore-error": {"env": "PATH", "into": "t"}},
    ]);
    let (finished, fake) = chaos(steps).await;
    assert_eq!(finished.verdict, Verdict::Ok, "{:?}", finished.verdict);
    assert!(fake.written("clock")[0].is_some() && fake.written("random")[0].is_some());
    assert!(fake.written("read-file").iter().chain(&fake.written("env")).all(Option::is_none));
}

#[tokio::test]
async fn an_idle_connection_is_pinged_while_the_guest_computes() {
    let consumer = consumer(|settings| settings.ping_every = Duration::from_millis(30));
    let call = Call { time_limit: Duration::from_millis(400), ..attempt(&json!([{"loop": true}])) };
    let (finished, fake) = run(&consumer, call).await;
    assert!(fake.count("ping") >= 2, "{:?}", fake.sent());
    assert!(finished.connection.is_some());
}

/// Collects a log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn what_a_guest_prints_is_logged_with_its_message() {
    bench().await;
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (finished, _) = chaos(json!([{"print": "hello\u{1b}[2J"}, {"stderr": "oh", "times": 2}])).await;
    assert_eq!(finished.verdict, Verdict::Ok);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let guest: Vec<_> = lines.iter().filter(|line| line["target"] == "hapax::guest").map(|l| &l["fields"]).collect();
    assert_eq!(guest.len(), 3, "{text}");
    assert_eq!(guest[0]["message"], "hello\u{fffd}[2J");
    assert_eq!((&guest[0]["stream"], &guest[1]["stream"]), (&json!("stdout"), &json!("stderr")));
    assert_eq!((&guest[0]["consumer"], &guest[0]["message_id"]), (&json!("shop"), &json!("m-1")));
    assert_eq!(guest[0]["module"], json!(bench().await.module.short_digest()));
}

#[tokio::test]
async fn what_is_logged_inside_an_attempt_carries_its_names() {
    bench().await;
    let log = Log::default();
    let level = tracing::Level::TRACE;
    let subscriber = tracing_subscriber::fmt().json().with_max_level(level).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let steps = json!([{"print": "hello"}, {"sql": "UPDATE stock SET n = 1"}]);
    let call = Call { attempt: 3, ..attempt(&steps) };
    let connection = Fake::default().boxed();
    let finished = Instance::start_and_call(&bench().await.module, &consumer(|_| {}), call, connection).await;
    assert_eq!(finished.verdict, Verdict::Ok);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let module = bench().await.module.short_digest();
    let names = json!({"name": "attempt", "consumer": "shop", "message_id": "m-1", "attempt": 3, "module": module});
    for target in ["hapax::guest", "hapax::guest::sql"] {
        let mut of_target = lines.iter().filter(|line| line["target"] == target).peekable();
        assert!(of_target.peek().is_some(), "{target}: {text}");
        assert!(of_target.all(|line| line["spans"][0] == names), "{target}: {text}");
    }
    let sql = lines.iter().find(|line| line["target"] == "hapax::guest::sql").map(|line| &line["fields"]).unwrap();
    assert!(sql["sql"].as_str().unwrap().contains("stock") && sql["elapsed"].is_string(), "{sql}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_instances_run_side_by_side() {
    let consumer = consumer(|_| {});
    let calls = (0..20).map(|n| {
        let consumer = Arc::clone(&consumer);
        let step = if n % 4 == 0 { json!({"loop": true}) } else { json!({"sql": "UPDATE stock SET n = 1"}) };
        let call = Call { time_limit: Duration::from_secs(2), ..attempt(&json!([step])) };
        tokio::spawn(async move { (n, run(&consumer, call).await.0.verdict) })
    });
    for call in calls.collect::<Vec<_>>() {
        let (n, verdict) = call.await.unwrap();
        assert_eq!(verdict == Verdict::Ok, n % 4 != 0, "{n}: {verdict:?}");
    }
}
