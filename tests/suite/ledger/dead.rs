//! Dead letters, as operators and returning copies act on them.

use std::sync::Arc;
use std::time::Duration;

use hapax::ledger::dead::{Filter, Redriven};
use hapax::ledger::inbox::{InboxMove, Status};
use hapax::ledger::parked::{CHUNK_BYTES, Carried, NewParked, ParkedId, ParkedMove, ParkedRow, Phase, State, Which};
use hapax::outcome::Reason;
use hapax_tests::TestResult;

use crate::subject::*;

const NOW: Duration = Duration::ZERO;

pub(crate) async fn dead_letters_are_listed_page_by_page(subject: Subject) -> TestResult {
    let mut ids = Vec::new();
    for n in 0..25 {
        let body = if n == 3 { vec![b'x'; 2 * CHUNK_BYTES] } else { b"body".to_vec() };
        ids.push(subject.bury(carrying(&format!("{n}"), body)).await?.id);
        subject.retry(carried(&format!("not dead {n}")), LONG).await?;
    }
    let mut found: Vec<ParkedRow> = Vec::new();
    loop {
        let page = subject.ledger.dead_letters(&Filter::default(), found.last().map(|row| row.id), 10).await?;
        let full = page.len() == 10;
        found.extend(page);
        if !full {
            break;
        }
    }
    assert_eq!(keys(&found), ids);
    assert!(found.iter().all(|row| row.message.body.is_empty() && row.body_bytes > 0), "bodies are left out");
    assert_eq!(found[3].body_bytes as usize, 2 * CHUNK_BYTES);
    assert_eq!(found[3].failure(), Some(failure("never")));
    assert_eq!(subject.ledger.dead_letters(&Filter::default(), found.last().map(|row| row.id), 10).await?, []);
    Ok(())
}

pub(crate) async fn dead_letters_are_filtered(subject: Subject) -> TestResult {
    let permanent = subject.bury(carried("permanent")).await?;
    let of = carried("no code");
    let row = NewParked::dead(of.clone(), Reason::Exhausted, 5, None);
    subject.park(Some(Status::Dead), &[(of.clone(), row)]).await?;
    let elsewhere = carried("elsewhere");
    let row = NewParked::dead_apart(elsewhere.clone(), Reason::NoId, "nothing found", None);
    committed!(subject, |lane| subject.ledger.park(lane, "another", std::slice::from_ref(&row)).await?);
    let all = [permanent.id, of.row_id, elsewhere.row_id];
    subject.sql("UPDATE hapax_parked SET updated_at = 1000").await?;
    subject.sql("UPDATE hapax_parked SET updated_at = 2000 WHERE reason = 'exhausted'").await?;

    let consumer = |name: &str| Filter { consumer: Some(name.into()), ..Filter::default() };
    let reason = |name: &str| Filter { reason: Some(name.into()), ..Filter::default() };
    let code = |name: &str| Filter { code: Some(name.into()), ..Filter::default() };
    let time = |since, until| Filter { since, until, ..Filter::default() };
    let cases: [(Filter, &[ParkedId]); 11] = [
        (Filter::default(), &all),
        (consumer(CONSUMER), &all[..2]),
        (consumer("another"), &all[2..]),
        (consumer("nobody"), &[]),
        (reason("exhausted"), &all[1..2]),
        (reason("permanent"), &all[..1]),
        (code("out-of-stock"), &all[..1]),
        (code("OUT-OF-STOCK"), &[]),
        (time(Some(2000), None), &all[1..2]),
        (time(None, Some(2000)), &[all[0], all[2]]),
        (Filter { reason: Some("permanent".into()), since: Some(1001), ..consumer(CONSUMER) }, &[]),
    ];
    for (filter, expected) in cases {
        let found = subject.ledger.dead_letters(&filter, None, 100).await?;
        assert_eq!(keys(&found), expected, "{filter:?}");
    }
    Ok(())
}

pub(crate) async fn a_redrive_reopens_a_dead_letter_once(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let dead = subject.bury(carried("a")).await?;
    let other_generation = ParkedRow { generation: 1, ..dead.clone() };
    assert_eq!(ledger.redrive(&other_generation, NOW, true, None).await?, Redriven::Already);
    assert_eq!(subject.status("a").await?, Some((Status::Dead, Some(dead.id))));

    assert_eq!(ledger.redrive(&dead, LONG, false, None).await?, Redriven::Yes);
    let row = subject.row(dead.id).await?;
    assert_eq!((row.state, row.phase, row.generation), (State::Retry, Phase::Handle, 1));
    assert_eq!((row.attempts, row.handler_attempts, row.crashes), (0, 0, 0));
    assert_eq!(row.due_at.map(|due| due - row.updated_at), Some(600_000));
    assert_eq!(subject.status("a").await?, Some((Status::Parked, Some(dead.id))));
    assert_eq!(ledger.redrive(&dead, NOW, true, None).await?, Redriven::Already);
    assert_eq!(ledger.redrive(&row, NOW, true, None).await?, Redriven::Already, "it is not dead");
    assert_eq!(subject.row(dead.id).await?, row);

    // It dies again, and is another generation.
    subject.age("hapax_parked", "due_at", LONG).await?;
    let (token, row) = subject.take_one().await?;
    committed!(subject, |lane| {
        ledger.move_parked(lane, &[ParkedMove::dead(&row, token, Reason::Exhausted, 1, None, None)]).await?;
        let (from, to) = ((Status::Parked, Some(row.id)), (Status::Dead, Some(row.id)));
        ledger.move_inbox(lane, CONSUMER, &[InboxMove { id: id("a"), from, to, module: None }]).await?;
    });
    assert_eq!(ledger.redrive(&dead, NOW, false, None).await?, Redriven::Already, "a copy of the first death");
    assert_eq!(ledger.redrive(&row, NOW, false, None).await?, Redriven::Yes);
    assert_eq!(subject.row(dead.id).await?.generation, 2);
    Ok(())
}

pub(crate) async fn of_many_that_redrive_at_once_one_does(subject: Subject) -> TestResult {
    let dead = subject.bury(carried("a")).await?;
    let subject = Arc::new(subject);
    let tries: Vec<_> = (0..8)
        .map(|_| {
            let (subject, dead) = (Arc::clone(&subject), dead.clone());
            tokio::spawn(async move {
                let mut lane = subject.lane().await?;
                lane.begin().await?;
                let redriven = subject.ledger.redrive_in(lane.as_mut(), &dead, NOW, false, None).await?;
                lane.commit().await.map(|()| redriven)
            })
        })
        .collect();
    let mut yes = 0;
    for redriven in tries {
        match redriven.await?? {
            Redriven::Yes => yes += 1,
            other => assert_eq!(other, Redriven::Already),
        }
    }
    assert_eq!(yes, 1);
    assert_eq!(subject.row(dead.id).await?.generation, 1);
    assert_eq!(subject.status("a").await?, Some((Status::Parked, Some(dead.id))));
    Ok(())
}

pub(crate) async fn a_compensated_dead_letter_is_reopened_by_force_only(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let of = carried("a");
    let row = NewParked::compensate(of.clone(), Reason::Exhausted, 5, &failure("never"));
    subject.park(Some(Status::Parked), &[(of, row)]).await?;
    let (token, row) = subject.take_one().await?;
    committed!(subject, |lane| {
        ledger.move_parked(lane, &[ParkedMove::compensated(&row, token)]).await?;
        let (from, to) = ((Status::Parked, Some(row.id)), (Status::Dead, Some(row.id)));
        ledger.move_inbox(lane, CONSUMER, &[InboxMove { id: id("a"), from, to, module: None }]).await?;
    });
    let dead = subject.row(row.id).await?;
    assert_eq!(ledger.redrive(&dead, NOW, false, None).await?, Redriven::AlreadyCompensated);
    assert_eq!(subject.row(row.id).await?, dead);
    assert_eq!(subject.status("a").await?, Some((Status::Dead, Some(row.id))));
    assert_eq!(ledger.redrive(&dead, NOW, true, None).await?, Redriven::Yes);
    let row = subject.row(row.id).await?;
    assert_eq!((row.state, row.phase, row.generation), (State::Retry, Phase::Handle, 1));
    assert_eq!((row.compensations, row.handler_attempts), (1, 0), "what was refunded stays known");
    Ok(())
}

pub(crate) async fn a_dead_letter_without_an_inbox_row_is_redriven_as_a_delivery(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    subject.claim(&claims(["a"])).await?;
    let without = Carried { id: None, ..carrying("x", b"no id".to_vec()) };
    let conflict = carrying("a", b"another body".to_vec());
    let rows = [
        (without.clone(), NewParked::dead_apart(without.clone(), Reason::NoId, "nothing found", None)),
        (conflict.clone(), NewParked::dead_apart(conflict.clone(), Reason::IdConflict, "another body", None)),
    ];
    subject.park(None, &rows).await?;
    let row = subject.row(without.row_id).await?;
    assert_eq!(ledger.redrive(&row, NOW, false, None).await?, Redriven::NoId, "under no id it cannot be handled");
    assert_eq!(subject.row(without.row_id).await?, row);
    let target = Some((id("found today"), 99));
    assert_eq!(ledger.redrive(&row, NOW, false, target.clone()).await?, Redriven::Yes);
    assert_eq!(ledger.redrive(&row, NOW, false, target).await?, Redriven::Already);
    let row = subject.row(without.row_id).await?;
    assert_eq!((row.state, row.phase, row.generation), (State::Deferred, Phase::Deliver, 1));
    assert_eq!((row.message_id, row.slot), (Some(id("found today")), 99));
    assert_eq!(subject.inbox("found today").await?, None, "the claim comes when it runs");

    let row = subject.row(conflict.row_id).await?;
    assert_eq!(ledger.redrive(&row, NOW, false, Some((id("a"), 1))).await?, Redriven::Yes);
    assert_eq!(subject.status("a").await?, Some((Status::Completed, None)), "the original is left alone");
    let (_, taken) = subject.take(Which::Innocent).await?;
    assert_eq!(keys(&taken), [without.row_id, conflict.row_id]);
    Ok(())
}

pub(crate) async fn a_redrive_of_nothing_says_so(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let dead = subject.bury(carried("a")).await?;
    let apart = carried("b");
    let row = NewParked::dead_apart(apart.clone(), Reason::BadId, "too long", None);
    subject.park(None, &[(apart.clone(), row)]).await?;
    let apart = subject.row(apart.row_id).await?;
    subject.sql("DELETE FROM hapax_parked").await?;
    assert_eq!(ledger.redrive(&dead, NOW, false, None).await?, Redriven::Gone);
    assert_eq!(ledger.redrive(&apart, NOW, false, None).await?, Redriven::Gone);
    assert_eq!(ledger.redrive(&apart, NOW, false, Some((id("b"), 1))).await?, Redriven::Gone);
    assert_eq!(subject.status("a").await?, Some((Status::Dead, Some(dead.id))));
    Ok(())
}

pub(crate) async fn a_dead_letter_is_discarded_once(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let dead = subject.bury(carried("a")).await?;
    assert!(!ledger.discard(&ParkedRow { generation: 1, ..dead.clone() }).await?);
    assert!(ledger.discard(&dead).await?);
    assert!(!ledger.discard(&dead).await?);
    let row = subject.row(dead.id).await?;
    assert_eq!((row.state, row.due_at), (State::Discarded, None));
    assert_eq!(subject.status("a").await?, Some((Status::Dead, Some(dead.id))), "its id stays known");
    assert_eq!(ledger.redrive(&row, NOW, true, None).await?, Redriven::Already);
    assert_eq!(ledger.dead_letters(&Filter::default(), None, 10).await?, []);

    let reopened = subject.bury(carried("b")).await?;
    assert_eq!(ledger.redrive(&reopened, NOW, false, None).await?, Redriven::Yes);
    assert!(!ledger.discard(&reopened).await?, "it is being handled");
    assert_eq!(subject.status("b").await?, Some((Status::Parked, Some(reopened.id))));
    Ok(())
}

pub(crate) async fn a_row_is_found_by_the_beginning_of_its_key(subject: Subject) -> TestResult {
    let mut ids = [[0x10; 16], [0x11; 16], [0xff; 16]].map(ParkedId);
    ids[1].0[0] = 0x10;
    for id in ids {
        let of = Carried { row_id: id, ..carrying("a", vec![1; CHUNK_BYTES + 1]) };
        subject.defer(of, LONG).await?;
    }
    let between = async |first: u8, last: u8| {
        let (mut low, mut high) = ([0; 16], [0xff; 16]);
        (low[0], high[0]) = (first, last);
        subject.ledger.parked_by_prefix(ParkedId(low), ParkedId(high)).await
    };
    assert_eq!(keys(&between(0x10, 0x1f).await?), ids[..2]);
    assert_eq!(keys(&between(0xf0, 0xff).await?), ids[2..]);
    assert_eq!(keys(&between(0x20, 0x2f).await?), []);
    assert_eq!(between(0xff, 0xff).await?[0].message.body.len(), CHUNK_BYTES + 1);
    assert_eq!(subject.ledger.parked_row(ParkedId([0; 16])).await?, None);
    Ok(())
}

pub(crate) async fn what_is_known_of_a_message(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let nothing = ledger.known(CONSUMER, &id("a")).await?;
    assert_eq!((nothing.inbox, nothing.parked.len()), (None, 0));
    let counts = subject.retry(carrying("a", vec![7; CHUNK_BYTES + 1]), LONG).await?;
    let deferred = subject.defer(carried("a"), LONG).await?;
    let conflict = carrying("a", b"another body".to_vec());
    let row = NewParked::dead_apart(conflict.clone(), Reason::IdConflict, "another body", None);
    subject.park(None, &[(conflict.clone(), row)]).await?;
    subject.defer(carried("b"), LONG).await?;
    let known = ledger.known(CONSUMER, &id("a")).await?;
    let inbox = known.inbox.expect("an inbox row");
    assert_eq!((inbox.status, inbox.parked_id), (Status::Parked, Some(counts)));
    assert_eq!(keys(&known.parked), [counts, deferred, conflict.row_id]);
    assert!(known.parked.iter().all(|row| row.message.body.is_empty()));
    assert_eq!(ledger.known(CONSUMER, &id("A")).await?.parked, []);
    assert_eq!(ledger.known("another", &id("a")).await?.parked, []);
    Ok(())
}
