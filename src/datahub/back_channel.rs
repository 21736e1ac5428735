//! Our own calls to a DataHUB, through awc: discovery, keys, tokens, userinfo.
//!
//! Each call has a connection of its own: there are few of them, and a reused connection may have died unnoticed, which
//! a refresh cannot afford. Nothing is redirected, and no address is called but the DataHUB's own, whatever its
//! metadata say.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_rt::net::{ActixStream, Ready};
use actix_service::fn_service;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection};
use actix_web::http::{StatusCode, Uri, header};
use openidconnect::{HttpRequest, HttpResponse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use url::Url;

use crate::datahub::transport::Address;
use crate::http::client::Stream;

/// Calls to one DataHUB.
#[derive(Debug, Clone)]
pub struct BackChannel {
    /// The DataHUB's own, and its issuer's where that is another.
    addresses: Vec<Address>,
    timeout: Duration,
}

impl BackChannel {
    /// Calls go to these `addresses` and to no others; `timeout` is for one whole call.
    pub fn new(addresses: Vec<Address>, timeout: Duration) -> Self {
        Self { addresses, timeout }
    }

    /// Sends one request and reads the whole answer, up to 256 KiB of it.
    ///
    /// # Errors
    /// [`BackChannelError`]; a status that says "no" is an answer like any other, one that says "not now" is none.
    pub async fn call(&self, request: HttpRequest) -> Result<HttpResponse, BackChannelError> {
        let url = Url::parse(&request.uri().to_string()).map_err(|_| BackChannelError::ForeignAddress)?;
        let address = self.addresses.iter().find(|address| address.is_origin_of(&url));
        let address = address.ok_or(BackChannelError::ForeignAddress)?;
        tokio::time::timeout(self.timeout, self.exchange(request, &url, address))
            .await
            .map_err(|_| BackChannelError::Timeout)?
    }

    async fn exchange(
        &self,
        request: HttpRequest,
        url: &Url,
        address: &Address,
    ) -> Result<HttpResponse, BackChannelError> {
        let (parts, body) = request.into_parts();
        let method = actix_web::http::Method::from_bytes(parts.method.as_str().as_bytes())
            .map_err(|_| BackChannelError::Malformed)?;
        let mut call = self
            .client(address)
            .request(method, without_tls(url)?)
            .insert_header((header::HOST, address.host_header()))
            .no_decompress();
        for (name, value) in &parts.headers {
            let value = header::HeaderValue::from_bytes(value.as_bytes()).map_err(|_| BackChannelError::Malformed)?;
            call = call.insert_header((name.as_str(), value));
        }
        let sent = if body.is_empty() { call.send_body(actix_web::body::None::new()) } else { call.send_body(body) };
        let mut answer = sent.await.map_err(unreachable)?;
        let status = answer.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(BackChannelError::ServerError(status.as_u16()));
        }

        let mut response = http::Response::builder().status(answer.status().as_u16());
        for (name, value) in answer.headers() {
            response = response.header(name.as_str(), value.as_bytes());
        }
        let body = answer.body().limit(MAX_RESPONSE_BYTES).await.map_err(|_| BackChannelError::Malformed)?;
        response.body(body.to_vec()).map_err(|_| BackChannelError::Malformed)
    }

    /// A client for one call. It speaks plain HTTP; TLS is the transport's business.
    fn client(&self, address: &Address) -> awc::Client {
        let address = address.clone();
        let connector = fn_service(move |to: ConnectInfo<Uri>| {
            let address = address.clone();
            async move {
                let stream = address.connect().await.map_err(ConnectError::Io)?;
                Ok::<_, ConnectError>(Connection::new(to.request().clone(), AwcStream(stream)))
            }
        });
        awc::Client::builder()
            .connector(awc::Connector::new().connector(connector).timeout(self.timeout))
            .timeout(self.timeout)
            .disable_redirects()
            .no_default_headers()
            .finish()
    }
}

/// The URL with the scheme that makes awc leave TLS to the transport.
fn without_tls(url: &Url) -> Result<Uri, BackChannelError> {
    let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
    Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(&url[url::Position::BeforePath..url::Position::AfterQuery])
        .build()
        .map_err(|_| BackChannelError::Malformed)
}

fn unreachable(error: awc::error::SendRequestError) -> BackChannelError {
    use awc::error::{ConnectError, SendRequestError};
    match error {
        SendRequestError::Timeout | SendRequestError::Connect(ConnectError::Timeout) => BackChannelError::Timeout,
        SendRequestError::Response(_) => BackChannelError::Malformed,
        SendRequestError::Connect(ConnectError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            BackChannelError::Untrusted(error)
        }
        SendRequestError::Connect(ConnectError::Io(error)) | SendRequestError::Send(error) => {
            BackChannelError::Unreachable(error)
        }
        other => BackChannelError::Unreachable(io::Error::other(other.to_string())),
    }
}

/// Why a call to a DataHUB got no answer. Names no URL and no token.
#[derive(Debug, thiserror::Error)]
pub enum BackChannelError {
    /// The network said no, or the connection broke.
    #[error("the DataHUB cannot be reached")]
    Unreachable(#[source] io::Error),
    /// Its certificate, or its TLS, is not right.
    #[error("the DataHUB's TLS is not to be trusted")]
    Untrusted(#[source] io::Error),
    /// No whole answer within the time limit.
    #[error("the DataHUB did not answer in time")]
    Timeout,
    /// A status that says "not now": 429, or one from 500 on.
    #[error("the DataHUB answered with {0}")]
    ServerError(u16),
    /// An answer that is not HTTP, or too long.
    #[error("the DataHUB's answer cannot be read")]
    Malformed,
    /// Its metadata name an address that is not its own.
    #[error("the DataHUB's metadata lead to another address")]
    ForeignAddress,
}

/// A connection with the trait that awc asks for. It always says that it is ready, since polling it tells the truth.
#[derive(Debug)]
struct AwcStream(Stream);

impl AsyncRead for AwcStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for AwcStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl ActixStream for AwcStream {
    fn poll_read_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        Poll::Ready(Ok(Ready::ALL))
    }

    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        Poll::Ready(Ok(Ready::ALL))
    }
}

/// Longest answer we read, in bytes: ten times the largest userinfo of a member of a thousand groups would still fit.
const MAX_RESPONSE_BYTES: usize = 256 * 1024;
