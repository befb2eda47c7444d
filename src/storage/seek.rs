//! Between positioned bytes and `std::io`'s cursors, in both directions.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::source::{BlockSource, ended_early, readable, stored_extent};
use crate::storage::{flush, write_zeroes_by};
use crate::target::{BlockTarget, Zeroes};

/// A source as `Read + Seek`, for code that reads through a cursor.
#[derive(Debug, Clone)]
pub struct SourceReader<S> {
    source: S,
    position: u64,
}

impl<S: BlockSource> SourceReader<S> {
    /// A cursor at the start of `source`.
    pub fn new(source: S) -> Self {
        SourceReader {
            source,
            position: 0,
        }
    }

    /// The source.
    pub fn into_inner(self) -> S {
        self.source
    }
}

impl<S: BlockSource> Read for SourceReader<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read_at(buf, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl<S: BlockSource> Seek for SourceReader<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(distance) => self.source.size().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek to before the start or past 2^64",
            )
        })?;
        Ok(self.position)
    }
}

/// Anything that is `Read + Seek` as a source. All of it counts as data.
///
/// A cursor serves one caller at a time, so reads of several threads wait for each other: where there
/// is a file, [`FileStorage`](crate::storage::FileStorage) is the better source.
#[derive(Debug)]
pub struct SeekSource<R> {
    cursor: Mutex<R>,
    size: u64,
}

impl<R: Read + Seek> SeekSource<R> {
    /// A source of what `cursor` reads from its start to its end.
    ///
    /// # Errors
    /// [`Error::Io`] if the cursor cannot say where its end is.
    pub fn new(mut cursor: R) -> Result<Self> {
        let size = cursor
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::io("seek to the end", e))?;
        Ok(SeekSource {
            cursor: Mutex::new(cursor),
            size,
        })
    }

    /// The cursor, at its present position.
    pub fn into_inner(self) -> R {
        self.cursor
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Read + Seek + Send + std::fmt::Debug> BlockSource for SeekSource<R> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        read_through(&mut *lock(&self.cursor), buf, offset, self.size)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        stored_extent(offset, limit, self.size)
    }
}

/// Anything that is `Read + Write + Seek` as a target.
#[derive(Debug)]
pub struct SeekTarget<W> {
    inner: Mutex<(W, u64)>,
    reads_as_zero: bool,
}

impl<W: Read + Write + Seek> SeekTarget<W> {
    /// A target that writes through `cursor` and grows when it is written past its end. It counts as
    /// reading as zero if it is empty.
    ///
    /// # Errors
    /// [`Error::Io`] if the cursor cannot say where its end is.
    pub fn new(mut cursor: W) -> Result<Self> {
        let size = cursor
            .seek(SeekFrom::End(0))
            .map_err(|e| Error::io("seek to the end", e))?;
        Ok(SeekTarget {
            inner: Mutex::new((cursor, size)),
            reads_as_zero: size == 0,
        })
    }

    /// The cursor, at its present position.
    pub fn into_inner(self) -> W {
        self.inner
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl<W: Read + Write + Seek + Send + std::fmt::Debug> BlockSource for SeekTarget<W> {
    fn size(&self) -> u64 {
        lock(&self.inner).1
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let (cursor, size) = &mut *lock(&self.inner);
        read_through(cursor, buf, offset, *size)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        stored_extent(offset, limit, self.size())
    }
}

impl<W: Read + Write + Seek + Send + std::fmt::Debug> BlockTarget for SeekTarget<W> {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let (cursor, size) = &mut *lock(&self.inner);
        if offset > *size {
            // A cursor need not fill the gap by itself.
            let gap = offset - *size;
            write_zeroes_by(*size, gap, |zeroes, at| write_through(cursor, zeroes, at))?;
        }
        write_through(cursor, data, offset)?;
        *size = (*size).max(offset + data.len() as u64);
        Ok(())
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, _: Zeroes) -> Result<()> {
        write_zeroes_by(offset, len, |zeroes, at| self.write_all_at(zeroes, at))
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        let end = offset + len;
        self.write_zeroes_at(size, end.saturating_sub(size), Zeroes::Keep)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        let now = self.size();
        if size < now {
            return Err(Error::invalid("a cursor cannot be made shorter"));
        }
        self.write_zeroes_at(now, size - now, Zeroes::Keep)
    }

    fn sync(&self) -> Result<()> {
        let (cursor, _) = &mut *lock(&self.inner);
        flush(cursor).map_err(|e| Error::io("flush", e))
    }

    fn reads_as_zero(&self) -> bool {
        self.reads_as_zero
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_through(
    cursor: &mut (impl Read + Seek),
    buf: &mut [u8],
    at: u64,
    size: u64,
) -> Result<usize> {
    let failed = |e| Error::io(format!("read at byte {at}"), e);
    let want = readable(buf.len(), at, size);
    if want == 0 {
        return Ok(0);
    }
    cursor.seek(SeekFrom::Start(at)).map_err(failed)?;
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..want).filter(|rest| !rest.is_empty()) {
        match cursor.read(rest) {
            Ok(0) => return Err(ended_early(at + done as u64)),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(done)
}

fn write_through(cursor: &mut (impl Write + Seek), data: &[u8], at: u64) -> Result<()> {
    let written = cursor
        .seek(SeekFrom::Start(at))
        .and_then(|_| cursor.write_all(data));
    written.map_err(|e| Error::io(format!("write at byte {at}"), e))
}
