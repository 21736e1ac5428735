//! Bytes over a socket, and the answers that come back, taken apart strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::browser::Answer;

/// One connection to a gateway.
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("longer than nothing");
        // What is sent in pieces goes out in pieces.
        stream.set_nodelay(true).expect("a socket of ours");
        Self { stream, read: Vec::new() }
    }

    /// Sends `bytes` at once; who refuses early may have closed already.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Whether somebody is there to take `bytes`.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next answer, interim ones too; nothing if the connection has ended in between.
    pub fn answer(&mut self) -> Option<Answer> {
        self.next(true)
    }

    /// The same where the answer has no body whatever its fields say, as to HEAD.
    pub fn head(&mut self) -> Option<Answer> {
        self.next(false)
    }

    /// All answers until the connection ends.
    pub fn rest(&mut self) -> Vec<Answer> {
        std::iter::from_fn(|| self.answer()).collect()
    }

    /// Whether the connection is still open, and nothing was said on it, after `wait`.
    pub fn is_quiet(&mut self, wait: Duration) -> bool {
        self.stream.set_read_timeout(Some(wait)).expect("longer than nothing");
        let is_quiet = self.read.is_empty() && self.fill().is_none();
        self.stream.set_read_timeout(Some(Duration::from_secs(20))).expect("longer than nothing");
        is_quiet
    }

    fn next(&mut self, has_body: bool) -> Option<Answer> {
        let end = loop {
            match self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None if self.fill().expect("an answer, or an end, in time") == 0 => {
                    let rest = String::from_utf8_lossy(&self.read);
                    assert!(rest.is_empty(), "half an answer: {rest}");
                    return None;
                }
                None => {}
            }
        };
        let head: Vec<u8> = self.read.drain(..end).collect();
        let head = String::from_utf8(head).expect("heads of ours are ASCII");
        assert!(head.starts_with("HTTP/1."), "{head}");
        let status = head[9..12].parse().expect("a status");
        let mut answer = Answer { status, head, body: Vec::new() };
        if has_body && status >= 200 && status != 204 && status != 304 {
            answer.body = self.body(&answer);
        }
        Some(answer)
    }

    fn body(&mut self, answer: &Answer) -> Vec<u8> {
        if let Some(length) = answer.header("content-length") {
            return self.take(length.parse().expect("a number"));
        }
        let Some(coding) = answer.header("transfer-encoding") else {
            // To the end of the connection, as before HTTP/1.1.
            while self.fill().expect("an end in time") > 0 {}
            return self.read.drain(..).collect();
        };
        assert_eq!(coding, "chunked");
        let mut body = Vec::new();
        loop {
            let mut line = self.take(3);
            while !line.ends_with(b"\r\n") {
                line.extend(self.take(1));
            }
            let size = String::from_utf8(line).expect("ASCII");
            let size = usize::from_str_radix(size.trim_end(), 16).expect("hex digits");
            let chunk = self.take(size + 2);
            if size == 0 {
                return body;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            let count = self.fill().expect("the whole body in time");
            assert!(count > 0, "a body breaks off after {} of {length} bytes", self.read.len());
        }
        self.read.drain(..length).collect()
    }

    /// How many bytes came now; 0 is the end, and nothing the time limit.
    fn fill(&mut self) -> Option<usize> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(count) => {
                    self.read.extend_from_slice(&buffer[..count]);
                    return Some(count);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Some(0),
                // A machine that is halted and goes on ends waits with a time limit.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                    return None;
                }
            }
        }
    }
}

/// All answers to `bytes` on a connection of their own, until it ends.
pub fn exchange(address: &str, bytes: impl AsRef<[u8]>) -> Vec<Answer> {
    let mut wire = Wire::open(address);
    wire.send(bytes);
    wire.rest()
}

/// An answer in a word or two: its status, and the code if it is a failure.
pub fn summary(answer: &Answer) -> String {
    if answer.headers("content-type") == ["application/problem+json"] {
        format!("{} {}", answer.status, answer.code())
    } else {
        answer.status.to_string()
    }
}

/// The access lines that the gateway has written, once there are at least `count` of them.
pub fn lines(gateway: &crate::gateway::Gateway, count: usize) -> Vec<serde_json::Value> {
    let all = || -> Vec<_> { gateway.log().into_iter().filter(|line| line["target"] == "access").collect() };
    for _ in 0..2_000 {
        let lines = all();
        if lines.len() >= count {
            return lines;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} lines instead of {count}", all().len());
}
