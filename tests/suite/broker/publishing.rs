//! Facts about publishing, and about what a message looks like when it arrives.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hapax::broker::{Outgoing, Published, QueueSpec};
use hapax::message::{HeaderValue, Properties};

use super::kit::{Backend, holds, name, next, publish, publish_numbers, spec, to_queue};

pub(crate) async fn what_is_confirmed_survives_the_broker_being_closed(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("durable"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..50).await;
    broker.close().await;
    let broker = backend.open().await;
    assert!(!broker.describe().await.unwrap().is_empty());
    let flags = holds(&*broker, &queue, &(0..50).collect::<Vec<_>>()).await;
    assert!(!flags.iter().any(|flag| *flag));
    backend.delete_queue(&queue).await;
    broker.close().await;
}

fn every_property() -> Properties {
    let text = |text: &str| Some(text.to_owned());
    let header = |name: &str, value| (name.to_owned(), value);
    Properties {
        content_type: text("application/json"),
        content_encoding: text("utf-8"),
        headers: vec![
            header("array", HeaderValue::Json(r#"[1,"two",{"three":[null,true,1.5]}]"#.to_owned())),
            header("boolean", HeaderValue::Boolean(true)),
            header("bytes", HeaderValue::Bytes(vec![0, 0xff, 0x80])),
            header("decimal", HeaderValue::Decimal("17.50".to_owned())),
            header("empty", HeaderValue::Text(String::new())),
            header("float", HeaderValue::Float(-0.25)),
            header("largest", HeaderValue::Integer(i64::MAX)),
            header("least", HeaderValue::Integer(i64::MIN)),
            header("null", HeaderValue::Null),
            header("table", HeaderValue::Json(r#"{"a":{"b":[]}}"#.to_owned())),
            header("text", HeaderValue::Text("Grüße, 世界".to_owned())),
            header("timestamp", HeaderValue::Timestamp(1_700_000_000)),
            header("x-long", HeaderValue::Text("x".repeat(10_000))),
        ],
        delivery_mode: Some(2),
        priority: Some(7),
        correlation_id: text("correlation"),
        reply_to: text("answers"),
        expiration: None,
        message_id: text("ид-1"),
        timestamp: Some(1_700_000_001),
        kind: text("order"),
        user_id: None,
        app_id: text("shop"),
    }
}

pub(crate) async fn every_property_and_header_comes_as_it_went(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("properties"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    let bare = Properties { delivery_mode: Some(2), ..Properties::default() };
    for properties in [every_property(), bare] {
        let message = Outgoing { properties: properties.clone(), ..to_queue(&queue, "body") };
        publish(&*broker, &[message]).await;
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.message.properties, properties);
        assert_eq!((delivery.message.exchange.as_str(), delivery.message.routing_key.as_str()), ("", queue.as_str()));
        assert_eq!(delivery.message.body, "body");
    }
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn bodies_may_be_empty_or_large(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("bodies"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    let bodies = [0, 1, 131_064, 131_065, (16 << 20) + 1]
        .map(|size: usize| bytes::Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>()));
    let window: Vec<Outgoing> = bodies.iter().map(|body| to_queue(&queue, body.clone())).collect();
    publish(&*broker, &window).await;
    for body in bodies {
        let delivery = next(&mut subscription).await;
        assert!(delivery.message.body == body, "{} of {} bytes", delivery.message.body.len(), body.len());
    }
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn expiration_user_cc_and_deaths_are_properties_like_others(backend: &dyn Backend) {
    let (broker, queue, copied) = (backend.open().await, name("odd"), name("cc"));
    broker.declare(&spec(&queue)).await.unwrap();
    broker.declare(&spec(&copied)).await.unwrap();
    let deaths = format!(r#"[{{"count":3,"exchange":"","queue":{queue:?},"reason":"expired","routing-keys":["k"]}}]"#);
    let properties = Properties {
        expiration: Some("600000".to_owned()),
        user_id: Some("guest".to_owned()),
        headers: vec![
            ("CC".to_owned(), HeaderValue::Json(format!("[{copied:?}]"))),
            ("x-death".to_owned(), HeaderValue::Json(deaths)),
        ],
        delivery_mode: Some(2),
        ..Properties::default()
    };
    publish(&*broker, &[Outgoing { properties: properties.clone(), ..to_queue(&queue, "odd") }]).await;
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    assert_eq!(next(&mut subscription).await.message.properties, properties);
    subscription.settler.close().await;
    for expiring in [0, 1] {
        let properties = Properties { expiration: Some(expiring.to_string()), ..Properties::default() };
        publish(&*broker, &[Outgoing { properties, ..to_queue(&copied, "short-lived") }]).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    publish_numbers(&*broker, &copied, 0..1).await;
    let mut subscription = broker.subscribe(&spec(&copied)).await.unwrap();
    let first = next(&mut subscription).await.message.body;
    // A broker that acts on CC delivered the copy first; one that acts on `expiration` has dropped the two.
    assert_eq!(first, if broker.features().expires_messages { "odd" } else { "short-lived" });
    if broker.features().expires_messages {
        assert_eq!(next(&mut subscription).await.message.body, "0");
    }
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    backend.delete_queue(&copied).await;
    broker.close().await;
}

pub(crate) async fn a_message_without_a_queue_is_returned(backend: &dyn Backend) {
    let broker = backend.open().await;
    let nowhere = name("nowhere");
    let answers = broker.publisher().publish(&[to_queue(&nowhere, "1"), to_queue(&nowhere, "")]).await;
    for answer in answers {
        let Published::Returned(reason) = answer else { panic!("{answer:?}") };
        assert!(reason.contains(&nowhere), "{reason}");
    }
    broker.close().await;
}

pub(crate) async fn an_unknown_exchange_is_refused(backend: &dyn Backend) {
    let broker = backend.open().await;
    let exchange = name("no-exchange");
    let message = Outgoing { exchange: exchange.clone(), ..to_queue("k", "1") };
    let publisher = broker.publisher();
    for window in [vec![message.clone()], vec![message; 3]] {
        for answer in publisher.publish(&window).await {
            assert!(broker.features().refuses_unknown_exchange);
            let Published::Refused(reason) = answer else { panic!("{answer:?}") };
            assert!(reason.contains(&exchange), "{reason}");
        }
    }
    broker.close().await;
}

pub(crate) async fn names_that_are_too_long_are_refused(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("long"));
    broker.declare(&spec(&queue)).await.unwrap();
    let mut long_key = to_queue(&"k".repeat(256), "1");
    long_key.properties.message_id = None;
    let window = [long_key, to_queue(&queue, "2")];
    let answers = broker.publisher().publish(&window).await;
    assert!(matches!(answers[0], Published::Refused(_) | Published::Returned(_)), "{answers:?}");
    assert_eq!(answers[1], Published::Confirmed);
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn every_answer_of_a_mixed_window_is_right(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("mixed"));
    let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 1000, ..spec(&queue) }).await.unwrap();
    let (nowhere, missing) = (name("nowhere"), name("missing"));
    let fate = |number: u32| match number {
        _ if number % 97 == 13 => "refused",
        _ if number % 5 == 2 || number % 23 == 7 => "returned",
        _ => "confirmed",
    };
    let window: Vec<Outgoing> = (0..5000)
        .map(|number| {
            let message = to_queue(&queue, number.to_string());
            match fate(number) {
                "refused" => Outgoing { exchange: missing.clone(), ..message },
                "returned" => Outgoing { routing_key: nowhere.clone(), ..message },
                _ => message,
            }
        })
        .collect();
    let answers = broker.publisher().publish(&window).await;
    for (number, answer) in (0..).zip(&answers) {
        let right = match fate(number) {
            "refused" => matches!(answer, Published::Refused(_)),
            "returned" => matches!(answer, Published::Returned(_)),
            _ => *answer == Published::Confirmed,
        };
        assert!(right, "{number} should be {}: {answer:?}", fate(number));
    }
    let expected: BTreeSet<u32> = (0..5000).filter(|number| fate(*number) == "confirmed").collect();
    let mut arrived = BTreeSet::new();
    let mut count = 0;
    while arrived.len() < expected.len() {
        let delivery = next(&mut subscription).await;
        arrived.insert(std::str::from_utf8(&delivery.message.body).unwrap().parse().unwrap());
        subscription.settler.acknowledge(vec![delivery.tag]);
        count += 1;
    }
    assert_eq!(arrived, expected);
    // A neighbour of a refused message may be published again, but not over and over.
    assert!(count <= 2 * expected.len(), "{count} deliveries of {} messages", expected.len());
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn many_publishers_at_once_lose_nothing(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("many"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    let publishers = (0..8_u32).map(|lane| {
        let (broker, queue) = (broker.clone(), queue.clone());
        tokio::spawn(async move {
            let publisher = broker.publisher();
            for window in 0..10 {
                let start = lane * 1000 + window * 20;
                let window: Vec<_> = (start..start + 20).map(|n| to_queue(&queue, n.to_string())).collect();
                assert_eq!(publisher.publish(&window).await, vec![Published::Confirmed; 20]);
            }
        })
    });
    let publishing = futures::future::join_all(publishers);
    let consuming = async {
        let mut arrived = BTreeSet::new();
        while arrived.len() < 1600 {
            let delivery = next(&mut subscription).await;
            assert!(arrived.insert(delivery.message.body.clone()), "{:?} came twice", delivery.message.body);
            subscription.settler.acknowledge(vec![delivery.tag]);
        }
    };
    let (published, ()) = futures::join!(publishing, consuming);
    published.into_iter().for_each(|result| result.unwrap());
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn a_consumer_sees_what_another_connection_publishes(backend: &dyn Backend) {
    let (consuming, publishing, queue) = (backend.open().await, backend.open().await, name("across"));
    assert!(consuming.features().shared);
    let mut subscription = consuming.subscribe(&spec(&queue)).await.unwrap();
    for number in 0..10 {
        publish_numbers(&*publishing, &queue, number..number + 1).await;
        let confirmed = Instant::now();
        next(&mut subscription).await;
        assert!(confirmed.elapsed() < Duration::from_secs(2), "{:?}", confirmed.elapsed());
    }
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    consuming.close().await;
    publishing.close().await;
}

pub(crate) async fn an_empty_window_has_no_answers(backend: &dyn Backend) {
    let broker = backend.open().await;
    assert!(broker.publisher().publish(&[]).await.is_empty());
    broker.close().await;
}
