//! What we ask of a DataHUB as its OAuth client: begin a login, exchange a code, refresh, revoke.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreErrorResponseType, CoreTokenResponse, CoreTokenType, CoreUserInfoClaims,
};
use openidconnect::{
    AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, Nonce,
    OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    StandardErrorResponse, SubjectIdentifier, TokenResponse, UserInfoError,
};
use url::{Url, form_urlencoded};

use crate::datahub::back_channel::{BackChannel, BackChannelError};
use crate::datahub::discovery::{Discovery, Metadata, MetadataError};
use crate::datahub::id_token::{self, IdTokenError};
use crate::datahub::token::{AccessToken, DEFAULT_LIFETIME, RefreshToken, TokenError, TokenSet};

/// A DataHUB's OpenID provider and what it knows us as.
#[derive(Debug)]
pub struct Provider {
    client_id: ClientId,
    client_secret: ClientSecret,
    redirect_uri: RedirectUrl,
    scopes: Vec<String>,
    discovery: Discovery,
    back_channel: BackChannel,
}

impl Provider {
    /// The client `client_id` of the issuer that `discovery` knows.
    pub fn new(
        client_id: ClientId,
        client_secret: ClientSecret,
        redirect_uri: RedirectUrl,
        scopes: Vec<String>,
        discovery: Discovery,
        back_channel: BackChannel,
    ) -> Self {
        Self { client_id, client_secret, redirect_uri, scopes, discovery, back_channel }
    }

    /// The scopes that every login asks for.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Fetches the metadata, if they are not known yet.
    ///
    /// # Errors
    /// [`MetadataError`] if they are not to be had.
    pub async fn check(&self) -> Result<(), MetadataError> {
        self.metadata().await.map(drop)
    }

    /// Where to send a browser that wants to log in, and what we must remember until it comes back: code flow with PKCE
    /// (S256), state and nonce, all new.
    ///
    /// # Errors
    /// [`MetadataError`] if the DataHUB's endpoints are not known.
    pub async fn authorization_request(&self) -> Result<AuthorizationRequest, MetadataError> {
        let metadata = self.metadata().await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let client = self.client(&metadata);
        let mut request = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, Nonce::new_random)
            .set_pkce_challenge(challenge);
        // openidconnect asks for `openid` by itself.
        for scope in self.scopes.iter().filter(|scope| *scope != "openid") {
            request = request.add_scope(Scope::new(scope.clone()));
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

    /// Exchanges a code for tokens and learns whose they are: from userinfo, whose subject must be the ID token's.
    ///
    /// # Errors
    /// [`ExchangeError`]; no token is kept then.
    pub async fn exchange_code(
        &self,
        code: AuthorizationCode,
        verifier: PkceCodeVerifier,
        nonce: &Nonce,
        now: SystemTime,
    ) -> Result<LoginResult, ExchangeError> {
        let metadata = self.metadata().await?;
        let http = |request| self.back_channel.call(request);
        let client = self.client(&metadata);
        let response = client
            .exchange_code(code)
            .expect("metadata without a token endpoint are refused")
            .set_pkce_verifier(verifier)
            .request_async(&http)
            .await
            .map_err(ExchangeError::from_token_endpoint)?;
        // First of all: openidconnect would panic at a token that cannot be a header's value.
        let tokens = tokens(&response, None, now)?;
        let id_token = response.id_token().ok_or(ExchangeError::Invalid("no ID token"))?;
        let verify = |metadata: &Metadata| {
            id_token::subject(id_token, metadata, &self.client_id, &self.client_secret, nonce, now)
        };
        let subject = match verify(&metadata) {
            Err(IdTokenError::UnknownKey) => {
                verify(&*self.discovery.with_new_keys(&self.back_channel, Instant::now()).await?)?
            }
            outcome => outcome?,
        };
        let scopes = response.scopes().map_or_else(
            || self.scopes.clone(),
            |scopes| scopes.iter().map(|scope| scope.as_str().to_owned()).collect(),
        );
        let user = self.fetch_user(&metadata, response.access_token().clone(), subject).await?;
        Ok(LoginResult { user, tokens, scopes })
    }

    /// Exchanges a refresh token for a new set. A second try, on another connection, follows one that broke: at GitLab it
    /// does no harm, since a token that was spent is refused and nothing else happens.
    ///
    /// # Errors
    /// [`RefreshError::InvalidGrant`] if this refresh token is spent or revoked; anything else may pass.
    pub async fn refresh(&self, token: &RefreshToken) -> Result<TokenSet, RefreshError> {
        match self.refresh_once(token).await {
            Err(RefreshError::Unreachable(BackChannelError::Unreachable(_))) => self.refresh_once(token).await,
            outcome => outcome,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the token goes to the DataHUB that gave it out")]
    async fn refresh_once(&self, token: &RefreshToken) -> Result<TokenSet, RefreshError> {
        let metadata = self.metadata().await?;
        // The tokens are younger than this, whenever the answer comes.
        let sent = SystemTime::now();
        let http = |request| self.back_channel.call(request);
        let response = self
            .client(&metadata)
            .exchange_refresh_token(&openidconnect::RefreshToken::new(token.expose().to_owned()))
            .expect("metadata without a token endpoint are refused")
            .request_async(&http)
            .await
            .map_err(RefreshError::from_token_endpoint)?;
        tokens(&response, Some(token), sent).map_err(|_| RefreshError::Invalid)
    }

    /// Revokes a refresh token, and with it the access token of the same row (GitLab's tables hold both in one).
    ///
    /// Written out, because openidconnect takes `https` only here and a DataHUB on loopback may be `http`.
    ///
    /// # Errors
    /// [`RevokeError`] if the DataHUB did not say that it is done.
    #[expect(clippy::disallowed_methods, reason = "the token goes to the DataHUB that gave it out")]
    pub async fn revoke(&self, token: &RefreshToken) -> Result<(), RevokeError> {
        let metadata = self.metadata().await?;
        let endpoint = metadata.additional_metadata().revocation_endpoint.as_ref().ok_or(RevokeError::NoEndpoint)?;
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("token", token.expose())
            .append_pair("token_type_hint", "refresh_token")
            .finish();
        let request = http::Request::post(endpoint.as_str())
            .header(http::header::AUTHORIZATION, self.client_authentication())
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body.into_bytes())
            .map_err(|_| RevokeError::NoEndpoint)?;
        let response = self.back_channel.call(request).await?;
        if response.status() == http::StatusCode::OK { Ok(()) } else { Err(RevokeError::Status(response.status())) }
    }

    async fn metadata(&self) -> Result<std::sync::Arc<Metadata>, MetadataError> {
        self.discovery.metadata(&self.back_channel, Instant::now()).await
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
                UserInfoError::Request(error) => ExchangeError::Unreachable(error),
                _ => ExchangeError::Invalid("userinfo"),
            })?;
        let username = claims.preferred_username().map(|name| name.to_string()).unwrap_or_default();
        let name = claims.name().and_then(|name| name.get(None)).map(|name| name.to_string()).unwrap_or_default();
        Ok(User { id, username, name })
    }

    /// The client authentication of RFC 6749 section 2.3.1.
    fn client_authentication(&self) -> String {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = format!("{}:{}", encoded(&self.client_id), encoded(self.client_secret.secret()));
        format!("Basic {}", STANDARD.encode(pair))
    }

    fn client(&self, metadata: &Metadata) -> OidcClient {
        CoreClient::from_provider_metadata(metadata.clone(), self.client_id.clone(), Some(self.client_secret.clone()))
            .set_redirect_uri(self.redirect_uri.clone())
    }
}

/// openidconnect's client as the metadata of a DataHUB leave it.
type OidcClient =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

/// A login that may begin.
#[derive(Debug)]
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

/// Why a code brought no session.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The DataHUB's endpoints or keys are not known.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// An answer that is another issuer's, or does not say whose.
    #[error("the answer is not this issuer's")]
    Issuer,
    /// No answer.
    #[error("cannot reach the DataHUB to exchange the code")]
    Unreachable(#[source] BackChannelError),
    /// The token endpoint said no, in a word of RFC 6749 section 5.2.
    #[error("the DataHUB refused the code: {0}")]
    ErrorResponse(Cow<'static, str>),
    /// An answer that is not to be believed.
    #[error("the DataHUB's answer is invalid: {0}")]
    Invalid(&'static str),
    /// An ID token that is not to be believed.
    #[error(transparent)]
    IdToken(#[from] IdTokenError),
    /// A token that cannot be a header's value.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl ExchangeError {
    fn from_token_endpoint(error: TokenEndpointError) -> Self {
        match error {
            RequestTokenError::ServerResponse(response) => Self::ErrorResponse(error_code(response.error())),
            RequestTokenError::Request(error) => Self::Unreachable(error),
            // Their text may hold the answer, and so a token.
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => Self::Invalid("token answer"),
        }
    }
}

/// Why a refresh brought no tokens.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The token is spent or revoked.
    #[error("the DataHUB no longer accepts the refresh token")]
    InvalidGrant,
    /// The DataHUB's endpoints are not known.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// No answer.
    #[error("cannot reach the DataHUB to refresh")]
    Unreachable(#[source] BackChannelError),
    /// Another refusal, such as one of our own client.
    #[error("the DataHUB refused the refresh: {0}")]
    ErrorResponse(Cow<'static, str>),
    /// An answer that is none.
    #[error("the DataHUB's answer to the refresh is invalid")]
    Invalid,
}

impl RefreshError {
    fn from_token_endpoint(error: TokenEndpointError) -> Self {
        match error {
            RequestTokenError::ServerResponse(response) => match response.error() {
                CoreErrorResponseType::InvalidGrant => Self::InvalidGrant,
                other => Self::ErrorResponse(error_code(other)),
            },
            RequestTokenError::Request(error) => Self::Unreachable(error),
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => Self::Invalid,
        }
    }
}

/// Why a revocation is not certain.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// The DataHUB's endpoints are not known.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The metadata name no revocation endpoint.
    #[error("the DataHUB has no revocation endpoint")]
    NoEndpoint,
    /// No answer.
    #[error("cannot reach the DataHUB to revoke")]
    Unreachable(#[from] BackChannelError),
    /// Anything but 200.
    #[error("the DataHUB answered the revocation with {0}")]
    Status(http::StatusCode),
}

type TokenEndpointError = RequestTokenError<BackChannelError, StandardErrorResponse<CoreErrorResponseType>>;

/// A word of the standard, or `other`: what a DataHUB makes up does not enter the log.
fn error_code(error: &CoreErrorResponseType) -> Cow<'static, str> {
    match error {
        CoreErrorResponseType::Extension(_) => Cow::Borrowed("other"),
        known => Cow::Owned(known.to_string()),
    }
}

/// The tokens of the answer to a request that was sent at `now`; `old` stays where the answer has no refresh token (RFC 6749 section 6).
fn tokens(
    response: &CoreTokenResponse,
    old: Option<&RefreshToken>,
    now: SystemTime,
) -> Result<TokenSet, ExchangeError> {
    if !matches!(response.token_type(), CoreTokenType::Bearer) {
        return Err(ExchangeError::Invalid("token type"));
    }
    let lifetime = response.expires_in().unwrap_or(DEFAULT_LIFETIME);
    if lifetime.is_zero() {
        return Err(ExchangeError::Invalid("token lifetime"));
    }
    let refresh = match response.refresh_token() {
        Some(token) => Some(RefreshToken::try_from(token.secret().clone())?),
        None => old.cloned(),
    };
    let access = AccessToken::try_from(response.access_token().secret().clone())?;
    Ok(TokenSet { access, refresh, issued: now, lifetime: lifetime.min(MAX_LIFETIME) })
}

/// What a token is taken to live at most, so that no answer can make a time overflow.
const MAX_LIFETIME: Duration = Duration::from_hours(8784);
