//! The walk through the tables: L1 and L2 of every state, snapshots, bitmaps.

use crate::error::{Error, Result};
use crate::image::Clusters;
use crate::ondisk::TableEntry;
use crate::source::BlockSource;

use super::super::bitmap;
use super::super::entry::{BitmapTableEntry, Copied, Descriptor, L1Entry, L2Entry, L2Layout};
use super::super::refcount::read_padded;
use super::super::snapshot::{self, EXTRA_REQUIRED, Snapshot};
use super::super::{QCOW2, header::HeaderV2};
use super::{Survey, TABLE_BYTES, Uses};

/// Bytes of a bitmap's table, or of an L1 table, that are read at once.
const PIECE: u64 = 1 << 20;

impl Survey {
    /// The L1 tables of the active state and of the snapshots.
    pub(super) fn look_at_l1_tables(&mut self) -> Result<()> {
        let (start, entries) = (self.header.l1_table_offset, self.header.l1_size);
        let needed = u128::from(self.header.size).div_ceil(u128::from(self.layout().table_span()));
        if u128::from(entries) < needed {
            let problem = format!("is {entries}, and the disk needs {needed}");
            self.cannot_tell(HeaderV2::malformed(0, "l1_size", problem))?;
        }
        if start % self.cluster_size() != 0 && entries > 0 {
            let problem = format!("{start} is not at the start of a cluster");
            self.cannot_tell(HeaderV2::malformed(0, "l1_table_offset", problem))?;
        } else {
            self.look_at_l1(start, entries, true, 1)?;
        }
        let snapshots = match snapshot::read_table(&self.header, &self.file, &self.limits) {
            Ok((snapshots, end)) => {
                let start = self.header.snapshots_offset;
                self.structure("snapshot table", start, end.saturating_sub(start))?;
                snapshots
            }
            Err(error) => {
                self.cannot_tell(error)?;
                Vec::new()
            }
        };
        if self.header.has_data_file() && !snapshots.is_empty() {
            let at = self.header.snapshots_offset;
            let problem = "has snapshots, and the image has a data file";
            self.corruption("snapshot table", at, None, 1, problem);
        }
        self.look_at_snapshots(snapshots)
    }

    fn look_at_snapshots(&mut self, mut snapshots: Vec<Snapshot>) -> Result<()> {
        let table = self.header.snapshots_offset;
        for snapshot in &snapshots {
            if self.header.version >= 3 && snapshot.extra_size < EXTRA_REQUIRED {
                let name = snapshot.info.name.quoted();
                let problem = format!("has too little extra data for snapshot {name}");
                self.corruption("snapshot table", table, None, 1, problem);
            }
        }
        // Snapshots that share an L1 table are looked at once, so that many of them cost no more.
        snapshots.sort_by_key(|s| (s.l1_table_offset, s.l1_size));
        let mut kept = 0_u64;
        let mut rest = snapshots.as_slice();
        while let [first, ..] = rest {
            let (start, entries) = (first.l1_table_offset, first.l1_size);
            let same = rest.partition_point(|s| (s.l1_table_offset, s.l1_size) == (start, entries));
            rest = rest.get(same..).unwrap_or_default();
            let len = u64::from(entries) * 8;
            let problem = if start % self.cluster_size() != 0 {
                "is not at the start of a cluster"
            } else if self.limits.check_metadata("an L1 table", len).is_err() {
                "is larger than any is"
            } else {
                kept = kept.saturating_add(len);
                self.limits.check_kept(kept)?;
                self.look_at_l1(start, entries, false, same as u64)?;
                continue;
            };
            self.incomplete = true;
            let problem = format!("of snapshot {} {problem}", first.info.name.quoted());
            self.corruption("L1 table", start, None, same as u64, problem);
        }
        Ok(())
    }

    fn layout(&self) -> L2Layout {
        L2Layout::of(&self.header)
    }

    /// An L1 table that so many states have.
    fn look_at_l1(&mut self, start: u64, entries: u32, active: bool, states: u64) -> Result<()> {
        let len = u64::from(entries) * 8;
        self.limits.check_metadata("the L1 table", len)?;
        self.refer("L1 table", start, len, states, None, true)?;
        let end = start.checked_add(len);
        self.incomplete |= end.is_none_or(|end| end > self.file.size());
        let span = self.layout().table_span();
        let mut done = 0;
        while done < len {
            let piece_len = PIECE.min(len - done);
            let piece = self.read_table(start.saturating_add(done), piece_len)?;
            for (index, entry) in (done / 8..).zip(L1Entry::all(&piece)) {
                if entry != L1Entry::default() {
                    let at = start.saturating_add(index * 8);
                    let guest = index.saturating_mul(span);
                    self.look_at_l1_entry(entry, at, guest, active, states)?;
                }
            }
            done += piece_len;
        }
        Ok(())
    }

    /// A piece of a table; empty if it lies in a hole of the file or past its end.
    pub(super) fn read_table(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let left = self.file.size().saturating_sub(at).min(len);
        if left == 0 {
            return Ok(Vec::new());
        }
        let run = self.file.extent_at(at, left)?;
        if run.kind.reads_as_zero() && run.len == left {
            return Ok(Vec::new());
        }
        read_padded(&self.file, at, len)
    }

    fn look_at_l1_entry(
        &mut self,
        entry: L1Entry,
        at: u64,
        guest: u64,
        active: bool,
        states: u64,
    ) -> Result<()> {
        let text = |problem: &str| format!("entry {entry:#x} {problem}");
        if entry.has_reserved_bits() {
            let problem = text("has reserved bits set");
            self.corruption("L1 table", at, Some(guest), states, problem);
        }
        let offset = entry.offset();
        if offset == 0 {
            return Ok(());
        }
        if active {
            let count = self.stored.of(offset >> self.header.cluster_bits)?;
            self.compare_copied("L1 table", &entry, count, at, guest, 1);
        }
        let len = self.cluster_size();
        self.refer("L2 table", offset, len, states, Some(guest), true)?;
        if offset % len != 0 {
            let problem = text("is not at the start of a cluster");
            self.corruption("L1 table", at, Some(guest), states, problem);
            return Ok(());
        }
        if !self.tables.contains_key(&offset) {
            self.budget.take(TABLE_BYTES)?;
        }
        let uses = self.tables.entry(offset).or_insert(Uses {
            guest,
            ..Uses::default()
        });
        uses.all = uses.all.saturating_add(states);
        if active {
            uses.active += 1;
        }
        Ok(())
    }

    /// Bit 63 of an entry of the active state says that what it points to has exactly one reference.
    fn compare_copied(
        &mut self,
        structure: &'static str,
        entry: &dyn Copied,
        count: u64,
        at: u64,
        guest: u64,
        times: u64,
    ) {
        if (count == 1) != entry.is_copied() {
            let has = if count == 1 { "lacks" } else { "has" };
            let problem =
                format!("entry {entry:#x} {has} the copied flag, and the refcount is {count}");
            self.mismatch(structure, at, Some(guest), times, problem);
        }
    }

    /// Each L2 table once, for all that refer to it.
    pub(super) fn look_at_l2_tables(&mut self) -> Result<()> {
        let mut next = 0;
        while let Some((&offset, &uses)) = self.tables.range(next..).next() {
            next = offset + 1;
            let table = self.read_table(offset, self.cluster_size())?;
            self.look_at_l2(offset, &table, uses)?;
        }
        Ok(())
    }

    fn look_at_l2(&mut self, offset: u64, table: &[u8], uses: Uses) -> Result<()> {
        let layout = self.layout();
        let mut follows = None;
        for (index, entry) in (0_u64..).zip(layout.all(table)) {
            if entry.is_empty() {
                continue;
            }
            let place = Place {
                at: offset + index * layout.entry_len(),
                guest: uses.guest.saturating_add(index << self.header.cluster_bits),
                uses,
            };
            match entry.descriptor() {
                Some(descriptor) => self.look_at_packed(entry, descriptor, place)?,
                None => self.look_at_cluster(entry, place, &mut follows)?,
            }
        }
        Ok(())
    }

    fn damaged(&mut self, entry: L2Entry, place: Place, problem: &str) {
        let problem = format!("entry {entry:#x} {problem}");
        self.corruption(
            "L2 table",
            place.at,
            Some(place.guest),
            place.uses.all,
            problem,
        );
    }

    fn clusters(&mut self) -> &mut Clusters {
        self.findings.clusters.get_or_insert_default()
    }

    fn look_at_packed(
        &mut self,
        entry: L2Entry,
        descriptor: Descriptor,
        place: Place,
    ) -> Result<()> {
        if entry.is_copied() {
            self.damaged(entry, place, "is packed and has the copied flag");
        }
        if self.header.has_data_file() {
            self.damaged(entry, place, "is packed, and the data is in a data file");
            return Ok(());
        }
        if entry.bitmap != 0 {
            self.damaged(entry, place, "is packed and has subclusters");
            return Ok(());
        }
        let Uses { all, active, .. } = place.uses;
        let clusters = self.clusters();
        clusters.allocated += active;
        clusters.compressed += active;
        // They share sectors, so that none follows another.
        clusters.fragmented += active;
        let layout = self.layout();
        let (host, len) = layout.data(descriptor);
        if host >= layout.compressed_limit() {
            self.damaged(entry, place, "has reserved bits of its offset set");
            return Ok(());
        }
        let guest = Some(place.guest);
        if self.refer("packed cluster", host, len, all, guest, false)? {
            self.note_packed(descriptor, host, len, all)?;
        }
        Ok(())
    }

    fn look_at_cluster(
        &mut self,
        entry: L2Entry,
        place: Place,
        follows: &mut Option<u64>,
    ) -> Result<()> {
        let layout = self.layout();
        let [stored, zero] = entry.subclusters();
        if layout.has_reserved_bits(entry) {
            self.damaged(entry, place, "has reserved bits set");
        }
        let data_file = self.header.has_data_file();
        let offset = entry.offset();
        // Only in a data file can a cluster be at offset 0, and then bit 63 says that it is one.
        let by_flag = data_file && entry.is_copied() && !layout.is_zero(entry);
        if offset == 0 && !by_flag {
            if stored != 0 {
                self.damaged(entry, place, "has stored subclusters and no cluster");
            }
            return Ok(());
        }
        let cluster_size = self.cluster_size();
        let count = match data_file {
            true => 1,
            false => self.stored.of(offset >> self.header.cluster_bits)?,
        };
        let Uses { all, active, .. } = place.uses;
        if active > 0 {
            let (at, guest) = (place.at, place.guest);
            self.compare_copied("L2 table", &entry, count, at, guest, active);
        }
        if stored & zero != 0 {
            self.damaged(entry, place, "has subclusters that are stored and zero");
        }
        if offset % cluster_size != 0 {
            self.damaged(entry, place, "is not at the start of a cluster");
        }
        let jumps = follows.is_some_and(|next| next != offset);
        *follows = offset.checked_add(cluster_size);
        let clusters = self.clusters();
        clusters.allocated += active;
        clusters.fragmented += if jumps { active } else { 0 };
        if data_file {
            return Ok(());
        }
        let guest = Some(place.guest);
        self.refer("data cluster", offset, cluster_size, all, guest, false)?;
        Ok(())
    }

    /// The directory of the bitmaps, their tables and their data.
    pub(super) fn look_at_bitmaps(&mut self) -> Result<()> {
        let read = bitmap::read_directory(&self.header, &self.file, &self.limits);
        let directory = match read {
            Ok(directory) => directory,
            Err(error) => return self.cannot_tell(error),
        };
        self.structure("bitmap directory", directory.offset, directory.len)?;
        for bitmap in directory.bitmaps {
            let (start, len) = (bitmap.table_offset, u64::from(bitmap.table_size) * 8);
            self.structure("bitmap table", start, len)?;
            let end = start.checked_add(len);
            if start % self.cluster_size() != 0 || end.is_none_or(|end| end > self.file.size()) {
                let problem = format!(
                    "of {}, {len} bytes long, is not at the start of a cluster or not in the file",
                    bitmap.info.name.quoted()
                );
                self.cannot_tell(Error::malformed(QCOW2, "bitmap table", start, problem))?;
                continue;
            }
            self.look_at_bitmap_table(start, len)?;
        }
        Ok(())
    }

    fn look_at_bitmap_table(&mut self, start: u64, len: u64) -> Result<()> {
        let cluster_size = self.cluster_size();
        let mut done = 0;
        while done < len {
            let piece_len = PIECE.min(len - done);
            let piece = self.read_table(start + done, piece_len)?;
            for (at, entry) in (start + done..)
                .step_by(8)
                .zip(BitmapTableEntry::all(&piece))
            {
                let offset = entry.offset();
                if entry.has_reserved_bits() || offset % cluster_size != 0 {
                    let problem =
                        format!("entry {entry:#x} has reserved bits set or is no cluster's start");
                    self.corruption("bitmap table", at, None, 1, problem);
                } else if offset != 0 {
                    self.structure("bitmap data", offset, cluster_size)?;
                }
            }
            done += piece_len;
        }
        Ok(())
    }
}

/// Place of an L2 entry, its guest offset, and the references to its table.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    guest: u64,
    uses: Uses,
}
