//! What is known of a DataHUB: what operators are told of one that is not as it should be.

use std::time::{Duration, Instant};

use datahub::DataHub;
use datahub::behaviour::Answer;

use crate::browser::Browser;
use crate::gateway::{BASE, Gateway, Setup, datahub, run};

/// Whether it is up, and the kinds of call that are in trouble.
fn health(gateway: &Gateway) -> (bool, Vec<&'static str>) {
    let metrics = gateway.metrics();
    let is = |line: String| {
        let values = metrics.lines().filter_map(|other| other.strip_prefix(&line)?.strip_prefix(' '));
        values.collect::<Vec<_>>() == ["1"]
    };
    let kinds = ["discovery", "token", "userinfo", "api"];
    let is_good = |kind: &&str| is(format!("gateway_datahub_last_outcome{{datahub=\"a\",kind=\"{kind}\"}}"));
    (is("gateway_datahub_up{datahub=\"a\"}".to_owned()), kinds.into_iter().filter(|kind| !is_good(kind)).collect())
}

/// Where a login ends.
fn login(gateway: &Gateway, hub: &DataHub) -> String {
    let browser = Browser::default();
    let answer = browser.navigate(gateway, &format!("{BASE}/auth/login?datahub=a"));
    if answer.status != 302 {
        return answer.location();
    }
    let browser = Browser::default();
    let callback = browser.begin_login(gateway, "a", hub, "testuser");
    browser.open(gateway, &callback).location()
}

#[test]
fn a_datahub_is_up_while_every_kind_of_call_is_answered_as_it_should_be() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("timeouts.first_byte = \"300ms\"").start();
    let up = (true, vec![]);
    assert_eq!(health(&gateway), up, "nobody has called yet");
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let user = || browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status;
    assert_eq!((user(), health(&gateway)), (200, up.clone()));

    hub.set(|behaviour| behaviour.token.answer = Answer::Status(500));
    assert!(login(&gateway, &hub).ends_with("=unavailable"));
    assert_eq!((user(), health(&gateway)), (200, (false, vec!["token"])), "the API answers all the same");
    gateway.wait_for_line(|line| line["message"] == "a DataHUB is in trouble" && line["kind"] == "token");
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    assert_eq!((login(&gateway, &hub).as_str(), health(&gateway)), ("/arcmanager/app/", up.clone()));
    gateway.wait_for_line(|line| line["message"] == "a DataHUB is well again");

    hub.set(|behaviour| behaviour.userinfo.answer = Answer::Html(200));
    assert!(login(&gateway, &hub).ends_with("=failed"));
    assert_eq!(health(&gateway), (false, vec!["userinfo"]));
    hub.set(|behaviour| behaviour.userinfo.answer = Answer::Normal);
    assert_eq!((login(&gateway, &hub).as_str(), health(&gateway)), ("/arcmanager/app/", up.clone()));

    // A code that is spent is refused by a token endpoint that works.
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    let saved = browser.copy();
    browser.open(&gateway, &callback);
    assert!(saved.open(&gateway, &callback).location().ends_with("=failed"));
    assert_eq!(health(&gateway), up);

    hub.set(|behaviour| behaviour.api.answer = Answer::Hang);
    for _ in 0..5 {
        assert_eq!(user(), 504);
    }
    assert_eq!(health(&gateway), up, "it is reached, whatever becomes of these calls");
}

#[test]
fn a_datahub_that_refuses_our_client_is_not_up() {
    let hub = datahub();
    let wrong = Setup::new(&[("a", &hub)]).at(hub.client_secret(), "another-secret-than-it-has").start();
    assert!(login(&wrong, &hub).ends_with("=failed"));
    assert_eq!(health(&wrong), (false, vec!["token"]));
    let right = Setup::new(&[("a", &hub)]).start();
    assert_eq!((login(&right, &hub).as_str(), health(&right)), ("/arcmanager/app/", (true, vec![])));
}

#[test]
fn metadata_that_are_not_good_are_told_with_what_to_do_by_check_and_by_the_log() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let file = setup.write();
    let check = || {
        let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[]);
        (output.status.success(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let (is_good, output) = check();
    assert!(is_good && output.starts_with("configuration: good\n") && output.contains("\na: good\n"), "{output}");
    let json = |json: &str| {
        let length = json.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        Answer::Raw(format!("{head}{json}").into_bytes())
    };
    for (case, discovery, keys, told) in [
        ("dead", Answer::CloseWithoutAnswer, Answer::Normal, "cannot fetch the metadata (see that the DataHUB is up,"),
        ("another server", Answer::Status(404), Answer::Normal, "is answered with 404 Not Found and not with 200: see"),
        ("a page", Answer::Html(200), Answer::Normal, "/.well-known/openid-configuration is no JSON: see that"),
        ("nothing in it", json("{}"), Answer::Normal, "the metadata lack a good issuer: see that"),
        ("no keys", Answer::Normal, json("{\"keys\":[]}"), "jwks_uri holds no RSA key for signatures (RS256): see to"),
    ] {
        hub.set(|behaviour| (behaviour.discovery.answer, behaviour.keys.answer) = (discovery, keys));
        let (is_good, output) = check();
        assert!(!is_good && output.contains(told), "{case}: {output}");
        let gateway = setup.start();
        assert!(login(&gateway, &hub).ends_with("=unavailable"), "{case}");
        let is_it = |reason: &str| reason.contains(told);
        gateway
            .wait_for_line(|line| line["message"] == "discovery failed" && line["reason"].as_str().is_some_and(is_it));
        assert_eq!(health(&gateway), (false, vec!["discovery"]), "{case}");
    }
    // And back, once the pause after a failure is over.
    let gateway = setup.start();
    assert!(login(&gateway, &hub).ends_with("=unavailable"));
    hub.set(|behaviour| behaviour.keys.answer = Answer::Normal);
    let until = Instant::now() + Duration::from_secs(10);
    while login(&gateway, &hub) != "/arcmanager/app/" {
        assert!(Instant::now() < until, "no login goes through again");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(health(&gateway), (true, vec![]));
}

/// Another issuer is told beside ours.
#[test]
fn a_datahub_that_calls_itself_otherwise_is_told_with_both_names() {
    let hub = datahub();
    let other = hub.url().replace("127.0.0.1", "localhost");
    let setup = Setup::new(&[("a", &hub)]).and(&format!("datahubs.a.issuer = {other:?}"));
    let output = run(&["check", "--config", setup.write().to_str().expect("a plain path")], &[]);
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    let expected = format!("the metadata are of the issuer \"{}\" and not of \"{other}\": set issuer", hub.url());
    assert!(!output.status.success() && told.contains(&expected), "{told}");
}
