//! The arguments of `img-convert`: those of `qemu-img convert`, and what goes together.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use blockform::ImageName;
use blockform::digest::{Algorithm, ContentDigest, Digest};
use blockform::image::{SnapshotSelector, parse_options};
use clap::Parser;

use crate::arguments::{Opening, path, size};
use crate::command::told;
use crate::qemu::{CacheMode, Target, snapshot, sparse_size};

/// Converts disk images as `qemu-img convert` does. SRC and DST are paths and nothing else; several
/// SRC are taken one behind the other. DST is replaced only when the whole of it is written. The SRC -
/// is standard input, converted while it arrives. The DST - is standard output: whoever reads it has to
/// look at the exit status.
#[derive(Debug, Parser)]
#[command(version, args_override_self = true)]
pub(crate) struct Arguments {
    /// The format of the sources; detected unless given
    #[arg(short = 'f', value_name = "FMT")]
    pub(crate) source_format: Option<String>,
    #[command(flatten)]
    pub(crate) target: Target,
    /// Packs the data
    #[arg(short = 'c')]
    pub(crate) compress: bool,
    /// Shows how far the conversion is, on standard error if DST is -
    #[arg(short = 'p')]
    pub(crate) progress: bool,
    /// How many threads work; as many as there are processors unless given
    #[arg(short = 'm', value_name = "THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// The shortest run of zeros that becomes a hole, 4k unless given; 0 writes all zeros out
    #[arg(short = 'S', value_name = "SIZE", value_parser = sparse_size)]
    pub(crate) sparse_size: Option<u64>,
    /// Writes into DST as it is, which exists and is large enough; a failure leaves it half written
    #[arg(short = 'n')]
    pub(crate) no_create: bool,
    /// Takes the word for it that DST reads as zero (with -n)
    #[arg(long)]
    pub(crate) target_is_zero: bool,
    /// With unsafe, does not wait until the result is on stable storage; all others wait
    #[arg(short = 't', value_name = "CACHE", default_value = "writeback")]
    pub(crate) cache: CacheMode,
    /// Accepted for compatibility with qemu-img: sources are read in one way
    #[arg(short = 'T', value_name = "CACHE", default_value = "writeback")]
    source_cache: CacheMode,
    /// Converts an internal snapshot: snapshot.id=ID, snapshot.name=NAME, or an id or a name
    #[arg(short = 'l', value_name = "SNAPSHOT", value_parser = snapshot)]
    pub(crate) snapshot: Option<SnapshotSelector>,
    /// Converts this disk of an appliance: its place in the list of img-info, or its file's name
    #[arg(long, value_name = "DISK")]
    pub(crate) disk: Option<String>,
    /// Compares an appliance with its manifest first
    #[arg(long)]
    pub(crate) verify_manifest: bool,
    /// Writes an overlay that records only what differs from FILE, a path relative to DST's directory
    #[arg(short = 'B', value_name = "FILE", requires = "backing_format", value_parser = path())]
    overlay: Option<PathBuf>,
    /// The format of -B FILE
    #[arg(short = 'F', value_name = "FMT", requires = "overlay")]
    backing_format: Option<String>,
    /// Writes another image in the same read: its format, options as -o has them, a colon and a path
    #[arg(long, value_name = "FMT[,NAME=VALUE…]:PATH", value_parser = Also::parse)]
    pub(crate) also: Vec<Also>,
    /// Keeps the images that are whole if another of DST and --also fails; the exit status is 1 then
    #[arg(long, requires = "also")]
    pub(crate) allow_failure: bool,
    /// Goes on where an earlier call with the same arguments was stopped, and keeps what is unfinished
    /// beside DST
    #[arg(long, conflicts_with_all = ["no_create", "also", "content_digest", "expect_content"])]
    pub(crate) resumable: bool,
    /// Prints the digest of the disk's content: md5, sha1, sha256, sha512 or blake3
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) content_digest: Option<Algorithm>,
    /// Fails, and leaves nothing, if the disk's content has another digest than this
    #[arg(long, value_name = "DIGEST", conflicts_with = "content_digest")]
    pub(crate) expect_content: Option<ContentDigest>,
    /// Prints the digest of the bytes of SRC, which is made meanwhile
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) source_digest: Vec<Algorithm>,
    /// Fails, and leaves nothing, if the bytes of SRC have another digest than this, sha256:9f86… say
    #[arg(long, value_name = "DIGEST")]
    pub(crate) expect_source: Vec<Digest>,
    /// Prints the digest of the bytes of DST
    #[arg(long, value_name = "ALGORITHM", conflicts_with = "no_create")]
    pub(crate) target_digest: Vec<Algorithm>,
    /// Reads the result back and compares it with SRC before it gets its name
    #[arg(long, conflicts_with_all = ["no_create", "overlay"])]
    pub(crate) verify: bool,
    /// Converts a damaged SRC as far as it can be read: what is lost is zeros in DST and is told on
    /// standard error, and as a map in JSON in FILE. The exit status is 3 if something is lost
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = path(),
        conflicts_with = "resumable"
    )]
    pub(crate) salvage: Option<Option<PathBuf>>,
    /// Unpacks what is copied packed, to see that it can be
    #[arg(long)]
    pub(crate) check_packed: bool,
    /// Shows nothing but errors
    #[arg(short = 'q')]
    pub(crate) quiet: bool,
    /// Accepted for the sake of qemu-img's users: the order of writes is not theirs to choose
    #[arg(short = 'W')]
    out_of_order: bool,
    /// The virtual size of the disk on standard input, for a raw disk or a fixed VHD, which do not tell it
    /// before their end, and a DST that begins with it
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) source_size: Option<u64>,
    /// Where the image on standard input came from: names in it are relative to the directory of PATH
    #[arg(long, value_name = "PATH", value_parser = path())]
    pub(crate) source_path: Option<PathBuf>,
    /// Allows a temporary file beside DST, 64G unless given, for what comes on standard input before it is
    /// needed
    #[arg(long, value_name = "SIZE", value_parser = size, num_args = 0..=1, require_equals = true, default_missing_value = "64G")]
    pub(crate) spill: Option<u64>,
    #[command(flatten)]
    pub(crate) opening: Opening,
    /// The sources, and where to write to
    #[arg(value_name = "SRC… DST", required = true, value_parser = path())]
    files: Vec<PathBuf>,
}

/// Another target.
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

    /// The sources and the destination, if all arguments go together.
    pub(crate) fn check(&self) -> Result<(&[PathBuf], &Path), String> {
        let (destination, sources) = match self.files.split_last() {
            Some((destination, sources)) if !sources.is_empty() => (destination, sources),
            _ => return Err("SRC and DST are needed".to_owned()),
        };

        let to_stdout = super::stdout::is_standard(destination);
        let from_stdin = sources
            .iter()
            .any(|source| super::stdout::is_standard(source));
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
                "-t has no meaning for standard output: what becomes of it is for its reader to say",
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
                "--salvage needs a file: what went by cannot be looked at again",
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
