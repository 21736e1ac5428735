//! Reads the command line and the configuration, binds, and runs until SIGTERM.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::http::header::{COOKIE, HeaderMap, HeaderValue};
use arcmanager_gateway::access_log::{self, chain};
use arcmanager_gateway::admin::Draining;
use arcmanager_gateway::config::Config;
use arcmanager_gateway::datahub::transport::Endpoint;
use arcmanager_gateway::error::ApiError;
use arcmanager_gateway::guard::METHODS;
use arcmanager_gateway::proxy::policy::Policy;
use arcmanager_gateway::proxy::target::Target;
use arcmanager_gateway::reload;
use arcmanager_gateway::seal::{Key, cookie};
use arcmanager_gateway::server::{self, Socket};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
use listenfd::ListenFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A backend-for-frontend gateway for GitLab.
///
/// Logs people in at a GitLab (a DataHUB), seals their tokens into a cookie that no script can read, and forwards the
/// app's API calls with the token attached. Stores nothing.
#[derive(Parser)]
#[command(
    after_help = "Configuration: the built-in defaults, then each FILE in order, then environment variables such as\n\
        GATEWAY__SERVER__PUBLIC_URL (lists separated by commas). Required: session.keys_file or session.keys, and one\n\
        section datahubs.ID with url, client_id and client_secret or client_secret_file.\n\n\
        Exit status: 0 done, 1 failed, 2 wrong command line, 78 wrong configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Read this TOML file; may be given more than once, and a later file wins
    #[arg(long, value_name = "FILE", global = true)]
    config: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM (the default)
    Serve,
    /// Check the configuration, and ask every DataHUB for its metadata and whether it knows our client; connect to the bridge
    Check,
    /// Print a new key for the session cookies
    Key,
    /// Say what is in a Cookie header, read from standard input: for each session its DataHUB, key, user and times
    Inspect,
    /// Say what becomes of a call to a DataHUB, and by which row of docs/policy.md or which key of the section proxy
    Policy {
        /// In capital letters
        #[arg(value_parser = PossibleValuesParser::new(METHODS))]
        method: String,
        /// Path and query at the DataHUB, such as /api/v4/projects?page=2
        #[arg(value_parser = request_target)]
        target: String,
    },
    /// Ask a running gateway's /healthz, as a container without a shell must
    Health,
}

fn main() -> ExitCode {
    let Arguments { command, config: files } = Arguments::parse();
    match command {
        Some(Command::Key) => return done(writeln!(io::stdout(), "{}", *Key::generate())),
        Some(Command::Policy { method, target }) => {
            return match Config::load_policy(&files) {
                Ok(policy) => done(judge(&method, &target, &policy)),
                Err(errors) => misconfigured(&errors),
            };
        }
        _ => {}
    }
    let config = match Config::load(&files) {
        Ok(config) => Arc::new(config),
        Err(errors) => return misconfigured(&errors),
    };
    match command.unwrap_or(Command::Serve) {
        Command::Serve => {
            access_log::start(config.log.0, config.log.1);
            for warning in &config.warnings {
                log::warn!("{warning}");
            }
            let outcome = done(actix_web::rt::System::new().block_on(serve(config, files)));
            access_log::flush(LOG_FLUSH);
            outcome
        }
        Command::Check => done(actix_web::rt::System::new().block_on(check(&config))),
        Command::Inspect => done(inspect(&config)),
        Command::Health => done(health(&config)),
        Command::Key | Command::Policy { .. } => unreachable!("answered above, since they need no whole configuration"),
    }
}

/// Serves until SIGTERM or SIGINT, then lets calls under way finish, then tasks: in twice `server.shutdown_timeout` at most.
async fn serve(config: Arc<Config>, files: Vec<PathBuf>) -> io::Result<()> {
    actix_web::rt::spawn(reload::watch(Arc::clone(&config), files)?);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sockets, are_passed) = sockets(&config.server.listen)?;
    let places: Vec<_> = sockets.iter().map(Socket::address).collect();
    let draining = Draining::default();
    let admin = match &config.admin {
        Some(endpoint) => {
            let socket = Socket::bind(endpoint).map_err(|error| named(&error, "admin.listen"))?;
            log::info!(listen = socket.address(); "operators may ask");
            Some(server::admin_server(socket, &draining)?)
        }
        None => None,
    };
    let admin_handle = admin.as_ref().map(actix_web::dev::Server::handle);
    let admin = admin.map(actix_web::rt::spawn);

    let (server, tasks) = server::gateway(&config, sockets, &draining, |_| {})?;
    let handle = server.handle();
    let (end, ended) = oneshot::channel();
    let tasks = actix_web::rt::spawn(tasks.run(async { ended.await.unwrap_or_else(|_| Instant::now()) }));
    let server = actix_web::rt::spawn(server);
    log::info!(listen = places.join(" "), public_url = config.server.public_url.as_str(); "serving");

    let is_graceful = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => false,
    };
    log::info!("ending");
    let deadline = Instant::now() + config.server.shutdown_timeout * 2;
    draining.begin();
    if is_graceful {
        if are_passed {
            // Others listen there as well: they take what comes from now on.
            handle.pause().await;
        }
        draining.wait_for_connections().await;
    }
    draining.close_idle();
    handle.stop(is_graceful).await;
    server.await.map_err(io::Error::other)??;
    // Refreshes, logins and revocations that were begun are finished: GitLab has taken the old tokens already, or is about
    // to.
    let _ = end.send(deadline);
    tasks.await.map_err(io::Error::other)?;
    if let (Some(handle), Some(admin)) = (admin_handle, admin) {
        handle.stop(false).await;
        admin.await.map_err(io::Error::other)??;
    }
    log::info!("ended");
    Ok(())
}

/// The sockets that systemd passes, or else those of the configuration; and whether they were passed.
fn sockets(listen: &[Endpoint]) -> io::Result<(Vec<Socket>, bool)> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for at in 0..passed.len() {
        // Each is one or the other; asking for the wrong kind leaves it as it is.
        let tcp = passed.take_tcp_listener(at).ok().flatten().map(Socket::Tcp);
        let socket = match tcp {
            Some(socket) => Some(socket),
            None => passed.take_unix_listener(at)?.map(Socket::Unix),
        };
        sockets.extend(socket);
    }
    let are_passed = !sockets.is_empty();
    if !are_passed {
        for endpoint in listen {
            sockets.push(Socket::bind(endpoint).map_err(|error| named(&error, "server.listen"))?);
        }
    }
    if sockets.is_empty() {
        return Err(io::Error::other("server.listen is empty and systemd passed no socket"));
    }
    Ok((sockets, are_passed))
}

fn named(error: &io::Error, key: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{key}: {error}"))
}

/// A line for each DataHUB, and one for the old backend if there is one.
async fn check(config: &Config) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "configuration: good")?;
    for warning in &config.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    let mut failed = 0;
    for datahub in config.datahubs.iter() {
        match datahub.provider.check().await {
            Ok(()) => writeln!(out, "{}: good", datahub.id)?,
            Err(error) => {
                failed += 1;
                writeln!(out, "{}: {}", datahub.id, chain(&error))?;
            }
        }
    }
    if let Some(bridge) = &config.bridge {
        match bridge.address.connect(config.proxy.timeouts.connect).await {
            Ok(_) => writeln!(out, "bridge: good")?,
            Err(error) => {
                failed += 1;
                writeln!(out, "bridge: the old backend cannot be reached at bridge.url: {}", chain(&error))?;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(io::Error::other(format!("{failed} of them did not answer as they should"))) }
}

/// A line for each DataHUB whose cookies are in the Cookie header on standard input. Never shows a token.
fn inspect(config: &Config) -> io::Result<()> {
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

/// Says whether a call is forwarded, and why: if not, first the answer that the app gets.
fn judge(method: &str, target: &str, policy: &Policy) -> io::Result<()> {
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

/// Asks `/healthz`.
fn health(config: &Config) -> io::Result<()> {
    let limit = Some(Duration::from_secs(3));
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = Vec::new();
    match config.admin.as_ref().ok_or_else(|| io::Error::other("admin.listen is none"))? {
        Endpoint::Tcp(address) => {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(limit)?;
            stream.write_all(request)?;
            stream.read_to_end(&mut answer)?;
        }
        Endpoint::Unix(path) => {
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(limit)?;
            stream.write_all(request)?;
            stream.read_to_end(&mut answer)?;
        }
    }
    if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(io::Error::other("not healthy")) }
}

fn misconfigured(errors: &impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{errors}");
    ExitCode::from(EX_CONFIG)
}

fn done(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// How much of a Cookie header is read; browsers send far less.
const MAX_INPUT_BYTES: u64 = 1 << 20;
/// How long the end waits for the log's reader.
const LOG_FLUSH: Duration = Duration::from_secs(2);
/// A wrong configuration (BSD sysexits(3)).
const EX_CONFIG: u8 = 78;
