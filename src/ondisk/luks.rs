//! The header of LUKS 1 (LUKS1 On-Disk Format Specification 1.2.3, section 2), which formats embed.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::Value;
use crate::name::ImageName;
use crate::ondisk::{on_disk, until_nul};

const LUKS: FormatId = FormatId::new("luks");

/// Bytes of the header that describe the encryption: all but the key material.
pub(crate) const HEADER_LEN: usize = 592;

on_disk! {
    /// Figure 1, "PHDR layout", without the key slots.
    struct Phdr in LUKS, "LUKS header", Big, 208 bytes {
        magic: [u8; 6] = 0,
        version: u16 = 6,
        cipher_name: [u8; 32] = 8,
        cipher_mode: [u8; 32] = 40,
        hash_spec: [u8; 32] = 72,
        payload_offset: u32 = 104,
        key_bytes: u32 = 108,
        mk_digest: [u8; 20] = 112,
        mk_digest_salt: [u8; 32] = 132,
        mk_digest_iter: u32 = 164,
        uuid: [u8; 40] = 168,
    }
}

on_disk! {
    /// Figure 2, "key slot layout".
    struct KeySlot in LUKS, "LUKS key slot", Big, 48 bytes {
        active: u32 = 0,
        iterations: u32 = 4,
        salt: [u8; 32] = 8,
        key_material_offset: u32 = 40,
        stripes: u32 = 44,
    }
}

on_disk! {
    /// The binary header of LUKS 2 (LUKS2 On-Disk Format Specification 1.1.0, section 2.1), without the
    /// padding.
    struct Header2 in LUKS, "LUKS 2 header", Big, 512 bytes {
        magic: [u8; 6] = 0,
        version: u16 = 6,
        hdr_size: u64 = 8,
        seqid: u64 = 16,
        label: [u8; 48] = 24,
        csum_alg: [u8; 32] = 72,
        salt: [u8; 64] = 104,
        uuid: [u8; 40] = 168,
        subsystem: [u8; 48] = 208,
        hdr_offset: u64 = 256,
        csum: [u8; 64] = 448,
    }
}

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const SLOT_ENABLED: u32 = 0x00ac_71f3;
const SECTOR: u64 = 512;

/// Returns the offset of the encrypted data after a LUKS 1 header; `bytes` start a file.
pub(crate) fn payload(bytes: &[u8]) -> Result<u64> {
    Ok(u64::from(version_1(bytes, 0)?.payload_offset) * SECTOR)
}

/// The version of a LUKS header, which is in the same place in all of them; `None` if it is none.
pub(crate) fn version(bytes: &[u8]) -> Option<u16> {
    let header = Phdr::parse(bytes, 0).ok()?;
    (header.magic == MAGIC).then_some(header.version)
}

fn version_1(bytes: &[u8], at: u64) -> Result<Phdr> {
    let header = Phdr::parse(bytes, at)?;
    if header.magic != MAGIC || header.version != 1 {
        return Err(Phdr::malformed(
            at,
            "magic",
            "is not that of LUKS version 1",
        ));
    }
    Ok(header)
}

/// Describes a LUKS 1 header under the names of QEMU's `QCryptoBlockInfoLUKS`; `bytes` start at byte
/// `at` of the file.
pub(crate) fn describe(bytes: &[u8], at: u64) -> Result<Value> {
    let header = version_1(bytes, at)?;
    let cipher = until_nul(&header.cipher_name);
    let mode = until_nul(&header.cipher_mode);
    // "xts-plain64", "cbc-essiv:sha256": mode, generator of initial vectors, and its hash.
    let (mode, ivgen) = split(mode, b'-');
    let (ivgen, ivgen_hash) = split(ivgen, b':');
    // XTS has two keys, each of half the length.
    let keys = if mode == b"xts" { 2 } else { 1 };
    let key_bits = u64::from(header.key_bytes) / keys * 8;
    let algorithm = [cipher, b"-", key_bits.to_string().as_bytes()].concat();

    let mut info = Value::map();
    info.insert("format", "luks");
    info.insert("detached-header", false);
    info.insert("cipher-alg", ImageName::new(algorithm));
    info.insert("cipher-mode", ImageName::from(mode));
    info.insert("ivgen-alg", ImageName::from(ivgen));
    if !ivgen_hash.is_empty() {
        info.insert("ivgen-hash-alg", ImageName::from(ivgen_hash));
    }
    info.insert("hash-alg", ImageName::from(until_nul(&header.hash_spec)));
    info.insert("uuid", ImageName::from(until_nul(&header.uuid)));
    info.insert("master-key-iters", header.mk_digest_iter);
    info.insert("payload-offset", u64::from(header.payload_offset) * SECTOR);
    let mut slots = Vec::new();
    let table = bytes.get(Phdr::LEN..HEADER_LEN).unwrap_or_default();
    for slot in table.chunks_exact(KeySlot::LEN) {
        let slot = KeySlot::parse(slot, at)?;
        let mut entry = Value::map();
        entry.insert("active", slot.active == SLOT_ENABLED);
        if slot.active == SLOT_ENABLED {
            entry.insert("iters", slot.iterations);
            entry.insert("stripes", slot.stripes);
        }
        entry.insert("key-offset", u64::from(slot.key_material_offset) * SECTOR);
        slots.push(entry);
    }
    info.insert("slots", slots);
    Ok(info)
}

/// Facts of an encrypted volume that need no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    /// 1 or 2.
    pub(crate) version: u16,
    /// Its label, which version 2 may have.
    pub(crate) label: Option<ImageName>,
    pub(crate) uuid: ImageName,
}

impl Volume {
    /// The volume that starts with these bytes, at least [`HEADER_LEN`] of them.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let header = Header2::parse(bytes, 0).ok()?;
        if header.magic != MAGIC || !matches!(header.version, 1 | 2) {
            return None;
        }
        // Both versions have the UUID at the same place, and only the second one has a label.
        let label = Some(until_nul(&header.label)).filter(|l| header.version == 2 && !l.is_empty());
        Some(Volume {
            version: header.version,
            label: label.map(ImageName::from),
            uuid: ImageName::from(until_nul(&header.uuid)),
        })
    }
}

fn split(text: &[u8], separator: u8) -> (&[u8], &[u8]) {
    let mut parts = text.splitn(2, |byte| *byte == separator);
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}
