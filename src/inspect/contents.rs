//! What the disk in an image holds, as a part of its description.

use std::fmt;

use crate::content::{
    self, BootCatalogue, Contents, EfiVolume, Filesystem, Finding, Firmware, Gpt, GptCopy, Iso,
    Mbr, Partition, PartitionType, Udf,
};
use crate::error::Error;
use crate::image::{Image, ImageInfo, Value};
use crate::inspect::human;
use crate::limits::Limits;
use crate::name::ImageName;

/// What an image holds; nothing if that is packed in large units, encrypted, lies in files that were left closed, or cannot be
/// recognised. What went wrong is added to the warnings.
pub(super) fn of_image(
    image: &dyn Image,
    limits: &Limits,
    warnings: &mut Vec<String>,
) -> Option<Contents> {
    // Every page of a large packed unit costs the whole of it, and a description has to be cheap.
    const LARGE_UNIT: u64 = 512 << 10;
    let costly = image.packed().is_some() && image.block_size() > LARGE_UNIT;
    if cfg!(not(feature = "content")) || image.info().encryption.is_some() || costly {
        return None;
    }
    match content::examine(&image, limits) {
        Ok(mut contents) => {
            warnings.append(&mut contents.warnings);
            Some(contents).filter(|contents| !contents.is_empty())
        }
        Err(Error::Detached { .. }) => None,
        Err(error) => {
            warnings.push(format!(
                "what the disk holds is not known: {}",
                error.chain()
            ));
            None
        }
    }
}

/// What to tell an image service, in OpenStack's words: what is clear from the image and from what it
/// holds.
pub(super) fn properties(
    info: &ImageInfo,
    contents: Option<&Contents>,
) -> Vec<(&'static str, String)> {
    const GIB: u64 = 1 << 30;
    let mut properties = info.properties.clone();
    properties.extend(contents.map(Contents::properties).unwrap_or_default());
    // What is installed from a CD needs more room than the CD.
    if contents.is_none_or(|contents| contents.iso.is_none()) {
        let gib = info.virtual_size.div_ceil(GIB);
        properties.push(("min_disk", gib.to_string()));
    }
    properties.sort();
    properties
}

/// The properties as a flat map.
pub(super) fn properties_value(properties: &[(&'static str, String)]) -> Value {
    let mut map = Value::map();
    for (name, value) in properties {
        map.insert(name, value.clone());
    }
    map
}

/// The contents as a tree.
pub(super) fn value(contents: &Contents) -> Value {
    let mut map = Value::map();
    if let Some(mbr) = &contents.mbr {
        map.insert("mbr", mbr_value(mbr));
    }
    if let Some(gpt) = &contents.gpt {
        map.insert("gpt", gpt_value(gpt));
    }
    let partitions = contents.partitions.iter().map(partition_value);
    map.insert("partitions", partitions.collect::<Vec<_>>());
    let filesystems = contents.filesystems.iter().map(filesystem_value);
    map.insert("filesystems", filesystems.collect::<Vec<_>>());
    if let Some(iso) = &contents.iso {
        map.insert("iso", iso_value(iso));
    }
    if let Some(udf) = &contents.udf {
        map.insert("udf", udf_value(udf));
    }
    if !contents.efi.is_empty() {
        let volumes = contents.efi.iter().map(efi_value);
        map.insert("efi", volumes.collect::<Vec<_>>());
    }
    if let Some(release) = &contents.os_release {
        let mut value = Value::map();
        value.insert("id", release.id.clone());
        put(&mut value, "version-id", release.version_id.clone());
        map.insert("os-release", value);
    }
    let findings = contents.findings.iter().map(finding_value);
    map.insert("findings", findings.collect::<Vec<_>>());
    map
}

fn put<T: Into<Value>>(map: &mut Value, name: &'static str, value: Option<T>) {
    if let Some(value) = value {
        map.insert(name, value);
    }
}

fn mbr_value(mbr: &Mbr) -> Value {
    let mut map = Value::map();
    map.insert("disk-signature", format!("{:08x}", mbr.disk_signature));
    put(
        &mut map,
        "boot-code",
        mbr.boot_code.map(|code| code.as_str()),
    );
    map.insert("protective", mbr.is_protective());
    map.insert("hybrid", mbr.is_hybrid());
    let entries = mbr.entries.iter().chain(&mbr.logical).map(|entry| {
        let mut map = Value::map();
        map.insert("flag", format!("{:02x}", entry.flag));
        map.insert("type", format!("{:02x}", entry.kind));
        map.insert("first-sector", entry.first_sector);
        map.insert("sectors", entry.sectors);
        map
    });
    map.insert("entries", entries.collect::<Vec<_>>());
    map
}

fn gpt_value(gpt: &Gpt) -> Value {
    let mut map = Value::map();
    map.insert("sector-size", gpt.sector_size);
    map.insert("disk-guid", gpt.disk_guid.clone());
    for (name, copy) in [("primary", &gpt.primary), ("backup", &gpt.backup)] {
        let mut value = Value::map();
        value.insert("state", copy.as_str());
        match copy {
            GptCopy::Misplaced { offset } => value.insert("offset", *offset),
            GptCopy::Damaged { problem } => value.insert("problem", problem.clone()),
            _ => {}
        }
        map.insert(name, value);
    }
    map.insert("array-offset", gpt.array_offset);
    map.insert("array-entries", gpt.array_entries);
    map.insert("entry-size", gpt.entry_size);
    map
}

fn partition_value(partition: &Partition) -> Value {
    let mut map = Value::map();
    map.insert("number", partition.number);
    map.insert("offset", partition.offset);
    map.insert("size", partition.size);
    let scheme = match partition.kind {
        PartitionType::Mbr(_) => "mbr",
        _ => "gpt",
    };
    map.insert("scheme", scheme);
    map.insert("type", partition.kind.code());
    put(&mut map, "type-name", partition.kind.name());
    map.insert("active", partition.active);
    put(&mut map, "name", partition.name.clone());
    put(&mut map, "guid", partition.guid.clone());
    put(
        &mut map,
        "filesystem",
        partition.filesystem.as_ref().map(filesystem_value),
    );
    map
}

fn filesystem_value(filesystem: &Filesystem) -> Value {
    let mut map = Value::map();
    map.insert("type", filesystem.kind.as_str());
    put(&mut map, "label", filesystem.label.clone());
    put(&mut map, "uuid", filesystem.uuid.clone());
    put(&mut map, "size", filesystem.size);
    map.insert("evidence", filesystem.evidence.what);
    map.insert("offset", filesystem.evidence.offset);
    map
}

fn iso_value(iso: &Iso) -> Value {
    let mut map = Value::map();
    let texts = [
        ("volume-id", &iso.volume_id),
        ("system-id", &iso.system_id),
        ("volume-set-id", &iso.volume_set_id),
        ("publisher-id", &iso.publisher_id),
        ("data-preparer-id", &iso.data_preparer_id),
        ("application-id", &iso.application_id),
    ];
    for (name, text) in texts {
        put(&mut map, name, text.clone());
    }
    put(&mut map, "created", iso.created.clone());
    put(&mut map, "modified", iso.modified.clone());
    map.insert("block-size", iso.block_size);
    map.insert("size", iso.size);
    map.insert("offset", iso.offset);
    map.insert("sessions", iso.sessions);
    put(&mut map, "joliet-level", iso.joliet.map(u64::from));
    put(&mut map, "joliet-volume-id", iso.joliet_volume_id.clone());
    map.insert("rock-ridge", iso.rock_ridge);
    put(
        &mut map,
        "boot-catalogue",
        iso.boot.as_ref().map(catalogue_value),
    );
    map
}

fn catalogue_value(catalogue: &BootCatalogue) -> Value {
    let mut map = Value::map();
    map.insert("offset", catalogue.offset);
    put(&mut map, "id", catalogue.id.clone());
    map.insert("checksum-is-right", catalogue.checksum_is_right);
    let entries = catalogue.entries.iter().map(|entry| {
        let mut map = Value::map();
        map.insert("platform", entry.platform_name());
        map.insert("platform-id", u64::from(entry.platform));
        map.insert("bootable", entry.bootable);
        map.insert("media", entry.media.as_str());
        map.insert("offset", entry.offset);
        map.insert("load-size", entry.load_size);
        map
    });
    map.insert("entries", entries.collect::<Vec<_>>());
    map
}

fn udf_value(udf: &Udf) -> Value {
    let mut map = Value::map();
    put(&mut map, "logical-volume-id", udf.logical_volume_id.clone());
    put(&mut map, "volume-id", udf.volume_id.clone());
    put(&mut map, "volume-set-id", udf.volume_set_id.clone());
    map.insert(
        "revision",
        format!("{:x}.{:02x}", udf.revision >> 8, udf.revision & 0xff),
    );
    map.insert("block-size", udf.block_size);
    map.insert("size", udf.size);
    map.insert("bridge", udf.is_bridge);
    map
}

fn efi_value(volume: &EfiVolume) -> Value {
    let mut map = Value::map();
    map.insert("offset", volume.offset);
    let programs = volume.programs.iter().map(|program| {
        let mut map = Value::map();
        map.insert("name", program.name.clone());
        put(
            &mut map,
            "architecture",
            program.architecture.map(|a| a.as_str()),
        );
        map.insert("signed", program.is_signed);
        map
    });
    map.insert("programs", programs.collect::<Vec<_>>());
    let vendors = volume.vendors.iter().cloned().map(Value::from);
    map.insert("vendors", vendors.collect::<Vec<_>>());
    map
}

fn finding_value(finding: &Finding) -> Value {
    let mut map = Value::map();
    map.insert("subject", finding.fact.subject());
    map.insert("value", finding.fact.value());
    map.insert("source", finding.source.clone());
    map.insert("confidence", finding.confidence.as_str());
    map
}

/// The contents in lines for people.
pub(super) fn write(
    f: &mut fmt::Formatter<'_>,
    contents: &Contents,
    properties: &[(&'static str, String)],
) -> fmt::Result {
    writeln!(f, "Disk contents:")?;
    for filesystem in &contents.filesystems {
        write!(f, "    {}", filesystem.kind.as_str())?;
        if let Some(label) = &filesystem.label {
            write!(f, ", label {}", label.quoted())?;
        }
        if let Some(uuid) = &filesystem.uuid {
            write!(f, ", UUID {uuid}")?;
        }
        if let Some(size) = filesystem.size {
            write!(f, ", {}", human::size(size))?;
        }
        writeln!(f)?;
    }
    if let Some(mbr) = contents.mbr.as_ref().filter(|_| contents.gpt.is_none()) {
        writeln!(f, "    MBR, disk signature {:08x}", mbr.disk_signature)?;
    }
    if let Some(gpt) = &contents.gpt {
        writeln!(
            f,
            "    GPT, sectors of {} bytes, GUID {}",
            gpt.sector_size, gpt.disk_guid
        )?;
    }
    if !contents.partitions.is_empty() {
        write_table(f, &contents.partitions)?;
    }
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let is_it = |finding: &&Finding| finding.fact == content::Fact::Firmware(firmware);
        if let Some(best) = contents.findings.iter().find(is_it) {
            let confidence = best.confidence.as_str();
            writeln!(
                f,
                "    starts by {}: {} (confidence: {confidence})",
                firmware.as_str(),
                best.source
            )?;
        }
    }
    let words: Vec<String> = properties
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    match words.is_empty() {
        true => Ok(()),
        false => writeln!(f, "    properties: {}", words.join(" ")),
    }
}

/// The partitions as a table, as wide as what stands in it.
fn write_table(f: &mut fmt::Formatter<'_>, partitions: &[Partition]) -> fmt::Result {
    let head = ["NR", "TYPE", "START", "SIZE", "CONTENT", "LABEL"].map(str::to_owned);
    let mut rows = vec![head];
    for partition in partitions {
        let kind = partition.kind.name();
        let kind = kind.map_or_else(|| partition.kind.code(), str::to_owned);
        let filesystem = partition.filesystem.as_ref();
        let label = filesystem.and_then(|f| f.label.as_ref());
        let label = label.or(partition.name.as_ref());
        rows.push([
            partition.number.to_string(),
            kind,
            partition.offset.to_string(),
            human::size(partition.size),
            filesystem.map_or("-", |f| f.kind.as_str()).to_owned(),
            label.map_or("-".to_owned(), |label: &ImageName| {
                label.escaped().to_string()
            }),
        ]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("  {cell:width$}"));
        }
        writeln!(f, "  {}", line.trim_end())?;
    }
    Ok(())
}
