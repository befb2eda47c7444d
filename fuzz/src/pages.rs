//! Memory that keeps no zeros: an image of VHDX has megabytes of them, and each execution would fill them
//! in anew.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::{fmt, io};

use blockform::{
    BlockSource, BlockTarget, Error, Extent, ExtentKind, Result, Zeroes, check_extent,
};

const PAGE: usize = 4096;
const ZEROES: [u8; PAGE] = [0; PAGE];

/// Bytes in memory that grow. What no page holds is zero.
#[derive(Default)]
pub struct Pages(RwLock<State>);

#[derive(Default, Clone)]
struct State {
    size: usize,
    /// Those of a copy are the same until they are written.
    pages: BTreeMap<usize, Arc<[u8; PAGE]>>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({} bytes)", self.lock().size)
    }
}

impl Clone for Pages {
    fn clone(&self) -> Self {
        Pages(RwLock::new(self.lock().clone()))
    }
}

impl State {
    fn set(&mut self, data: &[u8], start: usize) {
        self.size = self.size.max(start + data.len());
        let mut rest = data;
        let mut at = start;
        while !rest.is_empty() {
            let within = at % PAGE;
            let (part, after) = rest.split_at(rest.len().min(PAGE - within));
            let page = at / PAGE;
            let zero = *part == ZEROES[..part.len()];
            if !zero || self.pages.contains_key(&page) {
                let page = self.pages.entry(page).or_insert_with(|| Arc::new(ZEROES));
                let page = Arc::make_mut(page);
                page[within..within + part.len()].copy_from_slice(part);
            }
            at += part.len();
            rest = after;
        }
    }
}

impl Pages {
    fn lock(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_to_write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(offset: u64) -> Result<usize> {
    // What is written here has a few megabytes.
    match usize::try_from(offset) {
        Ok(at) if at < 1 << 40 => Ok(at),
        _ => Err(Error::invalid("too large for memory")),
    }
}

impl BlockSource for Pages {
    fn size(&self) -> u64 {
        self.lock().size as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.lock();
        let start = usize::try_from(offset).map_or(state.size, |at| at.min(state.size));
        let n = buf.len().min(state.size - start);
        let buf = &mut buf[..n];
        buf.fill(0);
        let end = start + n;
        for (page, bytes) in state.pages.range(start / PAGE..end.div_ceil(PAGE)) {
            let at = page * PAGE;
            let (from, to) = (start.max(at), end.min(at + PAGE));
            buf[from - start..to - start].copy_from_slice(&bytes[from - at..to - at]);
        }
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        Ok(Extent {
            start: offset,
            len: check_extent(offset, limit, self.size())?,
            kind: ExtentKind::Data,
            depth: 0,
            host_offset: Some(offset),
        })
    }
}

impl BlockTarget for Pages {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.lock_to_write().set(data, place(offset)?);
        Ok(())
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, _: Zeroes) -> Result<()> {
        let start = place(offset)?;
        let end = start + place(len)?;
        let mut state = self.lock_to_write();
        state.size = state.size.max(end);
        for (page, bytes) in state.pages.range_mut(start / PAGE..end.div_ceil(PAGE)) {
            let at = page * PAGE;
            let (from, to) = (start.max(at), end.min(at + PAGE));
            Arc::make_mut(bytes)[from - at..to - at].fill(0);
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let end = place(offset)? + place(len)?;
        let mut state = self.lock_to_write();
        state.size = state.size.max(end);
        Ok(())
    }

    fn set_size(&self, size: u64) -> Result<()> {
        let size = place(size)?;
        let mut state = self.lock_to_write();
        if size < state.size {
            state.pages.split_off(&size.div_ceil(PAGE));
            if let Some(page) = state.pages.get_mut(&(size / PAGE)) {
                Arc::make_mut(page)[size % PAGE..].fill(0);
            }
        }
        state.size = size;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn reads_as_zero(&self) -> bool {
        self.lock().size == 0
    }
}

/// As a stream, whose bytes follow each other.
impl io::Write for &Pages {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.lock_to_write();
        let end = state.size;
        state.set(data, end);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
