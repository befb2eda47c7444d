//! Written VMDK images: read back, the same every time, and judged by QEMU.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::model::{Fill, Model};
use crate::support::{Rng, fails, has_tool, read_all, run, sha256};
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, CreateOptions};
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockTarget, Error, ImageName, OpenOptions, PathPolicy, Reference, Resolved,
    Resolver, Result,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const SUBFORMATS: [&str; 7] = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "vmfs",
    "vmfsThin",
    "streamOptimized",
];

/// Those that this build can write.
fn subformats() -> &'static [&'static str] {
    let count = if cfg!(feature = "zlib") { 7 } else { 6 };
    &SUBFORMATS[..count]
}

fn to(subformat: &str) -> ConvertOptions {
    ConvertOptions::to("vmdk").option("subformat", subformat)
}

/// The files of a VMDK in memory, the image first; all others by the suffix of their names.
#[derive(Debug, Clone)]
struct Files(Vec<Arc<Memory>>);

impl Resolver for Files {
    fn resolve(&self, _: &Reference) -> Result<Resolved> {
        Ok(Resolved::Open {
            source: Arc::clone(&self.0[1]) as Arc<dyn BlockSource>,
            format: None,
            within: Arc::new(self.clone()),
        })
    }
}

/// Writes a disk of less than 2 GiB, so that there is one extent.
fn write(options: &ConvertOptions, subformat: &str, disk: &dyn BlockSource) -> Vec<Arc<Memory>> {
    let single = ["monolithicSparse", "streamOptimized"].contains(&subformat);
    let files: Vec<Arc<Memory>> = (0..if single { 1 } else { 2 })
        .map(|_| Arc::default())
        .collect();
    let targets: Vec<Arc<dyn BlockTarget>> = files
        .iter()
        .map(|file| Arc::clone(file) as Arc<dyn BlockTarget>)
        .collect();
    options.convert_to_targets(disk, &targets).unwrap();
    files
}

fn reread(files: &[Arc<Memory>]) -> Vec<u8> {
    let image = OpenOptions::new()
        .resolver(Arc::new(Files(files.to_vec())))
        .open(Arc::clone(&files[0]) as Arc<dyn BlockSource>)
        .unwrap();
    read_all(&image).unwrap()
}

fn disk(size: usize, seed: u64) -> Model {
    let mut disk = Model::new(size);
    let mut rng = Rng(seed);
    for n in 0..40 {
        let start = usize::try_from(rng.below(size as u64)).unwrap();
        let len = usize::try_from(rng.below(400_000)).unwrap();
        disk.fill(start, len, Fill::ALL[n % 5], rng.next());
    }
    disk
}

#[test]
fn what_is_written_is_what_is_read() {
    let cases = std::env::var("PROPTEST_CASES").map_or(60, |n| n.parse().unwrap());
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let fills = (0_usize..5, any::<u32>(), 0_usize..300_000, any::<u64>());
    let disks = (1_usize..3000, prop::collection::vec(fills, 0..12));
    let ways = (
        0..subformats().len(),
        any::<bool>(),
        prop_oneof![Just(0_u64), Just(512), Just(4096), Just(1 << 20)],
        1_usize..=4,
    );
    TestRunner::new_with_rng(config, rng)
        .run(
            &(disks, ways),
            |((sectors, fills), (sub, zeroed, sparse, threads))| {
                let size = sectors * 512;
                let mut disk = Model::new(size);
                for (fill, start, len, seed) in fills {
                    disk.fill(start as usize % (size + 1), len, Fill::ALL[fill], seed);
                }
                let subformat = subformats()[sub];
                let mut options = to(subformat)
                    .sparse_size(sparse)
                    .threads(NonZeroUsize::new(threads).unwrap());
                if zeroed && subformat.ends_with("Sparse") {
                    options = options.option("zeroed_grain", "on");
                }
                let files = write(&options, subformat, &disk);
                assert!(reread(&files) == disk.bytes, "{subformat}");
                Ok(())
            },
        )
        .unwrap();
}

#[test]
fn the_number_of_threads_changes_nothing() {
    // Two grain tables and a bit.
    let disk = disk((70 << 20) + 512, 9);
    for subformat in subformats() {
        let digest = |threads| {
            let options = to(subformat).threads(NonZeroUsize::new(threads).unwrap());
            let files = write(&options, subformat, &disk);
            let digests = files.iter().map(|file| sha256(&file.to_bytes()));
            (digests.collect::<Vec<_>>(), reread(&files) == disk.bytes)
        };
        let first = digest(1);
        assert!(first.1, "{subformat}");
        assert_eq!(digest(2), first, "{subformat}");
        assert_eq!(digest(5), first, "{subformat}");
    }
}

/// A target that was something else before.
#[test]
fn what_a_target_held_before_does_not_show_through() {
    let disk = disk(1 << 20, 3);
    for subformat in subformats() {
        let single = ["monolithicSparse", "streamOptimized"].contains(subformat);
        let files: Vec<Arc<Memory>> = (0..if single { 1 } else { 2 })
            .map(|_| Arc::new(Memory::new(vec![0xdb; 3 << 20])))
            .collect();
        let targets: Vec<Arc<dyn BlockTarget>> = files
            .iter()
            .map(|file| Arc::clone(file) as Arc<dyn BlockTarget>)
            .collect();
        to(subformat).convert_to_targets(&disk, &targets).unwrap();
        assert!(reread(&files) == disk.bytes, "{subformat}");
    }
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let refusal = |options: &str, compress: bool| {
        let mut create = CreateOptions::new(1 << 20);
        create.options = blockform::image::parse_options(options).unwrap();
        create.compress = compress;
        let format = blockform::formats::Formats::all().by_name("vmdk").unwrap();
        format
            .create(&create)
            .err()
            .map_or(String::new(), |e| e.to_string())
    };
    for (options, compress, words) in [
        ("subformat=sparse", false, "monolithicFlat"),
        ("adapter_type=scsi", false, "lsilogic"),
        ("compat6=on,hwversion=7", false, "exclude"),
        ("hwversion=x", false, "number"),
        ("toolsversion=-1", false, "number"),
        ("cid=ffffffff", false, "cid"),
        ("uuid=1234", false, "UUID"),
        ("compression_level=3", false, "streamOptimized"),
        ("", true, "streamOptimized"),
        ("nonsense=1", false, "no option"),
    ] {
        let message = refusal(options, compress);
        assert!(message.contains(words), "{options}: {message:?}");
    }
    for options in [
        "hwversion=undefined",
        "compat6=on",
        "cid=0x1234",
        "zeroed_grain=on",
    ] {
        assert_eq!(refusal(options, false), "", "{options}");
    }
}

/// Runs a line of words in a folder; it has to succeed.
fn qemu(folder: &Path, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    run(command.args(words).current_dir(folder))
}

#[test]
fn qemu_img_reads_what_we_write() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = disk((40 << 20) + 3 * 512, 21);
    std::fs::write(folder.path().join("disk.raw"), &disk.bytes).unwrap();
    for subformat in subformats() {
        let name = format!("out {subformat}.x.vmdk").replace(' ', "-");
        to(subformat)
            .option("adapter_type", "lsilogic")
            .option("uuid", "6000c29f-4866-aea5-2f18-d3030ba914ff")
            .convert_to_path(&disk, folder.path().join(&name))
            .unwrap();
        qemu(
            folder.path(),
            &format!("qemu-img compare -f raw -F vmdk disk.raw {name}"),
        );
        qemu(folder.path(), &format!("qemu-img check -f vmdk {name}"));
        let info = qemu(
            folder.path(),
            &format!("qemu-img info --output=json -f vmdk {name}"),
        );
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let data = &info["format-specific"]["data"];
        let want = subformat.trim_end_matches("Thin");
        assert_eq!(data["create-type"], want);
        let image = OpenOptions::new().references(PathPolicy::SameDirectory);
        let image = image.open_path(folder.path().join(&name)).unwrap();
        assert!(read_all(&image).unwrap() == disk.bytes, "{subformat}");
        assert_eq!(data["cid"], image.info().ids.content_id.unwrap());
    }
}

#[test]
fn qemu_img_reads_our_overlays() {
    if !has_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let base = disk(6 << 20, 1);
    let mut top = disk(6 << 20, 1);
    top.fill(1 << 20, 1 << 20, Fill::Zero, 0);
    top.fill(3 << 20, 100_000, Fill::Noise, 5);
    std::fs::write(folder.path().join("top.raw"), &top.bytes).unwrap();
    let options = OpenOptions::new().references(PathPolicy::SameDirectory);
    let path = |name: &str| folder.path().join(name);
    to("monolithicSparse")
        .convert_to_path(&base, path("base.vmdk"))
        .unwrap();
    let image = || Arc::from(options.open_path(path("base.vmdk")).unwrap());
    for (subformat, zeroed) in [
        ("monolithicSparse", "on"),
        ("monolithicSparse", "off"),
        ("twoGbMaxExtentSparse", "off"),
        ("streamOptimized", "off"),
    ] {
        if !subformats().contains(&subformat) {
            continue;
        }
        let backing = Backing::new(ImageName::from("base.vmdk"), "vmdk");
        let convert = to(subformat).option("zeroed_grain", zeroed);
        convert
            .overlay(backing, image())
            .convert_to_path(&top, path("top.vmdk"))
            .unwrap();
        qemu(
            folder.path(),
            "qemu-img compare -f raw -F vmdk top.raw top.vmdk",
        );
        let ours = options.open_path(path("top.vmdk")).unwrap();
        assert!(read_all(&ours).unwrap() == top.bytes, "{subformat}");
    }
    // A child repeats its parent's content id, so the parent has to be a VMDK that is known.
    let backing = Backing::new(ImageName::from("top.raw"), "raw");
    let raw = OpenOptions::new()
        .format("raw")
        .open_path(path("top.raw"))
        .unwrap();
    let refused = to("monolithicSparse").overlay(backing, Arc::from(raw));
    fails!(
        refused.convert_to_path(&top, path("x.vmdk")),
        Error::InvalidInput(_),
        "has to be a VMDK"
    );
    assert!(!path("x.vmdk").exists());
}

#[test]
fn a_disk_is_split_into_no_more_extents_than_are_read() {
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let measure = |size| {
            blockform::measure::MeasureOptions::to("vmdk")
                .option("subformat", subformat)
                .of_size(size)
        };
        assert!(measure(16 << 40).is_ok(), "{subformat}");
        let error = measure((16 << 40) + 512).unwrap_err();
        assert!(error.to_string().contains("8192 files"), "{error}");
    }
    let line = "RW 1 ZERO\n";
    let disk = |count| {
        let text = format!(
            "# Disk DescriptorFile\ncreateType=\"custom\"\n{}",
            line.repeat(count)
        );
        OpenOptions::new().open(Arc::new(Memory::new(text)))
    };
    assert_eq!(disk(8192).unwrap().size(), 8192 * 512);
    let error = disk(8193).unwrap_err();
    assert!(
        error.to_string().contains("over the limit extents of 8192"),
        "{error}"
    );
}

/// The extents of a disk of more than 2 GiB, of which little is written.
#[test]
fn a_disk_is_split_at_two_gibibytes() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    let file = std::fs::File::create(&raw).unwrap();
    file.set_len((5 << 30) + 512).unwrap();
    for at in [(2_u64 << 30) - 600, 4 << 30, 5 << 30] {
        use std::io::{Seek, SeekFrom, Write};
        (&file).seek(SeekFrom::Start(at)).unwrap();
        (&file).write_all(&[0x77; 512]).unwrap();
    }
    let source = OpenOptions::new().format("raw").open_path(&raw).unwrap();
    for (subformat, letter) in [("twoGbMaxExtentSparse", 's'), ("twoGbMaxExtentFlat", 'f')] {
        let out = folder.path().join(format!("{subformat}.vmdk"));
        to(subformat).convert_to_path(&source, &out).unwrap();
        for n in 1..=3 {
            let part = format!("{subformat}-{letter}{n:03}.vmdk");
            assert!(folder.path().join(&part).exists(), "{part}");
        }
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        let image = options.open_path(&out).unwrap();
        assert_eq!(image.size(), (5 << 30) + 512);
        for at in [(2_u64 << 30) - 700, (4 << 30) - 50, (5 << 30) - 100] {
            let (mut ours, mut theirs) = ([1; 700], [2; 700]);
            let n = image.read_at(&mut ours, at).unwrap();
            assert_eq!(source.read_at(&mut theirs, at).unwrap(), n);
            assert!(ours[..n] == theirs[..n], "{subformat} at {at}");
        }
        if has_tool("qemu-img") {
            let line = format!("qemu-img compare -f raw -F vmdk disk.raw {subformat}.vmdk");
            qemu(folder.path(), &line);
        }
    }
}
