//! Damaged images: refused by name, never guessed at.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use blockform::storage::Memory;
use blockform::{BlockSource, BlockSourceExt, Error, ExtentKind, OpenOptions};
use support::{Rng, can_unpack, goldens, manifest, read_all, sha256, testdata};

fn variant(error: &Error) -> &'static str {
    match error {
        Error::Malformed { .. } => "Malformed",
        Error::Unsupported { .. } => "Unsupported",
        Error::LimitExceeded { .. } => "LimitExceeded",
        _ => "another",
    }
}

#[test]
fn every_damaged_image_is_refused_by_name() {
    let manifest = manifest();
    let list = manifest["bad"].as_array().unwrap();
    let folders: BTreeSet<_> = list
        .iter()
        .map(|bad| testdata(bad["file"].as_str().unwrap()))
        .map(|path| path.parent().unwrap().to_owned())
        .collect();
    let counts = folders
        .iter()
        .map(|f| std::fs::read_dir(f).unwrap().count());
    let on_disk: usize = counts.sum();
    assert_eq!(list.len(), on_disk, "the table lists every file");
    let mut wrong = Vec::new();
    for bad in list {
        let text = |key: &str| bad[key].as_str().unwrap();
        let file = text("file");
        if !can_unpack(file) {
            continue;
        }
        let opened = OpenOptions::new().open_path(testdata(file));
        let (when, error) = match opened {
            Err(error) => ("open", Some(error)),
            Ok(image) => ("read", read_all(&image).err()),
        };
        let fine = error.as_ref().is_some_and(|error| {
            variant(error) == text("kind") && error.chain().contains(text("error"))
        });
        if when != text("when") || !fine {
            wrong.push(format!("{file}: at {when}: {error:?}; expected {bad}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is read of the first bytes of an image is right, or refused. Only the rest of the cluster in
/// which the file now ends may read as zero: old tools did not write the last cluster whole, and a
/// reader cannot tell the one from the other.
fn right_or_refused(bytes: Vec<u8>, whole: &[u8], about: &str) -> bool {
    let len = bytes.len() as u64;
    let Ok(image) = OpenOptions::new().open(Arc::new(Memory::new(bytes))) else {
        return false;
    };
    let extents: Result<Vec<_>, _> = image.extents().collect();
    let (Ok(extents), Ok(read)) = (extents, read_all(&image)) else {
        return false;
    };
    if read == whole {
        return true;
    }
    let cluster = image.block_size();
    for extent in extents {
        let stored = extent
            .host_offset
            .filter(|_| extent.kind == ExtentKind::Data);
        let there = stored.map_or(extent.len, |host| len.saturating_sub(host).min(extent.len));
        let index = |guest: u64| usize::try_from(guest).unwrap();
        let (start, end) = (index(extent.start), index(extent.end()));
        let middle = index(extent.start + there);
        assert!(
            read[start..middle] == whole[start..middle],
            "{about}: {extent:?}"
        );
        assert!(
            read[middle..end].iter().all(|b| *b == 0),
            "{about}: {extent:?}"
        );
        let last = stored.map_or(0, |host| host + extent.len - 1);
        assert!(
            middle == end || last / cluster == (len - 1) / cluster,
            "{about}: {extent:?}"
        );
    }
    true
}

#[test]
fn a_file_cut_short_is_refused_or_still_right() {
    let mut still_right = 0;
    let mut refused = 0;
    for golden in goldens() {
        // Cut where the disk inside ends, a VHD that holds a VHD is that VHD.
        let another = golden.file.ends_with("fixed-holding-vhd.vhd");
        if golden.format == "raw" || golden.has_needs() || another {
            continue;
        }
        let whole = std::fs::read(&golden.path).unwrap();
        let image = golden.options().open_path(&golden.path).unwrap();
        let content = read_all(&image).unwrap();
        assert_eq!(sha256(&content), golden.sha256());
        let step = (whole.len() / 40).max(1);
        let mut lengths: Vec<usize> = (0..whole.len()).step_by(step).collect();
        lengths.extend((0..whole.len().min(4096)).step_by(61));
        lengths.extend((0..whole.len()).step_by(512).rev().take(20));
        lengths.extend([1, 2, 3, 10, 511, 513].map(|n| whole.len().saturating_sub(n)));
        for len in lengths {
            let about = format!("{} cut to {len} bytes", golden.file);
            if right_or_refused(whole[..len].to_vec(), &content, &about) {
                still_right += 1;
            } else {
                refused += 1;
            }
        }
    }
    // Both happen: what lies at the end may be a table that reading does not need.
    assert!(refused > 100 && still_right > 0, "{refused} {still_right}");
}

#[test]
fn no_flipped_bit_of_the_metadata_makes_a_panic() {
    let mut rng = Rng(7);
    for golden in goldens() {
        // Cut where the disk inside ends, a VHD that holds a VHD is that VHD.
        let another = golden.file.ends_with("fixed-holding-vhd.vhd");
        if golden.format == "raw" || golden.has_needs() || another {
            continue;
        }
        let whole = std::fs::read(&golden.path).unwrap();
        for _ in 0..60 {
            let mut bytes = whole.clone();
            // Most of what is not zero in the first bytes is the header and the tables.
            let at = usize::try_from(rng.below(bytes.len().min(24_576) as u64)).unwrap();
            bytes[at] ^= 1 << rng.below(8);
            let source = Arc::new(Memory::new(bytes));
            let Ok(image) = OpenOptions::new().open(source) else {
                continue;
            };
            if image.size() > 1 << 24 {
                continue;
            }
            let tiled: Result<Vec<_>, _> = image.extents().collect();
            let read = read_all(&image);
            if let (Ok(extents), Ok(read)) = (tiled, read) {
                for extent in extents.iter().filter(|e| e.kind.reads_as_zero()) {
                    let range = usize::try_from(extent.start).unwrap()
                        ..usize::try_from(extent.end()).unwrap();
                    assert!(
                        read[range].iter().all(|b| *b == 0),
                        "{} with bit flipped at {at}: {extent:?}",
                        golden.file
                    );
                }
            }
        }
    }
}
