//! The thread that writes what serves to disk. Nothing waits for it: newest wins, a scope is
//! written at most once a second, and what fails is tried again.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use runtime::clock;
use shared::snapshot::Scope;

use super::boot::{self, Boot, Start};
use super::disk::Disk;
use super::status::Status;
use super::store::Lineage;

/// A scope is written at most this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// And at most a twentieth of the time goes into writing one scope.
const SHARE: u32 = 20;
/// When to try again after the file system refused.
const RETRY: Duration = Duration::from_secs(10);
/// A state that has served this long is good.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// Remembers what serves. Dropping it writes what is left and waits for that.
#[derive(Debug)]
pub struct Keeper {
    disk: Arc<Disk>,
    start: Start,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: BTreeMap<String, Job>,
    stopping: bool,
    flushed: u64,
    asked: u64,
}

#[derive(Debug)]
enum Job {
    Write { lineage: Lineage, scope: Scope },
    Remove,
}

impl Keeper {
    /// Starts the thread. What `boot` chose becomes good when the process lasts.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start(disk: Disk, boot: &Boot, status: Arc<Status>) -> io::Result<Self> {
        let (disk, shared) = (Arc::new(disk), Arc::new(Shared::default()));
        let writer = Writer::new(disk.clone(), boot, status, clock::monotonic);
        let thread = runtime::task::thread("snapshot-keeper", {
            let shared = shared.clone();
            move || writer.run(&shared)
        })?;
        Ok(Self { disk, start: boot.start(), shared, thread: Some(thread) })
    }

    /// Notes that this state serves. Returns at once.
    pub fn keep(&self, name: &str, lineage: Lineage, scope: Scope) {
        self.push(name, Job::Write { lineage, scope });
    }

    /// Notes that the scope is gone. Returns at once.
    pub fn forget(&self, name: &str) {
        self.push(name, Job::Remove);
    }

    /// Notes that this process has answered a request well. Writes one small file, and returns when it
    /// is written: whoever kills the process from now on is not taken for what it served. Called at the
    /// same time by many, all wait for the first.
    pub fn answered(&self) {
        if let Err(e) = boot::answered(&self.disk, self.start) {
            tracing::warn!(error = %e, "the record of starts could not be cleared");
        }
    }

    /// Notes when the control plane was last heard. Writes one small file.
    pub fn contacted(&self, now_ms: i64) {
        if let Err(e) = self.disk.note_contact(now_ms) {
            tracing::warn!(error = %e, "the time of the last word from the control plane could not be kept");
        }
    }

    /// Waits until all that was noted before has been written or has failed once.
    pub fn flush(&self) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.asked += 1;
        let asked = queue.asked;
        self.shared.wake.notify_all();
        while queue.flushed < asked && !queue.stopping {
            queue = self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push(&self, name: &str, job: Job) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.jobs.insert(name.to_owned(), job);
        self.shared.wake.notify_all();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).stopping = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// The thread's own.
struct Writer {
    disk: Arc<Disk>,
    status: Arc<Status>,
    start: Start,
    /// A monotonic clock, as are all times below.
    now: fn() -> Duration,
    started: Duration,
    lasted: bool,
    /// When each scope may be written next.
    due: HashMap<String, Duration>,
    /// Since when a nominated state of each scope serves.
    candidates: HashMap<String, Duration>,
}

impl Writer {
    fn new(disk: Arc<Disk>, boot: &Boot, status: Arc<Status>, now: fn() -> Duration) -> Self {
        let mut writer = Self {
            disk,
            status,
            start: boot.start(),
            now,
            started: now(),
            lasted: false,
            due: HashMap::new(),
            candidates: HashMap::new(),
        };
        for (name, stored) in &boot.scopes {
            writer.nominate(name, &stored.path);
        }
        writer
    }

    fn run(mut self, shared: &Shared) {
        loop {
            let (jobs, stopping, asked) = self.next(shared);
            for (name, job) in jobs {
                if let Some(again) = self.carry_out(&name, job) {
                    let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.jobs.entry(name).or_insert(again);
                }
            }
            self.confirm_good();
            let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.flushed = queue.flushed.max(asked);
            shared.wake.notify_all();
            if stopping {
                return;
            }
        }
    }

    /// Waits for work and takes what is due; all of it when someone waits for it.
    fn next(&self, shared: &Shared) -> (Vec<(String, Job)>, bool, u64) {
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = (self.now)();
            let hurry = queue.stopping || queue.asked > queue.flushed;
            let is_due = |name: &String| hurry || self.due.get(name).is_none_or(|due| *due <= now);
            let names: Vec<String> = queue.jobs.keys().filter(|name| is_due(name)).cloned().collect();
            let good = self.next_good();
            if hurry || !names.is_empty() || good.is_some_and(|at| at <= now) {
                // "shared" sorts before every workspace: what they refer to is written first.
                let jobs = names.into_iter().filter_map(|name| queue.jobs.remove_entry(&name)).collect();
                return (jobs, queue.stopping, queue.asked);
            }
            let waiting = queue.jobs.keys().filter_map(|name| self.due.get(name).copied());
            queue = match waiting.chain(good).min() {
                Some(at) => {
                    let wait = shared.wake.wait_timeout(queue, at.saturating_sub(now));
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None => shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Gives the job back when it has to be tried again.
    fn carry_out(&mut self, name: &str, job: Job) -> Option<Job> {
        let started = (self.now)();
        let done = match &job {
            Job::Write { lineage, scope } => self.disk.write(name, *lineage, scope).map(Some),
            Job::Remove => self.disk.remove(name).map(|()| None),
        };
        match done {
            Ok(written) => {
                let wait = INTERVAL.max((self.now)().saturating_sub(started).saturating_mul(SHARE));
                self.due.insert(name.to_owned(), (self.now)() + wait);
                match written {
                    // One nomination at a time: under steady change the newest would never last.
                    Some(path) if !self.candidates.contains_key(name) => self.nominate(name, &path),
                    Some(_) => {}
                    None => {
                        self.candidates.remove(name);
                        self.due.remove(name);
                    }
                }
                None
            }
            Err(e) => {
                self.status.disk_failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(scope = name, error = %e, "state could not be stored; it serves, but a restart would miss it");
                self.due.insert(name.to_owned(), (self.now)() + RETRY);
                Some(job)
            }
        }
    }

    fn nominate(&mut self, name: &str, path: &std::path::Path) {
        match self.disk.nominate(name, path) {
            Ok(()) => _ = self.candidates.insert(name.to_owned(), (self.now)()),
            Err(e) => tracing::warn!(scope = name, error = %e, "no good state is kept"),
        }
    }

    fn next_good(&self) -> Option<Duration> {
        let start = (!self.lasted).then_some(self.started);
        self.candidates.values().copied().chain(start).min().map(|since| since + GOOD_AFTER)
    }

    fn confirm_good(&mut self) {
        let now = (self.now)();
        let lasted = |since: Duration| now.saturating_sub(since) >= GOOD_AFTER;
        if !self.lasted && lasted(self.started) {
            self.lasted = true;
            if let Err(e) = boot::lasted(&self.disk, self.start) {
                tracing::warn!(error = %e, "the record of starts could not be cleared");
            }
        }
        let ripe: Vec<String> =
            self.candidates.iter().filter(|(_, since)| lasted(**since)).map(|(name, _)| name.clone()).collect();
        for name in ripe {
            self.candidates.remove(&name);
            if let Err(e) = self.disk.confirm(&name) {
                tracing::warn!(scope = name, error = %e, "no good state is kept");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use shared::snapshot::SHARED_SCOPE;

    use super::super::fixture::{Folder, shared_scope, workspace_id, workspace_scope};
    use super::*;

    thread_local! {
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    fn at(seconds: u64) {
        NOW.set(Duration::from_secs(seconds));
    }

    fn writer(folder: &Folder) -> Writer {
        let disk = Disk::open(folder.path()).expect("the folder is ours");
        let boot = boot::boot(&disk, 1);
        Writer::new(Arc::new(disk), &boot, Arc::default(), || NOW.get())
    }

    fn write(writer: &mut Writer, name: &str, scope: Scope) -> bool {
        writer.carry_out(name, Job::Write { lineage: [1; 16], scope }).is_none()
    }

    fn good_revision(writer: &Writer, name: &str) -> Option<u64> {
        let good = writer.disk.generations(name).into_iter().find(|g| g.number.is_none())?;
        Some(writer.disk.read(name, &good).expect("it was written whole").scope.revision())
    }

    #[test]
    fn what_served_a_minute_is_good_even_under_steady_change() {
        let folder = Folder::new("keeper-good");
        let name = workspace_id(1).to_string();
        at(0);
        let mut writer = writer(&folder);
        for second in 0..200 {
            at(second);
            assert!(write(&mut writer, &name, workspace_scope(1, second + 1, 0, "A")));
            writer.confirm_good();
            let expected = match second {
                0..60 => None,
                60..121 => Some(1),
                121..182 => Some(62),
                _ => Some(123),
            };
            assert_eq!(good_revision(&writer, &name), expected, "second {second}");
        }
    }

    #[test]
    fn a_start_that_lasted_is_no_short_one() {
        let folder = Folder::new("keeper-lasted");
        at(0);
        {
            let mut first = writer(&folder);
            assert!(write(&mut first, SHARED_SCOPE, shared_scope(1)));
        }
        let mut second = writer(&folder);
        at(59);
        second.confirm_good();
        assert_eq!(second.disk.starts().len(), 1);
        at(60);
        second.confirm_good();
        assert_eq!((second.disk.starts().len(), good_revision(&second, SHARED_SCOPE)), (0, Some(1)));
    }

    #[test]
    fn what_the_file_system_refuses_is_tried_again() {
        let folder = Folder::new("keeper-refused");
        let name = workspace_id(1).to_string();
        at(0);
        let mut writer = writer(&folder);
        let blocked = folder.path().join("scopes").join(&name);
        fs::write(&blocked, b"a file where a folder has to be").expect("there is room");
        assert!(!write(&mut writer, &name, workspace_scope(1, 1, 0, "A")), "the job comes back");
        assert_eq!(writer.status.disk_failures.load(Ordering::Relaxed), 1);
        assert_eq!(writer.due.get(&name), Some(&RETRY));
        fs::remove_file(&blocked).expect("it is there");
        assert!(write(&mut writer, &name, workspace_scope(1, 1, 0, "A")));
        assert_eq!(writer.disk.generations(&name).len(), 1);
    }
}
