//! The requirements of `SECURITY.md`: each has its text and the tests that show it, and none stands in source or tests alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One row of the tables: an id, what holds, what it is shown by, its source.
struct Requirement {
    id: String,
    text: String,
    shown_by: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn requirements() -> Vec<Requirement> {
    let document = fs::read_to_string(root().join("SECURITY.md")).expect("SECURITY.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")).filter_map(|row| {
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
        ids(cells[0], None).contains(cells[0]).then(|| match cells[..] {
            [id, text, shown_by, _] => Requirement { id: id.into(), text: text.into(), shown_by: shown_by.into() },
            _ => panic!("a row has four cells: {row}"),
        })
    });
    rows.collect()
}

/// What looks like an id in a text, such as `AR` with a number of two digits behind a hyphen; of these `groups` only, if any are
/// named.
fn ids(text: &str, groups: Option<&BTreeSet<String>>) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let words = text.split(|letter| !is_part(letter));
    let is_id = |word: &&str| match word.as_bytes() {
        [group @ .., b'-', ten, one] => {
            group.len() == 2 && group.iter().all(u8::is_ascii_uppercase) && ten.is_ascii_digit() && one.is_ascii_digit()
        }
        _ => false,
    };
    words.filter(is_id).filter(|id| groups.is_none_or(|groups| groups.contains(&id[..2]))).map(str::to_owned).collect()
}

/// The files below `folder` that people write, but for what is installed or made there.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if !["node_modules", "__pycache__", "target", "corpus"].contains(&name.as_str()) && !name.starts_with('.') {
                found.extend(files(&path, extensions));
            }
        } else if path.extension().is_some_and(|kind| extensions.iter().any(|extension| kind == *extension)) {
            found.push(path);
        }
    }
    found
}

/// The documents in a folder.
fn documents(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect()
}

/// Where a test of this kind is: its file and its name; no name for all of a file.
fn place<'a>(kind: &str, test: &'a str) -> (PathBuf, Option<&'a str>) {
    let (folder, extension) = match kind {
        "" => ("tests/api", "rs"),
        "unit" => ("src", "rs"),
        "browser" => ("tests/browser", "py"),
        "deploy" => ("tests/deploy", "py"),
        "fuzz" => ("tests/fuzz", "rs"),
        _ => panic!("{kind} is no kind of test"),
    };
    let (file, name) = test.split_once("::").map_or((test, None), |(file, name)| (file, Some(name)));
    (root().join(folder).join(format!("{file}.{extension}")), name)
}

/// Whether a file has a test of this name: a function that is marked as one, or that Python's unittest finds; without a name
/// whether it has any.
fn has_test(file: &Path, name: Option<&str>) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some(name) = name.filter(|name| *name != "*") else {
        return ["#[test]", "def test_", "fuzz_target!"].iter().any(|mark| text.contains(mark));
    };
    if text.contains(&format!("    def {name}(self)")) {
        return name.starts_with("test_");
    }
    let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
    // Attributes, and nothing else, may stand between the mark and the function.
    let mut above = before.trim_end_matches(|letter| letter != '\n').lines().rev().map(str::trim);
    above.by_ref().take_while(|line| line.starts_with("#[")).any(|line| line == "#[test]")
}

#[test]
fn every_requirement_stands_once_in_its_order_and_has_a_text() {
    let rows = requirements();
    assert!(rows.len() > 100, "the tables are read: {}", rows.len());
    let mut seen = BTreeSet::new();
    let mut last = String::new();
    for Requirement { id, text, .. } in &rows {
        assert!(seen.insert(id), "{id} stands twice");
        assert!(id[..2] != last[..2.min(last.len())] || *id > last, "{id} stands behind {last}");
        assert!(text.ends_with('.') && text.len() > 20, "{id} has no text: {text}");
        last.clone_from(id);
    }
}

#[test]
fn every_requirement_of_source_and_tests_is_in_the_tables() {
    let rows = requirements();
    let known: BTreeSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    let groups = known.iter().map(|id| id[..2].to_owned()).collect();
    let extensions = ["rs", "json", "js", "mjs", "py"];
    let mut met = BTreeSet::new();
    for file in ["src", "tests"].iter().flat_map(|folder| files(&root().join(folder), &extensions)) {
        let text = fs::read_to_string(&file).expect("a text");
        for id in ids(&text, Some(&groups)) {
            assert!(known.contains(&id), "{id} of {} is not in SECURITY.md", file.display());
            met.insert(id);
        }
    }
    assert!(met.len() > 100, "the files are read: {}", met.len());
}

#[test]
fn every_requirement_names_tests_that_are_there_or_says_why_there_is_none() {
    for Requirement { id, shown_by, .. } in requirements() {
        if let Some(reason) = shown_by.strip_prefix("no test: ") {
            assert!(reason.len() > 20, "{id}: no reason");
            continue;
        }
        for word in shown_by.split(", ") {
            let (kind, test) = word.trim_end_matches('`').split_once('`').expect(&id);
            let (file, name) = place(kind.trim_end(), test);
            assert!(has_test(&file, name), "{id}: {word}");
        }
    }
}

/// What a decision stands on may be renamed; then its page says so, too.
#[test]
fn every_test_that_a_decision_names_is_there() {
    let mut count = 0;
    for document in documents("docs/decisions") {
        let text = fs::read_to_string(&document).expect("a text");
        let parts: Vec<&str> = text.split('`').collect();
        for [before, code] in parts.chunks_exact(2).map(|pair| [pair[0], pair[1]]) {
            let kind = before.split_whitespace().next_back().unwrap_or_default();
            let kind = ["unit", "browser", "deploy", "fuzz"].into_iter().find(|known| *known == kind);
            let (file, name) = place(kind.unwrap_or_default(), code);
            // Anything else between the marks is no test: a type, a file, a key.
            if kind.is_some() || (name.is_some() && file.exists()) {
                assert!(has_test(&file, name), "{} names {code}", document.display());
                count += 1;
            }
        }
    }
    assert!(count > 40, "the pages are read: {count}");
}
