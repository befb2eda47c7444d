//! Repair by a second copy: footers, headers, region tables, grain tables, a log. The images are made by
//! others, the damage is done by hand, others judge the result, and no cut makes it worse.

#![allow(clippy::single_range_in_vec_init, reason = "a list of one is meant")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::crash::{Log, Op, Recorder, after, states};
use crate::support::patch::{self, grain_tables, made, pick};
use crate::support::{Rng, fails, goldens, has_tool, run, testdata};
use blockform::check::{Repair, Scope};
use blockform::salvage::Salvage;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockSourceExt, Error, OpenOptions, Result};

const MIB: usize = 1 << 20;
const CLUSTER: usize = 64 << 10;

/// The readable part of a disk.
#[derive(Debug, PartialEq)]
struct Readable {
    size: u64,
    /// By their places, the pieces of [`PIECE`] bytes that are not all zero.
    pieces: BTreeMap<u64, Vec<u8>>,
    lost: Vec<Range<u64>>,
}

const PIECE: u64 = 64 << 10;

impl Readable {
    /// `None` if it cannot be opened.
    fn of(image: &[u8], format: &str) -> Option<Self> {
        let options = OpenOptions::new().format(format);
        let image = options.open(Arc::new(Memory::new(image))).ok()?;
        let salvage = Salvage::of(image);
        let size = salvage.size();
        let mut pieces = BTreeMap::new();
        let mut next = 0;
        for extent in salvage.extents().map(Result::unwrap) {
            if extent.kind.reads_as_zero() {
                continue;
            }
            next = next.max(extent.start / PIECE * PIECE);
            while next < extent.end() {
                let len = usize::try_from(PIECE.min(size - next)).unwrap();
                let mut piece = vec![0; len];
                salvage.read_at(&mut piece, next).unwrap();
                if piece.iter().any(|byte| *byte != 0) {
                    pieces.insert(next, piece);
                }
                next += PIECE;
            }
        }
        let lost = salvage.losses().list;
        let lost = lost.iter().map(|loss| loss.start..loss.start + loss.length);
        Some(Readable {
            size,
            pieces,
            lost: lost.collect(),
        })
    }

    fn is_lost(&self, at: u64) -> bool {
        self.lost.iter().any(|range| range.contains(&at))
    }

    fn sector(&self, at: u64) -> &[u8] {
        let into = usize::try_from(at % PIECE).unwrap();
        let piece = self.pieces.get(&(at / PIECE * PIECE));
        piece.map_or(&[0; 512], |piece| &piece[into..piece.len().min(into + 512)])
    }

    /// Returns true if all that could be read before is there and the same.
    fn is_no_worse_than(&self, before: &Readable) -> bool {
        let starts = self.pieces.keys().chain(before.pieces.keys());
        let mut sectors = starts.flat_map(|at| (*at..(at + PIECE).min(before.size)).step_by(512));
        let same = sectors.all(|at| {
            before.is_lost(at) || !self.is_lost(at) && self.sector(at) == before.sector(at)
        });
        let mut lost = self
            .lost
            .iter()
            .flat_map(|range| range.clone().step_by(512));
        same && lost.all(|at| before.is_lost(at))
    }

    fn bytes(&self) -> Vec<u8> {
        assert!(self.lost.is_empty(), "{:?}", self.lost);
        let mut bytes = vec![0; usize::try_from(self.size).unwrap()];
        for (at, piece) in &self.pieces {
            let at = usize::try_from(*at).unwrap();
            bytes[at..at + piece.len()].copy_from_slice(piece);
        }
        bytes
    }
}

/// Mends an image and returns it, after a look at every state in which it could have been cut off.
fn mended(name: &str, image: &[u8], format: &str, corruptions: u64) -> Vec<u8> {
    let recorder = Recorder::of(image, Log::default());
    let options = OpenOptions::new().format(format);
    let repair = Repair::new(options, Scope::All);
    let repaired = repair.target(recorder.clone()).unwrap();
    assert_eq!(repaired.fixed.corruptions, corruptions, "{name}");
    let findings = repaired.checked.findings.unwrap();
    // Of blocks that were given back the header has no count that a check could know.
    let clean = findings.corruptions == 0 && findings.errors == 0;
    let counted = name == "would be written over";
    assert!(clean || corruptions == 0 || counted, "{name}: {findings:?}");
    let ops = recorder.log.take();
    assert!(matches!(ops.last(), None | Some(Op::Sync(_))), "{name}");
    let start = [image.to_vec()];
    let result = recorder.file.to_bytes();
    assert!(after(&start, &ops) == [result.clone()], "{name}");
    if let Some(before) = Readable::of(image, format) {
        states(&start, &ops, 3, &mut Rng(7), &mut |about, files| {
            let now = Readable::of(&files[0], format);
            let now = now.unwrap_or_else(|| panic!("{name}: {about}"));
            assert!(now.is_no_worse_than(&before), "{name}: {about}");
        });
    }
    // What is mended is mended.
    let again = Arc::new(Memory::new(result.clone()));
    let repair = Repair::new(OpenOptions::new().format(format), Scope::All);
    let repaired = repair.target(again.clone()).unwrap();
    assert_eq!(repaired.fixed.corruptions, 0, "{name}");
    assert!(again.to_bytes() == result, "{name}");
    result
}

fn in_folder(image: &[u8], name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, image).unwrap();
    (folder, path)
}

/// The disk that qemu-img reads from an image.
fn as_qemu_reads_it(image: &[u8], format: &str) -> Vec<u8> {
    let (folder, path) = in_folder(image, "image");
    let raw = folder.path().join("raw");
    let mut convert = Command::new("qemu-img");
    run(convert
        .args(["convert", "-f", format, "-O", "raw"])
        .arg(&path)
        .arg(&raw));
    fs::read(&raw).unwrap()
}

fn as_we_read_it(image: &[u8], format: &str) -> Vec<u8> {
    Readable::of(image, format).expect("it opens").bytes()
}

fn disk_of(len: usize) -> Vec<u8> {
    let mut disk = patch::full_disk(5, len);
    disk[len / 2..len / 2 + 2 * MIB.min(len / 8)].fill(0);
    disk
}

/// An old one has a footer of 511 bytes; libvhdi reads what is there.
fn vhdi_agrees(image: &[u8]) {
    if !has_tool("vhdiinfo") {
        return;
    }
    let (_folder, path) = in_folder(image, "image.vhd");
    run(Command::new("vhdiinfo").arg(&path));
}

#[test]
fn the_footers_of_a_vhd_mend_each_other() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = disk_of(10 * MIB);
    let sound = made(&disk, "vpc", &["-o", "subformat=dynamic,force_size=on"]);
    assert!(mended("sound", &sound, "vhd", 0) == sound);
    let end = sound.len() - 512;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = sound.clone();
        change(&mut image);
        image
    };
    let cases: [(&str, Vec<u8>); 7] = [
        ("copy", with(&|image| image[100] ^= 1)),
        ("copy's cookie", with(&|image| image[..512].fill(0))),
        ("footer", with(&|image| image[end + 100] ^= 1)),
        ("footer's cookie", with(&|image| image[end] ^= 1)),
        ("no footer", with(&|image| image.truncate(end))),
        ("half a footer", with(&|image| image.truncate(end + 300))),
        (
            "both, by the same wrong checksum",
            with(&|image| [0, end].iter().for_each(|at| image[at + 66] ^= 1)),
        ),
    ];
    for (name, image) in cases {
        let result = mended(name, &image, "vhd", 1);
        if name == "half a footer" {
            // It cannot be told from data: the new one stands behind it.
            assert_eq!(result[end + 512..], sound[end..], "{name}");
        } else {
            assert!(result == sound, "{name}");
        }
        assert!(as_qemu_reads_it(&result, "vpc") == disk, "{name}");
        vhdi_agrees(&result);
    }
    // A block is missing, too: a footer behind what is left would be one in the middle of it.
    let cut = with(&|image| image.truncate(end - 4096));
    assert!(mended("cut", &cut, "vhd", 0) == cut);
    // The start of a fixed disk is its guest's.
    let fixed = made(
        &sound[..end / 512 * 512],
        "vpc",
        &["-o", "subformat=fixed,force_size=on"],
    );
    assert!(mended("fixed", &fixed, "vhd", 0) == fixed);
    let mut damaged = fixed;
    let at = damaged.len() - 400;
    damaged[at] ^= 1;
    let repair = Repair::new(OpenOptions::new().format("vhd"), Scope::All);
    let file = Arc::new(Memory::new(damaged.clone()));
    let error = repair.target(file.clone()).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
    assert!(file.to_bytes() == damaged);
}

#[test]
fn the_checksum_of_a_vhds_header_is_mended_where_the_blocks_prove_the_rest() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = disk_of(10 * MIB);
    let sound = made(&disk, "vpc", &["-o", "subformat=dynamic,force_size=on"]);
    let header = 512;
    assert_eq!(&sound[header..header + 8], b"cxsparse");
    // Rubbish where no number of use is, and a wrong sum.
    let mut image = sound.clone();
    image[header + 37] ^= 1;
    let result = mended("sum", &image, "vhd", 1);
    assert!(result == sound);
    assert!(as_qemu_reads_it(&result, "vpc") == disk);
    // Another size of blocks, with which the blocks do not meet.
    let mut image = sound.clone();
    image[header + 33] = 0x10;
    image[header + 32 + 1..header + 36].copy_from_slice(&[0x10, 0, 0]);
    assert!(mended("block size", &image, "vhd", 0) == image);
}

#[test]
fn blocks_that_overlap_are_not_mended() {
    for (file, format) in [
        ("vhd/bad/block-twice.vhd", "vhd"),
        ("vdi/bad/block-twice.vdi", "vdi"),
    ] {
        let image = fs::read(testdata(file)).unwrap();
        assert!(mended(file, &image, format, 0) == image);
    }
}

#[test]
fn the_count_of_a_vdi_leads_behind_its_blocks() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = disk_of(20 * MIB);
    let sound = made(&disk, "vdi", &[]);
    let count_at = 72 + 316;
    for wrong in [0_u32, 3, 19] {
        let mut image = sound.clone();
        image[count_at..count_at + 4].copy_from_slice(&wrong.to_le_bytes());
        let result = mended("count", &image, "vdi", 1);
        assert!(result == sound, "{wrong}");
        let (_folder, path) = in_folder(&result, "image.vdi");
        run(Command::new("qemu-img")
            .args(["check", "-f", "vdi"])
            .arg(&path));
    }
    // A block that was given back: the next one goes behind the last all the same.
    let mut image = sound;
    let map = usize::try_from(u32::from_le_bytes(image[340..344].try_into().unwrap())).unwrap();
    image[map..map + 4].fill(0xff);
    assert!(mended("given back", &image, "vdi", 0) == image);
    let stored = u32::from_le_bytes(image[count_at..count_at + 4].try_into().unwrap());
    let mut less = image.clone();
    less[count_at..count_at + 4].copy_from_slice(&(stored - 1).to_le_bytes());
    assert!(mended("would be written over", &less, "vdi", 1) == image);
}

#[test]
fn the_grain_tables_of_a_vmdk_mend_each_other() {
    if !has_tool("qemu-img") {
        return;
    }
    // Two tables: one tells of 32 MiB.
    let mut disk = disk_of(40 * MIB);
    disk[2 * MIB..39 * MIB].fill(0);
    let mut sound = made(&disk, "vmdk", &[]);
    let [main, other, table, second] = grain_tables(&sound);
    assert!(mended("sound", &sound, "vmdk", 0) == sound);
    let judged = |name: &str, image: &[u8], whole: bool| {
        assert!(as_we_read_it(image, "vmdk") == disk, "{name}");
        assert!(as_qemu_reads_it(image, "vmdk") == disk, "{name}");
        assert!(!whole || image == sound, "{name}");
        if has_tool("vmdkinfo") {
            let (_folder, path) = in_folder(image, "image.vmdk");
            run(Command::new("vmdkinfo").arg(&path));
        }
    };
    let with = |ranges: &[(usize, usize)]| {
        let mut image = sound.clone();
        ranges
            .iter()
            .for_each(|(from, to)| image[*from..*to].fill(0xee));
        image
    };
    for (name, ranges, count) in [
        ("main entries", vec![(table + 40, table + 80)], 1),
        ("redundant entries", vec![(second + 40, second + 80)], 1),
        (
            "one in each",
            vec![(table + 40, table + 44), (second + 80, second + 84)],
            2,
        ),
        ("all of the main table", vec![(table, table + 2048)], 1),
        ("main directory", vec![(main, main + 4)], 1),
        ("all of the main directory", vec![(main, main + 8)], 2),
        ("redundant directory", vec![(other + 4, other + 8)], 1),
    ] {
        let result = mended(name, &with(&ranges), "vmdk", count);
        judged(name, &result, name != "all of the main directory");
    }
    for field in [56, 48] {
        let result = mended(
            "place of the directory",
            &with(&[(field, field + 8)]),
            "vmdk",
            1,
        );
        judged("place of the directory", &result, false);
    }
    // The table that an entry does not find is damaged where it was, too: it is written anew.
    let result = mended(
        "both",
        &with(&[(main, main + 4), (table, table + 4)]),
        "vmdk",
        1,
    );
    judged("both", &result, false);
    // A grain that two entries have, of which the other table knows better.
    let mut image = sound.clone();
    image.copy_within(table + 40..table + 44, table + 60);
    judged("twice", &mended("twice", &image, "vmdk", 1), true);
    // What the redundant one lacks.
    let mut image = sound.clone();
    image[second + 40..second + 44].fill(0);
    judged("behind", &mended("behind", &image, "vmdk", 1), true);
    // The disk stays what it is: what the first says counts, whatever the second one says.
    let mut image = sound.clone();
    image[table + 40..table + 44].fill(0);
    assert!(mended("ahead", &image, "vmdk", 0) == image);
    // Unless that is asked for; and what another has is not taken even then.
    let taken = |image: &[u8]| {
        let target = Arc::new(Memory::new(image));
        let options = OpenOptions::new().format("vmdk");
        let repaired = Repair::new(options, Scope::Redundant).target(target.clone());
        (repaired.unwrap(), target.to_bytes())
    };
    let (repaired, result) = taken(&image);
    assert!(repaired.fixed.corruptions == 1 && repaired.checked.findings.unwrap().is_clean());
    judged("ahead, and taken", &result, true);
    let mut image = sound.clone();
    image[main + 4..main + 8].fill(0);
    assert!(mended("no table", &image, "vmdk", 0) == image);
    let (repaired, result) = taken(&image);
    assert!(repaired.fixed.corruptions == 1 && repaired.checked.findings.unwrap().is_clean());
    judged("no table, and taken", &result, true);
    let mut image = sound.clone();
    image[table + 40..table + 44].fill(0);
    image.copy_within(second + 44..second + 48, second + 40);
    image.copy_within(second + 48..second + 52, second + 44);
    let (repaired, result) = taken(&image);
    assert!(repaired.checked.findings.unwrap().corruptions > 0);
    assert!(result[table..table + 2048] == image[table..table + 2048]);
    // In both nobody knows.
    let image = with(&[(table + 40, table + 44), (second + 40, second + 44)]);
    assert!(mended("lost", &image, "vmdk", 0) == image);
    // It was not closed, and all is well.
    let mut image = sound.clone();
    image[72] = 1;
    judged("unclean", &mended("unclean", &image, "vmdk", 0), true);
    // And if not all is, it says so still.
    sound[72] = 1;
    sound[table + 40..table + 44].fill(0);
    assert!(mended("unclean and ahead", &sound, "vmdk", 0) == sound);
}

#[test]
fn a_vmdk_without_a_second_copy_is_left_alone() {
    for file in [
        "streamOptimized.vmdk",
        "twoGbMaxExtentSparse.vmdk",
        "cowd-delta.bin",
    ] {
        let image = fs::read(testdata(&format!("vmdk/good/{file}"))).unwrap();
        let target = Arc::new(Memory::new(image.clone()));
        let repair = Repair::new(OpenOptions::new().format("vmdk"), Scope::All);
        let repaired = repair.target(target.clone());
        assert_eq!(repaired.is_ok(), file == "streamOptimized.vmdk", "{file}");
        assert!(target.to_bytes() == image, "{file}");
    }
}

/// The pages of an image, put where they belong.
fn of_pages(path: &Path) -> Vec<u8> {
    let pages = fs::read(path).unwrap();
    let number = |at: usize| {
        usize::try_from(u64::from_le_bytes(pages[at..at + 8].try_into().unwrap())).unwrap()
    };
    let mut image = vec![0; number(0)];
    for at in (8..pages.len()).step_by(8 + 4096) {
        let start = number(at);
        image[start..start + 4096].copy_from_slice(&pages[at + 8..at + 8 + 4096]);
    }
    image
}

#[test]
fn the_log_of_a_vhdx_is_written_back() {
    let image = of_pages(&testdata("vhdx/good/hyperv-log.pages"));
    let before = Readable::of(&image, "vhdx");
    let result = mended("log", &image, "vhdx", 1);
    let options = OpenOptions::new().format("vhdx");
    let open = |bytes: &[u8]| options.open(Arc::new(Memory::new(bytes))).unwrap();
    assert!(open(&image).info().dirty && !open(&result).info().dirty);
    assert!(Readable::of(&result, "vhdx") == before && before.unwrap().lost.is_empty());
    if !has_tool("qemu-img") {
        return;
    }
    // QEMU refuses to read the one as it is, and has nothing to do for the other.
    let (_folder, path) = in_folder(&result, "image.vhdx");
    let told = run(Command::new("qemu-img")
        .args(["check", "-f", "vhdx"])
        .arg(&path));
    assert!(told.contains("No errors were found"), "{told}");
    let (_folder, theirs) = in_folder(&image, "theirs.vhdx");
    let mut check = Command::new("qemu-img");
    check
        .args(["check", "-q", "-r", "all", "-f", "vhdx"])
        .arg(&theirs);
    check.output().unwrap();
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "vhdx", "-F", "vhdx"]);
    run(compare.arg(&path).arg(&theirs));
}

#[test]
fn the_copies_of_a_vhdx_mend_each_other() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = disk_of(10 * MIB);
    let sound = made(&disk, "vhdx", &["-o", "block_size=1M"]);
    assert!(mended("sound", &sound, "vhdx", 0) == sound);
    for (name, at, count) in [
        ("first header", CLUSTER + 20, 1),
        ("second header", 2 * CLUSTER + 20, 1),
        ("first region table", 3 * CLUSTER + 20, 1),
        ("second region table", 4 * CLUSTER + 20, 1),
    ] {
        let mut image = sound.clone();
        image[at] ^= 1;
        let result = mended(name, &image, "vhdx", count);
        if name.contains("region") {
            assert!(result == sound, "{name}");
        }
        // With either copy gone, the other is enough.
        for gone in [CLUSTER, 2 * CLUSTER, 3 * CLUSTER, 4 * CLUSTER] {
            let mut image = result.clone();
            image[gone + 20] ^= 1;
            assert!(as_we_read_it(&image, "vhdx") == disk, "{name} {gone}");
        }
        assert!(as_qemu_reads_it(&result, "vhdx") == disk, "{name}");
    }
    // Two tables that are sound and differ: nobody knows.
    let mut image = sound;
    image[3 * CLUSTER..4 * CLUSTER].fill(0);
    image[4 * CLUSTER..5 * CLUSTER].fill(0);
    let repair = Repair::new(OpenOptions::new().format("vhdx"), Scope::All);
    let file = Arc::new(Memory::new(image.clone()));
    fails!(
        repair.target(file.clone()),
        Error::Malformed { .. },
        "region table"
    );
    assert!(file.to_bytes() == image);
}

#[test]
fn only_leaks_means_only_leaks() {
    let image = of_pages(&testdata("vhdx/good/hyperv-log.pages"));
    let file = Arc::new(Memory::new(image.clone()));
    let repair = Repair::new(OpenOptions::new(), Scope::Leaks);
    assert_eq!(repair.target(file.clone()).unwrap().fixed.corruptions, 0);
    assert!(file.to_bytes() == image);
}

/// Whatever bytes are wrong, what could be read before a repair can be read after it.
#[test]
fn no_damage_is_made_worse() {
    let mut random = Rng(78);
    for golden in goldens() {
        let image = fs::read(&golden.path).unwrap();
        let is_mended = ["vhd", "vdi", "vmdk"].contains(&golden.format.as_str());
        if image.len() > 2 * MIB || golden.size() > 8 << 20 || golden.has_needs() || !is_mended {
            continue;
        }
        for _ in 0..20 {
            let mut damaged = image.clone();
            let near = [512, 4096, image.len() as u64][pick(&mut random, 3)];
            let at = pick(&mut random, near.min(image.len() as u64));
            let end = (at + 1 + pick(&mut random, 8)).min(image.len());
            damaged[at..end].fill([0, 0xff, 0x5a][pick(&mut random, 3)]);
            if random.below(4) == 0 {
                damaged.truncate(pick(&mut random, image.len() as u64));
            }
            let file = Arc::new(Memory::new(damaged.clone()));
            let options = OpenOptions::new().format(&golden.format);
            // What cannot be mended at all is an error.
            let _ = Repair::new(options, Scope::All).target(file.clone());
            if let Some(before) = Readable::of(&damaged, &golden.format) {
                let after =
                    Readable::of(&file.to_bytes(), &golden.format).expect("it opened before");
                assert!(after.is_no_worse_than(&before), "{} {at}", golden.file);
            }
        }
    }
}
