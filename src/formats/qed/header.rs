//! The header (section "Header" of the specification).

use bitflags::bitflags;

use crate::error::{Error, Result};
use crate::image::SafetyCheck;
use crate::name::ImageName;
use crate::ondisk::on_disk;
use crate::source::{BlockSource, BlockSourceExt};

use super::QED;

const MAGIC: u32 = u32::from_le_bytes(*b"QED\0");

/// Largest length of a backing file's name in bytes, as for all of QEMU's formats.
const MAX_BACKING_NAME: u32 = 1023;

on_disk! {
    /// Section "Header".
    pub(super) struct RawHeader in QED, "header", Little, 64 bytes {
        magic: u32 = 0,
        cluster_size: u32 = 4,
        table_size: u32 = 8,
        header_size: u32 = 12,
        features: u64 = 16,
        compat_features: u64 = 24,
        autoclear_features: u64 = 32,
        l1_table_offset: u64 = 40,
        image_size: u64 = 48,
        backing_filename_offset: u32 = 56,
        backing_filename_size: u32 = 60,
    }
}

bitflags! {
    /// Section "Feature bits": a reader has to know all of these that are set.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Features: u64 {
        /// There is a backing file.
        const BACKING_FILE = 1;
        /// The tables may be behind the data.
        const NEED_CHECK = 2;
        /// The backing file is raw.
        const BACKING_FORMAT_NO_PROBE = 4;
    }
}

/// The header, checked. Sizes and offsets are in bytes.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) image_size: u64,
    pub(super) cluster_size: u64,
    pub(super) table_size: u64,
    pub(super) header_size: u64,
    pub(super) features: Features,
    pub(super) l1_table_offset: u64,
    pub(super) backing_file: Option<ImageName>,
}

impl Header {
    /// Reads and checks the header of a file.
    pub(super) fn read(file: &dyn BlockSource) -> Result<Self> {
        let mut bytes = [0; RawHeader::LEN];
        let n = file.read_at(&mut bytes, 0)?;
        let raw = RawHeader::parse(bytes.get(..n).unwrap_or_default(), 0)?;
        let bad = |field, problem: String| Err(RawHeader::malformed(0, field, problem));
        if raw.magic != MAGIC {
            return bad("magic", "is not QED".to_owned());
        }
        let Some(features) = Features::from_bits(raw.features) else {
            let unknown = raw.features & !Features::all().bits();
            return Err(Error::unsupported(
                QED,
                format!("the feature of bit {}", unknown.trailing_zeros()),
                None,
            ));
        };
        let cluster_size = u64::from(raw.cluster_size);
        if !cluster_size.is_power_of_two() || !((1 << 12)..=(1 << 26)).contains(&cluster_size) {
            let problem =
                format!("is {cluster_size}, and has to be a power of two from 2^12 to 2^26");
            return bad("cluster_size", problem);
        }
        if !matches!(raw.table_size, 1 | 2 | 4 | 8 | 16) {
            let problem = format!("is {}, and has to be 1, 2, 4, 8 or 16", raw.table_size);
            return bad("table_size", problem);
        }
        let table_size = u64::from(raw.table_size) * cluster_size;
        let header_size = u64::from(raw.header_size) * cluster_size;
        if header_size == 0 {
            return bad("header_size", "is 0".to_owned());
        }
        let entries = u128::from(table_size / 8);
        let most = entries * entries * u128::from(cluster_size);
        if raw.image_size % 512 != 0 || u128::from(raw.image_size) > most {
            let problem = format!(
                "is {}, not a multiple of 512 or over the most for these tables, {most}",
                raw.image_size
            );
            return bad("image_size", problem);
        }
        if raw.l1_table_offset % cluster_size != 0 {
            let problem = format!("{} is not at the start of a cluster", raw.l1_table_offset);
            return bad("l1_table_offset", problem);
        }
        Ok(Header {
            image_size: raw.image_size,
            cluster_size,
            table_size,
            header_size,
            features,
            l1_table_offset: raw.l1_table_offset,
            backing_file: match features.contains(Features::BACKING_FILE) {
                true => Some(read_name(&raw, header_size, file)?),
                false => None,
            },
        })
    }
}

/// The checks of an image, from its fixed fields alone.
pub(super) fn safety(file: &dyn BlockSource) -> Result<Vec<SafetyCheck>> {
    let mut bytes = [0; RawHeader::LEN];
    let n = file.read_at(&mut bytes, 0)?;
    let raw = RawHeader::parse(bytes.get(..n).unwrap_or_default(), 0)?;
    let unknown = raw.features & !Features::all().bits();
    let unknown = (unknown != 0).then(|| format!("the feature bits are {:#x}", raw.features));
    let backing = raw.features & Features::BACKING_FILE.bits() != 0;
    let backing = backing.then(|| "there is a backing file".to_owned());
    let reason = "QED was given up by everybody who wrote it";
    Ok(vec![
        SafetyCheck::failed("banned", reason),
        SafetyCheck::unless("unknown_features", unknown),
        SafetyCheck::unless("backing_file", backing),
    ])
}

/// The name lies in the header's clusters, after the header.
fn read_name(raw: &RawHeader, header_size: u64, file: &dyn BlockSource) -> Result<ImageName> {
    let (offset, len) = (raw.backing_filename_offset, raw.backing_filename_size);
    if len == 0 || len > MAX_BACKING_NAME {
        let problem = format!("is {len}, and has to be 1 to {MAX_BACKING_NAME}");
        return Err(RawHeader::malformed(0, "backing_filename_size", problem));
    }
    let end = u64::from(offset) + u64::from(len);
    let inside = end <= header_size.min(file.size());
    if !inside || u64::from(offset) < RawHeader::LEN as u64 {
        let problem = format!("{offset} is not in the clusters of the header, or in its fields");
        return Err(RawHeader::malformed(0, "backing_filename_offset", problem));
    }
    let mut name = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut name, offset.into())?;
    Ok(ImageName::new(name))
}
