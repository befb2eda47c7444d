//! Laying a new image out.
//!
//! ```text
//!   fixed     the disk │ footer
//!   others    footer's copy │ header │ parent's name │ BAT │ blocks in the order of the disk │ footer
//! ```
//!
//! The data of a block starts at a multiple of 4 KiB, so that file systems can store it as it is and
//! leave the holes in it out: the sectors of its bitmap stand before that.

mod options;
mod sparse;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape};

use super::SECTOR;
use super::footer::{COOKIE, DiskType, Footer, NO_OFFSET, VERSION};

use options::{Plan, creator_version};
pub use options::{Subformat, VhdOptions};

/// Bytes of a file system's block, nearly everywhere.
const PAGE: u64 = 4096;

/// The footer of an image, but for its UUID.
fn footer(plan: &Plan, unique_id: Uuid) -> Footer {
    let data_offset = match plan.kind {
        DiskType::Fixed => NO_OFFSET,
        DiskType::Dynamic | DiskType::Differencing => SECTOR,
    };
    Footer {
        cookie: COOKIE,
        // The one bit that the specification wants set.
        features: 2,
        file_format_version: VERSION,
        data_offset,
        time_stamp: plan.time_stamp,
        creator_application: plan.creator,
        creator_version: creator_version(plan.creator),
        creator_host_os: *b"Wi2k",
        original_size: plan.size,
        current_size: plan.size,
        cylinders: plan.geometry.cylinders,
        heads: plan.geometry.heads,
        sectors_per_track: plan.geometry.sectors_per_track,
        disk_type: plan.kind.number(),
        checksum: 0,
        unique_id,
        saved_state: 0,
    }
}

/// Bytes at a place in the image.
fn bytes(offset: u64, bytes: Vec<u8>) -> Write {
    Write {
        file: 0,
        offset,
        payload: Payload::Bytes(bytes),
    }
}

/// Lays a fixed disk out: everything goes where the guest sees it.
#[derive(Debug)]
struct FixedWriter {
    plan: Plan,
}

impl ImageWriter for FixedWriter {
    fn shape(&self) -> WriteShape {
        let mut shape = WriteShape::new(self.plan.size, SECTOR);
        shape.zero_unit = PAGE;
        shape.settled = true;
        // What the target held before would show through.
        shape.record_zeroes = true;
        shape.forward = true;
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let (guest, taken) = match run {
            WriteRun::Verbatim { guest, len } => (guest, len),
            WriteRun::Zero { guest, len } => {
                tables.push(Write {
                    file: 0,
                    offset: guest,
                    payload: Payload::Zeroes(len),
                });
                (guest, len)
            }
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                return Err(Error::invalid("a VHD cannot be compressed"));
            }
        };
        Ok(Placed {
            file: 0,
            host: guest,
            taken,
        })
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        let unique_id = self.plan.unique_id(&[]);
        let footer = footer(&self.plan, unique_id).sealed().to_vec();
        let size = self.plan.size;
        Ok(Finish::new(
            Vec::new(),
            vec![bytes(size, footer)],
            vec![size + SECTOR],
        ))
    }
}
