//! `check`: whether the gateway would work, a line each, with what to do where it would not.
//!
//! Nothing is started, and nothing is left behind or taken away: it may run beside a gateway that serves.

use std::error::Error as _;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use arcmanager_gateway::access_log::{self, chain};
use arcmanager_gateway::admin::ask;
use arcmanager_gateway::config::Config;
use arcmanager_gateway::datahub::DataHub;
use arcmanager_gateway::datahub::oidc::error::CheckError;
use arcmanager_gateway::datahub::transport::Endpoint;
use arcmanager_gateway::server::socket::trial::Trial;
use futures_util::future::{join, join_all};
use rustix::process::{Resource, getrlimit};
use url::Url;

use crate::cli::EX_CONFIG;

/// Checks everything; and the keys against those of running gateways.
pub(crate) async fn check(config: &Config, against: &[MetricsUrl]) -> io::Result<ExitCode> {
    let mut report = Report::default();
    say("configuration: good")?;
    for warning in &config.warnings {
        warn(warning)?;
    }
    if std::env::var_os("RUST_LOG").is_some_and(|filter| !filter.is_empty()) {
        say("log: the variable RUST_LOG is set and wins over log.level")?;
    }
    if let Some(warning) = access_log::filter_warning() {
        warn(warning)?;
    }
    check_keys(config, against, &mut report)?;
    check_sockets(config, &mut report)?;
    check_descriptors(config, &mut report)?;
    // All at once: one that is silent makes nobody wait for the others.
    let asked = join_all(config.datahubs.iter().map(ask_datahub));
    let connected = async {
        let limit = config.proxy.timeouts.connect;
        Some(config.bridge.as_ref()?.address.connect(limit).await)
    };
    let (asked, connected) = join(asked, connected).await;
    for (datahub, (outcome, clock_offset)) in config.datahubs.iter().zip(asked) {
        check_datahub(datahub, outcome, clock_offset, &mut report)?;
    }
    if let Some(connected) = connected {
        match connected {
            Ok(_) => say("bridge: good")?,
            Err(error) => {
                let cause = error.source().map(|cause| format!(" ({})", chain(cause))).unwrap_or_default();
                report.away(format!(
                    "bridge: the old backend cannot be reached: see that it runs, and at bridge.url{cause}"
                ))?;
            }
        }
    }
    describe_front(config)?;
    report.end()
}

/// What has been found so far.
#[derive(Debug, Default)]
struct Report {
    /// How many are away, which may pass.
    away: usize,
    /// How many will not work until somebody changes them.
    wrong: usize,
}

impl Report {
    fn away(&mut self, line: impl Display) -> io::Result<()> {
        self.away += 1;
        say(line)
    }

    fn wrong(&mut self, line: impl Display) -> io::Result<()> {
        self.wrong += 1;
        say(line)
    }

    fn end(self) -> io::Result<ExitCode> {
        let mut errors = io::stderr();
        if self.away > 0 {
            writeln!(errors, "{} of them did not answer as they should", self.away)?;
        }
        if self.wrong > 0 {
            writeln!(errors, "{} of them will not work", self.wrong)?;
        }
        Ok(match self {
            Self { away: 0, wrong: 0 } => ExitCode::SUCCESS,
            Self { wrong: 0, .. } => ExitCode::FAILURE,
            _ => ExitCode::from(EX_CONFIG),
        })
    }
}

/// A line for whoever reads it. One who has read enough, such as `head`, does not change what comes of it.
fn say(line: impl Display) -> io::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

fn warn(line: impl Display) -> io::Result<()> {
    say(format!("warning: {line}"))
}

fn check_keys(config: &Config, against: &[MetricsUrl], report: &mut Report) -> io::Result<()> {
    let ours: Vec<_> = config.keyring.ids().iter().map(ToString::to_string).collect();
    let (first, others) = ours.split_first().expect("a ring holds a key");
    match others {
        [] => say(format!("keys: {first} seals"))?,
        others => say(format!("keys: {first} seals, {} unseal too", others.join(" ")))?,
    }
    for url in against {
        let told = match ask::get(url.endpoint.clone(), &url.path) {
            Ok(answer) => theirs(&answer).map(|theirs| differences(&ours, &theirs)),
            Err(error) => Err(format!("no answer ({error}): see that it runs, and that this is its admin.listen")),
        };
        match told {
            Ok(told) if told.is_empty() => say(format!("keys at {url}: the same"))?,
            Ok(told) => {
                let what = "give every process the same session.keys_file";
                report.away(format!("keys at {url}: {}; {what}", told.join(", ")))?;
            }
            Err(what) => report.away(format!("keys at {url}: {what}"))?,
        }
    }
    Ok(())
}

/// The keys of a running gateway by the answer of its `/metrics`: the id of each, and whether it seals.
fn theirs(answer: &[u8]) -> Result<Vec<(String, bool)>, String> {
    let text = String::from_utf8_lossy(answer);
    match text.lines().next().and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)) {
        Some("200") => {}
        Some(status) if status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(format!("answered with {status}: see that this is admin.listen of a gateway"));
        }
        _ => return Err("what answers there speaks no HTTP: see that this is admin.listen of a gateway".to_owned()),
    }
    let label = |labels: &str, name: &str| {
        let (_, rest) = labels.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let keys = text.lines().filter_map(|line| line.strip_prefix("gateway_key_info{")).filter_map(|labels| {
        let is_id = |text: &String| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        Some((label(labels, "key").filter(is_id)?, label(labels, "role")? == "seal"))
    });
    let keys: Vec<_> = keys.collect();
    if keys.is_empty() { Err("shows no keys: see that this is admin.listen of a gateway".to_owned()) } else { Ok(keys) }
}

/// What a running gateway's keys differ in from ours, of which the first seals.
fn differences(ours: &[String], theirs: &[(String, bool)]) -> Vec<String> {
    let missing = ours.iter().filter(|id| !theirs.iter().any(|(other, _)| other == *id));
    let more = theirs.iter().filter(|(id, _)| !ours.contains(id));
    let seals = theirs.iter().find(|(id, seals)| *seals && ours.first() != Some(id));
    let told = missing.map(|id| format!("{id} is here and not there"));
    let told = told.chain(more.map(|(id, _)| format!("{id} is there and not here")));
    told.chain(seals.map(|(id, _)| format!("{id} seals there"))).collect()
}

fn check_sockets(config: &Config, report: &mut Report) -> io::Result<()> {
    let listen = config.server.listen.iter().map(|endpoint| ("server.listen", endpoint));
    let mut trial = Trial::new(&config.server);
    for (key, endpoint) in listen.chain(config.admin.iter().map(|endpoint| ("admin.listen", endpoint))) {
        let name = format!("{key} {endpoint}");
        match trial.listen(key, endpoint) {
            Ok(what) => say(format!("{name}: {what}"))?,
            Err(error) => match error.kind() {
                Some(io::ErrorKind::AddrInUse) => {
                    let what =
                        "in use, as it should be if a gateway runs here; else `ss -ltnp` or `ss -lxp` says by what";
                    say(format!("{name}: {what}"))?;
                }
                // Whoever checks need not be the user who serves.
                Some(io::ErrorKind::PermissionDenied) => warn(error)?,
                // systemd makes the folders of a service there when it starts it.
                Some(io::ErrorKind::NotFound) if endpoint.to_string().starts_with("unix:/run/") => {
                    let what = "its folder is not there: systemd makes it at the start (RuntimeDirectory=), or make it";
                    warn(format!("{name}: {what}"))?;
                }
                _ if error.is_lasting() => report.wrong(error)?,
                _ => report.away(error)?,
            },
        }
    }
    if config.server.listen.is_empty() {
        warn("server.listen: empty: only sockets that systemd passes are served")?;
    }
    Ok(())
}

/// What is wrong if so few files may be open that the workers could not even start.
pub(crate) fn too_few_files(config: &Config) -> Option<String> {
    let (most, needed) = (max_open_files(), own_descriptors(config));
    (most < needed).then(|| format!("open files: {most}, and {needed} are needed to start: {RAISE_FILES}"))
}

/// How many files and sockets are open when nobody calls, at most.
fn own_descriptors(config: &Config) -> u64 {
    OWN_DESCRIPTORS + DESCRIPTORS_PER_WORKER * config.server.workers as u64
}

/// How many files and sockets the process may have open. It takes all that it may when it starts.
fn max_open_files() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// Compares how many files may be open with how many connections there may be.
fn check_descriptors(config: &Config, report: &mut Report) -> io::Result<()> {
    let most = max_open_files();
    let far_ends = config.datahubs.iter().count() + usize::from(config.bridge.is_some());
    // Browsers' connections, and those to the far ends: each kept for the next call, as many as ever were in use at once.
    let upstream = config.connections.max(config.proxy.limits.in_flight * far_ends);
    let needed = own_descriptors(config) + (config.connections + upstream) as u64;
    if let Some(error) = too_few_files(config) {
        report.wrong(error)
    } else if most < needed {
        let what = format!("{most} here, and limits.connections and limits.in_flight need {needed}");
        warn(format!("open files: {what}: {RAISE_FILES} (the limit of a service is its unit's, not this one)"))
    } else {
        say(format!("open files: {most}, enough for limits.connections and limits.in_flight"))
    }
}

/// Whether it is there and knows us, and by how many seconds its clock is ahead, if that could be heard.
async fn ask_datahub(datahub: &Arc<DataHub>) -> (Result<(), CheckError>, Option<i64>) {
    (datahub.provider.check().await, datahub.provider.clock_offset().await)
}

fn check_datahub(
    datahub: &DataHub,
    outcome: Result<(), CheckError>,
    clock_offset: Option<i64>,
    report: &mut Report,
) -> io::Result<()> {
    let (id, provider) = (&datahub.id, &datahub.provider);
    match outcome {
        Ok(()) => {
            let through = datahub.address.proxy().map_or_else(String::new, |proxy| format!(", through {proxy}"));
            say(format!("{id}: good{through}"))?;
        }
        Err(error) if error.is_ours() => report.wrong(format!("{id}: {}", chain(&error)))?,
        Err(error) => report.away(format!("{id}: {}", chain(&error)))?,
    }
    if let Some(offset) = clock_offset {
        let (seconds, way) = (offset.unsigned_abs(), if offset > 0 { "ahead of" } else { "behind" });
        let line =
            format!("{id}: its clock is {seconds} s {way} this machine's: see that both follow NTP (`timedatectl`)");
        if seconds > MAX_CLOCK_OFFSET {
            report.wrong(format!("{line}; no login works like this"))?;
        } else if seconds > GOOD_CLOCK_OFFSET {
            warn(line)?;
        }
    }
    say(format!("{id}: its application there must have the redirect URI {}", provider.redirect_uri()))
}

/// What a server in front must do, and where people land.
fn describe_front(config: &Config) -> io::Result<()> {
    let (server, app) = (&config.server, &config.app);
    let is_tcp = server.listen.iter().any(|endpoint| matches!(endpoint, Endpoint::Tcp(_)));
    if is_tcp && server.trusted_proxies.is_empty() {
        say(
            "front: behind one over TCP without server.trusted_proxies all people share one login limit: name its address there, \
             or let it come by a unix socket",
        )?;
    }
    let host = server.public_url.split_once("://").map_or(server.public_url.as_str(), |(_, host)| host);
    say(format!("front: Host must arrive as {host} (nginx: proxy_set_header Host $http_host;)"))?;
    let proxies = server.trusted_proxies.iter().map(|network| format!(", {network}")).collect::<String>();
    say(format!(
        "front: X-Forwarded-For must be the client's address (nginx: proxy_set_header X-Forwarded-For $remote_addr;); it is \
         believed from unix sockets{proxies} alone"
    ))?;
    let url = if app.url.starts_with('/') { format!("{}{}", server.public_url, app.url) } else { app.url.clone() };
    let by = if app.files.is_some() { "app.dir" } else { "something in front of the gateway" };
    say(format!("app: people land at {url}, which {by} must serve"))
}

/// Where the metrics of a running gateway are.
#[derive(Debug, Clone)]
pub(crate) struct MetricsUrl {
    text: String,
    endpoint: Endpoint,
    path: String,
}

impl FromStr for MetricsUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let what = "must be http://HOST:PORT or unix:/PATH, as admin.listen of the running gateway is";
        let (endpoint, path) = if text.starts_with("unix:") {
            (text.parse().map_err(|_| what)?, "/metrics".to_owned())
        } else {
            let url = Url::parse(text).map_err(|_| what)?;
            let is_plain = url.scheme() == "http" && url.username().is_empty() && url.password().is_none();
            let address = url.host_str().filter(|_| is_plain).zip(url.port_or_known_default()).ok_or(what)?;
            let path = if url.path() == "/" { "/metrics" } else { url.path() };
            (Endpoint::Tcp(format!("{}:{}", address.0, address.1)), path.to_owned())
        };
        Ok(Self { text: text.to_owned(), endpoint, path })
    }
}

impl Display for MetricsUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

const RAISE_FILES: &str = "raise LimitNOFILE= of the unit, or `ulimit -n`";
/// The log, the operators' listener, files that are read anew, our own calls to DataHUBs.
const OWN_DESCRIPTORS: u64 = 64;
/// Its epoll, what wakes it, and a signal's pipe.
const DESCRIPTORS_PER_WORKER: u64 = 4;
/// More than a network and a whole second make, in seconds.
const GOOD_CLOCK_OFFSET: u64 = 30;
/// With more, ID tokens are of another time, in seconds.
const MAX_CLOCK_OFFSET: u64 = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_two_gateways_are_told_apart_by_id_and_by_which_seals() {
        let ours = ["aaaaaaaa", "bbbbbbbb"].map(str::to_owned);
        let compared = |lines: &str| {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n# HELP\n{lines}# EOF\n");
            theirs(answer.as_bytes()).map(|theirs| differences(&ours, &theirs).join(", "))
        };
        let key = |id: &str, role: &str| format!("gateway_key_info{{key=\"{id}\",role=\"{role}\"}} 1\n");
        let [a, b] = [key("aaaaaaaa", "seal"), key("bbbbbbbb", "unseal")];
        assert_eq!(compared(&format!("{b}{a}")).as_deref(), Ok(""));
        let turned = key("aaaaaaaa", "unseal") + &key("bbbbbbbb", "seal");
        assert_eq!(compared(&turned).as_deref(), Ok("bbbbbbbb seals there"));
        assert_eq!(compared(&a).as_deref(), Ok("bbbbbbbb is here and not there"));
        let other = key("cccccccc", "seal");
        let told = "aaaaaaaa is here and not there, bbbbbbbb is here and not there, cccccccc is there and not here, cccccccc \
                    seals there";
        assert_eq!(compared(&other).as_deref(), Ok(told));
        assert!(compared("").is_err() && compared(&key("\u{1b}[31m", "seal")).is_err());
        assert!(theirs(b"HTTP/1.1 404 Not Found\r\n\r\n").is_err_and(|what| what.contains("404")));
        assert!(theirs(b"SSH-2.0-OpenSSH\r\n").is_err() && theirs(b"").is_err());
    }
}
