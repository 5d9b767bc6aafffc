//! Facts about subscriptions.

use std::time::Duration;

use hapax::broker::{Binding, BrokerError, Declare, Outgoing, Published, QueueSpec, Subscription};
use hapax::message::{HeaderValue, Properties};
use tokio::time::{sleep, timeout};

use super::kit::{Backend, end, holds, name, next, numbers, publish, publish_numbers, spec, take, to_queue};

/// Long enough for a delivery that must not come to come.
const A_WHILE: Duration = Duration::from_millis(300);

pub(crate) async fn deliveries_come_in_the_order_they_were_published(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("order"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..700).await;
    publish_numbers(&*broker, &queue, 700..2000).await;
    for number in 0..2000 {
        let delivery = next(&mut subscription).await;
        assert_eq!((numbers(std::slice::from_ref(&delivery)), delivery.redelivered), (vec![number], false));
        assert_eq!(delivery.tag, u64::from(number) + 1);
        subscription.settler.acknowledge(vec![delivery.tag]);
    }
    subscription.settler.close().await;
    assert!(holds(&*broker, &queue, &[]).await.is_empty());
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn what_was_not_settled_comes_again_in_its_place_and_flagged(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("again"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..60).await;
    let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 20, ..spec(&queue) }).await.unwrap();
    let deliveries = take(&mut subscription, 20).await;
    subscription.settler.acknowledge(deliveries[..5].iter().map(|delivery| delivery.tag).collect());
    subscription.settler.close().await;
    // 5 to 19 were delivered for sure; 20 to 24 may have been on their way when it closed; 25 and later were not.
    let flags = holds(&*broker, &queue, &(5..60).collect::<Vec<_>>()).await;
    assert!(flags[..15].iter().all(|flag| *flag), "{flags:?}");
    assert!(!flags[20..].iter().any(|flag| *flag), "{flags:?}");
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn acknowledgements_out_of_order_leave_exactly_the_rest(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("gaps"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..400).await;
    let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 400, ..spec(&queue) }).await.unwrap();
    let deliveries = take(&mut subscription, 400).await;
    // Four tasks at once, each its own part, backwards, in uneven pieces; multiples of 7 stay.
    let settler = &subscription.settler;
    let parts = (0..4).map(|part| {
        let mut tags: Vec<u64> =
            deliveries.iter().filter(|d| d.tag % 7 != 0 && d.tag % 4 == part).map(|d| d.tag).collect();
        tags.reverse();
        async move {
            for (count, piece) in tags.chunks(3).enumerate() {
                settler.acknowledge(piece.to_vec());
                if count % 5 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    futures::future::join_all(parts).await;
    settler.close().await;
    let rest: Vec<u32> = (0..400).filter(|number| (number + 1) % 7 == 0).collect();
    let flags = holds(&*broker, &queue, &rest).await;
    assert!(flags.iter().all(|flag| *flag));
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn acknowledging_a_tag_twice_or_never_delivered_changes_nothing(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("twice"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..3).await;
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    take(&mut subscription, 3).await;
    for tags in [vec![2], vec![2, 0, 99, u64::MAX], vec![], vec![2, 1], vec![1]] {
        subscription.settler.acknowledge(tags);
        sleep(Duration::from_millis(5)).await;
    }
    // The subscription lives on.
    publish_numbers(&*broker, &queue, 3..4).await;
    assert_eq!(numbers(&[next(&mut subscription).await]), [3]);
    subscription.settler.close().await;
    holds(&*broker, &queue, &[2, 3]).await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn a_subscription_that_is_dropped_gives_its_messages_back(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("dropped"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..4).await;
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    take(&mut subscription, 4).await;
    subscription.settler.acknowledge(vec![1, 3]);
    drop(subscription);
    // Nobody says when it is done: the back end may need a moment.
    let mut again = loop {
        match broker.subscribe(&spec(&queue)).await {
            Ok(subscription) => break subscription,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    };
    let deliveries = take(&mut again, 2).await;
    assert_eq!(numbers(&deliveries), [1, 3]);
    assert!(deliveries.iter().all(|delivery| delivery.redelivered));
    again.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn what_was_taken_can_be_settled_when_no_more_is_taken(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("draining"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..300).await;
    let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 30, ..spec(&queue) }).await.unwrap();
    let tags: Vec<u64> = take(&mut subscription, 30).await.iter().map(|delivery| delivery.tag).collect();
    let Subscription { deliveries, settler } = subscription;
    drop(deliveries);
    // A host that stops: its lanes finish what they have begun.
    sleep(A_WHILE).await;
    settler.acknowledge(tags[..10].to_vec());
    sleep(A_WHILE).await;
    settler.acknowledge(tags[10..].to_vec());
    settler.close().await;
    holds(&*broker, &queue, &(30..300).collect::<Vec<_>>()).await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn prefetch_is_bounded_by_number(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("number"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..100).await;
    let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 10, ..spec(&queue) }).await.unwrap();
    let mut deliveries = take(&mut subscription, 10).await;
    assert!(timeout(A_WHILE, subscription.deliveries.recv()).await.is_err(), "an eleventh delivery");
    subscription.settler.acknowledge(deliveries.drain(..4).map(|delivery| delivery.tag).collect());
    deliveries.extend(take(&mut subscription, 4).await);
    assert!(timeout(A_WHILE, subscription.deliveries.recv()).await.is_err(), "an eleventh delivery");
    assert_eq!(numbers(&deliveries), (4..14).collect::<Vec<_>>());
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn prefetch_reaches_its_number_when_bodies_are_small(backend: &dyn Backend) {
    for prefetch in [1, 5, 100, 1000_u16] {
        let (broker, queue, number) = (backend.open().await, name("small"), u32::from(prefetch));
        broker.declare(&spec(&queue)).await.unwrap();
        publish_numbers(&*broker, &queue, 0..number + 500).await;
        let wanted = QueueSpec { prefetch_messages: prefetch, ..spec(&queue) };
        let mut subscription = broker.subscribe(&wanted).await.unwrap();
        let deliveries = take(&mut subscription, usize::from(prefetch)).await;
        assert!(timeout(A_WHILE, subscription.deliveries.recv()).await.is_err(), "more than prefetch allows");
        // Every tag is valid still, whatever the back end did to get here.
        subscription.settler.acknowledge(deliveries.iter().map(|delivery| delivery.tag).collect());
        for expected in number..number + 500 {
            let delivery = next(&mut subscription).await;
            assert_eq!(numbers(std::slice::from_ref(&delivery)), [expected]);
            subscription.settler.acknowledge(vec![delivery.tag]);
        }
        subscription.settler.close().await;
        holds(&*broker, &queue, &[]).await;
        backend.delete_queue(&queue).await;
        broker.close().await;
    }
}

pub(crate) async fn prefetch_is_bounded_by_bytes(backend: &dyn Backend) {
    const LIMIT: u64 = 40 << 20;
    let (broker, queue) = (backend.open().await, name("bytes"));
    broker.declare(&spec(&queue)).await.unwrap();
    let body = bytes::Bytes::from(vec![b'x'; 16 << 20]);
    for _ in 0..6 {
        publish(&*broker, &[to_queue(&queue, body.clone())]).await;
    }
    let wanted = QueueSpec { prefetch_messages: 1000, prefetch_bytes: LIMIT, ..spec(&queue) };
    let mut subscription = broker.subscribe(&wanted).await.unwrap();
    let mut seen = 0;
    let mut held = Vec::new();
    while seen < 6 {
        held.push(next(&mut subscription).await.tag);
        seen += 1;
        // Whatever else is allowed to be here now, is here after a while.
        while let Ok(Some(Ok(delivery))) = timeout(A_WHILE, subscription.deliveries.recv()).await {
            held.push(delivery.tag);
            seen += 1;
        }
        let bytes = held.len() as u64 * (16 << 20);
        assert!(bytes <= LIMIT + LIMIT / 2, "{bytes} bytes unsettled");
        subscription.settler.acknowledge(std::mem::take(&mut held));
    }
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn a_missing_queue_is_an_error_that_says_how_to_create_it(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("missing"));
    for declare in [Declare::Passive, Declare::None] {
        let error = broker.subscribe(&QueueSpec { declare, ..spec(&queue) }).await.err();
        let Some(BrokerError::Queue { queue: named, reason, hint }) = error else { panic!("{error:?}") };
        assert_eq!(named, queue);
        assert!(reason.contains("does not exist"), "{reason}");
        assert!(hint.contains("declare = \"create\""), "{hint}");
    }
    assert!(broker.declare(&QueueSpec { declare: Declare::Passive, ..spec(&queue) }).await.is_err());
    broker.declare(&spec(&queue)).await.unwrap();
    broker.declare(&QueueSpec { declare: Declare::Passive, ..spec(&queue) }).await.unwrap();
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn other_arguments_are_an_error_that_names_both_sides(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("arguments"));
    let with = |length| {
        let mut spec = spec(&queue);
        spec.arguments.insert("x-max-length".to_owned(), HeaderValue::Integer(length));
        spec
    };
    broker.declare(&with(1000)).await.unwrap();
    broker.declare(&with(1000)).await.unwrap();
    let error = broker.subscribe(&with(2000)).await.err();
    let Some(BrokerError::Queue { reason, hint, .. }) = error else { panic!("{error:?}") };
    assert!(reason.contains("2000") && reason.contains("1000"), "{reason}");
    assert!(hint.contains("declare = \"passive\""), "{hint}");
    // Other subscriptions of the same broker go on.
    let mut passive = broker.subscribe(&QueueSpec { declare: Declare::Passive, ..spec(&queue) }).await.unwrap();
    assert!(broker.declare(&with(3000)).await.is_err());
    publish_numbers(&*broker, &queue, 0..1).await;
    assert_eq!(numbers(&[next(&mut passive).await]), [0]);
    passive.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn close_is_orderly_and_the_queue_can_be_consumed_again(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("orderly"));
    broker.declare(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..30).await;
    let mut remaining = 0..30;
    for _ in 0..3 {
        let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
        let deliveries = take(&mut subscription, 10).await;
        assert_eq!(numbers(&deliveries), (remaining.start..remaining.start + 10).collect::<Vec<_>>());
        // Acknowledged and closed in the same breath: the acknowledgements count.
        subscription.settler.acknowledge(deliveries.iter().map(|delivery| delivery.tag).collect());
        subscription.settler.close().await;
        assert_eq!(end(&mut subscription).await, None);
        subscription.settler.acknowledge(vec![11]);
        subscription.settler.close().await;
        remaining.start += 10;
    }
    holds(&*broker, &queue, &[]).await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn a_subscription_ends_when_its_queue_is_deleted(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("deleted"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 0..3).await;
    take(&mut subscription, 3).await;
    backend.delete_queue(&queue).await;
    let error = end(&mut subscription).await;
    let Some(BrokerError::Ended { queue: named, reason }) = error else { panic!("{error:?}") };
    assert_eq!(named, queue);
    assert!(reason.contains("deleted"), "{reason}");
    subscription.settler.acknowledge(vec![1]);
    subscription.settler.close().await;
    let mut again = broker.subscribe(&spec(&queue)).await.unwrap();
    publish_numbers(&*broker, &queue, 7..8).await;
    assert_eq!(numbers(&[next(&mut again).await]), [7]);
    again.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn a_queue_has_one_or_several_consumers(backend: &dyn Backend) {
    let (broker, queue) = (backend.open().await, name("several"));
    let mut first = broker.subscribe(&spec(&queue)).await.unwrap();
    let second = broker.subscribe(&spec(&queue)).await;
    if broker.features().competing_consumers {
        let mut second = second.unwrap();
        publish_numbers(&*broker, &queue, 0..200).await;
        let mut all = Vec::new();
        while all.len() < 200 {
            let (from, delivery) = tokio::select! {
                delivery = next(&mut first) => (&first, delivery),
                delivery = next(&mut second) => (&second, delivery),
            };
            all.extend(numbers(std::slice::from_ref(&delivery)));
            from.settler.acknowledge(vec![delivery.tag]);
        }
        all.sort_unstable();
        assert_eq!(all, (0..200).collect::<Vec<_>>());
        second.settler.close().await;
    } else {
        let Some(BrokerError::Queue { reason, .. }) = second.err() else { panic!("a second consumer") };
        assert!(reason.contains(&std::process::id().to_string()) && reason.contains(".lock"), "{reason}");
    }
    first.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}

pub(crate) async fn bindings_route_by_topic(backend: &dyn Backend) {
    let (broker, queue, exchange) = (backend.open().await, name("bound"), name("topics"));
    let binding = |key: &str| Binding { exchange: exchange.clone(), routing_key: key.to_owned() };
    let bound = QueueSpec { bindings: vec![binding("order.*"), binding("#.eu")], ..spec(&queue) };
    if !broker.features().creates_bound_exchanges {
        let error = broker.declare(&bound).await.err();
        let Some(BrokerError::Queue { reason, hint, .. }) = error else { panic!("{error:?}") };
        assert!(reason.contains(&exchange) && hint.contains("declare exchange"), "{reason}; {hint}");
        backend.create_topic_exchange(&exchange).await;
    }
    let mut subscription = broker.subscribe(&bound).await.unwrap();
    let to = |key: &str| Outgoing {
        exchange: exchange.clone(),
        routing_key: key.to_owned(),
        properties: Properties::default(),
        body: key.to_owned().into(),
    };
    let window = ["order.created", "order.created.eu", "order", "refund.us", "order.eu", "eu"].map(to);
    let answers = broker.publisher().publish(&window).await;
    let routed: Vec<bool> = answers.iter().map(|answer| *answer == Published::Confirmed).collect();
    assert_eq!(routed, [true, true, false, false, true, true], "{answers:?}");
    let keys: Vec<String> = take(&mut subscription, 4).await.into_iter().map(|d| d.message.routing_key).collect();
    assert_eq!(keys, ["order.created", "order.created.eu", "order.eu", "eu"]);
    subscription.settler.close().await;
    backend.delete_queue(&queue).await;
    broker.close().await;
}
