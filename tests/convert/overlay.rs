//! Overlays: what is recorded, and what is left to the backing file.

use std::path::Path;
use std::sync::Arc;

use blockform::convert::ConvertOptions;
use blockform::image::Backing;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockSourceExt, Error, Image, ImageName, OpenOptions, PathPolicy};

const SIZE: usize = 1 << 20;

fn read(source: &dyn BlockSource) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(source.size()).unwrap()];
    source.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn open(path: &Path, format: &str) -> Box<dyn Image> {
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    options.format(format).open_path(path).unwrap()
}

/// An overlay at `path` that reads as `source`, over the file `base` opened as `format`.
fn overlay(source: &dyn BlockSource, path: &Path, base: &Path, format: &str) -> u64 {
    let name = base.file_name().unwrap().to_str().unwrap();
    let backing = Backing::new(ImageName::from(name), format);
    let options = ConvertOptions::to("qcow2").overlay(backing, Arc::from(open(base, format)));
    options.convert_to_path(source, path).unwrap().bytes_written
}

/// `base.qcow2`, and `top.qcow2` over it with one cluster of its own and one of zeros.
fn chain(folder: &Path) -> Vec<u8> {
    let mut disk = vec![1; SIZE];
    let base = folder.join("base.qcow2");
    let to_base = ConvertOptions::to("qcow2");
    to_base
        .convert_to_path(&Memory::new(disk.clone()), &base)
        .unwrap();
    disk[..65_536].fill(2);
    disk[131_072..196_608].fill(0);
    let written = overlay(
        &Memory::new(disk.clone()),
        &folder.join("top.qcow2"),
        &base,
        "qcow2",
    );
    assert_eq!(written, 65_536, "only what differs is written");
    disk
}

#[test]
fn over_the_same_base_only_the_upper_layer_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let disk = chain(folder.path());
    let top = open(&folder.path().join("top.qcow2"), "qcow2");
    let copy = folder.path().join("copy.qcow2");
    let written = overlay(&top, &copy, &folder.path().join("base.qcow2"), "qcow2");
    assert_eq!(written, 65_536);
    assert!(read(&open(&copy, "qcow2")) == disk);
}

#[test]
fn a_stream_over_the_same_base_is_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let disk = chain(folder.path());
    let top = open(&folder.path().join("top.qcow2"), "qcow2");
    for format in ["qcow2", "raw"] {
        let base = folder.path().join("base.qcow2");
        let copy = folder.path().join("copy.qcow2");
        overlay(&top, &copy, &base, format);
        let backing = Backing::new(ImageName::from("base.qcow2"), format);
        let options = ConvertOptions::to("qcow2").overlay(backing, Arc::from(open(&base, format)));
        let mut stream = Vec::new();
        options.convert_to_writer(&top, &mut stream).unwrap();
        // What differs from a base is not found out by comparing, but by knowing it in the chain.
        let same = std::fs::read(&copy).unwrap() == stream;
        assert_eq!(same, format == "qcow2");
        std::fs::write(&copy, stream).unwrap();
        assert!(read(&open(&copy, "qcow2")) == disk, "{format}");
    }
}

#[test]
fn the_same_file_in_another_format_is_another_base() {
    let folder = tempfile::tempdir().unwrap();
    let disk = chain(folder.path());
    let top = open(&folder.path().join("top.qcow2"), "qcow2");
    let copy = folder.path().join("copy.qcow2");
    overlay(&top, &copy, &folder.path().join("base.qcow2"), "raw");
    assert!(read(&open(&copy, "qcow2")) == disk);
}

#[test]
fn a_data_file_cannot_be_the_image_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let options = ConvertOptions::to("qcow2").option("data_file", "disk.qcow2");
    let error = options
        .convert_to_path(&Memory::new(vec![1; SIZE]), &path)
        .unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
