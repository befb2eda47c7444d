//! The contract of `BlockTarget`, as one suite over anything that is one.

use blockform::{BlockSource, BlockSourceExt, BlockTarget, Error, Zeroes};

use super::source;
use crate::support::{Rng, fails};

/// Abilities of a kind of target.
#[derive(Clone, Copy)]
pub(crate) struct Abilities {
    /// It grows where it is written past its end, and can be set to a larger size.
    pub(crate) grows: bool,
    /// It can be made shorter.
    pub(crate) shrinks: bool,
    /// Its offsets end somewhere near; a gap is not filled byte by byte.
    pub(crate) far_offsets: bool,
}

/// Checks every promise of `BlockTarget` for new targets, each of which holds the bytes given.
pub(crate) fn check<T: BlockTarget>(name: &str, can: Abilities, make: impl Fn() -> (T, Vec<u8>)) {
    let (target, model) = make();
    source::check(name, &target, &model);
    if target.reads_as_zero() {
        assert!(model.iter().all(|b| *b == 0), "{name}: reads as zero");
    }
    assert!(target.concurrent_writes() >= 1, "{name}");
    for seed in 0..8 {
        random_operations(name, can, &make, seed);
    }
    threads_write_apart(name, can, &make);
    if can.far_offsets {
        let (target, model) = make();
        for offset in [u64::MAX, u64::MAX - 1, 1 << 63] {
            let written = target.write_all_at(b"far", offset);
            fails!(
                written,
                Error::Io { .. } | Error::OutOfRange { .. } | Error::InvalidInput(_),
                ""
            );
        }
        assert_eq!(
            target.size(),
            model.len() as u64,
            "{name}: a failed write far out"
        );
    }
}

fn random_operations<T: BlockTarget>(
    name: &str,
    can: Abilities,
    make: &impl Fn() -> (T, Vec<u8>),
    seed: u64,
) {
    const REACH: u64 = 300_000;
    let (target, mut model) = make();
    let mut rng = Rng(seed);
    let mut done = Vec::new();
    for _ in 0..40 {
        let size = model.len() as u64;
        let reach = if can.grows { REACH } else { size };
        let offset = match rng.below(3) {
            0 => rng.below(reach) / 4096 * 4096,
            1 => rng.below(reach),
            _ => size.min(reach - 1),
        };
        let most = [10, 5000, 80_000][usize::try_from(rng.below(3)).unwrap()];
        let len = (1 + rng.below(most)).min(reach - offset);
        let (start, end) = (
            usize::try_from(offset).unwrap(),
            usize::try_from(offset + len).unwrap(),
        );
        let operation = rng.below(6);
        done.push((operation, offset, len));
        let grown = model.len().max(end);
        match operation {
            0 | 1 => {
                let data = rng.bytes(end - start);
                target.write_all_at(&data, offset).unwrap();
                model.resize(grown, 0);
                model[start..end].copy_from_slice(&data);
            }
            2 | 3 => {
                let zeroes = [Zeroes::Discard, Zeroes::Keep][usize::from(operation == 3)];
                target.write_zeroes_at(offset, len, zeroes).unwrap();
                model.resize(grown, 0);
                model[start..end].fill(0);
            }
            4 => {
                target.allocate(offset, len).unwrap();
                model.resize(grown, 0);
            }
            _ => {
                let size = if can.shrinks {
                    rng.below(reach)
                } else {
                    size.max(offset)
                };
                target.set_size(size).unwrap();
                if can.grows {
                    model.resize(usize::try_from(size).unwrap(), 0);
                }
            }
        }
        assert_eq!(
            target.size(),
            model.len() as u64,
            "{name}: size after {done:?}"
        );
        let mut bytes = vec![0xee; model.len()];
        target.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == model, "{name}: content after {done:?}");
    }
    target.sync().unwrap();
    source::check(name, &target, &model);
}

fn threads_write_apart<T: BlockTarget>(
    name: &str,
    can: Abilities,
    make: &impl Fn() -> (T, Vec<u8>),
) {
    let (target, mut model) = make();
    let size = if can.grows { 200_000 } else { model.len() };
    target.set_size(size as u64).unwrap();
    model.resize(size, 0);
    let piece = 1009;
    let target = &target;
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            scope.spawn(move || {
                for (number, start) in (0..size).step_by(piece).enumerate() {
                    if number % 4 == thread {
                        let end = size.min(start + piece);
                        let data = vec![number.to_le_bytes()[0]; end - start];
                        target.write_all_at(&data, start as u64).unwrap();
                    }
                }
            });
        }
    });
    for (number, piece) in model.chunks_mut(piece).enumerate() {
        piece.fill(number.to_le_bytes()[0]);
    }
    source::check(name, target, &model);
}

/// Checks what is left of the promises for targets that only go forward, against the same writes into
/// memory.
pub(crate) fn check_forward<T: BlockTarget>(
    name: &str,
    make: impl Fn() -> T,
    bytes_of: impl Fn(T) -> Vec<u8>,
) {
    for seed in 0..50 {
        let (target, model) = (make(), blockform::storage::Memory::default());
        assert!(target.reads_as_zero(), "{name}");
        assert_eq!(target.concurrent_writes(), 1, "{name}");
        let mut rng = Rng(seed);
        for _ in 0..30 {
            let offset = target.size() + [0, rng.below(100_000)][usize::from(rng.below(2) == 0)];
            let len = 1 + rng.below(70_000);
            let zeroes = [Zeroes::Discard, Zeroes::Keep][usize::from(rng.below(2) == 0)];
            let data = rng.bytes(usize::try_from(len).unwrap());
            let operation = rng.below(5);
            for target in [&target as &dyn BlockTarget, &model] {
                match operation {
                    0 | 1 => target.write_all_at(&data, offset).unwrap(),
                    2 => target.write_zeroes_at(offset, len, zeroes).unwrap(),
                    3 => target.set_size(offset).unwrap(),
                    _ => target.sync().unwrap(),
                }
            }
            assert_eq!(target.size(), model.size(), "{name}: {seed} {operation}");
            if target.size() > 0 {
                let back = rng.below(target.size());
                fails!(
                    target.write_all_at(b"back", back),
                    Error::Io { .. },
                    "already at byte"
                );
                fails!(target.set_size(back), Error::Io { .. }, "already at byte");
            }
        }
        target.sync().unwrap();
        assert!(bytes_of(target) == model.into_bytes(), "{name}: {seed}");
    }
}
