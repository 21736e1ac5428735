//! When a DataHUB's token endpoint may be asked again, after it said "not now".
//!
//! All people share one address at a DataHUB, so that 429 is about all of us, and so are failures of three tokens in a row.
//! Nothing is refreshed then for a while. After that one refresh is tried at a time, each with another token: one that the
//! DataHUB always fails at is that person's trouble and not everybody's. The first that is answered ends it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::session::refresh::cache::CacheKey;

/// Whether one DataHUB may be asked for new tokens. Reads no clock.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// Nothing is asked before.
    until: Option<Instant>,
    /// How often it was held back in a row.
    failures: u32,
    /// The one refresh that is tried, and since when.
    trial: Option<(CacheKey, Instant)>,
    /// Tokens that the endpoint failed at since it answered last, the newest first.
    failing: VecDeque<CacheKey>,
    /// Whether other tokens were held back, too.
    has_others: bool,
}

/// How a token endpoint answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefreshOutcome {
    /// With tokens, or with a clear refusal: it works.
    Answered,
    /// With 429.
    Throttled(Option<Duration>),
    /// With a status from 500 on.
    Failing(Option<Duration>),
    /// Not at all, or with something else.
    Unanswered,
}

impl Backoff {
    /// Until when nothing is asked for a token, if that is so.
    pub(super) fn held_until(&mut self, key: CacheKey, now: Instant) -> Option<Instant> {
        let until = self.until?;
        let has_failed = self.failing.contains(&key);
        // If there are tokens that it has not failed at, they come first.
        let turn = if has_failed && self.has_others { TURN } else { Duration::ZERO };
        self.has_others |= !has_failed;
        Some(until + turn).filter(|until| now < *until)
    }

    /// Lets the refresh of a token begin. Its outcome must be recorded.
    ///
    /// # Errors
    /// When to ask again.
    pub(super) fn admit(&mut self, key: CacheKey, now: Instant) -> Result<(), Instant> {
        if self.until.is_none() {
            return Ok(());
        }
        if let Some(until) = self.held_until(key, now) {
            return Err(until);
        }
        // One that takes long does not keep the others waiting.
        if self.trial.is_some_and(|(_, since)| now.duration_since(since) < MAX_TRIAL) {
            return Err(now + TURN);
        }
        self.trial = Some((key, now));
        Ok(())
    }

    /// Takes note of how the refresh of a token ended, or that it did not (`Unanswered`).
    pub(super) fn record(&mut self, key: CacheKey, outcome: RefreshOutcome, now: Instant) {
        let was_trial = self.trial.take_if(|(trial, _)| *trial == key).is_some();
        let is_new = !self.failing.contains(&key);
        let is_all = match outcome {
            RefreshOutcome::Answered => {
                *self = Self::default();
                return;
            }
            RefreshOutcome::Unanswered if !was_trial => return,
            RefreshOutcome::Throttled(_) => true,
            // A trial of a token that it has failed at before says nothing about the others.
            RefreshOutcome::Failing(_) | RefreshOutcome::Unanswered if was_trial => is_new,
            RefreshOutcome::Failing(_) | RefreshOutcome::Unanswered => {
                self.failing.len() + usize::from(is_new) >= MAX_FAILING
            }
        };
        if is_new {
            self.failing.truncate(MAX_KEPT - 1);
            self.failing.push_front(key);
        }
        if is_all {
            let (RefreshOutcome::Throttled(wait) | RefreshOutcome::Failing(wait)) = outcome else {
                return self.hold(true, None, now);
            };
            self.hold(was_trial, wait, now);
        }
    }

    /// Holds everything back. Those that were under way when it began say nothing new.
    pub(super) fn hold(&mut self, was_trial: bool, wait: Option<Duration>, now: Instant) {
        if was_trial || self.until.is_none() {
            self.failures += 1;
        }
        let until = now + pause(self.failures, wait);
        self.until = Some(self.until.map_or(until, |earlier| earlier.max(until)));
    }
}

/// How long to wait after so many failures in a row, or as long as we were asked to.
pub(super) fn pause(failures: u32, wait: Option<Duration>) -> Duration {
    let doubled = || Duration::from_secs(1 << (failures.clamp(1, 6) - 1)).min(MAX_PAUSE);
    wait.map_or_else(doubled, |wait| wait.clamp(TURN, MAX_RETRY_AFTER))
}

/// How many tokens in a row a token endpoint must fail at before that is about all of them.
const MAX_FAILING: usize = 3;
/// How many of them are known.
const MAX_KEPT: usize = 64;
/// How long a trial is the only one.
const MAX_TRIAL: Duration = Duration::from_secs(10);
/// The longest pause that we choose ourselves; the first one is a second, and each is twice the one before.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that we are told.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);
/// The shortest pause, and how long tokens wait that it has failed at.
const TURN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::RefreshOutcome::{Answered, Failing, Throttled, Unanswered};
    use super::*;
    use crate::session::refresh::cache::tests::key;

    #[test]
    fn a_pause_doubles_or_is_what_we_were_told() {
        let seconds = |failures, wait: Option<u64>| pause(failures, wait.map(Duration::from_secs)).as_secs();
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 99].map(|failures| seconds(failures, None)), [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!([0, 1, 60, 300, 301, u64::MAX].map(|wait| seconds(3, Some(wait))), [1, 1, 60, 300, 300, 300]);
    }

    /// Each step: at so many seconds, the refresh of a token is asked for or ends so; whether it may begin.
    #[test]
    fn refreshes_are_held_back_and_let_go_again() {
        enum Step {
            Begins(u64),
            Waits(u64),
            Ends(u64, RefreshOutcome),
        }
        use Step::{Begins, Ends, Waits};

        let told = |seconds| Some(Duration::from_secs(seconds));
        let scripts: [(&str, &[(u64, Step)]); 10] = [
            (
                "429 is about everybody, for as long as it says",
                &[
                    (0, Begins(1)),
                    (0, Begins(2)),
                    (1, Ends(1, Throttled(told(60)))),
                    (2, Ends(2, Unanswered)),
                    (2, Waits(2)),
                    (60, Waits(3)),
                    (61, Begins(3)),
                ],
            ),
            ("429 that says nothing", &[(0, Begins(1)), (0, Ends(1, Throttled(None))), (0, Waits(2)), (1, Begins(2))]),
            (
                "one token that the endpoint fails at is not about everybody",
                &[
                    (0, Begins(1)),
                    (0, Ends(1, Failing(None))),
                    (1, Begins(1)),
                    (1, Ends(1, Failing(None))),
                    (2, Begins(1)),
                    (2, Ends(1, Failing(None))),
                    (2, Begins(2)),
                ],
            ),
            (
                "two are not, if a third is answered",
                &[
                    (0, Begins(1)),
                    (0, Ends(1, Failing(None))),
                    (0, Ends(2, Failing(None))),
                    (0, Ends(3, Answered)),
                    (0, Ends(4, Failing(None))),
                    (0, Ends(5, Failing(None))),
                    (0, Begins(6)),
                ],
            ),
            (
                "three are; then one tries at a time",
                &[
                    (0, Ends(1, Failing(None))),
                    (0, Ends(2, Failing(None))),
                    (0, Ends(3, Failing(None))),
                    (0, Waits(4)),
                    (1, Begins(4)),
                    (1, Waits(5)),
                    (1, Ends(4, Failing(None))),
                    (2, Waits(5)),
                    (3, Begins(5)),
                    (3, Ends(5, Answered)),
                    (3, Begins(6)),
                    (3, Begins(7)),
                ],
            ),
            (
                "each trial is another token's, where there is one",
                &[
                    (0, Ends(1, Throttled(None))),
                    (1, Begins(2)),
                    (1, Ends(2, Unanswered)),
                    (3, Waits(2)),
                    (3, Begins(3)),
                    (3, Ends(3, Unanswered)),
                    (7, Waits(3)),
                    (8, Begins(3)),
                    (8, Ends(3, Answered)),
                    (8, Begins(2)),
                ],
            ),
            (
                "tokens that it always fails at do not keep the others out",
                &[
                    (0, Ends(1, Failing(None))),
                    (0, Ends(2, Failing(None))),
                    (0, Ends(3, Failing(None))),
                    (0, Waits(4)),
                    (1, Waits(1)),
                    (2, Begins(1)),
                    (2, Ends(1, Failing(None))),
                    (2, Begins(2)),
                    (2, Ends(2, Unanswered)),
                    (2, Begins(4)),
                    (2, Ends(4, Answered)),
                    (2, Begins(5)),
                ],
            ),
            (
                "a trial that hangs is not the only one for ever",
                &[
                    (0, Ends(1, Throttled(None))),
                    (1, Begins(2)),
                    (10, Waits(3)),
                    (11, Begins(3)),
                    (12, Ends(3, Answered)),
                    (12, Begins(4)),
                ],
            ),
            (
                "what was under way makes it no worse",
                &[
                    (0, Ends(1, Throttled(None))),
                    (0, Ends(2, Throttled(None))),
                    (0, Ends(3, Throttled(None))),
                    (1, Begins(4)),
                    (1, Ends(4, Throttled(None))),
                    (2, Waits(5)),
                    (3, Begins(5)),
                ],
            ),
            (
                "a success of one that began before ends it",
                &[(0, Ends(1, Throttled(told(60)))), (1, Ends(2, Answered)), (1, Begins(3)), (1, Begins(4))],
            ),
        ];
        for (case, script) in scripts {
            let (mut backoff, start) = (Backoff::default(), Instant::now());
            for (at, step) in script {
                let now = start + Duration::from_secs(*at);
                match step {
                    Begins(token) => assert_eq!(backoff.admit(key(*token), now), Ok(()), "{case}: {token} at {at}"),
                    Waits(token) => assert!(backoff.admit(key(*token), now).is_err(), "{case}: {token} at {at}"),
                    Ends(token, outcome) => backoff.record(key(*token), *outcome, now),
                }
            }
        }
    }
}
