//! Takes over new keys and cut-offs while the process runs.
//!
//! It does so on SIGHUP at once, and a few seconds after one of the files has changed. The content is compared and not the
//! date, so a symbolic link that is swapped counts (Kubernetes does that). A change counts once two polls have observed
//! the same content, so no file is read while it is half written. All files are read and checked as at the start. If
//! anything is wrong, the log says what, and everything stays as it was. All other settings take effect at the next start.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use zeroize::Zeroizing;

use crate::access_log::{Event, process_event};
use crate::config::Config;
use crate::metrics;

/// Watches over the files of `config`, the first of which were given as `arguments`, for ever.
///
/// # Errors
/// If no handler for SIGHUP can be set.
pub fn watch(config: Arc<Config>, arguments: Vec<PathBuf>) -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut files = Files { paths: config.files.clone(), applied: content(&config.files), observed: None };
    report_key_ring(&config);
    Ok(async move {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_requested = tokio::select! {
                _ = hangup.recv() => true,
                _ = polls.tick() => false,
            };
            if !files.observe(is_requested).await {
                continue;
            }
            let arguments = arguments.clone();
            match run_blocking(move || Config::load(&arguments)).await {
                Ok(new) => {
                    apply(&config, &new);
                    files.set_paths(new.files).await;
                }
                Err(errors) => {
                    metrics::reloaded(false);
                    process_event(Event::ReloadFailed, &format!("keys and cut-offs stay as they were: {errors}"));
                }
            }
        }
    })
}

fn apply(config: &Config, new: &Config) {
    config.keyring.replace_by(&new.keyring);
    config.not_before.replace_by(&new.not_before);
    for warning in &new.warnings {
        log::warn!("{warning}");
    }
    report_key_ring(config);
    metrics::reloaded(true);
    let ids: Vec<_> = config.keyring.ids().iter().map(ToString::to_string).collect();
    process_event(Event::KeysReloaded, &format!("the first of these keys seals: {}", ids.join(" ")));
}

fn report_key_ring(config: &Config) {
    metrics::key_ring(config.keyring.ids().iter().map(ToString::to_string));
}

/// The content of the files when they were last applied, and at the last poll.
struct Files {
    paths: Vec<PathBuf>,
    applied: Content,
    observed: Option<Content>,
}

type Content = [u8; 32];

impl Files {
    /// Reads the files. Whether their content is to be applied: it is new and two polls have observed it, or SIGHUP requests
    /// it. It counts as applied from then on.
    async fn observe(&mut self, is_requested: bool) -> bool {
        let paths = self.paths.clone();
        let now = run_blocking(move || content(&paths)).await;
        let is_settled = self.observed.replace(now) == Some(now);
        if !is_settled && !is_requested {
            return false;
        }
        std::mem::replace(&mut self.applied, now) != now || is_requested
    }

    /// Watches these files from now on, since the configuration may name others than before.
    async fn set_paths(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            self.paths.clone_from(&paths);
            self.applied = run_blocking(move || content(&paths)).await;
        }
    }
}

/// A digest of all the files. A file that cannot be read counts by the reason for that.
fn content(paths: &[PathBuf]) -> Content {
    let mut hash = Sha256::new();
    for path in paths {
        match std::fs::read(path) {
            Ok(bytes) => hash.update(Sha256::digest(Zeroizing::new(bytes))),
            Err(error) => hash.update(error.to_string()),
        }
    }
    hash.finalize().into()
}

/// Runs `work` on a thread of its own: reading files and a system's certificate authorities would hold up a worker.
async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic, and nobody aborts it")
}

/// Between two polls of the files. A change is applied at the second poll that observes it, well within 10 s.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
