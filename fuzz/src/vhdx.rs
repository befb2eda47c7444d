//! VHDX: a file has megabytes and its structures have checksums, so the input is what is changed in a
//! sound one, and the checksums are made right afterwards.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use blockform::convert::ConvertOptions;
use blockform::image::{Backing, Image};
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, DenyReferences, Extent, ImageName, OpenOptions,
    Reference, Resolved, Resolver, Result,
};

use crate::model::{Fill, Model};
use crate::{disk, look_around, printable, small, stream_write};

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

fn write(options: ConvertOptions, disk: &dyn BlockSource) -> Arc<Memory> {
    // As much as such a file needs, so that it is not moved while it grows.
    let file = Arc::new(Memory::new(Vec::with_capacity(8 << 20)));
    let targets: [Arc<dyn BlockTarget>; 1] = [Arc::clone(&file) as _];
    options
        .convert_to_targets(disk, &targets)
        .expect("memory can be written");
    file
}

fn open(file: Arc<dyn BlockSource>, below: Option<Arc<dyn BlockSource>>) -> Result<Box<dyn Image>> {
    let options = OpenOptions::new().format("vhdx").limits(small());
    options.resolver(Arc::new(Parent(below))).open(file)
}

fn over(below: &Arc<dyn BlockSource>, options: ConvertOptions) -> ConvertOptions {
    let image = open(Arc::clone(below), None).expect("what was written opens");
    let backing = Backing::new(ImageName::from("base.vhdx"), "vhdx");
    options.overlay(backing, Arc::from(image))
}

/// A sound image and its sound child.
static SOUND: LazyLock<[Arc<Memory>; 2]> = LazyLock::new(|| {
    let options = || ConvertOptions::to("vhdx").option("block_size", "1M");
    let mut disk = Model::new(2100 * 512);
    disk.fill(0, 900_000, Fill::Noise, 1);
    disk.fill(1 << 20, 9000, Fill::Text, 2);
    let base = write(options(), &disk);
    disk.fill(8192, 4096, Fill::Noise, 3);
    let below: Arc<dyn BlockSource> = Arc::clone(&base) as _;
    let child = write(over(&below, options()), &disk);
    [base, child]
});

const PAGE: usize = 4096;

/// An image of which some pages are changed, and the rest is shared.
#[derive(Debug)]
struct Patched {
    pages: BTreeMap<usize, [u8; PAGE]>,
    rest: Arc<Memory>,
}

impl Patched {
    fn get(&self, start: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, start as u64)
            .expect("memory can be read");
        bytes
    }

    fn set(&mut self, start: usize, bytes: &[u8]) {
        for (at, byte) in (start..).zip(bytes) {
            let page = self.pages.entry(at / PAGE).or_insert_with(|| {
                let mut page = [0; PAGE];
                let start = at / PAGE * PAGE;
                self.rest
                    .read_exact_at(&mut page, start as u64)
                    .expect("memory can be read");
                page
            });
            page[at % PAGE] = *byte;
        }
    }
}

impl BlockSource for Patched {
    fn size(&self) -> u64 {
        self.rest.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = self.rest.read_at(buf, offset)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(n);
        for (page, bytes) in self.pages.range(start / PAGE..end.div_ceil(PAGE)) {
            let at = page * PAGE;
            let (from, to) = (start.max(at), end.min(at + PAGE));
            buf[from - start..to - start].copy_from_slice(&bytes[from - at..to - at]);
        }
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        self.rest.extent_at(offset, limit)
    }
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
    let mut file = Patched {
        pages: BTreeMap::new(),
        rest: Arc::clone(image),
    };
    for patch in patches.iter().take(200) {
        let at = PLACES[usize::from(patch.place) % PLACES.len()] + usize::from(patch.offset) % 8192;
        let len = 1 + usize::from(patch.len % 8);
        file.set(at, &patch.bytes[..len]);
    }
    let entry = file.get(LOG + 8, 3);
    let entry = u32::from_le_bytes([entry[0], entry[1], entry[2], 0]) as usize;
    let entry = entry.clamp(64, 64 * KIB);
    let structures = PLACES
        .into_iter()
        .zip([4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, entry]);
    for (at, len) in structures {
        file.set(at + 4, &[0; 4]);
        let crc = crc32c::crc32c(&file.get(at, len));
        file.set(at + 4, &crc.to_le_bytes());
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
    fills: Vec<(u8, u32, u32, u64)>,
    base: Option<Vec<(u8, u32, u32, u64)>>,
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
    let options = || {
        ConvertOptions::to("vhdx")
            .option("block_size", format!("{}M", 1 << (plan.block_bits % 3)))
            .option(
                "logical_sector_size",
                if plan.large_sectors { "4096" } else { "512" },
            )
            .option("block_state_zero", on_off(plan.mark_zeroes))
    };
    let base = plan.base.as_ref();
    let base = base.map(|fills| write(options(), &disk(plan.sectors, fills)));
    let below = || base.as_ref().map(|base| Arc::clone(base) as _);
    let options = match below() {
        Some(base) => over(&base, options()),
        None if plan.fixed => options().option("subformat", "fixed"),
        None => options(),
    };
    if plan.streamed {
        stream_write(&options, &source, "vhdx", base.clone(), None);
    }
    let file = write(options, &source);
    let image = open(file, below()).expect("what was written opens");
    let mut read = vec![0xee; source.bytes.len()];
    image
        .read_exact_at(&mut read, 0)
        .expect("what was written reads");
    assert!(read == source.bytes, "other bytes");
    look_around(image.as_ref());
}
