//! The verb measure: as a library call, against what a conversion writes, and as `img-measure` beside
//! `qemu-img measure`.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::command::{example, has_qemu, must, names};
use crate::support::{Rng, sample_disk};
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, parse_options};
use blockform::measure::MeasureOptions;
use blockform::storage::Memory;
use blockform::{BlockSource, Error, Extent, ExtentKind, Image, ImageName, OpenOptions, Result};
use serde_json::Value;

const GIB: u64 = 1 << 30;

/// Formats that are written, with options.
const TARGETS: [(&str, &str); 22] = [
    ("raw", ""),
    ("qcow2", ""),
    ("qcow2", "cluster_size=512"),
    ("qcow2", "cluster_size=4k,refcount_bits=64"),
    ("qcow2", "cluster_size=2M,extended_l2=on"),
    ("qcow2", "cluster_size=1M"),
    ("qcow2", "compat=0.10"),
    ("qcow2", "preallocation=metadata"),
    ("qcow2", "data_file=out.data"),
    ("vmdk", ""),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentSparse"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vpc", ""),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vpc", "block_size=512k"),
    ("vhdx", ""),
    ("vhdx", "block_size=1M"),
    ("vhdx", "subformat=fixed"),
    ("vdi", ""),
    ("vdi", "static=on"),
    ("vdi", "block_size=64k"),
];

fn measure(format: &str, options: &str) -> MeasureOptions {
    let mut measure = MeasureOptions::to(format).file_name("out".into());
    for (name, value) in parse_options(options).unwrap() {
        measure = measure.option(name, value);
    }
    measure
}

/// Bytes of all files that a conversion makes.
fn converted(source: &dyn BlockSource, format: &str, options: &str, compress: bool) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let mut convert = ConvertOptions::to(format).compress(compress).sync(false);
    for (name, value) in parse_options(options).unwrap() {
        convert = convert.option(name, value);
    }
    let out = folder.path().join("out");
    convert.convert_to_path(source, &out).unwrap();
    let sizes = names(folder.path()).into_iter().map(|name| {
        let metadata = fs::metadata(folder.path().join(name)).unwrap();
        metadata.len()
    });
    sizes.sum()
}

/// An image with these bytes, whose clusters of zeros are holes.
fn image_of(bytes: Vec<u8>) -> (tempfile::TempDir, Box<dyn Image>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("source.qcow2");
    ConvertOptions::to("qcow2")
        .convert_to_path(&Memory::new(bytes), &path)
        .unwrap();
    let image = OpenOptions::new().open_path(&path).unwrap();
    (folder, image)
}

/// A disk of noise and holes in units of 64 KiB, and a bit of noise at its end.
fn noise_and_holes() -> Vec<u8> {
    let mut rng = Rng(11);
    let mut disk = vec![0; (9 << 20) + 1536];
    for chunk in disk.chunks_mut(64 << 10) {
        if rng.below(3) == 0 || chunk.len() < 64 << 10 {
            chunk.fill_with(|| u8::try_from(1 + rng.below(255)).unwrap());
        }
    }
    disk
}

#[test]
fn what_is_measured_is_what_is_written() {
    let (_folder, image) = image_of(noise_and_holes());
    for (format, options) in TARGETS {
        let told = measure(format, options).of_image(&*image).unwrap();
        let written = converted(&image, format, options, false);
        assert_eq!(told.required, written, "{format} {options}");
        assert!(told.required <= told.fully_allocated, "{format} {options}");
    }
}

#[test]
fn a_full_disk_is_fully_allocated() {
    let full = Memory::new(vec![1; (5 << 20) + 512]);
    for (format, options) in TARGETS {
        let told = measure(format, options).of(&full).unwrap();
        let written = converted(&full, format, options, false);
        assert_eq!(told.required, told.fully_allocated, "{format} {options}");
        assert_eq!(told.required, written, "{format} {options}");
    }
}

#[test]
fn an_empty_disk_is_measured_by_its_size() {
    for (format, options) in TARGETS {
        for size in [1 << 20, (9 << 20) + 512] {
            let told = measure(format, options).of_size(size).unwrap();
            let disk = Memory::new(vec![0; usize::try_from(size).unwrap()]);
            let written = converted(&disk, format, options, false);
            assert_eq!(told.required, written, "{format} {options} {size}");
        }
    }
}

#[test]
fn zeros_that_are_found_and_packing_make_it_smaller_and_never_larger() {
    let (_folder, image) = image_of(sample_disk(4, 5 << 20));
    for (format, options) in TARGETS {
        let told = measure(format, options).of_image(&*image).unwrap();
        let written = converted(&image, format, options, false);
        assert!(written <= told.required, "{format} {options}");
    }
    let noise = Memory::new(Rng(2).bytes(3 << 20));
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed.qcow2");
    // What was packed before may be taken as it is.
    let pack = ConvertOptions::to("qcow2").compress(cfg!(feature = "zlib"));
    pack.convert_to_path(&image, &packed).unwrap();
    let packed = OpenOptions::new().open_path(&packed).unwrap();
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "cluster_size=2M"),
        ("qcow2", "compression_type=zstd"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=streamOptimized,compression_level=9"),
    ] {
        let is_built = cfg!(feature = "zstd") || !options.contains("zstd");
        let is_built = is_built && (cfg!(feature = "zlib") || options.contains("zstd"));
        for source in [&image as &dyn BlockSource, &noise, &packed] {
            if !is_built {
                continue;
            }
            let told = measure(format, options).compress(true).of(source).unwrap();
            let written = converted(source, format, options, true);
            assert!(written <= told.required, "{format} {options}");
            // And it is no wild guess.
            let size = source.size();
            assert!(
                told.required < size + size / 20 + (16 << 20),
                "{format} {options}"
            );
        }
    }
}

/// A disk of which nothing but a few bytes are stored.
#[derive(Debug)]
struct Sparse(u64);

impl BlockSource for Sparse {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Err(Error::invalid("nothing is read to measure"))
    }

    fn extent_at(&self, start: u64, limit: u64) -> Result<Extent> {
        let middle = self.0 / 2;
        let (kind, end) = match start {
            at if at < middle => (ExtentKind::Hole, middle),
            at if at < middle + 5 => (ExtentKind::Data, middle + 5),
            _ => (ExtentKind::Zero, self.0),
        };
        Ok(Extent {
            start,
            len: limit.min(end - start),
            kind,
            depth: 0,
            host_offset: None,
        })
    }
}

/// This would not end if it took time for every cluster.
#[test]
fn the_size_of_a_sparse_disk_costs_nothing() {
    for (format, options, size) in [
        ("qcow2", "", 1 << 50),
        ("qcow2", "cluster_size=2M", 1 << 55),
        ("vmdk", "", 60 << 40),
        ("vhdx", "", 64 << 40),
        ("vhdx", "block_size=1M", 64 << 40),
        ("vdi", "block_size=256M", 1 << 50),
        ("raw", "", 1 << 62),
    ] {
        let told = measure(format, options).of(&Sparse(size)).unwrap();
        assert!(told.fully_allocated > size - 1, "{format} {options}");
        let is_small = format == "raw" || told.required < size / 1000;
        assert!(is_small, "{format} {options}: {told:?}");
        let empty = measure(format, options).of_size(size).unwrap();
        assert!(empty.required <= told.required, "{format} {options}");
    }
}

#[test]
fn a_name_that_is_not_known_may_be_long() {
    let disk = Memory::new(vec![1; 1 << 20]);
    let options = "subformat=twoGbMaxExtentFlat";
    let named = measure("vmdk", options).of(&disk).unwrap();
    assert_eq!(named.required, converted(&disk, "vmdk", options, false));
    let to = MeasureOptions::to("vmdk").option("subformat", "twoGbMaxExtentFlat");
    assert_eq!(to.of(&disk).unwrap().required, named.required + 255 - 3);
    let text = MeasureOptions::to("vmdk").of(&disk).unwrap();
    assert_eq!(text, measure("vmdk", "").of(&disk).unwrap());
}

#[test]
fn an_overlay_may_need_it_all() {
    let backing = Backing::new(ImageName::from("base.raw"), "raw");
    let told = measure("qcow2", "").backing(backing);
    let told = told.of(&Sparse(GIB)).unwrap();
    assert_eq!(told.required, told.fully_allocated);
}

#[test]
fn what_cannot_be_written_cannot_be_measured() {
    let wrong = |format: &str, options: &str, size| {
        let told = measure(format, options).of_size(size);
        told.unwrap_err().to_string()
    };
    assert!(wrong("nonsense", "", GIB).contains("unknown format"));
    assert!(wrong("qed", "", GIB).contains("not supported"));
    assert!(wrong("qcow2", "speed=9", GIB).contains("no option"));
    assert!(wrong("qcow2", "cluster_size=512", 1 << 40).contains("too large"));
    assert!(wrong("vpc", "", 1 << 50).len() > 10);
}

fn run(folder: &Path, line: &str) -> Output {
    crate::support::command::run(folder, example("img-measure"), line.split_whitespace())
}

fn qemus(folder: &Path, line: &str) -> Output {
    let words = ["measure"].into_iter().chain(line.split_whitespace());
    crate::support::command::run(folder, "qemu-img", words)
}

fn text(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

fn figures(out: &Output) -> (u64, u64, Value) {
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    let number = |key: &str| json[key].as_u64().unwrap();
    (
        number("required"),
        number("fully-allocated"),
        json["bitmaps"].clone(),
    )
}

#[test]
fn the_figures_are_qemus_where_the_layout_is() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("full.raw"), vec![1; 5 << 20]).unwrap();
    let size = 300 << 20;
    let sparse = fs::File::create(at.join("sparse.raw")).unwrap();
    sparse.set_len(size).unwrap();
    let sources = ["-f raw full.raw", "-f raw sparse.raw"];
    for options in [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M,refcount_bits=64",
        "-o cluster_size=4k,refcount_bits=1",
        "-o compat=0.10",
        "-o extended_l2=on",
        "-o preallocation=falloc",
        "-o preallocation=full",
        "-o backing_file=x,backing_fmt=raw",
    ] {
        let sizes = ["512", "1000k", "64k", "100M", "10G", "1.5G", "127G"];
        let sizes = sizes.map(|size| format!("--size {size}"));
        for source in sizes.iter().map(String::as_str).chain(sources) {
            let line = format!("--output=json -O qcow2 {options} {source}");
            let (ours, theirs) = (figures(&run(at, &line)), figures(&qemus(at, &line)));
            assert_eq!(ours.1, theirs.1, "{line}");
            // The tables of what is not stored are not written.
            assert!(ours.0 <= theirs.0, "{line}");
            let is_full = source.contains("full") || options.contains("full");
            if is_full || options.contains("falloc") {
                assert_eq!(ours, theirs, "{line}");
            }
        }
    }
    for line in [
        "-O qcow2 -f raw full.raw",
        "-O qcow2 -f raw full.raw --output json",
        "--output human -O raw -f raw full.raw",
        "-O raw -f raw sparse.raw",
        "-O raw --size 1M",
        "--size 1G --output=json",
    ] {
        let (ours, theirs) = (run(at, line), qemus(at, line));
        assert_eq!(text(&ours), text(&theirs), "{line}");
        assert_eq!(ours.status, theirs.status, "{line}");
    }
}

#[test]
fn bitmaps_and_snapshots_are_measured_too() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for line in [
        "qemu-img create -q -f qcow2 a.qcow2 3G",
        "qemu-img snapshot -c before a.qcow2",
        "qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1G",
        "qemu-img bitmap --add a.qcow2 first",
        "qemu-img bitmap --add -g 512 a.qcow2 another-one",
        "qemu-img create -q -f qcow2 none.qcow2 1G",
    ] {
        must(at, line);
    }
    for line in [
        "-O qcow2 a.qcow2",
        "-O qcow2 -o cluster_size=4k a.qcow2",
        "-O qcow2 -o compat=0.10 a.qcow2",
        "-O raw a.qcow2",
        "-O qcow2 none.qcow2",
        "-O qcow2 old.qcow2",
        "-O qcow2 -l before a.qcow2",
        "-O qcow2 -l snapshot.name=before a.qcow2",
    ] {
        let line = format!("{line} --output json");
        let (ours, theirs) = (figures(&run(at, &line)), figures(&qemus(at, &line)));
        assert_eq!(ours.2, theirs.2, "{line}");
        assert_eq!(ours.1, theirs.1, "{line}");
    }
    let human = run(at, "-O qcow2 a.qcow2");
    assert!(text(&human).contains("\nbitmaps size: "), "{human:?}");
}

#[test]
fn wrong_arguments_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("a.raw"), [1; 512]).unwrap();
    for (line, words) in [
        ("", "FILE"),
        ("-O qcow2", "FILE"),
        ("--size 1G a.raw", "cannot be used"),
        ("--size 1x", "size such as"),
        ("-O nonsense --size 1G", "unknown format"),
        ("-O qed --size 1G", "not supported"),
        ("-O qcow2 -o speed=9 --size 1G", "speed"),
        ("-O qcow2 -o backing_file=x --size 1G", "backing_fmt"),
        ("a.raw", "-f raw"),
        ("absent", "absent"),
        ("-l x -f raw a.raw", "no internal snapshots"),
    ] {
        let out = run(at, line);
        let told = String::from_utf8(out.stderr.clone()).unwrap();
        assert_eq!(out.status.code(), Some(1), "{line}: {told}");
        assert!(
            told.starts_with("img-measure: ") && told.contains(words),
            "{line}: {told}"
        );
        assert_eq!(told.matches('\n').count(), 1, "{line}: {told}");
        assert!(out.stdout.is_empty(), "{line}");
    }
}
