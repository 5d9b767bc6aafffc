//! Transitions of inbox rows, under guard of what they said before.

use hapax::ledger::inbox::{InboxMove, Status};
use hapax::ledger::parked::{ParkedId, ParkedMove, ParkedRow, Which};
use hapax::ledger::value::Value;
use hapax_tests::TestResult;

use crate::subject::*;

type Place = (Status, Option<ParkedId>);

fn moving(name: &str, from: Place, to: Place) -> InboxMove {
    InboxMove { id: id(name), from, to, module: None }
}

/// What names the module that brought a row where it is.
async fn module(subject: &Subject, name: &str) -> TestResult<Value> {
    let literal = subject.literal(name.as_bytes());
    let found = subject.sql(&format!("SELECT module FROM hapax_inbox WHERE message_id = {literal}")).await?;
    Ok(found.rows[0][0].clone())
}

pub(crate) async fn a_move_changes_status_row_and_module(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let (row, other) = (ParkedId::new(), ParkedId::new());
    subject.claim(&claims(["a", "b"])).await?;
    let completed = (Status::Completed, None);
    committed!(subject, |lane| {
        let a = InboxMove { module: Some(*b"module-2"), ..moving("a", completed, (Status::Parked, Some(row))) };
        let b = moving("b", completed, (Status::Dead, Some(other)));
        ledger.move_inbox(lane, CONSUMER, &[b, a]).await?;
    });
    assert_eq!(subject.status("a").await?, Some((Status::Parked, Some(row))));
    assert_eq!(subject.status("b").await?, Some((Status::Dead, Some(other))));
    assert_eq!(module(&subject, "a").await?, Value::Blob(b"module-2".to_vec()));
    assert_eq!(module(&subject, "b").await?, Value::Blob(MODULE.to_vec()), "none leaves what is recorded");

    // And back, through every status.
    for (from, to) in [
        ((Status::Parked, Some(row)), (Status::Dead, Some(row))),
        ((Status::Dead, Some(row)), (Status::Parked, Some(row))),
        ((Status::Parked, Some(row)), (Status::Parked, Some(other))),
        ((Status::Parked, Some(other)), completed),
    ] {
        committed!(subject, |lane| ledger.move_inbox(lane, CONSUMER, &[moving("a", from, to)]).await?);
        assert_eq!(subject.status("a").await?, Some(to));
    }
    assert_eq!(subject.inbox("a").await?.and_then(|row| row.digest), Some(digest("a")));
    Ok(())
}

pub(crate) async fn a_move_from_anything_else_changes_nothing(subject: Subject) -> TestResult {
    let parked = carried("parked");
    subject.retry(parked.clone(), LONG).await?;
    subject.claim(&claims(["completed", "another"])).await?;
    let here: Place = (Status::Parked, Some(parked.row_id));
    let to: Place = (Status::Dead, Some(parked.row_id));
    let completed: Place = (Status::Completed, None);
    let wrong = [
        moving("parked", (Status::Dead, Some(parked.row_id)), to),
        moving("parked", (Status::Parked, Some(ParkedId::new())), to),
        moving("parked", (Status::Parked, None), to),
        moving("parked", completed, to),
        moving("completed", (Status::Completed, Some(parked.row_id)), to),
        moving("completed", here, to),
        moving("absent", completed, to),
    ];
    let mut lane = subject.lane().await?;
    for wrong in wrong {
        lane.begin().await?;
        let moves = [moving("another", completed, to), wrong.clone()];
        assert_guarded(subject.ledger.move_inbox(lane.as_mut(), CONSUMER, &moves).await);
        lane.rollback().await?;
        assert_eq!(subject.status("parked").await?, Some(here), "{wrong:?}");
        assert_eq!(subject.status("completed").await?, Some(completed), "{wrong:?}");
        assert_eq!(subject.status("another").await?, Some(completed), "{wrong:?}");
    }
    // Another consumer's row of the same id is not meant.
    lane.begin().await?;
    assert_guarded(subject.ledger.move_inbox(lane.as_mut(), "another", &[moving("parked", here, to)]).await);
    lane.rollback().await?;
    Ok(())
}

/// On MariaDB the values of a statement make a derived table, whose columns must be wide enough each time.
pub(crate) async fn one_statement_serves_ids_of_all_lengths(subject: Subject) -> TestResult {
    let ledger = &subject.ledger;
    let names = ["a".to_owned(), "b".repeat(255), "é".repeat(100), "c".to_owned(), "d".repeat(64), "e".repeat(254)];
    subject.claim(&claims(&names)).await?;
    let mut lane = subject.lane().await?;
    for pair in names.chunks(2) {
        let row = ParkedId::new();
        lane.begin().await?;
        let moves = [
            moving(&pair[0], (Status::Completed, None), (Status::Parked, Some(row))),
            InboxMove {
                module: Some(*b"module-3"),
                ..moving(&pair[1], (Status::Completed, None), (Status::Dead, None))
            },
        ];
        ledger.move_inbox(lane.as_mut(), CONSUMER, &moves).await?;
        let ids = [id(&pair[0]), id(&pair[1])];
        let found = ledger.existing(lane.as_mut(), CONSUMER, &[&ids[0], &ids[1]]).await?;
        assert_eq!(found.len(), 2);
        assert_eq!(found[ids[0].as_bytes()].parked_id, Some(row));
        assert_eq!((found[ids[1].as_bytes()].status, found[ids[1].as_bytes()].parked_id), (Status::Dead, None));
        ledger.unclaim(lane.as_mut(), CONSUMER, &[&ids[1], &ids[0]]).await?;
        lane.commit().await?;
    }
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_inbox").await?, 0);
    Ok(())
}

/// Two lanes that work on rows of their own, in tables so small that a server may like to read them whole.
pub(crate) async fn lanes_do_not_wait_for_each_other_on_small_tables(subject: Subject) -> TestResult {
    if !subject.features().concurrent_writers {
        return Ok(());
    }
    let ledger = &subject.ledger;
    let mut owned = Vec::new();
    for name in ["a1", "a2", "a3", "a4"] {
        let row = carried(name);
        subject.retry(row.clone(), std::time::Duration::ZERO).await?;
        owned.push(row);
    }
    subject.claim(&claims(["a5", "a6"])).await?;
    let (token, rows) = subject.take_as(&in_order(Which::Innocent)).await?;
    assert_eq!(keys(&rows), owned.iter().map(|row| row.row_id).collect::<Vec<_>>());
    let (mut first, mut second) = (subject.impatient_lane().await?, subject.impatient_lane().await?);
    let (ours, theirs): (Vec<&ParkedRow>, Vec<&ParkedRow>) = (vec![&rows[0], &rows[2]], vec![&rows[1], &rows[3]]);
    let names = |rows: &[&ParkedRow]| rows.iter().filter_map(|row| row.message_id.clone()).collect::<Vec<_>>();
    first.begin().await?;
    second.begin().await?;
    for (lane, rows, claimed, name) in [(&mut first, ours, "a5", "new-1"), (&mut second, theirs, "a6", "new-2")] {
        let lane = lane.as_mut();
        let locked = ledger.lock_running(lane, token, &[rows[0].id, rows[1].id]).await?;
        assert_eq!(locked, [rows[0].id, rows[1].id]);
        ledger.claim(lane, CONSUMER, &claims([name])).await?;
        ledger.unclaim(lane, CONSUMER, &[&id(claimed)]).await?;
        ledger.delete_parked(lane, token, &rows[..1]).await?;
        ledger.move_parked(lane, &[ParkedMove::put_off(rows[1], token, LONG)]).await?;
        let to = (Status::Completed, None);
        let moves = names(&rows).into_iter().zip(&rows).map(|(id, row)| InboxMove {
            id,
            from: (Status::Parked, Some(row.id)),
            to,
            module: None,
        });
        ledger.move_inbox(lane, CONSUMER, &moves.collect::<Vec<_>>()).await?;
    }
    // A third one gives back what it took, takes what is due, and rescues, past all of that.
    let third = subject.retry(carried("a7"), std::time::Duration::ZERO).await?;
    let (token, rows) = subject.take(Which::Innocent).await?;
    assert_eq!(keys(&rows), [third]);
    let started = std::time::Instant::now();
    ledger.give_back(CONSUMER, HOST, token, std::time::Duration::ZERO).await?;
    assert_eq!(keys(&subject.take(Which::Innocent).await?.1), [third]);
    assert_eq!(ledger.rescue(CONSUMER, RESCUER, rescue_after(LONG, 3), |_| None).await?, []);
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "somebody was waited for");
    second.commit().await?;
    first.commit().await?;
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_parked").await?, 3);
    assert_eq!(subject.count("SELECT COUNT(*) FROM hapax_inbox WHERE status = 1").await?, 6, "four and two new ones");
    Ok(())
}
