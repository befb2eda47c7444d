//! The options of a new image, under the names that `qemu-img create -o` has for them.

use std::hash::{BuildHasher, Hasher, RandomState};

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::formats::vhdx::VHDX;
use crate::formats::vhdx::bat::Geometry;
use crate::formats::vhdx::header::MIB;
use crate::formats::vhdx::locator;
use crate::formats::vhdx::metadata::MAX_DISK;
use crate::image::{Backing, CreateOptions, ImageWriter};

use super::Writer;

/// The largest block, in bytes.
const MAX_BLOCK: u64 = 256 << 20;

/// Allocation of the blocks of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Subformat {
    /// As they are needed.
    #[default]
    Dynamic,
    /// All of them, in order.
    Fixed,
    /// Those that differ from the parent's.
    Differencing,
}

impl Subformat {
    /// The name of the option's value.
    pub fn name(self) -> &'static str {
        match self {
            Subformat::Dynamic => "dynamic",
            Subformat::Fixed => "fixed",
            Subformat::Differencing => "differencing",
        }
    }
}

/// Source of the GUIDs of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guids {
    /// From the options and from which parts of the disk are recorded: the same input gives the same
    /// bytes.
    #[default]
    Derived,
    /// From chance: no two images have the same.
    Fresh,
    /// From this GUID, as its bytes stand in the image: it is the disk's id, and the others come from it.
    Given(Uuid),
}

/// The options of a new VHDX image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VhdxOptions {
    /// `subformat` = `dynamic`, `fixed` or `differencing`, which is the default with a backing file.
    pub subformat: Subformat,
    /// `block_size`: bytes of a block, a power of two from 1 to 256 MiB; 0 chooses by the disk's size as
    /// QEMU does, 8 to 64 MiB.
    pub block_size: u64,
    /// `log_size`: bytes of the log, a multiple of 1 MiB.
    pub log_size: u32,
    /// `logical_sector_size`: 512 or 4096 bytes; the parent's unless given.
    pub logical_sector_size: u32,
    /// `block_state_zero`: whether absent blocks are marked as zeros, as QEMU does, or as not present, as
    /// Hyper-V does. A block of zeros that hides its parent's is marked in either case.
    pub block_state_zero: bool,
    /// `guid` = `derived`, `fresh` or a GUID.
    pub guids: Guids,
    /// The parent, which has to be a VHDX image.
    pub backing: Option<Backing>,
}

impl Default for VhdxOptions {
    fn default() -> Self {
        VhdxOptions {
            subformat: Subformat::default(),
            block_size: 0,
            log_size: 1 << 20,
            logical_sector_size: 512,
            block_state_zero: false,
            guids: Guids::default(),
            backing: None,
        }
    }
}

impl VhdxOptions {
    /// Reads the options as people write them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that VHDX does not have, and for values that an option cannot
    /// have.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        if create.compress {
            return Err(Error::invalid("a VHDX image cannot be compressed"));
        }
        let mut set = create.option_set("vhdx");
        let mut options = VhdxOptions {
            backing: create.backing.clone(),
            ..VhdxOptions::default()
        };
        let all = [
            Subformat::Dynamic,
            Subformat::Fixed,
            Subformat::Differencing,
        ];
        let chosen = set.word("subformat", &all.map(Subformat::name))?;
        let default = match options.backing {
            Some(_) => Subformat::Differencing,
            None => Subformat::Dynamic,
        };
        options.subformat = chosen.and_then(|i| all.get(i).copied()).unwrap_or(default);
        options.block_size = set.size("block_size")?.unwrap_or(0);
        if let Some(size) = set.size("log_size")? {
            options.log_size = u32::try_from(size)
                .map_err(|_| Error::invalid("option log_size has to be below 4 GiB"))?;
        }
        let parents = options
            .backing
            .as_ref()
            .and_then(|b| b.ids.logical_sector_size);
        let size = set.size("logical_sector_size")?;
        let size = size.map(u32::try_from).transpose().unwrap_or(Some(0));
        options.logical_sector_size = size.or(parents).unwrap_or(512);
        options.block_state_zero = set.switch("block_state_zero")?.unwrap_or(false);
        options.guids = match set.text("guid") {
            None | Some("derived") => Guids::Derived,
            Some("fresh") => Guids::Fresh,
            Some(text) => match Uuid::try_parse(text) {
                Ok(guid) => Guids::Given(guid),
                Err(_) => {
                    return Err(Error::invalid(
                        "option guid has to be derived, fresh or a GUID such as \
                         2dc27766-f623-4200-9d64-115e9bfd4a08",
                    ));
                }
            },
        };
        set.finish()?;
        Ok(options)
    }

    /// Returns a writer of an image of `virtual_size` bytes. A size that is not a multiple of the sector size
    /// is rounded up.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that exclude each other, and for a disk of more than 64 TiB.
    pub fn writer(mut self, virtual_size: u64) -> Result<Box<dyn ImageWriter>> {
        if !matches!(self.logical_sector_size, 512 | 4096) {
            return refuse("option logical_sector_size has to be 512 or 4096");
        }
        let size = virtual_size.checked_next_multiple_of(u64::from(self.logical_sector_size));
        let Some(size) = size.filter(|size| *size <= MAX_DISK) else {
            return Err(Error::invalid(format!(
                "a disk of {virtual_size} bytes is too large: a VHDX image holds 64 TiB at most"
            )));
        };
        if self.block_size == 0 {
            self.block_size = default_block_size(size);
        }
        if !self.block_size.is_power_of_two() || !(MIB..=MAX_BLOCK).contains(&self.block_size) {
            return refuse("option block_size has to be a power of two from 1M to 256M");
        }
        if self.log_size == 0 || u64::from(self.log_size) % MIB != 0 {
            return refuse("option log_size has to be a multiple of 1M");
        }
        match (self.subformat, &self.backing) {
            (Subformat::Differencing, None) => {
                return refuse("subformat=differencing needs a backing file");
            }
            (Subformat::Dynamic | Subformat::Fixed, Some(_)) => {
                return refuse("an image with a backing file has subformat=differencing");
            }
            (_, Some(backing)) => self.check_backing(backing)?,
            (_, None) => {}
        }
        let geometry = Geometry {
            virtual_size: size,
            block_size: self.block_size,
            sector_size: u64::from(self.logical_sector_size),
            has_parent: self.backing.is_some(),
        };
        Ok(Box::new(Writer::new(self, geometry)?))
    }

    fn check_backing(&self, backing: &Backing) -> Result<()> {
        if backing.format != VHDX.as_str() || backing.ids.uuid.is_none() {
            return refuse("the backing file of a VHDX image has to be a VHDX image");
        }
        let theirs = backing.ids.logical_sector_size;
        if theirs.is_some_and(|size| size != self.logical_sector_size) {
            return refuse("option logical_sector_size has to be that of the backing file");
        }
        locator::as_value(&backing.name).map(drop)
    }

    /// Seed of the GUIDs.
    pub(super) fn seed(&self, geometry: &Geometry) -> Vec<u8> {
        match self.guids {
            Guids::Given(guid) => guid.to_bytes_le().to_vec(),
            Guids::Fresh => {
                // Every hasher has its own keys, which come from the system's randomness.
                let random = || RandomState::new().build_hasher().finish();
                [random(), random(), random(), random()]
                    .into_iter()
                    .flat_map(u64::to_le_bytes)
                    .collect()
            }
            Guids::Derived => {
                let parent = self.backing.as_ref();
                let text = format!(
                    "{} {} {} {} {} {} {:?} {:?}",
                    geometry.virtual_size,
                    self.subformat.name(),
                    self.block_size,
                    self.log_size,
                    self.logical_sector_size,
                    self.block_state_zero,
                    parent.map(|backing| &backing.name),
                    parent.map(|backing| backing.ids.uuid.map(|uuid| uuid.to_bytes_le())),
                );
                text.into_bytes()
            }
        }
    }
}

/// The block size that QEMU chooses, in bytes.
fn default_block_size(virtual_size: u64) -> u64 {
    let mebibytes = match virtual_size {
        size if size > 32 << 40 => 64,
        size if size > 100 << 30 => 32,
        size if size > 1 << 30 => 16,
        _ => 8,
    };
    mebibytes * MIB
}

fn refuse<T>(problem: &'static str) -> Result<T> {
    Err(Error::invalid(problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageIds, parse_options};
    use crate::name::ImageName;

    fn refusal(options: &str, size: u64, backing: Option<Backing>) -> String {
        let mut create = CreateOptions::new(size);
        create.backing = backing;
        create.options = parse_options(options).unwrap();
        let writer = VhdxOptions::parse(&create).and_then(|o| o.writer(size));
        writer.err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn options_that_cannot_be_are_refused() {
        for (options, words) in [
            ("block_size=512k", "power of two"),
            ("block_size=3M", "power of two"),
            ("block_size=512M", "power of two"),
            ("log_size=0", "multiple of 1M"),
            ("log_size=1536k", "multiple of 1M"),
            ("log_size=4G", "below 4 GiB"),
            ("logical_sector_size=1024", "512 or 4096"),
            ("logical_sector_size=8G", "512 or 4096"),
            ("subformat=sparse", "dynamic, fixed, differencing"),
            ("subformat=differencing", "needs a backing file"),
            ("guid=1", "fresh or a GUID"),
            ("cluster_size=64k", "no option \"cluster_size\""),
        ] {
            let message = refusal(options, 1 << 20, None);
            assert!(message.contains(words), "{options}: {message:?}");
        }
        assert_eq!(refusal("", 64 << 40, None), "");
        assert!(refusal("", (64 << 40) + 1, None).contains("64 TiB"));
        assert!(refusal("", u64::MAX, None).contains("64 TiB"));
        let fine = "block_size=0,log_size=2M,logical_sector_size=4k,block_state_zero=on,guid=fresh";
        assert_eq!(refusal(fine, 1 << 20, None), "");
    }

    #[test]
    fn a_parent_is_a_vhdx_image_with_the_same_sectors() {
        let mut backing = Backing::new(ImageName::from("base"), "raw");
        let message =
            |options: &str, backing: &Backing| refusal(options, 1 << 20, Some(backing.clone()));
        assert!(message("", &backing).contains("has to be a VHDX image"));
        backing.format = "vhdx".to_owned();
        assert!(message("", &backing).contains("has to be a VHDX image"));
        backing.ids = ImageIds {
            uuid: Some(Uuid::from_u128(1)),
            logical_sector_size: Some(4096),
            ..ImageIds::default()
        };
        assert_eq!(message("", &backing), "");
        assert!(message("logical_sector_size=512", &backing).contains("of the backing file"));
        assert!(message("subformat=fixed", &backing).contains("differencing"));
        backing.name = ImageName::from(r"a\b");
        assert!(cfg!(windows) || message("", &backing).contains("backslash"));
    }

    #[test]
    fn block_sizes_are_those_of_qemu() {
        for (size, mebibytes) in [
            (0, 8),
            (1 << 30, 8),
            ((1 << 30) + 1, 16),
            ((100 << 30) + 1, 32),
            ((32 << 40) + 1, 64),
        ] {
            assert_eq!(default_block_size(size), mebibytes << 20);
        }
    }
}
