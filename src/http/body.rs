//! Bodies of both sides: how they are delimited (RFC 9112 section 6), and chunks, decoded strictly (section 7.1).

use std::future::poll_fn;
use std::pin::Pin;

use actix_web::body::MessageBody;
use actix_web::web::Bytes;

use crate::http::buffer::{Buffer, MIN_READ, PIECE_BYTES, append};

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// No body.
    None,
    /// So many bytes.
    Known(u64),
    /// Chunks.
    Chunked,
    /// Until the connection ends; answers only.
    UntilClose,
}

impl BodyLength {
    /// How many bytes will come, if that is known.
    pub fn known(self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Known(length) => Some(length),
            Self::Chunked | Self::UntilClose => None,
        }
    }

    /// Whether there is nothing to come.
    pub fn is_empty(self) -> bool {
        self.known() == Some(0)
    }

    /// Whether more than `limit` bytes may come.
    pub fn may_exceed(self, limit: u64) -> bool {
        self.known().is_none_or(|length| length > limit)
    }
}

/// Takes the data of one body out of what is read.
#[derive(Debug)]
pub enum BodyDecoder {
    /// So many bytes are left.
    Known(u64),
    /// Chunks.
    Chunked(ChunkedDecoder),
    /// Whatever comes.
    UntilClose,
    /// It has ended.
    Done,
    /// It is malformed or too long, and no more of it is taken.
    Broken,
}

/// How many of some bytes belong to a body, and how many of these are data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes of data there are; they are at the beginning now.
    pub data: usize,
    /// How many of the bytes belong to the body; those that follow are there only if it has ended.
    pub used: usize,
}

impl BodyDecoder {
    /// For a body delimited like this.
    pub fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::None | BodyLength::Known(0) => Self::Done,
            BodyLength::Known(length) => Self::Known(length),
            BodyLength::Chunked => Self::Chunked(ChunkedDecoder::default()),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// How many bytes to read next; `None` if there are some in `read` already, or no more is taken.
    pub(super) fn room(&self, read: &Buffer) -> Option<usize> {
        let room = match self {
            Self::Known(left) => usize::try_from(*left).unwrap_or(usize::MAX).clamp(MIN_READ, PIECE_BYTES),
            Self::Chunked(_) | Self::UntilClose => PIECE_BYTES,
            Self::Done | Self::Broken => return None,
        };
        read.is_empty().then_some(room)
    }

    /// Takes what belongs to the body out of `read`, and returns the data in it, which may be none.
    ///
    /// # Errors
    /// As [`BodyDecoder::decode`].
    pub(super) fn take_piece(&mut self, read: &mut Buffer) -> Result<Buffer, ChunkError> {
        let extent = self.decode(read)?;
        let mut piece = read.split_off_front(extent.used);
        piece.truncate(extent.data);
        Ok(piece)
    }

    /// Decodes `bytes`, which follow the ones of the last call, in place: the data is moved to their beginning. Data before
    /// a malformed chunk counts.
    ///
    /// # Errors
    /// [`ChunkError`] for anything but strict chunks; there is no more data then.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<Extent, ChunkError> {
        match self {
            Self::Broken => Err(ChunkError),
            Self::Done => Ok(Extent { data: 0, used: 0 }),
            Self::UntilClose => Ok(Extent { data: bytes.len(), used: bytes.len() }),
            Self::Known(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Extent { data: count, used: count })
            }
            Self::Chunked(chunks) => {
                let (mut data, mut used) = (0, 0);
                while used < bytes.len() {
                    match chunks.next(&bytes[used..]) {
                        Err(error) => {
                            *self = Self::Broken;
                            return if data > 0 { Ok(Extent { data, used: bytes.len() }) } else { Err(error) };
                        }
                        Ok(Decoded::Nothing) => used = bytes.len(),
                        Ok(Decoded::Data { skip, length }) => {
                            let begin = used + skip;
                            bytes.copy_within(begin..begin + length, data);
                            data += length;
                            used = begin + length;
                        }
                        Ok(Decoded::End { skip }) => {
                            used += skip;
                            *self = Self::Done;
                            break;
                        }
                    }
                }
                Ok(Extent { data, used })
            }
        }
    }
}

/// The next piece of a body of actix-web's; `None` once it has ended.
///
/// # Errors
/// The error of the body.
pub async fn next_piece<B: MessageBody + Unpin>(body: &mut B) -> Option<Result<Bytes, B::Error>> {
    poll_fn(|cx| Pin::new(&mut *body).poll_next(cx)).await
}

/// What stands before a chunk of `length` bytes; [`CHUNK_END`] stands after it.
pub fn write_chunk_size(length: usize, out: &mut Vec<u8>) {
    use std::io::Write as _;
    write!(out, "{length:x}\r\n").expect("a Vec takes everything");
}

/// Appends a Content-Length field, as a line.
pub fn write_content_length(length: u64, out: &mut Vec<u8>) {
    append(out, [b"content-length: ", itoa::Buffer::new().format(length).as_bytes(), b"\r\n"]);
}

/// What stands after the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// The chunk that ends a body, and no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Where in a chunked body its decoder is. Trailers and extensions are skipped.
#[derive(Debug, Default)]
pub struct ChunkedDecoder {
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
enum Decoded {
    /// So many bytes to skip, then so many of data.
    Data { skip: usize, length: usize },
    /// So many bytes to skip, and the body has ended.
    End { skip: usize },
    /// Nothing but bytes to skip.
    Nothing,
}

impl ChunkedDecoder {
    /// What comes next in `bytes`, which follow those of all pieces before.
    fn next(&mut self, bytes: &[u8]) -> Result<Decoded, ChunkError> {
        for (at, byte) in bytes.iter().copied().enumerate() {
            self.state = match (self.state, byte) {
                (State::Data(left), _) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    let left = left - length as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data(left) };
                    return Ok(Decoded::Data { skip: at, length });
                }
                (State::Size, _) => State::SizeDigits(1, digit(byte)?),
                (State::SizeDigits(_, size), b'\r') => State::SizeEnd(size),
                (State::SizeDigits(_, size), b';') => State::Extension(size),
                (State::SizeDigits(digits, size), _) if digits < MAX_DIGITS => {
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
                (State::EndLf, b'\n') => return Ok(Decoded::End { skip: at + 1 }),
                _ => return Err(ChunkError),
            };
        }
        Ok(Decoded::Nothing)
    }

    /// Counts one more byte of an extension or trailer, and refuses one too many.
    fn extra<T>(&mut self, then: T) -> Result<T, ChunkError> {
        self.extras += 1;
        if self.extras > MAX_EXTRAS { Err(ChunkError) } else { Ok(then) }
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
const MAX_DIGITS: u32 = 15;
/// Most bytes in the extensions and trailers of one body.
const MAX_EXTRAS: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body that arrives in pieces of `step` bytes holds.
    fn read(body: &[u8], step: usize) -> Result<Option<Vec<u8>>, ChunkError> {
        let (mut decoder, mut data) = (BodyDecoder::new(BodyLength::Chunked), Vec::new());
        for piece in body.chunks(step) {
            let mut piece = piece.to_vec();
            let extent = decoder.decode(&mut piece)?;
            data.extend_from_slice(&piece[..extent.data]);
            if matches!(decoder, BodyDecoder::Broken) {
                return decoder.decode(&mut []).map(|_| None);
            }
            if decoder.is_done() {
                return Ok((extent.used == piece.len()).then_some(data));
            }
            assert_eq!(extent.used, piece.len(), "nothing is left over before the end");
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
            b"1111111111111111\r\nx",
            // Who ends a size at a bare LF finds other chunks from here on.
            b"5;a\nhello\r\n0\r\n\r\n",
            b"5;\0\r\nhello\r\n0\r\n\r\n",
            b"0\r\nTrailer: x\n\r\n",
            b"0\r\nTrailer\r\n\r\n",
            b"0\r\nTrailer: x\r\n folded\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
        ] {
            assert_eq!(read(body, body.len()), Err(ChunkError), "{}", String::from_utf8_lossy(body));
        }
        // One digit less is a size like any other, though no body is as long.
        assert_eq!(read(b"111111111111111\r\nx", 100), Ok(None));
        for endless in [&b"5;"[..], b"0\r\nX", b"0\r\nX: "] {
            let counted = endless.iter().filter(|byte| [b'X', b' '].contains(byte)).count();
            let (most, more) = (MAX_EXTRAS - counted, MAX_EXTRAS - counted + 1);
            assert_eq!(read(&[endless, &vec![b'x'; most]].concat(), 100), Ok(None));
            assert_eq!(read(&[endless, &vec![b'x'; more]].concat(), 100), Err(ChunkError));
        }
    }

    #[test]
    fn what_came_before_a_malformed_chunk_counts() {
        let decode = |bytes: &[u8]| {
            let (mut decoder, mut bytes) = (BodyDecoder::new(BodyLength::Chunked), bytes.to_vec());
            let first = decoder.decode(&mut bytes).map(|extent| bytes[..extent.data].to_vec());
            (first, decoder.decode(&mut [b'0']))
        };
        assert_eq!(decode(b"5\r\nhello\r\nX"), (Ok(b"hello".to_vec()), Err(ChunkError)));
        assert_eq!(decode(b"X"), (Err(ChunkError), Err(ChunkError)));
    }

    #[test]
    fn a_body_that_breaks_off_never_ends() {
        let body = b"5\r\nhello\r\n0\r\n\r\n";
        for length in 0..body.len() {
            assert_eq!(read(&body[..length], 4), Ok(None), "{length} bytes");
        }
    }

    #[test]
    fn what_follows_a_body_is_not_of_it() {
        for (length, bytes, data) in [
            (BodyLength::Known(3), &b"abcGET"[..], "abc"),
            (BodyLength::Chunked, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\nGET", "abc"),
            (BodyLength::None, b"GET", ""),
            (BodyLength::Known(0), b"GET", ""),
        ] {
            let (mut decoder, mut bytes) = (BodyDecoder::new(length), bytes.to_vec());
            let extent = decoder.decode(&mut bytes).expect("a good body");
            assert!(decoder.is_done(), "{length:?}");
            assert_eq!((&bytes[..extent.data], &bytes[extent.used..]), (data.as_bytes(), &b"GET"[..]), "{length:?}");
        }
        let mut decoder = BodyDecoder::new(BodyLength::UntilClose);
        assert_eq!(decoder.decode(&mut [0; 5]), Ok(Extent { data: 5, used: 5 }));
        assert!(!decoder.is_done());
    }

    #[test]
    fn what_is_known_of_a_length_is_told() {
        for (length, known, is_empty, exceeds) in [
            (BodyLength::None, Some(0), true, [false, false]),
            (BodyLength::Known(0), Some(0), true, [false, false]),
            (BodyLength::Known(4), Some(4), false, [false, false]),
            (BodyLength::Known(5), Some(5), false, [true, false]),
            (BodyLength::Chunked, None, false, [true, true]),
            (BodyLength::UntilClose, None, false, [true, true]),
        ] {
            assert_eq!((length.known(), length.is_empty()), (known, is_empty), "{length:?}");
            assert_eq!([4, 5].map(|limit| length.may_exceed(limit)), exceeds, "{length:?}");
        }
    }

    #[test]
    fn so_much_is_read_as_belongs_to_the_body_and_fits() {
        let mut buffer = crate::http::buffer::BufferPool::default().take();
        let room = |length, read: &Buffer| BodyDecoder::new(length).room(read);
        for (length, expected) in [
            (BodyLength::Known(1), Some(MIN_READ)),
            (BodyLength::Known(MIN_READ as u64 + 1), Some(MIN_READ + 1)),
            (BodyLength::Known(u64::MAX), Some(PIECE_BYTES)),
            (BodyLength::Chunked, Some(PIECE_BYTES)),
            (BodyLength::UntilClose, Some(PIECE_BYTES)),
            (BodyLength::None, None),
        ] {
            assert_eq!(room(length, &buffer), expected, "{length:?}");
        }
        buffer.extend_from_slice(b"x");
        assert_eq!(room(BodyLength::Known(5), &buffer), None, "what is there comes first");
    }
}
