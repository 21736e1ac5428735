//! A Git repository as far as the API shows it: branches, tags, commits, and every commit's whole tree.
//!
//! Ids are the first 40 digits of a SHA-256, not Git's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::hex;

#[derive(Default)]
pub struct Repository {
    commits: Vec<Commit>,
    branches: BTreeMap<String, usize>,
    tags: BTreeMap<String, usize>,
}

pub struct Commit {
    pub id: String,
    pub parent: Option<usize>,
    pub author: Author,
    pub message: String,
    pub at: SystemTime,
    pub tree: Tree,
}

pub type Tree = BTreeMap<String, File>;

#[derive(Clone)]
pub struct File {
    pub content: Arc<[u8]>,
    /// The commit that last changed it.
    pub last_commit: String,
}

#[derive(Clone)]
pub struct Author {
    pub name: String,
    pub email: String,
}

/// One step of a commit.
pub enum Action {
    Create {
        path: String,
        content: Vec<u8>,
    },
    Update {
        path: String,
        content: Vec<u8>,
    },
    /// `content` changes it on the way.
    Move {
        from: String,
        path: String,
        content: Option<Vec<u8>>,
    },
    Delete {
        path: String,
    },
}

/// Why GitLab refuses a commit.
#[derive(Debug, PartialEq, Eq)]
pub enum CommitError {
    NoSuchBranch,
    FileExists,
    NoSuchFile,
    NoPath,
}

/// One line of a tree's listing.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeEntry {
    pub is_file: bool,
    pub path: String,
}

impl Repository {
    /// All actions or none. The first commit of an empty repository makes its branch.
    pub fn commit(
        &mut self,
        branch: &str,
        author: Author,
        message: &str,
        at: SystemTime,
        actions: Vec<Action>,
    ) -> Result<&Commit, CommitError> {
        let parent = self.branches.get(branch).copied();
        if parent.is_none() && !self.commits.is_empty() {
            return Err(CommitError::NoSuchBranch);
        }
        let mut tree = parent.map(|index| self.commits[index].tree.clone()).unwrap_or_default();
        let before = parent.map_or("", |index| self.commits[index].id.as_str());
        let id = short_digest(format!("{before}\n{message}\n{}", self.commits.len()));
        for action in actions {
            action.apply(&mut tree, &id)?;
        }
        let index = self.commits.len();
        self.branches.insert(branch.to_owned(), index);
        self.commits.push(Commit { id, parent, author, message: message.to_owned(), at, tree });
        Ok(&self.commits[index])
    }

    /// Whether the new branch begins at an existing commit.
    pub fn create_branch(&mut self, name: &str, from: &str) -> bool {
        let index = self.index_of(from);
        self.branches.extend(index.map(|index| (name.to_owned(), index)));
        index.is_some()
    }

    pub fn create_tag(&mut self, name: &str, from: &str) {
        self.tags.extend(self.index_of(from).map(|index| (name.to_owned(), index)));
    }

    /// What a branch, a tag, `HEAD` or a commit id of at least 8 digits stands for.
    pub fn resolve(&self, reference: &str) -> Option<&Commit> {
        self.index_of(reference).map(|index| &self.commits[index])
    }

    pub fn branches(&self) -> impl Iterator<Item = (&String, &Commit)> {
        self.branches.iter().map(|(name, index)| (name, &self.commits[*index]))
    }

    /// From this commit to the first one.
    pub fn history(&self, reference: &str) -> Vec<&Commit> {
        std::iter::successors(self.resolve(reference), |commit| commit.parent.map(|index| &self.commits[index]))
            .collect()
    }

    pub fn parent_id(&self, commit: &Commit) -> Option<&str> {
        commit.parent.map(|index| self.commits[index].id.as_str())
    }

    fn index_of(&self, reference: &str) -> Option<usize> {
        let name = if reference == "HEAD" { DEFAULT_BRANCH } else { reference };
        let by_id = || {
            let length = reference.len();
            self.commits.iter().position(|commit| length >= 8 && commit.id.starts_with(reference))
        };
        self.branches.get(name).or_else(|| self.tags.get(name)).copied().or_else(by_id)
    }
}

impl Action {
    fn apply(self, tree: &mut Tree, commit: &str) -> Result<(), CommitError> {
        let file = |content: Vec<u8>| File { content: content.into(), last_commit: commit.to_owned() };
        match self {
            Self::Create { path, .. } | Self::Move { path, .. } if path.is_empty() => {
                return Err(CommitError::NoPath);
            }
            Self::Create { path, .. } | Self::Move { path, .. } if tree.contains_key(&path) => {
                return Err(CommitError::FileExists);
            }
            Self::Update { path, .. } if !tree.contains_key(&path) => {
                return Err(CommitError::NoSuchFile);
            }
            Self::Create { path, content } | Self::Update { path, content } => {
                tree.insert(path, file(content));
            }
            Self::Move { from, path, content } => {
                let old = tree.remove(&from).ok_or(CommitError::NoSuchFile)?;
                let content = content.map_or(old.content, Arc::from);
                tree.insert(path, File { content, last_commit: commit.to_owned() });
            }
            Self::Delete { path } => {
                tree.remove(&path).ok_or(CommitError::NoSuchFile)?;
            }
        }
        Ok(())
    }
}

impl File {
    pub fn blob_id(&self) -> String {
        short_digest(&self.content)
    }
}

impl CommitError {
    pub fn message(&self) -> &'static str {
        match self {
            Self::NoSuchBranch => "You can only create or edit files when you are on a branch",
            Self::FileExists => "A file with this name already exists",
            Self::NoSuchFile => "A file with this name doesn't exist",
            Self::NoPath => "You must provide a file path",
        }
    }
}

/// What lies in a directory, folders first; `None` if there is no such directory. The root always is one.
pub fn list(tree: &Tree, directory: &str, recursive: bool) -> Option<Vec<TreeEntry>> {
    let prefix = match directory.trim_matches('/') {
        "" => String::new(),
        inner => format!("{inner}/"),
    };
    let mut entries = BTreeSet::new();
    for path in tree.keys() {
        let Some(rest) = path.strip_prefix(&prefix) else {
            continue;
        };
        let folders = rest.match_indices('/').map(|(end, _)| &path[..prefix.len() + end]);
        let depth = if recursive { usize::MAX } else { 1 };
        entries.extend(folders.take(depth).map(|path| TreeEntry { is_file: false, path: path.to_owned() }));
        if recursive || !rest.contains('/') {
            entries.insert(TreeEntry { is_file: true, path: path.clone() });
        }
    }
    (prefix.is_empty() || !entries.is_empty()).then(|| entries.into_iter().collect())
}

/// 40 digits, as long as Git's ids.
pub fn short_digest(bytes: impl AsRef<[u8]>) -> String {
    let mut digest = hex::digest(bytes);
    digest.truncate(40);
    digest
}

pub const DEFAULT_BRANCH: &str = "main";
