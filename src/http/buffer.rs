//! A worker's pool of buffers: a connection takes one when something arrives and gives it back when nothing is under way.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// A worker's buffers.
#[derive(Debug, Clone, Default)]
pub struct BufferPool(Rc<RefCell<Unused>>);

/// Those that nobody uses. A head is kept as long as its request takes, so none gets a buffer that has grown for bodies.
#[derive(Debug, Default)]
struct Unused {
    usual: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

impl BufferPool {
    /// An empty buffer with room for a usual head.
    pub fn take(&self) -> Buffer {
        let bytes = self.0.borrow_mut().usual.pop().unwrap_or_else(|| Vec::with_capacity(MIN_CAPACITY));
        Buffer { bytes, pool: self.clone() }
    }

    /// No buffer: empty, and without room until something is written into it.
    pub fn none(&self) -> Buffer {
        Buffer { bytes: Vec::new(), pool: self.clone() }
    }

    /// An empty buffer, perhaps with room for a piece of a body.
    fn take_large(&self) -> Buffer {
        let bytes = self.0.borrow_mut().large.pop();
        bytes.map_or_else(|| self.take(), |bytes| Buffer { bytes, pool: self.clone() })
    }

    fn put_back(&self, mut bytes: Vec<u8>) {
        let Unused { usual, large } = &mut *self.0.borrow_mut();
        let (unused, max) = match bytes.capacity() {
            MIN_CAPACITY..LARGE_CAPACITY => (usual, MAX_USUAL),
            LARGE_CAPACITY..=MAX_CAPACITY => (large, MAX_LARGE),
            _ => return,
        };
        if unused.len() < max {
            bytes.clear();
            unused.push(bytes);
        }
    }
}

/// A buffer of the pool, given back when dropped. It is not wiped then: whoever writes a secret into it wipes that.
pub struct Buffer {
    bytes: Vec<u8>,
    pool: BufferPool,
}

impl Buffer {
    /// Takes the first `length` bytes out; what follows them, mostly nothing, stays.
    #[must_use]
    pub(super) fn split_off_front(&mut self, length: usize) -> Self {
        let rest = if self.bytes.len() > length { self.pool.take() } else { self.pool.none() };
        let mut front = std::mem::replace(self, rest);
        self.bytes.extend_from_slice(&front.bytes[length..]);
        front.bytes.truncate(length);
        front
    }

    /// Gives the room back to the worker, if nothing is in it.
    pub(super) fn release(&mut self) {
        if self.bytes.is_empty() {
            *self = self.pool.none();
        }
    }

    /// Makes room for `more` bytes; one without any room gets a used one of the worker.
    pub fn make_room(&mut self, more: usize) {
        if self.bytes.capacity() == 0 {
            *self = if more < LARGE_CAPACITY { self.pool.take() } else { self.pool.take_large() };
        }
        self.bytes.reserve(more);
    }
}

/// Without what is in it, which may be a cookie or a token.
impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes.len())
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.put_back(std::mem::take(&mut self.bytes));
    }
}

/// Appends all of `parts` to `out`.
pub fn append<const N: usize>(out: &mut Vec<u8>, parts: [&[u8]; N]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// How much of a body is read or written at once, in bytes. Writes of 64 KiB are split by the loopback device; these are
/// not.
pub(super) const PIECE_BYTES: usize = 48 * 1024;
/// Room for what is read at least, in bytes.
pub(super) const MIN_READ: usize = 4 * 1024;
/// Room for the head of a usual request or answer and a short body, in bytes.
const MIN_CAPACITY: usize = 8 * 1024;
/// A buffer that has grown to this is for bodies, in bytes.
const LARGE_CAPACITY: usize = 2 * MIN_CAPACITY;
/// A buffer that has grown beyond this is not kept, in bytes.
const MAX_CAPACITY: usize = 64 * 1024;
/// How many unused buffers for heads a worker keeps: 4 MiB, one for each of 512 calls that wait for an answer.
const MAX_USUAL: usize = 512;
/// How many unused buffers for bodies: 2 MiB at most.
const MAX_LARGE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_is_empty_then() {
        let pool = BufferPool::default();
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"of somebody else");
        let address = buffer.as_ptr();
        drop(buffer);
        let again = pool.take();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }

    #[test]
    fn what_a_worker_keeps_is_bounded() {
        let pool = BufferPool::default();
        let mut large = pool.take();
        large.reserve(MAX_CAPACITY + 1);
        drop(large);
        assert_eq!((pool.0.borrow().usual.len(), pool.0.borrow().large.len()), (0, 0), "a larger one goes");
        for more in [0, PIECE_BYTES] {
            let mut many: Vec<_> = (0..2 * MAX_USUAL).map(|_| pool.take()).collect();
            for buffer in &mut many {
                buffer.make_room(more);
            }
        }
        assert_eq!((pool.0.borrow().usual.len(), pool.0.borrow().large.len()), (0, MAX_LARGE));
    }

    #[test]
    fn what_has_grown_for_a_body_is_used_for_bodies_alone() {
        let pool = BufferPool::default();
        let mut piece = pool.none();
        piece.make_room(PIECE_BYTES);
        let address = piece.as_ptr();
        drop(piece);
        let mut head = pool.none();
        head.make_room(MIN_READ);
        assert!(head.capacity() < LARGE_CAPACITY);
        let mut piece = pool.none();
        piece.make_room(PIECE_BYTES);
        assert_eq!(piece.as_ptr(), address);
    }
}
