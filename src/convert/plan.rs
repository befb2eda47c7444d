//! The plan of an image that is written from front to back: a rehearsal of the whole conversion, without
//! its data, for the tables that stand before what they tell of.
//!
//! ```text
//!   rehearse  the pieces that will be claimed are placed; tables that come too late are kept
//!   perform   another writer places the same; what was kept is put in where it belongs
//! ```
//!
//! A writer places the same runs in the same way, so no format has to know of this, and an image comes
//! out of a stream as it would have come to stand in a file.

use std::hash::{DefaultHasher, Hasher};
use std::iter::Peekable;
use std::vec::IntoIter;

use crate::convert::claim::Cursor;
use crate::convert::kept::{Kept, Table, of_what_was_written};
use crate::convert::place::place_steps;
use crate::convert::segment::{Segment, Work};
use crate::error::{Error, Result};
use crate::image::{Finish, ImageWriter, Payload, Placed, Write, WriteRun, WriteShape};

/// Result of the rehearsal.
#[derive(Debug)]
pub(super) struct Plan {
    tables: Vec<Table>,
    /// The course that the performance has to have at its end.
    course: Course,
    sizes: Vec<u64>,
}

impl Plan {
    /// Places all that the cursor claims. `None` if the data is not placed from front to back.
    pub(super) fn rehearse(
        writer: Box<dyn ImageWriter>,
        cursor: &mut Cursor<'_>,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Option<Self>> {
        let mut kept = Kept::default();
        for write in writer.shape().preallocation {
            kept.keep(write)?;
        }
        let mut rehearsal = Rehearsal {
            writer,
            course: Course::default(),
            kept,
        };
        // Nothing is read: it needs no buffer.
        let (mut segment, mut work) = (Segment::new(0), Work::default());
        while cursor.claim(&mut segment, stopped)? {
            work.clear();
            work.push_pieces_whole(&segment);
            place_steps(&mut rehearsal, &segment, &mut work)?;
        }
        let Rehearsal {
            writer,
            course,
            mut kept,
        } = rehearsal;
        let finish = writer.finish()?;
        for write in finish.tables.into_iter().chain(finish.seal) {
            kept.keep(write)?;
        }
        let mut tables = kept.tables;
        tables.sort_by_key(|table| table.offset);
        let mut ends = tables.iter().map(Table::end).zip(tables.iter().skip(1));
        let apart = ends.all(|(end, next)| end <= next.offset);
        Ok((apart && !course.went_back).then_some(Plan {
            tables,
            course,
            sizes: finish.sizes,
        }))
    }
}

/// Writes of tables, and places of data, as they follow each other.
#[derive(Debug, Default)]
struct Course {
    /// The end of what was written in order.
    position: u64,
    went_back: bool,
    /// Of all that was placed.
    digest: DefaultHasher,
}

impl Course {
    /// Notes a run, where it was placed, and the tables that came before it. Those that can be written
    /// when it is their turn are returned; the others go to `late`.
    fn follow(
        &mut self,
        run: &WriteRun<'_>,
        placed: Placed,
        tables: Vec<Write>,
        mut late: impl FnMut(Write) -> Result<()>,
    ) -> Result<Vec<Write>> {
        let (kind, guest, data) = match *run {
            WriteRun::Verbatim { guest, .. } => (0, guest, Some(placed.taken)),
            WriteRun::Zero { guest, .. } => (1, guest, None),
            WriteRun::Packed { .. } | WriteRun::Copied { .. } => {
                return Err(Error::invalid("packed runs cannot be planned"));
            }
        };
        for number in [kind, guest, placed.taken] {
            self.digest.write_u64(number);
        }
        let limit = data.map_or(u64::MAX, |_| placed.host);
        let mut in_turn = Vec::new();
        for write in tables {
            if matches!(write.payload, Payload::Digest { .. }) {
                return Err(of_what_was_written());
            }
            // All other kinds of writes ask for nothing but zeros.
            let Payload::Bytes(bytes) = &write.payload else {
                continue;
            };
            self.digest.write_u64(write.offset);
            self.digest.write(bytes);
            let end = end_of(write.offset, bytes);
            if write.offset >= self.position && end <= limit {
                self.position = end;
                in_turn.push(write);
            } else {
                late(write)?;
            }
        }
        if let Some(len) = data {
            self.went_back |= placed.host < self.position;
            self.digest.write_u64(placed.host);
            self.position = placed.host.saturating_add(len);
        }
        Ok(in_turn)
    }
}

/// A writer that writes nothing.
#[derive(Debug)]
struct Rehearsal {
    writer: Box<dyn ImageWriter>,
    course: Course,
    kept: Kept,
}

impl ImageWriter for Rehearsal {
    fn shape(&self) -> WriteShape {
        self.writer.shape()
    }

    fn place(&mut self, run: WriteRun<'_>, _: &mut Vec<Write>) -> Result<Placed> {
        let mut tables = Vec::new();
        let placed = self.writer.place(run, &mut tables)?;
        self.course
            .follow(&run, placed, tables, |write| self.kept.keep(write))?;
        Ok(placed)
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        self.writer.finish()
    }
}

/// A writer that places from front to back what was rehearsed.
#[derive(Debug)]
pub(super) struct Performance {
    writer: Box<dyn ImageWriter>,
    course: Course,
    tables: Peekable<IntoIter<Table>>,
    /// The end of what was handed out to be written.
    written: u64,
    end: Course,
    sizes: Vec<u64>,
}

impl Performance {
    /// `writer` has the options of the one that rehearsed.
    pub(super) fn new(writer: Box<dyn ImageWriter>, plan: Plan) -> Self {
        Performance {
            writer,
            course: Course::default(),
            tables: plan.tables.into_iter().peekable(),
            written: 0,
            end: plan.course,
            sizes: plan.sizes,
        }
    }

    /// Hands out the tables that stand before `offset`, where what comes next ends at `end`.
    fn come_to(&mut self, offset: u64, end: u64, tables: &mut Vec<Write>) -> Result<()> {
        let mut in_order = true;
        while let Some(table) = self.tables.next_if(|table| table.offset < offset) {
            in_order &= self.written <= table.offset;
            self.written = table.end();
            table.write(tables);
        }
        if !in_order || self.written > offset {
            return Err(changed());
        }
        self.written = end;
        Ok(())
    }
}

impl ImageWriter for Performance {
    fn shape(&self) -> WriteShape {
        let mut shape = self.writer.shape();
        shape.preallocation.clear();
        shape
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let mut found = Vec::new();
        let placed = self.writer.place(run, &mut found)?;
        // What is late was kept, and written before.
        let in_turn = self.course.follow(&run, placed, found, |_| Ok(()))?;
        for write in in_turn {
            if let Payload::Bytes(bytes) = &write.payload {
                self.come_to(write.offset, end_of(write.offset, bytes), tables)?;
            }
            tables.push(write);
        }
        if matches!(run, WriteRun::Verbatim { .. }) {
            let end = placed.host.saturating_add(placed.taken);
            self.come_to(placed.host, end, tables)?;
        }
        Ok(placed)
    }

    /// The end is that of the rehearsal: a writer that makes identifiers up would make up others now.
    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let (course, end) = (&self.course, &self.end);
        if course.position != end.position || course.digest.finish() != end.digest.finish() {
            return Err(changed());
        }
        let mut tables = Vec::new();
        self.come_to(u64::MAX, u64::MAX, &mut tables)?;
        Ok(Finish::new(tables, Vec::new(), self.sizes))
    }
}

fn end_of(offset: u64, bytes: &[u8]) -> u64 {
    offset.saturating_add(bytes.len() as u64)
}

fn changed() -> Error {
    Error::invalid(
        "the source was changed while it was converted: what was written of the image is of no use",
    )
}

/// A writer whose own order is that of the stream.
#[derive(Debug)]
pub(super) struct InOrder(pub(super) Box<dyn ImageWriter>);

impl ImageWriter for InOrder {
    fn shape(&self) -> WriteShape {
        let mut shape = self.0.shape();
        keep_bytes(&mut shape.preallocation);
        shape
    }

    fn encoder(&self) -> Option<std::sync::Arc<dyn crate::image::Encoder>> {
        self.0.encoder()
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        let placed = self.0.place(run, tables)?;
        keep_bytes(tables);
        Ok(placed)
    }

    fn finish(self: Box<Self>) -> Result<Finish> {
        let mut finish = self.0.finish()?;
        // The size is set before the seal is written: there must be none.
        finish.tables.append(&mut finish.seal);
        keep_bytes(&mut finish.tables);
        finish.tables.sort_by_key(|write| write.offset);
        Ok(finish)
    }
}

/// Takes out what asks for nothing but zeros, which a stream has wherever nothing is written.
fn keep_bytes(writes: &mut Vec<Write>) {
    writes.retain(|write| matches!(write.payload, Payload::Bytes(_)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::ConvertOptions;
    use crate::convert::claim::Ground;
    use crate::convert::segment::capacity;
    use crate::extent::{Extent, ExtentKind};
    use crate::source::BlockSource;

    fn write(offset: u64, bytes: Vec<u8>) -> Write {
        Write::new(0, offset, bytes)
    }

    /// A disk that is nothing but data.
    #[derive(Debug)]
    struct Full(u64);

    impl BlockSource for Full {
        fn size(&self) -> u64 {
            self.0
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
            panic!("a rehearsal reads nothing")
        }

        fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
            Ok(Extent::new(
                offset,
                limit.min(self.0 - offset),
                ExtentKind::Data,
            ))
        }
    }

    #[test]
    fn the_plan_of_a_full_disk_takes_little_memory() {
        let disk = Full(16 << 30);
        // A qcow2 counts its references in half a mebibyte, a VHD has a mebibyte of bitmaps times four.
        for (format, most) in [("qcow2", 200), ("vhd", 700), ("vhdx", 300), ("vdi", 100)] {
            let writer = ConvertOptions::to(format)
                .writer((&disk).into(), None)
                .unwrap();
            let (size, unit) = (disk.size(), writer.shape().unit);
            let mut cursor = Cursor::new(
                (&disk).into(),
                vec![&Ground::Zero],
                false,
                size,
                unit,
                capacity(unit),
            );
            let plan = Plan::rehearse(writer, &mut cursor, &|| false).unwrap();
            let tables = plan.unwrap().tables;
            let memory: usize = tables.iter().map(Table::memory).sum();
            assert!(memory < most << 10, "{format}: {memory}");
        }
    }

    #[test]
    fn a_table_is_in_turn_only_where_the_stream_is_not_past_it_and_the_data_not_before() {
        let mut course = Course::default();
        let run = WriteRun::Verbatim { guest: 0, len: 50 };
        let placed = |host| Placed::new(0, host, 50);
        let mut late = Vec::new();
        let tables = [10, 0, 30, 95, 200].map(|at| write(at, vec![1; 10]));
        let in_turn = course
            .follow(&run, placed(100), tables.to_vec(), |write| {
                late.push(write.offset);
                Ok(())
            })
            .unwrap();
        let in_turn: Vec<u64> = in_turn.iter().map(|write| write.offset).collect();
        assert_eq!((in_turn, late), (vec![10, 30], vec![0, 95, 200]));
        assert_eq!((course.position, course.went_back), (150, false));
        course
            .follow(&run, placed(149), Vec::new(), |_| Ok(()))
            .unwrap();
        assert!(course.went_back);
    }
}
