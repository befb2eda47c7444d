//! Images that QEMU's tools make at random, read by them and by us: every byte has to be the same.
//!
//! Each image follows from its number. `BLOCKFORM_IMAGES` says how many there are to be,
//! `BLOCKFORM_FIRST` which is the first: a failure tells its number and how the image was made.

mod generate;

use std::path::Path;

use crate::support::{Rng, has_tool, judge_images, map_of, map_of_qemu, read_all, tool};
use blockform::convert::ConvertOptions;
use blockform::image::SnapshotSelector;
use blockform::{BlockSource, Image, OpenOptions, PathPolicy};
use generate::{Made, make};

fn open(folder: &Path, made: &Made, snapshot: Option<&str>) -> Result<Box<dyn Image>, String> {
    let mut options = OpenOptions::new()
        .format(made.our_format())
        .references(PathPolicy::SameDirectory);
    if let Some(name) = snapshot {
        options = options.snapshot(SnapshotSelector::Name(name.to_owned()));
    }
    let opened = options.open_path(folder.join(&made.file));
    opened.map_err(|error| format!("ours: {}", error.chain()))
}

fn same(ours: &[u8], theirs: &[u8]) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let first = ours.iter().zip(theirs).position(|(a, b)| a != b);
    Err(format!(
        "differs at byte {first:?}; sizes are {} and {}",
        ours.len(),
        theirs.len()
    ))
}

/// Compares one image, and what we make of it.
fn compare(folder: &Path, made: &Made, rng: &mut Rng) -> Result<(), String> {
    let format = made.format;
    let convert = ["qemu-img", "convert", "-f", format, "-O", "raw"];
    tool(folder, &[&convert[..], &[&made.file, "truth.raw"]].concat())?;
    let truth = std::fs::read(folder.join("truth.raw")).unwrap();
    let image = open(folder, made, None)?;
    let ours = read_all(&image).map_err(|error| format!("ours: {}", error.chain()))?;
    same(&ours, &truth)?;
    for _ in 0..4 {
        let at = rng.below(truth.len() as u64 + 1);
        let mut piece = vec![0; usize::try_from(rng.below(100_000)).unwrap()];
        let n = image.read_at(&mut piece, at).map_err(|e| e.chain())?;
        let at = usize::try_from(at).unwrap();
        same(&piece[..n], &truth[at..truth.len().min(at + piece.len())])?;
    }
    // What is only allocated QEMU calls data or zero by the holes of the file.
    let allocated = made
        .script
        .iter()
        .any(|line| line.contains("preallocation"));
    if format == "qcow2" && !made.has_data_file && !allocated {
        let map = tool(folder, &["qemu-img", "map", "--output=json", &made.file])?;
        let map = serde_json::from_str(&map).unwrap();
        if map_of(&*image) != map_of_qemu(&map) {
            return Err("qemu-img map says otherwise".to_owned());
        }
    }
    for name in &made.snapshots {
        let snapshot = format!("snapshot.name={name}");
        let more = ["-l", &snapshot, &made.file, "snapshot.raw"];
        tool(folder, &[&convert[..], &more].concat())?;
        let theirs = std::fs::read(folder.join("snapshot.raw")).unwrap();
        let image = open(folder, made, Some(name))?;
        let ours = read_all(&image).map_err(|error| format!("ours: {}", error.chain()))?;
        // QEMU gives it the size of the active state.
        let len = ours.len().min(theirs.len());
        same(&ours[..len], &theirs[..len]).map_err(|e| format!("snapshot {name} {e}"))?;
    }
    convert_on(folder, &*image, &truth, rng)
}

/// Converts an image on into another format, to be read by QEMU.
fn convert_on(folder: &Path, image: &dyn Image, truth: &[u8], rng: &mut Rng) -> Result<(), String> {
    if rng.below(3) > 0 || truth.is_empty() {
        return Ok(());
    }
    let to = ConvertOptions::to;
    let (options, format) = match rng.below(9) {
        0 => (to("qcow2"), "qcow2"),
        1 => (to("qcow2").compress(true), "qcow2"),
        2 => (
            to("qcow2")
                .compress(true)
                .option("compression_type", "zstd")
                .option("cluster_size", "32k"),
            "qcow2",
        ),
        3 => (
            to("qcow2")
                .option("extended_l2", "on")
                .option("refcount_bits", "1"),
            "qcow2",
        ),
        4 => (to("vmdk"), "vmdk"),
        5 => (to("vmdk").option("subformat", "streamOptimized"), "vmdk"),
        6 => (to("vhd").option("force_size", "on"), "vpc"),
        7 => (to("vdi"), "vdi"),
        _ => (to("raw"), "raw"),
    };
    let options = options.sync(false);
    let out = folder.join("ours");
    options
        .convert_to_path(&image, &out)
        .map_err(|error| format!("converting to {format}: {}", error.chain()))?;
    let words = [
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        format,
        "truth.raw",
        "ours",
    ];
    tool(folder, &words).map_err(|e| format!("what we made of it as {format}: {e}"))?;
    if format == "qcow2" {
        tool(folder, &["qemu-img", "check", "-q", "-f", "qcow2", "ours"])?;
    }
    Ok(())
}

#[test]
fn images_of_every_kind_read_as_qemu_reads_them() {
    if !has_tool("qemu-img") || !has_tool("qemu-io") {
        return;
    }
    judge_images("differential images", 60, |folder, number| {
        let mut rng = Rng(number);
        let made = make(folder, &mut rng);
        let kinds = vec![
            (made.format.to_owned(), 1),
            ("snapshots".to_owned(), made.snapshots.len() as u64),
            ("backing files".to_owned(), made.depth),
        ];
        let wrong = compare(folder, &made, &mut rng).err();
        let script = || made.script.join("\n  ");
        (
            kinds,
            wrong.map(|problem| format!("{problem}\n  {}", script())),
        )
    });
}
