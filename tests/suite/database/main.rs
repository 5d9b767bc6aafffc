//! The conformance suite of the ledger's database seam: every test runs on Postgres, MariaDB or MySQL, and SQLite.
//! What a back end cannot do is said by its `Features` and its dialect, and is then tested to be refused.

mod backend;
mod errors;
mod migrations;
mod sessions;
mod speed;
mod transactions;
mod values;
mod waits;

use backend::Backend;

/// Makes one test for each back end of each function.
macro_rules! on_every_database {
    ($($module:ident: $($name:ident),+ $(,)?;)+) => {
        mod postgres { $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let backend = super::Backend::postgres().await;
                super::$module::$name(&backend).await;
                backend.finish().await;
            }
        )+)+ }
        mod mysql { $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let backend = super::Backend::mysql().await;
                super::$module::$name(&backend).await;
                backend.finish().await;
            }
        )+)+ }
        mod sqlite { $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let backend = super::Backend::sqlite().await;
                super::$module::$name(&backend).await;
                backend.finish().await;
            }
        )+)+ }
    };
}

on_every_database! {
    values: every_kind_of_value_goes_both_ways, null_goes_anywhere, types_of_the_dialect_go_both_ways,
        unreadable_values_are_text_or_errors_but_never_a_panic, columns_keep_their_names,
        placeholders_in_literals_are_left_alone, wrong_parameters_are_the_statements_fault,
        generated_keys_and_counts, arrays_work_on_postgres_only;
    errors: violated_constraints, wrong_statements, data_that_does_not_fit, locks_held_by_another, deadlock,
        a_transaction_in_a_hurry, statement_time_limit, killed_by_the_server, read_only, too_many_rows, dropped_future, unreachable_server,
        raised_by_a_trigger, faults_of_rarer_kinds, several_statements_are_refused,
        statements_survive_a_changed_schema;
    waits: one_lock_after_another, a_slow_statement_while_somebody_else_waits, a_wait_of_a_plain_user;
    transactions: commit_and_rollback, savepoints, savepoint_undoes_a_failure, commit_is_refused_after_a_failure,
        nothing_runs_after_a_failure, several_statements_run_in_order_and_each_is_answered,
        several_statements_stop_at_the_first_that_fails, deferred_constraints, statements_outside_of_a_transaction, misuse,
        a_transaction_ended_by_a_statement, concurrent_writers;
    sessions: features_and_description, the_session_is_pinned, idle_transactions_end, ping_keeps_a_transaction,
        kill_switch_stops_a_statement, kill_switch_frees_an_idle_transaction, dropped_connection_frees_its_locks,
        limits_can_be_changed, vanished_server, urls, secrets_stay_secret;
    migrations: migrations_are_applied_once, changed_migrations_are_refused;
    speed: known_statements_cost_one_round_trip;
}
