//! Converts disk images: the verb `convert` as a program of its own.

#[path = "img/arguments.rs"]
mod arguments;
#[path = "img/command.rs"]
mod command;
#[path = "img/convert/mod.rs"]
mod convert;
#[path = "img/progress.rs"]
mod progress;
#[path = "img/qemu.rs"]
mod qemu;

use std::process::ExitCode;

fn main() -> ExitCode {
    convert::main(command::Call {
        name: "img-convert".to_owned(),
        arguments: std::env::args_os().skip(1).collect(),
    })
}
