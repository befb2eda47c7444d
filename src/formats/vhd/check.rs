//! Whether both copies of the footer agree, the checksums are right, and every block is in the file and
//! nobody else's.

use crate::error::Result;
use crate::image::{Finding, FindingKind, Findings};
use crate::limits::Limits;
use crate::map::Usage;
use crate::source::BlockSource;

use super::SECTOR;
use super::footer::{DiskType, Footer, Footers};
use super::header::{Header, Tables, UNUSED, bitmap_len};
use super::open::read_batmap;

/// Checks the image in `source`.
pub(super) fn check(source: &dyn BlockSource, limits: &Limits) -> Result<Findings> {
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
    let loaded = Tables::load(source, &footers, size, limits);
    let Some((tables, regions)) = findings.sound(loaded)? else {
        return Ok(findings);
    };
    if tables.damaged {
        findings.add_damage(Header::malformed(tables.at, "checksum", "is wrong"))?;
    }
    findings.sound(read_batmap(source, &footers.footer, &tables, limits))?;
    let stored = bitmap_len(tables.block_size) + tables.block_size;
    let mut usage = Usage::new(footers.data_end, stored, limits);
    for (start, end, name) in regions.taken() {
        if *start < footers.data_end {
            usage.structure(name, *start, end - start, &mut findings)?;
        }
    }
    usage.settle(&mut findings);
    for (sector, index) in tables.bat.iter().zip(0_u64..) {
        if *sector != UNUSED {
            let place = (
                tables.header.table_offset + index * 4,
                index * tables.block_size,
            );
            let (start, len) = (u64::from(*sector) * SECTOR, tables.stored_len(index, size));
            usage.unit("block allocation table", start, len, place, &mut findings)?;
        }
    }
    usage.finish("block", &mut findings);
    Ok(findings)
}
