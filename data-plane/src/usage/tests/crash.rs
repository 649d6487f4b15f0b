//! Crashes at every byte, damage at every byte, and random lives of a journal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use shared::proto::Outcome;

use super::folder::{AtOnce, Folder, begun, done, finals, id, inline, number, output};
use crate::usage::journal::Mark;

/// Writes intents, checkpoints and finals of a few requests, some left open; gives for each length of
/// the only segment which requests are settled and which are open with how many tokens.
fn story(folder: &Folder) -> Vec<(u64, Vec<u64>, BTreeMap<u64, u64>)> {
    let opened = folder.open(&inline(1 << 20));
    let writer = &opened.writers[0];
    let segment = folder.segments().pop().expect("one segment");
    let mut states = Vec::new();
    let (mut settled, mut open) = (Vec::new(), BTreeMap::new());
    let mut note = |settled: &Vec<u64>, open: &BTreeMap<u64, u64>| {
        states.push((fs::metadata(&segment).expect("there").len(), settled.clone(), open.clone()));
    };
    note(&settled, &open);
    for n in 0..4 {
        writer.intent(&begun(n)).expect("room");
        open.insert(n, 0);
        note(&settled, &open);
        writer.checkpoint(&id(n), output(5 + n));
        open.insert(n, 5 + n);
        note(&settled, &open);
        if n != 2 {
            writer.settle(&done(n));
            open.remove(&n);
            settled.push(n);
            note(&settled, &open);
        }
    }
    states
}

/// F1, F25: the state after any crash is the one at the last whole record before it.
#[test]
fn cut_at_every_length() {
    let folder = Folder::new();
    let states = story(&folder);
    let whole = states.last().expect("states").0;
    for cut in states[0].0..=whole {
        let copy = folder.copy();
        let segment = copy.segments().pop().expect("one segment");
        OpenOptions::new().write(true).open(&segment).expect("open").set_len(cut).expect("cut");
        let (_, settled, open) = states.iter().rev().find(|(len, ..)| *len <= cut).expect("a state");
        let opened = copy.open(&inline(1 << 20));
        let all = finals(&opened.spools[0], 0);
        let (kept, closed) = all.split_at(settled.len());
        assert!(kept.iter().map(number).eq(settled.iter().copied()), "cut at {cut}");
        let closed: BTreeMap<u64, u64> = closed
            .iter()
            .inspect(|r| assert_eq!((r.outcome(), r.estimated), (Outcome::Interrupted, true)))
            .map(|r| (number(r), r.tokens.as_ref().map_or(0, |t| t.output)))
            .collect();
        assert_eq!(&closed, open, "cut at {cut}");
        let torn = states.iter().all(|(len, ..)| *len != cut);
        assert_eq!(opened.spools[0].total().torn_tails.load(Ordering::Relaxed), u64::from(torn));
        let mark = opened.spools[0].mark();
        drop((all, opened));
        // A second start finds nothing more to do, and the same incarnation.
        let again = copy.open(&inline(1 << 20));
        assert_eq!(again.spools[0].finals() as usize, settled.len() + open.len());
        assert_eq!(again.spools[0].mark(), mark);
    }
}

/// F25: damage in the middle costs the record it hits and no other, and is seen.
#[test]
fn flip_every_byte_of_a_middle_segment() {
    let folder = Folder::new();
    let opened = folder.open(&inline(300));
    (0..20).for_each(|n| _ = opened.writers[0].settle(&done(n)));
    let incarnation = opened.spools[0].mark().incarnation;
    drop(opened);
    let place = folder.segments().len() / 2;
    let bytes = fs::read(&folder.segments()[place]).expect("readable");
    for byte in 0..bytes.len() {
        let copy = folder.copy();
        let mut bad = bytes.clone();
        bad[byte] ^= 0x10;
        fs::write(&copy.segments()[place], &bad).expect("write");
        let opened = copy.open(&inline(300));
        let left: Vec<u64> = finals(&opened.spools[0], 0).iter().map(number).collect();
        let header = (4..8).contains(&byte) || (28..32).contains(&byte);
        let distinct: BTreeSet<u64> = left.iter().copied().collect();
        assert_eq!(distinct.len(), left.len(), "byte {byte}");
        let lost = 20 - left.len();
        if byte < 32 {
            assert_eq!(lost, 0, "byte {byte}: a header holds no record");
        } else {
            assert_eq!(lost, 1, "byte {byte}");
        }
        if byte >= 32 || !header {
            assert_ne!(opened.spools[0].mark().incarnation, incarnation, "byte {byte}: numbers may have moved");
        }
        let mark = opened.spools[0].mark();
        drop(opened);
        assert_eq!(copy.open(&inline(300)).spools[0].mark(), mark, "byte {byte}: once");
    }
}

/// Killed between writing the mark and deleting any number of segments.
#[test]
fn killed_while_trimming() {
    let folder = Folder::new();
    let opened = folder.open(&inline(300));
    (0..20).for_each(|n| _ = opened.writers[0].settle(&done(n)));
    let mark = Mark { acked: 13, chain: [9; 32], ..opened.spools[0].mark() };
    drop(opened);
    mark.write(&folder.journal()).expect("mark");
    let before = folder.segments().len();
    for deleted in 0..before / 2 {
        let copy = folder.copy();
        copy.segments()[..deleted].iter().for_each(|path| fs::remove_file(path).expect("remove"));
        let opened = copy.open(&inline(300));
        assert_eq!(opened.spools[0].mark(), mark);
        assert!(finals(&opened.spools[0], 13).iter().map(number).eq(13..20), "{deleted} deleted");
        opened.spools[0].trim().expect("trim");
        assert!(finals(&opened.spools[0], 13).iter().map(number).eq(13..20));
    }
}

/// A lost or damaged mark costs no record: everything held is numbered anew.
#[test]
fn without_its_mark() {
    let folder = Folder::new();
    let opened = folder.open(&inline(300));
    (0..9).for_each(|n| _ = opened.writers[0].settle(&done(n)));
    let old = opened.spools[0].mark();
    drop(opened);
    fs::write(folder.journal().join("mark"), b"rubbish").expect("write");
    let opened = folder.open(&inline(300));
    let mark = opened.spools[0].mark();
    assert_ne!(mark.incarnation, old.incarnation);
    assert_eq!((mark.offset, mark.acked), (0, 0));
    assert_eq!(finals(&opened.spools[0], 0).len(), 9);
}

#[derive(Debug, Clone)]
enum Op {
    Begin,
    Progress(u64),
    Settle(usize),
    /// Confirm a part of what is unconfirmed, and trim.
    Ack(u64),
    /// Kill, and cut so many bytes that were not whole records.
    Kill(Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Begin),
        2 => any::<u64>().prop_map(|n| Op::Progress(n % 1000)),
        4 => any::<usize>().prop_map(Op::Settle),
        1 => any::<u64>().prop_map(Op::Ack),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Op::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens, each request that began is settled exactly once, in one numbering.
    #[test]
    fn each_request_is_settled_once(ops in prop::collection::vec(op(), 1..80)) {
        let folder = Folder::new();
        let options = inline(350);
        let mut opened = folder.open(&options);
        let (mut next, mut open, mut reported) = (0, Vec::new(), Vec::new());
        let incarnation = opened.spools[0].mark().incarnation;
        for op in ops {
            let writer = opened.writers[0].clone();
            match op {
                Op::Begin => {
                    writer.intent(&begun(next)).expect("room");
                    open.push(next);
                    next += 1;
                }
                Op::Progress(tokens) => if let Some(n) = open.last() {
                    writer.checkpoint(&id(*n), output(tokens));
                },
                Op::Settle(which) => if !open.is_empty() {
                    let n = open.swap_remove(which % open.len());
                    writer.settle(&done(n));
                },
                Op::Ack(part) => {
                    let spool = &opened.spools[0];
                    let fresh = finals(spool, spool.mark().acked);
                    let count = part as usize % (fresh.len() + 1);
                    reported.extend(fresh[..count].iter().map(number));
                    spool.ack(spool.mark().acked + count as u64, [0; 32]);
                    spool.trim().expect("trim");
                }
                Op::Kill(torn) => {
                    drop(writer);
                    // What a crash forgets is the mark's progress since it was last written.
                    drop(opened);
                    let last = folder.segments().pop().expect("a segment");
                    let mut bytes = fs::read(&last).expect("readable");
                    bytes.extend(torn);
                    fs::write(&last, bytes).expect("write");
                    opened = folder.open(&options);
                    open.clear();
                    let kept = opened.spools[0].mark().acked as usize;
                    prop_assert!(kept <= reported.len());
                    reported.truncate(kept);
                }
            }
        }
        let writer = opened.writers[0].clone();
        open.into_iter().for_each(|n| _ = writer.settle(&done(n)));
        let spool = &opened.spools[0];
        reported.extend(finals(spool, spool.mark().acked).iter().map(number));
        reported.sort_unstable();
        prop_assert!(reported.iter().copied().eq(0..next), "{:?}", reported);
        prop_assert_eq!(spool.mark().incarnation, incarnation);
    }
}
