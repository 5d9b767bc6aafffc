//! The conformance suite of the ledger's logic: one list of facts, checked on every database. What they specify is the
//! table of a message's states. What a database cannot do is in its `Features`, printed once for each; facts about
//! writers that run at the same time say little where there is one.
//!
//! `mysql_8` is MariaDB behind a `Database` that denies `INSERT … RETURNING`, so that claims go the way that they go on
//! MySQL 8.

mod claims;
mod dead;
mod inbox;
mod meanwhile;
mod outbox;
mod parked;
mod plans;
mod relay;
mod rescue;
mod running;
mod subject;
mod upkeep;

/// Makes one test for one database out of each fact.
macro_rules! facts {
    ($back_end:ident, $($module:ident { $($fact:ident)+ })+) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $fact() -> hapax_tests::TestResult {
                crate::$module::$fact(crate::subject::Subject::$back_end().await?).await
            })+
        })+
    };
}

macro_rules! claims {
    ($back_end:ident) => {
        facts! { $back_end, claims {
            the_back_end_says_what_it_can_do
            no_ids_are_no_trouble
            free_ids_are_all_new_however_many
            existing_ids_answer_what_they_are_in_the_order_asked
            ids_are_compared_as_bytes
            consumers_have_ids_of_their_own
            what_was_unclaimed_is_free_again
            a_claim_that_was_rolled_back_leaves_nothing
            a_second_claim_waits_and_finds_the_first
            a_second_claim_waits_and_takes_what_was_rolled_back
            a_claim_gives_up_after_the_lock_time_out
            batches_that_overlap_do_not_deadlock
            imported_ids_are_completed_without_a_body
        } }
    };
}

macro_rules! everything_else {
    ($back_end:ident) => {
        facts! { $back_end,
            inbox {
                a_move_changes_status_row_and_module
                a_move_from_anything_else_changes_nothing
                one_statement_serves_ids_of_all_lengths
                lanes_do_not_wait_for_each_other_on_small_tables
            }
            parked {
                every_new_row_is_what_its_constructor_says
                bodies_of_every_size_come_back_whole
                properties_and_texts_of_every_kind_come_back
                a_row_whose_key_exists_stays_as_it_is
                many_rows_are_parked_at_once
            }
            running {
                due_rows_are_taken_and_no_others
                a_lane_takes_its_own_slots_only
                rows_are_taken_first_due_first_up_to_the_limit
                lanes_never_take_the_same_row
                a_row_that_somebody_has_locked_is_passed_over
                a_suspect_runs_apart_from_the_others
                in_order_nothing_overtakes_what_is_not_due
                in_order_nothing_overtakes_a_running_row
                in_order_a_suspect_is_taken_alone
                a_row_is_taken_in_the_phase_it_is_in
                large_bodies_are_taken_a_few_at_a_time
                a_run_is_fenced_by_its_token
                a_retry_is_due_again_and_counted
                a_compensation_has_attempts_of_its_own
                a_dead_row_is_never_due
                a_deferred_row_is_deferred_again_claimed_or_deleted
                one_statement_makes_moves_of_all_kinds
                what_is_given_back_is_not_counted
                somebody_elses_rows_are_not_given_back
                the_clock_says_which_slots_are_due_and_when
                slots_are_blocked_by_what_is_pending
                rows_are_counted_by_state
            }
            meanwhile {
                what_another_host_ran_meanwhile_is_taken_as_it_is_now
                what_another_host_put_off_meanwhile_is_not_overtaken
            }
            rescue {
                a_row_is_rescued_once_its_time_has_passed
                a_row_that_a_live_transaction_works_on_is_not_rescued
                a_rescued_row_goes_back_to_the_phase_it_was_in
                an_orderly_end_forgives_crashes
                past_the_limit_a_row_is_dead_with_a_copy
                a_stored_delivery_dies_under_its_own_id_only
                one_row_that_somebody_edited_keeps_no_other_from_rescue
                the_rows_of_a_host_that_lives_are_not_rescued
                runs_of_which_their_own_host_knows_nothing_are_found
            }
            dead {
                dead_letters_are_listed_page_by_page
                dead_letters_are_filtered
                a_redrive_reopens_a_dead_letter_once
                of_many_that_redrive_at_once_one_does
                a_compensated_dead_letter_is_reopened_by_force_only
                a_dead_letter_without_an_inbox_row_is_redriven_as_a_delivery
                a_redrive_of_nothing_says_so
                a_dead_letter_is_discarded_once
                a_row_is_found_by_the_beginning_of_its_key
                what_is_known_of_a_message
            }
            outbox {
                rows_are_published_after_their_grace_time
                one_sweep_at_a_time_publishes_a_row
                the_same_row_twice_stays_one
                what_cannot_be_published_stays_until_it_is_requeued
                a_failed_publication_is_tried_again_later
                copies_carry_the_bodies_of_their_dead_letters
                a_copy_whose_dead_letter_is_gone_is_dropped
                many_and_large_rows_go_in_together
                a_page_of_large_rows_ends_before_32_mib
                the_rows_of_a_message_are_found
            }
            relay {
                what_was_left_behind_gets_its_turn_under_steady_traffic
                what_has_more_bytes_than_the_relay_keeps_is_left_in_sql
                whoever_commits_faster_than_it_publishes_waits_for_it
                a_relay_that_is_stuck_holds_up_nobody
            }
            upkeep {
                migrating_twice_changes_nothing
                what_limits_handlers_does_not_limit_the_ledgers_own_work
                retention_forgets_old_completed_ids_only
                retention_forgets_discarded_dead_letters_whole
                a_lease_has_one_holder
                of_many_that_want_a_lease_one_gets_it
            }
        }
    };
}

macro_rules! every_plan {
    ($back_end:ident) => {
        facts! { $back_end, plans {
            every_statement_of_the_path_finds_its_rows_by_an_index
        } }
    };
}

mod postgres {
    claims! { postgres }
    everything_else! { postgres }
    // The others keep no plans, or are told the index.
    facts! { postgres, plans {
        every_statement_of_the_path_finds_its_rows_by_an_index
        plans_made_for_an_empty_table_do_not_outlive_it
    } }
}

mod mariadb {
    claims! { mariadb }
    everything_else! { mariadb }
    every_plan! { mariadb }
}

mod mysql_8 {
    claims! { mysql_8 }
}

mod sqlite {
    claims! { sqlite }
    everything_else! { sqlite }
    every_plan! { sqlite }
}
