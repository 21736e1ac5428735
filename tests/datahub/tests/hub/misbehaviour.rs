//! What a test can make a DataHUB do, endpoint by endpoint.

use std::time::{Duration, Instant};

use datahub::behaviour::Answer;
use datahub::{DataHub, Options};

use crate::client::{Client, get, hub, refresh, sign_in, text, token};

#[test]
fn an_endpoint_answers_what_it_is_told_and_the_others_go_on() {
    let hub = hub();
    for (answer, status) in [
        (Answer::Status(500), 500),
        (Answer::Status(429), 429),
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
fn tokens_live_as_long_as_told() {
    let hub = hub();
    hub.set(|behaviour| {
        behaviour.token_lifetime = Duration::ZERO;
        behaviour.leave_out_expires_in = true;
    });
    let tokens = sign_in(&hub, "testuser");
    assert!(tokens.get("expires_in").is_none());
    assert!(
        get(&hub, "/api/v4/user", &crate::client::bearer(&text(&tokens, "access_token"))).text().contains("expired")
    );
}

#[test]
fn two_datahubs_in_one_process_do_not_know_each_other() {
    let (freiburg, tuebingen) = (hub(), hub());
    let token = crate::client::bearer(&token(&freiburg, "testuser"));
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
