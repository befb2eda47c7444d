//! Writing the first cluster: the header, its extensions and the backing file's name.

use crate::error::{Error, Result};
use crate::formats::qcow2::feature::{Autoclear, Compatible, FeatureName, Incompatible, NAMES};
use crate::formats::qcow2::header::{
    CompressionType, ExtensionHeader, HeaderAdditional, HeaderV2, HeaderV3, MAGIC,
    MAX_BACKING_NAME, V3_LEN_WITH_ADDITIONAL, extension,
};

use super::options::{Qcow2Options, Version};

/// Places of the tables that the header names.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tables {
    /// Number of entries in the L1 table.
    pub(super) l1_size: u32,
    /// Host offset of the L1 table.
    pub(super) l1_table_offset: u64,
    /// Host offset of the refcount table.
    pub(super) refcount_table_offset: u64,
    /// Length of the refcount table in clusters.
    pub(super) refcount_table_clusters: u32,
}

/// The first cluster of an image.
///
/// # Errors
/// [`Error::InvalidInput`] if the names do not fit into it.
pub(super) fn encode(options: &Qcow2Options, virtual_size: u64, tables: Tables) -> Result<Vec<u8>> {
    let mut bytes = fixed_part(options, virtual_size, tables);
    if let Some(backing) = &options.backing {
        append(
            &mut bytes,
            extension::BACKING_FORMAT,
            backing.format.as_bytes(),
        );
    }
    if let Some(name) = &options.data_file {
        append(&mut bytes, extension::EXTERNAL_DATA_FILE, name.as_bytes());
    }
    let backing_name = options.backing.as_ref().map(|b| b.name.as_bytes());
    let backing_name = backing_name.unwrap_or_default();
    let cluster_size = usize::try_from(options.cluster_size).unwrap_or(usize::MAX);
    let names = feature_names();
    let behind = ExtensionHeader::LEN + backing_name.len();
    if options.version == Version::V3
        && bytes.len() + ExtensionHeader::LEN + names.len() + behind <= cluster_size
    {
        append(&mut bytes, extension::FEATURE_NAMES, &names);
    }
    append(&mut bytes, extension::END, &[]);
    if bytes.len() + backing_name.len() > cluster_size
        || backing_name.len() > MAX_BACKING_NAME as usize
    {
        return Err(Error::invalid(format!(
            "the names of the backing file and the data file do not fit into the first cluster of \
             {cluster_size} bytes (the backing file's has at most {MAX_BACKING_NAME}); take shorter \
             names or larger clusters"
        )));
    }
    if !backing_name.is_empty() {
        let place = bytes.len() as u64;
        let len = u32::try_from(backing_name.len()).unwrap_or(MAX_BACKING_NAME);
        HeaderV2::backing_file_offset.put(&mut bytes, place);
        HeaderV2::backing_file_size.put(&mut bytes, len);
        bytes.extend_from_slice(backing_name);
    }
    bytes.resize(cluster_size, 0);
    Ok(bytes)
}

/// The header without its extensions.
fn fixed_part(options: &Qcow2Options, virtual_size: u64, tables: Tables) -> Vec<u8> {
    let v2 = HeaderV2 {
        magic: MAGIC,
        version: match options.version {
            Version::V2 => 2,
            Version::V3 => 3,
        },
        backing_file_offset: 0,
        backing_file_size: 0,
        cluster_bits: options.cluster_size.trailing_zeros(),
        size: virtual_size,
        crypt_method: 0,
        l1_size: tables.l1_size,
        l1_table_offset: tables.l1_table_offset,
        refcount_table_offset: tables.refcount_table_offset,
        refcount_table_clusters: tables.refcount_table_clusters,
        nb_snapshots: 0,
        snapshots_offset: 0,
    };
    let mut bytes = v2.encode().to_vec();
    if options.version == Version::V2 {
        return bytes;
    }
    let mut incompatible = Incompatible::empty();
    incompatible.set(Incompatible::DATA_FILE, options.data_file.is_some());
    incompatible.set(Incompatible::EXTENDED_L2, options.extended_l2);
    let is_zlib = options.compression_type == CompressionType::Zlib;
    incompatible.set(Incompatible::COMPRESSION_TYPE, !is_zlib);
    let mut compatible = Compatible::empty();
    compatible.set(Compatible::LAZY_REFCOUNTS, options.lazy_refcounts);
    let mut autoclear = Autoclear::empty();
    autoclear.set(Autoclear::RAW_EXTERNAL_DATA, options.data_file_raw);
    let v3 = HeaderV3 {
        incompatible_features: incompatible.bits(),
        compatible_features: compatible.bits(),
        autoclear_features: autoclear.bits(),
        refcount_order: options.refcount_bits.trailing_zeros(),
        header_length: V3_LEN_WITH_ADDITIONAL,
    };
    bytes.extend_from_slice(&v3.encode());
    let additional = HeaderAdditional {
        compression_type: match options.compression_type {
            CompressionType::Zlib => 0,
            CompressionType::Zstd => 1,
        },
    };
    bytes.extend_from_slice(&additional.encode());
    bytes
}

/// Appends a header extension, padded to a multiple of 8 bytes.
fn append(bytes: &mut Vec<u8>, extension_type: u32, data: &[u8]) {
    let header = ExtensionHeader {
        extension_type,
        // Data too long for the first cluster was refused before.
        length: u32::try_from(data.len()).unwrap_or(u32::MAX),
    };
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

fn feature_names() -> Vec<u8> {
    let entries = NAMES.iter().flat_map(|(feature_type, bit, text)| {
        let mut name = [0; 46];
        for (to, from) in name.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        let entry = FeatureName {
            feature_type: *feature_type,
            bit: *bit,
            name,
        };
        entry.encode()
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::qcow2::Header;
    use crate::image::Backing;
    use crate::name::ImageName;

    #[test]
    fn a_header_reads_back_as_what_was_asked_for() {
        let options = Qcow2Options {
            cluster_size: 4096,
            refcount_bits: 1,
            compression_type: CompressionType::Zstd,
            lazy_refcounts: true,
            data_file: Some(ImageName::from("disk.raw")),
            backing: Some(Backing::new(ImageName::from("base.img"), "raw")),
            ..Qcow2Options::default()
        };
        let tables = Tables {
            l1_size: 3,
            l1_table_offset: 8192,
            refcount_table_offset: 12288,
            refcount_table_clusters: 1,
        };
        let header = Header::parse(&encode(&options, 1 << 20, tables).unwrap()).unwrap();
        assert_eq!(
            (header.version, header.cluster_bits, header.size),
            (3, 12, 1 << 20)
        );
        assert_eq!((header.refcount_order, header.header_length), (0, 112));
        assert_eq!(header.compression, CompressionType::Zstd);
        assert_eq!(header.compatible, Compatible::LAZY_REFCOUNTS);
        assert_eq!(
            header.incompatible,
            Incompatible::DATA_FILE | Incompatible::COMPRESSION_TYPE
        );
        assert_eq!(header.data_file_name(), options.data_file);
        assert_eq!(header.backing_format(), Some(ImageName::from("raw")));
        assert_eq!(header.backing_file, Some(ImageName::from("base.img")));
        assert_eq!(
            header.extension(extension::FEATURE_NAMES).unwrap().len(),
            8 * 48
        );
    }

    #[test]
    fn feature_names_yield_to_the_names_of_files() {
        let mut options = Qcow2Options {
            cluster_size: 512,
            ..Qcow2Options::default()
        };
        let with_backing =
            |len: usize| Backing::new(ImageName::new("n".repeat(len).into_bytes()), "raw");
        let has_names = |options: &Qcow2Options| {
            let bytes = encode(options, 0, Tables::default()).unwrap();
            let header = Header::parse(&bytes).unwrap();
            header.extension(extension::FEATURE_NAMES).is_some()
        };
        assert!(has_names(&options));
        // 112 bytes of header, 16 of the format, 8 of the end marker.
        options.backing = Some(with_backing(376));
        assert!(!has_names(&options));
        options.backing = Some(with_backing(377));
        assert!(encode(&options, 0, Tables::default()).is_err());
    }
}
