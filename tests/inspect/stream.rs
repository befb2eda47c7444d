//! A stream is found to be what the file is, however it is cut.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{files_below, root, testdata, unpacked};
use blockform::inspect::{Report, Safety};
use blockform::storage::{FileStorage, Memory};
use blockform::stream::{StreamOptions, StreamReport};
use blockform::{BlockSource, Error, ImageName, Limits, OpenOptions, detect};

/// Files longer than this are cut into single bytes at both ends only: the inspector goes by places in
/// the stream, so that the cuts in between are all alike.
const BYTEWISE: u64 = 256 << 10;

/// An image with a table of 32 MiB, which is more than is kept of a stream.
const TOO_LARGE: &str = "qcow2-sparse-l1-max";

/// The description of an image, of a file or of a stream.
#[derive(Debug, PartialEq)]
struct Answer {
    detected: blockform::Detected,
    description: Result<(String, Vec<blockform::Reference>), String>,
    safety: Safety,
}

fn of_file(path: &Path) -> Answer {
    let source: Arc<dyn BlockSource> = Arc::new(FileStorage::open(path).unwrap());
    let options = OpenOptions::new();
    let report = Report::without_contents(source.clone(), ImageName::from("-"), &options);
    Answer {
        detected: detect(&source).unwrap(),
        description: told(report),
        safety: Safety::of_source(source, &options).unwrap(),
    }
}

fn told(report: Result<Report, Error>) -> Result<(String, Vec<blockform::Reference>), String> {
    let mut report = report.map_err(|error| error.chain())?;
    report.file.as_mut().unwrap().allocated_size = None;
    Ok((format!("{report}{}", report.to_json()), report.references))
}

/// Feeds a file in chunks of `len` bytes.
fn streamed(path: &Path, len: usize) -> StreamReport {
    let mut file = File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut inspector = StreamOptions::new().as_it_is().inspector();
    let mut buf = vec![0; 65_536];
    let mut at = 0;
    loop {
        let n = file.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        let inside = len == 1 && at > BYTEWISE / 2 && at + n as u64 + BYTEWISE / 2 < size;
        let len = if inside { n } else { len };
        for chunk in buf[..n].chunks(len) {
            inspector.feed(chunk).unwrap();
        }
        at += n as u64;
    }
    assert!(
        inspector.kept_bytes() <= 16 << 20,
        "{}",
        inspector.kept_bytes()
    );
    inspector.finish().unwrap()
}

fn of_stream(path: &Path, len: usize) -> (Answer, Vec<String>) {
    let report = streamed(path, len);
    let answer = Answer {
        detected: report.detected,
        description: told(report.description),
        safety: report.safety,
    };
    (answer, report.unknown)
}

const CHUNKS: [usize; 4] = [1, 511, 4096, 65_536];

/// Files longer than this are cut into larger chunks only, for the same reason.
const CHUNKWISE: u64 = 4 << 20;

/// Differences between the files below a folder and their streams, in chunks of these lengths.
fn differences(folder: &Path, chunks: &[usize]) -> Vec<String> {
    let files = files_below(folder);
    assert!(files.len() > 50);
    let mut wrong = Vec::new();
    for path in files {
        let size = std::fs::metadata(&path).unwrap().len();
        if size > 1 << 30 {
            continue;
        }
        let file = of_file(&path);
        for &len in chunks
            .iter()
            .filter(|len| size <= CHUNKWISE || **len >= 4096)
        {
            let (stream, unknown) = of_stream(&path, len);
            if !unknown.is_empty() && path.to_string_lossy().contains(TOO_LARGE) {
                assert!(unknown[0].contains("stream_bytes"), "{unknown:?}");
                assert!(!stream.safety.is_safe());
                continue;
            }
            if stream != file {
                wrong.push(format!(
                    "{} by {len}:\n{stream:.300?}\n{file:.300?}",
                    path.display()
                ));
                break;
            }
        }
    }
    wrong
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes; run it with --release")]
fn streams_of_our_images_are_what_the_files_are() {
    let wrong = differences(&root().join("testdata"), &CHUNKS);
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes; run it with --release")]
fn streams_of_images_by_other_tools_are_what_the_files_are() {
    for (collection, chunks) in [("corpus", &CHUNKS[..]), ("hostile", &[511])] {
        let Some(folder) = unpacked(collection) else {
            return;
        };
        let wrong = differences(folder.path(), chunks);
        assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn a_stream_that_turns_ambiguous_comes_to_its_end() {
    // What the first format still waited for is never asked for again once there is a second.
    let mut ambiguous = 0;
    for path in files_below(&testdata("vmdk/good")) {
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.resize(bytes.len().max(196_608), 0);
        bytes[32_769..32_774].copy_from_slice(b"CD001");
        let mut inspector = StreamOptions::new().inspector();
        inspector.feed(&bytes).unwrap();
        let report = inspector.finish().unwrap();
        if report.detected.matches.len() + report.detected.content.len() > 1 {
            assert!(
                matches!(report.description, Err(Error::Ambiguous { .. })),
                "{}",
                path.display()
            );
            ambiguous += 1;
        }
    }
    assert!(ambiguous > 5, "{ambiguous}");
}

/// A member of a tar archive.
fn member(name: &str, len: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(124, &format!("{len:011o}"));
    put(148, "        ");
    put(257, "ustar");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.resize((512 + len).next_multiple_of(512), 7);
    header
}

#[test]
fn what_is_described_and_never_opened_is_asked_for_in_time() {
    // The headers of an archive are wherever the member before ends.
    let names = ["first", "second", "third", "fourth"];
    let mut archive: Vec<u8> = names
        .iter()
        .flat_map(|name| member(name, 3 << 20))
        .collect();
    archive.resize(archive.len() + 1024, 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.tar");
    std::fs::write(&path, archive).unwrap();
    let file = of_file(&path);
    let text = &file.description.as_ref().unwrap().0;
    assert!(text.contains("fourth"), "{text}");
    for len in [511, 65_536] {
        let (stream, unknown) = of_stream(&path, len);
        assert_eq!(unknown, [""; 0]);
        assert_eq!(stream, file);
    }
}

fn feed(options: StreamOptions, bytes: &[u8]) -> Result<StreamReport, (u64, Error)> {
    let mut inspector = options.inspector();
    for byte in bytes {
        let at = inspector.position();
        inspector.feed(&[*byte]).map_err(|error| (at + 1, error))?;
    }
    inspector
        .finish()
        .map_err(|error| (bytes.len() as u64, error))
}

fn allow(formats: &[&str]) -> StreamOptions {
    StreamOptions::new().allow(formats.iter().copied())
}

/// The place where a stream is stopped, and the formats found.
fn stopped(options: StreamOptions, bytes: &[u8]) -> (u64, Vec<String>) {
    match feed(options, bytes) {
        Err((at, Error::NotAllowed { found, .. })) => {
            (at, found.iter().map(ToString::to_string).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_is_stopped_at_the_byte_that_proves_it_wrong() {
    let image = std::fs::read(testdata("qcow2/good/plain.qcow2")).unwrap();
    assert!(feed(allow(&["qcow2"]), &image).is_ok());
    assert!(feed(allow(&["vdi", "qcow2"]), &image).is_ok());
    // A skippable frame of zstd begins with the same byte.
    assert_eq!(stopped(allow(&["vhdx"]), &image).0, 2);
    assert_eq!(stopped(allow(&["qcow"]), &image).0, 8, "by its version");
    assert_eq!(stopped(allow(&["vdi"]), &image).0, 65);
    // What shows to be something else is looked at by the sector.
    assert_eq!(
        stopped(allow(&["raw"]), &image),
        (512, vec!["qcow2".into()])
    );
    assert_eq!(
        stopped(allow(&["vpc"]), &image),
        (512, vec!["qcow2".into()])
    );
    // A raw disk that is none of those allowed shows it only by what it lacks.
    let disk = vec![0; 2 << 20];
    assert!(feed(allow(&["raw"]), &disk).is_ok());
    assert_eq!(stopped(allow(&["iso"]), &disk), (1 << 20, vec![]));
    assert_eq!(stopped(allow(&["vhd"]), &disk), (2 << 20, vec![]));
    // A fixed VHD is told by its end.
    let mut fixed = disk;
    fixed[(2 << 20) - 512..(2 << 20) - 504].copy_from_slice(b"conectix");
    assert_eq!(
        stopped(allow(&["raw"]), &fixed),
        (2 << 20, vec!["vhd".into()])
    );
    // Two formats are neither, even if both are allowed.
    let mut both = image;
    both[32_769..32_774].copy_from_slice(b"CD001");
    assert_eq!(
        stopped(allow(&["qcow2", "raw"]), &both),
        (33_280, vec!["qcow2".into(), "iso".into()])
    );
}

#[test]
fn a_disk_that_is_too_large_stops_the_stream() {
    let stopped = |bytes: &[u8], options: StreamOptions| match feed(options, bytes) {
        Err((at, Error::LimitExceeded { limit, .. })) => {
            assert_eq!(limit, "virtual_size");
            at
        }
        other => panic!("{other:?}"),
    };
    let most = || StreamOptions::new().max_virtual_size((1 << 20) - 1);
    let image = std::fs::read(testdata("qcow2/good/plain.qcow2")).unwrap();
    assert_eq!(stopped(&image, most()), 512, "by its header");
    let small = StreamOptions::new().max_virtual_size(58_879);
    let image = std::fs::read(testdata("vdi/good/dynamic.vdi")).unwrap();
    assert_eq!(stopped(&image, small), 512, "by its header");
    let disk = vec![0; 3 << 20];
    assert_eq!(stopped(&disk, most().allow(["raw"])), 1 << 20);
    // It could still be a fixed VHD, whose footer is no part of the disk.
    assert_eq!(stopped(&disk, most()), 2 << 20);
}

#[test]
fn the_reader_passes_on_what_it_reads_and_carries_the_error() {
    let image = std::fs::read(testdata("qcow2/good/plain.qcow2")).unwrap();
    let mut reader = allow(&["qcow2"]).reader(image.as_slice());
    let mut copy = Vec::new();
    std::io::copy(&mut reader, &mut copy).unwrap();
    assert!(copy == image);
    assert!(reader.report().unwrap().safety.is_safe());
    let mut reader = allow(&["vhdx"]).reader(image.as_slice());
    let mut buf = [0; 16];
    let error = reader.read(&mut buf).unwrap_err();
    let carried = error.get_ref().unwrap().downcast_ref::<Error>();
    assert!(matches!(carried, Some(Error::NotAllowed { .. })), "{error}");
    let again = reader.read(&mut buf).unwrap_err().to_string();
    assert!(again.contains("was stopped"), "{again}");
}

#[test]
fn packed_streams_are_what_they_hold() {
    let path = testdata("qcow2/good/plain.qcow2");
    let file = of_file(&path);
    for (tool, flags) in [("gzip", "-9"), ("xz", "-9"), ("zstd", "-19"), ("xz", "-0")] {
        if !crate::support::has_tool(tool) {
            continue;
        }
        let packed = std::process::Command::new(tool)
            .args([flags, "-q", "-c"])
            .arg(&path)
            .output()
            .unwrap()
            .stdout;
        // Two of them, one behind the other, are one.
        for len in [1, 511, 1 << 20] {
            let mut inspector = StreamOptions::new().inspector();
            packed.chunks(len).for_each(|c| inspector.feed(c).unwrap());
            let report = inspector.finish().unwrap();
            assert_eq!(report.packing.unwrap().name(), tool);
            assert_eq!(report.unknown, [""; 0]);
            assert_eq!(
                (report.size, &report.detected),
                (packed.len() as u64, &file.detected)
            );
            assert_eq!(told(report.description), file.description, "{tool}");
        }
        let cut = feed(StreamOptions::new(), &packed[..packed.len() - 9]).unwrap();
        assert!(cut.description.is_err() && !cut.safety.is_safe());
        assert_eq!(
            cut.virtual_size,
            Some(1 << 20),
            "{tool}: the start tells it"
        );
        assert_eq!(stopped(allow(&["qcow2"]), &packed).1, [tool]);
        assert!(feed(allow(&["qcow2", tool]), &packed).is_ok());
        let mut limits = Limits::default();
        limits.unpacked_bytes = 1 << 16;
        let bounded = feed(StreamOptions::new().limits(limits), &packed).unwrap();
        assert!(bounded.unknown[0].contains("unpacked_bytes"), "{bounded:?}");
        let mut limits = Limits::default();
        limits.window_bytes = 1 << 12;
        let bounded = feed(StreamOptions::new().limits(limits), &packed);
        assert!(tool == "gzip" || bounded.unwrap().description.is_err());
    }
}

#[test]
fn zstd_behind_frames_that_are_skipped_is_zstd() {
    const SIZE: u64 = 10 << 40;
    let mut image = std::fs::read(testdata("qcow2/good/plain.qcow2")).unwrap();
    image[24..32].copy_from_slice(&SIZE.to_be_bytes());
    let frame = zstd::bulk::compress(&image, 3).unwrap();
    let mut skipped = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    skipped.extend([0x5f, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
    let packed = [skipped, frame].concat();
    let report = feed(StreamOptions::new(), &packed).unwrap();
    assert_eq!(report.packing.map(|packing| packing.name()), Some("zstd"));
    assert_eq!(report.virtual_size, Some(SIZE));
    let small = StreamOptions::new().max_virtual_size(SIZE - 1);
    let (_, error) = feed(small, &packed).unwrap_err();
    assert!(
        matches!(error, Error::LimitExceeded { value: SIZE, .. }),
        "{error}"
    );
    assert_eq!(stopped(allow(&["qcow2"]), &packed).1, ["zstd"]);
    // A frame that is longer than what detection looks at.
    let mut long = packed.clone();
    long[4..8].copy_from_slice(&(1_u32 << 20).to_le_bytes());
    long.splice(8..11, vec![7; 1 << 20]);
    for bytes in [&packed, &long] {
        let file = detect(&Memory::new(bytes.clone())).unwrap();
        assert_eq!(file.matches[0].0.as_str(), "zstd");
        let report = feed(StreamOptions::new(), bytes).unwrap();
        assert_eq!(report.virtual_size, Some(SIZE));
    }
    // Frames that are skipped, and nothing else.
    let raw = [&packed[..11], &[0; 1 << 20]].concat();
    assert_eq!(feed(StreamOptions::new(), &raw).unwrap().packing, None);
}

/// Counts what is read of a file.
#[derive(Debug)]
struct Counting(FileStorage, AtomicU64);

impl BlockSource for Counting {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<blockform::Extent, Error> {
        self.0.extent_at(offset, limit)
    }
}

/// Images that are described by reading more than 1 MiB: each has one table of that size, which has to be
/// right before anything is told.
const LARGE_TABLE: [&str; 3] = ["xen-500g.vhd", "vhdx-log-replay.vhdx", "huge-8e.qcow2"];

#[test]
fn describing_reads_little() {
    let Some(folder) = unpacked("corpus") else {
        return;
    };
    let mut wrong = Vec::new();
    for path in files_below(folder.path()) {
        let file = FileStorage::open(&path).unwrap();
        let source = Arc::new(Counting(file, AtomicU64::new(0)));
        let _ = Report::of_source(source.clone(), ImageName::from("x"), &OpenOptions::new());
        let read = source.1.load(Ordering::Relaxed);
        let large = LARGE_TABLE.iter().any(|name| path.ends_with(name));
        let most = if large { 3 << 19 } else { 1 << 20 };
        if read > most {
            wrong.push(format!("{}: {read}", path.display()));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// Runs `img-info` with a file on standard input.
fn img_info(arguments: &[&str], input: &Path) -> (Option<i32>, String) {
    let output = std::process::Command::new(crate::support::command::example("img-info"))
        .args(arguments)
        .stdin(File::open(input).unwrap())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn the_command_reads_standard_input() {
    let good = testdata("qcow2/good/plain.qcow2");
    let (code, text) = img_info(&["-"], &good);
    assert_eq!(code, Some(0));
    assert!(
        text.starts_with("image: -\nfile format: qcow2\nvirtual size: 1 MiB"),
        "{text}"
    );
    let (code, json) = img_info(&["--output", "json", "--safety", "-f", "qcow2", "-"], &good);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json["blockform"]["safety"]["safe"]),
        (Some(0), &true.into())
    );
    let (code, json) = img_info(
        &["--output", "json", "--safety", "-"],
        &testdata("vhd/good/grandchild.vhd"),
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json["blockform"]["safety"]["safe"]),
        (Some(1), &false.into())
    );
    assert_eq!(json["format"], "vpc");
    for refused in [
        &["-f", "raw", "-"][..],
        &["--allow-formats", "vdi,vhdx", "-"],
        &["--max-size", "1023k", "-"],
        &["--backing-chain", "-"],
    ] {
        assert_eq!(
            img_info(refused, &good),
            (Some(1), String::new()),
            "{refused:?}"
        );
    }
    assert_eq!(
        img_info(
            &["--max-size", "1M", "--allow-formats", "iso,qcow2", "-"],
            &good
        )
        .0,
        Some(0)
    );
}
