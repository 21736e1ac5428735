//! What a DataHUB tells of its tokens and of its load.

use std::time::Duration;

use datahub::behaviour::{Answer, RefreshMode};

use crate::client::{form, hub, refresh, sign_in, text};

#[test]
fn a_pair_lives_until_it_is_spent_or_revoked() {
    for mode in [RefreshMode::RevokeAtOnce, RefreshMode::RevokeOnUse] {
        let hub = hub();
        hub.set(|behaviour| behaviour.refresh = mode);
        let books = hub.books();
        let live = || {
            let live: Vec<_> = books.live_tokens().into_iter().map(|token| (token.user, token.serial)).collect();
            live
        };
        let name = |user: &str, serial| (user.to_owned(), serial);
        let first = sign_in(&hub, "testuser");
        sign_in(&hub, "joerg");
        assert_eq!(live(), [name("testuser", 1), name("joerg", 2)]);
        let second = refresh(&hub, &text(&first, "refresh_token")).json();
        assert_eq!(live(), [name("joerg", 2), name("testuser", 3)], "{mode:?}");
        assert_eq!(books.live_tokens()[1].access_token, text(&second, "access_token"));
        assert_eq!(books.live_tokens()[1].refresh_token, Some(text(&second, "refresh_token")));
        hub.expire_access_tokens();
        assert_eq!(live().len(), 2, "both can be refreshed");
        let (id, secret) = (hub.client_id(), hub.client_secret());
        let body = format!("client_id={id}&client_secret={secret}&token={}", text(&second, "refresh_token"));
        assert_eq!(form(&hub, "/oauth/revoke", "", &body).status, 200);
        assert_eq!(live(), [name("joerg", 2)], "{mode:?}");
        assert!(books.is_open());
        drop(hub);
        assert!(!books.is_open());
        assert_eq!(live(), [name("joerg", 2)], "the books outlive the DataHUB");
    }
}

#[test]
fn token_requests_are_counted_while_they_are_under_way() {
    let hub = hub();
    sign_in(&hub, "testuser");
    assert_eq!((hub.counts().token_requests_at_once, hub.counts().refreshes_at_once), (1, 0));
    for (delay, answer) in [(true, Answer::Normal), (false, Answer::Status(500))] {
        hub.set(|behaviour| {
            *if delay { &mut behaviour.token.delay } else { &mut behaviour.token.answer_delay } =
                Duration::from_millis(300);
            behaviour.token.answer = answer;
        });
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| refresh(&hub, "x"));
            }
            scope.spawn(|| form(&hub, "/oauth/token", "", "grant_type=authorization_code"));
        });
        assert_eq!((hub.counts().token_requests_at_once, hub.counts().refreshes_at_once), (4, 3));
    }
}
