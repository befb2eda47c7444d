//! Laying a disk out: one sparse extent or several, flat ones, or a stream.

mod encoder;
mod flat;
mod options;
mod sparse;
mod stream;
mod text;

pub use options::{AdapterType, Subformat, VmdkOptions};

use crate::error::{Error, Result};
use crate::image::{ImageWriter, OutputFile};
use crate::name::ImageName;
use crate::ondisk::TableEntry;

use super::descriptor::MAX_EXTENTS;
use super::header::SECTOR;

/// Sectors of a grain: 64 KiB, which every tool writes.
const GRAIN_SECTORS: u64 = 128;
/// Bytes of a grain.
const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
/// Entries of a grain table.
const TABLE_ENTRIES: u64 = 512;
/// Sectors of a grain table.
const TABLE_SECTORS: u64 = TABLE_ENTRIES * 4 / SECTOR;
/// Bytes of the guest for which a grain table answers.
const TABLE_SPAN: u64 = TABLE_ENTRIES * GRAIN;
/// Sector of the descriptor in a sparse extent, and the sectors that it has there.
const DESCRIPTOR_OFFSET: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Bytes of an extent of a disk that is split.
const SPLIT: u64 = 2 << 30;

impl VmdkOptions {
    /// Makes the writer of such a disk of `virtual_size` bytes, rounded up to a sector. `file_name` is the
    /// name of the file; the names of its extents follow from it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that exclude each other, and for a size that the format
    /// cannot hold; [`Error::Unsupported`] without the codec of a stream.
    pub fn writer(
        self,
        virtual_size: u64,
        file_name: Option<&ImageName>,
    ) -> Result<Box<dyn ImageWriter>> {
        self.check()?;
        let size = virtual_size
            .checked_next_multiple_of(SECTOR)
            .filter(|size| i64::try_from(*size).is_ok())
            .ok_or_else(|| Error::invalid("a VMDK cannot be as large as 8 EiB"))?;
        if size == 0 {
            return Err(Error::invalid("a VMDK cannot have a size of 0"));
        }
        // A size that an image merely claims must not make files up, and the image has to open.
        let split = matches!(
            self.subformat,
            Subformat::TwoGbMaxExtentSparse | Subformat::TwoGbMaxExtentFlat
        );
        if split && size.div_ceil(SPLIT) > MAX_EXTENTS as u64 {
            return Err(Error::invalid(format!(
                "a disk of {size} bytes would be more than {MAX_EXTENTS} files"
            )));
        }
        let names = Names::new(file_name);
        match self.subformat {
            Subformat::MonolithicSparse | Subformat::TwoGbMaxExtentSparse => {
                Ok(Box::new(sparse::SparseWriter::new(&self, size, &names)?))
            }
            Subformat::StreamOptimized => {
                Ok(Box::new(stream::StreamWriter::new(&self, size, &names)?))
            }
            _ => Ok(Box::new(flat::FlatWriter::new(&self, size, &names)?)),
        }
    }
}

/// Names of the files: `disk.vmdk`, `disk-flat.vmdk`, `disk-s001.vmdk`.
#[derive(Debug)]
struct Names {
    image: Vec<u8>,
}

impl Names {
    fn new(file_name: Option<&ImageName>) -> Self {
        let image = file_name.map_or(&b"disk.vmdk"[..], ImageName::as_bytes);
        Names {
            image: image.to_vec(),
        }
    }

    /// The image's own name as a descriptor can quote it. Readers do not use it.
    fn own(&self) -> ImageName {
        match is_quotable(&self.image) {
            true => ImageName::from(self.image.as_slice()),
            false => ImageName::from("disk.vmdk"),
        }
    }

    /// The image's name with a suffix before its extension.
    fn with(&self, suffix: &str) -> Result<ImageName> {
        if !is_quotable(&self.image) {
            let name = ImageName::from(self.image.as_slice());
            return Err(Error::invalid(format!(
                "the descriptor cannot hold names made from {}",
                name.quoted()
            )));
        }
        let dot = self.image.iter().rposition(|byte| *byte == b'.');
        let (stem, extension) = self.image.split_at(dot.unwrap_or(self.image.len()));
        Ok(ImageName::new(
            [stem, suffix.as_bytes(), extension].concat(),
        ))
    }
}

/// Returns `true` if a name can stand between quotes in a descriptor.
fn is_quotable(name: &[u8]) -> bool {
    !name.is_empty()
        && !name
            .iter()
            .any(|byte| *byte == b'"' || byte.is_ascii_control())
}

/// The files of an image that is a descriptor and these extents.
fn files_of(extents: &[ImageName]) -> Vec<OutputFile> {
    let extents = extents.iter().cloned().map(OutputFile::Named);
    std::iter::once(OutputFile::Image).chain(extents).collect()
}

fn zeroed(len: u64) -> Vec<u8> {
    vec![0; usize::try_from(len).unwrap_or(0)]
}

/// The entry of a grain directory or grain table that refers to this sector.
fn entry<E: TableEntry<Raw = u32>>(sector: u64) -> Result<E> {
    u32::try_from(sector)
        .map(E::from_raw)
        .map_err(|_| too_large())
}

fn too_large() -> Error {
    Error::invalid("a sparse extent cannot hold 2 TiB or more; use subformat=twoGbMaxExtentSparse")
}
