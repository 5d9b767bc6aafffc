use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::message::{HeaderValue, Properties};

fn message(properties: Properties, body: &[u8]) -> Message {
    Message {
        exchange: "shop".into(),
        routing_key: "order.created".into(),
        properties,
        body: Bytes::copy_from_slice(body),
    }
}

fn body(body: &str) -> Message {
    message(Properties::default(), body.as_bytes())
}

fn headers(headers: &[(&str, HeaderValue)]) -> Message {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    message(Properties { headers, ..Properties::default() }, b"")
}

fn property(id: &str) -> Message {
    message(Properties { message_id: Some(id.to_owned()), ..Properties::default() }, b"{}")
}

fn text(text: &str) -> HeaderValue {
    HeaderValue::Text(text.to_owned())
}

/// The id found, or reason and explanation.
fn outcome(rules: &[&str], message: &Message) -> String {
    let rules: Vec<IdRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    match extract(&rules, message) {
        Ok(id) => id.to_string(),
        Err(none) => format!("{}! {none}", none.reason()),
    }
}

#[test]
fn rules_are_read_as_they_are_written() {
    for rule in ["property", "header:x-id", "header:a:b", "cloudevents", "json:/order/id", "json:", "body-digest"] {
        assert_eq!(rule.parse::<IdRule>().unwrap().to_string(), rule);
    }
    for rule in ["body", "message-id", "routing-key", "header:region", "json:/goods~1id"] {
        assert_eq!(rule.parse::<PartitionRule>().unwrap().to_string(), rule);
    }
}

#[test]
fn bad_rules_say_what_is_wrong() {
    assert_eq!("properties".parse::<IdRule>(), Err(BadRule::Unknown("properties".into())));
    assert_eq!("".parse::<IdRule>(), Err(BadRule::Unknown(String::new())));
    assert_eq!("body".parse::<IdRule>(), Err(BadRule::Unknown("body".into())));
    assert_eq!("header:".parse::<IdRule>(), Err(BadRule::NoHeaderName));
    assert!(matches!("json:id".parse::<IdRule>(), Err(BadRule::Pointer(_))));
    assert!(matches!("json:/a~2".parse::<IdRule>(), Err(BadRule::Pointer(_))));
    assert!(matches!("json:/a~".parse::<PartitionRule>(), Err(BadRule::Pointer(_))));
    assert_eq!("property".parse::<PartitionRule>(), Err(BadRule::Unknown("property".into())));
}

#[test]
fn the_property_is_taken_as_it_is() {
    assert_eq!(outcome(&["property"], &property("Ä 1 ")), "Ä 1 ");
    assert_eq!(outcome(&["property"], &body("x")), "no-id! no usable message id: property: the property is not set");
}

#[test]
fn a_header_may_be_text_a_number_or_utf8_bytes() {
    let id = |value| outcome(&["header:id"], &headers(&[("id", value)]));
    assert_eq!(id(text("a")), "a");
    assert_eq!(id(HeaderValue::Integer(-7)), "-7");
    assert_eq!(id(HeaderValue::Decimal("18446744073709551615".into())), "18446744073709551615");
    assert_eq!(id(HeaderValue::Bytes(b"b1".to_vec())), "b1");
    assert_eq!(
        id(HeaderValue::Bytes(vec![0xff])),
        "bad-id! no usable message id: header:id: the message id is not valid UTF-8"
    );
    assert_eq!(
        id(HeaderValue::Boolean(true)),
        "bad-id! no usable message id: header:id: it is a boolean, where text or a number is expected"
    );
    assert_eq!(id(HeaderValue::Null), "no-id! no usable message id: header:id: the header is null");
    assert_eq!(outcome(&["header:ID"], &headers(&[("id", text("a"))])).split('!').next(), Some("no-id"));
}

#[test]
fn json_ids_are_strings_or_numbers_as_written() {
    let id = |pointer: &str, document: &str| outcome(&[&format!("json:{pointer}")], &body(document));
    assert_eq!(id("/id", r#"{"id": "é"}"#), "é");
    assert_eq!(id("/id", r#"{"id": 1234567890123456789012345}"#), "1234567890123456789012345");
    assert_eq!(id("/id", r#"{"id": 1.50}"#), "1.50");
    assert_eq!(id("/a~1b/0/~0", r#"{"a/b": [{"~": "deep"}]}"#), "deep");
    assert_eq!(id("", "1234567890123456789"), "1234567890123456789");
    assert_eq!(id("/id", r#"{"id": null}"#), "no-id! no usable message id: json:/id: the field is null");
    assert_eq!(id("/id", "{}"), "no-id! no usable message id: json:/id: the body has no such field");
    assert_eq!(id("/id", "not json"), "no-id! no usable message id: json:/id: the body is not JSON");
    assert_eq!(
        id("/id", r#"{"id": {}}"#),
        "bad-id! no usable message id: json:/id: it is an object, where text or a number is expected"
    );
    assert!(id("/id", r#"{"id": "a\u0000"}"#).starts_with("bad-id!"));
}

#[test]
fn a_cloud_event_is_source_and_id() {
    for prefix in ["cloudEvents:", "cloudEvents_", "ce-", "ce_"] {
        let event = headers(&[(&format!("{prefix}id"), text("7")), (&format!("{prefix}source"), text("/shop"))]);
        assert_eq!(outcome(&["cloudevents"], &event), "/shop 7");
    }
    let structured = |document: &str| {
        let content_type = Some("Application/CloudEvents+JSON; charset=utf-8".to_owned());
        message(Properties { content_type, ..Properties::default() }, document.as_bytes())
    };
    assert_eq!(outcome(&["cloudevents"], &structured(r#"{"id": "8", "source": "urn:x"}"#)), "urn:x 8");
    assert_eq!(
        outcome(&["cloudevents"], &structured(r#"{"id": "8"}"#)),
        "bad-id! no usable message id: cloudevents: the CloudEvent has an id but no source"
    );
    assert!(outcome(&["cloudevents"], &structured("[1]")).starts_with("no-id!"));
    assert!(outcome(&["cloudevents"], &structured("{")).starts_with("no-id!"));
    assert!(outcome(&["cloudevents"], &headers(&[("ce-source", text("/shop"))])).starts_with("no-id!"));
}

#[test]
fn a_cloud_event_never_mixes_families_of_names() {
    let mixed = headers(&[("ce-id", text("7")), ("cloudEvents:source", text("/shop"))]);
    assert!(outcome(&["cloudevents"], &mixed).starts_with("bad-id!"));
}

#[test]
fn the_body_digest_is_always_there() {
    assert_eq!(
        outcome(&["body-digest"], &body("")),
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[test]
fn absence_falls_through_and_a_bad_value_does_not() {
    assert_eq!(outcome(&["header:x", "json:/id", "property"], &property("a")), "a");
    let bad = property(&"x".repeat(256));
    assert_eq!(
        outcome(&["header:x", "property", "body-digest"], &bad),
        "bad-id! no usable message id: header:x: there is no such header; \
         property: the message id has 256 bytes; at most 255 are accepted"
    );
    assert!(outcome(&["property", "body-digest"], &property("")).starts_with("bad-id!"));
    assert!(outcome(&["property", "body-digest"], &property("a\0")).starts_with("bad-id!"));
    assert_eq!(outcome(&["property"], &property(&"x".repeat(255))), "x".repeat(255));
}

fn slot_by(rule: &str, message: &Message) -> u16 {
    slot(&rule.parse().unwrap(), message, &MessageId::new("id-1").unwrap())
}

/// These numbers are stored in databases. If this test fails, the code is wrong, not the test.
#[test]
fn the_partition_hash_is_fixed_for_ever() {
    let id = MessageId::new("id-1").unwrap();
    let key = |rule: &str, message: &Message| partition_key(&rule.parse().unwrap(), message, &id).0;
    // First 8 bytes of SHA-256("") and SHA-256("abc") as anyone can look them up.
    assert_eq!(key("body", &body("")), 0xe3b0_c442_98fc_1c14);
    assert_eq!(key("body", &body("abc")), 0xba78_16bf_8f01_cfea);
    assert_eq!(key("json:/k", &body(r#"{"k": "abc"}"#)), 0xba78_16bf_8f01_cfea);
    assert_eq!(slot_by("body", &body("")), 0xe3);
    assert_eq!(slot_by("body", &body("abc")), 0xba);
    assert_eq!(slot_by("message-id", &body("abc")), GOLDEN_ID_1);
    assert_eq!(slot_by("routing-key", &body("abc")), GOLDEN_ORDER_CREATED);
}

/// First byte of SHA-256("id-1").
const GOLDEN_ID_1: u16 = 0xeb;
/// First byte of SHA-256("order.created").
const GOLDEN_ORDER_CREATED: u16 = 0xa9;

#[test]
fn what_lacks_its_partition_key_goes_by_its_id() {
    let by_id = slot_by("message-id", &body(""));
    for (rule, message) in [
        ("header:x", headers(&[])),
        ("header:x", headers(&[("x", HeaderValue::Null)])),
        ("json:/k", body("{}")),
        ("json:/k", body(r#"{"k": null}"#)),
        ("json:/k", body("not json")),
    ] {
        assert_eq!(slot_by(rule, &message), by_id, "{rule}");
    }
}

#[test]
fn a_partition_key_is_the_same_however_it_is_typed() {
    let goods = body("1234567890123456789");
    let goods_json = body(r#"{"goods": 1234567890123456789}"#);
    let goods_text = body(r#"{"goods": "1234567890123456789"}"#);
    let goods_header = headers(&[("goods", HeaderValue::Integer(1_234_567_890_123_456_789))]);
    let slot = slot_by("body", &goods);
    assert_eq!(slot_by("json:", &goods), slot);
    assert_eq!(slot_by("json:/goods", &goods_json), slot);
    assert_eq!(slot_by("json:/goods", &goods_text), slot);
    assert_eq!(slot_by("header:goods", &goods_header), slot);
}

proptest! {
    #[test]
    fn every_slot_belongs_to_exactly_one_lane(lanes in 1..=SLOTS) {
        let mut next = 0;
        for lane in 0..lanes {
            let slots = slots_of(lane, lanes);
            prop_assert_eq!(slots.start, next);
            prop_assert!(!slots.is_empty());
            for slot in slots.clone() {
                prop_assert_eq!(lane_of(slot, lanes), lane);
            }
            next = slots.end;
        }
        prop_assert_eq!(next, SLOTS);
    }

    #[test]
    fn arbitrary_input_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), rule in ".{0,20}", id in ".{0,300}") {
        let content_type = Some("application/cloudevents+json".to_owned());
        let properties = Properties { content_type, message_id: Some(id.clone()), ..Properties::default() };
        let message = message(properties, &bytes);
        let mut rules: Vec<IdRule> = vec!["cloudevents".parse().unwrap(), "json:/a".parse().unwrap()];
        rules.extend(rule.parse::<IdRule>());
        rules.push(IdRule::Property);
        if let Ok(found) = extract(&rules, &message) {
            prop_assert!((1..=255).contains(&found.as_bytes().len()));
        }
        prop_assert_eq!(extract(&[IdRule::Property], &message).ok().map(|found| found.to_string()),
            MessageId::new(id).ok().map(|found| found.to_string()));
    }

    #[test]
    fn sorting_by_key_sorts_by_slot(a in ".*", b in ".*") {
        let key = |text: &str| partition_key(&PartitionRule::Body, &body(text), &MessageId::new("x").unwrap());
        let (low, high) = if key(&a) <= key(&b) { (key(&a), key(&b)) } else { (key(&b), key(&a)) };
        prop_assert!(low.slot() <= high.slot());
    }
}
