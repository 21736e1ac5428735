//! Something between a gateway and its DataHUB that answers some calls by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// Stands before the DataHUB at `hub`. A connection whose first request is about `/api/v4/own…` goes to `take`, with its
/// head; all others go on to the DataHUB.
pub fn before(hub: SocketAddr, take: impl Fn(&mut BufReader<TcpStream>, &str) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let take = Arc::new(take);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let take = Arc::clone(&take);
            thread::spawn(move || serve(stream, hub, &*take));
        }
    });
    address
}

fn serve(stream: TcpStream, hub: SocketAddr, take: &impl Fn(&mut BufReader<TcpStream>, &str)) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let head = head(&mut reader)?;
    if head.split(' ').nth(1)?.starts_with("/api/v4/own") {
        take(&mut reader, &head);
        return Some(());
    }
    let mut far = TcpStream::connect(hub).ok()?;
    far.write_all(head.as_bytes()).ok()?;
    let (mut down, mut near) = (far.try_clone().ok()?, reader.get_ref().try_clone().ok()?);
    thread::spawn(move || {
        std::io::copy(&mut down, &mut near).ok();
        near.shutdown(Shutdown::Both).ok();
    });
    std::io::copy(&mut reader, &mut far).ok();
    far.shutdown(Shutdown::Both).ok()
}

/// The next head on a connection.
pub fn head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head).ok()? == 0 {
            return None;
        }
    }
    String::from_utf8(head).ok()
}

/// Waits until the gateway ends the connection; how many bytes came before.
pub fn end(reader: &mut impl Read) -> std::io::Result<u64> {
    std::io::copy(reader, &mut std::io::sink())
}
