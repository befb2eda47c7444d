//! Files compressed by gzip (RFC 1952), read at any offset.
//!
//! One pass over the file finds its size, checks its sums and notes the inflater's state now and then.
//! A read goes on from the nearest state before it, of these or of those that earlier reads left.

use std::fmt;
use std::sync::{Arc, Mutex};

use flate2::Crc;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentKind};
use crate::limits::Limits;
use crate::lock::lock;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Stored, check_extent, readable};

use super::malformed;

/// Window of deflate, in bytes.
const WINDOW: usize = 32 << 10;
/// Bytes of the compressed file read at once.
const INPUT: usize = 32 << 10;
/// The most bytes of a header, whose name and comment have no length of their own.
const MAX_HEADER: u64 = 128 << 10;
/// About the bytes of one state.
const STATE_LEN: u64 = 48 << 10;
/// Bytes between states at first; it doubles when there are too many of them.
const SPACING: u64 = 4 << 20;
/// The most states that reads leave.
const MAX_CURSORS: usize = 32;
/// A read that skips more than this leaves the state that it began with.
const NEAR: u64 = 64 << 10;

/// An inflater at a place of the file.
#[derive(Clone)]
struct State {
    inflater: DecompressorOxide,
    window: Box<[u8; WINDOW]>,
    /// Position of the next byte in the window.
    into: usize,
    /// Offset of the next input byte in the compressed file.
    packed: u64,
    /// Offset of the next output byte in the file.
    at: u64,
    /// Set while a stream has begun and not ended.
    within: bool,
    /// Set once no stream follows.
    ended: bool,
    /// Offset in the file at which the present stream began.
    stream: u64,
}

impl State {
    fn start() -> Self {
        State {
            inflater: DecompressorOxide::new(),
            window: Box::new([0; WINDOW]),
            into: 0,
            packed: 0,
            at: 0,
            within: false,
            ended: false,
            stream: 0,
        }
    }

    /// The first byte of the file that is still in the window.
    fn reach(&self) -> u64 {
        self.at.saturating_sub(WINDOW as u64)
    }

    /// Copies what is in the window from `offset` on, and returns how much that was.
    fn copy_window(&self, buf: &mut [u8], offset: u64) -> usize {
        let back = usize::try_from(self.at.saturating_sub(offset)).unwrap_or(0);
        let n = back.min(buf.len());
        let from = (self.into + WINDOW - back.min(WINDOW)) % WINDOW;
        let ring = self.window.iter().cycle().skip(from);
        for (to, byte) in buf.iter_mut().zip(ring).take(n) {
            *to = *byte;
        }
        n
    }
}

/// The content of a file compressed by gzip.
pub(super) struct Inflated<S> {
    packed: S,
    size: u64,
    points: Vec<Arc<State>>,
    /// States that reads left, the latest last.
    cursors: Mutex<Vec<Arc<State>>>,
}

impl<S: fmt::Debug> fmt::Debug for Inflated<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflated")
            .field("packed", &self.packed)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// Inflates a file from a state on.
struct Inflater<'a, S> {
    packed: &'a S,
    state: State,
    input: Vec<u8>,
    /// Range of the input that is left.
    left: std::ops::Range<usize>,
    /// The sum of the present stream, where it is followed from its start.
    sum: Option<Crc>,
}

impl<'a, S: BlockSource> Inflater<'a, S> {
    fn new(packed: &'a S, state: State, sum: Option<Crc>) -> Self {
        Inflater {
            packed,
            state,
            input: vec![0; INPUT],
            left: 0..0,
            sum,
        }
    }

    /// Inflates some more, and returns where in the window it is; nothing at the end.
    fn step(&mut self) -> Result<std::ops::Range<usize>> {
        loop {
            if !self.state.within {
                if !self.next_stream()? {
                    return Ok(0..0);
                }
                continue;
            }
            if self.left.is_empty() {
                let n = self.packed.read_at(&mut self.input, self.state.packed)?;
                self.left = 0..n;
            }
            let input = self.input.get(self.left.clone()).unwrap_or_default();
            let more = self.state.packed + (input.len() as u64) < self.packed.size();
            let flags = if more { TINFL_FLAG_HAS_MORE_INPUT } else { 0 };
            let from = self.state.into;
            let window = self.state.window.as_mut_slice();
            let (status, taken, made) =
                decompress(&mut self.state.inflater, input, window, from, flags);
            self.state.packed += taken as u64;
            self.left.start += taken;
            self.state.at += made as u64;
            self.state.into = (from + made) % WINDOW;
            let out = from..from + made;
            if let Some(sum) = &mut self.sum {
                sum.update(self.state.window.get(out.clone()).unwrap_or_default());
            }
            match status {
                TINFLStatus::Done => self.end_stream()?,
                TINFLStatus::HasMoreOutput | TINFLStatus::NeedsMoreInput => {
                    if made == 0 && taken == 0 {
                        return Err(self.bad("is cut short"));
                    }
                }
                TINFLStatus::FailedCannotMakeProgress => return Err(self.bad("is cut short")),
                _ => return Err(self.bad("is damaged")),
            }
            if made > 0 {
                return Ok(out);
            }
        }
    }

    fn bad(&self, problem: &str) -> Error {
        malformed("gzip stream", self.state.packed, problem.to_owned())
    }

    /// Reads the header of the next stream; `false` if there is none.
    fn next_stream(&mut self) -> Result<bool> {
        if self.state.ended {
            return Ok(false);
        }
        let at = self.state.packed;
        let mut start = [0; 10];
        let n = self.packed.read_at(&mut start, at)?;
        let start = start.get(..n).unwrap_or_default();
        if at > 0 && self.rest_is_zero(at)? {
            self.state.ended = true;
            return Ok(false);
        }
        let [0x1f, 0x8b, 8, flags, ..] = start else {
            return Err(self.bad("has no gzip header"));
        };
        if n < 10 || flags & 0xe0 != 0 {
            return Err(self.bad("has a header that is not known"));
        }
        let mut header = Header {
            packed: self.packed,
            at: at + 10,
            end: at + MAX_HEADER,
        };
        if flags & 4 != 0 {
            let len = u64::from(header.byte()?) | u64::from(header.byte()?) << 8;
            header.at += len;
        }
        for flag in [8, 16] {
            if flags & flag != 0 {
                while header.byte()? != 0 {}
            }
        }
        if flags & 2 != 0 {
            header.at += 2;
        }
        self.state.packed = header.at;
        self.left = 0..0;
        self.state.inflater = DecompressorOxide::new();
        self.state.within = true;
        self.state.stream = self.state.at;
        if let Some(sum) = &mut self.sum {
            sum.reset();
        }
        Ok(true)
    }

    /// Returns whether only zeros, with which archivers pad, stand from `at` on.
    fn rest_is_zero(&self, at: u64) -> Result<bool> {
        let mut buffer = [0; 4096];
        let n = self.packed.read_at(&mut buffer, at)?;
        let zero = buffer.iter().take(n).all(|byte| *byte == 0);
        Ok(zero && at + n as u64 == self.packed.size())
    }

    /// Reads what follows a stream: its sum and its length.
    fn end_stream(&mut self) -> Result<()> {
        let mut trailer = [0; 8];
        let at = self.state.packed;
        if self.packed.read_at(&mut trailer, at)? < trailer.len() {
            return Err(self.bad("is cut short"));
        }
        let [a, b, c, d, len @ ..] = trailer;
        if let Some(sum) = &self.sum {
            let len_found = (self.state.at - self.state.stream) & 0xffff_ffff;
            if sum.sum() != u32::from_le_bytes([a, b, c, d])
                || len_found != u64::from(u32::from_le_bytes(len))
            {
                return Err(self.bad("does not have the sum and length that it says"));
            }
        }
        self.state.packed += 8;
        self.state.within = false;
        self.left = 0..0;
        Ok(())
    }
}

/// The parts of a header that have no fixed length.
struct Header<'a, S> {
    packed: &'a S,
    at: u64,
    end: u64,
}

impl<S: BlockSource> Header<'_, S> {
    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        if self.at >= self.end || self.packed.read_at(&mut byte, self.at)? == 0 {
            return Err(malformed(
                "gzip stream",
                self.at,
                "has a header without end",
            ));
        }
        self.at += 1;
        let [byte] = byte;
        Ok(byte)
    }
}

impl<S: BlockSource> Inflated<S> {
    /// Opens a compressed file. All of it is inflated once.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is damaged, [`Error::LimitExceeded`] if it grows too much.
    pub(super) fn new(packed: S, limits: &Limits) -> Result<Self> {
        let max_points = usize::try_from(limits.cache_bytes / STATE_LEN).unwrap_or(2);
        let max_points = max_points.clamp(2, 4096);
        let mut spacing = SPACING;
        let mut points = vec![Arc::new(State::start())];
        let mut inflater = Inflater::new(&packed, State::start(), Some(Crc::new()));
        while !inflater.step()?.is_empty() {
            let at = inflater.state.at;
            limits.check_inflated("what a gzip stream inflates to", packed.size(), at)?;
            let last = points.last().map_or(0, |point| point.at);
            if at - last >= spacing && inflater.state.within {
                points.push(Arc::new(inflater.state.clone()));
            }
            if points.len() > max_points {
                let mut keep = false;
                points.retain(|_| {
                    keep = !keep;
                    keep
                });
                spacing *= 2;
            }
        }
        let size = inflater.state.at;
        Ok(Inflated {
            packed,
            size,
            points,
            cursors: Mutex::default(),
        })
    }

    /// The state to read from `offset` on with.
    fn state_for(&self, offset: u64) -> State {
        let mut cursors = lock(&self.cursors);
        let point = self.points.partition_point(|point| point.at <= offset);
        let point = point.checked_sub(1).and_then(|at| self.points.get(at));
        let nearest = cursors.iter().enumerate();
        let nearest = nearest.filter(|(_, cursor)| cursor.reach() <= offset);
        let nearest = nearest.max_by_key(|(_, cursor)| cursor.at);
        let nearest = nearest.filter(|(_, c)| point.is_none_or(|point| point.at <= c.at));
        let chosen = match nearest.map(|(index, cursor)| (index, cursor.at)) {
            Some((index, at)) if offset.saturating_sub(at) <= NEAR => Some(cursors.remove(index)),
            Some((index, _)) => cursors.get(index).cloned(),
            None => point.cloned(),
        };
        drop(cursors);
        chosen.map_or_else(State::start, Arc::unwrap_or_clone)
    }

    fn leave(&self, state: State) {
        let mut cursors = lock(&self.cursors);
        if cursors.len() >= MAX_CURSORS {
            cursors.remove(0);
        }
        cursors.push(Arc::new(state));
    }
}

impl<S: BlockSource> BlockSource for Inflated<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let want = readable(buf.len(), offset, self.size);
        if want == 0 {
            return Ok(0);
        }
        let mut inflater = Inflater::new(&self.packed, self.state_for(offset), None);
        let mut done = inflater
            .state
            .copy_window(buf.get_mut(..want).unwrap_or_default(), offset);
        while done < want {
            let before = inflater.state.at;
            let out = inflater.step()?;
            if out.is_empty() {
                return Err(inflater.bad("has changed since it was opened"));
            }
            let wanted = offset + done as u64;
            let skip = usize::try_from(wanted.saturating_sub(before)).unwrap_or(usize::MAX);
            let made = inflater.state.window.get(out).unwrap_or_default();
            let made = made.get(skip..).unwrap_or_default();
            let n = made.len().min(want - done);
            if let (Some(to), Some(from)) = (buf.get_mut(done..done + n), made.get(..n)) {
                to.copy_from_slice(from);
            }
            done += n;
        }
        self.leave(inflater.state);
        Ok(done)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let len = check_extent(offset, limit, self.size)?;
        Ok(Extent::new(offset, len, ExtentKind::Compressed))
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl<S: BlockSource> Stored for Inflated<S> {
    fn uses_file(&self, file: FileIdentity) -> bool {
        self.packed.uses_file(file)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::source::BlockSourceExt;
    use crate::storage::Memory;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::fast();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let byte = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 27) as u8
        };
        (0..len).map(byte).collect()
    }

    #[test]
    fn any_range_of_several_streams_in_any_order() {
        let all = noise(13 << 20);
        let (first, second) = all.split_at(5_000_001);
        let mut file = [packed(first), packed(second)].concat();
        file.extend_from_slice(&[0; 700]);
        let limits = Limits {
            cache_bytes: 2 * STATE_LEN,
            ..Limits::default()
        };
        let source = Inflated::new(Memory::new(file), &limits).unwrap();
        assert_eq!(source.size(), all.len() as u64);
        assert!((2..=3).contains(&source.points.len()));
        let mut state = 7_usize;
        for _ in 0..60 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let at = (state >> 20) % all.len();
            let len = ((state >> 8) % 100_000).min(all.len() - at);
            let mut buf = vec![0; len];
            source.read_exact_at(&mut buf, at as u64).unwrap();
            assert!(buf == all[at..at + len], "{at} {len}");
        }
        let mut end = [0; 4];
        assert_eq!(source.read_at(&mut end, all.len() as u64 - 2).unwrap(), 2);
    }

    #[test]
    fn damage_is_found_before_anything_is_read() {
        let good = packed(&noise(100_000));
        let open = |bytes: &[u8]| Inflated::new(Memory::new(bytes), &Limits::default()).map(drop);
        open(&good).unwrap();
        for cut in (0..good.len()).step_by(997) {
            assert!(open(&good[..cut]).is_err(), "{cut}");
        }
        for at in [good.len() - 1, good.len() - 5, good.len() / 2, 0, 2, 3] {
            let mut bad = good.clone();
            bad[at] ^= 0xe8;
            let error = open(&bad).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{at}: {error}");
        }
        assert!(open(&[good.as_slice(), b"more"].concat()).is_err());
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = packed(&vec![0; 8 << 20]);
        let limits = Limits {
            inflated_bytes: 1 << 20,
            ..Limits::default()
        };
        let error = Inflated::new(Memory::new(bomb), &limits).unwrap_err();
        assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
    }
}
