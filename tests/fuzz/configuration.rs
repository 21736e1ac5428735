//! Anything as an operator's file beside one that is good: it is taken or refused with the keys that are at fault, and neither says
//! a secret.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use arcmanager_gateway::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // No device or pipe, which would be read for ever.
    if ["/dev", "/proc", "/sys"].iter().any(|folder| text.contains(folder)) {
        return;
    }
    let (file, path) = &*FILE;
    file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0)).expect("a file of our own");
    let files = [concat!(env!("CARGO_MANIFEST_DIR"), "/gateway.toml").into(), path.clone()];
    match Config::load(&files) {
        Ok(config) => {
            let told = format!("{config:?} {:?} {:?}", config.warnings, config.description());
            assert!(SECRETS.iter().all(|secret| !told.contains(secret)), "{told}");
            let again = Config::load(&files).expect("it was good a moment ago");
            assert!(config.changed_until_restart(&again).is_empty(), "nothing has changed");
            drop(config.sessions());
        }
        Err(errors) => {
            // What the other commands read, whatever is wrong elsewhere.
            let (_, _, _) = (Config::load_policy(&files), Config::load_description(&files), Config::load_admin(&files));
            let told = errors.to_string();
            assert!(SECRETS.iter().all(|secret| !told.contains(secret)), "{told}");
            let (count, faults) = told.split_once(":\n  ").expect("a count and the faults");
            let count: usize = count.split(' ').nth(3).and_then(|count| count.parse().ok()).expect("a number");
            assert!(count > 0 && faults.split("\n  ").count() >= count, "{told}");
            // What has the name of a key, or the file's own, tells where to look.
            let name = path.to_str().expect("a plain path");
            for fault in faults.split("\n  ").take(1) {
                let key = fault.split(' ').next().expect("the first word");
                let is_known = key.split('.').next().is_some_and(|section| DEFAULTS.contains(&format!("[{section}")));
                assert!(
                    key == name || is_known || text.contains(key) || fault.starts_with("the configuration"),
                    "{told}"
                );
            }
        }
    }
});

/// One that is open and has no name any more, so that nothing is left behind, and where else it can be found.
static FILE: LazyLock<(File, PathBuf)> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("arcmanager-gateway-fuzz-{}.toml", std::process::id()));
    let file = File::create(&path).expect("a temporary file");
    std::fs::remove_file(path).expect("a file of our own");
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, place.into())
});

/// Those of `gateway.toml`.
const SECRETS: [&str; 2] = ["MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "0123456789abcdef"];
const DEFAULTS: &str = include_str!("../../config/default.toml");
