//! Many targets in one read, and the digest of what was read.

use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{read_all, sample_disk};
use blockform::convert::{Conversion, ConvertOptions, ImageSpec, Progress, content_digest};
use blockform::digest::{Algorithm, ContentDigest};
use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, Error, Extent, OpenOptions, PathPolicy, Result, Zeroes};

fn options() -> Vec<(&'static str, ImageSpec)> {
    let to = |format: &str| ImageSpec::new(format);
    vec![
        ("a.raw", to("raw")),
        ("b.qcow2", to("qcow2")),
        (
            "c.qcow2",
            to("qcow2").compress(true).option("cluster_size", "2M"),
        ),
        ("d.vmdk", to("vmdk").option("subformat", "streamOptimized")),
        ("e.vhdx", to("vhdx")),
        ("f.vdi", to("vdi")),
        ("g.vhd", to("vhd")),
        (
            "h.vmdk",
            to("vmdk").option("subformat", "twoGbMaxExtentFlat"),
        ),
    ]
}

/// As long as the formats let it be, whatever else is in the conversion.
fn disk() -> Memory {
    Memory::new(sample_disk(11, 5_000_123))
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
fn each_target_is_what_it_would_be_alone() {
    let disk = disk();
    let (alone, together) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, options) in options() {
        ConvertOptions::from(options)
            .convert_to_path(&disk, alone.path().join(name))
            .unwrap();
    }
    for threads in [1, 2, 4] {
        let mut conversion = Conversion::of(&disk)
            .threads(NonZeroUsize::new(threads).unwrap())
            .content_digest(Algorithm::Sha256);
        for (name, options) in options() {
            conversion = conversion.to_path(options, together.path().join(name));
        }
        let outcome = conversion.run().unwrap();
        assert_eq!(outcome.targets.len(), 8);
        assert!(outcome.targets.iter().all(|t| t.is_ok()));
        let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
            files.iter().map(|(name, _)| name.clone()).collect()
        };
        let (want, got) = (files_of(alone.path()), files_of(together.path()));
        assert_eq!(names(&want), names(&got));
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            assert!(want == got, "{name} with {threads} threads");
        }
        let digest = content_digest(&disk, Algorithm::Sha256).unwrap();
        assert_eq!(outcome.content, Some(digest));
    }
}

/// The same disk has the same digest in every format that keeps its size.
#[test]
fn the_digest_is_that_of_the_disk_and_not_of_its_format() {
    let disk = Memory::new(sample_disk(5, 6 << 20));
    let want = content_digest(&disk, Algorithm::Blake3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let policy = OpenOptions::new().references(PathPolicy::SameDirectory);
    for (name, options) in options() {
        let options = match name {
            "g.vhd" => options.option("force_size", "on"),
            _ => options,
        };
        let path = folder.path().join(name);
        let made = ConvertOptions::from(options)
            .content_digest(Algorithm::Blake3)
            .convert_to_path(&disk, &path)
            .unwrap();
        assert_eq!(made.content.as_ref(), Some(&want), "{name}");
        let open = match name {
            "a.raw" => policy.clone().format("raw"),
            _ => policy.clone(),
        };
        let image = open.open_path(&path).unwrap();
        assert_eq!(
            content_digest(&image, Algorithm::Blake3).unwrap(),
            want,
            "{name}"
        );
    }
    let mut other = read_all(&disk).unwrap();
    other[3 << 20] ^= 1;
    let other = content_digest(&Memory::new(other), Algorithm::Blake3).unwrap();
    assert_ne!(other, want);
}

#[test]
fn another_digest_than_expected_leaves_nothing() {
    let disk = disk();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let right = content_digest(&disk, Algorithm::Md5).unwrap();
    let wrong: ContentDigest = format!("content-md5:{}", "00".repeat(16)).parse().unwrap();
    let error = ConvertOptions::to("qcow2")
        .expect_content(wrong.clone())
        .convert_to_path(&disk, &path);
    assert!(matches!(error, Err(Error::DigestMismatch { .. })));
    let error = Conversion::of(&disk)
        .to_path("qcow2", &path)
        .to_path("raw", folder.path().join("disk.raw"))
        .allow_failure(true)
        .expect_content(wrong)
        .run();
    assert!(matches!(error, Err(Error::DigestMismatch { .. })));
    assert!(files_of(folder.path()).is_empty());
    ConvertOptions::to("qcow2")
        .expect_content(right)
        .convert_to_path(&disk, &path)
        .unwrap();
    assert_eq!(files_of(folder.path()).len(), 1);
}

/// Storage that fails after so many writes.
#[derive(Debug)]
struct Full(Memory, AtomicU64);

impl BlockSource for Full {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.0.extent_at(offset, limit)
    }
}

impl BlockTarget for Full {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let left = self
            .1
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        match left {
            Ok(_) => self.0.write_all_at(bytes, offset),
            Err(_) => Err(Error::io("write", io::ErrorKind::StorageFull.into())),
        }
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, how: Zeroes) -> Result<()> {
        self.0.write_zeroes_at(offset, len, how)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.0.allocate(offset, len)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.0.set_size(size)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn reads_as_zero(&self) -> bool {
        true
    }
}

#[test]
fn one_that_fails_takes_the_others_with_it_only_if_it_is_to() {
    let disk = disk();
    let alone = tempfile::tempdir().unwrap();
    for (name, options) in options() {
        ConvertOptions::from(options)
            .convert_to_path(&disk, alone.path().join(name))
            .unwrap();
    }
    for (writes, threads) in [(0, 1), (0, 4), (1, 2), (2, 4), (3, 1), (4, 3)] {
        for allow in [false, true] {
            let full = Arc::new(Full(Memory::default(), AtomicU64::new(writes)));
            let folder = tempfile::tempdir().unwrap();
            let mut conversion = Conversion::of(&disk)
                .allow_failure(allow)
                .threads(NonZeroUsize::new(threads).unwrap())
                .to_targets("qcow2", &[full]);
            for (name, options) in options() {
                conversion = conversion.to_path(options, folder.path().join(name));
            }
            let outcome = conversion.run();
            if !allow {
                assert!(matches!(outcome, Err(Error::Io { .. })), "{writes}");
                assert!(files_of(folder.path()).is_empty());
                continue;
            }
            let targets = outcome.unwrap().targets;
            assert!(matches!(targets[0], Err(Error::Io { .. })), "{writes}");
            assert!(targets[1..].iter().all(|target| target.is_ok()));
            assert!(files_of(folder.path()) == files_of(alone.path()));
        }
    }
    // If all fail, each says why.
    let full = || Arc::new(Full(Memory::default(), AtomicU64::new(0)));
    let outcome = Conversion::of(&disk)
        .allow_failure(true)
        .to_targets("qcow2", &[full()])
        .to_targets("raw", &[full()])
        .run()
        .unwrap();
    assert!(
        outcome
            .targets
            .iter()
            .all(|t| matches!(t, Err(Error::Io { .. })))
    );
}

#[test]
fn progress_can_stop_it_and_nothing_is_left() {
    let disk = disk();
    let folder = tempfile::tempdir().unwrap();
    for threads in [1, 4] {
        let stop = |progress: Progress| {
            assert!(progress.done <= progress.total);
            match progress.done > 1 << 20 {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let outcome = Conversion::of(&disk)
            .threads(NonZeroUsize::new(threads).unwrap())
            .progress(move |target, progress| match target {
                0 => stop(progress),
                _ => ControlFlow::Continue(()),
            })
            .to_path("qcow2", folder.path().join("a.qcow2"))
            .to_path("raw", folder.path().join("b.raw"))
            .allow_failure(true)
            .run();
        assert!(matches!(outcome, Err(Error::Cancelled)));
        let options = ConvertOptions::to("qcow2").progress(stop);
        let outcome = options.convert_to_path(&disk, folder.path().join("a.qcow2"));
        assert!(matches!(outcome, Err(Error::Cancelled)));
        assert!(files_of(folder.path()).is_empty());
    }
}

#[test]
fn the_digests_of_files_and_streams_are_those_of_their_bytes() {
    let disk = Arc::new(disk());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    let bytes = read_all(&*disk).unwrap();
    let want = |bytes: &[u8], algorithm: Algorithm| algorithm.digest(bytes).unwrap();
    let image = ImageSpec::new("vhdx")
        .target_digest(Algorithm::Sha512)
        .target_digest(Algorithm::Md5);
    let options = ConvertOptions::from(image.clone());
    let whole = options
        .clone()
        .file_digest(disk.clone(), Algorithm::Sha256)
        .expect_file(disk.clone(), want(&bytes, Algorithm::Sha1))
        .convert_to_path(&*disk, &path)
        .unwrap();
    let written = std::fs::read(&path).unwrap();
    let both = |bytes: &[u8]| [want(bytes, Algorithm::Sha512), want(bytes, Algorithm::Md5)];
    assert_eq!(whole.target_digests, both(&written));
    let read = [
        want(&bytes, Algorithm::Sha256),
        want(&bytes, Algorithm::Sha1),
    ];
    assert_eq!(whole.file_digests, read);

    let mut stream = Vec::new();
    let made = options.convert_to_writer(&*disk, &mut stream).unwrap();
    assert_eq!(made.target_digests, both(&stream));

    std::fs::remove_file(&path).unwrap();
    let wrong = want(b"", Algorithm::Sha256);
    for many in [false, true] {
        let error = match many {
            false => ConvertOptions::to("vhdx")
                .expect_file(disk.clone(), wrong.clone())
                .convert_to_path(&*disk, &path)
                .map(drop),
            true => Conversion::of(&*disk)
                .expect_file(disk.clone(), wrong.clone())
                .allow_failure(true)
                .to_path(image.clone(), &path)
                .run()
                .map(drop),
        };
        assert!(matches!(error, Err(Error::DigestMismatch { .. })));
        assert!(files_of(folder.path()).is_empty());
    }
}

/// Reading back finds nothing wrong with what is right, of one file and of many.
#[test]
fn what_was_written_is_read_back() {
    let disk = disk();
    let folder = tempfile::tempdir().unwrap();
    let mut conversion = Conversion::of(&disk);
    for (name, options) in options() {
        let image = options.verify(true);
        ConvertOptions::from(image.clone())
            .convert_to_path(&disk, folder.path().join(format!("one-{name}")))
            .unwrap();
        conversion = conversion.to_path(image, folder.path().join(name));
    }
    conversion.run().unwrap();
    assert_eq!(files_of(folder.path()).len(), 18);
}

/// A disk that reads otherwise the second time.
#[derive(Debug)]
struct Fickle(Memory, AtomicU64);

impl BlockSource for Fickle {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = self.0.read_at(buf, offset)?;
        if self.1.fetch_add(n as u64, Ordering::Relaxed) >= self.size() {
            buf[0] ^= 1;
        }
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.0.extent_at(offset, limit)
    }
}

#[test]
fn what_differs_when_it_is_read_back_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    for many in [false, true] {
        let disk = Fickle(Memory::new(sample_disk(9, 1 << 20)), AtomicU64::new(0));
        let image = ImageSpec::new("raw").verify(true).sparse_size(0);
        let path = folder.path().join("disk.raw");
        let error = match many {
            false => ConvertOptions::from(image)
                .convert_to_path(&disk, &path)
                .map(drop),
            true => Conversion::of(&disk).to_path(image, &path).run().map(drop),
        };
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("differs from the source at byte 0"),
            "{error}"
        );
        assert!(files_of(folder.path()).is_empty());
    }
}

#[test]
fn two_targets_of_one_name_are_refused() {
    let disk = disk();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let outcome = Conversion::of(&disk)
        .to_path("qcow2", &path)
        .to_path("raw", folder.path().join(".").join("disk"))
        .run();
    assert!(matches!(outcome, Err(Error::InvalidInput(_))));
    assert!(files_of(folder.path()).is_empty());
}
