//! One table of the configuration, read key by key; what is wrong is noted, and what nobody read is wrong too.

use std::cell::RefCell;
use std::fmt;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use config::{Map, Value, ValueKind};
use cookie::time::OffsetDateTime;
use cookie::time::format_description::well_known::Rfc3339;

/// A table and where it stands.
pub(super) struct Section<'a> {
    path: String,
    table: Map<String, Value>,
    errors: &'a ConfigErrors,
}

impl<'a> Section<'a> {
    /// The outermost table.
    pub(super) fn root(table: Map<String, Value>, errors: &'a ConfigErrors) -> Self {
        Self { path: String::new(), table, errors }
    }

    /// The table `key`, empty if there is none.
    pub(super) fn section(&mut self, key: &str) -> Self {
        let table = match self.table.remove(key).map(|value| value.kind) {
            Some(ValueKind::Table(table)) => table,
            None => Map::new(),
            Some(_) => {
                self.record_error::<()>(key, "must be a section");
                Map::new()
            }
        };
        Self { path: self.name(key), table, errors: self.errors }
    }

    /// The names of all keys that nobody has read yet.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.table.keys().cloned().collect();
        keys.sort();
        keys
    }

    /// The value of `key`, which must be there.
    pub(super) fn required<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        if !self.table.contains_key(key) {
            return self.record_error(key, "is missing");
        }
        self.optional(key)
    }

    /// The value of `key`, if it is there.
    pub(super) fn optional<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let text = self.text(key)?;
        text.parse().map_err(|error| self.record_error::<()>(key, error)).ok()
    }

    /// The text of `key`, if it is there.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.table.remove(key)?;
        value.into_string().map_err(|_| self.record_error::<()>(key, "must be a plain value")).ok()
    }

    /// The values of `key`: a list, or a text with commas, as the environment has it; empty if it is not there.
    pub(super) fn list<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<Vec<T>> {
        let texts = match self.table.remove(key).map(|value| value.kind) {
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
        // Not the library's own words here and below: they quote the value.
        match humantime::parse_duration(&text) {
            Ok(duration) if !duration.is_zero() && duration <= MAX_DURATION => Some(duration),
            _ => self.record_error(key, "must be a time such as 30s, 15m or 7d, more than none and at most 400 days"),
        }
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

    /// A size that is not none.
    pub(super) fn nonzero_size(&mut self, key: &str) -> Option<NonZeroU64> {
        NonZeroU64::new(self.size(key)?).or_else(|| self.record_error(key, "must be more than none"))
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
        self.errors.add(&self.name(key), what);
        None
    }

    /// Notes what is allowed with `key` and yet not good.
    pub(super) fn warn(&self, key: &str, what: &str) {
        self.errors.warnings.borrow_mut().push(format!("{} {what}", self.name(key)));
    }

    /// Notes every key that nobody read.
    pub(super) fn finish(self) {
        for key in self.keys() {
            self.record_error::<()>(&key, "is no key of this gateway");
        }
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
}

impl ConfigErrors {
    pub(super) fn add(&self, key: &str, what: impl fmt::Display) {
        self.errors.borrow_mut().push(format!("{key} {what}").trim().to_owned());
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

/// What browsers keep a cookie for at most (RFC 6265bis section 5.6.2).
const MAX_DURATION: Duration = Duration::from_hours(9600);
