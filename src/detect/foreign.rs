//! Signatures of formats that cannot be read yet.
//!
//! They are known so that such a file is refused by its name and never described as a raw disk. A
//! line leaves this table when its format gets a folder in `formats/`.

use crate::detect::signature::{
    Place::{End, Start},
    Signature, signature,
};

pub(super) const FOREIGN: &[Signature] = &[
    signature("vmdk", Start(0), b"KDMV", "KDMV"),
    signature("vmdk", Start(0), b"COWD", "COWD"),
    signature(
        "vmdk",
        Start(0),
        b"# Disk DescriptorFile",
        "# Disk DescriptorFile",
    ),
    signature("vhd", Start(0), b"conectix", "conectix"),
    signature("vhd", End(512), b"conectix", "conectix"),
    // Some old writers cut the last byte of the footer off.
    signature("vhd", End(511), b"conectix", "conectix"),
    signature("vhdx", Start(0), b"vhdxfile", "vhdxfile"),
    signature("vdi", Start(64), b"\x7f\x10\xda\xbe", "7f 10 da be"),
    signature("dmg", End(512), b"koly", "koly"),
    signature(
        "bochs",
        Start(0),
        b"Bochs Virtual HD Image",
        "Bochs Virtual HD Image",
    ),
    signature(
        "cloop",
        Start(0),
        b"#!/bin/sh\n#V2.0 Format\n",
        "#V2.0 Format",
    ),
    signature("ewf", Start(0), b"EVF\x09\x0d\x0a\xff\0", "EVF"),
    signature("ewf", Start(0), b"EVF2\x0d\x0a\x81\0", "EVF2"),
];
