//! One table of the configuration, read key by key; what is wrong is noted, and what nobody read is wrong too.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use config::{Map, Value, ValueKind};
use cookie::time::OffsetDateTime;
use cookie::time::format_description::well_known::Rfc3339;
use url::Url;

/// A table and where it stands.
pub(super) struct Section<'a> {
    path: String,
    table: Map<String, Value>,
    /// Whether something else stands where it should be: then that is said, and not what it lacks.
    is_broken: bool,
    errors: &'a ConfigErrors,
}

impl<'a> Section<'a> {
    /// The outermost table.
    pub(super) fn root(table: Map<String, Value>, errors: &'a ConfigErrors) -> Self {
        Self { path: String::new(), table, is_broken: false, errors }
    }

    /// The table `key`, empty if there is none.
    pub(super) fn section(&mut self, key: &str) -> Self {
        let (table, is_broken) = match self.take(key).map(|value| value.kind) {
            Some(ValueKind::Table(table)) => (table, self.is_broken),
            None => (Map::new(), self.is_broken),
            Some(_) => {
                let name = self.name(key);
                self.record_error::<()>(key, format!("must be a section, such as [{name}] with its keys below"));
                (Map::new(), true)
            }
        };
        Self { path: self.name(key), table, is_broken, errors: self.errors }
    }

    /// The value of `key`, which is known from now on.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.errors.keys.borrow_mut().insert(self.name(key), true);
        self.table.remove(key)
    }

    /// Notes it if `key` is not there.
    pub(super) fn require(&self, key: &str) -> Option<()> {
        self.errors.keys.borrow_mut().insert(self.name(key), true);
        if self.table.contains_key(key) { Some(()) } else { self.record_error(key, "is missing") }
    }

    /// The names of all keys that nobody has read yet.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.table.keys().cloned().collect();
        keys.sort();
        keys
    }

    /// The value of `key`, which must be there.
    pub(super) fn required<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        self.require(key)?;
        self.optional(key)
    }

    /// The value of `key`, if it is there.
    pub(super) fn optional<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.text(key)?;
        text.parse().map_err(|error| self.record_error::<()>(key, error)).ok()
    }

    /// The text of `key`, if it is there.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.take(key)?;
        value.into_string().map_err(|_| self.record_error::<()>(key, "must be a plain value")).ok()
    }

    // Below, not the words of whatever parses a value: they are a library's, and some quote it.

    /// Whether `key` is `true`, if it is there.
    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        let text = self.text(key)?;
        text.parse().map_err(|_| self.record_error::<()>(key, "must be true or false")).ok()
    }

    /// The URL that `key` is, if it is there.
    pub(super) fn url(&mut self, key: &str) -> Option<Url> {
        let text = self.text(key)?;
        let what = "must be a URL such as https://host.example.org";
        Url::parse(&text).map_err(|_| self.record_error::<()>(key, what)).ok()
    }

    /// The values of `key`: a list, or a text with commas, as the environment has it; empty if it is not there.
    pub(super) fn list<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<Vec<T>> {
        let texts = match self.take(key).map(|value| value.kind) {
            None => Vec::new(),
            Some(ValueKind::Array(values)) => match values.into_iter().map(Value::into_string).collect() {
                Ok(texts) => texts,
                Err(_) => return self.record_error(key, "must be a list of plain values"),
            },
            Some(ValueKind::String(text)) if text.trim().is_empty() => Vec::new(),
            Some(ValueKind::String(text)) => text.split(',').map(|text| text.trim().to_owned()).collect(),
            Some(_) => return self.record_error(key, "must be a list"),
        };
        // Mostly what a template left out; without it the list might mean something else.
        if texts.iter().any(|text: &String| text.trim().is_empty()) {
            return self.record_error(key, "must not hold an empty entry");
        }
        // All of them, so that every error is noted.
        let parsed: Vec<_> =
            texts.iter().map(|text| text.parse().map_err(|error| self.record_error::<()>(key, error))).collect();
        parsed.into_iter().collect::<Result<_, _>>().ok()
    }

    /// A duration such as `30s`, longer than none.
    pub(super) fn duration(&mut self, key: &str) -> Option<Duration> {
        let text: String = self.required(key)?;
        match humantime::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() && duration <= MAX_DURATION => Some(duration),
            _ => self.record_error(key, "must be a time such as 30s, 15m or 7d, more than none and at most 400 days"),
        }
    }

    /// A duration that is not shorter than `least`.
    pub(super) fn duration_from(&mut self, key: &str, least: Duration) -> Option<Duration> {
        let duration = self.duration(key)?;
        let what = || format!("must be {} at least", humantime::format_duration(least));
        if duration >= least { Some(duration) } else { self.record_error(key, what()) }
    }

    /// A moment (RFC 3339), if it is there; a fraction of a second is dropped.
    pub(super) fn time(&mut self, key: &str) -> Option<SystemTime> {
        let text = self.text(key)?;
        match OffsetDateTime::parse(&text, &Rfc3339) {
            Ok(time) if time.unix_timestamp() >= 0 => {
                Some(SystemTime::UNIX_EPOCH + Duration::from_secs(time.unix_timestamp().unsigned_abs()))
            }
            _ => self.record_error(key, "must be a time such as 2026-01-31T12:00:00Z"),
        }
    }

    /// A size in bytes, such as `32KiB`.
    pub(super) fn size(&mut self, key: &str) -> Option<u64> {
        let text: String = self.required(key)?;
        let size = text.parse::<ByteSize>();
        size.map(|size| size.as_u64()).map_err(|_| self.record_error::<()>(key, "must be a size such as 32KiB")).ok()
    }

    /// A size that is not none. None is what other servers call no limit at all.
    pub(super) fn nonzero_size(&mut self, key: &str) -> Option<NonZeroU64> {
        let what = "must be more than none: 0 is not \"no limit\" here";
        NonZeroU64::new(self.size(key)?).or_else(|| self.record_error(key, what))
    }

    /// A size of some KiB.
    pub(super) fn size_in_kib(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<usize> {
        let size = self.size(key)?;
        let (least, most) = range.into_inner();
        let fitting = usize::try_from(size).ok().filter(|_| ((least << 10)..=(most << 10)).contains(&size));
        fitting.or_else(|| self.record_error(key, format!("must be a size from {least}KiB to {most}KiB")))
    }

    /// A whole number in `range`.
    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let text: String = self.required(key)?;
        let number = text.parse().ok().filter(|number| range.contains(number));
        let (least, most) = range.into_inner();
        number.or_else(|| self.record_error(key, format!("must be a whole number from {least} to {most}")))
    }

    /// Notes what is wrong with `key`.
    pub(super) fn record_error<T>(&self, key: &str, what: impl fmt::Display) -> Option<T> {
        if !self.is_broken {
            self.errors.add(&self.name(key), what);
        }
        None
    }

    /// Notes what is wrong with all of it.
    pub(super) fn record_own_error<T>(&self, what: impl fmt::Display) -> Option<T> {
        if !self.is_broken {
            self.errors.add(&self.path, what);
        }
        None
    }

    /// Notes what is allowed with `key` and yet not good.
    pub(super) fn warn(&self, key: &str, what: &str) {
        self.errors.warn(&self.name(key), what);
    }

    /// Notes every key that nobody read.
    pub(super) fn finish(self) {
        let unknown = self.keys().into_iter().map(|key| (self.name(&key), false));
        self.errors.keys.borrow_mut().extend(unknown);
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// Everything that is wrong with a configuration, a line each. Names keys, never values.
#[derive(Debug, Default)]
pub struct ConfigErrors {
    errors: RefCell<Vec<String>>,
    warnings: RefCell<Vec<String>>,
    /// Every key that was asked for, such as `server.listen`, and each that is there and was not: whether it was.
    keys: RefCell<BTreeMap<String, bool>>,
}

impl ConfigErrors {
    pub(super) fn add(&self, key: &str, what: impl fmt::Display) {
        self.errors.borrow_mut().push(format!("{key} {what}").trim().to_owned());
    }

    pub(super) fn warn(&self, key: &str, what: impl fmt::Display) {
        self.warnings.borrow_mut().push(format!("{key} {what}"));
    }

    /// Says of each key that nobody asked for which one it may be meant to be, now that all are known.
    pub(super) fn name_unknown(&self) {
        let keys = self.keys.borrow();
        let known: Vec<&str> = keys.iter().filter(|(_, is_known)| **is_known).map(|(key, _)| key.as_str()).collect();
        for (key, _) in keys.iter().filter(|(_, is_known)| !**is_known) {
            let what = match similar(key, &known) {
                meant if meant.is_empty() => "is no key of this gateway".to_owned(),
                meant => format!("is no key of this gateway: is {} meant?", meant.join(" or ")),
            };
            self.add(key, what);
        }
    }

    /// The key that a variable would name if each of its underscores were one or two.
    pub(super) fn known_as(&self, variable: &str) -> Option<String> {
        let plain = |text: &str| text.replace("__", "_").replace('.', "_");
        let keys = self.keys.borrow();
        let is_it = |key: &str| key.contains('.') && plain(key) == plain(variable);
        keys.iter().find(|(key, is_known)| **is_known && is_it(key)).map(|(key, _)| key.clone())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.borrow().is_empty()
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.errors.borrow();
        let count = errors.len();
        write!(f, "the configuration has {count} fault{}:", if count == 1 { "" } else { "s" })?;
        errors.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// The keys beside `key` that are written nearly as it is, or else those of its name in other sections.
fn similar<'a>(key: &str, known: &[&'a str]) -> Vec<&'a str> {
    let parts = |key: &str| {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        (section.to_owned(), name.to_ascii_lowercase().replace('-', "_"))
    };
    let (section, name) = parts(key);
    let distances = known.iter().filter(|other| parts(other).0 == section).map(|other| {
        let other_name = parts(other).1;
        (distance(&name, &other_name), *other)
    });
    let near = distances.filter(|(distance, _)| *distance <= 1 + name.len() / 4).min();
    match near {
        Some((_, other)) => vec![other],
        None => known.iter().copied().filter(|other| parts(other).1 == name && other.contains('.')).take(2).collect(),
    }
}

/// How many letters must be changed, added or left out to make one text of another (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (at, other_letter) in other.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != other_letter);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[other.len()]
}

/// What browsers keep a cookie for at most (RFC 6265bis section 5.6.2).
const MAX_DURATION: Duration = Duration::from_hours(9600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_for_the_one_that_is_written_nearly_so() {
        let known = ["admin.listen", "app.url", "datahubs.a.client_id", "datahubs.a.url", "server", "server.listen"];
        for (key, meant) in [
            ("server.listn", &["server.listen"][..]),
            ("server.LISTEN", &["server.listen"]),
            ("datahubs.a.client-id", &["datahubs.a.client_id"]),
            ("sever", &["server"]),
            ("listen", &["admin.listen", "server.listen"]),
            ("server.url", &["app.url", "datahubs.a.url"]),
            ("server.surprise", &[]),
            ("", &[]),
        ] {
            assert_eq!(similar(key, &known), meant, "{key}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!((distance("", "abc"), distance("abc", "")), (3, 3));
    }
}
