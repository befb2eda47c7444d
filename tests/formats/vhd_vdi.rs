//! VHD and VDI: what is written is what is read, chains, and the cases that other readers get wrong.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::model::{Fill, Model, OnlyOne, Written, to, written};
use crate::support::{Rng, goldens, has_tool, read_all, run, testdata};
use blockform::convert::ConvertOptions;
use blockform::image::parse_options;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockSourceExt, Error, OpenOptions, PathPolicy};

fn disk(sectors: u64, rng: &mut Rng) -> Model {
    let size = usize::try_from(sectors * 512).unwrap();
    let mut disk = Model::new(size);
    for _ in 0..rng.below(12) {
        let start = usize::try_from(rng.below(sectors * 512 + 1)).unwrap();
        let len = usize::try_from(rng.below(200_000)).unwrap();
        let align = if rng.below(2) == 0 { 4096 } else { 1 };
        let fill = Fill::ALL[usize::try_from(rng.below(5)).unwrap()];
        disk.fill(start / align * align, len, fill, rng.next());
    }
    disk
}

fn with(options: &str, format: &str, threads: usize) -> ConvertOptions {
    let options = parse_options(options).unwrap();
    options
        .into_iter()
        .fold(to(format, threads), |to, (name, value)| {
            to.option(name, value)
        })
}

fn check(image: &dyn BlockSource, disk: &[u8], rng: &mut Rng) {
    assert!(image.size() >= disk.len() as u64);
    let read = read_all(image).unwrap();
    assert!(read[..disk.len()] == *disk, "content");
    assert!(
        read[disk.len()..].iter().all(|b| *b == 0),
        "what rounding added"
    );
    let mut at = 0;
    for extent in image.extents() {
        let extent = extent.unwrap();
        assert_eq!(extent.start, at);
        at = extent.end();
        if extent.kind.reads_as_zero() {
            let range = usize::try_from(extent.start).unwrap()..usize::try_from(at).unwrap();
            assert!(read[range].iter().all(|b| *b == 0), "{extent:?}");
        }
    }
    assert_eq!(at, image.size());
    for _ in 0..20 {
        let start = rng.below(image.size() + 1);
        let mut buf = vec![0xee; usize::try_from(rng.below(20_000)).unwrap()];
        let n = image.read_at(&mut buf, start).unwrap();
        let start = usize::try_from(start).unwrap();
        assert!(buf[..n] == read[start..read.len().min(start + buf.len())]);
    }
}

const VHD: [&str; 6] = [
    "block_size=4k,force_size",
    "block_size=64k",
    "force_size,creator=win",
    "subformat=fixed,force_size",
    "subformat=fixed",
    "azure=on",
];
const VDI: [&str; 4] = [
    "block_size=4k",
    "block_size=64k",
    "",
    "static=on,block_size=32k",
];

#[test]
fn what_is_written_is_what_is_read_and_the_same_every_time() {
    let mut rng = Rng(11);
    for round in 0..60 {
        let disk = disk(rng.below(1500), &mut rng);
        for (format, ways) in [("vhd", VHD.as_slice()), ("vdi", &VDI)] {
            let way = ways[round % ways.len()];
            let sparse = [0, 512, 4096, 65_536][round % 4];
            let one = written(
                with(way, format, 1).sparse_size(sparse),
                format,
                &disk,
                None,
            );
            check(&one.image, &disk.bytes, &mut rng);
            let many = with(way, format, 3).memory(1 << 20).sparse_size(sparse);
            let many = written(many, format, &disk, None);
            assert!(
                one.file.to_bytes() == many.file.to_bytes(),
                "{format} {way}"
            );
        }
    }
}

#[test]
fn a_differencing_image_and_its_parent_are_the_disk() {
    let mut rng = Rng(12);
    for round in 0..60 {
        let base = disk(1 + rng.below(1500), &mut rng);
        let mut top = disk(1 + rng.below(1500), &mut rng);
        let shared = top.bytes.len().min(base.bytes.len()) / 1024 * 512;
        if round % 3 != 0 && shared > 0 {
            top.fill(0, shared, Fill::StoredZeroes, 0);
            top.bytes[..shared].copy_from_slice(&base.bytes[..shared]);
        }
        for (format, below, way) in [
            ("vhd", "force_size", "block_size=4k"),
            ("vhd", "subformat=fixed,force_size", "block_size=64k"),
            ("vhd", "block_size=64k,force_size", ""),
            ("vdi", "", "block_size=4k"),
            ("vdi", "static=on,block_size=8k", "block_size=64k"),
        ] {
            let below = written(with(below, format, 2), format, &base, None);
            let image = written(with(way, format, 2), format, &top, Some(below));
            check(&image.image, &top.bytes, &mut rng);
            assert_eq!(image.image.size(), top.bytes.len() as u64);
        }
    }
}

#[test]
fn zeros_in_a_child_mask_the_parent() {
    let mut base = Model::new(1 << 20);
    base.fill(0, 1 << 20, Fill::Noise, 3);
    let top = Model::new(1 << 20);
    for format in ["vhd", "vdi"] {
        let below = written(with("block_size=64k", format, 2), format, &base, None);
        let image = written(with("block_size=64k", format, 2), format, &top, Some(below));
        let read = read_all(&image.image).unwrap();
        assert!(read[..1 << 20].iter().all(|b| *b == 0), "{format}");
    }
}

/// A child over `below`, opened over `other`.
fn over_another(format: &str, below: Written, other: &Written) -> Error {
    let mut top = Model::new(1 << 16);
    top.fill(0, 512, Fill::Text, 0);
    let child = written(with("", format, 1), format, &top, Some(below));
    let resolver = OnlyOne(Some(Arc::clone(&other.file)));
    let options = OpenOptions::new()
        .format(format)
        .resolver(Arc::new(resolver));
    let opened = options.open(Arc::clone(&child.file) as Arc<dyn BlockSource>);
    opened.expect_err("another image is not the parent")
}

#[test]
fn another_parent_is_refused() {
    let disk = Model::new(1 << 16);
    for (format, field) in [("vhd", "parent_unique_id"), ("vdi", "uuid_linkage")] {
        let make = |options: &str| written(with(options, format, 1), format, &disk, None);
        let other = make("uuid=11111111-2222-8333-8444-555555555555");
        let error = over_another(format, make(""), &other);
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn a_parent_that_only_looks_raw_is_refused() {
    let copy = |name: &str| std::fs::read(testdata(name)).unwrap();
    let child: Arc<dyn BlockSource> = Arc::new(Memory::new(copy("vhd/good/child-over-raw.vhd")));
    let parent = Arc::new(Memory::new(copy("vhd/good/base.vhd")));
    let resolver = Arc::new(OnlyOne(Some(parent)));
    let error = OpenOptions::new()
        .resolver(resolver)
        .open(child)
        .unwrap_err();
    assert!(error.to_string().contains("means a raw parent"), "{error}");
}

#[test]
fn children_need_leave_to_open_their_parents() {
    for golden in goldens()
        .iter()
        .filter(|g| g.has_needs() && g.format != "qcow2")
    {
        let alone = OpenOptions::new().open_path(&golden.path);
        assert!(
            matches!(alone, Err(Error::Denied { .. })),
            "{}",
            golden.file
        );
        let detached = OpenOptions::new().references(PathPolicy::Detach);
        let image = detached.open_path(&golden.path).unwrap();
        assert!(
            matches!(read_all(&image), Err(Error::Detached { .. })),
            "{}",
            golden.file
        );
    }
}

#[test]
fn what_is_odd_is_told() {
    for (file, words) in [
        ("no-footer", "missing"),
        ("footer-damaged", "damaged"),
        ("copy-damaged", "copy of the footer at the start"),
        ("size-by-geometry", "the geometry counts"),
    ] {
        let path = testdata(&format!("vhd/good/{file}.vhd"));
        let image = OpenOptions::new().open_path(path).unwrap();
        let warnings = image.info().warnings.join("\n");
        assert!(warnings.contains(words), "{file}: {warnings}");
    }
    let path = testdata("vhd/good/size-vbox.vhd");
    assert_eq!(
        OpenOptions::new()
            .open_path(path)
            .unwrap()
            .info()
            .warnings
            .len(),
        0
    );
}

/// No cut of a file, at any sector or any byte of its tables, is read as anything but the disk.
#[test]
fn a_file_cut_short_is_refused_or_still_right() {
    let mut refused = 0;
    for golden in goldens()
        .iter()
        .filter(|g| ["vhd", "vdi"].contains(&g.format.as_str()))
    {
        if golden.has_needs() || golden.file.contains("qemu") {
            continue;
        }
        let whole = std::fs::read(&golden.path).unwrap();
        let content = read_all(&golden.options().open_path(&golden.path).unwrap()).unwrap();
        let sectors = (0..whole.len()).step_by(512);
        let tables = (0..whole.len().min(2100)).step_by(13);
        let ends = [1, 2, 100, 511, 513, 1024].map(|n| whole.len().saturating_sub(n));
        for len in sectors.chain(tables).chain(ends) {
            // What a cut leaves of a fixed disk is a disk to whoever asks for one.
            let source = Arc::new(Memory::new(&whole[..len]));
            let options = OpenOptions::new().format(golden.format.as_str());
            let Ok(image) = options.open(source) else {
                refused += 1;
                continue;
            };
            match read_all(&image) {
                Ok(read) => assert!(
                    read == content || golden.file.contains("holding"),
                    "{} cut to {len}",
                    golden.file
                ),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn no_flipped_bit_makes_a_panic() {
    let mut rng = Rng(17);
    for golden in goldens()
        .iter()
        .filter(|g| ["vhd", "vdi"].contains(&g.format.as_str()))
    {
        let whole = std::fs::read(&golden.path).unwrap();
        for _ in 0..80 {
            let mut bytes = whole.clone();
            let at = usize::try_from(rng.below(bytes.len().min(2600) as u64)).unwrap();
            bytes[at] ^= 1 << rng.below(8);
            let resolver = Arc::new(blockform::DetachReferences);
            let options = OpenOptions::new()
                .format(golden.format.as_str())
                .resolver(resolver);
            let Ok(image) = options.open(Arc::new(Memory::new(bytes))) else {
                continue;
            };
            if image.size() <= 1 << 24 {
                let _ = (image.extents().count(), read_all(&image));
            }
        }
    }
}

fn info(path: &Path, format: &str) -> serde_json::Value {
    let mut command = Command::new("qemu-img");
    command
        .args(["info", "--output=json", "-f", format])
        .arg(path);
    serde_json::from_str(&run(&mut command)).unwrap()
}

#[test]
fn qemu_img_reads_what_we_write_and_we_what_it_writes() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut rng = Rng(19);
    for (round, (format, options)) in [
        ("vpc", "subformat=dynamic"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vdi", "static=off"),
        ("vdi", "static=on"),
    ]
    .into_iter()
    .enumerate()
    {
        let disk = disk(3000 + 1100 * round as u64, &mut rng);
        std::fs::write(path("disk.raw"), &disk.bytes).unwrap();
        with(options, format, 2)
            .convert_to_path(&disk, path("ours"))
            .unwrap();
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "raw", "-F", format]);
        run(compare.arg(path("disk.raw")).arg(path("ours")));
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", format, "-o", options]);
        run(convert.arg(path("disk.raw")).arg(path("theirs")));
        let theirs = OpenOptions::new()
            .format(format)
            .open_path(path("theirs"))
            .unwrap();
        check(&theirs, &disk.bytes, &mut rng);
        let ours = info(&path("ours"), format);
        let other = info(&path("theirs"), format);
        assert_eq!(
            ours["virtual-size"], other["virtual-size"],
            "{format} {options}"
        );
        assert_eq!(
            ours["cluster-size"], other["cluster-size"],
            "{format} {options}"
        );
    }
}
