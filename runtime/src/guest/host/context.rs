//! `hapax:handler/context`: what is known about the running attempt.
//!
//! ```wit
//! let key = context.idempotency-key("charge")   // the same on every attempt and every host
//! ```

use std::sync::Arc;
use std::time::Instant;

use wasmtime::component::{HasSelf, Linker};

use super::super::bindings::context::{self, Host};
use super::super::grants::ConsumerContext;
use super::super::state::State;
use super::super::{Call, ids};

/// The host's side of `context`.
pub(crate) struct ContextHost {
    consumer: Arc<ConsumerContext>,
    running: Option<Running>,
}

struct Running {
    call: Call,
    deadline: Instant,
}

impl ContextHost {
    pub(crate) fn new(consumer: Arc<ConsumerContext>) -> Self {
        Self { consumer, running: None }
    }

    /// Starts an attempt.
    pub(crate) fn begin(&mut self, call: Call, deadline: Instant) {
        self.running = Some(Running { call, deadline });
    }

    /// Ends it.
    pub(crate) fn finish(&mut self) {
        self.running = None;
    }

    /// While an instance starts, before its first call, there is no attempt to know anything about.
    fn call(&self) -> Option<&Call> {
        self.running.as_ref().map(|running| &running.call)
    }

    fn text_header(&self, name: &str) -> Option<String> {
        let value = self.call()?.message.properties.header(name)?.as_text()?;
        Some(value.into_owned())
    }
}

impl Host for ContextHost {
    fn consumer(&mut self) -> String {
        self.consumer.consumer.clone()
    }

    fn queue(&mut self) -> String {
        self.consumer.queue.clone()
    }

    fn attempt(&mut self) -> u32 {
        self.call().map_or(0, |call| call.attempt)
    }

    fn max_attempts(&mut self) -> u32 {
        self.call().map_or(0, |call| call.max_attempts)
    }

    fn remaining_ms(&mut self) -> u64 {
        let left = self.running.as_ref().map(|running| running.deadline.saturating_duration_since(Instant::now()));
        left.map_or(0, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
    }

    fn traceparent(&mut self) -> Option<String> {
        self.text_header("traceparent")
    }

    fn tracestate(&mut self) -> Option<String> {
        self.text_header("tracestate")
    }

    fn idempotency_key(&mut self, purpose: String) -> String {
        self.call()
            .map_or_else(String::new, |call| ids::idempotency_key(&self.consumer.consumer, call, &purpose).to_string())
    }

    fn config(&mut self, key: String) -> Option<String> {
        self.consumer.grants.config.0.get(&key).cloned()
    }
}

/// Links `context`.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    context::add_to_linker::<State, HasSelf<ContextHost>>(linker, |state| &mut state.context)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::guest::grants::{ConfigValues, Grants, Limits};
    use crate::guest::testing::{call, consumer};
    use crate::message::HeaderValue;

    fn host() -> ContextHost {
        let config = ConfigValues(BTreeMap::from([("region".to_owned(), "eu".to_owned())]));
        ContextHost::new(consumer(Grants { config, ..Grants::default() }, Limits::default()))
    }

    #[test]
    fn a_guest_learns_about_its_attempt() {
        let mut host = host();
        let mut call = Call { attempt: 2, ..call() };
        let message = Arc::make_mut(&mut call.message);
        message.properties.headers.push(("traceparent".into(), HeaderValue::Text("00-1-2-01".into())));
        host.begin(call, Instant::now() + Duration::from_secs(5));
        assert_eq!((host.consumer(), host.queue()), ("shop".into(), "orders".into()));
        assert_eq!((host.attempt(), host.max_attempts()), (2, 5));
        assert!((4_000..=5_000).contains(&host.remaining_ms()));
        assert_eq!((host.traceparent().as_deref(), host.tracestate()), (Some("00-1-2-01"), None));
        assert_eq!(host.idempotency_key("charge".into()).len(), 36);
    }

    #[test]
    fn only_granted_config_values_are_told() {
        let mut host = host();
        assert_eq!(host.config("region".into()).as_deref(), Some("eu"));
        assert_eq!(host.config("password".into()), None);
    }

    #[test]
    fn between_calls_there_is_no_attempt() {
        let mut host = host();
        assert_eq!((host.attempt(), host.remaining_ms()), (0, 0));
        host.begin(call(), Instant::now());
        host.finish();
        assert_eq!(host.idempotency_key("x".into()), "");
    }
}
