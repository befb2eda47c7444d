//! Blocks of a file are shared where the file system does that, and the result is what copying gives.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{read_all, run, sample_disk, skipped};
use blockform::convert::ConvertOptions;
use blockform::digest::Algorithm;
use blockform::storage::{FileStorage, Memory};
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, Extent, Image, OpenOptions, Place, Result, Zeroes,
    check_extent,
};

/// A target that says that it shares blocks with files of that device, and does it by copying: all of a
/// place, a part of it, or now and then nothing.
#[derive(Debug)]
struct Sharing {
    inner: Memory,
    device: u64,
    most: u64,
    calls: AtomicU64,
    shared: AtomicU64,
    behind: AtomicU64,
}

impl Sharing {
    fn new(device: u64, most: u64) -> Arc<Self> {
        Arc::new(Sharing {
            inner: Memory::new(Vec::new()),
            device,
            most,
            calls: AtomicU64::new(0),
            shared: AtomicU64::new(0),
            behind: AtomicU64::new(0),
        })
    }
}

impl BlockSource for Sharing {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        check_extent(offset, limit, self.size())?;
        self.inner.extent_at(offset, limit)
    }
}

impl BlockTarget for Sharing {
    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.inner.write_all_at(data, offset)
    }

    fn write_zeroes_at(&self, offset: u64, len: u64, zeroes: Zeroes) -> Result<()> {
        self.inner.write_zeroes_at(offset, len, zeroes)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate(offset, len)
    }

    fn set_size(&self, size: u64) -> Result<()> {
        self.inner.set_size(size)
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn write_behind(&self, offset: u64, len: u64) {
        let before = self.behind.fetch_add(len, Ordering::Relaxed);
        assert_eq!(offset, before, "each byte once, in order");
    }

    fn reads_as_zero(&self) -> bool {
        self.inner.reads_as_zero()
    }

    fn shares_blocks(&self) -> Option<u64> {
        Some(self.device)
    }

    fn share_from(&self, place: &Place<'_>, offset: u64) -> Result<u64> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let file = place
            .handle
            .and_then(|handle| handle.downcast_ref::<File>());
        let Some(file) = file.filter(|_| call % 5 != 4) else {
            return Ok(0);
        };
        let len = place.len.min(self.most);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut bytes, place.offset).unwrap();
        self.inner.write_all_at(&bytes, offset)?;
        self.shared.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }
}

fn open(path: &Path, format: &str) -> Box<dyn Image> {
    OpenOptions::new().format(format).open_path(path).unwrap()
}

/// A disk as a file, raw and as qcow2 of odd clusters.
fn sources(folder: &Path) -> (Vec<u8>, Vec<Box<dyn Image>>) {
    let mut disk = sample_disk(7, 2 << 20);
    // A tail that fills no block.
    disk.truncate((2 << 20) - 1536);
    let raw = folder.join("disk.raw");
    std::fs::write(&raw, &disk).unwrap();
    let mut images = vec![open(&raw, "raw")];
    for (format, option) in [
        ("qcow2", ("cluster_size", "4k")),
        ("qcow2", ("cluster_size", "512")),
        ("vhdx", ("block_size", "1M")),
    ] {
        let path = folder.join(format!("{}.{format}", option.1));
        ConvertOptions::to(format)
            .option(option.0, option.1)
            .convert_to_path(&images[0], &path)
            .unwrap();
        images.push(open(&path, format));
    }
    (disk, images)
}

#[test]
fn what_is_shared_is_what_would_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, images) = sources(folder.path());
    let device = FileStorage::open(folder.path().join("disk.raw"))
        .unwrap()
        .identity()
        .unwrap()
        .device;
    let mut shared = 0;
    for image in &images {
        for format in ["raw", "qcow2", "vhdx", "vpc"] {
            let plain = Arc::new(Memory::new(Vec::new()));
            let options = ConvertOptions::to(format);
            let targets: [Arc<dyn BlockTarget>; 1] = [plain.clone()];
            options.convert_to_targets(image, &targets).unwrap();
            // Of another device only what is read can be shared.
            for (device, most) in [(device, u64::MAX), (device, 8192), (device + 1, 4096)] {
                let target = Sharing::new(device, most);
                let targets: [Arc<dyn BlockTarget>; 1] = [target.clone()];
                options.convert_to_targets(image, &targets).unwrap();
                let (ours, theirs) = (read_all(&target).unwrap(), read_all(&plain).unwrap());
                assert!(ours == theirs, "{format} by {most}");
                shared += target.shared.load(Ordering::Relaxed);
            }
            if format == "raw" {
                assert!(read_all(&plain).unwrap() == disk);
            }
        }
    }
    assert!(shared > 6 << 20, "{shared}");
}

#[test]
fn what_has_to_be_seen_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (_, images) = sources(folder.path());
    let device = images[0].identity().unwrap().device;
    let target = || Sharing::new(device, u64::MAX);
    let options = ConvertOptions::to("raw");
    let unseen = options.convert_to_targets(&images[0], &[target()]).unwrap();
    assert!(unseen.bytes_read < 4096, "{unseen:?}");
    assert!(unseen.bytes_written > 1 << 19, "{unseen:?}");
    let digest = options
        .clone()
        .content_digest(Algorithm::Md5)
        .convert_to_targets(&images[0], &[target()])
        .unwrap();
    let of_copy = options
        .content_digest(Algorithm::Md5)
        .convert_to_targets(&images[0], &[Arc::new(Memory::new(Vec::new()))])
        .unwrap();
    assert_eq!(digest.content, of_copy.content);
}

#[test]
fn what_has_to_reach_the_disk_is_on_its_way_before_the_end() {
    let disk = Memory::new(vec![7; 40 << 20]);
    for (sync, behind) in [(true, 32 << 20), (false, 0)] {
        let target = Sharing::new(0, 0);
        let targets: [Arc<dyn BlockTarget>; 1] = [target.clone()];
        ConvertOptions::to("raw")
            .sync(sync)
            .convert_to_targets(&disk, &targets)
            .unwrap();
        assert_eq!(target.behind.load(Ordering::Relaxed), behind);
    }
}

/// A file system whose files share blocks, mounted from a file, where that may be done.
struct Mounted {
    folder: tempfile::TempDir,
}

impl Mounted {
    fn new(kind: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(320 << 20)
            .unwrap();
        let made = match kind {
            "xfs" => Command::new("mkfs.xfs")
                .args(["-q", "-m", "reflink=1"])
                .arg(&image)
                .output(),
            _ => Command::new("mkfs.btrfs").arg("-q").arg(&image).output(),
        };
        let point = folder.path().join("mounted");
        std::fs::create_dir(&point).unwrap();
        let mounted = Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &point])
            .output();
        let well = |output: &std::io::Result<std::process::Output>| {
            output.as_ref().is_ok_and(|o| o.status.success())
        };
        if !well(&made) || !well(&mounted) {
            skipped(format_args!("a {kind} cannot be made and mounted here"));
            return None;
        }
        Some(Mounted { folder })
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("mounted").join(name)
    }

    fn free_bytes(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(self.path("")));
        let free = run(Command::new("stat")
            .args(["-f", "-c", "%a %S"])
            .arg(self.path("")));
        let numbers: Vec<u64> = free
            .split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        numbers[0] * numbers[1]
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path("")).output();
    }
}

#[test]
fn a_copy_on_a_file_system_that_shares_takes_no_space() {
    for kind in ["xfs", "btrfs"] {
        let Some(mounted) = Mounted::new(kind) else {
            continue;
        };
        let mut disk = vec![0; 48 << 20];
        for (at, block) in disk.chunks_mut(4096).enumerate().skip(16) {
            block.fill(u8::try_from(at % 251).unwrap());
        }
        std::fs::write(mounted.path("disk.raw"), &disk).unwrap();
        let raw = open(&mounted.path("disk.raw"), "raw");
        ConvertOptions::to("qcow2")
            .convert_to_path(&raw, mounted.path("first.qcow2"))
            .unwrap();
        let qcow2 = open(&mounted.path("first.qcow2"), "qcow2");
        for (source, format) in [
            (&raw, "raw"),
            (&raw, "qcow2"),
            (&qcow2, "raw"),
            (&qcow2, "qcow2"),
            (&qcow2, "vhdx"),
        ] {
            let before = mounted.free_bytes();
            let copy = mounted.path("copy");
            ConvertOptions::to(format)
                .convert_to_path(source, &copy)
                .unwrap();
            let taken = before.saturating_sub(mounted.free_bytes());
            assert!(taken < 12 << 20, "{kind}: {format} took {taken} bytes");
            assert!(read_all(&open(&copy, format)).unwrap() == disk, "{format}");
            // What is written into the copy does not show in the source.
            std::fs::remove_file(&copy).unwrap();
        }
    }
}
