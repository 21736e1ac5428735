//! Which calls may go up to one DataHUB, so that a slow or a dead one cannot occupy the whole process.
//!
//! Only so many calls may be under way, and only so many may wait, for a short time. One person has an eighth of both at
//! most, so that nobody keeps the others out.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::error::{ApiError, Code};
use crate::places::{LimitReached, Place, Places, share};

/// How many calls may be under way at one DataHUB, over all workers, and how many of them may be one person's.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    all: Places<Holder>,
    /// The share that all calls without a login have together, shared out among their networks in the same way.
    anonymous: Places<Holder>,
}

/// Whose calls have a share of the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// A person, however often they are logged in: their [`user_key`](crate::session::open_session::OpenSession::user_key).
    Person(u64),
    /// A network that calls without a login.
    Network(Option<IpAddr>),
    /// All of these networks.
    Anonymous,
}

/// Permission for one call under way, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    #[expect(dead_code, reason = "held for its drop")]
    place: Place<'a, Holder>,
    /// That among the anonymous calls.
    #[expect(dead_code, reason = "held for its drop")]
    anonymous: Option<Place<'a, Holder>>,
}

impl ConcurrencyLimit {
    /// `in_flight` calls at once, and `max_waiting` that wait.
    pub(super) fn new(in_flight: usize, max_waiting: usize) -> Self {
        let anonymous = Places::new(share(in_flight), share(max_waiting));
        Self { all: Places::new(in_flight, max_waiting), anonymous }
    }

    /// A permit for a person or a network, at once or after waiting for `limit` at most.
    ///
    /// # Errors
    /// [`LimitReached`]; nothing is sent then.
    pub(super) async fn acquire(&self, holder: Holder, limit: Duration) -> Result<Permit<'_>, LimitReached> {
        if let Holder::Person(_) = holder {
            return Ok(Permit { place: self.all.acquire(holder, limit).await?, anonymous: None });
        }
        let begun = Instant::now();
        let anonymous = Some(self.anonymous.acquire(holder, limit).await?);
        let left = limit.saturating_sub(begun.elapsed());
        Ok(Permit { place: self.all.acquire(Holder::Anonymous, left).await?, anonymous })
    }
}

impl From<LimitReached> for ApiError {
    fn from(error: LimitReached) -> Self {
        Self::because(Code::Overloaded, error).retry_after(RETRY_AFTER)
    }
}

/// When a call that found no place may come again.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const ONE: Holder = Holder::Person(1);
    const OTHER: Holder = Holder::Person(2);
    const THIRD: Holder = Holder::Person(3);

    type Waiting = Pin<Box<dyn Future<Output = Result<Permit<'static>, LimitReached>>>>;

    fn limit(in_flight: usize, max_waiting: usize) -> &'static ConcurrencyLimit {
        Box::leak(Box::new(ConcurrencyLimit::new(in_flight, max_waiting)))
    }

    impl ConcurrencyLimit {
        /// A permit that is there at once.
        #[track_caller]
        fn now(&'static self, holder: Holder) -> Permit<'static> {
            let mut acquiring = Box::pin(self.acquire(holder, LONG));
            let Poll::Ready(permit) = poll(acquiring.as_mut()) else { panic!("it waits") };
            permit.expect("a place")
        }

        /// A call that waits.
        #[track_caller]
        fn wait(&'static self, holder: Holder) -> Waiting {
            let mut acquiring: Waiting = Box::pin(self.acquire(holder, LONG));
            assert!(poll(acquiring.as_mut()).is_pending(), "it does not wait");
            acquiring
        }

        #[track_caller]
        fn refuses(&'static self, holder: Holder) {
            assert_eq!(poll(Box::pin(self.acquire(holder, LONG)).as_mut()).map(Result::err), FULL);
        }

        /// Nobody has or wants anything, and nothing is remembered of those who had.
        #[track_caller]
        fn is_unused(&self, in_flight: usize) {
            self.all.is_unused(in_flight);
            self.anonymous.is_unused(share(in_flight));
        }
    }

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// The permit of one that has waited, if its turn has come.
    #[track_caller]
    fn turn(mut waiting: Waiting) -> Permit<'static> {
        let Poll::Ready(permit) = poll(waiting.as_mut()) else { panic!("it still waits") };
        permit.expect("a place")
    }

    /// Timers need a runtime.
    fn run<T>(test: impl FnOnce() -> T) -> T {
        actix_web::rt::System::new().block_on(async { test() })
    }

    #[test]
    fn who_leaves_makes_room_for_who_waits_and_no_more_wait_than_may() {
        actix_web::rt::System::new().block_on(async {
            let limit = limit(1, 1);
            let first = limit.now(ONE);
            let waiter = actix_web::rt::spawn(limit.acquire(ONE, LONG));
            tokio::time::sleep(Duration::from_millis(10)).await;
            limit.refuses(ONE);
            drop(first);
            drop(waiter.await.expect("it did not panic").expect("the place is free again"));
            let second = limit.now(ONE);
            assert_eq!(limit.acquire(ONE, Duration::from_millis(1)).await.unwrap_err(), LimitReached);
            drop(second);
            limit.is_unused(1);
        });
    }

    #[test]
    fn one_person_holds_an_eighth_and_one_at_least() {
        run(|| {
            for (in_flight, waiting, held, queued) in [(1, 1, 1, 1), (7, 15, 1, 1), (16, 8, 2, 1), (1024, 256, 128, 32)]
            {
                let limit = limit(in_flight, waiting);
                let held: Vec<_> = (0..held).map(|_| limit.now(ONE)).collect();
                let queued: Vec<_> = (0..queued).map(|_| limit.wait(ONE)).collect();
                limit.refuses(ONE);
                if in_flight > 1 {
                    // Its twin: everybody else is let in.
                    drop(limit.now(OTHER));
                }
                drop((queued, held));
                limit.is_unused(in_flight);
            }
            limit(1, 0).now(ONE);
            let limit = limit(1, 0);
            let _held = limit.now(ONE);
            limit.refuses(OTHER);
            limit.refuses(Holder::Network(None));
            assert_eq!(
                (limit.all.holders(), limit.anonymous.holders()),
                (vec![ONE], vec![]),
                "nobody else is remembered"
            );
        });
    }

    #[test]
    fn people_take_turns_and_who_has_a_whole_share_comes_last() {
        run(|| {
            // Two each.
            let limit = limit(16, 64);
            let others: Vec<_> =
                (10..17).flat_map(|id| [limit.now(Holder::Person(id)), limit.now(Holder::Person(id))]).collect();
            let mut held = vec![limit.now(ONE), limit.now(ONE)];
            let (more, last) = (limit.wait(ONE), limit.wait(ONE));
            let (second, again) = (limit.wait(OTHER), limit.wait(OTHER));
            let third = limit.wait(THIRD);
            // A place of their own is free again, and those who have waited with none are before them.
            held.pop();
            let second = turn(second);
            let mut others = others.into_iter();
            others.next();
            let third = turn(third);
            others.next();
            let more = turn(more);
            others.next();
            let again = turn(again);
            others.next();
            limit.now(Holder::Person(4));
            drop(held);
            let last = turn(last);
            drop((second, third, more, again, last, others));
            limit.is_unused(16);
        });
    }

    #[test]
    fn who_gives_up_at_whatever_moment_keeps_nobody_waiting() {
        run(|| {
            let limit = limit(1, 64);
            let held = limit.now(ONE);
            let waiting: Vec<_> = (2..8).map(|id| limit.wait(Holder::Person(id))).collect();
            let [first, second, third, fourth, ..] = <[Waiting; 6]>::try_from(waiting).ok().expect("six of them");
            // In the queue; with a place that it has not heard of yet; with one that it has taken.
            drop(second);
            drop(held);
            drop(first);
            let third = turn(third);
            drop(third);
            drop(turn(fourth));
        });
    }

    #[test]
    fn calls_without_a_login_have_one_share_and_each_network_an_eighth_of_it() {
        run(|| {
            let network = |number: u8| Holder::Network(Some(IpAddr::from([192, 0, 2, number])));
            // 16 for all of them, two for each.
            let limit = limit(128, 128);
            let mut held: Vec<_> = (0..8).flat_map(|at| [limit.now(network(at)), limit.now(network(at))]).collect();
            let (own, other) = (limit.wait(network(0)), limit.wait(network(9)));
            drop(limit.now(ONE));
            held.remove(0);
            let other = turn(other);
            held.remove(0);
            let own = turn(own);
            drop((held, own, other));
            let held = (limit.now(network(0)), limit.now(network(0)));
            let waiting = (limit.wait(network(0)), limit.wait(network(0)));
            limit.refuses(network(0));
            drop(limit.now(network(1)));
            drop(limit.now(Holder::Network(None)));
            drop((held, waiting));
            // Where all places are taken by people, they wait as one more of them.
            let people: Vec<_> = (0..128).map(|id| limit.now(Holder::Person(id))).collect();
            let waiting = limit.wait(network(0));
            drop(people);
            drop(turn(waiting));
            limit.is_unused(128);
        });
    }

    /// Whatever is taken, waited for, given up and given back in whatever order: nobody has more than a share, no place is
    /// free while somebody waits who may have it, and in the end all of it is there.
    #[test]
    fn no_place_is_ever_lost() {
        run(|| {
            let limit = limit(24, 16);
            let (mut held, mut waiting) = (Vec::new(), Vec::<Waiting>::new());
            let mut random = 1_u64;
            for _ in 0..20_000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (action, at) = ((random >> 60) % 4, (random >> 33) as usize);
                let network = Holder::Network((at % 2 == 0).then(|| IpAddr::from([192, 0, 2, 1])));
                let holder = if at % 12 > 9 { network } else { Holder::Person(at as u64 % 12) };
                match action {
                    0 | 1 => {
                        let mut acquiring: Waiting = Box::pin(limit.acquire(holder, LONG));
                        match poll(acquiring.as_mut()) {
                            Poll::Ready(permit) => held.extend(permit.ok()),
                            Poll::Pending => waiting.push(acquiring),
                        }
                    }
                    2 if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                    3 if !waiting.is_empty() => drop(waiting.swap_remove(at % waiting.len())),
                    _ => {}
                }
                if at % 3 == 0 {
                    waiting.retain_mut(|acquiring| match poll(acquiring.as_mut()) {
                        Poll::Ready(permit) => {
                            held.extend(permit.ok());
                            false
                        }
                        Poll::Pending => true,
                    });
                }
                for places in [&limit.all, &limit.anonymous] {
                    places.is_consistent();
                }
            }
            drop((held, waiting));
            limit.is_unused(24);
        });
    }

    const LONG: Duration = Duration::from_mins(1);
    const FULL: Poll<Option<LimitReached>> = Poll::Ready(Some(LimitReached));
}
