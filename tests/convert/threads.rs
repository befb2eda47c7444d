//! Many threads in one open image, and conversions that are stopped, or panic, at any moment.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::faults::{Watchdog, figure, thorough};
use crate::support::origins::{origins, ways};
use crate::support::{Rng, read_all, sample_disk};
use blockform::convert::{Cancel, ConvertOptions};
use blockform::storage::Memory;
use blockform::{BlockSource, Error, Extent, Limits, OpenOptions, Result};

/// The work of one thread on an image whose content is known.
fn look_around(image: &dyn blockform::Image, content: &[u8], seed: u64, times: u64) {
    let mut rng = Rng(seed);
    let size = content.len() as u64;
    let mut buf = Vec::new();
    for _ in 0..times {
        let at = rng.below(size);
        let most = if rng.below(4) == 0 { 400_000 } else { 5000 };
        let index = usize::try_from(at).unwrap();
        match rng.below(4) {
            0 => {
                let run = image.extent_at(at, 1 + rng.below(size - at)).unwrap();
                let end = usize::try_from(run.end()).unwrap();
                let zero = content[index..end].iter().all(|byte| *byte == 0);
                assert!(zero || !run.kind.reads_as_zero(), "{run:?}");
            }
            1 => {
                let Some(packed) = image.packed() else {
                    continue;
                };
                let start = at - at % packed.unit();
                let (mut bytes, mut units) = (Vec::new(), Vec::new());
                let count = packed.read_packed(start, size - start, &mut bytes, &mut units);
                assert_eq!(count.unwrap(), units.len());
                assert!(units.iter().all(|unit| unit.at + unit.len <= bytes.len()));
            }
            _ => {
                buf.clear();
                buf.resize(usize::try_from(rng.below(most)).unwrap(), 0xee);
                let n = image.read_at(&mut buf, at).unwrap();
                assert!(buf[..n] == content[index..index + n], "{n} bytes at {at}");
                assert_eq!(n, buf.len().min(content.len() - index));
            }
        }
    }
}

#[test]
fn every_thread_sees_the_same_bytes() {
    let watchdog = Watchdog::new("reading by many threads");
    let times = if thorough() { 4000 } else { 30 };
    let mut looked = 0;
    for origin in origins(1) {
        for cache in [0, 4096, 4 << 20] {
            let mut limits = Limits::default();
            limits.cache_bytes = cache;
            let options = OpenOptions::new().format(origin.format).limits(limits);
            let file = Arc::clone(&origin.file) as Arc<dyn BlockSource>;
            let image = options.open(file).unwrap();
            std::thread::scope(|scope| {
                for seed in 0..8 {
                    let (image, content) = (&*image, &origin.content);
                    scope.spawn(move || look_around(image, content, seed, times));
                }
            });
            watchdog.alive();
            looked += 8 * times;
        }
    }
    figure("reads by 8 threads at once", looked);
}

/// A source that takes its time, so that there are moments to be stopped at.
#[derive(Debug)]
struct Slow {
    disk: Memory,
    calls: AtomicU64,
    /// The call at which it panics.
    panics_at: u64,
}

impl Slow {
    fn new(size: usize, panics_at: u64) -> Self {
        Slow {
            disk: Memory::new(sample_disk(6, size)),
            calls: AtomicU64::new(0),
            panics_at,
        }
    }
}

impl BlockSource for Slow {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(call != self.panics_at, "as told");
        std::thread::sleep(Duration::from_micros(300));
        self.disk.read_at(buf, offset)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.disk.extent_at(offset, limit)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn who_is_stopped_at_any_moment_leaves_nothing() {
    let watchdog = Watchdog::new("a conversion that is stopped");
    let slow = Slow::new(5 << 20, u64::MAX);
    let content = read_all(&slow.disk).unwrap();
    let mut rng = Rng(1);
    let (mut stopped, mut finished) = (0, 0);
    for (number, (way, options)) in ways().into_iter().enumerate() {
        let format = crate::support::origins::format_of(way);
        for round in 0..if thorough() { 80 } else { 2 } {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            std::fs::write(&out, b"old").unwrap();
            let cancel = Cancel::new();
            let threads = NonZeroUsize::new(1 + round % 4).unwrap();
            let options = ConvertOptions::from(options.clone());
            let options = options.threads(threads).sync(false);
            let mut options = options.cancel(cancel.clone());
            let wait = Duration::from_micros(rng.below(12_000));
            if (round + number) % 5 == 4 {
                // From inside.
                let left = AtomicU64::new(rng.below(6));
                options = options.progress(move |_| {
                    let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                        Some(n.saturating_sub(1))
                    });
                    match before {
                        Ok(0) => ControlFlow::Break(()),
                        _ => ControlFlow::Continue(()),
                    }
                });
            }
            let done = std::thread::scope(|scope| {
                if (round + number) % 5 != 4 {
                    scope.spawn(move || {
                        std::thread::sleep(wait);
                        cancel.cancel();
                    });
                }
                options.convert_to_path(&slow, &out)
            });
            watchdog.alive();
            let about = format!("{way}, round {round}");
            assert_eq!(names(folder.path()), ["out"], "{about}");
            match done {
                Ok(_) => {
                    let file = Memory::new(std::fs::read(&out).unwrap());
                    crate::support::origins::check_holds(&about, format, &file, &content);
                    finished += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Cancelled), "{about}: {error:?}");
                    assert_eq!(std::fs::read(&out).unwrap(), b"old", "{about}");
                    stopped += 1;
                }
            }
        }
    }
    figure("conversions stopped at a random moment", stopped);
    assert!(stopped > 8, "{stopped} of {}", stopped + finished);
}

#[test]
fn a_panic_ends_all_threads_and_leaves_nothing() {
    let watchdog = Watchdog::new("a conversion that panics");
    for threads in [1, 4] {
        for panics_at in [0, 1, 3, 4] {
            let slow = Slow::new(5 << 20, panics_at);
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            let options = ConvertOptions::to("qcow2").threads(NonZeroUsize::new(threads).unwrap());
            let panicked = catch_unwind(AssertUnwindSafe(|| options.convert_to_path(&slow, &out)));
            assert!(panicked.is_err(), "{threads} threads, call {panics_at}");
            assert_eq!(names(folder.path()), [""; 0]);
            watchdog.alive();
        }
    }
}
