//! Conclusions about a disk, with their reasons.

use crate::ondisk::pe::Program;

/// A processor, under the name that OpenStack gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names say it")]
pub enum Architecture {
    Aarch64,
    Alpha,
    Armv7l,
    I686,
    Ia64,
    Loongarch32,
    Loongarch64,
    Ppc,
    Ppc64,
    Ppc64le,
    Riscv32,
    Riscv64,
    S390,
    S390x,
    X86_64,
}

impl Architecture {
    /// The processor that a program of UEFI is for.
    pub(super) fn of(program: Program) -> Option<Self> {
        Some(match program.architecture() {
            "i386" => Architecture::I686,
            "x86_64" => Architecture::X86_64,
            "arm" => Architecture::Armv7l,
            "aarch64" => Architecture::Aarch64,
            "ia64" => Architecture::Ia64,
            "riscv32" => Architecture::Riscv32,
            "riscv64" => Architecture::Riscv64,
            "loongarch32" => Architecture::Loongarch32,
            "loongarch64" => Architecture::Loongarch64,
            _ => return None,
        })
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::Aarch64 => "aarch64",
            Architecture::Alpha => "alpha",
            Architecture::Armv7l => "armv7l",
            Architecture::I686 => "i686",
            Architecture::Ia64 => "ia64",
            Architecture::Loongarch32 => "loongarch32",
            Architecture::Loongarch64 => "loongarch64",
            Architecture::Ppc => "ppc",
            Architecture::Ppc64 => "ppc64",
            Architecture::Ppc64le => "ppc64le",
            Architecture::Riscv32 => "riscv32",
            Architecture::Riscv64 => "riscv64",
            Architecture::S390 => "s390",
            Architecture::S390x => "s390x",
            Architecture::X86_64 => "x86_64",
        }
    }
}

/// Firmware that starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Firmware {
    /// The BIOS of a PC, or what does as if it were one.
    Bios,
    /// UEFI.
    Uefi,
}

impl Firmware {
    /// Its name, as OpenStack's `hw_firmware_type` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        }
    }
}

/// A kind of operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum OsType {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
}

impl OsType {
    /// Its name, as OpenStack's `os_type` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            OsType::Linux => "linux",
            OsType::Windows => "windows",
        }
    }
}

/// Something that follows from what a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fact {
    /// It is for this processor.
    Architecture(Architecture),
    /// It can be started by this firmware.
    Firmware(Firmware),
    /// It has this kind of operating system.
    OsType(OsType),
    /// It has this distribution: letters, digits, `.`, `_`, `-` and `+`.
    OsDistro(String),
    /// That distribution has this version; of the same characters.
    OsVersion(String),
    /// Presence of signatures on the programs that UEFI starts.
    SignedLoader(bool),
}

impl Fact {
    /// Subject of the fact.
    pub fn subject(&self) -> &'static str {
        match self {
            Fact::Architecture(_) => "architecture",
            Fact::Firmware(_) => "firmware",
            Fact::OsType(_) => "os-type",
            Fact::OsDistro(_) => "os-distro",
            Fact::OsVersion(_) => "os-version",
            Fact::SignedLoader(_) => "signed-loader",
        }
    }

    /// Value of the fact.
    pub fn value(&self) -> &str {
        match self {
            Fact::Architecture(it) => it.as_str(),
            Fact::Firmware(it) => it.as_str(),
            Fact::OsType(it) => it.as_str(),
            Fact::OsDistro(it) | Fact::OsVersion(it) => it,
            Fact::SignedLoader(true) => "yes",
            Fact::SignedLoader(false) => "no",
        }
    }
}

/// Confidence in a conclusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Confidence {
    /// Something points to it that is on other disks, too.
    Low,
    /// The disk declares it.
    Medium,
    /// It is read from the very thing.
    High,
}

impl Confidence {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Confidence::Low => "low",
            Confidence::Medium => "medium",
            Confidence::High => "high",
        }
    }
}

/// A fact with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Conclusion.
    pub fact: Fact,
    /// From what, for a person to read. Text from the disk is escaped in it.
    pub source: String,
    /// Confidence in it.
    pub confidence: Confidence,
}
