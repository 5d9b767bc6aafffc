//! RabbitMQ, and what is true of a server alone.

use std::io::Read as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hapax::broker::amqp::Amqp;
use hapax::broker::{Binding, Broker, BrokerError, Declare, Outgoing, Published, QueueSpec, Settings};
use hapax::message::{HeaderValue, MessageId, Properties};
use lapin::options::{ExchangeDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

use super::kit::{Backend, PATIENCE, end, name, next, numbers, publish, publish_numbers, spec, take, to_queue};
use std::sync::OnceLock;

use hapax_tests::servers::{Rabbit, shared};

use super::raw::{self, Wire};

/// The server to test with: user and password `guest`, virtual host `/`.
fn amqp_url() -> String {
    static URL: OnceLock<String> = OnceLock::new();
    // On a thread and a runtime of its own: most of these tests ask from inside one.
    let start = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { shared().rabbit().await.unwrap().url().to_owned() })
    };
    URL.get_or_init(|| std::thread::spawn(start).join().unwrap()).clone()
}

/// The server's socket.
fn amqp_address() -> SocketAddr {
    let url = amqp_url();
    let authority = url.rsplit('@').next().and_then(|rest| rest.split('/').next()).unwrap();
    authority.to_socket_addrs().unwrap().next().unwrap()
}

fn broker_at(address: SocketAddr, settings: Settings) -> Amqp {
    Amqp::new(&format!("amqp://guest:guest@{address}/%2f"), settings).unwrap()
}

fn impatient() -> Settings {
    Settings { connect_timeout: Duration::from_secs(2), publish_timeout: Duration::from_secs(3), ..Settings::default() }
}

pub(crate) struct Server;

impl Server {
    pub(crate) fn new() -> Self {
        Self
    }

    async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&amqp_url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }
}

#[async_trait]
impl Backend for Server {
    async fn open(&self) -> Arc<dyn Broker> {
        Arc::new(Amqp::new(&amqp_url(), Settings::default()).unwrap())
    }

    async fn delete_queue(&self, queue: &str) {
        let (_connection, channel) = self.channel().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    async fn create_topic_exchange(&self, exchange: &str) {
        let (_connection, channel) = self.channel().await;
        // It goes when its last binding goes.
        let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
        let arguments = FieldTable::default();
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, arguments).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_says_what_it_is() {
    let broker = Server.open().await;
    let description = broker.describe().await.unwrap();
    assert!(description.starts_with("RabbitMQ "), "{description}");
    assert!(description.split('.').count() >= 3, "{description}");
    broker.close().await;
    assert!(broker.describe().await.is_err(), "a broker that is closed stays closed");
}

#[tokio::test]
async fn a_wrong_password_a_missing_virtual_host_and_a_closed_port_are_told_apart() {
    let address = amqp_address();
    let describe = async |url: String| Amqp::new(&url, impatient()).unwrap().describe().await.unwrap_err();
    let error = describe(format!("amqp://guest:hunter2@{address}/%2f")).await;
    assert!(matches!(&error, BrokerError::Login { .. }) && error.to_string().contains("guest"), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let error = describe(format!("amqp://guest:guest@{address}/nowhere")).await;
    assert!(matches!(&error, BrokerError::Login { .. }) && error.to_string().contains("nowhere"), "{error}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = describe(format!("amqp://guest:guest@{closed}/%2f")).await;
    assert!(matches!(&error, BrokerError::Unavailable { .. }) && error.to_string().contains("refused"), "{error}");
}

/// A server that accepts and says nothing costs its time limit once for all who wait, and the socket is closed.
#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = broker_at(silent.local_addr().unwrap(), impatient());
    let started = Instant::now();
    let errors = futures::future::join_all((0..5).map(|_| broker.describe())).await;
    assert!(errors.iter().all(|error| matches!(error, Err(BrokerError::Unavailable { .. }))), "{errors:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    silent.set_nonblocking(true).unwrap();
    let mut connections = 0;
    while let Ok((mut stream, _)) = silent.accept() {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("the connection was given up, not forgotten");
        assert_eq!(said, b"AMQP\x00\x00\x09\x01");
        connections += 1;
    }
    assert_eq!(connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_ends_subscriptions_and_is_built_again() {
    let (wire, queue) = (Wire::to(amqp_address()), name("lost"));
    let broker = broker_at(wire.address, impatient());
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    publish_numbers(&broker, &queue, 0..5).await;
    take(&mut subscription, 5).await;
    subscription.settler.acknowledge(vec![1, 2]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    wire.cut();
    let error = end(&mut subscription).await;
    assert!(matches!(&error, Some(BrokerError::Unavailable { .. })), "{error:?}");
    // Tags of the lost channel are void.
    subscription.settler.acknowledge(vec![3, 4, 5]);
    subscription.settler.close().await;
    let mut again = broker.subscribe(&spec(&queue)).await.unwrap();
    publish_numbers(&broker, &queue, 5..6).await;
    let deliveries = take(&mut again, 4).await;
    assert_eq!(numbers(&deliveries), [2, 3, 4, 5]);
    again.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_when_nothing_comes_and_nothing_is_in_hand() {
    let quiet = Duration::from_millis(500);
    let (broker, queue) = (broker_at(amqp_address(), Settings { quiet, ..Settings::default() }), name("quiet"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    publish_numbers(&broker, &queue, 0..2).await;
    take(&mut subscription, 2).await;
    subscription.settler.acknowledge(vec![2]);
    let ended = tokio::time::timeout(4 * quiet, subscription.deliveries.recv()).await;
    assert!(ended.is_err(), "one delivery is in hand: {ended:?}");
    subscription.settler.acknowledge(vec![1]);
    let error = end(&mut subscription).await;
    assert!(matches!(&error, Some(BrokerError::Quiet { queue: named, .. }) if *named == queue), "{error:?}");
    // What comes until it is closed is given back, in order.
    publish_numbers(&broker, &queue, 2..5).await;
    subscription.settler.close().await;
    let mut again = broker.subscribe(&spec(&queue)).await.unwrap();
    assert_eq!(numbers(&take(&mut again, 3).await), [2, 3, 4]);
    again.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_cost_a_channel_and_never_the_connection() {
    let (wire, queue, missing) = (Wire::to(amqp_address()), name("refusals"), name("missing"));
    let broker = broker_at(wire.address, impatient());
    broker.declare(&spec(&queue)).await.unwrap();
    let mut subscription = broker.subscribe(&QueueSpec { declare: Declare::Passive, ..spec(&queue) }).await.unwrap();
    let publisher = broker.publisher();
    for number in 0..40 {
        for declare in [Declare::Passive, Declare::None] {
            assert!(broker.subscribe(&QueueSpec { declare, ..spec(&missing) }).await.is_err());
        }
        broker.declare(&QueueSpec { declare: Declare::Passive, ..spec(&queue) }).await.unwrap();
        let refused = Outgoing { exchange: missing.clone(), ..to_queue(&queue, "") };
        let window =
            [to_queue(&queue, (2 * number).to_string()), refused, to_queue(&queue, (2 * number + 1).to_string())];
        let answers = publisher.publish(&window).await;
        assert!(
            matches!(&answers[..], [Published::Confirmed, Published::Refused(_), Published::Confirmed]),
            "{answers:?}"
        );
        for expected in [2 * number, 2 * number + 1] {
            while numbers(&[next(&mut subscription).await])[0] != expected {} // a neighbour may come twice
        }
        subscription.settler.acknowledge((1..=number as u64 * 3).collect());
    }
    subscription.settler.close().await;
    broker.close().await;
    // One that declared, one that consumed, one that published.
    assert_eq!(wire.connections(), 3);
    Server.delete_queue(&queue).await;
}

/// The server has eight channels for a connection, and the library never uses one again that the server has closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_has_used_up_its_channels_is_built_again() {
    let (exchange, queue) = (name("used-up"), name("used-up"));
    let url = format!("amqp://guest:guest@{}/%2f?channel_max=8", amqp_address());
    let broker = Amqp::new(&url, impatient()).unwrap();
    let passive = QueueSpec { declare: Declare::Passive, ..spec(&queue) };
    let message = Outgoing { exchange: exchange.clone(), ..to_queue(&queue, "1") };
    let publisher = broker.publisher();
    for _ in 0..20 {
        assert!(broker.subscribe(&passive).await.is_err());
        let answers = publisher.publish(std::slice::from_ref(&message)).await;
        assert!(matches!(&answers[..], [Published::Refused(_)]), "{answers:?}");
    }
    Server.create_topic_exchange(&exchange).await;
    let binding = Binding { exchange, routing_key: queue.clone() };
    Server.open().await.declare(&QueueSpec { bindings: vec![binding], ..spec(&queue) }).await.unwrap();
    assert_eq!(publisher.publish(&[message]).await, [Published::Confirmed]);
    let mut subscription = match broker.subscribe(&passive).await {
        Ok(subscription) => subscription,
        // It finds out with this one that the connection is used up.
        Err(_) => broker.subscribe(&passive).await.unwrap(),
    };
    assert_eq!(numbers(&take(&mut subscription, 1).await), [1]);
    subscription.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_subscription_keeps_its_queue_while_others_wait() {
    let (broker, queue) = (Server.open().await, name("ordered"));
    let single = ("x-single-active-consumer".to_owned(), HeaderValue::Boolean(true));
    broker.declare(&QueueSpec { arguments: [single].into(), ..spec(&queue) }).await.unwrap();
    // Its arguments are the queue's owner's business: the config does not repeat them.
    let passive = QueueSpec { declare: Declare::Passive, ordered: true, ..spec(&queue) };
    let mut active = broker.subscribe(&passive).await.unwrap();
    let mut waiting = broker.subscribe(&passive).await.unwrap();
    publish_numbers(&*broker, &queue, 0..400).await;
    for number in 0..400 {
        let delivery = next(&mut active).await;
        assert_eq!(numbers(std::slice::from_ref(&delivery)), [number]);
        active.settler.acknowledge(vec![delivery.tag]);
    }
    assert!(waiting.deliveries.try_recv().is_err());
    active.settler.close().await;
    publish_numbers(&*broker, &queue, 400..401).await;
    assert_eq!(numbers(&take(&mut waiting, 1).await), [400]);
    waiting.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_queue_rejects_may_be_published_again() {
    let (broker, queue) = (Server.open().await, name("full"));
    let arguments = [
        ("x-max-length".to_owned(), HeaderValue::Integer(2)),
        ("x-overflow".to_owned(), HeaderValue::Text("reject-publish".to_owned())),
    ];
    let spec = QueueSpec { arguments: arguments.into(), ..spec(&queue) };
    broker.declare(&spec).await.unwrap();
    publish_numbers(&*broker, &queue, 0..2).await;
    let publisher = broker.publisher();
    let answers = publisher.publish(&[to_queue(&queue, "2")]).await;
    let [Published::Unknown(reason)] = &answers[..] else { panic!("{answers:?}") };
    assert!(reason.contains("full"), "{reason}");
    let mut subscription = broker.subscribe(&spec).await.unwrap();
    take(&mut subscription, 2).await;
    subscription.settler.acknowledge(vec![1, 2]);
    publish_numbers(&*broker, &queue, 2..3).await;
    assert_eq!(numbers(&take(&mut subscription, 1).await), [2]);
    subscription.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

/// As a quorum queue without its majority does: the queue's process is there, and answers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_confirms_nothing_holds_up_no_other() {
    let Some(rabbit) = Rabbit::private().await.unwrap() else { return };
    let server: SocketAddr = rabbit.url().rsplit('@').next().unwrap().split('/').next().unwrap().parse().unwrap();
    let (wire, stuck, good) = (Wire::to(server), name("stuck"), name("good"));
    let broker = broker_at(wire.address, Settings::default());
    for queue in [&stuck, &good] {
        broker.declare(&spec(queue)).await.unwrap();
    }
    let signal = async |what: &str| {
        let resource = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{stuck}\">>)");
        let find = format!("{{ok, Q}} = rabbit_amqqueue:lookup({resource})");
        rabbit.ctl(&["eval", &format!("{find}, sys:{what}(amqqueue:get_pid(Q)).")]).await.unwrap();
    };
    signal("suspend").await;
    let before = wire.connections();
    let publisher = broker.publisher();
    let every_other_one_goes = async |round: usize, first: String| {
        let window = [to_queue(&stuck, first), to_queue(&good, "2"), to_queue(&stuck, "3"), to_queue(&good, "4")];
        let answers = publisher.publish(&window).await;
        assert!(
            matches!(
                &answers[..],
                [Published::Unknown(_), Published::Confirmed, Published::Unknown(_), Published::Confirmed]
            ),
            "{round}: {answers:?}"
        );
    };
    for round in 0..2 {
        let started = Instant::now();
        every_other_one_goes(round, "1".to_owned()).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!(publisher.publish(&[to_queue(&good, "5")]).await, [Published::Confirmed]);
        // So large that what follows is not sent together with it.
        every_other_one_goes(round, "x".repeat(3 << 20)).await;
    }
    signal("resume").await;
    assert_eq!(publisher.publish(&[to_queue(&stuck, "6")]).await, [Published::Confirmed]);
    assert_eq!(wire.connections(), before + 1, "one connection published all of it");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_server_closes_says_why() {
    let (wire, queue) = (Wire::to(amqp_address()), name("forced"));
    let broker = broker_at(wire.address, impatient());
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    assert!(broker.features().server_closes);
    let text = "CONNECTION_FORCED - maintenance";
    let mut close = vec![0, 10, 0, 50, 1, 64, text.len() as u8];
    close.extend(text.as_bytes());
    close.extend([0, 0, 0, 0]);
    wire.say(&close);
    let error = end(&mut subscription).await;
    assert!(error.as_ref().is_some_and(|error| error.to_string().contains("maintenance")), "{error:?}");
    let again = broker.subscribe(&spec(&queue)).await.unwrap();
    again.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_connection_answers_in_time_and_sends_no_more() {
    let (wire, queue) = (Wire::to(amqp_address()), name("blocked"));
    let broker = broker_at(wire.address, impatient());
    broker.declare(&spec(&queue)).await.unwrap();
    let publisher = broker.publisher();
    assert_eq!(publisher.publish(&[to_queue(&queue, "0")]).await, [Published::Confirmed]);
    wire.say(b"\x00\x0a\x00\x3c\x0dlow on memory");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let started = Instant::now();
    for _ in 0..3 {
        let answers = publisher.publish(&[to_queue(&queue, "1"), to_queue(&queue, "2")]).await;
        for answer in answers {
            let Published::Unknown(reason) = answer else { panic!("{answer:?}") };
            assert_eq!(reason, "publishing is blocked by the broker: low on memory");
        }
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    wire.say(b"\x00\x0a\x00\x3d");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(publisher.publish(&[to_queue(&queue, "3")]).await, [Published::Confirmed]);
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    assert_eq!(numbers(&take(&mut subscription, 2).await), [0, 3]);
    subscription.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

/// Producers can write names, ids and headers that no AMQP library of this language reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_would_end_the_connection_arrive_mended() {
    let (broker, queue) = (Server.open().await, name("hostile"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    let latin1 = raw::properties(raw::MESSAGE_ID, b"\x05caf\xe9!");
    let header = raw::long(b"\x05na\xefveS\x00\x00\x00\x02\xff\xfe");
    let deep = (0..20_000).fold(b"V".to_vec(), |inner, _| [&b"A"[..], &raw::long(&inner)].concat());
    let deep = raw::long(&[&b"\x04deep"[..], &deep].concat());
    let address = amqp_address();
    let sending = queue.clone();
    tokio::task::spawn_blocking(move || {
        raw::publish(address, &sending, &latin1, b"1");
        raw::publish(address, &sending, &raw::properties(raw::HEADERS, &header), b"2");
        raw::publish(address, &sending, &raw::properties(raw::HEADERS, &deep), b"3");
    })
    .await
    .unwrap();
    publish_numbers(&*broker, &queue, 4..5).await;
    let deliveries = take(&mut subscription, 4).await;
    assert_eq!(numbers(&deliveries), [1, 2, 3, 4]);
    let id = deliveries[0].message.properties.message_id.clone().unwrap();
    assert!(MessageId::new(id.clone()).is_err(), "{id:?} must not be taken for an id");
    let headers = &deliveries[1].message.properties.headers;
    assert_eq!(headers[..], [("na\u{1a}ve".to_owned(), HeaderValue::Bytes(vec![0xff, 0xfe]))]);
    assert!(matches!(deliveries[2].message.properties.header("deep"), Some(HeaderValue::Json(_))));
    subscription.settler.acknowledge(vec![1, 2, 3, 4]);
    subscription.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_broker_objects_to_is_found_among_its_neighbours() {
    let (broker, queue) = (Server.open().await, name("culprit"));
    broker.declare(&spec(&queue)).await.unwrap();
    let mut window: Vec<Outgoing> = (0..300).map(|number| to_queue(&queue, number.to_string())).collect();
    // The broker checks who it says it is from, and says only which user was wrong.
    window[123].properties.user_id = Some("somebody".to_owned());
    window[7].properties.headers = vec![("CC".to_owned(), HeaderValue::Text("not a list".to_owned()))];
    window[8].properties.headers = vec![("huge".to_owned(), HeaderValue::Text("x".repeat(200_000)))];
    let answers = broker.publisher().publish(&window).await;
    for (number, answer) in answers.iter().enumerate() {
        match number {
            7 | 8 | 123 => assert!(matches!(answer, Published::Refused(_)), "{number}: {answer:?}"),
            _ => assert_eq!(*answer, Published::Confirmed, "{number}"),
        }
    }
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_windows_with_refused_messages_keep_the_connection() {
    let (broker, queue) = (Server.open().await, name("large"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    let body = bytes::Bytes::from(vec![b'x'; 700_000]);
    let missing = name("missing");
    let window: Vec<Outgoing> = (0..20)
        .map(|number| {
            let mut message = to_queue(&queue, body.clone());
            message.properties.message_id = Some(number.to_string());
            if number % 6 == 1 { Outgoing { exchange: missing.clone(), ..message } } else { message }
        })
        .collect();
    let answers = broker.publisher().publish(&window).await;
    for (number, answer) in answers.iter().enumerate() {
        if number % 6 == 1 {
            assert!(matches!(answer, Published::Refused(_)), "{number}: {answer:?}");
        } else {
            assert_eq!(*answer, Published::Confirmed, "{number}");
        }
    }
    assert_eq!(next(&mut subscription).await.message.body.len(), 700_000);
    subscription.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quorum_and_single_active_queues_are_created_and_consumed_passively() {
    let broker = Server.open().await;
    let quorum = ("x-queue-type", HeaderValue::Text("quorum".to_owned()));
    let single = ("x-single-active-consumer", HeaderValue::Boolean(true));
    // A quorum queue delivers out of order if its consumer is replaced at the wrong moment: often enough, so often.
    let kinds = [vec![quorum.clone()], vec![single.clone()], vec![quorum, single]];
    for arguments in kinds.iter().cycle().take(24).cloned() {
        let queue = name("kinds");
        let arguments = arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let create = QueueSpec { arguments, ..spec(&queue) };
        broker.declare(&create).await.unwrap();
        broker.declare(&create).await.unwrap();
        let passive = QueueSpec { declare: Declare::Passive, ..create };
        let mut subscription = broker.subscribe(&passive).await.unwrap();
        publish_numbers(&*broker, &queue, 0..200).await;
        for number in 0..200 {
            let delivery = next(&mut subscription).await;
            assert_eq!(numbers(std::slice::from_ref(&delivery)), [number]);
            subscription.settler.acknowledge(vec![delivery.tag]);
        }
        subscription.settler.close().await;
        Server.delete_queue(&queue).await;
    }
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transient_message_stays_what_it_is() {
    let (broker, queue) = (Server.open().await, name("mode"));
    let mut subscription = broker.subscribe(&spec(&queue)).await.unwrap();
    let transient = Properties { delivery_mode: Some(1), ..Properties::default() };
    publish(&*broker, &[Outgoing { properties: transient, ..to_queue(&queue, "1") }]).await;
    publish(&*broker, &[Outgoing { properties: Properties::default(), ..to_queue(&queue, "2") }]).await;
    let modes: Vec<_> =
        take(&mut subscription, 2).await.iter().map(|delivery| delivery.message.properties.delivery_mode).collect();
    assert_eq!(modes, [Some(1), Some(2)]);
    subscription.settler.close().await;
    Server.delete_queue(&queue).await;
    broker.close().await;
}
