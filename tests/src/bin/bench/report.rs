//! Medians over rounds, as a table that can be pasted into BENCHMARKS.md; a ratio is the median of the
//! rounds' ratios.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::load::{Percentiles, Target};

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Answers per second.
    pub per_second: Option<f64>,
    /// CPU milliseconds of the target per answer.
    pub cpu_ms: Option<f64>,
    /// From the intended time; of streams to the first event.
    pub latency: Option<Percentiles>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rate) = self.per_second {
            write!(f, "{rate:.0}/s ")?;
        }
        if let Some(cpu) = self.cpu_ms {
            write!(f, "{cpu:.4} ms CPU ")?;
        }
        if let Some(l) = self.latency {
            write!(f, "p50 {:.3} ms, p99 {:.3} ms", ms(l.p50), ms(l.p99))?;
        }
        Ok(())
    }
}

/// All measurements, by row in order of first appearance, then by target.
#[derive(Default)]
pub struct Report {
    rows: Vec<String>,
    figures: BTreeMap<(String, &'static str), Vec<Figures>>,
}

impl Report {
    /// Adds one round's figures.
    pub fn add(&mut self, target: &'static str, row: &str, figures: Figures) {
        if !self.rows.iter().any(|r| r == row) {
            self.rows.push(row.to_owned());
        }
        self.figures.entry((row.to_owned(), target)).or_default().push(figures);
    }

    /// Prints the tables.
    pub fn print(&self, targets: &[Target], starts: &[Duration]) {
        println!("\n| | direct | pass-through | data plane | data plane / pass-through |");
        println!("| --- | --- | --- | --- | --- |");
        for row in &self.rows {
            self.line(row, "answers/s", 0, |f| f.per_second);
            self.line(row, "CPU ms per answer", 4, |f| f.cpu_ms);
            self.spread(row);
            self.line(row, "p50 ms", 3, |f| f.latency.map(|l| ms(l.p50)));
            self.line(row, "p99 ms", 3, |f| f.latency.map(|l| ms(l.p99)));
            self.added(row, "added p50 ms", |f| f.latency.map(|l| ms(l.p50)));
            self.added(row, "added p99 ms", |f| f.latency.map(|l| ms(l.p99)));
        }
        let mib = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |b| format!("{:.1}", b as f64 / 1_048_576.0));
        for (name, of) in [
            ("memory idle, MiB", (|t: &Target| t.idle_rss) as fn(&Target) -> Option<u64>),
            ("memory after load, MiB", |t| t.loaded_rss),
        ] {
            let cells: Vec<String> = targets.iter().map(|t| mib(of(t))).collect();
            println!("| {name} | {} | |", cells.join(" | "));
        }
        if let Some(median) = starts.get(starts.len() / 2) {
            println!("| start to first answer from the disk snapshot, ms | - | - | {:.0} | |", ms(*median));
        }
        println!("\nRows of streams measure latency to the first event. \"Added\" is less what direct takes.");
    }

    fn line(&self, row: &str, what: &str, digits: usize, of: fn(&Figures) -> Option<f64>) {
        let [direct, pass, ours] = self.medians(row, of);
        if ours.is_none() {
            return;
        }
        let ratio = median(self.ratios(row, of)).map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let cell = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        println!("| {row}: {what} | {} | {} | {} | {ratio} |", cell(direct), cell(pass), cell(ours));
    }

    fn added(&self, row: &str, what: &str, of: fn(&Figures) -> Option<f64>) {
        let [Some(direct), Some(pass), Some(ours)] = self.medians(row, of) else { return };
        println!("| {row}: {what} | - | {:.3} | {:.3} | |", pass - direct, ours - direct);
    }

    fn medians(&self, row: &str, of: fn(&Figures) -> Option<f64>) -> [Option<f64>; 3] {
        ["direct", "pass-through", "data plane"]
            .map(|target| median(self.of(row, target).iter().filter_map(of).collect()))
    }

    /// Of each round: what was measured one after the other shares the machine's mood.
    fn ratios(&self, row: &str, of: fn(&Figures) -> Option<f64>) -> Vec<f64> {
        let rounds = self.of(row, "pass-through").iter().zip(self.of(row, "data plane"));
        rounds.filter_map(|(pass, ours)| Some(of(ours)? / of(pass)?)).collect()
    }

    /// How far the rounds' ratios of CPU lie apart.
    fn spread(&self, row: &str) {
        let ratios = self.ratios(row, |f| f.cpu_ms);
        let (least, most) = (ratios.iter().copied().reduce(f64::min), ratios.iter().copied().reduce(f64::max));
        if let Some((least, most)) = least.zip(most) {
            println!("| {row}: CPU ratio of the rounds | | | | {least:.2} to {most:.2} |");
        }
    }

    fn of(&self, row: &str, target: &'static str) -> &[Figures] {
        self.figures.get(&(row.to_owned(), target)).map(Vec::as_slice).unwrap_or_default()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
