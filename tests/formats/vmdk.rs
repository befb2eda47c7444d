//! VMDK: golden and damaged images, and what nobody else gets right.

use std::sync::Arc;

use crate::support::{Rng, fails, read_all, sha256, testdata};
use blockform::inspect::Report;
use blockform::storage::Memory;
use blockform::{BlockSource, BlockSourceExt, Error, OpenOptions, PathPolicy};
use serde_json::Value;

fn manifest() -> Value {
    let text = std::fs::read_to_string(testdata("vmdk/manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn entries(kind: &str) -> Vec<Value> {
    manifest()[kind].as_array().unwrap().clone()
}

fn file(entry: &Value) -> String {
    entry["file"].as_str().unwrap().to_owned()
}

fn options() -> OpenOptions {
    OpenOptions::new().references(PathPolicy::SameDirectory)
}

/// Returns true if this build can read a file: without zlib there are no streams.
fn can_read(file: &str) -> bool {
    cfg!(feature = "zlib") || !file.starts_with("stream")
}

#[test]
fn guests_see_what_was_written() {
    for entry in entries("images") {
        let name = file(&entry);
        if !can_read(&name) {
            continue;
        }
        let path = testdata(&format!("vmdk/good/{name}"));
        let image = options().open_path(path).expect(&name);
        assert_eq!(image.format().as_str(), "vmdk");
        assert_eq!(image.size(), entry["virtual_size"], "{name}");
        let bytes = read_all(&image).expect(&name);
        assert_eq!(sha256(&bytes), entry["sha256"], "{name}");
        let mut at = 0;
        for extent in image.extents() {
            let extent = extent.expect(&name);
            assert_eq!(extent.start, at, "{name}");
            at = extent.end();
            let range = usize::try_from(extent.start).unwrap()..usize::try_from(at).unwrap();
            let zero = bytes[range].iter().all(|b| *b == 0);
            assert!(zero || !extent.kind.reads_as_zero(), "{name}: {extent:?}");
        }
        assert_eq!(at, image.size(), "{name}");
        let mut rng = Rng(5);
        for _ in 0..40 {
            let start = rng.below(image.size());
            let mut buf = vec![0xee; usize::try_from(1 + rng.below(200_000)).unwrap()];
            let n = image.read_at(&mut buf, start).unwrap();
            let from = usize::try_from(start).unwrap();
            let want = &bytes[from..bytes.len().min(from + buf.len())];
            assert!(buf[..n] == *want, "{name} from {start}");
        }
    }
}

#[test]
fn files_are_opened_only_where_that_is_allowed() {
    for entry in entries("images") {
        let name = file(&entry);
        let path = testdata(&format!("vmdk/good/{name}"));
        let opened = OpenOptions::new().open_path(path);
        let needs = entry["needs"].as_array().unwrap();
        match opened {
            Err(Error::Denied { .. }) => assert!(!needs.is_empty(), "{name}"),
            Err(error) => panic!("{name}: {error}"),
            Ok(_) => assert!(needs.is_empty(), "{name}"),
        }
    }
}

#[test]
fn info_says_what_qemu_img_says() {
    for entry in entries("images") {
        if entry["info"].is_null() {
            continue;
        }
        let name = file(&entry);
        let path = testdata(&format!("vmdk/good/{name}"));
        let report = Report::of_path(path, &options()).unwrap();
        let told: Value = serde_json::from_str(&report.to_json()).unwrap();
        let mut data = told["format-specific"]["data"].clone();
        for extent in data["extents"].as_array_mut().unwrap() {
            let path = extent["filename"].as_str().unwrap().to_owned();
            extent["filename"] = path.rsplit('/').next().unwrap().into();
        }
        assert_eq!(data, entry["info"], "{name}");
    }
}

#[test]
fn every_damaged_image_is_refused_by_name() {
    let listed = entries("bad");
    let on_disk = std::fs::read_dir(testdata("vmdk/bad")).unwrap().count();
    assert_eq!(listed.len(), on_disk, "the table lists every file");
    let mut wrong = Vec::new();
    for bad in listed {
        let name = file(&bad);
        if !can_read(&name) {
            continue;
        }
        let opened = options().open_path(testdata(&format!("vmdk/bad/{name}")));
        let (when, error) = match opened {
            Err(error) => ("open", Some(error)),
            Ok(image) => ("read", read_all(&image).err()),
        };
        let kind = match &error {
            Some(Error::Malformed { .. }) => "Malformed",
            Some(Error::Unsupported { .. }) => "Unsupported",
            Some(Error::LimitExceeded { .. }) => "LimitExceeded",
            Some(Error::Detached { .. }) => "Detached",
            _ => "another",
        };
        let words = bad["error"].as_str().unwrap();
        let said = error.as_ref().is_some_and(|e| e.chain().contains(words));
        if when != bad["when"] || kind != bad["kind"] || !said {
            wrong.push(format!("{name}: at {when}: {error:?}; expected {bad}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn open_bytes(bytes: Vec<u8>) -> Result<Box<dyn blockform::Image>, Error> {
    OpenOptions::new().open(Arc::new(Memory::new(bytes)))
}

#[test]
fn a_file_cut_short_is_refused_or_still_right() {
    let (mut right, mut refused) = (0, 0);
    for entry in entries("images") {
        let name = file(&entry);
        if !entry["needs"].as_array().unwrap().is_empty() || !can_read(&name) {
            continue;
        }
        let whole = std::fs::read(testdata(&format!("vmdk/good/{name}"))).unwrap();
        let mut lengths: Vec<usize> = (0..whole.len()).step_by(4093).collect();
        lengths.extend((0..whole.len()).rev().step_by(509).take(60));
        lengths.extend([1, 511, 512, 513, 1024, 1536].map(|n| whole.len() - n));
        for len in lengths {
            let read = open_bytes(whole[..len].to_vec()).and_then(|image| read_all(&image));
            match read {
                Err(_) => refused += 1,
                Ok(bytes) => {
                    assert_eq!(sha256(&bytes), entry["sha256"], "{name} cut to {len} bytes");
                    right += 1;
                }
            }
        }
    }
    assert!(refused > 100 && right > 0, "{refused} {right}");
}

#[test]
fn no_flipped_bit_makes_a_panic() {
    let mut rng = Rng(11);
    for entry in entries("images") {
        let name = file(&entry);
        if !entry["needs"].as_array().unwrap().is_empty() {
            continue;
        }
        let whole = std::fs::read(testdata(&format!("vmdk/good/{name}"))).unwrap();
        let most = whole.len().min(24 << 10) as u64;
        for _ in 0..200 {
            let mut bytes = whole.clone();
            let at = usize::try_from(rng.below(most)).unwrap();
            bytes[at] ^= 1 << rng.below(8);
            let Ok(image) = open_bytes(bytes) else {
                continue;
            };
            if image.size() < 1 << 24 {
                drop(image.extents().collect::<Result<Vec<_>, _>>());
                drop(read_all(&image));
            }
        }
    }
}

#[test]
fn a_directory_that_lost_a_table_is_not_a_disk_of_zeros() {
    let bytes = std::fs::read(testdata("vmdk/good/monolithicSparse.vmdk")).unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let [copy, own] = [48, 56].map(|field| usize::try_from(number(field)).unwrap() * 512);
    assert!(open_bytes(bytes.clone()).is_ok());
    let mut damaged = bytes.clone();
    damaged[own..own + 4].fill(0);
    let error = open_bytes(damaged).unwrap_err();
    assert!(
        error.to_string().contains("redundant grain directory"),
        "{error}"
    );
    // A copy that has less says nothing.
    let mut damaged = bytes;
    damaged[copy..copy + 4].fill(0);
    assert!(open_bytes(damaged).is_ok());
}

#[test]
fn a_table_and_its_copy_have_the_same_grains() {
    let mut whole = std::fs::read(testdata("vmdk/good/monolithicSparse.vmdk")).unwrap();
    // Room for one more grain.
    whole.resize((512 + 128) * 512, 0);
    let whole = whole;
    let at = |at: usize| {
        let sector = u32::from_le_bytes(whole[at..at + 4].try_into().unwrap());
        usize::try_from(sector).unwrap() * 512
    };
    let [copy, own] = [48, 56].map(|field| at(at(field)));
    let read = |patches: &[(usize, u32)]| {
        let mut bytes = whole.clone();
        for (at, sector) in patches {
            bytes[*at..at + 4].copy_from_slice(&sector.to_le_bytes());
        }
        read_all(&open_bytes(bytes).unwrap()).map(drop)
    };
    // The first grain is at sector 128, the last one at 384, and none is in the second place.
    for patches in [&[(own, 512)][..], &[(own, 0)], &[(copy + 4, 512)]] {
        let error = read(patches).unwrap_err().to_string();
        assert!(error.contains("redundant grain table"), "{error}");
    }
    // What is before the first grain is metadata.
    let error = read(&[(own + 4, 32), (copy + 4, 32)])
        .unwrap_err()
        .to_string();
    assert!(error.contains("is metadata"), "{error}");
    // A copy that lacks a grain, as after a crash, or makes no sense says nothing.
    for patches in [&[(copy, 0)][..], &[(copy, 1 << 30)]] {
        read(patches).unwrap();
    }
    // Of an extent that was not closed no more can be expected.
    let mut bytes = whole.clone();
    bytes[72] = 1;
    bytes[copy + 4..copy + 8].copy_from_slice(&512_u32.to_le_bytes());
    let image = open_bytes(bytes).unwrap();
    assert!(!image.info().warnings.is_empty());
    read_all(&image).unwrap();
}

#[test]
#[cfg(feature = "zlib")]
fn a_table_of_a_stream_has_its_marker() {
    let whole = std::fs::read(testdata("vmdk/good/stream.vmdk")).unwrap();
    // The one entry of the directory, before the footer and its marker.
    let at = whole.len() - 4 * 512;
    assert_eq!(whole[at..at + 4], 12_u32.to_le_bytes());
    for sector in [13_u32, 8] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&sector.to_le_bytes());
        let error = open_bytes(bytes)
            .and_then(|image| read_all(&image))
            .unwrap_err();
        assert!(error.to_string().contains("grain table"), "{error}");
    }
}

/// qemu-img passes over `RDONLY`, `NOACCESS` and `ZERO` lines, and what follows moves down.
#[test]
fn no_extent_is_passed_over() {
    let image = options()
        .open_path(testdata("vmdk/good/rdonly.vmdk"))
        .unwrap();
    let flat = std::fs::read(testdata("vmdk/good/flat.bin")).unwrap();
    let bytes = read_all(&image).unwrap();
    assert_eq!(bytes.len(), 16 * 512);
    assert!(
        bytes[12 * 512..] == flat[12 * 512..],
        "the last extent is where it belongs"
    );
}

/// A child that does not say where its parent is reads as zeros elsewhere, with a good exit status.
#[test]
fn a_child_is_not_read_without_its_parent() {
    for name in ["child-alone", "virtualbox-child"] {
        let path = testdata(&format!("vmdk/bad/{name}.vmdk"));
        let image = OpenOptions::new().open_path(path).unwrap();
        assert!(!image.info().warnings.is_empty());
        assert!(matches!(read_all(&image), Err(Error::Detached { .. })));
        let extents: Result<Vec<_>, _> = image.extents().collect();
        assert!(matches!(extents, Err(Error::Detached { .. })));
    }
}

/// The padding of an archive after a stream makes others look for the footer in the wrong place.
#[cfg(feature = "zlib")]
#[test]
fn what_follows_a_stream_is_not_part_of_it() {
    let whole = std::fs::read(testdata("vmdk/good/stream.vmdk")).unwrap();
    let content = read_all(&open_bytes(whole.clone()).unwrap()).unwrap();
    for (len, byte) in [
        (1, 0),
        (511, 0),
        (512, 0),
        (1536, 0),
        (9000, 0),
        (70_000, 0x5a),
    ] {
        let mut longer = whole.clone();
        longer.resize(whole.len() + len, byte);
        let read = read_all(&open_bytes(longer).unwrap()).unwrap();
        assert!(read == content, "{len} bytes of {byte}");
    }
}

/// The footer counts, for QEMU and here: a header that says otherwise neither hides a part of the disk nor
/// makes one of a size for which there are no tables.
#[cfg(feature = "zlib")]
#[test]
fn the_footer_of_a_stream_has_the_last_word_on_its_size() {
    use blockform::StreamSource;
    use blockform::convert::ConvertOptions;

    let whole = std::fs::read(testdata("vmdk/good/stream.vmdk")).unwrap();
    let content = read_all(&open_bytes(whole.clone()).unwrap()).unwrap();
    for sectors in [8_u64, 0xffff_0000_0200] {
        let mut bytes = whole.clone();
        bytes[12..20].copy_from_slice(&sectors.to_le_bytes());
        let image = open_bytes(bytes.clone()).unwrap();
        assert!(read_all(&image).unwrap() == content, "{sectors} sectors");
        let of_all: u64 = image.extents().map(|extent| extent.unwrap().len).sum();
        assert_eq!(of_all, content.len() as u64);
        // What was told of it while it arrived cannot be taken back: this is refused, or the same.
        for window in [0, 16 << 20] {
            let stream = StreamSource::new(std::io::Cursor::new(bytes.clone()));
            let stream = stream.window(window);
            let image = OpenOptions::new().format("vmdk").open_stream(stream);
            let mut raw = Vec::new();
            let to_raw = ConvertOptions::to("raw");
            let read = image.and_then(|image| to_raw.convert_to_writer(&image, &mut raw));
            assert!(read.is_err() || raw == content, "{sectors} sectors");
        }
    }
}

#[test]
fn a_parent_that_was_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let bytes = std::fs::read(testdata(&format!("vmdk/good/{name}"))).unwrap();
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        bytes
    };
    copy("child.vmdk");
    let mut parent = copy("monolithicSparse.vmdk");
    let child = folder.path().join("child.vmdk");
    options().open_path(&child).unwrap();
    let at = parent.windows(4).position(|w| w == b"CID=").unwrap() + 4;
    parent[at..at + 8].copy_from_slice(b"00000001");
    std::fs::write(folder.path().join("monolithicSparse.vmdk"), parent).unwrap();
    let error = options().open_path(&child).unwrap_err().to_string();
    assert!(error.contains("00000001"), "{error}");
}

#[test]
fn a_chain_that_comes_back_to_itself_ends() {
    let folder = tempfile::tempdir().unwrap();
    let text = |hint: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=00000001\n\
             createType=\"monolithicFlat\"\nparentFileNameHint=\"{hint}\"\nRW 8 ZERO\n"
        )
    };
    for (name, hint) in [("a.vmdk", "b.vmdk"), ("b.vmdk", "a.vmdk")] {
        std::fs::write(folder.path().join(name), text(hint)).unwrap();
    }
    fails!(
        options().open_path(folder.path().join("a.vmdk")),
        Error::InvalidInput(_),
        "leads back"
    );
    // An extent that is the descriptor itself.
    let own = text("").replace("RW 8 ZERO", "RW 1 FLAT \"c.vmdk\" 0");
    let own = own.replace("parentCID=00000001", "parentCID=ffffffff");
    std::fs::write(
        folder.path().join("c.vmdk"),
        own.replace("parentFileNameHint=\"\"\n", ""),
    )
    .unwrap();
    fails!(
        options().open_path(folder.path().join("c.vmdk")),
        Error::InvalidInput(_),
        "leads back"
    );
}
