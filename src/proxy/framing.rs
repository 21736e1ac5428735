//! The chunks of an answer, taken apart strictly (RFC 9112 section 7.1).

use actix_web::web::{Buf, Bytes, BytesMut};

/// Where in a chunked body we are.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Before a line with a size.
    #[default]
    Size,
    /// So many bytes of data are left.
    Data(u64),
    /// Before the line break after data.
    DataEnd,
    /// In the trailer section, of which so many bytes have gone by.
    Trailers(usize),
}

impl Chunks {
    /// The next piece of data out of `read`; an empty one is the end, `None` says that more must be read.
    ///
    /// # Errors
    /// [`ChunkError`] for anything but strict chunks.
    pub fn next(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, ChunkError> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = line(read, LONGEST_SIZE_LINE)? else { return Ok(None) };
                    let size = size(&line)?;
                    self.state = if size == 0 { State::Trailers(0) } else { State::Data(size) };
                }
                State::Data(left) => {
                    if read.is_empty() {
                        return Ok(None);
                    }
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
                    let left = left - count as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Some(read.split_to(count).freeze()));
                }
                State::DataEnd => {
                    let Some(line) = line(read, 0)? else { return Ok(None) };
                    debug_assert!(line.is_empty(), "`line` lets none longer through");
                    self.state = State::Size;
                }
                State::Trailers(seen) => {
                    let Some(line) = line(read, LONGEST_TRAILERS - seen)? else { return Ok(None) };
                    if line.is_empty() {
                        return Ok(Some(Bytes::new()));
                    }
                    self.state = State::Trailers(seen + line.len());
                }
            }
        }
    }
}

/// Not chunks, or not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DataHUB's chunks are malformed")]
pub struct ChunkError;

/// The next line without its CRLF, once it is there whole; a line break is CRLF and nothing else.
fn line(read: &mut BytesMut, longest: usize) -> Result<Option<Bytes>, ChunkError> {
    match read.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        Some(end) if end > longest || read[end] == b'\n' => Err(ChunkError),
        Some(end) => match read.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => {
                let line = read.split_to(end).freeze();
                read.advance(2);
                Ok(Some(line))
            }
            Some(_) => Err(ChunkError),
        },
        None if read.len() > longest => Err(ChunkError),
        None => Ok(None),
    }
}

/// Up to 15 hex digits, then nothing or an extension, which is ignored.
fn size(line: &[u8]) -> Result<u64, ChunkError> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or(line).trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(ChunkError);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| ChunkError)?;
    u64::from_str_radix(digits, 16).map_err(|_| ChunkError)
}

/// Longest line with a size and its extension, in bytes.
const LONGEST_SIZE_LINE: usize = 256;
/// Longest trailer section, in bytes.
const LONGEST_TRAILERS: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body that arrives in pieces of `step` bytes holds.
    fn read(body: &[u8], step: usize) -> Result<Option<Vec<u8>>, ChunkError> {
        let (mut chunks, mut buffer, mut data) = (Chunks::default(), BytesMut::new(), Vec::new());
        for piece in body.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(piece) = chunks.next(&mut buffer)? {
                if piece.is_empty() {
                    return Ok(buffer.is_empty().then_some(data));
                }
                data.extend_from_slice(&piece);
            }
        }
        Ok(None)
    }

    #[test]
    fn a_chunked_body_is_the_same_however_it_arrives() {
        let body = b"5\r\nhello\r\n00A;ext=\"x\"\r\n, chunked!\r\n0\r\nTrailer: dropped\r\n\r\n";
        for step in [1, 2, 3, 7, body.len()] {
            assert_eq!(read(body, step), Ok(Some(b"hello, chunked!".to_vec())), "in pieces of {step}");
        }
    }

    #[test]
    fn what_is_not_strictly_chunked_is_refused() {
        for body in [
            &b"0x5\r\nhello\r\n0\r\n\r\n"[..],
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"-0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"5\r\nhelloX\n0\r\n\r\n",
            b"5\rXhello\r\n0\r\n\r\n",
            b"11111111111111111\r\nx",
            b"0\r\nTrailer: x\n\r\n",
        ] {
            assert_eq!(read(body, body.len()), Err(ChunkError), "{}", String::from_utf8_lossy(body));
        }
        let endless = [b"5;".as_slice(), &[b'x'; 1000]].concat();
        assert_eq!(read(&endless, 100), Err(ChunkError));
    }

    #[test]
    fn a_body_that_breaks_off_never_ends() {
        let body = b"5\r\nhello\r\n0\r\n\r\n";
        for length in 0..body.len() {
            assert_eq!(read(&body[..length], 4), Ok(None), "{length} bytes");
        }
    }
}
