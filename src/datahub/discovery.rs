//! A DataHUB's metadata and keys, fetched when first needed and kept.
//!
//! Nothing is fetched at the start, so a dead DataHUB stops neither us nor the others. After an hour they are renewed behind
//! the calls, which go on with what is known for a day; a call waits only where nothing is, or for a key that is missing. One
//! fetch runs at a time; one that failed is not repeated for a few seconds, so that a crowd in front of a dead DataHUB waits
//! once.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreJsonWebKey,
    CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm,
    CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{
    AdditionalProviderMetadata, HttpResponse, IssuerUrl, JsonWebKey, JsonWebKeyAlgorithm, ProviderMetadata,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};
use url::Url;

use crate::access_log::chain;
use crate::datahub::back_channel::{BackChannel, BackChannelError};
use crate::datahub::health::{CallKind, Health, Outcome};

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
pub struct Discovery(Arc<SharedDiscovery>);

/// What a renewal that runs behind the calls holds, too.
#[derive(Debug)]
struct SharedDiscovery {
    issuer: IssuerUrl,
    back_channel: BackChannel,
    health: Arc<Health>,
    known: ArcSwapOption<CachedMetadata>,
    /// Held by whoever fetches. Nobody who reads waits for it.
    fetches: Arc<Mutex<Fetches>>,
}

/// What was fetched, and when.
#[derive(Debug)]
struct CachedMetadata {
    metadata: Arc<Metadata>,
    since: Instant,
}

/// When the last fetches were, for the reasons that bound the next.
#[derive(Debug, Default)]
struct Fetches {
    failed: Option<Instant>,
    key_missed: Option<Instant>,
}

impl Discovery {
    /// Metadata of exactly this `issuer`.
    pub fn new(issuer: IssuerUrl, back_channel: BackChannel, health: Arc<Health>) -> Self {
        let (known, fetches) = (ArcSwapOption::empty(), Arc::default());
        Self(Arc::new(SharedDiscovery { issuer, back_channel, health, known, fetches }))
    }

    /// The metadata: those that are known, up to a day old, or else fetched now.
    ///
    /// # Errors
    /// [`MetadataError`] if nothing is known and nothing usable can be fetched.
    pub async fn metadata(&self, now: Instant) -> Result<Arc<Metadata>, MetadataError> {
        if let Some(known) = self.0.known_at(now) {
            if now.saturating_duration_since(known.since) >= METADATA_TTL {
                self.renew_behind(now);
            }
            return Ok(Arc::clone(&known.metadata));
        }
        let mut fetches = self.0.fetches.lock().await;
        // Another caller may have fetched them while this one waited.
        match self.0.known_at(now) {
            Some(known) => Ok(Arc::clone(&known.metadata)),
            None if fetches.has_failed_at(now) => Err(MetadataError::Paused),
            None => self.0.renew(&mut fetches).await,
        }
    }

    /// The metadata after a key turned up that they do not hold: fetched again, for that reason once a minute at most.
    ///
    /// # Errors
    /// As [`Discovery::metadata`].
    pub(super) async fn with_new_keys(&self, now: Instant) -> Result<Arc<Metadata>, MetadataError> {
        let mut fetches = self.0.fetches.lock().await;
        let known = self.0.known_at(now);
        let is_too_soon = |since: Instant| now.saturating_duration_since(since) < MISSING_KEY_INTERVAL;
        let is_newer = known.as_ref().is_some_and(|known| known.since > now);
        let is_bounded = fetches.key_missed.is_some_and(is_too_soon) || fetches.has_failed_at(now);
        if let (true, Some(known)) = (is_newer || is_bounded, &known) {
            return Ok(Arc::clone(&known.metadata));
        }
        fetches.key_missed = Some(now);
        let renewed = self.0.renew(&mut fetches).await;
        renewed.or_else(|error| known.map(|known| Arc::clone(&known.metadata)).ok_or(error))
    }

    /// Begins to fetch them, unless that is under way or has just failed.
    fn renew_behind(&self, now: Instant) {
        let Ok(mut fetches) = Arc::clone(&self.0.fetches).try_lock_owned() else { return };
        if fetches.has_failed_at(now) {
            return;
        }
        // Until it has succeeded, whatever becomes of the thread.
        fetches.failed = Some(now);
        let shared = Arc::clone(&self.0);
        // A thread of its own, once an hour, since a task would end with the worker of the call that came first.
        let spawned = thread::Builder::new().name("discovery".into()).spawn(move || shared.renew_here(fetches));
        if let Err(error) = spawned {
            log::warn!(error:err = error, issuer = self.0.issuer.as_str(); "no thread to renew metadata");
        }
    }
}

impl SharedDiscovery {
    /// What is known, if it is not too old.
    fn known_at(&self, now: Instant) -> Option<Arc<CachedMetadata>> {
        self.known.load_full().filter(|known| now.saturating_duration_since(known.since) < MAX_METADATA_AGE)
    }

    /// Fetches on this thread.
    fn renew_here(&self, mut fetches: OwnedMutexGuard<Fetches>) {
        match actix_rt::Runtime::new() {
            // What comes of it is known, and logged.
            Ok(runtime) => drop(runtime.block_on(self.renew(&mut fetches))),
            Err(error) => log::warn!(error:err = error, issuer = self.issuer.as_str(); "no runtime to renew metadata"),
        }
    }

    async fn renew(&self, fetches: &mut Fetches) -> Result<Arc<Metadata>, MetadataError> {
        let outcome = self.fetch().await;
        if let Some(outcome) = outcome.as_ref().map_or_else(MetadataError::outcome, |_| Some(Outcome::Good)) {
            self.health.report(CallKind::Discovery, outcome);
        }
        let now = Instant::now();
        match outcome {
            Ok(metadata) => {
                let metadata = Arc::new(metadata);
                self.known.store(Some(Arc::new(CachedMetadata { metadata: Arc::clone(&metadata), since: now })));
                fetches.failed = None;
                Ok(metadata)
            }
            Err(error) => {
                fetches.failed = Some(now);
                log::warn!(issuer = self.issuer.as_str(), reason = chain(&error); "discovery failed");
                Err(error)
            }
        }
    }

    /// Metadata and keys, checked.
    async fn fetch(&self) -> Result<Metadata, MetadataError> {
        let url = self.issuer.join(".well-known/openid-configuration").map_err(|_| MetadataError::Unreadable)?;
        let metadata = metadata(self.get(&url, Document::Metadata).await?, &self.issuer)?;
        let keys = self.get(metadata.jwks_uri().url(), Document::Keys).await?;
        with_keys(metadata, keys)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &Url, document: Document) -> Result<T, MetadataError> {
        let request = http::Request::get(url.as_str()).header(http::header::ACCEPT, "application/json");
        let request = request.body(Vec::new()).map_err(|_| MetadataError::Unreadable)?;
        let response = self.back_channel.call(request).await.map_err(MetadataError::Unreachable)?;
        if response.status() != http::StatusCode::OK {
            return Err(MetadataError::Status(document, response.status()));
        }
        let json = Some(response).filter(is_json).and_then(|response| serde_json::from_slice(response.body()).ok());
        json.ok_or(MetadataError::NotJson(document))
    }
}

impl Fetches {
    fn has_failed_at(&self, now: Instant) -> bool {
        self.failed.is_some_and(|failed| now.saturating_duration_since(failed) < RETRY_INTERVAL)
    }
}

/// What a document tells (OpenID Connect Discovery section 4.3): metadata of exactly this `issuer`, of which nothing is missing that
/// a login needs, and whose endpoints are all on the issuer's origin.
///
/// # Errors
/// [`MetadataError`] for what is wrong with it.
pub fn metadata(json: Value, issuer: &IssuerUrl) -> Result<Metadata, MetadataError> {
    let is_url = |value: &Value| value.as_str().is_some_and(|text| Url::parse(text).is_ok());
    let is_missing = |name: &&str, is_right: fn(&Value) -> bool| !json.get(*name).is_some_and(is_right);
    let missing = REQUIRED_URLS.iter().find(|name| is_missing(name, is_url));
    if let Some(name) = missing.or_else(|| REQUIRED_LISTS.iter().find(|name| is_missing(name, Value::is_array))) {
        return Err(MetadataError::Lacks(name));
    }
    let metadata: Metadata = serde_json::from_value(json).map_err(|_| MetadataError::Unreadable)?;
    if metadata.issuer() != issuer {
        let told: String = metadata.issuer().chars().take(MAX_TOLD_CHARS).collect();
        return Err(MetadataError::Issuer { expected: issuer.to_string(), told });
    }
    let own = issuer.url().origin();
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
    Ok(metadata)
}

/// The same with these keys, of which one at least can sign ID tokens.
///
/// # Errors
/// [`MetadataError::NoKey`] if none can.
pub fn with_keys(metadata: Metadata, keys: CoreJsonWebKeySet) -> Result<Metadata, MetadataError> {
    if keys.keys().iter().any(can_sign_id_tokens) { Ok(metadata.set_jwks(keys)) } else { Err(MetadataError::NoKey) }
}

/// Whether its Content-Type, if it has one, says that it is JSON.
fn is_json(response: &HttpResponse) -> bool {
    let Some(field) = response.headers().get(http::header::CONTENT_TYPE) else { return true };
    let essence = field.to_str().ok().and_then(|text| text.split(';').next()).unwrap_or_default().trim().to_owned();
    ["application/json", "application/jwk-set+json"].iter().any(|json| essence.eq_ignore_ascii_case(json))
}

/// Whether a key may sign an ID token as we take it (RFC 7517 sections 4.1 to 4.4).
fn can_sign_id_tokens(key: &CoreJsonWebKey) -> bool {
    use openidconnect::core::{CoreJsonWebKeyType, CoreJsonWebKeyUse};

    let is_for_it = match key.signing_alg() {
        JsonWebKeyAlgorithm::Unspecified => true,
        JsonWebKeyAlgorithm::Algorithm(algorithm) => *algorithm == CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
        JsonWebKeyAlgorithm::Unsupported => false,
    };
    let is_for_signatures = key.key_use().is_none_or(|usage| *usage == CoreJsonWebKeyUse::Signature);
    *key.key_type() == CoreJsonWebKeyType::RSA && is_for_signatures && is_for_it
}

/// Why a DataHUB's metadata are not to be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// No answer.
    #[error("cannot fetch the metadata (see that the DataHUB is up, and that this machine reaches its url)")]
    Unreachable(#[source] BackChannelError),
    /// Any answer but 200.
    #[error("{0} is answered with {1} and not with 200: see that url, or issuer, is the DataHUB's own")]
    Status(Document, http::StatusCode),
    /// A page, or something else.
    #[error("{0} is no JSON: see that the DataHUB itself answers there, and no page of a proxy before it")]
    NotJson(Document),
    /// A member that is missing, or of the wrong kind.
    #[error("the metadata lack a good {0}: see that the DataHUB is a GitLab, and that nothing alters its answers")]
    Lacks(&'static str),
    /// Another member that is not as OpenID Connect Discovery section 3 says.
    #[error("the metadata cannot be read: see that the DataHUB is a GitLab, and that nothing alters its answers")]
    Unreadable,
    /// Those of another issuer.
    #[error(
        "the metadata are of the issuer {told:?} and not of {expected:?}: set issuer, if that is the DataHUB's own"
    )]
    Issuer {
        /// Of the configuration.
        expected: String,
        /// Of the metadata, at most [`MAX_TOLD_CHARS`] of it.
        told: String,
    },
    /// An endpoint that is not on the issuer's origin.
    #[error("{0} in the metadata is not on the issuer's origin: see that GitLab's external_url is the DataHUB's url")]
    ForeignEndpoint(&'static str),
    /// No key that could sign an ID token.
    #[error("jwks_uri holds no RSA key for signatures (RS256): see to GitLab's openid_connect_signing_key")]
    NoKey,
    /// A fetch failed a moment ago.
    #[error("fetching the metadata failed a moment ago: see the log for the reason")]
    Paused,
}

impl MetadataError {
    /// What it says about the DataHUB, if anything.
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Unreachable(error) => error.outcome(),
            _ => Some(Outcome::Failed),
        }
    }
}

/// One of the two documents that discovery consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// OpenID Connect Discovery section 4.
    Metadata,
    /// The JSON web key set (RFC 7517 section 5).
    Keys,
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metadata => "/.well-known/openid-configuration",
            Self::Keys => "jwks_uri",
        })
    }
}

/// What a login needs of the metadata.
const REQUIRED_URLS: [&str; 5] =
    ["issuer", "authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri"];
/// What OpenID Connect Discovery section 3 requires beside it.
const REQUIRED_LISTS: [&str; 3] =
    ["response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported"];
/// How much of another issuer is told.
const MAX_TOLD_CHARS: usize = 200;
/// How long metadata are used without asking again.
const METADATA_TTL: Duration = Duration::from_hours(1);
/// How long they are used at all.
const MAX_METADATA_AGE: Duration = Duration::from_hours(24);
/// How long nothing is fetched for another missing key.
const MISSING_KEY_INTERVAL: Duration = Duration::from_mins(1);
/// How long a failed fetch is not repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use ::datahub::behaviour::Answer;
    use ::datahub::{DataHub, Options};
    use serde_json::json;

    use super::*;
    use crate::datahub::transport::{Address, tls_config};

    fn discovery_at(hub: &DataHub) -> Discovery {
        let issuer = IssuerUrl::new(hub.url().to_owned()).expect("a URL");
        let address = Address::new(issuer.url().clone(), None, tls_config(None).expect("roots")).expect("an address");
        let health = Arc::new(Health::new("a".parse().expect("an id")));
        Discovery::new(
            issuer,
            BackChannel::new(vec![address], Duration::from_millis(500), Duration::from_millis(500)),
            health,
        )
    }

    fn hub() -> DataHub {
        DataHub::start(Options::default()).expect("a free port")
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        actix_web::rt::System::new().block_on(work)
    }

    fn json_answer(json: &str) -> Answer {
        let length = json.len();
        Answer::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{json}").into_bytes())
    }

    /// How often it was asked for its metadata, answered or not.
    fn asked(hub: &DataHub) -> usize {
        hub.requests().iter().filter(|request| request.target().starts_with("/.well-known/")).count()
    }

    fn wait_until(what: &str, is_so: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(10);
        while !is_so() {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn metadata_of_an_hour_are_used_at_once_for_a_day_and_renewed_behind_the_calls() {
        let hub = hub();
        let discovery = discovery_at(&hub);
        let now = Instant::now();
        let after = |hours: u64| now + Duration::from_hours(hours) + Duration::from_secs(1);
        run(discovery.metadata(now)).expect("it answers");
        run(discovery.metadata(now + Duration::from_mins(59))).expect("known");
        assert_eq!(asked(&hub), 1, "within the hour");

        hub.set(|behaviour| behaviour.discovery.answer = Answer::Hang);
        let started = Instant::now();
        for hours in [1, 2, 23] {
            run(discovery.metadata(after(hours))).expect("known");
        }
        assert!(started.elapsed() < Duration::from_millis(400), "a call waited");
        wait_until("nobody renews them", || asked(&hub) == 2);
        wait_until("the renewal never ends", || discovery.0.fetches.try_lock().is_ok());
        assert_eq!(asked(&hub), 2, "one renewal at a time");
        run(discovery.metadata(Instant::now())).expect("known");

        hub.set(|behaviour| behaviour.discovery.answer = Answer::Normal);
        let since = || discovery.0.known.load().as_ref().map(|known| known.since);
        let before = since();
        // No task of actix goes on once this runtime has ended; and there never was a LocalSet.
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(discovery.metadata(after(1))).expect("known");
        drop(runtime);
        wait_until("they are not renewed", || since() > before);
        assert_eq!(asked(&hub), 3);
    }

    #[test]
    fn a_call_waits_where_nothing_is_known_or_what_is_known_is_a_day_old() {
        let hub = hub();
        let discovery = discovery_at(&hub);
        let now = Instant::now();
        hub.set(|behaviour| behaviour.keys.answer = Answer::Status(500));
        assert!(matches!(run(discovery.metadata(now)), Err(MetadataError::Unreachable(_))));
        assert!(matches!(run(discovery.metadata(now)), Err(MetadataError::Paused)));
        assert_eq!(asked(&hub), 1, "one that failed is not repeated at once");
        hub.set(|behaviour| behaviour.keys.answer = Answer::Normal);
        run(discovery.metadata(Instant::now() + RETRY_INTERVAL)).expect("it answers");
        let day = Instant::now() + MAX_METADATA_AGE;
        run(discovery.metadata(day)).expect("it answers");
        assert_eq!(asked(&hub), 3, "too old");
        hub.set(|behaviour| behaviour.discovery.answer = Answer::Status(500));
        let next_day = Instant::now() + MAX_METADATA_AGE;
        assert!(matches!(run(discovery.metadata(next_day)), Err(MetadataError::Unreachable(_))), "too old for ever");
    }

    #[test]
    fn a_missing_key_is_fetched_for_one_login_while_others_go_on() {
        let hub = hub();
        let discovery = discovery_at(&hub);
        run(async {
            discovery.metadata(Instant::now()).await.expect("it answers");
            let now = Instant::now();
            hub.set(|behaviour| behaviour.keys.answer = Answer::Hang);
            let missing = discovery.with_new_keys(now);
            let others = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let started = Instant::now();
                discovery.metadata(Instant::now()).await.expect("known");
                discovery.metadata(now + Duration::from_hours(2)).await.expect("known");
                assert!(started.elapsed() < Duration::from_millis(200), "a call waited for another's key");
            };
            let (known, ()) = tokio::join!(missing, others);
            known.expect("what was known stays in use");
            assert_eq!(asked(&hub), 2, "and one fetch serves both reasons");
            discovery.with_new_keys(now + Duration::from_secs(30)).await.expect("known");
            assert_eq!(asked(&hub), 2, "once a minute");
            hub.set(|behaviour| behaviour.keys.answer = Answer::Normal);
            discovery.with_new_keys(now + Duration::from_secs(61)).await.expect("it answers");
            assert_eq!(asked(&hub), 3);
        });
    }

    #[test]
    fn what_is_wrong_with_the_metadata_is_said_in_words_of_its_own() {
        let hub = hub();
        let url = hub.url();
        let good = json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/a"),
            "token_endpoint": format!("{url}/t"),
            "userinfo_endpoint": format!("{url}/u"),
            "jwks_uri": format!("{url}/oauth/discovery/keys"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        });
        let with = |name: &str, value: Value| {
            let mut metadata = good.clone();
            metadata[name] = value;
            json_answer(&metadata.to_string())
        };
        let told = |answer: Answer| {
            hub.set(|behaviour| behaviour.discovery.answer = answer);
            run(discovery_at(&hub).metadata(Instant::now())).err().map(|error| chain(&error)).unwrap_or_default()
        };
        assert_eq!(told(json_answer(&good.to_string())), "");
        let issuer = format!(
            "the metadata are of the issuer \"{url}/\" and not of \"{url}\": set issuer, if that is the DataHUB's own"
        );
        let lacks =
            |name: &str| format!("the metadata lack a good {name}: see that the DataHUB is a GitLab, and that nothing");
        let page = "/.well-known/openid-configuration is no JSON: see that the DataHUB itself answers there";
        for (case, answer, expected) in [
            ("closed", Answer::CloseWithoutAnswer, "cannot fetch the metadata (see that the DataHUB is up, and that"),
            ("a 404", Answer::Status(404), "/.well-known/openid-configuration is answered with 404 Not Found and not"),
            ("leads away", Answer::Redirect("/x".into()), "/.well-known/openid-configuration is answered with 302"),
            ("a page", Answer::Html(200), page),
            ("half", json_answer("{\"issuer\":"), page),
            ("a list", json_answer("[]"), &lacks("issuer")),
            ("no token endpoint", with("token_endpoint", Value::Null), &lacks("token_endpoint")),
            ("an odd URL", with("userinfo_endpoint", json!("x")), &lacks("userinfo_endpoint")),
            ("no list", with("response_types_supported", json!("code")), &lacks("response_types_supported")),
            (
                "an odd member",
                with("claims_supported", json!(7)),
                "the metadata cannot be read: see that the DataHUB is",
            ),
            ("another issuer", with("issuer", json!(format!("{url}/"))), &issuer),
            (
                "an endpoint elsewhere",
                with("token_endpoint", json!("http://192.0.2.1/t")),
                "token_endpoint in the metadata is",
            ),
        ] {
            let told = told(answer);
            assert!(told.starts_with(expected), "{case}: {told}");
        }
        let long = told(with("issuer", json!(format!("{url}/{}\u{1b}[2J", "x".repeat(9_000)))));
        assert!(long.len() < 500 && !long.contains('\u{1b}'), "{long}");

        hub.set(|behaviour| behaviour.discovery.answer = Answer::Normal);
        let key = |more: &str| format!(r#"{{"keys":[{{"kty":"RSA","n":"0vx7ago","e":"AQAB"{more}}}]}}"#);
        for (case, keys, is_taken) in [
            ("of no purpose", key(""), true),
            ("for signatures", key(r#","use":"sig","alg":"RS256""#), true),
            ("for encryption", key(r#","use":"enc""#), false),
            ("for RS512", key(r#","use":"sig","alg":"RS512""#), false),
            ("none", r#"{"keys":[]}"#.to_owned(), false),
            ("of another kind", r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#.to_owned(), false),
        ] {
            hub.set(|behaviour| behaviour.keys.answer = json_answer(&keys));
            let outcome = run(discovery_at(&hub).metadata(Instant::now()));
            assert_eq!(outcome.is_ok(), is_taken, "{case}");
            assert!(is_taken || matches!(outcome, Err(MetadataError::NoKey)), "{case}");
        }
        for (answer, expected) in [
            (Answer::Status(403), "jwks_uri is answered with 403 Forbidden and not with 200"),
            (Answer::Html(200), "jwks_uri is no JSON"),
        ] {
            hub.set(|behaviour| behaviour.keys.answer = answer);
            let error = run(discovery_at(&hub).metadata(Instant::now())).expect_err("no keys");
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }
}
