//! The options of a new image, under the names that `qemu-img create -o` has for them, and more.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::formats::identity::Identity;
use crate::formats::vhd::SECTOR;
use crate::formats::vhd::footer::DiskType;
use crate::formats::vhd::geometry::Geometry;
use crate::formats::vhd::locator::ParentName;
use crate::image::{Backing, CreateOptions};

/// The largest disk in bytes, 2040 GiB: what the specification's 32-bit sector numbers leave, and what
/// QEMU and Windows take.
const MAX_SIZE: u64 = 0xff00_0000 * SECTOR;
/// The largest disk that is said to be uploaded to Azure, in bytes. No fixed disk needs a sector number.
const MAX_AZURE: u64 = 32 << 40;
/// The largest block allocation table in bytes, which is also what a reader grants by default.
pub(super) const MAX_TABLE: u64 = 32 << 20;
/// The sizes of blocks that are written: what the specification calls the default, and around it.
const BLOCKS: std::ops::RangeInclusive<u64> = 4096..=(256 << 20);
const MIB: u64 = 1 << 20;
/// Seconds from 1970 to 2000, where the format begins to count.
const EPOCH: u64 = 946_684_800;

/// Layout of the data of a new image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Subformat {
    /// In blocks that are allocated as needed: `dynamic`.
    #[default]
    Dynamic,
    /// As it is: `fixed`.
    Fixed,
}

/// The options of a new VHD. One with a backing file is a differencing disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VhdOptions {
    /// Layout of the data: `subformat` = `dynamic` or `fixed`.
    pub subformat: Subformat,
    /// True to keep the size to the sector: `force_size`. Otherwise it is rounded up to the size that a
    /// geometry holds, as QEMU does it, for readers that go by the geometry. A differencing disk keeps
    /// its size either way.
    pub force_size: bool,
    /// True for an image that Azure accepts: `azure`. It is fixed, keeps its size, which
    /// is rounded up to whole MiB, and its footer is the last of the file. Azure wants 20 MiB at least.
    pub azure: bool,
    /// Bytes of a block: `block_size`, a power of two from 4 KiB to 256 MiB. 2 MiB, unless told
    /// otherwise, and QEMU and Windows write no other.
    pub block_size: u64,
    /// Four characters that say what made the image: `creator`. Some readers go by it when they
    /// choose between the geometry and the size. Without it, it is what QEMU writes: `qemu`, or `qem2` where the
    /// size is kept; `win ` for Azure and for differencing disks.
    pub creator: Option<[u8; 4]>,
    /// When the image was made, in seconds since 2000: `timestamp`. 0 unless told otherwise, so that the
    /// same input gives the same bytes.
    pub timestamp: Option<u32>,
    /// The backing file.
    pub backing: Option<Backing>,
    identity: Identity,
}

impl Default for VhdOptions {
    fn default() -> Self {
        VhdOptions {
            subformat: Subformat::Dynamic,
            force_size: false,
            azure: false,
            block_size: 2 * MIB,
            creator: None,
            timestamp: None,
            backing: None,
            identity: Identity::Derived,
        }
    }
}

impl VhdOptions {
    /// Reads the options as people write them. Two of them have no field: `uuid` gives the UUID, and
    /// `fresh` = `on` makes UUID and time new ones.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that a VHD does not have or that exclude each other.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        if create.compress {
            return Err(Error::invalid("a VHD cannot be compressed"));
        }
        let mut set = create.option_set("vhd");
        let mut options = VhdOptions {
            backing: create.backing.clone(),
            ..VhdOptions::default()
        };
        options.azure = set.switch("azure")?.unwrap_or(false);
        options.subformat = match set.word("subformat", &["dynamic", "fixed"])? {
            Some(0) if options.azure => return Err(Error::invalid("Azure takes fixed disks only")),
            Some(1) => Subformat::Fixed,
            None if options.azure => Subformat::Fixed,
            _ => Subformat::Dynamic,
        };
        options.force_size = set.switch("force_size")?.unwrap_or(false);
        options.block_size = set.size("block_size")?.unwrap_or(options.block_size);
        options.creator = set.text("creator").map(creator).transpose()?;
        options.timestamp = set
            .text("timestamp")
            .map(|text| {
                text.parse().map_err(|_| {
                    Error::invalid("option timestamp has to be a number of seconds since 2000")
                })
            })
            .transpose()?;
        options.identity = Identity::parse(&mut set)?;
        set.finish()?;
        Ok(options)
    }

    pub(super) fn plan(&self, virtual_size: u64) -> Result<Plan> {
        if !self.block_size.is_power_of_two() || !BLOCKS.contains(&self.block_size) {
            return Err(Error::invalid(
                "option block_size has to be a power of two from 4k to 256M",
            ));
        }
        let fixed = self.subformat == Subformat::Fixed || self.azure;
        let kind = match (&self.backing, fixed) {
            (Some(_), true) => {
                return Err(Error::invalid("a fixed VHD cannot have a backing file"));
            }
            (Some(_), false) => DiskType::Differencing,
            (None, true) => DiskType::Fixed,
            (None, false) => DiskType::Dynamic,
        };
        let (unit, max) = if self.azure {
            (MIB, MAX_AZURE)
        } else {
            (SECTOR, MAX_SIZE)
        };
        let too_large = || {
            Error::invalid(format!(
                "a disk of {virtual_size} bytes is larger than the {max} that a VHD can have"
            ))
        };
        let size = virtual_size
            .checked_next_multiple_of(unit)
            .filter(|size| *size <= max)
            .ok_or_else(too_large)?;
        let keep = self.force_size || self.azure || self.backing.is_some();
        let creator = self.creator.unwrap_or(match (keep, self.force_size) {
            (false, _) => *b"qemu",
            (true, true) => *b"qem2",
            (true, false) => *b"win ",
        });
        let sectors = size / SECTOR;
        let (size, geometry) = if !keep {
            let geometry = Geometry::holding(sectors);
            // The largest geometry means that the size counts.
            (
                if geometry == Geometry::MAX {
                    size
                } else {
                    geometry.bytes()
                },
                geometry,
            )
        } else if creator == *b"qem2" {
            // Old versions of QEMU keep the size only with this geometry.
            (size, Geometry::MAX)
        } else {
            (size, Geometry::of(sectors))
        };
        if matches!(&creator, b"vpc " | b"qemu")
            && geometry != Geometry::MAX
            && geometry.bytes() < size
        {
            let name = String::from_utf8_lossy(&creator).into_owned();
            return Err(Error::invalid(format!(
                "with creator={name} readers cut the disk off at {} of {size} bytes; choose another one, or leave force_size out",
                geometry.bytes()
            )));
        }
        let time_stamp = match (self.timestamp, self.identity) {
            (Some(time), _) => time,
            (None, Identity::Fresh) => now(),
            (None, _) => 0,
        };
        Ok(Plan {
            kind,
            size,
            geometry,
            creator,
            time_stamp,
            identity: self.identity,
        })
    }
}

/// Plan of an image, from its options and its size.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) kind: DiskType,
    pub(super) size: u64,
    pub(super) geometry: Geometry,
    pub(super) creator: [u8; 4],
    pub(super) time_stamp: u32,
    identity: Identity,
}

impl Plan {
    /// The UUID of the image, whose layout and parent are `rest`.
    pub(super) fn unique_id(&self, rest: &[&[u8]]) -> Uuid {
        let numbers = [
            u64::from(self.kind.number()),
            self.size,
            self.geometry.sectors(),
            u64::from(self.time_stamp),
        ];
        let numbers: Vec<u8> = numbers.into_iter().flat_map(u64::to_be_bytes).collect();
        let mut parts: Vec<&[u8]> = vec![b"vhd", &numbers, &self.creator];
        parts.extend(rest);
        self.identity.uuid(&parts)
    }
}

/// Identity and name of the parent in a differencing disk.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) name: ParentName,
    pub(super) unique_id: Uuid,
    pub(super) time_stamp: u32,
}

impl Parent {
    pub(super) fn new(backing: &Backing) -> Result<Self> {
        let name = ParentName::new(backing)?;
        match (backing.format.as_str(), backing.ids.uuid) {
            // Xen's way, which has no words for it but a UUID that is none.
            ("raw", _) => Ok(Parent {
                name,
                unique_id: Uuid::nil(),
                time_stamp: 0,
            }),
            ("vhd" | "vpc", Some(unique_id)) if !unique_id.is_nil() => Ok(Parent {
                name,
                unique_id,
                time_stamp: backing.ids.timestamp.unwrap_or(0),
            }),
            ("vhd" | "vpc", _) => Err(Error::invalid(
                "the UUID of the backing file is not known, and a differencing VHD has to repeat it",
            )),
            _ => Err(Error::invalid(
                "the backing file of a VHD has to be a VHD, or raw",
            )),
        }
    }
}

fn creator(text: &str) -> Result<[u8; 4]> {
    let mut name = *b"    ";
    let fits = (1..=name.len()).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    match name.get_mut(..text.len()).filter(|_| fits) {
        Some(to) => to.copy_from_slice(text.as_bytes()),
        None => {
            return Err(Error::invalid(
                "option creator has to be one to four characters of ASCII",
            ));
        }
    }
    Ok(name)
}

/// The version that a creator is known to write.
pub(super) fn creator_version(creator: [u8; 4]) -> u32 {
    match &creator {
        b"win " => 0x000a_0000,
        b"qemu" | b"qem2" | b"vpc " => 0x0005_0003,
        _ => 0x0001_0000,
    }
}

fn now() -> u32 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    u32::try_from(since_1970.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::parse_options;
    use crate::name::ImageName;

    fn options(text: &str) -> Result<VhdOptions> {
        let mut create = CreateOptions::new(0);
        create.options = parse_options(text).unwrap();
        VhdOptions::parse(&create)
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for (text, size, words) in [
            ("subformat=fixed,azure=on,block_size=3M", 0, "power of two"),
            ("subformat=dynamic,azure=on", 0, "fixed disks only"),
            ("force_size,creator=vpc", 5 << 20, "cut the disk off"),
            ("creator=toolong", 0, "four characters"),
            ("creator=", 0, "four characters"),
            ("uuid=1", 0, "UUID"),
            ("uuid=00000000-0000-0000-0000-000000000000", 0, "all zeros"),
            (
                "uuid=00000000-0000-0000-0000-000000000001,fresh",
                0,
                "exclude",
            ),
            ("timestamp=now", 0, "seconds since 2000"),
            ("force_size", MAX_SIZE + 1, "larger than"),
            ("azure", MAX_AZURE + 1, "larger than"),
            ("block_size=4k", 1 << 40, "needs blocks of more"),
            ("speed=9", 0, "no option"),
        ] {
            let result = options(text).and_then(|options| options.writer(size));
            let message = result.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains(words), "{text}: {message:?}");
        }
    }

    #[test]
    fn sizes_are_rounded_as_asked() {
        for (text, size, rounded) in [
            ("", 33 << 20, 34_607_104),
            ("", 1, 34_816),
            ("", 0, 0),
            ("", 130 << 30, 130 << 30),
            ("force_size", 1, 512),
            ("force_size", 33 << 20, 33 << 20),
            ("azure", (33 << 20) + 1, 34 << 20),
            ("subformat=fixed", 8 << 20, 8_390_656),
        ] {
            let writer = options(text).unwrap().writer(size).unwrap();
            assert_eq!(writer.shape().virtual_size, rounded, "{text} {size}");
        }
    }

    #[test]
    fn a_parent_has_to_be_known() {
        let mut backing = Backing::new(ImageName::from("base.vhd"), "vpc");
        assert!(Parent::new(&backing).is_err());
        backing.ids.uuid = Some(Uuid::from_u128(7));
        assert_eq!(Parent::new(&backing).unwrap().unique_id, Uuid::from_u128(7));
        backing.format = "qcow2".to_owned();
        assert!(Parent::new(&backing).is_err());
        backing.format = "raw".to_owned();
        assert_eq!(Parent::new(&backing).unwrap().unique_id, Uuid::nil());
    }
}
