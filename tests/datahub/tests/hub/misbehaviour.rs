//! What a test can make a DataHUB do, endpoint by endpoint.

use std::time::{Duration, Instant};

use datahub::behaviour::{Answer, Framing, RefreshTrouble};
use datahub::{DataHub, Options};
use serde_json::Value;

use crate::client::{Client, REDIRECT_URI, VERIFIER, bearer, code, exchange, get, hub, refresh, sign_in, text, token};

#[test]
fn an_endpoint_answers_what_it_is_told_and_the_others_go_on() {
    let hub = hub();
    for (answer, status) in [
        (Answer::Status(500), 500),
        (Answer::Status(429), 429),
        (Answer::Throttled { retry_after: "3".into() }, 429),
        (Answer::OauthError { status: 401, error: "invalid_client".into() }, 401),
        (Answer::Html(502), 502),
        (Answer::Redirect("http://evil.example/".into()), 302),
        (Answer::Raw(b"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n".to_vec()), 299),
    ] {
        hub.set(|behaviour| behaviour.token.answer = answer.clone());
        assert_eq!(refresh(&hub, "x").status, status, "{answer:?}");
        assert_eq!(get(&hub, "/.well-known/openid-configuration", "").status, 200);
    }
    assert_eq!(hub.counts().refreshes_refused, 0);
}

#[test]
fn throttling_says_when_to_come_back_and_an_oauth_error_which_it_is() {
    let hub = hub();
    for (answer, expected) in [
        (Answer::Status(429), "60"),
        (Answer::Throttled { retry_after: "3".into() }, "3"),
        (Answer::Throttled { retry_after: "Thu, 26 Nov 2026 16:00:00 GMT".into() }, "Thu, 26 Nov 2026 16:00:00 GMT"),
    ] {
        hub.set(|behaviour| behaviour.token.answer = answer);
        let answer = refresh(&hub, "x");
        assert_eq!((answer.status, answer.header("retry-after")), (429, Some(expected)));
    }
    for (status, error) in [(401, "invalid_client"), (400, "unauthorized_client")] {
        hub.set(|behaviour| behaviour.token.answer = Answer::OauthError { status, error: error.into() });
        let answer = refresh(&hub, "x");
        assert_eq!((answer.status, &answer.json()["error"]), (status, &error.into()));
    }
}

#[test]
fn a_lost_answer_has_done_its_work() {
    let hub = hub();
    let old = text(&sign_in(&hub, "testuser"), "refresh_token");
    hub.set(|behaviour| behaviour.token.answer = Answer::LoseAnswer);
    let mut client = Client::connect(&hub);
    let (id, secret) = (hub.client_id(), hub.client_secret());
    let body = format!("grant_type=refresh_token&client_id={id}&client_secret={secret}&refresh_token={old}");
    let kind = "application/x-www-form-urlencoded";
    client.write(format!(
        "POST /oauth/token HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(client.rest().is_empty());
    assert_eq!(hub.counts().refreshes, 1);
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    assert_eq!(refresh(&hub, &old).status, 400);
}

#[test]
fn a_delay_holds_back_one_kind_of_request() {
    let hub = hub();
    hub.set(|behaviour| behaviour.api.delay = Duration::from_millis(150));
    let start = Instant::now();
    get(&hub, "/api/v4/projects", "");
    assert!(start.elapsed() >= Duration::from_millis(150));
}

#[test]
fn a_delay_of_the_answer_comes_after_the_work() {
    let hub = hub();
    let old = text(&sign_in(&hub, "testuser"), "refresh_token");
    hub.set(|behaviour| behaviour.token.answer_delay = Duration::from_millis(400));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| refresh(&hub, &old));
        while hub.counts().refreshes == 0 {
            assert!(start.elapsed() < Duration::from_millis(400), "the work was to be done first");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(answer.join().expect("no panic").status, 200);
    });
    assert!(start.elapsed() >= Duration::from_millis(400));
}

#[test]
fn an_answer_ends_as_told() {
    let hub = hub();
    let target = "/.well-known/openid-configuration";
    let whole = get(&hub, target, "").body;
    for (framing, field) in [
        (Framing::ContentLength, Some("content-length")),
        (Framing::Chunked, Some("transfer-encoding")),
        (Framing::UntilClose, None),
    ] {
        hub.set(|behaviour| behaviour.discovery.framing = framing);
        let mut client = Client::connect(&hub);
        client.write(format!("GET {target} HTTP/1.1\r\nHost: hub\r\n\r\n"));
        let answer = client.answer(true);
        for name in ["content-length", "transfer-encoding"] {
            assert_eq!(answer.header(name).is_some(), field == Some(name), "{framing:?} {}", answer.head);
        }
        let body = if field.is_some() { answer.body } else { client.rest() };
        assert_eq!(body, whole, "{framing:?}");
    }
    hub.set(|behaviour| behaviour.api.framing = Framing::Chunked);
    let blob = get(&hub, "/api/v4/projects/230/packages/generic/blob/1.0.0/1000003.bin", &a_token(&hub)).body;
    assert_eq!(blob.len(), 1_000_003);
    assert!(blob.iter().enumerate().all(|(at, byte)| at % 251 == usize::from(*byte)));
}

#[test]
fn early_hints_come_before_the_answer() {
    let hub = hub();
    hub.set(|behaviour| behaviour.api.early_hints = true);
    let mut client = Client::connect(&hub);
    client.write("GET /api/v4/projects HTTP/1.1\r\nHost: hub\r\n\r\n");
    assert_eq!((client.answer(false).status, client.answer(true).status), (103, 200));
}

#[test]
fn who_is_blocked_is_led_away_from_the_token_endpoint_and_refused_by_the_api() {
    let hub = hub();
    let (tokens, other) = (sign_in(&hub, "testuser"), sign_in(&hub, "joerg"));
    let user = |tokens: &Value| get(&hub, "/api/v4/user", &bearer(&text(tokens, "access_token"))).status;
    hub.block("testuser");
    let answer = refresh(&hub, &text(&tokens, "refresh_token"));
    let sign_in_page = format!("{}/users/sign_in", hub.url());
    assert_eq!((answer.status, answer.header("location")), (302, Some(sign_in_page.as_str())));
    assert_eq!((user(&tokens), user(&other)), (403, 200));
    assert_eq!(exchange(&hub, &code(&hub, "testuser"), VERIFIER, REDIRECT_URI).status, 302);
    assert_eq!(refresh(&hub, &text(&other, "refresh_token")).status, 200);
    hub.unblock("testuser");
    assert_eq!(user(&tokens), 200);
    assert_eq!(refresh(&hub, &text(&tokens, "refresh_token")).status, 200, "nothing was spent");
}

#[test]
fn the_refreshes_of_the_poisoned_fail_and_of_nobody_else() {
    let hub = hub();
    let (poisoned, other) = (sign_in(&hub, "testuser"), sign_in(&hub, "joerg"));
    hub.set(|behaviour| behaviour.poisoned_users = vec!["testuser".into()]);
    for _ in 0..2 {
        assert_eq!(refresh(&hub, &text(&poisoned, "refresh_token")).status, 500);
    }
    assert_eq!(refresh(&hub, &text(&other, "refresh_token")).status, 200);
    hub.set(|behaviour| behaviour.poisoned_users.clear());
    assert_eq!(refresh(&hub, &text(&poisoned, "refresh_token")).status, 200);
}

#[test]
fn a_login_may_get_the_tokens_of_the_one_before() {
    let hub = hub();
    let first = sign_in(&hub, "testuser");
    assert_ne!(sign_in(&hub, "testuser")["access_token"], first["access_token"], "not by default");
    hub.set(|behaviour| behaviour.reuse_access_token = true);
    let again = sign_in(&hub, "testuser");
    let once_more = sign_in(&hub, "testuser");
    for name in ["access_token", "refresh_token"] {
        assert_eq!(again[name], once_more[name]);
        assert_ne!(sign_in(&hub, "joerg")[name], again[name]);
    }
    hub.expire_access_tokens();
    assert_ne!(sign_in(&hub, "testuser")["access_token"], again["access_token"]);
}

#[test]
fn token_answers_have_the_scope_and_the_tokens_they_are_told_to_have() {
    let hub = hub();
    hub.set(|behaviour| {
        behaviour.token_scope = Some("openid  profile api ".into());
        behaviour.leave_out_refresh_token = true;
    });
    let tokens = sign_in(&hub, "testuser");
    assert_eq!((&tokens["scope"], tokens.get("refresh_token")), (&"openid  profile api ".into(), None));
    assert_eq!(get(&hub, "/api/v4/user", &bearer(&text(&tokens, "access_token"))).status, 200);
    assert_eq!(hub.live_tokens().len(), 1);
    hub.expire_access_tokens();
    assert_eq!(hub.live_tokens().len(), 0, "nobody can use it or renew it");
}

#[test]
fn userinfo_names_as_many_groups_as_told() {
    let hub = hub();
    let token = a_token(&hub);
    for (groups, bytes) in [(0, 0..1_000), (1, 0..1_000), (3_000, 230_000..250_000)] {
        hub.set(|behaviour| behaviour.userinfo_groups = groups);
        let answer = get(&hub, "/oauth/userinfo", &token);
        assert_eq!(answer.json()["groups"].as_array().map(Vec::len), Some(groups));
        assert!(bytes.contains(&answer.body.len()), "{groups} groups are {} bytes", answer.body.len());
    }
}

#[test]
fn refreshes_in_trouble_take_their_time_and_are_throttled_without_effect() {
    let hub = hub();
    let mut tokens = sign_in(&hub, "testuser");
    hub.set(|behaviour| behaviour.refresh_trouble = RefreshTrouble { max: Duration::from_millis(20), one_in: 2 });
    let (mut good, mut throttled) = (0, 0);
    while good < 10 || throttled < 3 {
        let answer = refresh(&hub, &text(&tokens, "refresh_token"));
        if answer.status == 200 {
            tokens = answer.json();
            good += 1;
        } else {
            assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")));
            throttled += 1;
        }
    }
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (good, 0));
}

/// Workhorse asks Rails before the body and after it.
#[test]
fn an_upload_needs_its_token_at_its_end_too() {
    for upload in [
        "PUT /api/v4/projects/230/packages/generic/p/1/f?mark=it HTTP/1.1\r\nContent-Length: 4\r\n",
        "POST /api/v4/projects/230/uploads?mark=it HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n\
         Content-Length: 4\r\n",
    ] {
        for (fate, error) in [
            (DataHub::revoke_all_tokens as fn(&DataHub), "Token was revoked."),
            (DataHub::expire_access_tokens, "Token is expired."),
            (|_| {}, ""),
        ] {
            let hub = hub();
            let mut client = Client::connect(&hub);
            client.write(format!("{upload}{}\r\nab", a_token(&hub)));
            while hub.requests().last().is_none_or(|request| request.body_length < 2) {
                std::thread::sleep(Duration::from_millis(1));
            }
            fate(&hub);
            client.write("cd");
            let answer = client.answer(true);
            if error.is_empty() {
                assert_ne!(answer.status, 401, "{upload}");
                assert_eq!(hub.executions()["it"], 1, "{upload}");
            } else {
                assert_eq!((answer.status, &answer.json()["error"]), (401, &"invalid_token".into()), "{upload}");
                assert!(answer.text().contains(error), "{upload}");
                assert!(hub.executions().is_empty(), "{upload}");
            }
        }
    }
}

#[test]
fn tokens_live_as_long_as_told() {
    let hub = hub();
    hub.set(|behaviour| {
        behaviour.token_lifetime = Duration::ZERO;
        behaviour.leave_out_expires_in = true;
    });
    let tokens = sign_in(&hub, "testuser");
    assert!(tokens.get("expires_in").is_none());
    assert!(get(&hub, "/api/v4/user", &bearer(&text(&tokens, "access_token"))).text().contains("expired"));
}

#[test]
fn two_datahubs_in_one_process_do_not_know_each_other() {
    let (freiburg, tuebingen) = (hub(), hub());
    let token = a_token(&freiburg);
    assert_eq!(get(&freiburg, "/api/v4/user", &token).status, 200);
    assert_eq!(get(&tuebingen, "/api/v4/user", &token).status, 401);
    assert_eq!(tuebingen.requests().len(), 1);
}

#[test]
fn a_dropped_datahub_frees_its_port() {
    let first = hub();
    let listen = first.address();
    drop(first);
    let second = DataHub::start(Options { listen, ..Options::default() }).expect("the port is free");
    assert_eq!(second.address(), listen);
}

/// The field that shows testuser's token.
fn a_token(hub: &DataHub) -> String {
    bearer(&token(hub, "testuser"))
}
