//! Parallels' disks of several files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{read_all, sha256, testdata};
use blockform::image::SnapshotSelector;
use blockform::inspect::Report;
use blockform::{BlockSourceExt, Error, Image, OpenOptions, PathPolicy};
use serde_json::Value;

fn entries() -> Vec<Value> {
    let text = fs::read_to_string(testdata("parallels/bundles/manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn allowed() -> OpenOptions {
    OpenOptions::new().references(PathPolicy::SameDirectory)
}

#[test]
fn bundles_read_as_they_were_laid_out() {
    let entries = entries();
    assert!(entries.len() >= 5);
    for entry in entries {
        let file = entry["file"].as_str().unwrap();
        let path = testdata(file);
        let image = allowed().open_path(&path).expect(file);
        assert_eq!(image.format().as_str(), "parallels");
        assert_eq!(Value::from(image.size()), entry["virtual_size"]);
        assert_eq!(
            sha256(&read_all(&image).unwrap()),
            entry["sha256"],
            "{file}"
        );
        extents_agree(image.as_ref());
        for (id, digest) in entry["snapshots"].as_object().unwrap() {
            for selector in [
                SnapshotSelector::Id(id.clone()),
                SnapshotSelector::Any(id.to_uppercase()),
            ] {
                let image = allowed().snapshot(selector).open_path(&path).unwrap();
                assert_eq!(&sha256(&read_all(&image).unwrap()), digest, "{file} {id}");
            }
        }
    }
}

fn extents_agree(image: &dyn Image) {
    let mut at = 0;
    for extent in image.extents() {
        let extent = extent.unwrap();
        assert_eq!(extent.start, at);
        at = extent.end();
        let mut bytes = vec![1; usize::try_from(extent.len).unwrap()];
        image.read_exact_at(&mut bytes, extent.start).unwrap();
        if extent.kind.reads_as_zero() {
            assert!(bytes.iter().all(|byte| *byte == 0), "{extent:?}");
        }
    }
    assert_eq!(at, image.size());
}

#[test]
fn no_file_is_opened_unless_it_is_allowed() {
    for entry in entries() {
        let path = testdata(entry["file"].as_str().unwrap());
        let error = OpenOptions::new().open_path(&path).unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
        let detached = OpenOptions::new().references(PathPolicy::Detach);
        let image = detached.open_path(&path).unwrap();
        assert!(matches!(read_all(&image), Err(Error::Detached { .. })));
        let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
        assert_eq!(Value::from(report.info.virtual_size), entry["virtual_size"]);
        let top = report
            .references
            .iter()
            .map(|r| r.name.as_str().unwrap().to_owned());
        let top: Vec<String> = top.collect();
        let needs = entry["needs"].as_array().unwrap();
        assert!(!top.is_empty());
        assert!(
            top.iter()
                .all(|name| needs.contains(&Value::from(name.as_str())))
        );
    }
}

/// A copy of a bundle whose descriptor was changed.
fn patched(name: &str, from: &str, to: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let original = testdata(&format!("parallels/bundles/{name}"));
    for file in fs::read_dir(original).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("DiskDescriptor.xml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{name} has {from}");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    (folder, path)
}

fn refused(path: &Path) -> Error {
    match allowed().open_path(path) {
        Err(error) => error,
        Ok(image) => read_all(&image).expect_err("has to be refused"),
    }
}

#[test]
fn a_descriptor_that_makes_no_sense_is_refused_by_name() {
    let root = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
    let first = "{00000001-1111-2222-3333-444444444444}";
    let entity = "<!DOCTYPE a [<!ENTITY b \"c\">]><Parallels_disk_image";
    for (name, from, to, part) in [
        (
            "plain.hdd",
            "Version=\"1.0\"",
            "Version=\"2.0\"",
            "version \"2.0\"",
        ),
        (
            "plain.hdd",
            "<Parallels_disk_image",
            entity,
            "document type definition",
        ),
        ("plain.hdd", "</StorageData>", "", "not well-formed XML"),
        ("plain.hdd", "<Padding>0", "<Padding>1", "padding (1)"),
        (
            "plain.hdd",
            "<LogicSectorSize>512",
            "<LogicSectorSize>4096",
            "sectors of 4096",
        ),
        (
            "plain.hdd",
            "<Engine>{00000000",
            "<Engine>{10000000",
            "encryption",
        ),
        (
            "plain.hdd",
            "<Disk_size>40",
            "<Disk_size>41",
            "storages for 20480 bytes",
        ),
        (
            "plain.hdd",
            "<Disk_size>40",
            "<Disk_size>-1",
            "which is a number",
        ),
        (
            "plain.hdd",
            "<Disk_size>40",
            "<Disk_size>99999999999999999999",
            "which is a number",
        ),
        (
            "plain.hdd",
            "<Disk_size>40",
            "<Disk_size>36028797018963968",
            "past any disk",
        ),
        ("plain.hdd", "<End>40", "<End>0", "where one from byte 0"),
        ("plain.hdd", "<Type>Plain", "<Type>Other", "type \"Other\""),
        (
            "plain.hdd",
            "<Type>Plain",
            "<Type>Compressed",
            "not one of Parallels'",
        ),
        ("plain.hdd", "<File>p.hds", "<File>", "has no name"),
        (
            "plain.hdd",
            "<File>p.hds",
            "<File>DiskDescriptor.xml",
            "leads back",
        ),
        ("plain.hdd", "<File>p.hds", "<File>../p.hds", "not allowed"),
        ("plain.hdd", "<File>p.hds", "<File>q.hds", "q.hds"),
        (
            "split.hdd",
            "<Start>24",
            "<Start>23",
            "where one from byte 12288",
        ),
        (
            "split.hdd",
            "<File>s.1.hds",
            "<File>s.0.hds",
            "the file of two images",
        ),
        (
            "split.hdd",
            "<Blocksize>8",
            "<Blocksize>16",
            "clusters of 4096 bytes",
        ),
        (
            "expanding.hdd",
            "<Type>Compressed",
            "<Type>Plain",
            "bytes of its part",
        ),
        ("snapshots.hdd", first, root, "exactly one image"),
        (
            "top.hdd",
            "<TopGUID>{00000003",
            "<TopGUID>{00000009",
            "exactly one snapshot",
        ),
        (
            "top.hdd",
            "<TopGUID>{00000003",
            "<TopGUID>{0000003",
            "for a GUID",
        ),
    ] {
        let (_folder, path) = patched(name, from, to);
        let error = refused(&path).chain();
        assert!(error.contains(part), "{name}, {from} -> {to}: {error}");
    }
}

#[test]
fn a_state_that_is_its_own_parent_ends() {
    let none = "<ParentGUID>{00000000-0000-0000-0000-000000000000}";
    let root = "<ParentGUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}";
    for name in ["plain.hdd", "snapshots.hdd"] {
        let (_folder, path) = patched(name, none, root);
        let error = refused(&path).chain();
        assert!(error.contains("among its own parents"), "{error}");
    }
}

#[test]
fn one_file_is_not_two_images() {
    let (_folder, path) = patched(
        "snapshots.hdd",
        "<File>d.0.{00000002-",
        "<File>d.0.{00000001-",
    );
    let error = refused(&path).chain();
    assert!(error.contains("the file of two images"), "{error}");
}

#[test]
fn a_plain_image_has_nothing_below_it() {
    let from = "<GUID>{00000002-1111-2222-3333-444444444444}</GUID><Type>Compressed";
    let to = "<GUID>{00000002-1111-2222-3333-444444444444}</GUID><Type>Plain";
    let (_folder, path) = patched("snapshots.hdd", from, to);
    let error = refused(&path).chain();
    assert!(error.contains("plain image over another"), "{error}");
}

/// Entities that grow, depth without end, and more nodes than anybody writes.
#[test]
fn xml_that_is_made_to_harm_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("DiskDescriptor.xml");
    let bomb = "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]>\
                <Parallels_disk_image>&b;</Parallels_disk_image>";
    let deep = format!("<Parallels_disk_image>{}", "<a>".repeat(300_000));
    let wide = format!(
        "<Parallels_disk_image>{}</Parallels_disk_image>",
        "<a/>".repeat(200_000)
    );
    let long = format!(
        "<Parallels_disk_image>{}</Parallels_disk_image>",
        " ".repeat(4 << 20)
    );
    for (text, part) in [
        (bomb.to_owned(), "document type definition"),
        (deep, "within each other"),
        (wide, "more than 100000 elements"),
        (long, "limit descriptor_bytes"),
    ] {
        fs::write(&path, text).unwrap();
        let error = refused(&path);
        let expected = matches!(error, Error::Malformed { .. } | Error::LimitExceeded { .. });
        assert!(expected, "{error}");
        assert!(error.chain().contains(part), "{error}");
    }
}

#[test]
fn a_state_that_is_not_there_is_an_error() {
    let path = testdata("parallels/bundles/snapshots.hdd/DiskDescriptor.xml");
    for selector in [
        SnapshotSelector::Id("{00000009-1111-2222-3333-444444444444}".into()),
        SnapshotSelector::Any("1".into()),
        SnapshotSelector::Name("{00000001-1111-2222-3333-444444444444}".into()),
    ] {
        let error = allowed().snapshot(selector).open_path(&path).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
}
