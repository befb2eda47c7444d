//! The verb check: as a library call, and as `img-check` beside `qemu-img check`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::command::{example, has_qemu, run};
use crate::support::patch::{be64, le32, le64, put_be32, put_be64, put_le32, put_le64};
use crate::support::{goldens, sample_disk, testdata};
use blockform::check::{Checked, FindingKind, Findings};
use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockSource, DetachReferences, Error, Limits, OpenOptions, PathPolicy};
use serde_json::Value;

fn check_bytes(bytes: Vec<u8>, format: &str) -> Findings {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let options = OpenOptions::new()
        .format(format)
        .resolver(Arc::new(DetachReferences));
    let checked = Checked::of_source(&source, &options).unwrap();
    checked.findings.expect("the format has something to check")
}

/// The verdict of `qemu-img check` on a file, if it completes: its exit status and its JSON.
fn qemu_check(path: &Path, format: &str) -> Option<(i32, Value)> {
    let format = if format == "vhd" { "vpc" } else { format };
    let folder = path.parent().unwrap();
    let arguments = ["check", "-U", "-f", format, "--output", "json"];
    let name = path.file_name().unwrap().to_str().unwrap();
    let out = run(folder, "qemu-img", arguments.into_iter().chain([name]));
    // It aborts over some images.
    let status = out.status.code()?;
    match status {
        0 | 2 | 3 => Some((status, serde_json::from_slice(&out.stdout).unwrap())),
        _ => None,
    }
}

/// The verdict of `img-check`: its exit status, and its JSON without our own key.
fn our_check(path: &Path, format: &str) -> (i32, Value) {
    let folder = path.parent().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let arguments = [
        "-f",
        format,
        "--output",
        "json",
        "--allow-references=same-dir",
        name,
    ];
    let out = run(folder, example("img-check"), arguments);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    let mut json: Value =
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{name}: {told}"));
    json.as_object_mut().unwrap().remove("blockform");
    (out.status.code().unwrap(), json)
}

/// Images that can be read, though something is wrong with them on purpose.
const ODD: [&str; 8] = [
    "vhd/good/copy-damaged.vhd",
    "vhd/good/footer-damaged.vhd",
    "vhd/good/no-footer.vhd",
    "vhd/good/copy-missing.vhd",
    "vdi/good/last-block-short.vdi",
    "parallels/good/in-use.parallels",
    "qcow2/good/dirty.qcow2",
    "qcow2/good/corrupt.qcow2",
];

#[test]
fn sound_images_are_clean_and_qemu_img_says_the_same() {
    let qemu = has_qemu();
    let mut compared = 0;
    for golden in goldens() {
        if golden.format == "raw" || golden.format == "ova" {
            continue;
        }
        let checked = Checked::of_path(&golden.path, &golden.options()).unwrap();
        let findings = checked.findings.unwrap();
        let told = findings.told();
        if !ODD.contains(&golden.file.as_str()) {
            assert!(findings.is_clean(), "{}: {told:?}", golden.file);
        }
        // QEMU forgets the clusters of the bitmaps of Parallels.
        if !qemu || golden.file == "parallels/good/bitmap.parallels" {
            continue;
        }
        if let Some(theirs) = qemu_check(&golden.path, &golden.format) {
            assert_eq!(
                our_check(&golden.path, &golden.format),
                theirs,
                "{}",
                golden.file
            );
            compared += 1;
        }
    }
    assert!(!qemu || compared > 50, "{compared}");
}

#[test]
fn what_we_write_is_clean() {
    let disk = sample_disk(5, 9 << 20);
    let scratch = tempfile::tempdir().unwrap();
    let qemu = has_qemu();
    for (format, compress, options) in [
        ("qcow2", false, ""),
        ("qcow2", false, "cluster_size=512,refcount_bits=1"),
        ("qcow2", false, "cluster_size=4k,refcount_bits=64"),
        ("qcow2", true, "cluster_size=64k"),
        ("qcow2", true, "cluster_size=4k,compression_type=zstd"),
        ("qcow2", false, "extended_l2=on"),
        ("qcow2", false, "preallocation=metadata"),
        ("qcow2", true, "compat=0.10"),
        ("vmdk", false, "subformat=monolithicSparse"),
        ("vmdk", false, "subformat=streamOptimized"),
        ("vmdk", false, "subformat=twoGbMaxExtentSparse"),
        ("vmdk", false, "subformat=monolithicFlat"),
        ("vhd", false, "subformat=dynamic"),
        ("vhd", false, "subformat=fixed"),
        ("vhdx", false, ""),
        ("vhdx", false, "subformat=fixed"),
        ("vdi", false, ""),
        ("vdi", false, "static=on"),
    ] {
        if compress
            && !crate::support::can_unpack(if options.contains("zstd") {
                "zstd"
            } else {
                "zlib"
            })
            || options.contains("streamOptimized") && !crate::support::can_unpack("zlib")
        {
            continue;
        }
        let path = scratch.path().join(format!("disk.{format}"));
        let mut convert = ConvertOptions::to(format).compress(compress);
        for (name, value) in blockform::image::parse_options(options).unwrap() {
            convert = convert.option(name, value);
        }
        let source = Memory::new(disk.clone());
        convert.convert_to_path(&source, &path).unwrap();
        let open = OpenOptions::new()
            .format(format)
            .references(PathPolicy::SameDirectory);
        let findings = Checked::of_path(&path, &open).unwrap().findings.unwrap();
        assert!(
            findings.is_clean(),
            "{format} {options}: {:?}",
            findings.told()
        );
        if let Some(theirs) = qemu.then(|| qemu_check(&path, format)).flatten() {
            assert_eq!(our_check(&path, format), theirs, "{format} {options}");
        }
    }
}

/// Places of the tables of a qcow2 image, and of the first of their entries that is in use.
struct Layout {
    l1: usize,
    l2: usize,
    refcount_table: usize,
    refcount_block: usize,
    snapshots: usize,
    /// Entries of the first L2 table that are clusters stored as they are.
    stored: Vec<usize>,
    /// Those that are packed.
    packed: Vec<usize>,
}

impl Layout {
    fn of(bytes: &[u8]) -> Self {
        let offset = |at| usize::try_from(be64(bytes, at) & 0x00ff_ffff_ffff_fe00).unwrap();
        let cluster = 1_usize << bytes[23];
        let (l1, refcount_table) = (offset(40), offset(48));
        let first = (l1..).step_by(8).find(|at| be64(bytes, *at) != 0).unwrap();
        let l2 = offset(first);
        let entries = || (l2..l2 + cluster).step_by(8);
        Layout {
            l1: first,
            l2,
            refcount_table,
            refcount_block: offset(refcount_table),
            snapshots: offset(64),
            stored: entries().filter(|at| be64(bytes, *at) >> 62 == 2).collect(),
            packed: entries()
                .filter(|at| be64(bytes, *at) >> 62 & 1 == 1)
                .collect(),
        }
    }
}

/// One thing that is wrong: its name, the image it is done to, how, the structure that is named, and how
/// many corruptions and leaks there are.
type Damage = (
    &'static str,
    &'static str,
    fn(&mut Vec<u8>, &Layout),
    &'static str,
    (u64, u64),
);

const DAMAGES: [Damage; 27] = [
    (
        "a count too low",
        "cluster-4k",
        |b, l| b[l.refcount_block + 1] = 0,
        "refcount",
        (1, 0),
    ),
    (
        "a count too high",
        "cluster-4k",
        |b, l| b[l.refcount_block + 1] = 2,
        "refcount",
        (0, 1),
    ),
    (
        "a leaked cluster",
        "cluster-4k",
        |b, l| {
            let clusters = b.len().div_ceil(4096);
            b.resize((clusters + 1) * 4096, 1);
            b[l.refcount_block + 2 * clusters + 1] = 1;
        },
        "refcount",
        (0, 1),
    ),
    (
        "an L2 table lost",
        "cluster-4k",
        |b, l| put_be64(b, l.l1, 0),
        "refcount",
        (0, 7),
    ),
    (
        "an L1 entry with a reserved bit",
        "cluster-4k",
        |b, l| b[l.l1 + 7] |= 1,
        "L1 table",
        (1, 0),
    ),
    (
        "an L1 entry without the copied flag",
        "cluster-4k",
        |b, l| b[l.l1] = 0,
        "L1 table",
        (1, 0),
    ),
    (
        "an L2 entry with a reserved bit",
        "cluster-4k",
        |b, l| b[l.stored[0] + 7] |= 2,
        "L2 table",
        (1, 0),
    ),
    (
        "an L2 entry without the copied flag",
        "cluster-4k",
        |b, l| b[l.stored[0]] = 0,
        "L2 table",
        (1, 0),
    ),
    (
        "two entries for one cluster",
        "cluster-4k",
        |b, l| {
            let first = be64(b, l.stored[0]);
            put_be64(b, l.stored[1], first);
        },
        "refcount",
        (1, 1),
    ),
    (
        "a cluster that is an L2 table",
        "cluster-4k",
        |b, l| {
            put_be64(b, l.stored[0], 1 << 63 | l.l2 as u64);
        },
        "refcount",
        (1, 1),
    ),
    (
        "a cluster past the end",
        "cluster-4k",
        |b, l| put_be64(b, l.stored[0], 1 << 63 | 1 << 40),
        "data cluster",
        (2, 1),
    ),
    (
        "a cluster that is not aligned",
        "cluster-4k",
        |b, l| b[l.stored[0] + 6] |= 2,
        "L2 table",
        (2, 0),
    ),
    (
        "a packed cluster past the end",
        "zlib",
        |b, l| b[l.packed[0] + 4] |= 0x80,
        "packed cluster",
        (1, 1),
    ),
    (
        "a packed cluster with the copied flag",
        "zlib",
        |b, l| b[l.packed[0]] |= 0x80,
        "L2 table",
        (1, 0),
    ),
    (
        "a packed cluster that begins within another, counted right",
        "zlib",
        |b, l| {
            let first = be64(b, l.packed[0]);
            put_be64(b, l.packed[0], first + 512);
        },
        "packed cluster",
        (1, 0),
    ),
    (
        "a packed cluster that ends where another does not, counted right",
        "zlib",
        |b, l| {
            let first = be64(b, l.packed[0]);
            put_be64(b, l.packed[1], first - (1 << 58));
        },
        "packed cluster",
        (1, 1),
    ),
    (
        "a packed cluster within one that is not, counted right",
        "zlib",
        |b, l| {
            let (stored, packed) = (be64(b, l.stored[0]), be64(b, l.packed[0]));
            let cluster = |entry: u64| usize::try_from((entry & 0xffff_ffff) / 4096).unwrap();
            put_be64(b, l.stored[0], stored & !(1 << 63));
            put_be64(b, l.packed[0], 1 << 62 | (stored & 0xffff_ffff));
            b[l.refcount_block + 2 * cluster(stored) + 1] += 1;
            b[l.refcount_block + 2 * cluster(packed) + 1] -= 1;
        },
        "refcount",
        (1, 0),
    ),
    (
        "a refcount table entry with a reserved bit",
        "cluster-4k",
        |b, l| b[l.refcount_table + 7] |= 1,
        "refcount table",
        (1, 1),
    ),
    (
        "a refcount block past the end",
        "cluster-4k",
        |b, l| {
            put_be64(b, l.refcount_table, 1 << 40);
        },
        "refcount table",
        (18, 0),
    ),
    (
        "the same refcount block twice",
        "cluster-4k",
        |b, l| {
            let first = be64(b, l.refcount_table);
            put_be64(b, l.refcount_table + 8, first);
        },
        "refcount table",
        (2, 0),
    ),
    (
        "no refcount block",
        "cluster-4k",
        |b, l| put_be64(b, l.refcount_table, 0),
        "refcount",
        (17, 0),
    ),
    (
        "a structure that is data too, counted right",
        "cluster-4k",
        |b, l| {
            let last = be64(b, l.stored[0]) & 0x00ff_ffff_ffff_fe00;
            let cluster = usize::try_from(last / 4096).unwrap();
            put_be64(b, l.stored[0], l.refcount_table as u64);
            b[l.refcount_block + 2 * cluster + 1] = 0;
            b[l.refcount_block + 2 * (l.refcount_table / 4096) + 1] = 2;
        },
        "refcount",
        (1, 0),
    ),
    (
        "a count of 1 bit with two references",
        "refcount-1",
        |b, l| {
            let first = be64(b, l.stored[0]);
            put_be64(b, l.stored[1], first);
        },
        "data cluster",
        (1, 1),
    ),
    (
        "subclusters stored and zero",
        "extended",
        |b, l| {
            let entry = l
                .stored
                .iter()
                .find(|at| be64(b, **at + 8) & 1 == 1)
                .unwrap();
            b[entry + 11] |= 1;
        },
        "L2 table",
        (1, 0),
    ),
    (
        "a snapshot's L1 table that is not aligned",
        "snapshots",
        |b, l| b[l.snapshots + 6] |= 2,
        "L1 table",
        (1, 0),
    ),
    (
        "a bitmap's table with reserved bits",
        "bitmaps",
        |b, _| {
            let place = b
                .windows(4)
                .position(|w| w == [0x23, 0x85, 0x28, 0x75])
                .unwrap();
            let directory = usize::try_from(be64(b, place + 8 + 16)).unwrap();
            let table = usize::try_from(be64(b, directory)).unwrap();
            b[table] |= 0x80;
        },
        "bitmap table",
        (1, 1),
    ),
    (
        "an entry of version 2 with the zero flag",
        "v2",
        |b, l| b[l.stored[0] + 7] |= 1,
        "L2 table",
        (1, 0),
    ),
];

/// Images whose counts are ours alone: QEMU knows no rule there, or goes on in another way.
const NOT_QEMU: [&str; 7] = [
    "a packed cluster that begins within another, counted right",
    "a packed cluster that ends where another does not, counted right",
    "a packed cluster within one that is not, counted right",
    "a structure that is data too, counted right",
    "a snapshot's L1 table that is not aligned",
    "a bitmap's table with reserved bits",
    "an entry of version 2 with the zero flag",
];

#[test]
fn every_kind_of_damage_is_found_and_counted_as_qemu_img_counts() {
    let qemu = has_qemu();
    let scratch = tempfile::tempdir().unwrap();
    for (name, image, edit, structure, counts) in DAMAGES {
        if !crate::support::can_unpack(image) {
            continue;
        }
        let mut bytes = fs::read(testdata(&format!("qcow2/good/{image}.qcow2"))).unwrap();
        let layout = Layout::of(&bytes);
        assert!(check_bytes(bytes.clone(), "qcow2").is_clean(), "{image}");
        edit(&mut bytes, &layout);
        let path = scratch.path().join("disk.qcow2");
        fs::write(&path, &bytes).unwrap();
        let findings = check_bytes(bytes, "qcow2");
        let found = (findings.corruptions, findings.leaks);
        let theirs = qemu.then(|| qemu_check(&path, "qcow2")).flatten();
        if let Some((_, json)) = theirs.filter(|_| !NOT_QEMU.contains(&name)) {
            let count = |key: &str| json[key].as_u64().unwrap_or(0);
            assert_eq!(
                found,
                (count("corruptions"), count("leaks")),
                "{name}: {:?}",
                findings.told()
            );
        }
        assert_eq!(found, counts, "{name}: {:?}", findings.told());
        let mut told = findings.told().iter();
        assert!(
            told.any(|f| f.structure == structure),
            "{name}: {:?}",
            findings.told()
        );
    }
}

/// The places of the entries of a table of 32-bit numbers that are in use.
fn used32(bytes: &[u8], at: usize, count: usize, unused: &[u32]) -> Vec<usize> {
    let places = (at..at + 4 * count).step_by(4);
    places
        .filter(|at| !unused.contains(&le32(bytes, *at)))
        .collect()
}

/// A disk written by our own writer, which the tests of the writers judge with other readers.
fn written(format: &str, options: &str) -> Vec<u8> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let mut convert = ConvertOptions::to(format);
    for (name, value) in blockform::image::parse_options(options).unwrap() {
        convert = convert.option(name, value);
    }
    let source = Memory::new(sample_disk(3, 9 << 20));
    convert.convert_to_path(&source, &path).unwrap();
    fs::read(&path).unwrap()
}

/// Damages an image, and returns what is found; before, nothing is.
fn damaged(format: &str, image: &[u8], edit: impl FnOnce(&mut Vec<u8>)) -> Findings {
    let before = check_bytes(image.to_vec(), format);
    assert!(before.is_clean(), "{format}: {:?}", before.told());
    let mut bytes = image.to_vec();
    edit(&mut bytes);
    check_bytes(bytes, format)
}

#[track_caller]
fn expect(findings: &Findings, corruptions: u64, leaks: u64, structure: &str, words: &str) {
    let told = findings.told();
    let counts = (findings.corruptions, findings.leaks);
    assert_eq!(counts, (corruptions, leaks), "{told:?}");
    let named = |kind| kind != FindingKind::Note;
    let mut named = told.iter().filter(|finding| named(finding.kind));
    let hit = named.any(|f| f.structure == structure && f.problem.contains(words));
    assert!(hit, "{told:?}");
}

#[test]
fn damage_of_vdi_is_found() {
    let image = written("vdi", "");
    let map = usize::try_from(le32(&image, 72 + 268)).unwrap();
    let used = used32(&image, map, 9, &[u32::MAX, u32::MAX - 1]);
    let find = |edit: fn(&mut Vec<u8>, &[usize])| damaged("vdi", &image, |b| edit(b, &used));
    let found = find(|b, used| put_le32(b, used[0], 7000));
    expect(&found, 2, 0, "block map", "there are");
    let found = find(|b, used| {
        let first = le32(b, used[0]);
        put_le32(b, used[1], first);
    });
    expect(&found, 1, 0, "block", "two entries");
    let found = find(|b, _| b.truncate(b.len() - (1 << 19)));
    expect(&found, 1, 0, "block map", "past the end");
    let found = find(|b, _| put_le32(b, 72 + 316, 2));
    expect(&found, 1, 0, "header", "blocks_allocated");
}

#[test]
fn damage_of_vhd_is_found() {
    let image = written("vhd", "subformat=dynamic");
    let find = |edit: fn(&mut Vec<u8>, usize)| {
        let table = usize::try_from(be64(&image, 512 + 16)).unwrap();
        damaged("vhd", &image, |b| edit(b, table))
    };
    expect(&find(|b, _| b[100] ^= 1), 1, 0, "footer", "damaged");
    let found = find(|b, _| b.truncate(b.len() - 512));
    expect(&found, 1, 0, "footer", "missing");
    expect(
        &find(|b, _| b[512 + 500] ^= 1),
        1,
        0,
        "dynamic disk header",
        "wrong",
    );
    let found = find(|b, table| b.copy_within(table..table + 4, table + 4));
    expect(&found, 1, 0, "block", "two entries");
    let found = find(|b, table| b[table..table + 4].copy_from_slice(&[0, 0, 0, 1]));
    expect(
        &found,
        1,
        0,
        "block allocation table",
        "in the block allocation table",
    );
    let found = find(|b, table| b[table] = 0x7f);
    expect(&found, 1, 0, "block allocation table", "past the end");
}

#[test]
fn data_that_a_bitmap_of_vhd_hides_is_found() {
    let mut disk = sample_disk(6, 9 << 20);
    disk[4 << 20..][..1 << 20].fill(0);
    disk[8 << 9..][..512].fill(3);
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("disk.raw"), &disk).unwrap();
    let path = scratch.path().join("disk.vhd");
    let convert = ConvertOptions::to("vhd").option("subformat", "dynamic");
    let convert = convert.option("force_size", "on");
    convert.convert_to_path(&Memory::new(disk), &path).unwrap();
    let image = fs::read(&path).unwrap();
    let table = usize::try_from(be64(&image, 512 + 16)).unwrap();
    let block = |index: usize| {
        let raw = image[table + 4 * index..][..4].try_into().unwrap();
        usize::try_from(u32::from_be_bytes(raw)).unwrap() * 512
    };
    assert!(damaged("vhd", &image, |_| {}).is_clean());
    // Whether a sector of zeros was written or not is one.
    let found = damaged("vhd", &image, |b| b[block(2)..][..128].fill(0));
    assert!(found.is_clean(), "{:?}", found.told());
    let hide = |b: &mut Vec<u8>| b[block(0) + 1] &= 0x7f;
    let found = damaged("vhd", &image, hide);
    expect(&found, 1, 0, "sector bitmap", "that 1 sectors");
    let place = (found.told()[0].offset, found.told()[0].guest);
    assert_eq!(place, (Some(block(0) as u64), Some(8 << 9)));
    // Two entries of one block are damage of their own, and it is not looked into.
    let found = damaged("vhd", &image, |b| {
        hide(b);
        b.copy_within(table..table + 4, table + 4);
    });
    expect(&found, 1, 0, "block", "two entries");
    // 7-Zip minds the bitmap, and QEMU does not: so much for what the disk holds.
    if has_qemu() && crate::support::has_tool("7z") {
        let mut bytes = image.clone();
        hide(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let theirs = |program: &str, line: &str| {
            let out = run(scratch.path(), program, line.split_whitespace());
            out.status.success()
        };
        assert!(theirs(
            "qemu-img",
            "compare -f vpc -F raw disk.vhd disk.raw"
        ));
        assert!(!theirs("7z", "t disk.vhd"));
        fs::write(&path, &image).unwrap();
        assert!(theirs("7z", "t disk.vhd"));
    }
}

/// Makes the sum of a header or a footer of VHD right.
fn sum_vhd(bytes: &mut [u8], at: usize, len: usize, checksum: usize) {
    bytes[at + checksum..at + checksum + 4].fill(0);
    let sum: u32 = bytes[at..at + len]
        .iter()
        .map(|byte| u32::from(*byte))
        .sum();
    put_be32(bytes, at + checksum, !sum);
}

/// As Xen makes them: the second one stands behind the table, and says which blocks are there as a whole.
#[test]
fn two_bitmaps_of_a_vhd_say_the_same() {
    let mut image = fs::read(testdata("vhd/good/child-name-only.vhd")).unwrap();
    let footer = image.split_off(image.len() - 512);
    let table = usize::try_from(be64(&image, 512 + 16)).unwrap();
    let mut entries = image[table..table + 512].to_vec();
    let sector = entries.chunks(4).position(|raw| raw != [0xff; 4]).unwrap();
    let block = usize::try_from(u32::from_be_bytes(
        entries[sector * 4..][..4].try_into().unwrap(),
    ));
    let block = block.unwrap() * 512;
    assert_ne!(image[block..block + 512], [0xff; 512]);
    let moved = image.len();
    image.append(&mut entries);
    put_be64(&mut image, 512 + 16, moved as u64);
    put_be32(&mut image, 512 + 28, 512 / 4);
    sum_vhd(&mut image, 512, 1024, 36);
    let batmap = image.len();
    image.resize(batmap + 1024, 0);
    image[batmap..batmap + 8].copy_from_slice(b"tdbatmap");
    put_be64(&mut image, batmap + 8, batmap as u64 + 512);
    put_be32(&mut image, batmap + 16, 1);
    put_be32(&mut image, batmap + 20, 0x0001_0002);
    let end = image.len();
    image.extend(footer);
    for at in [0, end] {
        image[at + 28..at + 32].copy_from_slice(b"tap\0");
        put_be32(&mut image, at + 32, 0x0001_0003);
        sum_vhd(&mut image, at, 512, 64);
    }
    let full = |b: &mut Vec<u8>| {
        b[batmap + 512 + sector / 8] |= 0x80 >> (sector % 8);
        let sum: u32 = b[batmap + 512..batmap + 1024]
            .iter()
            .map(|byte| u32::from(*byte))
            .sum();
        put_be32(b, batmap + 24, !sum);
    };
    put_be32(&mut image, batmap + 24, !0);
    let found = damaged("vhd", &image, |_| {});
    assert!(found.is_clean(), "{:?}", found.told());
    expect(
        &damaged("vhd", &image, full),
        1,
        0,
        "sector bitmap",
        "bitmap of full blocks",
    );
    let found = damaged("vhd", &image, |b| {
        full(b);
        b[block..block + 512].fill(0xff);
    });
    assert!(found.is_clean(), "{:?}", found.told());
}

#[test]
fn damage_of_vhdx_is_found() {
    let image = written("vhdx", "");
    // The first entry of the region table is that of the block allocation table, or the second.
    let entry = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    let regions = 192 << 10;
    let bat_first = image[regions + 16..regions + 20] == 0x2dc2_7766_u32.to_le_bytes();
    let bat = entry(regions + 16 + if bat_first { 16 } else { 48 });
    let bat = usize::try_from(bat).unwrap();
    let find = |edit: fn(&mut Vec<u8>, usize)| damaged("vhdx", &image, |b| edit(b, bat));
    expect(&find(|b, bat| b[bat] |= 8), 1, 0, "BAT", "reserved bits");
    expect(
        &find(|b, bat| b[bat] = 4),
        1,
        0,
        "BAT",
        "a state that is none",
    );
    expect(&find(|b, bat| b[bat] = 7), 1, 0, "BAT", "no parent");
    expect(&find(|b, bat| b[bat + 6] = 1), 1, 0, "BAT", "past the end");
    let found = find(|b, bat| b[bat..bat + 8].copy_from_slice(&(1 << 20 | 6_u64).to_le_bytes()));
    expect(&found, 1, 0, "BAT", "in the BAT region");
    let found = damaged("vhdx", &image, |b| b[(64 << 10) + 8] ^= 1);
    assert!(found.is_clean(), "one header is enough");
    assert_eq!(found.told()[0].kind, FindingKind::Note);
    assert_eq!(found.told()[0].structure, "header");
}

#[test]
fn two_blocks_of_vhdx_share_no_bytes() {
    let source = Memory::new(sample_disk(3, 70 << 20));
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    let convert = ConvertOptions::to("vhdx").option("block_size", "1M");
    convert.convert_to_path(&source, &path).unwrap();
    let image = fs::read(&path).unwrap();
    let bat = (0..image.len())
        .step_by(1 << 20)
        .find(|at| *at > 0 && image[*at] == 6 && image[*at + 8] == 6)
        .unwrap();
    let found = damaged("vhdx", &image, |b| b.copy_within(bat..bat + 8, bat + 8));
    expect(&found, 1, 0, "BAT", "another block");
}

#[test]
fn damage_of_vmdk_is_found() {
    let image = written("vmdk", "subformat=monolithicSparse");
    let sectors = |at: usize| usize::try_from(le64(&image, at)).unwrap() * 512;
    let (redundant, directory) = (sectors(48), sectors(56));
    let table = usize::try_from(le32(&image, directory)).unwrap() * 512;
    let used = used32(&image, table, 144, &[0]);
    let find = |edit: &dyn Fn(&mut Vec<u8>)| damaged("vmdk", &image, |b| edit(b));
    let found = find(&|b| put_le32(b, directory, 1 << 30));
    expect(&found, 1, 0, "grain table", "past the end");
    let found = find(&|b| {
        let first = le32(b, used[0]);
        put_le32(b, used[1], first);
    });
    expect(&found, 2, 0, "grain", "two entries");
    let found = find(&|b| put_le32(b, used[0], 1 << 30));
    expect(&found, 1, 0, "grain table", "past the end");
    let found = find(&|b| put_le32(b, used[0], u32::try_from(directory / 512).unwrap()));
    expect(&found, 1, 0, "grain table", "in the grain table");
    let found = find(&|b| b.copy_within(directory..directory + 4, redundant));
    expect(&found, 1, 0, "grain table", "overlaps");
    // Of two copies that differ, both of which make sense, one is wrong.
    let second = usize::try_from(le32(&image, redundant)).unwrap() * 512;
    let copy = |at: usize| at - table + second;
    for (one, two, corruptions) in [
        (Some(0), None, 1),
        (None, Some(0), 0),
        (Some(1), None, 1),
        (None, Some(le32(&image, used[1])), 1),
        (None, Some(1), 0),
        (None, Some(1 << 30), 0),
    ] {
        let found = find(&|b| {
            for (at, entry) in [(used[0], one), (copy(used[0]), two)] {
                entry.into_iter().for_each(|entry| put_le32(b, at, entry));
            }
        });
        let told = found.told();
        assert!(told.iter().any(|f| f.kind == FindingKind::Note), "{told:?}");
        assert_eq!(found.corruptions, corruptions, "{one:?} {two:?} {told:?}");
    }
    let found = find(&|b| put_le32(b, directory, 0));
    expect(&found, 1, 0, "redundant grain directory", "has a table");
    assert!(find(&|b| put_le32(b, redundant, 0)).is_clean());
}

#[test]
fn damage_of_a_stream_is_found() {
    if !crate::support::can_unpack("zlib") {
        return;
    }
    let image = written("vmdk", "subformat=streamOptimized");
    let found = damaged("vmdk", &image, |b| b.truncate(b.len() / 2 / 512 * 512));
    expect(&found, 1, 0, "stream", "no footer");
    // The first grain stands behind what the header calls overhead.
    let first = usize::try_from(le64(&image, 64)).unwrap() * 512;
    let found = damaged("vmdk", &image, |b| b[first] ^= 1);
    expect(&found, 1, 0, "grain table", "no grain");
}

#[test]
fn damage_of_qed_qcow_and_parallels_is_found_and_counted_as_qemu_img_counts() {
    let qemu = has_qemu();
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    type Edit = fn(&mut Vec<u8>);
    let cases: [(&str, &str, Edit, (u64, u64)); 7] = [
        (
            "qed",
            "qed/good/some.qed",
            |b| {
                let at = qed_l1(b);
                put_le64(b, at, 1 << 40);
            },
            (1, 8),
        ),
        (
            "qed",
            "qed/good/some.qed",
            |b| {
                let at = qed_l2(b);
                put_le64(b, at, 1 << 40);
            },
            (1, 1),
        ),
        (
            "qed",
            "qed/good/some.qed",
            |b| {
                let (at, l1) = (qed_l2(b), qed_l1(b));
                put_le64(b, at, l1 as u64);
            },
            (1, 1),
        ),
        (
            "qed",
            "qed/good/some.qed",
            |b| b.resize(b.len() + (1 << 20), 0),
            (0, 256),
        ),
        (
            "qcow",
            "qcow/good/some.qcow",
            |b| put_be64(b, 48, 1 << 40),
            (1, 0),
        ),
        (
            "parallels",
            "parallels/good/some.parallels",
            |b| b.resize(b.len() + (1 << 20), 0),
            (0, 256),
        ),
        (
            "parallels",
            "parallels/good/some.parallels",
            |b| {
                let first = (64..).step_by(4).find(|at| le32(b, *at) != 0).unwrap();
                put_le32(b, first, 1 << 24);
            },
            (1, 0),
        ),
    ];
    for (number, (format, file, edit, counts)) in cases.into_iter().enumerate() {
        let mut bytes = fs::read(testdata(file)).unwrap();
        let before = check_bytes(bytes.clone(), format);
        assert!(before.is_clean(), "{:?}", before.told());
        edit(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let findings = check_bytes(bytes, format);
        let found = (findings.corruptions, findings.leaks);
        if let Some((_, json)) = qemu.then(|| qemu_check(&path, format)).flatten() {
            let count = |key: &str| json[key].as_u64().unwrap_or(0);
            let theirs = (count("corruptions"), count("leaks"));
            assert_eq!(found, theirs, "{number}: {:?}", findings.told());
        }
        assert_eq!(found, counts, "{number}: {:?}", findings.told());
    }
}

fn qed_l1(bytes: &[u8]) -> usize {
    usize::try_from(le64(bytes, 40)).unwrap()
}

/// The first entry in use of the first L2 table.
fn qed_l2(bytes: &[u8]) -> usize {
    let number = |at: usize| le64(bytes, at);
    let table = (qed_l1(bytes)..).step_by(8).find(|at| number(*at) != 0);
    let table = usize::try_from(number(table.unwrap())).unwrap();
    (table..).step_by(8).find(|at| number(*at) > 1).unwrap()
}

#[test]
fn a_check_keeps_to_its_limit_and_says_which() {
    let limits = {
        let mut limits = Limits::default();
        limits.check_bytes = 100;
        limits
    };
    for file in [
        "vmdk/good/monolithicSparse.vmdk",
        "qcow2/good/plain.qcow2",
        "vhd/good/blocks-4096.vhd",
    ] {
        let options = OpenOptions::new().limits(limits.clone());
        let error = Checked::of_path(testdata(file), &options).unwrap_err();
        let named = matches!(
            error,
            Error::LimitExceeded {
                limit: "check_bytes",
                ..
            }
        );
        assert!(named, "{error}");
    }
}

/// The image that QEMU makes of a compressed one over the years: written to, with snapshots that share packed clusters.
#[test]
fn packed_clusters_that_snapshots_share_are_sound() {
    if !has_qemu() || !crate::support::has_tool("qemu-io") || !crate::support::can_unpack("zlib") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let mut disk = sample_disk(8, 4 << 20);
    disk.resize(8 << 20, 0);
    fs::write(folder.join("disk.raw"), disk).unwrap();
    for (cluster, kind) in [("4k", "zlib"), ("64k", "zlib"), ("64k", "zstd")] {
        let line = format!(
            "qemu-img convert -O qcow2 -c -o cluster_size={cluster},compression_type={kind} disk.raw a.qcow2"
        );
        crate::support::command::must(folder, &line);
        for (snapshot, place, free) in [
            ("one", "70k", "4M"),
            ("two", "1M", "5M"),
            ("three", "2M", "6M"),
        ] {
            crate::support::command::must(
                folder,
                &format!("qemu-img snapshot -c {snapshot} a.qcow2"),
            );
            let write = format!("write -P 9 {place} 100k");
            // QEMU packs what is written only where nothing is.
            let pack = format!("write -c -P 8 {free} 64k");
            for write in [write, pack] {
                let out = run(folder, "qemu-io", ["-c", &write, "a.qcow2"]);
                let told = String::from_utf8_lossy(&out.stderr).into_owned();
                assert!(out.status.success(), "{line}: {write}: {told}");
            }
        }
        crate::support::command::must(folder, "qemu-img snapshot -d two a.qcow2");
        let path = folder.join("a.qcow2");
        assert_eq!(
            Some(our_check(&path, "qcow2")),
            qemu_check(&path, "qcow2"),
            "{line}"
        );
        let findings = check_bytes(fs::read(&path).unwrap(), "qcow2");
        assert!(
            findings.is_clean() && findings.told().is_empty(),
            "{:?}",
            findings.told()
        );
    }
}

#[test]
fn without_room_for_packed_clusters_the_rest_is_checked() {
    let disk = sample_disk(9, 8 << 20);
    let target = Arc::new(Memory::default());
    let targets: [Arc<dyn blockform::BlockTarget>; 1] = [Arc::clone(&target) as _];
    let mut convert = ConvertOptions::to("qcow2").option("cluster_size", "4k");
    convert = convert.compress(true);
    if !crate::support::can_unpack("zlib") {
        return;
    }
    convert
        .convert_to_targets(&Memory::new(disk), &targets)
        .unwrap();
    let source: Arc<dyn BlockSource> = target;
    let mut limits = Limits::default();
    limits.check_bytes = 5 << 10;
    let options = OpenOptions::new().limits(limits);
    let findings = Checked::of_source(&source, &options)
        .unwrap()
        .findings
        .unwrap();
    assert!(findings.is_clean());
    assert_eq!(findings.told().len(), 1, "{:?}", findings.told());
    assert!(findings.told()[0].problem.contains("limit check_bytes"));
}

#[test]
fn findings_are_counted_to_the_last_and_kept_to_the_thousandth() {
    let mut bytes = fs::read(testdata("qcow2/good/cluster-4k.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    for entry in (layout.l2..layout.l2 + 4096).step_by(8).skip(1) {
        put_be64(&mut bytes, entry, 1 << 63 | 1 << 40);
    }
    // All entries of a second L2 table, too, so that there are more than a thousand.
    let copy = bytes[layout.l2..layout.l2 + 4096].to_vec();
    let at = bytes.len().next_multiple_of(4096);
    bytes.resize(at, 0);
    bytes.extend(copy);
    put_be64(&mut bytes, layout.l1 + 8, 1 << 63 | at as u64);
    put_be32(&mut bytes, 36, 2);
    let findings = check_bytes(bytes, "qcow2");
    assert_eq!(findings.told().len(), Findings::TOLD);
    assert!(findings.left_out() > 1000);
    assert!(findings.corruptions > 2000);
}

#[test]
fn backing_files_stay_closed_and_extent_files_need_leave() {
    let overlay = testdata("qcow2/good/chain-2.qcow2");
    let checked = Checked::of_path(overlay, &OpenOptions::new()).unwrap();
    assert!(checked.findings.unwrap().is_clean());
    let split = testdata("vmdk/good/twoGbMaxExtentSparse.vmdk");
    let error = Checked::of_path(&split, &OpenOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    let checked = Checked::of_path(&split, &options).unwrap();
    assert!(checked.findings.unwrap().is_clean());
}

/// A line for one extent takes no time, so ten thousand of them must not take hours.
#[test]
fn an_extent_that_is_named_twice_is_checked_once() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "twoGbMaxExtentSparse.vmdk",
        "twoGbMaxExtentSparse-s001.vmdk",
    ] {
        let path = testdata(&format!("vmdk/good/{name}"));
        std::fs::copy(path, folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("twoGbMaxExtentSparse.vmdk");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = "RW 2048 SPARSE \"twoGbMaxExtentSparse-s001.vmdk\"\n";
    let other = line.replace("\"two", "\"./two");
    let lines = [line, line, other.as_str()].concat();
    std::fs::write(&path, text.replace(line, &lines)).unwrap();
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    let checked = Checked::of_path(&path, &options).unwrap();
    let findings = checked.findings.unwrap();
    expect(&findings, 2, 0, "descriptor", "two extents in");
}

#[test]
fn the_command_speaks_as_qemu_img_check() {
    let scratch = tempfile::tempdir().unwrap();
    let sound = fs::read(testdata("qcow2/good/zlib.qcow2")).unwrap();
    if !crate::support::can_unpack("zlib") {
        return;
    }
    let layout = Layout::of(&sound);
    let edit = |name: &str, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.clone();
        edit(&mut bytes);
        fs::write(scratch.path().join(name), bytes).unwrap();
    };
    edit("sound.qcow2", &|_| {});
    edit("leaks.qcow2", &|b| b[layout.refcount_block + 1] = 3);
    edit("corrupt.qcow2", &|b| b[layout.refcount_block + 1] = 0);
    fs::write(scratch.path().join("disk.raw"), [7; 4096]).unwrap();
    let qemu = has_qemu();
    for (name, status) in [
        ("sound.qcow2", 0),
        ("leaks.qcow2", 3),
        ("corrupt.qcow2", 2),
        ("disk.raw", 63),
        ("absent.qcow2", 1),
    ] {
        for arguments in [&["-q"][..], &[], &["-U", "-T", "none", "--output=json"]] {
            let line = || arguments.iter().copied().chain([name]);
            let ours = run(scratch.path(), example("img-check"), line());
            assert_eq!(ours.status.code(), Some(status), "{name} {arguments:?}");
            if !qemu || status == 63 || status == 1 {
                continue;
            }
            let theirs = run(
                scratch.path(),
                "qemu-img",
                ["check"].into_iter().chain(line()),
            );
            assert_eq!(theirs.status.code(), Some(status), "{name}");
            if !arguments.contains(&"--output=json") {
                let (ours, theirs) = (ours.stdout, theirs.stdout);
                assert_eq!(String::from_utf8(ours), String::from_utf8(theirs), "{name}");
            }
        }
    }
    let raw = run(
        scratch.path(),
        example("img-check"),
        ["-f", "raw", "disk.raw"],
    );
    assert_eq!(raw.status.code(), Some(63));
    let told = String::from_utf8(raw.stderr).unwrap();
    assert_eq!(
        told,
        "img-check: This image format does not support checks\n"
    );
    let json = run(
        scratch.path(),
        example("img-check"),
        ["--output=json", "leaks.qcow2"],
    );
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["leaks"], 1);
    assert_eq!(json["blockform"]["findings"][0]["kind"], "leak");
    assert_eq!(json["blockform"]["findings"][0]["offset"], 0);
}
