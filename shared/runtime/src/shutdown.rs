//! Asking everything to stop, once. What stopping means (draining, flushing) is each task's own.

use tokio::sync::watch;

/// Asks to stop. Dropping it asks too: nobody is left who could.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Tells when to stop. Cheap to clone; every clone hears the same call.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and what it fires.
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Shutdown(receiver))
}

impl Trigger {
    /// Asks to stop. Asking again changes nothing.
    pub fn fire(&self) {
        self.0.send_replace(true);
    }

    /// Asks to stop on SIGTERM or SIGINT. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When a signal handler cannot be installed.
    pub fn fire_on_signals(self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        crate::task::spawn("signals", async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping");
            self.fire();
        });
        Ok(())
    }
}

impl Shutdown {
    /// Whether to stop now.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until asked to stop; at once when that has happened already.
    pub async fn asked(&self) {
        // An error means that the trigger is gone, which asks too.
        _ = self.0.clone().wait_for(|asked| *asked).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_hears_it_before_and_after() {
        let (trigger, shutdown) = channel();
        let waiting = crate::task::spawn("waiting", {
            let shutdown = shutdown.clone();
            async move { shutdown.asked().await }
        });
        assert!(!shutdown.is_asked());
        trigger.fire();
        waiting.await.expect("the task only waits");
        shutdown.asked().await;
        assert!(shutdown.is_asked());
    }

    #[tokio::test]
    async fn a_lost_trigger_asks_too() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        shutdown.asked().await;
        assert!(shutdown.is_asked());
    }
}
