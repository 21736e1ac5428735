//! The test DataHUB as a program, for demonstrations and load tests.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use datahub::behaviour::{Behaviour, RefreshMode};
use datahub::{DataHub, Options};
use tokio::signal::unix::{SignalKind, signal};

/// A test DataHUB: answers as GitLab does, and asks nobody for a password.
///
/// It listens, logs people in, renews and revokes tokens, and serves the API. Delays, errors, blocked people, tokens without a
/// refresh token and all other trouble are for tests, which change the library's `Behaviour`.
///
/// The client's secret is read from the variable DATAHUB_CLIENT_SECRET, so that `ps` does not show it.
#[derive(Parser)]
struct Arguments {
    /// Shown on its pages, such as "DataHUB Tübingen"
    #[arg(long, default_value = "Test DataHUB")]
    name: String,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Base of all its addresses, if not where it listens
    #[arg(long)]
    public_url: Option<String>,
    /// The client that may log people in
    #[arg(long)]
    client_id: String,
    /// Where people may be sent back to; repeatable; without it, every address on this machine
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// How long access tokens live, in seconds
    #[arg(long, default_value_t = 7200)]
    token_lifetime: u64,
    /// How many more people may sign in: person1 and so on
    #[arg(long, default_value_t = 0)]
    people: u64,
    /// When a refresh revokes the old tokens
    #[arg(long, value_enum, default_value = "revoke-at-once")]
    refresh_mode: Mode,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// As GitLab does
    RevokeAtOnce,
    /// At the first use of the new access token
    RevokeOnUse,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok(client_secret) = std::env::var("DATAHUB_CLIENT_SECRET") else {
        eprintln!("datahub: DATAHUB_CLIENT_SECRET is not set");
        return ExitCode::from(2);
    };
    match run(arguments, client_secret) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("datahub: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments, client_secret: String) -> std::io::Result<()> {
    let name = arguments.name.clone();
    let hub = DataHub::start(Options {
        listen: arguments.listen,
        name: arguments.name,
        public_url: arguments.public_url,
        client_id: arguments.client_id,
        client_secret,
        redirect_uris: arguments.redirect_uris,
        keep_requests: 0,
        behaviour: Behaviour {
            token_lifetime: Duration::from_secs(arguments.token_lifetime),
            refresh: match arguments.refresh_mode {
                Mode::RevokeAtOnce => RefreshMode::RevokeAtOnce,
                Mode::RevokeOnUse => RefreshMode::RevokeOnUse,
            },
            ..Behaviour::default()
        },
    })?;
    hub.add_people(arguments.people);
    println!("{name} is up at {}", hub.url());

    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        Ok(())
    })
}
