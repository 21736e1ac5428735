//! Every request, byte for byte as it came off the wire.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::hex;
use crate::hub::lock;

/// One request. It appears when its head is complete; its body grows while it arrives.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which TCP connection it came on, counted from 1.
    pub connection: u64,
    /// The head with its empty line. Where it was no HTTP, whatever came.
    pub head: Vec<u8>,
    /// The first 64 KiB of the body, without any transfer coding.
    pub body: Vec<u8>,
    /// Bytes of the body that came so far.
    pub body_length: u64,
    /// Whether the body came to its end.
    pub complete: bool,
    hash: Sha256,
}

impl Recorded {
    /// Such as `GET`.
    pub fn method(&self) -> String {
        self.start_line_word(0)
    }

    /// The request target, never decoded.
    pub fn target(&self) -> String {
        self.start_line_word(1)
    }

    /// The target without its query.
    pub fn path(&self) -> String {
        self.target().split('?').next().unwrap_or_default().to_owned()
    }

    /// All fields in their order. For bytes that are not UTF-8 see [`head`](Self::head).
    pub fn headers(&self) -> Vec<(String, String)> {
        String::from_utf8_lossy(&self.head)
            .split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    }

    /// Every value of one field, whatever its case.
    pub fn header_values(&self, name: &str) -> Vec<String> {
        self.headers().into_iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// The first value of one field.
    pub fn header(&self, name: &str) -> Option<String> {
        self.header_values(name).into_iter().next()
    }

    /// The SHA-256 of the whole body, kept or not, as 64 hex digits.
    pub fn body_sha256(&self) -> String {
        hex::encode(&self.hash.clone().finalize())
    }

    pub(crate) fn grow(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.body_length += piece.len() as u64;
        let room = MAX_KEPT_BODY_BYTES - self.body.len();
        self.body.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn start_line_word(&self, index: usize) -> String {
        let line = self.head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        String::from_utf8_lossy(line).split(' ').nth(index).unwrap_or_default().to_owned()
    }
}

/// The last requests, oldest first.
pub(crate) struct Recorder {
    keep: usize,
    kept: Mutex<VecDeque<Arc<Mutex<Recorded>>>>,
}

impl Recorder {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep, kept: Mutex::default() }
    }

    pub(crate) fn begin(&self, connection: u64, head: &[u8]) -> Arc<Mutex<Recorded>> {
        let recorded = Arc::new(Mutex::new(Recorded {
            connection,
            head: head.to_vec(),
            body: Vec::new(),
            body_length: 0,
            complete: false,
            hash: Sha256::new(),
        }));
        let mut kept = lock(&self.kept);
        kept.push_back(recorded.clone());
        if kept.len() > self.keep {
            kept.pop_front();
        }
        recorded
    }

    pub(crate) fn requests(&self) -> Vec<Recorded> {
        lock(&self.kept).iter().map(|recorded| lock(recorded).clone()).collect()
    }

    pub(crate) fn clear(&self) {
        lock(&self.kept).clear();
    }
}

/// Enough for every body a test compares, and little enough to keep thousands of requests.
const MAX_KEPT_BODY_BYTES: usize = 64 * 1024;
