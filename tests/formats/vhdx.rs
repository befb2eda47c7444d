//! VHDX: what is written reads back, logs are replayed, and damage is refused by name.

use std::process::Command;
use std::sync::{Arc, LazyLock};

use crate::support::{Rng, has_tool, read_all, run, sample_disk, sha256, testdata};
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, Image, parse_options};
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, DenyReferences, Error, ImageName, Limits,
    OpenOptions, Reference, Resolved, Resolver, Result,
};

const MIB: usize = 1 << 20;
/// Places of the writer's structures when the log has 1 MiB.
const LOG: usize = MIB;
const METADATA: usize = 2 * MIB;
const BAT: usize = 3 * MIB;
const DATA: u64 = 4 << 20;

#[derive(Debug)]
struct Parent(Vec<u8>, Arc<dyn Resolver>);

impl Resolver for Parent {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        assert_eq!(reference.format, Some(ImageName::from("vhdx")));
        Ok(Resolved::Open {
            source: Arc::new(Memory::new(self.0.clone())),
            format: None,
            within: Arc::clone(&self.1),
        })
    }
}

fn parent(bytes: &[u8]) -> Arc<dyn Resolver> {
    Arc::new(Parent(bytes.to_vec(), Arc::new(DenyReferences)))
}

fn convert(options: ConvertOptions, text: &str, disk: &[u8]) -> Vec<u8> {
    let target = Arc::new(Memory::new(Vec::new()));
    let mut options = options;
    for (name, value) in parse_options(text).unwrap() {
        options = options.option(name, value);
    }
    let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&target) as _];
    let source = Memory::new(disk.to_vec());
    options.convert_to_targets(&source, &targets).unwrap();
    drop(targets);
    target.to_bytes()
}

fn write(text: &str, disk: &[u8]) -> Vec<u8> {
    convert(ConvertOptions::to("vhdx"), text, disk)
}

fn write_over(below: &Arc<dyn Image>, text: &str, disk: &[u8]) -> Vec<u8> {
    let backing = Backing::new(ImageName::from("base.vhdx"), "vhdx");
    let options = ConvertOptions::to("vhdx").overlay(backing, Arc::clone(below));
    convert(options, text, disk)
}

fn open_over(bytes: &[u8], resolver: Arc<dyn Resolver>) -> Result<Box<dyn Image>> {
    let options = OpenOptions::new().resolver(resolver);
    options.open(Arc::new(Memory::new(bytes.to_vec())))
}

fn open(bytes: &[u8]) -> Result<Box<dyn Image>> {
    OpenOptions::new().open(Arc::new(Memory::new(bytes.to_vec())))
}

/// The error of opening and reading everything.
fn failure(bytes: &[u8], resolver: Arc<dyn Resolver>) -> String {
    let read = open_over(bytes, resolver).and_then(|image| read_all(&image));
    read.err().map(|e| e.to_string()).unwrap_or_default()
}

fn check_extents(image: &dyn Image, bytes: &[u8]) {
    for extent in image.extents() {
        let extent = extent.unwrap();
        let range = usize::try_from(extent.start).unwrap()..usize::try_from(extent.end()).unwrap();
        assert!(!extent.kind.reads_as_zero() || bytes[range].iter().all(|b| *b == 0));
    }
}

/// A disk of blocks that are full, sparse, zero and absent in turn.
fn disk(seed: u64, size: usize) -> Vec<u8> {
    let mut disk = sample_disk(seed, size);
    let mut rng = Rng(seed);
    for block in disk.chunks_mut(MIB) {
        match rng.below(4) {
            0 => block.fill(0),
            1 => block.iter_mut().skip(4096).for_each(|b| *b = 0),
            _ => {}
        }
    }
    disk
}

#[test]
fn what_is_written_reads_back() {
    for (i, text) in [
        "",
        "block_size=1M",
        "block_size=2M,block_state_zero=on",
        "block_size=1M,log_size=3M,logical_sector_size=4k",
        "subformat=fixed,block_size=1M",
        "subformat=fixed",
        "guid=2dc27766-f623-4200-9d64-115e9bfd4a08",
    ]
    .into_iter()
    .enumerate()
    {
        for size in [0, 512, 5 * MIB, 3 * MIB + 7 * 512] {
            let content = disk(i as u64 + size as u64, size);
            let bytes = write(text, &content);
            assert_eq!(bytes.len() % MIB, 0);
            assert_eq!(bytes, write(text, &content), "{text}: the same bytes");
            let image = open(&bytes).unwrap_or_else(|e| panic!("{text}: {e}"));
            let read = read_all(&image).unwrap();
            assert_eq!(read[..size], content, "{text}, {size} bytes");
            assert!(read.len() - size < 4096);
            check_extents(&*image, &read);
        }
    }
}

#[test]
fn what_is_never_placed_reads_as_zero_on_a_target_full_of_garbage() {
    for text in ["block_size=1M", "subformat=fixed,block_size=1M"] {
        let content = disk(11, 4 * MIB + 512);
        let target = Arc::new(Memory::new(vec![0xaa; 12 * MIB]));
        let mut options = ConvertOptions::to("vhdx");
        for (name, value) in parse_options(text).unwrap() {
            options = options.option(name, value);
        }
        let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&target) as _];
        let source = Memory::new(content.clone());
        options.convert_to_targets(&source, &targets).unwrap();
        assert!(read_all(&open(&target.to_bytes()).unwrap()).unwrap() == content);
    }
}

#[test]
fn a_chain_reads_as_its_top_was_written() {
    for (seed, below_text, text) in [
        (1, "block_size=1M", "block_size=1M"),
        (2, "block_size=2M", "block_size=1M"),
        (3, "block_size=1M,logical_sector_size=4k", "block_size=4M"),
        (4, "subformat=fixed,block_size=1M", ""),
    ] {
        let mut rng = Rng(seed);
        let base = disk(seed, 6 * MIB + 8192);
        let mut middle = base.clone();
        middle[MIB..2 * MIB].fill(0);
        middle[3 * MIB - 9000..3 * MIB + 5000].fill(0);
        for _ in 0..12 {
            let at = usize::try_from(rng.below(base.len() as u64 - 5000)).unwrap();
            middle[at..at + 5000].copy_from_slice(&rng.bytes(5000));
        }
        let mut top = middle.clone();
        top[..4096].fill(7);
        let base_file = write(below_text, &base);
        let below: Arc<dyn Image> = Arc::from(open(&base_file).unwrap());
        let middle_file = write_over(&below, text, &middle);
        let resolver = parent(&base_file);
        let image = open_over(&middle_file, Arc::clone(&resolver)).unwrap();
        let read = read_all(&image).unwrap();
        assert!(read == middle, "{text} over {below_text}");
        check_extents(&*image, &read);
        let image: Arc<dyn Image> = Arc::from(image);
        let top_file = write_over(&image, text, &top);
        let both = Arc::new(Parent(middle_file.clone(), resolver));
        assert!(read_all(&open_over(&top_file, both).unwrap()).unwrap() == top);

        // Another image with the same options, or the same one after a change, is another parent.
        let other = write(below_text, &middle);
        let error = failure(&middle_file, parent(&other));
        assert!(
            error.contains("wants a parent with the data write GUID"),
            "{error}"
        );
        let denied = open(&middle_file).unwrap_err();
        assert!(matches!(denied, Error::Denied { .. }), "{denied}");
    }
}

#[test]
fn an_image_that_windows_did_not_close() {
    let pages = std::fs::read(testdata("vhdx/good/hyperv-log.pages")).unwrap();
    let (size, pages) = pages.split_first_chunk().unwrap();
    let mut bytes = vec![0; usize::try_from(u64::from_le_bytes(*size)).unwrap()];
    for page in pages.chunks_exact(8 + 4096) {
        let (at, page) = page.split_first_chunk().unwrap();
        let at = usize::try_from(u64::from_le_bytes(*at)).unwrap();
        bytes[at..at + 4096].copy_from_slice(page);
    }
    let image = open(&bytes).unwrap();
    assert!(image.info().dirty);
    assert_eq!(image.size(), 1 << 30);
    // Of each 64 KiB that are not all zero, its offset and its bytes.
    let mut seen = Vec::new();
    let mut piece = vec![0; 64 << 10];
    for extent in image.extents().map(Result::unwrap) {
        let starts = (extent.start..extent.end()).step_by(64 << 10);
        for at in starts.filter(|_| !extent.kind.reads_as_zero()) {
            image.read_exact_at(&mut piece, at).unwrap();
            if piece.iter().any(|b| *b != 0) {
                seen.extend(at.to_le_bytes());
                seen.extend(&piece);
            }
        }
    }
    assert_eq!(
        sha256(&seen),
        "d9f79b28e84d00bda96070947caa36dace3305d41c727619717de5bd9f386ba2"
    );
    bytes.truncate(37_748_735);
    assert!(failure(&bytes, Arc::new(DenyReferences)).contains("cut short"));
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The checksum of what was patched: 4 bytes in, over `len`.
fn seal(bytes: &mut [u8], at: usize, len: usize) {
    bytes[at + 4..at + 8].fill(0);
    let crc = crc32c::crc32c(&bytes[at..at + len]);
    put(bytes, at + 4, &crc.to_le_bytes());
}

fn both_headers(bytes: &mut [u8], at: usize, value: &[u8]) {
    for header in [64 << 10, 128 << 10] {
        put(bytes, header + at, value);
        seal(bytes, header, 4096);
    }
}

fn both_region_tables(bytes: &mut [u8], at: usize, value: &[u8]) {
    for table in [192 << 10, 256 << 10] {
        put(bytes, table + at, value);
        seal(bytes, table, 64 << 10);
    }
}

fn bat(bytes: &mut [u8], index: usize, entry: u64) {
    put(bytes, BAT + 8 * index, &entry.to_le_bytes());
}

fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| Rng(5).bytes(3 * MIB));
    &CONTENT
}

fn sound() -> Vec<u8> {
    static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| write("block_size=1M", content()));
    SOUND.clone()
}

type Damage = (&'static str, fn(&mut Vec<u8>), &'static str);

#[test]
fn damage_is_refused_by_name() {
    const HEADER: usize = 64 << 10;
    const REGIONS: usize = 192 << 10;
    let cases: &[Damage] = &[
        (
            "both headers",
            |b| {
                b[HEADER + 100] ^= 1;
                b[2 * HEADER + 9] ^= 1
            },
            "checksum",
        ),
        ("version", |b| both_headers(b, 66, &[2]), "version 2"),
        ("equal numbers", |b| both_headers(b, 8, &[9]), ""),
        (
            "equal numbers, other GUIDs",
            |b| {
                both_headers(b, 8, &[9; 8]);
                b[HEADER + 20] ^= 1;
                seal(b, HEADER, 4096);
            },
            "neither is current",
        ),
        (
            "log in the headers",
            |b| both_headers(b, 72, &[0; 8]),
            "multiple of 1 MiB",
        ),
        (
            "log in the metadata",
            |b| both_headers(b, 72, &(2_u64 << 20).to_le_bytes()),
            "is in the log",
        ),
        (
            "both region tables",
            |b| {
                b[REGIONS] ^= 1;
                b[REGIONS + 65_536] ^= 1
            },
            "is not regi",
        ),
        (
            "two region tables",
            |b| {
                put(b, REGIONS + 44, &[0]);
                seal(b, REGIONS, 65_536)
            },
            "not the same",
        ),
        (
            "too many regions",
            |b| both_region_tables(b, 8, &[0, 8]),
            "over the most",
        ),
        (
            "a region past the end",
            |b| both_region_tables(b, 32, &(1_u64 << 40).to_le_bytes()),
            "past the end",
        ),
        (
            "a region in another",
            |b| both_region_tables(b, 32, &(2_u64 << 20).to_le_bytes()),
            "is in the",
        ),
        (
            "an unknown region",
            |b| both_region_tables(b, 16, &[1; 16]),
            "01010101-0101-0101-0101-010101010101",
        ),
        ("metadata table", |b| b[METADATA] ^= 1, "is not metadata"),
        (
            "an item outside",
            |b| put(b, METADATA + 48, &[0xff; 4]),
            "not in the region",
        ),
        (
            "an item in the table",
            |b| put(b, METADATA + 48, &[0; 4]),
            "not in the region",
        ),
        (
            "an item in another",
            |b| put(b, METADATA + 80, &[4, 0, 1, 0]),
            "in another item",
        ),
        (
            "an item of 4 GiB",
            |b| put(b, METADATA + 52, &[0xff; 4]),
            "over the most",
        ),
        (
            "an unknown item",
            |b| put(b, METADATA + 32, &[1; 16]),
            "required metadata item 01010101",
        ),
        (
            "an item twice",
            |b| b.copy_within(METADATA + 64..METADATA + 80, METADATA + 32),
            "before",
        ),
        (
            "a missing item",
            |b| put(b, METADATA + 10, &[4]),
            "no physical sector size",
        ),
        (
            "block size",
            |b| put(b, METADATA + 65_536, &[0, 0, 0x18, 0]),
            "power of two",
        ),
        (
            "file flags",
            |b| put(b, METADATA + 65_540, &[4]),
            "only bits 0 and 1",
        ),
        (
            "a parent without a locator",
            |b| put(b, METADATA + 65_540, &[2]),
            "is missing",
        ),
        (
            "disk size",
            |b| put(b, METADATA + 65_544, &[1]),
            "multiple of 512",
        ),
        (
            "disk of 128 TiB",
            |b| put(b, METADATA + 65_551, &[0, 0, 0]),
            "",
        ),
        (
            "disk over 64 TiB",
            |b| put(b, METADATA + 65_544, &(1_u64 << 47).to_le_bytes()),
            "64 TiB at most",
        ),
        (
            "a table too short",
            |b| put(b, METADATA + 65_544, &(1_u64 << 40).to_le_bytes()),
            "needs 1048831",
        ),
        (
            "sector size",
            |b| put(b, METADATA + 65_568, &[0, 3]),
            "512 or 4096",
        ),
        (
            "state 4",
            |b| bat(b, 1, DATA | 4),
            "in a state that is none",
        ),
        (
            "partial, no parent",
            |b| bat(b, 1, (DATA + MIB as u64) | 7),
            "there is no parent",
        ),
        (
            "reserved bits",
            |b| bat(b, 1, (DATA + MIB as u64) | 6 | 8),
            "reserved bits",
        ),
        (
            "one block twice",
            |b| bat(b, 1, DATA | 6),
            "where another block is",
        ),
        (
            "a block in the table",
            |b| bat(b, 1, (3 << 20) | 6),
            "in the BAT region",
        ),
        (
            "a block in the headers",
            |b| bat(b, 1, 6),
            "in the header section",
        ),
        (
            "a block past the end",
            |b| bat(b, 1, (9 << 20) | 6),
            "past the end",
        ),
        (
            "a block far past the end",
            |b| bat(b, 1, (u64::MAX << 20) | 6),
            "past the end",
        ),
        (
            "cut in the last block",
            |b| b.truncate(b.len() - 1),
            "past the end",
        ),
    ];
    for (name, damage, words) in cases {
        let mut bytes = sound();
        damage(&mut bytes);
        let error = failure(&bytes, Arc::new(DenyReferences));
        let fine = if words.is_empty() {
            error.is_empty()
        } else {
            error.contains(words)
        };
        assert!(fine, "{name}: {error:?}");
    }
    // One of two is enough, and is told.
    for at in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        let mut bytes = sound();
        bytes[at + 77] ^= 1;
        let image = open(&bytes).unwrap();
        assert!(image.info().warnings[0].contains("damaged"));
    }
    // Every state in which nothing is in the file reads as zero, wherever its entry points to.
    for state in [0, 1, 2, 3, 5] {
        let mut bytes = sound();
        bat(&mut bytes, 1, (7 << 20) | state);
        let read = read_all(&open(&bytes).unwrap()).unwrap();
        assert!(read[MIB..2 * MIB].iter().all(|b| *b == 0));
        assert!(read[..MIB].iter().any(|b| *b != 0));
    }
}

#[test]
fn damage_of_a_child_is_refused_by_name() {
    let base = Rng(8).bytes(3 * MIB);
    let base_file = write("block_size=1M", &base);
    let below: Arc<dyn Image> = Arc::from(open(&base_file).unwrap());
    let mut top = base.clone();
    top[MIB + 8192..MIB + 12_288].fill(9);
    let sound = write_over(&below, "block_size=1M", &top);
    let resolver = || parent(&base_file);
    let bitmap = 8 * 4096;
    for (name, at, value, words) in [
        (
            "no bitmap",
            BAT + bitmap,
            0_u64,
            "has to be a sector bitmap",
        ),
        (
            "bitmap past the end",
            BAT + bitmap,
            (99 << 20) | 6,
            "past the end",
        ),
        (
            "bitmap in the block",
            BAT + bitmap,
            DATA | 6,
            "where another block is",
        ),
        (
            "locator type",
            METADATA + 65_576,
            0,
            "type of parent locator",
        ),
    ] {
        let mut bytes = sound.clone();
        put(&mut bytes, at, &value.to_le_bytes());
        let error = failure(&bytes, resolver());
        assert!(error.contains(words), "{name}: {error:?}");
    }
    let mut bytes = sound.clone();
    put(&mut bytes, METADATA + 65_540, &[0]);
    assert!(failure(&bytes, resolver()).contains("the image has no parent"));
    assert_eq!(failure(&sound, resolver()), "");
}

/// The write of an entry of a log: a sector of one value, or zeros.
enum LogWrite {
    Data(u64, u8),
    Zeroes(u64, u64),
}
use LogWrite::{Data, Zeroes};

const GUID: [u8; 16] = [0x4c; 16];

/// A log entry; `tail` in sectors of the log.
fn entry(sequence: u64, tail: u32, file: [u64; 2], writes: &[LogWrite]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let mut sectors = Vec::new();
    for write in writes {
        let mut descriptor = [0; 32];
        match write {
            Data(at, value) => {
                put(&mut descriptor, 0, b"desc");
                put(&mut descriptor, 4, &[*value; 12]);
                put(&mut descriptor, 16, &at.to_le_bytes());
                let mut sector = [*value; 4096];
                put(&mut sector, 0, b"data");
                put(&mut sector, 4, &sequence.to_le_bytes()[4..]);
                put(&mut sector, 4092, &sequence.to_le_bytes()[..4]);
                sectors.extend(sector);
            }
            Zeroes(at, len) => {
                put(&mut descriptor, 0, b"zero");
                put(&mut descriptor, 8, &len.to_le_bytes());
                put(&mut descriptor, 16, &at.to_le_bytes());
            }
        }
        put(&mut descriptor, 24, &sequence.to_le_bytes());
        bytes.extend(descriptor);
    }
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes.extend(sectors);
    put(&mut bytes, 0, b"loge");
    let len = u32::try_from(bytes.len()).unwrap();
    put(&mut bytes, 8, &len.to_le_bytes());
    put(&mut bytes, 12, &(tail * 4096).to_le_bytes());
    put(&mut bytes, 16, &sequence.to_le_bytes());
    put(
        &mut bytes,
        24,
        &u32::try_from(writes.len()).unwrap().to_le_bytes(),
    );
    put(&mut bytes, 32, &GUID);
    put(&mut bytes, 48, &file[0].to_le_bytes());
    put(&mut bytes, 56, &file[1].to_le_bytes());
    let all = bytes.len();
    seal(&mut bytes, 0, all);
    bytes
}

/// An image whose log has these entries, each at a sector of the log, round its end if need be.
fn with_log(entries: &[(usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = sound();
    both_headers(&mut bytes, 48, &GUID);
    for (sector, entry) in entries {
        for (i, part) in entry.chunks(4096).enumerate() {
            put(&mut bytes, LOG + (sector + i) % 256 * 4096, part);
        }
    }
    bytes
}

/// The first byte of each of the sectors that the log cases write to.
fn seen(entries: &[(usize, Vec<u8>)]) -> Result<[u8; 3], String> {
    let bytes = with_log(entries);
    let image = open(&bytes).map_err(|e| e.to_string())?;
    assert!(image.info().dirty);
    let read = read_all(&image).map_err(|e| e.to_string())?;
    let expected = content();
    assert!(read[12_288..] == expected[12_288..], "nothing else changes");
    for sector in read[..12_288].chunks(4096) {
        let written = sector.iter().all(|b| *b == sector[0]);
        assert!(written || expected.chunks(4096).any(|s| s == sector));
    }
    let value = |i: usize| {
        let sector = &read[i * 4096..(i + 1) * 4096];
        if sector.iter().all(|b| *b == sector[0]) {
            sector[0]
        } else {
            0xff
        }
    };
    Ok([value(0), value(1), value(2)])
}

#[test]
fn the_active_sequence_is_replayed_and_no_other() {
    let size = sound().len() as u64;
    let file = [size, size];
    let [a, b, c] = [DATA, DATA + 4096, DATA + 8192];
    let one = |sequence, tail| entry(sequence, tail, file, &[Data(a, 1)]);
    let none = 0xff;

    assert_eq!(seen(&[(0, one(5, 0))]), Ok([1, none, none]));
    assert_eq!(
        seen(&[(
            0,
            entry(
                5,
                0,
                file,
                &[Data(a, 1), Zeroes(b, 8192), Data(c, 3), Data(a, 2)]
            )
        )]),
        Ok([2, 0, 3])
    );
    // From the tail to the head, in order, also round the end of the log.
    let two = [
        (254, one(7, 254)),
        (0, entry(8, 254, file, &[Data(a, 2), Data(b, 3)])),
    ];
    assert_eq!(seen(&two), Ok([2, 3, none]));
    let round = [(255, entry(7, 255, file, &[Data(b, 4), Data(c, 5)]))];
    assert_eq!(seen(&round), Ok([none, 4, 5]));
    // What is before the tail was written back long ago.
    let written_back = [(0, entry(7, 0, file, &[Data(c, 9)])), (2, one(8, 2))];
    assert_eq!(seen(&written_back), Ok([1, none, none]));
    // The newer of two sequences, wherever it is; a gap in the numbers ends one.
    let stale = [(0, entry(90, 0, file, &[Data(b, 7)])), (8, one(100, 8))];
    assert_eq!(seen(&stale), Ok([1, none, none]));
    let gap = [(0, one(5, 0)), (2, entry(7, 2, file, &[Data(b, 6)]))];
    assert_eq!(seen(&gap), Ok([none, 6, none]));
    // A torn entry ends the sequence before it.
    let mut torn = entry(6, 0, file, &[Data(b, 8)]);
    torn[5000] ^= 1;
    assert_eq!(
        seen(&[(0, one(5, 0)), (2, torn.clone())]),
        Ok([1, none, none])
    );
    // An entry without writes is one all the same.
    assert_eq!(seen(&[(0, entry(5, 0, file, &[]))]), Ok([none; 3]));

    for (name, entries, words) in [
        ("nothing", vec![], "no whole sequence"),
        ("torn", vec![(2, torn)], "no whole sequence"),
        ("tail elsewhere", vec![(0, one(5, 9))], "no whole sequence"),
        (
            "two heads",
            vec![(0, one(5, 0)), (4, one(5, 4))],
            "another sequence",
        ),
        (
            "cut short",
            vec![(0, entry(5, 0, [size + 1, size], &[]))],
            "cut short",
        ),
        (
            "too large",
            vec![(0, entry(5, 0, [0, u64::MAX], &[]))],
            "more than a file",
        ),
        (
            "headers",
            vec![(0, entry(5, 0, file, &[Data(65_536, 1)]))],
            "in the headers",
        ),
        (
            "itself",
            vec![(0, entry(5, 0, file, &[Data(LOG as u64, 1)]))],
            "in the log itself",
        ),
        (
            "zeros over all",
            vec![(0, entry(5, 0, file, &[Zeroes(1 << 20, 1 << 62)]))],
            "in the log itself",
        ),
        (
            "past all",
            vec![(0, entry(5, 0, file, &[Zeroes(1 << 62, 3 << 62)]))],
            "no whole sequence",
        ),
        (
            "unaligned",
            vec![(0, entry(5, 0, file, &[Data(a + 512, 1)]))],
            "no whole sequence",
        ),
    ] {
        let error = seen(&entries).expect_err(name);
        let fine = error.contains(words) || name == "past all" && error.contains("past what");
        assert!(fine, "{name}: {error}");
    }
    // A file grows by its log: what is new reads as zero.
    let grown = entry(5, 0, [size, size + (1 << 20)], &[Data(BAT as u64, 0)]);
    let mut bytes = with_log(&[(0, grown)]);
    put(&mut bytes, LOG + 64 + 8, &(size | 6).to_le_bytes());
    seal(&mut bytes[..LOG + 8192], LOG, 8192);
    let read = read_all(&open(&bytes).unwrap()).unwrap();
    assert!(read.iter().all(|b| *b == 0));
}

#[test]
fn a_log_and_a_table_are_bounded() {
    let size = sound().len() as u64;
    let bytes = with_log(&[(0, entry(5, 0, [size, size], &[Data(DATA, 1)]))]);
    let mut limits = Limits::default();
    limits.metadata_bytes = 1 << 19;
    let options = OpenOptions::new().limits(limits);
    let error = options.open(Arc::new(Memory::new(bytes))).unwrap_err();
    assert!(
        matches!(
            error,
            Error::LimitExceeded {
                what: "the log",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn every_flipped_bit_of_a_checked_structure_is_noticed() {
    let sound = sound();
    let whole = read_all(&open(&sound).unwrap()).unwrap();
    let mut rng = Rng(77);
    for _ in 0..150 {
        // Headers and region tables, metadata table and items, BAT.
        let at = match rng.below(4) {
            0 => (64 << 10) + rng.below(260 << 10),
            1 => METADATA as u64 + rng.below(256),
            2 => METADATA as u64 + 65_536 + rng.below(40),
            _ => BAT as u64 + rng.below(24),
        };
        let mut bytes = sound.clone();
        bytes[usize::try_from(at).unwrap()] ^= 1 << rng.below(8);
        let Ok(image) = open(&bytes) else { continue };
        let Ok(read) = read_all(&image) else { continue };
        // Sizes and states have no checksum; whatever else is read is right.
        let same = read.iter().zip(&whole).filter(|(a, b)| a == b).count();
        assert!(read.len() != whole.len() || same == whole.len() || at >= METADATA as u64);
    }
}

#[test]
fn qemu_reads_what_we_write_and_we_read_what_it_writes() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let qemu = |line: &str| {
        run(Command::new("qemu-img")
            .args(line.split_whitespace())
            .current_dir(folder.path()))
    };
    let content = disk(21, 5 * MIB + 512);
    std::fs::write(folder.path().join("disk.raw"), &content).unwrap();
    for text in [
        "subformat=dynamic",
        "block_size=1M,block_state_zero=on",
        "subformat=dynamic,block_state_zero=off,block_size=1M",
        "subformat=fixed,block_size=1M,log_size=2M",
    ] {
        let name = "ours.vhdx";
        std::fs::write(folder.path().join(name), write(text, &content)).unwrap();
        qemu("check -f vhdx ours.vhdx");
        qemu("compare -f raw -F vhdx disk.raw ours.vhdx");
        qemu(&format!(
            "convert -f raw -O vhdx -o {text} disk.raw theirs.vhdx"
        ));
        let image = OpenOptions::new().open_path(folder.path().join("theirs.vhdx"));
        assert!(read_all(&image.unwrap()).unwrap() == content, "{text}");
    }
}
