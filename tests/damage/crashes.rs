//! A crash at any moment leaves no image that looks whole and is not.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::support::crash::{Log, Op, Recorder, after, states};
use crate::support::faults::{figure, thorough};
use crate::support::model::{Fill, Model, OnlyOne};
use crate::support::{Rng, read_all};
use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, OpenOptions};

/// The formats that have a header, and how they are written.
fn ways() -> Vec<(&'static str, ConvertOptions)> {
    let to = ConvertOptions::to;
    let stream = to("vmdk").option("subformat", "streamOptimized");
    let fixed = to("vhd").option("subformat", "fixed");
    vec![
        ("qcow2", to("qcow2").option("cluster_size", "4k")),
        ("qcow2", to("qcow2").compress(true)),
        (
            "qcow2",
            to("qcow2")
                .option("extended_l2", "on")
                .option("cluster_size", "16k"),
        ),
        ("qcow2", to("qcow2").option("preallocation", "full")),
        ("qcow2", to("qcow2").option("data_file", "data")),
        ("vmdk", to("vmdk")),
        ("vmdk", stream),
        ("vhd", to("vhd")),
        ("vhd", fixed),
        (
            "vhdx",
            to("vhdx")
                .option("block_size", "1M")
                .option("log_size", "1M"),
        ),
        (
            "vhdx",
            to("vhdx")
                .option("subformat", "fixed")
                .option("log_size", "1M"),
        ),
        ("vdi", to("vdi")),
        ("vdi", to("vdi").option("static", "on")),
        ("ova", to("ova")),
    ]
}

/// The one that is made for streams.
const STREAM: usize = 6;

fn disk(seed: u64, size: usize) -> Model {
    let mut disk = Model::new(size);
    let mut rng = Rng(seed);
    for i in 0..8 {
        let start = usize::try_from(rng.below(size as u64)).unwrap();
        disk.fill(start, 70_000, Fill::ALL[i % 5], rng.next());
    }
    disk
}

/// Writes a disk over what is in these files, and returns what was done.
fn record(options: &ConvertOptions, disk: &Model, threads: usize, before: &[Vec<u8>]) -> Vec<Op> {
    let log: Arc<Log> = Arc::default();
    let targets: Vec<Arc<dyn BlockTarget>> = before
        .iter()
        .enumerate()
        .map(|(number, bytes)| -> Arc<dyn BlockTarget> {
            Arc::new(Recorder {
                file: Memory::new(bytes.clone()),
                number,
                log: Arc::clone(&log),
                reads_as_zero: bytes.is_empty(),
            })
        })
        .collect();
    let options = options.clone().threads(NonZeroUsize::new(threads).unwrap());
    options.convert_to_targets(disk, &targets).unwrap();
    log.take()
}

/// The content of an image in these files, if it is one.
fn content(format: &str, files: &[Vec<u8>]) -> Option<Result<Vec<u8>, blockform::Error>> {
    let data = files.get(1).map(|file| Arc::new(Memory::new(file.clone())));
    let image = OpenOptions::new()
        .format(format)
        .resolver(Arc::new(OnlyOne(data)))
        .open(Arc::new(Memory::new(files[0].clone())))
        .ok()?;
    Some(match image.size() {
        size if size > 1 << 26 => Err(blockform::Error::invalid("another size")),
        _ => read_all(&image),
    })
}

fn crash_everywhere(size: usize, threads: usize, over_another: bool, reordered: usize) -> u64 {
    let (old, new) = (disk(1, size), disk(2, size));
    let mut rng = Rng(7);
    let mut count = 0;
    for (number, (format, options)) in ways().into_iter().enumerate() {
        let files = 1 + usize::from(number == 4);
        let empty = vec![Vec::new(); files];
        let mut start = empty.clone();
        let mut judged_old = None;
        if over_another {
            start = after(&empty, &record(&options, &old, 1, &empty));
            judged_old = Some(content(format, &start).unwrap().unwrap());
        }
        let log = record(&options, &new, threads, &start);
        let (mut whole, mut problems) = (0, Vec::new());
        count += states(
            &start,
            &log,
            reordered,
            &mut rng,
            &mut |about, files| match content(format, files) {
                None => {}
                Some(Ok(read)) if read.starts_with(&new.bytes) => whole += 1,
                Some(Ok(read)) if Some(&read) == judged_old.as_ref() => {}
                // A stream begins with its header: in place of an older one, reading says what is missing.
                Some(Err(_)) if over_another && number == STREAM => {}
                Some(found) => {
                    let found = found.map(|_| "something else");
                    problems.push(format!("{about}: {found:?}"));
                }
            },
        );
        problems.truncate(5);
        assert!(
            problems.is_empty(),
            "{format} {number} over another: {over_another}, {} operations:\n{}",
            log.len(),
            problems.join("\n")
        );
        assert!(whole > 0, "{format} {number} is whole in the end");
    }
    count
}

#[test]
fn what_is_left_of_a_new_image_is_nothing_or_all() {
    let size = if thorough() { 3 << 20 } else { 400 << 10 };
    let reordered = if thorough() { 200 } else { 4 };
    let mut count = 0;
    let threads = if thorough() { vec![1, 3] } else { vec![3] };
    for threads in threads {
        count += crash_everywhere(size, threads, false, reordered);
    }
    figure("crash states of new images", count);
    assert!(count > 250, "{count}");
}

#[test]
fn what_is_left_in_place_of_an_old_image_is_nothing_the_old_or_all() {
    let size = if thorough() { 3 << 20 } else { 400 << 10 };
    let reordered = if thorough() { 200 } else { 4 };
    let count = crash_everywhere(size, 1, true, reordered);
    figure("crash states in place of an old image", count);
    assert!(count > 250, "{count}");
}
