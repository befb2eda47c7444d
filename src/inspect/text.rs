//! The form for people.

use std::fmt;

use crate::image::{SnapshotInfo, Value};
use crate::inspect::{PROTOCOL, Report, contents, human, in_sectors, order};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = &self.info;
        writeln!(f, "image: {}", self.filename.escaped())?;
        writeln!(f, "file format: {}", self.qemu_format())?;
        match info.size_is_unknown {
            true => writeln!(f, "virtual size: unavailable")?,
            false => write_size(f, "", "virtual size", info.virtual_size)?,
        }
        if self.file.is_some() {
            write_disk_size(f, "", self.allocated_size())?;
        }
        if info.encryption.is_some() {
            writeln!(f, "encrypted: yes")?;
        }
        let known = !info.unknown_to_qemu;
        if let Some(size) = info.cluster_size.filter(|_| known) {
            writeln!(f, "cluster_size: {size}")?;
        }
        if info.dirty && known {
            writeln!(f, "cleanly shut down: no")?;
        }
        self.write_backing(f)?;
        if !info.snapshots.is_empty() {
            write_snapshots(f, &info.snapshots)?;
        }
        if let Some(specific @ Value::Map(entries)) = &info.specific {
            if !entries.is_empty() {
                writeln!(f, "Format specific information:")?;
                let specific = self.with_full_names(specific.clone());
                write_value(f, &order::as_qemu(specific), 1)?;
            }
        }
        for file in self.children() {
            writeln!(f, "Child node '/{}':", file.node)?;
            writeln!(f, "    filename: {}", file.name.escaped())?;
            writeln!(f, "    protocol type: {PROTOCOL}")?;
            write_size(f, "    ", "file length", file.size)?;
            write_disk_size(f, "    ", file.allocated_size)?;
        }
        if let Some(contents) = &self.contents {
            contents::write(f, contents, &self.properties)?;
        }
        if !self.warnings.is_empty() || info.details.is_some() {
            writeln!(f, "Notes:")?;
        }
        if let Some(details) = &info.details {
            write_value(f, details, 1)?;
        }
        for warning in &self.warnings {
            writeln!(f, "    {warning}")?;
        }
        match &self.safety {
            Some(safety) => write!(f, "{safety}"),
            None => Ok(()),
        }
    }
}

impl Report {
    fn write_backing(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(backing) = self.backing() else {
            return Ok(());
        };
        write!(f, "backing file: {}", backing.name.escaped())?;
        if let Some(full) = self.full_backing_filename() {
            if full != backing.name {
                write!(f, " (actual path: {})", full.escaped())?;
            }
        }
        writeln!(f)?;
        match &backing.format {
            Some(format) => writeln!(f, "backing file format: {}", format.escaped()),
            None => Ok(()),
        }
    }
}

fn write_size(f: &mut fmt::Formatter<'_>, indent: &str, label: &str, bytes: u64) -> fmt::Result {
    let bytes = in_sectors(bytes);
    writeln!(f, "{indent}{label}: {} ({bytes} bytes)", human::size(bytes))
}

fn write_disk_size(f: &mut fmt::Formatter<'_>, indent: &str, size: Option<u64>) -> fmt::Result {
    let size = size.map(human::size);
    let size = size.as_deref().unwrap_or("unavailable");
    writeln!(f, "{indent}disk size: {size}")
}

fn write_snapshots(f: &mut fmt::Formatter<'_>, snapshots: &[SnapshotInfo]) -> fmt::Result {
    let row = |f: &mut fmt::Formatter<'_>, [id, tag, size, date, clock, count]: [&str; 6]| {
        writeln!(
            f,
            "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {count:>10}"
        )
    };
    writeln!(f, "Snapshot list:")?;
    row(f, ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"])?;
    for snapshot in snapshots {
        let count = snapshot.instruction_count;
        row(
            f,
            [
                &snapshot.id.escaped().to_string(),
                &snapshot.name.escaped().to_string(),
                &human::size(snapshot.vm_state_size),
                &human::date(snapshot.date_seconds),
                &human::clock(snapshot.vm_clock_nanoseconds),
                count.map_or("--".to_owned(), |n| n.to_string()).as_str(),
            ],
        )?;
    }
    Ok(())
}

/// Writes a value of the format's own: what has parts takes a line for each, one step further in.
fn write_value(f: &mut fmt::Formatter<'_>, value: &Value, depth: usize) -> fmt::Result {
    match value {
        Value::Bool(value) => write!(f, "{value}"),
        Value::Number(value) => write!(f, "{value}"),
        Value::Text(text) => f.write_str(text),
        Value::Name(name) | Value::File(Some(name)) => write!(f, "{}", name.escaped()),
        Value::File(None) => Ok(()),
        Value::List(values) => values
            .iter()
            .enumerate()
            .try_for_each(|(i, value)| write_entry(f, &format!("[{i}]"), value, depth)),
        Value::Map(entries) => entries
            .iter()
            .try_for_each(|(name, value)| write_entry(f, &name.replace('-', " "), value, depth)),
    }
}

fn write_entry(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    value: &Value,
    depth: usize,
) -> fmt::Result {
    let indent = depth * 4;
    match value {
        Value::List(_) | Value::Map(_) => {
            writeln!(f, "{:indent$}{label}:", "")?;
            write_value(f, value, depth + 1)
        }
        plain => {
            write!(f, "{:indent$}{label}: ", "")?;
            write_value(f, plain, depth)?;
            writeln!(f)
        }
    }
}
