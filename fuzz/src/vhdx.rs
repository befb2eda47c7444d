//! VHDX: a file has megabytes and its structures have checksums, so the input is what is changed in a
//! sound one, and the checksums are made right afterwards.

use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, Image};
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, DenyReferences, ImageName, OpenOptions, Reference,
    Resolved, Resolver, Result,
};

use crate::model::{Fill, Model};
use crate::pages::Pages;
use crate::{
    Fills, disk, look_around, look_around_in_some, model, printable, seldom, small, threads,
};

/// Bytes that are changed in one of the structures.
#[derive(Debug, Arbitrary)]
pub struct Patch {
    place: u8,
    offset: u16,
    bytes: [u8; 8],
    len: u8,
}

/// One parent, whatever it is called.
#[derive(Debug)]
struct Parent(Option<Arc<dyn BlockSource>>);

impl Resolver for Parent {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        match &self.0 {
            None => DenyReferences.resolve(reference),
            Some(source) => Ok(Resolved::Open {
                source: Arc::clone(source),
                format: None,
                within: Arc::new(DenyReferences),
            }),
        }
    }
}

fn write(options: &ConvertOptions, disk: &dyn BlockSource) -> Arc<Pages> {
    let file: Arc<Pages> = Arc::default();
    let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&file) as _];
    options
        .convert_to_targets(disk, &targets)
        .expect("memory can be written");
    file
}

fn open(file: Arc<dyn BlockSource>, below: Option<Arc<dyn BlockSource>>) -> Result<Box<dyn Image>> {
    let mut limits = small();
    // A page of the BAT and one of the bitmaps, which are read in turn.
    limits.cache_bytes = 512 << 10;
    let options = OpenOptions::new().format("vhdx").limits(limits);
    options.resolver(Arc::new(Parent(below))).open(file)
}

fn over(below: &Arc<dyn BlockSource>, options: ConvertOptions) -> ConvertOptions {
    let image = open(Arc::clone(below), None).expect("what was written opens");
    let backing = Backing::new(ImageName::from("base.vhdx"), "vhdx");
    options.overlay(backing, Arc::from(image))
}

/// A sound image and its sound child.
static SOUND: LazyLock<[Arc<Pages>; 2]> = LazyLock::new(|| {
    let options = || ConvertOptions::to("vhdx").option("block_size", "1M");
    let mut disk = Model::new(2100 * 512);
    disk.fill(0, 900_000, Fill::Noise, 1);
    disk.fill(1 << 20, 9000, Fill::Text, 2);
    let base = write(&options(), &disk);
    disk.fill(8192, 4096, Fill::Noise, 3);
    let below: Arc<dyn BlockSource> = Arc::clone(&base) as _;
    let child = write(&over(&below, options()), &disk);
    [base, child]
});

fn get(file: &Pages, start: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, start as u64)
        .expect("memory can be read");
    bytes
}

fn set(file: &Pages, start: usize, bytes: &[u8]) {
    file.write_all_at(bytes, start as u64)
        .expect("memory can be written");
}

const KIB: usize = 1024;
const LOG: usize = 1024 * KIB;

/// Headers, region tables, log, metadata table, metadata items, BAT, all of them in the first 4 MiB.
const PLACES: [usize; 9] = [
    64 * KIB,
    128 * KIB,
    192 * KIB,
    256 * KIB,
    LOG,
    LOG + 4 * KIB,
    2 * LOG,
    2 * LOG + 64 * KIB,
    3 * LOG,
];

/// Changes a sound image and looks around in what it is then.
pub fn vhdx(patches: &[Patch]) {
    let [base, child] = &*SOUND;
    let image = if patches.len() % 2 == 1 { child } else { base };
    let file = Pages::clone(image);
    for patch in patches.iter().take(200) {
        let at = PLACES[usize::from(patch.place) % PLACES.len()] + usize::from(patch.offset) % 8192;
        let len = 1 + usize::from(patch.len % 8);
        set(&file, at, &patch.bytes[..len]);
    }
    let entry = get(&file, LOG + 8, 3);
    let entry = u32::from_le_bytes([entry[0], entry[1], entry[2], 0]) as usize;
    let entry = entry.clamp(64, 64 * KIB);
    let structures = PLACES
        .into_iter()
        .zip([4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, entry]);
    for (at, len) in structures {
        set(&file, at + 4, &[0; 4]);
        let crc = crc32c::crc32c(&get(&file, at, len));
        set(&file, at + 4, &crc.to_le_bytes());
    }
    let file = Arc::new(file);
    match open(file, Some(Arc::clone(base) as _)) {
        Ok(image) => look_around(image.as_ref()),
        Err(error) => printable(&error),
    }
}

/// A disk, perhaps over another, and a way to write it.
#[derive(Debug, Arbitrary)]
pub struct VhdxPlan {
    sectors: u16,
    fills: Fills,
    base: Option<Fills>,
    block_bits: u8,
    fixed: bool,
    large_sectors: bool,
    mark_zeroes: bool,
    streamed: bool,
}

/// Writes the disk as VHDX, opens the result and compares every byte.
pub fn vhdx_write(plan: &VhdxPlan) {
    let source: Model = disk(plan.sectors, &plan.fills);
    let on_off = |on| if on { "on" } else { "off" };
    let threads = threads(plan.block_bits / 3);
    let options = || {
        model::to("vhdx", threads)
            .option("block_size", format!("{}M", 1 << (plan.block_bits % 3)))
            .option(
                "logical_sector_size",
                if plan.large_sectors { "4096" } else { "512" },
            )
            .option("block_state_zero", on_off(plan.mark_zeroes))
    };
    let base = plan.base.as_ref();
    let base = base.filter(|_| seldom("base", &plan.fills, 8));
    let base = base.map(|fills| write(&options(), &disk(plan.sectors, fills)));
    let below = || base.as_ref().map(|base| Arc::clone(base) as _);
    let options = match below() {
        Some(base) => over(&base, options()),
        None if plan.fixed => options().option("subformat", "fixed"),
        None => options(),
    };
    let read_again = |file: Arc<Pages>| {
        let image = open(file, below()).expect("what was written opens");
        let mut read = vec![0xee; source.bytes.len()];
        image
            .read_exact_at(&mut read, 0)
            .expect("what was written reads");
        assert!(read == source.bytes, "{plan:?}: other bytes");
        image
    };
    if plan.streamed && seldom("stream", &plan.fills, 12) {
        let stream: Arc<Pages> = Arc::default();
        let written = options.convert_to_writer(&source, &*stream);
        written.expect("a stream takes it, too");
        read_again(stream);
    }
    let image = read_again(write(&options, &source));
    look_around_in_some(image.as_ref(), &plan.fills);
}
