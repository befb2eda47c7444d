//! Helpers of all test programs: paths, known truths, patches.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    unused_macros,
    clippy::print_stderr,
    reason = "each program uses what it needs"
)]

pub mod appliance;
pub mod command;
pub mod crash;
pub mod faults;
pub mod model;
pub mod origins;
pub mod patch;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use blockform::{
    BlockSource, BlockSourceExt, Error, Extent, ExtentKind, Image, OpenOptions, PathPolicy,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Asserts that a result is an error of this kind, with these words in its message.
macro_rules! fails {
    ($result:expr, $kind:pat, $words:expr) => {
        match $result {
            Err(error @ $kind) => assert!(error.to_string().contains($words), "{error}"),
            other => panic!("not refused so: {:?}", other.map(drop)),
        }
    };
}
pub(crate) use fails;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn testdata(file: &str) -> PathBuf {
    root().join("testdata").join(file)
}

/// A file or folder that lies beside the repository on some machines.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = root().join("../shared").join(path);
    if !found.exists() {
        skipped(format_args!("there is no ../shared/{path}"));
        return None;
    }
    Some(found)
}

/// Tells that the running test, or a part of it, is skipped. The file that `BLOCKFORM_SKIPPED` names
/// collects these lines.
pub fn skipped(why: impl Display) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or_default());
    eprint!("{line}");
    if let Some(path) = std::env::var_os("BLOCKFORM_SKIPPED") {
        let mut file = File::options().create(true).append(true).open(path);
        file.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// Returns true if a program is installed. A missing one is told as skipped, and fails the test in CI.
pub fn has_tool(name: &str) -> bool {
    let found = Command::new(name).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "{name} is not installed");
        skipped(format_args!("{name} is not installed"));
    }
    found
}

/// Runs a program that has to succeed, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The number in a variable of the environment, or `default`.
pub fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

/// The outcome of an image that follows from its number: what it counts as, and how it was made and what
/// is wrong with it if something is.
pub type Judged = (Vec<(String, u64)>, Option<String>);

/// Makes and judges as many images as `BLOCKFORM_IMAGES` says, or `count`, from `BLOCKFORM_FIRST` on, in an
/// empty folder each, and tells how many there were of which kind.
pub fn judge_images(what: &str, count: u64, judge: impl Fn(&Path, u64) -> Judged + Sync) {
    let (first, count) = (
        number("BLOCKFORM_FIRST", 1),
        number("BLOCKFORM_IMAGES", count),
    );
    let next = AtomicU64::new(first);
    let found = Mutex::new((Vec::new(), BTreeMap::<String, u64>::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= first + count {
                return;
            }
            let folder = tempfile::tempdir().unwrap();
            let (kinds, wrong) = judge(folder.path(), number);
            let mut found = found.lock().unwrap();
            for (kind, count) in kinds {
                *found.1.entry(kind).or_default() += count;
            }
            if let Some(problem) = wrong {
                eprintln!("image {number}: {problem}");
                found.0.push(number);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let (wrong, kinds) = found.into_inner().unwrap();
    faults::figure(what, count);
    faults::figure("of these", format!("{kinds:?}"));
    assert!(wrong.is_empty(), "images {wrong:?} are read otherwise");
}

/// Runs a program in a folder; what it printed, or why it failed.
pub fn tool(folder: &Path, words: &[&str]) -> Result<String, String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(folder)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{words:?}: {} {told}", output.status)),
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Every byte of a source, read as one.
pub fn read_all(source: &dyn BlockSource) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; usize::try_from(source.size()).unwrap()];
    source.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The digest of a source that may be too large for memory.
pub fn sha256_of(source: &dyn BlockSource) -> Result<String, Error> {
    let mut digest = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let n = source.read_at(&mut buf, offset)?;
        if n == 0 {
            break;
        }
        digest.update(&buf[..n]);
        offset += n as u64;
    }
    assert_eq!(offset, source.size(), "reading ends where the source does");
    Ok(digest
        .finalize()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect())
}

pub fn manifest() -> Value {
    let text = std::fs::read_to_string(testdata("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// One image of testdata that can be read, with what is true of it.
pub struct Golden {
    pub file: String,
    pub path: PathBuf,
    pub format: String,
    pub entry: Value,
}

impl Golden {
    pub fn size(&self) -> u64 {
        self.entry["virtual_size"].as_u64().unwrap()
    }

    pub fn sha256(&self) -> &str {
        self.entry["sha256"].as_str().unwrap()
    }

    /// Returns true if it refers to other files.
    pub fn has_needs(&self) -> bool {
        self.entry["needs"]
            .as_array()
            .is_some_and(|n| !n.is_empty())
    }

    pub fn options(&self) -> OpenOptions {
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        if self.format == "raw" {
            options.format("raw")
        } else {
            options
        }
    }
}

/// Every image of testdata that can be read.
pub fn goldens() -> Vec<Golden> {
    let list = manifest()["images"].as_array().unwrap().clone();
    let all: Vec<Golden> = list
        .into_iter()
        .filter(|entry| entry["encrypted"].is_null())
        .map(|entry| Golden {
            file: entry["file"].as_str().unwrap().to_owned(),
            path: testdata(entry["file"].as_str().unwrap()),
            format: entry["format"].as_str().unwrap().to_owned(),
            entry,
        })
        .filter(|golden| can_unpack(&golden.file))
        .collect();
    assert!(all.len() > 10, "the manifest lists the images");
    all
}

/// Returns true if this build can decompress the image of this name.
pub fn can_unpack(file: &str) -> bool {
    (cfg!(feature = "zlib") || !packed_with_zlib(file))
        && (cfg!(feature = "zstd") || !file.contains("zstd"))
}

fn packed_with_zlib(file: &str) -> bool {
    ["zlib", "snapshots", "overlay-extended"]
        .iter()
        .any(|n| file.contains(n))
}

/// A run as `qemu-img map` sees it: neighbours of one status are one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    pub start: u64,
    pub len: u64,
    pub kind: ExtentKind,
    pub depth: Option<u64>,
    pub host: Option<u64>,
}

fn push(runs: &mut Vec<Mapped>, next: Mapped) {
    if let Some(last) = runs.last_mut() {
        let adjoins = match (last.host, next.host) {
            (None, None) => true,
            (Some(a), Some(b)) => a + last.len == b,
            _ => false,
        };
        if last.kind == next.kind && last.depth == next.depth && adjoins {
            last.len += next.len;
            return;
        }
    }
    runs.push(next);
}

/// The output of `qemu-img map --output=json`.
pub fn map_of_qemu(map: &Value) -> Vec<Mapped> {
    let mut runs = Vec::new();
    for run in map.as_array().unwrap() {
        let flag = |name: &str| run[name].as_bool().unwrap();
        let kind = match (flag("present"), flag("zero"), flag("compressed")) {
            (false, ..) => ExtentKind::Hole,
            (true, true, _) => ExtentKind::Zero,
            (true, false, true) => ExtentKind::Compressed,
            (true, false, false) => ExtentKind::Data,
        };
        let len = run["length"].as_u64().unwrap();
        if len == 0 {
            continue;
        }
        let host = run["offset"].as_u64().filter(|_| kind == ExtentKind::Data);
        let depth = run["depth"].as_u64().filter(|_| kind != ExtentKind::Hole);
        let start = run["start"].as_u64().unwrap();
        push(
            &mut runs,
            Mapped {
                start,
                len,
                kind,
                depth,
                host,
            },
        );
    }
    runs
}

/// The extents of an image in the same shape.
pub fn map_of(image: &dyn Image) -> Vec<Mapped> {
    let mut sizes = vec![image.size()];
    let mut below = image.backing();
    while let Some(image) = below {
        sizes.push(image.size());
        below = image.backing();
    }
    let mut runs = Vec::new();
    for extent in image.extents() {
        let Extent {
            start,
            len,
            mut kind,
            depth,
            host_offset,
        } = extent.unwrap();
        // The end of a shorter backing file masks what lies deeper, so that it is a `Zero` of that
        // backing file to us; to qemu-img nothing is present there.
        if kind == ExtentKind::Zero && start >= sizes[usize::from(depth)] {
            kind = ExtentKind::Hole;
        }
        let depth = (kind != ExtentKind::Hole).then_some(u64::from(depth));
        let host = host_offset.filter(|_| kind == ExtentKind::Data);
        push(
            &mut runs,
            Mapped {
                start,
                len,
                kind,
                depth,
                host,
            },
        );
    }
    runs
}

/// Numbers that look random and are the same in every run.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// A guest disk with noise, text and zeros in turn, in runs that respect no cluster size.
pub fn sample_disk(seed: u64, size: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut disk = Vec::new();
    while disk.len() < size {
        let len = 1 + usize::try_from(rng.below(40_000)).unwrap();
        match rng.below(4) {
            0 => disk.extend(rng.bytes(len)),
            1 => disk.extend(
                b"What is written here packs well. "
                    .iter()
                    .cycle()
                    .take(len),
            ),
            _ => disk.extend(std::iter::repeat_n(0, len)),
        }
    }
    disk.truncate(size);
    disk
}

/// Header extensions and file names of a qcow2 image, laid over one without a backing file whose
/// clusters are 4 KiB: what was in the extension area before is gone.
pub struct Qcow2Names<'a> {
    pub backing: Option<&'a [u8]>,
    pub backing_format: Option<&'a str>,
    pub data_file: Option<&'a [u8]>,
}

impl Qcow2Names<'_> {
    pub fn lay_over(&self, image: &mut [u8]) {
        assert_eq!(image[20..24], 12_u32.to_be_bytes(), "clusters of 4 KiB");
        let mut area = Vec::new();
        let mut add = |kind: u32, data: &[u8]| {
            area.extend(kind.to_be_bytes());
            area.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            area.extend(data);
            area.resize(area.len().next_multiple_of(8), 0);
        };
        if let Some(format) = self.backing_format {
            add(0xe279_2aca, format.as_bytes());
        }
        if let Some(name) = self.data_file {
            add(0x4441_5441, name);
            image[79] |= 4;
        }
        add(0, &[]);
        let start = 112;
        image[start..4096].fill(0);
        image[start..start + area.len()].copy_from_slice(&area);
        if let Some(name) = self.backing {
            let at = start + area.len();
            image[at..at + name.len()].copy_from_slice(name);
            image[8..16].copy_from_slice(&(at as u64).to_be_bytes());
            image[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        }
    }
}

/// An image of a 1 MiB disk that records nothing and has a raw backing file of this name.
pub fn overlay_on(name: &[u8]) -> Vec<u8> {
    overlay_with_format(name, Some("raw"))
}

pub fn overlay_with_format(name: &[u8], format: Option<&str>) -> Vec<u8> {
    let mut image = std::fs::read(testdata("qcow2/good/empty.qcow2")).unwrap();
    let names = Qcow2Names {
        backing: Some(name),
        backing_format: format,
        data_file: None,
    };
    names.lay_over(&mut image);
    image
}

/// The folder into which a collection beside the repository was unpacked, if it is there.
pub fn unpacked(collection: &str) -> Option<tempfile::TempDir> {
    let beside = shared(collection)?;
    if !has_tool("tar") || !has_tool("xz") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    run(tar
        .arg("-xJSf")
        .arg(beside.join("images.tar.xz"))
        .arg("-C")
        .arg(folder.path()));
    Some(folder)
}

/// All files below a folder, in order.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    files
}
