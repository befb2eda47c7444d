//! Content of the disk in an image, as a part of its description.

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

/// Content of the disk. `None` if it is compressed in large units, encrypted, in files that were left
/// closed, or not recognised. Errors are added to the warnings.
pub(super) fn of_image(
    image: &dyn Image,
    limits: &Limits,
    warnings: &mut Vec<String>,
) -> Option<Contents> {
    // A page of a large compressed unit costs the whole of it, and a description has to be cheap.
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

/// Properties for an image service, in OpenStack's words: those that the image and its content tell.
pub(super) fn properties(
    info: &ImageInfo,
    contents: Option<&Contents>,
) -> Vec<(&'static str, String)> {
    const GIB: u64 = 1 << 30;
    let mut properties = info.properties.clone();
    properties.extend(contents.map(Contents::properties).unwrap_or_default());
    // A system installed from a CD needs more room than the CD.
    if contents.is_none_or(|contents| contents.iso.is_none()) {
        let gib = info.virtual_size.div_ceil(GIB);
        properties.push(("min_disk", gib.to_string()));
    }
    properties.sort();
    properties
}

/// The properties as a flat map.
pub(super) fn properties_value(properties: &[(&'static str, String)]) -> Value {
    let entries = properties.iter();
    Value::Map(
        entries
            .map(|(name, value)| (*name, value.clone().into()))
            .collect(),
    )
}

/// The contents as a tree.
pub(super) fn value(contents: &Contents) -> Value {
    let efi = &contents.efi;
    let efi = (!efi.is_empty()).then(|| efi.iter().map(efi_value).collect::<Vec<_>>());
    let release = contents.os_release.as_ref().map(|release| {
        Value::map()
            .with("id", release.id.clone())
            .with_some("version-id", release.version_id.clone())
    });
    Value::map()
        .with_some("mbr", contents.mbr.as_ref().map(mbr_value))
        .with_some("gpt", contents.gpt.as_ref().map(gpt_value))
        .with_list(
            "partitions",
            contents.partitions.iter().map(partition_value),
        )
        .with_list(
            "filesystems",
            contents.filesystems.iter().map(filesystem_value),
        )
        .with_some("iso", contents.iso.as_ref().map(iso_value))
        .with_some("udf", contents.udf.as_ref().map(udf_value))
        .with_some("efi", efi)
        .with_some("os-release", release)
        .with_list("findings", contents.findings.iter().map(finding_value))
}

fn mbr_value(mbr: &Mbr) -> Value {
    let entries = mbr.entries.iter().chain(&mbr.logical).map(|entry| {
        Value::map()
            .with("flag", format!("{:02x}", entry.flag))
            .with("type", format!("{:02x}", entry.kind))
            .with("first-sector", entry.first_sector)
            .with("sectors", entry.sectors)
    });
    Value::map()
        .with("disk-signature", format!("{:08x}", mbr.disk_signature))
        .with_some("boot-code", mbr.boot_code.map(|code| code.as_str()))
        .with("protective", mbr.is_protective())
        .with("hybrid", mbr.is_hybrid())
        .with_list("entries", entries)
}

fn gpt_value(gpt: &Gpt) -> Value {
    let copy = |copy: &GptCopy| {
        let value = Value::map().with("state", copy.as_str());
        match copy {
            GptCopy::Misplaced { offset } => value.with("offset", *offset),
            GptCopy::Damaged { problem } => value.with("problem", problem.clone()),
            _ => value,
        }
    };
    Value::map()
        .with("sector-size", gpt.sector_size)
        .with("disk-guid", gpt.disk_guid.clone())
        .with("primary", copy(&gpt.primary))
        .with("backup", copy(&gpt.backup))
        .with("array-offset", gpt.array_offset)
        .with("array-entries", gpt.array_entries)
        .with("entry-size", gpt.entry_size)
}

fn partition_value(partition: &Partition) -> Value {
    let scheme = match partition.kind {
        PartitionType::Mbr(_) => "mbr",
        _ => "gpt",
    };
    let filesystem = partition.filesystem.as_ref().map(filesystem_value);
    Value::map()
        .with("number", partition.number)
        .with("offset", partition.offset)
        .with("size", partition.size)
        .with("scheme", scheme)
        .with("type", partition.kind.code())
        .with_some("type-name", partition.kind.name())
        .with("active", partition.active)
        .with_some("name", partition.name.clone())
        .with_some("guid", partition.guid.clone())
        .with_some("filesystem", filesystem)
}

fn filesystem_value(filesystem: &Filesystem) -> Value {
    Value::map()
        .with("type", filesystem.kind.as_str())
        .with_some("label", filesystem.label.clone())
        .with_some("uuid", filesystem.uuid.clone())
        .with_some("size", filesystem.size)
        .with("evidence", filesystem.evidence.what)
        .with("offset", filesystem.evidence.offset)
}

fn iso_value(iso: &Iso) -> Value {
    Value::map()
        .with_some("volume-id", iso.volume_id.clone())
        .with_some("system-id", iso.system_id.clone())
        .with_some("volume-set-id", iso.volume_set_id.clone())
        .with_some("publisher-id", iso.publisher_id.clone())
        .with_some("data-preparer-id", iso.data_preparer_id.clone())
        .with_some("application-id", iso.application_id.clone())
        .with_some("created", iso.created.clone())
        .with_some("modified", iso.modified.clone())
        .with("block-size", iso.block_size)
        .with("size", iso.size)
        .with("offset", iso.offset)
        .with("sessions", iso.sessions)
        .with_some("joliet-level", iso.joliet.map(u64::from))
        .with_some("joliet-volume-id", iso.joliet_volume_id.clone())
        .with("rock-ridge", iso.rock_ridge)
        .with_some("boot-catalogue", iso.boot.as_ref().map(catalogue_value))
}

fn catalogue_value(catalogue: &BootCatalogue) -> Value {
    let entries = catalogue.entries.iter().map(|entry| {
        Value::map()
            .with("platform", entry.platform_name())
            .with("platform-id", u64::from(entry.platform))
            .with("bootable", entry.bootable)
            .with("media", entry.media.as_str())
            .with("offset", entry.offset)
            .with("load-size", entry.load_size)
    });
    Value::map()
        .with("offset", catalogue.offset)
        .with_some("id", catalogue.id.clone())
        .with("checksum-is-right", catalogue.checksum_is_right)
        .with_list("entries", entries)
}

fn udf_value(udf: &Udf) -> Value {
    let revision = format!("{:x}.{:02x}", udf.revision >> 8, udf.revision & 0xff);
    Value::map()
        .with_some("logical-volume-id", udf.logical_volume_id.clone())
        .with_some("volume-id", udf.volume_id.clone())
        .with_some("volume-set-id", udf.volume_set_id.clone())
        .with("revision", revision)
        .with("block-size", udf.block_size)
        .with("size", udf.size)
        .with("bridge", udf.is_bridge)
}

fn efi_value(volume: &EfiVolume) -> Value {
    let programs = volume.programs.iter().map(|program| {
        Value::map()
            .with("name", program.name.clone())
            .with_some("architecture", program.architecture.map(|a| a.as_str()))
            .with("signed", program.is_signed)
    });
    Value::map()
        .with("offset", volume.offset)
        .with_list("programs", programs)
        .with_list("vendors", volume.vendors.iter().cloned())
}

fn finding_value(finding: &Finding) -> Value {
    Value::map()
        .with("subject", finding.fact.subject())
        .with("value", finding.fact.value())
        .with("source", finding.source.clone())
        .with("confidence", finding.confidence.as_str())
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
