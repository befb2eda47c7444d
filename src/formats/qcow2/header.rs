//! The header and what follows it in the first cluster: extensions and the backing file's name.
//!
//! Field names and rules are those of the qcow2 specification (QEMU, `docs/interop/qcow2.rst`),
//! sections "Header", "Header extensions" and "Feature name table".

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::ondisk::{Reader, on_disk};
use crate::source::BlockSource;

use super::QCOW2;
use super::feature::{Autoclear, Compatible, Incompatible};

/// `QFI\xfb`, at the start of every qcow and qcow2 file.
pub(super) const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");

/// Largest length of a backing file's name in bytes (section "Header", `backing_file_size`).
pub(super) const MAX_BACKING_NAME: u32 = 1023;

on_disk! {
    /// Section "Header", as far as version 2 has it.
    pub(super) struct HeaderV2 in QCOW2, "header", Big, 72 bytes {
        magic: u32 = 0,
        version: u32 = 4,
        backing_file_offset: u64 = 8,
        backing_file_size: u32 = 16,
        cluster_bits: u32 = 20,
        size: u64 = 24,
        crypt_method: u32 = 32,
        l1_size: u32 = 36,
        l1_table_offset: u64 = 40,
        refcount_table_offset: u64 = 48,
        refcount_table_clusters: u32 = 56,
        nb_snapshots: u32 = 60,
        snapshots_offset: u64 = 64,
    }
}

on_disk! {
    /// Section "Header", the fields that version 3 adds. Their offsets are from byte 72 of the file.
    pub(super) struct HeaderV3 in QCOW2, "header", Big, 32 bytes {
        incompatible_features: u64 = 0,
        compatible_features: u64 = 8,
        autoclear_features: u64 = 16,
        refcount_order: u32 = 24,
        header_length: u32 = 28,
    }
}

on_disk! {
    /// Section "Header extensions": what stands before the data of each.
    pub(super) struct ExtensionHeader in QCOW2, "header extension", Big, 8 bytes {
        extension_type: u32 = 0,
        length: u32 = 4,
    }
}

/// The types of header extensions (section "Header extensions").
pub(super) mod extension {
    pub(in super::super) const END: u32 = 0;
    pub(in super::super) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(in super::super) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(in super::super) const BITMAPS: u32 = 0x2385_2875;
    pub(in super::super) const FULL_DISK_ENCRYPTION: u32 = 0x0537_be77;
    pub(in super::super) const EXTERNAL_DATA_FILE: u32 = 0x4441_5441;
}

on_disk! {
    /// Section "Header", the additional fields, in a header that is long enough for them. Their offsets are
    /// from byte 104 of the file.
    pub(super) struct HeaderAdditional in QCOW2, "header", Big, 8 bytes {
        compression_type: u8 = 0,
    }
}

impl HeaderV3 {
    /// Place in the file.
    pub(super) const AT: u64 = 72;
}

impl HeaderAdditional {
    /// Place in the file.
    pub(super) const AT: u64 = 104;
}

/// Least length of a header of version 3.
const V3_LEN: u32 = 104;
/// Length of a header with the additional fields.
pub(super) const V3_LEN_WITH_ADDITIONAL: u32 = 112;

/// Encryption of the clusters (`crypt_method`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// AES-128-CBC with a key that is the pass phrase (1).
    Aes,
    /// LUKS, with its header inside the image (2).
    Luks,
}

impl Encryption {
    /// The name by which QEMU calls the scheme.
    pub fn name(self) -> &'static str {
        match self {
            Encryption::Aes => "aes",
            Encryption::Luks => "luks",
        }
    }
}

/// Compression of the clusters (`compression_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompressionType {
    /// Deflate without a header (0).
    Zlib,
    /// Zstandard frames (1).
    Zstd,
}

impl CompressionType {
    /// The name by which QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            CompressionType::Zlib => "zlib",
            CompressionType::Zstd => "zstd",
        }
    }
}

/// A header extension as it stands in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderExtension {
    /// Its type.
    pub extension_type: u32,
    /// Its data, without padding.
    pub data: Vec<u8>,
}

/// The header of an image, parsed and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Logarithm of the cluster size: 9 to 21.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Encryption of the guest's data, if any.
    pub encryption: Option<Encryption>,
    /// Number of entries in the active L1 table.
    pub l1_size: u32,
    /// Host offset of the active L1 table.
    pub l1_table_offset: u64,
    /// Host offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Length of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub nb_snapshots: u32,
    /// Host offset of the snapshot table.
    pub snapshots_offset: u64,
    /// The incompatible features, unknown ones included. None in version 2.
    pub incompatible: Incompatible,
    /// The compatible features.
    pub compatible: Compatible,
    /// The autoclear features.
    pub autoclear: Autoclear,
    /// Logarithm of the width of a reference count in bits: 0 to 6.
    pub refcount_order: u32,
    /// Length of the header in bytes.
    pub header_length: u32,
    /// Compression of the compressed clusters.
    pub compression: CompressionType,
    /// The name of the backing file.
    pub backing_file: Option<ImageName>,
    /// All header extensions in order, also those that are not known.
    pub extensions: Vec<HeaderExtension>,
}

impl Header {
    /// Cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns whether L2 entries have bitmaps of subclusters.
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible.contains(Incompatible::EXTENDED_L2)
    }

    /// Returns whether the guest's data lies in an external data file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible.contains(Incompatible::DATA_FILE)
    }

    /// End of the extensions and their end marker, in bytes.
    pub(super) fn end(&self) -> u64 {
        let data = self.extensions.iter().map(|e| e.data.len() as u64);
        let each = data.map(|len| 8 + len.next_multiple_of(8));
        u64::from(self.header_length) + each.sum::<u64>() + 8
    }

    /// The data of the first extension of a type.
    pub fn extension(&self, extension_type: u32) -> Option<&[u8]> {
        let found = self
            .extensions
            .iter()
            .find(|e| e.extension_type == extension_type);
        found.map(|e| e.data.as_slice())
    }

    /// The backing file's format as the image declares it.
    pub fn backing_format(&self) -> Option<ImageName> {
        self.extension(extension::BACKING_FORMAT)
            .map(ImageName::from)
    }

    /// The external data file's name.
    pub fn data_file_name(&self) -> Option<ImageName> {
        self.extension(extension::EXTERNAL_DATA_FILE)
            .map(ImageName::from)
    }

    /// Parses a header. `bytes` is the start of the file, up to a cluster of it or more; `file_size`
    /// is the size of all of it.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what breaks the specification, [`Error::Unsupported`] for another
    /// version and for incompatible features that are not known, by the names that the image gives
    /// them.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let v2 = HeaderV2::parse(bytes, 0)?;
        if v2.magic != MAGIC {
            return Err(HeaderV2::malformed(0, "magic", "is not QFI\\xfb"));
        }
        let tail = match v2.version {
            2 => None,
            3 => Some(HeaderV3::parse(
                bytes.get(HeaderV2::LEN..).unwrap_or_default(),
                HeaderV3::AT,
            )?),
            other => {
                return Err(Error::unsupported(QCOW2, format!("version {other}"), None));
            }
        };
        if !(9..=21).contains(&v2.cluster_bits) {
            let problem = format!("is {}, and has to be 9 to 21", v2.cluster_bits);
            return Err(HeaderV2::malformed(0, "cluster_bits", problem));
        }
        let cluster_size = 1_u64 << v2.cluster_bits;
        let mut header = Header {
            version: v2.version,
            cluster_bits: v2.cluster_bits,
            size: v2.size,
            encryption: encryption(v2.crypt_method)?,
            l1_size: v2.l1_size,
            l1_table_offset: v2.l1_table_offset,
            refcount_table_offset: v2.refcount_table_offset,
            refcount_table_clusters: v2.refcount_table_clusters,
            nb_snapshots: v2.nb_snapshots,
            snapshots_offset: v2.snapshots_offset,
            incompatible: Incompatible::empty(),
            compatible: Compatible::empty(),
            autoclear: Autoclear::empty(),
            refcount_order: 4,
            header_length: 72,
            compression: CompressionType::Zlib,
            backing_file: None,
            extensions: Vec::new(),
        };
        let compression_type = match tail {
            None => 0,
            Some(v3) => header.read_v3(&v3, bytes, cluster_size)?,
        };
        let first = bytes
            .get(..usize::try_from(cluster_size).unwrap_or(usize::MAX))
            .unwrap_or(bytes);
        header.read_backing_name(&v2, first, cluster_size)?;
        let extensions_end = match v2.backing_file_offset {
            0 => cluster_size,
            offset => offset,
        };
        header.read_extensions(first, extensions_end)?;
        header.check_features()?;
        header.compression = compression(compression_type, header.incompatible)?;
        if header.has_extended_l2() && header.cluster_bits < 14 {
            let problem = "is below 14, which is too small for subclusters";
            return Err(HeaderV2::malformed(0, "cluster_bits", problem));
        }
        Ok(header)
    }

    /// Takes over the fields of version 3 and returns the compression type.
    fn read_v3(&mut self, v3: &HeaderV3, bytes: &[u8], cluster_size: u64) -> Result<u8> {
        let bad = |field, problem: String| Err(HeaderV3::malformed(HeaderV3::AT, field, problem));
        let length = v3.header_length;
        if length < V3_LEN || length % 8 != 0 || u64::from(length) > cluster_size {
            return bad("header_length", format!("is {length}"));
        }
        if v3.refcount_order > 6 {
            return bad(
                "refcount_order",
                format!("is {}, and has to be 0 to 6", v3.refcount_order),
            );
        }
        self.incompatible = Incompatible::from_bits_retain(v3.incompatible_features);
        self.compatible = Compatible::from_bits_retain(v3.compatible_features);
        self.autoclear = Autoclear::from_bits_retain(v3.autoclear_features);
        self.refcount_order = v3.refcount_order;
        self.header_length = length;
        if length <= V3_LEN {
            return Ok(0);
        }
        let rest = bytes.get(V3_LEN as usize..).unwrap_or_default();
        match HeaderAdditional::compression_type.get(rest) {
            Some(value) => Ok(value),
            None => bad(
                "header_length",
                "reaches past the end of the file".to_owned(),
            ),
        }
    }

    fn read_backing_name(&mut self, v2: &HeaderV2, first: &[u8], cluster_size: u64) -> Result<()> {
        let (offset, len) = (v2.backing_file_offset, v2.backing_file_size);
        if offset == 0 {
            return Ok(());
        }
        let bad = |field, problem: Cow<'static, str>| Err(HeaderV2::malformed(0, field, problem));
        if len > MAX_BACKING_NAME {
            return bad(
                "backing_file_size",
                format!("is {len}, over the most, 1023").into(),
            );
        }
        let end = offset
            .checked_add(u64::from(len))
            .filter(|end| *end <= cluster_size);
        let range =
            end.and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
        let Some(range) = range.filter(|_| offset >= u64::from(self.header_length)) else {
            return bad(
                "backing_file_offset",
                format!("{offset} is not in the first cluster").into(),
            );
        };
        let Some(name) = first.get(range) else {
            return bad(
                "backing_file_offset",
                "reaches past the end of the file".into(),
            );
        };
        if !name.is_empty() {
            self.backing_file = Some(ImageName::from(name));
        }
        Ok(())
    }

    /// Reads all header extensions, which end at byte `end` at the latest.
    fn read_extensions(&mut self, first: &[u8], end: u64) -> Result<()> {
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(first.len());
        let area = first
            .get(self.header_length as usize..end)
            .unwrap_or_default();
        let origin = u64::from(self.header_length);
        let mut reader = Reader::new(area, origin, QCOW2, "header extension");
        // An area that ends without an end marker is full: that is how old tools wrote it.
        while !reader.is_empty() {
            let at = reader.position();
            let Ok(head) = reader.take(ExtensionHeader::LEN as u64, "type") else {
                break;
            };
            let head = ExtensionHeader::parse(head, at)?;
            if head.extension_type == extension::END {
                break;
            }
            let data = reader.take(u64::from(head.length), "length")?.to_vec();
            reader.align(origin, 8);
            self.extensions.push(HeaderExtension {
                extension_type: head.extension_type,
                data,
            });
        }
        Ok(())
    }

    /// Refuses incompatible features that are not known, by the names that the image gives them.
    fn check_features(&self) -> Result<()> {
        let unknown = self.incompatible.bits() & !Incompatible::all().bits();
        if unknown == 0 {
            return Ok(());
        }
        let names = self.extension(extension::FEATURE_NAMES).unwrap_or_default();
        let feature = super::feature::describe_unknown(unknown, names);
        Err(Error::unsupported(QCOW2, feature, None))
    }
}

/// The virtual size, from the first bytes of an image.
pub(super) fn declared_size(source: &dyn BlockSource) -> Result<Option<u64>> {
    let mut bytes = [0; HeaderV2::LEN];
    let n = source.read_at(&mut bytes, 0)?;
    let header = HeaderV2::parse(bytes.get(..n).unwrap_or_default(), 0)?;
    Ok(Some(header.size))
}

fn encryption(method: u32) -> Result<Option<Encryption>> {
    match method {
        0 => Ok(None),
        1 => Ok(Some(Encryption::Aes)),
        2 => Ok(Some(Encryption::Luks)),
        other => Err(Error::unsupported(
            QCOW2,
            format!("encryption method {other}"),
            None,
        )),
    }
}

/// The compression type, which has a feature bit of its own so that old readers notice.
fn compression(value: u8, features: Incompatible) -> Result<CompressionType> {
    let flagged = features.contains(Incompatible::COMPRESSION_TYPE);
    match (value, flagged) {
        (0, false) => Ok(CompressionType::Zlib),
        (1, true) => Ok(CompressionType::Zstd),
        (0 | 1, _) => Err(HeaderAdditional::malformed(
            HeaderAdditional::AT,
            "compression_type",
            "contradicts the compression type bit of incompatible_features",
        )),
        (other, _) => Err(Error::unsupported(
            QCOW2,
            format!("compression type {other}"),
            None,
        )),
    }
}
