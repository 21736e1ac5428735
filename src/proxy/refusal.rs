//! Whether a DataHUB's 401 is about the token that we sent, or the app's own business.
//!
//! GitLab answers 401 to an expired or revoked token and says `invalid_token`; but it also answers 401, with the very
//! words it has for a token it has never seen, to what a person may not do, such as merging. The second kind is told
//! apart by asking for something that anybody with a token may have.

use std::rc::Rc;

use actix_web::http::Method;
use actix_web::web::Bytes;

use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::token::AccessToken;
use crate::proxy::body::Body;
use crate::proxy::request::{self, Framing};
use crate::proxy::upstream::answer::Answer;
use crate::proxy::upstream::{Outgoing, Upstream};

/// Whether the DataHUB refuses `token` itself. The answer may be passed on afterwards as it came.
pub async fn is_of_token(
    answer: &mut Answer,
    upstream: &Rc<Upstream>,
    datahub: &DataHub,
    token: &AccessToken,
    context: &RequestContext,
) -> bool {
    if answer.head.status != UNAUTHORIZED {
        return false;
    }
    if answer.head.values("www-authenticate").any(names_it) || names_it(answer.body.peek(LONGEST_REASON).await) {
        return true;
    }
    let head = request::probe(datahub, token, context);
    let probe = Outgoing::new(&Method::GET, head, Body::Held(Bytes::new()), Framing::None, context);
    // Without an answer nothing is known, and the app gets what the DataHUB said.
    upstream.send(probe).await.is_ok_and(|answer| answer.head.status == UNAUTHORIZED)
}

/// RFC 6750 section 3.1; GitLab `lib/api/api_guard.rb`.
fn names_it(text: &[u8]) -> bool {
    text.windows(INVALID_TOKEN.len()).any(|window| window == INVALID_TOKEN)
}

const UNAUTHORIZED: u16 = 401;
const INVALID_TOKEN: &[u8] = b"invalid_token";
/// How much of an answer is looked through, in bytes; GitLab's reasons are shorter than 200.
const LONGEST_REASON: usize = 16 * 1024;
