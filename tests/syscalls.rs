//! The commands under a system that fails them, interrupts them, or kills them at any call.
//!
//! It takes strace, and leave to trace: without the two, nothing is tried.

#![cfg(all(target_os = "linux", feature = "zlib", feature = "zstd"))]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

mod support;

use std::fs;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use blockform::convert::ConvertOptions;
use blockform::storage::FileStorage;
use blockform::{OpenOptions, PathPolicy};
use support::command::{example, names};
use support::faults::{figure, thorough};
use support::{Rng, has_tool, read_all, sample_disk, skipped};

const OLD: &[u8] = b"what was there before";

/// Returns true if a program can be traced here.
fn can_trace() -> bool {
    if !has_tool("strace") {
        return false;
    }
    let traced = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status();
    let may = traced.is_ok_and(|status| status.success());
    if !may {
        skipped("nothing may be traced here");
    }
    may
}

/// Conversions that are tried: the arguments, and the format that comes of it.
fn ways() -> Vec<(&'static str, &'static str)> {
    let all = vec![
        ("-O raw", "raw"),
        ("-O qcow2", "qcow2"),
        ("-O vmdk -o subformat=streamOptimized", "vmdk"),
        ("-O qcow2 -c", "qcow2"),
        ("-O qcow2 -o preallocation=falloc", "qcow2"),
        ("-O raw -S 0", "raw"),
        ("-O vmdk", "vmdk"),
        ("-O vmdk -o subformat=monolithicFlat", "vmdk"),
        ("-O vmdk -o subformat=twoGbMaxExtentSparse", "vmdk"),
        ("-O vhd", "vhd"),
        ("-O vhd -o subformat=fixed", "vhd"),
        ("-O vhdx", "vhdx"),
        ("-O vdi", "vdi"),
        ("-O ova", "ova"),
    ];
    match thorough() {
        true => all,
        false => all.into_iter().take(4).collect(),
    }
}

/// A folder with a source, and something at the destination if `old`.
struct Bench {
    folder: tempfile::TempDir,
    content: Vec<u8>,
    log: tempfile::NamedTempFile,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut content = sample_disk(8, 500_000);
        content.resize(1 << 20, 0);
        fs::write(folder.path().join("src.raw"), &content).unwrap();
        let log = tempfile::NamedTempFile::new().unwrap();
        Bench {
            folder,
            content,
            log,
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes all but the source, and puts something where the result goes.
    fn reset(&self) {
        for name in names(self.path())
            .into_iter()
            .filter(|name| name != "src.raw")
        {
            fs::remove_file(self.path().join(name)).unwrap();
        }
        fs::write(self.path().join("out"), OLD).unwrap();
    }

    fn command(&self, way: &str) -> Vec<String> {
        let convert = example("img-convert").to_str().unwrap().to_owned();
        let words = format!("-f raw -m 1 {way} src.raw out");
        let words = words.split(' ').map(str::to_owned);
        std::iter::once(convert).chain(words).collect()
    }

    /// Converts with that trouble; whether the trouble came.
    fn trouble(&self, way: &str, call: &str, trouble: &str) -> (Output, bool) {
        let inject = format!("inject={call}:{trouble}");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-o"])
            .arg(self.log.path())
            .args(["-e", &format!("trace={call}"), "-e", &inject])
            .args(self.command(way))
            .current_dir(self.path())
            .env("RUST_BACKTRACE", "0");
        let output = strace.output().unwrap();
        let log = fs::read(self.log.path()).unwrap();
        let log = String::from_utf8_lossy(&log);
        let came = log.contains("(INJECTED)") || log.contains("killed by SIGKILL");
        (output, came)
    }

    /// Returns true if the image is there, whole.
    fn is_whole(&self, format: &str) -> bool {
        let options = OpenOptions::new().format(format);
        let image = options
            .references(PathPolicy::SameDirectory)
            .open_path(self.path().join("out"));
        let Ok(read) = image.and_then(|image| read_all(&image)) else {
            return false;
        };
        read.starts_with(&self.content)
    }

    fn is_old(&self) -> bool {
        fs::read(self.path().join("out")).unwrap() == OLD
    }

    /// Files besides the source and the result.
    fn leftovers(&self) -> Vec<String> {
        let names = names(self.path()).into_iter();
        names.filter(|name| name.starts_with('.')).collect()
    }
}

/// Calls that a conversion makes after it was loaded.
const CALLS: [&str; 10] = [
    "pread64",
    "pwrite64",
    "fsync",
    "ftruncate",
    "fallocate",
    "rename",
    "lseek",
    "openat",
    "statx",
    "chmod",
];

/// The numbers of calls to try: all, or a few.
fn numbers(rng: &mut Rng) -> Box<dyn Iterator<Item = u64>> {
    match thorough() {
        true => Box::new(1..),
        false => {
            let first = 1 + rng.below(3);
            Box::new((first..).step_by(5))
        }
    }
}

#[test]
fn a_call_that_fails_is_told_and_leaves_what_was_there() {
    if !can_trace() {
        return;
    }
    let bench = Bench::new();
    let mut rng = Rng(1);
    let mut tried = 0;
    for (way, format) in ways() {
        for call in CALLS {
            let errors: &[&str] = match call {
                "pwrite64" | "fallocate" | "ftruncate" => &["EIO", "ENOSPC"],
                _ => &["EIO"],
            };
            for error in errors {
                for number in numbers(&mut rng) {
                    bench.reset();
                    let trouble = format!("error={error}:when={number}");
                    let (output, came) = bench.trouble(way, call, &trouble);
                    let told = String::from_utf8_lossy(&output.stderr).into_owned();
                    let about = format!("{way}: {call} {number} fails with {error}: {told}");
                    match output.status.code() {
                        Some(0) => assert!(bench.is_whole(format), "{about}"),
                        Some(1) => {
                            assert!(bench.is_old() || bench.is_whole(format), "{about}");
                            assert_eq!(told.lines().count(), 1, "{about}");
                        }
                        // The system's loader gave up.
                        Some(127) => assert!(bench.is_old(), "{about}"),
                        code => panic!("{about}: {code:?} {:?}", output.status.signal()),
                    }
                    let must_tell = ["pwrite64", "fsync", "ftruncate", "rename"];
                    let succeeded = output.status.success();
                    assert!(!came || !must_tell.contains(&call) || !succeeded, "{about}");
                    assert_eq!(bench.leftovers(), [""; 0], "{about}");
                    if !came {
                        assert!(succeeded, "{about}");
                        break;
                    }
                    tried += 1;
                }
            }
        }
    }
    figure("system calls that failed", tried);
    assert!(tried > 20, "{tried}");
}

#[test]
fn a_call_that_is_interrupted_is_made_again() {
    if !can_trace() {
        return;
    }
    let bench = Bench::new();
    let mut rng = Rng(2);
    let mut tried = 0;
    for (way, format) in ways() {
        for call in ["pread64", "pwrite64", "fsync", "ftruncate", "fallocate"] {
            for number in numbers(&mut rng) {
                // What loads the program does not call again.
                let number = if call == "pread64" {
                    number + 2
                } else {
                    number
                };
                bench.reset();
                let trouble = format!("error=EINTR:when={number}");
                let (output, came) = bench.trouble(way, call, &trouble);
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                let about = format!("{way}: {call} {number} is interrupted: {told}");
                assert!(output.status.success() && bench.is_whole(format), "{about}");
                if !came {
                    break;
                }
                tried += 1;
            }
        }
    }
    figure("system calls that were interrupted", tried);
    assert!(tried > 5, "{tried}");
}

#[test]
fn whoever_is_killed_leaves_the_old_file_or_the_new_one() {
    if !can_trace() {
        return;
    }
    let bench = Bench::new();
    let mut rng = Rng(3);
    let mut tried = 0;
    for (way, format) in ways() {
        for call in ["pwrite64", "fsync", "ftruncate", "rename", "fallocate"] {
            for number in numbers(&mut rng) {
                bench.reset();
                let trouble = format!("signal=SIGKILL:when={number}");
                let (_, came) = bench.trouble(way, call, &trouble);
                let about = format!("{way}: killed at {call} {number}");
                // An image of several files gets its own name last: what it names is there then.
                assert!(bench.is_old() || bench.is_whole(format), "{about}");
                if !came {
                    break;
                }
                tried += 1;
            }
        }
    }
    figure("kills", tried);
    assert!(tried > 5, "{tried}");
}

#[test]
fn whoever_was_killed_goes_on_to_the_same_bytes() {
    if !can_trace() {
        return;
    }
    let bench = Bench::new();
    let mut rng = Rng(4);
    let mut tried = 0;
    for (way, _) in ways() {
        bench.reset();
        let convert = |way: &str| {
            let words = bench.command(way);
            let mut command = Command::new(&words[0]);
            let output = command.args(&words[1..]).current_dir(bench.path()).output();
            let output = output.unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{way}: {told}");
            let contents = names(bench.path()).into_iter();
            let contents: Vec<(String, Vec<u8>)> = contents
                .map(|name| (name.clone(), fs::read(bench.path().join(name)).unwrap()))
                .collect();
            contents
        };
        let whole = convert(way);
        let resumed = format!("{way} --resumable");
        for call in [
            "pwrite64",
            "write",
            "fsync",
            "fdatasync",
            "ftruncate",
            "rename",
            "unlink",
        ] {
            for number in numbers(&mut rng) {
                bench.reset();
                let trouble = format!("signal=SIGKILL:when={number}");
                let (_, came) = bench.trouble(&resumed, call, &trouble);
                let about = format!("{way}: killed at {call} {number}");
                assert!(convert(&resumed) == whole, "{about}, and gone on with");
                if !came {
                    break;
                }
                tried += 1;
            }
        }
    }
    figure("kills and resumptions", tried);
    assert!(tried > 5, "{tried}");
}

/// The conversion that the next test kills: it is called as a program of its own.
#[test]
fn a_child_converts() {
    let Some(format) = std::env::var_os("BLOCKFORM_CHILD_TO") else {
        return;
    };
    let source = FileStorage::open("src.raw").unwrap();
    let options = ConvertOptions::to(format.to_str().unwrap());
    let options = options.resumable(128 << 10);
    let options = options.threads(NonZeroUsize::new(1).unwrap());
    options.convert_to_path(&source, "out").unwrap();
}

/// Ranges that a log of calls says were written to a file since it was last synced, and before.
fn written(log: &str, file: &str) -> [Vec<Range<u64>>; 2] {
    let (mut synced, mut since) = (Vec::new(), Vec::new());
    for line in log
        .lines()
        .filter(|line| line.contains(&format!("/{file}>")))
    {
        if line.contains("sync(") {
            synced.append(&mut since);
        }
        let Some((_, end)) = line
            .split_once("pwrite64(")
            .and_then(|(_, l)| l.rsplit_once(") = "))
        else {
            continue;
        };
        let Ok(len) = end.trim().parse::<u64>() else {
            continue;
        };
        let at = line
            .rsplit_once(") = ")
            .unwrap()
            .0
            .rsplit_once(", ")
            .unwrap()
            .1;
        let at: u64 = at.parse().unwrap();
        since.push(at..at + len);
    }
    [synced, since]
}

/// A machine that stops loses what was not synced, or some of it: it can be gone on all the same.
#[test]
fn what_a_machine_lost_is_done_again() {
    if !can_trace() {
        return;
    }
    let bench = Bench::new();
    // Some segments, so that there are checkpoints between them.
    let disk = sample_disk(31, 5 << 20);
    fs::write(bench.path().join("src.raw"), &disk).unwrap();
    let mut rng = Rng(5);
    let mut tried = 0;
    let part = bench.path().join(".out.part");
    let child = |format: &str| {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-y", "-o"])
            .arg(bench.log.path())
            .args(["-e", "trace=pwrite64,write,fsync,fdatasync,ftruncate"])
            .current_dir(bench.path())
            .env("BLOCKFORM_CHILD_TO", format);
        command
    };
    let test = std::env::current_exe().unwrap();
    let arguments = ["a_child_converts", "--exact", "--test-threads=1"];
    let formats = if thorough() {
        vec!["qcow2", "raw", "vhdx", "vdi", "vmdk", "vhd"]
    } else {
        vec!["qcow2"]
    };
    for format in formats {
        bench.reset();
        assert!(
            child(format)
                .arg(&test)
                .args(arguments)
                .status()
                .unwrap()
                .success()
        );
        let whole = fs::read(bench.path().join("out")).unwrap();
        for call in ["pwrite64", "fsync", "fdatasync"] {
            for number in numbers(&mut rng) {
                bench.reset();
                let inject = format!("inject={call}:signal=SIGKILL:when={number}");
                let mut killed = child(format);
                let killed = killed.args(["-e", &inject]).arg(&test).args(arguments);
                let finished = killed.output().unwrap().status.success();
                let log = fs::read(bench.log.path()).unwrap();
                let [synced, since] = written(&String::from_utf8_lossy(&log), ".out.part");
                if let (Ok(mut bytes), false) = (fs::read(&part), finished) {
                    // Sectors that were not synced are lost, each or not.
                    let all = rng.below(2) == 0;
                    for at in since.iter().flat_map(|range| range.clone().step_by(512)) {
                        let sector = at..at + 512;
                        let safe = synced
                            .iter()
                            .any(|s| s.start < sector.end && sector.start < s.end);
                        let lost = !safe && (all || rng.below(2) == 0);
                        let (start, end) = (
                            usize::try_from(at).unwrap(),
                            usize::try_from(at + 512).unwrap(),
                        );
                        if lost && end <= bytes.len() {
                            bytes[start..end].fill(0);
                        }
                    }
                    fs::write(&part, bytes).unwrap();
                    tried += 1;
                }
                let again = child(format).arg(&test).args(arguments).output().unwrap();
                let about = format!("{format}: {call} {number}");
                assert!(again.status.success(), "{about}: {again:?}");
                assert!(
                    fs::read(bench.path().join("out")).unwrap() == whole,
                    "{about}"
                );
                assert_eq!(bench.leftovers(), [""; 0], "{about}");
                if finished {
                    break;
                }
            }
        }
    }
    figure("machines that stopped and went on", tried);
    assert!(tried > 3, "{tried}");
}

#[test]
fn a_name_comes_after_the_data_and_its_folder_after_the_name() {
    if !can_trace() {
        return;
    }
    let bench = Bench::new();
    for (way, format) in ways() {
        bench.reset();
        // Nothing is made to fail: the calls are looked at.
        let calls = "pwrite64,write,ftruncate,fallocate,fsync,rename";
        let mut strace = Command::new("strace");
        let status = strace
            .args(["-f", "-qq", "-y", "-o"])
            .arg(bench.log.path())
            .args(["-e", &format!("trace={calls}")])
            .args(bench.command(way))
            .current_dir(bench.path())
            .status();
        assert!(status.unwrap().success());
        assert!(bench.is_whole(format));
        let log = fs::read(bench.log.path()).unwrap();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let renames: Vec<usize> = (0..lines.len())
            .filter(|at| lines[*at].contains("rename("))
            .collect();
        assert!(!renames.is_empty(), "{way}");
        for rename in renames {
            let part = lines[rename].split('"').nth(1).unwrap();
            let about = |line: &&str| line.contains(&format!("/{part}>"));
            let of_part: Vec<&&str> = lines[..rename].iter().filter(|line| about(line)).collect();
            let last = of_part.last().unwrap();
            assert!(last.contains("fsync("), "{way}: {log}");
            let later = lines[rename..].iter();
            let folder = format!("{}>", bench.path().canonicalize().unwrap().display());
            let synced = later
                .clone()
                .any(|l| l.contains("fsync(") && l.contains(&folder));
            assert!(synced, "{way}: {log}");
            let mut later = later;
            assert!(!later.any(about), "{way}: {log}");
        }
    }
}

/// A limit on the size of files gives writes that are short, and then an error.
#[test]
fn a_file_that_may_not_grow_is_no_result() {
    if !has_tool("bash") {
        return;
    }
    let bench = Bench::new();
    let mut tried = 0;
    for (way, format) in ways() {
        for blocks in [
            0, 1, 3, 64, 191, 192, 193, 320, 400, 511, 512, 513, 900, 5000, 20_000,
        ] {
            bench.reset();
            let words = bench.command(way);
            // In units of 1024 bytes, and a bit less than a whole number of pages.
            let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
            let mut bash = Command::new("bash");
            let output = bash
                .args(["-c", &script, "bash"])
                .args(&words)
                .current_dir(bench.path())
                .output();
            let output = output.unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let about = format!("{way} with at most {blocks} KiB: {told}");
            match output.status.code() {
                Some(0) => assert!(bench.is_whole(format), "{about}"),
                Some(1) => assert!(bench.is_old() && !told.is_empty(), "{about}"),
                code => panic!("{about}: {code:?}"),
            }
            assert_eq!(bench.leftovers(), [""; 0], "{about}");
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}
