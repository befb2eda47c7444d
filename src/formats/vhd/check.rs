//! Check of the copies of the footer, the checksums and the bitmaps of the blocks, and that every entry has
//! a block of its own in the file.

use crate::error::Result;
use crate::image::{Finding, FindingKind, Findings, Request};
use crate::map::Usage;
use crate::source::{BlockSource, BlockSourceExt};
use crate::zero::is_zero;

use super::SECTOR;
use super::footer::{DiskType, Footer, Footers};
use super::header::{Header, Tables, bitmap_len};
use super::map::SectorBitmaps;
use super::open::{is_lsb_first, read_batmap};

/// Checks the image in `source`.
pub(super) fn check(source: &dyn BlockSource, request: &Request<'_>) -> Result<Findings> {
    let limits = request.limits;
    let footers = Footers::read(source)?;
    let mut findings = Findings::default();
    for warning in &footers.warnings {
        // Both are whole and mean the same disk: they tell when and by whom each was written.
        let kind = match footers.differ {
            true => FindingKind::Note,
            false => FindingKind::Corruption,
        };
        findings.add(Finding::new(kind, "footer", warning.clone()));
    }
    if footers.damaged {
        let problem = "has a wrong checksum, as its copy has";
        findings.add(Finding::corruption("footer", problem).at(footers.at));
    }
    let size = footers.footer.virtual_size();
    limits.check_virtual_size(size)?;
    if footers.kind == DiskType::Fixed {
        if size > footers.data_end {
            let problem = format!(
                "is {size}, and the file has {} bytes of data",
                footers.data_end
            );
            findings.add_damage(Footer::malformed(footers.at, "current_size", problem))?;
        }
        return Ok(findings);
    }
    let loaded = Tables::load(source, &footers, size, request);
    let Some((tables, regions)) = findings.sound(loaded)? else {
        return Ok(findings);
    };
    if tables.damaged {
        findings.add_damage(Header::malformed(tables.at, "checksum", "is wrong"))?;
    }
    let batmap = findings.sound(read_batmap(source, &footers.footer, &tables, limits))?;
    let stored = bitmap_len(tables.block_size) + tables.block_size;
    let mut usage = Usage::new(footers.data_end, stored, limits);
    for (start, len, name) in regions.iter() {
        if start < footers.data_end {
            usage.structure(name, start, len, &mut findings)?;
        }
    }
    usage.settle(&mut findings);
    let mut sound = Vec::new();
    for (entry, index) in tables.bat.iter().zip(0_u64..) {
        if let Some(start) = entry.start() {
            let place = (
                tables.header.table_offset + index * 4,
                index * tables.block_size,
            );
            let len = tables.stored_len(index, size);
            if usage.unit("block allocation table", start, len, place, &mut findings)? {
                sound.push((start, index));
            }
        }
    }
    usage.finish("block", &mut findings);
    let bitmaps = Bitmaps {
        source,
        sectors: SectorBitmaps {
            lsb_first: is_lsb_first(&footers.footer),
            full_blocks: batmap.flatten(),
        },
        tables: &tables,
        is_dynamic: footers.kind == DiskType::Dynamic,
        size,
    };
    bitmaps.look(&sound, &mut findings)?;
    Ok(findings)
}

/// The bitmaps of the blocks, beside what else tells of the same sectors.
struct Bitmaps<'a> {
    source: &'a dyn BlockSource,
    sectors: SectorBitmaps,
    tables: &'a Tables,
    /// True if there is no parent: sectors that a bitmap leaves out have to be zeros then.
    is_dynamic: bool,
    size: u64,
}

impl Bitmaps<'_> {
    /// Checks the blocks, each its host offset and its number, that share no bytes.
    fn look(&self, blocks: &[(u64, u64)], findings: &mut Findings) -> Result<()> {
        let mut starts: Vec<u64> = blocks.iter().map(|(start, _)| *start).collect();
        starts.sort_unstable();
        for (start, index) in blocks {
            if self.is_alone(*start, &starts) {
                self.look_at_block(*index, *start, findings)?;
            }
        }
        Ok(())
    }

    /// Returns whether no other block shares bytes with one: a block of many entries would be read for each.
    fn is_alone(&self, block: u64, starts: &[u64]) -> bool {
        let stored = bitmap_len(self.tables.block_size) + self.tables.block_size;
        let at = starts.partition_point(|start| *start < block);
        let before = at.checked_sub(1).and_then(|at| starts.get(at));
        let after = starts.get(at + 1);
        let mut neighbours = before.into_iter().chain(after);
        neighbours.all(|other| other.abs_diff(block) >= stored)
    }

    fn look_at_block(&self, index: u64, host: u64, findings: &mut Findings) -> Result<()> {
        let block_size = self.tables.block_size;
        let map_len = bitmap_len(block_size);
        let mut bitmap = vec![0; usize::try_from(map_len).unwrap_or(0)];
        self.source.read_exact_at(&mut bitmap, host)?;
        let guest = index * block_size;
        let len = self.size.saturating_sub(guest).min(block_size);
        let (mut absent, mut hidden, mut first) = (0, 0, None);
        let mut into = 0;
        while into < len {
            let (own, run) = self.sectors.run(&bitmap, into, len - into);
            if !own {
                absent += run.div_ceil(SECTOR);
                if self.is_dynamic {
                    let at = self.hidden(host + map_len + into, run, &mut hidden)?;
                    first = first.or(at.map(|at| at - host - map_len));
                }
            }
            into += run;
        }
        let problem = match self.is_dynamic {
            true if hidden > 0 => {
                format!("says that {hidden} sectors were never written, and they hold data")
            }
            false if absent > 0 && self.sectors.is_full(index) => {
                format!("lacks {absent} sectors of a block that the bitmap of full blocks has")
            }
            _ => return Ok(()),
        };
        let finding = Finding::corruption("sector bitmap", problem);
        findings.add(finding.at(host).guest(guest + first.unwrap_or(0)));
        Ok(())
    }

    /// Counts the sectors of a range that hold anything but zeros, and returns where the first is.
    fn hidden(&self, start: u64, len: u64, count: &mut u64) -> Result<Option<u64>> {
        let (mut first, mut at, end) = (None, start, start + len);
        let mut buffer = vec![0; 64 << 10];
        while at < end {
            let run = self.source.extent_at(at, end - at)?;
            if run.kind.reads_as_zero() {
                at += run.len;
                continue;
            }
            let len = usize::try_from(run.len).map_or(buffer.len(), |len| len.min(buffer.len()));
            let piece = buffer.get_mut(..len).unwrap_or_default();
            self.source.read_exact_at(piece, at)?;
            for (sector, place) in piece.chunks(512).zip((at..).step_by(512)) {
                if !is_zero(sector) {
                    *count += 1;
                    first = first.or(Some(place));
                }
            }
            at += len as u64;
        }
        Ok(first)
    }
}
