//! How many connections there are at once, over all workers, and what their unfinished heads and held bodies hold together.
//!
//! A connection costs a client nothing, and an unfinished head little more. Where there is no room for one more connection, one
//! gives way:
//!
//! 1. the oldest idle one of the client that holds most, if that client holds more than the newcomer's and more than the one of 2;
//! 2. else the oldest one with something unfinished, of the client that has most of these;
//! 3. else the newcomer.
//!
//! So nobody keeps others out by holding connections, and whoever holds most gets no more. A head is unfinished from the
//! connection's first moment on, and again once a part of a later one has come. A body that is held until it ends counts in the
//! same way while more of it is awaited, and so does one that is read to be thrown away. A connection that is closed slowly is
//! idle. One on which an answer is due stays, however slowly its client reads.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::mem;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
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
    connections: ByClient<Connection>,
    unfinished: ByClient<Unfinished>,
    /// What unfinished heads and bodies hold, and what is held beside them, in bytes.
    bytes: usize,
    /// How many connections, heads and bodies have begun.
    begun: u64,
}

#[derive(Debug)]
struct Connection {
    is_idle: Arc<AtomicBool>,
    /// The connection sees this end, if it is closed for others.
    _closes: oneshot::Sender<Infallible>,
}

#[derive(Debug)]
struct Unfinished {
    /// The number of its connection.
    connection: u64,
    /// What has come of it, but for the moments in which more is read.
    bytes: Vec<u8>,
    /// What is held beside that, in bytes.
    beside: usize,
}

impl ConnectionLimit {
    /// At most `max` at once.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Bounded { max, max_bytes: MAX_BYTES, state: Mutex::default() }))
    }

    /// Admits a new connection of `client`; nothing if there are as many as may be and none of them makes room.
    pub fn admit(&self, client: Option<IpAddr>) -> Option<Admission> {
        let mut state = self.0.lock();
        if state.connections.count >= self.0.max && !state.make_room(client) {
            return None;
        }
        let (sender, closed) = oneshot::channel();
        let is_idle = Arc::new(AtomicBool::new(false));
        let number = state.begin();
        state.connections.insert(client, number, Connection { is_idle: Arc::clone(&is_idle), _closes: sender });
        let unfinished_number = Some(state.begin_unfinished(client, number, Vec::new(), 0));
        drop(state);
        Some(Admission { limit: Arc::clone(&self.0), client, number, is_idle, closed, unfinished_number })
    }
}

/// What lets one connection stay, given back when dropped.
#[derive(Debug)]
pub struct Admission {
    limit: Arc<Bounded>,
    client: ClientAddress,
    number: u64,
    /// Whether it may be closed for others. Whoever takes that back has the connection.
    is_idle: Arc<AtomicBool>,
    closed: oneshot::Receiver<Infallible>,
    /// That of its unfinished head or body, if it has one.
    unfinished_number: Option<u64>,
}

impl Connection {
    /// Whether it is idle. Whoever takes that back has the connection. One that is busy is only looked at: there may be many.
    fn take_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed) && self.is_idle.swap(false, Ordering::AcqRel)
    }
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
        match self.unfinished_number {
            Some(number) => state.keep(self.client, number, bytes),
            None => self.unfinished_number = Some(state.begin_unfinished(self.client, self.number, bytes, beside)),
        }
        while state.bytes > self.limit.max_bytes && state.close_unfinished() {}
    }

    /// Gives back what was kept; nothing if it was closed for others.
    pub(super) fn unpark(&mut self) -> Option<Vec<u8>> {
        self.limit.lock().take(self.client, self.unfinished_number?)
    }

    /// It is there, or nobody waits for it any more. Gives back what was kept of it.
    ///
    /// # Errors
    /// [`Displaced::Unfinished`] if it was closed for others before.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>, Displaced> {
        let Some(number) = self.unfinished_number else { return Ok(Vec::new()) };
        let bytes = self.limit.lock().end_unfinished(self.client, number).ok_or(Displaced::Unfinished)?;
        self.unfinished_number = None;
        Ok(bytes)
    }

    /// Nothing is under way on the connection, so that it may be closed for others; or its first head is awaited, and it may
    /// be closed for that.
    pub(super) fn begin_idle(&self) {
        self.is_idle.store(self.unfinished_number.is_none(), Ordering::Release);
    }

    /// The connection has something to do again.
    ///
    /// # Errors
    /// [`Displaced::Idle`] if it was closed for others before.
    pub(super) fn end_idle(&self) -> Result<(), Displaced> {
        if self.unfinished_number.is_some() || self.is_idle.swap(false, Ordering::AcqRel) {
            Ok(())
        } else {
            Err(Displaced::Idle)
        }
    }

    /// Waits until the connection is closed for others.
    pub(super) async fn displaced(&mut self) {
        let _ = (&mut self.closed).await;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.limit.lock();
        if let Some(number) = self.unfinished_number {
            state.end_unfinished(self.client, number);
        }
        // Whoever closed it has the place already.
        state.connections.remove(self.client, self.number);
    }
}

impl Admitted {
    /// The number of what begins now.
    fn begin(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    fn begin_unfinished(&mut self, client: ClientAddress, connection: u64, bytes: Vec<u8>, beside: usize) -> u64 {
        let number = self.begin();
        self.bytes += bytes.capacity() + beside;
        self.unfinished.insert(client, number, Unfinished { connection, bytes, beside });
        number
    }

    fn keep(&mut self, client: ClientAddress, number: u64, bytes: Vec<u8>) {
        if let Some(head) = self.unfinished.get_mut(client, number) {
            self.bytes = self.bytes + bytes.capacity() - head.bytes.capacity();
            head.bytes = bytes;
        }
    }

    fn take(&mut self, client: ClientAddress, number: u64) -> Option<Vec<u8>> {
        let bytes = mem::take(&mut self.unfinished.get_mut(client, number)?.bytes);
        self.bytes -= bytes.capacity();
        Some(bytes)
    }

    /// What was kept; nothing if it was closed before.
    fn end_unfinished(&mut self, client: ClientAddress, number: u64) -> Option<Vec<u8>> {
        let head = self.unfinished.remove(client, number)?;
        self.bytes -= head.bytes.capacity() + head.beside;
        Some(head.bytes)
    }

    /// Closes one connection with something unfinished, if there is any.
    fn close_unfinished(&mut self) -> bool {
        let Some((client, Unfinished { connection, bytes, beside })) = self.unfinished.pop() else { return false };
        self.bytes -= bytes.capacity() + beside;
        self.connections.remove(client, connection);
        true
    }

    /// Closes one connection for one of `client`, if it may.
    fn make_room(&mut self, client: ClientAddress) -> bool {
        let held = |client| self.connections.of.get(&client).map_or(0, BTreeMap::len);
        let next_loser_holds = self.unfinished.by_rank().next().map_or(0, |(client, _)| held(client));
        self.close_idle(held(client).max(next_loser_holds)) || self.close_unfinished()
    }

    /// Closes one idle connection, if there is any of a client that has more than `least` connections.
    fn close_idle(&mut self, least: usize) -> bool {
        let idle = self
            .connections
            .by_rank()
            .take_while(|(_, connections)| connections.len() > least)
            .flat_map(|(client, connections)| connections.iter().map(move |connection| (client, connection)))
            .find(|(_, (_, connection))| connection.take_idle())
            .map(|(client, (number, _))| (client, *number));
        idle.is_some_and(|(client, number)| self.connections.remove(client, number).is_some())
    }
}

/// What each client has, by its number: in the order in which it began.
#[derive(Debug)]
struct ByClient<T> {
    of: HashMap<ClientAddress, BTreeMap<u64, T>>,
    /// The clients, by how many they have, then by the age of their oldest one.
    ranks: BTreeMap<(usize, Reverse<u64>), ClientAddress>,
    /// How many there are of all clients.
    count: usize,
}

impl<T> ByClient<T> {
    fn insert(&mut self, client: ClientAddress, number: u64, item: T) {
        self.count += 1;
        self.change(client, |items| items.insert(number, item));
    }

    fn remove(&mut self, client: ClientAddress, number: u64) -> Option<T> {
        let item = self.change(client, |items| items.remove(&number))?;
        self.count -= 1;
        Some(item)
    }

    /// Removes the oldest one of whoever has most.
    fn pop(&mut self) -> Option<(ClientAddress, T)> {
        let (_, &client) = self.ranks.last_key_value()?;
        let (_, item) = self.change(client, BTreeMap::pop_first)?;
        self.count -= 1;
        Some((client, item))
    }

    fn get_mut(&mut self, client: ClientAddress, number: u64) -> Option<&mut T> {
        self.of.get_mut(&client)?.get_mut(&number)
    }

    /// Whoever has most comes first.
    fn by_rank(&self) -> impl Iterator<Item = (ClientAddress, &BTreeMap<u64, T>)> {
        self.ranks.values().rev().filter_map(|client| Some((*client, self.of.get(client)?)))
    }

    /// Changes what a client has, and its rank with that.
    fn change<R>(&mut self, client: ClientAddress, change: impl FnOnce(&mut BTreeMap<u64, T>) -> R) -> R {
        let rank =
            |items: &BTreeMap<u64, T>| items.first_key_value().map(|(oldest, _)| (items.len(), Reverse(*oldest)));
        let items = self.of.entry(client).or_default();
        if let Some(rank) = rank(items) {
            self.ranks.remove(&rank);
        }
        let output = change(items);
        match rank(items) {
            Some(rank) => {
                self.ranks.insert(rank, client);
            }
            None => {
                self.of.remove(&client);
            }
        }
        output
    }
}

impl<T> Default for ByClient<T> {
    fn default() -> Self {
        Self { of: HashMap::default(), ranks: BTreeMap::default(), count: 0 }
    }
}

impl Bounded {
    fn lock(&self) -> MutexGuard<'_, Admitted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection was closed to make room for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Displaced {
    /// A head or a body was awaited.
    #[error("what was unfinished was closed to make room for others")]
    Unfinished,
    /// Nothing was under way.
    #[error("the connection was idle and was closed to make room for others")]
    Idle,
}

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
        admission.closed.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_unfinished_head_of_who_has_most_makes_room() {
        let limit = ConnectionLimit::new(4);
        let take = |number| limit.admit(Some(client(number))).expect("a place");
        let mut taken = [take(1), take(2), take(2), take(3)];
        let mut newest = take(4);
        assert_eq!(taken.each_mut().map(is_closed), [false, true, false, false], "the first of client 2");
        assert_eq!(taken[1].finish(), Err(Displaced::Unfinished));
        // Each has one now: the oldest of all.
        let mut another = take(1);
        assert_eq!(taken.each_mut().map(is_closed), [true, true, false, false]);
        assert!(!is_closed(&mut newest) && !is_closed(&mut another));
    }

    #[test]
    fn without_an_unfinished_head_the_new_connection_has_no_place() {
        let limit = ConnectionLimit::new(2);
        let mut kept = [1, 1].map(|number| limit.admit(Some(client(number))).expect("a place"));
        assert!(kept.iter_mut().all(|admission| admission.finish().is_ok()));
        assert!(limit.admit(Some(client(2))).is_none());
        // One that has begun its next head is unfinished again.
        kept[1].park(vec![0; 100]);
        let new = limit.admit(Some(client(2))).expect("a place");
        assert_eq!(kept.each_mut().map(Admission::finish), [Ok(Vec::new()), Err(Displaced::Unfinished)]);
        // A place comes back once, whoever gives it back.
        drop((kept, new));
        assert_eq!(limit.0.lock().connections.count, 0);
    }

    #[test]
    fn the_oldest_idle_connection_of_who_has_most_makes_room_for_who_has_less() {
        let limit = ConnectionLimit::new(6);
        let mut taken = [1, 2, 2, 2, 3, 3].map(|number| limit.admit(Some(client(number))).expect("a place"));
        assert!(taken.iter_mut().all(|admission| admission.finish().is_ok()));
        assert!(limit.admit(Some(client(4))).is_none(), "each has something to do");
        for admission in &taken[2..] {
            admission.begin_idle();
        }
        assert!(limit.admit(Some(client(2))).is_none(), "who has most gets no more");
        let mut new = limit.admit(Some(client(4))).expect("a place");
        assert_eq!(taken.each_mut().map(is_closed), [false, false, true, false, false, false]);
        assert_eq!(taken[2].end_idle(), Err(Displaced::Idle));
        // One that has something to do again stays, and then it is the turn of whoever is next, down to who has as many.
        assert_eq!(taken[3].end_idle(), Ok(()));
        assert_eq!(new.finish(), Ok(Vec::new()));
        let mut another = limit.admit(Some(client(4))).expect("a place");
        assert_eq!(taken.each_mut().map(is_closed), [false, false, true, false, true, false]);
        assert_eq!(another.finish(), Ok(Vec::new()));
        // An unfinished head makes room before an idle connection of who has no more.
        taken[3].begin_idle();
        another.park(vec![0]);
        let mut awaited = limit.admit(Some(client(1))).expect("a place");
        assert_eq!((another.unpark(), taken[3].end_idle()), (None, Ok(())));
        assert_eq!(awaited.finish(), Ok(Vec::new()));
        drop((taken, new, another));
        assert_eq!(limit.0.lock().connections.count, 1);
        drop(awaited);
        let state = limit.0.lock();
        assert_eq!((state.connections.count, state.connections.of.len(), state.connections.ranks.len()), (0, 0, 0));
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
        assert_eq!(heads[1].finish(), Ok(vec![7; 50]));
        heads[2].park(vec![7; 199]);
        assert!(!is_closed(&mut heads[2]) && !is_closed(&mut heads[3]));
        drop(heads);
        let state = limit.0.lock();
        assert_eq!(
            (
                state.connections.count,
                state.bytes,
                state.unfinished.count,
                state.unfinished.of.len(),
                state.unfinished.ranks.len()
            ),
            (0, 0, 0, 0, 0)
        );
    }

    #[test]
    fn a_body_counts_with_what_is_held_beside_it() {
        let limit =
            ConnectionLimit(Arc::new(Bounded { max: 9, max_bytes: 3 * REQUEST_BYTES, state: Mutex::default() }));
        let mut bodies: Vec<_> = (0..4).map(|_| limit.admit(Some(client(1))).expect("a place")).collect();
        for body in &mut bodies {
            body.finish().expect("it is there");
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
        assert_eq!((bodies[1].finish(), bodies[2].finish()), (Ok(vec![7; 200]), Ok(Vec::new())));
        drop(bodies);
        let state = limit.0.lock();
        assert_eq!((state.connections.count, state.bytes), (0, 0));
    }

    #[test]
    fn whoever_waits_hears_of_it() {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(async {
            let limit = ConnectionLimit::new(1);
            let mut one = limit.admit(Some(client(1))).expect("a place");
            let other = limit.admit(Some(client(2))).expect("a place");
            let told = tokio::time::timeout(Duration::from_secs(10), one.displaced()).await;
            assert!(told.is_ok(), "it never heard of it");
            assert_eq!(one.finish(), Err(Displaced::Unfinished));
            drop((one, other));
            assert!(limit.admit(Some(client(1))).is_some());
        });
    }
}
