//! Check of the copies and checksums, and that every entry has a block of its own in the file.

use std::sync::Arc;

use crate::error::Result;
use crate::image::{Finding, Findings};
use crate::limits::Limits;
use crate::map::{self, Claim, Claims};
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt};

use super::bat::{BITMAP_BLOCK, BatEntry, Geometry, State};
use super::header::{self, MIB};
use super::log;
use super::metadata::read_metadata;
use super::open::parent_locator;
use super::region::{Region, read_regions};

/// Bytes of the table that are read at once.
const PIECE: u64 = 64 << 10;

/// Checks the image in `source`. What its log holds is applied in memory before.
pub(super) fn check(source: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Findings> {
    header::check_identifier(source)?;
    let current = header::read_current(source)?;
    let mut findings = Findings::default();
    // A writer that was stopped leaves one copy behind the other; that is their purpose.
    if let Some(warning) = current.warning {
        findings.note("header", warning);
    }
    let replayed = log::replay(&current.header, current.offset, source, limits);
    let file: Arc<dyn BlockSource> = match findings.sound(replayed)? {
        None => return Ok(findings),
        Some(None) => Arc::clone(source),
        Some(Some(overlay)) => {
            findings.note(
                "log",
                "the image was not closed: its log has to be replayed",
            );
            Arc::new(overlay)
        }
    };
    let read = read_regions(&file, &current.header, current.offset);
    let Some(regions) = findings.sound(read)? else {
        return Ok(findings);
    };
    if let Some(warning) = regions.warning {
        findings.note("region table", warning);
    }
    let read = read_metadata(&file, regions.metadata);
    let Some(metadata) = findings.sound(read)? else {
        return Ok(findings);
    };
    let has_parent = match findings.sound(parent_locator(&metadata))? {
        Some(locator) => locator.is_some(),
        None => metadata.parent_locator.is_some(),
    };
    let geometry = Geometry {
        virtual_size: metadata.virtual_disk_size,
        block_size: metadata.block_size,
        sector_size: u64::from(metadata.logical_sector_size),
        has_parent,
    };
    let mut table = Table {
        file,
        geometry,
        bat: regions.bat,
        taken: regions.taken,
        claims: Claims::default(),
        limits: limits.clone(),
        findings,
    };
    table.check()?;
    Ok(table.findings)
}

struct Table {
    file: Arc<dyn BlockSource>,
    geometry: Geometry,
    bat: Region,
    taken: map::Regions,
    claims: Claims,
    limits: Limits,
    findings: Findings,
}

impl Table {
    fn check(&mut self) -> Result<()> {
        let entries = self.geometry.entries();
        if entries > self.bat.len / 8 {
            let problem = format!(
                "has room for {} entries, and the disk needs {entries}",
                self.bat.len / 8
            );
            let finding = Finding::corruption("BAT", problem);
            self.findings.add(finding.at(self.bat.offset));
            return Ok(());
        }
        let len = entries * 8;
        let mut done = 0;
        while done < len {
            let at = self.bat.offset + done;
            let run = self.file.extent_at(at, len - done)?;
            if run.kind.reads_as_zero() && run.len >= 8 {
                done += run.len / 8 * 8;
                continue;
            }
            let piece_len = PIECE.min(len - done);
            let mut piece = vec![0; usize::try_from(piece_len).unwrap_or(0)];
            self.file
                .read_exact_at(&mut piece, self.bat.offset + done)?;
            for (entry, index) in BatEntry::all(&piece).zip(done / 8..) {
                if entry != BatEntry::default() {
                    self.entry(index, entry)?;
                }
            }
            done += piece_len;
        }
        Ok(())
    }

    fn damaged(&mut self, index: u64, entry: BatEntry, problem: &str) {
        let problem = format!("entry {index} is {entry:#x}, {problem}");
        let mut finding = Finding::corruption("BAT", problem).at(self.bat.offset + index * 8);
        if !self.geometry.is_bitmap(index) {
            let block = self.geometry.blocks_before(index);
            finding = finding.guest(block.saturating_mul(self.geometry.block_size));
        }
        self.findings.add(finding);
    }

    fn entry(&mut self, index: u64, entry: BatEntry) -> Result<()> {
        let is_bitmap = self.geometry.is_bitmap(index);
        // QEMU once left rubbish in the unused entries of sector bitmaps.
        if is_bitmap && !self.geometry.has_parent {
            return Ok(());
        }
        if entry.has_reserved_bits() {
            self.damaged(index, entry, "with reserved bits set");
        }
        let used = match (entry.state(), is_bitmap) {
            (None, _) => {
                self.damaged(index, entry, "in a state that is none");
                return Ok(());
            }
            (Some(State::NotPresent), _) | (Some(State::Zero), false) => return Ok(()),
            (Some(State::FullyPresent), true) => BITMAP_BLOCK,
            (Some(_), true) => {
                self.damaged(index, entry, "which no sector bitmap can be");
                return Ok(());
            }
            (Some(state), false) => {
                if state == State::PartiallyPresent {
                    self.look_for_bitmap(index, entry)?;
                }
                self.geometry.used(self.geometry.blocks_before(index))
            }
        };
        let len = if is_bitmap {
            BITMAP_BLOCK
        } else {
            self.geometry.block_size
        };
        let start = entry.host();
        let end = start.checked_add(used);
        if let Some(other) = self.taken.overlapping(start, len) {
            self.damaged(index, entry, &format!("in the {other}"));
        } else if end.is_none_or(|end| end > self.file.size()) {
            self.damaged(
                index,
                entry,
                "and the block there reaches past the end of the file",
            );
        } else if !self
            .claims
            .claim(start / MIB..(start + len) / MIB, Claim::Own, &self.limits)?
        {
            self.damaged(index, entry, "where another block is, too");
        }
        Ok(())
    }

    /// A block of which the parent has parts needs the bitmap that says which.
    fn look_for_bitmap(&mut self, index: u64, entry: BatEntry) -> Result<()> {
        if !self.geometry.has_parent {
            self.damaged(index, entry, "partially present, and there is no parent");
            return Ok(());
        }
        let chunk = self.geometry.blocks_before(index) / self.geometry.chunk_ratio();
        let mut raw = [0; 8];
        let at = self.bat.offset + self.geometry.bitmap_entry(chunk) * 8;
        self.file.read_exact_at(&mut raw, at)?;
        let bitmap = BatEntry::decode(&raw, 0).unwrap_or_default();
        if bitmap.state() != Some(State::FullyPresent) {
            self.damaged(
                index,
                entry,
                "partially present, and there is no sector bitmap",
            );
        }
        Ok(())
    }
}
