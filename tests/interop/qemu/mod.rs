//! QEMU as the judge, in both directions: its images read by us, our images read by it.

mod nbd;
mod ours;
mod theirs;

use std::path::Path;
use std::process::Command;

use crate::support::{has_tool, run, sha256_of};

/// Returns true if QEMU's tools are installed.
fn has_qemu() -> bool {
    has_tool("qemu-img") && has_tool("qemu-io")
}

/// Runs a line of words in a folder; it has to succeed.
fn qemu(folder: &Path, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    run(command
        .args(words)
        .current_dir(folder)
        .stdin(std::process::Stdio::null()))
}

/// One qemu-io process with one command, which is one argument.
fn qemu_io(folder: &Path, file: &str, command: &str) {
    let mut qemu_io = Command::new("qemu-io");
    run(qemu_io.args(["-c", command, file]).current_dir(folder));
}

/// The guest's disk by QEMU, as a raw file beside the image.
fn converted_by_qemu(folder: &Path, file: &str, more: &str) -> String {
    let out = folder.join("by-qemu.raw");
    let _ = std::fs::remove_file(&out);
    qemu(
        folder,
        &format!("qemu-img convert {more} -O raw {file} by-qemu.raw"),
    );
    let raw = blockform::storage::FileStorage::open(&out).unwrap();
    sha256_of(&raw).unwrap()
}
