//! Images that the qcow2 writer lays out, with QEMU as the judge of each: its check has to find nothing
//! and the guest has to see what was written.
//!
//! The engine here is the smallest that can drive a writer. Its targets are full of garbage before they
//! are written, as a used block device is: what reads as zero has to have been written or recorded so.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the engine is part of the test"
)]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;

use blockform::image::{
    Backing, CreateOptions, Encoder, Form, ImageWriter, OutputFile, Part, Payload, Write, WriteRun,
    parse_options,
};
use blockform::{Error, ImageName};

use crate::support::{fails, has_tool};

/// Value of the unwritten bytes of a target.
const GARBAGE: u8 = 0xaa;
const BASE: &str = "base.raw";
const DATA: &str = "data.raw";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Noise,
    Zero,
    /// Nothing is placed.
    Gap,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    guest: u64,
    len: u64,
    kind: Kind,
}

fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn content(piece: Piece) -> Vec<u8> {
    let words = piece.guest / 8..(piece.guest + piece.len).div_ceil(8);
    let word = |i: u64| match piece.kind {
        Kind::Text => (0x2020_2020_2020_2020 + mix(i / 64) % 0x4000).to_le_bytes(),
        Kind::Noise => mix(i).to_le_bytes(),
        Kind::Zero | Kind::Gap => [0; 8],
    };
    let mut bytes: Vec<u8> = words.flat_map(word).collect();
    bytes.truncate(piece.len as usize);
    bytes
}

/// Pieces of changing kinds and lengths that cover a disk, all of whole units.
fn mixture(size: u64, unit: u64, seed: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut guest = 0;
    while guest < size {
        let dice = mix(seed ^ mix(guest));
        let kind = [Kind::Text, Kind::Noise, Kind::Zero, Kind::Gap][(dice % 4) as usize];
        // Mostly short, sometimes long.
        let units = 1 + (dice >> 8) % [1, 3, 9, 70][(dice >> 4) as usize % 4];
        let len = (units * unit).min(size - guest);
        pieces.push(Piece { guest, len, kind });
        guest += len;
    }
    pieces
}

fn write(files: &mut [Vec<u8>], file: usize, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if files[file].len() < end {
        files[file].resize(end, GARBAGE);
    }
    files[file][offset as usize..end].copy_from_slice(bytes);
}

fn apply(files: &mut [Vec<u8>], writes: Vec<Write>) {
    for Write {
        file,
        offset,
        payload,
    } in writes
    {
        match payload {
            Payload::Bytes(bytes) => write(files, file, offset, &bytes),
            Payload::Zeroes(len) | Payload::WrittenZeroes(len) => {
                write(files, file, offset, &vec![0; len as usize]);
            }
            other => panic!("{other:?} is no write of a table"),
        }
    }
}

/// A piece of a run in one form.
struct Job {
    guest: u64,
    kind: Kind,
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

/// Cuts a run where its form changes.
fn jobs(run: Piece, encoder: Option<&dyn Encoder>, unit: u64) -> Vec<Job> {
    let bytes = content(run);
    let whole = |bytes| Job {
        guest: run.guest,
        kind: run.kind,
        bytes,
        parts: Vec::new(),
    };
    let Some(encoder) = encoder.filter(|_| run.kind != Kind::Zero) else {
        return vec![whole(bytes)];
    };
    let mut jobs: Vec<Job> = Vec::new();
    for (i, plain) in bytes.chunks(unit as usize).enumerate() {
        let guest = run.guest + i as u64 * unit;
        let mut padded = plain.to_vec();
        padded.resize(unit as usize, 0);
        let mut packed = Vec::new();
        let form = encoder.encode(guest, &padded, &mut packed).unwrap();
        let (stored, part) = match form {
            Form::Packed => {
                let len = packed.len() as u32;
                (packed, Some(Part { guest, len }))
            }
            Form::Verbatim => (plain.to_vec(), None),
        };
        match jobs.last_mut() {
            Some(job) if job.parts.is_empty() == part.is_none() => {
                job.bytes.extend(stored);
                job.parts.extend(part);
            }
            _ => jobs.push(Job {
                guest,
                kind: run.kind,
                bytes: stored,
                parts: part.into_iter().collect(),
            }),
        }
    }
    jobs
}

fn do_job(writer: &mut dyn ImageWriter, files: &mut [Vec<u8>], job: Job) {
    let mut bytes = job.bytes.as_slice();
    let mut parts = job.parts.as_slice();
    let mut guest = job.guest;
    let is_packed = !parts.is_empty();
    while !bytes.is_empty() {
        let len = bytes.len() as u64;
        let run = match job.kind {
            _ if is_packed => WriteRun::Packed { parts },
            Kind::Zero => WriteRun::Zero { guest, len },
            _ => WriteRun::Verbatim { guest, len },
        };
        let mut tables = Vec::new();
        let placed = writer.place(run, &mut tables).unwrap();
        apply(files, tables);
        assert!(placed.taken > 0);
        let mut taken = placed.taken as usize;
        if is_packed {
            let (placed_parts, rest) = parts.split_at(taken);
            taken = placed_parts.iter().map(|p| p.len as usize).sum();
            parts = rest;
        }
        let (now, rest) = bytes.split_at(taken);
        if job.kind != Kind::Zero {
            write(files, placed.file, placed.host, now);
        }
        bytes = rest;
        guest += placed.taken;
    }
}

struct Built {
    files: Vec<Vec<u8>>,
    /// Bytes that were to be reserved of each file.
    reserved: Vec<u64>,
}

/// Builds an image of `pieces`, in runs of at most `most` bytes.
fn build(create: &CreateOptions, pieces: &[Piece], most: u64) -> Built {
    let format = blockform::formats::Formats::all().by_name("qcow2").unwrap();
    let mut writer = format.create(create).unwrap();
    let shape = writer.shape();
    let encoder = writer.encoder();
    let mut files: Vec<Vec<u8>> = shape.files.iter().map(|_| Vec::new()).collect();
    let mut reserved = vec![0; files.len()];
    for Write { file, payload, .. } in &shape.preallocation {
        match payload {
            Payload::Allocate(len) => reserved[*file] = *len,
            other => panic!("{other:?} is no reservation"),
        }
    }
    assert_eq!(shape.files[0], OutputFile::Image);
    let most = most.next_multiple_of(shape.unit);
    let runs = pieces.iter().flat_map(|piece| {
        let starts = (0..piece.len).step_by(most as usize);
        starts.map(|at| Piece {
            guest: piece.guest + at,
            len: most.min(piece.len - at),
            kind: piece.kind,
        })
    });
    for run in runs {
        if run.kind == Kind::Gap || (run.kind == Kind::Zero && !shape.record_zeroes) {
            continue;
        }
        for job in jobs(run, encoder.as_deref(), shape.unit) {
            do_job(&mut *writer, &mut files, job);
        }
    }
    let finish = writer.finish().unwrap();
    apply(&mut files, finish.tables);
    apply(&mut files, finish.seal);
    for (file, size) in files.iter_mut().zip(finish.sizes) {
        // Only the last cluster may be cut short by the end of the disk.
        assert!(file.len() as u64 <= size);
        file.resize(size as usize, GARBAGE);
    }
    Built { files, reserved }
}

fn qemu(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("qemu-img")
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{problem}");
    text
}

/// Writes the disk that the guest has to see: sparse where it reads as zero.
fn write_model(path: &Path, base: Option<&[u8]>, size: u64, pieces: &[Piece]) {
    let mut file = File::create(path).unwrap();
    if let Some(base) = base {
        file.write_all(base).unwrap();
    }
    file.set_len(size.next_multiple_of(512)).unwrap();
    let shown = |kind| kind != Kind::Gap && (kind != Kind::Zero || base.is_some());
    for piece in pieces.iter().filter(|piece| shown(piece.kind)) {
        file.seek(SeekFrom::Start(piece.guest)).unwrap();
        file.write_all(&content(*piece)).unwrap();
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Case<'a> {
    options: &'a str,
    compress: bool,
    backing: bool,
    size: u64,
}

impl Case<'_> {
    fn create(self) -> CreateOptions {
        let mut create = CreateOptions::new(self.size);
        create.options = parse_options(self.options).unwrap();
        create.compress = self.compress;
        create.backing = self
            .backing
            .then(|| Backing::new(ImageName::from(BASE), "raw"));
        create
    }

    fn unit(self) -> u64 {
        let format = blockform::formats::Formats::all().by_name("qcow2").unwrap();
        format.create(&self.create()).unwrap().shape().unit
    }

    /// Builds a mixture and has it judged.
    fn judge(self) {
        self.judge_pieces(&mixture(self.size, self.unit(), self.size));
    }

    fn judge_pieces(self, pieces: &[Piece]) {
        let create = self.create();
        let built = build(&create, pieces, 1 << 20);
        // Where runs are cut does not show.
        if self.size % 1024 != 0 {
            let again = build(&create, pieces, 3 * 4096);
            assert!(built.files == again.files, "{self:?}");
        }
        for (file, reserved) in built.files.iter().zip(&built.reserved) {
            assert!(*reserved == 0 || *reserved == file.len() as u64, "{self:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        std::fs::write(path("image"), &built.files[0]).unwrap();
        if let Some(data) = built.files.get(1) {
            std::fs::write(path(DATA), data).unwrap();
        }
        // Shorter than the disk by a bit, so that its end is within.
        let base = self.backing.then(|| {
            let len = self.size - self.size / 8;
            content(Piece {
                guest: 1 << 40,
                len: len.next_multiple_of(512),
                kind: Kind::Noise,
            })
        });
        if let Some(base) = &base {
            std::fs::write(path(BASE), base).unwrap();
        }
        write_model(&path("model"), base.as_deref(), self.size, pieces);
        eprintln!("{self:?}");
        let report = qemu(directory.path(), &["check", "-f", "qcow2", "image"]);
        assert!(
            report.contains("No errors were found"),
            "{self:?}: {report}"
        );
        let compare = ["compare", "-f", "qcow2", "-F", "raw", "image", "model"];
        qemu(directory.path(), &compare);
        if self.options.contains("data_file_raw=on") {
            let model = std::fs::read(path("model")).unwrap();
            assert!(built.files[1] == model, "{self:?}: the data file alone");
        }
        if self.options.contains("preallocation=") && self.size > 0 {
            // With subclusters, QEMU's map tells those apart that the backing file shows through.
            let map = qemu(
                directory.path(),
                &["map", "--output=json", "-f", "qcow2", "image"],
            );
            let mapped = !map.contains("\"present\": false");
            assert!(
                mapped || self.options.contains("extended_l2"),
                "{self:?}: {map}"
            );
        }
    }
}

const SIZES: [u64; 4] = [0, 512, 1 << 20, (1 << 20) + 201 * 512];

/// Every combination of one of each, joined by commas.
fn products(dimensions: &[&[&str]]) -> Vec<String> {
    let mut all = vec![String::new()];
    for dimension in dimensions {
        let longer = all.iter().flat_map(|head| {
            dimension.iter().map(move |tail| {
                let comma = if head.is_empty() || tail.is_empty() {
                    ""
                } else {
                    ","
                };
                format!("{head}{comma}{tail}")
            })
        });
        all = longer.collect();
    }
    all
}

const CLUSTERS: [&str; 4] = ["cluster_size=512", "cluster_size=4k", "", "cluster_size=2M"];

fn judge_all(options: &[String], sizes: &[u64], compress: bool, backing: bool) {
    if !has_tool("qemu-img") || (compress && cfg!(not(feature = "zlib"))) {
        return;
    }
    for options in options {
        for size in sizes {
            Case {
                options,
                compress,
                backing,
                size: *size,
            }
            .judge();
        }
    }
}

#[test]
fn plain_images_of_both_versions() {
    let options = products(&[&CLUSTERS, &["", "compat=0.10"]]);
    judge_all(&options, &SIZES, false, false);
    judge_all(&options, &SIZES, false, true);
}

#[test]
fn every_refcount_width() {
    let widths = [1, 2, 4, 8, 16, 32, 64].map(|bits| format!("refcount_bits={bits}"));
    let widths = widths.each_ref().map(String::as_str);
    let options = products(&[&["cluster_size=512"], &widths]);
    let sizes = [(3 << 19) + 512];
    judge_all(&options, &sizes, false, false);
    judge_all(&options, &sizes, true, false);
    let options = products(&[&["cluster_size=2k", ""], &widths]);
    judge_all(&options, &sizes, true, true);
}

#[cfg(all(feature = "zlib", feature = "zstd"))]
#[test]
fn packed_clusters_among_others() {
    let options = products(&[&CLUSTERS, &["", "compression_type=zstd"]]);
    judge_all(&options, &SIZES, true, false);
    judge_all(&options, &SIZES, true, true);
    let old = products(&[&["cluster_size=512", "cluster_size=8k"], &["compat=v2"]]);
    judge_all(&old, &SIZES, true, false);
    judge_all(&old, &SIZES, true, true);
    let levels = products(&[&["compression_level=2", "compression_level=9"]]);
    judge_all(&levels, &SIZES[3..], true, false);
}

#[test]
fn images_with_subclusters() {
    let sizes = ["cluster_size=16k", "", "cluster_size=2M"];
    let options = products(&[&sizes, &["extended_l2=on"]]);
    let disks = [0, 512, (3 << 20) + 512];
    judge_all(&options, &disks, false, false);
    judge_all(&options, &disks, false, true);
    judge_all(&options, &disks, true, false);
    judge_all(&options, &disks, true, true);
}

#[test]
fn preallocated_images() {
    let kinds = ["metadata", "falloc", "full"].map(|kind| format!("preallocation={kind}"));
    let kinds = kinds.each_ref().map(String::as_str);
    let options = products(&[&CLUSTERS, &["", "compat=v2"], &kinds]);
    judge_all(&options, &SIZES, false, false);
    let narrow = products(&[&["cluster_size=512"], &["refcount_bits=64"], &kinds]);
    judge_all(&narrow, &SIZES, false, false);
    let subclusters = products(&[&["cluster_size=16k", ""], &["extended_l2=on"], &kinds]);
    judge_all(&subclusters, &SIZES, false, false);
    judge_all(&subclusters, &SIZES, false, true);
}

#[test]
fn images_with_a_data_file() {
    let kinds = [
        "",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
    ];
    let clusters = [
        "cluster_size=512",
        "",
        "extended_l2=on",
        "extended_l2=on,cluster_size=16k",
    ];
    let data = ["data_file=data.raw", "data_file=data.raw,data_file_raw=on"];
    judge_all(&products(&[&clusters, &kinds, &data]), &SIZES, false, false);
    let layered = products(&[&clusters, &data[..1]]);
    judge_all(&layered, &SIZES, false, true);
    let layered = products(&[&["extended_l2=on"], &kinds, &data[..1]]);
    judge_all(&layered, &SIZES, false, true);
}

#[test]
fn a_sparse_disk_whose_l1_table_crosses_refcount_ranges() {
    if !has_tool("qemu-img") {
        return;
    }
    for options in [
        "cluster_size=512,refcount_bits=64",
        "cluster_size=512,refcount_bits=1",
    ] {
        for compress in [false, cfg!(feature = "zlib")] {
            let case = Case {
                options,
                compress,
                backing: false,
                size: 1 << 30,
            };
            // Single clusters at the ends of spans of 32 KiB, and far apart.
            let starts = (0..400).map(|i| i * 2_600_000 / 32_768 * 32_768 + 32_768 - 512);
            let piece = |guest| Piece {
                guest,
                len: if guest % 3 == 0 { 512 } else { 4096 },
                kind: if guest % 7 == 0 {
                    Kind::Noise
                } else {
                    Kind::Text
                },
            };
            case.judge_pieces(&starts.map(piece).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_run_that_cannot_be_is_refused() {
    let format = blockform::formats::Formats::all().by_name("qcow2").unwrap();
    let mut writer = format.create(&CreateOptions::new(1 << 20)).unwrap();
    let mut tables = Vec::new();
    let mut place = |guest, len| {
        let run = WriteRun::Verbatim { guest, len };
        writer.place(run, &mut tables)
    };
    assert!(place(1 << 16, 1 << 16).is_ok());
    for (guest, len) in [
        (0, 1 << 16),
        (1 << 17, 0),
        (66_000, 512),
        (1 << 20, 1),
        (u64::MAX, 2),
    ] {
        fails!(
            place(guest, len),
            Error::InvalidInput(_) | Error::OutOfRange { .. },
            ""
        );
    }
    let run = WriteRun::Packed {
        parts: &[Part {
            guest: 1 << 18,
            len: 9,
        }],
    };
    fails!(
        writer.place(run, &mut tables),
        Error::InvalidInput(_),
        "compress"
    );
}
