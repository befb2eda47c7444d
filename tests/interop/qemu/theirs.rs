//! Images that QEMU made, read by us.

use std::path::Path;

use blockform::image::SnapshotSelector;
use blockform::{BlockSource, OpenOptions, PathPolicy};

use super::{converted_by_qemu, has_qemu, qemu, qemu_io};
use crate::support::{map_of, map_of_qemu, sample_disk, sha256_of};

/// Writes, zeros and holes that respect no cluster size, for a disk of 6 MiB.
const OPERATIONS: [&str; 9] = [
    "write -P 0x11 0 100k",
    "write -P 0x22 123k 1500",
    "write -z 20k 40k",
    "write -P 0x33 1M 700k",
    "write -z -u 1200k 64k",
    "discard 1400k 128k",
    "write -P 0x44 4M 512",
    "write -P 0x55 6143k 1k",
    "write -z 4M 4k",
];

fn same_as_qemu_says(folder: &Path, file: &str, about: &str) {
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    let image = options.open_path(folder.join(file));
    let image = image.unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
    let ours = sha256_of(&image).unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
    assert_eq!(ours, converted_by_qemu(folder, file, ""), "{about}");
    // qemu-img looks for holes in the file, too: only what is not a zero to it is comparable.
    let map = qemu(folder, &format!("qemu-img map --output=json {file}"));
    let theirs = map_of_qemu(&serde_json::from_str(&map).unwrap());
    let ours = map_of(image.as_ref());
    for run in theirs.iter().filter(|r| !r.kind.reads_as_zero()) {
        let covered = ours.iter().any(|own| {
            own.kind == run.kind
                && own.depth == run.depth
                && own.start <= run.start
                && own.start + own.len >= run.start + run.len
                && own.host.map(|h| h + run.start - own.start) == run.host
        });
        assert!(covered, "{about}: {run:?} is in none of {ours:?}");
    }
}

fn matrix() -> Vec<String> {
    let mut all = Vec::new();
    for bits in [9, 12, 16, 21] {
        all.push(format!("cluster_size={}", 1 << bits));
        all.push(format!("cluster_size={},compat=0.10", 1 << bits));
    }
    for bits in [1, 2, 4, 8, 32, 64] {
        all.push(format!("refcount_bits={bits}"));
    }
    for bits in [14, 16, 21] {
        all.push(format!("extended_l2=on,cluster_size={}", 1 << bits));
    }
    all.push("lazy_refcounts=on".into());
    for how in ["metadata", "falloc", "full"] {
        all.push(format!("preallocation={how}"));
        all.push(format!("preallocation={how},extended_l2=on"));
    }
    all.push("data_file=data.bin".into());
    all.push("data_file=data.bin,data_file_raw=on".into());
    all.push("data_file=data.bin,extended_l2=on".into());
    all
}

#[test]
fn every_layout() {
    if !has_qemu() {
        return;
    }
    for options in matrix() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        qemu(
            at,
            &format!("qemu-img create -q -f qcow2 -o {options} image.qcow2 6M"),
        );
        for operation in OPERATIONS {
            qemu_io(at, "image.qcow2", operation);
        }
        same_as_qemu_says(at, "image.qcow2", &options);
    }
}

#[test]
fn every_packing() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("disk.raw"), sample_disk(11, 5 << 20)).unwrap();
    for codec in ["zlib", "zstd"] {
        if !crate::support::can_unpack(codec) {
            continue;
        }
        for bits in [9, 12, 16, 21] {
            for extended in ["off", "on"] {
                if extended == "on" && bits < 14 {
                    continue;
                }
                let options = format!(
                    "compression_type={codec},cluster_size={},extended_l2={extended}",
                    1 << bits
                );
                qemu(
                    at,
                    &format!(
                        "qemu-img convert -f raw -O qcow2 -c -o {options} disk.raw image.qcow2"
                    ),
                );
                same_as_qemu_says(at, "image.qcow2", &options);
                // Clusters that are not packed between ones that are.
                qemu_io(at, "image.qcow2", "write -P 0x66 300k 200k");
                same_as_qemu_says(at, "image.qcow2", &options);
            }
        }
    }
}

#[test]
fn every_chain() {
    if !has_qemu() {
        return;
    }
    for (base, top) in [("4M", "6M"), ("6M", "6M"), ("7M", "6M")] {
        for options in [
            "cluster_size=64k",
            "cluster_size=4k",
            "extended_l2=on",
            "compat=0.10",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path();
            let about = format!("{top} over {base}, {options}");
            qemu(
                at,
                &format!("qemu-img create -q -f qcow2 -o cluster_size=16k base.qcow2 {base}"),
            );
            qemu_io(at, "base.qcow2", "write -P 0xaa 0 3M");
            qemu_io(at, "base.qcow2", "write -P 0xbb 3500k 64k");
            qemu(
                at,
                "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2 5M",
            );
            qemu_io(at, "middle.qcow2", "write -P 0xcc 900k 300k");
            qemu(
                at,
                &format!(
                    "qemu-img create -q -f qcow2 -o {options} -b middle.qcow2 -F qcow2 image.qcow2 {top}"
                ),
            );
            for operation in OPERATIONS {
                qemu_io(at, "image.qcow2", operation);
            }
            same_as_qemu_says(at, "image.qcow2", &about);
        }
    }
}

#[test]
fn snapshots() {
    if !has_qemu() {
        return;
    }
    for options in ["cluster_size=64k", "compat=0.10", "extended_l2=on"] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        qemu(
            at,
            &format!("qemu-img create -q -f qcow2 -o {options} image.qcow2 6M"),
        );
        for (number, operation) in OPERATIONS.into_iter().enumerate() {
            qemu_io(at, "image.qcow2", operation);
            qemu(at, &format!("qemu-img snapshot -c s{number} image.qcow2"));
        }
        for number in 0..OPERATIONS.len() {
            let name = format!("s{number}");
            let selector = SnapshotSelector::Name(name.clone());
            let image = OpenOptions::new().snapshot(selector);
            let image = image.open_path(at.join("image.qcow2")).unwrap();
            assert_eq!(image.size(), 6 << 20);
            let theirs = converted_by_qemu(at, "image.qcow2", &format!("-l snapshot.name={name}"));
            assert_eq!(sha256_of(&image).unwrap(), theirs, "{options}, {name}");
        }
    }
}
