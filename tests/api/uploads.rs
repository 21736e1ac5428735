//! Long uploads, whose token is looked at again when they end.

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Setup, datahub_with};

const FILE: &str = "/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin";
/// More than a mebibyte is long.
const LENGTH: usize = (1 << 20) + 1;

/// A refresh revokes the token that an upload under way has to show at its end. Ahead of another upload it is left alone
/// while a call without a body would leave it alone, too.
#[test]
fn a_long_upload_spends_no_token_that_another_one_needs_until_it_must() {
    scope(|scope| {
        for (case, is_under_way, age, refreshes) in [
            ("another upload is under way", true, 9_300, 0),
            ("none is", false, 9_300, 1),
            ("another one is, but the token ends anyway", true, 11_300, 1),
        ] {
            scope.spawn(move || second_upload(case, is_under_way, Duration::from_millis(age), refreshes));
        }
    });
}

/// An upload that begins at this age of the token, which lives for 12 s, perhaps while another one is under way.
fn second_upload(case: &str, is_under_way: bool, age: Duration, refreshes: u64) {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(12));
    let limits = "session.refresh_ahead = \"1s\"\nsession.refresh_ahead_body = \"3s\"";
    let gateway = Setup::new(&[("a", &hub)]).and(limits).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let logged_in = Instant::now();
    let mut first = is_under_way.then(|| {
        let fields = format!("{FETCH}Content-Length: {LENGTH}\r\n");
        browser.begin(&gateway, "PUT", &format!("{BASE}{FILE}"), &fields)
    });
    let mut sent = 0;
    while logged_in.elapsed() < age {
        if let Some(first) = &mut first {
            first.write(&[0; 1_000]);
            sent += 1_000;
        }
        sleep(Duration::from_millis(100));
    }
    let second = browser.fetch_with(&gateway, "PUT", FILE, "application/octet-stream", &vec![0; LENGTH]);
    let status = if refreshes > 0 { 307 } else { 201 };
    assert_eq!((second.status, hub.counts().refreshes), (status, refreshes), "{case}: {}", second.head);
    if let Some(mut first) = first.filter(|_| refreshes == 0) {
        first.write(&vec![0; LENGTH - sent]);
        let answer = first.answer(true);
        assert_eq!((answer.status, hub.counts().refreshes), (201, 0), "{case}: {}", answer.head);
    }
}
