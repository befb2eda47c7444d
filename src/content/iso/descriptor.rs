//! Volume descriptors, and the first record of a directory.

use super::{ISO, SECTOR};
use crate::content::bytes::Bytes;
use crate::ondisk::{le, on_disk};

on_disk! {
    /// ECMA-119, 8.4 "Primary Volume Descriptor" and 8.5 "Supplementary Volume Descriptor".
    pub(super) struct VolumeDescriptor in ISO, "volume descriptor", Little, 2048 bytes {
        volume_descriptor_type: u8 = 0,
        standard_identifier: [u8; 5] = 1,
        system_identifier: [u8; 32] = 8,
        volume_identifier: [u8; 32] = 40,
        volume_space_size: u32 = 80,
        volume_space_size_be: [u8; 4] = 84,
        escape_sequences: [u8; 32] = 88,
        logical_block_size: u16 = 128,
        logical_block_size_be: [u8; 2] = 130,
        root_directory_record: [u8; 34] = 156,
        volume_set_identifier: [u8; 128] = 190,
        publisher_identifier: [u8; 128] = 318,
        data_preparer_identifier: [u8; 128] = 446,
        application_identifier: [u8; 128] = 574,
        creation_date: [u8; 17] = 813,
        modification_date: [u8; 17] = 830,
    }
}

on_disk! {
    /// El Torito 1.0, figure 7, "Boot Record Volume Descriptor".
    pub(super) struct BootRecord in ISO, "boot record", Little, 75 bytes {
        boot_system_identifier: [u8; 32] = 7,
        boot_catalogue: u32 = 71,
    }
}

on_disk! {
    /// ECMA-119, 9.1 "Format of a Directory Record".
    struct DirectoryRecord in ISO, "directory record", Little, 33 bytes {
        length: u8 = 0,
        location_of_extent: u32 = 2,
        data_length: u32 = 10,
        length_of_file_identifier: u8 = 32,
    }
}

impl BootRecord {
    pub(super) fn is_el_torito(&self) -> bool {
        self.boot_system_identifier
            .starts_with(b"EL TORITO SPECIFICATION")
    }
}

impl VolumeDescriptor {
    /// Bytes of a logical block. Some writers fill in one of the two orders only.
    pub(super) fn block_size(&self) -> u32 {
        let big = u16::from_be_bytes(self.logical_block_size_be);
        let known = |size: &u16| matches!(size, 512 | 1024 | 2048);
        let size = [self.logical_block_size, big].into_iter().find(known);
        size.unwrap_or(2048).into()
    }

    fn blocks(&self) -> u32 {
        match self.volume_space_size {
            0 => u32::from_be_bytes(self.volume_space_size_be),
            blocks => blocks,
        }
    }

    /// Size of the volume in bytes.
    pub(super) fn size(&self) -> u64 {
        u64::from(self.blocks()) * u64::from(self.block_size())
    }

    /// Numbers that stand there in both orders and are not the same, as text.
    pub(super) fn disagreements(&self) -> Vec<String> {
        let size = u32::from_be_bytes(self.volume_space_size_be);
        let block = u16::from_be_bytes(self.logical_block_size_be);
        let pairs = [
            ("size of the volume", self.volume_space_size, size),
            (
                "size of a logical block",
                self.logical_block_size.into(),
                block.into(),
            ),
        ];
        let differ = pairs.into_iter().filter(|(_, little, big)| little != big);
        differ
            .map(|(what, little, big)| {
                format!("the {what} in ISO 9660 is {little} in one order of bytes and {big} in the other")
            })
            .collect()
    }

    /// The level of Joliet that a supplementary descriptor announces.
    pub(super) fn joliet_level(&self) -> Option<u8> {
        match self.escape_sequences.get(..3) {
            Some(b"%/@") => Some(1),
            Some(b"%/C") => Some(2),
            Some(b"%/E") => Some(3),
            _ => None,
        }
    }
}

/// A date of ECMA-119, 8.4.26.1, in the form of ISO 8601; `None` if it is not given.
pub(super) fn date(field: &[u8; 17]) -> Option<String> {
    let [digits @ .., zone] = field;
    let text = std::str::from_utf8(digits).ok()?;
    if !text.bytes().all(|b| b.is_ascii_digit()) || text.bytes().all(|b| b == b'0') {
        return None;
    }
    let part = |range| text.get(range).unwrap_or_default();
    // In quarters of an hour east of Greenwich.
    let zone = i32::from(i8::from_le_bytes([*zone])) * 15;
    let sign = if zone < 0 { '-' } else { '+' };
    let zone = zone.unsigned_abs();
    Some(format!(
        "{}-{}-{}T{}:{}:{}.{}{sign}{:02}:{:02}",
        part(0..4),
        part(4..6),
        part(6..8),
        part(8..10),
        part(10..12),
        part(12..14),
        part(14..16),
        zone / 60,
        zone % 60
    ))
}

/// Returns whether the root directory has entries of Rock Ridge (IEEE P1282), which the record of the
/// directory itself announces.
pub(super) fn has_rock_ridge(disk: &dyn Bytes, volume: &VolumeDescriptor) -> bool {
    fields_of_root(disk, volume).is_some_and(|fields| {
        let has = |text: &[u8]| fields.windows(text.len()).any(|part| part == text);
        // Systems before 1994 left "RR" in each record, later ones name the extension.
        has(b"SP\x07\x01\xbe\xef")
            && [
                &b"RRIP_1991A"[..],
                b"IEEE_P1282",
                b"IEEE_1282",
                b"RR\x05\x01",
            ]
            .into_iter()
            .any(has)
    })
}

/// The system use fields of the first record of the root directory, and where they go on.
fn fields_of_root(disk: &dyn Bytes, volume: &VolumeDescriptor) -> Option<Vec<u8>> {
    let block = u64::from(volume.block_size());
    let root = DirectoryRecord::parse(&volume.root_directory_record, 0).ok()?;
    let at = u64::from(root.location_of_extent) * block;
    let raw = disk.bytes(at, 256)?;
    let record = DirectoryRecord::parse(&raw, at).ok()?;
    let name = usize::from(record.length_of_file_identifier);
    let start = (DirectoryRecord::LEN + name).next_multiple_of(2);
    let mut fields = raw.get(start..usize::from(record.length))?.to_vec();
    let place = continuation(&fields);
    if let Some((sector, offset, len)) = place {
        let at = u64::from(sector) * block + u64::from(offset);
        let len = usize::try_from(u64::from(len).min(SECTOR)).ok()?;
        fields.extend(disk.bytes(at, len).unwrap_or_default());
    }
    Some(fields)
}

/// The field "CE" of SUSP 1.12, section 5.1: block, offset and length of what follows.
fn continuation(fields: &[u8]) -> Option<(u32, u32, u32)> {
    let at = fields.windows(4).position(|part| part == b"CE\x1c\x01")?;
    let number = |offset| le::<u32>(fields, at + offset);
    Some((number(4)?, number(12)?, number(20)?))
}
