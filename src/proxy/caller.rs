//! Who calls: a person with a login, or somebody without one.

use crate::context::RequestContext;
use crate::proxy::idle::SessionTag;
use crate::proxy::limiter::Holder;
use crate::rate::network;
use crate::session::open_session::OpenSession;
use crate::session::{Session, Sid};

/// Who calls.
#[derive(Debug)]
pub(super) struct Caller {
    /// None of somebody without one, at a DataHUB that may be asked so.
    pub(super) login: Option<Login>,
}

/// A session that was opened, and its name.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) sid: Sid,
    pub(super) session: OpenSession,
}

/// The same, copied, to ask for newer tokens.
pub(super) struct DecodedLogin<'a> {
    pub(super) sid: &'a Sid,
    pub(super) session: Session,
}

impl Caller {
    /// The session whose token the call bears, if it bears one.
    pub(super) fn session(&self) -> Option<&OpenSession> {
        self.login.as_ref().map(|login| &login.session)
    }

    /// What the connections that this session used are known by.
    pub(super) fn tag(&self) -> Option<SessionTag> {
        self.login.as_ref().map(|login| SessionTag(login.sid.tag()))
    }

    /// Whose share of the places at the DataHUB the call has.
    pub(super) fn holder(&self, context: &RequestContext) -> Holder {
        match self.session() {
            Some(session) => Holder::Person(session.user_key()),
            None => Holder::Network(context.client.address.map(network)),
        }
    }
}

impl Login {
    pub(super) fn decode(&self) -> DecodedLogin<'_> {
        DecodedLogin { sid: &self.sid, session: self.session.decode() }
    }
}
