//! Anything as the head of a request: what is taken is what httparse reads, and what a second and strict reader takes, however
//! it arrives in pieces.
#![no_main]

use actix_web::http::Method;
use actix_web::http::header::{HeaderName, HeaderValue};
use arcmanager_gateway::http::body::BodyLength;
use arcmanager_gateway::http::buffer::BufferPool;
use arcmanager_gateway::http::head::{Field, HeadError, HeadLimits, Known, RequestHead, Several};
use libfuzzer_sys::fuzz_target;
use reference::{Framing, Head};

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0).max(1), input.1);
    // A line is judged once it has ended.
    let bytes = &bytes[..bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1)];
    let read = read(bytes, bytes.len().max(1));
    match (self::read(bytes, step), &read) {
        // Of two things that are wrong with it, either may be noticed first.
        (Err(_), Err(_)) => {}
        (in_pieces, at_once) => assert_eq!(in_pieces, *at_once, "in pieces of {step}"),
    }
    match (&read, reference::head(bytes, LIMITS.length, LIMITS.fields)) {
        (Ok(Some(head)), Some(Ok(expected))) => assert_eq!(*head, expected),
        // What has no end may be refused before that.
        (Err(_), Some(Err(())) | None) | (Ok(None), None) => {}
        (read, expected) => panic!("{read:?} {expected:?}"),
    }
    if let Ok(Some(head)) = read {
        is_httparses(&head, bytes);
        // What is behind takes all of it, too.
        assert!(Method::from_bytes(head.method.as_bytes()).is_ok());
        assert!(
            head.fields.iter().all(|(name, value)| {
                HeaderName::from_bytes(name).is_ok() && HeaderValue::from_bytes(value).is_ok()
            })
        );
    }
});

/// The head of bytes that arrive in pieces.
fn read(bytes: &[u8], step: usize) -> Result<Option<Head>, HeadError> {
    let (mut buffer, mut fed) = (BufferPool::default().take(), 0);
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        fed += piece.len();
        // A connection does not ask before that either.
        if !piece.contains(&b'\n') {
            continue;
        }
        if let Some(head) = RequestHead::parse(&mut buffer, LIMITS)? {
            assert_eq!(*buffer, bytes[fed - buffer.len()..fed], "what follows it");
            let end = fed - buffer.len();
            assert_eq!(head.len(), end);
            is_found(&head);
            return Ok(Some(Head {
                method: head.method().to_string(),
                target: head.target().into(),
                is_http_1_1: head.is_http_1_1,
                fields: head.fields().iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect(),
                framing: match head.body {
                    BodyLength::None => Framing::None,
                    BodyLength::Known(length) => Framing::Length(length),
                    BodyLength::Chunked => Framing::Chunks,
                    BodyLength::UntilClose => panic!("no request has such a body"),
                },
                expects_continue: head.expects_continue,
                is_persistent: head.is_persistent,
                end,
            }));
        }
        assert_eq!(*buffer, bytes[..fed], "what is not whole stays");
    }
    Ok(None)
}

/// What is found while a head is read is what is found by going through its fields.
fn is_found(head: &RequestHead) {
    for (known, name) in [
        (Known::Host, "host"),
        (Known::Origin, "origin"),
        (Known::SecFetchSite, "sec-fetch-site"),
        (Known::SecFetchMode, "sec-fetch-mode"),
        (Known::SecFetchDest, "sec-fetch-dest"),
        (Known::XCsrf, "x-csrf"),
        (Known::Upgrade, "upgrade"),
    ] {
        let is_it = |field: &Field<'_>| field.name.eq_ignore_ascii_case(name.as_bytes());
        let values: Vec<_> = head.fields().iter().filter(is_it).map(|field| field.value).collect();
        let only = if values.len() > 1 { Err(Several) } else { Ok(values.first().copied()) };
        assert_eq!((head.only(known), head.fields().only(name)), (only, only), "{name}");
        assert!(head.fields().values(name).eq(values));
    }
}

fn is_httparses(head: &Head, bytes: &[u8]) {
    let mut slots = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut slots);
    assert_eq!(request.parse(bytes), Ok(httparse::Status::Complete(head.end)));
    assert_eq!((request.method, request.path), (Some(&*head.method), Some(&*head.target)));
    assert_eq!(request.version, Some(u8::from(head.is_http_1_1)));
    let fields = request.headers.iter().map(|field| (field.name.as_bytes(), field.value));
    assert!(fields.eq(head.fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))));
}

const LIMITS: HeadLimits = HeadLimits { length: 512, fields: 8 };
