//! What a guest prints: line by line into the log, and the end of its standard error into the failure's detail. An
//! uncaught exception of Python or JavaScript is a trap without words; its words are there.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::Call;
use super::convert::MAX_DETAIL;
use crate::message::MessageId;

/// A line longer than this is logged in pieces.
const MAX_LINE: usize = 8 << 10;
/// What each line costs beside its bytes: a log record of its own, with its names and its time. Without it a flood of empty
/// lines would be 65,536 records within 64 KiB.
const LINE_OVERHEAD: u64 = 128;
/// How much a guest may write at once.
const WINDOW: usize = 64 << 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Who is speaking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Speaker {
    consumer: String,
    module: String,
    /// None while an instance starts.
    message_id: Option<MessageId>,
    attempt: u32,
}

/// Collects the output of one instance.
#[derive(Debug, Default)]
pub(crate) struct Output {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    speaker: Speaker,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    tail: VecDeque<u8>,
    /// Bytes that may still be logged for this call.
    left: u64,
    silenced: bool,
}

impl Output {
    /// The output of an instance of that module, for that consumer.
    pub(crate) fn new(consumer: &str, module: String) -> Self {
        let speaker = Speaker { consumer: consumer.to_owned(), module, ..Speaker::default() };
        Self { inner: Mutex::new(Inner { speaker, ..Inner::default() }) }
    }

    /// Starts a call: later output belongs to it, and up to `limit` bytes of it are logged.
    pub(crate) fn begin(&self, call: Option<&Call>, limit: u64) {
        let mut inner = self.lock();
        inner.speaker.message_id = call.map(|call| call.id.clone());
        inner.speaker.attempt = call.map_or(0, |call| call.attempt);
        inner.left = limit;
        inner.silenced = false;
        inner.tail.clear();
    }

    /// Ends a call: logs lines without an end, and returns the last 16 KiB of standard error.
    pub(crate) fn finish(&self) -> String {
        let mut inner = self.lock();
        inner.flush(Stream::Stdout);
        inner.flush(Stream::Stderr);
        let tail: Vec<u8> = std::mem::take(&mut inner.tail).into();
        String::from_utf8_lossy(&tail).trim_end().to_owned()
    }

    /// A writer to give to the guest.
    pub(crate) fn stream(self: &Arc<Self>, stream: Stream) -> OutputWriter {
        OutputWriter { output: Arc::clone(self), stream }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stderr {
            let kept = &bytes[bytes.len().saturating_sub(MAX_DETAIL)..];
            let excess = (self.tail.len() + kept.len()).saturating_sub(MAX_DETAIL);
            self.tail.drain(..excess);
            self.tail.extend(kept);
        }
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.line(stream).extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line(stream).len() >= MAX_LINE {
                self.flush(stream);
            }
        }
    }

    fn line(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn flush(&mut self, stream: Stream) {
        let line = std::mem::take(self.line(stream));
        if line.is_empty() || self.silenced {
            return;
        }
        let Some(left) = self.left.checked_sub(line.len() as u64 + LINE_OVERHEAD) else {
            self.silenced = true;
            log(&self.speaker, stream, "(more output of this attempt is not logged)");
            return;
        };
        self.left = left;
        log(&self.speaker, stream, &printable(&line));
    }
}

fn log(speaker: &Speaker, stream: Stream, line: &str) {
    let Speaker { consumer, module, message_id, attempt } = speaker;
    let message_id = message_id.as_ref().map_or("", MessageId::as_str);
    match stream {
        Stream::Stdout => {
            tracing::info!(target: "hapax::guest", %consumer, %message_id, attempt, %module, stream = "stdout", "{line}");
        }
        Stream::Stderr => {
            tracing::warn!(target: "hapax::guest", %consumer, %message_id, attempt, %module, stream = "stderr", "{line}");
        }
    }
}

/// The line without its end, and without anything that a terminal would obey.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\r', '\n']);
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// One of the guest's two output streams.
#[derive(Debug, Clone)]
pub(crate) struct OutputWriter {
    output: Arc<Output>,
    stream: Stream,
}

impl IsTerminal for OutputWriter {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for OutputWriter {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for OutputWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.output.lock().write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WINDOW)
    }
}

#[async_trait::async_trait]
impl Pollable for OutputWriter {
    async fn ready(&mut self) {}
}

impl AsyncWrite for OutputWriter {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.output.lock().write(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(limit: u64) -> Arc<Output> {
        let output = Arc::new(Output::default());
        output.begin(None, limit);
        output
    }

    #[test]
    fn the_end_of_standard_error_is_kept_and_no_more() {
        let output = output(0);
        output.stream(Stream::Stdout).write(Bytes::from_static(b"not this\n")).unwrap();
        let mut stderr = output.stream(Stream::Stderr);
        stderr.write(Bytes::from(vec![b'a'; 3 * MAX_DETAIL])).unwrap();
        stderr.write(Bytes::from_static(b"Traceback\nValueError: x\n")).unwrap();
        let tail = output.finish();
        assert_eq!(tail.len(), MAX_DETAIL - 1);
        assert!(tail.ends_with("a\u{54}raceback\nValueError: x") && tail.starts_with('a'), "{tail}");
        assert_eq!(output.finish(), "", "each call has its own");
    }

    #[test]
    fn a_flood_is_logged_up_to_the_limit() {
        let output = output(20);
        for _ in 0..100 {
            output.stream(Stream::Stdout).write(Bytes::from_static(b"0123456789")).unwrap();
        }
        assert!(output.lock().stdout.len() == 1000, "no line yet");
        output.stream(Stream::Stdout).write(Bytes::from_static(b"\n")).unwrap();
        assert!(output.lock().silenced);
        output.begin(None, 20);
        assert!(!output.lock().silenced);
    }

    #[test]
    fn a_flood_of_empty_lines_is_no_flood_of_records() {
        let output = output(64 << 10);
        for _ in 0..64 {
            output.stream(Stream::Stdout).write(Bytes::from(vec![b'\n'; 1 << 10])).unwrap();
        }
        let inner = output.lock();
        assert!(inner.silenced && inner.left < LINE_OVERHEAD + 1, "{} bytes left", inner.left);
    }

    #[test]
    fn a_line_cannot_command_the_terminal() {
        assert_eq!(printable(b"\x1b[2Jx\ty\r\n"), "\u{fffd}[2Jx\ty");
        assert_eq!(printable(&[0xff, b'a']), "\u{fffd}a");
    }
}
