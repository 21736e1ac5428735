//! Says from which commit the gateway is built, unless whoever builds it does: `GATEWAY_REVISION`, as for a container's image.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=GATEWAY_REVISION");
    for input in ["build.rs", "src", "client", "config/default.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={input}");
    }
    // Of a checkout of this repository, and not of one that it lies in.
    let is_told = std::env::var("GATEWAY_REVISION").is_ok_and(|revision| !revision.is_empty());
    if is_told || !Path::new(".git").exists() {
        return;
    }
    // Grows with every commit and every switch to another one.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(revision) = git(&["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]) {
        println!("cargo::rustc-env=GATEWAY_REVISION={revision}");
    }
}

/// What git says, if it is there and says anything.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
