//! A DataHUB behind TLS: nothing is said to it before its certificate is right.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::browser::Browser;
use crate::gateway::{Setup, datahub, new_key, run};

/// Who vouches for certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    pub fn new() -> Self {
        Self::called("an authority")
    }

    fn called(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("its own signature");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// It, in PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for `name` in the years from `since` up to `until`.
    pub fn certify(
        &self,
        name: &str,
        since: i32,
        until: i32,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (date_time_ymd(since, 1, 1), date_time_ymd(until, 1, 1));
        let certificate = params.signed_by(&key, &self.issuer).expect("the authority's signature");
        (vec![certificate.into()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }
}

/// What is at the port.
#[derive(Clone)]
pub enum Far {
    Tls(Arc<ServerConfig>),
    /// These bytes, whatever is said.
    Raw(&'static [u8]),
}

impl Far {
    /// TLS with this certificate, in these versions.
    pub fn tls(
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
        let config = config.expect("known versions").with_no_client_auth().with_single_cert(chain, key);
        Self::Tls(Arc::new(config.expect("a certificate and its key")))
    }
}

/// Answers each request, and counts them.
pub fn listen(far: Far) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that ends at its handshake is what most tests are about.
            let _ = serve(stream, &far, &count);
        }
    });
    (address, heard)
}

fn serve(mut stream: TcpStream, far: &Far, asked: &AtomicUsize) -> std::io::Result<()> {
    let config = match far {
        Far::Tls(config) => Arc::clone(config),
        Far::Raw(bytes) => {
            let read = stream.read(&mut [0; 4096])?;
            assert!(read > 0, "a hello");
            return stream.write_all(bytes);
        }
    };
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut secure = StreamOwned::new(connection, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        secure.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    asked.fetch_add(1, Ordering::Relaxed);
    secure.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")?;
    secure.conn.send_close_notify();
    secure.flush()
}

/// PQ-17.
#[test]
fn a_certificate_must_be_right_before_a_byte_is_said() {
    let (hub, key) = (datahub(), new_key());
    let browser = Browser::default();
    let logged_in_at = Setup::with_keys(&[("a", &hub)], &[&key]).start();
    browser.log_in(&logged_in_at, "a", &hub, "testuser");

    let (authority, other) = (Authority::new(), Authority::new());
    let own = KeyPair::generate().expect("a key");
    let alone = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name").self_signed(&own);
    let alone = (vec![alone.expect("its own signature").into()], PrivateKeyDer::Pkcs8(own.serialize_der().into()));
    let new = &[&rustls::version::TLS13][..];
    let old = &[&rustls::version::TLS12][..];
    // RFC 2246 section 7.4.1.3: a ServerHello that chooses TLS 1.0.
    let ancient = b"\x16\x03\x01\x00\x2a\x02\x00\x00\x26\x03\x01\
        ................................\x00\x00\x2f\x00";
    let cases = Mutex::new(Vec::new());
    let case = |name, far, is_taken| cases.lock().expect("no panic while held").push((name, far, is_taken));
    case("as it should be", Far::tls(authority.certify("localhost", 2020, 2050), new), true);
    case("TLS 1.2", Far::tls(authority.certify("localhost", 2020, 2050), old), true);
    case("another name", Far::tls(authority.certify("elsewhere.example", 2020, 2050), new), false);
    case("a name above", Far::tls(authority.certify("*.localhost", 2020, 2050), new), false);
    case("over", Far::tls(authority.certify("localhost", 2010, 2020), new), false);
    case("not yet begun", Far::tls(authority.certify("localhost", 2050, 2060), new), false);
    case("another authority", Far::tls(other.certify("localhost", 2020, 2050), new), false);
    case("its own authority", Far::tls(alone, new), false);
    case("TLS 1.0", Far::Raw(ancient), false);
    case("no TLS", Far::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), false);
    for (name, far, is_taken) in cases.into_inner().expect("no panic while held") {
        let (address, heard) = listen(far);
        let url = format!("https://localhost:{}", address.port());
        let setup = Setup::with_keys(&[("a", &hub)], &[&key]).at(hub.url(), &url);
        let ca_file = setup.file("ca.pem", &authority.pem());
        let gateway =
            setup.and(&format!("datahubs.a.connect = \"{address}\"\ndatahubs.a.ca_file = {ca_file:?}")).start();
        let answer = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
        if is_taken {
            assert_eq!((answer.status, heard.load(Ordering::Relaxed)), (200, 1), "{name}: {}", answer.text());
        } else {
            assert_eq!((answer.status, answer.code().as_str()), (502, "datahub_unreachable"), "{name}");
            assert_eq!(heard.load(Ordering::Relaxed), 0, "{name}: something was said");
            gateway.wait_for_event("datahub_tls_failed");
        }
    }
}

/// A certificate of a chain that is wrong in one way.
fn certificate(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Chain {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2050, 1, 1));
    change(&mut params);
    let certificate = params.signed_by(&key, &authority.issuer).expect("the authority's signature");
    (vec![certificate.into()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn tls13(chain: Chain) -> Far {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.expect("known versions").with_no_client_auth().with_single_cert(chain.0, chain.1);
    Far::Tls(Arc::new(config.expect("a certificate and its key")))
}

/// Each in words for whoever looks after the gateway, none in those of a library.
#[test]
fn what_is_wrong_with_a_certificate_is_a_sentence_with_what_to_do() {
    let hub = datahub();
    let (authority, other) = (Authority::new(), Authority::new());
    let own = KeyPair::generate().expect("a key");
    let mut alone = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    alone.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let alone = alone.self_signed(&own).expect("its own signature");
    let alone_pem = alone.pem();
    let alone = (vec![alone.into()], PrivateKeyDer::Pkcs8(own.serialize_der().into()));
    let of_authority = |change: fn(&mut CertificateParams)| tls13(certificate(&authority, change));
    let ancient = b"\x16\x03\x01\x00\x2a\x02\x00\x00\x26\x03\x01................................\x00\x00\x2f\x00";
    for (case, far, ca, told) in [
        (
            "an authority's",
            of_authority(|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            None,
            "its certificate is an authority's (CA:TRUE)",
        ),
        ("its own authority", tls13(alone), Some(alone_pem), "its certificate is an authority's (CA:TRUE)"),
        (
            "over",
            of_authority(|it| it.not_after = date_time_ymd(2021, 2, 3)),
            None,
            "its certificate has expired, on 2021-02-03: renew it there",
        ),
        (
            "not yet begun",
            of_authority(|it| it.not_before = date_time_ymd(2049, 2, 3)),
            None,
            "its certificate is not valid before 2049-02-03: see to this machine's clock",
        ),
        (
            "another name",
            tls13(authority.certify("elsewhere.example", 2020, 2050)),
            None,
            "its certificate is not for localhost but for elsewhere.example: write url",
        ),
        (
            "an authority of the same name",
            tls13(other.certify("localhost", 2020, 2050)),
            None,
            "its certificate is not signed by the authority that it names: see that ca_file",
        ),
        (
            "another authority",
            tls13(Authority::called("another").certify("localhost", 2020, 2050)),
            None,
            "nobody known vouches for its certificate: let ca_file name",
        ),
        (
            "for clients",
            of_authority(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            None,
            "its certificate is not for servers",
        ),
        ("no TLS", Far::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None, "what answers there speaks no TLS"),
        ("TLS 1.0", Far::Raw(ancient), None, "it speaks TLS older than 1.2"),
        ("silence", Far::Raw(b""), None, "it ended the connection before TLS had begun"),
    ] {
        let (address, _) = listen(far);
        let setup = Setup::new(&[("a", &hub)]).at(hub.url(), &format!("https://localhost:{}", address.port()));
        let ca_file = setup.file("ca.pem", &ca.unwrap_or_else(|| authority.certificate.pem()));
        let setup = setup.and(&format!("datahubs.a.connect = \"{address}\"\ndatahubs.a.ca_file = {ca_file:?}"));
        let output = run(&["check", "--config", setup.write().to_str().expect("a plain path")], &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with("a: cannot fetch the metadata")).expect(case);
        assert!(output.status.code() == Some(1) && line.contains(&format!(": {told}")), "{case}: {line}");
        assert!(!line.contains("Error") && !line.contains("peer certificate"), "{case}: {line}");
    }
}
