//! Serves until SIGTERM, or does what else the command line says.

mod cli;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::rt::System;
use arcmanager_gateway::access_log;
use arcmanager_gateway::admin::{ProcessHealth, ask, systemd};
use arcmanager_gateway::config::Config;
use arcmanager_gateway::metrics;
use arcmanager_gateway::reload;
use arcmanager_gateway::server;
use arcmanager_gateway::server::socket::{self, Socket, Sockets};
use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::cli::check::{check, too_few_files};
use crate::cli::{Arguments, Command};

fn main() -> ExitCode {
    // A core dump would hold keys and tokens, and so does what a debugger of the same user reads. A limit on the size of core
    // dumps does not keep them from a program that collects them.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        return failed(&io::Error::other(format!("core dumps cannot be switched off: {error}")));
    }
    let Arguments { command, config: files } = Arguments::parse();
    match command {
        Some(Command::Key) => return done(cli::key()),
        Some(Command::Health) => {
            return match Config::load_admin(&files) {
                Ok(Some(endpoint)) => done(ask::health(endpoint)),
                Ok(None) => done(Err(io::Error::other("admin.listen is none: there is nobody to ask"))),
                Err(errors) => misconfigured(&errors),
            };
        }
        Some(Command::Man { folder }) => return done(cli::man(&folder)),
        Some(Command::Openapi) => {
            return match Config::load_description(&files) {
                Ok(description) => done(cli::openapi(&description)),
                Err(errors) => misconfigured(&errors),
            };
        }
        Some(Command::Policy { method, target }) => {
            return match Config::load_policy(&files) {
                Ok(policy) => done(cli::judge(&method, &target, &policy)),
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
            if let Some(error) = too_few_files(&config) {
                return misconfigured(&error);
            }
            // While there is no other thread, since it changes the environment.
            let sockets = match socket::passed().and_then(|passed| Sockets::open(passed, &config)) {
                Ok(sockets) => sockets,
                Err(error) if error.is_lasting() => return misconfigured(&error),
                Err(error) => return done(Err(io::Error::other(error))),
            };
            access_log::start(config.log.0, config.log.1);
            for warning in config.warnings.iter().map(String::as_str).chain(access_log::filter_warning()) {
                log::warn!("{warning}");
            }
            let status = block_on(serve(config, files, sockets)).unwrap_or_else(|error| failed(&error));
            access_log::flush(LOG_FLUSH);
            status
        }
        Command::Check { against } => block_on(check(&config, &against)).unwrap_or_else(|error| failed(&error)),
        Command::Inspect => done(cli::inspect(&config)),
        Command::Key | Command::Man { .. } | Command::Openapi | Command::Policy { .. } | Command::Health => {
            unreachable!("answered above, since they need no whole configuration")
        }
    }
}

/// Runs `work` to its end, and nothing longer: a file or a name that some thread still waits for must not keep the process.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let system = System::new();
    let output = system.block_on(work);
    // Dropped, it would wait for those threads.
    std::mem::forget(system);
    output
}

/// Serves until SIGTERM or SIGINT. After SIGTERM calls under way are finished, then tasks, in twice `server.shutdown_timeout`, or
/// five seconds more than that where it is short; after SIGINT nothing, also if it comes second. A worker that hangs is given
/// up, and then it is a failure: an operator is to see that something was cut off.
async fn serve(config: Arc<Config>, files: Vec<PathBuf>, sockets: Sockets) -> io::Result<ExitCode> {
    let reload = actix_web::rt::spawn(reload::watch(Arc::clone(&config), files)?);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let Sockets { main, are_passed, admin, files: _files } = sockets;
    let places: Vec<_> = main.iter().map(Socket::address).collect();
    let health = ProcessHealth::default();
    let (server, tasks) = server::gateway(&config, main, &health, |_| {})?;
    if let Some(socket) = admin {
        log::info!(listen = socket.address(); "operators may ask");
        actix_web::rt::spawn(server::admin_server(socket, &health)?);
    }

    let handle = server.handle();
    let (end, ended) = oneshot::channel();
    let tasks = actix_web::rt::spawn(tasks.run(async { ended.await.unwrap_or_else(|_| Instant::now()) }));
    let server = actix_web::rt::spawn(server);
    let public_url = config.server.public_url.as_str();
    log::info!(listen = places.join(" "), public_url, version = metrics::VERSION, revision = metrics::REVISION; "serving");
    actix_web::rt::spawn(systemd::watch(health.clone()));

    let is_graceful = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => false,
    };
    log::info!("ending");
    // What it said to systemd now would take back that the process ends.
    reload.abort();
    health.draining.begin();
    systemd::stopping();
    let deadline = Instant::now() + config.server.shutdown_timeout * 2;
    let finish = async {
        let stop = stop(handle, server, are_passed, &health);
        let status = if let Ok(stopped) = timeout(stop_limit(&config), stop).await {
            stopped.map(|()| ExitCode::SUCCESS)?
        } else {
            let (connections, (answered, workers)) = (health.draining.connections(), health.workers.ask().await);
            let hung = workers - answered;
            log::warn!(workers, hung, connections; "workers have not ended in time: they are given up, and what they had under way is cut off");
            ExitCode::FAILURE
        };
        // Refreshes, logins and revocations that were begun are finished: GitLab has taken the old tokens already, or is about
        // to.
        let _ = end.send(deadline);
        tasks.await.map_err(io::Error::other)?;
        io::Result::Ok(status)
    };
    let status = if is_graceful {
        tokio::select! {
            status = finish => status?,
            _ = interrupt.recv() => ExitCode::SUCCESS,
        }
    } else {
        ExitCode::SUCCESS
    };
    log::info!("ended");
    Ok(status)
}

/// Takes nothing new, lets calls under way finish, and ends the workers.
async fn stop(
    handle: ServerHandle,
    server: JoinHandle<io::Result<()>>,
    are_passed: bool,
    health: &ProcessHealth,
) -> io::Result<()> {
    if are_passed {
        // Others listen there as well: they take what comes from now on.
        handle.pause().await;
        // It has been told, and may still hand a connection to a worker, who must not end before.
        tokio::time::sleep(PAUSE_LIMIT).await;
    }
    health.draining.wait_for_connections().await;
    health.draining.close_idle();
    handle.stop(true).await;
    server.await.map_err(io::Error::other)?
}

/// How long [`stop`] may take: it gives up calls after `server.shutdown_timeout`, unless a worker hangs.
fn stop_limit(config: &Config) -> Duration {
    config.server.shutdown_timeout.max(LEAST_SHUTDOWN) + STOP_MARGIN
}

fn misconfigured(errors: &impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{errors}");
    ExitCode::from(cli::EX_CONFIG)
}

fn done(outcome: io::Result<()>) -> ExitCode {
    outcome.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &io::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::FAILURE
}

/// How long the thread that accepts connections may take to hear that it is to accept no more.
const PAUSE_LIMIT: Duration = Duration::from_millis(100);
/// Calls under way have so long even if `server.shutdown_timeout` is less, since that is counted in whole seconds.
const LEAST_SHUTDOWN: Duration = Duration::from_secs(1);
/// What ending takes besides calls under way: a second for whoever is connected and silent, and a second's step of the workers.
const STOP_MARGIN: Duration = Duration::from_secs(3);
/// How long the end waits for the log's reader.
const LOG_FLUSH: Duration = Duration::from_secs(2);
