//! All that one DataHUB knows, shared by its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::behaviour::Behaviour;
use crate::oauth::grants::Grants;
use crate::record::Recorder;
use crate::world::World;
use crate::{Counts, Options};

/// What the handle in tests and every connection look at.
pub struct Hub {
    pub name: String,
    /// Base of every address it gives out, and its issuer; without a slash at the end.
    pub url: String,
    pub client_id: String,
    pub client_secret: String,
    pub redirect_uris: Vec<String>,
    pub recorder: Recorder,
    behaviour: Mutex<Behaviour>,
    counts: Mutex<Counts>,
    secrets: Mutex<BTreeSet<String>>,
    executions: Mutex<BTreeMap<String, u64>>,
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
            behaviour: Mutex::new(options.behaviour),
            counts: Mutex::default(),
            executions: Mutex::default(),
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

/// Locks, whatever happened to others who held it: a test that failed is reported by itself.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
