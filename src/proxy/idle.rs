//! Connections to one DataHUB between two calls, and which of them a call may have.
//!
//! Two things may go wrong there. The DataHUB may close a connection just as a request goes out: what must not be sent twice
//! goes over one that is young enough, or over a new one. And a DataHUB that answers twice would give its second answer to
//! the next caller: that is the same session where it can be, else the answer has had the longest time to arrive and to be
//! noticed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::datahub::health::Health;
use crate::http::client::{ClientConnection, SinceAnswer};

/// One worker's connections to one DataHUB on which nothing is under way.
#[derive(Debug)]
pub(super) struct IdlePool {
    /// The one that has been idle longest at the front.
    connections: RefCell<VecDeque<IdleConnection>>,
    max: usize,
    /// The shortest time that an answer has taken.
    round_trip: Cell<Duration>,
    health: Arc<Health>,
}

/// What a call wants of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The call's session, if it has one.
    pub(super) session: Option<SessionTag>,
    /// Whether the call may be sent once more, if this connection turns out to be closed.
    pub(super) may_repeat: bool,
}

/// Stands for a session, as [`Sid::tag`](crate::session::Sid::tag) gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTag(pub(super) u64);

#[derive(Debug)]
struct IdleConnection {
    connection: ClientConnection,
    /// Of the last call.
    session: Option<SessionTag>,
    since: Instant,
    /// How long it may be idle.
    lifetime: Duration,
    /// The same for what must not be sent twice.
    safe_lifetime: Duration,
}

impl IdleConnection {
    fn fits(&self, may_repeat: bool, now: Instant) -> bool {
        now.duration_since(self.since) < if may_repeat { self.lifetime } else { self.safe_lifetime }
    }
}

impl IdlePool {
    /// No connection yet, and never more than `max`.
    pub(super) fn new(max: usize, health: Arc<Health>) -> Self {
        Self { connections: RefCell::default(), max, round_trip: Cell::new(Duration::MAX), health }
    }

    /// A connection on which nothing has happened since its last call; of those that fit, the one that the same session used
    /// last, else the one that has been idle longest.
    pub(super) fn take(&self, wanted: Wanted, now: Instant) -> Option<ClientConnection> {
        let mut connections = self.connections.borrow_mut();
        if !self.health.may_reuse(now) {
            connections.clear();
        }
        loop {
            self.drop_expired(&mut connections, now);
            let fits = |idle: &IdleConnection| idle.fits(wanted.may_repeat, now);
            let is_own = |idle: &IdleConnection| idle.session == wanted.session && fits(idle);
            let is_good = |at: &usize| connections.get(*at).is_some_and(fits);
            // Calls without a login are many people's.
            let recent = wanted.session.and_then(|_| connections.iter().rev().take(MAX_SEARCHED).position(is_own));
            let chosen = recent
                .map(|from_end| connections.len() - 1 - from_end)
                .or_else(|| Some(0).filter(is_good))
                // Where all are kept equally long, those that do not fit stand before the others. Where they are not, it is
                // worth looking at each of them: a new connection costs far more.
                .or_else(|| Some(connections.partition_point(|idle| !fits(idle))).filter(is_good))
                .or_else(|| connections.iter().position(fits));
            let mut idle = connections.remove(chosen?)?;
            if self.is_unchanged(&mut idle.connection, now) {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps a connection for the next call. `keep_alive` is how long the DataHUB said that it keeps it, and `took` how long
    /// its last answer did. The shortest of all answers is what is known of a round trip.
    pub(super) fn put(
        &self,
        connection: ClientConnection,
        session: Option<SessionTag>,
        keep_alive: Option<Duration>,
        took: Duration,
        now: Instant,
    ) {
        let round_trip = self.round_trip.get().min(took);
        self.round_trip.set(round_trip);
        let announced = keep_alive.map_or(MAX_LIFETIME, |announced| announced.saturating_sub(round_trip + MARGIN));
        let lifetime = announced.min(MAX_LIFETIME);
        let safe_lifetime = keep_alive.map_or(SAFE_LIFETIME, |announced| announced / 2).min(lifetime);
        let mut connections = self.connections.borrow_mut();
        self.drop_expired(&mut connections, now);
        // Behind the front may stand some that were to be kept for a shorter time. Looking for one costs less than to close
        // this one.
        if connections.len() >= self.max
            && let Some(mut expired) =
                connections.iter().position(|idle| !idle.fits(true, now)).and_then(|at| connections.remove(at))
        {
            self.is_unchanged(&mut expired.connection, now);
        }
        if connections.len() < self.max && !lifetime.is_zero() && self.health.may_reuse(now) {
            connections.push_back(IdleConnection { connection, session, since: now, lifetime, safe_lifetime });
        }
    }

    fn drop_expired(&self, connections: &mut VecDeque<IdleConnection>, now: Instant) {
        while connections.front().is_some_and(|oldest| !oldest.fits(true, now)) {
            if let Some(mut oldest) = connections.pop_front() {
                self.is_unchanged(&mut oldest.connection, now);
            }
        }
    }

    /// Whether nothing has happened on a connection. What came unasked is reported.
    fn is_unchanged(&self, connection: &mut ClientConnection, now: Instant) -> bool {
        let since = connection.since_answer();
        if since == SinceAnswer::Unasked {
            self.health.report_unasked(now);
        }
        since == SinceAnswer::Nothing
    }
}

/// How long a connection is kept at most: less than the 65 s and more after which GitLab's nginx closes it.
const MAX_LIFETIME: Duration = Duration::from_secs(50);
/// How long it is good for what must not be sent twice, if the DataHUB does not say how long it keeps it.
const SAFE_LIFETIME: Duration = Duration::from_secs(15);
/// How much earlier than announced, but for a round trip, it is given up.
const MARGIN: Duration = Duration::from_millis(500);
/// Among how many of the connections that were used last the session's own is searched.
const MAX_SEARCHED: usize = 32;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::http::buffer::BufferPool;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn pool() -> IdlePool {
        IdlePool::new(200, Arc::new(Health::new("a".parse().expect("an id"))))
    }

    /// Puts a connection into the pool; gives the DataHUB's end.
    fn put(pool: &IdlePool, session: u64, keep_alive: Option<u64>, now: Instant) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64);
        let connection = ClientConnection::new(Box::new(ours), &BufferPool::default());
        pool.put(connection, tag(session), keep_alive.map(Duration::from_secs), 100 * MS, now);
        theirs
    }

    /// That of a session; 0 is none.
    fn tag(session: u64) -> Option<SessionTag> {
        (session > 0).then_some(SessionTag(session))
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(test)
    }

    #[test]
    fn a_connection_is_given_up_before_the_datahub_closes_it_and_earlier_for_what_must_not_be_sent_twice() {
        run(async {
            let begin = Instant::now();
            for (keep_alive, safe, any) in [
                (None, 15_000, 50_000),
                (Some(1), 400, 400),
                (Some(2), 1_000, 1_400),
                (Some(5), 2_500, 4_400),
                (Some(60), 30_000, 50_000),
                (Some(600), 50_000, 50_000),
                (Some(u64::MAX), 50_000, 50_000),
                (Some(0), 0, 0),
            ] {
                for (may_repeat, lifetime) in [(false, safe), (true, any)] {
                    let is_there = |age: u32| {
                        let pool = pool();
                        let _theirs = put(&pool, 1, keep_alive, begin);
                        pool.take(Wanted { session: tag(1), may_repeat }, begin + age * MS).is_some()
                    };
                    let case = format!("{keep_alive:?}, may be repeated: {may_repeat}");
                    assert!(!is_there(lifetime), "{case}");
                    assert!(lifetime == 0 || is_there(lifetime - 1), "{case}");
                }
            }
        });
    }

    #[test]
    fn a_session_gets_its_own_connection_and_else_the_one_that_has_been_idle_longest() {
        run(async {
            let (pool, begin) = (pool(), Instant::now());
            let sessions = (0..).zip([1, 2, 1, 3, 2]);
            let mut theirs: Vec<_> =
                sessions.map(|(at, session)| put(&pool, session, None, begin + at * SECOND)).collect();
            let mut taken = Vec::new();
            let wants = [(1, true, 5), (9, true, 5), (2, false, 5), (9, false, 17), (9, true, 17), (9, true, 17)];
            for (session, may_repeat, after) in wants {
                let Some(mut connection) =
                    pool.take(Wanted { session: tag(session), may_repeat }, begin + after * SECOND)
                else {
                    taken.push(None);
                    continue;
                };
                connection.send(b"?", SECOND).await.expect("in time");
                let has_request = |end: &mut DuplexStream| matches!(end.read(&mut [0]).now_or_never(), Some(Ok(1)));
                taken.push(theirs.iter_mut().position(has_request));
            }
            assert_eq!(taken, [Some(2), Some(0), Some(4), Some(3), Some(1), None]);
        });
    }

    #[test]
    fn who_has_no_session_gets_the_one_that_has_been_idle_longest() {
        run(async {
            let (pool, begin) = (pool(), Instant::now());
            let mut theirs: Vec<_> = (0..2).map(|at| put(&pool, 0, None, begin + at * SECOND)).collect();
            let wanted = Wanted { session: None, may_repeat: true };
            let mut taken = pool.take(wanted, begin + 2 * SECOND).expect("both fit");
            taken.send(b"?", SECOND).await.expect("in time");
            assert!(matches!(theirs[0].read(&mut [0]).now_or_never(), Some(Ok(1))), "it is some other's last one");
        });
    }

    #[test]
    fn each_connection_lives_as_long_as_its_own_last_answer_said() {
        run(async {
            let begin = Instant::now();
            for (kept, may_repeat, after, expected) in [
                (&[Some(60), Some(2), Some(2), Some(2)][..], true, 3, true),
                (&[Some(60), Some(2), Some(2), Some(2)], false, 3, true),
                (&[Some(2), Some(60), Some(2), Some(2), Some(2)], false, 3, true),
                (&[Some(60), Some(60), Some(2), Some(2)], true, 55, false),
            ] {
                let (pool, wanted) = (pool(), Wanted { session: tag(9), may_repeat });
                let _theirs: Vec<_> = kept.iter().map(|kept| put(&pool, 1, *kept, begin)).collect();
                let taken = pool.take(wanted, begin + after * SECOND);
                assert_eq!(taken.is_some(), expected, "{kept:?}, may be repeated: {may_repeat}");
            }
            let pool = pool();
            let _first = put(&pool, 1, Some(60), begin);
            let _theirs: Vec<_> = (0..199).map(|_| put(&pool, 1, Some(2), begin)).collect();
            let _late: Vec<_> = (0..100).map(|_| put(&pool, 2, Some(60), begin + 3 * SECOND)).collect();
            let sessions: Vec<_> = pool.connections.borrow().iter().map(|idle| idle.session).collect();
            assert_eq!(
                sessions.iter().filter(|session| **session == tag(2)).count(),
                100,
                "what has expired holds no place"
            );
        });
    }

    #[test]
    fn what_takes_the_datahub_long_is_no_round_trip() {
        run(async {
            let (pool, begin) = (pool(), Instant::now());
            let _first = put(&pool, 1, Some(5), begin);
            let (ours, _theirs) = tokio::io::duplex(64);
            let connection = ClientConnection::new(Box::new(ours), &BufferPool::default());
            pool.put(connection, tag(2), Some(5 * SECOND), 5 * SECOND, begin);
            assert_eq!(pool.connections.borrow().len(), 2, "a report of five seconds has cost a connection");
        });
    }

    #[test]
    fn what_came_unasked_is_reported_and_what_says_goodbye_is_not() {
        run(async {
            let begin = Instant::now();
            for (case, bytes, is_closed, is_kept, is_reported) in [
                ("nothing", &b""[..], false, true, false),
                ("an end", b"", true, false, false),
                ("an end with a reason", b"HTTP/1.1 408 Request Time-out\r\n\r\n", true, false, false),
                ("a second answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, false, true),
                ("a second answer and the end", b"HTTP/1.1 200 OK\r\n\r\n", true, false, true),
                ("a byte", b"\n", false, false, true),
            ] {
                let (pool, wanted) = (pool(), Wanted { session: tag(1), may_repeat: true });
                for turn in 1..=3_u32 {
                    let mut theirs = put(&pool, 1, None, begin);
                    theirs.write_all(bytes).await.expect("there is room");
                    let _open = (!is_closed).then_some(theirs);
                    assert_eq!(pool.take(wanted, begin + SECOND).is_some(), is_kept, "{case}, {turn}");
                }
                for (seconds, may_reuse) in [(1, !is_reported), (600, !is_reported), (601, true)] {
                    let now = begin + seconds * SECOND;
                    let _theirs = put(&pool, 1, None, now);
                    assert_eq!(pool.take(wanted, now).is_some(), may_reuse, "{case}, after {seconds} s");
                }
            }
        });
    }

    #[test]
    fn no_more_are_kept_than_may_be() {
        run(async {
            let (pool, begin) = (pool(), Instant::now());
            let _theirs: Vec<_> = (0..300).map(|_| put(&pool, 1, None, begin)).collect();
            assert_eq!(pool.connections.borrow().len(), 200);
            let late = begin + MAX_LIFETIME;
            let _theirs = put(&pool, 1, None, late);
            assert_eq!(pool.connections.borrow().len(), 1, "the others have had their time");
        });
    }
}
