//! Our image behind QEMU's block server, as a virtual machine would see it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{converted_by_qemu, has_qemu};
use crate::support::model::{Fill, Model, Way};
use crate::support::{has_tool, run, sha256};

/// A server on a socket in a folder, for as long as it lives.
struct Server(Child);

impl Server {
    fn of(folder: &Path, file: &str) -> Server {
        let mut command = Command::new("qemu-nbd");
        command.args(["--read-only", "--persistent", "--format=qcow2", "--socket"]);
        command
            .arg(folder.join("socket"))
            .arg(file)
            .current_dir(folder);
        let server = Server(command.stdin(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while !folder.join("socket").exists() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no server came up"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_serves_our_images() {
    if !has_qemu() || !has_tool("qemu-nbd") {
        return;
    }
    let mut disk = Model::new(3 << 20);
    disk.fill(0, 70_000, Fill::Noise, 5);
    disk.fill(1 << 20, 1 << 20, Fill::Text, 6);
    let plain = Way::default();
    for way in [
        plain,
        Way {
            compress: true,
            ..plain
        },
        Way {
            extended_l2: true,
            ..plain
        },
    ] {
        let way = way.settled();
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        way.options()
            .convert_to_path(&disk, at.join("image.qcow2"))
            .unwrap();
        let server = Server::of(at, "image.qcow2");
        let url = format!("nbd+unix:///?socket={}", at.join("socket").display());
        assert_eq!(
            converted_by_qemu(at, &url, "-f raw"),
            sha256(&disk.bytes),
            "{}",
            way.text()
        );
        let map = run(Command::new("qemu-img").args(["map", "--output=json", "-f", "raw", &url]));
        let map: serde_json::Value = serde_json::from_str(&map).unwrap();
        let zero = map
            .as_array()
            .unwrap()
            .iter()
            .filter(|run| run["zero"] == true);
        let zero: u64 = zero.map(|run| run["length"].as_u64().unwrap()).sum();
        assert!(
            zero >= 1 << 20,
            "the holes are seen through the server: {zero}"
        );
        drop(server);
    }
}
