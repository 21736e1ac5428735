//! The section `bridge`: the ARCmanager's old backend, if it is still there.

use std::path::PathBuf;

use url::Url;
use zeroize::Zeroizing;

use super::credentials::credential;
use super::section::Section;
use super::{Server, is_loopback, secret_file};
use crate::bridge::data_cookie::{BridgeKeyError, DataCookieKeys, FernetKey, JwtKey};
use crate::bridge::policy::{BridgePolicy, Hole};
use crate::bridge::{BridgeSettings, NAME};
use crate::datahub::DataHubs;
use crate::datahub::transport::{self, Address, Endpoint};

/// The bridge, if there is one, and the files that its keys came from.
pub(super) type BridgeSection = (Option<BridgeSettings>, Vec<PathBuf>);

/// Reads it all, so that every error is noted.
pub(super) fn read(
    mut section: Section<'_>,
    server: Option<&Server>,
    datahubs: Option<&DataHubs>,
) -> Option<BridgeSection> {
    let url = section.text("url");
    let files = ["jwt_key_file", "fernet_key_file"].map(|key| (key, section.optional::<PathBuf>(key)));
    let open: Option<Vec<Hole>> = section.list("allow");
    let first_byte = section.duration("first_byte");
    let Some(url) = url else {
        for (key, _) in files.iter().filter(|(_, file)| file.is_some()) {
            section.record_error::<()>(key, "does nothing without bridge.url");
        }
        let is_good = files.iter().all(|(_, file)| file.is_none()) && open.is_some() && first_byte.is_some();
        section.finish();
        return is_good.then(|| (None, Vec::new()));
    };
    let address = address(&url, &section);
    if datahubs.is_some_and(|datahubs| datahubs.by_id(NAME).is_some()) {
        section.record_error::<()>(
            "url",
            "makes `bridge` a name in log and metrics, which a DataHUB's id must not be then",
        );
    }
    if open.as_ref().is_some_and(|open| !open.is_empty()) {
        section.warn(
            "allow",
            "opens what the old backend does not guard itself; docs/arcmanager.md says what each name lets in",
        );
    }
    let [jwt, fernet] = files;
    let jwt = key(jwt, JWT_CREDENTIAL, &section, |text| JwtKey::from_pem(text.as_bytes()));
    let fernet = key(fernet, FERNET_CREDENTIAL, &section, FernetKey::parse);
    section.finish();
    let policy = BridgePolicy::new(&server?.base_path, open?);
    let ((jwt, jwt_file), (fernet, fernet_file)) = (jwt?, fernet?);
    let keys = DataCookieKeys::new(jwt, fernet);
    let settings = BridgeSettings { address: address?, keys, policy, first_byte: first_byte? };
    Some((Some(settings), vec![jwt_file, fernet_file]))
}

/// Loopback, a unix socket, or https: what goes there opens the DataHUB for one person.
fn address(text: &str, section: &Section<'_>) -> Option<Address> {
    let (url, connect) = match text.strip_prefix("unix:").and(text.parse::<Endpoint>().ok()) {
        Some(endpoint) => ("http://localhost", Some(endpoint)),
        None => (text, None),
    };
    let is_plain = |url: &Url| url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let is_safe = |url: &Url| url.scheme() == "https" || url.scheme() == "http" && is_loopback(url);
    let Some(url) = Url::parse(url).ok().filter(|url| is_plain(url) && is_safe(url)) else {
        return section.record_error(
            "url",
            "must be http:// on this machine, unix:/path or https://, a host and a port and nothing more",
        );
    };
    let tls = transport::tls_config(None).map_err(|error| section.record_error::<()>("url", error)).ok()?;
    Address::new(url, connect, tls).map_err(|error| section.record_error::<()>("url", error)).ok()
}

/// The key in the file that a setting names, or else in a credential; and the file.
fn key<T>(
    (name, path): (&str, Option<PathBuf>),
    passed: &str,
    section: &Section<'_>,
    parse: impl FnOnce(&str) -> Result<T, BridgeKeyError>,
) -> Option<(T, PathBuf)> {
    let path = match path.map_or_else(|| credential(passed, &[]), Ok) {
        Ok(path) => path,
        Err(error) => return section.record_error(name, format!("is missing, and {error}")),
    };
    let text = Zeroizing::new(secret_file(&path, name, section)?);
    let key = parse(&text).map_err(|error| section.record_error::<()>(name, error)).ok()?;
    Some((key, path))
}

/// The credentials that the keys are where no setting names their files.
const JWT_CREDENTIAL: &str = "bridge-private.pem";
const FERNET_CREDENTIAL: &str = "bridge-fernet";
