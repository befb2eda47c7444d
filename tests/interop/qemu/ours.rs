//! Images that we wrote, judged by QEMU.

use std::path::Path;
use std::process::Command;

use blockform::convert::ConvertOptions;
use blockform::image::Backing;
use blockform::{ImageName, OpenOptions, PathPolicy};
use serde_json::Value;

use super::{converted_by_qemu, has_qemu, qemu};
use crate::support::model::{Fill, Model, Way};
use crate::support::{Rng, sample_disk, sha256, sha256_of, skipped};

/// A disk of 5 MiB and a bit, with everything that a disk can have.
fn disk() -> Model {
    let size = (5 << 20) + 3 * 512;
    let mut disk = Model::new(size);
    let mut rng = Rng(3);
    for n in 0..40 {
        let start = usize::try_from(rng.below(size as u64)).unwrap();
        let len = usize::try_from(rng.below(400_000)).unwrap();
        disk.fill(start, len, Fill::ALL[n % 5], rng.next());
    }
    disk
}

fn ways() -> Vec<Way> {
    let plain = Way::default();
    let mut all = vec![plain];
    for cluster_bits in [9, 12, 14, 21] {
        all.push(Way {
            cluster_bits,
            ..plain
        });
        all.push(Way {
            cluster_bits,
            v2: true,
            ..plain
        });
        all.push(Way {
            cluster_bits,
            compress: true,
            ..plain
        });
        all.push(Way {
            cluster_bits,
            compress: true,
            zstd: true,
            ..plain
        });
    }
    for refcount_order in [0, 1, 2, 3, 5, 6] {
        all.push(Way {
            refcount_order,
            cluster_bits: 12,
            ..plain
        });
        all.push(Way {
            refcount_order,
            cluster_bits: 12,
            compress: true,
            ..plain
        });
    }
    for cluster_bits in [14, 16] {
        let extended = Way {
            cluster_bits,
            extended_l2: true,
            ..plain
        };
        all.push(extended);
        all.push(Way {
            compress: true,
            ..extended
        });
        all.push(Way {
            preallocation: 1,
            ..extended
        });
        all.push(Way {
            data_file: true,
            ..extended
        });
    }
    for preallocation in [1, 2, 3] {
        all.push(Way {
            preallocation,
            ..plain
        });
        all.push(Way {
            preallocation,
            v2: true,
            ..plain
        });
    }
    for sparse_size in [0, 512, 1 << 20] {
        all.push(Way {
            sparse_size,
            ..plain
        });
    }
    all.push(Way {
        lazy_refcounts: true,
        ..plain
    });
    all.push(Way {
        data_file: true,
        ..plain
    });
    all.push(Way {
        data_file: true,
        data_file_raw: true,
        ..plain
    });
    let mut all: Vec<Way> = all.into_iter().map(Way::settled).collect();
    all.dedup();
    all
}

/// `qemu-img check` finds nothing at all: no corruption and no leak.
fn check(folder: &Path, file: &str, about: &str) {
    let mut command = Command::new("qemu-img");
    let output = command
        .args(["check", file])
        .current_dir(folder)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{about}: qemu-img check: {told}");
}

fn info(folder: &Path, file: &str) -> Value {
    let text = qemu(folder, &format!("qemu-img info --output=json {file}"));
    serde_json::from_str(&text).unwrap()
}

/// Asserts what `qemu-img info` says of an image written this way, key by key.
fn described_as(way: &Way, about: &str, info: &Value) {
    assert_eq!(info["format"], "qcow2", "{about}");
    assert_eq!(info["cluster-size"], 1_u64 << way.cluster_bits, "{about}");
    assert_eq!(info["dirty-flag"], false, "{about}");
    let data = &info["format-specific"]["data"];
    assert_eq!(
        data["compat"],
        if way.v2 { "0.10" } else { "1.1" },
        "{about}"
    );
    assert_eq!(data["refcount-bits"], 1 << way.refcount_order, "{about}");
    let codec = if way.zstd { "zstd" } else { "zlib" };
    assert_eq!(data["compression-type"], codec, "{about}");
    if !way.v2 {
        assert_eq!(data["extended-l2"], way.extended_l2, "{about}");
        assert_eq!(data["lazy-refcounts"], way.lazy_refcounts, "{about}");
        assert_eq!(data["corrupt"], false, "{about}");
        assert_eq!(data.get("data-file").is_some(), way.data_file, "{about}");
    }
    if way.data_file {
        assert_eq!(data["data-file"], "data.bin", "{about}");
        assert_eq!(data["data-file-raw"], way.data_file_raw, "{about}");
    }
}

#[test]
fn every_way_to_write_a_disk() {
    if !has_qemu() {
        return;
    }
    let disk = disk();
    for way in ways() {
        let about = format!("{way:?}");
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let path = at.join("image.qcow2");
        let written = way.options().convert_to_path(&disk, &path);
        written.unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
        check(at, "image.qcow2", &about);
        let info = info(at, "image.qcow2");
        assert_eq!(info["virtual-size"], disk.bytes.len() as u64, "{about}");
        described_as(&way, &about, &info);
        let theirs = converted_by_qemu(at, "image.qcow2", "");
        assert_eq!(theirs, sha256(&disk.bytes), "{about}");
        qemu(at, "qemu-img compare -q by-qemu.raw image.qcow2");
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        let image = options.open_path(&path).unwrap();
        assert_eq!(sha256_of(&image).unwrap(), theirs, "{about}");
    }
}

#[test]
fn disks_of_every_size() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for size in [0, 512, 1024, 65_536, 65_536 + 512, (1 << 20) - 512, 1 << 20] {
        for way in [
            Way::default(),
            Way {
                compress: true,
                ..Way::default()
            },
            Way {
                cluster_bits: 9,
                ..Way::default()
            },
        ] {
            let way = way.settled();
            let about = format!("{size} bytes, {}", way.text());
            let mut disk = Model::new(size);
            disk.fill(0, size, Fill::Text, 0);
            way.options()
                .convert_to_path(&disk, at.join("image.qcow2"))
                .unwrap();
            check(at, "image.qcow2", &about);
            let theirs = converted_by_qemu(at, "image.qcow2", "");
            assert_eq!(theirs, sha256(&disk.bytes), "{about}");
        }
    }
}

#[test]
fn a_disk_of_terabytes_is_a_small_file() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let huge = std::fs::File::create(at.join("huge.raw")).unwrap();
    if huge.set_len(4 << 40).is_err() {
        skipped("no file of 4 TiB can be made here");
        return;
    }
    let source = blockform::storage::FileStorage::open_writable(at.join("huge.raw")).unwrap();
    for offset in [0, 1 << 33, (4 << 40) - 512] {
        blockform::BlockTarget::write_all_at(&source, &[7; 512], offset).unwrap();
    }
    for way in [
        Way::default(),
        Way {
            compress: true,
            ..Way::default()
        },
        Way {
            extended_l2: true,
            ..Way::default()
        },
    ] {
        let way = way.settled();
        way.options()
            .convert_to_path(&source, at.join("image.qcow2"))
            .unwrap();
        check(at, "image.qcow2", &way.text());
        assert_eq!(info(at, "image.qcow2")["virtual-size"], 4_u64 << 40);
        let size = std::fs::metadata(at.join("image.qcow2")).unwrap().len();
        assert!(size < 8 << 20, "{size}");
        for offset in ["0", "8G", "4398046510592"] {
            super::qemu_io(at, "image.qcow2", &format!("read -P 7 {offset} 512"));
        }
    }
}

#[test]
fn overlays() {
    if !has_qemu() {
        return;
    }
    let base = sample_disk(21, 3 << 20);
    for size in [2 << 20, 3 << 20, 4 << 20] {
        let mut disk = Model::new(size);
        let shared = size.min(base.len());
        disk.fill(0, shared, Fill::StoredZeroes, 0);
        disk.bytes[..shared].copy_from_slice(&base[..shared]);
        disk.fill(100_000, 50_000, Fill::Noise, 1);
        disk.fill(1 << 20, 300_000, Fill::Zero, 2);
        disk.fill(size - 70_000, 512, Fill::Text, 3);
        let plain = Way::default();
        for way in [
            plain,
            Way {
                compress: true,
                ..plain
            },
            Way {
                extended_l2: true,
                ..plain
            },
            Way { v2: true, ..plain },
        ] {
            let way = way.settled();
            let about = format!("{size} bytes, {}", way.text());
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path();
            std::fs::write(at.join("base.raw"), &base).unwrap();
            let image = OpenOptions::new()
                .format("raw")
                .open_path(at.join("base.raw"));
            let backing = Backing::new(ImageName::from("base.raw"), "raw");
            let options = way.options().overlay(backing, image.unwrap().into());
            options
                .convert_to_path(&disk, at.join("image.qcow2"))
                .unwrap();
            check(at, "image.qcow2", &about);
            let info = info(at, "image.qcow2");
            assert_eq!(info["backing-filename"], "base.raw", "{about}");
            assert_eq!(info["backing-filename-format"], "raw", "{about}");
            let theirs = converted_by_qemu(at, "image.qcow2", "");
            assert_eq!(theirs, sha256(&disk.bytes), "{about}");
            let written = std::fs::metadata(at.join("image.qcow2")).unwrap().len();
            assert!(
                written < size as u64 / 2,
                "{about}: records what is as its base"
            );
        }
    }
}

#[test]
fn raw_disks() {
    if !has_qemu() {
        return;
    }
    let disk = disk();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for preallocation in ["off", "falloc", "full"] {
        let options = ConvertOptions::to("raw").option("preallocation", preallocation);
        options.convert_to_path(&disk, at.join("disk.raw")).unwrap();
        assert!(std::fs::read(at.join("disk.raw")).unwrap() == disk.bytes);
        let image = Way::default();
        image
            .options()
            .convert_to_path(&disk, at.join("image.qcow2"))
            .unwrap();
        qemu(
            at,
            "qemu-img compare -q -f raw -F qcow2 disk.raw image.qcow2",
        );
    }
}

#[test]
fn what_qemu_writes_into_our_image_stays_right() {
    if !has_qemu() {
        return;
    }
    let disk = disk();
    for way in [
        Way::default(),
        Way {
            compress: true,
            ..Way::default()
        },
        Way {
            extended_l2: true,
            ..Way::default()
        },
        Way {
            refcount_order: 0,
            ..Way::default()
        },
    ] {
        let way = way.settled();
        let about = way.text();
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        way.options()
            .convert_to_path(&disk, at.join("image.qcow2"))
            .unwrap();
        for (command, start, len, byte) in [
            ("write -P 0x77 1M 200k", 1 << 20, 200 << 10, 0x77),
            ("write -P 0x78 0 512", 0, 512, 0x78),
            ("write -z 3M 1M", 3 << 20, 1 << 20, 0),
        ] {
            let mut expected = disk.bytes.clone();
            super::qemu_io(at, "image.qcow2", command);
            expected[start..start + len].fill(byte);
            let image = OpenOptions::new()
                .open_path(at.join("image.qcow2"))
                .unwrap();
            let read = crate::support::read_all(&image).unwrap();
            assert!(
                read[start..start + len] == expected[start..start + len],
                "{about}, {command}"
            );
        }
        check(at, "image.qcow2", &about);
        if way.refcount_order > 0 {
            qemu(at, "qemu-img snapshot -c later image.qcow2");
            check(at, "image.qcow2", &about);
        }
    }
}
