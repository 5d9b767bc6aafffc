//! AMQP by hand, for what no client library does: a producer that sends what it should not, and a wire in between that
//! can be cut, held, and spoken on.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Publishes one message to the default exchange, its properties as they stand in the frame: flags and all.
pub(crate) fn publish(server: SocketAddr, queue: &str, properties: &[u8], body: &[u8]) {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
    expect(&mut stream, [10, 10]);
    let mut start_ok = vec![0, 10, 0, 11, 0, 0, 0, 0, 5];
    start_ok.extend(b"PLAIN\0\0\0\x0c\0guest\0guest\x05en_US");
    method(&mut stream, 0, &start_ok);
    expect(&mut stream, [10, 30]);
    method(&mut stream, 0, &[0, 10, 0, 31, 7, 255, 0, 2, 0, 0, 0, 0]);
    method(&mut stream, 0, &[0, 10, 0, 40, 1, b'/', 0, 0]);
    expect(&mut stream, [10, 41]);
    method(&mut stream, 1, &[0, 20, 0, 10, 0]);
    expect(&mut stream, [20, 11]);
    method(&mut stream, 1, &[0, 85, 0, 10, 0]);
    expect(&mut stream, [85, 11]);
    let mut publish = vec![0, 60, 0, 40, 0, 0, 0, queue.len() as u8];
    publish.extend(queue.as_bytes());
    publish.push(0);
    method(&mut stream, 1, &publish);
    let mut header = vec![0, 60, 0, 0];
    header.extend((body.len() as u64).to_be_bytes());
    header.extend(properties);
    frame(&mut stream, 2, 1, &header);
    if !body.is_empty() {
        frame(&mut stream, 3, 1, body);
    }
    expect(&mut stream, [60, 80]);
}

/// Flags of the properties that the tests send.
pub(crate) const HEADERS: u16 = 1 << 13;
pub(crate) const MESSAGE_ID: u16 = 1 << 7;

/// Properties: flags, then what they announce.
pub(crate) fn properties(flags: u16, content: &[u8]) -> Vec<u8> {
    [&flags.to_be_bytes()[..], content].concat()
}

/// A length in front of bytes.
pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn method(stream: &mut TcpStream, channel: u16, payload: &[u8]) {
    frame(stream, 1, channel, payload);
}

fn frame(stream: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let mut bytes = vec![kind];
    bytes.extend(channel.to_be_bytes());
    bytes.extend(long(payload));
    bytes.push(0xce);
    stream.write_all(&bytes).unwrap();
}

fn expect(stream: &mut TcpStream, [class, id]: [u8; 2]) {
    let mut head = [0; 7];
    stream.read_exact(&mut head).unwrap();
    let size = u32::from_be_bytes(head[3..].try_into().unwrap()) as usize;
    let mut payload = vec![0; size + 1];
    stream.read_exact(&mut payload).unwrap();
    assert_eq!(payload[..4], [0, class, 0, id], "{}", String::from_utf8_lossy(&payload));
}

/// A wire between clients and a server.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    clients: Arc<Mutex<Vec<TcpStream>>>,
    made: Arc<AtomicUsize>,
}

impl Wire {
    /// A wire to a server, for any number of clients.
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let made = Arc::new(AtomicUsize::new(0));
        let (known, counter) = (clients.clone(), made.clone());
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = TcpStream::connect(server) else { continue };
                counter.fetch_add(1, Ordering::SeqCst);
                known.lock().unwrap().push(client.try_clone().unwrap());
                let (client_in, server_out) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pipe(client_in, server_out));
                std::thread::spawn(move || pipe(server, client));
            }
        });
        Self { address, clients, made }
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    /// Cuts every connection.
    pub(crate) fn cut(&self) {
        for client in self.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Says a method on channel 0 to every client, as if the server did. Nothing else may be under way.
    pub(crate) fn say(&self, payload: &[u8]) {
        let mut frame = vec![1, 0, 0];
        frame.extend(long(payload));
        frame.push(0xce);
        // Those who have gone hear nothing.
        self.clients.lock().unwrap().retain_mut(|client| client.write_all(&frame).is_ok());
    }
}

fn pipe(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
