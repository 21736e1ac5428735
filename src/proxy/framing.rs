//! Chunks, taken apart strictly (RFC 9112 section 7.1): those of a DataHUB's answers and of a browser's bodies.

use actix_web::web::{Buf, Bytes, BytesMut};

/// Where in a chunked body we are.
#[derive(Debug, Default)]
pub struct Chunks {
    state: State,
    /// Bytes of extensions and trailers so far.
    extras: usize,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// Before a chunk's size.
    #[default]
    Size,
    /// In a size: so many digits, and what they say.
    SizeDigits(u32, u64),
    /// After the size, which is this.
    Extension(u64),
    /// After the CR that ends a line with a size.
    SizeEnd(u64),
    /// So many bytes of data are left.
    Data(u64),
    DataCr,
    DataLf,
    /// At the beginning of a trailer, or of the line that ends them all.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// What comes next in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes to skip, then so many of data.
    Data(usize, usize),
    /// So many bytes to skip, and the body has ended.
    End(usize),
    /// Nothing but bytes to skip.
    Nothing,
}

impl Chunks {
    /// The next piece of data out of `read`; an empty one is the end, `None` says that more must be read.
    ///
    /// # Errors
    /// [`ChunkError`] for anything but strict chunks.
    pub fn next(&mut self, read: &mut BytesMut) -> Result<Option<Bytes>, ChunkError> {
        match self.piece(read)? {
            Piece::Data(skipped, length) => {
                read.advance(skipped);
                Ok(Some(read.split_to(length).freeze()))
            }
            Piece::End(skipped) => {
                read.advance(skipped);
                Ok(Some(Bytes::new()))
            }
            Piece::Nothing => {
                read.clear();
                Ok(None)
            }
        }
    }

    /// What comes next in `bytes`, which follow those of all pieces before.
    ///
    /// # Errors
    /// [`ChunkError`] for anything but strict chunks.
    pub fn piece(&mut self, bytes: &[u8]) -> Result<Piece, ChunkError> {
        for (at, byte) in bytes.iter().copied().enumerate() {
            self.state = match (self.state, byte) {
                (State::Data(left), _) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    let left = left - length as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    return Ok(Piece::Data(at, length));
                }
                (State::Size, _) => State::SizeDigits(1, digit(byte)?),
                (State::SizeDigits(_, size), b'\r') => State::SizeEnd(size),
                (State::SizeDigits(_, size), b';') => State::Extension(size),
                (State::SizeDigits(digits, size), _) if digits < MOST_DIGITS => {
                    State::SizeDigits(digits + 1, size << 4 | digit(byte)?)
                }
                (State::Extension(size), b'\r') => State::SizeEnd(size),
                (State::Extension(size), _) if is_text(byte) => State::Extension(self.extra(size)?),
                (State::SizeEnd(0), b'\n') => State::TrailerStart,
                (State::SizeEnd(size), b'\n') => State::Data(size),
                (State::DataCr, b'\r') => State::DataLf,
                (State::DataLf, b'\n') => State::Size,
                (State::TrailerStart, b'\r') => State::EndLf,
                (State::TrailerStart | State::TrailerName, _) if is_token(byte) => self.extra(State::TrailerName)?,
                (State::TrailerName, b':') => State::TrailerValue,
                (State::TrailerValue, b'\r') => State::TrailerLf,
                (State::TrailerValue, _) if is_text(byte) => self.extra(State::TrailerValue)?,
                (State::TrailerLf, b'\n') => State::TrailerStart,
                (State::EndLf, b'\n') => return Ok(Piece::End(at + 1)),
                _ => return Err(ChunkError),
            };
        }
        Ok(Piece::Nothing)
    }

    /// One more byte that says nothing.
    fn extra<T>(&mut self, then: T) -> Result<T, ChunkError> {
        self.extras += 1;
        if self.extras > MOST_EXTRAS { Err(ChunkError) } else { Ok(then) }
    }
}

/// Not chunks, or not to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunks are malformed")]
pub struct ChunkError;

fn digit(byte: u8) -> Result<u64, ChunkError> {
    char::from(byte).to_digit(16).map(u64::from).ok_or(ChunkError)
}

/// What a field's value may hold (RFC 9110 section 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What a field's name may hold (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Most digits of a size: no size is near the end of 64 bits.
const MOST_DIGITS: u32 = 15;
/// Most bytes in the extensions and trailers of one body.
const MOST_EXTRAS: usize = 8 * 1024;

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
            b"0\r\nTrailer\r\n\r\n",
            b"0\r\nTrailer: x\r\n folded\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
        ] {
            assert_eq!(read(body, body.len()), Err(ChunkError), "{}", String::from_utf8_lossy(body));
        }
        for endless in [&b"5;"[..], b"0\r\nX", b"0\r\nX: "] {
            let (most, more) = (MOST_EXTRAS - 100, MOST_EXTRAS + 100);
            assert_eq!(read(&[endless, &vec![b'x'; most]].concat(), 100), Ok(None));
            assert_eq!(read(&[endless, &vec![b'x'; more]].concat(), 100), Err(ChunkError));
        }
    }

    #[test]
    fn a_body_that_breaks_off_never_ends() {
        let body = b"5\r\nhello\r\n0\r\n\r\n";
        for length in 0..body.len() {
            assert_eq!(read(&body[..length], 4), Ok(None), "{length} bytes");
        }
    }
}
