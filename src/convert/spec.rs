//! The image that a conversion writes.

use std::fmt;
use std::sync::Arc;

use crate::digest::Algorithm;
use crate::error::Result;
use crate::image::{CreateOptions, Image};

/// An image to be written: a format and its options.
#[derive(Clone)]
pub struct ImageSpec {
    pub(super) format: String,
    pub(super) create: CreateOptions,
    pub(super) overlay: Option<Arc<dyn Image>>,
    pub(super) sparse_size: u64,
    pub(super) target_is_zero: bool,
    pub(super) verify: bool,
    pub(super) target_digests: Vec<Algorithm>,
}

impl fmt::Debug for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageSpec")
            .field("format", &self.format)
            .field("create", &self.create)
            .finish_non_exhaustive()
    }
}

impl<F: Into<String>> From<F> for ImageSpec {
    fn from(format: F) -> Self {
        ImageSpec::new(format)
    }
}

/// Makes the methods that set the [`ImageSpec`] at a place.
macro_rules! image_setters {
    (|$self:ident| $image:expr) => {
        /// Sets an option of the format by its name in `qemu-img convert -o`.
        #[must_use]
        pub fn option(mut $self, name: impl Into<String>, value: impl Into<String>) -> Self {
            $image.create.options.push((name.into(), value.into()));
            $self
        }

        /// Sets the name of the image where its target has none: a VMDK names its own file, and some readers
        /// look for that name. `disk.vmdk` by default.
        #[must_use]
        pub fn file_name(mut $self, name: impl Into<crate::ImageName>) -> Self {
            $image.create.file_name = Some(name.into());
            $self
        }

        /// Compresses the data.
        #[must_use]
        pub fn compress(mut $self, compress: bool) -> Self {
            $image.create.compress = compress;
            $self
        }

        /// Writes an overlay: an image that names `backing` as its backing file and records only what differs
        /// from `image`, which is that file, opened.
        #[must_use]
        pub fn overlay(
            mut $self,
            mut backing: $crate::image::Backing,
            image: std::sync::Arc<dyn $crate::Image>,
        ) -> Self {
            backing.ids = image.info().ids.clone();
            $image.create.backing = Some(backing);
            $image.overlay = Some(image);
            $self
        }

        /// Sets the shortest run of zeros that becomes a hole, in bytes: 4096 by default. With 0, zeros are not
        /// searched for, and what reads as zero is written out or recorded as zero.
        #[must_use]
        pub fn sparse_size(mut $self, bytes: u64) -> Self {
            $image.sparse_size = bytes;
            $self
        }

        /// Declares that an existing target reads as zero.
        #[must_use]
        pub fn target_is_zero(mut $self, zero: bool) -> Self {
            $image.target_is_zero = zero;
            $self
        }

        /// Reads the image that is written to a path back, and compares it with the source before it gets its
        /// name. It usually comes from the cache of the system, not from the disk.
        #[must_use]
        pub fn verify(mut $self, verify: bool) -> Self {
            $image.verify = verify;
            $self
        }

        /// Computes the digest of the image file that is written to a path, in one more read when it is whole,
        /// or of the stream that is written:
        /// [`Summary::target_digests`](crate::convert::Summary::target_digests).
        #[must_use]
        pub fn target_digest(mut $self, algorithm: $crate::digest::Algorithm) -> Self {
            $image.target_digests.push(algorithm);
            $self
        }
    };
}
pub(super) use image_setters;

impl ImageSpec {
    /// An image of `format`, by its id or an alias, with every option at its default.
    pub fn new(format: impl Into<String>) -> Self {
        ImageSpec {
            format: format.into(),
            create: CreateOptions::new(0),
            overlay: None,
            sparse_size: 4096,
            target_is_zero: false,
            verify: false,
            target_digests: Vec::new(),
        }
    }

    image_setters!(|self| self);

    /// Returns true if an image of `size` bytes has the same identifiers each time that it is made.
    ///
    /// # Errors
    /// As [`Format::create`](crate::Format::create).
    pub(super) fn is_repeatable(&self, size: u64) -> Result<bool> {
        let mut create = self.create.clone();
        create.virtual_size = size;
        let format = crate::formats::Formats::all().named(&self.format)?;
        let once = format.create(&create)?.finish()?;
        let again = format.create(&create)?.finish()?;
        Ok(once.tables == again.tables && once.seal == again.seal)
    }
}
