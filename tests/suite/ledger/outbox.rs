//! The outbox: rows that wait to be published.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hapax::broker::Outgoing;
use hapax::ledger::outbox::{OutboxId, OutboxRow};
use hapax::ledger::parked::{CHUNK_BYTES, ParkedId};
use hapax::message::{HeaderValue, Properties};
use hapax_tests::TestResult;

use crate::subject::*;

const NOW: Duration = Duration::ZERO;

/// What a handler sent, under an id of its own.
pub(crate) fn sent(cause: &str, name: &str, body: Vec<u8>) -> OutboxRow {
    OutboxRow {
        id: OutboxId::of_message(CONSUMER, name),
        message_id: Some(id(cause)),
        parked_id: None,
        outgoing: Outgoing {
            exchange: "shop".into(),
            routing_key: "stock.reduced".into(),
            properties: Properties {
                message_id: Some(name.into()),
                headers: vec![("n".into(), HeaderValue::Integer(1)), ("é\0".into(), HeaderValue::Null)],
                ..Properties::default()
            },
            body: body.into(),
        },
    }
}

/// A copy of a dead letter: the body is that row's.
pub(crate) fn copy_of(dead: ParkedId, generation: u32) -> OutboxRow {
    let row = sent("dead", "copy", Vec::new());
    OutboxRow { id: OutboxId::of_copy(dead, generation), message_id: None, parked_id: Some(dead), ..row }
}

pub(crate) async fn add(subject: &Subject, rows: &[OutboxRow], grace: Duration) -> TestResult {
    committed!(subject, |lane| subject.ledger.add_to_outbox(lane, CONSUMER, rows, grace).await?);
    Ok(())
}

pub(crate) async fn rows_are_published_after_their_grace_time(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    assert_eq!(ledger.outbox_stats(CONSUMER).await?, (0, NOW));
    assert_eq!(ledger.outbox_due(10, LONG).await?, []);
    add(&subject, &[], NOW).await?;
    let rows = [sent("a", "one", b"1".to_vec()), sent("a", "two", Vec::new())];
    add(&subject, &rows, LONG).await?;
    assert_eq!(ledger.outbox_due(10, LONG).await?, [], "the lane that added them publishes them");
    assert_eq!(ledger.outbox_stats(CONSUMER).await?.0, 2);
    assert_eq!(ledger.outbox_stats("another").await?, (0, NOW));

    subject.age("hapax_outbox", "next_at", LONG).await?;
    subject.age("hapax_outbox", "created_at", LONG).await?;
    let (waiting, oldest) = ledger.outbox_stats(CONSUMER).await?;
    assert_eq!(waiting, 2);
    assert!((LONG..LONG * 2).contains(&oldest), "{oldest:?}");
    let mut due = ledger.outbox_due(10, LONG).await?;
    due.sort_by_key(|entry| entry.row.outgoing.body.is_empty());
    assert_eq!(due.iter().map(|entry| entry.row.clone()).collect::<Vec<_>>(), rows);
    let first = &due[0];
    assert_eq!((&*first.consumer, first.undeliverable, first.attempts, &first.error), (CONSUMER, false, 0, &None));
    assert_eq!(ledger.outbox_due(10, LONG).await?, [], "held while somebody publishes them");

    ledger.outbox_done(&[]).await?;
    ledger.outbox_done(&[rows[0].id, OutboxId([9; 16])]).await?;
    assert_eq!(ledger.outbox_stats(CONSUMER).await?.0, 1);
    subject.age("hapax_outbox", "next_at", LONG).await?;
    assert_eq!(ledger.outbox_due(10, LONG).await?[0].row, rows[1], "whoever held it did not come back");
    Ok(())
}

pub(crate) async fn one_sweep_at_a_time_publishes_a_row(subject: Subject) -> TestResult {
    let rows: Vec<OutboxRow> = (0..100).map(|n| sent("a", &format!("{n}"), Vec::new())).collect();
    add(&subject, &rows, NOW).await?;
    let subject = Arc::new(subject);
    let hosts: Vec<_> = (0..4)
        .map(|_| {
            let subject = Arc::clone(&subject);
            tokio::spawn(async move {
                // A ledger of its own has a connection of its own.
                let ledger = hapax::ledger::Ledger::open(Arc::clone(subject.ledger.database())).await?;
                let mut found = Vec::new();
                for _ in 0..20 {
                    found.extend(ledger.outbox_due(9, LONG).await?.into_iter().map(|entry| entry.row.id));
                }
                Ok::<_, hapax::ledger::database::DbError>(found)
            })
        })
        .collect();
    let mut found = Vec::new();
    for host in hosts {
        found.extend(host.await??);
    }
    assert_eq!(found.len(), 100);
    assert_eq!(found.into_iter().collect::<HashSet<_>>().len(), 100);
    Ok(())
}

pub(crate) async fn the_same_row_twice_stays_one(subject: Subject) -> TestResult {
    let row = sent("a", "one", b"first".to_vec());
    add(&subject, std::slice::from_ref(&row), NOW).await?;
    let mut again = row.clone();
    again.outgoing.body = b"second".to_vec().into();
    add(&subject, &[again.clone(), again], LONG).await?;
    let due = subject.ledger.outbox_due(10, LONG).await?;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].row, row);
    Ok(())
}

pub(crate) async fn what_cannot_be_published_stays_until_it_is_requeued(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let rows = [sent("a", "one", Vec::new()), sent("a", "two", Vec::new())];
    add(&subject, &rows, NOW).await?;
    let error = format!("NO_ROUTE\0 {}", "é".repeat(100_000));
    ledger.outbox_undeliverable(rows[0].id, &error).await?;
    assert_eq!(ledger.outbox_stats(CONSUMER).await?.0, 1);
    assert_eq!(ledger.outbox_due(10, LONG).await?.len(), 1, "the other one flows");
    let found = ledger.outbox_of_message(CONSUMER, &id("a")).await?;
    let stuck = found.iter().find(|entry| entry.row.id == rows[0].id).expect("the row");
    assert!(stuck.undeliverable && stuck.attempts == 1);
    assert_eq!(ledger.outbox_undeliverables(CONSUMER).await?.0, 1);
    assert!(stuck.error.as_deref().is_some_and(|error| error.starts_with("NO_ROUTE\u{fffd} é")), "{:?}", stuck.error);

    assert_eq!(ledger.outbox_requeue("another").await?, 0);
    assert_eq!(ledger.outbox_requeue(CONSUMER).await?, 1);
    assert_eq!(ledger.outbox_requeue(CONSUMER).await?, 0);
    let due = ledger.outbox_due(10, LONG).await?;
    assert_eq!((due.len(), due[0].row.id, &due[0].error), (1, rows[0].id, &None));
    Ok(())
}

pub(crate) async fn a_failed_publication_is_tried_again_later(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let row = sent("a", "one", Vec::new());
    add(&subject, std::slice::from_ref(&row), NOW).await?;
    for attempts in 1..=3 {
        let error = format!("connection lost {}", "x".repeat(70_000));
        ledger.outbox_retry(row.id, &error, LONG).await?;
        assert_eq!(ledger.outbox_due(10, LONG).await?, []);
        subject.age("hapax_outbox", "next_at", LONG).await?;
        let due = ledger.outbox_due(10, NOW).await?;
        assert_eq!((due.len(), due[0].attempts, due[0].undeliverable), (1, attempts, false));
        assert!(due[0].error.as_deref().is_some_and(|error| error.starts_with("connection lost x")));
    }
    Ok(())
}

pub(crate) async fn copies_carry_the_bodies_of_their_dead_letters(subject: Subject) -> TestResult {
    let bodies = [Vec::new(), b"small".to_vec(), vec![b'L'; 5 * CHUNK_BYTES + 1]];
    let mut rows = Vec::new();
    for (n, body) in bodies.iter().enumerate() {
        let dead = subject.bury(carrying(&format!("{n}"), body.clone())).await?;
        rows.push(copy_of(dead.id, dead.generation));
    }
    // Copies are left to a sweep: no lane holds their bodies.
    add(&subject, &rows, LONG).await?;
    let mut due = subject.ledger.outbox_due(10, LONG).await?;
    due.sort_by_key(|entry| entry.row.outgoing.body.len());
    assert_eq!(due.len(), 3);
    for (entry, body) in due.iter().zip(&bodies) {
        assert!(entry.row.outgoing.body == *body, "{} bytes", body.len());
        assert!(rows.iter().any(|row| row.id == entry.row.id));
    }
    Ok(())
}

pub(crate) async fn a_copy_whose_dead_letter_is_gone_is_dropped(subject: Subject) -> TestResult {
    let dead = subject.bury(carried("a")).await?;
    add(&subject, &[copy_of(dead.id, 0), copy_of(ParkedId::new(), 0), sent("a", "one", Vec::new())], NOW).await?;
    let due = subject.ledger.outbox_due(10, LONG).await?;
    assert_eq!(due.len(), 2);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_outbox").await?, 2);
    Ok(())
}

pub(crate) async fn many_and_large_rows_go_in_together(subject: Subject) -> TestResult {
    let mut rows: Vec<OutboxRow> = (0..4_000).map(|n| sent("a", &format!("{n}"), vec![b'x'; 10])).collect();
    rows.extend((0..24).map(|n| sent("a", &format!("large {n}"), vec![b'y'; CHUNK_BYTES])));
    add(&subject, &rows, NOW).await?;
    assert_eq!(subject.ledger.outbox_stats(CONSUMER).await?.0, 4_024);
    let due = subject.ledger.outbox_due(5_000, LONG).await?;
    assert_eq!(due.len(), 4_024);
    let ids: Vec<OutboxId> = due.iter().map(|entry| entry.row.id).collect();
    subject.ledger.outbox_done(&ids).await?;
    assert_eq!(subject.ledger.outbox_stats(CONSUMER).await?, (0, NOW));
    Ok(())
}

pub(crate) async fn a_page_of_large_rows_ends_before_32_mib(subject: Subject) -> TestResult {
    let large = |n: usize| sent("a", &format!("large {n}"), vec![b'y'; 3 << 20]);
    let mut rows: Vec<OutboxRow> = (0..8).map(large).collect();
    for n in 0..8 {
        let dead = subject.bury(carrying(&format!("{n}"), vec![b'L'; 3 << 20])).await?;
        rows.push(copy_of(dead.id, dead.generation));
    }
    add(&subject, &rows, NOW).await?;
    let mut found = HashSet::new();
    for expected in [10, 6, 0] {
        let due = subject.ledger.outbox_due(256, LONG).await?;
        assert_eq!(due.len(), expected, "what does not fit is not held");
        assert!(due.iter().all(|entry| entry.row.outgoing.body.len() == 3 << 20));
        found.extend(due.into_iter().map(|entry| entry.row.id));
    }
    assert_eq!(found.len(), 16);
    Ok(())
}

pub(crate) async fn the_rows_of_a_message_are_found(subject: Subject) -> TestResult {
    let rows = [sent("a", "one", b"body".to_vec()), sent("b", "two", Vec::new())];
    add(&subject, &rows, NOW).await?;
    let found = subject.ledger.outbox_of_message(CONSUMER, &id("a")).await?;
    assert_eq!((found.len(), found[0].row.id), (1, rows[0].id));
    assert!(found[0].row.outgoing.body.is_empty(), "bodies are left out");
    assert_eq!(found[0].row.outgoing.properties, rows[0].outgoing.properties);
    assert_eq!(subject.ledger.outbox_of_message(CONSUMER, &id("A")).await?, []);
    assert_eq!(subject.ledger.outbox_of_message("another", &id("a")).await?, []);
    Ok(())
}
