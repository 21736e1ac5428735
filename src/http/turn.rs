//! How much a connection does before the others of its worker have their turn.
//!
//! A socket that is always ready never makes its task wait: a client that sends one request behind the other, or a DataHUB
//! whose answer never ends, would keep a worker to itself.

use tokio::task::yield_now;

/// What is left of a connection's turn, in bytes.
#[derive(Debug)]
pub(super) struct Turn(usize);

impl Turn {
    /// Counts `bytes` that came, and lets the others go first if that is more than a turn. Nothing is lost if the caller
    /// stops waiting.
    pub(super) async fn spend(&mut self, bytes: usize) {
        if let Some(left) = self.0.checked_sub(bytes) {
            self.0 = left;
        } else {
            self.renew();
            yield_now().await;
        }
    }

    /// The connection has to wait, so that the others have had their turn when it goes on.
    pub(super) fn renew(&mut self) {
        *self = Self::default();
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self(TURN_BYTES)
    }
}

/// A turn, in bytes.
pub(super) const TURN_BYTES: usize = 64 * 1024;
/// What a message counts for, however short it is: there are 16 in a turn.
pub(super) const MESSAGE_BYTES: usize = TURN_BYTES / 16;

#[cfg(test)]
pub(super) mod tests {
    use std::pin::pin;

    /// How often the others have their turn until `work` is done.
    pub(crate) async fn turns(work: impl Future<Output = ()>) -> usize {
        let (mut work, mut turns) = (pin!(work), 0);
        std::future::poll_fn(|cx| {
            turns += 1;
            work.as_mut().poll(cx).map(|()| turns)
        })
        .await
    }
}
