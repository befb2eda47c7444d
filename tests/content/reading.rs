//! The amount that is read: of our images, and of those by other tools where the collection is at hand.

use std::process::Command;
use std::sync::Arc;

use blockform::content::examine;
use blockform::storage::FileStorage;
use blockform::{BlockSource, Limits, OpenOptions, detect};
use serde_json::Value;

use crate::support::{has_tool, run, shared, testdata};
use crate::{Counting, contents_of};

#[test]
fn little_is_read() {
    for (name, most) in [
        ("bios-efi.iso", 200 << 10),
        ("esp-fat12.img", 100 << 10),
        ("gpt.img", 132 << 10),
        ("mbr-logical.img", 100 << 10),
        ("os-release.ext4", 200 << 10),
    ] {
        let file = FileStorage::open(testdata(&format!("content/{name}"))).unwrap();
        let source = Counting::new(file);
        examine(&source, &Limits::default()).unwrap();
        let (reads, bytes) = source.sums();
        assert!(
            bytes <= most && reads <= 80,
            "{name}: {bytes} bytes in {reads} reads"
        );
    }
}

/// Compares what the collection's own list says of an image, against what is found in it.
fn wrong(entry: &Value, path: &std::path::Path) -> Option<String> {
    let contents = contents_of(path);
    let has = |feature: &str| {
        let mut features = entry["features"].as_array().unwrap().iter();
        features.any(|f| f == feature)
    };
    let kinds: Vec<&str> = contents
        .filesystems
        .iter()
        .map(|f| f.kind.as_str())
        .collect();
    let iso = contents.iso.as_ref();
    let checks = [
        (entry["format"] == "gpt", contents.gpt.is_some(), "a GPT"),
        (entry["format"] == "iso", iso.is_some(), "ISO 9660"),
        (entry["format"] == "udf", contents.udf.is_some(), "UDF"),
        (
            has("udf-bridge"),
            contents.udf.is_some(),
            "UDF beside ISO 9660",
        ),
        (
            has("luks1"),
            kinds.contains(&"luks1") || kinds.contains(&"luks2"),
            "LUKS",
        ),
        (has("luks2"), kinds.contains(&"luks2"), "LUKS 2"),
        (
            has("joliet"),
            iso.is_some_and(|i| i.joliet.is_some()),
            "Joliet",
        ),
        (
            has("rockridge"),
            iso.is_some_and(|i| i.rock_ridge),
            "Rock Ridge",
        ),
        (
            has("el-torito"),
            iso.is_some_and(|i| i.boot.is_some()),
            "El Torito",
        ),
        (has("efi"), !contents.efi.is_empty(), "programs for UEFI"),
        (has("hybrid-mbr"), contents.mbr.is_some(), "an MBR"),
        (
            has("truncated"),
            contents.warnings.iter().any(|w| w.contains("cut short")),
            "a word about what is missing",
        ),
        (has("fat32"), kinds.contains(&"fat32"), "fat32"),
        (has("ntfs"), kinds.contains(&"ntfs"), "ntfs"),
        (has("exfat"), kinds.contains(&"exfat"), "exfat"),
        (has("swap"), kinds.contains(&"swap"), "swap"),
        (has("erofs"), kinds.contains(&"erofs"), "erofs"),
        (has("apfs"), kinds.contains(&"apfs"), "apfs"),
        (has("xfs"), kinds.contains(&"xfs"), "xfs"),
        (has("lvm2-pv"), kinds.contains(&"lvm2"), "lvm2"),
        (has("hfsplus"), kinds.contains(&"hfsplus"), "hfsplus"),
        (has("hfs"), kinds.contains(&"hfs"), "hfs"),
        (has("ext2"), kinds.contains(&"ext2"), "ext2"),
        (has("ext4"), kinds.contains(&"ext4"), "ext4"),
    ];
    let missing = checks
        .into_iter()
        .filter(|(want, found, _)| *want && !found);
    let missing: Vec<&str> = missing.map(|(_, _, what)| what).collect();
    (!missing.is_empty()).then(|| format!("{}: no {}", entry["file"], missing.join(", ")))
}

#[test]
fn disks_by_other_tools_hold_what_they_should() {
    let Some(corpus) = shared("corpus") else {
        return;
    };
    if !has_tool("tar") || !has_tool("xz") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    run(tar
        .arg("-xJSf")
        .arg(corpus.join("images.tar.xz"))
        .arg("-C")
        .arg(folder.path()));
    let manifest = std::fs::read_to_string(corpus.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let (mut problems, mut large) = (Vec::new(), Vec::new());
    let (mut most, mut seen) = ((0, 0), 0);
    for entry in manifest.as_array().unwrap() {
        let path = folder.path().join(entry["file"].as_str().unwrap());
        let is_disk = ["iso", "udf", "gpt", "luks", "raw"]
            .iter()
            .any(|format| entry["format"] == *format);
        let source = Counting::new(FileStorage::open(&path).unwrap());
        if is_disk {
            seen += 1;
            problems.extend(wrong(entry, &path));
            examine(&source, &Limits::default()).unwrap();
        } else {
            // Its tables are read on the way, and whole packed clusters.
            let source: Arc<Counting<FileStorage>> = Arc::new(source);
            if detect(&source).is_ok_and(|found| found.one().is_ok()) {
                let opened = OpenOptions::new().open(Arc::clone(&source) as Arc<dyn BlockSource>);
                let before = source.sums();
                if let Ok(image) = opened {
                    let _ = examine(&image, &Limits::default());
                }
                let (reads, bytes) = source.sums();
                let (reads, bytes) = (reads - before.0, bytes - before.1);
                // A table of a qcow2 image is a cluster, which may have 2 MiB.
                if bytes > 1 << 20 {
                    large.push(entry["file"].to_string());
                } else if bytes > most.1 {
                    most = (reads, bytes);
                }
            }
            continue;
        }
        let (reads, bytes) = source.sums();
        assert!(
            bytes <= 640 << 10,
            "{}: {bytes} bytes in {reads} reads",
            entry["file"]
        );
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(seen > 60);
    assert!(large.iter().all(|file| file.contains("2m")), "{large:?}");
    eprintln!(
        "{seen} disks; of an image at most {} bytes in {} reads",
        most.1, most.0
    );
}
