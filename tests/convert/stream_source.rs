//! Images that are converted while they arrive: what becomes of them is what would of a file, or an error.

use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;

use crate::support::model::{Fill, Model, to};
use crate::support::{
    Rng, can_unpack, fails, files_below, goldens, has_tool, run, sample_disk, testdata, unpacked,
};
use blockform::convert::{Cancel, Conversion, ConvertOptions, Input};
use blockform::digest::Algorithm;
use blockform::image::parse_options;
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockTarget, Error, Hint, OpenOptions, PathPolicy, Result, StreamImage,
    StreamSource,
};

const MIB: usize = 1 << 20;

/// Gives what it has in pieces of so many bytes, or of any size for 0.
struct Pieces {
    bytes: Cursor<Vec<u8>>,
    size: usize,
    rng: Rng,
}

impl Pieces {
    fn new(bytes: &[u8], size: usize) -> Self {
        Pieces {
            bytes: Cursor::new(bytes.to_vec()),
            size,
            rng: Rng(bytes.len() as u64),
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.rng.below(50) == 0 {
            return Err(ErrorKind::Interrupted.into());
        }
        let size = match self.size {
            0 => 1 + usize::try_from(self.rng.below(100_000)).unwrap(),
            size => size,
        };
        let n = size.min(buf.len());
        self.bytes.read(&mut buf[..n])
    }
}

fn stream(bytes: &[u8]) -> StreamSource {
    StreamSource::new(Pieces::new(bytes, 0)).window(0)
}

fn open(format: &str, source: StreamSource) -> Result<StreamImage> {
    OpenOptions::new().format(format).open_stream(source)
}

fn options(format: &str, text: &str) -> ConvertOptions {
    let mut options = to(format, 2);
    for (name, value) in parse_options(text).unwrap() {
        options = options.option(name, value);
    }
    options
}

/// Converts into memory.
fn written<'a>(options: &ConvertOptions, source: impl Into<Input<'a>>) -> Result<Vec<u8>> {
    let file: Arc<Memory> = Arc::default();
    let target: Arc<dyn BlockTarget> = Arc::clone(&file) as Arc<dyn BlockTarget>;
    options.convert_to_targets(source, &[target])?;
    Ok(file.to_bytes())
}

/// The error of a conversion that has to fail.
fn refused<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("it is not refused"),
        Err(error) => error,
    }
}

/// The outcome of converting the bytes as a file, and as a stream.
fn both(
    bytes: &[u8],
    format: Option<&str>,
    to: &ConvertOptions,
) -> (Result<Vec<u8>>, Result<Vec<u8>>) {
    let open = match format {
        Some(format) => OpenOptions::new().format(format),
        None => OpenOptions::new(),
    };
    let file = open
        .open(Arc::new(Memory::new(bytes)))
        .and_then(|image| written(to, &image));
    let arrived = open
        .open_stream(stream(bytes))
        .and_then(|image| written(to, &image));
    (file, arrived)
}

/// A disk of 13 MiB: more than any window of these tests has room for.
fn disk() -> Model {
    let mut model = Model::new(13 * MIB);
    for (i, start) in (0..12 * MIB).step_by(3 * MIB).enumerate() {
        model.fill(start, 2 * MIB + 70_000, Fill::Noise, i as u64 + 5);
        model.fill(start + MIB, MIB / 2 + 777, Fill::Text, 1);
        model.fill(start + MIB / 4, 100_000, Fill::StoredZeroes, 1);
    }
    model
}

fn image_of(disk: &Model, format: &str, text: &str, compress: bool) -> Vec<u8> {
    written(&options(format, text).compress(compress), disk).unwrap()
}

/// Images by this crate whose tables come first, or that need none.
const OURS: &[(&str, &str, bool)] = &[
    ("raw", "", false),
    ("vhd", "subformat=fixed,force_size=on", false),
    ("vhd", "force_size=on", false),
    ("vhd", "block_size=64k,force_size=on", false),
    ("vdi", "", false),
    ("vdi", "static=on", false),
    ("vhdx", "", false),
    ("vhdx", "block_size=1M,logical_sector_size=4096", false),
    ("vmdk", "", false),
    ("vmdk", "subformat=streamOptimized", false),
];

#[test]
fn a_stream_becomes_what_the_file_does() {
    let disk = disk();
    for (format, text, compress) in OURS {
        let image = image_of(&disk, format, text, *compress);
        for (target, how) in [
            ("raw", ""),
            ("qcow2", ""),
            ("vmdk", "subformat=streamOptimized"),
        ] {
            if matches!(*format, "raw" | "vhd")
                && text.contains("fixed") | text.is_empty()
                && target != "raw"
            {
                // Their size is told by the end.
                continue;
            }
            let (file, arrived) = both(&image, Some(format), &options(target, how));
            assert!(
                arrived.unwrap() == file.unwrap(),
                "{format} {text} to {target}"
            );
        }
    }
}

#[test]
fn what_qemu_writes_becomes_what_the_file_does() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    std::fs::write(&raw, &disk().bytes).unwrap();
    for (format, ours, args) in [
        ("qcow2", "qcow2", &[][..]),
        ("qcow2", "qcow2", &["-c"]),
        ("qcow2", "qcow2", &["-o", "cluster_size=4k,compat=0.10"]),
        ("qcow2", "qcow2", &["-o", "cluster_size=2M"]),
        ("qcow2", "qcow2", &["-o", "extended_l2=on"]),
        ("qcow2", "qcow2", &["-o", "preallocation=metadata"]),
        ("qcow2", "qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("vmdk", "vmdk", &[]),
        ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("vpc", "vhd", &[]),
        ("vpc", "vhd", &["-o", "subformat=fixed,force_size=on"]),
        ("vdi", "vdi", &[]),
        ("vhdx", "vhdx", &[]),
        ("vhdx", "vhdx", &["-o", "block_size=1M"]),
        ("qed", "qed", &[]),
        ("parallels", "parallels", &[]),
        ("qcow", "qcow", &[]),
    ] {
        if args.contains(&"compression_type=zstd") && !can_unpack("zstd") {
            continue;
        }
        let path = folder.path().join("image");
        let mut convert = Command::new("qemu-img");
        run(convert
            .args(["convert", "-f", "raw", "-O", format])
            .args(args)
            .args([&raw, &path]));
        let image = std::fs::read(&path).unwrap();
        let (file, arrived) = both(&image, Some(ours), &options("raw", ""));
        assert!(arrived.unwrap() == file.unwrap(), "{format} {args:?}");
    }
}

#[test]
fn single_bytes_do_as_well() {
    let mut wrong = Vec::new();
    for golden in goldens() {
        if golden.has_needs() || !can_unpack(&golden.file) {
            continue;
        }
        let bytes = std::fs::read(&golden.path).unwrap();
        if bytes.len() > MIB / 2 || golden.size() > 8 << 20 {
            continue;
        }
        let source = StreamSource::new(Pieces::new(&bytes, 1)).size(golden.size());
        let image = open(&golden.format, source).and_then(|image| written(&to("raw", 2), &image));
        let file = OpenOptions::new()
            .format(&golden.format)
            .open_path(&golden.path);
        let file = file.and_then(|image| written(&to("raw", 2), &image));
        match (file, image) {
            (Ok(file), Ok(arrived)) => assert!(file == arrived, "{}", golden.file),
            (Err(_), Err(_)) => {}
            // Where the footer of a fixed disk begins is seen too late.
            (Ok(_), Err(_)) if golden.file.ends_with("footer-511.vhd") => {}
            (file, arrived) => wrong.push((golden.file, file.err(), arrived.err())),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_disk_whose_size_is_not_known_goes_where_that_may_be() {
    let disk = &disk().bytes[..11 * MIB + 512];
    let raw = open("raw", stream(disk)).unwrap();
    assert!(written(&to("raw", 2), &raw).unwrap() == disk);
    let raw = open("raw", stream(disk)).unwrap();
    let mut out = Vec::new();
    to("raw", 2).convert_to_writer(&raw, &mut out).unwrap();
    assert!(out == disk);
    let file = OpenOptions::new()
        .format("raw")
        .open(Arc::new(Memory::new(disk)))
        .unwrap();
    let fixed = options("vhd", "subformat=fixed,force_size=on");
    let want = written(&fixed, &file).unwrap();
    let raw = open("raw", stream(disk)).unwrap();
    assert!(written(&fixed, &raw).unwrap() == want);
    let raw = open("raw", stream(disk)).unwrap();
    let mut out = Vec::new();
    fixed.convert_to_writer(&raw, &mut out).unwrap();
    assert!(out == want);

    // Others begin with the size.
    let error = refused(written(
        &to("qcow2", 2),
        &open("raw", stream(disk)).unwrap(),
    ));
    assert!(
        error.to_string().contains("say how large the disk is"),
        "{error}"
    );
    let want = written(&to("qcow2", 2), &file).unwrap();
    let size = disk.len() as u64;
    let told = open("raw", stream(disk).size(size)).unwrap();
    assert!(written(&to("qcow2", 2), &told).unwrap() == want);
    let folder = tempfile::tempdir().unwrap();
    let spilled = open("raw", stream(disk).spill(folder.path(), size)).unwrap();
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "it has no name"
    );
    assert!(written(&to("qcow2", 2), &spilled).unwrap() == want);
    for wrong in [size - 512, size + 512, 0] {
        let told = open("raw", stream(disk).size(wrong)).unwrap();
        let error = refused(written(&to("qcow2", 2), &told));
        assert!(error.to_string().contains("were announced"), "{error}");
    }
    let spilled = open("raw", stream(disk).spill(folder.path(), size / 2)).unwrap();
    let error = refused(written(&to("qcow2", 2), &spilled));
    assert!(error.to_string().contains("a larger spill file"), "{error}");
}

#[test]
fn the_content_digest_of_what_has_no_size_yet_is_that_of_the_disk() {
    let disk = disk();
    let want = blockform::convert::content_digest(&disk, Algorithm::Sha256).unwrap();
    let raw = open("raw", stream(&disk.bytes)).unwrap();
    let outcome = Conversion::of(&raw)
        .content_digest(Algorithm::Sha256)
        .run()
        .unwrap();
    assert_eq!(outcome.content, Some(want.clone()));
    let image = image_of(&disk, "vhdx", "", false);
    let vhdx = open("vhdx", stream(&image)).unwrap();
    let outcome = Conversion::of(&vhdx)
        .content_digest(Algorithm::Sha256)
        .run()
        .unwrap();
    assert_eq!(outcome.content, Some(want));
}

/// A VDI whose blocks lie in the file from back to front.
fn backwards() -> (Vec<u8>, Vec<u8>) {
    let mut model = Model::new(20 * MIB);
    model.fill(0, 20 * MIB, Fill::Noise, 77);
    let mut image = image_of(&model, "vdi", "static=on", false);
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let (map, data) = (number(0x154), number(0x158));
    let blocks: Vec<u8> = (0..20_u32).rev().flat_map(u32::to_le_bytes).collect();
    image[map..map + blocks.len()].copy_from_slice(&blocks);
    let turned: Vec<u8> = image[data..].chunks(MIB).rev().flatten().copied().collect();
    image[data..].copy_from_slice(&turned);
    (image, model.bytes)
}

#[test]
fn what_is_out_of_order_is_refused_or_spilled() {
    let (image, disk) = backwards();
    let file = OpenOptions::new()
        .open(Arc::new(Memory::new(image.as_slice())))
        .unwrap();
    assert!(written(&to("raw", 2), &file).unwrap() == disk);
    let error = refused(open("vdi", stream(&image)).and_then(|vdi| written(&to("raw", 2), &vdi)));
    assert!(matches!(error, Error::OutOfOrder { .. }), "{error}");
    assert_eq!(error.hint(), Some(Hint::AllowSpill), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let vdi = open("vdi", stream(&image).spill(folder.path(), 1 << 30)).unwrap();
    assert!(written(&to("raw", 2), &vdi).unwrap() == disk);
    let vdi = open("vdi", stream(&image).spill(folder.path(), 5 << 20)).unwrap();
    let error = refused(written(&to("raw", 2), &vdi));
    assert!(error.to_string().contains("a larger spill file"), "{error}");
    // A window that is large enough will do.
    let vdi = open("vdi", stream(&image).window(32 << 20)).unwrap();
    assert!(written(&to("raw", 2), &vdi).unwrap() == disk);
}

#[test]
fn tables_that_stand_behind_the_data_are_refused_or_spilled() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_of(&disk(), "ova", "", false);
    for format in ["ova", "vmdk"] {
        // The archive names its files before them, and its manifest after; read in place it is in order.
        let error = open(format, stream(&image)).and_then(|ova| written(&to("raw", 2), &ova));
        fails!(
            error,
            Error::Malformed { .. } | Error::OutOfOrder { .. },
            ""
        );
    }
    let ova = open("ova", stream(&image).spill(folder.path(), 1 << 30)).unwrap();
    assert!(written(&to("raw", 2), &ova).unwrap() == disk().bytes);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let disk = disk();
    for (format, text, compress) in [
        ("vmdk", "subformat=streamOptimized", false),
        ("vhdx", "", false),
    ] {
        let image = image_of(&disk, format, text, compress);
        for (target, how, pack) in [
            ("qcow2", "", true),
            ("vmdk", "subformat=streamOptimized", false),
            ("vhdx", "", false),
        ] {
            let file = OpenOptions::new()
                .open(Arc::new(Memory::new(image.as_slice())))
                .unwrap();
            let options = options(target, how).compress(pack);
            let want = written(&options, &file).unwrap();
            for threads in [1, 4, 16] {
                let options = options.clone().threads(NonZeroUsize::new(threads).unwrap());
                let arriving = open(format, stream(&image)).unwrap();
                assert!(
                    written(&options, &arriving).unwrap() == want,
                    "{format} {target} {threads}"
                );
            }
        }
    }
}

#[test]
fn many_targets_take_one_stream() {
    let disk = disk();
    let image = image_of(&disk, "vmdk", "subformat=streamOptimized", false);
    let vmdk = open("vmdk", stream(&image).digest(Algorithm::Md5)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let outcome = Conversion::of(&vmdk)
        .to_path("raw", path("a.raw"))
        .to_path("qcow2", path("a.qcow2"))
        .to_path("vhd", path("a.vhd"))
        .run()
        .unwrap();
    assert_eq!(
        outcome.file_digests,
        [Algorithm::Md5.digest(&image).unwrap()]
    );
    assert!(std::fs::read(path("a.raw")).unwrap() == disk.bytes);
    let want = written(&to("qcow2", 2), &disk).unwrap();
    let qcow2 = OpenOptions::new().open_path(path("a.qcow2")).unwrap();
    assert!(crate::support::read_all(&qcow2).unwrap() == disk.bytes);
    assert_eq!(std::fs::read(path("a.qcow2")).unwrap().len(), want.len());
}

#[test]
fn another_digest_leaves_nothing() {
    let image = image_of(&disk(), "vhdx", "", false);
    let right = Algorithm::Sha256.digest(&image).unwrap();
    let wrong = Algorithm::Sha256.digest(b"another").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.raw");
    std::fs::write(&path, "what was there").unwrap();
    let vhdx = open("vhdx", stream(&image).expect(wrong)).unwrap();
    let error = refused(to("raw", 2).convert_to_path(&vhdx, &path));
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"what was there");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let vhdx = open("vhdx", stream(&image).expect(right.clone())).unwrap();
    let summary = to("raw", 2).convert_to_path(&vhdx, &path).unwrap();
    assert_eq!(summary.file_digests, [right]);
}

/// An image that is cut short is refused, or what it would be as a file.
#[test]
fn a_stream_cut_short_is_what_the_file_is_or_refused() {
    let mut model = Model::new(2 * MIB);
    model.fill(0, MIB + 99_000, Fill::Noise, 3);
    model.fill(MIB + MIB / 2, 400_000, Fill::Text, 3);
    let (mut refused, mut right) = (0, 0);
    let mut ways: Vec<(&str, &str, bool)> = OURS.to_vec();
    ways.extend([("qcow2", "", false), ("qcow2", "", true)]);
    for (format, text, compress) in ways.into_iter().skip(1) {
        let image = image_of(&model, format, text, compress);
        let mut rng = Rng(image.len() as u64);
        let near = |at: usize| [at.saturating_sub(1), at, at + 1];
        let mut cuts: Vec<usize> = near(image.len() - 512)
            .into_iter()
            .chain(near(image.len() - 1536))
            .collect();
        cuts.extend((0..5).map(|_| usize::try_from(rng.below(image.len() as u64)).unwrap()));
        for len in cuts {
            let (file, arrived) = both(&image[..len], Some(format), &to("raw", 2));
            match (file, arrived) {
                (Ok(file), Ok(arrived)) => {
                    assert!(file == arrived, "{format} {text} {len}");
                    right += 1;
                }
                (Err(_), Ok(_)) => panic!("{format} {text}: {len} bytes are not refused"),
                (_, Err(_)) => refused += 1,
            }
        }
        // What follows the end is as with a file, too.
        for more in [1, 512, 65_536] {
            let longer = [image.as_slice(), &vec![0; more]].concat();
            let (file, arrived) = both(&longer, Some(format), &to("raw", 2));
            if let Ok(arrived) = arrived {
                assert!(arrived == file.unwrap(), "{format} {text} and {more} more");
            }
        }
    }
    assert!(refused > 40, "{refused} refused, {right} right");
}

#[test]
fn what_the_end_shows_counts() {
    let mut image = image_of(&disk(), "vdi", "", false);
    let vhd = image_of(
        &Model::new(MIB),
        "vhd",
        "subformat=fixed,force_size=on",
        false,
    );
    image.extend(&vhd[vhd.len() - 512..]);
    let (file, arrived) = both(&image, None, &to("raw", 2));
    assert!(matches!(file, Err(Error::Ambiguous { .. })), "{file:?}");
    assert!(
        matches!(arrived, Err(Error::Ambiguous { .. })),
        "{:?}",
        arrived.err()
    );
    // A raw disk with a partition table that turns out to be a VHD.
    let mut disk = vec![0; 6 * MIB];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    disk[446 + 4] = 0x83;
    disk[446 + 12] = 8;
    let model = OpenOptions::new()
        .format("raw")
        .open(Arc::new(Memory::new(disk.as_slice())))
        .unwrap();
    let vhd = written(&options("vhd", "subformat=fixed,force_size=on"), &model).unwrap();
    let (file, arrived) = both(&vhd, None, &to("raw", 2));
    assert!(file.unwrap() == disk);
    let error = refused(arrived);
    assert!(
        error.to_string().contains("begins as raw and ends as vhd"),
        "{error}"
    );
    let (_, arrived) = both(&disk, None, &to("raw", 2));
    assert!(arrived.unwrap() == disk);
    // Nothing is guessed.
    let (_, arrived) = both(&sample_disk(4, MIB), None, &to("raw", 2));
    assert!(matches!(arrived, Err(Error::Unrecognized)));
}

#[test]
fn packed_streams_are_refused_by_name() {
    let packed = std::fs::read(testdata("packed/good/plain.qcow2.gz"));
    let packed = packed.unwrap_or_else(|_| b"\x1f\x8b\x08\0\0\0\0\0\0\x03and so on".repeat(100));
    let error = refused(open("qcow2", stream(&packed)));
    assert!(error.hint() == Some("unpack it first".into()), "{error}");
    let error = refused(OpenOptions::new().open_stream(stream(&packed)));
    assert!(error.hint() == Some("unpack it first".into()), "{error}");
    assert!(open("raw", stream(&packed)).is_ok());
}

#[test]
fn names_in_a_stream_lead_nowhere_unless_it_is_said_where_from() {
    let folder = tempfile::tempdir().unwrap();
    let base = vec![7; MIB];
    std::fs::write(folder.path().join("base.raw"), &base).unwrap();
    let overlay = crate::support::overlay_on(b"base.raw");
    let error = refused(open("qcow2", stream(&overlay)));
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    let allowed = OpenOptions::new().references(PathPolicy::SameDirectory);
    let error = refused(allowed.open_stream(stream(&overlay)));
    assert!(error.to_string().contains("in no directory"), "{error}");
    let from = stream(&overlay).path(folder.path().join("overlay.qcow2"));
    let image = allowed.open_stream(from).unwrap();
    assert!(written(&to("raw", 2), &image).unwrap() == base);
}

#[test]
fn what_needs_two_reads_is_refused() {
    let image = image_of(&Model::new(MIB), "vdi", "", false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    for options in [to("raw", 1).verify(true), to("raw", 1).resumable(1 << 20)] {
        let vdi = open("vdi", stream(&image)).unwrap();
        let error = refused(options.convert_to_path(&vdi, &path));
        assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Fails after so many bytes, or waits for ever to be stopped.
struct Broken(Cursor<Vec<u8>>, Option<Cancel>);

impl Read for Broken {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => match &self.1 {
                None => Err(ErrorKind::ConnectionReset.into()),
                Some(cancel) => {
                    cancel.cancel();
                    Err(ErrorKind::Interrupted.into())
                }
            },
            n => Ok(n),
        }
    }
}

#[test]
fn a_reader_that_fails_or_is_stopped_leaves_nothing() {
    let image = image_of(&disk(), "vdi", "", false);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.raw");
    let half = || Cursor::new(image[..image.len() / 2].to_vec());
    let vdi = open("vdi", StreamSource::new(Broken(half(), None))).unwrap();
    let error = refused(to("raw", 2).convert_to_path(&vdi, &path));
    assert_eq!(error.io_kind(), ErrorKind::ConnectionReset);
    let cancel = Cancel::new();
    let source = StreamSource::new(Broken(half(), Some(cancel.clone()))).cancel(cancel);
    let error = refused(to("raw", 2).convert_to_path(&open("vdi", source).unwrap(), &path));
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Takes a few bytes at a time.
struct Short(Vec<u8>, usize);

impl Write for Short {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1 = self.1 % 4093 + 1;
        let n = self.1.min(buf.len());
        self.0.extend_from_slice(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn from_single_bytes_to_short_writes() {
    let mut model = Model::new(2 * MIB);
    model.fill(300_000, MIB, Fill::Text, 1);
    let image = image_of(&model, "vmdk", "subformat=streamOptimized", false);
    let options = options("vmdk", "subformat=streamOptimized");
    let source = StreamSource::new(Pieces::new(&image, 1));
    let mut out = Short(Vec::new(), 0);
    options
        .convert_to_writer(&open("vmdk", source).unwrap(), &mut out)
        .unwrap();
    let file = OpenOptions::new()
        .open(Arc::new(Memory::new(image.as_slice())))
        .unwrap();
    let mut want = Vec::new();
    options.convert_to_writer(&file, &mut want).unwrap();
    assert!(out.0 == want);
    // One that begins with its tables needs a spill file between two streams.
    let small = image_of(&disk(), "vdi", "", false);
    let mut out = Short(Vec::new(), 0);
    let error =
        refused(to("qcow2", 2).convert_to_writer(&open("vdi", stream(&small)).unwrap(), &mut out));
    assert!(error.to_string().contains("allow a spill file"), "{error}");
    assert!(out.0.is_empty());
    let folder = tempfile::tempdir().unwrap();
    let spilled = open("vdi", stream(&small).spill(folder.path(), 1 << 30)).unwrap();
    to("qcow2", 2)
        .convert_to_writer(&spilled, &mut out)
        .unwrap();
    let read = OpenOptions::new()
        .open(Arc::new(Memory::new(out.0)))
        .unwrap();
    assert!(crate::support::read_all(&read).unwrap() == disk().bytes);
}

/// Collections of images by others, where they are beside the repository: none becomes something else
/// than the file does, and what is refused as a file is refused as a stream.
fn collection(name: &str) -> Option<(usize, usize)> {
    let folder = unpacked(name)?;
    let (mut arrived, mut refused) = (0, 0);
    for path in files_below(folder.path()) {
        let len = std::fs::metadata(&path).unwrap().len();
        let Ok(image) = OpenOptions::new().open_path(&path) else {
            // A prefix of what is refused may look sound, but not all of it.
            if len < 64 << 20 {
                let file = std::fs::File::open(&path).unwrap();
                let image = OpenOptions::new().open_stream(StreamSource::new(file));
                let digest = image.and_then(|image| digest(&image));
                let Err(error) = digest else {
                    panic!("{} is refused as a file alone", path.display());
                };
                let of_the_image = !matches!(error, Error::Io { .. } | Error::Cancelled);
                assert!(of_the_image, "{}: {error}", path.display());
            }
            continue;
        };
        if len > 64 << 20 || image.size() > 256 << 20 {
            continue;
        }
        let file = std::fs::File::open(&path).unwrap();
        let image_format = image.format().as_str();
        // A disk in a fixed VHD or a raw one may start as anything.
        let stream = open(image_format, StreamSource::new(file)).and_then(|image| digest(&image));
        match (digest(&image), stream) {
            (Ok(want), Ok(found)) => {
                assert_eq!(found, want, "{path:?}");
                arrived += 1;
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => {
                eprintln!("{path:?}: {}", error.chain());
                refused += 1;
            }
            (Err(error), Ok(_)) => panic!("{path:?}: as a file {}", error.chain()),
        }
    }
    eprintln!("{name}: {arrived} converted while they arrived, {refused} refused");
    Some((arrived, refused))
}

fn digest<'a>(source: impl Into<Input<'a>>) -> Result<String> {
    let digest = blockform::convert::content_digest(source, Algorithm::Blake3)?;
    Ok(digest.to_string())
}

#[test]
fn images_by_other_tools_arrive_as_they_are() {
    if let Some((arrived, refused)) = collection("corpus") {
        assert!(arrived > 40 && refused < arrived, "{arrived} and {refused}");
    }
}

#[test]
fn hostile_images_are_refused_in_a_stream_as_in_a_file() {
    collection("hostile");
}
