//! The sections `datahubs.ID`, one for each DataHUB.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use openidconnect::{ClientId, ClientSecret, IssuerUrl, RedirectUrl};
use url::Url;

use super::credentials::credential;
use super::section::Section;
use super::{BackChannelTimeouts, Server, file, is_loopback, not_before, secret_file};
use crate::datahub::back_channel::BackChannel;
use crate::datahub::discovery::Discovery;
use crate::datahub::health::Health;
use crate::datahub::oidc::{Provider, Registration};
use crate::datahub::token_endpoint::TokenEndpoint;
use crate::datahub::transport::{self, Address, Endpoint, OutgoingProxy};
use crate::datahub::{DataHub, DataHubId, DataHubs};
use crate::session::not_before::CutOffs;

/// Reads them all, who must log in anew at them, and in which files their client secrets are.
pub(super) fn read(
    mut section: Section<'_>,
    server: Option<&Server>,
    back_channel: Option<BackChannelTimeouts>,
    cut_offs: &mut CutOffs,
    secret_files: &mut Vec<PathBuf>,
) -> Option<DataHubs> {
    let ids = section.keys();
    if ids.is_empty() {
        return section.record_own_error(
            "is missing: each DataHUB needs a section, such as [datahubs.tuebingen] with url, client_id and client_secret_file",
        );
    }
    let secrets: Vec<_> = ids.iter().map(|id| secret_name(id)).collect();
    let datahubs: Vec<_> = ids
        .iter()
        .map(|id| {
            let mut own = section.section(id);
            match id.parse::<DataHubId>() {
                Ok(id) => {
                    cut_off(&mut own, &id, cut_offs);
                    datahub(id, own, &secrets, server, back_channel, secret_files)
                }
                Err(error) => section.record_error(id, format!("is no id: {error}")),
            }
        })
        .collect();
    let datahubs: Vec<_> = datahubs.into_iter().collect::<Option<_>>()?;
    let mut names = BTreeSet::new();
    for datahub in &datahubs {
        for name in std::iter::once(datahub.id.as_str()).chain(datahub.aliases.iter().map(String::as_str)) {
            if !names.insert(name) {
                section.record_error::<()>(datahub.id.as_str(), "has an id or alias that another DataHUB has too");
            }
        }
    }
    for (at, datahub) in datahubs.iter().enumerate() {
        let place = |datahub: &DataHub| (datahub.address.as_str().to_owned(), datahub.provider.client_id().to_owned());
        if datahubs[..at].iter().any(|other| place(other) == place(datahub)) {
            section
                .warn(datahub.id.as_str(), "has the url and client_id of another DataHUB: people would log in twice");
        }
    }
    Some(DataHubs::new(datahubs))
}

/// Who must have logged in later at this DataHUB.
fn cut_off(section: &mut Section<'_>, id: &DataHubId, cut_offs: &mut CutOffs) {
    cut_offs.datahubs.extend(not_before(section, "not_before").map(|time| (id.clone(), time)));
    let mut users = section.section("not_before_users");
    let ids = users.keys();
    // The one with a username would stay in. Which it is, is not told: the log has no names.
    if !ids.iter().all(|id| id.parse::<u64>().is_ok_and(|number| number > 0 && number.to_string() == *id)) {
        users.record_own_error::<()>(
            "must name people by GitLab's number of them, such as \"7\", and not by a name: GitLab shows it at \
             /api/v4/users?username=NAME and on the person's page (Copy user ID)",
        );
    }
    let times = ids.into_iter().filter_map(|user| Some((user.clone(), not_before(&mut users, &user)?)));
    cut_offs.users.insert(id.clone(), times.collect());
    users.finish();
}

fn datahub(
    id: DataHubId,
    mut section: Section<'_>,
    secrets: &[String],
    server: Option<&Server>,
    timeouts: Option<BackChannelTimeouts>,
    secret_files: &mut Vec<PathBuf>,
) -> Option<DataHub> {
    let url = section.require("url").and_then(|()| section.url("url"));
    let is_insecure_allowed = section.boolean("insecure_http").unwrap_or(false);
    let issuer = section.url("issuer");
    for (key, url) in [("url", &url), ("issuer", &issuer)] {
        if url.as_ref().is_none_or(|url| url.scheme() != "http" || is_loopback(url)) {
            continue;
        }
        if is_insecure_allowed {
            section.warn(key, "is http: tokens go to this DataHUB unencrypted");
        } else {
            section.record_error::<()>(key, "must be https, or insecure_http must be true");
        }
    }
    let client_id: Option<String> = section.required("client_id").filter(|id: &String| {
        let is_good = !id.is_empty() && is_visible(id);
        is_good || section.record_error::<()>("client_id", "must be the Application ID that GitLab shows").is_some()
    });
    let client_secret = client_secret(&id, secrets, &mut section, secret_files);
    let connect: Option<Endpoint> = section.optional("connect");
    if matches!(&connect, Some(Endpoint::Tcp(address)) if address.ends_with(":0")) {
        section.record_error::<()>("connect", "must name a port other than 0");
    }
    let via: Option<OutgoingProxy> = section.optional("via");
    let tls = ca_file(&mut section);
    let name: Option<String> = section.optional("name");
    let description: Option<String> = section.optional("description");
    let aliases: Option<Vec<String>> = section.list("aliases");
    let is_anonymous = section.boolean("anonymous").unwrap_or(false);
    let anonymous_rate =
        section.optional("anonymous_rate").unwrap_or_else(|| DEFAULT_ANONYMOUS_RATE.parse().expect("a rate"));
    let scopes = scopes(&mut section);
    let redirect_uri: Option<String> = section.optional("redirect_uri");
    let redirect_uri = redirect_uri
        .or_else(|| {
            server.map(|server| format!("{}{}/auth/callback?datahub={id}", server.public_url, server.base_path))
        })
        .and_then(|uri| redirect_url(uri, &id, aliases.as_deref().unwrap_or_default(), server, &section));
    let address = |key, url, connect| {
        // Where `ca_file` is wrong, the address is looked at all the same.
        let tls = tls.clone().or_else(|| transport::tls_config(None).ok())?;
        let address = Address::new(url, connect, tls).map_err(|error| section.record_error::<()>(key, error)).ok()?;
        let Some(proxy) = via.clone() else { return Some(address) };
        address.through(proxy).map_err(|error| section.record_error::<()>("connect", error)).ok()
    };
    let place = url.and_then(|url| address("url", url, connect));
    let issuer_place = issuer.and_then(|url| address("issuer", url, None));
    section.finish();

    let address = tls.and(place)?;
    let issuer = issuer_place.as_ref().unwrap_or(&address).as_str().to_owned();
    let issuer = IssuerUrl::new(issuer).expect("a URL without the slash at its end is still one");
    let addresses: Vec<_> = std::iter::once(address.clone()).chain(issuer_place).collect();
    let timeouts = timeouts?;
    let token_endpoint = TokenEndpoint::new(addresses.clone(), timeouts.connect, timeouts.token);
    let back_channel = BackChannel::new(addresses, timeouts.connect, timeouts.back_channel);
    let scopes = scopes?;
    let health = Arc::new(Health::new(id.clone()));
    let (client_id, client_secret, redirect_uri) =
        (ClientId::new(client_id?), ArcSwap::from_pointee(client_secret?), redirect_uri?);
    let provider = Provider::new(
        Registration { client_id, client_secret, redirect_uri, scopes },
        Discovery::new(issuer, back_channel.clone(), Arc::clone(&health)),
        back_channel,
        token_endpoint,
        health,
    );
    let name = name.unwrap_or_else(|| id.to_string());
    Some(DataHub::new(
        id,
        name,
        description.unwrap_or_default(),
        aliases?,
        address,
        provider,
        is_anonymous.then_some(anonymous_rate),
    ))
}

/// The credential that is a DataHUB's client secret if its section has none.
fn secret_name(id: &str) -> String {
    format!("{id}.secret")
}

/// `secrets` are the names of all DataHUBs' credentials, this one's among them. The file that it is in is added to `files`.
fn client_secret(
    id: &DataHubId,
    secrets: &[String],
    section: &mut Section<'_>,
    files: &mut Vec<PathBuf>,
) -> Option<ClientSecret> {
    let text: Option<String> = section.optional("client_secret");
    let file: Option<PathBuf> = section.optional("client_secret_file");
    let mut read = |path: PathBuf| {
        let text = secret_file(&path, "client_secret_file", section);
        files.push(path);
        Some(text?.trim().to_owned())
    };
    let secret = match (text, file) {
        (Some(text), None) => text,
        (None, Some(path)) => read(path)?,
        (None, None) => match credential(&secret_name(id.as_str()), secrets) {
            Ok(path) => read(path)?,
            Err(error) => {
                let what = format!("or client_secret_file is missing, and {error}");
                return section.record_error("client_secret", what);
            }
        },
        (Some(_), Some(_)) => {
            return section.record_error("client_secret", "and client_secret_file must not both be set");
        }
    };
    if secret.len() < 16 {
        return section
            .record_error("client_secret", "is too short to be a secret: GitLab shows it beside the Application ID");
    }
    if !is_visible(&secret) {
        return section.record_error("client_secret", "must be one line of visible ASCII, without spaces");
    }
    Some(ClientSecret::new(secret))
}

/// What every login asks for (RFC 6749 section 3.3), or the usual.
fn scopes(section: &mut Section<'_>) -> Option<Vec<String>> {
    let key = "scopes";
    let scopes: Vec<String> = section.list(key)?;
    if scopes.is_empty() {
        return Some(DEFAULT_SCOPES.map(str::to_owned).to_vec());
    }
    if !scopes.iter().all(|scope| is_visible(scope) && !scope.contains(['"', '\\'])) {
        return section.record_error(key, "must be a list such as [\"openid\", \"profile\", \"api\"], one word each");
    }
    let has = |name: &str| scopes.iter().any(|scope| scope == name);
    if !has("openid") {
        return section.record_error(key, "must hold openid: without it no login says who the person is");
    }
    if !has("api") && !has("read_api") {
        section.warn(key, "hold neither api nor read_api: the DataHUB will refuse the app's calls");
    }
    Some(scopes)
}

/// Where the DataHUB sends people back to, as it must be registered there.
fn redirect_url(
    text: String,
    id: &DataHubId,
    aliases: &[String],
    server: Option<&Server>,
    section: &Section<'_>,
) -> Option<RedirectUrl> {
    let key = "redirect_uri";
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.fragment().is_none());
    let Some(url) = url.filter(|_| is_visible(&text)) else {
        return section.record_error(key, "must be a URL such as https://app.example.org/callback, without #");
    };
    if let Some(server) = server {
        let is_ours = url.path() == format!("{}/auth/callback", server.base_path)
            && url.query_pairs().any(|(name, value)| {
                name == "datahub" && (value == id.as_str() || aliases.iter().any(|alias| *alias == value))
            });
        if url.origin().ascii_serialization() != server.public_url {
            let what = "is not at server.public_url: people do not come back here, unless something there sends them";
            section.warn(key, what);
        } else if !is_ours {
            let place = format!("{}/auth/callback?datahub={id}", server.base_path);
            section.warn(
                key,
                &format!("is not {place}, where logins end: people do not come back here, unless a front rewrites it"),
            );
        }
    }
    RedirectUrl::new(text).map_err(|_| section.record_error::<()>(key, "must be a URL")).ok()
}

/// Whether a text is visible ASCII without spaces.
fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn ca_file(section: &mut Section<'_>) -> Option<Arc<rustls::ClientConfig>> {
    let pem = match section.optional::<PathBuf>("ca_file") {
        Some(path) => match file::read(&path) {
            Ok((pem, _)) => Some(pem),
            Err(error) => return section.record_error("ca_file", format!("cannot be read: {error}")),
        },
        None => None,
    };
    transport::tls_config(pem.as_deref()).map_err(|error| section.record_error::<()>("ca_file", error)).ok()
}

const DEFAULT_ANONYMOUS_RATE: &str = "300/1m";
const DEFAULT_SCOPES: [&str; 3] = ["openid", "profile", "api"];
