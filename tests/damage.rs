//! Every length at which a file can be cut, and every bit of its metadata flipped: what becomes of it.
//!
//! A sample of both is tried, and all of it where `BLOCKFORM_THOROUGH` is set. How many of each format
//! end in which way is in `tests/damage.tsv`: with `BLOCKFORM_RENEW` set, what was found is put there.
//! `BLOCKFORM_FORMAT` leaves one format, `BLOCKFORM_LIST` tells of each case that is not noticed.

#![cfg(all(feature = "zlib", feature = "zstd"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

mod support;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, Error, Extent, ExtentKind, Image, OpenOptions,
    PathPolicy, PathResolver, Reference, Resolved, Resolver, Result, check_extent,
};
use support::faults::{figure, thorough};
use support::{Rng, goldens, read_all, root, sample_disk, sha256, testdata};

/// A file with one thing wrong, over bytes that are shared.
#[derive(Debug, Clone)]
struct Patched {
    bytes: Arc<Vec<u8>>,
    len: usize,
    flip: Option<(usize, u8)>,
    /// Whether reads are noted in `seen`.
    seen: Option<Arc<Mutex<Vec<bool>>>>,
}

impl Patched {
    fn whole(bytes: &Arc<Vec<u8>>) -> Self {
        Patched {
            bytes: Arc::clone(bytes),
            len: bytes.len(),
            flip: None,
            seen: None,
        }
    }
}

impl BlockSource for Patched {
    fn size(&self) -> u64 {
        self.len as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let start = usize::try_from(offset).map_or(self.len, |o| o.min(self.len));
        let n = buf.len().min(self.len - start);
        buf[..n].copy_from_slice(&self.bytes[start..start + n]);
        if let Some((at, mask)) = self.flip.filter(|(at, _)| (start..start + n).contains(at)) {
            buf[at - start] ^= mask;
        }
        if let Some(seen) = &self.seen {
            seen.lock().unwrap()[start..start + n].fill(true);
        }
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let len = check_extent(offset, limit, self.size())?;
        Ok(Extent {
            start: offset,
            len,
            kind: ExtentKind::Data,
            depth: 0,
            host_offset: Some(offset),
        })
    }
}

const PIECE: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
}

/// An image of which one file is damaged.
struct Subject {
    format: String,
    name: String,
    /// The file that is damaged.
    bytes: Arc<Vec<u8>>,
    /// The image, where it is another file, by its bytes.
    top: Option<Arc<Vec<u8>>>,
    /// Where the other files lie.
    path: Option<PathBuf>,
    content: Vec<u8>,
    warnings: usize,
}

#[derive(Debug)]
struct Files {
    victim: Option<(String, Patched)>,
    others: PathResolver,
}

impl Resolver for Files {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        if let Some((name, file)) = &self.victim {
            if reference.name.as_str() == Some(name) {
                return Ok(Resolved::Open {
                    source: Arc::new(file.clone()),
                    format: None,
                    within: Arc::new(blockform::DenyReferences),
                });
            }
        }
        self.others.resolve(reference)
    }
}

impl Subject {
    fn new(format: &str, name: &str, bytes: Vec<u8>, path: Option<PathBuf>) -> Self {
        let bytes = Arc::new(bytes);
        let (format, name) = (format.to_owned(), name.to_owned());
        let mut subject = Subject {
            format,
            name,
            bytes,
            top: None,
            path,
            content: Vec::new(),
            warnings: 0,
        };
        subject.settle();
        subject
    }

    fn settle(&mut self) {
        let image = self.open(Patched::whole(&self.bytes)).unwrap();
        self.content = read_all(&image).unwrap();
        self.warnings = image.info().warnings.len();
    }

    fn open(&self, file: Patched) -> Result<Box<dyn Image>> {
        let mut options = OpenOptions::new().format(&*self.format);
        let (mut top, mut victim) = (file.clone(), None);
        if let Some(bytes) = &self.top {
            top = Patched::whole(bytes);
            victim = Some((self.name.clone(), file));
        }
        if let Some(path) = &self.path {
            let others = PathResolver::new(path, PathPolicy::SameDirectory)?;
            options = options.resolver(Arc::new(Files { victim, others }));
        }
        options.open(Arc::new(top))
    }

    /// For each byte of the file whether a reader looks at it and it is neither the guest's nor packed.
    fn metadata(&self) -> Vec<bool> {
        let seen = Arc::new(Mutex::new(vec![false; self.bytes.len()]));
        let mut file = Patched::whole(&self.bytes);
        file.seen = Some(Arc::clone(&seen));
        let image = self.open(file).unwrap();
        // What a qcow image has packed is nowhere told: there it is what the extents are known by.
        match &*self.format {
            "qcow" => assert!(image.extents().all(|extent| extent.is_ok())),
            _ => drop(read_all(&image).unwrap()),
        }
        let mut metadata = seen.lock().unwrap().clone();
        for range in self.guest_bytes(&*image) {
            let end = range.end.min(metadata.len());
            metadata[range.start.min(end)..end].fill(false);
        }
        metadata
    }

    /// Where in the file the guest's bytes lie, packed or not.
    fn guest_bytes(&self, image: &dyn Image) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let range = |host: u64, len: u64| {
            let (start, end) = (usize::try_from(host), usize::try_from(host + len));
            start.unwrap()..end.unwrap()
        };
        for extent in image.extents().map(Result::unwrap) {
            let file = image.file_of(extent.start);
            let here = match &self.top {
                None => file.is_none(),
                Some(_) => file.is_some_and(|file| file.as_str() == Some(&self.name)),
            };
            if !here || extent.depth > 0 {
                continue;
            }
            match (extent.kind, extent.host_offset, image.packed()) {
                (ExtentKind::Data, Some(host), _) => ranges.push(range(host, extent.len)),
                (ExtentKind::Compressed, _, Some(packed)) => {
                    let (mut at, mut buf, mut units) = (extent.start, Vec::new(), Vec::new());
                    while at < extent.end() {
                        let left = extent.end() - at;
                        let n = packed.read_packed(at, left, &mut buf, &mut units);
                        at += n.unwrap().max(1) as u64 * packed.unit();
                    }
                    ranges.extend(units.iter().map(|unit| range(unit.host, unit.len as u64)));
                }
                _ => {}
            }
        }
        ranges
    }

    /// What becomes of the image when its file is this one.
    fn outcome(&self, file: Patched) -> Ending {
        let Ok(image) = self.open(file) else {
            return Ending::Refused;
        };
        let size = self.content.len();
        let warned = image.info().warnings.len() > self.warnings;
        if image.size() != size as u64 {
            // A disk that claims to be huge is looked at where it is known, and at its end.
            let mut bytes = vec![0; size.min(usize::try_from(image.size()).unwrap_or(size))];
            let end = image.size().saturating_sub(65_536);
            let read = image
                .read_exact_at(&mut bytes, 0)
                .and_then(|()| image.read_at(&mut [0; 65_536], end));
            return match read {
                Err(_) => Ending::Refused,
                Ok(_) if warned => Ending::Told,
                Ok(_) => Ending::AnotherSize,
            };
        }
        // A buffer that stays: this is done some million times.
        let read = BUFFER.with_borrow_mut(|buffer| {
            let mut differs = false;
            for (number, want) in self.content.chunks(buffer.len()).enumerate() {
                let piece = &mut buffer[..want.len()];
                image.read_exact_at(piece, (number * PIECE) as u64)?;
                differs |= piece != want;
            }
            Ok::<_, Error>(differs)
        });
        match read {
            Err(_) => Ending::Refused,
            Ok(true) if warned => Ending::Told,
            Ok(true) => {
                let read = read_all(&image).unwrap();
                let tail = self.only_a_tail_is_zero(&*image, &read);
                if tail { Ending::Tail } else { Ending::Wrong }
            }
            Ok(false) if warned => Ending::Warned,
            Ok(false) => Ending::Same,
        }
    }

    /// Whether what differs is zero and shares one unit of the file with its end.
    fn only_a_tail_is_zero(&self, image: &dyn Image, read: &[u8]) -> bool {
        let pairs = read.iter().zip(&self.content);
        let differs: Vec<usize> = pairs
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(at, _)| at)
            .collect();
        let unit = usize::try_from(image.block_size()).unwrap();
        let (first, last) = (differs[0], differs[differs.len() - 1]);
        first / unit == last / unit && differs.iter().all(|at| read[*at] == 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Refused,
    Same,
    /// The same, with a warning.
    Warned,
    /// Something else, with a warning.
    Told,
    /// The same but for the rest of the unit in which the file ends, which reads as zero.
    Tail,
    AnotherSize,
    Wrong,
}

/// All images that are damaged.
fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for golden in goldens() {
        if golden.format == "raw" {
            continue;
        }
        let bytes = std::fs::read(&golden.path).unwrap();
        let path = Some(golden.path.clone());
        let subject = Subject::new(&golden.format, &golden.file, bytes, path);
        assert_eq!(sha256(&subject.content), golden.sha256());
        subjects.push(subject);
    }
    for format in ["vmdk", "ova"] {
        let text = std::fs::read_to_string(testdata(&format!("{format}/manifest.json"))).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        for entry in manifest["images"].as_array().unwrap() {
            let file = entry["file"].as_str().unwrap();
            if !entry["disk"].is_null() || file.ends_with(".ovf") {
                continue;
            }
            let path = testdata(&format!("{format}/good/{file}"));
            let bytes = std::fs::read(&path).unwrap();
            subjects.push(Subject::new(format, file, bytes, Some(path)));
        }
    }
    // Tables in files of their own.
    for (top, file) in [
        ("cowd.vmdk", "cowd-delta.bin"),
        ("se.vmdk", "se-sparse.bin"),
        (
            "twoGbMaxExtentSparse.vmdk",
            "twoGbMaxExtentSparse-s001.vmdk",
        ),
    ] {
        let path = testdata("vmdk/good").join(top);
        let bytes = std::fs::read(path.with_file_name(file)).unwrap();
        let top = std::fs::read(&path).unwrap();
        let mut subject = Subject {
            format: "vmdk".to_owned(),
            name: file.to_owned(),
            bytes: Arc::new(bytes),
            top: Some(Arc::new(top)),
            path: Some(path),
            content: Vec::new(),
            warnings: 0,
        };
        subject.settle();
        subjects.push(subject);
    }
    // A VHDX is too large to be kept.
    let disk = Memory::new(sample_disk(9, 1 << 20));
    for (name, options) in [
        ("dynamic.vhdx", vec![("block_size", "1M")]),
        ("fixed.vhdx", vec![("subformat", "fixed")]),
    ] {
        let file: Arc<Memory> = Arc::default();
        let mut convert = ConvertOptions::to("vhdx").option("log_size", "1M");
        for (name, value) in options {
            convert = convert.option(name, value);
        }
        let targets = [Arc::clone(&file) as Arc<dyn BlockTarget>];
        convert.convert_to_targets(&disk, &targets).unwrap();
        subjects.push(Subject::new("vhdx", name, file.to_bytes(), None));
    }
    if let Ok(format) = std::env::var("BLOCKFORM_FORMAT") {
        subjects.retain(|subject| subject.format == format);
    }
    subjects
}

/// How many cases ended how.
type Table = BTreeMap<(String, String), BTreeMap<Ending, u64>>;

/// One thing wrong with a subject: a byte and its bits that are flipped, or a length.
#[derive(Clone, Copy)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
}

struct Case<'a> {
    subject: &'a Subject,
    damage: Damage,
}

impl Case<'_> {
    fn file(&self) -> Patched {
        let mut file = Patched::whole(&self.subject.bytes);
        match self.damage {
            Damage::Flip(at, mask) => file.flip = Some((at, mask)),
            Damage::Cut(len) => file.len = len,
        }
        file
    }

    fn what(&self) -> &'static str {
        match self.damage {
            Damage::Flip(..) => "flip",
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
            let about = || {
                let (name, file) = (&case.subject.name, case.file());
                format!(
                    "{} {name} len {} flip {:?}",
                    case.what(),
                    file.len,
                    file.flip
                )
            };
            let start = Instant::now();
            let file = case.file();
            let ending = catch_unwind(AssertUnwindSafe(|| case.subject.outcome(file)));
            let ending = ending.unwrap_or_else(|_| panic!("{} panics", about()));
            slowest = slowest.max(start.elapsed());
            if list && ending > Ending::Told {
                eprintln!("{ending:?} {}", about());
            }
            let key = (case.what().to_owned(), case.subject.format.clone());
            *table.entry(key).or_default().entry(ending).or_default() += 1;
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

const HEAD: &str = "\
# What becomes of the images of testdata with one bit of their metadata flipped, or cut short.
# told: something else is read, and a warning says why. tail: the rest of the unit in which the file
# ends reads as zero. size: a disk of another size. wrong: other bytes, where no check can exist.
#extent\twhat\tformat\trefused\tsame\twarned\ttold\ttail\tsize\twrong";

const ENDINGS: [Ending; 7] = [
    Ending::Refused,
    Ending::Same,
    Ending::Warned,
    Ending::Told,
    Ending::Tail,
    Ending::AnotherSize,
    Ending::Wrong,
];

fn lines(table: &Table) -> Vec<String> {
    let extent = if thorough() { "all" } else { "sample" };
    let lines = table.iter().map(|((what, format), counts)| {
        let count = |ending| counts.get(ending).copied().unwrap_or(0).to_string();
        let counts: Vec<String> = ENDINGS.iter().map(count).collect();
        format!("{extent}\t{what}\t{format}\t{}", counts.join("\t"))
    });
    lines.collect()
}

/// Compares what was found with the table that is kept. Of a sample only what must not be is compared:
/// where a format checks more than before, that is well.
fn compare(table: &Table) {
    let path = root().join("tests/damage.tsv");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let mine = |line: &&str| {
        let all = line.starts_with("all\t");
        !line.starts_with('#')
            && all == thorough()
            && table
                .keys()
                .any(|(what, format)| line.contains(&format!("\t{what}\t{format}\t")))
    };
    let found = lines(table);
    if std::env::var_os("BLOCKFORM_RENEW").is_some() {
        let kept = text.lines().filter(|line| !mine(line));
        let mut kept: Vec<String> = kept.map(str::to_owned).chain(found).collect();
        kept.retain(|line| !line.starts_with('#'));
        kept.sort();
        kept.insert(0, HEAD.to_owned());
        std::fs::write(&path, kept.join("\n") + "\n").unwrap();
        return;
    }
    let expected: Vec<&str> = text.lines().filter(mine).collect();
    let matter = |line: &str| {
        let words: Vec<&str> = line.split('\t').collect();
        let what_must_not_be = words[..3].iter().chain(&words[7..]);
        what_must_not_be.map(|w| w.to_string()).collect::<Vec<_>>()
    };
    let (found, expected) = match thorough() {
        true => (
            found,
            expected.iter().map(|line| line.to_string()).collect(),
        ),
        false => (
            found.iter().map(|line| matter(line).join("\t")).collect(),
            expected
                .iter()
                .map(|line| matter(line).join("\t"))
                .collect::<Vec<_>>(),
        ),
    };
    assert_eq!(
        found, expected,
        "see the head of this file on how to renew it"
    );
}

fn total(table: &Table) -> u64 {
    table.values().flat_map(|counts| counts.values()).sum()
}

#[test]
fn every_flipped_bit_of_the_metadata() {
    let subjects = subjects();
    let mut rng = Rng(11);
    let mut cases = Vec::new();
    for subject in &subjects {
        let metadata = subject.metadata();
        let places: Vec<usize> = (0..metadata.len()).filter(|at| metadata[*at]).collect();
        let mut bits: Vec<(usize, u8)> = Vec::new();
        if thorough() {
            bits.extend(
                places
                    .iter()
                    .flat_map(|at| (0..8).map(|bit| (*at, 1 << bit))),
            );
        } else if !places.is_empty() {
            // Half of them where something is.
            let full = places.iter().filter(|at| subject.bytes[**at] != 0);
            let full: Vec<usize> = full.copied().collect();
            for places in [&places, &full] {
                for _ in 0..60 {
                    let at = places[usize::try_from(rng.below(places.len() as u64)).unwrap()];
                    bits.push((at, 1 << rng.below(8)));
                }
            }
        }
        let flips = bits.into_iter().map(|(at, mask)| Damage::Flip(at, mask));
        cases.extend(flips.map(|damage| Case { subject, damage }));
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

/// What an image says is zero is zero, whatever is wrong with it.
#[test]
fn zeros_are_zeros_in_damaged_images_too() {
    let mut rng = Rng(13);
    let mut looked = 0;
    for subject in subjects() {
        let metadata = subject.metadata();
        let places: Vec<usize> = (0..metadata.len()).filter(|at| metadata[*at]).collect();
        for _ in 0..if thorough() { 2000 } else { 25 } {
            let mut file = Patched::whole(&subject.bytes);
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
