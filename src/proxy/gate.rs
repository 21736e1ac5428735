//! How many calls may be under way at one DataHUB, so that a slow one cannot take the whole process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiError, Code};

/// Lets so many calls in, over all workers, and so many wait.
#[derive(Debug)]
pub struct Gate {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    may_wait: usize,
}

/// A place at a DataHUB, given back when dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Gate {
    /// `in_flight` places and a queue of `may_wait`.
    pub fn new(in_flight: usize, may_wait: usize) -> Self {
        let places = Arc::new(Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS)));
        Self { places, waiting: AtomicUsize::new(0), may_wait }
    }

    /// A place, at once or after waiting for one.
    ///
    /// # Errors
    /// [`Full`] if too many wait already.
    pub async fn enter(&self) -> Result<Place, Full> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place(place));
        }
        let turn = Turn(&self.waiting);
        if turn.0.fetch_add(1, Ordering::Relaxed) >= self.may_wait {
            return Err(Full);
        }
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        Ok(Place(place))
    }
}

/// One that waits; a client that leaves waits no more.
struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Too many calls are waiting for this DataHUB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many calls are waiting for this DataHUB")]
pub struct Full;

impl From<Full> for ApiError {
    fn from(error: Full) -> Self {
        Self::because(Code::Overloaded, error).retry_after(std::time::Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_leaves_makes_room_for_who_waits_and_no_more_wait_than_may() {
        actix_web::rt::System::new().block_on(one_place_and_one_that_may_wait());
    }

    async fn one_place_and_one_that_may_wait() {
        let gate = Arc::new(Gate::new(1, 1));
        let first = gate.enter().await.expect("the place is free");
        let waiter = actix_web::rt::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter().await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(gate.enter().await.unwrap_err(), Full);
        drop(first);
        let second = waiter.await.expect("it did not panic").expect("the place is free again");
        assert_eq!(gate.waiting.load(Ordering::Relaxed), 0);
        drop(second);
        assert!(gate.enter().await.is_ok());
    }
}
