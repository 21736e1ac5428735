//! What the login cookie holds: logins under way, and at which DataHUBs others have ended well.
//!
//! ```text
//! number of DataHUBs | each: id | flags (1) | ended_at (u32), if one has ended well | token, if there is one
//!   | each login, the oldest first, to the end: number of its DataHUB | created_at (u32) | state | nonce | verifier | return_to
//! ```
//!
//! Numbers, texts and tokens are those of [`crate::session::encoding`]. Times are seconds since 1970, big-endian. State, nonce
//! and verifier are what their base64url stands for, each behind its length. Browsers keep about 4,000 bytes, so there is an
//! order in which things are forgotten.

#![expect(clippy::disallowed_methods, reason = "what is encoded here is sealed next")]

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::CsrfToken;
use zeroize::Zeroizing;

use crate::datahub::token::{AccessToken, RefreshToken, SessionToken};
use crate::seal;
use crate::seal::cookie::Plaintext;
use crate::session::encoding::{Reader, put_number, put_text, put_token};

/// All of it. Each login's DataHUB is among the `datahubs`.
#[derive(Default)]
pub(super) struct LoginCookie {
    datahubs: Vec<AtDataHub>,
    /// The oldest first.
    logins: Vec<Login>,
}

/// One login under way.
pub(super) struct Login {
    pub(super) datahub: String,
    pub(super) created_at: SystemTime,
    /// As base64url, like the two below.
    pub(super) state: String,
    pub(super) nonce: String,
    pub(super) verifier: String,
    /// Empty for nowhere in particular.
    pub(super) return_to: String,
}

/// What is known of one DataHUB.
#[derive(Default)]
struct AtDataHub {
    id: String,
    /// When the last login there ended well.
    ended_at: Option<SystemTime>,
    /// The token of the session that the next login that ends well there takes the place of.
    replaces: Option<SessionToken>,
}

impl LoginCookie {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.datahubs.is_empty()
    }

    /// Adds the newest login. `replaces` belongs to the session that is there now; without one it stays what it was.
    pub(super) fn add(&mut self, login: Login, replaces: Option<&SessionToken>) {
        let datahub = self.datahub(&login.datahub);
        if replaces.is_some() {
            datahub.replaces = short(replaces);
        }
        self.logins.push(login);
    }

    /// Removes the login of this state; and the token of the session that it takes the place of.
    pub(super) fn remove(&mut self, state: &str) -> Option<(Login, Option<SessionToken>)> {
        let state = CsrfToken::new(state.to_owned());
        // openidconnect compares digests: no time tells a near miss.
        let at = self.logins.iter().position(|login| CsrfToken::new(login.state.clone()) == state)?;
        let login = self.logins.remove(at);
        let replaces = self.datahub(&login.datahub).replaces.clone();
        Some((login, replaces))
    }

    /// Notes that a login has ended well; `session` is the token of the session that it began.
    pub(super) fn record_success(&mut self, datahub: &str, session: Option<&SessionToken>, now: SystemTime) {
        let datahub = self.datahub(datahub);
        datahub.ended_at = Some(now);
        datahub.replaces = short(session);
    }

    /// Forgets how the last login at a DataHUB ended; false if nothing is known of it.
    pub(super) fn forget(&mut self, datahub: &str) -> bool {
        let known = self.datahubs.iter_mut().find(|other| other.id == datahub);
        known.map(|known| (known.ended_at, known.replaces) = (None, None)).is_some()
    }

    /// When the last login at a DataHUB ended well, if that is known.
    pub(super) fn ended_at(&self, datahub: &str) -> Option<SystemTime> {
        self.datahubs.iter().find(|other| other.id == datahub)?.ended_at
    }

    /// Forgets what is over: logins that take longer than `login_timeout`, logins that ended longer than `note_ttl` ago, and
    /// tokens that no login would take the place of. Then what does not fit.
    pub(super) fn tidy(&mut self, login_timeout: Duration, note_ttl: Duration, now: SystemTime) {
        self.logins.retain(|login| now < login.created_at + login_timeout);
        for datahub in &mut self.datahubs {
            datahub.ended_at = datahub.ended_at.filter(|ended_at| now < *ended_at + note_ttl);
        }
        let surplus = self.logins.len().saturating_sub(MAX_LOGINS);
        self.logins.drain(..surplus);
        self.forget_datahubs();
        while !self.fits() && self.forget_one() {
            self.forget_datahubs();
        }
    }

    /// Forgets what costs a person least: where a login leads if that is long to say and there are others, else a login that
    /// has ended, else the oldest login, but never the newest. False if there is no more to forget.
    fn forget_one(&mut self) -> bool {
        let others = self.logins.len().saturating_sub(1);
        let long = self.logins.iter_mut().find(|login| others > 0 && login.return_to.len() > LONG_RETURN_TO);
        if let Some(login) = long {
            login.return_to.clear();
            return true;
        }
        let is_idle = |datahub: &&mut AtDataHub| self.logins.iter().all(|login| login.datahub != datahub.id);
        let ended = self.datahubs.iter_mut().filter(is_idle).min_by_key(|datahub| datahub.ended_at);
        if let Some(datahub) = ended {
            datahub.ended_at = None;
            return true;
        }
        self.logins.drain(..others.min(1)).next().is_some()
    }

    /// Forgets the tokens of DataHUBs without a login under way, and those DataHUBs of which nothing is left to say.
    fn forget_datahubs(&mut self) {
        let logins = &self.logins;
        self.datahubs.retain_mut(|datahub| {
            let has_login = logins.iter().any(|login| login.datahub == datahub.id);
            datahub.replaces.take_if(|_| !has_login);
            has_login || datahub.ended_at.is_some()
        });
    }

    fn fits(&self) -> bool {
        seal::sealed_len(self.encode().len()) + MAX_SIGNATURE_BYTES <= MAX_VALUE_BYTES
    }

    fn datahub(&mut self, id: &str) -> &mut AtDataHub {
        let at = self.datahubs.iter().position(|datahub| datahub.id == id).unwrap_or_else(|| {
            self.datahubs.push(AtDataHub { id: id.to_owned(), ..AtDataHub::default() });
            self.datahubs.len() - 1
        });
        &mut self.datahubs[at]
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader::new(bytes);
        let text = |span| str::from_utf8(&bytes[span]).ok().map(str::to_owned);
        let mut datahubs = Vec::new();
        for _ in 0..rest.number()? {
            let (id, flags) = (text(rest.text()?)?, rest.byte()?);
            let ended_at = if flags & HAS_ENDED == 0 { None } else { Some(read_time(&mut rest, bytes)?) };
            let replaces = if flags & REPLACES == 0 { None } else { Some(read_token(&mut rest, bytes, flags)?) };
            datahubs.push(AtDataHub { id, ended_at, replaces });
        }
        let mut logins = Vec::new();
        while !rest.is_at_end() {
            let datahub = datahubs.get(usize::try_from(rest.number()?).ok()?)?.id.clone();
            let created_at = read_time(&mut rest, bytes)?;
            let mut random = || {
                let length = rest.number()?.try_into().ok()?;
                Some(URL_SAFE_NO_PAD.encode(&bytes[rest.take(length)?]))
            };
            let (state, nonce, verifier) = (random()?, random()?, random()?);
            logins.push(Login { datahub, created_at, state, nonce, verifier, return_to: text(rest.text()?)? });
        }
        Some(Self { datahubs, logins })
    }
}

/// Without what is in it: nonces and verifiers are nobody's to read.
impl fmt::Debug for LoginCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginCookie").finish_non_exhaustive()
    }
}

impl Plaintext for LoginCookie {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // One allocation that never moves, so that no copy of a token stays behind: what fits is shorter than this.
        let mut out = Zeroizing::new(Vec::with_capacity(2 * MAX_VALUE_BYTES));
        put_number(&mut out, self.datahubs.len() as u64);
        for AtDataHub { id, ended_at, replaces } in &self.datahubs {
            put_text(&mut out, id);
            let is_access = matches!(replaces, Some(SessionToken::Access(_)));
            let flags = [(HAS_ENDED, ended_at.is_some()), (REPLACES, replaces.is_some()), (IS_ACCESS, is_access)];
            out.push(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag).sum());
            if let Some(ended_at) = ended_at {
                put_time(&mut out, *ended_at);
            }
            if let Some(token) = replaces {
                put_token(&mut out, token.expose());
            }
        }
        for login in &self.logins {
            let number = self.datahubs.iter().position(|datahub| datahub.id == login.datahub);
            put_number(&mut out, number.expect("`add` and `forget_datahubs` see to it") as u64);
            put_time(&mut out, login.created_at);
            for random in [&login.state, &login.nonce, &login.verifier] {
                let bytes = URL_SAFE_NO_PAD.decode(random).expect("openidconnect's random texts are base64url");
                put_number(&mut out, bytes.len() as u64);
                out.extend_from_slice(&bytes);
            }
            put_text(&mut out, &login.return_to);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read(bytes).filter(|cookie| **cookie.encode() == *bytes)
    }
}

fn put_time(out: &mut Vec<u8>, time: SystemTime) {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    out.extend_from_slice(&u32::try_from(seconds).unwrap_or(u32::MAX).to_be_bytes());
}

fn read_time(rest: &mut Reader<'_>, bytes: &[u8]) -> Option<SystemTime> {
    let seconds = u32::from_be_bytes(bytes[rest.take(4)?].try_into().ok()?);
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()))
}

fn read_token(rest: &mut Reader<'_>, bytes: &[u8], flags: u8) -> Option<SessionToken> {
    let mut text = Vec::with_capacity(2 * bytes.len());
    rest.token()?.write(bytes, &mut text);
    let text = String::from_utf8(text).ok()?;
    match flags & IS_ACCESS {
        0 => RefreshToken::try_from(text).ok().map(SessionToken::Refresh),
        _ => AccessToken::try_from(text).ok().map(SessionToken::Access),
    }
}

/// A token that is not too long to be kept.
fn short(token: Option<&SessionToken>) -> Option<SessionToken> {
    token.filter(|token| token.expose().len() <= MAX_TOKEN_BYTES).cloned()
}

const HAS_ENDED: u8 = 1;
const REPLACES: u8 = 2;
const IS_ACCESS: u8 = 4;
/// How many logins one browser may have under way.
const MAX_LOGINS: usize = 16;
/// Longest value of the cookie, in bytes, sealed and signed: with name and attributes it stays below the 4,096 that browsers
/// must take (RFC 6265 section 6.1), and below actix-session's own 4,064.
const MAX_VALUE_BYTES: usize = 3_800;
/// Longest signature, in bytes. It is 44 signs of base64, of which each may be percent-encoded.
const MAX_SIGNATURE_BYTES: usize = 44 * 3;
/// A path that is longer, in bytes, is forgotten before a login is.
const LONG_RETURN_TO: usize = 256;
/// A token that is longer, in bytes, is not kept, and so not revoked; GitLab's have 64 characters.
const MAX_TOKEN_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_mins(15);
    const NOTE_TTL: Duration = Duration::from_mins(75);

    /// A login whose random texts are as long as openidconnect's.
    fn login(datahub: &str, number: u8, created_at: SystemTime, return_to: usize) -> Login {
        let random = |length| URL_SAFE_NO_PAD.encode(vec![number; length]);
        Login {
            datahub: datahub.to_owned(),
            created_at,
            state: random(16),
            nonce: random(16),
            verifier: random(32),
            return_to: "/".repeat(return_to),
        }
    }

    /// An access token if the text begins with an even letter.
    fn token(text: &str) -> SessionToken {
        let is_access = text.as_bytes()[0].is_multiple_of(2);
        let text = text.to_owned();
        if is_access {
            SessionToken::Access(text.try_into().expect("visible ASCII"))
        } else {
            SessionToken::Refresh(text.try_into().expect("visible ASCII"))
        }
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
    }

    fn states(cookie: &LoginCookie) -> Vec<u8> {
        cookie.logins.iter().map(|login| URL_SAFE_NO_PAD.decode(&login.state).expect("base64url")[0]).collect()
    }

    prop_compose! {
        fn any_cookie()(
            ids in proptest::collection::hash_set("[a-z0-9_-]{1,32}", 1..5),
            logins in proptest::collection::vec((any::<usize>(), any::<u8>(), any::<u32>(), 0..300_usize), 0..20),
            ended in proptest::collection::vec((any::<usize>(), any::<u32>()), 0..5),
            tokens in proptest::collection::vec((any::<usize>(), "[!-~]{1,256}|([0-9a-f]{2}){1,64}"), 0..5),
        ) -> LoginCookie {
            let ids: Vec<String> = ids.into_iter().collect();
            let id = |at: usize| &ids[at % ids.len()];
            let time = |seconds: u32| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
            let mut cookie = LoginCookie::default();
            for (at, number, created_at, return_to) in logins {
                cookie.add(login(id(at), number, time(created_at), return_to), None);
            }
            for (at, ended_at) in ended {
                cookie.datahub(id(at)).ended_at = Some(time(ended_at));
            }
            for (at, text) in tokens {
                cookie.datahub(id(at)).replaces = Some(token(&text));
            }
            cookie
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(cookie in any_cookie()) {
            let bytes = cookie.encode();
            let decoded = LoginCookie::decode(&bytes).expect("our own");
            prop_assert_eq!(&*decoded.encode(), &*bytes);
            prop_assert_eq!(states(&decoded), states(&cookie));
            for (one, other) in decoded.datahubs.iter().zip(&cookie.datahubs) {
                prop_assert_eq!((&one.id, one.ended_at, &one.replaces), (&other.id, other.ended_at, &other.replaces));
            }
        }

        #[test]
        fn whatever_decodes_is_its_own_encoding(
            cookie in any_cookie(),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3),
            length in any::<usize>(),
        ) {
            let mut altered = cookie.encode().to_vec();
            for (at, byte) in changes {
                let at = at % altered.len();
                altered[at] = byte;
            }
            altered.truncate(length % (altered.len() * 4));
            if let Some(decoded) = LoginCookie::decode(&altered) {
                prop_assert_eq!(&*decoded.encode(), &altered);
            }
        }

        #[test]
        fn whatever_is_in_it_it_fits_and_the_newest_login_stays(cookie in any_cookie(), return_to in 0..2_049_usize) {
            let mut cookie = cookie;
            cookie.add(login("newest", 7, start(), return_to), Some(&token(&"x".repeat(MAX_TOKEN_BYTES))));
            cookie.tidy(Duration::from_secs(u32::MAX.into()), Duration::from_secs(u32::MAX.into()), start());
            prop_assert!(cookie.fits() && cookie.logins.len() <= MAX_LOGINS);
            prop_assert_eq!(states(&cookie).pop(), Some(7));
        }
    }

    #[test]
    fn what_costs_least_is_forgotten_first() {
        let full = |paths: &[usize]| {
            let mut cookie = LoginCookie::default();
            cookie.record_success("elsewhere", None, start());
            for (number, path) in (1..).zip(paths) {
                cookie.add(login("a", number, start(), *path), None);
            }
            cookie.tidy(TIMEOUT, NOTE_TTL, start());
            let lengths: Vec<_> = cookie.logins.iter().map(|login| login.return_to.len()).collect();
            (lengths, cookie.ended_at("elsewhere").is_some())
        };
        for (case, paths, kept, is_noted) in [
            ("one long path has room", &[2_048][..], &[2_048][..], true),
            ("beside a few others, too", &[0, 100, 2_048], &[0, 100, 2_048], true),
            ("of two long ones the older is forgotten", &[0, 2_000, 2_000], &[0, 0, 2_000], true),
            ("a long path before a login", &[100; 13], &[100; 13], true),
            ("a long path before a note", &[&[100; 13][..], &[2_000]].concat(), &[&[100; 13][..], &[0]].concat(), true),
            ("a note before a login", &[225; 9], &[225; 9], false),
            (
                "the oldest login",
                &[200, 201, 202, 203, 204, 205, 206, 207, 208, 209],
                &[201, 202, 203, 204, 205, 206, 207, 208, 209],
                false,
            ),
        ] {
            assert_eq!(full(paths), (kept.to_vec(), is_noted), "{case}");
        }
    }

    #[test]
    fn sixteen_logins_of_a_browser_that_is_logged_in_fit_with_paths_of_eighty_bytes() {
        let mut cookie = LoginCookie::default();
        let datahubs = ["tuebingen", "freiburg", "plantmicrobe", "tuebingen_testenv", "dev"];
        for (number, id) in (1..=17).zip(datahubs.iter().cycle()) {
            cookie.record_success(id, None, start());
            cookie.add(login(id, number, start(), 64), Some(&token(&"0123456789abcdef".repeat(4))));
        }
        cookie.tidy(TIMEOUT, NOTE_TTL, start());
        assert_eq!(states(&cookie), (2..=17).collect::<Vec<_>>());
        assert!(cookie.datahubs.iter().all(|datahub| datahub.replaces.is_some() && datahub.ended_at.is_some()));
    }

    #[test]
    fn a_token_is_kept_while_a_login_may_take_the_place_of_its_session_and_no_longer() {
        let mut cookie = LoginCookie::default();
        let (first, second) = (token("first"), token("second"));
        for number in 1..=3 {
            cookie.add(login("a", number, start(), 0), (number == 1).then_some(&first));
        }
        let take = |cookie: &mut LoginCookie, number: u8, now| {
            let taken = cookie.remove(&login("a", number, start(), 0).state).map(|(_, replaces)| replaces);
            cookie.tidy(TIMEOUT, NOTE_TTL, now);
            taken
        };
        assert_eq!(take(&mut cookie, 9, start()), None, "another state");
        assert_eq!(take(&mut cookie, 1, start()), Some(Some(first.clone())));
        assert_eq!(take(&mut cookie, 1, start()), None, "once");
        cookie.record_success("a", Some(&second), start());
        assert_eq!(take(&mut cookie, 2, start()), Some(Some(second.clone())), "the newer one");
        cookie.record_success("a", Some(&token(&"x".repeat(MAX_TOKEN_BYTES + 1))), start());
        assert_eq!(cookie.datahub("a").replaces, None, "one that is too long");
        cookie.record_success("a", Some(&second), start());
        cookie.tidy(TIMEOUT, NOTE_TTL, start() + TIMEOUT - Duration::from_secs(1));
        assert_eq!(cookie.datahub("a").replaces, Some(second));
        cookie.tidy(TIMEOUT, NOTE_TTL, start() + TIMEOUT);
        assert_eq!((cookie.logins.len(), cookie.datahub("a").replaces.clone()), (0, None), "nobody would ask for it");
        assert_eq!(cookie.ended_at("a"), Some(start()));
        cookie.tidy(TIMEOUT, NOTE_TTL, start() + NOTE_TTL);
        assert!(cookie.is_empty(), "a note has its time, too");
    }

    #[test]
    fn no_debug_output_shows_what_is_in_it() {
        let mut cookie = LoginCookie::default();
        cookie.add(login("canary", 1, start(), 0), Some(&token("canary")));
        assert_eq!(format!("{cookie:?}"), "LoginCookie { .. }");
    }
}
