//! A part's view of the source and of the target.

use std::sync::Arc;

use crate::convert::partition::layout::Stretch;
use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::source::{
    BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, read_padded, readable,
};
use crate::target::{BlockTarget, Zeroes};

/// A range of a disk, which may reach beyond the end of the source: what a target adds reads as zero.
#[derive(Debug)]
pub(super) struct Window<'a> {
    source: &'a dyn BlockSource,
    start: u64,
    len: u64,
}

impl<'a> Window<'a> {
    pub(super) fn new(source: &'a dyn BlockSource, start: u64, len: u64) -> Self {
        Window { source, start, len }
    }
}

impl BlockSource for Window<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = readable(buf.len(), offset, self.len);
        let Some(buf) = buf.get_mut(..n).filter(|buf| !buf.is_empty()) else {
            return Ok(0);
        };
        let at = self.start.saturating_add(offset);
        read_padded(self.source, buf, at)?;
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.len)?;
        let at = self.start.saturating_add(offset);
        if at >= self.source.size() {
            return Ok(Extent::new(offset, limit, ExtentKind::Zero));
        }
        let run = self.source.extent_at(at, limit)?;
        Ok(Extent {
            start: offset,
            ..run
        })
    }

    fn block_size(&self) -> u64 {
        self.source.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Window<'_> {
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.source.uses_file(file)
    }
}

/// The places of a part in the files of the target, one behind the other. Nothing else can be written
/// through it.
#[derive(Debug)]
pub(super) struct PartTarget {
    pieces: Vec<Piece>,
    len: u64,
    is_zero: bool,
    /// Keeps space allocated under zeros.
    keep: bool,
}

#[derive(Debug)]
struct Piece {
    /// Start in the part.
    start: u64,
    len: u64,
    host: u64,
    file: Arc<dyn BlockTarget>,
}

impl PartTarget {
    pub(super) fn new(
        files: &[Arc<dyn BlockTarget>],
        stretches: Vec<Stretch>,
        is_zero: bool,
        keep: bool,
    ) -> Result<Self> {
        let (mut pieces, mut len) = (Vec::new(), 0);
        for stretch in stretches {
            let file = files.get(stretch.file).ok_or_else(|| {
                Error::invalid(format!("there is no target for file {}", stretch.file))
            })?;
            pieces.push(Piece {
                start: len,
                len: stretch.len,
                host: stretch.host,
                file: Arc::clone(file),
            });
            len += stretch.len;
        }
        Ok(PartTarget {
            pieces,
            len,
            is_zero,
            keep,
        })
    }

    /// Calls `each` with every file that holds some of the range, where in the file that is, where in
    /// the range, and how much.
    fn each(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&dyn BlockTarget, u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let Some(end) = end else {
            return Err(Error::out_of_range(offset, len, self.len));
        };
        let first = self
            .pieces
            .partition_point(|piece| piece.start + piece.len <= offset);
        for piece in self.pieces.iter().skip(first) {
            let at = piece.start.max(offset);
            let n = (piece.start + piece.len).min(end).saturating_sub(at);
            if n == 0 {
                break;
            }
            each(
                &*piece.file,
                piece.host + (at - piece.start),
                at - offset,
                n,
            )?;
        }
        Ok(())
    }
}

impl BlockSource for PartTarget {
    fn size(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = readable(buf.len(), offset, self.len);
        let mut done = 0;
        self.each(offset.min(self.len), n as u64, |file, host, _, len| {
            let end = done + usize::try_from(len).unwrap_or(usize::MAX);
            done += file.read_at(buf.get_mut(done..end).unwrap_or_default(), host)?;
            Ok(())
        })?;
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let limit = check_extent(offset, limit, self.len)?;
        let mut found = None;
        self.each(offset, limit, |file, host, _, len| {
            if found.is_none() {
                found = Some(file.extent_at(host, len)?);
            }
            Ok(())
        })?;
        match found {
            Some(run) => Ok(Extent {
                start: offset,
                ..run
            }),
            None => Err(Error::invalid("the part has no place in the target")),
        }
    }
}

impl BlockTarget for PartTarget {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.each(offset, data.len() as u64, |file, host, from, len| {
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let end = from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
            file.write_all_at(data.get(from..end).unwrap_or_default(), host)
        })
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
        self.each(offset, len, |file, host, _, len| {
            if self.keep || zeroes == Zeroes::Keep {
                return file.write_zeroes_at(host, len, Zeroes::Keep);
            }
            // What is a hole stays one, on file systems that cannot make any, too.
            let (mut at, end) = (host, host + len);
            while at < end {
                let run = file.extent_at(at, end - at)?;
                if !run.kind.reads_as_zero() {
                    file.write_zeroes_at(at, run.len, zeroes)?;
                }
                at = run.end();
            }
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.each(offset, len, |file, host, _, len| file.allocate(host, len))
    }

    fn set_size(&self, size: u64) -> Result<()> {
        match size <= self.len {
            true => Ok(()),
            false => Err(Error::out_of_range(0, size, self.len)),
        }
    }

    fn sync(&self) -> Result<()> {
        let mut synced: Option<&Arc<dyn BlockTarget>> = None;
        for piece in &self.pieces {
            if synced.is_none_or(|file| !Arc::ptr_eq(file, &piece.file)) {
                piece.file.sync()?;
            }
            synced = Some(&piece.file);
        }
        Ok(())
    }

    fn reads_as_zero(&self) -> bool {
        self.is_zero
    }

    fn concurrent_writes(&self) -> usize {
        let files = self.pieces.iter().map(|p| p.file.concurrent_writes());
        files.min().unwrap_or(1)
    }
}
