//! Which calls may go up to one DataHUB, so that a slow or a dead one cannot take the whole process.
//!
//! So many may be under way and so many may wait, not for long. And after a few calls in a row that got no answer at all,
//! whoever they were for, the next ones are refused at once, but for one now and then that finds out whether it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::datahub::DataHubId;
use crate::error::{ApiError, Code};
use crate::metrics;

/// The way to one DataHUB, for the calls of all workers.
#[derive(Debug)]
pub struct Gate {
    datahub: DataHubId,
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    may_wait: usize,
    /// How many calls in a row got no answer.
    unanswered: AtomicU32,
    began: Instant,
    /// When the next call may try a DataHUB that does not answer, in milliseconds since `began`.
    next_try: AtomicU64,
}

/// A place at a DataHUB, given back when dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Gate {
    /// `in_flight` places at `datahub` and a queue of `may_wait`.
    pub fn new(datahub: DataHubId, in_flight: usize, may_wait: usize) -> Self {
        metrics::datahub(datahub.as_str(), true);
        Self {
            datahub,
            places: Arc::new(Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            may_wait,
            unanswered: AtomicU32::new(0),
            began: Instant::now(),
            next_try: AtomicU64::new(0),
        }
    }

    /// A place, at once or after waiting for one up to `longest`.
    ///
    /// # Errors
    /// [`Closed`]; nothing is sent then.
    pub async fn enter(&self, longest: Duration) -> Result<Place, Closed> {
        if self.is_given_up() {
            return Err(Closed::Unanswered);
        }
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place(place));
        }
        let turn = Turn(&self.waiting);
        if turn.0.fetch_add(1, Ordering::Relaxed) >= self.may_wait {
            return Err(Closed::Full);
        }
        let place = timeout(longest, Arc::clone(&self.places).acquire_owned()).await.map_err(|_| Closed::Full)?;
        Ok(Place(place.expect("the semaphore is never closed")))
    }

    /// The DataHUB has answered, whatever it said.
    pub fn answered(&self) {
        // Nearly always nothing changes, and nothing is written that all workers share.
        if self.unanswered.load(Ordering::Relaxed) > 0 && self.unanswered.swap(0, Ordering::Relaxed) >= TRIES {
            metrics::datahub(self.datahub.as_str(), true);
            log::info!(datahub = self.datahub.as_str(); "a DataHUB answers again");
        }
    }

    /// A call got no answer.
    pub fn unanswered(&self) {
        if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 == TRIES {
            self.next_try.store(self.now() + PAUSE, Ordering::Relaxed);
            metrics::datahub(self.datahub.as_str(), false);
            log::warn!(datahub = self.datahub.as_str(); "a DataHUB does not answer; one call a second tries it");
        }
    }

    /// Whether this call is not to try a DataHUB that does not answer.
    fn is_given_up(&self) -> bool {
        if self.unanswered.load(Ordering::Relaxed) < TRIES {
            return false;
        }
        let (now, next) = (self.now(), self.next_try.load(Ordering::Relaxed));
        now < next || self.next_try.compare_exchange(next, now + PAUSE, Ordering::Relaxed, Ordering::Relaxed).is_err()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// One that waits; a client that leaves waits no more.
struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a call does not go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// Too many calls are waiting for this DataHUB, or one has waited too long.
    #[error("too many calls are under way at this DataHUB")]
    Full,
    /// It has not answered for a while.
    #[error("the DataHUB has not answered the last calls")]
    Unanswered,
}

impl From<Closed> for ApiError {
    fn from(error: Closed) -> Self {
        let code = match error {
            Closed::Full => Code::Overloaded,
            Closed::Unanswered => Code::DatahubUnreachable,
        };
        Self::because(code, error).retry_after(Duration::from_millis(PAUSE))
    }
}

/// After how many calls without an answer a DataHUB is given up.
const TRIES: u32 = 5;
/// How long until the next call tries it, in milliseconds.
const PAUSE: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_makes_room_for_who_waits_and_no_more_wait_than_may() {
        actix_web::rt::System::new().block_on(one_place_and_one_that_may_wait());
    }

    async fn one_place_and_one_that_may_wait() {
        let gate = Arc::new(gate(1, 1));
        let first = gate.enter(LONG).await.expect("the place is free");
        let waiter = actix_web::rt::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter(LONG).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Closed::Full);
        drop(first);
        let second = waiter.await.expect("it did not panic").expect("the place is free again");
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(gate.enter(Duration::from_millis(1)).await.unwrap_err(), Closed::Full);
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
        drop(second);
        assert!(gate.enter(LONG).await.is_ok());
    }

    #[test]
    fn after_a_few_calls_without_an_answer_one_a_second_tries() {
        actix_web::rt::System::new().block_on(given_up_and_back());
    }

    async fn given_up_and_back() {
        let gate = gate(9, 9);
        for _ in 1..TRIES {
            gate.unanswered();
        }
        assert!(gate.enter(LONG).await.is_ok(), "not yet");
        gate.answered();
        for _ in 0..TRIES {
            assert!(gate.enter(LONG).await.is_ok(), "one that was answered begins the count again");
            gate.unanswered();
        }
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Closed::Unanswered);
        gate.next_try.store(gate.now(), Ordering::Relaxed);
        assert!(gate.enter(LONG).await.is_ok(), "one tries");
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Closed::Unanswered, "and no second one");
        gate.answered();
        assert!(gate.enter(LONG).await.is_ok());
    }

    fn gate(in_flight: usize, may_wait: usize) -> Gate {
        Gate::new("a".parse().expect("an id"), in_flight, may_wait)
    }

    const LONG: Duration = Duration::from_mins(1);
}
