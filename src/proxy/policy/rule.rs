//! Methods and a pattern of paths, and the tree that finds the most exact of many.

use std::fmt;
use std::str::FromStr;

use crate::guard::METHODS;

/// Methods and a pattern of paths below `/api/v4`: `GET|HEAD projects/**`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    text: Box<str>,
    pub(super) methods: Methods,
    /// `None` is any one segment.
    pub(super) segments: Vec<Option<Box<str>>>,
    /// Whether all below counts, too.
    pub(super) is_deep: bool,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (methods, pattern) = text.split_once(' ').ok_or(RuleError::NotTwo)?;
        let methods = methods.parse()?;
        let (shallow, is_deep) = match pattern.strip_suffix("**") {
            Some("") => ("", true),
            Some(above) => (above.strip_suffix('/').filter(|above| !above.is_empty()).ok_or(RuleError::Pattern)?, true),
            None => (pattern, false),
        };
        let segment = |segment: &str| match segment {
            "*" => Ok(None),
            "" => Err(RuleError::Pattern),
            _ if segment.bytes().all(|byte| PLAIN[usize::from(byte)]) => Ok(Some(segment.to_ascii_lowercase().into())),
            _ => Err(RuleError::Pattern),
        };
        let segments = match shallow {
            "" if is_deep => Vec::new(),
            _ => shallow.split('/').map(segment).collect::<Result<_, _>>()?,
        };
        Ok(Self { text: text.into(), methods, segments, is_deep })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is no [`Rule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No space in it.
    #[error("must be methods, a space and a pattern, such as `GET|HEAD projects/**`")]
    NotTwo,
    /// Unknown, lower case, none.
    #[error("must begin with `*` or with methods between bars, of {}", METHODS.join(", "))]
    Method,
    /// An empty segment, `**` in the middle, a dot.
    #[error(
        "must have a pattern of segments below /api/v4, without a slash in front: letters, digits, `-` and `_` (a format such \
         as .json does not count), `*` for any one, and at the end `**` for all below"
    )]
    Pattern,
}

/// A set of methods, a bit for each of [`METHODS`] and one for all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Methods(u8);

impl Methods {
    /// The set of one.
    pub(super) fn of(method: &str) -> Self {
        const { assert!(METHODS.len() < 8, "a bit for each, and one for all others") }
        Self(1 << METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len()))
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether a method that changes nothing is in it.
    pub(super) fn is_read(self) -> bool {
        self.meets(Self::READS)
    }

    /// Whether a method that may change something is in it.
    pub(super) fn is_write(self) -> bool {
        self.meets(Self(!Self::READS.0))
    }

    /// What changes nothing (RFC 9110 section 9.2.1).
    const READS: Self = {
        let (mut reads, mut at) = (0, 0);
        while at < METHODS.len() {
            if matches!(METHODS[at].as_bytes(), b"GET" | b"HEAD" | b"OPTIONS") {
                reads |= 1 << at;
            }
            at += 1;
        }
        Self(reads)
    };
}

impl FromStr for Methods {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text == "*" {
            return Ok(Self(u8::MAX));
        }
        text.split('|').try_fold(Self(0), |all, method| {
            if METHODS.contains(&method) { Ok(Self(all.0 | Self::of(method).0)) } else { Err(RuleError::Method) }
        })
    }
}

/// What may follow one segment: a tree of rules. A rule is a number, its place in the list that the tree was made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    /// A bit for each hash of a child's name: most segments of a path have none, and are told by it.
    hashes: u64,
    /// By the hash of their names.
    children: Vec<(u8, Box<str>, Node)>,
    any: Option<Box<Node>>,
    /// The rules that end here, and those that count for all below too.
    ends: Vec<(Methods, usize)>,
    below: Vec<(Methods, usize)>,
}

impl Node {
    pub(super) fn of(rules: &[Rule]) -> Self {
        let mut root = Self::default();
        for (at, rule) in (0..).zip(rules) {
            let mut node = &mut root;
            for segment in &rule.segments {
                node = match segment {
                    None => node.any.get_or_insert_default(),
                    Some(name) => node.child_or_insert(name),
                };
            }
            if rule.is_deep { &mut node.below } else { &mut node.ends }.push((rule.methods, at));
        }
        root
    }

    fn child_or_insert(&mut self, name: &str) -> &mut Self {
        let hash = hash(name.as_bytes());
        self.hashes |= 1 << hash;
        let at = self.children.iter().position(|(_, known, _)| &**known == name).unwrap_or_else(|| {
            let at = self.children.partition_point(|(known, ..)| *known < hash);
            self.children.insert(at, (hash, name.into(), Self::default()));
            at
        });
        &mut self.children[at].2
    }

    fn child(&self, name: &[u8]) -> Option<&Self> {
        if name.is_empty() {
            return None;
        }
        let hash = hash(name);
        if self.hashes >> hash & 1 == 0 {
            return None;
        }
        let start = self.children.partition_point(|(known, ..)| *known < hash);
        let mut alike = self.children[start..].iter().take_while(|(known, ..)| *known == hash);
        let is_named = |known: &str| name == known.as_bytes() || name.eq_ignore_ascii_case(known.as_bytes());
        alike.find(|(_, known, _)| is_named(known)).map(|(_, _, node)| node)
    }

    /// The most exact rule for a path. It never goes deeper than the longest rule.
    pub(super) fn find(&self, method: Methods, path: &[u8]) -> Option<usize> {
        let pick =
            |rules: &[(Methods, usize)]| rules.iter().find(|(methods, _)| methods.meets(method)).map(|(_, at)| *at);
        let Some((name, rest)) = split_name(path) else { return pick(&self.ends).or_else(|| pick(&self.below)) };
        let exact = self.child(name).and_then(|node| node.find(method, rest));
        exact.or_else(|| self.any.as_ref()?.find(method, rest)).or_else(|| pick(&self.below))
    }
}

/// Below 64, whatever the case of the letters; of a name that is not empty.
fn hash(name: &[u8]) -> u8 {
    let mixed = usize::from(name[0] & 0x1f) + usize::from(name[name.len() - 1] & 0x1f) * 3 + name.len() * 5;
    u8::try_from(mixed % 64).expect("below 64")
}

/// The name of the first segment, and what follows the segment. A name ends at its first sign that is in none of ours: so
/// does a format (`keys.json`), a parameter (`keys;x`) and what somebody might take for a query or fragment (`keys%23`).
pub(super) fn split_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = &path[path.iter().position(|byte| *byte != b'/')?..];
    let length = path.iter().position(|byte| !is_of_name(*byte)).unwrap_or(path.len());
    let (name, rest) = path.split_at(length);
    match rest.first() {
        None | Some(b'/') => Some((name, rest)),
        Some(_) => Some((name, &rest[memchr::memchr(b'/', rest).unwrap_or(rest.len())..])),
    }
}

fn is_of_name(byte: u8) -> bool {
    OF_NAME[usize::from(byte)]
}

static OF_NAME: [bool; 256] = {
    let mut of_name = PLAIN;
    // An encoded slash makes no segment, and no name of ours has one.
    of_name[0] = true;
    of_name
};

/// Letters, digits, `-` and `_`.
pub(in crate::proxy) static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let bytes = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut at = 0;
    while at < bytes.len() {
        plain[bytes[at] as usize] = true;
        at += 1;
    }
    plain
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_methods_and_a_pattern() {
        for text in ["* **", "GET *", "GET|HEAD projects/**", "OPTIONS a-b/*/c_d/**", "PUT */*"] {
            assert_eq!(text.parse::<Rule>().expect(text).to_string(), text);
        }
        for (text, error) in [
            ("", RuleError::NotTwo),
            ("GET", RuleError::NotTwo),
            ("projects/**", RuleError::NotTwo),
            ("get projects", RuleError::Method),
            ("GET,HEAD projects", RuleError::Method),
            ("GET| projects", RuleError::Method),
            ("*|GET projects", RuleError::Method),
            ("TRACE projects", RuleError::Method),
            (" projects", RuleError::Method),
            ("GET ", RuleError::Pattern),
            ("GET  projects", RuleError::Pattern),
            ("GET /projects", RuleError::Pattern),
            ("GET projects/", RuleError::Pattern),
            ("GET projects//1", RuleError::Pattern),
            ("GET projects/**/issues", RuleError::Pattern),
            ("GET projects**", RuleError::Pattern),
            ("GET /**", RuleError::Pattern),
            ("GET proj*", RuleError::Pattern),
            ("GET projects/a.b", RuleError::Pattern),
            ("GET projects/%2e", RuleError::Pattern),
            ("GET a\0b", RuleError::Pattern),
            ("GET projects issues", RuleError::Pattern),
        ] {
            assert_eq!(text.parse::<Rule>(), Err(error), "{text:?}");
        }
    }
}
