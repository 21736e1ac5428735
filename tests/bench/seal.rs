//! What sealing and opening a session costs: beside AES-256-GCM with its key schedule cached, and beside the way of the
//! Python original (an RS256 token around two Fernet tokens).
//!
//! Everything is measured by turns in one process, so that the ratios mean something on a machine that does other things
//! too; times are medians over the turns.

use std::hint::black_box;
use std::io::{self, Write};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use arcmanager_gateway::bridge::data_cookie::{DataCookieKeys, FernetKey, JwtKey};
use arcmanager_gateway::datahub::oidc::User;
use arcmanager_gateway::datahub::token::TokenSet;
use arcmanager_gateway::seal::cookie::{Plaintext, SealedCookie};
use arcmanager_gateway::seal::{Key, Keyring};
use arcmanager_gateway::session::Session;
use arcmanager_gateway::session::open_session::OpenSession;

fn main() -> io::Result<()> {
    let session = session();
    let plaintext = session.encode();
    let text = Key::generate();
    let ring = Keyring::new(vec![key(&text)]).expect("one key");
    let crowded = (0..49).map(|_| key(&Key::generate())).chain([key(&text)]).collect();
    let crowded = Keyring::new(crowded).expect("50 keys");
    let cookie = SealedCookie::<Session>::new("__Host-Http-session-tuebingen".into(), "https://app.example.org");
    let sid = [7; 16];
    let value = cookie.seal(&ring, &sid, &session);
    let mut altered = value.clone().into_bytes();
    altered[100] = if altered[100] == b'A' { b'B' } else { b'A' };

    let (xaes, gcm) = (key(&text), Aes256Gcm::new(&[9; 32].into()));
    let (nonce, short_nonce, additional_data) = ([3; 24], [3; 12], [5; 70]);
    let mut buffer = plaintext.to_vec();
    let xaes_tag = xaes.seal(&nonce, &additional_data, &mut buffer);
    let xaes_sealed = buffer.clone();
    buffer.copy_from_slice(&plaintext);
    let gcm_tag = gcm.encrypt_inout_detached(&short_nonce.into(), &additional_data, buffer.as_mut_slice().into());
    let gcm_tag = gcm_tag.expect("it is short");
    let gcm_sealed = buffer.clone();

    let opened = ring.unseal(&[], ring.seal(&[], &plaintext).as_bytes()).expect("our own text");
    let opened = OpenSession::read(opened).expect("the encoding of a session");
    let (pem, fernet) = (include_bytes!("../datahub/keys/first.pem"), "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=");
    let jwt = JwtKey::from_pem(pem).expect("an RSA key of 2048 bits");
    let keys = DataCookieKeys::new(jwt, FernetKey::parse(fernet).expect("a Fernet key"));
    let datahub = "tuebingen".parse().expect("an id");

    let [mut one, mut two, mut three, mut four] = [(); 4].map(|()| buffer.clone());
    let mut turns = [
        Turn::new("cookie value to open session", || {
            black_box(cookie.unseal_as(&ring, &sid, black_box(value.as_bytes()), OpenSession::read).is_ok());
        }),
        Turn::new("session to cookie value", || {
            black_box(cookie.seal(&ring, &sid, black_box(&session)));
        }),
        Turn::new("the same, the last of 50 keys", || {
            black_box(cookie.unseal_as(&crowded, &sid, black_box(value.as_bytes()), OpenSession::read).is_ok());
        }),
        Turn::new("an altered value, 50 keys", || {
            black_box(cookie.unseal_as(&crowded, &sid, black_box(&altered), OpenSession::read).is_err());
        }),
        Turn::new("cookie value to session, decoded", || {
            black_box(cookie.unseal(&ring, &sid, black_box(value.as_bytes())).is_ok());
        }),
        Turn::new("XAES-256-GCM open", || {
            one.copy_from_slice(&xaes_sealed);
            black_box(xaes.unseal(&nonce, &additional_data, &mut one, &xaes_tag).is_ok());
        }),
        Turn::new("AES-256-GCM open, schedule cached", || {
            two.copy_from_slice(&gcm_sealed);
            let buffer = two.as_mut_slice().into();
            black_box(gcm.decrypt_inout_detached(&short_nonce.into(), &additional_data, buffer, &gcm_tag).is_ok());
        }),
        Turn::new("XAES-256-GCM seal", || {
            three.copy_from_slice(&plaintext);
            black_box(xaes.seal(&nonce, &additional_data, &mut three));
        }),
        Turn::new("AES-256-GCM seal, schedule cached", || {
            four.copy_from_slice(&plaintext);
            let buffer = four.as_mut_slice().into();
            black_box(gcm.encrypt_inout_detached(&short_nonce.into(), &additional_data, buffer).is_ok());
        }),
        Turn {
            repeats: 10,
            ..Turn::new("session to the old backend's cookie", || {
                black_box(keys.mint(&opened, &datahub, SystemTime::now()));
            })
        },
    ];
    for _ in 0..TURNS {
        turns.iter_mut().for_each(Turn::run);
    }

    let mut out = io::stdout();
    writeln!(
        out,
        "a session of {} bytes, a cookie value of {}; medians of {TURNS} turns",
        plaintext.len(),
        value.len()
    )?;
    for turn in &turns {
        let nanoseconds = turn.median();
        let bytes = f64::from(u16::try_from(plaintext.len()).expect("a cookie is short"));
        let megabytes = bytes * 1e3 / nanoseconds;
        writeln!(out, "{:35} {nanoseconds:9.0} ns {megabytes:8.1} MB/s", turn.name)?;
    }
    let ratio = |a: usize, b: usize| turns[a].median() / turns[b].median();
    writeln!(out, "opening by XAES / by AES-256-GCM      {:.2} (goal: at most 2.5)", ratio(5, 6))?;
    writeln!(out, "sealing by XAES / by AES-256-GCM      {:.2}", ratio(7, 8))?;
    writeln!(out, "50 keys / one key                     {:.2}", ratio(2, 0))?;
    writeln!(out, "altered / good, 50 keys               {:.2}", ratio(3, 2))?;

    let original = Command::new("/usr/bin/python3").arg("tests/bench/original.py").output()?;
    if !original.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&original.stderr).into_owned()));
    }
    let told = String::from_utf8_lossy(&original.stdout);
    let mut numbers = told.split_whitespace().map(|word| word.parse::<f64>().expect("numbers alone"));
    for (name, at) in [("opening", 0), ("sealing", 1)] {
        let nanoseconds = numbers.next().expect("a number each");
        let ratio = nanoseconds / turns[at].median();
        writeln!(out, "{name} the original's way          {nanoseconds:9.0} ns, {ratio:.0} times ours")?;
    }
    let length = numbers.next().expect("a number each");
    writeln!(out, "the original's cookie value of the same tokens: {length} bytes")
}

/// Something to measure, by turns with others.
struct Turn<'a> {
    name: &'static str,
    work: Box<dyn FnMut() + 'a>,
    /// How often in one turn.
    repeats: u32,
    times: Vec<Duration>,
}

impl<'a> Turn<'a> {
    fn new(name: &'static str, work: impl FnMut() + 'a) -> Self {
        Self { name, work: Box::new(work), repeats: REPEATS, times: Vec::with_capacity(TURNS) }
    }

    fn run(&mut self) {
        let started = Instant::now();
        for _ in 0..self.repeats {
            (self.work)();
        }
        self.times.push(started.elapsed());
    }

    /// Of one piece of work, in nanoseconds.
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e9 / f64::from(self.repeats)
    }
}

fn key(text: &str) -> Key {
    text.parse().expect("a generated key")
}

/// GitLab's tokens, a usual name.
fn session() -> Session {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let token = |digits: &str| digits.repeat(8);
    Session {
        created_at: at(1_795_000_000),
        expires_at: at(1_795_604_800),
        idle_expires_at: at(1_795_386_400),
        user: User { id: "1234567".into(), username: "testuser".into(), name: "Test Usr".into() },
        scopes: None,
        tokens: TokenSet {
            access: token("0a1b2c3d").try_into().expect("visible ASCII"),
            refresh: Some(token("4e5f6071").try_into().expect("visible ASCII")),
            issued: at(1_795_300_000),
            lifetime: Duration::from_hours(2),
        },
        is_personal: false,
    }
}

const TURNS: usize = 200;
const REPEATS: u32 = 1_000;
