//! A session where its cookie was decrypted: what a forwarded call needs of it, without copying the rest.
//!
//! Its tokens exist once, in the buffer that the cookie was decoded into; the buffer is wiped when this is dropped.

use std::time::{Duration, SystemTime};

use crate::seal::Unsealed;
use crate::session::Session;
use crate::session::encoding::{EncodedFields, UserId, user_key};

/// A session that has been opened for one call. It refuses whatever [`Session`] refuses to decode.
#[derive(Debug)]
pub struct OpenSession {
    plaintext: Unsealed,
    fields: EncodedFields,
}

impl OpenSession {
    /// The session that `plaintext` is the encoding of.
    pub fn read(plaintext: Unsealed) -> Option<Self> {
        EncodedFields::read(&plaintext).map(|fields| Self { plaintext, fields })
    }

    /// When the login was.
    pub fn created_at(&self) -> SystemTime {
        self.fields.created_at
    }

    /// As [`Session::ends_at`].
    pub fn ends_at(&self) -> SystemTime {
        self.fields.expires_at.min(self.fields.idle_expires_at)
    }

    /// When the tokens were asked for: they are no older.
    pub fn token_issued_at(&self) -> SystemTime {
        self.fields.issued
    }

    /// How long the access token lives.
    pub fn token_lifetime(&self) -> Duration {
        self.fields.lifetime
    }

    /// When the access token ends.
    pub fn token_expires_at(&self) -> SystemTime {
        self.fields.issued + self.fields.lifetime
    }

    /// Whether there is a refresh token.
    pub fn can_refresh(&self) -> bool {
        self.fields.refresh.is_some()
    }

    /// The [`filter_hash`](crate::datahub::token::filter_hash) of the token that the session is known by.
    pub fn filter_hash(&self) -> u64 {
        self.fields.refresh.as_ref().unwrap_or(&self.fields.access).filter_hash(&self.plaintext)
    }

    /// Whether the access token has less than `ahead` left, or less than a quarter of its life if that is shorter. One
    /// that cannot be renewed serves to its end.
    pub fn is_stale_at(&self, now: SystemTime, ahead: Duration) -> bool {
        let ahead = if self.can_refresh() { ahead.min(self.token_lifetime() / 4) } else { Duration::ZERO };
        now + ahead >= self.token_expires_at()
    }

    /// The user's id, as text. `digits` is room for that of a number.
    pub fn user_id<'a>(&'a self, digits: &'a mut [u8; 20]) -> &'a [u8] {
        let mut number = match &self.fields.user_id {
            UserId::Text(span) => return &self.plaintext[span.clone()],
            UserId::Number(number) => *number,
        };
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + u8::try_from(number % 10).expect("a digit");
            number /= 10;
            if number == 0 {
                return &digits[start..];
            }
        }
    }

    /// A number that tells the people of one DataHUB apart: their id, or a hash of one that is no number.
    pub fn user_key(&self) -> u64 {
        match &self.fields.user_id {
            UserId::Number(number) => *number,
            UserId::Text(span) => user_key(&self.plaintext[span.clone()]),
        }
    }

    /// Appends the access token: what follows `Authorization: Bearer `. It is visible ASCII.
    pub fn write_bearer(&self, out: &mut Vec<u8>) {
        self.fields.access.write(&self.plaintext, out);
    }

    /// All of it, copied, for the calls that renew or end it.
    pub fn decode(&self) -> Session {
        self.fields.session(&self.plaintext)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::cookie::Plaintext;
    use crate::seal::{Key, Keyring};
    use crate::session::encoding::tests::any_session;

    proptest! {
        #[test]
        fn what_is_read_in_place_is_what_is_decoded(session in any_session()) {
            let open = open(&session.encode()).expect("the encoding of a session");
            prop_assert_eq!(&open.decode(), &session);
            prop_assert_eq!((open.created_at(), open.ends_at()), (session.created_at, session.ends_at()));
            let tokens = &session.tokens;
            prop_assert_eq!((open.token_issued_at(), open.token_lifetime()), (tokens.issued, tokens.lifetime));
            prop_assert_eq!(open.token_expires_at(), tokens.expires_at());
            prop_assert_eq!(open.can_refresh(), tokens.refresh.is_some());
            prop_assert_eq!(open.filter_hash(), tokens.session_token().filter_hash());
            let mut digits = [0; 20];
            prop_assert_eq!(open.user_id(&mut digits), session.user.id.as_bytes());
            prop_assert_eq!(open.user_key(), session.user_key());
            let mut bearer = b"Authorization: Bearer ".to_vec();
            open.write_bearer(&mut bearer);
            let expected = tokens.access.bearer();
            prop_assert_eq!(&bearer["Authorization: ".len()..], expected.as_bytes());
        }

        #[test]
        fn it_opens_if_and_only_if_it_decodes(
            bytes in any_session().prop_map(|session| session.encode().to_vec()),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..3),
            length in any::<usize>(),
        ) {
            let mut altered = bytes;
            for (at, byte) in changes {
                let at = at % altered.len();
                altered[at] = byte;
            }
            // Cut in one case of four.
            altered.truncate(length % (altered.len() * 4));
            prop_assert_eq!(open(&altered).map(|open| open.decode()), Session::decode(&altered));
        }
    }

    /// Of the user with this id.
    fn session(id: &str) -> OpenSession {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let tree = any_session().new_tree(&mut runner).expect("a session");
        let mut session = proptest::strategy::ValueTree::current(&tree);
        session.user.id = id.to_owned();
        open(&session.encode()).expect("the encoding of a session")
    }

    #[test]
    fn people_are_told_apart_by_their_ids_alone() {
        let keys: std::collections::BTreeSet<_> =
            ["0", "7", "07", "", "a", "b"].into_iter().map(|id| session(id).user_key()).collect();
        assert_eq!(keys.len(), 6);
        assert_eq!((session("7").user_key(), session("a").user_key()), (7, session("a").user_key()));
    }

    #[test]
    fn the_longest_number_has_room_for_its_digits() {
        for id in ["0", "7", "10", "18446744073709551615", "18446744073709551616", "007", "", "a"] {
            assert_eq!(session(id).user_id(&mut [0; 20]), id.as_bytes());
        }
    }

    #[test]
    fn no_debug_output_shows_a_token() {
        // Tokens `canary` and `xyz` of user 7.
        let bytes = b"\x03\x6a\xfd\x83\x80\x00\xa0\x38\x80\xf5\x24\x80\xa3\x05\x07\x04user\x00\x0ccanary\x06xyz";
        let shown = format!("{:?}", open(bytes).expect("a session"));
        assert!(!shown.contains("canary") && !shown.contains(&format!("{:?}", b"canary")), "{shown}");
    }

    pub(in crate::session) fn open(plaintext: &[u8]) -> Option<OpenSession> {
        let keyring = Keyring::new(vec![Key::generate().parse().expect("a generated key")]).expect("one key");
        OpenSession::read(keyring.unseal(&[], keyring.seal(&[], plaintext).as_bytes()).expect("our own text"))
    }
}
