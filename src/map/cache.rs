//! Tables that were read, kept up to a number of bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::error::Result;
use crate::lock::lock;

/// The tables used last, by their host offset, bounded in bytes. One table is always kept.
#[derive(Debug)]
pub(crate) struct TableCache {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: HashMap<u64, Cached>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Cached {
    table: Arc<Vec<u8>>,
    used: u64,
}

impl TableCache {
    /// A cache of at most `capacity` bytes.
    pub(crate) fn new(capacity: u64) -> Self {
        TableCache {
            capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
            state: Mutex::default(),
        }
    }

    /// The table at `host`, read by `read` if it is not there. Two threads that miss at once both
    /// read: no thread waits for another's I/O.
    pub(crate) fn table(
        &self,
        host: u64,
        read: impl FnOnce() -> Result<Arc<Vec<u8>>>,
    ) -> Result<Arc<Vec<u8>>> {
        if let Some(table) = self.lookup(host) {
            return Ok(table);
        }
        let table = read()?;
        self.insert(host, Arc::clone(&table));
        Ok(table)
    }

    fn lookup(&self, host: u64) -> Option<Arc<Vec<u8>>> {
        let mut state = lock(&self.state);
        state.clock += 1;
        let now = state.clock;
        let cached = state.tables.get_mut(&host)?;
        cached.used = now;
        Some(Arc::clone(&cached.table))
    }

    fn insert(&self, host: u64, table: Arc<Vec<u8>>) {
        let mut state = lock(&self.state);
        while !state.tables.is_empty() && state.bytes + table.len() > self.capacity {
            let oldest = state
                .tables
                .iter()
                .min_by_key(|(_, c)| c.used)
                .map(|(host, _)| *host);
            let Some(evicted) = oldest.and_then(|host| state.tables.remove(&host)) else {
                break;
            };
            state.bytes -= evicted.table.len();
        }
        state.clock += 1;
        let used = state.clock;
        state.bytes += table.len();
        if let Some(replaced) = state.tables.insert(host, Cached { table, used }) {
            state.bytes -= replaced.table.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_used_longest_ago_goes_first() {
        let cache = TableCache::new(20);
        let reads = std::cell::RefCell::new(Vec::new());
        let get = |host: u64| {
            let read = || {
                reads.borrow_mut().push(host);
                Ok(Arc::new(vec![0; 10]))
            };
            cache.table(host, read).unwrap();
        };
        for host in [1, 2, 1, 3, 1, 2] {
            get(host);
        }
        assert_eq!(*reads.borrow(), [1, 2, 3, 2]);
    }
}
