//! Disks at random, written by us in random ways and read by QEMU: every byte has to be the same, and
//! `qemu-img check` has to find nothing.
//!
//! Each image follows from its number. `BLOCKFORM_IMAGES` says how many there are to be,
//! `BLOCKFORM_FIRST` which is the first: a failure tells its number and how the image was made.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;

use crate::support::model::{Fill, Model, Way};
use crate::support::{Rng, has_tool, judge_images, tool};
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, parse_options};
use blockform::{ImageName, OpenOptions, PathPolicy};

/// One of the words.
fn one<'a>(rng: &mut Rng, words: &[&'a str]) -> &'a str {
    words[usize::try_from(rng.below(words.len() as u64)).unwrap()]
}

fn coin(rng: &mut Rng) -> bool {
    rng.below(2) == 1
}

/// A disk of some sectors. Where it lies over another one, most of it is what that one has.
fn disk(rng: &mut Rng, base: Option<&Model>) -> Model {
    let most = [64, 1500, 9000][usize::try_from(rng.below(3)).unwrap()];
    let size = match base {
        Some(base) if coin(rng) => base.bytes.len(),
        _ => usize::try_from(1 + rng.below(most)).unwrap() * 512,
    };
    let mut disk = Model::new(size);
    if let Some(base) = base {
        let shared = size.min(base.bytes.len());
        disk.fill(0, shared, Fill::StoredZeroes, 0);
        disk.bytes[..shared].copy_from_slice(&base.bytes[..shared]);
    }
    for _ in 0..rng.below(12) {
        let start = usize::try_from(rng.below(size as u64)).unwrap();
        let len = usize::try_from(rng.below(300_000)).unwrap();
        let fill = Fill::ALL[usize::try_from(rng.below(5)).unwrap()];
        disk.fill(start, len, fill, rng.next());
    }
    disk
}

/// A way to write an image: what QEMU calls its format, the options, and whether it is packed.
struct Written {
    format: &'static str,
    qemu: &'static str,
    text: String,
    compress: bool,
    /// Set if the image is all in one file that needs no other way than from front to back.
    can_stream: bool,
    can_overlay: bool,
}

fn qcow2(rng: &mut Rng) -> Written {
    let way = Way {
        v2: rng.below(4) == 0,
        cluster_bits: 9 + u32::try_from(rng.below(13)).unwrap(),
        refcount_order: u32::try_from(rng.below(7)).unwrap(),
        extended_l2: coin(rng),
        lazy_refcounts: coin(rng),
        compress: coin(rng),
        zstd: coin(rng),
        preallocation: u32::try_from(rng.below(8)).unwrap().min(4) % 4,
        data_file: rng.below(4) == 0,
        data_file_raw: coin(rng),
        ..Way::default()
    };
    let way = way.settled();
    Written {
        format: "qcow2",
        qemu: "qcow2",
        text: way.text(),
        compress: way.compress,
        can_stream: !way.compress && !way.data_file,
        can_overlay: way.preallocation == 0 && !way.data_file_raw,
    }
}

fn vmdk(rng: &mut Rng) -> Written {
    let subformat = one(
        rng,
        &[
            "monolithicSparse",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
            "streamOptimized",
        ],
    );
    let mut text = format!("subformat={subformat}");
    let adapter = one(rng, &["ide", "buslogic", "lsilogic", "legacyESX"]);
    text += &format!(",adapter_type={adapter}");
    match subformat {
        "streamOptimized" => text += &format!(",compression_level={}", 1 + rng.below(9)),
        _ if coin(rng) && !subformat.ends_with("Flat") => text += ",zeroed_grain=on",
        _ => {}
    }
    Written {
        format: "vmdk",
        qemu: "vmdk",
        compress: subformat == "streamOptimized" && coin(rng),
        can_stream: ["monolithicSparse", "streamOptimized"].contains(&subformat),
        can_overlay: subformat == "monolithicSparse",
        text,
    }
}

fn vhd(rng: &mut Rng) -> Written {
    let fixed = coin(rng);
    let subformat = if fixed { "fixed" } else { "dynamic" };
    let mut text = format!("force_size=on,subformat={subformat}");
    if !fixed {
        // QEMU reads no other.
        text += ",block_size=2M";
    }
    Written {
        format: "vhd",
        qemu: "vpc",
        text,
        compress: false,
        can_stream: true,
        // QEMU knows no VHD over another.
        can_overlay: false,
    }
}

fn vhdx(rng: &mut Rng) -> Written {
    let mut text = format!("subformat={}", one(rng, &["dynamic", "fixed"]));
    text += &format!(",block_size={}M", 1 << rng.below(6));
    text += &format!(",log_size={}M", 1 + rng.below(4));
    text += &format!(",block_state_zero={}", one(rng, &["on", "off"]));
    Written {
        format: "vhdx",
        qemu: "vhdx",
        text,
        compress: false,
        can_stream: true,
        can_overlay: false,
    }
}

fn vdi(rng: &mut Rng) -> Written {
    Written {
        format: "vdi",
        qemu: "vdi",
        text: format!("static={}", one(rng, &["on", "off"])),
        compress: false,
        can_stream: true,
        can_overlay: false,
    }
}

/// Writes one image and lets QEMU read it. How it was made goes to `told` on the way.
fn judge(folder: &Path, number: u64, told: &mut String) -> Result<&'static str, String> {
    let mut rng = Rng(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let rng = &mut rng;
    let makers = [qcow2, qcow2, vmdk, vhd, vhdx, vdi];
    let way = makers[usize::try_from(rng.below(6)).unwrap()](rng);
    let sparse_size = [0, 512, 4096, 65_536][usize::try_from(rng.below(4)).unwrap()];
    let threads = NonZeroUsize::new(1 + usize::try_from(rng.below(3)).unwrap()).unwrap();
    let mut options = ConvertOptions::to(way.format)
        .compress(way.compress)
        .sparse_size(sparse_size)
        .threads(threads)
        .sync(false);
    for (name, value) in parse_options(&way.text).unwrap() {
        options = options.option(name, value);
    }
    let overlays = way.can_overlay && rng.below(3) == 0;
    let base = overlays.then(|| disk(rng, None));
    let disk = disk(rng, base.as_ref());
    let streams = way.can_stream && base.is_none() && rng.below(3) == 0;
    *told = format!(
        "-O {} -o {} -S {sparse_size}, compress {}, overlay {overlays}, stream {streams}, {} bytes",
        way.format,
        way.text,
        way.compress,
        disk.bytes.len()
    );
    if let Some(base) = &base {
        let (name, format) = match way.format {
            "vmdk" => ("base.vmdk", "vmdk"),
            _ => ("base.raw", "raw"),
        };
        let to = ConvertOptions::to(format).sync(false);
        to.convert_to_path(base, folder.join(name))
            .map_err(|error| format!("the base: {}", error.chain()))?;
        let image = OpenOptions::new()
            .format(format)
            .references(PathPolicy::SameDirectory)
            .open_path(folder.join(name))
            .map_err(|error| format!("the base: {}", error.chain()))?;
        let backing = Backing::new(ImageName::from(name), format);
        options = options.overlay(backing, image.into());
    }
    let file = format!("ours.{}", way.format);
    let path = folder.join(&file);
    let written = match streams {
        true => {
            let mut out = File::create(&path).unwrap();
            options.convert_to_writer(&disk, &mut out).map(drop)
        }
        false => options.convert_to_path(&disk, &path).map(drop),
    };
    written.map_err(|error| format!("ours: {}", error.chain()))?;
    std::fs::write(folder.join("truth.raw"), &disk.bytes).unwrap();
    let convert = [
        "qemu-img",
        "convert",
        "-f",
        way.qemu,
        "-O",
        "raw",
        &file,
        "theirs.raw",
    ];
    tool(folder, &convert)?;
    let theirs = std::fs::read(folder.join("theirs.raw")).unwrap();
    if theirs != disk.bytes {
        let mut pairs = theirs.iter().zip(&disk.bytes);
        let first = pairs.position(|(a, b)| a != b);
        let (theirs, ours) = (theirs.len(), disk.bytes.len());
        return Err(format!(
            "QEMU reads otherwise from byte {first:?} on; sizes are {theirs} and {ours}"
        ));
    }
    // QEMU has a check for these; what VMDK's is worth for flat ones it says itself.
    if way.qemu != "vpc" && !way.text.contains("Flat") {
        tool(folder, &["qemu-img", "check", "-q", "-f", way.qemu, &file])?;
    }
    Ok(way.format)
}

#[test]
fn images_of_every_kind_are_read_by_qemu_as_they_were_written() {
    if !has_tool("qemu-img") {
        return;
    }
    judge_images("written images", 60, |folder, number| {
        let mut told = String::new();
        match judge(folder, number, &mut told) {
            Ok(format) => (vec![(format.to_owned(), 1)], None),
            Err(problem) => (Vec::new(), Some(format!("{told}\n  {problem}"))),
        }
    });
}
