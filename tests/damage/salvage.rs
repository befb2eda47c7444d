//! Salvage: of a damaged disk all comes back that is not damaged, and the rest is zeros and is told.
//!
//! The images are made by qemu-img, the damage is done by hand, and what has to come back follows from
//! the disk that went in.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::command::example;
use crate::support::patch::{self, be64, grain_tables, le32, le64, made, pick, place};
use crate::support::{Rng, fails, files_below, goldens, has_tool, run, sha256, testdata};
use blockform::convert::ConvertOptions;
use blockform::salvage::{Losses, Salvage};
use blockform::storage::Memory;
use blockform::{BlockSource, Error, Extent, Image, Limits, OpenOptions, Result};
use serde_json::Value;

const CLUSTER: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// A disk that cannot be read in some places: whatever touches them fails.
#[derive(Debug)]
struct Broken {
    disk: Memory,
    bad: Vec<(u64, u64)>,
}

impl Broken {
    fn of(bytes: Vec<u8>, bad: &[(u64, u64)]) -> Arc<Self> {
        let (disk, bad) = (Memory::new(bytes), bad.to_vec());
        Arc::new(Broken { disk, bad })
    }
}

impl BlockSource for Broken {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = offset + buf.len() as u64;
        match self
            .bad
            .iter()
            .any(|(from, to)| *from < end && offset < *to)
        {
            true => Err(Error::io("read", std::io::Error::from_raw_os_error(5))),
            false => self.disk.read_at(buf, offset),
        }
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.disk.extent_at(offset, limit)
    }
}

/// Converts an image to raw; the result, by any number of threads, and what is lost.
fn salvaged(open: &dyn Fn() -> Box<dyn Image>) -> (Vec<u8>, Losses) {
    let mut first = None;
    for threads in [1, 4] {
        let salvage = Salvage::of(open());
        let target = Arc::new(Memory::default());
        let file: Arc<dyn blockform::BlockTarget> = target.clone();
        ConvertOptions::to("raw")
            .threads(NonZeroUsize::new(threads).unwrap())
            .convert_to_targets(&salvage, &[file])
            .unwrap();
        let mut bytes = target.to_bytes();
        bytes.resize(usize::try_from(salvage.size()).unwrap(), 0);
        let made = (bytes, salvage.losses());
        // Read once more, the same is lost.
        let mut again = vec![1; made.0.len()];
        assert_eq!(salvage.read_at(&mut again, 0).unwrap(), again.len());
        assert!(again == made.0, "{threads}");
        assert_eq!(salvage.losses(), made.1, "{threads}");
        match &first {
            None => first = Some(made),
            Some(first) => assert!(*first == made, "{threads} threads"),
        }
    }
    first.unwrap()
}

fn open(bytes: &[u8], format: &str) -> Box<dyn Image> {
    let options = OpenOptions::new().format(format).salvage(true);
    options.open(Arc::new(Memory::new(bytes))).unwrap()
}

fn ranges(losses: &Losses) -> Vec<(usize, usize)> {
    let number = |n: u64| usize::try_from(n).unwrap();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for loss in &losses.list {
        let (start, end) = (number(loss.start), number(loss.start + loss.length));
        match ranges.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => ranges.push((start, end)),
        }
    }
    let bytes: usize = ranges.iter().map(|(start, end)| end - start).sum();
    assert_eq!((losses.bytes, losses.untold), (bytes as u64, 0));
    assert_eq!(losses.ranges, ranges.len() as u64);
    ranges
}

fn zeroed(disk: &[u8], ranges: &[(usize, usize)]) -> Vec<u8> {
    let mut disk = disk.to_vec();
    for (start, end) in ranges {
        disk[*start..*end].fill(0);
    }
    disk
}

/// Checks that of an image all of `disk` comes back but for these ranges, and that they are told.
fn loses(name: &str, image: &[u8], format: &str, disk: &[u8], lost: &[(usize, usize)]) {
    let (bytes, losses) = salvaged(&|| open(image, format));
    assert_eq!(ranges(&losses), lost, "{name}: {losses:?}");
    assert!(bytes == zeroed(disk, lost), "{name}");
}

/// Place of the only L2 table of a small qcow2.
fn l2_of(image: &[u8]) -> usize {
    let l1 = usize::try_from(be64(image, 40)).unwrap();
    usize::try_from(be64(image, l1) & 0x00ff_ffff_ffff_fe00).unwrap()
}

fn full_disk(len: usize) -> Vec<u8> {
    patch::full_disk(3, len)
}

#[test]
fn an_entry_costs_a_cluster_and_a_table_what_it_tells() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let whole = made(&disk, "qcow2", &[]);
    loses("whole", &whole, "qcow2", &disk, &[]);
    let l2 = l2_of(&whole);
    let mut image = whole.clone();
    // Beyond the end of the file, in the header, reserved bits, and not at the start of a cluster.
    for (index, entry) in [
        (3, 1_u64 << 63 | 1 << 40),
        (7, 1 << 63),
        (20, 1 << 63 | 0x20_0000 | 2),
        (21, 1 << 63 | 0x20_0200),
    ] {
        let entry = if index == 7 { entry | 1 << 1 } else { entry };
        image[l2 + 8 * index..][..8].copy_from_slice(&entry.to_be_bytes());
    }
    let cluster = |n: usize, to: usize| (n * CLUSTER, to * CLUSTER);
    let lost = [cluster(3, 4), cluster(7, 8), cluster(20, 22)];
    loses("entries", &image, "qcow2", &disk, &lost);

    let small = made(&disk, "qcow2", &["-o", "cluster_size=512"]);
    let l1 = usize::try_from(be64(&small, 40)).unwrap();
    let mut image = small.clone();
    // A table of 64 entries tells of 32 KiB.
    image[l1 + 8 * 5 + 7] = 1;
    loses("table", &image, "qcow2", &disk, &[(5 << 15, 6 << 15)]);
}

#[test]
fn a_sector_costs_a_sector() {
    let disk = full_disk(4 * MIB + 512);
    let bad = [
        (512, 513),
        (70_000, 70_001),
        (MIB as u64, MIB as u64 + 9000),
    ];
    let raw = || -> Box<dyn Image> {
        let options = OpenOptions::new().format("raw");
        options.open(Broken::of(disk.clone(), &bad)).unwrap()
    };
    let (bytes, losses) = salvaged(&raw);
    let lost = [(512, 1024), (69_632, 70_144), (MIB, MIB + 9216)];
    assert_eq!(ranges(&losses), lost);
    assert!(bytes == zeroed(&disk, &lost));
    assert!(losses.list[0].error.contains("cannot read"), "{losses:?}");
}

#[test]
fn a_bad_sector_beneath_an_image_costs_what_lies_there() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let image = made(&disk, "qcow2", &[]);
    let l2 = l2_of(&image);
    let data = usize::try_from(be64(&image, l2 + 8 * 9) & 0x00ff_ffff_ffff_fe00).unwrap();
    let open = |bad: &[(u64, u64)]| -> Box<dyn Image> {
        let options = OpenOptions::new().salvage(true);
        options.open(Broken::of(image.clone(), bad)).unwrap()
    };
    let at = data as u64 + 5000;
    let (bytes, losses) = salvaged(&|| open(&[(at, at + 1)]));
    let lost = [(9 * CLUSTER + 4608, 9 * CLUSTER + 5120)];
    assert_eq!(ranges(&losses), lost);
    assert!(bytes == zeroed(&disk, &lost));
}

/// A bad sector in a table costs what its entries tell, and the rest of the table still counts.
#[test]
fn a_bad_sector_of_a_table_costs_its_entries() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(200 * CLUSTER);
    let all = disk.len();
    type Ranges<'a> = &'a [(usize, usize)];
    let loses =
        |(name, disk): (&str, &[u8]), image: &[u8], format, bad: &[usize], lost: Ranges<'_>| {
            let bad: Vec<(u64, u64)> = bad.iter().map(|at| (*at as u64, *at as u64 + 1)).collect();
            let open = || -> Box<dyn Image> {
                let options = OpenOptions::new().format(format).salvage(true);
                options
                    .open(Broken::of(image.to_vec(), &bad))
                    .unwrap_or_else(|e| panic!("{name}: {e}"))
            };
            let (bytes, losses) = salvaged(&open);
            assert_eq!(ranges(&losses), lost, "{name}: {losses:?}");
            assert!(bytes == zeroed(disk, lost), "{name}");
        };
    let image = made(&disk, "qcow2", &[]);
    let l2 = l2_of(&image);
    let sector = |number: usize| (number * 64 * CLUSTER, (number + 1) * 64 * CLUSTER);
    loses(("qcow2", &disk), &image, "qcow2", &[l2 + 520], &[sector(1)]);
    let last = (192 * CLUSTER, all);
    loses(
        ("qcow2, two", &disk),
        &image,
        "qcow2",
        &[l2, l2 + 2047],
        &[sector(0), last],
    );
    let whole: Vec<usize> = (l2..l2 + CLUSTER).step_by(512).collect();
    loses(
        ("qcow2, all of it", &disk),
        &image,
        "qcow2",
        &whole,
        &[(0, all)],
    );
    // An L1 table of two sectors, of which each tells of 32 MiB.
    let mut large = disk.clone();
    large.resize(64 * MIB, 0);
    let small = made(&large, "qcow2", &["-o", "cluster_size=2k"]);
    let l1 = usize::try_from(be64(&small, 40)).unwrap();
    let lost = (32 * MIB, 64 * MIB);
    loses(("qcow2, L1", &large), &small, "qcow2", &[l1 + 600], &[lost]);
    let extended = made(&disk, "qcow2", &["-o", "extended_l2=on,cluster_size=64k"]);
    let l2 = l2_of(&extended);
    let lost = (32 * CLUSTER, 64 * CLUSTER);
    loses(
        ("qcow2, extended", &disk),
        &extended,
        "qcow2",
        &[l2 + 600],
        &[lost],
    );
    let qed = made(&disk, "qed", &[]);
    let number = |at: usize| place(le64(&qed, at));
    let l2 = number(number(40));
    loses(("qed", &disk), &qed, "qed", &[l2 + 512], &[sector(1)]);
    // VMDK has two tables, of which each entry is to be had once.
    let vmdk = made(&disk, "vmdk", &[]);
    let [_, _, first, second] = grain_tables(&vmdk);
    loses(
        ("vmdk, one table", &disk),
        &vmdk,
        "vmdk",
        &[first + 600],
        &[],
    );
    loses(
        ("vmdk, both", &disk),
        &vmdk,
        "vmdk",
        &[first + 600, second + 100],
        &[],
    );
    let lost = (128 * CLUSTER, all);
    loses(
        ("vmdk, the same of both", &disk),
        &vmdk,
        "vmdk",
        &[first + 600, second + 600],
        &[lost],
    );
}

/// So it does where one table tells of all.
#[test]
fn a_bad_sector_of_the_only_table_costs_its_entries() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("disk"), folder.path().join("image"));
    let mut disk = fs::File::create(&raw).unwrap();
    disk.set_len(600 * MIB as u64).unwrap();
    let data = full_disk(MIB);
    let places = [150 * MIB as u64, 500 * MIB as u64];
    for place in places {
        disk.seek(SeekFrom::Start(place)).unwrap();
        disk.write_all(&data).unwrap();
    }
    for (format, options, ours) in [
        ("vpc", "subformat=dynamic,force_size=on", "vhd"),
        ("vdi", "static=off", "vdi"),
        ("vhdx", "block_size=1M", "vhdx"),
        ("parallels", "cluster_size=1M", "parallels"),
    ] {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format, "-o", options]);
        run(convert.arg(&raw).arg(&path));
        let image = fs::read(&path).unwrap();
        // The sector with the entry of the first of both places.
        let bad = match ours {
            "vhd" => be64(&image, 512 + 16) + 75 * 4,
            "vdi" => u64::from(le32(&image, 340)) + 150 * 4,
            "vhdx" => {
                let regions = &image[192 << 10..256 << 10];
                let guid = [0x66, 0x77, 0xc2, 0x2d];
                let entry = regions.windows(4).position(|w| w == guid).unwrap();
                le64(regions, entry + 16) + 150 * 8
            }
            _ => 64 + 150 * 4,
        };
        let options = OpenOptions::new().format(ours).salvage(true);
        let strict = OpenOptions::new().format(ours);
        let opened =
            |options: &OpenOptions| options.open(Broken::of(image.clone(), &[(bad, bad + 1)]));
        if ours != "vhdx" {
            fails!(opened(&strict), Error::Io { .. }, "read");
        }
        let image = opened(&options).unwrap_or_else(|e| panic!("{ours}: {e}"));
        let salvage = Salvage::of(image);
        let mut buf = vec![1; MIB];
        salvage.read_at(&mut buf, places[1]).unwrap();
        assert!(buf == data, "{ours}");
        assert!(salvage.losses().list.is_empty(), "{ours}");
        salvage.read_at(&mut buf, places[0]).unwrap();
        assert!(buf.iter().all(|byte| *byte == 0), "{ours}");
        let losses = salvage.losses();
        assert_eq!(losses.bytes, MIB as u64, "{ours}: {losses:?}");
        assert!(
            losses.list[0].error.contains("cannot be read"),
            "{losses:?}"
        );
        // What is absent by its neighbours is lost, too: its entry could have said anything.
        salvage
            .read_at(&mut buf, places[0] + 2 * MIB as u64)
            .unwrap();
        assert_eq!(salvage.losses().bytes, 2 * MIB as u64, "{ours}");
        salvage.read_at(&mut buf, 590 * MIB as u64).unwrap();
        assert_eq!(salvage.losses().bytes, 2 * MIB as u64, "{ours}");
    }
}

#[cfg(feature = "zlib")]
#[test]
fn a_packed_cluster_that_does_not_unpack_costs_a_cluster() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let mut image = made(&disk, "qcow2", &["-c"]);
    let l2 = l2_of(&image);
    let entry = be64(&image, l2 + 8 * 11);
    assert_ne!(entry >> 62 & 1, 0, "qemu-img packs it");
    let host = usize::try_from(entry & ((1 << 54) - 1)).unwrap();
    image[host + 30..host + 60].fill(0xff);
    let lost = [(11 * CLUSTER, 12 * CLUSTER)];
    loses("packed", &image, "qcow2", &disk, &lost);
}

#[test]
fn a_truncated_file_costs_its_end() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let image = made(&disk, "qcow2", &[]);
    let l2 = l2_of(&image);
    let host =
        |index: usize| usize::try_from(be64(&image, l2 + 8 * index) & 0xff_ffff_ffff_fe00).unwrap();
    // qemu-img writes in order, so that all behind it are gone, too.
    assert!((30..39).all(|index| host(index) < host(index + 1)));
    let lost = [(30 * CLUSTER, disk.len())];
    loses("cut", &image[..host(30)], "qcow2", &disk, &lost);
}

#[test]
fn nothing_is_lost_of_what_is_whole() {
    for golden in goldens().iter().filter(|golden| golden.size() < 16 << 20) {
        let open = || {
            golden
                .options()
                .salvage(true)
                .open_path(&golden.path)
                .unwrap()
        };
        let (bytes, losses) = salvaged(&open);
        assert!(losses.is_empty(), "{}: {losses:?}", golden.file);
        assert_eq!(sha256(&bytes), golden.sha256(), "{}", golden.file);
    }
}

/// Whatever is wrong with them: it ends, and bytes that a strict reader gets are the same, but where one
/// cluster has two owners, of whom the strict reader believed the first.
#[test]
fn all_that_is_bad_ends() {
    let (mut opened, mut more) = (0, 0);
    for path in files_below(&testdata("")) {
        if !path.parent().is_some_and(|folder| folder.ends_with("bad")) {
            continue;
        }
        let strict = OpenOptions::new().open_path(&path);
        let Ok(image) = OpenOptions::new().salvage(true).open_path(&path) else {
            assert!(!matches!(strict, Ok(_) | Err(Error::Io { .. })), "{path:?}");
            continue;
        };
        more += u32::from(strict.is_err());
        if image.size() > 64 << 20 {
            continue;
        }
        opened += 1;
        let salvage = Salvage::of(image);
        let mut bytes = vec![0; usize::try_from(salvage.size()).unwrap()];
        let extents: Result<Vec<Extent>> = blockform::BlockSourceExt::extents(&salvage).collect();
        match extents.and_then(|_| salvage.read_at(&mut bytes, 0)) {
            Ok(n) => assert_eq!(n, bytes.len()),
            // What is not damage stays an error.
            Err(Error::Unsupported { .. } | Error::InvalidInput(_)) => continue,
            Err(error) => panic!("{path:?}: {error}"),
        }
        let lost = salvage.losses().list;
        let Ok(strict) = strict else {
            assert!(
                !lost.is_empty() || !salvage.info().warnings.is_empty(),
                "{path:?}"
            );
            continue;
        };
        for at in (0..bytes.len()).step_by(4096) {
            let mut block = [0; 4096];
            if let Ok(n) = strict.read_at(&mut block, at as u64) {
                let inside = |at: u64| {
                    lost.iter()
                        .any(|l| l.start <= at && at < l.start + l.length)
                };
                let whole = (at..at + n).step_by(512).all(|at| !inside(at as u64));
                assert!(!whole || block[..n] == bytes[at..at + n], "{path:?} {at}");
            }
        }
    }
    assert!(
        opened > 40 && more > 10,
        "{opened}, {more} that are refused otherwise"
    );
}

#[test]
fn there_is_an_end_to_failures() {
    let disk = full_disk(MIB);
    let mut limits = Limits::default();
    limits.failures = 100;
    let options = OpenOptions::new().format("raw");
    let image = options
        .open(Broken::of(disk.clone(), &[(0, MIB as u64)]))
        .unwrap();
    let salvage = Salvage::of(image).limits(limits);
    let error = ConvertOptions::to("raw")
        .convert_to_targets(&salvage, &[Arc::new(Memory::default())])
        .unwrap_err();
    assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
}

fn img_convert(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(example("img-convert"));
    let output = command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), told)
}

#[test]
fn the_command_tells_what_is_lost() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let mut image = made(&disk, "qcow2", &[]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good.qcow2"), &image).unwrap();
    let l2 = l2_of(&image);
    image[l2 + 8 * 3 + 7] = 0xff;
    fs::write(folder.path().join("bad.qcow2"), &image).unwrap();

    let (code, told) = img_convert(folder.path(), &["bad.qcow2", "out"]);
    assert_eq!(code, 1, "{told}");
    assert!(!folder.path().join("out").exists());
    let (code, told) = img_convert(folder.path(), &["--salvage=map", "good.qcow2", "out"]);
    assert_eq!((code, told.as_str()), (0, ""));
    assert!(fs::read(folder.path().join("out")).unwrap() == disk);

    let (code, told) = img_convert(folder.path(), &["--salvage=map", "bad.qcow2", "out"]);
    assert_eq!(code, 3, "{told}");
    assert!(
        told.contains("lost: 65536 bytes at 196608: qcow2 image is damaged"),
        "{told}"
    );
    assert!(told.contains("65536 of 2621440 bytes are lost"), "{told}");
    let lost = [(3 * CLUSTER, 4 * CLUSTER)];
    assert!(fs::read(folder.path().join("out")).unwrap() == zeroed(&disk, &lost));
    let map = fs::read_to_string(folder.path().join("map")).unwrap();
    let map: Vec<Value> = serde_json::from_str(&map).unwrap();
    let mut at = 0;
    for run in &map {
        assert_eq!(run["start"].as_u64(), Some(at));
        at += run["length"].as_u64().unwrap();
    }
    assert_eq!(at, disk.len() as u64);
    let bad: Vec<_> = map.iter().filter(|run| !run["error"].is_null()).collect();
    assert_eq!(bad.len(), 1, "{map:?}");
    assert_eq!(
        (bad[0]["start"].as_u64(), bad[0]["length"].as_u64()),
        (Some(196_608), Some(65_536))
    );
    assert_eq!(
        (&bad[0]["data"], &bad[0]["zero"]),
        (&false.into(), &true.into())
    );
    // The rest is what qemu-img says of the image that is whole.
    let theirs = run(Command::new("qemu-img")
        .args(["map", "--output", "json"])
        .arg(folder.path().join("good.qcow2")));
    let theirs: Vec<Value> = serde_json::from_str(&theirs).unwrap();
    assert_eq!(map[0]["offset"], theirs[0]["offset"]);

    for arguments in [
        ["--salvage=bad.qcow2", "bad.qcow2", "out"],
        ["--salvage=out", "bad.qcow2", "out"],
        ["--salvage=./out", "bad.qcow2", "out"],
    ] {
        let (code, told) = img_convert(folder.path(), &arguments);
        assert_eq!(code, 1, "{told}");
        assert!(told.contains("it cannot be the map"), "{told}");
    }
}

#[test]
fn what_two_entries_have_is_lost_to_both() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let mut image = made(&disk, "qcow2", &[]);
    let l2 = l2_of(&image);
    image.copy_within(l2 + 8 * 5..l2 + 8 * 6, l2 + 8 * 30);
    let lost = [(5 * CLUSTER, 6 * CLUSTER), (30 * CLUSTER, 31 * CLUSTER)];
    loses("qcow2", &image, "qcow2", &disk, &lost);

    let disk = full_disk(10 * MIB);
    let mut image = made(&disk, "vdi", &[]);
    let map = place(le32(&image, 0x154).into());
    image.copy_within(map + 4 * 2..map + 4 * 3, map + 4 * 7);
    let lost = [(2 * MIB, 3 * MIB), (7 * MIB, 8 * MIB)];
    loses("vdi", &image, "vdi", &disk, &lost);

    let mut image = made(&disk, "vpc", &["-o", "subformat=dynamic,force_size=on"]);
    let bat = 512 + 1024;
    assert_eq!(be64(&image, 16), 512);
    image.copy_within(bat..bat + 4, bat + 4 * 3);
    let lost = [(0, 2 * MIB), (6 * MIB, 8 * MIB)];
    loses("vhd", &image, "vhd", &disk, &lost);

    let mut image = made(&disk, "vhdx", &["-o", "block_size=1M"]);
    // The region table's entry of the BAT tells where it is.
    let mut entries = (0..2).map(|i| (192 << 10) + 16 + 32 * i);
    let entry = entries.find(|at| le32(&image, *at) == 0x2dc2_7766).unwrap();
    let bat = place(le32(&image, entry + 16).into());
    image.copy_within(bat + 8..bat + 16, bat + 8 * 9);
    let lost = [(MIB, 2 * MIB), (9 * MIB, 10 * MIB)];
    loses("vhdx", &image, "vhdx", &disk, &lost);

    let disk = full_disk(40 * CLUSTER);
    let mut image = made(&disk, "vmdk", &[]);
    let [_, _, first, second] = grain_tables(&image);
    for table in [first, second] {
        image.copy_within(table + 4 * 6..table + 4 * 7, table + 4 * 9);
    }
    let lost = [(6 * CLUSTER, 7 * CLUSTER), (9 * CLUSTER, 10 * CLUSTER)];
    loses("vmdk", &image, "vmdk", &disk, &lost);

    let mut image = made(&disk, "qcow", &[]);
    let l1 = usize::try_from(be64(&image, 40)).unwrap();
    let l2 = usize::try_from(be64(&image, l1)).unwrap();
    image.copy_within(l2 + 8 * 3..l2 + 8 * 4, l2 + 8 * 8);
    loses(
        "qcow",
        &image,
        "qcow",
        &disk,
        &[(3 << 12, 4 << 12), (8 << 12, 9 << 12)],
    );

    let mut image = made(&disk, "qed", &[]);
    let l1 = place(le64(&image, 40));
    let l2 = place(le64(&image, l1));
    image.copy_within(l2 + 8 * 3..l2 + 8 * 4, l2 + 8 * 8);
    let lost = [(3 * CLUSTER, 4 * CLUSTER), (8 * CLUSTER, 9 * CLUSTER)];
    loses("qed", &image, "qed", &disk, &lost);

    let disk = full_disk(10 * MIB);
    let mut image = made(&disk, "parallels", &[]);
    image.copy_within(64 + 4 * 3..64 + 4 * 4, 64 + 4 * 8);
    let lost = [(3 * MIB, 4 * MIB), (8 * MIB, 9 * MIB)];
    loses("parallels", &image, "parallels", &disk, &lost);
}

/// Damages the first grain tables of both directories of a hosted sparse extent are: the redundant one's
/// first, if it is used.
#[test]
fn a_truncated_block_costs_what_is_missing_of_it() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(10 * MIB);
    // Every block in order, and the footer of a VHD behind them, which is gone first.
    for (format, options, end) in [
        ("vdi", &[][..], 0),
        ("vpc", &["-o", "subformat=dynamic,force_size=on"], 512),
        ("vhdx", &["-o", "block_size=1M"], 0),
    ] {
        let image = made(&disk, format, options);
        let lost = MIB + 4096;
        let image = &image[..image.len() - end - lost];
        let lost = [(disk.len() - lost, disk.len())];
        let format = if format == "vpc" { "vhd" } else { format };
        loses(format, image, format, &disk, &lost);
    }
    let mut image = made(&disk, "vpc", &["-o", "subformat=fixed,force_size=on"]);
    image.drain(7 * MIB..8 * MIB);
    // What lies behind the hole cannot be known to have moved: the end is missing.
    let mut rest = disk.clone();
    rest.drain(7 * MIB..8 * MIB);
    rest.resize(disk.len(), 0);
    loses("fixed", &image, "vhd", &rest, &[(9 * MIB, 10 * MIB)]);
}

#[test]
fn of_two_grain_tables_every_sound_entry_counts() {
    if !has_tool("qemu-img") {
        return;
    }
    let disk = full_disk(40 * CLUSTER);
    let image = made(&disk, "vmdk", &[]);
    let [_, _, main, redundant] = grain_tables(&image);
    let mut both = image.clone();
    // One entry in the one, another in the other, and one in both.
    for (table, index) in [(redundant, 3), (main, 5), (redundant, 9), (main, 9)] {
        both[table + 4 * index..][..4].fill(0xee);
    }
    loses("both", &both, "vmdk", &disk, &[(9 * CLUSTER, 10 * CLUSTER)]);
    // A directory that leads nowhere.
    let mut one = image;
    let directory = place(le64(&one, 56));
    one[directory * 512..][..4].fill(0xee);
    one[redundant + 4 * 7..][..4].fill(0xee);
    loses(
        "redundant",
        &one,
        "vmdk",
        &disk,
        &[(7 * CLUSTER, 8 * CLUSTER)],
    );
    // An entry that leads into the metadata: a strict reader takes the other table, too.
    let mut metadata = made(&disk, "vmdk", &[]);
    let unused = u32::try_from(le64(&metadata, 64) - 1).unwrap();
    metadata[main + 4 * 5..][..4].copy_from_slice(&unused.to_le_bytes());
    loses("metadata", &metadata, "vmdk", &disk, &[]);
}

/// The header of a sparse extent tells what the disk is as well as its descriptor; but for a parent.
#[test]
fn a_vmdk_without_its_descriptor_is_what_its_header_says() {
    if !has_tool("qemu-img") {
        return;
    }
    let mut disk = full_disk(20 * MIB);
    disk[3 * MIB..5 * MIB].fill(0);
    let image = made(&disk, "vmdk", &[]);
    let at = 512;
    let text = image[at..at + 20 * 512].to_vec();
    let line = |start: &str| {
        let found = text
            .windows(start.len())
            .position(|w| w == start.as_bytes());
        at + found.unwrap()
    };
    let refused = |image: &[u8]| {
        let options = OpenOptions::new().format("vmdk");
        let opened = options.open(Arc::new(Memory::new(image)));
        matches!(
            opened,
            Err(Error::Malformed { .. } | Error::Unsupported { .. })
        )
    };
    // The line of the extent makes no sense; that there is no parent is still said.
    let mut damaged = image.clone();
    damaged[line("RW ") + 3] = b'x';
    assert!(refused(&damaged));
    loses("extent line", &damaged, "vmdk", &disk, &[]);
    assert!(open(&damaged, "vmdk").info().warnings[0].contains("the header tells"));
    // Nothing is: what is not recorded here may have been the parent's.
    let gone = (3 * MIB, 5 * MIB);
    let mut damaged = image.clone();
    damaged[at..at + 20 * 512].fill(0xee);
    assert!(refused(&damaged));
    loses("no descriptor", &damaged, "vmdk", &disk, &[gone]);
    // A bad sector leaves the rest of the text.
    let cid = line("parentCID") as u64;
    for (bad, lost) in [(cid + 1, &[gone][..]), (at as u64 + 5 * 512, &[])] {
        let broken = || -> Box<dyn Image> {
            let options = OpenOptions::new().format("vmdk").salvage(true);
            options
                .open(Broken::of(image.clone(), &[(bad, bad + 1)]))
                .unwrap()
        };
        let (bytes, losses) = salvaged(&broken);
        assert_eq!(ranges(&losses), lost, "{losses:?}");
        assert!(bytes == disk);
    }
    // An extent of a disk in several has none, and is no disk.
    let mut damaged = image.clone();
    damaged[at..at + 20 * 512].fill(0);
    let options = OpenOptions::new().format("vmdk").salvage(true);
    fails!(
        options.open(Arc::new(Memory::new(damaged))),
        Error::Unsupported { .. },
        "an extent file of a disk in several"
    );
}

/// The blocks of a VHD lie as only one header would have them.
#[test]
fn a_vhd_without_its_header_is_what_its_blocks_prove() {
    if !has_tool("qemu-img") {
        return;
    }
    let mut disk = full_disk(9 * MIB);
    disk[2 * MIB..4 * MIB].fill(0);
    let image = made(&disk, "vpc", &["-o", "subformat=dynamic,force_size=on"]);
    for (name, damage) in [
        ("checksum", 512 + 36..512 + 40),
        ("cookie", 512..520),
        ("size of a block", 512 + 32..512 + 36),
        ("place of the table", 512 + 16..512 + 24),
        ("all of it", 512..1536),
    ] {
        let mut damaged = image.clone();
        damaged[damage.clone()].fill(0x55);
        let strict = OpenOptions::new().format("vhd");
        let opened = strict.open(Arc::new(Memory::new(damaged.clone())));
        let read = opened.and_then(|image| image.read_at(&mut [0; 512], 0));
        fails!(read, Error::Malformed { .. }, "vhd");
        loses(name, &damaged, "vhd", &disk, &[]);
        let bad = [(damage.start as u64, damage.end as u64)];
        let broken = || -> Box<dyn Image> {
            let options = OpenOptions::new().format("vhd").salvage(true);
            options.open(Broken::of(image.clone(), &bad)).unwrap()
        };
        assert!(salvaged(&broken).0 == disk, "{name}");
    }
    // Blocks of another size, too.
    let target = Arc::new(Memory::default());
    let file: Arc<dyn blockform::BlockTarget> = target.clone();
    ConvertOptions::to("vhd")
        .option("subformat", "dynamic")
        .option("force_size", "on")
        .option("block_size", "512k")
        .convert_to_targets(&Memory::new(disk.clone()), &[file])
        .unwrap();
    let mut damaged = target.to_bytes();
    damaged[512..1536].fill(0);
    loses("512k", &damaged, "vhd", &disk, &[]);
    // Where they prove nothing, nothing is guessed.
    let table = 1536;
    let mut damaged = image.clone();
    damaged[512..1536].fill(0x55);
    damaged[table + 3] += 8;
    let options = OpenOptions::new().format("vhd").salvage(true);
    fails!(
        options.open(Arc::new(Memory::new(damaged))),
        Error::Malformed { .. },
        "dynamic disk header"
    );
}

/// The items of VHDX's metadata are in one of two places, whatever its table says.
#[test]
fn a_vhdx_without_its_metadata_table_has_its_items_still() {
    if !has_tool("qemu-img") {
        return;
    }
    let mut disk = full_disk(9 * MIB);
    disk[2 * MIB..4 * MIB].fill(0);
    let image = made(&disk, "vhdx", &["-o", "block_size=1M"]);
    let table = image.windows(8).position(|w| w == b"metadata").unwrap();
    let items = table + (64 << 10);
    let refused = |image: &[u8], options: OpenOptions| {
        let opened = options.format("vhdx").open(Arc::new(Memory::new(image)));
        matches!(opened, Err(Error::Malformed { .. }))
    };
    // As Hyper-V has them.
    let mut other = image.clone();
    other.copy_within(items + 32..items + 40, items + 16);
    other[items + 24..items + 40].fill(7);
    for (name, image) in [("QEMU", &image), ("Hyper-V", &other)] {
        for (what, range) in [
            ("signature", table..table + 8),
            ("entry", table + 32..table + 64),
            ("all of it", table..items),
        ] {
            let mut damaged = image.clone();
            damaged[range.clone()].fill(0x55);
            assert!(refused(&damaged, OpenOptions::new()), "{name}, {what}");
            loses(&format!("{name}, {what}"), &damaged, "vhdx", &disk, &[]);
        }
    }
    let bad = [(table as u64 + 3000, table as u64 + 3001)];
    let broken = || -> Box<dyn Image> {
        let options = OpenOptions::new().format("vhdx").salvage(true);
        options.open(Broken::of(image.clone(), &bad)).unwrap()
    };
    assert!(salvaged(&broken).0 == disk);
    // Items that make no sense, or tell of a parent whose name is lost, are none.
    for (at, value) in [(0, 3), (4, 2), (32, 7), (8, 1)] {
        let mut damaged = image.clone();
        damaged[table] = 0;
        damaged[items + at] = value;
        assert!(refused(&damaged, OpenOptions::new().salvage(true)), "{at}");
    }
}

#[cfg(feature = "zlib")]
#[test]
fn the_grains_of_a_stream_say_where_they_belong() {
    if !has_tool("qemu-img") {
        return;
    }
    let mut disk = full_disk(40 * CLUSTER);
    disk[10 * CLUSTER..12 * CLUSTER].fill(0);
    let stream = made(&disk, "vmdk", &["-o", "subformat=streamOptimized"]);
    let marker = |grain: usize| {
        let lba = (grain as u64 * 128).to_le_bytes();
        let found = stream
            .chunks(512)
            .position(|sector| sector[..8] == lba && sector[12] == 0x78);
        found.unwrap() * 512
    };
    // Without its tables and its footer.
    let cut = &stream[..marker(30) + 1024];
    loses("cut", cut, "vmdk", &disk, &[(30 * CLUSTER, 40 * CLUSTER)]);
    // Damage in the middle, and no footer: what lay there is not known, and what comes behind is.
    let mut holed = stream.clone();
    holed[marker(8)..marker(9)].fill(0);
    holed[marker(20)..marker(20) + 16].fill(0xff);
    holed.truncate(stream.len() - 1536);
    let lost = [(8 * CLUSTER, 9 * CLUSTER), (20 * CLUSTER, 21 * CLUSTER)];
    loses("holed", &holed, "vmdk", &disk, &lost);
}

#[test]
fn what_lies_in_a_file_that_is_not_there_is_lost() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let disk = full_disk(40 * CLUSTER);
    fs::write(path("disk"), &disk).unwrap();
    let qemu = |line: &str| {
        let mut command = Command::new("qemu-img");
        run(command.current_dir(folder.path()).args(line.split(' ')));
    };
    qemu("convert -f raw -O qcow2 disk base.qcow2");
    qemu("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    let mut io = Command::new("qemu-io");
    run(io
        .args(["-c", "write -P 7 64k 128k"])
        .arg(path("top.qcow2")));
    let mut expected = vec![0; disk.len()];
    expected[CLUSTER..3 * CLUSTER].fill(7);
    let lost = [(0, CLUSTER), (3 * CLUSTER, disk.len())];
    let told = |arguments: &[&str]| img_convert(folder.path(), arguments);

    // One that is not allowed is not forgotten, but left closed if that is said.
    let (code, error) = told(&["--salvage", "top.qcow2", "out"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("is not allowed"), "{error}");
    let (code, error) = told(&["--salvage", "--allow-references=detach", "top.qcow2", "out"]);
    assert_eq!(code, 3, "{error}");
    assert!(fs::read(path("out")).unwrap() == expected);
    fs::remove_file(path("base.qcow2")).unwrap();
    let (code, error) = told(&[
        "--salvage=map",
        "--allow-references=same-dir",
        "top.qcow2",
        "out",
    ]);
    assert_eq!(code, 3, "{error}");
    assert!(
        error.contains("backing file \"base.qcow2\", which was not opened"),
        "{error}"
    );
    assert!(fs::read(path("out")).unwrap() == expected);
    let map: Vec<Value> = serde_json::from_slice(&fs::read(path("map")).unwrap()).unwrap();
    let bad = map.iter().filter(|run| !run["error"].is_null());
    let number = |run: &Value, key: &str| usize::try_from(run[key].as_u64().unwrap()).unwrap();
    let bad: Vec<_> = bad
        .map(|run| {
            (
                number(run, "start"),
                number(run, "start") + number(run, "length"),
            )
        })
        .collect();
    assert_eq!(bad, lost);
}

#[test]
fn a_table_that_is_cut_short_costs_what_is_missing_of_it() {
    if !has_tool("qemu-img") {
        return;
    }
    // The last cluster of the file is the L2 table, with room for data before it.
    let disk = full_disk(40 * CLUSTER);
    let mut image = made(&disk, "qcow2", &[]);
    let l2 = l2_of(&image);
    let table = image[l2..l2 + CLUSTER].to_vec();
    let end = image.len().next_multiple_of(CLUSTER);
    image.resize(end, 0);
    image.extend(&table);
    let l1 = usize::try_from(be64(&image, 40)).unwrap();
    let entry = (1_u64 << 63 | end as u64).to_be_bytes();
    image[l1..l1 + 8].copy_from_slice(&entry);
    loses("moved", &image, "qcow2", &disk, &[]);
    image.truncate(end + 8 * 24);
    loses(
        "cut",
        &image,
        "qcow2",
        &disk,
        &[(24 * CLUSTER, 40 * CLUSTER)],
    );
}

/// Whatever bytes are wrong: it ends, and what is not said to be lost is what a strict reader gets, as far as
/// that gets any.
#[test]
fn any_damage_is_lived_with() {
    let (mut random, mut agree) = (Rng(77), 0);
    let mut limits = Limits::default();
    limits.metadata_bytes = 1 << 20;
    limits.failures = 100_000;
    for golden in goldens() {
        let image = fs::read(&golden.path).unwrap();
        let too_large = image.len() > 2 * MIB || golden.size() > 8 << 20;
        if golden.format == "raw" || too_large || golden.has_needs() {
            continue;
        }
        for _ in 0..6 {
            let mut damaged = image.clone();
            for _ in 0..=pick(&mut random, 3) {
                let near = [512, 4096, image.len() as u64][pick(&mut random, 3)];
                let end = near.min(damaged.len() as u64);
                let at = pick(&mut random, end);
                let any = random.bytes(1)[0];
                let value = [0, 0xff, any][pick(&mut random, 3)];
                damaged[at] = value;
            }
            if random.below(4) == 0 {
                damaged.truncate(pick(&mut random, image.len() as u64));
            }
            let source: Arc<dyn BlockSource> = Arc::new(Memory::new(damaged));
            let options = OpenOptions::new()
                .format(&golden.format)
                .limits(limits.clone());
            let strict = options.open(source.clone());
            let Ok(salvaged) = options.salvage(true).open(source) else {
                assert!(
                    !matches!(strict, Ok(_) | Err(Error::Io { .. })),
                    "{}",
                    golden.file
                );
                continue;
            };
            let salvage = Salvage::of(salvaged).limits(limits.clone());
            let mut bytes = vec![0xee; usize::try_from(salvage.size().min(8 << 20)).unwrap()];
            match salvage.read_at(&mut bytes, 0) {
                Ok(n) => assert_eq!(n, bytes.len()),
                Err(Error::Unsupported { .. } | Error::LimitExceeded { .. }) => continue,
                Err(error) => panic!("{}: {error}", golden.file),
            }
            let losses = salvage.losses();
            let Ok(strict) = strict else { continue };
            for (at, sector) in (0..).step_by(512).zip(bytes.chunks(512)) {
                let lost = |l: &blockform::salvage::Loss| l.start <= at && at < l.start + l.length;
                if losses.untold > 0 || losses.list.iter().any(lost) {
                    continue;
                }
                let mut read = [0; 512];
                // Of a damaged table a strict reader takes nothing.
                let Ok(n) = strict.read_at(&mut read, at) else {
                    continue;
                };
                agree += 1;
                assert_eq!(read[..n], *sector, "{} {at}", golden.file);
            }
        }
    }
    assert!(agree > 10_000, "{agree} sectors");
}
