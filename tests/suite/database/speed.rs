//! Round trips, counted on the wire.

use hapax::ledger::database::{Dialect, Statement, open};
use hapax::ledger::value::{Param, RowLimits, Value};
use hapax_tests::proxy::Proxy;

use crate::backend::{Backend, SETTINGS, make_stock, text};

pub(crate) async fn known_statements_cost_one_round_trip(backend: &Backend) {
    if backend.dialect == Dialect::Sqlite {
        // No network. What a statement costs is measured by the benchmarks.
        assert!(!backend.database().features().await.expect("features").shared);
        return;
    }
    make_stock(&mut backend.connect().await, 3).await;
    let proxy = Proxy::to(&backend.url).await.expect("a proxy");
    let url = proxy.through(&backend.url).expect("a URL");
    let mut connection = open(&url, SETTINGS).expect("a usable URL").connect().await.expect("a connection");
    let (update, select) = backend.pick(
        (
            "UPDATE stock SET amount = $1 WHERE id = $2",
            "SELECT id, amount, '::1'::inet AS net FROM stock WHERE id = $1",
        ),
        ("UPDATE stock SET amount = ? WHERE id = ?", "SELECT id, amount FROM stock WHERE id = ?"),
        ("", ""),
    );
    let ints = [Param::One(Value::Int(7)), Param::One(Value::Int(1))];
    // Text into a number: on Postgres a statement of its own.
    let texts = [Param::One(text("8")), Param::One(Value::Int(2))];
    for round in 0..3 {
        let mut before = proxy.trips();
        let mut lap = |what: &'static str| {
            let cost = proxy.trips() - before;
            before = proxy.trips();
            assert!(round == 0 || cost == 1, "{what} cost {cost} round trips");
        };
        connection.begin().await.expect("BEGIN");
        lap("begin");
        connection.savepoint().await.expect("SAVEPOINT");
        lap("savepoint");
        connection.execute(update, &ints).await.expect(update);
        lap("execute");
        connection.execute(update, &texts).await.expect(update);
        lap("execute with a cast");
        let many = [Statement { sql: update, params: &ints }; 5];
        connection.execute_all(&many, &mut Vec::new()).await.expect("five statements");
        lap("five statements");
        connection.query(select, &ints[1..], RowLimits::NONE).await.expect(select);
        lap("query");
        connection.rollback_to_savepoint().await.expect("ROLLBACK TO");
        lap("rollback to savepoint");
        connection.savepoint().await.expect("SAVEPOINT");
        lap("savepoint again");
        connection.ping().await.expect("a sign of life");
        lap("ping");
        connection.commit().await.expect("COMMIT");
        lap("commit");
    }
}
