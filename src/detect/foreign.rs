//! Signatures of formats that cannot be read yet.
//!
//! They are known so that such a file is refused by its name and never described as a raw disk. A
//! line leaves this table when its format gets a folder in `formats/`.

use crate::detect::signature::{
    Place::{End, Start},
    Signature, signature,
};

pub(super) const FOREIGN: &[Signature] = &[
    signature(
        "qcow",
        Start(0),
        b"QFI\xfb\0\0\0\x01",
        "QFI\\xfb, version 1",
    ),
    signature("qed", Start(0), b"QED\0", "QED"),
    signature(
        "parallels",
        Start(0),
        b"WithoutFreeSpace",
        "WithoutFreeSpace",
    ),
    signature(
        "parallels",
        Start(0),
        b"WithouFreSpacExt",
        "WithouFreSpacExt",
    ),
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
