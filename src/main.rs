//! Serves until SIGTERM, or does what else the command line says.

mod cli;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix_web::rt::System;
use arcmanager_gateway::access_log;
use arcmanager_gateway::admin::Draining;
use arcmanager_gateway::config::Config;
use arcmanager_gateway::datahub::transport::Endpoint;
use arcmanager_gateway::metrics;
use arcmanager_gateway::reload;
use arcmanager_gateway::server::{self, Socket};
use clap::Parser;
use listenfd::ListenFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::cli::check::{check, too_few_files};
use crate::cli::{Arguments, Command, bind_error};

fn main() -> ExitCode {
    let Arguments { command, config: files } = Arguments::parse();
    match command {
        Some(Command::Key) => return done(cli::key()),
        Some(Command::Man { folder }) => return done(cli::man(&folder)),
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
            access_log::start(config.log.0, config.log.1);
            for warning in &config.warnings {
                log::warn!("{warning}");
            }
            let outcome = done(System::new().block_on(serve(config, files)));
            access_log::flush(LOG_FLUSH);
            outcome
        }
        Command::Check { against } => {
            System::new().block_on(check(&config, &against)).unwrap_or_else(|error| failed(&error))
        }
        Command::Inspect => done(cli::inspect(&config)),
        Command::Health => done(System::new().block_on(cli::health(&config))),
        Command::Key | Command::Man { .. } | Command::Policy { .. } => {
            unreachable!("answered above, since they need no whole configuration")
        }
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
            let socket = Socket::bind(endpoint).map_err(|error| bind_error("admin.listen", endpoint, &error))?;
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
    let public_url = config.server.public_url.as_str();
    log::info!(listen = places.join(" "), public_url, version = metrics::VERSION, revision = metrics::REVISION; "serving");

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
            sockets.push(Socket::bind(endpoint).map_err(|error| bind_error("server.listen", endpoint, &error))?);
        }
    }
    if sockets.is_empty() {
        return Err(io::Error::other("server.listen is empty and systemd passed no socket"));
    }
    Ok((sockets, are_passed))
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

/// How long the end waits for the log's reader.
const LOG_FLUSH: Duration = Duration::from_secs(2);
