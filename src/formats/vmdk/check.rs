//! The check of every extent: its tables are in the file, agree with their copies, and lead each grain to
//! a place of its own.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::image::{Finding, FindingKind, Findings, Request};
use crate::limits::Limits;
use crate::map::Usage;
use crate::name::ImageName;
use crate::ondisk::TableEntry;
use crate::source::{BlockSource, BlockSourceExt, FileIdentity};

use super::descriptor::Descriptor;
use super::entry::{Grain, GrainDirectoryEntry};
use super::header::{
    CHANGE_TRACKING_MAGIC, COWD_MAGIC, Flags, SE_SPARSE_MAGIC, SECTOR, SPARSE_MAGIC,
    SparseExtentHeader, unsupported,
};
use super::layout::{Layout, second_directory};
use super::line::malformed as bad_descriptor;
use super::line::{ExtentData, ExtentLine};
use super::map::Tables;
use super::open::{embedded_text, read_text_file};
use super::sparse::{SectorTables, read_cowd_header, read_header};
use super::{sesparse, stream};

/// Checks the disk whose descriptor, or one of whose extents, is in `source`.
pub(super) fn check(source: &Arc<dyn BlockSource>, request: &Request<'_>) -> Result<Findings> {
    let limits = request.limits;
    if let Some(findings) = check_extent(source, limits)? {
        return Ok(findings);
    }
    let mut magic = [0; 8];
    source.read_at(&mut magic, 0)?;
    if magic.starts_with(&CHANGE_TRACKING_MAGIC) {
        return Err(unsupported("a change-tracking file".into()));
    }
    // A header of no sectors is the wrapping of a descriptor.
    let text = match magic.starts_with(&SPARSE_MAGIC) {
        true => embedded_text(source, &read_header(source)?, limits)?,
        false => read_text_file(source, limits)?,
    };
    let descriptor = Descriptor::parse(&text, limits)?;
    let mut findings = Findings::default();
    let mut seen = SeenFiles::default();
    for line in descriptor.lines() {
        check_line(&line, request, &mut seen, &mut findings)?;
    }
    Ok(findings)
}

/// Sparse extents that were checked, so that a thousand lines with one of them do not take a thousand times as
/// long.
#[derive(Default)]
struct SeenFiles {
    names: HashSet<ImageName>,
    files: HashSet<FileIdentity>,
}

impl SeenFiles {
    /// Notes the file. Returns `true` if it was seen before.
    fn has(&mut self, name: &ImageName, file: &dyn BlockSource) -> bool {
        let known_name = !self.names.insert(name.clone());
        let known_file = file.identity().is_some_and(|id| !self.files.insert(id));
        known_name || known_file
    }
}

/// The extent that a line of a descriptor names.
fn check_line(
    line: &ExtentLine,
    request: &Request<'_>,
    seen: &mut SeenFiles,
    findings: &mut Findings,
) -> Result<()> {
    let (reference, flat) = match findings.sound(line.data())? {
        Some(ExtentData::File { reference, flat }) => (reference, flat),
        Some(ExtentData::Zeros | ExtentData::NoAccess) | None => return Ok(()),
    };
    let Some(file) = request.opener.open_bytes(&reference)? else {
        let reference = Box::new(reference);
        return Err(Error::Detached { reference });
    };
    let name = reference.name.quoted();
    if flat {
        let end = line.offset.checked_add(line.sectors);
        let end = end.and_then(|end| end.checked_mul(SECTOR));
        if end.is_none_or(|end| end > file.size()) {
            let problem = format!("needs more of the flat extent {name} than the file has");
            findings.add_damage(bad_descriptor(problem))?;
        }
        return Ok(());
    }
    if seen.has(&reference.name, &file) {
        return findings.add_damage(bad_descriptor(format!("has two extents in {name}")));
    }
    match findings.sound(check_extent(&file, request.limits))? {
        Some(Some(found)) => findings.merge(found.of_file(&reference.name)),
        Some(None) => {
            let problem = format!("calls {name} a sparse extent, and the file is not one");
            findings.add_damage(bad_descriptor(problem))?;
        }
        None => {}
    }
    Ok(())
}

/// Checks a sparse extent; `None` for a file that is none.
fn check_extent(file: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Option<Findings>> {
    let mut magic = [0; 8];
    file.read_at(&mut magic, 0)?;
    if magic.starts_with(&SPARSE_MAGIC) {
        let header = read_header(file)?;
        if header.capacity == 0 && header.descriptor_offset > 0 {
            return Ok(None);
        }
        check_hosted(file, &header, limits).map(Some)
    } else if magic.starts_with(&COWD_MAGIC) {
        check_cowd(file, limits).map(Some)
    } else if magic == SE_SPARSE_MAGIC {
        check_se_sparse(file, limits).map(Some)
    } else {
        Ok(None)
    }
}

fn check_hosted(
    file: &Arc<dyn BlockSource>,
    first: &SparseExtentHeader,
    limits: &Limits,
) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(header) = findings.sound(stream::in_force(file, first))? else {
        return Ok(findings);
    };
    if header.unclean_shutdown != 0 {
        findings.note("sparse extent header", "the extent was not closed");
    }
    let Some(layout) = findings.sound(Layout::hosted(first, &header))? else {
        return Ok(findings);
    };
    let mut walk = Walk::new(file, &layout, limits);
    walk.markers = header.flag_set().contains(Flags::MARKERS);
    walk.packed = header.is_compressed();
    let second = second_directory(&header).map(|_| header.rgd_offset);
    let zeroed_grains = header.flag_set().contains(Flags::ZEROED_GRAINS);
    walk.directories((header.gd_offset, second), zeroed_grains, findings)
}

fn check_cowd(file: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Findings> {
    let header = read_cowd_header(file)?;
    let mut findings = Findings::default();
    let Some(layout) = findings.sound(Layout::cowd(&header))? else {
        return Ok(findings);
    };
    let walk = Walk::new(file, &layout, limits);
    walk.directories((header.gd_offset.into(), None), false, findings)
}

fn check_se_sparse(file: &Arc<dyn BlockSource>, limits: &Limits) -> Result<Findings> {
    let mut findings = Findings::default();
    let Some(loaded) = findings.sound(sesparse::load(file, limits))? else {
        return Ok(findings);
    };
    let mut walk = Walk::new(file, &loaded.layout, limits);
    walk.note_reserved("seSparse structures", &mut findings)?;
    walk.usage.settle(&mut findings);
    let shared = sesparse::refuse_shared_tables(&loaded.tables);
    findings.sound(shared)?;
    walk.run(&loaded.tables, findings)
}

/// A walk through the tables of an extent.
struct Walk<'a> {
    file: &'a Arc<dyn BlockSource>,
    layout: &'a Layout,
    usage: Usage,
    packed: bool,
    markers: bool,
    limits: &'a Limits,
}

impl<'a> Walk<'a> {
    fn new(file: &'a Arc<dyn BlockSource>, layout: &'a Layout, limits: &'a Limits) -> Self {
        Walk {
            file,
            layout,
            usage: Usage::new(file.size(), layout.grain, limits),
            packed: false,
            markers: false,
            limits,
        }
    }

    /// Checks what the grain directory leads to, and its copy if there is one, each at a sector.
    fn directories(
        mut self,
        (main, second): (u64, Option<u64>),
        zeroed_grains: bool,
        mut findings: Findings,
    ) -> Result<Findings> {
        let file = self.file;
        let mut tables = [None, None];
        let sectors = [
            ("grain directory", Some(main)),
            ("redundant grain directory", second),
        ];
        for ((name, sector), tables) in sectors.into_iter().zip(&mut tables) {
            let Some(sector) = sector else {
                continue;
            };
            let read = self.layout.read_directory(file, sector, self.limits);
            if let Some(directory) = findings.sound(read)? {
                self.note_directory(name, sector * SECTOR, &directory, &mut findings)?;
                *tables = Some(SectorTables::new(file, directory, zeroed_grains));
            }
        }
        self.usage.settle(&mut findings);
        let [main, other] = tables;
        if let (Some(main), Some(other)) = (&main, &other) {
            self.compare(main, other, &mut findings)?;
        }
        match main.or(other) {
            Some(tables) => self.run(&tables, findings),
            None => Ok(findings),
        }
    }

    fn note_reserved(&mut self, name: &'static str, findings: &mut Findings) -> Result<()> {
        for (start, end) in &self.layout.reserved {
            self.usage.structure(name, *start, end - start, findings)?;
        }
        Ok(())
    }

    /// Notes where a directory of sectors and its tables are.
    fn note_directory(
        &mut self,
        name: &'static str,
        start: u64,
        directory: &[u8],
        findings: &mut Findings,
    ) -> Result<()> {
        // The main one comes first, and what is reserved is noted with it.
        if name == "grain directory" {
            self.note_reserved("header or descriptor", findings)?;
        }
        let usage = &mut self.usage;
        usage.structure(name, start, directory.len() as u64, findings)?;
        for at in GrainDirectoryEntry::all(directory).filter_map(GrainDirectoryEntry::table) {
            usage.structure("grain table", at, self.layout.entries * 4, findings)?;
        }
        Ok(())
    }

    /// The bytes of a table; `None` if it lies in a hole of the file, or past its end.
    fn read_table(&self, at: u64, len: u64) -> Result<Option<Vec<u8>>> {
        if at.checked_add(len).is_none_or(|end| end > self.file.size()) {
            return Ok(None);
        }
        let run = self.file.extent_at(at, len)?;
        if run.kind.reads_as_zero() && run.len == len {
            return Ok(None);
        }
        let mut table = vec![0; usize::try_from(len).unwrap_or(0)];
        self.file.read_exact_at(&mut table, at)?;
        Ok(Some(table))
    }

    /// Compares the tables of both directories.
    fn compare(
        &self,
        main: &SectorTables,
        other: &SectorTables,
        findings: &mut Findings,
    ) -> Result<()> {
        let len = self.layout.entries * 4;
        self.limits.check_metadata("a grain table", len)?;
        let mut differ = 0_u64;
        for index in 0..self.layout.directory_entries() {
            let Some(second) = other.table(index)? else {
                differ += u64::from(main.table(index)?.is_some());
                continue;
            };
            let copy = self.read_table(second, len)?;
            let Some(first) = main.table(index)? else {
                if copy.is_some_and(|copy| copy.iter().any(|byte| *byte != 0)) {
                    let problem = format!(
                        "has a table with grains for entry {index}, for which the grain directory has none"
                    );
                    let finding = Finding::corruption("redundant grain directory", problem);
                    let guest = index * self.layout.entries * self.layout.grain;
                    findings.add(finding.at(second).guest(guest));
                }
                continue;
            };
            let table = self.read_table(first, len)?;
            let there = |at: u64| {
                let end = at.checked_add(len);
                end.is_some_and(|end| end <= self.file.size())
            };
            if table != copy {
                differ += 1;
            }
            // That a table is past the end of the file was told.
            if table != copy && there(first) && there(second) {
                let zeros = || vec![0; usize::try_from(len).unwrap_or(0)];
                let pair = (table.unwrap_or_else(zeros), copy.unwrap_or_else(zeros));
                self.compare_entries(main, (index, first), &pair, findings);
            }
        }
        if differ > 0 {
            // They are read only if the main ones are damaged.
            let problem = format!("{differ} grain tables differ from the main ones");
            findings.note("redundant grain directory", problem);
        }
        Ok(())
    }

    /// Finds where two tables say different things that both make sense. What makes none in the first is found
    /// anyhow, and of what the second lacks nothing is lost.
    fn compare_entries(
        &self,
        tables: &SectorTables,
        place: (u64, u64),
        pair: &(Vec<u8>, Vec<u8>),
        findings: &mut Findings,
    ) {
        let (index, at) = place;
        let first = index * self.layout.entries * self.layout.grain;
        let guests = (first..self.layout.capacity)
            .step_by(usize::try_from(self.layout.grain).unwrap_or(usize::MAX));
        let entries = pair.0.chunks_exact(4).zip(pair.1.chunks_exact(4));
        for (((one, two), guest), at) in entries.zip(guests).zip((at..).step_by(4)) {
            if one == two {
                continue;
            }
            let (Some(one), Some(two)) = (
                self.meaning(tables, one, guest),
                self.meaning(tables, two, guest),
            ) else {
                continue;
            };
            let problem = match (one, two) {
                (_, Grain::Unallocated) => continue,
                (Grain::Unallocated, _) => {
                    "the entry is empty, and the redundant table has something there"
                }
                _ => "the redundant table has something else there",
            };
            findings.add(
                Finding::corruption("grain table", problem)
                    .at(at)
                    .guest(guest),
            );
        }
    }

    /// The meaning of an entry, if it is valid.
    fn meaning(&self, tables: &SectorTables, raw: &[u8], guest: u64) -> Option<Grain> {
        let grain = tables.entry(raw).ok()?;
        let Grain::At(host) = grain else {
            return Some(grain);
        };
        let needed = match self.packed {
            false => self.layout.grain.min(self.layout.capacity - guest),
            true => 1,
        };
        let end = host.checked_add(needed)?;
        let sound = end <= self.file.size() && !self.usage.is_in_structure(host, needed);
        sound.then_some(grain)
    }

    fn run<T: Tables>(mut self, tables: &T, mut findings: Findings) -> Result<Findings> {
        let entry_len = tables.entry_len();
        let len = self.layout.entries * entry_len as u64;
        self.limits.check_metadata("a grain table", len)?;
        let span = self.layout.entries * self.layout.grain;
        let mut walked = HashSet::new();
        for index in 0..self.layout.directory_entries() {
            let Some(Some(at)) = findings.sound(tables.table(index))? else {
                continue;
            };
            // One that several entries share was found to overlap itself.
            if !walked.insert(at) {
                continue;
            }
            let Some(table) = self.read_table(at, len)? else {
                continue;
            };
            let guests = (index * span..self.layout.capacity)
                .step_by(usize::try_from(self.layout.grain).unwrap_or(usize::MAX));
            for ((raw, place), guest) in table
                .chunks_exact(entry_len)
                .zip((at..).step_by(entry_len))
                .zip(guests)
            {
                if let Some(Grain::At(host)) = findings.sound(tables.entry(raw))? {
                    self.grain(host, (place, guest), &mut findings)?;
                }
            }
        }
        if !self.packed {
            self.usage.finish("grain", &mut findings);
        }
        Ok(findings)
    }

    fn grain(&mut self, host: u64, place: (u64, u64), findings: &mut Findings) -> Result<()> {
        let (at, guest) = place;
        let needed = match self.packed {
            false => self.layout.grain.min(self.layout.capacity - guest),
            // All that is known of it is that it begins there.
            true => 1,
        };
        let sound = self
            .usage
            .unit("grain table", host, needed, place, findings)?;
        if !sound || !self.packed || !self.markers {
            return Ok(());
        }
        let Some(marker) = findings.sound(stream::marker_at(self.file, host))? else {
            return Ok(());
        };
        let end = stream::grain_end(host, &marker);
        let problem = if marker.size == 0 || marker.val.checked_mul(SECTOR) != Some(guest) {
            "leads to no grain, or to another one's"
        } else if end.is_none_or(|end| end > self.file.size()) {
            "leads to a grain that reaches past the end of the file"
        } else {
            return Ok(());
        };
        let finding = Finding::new(FindingKind::Corruption, "grain table", problem);
        findings.add(finding.at(at).guest(guest));
        Ok(())
    }
}
