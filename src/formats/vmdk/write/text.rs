//! The text of a descriptor (section "The Descriptor File"), in the order in which VMware writes it.

use crate::name::ImageName;

use super::Names;
use super::options::{AdapterType, Subformat, VmdkOptions};
use crate::formats::vmdk::descriptor::NO_CID;
use crate::formats::vmdk::header::SECTOR;

/// An extent as its line describes it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) access: &'static str,
    /// Size in bytes.
    pub(super) size: u64,
    pub(super) kind: &'static str,
    pub(super) name: ImageName,
    /// Set if the line has an offset in the file; it is 0.
    pub(super) offset: bool,
}

/// The descriptor of a disk of `size` bytes.
pub(super) fn descriptor(
    options: &VmdkOptions,
    size: u64,
    names: &Names,
    extents: &[Line],
) -> Vec<u8> {
    let cid = options
        .cid
        .unwrap_or_else(|| derived_cid(options, size, names));
    let backing = options.backing.as_ref();
    let parent = backing.and_then(|b| b.ids.content_id).unwrap_or(NO_CID);
    let mut text = Vec::new();
    let mut push = |line: &[u8]| {
        text.extend_from_slice(line);
        text.push(b'\n');
    };
    let mut line = |line: String| push(line.as_bytes());
    line("# Disk DescriptorFile".to_owned());
    line("version=1".to_owned());
    let bytes = extents.iter().map(|extent| &extent.name);
    let mut all = bytes.chain(backing.map(|backing| &backing.name));
    if all.all(|name| name.as_str().is_some()) {
        line("encoding=\"UTF-8\"".to_owned());
    }
    line(format!("CID={cid:08x}"));
    line(format!("parentCID={parent:08x}"));
    line(format!(
        "createType=\"{}\"",
        options.subformat.create_type()
    ));
    if let Some(backing) = backing {
        push(&[b"parentFileNameHint=\"", backing.name.as_bytes(), b"\""].concat());
    }
    push(b"\n# Extent description");
    for extent in extents {
        let head = format!(
            "{} {} {} \"",
            extent.access,
            extent.size / SECTOR,
            extent.kind
        );
        let tail = if extent.offset { "\" 0" } else { "\"" };
        push(&[head.as_bytes(), extent.name.as_bytes(), tail.as_bytes()].concat());
    }
    push(b"\n# The Disk Data Base\n#DDB\n");
    for (key, value) in database(options, size) {
        push(format!("ddb.{key} = \"{value}\"").as_bytes());
    }
    text
}

/// The entries of the disk database.
fn database(options: &VmdkOptions, size: u64) -> Vec<(&'static str, String)> {
    let esxi = matches!(options.subformat, Subformat::Vmfs | Subformat::VmfsThin);
    let usual = if esxi {
        AdapterType::LsiLogic
    } else {
        AdapterType::Ide
    };
    let adapter = options.adapter_type.unwrap_or(usual);
    let heads = match adapter {
        AdapterType::Ide => 16,
        _ => 255,
    };
    const SECTORS_PER_TRACK: u64 = 63;
    let hardware = match (options.hardware_version, options.compat6) {
        (Some(version), _) => version,
        (None, true) => 6,
        (None, false) => 4,
    };
    let cylinders = size / (SECTORS_PER_TRACK * heads * SECTOR);
    let mut entries = vec![
        ("virtualHWVersion", hardware.to_string()),
        ("geometry.cylinders", cylinders.to_string()),
        ("geometry.heads", heads.to_string()),
        ("geometry.sectors", SECTORS_PER_TRACK.to_string()),
        ("adapterType", adapter.name().to_owned()),
        ("toolsVersion", options.tools_version.to_string()),
    ];
    if options.subformat == Subformat::VmfsThin {
        entries.push(("thinProvisioned", "1".to_owned()));
    }
    if let Some(uuid) = options.uuid {
        let hex = |bytes: &[u8]| {
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            bytes.join(" ")
        };
        let (first, second) = uuid.as_bytes().split_at(8);
        entries.push(("uuid", format!("{}-{}", hex(first), hex(second))));
    }
    entries
}

/// A content id that depends on what the disk is called and how it is laid out, and never on the time:
/// the descriptor of a stream is written before its content is known. FNV-1a.
fn derived_cid(options: &VmdkOptions, size: u64, names: &Names) -> u32 {
    let parent = options.backing.as_ref().and_then(|b| b.ids.content_id);
    let seed = [
        names.own().as_bytes(),
        options.subformat.create_type().as_bytes(),
        &size.to_le_bytes(),
        &parent.unwrap_or(NO_CID).to_le_bytes(),
    ]
    .concat();
    let hash = seed.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    // The two largest numbers mean something else, and 0 is what some take for none.
    hash.clamp(1, 0xffff_fffd)
}
