//! Rows that are parked: what goes in comes back.

use std::sync::Arc;
use std::time::Duration;

use hapax::ledger::inbox::Status;
use hapax::ledger::parked::{CHUNK_BYTES, Carried, NewParked, ParkedId, ParkedRow, Phase, State};
use hapax::message::{BodyDigest, HeaderValue, Message, Properties};
use hapax::outcome::Reason;
use hapax_tests::TestResult;

use crate::subject::*;

/// How long after its last change a row is due, in milliseconds.
fn delay(row: &ParkedRow) -> Option<i64> {
    row.due_at.map(|due| due - row.updated_at)
}

pub(crate) async fn every_new_row_is_what_its_constructor_says(subject: Subject) -> TestResult {
    let names = ["retry", "compensate", "dead", "apart", "deferred"];
    let of: Vec<Carried> =
        names.iter().enumerate().map(|(n, name)| Carried { slot: n as u16 * 60, ..carried(name) }).collect();
    let once = ParkedId::derived(&[b"once"]);
    let rows = [
        NewParked::retry(of[0].clone(), 2, Duration::from_millis(3_141), Some(&failure("why"))),
        NewParked::compensate(of[1].clone(), Reason::Exhausted, 5, &failure("why")),
        NewParked::dead(of[2].clone(), Reason::Permanent, 1, None),
        NewParked::dead_apart(Carried { id: None, module: None, ..of[3].clone() }, Reason::NoId, "no\0 id", Some(once)),
        NewParked::deferred(of[4].clone(), Duration::ZERO),
    ];
    committed!(subject, |lane| subject.ledger.park(lane, CONSUMER, &rows).await?);
    let mut found = Vec::new();
    for row in &rows {
        found.push(subject.row(row.id).await?);
    }
    for (row, carried) in found.iter().zip(&of) {
        assert_eq!((&*row.consumer, row.slot, row.digest), (CONSUMER, carried.slot, carried.digest));
        assert_eq!(row.message, carried.message);
        assert_eq!(row.body_bytes, carried.message.body.len() as u64);
        assert_eq!((row.generation, row.crashes, row.compensations), (0, 0, 0));
        assert_eq!((row.run_token, row.incarnation, row.taken_at), (None, None, None));
        assert_eq!(row.created_at, row.updated_at);
    }
    let states: Vec<_> = found.iter().map(|row| (row.state, row.phase, delay(row))).collect();
    assert_eq!(
        states,
        [
            (State::Retry, Phase::Handle, Some(3_141)),
            (State::Retry, Phase::Compensate, Some(0)),
            (State::Dead, Phase::Handle, None),
            (State::Dead, Phase::Handle, None),
            (State::Deferred, Phase::Deliver, Some(0)),
        ]
    );
    let counts: Vec<_> = found.iter().map(|row| (row.attempts, row.handler_attempts)).collect();
    assert_eq!(counts, [(2, 0), (0, 5), (1, 0), (0, 0), (0, 0)]);
    let reasons: Vec<_> = found.iter().map(|row| row.reason.as_deref()).collect();
    assert_eq!(reasons, [None, Some("exhausted"), Some("permanent"), Some("no-id"), None]);
    assert_eq!(found[0].failure(), Some(failure("why")));
    assert_eq!(found[1].failure(), Some(failure("why")));
    assert_eq!(found[2].failure(), None);
    assert_eq!(found[3].error.as_deref(), Some("no\u{fffd} id"));
    assert_eq!((found[3].id, &found[3].message_id, found[3].module), (once, &None, None));
    assert_eq!((&found[4].message_id, found[4].module), (&Some(id("deferred")), Some(MODULE)));
    Ok(())
}

/// Bytes that neither compress nor read as text.
fn noise(length: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64 ^ length as u64;
    let next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

pub(crate) async fn bodies_of_every_size_come_back_whole(subject: Subject) -> TestResult {
    let sizes = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 16 * CHUNK_BYTES];
    let of: Vec<Carried> = sizes.iter().map(|size| carrying(&format!("{size}"), noise(*size))).collect();
    let rows: Vec<_> =
        of.iter().map(|of| (of.clone(), NewParked::retry(of.clone(), 1, Duration::ZERO, None))).collect();
    subject.park(Some(Status::Parked), &rows).await?;
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked_chunks").await?, 2 + 16);

    for of in &of {
        let row = subject.row(of.row_id).await?;
        assert_eq!(row.body_bytes as usize, of.message.body.len());
        assert!(row.message == of.message, "{} bytes", row.body_bytes);
        assert_eq!(BodyDigest::of(&row.message.body), row.digest);
    }
    let (token, taken) = subject.take(hapax::ledger::parked::Which::Innocent).await?;
    assert_eq!(taken.len(), sizes.len());
    for (row, of) in taken.iter().zip(&of) {
        assert!(row.message == of.message, "{} bytes", row.body_bytes);
    }
    let rows: Vec<&ParkedRow> = taken.iter().collect();
    committed!(subject, |lane| subject.ledger.delete_parked(lane, token, &rows).await?);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked_chunks").await?, 0);
    Ok(())
}

pub(crate) async fn properties_and_texts_of_every_kind_come_back(subject: Subject) -> TestResult {
    let text = "näïve 日本語 \u{1f600} \0 ' \" \\ \r\n\t \u{7f}";
    let mut headers: Vec<(String, HeaderValue)> = vec![
        ("null".into(), HeaderValue::Null),
        (text.into(), HeaderValue::Text(text.into())),
        ("twice".into(), HeaderValue::Integer(i64::MIN)),
        ("twice".into(), HeaderValue::Integer(i64::MAX)),
        ("yes".into(), HeaderValue::Boolean(true)),
        ("bytes".into(), HeaderValue::Bytes((0..=255).collect())),
        ("none".into(), HeaderValue::Bytes(Vec::new())),
        ("when".into(), HeaderValue::Timestamp(u64::MAX)),
        ("decimal".into(), HeaderValue::Decimal("-123456789012345678901.5".into())),
        ("json".into(), HeaderValue::Json(r#"{"a":[1,null,"\u0000"]}"#.into())),
        ("".into(), HeaderValue::Text(String::new())),
    ];
    let floats =
        [0.0, -0.0, 0.1 + 0.2, f64::MIN_POSITIVE, f64::MAX, 5e-324, 1e23, 9.5e15, f64::INFINITY, f64::NEG_INFINITY];
    headers.extend(floats.map(|float| ("float".to_owned(), HeaderValue::Float(float))));
    let properties = Properties {
        content_type: Some(text.into()),
        content_encoding: Some("gzip".into()),
        headers,
        delivery_mode: Some(2),
        priority: Some(255),
        correlation_id: Some(text.into()),
        reply_to: Some("amq.rabbitmq.reply-to".into()),
        expiration: Some("60000".into()),
        message_id: Some("x".repeat(255)),
        timestamp: Some(u64::MAX),
        kind: Some(text.into()),
        user_id: Some("guest".into()),
        app_id: Some("".into()),
    };
    let message = |properties: Properties| {
        Arc::new(Message {
            exchange: "é".repeat(127),
            routing_key: "k".repeat(255),
            properties,
            body: Default::default(),
        })
    };
    let of = Carried { message: message(properties), ..carried("all") };
    let mut why = failure("broke\0n\nin two lines");
    why.code = Some("\u{1f600}".repeat(32));
    why.detail = Some(format!("{text}{}", "d".repeat(16 << 10)));
    let row = NewParked::retry(of.clone(), 1, LONG, Some(&why));
    subject.park(None, &[(of.clone(), row)]).await?;
    let row = subject.row(of.row_id).await?;
    assert_eq!(row.message, of.message);
    assert_eq!(row.code, why.code);
    let stored = row.failure().expect("a failure");
    assert_eq!(stored.message, "broke\u{fffd}n in two lines");
    assert_eq!(stored.detail, why.detail.map(|detail| detail.replace('\0', "\u{fffd}")));

    // NaN equals nothing, so it has a message of its own. NUL cannot be in an address of Postgres.
    let nan = Properties { headers: vec![("nan".into(), HeaderValue::Float(f64::NAN))], ..Properties::default() };
    let odd = Message { exchange: "a\0b".into(), routing_key: "\0".into(), ..(*message(nan)).clone() };
    let of = Carried { message: Arc::new(odd), ..carried("odd") };
    subject.defer(of.clone(), LONG).await?;
    let row = subject.row(of.row_id).await?;
    assert!(matches!(row.message.properties.headers[0].1, HeaderValue::Float(float) if float.is_nan()));
    assert_eq!((&*row.message.exchange, &*row.message.routing_key), ("a\u{fffd}b", "\u{fffd}"));
    Ok(())
}

pub(crate) async fn a_row_whose_key_exists_stays_as_it_is(subject: Subject) -> TestResult {
    let once = ParkedId::derived(&[b"id-conflict", b"a"]);
    let large = carrying("a", noise(3 * CHUNK_BYTES));
    let apart = |error| NewParked::dead_apart(large.clone(), Reason::IdConflict, error, Some(once));
    subject.park(None, &[(large.clone(), apart("first"))]).await?;
    let before = subject.row(once).await?;
    subject.park(None, &[(large.clone(), apart("second")), (large.clone(), apart("third"))]).await?;
    assert!(subject.row(once).await? == before);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked").await?, 1);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked_chunks").await?, 3);
    Ok(())
}

pub(crate) async fn many_rows_are_parked_at_once(subject: Subject) -> TestResult {
    let rows: Vec<_> = (0..2_500)
        .map(|n| {
            let of = carried(&format!("{n}"));
            (of.clone(), NewParked::retry(of, 0, Duration::ZERO, None))
        })
        .collect();
    subject.park(Some(Status::Parked), &rows).await?;
    assert_eq!(subject.ledger.parked_counts(CONSUMER, ALL_STATES).await?, [(State::Retry, 2_500)]);
    let take = hapax::ledger::parked::Take { limit: 4096, ..everything(hapax::ledger::parked::Which::Innocent) };
    let (token, taken) = subject.take_as(&take).await?;
    assert_eq!(taken.len(), 2_500);
    let ids: Vec<ParkedId> = keys(&taken);
    committed!(subject, |lane| {
        assert_eq!(subject.ledger.lock_running(lane, token, &ids).await?.len(), 2_500);
        let moves: Vec<_> = taken
            .iter()
            .map(|row| hapax::ledger::parked::ParkedMove::dead(row, token, Reason::Permanent, 1, None, None))
            .collect();
        subject.ledger.move_parked(lane, &moves).await?;
        let moves = taken.iter().map(|row| hapax::ledger::inbox::InboxMove {
            id: row.message_id.clone().expect("an id"),
            from: (Status::Parked, Some(row.id)),
            to: (Status::Dead, Some(row.id)),
            module: Some(MODULE),
        });
        subject.ledger.move_inbox(lane, CONSUMER, &moves.collect::<Vec<_>>()).await?;
    });
    assert_eq!(subject.ledger.parked_counts(CONSUMER, ALL_STATES).await?, [(State::Dead, 2_500)]);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_inbox WHERE status = 3").await?, 2_500);
    Ok(())
}
