//! A disk in memory that knows where it is zero, and the ways in which it can be written as qcow2.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use blockform::convert::ConvertOptions;
use blockform::image::{Backing, Image};
use blockform::storage::Memory;
use blockform::{
    BlockSource, BlockTarget, Error, Extent, ExtentKind, ImageName, OpenOptions, Reference,
    Resolved, Resolver, Result, check_extent,
};

/// Content of a range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Bytes that nothing can pack.
    Noise,
    /// Bytes that pack well.
    Text,
    /// Zeros that nobody knows of until they are read.
    StoredZeroes,
    /// Zeros that the source says are zeros.
    Zero,
    /// Zeros that the source says are nowhere.
    Hole,
}

impl Fill {
    pub const ALL: [Fill; 5] = [
        Fill::Noise,
        Fill::Text,
        Fill::StoredZeroes,
        Fill::Zero,
        Fill::Hole,
    ];
}

/// A disk in memory: its bytes are what every image made of it has to read as.
pub struct Model {
    pub bytes: Vec<u8>,
    /// One kind for each sector.
    kinds: Vec<ExtentKind>,
}

const SECTOR: usize = 512;

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({} bytes)", self.bytes.len())
    }
}

impl Model {
    /// A disk that is one hole.
    pub fn new(size: usize) -> Self {
        Model {
            bytes: vec![0; size],
            kinds: vec![ExtentKind::Hole; size.div_ceil(SECTOR)],
        }
    }

    /// Fills `len` bytes at `start`, as far as the disk goes. Known zeros cover whole sectors only.
    pub fn fill(&mut self, start: usize, len: usize, fill: Fill, seed: u64) {
        let end = start.saturating_add(len).min(self.bytes.len());
        let start = start.min(end);
        let range = &mut self.bytes[start..end];
        match fill {
            Fill::Noise => {
                let mut state = seed | 1;
                for word in range.chunks_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
                }
            }
            Fill::Text => {
                const TEXT: &[u8] = b"some text of a guest ";
                // What is there is doubled: these are most of the bytes that a fuzzer writes.
                let mut done = TEXT.len().min(range.len());
                range[..done].copy_from_slice(&TEXT[..done]);
                while done < range.len() {
                    let more = done.min(range.len() - done);
                    range.copy_within(..more, done);
                    done += more;
                }
            }
            Fill::StoredZeroes | Fill::Zero | Fill::Hole => range.fill(0),
        }
        let (kind, sectors) = match fill {
            Fill::Noise | Fill::Text | Fill::StoredZeroes => {
                (ExtentKind::Data, start / SECTOR..end.div_ceil(SECTOR))
            }
            Fill::Zero => (ExtentKind::Zero, start.div_ceil(SECTOR)..end / SECTOR),
            Fill::Hole => (ExtentKind::Hole, start.div_ceil(SECTOR)..end / SECTOR),
        };
        if start < end && sectors.start < sectors.end {
            self.kinds[sectors].fill(kind);
        }
    }
}

impl BlockSource for Model {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let start = usize::try_from(offset).map_or(self.bytes.len(), |o| o.min(self.bytes.len()));
        let rest = &self.bytes[start..];
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let size = self.size();
        check_extent(offset, limit, size)?;
        let first = usize::try_from(offset).unwrap() / SECTOR;
        let kind = self.kinds[first];
        let same = self.kinds[first..]
            .iter()
            .take_while(|k| **k == kind)
            .count();
        let end = (((first + same) * SECTOR) as u64).min(size);
        let extent = Extent {
            start: offset,
            len: end - offset,
            kind,
            depth: 0,
            host_offset: None,
        };
        Ok(extent.limited(limit))
    }
}

/// One way to write a disk as qcow2. Every value is made valid by [`Way::options`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub v2: bool,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub extended_l2: bool,
    pub lazy_refcounts: bool,
    pub compress: bool,
    pub zstd: bool,
    pub preallocation: u32,
    pub data_file: bool,
    pub data_file_raw: bool,
    pub sparse_size: u64,
    pub threads: usize,
    pub memory: u64,
}

impl Default for Way {
    fn default() -> Self {
        Way {
            v2: false,
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: false,
            lazy_refcounts: false,
            compress: false,
            zstd: false,
            preallocation: 0,
            data_file: false,
            data_file_raw: false,
            sparse_size: 4096,
            threads: 2,
            memory: 64 << 20,
        }
    }
}

impl Way {
    /// This way without what excludes each other, in an order that lets each choice win sometimes.
    pub fn settled(mut self) -> Self {
        let codec = [cfg!(feature = "zlib"), cfg!(feature = "zstd")][usize::from(self.zstd)];
        self.compress &= codec;
        self.zstd &= self.compress;
        if self.v2 {
            (self.refcount_order, self.extended_l2) = (4, false);
            (self.lazy_refcounts, self.data_file, self.zstd) = (false, false, false);
            self.compress &= cfg!(feature = "zlib");
        }
        if self.compress {
            (self.preallocation, self.data_file) = (0, false);
        }
        self.data_file_raw &= self.data_file;
        if self.extended_l2 {
            self.cluster_bits = self.cluster_bits.max(14);
        }
        self
    }

    /// The options of a settled way, as people write them.
    pub fn text(&self) -> String {
        let on = |flag: bool| if flag { "on" } else { "off" };
        let mut text = format!(
            "compat={},cluster_size={}",
            if self.v2 { "0.10" } else { "1.1" },
            1_u64 << self.cluster_bits
        );
        if !self.v2 {
            text += &format!(
                ",refcount_bits={},extended_l2={},lazy_refcounts={},compression_type={}",
                1 << self.refcount_order,
                on(self.extended_l2),
                on(self.lazy_refcounts),
                if self.zstd { "zstd" } else { "zlib" }
            );
        }
        let preallocation = ["off", "metadata", "falloc", "full"];
        text += &format!(
            ",preallocation={}",
            preallocation[self.preallocation as usize % 4]
        );
        if self.data_file {
            text += &format!(
                ",data_file=data.bin,data_file_raw={}",
                on(self.data_file_raw)
            );
        }
        text
    }

    pub fn options(&self) -> ConvertOptions {
        let mut options = ConvertOptions::to("qcow2")
            .compress(self.compress)
            .sparse_size(self.sparse_size)
            .threads(NonZeroUsize::new(self.threads).unwrap())
            .memory(self.memory)
            .sync(false);
        for (name, value) in blockform::image::parse_options(&self.text()).unwrap() {
            options = options.option(name, value);
        }
        options
    }

    /// Writes a disk this way and returns the files, the image first.
    pub fn write(&self, disk: &dyn BlockSource) -> Result<Vec<Arc<Memory>>> {
        self.write_with(self.options(), disk)
    }

    pub fn write_with(
        &self,
        options: ConvertOptions,
        disk: &dyn BlockSource,
    ) -> Result<Vec<Arc<Memory>>> {
        let count = if self.data_file { 2 } else { 1 };
        let files: Vec<Arc<Memory>> = (0..count).map(|_| Arc::default()).collect();
        let targets: Vec<Arc<dyn BlockTarget>> = files
            .iter()
            .map(|file| Arc::clone(file) as Arc<dyn BlockTarget>)
            .collect();
        options.convert_to_targets(disk, &targets)?;
        Ok(files)
    }
}

/// Opens what [`Way::write`] wrote, over a backing disk if there is one.
pub fn reopen(files: &[Arc<Memory>], base: Option<&[u8]>) -> Result<Box<dyn Image>> {
    let mut all = vec![];
    if let Some(data) = files.get(1) {
        all.push(("data.bin", Arc::clone(data)));
    }
    if let Some(base) = base {
        all.push(("base.raw", Arc::new(Memory::new(base))));
    }
    let options = OpenOptions::new().format("qcow2");
    options
        .resolver(Arc::new(Files(all)))
        .open(Arc::clone(&files[0]) as Arc<dyn BlockSource>)
}

/// An overlay over a raw disk, called `base.raw` in it.
pub fn over(options: ConvertOptions, base: &[u8]) -> ConvertOptions {
    let image = OpenOptions::new()
        .format("raw")
        .open(Arc::new(Memory::new(base)))
        .unwrap();
    let backing = Backing::new(ImageName::from("base.raw"), "raw");
    options.overlay(backing, Arc::from(image))
}

/// A conversion in memory, for a test.
pub fn to(format: &str, threads: usize) -> ConvertOptions {
    let threads = NonZeroUsize::new(threads).unwrap();
    ConvertOptions::to(format).threads(threads).sync(false)
}

/// Writes a disk into a stream and returns the stream.
pub fn streamed(options: &ConvertOptions, disk: &dyn BlockSource) -> Result<Vec<u8>> {
    let mut stream = Vec::new();
    options.convert_to_writer(disk, &mut stream)?;
    Ok(stream)
}

/// An image in one file, and the file.
#[derive(Debug)]
pub struct Written {
    pub file: Arc<Memory>,
    pub image: Arc<dyn Image>,
}

/// Writes a disk as an image in one file, over another one of the same format if there is one, and
/// opens the result.
pub fn written(
    options: ConvertOptions,
    format: &str,
    disk: &dyn BlockSource,
    below: Option<Written>,
) -> Written {
    let file: Arc<Memory> = Arc::default();
    let mut resolver = OnlyOne(None);
    let options = match below {
        None => options,
        Some(below) => {
            resolver = OnlyOne(Some(Arc::clone(&below.file)));
            over_written(options, format, &below)
        }
    };
    let target: Arc<dyn BlockTarget> = Arc::clone(&file) as Arc<dyn BlockTarget>;
    options.convert_to_targets(disk, &[target]).unwrap();
    let open = OpenOptions::new()
        .format(format)
        .resolver(Arc::new(resolver));
    let image = open.open(Arc::clone(&file) as Arc<dyn BlockSource>);
    let image = image.unwrap();
    Written {
        file,
        image: Arc::from(image),
    }
}

/// An overlay over an image of the same format.
pub fn over_written(options: ConvertOptions, format: &str, below: &Written) -> ConvertOptions {
    let name = format!("base.{format}");
    let backing = Backing::new(ImageName::from(name.as_str()), format);
    options.overlay(backing, Arc::clone(&below.image))
}

/// Opens what [`streamed`] wrote, over the file `below` if there is one.
pub fn open_stream(bytes: Vec<u8>, format: &str, below: Option<Arc<Memory>>) -> Box<dyn Image> {
    let options = OpenOptions::new().format(format);
    let options = options.resolver(Arc::new(OnlyOne(below)));
    options.open(Arc::new(Memory::new(bytes))).unwrap()
}

/// One file, whatever it is called.
#[derive(Debug, Clone)]
pub struct OnlyOne(pub Option<Arc<Memory>>);

impl Resolver for OnlyOne {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        match &self.0 {
            None => blockform::DenyReferences.resolve(reference),
            Some(file) => Ok(Resolved::Open {
                source: Arc::clone(file) as Arc<dyn BlockSource>,
                format: None,
                within: Arc::new(OnlyOne(None)),
            }),
        }
    }
}

/// Files in memory by their names.
#[derive(Debug, Clone)]
struct Files(Vec<(&'static str, Arc<Memory>)>);

impl Resolver for Files {
    fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let found = self
            .0
            .iter()
            .find(|(name, _)| reference.name.as_str() == Some(name));
        let (_, file) = found.ok_or_else(|| Error::invalid("no such file"))?;
        Ok(Resolved::Open {
            source: Arc::clone(file) as Arc<dyn BlockSource>,
            format: None,
            within: Arc::new(self.clone()),
        })
    }
}
