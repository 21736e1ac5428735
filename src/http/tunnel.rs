//! A tunnel through an HTTP proxy to a host that it can reach: CONNECT (RFC 9110 section 9.3.6).
//!
//! Nothing is said through it before the proxy has said yes, and nothing may come behind that word: whoever is at the far end
//! speaks second, so that those bytes would be the proxy's own.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::client::Stream;
use crate::http::head::{HeadLimits, ResponseHead};

/// Asks the proxy at the other end of `stream` for a tunnel to `authority`, `host:port`; from then on it is a connection to
/// there.
///
/// # Errors
/// [`TunnelError`]; nothing of the caller's was sent then.
pub async fn open(mut stream: Stream, authority: &str) -> Result<Stream, TunnelError> {
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (mut read, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Err(TunnelError::Closed);
        }
        read.extend_from_slice(&piece[..count]);
        match ResponseHead::parse(&read, LIMITS).map_err(|_| TunnelError::Malformed)? {
            None => {}
            Some(head) if !(200..300).contains(&head.status) => return Err(TunnelError::Refused(head.status)),
            Some(head) if head.length < read.len() => return Err(TunnelError::Premature),
            Some(_) => return Ok(stream),
        }
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The proxy cannot be reached, or the connection to it broke.
    #[error("it cannot be reached")]
    Unreachable(#[from] io::Error),
    /// It closed the connection instead of an answer.
    #[error("it closed the connection without an answer to CONNECT")]
    Closed,
    /// It answered by another status than 2xx.
    #[error("it answered CONNECT with {0}")]
    Refused(u16),
    /// Its answer is no head of HTTP, or one of over [`LIMITS`].
    #[error("its answer to CONNECT is not HTTP, or longer than 16 KiB")]
    Malformed,
    /// Bytes came behind its answer.
    #[error("it sent more than an answer to CONNECT")]
    Premature,
}

/// Of the proxy's answer.
const LIMITS: HeadLimits = HeadLimits { length: 16 * 1024, fields: 96 };

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// What becomes of this answer, whole or in pieces of one byte.
    fn opened(answer: &str, is_whole: bool) -> Result<(), TunnelError> {
        let (ours, theirs) = tokio::io::duplex(if is_whole { 1 << 20 } else { 1 });
        let (mut read, mut write) = tokio::io::split(theirs);
        let proxy = async {
            let mut asked = *b"CONNECT hub.example:443 HTTP/1.1\r\nHost: hub.example:443\r\n\r\n";
            let expected = asked;
            read.read_exact(&mut asked).await.expect("it asks");
            assert_eq!(asked, expected);
            // Whoever has read enough may leave.
            let _ = write.write_all(answer.as_bytes()).await;
            let _ = write.shutdown().await;
        };
        let opening = open(Box::new(ours), "hub.example:443");
        tokio_test::block_on(async { tokio::join!(opening, proxy).0.map(drop) })
    }

    #[test]
    fn a_tunnel_is_open_after_a_whole_yes_and_nothing_else() {
        let field = |length: usize| format!("HTTP/1.1 200 OK\r\nVia: {}\r\n\r\n", "a".repeat(length));
        let mut many = "HTTP/1.1 200 OK\r\n".to_owned();
        (0..97).for_each(|at| write!(many, "X-{at}: a\r\n").expect("a String takes everything"));
        many.push_str("\r\n");
        for (case, answer, expected) in [
            ("yes", "HTTP/1.1 200 Connection established\r\n\r\n", None),
            ("an old yes", "HTTP/1.0 200 Connection established\r\nProxy-Agent: tinyproxy\r\n\r\n", None),
            ("another yes", "HTTP/1.1 204 x\r\n\r\n", None),
            // RFC 9110 section 9.3.6: a client ignores these.
            ("a yes with a length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", None),
            ("of nearly 16 KiB", &field(16_300), None),
            ("of over 16 KiB", &field(16_400), Some("longer than 16 KiB")),
            ("of 97 fields", &many, Some("longer than 16 KiB")),
            ("no", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", Some("with 403")),
            ("who are you?", "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", Some("with 407")),
            ("not yet", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Some("with 100")),
            ("elsewhere", "HTTP/1.1 302 x\r\nLocation: http://a/\r\n\r\n", Some("with 302")),
            ("no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", Some("not HTTP")),
            ("a status that is none", "HTTP/1.1 2000 OK\r\n\r\n", Some("not HTTP")),
            ("half of it", "HTTP/1.1 200 OK\r\nVia: ", Some("without an answer")),
            ("nothing", "", Some("without an answer")),
        ] {
            for is_whole in [true, false] {
                let told = opened(answer, is_whole).err().map(|error| error.to_string());
                let is_right = match (expected, &told) {
                    (Some(part), Some(told)) => told.contains(part),
                    (expected, told) => expected.is_none() && told.is_none(),
                };
                assert!(is_right, "{case}, whole: {is_whole}: {told:?}");
            }
        }
        let early = opened("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", true).expect_err("two answers");
        assert!(matches!(early, TunnelError::Premature), "{early:?}");
    }
}
