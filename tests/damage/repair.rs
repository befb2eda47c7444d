//! Repair: what it mends, what it leaves alone, and what is there if it is cut off.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support::command::{example, has_qemu, must, run};
use crate::support::crash::{Log, Op, Recorder, after, states};
use crate::support::patch::be64;
use crate::support::{Rng, read_all, testdata};
use blockform::check::{Checked, FindingKind, Findings, Repair, Scope};
use blockform::image::SnapshotSelector;
use blockform::storage::Memory;
use blockform::{BlockSource, DetachReferences, Error, Limits, OpenOptions};

fn options() -> OpenOptions {
    OpenOptions::new()
        .format("qcow2")
        .resolver(Arc::new(DetachReferences))
}

fn check(bytes: &[u8]) -> Findings {
    let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
    Checked::of_source(&source, &options())
        .unwrap()
        .findings
        .unwrap()
}

/// The guest's bytes, in the active state and in each snapshot. `None` where reading is refused: a
/// reader trusts no image whose counts lie in its tables.
fn contents(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let open = |options: OpenOptions| {
        let source: Arc<dyn BlockSource> = Arc::new(Memory::new(bytes));
        options.open(source).unwrap()
    };
    let image = open(options());
    let mut all = vec![read_all(&image).ok()?];
    for snapshot in &image.info().snapshots {
        let id = String::from_utf8(snapshot.id.as_bytes().to_vec()).unwrap();
        let image = open(options().snapshot(SnapshotSelector::Id(id)));
        all.push(read_all(&image).ok()?);
    }
    Some(all)
}

/// Findings that would make a writer lose data: counts that are too low, and flags that promise one owner.
fn dangers(findings: &Findings) -> BTreeSet<(Option<u64>, &'static str)> {
    assert_eq!(findings.left_out(), 0);
    let told = findings.told().iter();
    let dangerous = told.filter_map(|f| match f.kind {
        FindingKind::Corruption if f.problem.contains("lacks the copied flag") => None,
        FindingKind::Corruption => Some((f.offset, f.structure)),
        _ => None,
    });
    dangerous.collect()
}

/// Places of the structures of an image.
struct Layout {
    l1: usize,
    l2: usize,
    refcount_table: usize,
    block: usize,
}

impl Layout {
    fn of(bytes: &[u8]) -> Self {
        let offset = |at| usize::try_from(be64(bytes, at) & 0x00ff_ffff_ffff_fe00).unwrap();
        Layout {
            l1: offset(40),
            l2: offset(offset(40)),
            refcount_table: offset(48),
            block: offset(offset(48)),
        }
    }
}

type Case = (&'static str, &'static str, fn(&mut Vec<u8>, &Layout));

/// Damage that is mended without a guess.
const CASES: [Case; 14] = [
    ("counts too low", "cluster-4k", |b, l| {
        b[l.block..l.block + 12].fill(0)
    }),
    ("counts too high", "cluster-4k", |b, l| {
        b[l.block + 1..l.block + 24].fill(3)
    }),
    (
        "counts too high, and entries that know",
        "cluster-4k",
        |b, l| {
            for entry in (0..3).map(|entry| l.l2 + 8 * entry) {
                let cluster = usize::try_from((be64(b, entry) << 1 >> 1) / 4096).unwrap();
                b[entry] = 0;
                b[l.block + 2 * cluster + 1] = 2;
            }
        },
    ),
    ("some of both", "snapshots", |b, l| {
        b[l.block + 3] = 0;
        b[l.block + 5] = 9;
        b[l.block + 7] ^= 3;
        b[l.block + 21] ^= 3;
    }),
    ("flags", "snapshots", |b, l| {
        b[l.l1] ^= 0x80;
        (0..9).for_each(|entry| {
            b[l.l2 + 8 * entry] ^= if b[l.l2 + 8 * entry + 5] == 0 {
                0
            } else {
                0x80
            }
        });
    }),
    ("no refcount block", "cluster-4k", |b, l| {
        b[l.refcount_table..l.refcount_table + 8].fill(0)
    }),
    (
        "a refcount block that is an L2 table",
        "cluster-4k",
        |b, l| {
            let l2 = (l.l2 as u64).to_be_bytes();
            b[l.refcount_table..l.refcount_table + 8].copy_from_slice(&l2);
        },
    ),
    ("a refcount table past the end", "cluster-4k", |b, _| {
        b[49] = 1
    }),
    (
        "a refcount table that is not aligned",
        "snapshots",
        |b, _| b[54] |= 2,
    ),
    ("a reserved bit in the refcount table", "zlib", |b, l| {
        b[l.refcount_table + 7] |= 1
    }),
    ("counts of one bit", "refcount-1", |b, l| {
        b[l.block..l.block + 2].fill(0xff)
    }),
    ("no block for counts of 64 bits", "refcount-64", |b, l| {
        b[l.refcount_table..l.refcount_table + 8].fill(0);
    }),
    ("a dirty image", "cluster-4k", |b, _| b[79] |= 1),
    ("a dirty and corrupt image", "bitmaps", |b, l| {
        b[79] |= 3;
        b[l.block + 1] = 0;
    }),
];

/// Hands out each case: its name, the damaged image, and what the guest is to read.
fn each_case(mut each: impl FnMut(&'static str, Vec<u8>, Option<Vec<Vec<u8>>>)) {
    for (name, image, edit) in CASES {
        if crate::support::can_unpack(image) {
            let mut bytes = fs::read(testdata(&format!("qcow2/good/{image}.qcow2"))).unwrap();
            let layout = Layout::of(&bytes);
            let wanted = contents(&bytes);
            assert!(wanted.is_some());
            edit(&mut bytes, &layout);
            each(name, bytes, wanted);
        }
    }
}

fn mend(bytes: &[u8], scope: Scope) -> (Vec<u8>, Vec<Op>) {
    mend_with(options(), bytes, scope)
}

fn mend_with(options: OpenOptions, bytes: &[u8], scope: Scope) -> (Vec<u8>, Vec<Op>) {
    let file = Recorder::of(bytes, Log::default());
    let repaired = Repair::new(options, scope).target(file.clone()).unwrap();
    let (before, after) = (check(bytes), repaired.checked.findings.unwrap());
    assert_eq!(
        repaired.fixed.corruptions,
        before.corruptions - after.corruptions
    );
    assert_eq!(repaired.fixed.leaks, before.leaks - after.leaks);
    let ops = file.log.take();
    let grows = |op: &Op| matches!(op, Op::Resize(..));
    assert!(!ops.iter().any(grows), "the file grows by writing");
    (file.file.to_bytes(), ops)
}

#[test]
fn what_is_mended_is_clean_to_qemu_img_and_holds_the_same() {
    let qemu = has_qemu();
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    each_case(|name, bytes, wanted| {
        let (mended, _) = mend(&bytes, Scope::All);
        let findings = check(&mended);
        assert!(findings.is_clean(), "{name}: {:?}", findings.told());
        assert_eq!(mended[79] & 3, 0, "{name}: the bits of damage are clear");
        assert!(contents(&mended) == wanted, "{name}");
        let (again, ops) = mend(&mended, Scope::All);
        assert!(
            again == mended && ops.is_empty(),
            "{name}: a sound image is not written"
        );
        if qemu {
            let (_, image, _) = CASES.iter().find(|case| case.0 == name).unwrap();
            let sound = testdata(&format!("qcow2/good/{image}.qcow2"));
            fs::copy(sound, folder.join("was.qcow2")).unwrap();
            fs::write(folder.join("is.qcow2"), &mended).unwrap();
            must(folder, "qemu-img check -f qcow2 is.qcow2");
            must(
                folder,
                "qemu-img compare -f qcow2 -F qcow2 was.qcow2 is.qcow2",
            );
        }
    });
}

#[test]
fn wherever_a_repair_is_cut_off_the_image_is_no_worse() {
    let mut states = 0;
    each_case(|name, bytes, wanted| {
        for scope in [Scope::Leaks, Scope::All] {
            states += cut_off(options(), name, &bytes, &wanted, scope);
            // Without room for changes, each is committed at once.
            let mut limits = Limits::default();
            limits.cache_bytes = 0;
            let options = options().limits(limits);
            assert_eq!(
                mend_with(options.clone(), &bytes, scope).0,
                mend(&bytes, scope).0
            );
            states += cut_off(options, name, &bytes, &wanted, scope);
        }
    });
    eprintln!("{states} states");
    assert!(states > 1000, "{states}");
}

/// Looks at what is there if the repair is cut off. Returns how many states were looked at.
fn cut_off(
    options: OpenOptions,
    name: &str,
    bytes: &[u8],
    wanted: &Option<Vec<Vec<u8>>>,
    scope: Scope,
) -> u64 {
    let before = dangers(&check(bytes));
    let readable = contents(bytes).is_some();
    let (mended, ops) = mend_with(options, bytes, scope);
    let start = [bytes.to_vec()];
    assert!(after(&start, &ops) == [mended], "{name}");
    let synced = ops.last().is_none_or(|op| matches!(op, Op::Sync(_)));
    assert!(synced, "{name}: all of it is on stable storage");
    states(&start, &ops, 32, &mut Rng(7), &mut |about, files| {
        let state = &files[0];
        let found = check(state);
        let new: Vec<_> = dangers(&found).difference(&before).copied().collect();
        assert!(
            new.is_empty(),
            "{name}, {scope:?}, {about}: {new:?} of {:?}",
            found.told()
        );
        let read = contents(state);
        let same = read == *wanted || (!readable && read.is_none());
        assert!(same, "{name}, {scope:?}, {about}");
        if about.starts_with("after") {
            let (again, _) = mend(state, Scope::All);
            assert!(check(&again).is_clean(), "{name}, {scope:?}: mended again");
            assert!(contents(&again) == *wanted, "{name}, {scope:?}");
        }
    })
}

#[test]
fn a_write_that_fails_is_told_and_leaves_no_damage() {
    each_case(|name, bytes, _| {
        let (_, ops) = mend(&bytes, Scope::All);
        let before = dangers(&check(&bytes));
        for most in 0..ops.len() {
            let file = Recorder::of(&bytes, Log::failing_after(most));
            let error = Repair::new(options(), Scope::All).target(file.clone());
            assert!(matches!(error, Err(Error::Io { .. })), "{name}, {most}");
            let state = file.file.to_bytes();
            assert!(dangers(&check(&state)).is_subset(&before), "{name}, {most}");
        }
    });
}

#[test]
fn leaks_alone_are_given_back_and_nothing_else_is_touched() {
    let bytes = fs::read(testdata("qcow2/good/snapshots.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    let mut leaky = bytes.clone();
    leaky[layout.block + 1] += 1;
    let (mended, _) = mend(&leaky, Scope::Leaks);
    assert!(mended == bytes);
    // With a count too low besides, that one stays.
    leaky[layout.block + 3] = 0;
    let (mended, _) = mend(&leaky, Scope::Leaks);
    let findings = check(&mended);
    assert_eq!(
        (findings.corruptions, findings.leaks),
        (1, 0),
        "{:?}",
        findings.told()
    );
    let mut corrupt = leaky.clone();
    corrupt[79] |= 2;
    let (mended, _) = mend(&corrupt, Scope::Leaks);
    assert_eq!(mended[79] & 2, 2, "the bit stays where damage does");
}

#[test]
fn what_a_damaged_entry_meant_is_not_given_back() {
    let bytes = fs::read(testdata("qcow2/good/cluster-4k.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    let mut damaged = bytes.clone();
    // The L1 entry points past the end: its table and all of its data look like leaks.
    damaged[layout.l1 + 2] = 1;
    let before = check(&damaged);
    assert!(before.leaks > 0 && before.corruptions > 0);
    for scope in [Scope::Leaks, Scope::All] {
        let (mended, _) = mend(&damaged, scope);
        assert_eq!(check(&mended).leaks, before.leaks, "{scope:?}");
        let mut healed = mended.clone();
        healed[layout.l1 + 2] = 0;
        assert!(contents(&healed) == contents(&bytes), "{scope:?}");
    }
    // Counts are not made anew behind the end, where the entry points.
    damaged[layout.refcount_table + 7] |= 1;
    let (mended, ops) = mend(&damaged, Scope::All);
    assert!(mended == damaged && ops.is_empty());
}

#[test]
fn a_file_that_was_cut_short_does_not_grow() {
    let bytes = fs::read(testdata("qcow2/good/cluster-4k.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    for missing in [512, 4096, 9000] {
        let mut cut = bytes[..bytes.len() - missing].to_vec();
        cut[layout.refcount_table..layout.refcount_table + 8].fill(0);
        let (mended, ops) = mend(&cut, Scope::All);
        assert!(mended == cut && ops.is_empty(), "{missing}");
    }
}

#[test]
fn an_unknown_autoclear_feature_is_cleared_before_its_clusters_are_given_back() {
    let mut bytes = fs::read(testdata("qcow2/good/unknown-autoclear.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    let known = be64(&bytes, 88) & 3;
    assert_ne!(be64(&bytes, 88), known);
    bytes[layout.block + 1] += 1;
    let (mended, ops) = mend(&bytes, Scope::Leaks);
    assert_eq!(be64(&mended, 88), known);
    let first = matches!(&ops[..2], [Op::Write(0, 88, _), Op::Sync(0)]);
    assert!(first, "{ops:?}");
}

#[test]
fn a_copy_is_mended_and_the_image_stays_unless_that_is_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let mut bytes = fs::read(testdata("qcow2/good/cluster-4k.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    bytes[layout.block + 1] = 0;
    let (image, copy) = (folder.join("image.qcow2"), folder.join("copy.qcow2"));
    fs::write(&image, &bytes).unwrap();
    let repair = Repair::new(OpenOptions::new(), Scope::All);
    let repaired = repair.to_path(&image, &copy).unwrap();
    assert_eq!(repaired.fixed.corruptions, 1);
    assert!(repaired.checked.findings.unwrap().is_clean());
    assert!(fs::read(&image).unwrap() == bytes);
    assert!(check(&fs::read(&copy).unwrap()).is_clean());
    let error = repair.to_path(&image, &image).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error}");
    assert!(fs::read(&image).unwrap() == bytes);
    repair.in_place(&image).unwrap();
    assert!(fs::read(&image).unwrap() == fs::read(&copy).unwrap());
    // A format of which nothing is mended leaves no file.
    let raw = folder.join("disk.raw");
    fs::write(&raw, [1; 4096]).unwrap();
    let repair = Repair::new(OpenOptions::new().format("raw"), Scope::All);
    let error = repair.to_path(&raw, folder.join("new.raw")).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(
        crate::support::command::names(folder),
        ["copy.qcow2", "disk.raw", "image.qcow2"]
    );
}

#[test]
fn the_command_asks_where_to_and_tells_what_was_mended() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let mut bytes = fs::read(testdata("qcow2/good/cluster-4k.qcow2")).unwrap();
    let layout = Layout::of(&bytes);
    bytes[layout.block + 1] = 0;
    bytes[layout.block + 3] = 3;
    let image = folder.join("image.qcow2");
    fs::write(&image, &bytes).unwrap();
    let ours = |line: &str| run(folder, example("img-check"), line.split(' '));
    let refused = ours("-r all image.qcow2");
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(
        told.contains("--to") && told.contains("--in-place"),
        "{told}"
    );
    assert!(fs::read(&image).unwrap() == bytes);

    let json = ours("-r all --to new.qcow2 --output json image.qcow2");
    assert_eq!(json.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["corruptions-fixed"], 1);
    assert_eq!(json["leaks-fixed"], 1);
    assert_eq!(json["filename"], "new.qcow2");

    // Of qcow2 there is no more than all.
    let more = ours("-r redundant --to more.qcow2 image.qcow2");
    assert_eq!(more.status.code(), Some(0));
    let made = |name: &str| fs::read(folder.join(name)).unwrap();
    assert!(made("more.qcow2") == made("new.qcow2"));

    let text = ours("-r all --in-place image.qcow2");
    assert_eq!(text.status.code(), Some(0));
    assert!(fs::read(&image).unwrap() == fs::read(folder.join("new.qcow2")).unwrap());
    if has_qemu() {
        fs::write(folder.join("theirs.qcow2"), &bytes).unwrap();
        let theirs = must(folder, "qemu-img check -r all theirs.qcow2");
        let without_end = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with("Image end"));
            lines
                .filter(|line| !line.starts_with("Repairing") && !line.starts_with("Rebuilding"))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let ours = String::from_utf8(text.stdout).unwrap();
        assert_eq!(without_end(&ours), without_end(&theirs));
    }
    assert!(Path::new(&image).exists());
}
