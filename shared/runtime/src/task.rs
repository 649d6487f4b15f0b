//! Tasks and threads with names, whose panics are logged where they happen. `clippy.toml` bans the
//! bare forms, which lose both.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::Poll;

use tokio::task::JoinHandle;

/// Spawns a future on the current tokio runtime.
#[expect(clippy::disallowed_methods, reason = "this is what the others are to use instead")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(watched(name, future))
}

/// Spawns a future that stays on this thread; for a `LocalRuntime`.
#[expect(clippy::disallowed_methods, reason = "this is what the others are to use instead")]
pub fn spawn_local<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
{
    tokio::task::spawn_local(watched(name, future))
}

/// Runs `work` on tokio's pool for blocking calls.
#[expect(clippy::disallowed_methods, reason = "this is what the others are to use instead")]
pub fn spawn_blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || logged(name, work))
}

/// Starts an operating-system thread of this name.
///
/// # Errors
/// When the system refuses another thread.
pub fn thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<T>> {
    let owned = name.to_owned();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || logged(&owned, work))
}

/// What a panic said, for a log or an error; never more than 1 KiB.
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without text");
    text.chars().take(256).collect()
}

async fn watched<F: Future>(name: &'static str, future: F) -> F::Output {
    let mut future = pin!(future);
    // The future is not polled again after a panic, so nobody sees what it left half done.
    poll_fn(move |context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Ready(out)) => Poll::Ready(out),
        Ok(Poll::Pending) => Poll::Pending,
        Err(payload) => report(name, payload),
    })
    .await
}

fn logged<T>(name: &str, work: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(out) => out,
        Err(payload) => report(name, payload),
    }
}

fn report(name: &str, payload: Box<dyn Any + Send>) -> ! {
    tracing::error!(task = name, panic = panic_text(&*payload), "a task panicked");
    resume_unwind(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_and_panics_reach_the_handle() {
        assert_eq!(spawn("fine", async { 7 }).await.expect("it does not panic"), 7);
        let lost = spawn("bad", async { panic!("on purpose") }).await;
        let payload = lost.expect_err("it panics").into_panic();
        assert_eq!(panic_text(&*payload), "on purpose");
        let lost = spawn_blocking("bad", || panic!("number {}", 5)).await;
        assert_eq!(panic_text(&*lost.expect_err("it panics").into_panic()), "number 5");
        let joined =
            thread("named", || std::thread::current().name().map(str::to_owned)).expect("threads exist").join();
        assert_eq!(joined.expect("it does not panic").as_deref(), Some("named"));
    }
}
