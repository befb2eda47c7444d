//! The examples that bring a source and a format of their own.

use std::path::Path;

use crate::support::command::{example, must};

#[test]
fn a_source_and_a_format_from_outside_of_the_crate() {
    let run = |name| must(Path::new("."), example(name).to_str().unwrap());
    assert!(run("own-source").starts_with("67108864 bytes of disk, 33"));
    assert_eq!(
        run("own-format"),
        "own image of 17 bytes: the guest's bytes\n"
    );
}
