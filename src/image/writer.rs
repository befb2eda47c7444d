//! Layout of a new image, in three steps: encode, place, finish.
//!
//! The engine reads the source, finds the zeros and does the I/O. A writer decides where things go:
//!
//! ```text
//!   encode   any thread, any order    a unit's bytes  → compressed, or left as they are
//!   place    guest order, one lock    a run           → its place in the file, and full tables
//!   finish   once                                     → the last tables; the header on its own
//! ```

use std::fmt::Debug;
use std::sync::Arc;

use crate::digest::Algorithm;
use crate::error::Result;
use crate::image::BitmapInfo;
use crate::name::ImageName;
use crate::packed::Codec;
use crate::zero::is_zero;

/// Lays a new image out. It encodes and allocates; the engine does the I/O.
///
/// The same runs give the same image, whatever the number of threads: [`place`](Self::place) is
/// called in guest order.
pub trait ImageWriter: Debug + Send {
    /// Shape of the image, which the engine needs before it starts.
    fn shape(&self) -> WriteShape;

    /// Encoder of units; `None` if they are stored as they are.
    fn encoder(&self) -> Option<Arc<dyn Encoder>> {
        None
    }

    /// Decides the place of a run, in guest order, and appends the tables that became full to
    /// `tables`.
    ///
    /// The engine calls again with the rest where the run was not taken whole. Guest ranges that are
    /// never placed read as the backing file where there is one, and as zero otherwise.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if the format cannot hold so much.
    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed>;

    /// The final size of each of [`WriteShape::files`] if every byte of the disk were stored, where
    /// that can be told without placing them all; asked before anything is placed.
    fn full_sizes(&self) -> Option<Vec<u64>> {
        None
    }

    /// Bytes that these bitmaps would need in the image; `None` if it cannot hold any.
    fn bitmaps_size(&self, bitmaps: &[BitmapInfo]) -> Option<u64> {
        let _ = bitmaps;
        None
    }

    /// Closes the layout.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    fn finish(self: Box<Self>) -> Result<Finish>;
}

/// Compresses units: CPU only, from any thread, in any order, while the writer places others.
pub trait Encoder: Debug + Send + Sync {
    /// Appends the compressed form of `unit`, the guest's bytes at `guest`, to `out`, or appends
    /// nothing and returns [`Form::Verbatim`]. The last unit of a disk is padded with zeros to its
    /// full length.
    ///
    /// # Errors
    /// Errors of the codec.
    fn encode(&self, guest: u64, unit: &[u8], out: &mut Vec<u8>) -> Result<Form>;

    /// Maximum length of a compressed unit in bytes, if every unit is compressed even if it becomes
    /// longer; `None` if such a unit is stored as it is.
    fn longest(&self) -> Option<u32> {
        None
    }

    /// Treatment of units that the source has compressed by `codec`; `None` if they have to be
    /// decompressed, and encoded anew.
    fn takes(&self, codec: Codec) -> Option<Take> {
        let _ = codec;
        None
    }

    /// Appends the compressed form of the unit at `guest` to `out`, made of `packed`, which begins
    /// with that unit as compressed by `codec`. Returns [`Form::Verbatim`] and appends nothing if
    /// that cannot be done: the unit has to be decompressed and encoded.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn wrap(&self, guest: u64, codec: Codec, packed: &[u8], out: &mut Vec<u8>) -> Result<Form> {
        let _ = (guest, codec, packed, out);
        Ok(Form::Verbatim)
    }
}

/// Treatment of compressed units of another image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Take {
    /// Their bytes are stored as they are, and lie as they did: see [`WriteRun::Copied`].
    AsTheyAre,
    /// Each is wrapped anew by [`Encoder::wrap`].
    Wrapped,
}

/// Form in which a unit is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Verbatim,
    /// Compressed.
    Packed,
}

/// Facts that the engine needs of an image that it writes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WriteShape {
    /// Virtual size in bytes, which may be the source's rounded up.
    pub virtual_size: u64,
    /// Runs start at multiples of this many bytes, and are so long that only the last may be cut
    /// short by the end of the disk. A power of two.
    pub unit: u64,
    /// The smallest aligned run of zeros worth recording, in bytes. A multiple of `unit`.
    pub zero_unit: u64,
    /// True if a run of zeros has to be placed to read as zero, because a backing file would show
    /// through.
    pub record_zeroes: bool,
    /// True if the file's bytes are the guest's and nothing else, so that an existing file or
    /// device can be written into.
    pub plain: bool,
    /// True if all writes come in the order of the file, from the first to the seal, so that a
    /// stream can take them as they come. For other images it is enough that the guest's bytes are
    /// placed in the guest's order:
    /// [`convert_to_writer`](crate::convert::ConvertOptions::convert_to_writer) plans the writes
    /// between them beforehand.
    pub forward: bool,
    /// True if the place of every guest byte and the result of [`ImageWriter::finish`] do not
    /// depend on the runs that are placed. Parts of such an image can be written apart from each
    /// other.
    pub settled: bool,
    /// Space to reserve before anything else is written.
    pub preallocation: Vec<Write>,
    /// The files that make up the image, the one that is the image first.
    pub files: Vec<OutputFile>,
}

impl WriteShape {
    /// The shape of an image in one file, with nothing below it and no space reserved.
    pub fn new(virtual_size: u64, unit: u64) -> Self {
        WriteShape {
            virtual_size,
            unit,
            zero_unit: unit,
            record_zeroes: false,
            plain: false,
            forward: false,
            settled: false,
            preallocation: Vec::new(),
            files: vec![OutputFile::Image],
        }
    }
}

/// A file that a writer fills.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputFile {
    /// The image itself.
    Image,
    /// Another file, by the name that the image calls it. A relative name is relative to the image.
    Named(ImageName),
}

/// A run of guest bytes on its way into an image.
#[derive(Debug, Clone, Copy)]
pub enum WriteRun<'a> {
    /// Bytes to store as they are.
    Verbatim {
        /// Guest offset.
        guest: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Compressed units, in guest order.
    Packed {
        /// One part per unit.
        parts: &'a [Part],
    },
    /// Compressed units of another image, in guest order, whose bytes keep their offsets from each
    /// other: with gaps, and one on top of the other's end. [`Placed::host`] is the start of the
    /// first one.
    Copied {
        /// One part per unit.
        parts: &'a [CopiedPart],
        /// Offset of the first one in its file, modulo 512, which has to stay.
        remainder: u64,
    },
    /// Bytes that have to read as zero.
    Zero {
        /// Guest offset.
        guest: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Compressed unit that is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiedPart {
    /// Guest offset.
    pub guest: u64,
    /// Start of the unit, in bytes from the start of the first part. It never goes back.
    pub at: u64,
    /// Maximum length of the compressed form in bytes.
    pub len: u64,
}

/// Compressed unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Guest offset.
    pub guest: u64,
    /// Length of the compressed form in bytes. The parts of a run lie one behind the other.
    pub len: u32,
}

/// Place of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Index in [`WriteShape::files`].
    pub file: usize,
    /// Offset in that file of the bytes, in one piece. Without meaning for a run of zeros.
    pub host: u64,
    /// Amount that was taken, from the front: bytes, or parts of a compressed or copied run. Never
    /// 0.
    pub taken: u64,
}

impl Placed {
    /// Creates a place in one of [`WriteShape::files`], at a byte of it.
    pub fn new(file: usize, host: u64, taken: u64) -> Self {
        Placed { file, host, taken }
    }
}

/// Write of bytes that are not the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Index in [`WriteShape::files`].
    pub file: usize,
    /// Offset in that file in bytes.
    pub offset: u64,
    /// Bytes to write.
    pub payload: Payload,
}

impl Write {
    /// Creates a write into one of [`WriteShape::files`], at a byte of it.
    pub fn new(file: usize, offset: u64, payload: impl Into<Payload>) -> Self {
        let payload = payload.into();
        Write {
            file,
            offset,
            payload,
        }
    }

    /// Appends the writes of a table to a place where nothing was written before. Its pages of
    /// zeros, most of the tables of a sparse image, are [`Payload::Zeroes`].
    pub fn push_table(tables: &mut Vec<Write>, file: usize, offset: u64, table: &[u8]) {
        const PAGE: usize = 4096;
        // Pages of the file, not of the table.
        let into = usize::try_from(offset % PAGE as u64).unwrap_or(0);
        let mut pages = table;
        let (mut at, mut run, mut run_is_zero) = (offset, 0, true);
        let mut flush = |at: &mut u64, bytes: &[u8], zero: bool| {
            let len = bytes.len() as u64;
            if len > 0 {
                let payload = if zero {
                    Payload::Zeroes(len)
                } else {
                    Payload::Bytes(bytes.to_vec())
                };
                tables.push(Write::new(file, *at, payload));
                *at += len;
            }
        };
        let mut seen = 0;
        while seen < table.len() {
            let page = PAGE - (seen + into) % PAGE;
            let end = (seen + page).min(table.len());
            let zero = table.get(seen..end).is_none_or(is_zero);
            if zero != run_is_zero {
                let (done, rest) = pages.split_at(run);
                flush(&mut at, done, run_is_zero);
                (pages, run, run_is_zero) = (rest, 0, zero);
            }
            run += end - seen;
            seen = end;
        }
        flush(&mut at, pages, run_is_zero);
    }
}

/// The bytes of a [`Write`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes that have to read as zero. Where nothing was written before in a target that
    /// reads as zero there is nothing to do.
    Zeroes(u64),
    /// Space for so many bytes, which may read as anything.
    Allocate(u64),
    /// So many zeros that are written out in any case.
    WrittenZeroes(u64),
    /// The digest of a range of the same file as it stands when this write's turn comes, as lower-case
    /// hexadecimal digits. Its place is in [`Finish::seal`], after all that the range holds.
    Digest {
        /// Algorithm of the digest.
        algorithm: Algorithm,
        /// Start of the range in bytes.
        start: u64,
        /// Length of the range in bytes.
        len: u64,
    },
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Payload::Bytes(bytes)
    }
}

/// End of a layout: its last writes, in their order.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Finish {
    /// The last tables, in any order.
    pub tables: Vec<Write>,
    /// Writes that make the file an image (its header), after the tables are on stable storage.
    pub seal: Vec<Write>,
    /// The final size of each of [`WriteShape::files`], in bytes.
    pub sizes: Vec<u64>,
}

impl Finish {
    /// An end of these parts.
    pub fn new(tables: Vec<Write>, seal: Vec<Write>, sizes: Vec<u64>) -> Self {
        Finish {
            tables,
            seal,
            sizes,
        }
    }
}
