//! The work of every target on its input. A panic is a finding; an error is an answer.

use std::num::NonZeroUsize;
use std::sync::Arc;

use arbitrary::Arbitrary;
use blockform::check::{Checked, FindingKind, Fixed, Repair, Scope};
use blockform::convert::partition;
use blockform::convert::{ConvertOptions, Input};
use blockform::extents::Entries;
use blockform::image::Image;
use blockform::inspect::{Report, Safety};
use blockform::salvage::Salvage;
use blockform::storage::Memory;
use blockform::stream::StreamOptions;
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, DenyReferences, DetachReferences, Error, ImageName,
    Limits, OpenOptions, Reference, Resolved, Resolver, StreamSource, detect as detect_format,
};

#[path = "../../tests/support/model.rs"]
mod model;

mod pages;
mod vhdx;

pub use vhdx::{Patch, VhdxPlan, vhdx, vhdx_write};

use model::{Fill, Model, Way, open_stream, over, over_written, reopen, streamed};

/// Bytes read of one image at most, so that a small file with a large disk takes no time.
const MOST_READ: u64 = 64 << 10;
/// Bytes read of one extent at most.
const MOST_OF_EXTENT: u64 = 8 << 10;
/// Extents looked at in one image at most.
const MOST_EXTENTS: usize = 40;

/// Opening follows detection: one format and nothing else, or the content of a disk, which is raw.
pub fn detect(bytes: &[u8]) {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let detected = detect_format(&source).expect("memory can be read");
    let (formats, contents) = (detected.matches.len(), detected.content.len());
    // What a file starts with whose signature is at its end is the disk's.
    let at_end = |name: &str| {
        let mut matches = detected.matches.iter();
        matches.any(|(id, evidence)| id.as_str() == name && evidence.offset > 0)
    };
    match OpenOptions::new().limits(small()).open(source) {
        Ok(image) if formats == 0 => {
            assert!(contents > 0, "raw is never a fallback");
            assert_eq!(image.format().as_str(), "raw");
        }
        Ok(image) => {
            let (id, _) = &detected.matches[0];
            assert_eq!(image.format(), *id);
            assert!(formats == 1 && (contents == 0 || at_end("vhd")));
        }
        Err(Error::Unrecognized) => assert_eq!((formats, contents), (0, 0)),
        Err(error @ Error::Ambiguous { .. }) => {
            assert!(formats > 0 && formats + contents > 1);
            printable(&error);
        }
        Err(error) => {
            assert!(formats == 1 || (formats > 1 && at_end("dmg")));
            printable(&error);
        }
    }
}

/// Checks whatever the bytes are. It ends, with little memory; the findings add up, and nothing told has
/// control characters.
pub fn check(bytes: &[u8]) {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let detached = OpenOptions::new()
        .limits(small())
        .resolver(Arc::new(DetachReferences));
    let checked = match Checked::of_source(&source, &detached) {
        Ok(checked) => checked,
        Err(error) => return printable(&error),
    };
    if sometimes("json", bytes, 4) {
        let json = checked.to_json(ImageName::from("x"), Fixed::default());
        assert!(json.is_ascii());
    }
    let Some(findings) = &checked.findings else {
        return;
    };
    for finding in findings.told().iter().take(100) {
        assert!(!finding.to_string().contains(char::is_control), "{finding}");
    }
    let told = findings.told().iter();
    let counted = |kind| -> u64 {
        let of_kind = told.clone().filter(|finding| finding.kind == kind);
        of_kind.map(|finding| finding.count).sum()
    };
    assert!(counted(FindingKind::Corruption) <= findings.corruptions);
    assert!(counted(FindingKind::Leak) <= findings.leaks);
}

/// Repairs whatever the bytes are. It ends; what could be read reads the same; what was clean is not
/// written; and a second repair finds nothing that the first one could have mended.
pub fn repair(bytes: &[u8]) {
    let mut options = OpenOptions::new()
        .limits(small())
        .resolver(Arc::new(DetachReferences));
    // What is written into a header may be by chance what makes it one of a second format, too.
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    if let Ok(image) = options.open(source) {
        options = options.format(image.format().as_str());
    }
    let mend = |bytes: &[u8]| {
        let file = Arc::new(Memory::new(bytes));
        let target: Arc<dyn BlockTarget> = Arc::clone(&file) as Arc<dyn BlockTarget>;
        let repaired = Repair::new(options.clone(), Scope::All).target(target);
        (repaired, file.to_bytes())
    };
    let read = |bytes: &[u8]| {
        let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
        let image = options.open(source).ok()?;
        let len = usize::try_from(image.size().min(MOST_READ)).ok()?;
        let mut disk = vec![0; len];
        image.read_at(&mut disk, 0).ok()?;
        Some(disk)
    };
    let (repaired, mended) = mend(bytes);
    if mended == bytes {
        match repaired {
            Err(error) => printable(&error),
            Ok(repaired) => assert_eq!(repaired.fixed, Fixed::default()),
        }
        return;
    }
    if let Some(before) = read(bytes) {
        assert!(read(&mended) == Some(before), "the guest reads the same");
    }
    match repaired {
        Err(error) => printable(&error),
        Ok(_) => {
            let (again, same) = mend(&mended);
            let again = again.expect("it was mended before");
            assert_eq!(again.fixed, Fixed::default());
            assert!(same == mended, "nothing is left to write");
        }
    }
}

/// Describes whatever the bytes are, in both forms, without opening what is not read.
pub fn container(bytes: &[u8]) {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let options = OpenOptions::new().limits(small());
    match Report::of_source(Arc::clone(&source), ImageName::from("x"), &options) {
        Err(error) => printable(&error),
        Ok(report) => {
            let text = report.to_string();
            let plain = |c: char| c == '\n' || !c.is_control();
            assert!(text.chars().all(plain), "{text:?}");
            assert!(report.to_json().is_ascii());
            let known = report.format.as_str() == "raw" || !report.matches.is_empty();
            assert!(known, "no format without evidence");
        }
    }
}

/// A plan that is taken covers its disk, and its text is the same when it is written again.
pub fn plan(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match partition::Plan::from_json(text, &small()) {
        Ok(plan) => {
            let mut end = 0;
            for part in plan.parts() {
                assert_eq!(part.start, end);
                end = part.end();
            }
            assert_eq!(end, plan.virtual_size());
            let text = plan.to_json().expect("it came from text");
            let again =
                partition::Plan::from_json(&text, &Limits::default()).expect("it was taken before");
            assert_eq!(again.to_json().expect("it came from text"), text);
        }
        Err(error) => printable(&error),
    }
}

/// The bytes as a disk with the signature of a volume descriptor and of a boot catalogue.
pub fn iso(bytes: &[u8]) {
    let mut disk = bytes.to_vec();
    look_into(&disk);
    if disk.len() > 18 * 2048 {
        disk[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
        disk[17 * 2048 + 1..17 * 2048 + 6].copy_from_slice(b"CD001");
        look_into(&disk);
    }
}

/// The bytes as a disk with tables of partitions, whose checksums are made right.
pub fn partitions(bytes: &[u8]) {
    if bytes.len() < 2048 || sometimes("as it is", bytes, 4) {
        return look_into(bytes);
    }
    let mut disk = bytes.to_vec();
    disk[510..512].copy_from_slice(b"\x55\xaa");
    let last = disk.len() / 512 * 512 - 512;
    for header in [512, last] {
        if !disk[header..].starts_with(b"EFI PART") {
            continue;
        }
        let number = |at: usize| {
            let raw = disk[header + at..header + at + 4].try_into();
            u32::from_le_bytes(raw.expect("four bytes")) as usize
        };
        let (array, length) = (
            number(72).saturating_mul(512),
            number(80).saturating_mul(number(84)),
        );
        let summed = disk.get(array..).and_then(|rest| rest.get(..length));
        if let Some(sum) = summed.map(|summed| crc32fast::hash(summed)) {
            disk[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
        }
        disk[header + 12..header + 16].copy_from_slice(&92_u32.to_le_bytes());
        disk[header + 16..header + 20].fill(0);
        let sum = crc32fast::hash(&disk[header..header + 92]);
        disk[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
    }
    look_into(&disk);
}

/// The bytes as a filesystem of FAT with programs for UEFI, or another one.
pub fn fat(bytes: &[u8]) {
    look_into(bytes);
    if bytes.len() >= 512 {
        let mut disk = bytes.to_vec();
        disk[..3].copy_from_slice(b"\xeb\x3c\x90");
        disk[510..512].copy_from_slice(b"\x55\xaa");
        look_into(&disk);
    }
}

/// Whatever a disk holds, an examination ends, and what it tells is fit for a terminal.
fn look_into(bytes: &[u8]) {
    let contents = blockform::content::examine(&Memory::new(bytes), &Limits::default())
        .expect("memory can be read");
    let plain = |text: &str| assert!(!text.chars().any(char::is_control), "{text:?}");
    contents.warnings.iter().for_each(|text| plain(text));
    for finding in &contents.findings {
        plain(&finding.source);
        plain(finding.fact.value());
    }
    for (_, value) in contents.properties() {
        plain(&value);
    }
    let partitions = contents.partitions.iter();
    let filesystems = partitions.filter_map(|p| p.filesystem.as_ref());
    for filesystem in contents.filesystems.iter().chain(filesystems) {
        plain(filesystem.uuid.as_deref().unwrap_or_default());
    }
}

/// Opens the bytes as qcow2, alone, and reads what it is asked to read.
pub fn qcow2(bytes: &[u8]) {
    open_as("qcow2", bytes);
}

/// The bytes as a stream, cut in one of two ways, are what they are as a file, and no more of them is kept than
/// may be.
pub fn stream(bytes: &[u8]) {
    let options = OpenOptions::new().limits(small());
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let detected = detect_format(&source).expect("memory can be read");
    let name = || ImageName::from("-");
    let file = told(Report::without_contents(
        Arc::clone(&source),
        name(),
        &options,
    ));
    let checks = Safety::of_source(source, &options).expect("memory can be read");
    let cuts: Vec<usize> = bytes
        .iter()
        .rev()
        .take(64)
        .map(|b| 1 + usize::from(*b) * 40)
        .collect();
    let cuts = match sometimes("odd", bytes, 2) {
        true => cuts.as_slice(),
        false => &[4096],
    };
    let mut limits = small();
    limits.stream_bytes = 1 << 20;
    limits.window_bytes = 512 << 10;
    limits.unpacked_bytes = 1 << 20;
    let mut inspector = StreamOptions::new().limits(limits).inspector();
    let mut rest = bytes;
    for len in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, after) = rest.split_at(rest.len().min(*len));
        inspector.feed(chunk).expect("anything is allowed");
        assert!(inspector.kept_bytes() <= 4 << 20);
        rest = after;
    }
    let report = inspector.finish();
    let packed = inspector.packing().is_some();
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            assert!(packed);
            printable(&error);
            return;
        }
    };
    if packed {
        return;
    }
    assert_eq!(report.detected, detected);
    if report.unknown.is_empty() {
        assert_eq!(told(report.description), file);
        assert_eq!(report.safety, checks);
    } else {
        assert!(report.description.is_err() || !report.safety.is_safe());
    }
}

/// Asserts that the bytes, as a stream cut in odd places, are what they are as a file, or an error; and that what is
/// refused as a file is refused as a stream.
pub fn stream_source(bytes: &[u8]) {
    const MOST: u64 = 1 << 20;
    let mut limits = small();
    limits.virtual_size = MOST;
    let detected = detect_format(&Memory::new(bytes)).expect("memory can be read");
    let shown = detected.matches.iter().map(|(id, _)| id.as_str());
    let formats: Vec<Option<&str>> = match sometimes("forced", bytes, 8) {
        true => ["raw", "vhd"].map(Some).to_vec(),
        false => shown.map(Some).chain([None]).collect(),
    };
    for format in formats {
        let mut options = OpenOptions::new().limits(limits.clone());
        if let Some(format) = format {
            options = options.format(format);
        }
        let content = |source: Input<'_>| {
            let file = Arc::new(Memory::default());
            let target = Arc::clone(&file) as Arc<dyn BlockTarget>;
            model::to("raw", 1).convert_to_targets(source, &[target])?;
            Ok(file)
        };
        let file = options
            .open(Arc::new(Memory::new(bytes)))
            .and_then(|image| content(Input::from(&image)));
        let reader = Cut {
            bytes: bytes.to_vec(),
            at: 0,
        };
        let stream = options
            .open_stream(StreamSource::new(reader).window(0))
            .and_then(|image| content(Input::from(&image)));
        match (file, stream) {
            (Ok(file), Ok(stream)) => {
                assert!(file.to_bytes() == stream.to_bytes(), "{format:?}");
            }
            (Err(error), Ok(_)) => panic!("{format:?} is taken from a stream: {error}"),
            (_, Err(error)) => printable(&error),
        }
    }
}

/// Bytes that come in pieces, whose sizes they say themselves.
struct Cut {
    bytes: Vec<u8>,
    at: usize,
}

impl std::io::Read for Cut {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let rest = &self.bytes[self.at..];
        let size = 7 + rest.last().map_or(0, |byte| usize::from(*byte) * 16);
        let n = size.min(rest.len()).min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        Ok(n)
    }
}

fn told(report: blockform::Result<Report>) -> Result<String, String> {
    match report {
        Ok(report) => Ok(report.to_json()),
        Err(error) => {
            printable(&error);
            Err(error.chain())
        }
    }
}

/// The same as VHD. The checksums are made right, or nothing would get past them.
pub fn vhd(bytes: &[u8]) {
    if sometimes("as it is", bytes, 4) {
        return open_as("vhd", bytes);
    }
    let mut bytes = bytes.to_vec();
    let end = bytes.len().saturating_sub(512);
    let sum = |bytes: &mut [u8], start: usize, len: usize, at: usize| {
        let Some(part) = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..len)) else {
            return;
        };
        part[at..at + 4].fill(0);
        let sum = part
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add((*byte).into()));
        part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    let header = bytes.get(16..24).and_then(|raw| raw.try_into().ok());
    let header = header.map_or(0, |raw| u64::from_be_bytes(raw) as usize);
    sum(&mut bytes, header.min(1 << 20), 1024, 36);
    sum(&mut bytes, 0, 512, 64);
    sum(&mut bytes, end, 512, 64);
    open_as("vhd", &bytes);
}

/// The same as VDI.
pub fn vdi(bytes: &[u8]) {
    open_as("vdi", bytes);
}

/// The same as an appliance. The checksums of what is in the place of the first headers are made right,
/// and the bytes are tried as a descriptor, too.
pub fn ova(bytes: &[u8]) {
    match choice("form", crc32fast::hash(bytes)) % 4 {
        0 => return open_as("ova", bytes),
        1 => {
            let text = [b"<Envelope xmlns='ovf'>", bytes].concat();
            return open_as("ova", &text);
        }
        _ => {}
    }
    let mut archive = bytes.to_vec();
    let mut at = 0;
    for _ in 0..16 {
        let Some(header) = archive.get_mut(at..at + 512) else {
            break;
        };
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let digits = std::str::from_utf8(&header[124..135]).unwrap_or_default();
        let size = usize::from_str_radix(digits, 8).unwrap_or(0);
        at = at.saturating_add(size).next_multiple_of(512) + 512;
    }
    open_as("ova", &archive);
}

/// The same for VMDK.
pub fn vmdk(bytes: &[u8]) {
    open_as("vmdk", bytes);
}

/// The bytes as what follows the title of a descriptor, whose files are all the same few sectors.
pub fn vmdk_descriptor(bytes: &[u8]) {
    let text = [b"# Disk DescriptorFile\n", bytes].concat();
    open_as("vmdk", &text);
    let files = One(Arc::new(Memory::new(vec![0x5a; 64 << 10])));
    let options = OpenOptions::new().format("vmdk").limits(small());
    match options
        .resolver(Arc::new(files))
        .open(Arc::new(Memory::new(text)))
    {
        Err(error) => printable(&error),
        Ok(image) => look_around(image.as_ref()),
    }
}

/// One file for every name.
#[derive(Debug, Clone)]
struct One(Arc<Memory>);

impl Resolver for One {
    fn resolve(&self, _: &Reference) -> blockform::Result<Resolved> {
        Ok(Resolved::Open {
            source: Arc::clone(&self.0) as Arc<dyn BlockSource>,
            format: None,
            within: Arc::new(self.clone()),
        })
    }
}

/// The same for qcow.
pub fn qcow(bytes: &[u8]) {
    open_as("qcow", bytes);
}

/// The same for QED.
pub fn qed(bytes: &[u8]) {
    open_as("qed", bytes);
}

/// The same for Parallels; where the bytes are a descriptor, every file that it names is one image.
pub fn parallels(bytes: &[u8]) {
    open_as("parallels", bytes);
    let image = include_bytes!("../../testdata/parallels/good/some.parallels");
    let files = One(Arc::new(Memory::new(&image[..])));
    let options = OpenOptions::new().format("parallels").limits(small());
    let bytes = Arc::new(Memory::new(bytes));
    match options.resolver(Arc::new(files)).open(bytes) {
        Err(error) => printable(&error),
        Ok(image) => look_around(image.as_ref()),
    }
}

fn open_as(format: &str, bytes: &[u8]) {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let options = OpenOptions::new().format(format).limits(small());
    let look = |resolver: Arc<dyn Resolver>| {
        let image = options
            .clone()
            .resolver(resolver)
            .open(Arc::clone(&source))?;
        assert!(image.info().snapshots.len() <= 100);
        look_around(image.as_ref());
        Ok(())
    };
    let denied: blockform::Result<()> = look(Arc::new(DenyReferences));
    let strict = match &denied {
        Err(Error::Denied { .. }) => look(Arc::new(DetachReferences)),
        _ => Ok(()),
    };
    for result in [denied, strict] {
        if let Err(error) = result {
            printable(&error);
        }
    }
    if sometimes("salvage", bytes, 4) {
        salvage_as(format, &source);
    }
}

/// One in some of all inputs, and always the same ones: for what takes as long as all the rest.
fn sometimes(what: &str, bytes: &[u8], one_in: u32) -> bool {
    choice(what, crc32fast::hash(bytes)) % one_in == 0
}

/// A number that depends on each byte of which `sum` is the checksum, another one for each `what`.
fn choice(what: &str, sum: u32) -> u32 {
    let salt = crc32fast::hash(what.as_bytes()) | 1;
    sum.wrapping_mul(salt) >> 16
}

/// Asserts that the salvaged image reads, ends, and is what a strict reader gets, as far as that gets any.
fn salvage_as(format: &str, source: &Arc<dyn BlockSource>) {
    let options = OpenOptions::new().format(format).limits(small());
    let options = options.resolver(Arc::new(DetachReferences));
    let strict = options.open(Arc::clone(source));
    let image = match options.salvage(true).open(Arc::clone(source)) {
        Ok(image) => image,
        Err(error) => {
            assert!(strict.is_err(), "only a strict reader opens it: {error}");
            return printable(&error);
        }
    };
    let salvage = Salvage::of(image).limits(small());
    look_around(&salvage);
    let read = salvage.size().min(MOST_READ);
    let mut bytes = vec![0xee; read as usize];
    match salvage.read_at(&mut bytes, 0) {
        Ok(n) => assert_eq!(n, bytes.len()),
        Err(Error::Unsupported { .. } | Error::LimitExceeded { .. } | Error::InvalidInput(_)) => {
            return;
        }
        Err(error) => panic!("damage is lived with: {error}"),
    }
    let losses = salvage.losses();
    let lost = |at: u64| {
        let mut list = losses.list.iter();
        list.any(|loss| loss.start <= at && at < loss.start + loss.length)
    };
    let Ok(strict) = strict else { return };
    for (at, bytes) in (0..).step_by(512).zip(bytes.chunks(512)) {
        let mut sector = [0; 512];
        match strict.read_at(&mut sector, at) {
            Ok(n) if losses.untold == 0 && !lost(at) => assert_eq!(sector[..n], *bytes, "at {at}"),
            // Of a damaged table a strict reader takes nothing.
            _ => {}
        }
    }
}

fn small() -> Limits {
    let mut limits = Limits::default();
    limits.metadata_bytes = 1 << 20;
    limits.cache_bytes = 64 << 10;
    limits.check_bytes = 1 << 20;
    limits.snapshots = 100;
    limits.inflated_bytes = 1 << 20;
    limits.chain_depth = 4;
    limits.failures = 10_000;
    limits
}

/// Asserts that the words of an error are fit for a terminal.
fn printable(error: &Error) {
    let text = error.chain();
    assert!(!text.is_empty());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

fn look_around(image: &dyn Image) {
    let size = image.size();
    assert!(image.block_size() >= 1);
    let mut at = 0;
    let mut read = 0;
    for extent in image.extents().take(MOST_EXTENTS) {
        let extent = match extent {
            Ok(extent) => extent,
            Err(error) => {
                printable(&error);
                break;
            }
        };
        assert_eq!(extent.start, at);
        assert!(extent.len > 0 && extent.len <= size - at);
        at = extent.end();
        if let Some(place) = image.place_of(extent.start, extent.len) {
            assert!((1..=extent.len).contains(&place.len));
            assert!(
                !extent.kind.reads_as_zero(),
                "zeros with a place: {extent:?}"
            );
        }
        let len = extent.len.min(MOST_OF_EXTENT);
        if read + len > MOST_READ {
            continue;
        }
        read += len;
        let mut buf = vec![0xee; len as usize];
        match image.read_exact_at(&mut buf, extent.start) {
            Ok(()) if extent.kind.reads_as_zero() => {
                let zeroes = [0; MOST_OF_EXTENT as usize];
                assert!(buf == zeroes[..buf.len()], "claims zeros: {extent:?}");
            }
            Ok(()) => {
                // The same bytes by another way: two reads that meet in the middle of nothing.
                let middle = buf.len() / 3;
                let mut again = vec![0; buf.len() - middle];
                let offset = extent.start + middle as u64;
                image
                    .read_exact_at(&mut again, offset)
                    .expect("it was read before");
                assert_eq!(again, buf[middle..]);
            }
            Err(error) => printable(&error),
        }
    }
    let mut end = 0;
    let entries = Entries::of(image, "disk".into()).within(0, 64 << 20);
    for entry in entries.take(MOST_EXTENTS) {
        match entry {
            Ok(entry) => {
                assert_eq!(entry.start, end);
                end += entry.length;
            }
            Err(error) => printable(&error),
        }
    }
    let mut buf = [0; 700];
    for offset in [0, 511, size / 2, size.saturating_sub(300), size, u64::MAX] {
        if let Ok(n) = image.read_at(&mut buf, offset) {
            assert_eq!(n as u64, size.saturating_sub(offset).min(700));
        }
        if let Ok(extent) = image.extent_at(offset, 1000) {
            assert!(extent.start == offset && (1..=1000).contains(&extent.len));
        }
    }
}

/// Operations on a disk, in order: kind, start, length and what decides the bytes.
type Fills = Vec<(u8, u32, u32, u64)>;

/// A disk and a way to write it.
#[derive(Debug, Arbitrary)]
pub struct Plan {
    sectors: u16,
    fills: Fills,
    base: Option<Fills>,
    base_sectors: u16,
    flags: [bool; 7],
    cluster_bits: u8,
    refcount_order: u8,
    preallocation: u8,
    sparse_bits: u8,
    threads: u8,
    small_memory: bool,
    streamed: bool,
}

/// A disk of some sectors, small ones as a rule: what they hold is seldom a matter of size.
fn disk(sectors: u16, fills: &Fills) -> Model {
    let most = if sectors >= 0xf800 { 512 } else { 32 };
    let size = usize::from(sectors % most) * 512;
    let mut disk = Model::new(size);
    for (fill, start, len, seed) in fills.iter().take(6) {
        let fill = Fill::ALL[usize::from(*fill) % Fill::ALL.len()];
        disk.fill(
            *start as usize % (size + 1),
            *len as usize % (size + 1),
            fill,
            *seed,
        );
    }
    disk
}

/// Small units as a rule, for the same reason as small disks.
fn bits(least: u8, choice: u8) -> u32 {
    u32::from(least + choice % if choice >= 240 { 10 } else { 4 })
}

/// One thread as a rule: to start others takes longer than all the rest.
fn threads(choice: u8) -> usize {
    match choice % 64 {
        63 => 3,
        62 => 2,
        _ => 1,
    }
}

/// One in some of all disks, and always the same ones, for what takes as long as all the rest. A change of
/// one of them is seldom another, or these would be what the fuzzer prefers, as they show the most code.
fn seldom(what: &str, fills: &Fills, one_in: u32) -> bool {
    let mut sum = crc32fast::Hasher::new();
    for (fill, start, len, seed) in fills {
        sum.update(&[*fill]);
        sum.update(&start.to_le_bytes());
        sum.update(&len.to_le_bytes());
        sum.update(&seed.to_le_bytes());
    }
    choice(what, sum.finalize()) % one_in == 0
}

/// Every byte of what was written has been compared; the other ways to ask are for some.
fn look_around_in_some(image: &dyn Image, fills: &Fills) {
    if seldom("look", fills, 6) {
        look_around(image);
    }
}

/// Writes the disk into a stream, opens that and compares every byte. Where no zeros are searched for,
/// it is the same as the file.
fn stream_write(
    options: &ConvertOptions,
    source: &Model,
    format: &str,
    below: Option<Arc<Memory>>,
    file: Option<&Memory>,
) {
    let stream = streamed(options, source).expect("a stream takes it, too");
    if let Some(file) = file {
        assert!(stream == file.to_bytes(), "{options:?}: not the file");
    }
    let image = open_stream(stream, format, below);
    let mut read = vec![0xee; source.bytes.len()];
    image
        .read_exact_at(&mut read, 0)
        .expect("what was streamed reads");
    assert!(read == source.bytes, "{options:?}: other bytes in a stream");
}

/// Writes the disk as qcow2, opens the result and compares every byte.
pub fn qcow2_write(plan: &Plan) {
    let source = disk(plan.sectors, &plan.fills);
    let [
        v2,
        extended_l2,
        lazy_refcounts,
        compress,
        zstd,
        data_file,
        data_file_raw,
    ] = plan.flags;
    // Each unit that is packed takes as long as all the rest.
    let compress = compress && seldom("pack", &plan.fills, 64);
    let mut way = Way {
        v2,
        cluster_bits: bits(if compress { 12 } else { 9 }, plan.cluster_bits),
        refcount_order: u32::from(plan.refcount_order % 7),
        extended_l2,
        lazy_refcounts,
        compress,
        zstd,
        preallocation: u32::from(plan.preallocation % 4),
        data_file,
        data_file_raw,
        sparse_size: [0, 512, 4096, 65_536][usize::from(plan.sparse_bits % 4)],
        threads: threads(plan.threads),
        memory: if plan.small_memory { 1 << 20 } else { 64 << 20 },
    }
    .settled();
    let base = plan
        .base
        .as_ref()
        .filter(|_| seldom("base", &plan.fills, 8))
        .map(|fills| disk(plan.base_sectors, fills).bytes);
    let files = match &base {
        None => way.write(&source),
        Some(base) => {
            (way.preallocation, way.data_file_raw) = (0, false);
            way.write_with(over(way.options(), base), &source)
        }
    };
    let files = files.unwrap_or_else(|e| panic!("{}: {}", way.text(), e.chain()));
    let image = reopen(&files, base.as_deref()).expect("what was written opens");
    assert_eq!(image.size(), source.size());
    let mut read = vec![0xee; source.bytes.len()];
    image
        .read_exact_at(&mut read, 0)
        .expect("what was written reads");
    assert!(read == source.bytes, "{}: other bytes", way.text());
    look_around_in_some(image.as_ref(), &plan.fills);
    let options = match &base {
        None => way.options(),
        Some(base) => over(way.options(), base),
    };
    if !(plan.streamed && seldom("stream", &plan.fills, 12)) {
        return;
    }
    if way.compress || way.data_file {
        let refused = streamed(&options, &source).expect_err("no stream can hold it");
        assert!(matches!(refused, Error::InvalidInput(_)), "{refused}");
        printable(&refused);
        return;
    }
    let file = (base.is_none() && way.sparse_size == 0).then(|| files[0].as_ref());
    let below = base.map(|base| Arc::new(Memory::new(base)));
    stream_write(&options, &source, "qcow2", below, file);
}

/// A disk, what lies below it, and one of the ways to write it as VHD or VDI.
#[derive(Debug, Arbitrary)]
pub struct BlockPlan {
    sectors: u16,
    fills: Fills,
    base: Option<Fills>,
    base_sectors: u16,
    fixed: bool,
    block_bits: u8,
    sparse_bits: u8,
    threads: u8,
    streamed: bool,
}

/// Writes the disk as VHD, opens the result and compares every byte.
pub fn vhd_write(plan: &BlockPlan) {
    block_write("vhd", &[("force_size", "on")], plan);
}

/// The same as VDI.
pub fn vdi_write(plan: &BlockPlan) {
    block_write("vdi", &[], plan);
}

fn block_write(format: &'static str, extra: &[(&str, &str)], plan: &BlockPlan) {
    let source = disk(plan.sectors, &plan.fills);
    let base = plan
        .base
        .as_ref()
        .filter(|_| seldom("base", &plan.fills, 8))
        .map(|fills| disk(plan.base_sectors, fills));
    let threads = threads(plan.threads);
    let stream = plan.streamed && seldom("stream", &plan.fills, 12);
    let way = |fixed: bool| {
        let block = 1_u64 << bits(12, plan.block_bits);
        let mut options = extra.to_vec();
        let block = block.to_string();
        options.push(("block_size", &block));
        options.push(("subformat", if fixed { "fixed" } else { "dynamic" }));
        options
            .iter()
            .fold(model::to(format, threads), |to, (name, value)| {
                to.option(*name, *value)
            })
            .sparse_size([0, 512, 4096, 65_536][usize::from(plan.sparse_bits % 4)])
    };
    let fixed = plan.fixed && base.is_none();
    let image = match &base {
        None => {
            let file = model::written(way(fixed), format, &source, None);
            let same = plan.sparse_bits % 4 == 0;
            let bytes = same.then_some(file.file.as_ref());
            if stream {
                stream_write(&way(fixed), &source, format, None, bytes);
            }
            file
        }
        Some(base) => {
            let below = model::written(way(plan.fixed), format, base, None);
            let options = over_written(way(false), format, &below);
            let file = Arc::clone(&below.file);
            if stream {
                stream_write(&options, &source, format, Some(file), None);
            }
            model::written(way(false), format, &source, Some(below))
        }
    };
    let image = image.image;
    assert_eq!(image.size(), source.size());
    let mut read = vec![0xee; source.bytes.len()];
    image
        .read_exact_at(&mut read, 0)
        .expect("what was written reads");
    assert!(read == source.bytes, "{plan:?}: other bytes");
    look_around_in_some(image.as_ref(), &plan.fills);
}

/// A disk and a way to write it as VMDK.
#[derive(Debug, Arbitrary)]
pub struct VmdkPlan {
    sectors: u16,
    fills: Fills,
    subformat: u8,
    zeroed_grain: bool,
    level: u8,
    sparse_bits: u8,
    threads: u8,
    streamed: bool,
}

/// Writes the disk as VMDK, opens the result and compares every byte.
pub fn vmdk_write(plan: &VmdkPlan) {
    const SUBFORMATS: [&str; 7] = [
        "monolithicSparse",
        "streamOptimized",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "vmfs",
        "vmfsThin",
    ];
    let source = disk(plan.sectors.max(1), &plan.fills);
    if source.size() == 0 {
        return;
    }
    let which = match usize::from(plan.subformat) % SUBFORMATS.len() {
        // To pack a grain takes as long as all the rest.
        1 if !seldom("pack", &plan.fills, 64) => 0,
        which => which,
    };
    let threads = NonZeroUsize::new(threads(plan.threads)).expect("not 0");
    let mut options = ConvertOptions::to("vmdk")
        .option("subformat", SUBFORMATS[which])
        .sparse_size([0, 512, 4096, 65_536][usize::from(plan.sparse_bits % 4)])
        .threads(threads);
    if which == 1 {
        options = options.option("compression_level", (1 + plan.level % 9).to_string());
    } else if plan.zeroed_grain {
        options = options.option("zeroed_grain", "on");
    }
    if which < 2 && plan.streamed && seldom("stream", &plan.fills, 12) {
        stream_write(&options, &source, "vmdk", None, None);
    }
    let files: Vec<Arc<Memory>> = (0..if which < 2 { 1 } else { 2 })
        .map(|_| Arc::default())
        .collect();
    let targets: Vec<Arc<dyn BlockTarget>> = files
        .iter()
        .map(|file| Arc::clone(file) as Arc<dyn BlockTarget>)
        .collect();
    options
        .convert_to_targets(&source, &targets)
        .unwrap_or_else(|e| panic!("{}: {}", SUBFORMATS[which], e.chain()));
    let extent = files.last().map(Arc::clone).expect("there is a file");
    let image = OpenOptions::new()
        .resolver(Arc::new(One(extent)))
        .open(Arc::clone(&files[0]) as Arc<dyn BlockSource>)
        .expect("what was written opens");
    assert_eq!(image.size(), source.size());
    let mut read = vec![0xee; source.bytes.len()];
    image
        .read_exact_at(&mut read, 0)
        .expect("what was written reads");
    assert!(read == source.bytes, "{}: other bytes", SUBFORMATS[which]);
    look_around_in_some(image.as_ref(), &plan.fills);
}
