//! Images that other people's tools wrote, where the collection is at hand.

use std::path::Path;
use std::process::Command;

use crate::support::{has_tool, run, sha256_of, shared};
use blockform::inspect::Report;
use blockform::{BlockSource, OpenOptions, PathPolicy};
use serde_json::Value;

/// Disks larger than this are described and not read through: hashing their zeros takes minutes.
const LARGE: u64 = 256 << 20;

/// The problem with our reading of an entry, if there is one. Where nobody knows what a guest would see, the image
/// has to be described, and no more.
fn wrong(folder: &Path, entry: &Value) -> Option<String> {
    let mut options = OpenOptions::new();
    if entry["format"] == "raw" {
        options = options.format("raw");
    }
    if !entry["needs"].as_array().unwrap().is_empty() {
        options = options.references(PathPolicy::SameDirectory);
    }
    let path = folder.join(entry["file"].as_str().unwrap());
    let large = entry["virtual_size"]
        .as_u64()
        .is_some_and(|size| size > LARGE);
    let unknown = entry["guest_sha256"].is_null() || entry["expect"] == "identify";
    if entry["expect"] != "refuse" && (large || unknown) {
        let report = match Report::of_path(&path, &options) {
            Ok(report) => report,
            Err(error) => return Some(error.chain()),
        };
        let mut told = report.matches.iter().map(|(id, _)| id.as_str());
        let format = entry["format"].as_str().unwrap();
        if entry["expect"] == "identify" {
            // Where nothing is read, readers do not agree on the size either.
            let named = report.format.as_str() == format || told.any(|id| id == format);
            return (!named).then(|| format!("is no {format}"));
        }
        let (ours, size) = (report.info.virtual_size, entry["virtual_size"].as_u64());
        return size
            .filter(|size| *size != ours)
            .map(|size| format!("{ours} bytes, not {size}"));
    }
    let opened = options.open_path(path);
    let read = entry["expect"] == "read";
    let image = match opened {
        Ok(image) => image,
        Err(error) => return read.then(|| error.chain()),
    };
    if entry["expect"] == "refuse" {
        let all = sha256_of(&image);
        return all.is_ok().then(|| "was not refused".to_owned());
    }
    let size = entry["virtual_size"].as_u64();
    if size.is_some_and(|size| size != image.size()) {
        return Some(format!("{} bytes, not {size:?}", image.size()));
    }
    let digest = entry["guest_sha256"].as_str()?;
    match sha256_of(&image) {
        Ok(ours) if ours == digest => None,
        Ok(ours) => Some(format!("{ours}, not {digest}")),
        Err(error) => Some(error.chain()),
    }
}

/// The formats that are read, and those that are only told by name.
const KNOWN: [&str; 15] = [
    "raw",
    "qcow2",
    "vmdk",
    "vhd",
    "vhdx",
    "vdi",
    "qcow",
    "qed",
    "parallels",
    "dmg",
    "bochs",
    "cloop",
    "ewf",
    "luks",
    "ova",
];

#[test]
fn images_by_other_tools_read_as_they_should() {
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
    let entries = manifest.as_array().unwrap().iter();
    let ours = entries.filter(|e| KNOWN.iter().any(|format| e["format"] == *format));
    let ours: Vec<&Value> = ours.collect();
    assert!(ours.len() > 20);
    let wrong: Vec<String> = ours
        .iter()
        .filter_map(|e| Some(format!("{}: {}", e["file"], wrong(folder.path(), e)?)))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        ours.len(),
        wrong.join("\n")
    );
    eprintln!("{} images are right", ours.len());
}
