//! Files and environment become one checked [`Config`]; all errors at once.
//!
//! Each value is parsed once, into the type of the room that uses it. An error names its key and never its value: the
//! value may be a secret.

mod bridge;
mod conflicts;
mod credentials;
mod datahubs;
pub mod file;
mod section;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use config::{Map, Value, ValueKind};
use url::{Host, Position, Url};

use crate::access_log::Format;
use crate::bridge::BridgeSettings;
use crate::config::credentials::credential;
use crate::config::file::told;
pub use crate::config::section::ConfigErrors;
use crate::config::section::Section;
use crate::config::sources::Sources;
use crate::datahub::DataHubs;
use crate::datahub::transport::{AddressError, Endpoint};
use crate::docs::document::Description;
use crate::guard::origins::TrustedOrigins;
use crate::guard::{AppFiles, ProxyNetwork};
use crate::http::head::{HeadLimits, MAX_FIELDS};
use crate::http::server::{ClientTimeouts, ServerSettings};
use crate::proxy::policy::Policy;
use crate::proxy::policy::rule::Rule;
use crate::proxy::upstream::UpstreamTimeouts;
use crate::proxy::{ProxyLimits, ProxySettings};
use crate::rate::Rate;
use crate::seal::{Key, Keyring};
use crate::session::not_before::{CutOffs, NotBefore};
use crate::session::{self, Sessions};

/// Everything an operator can say, checked.
#[derive(Debug)]
pub struct Config {
    /// Where the gateway listens and what it is called.
    pub server: Server,
    /// Where `/healthz` and `/readyz` are, if anywhere.
    pub admin: Option<Endpoint>,
    /// The app that people see.
    pub app: App,
    /// The keys of the cookies.
    pub keyring: Keyring,
    /// Which sessions began too early.
    pub not_before: NotBefore,
    /// How long sessions last.
    pub session: session::SessionLimits,
    /// The DataHUBs.
    pub datahubs: DataHubs,
    /// What the proxy is told.
    pub proxy: ProxySettings,
    /// The ARCmanager's old backend, if it is still there.
    pub bridge: Option<BridgeSettings>,
    /// What a browser's connection is held to.
    pub client: ServerSettings,
    /// How many of them there may be, over all workers.
    pub connections: usize,
    /// How long a person may take at a DataHUB.
    pub login_timeout: Duration,
    /// How often one client may begin a login.
    pub login_rate: Rate,
    /// How often one client may end a login.
    pub callback_rate: Rate,
    /// What the log looks like, and how much is logged.
    pub log: (Format, log::LevelFilter),
    /// What is allowed and yet not good, a line each.
    pub warnings: Vec<String>,
    /// The files that keys, cut-offs and client secrets came from.
    pub files: Vec<PathBuf>,
    /// Every key that is set, and a digest of its value.
    settings: BTreeMap<String, u64>,
}

/// Where the gateway listens and what it is called.
#[derive(Debug)]
pub struct Server {
    /// Where to listen, unless systemd passes sockets.
    pub listen: Vec<Endpoint>,
    /// The address people use: an origin.
    pub public_url: String,
    /// What stands before every route; begins with a slash and ends without one.
    pub base_path: String,
    /// Threads that serve requests.
    pub workers: usize,
    /// How long calls under way may take at the end.
    pub shutdown_timeout: Duration,
    /// Front proxies that are believed.
    pub trusted_proxies: Vec<ProxyNetwork>,
    /// Who may connect to our unix sockets: a file's mode.
    pub unix_mode: u32,
    /// And the id of its group, if that is not the process's own.
    pub unix_group: Option<u32>,
    /// Whether fronts may ask for the process's health below `base_path`.
    pub is_health_shown: bool,
}

/// The app that people see.
#[derive(Debug)]
pub struct App {
    /// A path on our origin, or a URL.
    pub url: String,
    /// Its files, if the gateway serves them.
    pub files: Option<AppFiles>,
    /// Whose script may call.
    pub origins: TrustedOrigins,
    /// Whether it is the ARCmanager's app of today, with ways of its own.
    pub arcmanager: bool,
}

impl Config {
    /// The defaults, then `files` in order, then the environment.
    ///
    /// # Errors
    /// [`ConfigErrors`]: every one there is.
    pub fn load(files: &[PathBuf]) -> Result<Self, ConfigErrors> {
        let errors = ConfigErrors::default();
        let Some(Sources { table, strays }) = sources::read(files, &errors) else { return Err(errors) };
        let mut settings = BTreeMap::new();
        digest("", &table, &mut settings);
        let mut root = Section::root(table, &errors);
        let config = Self::read(&mut root);
        root.finish();
        errors.name_unknown();
        sources::report(strays, &errors);
        if let Some(config) = &config {
            conflicts::check_served_files(&config.app, files.iter().chain(&config.files), &errors);
        }
        match config {
            Some(config) if errors.is_empty() => {
                let files = files.iter().cloned().chain(config.files).collect();
                Ok(Self { files, settings, warnings: errors.into_warnings(), ..config })
            }
            _ => Err(errors),
        }
    }

    /// The keys that `new` has other values of and that count at the next start only.
    pub fn changed_until_restart<'a>(&'a self, new: &'a Self) -> Vec<&'a str> {
        let keys = self.settings.keys().chain(new.settings.keys()).map(String::as_str);
        let changed = |key: &&str| self.settings.get(*key) != new.settings.get(*key) && !is_taken_over(key);
        keys.filter(changed).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What `load` would read of the section `proxy`, whatever is wrong or missing elsewhere.
    ///
    /// # Errors
    /// [`ConfigErrors`]: every one there is in that section.
    pub fn load_policy(files: &[PathBuf]) -> Result<Policy, ConfigErrors> {
        let errors = ConfigErrors::default();
        let Some(Sources { table, .. }) = sources::read(files, &errors) else { return Err(errors) };
        let policy = policy(Section::root(table, &errors).section("proxy"));
        errors.name_unknown();
        match policy {
            Some(policy) if errors.is_empty() => Ok(policy),
            _ => Err(errors),
        }
    }

    /// What `load` would say of the API, whatever is wrong or missing in other sections than `server` and `limits`.
    ///
    /// # Errors
    /// [`ConfigErrors`]: every one there is in those two.
    pub fn load_description(files: &[PathBuf]) -> Result<Description, ConfigErrors> {
        let errors = ConfigErrors::default();
        let Some(Sources { table, .. }) = sources::read(files, &errors) else { return Err(errors) };
        let mut root = Section::root(table, &errors);
        let (server, limits) = (Server::read(root.section("server")), limits(root.section("limits")));
        errors.name_unknown();
        match (server, limits) {
            (Some(server), Some((limits, ..))) if errors.is_empty() => Ok(describe(&server, limits)),
            _ => Err(errors),
        }
    }

    /// What the API's document says of this deployment.
    pub fn description(&self) -> Description {
        describe(&self.server, self.proxy.limits)
    }

    /// Where `load` would say that operators may ask, whatever is wrong or missing elsewhere.
    ///
    /// # Errors
    /// [`ConfigErrors`] if that cannot be read.
    pub fn load_admin(files: &[PathBuf]) -> Result<Option<Endpoint>, ConfigErrors> {
        let errors = ConfigErrors::default();
        // A variable wins. Whoever has it may not know the files, or not be able to read them.
        let files = if std::env::var_os(ADMIN_VARIABLE).is_some() { &[] } else { files };
        let Some(Sources { table, .. }) = sources::read(files, &errors) else { return Err(errors) };
        let endpoint = admin_listen(&mut Section::root(table, &errors).section("admin"));
        endpoint.ok_or(errors)
    }

    /// The sessions of this deployment.
    pub fn sessions(&self) -> Sessions {
        let (keyring, not_before) = (self.keyring.clone(), self.not_before.clone());
        Sessions::new(
            keyring,
            not_before,
            self.session.clone(),
            &self.datahubs,
            &self.app.origins.own,
            self.app.arcmanager,
        )
    }

    /// Reads all sections before any `?`, so that every error is noted.
    fn read(root: &mut Section<'_>) -> Option<Self> {
        let server = Server::read(root.section("server"));
        let public_url = server.as_ref().map(|server| server.public_url.as_str());
        let admin = admin(root.section("admin"));
        let app = App::read(root.section("app"), public_url);
        let login_timeout = auth(root.section("auth"));
        let session = session(root.section("session"));
        let limits = limits(root.section("limits"));
        let timeouts = timeouts(root.section("timeouts"));
        let rates = rates(root.section("rate_limit"));
        let log = log(root.section("log"));
        let policy = policy(root.section("proxy"));
        let back_channel = timeouts.as_ref().map(|(_, _, back_channel)| *back_channel);
        let (mut cut_offs, mut secret_files) = (CutOffs::default(), Vec::new());
        let section = root.section("datahubs");
        let datahubs = datahubs::read(section, server.as_ref(), back_channel, &mut cut_offs, &mut secret_files);
        let bridge = bridge::read(root.section("bridge"), server.as_ref(), datahubs.as_ref());
        if let Some(server) = &server {
            conflicts::check(server, admin.as_ref().and_then(Option::as_ref), app.as_ref(), root);
        }

        let (keyring, keys_file, all, session) = session?;
        cut_offs.all = all;
        let (upstream_timeouts, client_timeouts, _) = timeouts?;
        let (limits, head, body_rate, connections) = limits?;
        let [login_rate, callback_rate, anonymous_client_rate] = rates?;
        let (bridge, bridge_files) = bridge?;
        Some(Self {
            server: server?,
            admin: admin?,
            app: app?,
            keyring,
            not_before: NotBefore::new(cut_offs),
            session,
            datahubs: datahubs?,
            proxy: ProxySettings { policy: policy?, limits, timeouts: upstream_timeouts, anonymous_client_rate },
            bridge,
            connections,
            client: ServerSettings { head, body: limits.body, body_rate, timeouts: client_timeouts },
            login_timeout: login_timeout?,
            login_rate,
            callback_rate,
            log: log?,
            warnings: Vec::new(),
            settings: BTreeMap::new(),
            files: keys_file.into_iter().chain(bridge_files).chain(secret_files).collect(),
        })
    }
}

fn describe(server: &Server, limits: ProxyLimits) -> Description {
    Description { base_path: server.base_path.clone(), max_target: limits.target, max_body: limits.body }
}

/// Notes a digest of each value in a table. It stays in this process.
fn digest(path: &str, table: &Map<String, Value>, into: &mut BTreeMap<String, u64>) {
    for (key, value) in table {
        let key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let ValueKind::Table(table) = &value.kind {
            digest(&key, table, into);
            continue;
        }
        let mut hash = DefaultHasher::new();
        value.to_string().hash(&mut hash);
        into.insert(key, hash.finish());
    }
}

/// Whether a change of this key counts while the process runs.
fn is_taken_over(key: &str) -> bool {
    let keys =
        ["session.keys", "session.keys_file", "session.not_before", "bridge.jwt_key_file", "bridge.fernet_key_file"];
    let of_datahub = key.strip_prefix("datahubs.").and_then(|key| key.split('.').nth(1));
    keys.contains(&key)
        || of_datahub.is_some_and(|key| {
            matches!(key, "client_secret" | "client_secret_file" | "not_before" | "not_before_users")
        })
}

impl Server {
    fn read(mut section: Section<'_>) -> Option<Self> {
        let listen = section.list("listen");
        let public_url = section.require("public_url").and_then(|()| section.url("public_url"));
        let public_url = public_url.and_then(|url| public_origin(&url, &section));
        let base_path = section.required::<String>("base_path").filter(|path| {
            let is_plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte));
            let is_path = path.is_empty() || (path.starts_with('/') && !path.ends_with('/') && !path.contains("//"));
            // What browsers take out of a path before they send it.
            let has_dots = path.split('/').any(|segment| matches!(segment, "." | ".."));
            let is_good = is_plain && is_path && !has_dots && path.len() <= MAX_BASE_PATH_BYTES;
            is_good
                || section
                    .record_error::<()>("base_path", "must be a path such as /api/v1, without a slash at its end")
                    .is_some()
        });
        let workers = section.number("workers", 0..=MAX_WORKERS).map(|count| if count == 0 { cores() } else { count });
        let shutdown_timeout = section.duration("shutdown_timeout");
        let trusted_proxies: Option<Vec<ProxyNetwork>> = section.list("trusted_proxies");
        if trusted_proxies.as_ref().is_some_and(|proxies| proxies.iter().any(ProxyNetwork::is_everybody)) {
            section.warn("trusted_proxies", "names all addresses: then anybody may pass for any other client");
        }
        let (unix_mode, unix_group) = (unix_mode(&mut section), unix_group(&mut section));
        let is_health_shown = section.require("health").and_then(|()| section.boolean("health"));
        section.finish();
        Some(Self {
            listen: listen?,
            public_url: public_url?,
            base_path: base_path?,
            workers: workers?,
            shutdown_timeout: shutdown_timeout?,
            trusted_proxies: trusted_proxies?,
            unix_mode: unix_mode?,
            unix_group: unix_group?,
            is_health_shown: is_health_shown?,
        })
    }
}

/// A mode in octal digits. Whoever may connect is believed about who its client is.
fn unix_mode(section: &mut Section<'_>) -> Option<u32> {
    let (key, text) = ("unix_mode", section.required::<String>("unix_mode")?);
    // Without the zero it may be a number that TOML has read already.
    let is_octal = text.len() == 4 && text.starts_with('0');
    let Some(mode) = u32::from_str_radix(&text, 8).ok().filter(|_| is_octal) else {
        return section.record_error(key, "must be a mode in octal digits and quotes, such as \"0660\"");
    };
    if mode & 0o002 != 0 {
        section.warn(key, "lets everybody on this machine connect, and say in X-Forwarded-For who they are");
    }
    Some(mode)
}

/// The id of a group.
#[expect(clippy::option_option, reason = "outside: whether it could be read; inside: what it says")]
fn unix_group(section: &mut Section<'_>) -> Option<Option<u32>> {
    let Some(name) = section.text("unix_group") else { return Some(None) };
    match name.parse() {
        // By which chown(2) is told to leave it as it is.
        Ok(u32::MAX) => return section.record_error("unix_group", "must be the number of a group, which this is not"),
        Ok(id) => return Some(Some(id)),
        Err(_) => {}
    }
    // Not by way of the C library, whose modules a static program cannot load.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name.as_str());
        fields.nth(1).filter(|_| is_it)?.parse().ok()
    });
    match id {
        Some(id) => Some(Some(id)),
        None => section.record_error("unix_group", "is no group of /etc/group: name another, or write its number"),
    }
}

/// The origin that `server.public_url` is, and nothing more.
fn public_origin(url: &Url, section: &Section<'_>) -> Option<String> {
    let key = "public_url";
    let has_more = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
    if has_more || !url.username().is_empty() || url.password().is_some() || url.port() == Some(0) {
        return section.record_error(key, "must be scheme, host and port and nothing more");
    }
    match url.scheme() {
        "https" => Some(url.origin().ascii_serialization()),
        "http" if is_loopback(url) => Some(url.origin().ascii_serialization()),
        "http" => section.record_error(key, "must be https: browsers drop the cookies on http, but on localhost"),
        _ => section.record_error(key, "must be https"),
    }
}

#[expect(clippy::option_option, reason = "outside: whether it could be read; inside: what it says")]
fn admin(mut section: Section<'_>) -> Option<Option<Endpoint>> {
    let endpoint = admin_listen(&mut section);
    section.finish();
    endpoint
}

#[expect(clippy::option_option, reason = "outside: whether it could be read; inside: what it says")]
fn admin_listen(section: &mut Section<'_>) -> Option<Option<Endpoint>> {
    let what = |error| format!("{error}, or none");
    match section.required::<String>("listen")?.as_str() {
        "none" => Some(None),
        text => {
            text.parse().map(Some).map_err(|error: AddressError| section.record_error::<()>("listen", what(error))).ok()
        }
    }
}

impl App {
    fn read(mut section: Section<'_>, public_url: Option<&str>) -> Option<Self> {
        let url: Option<String> = section.required("url");
        let (dir, csp): (Option<PathBuf>, Option<String>) = (section.optional("dir"), section.required("csp"));
        if csp.as_ref().is_some_and(|csp| csp.is_empty() || !csp.bytes().all(|byte| matches!(byte, b' '..=b'~'))) {
            section.record_error::<()>("csp", "must be one line of visible ASCII, such as default-src 'self'");
        }
        let dev: Option<Vec<String>> = section.list("dev_origins");
        let arcmanager = section.require("arcmanager").and_then(|()| section.boolean("arcmanager"));
        if let Some(dir) = &dir {
            check_app_folder(dir, &section);
        }
        let public_url = public_url.and_then(|text| Url::parse(text).ok());
        let place = public_url.as_ref().zip(url.as_deref()).and_then(|(base, text)| match base.join(text) {
            Ok(url) if is_app_url(text, &url) => Some(url),
            _ => section.record_error(
                "url",
                "must be a path such as /app/, or a URL such as https://app.example.org/, as browsers write it and without #",
            ),
        });
        let dev: Option<Vec<_>> = public_url.as_ref().zip(dev).map(|(own, dev)| {
            let origin = |text: &String| Url::parse(text).ok();
            let is_good = |url: Url| is_loopback(own) && url.host() == own.host() && url.path() == "/";
            if !dev.iter().all(|text| origin(text).is_some_and(is_good)) {
                section.record_error::<()>(
                    "dev_origins",
                    "must be origins on the host of public_url, which must be this machine",
                );
            }
            dev.iter().filter_map(origin).map(|origin| origin.origin().ascii_serialization()).collect()
        });
        if let (Some(own), Some(place), Some(dev)) = (&public_url, &place, &dev) {
            let origin = place.origin();
            if origin != own.origin() && !dev.contains(&origin.ascii_serialization()) {
                section.warn("url", "is on another origin than server.public_url: its script may not call the gateway");
            }
        }
        section.finish();
        let path = place.as_ref().map(|url| folder(url.path()).to_owned());
        let files = dir.zip(path).zip(csp).map(|((dir, path), csp)| AppFiles { path, dir, csp });
        let own = public_url?.origin().ascii_serialization();
        let origins = TrustedOrigins { own, dev: dev? };
        Some(Self { url: place.and(url)?, files, origins, arcmanager: arcmanager? })
    }
}

/// Whether a text is a path or a URL that can stand in a Location field as it is, with the login's outcome behind it.
fn is_app_url(text: &str, url: &Url) -> bool {
    let is_as_written = text == url.as_str() || is_path(text) && text == &url[Position::BeforePath..];
    is_as_written && matches!(url.scheme(), "http" | "https") && url.fragment().is_none()
}

fn check_app_folder(dir: &Path, section: &Section<'_>) {
    if !dir.is_dir() {
        section.record_error::<()>("dir", "is not a folder");
    } else if let Err(error) = dir.read_dir() {
        section.record_error::<()>("dir", format!("cannot be read: {}", told(&error)));
    } else if !dir.join("index.html").is_file() {
        section.warn("dir", "holds no index.html");
    }
}

/// The folder that the app's page is in, without a slash at its end: `/app` of `/app`, `/app/` and `/app/index.html`.
fn folder(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((folder, page)) if Path::new(page).extension().is_some_and(|kind| kind == "html") => folder,
        _ => path.trim_end_matches('/'),
    }
}

fn policy(mut section: Section<'_>) -> Option<Policy> {
    let graphql = section.require("graphql").and_then(|()| section.boolean("graphql"));
    let exceptions = section.list("allow_credential_endpoints");
    if exceptions.as_ref().is_some_and(|exceptions| !exceptions.is_empty()) {
        section.warn("allow_credential_endpoints", "lets a hostile script in the app make credentials that outlive it");
    }
    let only = only(&mut section, "only");
    section.finish();
    Some(Policy::new(graphql?, &exceptions?, only?))
}

/// A list of rules; an error says which of them is wrong.
fn only(section: &mut Section<'_>, key: &str) -> Option<Vec<Rule>> {
    let texts: Vec<String> = section.list(key)?;
    let parse = |(at, text): (usize, &String)| {
        text.parse::<Rule>().map_err(|error| section.record_error::<()>(key, format!("rule {} {error}", at + 1)))
    };
    // All of them, so that every error is noted.
    let rules: Vec<_> = texts.iter().enumerate().map(parse).collect();
    rules.into_iter().collect::<Result<_, _>>().ok()
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && !text.starts_with("//")
}

/// How long a person may take at a DataHUB.
fn auth(mut section: Section<'_>) -> Option<Duration> {
    let key = "login_timeout";
    let timeout = section.duration(key).filter(|timeout| {
        let is_good = (MIN_LOGIN_TIMEOUT..=MAX_LOGIN_TIMEOUT).contains(timeout);
        is_good || section.record_error::<()>(key, "must be from 1m to 1h").is_some()
    });
    section.finish();
    timeout
}

/// The keys, the file they are in, the cut-off for everybody, and how long sessions last.
type SessionSection = (Keyring, Option<PathBuf>, Option<SystemTime>, session::SessionLimits);

fn session(mut section: Section<'_>) -> Option<SessionSection> {
    let listed: Option<Vec<Key>> = section.list("keys");
    let file = match section.optional::<PathBuf>("keys_file") {
        None if listed.as_ref().is_some_and(Vec::is_empty) => match credential("keys", &[]) {
            Ok(path) => Some(path),
            Err(error) => {
                let what = format!("or keys must hold a key, and {error}; `arcmanager-gateway key` makes one");
                section.record_error("keys_file", what)
            }
        },
        file => file,
    };
    let keys = match (&file, listed) {
        (Some(_), Some(keys)) if !keys.is_empty() => section.record_error("keys", "and keys_file must not both be set"),
        (Some(path), _) => secret_file(path, "keys_file", &section).and_then(|text| keys_of(&text, &section)),
        // None at all is noted above.
        (None, keys) => keys.filter(|keys| !keys.is_empty()),
    };
    let keyring =
        keys.and_then(|keys| Keyring::new(keys).map_err(|error| section.record_error::<()>("keys", error)).ok());
    let not_before = not_before(&mut section, "not_before");
    let [max_age, idle_timeout] = ["max_age", "idle_timeout"].map(|key| section.duration_from(key, MIN_SESSION));
    let [refresh_ahead, refresh_ahead_body, remember] =
        ["refresh_ahead", "refresh_ahead_body", "remember"].map(|key| section.duration(key));
    section.finish();
    let limits = session::SessionLimits {
        max_age: max_age?,
        idle_timeout: idle_timeout?,
        refresh_ahead: refresh_ahead?,
        refresh_ahead_body: refresh_ahead_body?,
        remember: remember?,
    };
    Some((keyring?, file, not_before, limits))
}

/// A cut-off; one to come is accepted, and warned about: nobody stays logged in until then.
fn not_before(section: &mut Section<'_>, key: &str) -> Option<SystemTime> {
    let time = section.time(key)?;
    if time > SystemTime::now() {
        section.warn(key, "is a time to come: until then every login ends at once");
    }
    Some(time)
}

/// One key a line; `#` begins a comment.
fn keys_of(text: &str, section: &Section<'_>) -> Option<Vec<Key>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(line).trim());
    let keys = lines.enumerate().filter(|(_, line)| !line.is_empty()).map(|(at, line)| {
        line.parse::<Key>().map_err(|error| section.record_error::<()>("keys_file", format!("line {} {error}", at + 1)))
    });
    // All of them, so that every error is noted.
    let keys: Vec<_> = keys.collect();
    keys.into_iter().collect::<Result<_, _>>().ok()
}

/// Of forwarded calls, of heads, how fast a body must come, and how many connections there may be.
fn limits(mut section: Section<'_>) -> Option<(ProxyLimits, HeadLimits, NonZeroU64, usize)> {
    let (head, target) = (section.size_in_kib("head", 1..=1024), section.size_in_kib("target", 1..=1024));
    let [body, body_rate] = ["body", "body_rate"].map(|key| section.nonzero_size(key));
    let fields = section.number("fields", MIN_FIELDS..=MAX_FIELDS);
    if head.is_some_and(|head| head < BROWSERS_HEAD) {
        section.warn("head", "is less than 8KiB: a browser with several logins sends more");
    }
    if fields.is_some_and(|fields| fields < BROWSERS_FIELDS) {
        section.warn("fields", "is less than 32: a browser behind a front or two sends more");
    }
    let (in_flight, waiting) = (section.number("in_flight", 1..=MAX_COUNT), section.number("waiting", 0..=MAX_COUNT));
    let connections = section.number("connections", 1..=MAX_COUNT);
    section.finish();
    let head = HeadLimits { length: head?, fields: fields? };
    let proxy = ProxyLimits { target: target?, body: body?.get(), in_flight: in_flight?, waiting: waiting? };
    Some((proxy, head, body_rate?, connections?))
}

/// How long our own calls to a DataHUB may take.
#[derive(Debug, Clone, Copy)]
struct BackChannelTimeouts {
    /// A connection, TLS included.
    connect: Duration,
    /// One that can be made again.
    back_channel: Duration,
    /// The answer of the token endpoint.
    token: Duration,
}

/// For a forwarded call, for the browser, for our own calls.
fn timeouts(mut section: Section<'_>) -> Option<(UpstreamTimeouts, ClientTimeouts, BackChannelTimeouts)> {
    let [request_head, request_body, connect, first_byte, idle, back_channel, token] =
        ["request_head", "request_body", "connect", "first_byte", "idle", "back_channel", "token"]
            .map(|key| section.duration_from(key, MIN_TIMEOUT));
    section.finish();
    let upstream = UpstreamTimeouts { connect: connect?, first_byte: first_byte?, idle: idle? };
    let client = ClientTimeouts { head: request_head?, body: request_body?, answer: upstream.idle };
    let own = BackChannelTimeouts { connect: upstream.connect, back_channel: back_channel?, token: token? };
    Some((upstream, client, own))
}

/// How often one client may begin a login, end one, and call without one.
fn rates(mut section: Section<'_>) -> Option<[Rate; 3]> {
    let [login, callback, anonymous] = ["login", "callback", "anonymous"].map(|key| section.required(key));
    section.finish();
    Some([login?, callback?, anonymous?])
}

fn log(mut section: Section<'_>) -> Option<(Format, log::LevelFilter)> {
    let (format, level) = (section.required("format"), section.required::<String>("level"));
    let what = "must be off, error, warn, info, debug or trace";
    let level = level.and_then(|text| text.parse().map_err(|_| section.record_error::<()>("level", what)).ok());
    section.finish();
    Some((format?, level?))
}

/// The text of a file that should be nobody else's to read.
fn secret_file(path: &Path, key: &str, section: &Section<'_>) -> Option<String> {
    match file::read_text(path) {
        Ok((text, metadata)) => {
            if let Some(who) = sources::readers(&metadata) {
                section.warn(key, &format!("names a file with secrets that {who} may read or change: chmod 600"));
            }
            Some(text)
        }
        Err(error) => section.record_error(key, format!("cannot be read: {error}")),
    }
}

/// `localhost`, what is below `.localhost`, `127.0.0.0/8` and `[::1]`.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS)
}

/// In less, people cannot type a password.
const MIN_LOGIN_TIMEOUT: Duration = Duration::from_mins(1);
/// In more, whoever leaves a machine leaves a login that somebody else may end.
const MAX_LOGIN_TIMEOUT: Duration = Duration::from_hours(1);

/// Nobody has more calls at once.
const MAX_COUNT: usize = 1_000_000;
/// What actix-server can count.
const MAX_WORKERS: usize = 512;
/// With a longer one little room is left in a request's target.
const MAX_BASE_PATH_BYTES: usize = 200;
/// The times of sessions are whole seconds.
const MIN_SESSION: Duration = Duration::from_secs(1);
/// In less, nothing crosses a network.
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
/// What a plain client sends, with a cookie and the proof that it is no foreign page.
const MIN_FIELDS: usize = 8;
/// What browsers send to begin and end a login, behind fronts that add fields, with cookies of several DataHUBs.
const BROWSERS_FIELDS: usize = 32;
const BROWSERS_HEAD: usize = 8 << 10;
/// What sets `admin.listen` without a file.
const ADMIN_VARIABLE: &str = "GATEWAY__ADMIN__LISTEN";
