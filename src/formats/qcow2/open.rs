//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::format_id::FormatId;
use crate::image::{BitmapInfo, Image, ImageInfo, Request, Value};
use crate::map::{Below, Detached, Mapped, Regions, TableReader};
use crate::name::ImageName;
use crate::packed::PackedSource;
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt, FileIdentity, Place, Salvageable, Stored};

use super::header::{Encryption, Header, HeaderV2};
use super::layout;
use super::map::Qcow2Map;
use super::snapshot::{self, Snapshot};
use super::{Autoclear, Compatible, Incompatible, QCOW2, bitmap, encrypt};

/// An open qcow2 image.
#[derive(Debug)]
pub struct Qcow2Image {
    file: Arc<dyn BlockSource>,
    header: Header,
    mapped: Mapped<Qcow2Map>,
    backing: Option<Arc<dyn Image>>,
    references: Vec<Reference>,
    info: ImageInfo,
}

impl Qcow2Image {
    /// Opens the image in `source`.
    ///
    /// # Errors
    /// As [`Format::open`](crate::Format::open).
    pub fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Self> {
        let (limits, salvages) = (request.limits, request.salvages);
        let header = read_header(&source)?;
        let mut regions = layout::of_header(&header, source.size(), salvages)?;
        let mut left_out = Vec::new();
        let snapshots = snapshot::read_table(&header, &source, limits);
        let (snapshots, table_end) = match salvages && request.snapshot.is_none() {
            true => or_nothing("snapshots", snapshots, &mut left_out),
            false => snapshots?,
        };
        let selected = request
            .snapshot
            .map(|s| snapshot::find(&snapshots, s))
            .transpose()?;
        let size = selected.map_or(header.size, |snapshot| snapshot.info.virtual_size);
        let l1 = L1 {
            header: &header,
            selected,
            size,
        };
        let reader = TableReader::of(QCOW2, request);
        let l1 = l1.read(&source, &regions, &reader)?;

        let mut references = Vec::new();
        let data = open_data_file(&header, &source, request, &mut references)?;
        let (below, backing) = open_backing(&header, request, &mut references)?;
        let bitmaps = bitmap::read_directory(&header, &source, limits);
        let directory = match salvages {
            true => or_nothing("bitmaps", bitmaps, &mut left_out),
            false => bitmaps?,
        };
        let table = (header.snapshots_offset, table_end);
        layout::add_listed(&mut regions, table, &snapshots, &directory);
        let bitmaps = directory
            .bitmaps
            .into_iter()
            .map(|bitmap| bitmap.info)
            .collect();
        let mut info = describe(&header, &source, &snapshots, bitmaps)?;
        info.virtual_size = size;
        info.warnings.extend(left_out);
        let map = Qcow2Map::new(&header, Arc::clone(&source), l1, regions, reader);
        let mapped = Mapped::new(map, data, below, size);
        Ok(Qcow2Image {
            file: source,
            header,
            mapped,
            backing,
            references,
            info,
        })
    }

    /// The header, parsed.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Fails if the guest's data is encrypted.
    fn check_readable(&self) -> Result<()> {
        let Some(scheme) = self.header.encryption else {
            return Ok(());
        };
        let feature = match scheme {
            Encryption::Aes => "AES encryption",
            Encryption::Luks => "LUKS encryption",
        };
        Err(Error::Unsupported {
            format: QCOW2,
            feature: format!("reading through {feature}"),
            hint: Some("decrypt it with a tool that has the key".into()),
        })
    }
}

impl BlockSource for Qcow2Image {
    fn size(&self) -> u64 {
        self.mapped.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.check_readable()?;
        self.mapped.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.check_readable()?;
        self.mapped.extent_at(offset, limit)
    }

    fn block_size(&self) -> u64 {
        self.header.cluster_size()
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        self.mapped
            .packed()
            .filter(|_| self.header.encryption.is_none())
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl Stored for Qcow2Image {
    fn identity(&self) -> Option<FileIdentity> {
        self.file.identity()
    }

    fn uses_file(&self, file: FileIdentity) -> bool {
        self.file.uses_file(file) || Stored::uses_file(&self.mapped, file)
    }

    fn depth_of(&self, file: FileIdentity, format: FormatId) -> Option<u16> {
        if format == QCOW2 && Stored::identity(self) == Some(file) {
            Some(0)
        } else {
            Stored::depth_of(&self.mapped, file, format)
        }
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.check_readable().ok()?;
        Stored::place_of(&self.mapped, offset, limit)
    }
}

impl Salvageable for Qcow2Image {
    fn lost_with(&self, offset: u64) -> u64 {
        Salvageable::lost_with(&self.mapped, offset)
    }
}

impl Image for Qcow2Image {
    fn format(&self) -> FormatId {
        QCOW2
    }

    fn info(&self) -> &ImageInfo {
        &self.info
    }

    fn tables(&self) -> Vec<(u64, u64)> {
        self.mapped.tables()
    }

    fn references(&self) -> &[Reference] {
        &self.references
    }

    fn file_of(&self, _: u64) -> Option<&ImageName> {
        let mut references = self.references.iter();
        let data = references.find(|reference| reference.kind == ReferenceKind::DataFile);
        data.map(|reference| &reference.name)
    }

    fn backing(&self) -> Option<&Arc<dyn Image>> {
        self.backing.as_ref()
    }
}

/// Reads and parses the header: what lies in the first cluster, whose size its own fifth field gives.
pub(super) fn read_header(source: &dyn BlockSource) -> Result<Header> {
    const FIRST: usize = 4096;
    let read = |len: u64| -> Result<Vec<u8>> {
        let len = usize::try_from(len.min(source.size())).unwrap_or(0);
        let mut bytes = vec![0; len];
        source.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let start = read(FIRST as u64)?;
    let cluster_bits = HeaderV2::parse(&start, 0)?.cluster_bits;
    // Clusters are 2 MiB at most; a header that says otherwise is refused when it is parsed.
    let cluster = 1_u64.checked_shl(cluster_bits.min(21)).unwrap_or(0);
    match Header::parse(&start) {
        // Most headers end soon, and opening an image should not cost a cluster.
        Ok(header) if header.end() <= FIRST as u64 => Ok(header),
        parsed if cluster <= FIRST as u64 => parsed,
        _ => Header::parse(&read(cluster)?),
    }
}

/// A list beside the data that may be damaged while the data is not, and why it is left out if it is.
fn or_nothing<T: Default>(what: &str, read: Result<T>, left_out: &mut Vec<String>) -> T {
    read.unwrap_or_else(|error| {
        left_out.push(format!("the {what} are left out: {}", error.chain()));
        T::default()
    })
}

/// The L1 table of the active state or of a snapshot.
struct L1<'a> {
    header: &'a Header,
    selected: Option<&'a Snapshot>,
    /// Virtual size in bytes.
    size: u64,
}

impl L1<'_> {
    /// Reads the table, and returns it with its host offset; if the image is salvaged, as far as it is there.
    fn read(
        &self,
        source: &dyn BlockSource,
        regions: &Regions,
        reader: &TableReader,
    ) -> Result<(Vec<u8>, u64)> {
        let header = self.header;
        let (offset, entries) = match self.selected {
            None => (header.l1_table_offset, header.l1_size),
            Some(snapshot) => (snapshot.l1_table_offset, snapshot.l1_size),
        };
        let entry_size = if header.has_extended_l2() { 16 } else { 8 };
        let span =
            u128::from(header.cluster_size()) * u128::from(header.cluster_size() / entry_size);
        let needed = u128::from(self.size).div_ceil(span);
        if u128::from(entries) < needed && !reader.salvages() {
            let problem = format!(
                "is {entries}, and a disk of {} bytes needs {needed}",
                self.size
            );
            return Err(HeaderV2::malformed(0, "l1_size", problem));
        }
        let len = u64::from(entries) * 8;
        reader.limits().check_metadata("the L1 table", len)?;
        if self.selected.is_some() {
            if let Some(other) = regions.overlapping(offset, len) {
                let problem = format!("of the snapshot is in the {other}");
                return Err(Error::malformed(QCOW2, "L1 table", offset, problem));
            }
        }
        let there = source.size().saturating_sub(offset) / 8 * 8;
        let fits = len <= there || reader.salvages();
        if !fits || offset % header.cluster_size() != 0 {
            let problem =
                format!("{len} bytes long, is not at the start of a cluster or not in the file");
            return Err(Error::malformed(QCOW2, "L1 table", offset, problem));
        }
        let mut l1 = vec![0; usize::try_from(len.min(there)).unwrap_or(0)];
        reader.read(source, &mut l1, offset)?;
        Ok((l1, offset))
    }
}

/// Opens what holds the guest's data: the image itself, or its external data file.
fn open_data_file(
    header: &Header,
    source: &Arc<dyn BlockSource>,
    request: &Request<'_>,
    references: &mut Vec<Reference>,
) -> Result<Arc<dyn BlockSource>> {
    if !header.has_data_file() {
        return Ok(Arc::clone(source));
    }
    let Some(name) = header.data_file_name() else {
        let problem = "names no data file, and the image needs one";
        return Err(Error::malformed(QCOW2, "header extensions", None, problem));
    };
    let reference = Reference::new(ReferenceKind::DataFile, name);
    references.push(reference.clone());
    Ok(match request.opener.open_bytes(&reference)? {
        Some(file) => file,
        None => Arc::new(Detached {
            reference: Box::new(reference),
            size: header.size,
        }),
    })
}

fn open_backing(
    header: &Header,
    request: &Request<'_>,
    references: &mut Vec<Reference>,
) -> Result<(Below, Option<Arc<dyn Image>>)> {
    let Some(name) = header.backing_file.clone() else {
        return Ok((Below::Nothing, None));
    };
    let reference = Reference::new(ReferenceKind::BackingFile, name);
    let reference = reference.with_format(header.backing_format());
    references.push(reference.clone());
    Ok(match request.opener.open_image(&reference)? {
        None => (Below::Detached(Box::new(reference)), None),
        Some(image) => (Below::Image(Arc::new(Arc::clone(&image))), Some(image)),
    })
}

fn describe(
    header: &Header,
    source: &dyn BlockSource,
    snapshots: &[Snapshot],
    bitmaps: Vec<BitmapInfo>,
) -> Result<ImageInfo> {
    let mut info = ImageInfo {
        cluster_size: Some(header.cluster_size()),
        dirty: header.incompatible.contains(Incompatible::DIRTY),
        corrupt: header.incompatible.contains(Incompatible::CORRUPT),
        encryption: header.encryption.map(Encryption::name),
        snapshots: snapshots.iter().map(|s| s.info.clone()).collect(),
        bitmaps,
        has_room_for_bitmaps: header.version > 2,
        ..ImageInfo::default()
    };
    if info.dirty {
        info.warnings
            .push("the image was not closed: its reference counts may be wrong".into());
    }
    if info.corrupt {
        info.warnings.push("the image is marked as corrupt".into());
    }
    let mut data = Value::map();
    data.insert("compat", if header.version == 2 { "0.10" } else { "1.1" });
    if header.version > 2 {
        if let Some(name) = header.data_file_name() {
            data.insert("data-file", name);
        }
        if header.has_data_file() {
            data.insert(
                "data-file-raw",
                header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA),
            );
        }
        data.insert("compression-type", header.compression.name());
        data.insert(
            "lazy-refcounts",
            header.compatible.contains(Compatible::LAZY_REFCOUNTS),
        );
        data.insert("refcount-bits", 1_u32 << header.refcount_order);
        data.insert("corrupt", info.corrupt);
        data.insert("extended-l2", header.has_extended_l2());
        if !info.bitmaps.is_empty() {
            data.insert("bitmaps", bitmap::describe(&info.bitmaps));
        }
    } else {
        data.insert("compression-type", header.compression.name());
        data.insert("refcount-bits", 16_u32);
    }
    if let Some(scheme) = header.encryption {
        data.insert("encrypt", encrypt::describe(scheme, header, source)?);
    }
    info.specific = Some(data);
    Ok(info)
}
