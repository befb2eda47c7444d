//! Conversions in parts: the same bytes as in one go, whatever order, repetition or kill there was.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::support::command::{example, has_qemu, must, names};
use crate::support::{fails, sample_disk, skipped};
use blockform::convert::ConvertOptions;
use blockform::convert::partition::{Cut, MAX_PARTS, Plan};
use blockform::digest::Algorithm;
use blockform::image::{Backing, ImageInfo};
use blockform::storage::{FileStorage, Memory};
use blockform::{
    BlockSource, BlockSourceExt, Error, Extent, FormatId, Image, Limits, OpenOptions, Reference,
    Result,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

fn raw(bytes: Vec<u8>) -> Box<dyn Image> {
    let options = OpenOptions::new().format("raw");
    options.open(Arc::new(Memory::new(bytes))).unwrap()
}

/// Eleven parts or so, of all kinds of bytes, with long holes, that ends within a sector.
fn disk() -> Vec<u8> {
    let mut disk = sample_disk(5, 4 * MIB);
    disk.resize(9 * MIB, 0);
    disk.extend(sample_disk(6, 3 * MIB + 5000));
    disk
}

fn to(format: &str, options: &[(&str, &str)]) -> ConvertOptions {
    let to = ConvertOptions::to(format);
    options
        .iter()
        .fold(to, |to, (name, value)| to.option(*name, *value))
}

/// Every kind of image whose parts can be written apart: the file's name, QEMU's name of the format,
/// and the options.
fn kinds() -> Vec<(&'static str, &'static str, ConvertOptions)> {
    let vmdk = |subformat| to("vmdk", &[("subformat", subformat)]);
    vec![
        ("a.raw", "raw", to("raw", &[])),
        ("b.raw", "raw", to("raw", &[]).sparse_size(0)),
        ("c.raw", "raw", to("raw", &[("preallocation", "falloc")])),
        ("d.raw", "raw", to("raw", &[("preallocation", "full")])),
        ("e.raw", "raw", to("raw", &[]).sparse_size(64 << 10)),
        ("f.vhd", "vpc", to("vhd", &[("subformat", "fixed")])),
        (
            "g.vhd",
            "vpc",
            to("vpc", &[("subformat", "fixed"), ("force_size", "on")]),
        ),
        ("h.vhd", "vpc", to("vhd", &[("azure", "on")])),
        ("i.vmdk", "vmdk", vmdk("monolithicFlat")),
        ("j.vmdk", "vmdk", vmdk("vmfs")),
        ("k.vmdk", "vmdk", vmdk("vmfsThin")),
        ("l.vmdk", "vmdk", vmdk("twoGbMaxExtentFlat")),
        ("m.vdi", "vdi", to("vdi", &[("static", "on")])),
        (
            "n.vdi",
            "vdi",
            to("vdi", &[("static", "on"), ("block_size", "64k")]),
        ),
    ]
}

fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| (name.clone(), fs::read(folder.join(name)).unwrap());
    names(folder).into_iter().map(read).collect()
}

/// The holes of a file.
fn holes(path: &Path) -> Vec<(u64, u64)> {
    let mut holes: Vec<(u64, u64)> = Vec::new();
    for run in FileStorage::open(path).unwrap().extents() {
        let run = run.unwrap();
        match holes.last_mut() {
            _ if !run.kind.reads_as_zero() => {}
            Some((_, end)) if *end == run.start => *end = run.end(),
            _ => holes.push((run.start, run.end())),
        }
    }
    holes
}

fn folder_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap().to_string_lossy().into_owned();
    target.with_file_name(format!(".{name}.parts"))
}

fn again(plan: &Plan) -> Plan {
    Plan::from_json(&plan.to_json().unwrap(), &Limits::default()).unwrap()
}

/// A plan for five parts of the disk into raw, prepared.
fn prepared() -> (TempDir, PathBuf, Box<dyn Image>, Plan) {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    let source = raw(disk());
    let plan = Plan::new(&*source, &to("raw", &[]), Cut::Parts(5)).unwrap();
    assert_eq!(plan.parts().len(), 5);
    plan.prepare(&target).unwrap();
    (folder, target, source, plan)
}

fn run_all(plan: &Plan, source: &dyn Image, target: &Path) {
    for index in 0..plan.parts().len() {
        plan.run_part(source, target, index).unwrap();
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T>, why: &str) {
    match result {
        Err(error @ (Error::InvalidInput(_) | Error::LimitExceeded { .. })) => {
            assert!(error.to_string().contains(why), "{error}, and not {why}");
        }
        other => panic!("{other:?} where {why} was expected"),
    }
}

#[test]
fn every_kind_is_what_one_process_writes() {
    let source = raw(disk());
    for (name, _, options) in kinds() {
        let whole = tempfile::tempdir().unwrap();
        options
            .convert_to_path(&source, whole.path().join(name))
            .unwrap();
        for (turned, cut) in [(true, Cut::Parts(4)), (false, Cut::Data(3 << 20))] {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join(name);
            let plan = again(&Plan::new(&*source, &options, cut).unwrap());
            plan.prepare(&target).unwrap();
            plan.prepare(&target).unwrap();
            let mut indexes: Vec<usize> = (0..plan.parts().len()).collect();
            if turned {
                indexes.reverse();
            }
            for index in indexes {
                assert!(!target.exists());
                let done = plan.run_part(&*source, &target, index).unwrap();
                assert_eq!(done.unwrap().virtual_size, plan.parts()[index].len);
                assert_eq!(plan.run_part(&*source, &target, index).unwrap(), None);
            }
            plan.seal(&target).unwrap();
            assert!(
                files_of(folder.path()) == files_of(whole.path()),
                "{name} in {} parts differs",
                plan.parts().len()
            );
            for file in names(folder.path()) {
                if name == "e.raw" {
                    // A run of zeros that is cut in two is no longer long enough for a hole.
                    continue;
                }
                let (parts, one) = (folder.path().join(&file), whole.path().join(&file));
                assert_eq!(holes(&parts), holes(&one), "{file} has other holes");
            }
        }
    }
}

#[test]
fn parts_may_come_in_every_order() {
    let source = raw(disk());
    for order in 0..24_usize {
        // One of the orders of four things.
        let mut left = vec![0, 1, 2, 3];
        let order = [6, 2, 1, 1].map(|n| left.remove(order / n % left.len()));
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk.raw");
        let options = to("raw", &[]).sync(false);
        let plan = Plan::new(&*source, &options, Cut::Parts(4)).unwrap();
        plan.prepare(&target).unwrap();
        for index in order {
            plan.run_part(&*source, &target, index).unwrap();
        }
        plan.seal(&target).unwrap();
        assert!(fs::read(target).unwrap() == disk(), "{order:?}");
    }
}

#[test]
fn a_disk_of_several_files_is_cut_where_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.raw");
    let file = fs::File::create(&source).unwrap();
    file.set_len((5 << 30) + 512).unwrap();
    for at in [0, (2 << 30) - 3_000_000, (4 << 30) - 5_000_000, 5 << 30] {
        let len = if at == 5 << 30 { 512 } else { 7 * MIB };
        file.write_all_at(&crate::support::sample_disk(at, len), at)
            .unwrap();
    }
    let source = OpenOptions::new().format("raw").open_path(source).unwrap();
    let options = to("vmdk", &[("subformat", "twoGbMaxExtentFlat")]);
    let plan = Plan::new(&*source, &options, Cut::Parts(6)).unwrap();
    let crosses = |edge: u64| {
        move |part: &blockform::convert::partition::Part| part.start < edge && edge < part.end()
    };
    assert!(plan.parts().iter().any(crosses(2 << 30)));
    for target in ["parts", "whole"] {
        fs::create_dir(folder.path().join(target)).unwrap();
    }
    let target = folder.path().join("parts/disk.vmdk");
    plan.prepare(&target).unwrap();
    run_all(&plan, &*source, &target);
    plan.seal(&target).unwrap();
    let whole = folder.path().join("whole/disk.vmdk");
    options.convert_to_path(&source, &whole).unwrap();
    let files = names(&folder.path().join("parts"));
    assert_eq!(files, names(&folder.path().join("whole")));
    assert_eq!(files.len(), 4);
    for file in files {
        let (parts, whole) = (target.with_file_name(&file), whole.with_file_name(&file));
        assert_eq!(holes(&parts), holes(&whole), "{file}");
        let (parts, whole) = (FileStorage::open(parts), FileStorage::open(whole));
        let (parts, whole) = (parts.unwrap(), whole.unwrap());
        assert_eq!(parts.size(), whole.size());
        for run in whole.extents().map(Result::unwrap) {
            if !run.kind.reads_as_zero() {
                let mut bytes = [0, 1].map(|fill| vec![fill; usize::try_from(run.len).unwrap()]);
                parts.read_exact_at(&mut bytes[0], run.start).unwrap();
                whole.read_exact_at(&mut bytes[1], run.start).unwrap();
                assert!(bytes[0] == bytes[1], "{file} differs at {}", run.start);
            }
        }
    }
}

#[test]
fn parts_have_as_much_data_each_wherever_it_lies() {
    let mut disk = vec![0; 64 * MIB];
    disk[40 * MIB..56 * MIB].fill(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let to_qcow2 = ConvertOptions::to("qcow2");
    to_qcow2.convert_to_path(&raw(disk), &path).unwrap();
    let source = OpenOptions::new().open_path(path).unwrap();
    let plan = Plan::new(&*source, &to("raw", &[]), Cut::Parts(4)).unwrap();
    let data: Vec<u64> = plan.parts().iter().map(|part| part.data).collect();
    assert_eq!(data, [4 << 20; 4]);
    assert_eq!(plan.parts()[0].end(), 44 << 20);
    // Zeros that are written out count, too.
    let all = to("raw", &[]).sparse_size(0);
    let plan = Plan::new(&*source, &all, Cut::Parts(4)).unwrap();
    let starts: Vec<u64> = plan.parts().iter().map(|part| part.start >> 20).collect();
    assert_eq!(starts, [0, 16, 32, 48]);
    let plan = Plan::new(&*source, &to("raw", &[]), Cut::Data(3 << 20)).unwrap();
    assert_eq!(plan.parts().len(), 6);
    // An empty disk, one that is all zeros, and one that is too small for so many parts.
    for (disk, parts) in [(vec![], 1), (vec![0; 9 * MIB], 1), (vec![1; 3 * MIB], 3)] {
        let source = raw(disk.clone());
        let plan = again(&Plan::new(&*source, &to("raw", &[]), Cut::Parts(5)).unwrap());
        let target = folder.path().join("small.raw");
        plan.prepare(&target).unwrap();
        run_all(&plan, &*source, &target);
        plan.seal(&target).unwrap();
        assert!(fs::read(target).unwrap() == disk);
        if parts == 3 {
            assert_eq!(plan.parts().len(), 3);
        }
    }
    for cut in [
        Cut::Parts(0),
        Cut::Parts(MAX_PARTS + 1),
        Cut::Data(0),
        Cut::Data(1),
    ] {
        refused(Plan::new(&*source, &to("raw", &[]), cut), "parts");
    }
}

#[test]
fn what_cannot_be_done_in_parts_is_refused() {
    let source = raw(disk());
    let vhdx = to("vhdx", &[("subformat", "fixed")]);
    let stream = to("vmdk", &[("subformat", "streamOptimized")]);
    let fresh = to("vhd", &[("subformat", "fixed"), ("fresh", "on")]);
    let backing = Backing::new("base.raw".into(), "raw");
    let cases = [
        (to("qcow2", &[]), "cannot be written in parts"),
        (to("vhd", &[]), "cannot be written in parts"),
        (to("vdi", &[]), "cannot be written in parts"),
        (vhdx, "cannot be written in parts"),
        (stream, "cannot be written in parts"),
        (to("vmdk", &[]), "cannot be written in parts"),
        (fresh, "new ones each time"),
        (to("raw", &[]).content_digest(Algorithm::Md5), "digest"),
        (to("raw", &[]).compress(true), "compressed"),
        (to("nonsense", &[]), "unknown format"),
        (to("raw", &[("speed", "9")]), "no option"),
        (
            to("raw", &[]).overlay(backing, Arc::from(raw(disk()))),
            "overlay",
        ),
    ];
    for (options, why) in cases {
        refused(Plan::new(&*source, &options, Cut::Parts(2)), why);
    }
}

#[test]
fn a_missing_part_is_named_and_nothing_gets_its_name() {
    let (folder, target, source, plan) = prepared();
    for index in [0, 3] {
        plan.run_part(&*source, &target, index).unwrap();
    }
    assert_eq!(plan.missing(&target).unwrap(), [1, 2, 4]);
    match plan.seal(&target) {
        Err(error @ Error::PartsMissing { .. }) => {
            assert_eq!(error.to_string(), "3 of 5 parts are not done: 1-2, 4");
        }
        other => panic!("{other:?}"),
    }
    // A mark that another conversion left, or that is cut short, is none.
    let state = folder_of(&target);
    let mark = fs::read_to_string(state.join("part-0.done")).unwrap();
    fs::write(state.join("part-1.done"), &mark).unwrap();
    fs::write(state.join("part-2.done"), "").unwrap();
    fs::write(state.join("part-4.done"), "0123456789abcdef part-4.done\n").unwrap();
    assert_eq!(plan.missing(&target).unwrap(), [1, 2, 4]);
    assert_eq!(names(folder.path()), [".disk.raw.parts"]);
    for index in [4, 2, 1] {
        assert!(plan.run_part(&*source, &target, index).unwrap().is_some());
    }
    plan.seal(&target).unwrap();
    assert_eq!(names(folder.path()), ["disk.raw"]);
    assert!(fs::read(&target).unwrap() == disk());
    refused(plan.seal(&target), "sealed already");
    refused(plan.run_part(&*source, &target, 0), "not prepared");
    refused(plan.run_part(&*source, &target, 5), "there is no part 5");
}

/// Fails from a place on.
#[derive(Debug)]
struct Failing(Box<dyn Image>, u64);

impl BlockSource for Failing {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // The samples are short.
        match buf.len() > 4096 && offset + buf.len() as u64 > self.1 {
            true => Err(Error::io("read", std::io::ErrorKind::TimedOut.into())),
            false => self.0.read_at(buf, offset),
        }
    }
    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.0.extent_at(offset, limit)
    }
}

impl Image for Failing {
    fn format(&self) -> FormatId {
        self.0.format()
    }
    fn info(&self) -> &ImageInfo {
        self.0.info()
    }
    fn references(&self) -> &[Reference] {
        self.0.references()
    }
}

#[test]
fn whatever_a_broken_part_left_is_written_over() {
    let (_folder, target, source, plan) = prepared();
    let part = plan.parts()[1].clone();
    let failing = Failing(raw(disk()), part.start + part.len / 2);
    let failed = plan.run_part(&failing, &target, 1);
    assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
    assert_eq!(plan.missing(&target).unwrap(), [0, 1, 2, 3, 4]);
    // A crash of the machine may leave anything in it.
    let file = fs::OpenOptions::new();
    let file = file
        .clone()
        .write(true)
        .open(folder_of(&target).join("file-0"))
        .unwrap();
    let junk = vec![0xdb; usize::try_from(part.len).unwrap()];
    file.write_all_at(&junk, part.start).unwrap();
    for index in [4, 1, 0, 2, 3] {
        assert!(plan.run_part(&*source, &target, index).unwrap().is_some());
    }
    plan.seal(&target).unwrap();
    assert!(fs::read(&target).unwrap() == disk());
    let whole = target.with_file_name("whole.raw");
    to("raw", &[]).convert_to_path(&source, &whole).unwrap();
    assert_eq!(holes(&target), holes(&whole));
}

#[test]
fn a_part_writes_nothing_outside_of_its_range() {
    let (_folder, target, source, plan) = prepared();
    let file = folder_of(&target).join("file-0");
    let junk = vec![0xdb; disk().len()];
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .write_all_at(&junk, 0)
        .unwrap();
    // As one that was begun before, so that the junk of its own range goes.
    fs::write(folder_of(&target).join("part-2.begun"), "").unwrap();
    plan.run_part(&*source, &target, 2).unwrap();
    let part = &plan.parts()[2];
    let range = usize::try_from(part.start).unwrap()..usize::try_from(part.end()).unwrap();
    let mut expected = junk;
    expected[range.clone()].copy_from_slice(&disk()[range]);
    assert!(fs::read(file).unwrap() == expected);
}

#[test]
fn a_source_that_was_changed_is_refused() {
    let (folder, target, source, plan) = prepared();
    let part = plan.parts()[3].clone();
    let mut changed = disk();
    changed[usize::try_from(part.end() - 1).unwrap()] ^= 1;
    refused(plan.run_part(&*raw(changed), &target, 3), "was changed");
    refused(
        plan.run_part(&*raw(vec![0; 9 * MIB]), &target, 3),
        "the plan is for a raw image of",
    );
    let path = folder.path().join("disk.qcow2");
    let to_qcow2 = ConvertOptions::to("qcow2");
    to_qcow2.convert_to_path(&source, &path).unwrap();
    let other = OpenOptions::new().open_path(&path).unwrap();
    refused(plan.run_part(&*other, &target, 3), "qcow2 image");
    assert_eq!(plan.missing(&target).unwrap().len(), 5);
    assert!(!folder_of(&target).join("part-3.begun").exists());

    let plan = again(&plan.source_file(&path).unwrap());
    plan.check_source_file(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified + std::time::Duration::from_nanos(1000))
        .unwrap();
    refused(plan.check_source_file(&path), "was changed");
    file.set_modified(modified).unwrap();
    plan.check_source_file(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.set_modified(modified).unwrap();
    refused(plan.check_source_file(&path), "was changed");
}

#[test]
fn folders_of_others_are_left_alone() {
    let (folder, target, source, plan) = prepared();
    let other = Plan::new(&*source, &to("raw", &[]), Cut::Parts(3)).unwrap();
    refused(other.prepare(&target), "another plan");
    refused(other.run_part(&*source, &target, 0), "another plan");
    refused(other.seal(&target), "another plan");

    // One folder for two targets.
    let state = folder.path().join("state");
    let plan = plan.in_folder(&state);
    plan.prepare(&target).unwrap();
    let second = target.with_file_name("second.raw");
    refused(plan.prepare(&second), "another name");
    fs::create_dir(folder.path().join("mine")).unwrap();
    let plan = plan.in_folder(folder.path().join("mine"));
    fs::write(folder.path().join("mine/letter"), "").unwrap();
    refused(plan.prepare(&target), "no conversion's");
    fs::remove_file(folder.path().join("mine/letter")).unwrap();
    plan.prepare(&target).unwrap();
    run_all(&plan, &*source, &target);
    // The file was cut short behind our back.
    let file = folder.path().join("mine/file-0");
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_len(5).unwrap();
    refused(plan.seal(&target), "not as it was prepared");
    assert!(!target.exists());

    // Its own source, a folder, and a file that is the target of two.
    let path = folder.path().join("source.raw");
    fs::write(&path, disk()).unwrap();
    let source = OpenOptions::new().format("raw").open_path(&path).unwrap();
    let plan = Plan::new(&*source, &to("raw", &[]), Cut::Parts(5)).unwrap();
    plan.prepare(&path).unwrap();
    refused(plan.run_part(&*source, &path, 0), "is read by");
    let path = folder.path().join("folder");
    fs::create_dir(&path).unwrap();
    refused(plan.prepare(&path), "not a regular file");
}

#[test]
fn many_prepare_at_once_and_one_does_it() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk.raw");
    let source = raw(disk());
    let options = to("raw", &[("preallocation", "full")]);
    let plan = Plan::new(&*source, &options, Cut::Parts(5)).unwrap();
    std::thread::scope(|scope| {
        for index in 0..5 {
            let (plan, source, target) = (&plan, &*source, &target);
            scope.spawn(move || {
                plan.prepare(target).unwrap();
                plan.run_part(source, target, index).unwrap();
                plan.run_part(source, target, (index + 1) % 5).unwrap();
            });
        }
    });
    assert_eq!(names(folder.path()), [".disk.raw.parts"]);
    plan.seal(&target).unwrap();
    assert_eq!(names(folder.path()), ["disk.raw"]);
    assert!(fs::read(&target).unwrap() == disk());
}

#[test]
fn a_seal_that_was_cut_off_is_ended_by_the_next() {
    for renamed in [
        &[][..],
        &["disk-flat.vmdk"],
        &["disk-flat.vmdk", "disk.vmdk"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk.vmdk");
        fs::write(&target, "what was there before").unwrap();
        let source = raw(disk());
        let options = to("vmdk", &[("subformat", "monolithicFlat")]);
        let plan = Plan::new(&*source, &options, Cut::Parts(2)).unwrap();
        plan.prepare(&target).unwrap();
        run_all(&plan, &*source, &target);
        assert_eq!(fs::read(&target).unwrap(), b"what was there before");
        // As far as it came: the descriptor is there, both are whole, and some have their names.
        let state = folder_of(&target);
        let whole = tempfile::tempdir().unwrap();
        options
            .convert_to_path(&source, whole.path().join("disk.vmdk"))
            .unwrap();
        fs::copy(whole.path().join("disk.vmdk"), state.join("file-0")).unwrap();
        let id = fs::read_to_string(state.join("id")).unwrap();
        let id = id.lines().next().unwrap();
        fs::write(state.join("sealed"), format!("{id} sealed\n")).unwrap();
        for name in renamed {
            let from = if name.contains("flat") {
                "file-1"
            } else {
                "file-0"
            };
            fs::rename(state.join(from), folder.path().join(name)).unwrap();
        }
        plan.seal(&target).unwrap();
        assert!(
            files_of(folder.path()) == files_of(whole.path()),
            "{renamed:?}"
        );
    }
}

#[test]
fn plans_that_were_edited_are_refused() {
    let (_folder, _, _, plan) = prepared();
    let text = plan.to_json().unwrap();
    assert_eq!(again(&plan).to_json().unwrap(), text);
    let max = json!(u64::MAX);
    let edits = [
        ("/version", json!(2), "version"),
        ("/source/virtual_size", json!(-1), "not a plan"),
        ("/source/virtual_size", json!(1 << 20), "another size"),
        ("/source/virtual_size", max.clone(), "virtual size"),
        ("/target/virtual_size", json!(512), "another size"),
        ("/target/virtual_size", max.clone(), "virtual size"),
        (
            "/target/format",
            json!("qcow2"),
            "cannot be written in parts",
        ),
        ("/target/format", json!("\u{1b}[2J"), "unknown format"),
        ("/target/sparse_size", max.clone(), "a hole"),
        ("/target/sync", json!("no"), "not a plan"),
        ("/target/options", json!([["speed", "9"]]), "no option"),
        ("/target/options", json!({"speed": 9}), "not a plan"),
        ("/parts", json!([]), "no parts"),
        ("/parts/0/start", json!(1 << 20), "gaps"),
        ("/parts/1/start", json!(0), "overlap"),
        ("/parts/1/start", max.clone(), "gaps"),
        ("/parts/4/len", max.clone(), "beyond"),
        ("/parts/4/data", json!(1 << 30), "length"),
        ("/parts/4/data", max, "length"),
        ("/parts/2/sample", json!("00"), "digest"),
        ("/parts/2/sample", json!("zz".repeat(16)), "digest"),
        ("/parts/2", json!({"start": 0, "len": 5}), "not a plan"),
    ];
    let parse = |value: &Value| Plan::from_json(&value.to_string(), &Limits::default());
    for (pointer, new, why) in edits {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        *value.pointer_mut(pointer).unwrap() = new;
        refused(parse(&value), why);
    }
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        edit(&mut value);
        parse(&value)
    };
    refused(
        edited(&|plan| plan["path"] = json!("/etc/passwd")),
        "not a plan",
    );
    let short = |plan: &mut Value| {
        plan["parts"].as_array_mut().unwrap().pop();
    };
    refused(edited(&short), "do not reach");
    // Side by side, and not where parts may begin.
    let moved = |plan: &mut Value| {
        let len = plan["parts"][0]["len"].as_u64().unwrap();
        let next = plan["parts"][1]["len"].as_u64().unwrap();
        plan["parts"][0]["len"] = json!(len + 512);
        plan["parts"][1]["start"] = json!(len + 512);
        plan["parts"][1]["len"] = json!(next - 512);
    };
    refused(edited(&moved), "begin where none may");
    let empty = |plan: &mut Value| {
        let mut part = plan["parts"][1].clone();
        part["len"] = json!(0);
        part["data"] = json!(0);
        plan["parts"].as_array_mut().unwrap().insert(1, part);
    };
    refused(edited(&empty), "length that it cannot have");
    let many = |plan: &mut Value| {
        let part = plan["parts"][0].clone();
        plan["parts"] = json!(vec![part; MAX_PARTS + 1]);
    };
    refused(edited(&many), "too many");
    // A claim of billions of files.
    let files = |plan: &mut Value| {
        let size = json!(i64::MAX - 511);
        plan["source"]["virtual_size"] = size.clone();
        plan["target"]["virtual_size"] = size;
        plan["target"]["format"] = json!("vmdk");
        plan["target"]["options"] = json!([["subformat", "twoGbMaxExtentFlat"]]);
    };
    refused(edited(&files), "more than 8192 files");
    let mut limits = Limits::default();
    limits.metadata_bytes = 100;
    refused(Plan::from_json(&text, &limits), "length of the plan");
    let deep = "[".repeat(1 << 20);
    refused(Plan::from_json(&deep, &Limits::default()), "not a plan");
    for cut in 0..text.len() - 1 {
        let cut = Plan::from_json(text.get(..cut).unwrap(), &Limits::default());
        fails!(cut, Error::InvalidInput(_), "EOF while parsing");
    }
}

/// Sees to it that a child does not outlive the test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn processes_share_the_work_and_one_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Data, all of it, so that a part takes a while.
    let mut bytes = crate::support::sample_disk(9, 4 * MIB).repeat(24);
    bytes.iter_mut().step_by(4096).for_each(|byte| *byte |= 1);
    fs::write(folder.join("source.raw"), &bytes).unwrap();
    let partition = example("img-partition").display().to_string();
    let convert = example("img-convert").display().to_string();
    let qemu = has_qemu();
    let mut killed = 0;
    for (name, format, options) in [
        ("a.raw", "raw", "preallocation=off"),
        ("b.vhd", "vpc", "subformat=fixed"),
        ("c.vmdk", "vmdk", "subformat=monolithicFlat"),
        ("d.vmdk", "vmdk", "subformat=vmfs"),
        ("e.vdi", "vdi", "static=on"),
    ] {
        for place in ["parts", "whole"] {
            fs::create_dir_all(folder.join(place)).unwrap();
        }
        let plan = format!("plan -f raw -O {format} -o {options} --parts 6 source.raw plan.json");
        assert_eq!(must(folder, &format!("{partition} {plan}")), "6\n");
        must(
            folder,
            &format!("{partition} prepare plan.json parts/{name}"),
        );
        let spawn = |index: usize| {
            let mut command = Command::new(&partition);
            let index = index.to_string();
            command
                .current_dir(folder)
                .args([
                    "part",
                    "plan.json",
                    &format!("parts/{name}"),
                    "source.raw",
                    &index,
                ])
                .stderr(Stdio::piped());
            Child(command.spawn().unwrap())
        };
        let mut children: Vec<Child> = (0..6).map(spawn).collect();
        let state = folder_of(&folder.join("parts").join(name));
        let mut victim = children.remove(3);
        let begun = state.join("part-3.begun");
        while !begun.exists() && victim.0.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        victim.0.kill().unwrap();
        victim.0.wait().unwrap();
        for mut child in children {
            assert!(child.0.wait().unwrap().success());
        }
        if !state.join("part-3.done").exists() {
            killed += 1;
            let out = crate::support::command::run(
                folder,
                &partition,
                ["seal", "plan.json", &format!("parts/{name}")],
            );
            let told = String::from_utf8(out.stderr).unwrap();
            assert!(!out.status.success());
            assert_eq!(told, "img-partition: 1 of 6 parts are not done: 3\n");
        }
        assert!(!folder.join("parts").join(name).exists());
        assert!(spawn(3).0.wait().unwrap().success());
        must(folder, &format!("{partition} seal plan.json parts/{name}"));
        must(
            folder,
            &format!("{convert} -f raw -O {format} -o {options} source.raw whole/{name}"),
        );
        assert!(
            files_of(&folder.join("parts")) == files_of(&folder.join("whole")),
            "{name}"
        );
        if qemu {
            must(
                folder,
                &format!("qemu-img compare -f raw -F {format} source.raw parts/{name}"),
            );
        }
        for place in ["parts", "whole"] {
            fs::remove_dir_all(folder.join(place)).unwrap();
        }
    }
    assert!(killed > 0, "no process was killed in the middle");
}

#[test]
fn the_kinds_are_what_qemu_takes_them_for() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("source"), disk()).unwrap();
    let source = raw(disk());
    for (name, format, options) in kinds() {
        if name == "n.vdi" {
            // QEMU knows blocks of 1 MiB alone.
            continue;
        }
        let target = folder.path().join(name);
        let plan = Plan::new(&*source, &options, Cut::Parts(4)).unwrap();
        plan.prepare(&target).unwrap();
        run_all(&plan, &*source, &target);
        plan.seal(&target).unwrap();
        must(
            folder.path(),
            &format!("qemu-img compare -f raw -F {format} source {name}"),
        );
    }
}

#[test]
fn the_script_for_dask_is_python_and_says_how_it_is_used() {
    if !crate::support::has_tool("python3") {
        return;
    }
    let script = crate::support::root().join("examples/distributed/dask_convert.py");
    let folder = tempfile::tempdir().unwrap();
    let parse = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
    let mut python = Command::new("python3");
    crate::support::run(python.args(["-c", parse]).arg(&script));
    let mut python = Command::new("python3");
    let help = crate::support::run(python.arg(&script).arg("--help"));
    assert!(help.contains("--kill-one"), "{help}");
    let mut dask = Command::new("python3");
    dask.args(["-c", "import distributed"]);
    if !dask.output().unwrap().status.success() {
        skipped("Dask is not installed");
        return;
    }
    fs::write(folder.path().join("disk"), disk()).unwrap();
    let mut python = Command::new("python3");
    python.current_dir(folder.path()).arg(script);
    python.args([
        "--parts",
        "5",
        "--kill-one",
        "-f",
        "raw",
        "disk",
        "disk.raw",
    ]);
    python.arg("--command").arg(example("img-partition"));
    let told = crate::support::run(&mut python);
    assert!(told.contains("5 parts by"), "{told}");
    assert!(fs::read(folder.path().join("disk.raw")).unwrap() == disk());
}
