//! Who calls: a person with a login, or somebody without one.

use std::sync::Arc;

use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::proxy::idle::SessionTag;
use crate::proxy::limiter::Holder;
use crate::rate::network;
use crate::session::open_session::OpenSession;
use crate::session::{Session, Sid};

/// Who calls.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    /// None of somebody without one, at a DataHUB that may be asked so.
    pub(super) login: Option<Login<'a>>,
}

/// A session that was opened, its name, and where it is.
#[derive(Debug)]
pub struct Login<'a> {
    /// The session's DataHUB.
    pub datahub: &'a Arc<DataHub>,
    /// The session's name.
    pub sid: Sid,
    /// The session.
    pub session: OpenSession,
}

/// The same, copied, to ask for newer tokens.
pub(super) struct DecodedLogin<'a> {
    pub(super) datahub: &'a Arc<DataHub>,
    pub(super) sid: &'a Sid,
    pub(super) session: Session,
}

impl Caller<'_> {
    /// The session whose token the call bears, if it bears one.
    pub(super) fn session(&self) -> Option<&OpenSession> {
        self.login.as_ref().map(|login| &login.session)
    }

    /// What the connections that this session used are known by.
    pub(super) fn tag(&self) -> Option<SessionTag> {
        self.login.as_ref().map(Login::tag)
    }

    /// Whose share of the places at the DataHUB the call has.
    pub(super) fn holder(&self, context: &RequestContext) -> Holder {
        match self.session() {
            Some(session) => Holder::Person(session.user_key()),
            None => anonymous_holder(context),
        }
    }
}

impl Login<'_> {
    /// What the connections that this session used are known by.
    pub fn tag(&self) -> SessionTag {
        SessionTag(self.sid.tag())
    }

    pub(super) fn decode(&self) -> DecodedLogin<'_> {
        DecodedLogin { datahub: self.datahub, sid: &self.sid, session: self.session.decode() }
    }
}

/// Whose share of the places a call without a login has.
pub fn anonymous_holder(context: &RequestContext) -> Holder {
    Holder::Network(context.client.address.map(network))
}
