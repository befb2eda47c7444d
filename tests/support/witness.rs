//! A file that keeps account of what a repair does to it.

use std::sync::{Mutex, MutexGuard};

use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, Error, Extent, Result, Zeroes};

/// What was done to a file.
#[derive(Debug, Clone)]
pub enum Step {
    Write(u64, Vec<u8>),
    Size(u64),
    Sync,
}

impl Step {
    /// Does it to bytes.
    pub fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Step::Write(at, bytes) => write(file, *at, bytes),
            Step::Size(size) => file.resize(usize::try_from(*size).unwrap(), 0),
            Step::Sync => {}
        }
    }
}

/// Writes to bytes as to a file.
pub fn write(file: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = usize::try_from(at).unwrap();
    let end = at + bytes.len();
    file.resize(file.len().max(end), 0);
    file[at..end].copy_from_slice(bytes);
}

/// Memory that notes what is done to it, and fails from one of the steps on.
#[derive(Debug)]
pub struct Witness {
    pub file: Memory,
    steps: Mutex<Vec<Step>>,
    most: usize,
}

impl Witness {
    pub fn of(bytes: &[u8]) -> Self {
        Self::failing_after(bytes, usize::MAX)
    }

    /// Steps fail after so many.
    pub fn failing_after(bytes: &[u8], most: usize) -> Self {
        Witness {
            file: Memory::new(bytes),
            steps: Mutex::default(),
            most,
        }
    }

    pub fn steps(&self) -> MutexGuard<'_, Vec<Step>> {
        self.steps.lock().unwrap()
    }

    fn note(&self, step: Step) -> Result<()> {
        let mut steps = self.steps();
        if steps.len() >= self.most {
            return Err(Error::io("write", std::io::ErrorKind::StorageFull.into()));
        }
        steps.push(step);
        Ok(())
    }
}

impl BlockSource for Witness {
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

impl BlockTarget for Witness {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.note(Step::Write(offset, data.to_vec()))?;
        self.file.write_all_at(data, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
        let bytes = vec![0; usize::try_from(len).unwrap()];
        self.note(Step::Write(offset, bytes))?;
        self.file.write_zeroes_at(offset, len, zeroes)
    }

    fn allocate(&self, _: u64, _: u64) -> Result<()> {
        panic!("a repair reserves nothing")
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.note(Step::Size(size))?;
        self.file.set_size(size)
    }

    fn sync(&self) -> Result<()> {
        self.note(Step::Sync)
    }

    fn reads_as_zero(&self) -> bool {
        false
    }
}
