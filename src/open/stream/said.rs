//! Digest of the extents of a disk while it arrives, to be compared with the whole image.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, DefaultHasher, Hasher};

use crate::error::Result;
use crate::extent::{Extent, ExtentKind};
use crate::image::Image;

/// Digest of the runs that an image tells of the disk, from its start on. It does not depend on their cuts.
#[derive(Debug)]
pub(super) struct Said {
    random: RandomState,
    digest: DefaultHasher,
    /// The run that may go on.
    run: Option<(u64, ExtentKind, u16)>,
    pub(super) end: u64,
}

impl Said {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Said {
            digest: random.build_hasher(),
            random,
            run: None,
            end: 0,
        }
    }

    /// Nothing yet, to be compared with this.
    pub(super) fn anew(&self) -> Self {
        Said {
            digest: self.random.build_hasher(),
            random: self.random.clone(),
            run: None,
            end: 0,
        }
    }

    /// Takes in what `image` says in `run`, as far as that is new.
    pub(super) fn say(&mut self, image: &dyn Image, run: Extent) -> Result<()> {
        if run.end() <= self.end {
            return Ok(());
        }
        let goes_on = self
            .run
            .is_some_and(|(_, kind, depth)| (kind, depth) == (run.kind, run.depth));
        if !goes_on {
            self.close();
            self.run = Some((self.end, run.kind, run.depth));
        }
        if let (ExtentKind::Compressed, 0, Some(packed)) = (run.kind, run.depth, image.packed()) {
            let unit = packed.unit();
            let mut at = self.end.next_multiple_of(unit);
            while at < run.end() {
                let place = packed.place_of_unit(at)?;
                self.digest.write_u64(place.unwrap_or(u64::MAX));
                at += unit;
            }
        }
        self.end = run.end();
        Ok(())
    }

    fn close(&mut self) {
        if let Some((start, kind, depth)) = self.run.take() {
            self.digest.write_u64(start);
            self.digest.write_u64(self.end);
            self.digest.write_u8(match kind {
                ExtentKind::Data => 0,
                ExtentKind::Compressed => 1,
                ExtentKind::Zero => 2,
                ExtentKind::Hole => 3,
            });
            self.digest.write_u16(depth);
        }
    }

    pub(super) fn end_of_speech(&mut self) -> u64 {
        self.close();
        self.digest.finish()
    }
}
