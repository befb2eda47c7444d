//! The commands that the pages show run as they are shown.

use std::fs;
use std::path::Path;

use crate::support::command::{example, run};

const PAGES: [&str; 3] = ["README.md", "examples/README.md", "benches/README.md"];

#[test]
fn every_command_of_the_pages_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The commands write there, which is where a clone has its build.
    fs::create_dir_all(root.join("target")).unwrap();
    let mut commands = 0;
    for page in PAGES {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for line in shell_lines(&text) {
            let line = line.replace("cargo run --release --example img-info -- ", "img-info ");
            let built = !line.starts_with("img partition") || cfg!(feature = "plan");
            if !built || !line.split_whitespace().any(|word| word.starts_with("img")) {
                continue;
            }
            let names = ["img-info", "img-convert", "img"];
            let functions =
                names.map(|name| format!("{name}() {{ {:?} \"$@\"; }}\n", example(name)));
            let script = format!("set -o pipefail\n{}{line}", functions.concat());
            let out = run(root, "bash", ["-ec", &script]);
            assert!(out.status.success(), "{page}: {line}: {out:?}");
            commands += 1;
        }
    }
    assert!(commands >= 20, "the pages show {commands} commands");
}

/// The lines of the blocks that a shell runs, but for those of cargo and the recipe for links.
fn shell_lines(text: &str) -> impl Iterator<Item = &str> {
    let blocks = text.split("\n```sh\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("\n```").next().unwrap_or("").lines());
    let starts = ["img", "cat ", "cargo run --release --example img-info"];
    lines.filter(move |line| starts.iter().any(|start| line.starts_with(start)))
}
