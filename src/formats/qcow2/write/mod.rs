//! Laying a new image out, in memory that does not grow with it.
//!
//! ```text
//!   header │ refcount block │ L1 table │ data, L2 tables and refcount blocks in turn │ refcount table
//! ```
//!
//! Host clusters are handed out from front to back ([`alloc`]). An L2 table is allocated and emitted
//! when the guest position leaves what it maps ([`mapping`]), a refcount block when the allocator
//! leaves what it counts. The L1 table is reserved first and emitted last, with the refcount table.

mod alloc;
mod bytes;
mod encoder;
mod header;
mod mapping;
mod options;
mod packing;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::qcow2::bitmap;
use crate::image::{
    BitmapInfo, CopiedPart, Encoder, Finish, ImageWriter, OutputFile, Part, Payload, Placed, Write,
    WriteRun, WriteShape,
};

use super::entry::{L2Entry, SUBCLUSTERS};
use alloc::Allocator;
use encoder::ClusterEncoder;
use header::Tables;
use mapping::{Mapping, Subcluster};
use packing::Packing;

pub use options::{Preallocation, Qcow2Options, Version};

/// The host clusters of a data file are the guest's: nothing is allocated there.
const DATA_FILE: usize = 1;

/// Lays a qcow2 image out.
#[derive(Debug)]
pub(super) struct Writer {
    options: Qcow2Options,
    virtual_size: u64,
    /// First guest offset at which the next run may start.
    position: u64,
    allocator: Allocator,
    mapping: Mapping,
    packing: Packing,
    encoder: Option<Arc<ClusterEncoder>>,
    l1_size: u64,
    l1_table_offset: u64,
    /// Tables that were full before anybody asked for a place.
    pending: Vec<Write>,
}

impl Writer {
    /// A writer for options that were checked and a virtual size that they can map.
    fn new(options: Qcow2Options, virtual_size: u64) -> Result<Self> {
        let cluster_size = options.cluster_size;
        // Names too long for the first cluster are refused before anything is written.
        header::encode(&options, virtual_size, Tables::default())?;
        let encoder = match options.compress {
            true => Some(Arc::new(ClusterEncoder::new(&options)?)),
            false => None,
        };
        let l1_size = options.l1_size(virtual_size);
        let l1_clusters = (l1_size * 8).div_ceil(cluster_size);
        let mut allocator = Allocator::new(cluster_size, options.refcount_bits);
        let mut pending = Vec::new();
        let l1_table_offset = allocator.reserve(l1_clusters, &mut pending)?;
        Ok(Writer {
            virtual_size,
            position: 0,
            allocator,
            mapping: Mapping::new(options.l2_layout(), cluster_size, l1_clusters),
            packing: Packing::new(cluster_size, options.l2_layout()),
            encoder,
            l1_size,
            l1_table_offset,
            pending,
            options,
        })
    }

    /// Returns whether every guest cluster gets its host cluster. QEMU does that for a raw data file, too,
    /// which others may write to.
    fn maps_everything(&self) -> bool {
        self.options.preallocation != Preallocation::Off || self.options.data_file_raw
    }

    fn data_file(&self) -> usize {
        match self.options.data_file {
            Some(_) => DATA_FILE,
            None => 0,
        }
    }

    /// Bytes of the smallest piece of the guest that can be mapped on its own.
    fn unit(&self) -> u64 {
        // Compressed clusters have no subclusters.
        if self.options.extended_l2 && !self.options.compress {
            self.options.cluster_size / u64::from(SUBCLUSTERS)
        } else {
            self.options.cluster_size
        }
    }

    /// Goes to where a run starts, which is behind the last one, and maps what lies between if the
    /// image is preallocated.
    fn advance(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<()> {
        let end = guest
            .checked_add(len)
            .filter(|end| *end <= self.virtual_size);
        if end.is_none() {
            return Err(Error::out_of_range(guest, len, self.virtual_size));
        }
        if len == 0 || guest % self.unit() != 0 || guest < self.position {
            return Err(Error::invalid(format!(
                "{len} bytes at {guest} are no run that can be placed behind {} in units of {}",
                self.position,
                self.unit()
            )));
        }
        if self.maps_everything() {
            self.preallocate_to(guest, tables)?;
        }
        self.mapping.enter(guest, &mut self.allocator, tables)
    }

    fn preallocate_to(&mut self, guest: u64, tables: &mut Vec<Write>) -> Result<()> {
        while self.position < guest {
            let at = self.position;
            self.mapping.enter(at, &mut self.allocator, tables)?;
            self.position += self.preallocate(at, guest - at, tables)?;
        }
        Ok(())
    }

    /// Maps guest bytes of the current L2 table to host clusters that lie side by side: the offset
    /// of the first byte, and how many bytes were mapped.
    fn map(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<(u64, u64)> {
        let cluster_size = self.options.cluster_size;
        let within = guest % cluster_size;
        let first = guest - within;
        let len = len.min(self.mapping.span_end(guest) - guest);
        let want = (within + len).div_ceil(cluster_size);
        let (host, count) = if self.options.data_file.is_some() {
            (first, want)
        } else {
            self.host_clusters(first, want, tables)?
        };
        for at in (0..count).map(|i| i * cluster_size) {
            self.mapping.set_entry(first + at, L2Entry::of(host + at));
        }
        Ok((host + within, len.min(count * cluster_size - within)))
    }

    /// Up to `want` host clusters for the guest clusters from `first` on, of which the first may have
    /// its own already: earlier subclusters lie in it.
    fn host_clusters(
        &mut self,
        first: u64,
        want: u64,
        tables: &mut Vec<Write>,
    ) -> Result<(u64, u64)> {
        let open = self.mapping.entry(first).offset();
        if open == 0 {
            return self.allocator.allocate(want, tables);
        }
        if want > 1
            && self
                .allocator
                .continues_at(open + self.options.cluster_size)
        {
            let (_, more) = self.allocator.allocate(want - 1, tables)?;
            return Ok((open, 1 + more));
        }
        Ok((open, 1))
    }

    /// Maps guest bytes of the current L2 table that read as zero, or as the backing file where they
    /// have subclusters, to host clusters. Returns how many bytes were mapped.
    fn preallocate(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<u64> {
        let (host, taken) = self.map(guest, len, tables)?;
        // Subclusters that are not allocated read as zero without a look at the host cluster.
        let shows = !self.options.extended_l2 || self.options.data_file_raw;
        let payload = match self.options.preallocation {
            Preallocation::Full => Payload::WrittenZeroes(taken),
            _ if shows => Payload::Zeroes(taken),
            _ => return Ok(taken),
        };
        tables.push(Write::new(self.data_file(), host, payload));
        Ok(taken)
    }

    fn place_verbatim(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        self.advance(guest, len, tables)?;
        let (host, taken) = self.map(guest, len, tables)?;
        if self.options.extended_l2 {
            self.mapping
                .set_subclusters(guest, taken, Subcluster::Allocated);
        }
        self.position = guest + taken;
        Ok(Placed::new(self.data_file(), host, taken))
    }

    fn place_zero(&mut self, guest: u64, len: u64, tables: &mut Vec<Write>) -> Result<Placed> {
        self.advance(guest, len, tables)?;
        let len = len.min(self.mapping.span_end(guest) - guest);
        let has_backing = self.options.backing.is_some();
        let taken = if self.maps_everything() {
            self.preallocate(guest, len, tables)?
        } else if has_backing && self.options.version == Version::V2 {
            // Version 2 has no other way to hide the backing file.
            let (host, taken) = self.map(guest, len, tables)?;
            tables.push(Write::new(0, host, Payload::Zeroes(taken)));
            taken
        } else {
            len
        };
        if has_backing && self.options.extended_l2 {
            self.mapping.set_subclusters(guest, taken, Subcluster::Zero);
        } else if has_backing && self.options.version == Version::V3 {
            let clusters = taken.div_ceil(self.options.cluster_size);
            for at in (0..clusters).map(|i| i * self.options.cluster_size) {
                self.mapping.set_entry(guest + at, L2Entry::ZERO);
            }
        }
        self.position = guest + taken;
        Ok(Placed::new(0, 0, taken))
    }

    fn place_packed(&mut self, parts: &[Part], tables: &mut Vec<Write>) -> Result<Placed> {
        let cluster_size = self.options.cluster_size;
        let all = parts.iter().map(|part| (part.guest, part.len.into()));
        self.enter_packed(all, cluster_size, tables)?;
        let placed = self
            .packing
            .place(parts, &mut self.mapping, &mut self.allocator, tables)?;
        let last = usize::try_from(placed.taken - 1).ok();
        if let Some(last) = last.and_then(|i| parts.get(i)) {
            self.position = last.guest + cluster_size;
        }
        Ok(placed)
    }

    fn place_copied(
        &mut self,
        parts: &[CopiedPart],
        remainder: u64,
        tables: &mut Vec<Write>,
    ) -> Result<Placed> {
        let cluster_size = self.options.cluster_size;
        let all = parts.iter().map(|part| (part.guest, part.len));
        // A descriptor has room for as many sectors as two clusters have.
        self.enter_packed(all, 2 * cluster_size, tables)?;
        let placed = self.packing.copy(
            parts,
            remainder,
            &mut self.mapping,
            &mut self.allocator,
            tables,
        )?;
        let last = usize::try_from(placed.taken - 1).ok();
        if let Some(last) = last.and_then(|i| parts.get(i)) {
            self.position = last.guest + cluster_size;
        }
        Ok(placed)
    }

    /// Checks compressed parts, each with its place and its length, and goes to where they start.
    fn enter_packed(
        &mut self,
        parts: impl Iterator<Item = (u64, u64)>,
        longest: u64,
        tables: &mut Vec<Write>,
    ) -> Result<()> {
        let cluster_size = self.options.cluster_size;
        if self.encoder.is_none() {
            return Err(Error::invalid("the image is not to be compressed"));
        }
        let (mut position, mut first) = (self.position, None);
        for (guest, len) in parts {
            let is_next = guest >= position && guest < self.virtual_size;
            if !is_next || len == 0 || len > longest || guest % cluster_size != 0 {
                return Err(Error::invalid(format!(
                    "{len} packed bytes at {guest} are no cluster that can be placed behind \
                     {position}"
                )));
            }
            position = guest + cluster_size;
            first.get_or_insert(guest);
        }
        let first = first.ok_or_else(|| Error::invalid("a packed run has no parts"))?;
        self.advance(first, 1, tables)
    }

    /// The size of the image file when every guest cluster is mapped, in bytes.
    fn full_size(&self) -> u64 {
        let cluster_size = self.options.cluster_size;
        let data = match self.options.data_file {
            Some(_) => 0,
            None => self.virtual_size.div_ceil(cluster_size),
        };
        let span = self.options.l2_layout().table_span();
        let l2 = self.virtual_size.div_ceil(span);
        let l1 = (self.l1_size * 8).div_ceil(cluster_size);
        let counted = 1 + l1 + l2 + data;
        let per_range = cluster_size * 8 / u64::from(self.options.refcount_bits);
        let (mut blocks, mut table) = (1, 1);
        loop {
            let total = counted + blocks + table;
            let need = total.div_ceil(per_range);
            let need_table = (need * 8).div_ceil(cluster_size);
            if (need, need_table) == (blocks, table) {
                return total.saturating_mul(cluster_size);
            }
            (blocks, table) = (need, need_table);
        }
    }
}

impl ImageWriter for Writer {
    fn shape(&self) -> WriteShape {
        let mut shape = WriteShape::new(self.virtual_size, self.unit());
        // A preallocated image gets its zeros in order, too, so that tables do not pile up.
        shape.record_zeroes = self.options.backing.is_some() || self.maps_everything();
        let mut sizes = vec![self.full_size()];
        if let Some(name) = &self.options.data_file {
            shape.files.push(OutputFile::Named(name.clone()));
            sizes.push(self.virtual_size);
        }
        if matches!(
            self.options.preallocation,
            Preallocation::Falloc | Preallocation::Full
        ) {
            let sizes = sizes.into_iter().enumerate().filter(|(_, size)| *size > 0);
            shape
                .preallocation
                .extend(sizes.map(|(file, size)| Write::new(file, 0, Payload::Allocate(size))));
        }
        shape
    }

    fn encoder(&self) -> Option<Arc<dyn Encoder>> {
        let encoder = self.encoder.clone()?;
        Some(encoder)
    }

    fn place(&mut self, run: WriteRun<'_>, tables: &mut Vec<Write>) -> Result<Placed> {
        tables.append(&mut self.pending);
        match run {
            WriteRun::Verbatim { guest, len } => self.place_verbatim(guest, len, tables),
            WriteRun::Packed { parts } => self.place_packed(parts, tables),
            WriteRun::Copied { parts, remainder } => self.place_copied(parts, remainder, tables),
            WriteRun::Zero { guest, len } => self.place_zero(guest, len, tables),
        }
    }

    fn full_sizes(&self) -> Option<Vec<u64>> {
        let mut sizes = vec![self.full_size()];
        sizes.extend(self.options.data_file.as_ref().map(|_| self.virtual_size));
        Some(sizes)
    }

    fn bitmaps_size(&self, bitmaps: &[BitmapInfo]) -> Option<u64> {
        let is_v3 = self.options.version == Version::V3;
        is_v3.then(|| bitmap::size(bitmaps, self.virtual_size, self.options.cluster_size))
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let mut tables = std::mem::take(&mut self.pending);
        if self.maps_everything() {
            self.preallocate_to(self.virtual_size, &mut tables)?;
        }
        self.mapping.leave(&mut self.allocator, &mut tables)?;
        let (refcount_table_offset, clusters) = self.allocator.finish(&mut tables)?;
        let place = Tables {
            // The option checks keep both far below 32 bits.
            l1_size: u32::try_from(self.l1_size).unwrap_or(u32::MAX),
            l1_table_offset: self.l1_table_offset,
            refcount_table_offset,
            refcount_table_clusters: u32::try_from(clusters).unwrap_or(u32::MAX),
        };
        let header = header::encode(&self.options, self.virtual_size, place)?;
        let mut sizes = vec![self.allocator.end()];
        if self.options.data_file.is_some() {
            sizes.push(self.virtual_size);
        }
        let bytes = |offset, bytes| Write::new(0, offset, bytes);
        Write::push_table(
            &mut tables,
            0,
            self.l1_table_offset,
            &self.mapping.into_l1(),
        );
        Ok(Finish::new(tables, vec![bytes(0, header)], sizes))
    }
}
