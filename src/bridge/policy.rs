//! Which calls go to the old backend, which of them need a login, and which of its holes stay shut.
//!
//! A hole is judged in whatever spelling the backend would read: a path decoded twice, in any case. What passes without a login
//! is judged in its one plain spelling.

use std::fmt;
use std::str::FromStr;

use url::form_urlencoded;

use crate::error::{ApiError, Code};
use crate::proxy::target::{self, TargetError};

/// What goes to the old backend.
#[derive(Debug, Clone)]
pub struct BridgePolicy {
    /// What stands before a group of paths: the base path and a slash.
    prefix: String,
    /// What an operator has opened.
    open: Vec<Hole>,
}

/// A weakness of the old backend's, which stays shut unless an operator opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// `commitFile` with `filePath`: the backend reads any of its own files and commits it.
    CommitFile,
    /// It deletes a folder whose name is in the call, and sends to any URL that is.
    ExportProject,
    /// The same by its other name.
    PublishArc,
    /// It writes a file whose name is in the call; without a login.
    SaveTemplate,
    /// It asks every DataHUB for everything; without a login.
    CreateArcJson,
    /// A parameter with `&`, `;` or `#` in it: the backend writes it as it is into the URL of a call to the DataHUB, where it
    /// becomes two.
    Parameters,
}

impl BridgePolicy {
    /// The policy for paths below `base_path`, with these holes open.
    pub fn new(base_path: &str, open: Vec<Hole>) -> Self {
        Self { prefix: format!("{base_path}/"), open }
    }

    /// The route of a target for the log, if it is one of the backend's paths.
    pub fn route(&self, target: &str) -> Option<&'static str> {
        let below = self.below(target)?;
        let group = below.split(['/', '?']).next().unwrap_or(below);
        GROUPS.iter().find(|(name, _)| *name == group).map(|(_, route)| *route)
    }

    /// Whether a call needs no login: what the original answers to everybody and is harmless, and what an operator has opened.
    pub fn is_public(&self, method: &str, target: &str) -> bool {
        let path = self.below(target).and_then(|below| below.split('?').next());
        match path {
            Some("tnt/saveTemplate") => self.open.contains(&Hole::SaveTemplate),
            Some("search/createArcJson") => self.open.contains(&Hole::CreateArcJson),
            Some(path) => PUBLIC.contains(&path) && matches!(method, "GET" | "HEAD"),
            None => false,
        }
    }

    /// Whether a target goes up.
    ///
    /// # Errors
    /// [`BridgeTargetError`]; nothing has been sent then.
    pub fn check(&self, target: &str) -> Result<(), BridgeTargetError> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let words = target::words(path)?;
        let names = |name: &str| words.iter().any(|word| word.eq_ignore_ascii_case(name.as_bytes()));
        let mut parameters = query.split('&').flat_map(|part| form_urlencoded::parse(part.as_bytes()));
        let met = if names("exportProject") {
            Some(Hole::ExportProject)
        } else if names("publishArc") {
            Some(Hole::PublishArc)
        } else if names("commitFile") && parameters.any(|(name, _)| name.eq_ignore_ascii_case("filePath")) {
            Some(Hole::CommitFile)
        } else {
            None
        };
        // An encoded `=` alone makes no second parameter. One decoding, since the backend's library for calls encodes what is
        // no escape, and sends escapes as they are.
        let is_split =
            |part: &str| part.contains(';') || ["%26", "%3b", "%3B", "%23"].iter().any(|mark| part.contains(mark));
        let nested = is_split(query).then_some(Hole::Parameters);
        match met.into_iter().chain(nested).find(|hole| !self.open.contains(hole)) {
            Some(hole) => Err(BridgeTargetError::Shut(hole)),
            None => Ok(()),
        }
    }

    /// What follows the base path.
    fn below<'a>(&self, target: &'a str) -> Option<&'a str> {
        target.strip_prefix(&self.prefix)
    }
}

impl Hole {
    fn name(self) -> &'static str {
        match self {
            Self::CommitFile => "commitFile",
            Self::ExportProject => "exportProject",
            Self::PublishArc => "publishArc",
            Self::SaveTemplate => "saveTemplate",
            Self::CreateArcJson => "createArcJson",
            Self::Parameters => "parameters",
        }
    }
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Hole {
    type Err = HoleError;

    fn from_str(text: &str) -> Result<Self, HoleError> {
        HOLES.into_iter().find(|hole| hole.name() == text).ok_or(HoleError)
    }
}

/// A text that names no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be of commitFile, exportProject, publishArc, saveTemplate, createArcJson and parameters")]
pub struct HoleError;

/// Why a target does not go to the old backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BridgeTargetError {
    /// Its path is not to be forwarded anywhere.
    #[error(transparent)]
    Malformed(#[from] TargetError),
    /// It would meet a weakness of the backend's.
    #[error("shut unless bridge.allow names {0}")]
    Shut(Hole),
}

impl From<BridgeTargetError> for ApiError {
    fn from(error: BridgeTargetError) -> Self {
        let code = match error {
            BridgeTargetError::Malformed(error) => return error.into(),
            BridgeTargetError::Shut(Hole::Parameters) => Code::BadRequestTarget,
            BridgeTargetError::Shut(_) => Code::NotForwarded,
        };
        Self::because(code, error)
    }
}

/// The backend's groups of paths, and the route of each in the log.
const GROUPS: [(&str, &str); 6] = [
    ("projects", "/projects/{path}"),
    ("fnf", "/fnf/{path}"),
    ("tnt", "/tnt/{path}"),
    ("user", "/user/{path}"),
    ("validate", "/validate/{path}"),
    ("search", "/search/{path}"),
];

/// What the original answers without a login.
const PUBLIC: [&str; 5] = [
    "projects/public_arcs",
    "tnt/getTemplates",
    "tnt/getTerms",
    "tnt/getTermSuggestions",
    "tnt/getTermSuggestionsByParentTerm",
];

const HOLES: [Hole; 6] = [
    Hole::CommitFile,
    Hole::ExportProject,
    Hole::PublishArc,
    Hole::SaveTemplate,
    Hole::CreateArcJson,
    Hole::Parameters,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(open: &[Hole]) -> BridgePolicy {
        BridgePolicy::new("/arcmanager/api/v1", open.to_vec())
    }

    fn check(open: &[Hole], below: &str) -> Result<(), Code> {
        policy(open).check(&format!("/arcmanager/api/v1/{below}")).map_err(|error| ApiError::from(error).code())
    }

    #[test]
    fn six_groups_go_to_the_backend_and_nothing_that_only_begins_so() {
        for (below, expected) in [
            ("projects/arc_list?owned=true", Some("/projects/{path}")),
            ("fnf/uploadFile", Some("/fnf/{path}")),
            ("tnt", Some("/tnt/{path}")),
            ("user?x", Some("/user/{path}")),
            ("validate/validateArc?id=7", Some("/validate/{path}")),
            ("search/getArcJson", Some("/search/{path}")),
            ("projectss/x", None),
            ("Projects/x", None),
            ("%70rojects/x", None),
            ("/projects/x", None),
            ("auth/session", None),
            ("", None),
        ] {
            assert_eq!(policy(&[]).route(&format!("/arcmanager/api/v1/{below}")), expected, "{below}");
        }
        assert_eq!(policy(&[]).route("/projects/x"), None);
    }

    #[test]
    fn what_the_app_sends_goes_up() {
        for below in [
            "projects/arc_path?path=a b/c+d&id=7&page=1&branch=main ",
            "projects/arc_file?path=assays/100%25.txt&id=7&branch=a=b",
            "projects/commitFile?id=7&repoPath=a/filePath&branch=main",
            "projects/arc_file?path=commitFile&filePath=x",
            "tnt/getTerms?input=%C3%BC%20a%3Db",
            "projects/getMetrics?pwd=publishArc",
        ] {
            assert_eq!(check(&[], below), Ok(()), "{below}");
        }
    }

    /// PQ-02, and F1, F2, F3 of the backend's defects: in whatever spelling, and each opened by its own name alone.
    #[test]
    fn a_hole_is_shut_in_every_spelling_until_it_is_opened_by_name() {
        for (hole, spellings) in [
            (
                Hole::CommitFile,
                &[
                    "projects/commitFile?filePath=/etc/passwd",
                    "projects/commitFile?id=7&%66ilePath=x",
                    "projects/commit%46ile?file%50ath",
                    "projects/commit%2546ile?filepath=x",
                    "projects%2FcommitFile?filePath=x",
                    "projects/commitFile/?filePath=x",
                ][..],
            ),
            (Hole::ExportProject, &["projects/exportProject", "projects/EXPORTPROJECT"]),
            (
                Hole::PublishArc,
                &[
                    "projects/publishArc",
                    "projects/publish%41rc",
                    "projects/publish%2541rc?x",
                    "projects//publishArc/",
                    "projects%2fpublishArc",
                    "projects/publishArc%3Fx",
                    "projects/publishArc;x",
                    "projects/publishArc%23",
                    "projects/x%5CpublishArc",
                ],
            ),
        ] {
            for below in spellings {
                assert_eq!(check(&[], below), Err(Code::NotForwarded), "{below}");
                assert_eq!(check(&[hole], below), Ok(()), "{below}");
                let others: Vec<_> = HOLES.into_iter().filter(|other| *other != hole).collect();
                assert_eq!(check(&others, below), Err(Code::NotForwarded), "{below}");
            }
        }
    }

    /// F7.
    #[test]
    fn a_parameter_that_becomes_two_is_refused() {
        for below in [
            "projects/arc_tree?id=7&branch=main%26private_token%3Dx",
            "projects/arc_tree?id=7&branch=main;private_token=x",
            "projects/arc_tree?id=7&branch=main%3bprivate_token=x",
            "projects/arc_tree?id=7&branch=main%3Bprivate_token=x",
            "projects/arc_tree?path=x%23&id=7",
        ] {
            assert_eq!(check(&[], below), Err(Code::BadRequestTarget), "{below}");
            assert_eq!(check(&[Hole::Parameters], below), Ok(()), "{below}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused_whatever_is_open() {
        for below in [
            "projects/../auth/session",
            "projects/%2e%2e/auth",
            "projects/..%2fauth",
            "projects/%252e%252e/auth",
            "projects/x%5c..%5cy",
            "projects/publishArc%0a",
            "projects/x%00",
        ] {
            assert_eq!(check(&HOLES, below), Err(Code::BadRequestTarget), "{below}");
        }
    }

    #[test]
    fn what_needs_no_login_is_known_by_its_plain_spelling() {
        let is_public =
            |open: &[Hole], method, below: &str| policy(open).is_public(method, &format!("/arcmanager/api/v1/{below}"));
        for below in PUBLIC {
            assert!(is_public(&[], "GET", below) && is_public(&[], "HEAD", &format!("{below}?target=a")), "{below}");
            assert!(!is_public(&[], "POST", below) && !is_public(&HOLES, "GET", &format!("{below}/")), "{below}");
        }
        for (below, hole) in [("tnt/saveTemplate", Hole::SaveTemplate), ("search/createArcJson", Hole::CreateArcJson)] {
            assert!(!is_public(&[], "PUT", below) && is_public(&[hole], "PUT", below), "{below}");
            assert_eq!(check(&[], below), Ok(()), "with a login it goes up");
        }
        for below in ["projects/arc_list", "projects/public_arc%73", "tnt/getSheets", "tnt/gettemplates"] {
            assert!(!is_public(&HOLES, "GET", below), "{below}");
        }
    }

    #[test]
    fn holes_have_names_and_nothing_else_has() {
        for hole in HOLES {
            assert_eq!(hole.to_string().parse(), Ok(hole));
            assert!(HoleError.to_string().contains(hole.name()));
        }
        for text in ["", "commitfile", "*", "all"] {
            assert_eq!(text.parse::<Hole>(), Err(HoleError), "{text}");
        }
    }
}
