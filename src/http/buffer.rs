//! A worker's pool of buffers: a connection takes one when something arrives and gives it back when nothing is under way.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// A worker's buffers.
#[derive(Debug, Clone, Default)]
pub struct BufferPool(Rc<RefCell<Unused>>);

#[derive(Debug, Default)]
struct Unused {
    buffers: Vec<Vec<u8>>,
    /// Room in all of them, in bytes.
    capacity: usize,
}

impl BufferPool {
    /// An empty buffer with room for a usual head.
    pub fn take(&self) -> Buffer {
        let mut unused = self.0.borrow_mut();
        let bytes = unused.buffers.pop();
        unused.capacity -= bytes.as_ref().map_or(0, Vec::capacity);
        let bytes = bytes.unwrap_or_else(|| Vec::with_capacity(MIN_CAPACITY));
        Buffer { bytes, pool: self.clone() }
    }

    /// No buffer: empty, and without room until something is written into it.
    pub fn none(&self) -> Buffer {
        Buffer { bytes: Vec::new(), pool: self.clone() }
    }

    fn put_back(&self, mut bytes: Vec<u8>) {
        let (mut unused, capacity) = (self.0.borrow_mut(), bytes.capacity());
        if (MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity) && unused.capacity + capacity <= MAX_UNUSED {
            bytes.clear();
            unused.capacity += capacity;
            unused.buffers.push(bytes);
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
            *self = self.pool.take();
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
/// A buffer that has grown beyond this is not kept, in bytes.
const MAX_CAPACITY: usize = 64 * 1024;
/// How much a worker keeps in unused buffers, in bytes: 512 of usual room, or 64 of the largest.
const MAX_UNUSED: usize = 4 * 1024 * 1024;

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
        assert_eq!(pool.0.borrow().buffers.len(), 0, "a large one goes");
        for (capacity, kept) in [(MIN_CAPACITY, 512), (MAX_CAPACITY, 64)] {
            let pool = BufferPool::default();
            let mut many: Vec<_> = (0..2 * kept).map(|_| pool.take()).collect();
            for buffer in &mut many {
                buffer.reserve_exact(capacity);
            }
            drop(many);
            assert_eq!(pool.0.borrow().buffers.len(), kept);
            drop((0..kept).map(|_| pool.take()).collect::<Vec<_>>());
            assert_eq!(pool.0.borrow().capacity, MAX_UNUSED, "what is taken and given back counts once");
        }
    }
}
