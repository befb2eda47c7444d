//! The commands against images made to harm, judged by a program of its own, where it is at hand.

use std::process::Command;

use crate::support::command::example;
use crate::support::{has_tool, run, shared};

/// All cases.
const OURS: &str = ".";

#[test]
fn no_hostile_image_gets_its_way() {
    let Some(suite) = shared("hostile") else {
        return;
    };
    if !has_tool("python3") || !has_tool("tar") || !has_tool("xz") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    run(tar
        .arg("-xJSf")
        .arg(suite.join("images.tar.xz"))
        .arg("-C")
        .arg(folder.path()));
    std::fs::copy(
        suite.join("manifest.json"),
        folder.path().join("manifest.json"),
    )
    .unwrap();
    let mut judge = Command::new("python3");
    judge
        .arg(suite.join("run_hostile.py"))
        .arg(folder.path())
        .args(["--only", OURS])
        .env("IMG_INFO", example("img-info"))
        .env("IMG_CONVERT", example("img-convert"))
        .env("IMG_ALLOW", "--allow-references=same-dir");
    let told = run(&mut judge);
    let last = told.lines().last().unwrap_or_default();
    let passed: u32 = last.split(' ').next().unwrap_or_default().parse().unwrap();
    assert!(passed >= 40 && last.ends_with("0 failed"), "{told}");
}
