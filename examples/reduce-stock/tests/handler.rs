//! The handler, on the host: what it does with each kind of message, and what it says to the database.
#![cfg(not(target_arch = "wasm32"))]

use ::reduce_stock::{reduce_stock, refuse_order, unlucky};
use hapax_guest::sql::ErrorKind;
use hapax_guest::testing::Fake;
use hapax_guest::{Advice, Death, Failure, Message};
use serde_json::json;

const UPDATE: &str = "UPDATE stock SET quantity = quantity - ?";

#[test]
fn stock_is_reduced_and_the_shop_is_told() {
    let fake = Fake::new();
    fake.when(UPDATE).affects(1);
    let order = json!({ "goods_id": 1_234_567_890_123_456_789_i64, "quantity": 2 });
    fake.handle::<reduce_stock>(Message::json(&order).with_id("o-1")).unwrap();
    let params = &fake.statements()[0].params;
    assert_eq!(*params, [2.into(), 1_234_567_890_123_456_789_i64.into(), 2.into()]);
    let published = &fake.outbox()[0];
    assert_eq!((published.exchange.as_str(), published.routing_key.as_str()), ("shop", "stock.reduced"));
    assert_eq!(published.json(), json!({ "order": "o-1", "goods_id": 1_234_567_890_123_456_789_i64, "quantity": 2 }));
}

#[test]
fn ids_are_exact_as_numbers_as_strings_and_bare() {
    let fake = Fake::new();
    for body in [
        r#"{"goods_id": 9007199254740993}"#,
        r#"{"goods_id":"9007199254740993"}"#,
        "9007199254740993",
        " 9007199254740993\n",
    ] {
        fake.forget();
        fake.when(UPDATE).affects(1);
        fake.handle::<reduce_stock>(Message::text(body)).unwrap();
        assert_eq!(fake.statements()[0].params, [1.into(), 9_007_199_254_740_993_i64.into(), 1.into()], "{body}");
    }
}

#[test]
fn garbage_is_refused_for_good_before_any_statement() {
    let fake = Fake::new();
    for body in [
        "",
        "hello",
        "[]",
        "[1, 2]",
        "{}",
        "-1",
        "99999999999999999999",
        r#"{"goods_id": 1.5}"#,
        r#"{"goods_id": null}"#,
        r#"{"goods_id": 1, "quantity": 0}"#,
        r#"{"goods_id": 1, "quantity": -3}"#,
        r#"{"goods_id": 1, "quantity": "many"}"#,
    ] {
        let failure = fake.handle::<reduce_stock>(Message::text(body)).unwrap_err();
        assert_eq!(
            (failure.advice, failure.code.as_deref()),
            (Advice::Never, Some("undecodable")),
            "{body}: {failure}"
        );
    }
    let failure = fake.handle::<reduce_stock>(Message::new([0xff, 0xfe])).unwrap_err();
    assert_eq!(failure.code.as_deref(), Some("undecodable"));
    assert_eq!(fake.statements(), []);
}

#[test]
fn out_of_stock_and_unknown_goods_are_refused_for_good_and_told_apart() {
    let fake = Fake::new();
    fake.when(UPDATE).affects(0);
    fake.when("SELECT quantity FROM stock").once().returns(["quantity"], [(1,)]);
    fake.when("SELECT quantity FROM stock").returns::<1, (i64,)>(["quantity"], []);
    let order = || Message::json(&json!({ "goods_id": 7, "quantity": 2 }));
    let failure = fake.handle::<reduce_stock>(order()).unwrap_err();
    assert_eq!(failure, Failure::permanent("out-of-stock", "goods 7: 2 ordered, 1 in stock"));
    let failure = fake.handle::<reduce_stock>(order()).unwrap_err();
    assert_eq!(failure, Failure::permanent("unknown-goods", "there are no goods 7"));
    assert_eq!(fake.outbox(), []);
}

#[test]
fn a_database_error_is_worth_a_retry() {
    let fake = Fake::new();
    fake.when(UPDATE).fails(ErrorKind::Transient);
    let failure = fake.handle::<reduce_stock>(Message::text("7")).unwrap_err();
    assert_eq!((failure.advice, failure.code.as_deref()), (Advice::ByPolicy, Some("sql-transient")));
}

#[test]
fn the_exchange_comes_from_the_config() {
    let fake = Fake::new();
    fake.config("exchange", "warehouse").when(UPDATE).affects(1);
    fake.handle::<reduce_stock>(Message::text("7")).unwrap();
    assert_eq!(fake.outbox()[0].exchange, "warehouse");
}

#[test]
fn a_refused_order_is_recorded_with_its_reason() {
    let fake = Fake::new();
    fake.when("INSERT INTO refused_order").affects(1);
    let order = || Message::json(&json!({ "goods_id": 7, "quantity": 2 })).with_id("o-1");
    let failure = Some(Failure::permanent("out-of-stock", ""));
    fake.compensate::<refuse_order>(order(), Death { reason: "permanent".into(), attempts: 1, failure }).unwrap();
    fake.compensate::<refuse_order>(order(), Death { reason: "crashed".into(), attempts: 3, failure: None }).unwrap();
    let statements = fake.statements();
    assert_eq!(statements[0].params, ["o-1".into(), 7.into(), 2.into(), "out-of-stock".into()]);
    assert_eq!(statements[1].params[3], "crashed".into());
}

#[test]
fn the_demanded_share_of_attempts_fails_after_the_update_and_always_the_same_ones() {
    let fake = Fake::new();
    fake.config("fail_after_update", "0.5").when(UPDATE).affects(1);
    let id = |number: u32| format!("o-{number}");
    let failed = (0..1000).filter(|&number| {
        let result = fake.handle::<reduce_stock>(Message::text("7").with_id(id(number)));
        let failed = result.is_err_and(|failure| failure.code.as_deref() == Some("simulated"));
        assert_eq!(failed, unlucky(&id(number), 1, 0.5));
        failed
    });
    let failed = failed.count();
    assert!((450..=550).contains(&failed), "{failed} of 1000");
    let exhausted = (0..10_000).filter(|&number| (1..=5).all(|attempt| unlucky(&id(number), attempt, 0.5))).count();
    assert!((200..=420).contains(&exhausted), "{exhausted} of 10,000; 1 in 32 expected");
}

#[test]
fn shares_of_0_and_1_and_nonsense_do_what_they_say() {
    let fake = Fake::new();
    fake.when(UPDATE).affects(1);
    let code = |share| {
        fake.config("fail_after_update", share);
        fake.handle::<reduce_stock>(Message::text("7")).err().and_then(|failure| failure.code)
    };
    assert_eq!(code("0"), None);
    assert_eq!(code("1").as_deref(), Some("simulated"));
    assert_eq!(code("half").as_deref(), Some("bad-config"));
    assert_eq!(code("2").as_deref(), Some("bad-config"));
    assert_eq!(code("NaN").as_deref(), Some("bad-config"));
}
