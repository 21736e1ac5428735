//! One call whose caller is known: whether it may go up now, and what it is told if not.

use std::pin::pin;
use std::time::SystemTime;

use crate::context::RequestContext;
use crate::datahub::transport::Address;
use crate::error::Code;
use crate::guard::Access;
use crate::http::head::RequestHead;
use crate::http::server::{BodyError, ServerConnection};
use crate::proxy::caller::{DecodedLogin, Login};
use crate::proxy::failure::Failure;
use crate::proxy::request::{Credential, Envelope};
use crate::proxy::upstream::Exchange;
use crate::proxy::{Proxy, SharedProxy};
use crate::session::decision::Reason;
use crate::session::refresh::uploads::Upload;
use crate::session::refresh::{Asking, Resolution};
use crate::session::replay::{self, ReplayTarget};

/// One call whose caller is known, and what the rest of its way needs.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The proxy of the worker that has it.
    pub proxy: &'a Proxy,
    /// The browser's request.
    pub request: &'a RequestHead,
    /// How it got in.
    pub access: Access,
    /// Its target, and how often the browser has sent it again.
    pub replay: &'a ReplayTarget<'a>,
    /// What is known of it besides.
    pub context: &'a RequestContext,
}

impl<'a> Call<'a> {
    /// Lets a call pass whose tokens are current, as far as this process knows. `is_long` is that of its body.
    ///
    /// # Errors
    /// The answer to a call that cannot go up now.
    pub async fn check_login(
        &self,
        login: &Login<'_>,
        is_long: bool,
        downstream: &mut ServerConnection,
        now: SystemTime,
    ) -> Result<(), Failure> {
        let SharedProxy { sessions, refresher, .. } = &*self.proxy.shared;
        let filter_hash = login.session.filter_hash();
        // Sooner ahead of a long body: GitLab looks at the token again once the whole body is there; but not while another
        // one is on its way up with that token.
        let is_sooner = is_long && !refresher.has_upload(filter_hash);
        let limits = sessions.limits();
        let ahead = if is_sooner { limits.refresh_ahead_body } else { limits.refresh_ahead };
        let is_expiring = login.session.is_stale_at(now, ahead);
        if !is_expiring && !refresher.may_have_entry_for(filter_hash) {
            return Ok(());
        }
        let reason = if is_expiring { Reason::Expiring } else { Reason::None };
        let login = login.decode();
        if !refresher.must_resolve(self.asking(&login, reason), now) {
            return Ok(());
        }
        Err(Box::pin(self.ask_to_retry(&login, self.request.body.known(), reason, downstream)).await)
    }

    /// Notes that a long body is on its way up with this login's token, until what is returned is dropped.
    pub fn begin_upload(&self, login: &Login<'_>) -> Upload {
        self.proxy.shared.refresher.begin_upload(login.session.filter_hash())
    }

    /// What its message is made of besides its own fields, on its way to `address`.
    pub fn envelope(&self, address: &'a Address, credential: Credential<'a>) -> Envelope<'a> {
        Envelope { address, credential, context: self.context, scheme: &self.proxy.shared.scheme }
    }

    /// Notes that the head of the answer is there, and refuses a 504 that comes too early. The ARCmanager's app takes one for "the
    /// upload goes on in the background", so there is none before the whole body went up.
    ///
    /// # Errors
    /// `datahub_invalid_response` for such a one.
    pub fn check_answer(&self, exchange: &Exchange<'_>) -> Result<(), Failure> {
        self.context.upstream.set(Some(exchange.took));
        if exchange.response.status() == 504 && !exchange.is_request_whole {
            return Err(Code::DatahubInvalidResponse.into());
        }
        Ok(())
    }

    /// The answer to a call that is not forwarded now: mostly a 307, by which the browser sends the call again. It brings
    /// the cookie with newer tokens, if there are any. An app in development asks for those by itself. The body, of
    /// `length` bytes if that is known, is read first: a call with a body too long to be sent again must not cost a
    /// refresh.
    pub(super) async fn ask_to_retry(
        &self,
        login: &DecodedLogin<'_>,
        length: Option<u64>,
        reason: Reason,
        downstream: &mut ServerConnection,
    ) -> Failure {
        if let Err(failure) = discard_request_body(downstream, length, self.context).await {
            return failure;
        }
        if self.access == Access::Dev {
            // Firefox calls what follows a redirect between two origins cross-site, so it would not come back.
            return Code::RefreshFirst.into();
        }
        let SharedProxy { sessions, refresher, .. } = &*self.proxy.shared;
        let asking = self.asking(login, reason);
        let resolving = pin!(refresher.resolve(asking, sessions, self.context, SystemTime::now()));
        let resolution = match downstream.unless_client_leaves(resolving).await {
            Ok(resolution) => resolution,
            Err(left) => return left.into(),
        };
        let response = match resolution {
            // It goes on with what it has. But the body has been read, so that the call must be sent again.
            Ok(Resolution::UseCurrent) => self.replay.retry_response(None, false),
            Ok(Resolution::Renewed(session, cookie)) => {
                let cookies = || self.request.fields().values("cookie");
                let changed = [(&**login.datahub, Some(&*session))];
                let readable = sessions.readable_cookies(cookies, &changed, self.context, SystemTime::now());
                self.replay.retry_response(std::iter::once(cookie).chain(readable), false)
            }
            Ok(Resolution::Retry { closes }) => self.replay.retry_response(None, closes),
            Err(error) => {
                self.replay.record_outcome("lost");
                error
            }
        };
        response.into()
    }

    fn asking<'b>(&self, login: &'b DecodedLogin<'_>, reason: Reason) -> Asking<'b> {
        let DecodedLogin { datahub, sid, session } = login;
        Asking { datahub, sid, session, reason, replays: self.replay.replays }
    }
}

/// Reads what is left of a request's body, of `length` bytes if that is known, and throws it away.
async fn discard_request_body(
    downstream: &mut ServerConnection,
    length: Option<u64>,
    context: &RequestContext,
) -> Result<(), Failure> {
    let next_piece = async || {
        let length = downstream.next_piece().await?.map(|piece| piece.len());
        context.count_in(length.unwrap_or(0));
        Ok::<_, BodyError>(length)
    };
    replay::discard_body(length, next_piece).await
}
