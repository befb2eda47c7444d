//! Every length at which a file can be cut, and every bit of its metadata flipped: what becomes of it.
//!
//! A sample of both is tried, and all of it where `BLOCKFORM_THOROUGH` is set, which takes a quarter of an
//! hour of one core with `--release`. How many of each format end in which way is in `tests/damage.tsv`:
//! with `BLOCKFORM_RENEW` set, what was found is put there. `BLOCKFORM_FORMAT` leaves one format,
//! `BLOCKFORM_LIST` tells of each case that is not noticed.

mod file;
mod subject;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::faults::{figure, thorough};
use crate::support::{Rng, read_all};
use blockform::{BlockSourceExt, Error, Extent, Result};
use file::Patched;
use subject::{Subject, subjects};
use table::{Ending, Table, compare, total};

/// One thing wrong with a subject: a byte with each of these bits flipped in turn, or a length.
#[derive(Clone, Copy)]
enum Damage {
    Flips(usize, u8),
    Cut(usize),
}

struct Case<'a> {
    subject: &'a Subject,
    damage: Damage,
}

impl Case<'_> {
    fn files(&self) -> impl Iterator<Item = Patched> {
        let file = self.subject.file();
        let (len, at, masks) = match self.damage {
            Damage::Cut(len) => (len, 0, 0),
            Damage::Flips(at, masks) => (file.len, at, masks),
        };
        let cut = (masks == 0).then_some(None);
        let bits = (0..8)
            .map(|bit| 1 << bit)
            .filter(move |bit| masks & bit != 0);
        let flips = cut.into_iter().chain(bits.map(move |bit| Some((at, bit))));
        flips.map(move |flip| {
            let mut file = file.clone();
            (file.len, file.flip) = (len, flip);
            file
        })
    }

    fn what(&self) -> &'static str {
        match self.damage {
            Damage::Flips(..) => "flip",
            Damage::Cut(_) => "cut",
        }
    }
}

/// Tries all cases on every core. Returns the table, and the longest time that one took.
fn try_all(cases: &[Case<'_>]) -> (Table, Duration) {
    let next = AtomicUsize::new(0);
    let all = Mutex::new((Table::new(), Duration::ZERO));
    let list = std::env::var_os("BLOCKFORM_LIST").is_some();
    let work = || {
        let (mut table, mut slowest) = (Table::new(), Duration::ZERO);
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let key = (case.what().to_owned(), case.subject.format.clone());
            let counts = table.entry(key).or_default();
            for file in case.files() {
                let (name, len, flip) = (&case.subject.name, file.len, file.flip);
                let about = || format!("{} {name} len {len} flip {flip:?}", case.what());
                let start = Instant::now();
                let ending = catch_unwind(AssertUnwindSafe(|| case.subject.outcome(file)));
                let ending = ending.unwrap_or_else(|_| panic!("{} panics", about()));
                slowest = slowest.max(start.elapsed());
                if list && ending > Ending::Told {
                    eprintln!("{ending:?} {}", about());
                }
                *counts.entry(ending).or_default() += 1;
            }
        }
        let mut all = all.lock().unwrap();
        for (key, counts) in table {
            let sum = all.0.entry(key).or_default();
            for (ending, count) in counts {
                *sum.entry(ending).or_default() += count;
            }
        }
        all.1 = all.1.max(slowest);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    all.into_inner().unwrap()
}

#[test]
fn every_flipped_bit_of_the_metadata() {
    let subjects = subjects();
    let mut rng = Rng(11);
    let mut cases = Vec::new();
    for subject in &subjects {
        let metadata = subject.metadata();
        let places: Vec<usize> = (0..metadata.len()).filter(|at| metadata[*at]).collect();
        let mut flips = Vec::new();
        if thorough() {
            flips.extend(places.iter().map(|at| Damage::Flips(*at, u8::MAX)));
        } else if !places.is_empty() {
            // Half of them where something is.
            let full = places.iter().filter(|at| subject.bytes[**at] != 0);
            let full: Vec<usize> = full.copied().collect();
            for places in [&places, &full] {
                for _ in 0..60 {
                    let at = places[usize::try_from(rng.below(places.len() as u64)).unwrap()];
                    flips.push(Damage::Flips(at, 1 << rng.below(8)));
                }
            }
        }
        cases.extend(flips.into_iter().map(|damage| Case { subject, damage }));
    }
    let (table, slowest) = try_all(&cases);
    figure("flipped bits", total(&table));
    figure("the slowest of them, in ms", slowest.as_millis());
    compare(&table);
}

#[test]
fn every_length_at_which_a_file_can_be_cut() {
    let subjects = subjects();
    let mut rng = Rng(12);
    let mut cases = Vec::new();
    for subject in &subjects {
        let metadata = subject.metadata();
        let whole = metadata.len();
        let near = |len: usize| metadata[len] || (len > 0 && metadata[len - 1]);
        let mut lengths: Vec<usize> = (0..whole)
            .filter(|len| len % 4096 == 0 || near(*len))
            .collect();
        if !thorough() {
            let sample = |_| lengths[usize::try_from(rng.below(lengths.len() as u64)).unwrap()];
            let sampled: Vec<usize> = (0..50.min(lengths.len())).map(sample).collect();
            lengths = sampled;
            lengths.extend([1, 2, 511, 512, 513].map(|n| whole.saturating_sub(n)));
        }
        let cuts = lengths.into_iter().map(Damage::Cut);
        cases.extend(cuts.map(|damage| Case { subject, damage }));
    }
    let (table, slowest) = try_all(&cases);
    figure("truncated files", total(&table));
    figure("the slowest of them, in ms", slowest.as_millis());
    compare(&table);
}

/// Ranges that an image calls zero are zero, whatever is wrong with it.
#[test]
fn zeros_are_zeros_in_damaged_images_too() {
    let mut rng = Rng(13);
    let mut looked = 0;
    for subject in subjects() {
        let metadata = subject.metadata();
        let places: Vec<usize> = (0..metadata.len()).filter(|at| metadata[*at]).collect();
        for _ in 0..if thorough() { 2000 } else { 25 } {
            let mut file = subject.file();
            let at = places[usize::try_from(rng.below(places.len() as u64)).unwrap()];
            file.flip = Some((at, 1 << rng.below(8)));
            let Ok(image) = subject.open(file) else {
                continue;
            };
            if image.size() > 1 << 24 {
                continue;
            }
            let tiled: Result<Vec<Extent>, Error> = image.extents().collect();
            let (Ok(extents), Ok(read)) = (tiled, read_all(&image)) else {
                continue;
            };
            let index = |guest: u64| usize::try_from(guest).unwrap();
            for extent in extents.iter().filter(|e| e.kind.reads_as_zero()) {
                let run = &read[index(extent.start)..index(extent.end())];
                assert!(
                    run.iter().all(|byte| *byte == 0),
                    "{} with a bit flipped at {at}: {extent:?}",
                    subject.name
                );
            }
            looked += 1;
        }
    }
    assert!(looked > 500, "{looked}");
}
