//! Takes over new keys, cut-offs and client secrets while the process runs.
//!
//! It does so on SIGHUP at once, and a few seconds after one of the files has changed. The content is compared and not the
//! date, so a symbolic link that is swapped counts (Kubernetes does that). A change counts once two polls have observed
//! the same content, so no file is read while it is half written. All files are read and checked as at the start. If
//! anything is wrong, the log says what, everything stays as it was, and each poll tries again: what was missing for a moment
//! may be in no file that is watched yet. All other settings take effect at the next start, and the log says which have changed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};
use zeroize::Zeroizing;

use crate::access_log::{Event, process_event};
use crate::admin::systemd;
use crate::config::{Config, ConfigErrors, file};
use crate::metrics;

/// Watches over the files of `config`, the first of which were given as `arguments`, for ever.
///
/// # Errors
/// If no handler for SIGHUP can be set.
pub fn watch(config: Arc<Config>, arguments: Vec<PathBuf>) -> io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut files = Files { paths: config.files.clone(), applied: Some(content(&config.files)), observed: None };
    let mut told = None;
    report_key_ring(&config);
    Ok(async move {
        let mut polls = interval(POLL_INTERVAL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_requested = tokio::select! {
                _ = hangup.recv() => true,
                _ = polls.tick() => false,
            };
            match reload(&config, &arguments, &mut files, is_requested).await {
                Ok(false) => {}
                Ok(true) => {
                    told = None;
                    // Also after a poll of our own: a fault may have gone.
                    systemd::ready("serving");
                }
                Err(error) => {
                    metrics::reloaded(false);
                    files.applied = None;
                    let (reason, now) = (error.to_string(), Instant::now());
                    if is_requested || is_news(told.as_ref(), &reason, now) {
                        let detail = format!("everything stays as it was, and this is tried again: {reason}");
                        process_event(Event::ReloadFailed, &detail);
                        told = Some((reason, now));
                    }
                    systemd::ready(error.status());
                }
            }
        }
    })
}

/// Applies what the files say now, if that is new or `is_requested`. Whether it was.
async fn reload(
    config: &Config,
    arguments: &[PathBuf],
    files: &mut Files,
    is_requested: bool,
) -> Result<bool, ReloadError> {
    if !files.observe(is_requested).await? {
        return Ok(false);
    }
    if is_requested {
        systemd::reloading();
    }
    let arguments = arguments.to_vec();
    let new = on_own_thread(move || Config::load(&arguments)).await?.map_err(ReloadError::Config)?;
    apply(config, &new);
    files.set_paths(new.files).await?;
    Ok(true)
}

/// Why the files could not be taken over this time.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(ConfigErrors),
    #[error(transparent)]
    NoThread(#[from] NoThread),
}

impl ReloadError {
    /// What systemd is told meanwhile.
    fn status(&self) -> &'static str {
        match self {
            Self::Config(_) => "serving as before: the configuration has a fault, which the log and `check` name",
            Self::NoThread(_) => "serving as before: the system gives no thread to read the configuration with",
        }
    }
}

/// The system gives the process no thread, for now: a bound on its tasks is reached.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no thread to read the files with (raise TasksMax or the pids limit): {0}")]
struct NoThread(io::Error);

fn apply(config: &Config, new: &Config) {
    config.keyring.replace_by(&new.keyring);
    config.not_before.replace_by(&new.not_before);
    config.datahubs.replace_secrets_by(&new.datahubs);
    if let (Some(bridge), Some(new)) = (&config.bridge, &new.bridge) {
        bridge.keys.replace_by(&new.keys);
    }
    for warning in &new.warnings {
        log::warn!("{warning}");
    }
    let keys = config.changed_until_restart(new).join(" ");
    if !keys.is_empty() {
        log::warn!(keys; "the configuration has changed in what counts at the next start only");
    }
    report_key_ring(config);
    metrics::reloaded(true);
    let ids: Vec<_> = config.keyring.ids().iter().map(ToString::to_string).collect();
    process_event(Event::KeysReloaded, &format!("the first of these keys seals: {}", ids.join(" ")));
}

/// Whether the log has not said so lately, since each poll meets the same fault.
fn is_news(told: Option<&(String, Instant)>, reason: &str, now: Instant) -> bool {
    told.is_none_or(|(last, at)| last != reason || now.saturating_duration_since(*at) >= REPEAT_INTERVAL)
}

fn report_key_ring(config: &Config) {
    metrics::key_ring(config.keyring.ids().iter().map(ToString::to_string));
}

/// The content of the files when they were last applied, and at the last poll.
struct Files {
    paths: Vec<PathBuf>,
    /// `None` after a fault: then any content is to be applied.
    applied: Option<Content>,
    observed: Option<Content>,
}

type Content = [u8; 32];

impl Files {
    /// Reads the files. Whether their content is to be applied: it is new and two polls have observed it, or SIGHUP requests
    /// it. It counts as applied from then on.
    async fn observe(&mut self, is_requested: bool) -> Result<bool, NoThread> {
        let paths = self.paths.clone();
        let now = on_own_thread(move || content(&paths)).await?;
        let is_settled = self.observed.replace(now) == Some(now);
        if !is_settled && !is_requested {
            return Ok(false);
        }
        Ok(self.applied.replace(now) != Some(now) || is_requested)
    }

    /// Watches these files from now on, since the configuration may name others than before.
    async fn set_paths(&mut self, paths: Vec<PathBuf>) -> Result<(), NoThread> {
        if paths != self.paths {
            self.paths.clone_from(&paths);
            self.applied = Some(on_own_thread(move || content(&paths)).await?);
        }
        Ok(())
    }
}

/// A digest of all the files. A file that cannot be read counts by the reason for that.
fn content(paths: &[PathBuf]) -> Content {
    let mut hash = Sha256::new();
    for path in paths {
        match file::read(path) {
            Ok((bytes, _)) => hash.update(Sha256::digest(Zeroizing::new(bytes))),
            Err(error) => hash.update(error.to_string()),
        }
    }
    hash.finalize().into()
}

/// Runs `work` on a thread of its own: reading files and a system's certificate authorities would hold up a worker. tokio's
/// own threads for that are none to rely on: it panics where the system gives none.
async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, NoThread> {
    let (done, output) = oneshot::channel();
    let run = move || {
        let _ = done.send(work());
    };
    thread::Builder::new().name("reload".to_owned()).spawn(run).map_err(NoThread)?;
    Ok(output.await.expect("it does not panic"))
}

/// Between two polls of the files. A change is applied at the second poll that observes it, well within 10 s.
const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// How long the log does not repeat a reason.
const REPEAT_INTERVAL: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_a_minute_and_another_at_once() {
        let now = Instant::now();
        let told = Some(("a file is missing".to_owned(), now));
        for (case, told, reason, after, expected) in [
            ("the first", None, "a file is missing", 0, true),
            ("the same", told.as_ref(), "a file is missing", 3, false),
            ("the same, a little later", told.as_ref(), "a file is missing", 59, false),
            ("the same, a minute later", told.as_ref(), "a file is missing", 60, true),
            ("another", told.as_ref(), "a file is empty", 3, true),
        ] {
            assert_eq!(is_news(told, reason, now + Duration::from_secs(after)), expected, "{case}");
        }
    }

    #[test]
    fn what_could_not_be_applied_is_to_be_applied_at_every_poll() {
        actix_web::rt::System::new().block_on(async {
            let mut files = Files { paths: Vec::new(), applied: Some(content(&[])), observed: None };
            for (poll, expected) in [(1, false), (2, false)] {
                assert_eq!(files.observe(false).await.expect("a thread"), expected, "poll {poll}: nothing has changed");
            }
            files.applied = None;
            assert!(files.observe(false).await.expect("a thread"), "it is tried again");
            files.applied = None;
            assert!(files.observe(false).await.expect("a thread"), "and again");
            assert!(!files.observe(false).await.expect("a thread"), "until it succeeds");
        });
    }
}
