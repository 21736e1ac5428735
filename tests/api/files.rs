//! The app's own files: which ones, how long they are kept, and what their pages may do.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::browser::{Answer, Browser, NAVIGATION};
use crate::gateway::{Folder, Gateway, Setup, datahub};

fn open(gateway: &Gateway, path: &str) -> Answer {
    Browser::default().send(gateway, "GET", path, NAVIGATION, b"")
}

/// Whatever a link in the folder leads to, only what is in the folder is served.
#[test]
fn no_link_leads_out_of_the_folder() {
    let (app, outside) = (Folder::default(), Folder::default());
    let secret = outside.file("secret.txt", "a secret");
    app.file("index.html", "the app");
    let file = app.file("file.txt", "a file");
    let link = |to: &std::path::Path, name: &str| symlink(to, app.path().join(name)).expect("a new name");
    link(&file, "inside.txt");
    link(app.path(), "self");
    link(&secret, "out.txt");
    link(outside.path(), "out");
    link(&app.path().join("out.txt"), "further.txt");
    link(&app.path().join("nowhere"), "dangling.txt");
    let dir = app.path().to_str().expect("a plain path");
    let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}")).start();
    for (name, served) in [
        ("file.txt", Some("a file")),
        ("inside.txt", Some("a file")),
        ("self/file.txt", Some("a file")),
        ("self/", Some("the app")),
        ("out.txt", None),
        ("further.txt", None),
        ("dangling.txt", None),
        ("out/secret.txt", None),
        ("self/out/secret.txt", None),
        // No file, and no extension: the app's page.
        ("out/secret", Some("the app")),
    ] {
        let answer = open(&gateway, &format!("/arcmanager/app/{name}"));
        let (status, text) = (answer.status, answer.text());
        assert_eq!(
            (status, Some(text.as_str()).filter(|_| status == 200)),
            (if served.is_some() { 200 } else { 404 }, served),
            "{name}"
        );
    }
    // Nor does the page itself.
    std::fs::remove_file(app.path().join("index.html")).expect("it is there");
    link(&secret, "index.html");
    for path in ["/arcmanager/app/", "/arcmanager/app/index.html", "/arcmanager/app/route"] {
        assert_eq!(open(&gateway, path).status, 404, "{path}");
    }
}

/// Whoever opens a pipe waits for its other end, and a thread for each call with it.
#[test]
fn a_pipe_in_the_folder_is_no_file_and_keeps_nobody() {
    let app = Folder::default();
    app.file("index.html", "the app");
    let pipe =
        |name: &str| assert!(Command::new("mkfifo").arg(app.path().join(name)).status().expect("there").success());
    pipe("pipe.js");
    pipe("pipe");
    let dir = app.path().to_str().expect("a plain path");
    let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}")).start();
    for (name, status) in [("pipe.js", 404), ("pipe", 200), ("", 200)] {
        assert_eq!(open(&gateway, &format!("/arcmanager/app/{name}")).status, status, "{name}");
    }
    std::fs::remove_file(app.path().join("index.html")).expect("it is there");
    pipe("index.html");
    for path in ["/arcmanager/app/", "/arcmanager/app/index.html", "/arcmanager/app/route"] {
        assert_eq!(open(&gateway, path).status, 404, "{path}");
    }
}

/// A folder that is itself a link may be swapped for another while the gateway runs.
#[test]
fn a_release_of_the_app_takes_the_place_of_the_last() {
    let (old, new, place) = (Folder::default(), Folder::default(), Folder::default());
    old.file("index.html", "old");
    new.file("index.html", "new");
    let current = place.path().join("current");
    symlink(old.path(), &current).expect("a new name");
    let gateway =
        Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {:?}", current.to_str().expect("plain"))).start();
    assert_eq!(open(&gateway, "/arcmanager/app/route").text(), "old");
    std::fs::remove_file(&current).expect("it is there");
    symlink(new.path(), &current).expect("a new name");
    assert_eq!(open(&gateway, "/arcmanager/app/route").text(), "new");
}

#[test]
fn pages_are_asked_for_again_and_hashed_files_are_kept() {
    let app = Folder::default();
    for name in ["index.html", "about.html", "index-BfXk2a9Z.js", "logo.svg"] {
        app.file(name, name);
    }
    let dir = app.path().to_str().expect("a plain path");
    let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}")).start();
    let no_cache = Some("no-cache");
    for (path, status, caching) in [
        ("", 200, no_cache),
        ("about.html", 200, no_cache),
        ("projects/230", 200, no_cache),
        ("index-BfXk2a9Z.js", 200, Some("public, max-age=31536000, immutable")),
        ("logo.svg", 200, None),
        ("gone-BfXk2a9Z.js", 404, Some("no-store")),
    ] {
        let answer = open(&gateway, &format!("/arcmanager/app/{path}"));
        assert_eq!((answer.status, answer.header("cache-control").as_deref()), (status, caching), "{path}");
    }
    let page = open(&gateway, "/arcmanager/app/");
    let known = format!("If-None-Match: {}\r\n", page.header("etag").expect("one"));
    let again = Browser::default().send(&gateway, "GET", "/arcmanager/app/", &known, b"");
    assert_eq!((again.status, again.header("cache-control").as_deref()), (304, no_cache));
}

/// The ARCmanager has always sent people to `index.html`.
#[test]
fn the_apps_url_may_name_its_page() {
    let app = Folder::default();
    app.file("index.html", "the app");
    app.file("app.js", "its script");
    let dir = app.path().to_str().expect("a plain path");
    for (url, folder) in [
        ("/arcmanager/app/index.html", "/arcmanager/app/"),
        ("/index.html", "/"),
        ("/v1.2", "/v1.2/"),
        ("/app/", "/app/"),
    ] {
        let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}\napp.url = {url:?}")).start();
        for (name, text) in [("", "the app"), ("index.html", "the app"), ("app.js", "its script"), ("route", "the app")]
        {
            let answer = open(&gateway, &format!("{folder}{name}"));
            assert_eq!((answer.status, answer.text().as_str()), (200, text), "{url} {name}");
        }
    }
}

/// Whoever looks after the gateway is told of a disk that fails; only what is not there is not found.
#[test]
fn a_page_that_cannot_be_read_is_no_page_that_is_not_there() {
    let app = Folder::default();
    let dir = app.path().to_str().expect("a plain path");
    // A socket is no file that can be opened, whoever tries.
    let _page = UnixListener::bind(app.path().join("index.html")).expect("a new name");
    let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}")).start();
    for (path, status) in [("", 500), ("route", 500), ("gone.js", 404)] {
        assert_eq!(open(&gateway, &format!("/arcmanager/app/{path}")).status, status, "{path}");
    }
}

#[test]
fn what_pages_may_do_is_the_operators_to_say() {
    let app = Folder::default();
    app.file("index.html", "the app");
    let dir = app.path().to_str().expect("a plain path");
    let csp = "default-src 'self' 'wasm-unsafe-eval'; worker-src blob:";
    let setup = Setup::new(&[("a", &datahub())]).and(&format!("app.dir = {dir:?}\napp.csp = {csp:?}"));
    let gateway = setup.start();
    for path in ["/arcmanager/app/", "/arcmanager/app/route"] {
        assert_eq!(open(&gateway, path).header("content-security-policy").as_deref(), Some(csp));
    }
    let missing = open(&gateway, "/arcmanager/app/x.js").header("content-security-policy");
    assert!(missing.expect("one").contains("sandbox"), "what is no file has our own");
}
