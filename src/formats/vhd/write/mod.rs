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

use options::{MAX_TABLE, Parent, Plan, creator_version};
pub use options::{Subformat, VhdOptions};
use sparse::SparseWriter;

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
    Write::new(0, offset, bytes)
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
        // Old bytes of the target would show through.
        shape.record_zeroes = true;
        shape.forward = true;
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let (guest, taken) = match run {
            WriteRun::Verbatim { guest, len } => (guest, len),
            WriteRun::Zero { guest, len } => {
                tables.push(Write::new(0, guest, Payload::Zeroes(len)));
                (guest, len)
            }
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                return Err(Error::invalid("a VHD cannot be compressed"));
            }
        };
        Ok(Placed::new(0, guest, taken))
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
impl VhdOptions {
    /// The writer of such an image of `virtual_size` bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the size does not fit, or the options do not fit each other.
    pub fn writer(self, virtual_size: u64) -> Result<Box<dyn ImageWriter>> {
        let plan = self.plan(virtual_size)?;
        if plan.kind == DiskType::Fixed {
            return Ok(Box::new(FixedWriter { plan }));
        }
        let table = plan.size.div_ceil(self.block_size).saturating_mul(4);
        if table > MAX_TABLE {
            return Err(Error::invalid(format!(
                "a disk of {} bytes needs blocks of more than {} bytes",
                plan.size, self.block_size
            )));
        }
        let parent = self.backing.as_ref().map(Parent::new).transpose()?;
        Ok(Box::new(SparseWriter::new(plan, self.block_size, parent)))
    }
}
