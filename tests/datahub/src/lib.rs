//! A test DataHUB: a real HTTP server that answers as GitLab does, and remembers what it was asked.
//!
//! Status codes, headers and error texts follow GitLab 18 with Doorkeeper 5.8. It speaks HTTP/1.1 over plain TCP by
//! hand, because frameworks normalise away what is tested here. Everything is in memory; several run in one process.
//!
//! ```
//! use datahub::behaviour::Answer;
//! use datahub::{DataHub, Options};
//!
//! let freiburg = DataHub::start(Options { name: "DataHUB Freiburg".into(), ..Options::default() })?;
//! freiburg.set(|behaviour| behaviour.token.answer = Answer::Status(503));
//! assert!(freiburg.requests().is_empty());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Signing in with one request
//!
//! A browser opens `/oauth/authorize?…` and presses a button: `#sign-in-testuser`, `#sign-in-joerg` or `#deny`. A test
//! sends `POST /oauth/authorize?…&user=testuser` with an empty body, the target being the one the gateway redirected
//! to. The answer is the 302 to `redirect_uri`, with `code` and `state`. `&deny=true` denies.
//!
//! # Big files
//!
//! `GET /api/v4/projects/230/packages/generic/blob/1.0.0/{n}.bin` streams `n` bytes: the byte at offset `i` is `i % 251`.
//! 251 is prime, so a lost, doubled or swapped buffer shows. `PUT` to any other file counts and hashes what it gets
//! and answers `size` and `file_sha256`.
//!
//! # What a test can make it do
//!
//! - `behaviour`: delays before the work and before its answer; answers that are errors, throttle, lead away, break off or
//!   never come; answers in chunks, without a length, or after a 103; tokens that live shortly, are handed out again, have
//!   another scope or no refresh token; refreshes that take their time, are throttled, or always fail for some people; many
//!   groups.
//! - [`block`](DataHub::block), [`expire_access_tokens`](DataHub::expire_access_tokens) and
//!   [`revoke_all_tokens`](DataHub::revoke_all_tokens), as an administrator can at any time.
//! - [`counts`](DataHub::counts), [`executions`](DataHub::executions) and [`live_tokens`](DataHub::live_tokens) tell what came
//!   of it; [`books`](DataHub::books) still do where the DataHUB is somebody else's.
//!
//! # Map
//!
//! | file | what it does |
//! |---|---|
//! | `server` | accepts connections, misbehaves if told to, finds the room |
//! | `http` | reads a request and its `body` off a connection, writes a `response` onto it |
//! | `record` | keeps requests as they came |
//! | `behaviour` | what a test may change |
//! | `oauth` | login: `authorize`, `token`; `grants` keeps codes and tokens, `id_token` signs |
//! | `api` | `/api/v4`: `projects`, `files`, `commits`, `uploads`, `paging` |
//! | `world`, `repository`, `seed` | users, projects and their files; what they are at the start |
//! | `pages` | the few HTML pages |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod api;
mod archive;
pub mod behaviour;
mod hex;
mod http;
mod hub;
mod oauth;
mod pages;
mod params;
pub mod record;
mod repository;
mod seed;
mod server;
mod world;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::behaviour::Behaviour;
use crate::hub::Hub;
use crate::record::Recorded;

/// A running DataHUB. It ends when this is dropped.
pub struct DataHub {
    hub: Arc<Hub>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl DataHub {
    /// Binds and answers from here on.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, or the system gives no threads.
    pub fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let url = options.public_url.clone().unwrap_or_else(|| format!("http://{address}"));
        let hub = Arc::new(Hub::new(options, url));

        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let _guard = runtime.enter();
        runtime.spawn(server::run(tokio::net::TcpListener::from_std(listener)?, hub.clone()));
        Ok(Self { hub, address, runtime: Some(runtime) })
    }

    /// Base of all its addresses and its issuer, such as `http://127.0.0.1:41231`.
    pub fn url(&self) -> &str {
        &self.hub.url
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The only registered client.
    pub fn client_id(&self) -> &str {
        &self.hub.client_id
    }

    /// Its secret.
    pub fn client_secret(&self) -> &str {
        &self.hub.client_secret
    }

    /// The requests since the start or the last [`clear`](Self::clear), oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.hub.recorder.requests()
    }

    /// Forgets the recorded requests. Counts and secrets stay.
    pub fn clear(&self) {
        self.hub.recorder.clear();
    }

    /// What happened since the start.
    pub fn counts(&self) -> Counts {
        *self.hub.counts()
    }

    /// How often calls of the API were executed, that is: went past the token, by the `mark` in their queries.
    pub fn executions(&self) -> BTreeMap<String, u64> {
        self.hub.executions().clone()
    }

    /// Every client secret, state, nonce, code, verifier and token seen or issued, so that a scan can prove none leaked.
    pub fn secrets(&self) -> Vec<String> {
        self.hub.secrets()
    }

    /// Changes how it behaves, from the next request on.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.hub.behaviour());
    }

    /// Lets `count` more people sign in: `person1` and so on.
    pub fn add_people(&self, count: u64) {
        self.hub.world().add_people(count);
    }

    /// Lets all access tokens expire now. Their refresh tokens stay good.
    pub fn expire_access_tokens(&self) {
        self.hub.grants().expire_all();
    }

    /// Revokes every token, as an administrator or the user can at any time.
    pub fn revoke_all_tokens(&self) {
        self.hub.grants().revoke_all();
    }

    /// Blocks a person, as an administrator can at any time: the token endpoint leads to the sign-in page, without effect,
    /// and the API answers 403. The tokens stay.
    pub fn block(&self, username: &str) {
        self.hub.blocked().insert(username.to_owned());
    }

    /// Ends that.
    pub fn unblock(&self, username: &str) {
        self.hub.blocked().remove(username);
    }

    /// The tokens somebody could use now, or refresh, oldest first.
    pub fn live_tokens(&self) -> Vec<LiveToken> {
        self.hub.live_tokens()
    }

    /// A handle that tells which tokens live, even when this is gone.
    pub fn books(&self) -> Books {
        Books(self.hub.clone())
    }
}

/// Which tokens of one DataHUB live. Cheap to clone.
#[derive(Clone)]
pub struct Books(Arc<Hub>);

impl Books {
    /// The tokens somebody could use now, or refresh, oldest first.
    pub fn live_tokens(&self) -> Vec<LiveToken> {
        self.0.live_tokens()
    }

    /// What [`DataHub::secrets`] tells.
    pub fn secrets(&self) -> Vec<String> {
        self.0.secrets()
    }

    /// Whether the DataHUB is up.
    pub fn is_open(&self) -> bool {
        !self.0.is_gone.load(Ordering::Relaxed)
    }
}

/// A pair of tokens that is neither revoked nor spent by a refresh. One without a refresh token lives until it expires, one
/// with it for ever.
#[derive(Clone)]
pub struct LiveToken {
    /// Pairs are counted from 1 in the order in which they were made.
    pub serial: usize,
    /// Whose it is, such as `testuser`.
    pub user: String,
    /// Perhaps expired.
    pub access_token: String,
    /// What renews it.
    pub refresh_token: Option<String>,
}

impl Drop for DataHub {
    fn drop(&mut self) {
        self.hub.is_gone.store(true, Ordering::Relaxed);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// How a DataHUB starts. The default listens on a free port of 127.0.0.1 with a random client.
#[derive(Clone)]
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Shown on its pages.
    pub name: String,
    /// Base of all its addresses, without a slash at the end, where a proxy stands before it.
    pub public_url: Option<String>,
    /// The only registered client.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// The redirect URIs registered for it. Where empty: every address on this machine.
    pub redirect_uris: Vec<String>,
    /// How many requests to remember.
    pub keep_requests: usize,
    /// How it behaves at first.
    pub behaviour: Behaviour,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            name: "Test DataHUB".to_owned(),
            public_url: None,
            client_id: hex::random(),
            client_secret: format!("gloas-{}", hex::random()),
            redirect_uris: Vec::new(),
            keep_requests: 10_000,
            behaviour: Behaviour::default(),
        }
    }
}

/// What happened since the start, in requests. All but `…_at_once` only grow, one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for the provider's metadata.
    pub discoveries: u64,
    /// Requests for its public keys.
    pub key_fetches: u64,
    /// Codes given out.
    pub sign_ins: u64,
    /// Codes exchanged for tokens.
    pub code_exchanges: u64,
    /// Code exchanges answered with an error.
    pub code_exchanges_refused: u64,
    /// Refreshes that made new tokens.
    pub refreshes: u64,
    /// Refreshes answered with an error.
    pub refreshes_refused: u64,
    /// Revocations that revoked something.
    pub revocations: u64,
    /// Revocations answered with 200 that revoked nothing.
    pub revocations_without_effect: u64,
    /// Requests for who the user is.
    pub userinfos: u64,
    /// Requests below `/api`.
    pub api_calls: u64,
    /// The most requests of the token endpoint that were under way at once.
    pub token_requests_at_once: u64,
    /// The most refreshes that were under way at once.
    pub refreshes_at_once: u64,
}
