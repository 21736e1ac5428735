//! Long bodies on their way up: a token that one of them was sent with is not renewed early for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Sessions with a long body on its way up, by the hash of their token, and how many each has.
#[derive(Debug, Clone, Default)]
pub(super) struct Uploads(Arc<Mutex<HashMap<u64, usize>>>);

impl Uploads {
    /// Notes one until what is returned is dropped.
    pub(super) fn begin(&self, filter_hash: u64) -> Upload {
        *self.lock().entry(filter_hash).or_default() += 1;
        Upload { uploads: self.clone(), filter_hash }
    }

    /// Whether there is one.
    pub(super) fn contains(&self, filter_hash: u64) -> bool {
        self.lock().contains_key(&filter_hash)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A long body on its way up.
#[derive(Debug)]
pub struct Upload {
    uploads: Uploads,
    filter_hash: u64,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut uploads = self.uploads.lock();
        if let Some(count) = uploads.get_mut(&self.filter_hash) {
            *count -= 1;
            if *count == 0 {
                uploads.remove(&self.filter_hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_free_again_after_the_last_of_its_uploads() {
        let uploads = Uploads::default();
        let (one, other, somebody) = (uploads.begin(1), uploads.begin(1), uploads.begin(2));
        drop(one);
        assert!(uploads.contains(1) && uploads.contains(2));
        drop(other);
        assert!(!uploads.contains(1) && uploads.contains(2));
        drop(somebody);
        assert!(uploads.lock().is_empty());
    }
}
