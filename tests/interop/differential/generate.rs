//! Making an image with QEMU's tools, at random.

use std::path::Path;

use super::tool;
use crate::support::Rng;

/// An image, and how it was made.
pub(crate) struct Made {
    pub(crate) file: String,
    /// As QEMU calls it.
    pub(crate) format: &'static str,
    pub(crate) snapshots: Vec<String>,
    pub(crate) has_data_file: bool,
    /// Number of backing files below it.
    pub(crate) depth: u64,
    /// Commands that were run or failed.
    pub(crate) script: Vec<String>,
}

impl Made {
    pub(crate) fn our_format(&self) -> &'static str {
        our_name(self.format)
    }
}

fn our_name(format: &'static str) -> &'static str {
    match format {
        "vpc" => "vhd",
        other => other,
    }
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[usize::try_from(rng.below(from.len() as u64)).unwrap()]
}

fn chance(rng: &mut Rng, one_in: u64) -> bool {
    rng.below(one_in) == 0
}

/// One image on its way.
struct Maker<'a> {
    folder: &'a Path,
    file: String,
    format: &'static str,
    size: u64,
    cluster: u64,
    packs: bool,
    script: Vec<String>,
}

impl Maker<'_> {
    /// Runs a command, which may fail: what the image then holds is for QEMU to say.
    fn run(&mut self, words: &[&str]) -> bool {
        let done = tool(self.folder, words);
        let mut line = words.join(" ");
        if let Err(error) = &done {
            let last = error.lines().last().unwrap_or_default();
            line.push_str(&format!(" # failed: {last}"));
        }
        self.script.push(line);
        done.is_ok()
    }

    /// A range of the disk.
    fn range(&self, rng: &mut Rng, unit: u64) -> (u64, u64) {
        let units = (self.size / unit).max(1);
        let start = rng.below(units);
        let most = match rng.below(3) {
            0 => 3,
            1 => units / 8 + 1,
            _ => units,
        };
        let len = 1 + rng.below(most);
        (start * unit, len.min(units - start) * unit)
    }

    /// One process of qemu-io with some commands. Packed writes have one of their own: QEMU damages an
    /// image into which one process packs what it discarded before.
    fn write(&mut self, rng: &mut Rng) {
        if self.size < 512 {
            return;
        }
        let packed = self.packs && chance(rng, 4);
        let mut words = vec![
            "qemu-io".to_owned(),
            "-f".to_owned(),
            self.format.to_owned(),
        ];
        for _ in 0..1 + rng.below(4) {
            let (start, len) = match packed {
                true => {
                    let (start, _) = self.range(rng, self.cluster);
                    (start, self.cluster.min(self.size - start))
                }
                false if chance(rng, 3) => self.range(rng, self.cluster.min(self.size)),
                false => self.range(rng, 512),
            };
            let byte = 1 + rng.below(255);
            let command = match rng.below(10) {
                _ if packed => format!("write -c -P {byte} {start} {len}"),
                0 => format!("write -z {start} {len}"),
                1 => format!("write -z -u {start} {len}"),
                2 => format!("discard {start} {len}"),
                _ => format!("write -P {byte} {start} {len}"),
            };
            words.extend(["-c".to_owned(), command]);
        }
        words.push(self.file.clone());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.run(&words);
    }
}

/// The options of a new image, and its cluster size.
fn options(rng: &mut Rng, format: &str, name: &str) -> (Vec<String>, u64, bool) {
    let mut options = Vec::new();
    let mut add = |name: &str, value: &str| options.push(format!("{name}={value}"));
    let mut cluster = 65_536;
    let mut packs = false;
    match format {
        "qcow2" => {
            let bits = 9 + rng.below(9) + rng.below(5);
            cluster = 1_u64 << bits.min(21);
            let old = chance(rng, 5);
            packs = true;
            if old {
                add("compat", "0.10");
            } else {
                if bits >= 14 && chance(rng, 3) {
                    add("extended_l2", "on");
                }
                if chance(rng, 3) {
                    add(
                        "refcount_bits",
                        pick(rng, &["1", "2", "4", "8", "32", "64"]),
                    );
                }
                if chance(rng, 4) {
                    add("lazy_refcounts", "on");
                }
                if chance(rng, 3) {
                    add("compression_type", "zstd");
                }
                if chance(rng, 10) {
                    add("data_file", &format!("{name}.data"));
                    if chance(rng, 2) {
                        add("data_file_raw", "on");
                    }
                    packs = false;
                }
            }
            add("cluster_size", &cluster.to_string());
            if chance(rng, 6) {
                add("preallocation", pick(rng, &["metadata", "falloc", "full"]));
            }
        }
        "vmdk" => {
            let subformats = [
                "monolithicSparse",
                "monolithicFlat",
                "twoGbMaxExtentSparse",
                "twoGbMaxExtentFlat",
            ];
            let subformat = pick(rng, &subformats);
            add("subformat", subformat);
            if chance(rng, 3) && subformat.ends_with("Sparse") {
                add("zeroed_grain", "on");
            }
        }
        "vpc" => {
            cluster = 2 << 20;
            add("subformat", pick(rng, &["dynamic", "dynamic", "fixed"]));
            if chance(rng, 2) {
                add("force_size", "on");
            }
        }
        "vhdx" => {
            cluster = 1 << 20;
            add("block_size", pick(rng, &["1M", "2M"]));
            add("log_size", "1M");
            add("subformat", pick(rng, &["dynamic", "fixed"]));
        }
        "vdi" => {
            cluster = 1 << 20;
            if chance(rng, 3) {
                add("static", "on");
            }
        }
        "qed" => {
            cluster = 4096 << rng.below(5);
            add("cluster_size", &cluster.to_string());
            add("table_size", pick(rng, &["2", "4", "16"]));
        }
        "qcow" => {
            cluster = 4096;
            packs = true;
        }
        "parallels" => {
            cluster = 4096 << rng.below(5);
            add("cluster_size", &cluster.to_string());
        }
        _ => cluster = 4096,
    }
    (options, cluster, packs)
}

/// Makes an image in the folder, with everything below it.
pub(crate) fn make(folder: &Path, rng: &mut Rng) -> Made {
    let format = match rng.below(100) {
        0..60 => "qcow2",
        60..72 => "vmdk",
        72..79 => "vpc",
        79..83 => "vhdx",
        83..89 => "vdi",
        89..93 => "qed",
        93..96 => "qcow",
        _ => "parallels",
    };
    let most = if format == "vhdx" {
        3 << 20
    } else {
        1 << (17 + rng.below(6))
    };
    let size = (1 + rng.below(most / 512)) * 512;
    let mut depth = 0;
    let mut script = Vec::new();
    let mut below = None;
    let has_below = matches!(format, "qcow2" | "vmdk" | "qed" | "qcow");
    if has_below && chance(rng, 3) {
        depth = if format == "vmdk" {
            1
        } else {
            1 + rng.below(3)
        };
        for level in 0..depth {
            let mut kinds = vec!["qcow2", "qcow2", "raw", "qed"];
            if format == "vmdk" {
                kinds = vec!["vmdk"];
            }
            if level > 0 {
                kinds.retain(|kind| *kind != "raw");
            }
            let kind = pick(rng, &kinds);
            let size = match format {
                // A child has the size of its parent.
                "vmdk" => size,
                _ => (1 + rng.below(most / 512)) * 512,
            };
            let made = image(
                folder,
                rng,
                kind,
                &format!("base{level}"),
                size,
                &below,
                script,
            );
            script = made.script;
            below = Some((made.file, kind));
        }
    }
    let mut made = image(folder, rng, format, "top", size, &below, script);
    made.depth = depth;
    made
}

fn image(
    folder: &Path,
    rng: &mut Rng,
    format: &'static str,
    name: &str,
    size: u64,
    below: &Option<(String, &'static str)>,
    script: Vec<String>,
) -> Made {
    let file = format!("{name}.{format}");
    let (mut options, cluster, packs) = match format {
        "vmdk" if below.is_some() || name != "top" => {
            (vec!["subformat=monolithicSparse".to_owned()], 65_536, false)
        }
        _ => options(rng, format, name),
    };
    if below.is_some() {
        options.retain(|option| {
            !option.starts_with("preallocation") && !option.starts_with("data_file_raw")
        });
    }
    let mut maker = Maker {
        folder,
        file: file.clone(),
        format,
        size,
        cluster,
        packs,
        script,
    };
    let mut words = vec!["qemu-img", "create", "-q", "-f", format];
    let text = options.join(",");
    if !text.is_empty() {
        words.extend(["-o", &text]);
    }
    if let Some((file, format)) = below {
        words.extend(["-b", file, "-F", format]);
    }
    let digits = size.to_string();
    words.extend([&*file, &*digits]);
    if !maker.run(&words) {
        // Some options exclude each other: the defaults do not.
        let mut words = vec!["qemu-img", "create", "-q", "-f", format];
        if let Some((file, format)) = below {
            words.extend(["-b", file, "-F", format]);
        }
        words.extend([&*file, &*digits]);
        let made = maker.run(&words);
        assert!(made, "{:?}", maker.script);
        options.clear();
        maker.cluster = 65_536;
    }
    let has_data_file = options
        .iter()
        .any(|option| option.starts_with("data_file="));
    let mut snapshots = Vec::new();
    for _ in 0..rng.below(6) {
        match rng.below(12) {
            0 | 1 if format == "qcow2" && !has_data_file => {
                let name = format!("s{}", snapshots.len());
                if maker.run(&["qemu-img", "snapshot", "-c", &name, &file]) {
                    snapshots.push(name);
                }
            }
            2 if format == "qcow2" && name == "top" => {
                let size = (1 + rng.below(2 * maker.size / 512)) * 512;
                let digits = size.to_string();
                let resize = [
                    "qemu-img", "resize", "-q", "--shrink", "-f", format, &file, &digits,
                ];
                if maker.run(&resize) {
                    maker.size = size;
                }
            }
            3 if snapshots.len() > 1 => {
                let name = snapshots.remove(0);
                maker.run(&["qemu-img", "snapshot", "-d", &name, &file]);
            }
            4 if !snapshots.is_empty() => {
                let name = snapshots[0].clone();
                maker.run(&["qemu-img", "snapshot", "-a", &name, &file]);
            }
            5 if format == "qcow2" => {
                maker.run(&["qemu-img", "bitmap", "--add", &file, "b"]);
            }
            _ => maker.write(rng),
        }
    }
    Made {
        file,
        format,
        snapshots,
        has_data_file,
        depth: 0,
        script: maker.script,
    }
}
