//! A backend-for-frontend gateway for GitLab.
//!
//! A single-page app talks to it by same-origin `fetch`. It logs people in at a GitLab (a *DataHUB*), seals their tokens
//! into a cookie that no script can read, and forwards the app's API calls with the token attached. It stores nothing:
//! any process that holds the keys can serve any request.
//!
//! The modules below are its rooms. Four of them do the work: [`auth`] logs people in and out, [`session`] keeps them logged
//! in, [`proxy`] forwards their calls ([`bridge`] those to the ARCmanager's old backend), and [`datahub`] speaks to GitLab for
//! all three. A request comes in through [`server`], is read by [`http`] and checked by [`guard`]; [`context`] holds what is
//! known of it. [`rate`], [`places`], [`seal`], [`access_log`], [`metrics`] and [`error`] are what the others build on. Imports
//! run down only, and rooms on one step do not import each other:
//!
//! ```text
//! main → cli → { server | reload } → config → bridge → { proxy | auth | docs | admin } → session → { datahub | guard } → { rate | places } → { context | seal } → access_log → { metrics | error | http }
//! ```
//!
//! `config` stands above the rooms because it parses into their types.

pub mod access_log;
pub mod admin;
pub mod auth;
pub mod bridge;
pub mod config;
pub mod context;
pub mod datahub;
pub mod docs;
pub mod error;
pub mod guard;
pub mod http;
pub mod metrics;
pub mod places;
pub mod proxy;
pub mod rate;
pub mod reload;
pub mod seal;
pub mod server;
pub mod session;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    /// Adds each file of `folder`, as a path of modules such as `proxy::target`, with its code but for comments and tests.
    fn read(folder: &Path, parent: &str, files: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let module = format!("{parent}{}", path.file_stem().expect("a name").to_str().expect("a plain one"));
            if path.is_dir() {
                read(&path, &format!("{module}::"), files);
                continue;
            }
            let text = std::fs::read_to_string(path).expect("a text").replace("arcmanager_gateway::", "crate::");
            let code = text.split("#[cfg(test)]\n").next().expect("what stands before the tests");
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            files.insert(module, lines.collect::<Vec<_>>().join("\n").replace("super::", &format!("crate::{parent}")));
        }
    }

    /// The paths in some code, of each in `crate::a::{b, c}`.
    fn paths(code: &str) -> impl Iterator<Item = String> {
        code.split("crate::").skip(1).flat_map(|rest| {
            let is_end = |letter: char| !letter.is_alphanumeric() && !"_:".contains(letter);
            let (path, rest) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
            let items = rest.strip_prefix('{').map_or("", |rest| rest.split('}').next().unwrap_or_default());
            items.split(',').map(move |item| format!("{path}{}::", item.split_whitespace().next().unwrap_or_default()))
        })
    }

    /// The whole house, by module.
    fn house() -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
        files
    }

    #[test]
    fn imports_run_down_the_map_and_never_in_a_circle() {
        let files = house();
        let map = include_str!("lib.rs").lines().find(|line| line.starts_with("//! main → ")).expect("the map");
        let steps: Vec<&str> = map.split(" → ").collect();
        let step = |room: &str| steps.iter().position(|step| step.split([' ', '{', '}']).any(|name| name == room));
        let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (module, code) in &files {
            let named = |path: String| files.keys().rfind(|file| path.starts_with(&format!("{file}::")));
            let own = files.keys().filter(|file| file.rsplit_once("::").is_some_and(|(parent, _)| parent == module));
            for import in paths(code).filter_map(named).chain(own).filter(|import| *import != module) {
                let [from, to] = [module, import].map(|file| file.split("::").next().expect("a room"));
                let [above, below] = [from, to].map(step);
                assert!(from == to || above.expect(from) < below.expect(to), "{module} must not import {import}");
                // Between files, too; but what a file declares is there for all that stand below it.
                if !module.starts_with(&format!("{import}::")) {
                    imports.entry(module).or_default().insert(import);
                }
            }
        }
        let mut left: BTreeSet<&str> = files.keys().map(String::as_str).collect();
        let is_free = |file: &&str, left: &_| imports.get(file).is_none_or(|imports| imports.is_disjoint(left));
        while let Some(free) = left.iter().copied().find(|file| is_free(file, &left)) {
            left.remove(free);
        }
        assert!(left.is_empty(), "a circle, and what imports it: {left:?}");
    }

    /// Whatever else depends on the time of day or on a variable is given it, so that a test can say what it is. Clippy could ban
    /// both, but what one place may do, it would have to allow there together with every other ban.
    #[test]
    fn the_clock_and_the_environment_are_read_where_something_begins() {
        let files = house();
        let readers = |call: &str| -> Vec<&str> {
            files.iter().filter(|(_, code)| code.contains(call)).map(|(module, _)| module.as_str()).collect()
        };
        assert_eq!(readers("SystemTime::now"), CLOCK);
        assert_eq!(readers("env::var"), ENVIRONMENT);
    }

    /// A call of somebody, one to a DataHUB, a line of the log, a start.
    const CLOCK: [&str; 19] = [
        "access_log",
        "access_log::line",
        "auth::callback",
        "auth::exchange",
        "auth::login",
        "auth::logout",
        "auth::personal_token",
        "auth::refresh",
        "auth::status",
        "bridge",
        "cli",
        "config",
        "datahub::oidc",
        "datahub::token_endpoint",
        "http::server",
        "metrics",
        "proxy",
        "proxy::call",
        "session::refresh",
    ];
    const ENVIRONMENT: [&str; 7] = [
        "access_log",
        "admin::systemd",
        "cli::check",
        "config",
        "config::credentials",
        "config::sources",
        "server::socket",
    ];
}
