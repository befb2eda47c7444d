//! The format extension (section "Format Extension"): a cluster of features, with a checksum.

use md5::{Digest, Md5};

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::BitmapInfo;
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::{Order, Reader, on_disk, values};
use crate::source::{BlockSource, BlockSourceExt};

use super::PARALLELS;
use super::header::{Header, RawHeader, SECTOR};

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
const END_OF_FEATURES: u64 = 0;
const DIRTY_BITMAP: u64 = 0x2038_5fae_252c_b34a;

on_disk! {
    /// Header of the cluster.
    struct ExtensionHeader in PARALLELS, "format extension", Little, 24 bytes {
        magic: u64 = 0,
        check_sum: [u8; 16] = 8,
    }
}

on_disk! {
    /// Header of each feature.
    struct FeatureHeader in PARALLELS, "format extension feature", Little, 24 bytes {
        magic: u64 = 0,
        flags: u64 = 8,
        data_size: u32 = 16,
        unused32: u32 = 20,
    }
}

on_disk! {
    /// Section "Dirty bitmaps feature".
    struct DirtyBitmap in PARALLELS, "dirty bitmap", Little, 32 bytes {
        size: u64 = 0,
        id: [u8; 16] = 8,
        granularity: u32 = 24,
        l1_size: u32 = 28,
    }
}

/// The content of the extension.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) bitmaps: Vec<BitmapInfo>,
    /// Clusters that are its own, in the unit of the BAT.
    pub(super) clusters: Vec<u32>,
    pub(super) warnings: Vec<String>,
}

impl Extension {
    /// Reads and checks the extension, if there is one.
    pub(super) fn read(header: &Header, file: &dyn BlockSource, limits: &Limits) -> Result<Self> {
        let Some(start) = header.extension else {
            return Ok(Extension::default());
        };
        let len = header.cluster_size();
        let end = start.checked_add(len).filter(|end| *end <= file.size());
        if end.is_none() || start < header.data_start {
            let problem = format!("the extension at byte {start} is not in the data area");
            return Err(RawHeader::malformed(0, "ext_off", problem));
        }
        limits.check_metadata("the format extension", len)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut bytes, start)?;
        let head = ExtensionHeader::parse(&bytes, start)?;
        if head.magic != MAGIC {
            let problem = format!("is {:#x}", head.magic);
            return Err(ExtensionHeader::malformed(start, "magic", problem));
        }
        let features = bytes.get(ExtensionHeader::LEN..).unwrap_or_default();
        if Md5::digest(features).as_slice() != head.check_sum {
            let problem = "is not that of the cluster";
            return Err(ExtensionHeader::malformed(start, "check_sum", problem));
        }
        let mut extension = Extension::default();
        extension.own(header, start);
        extension.read_features(header, features, start + ExtensionHeader::LEN as u64)?;
        Ok(extension)
    }

    /// Notes a cluster that is not the guest's. One that no entry could name is none to note.
    fn own(&mut self, header: &Header, at: u64) {
        let unit = u64::from(header.multiplier) * SECTOR;
        if let Ok(number) = u32::try_from(at / unit) {
            self.clusters.push(number);
        }
    }

    fn read_features(&mut self, header: &Header, features: &[u8], start: u64) -> Result<()> {
        let mut reader = Reader::new(features, start, PARALLELS, "format extension");
        loop {
            let at = reader.position();
            let head = reader.take(FeatureHeader::LEN as u64, "feature")?;
            let head = FeatureHeader::parse(head, at)?;
            if head.magic == END_OF_FEATURES {
                return Ok(());
            }
            let at = reader.position();
            let data = reader.take(head.data_size.into(), "data")?;
            if head.magic == DIRTY_BITMAP {
                self.read_bitmap(header, data, at)?;
            } else {
                // Even a feature that is NECESSARY only keeps the image from being changed.
                let text = format!(
                    "the format extension has a feature {:#x} that is not known",
                    head.magic
                );
                self.warnings.push(text);
            }
            // The extension's start is a multiple of 8, as is the length of what stands there.
            reader.align(start, 8);
        }
    }

    fn read_bitmap(&mut self, header: &Header, data: &[u8], at: u64) -> Result<()> {
        let bitmap = DirtyBitmap::parse(data, at)?;
        let table = data.get(DirtyBitmap::LEN..).unwrap_or_default();
        if !bitmap.granularity.is_power_of_two() {
            let problem = format!("is {}, no power of two", bitmap.granularity);
            return Err(DirtyBitmap::malformed(at, "granularity", problem));
        }
        if u64::from(bitmap.l1_size) * 8 > table.len() as u64 {
            let problem = format!("is {}, more than there are entries", bitmap.l1_size);
            return Err(DirtyBitmap::malformed(at, "l1_size", problem));
        }
        let entries = values::<u64>(table, Order::Little);
        for sector in entries.take(bitmap.l1_size as usize) {
            // 0 and 1 stand for clusters of zeros and of ones.
            if sector > 1 {
                let offset = sector.checked_mul(SECTOR).ok_or_else(|| {
                    let problem = format!("an entry is {sector}");
                    Error::malformed(PARALLELS, "dirty bitmap", at, problem)
                })?;
                self.own(header, offset);
            }
        }
        let name = ImageName::from(Uuid::from_bytes(bitmap.id).to_string().as_str());
        let granularity = u64::from(bitmap.granularity) * SECTOR;
        self.bitmaps.push(BitmapInfo::new(name, granularity));
        Ok(())
    }
}
