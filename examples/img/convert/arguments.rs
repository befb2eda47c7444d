//! Arguments of `convert`, and the combinations that are refused.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use blockform::ImageName;
use blockform::digest::{Algorithm, ContentDigest, Digest};
use blockform::image::{SnapshotSelector, parse_options};
use clap::Parser;

use crate::arguments::{Opening, path, size};
use crate::command::told;
use crate::qemu::{CacheMode, Target, snapshot, sparse_size};

/// Converts disk images as `qemu-img convert` does. SRC and DST are paths and nothing else; several SRC are
/// joined one behind the other. DST is replaced only when it is whole. SRC - is standard input, converted
/// while it arrives. DST - is standard output; its reader has to check the exit status.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
pub(crate) struct Arguments {
    /// Format of the sources; detected unless given
    #[arg(short = 'f', value_name = "FMT")]
    pub(crate) source_format: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Compresses the data
    #[arg(short = 'c')]
    pub(crate) compress: bool,
    /// Shows the progress, on standard error if DST is -
    #[arg(short = 'p')]
    pub(crate) progress: bool,
    /// Number of threads; the number of processors unless given
    #[arg(short = 'm', value_name = "THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Shortest run of zeros that becomes a hole, 4k unless given; 0 writes all zeros out
    #[arg(short = 'S', value_name = "SIZE", value_parser = sparse_size)]
    pub(crate) sparse_size: Option<u64>,
    /// Writes into the existing DST, which has to be large enough; a failure leaves it half written
    #[arg(short = 'n')]
    pub(crate) no_create: bool,
    /// Assumes that DST reads as zero (with -n)
    #[arg(long)]
    pub(crate) target_is_zero: bool,
    /// Cache mode: unsafe does not wait for stable storage; all others wait
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback")]
    pub(crate) cache: CacheMode,
    /// Accepted for compatibility with qemu-img: sources are read in one way
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback")]
    source_cache: CacheMode,
    /// Converts an internal snapshot: snapshot.id=ID, snapshot.name=NAME, or an id or a name
    #[arg(short = 'l', value_name = "SNAPSHOT", value_parser = snapshot)]
    pub(crate) snapshot: Option<SnapshotSelector>,
    /// Converts this disk of an appliance: its number in the list of img-info, or the name of its file
    #[arg(long, value_name = "DISK")]
    pub(crate) disk: Option<String>,
    /// Compares an appliance with its manifest before anything else is read
    #[arg(long)]
    pub(crate) verify_manifest: bool,
    /// Writes an overlay that records only the differences from FILE, a path relative to DST's directory
    #[arg(short = 'B', value_name = "FILE", requires = "backing_format", value_parser = path())]
    overlay: Option<PathBuf>,
    /// Format of -B FILE
    #[arg(short = 'F', value_name = "FMT", requires = "overlay")]
    backing_format: Option<String>,
    /// Writes another image in the same read: its format, options as -o has them, a colon and a path
    #[arg(long, value_name = "FMT[,NAME=VALUE…]:PATH", value_parser = Also::parse)]
    pub(crate) also: Vec<Also>,
    /// Keeps whole images if another of DST and --also fails; the exit status is 1 then
    #[arg(long, requires = "also")]
    pub(crate) allow_failure: bool,
    /// Continues where an earlier call with the same arguments was stopped; unfinished work is kept beside DST
    #[arg(long, conflicts_with_all = ["no_create", "also", "content_digest", "expect_content"])]
    pub(crate) resumable: bool,
    /// Prints the digest of the disk's content: md5, sha1, sha256, sha512 or blake3
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) content_digest: Option<Algorithm>,
    /// Fails and leaves nothing if the disk's content has another digest
    #[arg(long, value_name = "DIGEST", conflicts_with = "content_digest")]
    pub(crate) expect_content: Option<ContentDigest>,
    /// Prints the digest of the bytes of SRC
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) source_digest: Vec<Algorithm>,
    /// Fails and leaves nothing if the bytes of SRC have another digest, such as sha256:9f86…
    #[arg(long, value_name = "DIGEST")]
    pub(crate) expect_source: Vec<Digest>,
    /// Prints the digest of the bytes of DST
    #[arg(long, value_name = "ALGORITHM", conflicts_with = "no_create")]
    pub(crate) target_digest: Vec<Algorithm>,
    /// Reads the result back and compares it with SRC before it gets its name
    #[arg(long, conflicts_with_all = ["no_create", "overlay"])]
    pub(crate) verify: bool,
    /// Converts a damaged SRC as far as it can be read. Lost data is zeros in DST and listed on standard error,
    /// and in FILE as a map in JSON. The exit status is 3 if data is lost
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = path(),
        conflicts_with = "resumable"
    )]
    pub(crate) salvage: Option<Option<PathBuf>>,
    /// Decompresses clusters that are copied compressed, to prove that they can be
    #[arg(long)]
    pub(crate) check_packed: bool,
    /// Prints nothing but errors
    #[arg(short = 'q')]
    pub(crate) quiet: bool,
    /// Accepted for compatibility with qemu-img: the order of writes is fixed
    #[arg(short = 'W')]
    out_of_order: bool,
    /// Virtual size of a raw disk or a fixed VHD on standard input, for a DST that begins with it
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) source_size: Option<u64>,
    /// Origin of the image on standard input: names in it are relative to the directory of PATH
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub(crate) source_path: Option<PathBuf>,
    /// Allows a temporary file beside DST, 64G unless given, for bytes of standard input that come too early
    #[arg(long, value_name = "SIZE", value_parser = size, num_args = 0..=1, require_equals = true, default_missing_value = "64G")]
    pub(crate) spill: Option<u64>,
    #[command(flatten)]
    pub(crate) opening: Opening,
    /// Sources and destination
    #[arg(value_name = "SRC… DST", required = true, value_parser = path())]
    files: Vec<PathBuf>,
}

/// Further target of a conversion.
#[derive(Debug, Clone)]
pub(crate) struct Also {
    pub(crate) format: String,
    pub(crate) options: Vec<(String, String)>,
    pub(crate) path: PathBuf,
}

impl Also {
    fn parse(text: &str) -> Result<Self, String> {
        let (what, path) = text
            .split_once(':')
            .filter(|(_, path)| !path.is_empty())
            .ok_or("it has to be a format, a colon and a path")?;
        let (format, options) = what.split_once(',').unwrap_or((what, ""));
        Ok(Also {
            format: format.to_owned(),
            options: match options {
                "" => Vec::new(),
                options => parse_options(options).map_err(|e| told(&e))?,
            },
            path: path.into(),
        })
    }
}

impl Arguments {
    /// The name and the format of the backing file, given by -B and -F or among the options.
    pub(crate) fn backing(&self) -> Result<Option<(ImageName, String)>, String> {
        let (_, named) = self.target.options()?;
        match (&self.overlay, &self.backing_format, named) {
            (Some(_), _, Some(_)) => Err("-B and -o backing_file cannot go together".to_owned()),
            (Some(path), Some(format), None) => {
                Ok(Some((ImageName::from(path.as_path()), format.clone())))
            }
            (_, _, named) => Ok(named),
        }
    }

    /// The sources and the destination.
    ///
    /// # Errors
    /// A message for arguments that exclude each other.
    pub(crate) fn check(&self) -> Result<(&[PathBuf], &Path), String> {
        let (destination, sources) = match self.files.split_last() {
            Some((destination, sources)) if !sources.is_empty() => (destination, sources),
            _ => return Err("SRC and DST are needed".to_owned()),
        };

        let to_stdout = super::standard::is_standard(destination);
        let from_stdin = sources
            .iter()
            .any(|source| super::standard::is_standard(source));
        let about_stdin =
            self.source_size.is_some() || self.source_path.is_some() || self.spill.is_some();
        let has_backing = self.backing()?.is_some();
        let waits = !matches!(self.cache, CacheMode::Writeback | CacheMode::Unsafe);
        let conflicts = [
            (
                self.target_is_zero && !self.no_create,
                "--target-is-zero requires -n: a new file reads as zero anyway",
            ),
            (
                self.no_create && self.target.has_options(),
                "-o has no meaning with -n: nothing is created",
            ),
            (
                self.no_create && !self.also.is_empty(),
                "--also has no meaning with -n",
            ),
            (
                self.no_create && has_backing,
                "-B has no meaning with -n: nothing is created",
            ),
            (
                to_stdout && self.no_create,
                "-n has no meaning for standard output; a file that is called - is ./-",
            ),
            (
                to_stdout && !self.also.is_empty(),
                "--also cannot go with standard output",
            ),
            (
                to_stdout && waits,
                "-t has no meaning for standard output: its reader decides",
            ),
            (
                from_stdin && sources.len() > 1,
                "standard input cannot go with other sources; a file that is called - is ./-",
            ),
            (
                self.verify && has_backing,
                "--verify has no meaning with a backing file",
            ),
            (
                from_stdin && self.verify,
                "--verify has no meaning for standard input, which cannot be read again",
            ),
            (
                from_stdin && self.resumable,
                "--resumable has no meaning for standard input, which cannot be read again",
            ),
            (
                about_stdin && !from_stdin,
                "--source-size, --source-path and --spill are about standard input alone",
            ),
            (
                sources.len() > 1 && has_backing,
                "-B has no meaning for several sources",
            ),
            (
                sources.len() > 1
                    && !(self.source_digest.is_empty() && self.expect_source.is_empty()),
                "the digest of SRC has no meaning for several sources",
            ),
            (
                from_stdin && self.salvage.is_some(),
                "--salvage has no meaning for standard input, which cannot be read again",
            ),
            (
                sources.len() > 1 && self.salvage.is_some(),
                "--salvage has no meaning for several sources",
            ),
            (
                sources.len() > 1 && self.snapshot.is_some(),
                "-l has no meaning for several sources",
            ),
        ];
        match conflicts.into_iter().find(|(conflict, _)| *conflict) {
            Some((_, problem)) => Err(problem.to_owned()),
            None => Ok((sources, destination)),
        }
    }
}
