//! Describes disk images: the verb `info` as a program of its own.

#[path = "img/arguments.rs"]
mod arguments;
#[path = "img/command.rs"]
mod command;
#[path = "img/info.rs"]
mod info;

use std::process::ExitCode;

fn main() -> ExitCode {
    info::main(command::Call {
        name: "img-info".to_owned(),
        arguments: std::env::args_os().skip(1).collect(),
    })
}
