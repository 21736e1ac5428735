//! Anything as a DataHUB's answer: however it arrives in pieces it is read the same, or refused the same.
#![no_main]

use arcmanager_gateway::http::body::BodyLength;
use arcmanager_gateway::http::buffer::BufferPool;
use arcmanager_gateway::http::client::Response;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(read(bytes, bytes.len().max(1)), read(bytes, usize::from(step).max(1)), "in pieces of {step}");
});

/// Status, framing and body; `None` where it is refused or breaks off.
fn read(bytes: &[u8], step: usize) -> Option<(u16, BodyLength, Vec<u8>)> {
    let (mut buffer, mut pieces, mut interim) = (BufferPool::default().take(), bytes.chunks(step), 0);
    let mut response = loop {
        buffer.extend_from_slice(pieces.next()?);
        if let Some(response) = Response::parse(&mut buffer, false, &mut interim).ok()? {
            break response;
        }
    };
    let mut data = response.start().to_vec();
    while response.length == BodyLength::Chunked && !response.body.is_done() {
        let mut piece = pieces.next()?.to_vec();
        let extent = response.body.decode(&mut piece).ok()?;
        data.extend_from_slice(&piece[..extent.data]);
    }
    let data = if response.length == BodyLength::Chunked { data } else { Vec::new() };
    Some((response.status(), response.length, data))
}
