//! The images of testdata against what qemu-img says of them.

use crate::support::{
    can_unpack, goldens, manifest, map_of, map_of_qemu, read_all, sha256, testdata,
};
use blockform::image::SnapshotSelector;
use blockform::{Error, OpenOptions, PathPolicy};

#[test]
fn guests_see_what_qemu_img_says() {
    for golden in goldens() {
        let image = golden
            .options()
            .open_path(&golden.path)
            .expect(&golden.file);
        assert_eq!(image.format().as_str(), golden.format, "{}", golden.file);
        assert_eq!(image.size(), golden.size(), "{}", golden.file);
        assert_eq!(image.info().virtual_size, golden.size(), "{}", golden.file);
        let bytes = read_all(&image).expect(&golden.file);
        assert_eq!(sha256(&bytes), golden.sha256(), "{}", golden.file);
    }
}

#[test]
fn extents_are_where_qemu_img_map_says() {
    let mut compared = 0;
    for golden in goldens() {
        if golden.entry["map"].is_null() {
            continue;
        }
        let image = golden.options().open_path(&golden.path).unwrap();
        assert_eq!(
            map_of(image.as_ref()),
            map_of_qemu(&golden.entry["map"]),
            "{}",
            golden.file
        );
        compared += 1;
    }
    assert!(compared > 10);
}

#[test]
fn snapshots_hold_what_qemu_img_says() {
    let mut compared = 0;
    for golden in goldens() {
        for snapshot in golden.entry["snapshots"].as_array().into_iter().flatten() {
            let text = |key: &str| snapshot[key].as_str().unwrap().to_owned();
            for selector in [
                SnapshotSelector::Id(text("id")),
                SnapshotSelector::Name(text("name")),
                SnapshotSelector::Any(text("name")),
            ] {
                let options = golden.options().snapshot(selector.clone());
                let image = options.open_path(&golden.path).unwrap();
                let size = snapshot["virtual_size"].as_u64().unwrap();
                assert_eq!(image.size(), size, "{} {selector:?}", golden.file);
                let digest = sha256(&read_all(&image).unwrap());
                assert_eq!(digest, text("sha256"), "{} {selector:?}", golden.file);
                compared += 1;
            }
        }
    }
    assert!(compared > 0 || !can_unpack("snapshots"));
}

#[test]
fn a_snapshot_that_is_not_there_is_an_error() {
    for selector in ["third", "", "3", "second"] {
        let options = OpenOptions::new().snapshot(SnapshotSelector::Any(selector.into()));
        let error = options.open_path(testdata("qcow2/good/snapshots.qcow2"));
        assert!(
            matches!(error, Err(Error::InvalidInput(_))),
            "{selector:?}: {error:?}"
        );
    }
}

#[test]
fn encrypted_images_are_described_and_not_read() {
    let manifest = manifest();
    let encrypted = manifest["images"].as_array().unwrap().iter();
    let encrypted: Vec<_> = encrypted.filter(|e| !e["encrypted"].is_null()).collect();
    assert_eq!(encrypted.len(), 3);
    for entry in encrypted {
        let file = entry["file"].as_str().unwrap();
        let image = OpenOptions::new().open_path(testdata(file)).expect(file);
        assert_eq!(image.size(), entry["virtual_size"].as_u64().unwrap());
        assert_eq!(image.info().encryption, entry["encrypted"].as_str());
        let read = image.read_at(&mut [0; 512], 0);
        assert!(matches!(read, Err(Error::Unsupported { .. })), "{read:?}");
        let extent = image.extent_at(0, 512);
        assert!(
            matches!(extent, Err(Error::Unsupported { .. })),
            "{extent:?}"
        );
    }
}

#[test]
fn info_tells_what_is_special() {
    let open = |file: &str| {
        let options = OpenOptions::new().references(PathPolicy::Detach);
        let image = options.open_path(testdata(&format!("qcow2/good/{file}.qcow2")));
        image.unwrap().info().clone()
    };
    assert!(open("dirty").dirty);
    assert!(open("corrupt").corrupt);
    let plain = open("plain");
    assert!(!plain.dirty && !plain.corrupt && plain.warnings.is_empty());
    assert_eq!(plain.cluster_size, Some(65_536));
    let bitmaps = open("bitmaps").bitmaps;
    let names: Vec<_> = bitmaps.iter().map(|b| b.name.as_str().unwrap()).collect();
    assert_eq!(names, ["nightly", "weekly"]);
    let snapshots = open("snapshots").snapshots;
    let sizes: Vec<_> = snapshots.iter().map(|s| s.virtual_size).collect();
    assert_eq!(sizes, [128 << 10, 128 << 10]);
    assert_eq!(snapshots[1].name.as_str(), Some("second one"));
}

#[cfg(not(feature = "zlib"))]
#[test]
fn without_zlib_a_packed_cluster_names_the_feature() {
    let image = OpenOptions::new()
        .open_path(testdata("qcow2/good/zlib.qcow2"))
        .unwrap();
    let error = read_all(&image).unwrap_err().to_string();
    assert!(
        error.contains("zlib") || error.contains("deflate"),
        "{error}"
    );
}

#[cfg(not(feature = "zstd"))]
#[test]
fn without_zstd_a_packed_cluster_names_the_feature() {
    let image = OpenOptions::new()
        .open_path(testdata("qcow2/good/zstd.qcow2"))
        .unwrap();
    let error = read_all(&image).unwrap_err().to_string();
    assert!(error.contains("zstd"), "{error}");
}
