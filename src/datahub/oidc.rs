//! What we ask of a DataHUB as its OAuth client: begin a login, exchange a code, refresh, revoke.

pub mod error;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openidconnect::core::{
    CoreAuthPrompt, CoreAuthenticationFlow, CoreClient, CoreErrorResponseType, CoreTokenResponse, CoreTokenType,
    CoreUserInfoClaims,
};
use openidconnect::{
    AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpResponse,
    Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, SubjectIdentifier,
    TokenResponse, UserInfoError,
};
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use crate::datahub::back_channel::{BackChannel, BackChannelError};
use crate::datahub::discovery::{Discovery, Metadata, MetadataError};
use crate::datahub::health::{CallKind, Health, Outcome};
use crate::datahub::id_token::{self, IdTokenError};
use crate::datahub::oidc::error::{CheckError, ExchangeError, RefreshError, RevokeError};
use crate::datahub::request_limit::RequestLimit;
use crate::datahub::token::{AccessToken, DEFAULT_LIFETIME, RefreshToken, SessionToken, TokenError, TokenSet};
use crate::datahub::token_endpoint::TokenEndpoint;

/// What a DataHUB knows us as.
#[derive(Debug)]
pub struct Registration {
    /// RFC 6749 section 2.2.
    pub client_id: ClientId,
    /// RFC 6749 section 2.3.1. It may be replaced while others read it.
    pub client_secret: ArcSwap<ClientSecret>,
    /// Where it sends people back to.
    pub redirect_uri: RedirectUrl,
    /// What every login asks for.
    pub scopes: Vec<String>,
}

/// A DataHUB's OpenID provider and what it knows us as.
#[derive(Debug)]
pub struct Provider {
    registration: Registration,
    discovery: Discovery,
    back_channel: BackChannel,
    token_endpoint: TokenEndpoint,
    health: Arc<Health>,
    refreshes: RequestLimit,
    exchanges: RequestLimit,
    revocations: RequestLimit,
    reads: RequestLimit,
}

impl Provider {
    /// The provider that `discovery` knows, which knows us by `registration`.
    pub fn new(
        registration: Registration,
        discovery: Discovery,
        back_channel: BackChannel,
        token_endpoint: TokenEndpoint,
        health: Arc<Health>,
    ) -> Self {
        let [refreshes, exchanges, revocations, reads] = [(); 4].map(|()| RequestLimit::new());
        Self { registration, discovery, back_channel, token_endpoint, health, refreshes, exchanges, revocations, reads }
    }

    /// From now on shows the DataHUB the secret that `other` has.
    pub fn replace_secret_by(&self, other: &Self) {
        self.registration.client_secret.store(other.registration.client_secret.load_full());
    }

    /// How long somebody may wait for an answer of its token endpoint.
    pub fn patience(&self) -> Duration {
        // There may be a second try.
        self.token_endpoint.timeout() * 2
    }

    /// How the calls to this DataHUB end.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The scopes that every login asks for.
    pub fn scopes(&self) -> &[String] {
        &self.registration.scopes
    }

    /// What it knows us as.
    pub fn client_id(&self) -> &str {
        &self.registration.client_id
    }

    /// Where it sends people back to, which must be registered there.
    pub fn redirect_uri(&self) -> &str {
        &self.registration.redirect_uri
    }

    /// Fetches the metadata and exchanges a code that nobody has: whether the DataHUB knows our client. A refresh would not tell,
    /// since GitLab looks at the token before it looks at whose it is.
    ///
    /// # Errors
    /// [`CheckError`]; that it refuses the code is what is wanted.
    pub async fn check(&self) -> Result<(), CheckError> {
        let (code, verifier) = (AuthorizationCode::new(NO_CODE.into()), PkceCodeVerifier::new(NO_VERIFIER.into()));
        match self.exchange_code(code, verifier, SystemTime::now()).await {
            Err(ExchangeError::ErrorResponse(word)) if word == CoreErrorResponseType::InvalidGrant.as_ref() => Ok(()),
            Err(ExchangeError::Metadata(error)) => Err(CheckError::Metadata(error)),
            Err(ExchangeError::Client(word)) => Err(CheckError::Client(word)),
            Err(error) => Err(CheckError::Untold(error)),
            // It is nobody's: a DataHUB that takes it takes anything.
            Ok(_) => Err(CheckError::Untold(ExchangeError::Invalid("a code that nobody has was taken"))),
        }
    }

    /// How many seconds the DataHUB's clock is before this machine's, or less than 0 if it is behind; `None` if it does not
    /// tell. What the way of its answer may have taken does not count.
    pub async fn clock_offset(&self) -> Option<i64> {
        let metadata = self.metadata().await.ok()?;
        let url = metadata.issuer().join(METADATA_PATH).ok()?;
        let request = http::Request::get(url.as_str()).body(Vec::new()).ok()?;
        let sent = SystemTime::now();
        let response = self.back_channel.call(request).await.ok()?;
        let received = SystemTime::now();
        // A cache on the way says how old the answer is (RFC 9111 section 5.1).
        let age = response.headers().get(http::header::AGE).and_then(|age| age.to_str().ok()?.parse().ok());
        let date = date_of(&response)?.checked_add(Duration::from_secs(age.unwrap_or(0)))?;
        // Date has whole seconds.
        let latest = date.checked_add(Duration::from_secs(1))?;
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Some(match (sent.duration_since(latest), date.duration_since(received)) {
            (Ok(behind), _) => -seconds(behind),
            (_, Ok(before)) => seconds(before),
            _ => 0,
        })
    }

    /// Where to send a browser that wants to log in, and what we must remember until it comes back: code flow with PKCE
    /// (S256), state and nonce, all new. `prompt` is what the person is to be asked (OpenID Connect Core section 3.1.2.1).
    ///
    /// # Errors
    /// [`MetadataError`] if the DataHUB's endpoints are not known.
    pub async fn authorization_request(
        &self,
        prompt: Option<CoreAuthPrompt>,
    ) -> Result<AuthorizationRequest, MetadataError> {
        let metadata = self.metadata().await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let client = self.client(&metadata);
        let mut request = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, Nonce::new_random)
            .set_pkce_challenge(challenge);
        // openidconnect asks for `openid` by itself.
        for scope in self.registration.scopes.iter().filter(|scope| *scope != "openid") {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        if let Some(prompt) = prompt {
            request = request.add_prompt(prompt);
        }
        let (url, state, nonce) = request.url();
        Ok(AuthorizationRequest { url, state, nonce, verifier })
    }

    /// Whether the answer that came by the browser is this issuer's: it says so exactly, if it says anything, and it says so
    /// if the metadata announce it (RFC 9207 section 2.4).
    ///
    /// # Errors
    /// [`ExchangeError::Issuer`], or [`ExchangeError::Metadata`] if they are not known.
    pub async fn check_issuer(&self, issuer: Option<&str>) -> Result<(), ExchangeError> {
        let metadata = self.metadata().await?;
        let is_ours = match issuer {
            Some(issuer) => issuer == metadata.issuer().as_str(),
            None => !metadata.additional_metadata().authorization_response_iss_parameter_supported,
        };
        if is_ours { Ok(()) } else { Err(ExchangeError::Issuer) }
    }

    /// Exchanges a code for tokens. The request is sent once: a code that comes a second time is a sign of theft (RFC 6749
    /// section 4.1.2).
    ///
    /// # Errors
    /// [`ExchangeError`]; no token has come then.
    pub async fn exchange_code(
        &self,
        code: AuthorizationCode,
        verifier: PkceCodeVerifier,
        now: SystemTime,
    ) -> Result<Exchanged, ExchangeError> {
        let metadata = self.metadata().await?;
        let client = self.client(&metadata);
        let datahub_date = Cell::new(None);
        let http = |request| async {
            let answer = self.token_endpoint.call(request).await;
            datahub_date.set(answer.as_ref().ok().and_then(date_of));
            answer
        };
        let request = client
            .exchange_code(code)
            .expect("metadata without a token endpoint are refused")
            .set_pkce_verifier(verifier)
            .request_async(&http);
        let response = self.exchanges.run(None, || true, request).await.expect("it is wanted");
        let exchanged = response.map_err(ExchangeError::from_token_endpoint).and_then(|response| {
            // Before anything else: openidconnect would panic at a token that cannot be a header's value.
            let tokens = tokens(&response, None, now).map_err(|error| {
                readable_token(&response).map_or(ExchangeError::Token(error), ExchangeError::Unusable)
            })?;
            Ok(Exchanged { tokens, response, datahub_date: datahub_date.get() })
        });
        if let Err(error) = &exchanged {
            self.report(CallKind::Token, error.outcome());
        }
        exchanged
    }

    /// Learns whose the tokens are: from userinfo, whose subject must be the ID token's.
    ///
    /// # Errors
    /// [`ExchangeError`]; the tokens are nobody's then, and to be revoked.
    pub async fn identify(
        &self,
        exchanged: &Exchanged,
        nonce: &Nonce,
        now: SystemTime,
    ) -> Result<LoginResult, ExchangeError> {
        let Exchanged { tokens, response, .. } = exchanged;
        let metadata = self.metadata().await?;
        let subject = self.verify(exchanged, &metadata, nonce, now).await;
        self.report(CallKind::Token, subject.as_ref().map_or_else(ExchangeError::outcome, |_| Some(Outcome::Good)));
        let user = self.fetch_user(&metadata, response.access_token().clone(), subject?).await;
        self.report(CallKind::Userinfo, user.as_ref().map_or_else(ExchangeError::outcome, |_| Some(Outcome::Good)));
        let scopes = response.scopes().map_or_else(
            || self.registration.scopes.clone(),
            |scopes| scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        );
        Ok(LoginResult { user: user?, tokens: tokens.clone(), scopes })
    }

    /// The person that the ID token beside the tokens speaks of.
    async fn verify(
        &self,
        exchanged: &Exchanged,
        metadata: &Metadata,
        nonce: &Nonce,
        now: SystemTime,
    ) -> Result<SubjectIdentifier, ExchangeError> {
        let Exchanged { tokens, response, datahub_date } = exchanged;
        check_usable(tokens, response).map_err(ExchangeError::Invalid)?;
        let id_token = response.id_token().ok_or(ExchangeError::Invalid("no ID token"))?;
        let Registration { client_id, client_secret, .. } = &self.registration;
        let secret = client_secret.load_full();
        let subject =
            |metadata: &Metadata| id_token::subject(id_token, metadata, client_id, &secret, nonce, now, *datahub_date);
        Ok(match subject(metadata) {
            Err(IdTokenError::UnknownKey) => subject(&*self.discovery.with_new_keys(Instant::now()).await?)?,
            outcome => outcome?,
        })
    }

    /// Exchanges a refresh token of a person for a new set, once there is a permit for that; `None` if it `is_wanted` no more
    /// then. A second try, on another connection, follows one that broke: at GitLab it does no harm, since a token that was
    /// spent is refused and nothing else happens.
    ///
    /// # Errors
    /// [`RefreshError::InvalidGrant`] if this refresh token is spent or revoked.
    pub async fn refresh(
        &self,
        token: &RefreshToken,
        person: u64,
        is_wanted: impl FnOnce() -> bool,
    ) -> Option<Result<TokenSet, RefreshError>> {
        let refresh = async {
            let refreshed = match self.refresh_once(token).await {
                Err(RefreshError::Endpoint(error)) if error.is_lost() => self.refresh_once(token).await,
                refreshed => refreshed,
            };
            self.report(
                CallKind::Token,
                refreshed.as_ref().map_or_else(RefreshError::outcome, |_| Some(Outcome::Good)),
            );
            refreshed
        };
        self.refreshes.run(Some(person), is_wanted, refresh).await
    }

    #[expect(clippy::disallowed_methods, reason = "the token goes to the DataHUB that gave it out")]
    async fn refresh_once(&self, token: &RefreshToken) -> Result<TokenSet, RefreshError> {
        let metadata = self.metadata().await?;
        // The tokens are younger than this, whenever the answer comes.
        let sent = SystemTime::now();
        let http = |request| self.token_endpoint.call(request);
        let response = self
            .client(&metadata)
            .exchange_refresh_token(&openidconnect::RefreshToken::new(token.expose().to_owned()))
            .expect("metadata without a token endpoint are refused")
            .request_async(&http)
            .await
            .map_err(RefreshError::from_token_endpoint)?;
        let tokens = tokens(&response, Some(token), sent)
            .map_err(|_| readable_token(&response).map_or(RefreshError::Invalid, RefreshError::Unusable))?;
        match check_usable(&tokens, &response) {
            Ok(()) => Ok(tokens),
            Err(_) => Err(RefreshError::Unusable(tokens.session_token())),
        }
    }

    /// Revokes a session's token (RFC 7009): at GitLab a refresh token with the access token of the same row.
    ///
    /// Written out, because openidconnect takes `https` only here and a DataHUB on loopback may be `http`.
    ///
    /// # Errors
    /// [`RevokeError`] if the DataHUB did not say that it is done.
    #[expect(clippy::disallowed_methods, reason = "the token goes to the DataHUB that gave it out")]
    pub async fn revoke(&self, token: &SessionToken) -> Result<(), RevokeError> {
        let metadata = self.metadata().await?;
        let endpoint = metadata.additional_metadata().revocation_endpoint.as_ref().ok_or(RevokeError::NoEndpoint)?;
        let mut body = form_urlencoded::Serializer::new(String::with_capacity(3 * token.expose().len() + 64));
        let body = body.append_pair("token", token.expose()).append_pair("token_type_hint", token.type_hint()).finish();
        let request = http::Request::post(endpoint.as_str())
            .header(http::header::AUTHORIZATION, self.client_authentication())
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body.into_bytes())
            .map_err(|_| RevokeError::NoEndpoint)?;
        let call = self.back_channel.call(request);
        let response = self.revocations.run(None, || true, call).await.expect("it is wanted")?;
        let is_page = response.headers().get(http::header::CONTENT_TYPE);
        let is_page = is_page.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        match response.status() {
            http::StatusCode::OK if is_page => Err(RevokeError::Page),
            http::StatusCode::OK => Ok(()),
            status => Err(RevokeError::Status(status)),
        }
    }

    /// The answer of the DataHUB's API to a question of our own, once there is a permit for that.
    ///
    /// # Errors
    /// [`BackChannelError`]; a status that says "no" is an answer.
    pub(super) async fn read_api(&self, request: http::Request<Vec<u8>>) -> Result<HttpResponse, BackChannelError> {
        self.reads.run(None, || true, self.back_channel.call(request)).await.expect("it is wanted")
    }

    /// Reports how a call ended, if it was made.
    fn report(&self, kind: CallKind, outcome: Option<Outcome>) {
        if let Some(outcome) = outcome {
            self.health.report(kind, outcome);
        }
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, MetadataError> {
        self.discovery.metadata(Instant::now()).await
    }

    async fn fetch_user(
        &self,
        metadata: &Metadata,
        token: openidconnect::AccessToken,
        subject: SubjectIdentifier,
    ) -> Result<User, ExchangeError> {
        let id = subject.to_string();
        let http = |request| self.back_channel.call(request);
        let claims: CoreUserInfoClaims = self
            .client(metadata)
            .user_info(token, Some(subject))
            .expect("metadata without a userinfo endpoint are refused")
            .request_async(&http)
            .await
            .map_err(|error| match error {
                UserInfoError::Request(error) => ExchangeError::Userinfo(error),
                _ => ExchangeError::Invalid("userinfo"),
            })?;
        let username = claims.preferred_username().map(|name| name.to_string()).unwrap_or_default();
        let name = claims.name().and_then(|name| name.get(None)).map(|name| name.to_string()).unwrap_or_default();
        Ok(User { id, username, name })
    }

    /// The client authentication of RFC 6749 section 2.3.1.
    fn client_authentication(&self) -> String {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let Registration { client_id, client_secret, .. } = &self.registration;
        let pair = Zeroizing::new(format!("{}:{}", encoded(client_id), encoded(client_secret.load().secret())));
        format!("Basic {}", STANDARD.encode(&*pair))
    }

    fn client(&self, metadata: &Metadata) -> OidcClient {
        CoreClient::from_provider_metadata(
            metadata.clone(),
            self.registration.client_id.clone(),
            Some(ClientSecret::clone(&self.registration.client_secret.load())),
        )
        .set_redirect_uri(self.registration.redirect_uri.clone())
    }
}

/// openidconnect's client as the metadata of a DataHUB leave it.
type OidcClient =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// A login that may begin.
pub struct AuthorizationRequest {
    /// Where the browser goes.
    pub url: Url,
    /// Comes back in the callback's query.
    pub state: CsrfToken,
    /// Comes back in the ID token.
    pub nonce: Nonce,
    /// Proves at the token endpoint that the login is ours.
    pub verifier: PkceCodeVerifier,
}

/// Tokens of which nobody knows yet whose they are.
pub struct Exchanged {
    /// They live, and must be kept or revoked.
    pub tokens: TokenSet,
    response: CoreTokenResponse,
    /// The DataHUB's own clock.
    datahub_date: Option<SystemTime>,
}

/// What a login has brought.
#[derive(Debug)]
pub struct LoginResult {
    /// Whose it is.
    pub user: User,
    /// What opens the API.
    pub tokens: TokenSet,
    /// What the tokens may do.
    pub scopes: Vec<String>,
}

/// A person at one DataHUB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Unique at this DataHUB and for ever: the subject (OpenID Connect Core section 2).
    pub id: String,
    /// Unique at this DataHUB today.
    pub username: String,
    /// For people to read.
    pub name: String,
}

/// The Date of an answer (RFC 9110 section 6.6.1): what the DataHUB's clock says.
fn date_of(response: &HttpResponse) -> Option<SystemTime> {
    let field = response.headers().get(http::header::DATE)?;
    httpdate::parse_http_date(field.to_str().ok()?).ok()
}

/// The tokens of the answer to a request that was sent at `now`; `old` stays where the answer has no refresh token (RFC 6749 section 6).
fn tokens(response: &CoreTokenResponse, old: Option<&RefreshToken>, now: SystemTime) -> Result<TokenSet, TokenError> {
    let lifetime = response.expires_in().unwrap_or(DEFAULT_LIFETIME);
    let refresh = match response.refresh_token() {
        Some(token) => Some(RefreshToken::try_from(token.secret().clone())?),
        None => old.cloned(),
    };
    let access = AccessToken::try_from(response.access_token().secret().clone())?;
    Ok(TokenSet { access, refresh, issued: now, lifetime: lifetime.min(MAX_LIFETIME) })
}

/// Of tokens of which one is none, the other.
fn readable_token(response: &CoreTokenResponse) -> Option<SessionToken> {
    let refresh = response.refresh_token().and_then(|token| RefreshToken::try_from(token.secret().clone()).ok());
    let access = AccessToken::try_from(response.access_token().secret().clone()).ok();
    refresh.map(SessionToken::Refresh).or(access.map(SessionToken::Access))
}

/// Whether tokens that have come can be used.
fn check_usable(tokens: &TokenSet, response: &CoreTokenResponse) -> Result<(), &'static str> {
    match response.token_type() {
        CoreTokenType::Bearer if tokens.lifetime.is_zero() => Err("token lifetime"),
        CoreTokenType::Bearer => Ok(()),
        _ => Err("token type"),
    }
}

/// What `check` asks with: a code that no DataHUB gave out, and a verifier of the length that RFC 7636 section 4.1 asks for.
const NO_CODE: &str = "no-code:-is-this-client-known-here?";
const NO_VERIFIER: &str = "no-verifier-is-this-client-known-here-no-verifier";
/// OpenID Connect Discovery section 4.
const METADATA_PATH: &str = ".well-known/openid-configuration";

/// What a token is taken to live at most, so that no answer can make a time overflow.
const MAX_LIFETIME: Duration = Duration::from_hours(8784);
