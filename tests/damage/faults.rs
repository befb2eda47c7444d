//! Whatever call of the storage fails, a conversion never claims to have succeeded, leaves nothing
//! behind, and ends.

use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use crate::support::faults::{
    EINTR, EIO, ENOSPC, Fault, Faulty, FaultyCursor, Trip, Watchdog, figure, os_error, thorough,
};
use crate::support::origins::{Origin, check_holds, format_of, origins, ways};
use crate::support::{Rng, fails};
use blockform::compare::{CompareOptions, Comparison};
use blockform::convert::{Conversion, ConvertOptions, ImageSpec, content_digest};
use blockform::digest::Algorithm;
use blockform::measure::MeasureOptions;
use blockform::storage::{ForwardTarget, Memory, SeekSource, SeekTarget};
use blockform::{BlockSourceExt, BlockTarget, Error, OpenOptions, Result};

/// Runs one conversion with these troubles, and returns what came of it and the file.
fn convert(
    origin: &Origin,
    options: &ConvertOptions,
    threads: usize,
    from: &Arc<Trip>,
    to: &Arc<Trip>,
) -> (Result<()>, Arc<Memory>) {
    let file: Arc<Memory> = Arc::default();
    let target: Arc<dyn BlockTarget> = Arc::new(Faulty {
        inner: Arc::clone(&file),
        trip: Arc::clone(to),
    });
    let options = options.clone().threads(NonZeroUsize::new(threads).unwrap());
    let done = origin
        .open(from)
        .and_then(|image| options.convert_to_targets(&image, &[target]));
    (done.map(drop), file)
}

/// Judges what one fault led to: it was told, or it did not matter.
fn judge(
    about: &str,
    format: &str,
    origin: &Origin,
    fault: Fault,
    (done, file): (Result<()>, Arc<Memory>),
) {
    match (done, fault) {
        (Ok(()), _) => check_holds(about, format, &file, &origin.content),
        (Err(error), Fault::Os(number)) => {
            assert_eq!(os_error(&error), Some(number), "{about}: {error:?}");
        }
        (Err(_), Fault::Short) => {}
    }
}

/// The numbers of the calls that are made to fail, out of `calls`.
fn points(calls: u64, most: u64, rng: &mut Rng) -> Vec<u64> {
    if thorough() || calls <= most {
        return (0..calls).collect();
    }
    (0..most).map(|_| rng.below(calls)).collect()
}

/// Every call of either end fails in turn, over every pair of formats.
fn every_call_fails(mib: usize, threads: usize, most: u64) -> u64 {
    let watchdog = Watchdog::new("a conversion with a fault");
    let mut rng = Rng(threads as u64);
    let mut tried = 0;
    // Of the threads, a few formats tell as much as all.
    let step = if threads > 1 && !thorough() { 4 } else { 1 };
    for origin in origins(mib).into_iter().step_by(step) {
        for (way, options) in ways() {
            let options = ConvertOptions::from(options);
            let options = options.sync(true);
            let format = format_of(way);
            let (from, to) = (Trip::never(), Trip::never());
            let (done, file) = convert(&origin, &options, threads, &from, &to);
            let about = format!("{} to {way}", origin.name);
            done.unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
            check_holds(&about, format, &file, &origin.content);
            let mut faults = vec![Fault::Os(EIO), Fault::Short, Fault::Os(ENOSPC)];
            if !thorough() {
                faults = vec![faults[usize::try_from(rng.below(3)).unwrap()]];
            }
            for fault in faults {
                let ends = match fault {
                    Fault::Os(ENOSPC) => [None, Some(to.calls())],
                    Fault::Short => [Some(from.calls()), None],
                    Fault::Os(_) => [Some(from.calls()), Some(to.calls())],
                };
                for (end, calls) in ends.into_iter().enumerate() {
                    for at in points(calls.unwrap_or(0), most, &mut rng) {
                        let trip = Trip::at(at, fault);
                        let (from, to) = match end {
                            0 => (Arc::clone(&trip), Trip::never()),
                            _ => (Trip::never(), Arc::clone(&trip)),
                        };
                        let about = format!(
                            "{about} with {threads} threads, {fault:?} at call {at} of end {end}"
                        );
                        let outcome = convert(&origin, &options, threads, &from, &to);
                        // A target that failed is no result, whatever else happened.
                        let told = end == 1 && trip.hit();
                        assert!(!told || outcome.0.is_err(), "{about}: a false success");
                        judge(&about, format, &origin, fault, outcome);
                        watchdog.alive();
                        tried += u64::from(trip.hit());
                    }
                }
            }
        }
    }
    tried
}

#[test]
fn every_call_of_one_thread_fails_in_turn() {
    let tried = every_call_fails(1, 1, 1);
    figure("fault points, 1 thread", tried);
    assert!(tried > 150, "{tried}");
}

#[test]
fn every_call_of_four_threads_fails_in_turn() {
    let tried = every_call_fails(if thorough() { 4 } else { 3 }, 4, 1);
    figure("fault points, 4 threads", tried);
    assert!(tried > 30, "{tried}");
}

/// Names and bytes of all that is in a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let mut all: Vec<_> = entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_file_is_replaced_by_a_whole_one_or_not_at_all() {
    let watchdog = Watchdog::new("a conversion into a file");
    let mut rng = Rng(5);
    let mut tried = 0;
    let split = ImageSpec::new("vmdk").option("subformat", "twoGbMaxExtentSparse");
    let flat = ImageSpec::new("vmdk").option("subformat", "monolithicFlat");
    let apart = ImageSpec::new("qcow2").option("data_file", "out.data");
    let more = [
        ("vmdk split", split),
        ("vmdk flat", flat),
        ("qcow2 data file", apart),
    ];
    for (number, origin) in origins(1).into_iter().enumerate() {
        let ways = ways().into_iter().chain(more.clone()).enumerate();
        // Each once, unless all is asked for.
        let some = ways.filter(|(way, _)| thorough() || (number + way) % 5 == 0);
        for (_, (way, options)) in some {
            let options = ConvertOptions::from(options).sync(false);
            let from = Trip::never();
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out");
            let image = origin.open(&from).unwrap();
            options.convert_to_path(&image, &out).unwrap();
            for (_, old) in contents(folder.path()) {
                assert!(!old.is_empty() || way == "vhd fixed");
            }
            let names = contents(folder.path()).into_iter().map(|(name, _)| name);
            for name in names {
                std::fs::write(folder.path().join(name), b"what was there before").unwrap();
            }
            let before = contents(folder.path());
            for at in points(from.calls(), 1, &mut rng) {
                let trip = Trip::at(at, Fault::Os(EIO));
                let done = origin
                    .open(&trip)
                    .and_then(|image| options.convert_to_path(&image, &out));
                let about = format!("{} to {way}, call {at}", origin.name);
                watchdog.alive();
                let Err(error) = done else {
                    assert!(!trip.hit() || contents(folder.path()) != before, "{about}");
                    // The fault did not matter: the result is looked at elsewhere.
                    for (name, bytes) in &before {
                        std::fs::write(folder.path().join(name), bytes).unwrap();
                    }
                    continue;
                };
                tried += 1;
                assert_eq!(os_error(&error), Some(EIO), "{about}: {error:?}");
                assert!(contents(folder.path()) == before, "{about}");
            }
        }
    }
    figure("fault points, into files", tried);
    assert!(tried > 20, "{tried}");
}

#[test]
fn of_two_targets_the_one_that_fails_takes_only_itself() {
    let watchdog = Watchdog::new("a conversion into two targets");
    let origin = origins(3).remove(1);
    let mut tried = 0;
    let step = if thorough() { 1 } else { 4 };
    for (way, options) in ways().into_iter().step_by(step) {
        let format = format_of(way);
        for at in 0_u64.. {
            let trip = Trip::at(at, Fault::Os(ENOSPC));
            let (good, bad): (Arc<Memory>, Arc<Memory>) = Default::default();
            let faulty: Arc<dyn BlockTarget> = Arc::new(Faulty {
                inner: Arc::clone(&bad),
                trip: Arc::clone(&trip),
            });
            let image = origin.open(&Trip::never()).unwrap();
            let whole: Arc<dyn BlockTarget> = Arc::clone(&good) as Arc<dyn BlockTarget>;
            let outcome = Conversion::of(&image)
                .to_targets(options.clone(), &[faulty])
                .to_targets(options.clone(), &[whole])
                .allow_failure(true)
                .threads(NonZeroUsize::new(3).unwrap())
                .run();
            watchdog.alive();
            let about = format!("{way}, call {at}");
            // What fails before anything else is written ends it all.
            let Ok(outcome) = outcome else {
                assert!(trip.hit(), "{about}");
                tried += 1;
                continue;
            };
            check_holds(&about, format, &good, &origin.content);
            if !trip.hit() {
                assert!(outcome.targets.iter().all(Result::is_ok), "{about}");
                break;
            }
            let failed = outcome.targets[0].as_ref().unwrap_err();
            assert_eq!(os_error(failed), Some(ENOSPC), "{about}");
            tried += 1;
        }
    }
    figure("fault points, one of two targets", tried);
    assert!(tried > 20, "{tried}");
}

/// After how many calls something happens again.
fn paces() -> &'static [u64] {
    if thorough() { &[2, 3, 7] } else { &[3] }
}

/// Interruptions and short counts are no errors of the system: whoever is told goes on.
#[test]
fn interruptions_and_short_counts_are_survived() {
    let mut tried = 0;
    for origin in origins(1) {
        let (way, options) = ("qcow2", ConvertOptions::to("qcow2"));
        for fault in [Fault::Os(EINTR), Fault::Short] {
            for &every in paces() {
                let cursor = FaultyCursor {
                    inner: Cursor::new(origin.file.to_bytes()),
                    trip: Trip::at(1, fault),
                    every,
                };
                let trip = Arc::clone(&cursor.trip);
                let about = format!("{} with {fault:?} every {every} calls", origin.name);
                let file = SeekSource::new(cursor).unwrap();
                let image = OpenOptions::new()
                    .format(origin.format)
                    .open(Arc::new(file));
                let image = image.unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
                let target: Arc<Memory> = Arc::default();
                let targets = [Arc::clone(&target) as Arc<dyn BlockTarget>];
                options.convert_to_targets(&image, &targets).unwrap();
                check_holds(&about, way, &target, &origin.content);
                tried += trip.calls() / every;
            }
        }
    }
    let origin = origins(1).remove(0);
    for (way, options) in ways() {
        let options = ConvertOptions::from(options);
        for fault in [Fault::Os(EINTR), Fault::Short] {
            for &every in paces() {
                let about = format!("{way} with {fault:?} every {every} calls");
                let image = origin.open(&Trip::never()).unwrap();
                let cursor = || FaultyCursor {
                    inner: Cursor::new(Vec::new()),
                    trip: Trip::at(1, fault),
                    every,
                };
                let target = Arc::new(SeekTarget::new(cursor()).unwrap());
                let targets = [Arc::clone(&target) as Arc<dyn BlockTarget>];
                options
                    .convert_to_targets(&image, &targets)
                    .unwrap_or_else(|e| panic!("{about}: {}", e.chain()));
                drop(targets);
                let cursor_back = Arc::into_inner(target).unwrap().into_inner();
                tried += cursor_back.trip.calls() / every;
                let file = Memory::new(cursor_back.inner.into_inner());
                check_holds(&about, format_of(way), &file, &origin.content);
                let mut stream = cursor();
                match options.convert_to_writer(&image, &mut stream) {
                    Ok(_) => {
                        let file = Memory::new(stream.inner.into_inner());
                        check_holds(&about, format_of(way), &file, &origin.content);
                    }
                    Err(error) => assert!(matches!(error, Error::InvalidInput(_)), "{about}"),
                }
            }
        }
    }
    figure("interruptions and short counts", tried);
    assert!(tried > 200, "{tried}");
}

#[test]
fn every_call_of_a_stream_fails_in_turn() {
    let watchdog = Watchdog::new("a conversion into a stream");
    let origin = origins(1).remove(1);
    let mut tried = 0;
    for (way, options) in ways() {
        let options = ConvertOptions::from(options);
        for at in 0_u64.. {
            let trip = Trip::at(at, Fault::Os(EIO));
            let image = origin.open(&Trip::never()).unwrap();
            let mut stream = FaultyCursor {
                inner: Cursor::new(Vec::new()),
                trip: Arc::clone(&trip),
                every: 0,
            };
            let done = options.convert_to_writer(&image, &mut stream);
            watchdog.alive();
            match done {
                Err(Error::InvalidInput(_)) => break,
                Err(error) => assert_eq!(os_error(&error), Some(EIO), "{way}, call {at}"),
                Ok(_) => {
                    assert!(!trip.hit(), "{way}, call {at}: a false success");
                    break;
                }
            }
            tried += 1;
        }
    }
    figure("fault points, into streams", tried);
    assert!(tried > 50, "{tried}");
    // A stream that failed once takes nothing more.
    let target = ForwardTarget::new(FaultyCursor {
        inner: Cursor::new(Vec::new()),
        trip: Trip::at(0, Fault::Os(EIO)),
        every: 0,
    });
    fails!(
        target.write_all_at(b"one", 0),
        Error::Io { .. },
        "at byte 0"
    );
    fails!(
        target.write_all_at(b"two", 0),
        Error::Io { .. },
        "write the stream"
    );
}

/// Compare, measure, map and digest tell of a fault, too, and never gets another answer.
#[test]
fn the_other_verbs_are_told_of_every_fault() {
    let watchdog = Watchdog::new("a verb");
    let mut rng = Rng(9);
    let mut tried = 0;
    let threads = NonZeroUsize::new(2).unwrap();
    for origin in origins(1) {
        let known = Memory::new(origin.content.clone());
        let mut other = origin.content.clone();
        let last = other.len() - 1;
        other[last] ^= 1;
        let other = Memory::new(other);
        let clean = Trip::never();
        let image = origin.open(&clean).unwrap();
        let digest = content_digest(&image, Algorithm::Sha256).unwrap();
        let size = MeasureOptions::to("qcow2").of(&image).unwrap();
        let map: Vec<_> = image.extents().map(Result::unwrap).collect();
        for at in points(clean.calls(), 2, &mut rng) {
            for fault in [Fault::Os(EIO), Fault::Short] {
                let about = format!("{}, {fault:?} at call {at}", origin.name);
                let faulty = || origin.open(&Trip::at(at, fault));
                let compare = |with: &Memory| {
                    let image = faulty().ok()?;
                    let options = CompareOptions::new().threads(threads);
                    options.compare(&image, with).ok()
                };
                if let Some(found) = compare(&known) {
                    assert!(matches!(found, Comparison::Same), "{about}: {found:?}");
                }
                if let Some(found) = compare(&other) {
                    let Comparison::Differ { offset } = found else {
                        panic!("{about}: {found:?}");
                    };
                    assert_eq!(offset, last as u64, "{about}");
                }
                if let Ok(found) = faulty().and_then(|i| content_digest(&i, Algorithm::Sha256)) {
                    assert_eq!(found, digest, "{about}");
                }
                if let Ok(found) = faulty().and_then(|i| MeasureOptions::to("qcow2").of(&i)) {
                    assert_eq!(found, size, "{about}");
                }
                if let Ok(image) = faulty() {
                    if let Ok(found) = image.extents().collect::<Result<Vec<_>>>() {
                        assert_eq!(found, map, "{about}");
                    }
                }
                watchdog.alive();
                tried += 5;
            }
        }
    }
    figure("fault points of the other verbs", tried);
    assert!(tried > 100, "{tried}");
}
