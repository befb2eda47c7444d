//! Streams as sources: bytes that come once, one behind the other.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::{Digest, Hasher};
use crate::error::Result;
use crate::extent::Extent;
use crate::progress::Cancel;
use crate::source::{BlockSource, stored_extent};
use crate::storage::spill::Spill;
use crate::storage::window::{Length, Window};

mod state;

use state::State;

/// By how much the stream may be ahead of what was asked for.
const AHEAD: u64 = 4 << 20;

/// An [`io::Read`] as a source that is read about in its order.
///
/// The bytes before the furthest one that was asked for are at hand for the length of a window, and so is
/// what was read as a [table](Self::keep), for good. Bytes that went by are an [`Error::OutOfOrder`],
/// unless there is a spill file, and so are tables that are far ahead. Until the end is seen
/// the size is the [bound](Length::bound) of all streams.
pub(crate) struct Incoming {
    state: Mutex<State>,
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Incoming")
            .field("length", &state.arrived.length())
            .finish_non_exhaustive()
    }
}

/// Bytes that a stream may use.
pub(crate) struct Room {
    /// Bytes of the window.
    pub(crate) window: u64,
    /// Bytes of tables that are kept.
    pub(crate) tables: u64,
    pub(crate) spill: Option<Spill>,
}

impl Incoming {
    /// A stream of which nothing was read.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no memory for the window.
    pub(crate) fn new(
        reader: Box<dyn Read + Send>,
        room: Room,
        hashers: Vec<Hasher>,
        cancel: Cancel,
    ) -> Result<Self> {
        let window = room.window.max(AHEAD);
        let recent = usize::try_from(window + AHEAD).unwrap_or(usize::MAX);
        let mut arrived = Window::new(recent, room.tables);
        arrived.room(0)?;
        Ok(Incoming {
            state: Mutex::new(State {
                reader,
                arrived,
                demanded: 0,
                window,
                tables: room.tables,
                keeps: true,
                begun: false,
                refused: 0,
                block: 1,
                blocks: VecDeque::new(),
                hashers,
                spill: room.spill,
                cancel,
                failure: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets if the following reads are of tables, which are kept.
    pub(crate) fn keep(&self, keeps: bool) {
        let mut state = self.lock();
        state.keeps = keeps;
        state.begun |= !keeps;
    }

    /// Keeps these ranges of bytes when they arrive.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if they are too many.
    pub(crate) fn owe(&self, ranges: Vec<(u64, u64)>) -> Result<()> {
        let mut state = self.lock();
        ranges
            .into_iter()
            .try_for_each(|(start, end)| state.owe(start, end))
    }

    /// Sets the size of the blocks that hold several compressed units.
    pub(crate) fn set_block(&self, bytes: u64) {
        self.lock().block = bytes.clamp(64 << 10, 2 << 20);
    }

    pub(crate) fn length(&self) -> Length {
        self.lock().arrived.length()
    }

    /// Returns true if the end was seen.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended()
    }

    /// Bytes of memory that the window takes.
    pub(crate) fn memory(&self) -> u64 {
        self.lock().arrived.recent_len()
    }

    pub(crate) fn spills(&self) -> bool {
        self.lock().spill.is_some()
    }

    /// Waits until this byte is at hand, no more than some MiB ahead, or the end is seen.
    ///
    /// # Errors
    /// Errors of the reader.
    pub(crate) fn arrive(&self, end: u64) -> Result<()> {
        let mut state = self.lock();
        while state.arrived.position() < end && !state.ended() {
            state.fill(false)?;
        }
        Ok(())
    }

    /// Reads to the end, into the spill file if `spilled`.
    ///
    /// # Errors
    /// Errors of the reader, and of a spill file that would be too large.
    pub(crate) fn drain(&self, spilled: bool) -> Result<()> {
        let mut state = self.lock();
        if spilled {
            let from = state.gap_start();
            state.spill_window(from)?;
        }
        while !state.ended() {
            state.fill(spilled)?;
        }
        Ok(())
    }

    /// The digests of all that arrived.
    pub(crate) fn take_digests(&self) -> Vec<Digest> {
        let hashers = std::mem::take(&mut self.lock().hashers);
        hashers.into_iter().map(Hasher::finish).collect()
    }
}

impl BlockSource for Incoming {
    fn size(&self) -> u64 {
        self.length().bound()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.lock().read(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        stored_extent(offset, limit, self.size())
    }
}

#[cfg(test)]
#[cfg(feature = "checksum")]
mod tests {
    use super::*;
    use crate::digest::Algorithm;
    use crate::error::Error;
    use std::io;

    /// Gives as many bytes at a time as it says.
    struct Cut {
        at: u64,
        len: u64,
        size: usize,
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at * 31 % 251).unwrap()
    }

    impl Read for Cut {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let left = usize::try_from(self.len - self.at).unwrap();
            let n = left.min(buf.len()).min(self.size);
            for (byte_of, at) in buf.iter_mut().take(n).zip(self.at..) {
                *byte_of = byte(at);
            }
            self.at += n as u64;
            Ok(n)
        }
    }

    fn incoming(len: u64, size: usize, spill: Option<Spill>) -> Incoming {
        let reader = Box::new(Cut { at: 0, len, size });
        let room = Room {
            window: 0,
            tables: 1 << 20,
            spill,
        };
        let hasher = Hasher::new(Algorithm::Md5).unwrap();
        Incoming::new(reader, room, vec![hasher], Cancel::new()).unwrap()
    }

    fn read(from: &Incoming, at: u64, len: usize) -> Result<usize> {
        let mut buf = vec![0; len];
        let n = from.read_at(&mut buf, at)?;
        let mut some = buf[..n].iter().zip(at..).step_by(97);
        assert!(some.all(|(b, at)| *b == byte(at)));
        Ok(n)
    }

    #[test]
    fn what_went_by_is_there_as_far_as_the_window_goes_however_it_is_cut() {
        const MIB: u64 = 1 << 20;
        for size in [4099, 1 << 30] {
            let stream = incoming(20 * MIB, size, None);
            assert_eq!(stream.length(), Length::AtLeast(0));
            // A table, which stays.
            assert_eq!(read(&stream, 100, 5000).unwrap(), 5000);
            // What is at the end has not arrived.
            let end = stream.size() - 512;
            let error = stream.read_at(&mut [0; 512], end).unwrap_err();
            assert!(matches!(error, Error::OutOfOrder { offset, .. } if offset == end));
            stream.owe(vec![(7 * MIB, 7 * MIB + 300)]).unwrap();
            stream.keep(false);
            for at in 0..11 {
                assert_eq!(read(&stream, at * MIB, 1 << 20).unwrap(), 1 << 20);
            }
            assert_eq!(read(&stream, 7 * MIB, 4 << 20).unwrap(), 4 << 20);
            let gone = read(&stream, 7 * MIB - 1, 10).unwrap_err();
            assert!(matches!(gone, Error::OutOfOrder { offset, .. } if offset == 7 * MIB - 1));
            assert_eq!(read(&stream, 200, 4900).unwrap(), 4900);
            // A table that is far ahead is refused, and nothing is lost; then it is kept.
            stream.keep(true);
            assert!(read(&stream, 16 * MIB, 100).is_err());
            stream.keep(false);
            assert_eq!(read(&stream, 11 * MIB, 9 << 20).unwrap(), 9 << 20);
            assert_eq!(read(&stream, 7 * MIB, 300).unwrap(), 300);
            assert_eq!(read(&stream, 19 * MIB, 2 << 20).unwrap(), 1 << 20);
            assert_eq!(stream.size(), 20 * MIB);
            assert_eq!(read(&stream, 16 * MIB, 100).unwrap(), 100);
            let all: Vec<u8> = (0..20 * MIB).map(byte).collect();
            assert_eq!(
                stream.take_digests(),
                [Algorithm::Md5.digest(&all).unwrap()]
            );
        }
    }

    #[test]
    fn everybody_is_told_with_what_the_reader_failed() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let room = Room {
            window: 0,
            tables: 0,
            spill: None,
        };
        let stream = Incoming::new(Box::new(Broken), room, Vec::new(), Cancel::new()).unwrap();
        for _ in 0..2 {
            let error = read(&stream, 0, 1).unwrap_err();
            assert_eq!(error.io_kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn a_block_of_which_a_part_was_read_stays() {
        let stream = incoming(20 << 20, 70_000, None);
        stream.set_block(64 << 10);
        stream.keep(false);
        read(&stream, 0, 1000).unwrap();
        read(&stream, 10 << 20, 1 << 20).unwrap();
        assert_eq!(read(&stream, 1000, 64_000).unwrap(), 64_000);
        assert!(read(&stream, 70_000, 10).is_err());
    }

    #[test]
    fn what_is_left_out_is_spilled_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let spill = Spill::create(folder.path(), 9 << 20).unwrap();
        let stream = incoming(30 << 20, 100_000, Some(spill));
        stream.keep(false);
        read(&stream, 0, 1 << 20).unwrap();
        read(&stream, 8 << 20, 1 << 20).unwrap();
        read(&stream, 9 << 20, 8 << 20).unwrap();
        for at in (1..8).rev() {
            assert_eq!(read(&stream, at << 20, 1 << 20).unwrap(), 1 << 20);
        }
        assert!(matches!(
            read(&stream, 0, 10),
            Err(Error::OutOfOrder { .. })
        ));
        let error = read(&stream, 25 << 20, 10).unwrap_err();
        assert!(error.to_string().contains("a larger spill file"), "{error}");
    }
}
