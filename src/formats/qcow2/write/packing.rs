//! Compressed clusters, byte behind byte across host clusters.

use crate::error::{Error, Result};
use crate::formats::qcow2::entry::L2Layout;
use crate::image::{CopiedPart, Part, Placed, Write};

use super::alloc::Allocator;
use super::mapping::Mapping;

/// Place of the next compressed cluster.
#[derive(Debug)]
pub(super) struct Packing {
    cluster_size: u64,
    layout: L2Layout,
    /// The first free byte behind the last part.
    fill: u64,
    /// The end of the host cluster that `fill` is in, or that ends there.
    end: u64,
}

/// Ways to place a part at `fill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Within the open host cluster.
    Inside,
    /// From the open host cluster into the next, or at the start of that if there is nothing left.
    Across,
    /// Not at all: it has to begin a host cluster elsewhere.
    Elsewhere,
}

fn too_large() -> Error {
    Error::invalid("the image is too large for packed clusters of this cluster size")
}

impl Packing {
    pub(super) fn new(cluster_size: u64, layout: L2Layout) -> Self {
        Packing {
            cluster_size,
            layout,
            fill: 0,
            end: 0,
        }
    }

    /// Places as many of `parts` as fit behind each other in the file and into the current L2 table,
    /// which maps the first one: the first always does.
    pub(super) fn place(
        &mut self,
        parts: &[Part],
        mapping: &mut Mapping,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<Placed> {
        let mut placed = Placed::new(0, 0, 0);
        let mut span_end = 0;
        for part in parts {
            let len = u64::from(part.len);
            let fit = self.fit(len, allocator);
            if placed.taken == 0 {
                span_end = mapping.span_end(part.guest);
            } else if part.guest >= span_end || fit == Fit::Elsewhere {
                break;
            }
            let host = self.take(len, fit, allocator, tables)?;
            if placed.taken == 0 {
                placed.host = host;
            }
            if host + len > self.layout.compressed_limit() {
                return Err(too_large());
            }
            mapping.set_entry(part.guest, self.layout.compressed(host, len));
            placed.taken += 1;
        }
        Ok(placed)
    }

    /// Places as many of `parts` as fit into the file as they lie to each other, and into the current
    /// L2 table: the first always does.
    pub(super) fn copy(
        &mut self,
        parts: &[CopiedPart],
        remainder: u64,
        mapping: &mut Mapping,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<Placed> {
        const SECTOR: u64 = 512;
        let invalid = || Error::invalid("copied parts go back, or too far");
        let mut placed = Placed::new(0, 0, 0);
        let (mut span_end, mut base) = (0, 0);
        for part in parts {
            let Some(first) = parts.first().filter(|first| first.at <= part.at) else {
                return Err(invalid());
            };
            let apart = part.at - first.at;
            if placed.taken == 0 {
                span_end = mapping.span_end(part.guest);
                base = self.fill + (remainder + SECTOR - self.fill % SECTOR) % SECTOR;
                if !self.extend_to(base, part.len, allocator, tables)? {
                    base = self.begin_elsewhere(remainder, part.len, allocator, tables)?;
                }
                placed.host = base;
            } else if part.guest >= span_end
                || !self.extend_to(base + apart, part.len, allocator, tables)?
            {
                break;
            }
            let host = base + apart;
            if host + part.len > self.layout.compressed_limit() {
                return Err(too_large());
            }
            mapping.set_entry(part.guest, self.layout.compressed(host, part.len));
            self.fill = self.fill.max(host + part.len);
            placed.taken += 1;
        }
        Ok(placed)
    }

    /// Counts the host clusters that `len` bytes at `host` touch, of which new ones have to follow the
    /// open one; `false`, with nothing done, if they cannot all be counted.
    fn extend_to(
        &mut self,
        host: u64,
        len: u64,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<bool> {
        let cluster_size = self.cluster_size;
        let first = host - host % cluster_size;
        let end = (host + len).next_multiple_of(cluster_size);
        let open = (first..end.min(self.end)).step_by(usize::try_from(cluster_size).unwrap_or(1));
        let more = end.saturating_sub(self.end) / cluster_size;
        let counts = |cluster| allocator.can_add_reference(cluster);
        let fits = more == 0 || allocator.continues_by(self.end, more);
        // A cluster that nothing would touch must not be handed out.
        if self.end == 0 || first > self.end || !fits || !open.clone().all(counts) {
            return Ok(false);
        }
        for cluster in open {
            allocator.add_reference(cluster);
        }
        if more > 0 {
            allocator.allocate(more, tables)?;
            self.end = end;
        }
        Ok(true)
    }

    /// Hands new host clusters out for `len` bytes that begin `remainder` into a sector, and returns
    /// where that is.
    fn begin_elsewhere(
        &mut self,
        remainder: u64,
        len: u64,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<u64> {
        let count = (remainder + len).div_ceil(self.cluster_size);
        let first = allocator.allocate_together(count, tables)?;
        self.end = first + count * self.cluster_size;
        self.fill = first + remainder;
        Ok(self.fill)
    }

    fn fit(&self, len: u64, allocator: &Allocator) -> Fit {
        let open = self.end - self.cluster_size.min(self.end);
        if self.fill == self.end {
            return match allocator.continues_at(self.end) {
                true => Fit::Across,
                false => Fit::Elsewhere,
            };
        }
        if !allocator.can_add_reference(open) {
            Fit::Elsewhere
        } else if self.fill + len <= self.end {
            Fit::Inside
        } else if allocator.continues_at(self.end) {
            Fit::Across
        } else {
            Fit::Elsewhere
        }
    }

    /// Counts the host clusters that a part touches and returns where it goes, in bytes.
    fn take(
        &mut self,
        len: u64,
        fit: Fit,
        allocator: &mut Allocator,
        tables: &mut Vec<Write>,
    ) -> Result<u64> {
        if fit != Fit::Elsewhere && self.fill < self.end {
            allocator.add_reference(self.end - self.cluster_size);
        }
        if fit != Fit::Inside {
            let (first, _) = allocator.allocate(1, tables)?;
            self.end = first + self.cluster_size;
            if fit == Fit::Elsewhere {
                self.fill = first;
            }
        }
        let host = self.fill;
        self.fill += len;
        Ok(host)
    }
}
