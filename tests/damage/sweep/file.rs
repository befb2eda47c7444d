//! A file with one thing wrong, and reading through it without touching again what is known to be right.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use blockform::{
    BlockSource, BlockSourceExt, Extent, ExtentKind, FileIdentity, Image, ImageName, Reference,
    Resolved, Resolver, Result, Stored, check_extent,
};

use crate::support::read_all;

/// A run of the guest's bytes that lies in a file as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) guest: usize,
    pub(crate) host: usize,
    pub(crate) len: usize,
}

/// A file with one thing wrong, over bytes that are shared.
#[derive(Debug, Clone)]
pub(crate) struct Patched {
    bytes: Arc<Vec<u8>>,
    identity: Option<FileIdentity>,
    /// Runs of the guest's bytes, in the guest's order.
    runs: Arc<Vec<Run>>,
    pub(crate) len: usize,
    pub(crate) flip: Option<(usize, u8)>,
    /// Bytes that were read, if reads are noted.
    pub(crate) seen: Option<Arc<Mutex<Vec<bool>>>>,
}

impl Patched {
    pub(crate) fn whole(bytes: &Arc<Vec<u8>>) -> Self {
        Patched {
            bytes: Arc::clone(bytes),
            identity: None,
            runs: Arc::default(),
            len: bytes.len(),
            flip: None,
            seen: None,
        }
    }

    /// The same with `runs` of which it was made sure that they are the guest's bytes.
    pub(crate) fn with_runs(mut self, runs: &Arc<Vec<Run>>) -> Self {
        self.runs = Arc::clone(runs);
        self
    }

    /// Returns true if the bytes in `host` are those that the guest has at `guest`.
    fn is_right(&self, guest: usize, host: Range<usize>) -> bool {
        let after = self.runs.partition_point(|run| run.guest <= guest);
        let Some(run) = after.checked_sub(1).map(|index| self.runs[index]) else {
            return false;
        };
        let into = guest - run.guest;
        let whole = self.flip.is_none_or(|(at, _)| !host.contains(&at));
        whole && host.start == run.host + into && into + host.len() <= run.len
    }
}

impl BlockSource for Patched {
    fn size(&self) -> u64 {
        self.len as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let start = usize::try_from(offset).map_or(self.len, |o| o.min(self.len));
        let n = buf.len().min(self.len - start);
        let host = start..start + n;
        if let Some(seen) = &self.seen {
            seen.lock().unwrap()[host.clone()].fill(true);
        }
        let buf = &mut buf[..n];
        if AIM.with_borrow_mut(|aim| aim.spares(buf, |guest| self.is_right(guest, host.clone()))) {
            return Ok(n);
        }
        buf.copy_from_slice(&self.bytes[host.clone()]);
        if let Some((at, mask)) = self.flip.filter(|(at, _)| host.contains(at)) {
            buf[at - start] ^= mask;
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

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Patched {
    fn identity(&self) -> Option<FileIdentity> {
        self.identity
    }
}

const PIECE: usize = 64 << 10;

thread_local! {
    /// A buffer that stays: disks are read some million times.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PIECE]);
    static AIM: RefCell<Aim> = const { RefCell::new(Aim { address: 0, len: 0, guest: 0, right: Vec::new() }) };
}

/// The buffer that this thread is about to fill, and what of it is known to be right without a look: there a
/// file was asked for just those bytes that were found to be the guest's when it was whole.
struct Aim {
    address: usize,
    len: usize,
    /// Place of its bytes on the disk.
    guest: usize,
    right: Vec<Range<usize>>,
}

impl Aim {
    fn take(&mut self, buf: &[u8], guest: usize) {
        (self.address, self.len, self.guest) = (buf.as_ptr() as usize, buf.len(), guest);
        self.right.clear();
    }

    /// Returns true if `buf` is a part of the buffer, and what is read into it is right.
    fn spares(&mut self, buf: &[u8], is_right: impl FnOnce(usize) -> bool) -> bool {
        let into = (buf.as_ptr() as usize).wrapping_sub(self.address);
        let inside = into < self.len && buf.len() <= self.len - into;
        let spares = inside && is_right(self.guest + into);
        if spares {
            self.right.push(into..into + buf.len());
        }
        spares
    }

    /// Returns true if what is not known to be right differs.
    fn differs(&mut self, piece: &[u8], want: &[u8]) -> bool {
        self.len = 0;
        self.right.sort_unstable_by_key(|range| range.start);
        let mut at = 0;
        let mut differs = false;
        for range in &self.right {
            differs |= at < range.start && piece[at..range.start] != want[at..range.start];
            at = at.max(range.end);
        }
        differs | (piece[at..] != want[at..])
    }
}

/// Returns true if the disk is another one than `content`, which is as long.
pub(crate) fn differs(image: &dyn Image, content: &[u8]) -> Result<bool> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut differs = false;
        for (number, want) in content.chunks(PIECE).enumerate() {
            let (piece, guest) = (&mut buffer[..want.len()], number * PIECE);
            AIM.with_borrow_mut(|aim| aim.take(piece, guest));
            let read = image.read_exact_at(piece, guest as u64);
            differs |= AIM.with_borrow_mut(|aim| aim.differs(piece, want));
            read?;
        }
        Ok(differs)
    })
}

/// Opens files once, and has them in memory from then on.
#[derive(Debug)]
pub(crate) struct Kept {
    resolver: Arc<dyn Resolver>,
    files: Mutex<BTreeMap<ImageName, (Patched, Arc<Kept>)>>,
}

impl Kept {
    pub(crate) fn new(resolver: Arc<dyn Resolver>) -> Arc<Self> {
        Arc::new(Kept {
            resolver,
            files: Mutex::default(),
        })
    }
}

impl Resolver for Kept {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let mut files = self.files.lock().unwrap();
        if !files.contains_key(&reference.name) {
            let resolved = self.resolver.resolve(reference)?;
            let Resolved::Open { source, within, .. } = resolved else {
                return Ok(resolved);
            };
            let mut file = Patched::whole(&Arc::new(read_all(&source)?));
            file.identity = source.identity();
            files.insert(reference.name.clone(), (file, Kept::new(within)));
        }
        let (file, within) = &files[&reference.name];
        Ok(Resolved::Open {
            source: Arc::new(file.clone()),
            format: None,
            within: Arc::clone(within) as Arc<dyn Resolver>,
        })
    }
}
