//! Asks a running gateway how it does, as a container without a shell must.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::datahub::transport::Endpoint;

/// Whether the gateway lives whose `admin.listen` is this.
///
/// # Errors
/// What it said, if that is not that it lives, or why nothing was heard in time.
pub fn health(endpoint: Endpoint) -> io::Result<()> {
    let place = format!("admin.listen {endpoint}");
    let unheard = |error: io::Error| {
        let what = "see that a gateway runs there, and that this is its admin.listen";
        io::Error::new(error.kind(), format!("{place}: no answer ({error}): {what}"))
    };
    let answer = get(endpoint, "/healthz").map_err(unheard)?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let (status, reason) = (head.lines().next().unwrap_or_default(), body.lines().next().unwrap_or_default());
    Err(io::Error::other(format!("{place}: not healthy: {} {}", status.escape_debug(), reason.escape_debug())))
}

/// The answer to a GET at an operators' listener, head and body.
///
/// # Errors
/// Why there is no whole one within 3 s.
pub fn get(endpoint: Endpoint, path: &str) -> io::Result<Vec<u8>> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    // On a thread of its own, so that one limit holds for all of it: a name, a connection and an answer without end.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(answer_of(&endpoint, &request)));
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 3 s");
    let answer = receiver.recv_timeout(LIMIT).map_err(late)??;
    if answer.len() as u64 == MAX_BYTES { Err(io::Error::other("the answer has no end")) } else { Ok(answer) }
}

/// All that is answered, or as much as can be an answer of ours.
fn answer_of(endpoint: &Endpoint, request: &str) -> io::Result<Vec<u8>> {
    match endpoint {
        Endpoint::Tcp(address) => {
            let addresses: Vec<_> = address.to_socket_addrs()?.map(reachable).collect();
            exchange(TcpStream::connect(&*addresses)?, request)
        }
        Endpoint::Unix(path) => exchange(UnixStream::connect(path)?, request),
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Who listens at all addresses is asked at this machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// How long all of it may take: longer than the workers may.
const LIMIT: Duration = Duration::from_secs(3);
/// More than any answer of ours, in bytes.
const MAX_BYTES: u64 = 16 << 20;
