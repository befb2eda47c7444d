//! Helpers of the tests that run the commands and qemu-img.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::has_tool;

/// The command `name`: an example, which cargo builds for the tests, or a link to the example `img`.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let built = |name: &str| {
        let path = profile.join("examples").join(name);
        path.with_extension(std::env::consts::EXE_EXTENSION)
    };
    let path = match name {
        "qemu-img" | "img-check" | "img-compare" | "img-map" | "img-measure" | "img-partition" => {
            link(&built("img"), &profile.join("links"), name)
        }
        _ => built(name),
    };
    assert!(
        path.exists(),
        "{} is missing: run cargo build --examples",
        path.display()
    );
    path
}

/// A link to `program` by another name, made by whichever test needs it first.
fn link(program: &Path, folder: &Path, name: &str) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let link = folder.join(name);
    #[cfg(unix)]
    let made = std::os::unix::fs::symlink(program, &link);
    #[cfg(windows)]
    let made = std::os::windows::fs::symlink_file(program, &link);
    if let Err(error) = made {
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
    }
    link
}

/// Returns true if qemu-img is installed.
pub fn has_qemu() -> bool {
    has_tool("qemu-img")
}

/// Runs a program in `folder`.
pub fn run<S: AsRef<OsStr>>(
    folder: &Path,
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Output {
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .args(arguments)
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8");
    command.output().unwrap()
}

/// Runs a line of words in `folder`; it has to succeed. What it printed is returned.
pub fn must(folder: &Path, line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let out = run(folder, program, words);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{line}: {told}");
    String::from_utf8(out.stdout).unwrap()
}

/// The names in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
