//! HTTP/1.1 on one connection: takes a request off it, puts a response onto it.
//!
//! Strict where two readers could disagree: two lengths, a length beside a transfer coding and unknown codings are
//! answered with 400.

pub mod body;
pub mod response;

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::behaviour::Framing;
use crate::http::body::Body;
use crate::http::response::{Content, Response, reason};
use crate::record::Recorder;

/// One TCP connection of a peer.
pub struct Connection {
    stream: BufReader<TcpStream>,
    number: u64,
}

impl Connection {
    pub fn new(stream: TcpStream, number: u64) -> Self {
        Self { stream: BufReader::with_capacity(BUFFER_BYTES, stream), number }
    }

    /// The next request and its body, still on the wire. `None` once the peer has closed.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] for what is not HTTP/1.1.
    pub async fn receive(&mut self, recorder: &Recorder) -> io::Result<Option<(Request, Body<'_>)>> {
        let mut head = Vec::new();
        let request = loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                return Ok(None);
            }
            let (before, more) = (head.len(), available.len());
            head.extend_from_slice(available);
            match Request::parse(&head) {
                Ok(Some((request, length))) => {
                    head.truncate(length);
                    self.stream.consume(length - before);
                    break request;
                }
                Ok(None) if head.len() < MAX_HEAD_BYTES => self.stream.consume(more),
                _ => {
                    recorder.begin(self.number, &head);
                    return Err(not_http());
                }
            }
        };
        let recorded = recorder.begin(self.number, &head);
        let body = Body::after(&request, &mut self.stream, recorded)?;
        Ok(Some((request, body)))
    }

    /// Its end told by `framing`, or in chunks where the length is not known; without a body where HTTP says so.
    pub async fn send(
        &mut self,
        request: &Request,
        response: Response,
        framing: Framing,
        close: bool,
    ) -> io::Result<()> {
        let Response { status, headers, content } = response;
        let bodiless = matches!(status, 204 | 304);
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status)).into_bytes();
        for (name, value) in &headers {
            push_field(&mut head, name, value);
        }
        let framed = match (framing, &content) {
            (Framing::UntilClose, _) => None,
            (Framing::Chunked, _) | (_, Content::Pieces { .. }) => Some(("Transfer-Encoding", "chunked".to_owned())),
            (_, Content::Bytes(bytes)) => Some(("Content-Length", bytes.len().to_string())),
            (_, Content::Blob(length)) => Some(("Content-Length", length.to_string())),
        };
        if let Some((name, value)) = framed.as_ref().filter(|_| !bodiless) {
            push_field(&mut head, name, value.as_bytes());
        }
        push_field(&mut head, "Connection", if close { b"close" } else { b"keep-alive" });
        head.extend_from_slice(b"\r\n");
        if bodiless || request.method == "HEAD" {
            self.stream.write_all(&head).await
        } else {
            self.send_whole(head, content, framed.is_some_and(|(_, value)| value == "chunked")).await
        }
    }

    /// These bytes and nothing else.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Ignores what comes until the peer closes.
    pub async fn hang(&mut self) -> io::Result<()> {
        while let length @ 1.. = self.stream.fill_buf().await?.len() {
            self.stream.consume(length);
        }
        Ok(())
    }

    /// Head and body in one write where the body is at hand, so that load tests measure the gateway.
    async fn send_whole(&mut self, mut head: Vec<u8>, content: Content, chunked: bool) -> io::Result<()> {
        match content {
            Content::Bytes(bytes) => {
                push_piece(&mut head, &bytes, chunked);
                self.stream.write_all(&head).await?;
            }
            Content::Blob(mut left) => {
                self.stream.write_all(&head).await?;
                let buffer: Vec<u8> = (0..BLOB_PERIOD * 256).map(|offset| (offset % BLOB_PERIOD) as u8).collect();
                while left > 0 {
                    let size = left.min(buffer.len() as u64);
                    self.send_piece(&buffer[..size as usize], chunked).await?;
                    left -= size;
                }
            }
            Content::Pieces { pieces, pause } => {
                self.stream.write_all(&head).await?;
                for piece in pieces {
                    self.send_piece(&piece, chunked).await?;
                    tokio::time::sleep(pause).await;
                }
            }
        }
        if chunked { self.stream.write_all(b"0\r\n\r\n").await } else { Ok(()) }
    }

    async fn send_piece(&mut self, piece: &[u8], chunked: bool) -> io::Result<()> {
        if !chunked {
            return self.stream.write_all(piece).await;
        }
        let mut chunk = Vec::with_capacity(piece.len() + 20);
        push_piece(&mut chunk, piece, chunked);
        self.stream.write_all(&chunk).await
    }
}

/// A request's head.
pub struct Request {
    pub method: String,
    /// As it came, never decoded.
    pub target: String,
    headers: Vec<(String, String)>,
    minor_version: u8,
}

impl Request {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    /// The first value of this field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.values(name).next()
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str())
    }

    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    }

    pub fn wants_close(&self) -> bool {
        self.minor_version == 0 || self.header("connection").is_some_and(|v| v.eq_ignore_ascii_case("close"))
    }

    /// The request and the length of its head; `None` where more must come.
    fn parse(head: &[u8]) -> Result<Option<(Self, usize)>, httparse::Error> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(length) = parsed.parse(head)? else {
            return Ok(None);
        };
        let request = Self {
            method: parsed.method.unwrap_or_default().to_owned(),
            target: parsed.path.unwrap_or_default().to_owned(),
            headers: parsed
                .headers
                .iter()
                .map(|field| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned()))
                .collect(),
            minor_version: parsed.version.unwrap_or_default(),
        };
        Ok(Some((request, length)))
    }
}

/// An empty chunk would be the last.
fn push_piece(message: &mut Vec<u8>, piece: &[u8], chunked: bool) {
    if !chunked {
        message.extend_from_slice(piece);
    } else if !piece.is_empty() {
        message.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        message.extend_from_slice(piece);
        message.extend_from_slice(b"\r\n");
    }
}

/// Control characters become `?`: a file's name must not start a new field.
fn push_field(message: &mut Vec<u8>, name: &str, value: &[u8]) {
    message.extend_from_slice(name.as_bytes());
    message.extend_from_slice(b": ");
    message.extend(value.iter().map(|byte| if byte.is_ascii_control() { b'?' } else { *byte }));
    message.extend_from_slice(b"\r\n");
}

fn not_http() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not HTTP/1.1")
}

const BLOB_PERIOD: usize = 251;
const BUFFER_BYTES: usize = 64 * 1024;
const MAX_FIELDS: usize = 128;
const MAX_HEAD_BYTES: usize = 64 * 1024;
