//! The metadata region: a table of items, and the items that every image has (MS-VHDX 2.6).

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::ondisk::on_disk;
use crate::source::BlockSource;

use super::VHDX;
use super::header::read;
use super::region::Region;

/// Bytes of the metadata table; the items come after it.
pub(super) const METADATA_TABLE_LEN: usize = 64 << 10;
/// `metadata`.
pub(super) const METADATA_SIGNATURE: [u8; 8] = *b"metadata";
/// The most entries in the table, and of these the most that are the user's.
const MAX_ENTRIES: u16 = 2047;
const MAX_USER_ENTRIES: usize = 1024;
/// The most bytes of one item, and of all items.
const MAX_ITEM: u64 = 1 << 20;
/// The largest disk, in bytes.
pub(super) const MAX_DISK: u64 = 64 << 40;

/// Block size, and whether there is a parent.
pub(super) const FILE_PARAMETERS: Uuid = Uuid::from_u128(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
/// Size of the disk in bytes.
pub(super) const VIRTUAL_DISK_SIZE: Uuid =
    Uuid::from_u128(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
/// The identity that a guest sees.
pub(super) const VIRTUAL_DISK_ID: Uuid = Uuid::from_u128(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);
/// The sector size that a guest sees.
pub(super) const LOGICAL_SECTOR_SIZE: Uuid =
    Uuid::from_u128(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
/// The sector size that a guest is told to align to.
pub(super) const PHYSICAL_SECTOR_SIZE: Uuid =
    Uuid::from_u128(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
/// Locator of the parent.
pub(super) const PARENT_LOCATOR: Uuid = Uuid::from_u128(0xa8d3_5f2d_b30b_454d_abf7_d3d8_4834_ab0c);

on_disk! {
    /// The head of the metadata table.
    pub(super) struct MetadataTableHeader in VHDX, "metadata table", Little, 32 bytes {
        signature: [u8; 8] = 0,
        entry_count: u16 = 10,
    }
}

on_disk! {
    /// An entry of the metadata table.
    pub(super) struct MetadataTableEntry in VHDX, "metadata table entry", Little, 32 bytes {
        item_id: Uuid = 0,
        offset: u32 = 16,
        length: u32 = 20,
        flags: u32 = 24,
    }
}

on_disk! {
    /// The item of [`FILE_PARAMETERS`].
    pub(super) struct FileParameters in VHDX, "file parameters", Little, 8 bytes {
        block_size: u32 = 0,
        flags: u32 = 4,
    }
}

on_disk! {
    /// The item of [`VIRTUAL_DISK_SIZE`].
    pub(super) struct VirtualDiskSize in VHDX, "virtual disk size", Little, 8 bytes {
        virtual_disk_size: u64 = 0,
    }
}

on_disk! {
    /// The item of [`VIRTUAL_DISK_ID`].
    pub(super) struct VirtualDiskId in VHDX, "virtual disk id", Little, 16 bytes {
        virtual_disk_id: Uuid = 0,
    }
}

on_disk! {
    /// The items of [`LOGICAL_SECTOR_SIZE`] and [`PHYSICAL_SECTOR_SIZE`].
    pub(super) struct SectorSize in VHDX, "sector size", Little, 4 bytes {
        sector_size: u32 = 0,
    }
}

bitflags::bitflags! {
    /// Flags of an item in the metadata table.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct ItemFlags: u32 {
        /// It is the user's, not the system's.
        const IS_USER = 1;
        /// It is about the disk, not about the file.
        const IS_VIRTUAL_DISK = 2;
        /// A reader that does not know the item must not open the image.
        const IS_REQUIRED = 4;
    }
}

bitflags::bitflags! {
    /// The flags of the file parameters.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct FileFlags: u32 {
        /// Blocks keep their place: the image is fixed.
        const LEAVE_BLOCKS_ALLOCATED = 1;
        /// The image is a differencing one.
        const HAS_PARENT = 2;
    }
}

/// Content of the metadata region.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) block_size: u64,
    pub(super) flags: FileFlags,
    pub(super) virtual_disk_size: u64,
    pub(super) virtual_disk_id: Uuid,
    pub(super) logical_sector_size: u32,
    pub(super) physical_sector_size: u32,
    /// The parent locator and where it is in the file.
    pub(super) parent_locator: Option<(u64, Vec<u8>)>,
}

/// The entries of the table, checked against each other and against the region.
struct Table<'a> {
    source: &'a dyn BlockSource,
    region: Region,
    entries: Vec<(u64, MetadataTableEntry)>,
}

/// Reads the metadata region.
pub(super) fn read_metadata(source: &dyn BlockSource, region: Region) -> Result<Metadata> {
    let table = Table::read(source, region)?;
    table.check_known()?;
    table.metadata()
}

/// Usual places of the items behind the table: one order of QEMU and DiscUtils, one of Hyper-V.
const USUAL: [[(Uuid, u32, usize); 5]; 2] = [
    [
        (FILE_PARAMETERS, 0, FileParameters::LEN),
        (VIRTUAL_DISK_SIZE, 8, VirtualDiskSize::LEN),
        (VIRTUAL_DISK_ID, 16, VirtualDiskId::LEN),
        (LOGICAL_SECTOR_SIZE, 32, SectorSize::LEN),
        (PHYSICAL_SECTOR_SIZE, 36, SectorSize::LEN),
    ],
    [
        (FILE_PARAMETERS, 0, FileParameters::LEN),
        (VIRTUAL_DISK_SIZE, 8, VirtualDiskSize::LEN),
        (LOGICAL_SECTOR_SIZE, 16, SectorSize::LEN),
        (PHYSICAL_SECTOR_SIZE, 20, SectorSize::LEN),
        (VIRTUAL_DISK_ID, 24, VirtualDiskId::LEN),
    ],
];

/// The items of an image whose table is damaged, if all of them make sense in the places where writers put
/// them. Where a child has its parent's name, only the table tells.
///
/// # Errors
/// As reading.
pub(super) fn find_metadata(source: &dyn BlockSource, region: Region) -> Result<Option<Metadata>> {
    for usual in USUAL {
        let entries = usual.into_iter().filter_map(|(item_id, offset, length)| {
            let entry = MetadataTableEntry {
                item_id,
                offset: u32::try_from(METADATA_TABLE_LEN).ok()? + offset,
                length: u32::try_from(length).ok()?,
                flags: ItemFlags::IS_REQUIRED.bits(),
            };
            Some((region.offset, entry))
        });
        let table = Table {
            source,
            region,
            entries: entries.collect(),
        };
        match table.metadata() {
            Ok(found) if !found.flags.contains(FileFlags::HAS_PARENT) => return Ok(Some(found)),
            Err(error @ Error::Io { .. }) => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

fn sector_size(bytes: &[u8], at: u64) -> Result<u32> {
    match SectorSize::parse(bytes, at)?.sector_size {
        size @ (512 | 4096) => Ok(size),
        other => {
            let problem = format!("is {other}, and has to be 512 or 4096");
            Err(SectorSize::malformed(at, "sector_size", problem))
        }
    }
}

impl<'a> Table<'a> {
    fn read(source: &'a dyn BlockSource, region: Region) -> Result<Self> {
        let at = region.offset;
        let bytes = read(source, at, METADATA_TABLE_LEN, "metadata table")?;
        let head = MetadataTableHeader::parse(&bytes, at)?;
        if head.signature != METADATA_SIGNATURE {
            return Err(MetadataTableHeader::malformed(
                at,
                "signature",
                "is not metadata",
            ));
        }
        if head.entry_count > MAX_ENTRIES {
            let problem = format!("is {}, over the most, {MAX_ENTRIES}", head.entry_count);
            return Err(MetadataTableHeader::malformed(at, "entry_count", problem));
        }
        let entries = bytes.chunks_exact(MetadataTableEntry::LEN);
        let entries = entries.zip((at..).step_by(MetadataTableEntry::LEN));
        let entries = entries.skip(1).take(usize::from(head.entry_count));
        let entries = entries
            .map(|(entry, at)| Ok((at, MetadataTableEntry::parse(entry, at)?)))
            .collect::<Result<_>>()?;
        let table = Table {
            source,
            region,
            entries,
        };
        table.check_places()?;
        Ok(table)
    }

    /// The items that every image has.
    fn metadata(&self) -> Result<Metadata> {
        let (at, bytes) = self.required(FILE_PARAMETERS, "file parameters", FileParameters::LEN)?;
        let parameters = FileParameters::parse(&bytes, at)?;
        let block_size = u64::from(parameters.block_size);
        if !block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block_size) {
            let problem =
                format!("is {block_size}, and has to be a power of two from 1 to 256 MiB");
            return Err(FileParameters::malformed(at, "block_size", problem));
        }
        let Some(flags) = FileFlags::from_bits(parameters.flags) else {
            let problem = format!("is {:#x}: only bits 0 and 1 are known", parameters.flags);
            return Err(FileParameters::malformed(at, "flags", problem));
        };
        let (at, bytes) =
            self.required(LOGICAL_SECTOR_SIZE, "logical sector size", SectorSize::LEN)?;
        let logical_sector_size = sector_size(&bytes, at)?;
        let (at, bytes) = self.required(
            PHYSICAL_SECTOR_SIZE,
            "physical sector size",
            SectorSize::LEN,
        )?;
        let physical_sector_size = sector_size(&bytes, at)?;
        let (at, bytes) =
            self.required(VIRTUAL_DISK_SIZE, "virtual disk size", VirtualDiskSize::LEN)?;
        let size = VirtualDiskSize::parse(&bytes, at)?.virtual_disk_size;
        if size > MAX_DISK || size % u64::from(logical_sector_size) != 0 {
            let problem = format!(
                "is {size}, and has to be a multiple of {logical_sector_size} and 64 TiB at most"
            );
            return Err(VirtualDiskSize::malformed(at, "virtual_disk_size", problem));
        }
        let (at, bytes) = self.required(VIRTUAL_DISK_ID, "virtual disk id", VirtualDiskId::LEN)?;
        let virtual_disk_id = VirtualDiskId::parse(&bytes, at)?.virtual_disk_id;
        Ok(Metadata {
            block_size,
            flags,
            virtual_disk_size: size,
            virtual_disk_id,
            logical_sector_size,
            physical_sector_size,
            parent_locator: self.item(PARENT_LOCATOR)?,
        })
    }

    /// Every item has to lie in the region behind the table, apart from all others, and to be named once.
    fn check_places(&self) -> Result<()> {
        let mut places = Vec::new();
        let mut names = Vec::new();
        for (at, entry) in &self.entries {
            let (offset, len) = (u64::from(entry.offset), u64::from(entry.length));
            let bad =
                |field, problem: String| Err(MetadataTableEntry::malformed(*at, field, problem));
            let is_user = entry.flags & ItemFlags::IS_USER.bits();
            names.push((is_user, entry.item_id, *at));
            if len == 0 {
                if offset != 0 {
                    return bad("offset", format!("is {offset}, and the item is empty"));
                }
                continue;
            }
            if len > MAX_ITEM {
                return bad("length", format!("is {len}, over the most, 1 MiB"));
            }
            if offset < METADATA_TABLE_LEN as u64 || offset + len > self.region.len {
                let problem = format!("{offset}, and {len} bytes from there, is not in the region");
                return bad("offset", problem);
            }
            places.push((offset, len, *at));
        }
        places.sort_unstable();
        names.sort_unstable();
        let users = names.iter().filter(|(is_user, ..)| *is_user != 0).count();
        if users > MAX_USER_ENTRIES {
            let problem = format!("has {users} items of the user's, over the most, 1024");
            return Err(Error::malformed(
                VHDX,
                "metadata table",
                self.region.offset,
                problem,
            ));
        }
        for (first, second) in places.iter().zip(places.iter().skip(1)) {
            if first.0 + first.1 > second.0 {
                let problem = format!("{} is in another item", second.0);
                return Err(MetadataTableEntry::malformed(second.2, "offset", problem));
            }
        }
        for (first, second) in names.iter().zip(names.iter().skip(1)) {
            if (first.0, first.1) == (second.0, second.1) {
                let problem = format!("{} was there before", second.1);
                return Err(MetadataTableEntry::malformed(second.2, "item_id", problem));
            }
        }
        Ok(())
    }

    /// Refuses items that are required and not known, by their GUIDs.
    fn check_known(&self) -> Result<()> {
        const KNOWN: [Uuid; 6] = [
            FILE_PARAMETERS,
            VIRTUAL_DISK_SIZE,
            VIRTUAL_DISK_ID,
            LOGICAL_SECTOR_SIZE,
            PHYSICAL_SECTOR_SIZE,
            PARENT_LOCATOR,
        ];
        let unknown = self.entries.iter().find(|(_, entry)| {
            let flags = ItemFlags::from_bits_retain(entry.flags);
            let known = !flags.contains(ItemFlags::IS_USER) && KNOWN.contains(&entry.item_id);
            flags.contains(ItemFlags::IS_REQUIRED) && !known
        });
        match unknown {
            None => Ok(()),
            Some((_, entry)) => Err(Error::unsupported(
                VHDX,
                format!("the required metadata item {}", entry.item_id),
                None,
            )),
        }
    }

    /// A system item, and where it is in the file.
    fn item(&self, id: Uuid) -> Result<Option<(u64, Vec<u8>)>> {
        let found = self
            .entries
            .iter()
            .find(|(_, entry)| entry.item_id == id && entry.flags & ItemFlags::IS_USER.bits() == 0);
        let Some((_, entry)) = found else {
            return Ok(None);
        };
        let at = self.region.offset + u64::from(entry.offset);
        let len = usize::try_from(entry.length).unwrap_or(usize::MAX);
        Ok(Some((at, read(self.source, at, len, "metadata item")?)))
    }

    fn required(&self, id: Uuid, name: &str, len: usize) -> Result<(u64, Vec<u8>)> {
        let problem = match self.item(id)? {
            Some((at, bytes)) if bytes.len() >= len => return Ok((at, bytes)),
            Some((_, bytes)) => {
                format!("has {} bytes of {name}, and {len} are needed", bytes.len())
            }
            None => format!("has no {name}"),
        };
        Err(Error::malformed(
            VHDX,
            "metadata table",
            self.region.offset,
            problem,
        ))
    }
}
