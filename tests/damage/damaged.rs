//! Damaged images: refused by name, never guessed at.

use std::collections::BTreeSet;

use crate::support::{can_unpack, manifest, read_all, testdata};
use blockform::{Error, OpenOptions};

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
