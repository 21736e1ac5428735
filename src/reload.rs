//! Takes over new keys and cut-offs while the process runs.
//!
//! On SIGHUP at once, and a few seconds after one of the files has changed: its content is compared and not its date, so
//! a symbolic link that is swapped counts (Kubernetes does that). A change counts once two looks have seen the same, so
//! a file that is being written is not read half. All files are read and checked as at the start; if anything is wrong,
//! the log says what, and everything stays as it was. What else has changed takes effect at the next start.

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
    let mut files = Files { paths: config.files.clone(), taken: content(&config.files), seen: None };
    tell_metrics(&config);
    Ok(async move {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_told = tokio::select! {
                _ = hangup.recv() => true,
                _ = looks.tick() => false,
            };
            if !files.have_changed(is_told).await {
                continue;
            }
            let arguments = arguments.clone();
            match apart(move || Config::load(&arguments)).await {
                Ok(new) => {
                    take_over(&config, &new);
                    files.are_now(new.files).await;
                }
                Err(faults) => {
                    metrics::reloaded(false);
                    process_event(Event::ReloadFailed, &format!("keys and cut-offs stay as they were: {faults}"));
                }
            }
        }
    })
}

fn take_over(config: &Config, new: &Config) {
    config.keyring.replace_by(&new.keyring);
    config.not_before.replace_by(&new.not_before);
    for warning in &new.warnings {
        log::warn!("{warning}");
    }
    tell_metrics(config);
    metrics::reloaded(true);
    let ids: Vec<_> = config.keyring.ids().iter().map(ToString::to_string).collect();
    process_event(Event::KeysReloaded, &format!("the first of these keys seals: {}", ids.join(" ")));
}

fn tell_metrics(config: &Config) {
    metrics::key_ring(config.keyring.ids().iter().map(ToString::to_string));
}

/// What was in the files when they were last taken over, and when they were last looked at.
struct Files {
    paths: Vec<PathBuf>,
    taken: Content,
    seen: Option<Content>,
}

type Content = [u8; 32];

impl Files {
    /// Whether there is something new that two looks have seen, or something that we are told is new. It counts as taken
    /// over from then on.
    async fn have_changed(&mut self, is_told: bool) -> bool {
        let paths = self.paths.clone();
        let now = apart(move || content(&paths)).await;
        let is_settled = self.seen.replace(now) == Some(now);
        if !is_settled && !is_told {
            return false;
        }
        std::mem::replace(&mut self.taken, now) != now || is_told
    }

    /// The files themselves may be others now.
    async fn are_now(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            self.paths.clone_from(&paths);
            self.taken = apart(move || content(&paths)).await;
        }
    }
}

/// A file that cannot be read has a content too: that it cannot be read.
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

/// Reading files may take its time, and so may a system's certificate authorities: not on a thread that serves.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic, and nobody aborts it")
}

/// Between two looks at the files: a change is taken over after one more, well within 10 s.
const LOOK: Duration = Duration::from_secs(3);
