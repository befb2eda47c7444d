//! Names inside images that mean other files.

use std::fmt;

use crate::name::ImageName;

/// A name inside an image that means another file. Inert data: nothing is opened by holding one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reference {
    /// Role of the other file for the image.
    pub kind: ReferenceKind,
    /// The name as it stands in the image.
    pub name: ImageName,
    /// The other file's format as the image declares it.
    pub format: Option<ImageName>,
    /// True if the image's format has no field for it, so that the extension of the name decides.
    pub format_in_name: bool,
}

impl Reference {
    /// A reference of this kind and name, with no declared format.
    pub fn new(kind: ReferenceKind, name: ImageName) -> Self {
        Reference {
            kind,
            name,
            format: None,
            format_in_name: false,
        }
    }

    /// This reference with the format that the image declares.
    #[must_use]
    pub fn with_format(mut self, format: Option<ImageName>) -> Self {
        self.format = format;
        self
    }

    /// This reference with the format left to the extension of the name: for formats that have no
    /// field for it.
    #[must_use]
    pub fn with_format_in_name(mut self) -> Self {
        self.format_in_name = true;
        self
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name.quoted())
    }
}

/// Role of a referenced file for the image that refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReferenceKind {
    /// An image whose content shows through where this one records nothing.
    BackingFile,
    /// A file that holds the data for which this image holds the tables.
    DataFile,
    /// One of the files that a disk is split into (VMDK).
    ExtentFile,
    /// A file of an appliance (OVF).
    PackageFile,
}

impl fmt::Display for ReferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReferenceKind::BackingFile => "backing file",
            ReferenceKind::DataFile => "data file",
            ReferenceKind::ExtentFile => "extent file",
            ReferenceKind::PackageFile => "package file",
        })
    }
}
