//! The one loop: looks at all sockets of both sides, never sleeps while a response is awaited.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::client::{Client, Outcome};
use crate::order::{Setup, Target};
use crate::upstream::Upstream;

pub struct Driver {
    poll: Poll,
    events: Events,
    upstream: Upstream,
    clients: Vec<Client>,
    scratch: Box<[u8]>,
    finished: Vec<(usize, Outcome)>,
    /// Connections that a target closed, since the start.
    pub reconnects: u64,
}

impl Driver {
    pub fn new(setup: &Setup) -> io::Result<Self> {
        let poll = Poll::new()?;
        let upstream = Upstream::new(setup, poll.registry())?;
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            upstream,
            clients: Vec::new(),
            scratch: vec![0; 256 << 10].into(),
            finished: Vec::new(),
            reconnects: 0,
        })
    }

    /// Opens one more connection, and says by which number it goes.
    pub fn connect(&mut self, target: &Target) -> io::Result<usize> {
        let at = self.clients.len();
        self.clients.push(Client::connect(target, self.poll.registry(), token(at))?);
        Ok(at)
    }

    /// Closes all of them.
    pub fn hang_up(&mut self) {
        self.clients.clear();
    }

    pub fn send(&mut self, client: usize) -> io::Result<()> {
        self.send_body(client, Instant::now(), 0)
    }

    /// Sends a request that was due then, with that many bytes behind it.
    pub fn send_body(&mut self, client: usize, due: Instant, upload: u64) -> io::Result<()> {
        let at = &mut self.clients[client];
        at.due = due;
        match at.send(upload) {
            Err(error) if has_closed(&error) => self.reconnect(client),
            result => result,
        }
    }

    /// When the client's request was due.
    pub fn due(&self, client: usize) -> Instant {
        self.clients[client].due
    }

    /// Calls that reached the DataHUB with a token, since the start.
    pub fn authorized(&self) -> u64 {
        self.upstream.authorized
    }

    /// One look at everything; the clients whose response has come whole are added to `finished`.
    ///
    /// # Errors
    ///
    /// If a target answers what is no HTTP, or has gone.
    pub fn turn(&mut self, finished: &mut Vec<(usize, Outcome)>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        let mut closed = Vec::new();
        for event in &self.events {
            let token = event.token();
            if Upstream::owns(token) {
                self.upstream.serve(token, self.poll.registry(), &mut self.scratch)?;
                continue;
            }
            let at = token.0 / 2;
            let Some(client) = self.clients.get_mut(at) else { continue };
            match client.advance(&mut self.scratch) {
                Ok(Some(outcome)) => finished.push((at, outcome)),
                Ok(None) => {}
                Err(error) if has_closed(&error) => closed.push(at),
                Err(error) => return Err(error),
            }
        }
        for at in closed {
            self.reconnect(at)?;
        }
        Ok(())
    }

    /// Until one response has come whole.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] after a minute, and what [`Driver::turn`] says.
    pub fn wait_for_one(&mut self) -> io::Result<Outcome> {
        let end = Instant::now() + Duration::from_mins(1);
        let mut finished = std::mem::take(&mut self.finished);
        while finished.is_empty() {
            self.turn(&mut finished)?;
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let outcome = finished.pop().map(|(_, outcome)| outcome);
        self.finished = finished;
        Ok(outcome.expect("the loop went on until there was one"))
    }

    fn reconnect(&mut self, client: usize) -> io::Result<()> {
        self.reconnects += 1;
        let at = &mut self.clients[client];
        if at.reconnect(self.poll.registry())? { at.send(0) } else { Ok(()) }
    }
}

fn has_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

fn token(at: usize) -> Token {
    Token(at * 2)
}
