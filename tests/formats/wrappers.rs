//! Every wrapper is asked for every optional capability of a source.

use std::sync::Arc;

use blockform::convert::ConvertOptions;
use blockform::image::{Disk, DiskImage, ImageInfo};
use blockform::salvage::Salvage;
use blockform::storage::{Concat, Memory, Slice};
use blockform::{
    BlockSource, BlockSourceExt, BlockTarget, Codec, FileIdentity, FormatId, Image, OpenOptions,
    PackedSource, PackedUnit, Place, Result, Salvageable, Stored,
};

use crate::support::sample_disk;

const SIZE: u64 = 64 << 10;
const FORMAT: FormatId = FormatId::new("full");
const FILE: FileIdentity = FileIdentity { device: 7, file: 9 };
/// More than the rest of any block, so that it is told from the default.
const LOST: u64 = 12345;

/// A source that has every capability.
#[derive(Debug, Clone, Copy)]
struct Full;

impl BlockSource for Full {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let n = buf
            .len()
            .min(usize::try_from(SIZE.saturating_sub(offset)).unwrap());
        buf[..n].fill(1);
        Ok(n)
    }

    fn block_size(&self) -> u64 {
        4096
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }

    fn packed(&self) -> Option<&dyn PackedSource> {
        Some(self)
    }

    fn salvage(&self) -> Option<&dyn Salvageable> {
        Some(self)
    }
}

impl Stored for Full {
    fn identity(&self) -> Option<FileIdentity> {
        Some(FILE)
    }

    fn depth_of(&self, file: FileIdentity, _: FormatId) -> Option<u16> {
        (file == FILE).then_some(0)
    }

    fn place_of(&self, offset: u64, limit: u64) -> Option<Place<'_>> {
        let len = limit.min(SIZE.checked_sub(offset)?);
        (len > 0).then_some(Place {
            file: Some(FILE),
            handle: None,
            offset,
            len,
        })
    }

    fn allocated_size(&self) -> Option<u64> {
        Some(SIZE)
    }
}

impl Salvageable for Full {
    fn lost_with(&self, _: u64) -> u64 {
        LOST
    }
}

impl PackedSource for Full {
    fn codec(&self) -> Codec {
        Codec::Zlib
    }

    fn unit(&self) -> u64 {
        4096
    }

    fn read_packed(
        &self,
        _: u64,
        _: u64,
        _: &mut Vec<u8>,
        _: &mut Vec<PackedUnit>,
    ) -> Result<usize> {
        Ok(0)
    }

    fn unpack(&self, _: &PackedUnit, _: &[u8], _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn place_of_unit(&self, _: u64) -> Result<Option<u64>> {
        Ok(None)
    }
}

impl Disk for Full {}

fn image() -> DiskImage<Full> {
    DiskImage::new(FORMAT, Arc::new(Full), Full, ImageInfo::default())
}

/// The capabilities that a source answers for.
fn answers(source: &dyn BlockSource) -> String {
    let answers = [
        ("block", source.block_size() == 4096),
        ("identity", source.identity() == Some(FILE)),
        ("uses", source.uses_file(FILE)),
        ("depth", source.depth_of(FILE, FORMAT) == Some(0)),
        ("place", source.place_of(0, 1).is_some()),
        ("allocated", source.allocated_size() == Some(SIZE)),
        ("packed", source.packed().is_some()),
        ("lost", source.lost_with(0) == LOST),
    ];
    let answers = answers.into_iter().filter(|(_, answered)| *answered);
    answers.map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_wrapper_forwards_what_it_can() {
    const ALL: &str = "block identity uses depth place allocated packed lost";
    let concat = |count: usize| {
        let parts = (0..count).map(|_| Arc::new(Full) as Arc<dyn BlockSource>);
        Concat::new(parts).unwrap()
    };
    let raw = OpenOptions::new().format("raw").open(Arc::new(Full));
    // What the image lies in has a size on disk; the image itself has none.
    let of_image = "block identity uses depth place packed lost";
    let wrappers: [(&str, Box<dyn BlockSource>, &str); 10] = [
        ("source", Box::new(Full), ALL),
        ("reference", Box::new(&Full), ALL),
        ("box", Box::new(Box::new(Full) as Box<dyn BlockSource>), ALL),
        ("arc", Box::new(Arc::new(Full)), ALL),
        // A part is not the file, and its units begin elsewhere.
        (
            "slice",
            Box::new(Slice::new(Full, 0, SIZE).unwrap()),
            "block uses place lost",
        ),
        (
            "one part",
            Box::new(concat(1)),
            "block uses place packed lost",
        ),
        ("two parts", Box::new(concat(2)), "block uses place lost"),
        ("image", Box::new(image()), of_image),
        // Bytes that cannot be read are zeros: none is taken from elsewhere, and no more is lost.
        (
            "salvage",
            Box::new(Salvage::of(Box::new(image()) as Box<dyn Image>)),
            "block identity uses depth",
        ),
        // It is of another format.
        (
            "raw image",
            Box::new(raw.unwrap()),
            "block identity uses place packed lost",
        ),
    ];
    for (name, wrapper, expected) in wrappers {
        assert_eq!(answers(&*wrapper), expected, "{name}");
    }
}

#[test]
fn a_disk_in_an_appliance_hands_out_its_compressed_units() {
    let disk = Memory::new(sample_disk(3, 1 << 20));
    let file: Arc<Memory> = Arc::default();
    let target: Arc<dyn BlockTarget> = Arc::clone(&file) as Arc<dyn BlockTarget>;
    ConvertOptions::to("ova")
        .convert_to_targets(&disk, &[target])
        .unwrap();
    let image = OpenOptions::new().open(file).unwrap();
    let packed = image.packed().unwrap();
    assert_eq!(
        (packed.codec(), packed.unit()),
        (Codec::Zlib, image.block_size())
    );
}
