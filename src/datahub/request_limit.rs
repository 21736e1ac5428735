//! How many requests of one kind are under way at one DataHUB: a crowd that comes at once makes a provider slow.

use std::time::Duration;

use tokio::sync::Semaphore;

/// Permits for requests that begin at once. One that takes long gives its permit back and goes on.
#[derive(Debug)]
pub(super) struct RequestLimit {
    beginning: Semaphore,
    running: Semaphore,
}

impl RequestLimit {
    pub(super) fn new() -> Self {
        Self { beginning: Semaphore::new(MAX_BEGINNING), running: Semaphore::new(MAX_RUNNING) }
    }

    /// Does `work` once there is a permit for it. `is_wanted` says, when there is one, whether it is still to be done.
    pub(super) async fn run<T>(&self, is_wanted: impl FnOnce() -> bool, work: impl Future<Output = T>) -> Option<T> {
        let _running = self.running.acquire().await.ok()?;
        let permit = self.beginning.acquire().await.ok()?;
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

    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep};

    use super::*;

    #[test]
    fn so_many_begin_at_once_and_slow_ones_give_way() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            for (seconds, most, in_all) in [(1, 16, 19), (9, 16, 171), (30, 48, 210), (3_000, 256, 6_020)] {
                let (limit, under_way, peak, begun) = (RequestLimit::new(), Cell::new(0), Cell::new(0), Instant::now());
                let work = async || {
                    under_way.set(under_way.get() + 1);
                    peak.set(peak.get().max(under_way.get()));
                    sleep(Duration::from_secs(seconds)).await;
                    under_way.set(under_way.get() - 1);
                };
                let all = join_all((0..300).map(|_| limit.run(|| true, work()))).await;
                assert!(all.iter().all(Option::is_some));
                assert_eq!((peak.get(), begun.elapsed().as_secs()), (most, in_all), "{seconds} s each");
            }
        });
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_begun() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let limit = RequestLimit::new();
            assert_eq!(limit.run(|| false, async { panic!("it was not to be done") }).await, None::<()>);
            assert_eq!(limit.run(|| true, async { 7 }).await, Some(7));
        });
    }
}
