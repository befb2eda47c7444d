//! The layers of `src`: modules that stand in one folder never import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{files_below, root};

/// Imports between the modules of each folder, by the folder.
type Imports = BTreeMap<PathBuf, BTreeSet<(String, String)>>;

/// The path of a module: that of its file, without `mod.rs` and the extension.
fn module(file: &Path) -> PathBuf {
    match file.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    }
}

/// The modules that an expression names in a file: its prefix, and each name in the braces behind it.
fn named(text: &str, of: &Path) -> Vec<PathBuf> {
    let mut named = Vec::new();
    let is_path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &text[at..];
            let (path, rest) = rest.split_at(rest.find(|c| !is_path(c)).unwrap_or(rest.len()));
            let mut base = PathBuf::from("src");
            let mut above = of.to_owned();
            for part in path.split("::").filter(|part| !part.is_empty()) {
                match part {
                    "crate" => {}
                    "super" => {
                        above.pop();
                        base.clone_from(&above);
                    }
                    part => base.push(part),
                }
            }
            let braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            for item in braces.map_or("", |(inside, _)| inside).split(',') {
                let item: String = item.trim().chars().take_while(|c| is_path(*c)).collect();
                named.push(base.join(item.split("::").next().unwrap_or_default()));
            }
            named.push(base);
        }
    }
    named
}

fn imports() -> Imports {
    let mut imports = Imports::new();
    for file in files_below(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("\nmod tests {").next().unwrap_or_default();
        let code = text
            .lines()
            .map(|line| line.split("//").next().unwrap_or(line));
        let code = code.collect::<Vec<_>>().join("\n");
        let own = module(file.strip_prefix(root()).unwrap());
        for other in named(&code, &own) {
            let mut pairs = own.iter().zip(other.iter());
            let shared = pairs.by_ref().take_while(|(a, b)| a == b).count();
            let folder: PathBuf = own.iter().take(shared).collect();
            let (Some(from), Some(to)) = (own.iter().nth(shared), other.iter().nth(shared)) else {
                continue;
            };
            let to_file = root().join(&folder).join(to);
            if to_file.is_dir() || to_file.with_extension("rs").is_file() {
                let text = |name: &std::ffi::OsStr| name.to_str().unwrap().to_owned();
                imports
                    .entry(folder)
                    .or_default()
                    .insert((text(from), text(to)));
            }
        }
    }
    imports
}

/// The imports that are left when each module that imports nothing, or that nothing imports, is taken away,
/// again and again.
fn circles(mut imports: BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    loop {
        let before = imports.len();
        let from: BTreeSet<String> = imports.iter().map(|(from, _)| from.clone()).collect();
        imports.retain(|(_, to)| from.contains(to));
        let to: BTreeSet<String> = imports.iter().map(|(_, to)| to.clone()).collect();
        imports.retain(|(from, _)| to.contains(from));
        if imports.len() == before {
            return imports;
        }
    }
}

#[test]
fn modules_import_each_other_in_no_circle() {
    let imports = imports();
    let top = &imports[Path::new("src")];
    assert!(
        top.contains(&("formats".to_owned(), "image".to_owned())),
        "{top:?}"
    );
    for (folder, imports) in imports {
        let left = circles(imports);
        assert!(
            left.is_empty(),
            "a circle in {}: {left:?}",
            folder.display()
        );
    }
}
