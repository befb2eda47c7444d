//! One image of every format that can be read, in memory, and every way to write one.

use std::sync::Arc;

use blockform::convert::{ConvertOptions, ImageSpec};
use blockform::storage::Memory;
use blockform::{BlockTarget, Image, OpenOptions, Result};

use super::faults::{Faulty, Trip};
use super::model::{Fill, Model};
use super::{Rng, read_all, testdata};

/// Images that can be written: a name, its format, and its options.
pub fn ways() -> Vec<(&'static str, ImageSpec)> {
    let to = |format: &str| ImageSpec::new(format);
    vec![
        ("raw", to("raw")),
        ("qcow2", to("qcow2")),
        ("qcow2 zlib", to("qcow2").compress(true)),
        (
            "qcow2 zstd",
            to("qcow2")
                .compress(true)
                .option("compression_type", "zstd"),
        ),
        (
            "qcow2 extended",
            to("qcow2")
                .option("extended_l2", "on")
                .option("preallocation", "metadata"),
        ),
        ("vmdk", to("vmdk")),
        (
            "vmdk stream",
            to("vmdk").option("subformat", "streamOptimized"),
        ),
        ("vhd", to("vhd")),
        ("vhd fixed", to("vhd").option("subformat", "fixed")),
        ("vhdx", to("vhdx").option("block_size", "1M")),
        ("vdi", to("vdi")),
        ("ova", to("ova")),
    ]
}

/// An image in memory, by the bytes of its file, and what its guest sees.
pub struct Origin {
    pub name: String,
    pub format: &'static str,
    pub file: Arc<Memory>,
    pub content: Vec<u8>,
}

impl Origin {
    pub fn open(&self, trip: &Arc<Trip>) -> Result<Box<dyn Image>> {
        let source = Faulty {
            inner: Arc::clone(&self.file),
            trip: Arc::clone(trip),
        };
        let options = match self.format {
            "raw" => OpenOptions::new().format("raw"),
            _ => OpenOptions::new(),
        };
        options.open(Arc::new(source))
    }
}

/// A disk of `mib` MiB, most of it holes.
pub fn disk(mib: usize) -> Model {
    let mut disk = Model::new(mib << 20);
    let mut rng = Rng(3);
    for i in 0..3 * mib {
        let start = usize::try_from(rng.below((mib as u64) << 20)).unwrap();
        let fill = Fill::ALL[i % 5];
        disk.fill(start, 40_000, fill, rng.next());
    }
    disk
}

pub fn format_of(name: &str) -> &'static str {
    let word = name.split(' ').next().unwrap();
    let id = blockform::formats::Formats::all()
        .by_name(word)
        .unwrap()
        .id();
    id.into_str()
}

/// One image of every format that can be read.
pub fn origins(mib: usize) -> Vec<Origin> {
    let disk = disk(mib);
    let mut origins: Vec<Origin> = ways()
        .into_iter()
        .map(|(name, options)| {
            let file: Arc<Memory> = Arc::default();
            let targets = [Arc::clone(&file) as Arc<dyn BlockTarget>];
            ConvertOptions::from(options)
                .convert_to_targets(&disk, &targets)
                .unwrap();
            let (name, format) = (name.to_owned(), format_of(name));
            let mut origin = Origin {
                name,
                format,
                file,
                content: Vec::new(),
            };
            origin.content = read_all(&origin.open(&Trip::never()).unwrap()).unwrap();
            assert!(origin.content.starts_with(&disk.bytes));
            origin
        })
        .collect();
    for (format, file) in [
        ("qcow", "qcow/good/zlib-512.qcow"),
        ("qed", "qed/good/some.qed"),
        ("parallels", "parallels/good/some.parallels"),
    ] {
        let file = Arc::new(Memory::new(std::fs::read(testdata(file)).unwrap()));
        let mut origin = Origin {
            name: format.to_owned(),
            format,
            file,
            content: Vec::new(),
        };
        origin.content = read_all(&origin.open(&Trip::never()).unwrap()).unwrap();
        origins.push(origin);
    }
    origins
}

/// Fails unless the file is an image of that disk, which may have been rounded up.
pub fn check_holds(about: &str, format: &str, file: &Memory, content: &[u8]) {
    let image = OpenOptions::new()
        .format(format)
        .open(Arc::new(Memory::new(file.to_bytes())))
        .unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
    let read = read_all(&image).unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
    assert!(
        read.starts_with(content),
        "{about}: the result holds something else"
    );
    assert!(
        read[content.len()..].iter().all(|byte| *byte == 0),
        "{about}"
    );
}
