//! The header, in both of its versions: `VDIPREHEADER`, `VDIHEADER0`, `VDIHEADER1` and
//! `VDIHEADER1PLUS` of VirtualBox's `VDICore.h`.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ondisk::{on_disk, table_entry, until_nul};
use crate::source::BlockSource;

use super::VDI;

pub(super) const SIGNATURE: u32 = 0xbeda_107f;
pub(super) const SIGNATURE_AT: usize = PreHeader::signature.offset;
/// The version that is written: 1.1.
pub(super) const VERSION: u32 = 0x0001_0001;
/// The largest block that is read or written, in bytes. VirtualBox writes 1 MiB.
pub(super) const MAX_BLOCK: u64 = 256 << 20;
pub(super) const SECTOR: u64 = 512;

table_entry! {
    /// An entry of the block map: the number of a block in the file.
    pub(super) struct BlockEntry(u32), Little;
}

impl BlockEntry {
    /// A block of which nothing is known: it reads as the parent, or as zero.
    pub(super) const FREE: Self = BlockEntry(u32::MAX);
    /// A block that was discarded: it reads as zero.
    pub(super) const ZERO: Self = BlockEntry(u32::MAX - 1);

    /// Number of the block in the file, if it is there.
    pub(super) fn number(self) -> Option<u64> {
        (self < Self::ZERO).then(|| self.0.into())
    }
}

on_disk! {
    /// `VDIPREHEADER`.
    pub(super) struct PreHeader in VDI, "header", Little, 72 bytes {
        file_info: [u8; 64] = 0,
        signature: u32 = 64,
        version: u32 = 68,
    }
}

on_disk! {
    /// `VDIHEADER0`. Its offsets are from byte 72 of the file.
    pub(super) struct Header0 in VDI, "header", Little, 348 bytes {
        image_type: u32 = 0,
        image_flags: u32 = 4,
        comment: [u8; 256] = 8,
        disk_size: u64 = 280,
        block_size: u32 = 288,
        blocks: u32 = 292,
        blocks_allocated: u32 = 296,
        uuid_create: Uuid = 300,
        uuid_modify: Uuid = 316,
        uuid_linkage: Uuid = 332,
    }
}

on_disk! {
    /// `VDIHEADER1`, without the geometry that `VDIHEADER1PLUS` adds. Its offsets are from byte 72 of
    /// the file.
    pub(super) struct Header1 in VDI, "header", Little, 384 bytes {
        header_size: u32 = 0,
        image_type: u32 = 4,
        image_flags: u32 = 8,
        comment: [u8; 256] = 12,
        offset_blocks: u32 = 268,
        offset_data: u32 = 272,
        legacy_sector_size: u32 = 288,
        dummy: u32 = 292,
        disk_size: u64 = 296,
        block_size: u32 = 304,
        block_extra: u32 = 308,
        blocks: u32 = 312,
        blocks_allocated: u32 = 316,
        uuid_create: Uuid = 320,
        uuid_modify: Uuid = 336,
        uuid_linkage: Uuid = 352,
        uuid_parent_modify: Uuid = 368,
    }
}

on_disk! {
    /// The end of `VDIHEADER1PLUS`: a geometry, which readers make up where it is 0.
    pub(super) struct Geometry in VDI, "header", Little, 16 bytes {
        cylinders: u32 = 0,
        heads: u32 = 4,
        sectors: u32 = 8,
        sector_size: u32 = 12,
    }
}

/// Kind of a VDI (`VDIIMAGETYPE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageType {
    /// Blocks are allocated when they are written (1).
    Dynamic,
    /// Every block is allocated (2).
    Fixed,
    /// The blocks that changed since, to be thrown away (3).
    Undo,
    /// The blocks in which the disk differs from another image (4).
    Differencing,
}

impl ImageType {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            ImageType::Dynamic => "dynamic",
            ImageType::Fixed => "fixed",
            ImageType::Undo => "undo",
            ImageType::Differencing => "differencing",
        }
    }

    pub(super) fn number(self) -> u32 {
        match self {
            ImageType::Dynamic => 1,
            ImageType::Fixed => 2,
            ImageType::Undo => 3,
            ImageType::Differencing => 4,
        }
    }

    fn of(number: u32) -> Option<Self> {
        let all = [
            ImageType::Dynamic,
            ImageType::Fixed,
            ImageType::Undo,
            ImageType::Differencing,
        ];
        all.into_iter().find(|kind| kind.number() == number)
    }

    /// Returns whether the image has a parent.
    fn has_parent(self) -> bool {
        matches!(self, ImageType::Undo | ImageType::Differencing)
    }
}

/// The header of an image, whatever its version, checked.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) kind: ImageType,
    pub(super) comment: Vec<u8>,
    pub(super) disk_size: u64,
    pub(super) block_size: u64,
    pub(super) block_extra: u64,
    pub(super) blocks: u32,
    pub(super) blocks_allocated: u32,
    pub(super) offset_blocks: u64,
    pub(super) offset_data: u64,
    pub(super) uuid_create: Uuid,
    pub(super) uuid_modify: Uuid,
    /// The creation UUID of the parent.
    pub(super) uuid_linkage: Option<Uuid>,
    /// The modification UUID of the parent, where that is recorded.
    pub(super) uuid_parent_modify: Option<Uuid>,
}

impl Header {
    /// Bytes from the start of the file that are enough to parse any header.
    const READ: usize = PreHeader::LEN + Header1::LEN;

    pub(super) fn read(source: &dyn BlockSource) -> Result<Self> {
        let mut bytes = [0; Self::READ];
        let n = source.read_at(&mut bytes, 0)?;
        let bytes = bytes.get(..n).unwrap_or_default();
        let pre = PreHeader::parse(bytes, 0)?;
        if pre.signature != SIGNATURE {
            return Err(PreHeader::malformed(
                0,
                "signature",
                format!("is {:#010x}", pre.signature),
            ));
        }
        let at = PreHeader::LEN as u64;
        let rest = bytes.get(PreHeader::LEN..).unwrap_or_default();
        match pre.version {
            0..=0xffff => Self::of_version_0(pre.version, &Header0::parse(rest, at)?, at),
            VERSION => {
                Self::of_version_1(pre.version, &Header1::parse(rest, at)?, at, source.size())
            }
            version => Err(Error::unsupported(
                VDI,
                format!("version {}.{}", version >> 16, version & 0xffff),
                None,
            )),
        }
    }

    fn of_version_0(version: u32, raw: &Header0, at: u64) -> Result<Self> {
        let offset_blocks = at + Header0::LEN as u64;
        let header = Header {
            version,
            kind: ImageType::of(raw.image_type)
                .ok_or_else(|| Header0::malformed(at, "image_type", unknown(raw.image_type)))?,
            comment: until_nul(&raw.comment).to_vec(),
            disk_size: raw.disk_size,
            block_size: raw.block_size.into(),
            block_extra: 0,
            blocks: raw.blocks,
            blocks_allocated: raw.blocks_allocated,
            offset_blocks,
            // The blocks follow the map at once, whatever is at the end of its last sector.
            offset_data: offset_blocks + u64::from(raw.blocks) * 4,
            uuid_create: raw.uuid_create,
            uuid_modify: raw.uuid_modify,
            uuid_linkage: some(raw.uuid_linkage),
            uuid_parent_modify: None,
        };
        header.checked(|field, problem| Header0::malformed(at, field, problem))
    }

    fn of_version_1(version: u32, raw: &Header1, at: u64, file_size: u64) -> Result<Self> {
        let header_size = u64::from(raw.header_size);
        let header_end = at + header_size;
        if header_size < Header1::LEN as u64 || header_end > file_size {
            let problem = format!(
                "is {header_size}, and has to be {} at least and in the file",
                Header1::LEN
            );
            return Err(Header1::malformed(at, "header_size", problem));
        }
        let header = Header {
            version,
            kind: ImageType::of(raw.image_type)
                .ok_or_else(|| Header1::malformed(at, "image_type", unknown(raw.image_type)))?,
            comment: until_nul(&raw.comment).to_vec(),
            disk_size: raw.disk_size,
            block_size: raw.block_size.into(),
            block_extra: raw.block_extra.into(),
            blocks: raw.blocks,
            blocks_allocated: raw.blocks_allocated,
            offset_blocks: raw.offset_blocks.into(),
            offset_data: raw.offset_data.into(),
            uuid_create: raw.uuid_create,
            uuid_modify: raw.uuid_modify,
            uuid_linkage: some(raw.uuid_linkage),
            uuid_parent_modify: some(raw.uuid_parent_modify),
        };
        let bad = |field, problem| Header1::malformed(at, field, problem);
        if header.offset_blocks < header_end {
            return Err(bad(
                "offset_blocks",
                format!("is {}, inside of the header", header.offset_blocks),
            ));
        }
        if header.offset_data < header_end {
            return Err(bad(
                "offset_data",
                format!("is {}, inside of the header", header.offset_data),
            ));
        }
        if header.block_extra > header.block_size {
            return Err(bad(
                "block_extra",
                format!("is {}, more than a block", header.block_extra),
            ));
        }
        header.checked(bad)
    }

    /// Bytes of the block map.
    pub(super) fn map_len(&self) -> u64 {
        u64::from(self.blocks) * 4
    }

    /// Checks the fields that both versions have.
    fn checked(self, bad: impl Fn(&'static str, String) -> Error) -> Result<Self> {
        let block_size = self.block_size;
        if !block_size.is_power_of_two() || !(SECTOR..=MAX_BLOCK).contains(&block_size) {
            let problem = format!(
                "is {block_size}, and has to be a power of two from {SECTOR} to {MAX_BLOCK}"
            );
            return Err(bad("block_size", problem));
        }
        let needed = self.disk_size.div_ceil(block_size);
        if u64::from(self.blocks) < needed {
            let problem = format!(
                "is {}, and a disk of {} bytes needs {needed}",
                self.blocks, self.disk_size
            );
            return Err(bad("blocks", problem));
        }
        if self.kind.has_parent() && self.uuid_linkage.is_none() {
            let problem = format!("names no parent, and this is a {} image", self.kind.name());
            return Err(bad("uuid_linkage", problem));
        }
        Ok(self)
    }
}

fn unknown(number: u32) -> String {
    format!("is {number}, and only 1 to 4 are defined")
}

fn some(uuid: Uuid) -> Option<Uuid> {
    Some(uuid).filter(|uuid| !uuid.is_nil())
}
