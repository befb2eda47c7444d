//! `img-convert` with pipes at both ends.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::command::{example, has_qemu, must, names};

const MIB: usize = 1 << 20;

fn disk(len: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[2]
        })
        .collect();
    bytes[len / 4..len / 2].fill(0);
    bytes
}

/// `cat IMAGE | img-convert LINE | cat`.
fn piped(folder: &Path, image: &str, line: &str) -> Output {
    let file = folder.join(image);
    let mut first = Command::new("cat")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut convert = Command::new(example("img-convert"))
        .current_dir(folder)
        .args(line.split_whitespace())
        .stdin(first.stdout.take().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = Command::new("cat")
        .stdin(convert.stdout.take().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = Vec::new();
    let mut end = last.stdout.take().unwrap();
    std::io::copy(&mut end, &mut stdout).unwrap();
    assert!(last.wait().unwrap().success());
    let mut output = convert.wait_with_output().unwrap();
    output.stdout = stdout;
    let taken = first.wait().unwrap().success();
    assert!(
        taken || !output.status.success(),
        "all of a stream is taken"
    );
    output
}

fn converts(folder: &Path, image: &str, line: &str) -> Vec<u8> {
    let out = piped(folder, image, line);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && told.is_empty(), "{line}: {told}");
    out.stdout
}

fn refuses(folder: &Path, image: &str, line: &str, words: &str) {
    let before = names(folder);
    let out = piped(folder, image, line);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{line}: {told}");
    assert!(
        told.contains(words) && told.lines().count() == 1,
        "{line}: {told}"
    );
    assert_eq!(names(folder), before, "{line}");
}

#[test]
fn a_pipe_in_a_pipe_out_and_both() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bytes = disk(9 * MIB);
    fs::write(folder.join("disk.raw"), &bytes).unwrap();
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "-c"),
        ("vmdk", "-o subformat=streamOptimized"),
        ("vdi", ""),
        ("vhdx", ""),
        ("vpc", "-o force_size=on"),
        ("vpc", "-o subformat=fixed,force_size=on"),
    ] {
        must(
            folder,
            &format!("qemu-img convert -f raw -O {format} {options} disk.raw image"),
        );
        converts(folder, "image", &format!("-f {format} -O raw - out.raw"));
        assert!(
            fs::read(folder.join("out.raw")).unwrap() == bytes,
            "{format} {options}"
        );
        let out = converts(folder, "image", &format!("-f {format} -O raw - -"));
        assert!(out == bytes, "{format} {options}");
        if options != "-o subformat=fixed,force_size=on" {
            let stream = "-O vmdk -o subformat=streamOptimized";
            let out = converts(folder, "image", &format!("-f {format} {stream} - -"));
            let want = crate::support::command::run(
                folder,
                example("img-convert"),
                format!("-f {format} {stream} image -").split_whitespace(),
            );
            assert!(out == want.stdout, "{format} {options}");
        }
    }
    let out = converts(folder, "disk.raw", "-f raw - -");
    assert!(out == bytes);
    fs::remove_file(folder.join("out.raw")).unwrap();
    fs::remove_file(folder.join("image")).unwrap();
    assert_eq!(names(folder), ["disk.raw"]);
}

#[test]
fn what_standard_input_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bytes = disk(2 * MIB);
    fs::write(folder.join("disk.raw"), &bytes).unwrap();
    for (line, words) in [
        ("- out.raw", "no known image format"),
        ("-f raw -O qcow2 - out.qcow2", "say how large the disk is"),
        (
            "-f raw -O qcow2 --source-size 1M - out.qcow2",
            "were announced",
        ),
        ("-f raw -O qcow2 --source-size 2M - -", "allow a spill file"),
        (
            "-f raw -O qcow2 --spill=1M - out.qcow2",
            "a larger spill file",
        ),
        ("-f raw --verify - out.raw", "cannot be read again"),
        ("-f raw --resumable - out.raw", "cannot be read again"),
        ("-f raw - - out.raw", "cannot go with other sources"),
        ("-f raw --spill disk.raw out.raw", "about standard input"),
        ("-f vdi - out.raw", "vdi image is damaged"),
        (
            "-f raw --expect-source md5:00000000000000000000000000000000 - out.raw",
            "was expected",
        ),
    ] {
        refuses(folder, "disk.raw", line, words);
    }
    let file = example("img-convert");
    let digest = format!("md5:{:0>32}", "1");
    let out = piped(
        folder,
        "disk.raw",
        "-f raw -O qcow2 --source-size 2M --source-digest md5 - a.qcow2",
    );
    let told = String::from_utf8(out.stdout).unwrap();
    assert!(
        out.status.success() && told.starts_with("source md5:"),
        "{told} {digest}"
    );
    for line in [
        "-f raw -O qcow2 disk.raw b.qcow2",
        "-f raw -O qcow2 disk.raw c.qcow2",
    ] {
        assert!(
            crate::support::command::run(folder, &file, line.split_whitespace())
                .status
                .success()
        );
    }
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    assert!(read("a.qcow2") == read("b.qcow2"));
    converts(folder, "disk.raw", "-f raw -O qcow2 --spill - c.qcow2");
    assert!(read("c.qcow2") == read("b.qcow2"));
    let out = converts(folder, "disk.raw", "-f raw -O qcow2 --spill - -");
    let again = crate::support::command::run(
        folder,
        &file,
        "-f raw -O qcow2 disk.raw -".split_whitespace(),
    );
    assert!(out == again.stdout);
}

#[test]
fn a_stalled_stream_can_be_interrupted() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut convert = Command::new(example("img-convert"))
        .current_dir(folder)
        .args(["-f", "raw", "-", "out.raw"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = convert.stdin.take().unwrap();
    stdin.write_all(&disk(3 * MIB)).unwrap();
    let begun = Instant::now();
    while names(folder).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = convert.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let out = convert.wait_with_output().unwrap();
    drop(stdin);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.code() == Some(1) && told.contains("cancelled"),
        "{told}"
    );
    assert!(names(folder).is_empty(), "{:?}", names(folder));
}

#[test]
fn the_file_behind_standard_input_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("disk.raw"), disk(MIB)).unwrap();
    let out = Command::new(example("img-convert"))
        .current_dir(folder)
        .args(["-f", "raw", "-n", "-", "disk.raw"])
        .stdin(File::open(folder.join("disk.raw")).unwrap())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && told.contains("is read by the conversion"),
        "{told}"
    );
}
