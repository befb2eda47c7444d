//! The commands that the README shows do what they are shown for.

use std::fs;
use std::path::Path;

use crate::support::command::{example, run};

#[test]
fn every_command_of_the_readme_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The README's commands write there, which is where a clone has its build.
    fs::create_dir_all(root.join("target")).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let shown = readme.lines().filter_map(|line| {
        let rest = line.strip_prefix("cargo run --release ")?;
        let rest = match rest.strip_prefix("--features plan ") {
            // Its example is not built without it.
            Some(rest) if cfg!(feature = "plan") => rest,
            Some(_) => return None,
            None => rest,
        };
        rest.strip_prefix("--example ")?.split_once(" -- ")
    });
    let mut commands = 0;
    for (name, arguments) in shown {
        // What a program behind a pipe makes of it is its own business.
        let (arguments, _) = arguments.split_once(" | ").unwrap_or((arguments, ""));
        let out = run(root, example(name), arguments.split_whitespace());
        assert!(out.status.success(), "{name} {arguments}: {out:?}");
        commands += 1;
    }
    assert!(commands >= 6, "the README shows {commands} commands");
}
