//! Properties of qcow, QED and Parallels.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::{can_unpack, goldens, read_all, sha256, testdata};
use blockform::formats::Formats;
use blockform::image::CreateOptions;
use blockform::storage::{FileStorage, Memory};
use blockform::{BlockSource, Error, OpenOptions, PathPolicy};

const FORMATS: [&str; 3] = ["qcow", "qed", "parallels"];

#[test]
fn they_are_not_written() {
    for name in FORMATS {
        let error = Formats::all()
            .by_name(name)
            .unwrap()
            .create(&CreateOptions::new(1 << 20))
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Unsupported { .. }), "{text}");
        assert!(
            text.contains("writing this format is not supported"),
            "{text}"
        );
    }
}

/// These formats' writers write clusters whole: not a byte of a file that was cut is taken for zero.
#[test]
fn nothing_that_was_cut_off_reads_as_zero() {
    let mut refused = 0;
    for golden in goldens() {
        if !FORMATS.contains(&golden.format.as_str()) || golden.has_needs() {
            continue;
        }
        let whole = fs::read(&golden.path).unwrap();
        let ends = (0..whole.len()).step_by(512).chain(0..whole.len().min(200));
        for end in ends {
            let source = Arc::new(Memory::new(&whole[..end]));
            let read = OpenOptions::new()
                .open(source)
                .and_then(|image| read_all(&image));
            match read {
                Ok(bytes) => assert_eq!(sha256(&bytes), golden.sha256(), "{} {end}", golden.file),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

/// The overlay of a format in a folder with its base, which is called `base` there, by the name that
/// the overlay gives it, of the same length.
fn overlay(format: &str, name: &str, base: &str, folder: &Path) -> std::path::PathBuf {
    let good = |file: &str| testdata(&format!("{format}/good/{file}.{format}"));
    let mut bytes = fs::read(good("overlay")).unwrap();
    let old = format!("base.{format}").into_bytes();
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
    assert_eq!(old.len(), name.len());
    bytes[at..at + old.len()].copy_from_slice(name.as_bytes());
    fs::copy(good("base"), folder.join(base)).unwrap();
    let path = folder.join("overlay");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_ending_of_a_name_says_the_format_that_cannot_be_declared() {
    let cases = [
        ("qed", "BASE.QED", "BASE.QED", None),
        (
            "qed",
            "base_qed",
            "base_qed",
            Some("does not say it either"),
        ),
        (
            "qed",
            "base.img",
            "base.img",
            Some("does not say it either"),
        ),
        (
            "qed",
            "base.raw",
            "base.raw",
            Some("than the content shows"),
        ),
        ("qcow", "base.qcow", "base.qcow", None),
        ("qcow", "bas.qcow1", "bas.qcow1", None),
        (
            "qcow",
            "bas.qcow2",
            "bas.qcow2",
            Some("than the content shows"),
        ),
        (
            "qcow",
            "base.none",
            "base.none",
            Some("does not say it either"),
        ),
    ];
    for (format, name, base, refused) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = overlay(format, name, base, folder.path());
        let denied = OpenOptions::new().open_path(&path);
        assert!(matches!(denied, Err(Error::Denied { .. })), "{name}");
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        match (options.open_path(&path), refused) {
            (Ok(image), None) => {
                let golden = format!("{format}/good/overlay.{format}");
                let golden = goldens().into_iter().find(|g| g.file == golden).unwrap();
                assert_eq!(sha256(&read_all(&image).unwrap()), golden.sha256());
            }
            (Err(Error::InvalidInput(text)), Some(part)) => {
                assert!(text.contains(part), "{name}: {text}");
            }
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_base_that_is_left_closed_is_not_read_as_zeros() {
    let options = OpenOptions::new().references(PathPolicy::Detach);
    let image = options.open_path(testdata("qed/good/overlay.qed")).unwrap();
    let read = read_all(&image);
    assert!(matches!(read, Err(Error::Detached { .. })), "{read:?}");
}

#[test]
fn a_raw_base_that_shows_a_format_is_refused_unless_it_is_declared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut base = vec![7; 65_536];
    base[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(at("base.raw"), &base).unwrap();
    let open = |format: &str| {
        let file = format!("overlay-raw.{format}");
        fs::copy(testdata(&format!("{format}/good/{file}")), at(&file)).unwrap();
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        options
            .open_path(at(&file))
            .and_then(|image| read_all(&image))
    };
    // QED has a bit that says raw; qcow has nothing.
    assert_eq!(open("qed").unwrap()[..4096], base[..4096]);
    assert!(matches!(open("qcow"), Err(Error::InvalidInput(_))));
    // A disk to which somebody wrote an archive is a raw one still.
    let archive = fs::read(testdata("kinds/good/files.tar")).unwrap();
    base[..1024].copy_from_slice(&archive[..1024]);
    fs::write(at("base.raw"), &base).unwrap();
    assert_eq!(open("qcow").unwrap()[..4096], base[..4096]);
}

#[test]
fn what_is_dirty_says_so() {
    let info = |file: &str| {
        let image = OpenOptions::new().open_path(testdata(file)).unwrap();
        image.info().clone()
    };
    for (file, dirty) in [
        ("qed/good/need-check.qed", true),
        ("qed/good/some.qed", false),
        ("parallels/good/in-use.parallels", true),
        ("parallels/good/some.parallels", false),
    ] {
        let info = info(file);
        assert_eq!(
            (info.dirty, info.warnings.len()),
            (dirty, dirty.into()),
            "{file}"
        );
    }
    let bitmaps = info("parallels/good/bitmap.parallels").bitmaps;
    let name = bitmaps[0].name.as_str().unwrap();
    assert_eq!(name, "00010203-0405-0607-0809-0a0b0c0d0e0f");
    assert_eq!((bitmaps.len(), bitmaps[0].granularity), (1, 4096));
}

/// QEMU refuses what it makes itself with tables of one cluster; the specification allows them.
#[test]
fn qed_tables_may_be_one_cluster_long() {
    let mut image = vec![0; 4 * 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QED\0");
    for (at, number) in [(4, 4096_u32), (8, 1), (12, 1)] {
        put(at, &number.to_le_bytes());
    }
    for (at, number) in [
        (40, 4096_u64),
        (48, 12_288),
        (4096, 8192),
        (8200, 12_288),
        (8208, 1),
    ] {
        put(at, &number.to_le_bytes());
    }
    put(12_288, &[5; 4096]);
    let image = OpenOptions::new()
        .open(Arc::new(Memory::new(image)))
        .unwrap();
    let want = [vec![0; 4096], vec![5; 4096], vec![0; 4096]].concat();
    assert_eq!(read_all(&image).unwrap(), want);
}

#[test]
fn packed_clusters_come_in_any_piece() {
    for name in ["zlib-512", "zlib-64k"]
        .into_iter()
        .filter(|name| can_unpack(name))
    {
        let path = testdata(&format!("qcow/good/{name}.qcow"));
        let file = Arc::new(FileStorage::open(&path).unwrap());
        let image = OpenOptions::new().open(file).unwrap();
        let whole = read_all(&image).unwrap();
        for (offset, len) in [(0, 1), (511, 2), (500, 1500), (65_000, 5000), (1, 70_000)] {
            let mut buf = vec![0; len];
            let n = image.read_at(&mut buf, offset as u64).unwrap();
            assert_eq!(buf[..n], whole[offset..offset + n], "{name} {offset} {len}");
        }
    }
}
