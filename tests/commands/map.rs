//! The verb map: as a library call, and as `img-map` beside `qemu-img map`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::command::{example, has_qemu, must};
use crate::support::{goldens, sample_disk, skipped, testdata};
use blockform::convert::ConvertOptions;
use blockform::extents::{Entries, Entry};
use blockform::storage::Memory;
use blockform::{Image, OpenOptions};
use serde_json::Value;

fn entries(image: &dyn Image) -> Vec<Entry> {
    let entries = Entries::of(image, "disk".into());
    entries.collect::<Result<_, _>>().unwrap()
}

fn parsed(entries: &[Entry]) -> Vec<Value> {
    let lines = entries.iter().map(Entry::to_json);
    lines
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect()
}

/// The list without what QEMU alone tells: the place of what reads as zero, and where the holes of
/// the file are behind what an image stores; and of disks that end inside of a sector the rest of it.
fn comparable(list: &[Value], size: u64) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for entry in list {
        let mut entry = entry.clone();
        let number = |entry: &Value, key: &str| entry[key].as_u64().unwrap();
        let start = number(&entry, "start");
        if start >= size && start > 0 {
            continue;
        }
        let map = entry.as_object_mut().unwrap();
        map.remove("filename");
        if map["data"] == true {
            map.insert("zero".to_owned(), false.into());
        } else {
            map.remove("offset");
        }
        let same = |last: &Value| {
            let keys = ["depth", "present", "zero", "data", "compressed"];
            let place = |entry: &Value| entry["offset"].as_u64();
            let adjoins = match (place(last), place(&entry)) {
                (None, None) => true,
                (Some(a), Some(b)) => a + number(last, "length") == b,
                _ => false,
            };
            adjoins && keys.iter().all(|key| last[key] == entry[key])
        };
        match kept.last_mut().filter(|last| same(last)) {
            Some(last) => {
                last["length"] = (number(last, "length") + number(&entry, "length")).into();
            }
            None => kept.push(entry),
        }
    }
    kept
}

/// Returns true if our list says more than QEMU's: a VHDX has holes, and what a VHD or VDI does not record is not
/// present; or another thing: a raw disk's last sector ends where the file does, and where its data is
/// depends on how it was copied.
fn is_known_to_differ(name: &str) -> bool {
    let parts = [
        "vhdx",
        "vpc-dynamic",
        "vdi-dynamic",
        "raw-zero-falloc",
        "raw-odd-bytes",
    ];
    parts.iter().any(|part| name.contains(part))
}

#[test]
fn the_interop_matrix_is_mapped_as_qemu_img_maps_it() {
    let Some(matrix) = std::env::var_os("INTEROP_MATRIX").map(PathBuf::from) else {
        skipped("INTEROP_MATRIX names no folder with images and their maps");
        return;
    };
    let text = fs::read_to_string(matrix.join("matrix.json")).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    let (mut same, mut wrong) = (0, Vec::new());
    for entry in list["entries"].as_array().unwrap() {
        let name = entry["name"].as_str().unwrap();
        let Some(map) = entry["map"].as_str() else {
            continue;
        };
        if is_known_to_differ(name) {
            continue;
        }
        let options = OpenOptions::new()
            .format(entry["format"].as_str().unwrap())
            .references(blockform::PathPolicy::DangerousAnywhere);
        let image = options.open_path(matrix.join(entry["file"].as_str().unwrap()));
        let image = image.unwrap();
        let theirs = fs::read_to_string(matrix.join(map)).unwrap();
        let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
        let ours = parsed(&entries(&*image));
        if comparable(&ours, image.size()) == comparable(&theirs, image.size()) {
            same += 1;
        } else {
            wrong.push(name.to_owned());
        }
    }
    assert!(wrong.is_empty(), "{same} are the same, and not {wrong:?}");
    assert!(same > 50, "{same}");
}

#[test]
fn entries_cover_the_disk_and_neighbours_differ() {
    for golden in goldens() {
        let image = golden.options().open_path(&golden.path).unwrap();
        let entries = entries(&*image);
        let mut end = 0;
        for entry in &entries {
            assert_eq!(entry.start, end, "{}", golden.file);
            end += entry.length;
        }
        assert_eq!(end, image.size(), "{}", golden.file);
        for pair in entries.windows(2) {
            let status = |e: &Entry| (e.depth, e.present, e.zero, e.data, e.compressed);
            let jumps = pair[0].offset.map(|at| at + pair[0].length) != pair[1].offset;
            assert!(
                status(&pair[0]) != status(&pair[1]) || jumps,
                "{}",
                golden.file
            );
        }
        // A part of the disk has the same entries, cut.
        let (from, len) = (image.size() / 3, image.size() / 2);
        let part = Entries::of(&*image, "disk".into()).within(from, len);
        let part: Vec<Entry> = part.collect::<Result<_, _>>().unwrap();
        let first = part.first().unwrap();
        assert_eq!(first.start, from, "{}", golden.file);
        let covered: u64 = part.iter().map(|entry| entry.length).sum();
        assert_eq!(covered, len, "{}", golden.file);
        let whole = entries.iter().rfind(|e| e.start <= from && e.length > 0);
        if let Some(whole) = whole.filter(|_| len > 0) {
            let offset = whole.offset.map(|at| at + from - whole.start);
            assert_eq!(first.offset, offset, "{}", golden.file);
        }
    }
}

#[test]
fn an_error_ends_the_list() {
    let path = testdata("qcow2/bad/cluster-unaligned.qcow2");
    let image = OpenOptions::new().open_path(path).unwrap();
    let list: Vec<_> = Entries::of(&*image, "disk".into()).collect();
    let (last, before) = list.split_last().unwrap();
    assert!(
        last.is_err() && before.iter().all(Result::is_ok),
        "{list:?}"
    );
}

fn both(folder: &Path, line: &str) -> [(Option<i32>, String); 2] {
    let line = line.split_whitespace();
    let ours = crate::support::command::run(folder, example("img-map"), line.clone());
    let theirs = crate::support::command::run(folder, "qemu-img", ["map"].into_iter().chain(line));
    [ours, theirs].map(|out| (out.status.code(), String::from_utf8(out.stdout).unwrap()))
}

#[test]
fn the_command_prints_what_qemu_img_prints() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut disk = sample_disk(9, 3 << 20);
    disk[1 << 20..2 << 20].fill(0);
    fs::write(at.join("full.raw"), &disk).unwrap();
    fs::create_dir(at.join("sub")).unwrap();
    for line in [
        "qemu-img convert -f raw -O raw full.raw disk.raw",
        "qemu-img convert -f raw -O qcow2 full.raw disk.qcow2",
        "qemu-img convert -f raw -O qcow2 -c full.raw packed.qcow2",
        "qemu-img convert -f raw -O qcow2 -o data_file=data.raw full.raw split.qcow2",
        "qemu-img convert -f raw -O vmdk full.raw disk.vmdk",
        "qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat full.raw flat.vmdk",
        "qemu-img create -q -f qcow2 empty.qcow2 0",
        "qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 middle.qcow2 2M",
        "qemu-img create -q -f qcow2 -b ../middle.qcow2 -F qcow2 sub/top.qcow2 4M",
        "qemu-io -f qcow2 middle.qcow2 -c write\u{a0}64k\u{a0}64k",
        "qemu-io -f qcow2 sub/top.qcow2 -c write\u{a0}-z\u{a0}0\u{a0}64k -c write\u{a0}3M\u{a0}64k",
    ] {
        // A space within a word is no separator here.
        let words: Vec<String> = line.split(' ').map(|w| w.replace('\u{a0}', " ")).collect();
        let out = crate::support::command::run(at, &words[0], &words[1..]);
        assert!(out.status.success(), "{line}: {out:?}");
    }
    for line in [
        "-f raw disk.raw",
        "disk.qcow2",
        "packed.qcow2",
        "disk.vmdk",
        "flat.vmdk --allow-references=same-dir",
        "split.qcow2 --allow-references=same-dir",
        "sub/top.qcow2 --allow-references=.",
        "middle.qcow2 --allow-references=same-dir",
        "empty.qcow2",
        "disk.qcow2 -s 100k -l 1000000",
        "disk.qcow2 --start-offset 1M --max-length 1",
        "disk.qcow2 --start-offset 100M",
        "disk.qcow2 -f qcow2 -U",
        "absent.qcow2",
    ] {
        for form in ["--output=human", "--output=json"] {
            let line = format!("{line} {form}");
            let theirs: Vec<&str> = line
                .split_whitespace()
                .filter(|word| !word.starts_with("--allow"))
                .collect();
            let ours = both(at, &line)[0].clone();
            let theirs = both(at, &theirs.join(" "))[1].clone();
            assert_eq!(ours, theirs, "{line}");
        }
    }
    let [(status, told), _] = both(at, "sub/top.qcow2");
    assert_eq!(
        (status, told.as_str()),
        (Some(1), ""),
        "references are closed"
    );
    must(at, "qemu-img map -f raw full.raw");
}

/// To qemu-img a VHDX is data from end to end.
#[test]
fn holes_of_a_vhdx_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    let mut disk = vec![0; 96 << 20];
    disk[40 << 20] = 1;
    ConvertOptions::to("vhdx")
        .option("block_size", "1M")
        .convert_to_path(&Memory::new(disk), &path)
        .unwrap();
    let image = OpenOptions::new().open_path(&path).unwrap();
    let runs: Vec<_> = entries(&*image)
        .iter()
        .map(|entry| (entry.start >> 20, entry.data, entry.present))
        .collect();
    let told = [(0, false, false), (40, true, true)];
    assert_eq!(runs[..2], told, "{runs:?}");
    assert_eq!(runs.last(), Some(&(41, false, false)), "{runs:?}");
}
