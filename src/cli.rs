//! The command line, and what it can be asked for beside serving.

pub(crate) mod check;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

use actix_web::http::header::{COOKIE, HeaderMap, HeaderValue};
use arcmanager_gateway::auth;
use arcmanager_gateway::config::Config;
use arcmanager_gateway::docs::document::{Description, document};
use arcmanager_gateway::error::ApiError;
use arcmanager_gateway::guard::METHODS;
use arcmanager_gateway::metrics;
use arcmanager_gateway::proxy::policy::Policy;
use arcmanager_gateway::proxy::target::Target;
use arcmanager_gateway::seal::{Key, cookie};
use clap::builder::PossibleValuesParser;
use clap::{CommandFactory, Parser, Subcommand};

use crate::cli::check::MetricsUrl;

/// A backend-for-frontend gateway for GitLab.
///
/// Logs people in at a GitLab (a DataHUB), seals their tokens into a cookie that no script can read, and forwards the
/// app's API calls with the token attached. Stores nothing.
#[derive(Parser)]
#[command(
    version = version(),
    after_help = "Configuration: the built-in defaults, then each FILE in order, then environment variables such as\n\
        GATEWAY__SERVER__PUBLIC_URL (lists separated by commas). Required: session.keys_file or session.keys, and one\n\
        section datahubs.ID with url, client_id and client_secret or client_secret_file.\n\n\
        Exit status: 0 done, 1 failed, 2 wrong command line, 78 wrong configuration."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Read this TOML file; may be given more than once, and a later file wins
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Vec<PathBuf>,
}

/// The version and the commit, as the metric `gateway_build_info` and the first line of the log have them.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| format!("{} (commit {})", metrics::VERSION, metrics::REVISION));
    &VERSION
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve until SIGTERM (the default)
    ///
    /// Finishes calls under way, then refreshes, logins and revocations, in twice `server.shutdown_timeout`. SIGHUP reads keys and
    /// cut-offs anew, SIGINT ends at once.
    Serve,
    /// Say whether it would work: configuration, keys, files, sockets, every DataHUB, clocks; a line each, with what to do
    ///
    /// Starts nothing, changes nothing, leaves nothing behind, and may run beside a gateway that serves. Each DataHUB is asked for
    /// its metadata and, by a code that nobody has, whether it knows our client.
    #[command(after_help = "Example: arcmanager-gateway check --config /etc/arcmanager-gateway/gateway.toml\n\n\
            Exit status: 0 good, 1 something is away (a DataHUB that does not answer), 78 it will not work as it is.")]
    Check {
        /// Compare the keys with those of a running gateway, by its admin.listen: `http://HOST:PORT` or `unix:/PATH`; may be given more
        /// than once
        #[arg(long, value_name = "URL")]
        against: Vec<MetricsUrl>,
    },
    /// Print a new key for the session cookies, and its id on standard error
    ///
    /// Standard output is one line for `session.keys_file`. Make one key and take that line to every machine: each process must show
    /// the same ids (`gateway_key_info`, `check --against`).
    #[command(after_help = "Example: (umask 077; arcmanager-gateway key > new-key)\n\n\
            docs/operate.md, \"Keys\", has the commands that take it to every machine without anybody noticing.")]
    Key,
    /// Say what is in a Cookie header, read from standard input: for each session its DataHUB, key, user and times
    ///
    /// Never shows a token. Exit status 1 if no session in it opens.
    #[command(after_help = "Example: arcmanager-gateway inspect --config gateway.toml < cookie.txt")]
    Inspect,
    /// Say what becomes of a call to a DataHUB, and by which row of docs/policy.md or which key of the section proxy
    ///
    /// Reads that section of the configuration and no other. Exit status 0 whether the call is forwarded or not.
    #[command(after_help = "Example: arcmanager-gateway policy GET /api/v4/projects")]
    Policy {
        /// In capital letters
        #[arg(value_parser = PossibleValuesParser::new(METHODS))]
        method: String,
        /// Path and query at the DataHUB, such as /api/v4/projects?page=2
        #[arg(value_parser = request_target)]
        target: String,
    },
    /// Print the API's document, OpenAPI 3.1, as a gateway serves it at /openapi.json below its base path
    ///
    /// Reads the sections server and limits of the configuration and no other; needs none.
    #[command(after_help = "Example: arcmanager-gateway openapi > openapi.json")]
    Openapi,
    /// Ask a running gateway's /healthz, as a container without a shell must
    ///
    /// Goes to admin.listen of the configuration.
    #[command(after_help = "Example: arcmanager-gateway health --config gateway.toml\n\n\
            Exit status: 0 healthy, 1 not, or nobody answers, 78 admin.listen cannot be read.")]
    Health,
    /// Write the pages of the manual into a folder, for a package
    #[command(hide = true)]
    Man {
        /// It must be there
        folder: PathBuf,
    },
}

/// Writes the manual's pages, a file for each command.
pub(crate) fn man(folder: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Arguments::command(), folder)
}

/// Prints a new key; its id apart from it, so that a file of keys gets lines of keys only.
pub(crate) fn key() -> io::Result<()> {
    let text = Key::generate();
    let key: Key = text.parse().expect("what is generated is a key");
    writeln!(io::stdout(), "{}", *text)?;
    writeln!(io::stderr(), "key id: {}", key.id())
}

/// A line for each DataHUB whose cookies are in the Cookie header on standard input. Never shows a token.
pub(crate) fn inspect(config: &Config) -> io::Result<()> {
    let mut text = String::new();
    io::stdin().take(MAX_INPUT_BYTES).read_to_string(&mut text)?;
    let mut headers = HeaderMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let is_named = line.get(..7).is_some_and(|name| name.eq_ignore_ascii_case("cookie:"));
        let value = if is_named { line[7..].trim_start() } else { line };
        let value = HeaderValue::from_str(value).map_err(|_| io::Error::other("this is no Cookie header"))?;
        headers.append(COOKIE, value);
    }

    let (sessions, now, mut out) = (config.sessions(), SystemTime::now(), io::stdout());
    let mut opened = 0;
    for datahub in config.datahubs.iter().filter(|datahub| sessions.has_cookies(cookie::fields(&headers), datahub)) {
        let (key, session) = match sessions.inspect(cookie::fields(&headers), datahub) {
            Ok(inspected) => inspected,
            Err(reason) => {
                writeln!(out, "{}: {reason}", datahub.id)?;
                continue;
            }
        };
        opened += 1;
        let time = humantime::format_rfc3339_seconds;
        let ended = if sessions.has_ended(&session, datahub, now) { ", has ended" } else { "" };
        let (began, expires, ends) =
            (time(session.created_at()), time(session.token_expires_at()), time(session.ends_at()));
        writeln!(
            out,
            "{}: key {key}, user {}, began {began}, token expires {expires}, session ends {ends}{ended}",
            datahub.id,
            session.decode().user.id
        )?;
    }
    if opened == 0 { Err(io::Error::other("no session in it opens")) } else { Ok(()) }
}

/// Prints the API's document.
pub(crate) fn openapi(description: &Description) -> io::Result<()> {
    let document = document(description, auth::schemas()).to_pretty_json()?;
    writeln!(io::stdout(), "{document}")
}

/// Says whether a call is forwarded, and why: if not, first the answer that the app gets.
pub(crate) fn judge(method: &str, target: &str, policy: &Policy) -> io::Result<()> {
    match Target::judge(method, target, policy) {
        Ok(ground) => writeln!(io::stdout(), "forwarded: {ground}"),
        Err(refusal) => {
            let answer = ApiError::from(refusal);
            writeln!(io::stdout(), "{} {}: {refusal}", answer.status().as_u16(), answer.code().as_str())
        }
    }
}

/// What a request's first line can hold as its target.
fn request_target(text: &str) -> Result<String, &'static str> {
    let is_good = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if is_good { Ok(text.to_owned()) } else { Err("must be a path such as /api/v4/projects, percent-encoded") }
}

/// How much of a Cookie header is read; browsers send far less.
const MAX_INPUT_BYTES: u64 = 1 << 20;
/// A wrong configuration (BSD sysexits(3)).
pub(crate) const EX_CONFIG: u8 = 78;
