//! The documents: their links lead somewhere, and their tables say what the code says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: impl AsRef<Path>) -> String {
    let path = root().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every page that people read.
fn documents() -> Vec<PathBuf> {
    let folders = ["", "docs", "docs/decisions"].map(|folder| fs::read_dir(root().join(folder)).expect("a folder"));
    let paths = folders.into_iter().flatten().map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect()
}

/// A page's lines, but for those of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_fenced = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// The anchors of a page's headings, as forges make them: lower case, hyphens for spaces, no other marks; a second one of a name
/// has `-1` behind it.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for heading in
        prose(text).filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')))
    {
        let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
        let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
        let names = std::iter::once(anchor.clone()).chain((1..).map(|number| format!("{anchor}-{number}")));
        let fresh = names.into_iter().find(|name| !found.contains(name)).expect("there is no end of numbers");
        found.insert(fresh);
    }
    found
}

/// All files of `folder` with their texts.
fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push((path.clone(), read(path)));
        }
    }
}

/// The cells of the rows of a page's tables, without heads and rules.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = prose(text).collect();
    let is_rule = |line: &str| line.starts_with('|') && line.bytes().all(|byte| b"|-: ".contains(&byte));
    let is_row = |at: &usize| {
        lines[*at].starts_with('|') && !is_rule(lines[*at]) && !lines.get(at + 1).is_some_and(|next| is_rule(next))
    };
    let cells = |at: usize| lines[at].trim_matches('|').split(" | ").map(str::trim).collect();
    (0..lines.len()).filter(is_row).map(cells).collect()
}

#[test]
fn what_the_way_through_the_source_names_is_there() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let is_there = |owner: &str, item: &str| {
        let begins_one =
            |line: &str| !line.starts_with(' ') && ["impl", "struct ", "enum "].iter().any(|word| line.contains(word));
        files.iter().any(|(path, text)| {
            let is_owner = path.file_stem().is_some_and(|stem| stem == owner)
                || text.lines().any(|line| begins_one(line) && line.contains(owner));
            let mut items = text.lines().filter_map(|line| line.split_once(item));
            is_owner
                && items.any(|(before, after)| {
                    let is_end = after.starts_with(['(', '<', ',', ' ']);
                    is_end && (before.ends_with("fn ") || (before.starts_with("    ") && before.trim().is_empty()))
                })
        })
    };
    let page = read("ARCHITECTURE.md");
    let named =
        prose(&page).flat_map(|line| line.split('`').skip(1).step_by(2)).filter_map(|name| name.rsplit_once("::"));
    let (there, missing): (Vec<_>, Vec<_>) =
        named.partition(|(owner, item)| is_there(owner.rsplit("::").next().unwrap_or(owner), item));
    assert!(missing.is_empty(), "ARCHITECTURE.md names what is not in src: {missing:?}");
    assert!(there.len() > 40, "{there:?}");
}

#[test]
fn every_link_between_the_documents_leads_somewhere_and_to_a_heading_that_is_there() {
    let mut count = 0;
    for document in documents() {
        let text = read(&document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(['{', '`', ' ', '\n']) {
                continue; // Elsewhere, or no link.
            }
            let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let folder = document.parent().expect("a folder");
            let target = if path.is_empty() { document.clone() } else { folder.join(path) };
            assert!(target.exists(), "{} links to {link}", document.display());
            if let Some(anchor) = anchor {
                let headings = anchors(&read(&target));
                assert!(headings.contains(anchor), "{} links to {link}, and there is {headings:?}", document.display());
                count += 1;
            }
        }
    }
    assert!(count > 50, "anchors are read: {count}");
}

#[test]
fn anchors_are_as_forges_make_them() {
    let text =
        "# Why?\n```sh\n# no heading\n```\n## The ARCmanager's app, unchanged\n## `check`\n## Why?\n#no heading\n";
    let told = anchors(text);
    let expected = ["why", "the-arcmanagers-app-unchanged", "check", "why-1"];
    assert_eq!(told, expected.map(str::to_owned).into());
}

#[test]
fn the_readme_is_read_in_a_minute() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 250, "{lines} lines: what is not for everybody belongs into docs/");
}

/// A line of `config/default.toml` that sets a key, or shows one that has no default: section, key, value.
fn default_keys() -> BTreeMap<(String, String), (String, bool)> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in read("config/default.toml").lines() {
        let text = line.trim_start_matches("# ");
        if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.replace("tuebingen", "ID");
        } else if let Some((key, value)) = text.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            // What is said behind a value of the example is no part of it.
            let value = value.split("  #").next().unwrap_or(value).trim_end();
            keys.insert((section.clone(), key.to_owned()), (value.to_owned(), text == line));
        }
    }
    keys
}

#[test]
fn every_key_of_the_configuration_is_told_with_its_default_and_no_other() {
    let page = read("docs/configuration.md");
    let mut told = BTreeMap::new();
    for part in page.split("\n## ").skip(1) {
        let section = part.lines().next().unwrap_or_default().trim_matches('`').to_owned();
        for row in rows(part) {
            let [key, takes, default, sentence] = row[..] else { panic!("a row has four cells: {row:?}") };
            assert!(!takes.is_empty() && sentence.contains('.'), "{section}.{key} has no syntax or no sentence");
            told.insert((section.clone(), key.trim_matches('`').to_owned()), default.to_owned());
        }
    }
    let keys = default_keys();
    assert!(keys.len() > 60, "the file is read: {}", keys.len());
    assert_eq!(told.keys().collect::<Vec<_>>(), keys.keys().collect::<Vec<_>>());
    for (name, (value, is_set)) in keys {
        let default = &told[&name];
        let literal =
            default.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')).filter(|text| !text.contains('`'));
        // Of the example of a DataHUB some values are defaults, and some only show what one looks like.
        let is_right = match literal {
            Some(text) => text == value,
            None => !is_set && (default == "none" || (name.0 == "datahubs.ID" && !default.is_empty())),
        };
        assert!(is_right, "{name:?}: {default} is told, and the file has {value}");
    }
}

#[test]
fn every_code_of_an_error_is_told_to_those_who_write_apps_with_its_status() {
    let source = read("src/error.rs");
    // Each row is `(STATUS, "CODE", "TITLE", "DETAIL")`, on one line or on several.
    let words: Vec<&str> = source
        .split(|letter: char| letter.is_whitespace() || "(),".contains(letter))
        .filter(|word| !word.is_empty())
        .collect();
    let is_status = |word: &str| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    let is_code =
        |word: &str| word.len() > 2 && word.starts_with('"') && word.ends_with('"') && word == word.to_lowercase();
    let pairs = words.windows(2).filter(|pair| is_status(pair[0]) && is_code(pair[1]));
    let codes: BTreeSet<(String, String)> =
        pairs.map(|pair| (pair[1].trim_matches('"').to_owned(), pair[0].to_owned())).collect();
    assert!(codes.len() > 25, "the source is read: {codes:?}");
    let page = read("docs/apps.md");
    let table = page.split("\n## Errors\n").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let mut told = BTreeSet::new();
    for row in rows(table) {
        let statuses: Vec<&str> = row[1].split(", ").collect();
        for (at, code) in row[0].split(", ").enumerate() {
            // One status is that of all of them.
            let status = statuses.get(at).or(statuses.first().filter(|_| statuses.len() == 1)).expect("a status");
            told.insert((code.trim_matches('`').to_owned(), (*status).to_owned()));
        }
    }
    assert_eq!(told, codes);
}

/// The README shows some rows of what was measured beside others; a new measurement changes both.
#[test]
fn what_the_readme_says_of_speed_is_what_was_measured() {
    let (readme, speed) = (read("README.md"), read("docs/speed.md"));
    let shown =
        readme.split("\n## How fast is it?\n").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the section");
    let measured = speed.split("<!-- peers -->").nth(1).expect("the table");
    let (shown, measured) = (rows(shown), rows(measured));
    assert!(shown.len() > 2, "{shown:?}");
    for row in shown {
        assert!(measured.contains(&row), "docs/speed.md has no row {row:?}");
    }
}
