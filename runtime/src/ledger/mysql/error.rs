//! What MariaDB and MySQL answer instead, and whose fault it is.

use sqlx::mysql::MySqlDatabaseError;

use super::super::database::{DbError, DbErrorKind};
use super::super::gate::driver_error;

/// An error as the seam has it. Its code is the server's number: SQLSTATEs are too coarse here.
pub(super) fn db_error(error: &sqlx::Error) -> DbError {
    let sqlx::Error::Database(answer) = error else { return driver_error(error) };
    let Some(answer) = answer.try_downcast_ref::<MySqlDatabaseError>() else { return driver_error(error) };
    let number = answer.number();
    DbError {
        kind: kind(number, answer.code().unwrap_or_default()),
        code: Some(number.to_string()),
        constraint: constraint(number, answer.message()).map(str::to_owned),
        message: answer.message().to_owned(),
        connection_lost: ends_connection(number),
    }
}

/// By number; where a number is not listed, by the classes of SQLSTATE for data (22), constraints (23) and signals of
/// triggers and procedures (45). Class 42 is no guide: "too many connections of this user" is in it.
fn kind(number: u16, sqlstate: &str) -> DbErrorKind {
    match number {
        // Lock time-out, deadlock, changed since read, NOWAIT, deadlock of XA.
        1020 | 1205 | 1213 | 1614 | 3572 => DbErrorKind::Contention,
        // max_statement_time of MariaDB, max_execution_time of MySQL.
        1969 | 3024 => DbErrorKind::TimedOut,
        // Unique and foreign keys, NOT NULL, no default.
        1022 | 1048 | 1062 | 1169 | 1216 | 1217 | 1364 | 1451 | 1452 | 1557 | 1586 | 1761 | 1762 | 3819 => {
            DbErrorKind::Constraint
        }
        // CHECK of MariaDB; another thing on MySQL.
        4025 if sqlstate == "23000" => DbErrorKind::Constraint,
        _ if is_statements_fault(number) => DbErrorKind::Invalid,
        _ => match sqlstate.get(..2) {
            Some("22" | "45") => DbErrorKind::Invalid,
            Some("23") => DbErrorKind::Constraint,
            _ => DbErrorKind::Infrastructure,
        },
    }
}

/// The statement or its data is wrong. Numbers are those of `errmsg` of the servers.
fn is_statements_fault(number: u16) -> bool {
    matches!(
        number,
        // Names: unknown or ambiguous columns, tables, aliases, functions; empty and wrong clauses.
        1051 | 1052 | 1054..=1056 | 1058 | 1060 | 1063..=1066 | 1093 | 1101 | 1109..=1111 | 1115 | 1120 | 1140
        | 1146 | 1149 | 1162 | 1166 | 1172 | 1176 | 1191 | 1210 | 1221 | 1222 | 1235 | 1241 | 1242 | 1247 | 1248
        | 1250 | 1288 | 1295 | 1305 | 1318 | 1327 | 1348 | 1356 | 1390 | 1393 | 1394 | 1395 | 1442 | 1443 | 1471
        | 1558..=1560 | 1582..=1584 | 1630 | 1906 | 3065 | 3105
        // Rights on a table, column or routine.
        | 1142 | 1143 | 1370
        // Values that do not fit, and division by zero.
        | 1106 | 1118 | 1136 | 1139 | 1230..=1232 | 1253 | 1264..=1267 | 1270 | 1271 | 1292 | 1300 | 1301 | 1365..=1367 | 1406 | 1411 | 1416
        | 1425..=1427 | 1439..=1441 | 1525 | 1611 | 1690
        // JSON and geometry of MySQL, JSON of MariaDB.
        | 3140..=3158 | 3037 | 4035..=4040 | 4176..=4179
        // WITH and window functions of MariaDB. 4031 is not among them: MySQL 8 closes an idle connection with it.
        | 4002..=4024 | 4026..=4030 | 4032 | 4074 | 4078 | 4079 | 4172 | 4174 | 4175 | 4180
        // SIGNAL and RESIGNAL.
        | 1643..=1645
    )
}

/// The server has ended the whole transaction, whatever the error is about.
pub(super) fn ends_transaction(error: &DbError, rollback_on_timeout: bool) -> bool {
    match error.code.as_deref() {
        // Changed since read, lock table full, deadlock, deadlock of XA.
        Some("1020" | "1206" | "1213" | "1614") => true,
        Some("1205") => rollback_on_timeout,
        _ => false,
    }
}

/// A statement that has to be prepared again: forget what is prepared.
pub(super) fn outdates_statements(error: &DbError) -> bool {
    matches!(error.code.as_deref(), Some("1243" | "1615"))
}

/// Shutdown, KILL, protocol and packet errors, idle time-outs: nothing more can be sent.
fn ends_connection(number: u16) -> bool {
    matches!(number, 1042 | 1043 | 1047 | 1053 | 1080 | 1152..=1161 | 1184 | 1927 | 2006 | 2013 | 4031)
}

/// KILL found nobody to end.
pub(super) fn is_unknown_thread(error: &sqlx::Error) -> bool {
    db_error(error).code.as_deref() == Some("1094")
}

/// The user lacks a privilege that is not one on tables.
pub(super) fn is_lack_of_privilege(error: &sqlx::Error) -> bool {
    db_error(error).code.as_deref() == Some("1227")
}

/// The name of the constraint, which only the message has.
fn constraint(number: u16, message: &str) -> Option<&str> {
    let between = |before: &str, after: char| {
        let start = message.rfind(before)? + before.len();
        message[start..].split(after).next()
    };
    match number {
        // "Duplicate entry '…' for key 'name'"; MySQL 8 says 'table.name'.
        1062 | 1586 => between("for key '", '\'').map(|name| name.rsplit('.').next().unwrap_or(name)),
        1451 | 1452 | 4025 => between("CONSTRAINT `", '`'),
        3819 => between("Check constraint '", '\''),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_the_handlers_fault() {
        for (number, sqlstate, expected) in [
            (1062, "23000", DbErrorKind::Constraint),
            (4025, "23000", DbErrorKind::Constraint),
            (4025, "HY000", DbErrorKind::Infrastructure),
            (1064, "42000", DbErrorKind::Invalid),
            (1106, "42000", DbErrorKind::Invalid),
            (1139, "42000", DbErrorKind::Invalid),
            (1301, "HY000", DbErrorKind::Invalid),
            (4002, "HY000", DbErrorKind::Invalid),
            (4015, "HY000", DbErrorKind::Invalid),
            (4024, "HY000", DbErrorKind::Invalid),
            (4031, "HY000", DbErrorKind::Infrastructure),
            (4033, "HY000", DbErrorKind::Infrastructure),
            (4034, "HY000", DbErrorKind::Infrastructure),
            (4074, "HY000", DbErrorKind::Invalid),
            (4078, "HY000", DbErrorKind::Invalid),
            (4079, "HY000", DbErrorKind::Invalid),
            (4173, "HY000", DbErrorKind::Infrastructure),
            (4174, "HY000", DbErrorKind::Invalid),
            (4177, "HY000", DbErrorKind::Invalid),
            (4182, "HY000", DbErrorKind::Infrastructure),
            (1644, "45000", DbErrorKind::Invalid),
            (1644, "02000", DbErrorKind::Invalid),
            (9999, "45001", DbErrorKind::Invalid),
            (1213, "40001", DbErrorKind::Contention),
            (1205, "HY000", DbErrorKind::Contention),
            (1969, "70100", DbErrorKind::TimedOut),
            (3024, "HY000", DbErrorKind::TimedOut),
            (1203, "42000", DbErrorKind::Infrastructure),
            (1461, "42000", DbErrorKind::Infrastructure),
            (1290, "HY000", DbErrorKind::Infrastructure),
            (1317, "70100", DbErrorKind::Infrastructure),
            (1021, "HY000", DbErrorKind::Infrastructure),
            (9999, "", DbErrorKind::Infrastructure),
        ] {
            assert_eq!(kind(number, sqlstate), expected, "{number} {sqlstate}");
        }
    }

    #[test]
    fn constraints_are_named_in_messages() {
        assert_eq!(constraint(1062, "Duplicate entry 'for key 'x'' for key 'PRIMARY'"), Some("PRIMARY"));
        assert_eq!(constraint(1062, "Duplicate entry '1' for key 't.by_name'"), Some("by_name"));
        let foreign =
            "Cannot add or update a child row (`d`.`t`, CONSTRAINT `fk` FOREIGN KEY (`a`) REFERENCES `p` (`a`))";
        assert_eq!(constraint(1452, foreign), Some("fk"));
        assert_eq!(constraint(4025, "CONSTRAINT `positive` failed for `d`.`t`"), Some("positive"));
        assert_eq!(constraint(3819, "Check constraint 'positive' is violated."), Some("positive"));
        assert_eq!(constraint(1048, "Column 'a' cannot be null"), None);
    }
}
