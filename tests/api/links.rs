//! Links and redirects of a DataHUB that does not know how it is reached: behind TLS that it is not told of, GitLab writes
//! `http://HOST:443/…`.

use datahub::DataHub;
use datahub::behaviour::Answer as Manner;

use crate::browser::{Answer, Browser};
use crate::gateway::{BASE, Gateway, Setup, datahub};

const PAGES: &str = "/api/v4/projects/lu98be%2Ftestarc/issues";

/// The answer to a call that the DataHUB answers with this status and field.
fn answer(browser: &Browser, gateway: &Gateway, hub: &DataHub, id: &str, status: u16, field: &str) -> Answer {
    let raw = format!("HTTP/1.1 {status} X\r\n{field}\r\nContent-Length: 0\r\n\r\n");
    hub.set(|behaviour| behaviour.api.answer = Manner::Raw(raw.into_bytes()));
    browser.fetch(gateway, "GET", &format!("/datahubs/{id}{PAGES}?per_page=2"))
}

fn is_dropped(line: &serde_json::Value) -> bool {
    line["target"] == "security" && line["event"] == "link_dropped"
}

/// PR-02: a page's path is the call's own, whatever the DataHUB takes its scheme, host and port for.
#[test]
fn a_link_to_another_page_leads_through_the_gateway_however_its_host_is_written() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let place = hub.url().to_owned();
    let other_path = format!("http://localhost:8000{BASE}/datahubs/a/api/v4/projects?page=2");
    let own = format!("http://localhost:8000{BASE}/datahubs/a{PAGES}");
    let query = "?cursor=eyJpZCI6IjQyIn0&id_after=42&page=2&per_page=2";
    let lower = PAGES.replace("%2F", "%2f");
    let twice = PAGES.replace("%2F", "%252F");
    for (link, expected) in [
        // The same place, in every spelling.
        (format!("{place}{PAGES}{query}"), Some(format!("{own}{query}"))),
        (format!("http://127.0.0.1:443{PAGES}{query}"), Some(format!("{own}{query}"))),
        (format!("https://127.0.0.1{PAGES}{query}"), Some(format!("{own}{query}"))),
        (format!("HTTPS://127.0.0.1.:80{PAGES}{query}"), Some(format!("{own}{query}"))),
        (format!("http://127.0.0.1{PAGES}"), Some(own.clone())),
        (format!("{PAGES}{query}"), Some(format!("{own}{query}"))),
        // A host that only the DataHUB knows: the path is the call's own.
        (format!("http://gitlab.internal:8080{PAGES}{query}"), Some(format!("{own}{query}"))),
        (format!("https://[::1]:8443{PAGES}{query}"), Some(format!("{own}{query}"))),
        // Written with other escapes, which a proxy in between may do: the app's own are kept.
        (format!("http://gitlab.internal:443{lower}{query}"), Some(format!("{own}{query}"))),
        (
            format!("http://gitlab.internal{}{query}", PAGES.replace('-', "%2D").replace('i', "%69")),
            Some(format!("{own}{query}")),
        ),
        // Another path at the same host.
        (format!("{place}/api/v4/projects?page=2"), Some(other_path.clone())),
        ("http://127.0.0.1:443/api/v4/projects?page=2".to_owned(), Some(other_path)),
        ("http://127.0.0.1:443/users/sign_in?page=2".to_owned(), None),
        // Another path elsewhere, and what only resembles the own one.
        ("http://gitlab.internal:8080/api/v4/projects?page=2".to_owned(), None),
        (format!("http://gitlab.internal{twice}{query}"), None),
        (format!("http://gitlab.internal{PAGES}/7{query}"), None),
        (format!("http://gitlab.internal/x{PAGES}{query}"), None),
        (format!("http://127.0.0.1.evil.test/api/v4/projects{query}"), None),
        (format!("http://someone:secret@127.0.0.1{PAGES}{query}"), None),
        (format!("http://127.0.0.1:8o{PAGES}{query}"), None),
        (format!("//127.0.0.1{PAGES}{query}"), None),
        (format!("ftp://127.0.0.1{PAGES}{query}"), None),
        (format!("http:{PAGES}{query}"), None),
        (format!("http://127.0.0.1{PAGES}?private_token=x"), None),
        (format!("http://gitlab.internal{PAGES}?sudo=root"), None),
    ] {
        let field = format!("Link: <{link}>; rel=\"next\"");
        let got = answer(&browser, &gateway, &hub, "a", 200, &field).header("link");
        assert_eq!(got, expected.map(|url| format!("<{url}>; rel=\"next\"")), "{link}");
    }
}

/// PR-03.
#[test]
fn a_redirect_to_the_datahub_leads_through_the_gateway_however_its_host_is_written() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let user = format!("http://localhost:8000{BASE}/datahubs/a/api/v4/user?a=b");
    let port = hub.address().port();
    for (location, expected) in [
        ("http://127.0.0.1:443/api/v4/user?a=b", Some(user.as_str())),
        ("https://127.0.0.1/api/v4/user?a=b", Some(&user)),
        ("HTTP://127.0.0.1.:80/api/v4/user?a=b", Some(&user)),
        ("http://127.0.0.1:443/users/sign_in", None),
        (&format!("https://127.0.0.1.:{port}/users/sign_in"), None),
        ("http://a:b@127.0.0.1/api/v4/user?a=b", None),
        // An own path proves nothing here.
        (&format!("http://gitlab.internal{PAGES}"), None),
        // Storage on another port of the same host, as before.
        (
            "https://127.0.0.1:9000/bucket/a?X-Amz-Signature=b",
            Some("https://127.0.0.1:9000/bucket/a?X-Amz-Signature=b"),
        ),
    ] {
        let got = answer(&browser, &gateway, &hub, "a", 302, &format!("Location: {location}"));
        assert_eq!(
            (got.status, got.header("location").as_deref()),
            (if expected.is_some() { 302 } else { 502 }, expected),
            "{location}"
        );
    }
}

#[test]
fn what_is_dropped_is_in_the_log_once_a_minute_for_each_datahub() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &one), ("b", &other)]).start();
    let browser = Browser::default();
    for (id, hub) in [("a", &one), ("b", &other)] {
        browser.log_in(&gateway, id, hub, "testuser");
    }
    let own = format!("Link: <http://127.0.0.1:443{PAGES}?page=2>; rel=\"next\"");
    assert!(answer(&browser, &gateway, &one, "a", 200, &own).header("link").is_some());
    assert!(!gateway.log().iter().any(is_dropped), "nothing is dropped");
    gateway.keep_secret(["only-the-app-may-know-it".to_owned()]);
    let foreign = "Link: <https://evil.test/api/v4/x?cursor=only-the-app-may-know-it>; rel=\"next\"";
    for (id, hub) in [("a", &one), ("b", &other)] {
        for _ in 0..2 {
            assert_eq!(answer(&browser, &gateway, hub, id, 200, foreign).header("link"), None);
        }
        let line = gateway.wait_for_line(|line| is_dropped(line) && line["datahub"] == id);
        assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("datahubs.ID.url")), "{line}");
    }
    // Whatever it is that is dropped.
    for (field, status) in [
        ("Link: nonsense", 200),
        ("Link: </a>; rel=\"preload\"", 200),
        ("Link: <\u{e4}>; rel=\"next\"", 200),
        ("Location: http://evil.test/", 201),
        ("Location: http://evil.test/", 302),
    ] {
        let third = datahub();
        let gateway = Setup::new(&[("c", &third)]).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "c", &third, "testuser");
        answer(&browser, &gateway, &third, "c", status, field);
        let line = gateway.wait_for_event("link_dropped");
        assert_eq!((line["datahub"].as_str(), line["level"].as_str()), (Some("c"), Some("WARN")), "{field}");
    }
    assert_eq!(gateway.log().iter().filter(|line| is_dropped(line)).count(), 2, "once for each");
}
