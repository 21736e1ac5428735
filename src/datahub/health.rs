//! Whether a DataHUB does what it should: how the last call of each kind ended.
//!
//! Whoever calls reports what came back, and `gateway_datahub_up` is what they say together: a token endpoint that fails is
//! seen although the API answers, and a host that is back is seen by whoever reaches it first. No call is made to find out;
//! only while nobody reaches it the proxy tries to connect.
//!
//! A DataHUB that sends what nobody has asked for is known here, too, since no worker may use its connections twice then.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::datahub::DataHubId;
use crate::metrics;

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// Metadata and keys.
    Discovery,
    /// Codes and refresh tokens for tokens.
    Token,
    /// Who a person is.
    Userinfo,
    /// Calls of apps.
    Api,
}

impl CallKind {
    fn name(self) -> &'static str {
        match self {
            Self::Discovery => "discovery",
            Self::Token => "token",
            Self::Userinfo => "userinfo",
            Self::Api => "api",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered as it should be; a clear refusal of what was asked is such an answer.
    Good,
    /// It was answered wrongly, or not in time, or our client was refused.
    Failed,
    /// There was no connection, or its TLS was not right.
    Unreachable,
}

/// The health of one DataHUB, for all workers.
#[derive(Debug)]
pub struct Health {
    datahub: DataHubId,
    /// What it is called for.
    kinds: &'static [CallKind],
    troubles: AtomicU8,
    /// Held while `troubles` changes, so that the metrics end as it does.
    changing: Mutex<()>,
    /// When it sent something unasked in the last minute.
    unasked: Mutex<Vec<Instant>>,
    created_at: Instant,
    /// From when on connections may be used again, in milliseconds since `created_at`.
    reuse_from: AtomicU64,
}

impl Health {
    /// Of a DataHUB that nobody has called yet: up until a call says otherwise.
    pub fn new(datahub: DataHubId) -> Self {
        Self::of_kinds(datahub, &KINDS)
    }

    /// Of the ARCmanager's old backend, which has calls of apps only and goes by this name.
    pub fn of_backend(name: DataHubId) -> Self {
        Self::of_kinds(name, &[CallKind::Api])
    }

    fn of_kinds(datahub: DataHubId, kinds: &'static [CallKind]) -> Self {
        Self {
            datahub,
            kinds,
            troubles: AtomicU8::new(0),
            changing: Mutex::default(),
            unasked: Mutex::default(),
            created_at: Instant::now(),
            reuse_from: AtomicU64::new(0),
        }
    }

    /// A call of this kind ended like this. Costs one load if that is nothing new.
    pub fn report(&self, kind: CallKind, outcome: Outcome) {
        let known = || Troubles(self.troubles.load(Ordering::Relaxed));
        if known().after(kind, outcome) == known() {
            return;
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, after) = (known(), known().after(kind, outcome));
        self.troubles.store(after.0, Ordering::Relaxed);
        self.publish();
        let (datahub, kind) = (self.datahub.as_str(), kind.name());
        match (before == Troubles(0), after == Troubles(0)) {
            (true, false) => log::warn!(datahub, kind; "a DataHUB is in trouble"),
            (false, true) => log::info!(datahub, kind; "a DataHUB is well again"),
            _ => {}
        }
    }

    /// It has sent something that nobody asked for, and the connection was closed. Had it come a moment later, somebody else
    /// would have got it. If that happens a few times, none of its connections is used twice for a while.
    pub fn report_unasked(&self, now: Instant) {
        let datahub = self.datahub.as_str();
        metrics::upstream_desync(datahub);
        // While no connection is used again it is only counted, so that the log is not flooded.
        if !self.may_reuse(now) {
            return;
        }
        log::error!(datahub; "a DataHUB sent something that nobody had asked for; see to what stands before it");
        let mut unasked = self.unasked.lock().unwrap_or_else(PoisonError::into_inner);
        unasked.retain(|before| now.duration_since(*before) < UNASKED_PERIOD);
        unasked.push(now);
        if unasked.len() >= MAX_UNASKED {
            unasked.clear();
            self.reuse_from.store(self.millis(now + REUSE_PAUSE), Ordering::Relaxed);
            log::error!(datahub; "a DataHUB keeps sending what nobody asked for: no connection is used twice for 10 min");
        }
    }

    /// Whether a connection may be used for another call.
    pub fn may_reuse(&self, now: Instant) -> bool {
        let from = self.reuse_from.load(Ordering::Relaxed);
        from == 0 || self.millis(now) >= from
    }

    fn millis(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.created_at).as_millis()).unwrap_or(u64::MAX)
    }

    /// Says it to the metrics, once this DataHUB is one that is served.
    pub fn publish(&self) {
        let troubles = Troubles(self.troubles.load(Ordering::Relaxed));
        let kinds = self.kinds.iter().map(|kind| (kind.name(), !troubles.has(*kind)));
        metrics::datahub(self.datahub.as_str(), troubles == Troubles(0), kinds);
    }
}

/// What is wrong: the kinds that failed in the lower four bits, those that found nobody in the upper four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Troubles(u8);

impl Troubles {
    /// What is wrong once a call has ended like this. A good one proves that the host is there, for every kind; that a kind
    /// works is proved by its own.
    fn after(self, kind: CallKind, outcome: Outcome) -> Self {
        Self(match outcome {
            Outcome::Good => self.0 & FAILED & !kind.bit(),
            Outcome::Failed => self.0 & !(kind.bit() << 4) | kind.bit(),
            Outcome::Unreachable => self.0 | kind.bit() << 4,
        })
    }

    fn has(self, kind: CallKind) -> bool {
        self.0 & (kind.bit() | kind.bit() << 4) != 0
    }
}

/// How often within [`UNASKED_PERIOD`] it may send something unasked, and one less.
const MAX_UNASKED: usize = 3;
const UNASKED_PERIOD: Duration = Duration::from_mins(1);
/// How long no connection is used twice then.
const REUSE_PAUSE: Duration = Duration::from_mins(10);
const FAILED: u8 = 0x0f;
const KINDS: [CallKind; 4] = [CallKind::Discovery, CallKind::Token, CallKind::Userinfo, CallKind::Api];

#[cfg(test)]
mod tests {
    use super::CallKind::{Api, Discovery, Token, Userinfo};
    use super::Outcome::{Failed, Good, Unreachable};
    use super::*;

    #[test]
    fn three_things_unasked_within_a_minute_stop_reuse_for_ten() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        for (times, stops) in [
            (&[0, 1][..], false),
            (&[0, 0, 0], true),
            (&[0, 30, 59], true),
            (&[0, 30, 60], false),
            (&[0, 30, 60, 89], true),
            (&[0, 61, 122, 183], false),
        ] {
            let health = Health::new("a".parse().expect("an id"));
            let last = times.iter().fold(0, |_, seconds| {
                assert!(health.may_reuse(after(*seconds)), "{times:?}");
                health.report_unasked(after(*seconds));
                *seconds
            });
            for (seconds, may_reuse) in [(0, !stops), (599, !stops), (600, true), (601, true)] {
                assert_eq!(health.may_reuse(after(last + seconds)), may_reuse, "{times:?}, {seconds} s later");
            }
        }
    }

    #[test]
    fn a_datahub_is_up_while_no_kind_of_call_is_in_trouble() {
        for (case, calls, wrong) in [
            ("nobody called", &[][..], &[][..]),
            ("all is well", &[(Discovery, Good), (Token, Good), (Userinfo, Good), (Api, Good)], &[]),
            ("logins fail and the API answers", &[(Token, Failed), (Api, Good)], &[Token]),
            ("the same, and a login succeeds", &[(Token, Failed), (Api, Good), (Token, Good)], &[]),
            ("nobody is there", &[(Discovery, Unreachable), (Api, Unreachable)], &[Discovery, Api]),
            ("the same, and a login succeeds", &[(Api, Unreachable), (Discovery, Unreachable), (Token, Good)], &[]),
            ("somebody is there and answers wrongly", &[(Api, Unreachable), (Api, Failed)], &[Api]),
            ("the same, of another kind", &[(Api, Unreachable), (Token, Failed)], &[Token, Api]),
            ("failed, gone, back by another kind", &[(Token, Failed), (Token, Unreachable), (Api, Good)], &[Token]),
            ("failed, gone, back", &[(Token, Failed), (Token, Unreachable), (Token, Good)], &[]),
            ("two fail and one is back", &[(Userinfo, Failed), (Token, Failed), (Token, Good)], &[Userinfo]),
        ] {
            let troubles = calls.iter().fold(Troubles(0), |troubles, (kind, outcome)| troubles.after(*kind, *outcome));
            let told: Vec<_> = KINDS.into_iter().filter(|kind| troubles.has(*kind)).collect();
            assert_eq!(told, wrong, "{case}");
            assert_eq!(troubles == Troubles(0), wrong.is_empty(), "{case}");
        }
    }
}
