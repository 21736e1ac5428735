//! Whether a DataHUB's 401 is about the token that we sent, or the app's own business.
//!
//! GitLab answers 401 to an expired or revoked token and says `invalid_token`; but it also answers 401, with the very
//! words it has for a token it has never seen, to what a person may not do, such as merging. The second kind is told
//! apart by asking for something that anybody with a token may have.

use std::pin::pin;

use memchr::memmem;

use crate::context::RequestContext;
use crate::http::body::BodyLength;
use crate::http::server::{ClientLeft, ServerConnection};
use crate::proxy::request::Message;
use crate::proxy::upstream::{Exchange, SendError, UpstreamRequest};

/// Whether the DataHUB rejects the token itself. What is read of the answer's body to find out is left in `peeked`, so that
/// the answer can still be passed on as it came.
///
/// # Errors
/// [`ClientLeft`].
pub(super) async fn is_invalid_token(
    exchange: &mut Exchange<'_>,
    peeked: &mut Option<Vec<u8>>,
    probe: impl FnOnce() -> Message,
    downstream: &mut ServerConnection,
    context: &RequestContext,
) -> Result<bool, ClientLeft> {
    if exchange.response.status() != UNAUTHORIZED {
        return Ok(false);
    }
    if exchange.response.fields().values("www-authenticate").any(names_invalid_token) {
        return Ok(true);
    }
    let peeked = peeked.insert(exchange.response.start().to_vec());
    while peeked.len() < MAX_REASON {
        match downstream.unless_client_leaves(pin!(exchange.next_piece())).await? {
            Ok(Some(piece)) => peeked.extend_from_slice(&piece),
            // If it breaks off, passing it on will find that out again.
            Ok(None) | Err(_) => break,
        }
    }
    if names_invalid_token(peeked) {
        return Ok(true);
    }
    let probe = probe();
    let (message, session) = (probe.as_bytes(), exchange.session);
    let request = UpstreamRequest {
        message,
        rest: BodyLength::None,
        is_head: false,
        is_idempotent: true,
        session,
        part_names: None,
    };
    match Box::pin(exchange.exchange_again(&request, downstream, context)).await {
        Ok(answer) => Ok(answer.response.status() == UNAUTHORIZED),
        Err(SendError::ClientLeft(left)) => Err(left),
        // Without an answer to the probe nothing is known, and the app gets the 401 of the DataHUB.
        Err(_) => Ok(false),
    }
}

/// RFC 6750 section 3.1; GitLab `lib/api/api_guard.rb`.
fn names_invalid_token(text: &[u8]) -> bool {
    memmem::find(text, b"invalid_token").is_some()
}

const UNAUTHORIZED: u16 = 401;
/// How much of an answer is searched, in bytes; GitLab's reasons are shorter than 200.
const MAX_REASON: usize = 16 * 1024;
