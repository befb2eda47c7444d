//! The text of the source files: doc comments in plain words.

use std::fs;

use crate::support::{files_below, root};

/// Words with which a doc comment does not begin: it begins with a noun or a verb.
const QUESTIONS: [&str; 7] = ["What", "Whether", "Who", "Whoever", "Where", "How", "Which"];

/// The highest share of such doc comments, in percent.
const ALLOWED: usize = 3;

#[test]
fn doc_comments_begin_with_a_noun_or_a_verb() {
    let (mut comments, mut questions) = (0, Vec::new());
    for folder in ["src", "examples", "tests"] {
        for path in files_below(&root().join(folder)) {
            if path.extension().is_none_or(|end| end != "rs") {
                continue;
            }
            let mut within = false;
            for (line, number) in fs::read_to_string(&path).unwrap().lines().zip(1..) {
                let line = line.trim_start();
                let text = line.strip_prefix("///").or(line.strip_prefix("//!"));
                if let (Some(text), false) = (text, within) {
                    comments += 1;
                    let word = text.split_whitespace().next().unwrap_or_default();
                    if QUESTIONS.contains(&word.trim_end_matches(',')) {
                        questions.push(format!("{}:{number}:{text}", path.display()));
                    }
                }
                within = text.is_some();
            }
        }
    }
    assert!(comments > 1000, "{comments} doc comments were found");
    assert!(
        questions.len() * 100 <= comments * ALLOWED,
        "{} of {comments} doc comments begin with a question word:\n{}",
        questions.len(),
        questions.join("\n")
    );
}
