//! UDF (ECMA-167 and OSTA UDF 2.60): whether a disk has it, and what its volume is called.

use crate::content::bytes::{Bytes, Part};
use crate::content::filesystem::{Filesystem, FilesystemKind};
use crate::content::text;
use crate::format_id::FormatId;
use crate::name::ImageName;
use crate::ondisk::{Order, on_disk};

const UDF: FormatId = FormatId::new("udf");
/// Offset of the volume recognition sequence in bytes, for any block size.
const SEQUENCE: u64 = 32 << 10;
/// Descriptors of the sequence that are read.
const MOST_RECOGNITION: u64 = 64;
/// Volume descriptors that are read.
const MOST_DESCRIPTORS: u32 = 64;
/// Sizes of blocks that writers use, the likeliest first.
const BLOCKS: [u64; 4] = [2048, 512, 4096, 1024];

on_disk! {
    /// ECMA-167, 3/7.2 "Descriptor tag".
    struct Tag in UDF, "descriptor tag", Little, 16 bytes {
        tag_identifier: u16 = 0,
        tag_checksum: u8 = 4,
        descriptor_crc: u16 = 8,
        descriptor_crc_length: u16 = 10,
        tag_location: u32 = 12,
    }
}

on_disk! {
    /// ECMA-167, 3/10.2 "Anchor Volume Descriptor Pointer".
    struct Anchor in UDF, "anchor", Little, 32 bytes {
        main_extent_length: u32 = 16,
        main_extent_location: u32 = 20,
        reserve_extent_length: u32 = 24,
        reserve_extent_location: u32 = 28,
    }
}

on_disk! {
    /// ECMA-167, 3/10.1 "Primary Volume Descriptor".
    struct Primary in UDF, "primary volume descriptor", Little, 200 bytes {
        volume_identifier: [u8; 32] = 24,
        volume_set_identifier: [u8; 128] = 72,
    }
}

on_disk! {
    /// ECMA-167, 3/10.3 "Volume Descriptor Pointer".
    struct Pointer in UDF, "volume descriptor pointer", Little, 28 bytes {
        next_extent_length: u32 = 20,
        next_extent_location: u32 = 24,
    }
}

on_disk! {
    /// ECMA-167, 3/10.5 "Partition Descriptor".
    struct PartitionDescriptor in UDF, "partition descriptor", Little, 196 bytes {
        partition_starting_location: u32 = 188,
        partition_length: u32 = 192,
    }
}

on_disk! {
    /// ECMA-167, 3/10.6 "Logical Volume Descriptor". The revision is in the suffix of the domain.
    struct LogicalVolume in UDF, "logical volume descriptor", Little, 242 bytes {
        logical_volume_identifier: [u8; 128] = 84,
        logical_block_size: u32 = 212,
        udf_revision: u16 = 240,
    }
}

const PRIMARY: u16 = 1;
const ANCHOR: u16 = 2;
const POINTER: u16 = 3;
const PARTITION: u16 = 5;
const LOGICAL_VOLUME: u16 = 6;
const TERMINATOR: u16 = 8;

/// A UDF volume.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Udf {
    /// The name of the logical volume.
    pub logical_volume_id: Option<ImageName>,
    /// The name of the volume.
    pub volume_id: Option<ImageName>,
    /// The name of the set of volumes, which begins with a number that tells it from others.
    pub volume_set_id: Option<ImageName>,
    /// The revision of UDF in binary-coded decimals: 0x0201 is 2.01.
    pub revision: u16,
    /// Bytes of a block.
    pub block_size: u32,
    /// Size of the volume's partition in bytes.
    pub size: u64,
    /// Presence of an ISO 9660 volume on the same disk.
    pub is_bridge: bool,
}

/// The signature of a volume: a descriptor of UDF among those of the volume recognition sequence. The
/// descriptors are 2048 bytes apart, or a block where blocks are larger.
pub(super) fn recognise(bytes: &dyn Bytes) -> Option<Filesystem> {
    let found = |at| Filesystem::new(FilesystemKind::Udf, "BEA01", at);
    for step in [2048, 4096] {
        for index in 0..MOST_RECOGNITION {
            let at = SEQUENCE + index * step + 1;
            let Some(id) = bytes.bytes(at, 5) else {
                break;
            };
            match id.as_slice() {
                b"BEA01" if index == 0 => return Some(found(at)),
                b"NSR02" | b"NSR03" => {
                    return Some(Filesystem::new(FilesystemKind::Udf, "NSR0x", at));
                }
                b"CD001" | b"BEA01" | b"BOOT2" | b"CDW02" => {}
                _ => break,
            }
        }
    }
    None
}

/// The volume on a disk, and what is wrong with it as text.
pub(super) fn read(disk: &Part<'_>) -> Option<(Udf, Vec<String>)> {
    recognise(disk)?;
    let mut udf = Udf {
        logical_volume_id: None,
        volume_id: None,
        volume_set_id: None,
        revision: 0,
        block_size: 0,
        size: 0,
        is_bridge: disk.has(SEQUENCE + 1, b"CD001"),
    };
    let mut warnings = Vec::new();
    let Some((block, anchor)) = anchor(disk) else {
        warnings.push("the UDF volume has no anchor: it is cut short or not closed".to_owned());
        return Some((udf, warnings));
    };
    udf.block_size = u32::try_from(block).unwrap_or(0);
    let whole = [
        (anchor.main_extent_location, anchor.main_extent_length),
        (anchor.reserve_extent_location, anchor.reserve_extent_length),
    ];
    let is_found = whole.into_iter().any(|(location, length)| {
        read_sequence(disk, block, (location, length), &mut udf, &mut warnings)
    });
    if !is_found {
        warnings.push("the UDF volume has no logical volume descriptor that is whole".to_owned());
    }
    Some((udf, warnings))
}

/// The anchor, and the size of blocks that it was found in: it is at block 256, at the last one, or 256
/// before that.
fn anchor(disk: &Part<'_>) -> Option<(u64, Anchor)> {
    BLOCKS.into_iter().find_map(|block| {
        let last = (disk.size() / block).checked_sub(1)?;
        let places = [Some(256), Some(last), last.checked_sub(256)];
        places.into_iter().flatten().find_map(|place| {
            let (tag, raw) = descriptor(disk, block, place)?;
            let anchor = Anchor::parse(&raw, 0).ok()?;
            (tag == ANCHOR).then_some((block, anchor))
        })
    })
}

/// The first 512 bytes of the descriptor in a block, if both its checksums are right and it is meant
/// for that block.
fn descriptor(disk: &Part<'_>, block: u64, place: u64) -> Option<(u16, Vec<u8>)> {
    let raw = disk.bytes(place.checked_mul(block)?, 512)?;
    let tag = Tag::parse(&raw, 0).ok()?;
    let (head, body) = raw.split_at_checked(Tag::LEN)?;
    let sum = head.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let sum = sum.wrapping_sub(tag.tag_checksum);
    if sum != tag.tag_checksum || u64::from(tag.tag_location) != place {
        return None;
    }
    let summed = body.get(..usize::from(tag.descriptor_crc_length));
    // A descriptor that is longer than the bytes read cannot be summed.
    let is_right = summed.is_none_or(|b| text::crc16(b) == tag.descriptor_crc);
    is_right.then_some((tag.tag_identifier, raw))
}

/// Reads a sequence of volume descriptors; whether it has a logical volume.
fn read_sequence(
    disk: &Part<'_>,
    block: u64,
    extent: (u32, u32),
    udf: &mut Udf,
    warnings: &mut Vec<String>,
) -> bool {
    let (mut place, mut left) = (u64::from(extent.0), u64::from(extent.1) / block);
    let mut is_found = false;
    for _ in 0..MOST_DESCRIPTORS {
        if left == 0 {
            break;
        }
        let Some((tag, raw)) = descriptor(disk, block, place) else {
            break;
        };
        (place, left) = (place + 1, left - 1);
        match tag {
            PRIMARY => {
                if let Ok(primary) = Primary::parse(&raw, 0) {
                    udf.volume_id = dstring(&primary.volume_identifier);
                    udf.volume_set_id = dstring(&primary.volume_set_identifier);
                }
            }
            POINTER => {
                if let Ok(pointer) = Pointer::parse(&raw, 0) {
                    place = pointer.next_extent_location.into();
                    left = u64::from(pointer.next_extent_length) / block;
                }
            }
            PARTITION => {
                if let Ok(partition) = PartitionDescriptor::parse(&raw, 0) {
                    let start = u64::from(partition.partition_starting_location) * block;
                    udf.size = u64::from(partition.partition_length) * block;
                    if start + udf.size > disk.size() {
                        warnings.push(format!(
                            "the UDF volume ends at byte {} and only {} are there: it is cut short",
                            start + udf.size,
                            disk.size()
                        ));
                    }
                }
            }
            LOGICAL_VOLUME => {
                if let Ok(volume) = LogicalVolume::parse(&raw, 0) {
                    udf.logical_volume_id = dstring(&volume.logical_volume_identifier);
                    udf.revision = volume.udf_revision;
                    udf.block_size = volume.logical_block_size;
                    is_found = true;
                }
            }
            TERMINATOR => break,
            _ => {}
        }
    }
    is_found
}

impl Udf {
    /// UUID of the volume as the tools of Linux make it from the name of its set: the
    /// first 16 characters, those of the number; other characters stand for themselves in hexadecimal.
    pub(super) fn uuid(&self) -> Option<String> {
        let id = self.volume_set_id.as_ref()?.as_bytes().get(..16)?;
        let digits = id
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let (kept, encoded) = match digits {
            16 => (16, 16..16),
            8..=15 => (8, 8..12),
            _ => (0, 0..8),
        };
        let mut text: String = id.iter().take(kept).map(|byte| char::from(*byte)).collect();
        text.make_ascii_lowercase();
        for byte in id.get(encoded)? {
            text.push_str(&format!("{byte:02x}"));
        }
        Some(text)
    }
}

/// A text of OSTA compressed Unicode in a field that ends with its length (UDF 2.60, 2.1.1 and 2.1.3).
fn dstring(field: &[u8]) -> Option<ImageName> {
    let (length, characters) = field.split_last()?;
    let used = characters.get(..usize::from(*length).min(characters.len()))?;
    let (width, text) = used.split_first()?;
    match width {
        8 | 254 => {
            let text: String = text.iter().map(|byte| char::from(*byte)).collect();
            text::label(text.as_bytes())
        }
        16 | 255 => text::utf16(text, Order::Big),
        _ => None,
    }
}
