//! Where a login lands: nowhere but on our own origin, whatever `return_to` says (RD-01).

use std::collections::BTreeSet;

use datahub::DataHub;
use url::Url;

use crate::browser::{Browser, sign_in};
use crate::gateway::{BASE, Gateway, PUBLIC_URL, Setup, datahub};

/// Ways to write an address that some reader takes for another host's, or for script. `~` stands for a host.
const SHAPES: [&str; 86] = [
    "//~",
    "///~",
    "////~",
    "/////~",
    "//~/%2e%2e",
    "//~/..",
    "//~?",
    "//~#",
    "//~:80",
    "//user@~",
    "//localhost:8000@~",
    "//localhost%3A8000@~",
    "/\\~",
    "\\/~",
    "\\\\~",
    "/\\/~",
    "/\\\\~",
    "\\/\\/~",
    "//\\~",
    "/\\\\\\~",
    "/ /~",
    "/\t/~",
    "/\n/~",
    "/\r/~",
    "/\r\n/~",
    "\t//~",
    " //~",
    "\u{b}//~",
    "\u{c}//~",
    "\u{1}//~",
    "\0//~",
    "/\0/~",
    "/\u{a0}/~",
    "/\u{200b}/~",
    "/\u{feff}/~",
    "//\u{202e}~",
    "https://~",
    "http://~",
    "HTTPS://~",
    "https:~",
    "https:/~",
    "https:///~",
    "https:\\\\~",
    "https:/\\~",
    "hTTp:\t//~",
    "ht\ntps://~",
    "ftp://~",
    "file://~/etc",
    "ws://~",
    "blob:https://~/x",
    "filesystem:https://~/x",
    "view-source:https://~",
    "javascript:alert(1)//~",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "\u{1}javascript:alert(1)",
    "data:text/html,<script>1</script>",
    "vbscript:x",
    "mailto:x@~",
    "/../~",
    "/..//~",
    "/.//~",
    "/./\\~",
    "/a/..//~",
    "/a/../\\~",
    "/%2e%2e//~",
    "/%2E//~",
    "/.%2e//~",
    "/%2f~",
    "/%2F%2F~",
    "/%5c~",
    "/%5C%5C~",
    "/%09/~",
    "/%0a/~",
    "/%0d%0a/~",
    "/%00/~",
    "/%252f%252f~",
    "/%255c~",
    "/a//~",
    "/a/\\~",
    "/;//~",
    "/?x=//~\\",
    "~",
    "@~",
    "/\u{ff0f}~",
    "/\u{3002}~//~",
];
const HOSTS: [&str; 2] = ["evil.test", "evil.test%23.localhost:8000"];

/// How a payload can be written in a query: as it is, escaped once, escaped twice.
fn spellings(payload: &str) -> Vec<String> {
    let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let is_raw = payload.bytes().all(|byte| byte.is_ascii_graphic() && !b"#\\<>\"".contains(&byte));
    let mut spellings = vec![escape(payload), escape(&escape(payload))];
    spellings.extend(is_raw.then(|| payload.to_owned()));
    spellings
}

/// Where the browser is sent after a login that was asked to end at `return_to`, a part of a query.
fn lands(gateway: &Gateway, hub: &DataHub, return_to: &str) -> String {
    let browser = Browser::default();
    let login = browser.navigate(gateway, &format!("{BASE}/auth/login?datahub=a&return_to={return_to}"));
    assert_eq!(login.status, 302, "{return_to}");
    let answer = browser.open(gateway, &sign_in(hub, &login.location(), "user=testuser"));
    assert_eq!(answer.status, 303, "{return_to}");
    answer.location()
}

/// Undoes one escape of everything, for readers that decode once too often.
fn decode(text: &str) -> String {
    let query = text.replace('+', "%2B").replace('&', "%26");
    url::form_urlencoded::parse(format!("x={query}").as_bytes()).next().expect("one pair").1.into_owned()
}

#[test]
fn no_way_to_write_an_address_leads_to_another_origin() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let own = Url::parse(PUBLIC_URL).expect("a URL");
    let payloads: BTreeSet<String> = SHAPES
        .iter()
        .flat_map(|shape| HOSTS.iter().map(|host| shape.replace('~', host)))
        .flat_map(|payload| spellings(&payload))
        .collect();
    assert!(payloads.len() >= 200, "{} payloads", payloads.len());
    let mut is_kept = 0;
    for payload in &payloads {
        let location = lands(&gateway, &hub, payload);
        let decoded = decode(&location);
        for reading in [&location, &decoded] {
            let target = own.join(reading).unwrap_or_else(|error| panic!("{payload}: {reading}: {error}"));
            assert_eq!(target.origin(), own.origin(), "{payload} led to {reading}");
        }
        is_kept += usize::from(location != "/arcmanager/app/");
    }
    // What is plainly a path of ours may be followed, such as `/;/x`; hardly any of these is.
    assert!(is_kept <= payloads.len() / 20, "{is_kept} of {} were followed", payloads.len());
}

#[test]
fn a_path_of_our_own_is_followed() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for path in ["/", "/arcmanager/app/?project=230", "/a/b.html?x=1&y=%C3%BC", "/a:b@c/(d)'e*;f=,g~!$", "/a?b?c"] {
        let escaped: String = url::form_urlencoded::byte_serialize(path.as_bytes()).collect();
        assert_eq!(lands(&gateway, &hub, &escaped), path);
    }
}
