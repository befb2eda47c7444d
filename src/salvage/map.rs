//! The map of a disk with what was lost of it.

use crate::error::Result;
use crate::extents::{Entries, Entry};
use crate::name::ImageName;

use super::Salvage;

/// The runs of a disk in order, with what was lost as runs of their own; made by [`Salvage::entries`].
#[derive(Debug)]
pub struct SalvagedEntries<'a> {
    entries: Entries<'a>,
    /// Rest of the run at the position.
    open: Option<Entry>,
    /// Losses: start, end and reason, in reverse order.
    lost: Vec<(u64, u64, String)>,
}

impl<'a> SalvagedEntries<'a> {
    pub(super) fn of(salvage: &'a Salvage, filename: ImageName) -> Self {
        let losses = salvage.losses();
        let listed = losses.list.into_iter();
        let mut lost: Vec<_> = listed
            .map(|loss| (loss.start, loss.start + loss.length, loss.error))
            .collect();
        let told = lost.last().map_or(0, |(_, end, _)| *end);
        for (start, end) in salvage.lost().ranges_from(told) {
            lost.push((start, end, "one of too many failures to be told".to_owned()));
        }
        lost.reverse();
        SalvagedEntries {
            entries: Entries::of(salvage, filename),
            open: None,
            lost,
        }
    }

    /// Takes the first part of the open run: what is lost of it, or what is not.
    fn take(&mut self, mut run: Entry) -> Entry {
        let end = run.start + run.length;
        while self
            .lost
            .last()
            .is_some_and(|(_, end, _)| *end <= run.start)
        {
            self.lost.pop();
        }
        let (stop, error) = match self.lost.last() {
            Some((start, stop, error)) if *start <= run.start => (*stop, Some(error.clone())),
            Some((start, ..)) => (*start, None),
            None => (end, None),
        };
        if stop < end {
            let mut rest = run.clone();
            rest.start = stop;
            rest.length = end - stop;
            rest.offset = run.offset.map(|offset| offset + (stop - run.start));
            self.open = Some(rest);
            run.length = stop - run.start;
        }
        if error.is_some() {
            run.error = error;
            (run.zero, run.data, run.compressed) = (true, false, false);
            (run.offset, run.filename) = (None, None);
        }
        run
    }
}

impl Iterator for SalvagedEntries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let run = match self.open.take() {
            Some(run) => run,
            None => match self.entries.next()? {
                Ok(run) => run,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(self.take(run)))
    }
}
