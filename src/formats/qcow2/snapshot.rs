//! The snapshot table (section "Snapshots").

use crate::error::{Error, Result};
use crate::image::{SnapshotInfo, SnapshotSelector};
use crate::limits::Limits;
use crate::name::ImageName;
use crate::ondisk::{Reader, on_disk};
use crate::source::BlockSource;

use super::QCOW2;
use super::header::Header;

on_disk! {
    /// The fixed part of an entry of the snapshot table.
    struct SnapshotHeader in QCOW2, "snapshot table", Big, 40 bytes {
        l1_table_offset: u64 = 0,
        l1_size: u32 = 8,
        id_str_size: u16 = 12,
        name_size: u16 = 14,
        date_sec: u32 = 16,
        date_nsec: u32 = 20,
        vm_clock_nsec: u64 = 24,
        vm_state_size: u32 = 32,
        extra_data_size: u32 = 36,
    }
}

on_disk! {
    /// The extra data of an entry, as far as it is known. Version 3 requires the first two fields.
    struct SnapshotExtra in QCOW2, "snapshot table", Big, 24 bytes {
        vm_state_size_large: u64 = 0,
        virtual_disk_size: u64 = 8,
        icount: u64 = 16,
    }
}

/// Bytes of extra data that version 3 requires: the first two fields of it.
pub(super) const EXTRA_REQUIRED: u32 = 16;
/// `icount` of a snapshot for which no instructions were counted.
const NO_ICOUNT: u64 = u64::MAX;
/// The most extra data that QEMU reads, in bytes.
const MAX_EXTRA: u32 = 1024;
/// More than the longest entry: its fixed part, extra data, and two strings of 64 KiB.
const WINDOW: usize = 160 << 10;

/// An internal snapshot: what is known about it, and where its L1 table is.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) info: SnapshotInfo,
    pub(super) l1_table_offset: u64,
    pub(super) l1_size: u32,
    /// Bytes of its extra data.
    pub(super) extra_size: u32,
}

/// Reads the snapshot table: the snapshots, and where the last one's entry ends, in bytes.
pub(super) fn read_table(
    header: &Header,
    file: &dyn BlockSource,
    limits: &Limits,
) -> Result<(Vec<Snapshot>, u64)> {
    limits.check_snapshots(header.nb_snapshots.into())?;
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    let table_start = at;
    let mut end = at;
    if header.nb_snapshots > 0 && at % header.cluster_size() != 0 {
        let problem = "is not at the start of a cluster";
        return Err(Error::malformed(QCOW2, "snapshot table", at, problem));
    }
    while snapshots.len() < header.nb_snapshots as usize {
        let len = file.size().saturating_sub(at).min(WINDOW as u64);
        let mut window = vec![0; usize::try_from(len).unwrap_or(0)];
        let n = file.read_at(&mut window, at)?;
        window.truncate(n);
        let mut reader = Reader::new(&window, at, QCOW2, "snapshot table");
        let before = snapshots.len();
        while snapshots.len() < header.nb_snapshots as usize {
            let mut trial = reader.clone();
            match read_entry(&mut trial, header) {
                Ok(snapshot) => {
                    snapshots.push(snapshot);
                    end = trial.position();
                }
                // The window ends inside of this entry: the next one starts with it.
                Err(_) if snapshots.len() > before => break,
                Err(error) => return Err(error),
            }
            trial.align(table_start, 8);
            reader = trial;
        }
        at = reader.position();
        limits.check_metadata("the snapshot table", at - table_start)?;
    }
    Ok((snapshots, end))
}

fn read_entry(reader: &mut Reader<'_>, header: &Header) -> Result<Snapshot> {
    let at = reader.position();
    let head = SnapshotHeader::parse(reader.take(SnapshotHeader::LEN as u64, "entry")?, at)?;
    if head.extra_data_size > MAX_EXTRA {
        let problem = format!("is {}, over the most, {MAX_EXTRA}", head.extra_data_size);
        return Err(SnapshotHeader::malformed(at, "extra_data_size", problem));
    }
    let extra = reader.take(head.extra_data_size.into(), "extra data")?;
    let mut padded = [0; SnapshotExtra::LEN];
    padded
        .iter_mut()
        .zip(extra)
        .for_each(|(to, from)| *to = *from);
    let fields = SnapshotExtra::parse(&padded, at)?;
    let has = |end: usize| extra.len() >= end;
    let id = ImageName::from(reader.take(head.id_str_size.into(), "id_str")?);
    let name = ImageName::from(reader.take(head.name_size.into(), "name")?);
    let mut info = SnapshotInfo::new(id, name);
    info.virtual_size = if has(16) {
        fields.virtual_disk_size
    } else {
        header.size
    };
    info.vm_state_size = if has(8) {
        fields.vm_state_size_large
    } else {
        head.vm_state_size.into()
    };
    info.date_seconds = head.date_sec.into();
    info.date_nanoseconds = head.date_nsec;
    info.vm_clock_nanoseconds = head.vm_clock_nsec;
    info.instruction_count = Some(fields.icount).filter(|n| has(24) && *n != NO_ICOUNT);
    Ok(Snapshot {
        info,
        l1_table_offset: head.l1_table_offset,
        l1_size: head.l1_size,
        extra_size: head.extra_data_size,
    })
}

/// The snapshot that `selector` names.
pub(super) fn find<'a>(
    snapshots: &'a [Snapshot],
    selector: &SnapshotSelector,
) -> Result<&'a Snapshot> {
    let by_id = |id: &str| {
        snapshots
            .iter()
            .find(|s| s.info.id.as_bytes() == id.as_bytes())
    };
    let by_name = |name: &str| {
        snapshots
            .iter()
            .find(|s| s.info.name.as_bytes() == name.as_bytes())
    };
    let (found, text) = match selector {
        SnapshotSelector::Id(id) => (by_id(id), id),
        SnapshotSelector::Name(name) => (by_name(name), name),
        SnapshotSelector::Any(text) => (by_id(text).or_else(|| by_name(text)), text),
    };
    found.ok_or_else(|| {
        let text = ImageName::from(text.as_str());
        Error::invalid(format!("the image has no snapshot {}", text.quoted()))
    })
}
