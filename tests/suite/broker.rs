//! The conformance suite of the broker seam: one list of facts, checked for every back end.
//!
//! What a back end cannot do is a value of its `Features`, printed at the start; a fact that depends on it says so.

#[path = "broker/amqp.rs"]
mod amqp;
#[path = "broker/embedded.rs"]
mod embedded;
#[path = "broker/kit.rs"]
mod kit;
#[path = "broker/publishing.rs"]
mod publishing;
#[path = "broker/raw.rs"]
mod raw;
#[path = "broker/subscribing.rs"]
mod subscribing;

use std::time::{Duration, Instant};

use kit::Backend;

/// Checks every fact; their names are the report.
async fn suite(name: &str, backend: &dyn Backend) {
    let features = backend.open().await.features();
    println!("{name}: {features:?}");
    macro_rules! facts {
        ($($module:ident :: $fact:ident),* $(,)?) => {$(
            let started = Instant::now();
            let fact = $module::$fact(backend);
            if tokio::time::timeout(Duration::from_secs(60), fact).await.is_err() {
                panic!("{name}: {} took longer than a minute", stringify!($fact));
            }
            println!("{name}: {} ({:?})", stringify!($fact).replace('_', " "), started.elapsed());
        )*};
    }
    facts![
        subscribing::deliveries_come_in_the_order_they_were_published,
        subscribing::what_was_not_settled_comes_again_in_its_place_and_flagged,
        subscribing::acknowledgements_out_of_order_leave_exactly_the_rest,
        subscribing::acknowledging_a_tag_twice_or_never_delivered_changes_nothing,
        subscribing::a_subscription_that_is_dropped_gives_its_messages_back,
        subscribing::what_was_taken_can_be_settled_when_no_more_is_taken,
        subscribing::prefetch_is_bounded_by_number,
        subscribing::prefetch_reaches_its_number_when_bodies_are_small,
        subscribing::prefetch_is_bounded_by_bytes,
        subscribing::a_missing_queue_is_an_error_that_says_how_to_create_it,
        subscribing::other_arguments_are_an_error_that_names_both_sides,
        subscribing::close_is_orderly_and_the_queue_can_be_consumed_again,
        subscribing::a_subscription_ends_when_its_queue_is_deleted,
        subscribing::a_queue_has_one_or_several_consumers,
        subscribing::bindings_route_by_topic,
        publishing::what_is_confirmed_survives_the_broker_being_closed,
        publishing::every_property_and_header_comes_as_it_went,
        publishing::bodies_may_be_empty_or_large,
        publishing::expiration_user_cc_and_deaths_are_properties_like_others,
        publishing::a_message_without_a_queue_is_returned,
        publishing::an_unknown_exchange_is_refused,
        publishing::names_that_are_too_long_are_refused,
        publishing::every_answer_of_a_mixed_window_is_right,
        publishing::many_publishers_at_once_lose_nothing,
        publishing::a_consumer_sees_what_another_connection_publishes,
        publishing::an_empty_window_has_no_answers,
    ];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amqp_keeps_every_fact() {
    suite("amqp", &amqp::Server::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_keeps_every_fact() {
    suite("embedded", &embedded::Files::new()).await;
}
