//! Tables that contradict themselves: refused, wherever they are read.

use std::sync::Arc;

use crate::support::testdata;
use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockSourceExt, Error, OpenOptions, PathPolicy, PathResolver};

const CLUSTER: u64 = 65_536;
const COPIED: u64 = 1 << 63;

/// A qcow2 image of four clusters of data, and where its tables are.
struct Sample {
    bytes: Vec<u8>,
    l1: u64,
    l2: u64,
    refcount_block: u64,
}

impl Sample {
    fn new() -> Self {
        let disk = Memory::new(vec![7; 4 * 65_536]);
        let target = Arc::new(Memory::default());
        let options = ConvertOptions::to("qcow2");
        options
            .convert_to_targets(&disk, &[Arc::clone(&target) as Arc<_>])
            .unwrap();
        let mut sample = Sample {
            bytes: target.to_bytes(),
            l1: 0,
            l2: 0,
            refcount_block: 0,
        };
        sample.l1 = sample.number(40);
        sample.l2 = sample.number(sample.l1) & !COPIED;
        sample.refcount_block = sample.number(sample.number(48));
        sample
    }

    fn number(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(*self.bytes[at..].first_chunk().unwrap())
    }

    fn set(&mut self, at: u64, value: u64) {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn read(self) -> Result<(), Error> {
        let image = OpenOptions::new().open(Arc::new(Memory::new(self.bytes)))?;
        image.read_exact_at(&mut vec![0; usize::try_from(image.size()).unwrap()], 0)
    }
}

fn refused(sample: Sample, why: &str) {
    let error = sample.read().unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn the_sample_is_sound() {
    Sample::new().read().unwrap();
}

#[test]
fn a_cluster_is_not_two_entries_own() {
    let mut sample = Sample::new();
    sample.set(sample.l2 + 8, sample.number(sample.l2));
    refused(sample, "is its own, and another one has it");
}

#[test]
fn what_is_one_entrys_own_no_other_has() {
    // Before the owner, and behind it.
    for (entry, other) in [(0, 1), (1, 0)] {
        let mut sample = Sample::new();
        let own = sample.number(sample.l2 + 8 * entry);
        sample.set(sample.l2 + 8 * other, own & !COPIED);
        refused(sample, "is its own, and another one has it");
    }
}

#[test]
fn what_is_salvaged_leaves_a_cluster_to_its_owner() {
    let mut sample = Sample::new();
    let own = sample.number(sample.l2);
    sample.set(sample.l2 + 8, own & !COPIED);
    let source = Arc::new(Memory::new(sample.bytes));
    let image = OpenOptions::new().salvage(true).open(source).unwrap();
    let mut cluster = vec![0; 65_536];
    image.read_exact_at(&mut cluster, 0).unwrap();
    let error = image.read_exact_at(&mut cluster, CLUSTER).unwrap_err();
    assert!(error.to_string().contains("so has another one"), "{error}");
}

#[test]
fn clusters_that_are_shared_knowingly_may_be() {
    let mut sample = Sample::new();
    let shared = sample.number(sample.l2) & !COPIED;
    sample.set(sample.l2, shared);
    sample.set(sample.l2 + 8, shared);
    sample.read().unwrap();
}

#[test]
fn a_few_clusters_are_no_disk_of_any_size() {
    // No flag says that the cluster is an entry's own, and the file is eight clusters long.
    let mut sample = Sample::new();
    let shared = sample.number(sample.l2) & !COPIED;
    for index in 0..64 {
        sample.set(sample.l2 + 8 * index, shared);
    }
    refused(sample, "than the file has room for");
    // Two parts of the disk with one table.
    let mut sample = Sample::new();
    sample.set(24, 2 * 8192 * CLUSTER);
    sample.bytes[36..40].copy_from_slice(&2_u32.to_be_bytes());
    sample.set(sample.l1 + 8, sample.number(sample.l1));
    let image = OpenOptions::new()
        .open(Arc::new(Memory::new(sample.bytes)))
        .unwrap();
    let error = image.read_exact_at(&mut [0; 512], 0).unwrap_err();
    assert!(
        error.to_string().contains("two entries have the L2 table"),
        "{error}"
    );
}

#[test]
#[cfg(feature = "zlib")]
fn a_packed_cluster_is_one_entrys() {
    let disk = Memory::new(b"some text".repeat(2 * 65_536 / 9 + 1)[..2 * 65_536].to_vec());
    let target = Arc::new(Memory::default());
    ConvertOptions::to("qcow2")
        .compress(true)
        .convert_to_targets(&disk, &[Arc::clone(&target) as Arc<_>])
        .unwrap();
    let mut sample = Sample {
        bytes: target.to_bytes(),
        ..Sample::new()
    };
    sample.l1 = sample.number(40);
    sample.l2 = sample.number(sample.l1) & !COPIED;
    sample.set(sample.l2 + 8, sample.number(sample.l2));
    refused(sample, "two entries have the packed cluster");
}

#[test]
#[cfg(feature = "zlib")]
fn packed_data_is_in_no_other_cluster() {
    let path = testdata("qcow2/good/zlib-mixed.qcow2");
    let mut sample = Sample {
        bytes: std::fs::read(path).unwrap(),
        ..Sample::new()
    };
    sample.l1 = sample.number(40);
    sample.l2 = sample.number(sample.l1) & !COPIED;
    let cluster = 1 << sample.bytes[23];
    let entries = (0..cluster / 8).map(|index| sample.l2 + 8 * index);
    let (packed, others): (Vec<u64>, Vec<u64>) =
        entries.partition(|at| sample.number(*at) & (1 << 62) != 0);
    let host = sample.number(packed[0]) & ((1 << 54) - 1);
    for flag in [0, COPIED] {
        let mut damaged = Sample {
            bytes: sample.bytes.clone(),
            ..Sample::new()
        };
        damaged.set(others[0], (host / cluster * cluster) | flag);
        refused(damaged, "packed data in it");
    }
}

#[test]
fn a_data_file_has_each_cluster_where_the_guest_has_it() {
    let path = testdata("qcow2/good/data-file.qcow2");
    let open = |bytes: Vec<u8>| {
        let resolver = PathResolver::new(&path, PathPolicy::SameDirectory).unwrap();
        let options = OpenOptions::new().resolver(Arc::new(resolver));
        options.open(Arc::new(Memory::new(bytes))).unwrap()
    };
    let mut sample = Sample {
        bytes: std::fs::read(&path).unwrap(),
        ..Sample::new()
    };
    sample.l1 = sample.number(40);
    sample.l2 = sample.number(sample.l1) & !COPIED;
    let mut disk = vec![0; 65_536];
    open(sample.bytes.clone())
        .read_exact_at(&mut disk, 0)
        .unwrap();
    let entry = sample.number(sample.l2 + 8);
    sample.set(sample.l2 + 8, entry ^ (1 << 14));
    let error = open(sample.bytes).read_exact_at(&mut disk, 0).unwrap_err();
    assert!(
        error.to_string().contains("not where the guest has it"),
        "{error}"
    );
}

#[test]
fn no_table_is_data() {
    let sample = Sample::new();
    for (table, name) in [
        (sample.l1, "L1 table"),
        (sample.l2, "L2 table"),
        (sample.refcount_block, "refcount block"),
        (sample.number(48), "refcount table"),
    ] {
        let mut sample = Sample::new();
        sample.set(sample.l2, table | COPIED);
        refused(sample, name);
        let mut packed = Sample::new();
        packed.set(packed.l2, table | 1 << 62);
        refused(packed, name);
    }
}

#[test]
fn what_snapshots_and_bitmaps_have_is_no_data() {
    for (file, name) in [
        ("snapshots", "snapshot table"),
        ("snapshots", "L1 table of a snapshot"),
        ("bitmaps", "bitmap directory"),
        ("bitmaps", "bitmap table"),
    ] {
        let mut sample = Sample {
            bytes: std::fs::read(testdata(&format!("qcow2/good/{file}.qcow2"))).unwrap(),
            ..Sample::new()
        };
        sample.l1 = sample.number(40);
        sample.l2 = sample.number(sample.l1) & !COPIED;
        let extension = sample
            .bytes
            .windows(4)
            .position(|w| w == [0x23, 0x85, 0x28, 0x75]);
        let directory = extension.map(|at| sample.number(at as u64 + 8 + 16));
        let at = match name {
            "snapshot table" => sample.number(64),
            "L1 table of a snapshot" => sample.number(sample.number(64)),
            "bitmap directory" => directory.unwrap(),
            _ => sample.number(directory.unwrap()),
        };
        for flag in [0, COPIED, 1 << 62] {
            let mut damaged = Sample {
                bytes: sample.bytes.clone(),
                ..Sample::new()
            };
            damaged.set(sample.l2, at | flag);
            refused(damaged, name);
        }
    }
}

#[test]
fn an_l2_table_is_no_other_table() {
    for name in ["header", "refcount table", "refcount block"] {
        let mut sample = Sample::new();
        let at = match name {
            "header" => 512,
            "refcount table" => sample.number(48),
            _ => sample.refcount_block,
        };
        sample.set(sample.l1, at | COPIED);
        let why = if name == "header" {
            "not at the start of a cluster"
        } else {
            name
        };
        refused(sample, why);
    }
}

#[test]
fn reserved_bits_are_not_overlooked() {
    for bit in [1, 8, 56, 61] {
        let mut sample = Sample::new();
        sample.set(sample.l2, sample.number(sample.l2) | 1 << bit);
        refused(sample, "reserved bits");
    }
    for bit in [0, 8, 56, 62] {
        let mut sample = Sample::new();
        sample.set(sample.l1, sample.number(sample.l1) | 1 << bit);
        refused(sample, "reserved bits");
    }
}

#[test]
fn nothing_is_no_entrys_own() {
    let mut sample = Sample::new();
    sample.set(sample.l2 + 8, COPIED);
    refused(sample, "has a cluster of its own, and none");
    let mut sample = Sample::new();
    sample.set(sample.l1, COPIED);
    refused(sample, "has a table of its own, and none");
}

#[test]
fn a_file_that_was_cut_short_has_no_zeros_in_it() {
    let mut sample = Sample::new();
    let last = sample.number(sample.l2 + 24) & !COPIED;
    sample.bytes.truncate(usize::try_from(last).unwrap());
    refused(sample, "past the end of the file");
    let mut sample = Sample::new();
    let size = sample.bytes.len() as u64;
    sample.set(sample.l2, (size + CLUSTER) | COPIED);
    refused(sample, "past the end of the file");
}
