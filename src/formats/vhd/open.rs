//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::Result;
use crate::image::{DiskImage, Image, ImageInfo, Parent, Request, Sealed, Value};
use crate::limits::Limits;
use crate::map::{Below, Mapped, Reason, Unreadable};
use crate::name::ImageName;
use crate::ondisk::on_disk;
use crate::source::{BlockSource, BlockSourceExt};
use crate::storage::{Concat, Slice};

use super::footer::{self, DiskType, Footer, Footers};
use super::header::{Header, Tables};
use super::map::{SectorBitmaps, VhdMap};
use super::{SECTOR, VHD, locator};

on_disk! {
    /// Xen's bitmap of full blocks (blktap, `include/libvhd.h`, `dd_batmap_hdr`).
    struct Batmap in VHD, "batmap", Big, 28 bytes {
        cookie: [u8; 8] = 0,
        batmap_offset: u64 = 8,
        batmap_size: u32 = 16,
        batmap_version: u32 = 20,
        checksum: u32 = 24,
    }
}

/// Opens the image in `source`.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub(super) fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
    let footers = match request.arriving {
        true => Footers::read_start(&source)?,
        false => Footers::read(&source)?,
    };
    let size = footers.footer.virtual_size();
    request.limits.check_virtual_size(size)?;
    let info = describe(&footers, size);
    if footers.kind == DiskType::Fixed {
        if size > footers.data_end && !request.salvages {
            return Err(Footer::malformed(
                footers.at,
                "current_size",
                cut_short(&footers, size),
            ));
        }
        let there = size.min(footers.data_end);
        let missing = Unreadable {
            size: size - there,
            reason: Reason::Missing(VHD, "disk", cut_short(&footers, size)),
        };
        let there = Slice::new(Arc::clone(&source), 0, there)?;
        let disk = Concat::new([Arc::new(there) as Arc<dyn BlockSource>, Arc::new(missing)])?;
        return Ok(Box::new(DiskImage::new(VHD, source, disk, info)));
    }
    open_sparse(source, request, &footers, size, info)
}

fn open_sparse(
    source: Arc<dyn BlockSource>,
    request: &Request<'_>,
    footers: &Footers,
    size: u64,
    mut info: ImageInfo,
) -> Result<Box<dyn Image>> {
    let limits = request.limits;
    // Blocks that a child lacks are its parent's, whose name is only in the header.
    let may_find = request.salvages && footers.kind == DiskType::Dynamic && !footers.damaged;
    let (tables, word) = match may_find {
        true => super::proof::read_or_find(&source, footers, size, request)?,
        false => (Tables::read(&source, footers, size, request)?, None),
    };
    info.warnings.extend(word.map(str::to_owned));
    let damaged = match (footers.damaged, tables.damaged) {
        (true, _) => Some(Sealed::Damaged("footer", footers.at)),
        (false, true) => Some(Sealed::Damaged("dynamic disk header", tables.at)),
        (false, false) => None,
    };
    describe_tables(&tables, footers.kind, &mut info);
    if let Some(Sealed::Damaged(what, _)) = damaged {
        info.corrupt = true;
        info.warnings.push(format!(
            "the checksum of the {what} is wrong: the disk cannot be read"
        ));
    }
    let mut references = Vec::new();
    let (mut parent, mut sectors) = (Parent::default(), None);
    if footers.kind == DiskType::Differencing {
        references = locator::references(&source, &tables.header, tables.at, limits)?;
        parent = match damaged {
            Some(_) => Parent::closed(&references),
            None => request.open_parent(&references, |found, _| {
                check_parent(found, &tables, &mut info)
            })?,
        };
        let full_blocks = read_batmap(&source, &footers.footer, &tables, limits)?;
        sectors = Some(SectorBitmaps {
            lsb_first: is_lsb_first(&footers.footer),
            full_blocks,
        });
    }
    let map = VhdMap::new(Arc::clone(&source), tables, size, footers.data_end, sectors);
    let disk = Mapped::new(map, Arc::clone(&source), Below::from(&parent), size);
    let image = DiskImage::new(VHD, source, disk, info).sealed(damaged);
    let image = image.with_references(references).with_backing(parent.image);
    Ok(Box::new(image))
}

fn cut_short(footers: &Footers, size: u64) -> String {
    format!(
        "is {size}, and the file has {} bytes of data: it was cut short",
        footers.data_end
    )
}

fn check_parent(parent: &dyn Image, tables: &Tables, info: &mut ImageInfo) -> Result<()> {
    let (header, at) = (&tables.header, tables.at);
    let ids = &parent.info().ids;
    match ids.uuid {
        Some(uuid) if uuid != header.parent_unique_id => {
            let problem = format!(
                "is {}, and the parent that was found is {uuid}",
                header.parent_unique_id
            );
            return Err(Header::malformed(at, "parent_unique_id", problem));
        }
        // Without a UUID the parent is read as raw, which is wrong for a VHD.
        None if header.parent_unique_id.is_nil() => {
            let mut start = [0; footer::COOKIE.len()];
            let n = parent.read_at(&mut start, 0)?;
            if n == start.len() && start == footer::COOKIE {
                let problem = "is all zeros, which means a raw parent, and the parent that was found is a VHD";
                return Err(Header::malformed(at, "parent_unique_id", problem));
            }
        }
        None => info
            .warnings
            .push("the parent has no UUID, so nothing tells that it is the right one".to_owned()),
        Some(_) => {}
    }
    if ids
        .timestamp
        .is_some_and(|time| time != header.parent_time_stamp)
    {
        info.warnings.push("the parent's time stamp is not the one that the image has of it: the parent may have been changed".to_owned());
    }
    Ok(())
}

fn is_tapdisk(footer: &Footer) -> bool {
    footer.creator_application == *b"tap\0"
}

/// Returns whether the bitmaps of the blocks begin with the least significant bits.
pub(super) fn is_lsb_first(footer: &Footer) -> bool {
    is_tapdisk(footer) && footer.creator_version == 1
}

/// Reads Xen's bitmap of full blocks, which stands where it puts it: behind the block allocation table.
pub(super) fn read_batmap(
    source: &dyn BlockSource,
    footer: &Footer,
    tables: &Tables,
    limits: &Limits,
) -> Result<Option<Vec<u8>>> {
    if !is_tapdisk(footer) || footer.creator_version <= 1 {
        return Ok(None);
    }
    let header = &tables.header;
    let at =
        (header.table_offset + u64::from(header.max_table_entries) * 4).next_multiple_of(SECTOR);
    let mut bytes = [0; Batmap::LEN];
    if source.read_at(&mut bytes, at)? < Batmap::LEN {
        return Ok(None);
    }
    let batmap = Batmap::parse(&bytes, at)?;
    if batmap.cookie != *b"tdbatmap" {
        return Ok(None);
    }
    let needed = (tables.bat.len() as u64).div_ceil(8);
    let len = u64::from(batmap.batmap_size) * SECTOR;
    let end = batmap.batmap_offset.checked_add(len);
    limits.check_metadata("the bitmap of full blocks", len)?;
    if len < needed || end.is_none_or(|end| end > source.size()) {
        return Err(Batmap::malformed(
            at,
            "batmap_size",
            "does not fit the block allocation table or the file",
        ));
    }
    let mut map = vec![0; usize::try_from(len).unwrap_or(0)];
    source.read_exact_at(&mut map, batmap.batmap_offset)?;
    // Version 1.1 summed the bytes up as signed ones.
    let signed = batmap.batmap_version == 0x0001_0001;
    let sum = map.iter().fold(0_u32, |sum, byte| {
        let borrowed = if signed && *byte >= 0x80 { 0x100 } else { 0 };
        sum.wrapping_add(u32::from(*byte)).wrapping_sub(borrowed)
    });
    if !sum != batmap.checksum {
        return Err(Batmap::malformed(
            at,
            "checksum",
            "does not fit the bitmap, which is damaged",
        ));
    }
    Ok(Some(map))
}

fn describe(footers: &Footers, size: u64) -> ImageInfo {
    let footer = &footers.footer;
    let geometry = footer.geometry();
    let mut info = ImageInfo {
        virtual_size: size,
        warnings: footers.warnings.clone(),
        ..ImageInfo::default()
    };
    info.ids.uuid = Some(footer.unique_id);
    info.ids.timestamp = Some(footer.time_stamp);
    if size != footer.current_size {
        info.warnings.push(format!(
            "the geometry has {size} bytes and the current size is {}; the geometry counts, as in all images of this creator",
            footer.current_size
        ));
    }
    if footer.saved_state != 0 {
        info.warnings
            .push("the image belongs to the saved state of a virtual machine".to_owned());
    }
    let mut details = Value::map();
    details.insert("subformat", footers.kind.name());
    details.insert("creator", ImageName::new(footer.creator_application));
    details.insert("creator-host-os", ImageName::new(footer.creator_host_os));
    details.insert("uuid", footer.unique_id.to_string());
    details.insert("current-size", footer.current_size);
    details.insert("original-size", footer.original_size);
    details.insert(
        "geometry",
        format!(
            "{}/{}/{}",
            geometry.cylinders, geometry.heads, geometry.sectors_per_track
        ),
    );
    details.insert("geometry-size", geometry.bytes());
    info.details = Some(details);
    info
}

fn describe_tables(tables: &Tables, kind: DiskType, info: &mut ImageInfo) {
    info.cluster_size = Some(tables.block_size);
    if let (Some(details), DiskType::Differencing) = (&mut info.details, kind) {
        details.insert("parent-uuid", tables.header.parent_unique_id.to_string());
    }
}
