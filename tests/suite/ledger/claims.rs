//! Claims: the unique key decides who handles a message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hapax::ledger::database::{Dialect, Features};
use hapax::ledger::inbox::{Claim, Claimed, InboxRow, Status};
use hapax::ledger::parked::{NewParked, ParkedId};
use hapax::message::MessageId;
use hapax::outcome::Reason;
use hapax_tests::TestResult;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::subject::*;

pub(crate) async fn the_back_end_says_what_it_can_do(subject: Subject) -> TestResult {
    let Features { concurrent_writers, insert_returning, shared } = subject.features();
    let is_server = subject.dialect() != Dialect::Sqlite;
    assert_eq!((concurrent_writers, shared), (is_server, is_server));
    assert!(insert_returning || subject.dialect() == Dialect::MySql);
    subject.ledger.probe().await?;
    Ok(())
}

pub(crate) async fn no_ids_are_no_trouble(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    committed!(subject, |lane| {
        assert_eq!(ledger.claim(lane, CONSUMER, &[]).await?, []);
        assert!(ledger.existing(lane, CONSUMER, &[]).await?.is_empty());
        ledger.unclaim(lane, CONSUMER, &[]).await?;
        ledger.move_inbox(lane, CONSUMER, &[]).await?;
    });
    assert_eq!(ledger.import_ids(CONSUMER, &[]).await?, 0);
    Ok(())
}

pub(crate) async fn free_ids_are_all_new_however_many(subject: Subject) -> TestResult {
    // The last is the largest batch that a config may ask for.
    for count in [1, 2, 64, 1000, 4096] {
        let batch = claims((0..count).map(|n| format!("{count}-{n}")));
        let found = subject.claim(&batch).await?;
        assert_eq!(found.len(), count);
        assert!(found.iter().all(|found| *found == Claimed::New), "{count}");
        let again = subject.claim(&batch).await?;
        assert!(again.iter().all(|found| matches!(found, Claimed::Existing(_))), "{count}");
    }
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_inbox").await?, 5163);
    Ok(())
}

pub(crate) async fn existing_ids_answer_what_they_are_in_the_order_asked(subject: Subject) -> TestResult {
    let (parked, dead) = (carried("parked"), carried("dead"));
    subject.claim(&claims(["completed"])).await?;
    subject.retry(parked.clone(), LONG).await?;
    subject.bury(dead.clone()).await?;
    subject.ledger.import_ids(CONSUMER, &[id("imported")]).await?;
    let existing = |status, parked_id: Option<ParkedId>, name: Option<&str>| {
        Claimed::Existing(InboxRow { status, parked_id, digest: name.map(digest) })
    };
    let expected = [
        ("zebra", Claimed::New),
        ("completed", existing(Status::Completed, None, Some("completed"))),
        ("imported", existing(Status::Completed, None, None)),
        ("a new one", Claimed::New),
        ("parked", existing(Status::Parked, Some(parked.row_id), Some("parked"))),
        ("dead", existing(Status::Dead, Some(dead.row_id), Some("dead"))),
        ("middle", Claimed::New),
    ];
    let found = subject.claim(&claims(expected.iter().map(|(name, _)| name))).await?;
    assert_eq!(found, expected.iter().map(|(_, claimed)| claimed.clone()).collect::<Vec<_>>());

    for (name, claimed) in &expected {
        let Claimed::Existing(row) = claimed else { continue };
        assert!(row.is_same_message(digest(name)), "{name}");
        assert_eq!(row.is_same_message(digest("another body")), *name == "imported", "{name}");
        let other = Claim { digest: Some(digest("another body")), ..claim(name) };
        assert_eq!(subject.claim(&[other]).await?, std::slice::from_ref(claimed), "nothing of {name} has changed");
    }
    Ok(())
}

pub(crate) async fn ids_are_compared_as_bytes(subject: Subject) -> TestResult {
    let long = "é".repeat(127);
    let (long_a, long_b) = (format!("{long}a"), format!("{long}b"));
    assert_eq!(long_a.len(), 255);
    let names = [
        "order-1",
        "Order-1",
        "order-1 ",
        " order-1",
        "order-1\t",
        "straße",
        "strasse",
        "STRASSE",
        "é",
        "e\u{301}",
        "e",
        "日本語",
        "%",
        "_",
        "\\",
        "'",
        "\"",
        "a\u{1}",
        "\u{feff}a",
        "0",
        "00",
        &long_a,
        &long_b,
        &long,
    ];
    let found = subject.claim(&claims(names)).await?;
    assert!(found.iter().all(|found| *found == Claimed::New), "{found:?}");
    for name in names {
        let found = subject.claim(&claims([name])).await?;
        assert!(matches!(&found[..], [Claimed::Existing(row)] if row.digest == Some(digest(name))), "{name:?}");
    }
    Ok(())
}

pub(crate) async fn consumers_have_ids_of_their_own(subject: Subject) -> TestResult {
    subject.claim(&claims(["a"])).await?;
    let found = committed!(subject, |lane| subject.ledger.claim(lane, "another", &claims(["a"])).await?);
    assert_eq!(found, [Claimed::New]);
    let found = committed!(subject, |lane| subject.ledger.claim(lane, "Reduce-Stock", &claims(["a"])).await?);
    assert_eq!(found, [Claimed::New], "names of consumers are compared as bytes too");
    Ok(())
}

pub(crate) async fn what_was_unclaimed_is_free_again(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    committed!(subject, |lane| {
        ledger.claim(lane, CONSUMER, &claims(["a", "b", "c"])).await?;
        ledger.unclaim(lane, CONSUMER, &[&id("c"), &id("a")]).await?;
    });
    assert_eq!(subject.status("b").await?, Some((Status::Completed, None)));
    assert_eq!(subject.claim(&claims(["a", "c"])).await?, [Claimed::New, Claimed::New]);

    let mut lane = subject.lane().await?;
    lane.begin().await?;
    assert_guarded(ledger.unclaim(lane.as_mut(), CONSUMER, &[&id("a"), &id("never there")]).await);
    lane.rollback().await?;
    assert!(subject.inbox("a").await?.is_some());
    Ok(())
}

pub(crate) async fn a_claim_that_was_rolled_back_leaves_nothing(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let mut lane = subject.lane().await?;
    lane.begin().await?;
    assert_eq!(ledger.claim(lane.as_mut(), CONSUMER, &claims(["a"])).await?, [Claimed::New]);
    lane.rollback().await?;
    assert_eq!(subject.inbox("a").await?, None);

    // What was claimed before a savepoint stays, what came after it does not.
    lane.begin().await?;
    ledger.claim(lane.as_mut(), CONSUMER, &claims(["before"])).await?;
    lane.savepoint().await?;
    ledger.claim(lane.as_mut(), CONSUMER, &claims(["after"])).await?;
    lane.rollback_to_savepoint().await?;
    lane.commit().await?;
    assert!(subject.inbox("before").await?.is_some());
    assert_eq!(subject.inbox("after").await?, None);
    Ok(())
}

/// Claims `b` and `c` in one transaction, and lets another one want `a` and `b` meanwhile.
async fn second_claim(subject: Subject, commit: bool) -> TestResult<(Vec<Claimed>, Arc<Subject>)> {
    let subject = Arc::new(subject);
    let mut first = subject.lane().await?;
    first.begin().await?;
    subject.ledger.claim(first.as_mut(), CONSUMER, &claims(["b", "c"])).await?;
    let second = tokio::spawn({
        let subject = Arc::clone(&subject);
        async move { subject.claim(&claims(["b", "a"])).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!second.is_finished(), "the second did not wait");
    if commit {
        first.commit().await?;
    } else {
        first.rollback().await?;
    }
    Ok((second.await??, subject))
}

pub(crate) async fn a_second_claim_waits_and_finds_the_first(subject: Subject) -> TestResult {
    let (found, _) = second_claim(subject, true).await?;
    let first = InboxRow { status: Status::Completed, digest: Some(digest("b")), parked_id: None };
    assert_eq!(found, [Claimed::Existing(first), Claimed::New]);
    Ok(())
}

pub(crate) async fn a_second_claim_waits_and_takes_what_was_rolled_back(subject: Subject) -> TestResult {
    let (found, subject) = second_claim(subject, false).await?;
    assert_eq!(found, [Claimed::New, Claimed::New]);
    assert_eq!(subject.inbox("c").await?, None);
    Ok(())
}

pub(crate) async fn a_claim_gives_up_after_the_lock_time_out(subject: Subject) -> TestResult {
    let mut first = subject.lane().await?;
    first.begin().await?;
    subject.ledger.claim(first.as_mut(), CONSUMER, &claims(["a"])).await?;

    let mut second = subject.impatient_lane().await?;
    let started = Instant::now();
    let claimed = async {
        // Where there is one writer, it is the transaction that waits.
        second.begin().await?;
        subject.ledger.claim(second.as_mut(), CONSUMER, &claims(["a", "b"])).await
    };
    assert_contention(claimed.await);
    let waited = started.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    second.rollback().await?;

    first.commit().await?;
    second.begin().await?;
    let found = subject.ledger.claim(second.as_mut(), CONSUMER, &claims(["a", "b"])).await?;
    assert!(matches!(&found[..], [Claimed::Existing(_), Claimed::New]), "{found:?}");
    second.commit().await?;
    Ok(())
}

pub(crate) async fn batches_that_overlap_do_not_deadlock(subject: Subject) -> TestResult {
    let subject = Arc::new(subject);
    let names: Arc<Vec<String>> = Arc::new((0..120).map(|n| format!("id-{n}")).collect());
    let lanes: Vec<_> = (0..8)
        .map(|_| {
            let (subject, names) = (Arc::clone(&subject), Arc::clone(&names));
            tokio::spawn(async move {
                let mut new: Vec<MessageId> = Vec::new();
                for _ in 0..10 {
                    let mut some: Vec<&String> = names.choose_multiple(&mut rand::rng(), 24).collect();
                    some.shuffle(&mut rand::rng());
                    let batch = claims(some);
                    let found = subject.claim(&batch).await?;
                    let ours = batch.into_iter().zip(found).filter(|(_, found)| *found == Claimed::New);
                    new.extend(ours.map(|(claim, _)| claim.id));
                }
                Ok::<_, hapax::ledger::database::DbError>(new)
            })
        })
        .collect();
    let mut winners: HashMap<MessageId, u32> = HashMap::new();
    for lane in lanes {
        for id in lane.await?? {
            *winners.entry(id).or_default() += 1;
        }
    }
    assert!(winners.values().all(|count| *count == 1), "{winners:?}");
    let rows = subject.count("SELECT COUNT(*) FROM hapax_inbox").await?;
    assert_eq!(rows, i64::try_from(winners.len())?);
    Ok(())
}

pub(crate) async fn imported_ids_are_completed_without_a_body(subject: Subject) -> TestResult {
    let dead = subject.bury(carried("dead")).await?;
    let ids: Vec<MessageId> = ["a", "b", "a", "dead", "B"].map(id).to_vec();
    assert_eq!(subject.ledger.import_ids(CONSUMER, &ids).await?, 3, "a comes twice, dead is there");
    assert_eq!(subject.ledger.import_ids(CONSUMER, &ids).await?, 0);
    let row = InboxRow { status: Status::Completed, digest: None, parked_id: None };
    assert_eq!(subject.inbox("a").await?.as_ref(), Some(&row));
    assert!(row.is_same_message(digest("any body")));
    assert_eq!(subject.status("dead").await?, Some((Status::Dead, Some(dead.id))));

    let many: Vec<MessageId> = (0..12_000).map(|n| id(&format!("{n:019}"))).collect();
    assert_eq!(subject.ledger.import_ids(CONSUMER, &many).await?, 12_000);

    // A conflict with an imported id cannot be told; a dead letter of its own leaves the inbox alone.
    let apart = carried("a");
    let row = NewParked::dead_apart(apart.clone(), Reason::IdConflict, "another body", None);
    subject.park(None, &[(apart, row)]).await?;
    assert_eq!(subject.status("a").await?, Some((Status::Completed, None)));
    Ok(())
}
