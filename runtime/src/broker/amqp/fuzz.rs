//! Bytes that a broker, or a producer through it, may send.

use lapin::protocol::basic::parse_properties;

use super::sieve::tests::{frame, pass};
use super::values::{header_frame_size, properties_from_amqp, properties_to_amqp};
use crate::message::{HeaderValue, Properties};

/// What comes before the flags and the properties in a content header: class `basic`, weight, size of the body.
const BEFORE: [u8; 12] = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];

/// What comes before a frame's payload: its type, its channel, the payload's length.
const FRAME_HEADER: usize = 7;

fn same(a: &Properties, b: &Properties) -> bool {
    let texts = |properties: &Properties| serde_json::to_string(properties).expect("properties can be written");
    // NaN is no equal of itself.
    a == b || texts(a) == texts(b)
}

/// Whatever the properties of a message are: what the library makes of them is stored, read and published without a
/// change.
#[test]
fn properties_keep_their_image() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let sent = frame(2, &[&BEFORE, bytes].concat());
        let received = pass(&sent, 64);
        assert_eq!(received.len(), sent.len());
        let payload = &received[FRAME_HEADER + BEFORE.len()..received.len() - 1];
        let Ok((_, properties)) = parse_properties(payload) else { return };
        let image = properties_from_amqp(&properties);
        let stored = serde_json::to_string(&image).expect("properties can be written");
        let read: Properties = serde_json::from_str(&stored).unwrap_or_else(|error| panic!("{error}: {stored}"));
        assert!(same(&image, &read), "{image:?} was stored as {stored}");
        let published = properties_to_amqp(&read).unwrap_or_else(|error| panic!("{error}: {read:?}"));
        let again = Properties { delivery_mode: image.delivery_mode, ..properties_from_amqp(&published) };
        // Of several headers of one name the first counts, and its name is the order that the library writes them in.
        let named = |properties: &Properties| -> Vec<(String, HeaderValue)> {
            let mut headers = properties.headers.clone();
            headers.sort_by(|(a, _), (b, _)| a.cmp(b));
            headers.dedup_by(|(a, _), (b, _)| a == b);
            headers
        };
        let (image, again) = (
            Properties { headers: named(&image), ..image.clone() },
            Properties { headers: named(&again), ..again.clone() },
        );
        assert!(same(&image, &again), "{image:?} was published as {again:?}");
        assert!(header_frame_size(&published) >= BEFORE.len());
    });
}

/// Whatever a server sends, it comes out in full, however it is cut.
#[test]
fn any_frames_pass_in_full() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let whole = pass(bytes, 512);
        assert_eq!(whole.len(), bytes.len());
        assert_eq!(pass(bytes, 3), whole);
    });
}
