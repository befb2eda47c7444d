//! Every format and every request: what a format cannot honour is refused by name, and never ignored.

use std::io::Cursor;
use std::sync::Arc;

use blockform::check::{Checked, Repair};
use blockform::convert::ConvertOptions;
use blockform::formats::Formats;
use blockform::image::{Scope, SnapshotSelector};
use blockform::storage::Memory;
use blockform::{BlockSource, BlockTarget, Error, Format, OpenOptions, StreamSource};

use crate::support::sample_disk;

/// An image of the format, or zeros for one that is not written here.
fn image_of(format: &dyn Format) -> Arc<Memory> {
    let file: Arc<Memory> = Arc::default();
    if format.creator().is_none() {
        file.set_size(1 << 20).unwrap();
        return file;
    }
    let disk = Memory::new(sample_disk(3, 1 << 20));
    let target: Arc<dyn BlockTarget> = Arc::clone(&file) as Arc<dyn BlockTarget>;
    ConvertOptions::to(format.id().as_str())
        .convert_to_targets(&disk, &[target])
        .unwrap();
    file
}

fn told<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(Error::InvalidInput(problem)) => problem.to_string(),
        Err(error) => format!("another error: {error}"),
    }
}

#[test]
fn what_cannot_be_opened_is_refused() {
    let all = Formats::all();
    let mut refused = 0;
    for format in all.iter() {
        let (name, can) = (format.id().as_str(), format.capabilities());
        let file = image_of(format);
        let open = || OpenOptions::new().format(name);
        let snapshot = SnapshotSelector::Any("1".to_owned());
        let requests = [
            (
                open().snapshot(snapshot),
                can.snapshots,
                "internal snapshots",
            ),
            (open().disk("1"), can.disks, "disks to choose from"),
            (
                open().verify_manifest(true),
                can.manifest,
                "manifest to be compared with",
            ),
        ];
        for (options, can, what) in requests {
            let source = Arc::clone(&file) as Arc<dyn BlockSource>;
            let stream = StreamSource::new(Cursor::new(file.to_bytes()));
            let answers = [
                told(options.open(Arc::clone(&source))),
                told(options.open_stream(stream)),
                told(Checked::of_source(&source, &options)),
            ];
            let refusal = format!("{name} images have no {what}");
            for answer in answers {
                assert_eq!(answer == refusal, !can, "{refusal}: {answer}");
            }
            refused += u32::from(!can);
        }
    }
    // Snapshots of two formats and the disks and manifests of one are all that there is.
    assert_eq!(refused, 3 * 10 - 4);
}

#[test]
fn a_repair_of_a_format_without_any_is_refused() {
    for format in Formats::all().iter() {
        let name = format.id().as_str();
        let options = OpenOptions::new().format(name);
        for scope in [Scope::Leaks, Scope::All, Scope::Redundant] {
            let file = image_of(format) as Arc<dyn BlockTarget>;
            let repaired = Repair::new(options.clone(), scope).target(file);
            match (repaired, format.repairs().is_empty()) {
                (Ok(_), false) => {}
                (Err(Error::Unsupported { feature, .. }), true) => assert_eq!(feature, "repair"),
                (answer, _) => panic!("{name}, {scope:?}: {answer:?}"),
            }
        }
    }
}

#[test]
fn an_option_that_a_format_does_not_have_is_refused() {
    for format in Formats::all().iter() {
        let name = format.id().as_str();
        let target = Arc::new(Memory::default()) as Arc<dyn BlockTarget>;
        let disk = Memory::new(vec![0; 1 << 20]);
        let options = ConvertOptions::to(name).option("colour", "red");
        let answer = options.convert_to_targets(&disk, &[target]).unwrap_err();
        match answer {
            Error::InvalidInput(problem) => assert!(problem.contains("colour"), "{problem}"),
            Error::Unsupported { feature, .. } => {
                assert_eq!(feature, "writing this format");
                assert!(format.creator().is_none(), "{name}");
            }
            error => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn a_format_that_is_not_among_those_of_the_caller_is_named() {
    let qcow2 = Formats::all().by_name("qcow2").unwrap();
    let only = |names: &[&str]| {
        let formats = Formats::only(names.iter().copied()).unwrap();
        OpenOptions::new().formats(formats)
    };
    let file = image_of(qcow2);
    assert_eq!(
        told(only(&["raw", "qcow2"]).open(Arc::clone(&file) as _)),
        "done"
    );
    let error = only(&["raw", "vmdk"])
        .open(Arc::clone(&file) as _)
        .unwrap_err();
    assert!(
        matches!(&error, Error::NotAllowed { found, allowed, .. }
            if found == &[qcow2.id()] && allowed == &["raw", "vmdk"]),
        "{error}"
    );
    let error = only(&["raw"]).format("qcow2").open(file);
    assert_eq!(told(error), "unknown format \"qcow2\"; known are raw");
    let error = Formats::only(["tape"]).map(|_| ());
    assert!(told(error).starts_with("unknown format \"tape\"; known are raw, qcow2, "));
}
