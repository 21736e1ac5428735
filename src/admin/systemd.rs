//! What systemd is told, if it has started us and wants to know (`sd_notify(3)`).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::admin::ProcessHealth;

/// Says that the process serves once every worker does, and then so often that it still does as systemd wants to hear it, for
/// ever.
pub async fn watch(health: ProcessHealth) {
    while !health.alive().await.is_good {
        sleep(STARTING_INTERVAL).await;
    }
    if !health.draining.has_begun() {
        ready("serving");
    }
    let Some(period) = watchdog() else { return };
    let mut beats = interval(period / 2);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        let verdict = health.alive().await;
        if verdict.is_good {
            notify("WATCHDOG=1");
        } else {
            let reason = verdict.text.trim_end();
            log::error!(reason; "the watchdog is not told that the process lives: systemd will start it anew");
            notify(&format!("STATUS={reason}"));
        }
    }
}

/// The process serves, for the first time or after a reload.
pub fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={status}"));
}

/// It reads its files anew.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reading keys, cut-offs and client secrets anew"));
}

/// It has been told to end.
pub fn stopping() {
    notify("STOPPING=1\nSTATUS=calls under way are finished");
}

/// After how long without a word systemd takes the process for dead, if it watches this one.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 1).map(Duration::from_micros)
}

fn notify(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&name, state) {
        let reason = error.to_string();
        log::warn!(reason; "systemd could not be told what the process does");
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // Whoever does not read it does not keep us.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// How often the workers are asked whether they are there.
const STARTING_INTERVAL: Duration = Duration::from_millis(2);
