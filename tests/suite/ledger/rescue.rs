//! Rows whose runner was lost.

use std::time::Duration;

use hapax::ledger::inbox::Status;
use hapax::ledger::outbox::{OutboxId, OutboxRow};
use hapax::ledger::parked::{CHUNK_BYTES, NewParked, ParkedId, ParkedMove, ParkedRow, Phase, State, Which};
use hapax::ledger::upkeep::Rescued;
use hapax::outcome::Reason;
use hapax_tests::TestResult;

use crate::outbox::copy_of;
use crate::subject::*;

const NOW: Duration = Duration::ZERO;

pub(crate) async fn a_row_is_rescued_once_its_time_has_passed(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let id = subject.retry(carried("a"), NOW).await?;
    let (token, _) = subject.take_one().await?;
    let policy = rescue_after(Duration::from_secs(300), 3);
    assert_eq!(ledger.rescue(CONSUMER, RESCUER, policy, |_| None).await?, [], "its time has not passed");
    subject.age("hapax_parked", "taken_at", Duration::from_secs(301)).await?;
    assert_eq!(ledger.rescue("another", RESCUER, policy, |_| None).await?, []);

    let rescued = ledger
        .rescue(CONSUMER, RESCUER, hapax::ledger::upkeep::RescuePolicy { delay: LONG, ..policy }, |_| None)
        .await?;
    assert!(matches!(&rescued[..], [Rescued::Retried(row)] if row.id == id), "{rescued:?}");
    let row = subject.row(id).await?;
    assert_eq!((row.state, row.attempts, row.crashes), (State::Retry, 1, 1), "a crash, not an attempt");
    assert_eq!(row.due_at.map(|due| due - row.updated_at), Some(600_000));
    assert_eq!((row.run_token, row.incarnation, row.taken_at), (None, None, None));
    assert_eq!(ledger.rescue(CONSUMER, RESCUER, policy, |_| None).await?, []);

    // Its runner, alive after all, finds that it is no longer its own.
    committed!(subject, |lane| {
        assert_eq!(ledger.lock_running(lane, token, &[id]).await?, []);
    });
    Ok(())
}

pub(crate) async fn a_row_that_a_live_transaction_works_on_is_not_rescued(subject: Subject) -> TestResult {
    if !subject.features().concurrent_writers {
        return Ok(());
    }
    let ledger = &subject.ledger;
    let busy = subject.retry(carried("busy"), NOW).await?;
    let lost = subject.retry(carried("lost"), NOW).await?;
    let (token, _) = subject.take(Which::Innocent).await?;
    subject.age("hapax_parked", "taken_at", LONG * 2).await?;
    let mut runner = subject.lane().await?;
    runner.begin().await?;
    assert_eq!(ledger.lock_running(runner.as_mut(), token, &[busy]).await?, [busy]);

    let rescued = ledger.rescue(CONSUMER, RESCUER, rescue_after(Duration::from_secs(1), 3), |_| None).await?;
    assert!(matches!(&rescued[..], [Rescued::Retried(row)] if row.id == lost), "{rescued:?}");
    runner.rollback().await?;
    let rescued = ledger.rescue(CONSUMER, RESCUER, rescue_after(Duration::from_secs(1), 3), |_| None).await?;
    assert!(matches!(&rescued[..], [Rescued::Retried(row)] if row.id == busy), "{rescued:?}");
    Ok(())
}

pub(crate) async fn a_rescued_row_goes_back_to_the_phase_it_was_in(subject: Subject) -> TestResult {
    let deferred = subject.defer(carried("deferred"), NOW).await?;
    let compensate = carried("compensate");
    let row = NewParked::compensate(compensate.clone(), Reason::Permanent, 2, &failure("never"));
    subject.park(Some(Status::Parked), &[(compensate.clone(), row)]).await?;
    subject.take(Which::Innocent).await?;
    assert_eq!(subject.crash(3).await?.len(), 2);
    let row = subject.row(deferred).await?;
    assert_eq!((row.state, row.phase, row.crashes), (State::Deferred, Phase::Deliver, 1));
    let row = subject.row(compensate.row_id).await?;
    assert_eq!((row.state, row.phase, row.crashes, row.handler_attempts), (State::Retry, Phase::Compensate, 1, 2));
    assert_eq!((row.reason.as_deref(), row.failure()), (Some("permanent"), Some(failure("never"))));
    Ok(())
}

pub(crate) async fn an_orderly_end_forgives_crashes(subject: Subject) -> TestResult {
    let id = subject.retry(carried("a"), NOW).await?;
    subject.take_one().await?;
    subject.crash(3).await?;
    let (_, rows) = subject.take(Which::Suspect).await?;
    subject.crash(3).await?;
    assert_eq!((rows[0].crashes, subject.row(id).await?.crashes), (1, 2));

    // Given back by its own host: neither a crash nor an end.
    let (token, _) = subject.take(Which::Suspect).await?;
    subject.ledger.give_back(CONSUMER, HOST, token, NOW).await?;
    assert_eq!(subject.row(id).await?.crashes, 2);

    // Somebody else held its lock: it has not been run.
    let (token, rows) = subject.take(Which::Suspect).await?;
    committed!(subject, |lane| {
        subject.ledger.move_parked(lane, &[ParkedMove::put_off(&rows[0], token, NOW)]).await?;
    });
    assert_eq!(subject.row(id).await?.crashes, 2);

    let (token, rows) = subject.take(Which::Suspect).await?;
    committed!(subject, |lane| {
        let to = ParkedMove::retry(&rows[0], token, 2, NOW, Some(&failure("orderly")), None);
        subject.ledger.move_parked(lane, &[to]).await?;
    });
    assert_eq!(subject.row(id).await?.crashes, 0);
    assert_eq!(keys(&subject.take(Which::Innocent).await?.1), [id]);
    Ok(())
}

/// Takes and loses a row until it has died, and returns how often that took.
async fn kill(subject: &Subject, max_crashes: u32, copy: impl Fn(&ParkedRow) -> Option<OutboxRow>) -> TestResult<u32> {
    for crash in 1..=10 {
        let (_, mut taken) = subject.take(Which::Innocent).await?;
        taken.extend(subject.take(Which::Suspect).await?.1);
        assert_eq!(taken.len(), 1);
        subject.age("hapax_parked", "taken_at", LONG * 2).await?;
        match &subject.ledger.rescue(CONSUMER, RESCUER, rescue_after(LONG, max_crashes), &copy).await?[..] {
            [Rescued::Retried(_)] => {}
            [Rescued::Dead(_)] => return Ok(crash),
            other => panic!("{other:?}"),
        }
    }
    Ok(u32::MAX)
}

pub(crate) async fn past_the_limit_a_row_is_dead_with_a_copy(subject: Subject) -> TestResult {
    let body = vec![b'x'; CHUNK_BYTES + 5];
    let of = carrying("large", body.clone());
    let large = subject.retry(of, NOW).await?;
    assert_eq!(kill(&subject, 3, |row| Some(copy_of(row.id, row.generation))).await?, 4, "past three");
    let row = subject.row(large).await?;
    assert_eq!((row.state, row.due_at, row.crashes, row.attempts), (State::Dead, None, 4, 1));
    assert_eq!((row.reason.as_deref(), row.run_token), (Some("crashed"), None));
    assert!(row.error.is_some_and(|error| error.contains("4 times")));
    assert_eq!(subject.status("large").await?, Some((Status::Dead, Some(large))));
    let due = subject.ledger.outbox_due(10, LONG).await?;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].row.id, OutboxId::of_copy(large, 0));
    assert!(due[0].row.outgoing.body == body);

    // With a limit of none the first crash is the last.
    let at_once = subject.retry(carried("at once"), NOW).await?;
    assert_eq!(kill(&subject, 0, |_| None).await?, 1);
    assert_eq!(subject.status("at once").await?, Some((Status::Dead, Some(at_once))));

    // Its compensation kills too.
    let of = carried("compensate");
    let row = NewParked::compensate(of.clone(), Reason::Exhausted, 5, &failure("never"));
    subject.park(Some(Status::Parked), &[(of.clone(), row)]).await?;
    assert_eq!(kill(&subject, 1, |_| None).await?, 2);
    let row = subject.row(of.row_id).await?;
    assert_eq!((row.state, row.phase, row.compensations), (State::Dead, Phase::Compensate, 0));
    assert_eq!((row.reason.as_deref(), row.handler_attempts), (Some("crashed"), 5));
    Ok(())
}

pub(crate) async fn a_stored_delivery_dies_under_its_own_id_only(subject: Subject) -> TestResult {
    let free = subject.defer(carried("free"), NOW).await?;
    assert_eq!(kill(&subject, 1, |_| None).await?, 2);
    assert_eq!(subject.status("free").await?, Some((Status::Dead, Some(free))));
    assert_eq!(subject.inbox("free").await?.and_then(|row| row.digest), Some(digest("free")));

    subject.claim(&claims(["taken"])).await?;
    let taken = subject.defer(carried("taken"), NOW).await?;
    assert_eq!(kill(&subject, 1, |_| None).await?, u32::MAX, "it cannot die");
    let row = subject.row(taken).await?;
    assert_eq!((row.state, row.phase, row.crashes), (State::Deferred, Phase::Deliver, 10));
    assert_eq!(subject.status("taken").await?, Some((Status::Completed, None)), "and leaves the inbox alone");
    Ok(())
}

pub(crate) async fn one_row_that_somebody_edited_keeps_no_other_from_rescue(subject: Subject) -> TestResult {
    let edited = subject.retry(carried("edited"), NOW).await?;
    let other = subject.retry(carried("other"), NOW).await?;
    subject.take(Which::Innocent).await?;
    subject.age("hapax_parked", "taken_at", LONG * 2).await?;
    committed!(subject, |lane| subject.ledger.unclaim(lane, CONSUMER, &[&id("edited")]).await?);
    let rescued = subject.ledger.rescue(CONSUMER, RESCUER, rescue_after(LONG, 0), |_| None).await?;
    assert_eq!(rescued.len(), 2, "{rescued:?}");
    for (id, owner) in [(edited, None::<ParkedId>), (other, Some(other))] {
        let row = subject.row(id).await?;
        assert_eq!((row.state, row.reason.as_deref()), (State::Dead, Some("crashed")));
        let name = row.message_id.expect("an id");
        assert_eq!(subject.inbox(name.as_str()).await?.and_then(|row| row.parked_id), owner);
    }
    Ok(())
}

pub(crate) async fn the_rows_of_a_host_that_lives_are_not_rescued(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let id = subject.retry(carried("a"), NOW).await?;
    let (token, _) = subject.take_one().await?;
    subject.age("hapax_parked", "taken_at", LONG * 2).await?;
    let policy = rescue_after(Duration::from_secs(1), 3);
    assert_eq!(ledger.rescue(CONSUMER, HOST, policy, |_| None).await?, [], "its own host knows better");

    let mut lane = subject.lane().await?;
    ledger.sign_of_life(lane.as_mut(), CONSUMER, HOST, LONG).await?;
    ledger.sign_of_life(lane.as_mut(), CONSUMER, HOST, LONG).await?;
    assert_eq!(ledger.rescue(CONSUMER, RESCUER, policy, |_| None).await?, [], "it is slow, not lost");
    subject.age("hapax_leases", "expires_at", LONG * 2).await?;
    assert!(matches!(&ledger.rescue(CONSUMER, RESCUER, policy, |_| None).await?[..], [Rescued::Retried(_)]));
    assert_eq!(subject.row(id).await?.crashes, 1);

    // Signs of life are a consumer's own, and end with it.
    let (again, _) = subject.take(Which::Suspect).await?;
    assert_ne!(again, token);
    subject.age("hapax_parked", "taken_at", LONG * 2).await?;
    ledger.sign_of_life(lane.as_mut(), "another", HOST, LONG).await?;
    ledger.sign_of_life(lane.as_mut(), CONSUMER, HOST, LONG).await?;
    ledger.forget_hosts(CONSUMER, NOW).await?;
    assert_eq!(ledger.rescue(CONSUMER, RESCUER, policy, |_| None).await?, [], "only the expired are forgotten");
    ledger.end_leases(CONSUMER, HOST).await?;
    assert!(matches!(&ledger.rescue(CONSUMER, RESCUER, policy, |_| None).await?[..], [Rescued::Retried(_)]));
    Ok(())
}

pub(crate) async fn runs_of_which_their_own_host_knows_nothing_are_found(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let id = subject.retry(carried("a"), NOW).await?;
    assert!(!ledger.is_anything_running(CONSUMER).await?, "it waits");
    let (token, _) = subject.take_one().await?;
    assert!(ledger.is_anything_running(CONSUMER).await?);
    assert!(!ledger.is_anything_running("another").await?);
    let age = Duration::from_secs(60);
    assert_eq!(ledger.strays(CONSUMER, HOST, age, |_| false).await?, [], "its time has not passed");
    subject.age("hapax_parked", "taken_at", LONG).await?;
    assert_eq!(ledger.strays(CONSUMER, HOST, age, |known| known == token).await?, []);
    assert_eq!(ledger.strays(CONSUMER, RESCUER, age, |_| false).await?, [], "another host's");
    assert_eq!(ledger.strays(CONSUMER, HOST, age, |_| false).await?, [token]);
    ledger.give_back(CONSUMER, HOST, token, NOW).await?;
    assert_eq!((subject.row(id).await?.state, subject.row(id).await?.crashes), (State::Retry, 0));
    Ok(())
}
