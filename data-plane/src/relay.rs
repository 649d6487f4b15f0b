//! The stream pump: the provider's chunks to the caller, at the caller's pace. It is polled by the
//! caller's connection and holds one chunk, so a caller that does not read slows the provider down.
//!
//! After the first byte nothing is tried again: what goes wrong here becomes one error event in the
//! caller's dialect and an orderly end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use providers::openai_chat::stream::{End, Tap};
use providers::{Dialect, Usage};
use shared::failure::{Deadline, Failure, FailureKind};
use shared::proto::Outcome;
use tokio::time::{Instant, Sleep};

use crate::drain::Phase;
use crate::exchange::Exchange;
use crate::execute::Source;
use crate::ingress::Problem;
use crate::upstream::{self, Returning};

/// How often deadlines are looked at while nothing arrives.
const TICK: Duration = Duration::from_secs(1);

/// One stream on its way.
pub struct Relay {
    exchange: Box<Exchange>,
    dialect: Dialect,
    out: VecDeque<Bytes>,
    tap: Tap,
    body: Option<(Incoming, Returning)>,
    fed: Vec<Bytes>,
    idle: Duration,
    last_chunk: Instant,
    until: Instant,
    tick: Pin<Box<Sleep>>,
}

impl Relay {
    /// Goes on from where the first event was.
    pub fn new(exchange: Box<Exchange>, source: Source, dialect: Dialect) -> Self {
        let now = Instant::now();
        let connection = source.connection;
        let mut relay = Self {
            exchange,
            dialect,
            out: VecDeque::new(),
            tap: source.tap,
            body: None,
            fed: source.ready,
            idle: source.idle,
            last_chunk: now,
            until: source.until,
            tick: Box::pin(tokio::time::sleep_until((now + TICK.min(source.idle)).min(source.until))),
        };
        match source.body {
            Some(body) => {
                relay.body = Some((body, connection));
                relay.pass_on();
                if relay.tap.is_done() {
                    relay.complete();
                }
            }
            None => {
                connection.keep();
                relay.pass_on();
                relay.settle(Outcome::Completed, "");
            }
        }
        relay
    }

    /// The next bytes for the caller; `None` at the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Poll::Ready(Some(bytes));
            }
            let Some((body, _)) = &mut self.body else { return Poll::Ready(None) };
            match upstream::poll_data(Pin::new(body), cx) {
                Poll::Ready(Some(Ok(chunk))) => self.chunk(chunk),
                Poll::Ready(Some(Err(error))) => self.broke(&upstream::broken(&error)),
                Poll::Ready(None) => self.ended(),
                Poll::Pending => match self.check_deadlines(cx) {
                    Verdict::GoOn => return Poll::Pending,
                    Verdict::Late(failure) => self.broke(&failure),
                    Verdict::ShutDown => self.shut_down(),
                },
            }
        }
    }

    fn chunk(&mut self, chunk: Bytes) {
        self.last_chunk = Instant::now();
        match self.tap.feed(chunk, &mut self.fed) {
            Ok(()) => {
                self.pass_on();
                if self.tap.is_done() {
                    self.complete();
                }
            }
            Err(failure) => {
                self.pass_on();
                self.fail(&failure);
            }
        }
    }

    /// The body ended in order. Whether the answer is whole is the dialect's question.
    fn ended(&mut self) {
        let finished = self.tap.finish(true, &mut self.fed);
        self.pass_on();
        match finished {
            Ok(End::Completed) => self.complete(),
            Ok(End::Cut) => {
                self.fail(&Failure::new(FailureKind::StreamCut, "the provider's stream ended before its end"));
            }
            Err(failure) => self.fail(&failure),
        }
    }

    /// The body broke, or a deadline passed.
    fn broke(&mut self, failure: &Failure) {
        // A provider that cuts the connection behind a whole answer has answered.
        let finished = self.tap.finish(false, &mut self.fed);
        self.pass_on();
        match finished {
            Ok(End::Completed) => self.complete(),
            Ok(End::Cut) | Err(_) => self.fail(failure),
        }
    }

    /// The final record is written before the last bytes leave; the connection goes back.
    fn complete(&mut self) {
        self.settle(Outcome::Completed, "");
        let Some((mut body, connection)) = self.body.take() else { return };
        // Usually the end of the body lies right behind the end of the stream.
        runtime::task::spawn_local("stream end", async move {
            let rest = async { while let Some(Ok(_)) = upstream::next_data(&mut body).await {} };
            if tokio::time::timeout(TICK, rest).await.is_ok() {
                connection.keep();
            }
        });
    }

    fn fail(&mut self, failure: &Failure) {
        if !self.exchange.is_open() {
            self.body = None;
            return;
        }
        let mut failure = failure.clone();
        self.exchange.hide_secret(self.dialect, &mut failure);
        self.exchange.attempt_failed(&failure);
        let problem = Problem::from(&failure);
        self.settle(Outcome::Cut, problem.code);
        self.out.push_back(self.dialect.error_event(problem.error_type, problem.code, &problem.message));
        self.body = None;
    }

    /// The node stops and has no time left. Says nothing about the provider.
    fn shut_down(&mut self) {
        self.settle(Outcome::Cut, "node_shutting_down");
        let message = "this node is shutting down; send the request again";
        self.out.push_back(self.dialect.error_event("overloaded_error", "node_shutting_down", message));
        self.body = None;
    }

    /// What the tap let through goes to the caller.
    fn pass_on(&mut self) {
        let bytes = self.fed.iter().map(Bytes::len).sum();
        self.out.extend(self.fed.drain(..));
        let (tap, prompt) = (&self.tap, self.exchange.prompt_tokens);
        self.exchange.progress(bytes, || tap.usage(prompt));
    }

    fn settle(&mut self, outcome: Outcome, code: &str) {
        let usage: Usage = self.tap.usage(self.exchange.prompt_tokens);
        self.exchange.settle(outcome, 200, code, Some(&usage));
    }

    /// Looks at the deadlines once per tick, rather than setting a timer for every chunk.
    fn check_deadlines(&mut self, cx: &mut Context<'_>) -> Verdict {
        loop {
            if std::future::Future::poll(self.tick.as_mut(), cx).is_pending() {
                return Verdict::GoOn;
            }
            let now = Instant::now();
            if self.exchange.worker.node.drain.phase() == Phase::Cutting {
                return Verdict::ShutDown;
            }
            if now >= self.until {
                return Verdict::Late(upstream::too_late(Deadline::Total));
            }
            let idle_at = self.last_chunk + self.idle;
            if now >= idle_at {
                return Verdict::Late(upstream::too_late(Deadline::Idle));
            }
            self.tick.as_mut().reset((now + TICK).min(idle_at).min(self.until));
        }
    }
}

/// What the deadlines say.
enum Verdict {
    GoOn,
    Late(Failure),
    ShutDown,
}

impl Drop for Relay {
    /// The caller left: the provider's connection closes with `body`, which cancels the call.
    fn drop(&mut self) {
        if self.exchange.is_open() {
            let usage = self.tap.usage(self.exchange.prompt_tokens);
            self.exchange.settle(Outcome::Cancelled, 499, "client_closed_request", Some(&usage));
        }
    }
}
