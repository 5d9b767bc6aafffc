//! Handlers of every shape, called with messages as the host calls them.
#![cfg(not(target_arch = "wasm32"))]

use hapax_guest::testing::Fake;
use hapax_guest::{Advice, Context, Death, Failure, Json, Message, compensation, handler, outbox, sql};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Order {
    goods_id: i64,
    quantity: i64,
}

#[handler]
fn typed(order: Order) -> Result<(), Failure> {
    sql::execute("UPDATE stock SET quantity = quantity - ? WHERE goods_id = ?", (order.quantity, order.goods_id))?;
    outbox::publish("shop", "stock.reduced")
        .json(&order.goods_id)?
        .header("attempt", i64::from(Context.attempt()))
        .send()?;
    Ok(())
}

#[handler]
fn wrapped(Json(order): Json<Order>, message: &Message, context: Context) -> Result<(), Failure> {
    let found = format!("{} {} {}", order.goods_id, message.id, context.attempt());
    Err(Failure::retry_after(std::time::Duration::from_secs(1), "seen", found))
}

#[handler]
fn text(body: &str) -> Result<(), String> {
    Err(format!("text {body}"))
}

#[handler]
fn bytes(body: &[u8]) -> Result<(), std::num::ParseIntError> {
    let _: i64 = String::from_utf8_lossy(body).parse()?;
    Ok(())
}

#[handler]
fn nothing() {}

#[handler]
fn swallows(_message: Message) -> Result<(), Failure> {
    outbox::publish("", "q").text("x").send()?;
    let _ = sql::execute("UPDATE a SET b = 1", ());
    assert_eq!(sql::execute("UPDATE a SET b = 2", ()).unwrap_err().kind, sql::ErrorKind::Poisoned);
    Ok(())
}

#[compensation]
fn refuse(order: Order, death: &Death) -> Result<(), Failure> {
    sql::execute("INSERT INTO refused VALUES (?, ?)", (order.goods_id, &death.reason))?;
    Ok(())
}

fn death(code: &str) -> Death {
    Death { reason: "permanent".into(), attempts: 1, failure: Some(Failure::permanent(code, "")) }
}

const ORDER: &str = r#"{"goods_id": 9007199254740993, "quantity": 2}"#;

#[test]
fn a_typed_body_reaches_the_handler_and_its_effects_are_seen() {
    let fake = Fake::new();
    fake.attempt(3).when("UPDATE stock SET").affects(1);
    fake.handle::<typed>(Message::new(ORDER)).unwrap();
    assert_eq!(fake.statements()[0].params, [2.into(), 9_007_199_254_740_993_i64.into()]);
    let published = &fake.outbox()[0];
    assert_eq!((published.exchange.as_str(), published.routing_key.as_str()), ("shop", "stock.reduced"));
    assert_eq!(published.properties.header("attempt").and_then(hapax_guest::HeaderValue::as_integer), Some(3));
    assert_eq!(published.json().to_string(), "9007199254740993");
}

#[test]
fn a_body_that_does_not_decode_is_permanent_and_says_why() {
    let fake = Fake::new();
    for (body, why) in [
        (r#"{"goods_id": 1}"#, "missing field `quantity`"),
        ("", "the body is empty"),
        ("\u{0}", "expected value"),
        (r#"{"goods_id": 18446744073709551615, "quantity": 1}"#, "expected i64"),
    ] {
        let failure = fake.handle::<typed>(Message::new(body)).unwrap_err();
        assert_eq!((failure.advice, failure.code.as_deref()), (Advice::Never, Some("undecodable")));
        assert!(failure.message.contains(why), "{}", failure.message);
    }
    let failure = fake.handle::<text>(Message::new([0xff])).unwrap_err();
    assert!(failure.message.starts_with("the body is not UTF-8"), "{}", failure.message);
}

#[test]
fn parameters_are_chosen_by_their_types() {
    let fake = Fake::new();
    let failure = fake.handle::<wrapped>(Message::new(ORDER).with_id("m-1")).unwrap_err();
    assert_eq!((failure.message.as_str(), failure.advice), ("9007199254740993 m-1 1", Advice::AfterMs(1000)));
    assert_eq!(fake.handle::<text>(Message::text("\"a\"")).unwrap_err().message, "text \"a\"");
    assert_eq!(fake.handle::<bytes>(Message::text("x")).unwrap_err().message, "invalid digit found in string");
    fake.handle::<bytes>(Message::text("7")).unwrap();
    fake.handle::<nothing>(Message::new([0xff])).unwrap();
}

#[test]
fn an_attempt_that_swallows_a_failed_statement_fails_and_publishes_nothing() {
    let fake = Fake::new();
    fake.when("UPDATE a SET b = 1").fails(sql::ErrorKind::Constraint);
    let failure = fake.handle::<swallows>(Message::default()).unwrap_err();
    assert_eq!(failure.code.as_deref(), Some("sql-error-ignored"));
    assert_eq!((fake.statements().len(), fake.outbox().len()), (2, 0));
}

#[test]
fn a_compensation_gets_the_death_and_is_not_called_for_a_body_that_never_decoded() {
    let fake = Fake::new();
    fake.when("INSERT INTO refused").affects(1);
    fake.compensate::<refuse>(Message::new(ORDER), death("out-of-stock")).unwrap();
    assert_eq!(fake.statements()[0].params[1], "permanent".into());
    fake.compensate::<refuse>(Message::new("?"), death("undecodable")).unwrap();
    assert_eq!(fake.statements().len(), 1);
    assert!(fake.compensate::<refuse>(Message::new("?"), death("crashed")).is_err());
}

#[test]
fn scripts_answer_in_order_and_as_often_as_they_say() {
    let fake = Fake::new();
    fake.when("SELECT n").once().returns(["n"], [(1,)]);
    fake.when("SELECT n").returns(["n"], [(2,), (3,)]);
    assert_eq!(sql::query_one::<i64>("SELECT  n\nFROM t", ()).unwrap(), 1);
    assert_eq!(sql::query::<i64>("SELECT n FROM t", ()).unwrap(), [2, 3]);
    let error = sql::query_optional::<i64>("SELECT n FROM t", ()).unwrap_err();
    assert_eq!(error.message, "expected at most one row, found 2: SELECT n FROM t");
    fake.when("INSERT").affects(1);
    assert_eq!(sql::execute_many("INSERT INTO t VALUES (?, ?)", [(1, "a"), (2, "b")]).unwrap(), 2);
    fake.when("NONE").returns::<1, (i64,)>(["n"], []);
    assert!(sql::query_one::<i64>("NONE", ()).unwrap_err().message.starts_with("expected one row, found none"));
}

#[test]
#[should_panic(expected = "no script for this statement: DELETE FROM stock")]
fn a_statement_without_a_script_fails_the_test() {
    let _fake = Fake::new();
    let _ = sql::execute("DELETE FROM stock", ());
}

#[test]
#[should_panic(expected = "a handler runs under a Fake")]
fn outside_of_a_fake_nothing_runs() {
    let _ = Context.attempt();
}
