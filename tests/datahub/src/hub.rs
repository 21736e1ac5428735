//! All that one DataHUB knows, shared by its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::behaviour::Behaviour;
use crate::oauth::grants::Grants;
use crate::record::Recorder;
use crate::world::World;
use crate::{Counts, LiveToken, Options};

/// What the handle in tests and every connection look at.
pub struct Hub {
    pub name: String,
    /// Base of every address it gives out, and its issuer; without a slash at the end.
    pub url: String,
    pub client_id: String,
    pub client_secret: String,
    pub redirect_uris: Vec<String>,
    pub recorder: Recorder,
    /// Whether it has been shut down.
    pub is_gone: AtomicBool,
    behaviour: Mutex<Behaviour>,
    counts: Mutex<Counts>,
    secrets: Mutex<BTreeSet<String>>,
    executions: Mutex<BTreeMap<String, u64>>,
    /// Requests of the token endpoint that are under way, and of these the refreshes.
    under_way: Mutex<(u64, u64)>,
    blocked: Mutex<BTreeSet<String>>,
    grants: Mutex<Grants>,
    world: Mutex<World>,
}

impl Hub {
    pub fn new(options: Options, url: String) -> Self {
        Self {
            secrets: Mutex::new(BTreeSet::from([options.client_secret.clone()])),
            name: options.name,
            url,
            client_id: options.client_id,
            client_secret: options.client_secret,
            redirect_uris: options.redirect_uris,
            recorder: Recorder::new(options.keep_requests),
            is_gone: AtomicBool::default(),
            behaviour: Mutex::new(options.behaviour),
            counts: Mutex::default(),
            executions: Mutex::default(),
            under_way: Mutex::default(),
            blocked: Mutex::default(),
            grants: Mutex::default(),
            world: Mutex::new(World::seeded()),
        }
    }

    pub fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        lock(&self.behaviour)
    }

    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    pub fn grants(&self) -> MutexGuard<'_, Grants> {
        lock(&self.grants)
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// How often each call that carries a mark was executed.
    pub fn executions(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        lock(&self.executions)
    }

    /// Counts a request of the token endpoint as under way until the value is dropped.
    pub fn begin_token_request(&self, is_refresh: bool) -> TokenRequest<'_> {
        let mut under_way = lock(&self.under_way);
        under_way.0 += 1;
        under_way.1 += u64::from(is_refresh);
        let mut counts = self.counts();
        counts.token_requests_at_once = counts.token_requests_at_once.max(under_way.0);
        counts.refreshes_at_once = counts.refreshes_at_once.max(under_way.1);
        TokenRequest { hub: self, is_refresh }
    }

    /// The usernames of those who are blocked.
    pub fn blocked(&self) -> MutexGuard<'_, BTreeSet<String>> {
        lock(&self.blocked)
    }

    /// Whether the user with this number is blocked.
    pub fn is_blocked(&self, user: u64) -> bool {
        self.world().user(user).is_some_and(|user| self.blocked().contains(&user.username))
    }

    /// The tokens somebody could use now, or refresh.
    pub fn live_tokens(&self) -> Vec<LiveToken> {
        let (grants, world) = (self.grants(), self.world());
        let live = grants.live(SystemTime::now()).map(|(index, pair)| LiveToken {
            serial: index + 1,
            user: world.user(pair.user).map(|user| user.username.clone()).unwrap_or_default(),
            access_token: pair.access_token.clone(),
            refresh_token: pair.refresh_token.clone(),
        });
        live.collect()
    }

    pub fn secrets(&self) -> Vec<String> {
        lock(&self.secrets).iter().cloned().collect()
    }

    /// Remembers what must never be seen outside. An empty string is no secret: it is everywhere.
    pub fn add_secret(&self, secret: &str) {
        if !secret.is_empty() {
            lock(&self.secrets).insert(secret.to_owned());
        }
    }
}

/// A request of the token endpoint that is under way.
pub struct TokenRequest<'h> {
    hub: &'h Hub,
    is_refresh: bool,
}

impl Drop for TokenRequest<'_> {
    fn drop(&mut self) {
        let mut under_way = lock(&self.hub.under_way);
        under_way.0 -= 1;
        under_way.1 -= u64::from(self.is_refresh);
    }
}

/// Locks, whatever happened to others who held it: a test that failed is reported by itself.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
