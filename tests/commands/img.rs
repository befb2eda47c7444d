//! The verbs of the one program `img`, and what `qemu-img` takes on its command line.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::command::{example, run};
use crate::support::testdata;

/// Runs a command line whose first word is a command.
fn call(folder: &Path, line: &str) -> Output {
    let (name, arguments) = line.split_once(' ').unwrap_or((line, ""));
    run(folder, example(name), arguments.split_whitespace())
}

/// Runs a command line that has to succeed. What it printed is returned.
fn works(folder: &Path, line: &str) -> String {
    let out = call(folder, line);
    assert!(out.status.success(), "{line}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// Runs a command line that has to fail with this exit status and exactly this line.
fn fails(folder: &Path, line: &str, status: i32, told: &str) {
    let out = call(folder, line);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(status), "{line}: {stderr}");
    assert_eq!(stderr, format!("{told}\n"), "{line}");
}

#[test]
fn a_verb_is_an_argument_or_the_end_of_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::copy(testdata("qcow2/good/plain.qcow2"), at.join("a.qcow2")).unwrap();
    for arguments in [
        "info a.qcow2",
        "check a.qcow2",
        "map a.qcow2",
        "measure -O raw a.qcow2",
        "compare a.qcow2 a.qcow2",
        "convert -O raw --content-digest md5 a.qcow2 a.raw",
    ] {
        let told = works(at, &format!("img {arguments}"));
        assert!(!told.is_empty(), "{arguments}");
        assert_eq!(works(at, &format!("img-{arguments}")), told);
        assert_eq!(works(at, &format!("qemu-img {arguments}")), told);
    }
    fails(
        at,
        "qemu-img compare a.qcow2",
        2,
        "qemu-img compare: two images are needed",
    );
    let help = works(at, "img --help");
    for verb in ["check", "compare", "convert", "info", "map", "measure"] {
        assert!(help.contains(&format!("\n  {verb}")), "{help}");
    }
}

#[test]
fn what_qemu_img_has_and_this_has_not_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for verb in [
        "amend", "bench", "bitmap", "commit", "create", "dd", "rebase", "resize", "snapshot",
    ] {
        let told = format!("qemu-img: {verb} is not supported yet: use {verb} of QEMU's qemu-img");
        fails(at, &format!("qemu-img {verb} -q a 1M"), 1, &told);
    }
    fails(
        at,
        "img paint a",
        1,
        "img: there is no verb paint; --help lists the verbs",
    );
    #[cfg(not(feature = "plan"))]
    fails(
        at,
        "img-partition seal a b",
        1,
        "img-partition: the verb partition needs a build with --features plan",
    );
    for (option, reason) in [
        ("--image-opts", "an image is named by its path"),
        ("--bitmaps", "bitmaps are not copied"),
        ("--object secret", "encrypted images are not read"),
        ("-r 1M", "the rate is not limited"),
    ] {
        let flag = option.split(' ').next().unwrap();
        let line = format!("img-convert {option} a b");
        let told = format!(
            "img-convert: the option {flag} of qemu-img is not supported: {reason} (try 'img-convert --help')"
        );
        fails(at, &line, 1, &told);
    }
}

#[test]
fn options_stand_between_names_and_the_last_of_one_kind_counts() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::copy(testdata("qcow2/good/plain.qcow2"), at.join("a.qcow2")).unwrap();
    works(at, "img-convert a.qcow2 -O raw a.raw");
    works(
        at,
        "img-convert a.qcow2 b.raw -f vmdk -O vmdk -p -f qcow2 -p -O raw",
    );
    assert!(fs::read(at.join("a.raw")).unwrap() == fs::read(at.join("b.raw")).unwrap());
    works(at, "img-compare a.qcow2 -F raw b.raw -f vmdk -f qcow2");
    works(at, "img-map --output human a.qcow2 --output json");
    works(
        at,
        "img-convert -f raw a.raw --allow-references=same-dir -O qcow2 -o backing_file=a.qcow2 -o backing_fmt=qcow2 \
         over.qcow2",
    );
    let told = works(at, "img-info over.qcow2");
    assert!(told.contains("backing file: a.qcow2"), "{told}");
    fails(
        at,
        "img-convert -O qcow2 -o backing_file=a.qcow2 -f raw a.raw x.qcow2",
        1,
        "img-convert: options backing_file and backing_fmt go together",
    );
    fails(
        at,
        "img-convert a.qcow2",
        1,
        "img-convert: SRC and DST are needed",
    );
}

#[test]
fn a_limit_that_a_message_names_has_a_flag() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::copy(testdata("qcow2/good/plain.qcow2"), at.join("a.qcow2")).unwrap();
    for command in ["info", "map", "measure"] {
        let line = format!("img-{command} --limit virtual_size=64k a.qcow2");
        let told = format!(
            "img-{command}: \"a.qcow2\": the virtual size is 1048576, over the limit virtual_size of 65536; \
             raise it with --limit virtual_size=NUMBER if the image is trusted"
        );
        fails(at, &line, 1, &told);
        works(at, &format!("{line} --limit virtual_size=1M"));
    }
    fails(
        at,
        "img-convert --limit output_bytes=4k a.qcow2 a.raw",
        1,
        "img-convert: what was written is 36864, over the limit output_bytes of 4096; raise it with \
         --limit output_bytes=NUMBER if the image is trusted",
    );
    let out = call(at, "img-info --limit colour=1 a.qcow2");
    let told = String::from_utf8(out.stderr).unwrap();
    assert!(
        told.contains("there is no such limit; the limits are metadata_bytes, "),
        "{told}"
    );
}
