//! The options of a new appliance.

use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::image::{CreateOptions, parse_size};
use crate::name::ImageName;

/// The controller that the disk hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Controller {
    /// LSI Logic SCSI, which every hypervisor has.
    #[default]
    LsiLogic,
    /// LSI Logic SAS.
    LsiSas,
    /// VMware's paravirtual SCSI.
    Pvscsi,
    /// BusLogic SCSI.
    BusLogic,
    /// SATA.
    Ahci,
    /// IDE.
    Ide,
    /// NVMe.
    Nvme,
}

const CONTROLLERS: [(&str, Controller); 7] = [
    ("lsilogic", Controller::LsiLogic),
    ("lsisas", Controller::LsiSas),
    ("pvscsi", Controller::Pvscsi),
    ("buslogic", Controller::BusLogic),
    ("ahci", Controller::Ahci),
    ("ide", Controller::Ide),
    ("nvme", Controller::Nvme),
];

impl Controller {
    /// Number of its kind in CIM, and name of the model in VMware and VirtualBox.
    pub(super) fn resource(self) -> (u32, &'static str) {
        match self {
            Controller::LsiLogic => (6, "lsilogic"),
            Controller::LsiSas => (6, "lsilogicsas"),
            Controller::Pvscsi => (6, "VirtualSCSI"),
            Controller::BusLogic => (6, "buslogic"),
            Controller::Ahci => (20, "AHCI"),
            Controller::Ide => (5, "PIIX4"),
            Controller::Nvme => (20, "vmware.nvme.controller"),
        }
    }

    /// In words.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Controller::Ahci => "SATA",
            Controller::Ide => "IDE",
            Controller::Nvme => "NVMe",
            _ => "SCSI",
        }
    }

    /// Name in the disk's own descriptor.
    pub(super) fn adapter(self) -> &'static str {
        match self {
            Controller::Ide => "ide",
            Controller::BusLogic => "buslogic",
            _ => "lsilogic",
        }
    }
}

/// Words for common operating systems: the number of CIM, and VMware's name.
const SYSTEMS: [(&str, u32, &str); 9] = [
    ("other", 1, "otherGuest"),
    ("other64", 102, "otherGuest64"),
    ("linux", 36, "otherLinuxGuest"),
    ("linux64", 101, "otherLinux64Guest"),
    ("rhel64", 80, "rhel7_64Guest"),
    ("ubuntu64", 94, "ubuntu64Guest"),
    ("debian64", 96, "debian10_64Guest"),
    ("freebsd64", 78, "freebsd64Guest"),
    ("windows64", 1, "windows9_64Guest"),
];

/// The options of a new appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OvaOptions {
    /// The virtual machine's name: `name`; that of the file, without `.ova`, unless given.
    pub name: Option<String>,
    /// The operating system: `os`, one of `other`, `other64` (the default), `linux`, `linux64`,
    /// `rhel64`, `ubuntu64`, `debian64`, `freebsd64`, `windows64`, or a number of CIM and VMware's
    /// name, as in `96:debian12_64Guest`.
    pub os: (u32, String),
    /// Boots by UEFI: `firmware`, `bios` by default, or `efi`.
    pub efi: bool,
    /// Secure boot: `secure_boot`.
    pub secure_boot: bool,
    /// The controller: `controller`.
    pub controller: Controller,
    /// Memory in bytes, a multiple of 1 MiB: `memory`, 1 GiB unless given.
    pub memory: u64,
    /// Processors: `cpus`, 1 unless given.
    pub cpus: u32,
    /// The version of VMware's virtual hardware: `hwversion`; 10 unless given, 13 where that is
    /// needed.
    pub hardware_version: Option<u32>,
    /// The name of a network that the machine hangs on: `network`. It hangs on none unless given.
    pub network: Option<String>,
    /// The digests of the manifest: `manifest`, `sha1`, `sha256` (the default), `sha512`, or `none`.
    pub manifest: Option<Algorithm>,
    /// When the files of the archive were changed, in seconds since 1970: `mtime`, 0 unless given, so
    /// that the same conversion makes the same archive.
    pub mtime: u64,
    /// The options of the disk: `cid`, `uuid` and `compression_level`, as a VMDK has them.
    pub disk: Vec<(String, String)>,
}

impl Default for OvaOptions {
    fn default() -> Self {
        OvaOptions {
            name: None,
            os: (102, "otherGuest64".to_owned()),
            efi: false,
            secure_boot: false,
            controller: Controller::default(),
            memory: 1 << 30,
            cpus: 1,
            hardware_version: None,
            network: None,
            manifest: Some(Algorithm::Sha256),
            mtime: 0,
            disk: Vec::new(),
        }
    }
}

impl OvaOptions {
    /// Reads the options as people write them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for options that an appliance does not have.
    pub fn parse(create: &CreateOptions) -> Result<Self> {
        if create.backing.is_some() {
            return Err(Error::invalid("an appliance cannot have a backing file"));
        }
        let mut set = create.option_set("ova");
        let mut options = OvaOptions {
            name: set.text("name").map(str::to_owned),
            network: set.text("network").map(str::to_owned),
            secure_boot: set.switch("secure_boot")?.unwrap_or(false),
            ..OvaOptions::default()
        };
        if let Some(text) = set.text("os") {
            options.os = operating_system(text).ok_or_else(|| {
                let words = SYSTEMS.map(|(word, _, _)| word).join(", ");
                bad("os", text, &format!("{words}, or ID:NAME"))
            })?;
        }
        let firmware = set.word("firmware", &["bios", "efi"])?;
        options.efi = firmware == Some(1) || (firmware.is_none() && options.secure_boot);
        let controller = set.word("controller", &CONTROLLERS.map(|(name, _)| name))?;
        if let Some((_, controller)) = controller.and_then(|at| CONTROLLERS.get(at)) {
            options.controller = *controller;
        }
        if let Some(text) = set.text("memory") {
            let size = parse_size(text).filter(|size| *size > 0 && size % (1 << 20) == 0);
            let size =
                size.ok_or_else(|| bad("memory", text, "a size in whole MiB, such as 2G"))?;
            options.memory = size;
        }
        let number = |name: &str, text: &str, most: u32| {
            let number = text.parse().ok().filter(|n| (1..=most).contains(n));
            number.ok_or_else(|| bad(name, text, &format!("a number from 1 to {most}")))
        };
        if let Some(text) = set.text("cpus") {
            options.cpus = number("cpus", text, 4096)?;
        }
        if let Some(text) = set.text("hwversion") {
            options.hardware_version = Some(number("hwversion", text, 99)?);
        }
        const DIGESTS: [Option<Algorithm>; 4] = [
            None,
            Some(Algorithm::Sha1),
            Some(Algorithm::Sha256),
            Some(Algorithm::Sha512),
        ];
        let digest = set.word("manifest", &["none", "sha1", "sha256", "sha512"])?;
        if let Some(digest) = digest.and_then(|at| DIGESTS.get(at)) {
            options.manifest = *digest;
        }
        if let Some(text) = set.text("mtime") {
            // Eleven octal digits.
            let time = text.parse().ok().filter(|time| *time < 1 << 33);
            options.mtime = time.ok_or_else(|| bad("mtime", text, "seconds since 1970"))?;
        }
        for name in ["cid", "uuid", "compression_level"] {
            if let Some(value) = set.text(name) {
                options.disk.push((name.to_owned(), value.to_owned()));
            }
        }
        set.finish()?;
        Ok(options)
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.secure_boot && !self.efi {
            return Err(Error::invalid("secure_boot needs firmware=efi"));
        }
        let texts = [&self.name, &self.network, &Some(self.os.1.clone())];
        for text in texts.into_iter().flatten() {
            let bad = text.is_empty() || text.chars().any(char::is_control);
            if bad || text.len() > 1024 {
                let text = ImageName::from(text.as_str());
                return Err(Error::invalid(format!(
                    "a descriptor cannot hold the name {}",
                    text.quoted()
                )));
            }
        }
        Ok(())
    }

    /// The version of the virtual hardware.
    pub(super) fn hardware(&self) -> u32 {
        let needs_13 = self.secure_boot || self.controller == Controller::Nvme;
        self.hardware_version
            .unwrap_or(if needs_13 { 13 } else { 10 })
    }
}

fn operating_system(text: &str) -> Option<(u32, String)> {
    if let Some((_, id, name)) = SYSTEMS.iter().find(|(word, _, _)| *word == text) {
        return Some((*id, (*name).to_owned()));
    }
    let (id, name) = text.split_once(':')?;
    let id = id.parse().ok().filter(|id| *id <= 65_535)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && name.chars().all(plain)).then(|| (id, name.to_owned()))
}

fn bad(name: &str, value: &str, want: &str) -> Error {
    let value = ImageName::from(value);
    Error::invalid(format!(
        "option {name} is {}, but has to be {want}",
        value.quoted()
    ))
}
