//! Values that are good each by itself and not together.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use url::Url;

use super::section::{ConfigErrors, Section};
use super::{App, Server, folder};
use crate::datahub::transport::Endpoint;

/// Notes in `root` what stands in the way of something else.
pub(super) fn check(server: &Server, admin: Option<&Endpoint>, app: Option<&App>, root: &Section<'_>) {
    check_listeners(server, admin, root);
    if let Some(app) = app {
        check_paths(server, app, root);
    }
}

/// What the gateway reads for itself is not to be among the app's files.
pub(super) fn check_served_files<'a>(app: &App, files: impl Iterator<Item = &'a PathBuf>, errors: &ConfigErrors) {
    let Some(folder) = app.files.as_ref().and_then(|files| files.dir.canonicalize().ok()) else { return };
    let mut real_files = files.filter_map(|path| path.canonicalize().ok());
    if real_files.any(|path| path.starts_with(&folder)) {
        errors.add("app.dir", "holds the gateway's own configuration or keys: whoever asks for that file would get it");
    }
}

/// No two sockets are to listen at one place.
fn check_listeners(server: &Server, admin: Option<&Endpoint>, root: &Section<'_>) {
    let listen = &server.listen;
    if listen.iter().enumerate().any(|(at, one)| listen[..at].iter().any(|other| collide(one, other))) {
        root.record_error::<()>("server.listen", "names one place twice");
    }
    if admin.is_some_and(|admin| listen.iter().any(|one| collide(one, admin))) {
        root.record_error::<()>(
            "admin.listen",
            "is where server.listen is: operators need a place of their own, or none",
        );
    }
}

/// Whether nobody can listen at both.
fn collide(one: &Endpoint, other: &Endpoint) -> bool {
    let (Endpoint::Tcp(one), Endpoint::Tcp(other)) = (one, other) else { return one == other };
    let [Ok(one), Ok(other)] = [one, other].map(|text| text.parse::<SocketAddr>()) else {
        return one == other && !one.ends_with(":0");
    };
    let is_all = |ip: IpAddr| ip.is_unspecified() && one.is_ipv4() == other.is_ipv4();
    // Port 0 is another free one each time.
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || is_all(one.ip()) || is_all(other.ip()))
}

/// The app is not to be where our own routes are.
fn check_paths(server: &Server, app: &App, root: &Section<'_>) {
    let own = Url::parse(&server.public_url).ok();
    let Some(own) = own.as_ref().and_then(|own| Some((own.origin(), own.join(&app.url).ok()?))) else { return };
    let (origin, url) = own;
    let (path, base_path) = (folder(url.path()), server.base_path.as_str());
    let is_below = path.strip_prefix(base_path).is_some_and(|rest| rest.starts_with('/'));
    if url.origin() == origin && path == base_path {
        root.record_error::<()>("server.base_path", "is where the app is (app.url): one of the two must be elsewhere");
    } else if app.files.is_some() && is_below {
        root.record_error::<()>("app.url", "is below server.base_path, where the gateway's own routes are");
    }
}
