//! Reading through a table: read, extents and backing, written once for all table-mapped formats.
//!
//! A format answers one question as a [`BlockMap`]: the place of one unit. The walk and [`Mapped`] do
//! the rest.

mod cache;
mod claims;
pub(crate) mod edit;
mod mapped;
mod reader;
mod regions;
mod two_level;
mod two_level_check;
mod unread;
mod unreadable;
mod usage;
mod walk;

use std::fmt::Debug;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::packed::Codec;

pub(crate) use cache::TableCache;
pub(crate) use claims::{Claim, Claims};
pub(crate) use mapped::{Below, Mapped};
pub(crate) use reader::TableReader;
pub(crate) use regions::Regions;
pub(crate) use two_level::{Cluster, Entries, Shape, TwoLevel, data_past_end};
pub(crate) use unread::read_what_is_left;
pub(crate) use unreadable::{Reason, Unreadable};
pub(crate) use usage::Usage;
pub(crate) use walk::{Held, Table};

/// The tables of a format: the part of reading an image that only the format knows.
pub(crate) trait BlockMap: Debug + Send + Sync {
    /// The unit in which guest ranges are mapped and compressed, in bytes.
    fn unit(&self) -> u64;

    /// The run at `guest`, and for how many bytes one look at the tables tells that it holds: up to the
    /// end of a unit or of a part of one, of an absent table, or of entries that are all empty.
    ///
    /// A table that is read is put into `held`, and taken from there by the next step.
    fn step(&self, guest: u64, held: &mut Held) -> Result<(Run, u64)>;

    /// Returns `true` if units are so large that a hole of the file in a stored one is an extent of its
    /// own.
    fn tells_holes(&self) -> bool {
        false
    }

    /// The number of bytes from `guest` on that are lost if `guest` is: the rest of its unit, or all for
    /// which a table answers that cannot be read.
    fn lost_with(&self, guest: u64) -> u64 {
        self.unit() - guest % self.unit()
    }

    /// Places of the tables, as [`Image::tables`](crate::Image::tables) returns them.
    fn tables(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// The compression of units, for formats that have compressed ones.
    fn packing(&self) -> Option<&dyn Packing> {
        None
    }

    /// An error of this format about bytes that the file ends before.
    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error;
}

/// The compression of the units of an image.
pub(crate) trait Packing {
    /// The codec, if compressed units can travel to another image as they are.
    fn codec(&self) -> Option<Codec>;

    /// The part of the bytes of a unit that is compressed data: all, unless the format puts a header
    /// before it.
    fn payload(&self, packed: &[u8], _guest: u64, _host: u64) -> Result<Range<usize>> {
        Ok(0..packed.len())
    }

    /// Decompresses the [payload](Self::payload) of the unit at `guest`, `host` bytes into the file.
    fn unpack(&self, payload: &[u8], guest: u64, host: u64, unit: &mut [u8]) -> Result<()>;
}

/// The place of a guest range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// As it is, at this host offset.
    Stored { host: u64 },
    /// In one compressed unit at this host offset, no longer than `max_len` bytes.
    Packed { host: u64, max_len: u64 },
    /// Nowhere: it reads as zero.
    Zero,
    /// Nowhere: it reads as what is below.
    Unallocated,
}
