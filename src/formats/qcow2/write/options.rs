//! The options of a new image, under the names that `qemu-img create -o` has for them.

use crate::error::{Error, Result};
use crate::formats::qcow2::entry::L2Layout;
use crate::formats::qcow2::header::{CompressionType, MAX_BACKING_NAME};
use crate::image::{Backing, CreateOptions, ImageWriter};
use crate::name::ImageName;

use super::Writer;

/// The largest L1 table that QEMU reads, in bytes.
pub(super) const MAX_L1: u64 = 32 << 20;

/// The version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Version 2, which QEMU before 1.1 reads: `compat` = `0.10` or `v2`.
    V2,
    /// Version 3: `compat` = `1.1` or `v3`.
    #[default]
    V3,
}

/// Part of a new image that is allocated before the guest writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preallocation {
    /// Nothing: what is zero is mapped nowhere.
    #[default]
    Off,
    /// Every guest cluster has its host cluster.
    Metadata,
    /// So it is, and the file system reserves the space.
    Falloc,
    /// So it is, and what has no data is written as zeros.
    Full,
}

/// The options of a new qcow2 image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Qcow2Options {
    /// `compat`.
    pub version: Version,
    /// `cluster_size` in bytes: a power of two from 512 to 2 MiB, and from 16 KiB with
    /// `extended_l2`. 64 KiB unless it is said.
    pub cluster_size: u64,
    /// `refcount_bits`: a power of two from 1 to 64. 16 unless it is said, and always in version 2.
    pub refcount_bits: u32,
    /// `extended_l2`: clusters have 32 subclusters each. Not in version 2.
    pub extended_l2: bool,
    /// `lazy_refcounts`: QEMU may write reference counts late. Not in version 2.
    pub lazy_refcounts: bool,
    /// True if clusters are compressed.
    pub compress: bool,
    /// `compression_type`: `zlib` or, not in version 2, `zstd`.
    pub compression_type: CompressionType,
    /// `compression_level`, this crate's own: 2 to 9 for `zlib` (4 unless it is said), 1 to 22 for
    /// `zstd` (3 unless it is said).
    pub compression_level: Option<u32>,
    /// `preallocation`.
    pub preallocation: Preallocation,
    /// `data_file`: the file that holds the guest's data in place of the image. Not in version 2.
    pub data_file: Option<ImageName>,
    /// `data_file_raw`: the data file read alone is the guest's disk, too.
    pub data_file_raw: bool,
    /// The image that shows through where the new one records nothing.
    pub backing: Option<Backing>,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Qcow2Options {
            version: Version::V3,
            cluster_size: 64 << 10,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            compress: false,
            compression_type: CompressionType::Zlib,
            compression_level: None,
            preallocation: Preallocation::Off,
            data_file: None,
            data_file_raw: false,
            backing: None,
        }
    }
}

impl Qcow2Options {
    /// Reads the options as people write them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that qcow2 does not have and for values that they cannot
    /// have. Which of them exclude each other is for [`writer`](Self::writer) to say.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        let mut set = create.option_set("qcow2");
        let mut options = Qcow2Options {
            compress: create.compress,
            backing: create.backing.clone(),
            ..Qcow2Options::default()
        };
        if let Some(place) = set.word("compat", &["1.1", "v3", "0.10", "v2"])? {
            options.version = if place < 2 { Version::V3 } else { Version::V2 };
        }
        if let Some(size) = set.size("cluster_size")? {
            options.cluster_size = size;
        }
        if let Some(bits) = set.size("refcount_bits")? {
            options.refcount_bits = u32::try_from(bits).unwrap_or(u32::MAX);
        }
        options.extended_l2 = set.switch("extended_l2")?.unwrap_or_default();
        options.lazy_refcounts = set.switch("lazy_refcounts")?.unwrap_or_default();
        if set.word("compression_type", &["zlib", "zstd"])? == Some(1) {
            options.compression_type = CompressionType::Zstd;
        }
        let level = set.size("compression_level")?;
        options.compression_level = level.map(|level| u32::try_from(level).unwrap_or(u32::MAX));
        let all = [
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
            Preallocation::Full,
        ];
        let chosen = set.word("preallocation", &["off", "metadata", "falloc", "full"])?;
        options.preallocation = chosen.and_then(|i| all.get(i).copied()).unwrap_or_default();
        options.data_file = set.text("data_file").map(ImageName::from);
        options.data_file_raw = set.switch("data_file_raw")?.unwrap_or_default();
        set.finish()?;
        Ok(options)
    }

    /// Returns a writer of an image of `virtual_size` bytes, rounded up to 512.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for values that are none, for options that exclude each other and for
    /// a disk that is too large for the cluster size; [`Error::Unsupported`] if clusters are to be
    /// compressed and this build cannot.
    pub fn writer(self, virtual_size: u64) -> Result<Box<dyn ImageWriter>> {
        self.check()?;
        let virtual_size = virtual_size
            .checked_next_multiple_of(512)
            .filter(|size| i64::try_from(*size).is_ok())
            .ok_or_else(|| Error::invalid("a qcow2 image has less than 8 EiB"))?;
        self.check_l1(virtual_size)?;
        Ok(Box::new(Writer::new(self, virtual_size)?))
    }

    /// Number of entries of the L1 table that maps a disk of `virtual_size` bytes: one at least, for
    /// QEMU wants a table.
    pub(super) fn l1_size(&self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.l2_layout().table_span()).max(1)
    }

    pub(super) fn l2_layout(&self) -> L2Layout {
        let version = match self.version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        L2Layout::new(
            self.cluster_size.trailing_zeros(),
            self.extended_l2,
            version,
        )
    }

    fn check_l1(&self, virtual_size: u64) -> Result<()> {
        let fits = |options: &Qcow2Options| options.l1_size(virtual_size) * 8 <= MAX_L1;
        if fits(self) {
            return Ok(());
        }
        let mut larger = self.clone();
        while larger.cluster_size < 2 << 20 && !fits(&larger) {
            larger.cluster_size *= 2;
        }
        let advice = if fits(&larger) {
            format!("take clusters of {} bytes or more", larger.cluster_size)
        } else {
            "no cluster size would do".to_owned()
        };
        Err(Error::invalid(format!(
            "a disk of {virtual_size} bytes is too large for clusters of {} bytes; {advice}",
            self.cluster_size
        )))
    }

    /// Refuses values and combinations that the format or QEMU does not have.
    fn check(&self) -> Result<()> {
        let size = self.cluster_size;
        let refuse = |problem: String| Err(Error::invalid(problem));
        if !size.is_power_of_two() || !(512..=2 << 20).contains(&size) {
            return refuse(format!(
                "option cluster_size is {size}, but has to be a power of two from 512 to 2M"
            ));
        }
        if self.extended_l2 && size < 16 << 10 {
            return refuse(format!(
                "option cluster_size is {size}, but has to be 16k at least with extended_l2=on"
            ));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return refuse(format!(
                "option refcount_bits is {}, but has to be a power of two from 1 to 64",
                self.refcount_bits
            ));
        }
        let is_zlib = self.compression_type == CompressionType::Zlib;
        let newer = [
            (self.refcount_bits != 16, "refcount_bits other than 16"),
            (self.extended_l2, "extended_l2"),
            (self.lazy_refcounts, "lazy_refcounts"),
            (self.data_file.is_some(), "data_file"),
            (!is_zlib, "compression_type other than zlib"),
        ];
        let newer = newer.iter().find(|(used, _)| *used);
        if let (Version::V2, Some((_, name))) = (self.version, newer) {
            return refuse(format!("option {name} needs compat=1.1"));
        }
        let preallocated = self.preallocation != Preallocation::Off;
        let (backing, data_file) = (self.backing.as_ref(), self.data_file.as_ref());
        let problems = [
            (
                self.data_file_raw && data_file.is_none(),
                "option data_file_raw needs data_file",
            ),
            (
                data_file.is_some_and(ImageName::is_empty),
                "the name of the data file is empty",
            ),
            (
                self.compress && data_file.is_some(),
                "compressed clusters cannot lie in a data file",
            ),
            (
                self.data_file_raw && backing.is_some(),
                "a backing file and data_file_raw=on exclude each other",
            ),
            (
                self.compress && preallocated,
                "compression and preallocation exclude each other",
            ),
            (
                backing.is_some() && preallocated && !self.extended_l2,
                "a backing file and preallocation go together only with extended_l2=on: without, \
                 nothing of the backing file would show through",
            ),
            (
                backing.is_some_and(|backing| backing.name.is_empty()),
                "the name of the backing file is empty",
            ),
            (
                backing.is_some_and(|b| b.name.as_bytes().len() > MAX_BACKING_NAME as usize),
                "the name of the backing file is longer than 1,023 bytes",
            ),
        ];
        match problems.into_iter().find(|(applies, _)| *applies) {
            Some((_, problem)) => Err(Error::invalid(problem)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::parse_options;

    fn refusal(options: &str, compress: bool, size: u64) -> String {
        let mut create = CreateOptions::new(size);
        create.compress = compress;
        create.options = parse_options(options).unwrap();
        let writer = Qcow2Options::parse(&create).and_then(|o| o.writer(size));
        writer.err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        for (options, compress, words) in [
            ("cluster_size=768", false, "power of two"),
            ("cluster_size=4M", false, "power of two"),
            ("cluster_size=8k,extended_l2=on", false, "16k"),
            ("refcount_bits=3", false, "power of two"),
            ("refcount_bits=0", false, "power of two"),
            ("refcount_bits=128", false, "power of two"),
            ("compat=0.10,refcount_bits=8", false, "compat=1.1"),
            ("compat=v2,extended_l2=on", false, "compat=1.1"),
            ("compat=v2,lazy_refcounts=on", false, "compat=1.1"),
            ("compat=v2,data_file=x", false, "compat=1.1"),
            ("compat=v2,compression_type=zstd", true, "compat=1.1"),
            ("preallocation=metadata", true, "exclude"),
            ("data_file=x", true, "data file"),
            ("data_file_raw=on", false, "needs data_file"),
            ("data_file=", false, "empty"),
            ("compression_level=1", true, "2 to 9"),
            ("compression_level=10", true, "2 to 9"),
            (
                "compression_type=zstd,compression_level=23",
                true,
                "1 to 22",
            ),
            ("encryption=on", false, "no option \"encryption\""),
        ] {
            let message = refusal(options, compress, 1 << 20);
            assert!(message.contains(words), "{options}: {message:?}");
        }
        for options in [
            "compat=v2",
            "compat=0.10,refcount_bits=16",
            "lazy_refcounts=on",
        ] {
            assert_eq!(refusal(options, false, 1 << 20), "");
        }
    }

    #[test]
    fn a_disk_that_is_too_large_says_which_clusters_would_do() {
        assert_eq!(refusal("cluster_size=512", false, 128 << 30), "");
        let message = refusal("cluster_size=512", false, (128 << 30) + 1);
        assert!(
            message.contains("clusters of 1024 bytes or more"),
            "{message}"
        );
        let message = refusal("", false, u64::MAX >> 1);
        assert!(message.contains("8 EiB"), "{message}");
        let message = refusal("", false, 7 << 60);
        assert!(message.contains("no cluster size"), "{message}");
    }

    #[test]
    fn a_backing_file_and_preallocation_need_subclusters() {
        let mut options = Qcow2Options {
            preallocation: Preallocation::Metadata,
            backing: Some(Backing::new(ImageName::from("base"), "raw")),
            ..Qcow2Options::default()
        };
        assert!(options.clone().writer(0).is_err());
        options.extended_l2 = true;
        assert!(options.clone().writer(0).is_ok());
        options.data_file = Some(ImageName::from("data"));
        assert!(options.clone().writer(0).is_ok());
        options.data_file_raw = true;
        assert!(options.writer(0).is_err());
    }
}
