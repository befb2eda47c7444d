//! VHDX: a file has megabytes and its structures have checksums, so the input is what is changed in a
//! sound one, and the checksums are made right afterwards.

use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, Image};
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, DenyReferences, ImageName, OpenOptions, Reference,
    Resolved, Resolver, Result,
};

use crate::model::Model;
use crate::{disk, look_around, printable, small, stream_write};

/// Bytes that are changed in one of the structures.
#[derive(Debug, Arbitrary)]
pub struct Patch {
    place: u8,
    offset: u16,
    bytes: [u8; 8],
    len: u8,
}

/// A parent from memory, whatever it is called.
#[derive(Debug)]
struct Parent(Vec<u8>);

impl Resolver for Parent {
    fn resolve(&self, _: &Reference) -> Result<Resolved> {
        Ok(Resolved::Open {
            source: Arc::new(Memory::new(self.0.clone())),
            format: None,
            within: Arc::new(DenyReferences),
        })
    }
}

fn write(options: ConvertOptions, disk: &dyn BlockSource) -> Vec<u8> {
    let target = Arc::new(Memory::new(Vec::new()));
    let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&target) as _];
    options
        .convert_to_targets(disk, &targets)
        .expect("memory can be written");
    target.to_bytes()
}

fn open(bytes: Vec<u8>, below: &[u8]) -> Result<Box<dyn Image>> {
    let options = OpenOptions::new().format("vhdx").limits(small());
    let options = options.resolver(Arc::new(Parent(below.to_vec())));
    options.open(Arc::new(Memory::new(bytes)))
}

fn over(below: &[u8], options: ConvertOptions) -> ConvertOptions {
    let image = open(below.to_vec(), &[]).expect("what was written opens");
    let backing = Backing::new(ImageName::from("base.vhdx"), "vhdx");
    options.overlay(backing, Arc::from(image))
}

/// A sound image and its sound child.
static SOUND: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let options = || ConvertOptions::to("vhdx").option("block_size", "1M");
    let base = write(
        options(),
        &disk(2100, &[(0, 0, 900_000, 1), (1, 1 << 20, 9000, 2)]),
    );
    let child = write(
        over(&base, options()),
        &disk(2100, &[(0, 0, 900_000, 1), (0, 8192, 4096, 3)]),
    );
    [base, child]
});

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
    let is_child = patches.len() % 2 == 1;
    let mut bytes = if is_child {
        child.clone()
    } else {
        base.clone()
    };
    for patch in patches.iter().take(200) {
        let at = PLACES[usize::from(patch.place) % PLACES.len()] + usize::from(patch.offset) % 8192;
        let len = 1 + usize::from(patch.len % 8);
        bytes[at..at + len].copy_from_slice(&patch.bytes[..len]);
    }
    let entry = u32::from_le_bytes([bytes[LOG + 8], bytes[LOG + 9], bytes[LOG + 10], 0]);
    let entry = (entry as usize).clamp(64, 64 * KIB);
    let structures = PLACES
        .into_iter()
        .zip([4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, entry]);
    for (at, len) in structures {
        bytes[at + 4..at + 8].fill(0);
        let crc = crc32c::crc32c(&bytes[at..at + len]);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
    match open(bytes, base) {
        Ok(image) => look_around(image.as_ref()),
        Err(error) => printable(&error),
    }
}

/// A disk, perhaps over another, and a way to write it.
#[derive(Debug, Arbitrary)]
pub struct VhdxPlan {
    sectors: u16,
    fills: Vec<(u8, u32, u32, u64)>,
    base: Option<Vec<(u8, u32, u32, u64)>>,
    block_bits: u8,
    fixed: bool,
    large_sectors: bool,
    mark_zeroes: bool,
}

/// Writes the disk as VHDX, opens the result and compares every byte.
pub fn vhdx_write(plan: &VhdxPlan) {
    let source: Model = disk(plan.sectors, &plan.fills);
    let on_off = |on| if on { "on" } else { "off" };
    let options = || {
        ConvertOptions::to("vhdx")
            .option("block_size", format!("{}M", 1 << (plan.block_bits % 3)))
            .option(
                "logical_sector_size",
                if plan.large_sectors { "4096" } else { "512" },
            )
            .option("block_state_zero", on_off(plan.mark_zeroes))
    };
    let base = plan
        .base
        .as_ref()
        .map(|fills| write(options(), &disk(plan.sectors, fills)));
    let options = match &base {
        Some(base) => over(base, options()),
        None if plan.fixed => options().option("subformat", "fixed"),
        None => options(),
    };
    let below = base
        .as_ref()
        .map(|base| Arc::new(Memory::new(base.clone())));
    stream_write(&options, &source, "vhdx", below, None);
    let bytes = write(options, &source);
    let image = open(bytes, &base.unwrap_or_default()).expect("what was written opens");
    let mut read = vec![0xee; source.bytes.len()];
    image
        .read_exact_at(&mut read, 0)
        .expect("what was written reads");
    assert!(read == source.bytes, "other bytes");
    look_around(image.as_ref());
}
