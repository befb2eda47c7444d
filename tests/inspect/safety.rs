//! The named checks of an image's safety, also against oslo.utils where it is installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::{files_below, root, skipped, testdata, unpacked};
use blockform::image::Outcome;
use blockform::inspect::Safety;
use blockform::storage::Memory;
use blockform::{OpenOptions, detect};
use serde_json::Value;

fn failed(bytes: &[u8]) -> Vec<&'static str> {
    let safety = Safety::of_source(Arc::new(Memory::new(bytes)), &OpenOptions::new()).unwrap();
    assert_eq!(safety.checks().len(), 11, "every check is told of");
    safety.failures().map(|check| check.name).collect()
}

#[test]
fn what_is_refused_is_refused_by_name() {
    let good = std::fs::read(testdata("qcow2/good/plain.qcow2")).unwrap();
    assert_eq!(failed(&good), [""; 0]);
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        failed(&image)
    };
    assert_eq!(with(4, &[0, 0, 0, 9]), ["version"]);
    assert_eq!(with(72, &[0x80]), ["unknown_features"]);
    assert_eq!(with(79, &[0x04]), ["data_file", "structure"]);
    // The backing file is named although the image does not open.
    let mut image = good.clone();
    image[14..16].copy_from_slice(&[0x10, 0]);
    image[16..20].copy_from_slice(&[0, 0, 0, 5]);
    image[0x1000..0x1005].copy_from_slice(b"/etc\x1b");
    image[4..8].copy_from_slice(&[0, 0, 0, 9]);
    assert_eq!(failed(&image), ["version", "backing_file"]);
    let safety = Safety::of_source(Arc::new(Memory::new(image)), &OpenOptions::new()).unwrap();
    assert!(
        safety.to_string().contains(r#"backing file "/etc\u{1b}""#),
        "{safety}"
    );
    let raw = failed(&[0; 4096]);
    assert_eq!(raw, [""; 0], "a raw disk");
    let mut both = good;
    both[32_769..32_774].copy_from_slice(b"CD001");
    assert_eq!(failed(&both), ["format"]);
    assert_eq!(failed(b"Bochs Virtual HD Image"), ["banned"]);
}

#[test]
fn a_gpt_has_its_protective_record_first_and_alone() {
    let disk = |records: &[[u8; 16]]| {
        let mut disk = vec![0; 4096];
        disk[510..512].copy_from_slice(b"\x55\xaa");
        for (i, record) in records.iter().enumerate() {
            disk[446 + 16 * i..462 + 16 * i].copy_from_slice(record);
        }
        failed(&disk)
    };
    let protective = [0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 7, 0, 0, 0];
    let linux = [0x80, 0, 2, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0];
    assert_eq!(disk(&[protective]), [""; 0]);
    assert_eq!(disk(&[linux]), [""; 0]);
    assert_eq!(disk(&[protective, linux]), ["mbr"]);
    assert_eq!(disk(&[]), ["mbr"]);
    let mut shifted = protective;
    shifted[8] = 2;
    assert_eq!(disk(&[shifted]), ["mbr"]);
}

#[test]
fn a_disk_in_several_files_is_not_safe_and_one_in_one_is() {
    let read = |file: &str| std::fs::read(testdata(file)).unwrap();
    assert_eq!(failed(&read("vmdk/good/monolithicSparse.vmdk")), [""; 0]);
    assert_eq!(failed(&read("vmdk/good/child.vmdk")), ["backing_file"]);
    assert_eq!(
        failed(&read("vmdk/good/monolithicFlat.vmdk")),
        ["descriptor"]
    );
    assert_eq!(failed(&read("vhd/good/grandchild.vhd")), ["backing_file"]);
    assert_eq!(failed(&read("vdi/good/differencing.vdi")), ["backing_file"]);
    let mut luks = vec![0; 4096];
    luks[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    assert_eq!(failed(&luks), [""; 0]);
    luks[7] = 3;
    assert_eq!(failed(&luks), ["version"]);
}

/// The verdicts of oslo.utils; nothing where it, or Python, is not installed.
fn oslo(files: &[PathBuf]) -> Option<Vec<Value>> {
    let python = std::env::var("OSLO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = "import oslo_utils.imageutils.format_inspector";
    let has_oslo = Command::new(&python).args(["-c", import]).output();
    if !has_oslo.is_ok_and(|output| output.status.success()) {
        skipped("oslo.utils is not installed (OSLO_PYTHON names a Python that has it)");
        return None;
    }
    let told = crate::support::run(
        Command::new(python)
            .arg(root().join("tests/oslo/verdicts.py"))
            .args(files),
    );
    Some(
        told.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Formats that oslo.utils knows, under our names. What it has no name for it calls raw.
const KNOWN: [&str; 7] = ["qcow2", "qcow", "vhd", "vhdx", "vmdk", "vdi", "qed"];

/// Images that oslo.utils refuses without a reason: extended L2 entries, LUKS 2, discs that are hybrids,
/// bytes after the end of a streamOptimized disk, and a fixed VHD whose guest has a partition table.
const WRONGLY_REFUSED: [&str; 7] = [
    "qcow2/",
    "qemu-img/extl2.qcow2",
    "fixed-with-mbr.vhd",
    "stream-trailing",
    "cryptsetup/",
    ".iso",
    "luks2-hdr",
];

/// The heading of a difference.
fn heading(ours: &Safety, theirs: &Value) -> String {
    let ours: Vec<&str> = ours.failures().map(|check| check.name).collect();
    let theirs: Vec<&str> = theirs["failed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let list = |names: &[&str]| match names {
        [] => "safe".to_owned(),
        names => names.join(", "),
    };
    format!("| {} | {} |", list(&theirs), list(&ours))
}

#[test]
fn verdicts_differ_from_oslos_only_where_it_is_known() {
    let mut folders: Vec<(String, PathBuf)> = vec![("testdata".into(), root().join("testdata"))];
    let unpacked: Vec<_> = ["corpus", "hostile"]
        .iter()
        .filter_map(|c| unpacked(c))
        .collect();
    for (name, folder) in ["corpus", "hostile"].iter().zip(&unpacked) {
        folders.push(((*name).to_owned(), folder.path().to_owned()));
    }
    let mut differences: Vec<String> = Vec::new();
    let mut unknown: Vec<String> = Vec::new();
    let mut agreed = 0;
    for (collection, folder) in folders {
        let files: Vec<PathBuf> = files_below(&folder)
            .into_iter()
            .filter(|path| is_known(path))
            .collect();
        let Some(theirs) = oslo(&files) else {
            return;
        };
        for (path, theirs) in files.iter().zip(&theirs) {
            let ours = Safety::of_path(path, &OpenOptions::new()).unwrap();
            assert!(
                ours.checks()
                    .iter()
                    .all(|c| c.outcome != Outcome::Failed(String::new())),
                "a failure has a reason"
            );
            let theirs_safe = theirs["failed"].as_array().unwrap().is_empty();
            if theirs_safe == ours.is_safe() {
                agreed += 1;
                continue;
            }
            let name = path.strip_prefix(&folder).unwrap().display().to_string();
            let wrongly = WRONGLY_REFUSED.iter().any(|part| name.contains(part));
            // What reads well is unsafe only for what it refers to.
            let whole = !name.contains("bad/") && collection == "testdata";
            let mut failures = ours.failures().map(|check| check.name);
            let refers = ["backing_file", "data_file", "descriptor", "banned"];
            let alone = name.contains("se-sparse.bin");
            let expected = match ours.is_safe() {
                true => wrongly,
                false => !whole || alone || failures.all(|check| refers.contains(&check)),
            };
            if !expected {
                unknown.push(format!("{collection}/{name}: {theirs}\n{ours}"));
            }
            let format = theirs["format"].as_str().unwrap_or("none");
            let why = ours.failures().next().map_or_else(
                || theirs["why"].as_str().unwrap_or_default().to_owned(),
                |check| match &check.outcome {
                    Outcome::Failed(reason) => reason.clone(),
                    _ => String::new(),
                },
            );
            differences.push(format!(
                "| {collection}/{name} | {format} {} {why} |",
                heading(&ours, theirs)
            ));
        }
    }
    assert!(unknown.is_empty(), "{}", unknown.join("\n"));
    assert!(agreed > 100);
    eprintln!("{agreed} verdicts agree, {} differ", differences.len());
    eprintln!("| file | oslo.utils: format, verdict | ours | reason |\n|---|---|---|---|");
    for line in &differences {
        eprintln!("{line}");
    }
}

fn is_known(path: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(path) else {
        return false;
    };
    if meta.len() > 1 << 30 {
        return false;
    }
    let file = blockform::storage::FileStorage::open(path).unwrap();
    let detected = detect(&file).unwrap();
    detected
        .matches
        .iter()
        .any(|(id, _)| KNOWN.contains(&id.as_str()))
        || detected
            .content
            .iter()
            .any(|(id, _)| matches!(id.as_str(), "gpt" | "mbr" | "luks"))
}
