//! Anything as a DataHUB's answer: however it arrives in pieces it is read the same, or refused the same.
#![no_main]

use actix_web::web::BytesMut;
use arcmanager_gateway::proxy::upstream::connection::{Head, Length};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(read(bytes, bytes.len().max(1)), read(bytes, usize::from(step).max(1)), "in pieces of {step}");
});

/// Status, framing and body; `None` where it is refused or breaks off.
fn read(bytes: &[u8], step: usize) -> Option<(u16, String, Vec<u8>)> {
    let (mut buffer, mut pieces) = (BytesMut::new(), bytes.chunks(step));
    let head = loop {
        buffer.extend_from_slice(pieces.next()?);
        if let Some((head, _)) = Head::parse(&mut buffer).ok()? {
            break head;
        }
    };
    let length = Length::of(&head, false).ok()?;
    let name = format!("{length:?}");
    let Length::Chunked(mut chunks) = length else { return Some((head.status, name, Vec::new())) };
    let mut body = Vec::new();
    loop {
        match chunks.next(&mut buffer).ok()? {
            Some(piece) if piece.is_empty() => return Some((head.status, name, body)),
            Some(piece) => body.extend_from_slice(&piece),
            None => buffer.extend_from_slice(pieces.next()?),
        }
    }
}
