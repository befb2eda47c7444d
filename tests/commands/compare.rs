//! The verb compare: as a library call, and as `img-compare` beside `qemu-img compare`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::command::{example, has_qemu, must};
use crate::support::{Rng, goldens, manifest, read_all, sample_disk, testdata};
use blockform::compare::{Cancel, CompareOptions, Comparison, Failure, Side};
use blockform::convert::ConvertOptions;
use blockform::image::Backing;
use blockform::storage::{FileStorage, Memory};
use blockform::{
    BlockSource, BlockSourceExt, Error, Extent, ExtentKind, ImageName, OpenOptions, PathPolicy,
    Place, Result, Stored,
};

const MIB: usize = 1 << 20;

fn compare(a: &dyn BlockSource, b: &dyn BlockSource) -> Comparison {
    CompareOptions::new().compare(a, b).unwrap()
}

fn threads(n: usize) -> CompareOptions {
    CompareOptions::new().threads(NonZeroUsize::new(n).unwrap())
}

/// A source that counts what is read of it, and fails in some places.
#[derive(Debug)]
struct Watched<S> {
    inner: S,
    read: AtomicU64,
    broken: Vec<Range<u64>>,
    /// The range whose status cannot be told.
    blind: Range<u64>,
}

impl<S: BlockSource> Watched<S> {
    fn new(inner: S) -> Self {
        Watched {
            inner,
            read: AtomicU64::new(0),
            broken: Vec::new(),
            blind: 0..0,
        }
    }

    fn broken(inner: S, broken: Range<u64>) -> Self {
        Watched {
            broken: vec![broken],
            ..Watched::new(inner)
        }
    }

    fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl<S: BlockSource> BlockSource for Watched<S> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let end = offset + buf.len() as u64;
        if self.broken.iter().any(|r| r.start < end && offset < r.end) {
            return Err(Error::invalid("broken here"));
        }
        self.inner.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        if self.blind.contains(&offset) {
            return Err(Error::invalid("blind here"));
        }
        let before = self.blind.start.checked_sub(offset).filter(|n| *n > 0);
        self.inner
            .extent_at(offset, limit.min(before.unwrap_or(limit)))
    }

    fn block_size(&self) -> u64 {
        self.inner.block_size()
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl<S: BlockSource> Stored for Watched<S> {
    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        self.inner.place_of(offset, limit)
    }
}

#[test]
fn the_first_difference_is_told_whatever_the_threads_and_the_memory() {
    let mut rng = Rng(7);
    let disk = sample_disk(1, 9 * MIB + 777);
    for case in 0..24 {
        let mut other = disk.clone();
        let mut places: Vec<usize> = (0..case % 5)
            .map(|_| usize::try_from(rng.below(disk.len() as u64)).unwrap())
            .collect();
        places.sort_unstable();
        for at in &places {
            other[*at] ^= 0x10;
        }
        let expected = match places.first() {
            None => Comparison::Same,
            Some(at) => Comparison::Differ { offset: *at as u64 },
        };
        let (a, b) = (Memory::new(disk.clone()), Memory::new(other));
        for n in [1, 2, 3, 8] {
            for memory in [0, 64 << 20] {
                let told = threads(n).memory(memory).compare(&a, &b).unwrap();
                assert_eq!(told, expected, "{places:?} with {n} threads");
            }
        }
    }
}

#[test]
fn what_comes_first_counts_be_it_a_difference_or_a_failure() {
    let disk = vec![7; 8 * MIB];
    let mib = MIB as u64;
    let mut other = disk.clone();
    other[5 * MIB + 3] = 8;
    let other = Memory::new(other);
    let differ = Comparison::Differ {
        offset: 5 * mib + 3,
    };
    for n in [1, 2, 4, 9] {
        for _ in 0..8 {
            // A failure behind the difference is of no interest.
            let late = Watched::broken(Memory::new(disk.clone()), 6 * mib..6 * mib + 1);
            assert_eq!(threads(n).compare(&late, &other).unwrap(), differ);
            assert_eq!(threads(n).compare(&other, &late).unwrap(), differ);
            // One before it means that nobody knows.
            let early = Watched::broken(Memory::new(disk.clone()), 2 * mib + 5..2 * mib + 6);
            match threads(n).compare(&other, &early) {
                Err(Failure::Read { side, offset, .. }) => {
                    assert_eq!((side, offset), (Side::Second, 2 * mib));
                }
                told => panic!("{told:?}"),
            }
            let mut blind = Watched::new(Memory::new(disk.clone()));
            blind.blind = 3 * mib..3 * mib + 1;
            match threads(n).compare(&blind, &other) {
                Err(Failure::Status { side, offset, .. }) => {
                    assert_eq!((side, offset), (Side::First, 3 * mib));
                }
                told => panic!("{told:?}"),
            }
            blind.blind = 7 * mib..8 * mib;
            assert_eq!(threads(n).compare(&blind, &other).unwrap(), differ);
        }
    }
}

#[test]
fn the_rest_of_a_longer_disk_has_to_be_zero() {
    let mut long = vec![0; 3 * MIB];
    long[..MIB].fill(9);
    let short = Memory::new(long[..MIB + 100].to_vec());
    assert_eq!(
        compare(&Memory::new(long.clone()), &short),
        Comparison::Same
    );
    let empty = Memory::new(Vec::new());
    let at = |offset| Comparison::Differ { offset };
    assert_eq!(compare(&Memory::new(long.clone()), &empty), at(0));
    assert_eq!(compare(&empty, &Memory::new(vec![0; 5])), Comparison::Same);
    assert_eq!(compare(&empty, &empty), Comparison::Same);
    long[3 * MIB - 1] = 1;
    let end = 3 * MIB as u64 - 1;
    assert_eq!(compare(&short, &Memory::new(long.clone())), at(end));
    assert_eq!(compare(&Memory::new(long.clone()), &short), at(end));
    let strict = CompareOptions::new().strict(true);
    assert_eq!(
        strict.compare(&short, &Memory::new(long)).unwrap(),
        Comparison::SizeDiffers {
            first: MIB as u64 + 100,
            second: 3 * MIB as u64
        }
    );
}

/// Every image of testdata against the bytes that it holds, and against others.
#[test]
fn images_of_all_formats_are_compared_by_what_a_guest_reads() {
    for golden in goldens() {
        let image = golden.options().open_path(&golden.path).unwrap();
        let mut bytes = read_all(&image).unwrap();
        let told = compare(&image, &Memory::new(bytes.clone()));
        assert_eq!(told, Comparison::Same, "{}", golden.file);
        let Some(last) = bytes.last_mut() else {
            continue;
        };
        *last ^= 1;
        let offset = bytes.len() as u64 - 1;
        let told = compare(&Memory::new(bytes), &image);
        assert_eq!(told, Comparison::Differ { offset }, "{}", golden.file);
    }
}

#[test]
fn a_damaged_image_is_the_same_as_nothing_not_even_itself() {
    let mut at_read = 0;
    for bad in manifest()["bad"].as_array().unwrap() {
        let path = testdata(bad["file"].as_str().unwrap());
        let Ok(image) = OpenOptions::new().open_path(&path) else {
            continue;
        };
        let again = OpenOptions::new().open_path(&path).unwrap();
        let told = CompareOptions::new().compare(&image, &again);
        let error = told.unwrap_err().to_string();
        assert!(
            error.contains("the first image"),
            "{}: {error}",
            path.display()
        );
        at_read += 1;
    }
    assert!(at_read > 20, "{at_read}");
}

#[test]
fn a_strict_comparison_looks_at_how_ranges_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    let mut disk = vec![0; 4 * MIB];
    disk[..MIB].fill(3);
    fs::write(&raw, &disk).unwrap();
    let sparse = folder.path().join("sparse.qcow2");
    let full = folder.path().join("full.qcow2");
    let source = OpenOptions::new().format("raw").open_path(&raw).unwrap();
    let to = ConvertOptions::to("qcow2");
    to.convert_to_path(&source, &sparse).unwrap();
    let to = to.option("preallocation", "metadata");
    to.convert_to_path(&source, &full).unwrap();
    let open = |path: &Path| OpenOptions::new().open_path(path).unwrap();
    let (sparse, full) = (open(&sparse), open(&full));
    assert_eq!(compare(&sparse, &full), Comparison::Same);
    let strict = CompareOptions::new().strict(true);
    assert_eq!(strict.compare(&sparse, &sparse).unwrap(), Comparison::Same);
    let offset = MIB as u64;
    assert_eq!(
        strict.compare(&sparse, &full).unwrap(),
        Comparison::StatusDiffers { offset }
    );
    // A difference before that is what is told.
    let mut other = disk;
    other[5] = 4;
    assert_eq!(
        strict.compare(&full, &Memory::new(other)).unwrap(),
        Comparison::Differ { offset: 5 }
    );
}

/// Bytes that both have in the same place of the same file cannot differ.
#[test]
#[cfg(unix)]
fn what_an_overlay_shares_with_its_backing_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bytes = Rng(3).bytes(6 * MIB);
    let mut changed = bytes.clone();
    changed[2 * MIB..2 * MIB + 10].fill(0x55);
    fs::write(at("base.raw"), &bytes).unwrap();
    fs::write(at("changed.raw"), &changed).unwrap();
    let raw = |name: &str| {
        OpenOptions::new()
            .format("raw")
            .open_path(at(name))
            .unwrap()
    };
    for format in ["qcow2", "vdi", "vmdk", "vhdx"] {
        let base = at("base").with_extension(format);
        ConvertOptions::to(format)
            .convert_to_path(&raw("base.raw"), &base)
            .unwrap();
        let opened = Arc::from(OpenOptions::new().open_path(&base).unwrap());
        let name = ImageName::from(base.file_name().map(Path::new).unwrap());
        let top = at("top").with_extension(format);
        let overlay = ConvertOptions::to(format).overlay(Backing::new(name, format), opened);
        // VDI and VHDX name no format, or no file: their overlays are opened by other tests.
        let Ok(_) = overlay.convert_to_path(&raw("changed.raw"), &top) else {
            panic!("{format}");
        };
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        let Ok(overlay) = options.open_path(&top) else {
            assert_eq!(format, "vdi");
            continue;
        };
        let overlay = Watched::new(overlay);
        let base = Watched::new(OpenOptions::new().open_path(&base).unwrap());
        let offset = 2 * MIB as u64;
        assert_eq!(
            compare(&overlay, &base),
            Comparison::Differ { offset },
            "{format}"
        );
        let again = OpenOptions::new().open_path(at("base").with_extension(format));
        let same = Watched::new(again.unwrap());
        assert_eq!(compare(&same, &base), Comparison::Same);
        assert_eq!(same.bytes_read(), 0, "{format}");
        // The rest is in the backing file for both.
        assert!(overlay.bytes_read() <= 2 * MIB as u64, "{format}");
    }
    let file = || Watched::new(FileStorage::open(at("base.raw")).unwrap());
    let (a, b) = (file(), file());
    assert_eq!(compare(&a, &b), Comparison::Same);
    assert_eq!(a.bytes_read() + b.bytes_read(), 0);
    // A copy is another file.
    fs::copy(at("base.raw"), at("copy.raw")).unwrap();
    let copy = FileStorage::open(at("copy.raw")).unwrap();
    assert_eq!(compare(&a, &copy), Comparison::Same);
    assert_eq!(a.bytes_read(), 6 * MIB as u64);
}

/// Bytes lie where their source says.
#[test]
#[cfg(unix)]
fn places_hold_the_bytes() {
    let mut files = HashMap::new();
    let mut seen = BTreeMap::new();
    for golden in goldens() {
        for entry in fs::read_dir(golden.path.parent().unwrap()).unwrap() {
            let path = entry.unwrap().path();
            if let Ok(file) = FileStorage::open(path) {
                files.insert(Stored::identity(&file).unwrap(), file);
            }
        }
        let image = golden.options().open_path(&golden.path).unwrap();
        assert!(image.place_of(image.size(), 1).is_none());
        assert!(image.place_of(u64::MAX, u64::MAX).is_none());
        for extent in image.extents() {
            let extent = extent.unwrap();
            let mut at = extent.start;
            while at < extent.end() {
                let Some(place) = image.place_of(at, extent.end() - at) else {
                    break;
                };
                assert!(
                    (1..=extent.end() - at).contains(&place.len),
                    "{}",
                    golden.file
                );
                let mut bytes = vec![0; usize::try_from(place.len).unwrap()];
                let mut stored = bytes.clone();
                image.read_exact_at(&mut bytes, at).unwrap();
                let file = &files[&place.file.unwrap()];
                file.read_exact_at(&mut stored, place.offset).unwrap();
                assert!(bytes == stored, "{} at {at}", golden.file);
                *seen.entry(golden.format.clone()).or_insert(0) += place.len;
                at += place.len;
            }
        }
    }
    assert!(seen.len() > 6, "{seen:?}");
}

#[test]
fn holes_cost_nothing_and_sides_are_read_alone() {
    #[derive(Debug)]
    struct Hole;
    impl BlockSource for Hole {
        fn size(&self) -> u64 {
            1 << 60
        }
        fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
            panic!("a hole is not read");
        }
        fn extent_at(&self, start: u64, len: u64) -> Result<Extent> {
            Ok(Extent {
                start,
                len,
                kind: ExtentKind::Hole,
                depth: 0,
                host_offset: None,
            })
        }
    }
    assert_eq!(compare(&Hole, &Hole), Comparison::Same);
    assert_eq!(compare(&Hole, &Memory::new(vec![0; MIB])), Comparison::Same);
    let mut bytes = vec![0; MIB];
    bytes[4711] = 1;
    let offset = 4711;
    let told = compare(&Memory::new(bytes), &Hole);
    assert_eq!(told, Comparison::Differ { offset });
}

#[test]
fn it_can_be_stopped_and_tells_how_far_it_is() {
    let disk = Memory::new(vec![1; 8 * MIB]);
    let other = Memory::new(vec![1; 8 * MIB]);
    let cancel = Cancel::new();
    let stop = cancel.clone();
    let options = threads(3).cancel(cancel).progress(move |progress| {
        assert_eq!(progress.total, 8 << 20);
        stop.cancel();
        ControlFlow::Continue(())
    });
    let told = options.compare(&disk, &other);
    assert!(matches!(told, Err(Failure::Cancelled)), "{told:?}");

    let options = threads(2).progress(|_| ControlFlow::Break(()));
    let told = options.compare(&disk, &other);
    assert!(matches!(told, Err(Failure::Cancelled)), "{told:?}");

    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let options = threads(1).progress(move |progress| {
        kept.lock().unwrap().push(progress.done);
        ControlFlow::Continue(())
    });
    assert_eq!(options.compare(&disk, &other).unwrap(), Comparison::Same);
    let seen = seen.lock().unwrap();
    assert!(seen.is_sorted() && seen.len() > 8, "{seen:?}");
    assert_eq!(seen.last(), Some(&(8 << 20)));
}

/// Runs `img-compare` in a folder: its exit status, and what it printed.
fn ours(folder: &Path, line: &str) -> (Option<i32>, String) {
    let out = crate::support::command::run(folder, example("img-compare"), line.split_whitespace());
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(told.is_empty() || out.status.code() > Some(1), "{told}");
    (out.status.code(), String::from_utf8(out.stdout).unwrap())
}

fn qemus(folder: &Path, line: &str) -> (Option<i32>, String) {
    let out = crate::support::command::run(
        folder,
        "qemu-img",
        ["compare"].into_iter().chain(line.split_whitespace()),
    );
    (out.status.code(), String::from_utf8(out.stdout).unwrap())
}

#[test]
fn the_command_says_what_qemu_img_says() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let disk = sample_disk(5, 5 * MIB);
    let mut changed = disk.clone();
    changed[3 * MIB + 700] ^= 1;
    let mut longer = disk.clone();
    longer.resize(7 * MIB, 0);
    let mut other_longer = longer.clone();
    other_longer[6 * MIB + 3] = 1;
    for (name, bytes) in [
        ("a.raw", &disk),
        ("b.raw", &disk),
        ("changed.raw", &changed),
        ("longer.raw", &longer),
        ("other.raw", &other_longer),
        ("zero.raw", &vec![0; MIB]),
        ("zeros.raw", &vec![0; 2 * MIB]),
    ] {
        fs::write(at.join(name), bytes).unwrap();
    }
    for (format, options) in [
        ("qcow2", "-c"),
        ("vmdk", ""),
        ("vpc", "-oforce_size"),
        ("vhdx", ""),
        ("vdi", ""),
    ] {
        for name in ["a", "changed", "longer"] {
            let line =
                format!("qemu-img convert -f raw -O {format} {options} {name}.raw {name}.{format}");
            must(at, &line);
        }
    }
    for line in [
        "-f raw -F raw a.raw b.raw",
        "-f raw -F raw a.raw changed.raw",
        "-f raw -F raw changed.raw a.raw",
        "-f raw -F raw a.raw longer.raw",
        "-f raw -F raw longer.raw a.raw",
        "-f raw -F raw other.raw a.raw",
        "-f raw -F raw changed.raw longer.raw",
        "-f raw -F raw zero.raw zeros.raw",
        "-f raw -F raw zero.raw a.raw",
        "-s -f raw -F raw a.raw b.raw",
        "-s -f raw -F raw a.raw longer.raw",
        "-q -f raw -F raw a.raw changed.raw",
        "-q -f raw -F raw a.raw b.raw",
        "-q -s -f raw -F raw a.raw longer.raw",
        "-U -T none -f raw -F raw a.raw b.raw",
        "--a-format raw --b-format raw --quiet --strict --force-share a.raw b.raw",
        "-F raw a.qcow2 a.raw",
        "-f raw a.raw changed.qcow2",
        "-F raw a.vmdk a.raw",
        "-f vpc -F vdi a.vpc a.vdi",
        "a.vhdx longer.qcow2",
        "changed.vhdx a.vdi",
        "-s -f raw a.raw a.qcow2",
        "-f raw absent b.raw",
        "-F raw a.raw absent",
        "-f nonsense a.raw b.raw",
    ] {
        assert_eq!(ours(at, line), qemus(at, line), "{line}");
    }
    // Qemu-img sees more than how the data is stored here, such as where its own runs end.
    fs::copy(at.join("a.qcow2"), at.join("copy.qcow2")).unwrap();
    let same = (Some(0), "Images are identical.\n".to_owned());
    assert_eq!(ours(at, "-s a.qcow2 copy.qcow2"), same);
    assert_eq!(qemus(at, "-s a.qcow2 copy.qcow2"), same);
}

#[test]
fn exit_statuses_tell_what_went_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("a.raw"), vec![1; MIB]).unwrap();
    for line in [
        "",
        "a.raw",
        "a.raw a.raw a.raw",
        "-x a.raw a.raw",
        "-T sometimes -f raw -F raw a.raw a.raw",
        "a.raw a.raw",
        "-f raw -F raw a.raw absent",
        "-f raw -F qcow2 a.raw a.raw",
    ] {
        assert_eq!(ours(at, line), (Some(2), String::new()), "{line}");
    }
    let progress = "    (0.00/100%)\r    (100.00/100%)\r\nImages are identical.\n";
    let (status, told) = ours(at, "-p -f raw -F raw a.raw a.raw");
    assert_eq!((status, told.as_str()), (Some(0), progress));
    // The reading of damaged images fails in one way or another, and never says that they are the
    // same, or that they differ.
    let mut statuses = Vec::new();
    for bad in manifest()["bad"].as_array().unwrap() {
        let path = testdata(bad["file"].as_str().unwrap());
        let path = path.to_str().unwrap();
        let (status, told) = ours(at, &format!("{path} {path}"));
        assert!(told.is_empty(), "{path}: {told}");
        statuses.push(status.unwrap());
    }
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [2, 3, 4]);
}

#[test]
fn references_are_closed_here_too() {
    let overlay = goldens().into_iter().find(|golden| golden.has_needs());
    let overlay = overlay.unwrap();
    let path = overlay.path.to_str().unwrap();
    let at = Path::new(".");
    assert_eq!(ours(at, &format!("{path} {path}")).0, Some(2));
    let allowed = format!("--allow-references=same-dir {path} {path}");
    assert_eq!(ours(at, &allowed).0, Some(0));
}
