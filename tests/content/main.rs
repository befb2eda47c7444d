//! The content of disks: against the tools that wrote them, other tools that read them, and damage.

#![cfg(unix)]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests state what they expect"
)]

#[path = "../support/mod.rs"]
mod support;

mod damage;
mod golden;
mod reading;
mod tools;

use std::path::Path;

use blockform::content::{Contents, examine};
use blockform::storage::{FileStorage, Memory};
use blockform::{BlockSource, Limits};

/// The content of a file as a raw disk.
fn contents_of(path: &Path) -> Contents {
    let file = FileStorage::open(path).unwrap();
    examine(&file, &Limits::default()).unwrap()
}

fn contents_in(bytes: &[u8]) -> Contents {
    examine(&Memory::new(bytes), &Limits::default()).unwrap()
}

/// Sums up what a source was asked for.
#[derive(Debug)]
struct Counting<S> {
    inner: S,
    reads: std::sync::atomic::AtomicU64,
    bytes: std::sync::atomic::AtomicU64,
}

impl<S: BlockSource> Counting<S> {
    fn new(inner: S) -> Self {
        Counting {
            inner,
            reads: 0.into(),
            bytes: 0.into(),
        }
    }

    fn sums(&self) -> (u64, u64) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.reads.load(Relaxed), self.bytes.load(Relaxed))
    }
}

impl<S: BlockSource> BlockSource for Counting<S> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> blockform::Result<usize> {
        use std::sync::atomic::Ordering::Relaxed;
        self.reads.fetch_add(1, Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Relaxed);
        self.inner.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> blockform::Result<blockform::Extent> {
        self.inner.extent_at(offset, limit)
    }
}
