//! Compressed grains: each a zlib stream, after a marker where there are any.

use std::ops::Range;

use crate::codec::{UnpackError, ZlibUnpacker};
use crate::error::{Error, Result};
use crate::map::Packing;
use crate::packed::Codec;

use super::super::VMDK;
use super::super::header::{GRAIN_MARKER_LEN, Marker, SECTOR};
use super::super::malformed;

/// The compression of the grains of an extent.
#[derive(Debug)]
pub(in super::super) struct GrainPacking {
    /// Set if a marker before each grain says where it belongs.
    pub(in super::super) markers: bool,
    /// Bytes of a grain.
    pub(in super::super) grain: u64,
    /// Bytes of the guest that the extent holds.
    pub(in super::super) size: u64,
    pub(in super::super) unpacker: ZlibUnpacker,
}

impl Packing for GrainPacking {
    fn codec(&self) -> Option<Codec> {
        Some(Codec::Zlib)
    }

    fn payload(&self, packed: &[u8], guest: u64, host: u64) -> Result<Range<usize>> {
        if !self.markers {
            return Ok(0..packed.len());
        }
        let marker = Marker::parse(packed, host)?;
        if marker.size == 0 {
            return Err(Marker::malformed(host, "size", "is 0: no grain is here"));
        }
        if marker.val.checked_mul(SECTOR) != Some(guest) {
            let problem = format!(
                "is {}, and the grain of sector {} is expected here",
                marker.val,
                guest / SECTOR
            );
            return Err(Marker::malformed(host, "val", problem));
        }
        let there = packed.len().saturating_sub(GRAIN_MARKER_LEN);
        let size = usize::try_from(marker.size).unwrap_or(usize::MAX);
        if size > there {
            let problem = format!("is {size}, and {there} bytes are there");
            return Err(Marker::malformed(host, "size", problem));
        }
        Ok(GRAIN_MARKER_LEN..GRAIN_MARKER_LEN + size)
    }

    fn unpack(&self, payload: &[u8], guest: u64, host: u64, unit: &mut [u8]) -> Result<()> {
        let about = |problem: String| {
            let problem = format!("{problem} (guest offset {guest})");
            malformed("compressed grain", host, problem)
        };
        let unpacked = self.unpacker.unpack(payload, unit);
        let made = unpacked.map_err(|error| match error {
            UnpackError::Damaged(problem) => about(problem.into_owned()),
            UnpackError::NotBuilt(feature) => Error::Unsupported {
                format: VMDK,
                feature: "reading compressed grains".to_owned(),
                hint: (feature == "zlib").then(|| "build with the feature zlib".into()),
            },
        })?;
        // Writers compress of the disk's last grain only what there is.
        let wanted = self.grain.min(self.size.saturating_sub(guest));
        if (made as u64) < wanted {
            return Err(about(format!("holds {made} of {wanted} bytes")));
        }
        unit.get_mut(made..).unwrap_or_default().fill(0);
        Ok(())
    }
}
