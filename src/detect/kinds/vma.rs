//! Proxmox' backup archives (pve-qemu, `vma_spec.txt`): the disks and the configuration of a machine.

use crate::error::Result;
use crate::format_id::FormatId;
use crate::image::{ImageInfo, Probe, Value};
use crate::name::ImageName;
use crate::ondisk::{le, on_disk, until_nul};

use super::look::{Look, of_unknown_size};
use super::{Family, Found, Kind, found};

const VMA: FormatId = FormatId::new("vma");

static KIND: Kind = Kind::image("vma", "Proxmox backup archive", describe);

pub(super) const FAMILY: Family = Family {
    kinds: &[&KIND],
    probe,
};

on_disk! {
    /// `VmaHeader`, up to its tables.
    struct Header in VMA, "header", Big, 60 bytes {
        magic: [u8; 4] = 0,
        version: u32 = 4,
        uuid: [u8; 16] = 8,
        ctime: u64 = 24,
        md5sum: [u8; 16] = 32,
        blob_buffer_offset: u32 = 48,
        blob_buffer_size: u32 = 52,
        header_size: u32 = 56,
    }
}

on_disk! {
    /// `VmaDeviceInfoHeader`.
    struct DeviceInfo in VMA, "device info", Big, 32 bytes {
        devname_ptr: u32 = 0,
        size: u64 = 8,
    }
}

/// Offset of the table of devices, and its number of entries.
const DEVICES: (usize, usize) = (4096, 256);
/// Longest name of a device that is told, in bytes.
const NAME_LEN: usize = 255;

fn probe(window: &Probe<'_>) -> Option<Found> {
    // Four letters are little evidence: the only version is compared, too.
    let begins = window.has(0, b"VMA\0\0\0\0\x01");
    begins.then(|| found(&KIND, "VMA", 0)).flatten()
}

fn describe(look: &Look<'_>) -> Result<ImageInfo> {
    let head = look.window.head;
    let header = Header::parse(head, 0)?;
    let mut details = Value::map();
    details.insert("version", header.version);
    let (start, count) = DEVICES;
    let table = head.get(start..start + count * DeviceInfo::LEN);
    let mut devices = Vec::new();
    let mut disks = Vec::new();
    let entries = table.unwrap_or_default().chunks_exact(DeviceInfo::LEN);
    for (bytes, at) in entries.zip((start as u64..).step_by(DeviceInfo::LEN)) {
        let device = DeviceInfo::parse(bytes, at)?;
        if device.devname_ptr == 0 {
            continue;
        }
        let name = name(look, &header, device.devname_ptr)?;
        // The memory of the machine is among the devices, and is not a disk.
        if name.as_bytes() != b"vmstate" {
            disks.push(device.size);
        }
        let mut entry = Value::map();
        entry.insert("name", name);
        entry.insert("size", device.size);
        devices.push(entry);
    }
    details.insert("devices", devices);
    let mut info = of_unknown_size(details);
    if let [size] = disks.as_slice() {
        info.virtual_size = *size;
        info.size_is_unknown = false;
    }
    Ok(info)
}

/// A name in the buffer of blobs: its length in two bytes, and the text.
fn name(look: &Look<'_>, header: &Header, pointer: u32) -> Result<ImageName> {
    let at = u64::from(header.blob_buffer_offset) + u64::from(pointer);
    let blob = look.read(at, 2 + NAME_LEN)?;
    let len: u16 = le(&blob, 0).unwrap_or(0);
    let name = blob.get(2..).unwrap_or_default();
    let name = name.get(..usize::from(len)).unwrap_or(name);
    Ok(ImageName::from(until_nul(name)))
}
