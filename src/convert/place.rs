//! Asking the writer where everything goes.

use crate::convert::segment::{Segment, Step, Store};
use crate::error::{Error, Result};
use crate::image::{ImageWriter, Placed, Write, WriteRun};

/// Asks the writer where each step of a segment goes, and notes what has to be written.
pub(super) fn place_steps(writer: &mut dyn ImageWriter, segment: &mut Segment) -> Result<()> {
    let mut tables = Vec::new();
    let steps = std::mem::take(&mut segment.steps);
    let parts = std::mem::take(&mut segment.parts);
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
                    drain_tables(segment, &mut tables);
                    let taken = placed.taken.min(len - done);
                    segment.push_store(Store::Data {
                        file: placed.file,
                        host: placed.host,
                        at: at + usize::try_from(done).unwrap_or(usize::MAX),
                        len: usize::try_from(taken).unwrap_or(usize::MAX),
                    });
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
                    drain_tables(segment, &mut tables);
                }
            }
            Step::Packed { first, count, at } => {
                let mut parts = parts.get(first..first + count).unwrap_or_default();
                let mut at = at;
                while !parts.is_empty() {
                    let run = WriteRun::Packed { parts };
                    let placed = took_some(writer.place(run, &mut tables)?)?;
                    drain_tables(segment, &mut tables);
                    let taken = usize::try_from(placed.taken).unwrap_or(usize::MAX);
                    let (taken, rest) = parts.split_at(taken.min(parts.len()));
                    let len = taken.iter().map(|part| part.len as usize).sum();
                    let Placed { file, host, .. } = placed;
                    segment.push_store(Store::Packed {
                        file,
                        host,
                        at,
                        len,
                    });
                    at += len;
                    parts = rest;
                }
            }
        }
    }
    segment.steps = steps;
    segment.parts = parts;
    Ok(())
}

fn took_some(placed: Placed) -> Result<Placed> {
    if placed.taken == 0 {
        return Err(Error::invalid("the image writer placed nothing"));
    }
    Ok(placed)
}

fn drain_tables(segment: &mut Segment, tables: &mut Vec<Write>) {
    for table in tables.drain(..) {
        segment.push_store(Store::Table(table));
    }
}
