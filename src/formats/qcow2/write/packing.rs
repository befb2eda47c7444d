//! Packed clusters, byte behind byte across host clusters.

use crate::error::{Error, Result};
use crate::formats::qcow2::entry::CompressedLayout;
use crate::image::{Part, Placed, Write};

use super::alloc::Allocator;
use super::mapping::Mapping;

/// Where the next packed cluster goes.
#[derive(Debug)]
pub(super) struct Packing {
    cluster_size: u64,
    layout: CompressedLayout,
    /// The first free byte behind the last part.
    fill: u64,
    /// The end of the host cluster that `fill` is in, or that ends there.
    end: u64,
}

/// How a part can be placed at `fill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Within the open host cluster.
    Inside,
    /// From the open host cluster into the next, or at the start of that if there is nothing left.
    Across,
    /// Not at all: it has to begin a host cluster elsewhere.
    Elsewhere,
}

impl Packing {
    pub(super) fn new(cluster_size: u64) -> Self {
        Packing {
            cluster_size,
            layout: CompressedLayout::new(cluster_size.trailing_zeros()),
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
        let mut placed = Placed {
            file: 0,
            host: 0,
            taken: 0,
        };
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
            if host + len > self.layout.limit() {
                return Err(Error::invalid(
                    "the image is too large for packed clusters of this cluster size",
                ));
            }
            mapping.set_entry(part.guest, self.layout.encode(host, len));
            placed.taken += 1;
        }
        Ok(placed)
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
