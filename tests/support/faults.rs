//! Storage that goes wrong at one call, and a clock against whatever then hangs.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, Error, Extent, FileIdentity, FormatId, PackedSource,
    Place, Result, Stored, Zeroes,
};

/// The kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The system's error of this number.
    Os(i32),
    /// Fewer bytes are read than were asked for, or written.
    Short,
}

pub const EINTR: i32 = 4;
pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// Counts calls, and lets one of them go wrong. Whoever calls again has better luck.
#[derive(Debug)]
pub struct Trip {
    calls: AtomicU64,
    at: u64,
    fault: Fault,
    hit: AtomicBool,
}

impl Trip {
    /// Lets the call with the number `at` go wrong, counted from 0.
    pub fn at(at: u64, fault: Fault) -> Arc<Self> {
        Arc::new(Trip {
            calls: AtomicU64::new(0),
            at,
            fault,
            hit: AtomicBool::new(false),
        })
    }

    /// Lets every call be.
    pub fn never() -> Arc<Self> {
        Self::at(u64::MAX, Fault::Short)
    }

    /// Number of calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Returns true if one failed.
    pub fn hit(&self) -> bool {
        self.hit.load(Ordering::Relaxed)
    }

    fn next(&self) -> Option<Fault> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let fault = (number == self.at).then_some(self.fault);
        if fault.is_some() {
            self.hit.store(true, Ordering::Relaxed);
        }
        fault
    }

    /// The error of a call for which a short one is none.
    fn fail(&self) -> Result<()> {
        match self.next() {
            Some(Fault::Os(number)) => Err(Error::io("do as told", os(number))),
            Some(Fault::Short) | None => Ok(()),
        }
    }
}

fn os(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The number of the system's error that an error is about.
pub fn os_error(error: &Error) -> Option<i32> {
    match error {
        Error::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

/// A source or a target that goes wrong.
#[derive(Debug)]
pub struct Faulty<S> {
    pub inner: S,
    pub trip: Arc<Trip>,
}

impl<S: BlockSource> BlockSource for Faulty<S> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        match self.trip.next() {
            Some(Fault::Os(number)) => Err(Error::io("read", os(number))),
            // Half of it came, and what the rest of the buffer holds is anybody's guess.
            Some(Fault::Short) => {
                let n = self.inner.read_at(buf, offset)?;
                buf[n / 2..].fill(0xee);
                Ok(n / 2)
            }
            None => self.inner.read_at(buf, offset),
        }
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.trip.fail()?;
        self.inner.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.inner.block_size()
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        self.inner.packed()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl<S: BlockSource> Stored for Faulty<S> {
    fn identity(&self) -> Option<FileIdentity> {
        self.inner.identity()
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        self.inner.depth_of(file, format)
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.inner.place_of(offset, limit)
    }
}

impl<S: BlockTarget> BlockTarget for Faulty<S> {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        match self.trip.next() {
            Some(fault) => {
                // What fails was half done.
                self.inner.write_all_at(&data[..data.len() / 2], offset)?;
                let number = match fault {
                    Fault::Os(number) => number,
                    Fault::Short => EIO,
                };
                Err(Error::io("write", os(number)))
            }
            None => self.inner.write_all_at(data, offset),
        }
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
        self.trip.fail()?;
        self.inner.write_zeroes_at(offset, len, zeroes)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.trip.fail()?;
        self.inner.allocate(offset, len)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.trip.fail()?;
        self.inner.set_size(size)
    }

    fn sync(&self) -> Result<()> {
        self.trip.fail()?;
        self.inner.sync()
    }

    fn reads_as_zero(&self) -> bool {
        self.inner.reads_as_zero()
    }

    fn concurrent_writes(&self) -> usize {
        4
    }
}

/// A cursor that goes wrong: the call with the number of the trip, or each `every`th.
#[derive(Debug)]
pub struct FaultyCursor<C> {
    pub inner: C,
    pub trip: Arc<Trip>,
    pub every: u64,
}

impl<C> FaultyCursor<C> {
    fn next(&self) -> Option<Fault> {
        let once = self.trip.next();
        let again = self.every > 0 && self.trip.calls() % self.every == 0;
        once.or(again.then_some(self.trip.fault))
    }
}

impl<C: Read> Read for FaultyCursor<C> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.next() {
            Some(Fault::Os(number)) => Err(os(number)),
            Some(Fault::Short) => {
                let n = buf.len().div_ceil(2);
                self.inner.read(&mut buf[..n])
            }
            None => self.inner.read(buf),
        }
    }
}

impl<C: Write> Write for FaultyCursor<C> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.next() {
            Some(Fault::Os(number)) => Err(os(number)),
            Some(Fault::Short) => self.inner.write(&data[..data.len().div_ceil(2)]),
            None => self.inner.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.next() {
            Some(Fault::Os(number)) => Err(os(number)),
            Some(Fault::Short) | None => self.inner.flush(),
        }
    }
}

impl<C: Seek> Seek for FaultyCursor<C> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self.next() {
            Some(Fault::Os(number)) if number != EINTR => Err(os(number)),
            _ => self.inner.seek(to),
        }
    }
}

/// Ends the process if nothing was heard for a minute: whatever is tested hangs.
pub struct Watchdog(Arc<(AtomicU64, AtomicBool)>);

impl Watchdog {
    pub fn new(what: &'static str) -> Self {
        let state = Arc::new((AtomicU64::new(0), AtomicBool::new(false)));
        let seen = Arc::clone(&state);
        std::thread::spawn(move || {
            let (mut last, mut quiet) = (0, 0);
            while !seen.1.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(1));
                let now = seen.0.load(Ordering::Relaxed);
                quiet = if now == last { quiet + 1 } else { 0 };
                last = now;
                if quiet > 60 {
                    eprintln!("{what} hangs");
                    std::process::abort();
                }
            }
        });
        Watchdog(state)
    }

    /// Says that all is well.
    pub fn alive(&self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.1.store(true, Ordering::Relaxed);
    }
}

/// Returns true if a test tries all cases, not a sample: `tests/figures.py` asks for it.
pub fn thorough() -> bool {
    std::env::var_os("BLOCKFORM_THOROUGH").is_some()
}

/// Tells a figure to whoever collects them.
pub fn figure(name: &str, value: impl std::fmt::Display) {
    eprintln!("figure: {name}: {value}");
}
