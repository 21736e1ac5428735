//! Anything as a multipart body: a credential that Rack finds in it is found, or the body refused.
//!
//! Rack's reader is done once more here, step by step, with all that it does beside the RFC: that of 2.2
//! (`lib/rack/multipart/parser.rb`), and that of 3, which differs in what may stand before a boundary. An input is the rest of a
//! Content-Type, a zero, and the body.
#![no_main]

use arcmanager_gateway::http::buffer::BufferPool;
use arcmanager_gateway::http::head::{HeadLimits, RequestHead};
use arcmanager_gateway::proxy::inspect::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(end) = input.iter().position(|byte| *byte == 0) else { return };
    let (kind, body) = (&input[..end], &input[end + 1..]);
    let mut head = BufferPool::default().take();
    head.extend_from_slice(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data");
    head.extend_from_slice(kind);
    head.extend_from_slice(b"\r\n\r\n");
    let Ok(Some(head)) = RequestHead::parse(&mut head, HeadLimits { length: 4096, fields: 8 }) else { return };
    let Some(kind @ Kind::Multipart(_)) = Kind::of(head.fields()) else { return };
    let Ok(false) = kind.names_credential(body) else { return };
    let value = head.fields().values("content-type").next().expect("it was written");
    let Some(boundary) = boundary(value) else {
        assert!(body.is_empty(), "a form to Rack, which finds no boundary where we do");
        return;
    };
    for is_strict in [false, true] {
        let names = Rack { boundary, is_strict, body, at: 0 }.names().unwrap_or_default();
        let credential = names.iter().find(|name| CREDENTIALS.contains(&base_name(name)));
        assert_eq!(credential, None, "behind {:?}", String::from_utf8_lossy(boundary));
    }
});

/// `\Amultipart/.*?boundary(\s*)="?([^";,]+)"?`, in any case.
fn boundary(kind: &[u8]) -> Option<&[u8]> {
    let lower = kind.to_ascii_lowercase();
    places(&lower, b"boundary").find_map(|at| {
        let value = kind[at + 8..].trim_ascii_start().strip_prefix(b"=")?;
        let value = value.strip_prefix(b"\"").unwrap_or(value);
        Some(until(value, b"\";,")).filter(|value| !value.is_empty())
    })
}

struct Rack<'a> {
    boundary: &'a [u8],
    /// As Rack 3: a boundary only at the start of a line.
    is_strict: bool,
    body: &'a [u8],
    at: usize,
}

#[derive(PartialEq, Eq)]
enum Token {
    Boundary,
    End,
}

impl Rack<'_> {
    /// The names of all parts; nothing where Rack refuses the body.
    fn names(mut self) -> Option<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let token = self.consume_boundary()?;
        if token == Token::End && self.at == self.body.len() {
            return Some(names);
        }
        loop {
            let length = places(&self.body[self.at..], b"\r\n\r\n").next()?;
            names.extend(part_names(&self.body[self.at..self.at + length + 2]));
            self.at += length + 4;
            self.at += self.content_length()? + 2;
            match self.consume_boundary() {
                Some(Token::Boundary) => {}
                None if self.at < self.body.len() => {}
                Some(Token::End) | None => return Some(names),
            }
        }
    }

    /// The first line that is one, whatever stands before it; blanks around it do not count.
    fn consume_boundary(&mut self) -> Option<Token> {
        let token = [b"--", self.boundary].concat();
        let end = [&token[..], b"--"].concat();
        while self.at < self.body.len() {
            let rest = &self.body[self.at..];
            let line = &rest[..rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1)];
            self.at += line.len();
            let is_blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b);
            let start = line.iter().position(|byte| !is_blank(byte)).unwrap_or(line.len());
            let line = &line[start..line.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1)];
            if line == token {
                return Some(Token::Boundary);
            }
            if line == end {
                return Some(Token::End);
            }
        }
        None
    }

    /// Up to `(?:\r\n)?--boundary(?:\r\n|--)`, or, if it is strict, `(?:\r\n|\A)--boundary(?:\r\n|--)`.
    fn content_length(&self) -> Option<usize> {
        let rest = &self.body[self.at..];
        places(rest, &[b"--", self.boundary].concat()).find_map(|at| {
            let after = &rest[at + 2 + self.boundary.len()..];
            let is_end = after.starts_with(b"\r\n") || after.starts_with(b"--");
            match (rest[..at].ends_with(b"\r\n"), is_end) {
                (true, true) => Some(at - 2),
                (false, true) => (at == 0 || !self.is_strict).then_some(at),
                (_, false) => None,
            }
        })
    }
}

/// What a part is called: `Content-Disposition:[^:]*;\s*name=(VALUE)`, or else its Content-ID, or else the name of its file.
fn part_names(head: &[u8]) -> Vec<Vec<u8>> {
    let lower = head.to_ascii_lowercase();
    let named = places(&lower, b"content-disposition:").find_map(|at| {
        let value = &head[at + 20..];
        let starts: Vec<_> = places(until(value, b":"), b";").collect();
        starts.into_iter().rev().find_map(|at| {
            let parameter = trim_start(&value[at + 1..]);
            let is_name = parameter.len() >= 5 && parameter[..5].eq_ignore_ascii_case(b"name=");
            is_name.then(|| self::value(&parameter[5..])).flatten()
        })
    });
    let id = || places(&lower, b"content-id:").next().map(|at| until(trim_start(&head[at + 11..]), b"\r\n").to_vec());
    match named.or_else(id) {
        Some(name) if !name.is_empty() => vec![name],
        _ => places(&lower, b"filename=").filter_map(|at| value(&head[at + 9..])).collect(),
    }
}

/// `"(?:\\"|[^"])*"|[^\s()<>,;:\\"/\[\]?=]+`, without its quotes and what escapes.
fn value(text: &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let is_token = |byte: &u8| !byte.is_ascii_whitespace() && *byte != 0x0b && !b"()<>,;:\\\"/[]?=".contains(byte);
        let token: Vec<_> = text.iter().copied().take_while(is_token).collect();
        return (!token.is_empty()).then_some(token);
    };
    let ends = || places(quoted, b"\"");
    let end = ends().find(|at| !quoted[..*at].ends_with(b"\\")).or_else(|| ends().last())?;
    let (quoted, mut name) = (&quoted[..end], Vec::new());
    if quoted.contains(&b'\n') {
        return Some(text[..end + 2].to_vec());
    }
    let mut rest = quoted.iter();
    while let Some(byte) = rest.next() {
        name.extend(if *byte == b'\\' { rest.next().or(Some(byte)) } else { Some(byte) });
    }
    Some(name)
}

/// Of `a[b][c]`, `a`.
fn base_name(name: &[u8]) -> &[u8] {
    let start = name.iter().position(|byte| !b"[]".contains(byte)).unwrap_or(name.len());
    until(&name[start..], b"[]")
}

fn places<'a>(text: &'a [u8], word: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    text.windows(word.len().max(1)).enumerate().filter(move |(_, window)| *window == word).map(|(at, _)| at)
}

fn until<'a>(text: &'a [u8], ends: &[u8]) -> &'a [u8] {
    text.split(|byte| ends.contains(byte)).next().expect("what stands before the first")
}

fn trim_start(text: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    &text[text.iter().position(|byte| !is_blank(byte)).unwrap_or(text.len())..]
}

/// Some of those that the gateway knows.
const CREDENTIALS: [&[u8]; 4] = [b"private_token", b"access_token", b"job_token", b"sudo"];
