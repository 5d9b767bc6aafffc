//! Rows that run: taken, fenced by a token, moved on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hapax::ledger::database::DbError;
use hapax::ledger::inbox::Status;
use hapax::ledger::parked::{
    CHUNK_BYTES, Carried, Incarnation, NewParked, ParkedId, ParkedMove, ParkedRow, Phase, RunToken, State, Take, Which,
};
use hapax::ledger::value::RowLimits;
use hapax::outcome::Reason;
use hapax_tests::TestResult;

use crate::subject::*;

const NOW: Duration = Duration::ZERO;

fn in_slot(name: &str, slot: u16) -> Carried {
    Carried { slot, ..carried(name) }
}

/// Writes one transition in a transaction of its own.
async fn moved(subject: &Subject, moves: &[ParkedMove]) -> Result<(), DbError> {
    committed!(subject, |lane| subject.ledger.move_parked(lane, moves).await?);
    Ok(())
}

pub(crate) async fn due_rows_are_taken_and_no_others(subject: Subject) -> TestResult {
    let due = subject.retry(carried("due"), NOW).await?;
    let deferred = subject.defer(carried("deferred"), NOW).await?;
    subject.retry(carried("later"), LONG).await?;
    subject.defer(carried("deferred for later"), LONG).await?;
    subject.bury(carried("dead")).await?;
    let discarded = subject.bury(carried("discarded")).await?;
    assert!(subject.ledger.discard(&discarded).await?);

    let (token, rows) = subject.take(Which::Innocent).await?;
    assert_eq!(keys(&rows), [due, deferred]);
    assert_eq!(subject.take(Which::Innocent).await?.1, [], "they run already");
    assert_eq!(subject.take(Which::Suspect).await?.1, []);
    for id in [due, deferred] {
        let row = subject.row(id).await?;
        assert_eq!((row.state, row.due_at), (State::Running, None));
        assert_eq!((row.run_token, row.incarnation), (Some(token), Some(HOST)));
        assert!(row.taken_at.is_some_and(|taken| taken >= row.updated_at));
    }
    let of_another = Take { consumer: "another", ..everything(Which::Innocent) };
    assert_eq!(subject.take_as(&of_another).await?.1, []);
    Ok(())
}

pub(crate) async fn a_lane_takes_its_own_slots_only(subject: Subject) -> TestResult {
    let mut ids = Vec::new();
    for slot in [0, 63, 64, 100, 127, 128, 255] {
        ids.push(subject.retry(in_slot(&format!("{slot}"), slot), NOW).await?);
    }
    let of = |slots| Take { slots, ..everything(Which::Innocent) };
    assert_eq!(keys(&subject.take_as(&of(64..=127)).await?.1), ids[2..5]);
    assert_eq!(keys(&subject.take_as(&of(255..=255)).await?.1), ids[6..]);
    assert_eq!(subject.take_as(&of(1..=62)).await?.1, []);
    assert_eq!(keys(&subject.take_as(&of(0..=255)).await?.1), [ids[0], ids[1], ids[5]]);
    Ok(())
}

pub(crate) async fn rows_are_taken_first_due_first_up_to_the_limit(subject: Subject) -> TestResult {
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(subject.retry(carried(&format!("{n}")), LONG).await?);
    }
    // All are due; the last one parked has been for longest.
    subject.age("hapax_parked", "due_at", LONG * 2).await?;
    for (minutes, id) in ids.iter().enumerate() {
        let row = subject.row(*id).await?;
        let digits = String::from_utf8(row.message.body.to_vec())?;
        assert_eq!(digits, minutes.to_string());
        let literal = subject.literal(digits.as_bytes());
        let sql = format!("UPDATE hapax_parked SET due_at = due_at - {minutes} * 60000 WHERE body = {literal}");
        subject.sql(&sql).await?;
    }
    let mut order = ids.clone();
    order.reverse();
    let some = Take { limit: 4, ..everything(Which::Innocent) };
    assert_eq!(keys(&subject.take_as(&some).await?.1), order[..4]);
    assert_eq!(keys(&subject.take_as(&some).await?.1), order[4..]);
    Ok(())
}

pub(crate) async fn lanes_never_take_the_same_row(subject: Subject) -> TestResult {
    let subject = Arc::new(subject);
    let rows: Vec<_> = (0..200)
        .map(|n| {
            let of = in_slot(&format!("{n}"), n);
            (of.clone(), NewParked::retry(of, 1, NOW, None))
        })
        .collect();
    subject.park(Some(Status::Parked), &rows).await?;
    let lanes: Vec<_> = (0..6)
        .map(|_| {
            let subject = Arc::clone(&subject);
            tokio::spawn(async move {
                let mut lane = subject.lane().await?;
                let some = Take { limit: 7, ..everything(Which::Innocent) };
                let mut taken = Vec::new();
                let mut misses = 0;
                // Another lane may have everything that this one finds; then it comes back, as lanes do.
                while misses < 20 {
                    match subject.ledger.take_due(lane.as_mut(), &some).await {
                        Ok((_, rows)) if rows.is_empty() => misses += 1,
                        Ok((_, rows)) => {
                            taken.extend(keys(&rows));
                            misses = 0;
                        }
                        Err(error) if lost_a_race(&error) => misses += 1,
                        Err(error) => return Err(error),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(taken)
            })
        })
        .collect();
    let mut all = Vec::new();
    for lane in lanes {
        all.extend(lane.await??);
    }
    let distinct: HashSet<ParkedId> = all.iter().copied().collect();
    assert_eq!((all.len(), distinct.len()), (200, 200));
    Ok(())
}

pub(crate) async fn a_row_that_somebody_has_locked_is_passed_over(subject: Subject) -> TestResult {
    if !subject.features().concurrent_writers {
        return Ok(());
    }
    let locked = subject.retry(in_slot("locked", 1), NOW).await?;
    let free = subject.retry(in_slot("free", 2), NOW).await?;
    let mut holder = subject.lane().await?;
    holder.begin().await?;
    let sql = format!("SELECT id FROM hapax_parked WHERE id = {} FOR UPDATE", subject.literal(&locked.0));
    assert_eq!(holder.query(&sql, &[], RowLimits::NONE).await?.rows.len(), 1);
    let mut lane = subject.impatient_lane().await?;
    let (_, rows) = subject.ledger.take_due(lane.as_mut(), &everything(Which::Innocent)).await?;
    assert_eq!(keys(&rows), [free]);
    holder.rollback().await?;
    Ok(())
}

/// Makes a row a suspect: its host dies once.
async fn suspect(subject: &Subject, name: &str) -> TestResult<ParkedId> {
    let id = subject.retry(carried(name), NOW).await?;
    let (_, rows) = subject.take(Which::Innocent).await?;
    assert_eq!(keys(&rows), [id]);
    assert_eq!(subject.crash(3).await?.len(), 1);
    assert_eq!(subject.row(id).await?.crashes, 1);
    Ok(id)
}

pub(crate) async fn a_suspect_runs_apart_from_the_others(subject: Subject) -> TestResult {
    let first = suspect(&subject, "first").await?;
    let second = suspect(&subject, "second").await?;
    let innocent = subject.retry(carried("innocent"), NOW).await?;
    assert_eq!(keys(&subject.take(Which::Innocent).await?.1), [innocent]);
    assert_eq!(subject.take(Which::Innocent).await?.1, []);
    assert_eq!(keys(&subject.take(Which::Suspect).await?.1), [first], "one at a time");
    assert_eq!(keys(&subject.take(Which::Suspect).await?.1), [second]);
    assert_eq!(subject.take(Which::Suspect).await?.1, []);
    Ok(())
}

pub(crate) async fn in_order_nothing_overtakes_what_is_not_due(subject: Subject) -> TestResult {
    let first = subject.retry(in_slot("first", 1), NOW).await?;
    let second = subject.defer(in_slot("second", 1), NOW).await?;
    let waiting = subject.retry(in_slot("waiting", 1), LONG).await?;
    subject.retry(in_slot("behind it", 1), NOW).await?;
    let elsewhere = subject.retry(in_slot("elsewhere", 2), NOW).await?;
    let of = |slots| Take { slots, ..in_order(Which::Innocent) };
    assert_eq!(keys(&subject.take_as(&of(2..=9)).await?.1), [elsewhere]);
    let (token, rows) = subject.take_as(&of(0..=1)).await?;
    assert_eq!(keys(&rows), [first, second]);
    committed!(subject, |lane| {
        subject.ledger.delete_parked(lane, token, &rows.iter().collect::<Vec<_>>()).await?;
    });
    assert_eq!(subject.take_as(&of(0..=1)).await?.1, [], "what waits is in front");
    subject.age("hapax_parked", "due_at", LONG).await?;
    let (_, rows) = subject.take_as(&of(0..=1)).await?;
    assert_eq!((rows.len(), rows[0].id), (2, waiting));
    Ok(())
}

pub(crate) async fn in_order_nothing_overtakes_a_running_row(subject: Subject) -> TestResult {
    let first = subject.retry(carried("first"), NOW).await?;
    subject.retry(carried("second"), NOW).await?;
    let one = Take { limit: 1, ..in_order(Which::Innocent) };
    let (token, rows) = subject.take_as(&one).await?;
    assert_eq!(keys(&rows), [first]);
    assert_eq!(subject.take_as(&in_order(Which::Innocent)).await?.1, []);

    // Also while a live transaction works on it, which is not waited for.
    let mut runner = subject.lane().await?;
    runner.begin().await?;
    assert_eq!(subject.ledger.lock_running(runner.as_mut(), token, &[first]).await?, [first]);
    if subject.features().concurrent_writers {
        let mut lane = subject.impatient_lane().await?;
        assert_eq!(subject.ledger.take_due(lane.as_mut(), &in_order(Which::Innocent)).await?.1, []);
    }
    runner.rollback().await?;
    Ok(())
}

pub(crate) async fn in_order_a_suspect_is_taken_alone(subject: Subject) -> TestResult {
    let before = carried("before");
    let suspect = suspect(&subject, "suspect").await?;
    let before = subject.retry(before, NOW).await?;
    let after = subject.retry(carried("after"), NOW).await?;
    let (innocent, alone) = (in_order(Which::Innocent), in_order(Which::Suspect));
    let mut lane = subject.lane().await?;
    assert!(!subject.ledger.is_due(lane.as_mut(), &alone).await?, "something is in front of it");
    assert_eq!(subject.take_as(&alone).await?.1, []);
    assert_eq!(keys(&subject.take_as(&innocent).await?.1), [before]);
    assert_eq!(subject.take_as(&innocent).await?.1, [], "it runs");
    subject.sql("DELETE FROM hapax_parked WHERE state = 2").await?;
    assert_eq!(subject.take_as(&innocent).await?.1, [], "a suspect is in front");
    assert!(subject.ledger.is_due(lane.as_mut(), &alone).await?);
    assert_eq!(keys(&subject.take_as(&alone).await?.1), [suspect]);
    subject.sql("DELETE FROM hapax_parked WHERE state = 2").await?;
    assert_eq!(subject.take_as(&alone).await?.1, []);
    assert_eq!(keys(&subject.take_as(&innocent).await?.1), [after]);
    Ok(())
}

pub(crate) async fn a_row_is_taken_in_the_phase_it_is_in(subject: Subject) -> TestResult {
    let (handle, compensate, deliver) = (carried("handle"), carried("compensate"), carried("deliver"));
    subject.retry(handle, NOW).await?;
    let row = NewParked::compensate(compensate.clone(), Reason::Permanent, 2, &failure("never"));
    subject.park(Some(Status::Parked), &[(compensate, row)]).await?;
    subject.defer(deliver, NOW).await?;
    let (_, rows) = subject.take(Which::Innocent).await?;
    let phases: Vec<_> = rows.iter().map(|row| (row.phase, row.state)).collect();
    let expected =
        [(Phase::Handle, State::Retry), (Phase::Compensate, State::Retry), (Phase::Deliver, State::Deferred)];
    assert_eq!(phases, expected, "in the state in which they were found");
    Ok(())
}

pub(crate) async fn large_bodies_are_taken_a_few_at_a_time(subject: Subject) -> TestResult {
    for name in ["a", "b", "c"] {
        subject.retry(carrying(name, vec![name.as_bytes()[0]; 30 * CHUNK_BYTES]), NOW).await?;
    }
    let (_, rows) = subject.take(Which::Innocent).await?;
    assert_eq!(rows.len(), 2, "90 MiB are too many for one lane");
    let (_, rows) = subject.take(Which::Innocent).await?;
    assert_eq!(rows.len(), 1);
    assert!(rows[0].message.body.iter().all(|byte| *byte == b'c'));
    assert_eq!(rows[0].message.body.len(), 30 * CHUNK_BYTES);
    Ok(())
}

pub(crate) async fn a_run_is_fenced_by_its_token(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    subject.retry(carried("a"), NOW).await?;
    subject.retry(carried("b"), NOW).await?;
    let (token, rows) = subject.take(Which::Innocent).await?;
    let wrong = RunToken(*b"somebody-else's!");
    let ids = keys(&rows);
    let mut lane = subject.lane().await?;

    lane.begin().await?;
    assert_eq!(ledger.lock_running(lane.as_mut(), wrong, &ids).await?, []);
    assert_eq!(ledger.lock_running(lane.as_mut(), token, &[]).await?, []);
    assert_eq!(ledger.lock_running(lane.as_mut(), token, &[ids[1], ParkedId::new(), ids[0]]).await?, ids);
    ledger.delete_parked(lane.as_mut(), token, &[]).await?;
    ledger.move_parked(lane.as_mut(), &[]).await?;
    lane.rollback().await?;

    // One of the two is enough to refuse both.
    let attempts: [(ParkedMove, ParkedMove); 2] = [
        (ParkedMove::put_off(&rows[0], wrong, NOW), ParkedMove::put_off(&rows[1], token, NOW)),
        (ParkedMove::put_off(&rows[0], token, NOW), ParkedMove::put_off(&rows[1], wrong, NOW)),
    ];
    for (first, second) in attempts {
        lane.begin().await?;
        assert_guarded(ledger.move_parked(lane.as_mut(), &[first, second]).await);
        lane.rollback().await?;
    }
    lane.begin().await?;
    assert_guarded(ledger.delete_parked(lane.as_mut(), wrong, &[&rows[0]]).await);
    lane.rollback().await?;
    for id in &ids {
        assert_eq!(subject.row(*id).await?.run_token, Some(token));
    }

    // Once a row has moved on, its token is of no use, not even when it runs again.
    moved(&subject, &[ParkedMove::retry(&rows[0], token, 1, NOW, None, None)]).await?;
    let (again, taken) = subject.take(Which::Innocent).await?;
    assert_eq!(keys(&taken), ids[..1]);
    assert_ne!(again, token);
    lane.begin().await?;
    assert_eq!(ledger.lock_running(lane.as_mut(), token, &ids).await?, ids[1..]);
    assert_guarded(ledger.move_parked(lane.as_mut(), &[ParkedMove::put_off(&rows[0], token, NOW)]).await);
    lane.rollback().await?;
    lane.begin().await?;
    assert_guarded(ledger.delete_parked(lane.as_mut(), token, &[&rows[0], &rows[1]]).await);
    lane.rollback().await?;
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked").await?, 2);
    Ok(())
}

/// How long after its last change a row is due.
fn delay(row: &ParkedRow) -> Option<i64> {
    row.due_at.map(|due| due - row.updated_at)
}

pub(crate) async fn a_retry_is_due_again_and_counted(subject: Subject) -> TestResult {
    let id = subject.retry(carried("a"), NOW).await?;
    for attempts in 2..=4 {
        let (token, row) = subject.take_one().await?;
        assert_eq!(row.attempts, attempts - 1);
        let why = failure(&format!("failure {attempts}"));
        let delay = Duration::from_millis(u64::from(attempts) * 100_001);
        moved(&subject, &[ParkedMove::retry(&row, token, attempts, delay, Some(&why), Some(*b"module-2"))]).await?;
        let row = subject.row(id).await?;
        assert_eq!(standing(&row), (State::Retry, true, attempts));
        assert_eq!(self::delay(&row), Some(i64::from(attempts) * 100_001));
        assert_eq!((row.handler_attempts, row.phase, row.generation), (0, Phase::Handle, 0));
        assert_eq!((row.run_token, row.incarnation, row.taken_at), (None, None, None));
        assert_eq!((row.failure(), row.module), (Some(why), Some(*b"module-2")));
        assert_eq!(subject.take(Which::Innocent).await?.1, [], "not due yet");
        subject.age("hapax_parked", "due_at", LONG).await?;
    }
    // Put off without a failure: what is known of the last one stays.
    let (token, row) = subject.take_one().await?;
    moved(&subject, &[ParkedMove::retry(&row, token, row.attempts, LONG, None, None)]).await?;
    let row = subject.row(id).await?;
    assert_eq!((row.attempts, row.failure(), row.module), (4, Some(failure("failure 4")), Some(*b"module-2")));
    Ok(())
}

pub(crate) async fn a_compensation_has_attempts_of_its_own(subject: Subject) -> TestResult {
    let id = subject.retry(carried("a"), NOW).await?;
    let (token, row) = subject.take_one().await?;
    let to = ParkedMove::compensate(&row, token, Reason::Exhausted, 5, &failure("the fifth"), Some(MODULE));
    moved(&subject, &[to]).await?;
    let row = subject.row(id).await?;
    assert_eq!(standing(&row), (State::Retry, true, 0));
    assert_eq!((row.phase, row.handler_attempts, delay(&row)), (Phase::Compensate, 5, Some(0)));
    assert_eq!((row.reason.as_deref(), row.failure()), (Some("exhausted"), Some(failure("the fifth"))));

    let (token, row) = subject.take_one().await?;
    moved(&subject, &[ParkedMove::retry(&row, token, 1, NOW, Some(&failure("refund")), None)]).await?;
    let row = subject.row(id).await?;
    assert_eq!((row.phase, row.attempts, row.handler_attempts), (Phase::Compensate, 1, 5));

    let (token, row) = subject.take_one().await?;
    moved(&subject, &[ParkedMove::compensated(&row, token)]).await?;
    let row = subject.row(id).await?;
    assert_eq!(standing(&row), (State::Dead, false, 1));
    assert_eq!((row.compensations, row.reason.as_deref()), (1, Some("exhausted")), "the reason it had");
    assert_eq!((row.handler_attempts, row.run_token), (5, None));
    Ok(())
}

pub(crate) async fn a_dead_row_is_never_due(subject: Subject) -> TestResult {
    let id = subject.retry(carried("a"), NOW).await?;
    let (token, row) = subject.take_one().await?;
    let to = ParkedMove::dead(&row, token, Reason::CompensationFailed, 9, Some(&failure("last")), Some(MODULE));
    moved(&subject, &[to]).await?;
    let row = subject.row(id).await?;
    assert_eq!(standing(&row), (State::Dead, false, 9));
    assert_eq!((row.reason.as_deref(), row.failure()), (Some("compensation-failed"), Some(failure("last"))));
    assert_eq!((row.run_token, row.taken_at), (None, None));
    for which in [Which::Innocent, Which::Suspect] {
        assert_eq!(subject.take(which).await?.1, []);
        assert_eq!(subject.take_as(&in_order(which)).await?.1, []);
    }
    assert_eq!(subject.ledger.due_slots(CONSUMER, LONG).await?, []);
    Ok(())
}

pub(crate) async fn a_deferred_row_is_deferred_again_claimed_or_deleted(subject: Subject) -> TestResult {
    let id = subject.defer(carried("a"), NOW).await?;
    let (token, row) = subject.take_one().await?;
    moved(&subject, &[ParkedMove::put_off(&row, token, NOW)]).await?;
    let row = subject.row(id).await?;
    assert_eq!((row.state, row.phase, row.attempts), (State::Deferred, Phase::Deliver, 0));

    // Its claim was new, and its handler failed: from now on it is the row that counts.
    let (token, row) = subject.take_one().await?;
    moved(&subject, &[ParkedMove::retry(&row, token, 1, NOW, Some(&failure("first")), None)]).await?;
    let row = subject.row(id).await?;
    assert_eq!((row.state, row.phase, row.attempts), (State::Retry, Phase::Handle, 1));

    let (token, row) = subject.take_one().await?;
    committed!(subject, |lane| subject.ledger.delete_parked(lane, token, &[&row]).await?);
    assert_eq!(subject.ledger.parked_row(id).await?, None);
    Ok(())
}

/// With delays and without, with texts short and long: on MariaDB they share the columns of a derived table.
pub(crate) async fn one_statement_makes_moves_of_all_kinds(subject: Subject) -> TestResult {
    let mut lane = subject.lane().await?;
    for round in 0..3_u32 {
        let mut ids = Vec::new();
        for n in 0..4 {
            ids.push(subject.retry(carried(&format!("{round}-{n}")), NOW).await?);
        }
        let (token, rows) = subject.take(Which::Innocent).await?;
        assert_eq!(keys(&rows), ids);
        let why = failure(&"why? ".repeat(1 + 800 * round as usize));
        let moves = [
            ParkedMove::dead(&rows[0], token, Reason::Permanent, 1, None, None),
            ParkedMove::retry(&rows[1], token, 2, Duration::from_millis(86_400_001), Some(&why), Some(*b"module-2")),
            ParkedMove::put_off(&rows[2], token, Duration::from_secs(30 * 365 * 86_400)),
            ParkedMove::compensate(&rows[3], token, Reason::Exhausted, 7, &failure("short"), None),
        ];
        lane.begin().await?;
        subject.ledger.move_parked(lane.as_mut(), &moves).await?;
        lane.commit().await?;
        let mut found = Vec::new();
        for id in &ids {
            found.push(subject.row(*id).await?);
        }
        let delays: Vec<_> = found.iter().map(delay).collect();
        assert_eq!(delays, [None, Some(86_400_001), Some(946_080_000_000), Some(0)]);
        assert_eq!((found[1].failure(), found[1].module), (Some(why), Some(*b"module-2")));
        assert_eq!((found[0].module, found[0].reason.as_deref()), (Some(MODULE), Some("permanent")));
        assert_eq!((found[3].handler_attempts, found[3].failure()), (7, Some(failure("short"))));
        subject.sql("DELETE FROM hapax_parked").await?;
    }
    // A delay as long as a Duration can be does not overflow.
    subject.retry(carried("for ever"), Duration::MAX).await?;
    assert_eq!(subject.take(Which::Innocent).await?.1, []);
    Ok(())
}

pub(crate) async fn what_is_given_back_is_not_counted(subject: Subject) -> TestResult {
    let retry = subject.retry(carried("retry"), NOW).await?;
    let deferred = subject.defer(carried("deferred"), NOW).await?;
    let compensate = carried("compensate");
    let row = NewParked::compensate(compensate.clone(), Reason::Permanent, 2, &failure("never"));
    subject.park(Some(Status::Parked), &[(compensate.clone(), row)]).await?;
    let (token, rows) = subject.take(Which::Innocent).await?;
    assert_eq!(rows.len(), 3);
    subject.ledger.give_back(CONSUMER, HOST, token, Duration::from_secs(2)).await?;
    for (id, state, phase, attempts) in [
        (retry, State::Retry, Phase::Handle, 1),
        (deferred, State::Deferred, Phase::Deliver, 0),
        (compensate.row_id, State::Retry, Phase::Compensate, 0),
    ] {
        let row = subject.row(id).await?;
        assert_eq!((row.state, row.phase, row.attempts, row.crashes), (state, phase, attempts, 0));
        assert_eq!((row.run_token, row.incarnation, row.taken_at), (None, None, None));
        assert_eq!(delay(&row), Some(2_000));
    }
    assert_eq!(subject.status("retry").await?, Some((Status::Parked, Some(retry))));
    Ok(())
}

pub(crate) async fn somebody_elses_rows_are_not_given_back(subject: Subject) -> TestResult {
    let id = subject.retry(carried("a"), NOW).await?;
    let (token, row) = subject.take_one().await?;
    let ledger = &subject.ledger;
    ledger.give_back(CONSUMER, Incarnation::new(), token, NOW).await?;
    ledger.give_back(CONSUMER, HOST, RunToken(*b"another run's tk"), NOW).await?;
    ledger.give_back("another", HOST, token, NOW).await?;
    assert_eq!(subject.row(id).await?.state, State::Running);
    // What has moved on already stays where it is.
    moved(&subject, &[ParkedMove::dead(&row, token, Reason::Permanent, 1, None, None)]).await?;
    ledger.give_back(CONSUMER, HOST, token, NOW).await?;
    assert_eq!(subject.row(id).await?.state, State::Dead);
    Ok(())
}

pub(crate) async fn the_clock_says_which_slots_are_due_and_when(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    assert_eq!(ledger.due_slots(CONSUMER, LONG).await?, []);
    subject.retry(in_slot("1a", 1), Duration::from_secs(300)).await?;
    subject.retry(in_slot("1b", 1), Duration::from_secs(200)).await?;
    subject.defer(in_slot("200", 200), NOW).await?;
    subject.retry(in_slot("3", 3), Duration::from_secs(3_000)).await?;
    subject.bury(in_slot("4", 4)).await?;
    let mut found = ledger.due_slots(CONSUMER, LONG).await?;
    found.sort();
    let slots: Vec<u16> = found.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, [1, 200], "3 is beyond the horizon, 4 is dead");
    let bounds = Duration::from_secs(100)..=Duration::from_secs(200);
    assert!(bounds.contains(&found[0].1), "{found:?}");
    assert_eq!(found[1].1, Duration::ZERO);
    subject.take(Which::Innocent).await?;
    assert_eq!(ledger.due_slots(CONSUMER, Duration::from_secs(1)).await?, [], "what runs is not due");
    assert_eq!(ledger.due_slots(CONSUMER, Duration::from_secs(3_001)).await?.len(), 2);
    assert_eq!(ledger.due_slots("another", LONG).await?, []);
    Ok(())
}

pub(crate) async fn slots_are_blocked_by_what_is_pending(subject: Subject) -> TestResult {
    subject.retry(in_slot("later", 1), LONG).await?;
    subject.defer(in_slot("deferred", 2), LONG).await?;
    subject.retry(in_slot("running", 3), NOW).await?;
    subject.take_one().await?;
    subject.bury(in_slot("dead", 4)).await?;
    committed!(subject, |lane| {
        for (slot, expected) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
            let blocked = subject.ledger.slots_blocked(lane, CONSUMER, slot..=slot).await?;
            assert_eq!(blocked, expected, "slot {slot}");
        }
        assert!(subject.ledger.slots_blocked(lane, CONSUMER, 0..=255).await?);
        assert!(!subject.ledger.slots_blocked(lane, "another", 0..=255).await?);
    });
    Ok(())
}

pub(crate) async fn rows_are_counted_by_state(subject: Subject) -> TestResult {
    assert_eq!(subject.ledger.parked_counts(CONSUMER, ALL_STATES).await?, []);
    subject.retry(carried("running"), NOW).await?;
    subject.take_one().await?;
    for name in ["a", "b", "c"] {
        subject.retry(carried(name), LONG).await?;
    }
    subject.defer(carried("a"), LONG).await?;
    subject.defer(carried("a"), LONG).await?;
    let discarded = subject.bury(carried("dead")).await?;
    subject.ledger.discard(&discarded).await?;
    let mut counts = subject.ledger.parked_counts(CONSUMER, ALL_STATES).await?;
    counts.sort_by_key(|(state, _)| state.code());
    assert_eq!(counts, [(State::Retry, 3), (State::Running, 1), (State::Deferred, 2), (State::Discarded, 1)]);
    Ok(())
}
