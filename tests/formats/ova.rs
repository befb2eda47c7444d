//! Appliances: archives laid out as several producers do it, damaged ones, and ours as others read them.

use std::num::NonZeroUsize;
use std::process::Command;
use std::sync::Arc;

use crate::support::appliance::{archive, manifest, path_of};
use crate::support::{fails, has_tool, read_all, run, sha256, testdata};
use blockform::convert::ConvertOptions;
use blockform::formats::ova::Appliance;
use blockform::inspect::Report;
use blockform::storage::{FileStorage, Memory};
use blockform::{
    BlockSource, BlockTarget, DetachReferences, Error, Hint, Limits, OpenOptions, PathPolicy,
};
use proptest::prelude::*;
use serde_json::Value;

/// The options for an entry of the manifest.
fn options(entry: &Value) -> OpenOptions {
    let mut options = OpenOptions::new();
    if let Some(disk) = entry["disk"].as_str() {
        options = options.disk(disk);
    }
    if let Some(format) = entry["format"].as_str() {
        options = options.format(format);
    }
    if entry["needs"].is_array() {
        options = options.references(PathPolicy::SameDirectory);
    }
    options.verify_manifest(entry["verify"] == true)
}

#[test]
fn disks_in_archives_of_every_layout() {
    let entries = manifest("images");
    assert!(entries.len() > 20);
    for entry in entries {
        let image = options(&entry)
            .open_path(path_of("good", &entry))
            .unwrap_or_else(|error| panic!("{entry}: {error}"));
        assert_eq!(image.format().as_str(), "ova");
        let bytes = read_all(&image).unwrap_or_else(|error| panic!("{entry}: {error}"));
        assert_eq!(entry["virtual_size"], bytes.len() as u64, "{entry}");
        assert_eq!(entry["sha256"], sha256(&bytes), "{entry}");
        let warnings = &image.info().warnings;
        match entry["warning"].as_str() {
            Some(words) => assert!(warnings.iter().any(|w| w.contains(words)), "{entry}"),
            None => assert!(warnings.is_empty(), "{entry}: {warnings:?}"),
        }
    }
}

fn variant(error: &Error) -> &'static str {
    match error {
        Error::Malformed { .. } => "Malformed",
        Error::Unsupported { .. } => "Unsupported",
        Error::Denied { .. } => "Denied",
        Error::InvalidInput(_) => "InvalidInput",
        Error::DiskNotChosen { .. } => "DiskNotChosen",
        _ => "another",
    }
}

#[test]
fn what_is_wrong_is_refused_by_name_and_still_described() {
    let entries = manifest("bad");
    let on_disk = std::fs::read_dir(testdata("ova/bad")).unwrap().count();
    assert_eq!(entries.len(), on_disk, "the table lists every file");
    let mut wrong = Vec::new();
    for entry in entries {
        let path = path_of("bad", &entry);
        // What may be opened beside an archive is nothing to it.
        let options = options(&entry).references(PathPolicy::DangerousAnywhere);
        let error = match options.open_path(&path) {
            Ok(_) => {
                wrong.push(format!("{entry}: opened"));
                continue;
            }
            Err(error) => error,
        };
        let words = entry["error"].as_str().unwrap();
        if variant(&error) != entry["kind"] || !error.chain().contains(words) {
            wrong.push(format!("{entry}: {error:?}"));
        }
        match Report::of_path(&path, &options) {
            Ok(report) => {
                let told = report.warnings.iter().any(|told| told.contains(words));
                assert!(told, "{entry}: {:?}", report.warnings);
                assert_eq!(report.format.as_str(), "ova");
            }
            Err(error) => wrong.push(format!("{entry}: not described: {error:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The content of an archive with some bytes changed, if it is read.
fn reads(bytes: Vec<u8>) -> Option<String> {
    let options = OpenOptions::new().format("ova");
    let image = options.open(Arc::new(Memory::new(bytes))).ok()?;
    Some(sha256(&read_all(&image).ok()?))
}

#[test]
fn a_cut_archive_is_right_or_refused() {
    for name in ["ovftool", "gzip", "sparse-gnu", "sparse-1.0", "chunks"] {
        let whole = std::fs::read(testdata(&format!("ova/good/{name}.ova"))).unwrap();
        let want = reads(whole.clone()).unwrap();
        let mut right = 0;
        for len in (0..whole.len()).step_by(171) {
            let Some(got) = reads(whole[..len].to_vec()) else {
                continue;
            };
            assert_eq!(got, want, "{name} cut to {len}");
            right += 1;
        }
        // Only the end marker, or what follows the disk, may go.
        assert!(right < 16, "{name}: {right}");
    }
}

#[test]
fn a_flipped_bit_of_the_archive_is_right_or_refused() {
    let whole = std::fs::read(testdata("ova/good/sparse-1.0.ova")).unwrap();
    let want = reads(whole.clone()).unwrap();
    // Behind them are the disk's own bytes, which have no checksum but the manifest's.
    let end = whole.len() - 1024 - 4096;
    let records = end - 3 * 512..end - 1024;
    let mut refused = 0;
    for at in 0..end {
        for bit in [0, 3, 6] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            match reads(bytes) {
                None => refused += 1,
                Some(got) => {
                    // The extended header's records and the map have no checksum either.
                    let unchecked = records.contains(&at) || (end - 512..end).contains(&at);
                    assert!(got == want || unchecked, "byte {at}, bit {bit}");
                }
            }
        }
    }
    assert!(refused > 3 * 3 * 400, "{refused}");
}

#[test]
fn the_manifest_is_compared_on_request() {
    let bytes = std::fs::read(testdata("ova/good/ovftool.ova")).unwrap();
    let appliance = |bytes: &[u8]| {
        let source = Arc::new(Memory::new(bytes));
        Appliance::open(source, &Limits::default()).unwrap()
    };
    let verified = appliance(&bytes).verify().unwrap();
    assert_eq!((verified.checked.len(), verified.unlisted.len()), (2, 0));
    // A byte in the padding of the disk's tables, which no reader looks at.
    let mut changed = bytes.clone();
    let at = bytes.len() - 1024 - 512 - 100;
    changed[at] ^= 1;
    assert_eq!(reads(changed.clone()), reads(bytes));
    let error = appliance(&changed).verify().unwrap_err();
    assert!(error.to_string().contains("has the digest"), "{error}");
    let options = OpenOptions::new().verify_manifest(true);
    fails!(
        options.open(Arc::new(Memory::new(changed))),
        Error::Malformed { .. },
        "has the digest"
    );
}

#[test]
fn a_descriptor_alone_leaves_its_disks_to_the_caller() {
    let path = testdata("ova/good/alone.ovf");
    let denied = OpenOptions::new().open_path(&path);
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    let detached = OpenOptions::new().resolver(Arc::new(DetachReferences));
    let image = detached.open_path(&path).unwrap();
    assert_eq!(image.size(), 262_144);
    let read = image.read_at(&mut [0; 512], 0);
    assert!(matches!(read, Err(Error::Detached { .. })), "{read:?}");
    let names: Vec<_> = image.references().iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, [Some("alone-disk1.vmdk")]);
    // The report opens nothing, whatever is allowed.
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    let json = Report::of_path(&path, &options).unwrap().to_json();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["format"], "ova");
    assert_eq!(json["virtual-size"], 262_144);
}

#[test]
fn an_appliance_is_listed() {
    let path = testdata("ova/good/two-disks.ova");
    let report = Report::of_path(&path, &OpenOptions::new()).unwrap();
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    let details = &json["blockform"]["details"];
    assert_eq!(details["disks"][1]["filename"], "b.vmdk");
    assert_eq!(details["disks"][1]["virtual-size"], 66_560);
    assert_eq!(details["disks"][1]["format"], "vmdk");
    assert_eq!(details["disks"][1]["bus"], "scsi");
    assert_eq!(details["disks"][1]["controller"], "lsilogic");
    assert_eq!(details["disks"][1]["unit"], 1);
    assert_eq!(details["files"][0]["filename"], "c.iso");
    assert_eq!(details["systems"][0]["name"], "golden");
    assert_eq!(details["systems"][0]["memory"], 512 << 20);
    assert_eq!(details["systems"][0]["firmware"], "efi");
    let text = report.to_string();
    assert!(text.contains("filename: b.vmdk"), "{text}");
    assert!(
        text.contains("2 disks (0 is \"a.vmdk\", 1 is \"b.vmdk\")"),
        "{text}"
    );
    let file = FileStorage::open(&path).unwrap();
    let appliance = Appliance::open(Arc::new(file), &Limits::default()).unwrap();
    let iso = &appliance.package().files[2];
    assert_eq!(appliance.file_bytes(iso).unwrap().size(), 34_816);
    for other in ["2", "d.vmdk", "../b.vmdk", ""] {
        let opened = OpenOptions::new().disk(other).open_path(&path);
        let error = opened.unwrap_err();
        assert!(matches!(error, Error::DiskNotChosen { .. }), "{error}");
        let begin = format!("the appliance has no disk {other}; it has 2 disks (0 is ");
        let text = error.to_string().replace('"', "");
        assert!(text.starts_with(&begin), "{text}");
        assert_eq!(error.hint(), Some(Hint::ChooseDisk));
    }
    let not_one = OpenOptions::new().disk("0");
    let not_one = not_one.open_path(testdata("qcow2/good/plain.qcow2"));
    assert!(matches!(not_one, Err(Error::InvalidInput(_))));
}

#[test]
fn what_unpacks_to_too_much_is_refused() {
    let mut limits = Limits::default();
    limits.inflated_bytes = 0;
    let path = testdata("ova/good/gzip.ova");
    OpenOptions::new()
        .limits(limits.clone())
        .open_path(&path)
        .unwrap();
    let zeros = vec![0; 16 << 20];
    let level = flate2_level(&zeros);
    let text = std::fs::read(&path).unwrap();
    let ovf = String::from_utf8_lossy(&text[512..]).into_owned();
    let ovf = ovf.split('\0').next().unwrap().to_owned();
    let ovf = ovf.replace("ovf:size=", "ovf:other=");
    let bomb = archive(&[("z.ovf", ovf.as_bytes()), ("z.raw.gz", &level)]);
    let opened = OpenOptions::new().limits(limits);
    let error = opened.open(Arc::new(Memory::new(bomb))).unwrap_err();
    assert!(matches!(error, Error::LimitExceeded { .. }), "{error}");
}

#[test]
#[cfg(feature = "zlib")]
fn an_archive_of_a_folder_is_an_appliance() {
    let disk = std::fs::read(testdata("vmdk/good/stream.vmdk")).unwrap();
    let image = OpenOptions::new().open(Arc::new(Memory::new(disk.clone())));
    let guest = sha256(&read_all(&image.unwrap()).unwrap());
    let ovf = |href: &str| {
        format!(
            "<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
             xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File ovf:href=\"{href}\" \
             ovf:id=\"f\"/></References><DiskSection><Info/><Disk ovf:capacity=\"1048576\" \
             ovf:diskId=\"d\" ovf:fileRef=\"f\" ovf:format=\"http://www.vmware.com/interfaces/\
             specifications/vmdk.html#streamOptimized\"/></DiskSection></Envelope>"
        )
    };
    let double = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ";
    let (own, full) = (ovf("d.vmdk"), ovf("m/d.vmdk"));
    let layouts: [&[(&str, &[u8])]; 4] = [
        &[
            ("./", b""),
            ("./a.ovf", own.as_bytes()),
            ("./d.vmdk", &disk),
        ],
        // Names mean files beside the descriptor; some tell the whole way.
        &[
            ("m/", b""),
            ("m/a.ovf", own.as_bytes()),
            ("m/d.vmdk", &disk),
        ],
        &[
            ("m/", b""),
            ("m/a.ovf", full.as_bytes()),
            ("m/d.vmdk", &disk),
        ],
        // As tar on macOS makes it.
        &[
            ("./._a.ovf", double),
            ("./a.ovf", own.as_bytes()),
            ("./._d.vmdk", double),
            ("./d.vmdk", &disk),
        ],
    ];
    for members in layouts {
        let file = Arc::new(Memory::new(archive(members)));
        let found = blockform::detect(&*file).unwrap();
        let ids: Vec<&str> = found.matches.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["ova"], "{}", members[0].0);
        let image = OpenOptions::new().open(file).unwrap();
        assert_eq!(
            sha256(&read_all(&image).unwrap()),
            guest,
            "{}",
            members[0].0
        );
        assert_eq!(
            image.info().warnings.len(),
            1,
            "{:?}",
            image.info().warnings
        );
    }
    // A folder beside is not the folder of the descriptor.
    let apart = archive(&[("m/a.ovf", own.as_bytes()), ("n/d.vmdk", &disk)]);
    let error = OpenOptions::new().open(Arc::new(Memory::new(apart)));
    assert!(matches!(error.unwrap_err(), Error::Denied { .. }));
}

fn flate2_level(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A disk with noise, text and zeros.
fn disk(len: usize) -> Vec<u8> {
    let mut rng = crate::support::Rng(11);
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(64 << 10) {
        match rng.next() % 3 {
            0 => chunk.copy_from_slice(&rng.bytes(chunk.len())),
            1 => chunk
                .iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = i.to_le_bytes()[0] % 89),
            _ => {}
        }
    }
    bytes
}

fn written(bytes: &[u8], options: &ConvertOptions) -> Vec<u8> {
    let target = Arc::new(Memory::default());
    let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&target) as _];
    options
        .convert_to_targets(&Memory::new(bytes), &targets)
        .unwrap();
    target.to_bytes()
}

#[test]
fn what_is_written_is_the_same_for_any_number_of_threads_and_reads_back() {
    let bytes = disk((9 << 20) + 512);
    let threads = |n| ConvertOptions::to("ova").threads(NonZeroUsize::new(n).unwrap());
    let one = written(&bytes, &threads(1));
    assert_eq!(one, written(&bytes, &threads(4)));
    let options = OpenOptions::new().verify_manifest(true);
    let image = options.open(Arc::new(Memory::new(one.clone()))).unwrap();
    assert!(read_all(&image).unwrap() == bytes);
    assert!(
        image.info().warnings.is_empty(),
        "{:?}",
        image.info().warnings
    );
    // The archive is no archive before its last write.
    assert_eq!(&one[..13], b"appliance.ovf");
}

#[test]
fn options_stand_in_the_descriptor() {
    let options = ConvertOptions::to("ova")
        .option("name", "a <b> & \"c\"")
        .option("os", "debian64")
        .option("secure_boot", "on")
        .option("controller", "ahci")
        .option("memory", "3G")
        .option("cpus", "5")
        .option("network", "VM <Network>")
        .option("manifest", "sha512")
        .option("mtime", "1700000000")
        .option("compression_level", "9");
    let bytes = written(&disk(1 << 20), &options);
    let source = Arc::new(Memory::new(bytes));
    let appliance = Appliance::open(source.clone(), &Limits::default()).unwrap();
    let system = &appliance.package().systems[0];
    assert_eq!(
        system.name.as_ref().unwrap().as_str(),
        Some("a <b> & \"c\"")
    );
    assert_eq!((system.os_id, system.cpus), (Some(96), Some(5)));
    assert_eq!(system.memory, Some(3 << 30));
    assert!(system.efi && system.secure_boot);
    assert_eq!(system.hardware.as_ref().unwrap().as_str(), Some("vmx-13"));
    let place = appliance.package().disks[0].attachment.as_ref().unwrap();
    assert_eq!((place.bus, place.unit), (Some("sata"), Some(0)));
    assert_eq!(appliance.verify().unwrap().checked.len(), 2);
    let without = ConvertOptions::to("ova").option("manifest", "none");
    let without = written(&disk(1 << 20), &without);
    let appliance = Appliance::open(Arc::new(Memory::new(without)), &Limits::default()).unwrap();
    fails!(appliance.verify(), Error::InvalidInput(_), "no manifest");
    for (name, value) in [
        ("os", "vms"),
        ("os", "96:a b"),
        ("controller", "floppy"),
        ("memory", "1000"),
        ("cpus", "0"),
        ("hwversion", "100"),
        ("manifest", "md5"),
        ("mtime", "-1"),
        ("name", "a\u{1b}b"),
        ("cid", "xyz"),
        ("subformat", "monolithicFlat"),
    ] {
        let options = ConvertOptions::to("ova").option(name, value);
        let target: Arc<dyn BlockTarget> = Arc::new(Memory::default());
        let done = options.convert_to_targets(&Memory::new(vec![1; 512]), &[target]);
        assert!(
            matches!(done, Err(Error::InvalidInput(_))),
            "{name}={value}"
        );
    }
}

/// Reads an archive with Python's tarfile, the descriptor with its XML parser, and the manifest.
/// The files are named by what every system and every reader of URIs takes.
const JUDGE: &str = r#"
import hashlib, sys, tarfile, xml.etree.ElementTree as ET
t = tarfile.open(sys.argv[1])
names = t.getnames()
files = {n: t.extractfile(n).read() for n in names}
assert names == ["our_disk.ovf", "our_disk-disk1.vmdk", "our_disk.mf"], names
assert all((m.mtime, m.uid, m.mode) == (0, 0, 0o644) for m in t)
for line in files["our_disk.mf"].decode().splitlines():
    name, digest = line[7:].split(")= ")
    assert hashlib.sha256(files[name]).hexdigest() == digest, line
root = ET.fromstring(files["our_disk.ovf"])
o = "{http://schemas.dmtf.org/ovf/envelope/1}"
file, disk = root.find(f"{o}References/{o}File"), root.find(f"{o}DiskSection/{o}Disk")
assert int(file.get(o + "size")) == len(files[file.get(o + "href")])
assert int(disk.get(o + "capacity")) == int(sys.argv[3])
rasd = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
for item in root.iter(o + "Item"):
    tags = [e.tag for e in item]
    assert tags == sorted(tags) and len(set(tags)) == len(tags), tags
    parent = item.find(rasd + "Parent")
    ids = [i.text for i in root.iter(rasd + "InstanceID")]
    assert len(set(ids)) == len(ids) and (parent is None or parent.text in ids)
t.extract("our_disk-disk1.vmdk", sys.argv[2])
"#;

#[test]
fn others_read_what_is_written() {
    if !has_tool("python3") || !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let bytes = disk(5 << 20);
    std::fs::write(at("disk.raw"), &bytes).unwrap();
    ConvertOptions::to("ova")
        .convert_to_path(&Memory::new(bytes.clone()), at("our disk.ova"))
        .unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", JUDGE]).arg(at("our disk.ova"));
    run(python.arg(folder.path()).arg(bytes.len().to_string()));
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "vmdk", "-F", "raw"]);
    run(compare.arg(at("our_disk-disk1.vmdk")).arg(at("disk.raw")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the names and sizes of the files are, a disk reads as it was put in.
    #[test]
    fn any_plain_archive_reads_back(
        before in prop::collection::vec(any::<u8>(), 0..2000),
        disk in prop::collection::vec(any::<u8>(), 1..3000),
        stem in "[a-zA-Z0-9 ._é-]{1,30}",
    ) {
        let name = format!("{stem}.raw");
        let ovf = format!(
            "<Envelope xmlns='ovf'><References><File href='{name}' id='f'/></References>\
             <DiskSection><Disk diskId='d' fileRef='f' format='raw'/></DiskSection></Envelope>"
        );
        let archive = archive(&[("a.ovf", ovf.as_bytes()), ("other", &before), (&name, &disk)]);
        let image = OpenOptions::new().open(Arc::new(Memory::new(archive)));
        let settles = !name.trim().is_empty() && name.trim() == name;
        prop_assume!(settles);
        prop_assert_eq!(read_all(&image.unwrap()).unwrap(), disk);
    }

    /// Any disk, converted, is what it was.
    #[test]
    fn any_disk_reads_back(
        runs in prop::collection::vec((0_u8..4, 1_usize..100_000), 1..8),
        level in 1..9_u32,
    ) {
        let mut bytes = Vec::new();
        for (kind, len) in runs {
            let start = bytes.len();
            bytes.resize(start + len, 0);
            if kind > 0 {
                let fill = |(i, b): (usize, &mut u8)| *b = (i * usize::from(kind)).to_le_bytes()[0] % 251;
                bytes[start..].iter_mut().enumerate().for_each(fill);
            }
        }
        let options = ConvertOptions::to("ova").option("compression_level", level.to_string());
        let archive = written(&bytes, &options);
        let options = OpenOptions::new().verify_manifest(true);
        let image = options.open(Arc::new(Memory::new(archive))).unwrap();
        let read = read_all(&image).unwrap();
        prop_assert_eq!(read.len(), bytes.len().next_multiple_of(512));
        prop_assert!(read[..bytes.len()] == bytes[..]);
    }
}
