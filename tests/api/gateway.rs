//! The gateway's own binary as a child process, in front of test DataHUBs.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use datahub::behaviour::Behaviour;
use datahub::{DataHub, Options};
use serde_json::Value;

use crate::books::Ledger;
use crate::browser::{Browser, Connection};

/// The gateway that is tested: another build where `GATEWAY_BINARY` names one.
pub fn binary() -> PathBuf {
    std::env::var_os("GATEWAY_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_arcmanager-gateway").into(), PathBuf::from)
}

/// What browsers call every gateway of these tests, wherever it listens.
pub const PUBLIC_URL: &str = "http://localhost:8000";
pub const BASE: &str = "/arcmanager/api/v1";

/// A running gateway. When it is dropped it is ended and its output searched.
pub struct Gateway {
    child: Child,
    pub address: String,
    output: Arc<Written>,
    readers: Vec<std::thread::JoinHandle<()>>,
    secrets: Arc<Mutex<BTreeSet<String>>>,
    answers: Mutex<String>,
    config: PathBuf,
    ledger: Arc<Ledger>,
    _folder: Arc<Folder>,
}

/// What a gateway has written so far, and whether its standard output is read.
#[derive(Default)]
struct Written {
    lines: Mutex<Vec<String>>,
    reading: Mutex<Reading>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Reading {
    #[default]
    On,
    Off,
    Closed,
}

/// How a gateway is started; several may be started alike.
#[derive(Clone)]
pub struct Setup {
    config: String,
    listen: String,
    log_level: &'static str,
    forgets: &'static [&'static str],
    folder: Arc<Folder>,
    secrets: Arc<Mutex<BTreeSet<String>>>,
    ledger: Arc<Ledger>,
}

impl Setup {
    /// A gateway in front of `datahubs`, with a key of its own.
    pub fn new(datahubs: &[(&str, &DataHub)]) -> Self {
        Self::with_keys(datahubs, &[&new_key()])
    }

    pub fn with_keys(datahubs: &[(&str, &DataHub)], keys: &[&str]) -> Self {
        let setup = Self::without_keys(datahubs).and(&format!("session.keys = {keys:?}"));
        setup.secrets.lock().expect("no panic while held").extend(keys.iter().map(|key| (*key).to_owned()));
        setup
    }

    /// With the keys that are in the file `path` at the time.
    pub fn with_keys_file(datahubs: &[(&str, &DataHub)], path: &Path) -> Self {
        Self::without_keys(datahubs).and(&format!("session.keys_file = {:?}", path.to_str().expect("a plain path")))
    }

    fn without_keys(datahubs: &[(&str, &DataHub)]) -> Self {
        let mut config = "admin.listen = \"127.0.0.1:0\"\n".to_owned();
        for (id, datahub) in datahubs {
            let (url, client, secret) = (datahub.url(), datahub.client_id(), datahub.client_secret());
            write!(config, "datahubs.{id}.url = {url:?}\ndatahubs.{id}.client_id = {client:?}\ndatahubs.{id}.client_secret = {secret:?}\n")
                .expect("a String takes everything");
        }
        let secrets = datahubs.iter().map(|(_, datahub)| datahub.client_secret().to_owned()).collect();
        let listen = "127.0.0.1:0".to_owned();
        let (folder, ledger) = (Arc::default(), Ledger::of(datahubs));
        Self {
            config,
            listen,
            log_level: "trace",
            forgets: &[],
            folder,
            secrets: Arc::new(Mutex::new(secrets)),
            ledger,
        }
    }

    /// The same with further lines of TOML, such as `session.max_age = "1h"`.
    pub fn and(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.config.push('\n');
        self
    }

    /// The same with the DataHUB that is at `url` at another URL.
    pub fn at(mut self, url: &str, other: &str) -> Self {
        self.config = self.config.replace(&format!("{url:?}"), &format!("{other:?}"));
        self
    }

    /// The same with the client secret of the DataHUB that has this one in a file, whatever it holds.
    pub fn with_secret_file(mut self, secret: &str, path: &Path) -> Self {
        let file = format!("client_secret_file = {:?}", path.to_str().expect("a plain path"));
        self.config = self.config.replace(&format!("client_secret = {secret:?}"), &file);
        self
    }

    /// A file beside the configuration.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        self.folder.file(name, text)
    }

    /// The same at another place.
    pub fn listening_at(mut self, listen: &str) -> Self {
        listen.clone_into(&mut self.listen);
        self
    }

    /// The same with a log as in production.
    pub fn quiet(mut self) -> Self {
        self.log_level = "info";
        self
    }

    /// The same with another filter of the log, as in `RUST_LOG`; it must let `serving` through.
    pub fn logging(mut self, filter: &'static str) -> Self {
        self.log_level = filter;
        self
    }

    /// The same, whose lines with one of these texts are read and forgotten: where there would be too many.
    pub fn forgetting(mut self, texts: &'static [&'static str]) -> Self {
        self.forgets = texts;
        self
    }

    /// Writes the configuration's file, over the one of a gateway that was started by this setup.
    pub fn write(&self) -> PathBuf {
        let config = format!("server.listen = [{:?}]\n{}", self.listen, self.config);
        self.folder.file("gateway.toml", &config)
    }

    pub fn start(&self) -> Gateway {
        let (mut command, config) = (command(), self.write());
        command.arg("--config").arg(&config);
        Gateway::start(self, command, config)
    }

    /// Starts another process in the binary's place, which finds its configuration in the variable `GATEWAY_OF_A_TEST`.
    pub fn start_as(&self, mut command: Command) -> Gateway {
        let config = self.write();
        command.env("GATEWAY_OF_A_TEST", &config);
        Gateway::start(self, command, config)
    }
}

impl Gateway {
    fn start(setup: &Setup, mut command: Command, config: PathBuf) -> Self {
        setup.ledger.read(&config);
        setup.ledger.begin();
        let mut child = command
            .env("RUST_LOG", setup.log_level)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary is built");
        let output = Arc::new(Written::default());
        let readers = vec![
            collect(child.stdout.take().expect("piped"), &output, setup.forgets, true),
            collect(child.stderr.take().expect("piped"), &output, setup.forgets, false),
        ];
        let mut gateway = Self {
            child,
            address: String::new(),
            output,
            readers,
            secrets: Arc::clone(&setup.secrets),
            answers: Mutex::default(),
            config,
            ledger: Arc::clone(&setup.ledger),
            _folder: Arc::clone(&setup.folder),
        };
        gateway.address = gateway.wait_for_address("serving");
        gateway
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What must not be in the output, beside what is known already.
    pub fn keep_secret(&self, secrets: impl IntoIterator<Item = String>) {
        self.secrets.lock().expect("no panic while held").extend(secrets);
    }

    /// At the end, the cookies of this browser and of its copies count as holding their tokens.
    pub fn meet(&self, browser: &Browser) {
        self.ledger.meet(browser);
    }

    /// At the end of the test, exactly `count` tokens live that no cookie holds, for this reason.
    pub fn expects_orphans(&self, count: usize, reason: &'static str) {
        self.ledger.expect_orphans(count..=count, reason);
    }

    /// The same where chance decides: at most `count`.
    pub fn expects_orphans_up_to(&self, count: usize, reason: &'static str) {
        self.ledger.expect_orphans(0..=count, reason);
    }

    /// An answer of the gateway, but for the cookies it sets, and the state and nonce that go to the DataHUB: no secret
    /// may be in it (PR-08).
    pub fn keep_answer(&self, head: &str, body: &[u8]) {
        let mut answers = self.answers.lock().expect("no panic while held");
        for line in head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("set-cookie:")) {
            let parts = line.split('&').filter(|part| !part.starts_with("state=") && !part.starts_with("nonce="));
            parts.for_each(|part| answers.push_str(part));
            answers.push('\n');
        }
        answers.push_str(&String::from_utf8_lossy(&body[..body.len().min(64 * 1024)]));
        answers.push('\n');
    }

    /// All lines of the log so far.
    pub fn log(&self) -> Vec<Value> {
        self.output().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Everything written so far, line by line.
    pub fn output(&self) -> Vec<String> {
        self.output.lines.lock().expect("no panic while held").clone()
    }

    /// From now on nobody reads its standard output, as when a collector of logs hangs.
    pub fn stop_reading(&self) {
        self.output.set(Reading::Off);
    }

    /// From now on it is read again.
    pub fn read_on(&self) {
        self.output.set(Reading::On);
    }

    /// Closes the other end of its standard output, as when a collector of logs dies: at the next line, which is read.
    pub fn close_output(&self) {
        self.output.set(Reading::Closed);
    }

    /// The first line of the log that is as wanted, once it is there.
    pub fn wait_for_line(&self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(|line| serde_json::from_str(line).ok().filter(&is_wanted))
    }

    /// Where it listens, from the line that says so in whatever format.
    pub fn wait_for_address(&self, message: &str) -> String {
        self.wait_for(|line| {
            let (before, after) = line.split_once("listen")?;
            let address = after.split('"').find(|text| text.len() > 1)?;
            before.contains(message).then(|| address.to_owned())
        })
    }

    /// What is found in the first line that has it, once it is there.
    pub fn wait_for<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let output = self.output();
            if let Some(found) = output.iter().find_map(|line| find(line)) {
                return found;
            }
            assert!(Instant::now() < until, "no such line in the log:\n{}", output.join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The security event of this name, once it is there.
    pub fn wait_for_event(&self, name: &str) -> Value {
        if name == "keys_reloaded" {
            // Its keys may be others by then.
            self.wait_for_line(|line| line["target"] == "security" && line["event"] == name);
            self.ledger.read(&self.config);
        }
        self.wait_for_line(|line| line["target"] == "security" && line["event"] == name)
    }

    /// Tells it to read its files anew; returns the event that says how that went.
    pub fn reload(&self) -> Value {
        let is_outcome = |line: &Value| line["event"] == "keys_reloaded" || line["event"] == "reload_failed";
        let before = self.log().iter().filter(|line| is_outcome(line)).count();
        self.ledger.read(&self.config);
        signal("HUP", self.pid());
        self.wait_for_line(|_| self.log().iter().filter(|line| is_outcome(line)).count() > before);
        self.log().into_iter().filter(is_outcome).nth(before).expect("it was waited for")
    }

    /// What `/metrics` says.
    pub fn metrics(&self) -> String {
        let mut connection = Connection::open(&self.wait_for_address("operators may ask"));
        connection.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        connection.answer(true).text()
    }

    /// Highest resident memory so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of KiB");
        kib * 1024
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Tells it to end.
    pub fn terminate(&self) {
        signal("TERM", self.pid());
    }

    /// Whether it has ended, and how, within some seconds.
    pub fn wait_for_end(&mut self) -> Option<std::process::ExitStatus> {
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.terminate();
        if self.wait_for_end().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.read_on();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if !std::thread::panicking() {
            let output = self.output().join("\n");
            self.search("output", &output);
            self.search_words(&output);
            self.search("answers", &self.answers.lock().expect("no panic while held"));
        }
        self.ledger.end();
    }
}

impl Gateway {
    /// Fails if a secret is anywhere in what the gateway wrote, as it is or in a usual encoding.
    fn search(&self, place: &str, output: &str) {
        for secret in
            self.secrets.lock().expect("no panic while held").iter().filter(|secret| secret.len() >= MIN_SECRET)
        {
            if let Some(spelling) = spellings(secret).iter().find(|spelling| output.contains(spelling.as_str())) {
                let line = output.lines().find(|line| line.contains(spelling.as_str())).unwrap_or_default();
                panic!(
                    "a secret of {} characters is in the {place}: {}",
                    secret.len(),
                    line.replace(spelling.as_str(), "[SECRET]")
                );
            }
        }
    }

    /// The same for all that the test's DataHUBs gave out, its browsers held and its files of keys hold, whether the test has
    /// said so or not. They may be thousands, and are looked for in one pass: within words, since none has a space in it.
    fn search_words(&self, output: &str) {
        let secrets = self.ledger.secrets();
        let known: Vec<String> =
            secrets.iter().filter(|it| it.len() >= MIN_SECRET).flat_map(|it| spellings(it)).collect();
        let mut by_beginning: HashMap<&[u8], Vec<&str>> = HashMap::new();
        for spelling in &known {
            by_beginning.entry(&spelling.as_bytes()[..MIN_SECRET]).or_default().push(spelling);
        }
        let is_between = |byte: char| {
            !(byte.is_ascii_alphanumeric() || matches!(byte, '+' | '/' | '_' | '=' | '%' | '.' | '~' | '-'))
        };
        let words: BTreeSet<&str> = output.split(is_between).filter(|word| word.len() >= MIN_SECRET).collect();
        for bytes in words
            .iter()
            .flat_map(|word| word.as_bytes().windows(MIN_SECRET).zip(0..).map(|(_, at)| &word.as_bytes()[at..]))
        {
            let begun = by_beginning.get(&bytes[..MIN_SECRET]).into_iter().flatten();
            if let Some(found) = begun.into_iter().find(|spelling| bytes.starts_with(spelling.as_bytes())) {
                let line = output.lines().find(|line| line.contains(found)).unwrap_or_default();
                panic!(
                    "a secret that nobody named, of {} characters, is in the output: {}",
                    found.len(),
                    line.replace(found, "[SECRET]")
                );
            }
        }
    }
}

/// A shorter one may stand anywhere by chance.
const MIN_SECRET: usize = 16;

/// A secret as it is, and in the usual encodings.
fn spellings(secret: &str) -> [String; 4] {
    [
        secret.to_owned(),
        STANDARD.encode(secret).trim_end_matches('=').to_owned(),
        URL_SAFE_NO_PAD.encode(secret),
        secret.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D"),
    ]
}

/// Runs the binary to its end.
pub fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command().args(arguments).envs(environment.iter().copied()).output().expect("the binary is built")
}

/// The same with something on its standard input.
pub fn run_with_input(arguments: &[&str], input: &str) -> Output {
    let mut command = command();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary is built");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn command() -> Command {
    let mut command = Command::new(binary());
    // Nothing of the environment but what a test says; a proxy in it must be ignored anyway.
    command
        .env_clear()
        .env("RUST_LOG", "trace")
        .env("http_proxy", "http://127.0.0.1:9")
        .env("HTTPS_PROXY", "http://127.0.0.1:9");
    command
}

pub fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
    status.expect("there is a kill command");
}

pub fn new_key() -> String {
    String::from_utf8(run(&["key"], &[]).stdout).expect("base64").trim().to_owned()
}

/// Waits until something has come true.
pub fn wait_until(is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "it never came true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A DataHUB that answers as GitLab does.
pub fn datahub() -> DataHub {
    DataHub::start(Options::default()).expect("a free port")
}

/// The same, behaving in some other way from the start.
pub fn datahub_with(change: impl FnOnce(&mut Behaviour)) -> DataHub {
    let datahub = datahub();
    datahub.set(change);
    datahub
}

fn collect(
    stream: impl Read + Send + 'static,
    output: &Arc<Written>,
    forgets: &'static [&'static str],
    may_stop: bool,
) -> std::thread::JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        for line in lines.filter(|line| !forgets.iter().any(|text| line.contains(text))) {
            output.lines.lock().expect("no panic while held").push(line);
            if may_stop && !output.may_read() {
                return;
            }
        }
    })
}

impl Written {
    fn set(&self, reading: Reading) {
        *self.reading.lock().expect("no panic while held") = reading;
        self.changed.notify_all();
    }

    /// Waits while it is not to be read; false once it is to be closed.
    fn may_read(&self) -> bool {
        let reading = self.reading.lock().expect("no panic while held");
        *self.changed.wait_while(reading, |reading| *reading == Reading::Off).expect("no panic while held")
            == Reading::On
    }
}

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("a folder of our own");
        path
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Folder {
    fn default() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("arcmanager-gateway-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
