//! The same input and options give the same bytes, for any number of threads and any memory.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::support::model::{Fill, Model, Way};
use crate::support::{Rng, sha256};
use blockform::BlockTarget;
use blockform::convert::ConvertOptions;
use blockform::storage::Memory;

fn disk() -> Model {
    let size = 12 << 20;
    let mut disk = Model::new(size + 512);
    let mut rng = Rng(42);
    for _ in 0..60 {
        let start = usize::try_from(rng.below(size as u64)).unwrap();
        let len = usize::try_from(rng.below(600_000)).unwrap();
        let fill = Fill::ALL[usize::try_from(rng.below(5)).unwrap()];
        disk.fill(start, len, fill, rng.next());
    }
    disk
}

fn ways() -> Vec<Way> {
    let plain = Way::default();
    [
        plain,
        Way {
            cluster_bits: 12,
            ..plain
        },
        Way {
            extended_l2: true,
            ..plain
        },
        Way {
            compress: true,
            ..plain
        },
        Way {
            compress: true,
            zstd: true,
            cluster_bits: 14,
            ..plain
        },
        Way {
            data_file: true,
            ..plain
        },
        Way {
            preallocation: 1,
            ..plain
        },
        // Runs of zeros longer than a segment, whose cuts must not decide what is a hole.
        Way {
            sparse_size: 1 << 20,
            ..plain
        },
        Way {
            sparse_size: 0,
            ..plain
        },
    ]
    .map(Way::settled)
    .to_vec()
}

#[test]
fn the_number_of_threads_and_the_memory_change_nothing() {
    let disk = disk();
    for way in ways() {
        let write = |threads, memory| {
            let way = Way {
                threads,
                memory,
                ..way
            };
            let files = way.write(&disk).unwrap();
            let digests: Vec<_> = files.iter().map(|f| sha256(&f.to_bytes())).collect();
            digests
        };
        let first = write(1, 64 << 20);
        for (threads, memory) in [
            (1, 64 << 20),
            (2, 64 << 20),
            (4, 64 << 20),
            (16, 64 << 20),
            (4, 1 << 20),
            (3, 300 << 20),
        ] {
            assert_eq!(
                write(threads, memory),
                first,
                "{threads} threads, {memory} bytes: {}",
                way.text()
            );
        }
    }
}

#[test]
fn raw_is_the_disk_for_any_number_of_threads() {
    let disk = disk();
    for threads in [1, 2, 4, 16] {
        let target = Arc::new(Memory::default());
        let options = ConvertOptions::to("raw").threads(NonZeroUsize::new(threads).unwrap());
        let targets = [Arc::clone(&target) as Arc<dyn BlockTarget>];
        options.convert_to_targets(&disk, &targets).unwrap();
        assert!(target.to_bytes() == disk.bytes, "{threads} threads");
    }
}
