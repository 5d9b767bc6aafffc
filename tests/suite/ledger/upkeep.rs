//! What hosts do besides messages: migrations, retention, leases.

use std::sync::Arc;
use std::time::Duration;

use hapax::ledger::Ledger;
use hapax::ledger::inbox::Status;
use hapax::ledger::parked::{CHUNK_BYTES, Carried, Incarnation, NewParked};
use hapax::ledger::upkeep::{RETENTION_PAGE, retention_lease};
use hapax::message::MessageId;
use hapax::outcome::Reason;
use hapax_tests::TestResult;

use crate::subject::*;

pub(crate) async fn migrating_twice_changes_nothing(subject: Subject) -> TestResult {
    let database = subject.ledger.database();
    subject.claim(&claims(["a"])).await?;
    assert_eq!(database.migrate(true).await?, []);
    assert_eq!(database.migrate(false).await?, []);
    subject.ledger.migrate().await?;
    assert!(subject.inbox("a").await?.is_some());

    for table in ["inbox", "parked", "parked_chunks", "outbox", "leases", "migrations"] {
        subject.sql(&format!("DROP TABLE hapax_{table}")).await?;
    }
    let would = database.migrate(true).await?;
    assert!(would.iter().any(|migration| migration.sql.contains("hapax_inbox")), "{would:?}");
    assert!(subject.sql("SELECT COUNT(*) FROM hapax_inbox").await.is_err(), "a dry run makes nothing");
    assert_eq!(database.migrate(false).await?, would);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_inbox").await?, 0);
    Ok(())
}

pub(crate) async fn what_limits_handlers_does_not_limit_the_ledgers_own_work(subject: Subject) -> TestResult {
    let database = Arc::clone(subject.ledger.database());
    let hasty = Ledger::open(Arc::new(Disguised { database, as_what: Disguise::Hasty })).await?;
    assert!(hasty.lease("a lease", HOST, LONG).await?);
    let mut other = subject.lane().await?;
    other.begin().await?;
    other.execute("UPDATE hapax_leases SET name = name", &[]).await?;
    let (renewed, let_go) = tokio::join!(hasty.lease("a lease", HOST, LONG), async {
        tokio::time::sleep(HASTE * 10).await;
        other.rollback().await
    });
    let_go?;
    assert_eq!(renewed, Ok(true));
    Ok(())
}

/// Retention from the first page to the last; returns how many pages there were, and how many rows went.
async fn forget(ledger: &Ledger, age: Duration) -> TestResult<(u32, u64)> {
    let (mut after, mut pages, mut gone) = (None, 0, 0);
    loop {
        let (next, went) = ledger.forget_completed(CONSUMER, age, after).await?;
        pages += 1;
        gone += went;
        match next {
            Some(key) => after = Some(key),
            None => return Ok((pages, gone)),
        }
    }
}

pub(crate) async fn retention_forgets_old_completed_ids_only(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    assert_eq!(forget(ledger, LONG).await?, (1, 0));
    let old: Vec<MessageId> = (0..2 * RETENTION_PAGE + 5).map(|n| id(&format!("old-{n}"))).collect();
    ledger.import_ids(CONSUMER, &old).await?;
    let parked = subject.retry(carried("old-parked"), LONG).await?;
    let dead = subject.bury(carried("old-dead")).await?;
    committed!(subject, |lane| ledger.claim(lane, "another", &claims(["old-1"])).await?);
    assert_eq!(forget(ledger, LONG).await?, (3, 0), "none is old enough");
    subject.age("hapax_inbox", "updated_at", LONG * 2).await?;
    subject.claim(&claims(["new-1", "new-2", "a new one"])).await?;
    let went = old.len() as u64;
    assert_eq!(forget(ledger, LONG).await?, (3, went));
    assert_eq!(forget(ledger, LONG).await?, (1, 0));
    assert_eq!(subject.status("old-parked").await?, Some((Status::Parked, Some(parked))));
    assert_eq!(subject.status("old-dead").await?, Some((Status::Dead, Some(dead.id))));
    assert!(subject.inbox("new-1").await?.is_some());
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_inbox").await?, 6, "the other consumer's row among them");
    Ok(())
}

pub(crate) async fn retention_forgets_discarded_dead_letters_whole(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let large = subject.bury(carrying("large", vec![0; 2 * CHUNK_BYTES])).await?;
    let kept = subject.bury(carrying("kept", vec![0; 2 * CHUNK_BYTES])).await?;
    // A conflict's own dead letter has an id, and not the inbox row of it.
    subject.claim(&claims(["original"])).await?;
    let apart = carrying("original", b"another body".to_vec());
    let without = Carried { id: None, ..carried("x") };
    let rows = [
        (apart.clone(), NewParked::dead_apart(apart.clone(), Reason::IdConflict, "another body", None)),
        (without.clone(), NewParked::dead_apart(without.clone(), Reason::NoId, "nothing found", None)),
    ];
    subject.park(None, &rows).await?;
    for id in [large.id, apart.row_id, without.row_id] {
        assert!(ledger.discard(&subject.row(id).await?).await?);
    }
    assert_eq!(ledger.forget_discarded(CONSUMER, LONG).await?, 0, "not old enough");
    subject.age("hapax_parked", "updated_at", LONG * 2).await?;
    assert_eq!(ledger.forget_discarded("another", LONG).await?, 0);
    assert_eq!(ledger.forget_discarded(CONSUMER, LONG).await?, 3);
    assert_eq!(ledger.forget_discarded(CONSUMER, LONG).await?, 0);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked").await?, 1);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked_chunks").await?, 2);
    assert_eq!(subject.inbox("large").await?, None, "it is absent, and may come again");
    assert_eq!(subject.status("kept").await?, Some((Status::Dead, Some(kept.id))));
    assert_eq!(subject.status("original").await?, Some((Status::Completed, None)));
    Ok(())
}

pub(crate) async fn a_lease_has_one_holder(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let (first, second) = (Incarnation::new(), Incarnation::new());
    assert!(ledger.lease("retention", first, LONG).await?);
    assert!(!ledger.lease("retention", second, LONG).await?);
    assert!(ledger.lease("retention", first, LONG).await?, "renewed");
    assert!(ledger.lease("another job", second, LONG).await?);
    subject.age("hapax_leases", "expires_at", LONG * 2).await?;
    assert!(ledger.lease("retention", second, LONG).await?, "it has expired");
    assert!(!ledger.lease("retention", first, LONG).await?);
    // A host that stops does not keep its successor from what it has begun.
    let to_forget = retention_lease(CONSUMER);
    assert!(ledger.lease(&to_forget, first, LONG).await?);
    ledger.end_leases(CONSUMER, second).await?;
    assert!(!ledger.lease(&to_forget, second, LONG).await?, "it is not the second's to end");
    ledger.end_leases(CONSUMER, first).await?;
    assert!(ledger.lease(&to_forget, second, LONG).await?);
    Ok(())
}

pub(crate) async fn of_many_that_want_a_lease_one_gets_it(subject: Subject) -> TestResult {
    let subject = Arc::new(subject);
    for round in 0..5 {
        let hosts: Vec<_> = (0..6)
            .map(|_| {
                let subject = Arc::clone(&subject);
                tokio::spawn(async move {
                    let ledger = Ledger::open(Arc::clone(subject.ledger.database())).await?;
                    ledger.lease(&format!("job {round}"), Incarnation::new(), LONG).await
                })
            })
            .collect();
        let mut holders = 0;
        for host in hosts {
            holders += u32::from(host.await??);
        }
        assert_eq!(holders, 1);
    }
    Ok(())
}
