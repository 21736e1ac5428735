//! Cookie header → session: no bytes make it panic, and none but our own are a session.
//!
//! An input's first byte says what the others are: a Cookie field as it comes; a plaintext, sealed as only a holder of the
//! key could, to get behind the seal; or a change to a field that is good.

#![no_main]

use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use actix_web::http::Method;
use arcmanager_gateway::config::Config;
use arcmanager_gateway::context::{Client, RequestContext};
use arcmanager_gateway::datahub::DataHub;
use arcmanager_gateway::metrics::worker::WorkerMetrics;
use arcmanager_gateway::seal::cookie::{Plaintext, SealedCookie};
use arcmanager_gateway::seal::sealed_len;
use arcmanager_gateway::session::open_session::OpenSession;
use arcmanager_gateway::session::{Session, Sessions};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use zeroize::Zeroizing;

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 3 {
        0 => anything(rest),
        1 => plaintext(rest),
        _ => altered(rest),
    }
});

/// Nobody has the key: whatever these bytes are, they are no session.
fn anything(field: &[u8]) {
    assert!(GATEWAY.open(field).is_none());
    let keyring = &GATEWAY.config.keyring;
    assert!(keyring.unseal(&[b"a"], field).is_err());
    assert!(keyring.unseal(&[b"a"], URL_SAFE_NO_PAD.encode(field).as_bytes()).is_err());
}

/// One session has one encoding.
fn plaintext(bytes: &[u8]) {
    let value = GATEWAY.raw.seal(&GATEWAY.config.keyring, &SID, &Raw(bytes.to_vec()));
    let opened = GATEWAY.open(&field(&value));
    assert_eq!(opened, Session::decode(bytes));
    if let Some(session) = opened {
        assert_eq!(session.encode().as_slice(), bytes);
    }
    let keyring = &GATEWAY.config.keyring;
    let sealed = keyring.seal(&[b"a", b"b"], bytes);
    assert_eq!(sealed.len(), sealed_len(bytes.len()));
    assert_eq!(keyring.unseal(&[b"a", b"b"], sealed.as_bytes()).as_deref(), Ok(bytes));
    for other in [&[&b"a"[..]][..], &[b"a", b""], &[b"b", b"a"], &[b"a", b"b", b"c"]] {
        assert!(keyring.unseal(other, sealed.as_bytes()).is_err(), "for its own context only");
    }
}

/// A field that is cut, put together anew, or changed holds the same session or none.
fn altered(changes: &[u8]) {
    let value = GATEWAY.raw.seal(&GATEWAY.config.keyring, &SID, &Raw(GOOD.to_vec()));
    let mut field = field(&value);
    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % field.len();
        match change[2] % 4 {
            0 => field[at] = change[3],
            1 => field.insert(at, change[3]),
            2 => field.truncate(at.max(1)),
            _ if field.len() < 4_096 => field.extend_from_within(at..),
            _ => {}
        }
    }
    if let Some(session) = GATEWAY.open(&field) {
        assert_eq!(session.encode().as_slice(), GOOD);
    }
}

struct Gateway {
    config: Config,
    sessions: Sessions,
    raw: SealedCookie<Raw>,
}

thread_local! {
    static METRICS: Rc<WorkerMetrics> = WorkerMetrics::new([]);
}

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/gateway.toml");
    let config = Config::load(&[file.into()]).expect("a good configuration");
    assert!(Session::decode(GOOD).is_some(), "else no change to it would mean anything");
    let raw = SealedCookie::new("__Host-Http-session-a".into(), &config.server.public_url);
    Gateway { sessions: config.sessions(), raw, config }
});

impl Gateway {
    fn open(&self, field: &[u8]) -> Option<Session> {
        let fields = || std::iter::once(field);
        let datahub: &DataHub = self.config.datahubs.by_id("a").expect("it is configured");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_300_000);
        let client = Client { address: None, is_local: false };
        let context = RequestContext::new(Method::GET, client, METRICS.with(Rc::clone));
        let opened = self.sessions.open(fields(), datahub, &context, now).ok().map(|(_, session)| session.decode());
        let inspected = self.sessions.inspect(fields(), datahub).ok().map(|(_, session)| agreed(&session));
        // Operators see those that have ended, too.
        assert!(opened.is_none() || opened == inspected);
        inspected
    }
}

/// All of an opened session, which says the same where it lies.
fn agreed(open: &OpenSession) -> Session {
    let session = open.decode();
    let tokens = &session.tokens;
    assert_eq!((open.created_at(), open.ends_at()), (session.created_at, session.ends_at()));
    assert_eq!((open.token_expires_at(), open.can_refresh()), (tokens.expires_at(), tokens.refresh.is_some()));
    assert_eq!(open.user_id(&mut [0; 20]), session.user.id.as_bytes());
    let mut bearer = b"Bearer ".to_vec();
    open.write_bearer(&mut bearer);
    assert_eq!(bearer, tokens.access.bearer().as_bytes());
    session
}

/// Any bytes where a session should be.
struct Raw(Vec<u8>);

impl Plaintext for Raw {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.clone())
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.to_vec()))
    }
}

fn field(value: &str) -> Vec<u8> {
    let sid = URL_SAFE_NO_PAD.encode(SID);
    format!("a=b; __Host-Http-session-a={value}; __Host-Http-sid-a={sid}").into_bytes()
}

const SID: [u8; 16] = [7; 16];
/// A session, packed: tokens `abcd` and `xyz` of user 7.
const GOOD: &[u8] = b"\x03\x6a\xfd\x83\x80\x00\xa0\x38\x80\xf5\x24\x80\xa3\x05\x07\x04user\x00\x05\xab\xcd\x06xyz";
