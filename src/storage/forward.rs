//! Streams: bytes that can only be written one behind the other.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::source::BlockSource;
use crate::storage::{flush, write_zeroes_by};
use crate::target::{BlockTarget, Zeroes};

/// A pipe, a socket, an upload: any [`io::Write`], as a target that is written from its first byte to
/// its last.
///
/// Gaps between two writes are written as zeros. A write that would have to go back fails
/// with [`Error::Io`] of the kind [`NotSeekable`](ErrorKind::NotSeekable), and so does a size smaller
/// than what was written; nothing can be read. A reader that goes away is an [`Error::Io`] of the kind
/// [`BrokenPipe`](ErrorKind::BrokenPipe). After an error of the writer it is unknown how much arrived:
/// all calls fail from then on.
///
/// Writes that were interrupted by a signal are repeated. The writer has to block: "would block" is an
/// error like any other.
pub struct ForwardTarget<W> {
    stream: Mutex<Stream<W>>,
    /// Bytes written: where the stream is.
    position: AtomicU64,
}

struct Stream<W> {
    writer: W,
    failed: bool,
}

impl<W: Write + Send> ForwardTarget<W> {
    /// A target that writes to `writer`, wherever that is; offsets count from there.
    pub fn new(writer: W) -> Self {
        ForwardTarget {
            stream: Mutex::new(Stream {
                writer,
                failed: false,
            }),
            position: AtomicU64::new(0),
        }
    }

    /// Number of bytes written so far, by all threads.
    pub fn written(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// The writer. It was not flushed since the last [`sync`](BlockTarget::sync).
    pub fn into_inner(self) -> W {
        let stream = self.stream.into_inner();
        stream.unwrap_or_else(PoisonError::into_inner).writer
    }

    fn lock(&self) -> MutexGuard<'_, Stream<W>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills up with zeros to `offset`, which must not lie behind the stream.
    fn go_to(&self, stream: &mut Stream<W>, offset: u64, what: &'static str) -> Result<()> {
        let position = self.written();
        let Some(gap) = offset.checked_sub(position) else {
            return Err(Error::io(
                format!("{what} byte {offset} of a stream that is already at byte {position}"),
                ErrorKind::NotSeekable.into(),
            ));
        };
        write_zeroes_by(position, gap, |zeroes, _| self.put(stream, zeroes))
    }

    /// Writes all of `data` where the stream is.
    fn put(&self, stream: &mut Stream<W>, mut data: &[u8]) -> Result<()> {
        stream.guarded(self.written(), "write", |writer| {
            while !data.is_empty() {
                match writer.write(data) {
                    Ok(n) => {
                        let rest = data.get(n..).filter(|_| n > 0);
                        data = rest.ok_or(ErrorKind::WriteZero)?;
                        self.position.fetch_add(n as u64, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }
}

impl<W> Stream<W> {
    /// Lets `act` on the writer, unless it failed before. An error, or a panic, is for ever.
    fn guarded(
        &mut self,
        position: u64,
        verb: &'static str,
        act: impl FnOnce(&mut W) -> io::Result<()>,
    ) -> Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            let problem = io::Error::other("it failed before");
            return Err(Error::io(format!("{verb} the stream"), problem));
        }
        act(&mut self.writer).map_err(|error| {
            let gone = match error.kind() {
                ErrorKind::BrokenPipe => ": its reader has gone away",
                _ => "",
            };
            Error::io(format!("{verb} the stream at byte {position}{gone}"), error)
        })?;
        self.failed = false;
        Ok(())
    }
}

impl<W> fmt::Debug for ForwardTarget<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardTarget")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

fn end_of(offset: u64, len: u64, size: u64) -> Result<u64> {
    offset
        .checked_add(len)
        .ok_or(Error::OutOfRange { offset, len, size })
}

fn unreadable() -> Error {
    Error::io(
        "read from a stream that is only written",
        ErrorKind::Unsupported.into(),
    )
}

/// The size is what was written so far.
impl<W: Write + Send> BlockSource for ForwardTarget<W> {
    fn size(&self) -> u64 {
        self.written()
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Err(unreadable())
    }

    fn extent_at(&self, _: u64, _: u64) -> Result<Extent> {
        Err(unreadable())
    }
}

impl<W: Write + Send> BlockTarget for ForwardTarget<W> {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        end_of(offset, data.len() as u64, self.written())?;
        let mut stream = self.lock();
        self.go_to(&mut stream, offset, "write at")?;
        self.put(&mut stream, data)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, _: Zeroes) -> Result<()> {
        let end = end_of(offset, len, self.written())?;
        let mut stream = self.lock();
        self.go_to(&mut stream, offset, "write at")?;
        self.go_to(&mut stream, end, "write at")
    }

    /// There is nothing to reserve: nothing is done, and the size stays.
    fn allocate(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.go_to(&mut self.lock(), size, "cut off at")
    }

    /// Flushes the writer. The bytes may still be on their way to the reader.
    fn sync(&self) -> Result<()> {
        let mut stream = self.lock();
        stream.guarded(self.written(), "flush", flush)
    }

    /// Gaps are written as zeros.
    fn reads_as_zero(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a few bytes at a time, is interrupted now and then, and fails in the end.
    struct Trickle {
        taken: Vec<u8>,
        most: usize,
        calls: usize,
        room: usize,
        last: ErrorKind,
    }

    impl Write for Trickle {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls % 3 == 0 {
                return Err(ErrorKind::Interrupted.into());
            }
            if self.taken.len() == self.room {
                return match self.last {
                    ErrorKind::WriteZero => Ok(0),
                    other => Err(other.into()),
                };
            }
            let n = data.len().min(self.most).min(self.room - self.taken.len());
            self.taken.extend_from_slice(&data[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn trickle(most: usize, room: usize, last: ErrorKind) -> ForwardTarget<Trickle> {
        ForwardTarget::new(Trickle {
            taken: Vec::new(),
            most,
            calls: 0,
            room,
            last,
        })
    }

    fn kind(result: Result<()>) -> ErrorKind {
        result.unwrap_err().io_kind()
    }

    #[test]
    fn gaps_are_zeros_and_short_writes_are_taken_up_again() {
        for most in [1, 3, 7, 4096] {
            let target = trickle(most, usize::MAX, ErrorKind::Other);
            target.write_all_at(b"abc", 2).unwrap();
            target.write_all_at(b"", 5).unwrap();
            target.allocate(0, 100).unwrap();
            target.write_zeroes_at(6, 3, Zeroes::Keep).unwrap();
            target.write_all_at(b"d", 9).unwrap();
            target.set_size(12).unwrap();
            target.sync().unwrap();
            assert_eq!(target.size(), 12);
            assert_eq!(target.into_inner().taken, b"\0\0abc\0\0\0\0d\0\0");
        }
    }

    #[test]
    fn nothing_goes_back_and_nothing_is_read() {
        let target = ForwardTarget::new(Vec::new());
        target.write_all_at(b"abc", 1).unwrap();
        assert_eq!(kind(target.write_all_at(b"x", 3)), ErrorKind::NotSeekable);
        let zeroes = target.write_zeroes_at(3, 9, Zeroes::Discard);
        assert_eq!(kind(zeroes), ErrorKind::NotSeekable);
        assert_eq!(kind(target.set_size(3)), ErrorKind::NotSeekable);
        let far = target.write_all_at(b"xy", u64::MAX);
        assert!(matches!(far, Err(Error::OutOfRange { .. })));
        assert_eq!(
            target.read_at(&mut [0], 0).unwrap_err().io_kind(),
            ErrorKind::Unsupported
        );
        assert!(target.extent_at(0, 1).is_err());
        // What was refused changed nothing.
        target.write_all_at(b"d", 4).unwrap();
        assert_eq!(target.into_inner(), b"\0abcd");
    }

    #[test]
    fn a_writer_that_failed_is_not_asked_again() {
        for (last, told) in [
            (ErrorKind::BrokenPipe, "gone away"),
            (ErrorKind::StorageFull, "at byte 3"),
            (ErrorKind::WouldBlock, "at byte 3"),
            (ErrorKind::WriteZero, "at byte 3"),
        ] {
            let target = trickle(2, 5, last);
            target.write_all_at(b"abc", 0).unwrap();
            let error = target.write_all_at(b"defg", 3).unwrap_err();
            assert_eq!(error.io_kind(), last);
            assert!(error.chain().contains(told), "{}", error.chain());
            assert_eq!(target.written(), 5);
            for after in [target.write_all_at(b"fg", 5), target.sync()] {
                assert!(after.unwrap_err().chain().contains("failed before"));
            }
            assert_eq!(target.into_inner().taken, b"abcde");
        }
    }
}
