//! What this process knows of refresh tokens, for a while and in memory only. Another process serves as well without it.
//!
//! Every proxied call asks whether its token is known, and hardly any is. So the answer "no" takes no lock and no digest:
//! entries are counted by a few bits of their tokens, and where the count is 0 there is none.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::datahub::DataHub;
use crate::datahub::token::{SessionToken, TokenSet};
use crate::session::decision::CacheEntry;

/// Entries by refresh token, shared by all workers.
#[derive(Debug)]
pub(super) struct RefreshCache {
    filter: Filter,
    entries: Mutex<Entries>,
    ttl: Duration,
}

impl RefreshCache {
    /// Keeps each entry for `ttl`, and at most 10,000 of them.
    pub(super) fn new(ttl: Duration) -> Self {
        Self { filter: Filter::new(), entries: Mutex::default(), ttl }
    }

    /// Whether there may be an entry for a session's token of this [`filter_hash`](crate::datahub::token::filter_hash); `false`
    /// is certain. Takes no lock.
    pub(super) fn may_hold(&self, filter_hash: u64) -> bool {
        self.filter.may_hold(slot_of(filter_hash))
    }

    /// What is known of a session's token, as far as it applies to the session's `tokens`.
    pub(super) fn lookup(&self, key: &CacheKey, tokens: &TokenSet, now: Instant) -> Option<CacheEntry> {
        if !self.filter.may_hold(key.slot) {
            return None;
        }
        let mut entries = self.lock();
        entries.drop_expired(now, &self.filter);
        entries.get(key, now).filter(|entry| entry.applies_to(tokens)).cloned()
    }

    /// Keeps `entry`.
    pub(super) fn insert(&self, key: CacheKey, entry: CacheEntry, now: Instant) {
        self.lock().insert(key, entry, now, self.ttl, &self.filter);
    }

    /// Notes that a refresh of a session's `tokens` begins, unless something has become known since
    /// [`RefreshCache::lookup`].
    pub(super) fn begin(&self, key: CacheKey, tokens: &TokenSet, now: Instant) -> Begun {
        let mut entries = self.lock();
        let failures = match entries.get(&key, now).filter(|entry| entry.applies_to(tokens)) {
            Some(CacheEntry::Failed { until, failures }) if *until <= now => *failures,
            Some(CacheEntry::Blocked { until }) if *until <= now => 0,
            Some(entry) => return Begun::Known(entry.clone()),
            None => 0,
        };
        let (sender, outcome) = watch::channel(None);
        let entry = CacheEntry::InFlight { outcome: outcome.clone(), since: now, failures };
        entries.put(key, entry, None, &self.filter);
        Begun::New { sender, outcome, failures }
    }

    /// Takes a refresh back that has not begun, if nobody waits for it any more, or its session has ended.
    pub(super) fn withdraw(&self, key: &CacheKey, sender: &watch::Sender<Option<CacheEntry>>) -> bool {
        let mut entries = self.lock();
        if !matches!(entries.by_key.get(key), Some((CacheEntry::InFlight { .. }, _))) {
            // The session has ended meanwhile.
            return true;
        }
        // The entry itself has a receiver, and whoever waits gets theirs from it.
        let is_abandoned = sender.receiver_count() <= 1;
        if is_abandoned {
            entries.remove(key, &self.filter);
        }
        is_abandoned
    }

    /// Keeps the outcome of a refresh, and gives what those who wait for it are told. After the session has ended here, its
    /// entry stays, and the answer is `None`.
    pub(super) fn finish(&self, key: &CacheKey, outcome: CacheEntry, now: Instant) -> Option<CacheEntry> {
        let mut entries = self.lock();
        if let Some(CacheEntry::Invalidated) = entries.get(key, now) {
            return None;
        }
        entries.insert(*key, outcome.clone(), now, self.ttl, &self.filter);
        Some(outcome)
    }

    /// Forgets what is known of a token, since the DataHUB has just given it out.
    pub(super) fn forget(&self, key: &CacheKey) {
        if self.filter.may_hold(key.slot) {
            self.lock().remove(key, &self.filter);
        }
    }

    /// The newest tokens that are known to follow `next`: the end of the chain.
    pub(super) fn newest(&self, datahub: &DataHub, next: &TokenSet, now: Instant) -> TokenSet {
        let entries = self.lock();
        let mut newest = next;
        // A DataHUB that gave out one token twice could make a circle.
        for _ in 0..MAX_CHAIN {
            let key = newest.refresh.is_some().then(|| CacheKey::new(datahub, &newest.session_token()));
            match key.and_then(|key| entries.get(&key, now)) {
                Some(CacheEntry::Superseded(tokens)) if tokens.access != newest.access => newest = tokens,
                _ => break,
            }
        }
        newest.clone()
    }

    /// The refresh under way for this token, if there is one.
    pub(super) fn in_flight(&self, key: &CacheKey, now: Instant) -> Option<watch::Receiver<Option<CacheEntry>>> {
        match self.lock().get(key, now) {
            Some(CacheEntry::InFlight { outcome, .. }) => Some(outcome.clone()),
            _ => None,
        }
    }

    /// Marks `token` and all that are known to follow it as ended, and gives the last of them. `kept` is none of them, and
    /// what leads to it stays as it is.
    pub(super) fn invalidate_chain(
        &self,
        datahub: &DataHub,
        token: SessionToken,
        kept: Option<&SessionToken>,
        now: Instant,
    ) -> Option<SessionToken> {
        let mut entries = self.lock();
        let mut chain = vec![token];
        while let Some(newest) = chain.last().filter(|newest| Some(*newest) != kept) {
            match entries.get(&CacheKey::new(datahub, newest), now) {
                Some(CacheEntry::Superseded(next)) if !chain.contains(&next.session_token()) => {
                    chain.push(next.session_token());
                }
                _ => break,
            }
        }
        // What has ended already is not ended again: its revocation has begun, and one person's logouts must not push others out.
        let has_ended = |newest: &SessionToken| {
            matches!(entries.get(&CacheKey::new(datahub, newest), now), Some(CacheEntry::Invalidated))
        };
        if chain.last() == kept || chain.last().is_some_and(has_ended) {
            return None;
        }
        for token in &chain {
            entries.insert(CacheKey::new(datahub, token), CacheEntry::Invalidated, now, self.ttl, &self.filter);
        }
        chain.pop()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a refresh begins.
pub(super) enum Begun {
    /// It does: whoever gets the sender must carry it out, and the receiver gets its outcome.
    New {
        /// For its outcome.
        sender: watch::Sender<Option<CacheEntry>>,
        /// Gets it.
        outcome: watch::Receiver<Option<CacheEntry>>,
        /// How many have failed before it.
        failures: u32,
    },
    /// It does not: this is known, such as that a refresh is under way, or that the session has ended.
    Known(CacheEntry),
}

/// What an entry is found by: a DataHUB and a session's token, neither of which can be read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    digest: [u8; 32],
    slot: usize,
}

impl CacheKey {
    pub(super) fn new(datahub: &DataHub, token: &SessionToken) -> Self {
        Self { digest: token.digest_at(datahub.id.as_str()), slot: slot_of(token.filter_hash()) }
    }
}

impl CacheEntry {
    /// Whether this concerns a session with `tokens`. Those that a refresh brought are not superseded by themselves, where a
    /// DataHUB lets a refresh token stay as it is.
    fn applies_to(&self, tokens: &TokenSet) -> bool {
        !matches!(self, Self::Superseded(next) if next.access == tokens.access)
    }
}

#[derive(Debug, Default)]
struct Entries {
    /// With the time at which each expires; a refresh in flight does not.
    by_key: HashMap<CacheKey, (CacheEntry, Option<Instant>)>,
    /// What expires, the oldest first.
    order: VecDeque<(CacheKey, Instant)>,
}

impl Entries {
    fn get(&self, key: &CacheKey, now: Instant) -> Option<&CacheEntry> {
        let (entry, expires_at) = self.by_key.get(key)?;
        let is_current = match (entry, expires_at) {
            // The task that held the sender ended without an outcome: as if it had never begun.
            (CacheEntry::InFlight { outcome, .. }, _) => outcome.has_changed().is_ok(),
            (_, expires_at) => expires_at.is_none_or(|expires_at| now < expires_at),
        };
        is_current.then_some(entry)
    }

    /// Adds an entry that expires, and drops those that have expired, or the oldest if there are too many.
    fn insert(&mut self, key: CacheKey, entry: CacheEntry, now: Instant, ttl: Duration, filter: &Filter) {
        self.drop_expired(now, filter);
        while self.order.len() >= MAX_ENTRIES {
            self.drop_oldest(filter);
        }
        // What must not be asked, or must not live again, is known longer than any answer or Retry-After takes.
        let is_verdict =
            matches!(entry, CacheEntry::Invalidated | CacheEntry::Failed { .. } | CacheEntry::Blocked { .. });
        let expires_at = now + if is_verdict { ttl.max(MIN_TTL) } else { ttl };
        self.put(key, entry, Some(expires_at), filter);
        self.order.push_back((key, expires_at));
    }

    /// Drops what has expired. What was kept longer than what came after it waits for that.
    fn drop_expired(&mut self, now: Instant, filter: &Filter) {
        while self.order.front().is_some_and(|(_, expires_at)| *expires_at <= now) {
            self.drop_oldest(filter);
        }
    }

    fn drop_oldest(&mut self, filter: &Filter) {
        let Some((oldest, expires_at)) = self.order.pop_front() else { return };
        // It may have been added anew since.
        if self.by_key.get(&oldest).is_some_and(|(_, current)| *current == Some(expires_at)) {
            self.remove(&oldest, filter);
        }
    }

    fn put(&mut self, key: CacheKey, entry: CacheEntry, expires_at: Option<Instant>, filter: &Filter) {
        if self.by_key.insert(key, (entry, expires_at)).is_none() {
            filter.add(key.slot);
        }
    }

    fn remove(&mut self, key: &CacheKey, filter: &Filter) {
        if self.by_key.remove(key).is_some() {
            filter.subtract(key.slot);
        }
    }
}

/// How many entries there are, by slot. Changed only while the entries are locked, read by anybody.
#[derive(Debug)]
struct Filter {
    count: AtomicUsize,
    slots: Box<[AtomicU32]>,
}

impl Filter {
    fn new() -> Self {
        Self { count: AtomicUsize::new(0), slots: (0..1 << SLOT_BITS).map(|_| AtomicU32::new(0)).collect() }
    }

    fn may_hold(&self, slot: usize) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.slots[slot].load(Ordering::Acquire) > 0
    }

    fn add(&self, slot: usize) {
        self.slots[slot].fetch_add(1, Ordering::Release);
        self.count.fetch_add(1, Ordering::Release);
    }

    fn subtract(&self, slot: usize) {
        self.slots[slot].fetch_sub(1, Ordering::Release);
        self.count.fetch_sub(1, Ordering::Release);
    }
}

/// Where tokens of this hash are counted.
fn slot_of(filter_hash: u64) -> usize {
    usize::try_from(filter_hash >> (u64::BITS - SLOT_BITS)).expect("14 bits")
}

/// How long it is known at least: as long as a DataHUB may tell us to wait.
const MIN_TTL: Duration = Duration::from_mins(5);
/// How many entries are kept.
const MAX_ENTRIES: usize = 10_000;
/// How far a chain of superseded tokens is followed; one that lives is far shorter.
const MAX_CHAIN: usize = 1_000;
/// 16,384 slots, 64 KiB: of 1,000 entries, 6 % of the tokens without one meet one.
const SLOT_BITS: u32 = 14;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::datahub::token::filter_hash;

    const TTL: Duration = Duration::from_mins(10);

    pub(in crate::session::refresh) fn key(number: u64) -> CacheKey {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        CacheKey { digest, slot: slot_of(filter_hash(&number.to_le_bytes())) }
    }

    /// A million refreshes, each of a token that nobody has seen before.
    #[test]
    fn the_cache_stays_bounded() {
        let (mut entries, filter, now) = (Entries::default(), Filter::new(), Instant::now());
        for number in 0..1_000_000 {
            entries.insert(key(number), CacheEntry::Invalidated, now, TTL, &filter);
        }
        assert_eq!((entries.by_key.len(), entries.order.len()), (MAX_ENTRIES, MAX_ENTRIES));
        assert_eq!(filter.count.load(Ordering::Acquire), MAX_ENTRIES);
        assert!(entries.get(&key(990_000), now).is_some() && entries.get(&key(999_999), now).is_some());
        assert!(entries.get(&key(0), now).is_none());
    }

    #[test]
    fn what_is_learnt_anew_is_kept_longer_and_what_has_expired_is_dropped() {
        let (mut entries, filter, now) = (Entries::default(), Filter::new(), Instant::now());
        let millis = Duration::from_millis;
        let later = now + millis(30);
        entries.insert(key(1), CacheEntry::InvalidGrant { since: now }, now, millis(20), &filter);
        entries.insert(key(2), CacheEntry::InvalidGrant { since: now }, now, millis(20), &filter);
        entries.insert(key(1), CacheEntry::Invalidated, now, TTL, &filter);
        assert!(entries.get(&key(2), now + millis(19)).is_some());
        assert!(entries.get(&key(2), now + millis(20)).is_none(), "it has expired");
        entries.insert(key(3), CacheEntry::Invalidated, later, TTL, &filter);
        assert!(matches!(entries.get(&key(1), later), Some(CacheEntry::Invalidated)));
        assert_eq!(entries.by_key.len(), 2, "the other one is gone");
    }

    #[test]
    fn the_filter_knows_every_entry_and_forgets_what_is_removed() {
        let (cache, now) = (RefreshCache::new(TTL), Instant::now());
        let hashes =
            |numbers: std::ops::Range<u64>| numbers.map(|number| filter_hash(format!("{number:08x}").as_bytes()));
        let key = |hash: u64| CacheKey { digest: [7; 32], slot: slot_of(hash) };
        assert!(hashes(0..1_000).all(|hash| !cache.may_hold(hash)));
        let session = TokenSet {
            access: "a".to_owned().try_into().expect("visible ASCII"),
            refresh: None,
            issued: std::time::SystemTime::UNIX_EPOCH,
            lifetime: TTL,
        };
        let mut senders = Vec::new();
        for hash in hashes(0..1_000) {
            let Begun::New { sender, .. } = cache.begin(key(hash), &session, now) else { panic!("nothing is known") };
            senders.push(sender);
            let again = cache.begin(key(hash), &session, now);
            assert!(matches!(again, Begun::Known(CacheEntry::InFlight { .. })), "one refresh for each token");
        }
        assert!(hashes(0..1_000).all(|hash| cache.may_hold(hash)));
        let met = hashes(1_000..11_000).filter(|hash| cache.may_hold(*hash)).count();
        assert!(met < 1_000, "{met} of 10,000 tokens without an entry meet one");
        for (hash, sender) in hashes(0..1_000).zip(&senders) {
            assert!(cache.withdraw(&key(hash), sender), "nobody waits for it");
        }
        assert!(hashes(0..1_000).all(|hash| !cache.may_hold(hash)));
    }
}
