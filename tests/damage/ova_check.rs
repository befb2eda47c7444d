//! The check of appliances: their archive, the digests and sizes of their files, and their disks.

use std::sync::Arc;

use crate::support::appliance::{archive, manifest, path_of};
use crate::support::command::{example, run};
use crate::support::{sha256, testdata};
use blockform::check::{Checked, FindingKind, Findings};
use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockTarget, DetachReferences, Error, Limits, OpenOptions, PathPolicy,
};

fn check(bytes: &[u8], options: &OpenOptions) -> Result<Findings, Error> {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    let options = options.clone().format("ova");
    Ok(Checked::of_source(&source, &options)?.findings.unwrap())
}

fn findings(bytes: &[u8]) -> Findings {
    check(bytes, &OpenOptions::new()).unwrap()
}

/// Returns true if a finding of this kind has these words.
fn told(findings: &Findings, kind: FindingKind, words: &str) -> bool {
    let mut all = findings.told().iter();
    all.any(|finding| finding.kind == kind && finding.to_string().contains(words))
}

#[test]
fn archives_of_every_layout_are_sound() {
    for entry in manifest("images") {
        let options = OpenOptions::new()
            .format("ova")
            .references(PathPolicy::SameDirectory);
        let checked = Checked::of_path(path_of("good", &entry), &options).unwrap();
        let found = checked.findings.unwrap();
        assert!(found.is_clean(), "{entry}: {:?}", found.told());
        let unsure = found
            .told()
            .iter()
            .any(|finding| finding.structure == "manifest");
        let alone = entry["needs"].is_array();
        assert_eq!(unsure, entry["verify"] != true && !alone, "{entry}");
    }
}

#[test]
fn all_that_an_open_refuses_is_found() {
    let mut wrong = Vec::new();
    for entry in manifest("bad") {
        let name = entry["file"].as_str().unwrap().to_owned();
        // Nothing is wrong with the first two but what was asked of them; what is not there is no damage.
        let sound = ["no-disks.ova", "several.ova", "manifest-none.ova"].contains(&name.as_str());
        let words = entry["error"].as_str().unwrap();
        let options = OpenOptions::new().references(PathPolicy::DangerousAnywhere);
        let text = match Checked::of_path(path_of("bad", &entry), &options.format("ova")) {
            Err(error) => error.chain(),
            Ok(checked) => {
                let found = checked.findings.unwrap();
                if sound != found.is_clean() {
                    wrong.push(format!("{name}: {:?}", found.told()));
                }
                let all = found.told().iter().map(ToString::to_string);
                all.collect::<Vec<_>>().join("\n")
            }
        };
        // In an archive that is looked at to its end a name is not denied, but missing.
        let missing = entry["kind"] == "Denied" && text.contains("which the archive does not have");
        if !sound && !text.contains(words) && !missing {
            wrong.push(format!("{name}: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_flipped_bit_of_a_file_with_a_digest_is_found() {
    for name in ["ovftool", "manifest-last", "chunks"] {
        let whole = std::fs::read(testdata(&format!("ova/good/{name}.ova"))).unwrap();
        assert!(findings(&whole).is_clean());
        let mut found = 0;
        for at in (0..whole.len() - 1024).step_by(131) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            match check(&bytes, &OpenOptions::new()) {
                Err(Error::Malformed { .. }) => found += 1,
                Err(error) => panic!("{name}, byte {at}: {error}"),
                Ok(findings) if !findings.is_clean() => found += 1,
                Ok(_) => {
                    // The padding of a member is in no file.
                    let ends = whole[at..at.next_multiple_of(512)].iter();
                    assert!(ends.copied().all(|byte| byte == 0), "{name}: byte {at}");
                }
            }
        }
        assert!(found > 10, "{name}: {found}");
    }
}

fn written(disk: &[u8], option: (&str, &str)) -> Vec<u8> {
    let target = Arc::new(Memory::default());
    let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&target) as _];
    ConvertOptions::to("ova")
        .option(option.0, option.1)
        .convert_to_targets(&Memory::new(disk), &targets)
        .unwrap();
    target.to_bytes()
}

/// The bytes with the only `from` in them replaced by a `to` of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert_eq!(places.len(), 1, "{from}");
    let mut bytes = bytes.to_vec();
    bytes[places[0]..places[0] + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn every_digest_is_compared_and_a_signature_is_told() {
    let disk = crate::support::sample_disk(3, 1 << 20);
    for algorithm in ["sha1", "sha256", "sha512"] {
        let whole = written(&disk, ("manifest", algorithm));
        let found = findings(&whole);
        assert!(
            found.is_clean() && found.told().is_empty(),
            "{:?}",
            found.told()
        );
        // In the middle of the disk.
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 1;
        let found = findings(&bytes);
        assert!(
            told(&found, FindingKind::Corruption, "has the digest"),
            "{algorithm}"
        );
    }
    let ovf = "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"/>";
    let line = format!("SHA256(a.ovf)= {}\n", sha256(ovf.as_bytes()));
    let members: [(&str, &[u8]); 4] = [
        ("a.ovf", ovf.as_bytes()),
        ("a.mf", line.as_bytes()),
        ("a.cert", b"-----BEGIN CERTIFICATE-----"),
        ("notes", b"to whom it may concern"),
    ];
    let found = findings(&archive(&members));
    assert!(found.is_clean(), "{:?}", found.told());
    assert!(told(
        &found,
        FindingKind::Note,
        "\"a.cert\" is not verified"
    ));
    assert!(told(
        &found,
        FindingKind::Note,
        "does not speak of \"notes\""
    ));
    // Lines that cannot be read keep nobody from the others.
    let lines = format!(
        "hello\nMD5(a.ovf)= 00\n{}",
        line.replace("= ", "= 0").trim_end()
    );
    let wrong = line.replace(&sha256(ovf.as_bytes()), &sha256(b""));
    let found = findings(&archive(&[
        members[0],
        ("a.mf", (lines + "\n" + &wrong).as_bytes()),
    ]));
    assert_eq!(
        (found.corruptions, found.errors),
        (3, 1),
        "{:?}",
        found.told()
    );
}

#[test]
fn a_disk_is_checked_by_the_rules_of_its_own_format() {
    let disk = crate::support::sample_disk(4, 1 << 20);
    let whole = written(&disk, ("manifest", "none"));
    let found = findings(&whole);
    assert!(found.is_clean(), "{:?}", found.told());
    assert!(told(&found, FindingKind::Note, "manifest"));
    let disk_at = whole.windows(4).position(|w| w == b"KDMV").unwrap();
    // The first grain says that it is another one's.
    let grain = disk_at + 128 * 512;
    let mut bytes = whole.clone();
    bytes[grain] ^= 0x80;
    let found = findings(&bytes);
    assert_eq!(found.corruptions, 1, "{:?}", found.told());
    assert!(told(
        &found,
        FindingKind::Corruption,
        "another one's (in \""
    ));
    // What is said of it from outside is wrong.
    let found = findings(&replaced(
        &whole,
        "ovf:capacity=\"1048576\"",
        "ovf:capacity=\"1048064\"",
    ));
    assert!(told(
        &found,
        FindingKind::Corruption,
        "1048064 bytes, and the disk has 1048576"
    ));
    let at = whole.windows(10).position(|w| w == b"ovf:size=\"").unwrap() + 10;
    let mut bytes = whole.clone();
    assert!(bytes[at] > b'1');
    bytes[at] -= 1;
    let found = findings(&bytes);
    assert_eq!(found.corruptions, 1, "{:?}", found.told());
    assert!(told(
        &found,
        FindingKind::Corruption,
        "bytes, and there are"
    ));
}

#[test]
fn one_disk_that_several_names_mean_is_looked_at_once() {
    let disk = std::fs::read(testdata("vmdk/good/stream.vmdk")).unwrap();
    let file = |id: &str, href: &str| format!("<File ovf:href=\"{href}\" ovf:id=\"{id}\"/>");
    let ovf = format!(
        "<Envelope xmlns:ovf=\"u\"><References>{}{}</References></Envelope>",
        file("a", "d.vmdk"),
        file("b", "./d.vmdk"),
    );
    let found = findings(&archive(&[("a.ovf", ovf.as_bytes()), ("d.vmdk", &disk)]));
    assert_eq!(found.corruptions, 1, "{:?}", found.told());
    assert!(told(&found, FindingKind::Corruption, "more than once"));
}

#[test]
fn every_chunk_of_a_file_belongs_to_the_package() {
    let ovf = "<Envelope xmlns:ovf=\"u\"><References><File ovf:href=\"d\" ovf:id=\"f\" ovf:size=\"6\" \
               ovf:chunkSize=\"4\"/></References></Envelope>";
    let line = format!("SHA256(a.ovf)= {}\n", sha256(ovf.as_bytes()));
    let found = findings(&archive(&[
        ("a.ovf", ovf.as_bytes()),
        ("a.mf", line.as_bytes()),
        ("d.000000000", b"abcd"),
        ("d.000000001", b"ef"),
        ("e", b"other"),
    ]));
    assert_eq!(found.corruptions, 2, "{:?}", found.told());
    assert!(told(
        &found,
        FindingKind::Corruption,
        "not speak of \"d.000000001\""
    ));
    assert!(told(&found, FindingKind::Note, "not speak of \"e\", nor"));
}

#[test]
fn a_sparse_file_without_end_has_no_digest() {
    let ovf = b"<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"/>";
    let line = format!(
        "SHA256(a.ovf)= {}\nSHA256(s)= {}\n",
        sha256(ovf),
        sha256(b"")
    );
    let record = |text: &str| format!("{} {text}\n", text.len() + 4);
    let pax = record("GNU.sparse.size=1152921504606846976")
        + &record("GNU.sparse.name=s")
        + &record("GNU.sparse.map=0,1");
    let mut bytes = archive(&[
        ("a.ovf", ovf),
        ("a.mf", line.as_bytes()),
        ("x", pax.as_bytes()),
        ("y", b"s"),
    ]);
    let header = bytes.windows(2).position(|w| w == b"x\0").unwrap();
    assert_eq!(header % 512, 0);
    bytes[header + 156] = b'x';
    let old = std::str::from_utf8(&bytes[header + 148..header + 154]).unwrap();
    let sum = u32::from_str_radix(old, 8).unwrap() + u32::from(b'x' - b'0');
    bytes[header + 148..header + 154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let error = check(&bytes, &OpenOptions::new()).unwrap_err();
    let limit = matches!(
        error,
        Error::LimitExceeded {
            limit: "inflated_bytes",
            ..
        }
    );
    assert!(limit, "{error}");
    let mut limits = Limits::default();
    limits.inflated_bytes = 1 << 20;
    let options = OpenOptions::new().limits(limits).verify_manifest(true);
    let opened = options.open(Arc::new(Memory::new(bytes)));
    assert!(
        matches!(opened, Err(Error::LimitExceeded { .. })),
        "{opened:?}"
    );
}

#[test]
fn a_descriptor_alone_needs_leave() {
    let path = testdata("ova/good/alone.ovf");
    let denied = Checked::of_path(&path, &OpenOptions::new());
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    let detached = OpenOptions::new().resolver(Arc::new(DetachReferences));
    let found = Checked::of_path(&path, &detached)
        .unwrap()
        .findings
        .unwrap();
    assert!(found.is_clean());
    assert!(told(&found, FindingKind::Note, "was left closed"));
}

#[test]
fn the_command_says_so_by_its_status() {
    let sound = run(&testdata("ova"), example("img-check"), ["good/ovftool.ova"]);
    assert_eq!(sound.status.code(), Some(0));
    assert_eq!(sound.stdout, b"No errors were found on the image.\n");
    let bad = run(
        &testdata("ova"),
        example("img-check"),
        ["bad/manifest-digest.ova"],
    );
    assert_eq!(bad.status.code(), Some(2));
    let unknown = run(
        &testdata("ova"),
        example("img-check"),
        ["bad/manifest-md5.ova"],
    );
    assert_eq!(unknown.status.code(), Some(1));
}
