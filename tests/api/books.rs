//! What became of the tokens: at the end of each test, every one that lives is in a browser's cookie.
//!
//! A token that nobody holds opens an account until an administrator finds it. So a login that fails, a session that is
//! replaced, a logout and a refresh each must revoke or hand over what they got. When the last gateway in front of a
//! test's DataHUBs has ended, the cookies of all its browsers are opened, and the DataHUBs are asked which tokens live.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arcmanager_gateway::config::Config;
use datahub::{Books, DataHub};

use crate::browser::{Browser, Jars, NAVIGATION};
use crate::gateway::Setup;

/// The DataHUBs, gateways and browsers of one test.
#[derive(Default)]
pub struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// By client id, which no two DataHUBs share.
    datahubs: Vec<(String, Books)>,
    /// Each as a gateway read it, with the keys it had then.
    configs: Vec<Config>,
    browsers: Vec<Jars>,
    /// The lines of each file of secrets that a configuration named.
    in_files: BTreeSet<String>,
    /// Gateways that run.
    gateways: usize,
    /// How many tokens will be in no cookie at the end, and why.
    expected: Option<(RangeInclusive<usize>, &'static str)>,
}

impl Ledger {
    /// The one that knows one of these DataHUBs, or else a new one; it knows them all from here on.
    pub fn of(datahubs: &[(&str, &DataHub)]) -> Arc<Self> {
        static LEDGERS: Mutex<Vec<Arc<Ledger>>> = Mutex::new(Vec::new());
        let mut ledgers = LEDGERS.lock().unwrap_or_else(PoisonError::into_inner);
        // One is of use as long as another gateway may start in front of its DataHUBs.
        ledgers.retain(|ledger| ledger.entries().datahubs.iter().any(|(_, books)| books.is_open()));
        let is_known = |ledger: &&Arc<Self>| datahubs.iter().any(|(_, datahub)| ledger.entries().knows(datahub));
        let ledger = ledgers.iter().find(is_known).cloned().unwrap_or_default();
        if !ledgers.iter().any(|known| Arc::ptr_eq(known, &ledger)) {
            ledgers.push(Arc::clone(&ledger));
        }
        let mut entries = ledger.entries();
        for (_, datahub) in datahubs {
            if !entries.knows(datahub) {
                entries.datahubs.push((datahub.client_id().to_owned(), datahub.books()));
            }
        }
        drop(entries);
        ledger
    }

    /// A gateway starts with this configuration, or reads it again.
    pub fn read(&self, config: &Path) {
        let mut entries = self.entries();
        // One that is broken is the test's business.
        entries.configs.extend(Config::load(&[config.to_owned()]));
        let text = std::fs::read_to_string(config).unwrap_or_default();
        let files = text.split("_file = \"").skip(1).filter_map(|rest| rest.split('"').next());
        // Some tests put a pipe or a device there.
        let files = files.filter(|file| Path::new(file).is_file());
        let secrets = files.filter_map(|file| std::fs::read_to_string(file).ok());
        entries.in_files.extend(secrets.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()));
    }

    /// A gateway runs.
    pub fn begin(&self) {
        self.entries().gateways += 1;
    }

    /// This browser and its copies meet a gateway.
    pub fn meet(&self, browser: &Browser) {
        let (mut entries, jars) = (self.entries(), browser.jars());
        if !entries.browsers.iter().any(|known| Arc::ptr_eq(known, jars)) {
            entries.browsers.push(Arc::clone(jars));
        }
    }

    /// At the end so many tokens live that no cookie holds, for this `reason`. Without this, none.
    pub fn expect_orphans(&self, count: RangeInclusive<usize>, reason: &'static str) {
        self.entries().expected = Some((count, reason));
    }

    /// All that the DataHUBs, the browsers and the files of keys know and nobody else may: whatever the test itself keeps secret,
    /// these are searched for, too.
    pub fn secrets(&self) -> BTreeSet<String> {
        let entries = self.entries();
        let given_out = entries.datahubs.iter().flat_map(|(_, books)| books.secrets());
        let cookies = entries.browsers.iter().flat_map(Browser::secret_cookies);
        given_out.chain(cookies).chain(entries.in_files.iter().cloned()).collect()
    }

    /// A gateway has ended. After the last one the books are closed, unless the test has failed anyway.
    pub fn end(&self) {
        let mut entries = self.entries();
        entries.gateways -= 1;
        if entries.gateways > 0 || std::thread::panicking() {
            return;
        }
        let orphans = entries.orphans();
        let (expected, reason) = entries.expected.clone().unwrap_or((0..=0, "none"));
        drop(entries);
        let whose = orphans.join(", ");
        assert!(
            expected.contains(&orphans.len()),
            "{} live pairs of tokens are in no cookie: {whose}; expected {expected:?}: {reason}",
            orphans.len()
        );
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn knows(&self, datahub: &DataHub) -> bool {
        self.datahubs.iter().any(|(client, _)| client == datahub.client_id())
    }

    /// Whose they are, and which of their DataHUB's pairs.
    fn orphans(&self) -> Vec<String> {
        let held = self.held();
        let live = self.datahubs.iter().flat_map(|(_, books)| books.live_tokens());
        let orphans = live.filter(|token| !held.contains(token.access_token.as_bytes()));
        orphans.map(|token| format!("{}'s pair {}", token.user, token.serial)).collect()
    }

    /// The access tokens in all cookies: each names its pair.
    fn held(&self) -> BTreeSet<Vec<u8>> {
        let mut held = BTreeSet::new();
        let headers: BTreeSet<String> = self.browsers.iter().flat_map(Browser::cookie_headers).collect();
        for config in &self.configs {
            let sessions = config.sessions();
            for (header, datahub) in headers.iter().flat_map(|it| config.datahubs.iter().map(move |at| (it, at))) {
                if let Ok((_, session)) = sessions.inspect([header.as_bytes()].into_iter(), datahub) {
                    let mut token = Vec::new();
                    session.write_bearer(&mut token);
                    held.insert(token);
                }
            }
        }
        held
    }
}

#[test]
fn a_token_that_lives_is_in_a_cookie_or_expected_as_an_orphan() {
    for (arrives, expected, is_right) in [(true, 0, true), (false, 1, true), (false, 0, false), (true, 1, false)] {
        let hub = crate::gateway::datahub();
        let gateway = Setup::new(&[("a", &hub)]).start();
        gateway.expects_orphans(expected, "the login's answer is lost");
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        let answer = browser.begin(&gateway, "GET", &callback, NAVIGATION).answer(true);
        assert_eq!(answer.status, 303, "{}", answer.head);
        if arrives {
            browser.apply(&answer);
        }
        let end = catch_unwind(AssertUnwindSafe(|| drop(gateway)));
        assert_eq!(end.is_ok(), is_right, "in a cookie: {arrives}, expected: {expected}");
    }
}
