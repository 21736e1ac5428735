//! One reading of a path: whoever judges it, routes by it and hardens its answer goes by the same decoded copy.
//!
//! Decoded, but for `%2F`, `%25` and `%2B`, which stay what they are, and dots, which nobody resolves on our own routes. A
//! call to a DataHUB is another thing: its path is judged and forwarded as it is spelled (`proxy.rs`).

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub};
use crate::wire::summary;

/// The answer to somebody who opens the path, and to our own script. `app` beside a status: with the policy of the app's
/// files, which may run script.
fn answers(gateway: &Gateway, path: &str) -> (String, String) {
    let ask = |fields: &str| {
        let path = path.replace("{base}", BASE);
        let answer = Browser::default().send(gateway, "GET", &path, fields, b"");
        let policy = answer.header("content-security-policy").expect("one");
        let is_app = policy.starts_with("default-src 'self'");
        assert!(is_app || policy.contains("sandbox"), "{path}: {policy}");
        assert_eq!(is_app, answer.header("vary").is_none(), "{path}: {}", answer.head);
        format!("{}{}", summary(&answer), if is_app { " app" } else { "" })
    };
    (ask(""), ask(FETCH))
}

fn judge(app: &str, rows: &[(&str, &str, &str)]) {
    let folder = Folder::default();
    folder.file("index.html", "the app");
    let dir = folder.path().to_str().expect("a plain path");
    let setup = Setup::new(&[("a", &datahub())]).and(&format!("app.url = \"{app}\"\napp.dir = {dir:?}"));
    let gateway = setup.start();
    let wrong: Vec<_> = rows
        .iter()
        .map(|(path, opened, fetched)| (path, (*opened, *fetched), answers(&gateway, path)))
        .filter(|(_, expected, (opened, fetched))| *expected != (opened.as_str(), fetched.as_str()))
        .map(|(path, _, (opened, fetched))| format!("({path:?}, {opened:?}, {fetched:?}),"))
        .collect();
    assert!(wrong.is_empty(), "at {app}:\n{}", wrong.join("\n"));
}

/// CS-01, PR-05: our own routes, open ones and guarded ones, in every spelling.
#[test]
fn the_guard_and_the_router_read_one_path() {
    const NO: &str = "403 cross_site_request";
    const NOTHING: &str = "404 not_found";
    let of_ours = [
        // Guarded, however it is spelled.
        ("{base}/auth/session", NO, "200"),
        ("{base}/%61uth/session", NO, "200"),
        ("/arcmanager/%61pi/v1/auth/session", NO, "200"),
        ("/%61rcmanager/api/%761/auth/sessio%6E", NO, "200"),
        // Open, however it is spelled.
        ("{base}/datahubs", "200", "200"),
        ("{base}/%64atahubs", "200", "200"),
        ("/arcmanager/%61pi/v1/datahub%73", "200", "200"),
        ("{base}/auth/logi%6E?datahub=x", "404 unknown_datahub", "404 unknown_datahub"),
        ("{base}/%61uth/callback", "303", "303"),
        // What is no slash to the router is none to the guard.
        ("{base}%2fauth/session", NOTHING, NOTHING),
        ("{base}%2Fdatahubs", NOTHING, NOTHING),
        ("{base}/auth%2Fsession", NO, NOTHING),
        ("{base}/auth%2flogin?datahub=x", NO, NOTHING),
        ("/arcmanager%2Fapi/v1/datahubs", NOTHING, NOTHING),
        // Nothing is decoded twice.
        ("{base}/auth/%2573ession", NO, NOTHING),
        ("{base}/%2564atahubs", NO, NOTHING),
        // Nobody resolves dots, or drops a slash or what is behind a semicolon.
        ("{base}/./datahubs", NO, NOTHING),
        ("{base}/%2e/datahubs", NO, NOTHING),
        ("{base}/auth/../datahubs", NO, NOTHING),
        ("{base}/auth/%2e%2e/datahubs", NO, NOTHING),
        ("{base}//datahubs", NO, NOTHING),
        ("{base}/datahubs/.", NO, "404 unknown_datahub"),
        ("{base}/datahubs/..", NO, "404 unknown_datahub"),
        ("{base}/auth/session/", NO, NOTHING),
        ("{base}/auth/session;x", NO, NOTHING),
        ("{base}/auth/session%3Fx", NO, NOTHING),
        ("{base}/auth/session%23", NO, NOTHING),
        ("{base}/auth/session%00", NO, NOTHING),
        ("{base}/auth/session%", NO, NOTHING),
        ("{base}/datahubs%", NO, NOTHING),
        ("{base}/datahubs%20", NO, NOTHING),
        ("{base}/DATAHUBS", NO, NOTHING),
        ("/ARCMANAGER/api/v1/datahubs", NOTHING, NOTHING),
        // What is below the base is never a file, and never open for that.
        ("{base}", NO, NOTHING),
        ("{base}/", NO, NOTHING),
        ("{base}/index.html", NO, NOTHING),
        ("{base}/%69ndex.html", NO, NOTHING),
        // A call is known by its raw spelling: a decoded one leads nowhere, but asks for the same proof.
        ("{base}/datahubs/a/api/v4/user", NO, "401 not_logged_in"),
        ("{base}/datahubs/a", NO, "401 not_logged_in"),
        ("{base}/datahubs/", NO, "404 unknown_datahub"),
        ("{base}/datahubs/%61/api/v4/user", NO, "404 unknown_datahub"),
        ("{base}/%64atahubs/a/api/v4/user", NO, NOTHING),
        ("/arcmanager/api/%761/datahubs/a/api/v4/user", NO, NOTHING),
        ("{base}/datahubs%2Fa/api/v4/user", NO, NOTHING),
    ];
    for app in ["/", "/arcmanager/", "/arcmanager/app/"] {
        let is_ours = |path: &str| {
            // With the app above, what leaves the base when decoded is a file that is not there.
            let is_below = path.starts_with("{base}%2f") || path.starts_with("{base}%2F");
            let is_beside = path.starts_with("/arcmanager%2F") || path.starts_with("/ARC");
            (app == "/arcmanager/app/" || !is_below) && (app != "/" || !is_beside)
        };
        judge(app, &of_ours.iter().filter(|(path, ..)| is_ours(path)).copied().collect::<Vec<_>>());
    }
}

/// PR-05: the app's files below a place of their own.
#[test]
fn a_file_is_one_to_everybody_below_its_place() {
    const NOTHING: &str = "404 not_found";
    judge(
        "/arcmanager/app/",
        &[
            ("/arcmanager/app/", "200 app", "200 app"),
            ("/arcmanager/app", "307 app", "307 app"),
            ("/arcmanager/app?x", "307 app", "307 app"),
            ("/arcmanager/app/?x", "200 app", "200 app"),
            ("/arcmanager/app/index.html", "200 app", "200 app"),
            ("/arcmanager/app/%69ndex.html", "200 app", "200 app"),
            ("/arcmanager/%61pp/index.html", "200 app", "200 app"),
            ("/%61rcmanager/app/", "200 app", "200 app"),
            ("/arcmanager/app//index.html", "200 app", "200 app"),
            ("/arcmanager/app/x/../index.html", "200 app", "200 app"),
            ("/arcmanager/app/x/%2e%2e/index.html", "200 app", "200 app"),
            // Whatever dots say, what is served is in the folder, and no route of ours.
            ("/arcmanager/app/../index.html", "200 app", "200 app"),
            ("/arcmanager/app/%2E%2E/%2E%2E/index.html", "200 app", "200 app"),
            ("/arcmanager/app/../api/v1/auth/session", NOTHING, NOTHING),
            ("/arcmanager/app/%2e%2e/api/v1/datahubs", NOTHING, NOTHING),
            ("/arcmanager/app/../../../../../../etc/passwd", NOTHING, NOTHING),
            ("/arcmanager/app/%2e%2e/%2e%2e/%2e%2e/etc/passwd", NOTHING, NOTHING),
            ("/arcmanager/app/nothing.js", NOTHING, NOTHING),
            // A route of the app's own, which its page knows.
            ("/arcmanager/app/projects/jo.doe/files", "200 app", "200 app"),
            ("/arcmanager/app/index.html%00", NOTHING, NOTHING),
            ("/arcmanager/app/./index.html", "400 bad_request", "400 bad_request"),
            ("/arcmanager/app/.hidden", "400 bad_request", "400 bad_request"),
            ("/arcmanager/app/%2ehidden", "400 bad_request", "400 bad_request"),
            ("/arcmanager/app/index.html%2f", "400 bad_request", "400 bad_request"),
            ("/arcmanager/app/..%2findex.html", "400 bad_request", "400 bad_request"),
            // Beside its place there is nothing, whoever asks.
            ("/", NOTHING, NOTHING),
            ("/index.html", NOTHING, NOTHING),
            ("/arcmanager", NOTHING, NOTHING),
            ("/arcmanager/appendix", NOTHING, NOTHING),
            ("/arcmanager/app%2Findex.html", NOTHING, NOTHING),
            ("/arcmanager%2fapp/index.html", NOTHING, NOTHING),
            ("/arcmanager//app/index.html", NOTHING, NOTHING),
            ("//arcmanager/app/index.html", NOTHING, NOTHING),
            ("/arcmanager/./app/index.html", NOTHING, NOTHING),
            ("/arcmanager/x/../app/index.html", NOTHING, NOTHING),
            ("/arcmanager/APP/index.html", NOTHING, NOTHING),
            ("/arcmanager/app;x/index.html", NOTHING, NOTHING),
        ],
    );
}

/// PR-05: the app's files at the root, where everything is one that is not ours.
#[test]
fn a_file_is_one_to_everybody_at_the_root() {
    const NOTHING: &str = "404 not_found";
    judge(
        "/",
        &[
            ("/", "200 app", "200 app"),
            ("/?x", "200 app", "200 app"),
            ("/index.html", "200 app", "200 app"),
            ("/%69ndex.html", "200 app", "200 app"),
            ("//index.html", "200 app", "200 app"),
            ("/nothing.js", NOTHING, NOTHING),
            ("/nothing", "200 app", "200 app"),
            ("/arcmanager/api", "200 app", "200 app"),
            ("/arcmanager/api/v1x", "200 app", "200 app"),
            ("/arcmanager/api/v1%2Fauth/session", "400 bad_request", "400 bad_request"),
            ("/arcmanager%2Fapi/v1/datahubs", "400 bad_request", "400 bad_request"),
            ("/ARCMANAGER/api/v1/datahubs", "200 app", "200 app"),
            ("/x/../arcmanager/api/v1/datahubs", NOTHING, NOTHING),
            ("//arcmanager/api/v1/datahubs", "200 app", "200 app"),
            ("/./arcmanager/api/v1/auth/session", "400 bad_request", "400 bad_request"),
        ],
    );
}

/// CS-01: a method makes no path another one.
#[test]
fn files_are_only_read() {
    let folder = Folder::default();
    folder.file("index.html", "the app");
    let dir = folder.path().to_str().expect("a plain path");
    let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}")).start();
    for path in ["/arcmanager/app", "/arcmanager/app/", "/arcmanager/%61pp/index.html", "/arcmanager/app/nothing"] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            for fields in ["Content-Length: 0\r\n".to_owned(), format!("{FETCH}Content-Length: 0\r\n")] {
                let answer = Browser::default().send(&gateway, method, path, &fields, b"");
                assert_eq!(summary(&answer), "405 method_not_allowed", "{method} {path}");
                assert_eq!(answer.header("allow").as_deref(), Some("GET, HEAD"), "{method} {path}");
            }
        }
    }
}
