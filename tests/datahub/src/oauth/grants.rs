//! Codes and pairs of tokens, as Doorkeeper keeps them: one row holds both tokens, so that revoking one revokes the other.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::behaviour::RefreshMode;
use crate::hex;

#[derive(Default)]
pub struct Grants {
    codes: HashMap<String, Code>,
    pairs: Vec<Pair>,
    by_access_token: HashMap<String, usize>,
    by_refresh_token: HashMap<String, usize>,
}

/// What a user agreed to, until it is exchanged.
pub struct Code {
    pub user: u64,
    pub redirect_uri: String,
    pub scopes: String,
    pub nonce: Option<String>,
    pub challenge: Option<Challenge>,
    pub given: SystemTime,
}

/// PKCE (RFC 7636).
#[derive(Clone)]
pub enum Challenge {
    Sha256(String),
    Plain(String),
}

/// One row of `oauth_access_tokens`.
#[derive(Clone)]
pub struct Pair {
    pub access_token: String,
    pub refresh_token: Option<String>,
    pub user: u64,
    pub scopes: String,
    pub signed_in: SystemTime,
    pub created: SystemTime,
    pub lifetime: Duration,
    revoked: bool,
    /// Whether a refresh has replaced it; with [`RefreshMode::RevokeOnUse`] it may be good for another all the same.
    spent: bool,
    /// Revoked when this pair is first used; only with [`RefreshMode::RevokeOnUse`].
    previous: Option<usize>,
}

/// Why an access token is not accepted.
#[derive(Clone, Copy)]
pub enum Refusal {
    Unknown,
    Expired,
    Revoked,
}

impl Grants {
    pub fn give_code(&mut self, code: Code) -> String {
        let name = hex::random();
        self.codes.insert(name.clone(), code);
        name
    }

    pub fn wants_verifier(&self, code: &str) -> bool {
        self.codes.get(code).is_some_and(|code| code.challenge.is_some())
    }

    /// Spends the code if all is right.
    pub fn redeem(&mut self, code: &str, redirect_uri: &str, verifier: Option<&str>, now: SystemTime) -> Option<Code> {
        let known = self.codes.get(code)?;
        let in_time = now.duration_since(known.given).is_ok_and(|age| age < CODE_LIFETIME);
        let verified = match (&known.challenge, verifier) {
            (None, None) => true,
            (Some(Challenge::Plain(challenge)), Some(verifier)) => challenge == verifier,
            (Some(Challenge::Sha256(challenge)), Some(verifier)) => {
                *challenge == URL_SAFE_NO_PAD.encode(Sha256::digest(verifier))
            }
            _ => false,
        };
        if in_time && verified && known.redirect_uri == redirect_uri { self.codes.remove(code) } else { None }
    }

    pub fn issue(
        &mut self,
        user: u64,
        scopes: String,
        signed_in: SystemTime,
        lifetime: Duration,
        is_refreshable: bool,
        now: SystemTime,
    ) -> Pair {
        self.add(Pair {
            access_token: hex::random(),
            refresh_token: is_refreshable.then(hex::random),
            user,
            scopes,
            signed_in,
            created: now,
            lifetime,
            revoked: false,
            spent: false,
            previous: None,
        })
    }

    /// A pair that another login of `user` with the same scopes may get again.
    pub fn matching(&self, user: u64, scopes: &str, now: SystemTime) -> Option<Pair> {
        let is_good = |pair: &&Pair| !pair.revoked && !pair.spent && !pair.expires_in(now).is_zero();
        self.pairs.iter().rev().filter(is_good).find(|pair| pair.user == user && pair.scopes == scopes).cloned()
    }

    /// Whose refresh token it is, good or not.
    pub fn owner(&self, refresh_token: &str) -> Option<u64> {
        Some(self.pairs.get(*self.by_refresh_token.get(refresh_token)?)?.user)
    }

    /// The pairs that are neither revoked nor spent, with their places. One without a refresh token ends when it expires.
    pub fn live(&self, now: SystemTime) -> impl Iterator<Item = (usize, &Pair)> {
        let is_live = move |pair: &Pair| {
            !pair.revoked && !pair.spent && (pair.refresh_token.is_some() || !pair.expires_in(now).is_zero())
        };
        self.pairs.iter().enumerate().filter(move |(_, pair)| is_live(pair))
    }

    /// The pair this refresh token would replace.
    pub fn refreshable(&self, refresh_token: &str) -> Option<&Pair> {
        self.pairs.get(*self.by_refresh_token.get(refresh_token)?).filter(|pair| !pair.revoked)
    }

    pub fn refresh(
        &mut self,
        refresh_token: &str,
        mode: RefreshMode,
        is_refreshable: bool,
        now: SystemTime,
    ) -> Option<Pair> {
        let old = self.refreshable(refresh_token)?.clone();
        let index = *self.by_refresh_token.get(refresh_token)?;
        self.pairs[index].spent = true;
        let previous = match mode {
            RefreshMode::RevokeAtOnce => {
                self.pairs[index].revoked = true;
                None
            }
            RefreshMode::RevokeOnUse => Some(index),
        };
        Some(self.add(Pair {
            access_token: hex::random(),
            refresh_token: is_refreshable.then(hex::random),
            created: now,
            spent: false,
            previous,
            ..old
        }))
    }

    pub fn authenticate(&mut self, access_token: &str, now: SystemTime) -> Result<Pair, Refusal> {
        let index = *self.by_access_token.get(access_token).ok_or(Refusal::Unknown)?;
        let pair = &mut self.pairs[index];
        // GitLab's API looks at the expiry first (`AccessTokenValidationService`).
        if pair.expires_in(now).is_zero() {
            return Err(Refusal::Expired);
        }
        if pair.revoked {
            return Err(Refusal::Revoked);
        }
        let pair_in_use = pair.clone();
        if let Some(previous) = pair.previous.take() {
            self.pairs[previous].revoked = true;
        }
        Ok(pair_in_use)
    }

    pub fn knows(&self, token: &str) -> bool {
        self.by_access_token.contains_key(token) || self.by_refresh_token.contains_key(token)
    }

    /// Whether it revoked anything. With the hint, only refresh tokens are looked at (Doorkeeper 5.8).
    pub fn revoke(&mut self, token: &str, hinted_refresh_token: bool, now: SystemTime) -> bool {
        let by_access_token = self.by_access_token.get(token).filter(|_| !hinted_refresh_token);
        let (index, usable) = match (by_access_token, self.by_refresh_token.get(token)) {
            (Some(index), _) => (*index, !self.pairs[*index].expires_in(now).is_zero()),
            (None, Some(index)) => (*index, true),
            (None, None) => return false,
        };
        let revokes = usable && !self.pairs[index].revoked;
        self.pairs[index].revoked |= revokes;
        revokes
    }

    pub fn expire_all(&mut self) {
        for pair in &mut self.pairs {
            pair.created = SystemTime::UNIX_EPOCH;
        }
    }

    pub fn revoke_all(&mut self) {
        for pair in &mut self.pairs {
            pair.revoked = true;
        }
    }

    fn add(&mut self, pair: Pair) -> Pair {
        let index = self.pairs.len();
        self.by_access_token.insert(pair.access_token.clone(), index);
        if let Some(refresh_token) = &pair.refresh_token {
            self.by_refresh_token.insert(refresh_token.clone(), index);
        }
        self.pairs.push(pair.clone());
        pair
    }
}

impl Pair {
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.split(' ').any(|own| own == scope)
    }

    /// Zero once expired.
    pub fn expires_in(&self, now: SystemTime) -> Duration {
        self.lifetime.saturating_sub(now.duration_since(self.created).unwrap_or_default())
    }
}

/// Since 1970, as JWTs and Doorkeeper count.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Doorkeeper's default.
const CODE_LIFETIME: Duration = Duration::from_secs(600);
