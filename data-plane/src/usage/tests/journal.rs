//! Writing, refusing, rotating, trimming.

use std::fs;
use std::time::Duration;

use prost::Message;
use shared::proto::Outcome;

use super::folder::{AtOnce, Folder, begun, done, finals, id, inline, number, output};
use crate::usage::journal::{OpenError, Options, Unwritable, open};
use crate::usage::meter::{CHECKPOINT_EVERY, Meter};

#[test]
fn finals_are_numbered_over_segments_and_starts() {
    let folder = Folder::new();
    for start in 0..3 {
        let opened = folder.open(&inline(400));
        for n in 0..10 {
            opened.writers[0].intent(&begun(start * 10 + n)).expect("room");
            assert_eq!(opened.writers[0].settle(&done(start * 10 + n)), start * 10 + n + 1);
        }
        let all = finals(&opened.spools[0], 0);
        assert!(all.iter().map(number).eq(0..start * 10 + 10));
        assert!(finals(&opened.spools[0], 7).iter().map(number).eq(7..start * 10 + 10));
    }
    assert!(folder.segments().len() > 6);
}

/// F21.
#[test]
fn a_second_process_is_refused_with_a_reason() {
    let folder = Folder::new();
    let first = folder.open(&inline(1000));
    let second = open(folder.path(), 1, &inline(1000)).map(drop);
    assert!(matches!(&second, Err(OpenError::Locked(_))), "{second:?}");
    assert!(second.expect_err("locked").to_string().contains("another process uses the usage journal"));
    drop(first);
    folder.open(&inline(1000));
}

#[test]
fn a_full_journal_refuses_intents_and_keeps_finals() {
    let folder = Folder::new();
    let options = Options { limit_bytes: 4000, ..inline(1000) };
    let opened = folder.open(&options);
    let writer = &opened.writers[0];
    let taken = (0..1000).take_while(|n| writer.intent(&begun(*n)).is_ok()).count() as u64;
    assert!((10..1000).contains(&taken));
    assert_eq!(writer.intent(&begun(taken)), Err(Unwritable::Full));
    for n in 0..taken {
        assert_eq!(writer.settle(&done(n)), n + 1);
    }
    assert_eq!(finals(&opened.spools[0], 0).len() as u64, taken);
    assert_eq!(writer.intent(&begun(taken)), Err(Unwritable::Full));
    let spool = &opened.spools[0];
    spool.ack(taken, [1; 32]);
    assert!(spool.trim().expect("trim") > 1);
    assert_eq!(writer.intent(&begun(taken)), Ok(()));
}

/// Requests that are busy at the same time share a write, and one that goes away meanwhile is in it.
#[tokio::test]
async fn one_write_for_all_that_are_busy() {
    let folder = Folder::new();
    let opened = folder.open(&inline(10_000));
    let (writer, spool) = (&opened.writers[0], &opened.spools[0]);
    let before = spool.total().used();
    (0..10).for_each(|n| writer.queue_intent(&begun(n)).expect("room"));
    assert_eq!(spool.total().used(), before);
    for n in 0..10 {
        writer.gate(id(n)).pass().expect("written");
        assert!(spool.total().used() > before, "{n} goes on before it is written");
    }
    assert_eq!(writer.flushes(), 1);
    let request = async |n| {
        writer.queue_final(&done(n));
        writer.written().await;
    };
    futures_util::future::join_all((0..10).map(&request)).await;
    assert_eq!(writer.flushes(), 2);
    assert_eq!(finals(spool, 0).len(), 10);
    writer.queue_intent(&begun(10)).expect("room");
    let mut gone = Box::pin(writer.written());
    assert!(futures_util::poll!(&mut gone).is_pending());
    drop(gone);
    assert_eq!(writer.flushes(), 3);
}

#[test]
fn a_disk_that_refuses_costs_no_final() {
    let folder = Folder::new();
    let opened = folder.open(&inline(400));
    let writer = &opened.writers[0];
    writer.intent(&begun(0)).expect("room");
    // The next segment cannot be made.
    let obstacle = folder.journal().join(format!("{:016x}.segment", 2));
    fs::create_dir(&obstacle).expect("a folder");
    let refused = (1..10).find_map(|n| writer.intent(&begun(n)).err());
    assert_eq!(refused, Some(Unwritable::Failed));
    let finals_before = finals(&opened.spools[0], 0).len();
    (0..20).for_each(|n| assert_eq!(writer.settle(&done(n)), n + 1));
    assert_eq!(finals(&opened.spools[0], 0).len(), finals_before);
    fs::remove_dir(&obstacle).expect("removed");
    writer.intent(&begun(20)).expect("it accepts again");
    assert!(finals(&opened.spools[0], 0).iter().map(number).eq(0..20));
    assert_eq!(opened.spools[0].total().lost.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn trimming_keeps_what_is_unconfirmed_or_open() {
    let folder = Folder::new();
    let opened = folder.open(&inline(400));
    let (writer, spool) = (&opened.writers[0], &opened.spools[0]);
    writer.intent(&begun(1000)).expect("room");
    writer.checkpoint(&id(1000), output(7));
    let mut most = 0;
    for n in 0..200 {
        writer.intent(&begun(n)).expect("room");
        writer.settle(&done(n));
        spool.ack(n + 1, [n as u8; 32]);
        spool.trim().expect("trim");
        most = most.max(folder.segments().len());
        let on_disk: u64 = folder.segments().iter().map(|path| fs::metadata(path).expect("there").len()).sum();
        assert_eq!(spool.total().used(), on_disk);
    }
    assert!(most <= 7, "a long request must not keep {most} segments");
    writer.settle(&done(300));
    drop(opened);
    // Its intent was carried forward with its last checkpoint.
    let opened = folder.open(&inline(400));
    let left = finals(&opened.spools[0], 200);
    assert_eq!(left.iter().map(number).collect::<Vec<_>>(), [300, 1000]);
    assert_eq!(left[1].tokens, Some(output(7).into()));
    assert_eq!((left[1].outcome(), left[1].estimated), (Outcome::Interrupted, true));
}

/// What could still be lost in a power cut is not reported: its number would be given again.
#[test]
fn only_durable_finals_are_read() {
    let folder = Folder::new();
    let opened = folder.open(&Options { sync_interval: Duration::from_secs(3600), ..Options::default() });
    opened.writers[0].settle(&done(1));
    assert_eq!(finals(&opened.spools[0], 0).len(), 0);
    opened.spools[0].sync().expect("sync");
    assert_eq!(finals(&opened.spools[0], 0).len(), 1);
}

#[test]
fn journals_of_former_workers_are_still_read() {
    let folder = Folder::new();
    let opened = folder.open_for(3, &inline(1000));
    for (worker, writer) in opened.writers.iter().enumerate() {
        writer.settle(&done(worker as u64));
        writer.intent(&begun(10 + worker as u64)).expect("room");
    }
    drop(opened);
    let opened = folder.open(&inline(1000));
    assert_eq!((opened.writers.len(), opened.spools.len()), (1, 3));
    let all: Vec<_> = opened.spools.iter().flat_map(|spool| finals(spool, 0)).map(|r| number(&r)).collect();
    assert_eq!(all, [0, 10, 1, 11, 2, 12]);
}

#[test]
fn the_incarnation_belongs_to_the_folder() {
    let folder = Folder::new();
    let marks: Vec<_> = (0..3).map(|_| folder.open(&inline(1000)).spools[0].mark().incarnation).collect();
    assert!(marks.iter().all(|m| *m == marks[0]));
    assert_ne!(Folder::new().open(&inline(1000)).spools[0].mark().incarnation, marks[0]);
}

#[test]
fn a_meter_writes_intent_checkpoints_and_final() {
    let folder = Folder::new();
    let opened = folder.open(&inline(10_000));
    let writer = &opened.writers[0];
    let meter =
        |n| Meter::begin(writer, id(n), Duration::ZERO, |record| record.identity.push_str("somebody")).expect("room");
    meter(0).finish(
        |record| {
            assert_eq!(record.identity, "", "a record begins empty");
            record.status = 200;
            record.identity = "ä".repeat(300);
        },
        |record| assert_eq!(record.identity.len(), 256),
    );
    writer.flush();
    assert_eq!(writer.finals(), 1);
    let mut long = meter(1);
    long.progress(100_000, Duration::ZERO, || output(5));
    long.progress(10, Duration::ZERO, || panic!("not due"));
    long.progress(10, CHECKPOINT_EVERY, || output(7));
    // As when the process dies: the next start settles it at its last checkpoint.
    drop((long, opened));
    let opened = folder.open(&inline(10_000));
    let ends: Vec<_> = finals(&opened.spools[0], 0)
        .iter()
        .map(|r| (number(r), r.outcome(), r.status, r.tokens.unwrap_or_default().output))
        .collect();
    assert_eq!(ends, [(0, Outcome::Unspecified, 200, 0), (1, Outcome::Interrupted, ends[1].2, 7)]);
}

/// `POINTSMAN_TEST_JOURNAL_CALLS=1000000 cargo test --release -p data-plane hot_path -- --nocapture`
#[test]
fn hot_path() {
    let calls = std::env::var("POINTSMAN_TEST_JOURNAL_CALLS").ok().and_then(|t| t.parse().ok()).unwrap_or(1000_u64);
    let folder = Folder::new();
    let opened = folder.open(&Options { limit_bytes: 1 << 36, ..Options::default() });
    let began = runtime::clock::monotonic();
    for n in 0..calls {
        opened.writers[0].intent(&begun(n)).expect("room");
        opened.writers[0].settle(&done(n));
    }
    let took = runtime::clock::monotonic() - began;
    let began = runtime::clock::monotonic();
    let encoded: usize = (0..calls).map(|n| done(n).encode_to_vec().len()).sum();
    let building = runtime::clock::monotonic() - began;
    println!(
        "{} ns a call with its write, {} ns of it building the test's records ({} bytes)",
        took.as_nanos() as u64 / calls / 2,
        building.as_nanos() as u64 / calls,
        encoded as u64 / calls
    );
    assert_eq!(opened.spools[0].finals(), calls);
}
