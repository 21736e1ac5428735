//! A request's body, read off the wire as it is asked for, and recorded on the way.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{Request, not_http};
use crate::hub::lock;
use crate::record::Recorded;

pub struct Body<'c> {
    stream: &'c mut BufReader<TcpStream>,
    left: Left,
    awaits_continue: bool,
    recorded: Arc<Mutex<Recorded>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// At 0 the next chunk's size line comes.
    InChunk(u64),
    Nothing,
}

impl<'c> Body<'c> {
    /// The body that follows this request's head.
    pub(super) fn after(
        request: &Request,
        stream: &'c mut BufReader<TcpStream>,
        recorded: Arc<Mutex<Recorded>>,
    ) -> io::Result<Self> {
        let left = Left::announced_by(request)?;
        lock(&recorded).complete = left == Left::Nothing;
        let awaits_continue = left != Left::Nothing
            && request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        Ok(Self { stream, left, awaits_continue, recorded })
    }

    /// The next piece, at most 64 KiB; `None` at the end. The first call answers `Expect: 100-continue`.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if std::mem::take(&mut self.awaits_continue) {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if self.left == Left::InChunk(0) {
            self.left = self.next_chunk().await?;
        }
        let (Left::Bytes(left) | Left::InChunk(left)) = &mut self.left else {
            lock(&self.recorded).complete = true;
            return Ok(None);
        };
        let available = self.stream.fill_buf().await?;
        let size = available.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if size == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let piece = available[..size].to_vec();
        *left -= size as u64;
        self.stream.consume(size);
        lock(&self.recorded).grow(&piece);
        if self.left == Left::Bytes(0) {
            self.left = Left::Nothing;
        }
        if self.left == Left::InChunk(0) && !self.line().await?.is_empty() {
            return Err(not_http());
        }
        Ok(Some(piece))
    }

    /// The whole body. `None` if it is longer than `limit`; the rest of it stays unread.
    pub async fn read(&mut self, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            whole.extend_from_slice(&piece);
            if whole.len() > limit {
                return Ok(None);
            }
        }
        Ok(Some(whole))
    }

    pub async fn drain(&mut self) -> io::Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Whether the peer still waits for a `100 Continue`, so that nobody knows if the body will come.
    pub fn may_never_come(&self) -> bool {
        self.awaits_continue
    }

    async fn next_chunk(&mut self) -> io::Result<Left> {
        let line = self.line().await?;
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match size.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or_else(not_http)? {
            0 => {
                while !self.line().await?.is_empty() {}
                Ok(Left::Nothing)
            }
            size => Ok(Left::InChunk(size)),
        }
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        (&mut *self.stream).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
        line.strip_suffix(b"\r\n").map(<[u8]>::to_vec).ok_or_else(not_http)
    }
}

impl Left {
    fn announced_by(request: &Request) -> io::Result<Self> {
        let lengths: Vec<&str> = request.values("content-length").collect();
        let codings: Vec<&str> = request.values("transfer-encoding").collect();
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) | (["0"], []) => Ok(Self::Nothing),
            // `u64::from_str` takes a leading `+`, HTTP does not.
            ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                length.parse().map(Self::Bytes).map_err(|_| not_http())
            }
            ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Self::InChunk(0)),
            _ => Err(not_http()),
        }
    }
}

/// Of a chunk's size line or a trailer.
const MAX_LINE_BYTES: u64 = 4096;
