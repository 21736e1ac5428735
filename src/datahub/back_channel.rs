//! Our own calls to a DataHUB that may be made twice, through awc: discovery, keys, userinfo, revocation.
//!
//! Each call has a connection of its own: there are few of them, and a reused connection may have died unnoticed.
//! Nothing is redirected, and no address is called but the DataHUB's own, whatever its metadata say.

use std::cell::Cell;
use std::future::ready;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_rt::net::{ActixStream, Ready};
use actix_service::fn_service;
use actix_tls::connect::{ConnectError as AwcConnectError, ConnectInfo, Connection};
use actix_web::error::{ParseError, PayloadError};
use actix_web::http::{StatusCode, Uri, header};
use openidconnect::{HttpRequest, HttpResponse};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::datahub::health::Outcome;
use crate::datahub::transport::{Address, ConnectError, ForeignAddress};
use crate::http::client::Stream;

/// Calls to one DataHUB.
#[derive(Debug, Clone)]
pub struct BackChannel {
    /// The DataHUB's own, and its issuer's where that is another.
    addresses: Vec<Address>,
    connect_timeout: Duration,
    timeout: Duration,
}

impl BackChannel {
    /// Calls go to these `addresses` and to no others; `connect_timeout` is for a connection, TLS included, and `timeout` for
    /// one whole call.
    pub fn new(addresses: Vec<Address>, connect_timeout: Duration, timeout: Duration) -> Self {
        Self { addresses, connect_timeout, timeout }
    }

    /// Sends one request and reads the whole answer, up to 2 MiB of it. It is sent once more, on another connection and
    /// within the same time limit, if the connection broke or the answer is not whole.
    ///
    /// # Errors
    /// [`BackChannelError`]; a status that says "no" is an answer like any other, one that says "not now" is none.
    pub async fn call(&self, request: HttpRequest) -> Result<HttpResponse, BackChannelError> {
        let (address, url) = Address::of(&self.addresses, &request)?;
        let deadline = Instant::now() + self.timeout;
        let exchanges = async {
            match self.exchange(request.clone(), &url, address, deadline).await {
                Err(BackChannelError::Broken(_) | BackChannelError::Incomplete(_)) => {
                    self.exchange(request, &url, address, deadline).await
                }
                outcome => outcome,
            }
        };
        timeout_at(deadline, exchanges).await.unwrap_or(Err(BackChannelError::Timeout))
    }

    async fn exchange(
        &self,
        request: HttpRequest,
        url: &Url,
        address: &Address,
        deadline: Instant,
    ) -> Result<HttpResponse, BackChannelError> {
        let limit = self.connect_timeout.min(deadline.saturating_duration_since(Instant::now()));
        let stream = address.connect(limit).await?;
        let has_ended = Rc::new(Cell::new(false));
        let (parts, body) = request.into_parts();
        let method = actix_web::http::Method::from_bytes(parts.method.as_str().as_bytes())
            .map_err(|_| BackChannelError::Malformed)?;
        let mut call = self
            .client(stream, &has_ended)
            .request(method, without_tls(url)?)
            .insert_header((header::HOST, address.host_header()))
            .no_decompress();
        for (name, value) in &parts.headers {
            let value = header::HeaderValue::from_bytes(value.as_bytes()).map_err(|_| BackChannelError::Malformed)?;
            call = call.insert_header((name.as_str(), value));
        }
        let sent = if body.is_empty() { call.send_body(actix_web::body::None::new()) } else { call.send_body(body) };
        let mut answer = sent.await.map_err(send_error)?;
        let status = answer.status();
        if status.is_informational() {
            return Err(BackChannelError::Incomplete("an interim answer"));
        }
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(BackChannelError::ServerError(status.as_u16()));
        }

        let mut response = http::Response::builder().status(answer.status().as_u16());
        for (name, value) in answer.headers() {
            response = response.header(name.as_str(), value.as_bytes());
        }
        let body = answer.body().limit(MAX_RESPONSE_BYTES).await.map_err(|error| match error {
            PayloadError::Overflow => BackChannelError::TooLarge,
            PayloadError::Io(error) | PayloadError::Incomplete(Some(error)) => BackChannelError::Broken(error),
            _ => BackChannelError::Malformed,
        })?;
        // awc takes a body that was cut for a whole one, and one that ends with the connection for none.
        if has_ended.get() {
            return Err(BackChannelError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        if parts.method == http::Method::GET && status == StatusCode::OK && body.is_empty() {
            return Err(BackChannelError::Incomplete("no body, or one without a length"));
        }
        response.body(body.to_vec()).map_err(|_| BackChannelError::Malformed)
    }

    /// A client for one call over `stream`. It speaks plain HTTP; TLS is the transport's business.
    fn client(&self, stream: Stream, has_ended: &Rc<Cell<bool>>) -> awc::Client {
        let stream = Rc::new(Cell::new(Some(AwcStream { stream, has_ended: Rc::clone(has_ended) })));
        let connector = fn_service(move |to: ConnectInfo<Uri>| {
            // There is one call, and so one connection.
            let stream = stream.take().ok_or(AwcConnectError::NoRecords);
            ready(stream.map(|stream| Connection::new(to.request().clone(), stream)))
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

fn send_error(error: awc::error::SendRequestError) -> BackChannelError {
    use awc::error::SendRequestError;
    match error {
        SendRequestError::Timeout => BackChannelError::Timeout,
        // What awc reads of an answer, it reads as one: a connection that is reset is an error of the answer's, too.
        SendRequestError::Send(error) | SendRequestError::Response(ParseError::Io(error)) => {
            BackChannelError::Broken(error)
        }
        SendRequestError::Response(_) => BackChannelError::Malformed,
        other => BackChannelError::Broken(io::Error::other(other.to_string())),
    }
}

/// Why a call to a DataHUB got no answer. Names no URL and no token.
#[derive(Debug, thiserror::Error)]
pub enum BackChannelError {
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There was one, and it ended before the answer did.
    #[error("the connection to the DataHUB broke")]
    Broken(#[source] io::Error),
    /// No whole answer within the time limit.
    #[error("the DataHUB did not answer in time")]
    Timeout,
    /// A status that says "not now": 429, or one from 500 on.
    #[error("the DataHUB answered with {0}")]
    ServerError(u16),
    /// An answer that is not HTTP.
    #[error("the DataHUB's answer cannot be read")]
    Malformed,
    /// An answer that says or holds less than one does.
    #[error("the DataHUB's answer is not whole: {0}")]
    Incomplete(&'static str),
    /// An answer of more than [`MAX_RESPONSE_BYTES`].
    #[error("the DataHUB's answer is longer than {} MiB, the limit", MAX_RESPONSE_BYTES >> 20)]
    TooLarge,
    /// Its metadata name an address that is not its own.
    #[error(transparent)]
    ForeignAddress(#[from] ForeignAddress),
}

impl BackChannelError {
    /// What it says about the DataHUB, if anything.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Connect(error) => error.outcome(),
            _ => Some(Outcome::Failed),
        }
    }

    /// Whether the same call may well be answered in a while, without anybody doing anything about it.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Malformed | Self::Incomplete(_) | Self::TooLarge | Self::ForeignAddress(_))
    }
}

/// A connection with the trait that awc asks for. It always says that it is ready, since polling it tells the truth.
#[derive(Debug)]
struct AwcStream {
    stream: Stream,
    /// Whether it ended while more of the answer was to come.
    has_ended: Rc<Cell<bool>>,
}

impl AsyncRead for AwcStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, into);
        if matches!(outcome, Poll::Ready(Ok(()))) && into.filled().len() == before {
            self.has_ended.set(true);
        }
        outcome
    }
}

impl AsyncWrite for AwcStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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

/// Longest answer we read, in bytes: userinfo of a member of 3,000 groups is 240 KiB.
const MAX_RESPONSE_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::datahub::transport::tls_config;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    const HALF_CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n";
    const ENDLESS: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}";
    const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{}";
    const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    const BROKEN: &str = "the connection to the DataHUB broke";
    const NOT_NOW: &[u8] = b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n";

    /// Answers each connection by the next of these, the last for ever; counts them.
    fn far_end(answers: &'static [&'static [u8]]) -> (Url, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answers[counted.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let _ = (&stream).write_all(answer);
            }
        });
        (Url::parse(&url).expect("a URL"), count)
    }

    fn call(answers: &'static [&'static [u8]], method: http::Method) -> (String, usize) {
        let (url, count) = far_end(answers);
        let address = Address::new(url.clone(), None, tls_config(None).expect("roots")).expect("an address");
        let channel = BackChannel::new(vec![address], Duration::from_secs(5), Duration::from_secs(5));
        let request = http::Request::builder().method(method).uri(url.as_str()).body(Vec::new()).expect("a request");
        let outcome = actix_web::rt::System::new().block_on(channel.call(request));
        let told = match outcome {
            Ok(response) => String::from_utf8(response.into_body()).expect("ASCII"),
            Err(error) => format!("{error}"),
        };
        (told, count.load(Ordering::Relaxed))
    }

    #[test]
    fn an_answer_that_is_not_whole_is_asked_for_once_more_on_another_connection() {
        let not_whole = |reason| format!("the DataHUB's answer is not whole: {reason}");
        let (no_body, interim) = (not_whole("no body, or one without a length"), not_whole("an interim answer"));
        for (case, answers, told, connections) in [
            ("whole", &[WHOLE][..], "{}", 1),
            ("in chunks", &[CHUNKED], "{}", 1),
            ("until the connection ends", &[ENDLESS], &no_body, 2),
            ("until the connection ends, then whole", &[ENDLESS, WHOLE], "{}", 2),
            ("empty", &[EMPTY], &no_body, 2),
            ("empty, then whole", &[EMPTY, CHUNKED], "{}", 2),
            ("an interim answer first", &[HINTS], &interim, 2),
            ("an interim answer first, once", &[HINTS, WHOLE], "{}", 2),
            ("half", &[HALF], BROKEN, 2),
            ("half, then whole", &[HALF, WHOLE], "{}", 2),
            ("half of its chunks", &[HALF_CHUNKED], BROKEN, 2),
            ("half of its chunks, then all", &[HALF_CHUNKED, CHUNKED], "{}", 2),
            ("closed", &[b""], BROKEN, 2),
            ("closed, then whole", &[b"", WHOLE], "{}", 2),
            ("not now", &[NOT_NOW], "the DataHUB answered with 503", 1),
            ("no HTTP", &[b"SSH-2.0\r\n\r\n"], "the DataHUB's answer cannot be read", 1),
        ] {
            assert_eq!(call(answers, http::Method::GET), (told.to_owned(), connections), "{case}");
        }
        assert_eq!(call(&[EMPTY], http::Method::POST), (String::new(), 1), "a POST may be answered by nothing");
    }

    #[test]
    fn an_answer_of_2_mib_is_read_and_one_byte_more_is_said_to_be_too_long() {
        fn answer(length: usize, has_length: bool) -> &'static [&'static [u8]] {
            let head = if has_length {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}", "a".repeat(length))
            } else {
                format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{}\r\n0\r\n\r\n",
                    "a".repeat(length)
                )
            };
            vec![&*head.into_bytes().leak()].leak()
        }
        for has_length in [true, false] {
            let told = call(answer(MAX_RESPONSE_BYTES, has_length), http::Method::GET).0;
            assert_eq!(told.len(), MAX_RESPONSE_BYTES, "{has_length}");
            let told = call(answer(MAX_RESPONSE_BYTES + 1, has_length), http::Method::GET).0;
            assert_eq!(told, "the DataHUB's answer is longer than 2 MiB, the limit", "{has_length}");
        }
    }

    #[test]
    fn who_takes_no_connection_in_time_is_unreachable_and_who_takes_it_and_says_nothing_is_late() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", silent.local_addr().expect("it is bound"));
        // Nobody answers there (RFC 5737).
        for (url, is_connected, outcome) in
            [(url.as_str(), true, Outcome::Failed), ("http://192.0.2.1", false, Outcome::Unreachable)]
        {
            let url = Url::parse(url).expect("a URL");
            let address = Address::new(url.clone(), None, tls_config(None).expect("roots")).expect("an address");
            let channel = BackChannel::new(vec![address], Duration::from_millis(200), Duration::from_millis(300));
            let request = http::Request::get(url.as_str()).body(Vec::new()).expect("a request");
            let error = actix_web::rt::System::new().block_on(channel.call(request)).expect_err("no answer");
            let found = (!matches!(error, BackChannelError::Connect(_)), error.outcome());
            assert_eq!(found, (is_connected, Some(outcome)), "{url}: {error}");
        }
    }
}
