//! The DataHUB behind the targets: it has one answer for each beginning of a path, and large files to give and to take.
//!
//! `GET …/NUMBER.bin` answers with that many bytes, `PUT …/NUMBER.bin` takes the body and forgets it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mio::event::Source;
use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ServerConfig, ServerConnection};

use crate::order::{Answer, Setup, Tls};
use crate::wire::Wire;

pub struct Upstream {
    listeners: Vec<(TcpListener, Option<Arc<ServerConfig>>)>,
    answers: Vec<Answer>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Calls that came with a token, since the start.
    pub authorized: u64,
}

struct Connection {
    wire: Wire,
    unread: Vec<u8>,
    /// Bytes of a request's body still to come.
    incoming: u64,
    /// What is still to be sent: the rest of a response, then that many bytes of a large file.
    unsent: Vec<u8>,
    outgoing: u64,
}

impl Upstream {
    /// Listens. Its events carry `token(0)`, `token(1)` … and nobody else's.
    ///
    /// # Errors
    ///
    /// If a port is taken, or the certificate is none.
    pub fn new(setup: &Setup, registry: &Registry) -> io::Result<Self> {
        let mut listeners = vec![(listen(setup.plain)?, None)];
        if let Some(tls) = &setup.tls {
            listeners.push((listen(tls.port)?, Some(Arc::new(server_config(tls)?))));
        }
        for (at, (listener, _)) in listeners.iter_mut().enumerate() {
            listener.register(registry, token(at), Interest::READABLE)?;
        }
        Ok(Self { listeners, answers: setup.answers.clone(), connections: Vec::new(), free: Vec::new(), authorized: 0 })
    }

    /// Whether an event is for [`Upstream::serve`].
    pub fn owns(event: Token) -> bool {
        event.0 % 2 == 1
    }

    /// Does all that can be done now where an event happened.
    pub fn serve(&mut self, event: Token, registry: &Registry, scratch: &mut [u8]) -> io::Result<()> {
        let at = event.0 / 2;
        let Some(at) = at.checked_sub(self.listeners.len()) else { return self.accept(at, registry) };
        let Some(connection) = self.connections[at].as_mut() else { return Ok(()) };
        if connection.serve(&self.answers, &mut self.authorized, scratch).is_err() {
            // The other side has gone; the streams that it breaks off so are counted there.
            self.connections[at] = None;
            self.free.push(at);
        }
        Ok(())
    }

    fn accept(&mut self, at: usize, registry: &Registry) -> io::Result<()> {
        let (listener, tls) = &self.listeners[at];
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let mut wire = match tls {
                None => Wire::plain(stream),
                Some(config) => {
                    let session = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                    Wire::Tls(Box::new((session, stream)))
                }
            };
            let at = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let token = token(self.listeners.len() + at);
            wire.stream().register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
            self.connections[at] =
                Some(Connection { wire, unread: Vec::new(), incoming: 0, unsent: Vec::new(), outgoing: 0 });
        }
    }
}

impl Connection {
    /// # Errors
    ///
    /// Once the connection is of no more use.
    fn serve(&mut self, answers: &[Answer], authorized: &mut u64, scratch: &mut [u8]) -> io::Result<()> {
        self.flush()?;
        loop {
            let mut piece = match self.wire.receive(scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => &scratch[..length],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.incoming > 0 {
                let length = piece.len().min(usize::try_from(self.incoming).unwrap_or(usize::MAX));
                piece = &piece[length..];
                self.incoming -= length as u64;
                if self.incoming == 0 {
                    self.unsent.extend_from_slice(CREATED);
                }
            }
            self.unread.extend_from_slice(piece);
            while self.incoming == 0 && self.take_request(answers, authorized)? {}
            self.flush()?;
        }
    }

    /// Whether there was a whole head; what answers it is in `unsent` then, or follows its body.
    fn take_request(&mut self, answers: &[Answer], authorized: &mut u64) -> io::Result<bool> {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(length) = request.parse(&self.unread).map_err(io::Error::other)? else {
            return Ok(false);
        };
        let field = |name| request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        *authorized += u64::from(field("authorization").is_some_and(|field| field.value.starts_with(b"Bearer ")));
        let path = request.path.unwrap_or_default();
        let file = path.rsplit_once('/').and_then(|(_, file)| file.strip_suffix(".bin")?.parse::<u64>().ok());
        let mut taken = length;
        if let Some(bytes) = file {
            if request.method == Some("PUT") {
                let come = (self.unread.len() - length).min(usize::try_from(bytes).unwrap_or(usize::MAX));
                taken += come;
                self.incoming = bytes - come as u64;
                if self.incoming == 0 {
                    self.unsent.extend_from_slice(CREATED);
                }
            } else {
                let head = format!("{LARGE}Content-Length: {bytes}\r\n\r\n");
                self.unsent.extend_from_slice(head.as_bytes());
                self.outgoing = bytes;
            }
        } else {
            let answer = answers.iter().find(|answer| path.starts_with(&answer.path));
            let answer = answer.map_or(NOT_FOUND, |answer| answer.response.as_bytes());
            self.unsent.extend_from_slice(answer);
        }
        self.unread.drain(..taken);
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            let bytes: &[u8] = if !self.unsent.is_empty() {
                &self.unsent
            } else if self.outgoing > 0 {
                &ZEROS[..ZEROS.len().min(usize::try_from(self.outgoing).unwrap_or(usize::MAX))]
            } else {
                return Ok(());
            };
            let sent = match self.wire.send(bytes) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            if self.unsent.is_empty() {
                self.outgoing -= sent as u64;
            } else {
                self.unsent.drain(..sent);
            }
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

fn server_config(tls: &Tls) -> io::Result<ServerConfig> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.certificates).and_then(Iterator::collect);
    let certificates = certificates.map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(io::Error::other)?;
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(io::Error::other)
}

fn token(at: usize) -> Token {
    Token(at * 2 + 1)
}

const LARGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n";
const CREATED: &[u8] =
    b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n{\"message\":\"201 Created\"}";
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
