//! A caller's connection with the three deadlines that hyper has no word for: a head that trickles
//! in, a connection that is kept for nothing, and a caller that does not read.
//!
//! hyper's own head timeout also cuts idle keep-alive connections, which load balancers reuse for
//! longer than a head may take; so the two are told apart here, by what the connection is doing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::ingress::unread;

/// Deadlines of a caller's connection.
#[derive(Debug, Clone, Copy)]
pub struct ClientDeadlines {
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// Between two writes that the caller takes.
    pub write: Duration,
}

/// What the connection is doing; shared with the service, which knows when a request begins and
/// ends.
#[derive(Debug, Clone, Default)]
pub struct Activity(Arc<AtomicU8>);

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;
/// No activity.
const NOTHING: u8 = 3;

impl Activity {
    /// The head is complete; the request runs until the guard is dropped.
    pub fn request(self) -> InRequest {
        self.0.store(REQUEST, Ordering::Relaxed);
        InRequest(self.0)
    }
}

/// Held while a request runs.
pub struct InRequest(Arc<AtomicU8>);

impl Drop for InRequest {
    fn drop(&mut self) {
        self.0.store(IDLE, Ordering::Relaxed);
    }
}

/// A TCP connection that ends itself when a deadline passes.
pub struct ClientIo {
    inner: TokioIo<TcpStream>,
    deadlines: ClientDeadlines,
    activity: Activity,
    /// Armed lazily: it fires early rather than being reset for every byte, and then looks.
    read: Pin<Box<Sleep>>,
    /// What the connection was doing when `read_since` was taken.
    seen: u8,
    read_since: Instant,
    write: Option<Pin<Box<Sleep>>>,
    /// What goes out instead of an answer of hyper's own, and how much of it has.
    instead: Option<(Vec<u8>, usize)>,
}

impl ClientIo {
    /// Wraps an accepted connection.
    pub fn new(stream: TcpStream, deadlines: ClientDeadlines, activity: Activity) -> Self {
        let now = Instant::now();
        Self {
            inner: TokioIo::new(stream),
            deadlines,
            activity,
            read: Box::pin(tokio::time::sleep_until(now + deadlines.head)),
            seen: IDLE,
            read_since: now,
            write: None,
            instead: None,
        }
    }

    /// Whether hyper writes on its own account; see [`unread`].
    fn by_hyper(&mut self, written: &[u8]) -> bool {
        if self.instead.is_none() && self.activity.0.load(Ordering::Relaxed) != REQUEST {
            self.instead = unread::answer(written).map(|answer| (answer, 0));
        }
        self.instead.is_some()
    }

    /// Writes what goes out instead of `len` bytes.
    fn poll_instead(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        while let Some((answer, sent)) = &mut self.instead {
            match Pin::new(&mut self.inner).poll_write(cx, answer.get(*sent..).unwrap_or_default()) {
                Poll::Ready(Ok(more)) if more > 0 && *sent + more < answer.len() => *sent += more,
                Poll::Ready(Ok(_)) => self.instead = None,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.check_write(cx),
            }
        }
        self.write = None;
        Poll::Ready(Ok(len))
    }

    /// Looks whether the present activity has lasted too long. Reads the clock only when the activity
    /// has changed or the timer has fired.
    fn check_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let activity = self.activity.0.load(Ordering::Relaxed);
        if activity != self.seen {
            self.seen = activity;
            self.read_since = Instant::now();
        }
        let limit = match activity {
            HEAD => self.deadlines.head,
            IDLE => self.deadlines.idle,
            // A running request has its own deadlines. Look again later all the same: hyper does not read
            // on when the request is over, if it looked for the caller's leaving before.
            _ => Duration::MAX,
        };
        loop {
            let tick = limit.min(self.deadlines.head.max(self.deadlines.idle));
            if self.read.deadline() > self.read_since + tick {
                self.read.as_mut().reset(self.read_since + tick);
            }
            if self.read.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now.saturating_duration_since(self.read_since) >= limit {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if limit == Duration::MAX {
                // The next look counts from this one.
                self.read_since = now;
            }
            self.read.as_mut().reset(self.read_since + tick);
        }
    }

    fn check_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let limit = self.deadlines.write;
        let timer = self.write.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Read for ClientIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(read) => {
                // Only this connection's own task writes here.
                if self.activity.0.load(Ordering::Relaxed) == IDLE {
                    self.activity.0.store(HEAD, Ordering::Relaxed);
                    // A head after a head: the time of the last one does not count.
                    self.seen = NOTHING;
                }
                Poll::Ready(read)
            }
            Poll::Pending => match self.check_read(cx) {
                Poll::Ready(Err(late)) => Poll::Ready(Err(late)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl Write for ClientIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.by_hyper(buf) {
            return self.poll_instead(cx, buf.len());
        }
        match Pin::new(&mut self.inner).poll_write(cx, buf) {
            Poll::Ready(done) => {
                self.write = None;
                Poll::Ready(done)
            }
            Poll::Pending => self.check_write(cx),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.by_hyper(bufs.first().map(|first| &**first).unwrap_or_default()) {
            return self.poll_instead(cx, bufs.iter().map(|buf| buf.len()).sum());
        }
        match Pin::new(&mut self.inner).poll_write_vectored(cx, bufs) {
            Poll::Ready(done) => {
                self.write = None;
                Poll::Ready(done)
            }
            Poll::Pending => self.check_write(cx),
        }
    }
}
