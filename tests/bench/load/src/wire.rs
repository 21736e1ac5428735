//! A connection's bytes, plain or within TLS: the DataHUB's side.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use rustls::ServerConnection;

pub enum Wire {
    Plain { stream: TcpStream, is_drained: bool },
    Tls(Box<(ServerConnection, TcpStream)>),
}

impl Wire {
    pub fn plain(stream: TcpStream) -> Self {
        Self::Plain { stream, is_drained: false }
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain { stream, .. } => stream,
            Self::Tls(tls) => &mut tls.1,
        }
    }

    /// What has come; 0 at the end.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] once there is no more, and then the poll tells of what comes later.
    pub fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain { stream, is_drained } => {
                // A read that left room has emptied the socket (epoll(7)): the system call that says so can be spared.
                if std::mem::take(is_drained) {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let length = stream.read(into)?;
                *is_drained = length != 0 && length < into.len();
                Ok(length)
            }
            Self::Tls(tls) => {
                let (session, stream) = &mut **tls;
                loop {
                    match session.reader().read(into) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return result,
                    }
                    if session.read_tls(stream)? == 0 {
                        return Ok(0);
                    }
                    session.process_new_packets().map_err(io::Error::other)?;
                    while session.wants_write() {
                        session.write_tls(stream)?;
                    }
                }
            }
        }
    }

    /// Takes some of these bytes, and says how many.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if none can be taken now.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain { stream, .. } => stream.write(bytes),
            Self::Tls(tls) => {
                let (session, stream) = &mut **tls;
                while session.wants_write() {
                    session.write_tls(stream)?;
                }
                let length = session.writer().write(bytes)?;
                while session.wants_write() {
                    match session.write_tls(stream) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        result => result?,
                    };
                }
                Ok(length)
            }
        }
    }
}
