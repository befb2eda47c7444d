//! Compressed clusters that share bytes.
//!
//! Several of them lie in one cluster of the file, and each counts as one reference to it, so that the counts are
//! right however they lie there. An entry tells where its bytes end to the sector: by the specification another
//! compressed cluster may begin in that last sector, and nowhere before.

use crate::error::Result;

use super::super::entry::{Descriptor, L2Layout};
use super::Survey;
use super::counts::Counts;

const SECTOR: u64 = 512;
/// Bytes of memory for a descriptor.
const ENTRY_BYTES: u64 = 8;

/// Compressed clusters that were found.
#[derive(Debug, Default)]
pub(super) struct Packed {
    /// References by them.
    pub(super) counts: Counts,
    /// Their descriptors.
    entries: Vec<Descriptor>,
    /// True if there were more than may be kept: then none is.
    too_many: bool,
}

impl Survey {
    /// Notes a compressed cluster that so many entries refer to.
    pub(super) fn note_packed(
        &mut self,
        descriptor: Descriptor,
        host: u64,
        len: u64,
        times: u64,
    ) -> Result<()> {
        let bits = self.header.cluster_bits;
        let most = self.stored.layout().most();
        let packed = &mut self.packed;
        for cluster in host >> bits..=(host + len - 1) >> bits {
            packed.counts.add(cluster, times, most, &mut self.budget)?;
        }
        if packed.too_many {
            return Ok(());
        }
        if self.budget.take(ENTRY_BYTES).is_ok() {
            packed.entries.push(descriptor);
        } else {
            packed.too_many = true;
            let kept = packed.entries.len() as u64 + 1;
            self.budget.give_back(kept * ENTRY_BYTES);
            packed.entries = Vec::new();
        }
        Ok(())
    }

    /// Finds compressed clusters that begin within others. What several entries have in common, as after a
    /// snapshot, is one.
    pub(super) fn look_for_overlaps(&mut self) {
        if self.packed.too_many {
            let problem = "they were not examined for overlaps: they exceed the limit check_bytes";
            self.findings.note("packed cluster", problem);
        }
        let mut entries = std::mem::take(&mut self.packed.entries);
        let layout = L2Layout::of(&self.header);
        entries.sort_unstable_by_key(|entry| layout.data(*entry));
        entries.dedup();
        let mut last: Option<(u64, u64)> = None;
        for entry in &entries {
            let (start, len) = layout.data(*entry);
            let end = start + len;
            match last {
                Some((other, other_end)) if start == other || start + SECTOR <= other_end => {
                    let problem = format!(
                        "begins within the one at byte {other}, which reaches up to byte {other_end}"
                    );
                    self.corruption("packed cluster", start, None, 1, problem);
                    if end > other_end {
                        last = Some((start, end));
                    }
                }
                _ => last = Some((start, end)),
            }
        }
        self.budget.give_back(entries.len() as u64 * ENTRY_BYTES);
    }
}
