//! Asking the writer where everything goes.

use crate::convert::segment::{Buffer, Bytes, Segment, Step, Store, Work};
use crate::error::{Error, Result};
use crate::image::{CopiedPart, ImageWriter, Placed, Write, WriteRun};
use crate::packed::PackedUnit;

/// Asks the writer where each step of a segment goes, and notes what has to be written.
pub(super) fn place_steps(
    writer: &mut dyn ImageWriter,
    segment: &Segment,
    work: &mut Work,
) -> Result<()> {
    let steps = std::mem::take(&mut work.steps);
    let parts = std::mem::take(&mut work.parts);
    let mut tables = Vec::new();
    for step in &steps {
        match *step {
            Step::Verbatim { guest, len, at } => {
                let mut done = 0;
                while done < len {
                    let run = WriteRun::Verbatim {
                        guest: guest + done,
                        len: len - done,
                    };
                    let placed = took_some(writer.place(run, &mut tables)?)?;
                    drain_tables(work, &mut tables);
                    let taken = placed.taken.min(len - done);
                    let at = at + usize::try_from(done).unwrap_or(usize::MAX);
                    let len = usize::try_from(taken).unwrap_or(usize::MAX);
                    push_bytes(work, placed, Buffer::Data, at, len);
                    done += taken;
                }
            }
            Step::Zero { guest, len } => {
                let mut done = 0;
                while done < len {
                    let run = WriteRun::Zero {
                        guest: guest + done,
                        len: len - done,
                    };
                    done += took_some(writer.place(run, &mut tables)?)?.taken;
                    drain_tables(work, &mut tables);
                }
            }
            Step::Packed { first, count, at } => {
                let mut parts = parts.get(first..first + count).unwrap_or_default();
                let mut at = at;
                while !parts.is_empty() {
                    let run = WriteRun::Packed { parts };
                    let placed = took_some(writer.place(run, &mut tables)?)?;
                    drain_tables(work, &mut tables);
                    let taken = usize::try_from(placed.taken).unwrap_or(usize::MAX);
                    let (taken, rest) = parts.split_at(taken.min(parts.len()));
                    let len = taken.iter().map(|part| part.len as usize).sum();
                    push_bytes(work, placed, Buffer::Packed, at, len);
                    at += len;
                    parts = rest;
                }
            }
            Step::Copied { first, count } => {
                let units = segment.units.get(first..first + count).unwrap_or_default();
                place_copied(writer, units, work, &mut tables)?;
            }
        }
    }
    work.steps = steps;
    work.parts = parts;
    Ok(())
}

/// Places compressed units as they lie to each other.
fn place_copied(
    writer: &mut dyn ImageWriter,
    units: &[PackedUnit],
    work: &mut Work,
    tables: &mut Vec<Write>,
) -> Result<()> {
    let mut units = units;
    while let Some(first) = units.first() {
        let parts: Vec<CopiedPart> = units
            .iter()
            .map(|unit| CopiedPart {
                guest: unit.guest,
                at: unit.host - first.host,
                len: unit.len as u64,
            })
            .collect();
        let run = WriteRun::Copied {
            parts: &parts,
            remainder: first.host % 512,
        };
        let placed = took_some(writer.place(run, tables)?)?;
        drain_tables(work, tables);
        let taken = usize::try_from(placed.taken).unwrap_or(usize::MAX);
        let (taken, rest) = units.split_at(taken.min(units.len()));
        let end = taken.iter().map(|unit| unit.at + unit.len).max();
        let len = end.unwrap_or(first.at) - first.at;
        push_bytes(work, placed, Buffer::Taken, first.at, len);
        units = rest;
    }
    Ok(())
}

fn push_bytes(work: &mut Work, placed: Placed, from: Buffer, at: usize, len: usize) {
    let Placed { file, host, .. } = placed;
    work.push_store(Store::Bytes(Bytes {
        from,
        at,
        len,
        file,
        host,
    }));
}

fn took_some(placed: Placed) -> Result<Placed> {
    if placed.taken == 0 {
        return Err(Error::invalid("the image writer placed nothing"));
    }
    Ok(placed)
}

fn drain_tables(work: &mut Work, tables: &mut Vec<Write>) {
    for table in tables.drain(..) {
        work.push_store(Store::Table(table));
    }
}
