//! What is wrong with the TLS at a far end, in a sentence, and what to do about it.
//!
//! The words of the library are for whoever writes one. A certificate's own text is told as far as it is names, since whoever
//! answers chose it.

use std::io;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// The sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TlsError(String);

/// The same error in words for people, if it is one of TLS. What was reached through a `proxy` may be the proxy itself.
pub(super) fn explain(error: io::Error, proxy: Option<&str>) -> io::Error {
    let through = proxy.map(|proxy| {
        format!(
            " (it was reached through {proxy}, which may answer in its place: see that this proxy lets CONNECT through)"
        )
    });
    let told = |text: String| text + through.as_deref().unwrap_or_default();
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(Error::InvalidMessage(_)) if proxy.is_some() => {
            let what = "what answers there speaks no TLS: see that the port is that of https";
            io::Error::new(error.kind(), TlsError(told(what.to_owned())))
        }
        Some(tls) => io::Error::new(error.kind(), TlsError(told(sentence(tls)))),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            let what = "it ended the connection before TLS had begun: see that TLS is spoken there";
            io::Error::new(error.kind(), told(what.to_owned()))
        }
        None => error,
    }
}

fn sentence(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidMessage(_) => {
            "what answers there speaks no TLS: see that the port is that of https, or write http:// for a port of this machine"
                .to_owned()
        }
        Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        )
        | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "it speaks TLS older than 1.2: let it speak 1.2 or 1.3".to_owned()
        }
        Error::PeerIncompatible(_)
        | Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity) => {
            "it has no TLS cipher, key exchange or signature in common with the gateway: let it speak TLS 1.3, or 1.2 with \
             ECDHE and AES-GCM"
                .to_owned()
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "it knows no host of this name: see that url is the name that its certificate is for".to_owned()
        }
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate | AlertDescription::BadCertificate,
        ) => "it asks for a certificate of the gateway's own, which has none: let it take clients without one".to_owned(),
        Error::AlertReceived(alert) => format!("it broke off TLS (alert {alert:?}): see its own log"),
        Error::NoCertificatesPresented => "it shows no certificate: see its own configuration".to_owned(),
        Error::PeerMisbehaved(_) | Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "what answers there does not keep to TLS: see what stands between".to_owned()
        }
        error => error.to_string(),
    }
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate has expired, on {}: renew it there, or see to this machine's clock", day(*not_after))
        }
        CertificateError::Expired => "its certificate has expired: renew it there, or see to this machine's clock".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}: see to this machine's clock", day(*not_before))
        }
        CertificateError::NotValidYet => "its certificate is not valid yet: see to this machine's clock".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let (expected, names) = (expected.to_str(), names(presented));
            format!("its certificate is not for {expected} but for {names}: write url with a name that it is for")
        }
        CertificateError::NotValidForName => {
            "its certificate is for another name: write url with a name that it is for".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "nobody known vouches for its certificate: let ca_file name the certificate (PEM) of the authority that has signed \
             it, and see that the server sends the authorities between, too"
                .to_owned()
        }
        CertificateError::BadSignature => {
            "its certificate is not signed by the authority that it names: see that ca_file holds that authority's newest one"
                .to_owned()
        }
        CertificateError::Revoked => "its certificate has been revoked: make a new one there".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers: make one there for the purpose serverAuth".to_owned()
        }
        CertificateError::BadEncoding => "its certificate cannot be read: make a new one there".to_owned(),
        CertificateError::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is not known here: make one there without".to_owned()
        }
        // Debug is the only text that it has.
        CertificateError::Other(other) => by_word(&format!("{other:?}")),
        _ => "its certificate is signed in a way that is not taken: make one there with RSA (2048 bits or more, SHA-256) or \
              ECDSA (P-256 or P-384)"
            .to_owned(),
    }
}

/// Of those that the library only has a word for, which webpki made up.
fn by_word(text: &str) -> String {
    let told = [
        (
            "CaUsedAsEndEntity",
            "its certificate is an authority's (CA:TRUE), and a server must not use one: make one for the server there, signed by \
             that authority, and let ca_file name the authority's",
        ),
        (
            "EndEntityUsedAsCa",
            "its certificate is signed by one that is no authority's (CA:FALSE): make one there that an authority has signed",
        ),
        (
            "NameConstraint",
            "the authority of its certificate may not sign for this name: make one there by another authority",
        ),
        (
            "PathLen",
            "the authority of its certificate may not have others below it: make one there by another authority",
        ),
        (
            "PathDepth",
            "too many authorities stand between its certificate and one that is known: make a shorter chain there",
        ),
        ("UnsupportedCertVersion", "its certificate is not of X.509 version 3: make a new one there"),
    ];
    match told.into_iter().find(|(word, _)| text.contains(word)) {
        Some((_, sentence)) => sentence.to_owned(),
        None => "its certificate, or one above it, is malformed: make a new one there, by `openssl verify` or another tool that \
                 says what is wrong"
            .to_owned(),
    }
}

fn day(time: UnixTime) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs().min(LAST_TIME));
    humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned()
}

/// The first few names of a certificate, which the library writes such as `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let name = name.split_once('(').map_or(name.as_str(), |(_, rest)| rest.trim_end_matches(')')).trim_matches('"');
        name.chars().filter(char::is_ascii_graphic).take(MAX_NAME_CHARS).collect::<String>()
    };
    match presented {
        [] => "no name at all".to_owned(),
        names => names.iter().take(MAX_NAMES).map(bare).collect::<Vec<_>>().join(", "),
    }
}

/// How much of a certificate's names is told.
const MAX_NAMES: usize = 4;
const MAX_NAME_CHARS: usize = 80;
/// The last second of the year 9999, in seconds since 1970: later ones cannot be written.
const LAST_TIME: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use rustls::{InvalidMessage, OtherError};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("a word")]
    enum Word {
        CaUsedAsEndEntity,
        EndEntityUsedAsCa,
        Unheard,
    }

    #[test]
    fn whatever_is_wrong_with_tls_is_a_sentence_with_what_to_do() {
        let other = |word| Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(word))));
        let late = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
        let expired = CertificateError::ExpiredContext { time: late, not_after: late };
        let name = CertificateError::NotValidForNameContext {
            expected: "a.example".try_into().expect("a name"),
            presented: vec!["DnsName(\"b.example\")".to_owned(), "x\n".repeat(1000)],
        };
        for (error, told) in [
            (other(Word::CaUsedAsEndEntity), "its certificate is an authority's (CA:TRUE)"),
            (other(Word::EndEntityUsedAsCa), "its certificate is signed by one that is no authority's"),
            (other(Word::Unheard), "its certificate, or one above it, is malformed"),
            (expired.into(), "its certificate has expired, on 9999-12-31: renew"),
            (name.into(), "its certificate is not for a.example but for b.example, xxxx"),
            (CertificateError::UnknownIssuer.into(), "nobody known vouches for its certificate: let ca_file name"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "what answers there speaks no TLS"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "it speaks TLS older than 1.2"),
        ] {
            let error = explain(io::Error::new(io::ErrorKind::InvalidData, error), None);
            let text = error.to_string();
            assert!(text.starts_with(told) && text.len() < 400 && !text.contains('\n'), "{told}: {text}");
            assert!(error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<TlsError>), "{told}");
        }
        let plain = explain(io::ErrorKind::ConnectionReset.into(), None);
        assert_eq!(plain.kind(), io::ErrorKind::ConnectionReset);
    }
}
