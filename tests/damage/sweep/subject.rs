//! The images that are damaged, and what becomes of them.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, ExtentKind, Image, OpenOptions, PathPolicy,
    PathResolver, Reference, Resolved, Resolver, Result,
};

use super::file::{Kept, Patched, Run, differs};
use super::table::Ending;
use crate::support::faults::thorough;
use crate::support::{goldens, read_all, sample_disk, sha256, testdata};

/// An image of which one file is damaged.
pub(crate) struct Subject {
    pub(crate) format: String,
    pub(crate) name: String,
    /// The file that is damaged.
    pub(crate) bytes: Arc<Vec<u8>>,
    /// The image, where it is another file, by its bytes.
    top: Option<Arc<Vec<u8>>>,
    /// The other files.
    others: Option<Arc<Kept>>,
    content: Vec<u8>,
    warnings: usize,
    /// Runs of the file that are the guest's bytes as they are, of those that need no second look.
    runs: Arc<Vec<Run>>,
}

/// A file that is damaged, by its name, and others that are not.
#[derive(Debug)]
struct Files {
    name: String,
    victim: Patched,
    others: Arc<Kept>,
}

impl Resolver for Files {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        if reference.name.as_str() != Some(&self.name) {
            return self.others.resolve(reference);
        }
        Ok(Resolved::Open {
            source: Arc::new(self.victim.clone()),
            format: None,
            within: Arc::new(blockform::DenyReferences),
        })
    }
}

impl Subject {
    fn new(
        (format, name): (&str, &str),
        bytes: Vec<u8>,
        top: Option<Vec<u8>>,
        path: Option<PathBuf>,
    ) -> Self {
        let others = path.map(|path| PathResolver::new(&path, PathPolicy::SameDirectory).unwrap());
        let mut subject = Subject {
            format: format.to_owned(),
            name: name.to_owned(),
            bytes: Arc::new(bytes),
            top: top.map(Arc::new),
            others: others.map(|others| Kept::new(Arc::new(others))),
            content: Vec::new(),
            warnings: 0,
            runs: Arc::default(),
        };
        let image = subject.open(subject.file()).unwrap();
        subject.content = read_all(&image).unwrap();
        subject.warnings = image.info().warnings.len();
        // The sample is looked at whole.
        if thorough() {
            let (mut runs, _) = subject.guest_bytes(&*image);
            runs.sort_unstable_by_key(|run| run.guest);
            for Run { guest, host, len } in &runs {
                assert_eq!(
                    subject.content[*guest..][..*len],
                    subject.bytes[*host..][..*len]
                );
            }
            subject.runs = Arc::new(runs);
        }
        subject
    }

    /// The file, with nothing wrong as yet.
    pub(crate) fn file(&self) -> Patched {
        Patched::whole(&self.bytes).with_runs(&self.runs)
    }

    pub(crate) fn open(&self, file: Patched) -> Result<Box<dyn Image>> {
        let mut options = OpenOptions::new().format(&*self.format);
        let mut top = file.clone();
        if let Some(others) = &self.others {
            let mut resolver: Arc<dyn Resolver> = others.clone();
            if let Some(bytes) = &self.top {
                top = Patched::whole(bytes);
                resolver = Arc::new(Files {
                    name: self.name.clone(),
                    victim: file,
                    others: others.clone(),
                });
            }
            options = options.resolver(resolver);
        }
        options.open(Arc::new(top))
    }

    /// For each byte of the file whether a reader looks at it and it is neither the guest's nor packed.
    pub(crate) fn metadata(&self) -> Vec<bool> {
        let seen = Arc::new(Mutex::new(vec![false; self.bytes.len()]));
        let mut file = self.file();
        file.seen = Some(Arc::clone(&seen));
        let image = self.open(file).unwrap();
        // What a qcow image has packed is nowhere told: there it is what the extents are known by.
        match &*self.format {
            "qcow" => assert!(image.extents().all(|extent| extent.is_ok())),
            _ => drop(read_all(&image).unwrap()),
        }
        let mut metadata = seen.lock().unwrap().clone();
        let (stored, packed) = self.guest_bytes(&*image);
        let stored = stored.iter().map(|run| run.host..run.host + run.len);
        for range in stored.chain(packed) {
            let end = range.end.min(metadata.len());
            metadata[range.start.min(end)..end].fill(false);
        }
        metadata
    }

    /// Runs of the file that are the guest's bytes as they are, and ranges that hold them compressed.
    fn guest_bytes(&self, image: &dyn Image) -> (Vec<Run>, Vec<Range<usize>>) {
        let (mut stored, mut packed_ranges) = (Vec::new(), Vec::new());
        let number = |number: u64| usize::try_from(number).unwrap();
        for extent in image.extents().map(Result::unwrap) {
            let file = image.file_of(extent.start);
            let here = match &self.top {
                None => file.is_none(),
                Some(_) => file.is_some_and(|file| file.as_str() == Some(&self.name)),
            };
            if !here || extent.depth > 0 {
                continue;
            }
            match (extent.kind, extent.host_offset, image.packed()) {
                (ExtentKind::Data, Some(host), _) => {
                    // The last unit of a file may be cut short.
                    let (host, len) = (number(host), number(extent.len));
                    stored.push(Run {
                        guest: number(extent.start),
                        host,
                        len: len.min(self.bytes.len() - host),
                    });
                }
                (ExtentKind::Compressed, _, Some(packed)) => {
                    let (mut at, mut buf, mut units) = (extent.start, Vec::new(), Vec::new());
                    while at < extent.end() {
                        let left = extent.end() - at;
                        let n = packed.read_packed(at, left, &mut buf, &mut units);
                        at += n.unwrap().max(1) as u64 * packed.unit();
                    }
                    let units = units.iter().map(|unit| (number(unit.host), unit.len));
                    packed_ranges.extend(units.map(|(host, len)| host..host + len));
                }
                _ => {}
            }
        }
        (stored, packed_ranges)
    }

    /// The ending of the image when its file is this one.
    pub(crate) fn outcome(&self, file: Patched) -> Ending {
        let cut = file.len < self.bytes.len();
        let Ok(image) = self.open(file) else {
            return Ending::Refused;
        };
        let size = self.content.len();
        let warned = image.info().warnings.len() > self.warnings;
        if image.size() != size as u64 {
            // A disk that claims to be huge is looked at where it is known, and at its end.
            let mut bytes = vec![0; size.min(usize::try_from(image.size()).unwrap_or(size))];
            let end = image.size().saturating_sub(65_536);
            let read = image
                .read_exact_at(&mut bytes, 0)
                .and_then(|()| image.read_at(&mut [0; 65_536], end));
            return match read {
                Err(_) => Ending::Refused,
                Ok(_) if warned => Ending::Told,
                Ok(_) => Ending::AnotherSize,
            };
        }
        match differs(&*image, &self.content) {
            Err(_) => Ending::Refused,
            Ok(true) if warned => Ending::Told,
            Ok(true) => {
                let read = read_all(&image).unwrap();
                let tail = cut && self.only_a_tail_is_zero(&*image, &read);
                if tail { Ending::Tail } else { Ending::Wrong }
            }
            Ok(false) if warned => Ending::Warned,
            Ok(false) => Ending::Same,
        }
    }

    /// Returns true if what differs is zero and shares one unit of the file with its end.
    fn only_a_tail_is_zero(&self, image: &dyn Image, read: &[u8]) -> bool {
        let pairs = read.iter().zip(&self.content);
        let differs: Vec<usize> = pairs
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(at, _)| at)
            .collect();
        let unit = usize::try_from(image.block_size()).unwrap();
        let (first, last) = (differs[0], differs[differs.len() - 1]);
        first / unit == last / unit && differs.iter().all(|at| read[*at] == 0)
    }
}

/// All images that are damaged.
pub(crate) fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for golden in goldens() {
        if golden.format == "raw" {
            continue;
        }
        let bytes = std::fs::read(&golden.path).unwrap();
        let path = Some(golden.path.clone());
        let subject = Subject::new((&golden.format, &golden.file), bytes, None, path);
        assert_eq!(sha256(&subject.content), golden.sha256());
        subjects.push(subject);
    }
    for format in ["vmdk", "ova"] {
        let text = std::fs::read_to_string(testdata(&format!("{format}/manifest.json"))).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        for entry in manifest["images"].as_array().unwrap() {
            let file = entry["file"].as_str().unwrap();
            if !entry["disk"].is_null() || file.ends_with(".ovf") {
                continue;
            }
            let path = testdata(&format!("{format}/good/{file}"));
            let bytes = std::fs::read(&path).unwrap();
            subjects.push(Subject::new((format, file), bytes, None, Some(path)));
        }
    }
    // Tables in files of their own.
    for (top, file) in [
        ("cowd.vmdk", "cowd-delta.bin"),
        ("se.vmdk", "se-sparse.bin"),
        (
            "twoGbMaxExtentSparse.vmdk",
            "twoGbMaxExtentSparse-s001.vmdk",
        ),
    ] {
        let path = testdata("vmdk/good").join(top);
        let bytes = std::fs::read(path.with_file_name(file)).unwrap();
        let top = std::fs::read(&path).unwrap();
        subjects.push(Subject::new(("vmdk", file), bytes, Some(top), Some(path)));
    }
    // A VHDX is too large to be kept.
    let disk = Memory::new(sample_disk(9, 1 << 20));
    for (name, options) in [
        ("dynamic.vhdx", vec![("block_size", "1M")]),
        ("fixed.vhdx", vec![("subformat", "fixed")]),
    ] {
        let file: Arc<Memory> = Arc::default();
        let mut convert = ConvertOptions::to("vhdx").option("log_size", "1M");
        for (name, value) in options {
            convert = convert.option(name, value);
        }
        let targets = [Arc::clone(&file) as Arc<dyn BlockTarget>];
        convert.convert_to_targets(&disk, &targets).unwrap();
        subjects.push(Subject::new(("vhdx", name), file.to_bytes(), None, None));
    }
    if let Ok(format) = std::env::var("BLOCKFORM_FORMAT") {
        subjects.retain(|subject| subject.format == format);
    }
    subjects
}
