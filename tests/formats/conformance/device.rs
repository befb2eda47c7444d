//! A block device, where this process may make one.

use std::path::{Path, PathBuf};
use std::process::Command;

use blockform::storage::FileStorage;

use super::target::{self, Abilities};
use super::{folder, source};
use crate::support::{sample_disk, skipped};

/// A loop device over a file, for as long as it lives.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Loop> {
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let name = String::from_utf8(made.stdout).ok()?;
        made.status
            .success()
            .then(|| Loop(PathBuf::from(name.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_block_device() {
    let folder = folder();
    let path = folder.path().join("disk");
    let content = sample_disk(6, 1 << 20);
    std::fs::write(&path, &content).unwrap();
    // Not a matter of what is installed: it takes the rights of root and a kernel that allows it.
    let Some(device) = Loop::over(&path) else {
        skipped("no loop device can be made here");
        return;
    };
    let storage = FileStorage::open(&device.0).unwrap();
    assert!(storage.is_block_device());
    source::check("a block device", &storage, &content);
    drop(storage);
    let can = Abilities {
        grows: false,
        shrinks: false,
        far_offsets: true,
    };
    target::check("a block device as a target", can, || {
        let storage = FileStorage::open_writable(&device.0).unwrap();
        let content = crate::support::read_all(&storage).unwrap();
        (storage, content)
    });
}
