//! Which calls of GitLab's API are forwarded: nothing that makes credentials, nothing for administrators and machines.
//!
//! What is in no row is forwarded, so that an app may use what GitLab brings next year; but not a write that is called
//! after a token or a key. The rows are `policy/table.rs`. They are compiled into a tree of segments once, so a call costs
//! a step for each of its segments that a row knows, and no list is gone through; and most calls not even that, since none
//! of their names resembles one of a row's.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::proxy::policy::rule::{Methods, Node, Rule, split_name};
use crate::proxy::policy::table::{Class, FAMILIES, Family, NAMES, WORDS};

pub mod rule;
mod table;

/// GitLab's REST API but for the rows of the table; and what `proxy.*` adds to that, or takes away.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Whether calls to `/api/graphql` are forwarded, after a look into their bodies.
    pub graphql: bool,
    /// The refused rows that are forwarded all the same.
    opened: Vec<usize>,
    /// What alone is forwarded, if there are any.
    only: Vec<Rule>,
    only_tree: Node,
}

impl Policy {
    /// The table, with exceptions; narrowed to `only`, unless that is empty.
    pub fn new(graphql: bool, exceptions: &[CredentialEndpoint], only: Vec<Rule>) -> Self {
        let is_opened = |row: &Row| row.class == Class::Credential && exceptions.iter().any(|open| open.is_of(row));
        let opened = (0..).zip(&TABLE.rows).filter(|(_, row)| is_opened(row)).map(|(at, _)| at).collect();
        let only_tree = Node::of(&only);
        Self { graphql, opened, only, only_tree }
    }

    /// Judges a call by its method and by what follows `/api/v4`, where an encoded slash is `\0`. `resembles` is false if no
    /// name in it [`Resemblance::is_in`] the names of the rows.
    ///
    /// # Errors
    /// [`Refusal`], with the row that refuses it.
    pub(super) fn judge(&self, method: &str, path: &[u8], resembles: bool) -> Result<Ground<'_>, Refusal> {
        if path.iter().all(|byte| *byte == b'/') {
            return Err(Refusal::Elsewhere);
        }
        if !resembles && self.only.is_empty() {
            return Ok(Ground::Unlisted);
        }
        let method = Methods::of(method);
        let ground = match TABLE.tree.find(method, path) {
            Some(at) => match &TABLE.rows[at] {
                row if row.class == Class::Forward => Ground::Row(row),
                row if self.opened.contains(&at) => Ground::Exception(row),
                row => return Err(Refusal::Row(row)),
            },
            None if method.is_read() => Ground::Unlisted,
            None => match refused_word(method, path) {
                Some(word) => return Err(Refusal::Word(word)),
                None => Ground::Unlisted,
            },
        };
        if self.only.is_empty() {
            return Ok(ground);
        }
        match self.only_tree.find(method, path) {
            Some(at) => Ok(Ground::Only(&self.only[at])),
            None => Err(Refusal::NotInOnly),
        }
    }
}

/// The word that a write is refused for: its last segment, or the last but one, if that is no name of somebody's choice.
fn refused_word(method: Methods, path: &[u8]) -> Option<&'static str> {
    let mut rest = path;
    for _ in 0..2 {
        let end = rest.iter().rposition(|byte| *byte != b'/')? + 1;
        let start = memchr::memrchr(b'/', &rest[..end]).map_or(0, |slash| slash + 1);
        let (name, _) = split_name(&rest[start..end])?;
        if let Some((word, class)) = WORDS.into_iter().find(|(word, _)| name.eq_ignore_ascii_case(word.as_bytes())) {
            let (rules, tree) = &*NAMED;
            // Workhorse's own paths end in such a word, behind a name of any length.
            let is_name = |at: usize| !rules[at].is_deep || class != Class::Machine;
            if !tree.find(method, &rest[..end]).is_some_and(is_name) {
                return Some(word);
            }
        }
        rest = &rest[..start];
    }
    None
}

/// What tells most names from those of the rows: by their first letter, a bit for each length and last letter.
#[derive(Debug)]
pub(super) struct Resemblance([u32; 256]);

impl Resemblance {
    /// The names that a call of this method may have in common with a row: the last name of each row about such methods, which
    /// every path that matches the row has, and for a write the words. Where a row's last name is `projects`, the name before
    /// it is taken instead: nearly all paths have `projects`, so it would tell nothing.
    pub(super) fn of(method: &str) -> &'static Self {
        static READ: LazyLock<Resemblance> = LazyLock::new(|| Resemblance::new(Methods::is_read));
        static WRITE: LazyLock<Resemblance> = LazyLock::new(|| Resemblance::new(Methods::is_write));
        if Methods::of(method).is_read() { &READ } else { &WRITE }
    }

    fn new(is_meant: fn(Methods) -> bool) -> Self {
        let rules = TABLE.rows.iter().map(Row::rule).filter(|rule| is_meant(rule.methods));
        let names = rules.map(|rule| {
            let mut names = rule.segments.into_iter().flatten();
            names.rfind(|name| **name != *"projects").expect("every row has a name of its own")
        });
        let words = WORDS.into_iter().map(|(word, _)| word.into()).filter(|_| is_meant(Methods::of("POST")));
        let mut bits = [0; 256];
        for name in names.chain(words) {
            let (first, bit) = Self::place(name.as_bytes()).expect("no name is empty");
            bits[first] |= bit;
        }
        Self(bits)
    }

    /// Whether a name is like one of them. Few other names are.
    pub(super) fn is_in(&self, name: &[u8]) -> bool {
        Self::place(name).is_some_and(|(first, bit)| self.0[first] & bit != 0)
    }

    /// Whether any name in a path is like one of them.
    pub(super) fn is_in_path(&self, mut path: &[u8]) -> bool {
        while let Some((name, rest)) = split_name(path) {
            if self.is_in(name) {
                return true;
            }
            path = rest;
        }
        false
    }

    /// The index and the bit that stand for a name. Upper and lower case have the same.
    fn place(name: &[u8]) -> Option<(usize, u32)> {
        let (first, last) = (name.first()?, name.last()?);
        Some((usize::from(first | 0x20), 1 << ((usize::from(last & 0x1f) + name.len() * 3) % 32)))
    }
}

/// Why a call is forwarded.
#[derive(Debug, Clone, Copy)]
pub enum Ground<'a> {
    /// No row is about it.
    Unlisted,
    /// A row says so.
    Row(&'static Row),
    /// `proxy.allow_credential_endpoints` opens the row that refuses it.
    Exception(&'static Row),
    /// A rule of `proxy.only`, and no row refuses it.
    Only(&'a Rule),
    /// `proxy.graphql`, if its body passes.
    Graphql,
}

impl fmt::Display for Ground<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlisted => write!(f, "no row refuses it"),
            Self::Row(row) => write!(f, "row `{}`: {}", row.text, row.reason),
            Self::Exception(row) => write!(f, "proxy.allow_credential_endpoints opens row `{}`", row.text),
            Self::Only(rule) => write!(f, "proxy.only has `{rule}`"),
            Self::Graphql => write!(f, "proxy.graphql, if its body passes"),
        }
    }
}

/// Why the policy refuses a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A row of the table.
    #[error("row `{}`: {}", .0.text, .0.reason)]
    Row(&'static Row),
    /// A write that is called after a credential.
    #[error("a write whose last segments say `{0}` is refused, whatever it does")]
    Word(&'static str),
    /// Neither the REST API nor GraphQL where that is open.
    #[error("only /api/v4/… is forwarded, and /api/graphql with proxy.graphql")]
    Elsewhere,
    /// `proxy.only` is set.
    #[error("proxy.only has no rule for it")]
    NotInOnly,
}

impl Refusal {
    /// Whether it is about credentials.
    pub fn is_credential(self) -> bool {
        match self {
            Self::Row(row) => row.class == Class::Credential,
            Self::Word(word) => WORDS.contains(&(word, Class::Credential)),
            Self::Elsewhere | Self::NotInOnly => false,
        }
    }
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    text: &'static str,
    class: Class,
    reason: &'static str,
}

impl Row {
    fn rule(&self) -> Rule {
        self.text.parse().expect("a unit test parses them all")
    }

    /// Its pattern, without what says that all below counts too.
    fn endpoint(&self) -> &'static str {
        let (_, pattern) = self.text.split_once(' ').expect("a row of the table is methods and a pattern");
        pattern.strip_suffix("/**").unwrap_or(pattern)
    }
}

/// Rows, and the tree that finds them.
struct Table {
    rows: Vec<Row>,
    tree: Node,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let rows_of = |family: &'static Family| {
        family.rows.iter().map(|text| Row { text, class: family.class, reason: family.reason })
    };
    let rows: Vec<_> = FAMILIES.iter().flat_map(rows_of).collect();
    let tree = Node::of(&rows.iter().map(Row::rule).collect::<Vec<_>>());
    Table { rows, tree }
});

/// The places of [`NAMES`], and the tree that finds them.
static NAMED: LazyLock<(Vec<Rule>, Node)> = LazyLock::new(|| {
    let rules: Vec<Rule> = NAMES.iter().map(|row| row.parse().expect("a unit test parses them all")).collect();
    let tree = Node::of(&rules);
    (rules, tree)
});

/// A pattern of the table's rows about credentials, such as `projects/*/triggers`: the only thing that can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CredentialEndpoint(&'static str);

impl CredentialEndpoint {
    fn is_of(self, row: &Row) -> bool {
        row.endpoint() == self.0
    }

    fn all() -> impl Iterator<Item = &'static str> {
        TABLE.rows.iter().filter(|row| row.class == Class::Credential).map(Row::endpoint)
    }
}

impl FromStr for CredentialEndpoint {
    type Err = UnknownEndpoint;

    fn from_str(text: &str) -> Result<Self, UnknownEndpoint> {
        let text = text.strip_suffix("/**").unwrap_or(text);
        Self::all().find(|endpoint| *endpoint == text).map(Self).ok_or(UnknownEndpoint)
    }
}

/// Not in the table: what is not refused needs no exception, and a pattern of one's own might open more than was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", CredentialEndpoint::all().collect::<Vec<_>>().join(", "))]
pub struct UnknownEndpoint;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::METHODS;

    /// GitLab's own list of routes, with the class of each: method, path, class.
    const ROUTES: &str = include_str!("../../tests/gitlab-routes.tsv");

    fn routes() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
        ROUTES.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let mut columns = line.split('\t');
            let mut next = || columns.next().expect("three columns");
            (next(), next(), next())
        })
    }

    /// The paths that a route stands for: with and without each optional piece, and `name` as each parameter that
    /// `is_meant`.
    fn paths(route: &str, name: &str, is_meant: impl Fn(usize, &str) -> bool + Copy) -> Vec<String> {
        if let Some(start) = route.find('(').filter(|start| !route[..*start].ends_with('\\')) {
            let end = start + route[start..].find(')').expect("a closing one");
            let (before, optional, after) = (&route[..start], &route[start + 1..end], &route[end + 1..]);
            let both = [format!("{before}{after}"), format!("{before}{optional}{after}")];
            return both.iter().flat_map(|route| paths(route, name, is_meant)).collect();
        }
        let segment = |(at, segment): (usize, &str)| match segment.as_bytes().first() {
            Some(b':' | b'*') if is_meant(at, segment) => name.to_owned(),
            Some(b':' | b'*') => "1".to_owned(),
            _ => segment.to_owned(),
        };
        let segments: Vec<_> =
            route.split('/').filter(|segment| !segment.is_empty()).enumerate().map(segment).collect();
        vec![format!("/{}", segments.join("/"))]
    }

    fn judged<'a>(policy: &'a Policy, method: &str, path: &str) -> Result<Ground<'a>, Refusal> {
        policy.judge(method, path.as_bytes(), Resemblance::of(method).is_in_path(path.as_bytes()))
    }

    /// In the words of the list.
    fn class(method: &str, path: &str) -> &'static str {
        match judged(&Policy::default(), method, path) {
            Ok(_) => "forward",
            Err(refusal) if refusal.is_credential() => "credential",
            Err(Refusal::Row(row)) if row.class == Class::Admin => "admin",
            Err(_) => "machine",
        }
    }

    /// PQ-02: with a number, a path and a word of a row as each parameter, in capital letters and with a format.
    #[test]
    fn every_route_of_gitlab_has_its_class() {
        let mut seen = 0;
        for (method, route, expected) in routes() {
            for path in
                ["7", "group\0project", "sub.project"].into_iter().flat_map(|name| paths(route, name, |_, _| true))
            {
                assert_eq!(class(method, &path), expected, "{method} {path}");
                if expected != "forward" {
                    for path in [path.to_uppercase(), format!("{path}.json"), format!("/{path}/"), format!("{path};x")]
                    {
                        assert_eq!(class(method, &path), expected, "{method} {path}");
                    }
                }
                if method == "GET" {
                    assert_eq!(class("HEAD", &path), expected, "HEAD {path}");
                }
            }
            seen += 1;
        }
        assert_eq!(seen, 2_134);
    }

    /// PQ-02: the siblings that the next release brings, each beside one that is none.
    #[test]
    fn a_write_that_is_called_after_a_credential_is_refused() {
        for (method, path, twin) in [
            ("POST", "/projects/1/robots/7/tokens", "/projects/1/robots/7/tokenizers"),
            ("POST", "/projects/1/robots/7/token/renew", "/projects/1/robots/token/7/renew"),
            ("PUT", "/groups/1/robots/7/ROTATE", "/groups/1/robots/7/rotation"),
            ("DELETE", "/robots/keys/7", "/robots/keyboards/7"),
            ("POST", "/robots/access_token", "/robots/access_tokens_count"),
            ("POST", "/ai/robots/direct_access", "/ai/robots/access"),
            ("PATCH", "/projects/1/robots/secrets.json", "/projects/1/robots/secrets\0x"),
            ("POST", "/projects/1/robots/credentials/", "/projects/1/robots/credentials/7/8"),
            ("POST", "/tokens", "/tokenise"),
            // Numbers, and GitLab's own words, are no names.
            ("POST", "/projects/1/environments/tokens", "/projects/1/environments/7"),
            ("POST", "/projects/1/repository/files/keys/rotate", "/projects/1/repository/files/keys"),
            ("POST", "/groups/keys/tokens", "/groups/keys/archive"),
            ("POST", "/projects/1/packages/tokens", "/projects/1/packages/7"),
        ] {
            assert_eq!(class(method, path), "credential", "{method} {path}");
            assert_eq!(class(method, twin), "forward", "{method} {twin}");
            assert_eq!(class("GET", path), "forward", "GET {path}");
        }
        assert_eq!(class("PUT", "/projects/1/robots/7/authorize"), "machine");
        assert_eq!(class("PUT", "/projects/1/packages/maven/a/b/c/authorize"), "machine");
        assert_eq!(class("PUT", "/projects/1/packages/maven/a/b/c/keys"), "forward");
    }

    /// A file, branch, label, package or group may be called anything.
    #[test]
    fn a_name_may_be_such_a_word() {
        const CHOSEN: &[&str] = &[
            ":branch",
            ":codename",
            ":domain",
            ":email",
            ":feature_flag_name",
            ":file_name",
            ":file_path",
            ":filename",
            ":key",
            ":name",
            ":package_channel",
            ":package_name",
            ":package_username",
            ":package_version",
            ":resource_name",
            ":sha",
            ":submodule",
            ":tag",
            ":tag_name",
            "*package_name",
            "*package_version",
            "*path",
            "*module_version",
        ];
        let writes = routes().filter(|(method, _, class)| !matches!(*method, "GET" | "HEAD") && *class == "forward");
        let mut seen = 0;
        for (method, route, _) in writes.filter(|(_, route, _)| !route.starts_with("/orbit/")) {
            let top = route.split('/').nth(1).unwrap_or_default();
            let slug = if route.contains("/wikis/") { ":slug" } else { ":name" };
            let is_group = matches!(top, "groups" | "projects" | "namespaces");
            let is_chosen = |at, segment: &str| (is_group && at == 1) || segment == slug || CHOSEN.contains(&segment);
            for (word, _) in WORDS {
                for at in 0..route.matches('/').count() {
                    for path in paths(route, word, |place, segment| place == at && is_chosen(place, segment)) {
                        // Behind a name of any length, and among packages, `authorize` is Workhorse's.
                        if word != "authorize" || !path.contains("/packages/") && !path.contains("/vscode/") {
                            assert_eq!(class(method, &path), "forward", "{method} {path}");
                            seen += usize::from(path.contains(word));
                        }
                    }
                }
            }
        }
        assert!(seen > 4_000, "{seen}");
    }

    /// The tree against the rows themselves, gone through one by one.
    #[test]
    fn the_tree_finds_the_most_exact_row() {
        let rules: Vec<Rule> = TABLE.rows.iter().map(|row| row.text.parse().expect("a rule")).collect();
        let matches = |rule: &Rule, method: &str, names: &[&str]| {
            let (known, extra) = (rule.segments.len(), names.len().checked_sub(rule.segments.len()));
            let is_long = extra.is_some_and(|extra| extra == 0 || rule.is_deep);
            let is_like =
                |(wanted, name): (&Option<Box<str>>, &&str)| wanted.as_deref().is_none_or(|wanted| wanted == *name);
            rule.methods.meets(Methods::of(method)) && is_long && rule.segments.iter().zip(&names[..known]).all(is_like)
        };
        let rank = |rule: &Rule| {
            let end = if rule.is_deep { 3 } else { 2 };
            let segments = rule.segments.iter().map(|segment| i32::from(segment.is_none()));
            segments.chain([end]).collect::<Vec<_>>()
        };
        let mut seen = 0;
        for rule in &rules {
            for method in METHODS {
                for extra in ["", "/7", "/keys", "/7/tokens/8", "/managers", "/follow"] {
                    let path = rule
                        .segments
                        .iter()
                        .map(|name| name.as_deref().unwrap_or("storage"))
                        .collect::<Vec<_>>()
                        .join("/");
                    let path = format!("{path}{extra}");
                    let names: Vec<_> = path.split('/').collect();
                    let found: Vec<_> = (0..rules.len()).filter(|at| matches(&rules[*at], method, &names)).collect();
                    let best = found.into_iter().min_by_key(|at| rank(&rules[*at]));
                    assert_eq!(TABLE.tree.find(Methods::of(method), path.as_bytes()), best, "{method} {path}");
                    seen += usize::from(best.is_some());
                }
            }
        }
        assert!(seen > 3_000, "{seen}");
    }

    /// No row is there in vain, hides another or leaves out HEAD.
    #[test]
    fn the_table_is_well_formed() {
        let rows: Vec<_> = TABLE.rows.iter().map(|row| row.text).collect();
        for rows in [rows.as_slice(), NAMES] {
            for (at, row) in rows.iter().enumerate() {
                assert!(row.starts_with("* ") || row.contains("GET") == row.contains("HEAD"), "{row}");
                let is_again = |other: &&str| other.split_once(' ') == row.split_once(' ');
                assert!(!rows[..at].iter().any(is_again), "{row} is there twice");
                assert_eq!(row.parse::<Rule>().expect(row).to_string(), *row);
            }
        }
        for row in &TABLE.rows {
            let rule: Rule = row.text.parse().expect(row.text);
            let method =
                METHODS.into_iter().find(|method| rule.methods.meets(Methods::of(method))).expect("one at least");
            let path = rule.segments.iter().map(|name| name.as_deref().unwrap_or("7")).collect::<Vec<_>>().join("/");
            let found = TABLE.tree.find(Methods::of(method), path.as_bytes()).map(|at| TABLE.rows[at].text);
            assert_eq!(found, Some(row.text), "{path}");
        }
    }

    /// PQ-02.
    #[test]
    fn an_exception_opens_what_it_names_and_nothing_else() {
        let open: CredentialEndpoint = "projects/*/triggers".parse().expect("it is known");
        assert_eq!("projects/*/triggers/**".parse(), Ok(open));
        let policy = Policy::new(false, &[open], Vec::new());
        for (method, path) in [("POST", "/projects/1/triggers"), ("PUT", "/projects/1/triggers/token")] {
            assert!(matches!(judged(&policy, method, path), Ok(Ground::Exception(_))), "{method} {path}");
        }
        let refused = |policy: &Policy| {
            let is_refused = |(method, route): (&str, &str)| {
                paths(route, "7", |_, _| true).iter().any(|path| judged(policy, method, path).is_err())
            };
            routes().map(|(method, route, _)| (method, route)).filter(|route| is_refused(*route)).collect::<Vec<_>>()
        };
        let opened: Vec<_> = refused(&Policy::default());
        let left = refused(&policy);
        let opened: Vec<_> = opened.into_iter().filter(|route| !left.contains(route)).collect();
        assert_eq!(opened.len(), 5);
        assert!(opened.iter().all(|(_, route)| route.starts_with("/projects/:id/triggers")), "{opened:?}");
        for text in
            ["/**", "**", "*", "", "projects", "projects/*/triggers/", "user/keys/*", "admin", "USER/KEYS", "jobs"]
        {
            assert_eq!(text.parse::<CredentialEndpoint>(), Err(UnknownEndpoint), "{text}");
        }
        // What earlier versions called them.
        for text in "applications deploy_keys groups/*/manage projects/*/cluster_agents/*/tokens \
                     projects/*/feature_flags_client/reset_token projects/*/pipeline_schedules/* \
                     projects/*/pipelines/*/variables runners service_accounts user/emails users/*/impersonation_tokens"
            .split_whitespace()
        {
            assert!(text.parse::<CredentialEndpoint>().is_ok(), "{text}");
        }
    }

    #[test]
    fn only_narrows_and_opens_nothing() {
        let rules =
            ["GET|HEAD projects/**", "PUT projects/*/repository/files/*", "* user", "* user/keys/**", "* ADMIN/**"];
        let policy = Policy::new(false, &[], rules.map(|rule| rule.parse().expect(rule)).to_vec());
        for (method, path, expected) in [
            ("GET", "/projects", true),
            ("HEAD", "/projects/1/issues/7", true),
            ("GET", "/PROJECTS.json", true),
            ("POST", "/projects", false),
            ("OPTIONS", "/projects", false),
            ("PUT", "/projects/1/repository/files/keys", true),
            ("PUT", "/projects/1/repository/files", false),
            ("PUT", "/projects/1/repository/files/a/raw", false),
            ("PATCH", "/projects/1/repository/files/a", false),
            ("DELETE", "/user", true),
            ("GET", "/users", false),
            ("GET", "/user/status", false),
            ("GET", "/groups", false),
        ] {
            let judged = judged(&policy, method, path);
            assert_eq!(matches!(judged, Ok(Ground::Only(_))), expected, "{method} {path}: {judged:?}");
            assert!(expected || matches!(judged, Err(Refusal::NotInOnly)), "{method} {path}: {judged:?}");
        }
        for (method, path) in [("GET", "/user/keys"), ("GET", "/admin"), ("GET", "/projects/1/triggers")] {
            assert!(matches!(judged(&policy, method, path), Err(Refusal::Row(_))), "{method} {path}");
        }
        let all = Policy::new(false, &[], vec!["* **".parse().expect("all")]);
        assert!(judged(&all, "PUT", "/anything/at/all").is_ok() && judged(&all, "GET", "/admin").is_err());
    }

    /// People read the table there, so it says what the code does.
    #[test]
    fn the_document_holds_the_table() {
        let line = |family: &Family| {
            let rows: Vec<_> = family.rows.iter().map(|row| format!("`{}`", row.replace('|', "\\|"))).collect();
            let code = if family.class == Class::Credential { "credential_endpoint" } else { "not_forwarded" };
            format!("| {} | {} | `{code}` |\n", rows.join("<br>"), family.reason)
        };
        let refused = FAMILIES.iter().filter(|family| family.class != Class::Forward);
        let table = format!("| refused | because | answer |\n|---|---|---|\n{}", refused.map(line).collect::<String>());
        let document = include_str!("../../docs/policy.md");
        let (_, rest) = document.split_once("<!-- table -->\n").expect("where the table begins");
        let (told, _) = rest.split_once("<!-- end of table -->").expect("where it ends");
        assert!(told == table, "docs/policy.md must hold this table:\n{table}");
        let forward = FAMILIES.iter().filter(|family| family.class == Class::Forward);
        for text in forward.flat_map(|family| family.rows).chain(WORDS.iter().map(|(word, _)| word)) {
            assert!(document.contains(&format!("`{text}`")), "{text} is not in docs/policy.md");
        }
    }
}
