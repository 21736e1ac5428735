//! Requests to a DataHUB's token endpoint: each is sent once and its answer waited for, since it cannot be asked for again.
//!
//! A code and a refresh token are spent when the endpoint has taken them, whether its answer arrives or not. So these
//! requests go through the HTTP client of the proxy, which reads every framing and skips interim answers, and they have a
//! patience of their own.

use std::time::{Duration, SystemTime};

use http::header::{DATE, HeaderName, LOCATION, RETRY_AFTER};
use openidconnect::{HttpRequest, HttpResponse};
use tokio::time::Instant;
use url::Url;
use zeroize::{Zeroize as _, Zeroizing};

use crate::datahub::health::Outcome;
use crate::datahub::transport::{Address, ConnectError, ForeignAddress};
use crate::http::body::write_content_length;
use crate::http::buffer::{BufferPool, append};
use crate::http::client::{ClientConnection, ReceiveError, Response, ResponseBodyError};
use crate::http::timer::Elapsed;

/// The token endpoint of one DataHUB.
#[derive(Debug)]
pub struct TokenEndpoint {
    /// The DataHUB's own, and its issuer's where that is another.
    addresses: Vec<Address>,
    connect_timeout: Duration,
    timeout: Duration,
}

impl TokenEndpoint {
    /// Requests go to these `addresses` and to no others. A connection may take `connect_timeout`, TLS included, and the
    /// answer on it `timeout`.
    pub fn new(addresses: Vec<Address>, connect_timeout: Duration, timeout: Duration) -> Self {
        Self { addresses, connect_timeout, timeout }
    }

    /// How long an answer may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends `request` and reads the whole answer, up to 256 KiB of it.
    ///
    /// # Errors
    /// [`TokenEndpointError`]; a refusal in the words of OAuth is an answer like any other.
    pub(super) async fn call(&self, request: HttpRequest) -> Result<HttpResponse, TokenEndpointError> {
        let (address, url) = Address::of(&self.addresses, &request)?;
        let stream = address.connect(self.connect_timeout).await?;
        let mut connection = ClientConnection::new(stream, &BufferPool::default());
        let deadline = Instant::now() + self.timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        // What is not taken may have been answered all the same.
        let _ = connection.send(&message(&request, &url, address), left()).await?;
        let mut response = connection.receive(false, left()).await?;
        self.check_status(&response)?;
        // One allocation that never moves, so that no copy of a token stays behind.
        let mut body = Zeroizing::new(Vec::with_capacity(2 * MAX_RESPONSE_BYTES));
        body.extend_from_slice(response.start());
        while let Some(mut piece) = connection.next_piece(&mut response.body, left()).await? {
            body.extend_from_slice(&piece);
            piece.zeroize();
            if body.len() > MAX_RESPONSE_BYTES {
                return Err(TokenEndpointError::TooLarge);
            }
        }
        let mut answer = http::Response::builder().status(response.status());
        for field in response.fields().iter() {
            answer = answer.header(field.name, field.value);
        }
        response.wipe();
        answer.body(std::mem::take(&mut *body)).map_err(|_| ReceiveError::Invalid("a head that is not HTTP").into())
    }

    /// Refuses a status by which nothing was decided, and a redirect.
    fn check_status(&self, response: &Response) -> Result<(), TokenEndpointError> {
        let fields = |name: HeaderName| {
            let values: Vec<_> = response.fields().values(name.as_str()).collect();
            values.into_iter().filter_map(|value| std::str::from_utf8(value).ok()).collect::<Vec<_>>()
        };
        match response.status() {
            status @ (429 | 500..) => {
                // By the DataHUB's own clock, if it tells it.
                let date = fields(DATE).first().and_then(|date| httpdate::parse_http_date(date).ok());
                let now = date.unwrap_or_else(SystemTime::now);
                let retry_after = fields(RETRY_AFTER).into_iter().filter_map(|value| seconds(value, now)).max();
                Err(TokenEndpointError::NotNow { status, retry_after })
            }
            300..400 => {
                let leads_to_sign_in = |address: &Address| {
                    let [to] = fields(LOCATION)[..] else { return false };
                    let to = Url::parse(address.as_str()).ok().and_then(|base| base.join(to).ok());
                    let sign_in = format!("{}/users/sign_in", address.root());
                    to.is_some_and(|to| address.is_origin_of(&to) && to.path() == sign_in)
                };
                let is_sign_in = self.addresses.iter().any(leads_to_sign_in);
                Err(if is_sign_in { TokenEndpointError::SignIn } else { TokenEndpointError::Redirect })
            }
            _ => Ok(()),
        }
    }
}

/// The request as it goes over the wire. It holds the client's secret and a token.
fn message(request: &HttpRequest, url: &Url, address: &Address) -> Zeroizing<Vec<u8>> {
    // One allocation that never moves, so that no copy of a token stays behind.
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    let mut message = Zeroizing::new(Vec::with_capacity(url.as_str().len() + fields + request.body().len() + 256));
    let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
    append(&mut message, [request.method().as_str(), " ", target, " HTTP/1.1\r\nHost: "].map(str::as_bytes));
    append(&mut message, [address.host_header().as_bytes(), b"\r\nConnection: close\r\n"]);
    for (name, value) in request.headers() {
        append(&mut message, [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    write_content_length(request.body().len() as u64, &mut message);
    append(&mut message, [b"\r\n", request.body()]);
    message
}

/// How long Retry-After asks to wait, in seconds or until a date (RFC 9110 section 10.2.3).
fn seconds(value: &str, now: SystemTime) -> Option<Duration> {
    let parts = || value.split(',').map(str::trim);
    if parts().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())) {
        // A number that is too large for one is a long time.
        return parts().map(|part| part.parse().unwrap_or(u64::MAX)).max().map(Duration::from_secs);
    }
    httpdate::parse_http_date(value).ok().map(|date| date.duration_since(now).unwrap_or_default())
}

/// Why a request to the token endpoint got no answer. Names no URL and no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenEndpointError {
    /// No connection: nothing has been sent.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No answer, or none that is HTTP.
    #[error("the DataHUB's token endpoint gave no answer (see its own log, and any proxy before it)")]
    Answer(#[from] ReceiveError),
    /// An answer that broke off.
    #[error("the answer of the DataHUB's token endpoint broke off (see its own log, and any proxy before it)")]
    Body(#[from] ResponseBodyError),
    /// The endpoint did not take the request in time.
    #[error("the DataHUB's token endpoint did not take the request in time: see its own log, and any proxy before it")]
    Stalled,
    /// A status that says "not now": 429, or one from 500 on.
    #[error("the DataHUB's token endpoint answered with {status}: see its own log")]
    NotNow {
        /// The status.
        status: u16,
        /// How long it asks us to wait, if it does.
        retry_after: Option<Duration>,
    },
    /// A redirect to the DataHUB's own sign-in page: what GitLab answers for a person who is blocked.
    #[error("the DataHUB sends the person to its sign-in page: it has blocked them, or deactivated their account")]
    SignIn,
    /// Any other redirect, such as one of a maintenance page.
    #[error(
        "the DataHUB's token endpoint answered with a redirect: see that it is not in maintenance, and that url is its own"
    )]
    Redirect,
    /// More than is read.
    #[error("the answer of the DataHUB's token endpoint is longer than 256 KiB: see what answers at its /oauth/token")]
    TooLarge,
    /// The metadata name an address that is not the DataHUB's own.
    #[error(transparent)]
    ForeignAddress(#[from] ForeignAddress),
}

impl TokenEndpointError {
    /// What it says about the DataHUB, if anything.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Connect(error) => error.outcome(),
            _ => Some(Outcome::Failed),
        }
    }

    /// Whether the connection broke, so that another may do better.
    pub(super) fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Connect(ConnectError::Failed(_) | ConnectError::Proxy { .. } | ConnectError::Untrusted(_))
                | Self::Answer(ReceiveError::Closed | ReceiveError::Lost(_))
                | Self::Body(ResponseBodyError::Truncated | ResponseBodyError::Lost(_))
        )
    }
}

impl From<Elapsed> for TokenEndpointError {
    fn from(_: Elapsed) -> Self {
        Self::Stalled
    }
}

/// Longest answer that is read, in bytes.
const MAX_RESPONSE_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_of_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expected) in [
            ("60", Some(60)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("60, 90", Some(90)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("60,", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(seconds(value, now), expected.map(Duration::from_secs), "{value}");
        }
    }
}
