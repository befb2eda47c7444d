//! Reading through a table: read, extents and backing, written once for all table-mapped formats.
//!
//! A format answers one question, where a guest range lives, as a [`BlockMap`]; [`Mapped`] does the
//! rest.

mod cache;
mod claims;
mod detached;
pub(crate) mod edit;
mod image;
mod mapped;
mod two_level;
mod two_level_check;
mod unread;
mod usage;

use std::fmt::Debug;
use std::ops::Range;

use crate::error::Result;
use crate::extent::ExtentKind;
use crate::packed::Codec;

pub(crate) use cache::TableCache;
pub(crate) use claims::Claims;
pub(crate) use detached::{Detached, Missing};
pub(crate) use image::MappedImage;
pub(crate) use mapped::{Below, Mapped};
pub(crate) use two_level::{Cluster, Entries, Shape, TwoLevel, data_past_end};
pub(crate) use unread::{Unread, read_what_is_left};
pub(crate) use usage::Usage;

/// Where guest ranges live: the part of a table-mapped format that only it knows.
pub(crate) trait BlockMap: Debug + Send + Sync {
    /// The unit in which guest ranges are mapped, and packed, in bytes.
    fn unit(&self) -> u64;

    /// Where the guest bytes at `guest` live, and for how many bytes, up to `limit`, that answer
    /// holds: up to where the host offset jumps. A packed run ends with its unit.
    fn lookup(&self, guest: u64, limit: u64) -> Result<(Run, u64)>;

    /// The status of the guest bytes at `guest`, and for how many bytes, up to `limit`, it holds.
    /// Unlike [`lookup`](Self::lookup) it crosses jumps of the host offset, and a table that is
    /// absent answers for its whole span.
    fn span(&self, guest: u64, limit: u64) -> Result<(Span, u64)>;

    /// How many bytes from `guest` on have no answer if it has none: those of its unit, or all for which the
    /// same table answers if that cannot be had.
    fn lost_with(&self, guest: u64) -> u64 {
        self.unit() - guest % self.unit()
    }

    /// Where the tables are, as [`Image::tables`](crate::Image::tables) tells it.
    fn tables(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// Unpacks one unit from the start of `packed`, which `host` bytes into the file.
    fn unpack(&self, packed: &[u8], host: u64, unit: &mut [u8]) -> Result<()>;

    /// Unpacks the unit of the guest's bytes at `guest`, for formats whose packed units say where they
    /// belong, or whose last one may be shorter.
    fn unpack_at(&self, packed: &[u8], _guest: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        self.unpack(packed, host, unit)
    }

    /// How all packed units are packed, if they can travel as they are.
    fn packing(&self) -> Option<Codec> {
        None
    }

    /// What of the bytes of a packed unit is packed: all, unless the format puts something before it.
    fn payload(&self, packed: &[u8], _guest: u64, _host: u64) -> Result<Range<usize>> {
        Ok(0..packed.len())
    }

    /// Unpacks the unit of the guest's bytes at `guest` from what of its bytes is [packed](Self::payload).
    fn unpack_payload(&self, payload: &[u8], guest: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        self.unpack_at(payload, guest, host, unit)
    }

    /// An error of this format about bytes of the file that it needs and the file does not have.
    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> crate::Error;
}

/// Where a guest range lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// As it is, at this host offset.
    Stored { host: u64 },
    /// One packed unit at this host offset, no longer than `max_len` bytes.
    Packed { host: u64, max_len: u64 },
    /// Nowhere: it reads as zero.
    Zero,
    /// Nowhere: it reads as what is below.
    Unallocated,
}

/// The status of a guest range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// Recorded here, with this status; the host offset where it is stored as it is.
    Recorded(ExtentKind, Option<u64>),
    /// Not recorded here.
    Unallocated,
}
