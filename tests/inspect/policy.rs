//! Names inside an image open nothing, unless the caller said so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::support::{
    Qcow2Names, fails, overlay_on, overlay_with_format, read_all, skipped, testdata,
};
use blockform::storage::{FileStorage, Memory};
use blockform::{
    BlockSource, DenyReferences, DetachReferences, Error, Limits, OpenOptions, PathPolicy,
    Reference, ReferenceKind, Resolved, Resolver,
};

const CANARY: &[u8] = b"CANARY that no image may show ";
const INSIDE: &[u8] = b"a file in the same directory ";

/// ```text
/// canary.raw             must not be seen from sub/, unless anything goes
/// sub/                   where the images are
///   inside.raw           may be seen by those that may look into sub/
///   deeper/inside.raw
///   link -> ../canary.raw
///   folder -> ..
///   good-link -> inside.raw
/// ```
struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("sub/deeper")).unwrap();
        fs::write(at("canary.raw"), CANARY.repeat(3000)).unwrap();
        fs::write(at("sub/inside.raw"), INSIDE.repeat(3000)).unwrap();
        fs::write(at("sub/deeper/inside.raw"), INSIDE.repeat(3000)).unwrap();
        std::os::unix::fs::symlink("../canary.raw", at("sub/link")).unwrap();
        std::os::unix::fs::symlink("..", at("sub/folder")).unwrap();
        std::os::unix::fs::symlink("inside.raw", at("sub/good-link")).unwrap();
        Tree { folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, image: &[u8]) -> PathBuf {
        fs::write(self.at(name), image).unwrap();
        self.at(name)
    }
}

/// An image whose guest data is all in a data file of this name.
fn with_data_file(name: &[u8]) -> Vec<u8> {
    let mut image = fs::read(testdata("qcow2/good/data-file.qcow2")).unwrap();
    let names = Qcow2Names {
        backing: None,
        backing_format: None,
        data_file: Some(name),
    };
    names.lay_over(&mut image);
    image
}

type Make = fn(&[u8]) -> Vec<u8>;
const KINDS: [(ReferenceKind, Make); 2] = [
    (ReferenceKind::BackingFile, overlay_on),
    (ReferenceKind::DataFile, with_data_file),
];

fn open(path: &Path, policy: PathPolicy) -> Result<Vec<u8>, Error> {
    read_all(&OpenOptions::new().references(policy).open_path(path)?)
}

fn shows(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|w| w == text)
}

/// Names by which the canary could be reached, if names were followed.
fn ways_out(tree: &Tree) -> Vec<Vec<u8>> {
    let canary = tree.at("canary.raw").to_str().unwrap().to_owned();
    [
        canary.clone(),
        "../canary.raw".into(),
        "./../canary.raw".into(),
        "deeper/../../canary.raw".into(),
        "../sub/../canary.raw".into(),
        "link".into(),
        "./link".into(),
        "folder/canary.raw".into(),
        "deeper/../folder/canary.raw".into(),
        format!("/proc/self/root{canary}"),
        format!("//{canary}"),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// Names that other programs take for something else than a path.
fn languages(tree: &Tree) -> Vec<Vec<u8>> {
    let canary = tree.at("canary.raw").to_str().unwrap().to_owned();
    [
        format!(
            "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"file\",\"filename\":\"{canary}\"}}}}"
        ),
        format!("file:{canary}"),
        format!("file://{canary}"),
        format!("fat:{}", tree.folder.path().display()),
        "nbd:127.0.0.1:10809".into(),
        "nbd+unix:///?socket=/tmp/socket".into(),
        "http://127.0.0.1/".into(),
        "host_device:/dev/null".into(),
        format!("blkdebug::{canary}"),
        "~/canary.raw".into(),
        "$HOME/canary.raw".into(),
        format!("{canary}\0"),
        "inside.raw\0.qcow2".into(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

#[test]
fn the_default_denies_every_name() {
    let tree = Tree::new();
    for (kind, make) in KINDS {
        for name in [
            ways_out(&tree),
            languages(&tree),
            vec![b"inside.raw".to_vec()],
        ]
        .concat()
        {
            let image = make(&name);
            let path = tree.put("sub/image.qcow2", &image);
            for opened in [
                OpenOptions::new().open_path(&path),
                OpenOptions::new().open(Arc::new(Memory::new(image.clone()))),
                OpenOptions::new()
                    .references(PathPolicy::Deny)
                    .open_path(&path),
                OpenOptions::new()
                    .resolver(Arc::new(DenyReferences))
                    .open_path(&path),
                OpenOptions::new()
                    .references(PathPolicy::from_text("none"))
                    .open_path(&path),
            ] {
                match opened {
                    Err(Error::Denied { reference, hint }) => {
                        assert_eq!(reference.kind, kind);
                        assert_eq!(reference.name.as_bytes(), name);
                        assert!(hint.is_some());
                    }
                    other => panic!("{}: {:?}", name.escape_ascii(), other.err()),
                }
            }
        }
    }
}

#[test]
fn a_detached_image_opens_and_its_other_file_cannot_be_read() {
    let tree = Tree::new();
    for (kind, make) in KINDS {
        for name in [
            ways_out(&tree),
            languages(&tree),
            vec![b"inside.raw".to_vec()],
        ]
        .concat()
        {
            let path = tree.put("sub/image.qcow2", &make(&name));
            for options in [
                OpenOptions::new().references(PathPolicy::Detach),
                OpenOptions::new().resolver(Arc::new(DetachReferences)),
            ] {
                let image = options.open_path(&path).unwrap();
                assert_eq!(image.references()[0].kind, kind);
                assert_eq!(image.references()[0].name.as_bytes(), name);
                let error = image.read_at(&mut [0; 16], 0).unwrap_err();
                assert!(matches!(error, Error::Detached { .. }), "{error:?}");
                assert!(image.backing().is_none());
            }
        }
    }
}

#[test]
fn nothing_leads_out_of_the_directory() {
    let tree = Tree::new();
    for (_, make) in KINDS {
        for name in ways_out(&tree) {
            let path = tree.put("sub/image.qcow2", &make(&name));
            for policy in [
                PathPolicy::SameDirectory,
                PathPolicy::Within(tree.at("sub")),
            ] {
                let opened = open(&path, policy);
                let denied = matches!(opened, Err(Error::Denied { .. }));
                assert!(denied, "{}: {:?}", name.escape_ascii(), opened.err());
            }
            // Who may look there sees it: the way is right, it is the policy that closes it.
            for policy in [
                PathPolicy::DangerousAnywhere,
                PathPolicy::from_text("anywhere"),
            ] {
                let bytes = open(&path, policy);
                let bytes = bytes.unwrap_or_else(|e| panic!("{}: {e}", name.escape_ascii()));
                assert!(shows(&bytes, CANARY), "{}", name.escape_ascii());
            }
        }
        let path = tree.put("sub/image.qcow2", &make(b"../canary.raw"));
        let bytes = open(&path, PathPolicy::Within(tree.at(""))).unwrap();
        assert!(shows(&bytes, CANARY), "within the directory above");
    }
}

#[test]
fn a_name_is_only_ever_a_path() {
    let tree = Tree::new();
    for (_, make) in KINDS {
        for name in languages(&tree) {
            let path = tree.put("sub/image.qcow2", &make(&name));
            for policy in [
                PathPolicy::SameDirectory,
                PathPolicy::Within(tree.at("")),
                PathPolicy::DangerousAnywhere,
            ] {
                let opened = open(&path, policy);
                fails!(opened, Error::Io { .. } | Error::Denied { .. }, " file ");
            }
        }
    }
    // And a file that has such a name is that file.
    tree.put("sub/nbd:127.0.0.1:10809", &INSIDE.repeat(10));
    let path = tree.put("sub/image.qcow2", &overlay_on(b"nbd:127.0.0.1:10809"));
    assert!(shows(
        &open(&path, PathPolicy::SameDirectory).unwrap(),
        INSIDE
    ));
}

#[test]
fn the_same_directory_can_be_allowed() {
    let tree = Tree::new();
    let absolute = tree.at("sub/inside.raw").to_str().unwrap().to_owned();
    for (_, make) in KINDS {
        for name in [
            "inside.raw",
            "./inside.raw",
            "deeper/inside.raw",
            "good-link",
            "deeper/../inside.raw",
            &absolute,
        ] {
            let path = tree.put("sub/image.qcow2", &make(name.as_bytes()));
            for policy in [
                PathPolicy::SameDirectory,
                PathPolicy::from_text("same-dir"),
                PathPolicy::Within(tree.at("sub")),
            ] {
                let bytes = open(&path, policy.clone());
                let bytes = bytes.unwrap_or_else(|e| panic!("{name} by {policy:?}: {e}"));
                assert!(shows(&bytes, INSIDE) && !shows(&bytes, CANARY), "{name}");
            }
        }
        let path = tree.put("sub/image.qcow2", &make(b"deeper"));
        let opened = open(&path, PathPolicy::SameDirectory);
        assert!(
            matches!(opened, Err(Error::InvalidInput(_))),
            "a directory: {:?}",
            opened.err()
        );
        let path = tree.put("sub/image.qcow2", &make(b"missing.raw"));
        let opened = open(&path, PathPolicy::SameDirectory);
        assert!(
            matches!(opened, Err(Error::Io { .. })),
            "a missing file: {:?}",
            opened.err()
        );
    }
}

#[test]
fn a_fifo_does_not_block() {
    let tree = Tree::new();
    let made = std::process::Command::new("mkfifo")
        .arg(tree.at("sub/fifo"))
        .status();
    if !made.is_ok_and(|status| status.success()) {
        skipped("no FIFO can be made here");
        return;
    }
    let path = tree.put("sub/image.qcow2", &overlay_on(b"fifo"));
    for policy in [PathPolicy::SameDirectory, PathPolicy::DangerousAnywhere] {
        let opened = open(&path, policy);
        assert!(
            matches!(opened, Err(Error::InvalidInput(_))),
            "{:?}",
            opened.err()
        );
    }
    fails!(
        OpenOptions::new().open_path(tree.at("sub/fifo")),
        Error::InvalidInput(_),
        "neither a regular file nor a block device"
    );
    fails!(
        FileStorage::open(tree.at("sub")),
        Error::InvalidInput(_),
        "neither a regular file nor a block device"
    );
}

#[test]
fn a_policy_holds_along_the_chain() {
    let tree = Tree::new();
    // image -> deeper/middle -> ../inside.raw: relative to the directory of the one that says so.
    tree.put("sub/deeper/middle.qcow2", &overlay_on(b"../inside.raw"));
    let image = overlay_with_format(b"deeper/middle.qcow2", Some("qcow2"));
    let path = tree.put("sub/image.qcow2", &image);
    assert!(shows(
        &open(&path, PathPolicy::SameDirectory).unwrap(),
        INSIDE
    ));
    tree.put("sub/deeper/middle.qcow2", &overlay_on(b"../../canary.raw"));
    let opened = open(&path, PathPolicy::SameDirectory);
    assert!(
        matches!(opened, Err(Error::Denied { .. })),
        "{:?}",
        opened.err()
    );
}

#[test]
fn a_backing_file_is_never_probed() {
    let tree = Tree::new();
    let inner = overlay_on(b"../canary.raw");
    tree.put("sub/guest.raw", &inner);
    // What a guest wrote into a raw disk stays bytes, whatever it looks like.
    let path = tree.put("sub/image.qcow2", &overlay_on(b"guest.raw"));
    let bytes = open(&path, PathPolicy::DangerousAnywhere).unwrap();
    assert_eq!(bytes[..inner.len()], inner);
    let path = tree.put("sub/image.qcow2", &overlay_with_format(b"guest.raw", None));
    let error = open(&path, PathPolicy::DangerousAnywhere).unwrap_err();
    assert!(matches!(error, Error::InvalidInput(_)), "{error:?}");
    assert!(error.to_string().contains("format"), "{error}");
    let path = tree.put(
        "sub/image.qcow2",
        &overlay_with_format(b"guest.raw", Some("nbd")),
    );
    fails!(
        open(&path, PathPolicy::DangerousAnywhere),
        Error::InvalidInput(_),
        "unknown format"
    );
}

#[test]
fn a_chain_that_bites_its_tail_is_refused() {
    let tree = Tree::new();
    let own = overlay_with_format(b"image.qcow2", Some("qcow2"));
    let path = tree.put("sub/image.qcow2", &own);
    for policy in [PathPolicy::SameDirectory, PathPolicy::DangerousAnywhere] {
        fails!(open(&path, policy), Error::InvalidInput(_), "leads back");
    }
    let path = tree.put(
        "sub/image.qcow2",
        &overlay_with_format(b"other.qcow2", Some("qcow2")),
    );
    // By another name, so that it is the file that counts.
    fs::hard_link(&path, tree.at("sub/same.qcow2")).unwrap();
    tree.put(
        "sub/other.qcow2",
        &overlay_with_format(b"same.qcow2", Some("qcow2")),
    );
    let error = open(&path, PathPolicy::SameDirectory)
        .unwrap_err()
        .to_string();
    assert!(error.contains("leads back"), "{error}");
    let path = tree.put("sub/image.qcow2", &overlay_on(b"image.qcow2"));
    let error = open(&path, PathPolicy::SameDirectory)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("leads back"),
        "its own raw backing file: {error}"
    );
    let path = tree.put("sub/image.qcow2", &with_data_file(b"image.qcow2"));
    let error = open(&path, PathPolicy::SameDirectory)
        .unwrap_err()
        .to_string();
    assert!(error.contains("leads back"), "its own data file: {error}");
}

#[test]
fn a_chain_has_an_end() {
    let tree = Tree::new();
    for n in 1..10 {
        let name = format!("{}.qcow2", n - 1);
        let image = overlay_with_format(name.as_bytes(), Some("qcow2"));
        tree.put(&format!("sub/{n}.qcow2"), &image);
    }
    tree.put(
        "sub/0.qcow2",
        &fs::read(testdata("qcow2/good/empty.qcow2")).unwrap(),
    );
    let with_depth = |depth| {
        let mut limits = Limits::default();
        limits.chain_depth = depth;
        let options = OpenOptions::new().references(PathPolicy::SameDirectory);
        options.limits(limits).open_path(tree.at("sub/9.qcow2"))
    };
    assert!(with_depth(10).is_ok());
    let refused = with_depth(9);
    assert!(
        matches!(
            refused,
            Err(Error::LimitExceeded {
                limit: "chain_depth",
                ..
            })
        ),
        "{:?}",
        refused.err()
    );
}

#[test]
fn a_name_cannot_play_with_the_terminal() {
    let name = "\x1b]0;title\x07\u{202e}gpj\r\n.raw";
    for (_, make) in KINDS {
        let image = Arc::new(Memory::new(make(name.as_bytes())));
        let error = OpenOptions::new().open(image).unwrap_err();
        for text in [error.to_string(), error.chain(), format!("{error:?}")] {
            let odd = text.chars().find(|c| c.is_control() || *c == '\u{202e}');
            assert_eq!(odd, None, "{text:?}");
        }
    }
}

/// Answers every reference out of memory, and remembers what it was asked.
#[derive(Debug, Clone)]
struct FromMemory {
    files: Arc<Vec<(&'static str, Vec<u8>)>>,
    asked: Arc<Mutex<Vec<Reference>>>,
}

impl Resolver for FromMemory {
    fn resolve(&self, reference: &Reference) -> blockform::Result<Resolved> {
        self.asked.lock().unwrap().push(reference.clone());
        let found = self
            .files
            .iter()
            .find(|(n, _)| Some(*n) == reference.name.as_str());
        let (_, bytes) = found.ok_or_else(|| Error::invalid("no such file"))?;
        Ok(Resolved::Open {
            source: Arc::new(Memory::new(bytes.clone())),
            format: None,
            within: Arc::new(self.clone()),
        })
    }
}

#[test]
fn a_resolver_of_ones_own_is_the_only_door() {
    let middle = overlay_on(b"bottom");
    let resolver = FromMemory {
        files: Arc::new(vec![("middle", middle), ("bottom", INSIDE.repeat(10))]),
        asked: Arc::default(),
    };
    let top = overlay_with_format(b"middle", Some("qcow2"));
    let options = OpenOptions::new().resolver(Arc::new(resolver.clone()));
    let image = options.open(Arc::new(Memory::new(top))).unwrap();
    assert!(shows(&read_all(&image).unwrap(), INSIDE));
    let asked = resolver.asked.lock().unwrap();
    let names: Vec<_> = asked.iter().map(|r| r.name.as_str().unwrap()).collect();
    assert_eq!(names, ["middle", "bottom"]);
    let formats: Vec<_> = asked
        .iter()
        .map(|r| r.format.as_ref().unwrap().as_str().unwrap())
        .collect();
    assert_eq!(formats, ["qcow2", "raw"]);
}
