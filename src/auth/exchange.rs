//! A code becomes tokens, and these a person's: in a task, since a code that was spent brings tokens whoever leaves.

use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use openidconnect::AuthorizationCode;

use crate::auth::Auth;
use crate::auth::pending::LoginProof;
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::oidc::LoginResult;
use crate::datahub::oidc::error::ExchangeError;
use crate::datahub::revocation::Obtained;
use crate::datahub::token::SessionToken;
use crate::datahub::token_endpoint::TokenEndpointError;

impl Auth {
    /// Exchanges a code for tokens and learns whose they are. What was obtained lives and is to be kept. `held` is what the
    /// browser holds already.
    ///
    /// # Errors
    /// [`ExchangeError`]; whatever was obtained is revoked then.
    pub(super) async fn exchange(
        &self,
        datahub: &Arc<DataHub>,
        code: AuthorizationCode,
        proof: LoginProof,
        held: Option<SessionToken>,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<(LoginResult, Obtained), ExchangeError> {
        let (datahub, refresher, id) = (Arc::clone(datahub), self.refresher.clone(), context.id);
        let LoginProof { verifier, nonce } = proof;
        let exchange = async move || {
            let exchanged = match datahub.provider.exchange_code(code, verifier, now).await {
                Ok(exchanged) => exchanged,
                Err(error) => {
                    match &error {
                        ExchangeError::Client(_) => datahub.report_refused_client(&error),
                        ExchangeError::Endpoint(TokenEndpointError::NotNow { status: 429, retry_after }) => {
                            refresher.hold_back(&datahub, *retry_after);
                        }
                        ExchangeError::Unusable(token) if held.as_ref() != Some(token) => {
                            drop(refresher.revoker.revoke(&datahub, token.clone()));
                        }
                        _ => {}
                    }
                    return Err(error);
                }
            };
            let obtained = Obtained::new(&datahub, exchanged.tokens.clone(), held, refresher.revoker);
            // The ID token is as old as the answer, which may have taken `timeouts.token`.
            let now = SystemTime::now();
            let result = datahub.provider.identify(&exchanged, &nonce, now).await?;
            Ok((result, obtained))
        };
        let exchanged = self.tasks.run(move || async move { id.scope(pin!(exchange())).await });
        exchanged.await.unwrap_or(Err(ExchangeError::Ending))
    }
}
