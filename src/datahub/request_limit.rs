//! How many requests of one kind are under way at one DataHUB: a crowd that comes at once makes a provider slow.
//!
//! One person has an eighth of them at most, however often they are logged in, so that nobody else waits for theirs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::places::Places;

/// Permits for requests that begin at once. One that takes long gives its permit back and goes on.
#[derive(Debug)]
pub(super) struct RequestLimit {
    beginning: Places<Holder>,
    running: Places<Holder>,
    unknown: AtomicU64,
}

/// Whose requests have a share of the permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    /// A person, by a number that tells the people of one DataHUB apart.
    Person(u64),
    /// The only request of somebody who is not known, by a number of its own.
    Unknown(u64),
}

impl RequestLimit {
    pub(super) fn new() -> Self {
        let [beginning, running] = [MAX_BEGINNING, MAX_RUNNING].map(|count| Places::new(count, usize::MAX));
        Self { beginning, running, unknown: AtomicU64::default() }
    }

    /// Does `work` once there is a permit for it. `is_wanted` says, when there is one, whether it is still to be done. Requests
    /// of nobody who is known wait in the order in which they came.
    pub(super) async fn run<T>(
        &self,
        person: Option<u64>,
        is_wanted: impl FnOnce() -> bool,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let holder =
            person.map_or_else(|| Holder::Unknown(self.unknown.fetch_add(1, Ordering::Relaxed)), Holder::Person);
        let _running = self.running.acquire(holder, Duration::MAX).await.ok()?;
        let permit = self.beginning.acquire(holder, Duration::MAX).await.ok()?;
        if !is_wanted() {
            return None;
        }
        let mut work = std::pin::pin!(work);
        if let Ok(output) = tokio::time::timeout(MAX_HOLD, &mut work).await {
            return Some(output);
        }
        drop(permit);
        Some(work.await)
    }
}

/// How many begin at once.
const MAX_BEGINNING: usize = 16;
/// How many are under way, those that take long among them.
const MAX_RUNNING: usize = 256;
/// How long a request keeps its permit.
const MAX_HOLD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::{join, join_all};
    use tokio::time::{Instant, sleep};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(test);
    }

    /// So many requests of these people at once, each of which takes so many seconds: how many were under way at most, and
    /// when the last one was done.
    async fn crowd(limit: &RequestLimit, people: impl Iterator<Item = Option<u64>>, seconds: u64) -> (u64, u64) {
        let (under_way, peak, begun) = (Cell::new(0), Cell::new(0), Instant::now());
        let work = async || {
            under_way.set(under_way.get() + 1);
            peak.set(peak.get().max(under_way.get()));
            sleep(Duration::from_secs(seconds)).await;
            under_way.set(under_way.get() - 1);
        };
        let all = join_all(people.map(|person| limit.run(person, || true, work()))).await;
        assert!(all.iter().all(Option::is_some));
        (peak.get(), begun.elapsed().as_secs())
    }

    #[test]
    fn so_many_begin_at_once_and_slow_ones_give_way() {
        run(async {
            let everybody = || (0..300).map(Some);
            for (seconds, most, in_all) in [(1, 16, 19), (9, 16, 171), (30, 48, 210), (3_000, 256, 6_020)] {
                let limit = RequestLimit::new();
                assert_eq!(crowd(&limit, everybody(), seconds).await, (most, in_all), "{seconds} s each");
                assert_eq!(crowd(&limit, (0..300).map(|_| None), seconds).await, (most, in_all), "of nobody known");
                limit.beginning.is_unused(MAX_BEGINNING);
                limit.running.is_unused(MAX_RUNNING);
            }
        });
    }

    #[test]
    fn one_person_has_an_eighth_and_keeps_nobody_waiting() {
        run(async {
            let own = |count| std::iter::repeat_n(Some(7), count);
            for (seconds, most, in_all) in [(1, 2, 30), (30, 6, 320), (3_000, 32, 6_130)] {
                let limit = RequestLimit::new();
                assert_eq!(crowd(&limit, own(60), seconds).await, (most, in_all), "{seconds} s each");
            }
            let limit = RequestLimit::new();
            let others = async {
                sleep(Duration::from_millis(1)).await;
                crowd(&limit, (10..24).map(Some), 4).await
            };
            let (of_one, of_others) = join(crowd(&limit, own(60), 4), others).await;
            assert_eq!((of_one, of_others), ((2, 120), (14, 4)));
        });
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_begun() {
        run(async {
            let limit = RequestLimit::new();
            assert_eq!(limit.run(Some(1), || false, async { panic!("it was not to be done") }).await, None::<()>);
            assert_eq!(limit.run(Some(1), || true, async { 7 }).await, Some(7));
        });
    }
}
