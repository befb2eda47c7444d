//! Write-back during the work, so that the sync at its end has little left to wait for.

use std::sync::Mutex;

use crate::lock::lock;
use crate::target::BlockTarget;

/// Bytes that are handed over at once: enough that a disk writes them at its best.
const STEP: u64 = 16 << 20;
/// Runs that are no further apart than this count as one.
const GAP: u64 = 1 << 20;

/// The run of each file that was stored last and not handed over yet.
#[derive(Debug)]
pub(super) struct WriteBehind {
    runs: Vec<Mutex<(u64, u64)>>,
}

impl WriteBehind {
    pub(super) fn new(files: usize) -> Self {
        WriteBehind {
            runs: (0..files).map(|_| Mutex::default()).collect(),
        }
    }

    /// Takes notice that `len` bytes were stored at `host` of a file. Runs that stay short are left to
    /// the system.
    pub(super) fn stored(&self, file: &dyn BlockTarget, index: usize, host: u64, len: usize) {
        let Some(run) = self.runs.get(index) else {
            return;
        };
        let mut run = lock(run);
        let (start, end) = *run;
        let stored = host.saturating_add(len as u64);
        *run = if (start..=end.saturating_add(GAP)).contains(&host) {
            (start, end.max(stored))
        } else {
            (host, stored)
        };
        let (start, end) = *run;
        if end - start >= STEP {
            *run = (end, end);
            file.write_behind(start, end - start);
        }
    }
}
