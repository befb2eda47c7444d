//! Packed units travel from image to image as they are, and other tools read the result.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::{Rng, has_tool, read_all, run, sample_disk};
use blockform::convert::ConvertOptions;
use blockform::digest::Algorithm;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, Error, OpenOptions};

/// A disk with holes, text and noise, some of it in one cluster, of a size that ends in a cluster.
fn disk(size: usize) -> Vec<u8> {
    let mut disk = sample_disk(7, size);
    let mut rng = Rng(3);
    for _ in 0..size / 200_000 {
        let start = usize::try_from(rng.below(size as u64)).unwrap();
        let len = usize::try_from(rng.below(150_000))
            .unwrap()
            .min(size - start);
        match rng.below(3) {
            0 => disk[start..start + len].fill(0),
            1 => {
                let noise = rng.bytes(len);
                disk[start..start + len].copy_from_slice(&noise);
            }
            _ => {
                for (i, byte) in disk[start..start + len].iter_mut().enumerate() {
                    *byte = b'a' + u8::try_from(i % 13).unwrap();
                }
            }
        }
    }
    disk
}

fn qemu_packed(folder: &Path, raw: &Path, name: &str, options: &str) -> std::path::PathBuf {
    let packed = folder.join(name);
    run(Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", options])
        .args([raw, &packed]));
    packed
}

/// Converts with so many threads, in memory.
fn convert(image: &dyn BlockSource, options: &ConvertOptions, threads: usize) -> Vec<u8> {
    let out = Arc::new(Memory::default());
    let threads = NonZeroUsize::new(threads).unwrap();
    let targets = [Arc::clone(&out) as Arc<dyn BlockTarget>];
    let options = options.clone().threads(threads);
    options.convert_to_targets(image, &targets).unwrap();
    read_all(&*out).unwrap()
}

fn check_by_qemu(image: &Path, raw: &Path) {
    let format = image.extension().unwrap().to_str().unwrap();
    if format == "qcow2" {
        run(Command::new("qemu-img")
            .args(["check", "-q", "-f", "qcow2"])
            .arg(image));
    }
    run(Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", format])
        .args([raw, image]));
}

#[test]
fn clusters_of_qcow2_travel_as_they_are() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, disk(9_000_448)).unwrap();
    let mut cases = 0;
    for cluster_size in ["512", "4k", "64k", "2M"] {
        for (method, width) in [("zlib", 16), ("zstd", 16), ("zlib", 1), ("zstd", 64)] {
            let common = format!("cluster_size={cluster_size},compression_type={method}");
            let packed = qemu_packed(folder.path(), &raw, "in.qcow2", &common);
            let image = OpenOptions::new().open_path(&packed).unwrap();
            let options = ConvertOptions::to("qcow2")
                .compress(true)
                .option("cluster_size", cluster_size)
                .option("compression_type", method)
                .option("refcount_bits", width.to_string());
            let one = convert(&image, &options, 1);
            for threads in [2, 4, 16] {
                let other = convert(&image, &options, threads);
                assert!(one == other, "{common}, {threads} threads");
            }
            let out = folder.path().join("out.qcow2");
            std::fs::write(&out, &one).unwrap();
            check_by_qemu(&out, &raw);
            // Nothing was packed anew: the packer's own level would be another size.
            let anew = options.clone().option("compression_level", "9");
            assert_ne!(convert(&image, &anew, 2), one, "{common}");
            let checked = convert(&image, &options.clone().check_packed(true), 2);
            assert!(checked == one, "{common}");
            let digested = options.clone().content_digest(Algorithm::Sha256);
            assert!(convert(&image, &digested, 2) == one, "{common}");
            cases += 1;
        }
    }
    assert_eq!(cases, 16);
}

#[test]
fn clusters_are_wrapped_as_grains_and_grains_as_grains() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, disk(7_000_064)).unwrap();
    let packed = qemu_packed(folder.path(), &raw, "in.qcow2", "cluster_size=64k");
    let options = ConvertOptions::to("vmdk").option("subformat", "streamOptimized");
    let image = OpenOptions::new().open_path(&packed).unwrap();
    let one = convert(&image, &options, 1);
    assert!(one == convert(&image, &options, 4));
    let anew = options.clone().option("compression_level", "9");
    assert_ne!(convert(&image, &anew, 2), one);
    let out = folder.path().join("out.vmdk");
    std::fs::write(&out, &one).unwrap();
    check_by_qemu(&out, &raw);
    if has_tool("7z") {
        let unpacked = folder.path().join("unpacked");
        run(Command::new("7z")
            .arg("x")
            .arg(format!("-o{}", unpacked.display()))
            .arg(&out));
        let file = std::fs::read_dir(&unpacked)
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        assert!(std::fs::read(file.path()).unwrap() == std::fs::read(&raw).unwrap());
    }

    let theirs = folder.path().join("in.vmdk");
    run(Command::new("qemu-img")
        .args([
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
        ])
        .args([&raw, &theirs]));
    for source in [&out, &theirs] {
        let image = OpenOptions::new().open_path(source).unwrap();
        let again = convert(&image, &options, 3);
        let out = folder.path().join("again.vmdk");
        std::fs::write(&out, &again).unwrap();
        check_by_qemu(&out, &raw);
    }
}

#[test]
fn an_image_that_was_written_into_is_packed_where_it_is_not() {
    if !has_tool("qemu-img") || !has_tool("qemu-io") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, disk(8 << 20)).unwrap();
    let packed = qemu_packed(folder.path(), &raw, "in.qcow2", "cluster_size=64k");
    // Text over packed clusters, zeros, a discarded range.
    for command in [
        "write -P 0x61 1M 1500k",
        "write -z 4M 300k",
        "discard 6M 1M",
    ] {
        run(Command::new("qemu-io").args(["-c", command]).arg(&packed));
        run(Command::new("qemu-io")
            .args(["-f", "raw", "-c", &command.replace("discard", "write -z")])
            .arg(&raw));
    }
    let image = OpenOptions::new().open_path(&packed).unwrap();
    let out = convert(&image, &ConvertOptions::to("qcow2").compress(true), 2);
    let path = folder.path().join("out.qcow2");
    std::fs::write(&path, &out).unwrap();
    check_by_qemu(&path, &raw);
    let before = std::fs::metadata(&packed).unwrap().len();
    assert!(
        (out.len() as u64) < before - (1 << 20),
        "{} of {before}",
        out.len()
    );
}

/// A damaged cluster is copied unseen, unless somebody wants it seen.
#[test]
fn damage_is_seen_where_that_is_asked_for() {
    let disk = disk(2 << 20);
    let options = ConvertOptions::to("qcow2").compress(true);
    let mut packed = convert(&Memory::new(disk), &options, 1);
    let image = OpenOptions::new()
        .open(Arc::new(Memory::new(packed.clone())))
        .unwrap();
    let mut units = Vec::new();
    let source = image.packed().expect("it is packed");
    let first = (0..32).map(|i| i << 16).find(|guest| {
        source
            .read_packed(*guest, 1, &mut Vec::new(), &mut units)
            .unwrap()
            > 0
    });
    assert!(first.is_some());
    let host = usize::try_from(units[0].host).unwrap();
    packed[host..host + 64].fill(0xff);
    let image = OpenOptions::new()
        .open(Arc::new(Memory::new(packed)))
        .unwrap();
    convert(&image, &options, 2);
    let out = [Arc::new(Memory::default()) as Arc<dyn BlockTarget>];
    for looks in [
        options.clone().check_packed(true),
        options.content_digest(Algorithm::Md5),
    ] {
        let error = looks.convert_to_targets(&image, &out).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
}
