//! Files that systemd hands over: those in `$CREDENTIALS_DIRECTORY`, found by their names where no setting names a file.
//!
//! `LoadCredential=keys:/path` makes a file `keys` there, and `LoadCredential=gateway:/folder` one `gateway_NAME` for each file of
//! the folder (systemd.exec(5)); both are found. Of two that fit none is taken: the wrong secret would go to a DataHUB.

use std::path::{Path, PathBuf};

/// Why there is no credential; the end of a sentence. Names files, which systemd shows to everybody, too.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CredentialError {
    /// Nobody handed over anything.
    #[error("there is no credential {0}, since $CREDENTIALS_DIRECTORY is not set")]
    NoFolder(String),
    /// The folder cannot be looked into.
    #[error("$CREDENTIALS_DIRECTORY, where {0} may be, cannot be read: {1}")]
    Unreadable(String, String),
    /// No file is called so.
    #[error("$CREDENTIALS_DIRECTORY has no file {0} or NAME_{0}")]
    Missing(String),
    /// More than one file is called so.
    #[error("$CREDENTIALS_DIRECTORY must have only one of {0}")]
    Ambiguous(String),
}

/// The file of the credential `name`. What one of `others` fits better is that one's.
///
/// # Errors
/// [`CredentialError`]: there is not exactly one.
pub(super) fn credential(name: &str, others: &[String]) -> Result<PathBuf, CredentialError> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty());
    let folder = folder.ok_or_else(|| CredentialError::NoFolder(name.to_owned()))?;
    find(Path::new(&folder), name, others)
}

fn find(folder: &Path, name: &str, others: &[String]) -> Result<PathBuf, CredentialError> {
    let is_called = |file: &str, name: &str| {
        file.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('_'))
    };
    // `gateway_tuebingen_testenv.secret` ends as a secret of the DataHUB `testenv` would.
    let is_others = |file: &str| others.iter().any(|other| other.len() > name.len() && is_called(file, other));
    let unreadable = |error: std::io::Error| CredentialError::Unreadable(name.to_owned(), error.to_string());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.file_name();
        found.extend(file.into_string().ok().filter(|file| is_called(file, name) && !is_others(file)));
    }
    found.sort();
    match found.as_slice() {
        [] => Err(CredentialError::Missing(name.to_owned())),
        [file] => Ok(folder.join(file)),
        files => Err(CredentialError::Ambiguous(files.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_found_by_its_name_or_by_that_of_its_folder_before_it() {
        let folder = std::env::temp_dir().join(format!("credentials-{}", std::process::id()));
        let missing = |name: &str| Err(CredentialError::Missing(name.to_owned()));
        for (case, files, name, expected) in [
            ("by itself", vec!["keys", "a.secret"], "keys", Ok("keys")),
            ("of a folder", vec!["gateway_keys", "gateway_a.secret"], "a.secret", Ok("gateway_a.secret")),
            ("of a folder with an underscore", vec!["the_gateway_a.secret"], "a.secret", Ok("the_gateway_a.secret")),
            ("none", vec!["gateway_keys"], "a.secret", missing("a.secret")),
            ("of a longer word", vec!["monkeys", "keys~", "keys.old"], "keys", missing("keys")),
            (
                "two",
                vec!["gateway_keys", "keys"],
                "keys",
                Err(CredentialError::Ambiguous("gateway_keys, keys".to_owned())),
            ),
            ("another's, whose name ends alike", vec!["gateway_b_a.secret"], "a.secret", missing("a.secret")),
            (
                "beside another's whose name ends alike",
                vec!["gateway_b_a.secret", "gateway_a.secret"],
                "a.secret",
                Ok("gateway_a.secret"),
            ),
            ("the longer name", vec!["gateway_b_a.secret", "gateway_a.secret"], "b_a.secret", Ok("gateway_b_a.secret")),
        ] {
            std::fs::create_dir_all(&folder).expect("a folder");
            for file in files {
                std::fs::write(folder.join(file), "").expect("a file");
            }
            let found = find(&folder, name, &["a.secret".to_owned(), "b_a.secret".to_owned()]);
            assert_eq!(found, expected.map(|file| folder.join(file)), "{case}");
            std::fs::remove_dir_all(&folder).expect("it is ours");
        }
        assert!(matches!(find(&folder, "keys", &[]), Err(CredentialError::Unreadable(name, _)) if name == "keys"));
    }
}
