//! How many connections there are at once, over all workers, and what their unfinished heads and held bodies hold together.
//!
//! A connection costs a client nothing, and an unfinished head little more. Where there is no room for one more, the oldest
//! unfinished head is closed, of the client that has most of them. A head is unfinished from the connection's first moment on,
//! and again once a part of a later one has come. A body that is held until it ends is a part of its head in this: it is
//! unfinished while more of it is awaited, and so is one that is read to be thrown away. Connections on which nothing is awaited, or an answer is due, stay.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::mem;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How many connections there may be. Clones count together.
#[derive(Debug, Clone)]
pub struct ConnectionLimit(Arc<Bounded>);

#[derive(Debug)]
struct Bounded {
    max: usize,
    max_bytes: usize,
    state: Mutex<Admitted>,
}

/// Whose a connection is: an address, or nobody's in particular.
type ClientAddress = Option<IpAddr>;

#[derive(Debug, Default)]
struct Admitted {
    /// How many connections there are.
    open: usize,
    /// What unfinished heads hold, and what is held beside them, in bytes.
    bytes: usize,
    /// How many heads have begun.
    begun: u64,
    /// By client, and in the order in which they began.
    heads: HashMap<ClientAddress, BTreeMap<u64, UnfinishedHead>>,
    /// The clients, by how many unfinished heads they have, then by the age of their oldest one.
    ranks: BTreeMap<(usize, Reverse<u64>), ClientAddress>,
}

#[derive(Debug)]
struct UnfinishedHead {
    /// What has come of it, but for the moments in which more is read.
    bytes: Vec<u8>,
    /// What is held beside that, in bytes.
    beside: usize,
    /// The connection that waits for it sees this end.
    _waits: oneshot::Sender<Infallible>,
}

impl ConnectionLimit {
    /// At most `max` at once.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Bounded { max, max_bytes: MAX_BYTES, state: Mutex::default() }))
    }

    /// Admits a new connection of `client`; nothing if there are as many as may be and none has an unfinished head.
    pub fn admit(&self, client: Option<IpAddr>) -> Option<Admission> {
        let mut state = self.0.lock();
        if state.open >= self.0.max && !state.close_one() {
            return None;
        }
        state.open += 1;
        let head = Some(state.begin(client, Vec::new(), 0));
        drop(state);
        Some(Admission { limit: Arc::clone(&self.0), client, head })
    }
}

/// What lets one connection stay, given back when dropped.
#[derive(Debug)]
pub struct Admission {
    limit: Arc<Bounded>,
    client: ClientAddress,
    /// Its unfinished head, if it has one.
    head: Option<AwaitedHead>,
}

#[derive(Debug)]
struct AwaitedHead {
    number: u64,
    closed: oneshot::Receiver<Infallible>,
}

impl Admission {
    /// Keeps what has come of a head while more is waited for: here it can be let go of at once, whoever is busy.
    pub(super) fn park(&mut self, bytes: Vec<u8>) {
        self.park_beside(bytes, 0);
    }

    /// Keeps what has come of a body in the same way. The head that came before it, and what will answer it, are held beside it.
    pub(super) fn park_body(&mut self, bytes: Vec<u8>) {
        self.park_beside(bytes, REQUEST_BYTES);
    }

    fn park_beside(&mut self, bytes: Vec<u8>, beside: usize) {
        let mut state = self.limit.lock();
        match &self.head {
            Some(head) => state.keep(self.client, head.number, bytes),
            None => self.head = Some(state.begin(self.client, bytes, beside)),
        }
        while state.bytes > self.limit.max_bytes && state.close_one() {}
    }

    /// Gives back what was kept; nothing if it was closed for others.
    pub(super) fn unpark(&mut self) -> Option<Vec<u8>> {
        let head = self.head.as_ref()?;
        self.limit.lock().take(self.client, head.number)
    }

    /// The head is there, or nobody waits for it any more. Gives back what was kept of it.
    ///
    /// # Errors
    /// [`Displaced`] if it was closed for others before.
    pub(super) fn finish_head(&mut self) -> Result<Vec<u8>, Displaced> {
        let Some(head) = &self.head else { return Ok(Vec::new()) };
        let bytes = self.limit.lock().end(self.client, head.number).ok_or(Displaced)?;
        self.head = None;
        Ok(bytes)
    }

    /// Whether there is an unfinished head.
    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Waits until the head is closed for others.
    pub(super) async fn displaced(&mut self) {
        match &mut self.head {
            Some(head) => {
                let _ = (&mut head.closed).await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.limit.lock();
        // Whoever closed it has the place already.
        if self.head.as_ref().is_none_or(|head| state.end(self.client, head.number).is_some()) {
            state.open -= 1;
        }
    }
}

impl Admitted {
    fn begin(&mut self, client: ClientAddress, bytes: Vec<u8>, beside: usize) -> AwaitedHead {
        let (waits, closed) = oneshot::channel();
        let number = self.begun;
        self.begun += 1;
        self.bytes += bytes.capacity() + beside;
        self.change(client, |heads| heads.insert(number, UnfinishedHead { bytes, beside, _waits: waits }));
        AwaitedHead { number, closed }
    }

    fn keep(&mut self, client: ClientAddress, number: u64, bytes: Vec<u8>) {
        if let Some(head) = self.heads.get_mut(&client).and_then(|heads| heads.get_mut(&number)) {
            self.bytes = self.bytes + bytes.capacity() - head.bytes.capacity();
            head.bytes = bytes;
        }
    }

    fn take(&mut self, client: ClientAddress, number: u64) -> Option<Vec<u8>> {
        let bytes = mem::take(&mut self.heads.get_mut(&client)?.get_mut(&number)?.bytes);
        self.bytes -= bytes.capacity();
        Some(bytes)
    }

    /// What was kept of a head; nothing if it was closed before.
    fn end(&mut self, client: ClientAddress, number: u64) -> Option<Vec<u8>> {
        let head = self.change(client, |heads| heads.remove(&number))?;
        self.bytes -= head.bytes.capacity() + head.beside;
        Some(head.bytes)
    }

    /// Closes one unfinished head, if there is any.
    fn close_one(&mut self) -> bool {
        let Some((_, &client)) = self.ranks.last_key_value() else { return false };
        let (_, head) = self.change(client, BTreeMap::pop_first).expect("whoever has a rank has a head");
        self.bytes -= head.bytes.capacity() + head.beside;
        self.open -= 1;
        true
    }

    /// Changes the heads of a client, and its rank with them.
    fn change<T>(&mut self, client: ClientAddress, change: impl FnOnce(&mut BTreeMap<u64, UnfinishedHead>) -> T) -> T {
        let rank = |heads: &BTreeMap<u64, UnfinishedHead>| {
            heads.first_key_value().map(|(oldest, _)| (heads.len(), Reverse(*oldest)))
        };
        let heads = self.heads.entry(client).or_default();
        if let Some(rank) = rank(heads) {
            self.ranks.remove(&rank);
        }
        let output = change(heads);
        match rank(heads) {
            Some(rank) => {
                self.ranks.insert(rank, client);
            }
            None => {
                self.heads.remove(&client);
            }
        }
        output
    }
}

impl Bounded {
    fn lock(&self) -> MutexGuard<'_, Admitted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection was closed to make room for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection was closed to make room for others")]
pub struct Displaced;

/// How many bytes all unfinished heads, and bodies that are held, may hold together.
const MAX_BYTES: usize = 128 << 20;
/// What a request whose body is awaited holds besides, in bytes: its head, and the future that answers it.
const REQUEST_BYTES: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn client(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    fn is_closed(admission: &mut Admission) -> bool {
        admission.head.as_mut().is_some_and(|head| head.closed.try_recv() == Err(oneshot::error::TryRecvError::Closed))
    }

    #[test]
    fn the_oldest_unfinished_head_of_who_has_most_makes_room() {
        let limit = ConnectionLimit::new(4);
        let take = |number| limit.admit(Some(client(number))).expect("a place");
        let mut taken = [take(1), take(2), take(2), take(3)];
        let mut newest = take(4);
        assert_eq!(taken.each_mut().map(is_closed), [false, true, false, false], "the first of client 2");
        assert_eq!(taken[1].finish_head(), Err(Displaced));
        // Each has one now: the oldest of all.
        let mut another = take(1);
        assert_eq!(taken.each_mut().map(is_closed), [true, true, false, false]);
        assert!(!is_closed(&mut newest) && !is_closed(&mut another));
    }

    #[test]
    fn without_an_unfinished_head_the_new_connection_has_no_place() {
        let limit = ConnectionLimit::new(2);
        let mut kept = [1, 1].map(|number| limit.admit(Some(client(number))).expect("a place"));
        assert!(kept.iter_mut().all(|admission| admission.finish_head().is_ok()));
        assert!(limit.admit(Some(client(2))).is_none());
        // One that has begun its next head is unfinished again.
        kept[1].park(vec![0; 100]);
        let new = limit.admit(Some(client(2))).expect("a place");
        assert_eq!(kept.each_mut().map(Admission::finish_head), [Ok(Vec::new()), Err(Displaced)]);
        // A place comes back once, whoever gives it back.
        drop((kept, new));
        assert_eq!(limit.0.lock().open, 0);
    }

    #[test]
    fn unfinished_heads_hold_so_much_and_no_more() {
        let limit = ConnectionLimit(Arc::new(Bounded { max: 100, max_bytes: 1_000, state: Mutex::default() }));
        let mut heads: Vec<_> = (0..10).map(|_| limit.admit(Some(client(1))).expect("a place")).collect();
        for head in &mut heads {
            head.park(vec![7; 100]);
        }
        assert!(!heads.iter_mut().any(is_closed));
        heads[9].park(vec![7; 101]);
        assert_eq!(heads.iter_mut().map(is_closed).collect::<Vec<_>>(), [&[true][..], &[false; 9]].concat());
        assert_eq!((heads[0].unpark(), heads[1].unpark()), (None, Some(vec![7; 100])));
        // What has ended holds nothing.
        heads[1].park(vec![7; 50]);
        assert_eq!(heads[1].finish_head(), Ok(vec![7; 50]));
        heads[2].park(vec![7; 199]);
        assert!(!is_closed(&mut heads[2]) && !is_closed(&mut heads[3]));
        drop(heads);
        let state = limit.0.lock();
        assert_eq!((state.open, state.bytes, state.heads.len(), state.ranks.len()), (0, 0, 0, 0));
    }

    #[test]
    fn a_body_counts_with_what_is_held_beside_it() {
        let limit =
            ConnectionLimit(Arc::new(Bounded { max: 9, max_bytes: 3 * REQUEST_BYTES, state: Mutex::default() }));
        let mut bodies: Vec<_> = (0..4).map(|_| limit.admit(Some(client(1))).expect("a place")).collect();
        for body in &mut bodies {
            body.finish_head().expect("it is there");
        }
        for body in &mut bodies[..2] {
            body.park_body(vec![7; 100]);
        }
        assert_eq!(limit.0.lock().bytes, 2 * (REQUEST_BYTES + 100));
        assert_eq!(bodies[1].unpark(), Some(vec![7; 100]));
        bodies[1].park_body(vec![7; 200]);
        bodies[2].park_body(Vec::new());
        let closed: Vec<_> = bodies.iter_mut().map(is_closed).collect();
        assert_eq!(closed, [true, false, false, false], "the oldest");
        assert_eq!(limit.0.lock().bytes, 2 * REQUEST_BYTES + 200);
        assert_eq!((bodies[1].finish_head(), bodies[2].finish_head()), (Ok(vec![7; 200]), Ok(Vec::new())));
        drop(bodies);
        let state = limit.0.lock();
        assert_eq!((state.open, state.bytes), (0, 0));
    }

    #[test]
    fn whoever_waits_hears_of_it() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(async {
            let limit = ConnectionLimit::new(1);
            let mut one = limit.admit(Some(client(1))).expect("a place");
            let other = limit.admit(Some(client(2))).expect("a place");
            let told = tokio::time::timeout(Duration::from_secs(10), one.displaced()).await;
            assert!(told.is_ok(), "it never heard of it");
            assert_eq!(one.finish_head(), Err(Displaced));
            drop((one, other));
            assert!(limit.admit(Some(client(1))).is_some());
        });
    }
}
