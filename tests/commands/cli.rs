//! The commands as scripts and people use them: exit status, messages, policy, and what is left
//! behind.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::support::command::{example, has_qemu, must, names, run};

const MIB: usize = 1 << 20;

fn convert(folder: &Path, line: &str) -> Output {
    run(folder, example("img-convert"), line.split_whitespace())
}

/// Runs img-convert; it has to succeed, and to say nothing.
fn converts(folder: &Path, line: &str) {
    let out = convert(folder, line);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{line}: {told}");
    assert!(out.stdout.is_empty() && told.is_empty(), "{line}: {out:?}");
}

/// Runs img-convert; it has to fail with exit status 1 and one line that holds `words`, and to
/// change nothing in the folder.
fn refuses(folder: &Path, line: &str, words: &str) {
    let before = contents(folder);
    let out = convert(folder, line);
    told_in_one_line("img-convert", line, &out, words);
    assert!(
        contents(folder) == before,
        "{line} changed {:?}",
        names(folder)
    );
}

fn told_in_one_line(command: &str, line: &str, out: &Output, words: &str) {
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{line}: {told}");
    assert!(told.contains(words), "{line}: {told}");
    assert!(told.starts_with(&format!("{command}: ")), "{line}: {told}");
    assert_eq!(told.matches('\n').count(), 1, "{line}: {told}");
}

fn contents(folder: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let names = names(folder).into_iter();
    names
        .map(|name| (name.clone(), fs::read(folder.join(name)).ok()))
        .collect()
}

/// Bytes with data, zeros, and more data, that pack well but not to nothing.
fn disk(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut bytes: Vec<u8> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"abcdefgh"[(state >> 29) as usize]
        })
        .collect();
    bytes[len / 4..len / 2].fill(0);
    bytes
}

fn folder_with_disk() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let bytes = disk(2 * MIB);
    fs::write(folder.path().join("disk.raw"), &bytes).unwrap();
    (folder, bytes)
}

#[test]
fn wrong_arguments_are_told_in_one_line() {
    let (folder, _) = folder_with_disk();
    for (line, words) in [
        ("", "SRC"),
        ("disk.raw", "DST"),
        ("--no-such-flag disk.raw out", "--no-such-flag"),
        ("-f raw -t sometimes disk.raw out", "sometimes"),
        ("-f raw -S 5 disk.raw out", "multiple of 512"),
        ("-f raw -S lots disk.raw out", "size such as 4k"),
        ("-f raw -m 0 disk.raw out", "-m"),
        ("-f raw --target-is-zero disk.raw out", "requires -n"),
        ("-f raw -n -o size=1 disk.raw out", "-o has no meaning"),
        ("-f raw -O qcow2 -B disk.raw disk.raw out", "-F"),
        ("-f raw -O qcow2 -F raw disk.raw out", "-B"),
        ("-f raw -l x disk.raw disk.raw out", "-l has no meaning"),
        (
            "-f raw -O qcow2 -B x -F raw disk.raw disk.raw out",
            "-B has no",
        ),
        ("-f raw -O nonsense disk.raw out", "nonsense"),
        ("-f nonsense disk.raw out", "nonsense"),
        ("-f raw -o speed=9 disk.raw out", "speed"),
        ("-f raw -o =9 disk.raw out", "without a name"),
    ] {
        refuses(folder.path(), line, words);
    }
    let empty = run(folder.path(), example("img-convert"), ["disk.raw", ""]);
    told_in_one_line("img-convert", "''", &empty, "cannot be empty");
    for (line, words) in [
        (vec![], "FILE"),
        (vec![""], "cannot be empty"),
        (vec!["--output", "xml", "disk.raw"], "xml"),
    ] {
        let out = run(folder.path(), example("img-info"), &line);
        told_in_one_line("img-info", &line.join(" "), &out, words);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let folder = tempfile::tempdir().unwrap();
    for command in [
        "img-info",
        "img-convert",
        "img-compare",
        "img-map",
        "img-measure",
    ] {
        for flag in ["--help", "--version"] {
            let out = run(folder.path(), example(command), [flag]);
            assert_eq!(out.status.code(), Some(0));
            assert!(out.stderr.is_empty());
            assert!(String::from_utf8_lossy(&out.stdout).contains(command));
        }
    }
}

#[test]
fn a_failure_leaves_nothing_and_an_existing_output_as_it_was() {
    let (folder, _) = folder_with_disk();
    let at = folder.path();
    fs::create_dir(at.join("folder")).unwrap();
    fs::write(at.join("bad.qcow2"), b"QFI\xfb\0\0\0\x03 and nothing more").unwrap();
    fs::write(at.join("precious"), b"precious").unwrap();
    for destination in ["out", "precious"] {
        for (source, words) in [
            ("absent", "absent"),
            ("folder", "neither a regular file"),
            ("disk.raw", "-f raw"),
            ("bad.qcow2", "qcow2"),
            ("json:{}", "No such file"),
            ("nbd://127.0.0.1/x", "No such file"),
        ] {
            refuses(at, &format!("{source} {destination}"), words);
        }
        refuses(at, &format!("-f qcow2 disk.raw {destination}"), "qcow2");
    }
    refuses(at, "-f raw disk.raw no/such/folder/out", "no/such/folder");
    refuses(at, "-f raw disk.raw folder", "folder");
}

#[test]
fn what_a_name_holds_does_not_steer_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[31m\nFAKE: ok\u{202e}";
    for command in ["img-info", "img-convert"] {
        let out = run(folder.path(), example(command), [name, "out"]);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1));
        assert!(
            !told.lines().any(|line| line.starts_with("FAKE")),
            "{told:?}"
        );
        assert!(!told.contains(['\u{1b}', '\u{202e}']), "{told:?}");
    }
}

#[test]
fn content_survives_every_way() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    for flags in [
        "-O raw",
        "-O qcow2",
        "-O qcow2 -c",
        "-O qcow2 -o cluster_size=4k -m 1 -W -U -T none -t unsafe",
        "-O qcow2 -m 3 -S 64k -t none -q",
    ] {
        converts(at, &format!("-f raw {flags} disk.raw one"));
        let format = if flags.contains("qcow2") {
            ""
        } else {
            "-f raw"
        };
        converts(at, &format!("{format} one two"));
        assert!(fs::read(at.join("two")).unwrap() == bytes, "{flags}");
        assert_eq!(names(at), ["disk.raw", "one", "two"]);
    }
}

#[test]
fn the_result_is_the_same_for_any_number_of_threads() {
    let (folder, _) = folder_with_disk();
    let at = folder.path();
    for threads in [1, 2, 5] {
        converts(
            at,
            &format!("-f raw -O qcow2 -c -m {threads} disk.raw {threads}"),
        );
    }
    let read = |name: &str| fs::read(at.join(name)).unwrap();
    assert!(read("1") == read("2") && read("1") == read("5"));
}

#[test]
fn several_sources_are_one_disk() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    converts(at, "-f raw -O qcow2 disk.raw disk.raw two.qcow2");
    converts(at, "two.qcow2 two.raw");
    assert!(fs::read(at.join("two.raw")).unwrap() == [bytes.clone(), bytes].concat());
}

#[test]
fn an_image_is_not_converted_onto_itself() {
    let (folder, _) = folder_with_disk();
    let at = folder.path();
    fs::hard_link(at.join("disk.raw"), at.join("hard-link")).unwrap();
    let mut names = vec!["disk.raw", "./disk.raw", "hard-link"];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("disk.raw", at.join("link")).unwrap();
        names.push("link");
    }
    for name in names {
        for flags in ["-O raw", "-O qcow2", "-n"] {
            refuses(at, &format!("-f raw {flags} disk.raw {name}"), "is read by");
        }
        refuses(
            at,
            &format!("-f raw disk.raw disk.raw {name}"),
            "is read by",
        );
    }
}

#[test]
fn a_link_is_followed_and_stays() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    fs::write(at.join("file"), b"old").unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("file", at.join("link")).unwrap();
        converts(at, "-f raw disk.raw link");
        assert!(fs::symlink_metadata(at.join("link")).unwrap().is_symlink());
        assert!(fs::read(at.join("file")).unwrap() == bytes);
    }
}

#[test]
fn zeros_become_holes_unless_they_are_wanted() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let allocated = |name: &str| fs::metadata(at.join(name)).unwrap().blocks() * 512;
        converts(at, "-f raw disk.raw sparse");
        converts(at, "-f raw -S 0 disk.raw full");
        let whole = bytes.len() as u64;
        assert!(allocated("sparse") < whole - whole / 5);
        assert!(allocated("full") >= whole);
        assert!(fs::read(at.join("full")).unwrap() == bytes);
        assert!(fs::read(at.join("sparse")).unwrap() == bytes);
    }
}

#[test]
fn an_existing_target_is_filled_in_place() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    refuses(at, "-f raw -n disk.raw absent", "absent");
    fs::write(at.join("small"), vec![9; MIB]).unwrap();
    refuses(at, "-f raw -n disk.raw small", "small");

    fs::write(at.join("large"), vec![9; 3 * MIB]).unwrap();
    converts(at, "-f raw -n disk.raw large");
    let large = fs::read(at.join("large")).unwrap();
    assert!(large[..2 * MIB] == bytes);
    assert_eq!(large.len(), 3 * MIB);

    let zero = fs::File::create(at.join("zero")).unwrap();
    zero.set_len(2 * MIB as u64).unwrap();
    converts(at, "-f raw -n --target-is-zero disk.raw zero");
    assert!(fs::read(at.join("zero")).unwrap() == bytes);
}

#[test]
fn progress_is_told_as_scripts_parse_it() {
    let (folder, _) = folder_with_disk();
    let at = folder.path();
    let out = convert(at, "-f raw -p -O qcow2 disk.raw out");
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.starts_with("    (0.00/100%)\r"), "{text:?}");
    assert!(text.ends_with("    (100.00/100%)\r\n"), "{text:?}");
    let mut last = -1.0;
    for part in text.trim_end_matches("\r\n").split('\r') {
        let number = part.strip_prefix("    (").unwrap();
        let number: f64 = number.strip_suffix("/100%)").unwrap().parse().unwrap();
        assert!(number > last, "{text:?}");
        last = number;
    }
    converts(at, "-f raw -p -q -O qcow2 disk.raw out");
    let out = convert(at, "-f qcow2 -p disk.raw other");
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stdout.is_empty(), "{out:?}");
}

#[test]
fn a_backing_file_to_be_named_needs_permission_like_one_that_is_named() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    let mut changed = bytes;
    changed[MIB + 70_000] ^= 1;
    fs::write(at.join("changed.raw"), &changed).unwrap();
    fs::create_dir(at.join("sub")).unwrap();
    let line = "-f raw -O qcow2 -B disk.raw -F raw changed.raw overlay.qcow2";
    refuses(at, line, "--allow-references=same-dir");
    refuses(at, &format!("--allow-references=none {line}"), "same-dir");
    converts(at, &format!("--allow-references=same-dir {line}"));
    assert!(fs::metadata(at.join("overlay.qcow2")).unwrap().len() < MIB as u64);

    refuses(at, "overlay.qcow2 out", "--allow-references=same-dir");
    refuses(at, "--allow-references=sub overlay.qcow2 out", "disk.raw");
    for policy in ["same-dir", ".", "anywhere"] {
        converts(
            at,
            &format!("--allow-references={policy} overlay.qcow2 out"),
        );
        assert!(fs::read(at.join("out")).unwrap() == changed);
        fs::remove_file(at.join("out")).unwrap();
    }

    // The name is relative to where the overlay lies, not to where the command runs.
    let line = "-f raw -O qcow2 -F raw changed.raw sub/overlay.qcow2";
    refuses(
        at,
        &format!("--allow-references=. -B disk.raw {line}"),
        "disk.raw",
    );
    refuses(
        at,
        &format!("--allow-references=same-dir -B ../disk.raw {line}"),
        "disk.raw",
    );
    converts(at, &format!("--allow-references=. -B ../disk.raw {line}"));
    converts(at, "--allow-references=. sub/overlay.qcow2 out");
    assert!(fs::read(at.join("out")).unwrap() == changed);
    let info = run(at, example("img-info"), ["sub/overlay.qcow2"]);
    let text = String::from_utf8(info.stdout).unwrap();
    assert!(text.contains("backing file: ../disk.raw (actual path: sub/../disk.raw)\n"));
    assert!(text.contains("backing file format: raw\n"));
}

#[test]
fn a_snapshot_is_named_by_its_id_or_its_name() {
    if !has_qemu() {
        return;
    }
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    converts(at, "-f raw -O qcow2 disk.raw disk.qcow2");
    must(at, "qemu-img snapshot -c before disk.qcow2");
    let write = run(at, "qemu-io", ["-c", "write -P 7 0 64k", "disk.qcow2"]);
    assert!(write.status.success(), "{write:?}");
    for selector in ["before", "1", "snapshot.name=before", "snapshot.id=1"] {
        converts(at, &format!("-l {selector} disk.qcow2 out"));
        assert!(fs::read(at.join("out")).unwrap() == bytes);
        fs::remove_file(at.join("out")).unwrap();
    }
    refuses(at, "-l after disk.qcow2 out", "after");
    refuses(at, "-l snapshot.id=before disk.qcow2 out", "before");
    refuses(at, "-f raw -l before disk.raw out", "snapshot");
}

#[test]
fn files_that_can_be_described_are_described_beside_one_that_cannot() {
    let (folder, _) = folder_with_disk();
    let at = folder.path();
    let out = run(at, example("img-info"), ["disk.raw", "absent", "disk.raw"]);
    told_in_one_line("img-info", "disk.raw absent", &out, "\"absent\": ");
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.matches("image: disk.raw\n").count(), 2);
    assert_eq!(text.matches("\n\nimage: ").count(), 1);
    let files = ["--output=json", "disk.raw", "absent", "disk.raw"];
    let out = run(at, example("img-info"), files);
    assert_eq!(out.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
}

/// Runs a line of the shell in a folder that has `img-convert` in its path; returns its exit status,
/// which is that of the first command of a pipe that fails, and what it said on standard error.
#[cfg(unix)]
fn shell(folder: &Path, line: &str) -> (Option<i32>, String) {
    let bin = example("img-convert");
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", bin.parent().unwrap().display());
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {line}")]);
    let out = command
        .current_dir(folder)
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(out.stdout.is_empty(), "{line}: {out:?}");
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[cfg(unix)]
#[test]
fn every_format_goes_through_a_pipe() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    let pipe = |line: &str| assert_eq!(shell(at, line), (Some(0), String::new()), "{line}");
    for (format, options) in [
        ("raw", ""),
        ("qcow2", ""),
        ("qcow2", "-o compat=0.10"),
        ("qcow2", "-o extended_l2=on"),
        ("vpc", "-o force_size=on"),
        ("vpc", "-o force_size=on,subformat=fixed"),
        ("vhdx", ""),
        ("vhdx", "-o subformat=fixed"),
        ("vdi", ""),
        ("vdi", "-o static=on"),
        ("vmdk", ""),
        #[cfg(feature = "zlib")]
        ("vmdk", "-o subformat=streamOptimized"),
    ] {
        let convert = |more: &str| format!("img-convert -f raw -O {format} {options} {more}");
        pipe(&convert("disk.raw - | cat > piped"));
        pipe(&convert("disk.raw - > file"));
        pipe(&format!("img-convert -f {format} piped back"));
        assert!(
            fs::read(at.join("back")).unwrap() == bytes,
            "{format} {options}"
        );
        assert!(fs::read(at.join("file")).unwrap() == fs::read(at.join("piped")).unwrap());
        // Where no zeros are searched for, files and streams are the same, but for the name in a VMDK.
        pipe(&convert("-S 0 disk.raw disk.vmdk"));
        pipe(&convert("-S 0 disk.raw - | cmp - disk.vmdk"));
        if has_qemu() {
            must(
                at,
                &format!("qemu-img compare -f raw -F {format} disk.raw piped"),
            );
        }
        fs::remove_file(at.join("piped")).unwrap();
    }
    pipe("img-convert -f raw disk.raw - | cmp - disk.raw");
    pipe("img-convert -f raw disk.raw ./- && cmp ./- disk.raw && rm ./-");
    // What stands in the file already stays.
    pipe(
        "printf abc > some && img-convert -f raw disk.raw - >> some && tail -c +4 some | cmp - disk.raw",
    );
    let overlay = "--allow-references=same-dir -O qcow2 -B base.raw -F raw disk.raw -";
    pipe(&format!(
        "cp disk.raw base.raw; img-convert -f raw {overlay} | cat > overlay"
    ));
    pipe("img-convert --allow-references=same-dir overlay - | cmp - disk.raw");
}

#[cfg(unix)]
#[test]
fn standard_output_has_the_image_and_nothing_else() {
    let (folder, bytes) = folder_with_disk();
    let at = folder.path();
    let (code, told) = shell(at, "img-convert -f raw -p disk.raw - | cmp - disk.raw");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.starts_with("    (0.00/100%)\r"), "{told:?}");
    assert!(told.ends_with("    (100.00/100%)\r\n"), "{told:?}");
    for (line, words) in [
        ("-n disk.raw - > out", "-n has no meaning"),
        ("-n --target-is-zero disk.raw - > out", "-n has no meaning"),
        ("--target-is-zero disk.raw - > out", "requires -n"),
        ("-t none disk.raw - > out", "-t has no meaning"),
        ("-t directsync disk.raw - > out", "-t has no meaning"),
        (
            "-O vmdk -o subformat=monolithicFlat disk.raw - > out",
            "2 files",
        ),
        ("absent - > out", "absent"),
        (
            "disk.raw - >> disk.raw",
            "is a file that the conversion reads",
        ),
        #[cfg(feature = "zlib")]
        ("-O qcow2 -c disk.raw - > out", "streamOptimized"),
    ] {
        let (code, told) = shell(at, &format!("img-convert -f raw {line}"));
        assert_eq!(code, Some(1), "{line}: {told}");
        assert!(told.contains(words), "{line}: {told}");
        assert_eq!(told.matches('\n').count(), 1, "{line}: {told}");
        let out = fs::read(at.join("out")).unwrap_or_default();
        assert!(out.is_empty(), "{line} wrote something");
    }
    assert!(fs::read(at.join("disk.raw")).unwrap() == bytes);
    assert!(!at.join("-").exists());
    for format in ["raw", "qcow2"] {
        let line =
            format!("img-convert -f raw -O {format} disk.raw - | head -c 100000 | wc -c >&2");
        let (code, told) = shell(at, &line);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("its reader has gone away"), "{told}");
        assert!(told.contains("100000\n"), "{told}");
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_does_not_read_cannot_keep_a_conversion_from_being_stopped() {
    let (folder, _) = folder_with_disk();
    let at = folder.path();
    let mut child = std::process::Command::new(example("img-convert"))
        .args(["-f", "raw", "disk.raw", "-"])
        .current_dir(at)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let unread = child.stdout.take();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the pipe took it all");
    must(at, &format!("kill -TERM {}", child.id()));
    let start = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed().as_secs() > 20 {
            child.kill().unwrap();
            panic!("it waits for its reader");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let out = child.wait_with_output().unwrap();
    told_in_one_line("img-convert", "TERM", &out, "cancelled");
    drop(unread);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("disk.raw"), disk(96 * MIB)).unwrap();
    fs::write(at.join("out"), b"precious").unwrap();
    let before = names(at);
    for signal in ["TERM", "INT", "HUP"] {
        let mut child = Command::new(example("img-convert"))
            .args([
                "-f", "raw", "-O", "qcow2", "-c", "-m", "1", "disk.raw", "out",
            ])
            .current_dir(at)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let running = |child: &mut std::process::Child| child.try_wait().unwrap().is_none();
        while names(at) == before && running(&mut child) && start.elapsed().as_secs() < 20 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_ne!(names(at), before, "the output was never begun");
        must(at, &format!("kill -{signal} {}", child.id()));
        let out = child.wait_with_output().unwrap();
        told_in_one_line("img-convert", signal, &out, "cancelled");
        assert_eq!(names(at), before);
        assert_eq!(fs::read(at.join("out")).unwrap(), b"precious");
    }
}

#[cfg(all(feature = "zlib", feature = "checksum"))]
#[test]
fn several_images_and_the_digest_come_from_one_read() {
    let (folder, bytes) = folder_with_disk();
    let folder = folder.path();
    let line = "-f raw --also vhdx,block_size=1M:b.vhdx --also raw:c.raw \
                --content-digest sha256 -O qcow2 disk.raw a.qcow2";
    let out = convert(folder, line);
    assert!(out.status.success(), "{out:?}");
    let told = String::from_utf8(out.stdout).unwrap();
    let digest = told.trim();
    assert!(digest.starts_with("content-sha256:"), "{told}");
    assert_eq!(fs::read(folder.join("c.raw")).unwrap(), bytes);
    let line = "-q -f raw --source-digest md5 disk.raw quiet.raw";
    converts(folder, line);
    let told = |line: &str| String::from_utf8(convert(folder, line).stdout).unwrap();
    let told = told("-f raw --source-digest sha256 --target-digest sha256 disk.raw same.raw");
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    assert_eq!(
        lines[0].replace("source ", ""),
        lines[1].replace("target ", "")
    );
    let expect = format!("--expect-content {digest} -O raw");
    converts(folder, &format!("-q {expect} b.vhdx d.raw"));
    assert_eq!(fs::read(folder.join("d.raw")).unwrap(), bytes);
    fs::write(folder.join("other.raw"), &bytes[1..]).unwrap();
    refuses(
        folder,
        &format!("{expect} -f raw other.raw e.raw"),
        "was expected",
    );
    refuses(
        folder,
        "-f raw --also raw:./a.out disk.raw a.out",
        "two files",
    );
    // What goes wrong with one leaves the others only if that is said.
    let line = "-f raw --also vhdx:none/b.vhdx disk.raw f.raw";
    refuses(folder, line, "none/b.vhdx");
}
