//! A DataHUB's metadata and keys, fetched when first needed and kept.
//!
//! Nothing is fetched at the start, so a dead DataHUB stops neither us nor the others. One fetch runs at a time; one that
//! failed is not repeated for a few seconds, so that a crowd in front of a dead DataHUB waits once. What was known before
//! stays in use while a new fetch fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreJsonWebKey,
    CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreResponseMode, CoreResponseType,
    CoreSubjectIdentifierType,
};
use openidconnect::{AdditionalProviderMetadata, DiscoveryError, IssuerUrl, ProviderMetadata};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

use crate::datahub::back_channel::{BackChannel, BackChannelError};

/// What OpenID Connect Discovery tells, its JSON web key set included.
pub type Metadata = ProviderMetadata<
    AdditionalMetadata,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

/// The members that OpenID Connect itself does not define.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AdditionalMetadata {
    /// RFC 8414 section 2.
    pub revocation_endpoint: Option<Url>,
    /// RFC 9207 section 3.
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

impl AdditionalProviderMetadata for AdditionalMetadata {}

/// The metadata of one issuer, cached.
#[derive(Debug)]
pub struct Discovery {
    issuer: IssuerUrl,
    cache: Mutex<MetadataCache>,
}

#[derive(Debug, Default)]
struct MetadataCache {
    known: Option<(Arc<Metadata>, Instant)>,
    failed: Option<Instant>,
    key_missed: Option<Instant>,
}

impl Discovery {
    /// Metadata of exactly this `issuer`.
    pub fn new(issuer: IssuerUrl) -> Self {
        Self { issuer, cache: Mutex::default() }
    }

    /// The metadata, from the cache while it is less than an hour old.
    ///
    /// # Errors
    /// [`MetadataError`] if nothing is known and nothing usable can be fetched.
    pub async fn metadata(&self, back_channel: &BackChannel, now: Instant) -> Result<Arc<Metadata>, MetadataError> {
        let mut cache = self.cache.lock().await;
        if let Some((metadata, since)) = &cache.known
            && now.saturating_duration_since(*since) < METADATA_TTL
        {
            return Ok(Arc::clone(metadata));
        }
        self.renew(&mut cache, back_channel, now).await
    }

    /// The metadata after a key turned up that they do not hold: fetched again, for that reason once a minute at most.
    ///
    /// # Errors
    /// As [`Discovery::metadata`].
    pub(super) async fn with_new_keys(
        &self,
        back_channel: &BackChannel,
        now: Instant,
    ) -> Result<Arc<Metadata>, MetadataError> {
        let mut cache = self.cache.lock().await;
        let is_too_soon =
            cache.key_missed.is_some_and(|missed| now.saturating_duration_since(missed) < MISSING_KEY_INTERVAL);
        if let (true, Some((metadata, _))) = (is_too_soon, &cache.known) {
            return Ok(Arc::clone(metadata));
        }
        cache.key_missed = Some(now);
        self.renew(&mut cache, back_channel, now).await
    }

    async fn renew(
        &self,
        cache: &mut MetadataCache,
        back_channel: &BackChannel,
        now: Instant,
    ) -> Result<Arc<Metadata>, MetadataError> {
        let known = cache.known.as_ref().map(|(metadata, _)| Arc::clone(metadata));
        if cache.failed.is_some_and(|failed| now.saturating_duration_since(failed) < RETRY_INTERVAL) {
            return known.ok_or(MetadataError::Paused);
        }
        match self.fetch(back_channel).await {
            Ok(metadata) => {
                let metadata = Arc::new(metadata);
                (cache.known, cache.failed) = (Some((Arc::clone(&metadata), Instant::now())), None);
                Ok(metadata)
            }
            Err(error) => {
                cache.failed = Some(Instant::now());
                log::warn!(error:err = error, issuer = self.issuer.as_str(); "discovery failed");
                known.ok_or(error)
            }
        }
    }

    async fn fetch(&self, back_channel: &BackChannel) -> Result<Metadata, MetadataError> {
        let http = |request| back_channel.call_idempotent(request);
        let metadata = Metadata::discover_async(self.issuer.clone(), &http).await.map_err(|error| match error {
            DiscoveryError::Request(error) => MetadataError::Unreachable(error),
            _ => MetadataError::Invalid,
        })?;
        let own = self.issuer.url().origin();
        let endpoints = [
            ("authorization_endpoint", Some(metadata.authorization_endpoint().url())),
            ("token_endpoint", metadata.token_endpoint().map(openidconnect::TokenUrl::url)),
            ("userinfo_endpoint", metadata.userinfo_endpoint().map(openidconnect::UserInfoUrl::url)),
            ("jwks_uri", Some(metadata.jwks_uri().url())),
            ("revocation_endpoint", metadata.additional_metadata().revocation_endpoint.as_ref()),
        ];
        let foreign = endpoints.into_iter().find(|(_, url)| url.is_some_and(|url| url.origin() != own));
        if let Some((name, _)) = foreign {
            return Err(MetadataError::ForeignEndpoint(name));
        }
        if metadata.token_endpoint().is_none() || metadata.userinfo_endpoint().is_none() {
            return Err(MetadataError::Invalid);
        }
        Ok(metadata)
    }
}

/// Why a DataHUB's metadata are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No answer.
    #[error("cannot fetch the metadata")]
    Unreachable(#[source] BackChannelError),
    /// Not metadata, or those of another issuer.
    #[error("the metadata are incomplete or another issuer's")]
    Invalid,
    /// An endpoint that is not on the issuer's origin.
    #[error("{0} in the metadata is not on the issuer's origin")]
    ForeignEndpoint(&'static str),
    /// A fetch failed a moment ago.
    #[error("fetching the metadata failed a moment ago")]
    Paused,
}

/// How long metadata are used without asking again.
const METADATA_TTL: Duration = Duration::from_hours(1);
/// How long nothing is fetched for another missing key.
const MISSING_KEY_INTERVAL: Duration = Duration::from_mins(1);
/// How long a failed fetch is not repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
