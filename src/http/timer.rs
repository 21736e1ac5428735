//! One timer for all deadlines of a connection.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that stays set. If it fires before the deadline that counts, it is moved on to that. So a deadline, which is
/// nearly never reached, costs a comparison and no visit to the runtime's timers.
#[derive(Debug)]
pub(super) struct Timer(Pin<Box<Sleep>>);

impl Timer {
    /// A timer that first fires at `deadline`, or earlier if an earlier one is waited for.
    pub(super) fn new(deadline: Instant) -> Self {
        Self(Box::pin(sleep_until(deadline)))
    }

    /// Awaits `work` for `limit` at most, from the moment that it has to be waited for: what is there already costs no look
    /// at the clock. `work` comes pinned, since a future passed by value would be copied.
    ///
    /// # Errors
    /// [`Elapsed`]; `work` is not polled any more then.
    pub(super) fn within<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = T> + Unpin,
    ) -> impl Future<Output = Result<T, Elapsed>> {
        self.until(move || Instant::now() + limit, work)
    }

    /// The same until the deadline that `on_wait` names, which is called once, if `work` has to be waited for.
    ///
    /// # Errors
    /// [`Elapsed`]; `work` is not polled any more then.
    pub(super) async fn until<T>(
        &mut self,
        on_wait: impl FnOnce() -> Instant,
        mut work: impl Future<Output = T> + Unpin,
    ) -> Result<T, Elapsed> {
        tokio::select! {
            biased;
            output = &mut work => Ok(output),
            () = async { self.fire_at(on_wait()).await } => Err(Elapsed),
        }
    }

    async fn fire_at(&mut self, deadline: Instant) {
        loop {
            if self.0.deadline() > deadline || self.0.is_elapsed() {
                self.0.as_mut().reset(deadline);
            }
            self.0.as_mut().await;
            if Instant::now() >= deadline {
                return;
            }
        }
    }
}

/// The deadline came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it took too long")]
pub struct Elapsed;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn each_deadline_is_kept_whichever_came_before_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let mut timer = Timer::new(Instant::now() + MINUTE);
            for wait in [10 * MINUTE, MINUTE / 60, MINUTE, MINUTE / 2, 3 * MINUTE, Duration::ZERO] {
                let begun = Instant::now();
                assert_eq!(timer.within(wait, pin!(std::future::pending::<()>())).await, Err(Elapsed));
                let late = begun.elapsed().saturating_sub(wait);
                assert!(late < Duration::from_millis(5), "{wait:?}: {late:?} too late");
                let work = pin!(tokio::time::sleep(wait / 2));
                assert_eq!(timer.until(|| Instant::now() + wait + MINUTE, work).await, Ok(()), "{wait:?}");
            }
        });
    }
}
