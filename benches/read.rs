//! Opening, listing extents and reading, of disks that are empty, half full and full.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../tests/support/model.rs"]
#[allow(dead_code, unreachable_pub)]
mod model;

use std::hint::black_box;

use blockform::{BlockSource, BlockSourceExt};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use model::{Fill, Model, Way, reopen};

const SIZE: usize = 32 << 20;

fn disk(percent: usize) -> Model {
    let mut disk = Model::new(SIZE);
    for start in (0..SIZE).step_by(1 << 20) {
        let fill = [Fill::Noise, Fill::Text][start >> 20 & 1];
        disk.fill(start, (1 << 20) / 100 * percent, fill, start as u64);
    }
    disk
}

fn ways() -> [(&'static str, Way); 4] {
    let plain = Way::default();
    [
        ("plain", plain),
        (
            "extended",
            Way {
                extended_l2: true,
                ..plain
            },
        ),
        (
            "zlib",
            Way {
                compress: true,
                ..plain
            },
        ),
        (
            "zstd",
            Way {
                compress: true,
                zstd: true,
                ..plain
            },
        ),
    ]
}

fn benches(c: &mut Criterion) {
    for percent in [0, 50, 100] {
        let disk = disk(percent);
        for (name, way) in ways() {
            let files = way.settled().write(&disk).unwrap();
            let mut group = c.benchmark_group(format!("{name}-{percent}"));
            group.bench_function("open", |b| b.iter(|| reopen(&files, None).unwrap()));
            let image = reopen(&files, None).unwrap();
            group.bench_function("extents", |b| {
                b.iter(|| image.extents().map(|e| e.unwrap().len).sum::<u64>());
            });
            let mut buf = vec![0; 1 << 20];
            group
                .throughput(Throughput::Bytes(SIZE as u64))
                .sample_size(10);
            group.bench_function("read", |b| {
                b.iter(|| {
                    for offset in (0..SIZE as u64).step_by(buf.len()) {
                        black_box(image.read_at(&mut buf, offset).unwrap());
                    }
                });
            });
            group.finish();
        }
    }
}

criterion_group!(read, benches);
criterion_main!(read);
