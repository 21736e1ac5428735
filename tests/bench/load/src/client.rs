//! One connection of a browser: a request goes out, a response comes back.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::order::Target;

pub struct Client {
    stream: TcpStream,
    port: u16,
    token: Token,
    request: Rc<[u8]>,
    progress: Progress,
    /// Bytes of a request's body still to be sent.
    upload: u64,
    /// When the request was due.
    pub due: Instant,
}

enum Progress {
    /// Nothing is asked.
    Idle,
    /// The beginning of a head.
    Head(Vec<u8>),
    /// Bytes of the body still to come.
    Body { left: u64, is_success: bool },
}

/// How a call ended.
pub struct Outcome {
    /// The status began with 2, and the body came whole.
    pub is_success: bool,
}

impl Client {
    pub fn connect(target: &Target, registry: &Registry, token: Token) -> io::Result<Self> {
        let stream = dial(target.port, registry, token)?;
        let request = target.requests[token.0 % target.requests.len()].as_bytes().into();
        Ok(Self { stream, port: target.port, token, request, progress: Progress::Idle, upload: 0, due: Instant::now() })
    }

    /// Sends the request, and then `upload` bytes as its body.
    pub fn send(&mut self, upload: u64) -> io::Result<()> {
        self.upload = upload;
        self.progress = Progress::Head(Vec::new());
        // Never more than one is under way, and it is shorter than a socket's buffer.
        self.stream.write_all(&self.request)?;
        self.flush()
    }

    /// Does all that can be done now. The outcome, once the response is here.
    ///
    /// # Errors
    ///
    /// If the connection is of no more use.
    pub fn advance(&mut self, scratch: &mut [u8]) -> io::Result<Option<Outcome>> {
        self.flush()?;
        loop {
            let length = match self.stream.read(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            if let Some(outcome) = self.take(&scratch[..length])? {
                return Ok(Some(outcome));
            }
            // A read that left room has emptied the socket (epoll(7)).
            if length < scratch.len() {
                return Ok(None);
            }
        }
    }

    /// Begins anew where the other side has closed. Whether a request was under way that has to be sent again.
    pub fn reconnect(&mut self, registry: &Registry) -> io::Result<bool> {
        self.stream = dial(self.port, registry, self.token)?;
        Ok(!matches!(std::mem::replace(&mut self.progress, Progress::Idle), Progress::Idle))
    }

    fn take(&mut self, piece: &[u8]) -> io::Result<Option<Outcome>> {
        let mut come = piece.len() as u64;
        if let Progress::Head(begun) = &mut self.progress {
            let head = if begun.is_empty() {
                read_head(piece)?
            } else {
                begun.extend_from_slice(piece);
                come = begun.len() as u64;
                read_head(begun)?
            };
            let Some(head) = head else {
                if begun.is_empty() {
                    begun.extend_from_slice(piece);
                }
                return Ok(None);
            };
            come -= head.length;
            self.progress = Progress::Body { left: head.body, is_success: head.is_success };
        }
        let Progress::Body { left, is_success } = &mut self.progress else {
            return Err(io::Error::other("a response that nobody asked for"));
        };
        *left = left.checked_sub(come).ok_or_else(|| io::Error::other("bytes after a response"))?;
        if *left > 0 {
            return Ok(None);
        }
        let outcome = Outcome { is_success: *is_success };
        self.progress = Progress::Idle;
        Ok(Some(outcome))
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.upload > 0 {
            let length = ZEROS.len().min(usize::try_from(self.upload).unwrap_or(usize::MAX));
            match self.stream.write(&ZEROS[..length]) {
                Ok(sent) => self.upload -= sent as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Head {
    /// Of itself, in bytes.
    length: u64,
    /// Of what follows, in bytes.
    body: u64,
    is_success: bool,
}

fn read_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = response.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let body = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let body = body.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    // Nothing that is measured here has a reason for chunks.
    let body = body.ok_or_else(|| io::Error::other("a response without Content-Length"))?;
    let is_success = matches!(response.code, Some(200..300));
    Ok(Some(Head { length: length as u64, body, is_success }))
}

fn dial(port: u16, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    let stream = std::net::TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream);
    stream.register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

#[cfg(test)]
mod tests {
    use super::read_head;

    const RESPONSE: &[u8] = b"HTTP/1.1 201 Created\r\nServer: nginx\r\ncontent-length: 5\r\n\r\nhello";

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        for end in 0..RESPONSE.len() - 5 {
            assert!(read_head(&RESPONSE[..end]).expect("a beginning is no fault").is_none(), "{end} bytes");
        }
        let head = read_head(RESPONSE).expect("it is HTTP").expect("it is whole");
        assert_eq!((head.length, head.body, head.is_success), (RESPONSE.len() as u64 - 5, 5, true));
    }

    #[test]
    fn a_response_without_a_length_is_refused() {
        assert!(read_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn an_error_is_no_success() {
        let head = read_head(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
        assert!(!head.expect("it is HTTP").expect("it is whole").is_success);
    }
}
