//! Where the configuration comes from: the built-in defaults, then files, then the environment, as one table.
//!
//! A file and a variable are named when something is wrong with them; their content never is.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};

use super::file;
use super::section::ConfigErrors;

/// What has been read.
pub(super) struct Sources {
    /// All of it; what came later has won.
    pub(super) table: Map<String, Value>,
    /// Variables that begin nearly as ours do.
    pub(super) strays: Vec<String>,
}

/// Reads the defaults, then `files` in order, then the environment.
pub(super) fn read(files: &[PathBuf], errors: &ConfigErrors) -> Option<Sources> {
    let mut settings = config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    for path in files {
        if let Some(text) = read_file(path, errors) {
            settings = settings.add_source(File::from_str(&text, FileFormat::Toml));
        }
    }
    let (variables, strays) = variables(errors);
    if !errors.is_empty() {
        return None;
    }
    let environment = Environment::with_prefix(PREFIX).prefix_separator("__").separator("__").source(Some(variables));
    let table = settings.add_source(environment).build().and_then(|settings| settings.collect());
    let table = table.map_err(|_| errors.add("the configuration", "cannot be put together")).ok()?;
    Some(Sources { table, strays })
}

/// The text of a file that is TOML.
fn read_file(path: &Path, errors: &ConfigErrors) -> Option<String> {
    let name = path.display().to_string();
    let (text, metadata) =
        file::read_text(path).map_err(|error| errors.add(&name, format!("cannot be read: {error}"))).ok()?;
    // As some editors begin a file.
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    match File::from_str(&text, FileFormat::Toml).collect() {
        Ok(table) => {
            if let Some(who) = holds_secret(&table).then(|| readers(&metadata)).flatten() {
                let what = "may read or change: chmod 600, or put its secrets into files of their own";
                errors.warn(&name, format!("holds a secret that {who} {what}"));
            }
            Some(text)
        }
        Err(error) => {
            // Of its text, which quotes the file and so perhaps a secret, the place at the beginning and the reason at the
            // end: that is one of the parser's own phrases.
            let told = error.to_string();
            let place = told.lines().next().and_then(|line| line.strip_prefix("TOML parse error at "));
            let reason = told.lines().next_back().filter(|_| place.is_some());
            let too_large = || format!("line {}", line_of_large_number(&text).unwrap_or(1));
            let (place, reason) =
                (place.map_or_else(too_large, str::to_owned), reason.unwrap_or("a number is too large"));
            errors.add(&name, format!("is no TOML at {place}: {reason}"));
            None
        }
    }
}

/// The line with the first number that is too large for what reads it, which does not say where it stands.
fn line_of_large_number(toml: &str) -> Option<usize> {
    let is_too_large = |word: &str| {
        let word = word.replace('_', "");
        let radix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(start, _)| word.starts_with(start));
        let (digits, radix) = radix.map_or((word.as_str(), 10), |(start, radix)| (&word[start.len()..], radix));
        let digits = digits.trim_start_matches(['+', '-']);
        let is_whole = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
        let is_float = word.starts_with(|first: char| first.is_ascii_digit() || "+-".contains(first));
        let is_infinite = || is_float && !word.contains("inf") && word.parse().is_ok_and(f64::is_infinite);
        is_whole && i64::from_str_radix(digits, radix).is_err() || is_infinite()
    };
    // What is in quotes is no number.
    let is_between = |letter: char| !letter.is_ascii_alphanumeric() && !"_+-.\"'".contains(letter);
    let has_one = |line: &str| line.split('#').next().unwrap_or(line).split(is_between).any(is_too_large);
    toml.lines().position(has_one).map(|at| at + 1)
}

/// Whether it has a key, or a client's secret, in itself.
fn holds_secret(table: &Map<String, Value>) -> bool {
    let section = |name: &str| match table.get(name).map(|value| &value.kind) {
        Some(ValueKind::Table(table)) => Some(table),
        _ => None,
    };
    let has = |value: &Value, key: &str| matches!(&value.kind, ValueKind::Table(table) if table.contains_key(key));
    section("session").is_some_and(|session| session.contains_key("keys"))
        || section("datahubs").is_some_and(|all| all.values().any(|datahub| has(datahub, "client_secret")))
}

/// Who may read or change a file with secrets that should not. Not the group that root has given it to: so are the files that
/// Kubernetes mounts, those of a service below `/etc`, and the credentials that systemd gives to a user by an ACL, which makes
/// them 0440. Those that it gives away are 0400.
pub(super) fn readers(metadata: &Metadata) -> Option<&'static str> {
    let mode = metadata.mode();
    let is_for_group = mode & 0o020 != 0 || mode & 0o040 != 0 && metadata.uid() != 0;
    if mode & 0o007 != 0 { Some("everybody on this machine") } else { is_for_group.then_some("its group") }
}

/// The variables that are ours, and the names of those that may be meant to be.
fn variables(errors: &ConfigErrors) -> (Map<String, String>, Vec<String>) {
    let (mut ours, mut strays) = (Map::new(), Vec::new());
    let mut take = |name: String, value: OsString| {
        let Some(rest) = name.get(PREFIX.len()..).filter(|_| is_prefixed(&name)) else { return };
        let Some(key) = rest.strip_prefix("__") else {
            strays.extend(rest.starts_with('_').then_some(name));
            return;
        };
        // Every key is in a section.
        if key.contains('_') && !key.contains("__") {
            strays.push(name);
        } else if key.split("__").any(str::is_empty) {
            errors.add(&name, "is no name of a key: write GATEWAY__SECTION__KEY");
        } else if let Ok(value) = value.into_string() {
            ours.insert(name, value);
        } else {
            errors.add(&name, "is no UTF-8 text");
        }
    };
    for (name, value) in std::env::vars_os() {
        if let Ok(name) = name.into_string() {
            take(name, value);
        }
    }
    strays.sort();
    (ours, strays)
}

fn is_prefixed(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// Says of each variable that only begins nearly as ours do how it must be spelled. One that would set a key is wrong; of any
/// other nobody knows whose it is.
pub(super) fn report(strays: Vec<String>, errors: &ConfigErrors) {
    for name in strays {
        let rest = name[PREFIX.len() + 1..].to_ascii_lowercase();
        let (rest, is_ours) = rest.strip_prefix('_').map_or((rest.as_str(), false), |rest| (rest, true));
        if let Some(key) = errors.known_as(rest) {
            let spelled = key.to_ascii_uppercase().replace('.', "__");
            errors
                .add(&name, format!("is not read: write {PREFIX}__{spelled}, with two underscores between the parts"));
        } else if rest.starts_with("datahubs_") {
            errors.add(&name, "is not read: write GATEWAY__DATAHUBS__ID__KEY, with two underscores between the parts");
        } else if is_ours {
            errors
                .add(&name, "is no name of a key: write GATEWAY__SECTION__KEY, with two underscores between the parts");
        } else if !is_service_link(rest) {
            errors.warn(&name, "is not read: the gateway's variables are GATEWAY__SECTION__KEY, with two underscores");
        }
    }
}

/// What Kubernetes tells every container of a Service that is called `gateway`, or begins so.
fn is_service_link(rest: &str) -> bool {
    let rest = format!("_{rest}");
    ["_service_host", "_service_port", "_port"].iter().any(|end| rest.ends_with(end))
        || ["_service_port_", "_port_"].iter().any(|part| rest.contains(part))
}

/// What our variables begin with.
const PREFIX: &str = "GATEWAY";
const DEFAULTS: &str = include_str!("../../config/default.toml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_too_large_is_found() {
        for (case, toml, expected) in [
            ("whole", "a = 1\nb = 123456789012345678901234567890", Some(2)),
            ("in a list", "a = [1,\n\n 99999999999999999999,\n 3]", Some(3)),
            ("in a table", "t = { a = 9_223_372_036_854_775_808 }", Some(1)),
            ("in hexadecimal digits", "a = 0xffff_ffff_ffff_ffff_f", Some(1)),
            ("with a point", "a = 1\n\nb = 1e999", Some(3)),
            ("the largest", "a = 9_223_372_036_854_775_807 # 99999999999999999999\nb = -9.9e307", None),
            ("text", "a = \"99999999999999999999\"\nb = inf", None),
        ] {
            assert_eq!(line_of_large_number(toml), expected, "{case}");
        }
    }

    #[test]
    fn what_kubernetes_says_of_a_service_is_no_setting() {
        for name in ["service_host", "service_port", "service_port_http", "port", "port_8000_tcp", "port_8000_tcp_addr"]
        {
            assert!(is_service_link(name), "{name}");
            assert!(is_service_link(&format!("of_two_{name}")), "{name}");
        }
        for name in ["server_listen", "support", "url", "server__public_url"] {
            assert!(!is_service_link(name), "{name}");
        }
    }
}
