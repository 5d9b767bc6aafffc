//! A short torture on each database with each broker: long enough for every host to die a few times.

use std::process::Command;

/// One after the other: each starts servers of its own, and wants the machine for itself.
#[test]
fn every_database_with_every_broker_survives_a_short_torture() {
    for (database, broker, seed) in [
        ("postgres", "amqp", 1),
        ("mariadb", "amqp", 2),
        ("sqlite", "amqp", 3),
        ("postgres", "embedded", 4),
        ("mariadb", "embedded", 5),
        ("sqlite", "embedded", 6),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_hapax-torture"))
            .args(["--seconds", "15", "--seed", &seed.to_string(), "--database", database, "--broker", broker])
            .output()
            .expect("the torture starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{database}, {broker}:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
        println!("{said}");
    }
}
