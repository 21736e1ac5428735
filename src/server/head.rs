//! Where the head of a request ends, and how its body is delimited, before anything else is read into it.
//!
//! Not a parser: what a field or a target may hold is judged by actix-http behind it. This finds the lines, strictly, and the
//! three fields that say where the next request begins; whatever is in doubt there ends the connection (RFC 9112 section 6.3).

use memchr::memchr;

use crate::error::Code;
use crate::proxy::Limits;
use crate::proxy::request::Framing;

/// A head that is being read.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the first line begins that has not been read to its end.
    at: usize,
    line: Line,
    fields: usize,
    is_old: bool,
    framing: Option<Framing>,
    expect: Option<Expect>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// The request line, or one empty line before it (RFC 9112 section 2.2).
    #[default]
    First,
    Request,
    Field,
}

/// A head that has been read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    /// Of the head, in bytes.
    pub(super) length: usize,
    /// How the body is delimited.
    pub(super) framing: Framing,
    /// The field `Expect`, if there is one.
    pub(super) expect: Option<Expect>,
}

/// The field `Expect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expect {
    /// Where it begins in the head.
    pub(super) at: usize,
    /// Whether it is `100-continue`, the only value there is, and not said in HTTP/1.0 (RFC 9110 section 10.1.1).
    pub(super) is_continue: bool,
}

impl Head {
    /// Reads on in `bytes`, which begin where the head does; `None` says that more must come.
    ///
    /// # Errors
    /// `head_too_large`, `bad_request`, `bad_request_target`.
    pub(super) fn read(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<Whole>, Code> {
        while let Some(length) = memchr(b'\n', &bytes[self.at..]) {
            let end = self.at + length;
            let line = bytes[self.at..end].strip_suffix(b"\r").ok_or(Code::BadRequest)?;
            if line.contains(&b'\r') {
                return Err(Code::BadRequest);
            }
            let start = std::mem::replace(&mut self.at, end + 1);
            self.line = match (self.line, line) {
                (Line::First, []) => Line::Request,
                (Line::Request, []) => return Err(Code::BadRequest),
                (Line::First | Line::Request, _) => {
                    // A fragment is never sent (RFC 9112 section 3.2); cut off, the rest would pass for the target.
                    if line.iter().any(|byte| *byte == b'#' || !(b' '..=b'~').contains(byte)) {
                        return Err(Code::BadRequestTarget);
                    }
                    self.is_old = line.ends_with(b"HTTP/1.0");
                    Line::Field
                }
                (Line::Field, []) => return self.end(limits).map(Some),
                (Line::Field, _) => {
                    self.fields += 1;
                    if let b'c' | b'C' | b't' | b'T' | b'e' | b'E' = line[0] {
                        self.field(line, start)?;
                    }
                    Line::Field
                }
            };
            if self.at > limits.head || self.fields > limits.fields {
                return Err(Code::HeadTooLarge);
            }
        }
        if bytes.len() > limits.head { Err(Code::HeadTooLarge) } else { Ok(None) }
    }

    fn field(&mut self, line: &[u8], start: usize) -> Result<(), Code> {
        let Some(colon) = memchr(b':', line) else { return Ok(()) };
        let name = &line[..colon];
        if name.eq_ignore_ascii_case(b"expect") {
            if self.expect.is_some() {
                return Err(Code::BadRequest);
            }
            let is_continue = unpadded(&line[colon + 1..]).eq_ignore_ascii_case(b"100-continue");
            self.expect = Some(Expect { at: start, is_continue: is_continue && !self.is_old });
            return Ok(());
        }
        // Some servers take an underscore for a hyphen, or do not mind a space.
        let plain: Vec<u8> = name.trim_ascii().iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
        let value = unpadded(&line[colon + 1..]);
        let framing = if plain.eq_ignore_ascii_case(b"content-length") {
            Framing::Length(length(value).ok_or(Code::BadRequest)?)
        } else if plain.eq_ignore_ascii_case(b"transfer-encoding") && value.eq_ignore_ascii_case(b"chunked") {
            Framing::Chunked
        } else if plain.eq_ignore_ascii_case(b"transfer-encoding") {
            return Err(Code::BadRequest);
        } else {
            return Ok(());
        };
        // Two of them, even two that agree, are one too many.
        if plain.len() == name.len() && !name.contains(&b'_') && self.framing.replace(framing).is_none() {
            Ok(())
        } else {
            Err(Code::BadRequest)
        }
    }

    fn end(&mut self, limits: &Limits) -> Result<Whole, Code> {
        if self.at > limits.head {
            return Err(Code::HeadTooLarge);
        }
        let framing = self.framing.take().unwrap_or(Framing::None);
        if self.is_old && framing == Framing::Chunked {
            return Err(Code::BadRequest);
        }
        Ok(Whole { length: self.at, framing, expect: self.expect.take() })
    }
}

/// Without the white space that HTTP means (RFC 9110 section 5.6.3).
fn unpadded(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn length(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head: 200, fields: 4, target: 100, body: 100, in_flight: 1, waiting: 1 };

    /// Reads a head that arrives in pieces of `step`.
    fn read(bytes: &[u8], step: usize) -> Result<Option<Whole>, Code> {
        let mut head = Head::default();
        let ends = (step..bytes.len()).step_by(step).chain([bytes.len()]);
        for end in ends {
            if let Some(whole) = head.read(&bytes[..end], &LIMITS)? {
                return Ok(Some(whole));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_head_is_the_same_however_it_arrives() {
        for (head, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::None),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Framing::None),
            ("PUT / HTTP/1.1\r\ncontent-length: 005 \r\n\r\n", Framing::Length(5)),
            ("PUT / HTTP/1.0\r\nContent-Length:5\r\n\r\n", Framing::Length(5)),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding:\tChunked\r\nConnection: close\r\n\r\n", Framing::Chunked),
        ] {
            let whole = Whole { length: head.len(), framing, expect: None };
            for step in [1, 2, 7, 200] {
                assert_eq!(read(head.as_bytes(), step), Ok(Some(whole.clone())), "{head}");
            }
            for length in 0..head.len() {
                assert_eq!(read(&head.as_bytes()[..length], 200), Ok(None), "{head:.length$}");
            }
        }
    }
    #[test]
    fn what_is_in_doubt_is_refused() {
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost:\ra\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nContent_Length: 5\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(read(head.as_bytes(), 200), Err(Code::BadRequest), "{head}");
        }
        assert_eq!(read(b"GET /a#b HTTP/1.1\r\n\r\n", 200), Err(Code::BadRequestTarget));
    }

    #[test]
    fn a_head_has_an_end() {
        let head = |length: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(length - 23));
        assert!(matches!(read(head(200).as_bytes(), 50), Ok(Some(Whole { length: 200, .. }))));
        assert_eq!(read(head(201).as_bytes(), 50), Err(Code::HeadTooLarge));
        assert_eq!(read(&[b'a'; 201], 50), Err(Code::HeadTooLarge));
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert!(matches!(read(fields(4).as_bytes(), 50), Ok(Some(_))));
        assert_eq!(read(fields(5).as_bytes(), 50), Err(Code::HeadTooLarge));
    }

    #[test]
    fn an_expectation_is_found() {
        let head = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n";
        let whole = read(head.as_bytes(), 5).expect("a good head").expect("whole");
        assert_eq!(whole.expect, Some(Expect { at: 16, is_continue: true }));
    }
}
