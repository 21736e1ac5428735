//! Anything as a chunked body: however it arrives in pieces it is read the same, and as a second reader reads it; what is
//! taken is written again and read the same.
#![no_main]

use arcmanager_gateway::http::body::{BodyDecoder, BodyLength, CHUNK_END, LAST_CHUNK, write_chunk_size};
use libfuzzer_sys::fuzz_target;
use reference::End;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0).max(1), input.1);
    let read = decode(bytes, bytes.len().max(1));
    assert_eq!(read, decode(bytes, step), "in pieces of {step}");
    assert_eq!(read, reference::chunks(bytes));
    let (data, end) = read;
    if end == End::Malformed {
        // Nothing that follows makes it good.
        let more = [bytes, b"\r\n0\r\n\r\n"].concat();
        assert_eq!(decode(&more, step), (data, end));
        return;
    }
    let mut written = Vec::new();
    for piece in data.chunks(step) {
        write_chunk_size(piece.len(), &mut written);
        written.extend_from_slice(piece);
        written.extend_from_slice(CHUNK_END);
    }
    written.extend_from_slice(LAST_CHUNK);
    let length = written.len();
    written.extend_from_slice(b"GET");
    assert_eq!(decode(&written, step), (data, End::Whole(length)));
});

fn decode(bytes: &[u8], step: usize) -> (Vec<u8>, End) {
    let (mut decoder, mut data, mut used) = (BodyDecoder::new(BodyLength::Chunked), Vec::new(), 0);
    for piece in bytes.chunks(step) {
        let mut piece = piece.to_vec();
        let Ok(extent) = decoder.decode(&mut piece) else { return (data, End::Malformed) };
        data.extend_from_slice(&piece[..extent.data]);
        used += extent.used;
        if decoder.is_done() {
            return (data, End::Whole(used));
        }
        assert_eq!(extent.used, piece.len(), "nothing is left over before the end");
    }
    let is_broken = matches!(decoder, BodyDecoder::Broken);
    (data, if is_broken { End::Malformed } else { End::Open })
}
