//! Every kind of file is told by name: what is read opens, what is not is described and refused.

use std::fs;
use std::sync::Arc;

use crate::support::command::{example, has_qemu, must, run};
use crate::support::testdata;
use blockform::image::Probe;
use blockform::inspect::Report;
use blockform::storage::Memory;
use blockform::{BlockSource, Detected, Error, ImageName, OpenOptions, detect};
use serde_json::Value;

/// The files of testdata/kinds, with what is true of them.
fn entries() -> Vec<Value> {
    let text = fs::read_to_string(testdata("kinds/manifest.json")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let count = |folder| fs::read_dir(testdata(folder)).unwrap().count();
    assert_eq!(list.len(), count("kinds/good") + count("kinds/bad"));
    list
}

fn describe(bytes: &[u8]) -> Result<Value, Error> {
    let source = Arc::new(Memory::new(bytes));
    let report = Report::of_source(source, ImageName::from("x"), &OpenOptions::new())?;
    let _ = report.to_string();
    Ok(serde_json::from_str(&report.to_json()).unwrap())
}

/// Returns true if this build looks into a file of this name.
fn looks_into(file: &str) -> bool {
    let ends = |endings: &[&str]| endings.iter().any(|ending| file.ends_with(ending));
    (cfg!(feature = "zlib") || !ends(&[".gz", "deflated.zip", ".uimage"]))
        && (cfg!(feature = "zstd") || !ends(&[".zst"]))
        && (cfg!(feature = "peek") || !ends(&[".xz", ".bz2", ".lz4", ".lzma"]))
}

fn differs(entry: &Value, report: &Value) -> Option<String> {
    let own = &report["blockform"];
    let found: Vec<&str> = own["matches"]
        .as_array()?
        .iter()
        .map(|found| found["format"].as_str().unwrap())
        .collect();
    let wanted = entry["match"].as_str()?;
    if report["format"] != entry["format"] || !found.contains(&wanted) {
        return Some(format!("is {} and {found:?}", report["format"]));
    }
    let size = match entry["virtual_size"].as_u64() {
        Some(size) => Value::from(size.next_multiple_of(512)),
        None => Value::Null,
    };
    if report["virtual-size"] != size {
        return Some(format!("has {} bytes", report["virtual-size"]));
    }
    let details = &own["details"];
    assert!(details["kind"].is_string(), "{details}");
    for (key, value) in entry["details"].as_object()? {
        let told = match key.as_str() {
            "inside" | "next" => &details[key]["matches"][0]["format"],
            _ => &details[key],
        };
        if told != value && (key != "inside" || looks_into(entry["file"].as_str()?)) {
            return Some(format!("{key} is {told} in {details}"));
        }
    }
    None
}

#[test]
fn every_kind_is_described_by_name_and_not_opened() {
    let mut wrong = Vec::new();
    for entry in entries() {
        let file = entry["file"].as_str().unwrap();
        let bytes = fs::read(testdata(file)).unwrap();
        let described = describe(&bytes);
        match (&entry["error"], described) {
            (Value::Null, Ok(report)) => {
                wrong.extend(differs(&entry, &report).map(|why| format!("{file}: {why}")));
            }
            (Value::String(part), Err(error @ Error::Malformed { .. })) => {
                assert!(error.chain().contains(part), "{file}: {error}");
            }
            (_, other) => wrong.push(format!("{file}: {other:?}")),
        }
        let opened = OpenOptions::new().open(Arc::new(Memory::new(bytes)));
        match opened {
            Err(Error::Unsupported { format, .. }) if entry["match"] == format.as_str() => {}
            other => wrong.push(format!("{file}: opened as {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn detection_needs_no_more_than_a_window() {
    for entry in entries() {
        let file = entry["file"].as_str().unwrap();
        let bytes = fs::read(testdata(file)).unwrap();
        let whole = detect(&Memory::new(&*bytes)).unwrap();
        let window = Probe {
            head: &bytes[..bytes.len().min(Probe::HEAD)],
            tail: &bytes[bytes.len().saturating_sub(Probe::TAIL)..],
            size: bytes.len() as u64,
        };
        assert_eq!(Detected::of(&window), whole, "{file}");
    }
}

/// Cut anywhere, a file is what its beginning says, or nothing: never another thing, and no panic.
#[test]
fn what_is_cut_off_is_told_by_its_beginning_or_not_at_all() {
    let mut described = 0;
    for entry in entries() {
        let file = entry["file"].as_str().unwrap();
        let whole = fs::read(testdata(file)).unwrap();
        let ends = (0..whole.len().min(150)).chain((150..whole.len()).step_by(499));
        for end in ends {
            let opened = OpenOptions::new().open(Arc::new(Memory::new(&whole[..end])));
            match opened {
                Err(Error::Unrecognized | Error::Unsupported { .. }) => {}
                // The start of a DMG is that of its disk.
                Ok(image) if image.format().as_str() == "raw" => {
                    assert!(file.ends_with(".dmg"), "{file} {end}");
                }
                other => panic!("{file}, cut at {end}: {other:?}"),
            }
            described += u32::from(describe(&whole[..end]).is_ok());
        }
    }
    assert!(described > 1000, "{described}");
}

fn one(bytes: &[u8]) -> Result<&'static str, Error> {
    let detected = detect(&Memory::new(bytes))?;
    detected.one().map(|format| format.id().as_str())
}

#[test]
fn only_pairs_that_honest_files_show_pass() {
    let read = |file: &str| fs::read(testdata(file)).unwrap();
    let mut dmg = read("kinds/good/raw.dmg");
    let report = describe(&dmg).unwrap();
    assert_eq!(report["blockform"]["matches"][1]["format"], "mbr");
    assert!(matches!(one(&dmg), Err(Error::Unsupported { .. })));
    // What begins as an image and ends as a DMG is neither.
    dmg[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    assert!(matches!(one(&dmg), Err(Error::Ambiguous { .. })));
    assert!(matches!(describe(&dmg), Err(Error::Ambiguous { .. })));

    // A DMG's packed data may be at its start; no other wrapper's is.
    let mut tar = read("kinds/good/files.tar");
    let at = tar.len() - 512;
    tar[at..at + 4].copy_from_slice(b"koly");
    assert!(matches!(one(&tar), Err(Error::Ambiguous { .. })));
    let mut packed = read("kinds/good/empty.qcow2.bz2");
    packed.resize(4096, 0);
    let at = packed.len() - 512;
    packed[at..at + 8].copy_from_slice(b"conectix");
    assert!(matches!(one(&packed), Err(Error::Ambiguous { .. })));

    // A kernel in the place of the boot code is no disk, and a disk is no kernel.
    let mut kernel = read("kinds/good/i386.bzimage");
    kernel[446 + 4] = 0x83;
    kernel[446 + 12] = 8;
    assert!(matches!(one(&kernel), Err(Error::Ambiguous { .. })));
}

#[test]
fn a_kind_can_be_named_and_is_described_then_only_if_it_is_that() {
    let options = OpenOptions::new().format("bochs");
    let path = testdata("kinds/good/growing.bochs");
    let report = Report::of_path(&path, &options).unwrap();
    assert_eq!(report.format.as_str(), "bochs");
    let error = Report::of_path(testdata("kinds/good/raw.dmg"), &options).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let error = options.open_path(&path).unwrap_err();
    assert!(
        error
            .chain()
            .contains("reading this format is not supported"),
        "{error}"
    );
    // Raw is what anything is to those who say so.
    let raw = OpenOptions::new().format("raw");
    assert_eq!(Report::of_path(&path, &raw).unwrap().format.as_str(), "raw");
    assert_eq!(
        raw.open_path(&path).unwrap().size(),
        fs::metadata(&path).unwrap().len()
    );
}

#[test]
fn luks_is_qemus_format_in_words_and_not_read_without_a_word() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    must(
        at,
        "qemu-img create -q -f luks -o key-secret=s,iter-time=10 --object secret,id=s,data=x x.luks 1M",
    );
    let bytes = fs::read(at.join("x.luks")).unwrap();
    let report = describe(&bytes).unwrap();
    assert_eq!(report["format"], "luks");
    // Version 2 is nothing that QEMU knows.
    let mut second = bytes.clone();
    second[7] = 2;
    assert_eq!(describe(&second).unwrap()["format"], "raw");
    for bytes in [bytes, second] {
        let len = bytes.len() as u64;
        let file = Arc::new(Memory::new(bytes));
        let error = OpenOptions::new().open(file.clone()).unwrap_err();
        assert!(
            matches!(&error, Error::Unsupported { format, .. } if format.as_str() == "luks"),
            "{error}"
        );
        let raw = OpenOptions::new().format("raw").open(file).unwrap();
        assert_eq!(raw.size(), len, "the encrypted bytes, for those who say so");
    }
}

/// Formats that QEMU knows, too, are described in its words.
#[test]
fn the_words_are_qemus() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    must(
        at,
        "qemu-img create -q -f luks -o key-secret=s,iter-time=10 --object secret,id=s,data=x x.luks 1M",
    );
    for file in ["growing.bochs", "disk.cloop", "raw.dmg", "zlib.dmg"] {
        fs::copy(testdata(&format!("kinds/good/{file}")), at.join(file)).unwrap();
    }
    for file in [
        "x.luks",
        "growing.bochs",
        "disk.cloop",
        "raw.dmg",
        "zlib.dmg",
    ] {
        let theirs = must(at, &format!("qemu-img info --output=json {file}"));
        let theirs: Value = serde_json::from_str(&theirs).unwrap();
        let ours = run(at, example("img-info"), ["--output=json", file]);
        assert!(ours.status.success(), "{ours:?}");
        let mut ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
        ours.as_object_mut().unwrap().remove("blockform");
        assert_eq!(ours, theirs, "{file}");
        let theirs = must(at, &format!("qemu-img info {file}"));
        let ours = run(at, example("img-info"), [file]);
        let ours = String::from_utf8(ours.stdout).unwrap();
        let (ours, notes) = ours.split_once("Notes:\n").unwrap();
        assert_eq!(ours, theirs);
        assert!(notes.starts_with("    kind: "), "{notes}");
    }
}

#[test]
fn names_inside_reach_no_terminal_as_they_are() {
    let report = Report::of_path(testdata("kinds/good/two.vma"), &OpenOptions::new()).unwrap();
    let text = report.to_string();
    assert!(text.contains(r"drive-\u{1b}[2J"), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn the_map_is_drawn_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let image = testdata("qcow2/good/plain.qcow2");
    let image = image.to_str().unwrap();
    let info = example("img-info");
    let text = |arguments: &[&str]| {
        let output = run(at, &info, arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = text(&[image]);
    assert!(
        !plain.contains("Extents:"),
        "a pipe is no terminal: {plain}"
    );
    assert_eq!(text(&["--map=never", image]), plain);
    let drawn = text(&["--map", image, image]);
    let first = drawn.strip_prefix(&plain).unwrap();
    assert!(first.starts_with("Extents:\n    data "), "{first}");
    assert_eq!(drawn.matches("] 16 KiB each\n").count(), 2, "{drawn}");
    let json = text(&["--map", "--output=json", image]);
    assert_eq!(json, text(&["--output=json", image]));
    // What lies in a file that is left closed is not looked at, and what cannot be read has no map.
    let overlay = testdata("qcow2/good/overlay-v2.qcow2");
    let told = text(&["--map", overlay.to_str().unwrap()]);
    assert!(told.contains("which was not opened"), "{told}");
    let told = text(&[
        "--map",
        "--allow-references=same-dir",
        overlay.to_str().unwrap(),
    ]);
    assert!(!told.contains("which was not opened"), "{told}");
    let dmg = testdata("kinds/good/raw.dmg");
    assert!(!text(&["--map", dmg.to_str().unwrap()]).contains("Extents:"));
}
