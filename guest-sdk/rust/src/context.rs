//! What is known about the running attempt.

use std::time::Duration;

use crate::host::context as host;

/// What is known about the running attempt. Take it as a parameter, or write `Context` anywhere: `Context.attempt()`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Context;

impl Context {
    /// The consumer that called, by its name in the config.
    pub fn consumer(self) -> String {
        host::consumer()
    }

    /// The queue that the message came from.
    pub fn queue(self) -> String {
        host::queue()
    }

    /// 1 on the first attempt. Only failures of the handler raise it, so the same number may be seen twice.
    pub fn attempt(self) -> u32 {
        host::attempt()
    }

    /// How many attempts there may be.
    pub fn max_attempts(self) -> u32 {
        host::max_attempts()
    }

    /// Whether a failure by policy would be the last one.
    pub fn is_last_attempt(self) -> bool {
        self.attempt() >= self.max_attempts()
    }

    /// Time left until the host stops this attempt.
    pub fn remaining(self) -> Duration {
        Duration::from_millis(host::remaining_ms())
    }

    /// The W3C trace context of the message.
    pub fn traceparent(self) -> Option<String> {
        host::traceparent()
    }

    /// The W3C trace state of the message.
    pub fn tracestate(self) -> Option<String> {
        host::tracestate()
    }

    /// A key for a call to another system: the same for the same message and purpose, on every attempt and host.
    pub fn idempotency_key(self, purpose: &str) -> String {
        host::idempotency_key(purpose)
    }

    /// A value granted to this consumer in the config; none if there is no such grant.
    pub fn config(self, key: &str) -> Option<String> {
        host::config(key)
    }
}
