//! What an operator sees: [`logging`], [`metrics`], and over HTTP ([`http`]) whether the process is alive, whether it
//! is ready, and what it still waits for ([`readiness`], [`waits`]).

pub mod http;
pub mod logging;
pub mod metrics;
pub mod readiness;
pub mod waits;
