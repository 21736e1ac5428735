//! A certified OpenID provider, as it should be and bent in every way of ID-01 to ID-09, CB-04 and CB-07.
//!
//! The rows are in `tests/provider/rows.js`. Beside each bent login there is the same one unbent, which succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::Deserialize;

use crate::browser::{Answer, Browser, Connection};
use crate::gateway::{BASE, Gateway, PUBLIC_URL, Setup, new_key};

/// The provider, in a process of its own.
struct Provider {
    child: Child,
    told: Told,
    _output: BufReader<ChildStdout>,
}

/// The provider's first line.
#[derive(Deserialize)]
struct Told {
    url: String,
    client_id: String,
    client_secret: String,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    id: String,
    told: Option<String>,
    event: Option<String>,
    reason: Vec<String>,
    is_fresh: bool,
}

impl Provider {
    fn start() -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/provider");
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
        let mut child = Command::new(format!("{folder}/node_modules/node-linux-{architecture}/bin/node"))
            .arg(format!("{folder}/provider.js"))
            .arg(format!("{PUBLIC_URL}{BASE}/auth/callback?datahub=a"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("`make node-tools` installs node and the provider");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("it says where it is");
        let told = serde_json::from_str(&line).expect("a line of JSON");
        Self { child, told, _output: output }
    }

    fn gateway(&self) -> Gateway {
        let Told { url, client_id, client_secret, .. } = &self.told;
        Setup::with_keys(&[], &[&new_key()])
            .and(&format!("[datahubs.a]\nurl = {url:?}\nclient_id = {client_id:?}\nclient_secret = {client_secret:?}"))
            .and("[timeouts]\nback_channel = \"1s\"\ntoken = \"1s\"")
            .start()
    }

    /// Bends it as the row of this name says; straightens it for an empty name.
    fn bend(&self, name: &str) {
        let length = name.len();
        let answer =
            self.ask(&format!("POST /test/bend HTTP/1.1\r\nHost: provider\r\nContent-Length: {length}\r\n\r\n{name}"));
        assert_eq!(answer.status, 204, "{name}");
    }

    /// How many connections came to the address that nobody has any business at.
    fn trapped(&self) -> String {
        self.ask("GET /test/trapped HTTP/1.1\r\nHost: provider\r\n\r\n").text()
    }

    fn ask(&self, request: &str) -> Answer {
        let mut connection = Connection::open(self.authority());
        connection.write(request.as_bytes());
        connection.answer(true)
    }

    fn authority(&self) -> &str {
        self.told.url.strip_prefix("http://").expect("it speaks plain HTTP")
    }

    /// Goes through the provider's pages from `authorize` on; returns the callback's target.
    fn sign_in(&self, authorize: &str) -> String {
        let mut jar = BTreeMap::new();
        let mut url = authorize.to_owned();
        for _ in 0..10 {
            if let Some(target) = url.strip_prefix(PUBLIC_URL) {
                return target.to_owned();
            }
            let path = url.strip_prefix(&self.told.url).unwrap_or(&url);
            let cookies: Vec<_> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let (host, cookies) = (self.authority(), cookies.join("; "));
            let answer = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookies}\r\n\r\n"));
            for cookie in answer.headers("set-cookie") {
                let (name, value) = cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair");
                jar.insert(name.to_owned(), value.to_owned());
            }
            url = answer.location();
        }
        panic!("the provider leads round and round: {url}");
    }

    /// Where a whole login ends, and with how many cookies of a session; one that ends well has a session that opens.
    fn log_in(&self, gateway: &Gateway) -> (String, usize) {
        let browser = Browser::default();
        let login = browser.navigate(gateway, &format!("{BASE}/auth/login?datahub=a"));
        let answer = if login.status == 302 { browser.open(gateway, &self.sign_in(&login.location())) } else { login };
        browser.keep_jar_secret(gateway);
        let cookies = answer.headers("set-cookie");
        if answer.location() == "/arcmanager/app/" {
            let sessions = browser.fetch(gateway, "GET", "/auth/session").json();
            assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1), "{sessions}");
        }
        let is_of_session = |cookie: &&String| !cookie.starts_with("__Host-Http-login=");
        (answer.location(), cookies.iter().filter(is_of_session).count())
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn security_events(gateway: &Gateway) -> Vec<String> {
    let log = gateway.log();
    let events = log.iter().filter(|line| line["target"] == "security").filter_map(|line| line["event"].as_str());
    events.map(str::to_owned).collect()
}

#[test]
fn a_provider_that_misbehaves_gets_nobody_in() {
    let provider = Provider::start();
    let good = ("/arcmanager/app/".to_owned(), 2);
    let usual = provider.gateway();
    let (mut wrong, mut events_of_usual) = (Vec::new(), 0);
    for row in &provider.told.rows {
        assert_eq!(provider.log_in(&usual), good, "unbent, before {}", row.name);
        // Every login is one event; the log comes a little later.
        events_of_usual += 1;
        usual.wait_for_line(|_| security_events(&usual).len() == events_of_usual);
        provider.bend(&row.name);
        let fresh = row.is_fresh.then(|| provider.gateway());
        let gateway = fresh.as_ref().unwrap_or(&usual);
        let before = if row.is_fresh { 0 } else { events_of_usual };
        let expected = match &row.told {
            None => good.clone(),
            Some(word) => (format!("/arcmanager/app/?login_error={word}"), 0),
        };
        let outcome = provider.log_in(gateway);
        provider.bend("");
        if outcome != expected {
            wrong.push(format!("{} {}: {outcome:?}, not {expected:?}", row.id, row.name));
        }
        events_of_usual += usize::from(!row.is_fresh);
        let event = |gateway: &Gateway| security_events(gateway).into_iter().nth(before);
        gateway.wait_for_line(|_| event(gateway).is_some());
        let usual_event = if row.told.is_none() { "login_ok" } else { "login_failed" };
        let wanted = row.event.as_deref().unwrap_or(usual_event);
        if event(gateway).as_deref() != Some(wanted) {
            wrong.push(format!("{} {}: {:?}, not {wanted}", row.id, row.name, event(gateway)));
        }
        let log = gateway.log();
        let reason = log.iter().rfind(|line| line["target"] == "security").map(|line| line["reason"].to_string());
        let reason = reason.unwrap_or_default();
        if !row.reason.iter().all(|piece| reason.contains(piece)) {
            wrong.push(format!("{} {}: {reason}, not {:?}", row.id, row.name, row.reason));
        }
    }
    assert!(wrong.is_empty(), "of {} rows:\n{}", provider.told.rows.len(), wrong.join("\n"));
    assert_eq!(provider.trapped(), "0", "nothing but the provider's own address was ever called");
    let ids: BTreeSet<_> = provider.told.rows.iter().map(|row| row.id.as_str()).collect();
    let all = ["CB-04", "CB-07", "ID-01", "ID-02", "ID-03", "ID-04", "ID-05", "ID-06", "ID-07", "ID-08", "ID-09"];
    assert_eq!(ids.into_iter().collect::<Vec<_>>(), all);
}
