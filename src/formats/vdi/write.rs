//! Laying a new image out: header, block map, and the blocks in the order of the disk.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::formats::identity::{Identity, derived};
use crate::image::{
    Backing, CreateOptions, Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape,
};
use crate::ondisk::TableEntry;

use super::header::{
    BlockEntry, Geometry, Header1, ImageType, MAX_BLOCK, PreHeader, SECTOR, SIGNATURE, VERSION,
};

const MIB: u64 = 1 << 20;
/// Bytes of a file system's block, nearly everywhere.
const PAGE: u64 = 4096;
/// Bytes of `VDIHEADER1PLUS`, which VirtualBox has written since version 2.
const HEADER_SIZE: u32 = 400;
/// Host offset of the block map.
const OFFSET_BLOCKS: u64 = 512;
/// The largest block map in bytes, which is also what a reader grants by default.
const MAX_MAP: u64 = 32 << 20;

/// The options of a new VDI. One with a backing file is a differencing image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VdiOptions {
    /// True to allocate every block: `static`, or `subformat` = `fixed` in place of `dynamic`.
    pub fixed: bool,
    /// Bytes of a block: `block_size`, a power of two from 4 KiB to 256 MiB. 1 MiB unless told
    /// otherwise, and QEMU reads no other.
    pub block_size: u64,
    /// The backing file.
    pub backing: Option<Backing>,
    identity: Identity,
}

impl Default for VdiOptions {
    fn default() -> Self {
        VdiOptions {
            fixed: false,
            block_size: MIB,
            backing: None,
            identity: Identity::Derived,
        }
    }
}

impl VdiOptions {
    /// Reads the options as people write them. Two of them have no field: `uuid` gives the UUID, and
    /// `fresh` = `on` makes all UUIDs new ones.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that a VDI does not have or that exclude each other.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        if create.compress {
            return Err(Error::invalid("a VDI cannot be compressed"));
        }
        let mut set = create.option_set("vdi");
        let is_static = set.switch("static")?;
        let subformat = set
            .word("subformat", &["dynamic", "fixed"])?
            .map(|word| word == 1);
        let options = VdiOptions {
            fixed: match (is_static, subformat) {
                (Some(a), Some(b)) if a != b => {
                    return Err(Error::invalid(
                        "options static and subformat contradict each other",
                    ));
                }
                (a, b) => a.or(b).unwrap_or(false),
            },
            block_size: set.size("block_size")?.unwrap_or(MIB),
            backing: create.backing.clone(),
            identity: Identity::parse(&mut set)?,
        };
        set.finish()?;
        Ok(options)
    }

    /// Returns a writer of an image of `virtual_size` bytes, rounded up to whole sectors.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the size does not fit, or the options do not fit each other.
    pub fn writer(self, virtual_size: u64) -> Result<Box<dyn ImageWriter>> {
        if !self.block_size.is_power_of_two() || !(PAGE..=MAX_BLOCK).contains(&self.block_size) {
            return Err(Error::invalid(
                "option block_size has to be a power of two from 4k to 256M",
            ));
        }
        let parent = match (&self.backing, self.fixed) {
            (Some(_), true) => {
                return Err(Error::invalid("a fixed VDI cannot have a backing file"));
            }
            (Some(backing), false) => Some(Parent::new(backing)?),
            (None, _) => None,
        };
        let size = virtual_size.checked_next_multiple_of(SECTOR);
        let blocks = size.map(|size| size.div_ceil(self.block_size));
        let (Some(size), Some(blocks)) = (size, blocks.filter(|blocks| *blocks * 4 <= MAX_MAP))
        else {
            return Err(Error::invalid(format!(
                "a disk of {virtual_size} bytes needs blocks of more than {} bytes",
                self.block_size
            )));
        };
        // VirtualBox starts the data at a whole block, which suits all that lies below the file, too.
        let offset_data = (OFFSET_BLOCKS + blocks * 4).next_multiple_of(MIB.min(self.block_size));
        let kind = match (&parent, self.fixed) {
            (Some(_), _) => ImageType::Differencing,
            (None, true) => ImageType::Fixed,
            (None, false) => ImageType::Dynamic,
        };
        let identity = |count: u64| if self.fixed { 0..count } else { 0..0 };
        let mut map: Vec<BlockEntry> = identity(blocks)
            .filter_map(|block| u32::try_from(block).ok().map(BlockEntry::from_raw))
            .collect();
        let allocated = u32::try_from(map.len()).unwrap_or(u32::MAX);
        map.resize(usize::try_from(blocks).unwrap_or(0), BlockEntry::FREE);
        Ok(Box::new(VdiWriter {
            kind,
            size,
            block_size: self.block_size,
            offset_data,
            map,
            allocated,
            identity: self.identity,
            parent,
        }))
    }
}

/// Identity of the parent in a differencing image.
#[derive(Debug)]
struct Parent {
    uuid: Uuid,
    modification_uuid: Uuid,
}

impl Parent {
    fn new(backing: &Backing) -> Result<Self> {
        match (backing.format.as_str(), backing.ids.uuid) {
            ("vdi", Some(uuid)) if !uuid.is_nil() => Ok(Parent {
                uuid,
                modification_uuid: backing.ids.modification_uuid.unwrap_or_default(),
            }),
            ("vdi", _) => Err(Error::invalid(
                "the UUID of the backing file is not known, and a differencing VDI has to repeat it",
            )),
            _ => Err(Error::invalid("the backing file of a VDI has to be a VDI")),
        }
    }
}

#[derive(Debug)]
struct VdiWriter {
    kind: ImageType,
    size: u64,
    block_size: u64,
    offset_data: u64,
    map: Vec<BlockEntry>,
    allocated: u32,
    identity: Identity,
    parent: Option<Parent>,
}

impl VdiWriter {
    /// Returns the host offset of the block of a guest offset, which it allocates if need be.
    fn block(&mut self, guest: u64, tables: &mut Vec<Write>) -> Result<u64> {
        let index = usize::try_from(guest / self.block_size).unwrap_or(usize::MAX);
        let Some(entry) = self.map.get_mut(index) else {
            return Err(Error::invalid(format!(
                "guest offset {guest} is outside of the disk"
            )));
        };
        let is_new = entry.number().is_none();
        if is_new {
            *entry = BlockEntry::from_raw(self.allocated);
            self.allocated += 1;
        }
        let host = self.offset_data + entry.number().unwrap_or(0) * self.block_size;
        if is_new {
            tables.push(Write::new(0, host, Payload::Zeroes(self.block_size)));
        }
        Ok(host)
    }

    fn check(&self, guest: u64, len: u64) -> Result<()> {
        let end = guest.checked_add(len).filter(|end| *end <= self.size);
        if end.is_none() || len == 0 || guest % self.unit() != 0 {
            return Err(Error::invalid(format!(
                "{len} bytes at {guest} are no run of the disk"
            )));
        }
        Ok(())
    }

    /// Bytes of the smallest piece of the disk that can be recorded on its own. Where a parent shows
    /// through, a block is the image's as a whole or not at all.
    fn unit(&self) -> u64 {
        if self.parent.is_some() {
            self.block_size
        } else {
            SECTOR
        }
    }

    fn place_verbatim(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        let host = self.block(guest, tables)?;
        let into = guest % self.block_size;
        Ok(Placed::new(0, host + into, len.min(self.block_size - into)))
    }

    fn place_zero(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        let taken = len.min(self.block_size - guest % self.block_size);
        let index = usize::try_from(guest / self.block_size).unwrap_or(usize::MAX);
        let whole = taken == self.block_size || guest + taken == self.size;
        match (self.kind, self.map.get_mut(index)) {
            (ImageType::Fixed, _) => {
                let placed = self.place_verbatim(guest, len, tables)?;
                tables.push(Write::new(0, placed.host, Payload::Zeroes(taken)));
            }
            (ImageType::Differencing, Some(entry)) if whole && *entry == BlockEntry::FREE => {
                *entry = BlockEntry::ZERO
            }
            _ => {}
        }
        Ok(Placed::new(0, 0, taken))
    }

    fn header(&self, map: &[u8]) -> Vec<u8> {
        let mut file_info = [0; 64];
        let text = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
        if let Some(to) = file_info.get_mut(..text.len()) {
            to.copy_from_slice(text);
        }
        let pre = PreHeader {
            file_info,
            signature: SIGNATURE,
            version: VERSION,
        };
        let (linkage, parent_modify): (Uuid, Uuid) = self
            .parent
            .as_ref()
            .map_or_else(Default::default, |p| (p.uuid, p.modification_uuid));
        let numbers = [u64::from(self.kind.number()), self.size, self.block_size];
        let numbers: Vec<u8> = numbers.into_iter().flat_map(u64::to_be_bytes).collect();
        let uuid = self.identity.uuid(&[
            b"vdi",
            &numbers,
            &linkage.to_bytes_le(),
            &parent_modify.to_bytes_le(),
            map,
        ]);
        let header = Header1 {
            header_size: HEADER_SIZE,
            image_type: self.kind.number(),
            image_flags: 0,
            comment: [0; 256],
            // The option checks keep these far below 32 bits.
            offset_blocks: u32::try_from(OFFSET_BLOCKS).unwrap_or(u32::MAX),
            offset_data: u32::try_from(self.offset_data).unwrap_or(u32::MAX),
            legacy_sector_size: 512,
            dummy: 0,
            disk_size: self.size,
            block_size: u32::try_from(self.block_size).unwrap_or(u32::MAX),
            block_extra: 0,
            blocks: u32::try_from(self.map.len()).unwrap_or(u32::MAX),
            blocks_allocated: self.allocated,
            uuid_create: uuid,
            uuid_modify: derived(&[b"modification", uuid.as_bytes()]),
            uuid_linkage: linkage,
            uuid_parent_modify: parent_modify,
        };
        let geometry = Geometry {
            cylinders: 0,
            heads: 0,
            sectors: 0,
            sector_size: 512,
        };
        let (pre, header) = (pre.encode(), header.encode());
        let mut bytes = [pre.as_slice(), &header, &geometry.encode()].concat();
        bytes.resize(512, 0);
        bytes
    }
}

impl ImageWriter for VdiWriter {
    fn shape(&self) -> WriteShape {
        let unit = self.unit();
        let mut shape = WriteShape::new(self.size, unit);
        shape.zero_unit = unit.max(PAGE);
        // In a fixed image what the target held before would show through.
        shape.record_zeroes = self.kind != ImageType::Dynamic;
        // All its blocks are allocated from the start, in order.
        shape.settled = self.kind == ImageType::Fixed;
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        match run {
            WriteRun::Verbatim { guest, len } => {
                self.check(guest, len)?;
                self.place_verbatim(guest, len, tables)
            }
            WriteRun::Zero { guest, len } => {
                self.check(guest, len)?;
                self.place_zero(guest, len, tables)
            }
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                Err(Error::invalid("a VDI cannot be compressed"))
            }
        }
    }

    fn full_sizes(&self) -> Option<Vec<u64>> {
        Some(vec![
            self.offset_data + self.map.len() as u64 * self.block_size,
        ])
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        let map: Vec<u8> = self.map.iter().flat_map(|entry| entry.encode()).collect();
        let header = self.header(&map);
        let bytes = |offset, bytes| Write::new(0, offset, bytes);
        let end = self.offset_data + u64::from(self.allocated) * self.block_size;
        Ok(Finish::new(
            vec![bytes(OFFSET_BLOCKS, map)],
            vec![bytes(0, header)],
            vec![end],
        ))
    }
}
