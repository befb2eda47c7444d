//! A conversion that was interrupted goes on, and its result is that of one that was not.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{fails, sample_disk};
use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockSource, Error, Extent, Result};

/// A disk that cannot be read from some offset on.
#[derive(Debug)]
struct Broken<'a> {
    disk: &'a Memory,
    from: u64,
    read: AtomicU64,
}

impl BlockSource for Broken<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        // What tells sources apart is read at both ends, and has to be the same.
        let end = offset + buf.len() as u64;
        if end > self.from && buf.len() > 65_536 {
            return Err(Error::io("read", std::io::ErrorKind::Other.into()));
        }
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.disk.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.disk.extent_at(offset, limit)
    }
}

fn ways() -> Vec<(&'static str, ConvertOptions)> {
    let to = ConvertOptions::to;
    vec![
        ("a.raw", to("raw")),
        ("b.raw", to("raw").option("preallocation", "full")),
        ("c.qcow2", to("qcow2")),
        (
            "d.qcow2",
            to("qcow2")
                .option("extended_l2", "on")
                .option("cluster_size", "16k"),
        ),
        #[cfg(feature = "zlib")]
        ("e.qcow2", to("qcow2").compress(true)),
        ("f.qcow2", to("qcow2").option("data_file", "f.data")),
        ("g.vhdx", to("vhdx").option("block_size", "1M")),
        ("h.vhd", to("vhd")),
        ("i.vdi", to("vdi")),
        ("j.vmdk", to("vmdk")),
        #[cfg(feature = "zlib")]
        ("k.vmdk", to("vmdk").option("subformat", "streamOptimized")),
    ]
}

fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn it_goes_on_wherever_it_broke_off() {
    let size = 9 << 20;
    let disk = Memory::new(sample_disk(21, size));
    for (name, options) in ways() {
        let whole = tempfile::tempdir().unwrap();
        options
            .convert_to_path(&disk, whole.path().join(name))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let options = options.resumable(1 << 20);
        let mut read = Vec::new();
        for (threads, from) in [(1, 1_u64), (2, 3), (1, 4), (3, 4), (2, 5), (1, 7), (4, 9)] {
            let source = Broken {
                disk: &disk,
                from: from << 20,
                read: AtomicU64::new(0),
            };
            let options = options.clone().threads(NonZeroUsize::new(threads).unwrap());
            let done = options.convert_to_path(&source, &path);
            read.push(source.read.into_inner());
            assert_eq!(done.is_ok(), from == 9, "{name} {from}");
            if from < 9 {
                assert!(!path.exists());
                assert!(folder.path().join(format!(".{name}.journal")).exists());
            }
        }
        assert!(files_of(folder.path()) == files_of(whole.path()), "{name}");
        // The last call reads what is left, and not all of it again.
        assert!(*read.last().unwrap() < (size as u64) / 2, "{name} {read:?}");
    }
}

#[test]
fn a_stop_can_be_gone_on_from_too() {
    let disk = Memory::new(sample_disk(22, 8 << 20));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let options = ConvertOptions::to("qcow2").resumable(1 << 20);
    for stop_at in 1..4_u64 {
        let stopping =
            options
                .clone()
                .progress(move |progress| match progress.done >= (2 * stop_at) << 20 {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                });
        let stopped = stopping.convert_to_path(&disk, &path);
        assert!(matches!(stopped, Err(Error::Cancelled)));
    }
    options.convert_to_path(&disk, &path).unwrap();
    let again = folder.path().join("again.qcow2");
    ConvertOptions::to("qcow2")
        .convert_to_path(&disk, &again)
        .unwrap();
    let files = files_of(folder.path());
    assert_eq!(files.len(), 2);
    assert!(files[0].1 == files[1].1);
}

#[test]
fn another_conversion_does_not_go_on_from_it() {
    let disk = Memory::new(sample_disk(23, 4 << 20));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let options = ConvertOptions::to("qcow2").resumable(1 << 20);
    let source = Broken {
        disk: &disk,
        from: 2 << 20,
        read: AtomicU64::new(0),
    };
    fails!(
        options.convert_to_path(&source, &path),
        Error::Io { .. },
        "read"
    );
    let mut other = sample_disk(23, 4 << 20);
    other[5] ^= 1;
    let other = Memory::new(other);
    let shorter = Memory::new(sample_disk(23, (4 << 20) - 512));
    for (source, options) in [
        (&other, options.clone()),
        (&shorter, options.clone()),
        (&disk, options.clone().option("cluster_size", "4k")),
        (&disk, options.clone().sparse_size(0)),
    ] {
        let refused = options.convert_to_path(source, &path);
        assert!(
            matches!(refused, Err(Error::InvalidInput(_))),
            "{refused:?}"
        );
    }
    // Without its unfinished file a journal is worth nothing: it begins anew.
    std::fs::remove_file(folder.path().join(".disk.qcow2.part")).unwrap();
    options.convert_to_path(&disk, &path).unwrap();
    assert_eq!(files_of(folder.path()).len(), 1);
}

#[cfg(unix)]
#[test]
fn no_link_is_followed_to_somebody_elses_file() {
    let disk = Memory::new(sample_disk(24, 4 << 20));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let options = ConvertOptions::to("qcow2").resumable(1 << 20);
    let victim = folder.path().join("victim");
    for name in [".disk.qcow2.journal", ".disk.qcow2.part"] {
        let source = Broken {
            disk: &disk,
            from: 2 << 20,
            read: AtomicU64::new(0),
        };
        fails!(
            options.convert_to_path(&source, &path),
            Error::Io { .. },
            "read"
        );
        let file = folder.path().join(name);
        std::fs::rename(&file, &victim).unwrap();
        std::os::unix::fs::symlink(&victim, &file).unwrap();
        let before = std::fs::read(&victim).unwrap();
        fails!(
            options.convert_to_path(&disk, &path),
            Error::Io { .. },
            "open"
        );
        assert!(std::fs::read(&victim).unwrap() == before, "{name}");
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn fresh_identifiers_are_refused_and_a_file_of_that_name_is_not() {
    let disk = Memory::new(sample_disk(3, 1 << 20));
    let folder = tempfile::tempdir().unwrap();
    let to = |format: &str, name: &str, value: &str| {
        ConvertOptions::to(format)
            .option(name, value)
            .resumable(1 << 20)
            .convert_to_path(&disk, folder.path().join("disk"))
    };
    for (format, name, value) in [
        ("vhd", "fresh", "on"),
        ("vdi", "fresh", "yes"),
        ("vhdx", "guid", "fresh"),
    ] {
        let error = to(format, name, value).unwrap_err();
        assert!(matches!(error, Error::InvalidInput(_)), "{format}: {error}");
        assert!(error.to_string().contains("not fresh"), "{format}: {error}");
        assert!(files_of(folder.path()).is_empty(), "{format}");
    }
    to("qcow2", "data_file", "fresh").unwrap();
    to("vdi", "fresh", "no").unwrap();
}
