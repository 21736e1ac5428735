//! Why a call was not answered by its DataHUB, and what becomes of it.

use crate::access_log::Event;
use crate::context::RequestContext;
use crate::error::{ApiError, Code};
use crate::http::server::{BodyError, ClientLeft};

/// Why a request was not answered as it should be. Nothing has been written to the browser but perhaps a 100, except where a
/// file of our own breaks off.
#[derive(Debug)]
pub enum Failure {
    /// The browser gets this answer instead.
    Error(ApiError),
    /// The browser has left and gets no answer.
    ClientLeft,
    /// The connection was closed to make room for others while its body was held.
    Displaced,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::Error(code.into())
    }
}

impl From<ClientLeft> for Failure {
    fn from(_: ClientLeft) -> Self {
        Self::ClientLeft
    }
}

impl Failure {
    /// The same about the ARCmanager's old backend ([`ApiError::of_backend`]).
    #[must_use]
    pub fn of_backend(self) -> Self {
        match self {
            Self::Error(error) => Self::Error(error.of_backend()),
            other => other,
        }
    }

    /// Logs a security event if this stands for one.
    #[must_use]
    pub fn log_if_security_event(self, datahub: &str, context: &RequestContext) -> Self {
        let event = match &self {
            Self::Error(error) => match error.code() {
                Code::CredentialParameter | Code::CredentialEndpoint => Some(Event::CredentialRefused),
                Code::BadRequestTarget | Code::NotForwarded => Some(Event::TargetRefused),
                _ => None,
            },
            Self::ClientLeft | Self::Displaced => None,
        };
        if let Some(event) = event {
            context.event(event, datahub);
        }
        self
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Gone(_) => Self::ClientLeft,
            BodyError::Displaced(_) => Self::Displaced,
            error => Self::Error(error.into()),
        }
    }
}
