//! Limits of the resources that an image may demand.

use crate::error::{Error, Result};

/// Ratio of uncompressed to compressed bytes that every compressed file is granted.
const USUAL_RATIO: u64 = 64;

/// Declares the limits, each with its default.
macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident = $default:expr;)*) => {
        /// Limits of the resources that an image may demand. Every open has limits; the defaults
        /// pass every image that a real tool makes.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Limits {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Default for Limits {
            fn default() -> Self {
                Limits { $($name: $default,)* }
            }
        }

        impl Limits {
            /// Names of all limits.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Sets the limit of this name.
            ///
            /// # Errors
            /// [`Error::InvalidInput`] that lists the names, if there is no such limit.
            pub fn set(&mut self, name: &str, value: u64) -> Result<()> {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => {
                        return Err(Error::invalid(format!(
                            "there is no such limit; the limits are {}",
                            Self::NAMES.join(", ")
                        )));
                    }
                }
                Ok(())
            }
        }
    };
}

limits! {
    /// Bytes of one metadata table or structure that must be in memory at once. 32 MiB, which is
    /// also the cap that QEMU puts on a qcow2 L1 table.
    metadata_bytes = 32 << 20;
    /// Bytes of one text that describes an image: the descriptor of a VMDK, an OVF or its manifest, a
    /// `DiskDescriptor.xml`. 4 MiB; a VMDK in ten thousand files has less than a quarter of it.
    descriptor_bytes = 4 << 20;
    /// Bytes of one name of another file. 64 KiB; of some formats the specification says less.
    name_bytes = 64 << 10;
    /// Extents that one disk consists of. 8192, which is 16 TiB in files of 2 GiB.
    extents = 8192;
    /// Files in one archive. 16,384.
    archive_files = 16_384;
    /// Bytes of tables kept in memory by one open image so as not to read them again. 4 MiB, which
    /// is what 32 GiB of a qcow2 image with the usual clusters need.
    cache_bytes = 4 << 20;
    /// Bytes that a [check](crate::check) keeps to count the uses of clusters. 256 MiB, which is
    /// enough for 10 TiB of a qcow2 file with the usual clusters.
    check_bytes = 256 << 20;
    /// Images in a backing chain, the first one included. 64.
    chain_depth = 64;
    /// Internal snapshots in one image. 65,536.
    snapshots = 65_536;
    /// Uncompressed bytes of a compressed file beyond 64 times its own length. 1 GiB.
    inflated_bytes = 1 << 30;
    /// Virtual size in bytes. 2^63 - 1, the largest offset of a file.
    virtual_size = i64::MAX as u64;
    /// Bytes that a [stream's inspector](crate::stream::StreamInspector) keeps of a stream: its
    /// start, its end, and the tables in between. 16 MiB; at least 80 KiB are always kept. A
    /// compressed stream has it twice, for its compressed and its uncompressed bytes.
    stream_bytes = 16 << 20;
    /// Bytes of the window (the dictionary) that a compressed stream may ask for. 64 MiB, as `xz
    /// -9` needs.
    window_bytes = 64 << 20;
    /// Uncompressed bytes of a compressed stream. 1 TiB.
    unpacked_bytes = 1 << 40;
    /// Reads and look-ups that may fail while a damaged disk is [salvaged](crate::salvage). 16,777,216: as
    /// many sectors as 8 GiB have.
    failures = 1 << 24;
    /// Bytes of guest data that a [conversion](crate::convert::ConvertOptions::limits) may write
    /// into one target, holes not counted: a small file can hold a large disk that compresses well.
    /// 2^63 - 1.
    output_bytes = i64::MAX as u64;
}

/// Defines a method for each limit that fails with [`Error::LimitExceeded`] above it.
macro_rules! checks {
    ($($name:ident, $limit:ident, $what:literal;)*) => {
        impl Limits {
            $(
                #[doc = concat!("Checks ", $what, " by [`", stringify!($limit), "`](Self::", stringify!($limit), ").")]
                ///
                /// # Errors
                /// [`Error::LimitExceeded`].
                pub fn $name(&self, value: u64) -> Result<()> {
                    check(stringify!($limit), $what, value, self.$limit)
                }
            )*
        }
    };
    ($($name:ident, $limit:ident;)*) => {
        impl Limits {
            $(
                #[doc = concat!("Checks bytes of `what` by [`", stringify!($limit), "`](Self::", stringify!($limit), ").")]
                ///
                /// # Errors
                /// [`Error::LimitExceeded`].
                pub fn $name(&self, what: &'static str, bytes: u64) -> Result<()> {
                    check(stringify!($limit), what, bytes, self.$limit)
                }
            )*
        }
    };
}

checks! {
    check_metadata, metadata_bytes;
    check_descriptor, descriptor_bytes;
    check_name, name_bytes;
}
checks! {
    check_kept, check_bytes, "the record of what is in use";
    check_extents, extents, "the number of extents";
    check_archive_files, archive_files, "the number of files in the archive";
    check_output, output_bytes, "what was written";
    check_snapshots, snapshots, "the number of snapshots";
    check_virtual_size, virtual_size, "the virtual size";
    check_failures, failures, "the number of reads that failed";
    check_chain_depth, chain_depth, "the length of the backing chain";
}

impl Limits {
    /// Checks the uncompressed bytes of a file of `packed` compressed bytes.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`].
    pub fn check_inflated(&self, what: &'static str, packed: u64, bytes: u64) -> Result<()> {
        let usual = packed.saturating_mul(USUAL_RATIO);
        let most = self.inflated_bytes.saturating_add(usual);
        check("inflated_bytes", what, bytes, most)
    }
}

fn check(limit: &'static str, what: &'static str, value: u64, maximum: u64) -> Result<()> {
    if value > maximum {
        return Err(Error::LimitExceeded {
            limit,
            what,
            value,
            maximum,
        });
    }
    Ok(())
}
