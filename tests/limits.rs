//! Limits hold for all that an image may demand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockTarget, Error, Limits, OpenOptions, PathPolicy};
use support::{can_unpack, files_below, goldens, read_all, sha256_of, skipped, testdata};

fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
    let mut limits = Limits::default();
    change(&mut limits);
    limits
}

fn exceeded(file: &str, limits: Limits) -> Option<&'static str> {
    match OpenOptions::new().limits(limits).open_path(testdata(file)) {
        Ok(_) => None,
        Err(Error::LimitExceeded {
            limit,
            value,
            maximum,
            ..
        }) => {
            assert!(value > maximum);
            Some(limit)
        }
        Err(other) => panic!("{file}: {other}"),
    }
}

#[test]
fn each_limit_holds_to_the_byte() {
    let plain = "qcow2/good/plain.qcow2";
    let size = 1 << 20;
    assert_eq!(exceeded(plain, limits(|l| l.virtual_size = size)), None);
    let over = limits(|l| l.virtual_size = size - 1);
    assert_eq!(exceeded(plain, over), Some("virtual_size"));

    let snapshots = "qcow2/good/snapshots.qcow2";
    assert_eq!(exceeded(snapshots, limits(|l| l.snapshots = 2)), None);
    let over = limits(|l| l.snapshots = 1);
    assert_eq!(exceeded(snapshots, over), Some("snapshots"));

    // 4 MiB in clusters of 512 bytes: an L1 table of 128 entries.
    let shrunk = "qcow2/good/shrunk.qcow2";
    let over = limits(|l| l.metadata_bytes = 100);
    assert_eq!(exceeded(shrunk, over), Some("metadata_bytes"));
}

/// Limits that count no clusters: texts, names, files.
#[test]
fn texts_names_and_files_have_limits_of_their_own() {
    let exceeded_by = |file: &str, change: fn(&mut Limits)| exceeded(file, limits(change));
    let descriptor = "vmdk/good/crlf.vmdk";
    let size = std::fs::metadata(testdata(descriptor)).unwrap().len();
    let mut just = limits(|l| l.descriptor_bytes = size);
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    let opened = |limits: &Limits| {
        options
            .clone()
            .limits(limits.clone())
            .open_path(testdata(descriptor))
    };
    assert!(opened(&just).is_ok());
    just.descriptor_bytes -= 1;
    assert!(matches!(
        opened(&just),
        Err(Error::LimitExceeded {
            limit: "descriptor_bytes",
            ..
        })
    ));
    let few = |l: &mut Limits| l.descriptor_bytes = 100;
    for file in [
        "vmdk/good/monolithicSparse.vmdk",
        "ova/good/ovftool.ova",
        "parallels/bundles/plain.hdd/DiskDescriptor.xml",
    ] {
        assert_eq!(exceeded_by(file, few), Some("descriptor_bytes"), "{file}");
    }
    let extents = exceeded_by("vmdk/good/kinds.vmdk", |l| l.extents = 1);
    assert_eq!(extents, Some("extents"));
    let files = exceeded_by("ova/good/ovftool.ova", |l| l.archive_files = 1);
    assert_eq!(files, Some("archive_files"));
    let name = exceeded_by("vhd/good/child-w2ru.vhd", |l| l.name_bytes = 3);
    assert_eq!(name, Some("name_bytes"));
}

#[test]
fn a_conversion_writes_no_more_than_it_may() {
    let disk = Memory::new(vec![7; 3 << 20]);
    let convert = |bytes: u64| {
        let target: Arc<dyn BlockTarget> = Arc::new(Memory::default());
        let options = ConvertOptions::to("qcow2").limits(limits(|l| l.output_bytes = bytes));
        options.convert_to_targets(&disk, &[target])
    };
    assert!(convert(3 << 20).is_ok());
    match convert((3 << 20) - 1) {
        Err(
            error @ Error::LimitExceeded {
                limit: "output_bytes",
                ..
            },
        ) => {
            let hint = error.hint().unwrap().to_string();
            assert_eq!(hint, "raise Limits::output_bytes if the image is trusted");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_caller_is_told_which_limit_and_by_how_much() {
    let over = limits(|l| l.virtual_size = 4096);
    let options = OpenOptions::new().limits(over);
    let error = options
        .open_path(testdata("qcow2/good/plain.qcow2"))
        .unwrap_err();
    let text = error.to_string();
    for word in ["virtual size", "1048576", "4096", "limit virtual_size"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn an_image_reads_the_same_with_next_to_no_cache() {
    for golden in goldens() {
        let options = golden.options().limits(limits(|l| l.cache_bytes = 0));
        let image = options.open_path(&golden.path).unwrap();
        assert_eq!(
            sha256_of(&image).unwrap(),
            golden.sha256(),
            "{}",
            golden.file
        );
    }
}

/// The most memory that this process ever had, in KiB.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn what_is_refused_is_refused_at_once_and_cheaply() {
    let before = peak_kib();
    let mut slowest = Duration::ZERO;
    let bad = files_below(&testdata("")).into_iter();
    let bad: Vec<_> = bad
        .filter(|path| path.parent().is_some_and(|folder| folder.ends_with("bad")))
        .filter(|path| can_unpack(path.to_str().unwrap()))
        .collect();
    assert!(bad.len() > 200, "{}", bad.len());
    for path in bad {
        let start = Instant::now();
        // Some are refused only when they are compared with their manifests, or described.
        let refused = OpenOptions::new()
            .verify_manifest(path.extension().is_some_and(|ending| ending == "ova"))
            .open_path(&path)
            .and_then(|image| read_all(&image).map(drop));
        assert!(
            !matches!(refused, Ok(()) | Err(Error::Io { .. })),
            "{}",
            path.display()
        );
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    match (before, peak_kib()) {
        (Some(before), Some(after)) => {
            let grown = after - before;
            assert!(grown < 64 << 10, "{grown} KiB more");
        }
        _ => skipped("this system does not tell how much memory was used"),
    }
}

#[test]
fn a_size_in_a_header_allocates_nothing() {
    let good = std::fs::read(testdata("qcow2/good/snapshots.qcow2")).unwrap();
    // Each field of the header in turn says the most that it can.
    for (at, len) in [
        (8, 8),
        (16, 4),
        (20, 4),
        (24, 8),
        (36, 4),
        (40, 8),
        (48, 8),
        (56, 4),
        (60, 4),
        (64, 8),
        (100, 4),
    ] {
        for byte in [0xff, 0x7f] {
            let mut image = good.clone();
            image[at..at + len].fill(0xff);
            image[at] = byte;
            let source = Arc::new(Memory::new(image));
            let opened = OpenOptions::new().open(source);
            // The refcount table is not needed to read, and without an offset there is no name.
            let harmless = [16, 48, 56].contains(&at);
            assert!(opened.is_err() || harmless, "byte {at} was believed");
        }
    }
}
