//! Converting disks that are empty, half full and full, in memory: no file system in the figures.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../tests/support/model.rs"]
#[allow(dead_code, unreachable_pub)]
mod model;

use std::num::NonZeroUsize;
use std::sync::Arc;

use blockform::convert::ConvertOptions;
use blockform::storage::Memory;
use blockform::{BlockTarget, OpenOptions};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use model::{Fill, Model, Way, reopen};

/// The other formats that are written to one file, with what tells their kinds apart.
const OTHERS: [(&str, &[(&str, &str)]); 5] = [
    ("vmdk", &[("subformat", "monolithicSparse")]),
    ("vmdk", &[("subformat", "streamOptimized")]),
    ("vhd", &[("subformat", "dynamic"), ("force_size", "on")]),
    ("vhdx", &[("subformat", "dynamic")]),
    ("vdi", &[]),
];

const SIZE: usize = 64 << 20;

fn disk(percent: usize) -> Model {
    let mut disk = Model::new(SIZE);
    for start in (0..SIZE).step_by(1 << 20) {
        let fill = [Fill::Noise, Fill::Text][start >> 20 & 1];
        disk.fill(start, (1 << 20) / 100 * percent, fill, start as u64);
    }
    disk
}

fn benches(c: &mut Criterion) {
    let plain = Way {
        threads: 2,
        ..Way::default()
    };
    let zlib = Way {
        compress: true,
        ..plain
    };
    let zstd = Way {
        compress: true,
        zstd: true,
        ..plain
    };
    for percent in [0, 50, 100] {
        let disk = disk(percent);
        let mut group = c.benchmark_group(format!("convert-{percent}"));
        group
            .throughput(Throughput::Bytes(SIZE as u64))
            .sample_size(10);
        for (name, way) in [("plain", plain), ("zlib", zlib), ("zstd", zstd)] {
            let way = way.settled();
            group.bench_function(format!("raw-to-{name}"), |b| {
                b.iter(|| way.write(&disk).unwrap());
            });
            let files = way.write(&disk).unwrap();
            let image = reopen(&files, None).unwrap();
            group.bench_function(format!("{name}-to-raw"), |b| {
                b.iter(|| {
                    let targets = [Arc::new(Memory::default()) as Arc<dyn BlockTarget>];
                    ConvertOptions::to("raw")
                        .convert_to_targets(&image, &targets)
                        .unwrap()
                });
            });
        }
        for (format, options) in OTHERS {
            let name = options.first().map_or(format, |(_, value)| *value);
            let to = || {
                let to = ConvertOptions::to(format).threads(NonZeroUsize::MIN.saturating_add(1));
                options
                    .iter()
                    .fold(to, |to, (name, value)| to.option(*name, *value))
            };
            let write = || {
                let target = Arc::new(Memory::default());
                let targets = [Arc::clone(&target) as Arc<dyn BlockTarget>];
                to().convert_to_targets(&disk, &targets).unwrap();
                target
            };
            group.bench_function(format!("raw-to-{format}-{name}"), |b| b.iter(write));
            let image = OpenOptions::new().open(write()).unwrap();
            group.bench_function(format!("{format}-{name}-to-raw"), |b| {
                b.iter(|| {
                    let targets = [Arc::new(Memory::default()) as Arc<dyn BlockTarget>];
                    ConvertOptions::to("raw")
                        .convert_to_targets(&image, &targets)
                        .unwrap()
                });
            });
        }
        group.finish();
    }
}

criterion_group!(convert, benches);
criterion_main!(convert);
