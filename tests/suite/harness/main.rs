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
