//! `hapax:handler/outbox`: messages that are published if, and only if, the attempt commits.
//!
//! ```wit
//! let id = outbox.publish("shop", "stock.reduced", properties, body)?   // the same id on every attempt
//! ```
//! Nothing is published here: messages are collected, and the lane writes them in the attempt's transaction.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{HasSelf, Linker};

use super::super::bindings::outbox::{self, Error, ErrorKind, Host};
use super::super::bindings::types;
use super::super::grants::ConsumerContext;
use super::super::state::State;
use super::super::verdict::size;
use super::super::{Call, convert, ids};
use crate::broker::Outgoing;
use crate::message::{HeaderValue, Properties};

/// Longest short string of AMQP in bytes: names, routing keys, and every property that is text.
const SHORT_STRING: usize = 255;
/// Delivery mode of everything that Hapax publishes.
const PERSISTENT: u8 = 2;
/// What a header costs besides its name and value.
const HEADER_OVERHEAD: u64 = 16;

fn refused(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error { kind, message: message.into() }
}

fn invalid(message: impl Into<String>) -> Error {
    refused(ErrorKind::Invalid, message)
}

/// The host's side of `outbox`.
pub(crate) struct OutboxHost {
    consumer: Arc<ConsumerContext>,
    call: Option<Call>,
    messages: Vec<Outgoing>,
    bytes: u64,
}

impl OutboxHost {
    pub(crate) fn new(consumer: Arc<ConsumerContext>) -> Self {
        Self { consumer, call: None, messages: Vec::new(), bytes: 0 }
    }

    /// Starts an attempt.
    pub(crate) fn begin(&mut self, call: Call) {
        *self = Self { call: Some(call), ..Self::new(Arc::clone(&self.consumer)) };
    }

    /// Ends it, and gives out what was collected.
    pub(crate) fn finish(&mut self) -> Vec<Outgoing> {
        self.call = None;
        self.bytes = 0;
        std::mem::take(&mut self.messages)
    }

    fn add(
        &mut self,
        exchange: String,
        routing_key: String,
        properties: types::Properties,
        body: Vec<u8>,
    ) -> Result<String, Error> {
        let Some(call) = &self.call else { return Err(refused(ErrorKind::Other, "there is no attempt to publish in")) };
        self.check_grant(&exchange, &routing_key)?;
        let mut properties = convert::properties(properties);
        check_properties(&properties)?;
        let bytes = self.check_limits(&exchange, &routing_key, &properties, body.len())?;
        let ordinal = u32::try_from(self.messages.len()).unwrap_or(u32::MAX);
        let id = ids::outbox_id(&self.consumer.consumer, call, ordinal).to_string();
        properties.message_id = Some(id.clone());
        properties.delivery_mode = Some(PERSISTENT);
        self.messages.push(Outgoing { exchange, routing_key, properties, body: Bytes::from(body) });
        self.bytes = bytes;
        Ok(id)
    }

    fn check_grant(&self, exchange: &str, routing_key: &str) -> Result<(), Error> {
        short("the exchange", exchange)?;
        short("the routing key", routing_key)?;
        if self.consumer.grants.publish.iter().any(|grant| grant.allows(exchange, routing_key)) {
            return Ok(());
        }
        Err(refused(
            ErrorKind::Denied,
            format!(
                "consumer \"{}\" may not publish to exchange \"{exchange}\" with routing key \"{routing_key}\"; \
                 a grant for it goes to `grants.publish`",
                self.consumer.consumer
            ),
        ))
    }

    /// The size of all messages with this one, if it still fits.
    fn check_limits(&self, exchange: &str, key: &str, properties: &Properties, body: usize) -> Result<u64, Error> {
        let limits = &self.consumer.limits;
        if self.messages.len() as u64 >= u64::from(limits.outbox_messages) {
            return Err(refused(
                ErrorKind::TooMany,
                format!("an attempt may publish {} messages", limits.outbox_messages),
            ));
        }
        let bytes = self.bytes + (exchange.len() + key.len() + body) as u64 + properties_size(properties);
        if bytes > limits.outbox_bytes {
            return Err(refused(
                ErrorKind::TooLarge,
                format!("the messages of an attempt may have {} together", size(limits.outbox_bytes)),
            ));
        }
        Ok(bytes)
    }
}

fn short(what: &str, text: &str) -> Result<(), Error> {
    if text.len() > SHORT_STRING {
        return Err(invalid(format!("{what} has {} bytes; AMQP allows {SHORT_STRING}", text.len())));
    }
    if text.contains('\0') {
        return Err(invalid(format!("{what} contains a NUL character")));
    }
    Ok(())
}

fn check_properties(properties: &Properties) -> Result<(), Error> {
    if properties.user_id.is_some() {
        return Err(invalid("user-id is the host's own at the broker; leave it empty"));
    }
    for (name, value) in [
        ("content-type", &properties.content_type),
        ("content-encoding", &properties.content_encoding),
        ("correlation-id", &properties.correlation_id),
        ("reply-to", &properties.reply_to),
        ("expiration", &properties.expiration),
        ("type", &properties.kind),
        ("app-id", &properties.app_id),
    ] {
        short(name, value.as_deref().unwrap_or_default())?;
    }
    // RabbitMQ closes the channel on any other text.
    if let Some(expiration) = &properties.expiration
        && expiration.parse::<u32>().is_err()
    {
        return Err(invalid(format!("expiration is \"{expiration}\"; it must be a number of milliseconds below 2^32")));
    }
    properties.headers.iter().try_for_each(|(name, value)| check_header(name, value))
}

fn check_header(name: &str, value: &HeaderValue) -> Result<(), Error> {
    if name.is_empty() {
        return Err(invalid("a header has no name"));
    }
    short("a header's name", name)?;
    if name.eq_ignore_ascii_case("cc") || name.eq_ignore_ascii_case("bcc") {
        return Err(invalid(format!("the header {name} sends copies past the grants; publish each message by itself")));
    }
    if name.get(..8).is_some_and(|prefix| prefix.eq_ignore_ascii_case("x-hapax-")) {
        return Err(invalid(format!("the header {name} is the host's own")));
    }
    match value {
        HeaderValue::Json(json) if serde_json::from_str::<serde::de::IgnoredAny>(json).is_err() => {
            Err(invalid(format!("the header {name} is not valid JSON")))
        }
        HeaderValue::Decimal(number) if !is_decimal(number) => {
            Err(invalid(format!("the header {name} is not a decimal number")))
        }
        _ => Ok(()),
    }
}

fn is_decimal(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    match unsigned.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(unsigned),
    }
}

fn properties_size(properties: &Properties) -> u64 {
    let texts = [
        &properties.content_type,
        &properties.content_encoding,
        &properties.correlation_id,
        &properties.reply_to,
        &properties.expiration,
        &properties.kind,
        &properties.app_id,
    ];
    let texts: u64 = texts.into_iter().flatten().map(|text| text.len() as u64).sum();
    let headers: u64 = properties.headers.iter().map(|(name, value)| name.len() as u64 + value_size(value)).sum();
    texts + headers
}

fn value_size(value: &HeaderValue) -> u64 {
    let payload = match value {
        HeaderValue::Text(text) | HeaderValue::Decimal(text) | HeaderValue::Json(text) => text.len(),
        HeaderValue::Bytes(bytes) => bytes.len(),
        _ => 0,
    };
    payload as u64 + HEADER_OVERHEAD
}

impl Host for OutboxHost {
    fn publish(
        &mut self,
        exchange: String,
        routing_key: String,
        properties: types::Properties,
        body: Vec<u8>,
    ) -> Result<String, Error> {
        self.add(exchange, routing_key, properties, body)
    }
}

/// Links `outbox`.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    outbox::add_to_linker::<State, HasSelf<OutboxHost>>(linker, |state| &mut state.outbox)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::grants::{Grants, Limits, PublishGrant};
    use crate::guest::testing::{call, consumer};

    fn host(limits: Limits) -> OutboxHost {
        let publish = vec![PublishGrant { exchange: "shop".into(), routing_key: "stock.*".into() }];
        let mut host = OutboxHost::new(consumer(Grants { publish, ..Grants::default() }, limits));
        host.begin(call());
        host
    }

    fn none() -> types::Properties {
        types::Properties {
            content_type: None,
            content_encoding: None,
            headers: Vec::new(),
            delivery_mode: None,
            priority: None,
            correlation_id: None,
            reply_to: None,
            expiration: None,
            message_id: None,
            timestamp: None,
            type_: None,
            user_id: None,
            app_id: None,
        }
    }

    fn publish(host: &mut OutboxHost, properties: types::Properties) -> Result<String, Error> {
        host.publish("shop".into(), "stock.reduced".into(), properties, b"x".to_vec())
    }

    fn header(name: &str, value: types::HeaderValue) -> types::Properties {
        types::Properties { headers: vec![(name.into(), value)], ..none() }
    }

    #[test]
    fn ids_are_the_same_on_every_attempt_and_delivery_is_persistent() {
        let mut host = host(Limits::default());
        let own = types::Properties { message_id: Some("mine".into()), delivery_mode: Some(1), ..none() };
        let ids = [publish(&mut host, own.clone()).unwrap(), publish(&mut host, own.clone()).unwrap()];
        assert_ne!(ids[0], ids[1]);
        let messages = host.finish();
        assert_eq!(messages[1].properties.message_id.as_ref(), Some(&ids[1]));
        assert_eq!(messages[1].properties.delivery_mode, Some(2));
        host.begin(Call { attempt: 2, ..call() });
        assert_eq!(publish(&mut host, own).unwrap(), ids[0]);
    }

    #[test]
    fn a_refused_message_uses_up_no_id() {
        let mut host = host(Limits::default());
        assert_eq!(host.publish("".into(), "q".into(), none(), vec![]).unwrap_err().kind, ErrorKind::Denied);
        let id = publish(&mut host, none()).unwrap();
        assert_eq!(id, ids::outbox_id("shop", &call(), 0).to_string());
        assert_eq!(host.finish().len(), 1);
    }

    #[test]
    fn what_the_broker_or_the_host_would_choke_on_is_refused() {
        use types::HeaderValue as H;
        for properties in [
            types::Properties { user_id: Some("guest".into()), ..none() },
            types::Properties { expiration: Some("soon".into()), ..none() },
            types::Properties { correlation_id: Some("x".repeat(256)), ..none() },
            types::Properties { app_id: Some("a\0".into()), ..none() },
            header("CC", H::Json("[\"x\"]".into())),
            header("bcc", H::Null),
            header("X-Hapax-Dead-Id", H::Integer(1)),
            header("", H::Null),
            header(&"x".repeat(256), H::Null),
            header("a", H::Json("{".into())),
            header("a", H::Decimal("1e5".into())),
        ] {
            let error = publish(&mut host(Limits::default()), properties.clone()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{properties:?}");
        }
        for value in [H::Json("{\"a\":[1]}".into()), H::Decimal("-1.50".into()), H::Bytes(vec![0])] {
            assert!(publish(&mut host(Limits::default()), header("x-hap", value)).is_ok());
        }
    }

    #[test]
    fn number_and_size_are_limited_for_the_whole_attempt() {
        let mut few = host(Limits { outbox_messages: 2, ..Limits::default() });
        assert!(publish(&mut few, none()).is_ok() && publish(&mut few, none()).is_ok());
        assert_eq!(publish(&mut few, none()).unwrap_err().kind, ErrorKind::TooMany);
        let mut small = host(Limits { outbox_bytes: 40, ..Limits::default() });
        assert!(publish(&mut small, none()).is_ok() && publish(&mut small, none()).is_ok());
        let error = publish(&mut small, none()).unwrap_err();
        assert_eq!((error.kind, error.message.contains("40 bytes")), (ErrorKind::TooLarge, true));
    }
}
