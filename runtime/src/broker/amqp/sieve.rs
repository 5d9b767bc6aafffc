//! Makes every frame that a broker may send one that the AMQP library can read.
//!
//! Producers can put bytes into a message that RabbitMQ stores and delivers without a word, and that end the whole
//! connection here: names and ids that are not UTF-8 are a parse error, and a header nested some thousand levels deep
//! overflows the stack of the library's I/O thread and with it ends the process. Either would come again on every
//! connection, for ever. So frames are looked at on their way in, and changed **in place, keeping their length**:
//!
//! - A byte that is not UTF-8 in a short string becomes U+001A (SUBSTITUTE). In the message id it becomes NUL, which
//!   no message id may contain: two damaged ids that look alike are not taken for one message.
//! - A table or array nested deeper than [`MAX_DEPTH`] becomes a byte array with the same bytes, and so does a
//!   headers table that cannot be read at all.
//!
//! Long strings and bodies are not touched; bodies are not even looked at.

use std::ops::Range;

/// Tables and arrays may be nested this deep.
pub(super) const MAX_DEPTH: usize = 32;

/// Method and header frames up to this size are held until they are complete; RabbitMQ's default limit for any frame
/// is 128 KiB.
const MAX_HELD_FRAME: usize = 4 << 20;

/// How much is read at once.
const READ_SIZE: usize = 64 << 10;

const SUBSTITUTE: u8 = 0x1a;

/// A buffer between the socket and the library: filled on one side, drained on the other.
pub(super) struct Sieve {
    buffer: Vec<u8>,
    /// Checked bytes that were not taken yet.
    ready: Range<usize>,
    /// End of what the socket gave.
    end: usize,
    state: State,
    greeting: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the first byte of a frame.
    Frame,
    /// Inside a frame that passes unseen, with this many bytes to go.
    Passing(usize),
    /// This is not AMQP: everything passes, and the library says what is wrong.
    Opaque,
}

impl Sieve {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), ready: 0..0, end: 0, state: State::Frame, greeting: None }
    }

    /// Room for the next read.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.ready.start == self.end {
            self.ready = 0..0;
            self.end = 0;
        }
        if self.buffer.len() < self.end + READ_SIZE {
            self.buffer.copy_within(self.ready.start..self.end, 0);
            self.end -= self.ready.start;
            self.ready = 0..self.ready.len();
            self.buffer.resize((self.end + READ_SIZE).max(self.buffer.len()), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes were read into [`room`](Self::room).
    pub(super) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
        self.check();
    }

    /// Moves checked bytes to `target`; 0 if there are none.
    pub(super) fn take(&mut self, target: &mut [u8]) -> usize {
        let count = self.ready.len().min(target.len());
        target[..count].copy_from_slice(&self.buffer[self.ready.start..self.ready.start + count]);
        self.ready.start += count;
        count
    }

    /// The socket has ended: whatever is held passes as it is.
    pub(super) fn finish(&mut self) {
        self.ready.end = self.end;
    }

    /// The server's first method, `connection.start`, once it was seen: it names the server's product and version.
    pub(super) fn greeting(&mut self) -> Option<Vec<u8>> {
        self.greeting.take()
    }

    fn check(&mut self) {
        while self.ready.end < self.end {
            let available = self.end - self.ready.end;
            match self.state {
                State::Opaque => self.ready.end = self.end,
                State::Passing(left) => {
                    let count = left.min(available);
                    self.ready.end += count;
                    self.state = if count == left { State::Frame } else { State::Passing(left - count) };
                }
                State::Frame => {
                    let frame = &mut self.buffer[self.ready.end..self.end];
                    let Some(&[kind, _, _, a, b, c, d]) = frame.first_chunk() else { return };
                    let size = u32::from_be_bytes([a, b, c, d]) as usize;
                    match kind {
                        1 | 2 if size <= MAX_HELD_FRAME => {
                            let Some(payload) = frame.get_mut(7..7 + size) else { return };
                            if available < size + 8 {
                                return;
                            }
                            if kind == 1 {
                                if payload.starts_with(&[0, 10, 0, 10]) {
                                    self.greeting = Some(payload.to_vec());
                                }
                                mend_method(payload);
                            } else {
                                mend_header(payload);
                            }
                            self.ready.end += size + 8;
                        }
                        1..=3 | 8 => self.state = State::Passing(size + 8),
                        _ => self.state = State::Opaque,
                    }
                }
            }
        }
    }
}

/// Mends the short strings of the methods that can carry a producer's or an operator's text.
fn mend_method(payload: &mut [u8]) {
    let Some(&[_, class, _, method]) = payload.first_chunk() else { return };
    let mut cursor = Cursor::new(&mut payload[4..]);
    let parts: &[Part] = match (class, method) {
        // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key
        (60, 60) => &[Part::Short, Part::Skip(9), Part::Short, Part::Short],
        // basic.return: code, text, exchange, routing key
        (60, 50) => &[Part::Skip(2), Part::Short, Part::Short, Part::Short],
        // basic.cancel: consumer tag
        (60, 30) => &[Part::Short],
        // channel.close and connection.close: code, text; RabbitMQ cuts the text at 255 bytes, inside a character
        (20, 40) | (10, 50) => &[Part::Skip(2), Part::Short],
        _ => &[],
    };
    for part in parts {
        let done = match part {
            Part::Skip(count) => cursor.skip(*count),
            Part::Short => cursor.mend_short(SUBSTITUTE),
        };
        if done.is_none() {
            return;
        }
    }
}

enum Part {
    Skip(usize),
    Short,
}

/// Mends a content header: class, weight, body size, flags, properties.
fn mend_header(payload: &mut [u8]) -> Option<()> {
    let mut cursor = Cursor::new(payload);
    cursor.skip(12)?;
    let flags = u16::from_be_bytes(cursor.take(2)?.try_into().ok()?);
    let has = |bit: u16| flags & (1 << bit) != 0;
    for bit in [15, 14] {
        if has(bit) {
            cursor.mend_short(SUBSTITUTE)?; // content type, content encoding
        }
    }
    if has(13) {
        let size = cursor.length()?;
        let table = cursor.take(size)?;
        if mend_table(table, 1).is_none() {
            enclose(table);
        }
    }
    for bit in [12, 11] {
        if has(bit) {
            cursor.skip(1)?; // delivery mode, priority
        }
    }
    for bit in [10, 9, 8, 7] {
        if has(bit) {
            cursor.mend_short(if bit == 7 { 0 } else { SUBSTITUTE })?; // correlation id, reply to, expiration, message id
        }
    }
    if has(6) {
        cursor.skip(8)?; // timestamp
    }
    for bit in [5, 4, 3, 2] {
        if has(bit) {
            cursor.mend_short(SUBSTITUTE)?; // type, user id, app id, cluster id
        }
    }
    Some(())
}

/// Mends a table's names and values; `None` if it cannot be read.
fn mend_table(table: &mut [u8], depth: usize) -> Option<()> {
    let mut cursor = Cursor::new(table);
    while !cursor.rest.is_empty() {
        cursor.mend_short(SUBSTITUTE)?;
        mend_value(&mut cursor, depth)?;
    }
    Some(())
}

/// Mends an array's values; `None` if it cannot be read.
fn mend_array(array: &mut [u8], depth: usize) -> Option<()> {
    let mut cursor = Cursor::new(array);
    while !cursor.rest.is_empty() {
        mend_value(&mut cursor, depth)?;
    }
    Some(())
}

fn mend_value(cursor: &mut Cursor<'_>, depth: usize) -> Option<()> {
    let kind = cursor.take(1)?;
    match kind[0] {
        b'V' => Some(()),
        b't' | b'b' | b'B' => cursor.skip(1),
        b's' | b'U' | b'u' => cursor.skip(2),
        b'I' | b'i' | b'f' => cursor.skip(4),
        b'D' => cursor.skip(5),
        b'L' | b'l' | b'd' | b'T' => cursor.skip(8),
        b'S' | b'x' => {
            let size = cursor.length()?;
            cursor.skip(size)
        }
        nested @ (b'F' | b'A') => {
            let size = cursor.length()?;
            let content = cursor.take(size)?;
            let readable = depth < MAX_DEPTH
                && if nested == b'F' { mend_table(content, depth + 1) } else { mend_array(content, depth + 1) }
                    .is_some();
            if !readable {
                kind[0] = b'x';
            }
            Some(())
        }
        _ => None,
    }
}

/// Turns a headers table that cannot be read into one with a single entry, under an empty name, that holds its bytes.
fn enclose(table: &mut [u8]) {
    let size = table.len();
    if let Some(content) = size.checked_sub(6).and_then(|content| u32::try_from(content).ok()) {
        table[0] = 0;
        table[1] = b'x';
        table[2..6].copy_from_slice(&content.to_be_bytes());
    } else if let Some(name) = size.checked_sub(2) {
        table.fill(b'?');
        table[0] = name as u8;
        table[size - 1] = b'V';
    }
}

/// A reader over bytes that it may change.
struct Cursor<'a> {
    rest: &'a mut [u8],
}

impl<'a> Cursor<'a> {
    fn new(rest: &'a mut [u8]) -> Self {
        Self { rest }
    }

    fn take(&mut self, count: usize) -> Option<&'a mut [u8]> {
        if count > self.rest.len() {
            return None;
        }
        let (head, tail) = std::mem::take(&mut self.rest).split_at_mut(count);
        self.rest = tail;
        Some(head)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    fn length(&mut self) -> Option<usize> {
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    }

    /// Replaces what is not UTF-8 in a short string.
    fn mend_short(&mut self, replacement: u8) -> Option<()> {
        let size = usize::from(self.take(1)?[0]);
        let mut text = self.take(size)?;
        while let Err(error) = std::str::from_utf8(text) {
            let start = error.valid_up_to();
            let end = error.error_len().map_or(text.len(), |length| start + length);
            text[start..end].fill(replacement);
            text = &mut text[end..];
        }
        Some(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use lapin::types::parsing::parse_field_table;
    use proptest::prelude::*;

    pub(in super::super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    /// A content header with only a headers table and a message id.
    fn header(table: &[u8], message_id: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        payload.extend((1_u16 << 13 | 1 << 7).to_be_bytes());
        payload.extend((table.len() as u32).to_be_bytes());
        payload.extend(table);
        payload.push(message_id.len() as u8);
        payload.extend(message_id);
        payload
    }

    /// Feeds `input` in pieces of `step` and collects what comes out.
    pub(in super::super) fn pass(input: &[u8], step: usize) -> Vec<u8> {
        let mut sieve = Sieve::new();
        let mut output = Vec::new();
        let mut target = [0; 97];
        for piece in input.chunks(step) {
            let mut piece = piece;
            while !piece.is_empty() {
                let room = sieve.room();
                let count = room.len().min(piece.len());
                room[..count].copy_from_slice(&piece[..count]);
                piece = &piece[count..];
                sieve.filled(count);
                loop {
                    match sieve.take(&mut target) {
                        0 => break,
                        count => output.extend(&target[..count]),
                    }
                }
            }
        }
        sieve.finish();
        loop {
            match sieve.take(&mut target) {
                0 => return output,
                count => output.extend(&target[..count]),
            }
        }
    }

    #[test]
    fn good_frames_pass_unchanged_however_they_are_cut() {
        let mut input = frame(1, &[0, 60, 0, 60, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0xc3, 0xa9]);
        input.extend(frame(2, &header(b"\x01aS\x00\x00\x00\x02\xff\xfe", "é".as_bytes())));
        input.extend(frame(3, &[0xff; 3]));
        input.extend(frame(8, &[]));
        for step in [1, 2, 7, 8, 50, 1000] {
            assert_eq!(pass(&input, step), input);
        }
    }

    #[test]
    fn ids_and_names_become_utf8_of_the_same_length() {
        let mended = pass(&frame(2, &header(b"\x02a\xffV", b"id\xe9")), 5);
        assert_eq!(mended, frame(2, &header(b"\x02a\x1aV", b"id\0")));
        let deliver = |key: &[u8]| {
            let mut payload = vec![0, 60, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, key.len() as u8];
            payload.extend(key);
            frame(1, &payload)
        };
        assert_eq!(pass(&deliver(b"k\xc3"), 4), deliver(b"k\x1a"));
    }

    #[test]
    fn nesting_beyond_the_limit_becomes_bytes() {
        let mut value = vec![b'V'];
        for _ in 0..20_000 {
            let mut outer = vec![b'A'];
            outer.extend((value.len() as u32).to_be_bytes());
            outer.extend(&value);
            value = outer;
        }
        let mut table = vec![1, b'n'];
        table.extend(&value);
        let output = pass(&frame(2, &header(&table, b"x")), 4096);
        let (_, parsed) = parse_field_table(&output[7 + 14..]).unwrap();
        let mut depth = 0;
        let mut value = parsed.inner().get("n").unwrap();
        while let lapin::types::AMQPValue::FieldArray(array) = value {
            value = &array.as_slice()[0];
            depth += 1;
        }
        assert_eq!(depth, MAX_DEPTH - 1);
        assert!(matches!(value, lapin::types::AMQPValue::ByteArray(_)));
    }

    #[test]
    fn a_table_that_cannot_be_read_becomes_bytes_under_an_empty_name() {
        for table in [&b"\x01a?xyzzy"[..], b"\xff", b"\x01", b"\x01aI\0", b"\x01aS\xff\xff\xff\xff"] {
            let mut table = table.to_vec();
            if table.len() < 2 {
                continue; // no table has one byte: nothing can be made of it, and the library reports it
            }
            if mend_table(&mut table, 1).is_none() {
                enclose(&mut table);
            }
            let mut framed = (table.len() as u32).to_be_bytes().to_vec();
            framed.extend(&table);
            assert!(parse_field_table(&framed[..]).is_ok(), "{table:?}");
        }
    }

    #[test]
    fn what_is_not_amqp_passes() {
        assert_eq!(pass(b"HTTP/1.1 400 Bad Request\r\n", 3), b"HTTP/1.1 400 Bad Request\r\n");
    }

    proptest! {
        /// Whatever a table's bytes are, the library can read what is left of them.
        #[test]
        fn any_table_becomes_readable(mut table in proptest::collection::vec(any::<u8>(), 2..200)) {
            if mend_table(&mut table, 1).is_none() {
                enclose(&mut table);
            }
            let mut framed = (table.len() as u32).to_be_bytes().to_vec();
            framed.extend(&table);
            prop_assert!(parse_field_table(&framed[..]).is_ok());
        }

        #[test]
        fn any_bytes_pass_in_full(input in proptest::collection::vec(any::<u8>(), 0..600), step in 1_usize..64) {
            prop_assert_eq!(pass(&input, step).len(), input.len());
        }
    }
}
