//! The harness itself: servers start, answer, survive a crash with their durable data, and leave nothing behind.

mod processes;
mod rabbit;
mod sharing;
mod stores;

/// A user's own server is neither killed nor frozen: says so and passes.
fn not_tested(server: &str) -> hapax_tests::TestResult {
    println!("not tested on {server}");
    Ok(())
}

/// Names a server of the user's own, if there is one: then the others may not even be installed.
fn users_own() -> Option<String> {
    let names = ["HAPAX_TEST_AMQP_URL", "HAPAX_TEST_REDIS_URL", "HAPAX_TEST_POSTGRES_URL", "HAPAX_TEST_MYSQL_URL"];
    names.into_iter().find(|name| std::env::var(name).is_ok_and(|url| !url.is_empty())).map(str::to_owned)
}
