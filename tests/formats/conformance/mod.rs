//! One suite for every source and every target: storage, and every image of every format.

#![allow(clippy::disallowed_methods, reason = "the sources are small")]

mod device;
mod source;
mod target;

use std::io::Cursor;
use std::sync::Arc;

use crate::support::model::{Fill, Model, Way, reopen};
use crate::support::{fails, goldens, read_all, sample_disk, sha256};
use blockform::convert::ConvertOptions;
use blockform::storage::{
    Concat, FileStorage, ForwardTarget, Memory, PendingFile, SeekSource, SeekTarget, Slice,
    SourceReader,
};
use blockform::{BlockSource, BlockSourceExt, BlockTarget, Error, ExtentKind, Zeroes};
use target::Abilities;

const GROWS: Abilities = Abilities {
    grows: true,
    shrinks: true,
    far_offsets: true,
};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A file with holes whose size is a multiple of nothing, and its content.
fn sparse_file(path: &std::path::Path) -> Vec<u8> {
    let mut content = vec![0; 1_500_001];
    let file = FileStorage::create_new(path).unwrap();
    file.set_size(content.len() as u64).unwrap();
    for (start, len) in [
        (0, 4096),
        (262_144, 70_000),
        (1_048_577, 3),
        (1_499_990, 11),
    ] {
        content[start..start + len].copy_from_slice(&crate::support::Rng(start as u64).bytes(len));
        file.write_all_at(&content[start..start + len], start as u64)
            .unwrap();
    }
    content
}

#[test]
fn files() {
    let folder = folder();
    let path = folder.path().join("sparse");
    let content = sparse_file(&path);
    let file = FileStorage::open(&path).unwrap();
    source::check("a sparse file", &file, &content);
    source::check(
        "a writable file",
        &FileStorage::open_writable(&path).unwrap(),
        &content,
    );
    let opened = std::fs::File::open(&path).unwrap();
    source::check(
        "an open file",
        &FileStorage::from_file(opened).unwrap(),
        &content,
    );
    let holes = file
        .extents()
        .map(Result::unwrap)
        .filter(|e| e.kind == ExtentKind::Zero);
    if cfg!(target_os = "linux") {
        assert!(holes.count() >= 2, "the holes of a file are found");
    }
    let empty = folder.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    source::check("an empty file", &FileStorage::open(&empty).unwrap(), b"");
}

#[test]
fn files_as_targets() {
    let folder = folder();
    let number = std::cell::Cell::new(0);
    let path = || {
        number.set(number.get() + 1);
        folder.path().join(number.get().to_string())
    };
    target::check("a new file", GROWS, || {
        (FileStorage::create_new(path()).unwrap(), Vec::new())
    });
    target::check("a file with content", GROWS, || {
        let path = path();
        let content = sample_disk(1, 100_001);
        std::fs::write(&path, &content).unwrap();
        (FileStorage::open_writable(&path).unwrap(), content)
    });
    target::check("a pending file", GROWS, || {
        let pending = PendingFile::create(path()).unwrap();
        let storage = pending.storage();
        // The open file outlives its name.
        drop(pending);
        (storage, Vec::new())
    });
}

#[cfg(unix)]
#[test]
fn a_file_gives_space_back_and_reserves_it() {
    let folder = folder();
    let file = FileStorage::create_new(folder.path().join("file")).unwrap();
    let len = 4 << 20;
    file.write_all_at(&vec![1; len], 0).unwrap();
    let full = file.allocated_size().unwrap();
    file.write_zeroes_at(1 << 20, 2 << 20, Zeroes::Keep)
        .unwrap();
    assert!(
        file.allocated_size().unwrap() >= full,
        "Keep keeps the space"
    );
    file.write_zeroes_at(1 << 20, 2 << 20, Zeroes::Discard)
        .unwrap();
    assert!(
        file.allocated_size().unwrap() < full,
        "Discard gives it back"
    );
    file.allocate(8 << 20, 1 << 20).unwrap();
    assert_eq!(file.size(), 9 << 20);
    assert!(file.allocated_size().unwrap() >= full - (2 << 20) + (1 << 20));
}

#[test]
fn memory() {
    for size in [0, 1, 511, 70_001] {
        let content = sample_disk(2, size);
        source::check("memory", &Memory::new(content.clone()), &content);
        target::check("memory as a target", GROWS, || {
            (Memory::new(content.clone()), content.clone())
        });
    }
}

#[test]
fn slices_and_rows_of_others() {
    let content = sample_disk(3, 200_003);
    let memory: Arc<dyn BlockSource> = Arc::new(Memory::new(content.clone()));
    for (start, len) in [
        (0, 200_003),
        (1, 200_002),
        (4097, 65_537),
        (200_003, 0),
        (77, 0),
    ] {
        let slice = Slice::new(Arc::clone(&memory), start as u64, len as u64).unwrap();
        source::check("a slice", &slice, &content[start..start + len]);
    }
    fails!(
        Slice::new(Arc::clone(&memory), 1, 200_003),
        Error::OutOfRange { .. },
        "200003"
    );
    fails!(
        Slice::new(Arc::clone(&memory), u64::MAX, 2),
        Error::OutOfRange { .. },
        "200003"
    );

    let folder = folder();
    let path = folder.path().join("sparse");
    let sparse = sparse_file(&path);
    let file: Arc<dyn BlockSource> = Arc::new(FileStorage::open(&path).unwrap());
    let parts = [
        Arc::clone(&memory),
        Arc::new(Memory::default()),
        Arc::clone(&file),
        Arc::new(Slice::new(Arc::clone(&memory), 5, 1).unwrap()),
        Arc::new(Slice::new(Arc::clone(&file), 300_001, 900_000).unwrap()),
    ];
    let row = [
        &content[..],
        &sparse,
        &content[5..6],
        &sparse[300_001..1_200_001],
    ]
    .concat();
    source::check("a row", &Concat::new(parts).unwrap(), &row);
    source::check("a row of nothing", &Concat::new([]).unwrap(), b"");
}

#[test]
fn cursors() {
    let content = sample_disk(4, 100_001);
    let cursor = SeekSource::new(Cursor::new(content.clone())).unwrap();
    source::check("a cursor", &cursor, &content);
    let memory = Memory::new(content.clone());
    let there_and_back = SeekSource::new(SourceReader::new(memory)).unwrap();
    source::check("a cursor over a source", &there_and_back, &content);
    let can = Abilities {
        grows: true,
        shrinks: false,
        far_offsets: false,
    };
    target::check("a cursor as a target", can, || {
        (
            SeekTarget::new(Cursor::new(content.clone())).unwrap(),
            content.clone(),
        )
    });
    target::check("an empty cursor as a target", can, || {
        (
            SeekTarget::new(Cursor::new(Vec::new())).unwrap(),
            Vec::new(),
        )
    });
}

#[test]
fn streams() {
    let bytes_of = ForwardTarget::into_inner;
    target::check_forward("a stream", || ForwardTarget::new(Vec::new()), bytes_of);
}

#[test]
fn references_boxes_and_arcs() {
    let content = sample_disk(5, 5000);
    let memory = Memory::new(content.clone());
    source::check("a reference", &&memory, &content);
    let boxed: Box<dyn BlockSource> = Box::new(Memory::new(content.clone()));
    source::check("a box", &boxed, &content);
    target::check("an arc", GROWS, || {
        let arc: Arc<dyn BlockTarget> = Arc::new(Memory::new(content.clone()));
        (arc, content.clone())
    });
}

#[test]
fn every_image() {
    for golden in goldens() {
        let image = golden.options().open_path(&golden.path).unwrap();
        let content = read_all(&image).unwrap();
        assert_eq!(sha256(&content), golden.sha256(), "{}", golden.file);
        source::check(&golden.file, &image, &content);
        let len = content.len();
        let inner = Slice::new(&image, (len / 3) as u64, (len / 2) as u64).unwrap();
        let name = format!("a slice of {}", golden.file);
        source::check(&name, &inner, &content[len / 3..len / 3 + len / 2]);
    }
}

#[test]
fn every_snapshot() {
    for golden in goldens() {
        for snapshot in golden.entry["snapshots"].as_array().into_iter().flatten() {
            let id = snapshot["id"].as_str().unwrap().to_owned();
            let selector = blockform::image::SnapshotSelector::Id(id);
            let image = golden
                .options()
                .snapshot(selector)
                .open_path(&golden.path)
                .unwrap();
            let content = read_all(&image).unwrap();
            source::check(&golden.file, &image, &content);
        }
    }
}

#[test]
fn everything_that_is_written() {
    let mut disk = Model::new((3 << 20) + 512);
    let len = disk.bytes.len();
    let mut rng = crate::support::Rng(9);
    for n in 0..20 {
        let start = usize::try_from(rng.below(len as u64)).unwrap();
        let fill = Fill::ALL[n % Fill::ALL.len()];
        disk.fill(start, 150_000, fill, rng.next());
    }
    source::check("a disk in memory", &disk, &disk.bytes);
    let plain = Way::default();
    for way in [
        plain,
        Way {
            v2: true,
            cluster_bits: 9,
            ..plain
        },
        Way {
            extended_l2: true,
            ..plain
        },
        Way {
            compress: true,
            cluster_bits: 12,
            ..plain
        },
        Way {
            compress: true,
            zstd: true,
            extended_l2: true,
            ..plain
        },
        Way {
            data_file: true,
            ..plain
        },
        Way {
            preallocation: 1,
            cluster_bits: 21,
            ..plain
        },
    ] {
        let way = way.settled();
        let image = reopen(&way.write(&disk).unwrap(), None).unwrap();
        source::check(&way.text(), &image, &disk.bytes);
    }
    let raw = Arc::new(Memory::default());
    let targets = [Arc::clone(&raw) as Arc<dyn BlockTarget>];
    ConvertOptions::to("raw")
        .convert_to_targets(&disk, &targets)
        .unwrap();
    source::check("a raw disk", &raw, &disk.bytes);
}
