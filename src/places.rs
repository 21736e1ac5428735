//! Places that people share out among themselves, so that nobody keeps the others out.
//!
//! Everybody may hold an eighth at most. Where the proxy's calls and the refreshes at a DataHUB are bounded, it is by this.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Places, of which each holder may have a share.
///
/// A call that finds none waits in its holder's queue. The holders that have calls waiting and may have another place take
/// turns, a place each. Who has a whole share gets into that line once one of its own places is free again: behind everybody
/// else.
#[derive(Debug)]
pub struct Places<H> {
    state: Mutex<PlacesState<H>>,
    /// Most calls under way of one holder.
    max_held: usize,
    /// Most waiting calls.
    max_waiting: usize,
    /// Most waiting calls of one holder.
    max_waiting_each: usize,
}

#[derive(Debug)]
struct PlacesState<H> {
    /// None of them is left while somebody is in `turns`.
    free: usize,
    waiting: usize,
    last_ticket: u64,
    /// Of every holder with a call under way or waiting.
    shares: HashMap<H, Share, RandomState>,
    /// Whose waiting call gets the next free place: each holder that has one and has not all of its share.
    turns: VecDeque<H>,
}

#[derive(Debug, Default)]
struct Share {
    held: usize,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    /// Wakes the call once it has a place.
    turn: oneshot::Sender<()>,
}

/// What one call has: a place, or a place in a queue until its turn comes. Either is given back when this is dropped.
#[derive(Debug)]
pub struct Place<'a, H: Copy + Eq + Hash> {
    places: &'a Places<H>,
    holder: H,
    /// That of a call that has waited.
    ticket: Option<u64>,
}

impl<H: Copy + Eq + Hash> Places<H> {
    /// `count` of them, and `max_waiting` calls that wait for one.
    pub fn new(count: usize, max_waiting: usize) -> Self {
        let (shares, turns) = (HashMap::default(), VecDeque::new());
        let state = Mutex::new(PlacesState { free: count, waiting: 0, last_ticket: 0, shares, turns });
        Self { state, max_held: share(count), max_waiting, max_waiting_each: share(max_waiting) }
    }

    /// A place, at once or after waiting for `limit` at most.
    ///
    /// # Errors
    /// [`LimitReached`].
    pub async fn acquire(&self, holder: H, limit: Duration) -> Result<Place<'_, H>, LimitReached> {
        let (place, turn) = self.enter(holder)?;
        match turn {
            // Whoever gives up is taken out of the queue by the drop of `place`.
            Some(turn) => timeout(limit, turn).await.map(|_| place).map_err(|_| LimitReached),
            None => Ok(place),
        }
    }

    /// A place, or one in the queue and what tells that its turn has come.
    fn enter(&self, holder: H) -> Result<(Place<'_, H>, Option<oneshot::Receiver<()>>), LimitReached> {
        let mut state = self.lock();
        let PlacesState { free, waiting, last_ticket, shares, turns } = &mut *state;
        let share = shares.entry(holder).or_default();
        if *free > 0 && share.held < self.max_held {
            *free -= 1;
            share.held += 1;
            return Ok((Place { places: self, holder, ticket: None }, None));
        }
        if *waiting >= self.max_waiting || share.waiting.len() >= self.max_waiting_each {
            if share.is_unused() {
                shares.remove(&holder);
            }
            return Err(LimitReached);
        }
        if share.waiting.is_empty() && share.held < self.max_held {
            turns.push_back(holder);
        }
        let (turn, woken) = oneshot::channel();
        *waiting += 1;
        *last_ticket += 1;
        share.waiting.push_back(Waiter { ticket: *last_ticket, turn });
        Ok((Place { places: self, holder, ticket: Some(*last_ticket) }, Some(woken)))
    }

    /// Gives back a place, or the one in the queue of a call whose turn has not come.
    fn leave(&self, holder: H, ticket: Option<u64>) {
        let mut state = self.lock();
        let PlacesState { free, waiting, shares, turns, .. } = &mut *state;
        let Entry::Occupied(mut entry) = shares.entry(holder) else { return };
        let share = entry.get_mut();
        let queued = ticket.and_then(|ticket| share.waiting.iter().position(|waiter| waiter.ticket == ticket));
        if let Some(at) = queued {
            share.waiting.remove(at);
            *waiting -= 1;
            if share.waiting.is_empty() {
                turns.retain(|other| *other != holder);
            }
        } else {
            if share.held == self.max_held && !share.waiting.is_empty() {
                turns.push_back(holder);
            }
            share.held -= 1;
            *free += 1;
        }
        if share.is_unused() {
            entry.remove();
        }
        state.fill(self.max_held);
    }

    fn lock(&self) -> MutexGuard<'_, PlacesState<H>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: Copy + Eq + Hash> PlacesState<H> {
    /// Gives free places to those whose turn it is.
    fn fill(&mut self, max_held: usize) {
        while self.free > 0
            && let Some(holder) = self.turns.pop_front()
            && let Some(share) = self.shares.get_mut(&holder)
            && let Some(waiter) = share.waiting.pop_front()
        {
            self.free -= 1;
            self.waiting -= 1;
            share.held += 1;
            if share.held < max_held && !share.waiting.is_empty() {
                self.turns.push_back(holder);
            }
            // A call that is being dropped does not hear it, and gives the place back.
            let _ = waiter.turn.send(());
        }
    }
}

impl Share {
    fn is_unused(&self) -> bool {
        self.held == 0 && self.waiting.is_empty()
    }
}

impl<H: Copy + Eq + Hash> Drop for Place<'_, H> {
    fn drop(&mut self) {
        self.places.leave(self.holder, self.ticket);
    }
}

/// What one holder may have of `count`: an eighth, and at least one if there is one.
pub fn share(count: usize) -> usize {
    (count / 8).max(count.min(1))
}

/// Too many calls are waiting, or too many of one holder's, or one has waited too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many calls are under way at this DataHUB, or too many of this person's or network's")]
pub struct LimitReached;

#[cfg(test)]
impl<H: Copy + Eq + Hash + std::fmt::Debug> Places<H> {
    /// Who has or wants a place.
    pub fn holders(&self) -> Vec<H> {
        self.lock().shares.keys().copied().collect()
    }

    /// Nobody has or wants one of the `count` places, and nothing is remembered of those who had.
    #[track_caller]
    pub fn is_unused(&self, count: usize) {
        let state = self.lock();
        assert_eq!((state.free, state.waiting), (count, 0));
        assert!(state.shares.is_empty() && state.turns.is_empty(), "{state:?}");
    }

    /// Nobody has more than a share, and no place is free while somebody waits who may have it.
    #[track_caller]
    pub fn is_consistent(&self) {
        let state = self.lock();
        assert!(state.waiting <= self.max_waiting && (state.free == 0 || state.turns.is_empty()));
        let mut turns: Vec<_> = state.turns.iter().collect();
        for (holder, share) in &state.shares {
            assert!(share.held <= self.max_held && share.waiting.len() <= self.max_waiting_each);
            let is_due = share.held < self.max_held && !share.waiting.is_empty();
            let before = turns.len();
            turns.retain(|other| *other != holder);
            assert_eq!(before - turns.len(), usize::from(is_due), "once in the line if it is due");
        }
        assert!(turns.is_empty(), "nobody else is in it");
    }
}
