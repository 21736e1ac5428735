//! How fast a DataHUB answers refreshes: whether another process may still be waiting for an answer.
//!
//! A refresh that ends in `invalid_grant` was won by another process, whose answer may take as long as any. Where answers
//! are fast, a search for it is over soon; where they are slow, it is not.

use std::time::{Duration, Instant};

/// The refreshes at one DataHUB. Reads no clock.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When each of those under way was sent.
    under_way: Vec<Instant>,
    /// When one came that was slow.
    slow_at: Option<Instant>,
}

impl Pace {
    /// One is sent.
    pub(super) fn begin(&mut self, now: Instant) {
        self.under_way.push(now);
    }

    /// The one that was sent at `begun` has ended.
    pub(super) fn end(&mut self, begun: Instant, now: Instant) {
        if let Some(at) = self.under_way.iter().position(|other| *other == begun) {
            self.under_way.swap_remove(at);
        }
        if now.duration_since(begun) >= SLOW {
            self.slow_at = Some(now);
        }
    }

    /// Whether one is slow, or was a while ago.
    pub(super) fn is_slow(&self, now: Instant) -> bool {
        let was_slow = self.slow_at.is_some_and(|at| now.duration_since(at) < MEMORY);
        was_slow || self.under_way.iter().any(|begun| now.duration_since(*begun) >= SLOW)
    }
}

/// A refresh that takes as long is slow; GitLab needs a tenth of a second.
const SLOW: Duration = Duration::from_secs(2);
/// How long it is remembered that one was slow.
const MEMORY: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_refresh_makes_a_slow_datahub_for_a_while() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        pace.begin(at(0));
        pace.begin(at(0));
        pace.end(at(0), at(1_999));
        assert!(!pace.is_slow(at(1_999)), "one was fast and one is not slow yet");
        assert!(pace.is_slow(at(2_000)), "one is");
        pace.end(at(0), at(2_000));
        assert!(pace.is_slow(at(601_999)), "one was");
        assert!(!pace.is_slow(at(602_000)), "long ago");
    }
}
