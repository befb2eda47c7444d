//! The output of `img-info` is that of `qemu-img info`, key by key and line by line.

use crate::support::fails;
use std::fs;
use std::path::Path;

use blockform::inspect::Report;
use blockform::{Error, OpenOptions};
use serde_json::Value;

use crate::support::command::{example, has_qemu, must, run};

/// Recipes of the images, in one folder: a name and a line for qemu-img each.
const RECIPES: &[&str] = &[
    "create -q -f qcow2 plain.qcow2 10M",
    "create -q -f qcow2 -o compat=0.10 old.qcow2 1G",
    "create -q -f qcow2 -o compat=0.10,cluster_size=4k old-small.qcow2 1000M",
    "create -q -f qcow2 -o cluster_size=2M,refcount_bits=64 wide.qcow2 3T",
    "create -q -f qcow2 -o cluster_size=512,refcount_bits=1 narrow.qcow2 0",
    "create -q -f qcow2 -o extended_l2=on,lazy_refcounts=on,compression_type=zstd odd.qcow2 1234567",
    "create -q -f qcow2 -o preallocation=metadata metadata.qcow2 7M",
    "create -q -f qcow2 -o data_file=d1.raw data.qcow2 10M",
    "create -q -f qcow2 -o data_file=d2.raw,data_file_raw=on data-raw.qcow2 10M",
    "create -q -f qcow2 snapshots.qcow2 64M",
    "snapshot -c first snapshots.qcow2",
    "snapshot -c a-name-that-is-longer-than-its-column snapshots.qcow2",
    "create -q -f qcow2 bitmaps.qcow2 64M",
    "bitmap --add -g 64k bitmaps.qcow2 enabled",
    "bitmap --add --disable bitmaps.qcow2 disabled",
    "create -q -f qcow2 -b plain.qcow2 -F qcow2 overlay.qcow2",
    "create -q -f qcow2 -b ../plain.qcow2 -F qcow2 sub/up.qcow2",
    "create -q -f qcow2 -b sub/up.qcow2 -F qcow2 down.qcow2",
    "create -q -f qcow2 -u -b d1.raw -F raw on-raw.qcow2 1M",
    "create -q -f qcow2 -u -b /no/such/file -F vmdk dangling.qcow2 1M",
    "create -q -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s --object secret,id=s,data=x aes.qcow2 1M",
    "create -q -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 --object secret,id=s,data=x luks.qcow2 1M",
    "create -q -f raw even.raw 1M",
    "create -q -f qcow first.qcow 10M",
    "create -q -f qcow -b even.raw -F raw over.qcow 1M",
    "create -q -f qcow -o encrypt.format=aes,encrypt.key-secret=s --object secret,id=s,data=x aes.qcow 1M",
    "create -q -f qed -o cluster_size=8k,table_size=4 second.qed 12345k",
    "create -q -f qed -b even.raw -F raw over.qed",
    "create -q -f qed -b plain.qcow2 -F qcow2 over-qcow2.qed",
    "create -q -f parallels third.parallels 10M",
    "create -q -f parallels -o cluster_size=256k wide.parallels 1000M",
];

fn images() -> Option<(tempfile::TempDir, Vec<String>)> {
    if !has_qemu() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("sub")).unwrap();
    for recipe in RECIPES {
        must(at, &format!("qemu-img {recipe}"));
    }
    fs::write(at.join("odd.raw"), vec![1; 12_345]).unwrap();
    fs::write(at.join("empty.raw"), []).unwrap();
    let sparse = fs::File::create(at.join("sparse.raw")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    let words = RECIPES.iter().flat_map(|recipe| recipe.split(' '));
    let mut files: Vec<String> = words
        .chain(["odd.raw", "empty.raw", "sparse.raw"])
        .filter(|word| at.join(word).is_file() && !word.starts_with('/'))
        .map(str::to_owned)
        .collect();
    files.sort();
    files.dedup();
    // An image that names its backing file without a format, which qemu-img has stopped to write.
    let mut bytes = fs::read(at.join("old.qcow2")).unwrap();
    bytes[8..16].copy_from_slice(&512_u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&11_u32.to_be_bytes());
    bytes[512..523].copy_from_slice(b"plain.qcow2");
    fs::write(at.join("no-format.qcow2"), bytes).unwrap();
    files.push("no-format.qcow2".to_owned());
    files.push("./sub/../overlay.qcow2".to_owned());
    files.push(at.join("down.qcow2").to_str().unwrap().to_owned());
    assert!(files.len() > 25, "{files:?}");
    Some((folder, files))
}

/// Differences between two values, as paths; the key `blockform` is ours alone.
fn differences(path: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
            for key in keys.filter(|key| *key != "blockform") {
                let path = format!("{path}.{key}");
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(&path, a, b, found),
                    (Some(_), None) => found.push(format!("{path} is missing")),
                    _ => found.push(format!("{path} is no key of qemu-img's")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path}: {b}, but qemu-img says {a}")),
    }
}

#[test]
fn json_has_the_keys_and_values_of_qemu_img() {
    let Some((folder, files)) = images() else {
        return;
    };
    let at = folder.path();
    let mut found = Vec::new();
    for file in &files {
        let format = file.rsplit_once('.').unwrap().1;
        let theirs = must(
            at,
            &format!("qemu-img info --output json -f {format} {file}"),
        );
        let info = example("img-info");
        for arguments in [
            vec!["--output", "json", "-f", format, file],
            vec!["--output=json", file],
            vec!["--output=json", "--allow-references=none", file],
        ] {
            let ours = run(at, &info, &arguments);
            assert!(ours.status.success(), "{arguments:?}: {ours:?}");
            let ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
            let theirs = serde_json::from_str(&theirs).unwrap();
            differences(file, &theirs, &ours, &mut found);
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn text_has_the_lines_of_qemu_img() {
    let Some((folder, files)) = images() else {
        return;
    };
    let at = folder.path();
    for file in &files {
        let format = file.rsplit_once('.').unwrap().1;
        let theirs = must(at, &format!("qemu-img info -f {format} {file}"));
        let ours = run(at, example("img-info"), ["-f", format, file]);
        assert_eq!(String::from_utf8_lossy(&ours.stdout), theirs, "{file}");
    }
}

#[test]
fn a_chain_is_a_list() {
    let Some((folder, _)) = images() else {
        return;
    };
    let at = folder.path();
    let info = example("img-info");
    let theirs = must(at, "qemu-img info --backing-chain --output json down.qcow2");
    let allowed = "--allow-references=same-dir";
    let arguments = ["--backing-chain", allowed, "--output=json", "down.qcow2"];
    let ours = run(at, &info, arguments);
    let mut found = Vec::new();
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
    differences("chain", &theirs, &ours, &mut found);
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(ours.as_array().unwrap().len(), 3);

    let theirs = must(at, "qemu-img info --backing-chain down.qcow2");
    let ours = run(at, &info, ["--backing-chain", allowed, "down.qcow2"]);
    assert_eq!(String::from_utf8_lossy(&ours.stdout), theirs);

    let ours = run(at, &info, ["--backing-chain", "down.qcow2"]);
    assert_eq!(ours.status.code(), Some(1));
    let told = String::from_utf8_lossy(&ours.stderr).into_owned();
    assert!(told.contains("--allow-references=same-dir"), "{told}");
}

#[test]
fn a_file_without_signature_is_described_as_raw_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::write(&path, vec![7; 1000]).unwrap();
    let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
    assert_eq!(report.format.as_str(), "raw");
    assert_eq!(report.info.virtual_size, 1000);
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["virtual-size"], 1024);
    assert_eq!(json["blockform"]["exact-virtual-size"], 1000);
    assert_eq!(json["blockform"]["matches"], Value::Array(vec![]));
    assert!(report.to_string().contains("no signature"), "{report}");

    let named = OpenOptions::new().format("raw");
    let report = Report::of_path(&path, &named).unwrap();
    assert!(!report.to_string().contains("Notes"), "{report}");
}

#[test]
fn a_known_signature_is_never_raw_unless_it_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let mut bytes = b"QFI\xfb\0\0\0\x09".to_vec();
    bytes.resize(4096, 0);
    fs::write(&path, bytes).unwrap();
    fails!(
        Report::of_path(&path, &OpenOptions::new()),
        Error::Unsupported { .. },
        "version 9"
    );
    let named = OpenOptions::new().format("raw");
    let report = Report::of_path(&path, &named).unwrap();
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["format"], "raw");
    assert_eq!(json["blockform"]["matches"][0]["format"], "qcow2");
    assert!(
        report.to_string().contains("signature of qcow2"),
        "{report}"
    );
}

/// A version 2 header with a backing file of this name, and no table that is of any use.
fn overlay_of(name: &[u8], path: &Path) {
    let mut bytes = vec![0_u8; 4 << 16];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb\0\0\0\x02");
    put(8, &1024_u64.to_be_bytes());
    put(16, &u32::try_from(name.len()).unwrap().to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3_u64 << 16).to_be_bytes());
    put(48, &(1_u64 << 16).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(1024, name);
    put(1 << 16, &(2_u64 << 16).to_be_bytes());
    put(2 << 16, &[0, 1, 0, 1, 0, 1, 0, 1]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn no_text_of_an_image_reaches_a_terminal_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.qcow2");
    let hostile = "a\u{1b}]0;x\u{7}\nFAKE: ok\r\u{7f}\u{9b}\u{202e}\u{200b}\"\\é";
    overlay_of(hostile.as_bytes(), &path);
    let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
    let json = report.to_json();
    let text = report.to_string();
    for shown in [&json, &text] {
        let clean = |c: char| c == '\n' || (!c.is_control() && c != '\u{202e}' && c != '\u{200b}');
        assert!(shown.chars().all(clean), "{shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("FAKE")));
    }
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["backing-filename"], hostile);

    overlay_of(b"a\xffb", &path);
    let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["backing-filename"], "a\\xffb");
}

#[test]
fn where_a_backing_file_lies_is_told_without_looking() {
    let folder = tempfile::tempdir().unwrap();
    for (name, full) in [
        ("base", "{}/base"),
        ("../base", "{}/../base"),
        ("/etc/passwd", "/etc/passwd"),
        ("json:{}", "{}/json:{}"),
    ] {
        let path = folder.path().join("x.qcow2");
        overlay_of(name.as_bytes(), &path);
        let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
        let full = full.replacen(
            "{}",
            folder.path().to_str().unwrap(),
            usize::from(full.starts_with('{')),
        );
        assert_eq!(
            report.full_backing_filename().unwrap().as_str(),
            Some(full.as_str())
        );
    }
}
