//! Fixed structures of a new image: identifier, headers, region tables, metadata.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::formats::vhdx::bat::Geometry;
use crate::formats::vhdx::header::{
    FILE_SIGNATURE, FileIdentifier, HEADER_LEN, HEADER_SIGNATURE, HEADERS, Header, set_checksum,
};
use crate::formats::vhdx::locator::{self, ABSOLUTE, LINKAGE, ParentLocator, RELATIVE};
use crate::formats::vhdx::metadata::{
    FILE_PARAMETERS, FileFlags, FileParameters, ItemFlags, LOGICAL_SECTOR_SIZE, METADATA_SIGNATURE,
    METADATA_TABLE_LEN, MetadataTableEntry, MetadataTableHeader, PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE, SectorSize, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, VirtualDiskId,
    VirtualDiskSize,
};
use crate::formats::vhdx::region::{
    BAT, METADATA, REGION_SIGNATURE, REGION_TABLE_LEN, REGION_TABLES, Region, RegionTableEntry,
    RegionTableHeader,
};
use crate::image::Write;

use super::options::{Subformat, VhdxOptions};

/// Name of the writer.
const CREATOR: &str = "blockform";
/// Physical sector size, to which a guest aligns: that of today's disks.
const PHYSICAL_SECTOR: u32 = 4096;

/// The file type identifier and both headers.
pub(super) fn seal(
    log: Region,
    file_write_guid: Uuid,
    data_write_guid: Uuid,
) -> Result<Vec<Write>> {
    let mut creator = [0; 512];
    let text = CREATOR.encode_utf16().flat_map(u16::to_le_bytes);
    for (to, from) in creator.iter_mut().zip(text) {
        *to = from;
    }
    let identifier = FileIdentifier {
        signature: FILE_SIGNATURE,
        creator,
    };
    let log_length = u32::try_from(log.len).map_err(|_| Error::invalid("the log is too large"))?;
    let headers = HEADERS
        .into_iter()
        .zip(1..)
        .map(|(offset, sequence_number)| {
            let header = Header {
                signature: HEADER_SIGNATURE,
                checksum: 0,
                sequence_number,
                file_write_guid,
                data_write_guid,
                log_guid: Uuid::nil(),
                log_version: 0,
                version: 1,
                log_length,
                log_offset: log.offset,
            };
            Write::new(0, offset, with_checksum(&header.encode(), HEADER_LEN))
        });
    let first = Write::new(0, 0, identifier.encode().to_vec());
    Ok(std::iter::once(first).chain(headers).collect())
}

/// Both region tables.
pub(super) fn region_tables(bat: Region, metadata: Region) -> Result<Vec<Write>> {
    let mut table = RegionTableHeader {
        signature: REGION_SIGNATURE,
        checksum: 0,
        entry_count: 2,
    }
    .encode()
    .to_vec();
    for (guid, region) in [(BAT, bat), (METADATA, metadata)] {
        let length = u32::try_from(region.len)
            .map_err(|_| Error::invalid("the block allocation table is too large"))?;
        let entry = RegionTableEntry {
            guid,
            file_offset: region.offset,
            length,
            required: 1,
        };
        table.extend(entry.encode());
    }
    let table = with_checksum(&table, REGION_TABLE_LEN);
    Ok(REGION_TABLES
        .map(|offset| Write::new(0, offset, table.clone()))
        .into())
}

/// The metadata table and its items.
pub(super) fn metadata(
    options: &VhdxOptions,
    geometry: &Geometry,
    disk_id: Uuid,
) -> Result<Vec<u8>> {
    let mut flags = FileFlags::empty();
    flags.set(
        FileFlags::LEAVE_BLOCKS_ALLOCATED,
        options.subformat == Subformat::Fixed,
    );
    flags.set(FileFlags::HAS_PARENT, options.backing.is_some());
    let parameters = FileParameters {
        block_size: u32::try_from(geometry.block_size)
            .map_err(|_| Error::invalid("the block size is too large"))?,
        flags: flags.bits(),
    };
    let size = VirtualDiskSize {
        virtual_disk_size: geometry.virtual_size,
    };
    let id = VirtualDiskId {
        virtual_disk_id: disk_id,
    };
    let sector = |sector_size| SectorSize { sector_size }.encode().to_vec();
    let of_file = ItemFlags::IS_REQUIRED;
    let of_disk = ItemFlags::IS_REQUIRED | ItemFlags::IS_VIRTUAL_DISK;
    let mut items = vec![
        (FILE_PARAMETERS, of_file, parameters.encode().to_vec()),
        (VIRTUAL_DISK_SIZE, of_disk, size.encode().to_vec()),
        (VIRTUAL_DISK_ID, of_disk, id.encode().to_vec()),
        (
            LOGICAL_SECTOR_SIZE,
            of_disk,
            sector(options.logical_sector_size),
        ),
        (PHYSICAL_SECTOR_SIZE, of_disk, sector(PHYSICAL_SECTOR)),
    ];
    if let Some(backing) = &options.backing {
        let linkage = backing.ids.uuid.unwrap_or_default();
        let (key, value) = locator::as_value(&backing.name)?;
        let mut pairs = vec![
            (LINKAGE, linkage.braced().to_string()),
            (key, value.clone()),
        ];
        if key == RELATIVE {
            // libvhdi looks under this key only, for the last part of the name.
            pairs.push((ABSOLUTE, value));
        }
        items.push((PARENT_LOCATOR, of_file, ParentLocator::encode(&pairs)?));
    }
    let mut table = MetadataTableHeader {
        signature: METADATA_SIGNATURE,
        entry_count: u16::try_from(items.len()).unwrap_or(u16::MAX),
    }
    .encode()
    .to_vec();
    let mut values: Vec<u8> = Vec::new();
    let too_long = |_| Error::invalid("the metadata is too long");
    for (item_id, flags, value) in items {
        let entry = MetadataTableEntry {
            item_id,
            offset: u32::try_from(METADATA_TABLE_LEN + values.len()).map_err(too_long)?,
            length: u32::try_from(value.len()).map_err(too_long)?,
            flags: flags.bits(),
        };
        table.extend(entry.encode());
        values.extend(value);
    }
    table.resize(METADATA_TABLE_LEN, 0);
    table.extend(values);
    Ok(table)
}

/// A structure padded to its full length, with its checksum in place.
fn with_checksum(structure: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = structure.to_vec();
    bytes.resize(len, 0);
    set_checksum(&mut bytes);
    bytes
}
