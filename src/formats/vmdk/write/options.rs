//! The options of a new disk, by their names in `qemu-img create -o`.

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{Backing, CreateOptions};
use crate::name::ImageName;

use super::super::VMDK;

/// The files of a disk and their kind (`createType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Subformat {
    /// One sparse extent with its descriptor in it.
    #[default]
    MonolithicSparse,
    /// A descriptor and one flat extent.
    MonolithicFlat,
    /// A descriptor and sparse extents of 2 GiB.
    TwoGbMaxExtentSparse,
    /// A descriptor and flat extents of 2 GiB.
    TwoGbMaxExtentFlat,
    /// One sparse extent with compressed grains, written from front to back, as appliances have it.
    StreamOptimized,
    /// A descriptor and one flat extent, for a datastore of an ESXi host.
    Vmfs,
    /// The same, marked as thinly provisioned.
    VmfsThin,
}

const SUBFORMATS: [(&str, Subformat); 7] = [
    ("monolithicSparse", Subformat::MonolithicSparse),
    ("monolithicFlat", Subformat::MonolithicFlat),
    ("twoGbMaxExtentSparse", Subformat::TwoGbMaxExtentSparse),
    ("twoGbMaxExtentFlat", Subformat::TwoGbMaxExtentFlat),
    ("streamOptimized", Subformat::StreamOptimized),
    ("vmfs", Subformat::Vmfs),
    ("vmfsThin", Subformat::VmfsThin),
];

impl Subformat {
    /// The value of `createType`. ESXi knows a thin disk by an entry of the disk database.
    pub(super) fn create_type(self) -> &'static str {
        match self {
            Subformat::VmfsThin => "vmfs",
            other => SUBFORMATS
                .iter()
                .find(|(_, subformat)| *subformat == other)
                .map_or("", |(name, _)| name),
        }
    }

    fn is_flat(self) -> bool {
        !matches!(
            self,
            Subformat::MonolithicSparse
                | Subformat::TwoGbMaxExtentSparse
                | Subformat::StreamOptimized
        )
    }
}

/// The adapter that the disk is made for (`ddb.adapterType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdapterType {
    /// IDE: its geometry has 16 heads, all others' 255.
    Ide,
    /// LSI Logic SCSI, which ESXi asks for.
    LsiLogic,
    /// BusLogic SCSI.
    BusLogic,
    /// The SCSI of old ESX hosts.
    LegacyEsx,
}

const ADAPTERS: [(&str, AdapterType); 4] = [
    ("ide", AdapterType::Ide),
    ("lsilogic", AdapterType::LsiLogic),
    ("buslogic", AdapterType::BusLogic),
    ("legacyESX", AdapterType::LegacyEsx),
];

impl AdapterType {
    pub(super) fn name(self) -> &'static str {
        ADAPTERS
            .iter()
            .find(|(_, adapter)| *adapter == self)
            .map_or("", |(name, _)| name)
    }
}

/// The options of a new VMDK.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VmdkOptions {
    /// The subformat: `subformat`.
    pub subformat: Subformat,
    /// The adapter: `adapter_type`; `ide`, and `lsilogic` for ESXi hosts, unless told otherwise.
    pub adapter_type: Option<AdapterType>,
    /// The virtual hardware's version: `hwversion`, 4 unless told otherwise.
    pub hardware_version: Option<u32>,
    /// Writes the hardware version 6: `compat6`.
    pub compat6: bool,
    /// The version of VMware's tools in the guest: `toolsversion`; the largest number, which stands
    /// for tools that VMware does not manage, unless told otherwise.
    pub tools_version: u32,
    /// Records zeros by an entry of their own, in version 2 of the format: `zeroed_grain`.
    pub zeroed_grain: bool,
    /// The content id: `cid`, eight hexadecimal digits. Made from size and name unless given, so that
    /// the same conversion makes the same image.
    pub cid: Option<u32>,
    /// The disk's UUID: `uuid`. None is written unless given.
    pub uuid: Option<Uuid>,
    /// The compression level of a stream, 1 to 9: `compression_level`, 5 unless given.
    pub compression_level: Option<u32>,
    /// The parent.
    pub backing: Option<Backing>,
}

impl Default for VmdkOptions {
    fn default() -> Self {
        VmdkOptions {
            subformat: Subformat::default(),
            adapter_type: None,
            hardware_version: None,
            compat6: false,
            tools_version: 0x7fff_ffff,
            zeroed_grain: false,
            cid: None,
            uuid: None,
            compression_level: None,
            backing: None,
        }
    }
}

impl VmdkOptions {
    /// Reads the options as people write them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that a VMDK does not have.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        let mut set = create.option_set("vmdk");
        let subformats = SUBFORMATS.map(|(name, _)| name);
        let subformat = set.word("subformat", &subformats)?;
        let adapter = set.word("adapter_type", &ADAPTERS.map(|(name, _)| name))?;
        let mut options = VmdkOptions {
            backing: create.backing.clone(),
            compat6: set.switch("compat6")?.unwrap_or(false),
            zeroed_grain: set.switch("zeroed_grain")?.unwrap_or(false),
            ..VmdkOptions::default()
        };
        if let Some((_, subformat)) = subformat.and_then(|at| SUBFORMATS.get(at)) {
            options.subformat = *subformat;
        }
        options.adapter_type = adapter.and_then(|at| ADAPTERS.get(at)).map(|(_, a)| *a);
        let number = |name: &str, text: &str| -> Result<u32> {
            text.parse().map_err(|_| bad(name, text, "a number"))
        };
        if let Some(text) = set.text("hwversion").filter(|text| *text != "undefined") {
            options.hardware_version = Some(number("hwversion", text)?);
        }
        if let Some(text) = set.text("toolsversion") {
            options.tools_version = number("toolsversion", text)?;
        }
        if let Some(text) = set.text("cid") {
            let cid = u32::from_str_radix(text.trim_start_matches("0x"), 16);
            let want = "a hexadecimal number below fffffffe";
            let cid = cid.ok().filter(|cid| *cid < 0xffff_fffe);
            options.cid = Some(cid.ok_or_else(|| bad("cid", text, want))?);
        }
        if let Some(text) = set.text("uuid") {
            options.uuid = Some(parse_uuid(text).ok_or_else(|| bad("uuid", text, "a UUID"))?);
        }
        if let Some(text) = set.text("compression_level") {
            let level = text.parse().ok().filter(|level| (1..=9).contains(level));
            let level = level.ok_or_else(|| bad("compression_level", text, "1 to 9"))?;
            options.compression_level = Some(level);
        }
        set.finish()?;
        if create.compress && options.subformat != Subformat::StreamOptimized {
            return Err(Error::invalid(
                "only a VMDK with subformat=streamOptimized can be compressed",
            ));
        }
        Ok(options)
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |problem: &'static str| Err(Error::invalid(problem));
        if self.compat6 && self.hardware_version.is_some() {
            return refuse("compat6 and hwversion exclude each other");
        }
        if self.compression_level.is_some() && self.subformat != Subformat::StreamOptimized {
            return refuse("compression_level needs subformat=streamOptimized");
        }
        if self.subformat == Subformat::StreamOptimized && self.zeroed_grain {
            return refuse("zeroed_grain and subformat=streamOptimized exclude each other");
        }
        let Some(backing) = &self.backing else {
            return Ok(());
        };
        if self.subformat.is_flat() {
            return refuse("a flat VMDK cannot have a backing file");
        }
        if backing.format != VMDK.as_str() {
            return refuse("the backing file of a VMDK has to be a VMDK");
        }
        if backing.ids.content_id.is_none() {
            return refuse("the content id of the backing file is not known, which a VMDK repeats");
        }
        if !super::is_quotable(backing.name.as_bytes()) {
            return refuse("the descriptor cannot hold the name of the backing file");
        }
        Ok(())
    }
}

fn bad(name: &str, value: &str, want: &str) -> Error {
    let value = ImageName::from(value);
    Error::invalid(format!(
        "option {name} is {}, but has to be {want}",
        value.quoted()
    ))
}

/// Reads a UUID, whatever stands between its digits.
fn parse_uuid(text: &str) -> Option<Uuid> {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let mut others = text.chars().filter(|c| !c.is_ascii_hexdigit());
    if others.any(|c| !matches!(c, '-' | ' ' | '{' | '}')) {
        return None;
    }
    Uuid::try_parse(&digits).ok()
}
