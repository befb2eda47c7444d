//! The verb *measure*: the size of an image before it is written.
//!
//! ```
//! use blockform::OpenOptions;
//! use blockform::measure::MeasureOptions;
//!
//! let image = OpenOptions::new().open_path("testdata/qcow2/good/plain.qcow2")?;
//! let measure = MeasureOptions::to("vmdk").of_image(&*image)?;
//! println!("{} bytes, and never more than {}", measure.required, measure.fully_allocated);
//! # Ok::<(), blockform::Error>(())
//! ```
//!
//! The writer of the format lays the image out over the extents of the source; nothing is read or written.
//! `required` is the size after a conversion if no stored range of the source is zero, and an upper bound
//! otherwise. For compressed data it is an upper bound, too. qemu-img counts the tables of the fully allocated
//! image in either case, so that its figure is larger for a sparse disk.

mod layout;

use crate::error::Result;
use crate::image::{Backing, CreateOptions, Image, ImageWriter};
use crate::name::ImageName;
use crate::source::BlockSource;

/// Bytes of the longest name that file systems take.
const LONGEST_NAME: usize = 255;

/// Sizes of an image to be. The files of an image that has several are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measure {
    /// Bytes that hold the source's data, or an empty disk where there is no source.
    pub required: u64,
    /// Bytes that would hold a disk of that size without any hole.
    pub fully_allocated: u64,
    /// Bytes for the persistent bitmaps of the source, which a conversion does not copy; `None` where one of both
    /// cannot have any.
    pub bitmaps: Option<u64>,
}

/// An image to be measured.
#[derive(Debug, Clone)]
pub struct MeasureOptions {
    format: String,
    create: CreateOptions,
}

impl MeasureOptions {
    /// An image of `format`, by its id or an alias, with every option at its default.
    pub fn to(format: impl Into<String>) -> Self {
        MeasureOptions {
            format: format.into(),
            create: CreateOptions::new(0),
        }
    }

    /// Sets an option of the format by its name in `qemu-img measure -o`.
    #[must_use]
    pub fn option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.create.options.push((name.into(), value.into()));
        self
    }

    /// Compresses the data.
    #[must_use]
    pub fn compress(mut self, compress: bool) -> Self {
        self.create.compress = compress;
        self
    }

    /// Sets the name of the image, without a directory, for formats that name their files in it. By default the
    /// longest name that file systems allow, so that the result is never too small.
    #[must_use]
    pub fn file_name(mut self, name: ImageName) -> Self {
        self.create.file_name = Some(name);
        self
    }

    /// Makes it an overlay over `backing`. All of the disk counts as required, since the parts that it shares are
    /// not known here.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.create.backing = Some(backing);
        self
    }

    /// Measures an empty disk of this many bytes.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) for a format that is not known, for options
    /// that it does not have, and for a disk that it cannot hold;
    /// [`Error::Unsupported`](crate::Error::Unsupported) for one that is not written.
    pub fn of_size(&self, bytes: u64) -> Result<Measure> {
        self.measure(bytes, None)
    }

    /// Measures the result of a conversion of `source`. Only its runs are asked for; it is not read.
    ///
    /// # Errors
    /// As [`of_size`](Self::of_size), and what [`extent_at`](BlockSource::extent_at) fails with.
    pub fn of(&self, source: &dyn BlockSource) -> Result<Measure> {
        self.measure(source.size(), Some(source))
    }

    /// Measures the result of a conversion of `image`, and its bitmaps.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_image(&self, image: &dyn Image) -> Result<Measure> {
        let mut measure = self.of(&image)?;
        if image.info().has_room_for_bitmaps {
            let writer = self.writer(image.size())?;
            measure.bitmaps = writer.bitmaps_size(&image.info().bitmaps);
        }
        Ok(measure)
    }

    fn measure(&self, size: u64, source: Option<&dyn BlockSource>) -> Result<Measure> {
        let writer = self.writer(size)?;
        let fully_allocated = match writer.full_sizes() {
            Some(sizes) => total(sizes),
            None => total(layout::full(self.writer(size)?)?),
        };
        let required = match source {
            Some(_) if self.create.backing.is_some() => fully_allocated,
            Some(source) => total(layout::of(writer, source)?),
            None => total(layout::empty(writer)?),
        };
        Ok(Measure {
            required,
            fully_allocated,
            bitmaps: None,
        })
    }

    fn writer(&self, size: u64) -> Result<Box<dyn ImageWriter>> {
        let mut create = self.create.clone();
        create.virtual_size = size;
        let longest = || ImageName::from("n".repeat(LONGEST_NAME).as_str());
        create.file_name.get_or_insert_with(longest);
        crate::formats::Formats::all()
            .named(&self.format)?
            .create(&create)
    }
}

fn total(sizes: Vec<u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::parse_options;

    const GIB: u64 = 1 << 30;

    /// The full size that a writer announces is the size after all is placed.
    #[test]
    fn full_sizes_are_those_of_a_full_layout() {
        let mut known = 0;
        for (format, options) in [
            ("raw", ""),
            ("qcow2", ""),
            ("qcow2", "cluster_size=512,refcount_bits=64"),
            ("qcow2", "cluster_size=4k,refcount_bits=1"),
            ("qcow2", "extended_l2=on,preallocation=metadata"),
            ("qcow2", "compat=0.10,cluster_size=2M"),
            ("qcow2", "data_file=data.raw"),
            ("vmdk", ""),
            ("vmdk", "subformat=monolithicFlat"),
            ("vmdk", "subformat=twoGbMaxExtentSparse"),
            ("vmdk", "subformat=twoGbMaxExtentFlat"),
            ("vmdk", "subformat=vmfs"),
            #[cfg(feature = "zlib")]
            ("vmdk", "subformat=streamOptimized"),
            ("vpc", ""),
            ("vpc", "force_size=on"),
            ("vpc", "subformat=fixed"),
            ("vhdx", ""),
            ("vhdx", "subformat=fixed,block_size=2M"),
            ("vhdx", "block_size=1M,log_size=2M"),
            ("vdi", ""),
            ("vdi", "static=on"),
            ("vdi", "block_size=4k"),
        ] {
            for size in [512, 66_048, 33_555_456, 2 * GIB + 512] {
                let mut measure = MeasureOptions::to(format).file_name("disk".into());
                measure.create.options = parse_options(options).unwrap();
                let sizes = measure.writer(size).unwrap().full_sizes();
                let full = layout::full(measure.writer(size).unwrap()).unwrap();
                let is_right = sizes.as_ref().is_none_or(|sizes| *sizes == full);
                assert!(is_right, "{format} {options} {size}: {sizes:?}, {full:?}");
                known += usize::from(sizes.is_some());
            }
        }
        assert!(known > 50, "{known}");
    }
}
