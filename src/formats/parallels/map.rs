//! The walk through the BAT (section "BAT").

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::map::{BlockMap, Held, Run, TableReader, data_past_end};
use crate::source::BlockSource;

use super::PARALLELS;
use super::header::{Header, RawHeader, SECTOR};

/// The table of an image.
#[derive(Debug)]
pub(super) struct ParallelsMap {
    header: Header,
    file: Arc<dyn BlockSource>,
    /// The BAT, as far as the disk needs it.
    bat: Vec<u32>,
    /// Places of clusters that hold no data, in the unit of the BAT.
    others: Vec<u32>,
    /// The entries whose clusters share bytes with others, in order. Found when the first entry is
    /// read: a description of the image needs none.
    shared: OnceLock<Vec<u32>>,
    reader: TableReader,
}

impl ParallelsMap {
    pub(super) fn new(
        header: Header,
        file: Arc<dyn BlockSource>,
        bat: Vec<u32>,
        others: Vec<u32>,
        reader: TableReader,
    ) -> Self {
        ParallelsMap {
            header,
            file,
            bat,
            others,
            shared: OnceLock::new(),
            reader,
        }
    }

    fn malformed(&self, guest: u64, problem: &str) -> Error {
        let problem = format!("{problem} (guest offset {guest})");
        Error::malformed(PARALLELS, "BAT", None, problem)
    }

    fn entry(&self, index: u64) -> u32 {
        let entry = usize::try_from(index).ok().and_then(|i| self.bat.get(i));
        entry.copied().unwrap_or(0)
    }

    /// An entry whose cluster shares bytes with that of another entry, or with metadata: `entry`, if only
    /// that counts.
    fn shared(&self, entry: u32) -> Option<u32> {
        let shared = self.shared.get_or_init(|| {
            let entries = self.bat.iter().copied();
            let mut used: Vec<u32> = entries.filter(|entry| *entry != 0).collect();
            used.extend(&self.others);
            used.sort_unstable();
            let apart = self.header.tracks / self.header.multiplier;
            let pairs = used.iter().zip(used.iter().skip(1));
            let close = pairs.filter(|(first, second)| second.saturating_sub(**first) < apart);
            close
                .flat_map(|(first, second)| [*first, *second])
                .collect()
        });
        match self.reader.salvages() {
            false => shared.get(1).copied(),
            true => shared.binary_search(&entry).ok().map(|_| entry),
        }
    }

    /// The run at `guest` by its entry, checked.
    fn decode(&self, guest: u64) -> Result<Run> {
        let cluster_size = self.header.cluster_size();
        let index = guest / cluster_size;
        let place = RawHeader::LEN as u64 + index * 4;
        self.reader.check("BAT", place, 4)?;
        let entry = self.entry(index);
        if entry == 0 {
            return Ok(Run::Unallocated);
        }
        if let Some(shared) = self.shared(entry) {
            let problem = format!("entry {shared:#x} has a cluster that is another's, too");
            return Err(self.malformed(guest, &problem));
        }
        let into = guest % cluster_size;
        let start = guest - into;
        let host = u64::from(entry) * u64::from(self.header.multiplier) * SECTOR;
        if host < self.header.data_start {
            let problem = format!("entry {index} is {entry:#x}, before the data area");
            return Err(self.malformed(guest, &problem));
        }
        // Of the disk's last cluster only the disk's part has to be there.
        let needed = cluster_size.min(self.header.size.saturating_sub(start));
        let end = host.saturating_add(needed);
        if end > self.file.size() {
            return Err(self.past_end(start, host, self.file.size()));
        }
        Ok(Run::Stored { host: host + into })
    }
}

impl BlockMap for ParallelsMap {
    fn unit(&self) -> u64 {
        self.header.cluster_size()
    }

    fn step(&self, guest: u64, _: &mut Held) -> Result<(Run, u64)> {
        Ok((self.decode(guest)?, self.unit() - guest % self.unit()))
    }

    fn past_end(&self, guest: u64, host: u64, file_size: u64) -> Error {
        data_past_end(PARALLELS, guest, host, file_size)
    }
}
