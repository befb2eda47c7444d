//! Random disks, written as qcow2 in random ways and read back, against the disk in memory.

use crate::support::model::{Fill, Model, Way, over, reopen};
use crate::support::read_all;
use blockform::{BlockSource, BlockSourceExt};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The same cases in every run; `PROPTEST_CASES` asks for more of them.
fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").map_or(cases, |n| n.parse().unwrap());
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn ways() -> impl Strategy<Value = Way> {
    let shape = (
        any::<bool>(),
        prop_oneof![9_u32..=16, 9_u32..=16, 17_u32..=21],
        0_u32..=6,
        any::<bool>(),
        any::<bool>(),
    );
    let packing = (any::<bool>(), any::<bool>());
    let rest = (
        prop_oneof![Just(0_u32), Just(0), 0_u32..=3],
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0_u64), Just(512), Just(4096), Just(1 << 20)],
        1_usize..=4,
        prop_oneof![Just(1_u64 << 20), Just(64 << 20)],
    );
    (shape, packing, rest).prop_map(|(shape, packing, rest)| {
        let (v2, cluster_bits, refcount_order, extended_l2, lazy_refcounts) = shape;
        let (compress, zstd) = packing;
        let (preallocation, data_file, data_file_raw, sparse_size, threads, memory) = rest;
        Way {
            // One in two is enough of the old version, which has few options.
            v2: v2 && !extended_l2,
            cluster_bits,
            refcount_order,
            extended_l2,
            lazy_refcounts,
            compress,
            zstd,
            preallocation,
            data_file: data_file && lazy_refcounts,
            data_file_raw,
            sparse_size,
            threads,
            memory,
        }
        .settled()
    })
}

fn disks() -> impl Strategy<Value = Model> {
    let sizes = prop_oneof![0_usize..3000, 1_usize..=1200, Just(2400)];
    let fills = (0_usize..5, any::<u32>(), 0_usize..300_000, any::<u64>());
    (sizes, prop::collection::vec(fills, 0..12)).prop_map(|(sectors, fills)| {
        let size = sectors * 512;
        let mut disk = Model::new(size);
        for (fill, start, len, seed) in fills {
            let start = start as usize % (size + 1);
            let (start, len) = if seed % 2 == 0 {
                (start / 4096 * 4096, len.next_multiple_of(4096))
            } else {
                (start, len)
            };
            disk.fill(start, len, Fill::ALL[fill], seed);
        }
        disk
    })
}

/// Asserts that an image reads as the disk, in one piece and in many, and its extents are lawful.
fn same(image: &dyn BlockSource, disk: &[u8], seed: u64) {
    assert_eq!(image.size(), disk.len() as u64);
    assert!(read_all(image).unwrap() == disk, "content");
    let mut at = 0;
    for extent in image.extents() {
        let extent = extent.unwrap();
        assert_eq!(extent.start, at);
        at = extent.end();
        if extent.kind.reads_as_zero() {
            let range = usize::try_from(extent.start).unwrap()..usize::try_from(at).unwrap();
            assert!(disk[range].iter().all(|b| *b == 0), "{extent:?}");
        }
    }
    assert_eq!(at, image.size());
    let mut rng = crate::support::Rng(seed);
    for _ in 0..20 {
        let start = rng.below(image.size() + 1);
        let mut buf = vec![0xee; usize::try_from(rng.below(100_000)).unwrap()];
        let n = image.read_at(&mut buf, start).unwrap();
        let start = usize::try_from(start).unwrap();
        let want = &disk[start..disk.len().min(start + buf.len())];
        assert!(buf[..n] == *want, "content from {start}");
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    runner(150)
        .run(&(disks(), ways(), any::<u64>()), |(disk, way, seed)| {
            let files = way.write(&disk).unwrap();
            let image = reopen(&files, None).unwrap();
            same(&image, &disk.bytes, seed);
            if way.data_file_raw {
                assert!(files[1].to_bytes() == disk.bytes, "the data file alone");
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn an_overlay_and_its_base_are_the_disk() {
    runner(80)
        .run(
            &(disks(), disks(), ways(), any::<u64>()),
            |(mut disk, base, mut way, seed)| {
                way.preallocation = 0;
                way.data_file_raw = false;
                // Much of an overlay is as its base, or there is no point in it.
                let shared = disk.bytes.len().min(base.bytes.len()) / 2;
                if seed % 3 != 0 && shared > 0 {
                    disk.fill(0, shared, Fill::StoredZeroes, 0);
                    disk.bytes[..shared].copy_from_slice(&base.bytes[..shared]);
                }
                let options = over(way.options(), &base.bytes);
                let files = way.write_with(options, &disk).unwrap();
                let image = reopen(&files, Some(&base.bytes)).unwrap();
                same(&image, &disk.bytes, seed);
                Ok(())
            },
        )
        .unwrap();
}

#[test]
fn an_image_of_an_image_is_the_disk() {
    runner(60)
        .run(
            &(disks(), ways(), ways(), any::<u64>()),
            |(disk, first, second, seed)| {
                let one = first.write(&disk).unwrap();
                let image = reopen(&one, None).unwrap();
                let two = second.write(&image).unwrap();
                same(&reopen(&two, None).unwrap(), &disk.bytes, seed);
                Ok(())
            },
        )
        .unwrap();
}
