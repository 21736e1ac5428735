//! Which tokens a call goes on with: one decision, from what this process knows and what the call needs.
//!
//! Nothing here waits, asks a DataHUB or reads a clock. [`crate::session::refresh`] has the rules and carries a decision
//! out; the table of tests below has a row for each of them.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::datahub::token::TokenSet;

/// What this process knows of a session's token.
#[derive(Debug, Clone)]
pub(super) enum CacheEntry {
    /// A refresh is under way, or waits for its place.
    InFlight {
        /// Its outcome will be sent here.
        outcome: watch::Receiver<Option<CacheEntry>>,
        /// When it was asked for.
        since: Instant,
        /// How many have failed before it.
        failures: u32,
    },
    /// A refresh brought these tokens; the DataHUB has revoked the ones before.
    Superseded(TokenSet),
    /// The DataHUB answered `invalid_grant`: the token is spent or revoked.
    InvalidGrant {
        /// When it answered.
        since: Instant,
    },
    /// A refresh ended without tokens and without a clear refusal, or is held back since others did.
    Failed {
        /// Nothing is asked before.
        until: Instant,
        /// How many have failed in a row.
        failures: u32,
    },
    /// The DataHUB has blocked the person, or deactivated the account.
    Blocked {
        /// It is asked again then.
        until: Instant,
    },
    /// The session has ended here: by a logout, or because nobody could renew its tokens.
    Invalidated,
}

/// Why a call asks for newer tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its tokens will do, unless this process knows that they are superseded or invalid.
    None,
    /// Its access token is about to expire.
    Expiring,
    /// The app wants newer ones and nothing else.
    Requested,
    /// The DataHUB has rejected its access token.
    Rejected,
}

/// One attempt of a call.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact about the tokens, or about the attempt")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Why it asks.
    pub reason: Reason,
    /// How often the browser has sent the call again; 0 for the first attempt.
    pub replays: u8,
    /// Whether its access token is so young that a refresh would bring nothing but load.
    pub is_young: bool,
    /// Whether its access token has not expired.
    pub is_valid: bool,
    /// Whether there is a refresh token.
    pub can_refresh: bool,
    /// Whether it has waited for a refresh already.
    pub has_waited: bool,
    /// How long another process may wait for an answer that this one cannot see: nothing, where the DataHUB is fast.
    pub patience: Duration,
}

/// What becomes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision<'a> {
    /// It goes on with the tokens it has.
    UseCurrent,
    /// The browser gets the newest tokens that follow these, and sends the call again.
    UseNewest(&'a TokenSet),
    /// It waits for the refresh that is under way, or begins one.
    Refresh,
    /// The browser sends the call again, at once and without new tokens: its cookie jar may hold newer ones.
    Retry,
    /// The same after a pause, since another process has won the refresh and the browser may not have its answer yet.
    RetryElsewhere {
        /// How long to wait before the answer.
        pause: Duration,
        /// Whether the connection ends, so that a load balancer may choose the process that has won.
        closes: bool,
    },
    /// The search for newer tokens has led nowhere; the session has ended from now on.
    GiveUp,
    /// The session has ended.
    Expired,
    /// No newer tokens at the moment; the session stays as it is.
    Unavailable {
        /// When another attempt may do better.
        retry_after: Duration,
    },
}

/// Decides what becomes of an attempt whose token is known by `entry`, or not at all.
pub(super) fn decide(entry: Option<&CacheEntry>, attempt: Attempt, now: Instant) -> Decision<'_> {
    let Attempt { reason, replays, is_young, is_valid, can_refresh, has_waited, patience } = attempt;
    // What is good goes up as long as nothing better is to be had.
    let serves = match reason {
        Reason::None => true,
        Reason::Expiring => is_young || is_valid,
        Reason::Requested => is_young,
        Reason::Rejected => false,
    };
    match entry {
        Some(CacheEntry::Invalidated) => Decision::Expired,
        Some(CacheEntry::Blocked { until }) if now < *until => Decision::Expired,
        _ if !can_refresh => match reason {
            Reason::None => Decision::UseCurrent,
            Reason::Requested if is_valid => Decision::UseCurrent,
            Reason::Rejected if replays == 0 => Decision::Retry,
            _ => Decision::Expired,
        },
        Some(CacheEntry::Superseded(next)) if has_waited || replays > 0 => Decision::UseNewest(next),
        Some(CacheEntry::Superseded(_)) => Decision::Retry,
        Some(CacheEntry::InvalidGrant { since }) => on_invalid_grant(*since, replays, patience, now),
        Some(CacheEntry::InFlight { since, .. }) if is_valid && serves && *since + MAX_WAIT <= now => {
            Decision::UseCurrent
        }
        Some(CacheEntry::InFlight { .. }) if has_waited => Decision::Unavailable { retry_after: RETRY_AFTER },
        Some(CacheEntry::InFlight { .. }) => Decision::Refresh,
        Some(CacheEntry::Failed { until, .. }) if now < *until && serves => Decision::UseCurrent,
        Some(CacheEntry::Failed { until, .. }) if now < *until => {
            Decision::Unavailable { retry_after: until.duration_since(now) }
        }
        Some(CacheEntry::Failed { .. } | CacheEntry::Blocked { .. }) | None => match reason {
            Reason::None => Decision::UseCurrent,
            Reason::Expiring | Reason::Requested if is_young => Decision::UseCurrent,
            // It came out of a refresh on account of this very call.
            Reason::Rejected if is_young && replays > 0 => Decision::Expired,
            _ if has_waited && serves && is_valid => Decision::UseCurrent,
            _ if has_waited => Decision::Unavailable { retry_after: RETRY_AFTER },
            _ => Decision::Refresh,
        },
    }
}

/// Another process has won the refresh, if nobody has stolen the token. The browser has the winner's cookie by now, or one
/// of its replays meets that process. How long ago the token was refused says nothing about that: an answer with the
/// winner's cookie may have been cut off, and what its process knows is all that is left of the session.
fn on_invalid_grant(since: Instant, replays: u8, patience: Duration, now: Instant) -> Decision<'static> {
    if replays < MAX_REPLAYS {
        let pause = PAUSES[usize::from(replays).min(PAUSES.len() - 1)];
        return Decision::RetryElsewhere { pause, closes: replays > 0 };
    }
    if now.saturating_duration_since(since) < patience {
        return Decision::Unavailable { retry_after: RETRY_AFTER };
    }
    Decision::GiveUp
}

/// How long a call waits for a refresh.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(10);
/// When to come back to a refresh that takes longer.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How often a call is sent again at most; Fetch follows 20 redirects.
pub(super) const MAX_REPLAYS: u8 = 16;
/// How long the answer to a call that has lost the refresh waits: the first time, the second time and so on.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// The rules of [`crate::session::refresh`], each in the situations that it is about.
    #[test]
    fn every_situation_has_its_decision() {
        use Decision::{Expired, GiveUp, Refresh, Retry, RetryElsewhere, UseCurrent, UseNewest};
        use Reason::{Expiring, None as NoReason, Rejected, Requested};

        let start = Instant::now();
        let now = start + Duration::from_mins(1);
        let next = tokens();
        let elsewhere = |pause, closes| RetryElsewhere { pause: Duration::from_millis(pause), closes };
        let unavailable = |seconds| Decision::Unavailable { retry_after: Duration::from_secs(seconds) };
        let unknown = || None;
        let in_flight = || Some(in_flight_since(now));
        let slow = || Some(in_flight_since(start + Duration::from_secs(50)));
        let superseded = || Some(CacheEntry::Superseded(next.clone()));
        let spent = |ago: u64| Some(CacheEntry::InvalidGrant { since: start + Duration::from_millis(60_000 - ago) });
        let failed = || Some(CacheEntry::Failed { until: now + Duration::from_mins(1), failures: 1 });
        let failed_before = || Some(CacheEntry::Failed { until: now, failures: 1 });
        let blocked = |until| Some(CacheEntry::Blocked { until });
        let ended = || Some(CacheEntry::Invalidated);
        let first = |reason| Attempt {
            reason,
            replays: 0,
            is_young: false,
            is_valid: true,
            can_refresh: true,
            has_waited: false,
            patience: Duration::ZERO,
        };
        let slow_datahub = |attempt| Attempt { patience: Duration::from_secs(90), ..attempt };
        let expired = |attempt| Attempt { is_valid: false, ..attempt };
        let alone = |attempt| Attempt { can_refresh: false, ..attempt };
        let replay = |reason, replays| Attempt { replays, ..first(reason) };
        let young = |attempt| Attempt { is_young: true, ..attempt };
        let waited = |attempt| Attempt { has_waited: true, ..attempt };

        for (situation, entry, attempt, decision) in [
            ("1: the tokens are good for a while", unknown(), first(NoReason), UseCurrent),
            ("1: the access token is about to expire", unknown(), first(Expiring), Refresh),
            ("1: an app refreshes ahead, though its token is young", unknown(), young(first(Expiring)), UseCurrent),
            ("1: it does so in a replay", unknown(), young(replay(Expiring, 1)), UseCurrent),
            ("1: a call was sent again, with good tokens", unknown(), replay(NoReason, 1), UseCurrent),
            ("1: a replay's token has expired meanwhile", unknown(), replay(Expiring, 1), Refresh),
            ("2: a second call with a stale token", in_flight(), first(Expiring), Refresh),
            ("2: a call whose token would do, but is being renewed", in_flight(), first(NoReason), Refresh),
            ("2: a call whose token was rejected meanwhile", in_flight(), first(Rejected), Refresh),
            ("2: a replay meets another refresh", in_flight(), replay(Expiring, 3), Refresh),
            ("2: the refresh takes longer than a call waits", in_flight(), waited(first(Rejected)), unavailable(5)),
            ("2: a slow refresh, and a token that still serves", slow(), waited(first(Expiring)), UseCurrent),
            ("2: a slow refresh that another asked for", slow(), first(NoReason), UseCurrent),
            ("2: a slow refresh, and a token that has expired", slow(), expired(first(Expiring)), Refresh),
            ("2: a slow refresh was waited for", slow(), waited(expired(first(Expiring))), unavailable(5)),
            ("2: a slow refresh, and a token that was rejected", slow(), first(Rejected), Refresh),
            ("2: a slow refresh, and an app that wants it", slow(), waited(first(Requested)), unavailable(5)),
            ("3: who has waited gets the new tokens at once", superseded(), waited(first(Expiring)), UseNewest(&next)),
            ("3: who has waited with a good token, too", superseded(), waited(first(NoReason)), UseNewest(&next)),
            ("4: a latecomer's jar may hold something newer", superseded(), first(NoReason), Retry),
            ("4: a latecomer with a stale token", superseded(), first(Expiring), Retry),
            ("4: a latecomer with a rejected token", superseded(), first(Rejected), Retry),
            ("4: a latecomer's jar held nothing newer", superseded(), replay(NoReason, 1), UseNewest(&next)),
            ("4: a latecomer with its last replay", superseded(), replay(Expiring, 16), UseNewest(&next)),
            ("5: another process has just won", spent(0), waited(first(Expiring)), elsewhere(50, false)),
            ("5: a call with a token known to be spent", spent(9_000), first(NoReason), elsewhere(50, false)),
            ("5: a late first attempt: its jar may be newer", spent(50_000), first(Expiring), elsewhere(50, false)),
            ("5: the first replay closes its connection", spent(60), replay(Expiring, 1), elsewhere(100, true)),
            ("5: the second replay waits longer", spent(200), replay(Expiring, 2), elsewhere(200, true)),
            ("5: the third replay waits longer still", spent(400), replay(Expiring, 3), elsewhere(400, true)),
            ("5: the last but one replay", spent(5_000), replay(Expiring, 15), elsewhere(400, true)),
            ("5: the last replay", spent(5_400), replay(Expiring, 16), GiveUp),
            (
                "5: a replay long after, which may meet the winner",
                spent(59_000),
                replay(Expiring, 1),
                elsewhere(100, true),
            ),
            ("5: the last replay long after", spent(59_000), replay(Expiring, 16), GiveUp),
            (
                "5: the last replay, and the winner may still wait",
                spent(5_400),
                slow_datahub(replay(Expiring, 16)),
                unavailable(5),
            ),
            (
                "5: the winner has had its time",
                spent(60_000),
                Attempt { patience: Duration::from_mins(1), ..replay(Expiring, 16) },
                GiveUp,
            ),
            ("5: long after, and so", spent(59_000), slow_datahub(replay(Expiring, 16)), unavailable(5)),
            ("5: what was given up is known to have ended", ended(), replay(Expiring, 1), Expired),
            ("6: the DataHUB rejects a token, however young", unknown(), young(first(Rejected)), Refresh),
            ("6: it rejects an old token of a replay", unknown(), replay(Rejected, 1), Refresh),
            ("6: it rejects what this call was renewed for", unknown(), young(replay(Rejected, 1)), Expired),
            ("7: the refresh failed, and the token still serves", failed(), waited(first(Expiring)), UseCurrent),
            ("7: the refresh of a good token failed", failed(), waited(first(NoReason)), UseCurrent),
            ("7: the refresh of an expired token failed", failed(), waited(expired(first(Expiring))), unavailable(60)),
            ("7: refreshes are held back", failed(), first(Expiring), UseCurrent),
            ("7: held back, and the token has expired", failed(), expired(first(Expiring)), unavailable(60)),
            ("7: held back, and the token is rejected", failed(), first(Rejected), unavailable(60)),
            ("7: held back, and an app wants newer ones", failed(), first(Requested), unavailable(60)),
            ("7: held back, and an app has young ones", failed(), young(first(Requested)), UseCurrent),
            ("7: held back, a good token", failed(), first(NoReason), UseCurrent),
            ("7: an earlier refresh failed, and another may succeed", failed_before(), first(Expiring), Refresh),
            ("7: the same of an expired token", failed_before(), expired(first(Expiring)), Refresh),
            ("7: an earlier refresh failed, and the token still serves", failed_before(), first(NoReason), UseCurrent),
            ("2: the refresh was not begun, and the token serves", unknown(), waited(first(Expiring)), UseCurrent),
            ("2: the refresh was not begun", unknown(), waited(expired(first(Expiring))), unavailable(5)),
            ("7: nobody waits twice", failed_before(), waited(first(Rejected)), unavailable(5)),
            ("7: the DataHUB has blocked the person", blocked(now + MAX_WAIT), waited(first(Expiring)), Expired),
            ("7: blocked, though the token would do", blocked(now + MAX_WAIT), first(NoReason), Expired),
            ("7: perhaps not blocked any more", blocked(now), expired(first(Expiring)), Refresh),
            ("1: a token that cannot be renewed serves", unknown(), alone(first(NoReason)), UseCurrent),
            ("1: an app cannot renew it", unknown(), alone(first(Requested)), UseCurrent),
            ("1: it has expired", unknown(), alone(expired(first(Expiring))), Expired),
            ("1: it has expired, and an app asks", unknown(), alone(expired(first(Requested))), Expired),
            ("6: it is rejected, and the jar may hold another", unknown(), alone(first(Rejected)), Retry),
            ("6: the jar held nothing better", unknown(), alone(replay(Rejected, 1)), Expired),
            ("8: it was given back by a logout", ended(), alone(first(NoReason)), Expired),
            ("8: a logout has ended the session", ended(), first(NoReason), Expired),
            ("8: a logout, and the token is stale", ended(), first(Expiring), Expired),
            ("8: a logout, and the token is rejected", ended(), replay(Rejected, 1), Expired),
            ("8: a logout while this call waited", ended(), waited(first(Expiring)), Expired),
            ("9: the process that knew has died, and this one asks", unknown(), replay(Expiring, 2), Refresh),
            ("9: the DataHUB refuses the token", spent(0), waited(replay(Expiring, 2)), elsewhere(200, true)),
            ("9: nobody else knows", spent(6_000), replay(Expiring, 16), GiveUp),
        ] {
            assert_eq!(decide(entry.as_ref(), attempt, now), decision, "rule {situation}");
        }
    }

    /// No attempt waits twice, and none is without an answer in the end.
    #[test]
    fn who_has_waited_is_answered() {
        let now = Instant::now();
        let entries = [
            None,
            Some(in_flight_since(now)),
            Some(CacheEntry::Superseded(tokens())),
            Some(CacheEntry::InvalidGrant { since: now }),
            Some(CacheEntry::Failed { until: now + MAX_WAIT, failures: 1 }),
            Some(CacheEntry::Failed { until: now, failures: 1 }),
            Some(CacheEntry::Blocked { until: now }),
            Some(CacheEntry::Invalidated),
        ];
        for entry in &entries {
            for reason in [Reason::None, Reason::Expiring, Reason::Requested, Reason::Rejected] {
                for (replays, bits) in (0..=MAX_REPLAYS).flat_map(|replays| (0..8).map(move |bits| (replays, bits))) {
                    let [is_young, is_valid, can_refresh] = [1, 2, 4].map(|bit| bits & bit > 0);
                    let attempt = Attempt {
                        reason,
                        replays,
                        is_young,
                        is_valid,
                        can_refresh,
                        has_waited: true,
                        patience: Duration::ZERO,
                    };
                    let decision = decide(entry.as_ref(), attempt, now);
                    assert_ne!(decision, Decision::Refresh, "{entry:?} {attempt:?}");
                }
            }
        }
    }

    fn in_flight_since(since: Instant) -> CacheEntry {
        CacheEntry::InFlight { outcome: watch::channel(None).1, since, failures: 0 }
    }

    fn tokens() -> TokenSet {
        TokenSet {
            access: "new".to_owned().try_into().expect("visible ASCII"),
            refresh: None,
            issued: SystemTime::UNIX_EPOCH,
            lifetime: Duration::from_hours(2),
        }
    }
}
