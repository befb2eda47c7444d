//! The bitmap directory (sections "Bitmaps extension" and "Bitmap directory").

use crate::error::{Error, Result};
use crate::image::{BitmapInfo, Value};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::{Reader, on_disk};
use crate::source::{BlockSource, BlockSourceExt};

use super::QCOW2;
use super::feature::Autoclear;
use super::header::{Header, extension};

on_disk! {
    /// Section "Bitmaps extension".
    struct BitmapsExtension in QCOW2, "bitmaps extension", Big, 24 bytes {
        nb_bitmaps: u32 = 0,
        bitmap_directory_size: u64 = 8,
        bitmap_directory_offset: u64 = 16,
    }
}

on_disk! {
    /// The fixed part of an entry of the bitmap directory.
    struct BitmapEntry in QCOW2, "bitmap directory", Big, 24 bytes {
        bitmap_table_offset: u64 = 0,
        bitmap_table_size: u32 = 8,
        flags: u32 = 12,
        bitmap_type: u8 = 16,
        granularity_bits: u8 = 17,
        name_size: u16 = 18,
        extra_data_size: u32 = 20,
    }
}

const FLAG_IN_USE: u32 = 1 << 0;
const FLAG_AUTO: u32 = 1 << 1;

/// Bytes that these bitmaps of a disk need in an image, if every bit of them is stored. Those that
/// cannot be trusted are not counted: they are not copied.
pub(super) fn size(bitmaps: &[BitmapInfo], virtual_size: u64, cluster_size: u64) -> u64 {
    let whole = |bytes: u64| bytes.saturating_add(cluster_size - 1) / cluster_size * cluster_size;
    let (mut total, mut directory) = (0_u64, 0_u64);
    for bitmap in bitmaps.iter().filter(|bitmap| !bitmap.in_use) {
        let bits = virtual_size.div_ceil(bitmap.granularity.max(1));
        let data = whole(bits.div_ceil(8));
        let table = whole(data / cluster_size * 8);
        total = total.saturating_add(data).saturating_add(table);
        let entry = BitmapEntry::LEN + bitmap.name.as_bytes().len();
        directory += entry.next_multiple_of(8) as u64;
    }
    total.saturating_add(whole(directory))
}

/// The directory as it stands in the file.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Host offset.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u64,
    pub(super) bitmaps: Vec<Bitmap>,
}

/// A bitmap, and where its table is.
#[derive(Debug)]
pub(super) struct Bitmap {
    pub(super) info: BitmapInfo,
    /// In bytes.
    pub(super) table_offset: u64,
    /// In entries of 8 bytes.
    pub(super) table_size: u32,
}

/// Lists the bitmaps. Without the autoclear bit, the image was changed by a writer that did not know
/// of them: then there are none.
pub(super) fn read_directory(
    header: &Header,
    file: &dyn BlockSource,
    limits: &Limits,
) -> Result<Directory> {
    let Some(data) = header.extension(extension::BITMAPS) else {
        return Ok(Directory::default());
    };
    if !header.autoclear.contains(Autoclear::BITMAPS) {
        return Ok(Directory::default());
    }
    let extension = BitmapsExtension::parse(data, 0)?;
    let (start, len) = (
        extension.bitmap_directory_offset,
        extension.bitmap_directory_size,
    );
    limits.check_metadata("the bitmap directory", len)?;
    let inside = start.checked_add(len).is_some_and(|end| end <= file.size());
    if !inside {
        let problem = format!("is {len} bytes long and reaches past the end of the file");
        return Err(Error::malformed(QCOW2, "bitmap directory", start, problem));
    }
    let mut directory = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut directory, start)?;
    let mut reader = Reader::new(&directory, start, QCOW2, "bitmap directory");
    let mut bitmaps = Vec::new();
    for _ in 0..extension.nb_bitmaps {
        bitmaps.push(read_entry(&mut reader)?);
        reader.align(start, 8);
    }
    Ok(Directory {
        offset: start,
        len,
        bitmaps,
    })
}

fn read_entry(reader: &mut Reader<'_>) -> Result<Bitmap> {
    let at = reader.position();
    let entry = BitmapEntry::parse(reader.take(BitmapEntry::LEN as u64, "entry")?, at)?;
    reader.take(entry.extra_data_size.into(), "extra data")?;
    let name = ImageName::from(reader.take(entry.name_size.into(), "name")?);
    if entry.granularity_bits > 63 {
        let problem = format!("is {}", entry.granularity_bits);
        return Err(BitmapEntry::malformed(at, "granularity_bits", problem));
    }
    let mut info = BitmapInfo::new(name, 1 << entry.granularity_bits);
    info.in_use = entry.flags & FLAG_IN_USE != 0;
    info.auto = entry.flags & FLAG_AUTO != 0;
    Ok(Bitmap {
        info,
        table_offset: entry.bitmap_table_offset,
        table_size: entry.bitmap_table_size,
    })
}

/// The bitmaps under the names of QEMU's `Qcow2BitmapInfo`.
pub(super) fn describe(bitmaps: &[BitmapInfo]) -> Value {
    let one = |bitmap: &BitmapInfo| {
        let flags = [("in-use", bitmap.in_use), ("auto", bitmap.auto)];
        let set = flags
            .iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| Value::from(*name));
        let mut map = Value::map();
        map.insert("flags", set.collect::<Vec<_>>());
        map.insert("name", bitmap.name.clone());
        map.insert("granularity", bitmap.granularity);
        map
    };
    Value::List(bitmaps.iter().map(one).collect())
}
