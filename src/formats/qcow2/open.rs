//! Opening an image, and what it says of itself.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{BitmapInfo, DiskImage, Image, ImageInfo, Request, Sealed, Value};
use crate::map::{Below, Mapped, Reason, Regions, TableReader, Unreadable};
use crate::reference::{Reference, ReferenceKind};
use crate::source::{BlockSource, BlockSourceExt};

use super::header::{Encryption, Header, HeaderV2};
use super::layout;
use super::map::Qcow2Map;
use super::snapshot::{self, Snapshot};
use super::{Autoclear, Compatible, Incompatible, QCOW2, bitmap, encrypt};

/// Opens the image in `source`.
///
/// # Errors
/// As [`Format::open`](crate::Format::open).
pub(super) fn open(source: Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Box<dyn Image>> {
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
    let backing = header.backing_file.clone().map(|name| {
        let reference = Reference::new(ReferenceKind::BackingFile, name);
        reference.with_format(header.backing_format())
    });
    let parent = request.open_parent(backing.as_slice(), |_, _| Ok(()))?;
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
    let disk = Mapped::new(map, data, Below::from(&parent), size);
    let sealed = header.encryption.map(|scheme| match scheme {
        Encryption::Aes => Sealed::Encrypted("AES"),
        Encryption::Luks => Sealed::Encrypted("LUKS"),
    });
    let image = DiskImage::new(QCOW2, source, disk, info);
    let image = image.with_references(references).with_parent(parent);
    Ok(Box::new(image.sealed(sealed)))
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
        None => Arc::new(Unreadable {
            size: header.size,
            reason: Reason::Detached(reference),
        }),
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
