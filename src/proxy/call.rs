//! One call whose caller is known: whether it may go up now, and what it is told if not.

use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::error::{ApiError, Code};
use crate::guard::Access;
use crate::http::head::RequestHead;
use crate::http::server::{BodyError, ServerConnection};
use crate::metrics;
use crate::proxy::caller::{Caller, DecodedLogin};
use crate::proxy::target::Target;
use crate::proxy::{Failure, Proxy, SharedProxy};
use crate::session::decision::Reason;
use crate::session::refresh::{Asking, Resolution};
use crate::session::replay::{self, ReplayTarget};

/// One call whose caller is known, and what the rest of its way needs.
pub(super) struct Call<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) request: &'a RequestHead,
    pub(super) target: Target<'a>,
    pub(super) access: Access,
    pub(super) caller: &'a Caller,
    pub(super) replay: &'a ReplayTarget<'a>,
    pub(super) datahub: &'a Arc<DataHub>,
    pub(super) context: &'a RequestContext,
}

impl Call<'_> {
    /// Lets a call pass whose tokens are current, as far as this process knows, or that bears none and comes not too often.
    ///
    /// # Errors
    /// The answer to a call that cannot go up now.
    pub(super) async fn check_caller(
        &self,
        is_long: bool,
        downstream: &mut ServerConnection,
        now: SystemTime,
    ) -> Result<(), Failure> {
        let SharedProxy { sessions, refresher, .. } = &*self.proxy.shared;
        let Some(login) = &self.caller.login else { return Ok(self.check_anonymous()?) };
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
        Err(self.retry(&login, self.request.body.known(), reason, downstream).await)
    }

    /// The answer to a call that is not forwarded now: mostly a 307, by which the browser sends the call again. It brings
    /// the cookie with newer tokens, if there are any. An app in development asks for those by itself. The body, of
    /// `length` bytes if that is known, is read first: a call with a body too long to be sent again must not cost a
    /// refresh.
    pub(super) async fn retry(
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
            Ok(Resolution::Renewed(_, cookie)) => self.replay.retry_response(Some(cookie), false),
            Ok(Resolution::Retry { closes }) => self.replay.retry_response(None, closes),
            Err(error) => {
                self.replay.record_outcome("lost");
                error
            }
        };
        response.into()
    }

    fn asking<'b>(&'b self, login: &'b DecodedLogin<'_>, reason: Reason) -> Asking<'b> {
        let DecodedLogin { sid, session } = login;
        Asking { datahub: self.datahub, sid, session, reason, replays: self.replay.replays }
    }

    /// Counts a call without a login. First by its client, so that one who comes too often takes nothing from the others.
    fn check_anonymous(&self) -> Result<(), ApiError> {
        let SharedProxy { anonymous_clients, limits, .. } = &*self.proxy.shared;
        let calls = limits[self.datahub.index()].anonymous.as_ref().ok_or(Code::NotLoggedIn)?;
        let checked = match anonymous_clients.check(self.context.client) {
            Ok(()) => calls.check().map_err(|limited| (limited, "datahub_limited")),
            Err(limited) => Err((limited, "client_limited")),
        };
        metrics::anonymous_call(self.datahub.id.as_str(), checked.map_or_else(|(_, result)| result, |()| "passed"));
        checked.map_err(|(limited, _)| limited.into())
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
