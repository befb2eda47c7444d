//! Storage that remembers every write, and all the states in which a crash can leave it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, Error, Extent, Result, Zeroes};

use super::Rng;

/// One operation on one of the files.
#[derive(Debug, Clone)]
pub enum Op {
    Write(usize, u64, Arc<[u8]>),
    Zero(usize, u64, u64),
    Resize(usize, u64),
    /// Everything before is on stable storage.
    Sync(usize),
}

/// The order in which all was done, over all files of an image.
#[derive(Debug)]
pub struct Log {
    ops: Mutex<Vec<Op>>,
    most: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self::failing_after(usize::MAX)
    }
}

impl Log {
    /// A log after so many operations of which all others fail.
    pub fn failing_after(most: usize) -> Self {
        let ops = Mutex::default();
        Log { ops, most }
    }

    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut *self.ops.lock().unwrap())
    }

    fn push(&self, op: Op) -> Result<()> {
        let mut ops = self.ops.lock().unwrap();
        if ops.len() >= self.most {
            return Err(Error::io("write", std::io::ErrorKind::StorageFull.into()));
        }
        ops.push(op);
        Ok(())
    }
}

/// A file in memory that logs what is done to it.
#[derive(Debug, Default)]
pub struct Recorder {
    pub file: Memory,
    pub number: usize,
    pub log: Arc<Log>,
    pub reads_as_zero: bool,
}

impl Recorder {
    /// The only file of an image.
    pub fn of(bytes: &[u8], log: Log) -> Arc<Self> {
        Arc::new(Recorder {
            file: Memory::new(bytes),
            log: Arc::new(log),
            ..Recorder::default()
        })
    }
}

impl BlockSource for Recorder {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.file.extent_at(offset, limit)
    }
}

impl BlockTarget for Recorder {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.log.push(Op::Write(self.number, offset, data.into()))?;
        self.file.write_all_at(data, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
        self.log.push(Op::Zero(self.number, offset, len))?;
        self.file.write_zeroes_at(offset, len, zeroes)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        if offset + len > self.file.size() {
            self.log.push(Op::Resize(self.number, offset + len))?;
        }
        self.file.allocate(offset, len)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.log.push(Op::Resize(self.number, size))?;
        self.file.set_size(size)
    }

    fn sync(&self) -> Result<()> {
        self.log.push(Op::Sync(self.number))
    }

    fn reads_as_zero(&self) -> bool {
        self.reads_as_zero
    }
}

/// The files after all of these operations.
pub fn after(start: &[Vec<u8>], log: &[Op]) -> Vec<Vec<u8>> {
    let mut files = start.to_vec();
    for op in log {
        apply(&mut files, op, &mut || true);
    }
    files
}

/// Does `op` to the files, as far as the sectors go that `kept` says made it.
fn apply(files: &mut [Vec<u8>], op: &Op, kept: &mut dyn FnMut() -> bool) {
    let mut write = |number: usize, range: Range<usize>, bytes: Option<&[u8]>| {
        let file = &mut files[number];
        let start = range.start;
        let mut at = start;
        while at < range.end {
            // Sectors are written whole or not at all.
            let end = ((at / 512 + 1) * 512).min(range.end);
            if kept() {
                if file.len() < end {
                    file.resize(end, 0);
                }
                match bytes {
                    Some(bytes) => file[at..end].copy_from_slice(&bytes[at - start..end - start]),
                    None => file[at..end].fill(0),
                }
            }
            at = end;
        }
    };
    let index = |offset: u64| usize::try_from(offset).unwrap();
    match op {
        Op::Write(number, offset, bytes) => {
            let start = index(*offset);
            write(*number, start..start + bytes.len(), Some(bytes));
        }
        Op::Zero(number, offset, len) => {
            write(*number, index(*offset)..index(offset + len), None);
        }
        Op::Resize(number, size) => files[*number].resize(index(*size), 0),
        Op::Sync(_) => {}
    }
}

/// Calls `judge` with every state in which the files can be found after a crash: after each of the
/// operations, and, between two syncs, with any of them done and others not, some of them torn;
/// of these a sample of `reordered` for each stretch. Returns how many states there were.
pub fn states(
    start: &[Vec<u8>],
    log: &[Op],
    reordered: usize,
    rng: &mut Rng,
    judge: &mut dyn FnMut(&str, &[Vec<u8>]),
) -> u64 {
    let mut count = 0;
    let mut all = || true;
    let mut files = start.to_vec();
    judge("before", &files);
    for (number, op) in log.iter().enumerate() {
        apply(&mut files, op, &mut all);
        judge(&format!("after operation {number}"), &files);
        count += 1;
    }
    let mut stable = start.to_vec();
    let mut from = 0;
    while from < log.len() {
        let sync = |op: &Op| matches!(op, Op::Sync(_));
        let len = log[from..].iter().position(sync);
        let end = from + len.unwrap_or(log.len() - from);
        let stretch = &log[from..end];
        let state = |about: &str, kept: &mut dyn FnMut(usize) -> Option<u64>| {
            let mut files = stable.clone();
            for (number, op) in stretch.iter().enumerate() {
                match kept(number) {
                    None => {}
                    Some(u64::MAX) => apply(&mut files, op, &mut || true),
                    Some(seed) => {
                        let mut torn = Rng(seed);
                        apply(&mut files, op, &mut || torn.below(2) == 0);
                    }
                }
            }
            (about.to_owned(), files)
        };
        if stretch.len() > 1 {
            // Each one alone, and all but each one: as many as are asked for.
            let step = stretch.len().div_ceil(reordered.max(1));
            for number in (0..stretch.len()).step_by(step) {
                let one = state("one alone", &mut |n| (n == number).then_some(u64::MAX));
                let but = state("all but one", &mut |n| (n != number).then_some(u64::MAX));
                for (about, files) in [one, but] {
                    judge(&format!("{about}: {number} of those from {from}"), &files);
                    count += 1;
                }
            }
        }
        if !stretch.is_empty() {
            for _ in 0..reordered {
                let (about, files) = state("some", &mut |_| match rng.below(4) {
                    0 => None,
                    1 => Some(rng.next() >> 1),
                    _ => Some(u64::MAX),
                });
                judge(&format!("{about} of those from {from}"), &files);
                count += 1;
            }
        }
        for op in stretch {
            apply(&mut stable, op, &mut all);
        }
        from = end + 1;
    }
    count
}
