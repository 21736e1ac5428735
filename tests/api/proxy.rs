//! What goes through, and what does not.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use datahub::DataHub;
use datahub::behaviour::Answer as Manner;

use crate::browser::{Answer, Browser, FETCH, NAVIGATION};
use crate::gateway::{BASE, Gateway, Setup, datahub};

/// A gateway with these lines in its file, a DataHUB behind it that has forgotten the login, and who is logged in.
pub fn set_up(lines: &str) -> (DataHub, Gateway, Browser) {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and(lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    (hub, gateway, browser)
}

fn call(browser: &Browser, gateway: &Gateway, method: &str, raw: &str, fields: &str, body: &[u8]) -> Answer {
    let length =
        if body.is_empty() && method != "PUT" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    browser.send(gateway, method, &format!("{BASE}/datahubs/a{raw}"), &format!("{FETCH}{fields}{length}"), body)
}

/// PQ-04: the corpus of calls that proxies break.
#[test]
fn the_target_arrives_byte_for_byte() {
    let (hub, gateway, browser) = set_up("");
    let json = "Content-Type: application/json\r\n";
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for (method, raw, fields, body) in [
        ("GET", "/api/v4/projects?min_access_level=30&page=2", "", ""),
        ("HEAD", "/api/v4/projects", "", ""),
        ("GET", "/api/v4/projects/lu98be%2Ftestarc?license=true", "", ""),
        ("GET", "/api/v4/projects/group%2fsub%2fproj%2Ename/repository/branches", "", ""),
        (
            "GET",
            "/api/v4/projects/230/repository/tree?path=assays%2Fassay%201%2Fdataset&ref=feature%2Fx&per_page=100&page=1&recursive=true",
            "",
            "",
        ),
        (
            "HEAD",
            "/api/v4/projects/230/repository/files/assays%2Fm%C3%A4%C3%9Fe%20%231%2Fisa.assay.xlsx?ref=main",
            "",
            "",
        ),
        (
            "GET",
            "/api/v4/projects/230/repository/files/100%25%20sure%252Fnot.txt/raw?ref=main",
            "If-None-Match: W/\"abc\"\r\n",
            "",
        ),
        (
            "GET",
            "/api/v4/projects/230/repository/files/a+b;c,d@e!f(g)'h*~.csv/raw?ref=v1.0.0-rc.1",
            "Range: bytes=0-99\r\n",
            "",
        ),
        (
            "POST",
            "/api/v4/projects/230/repository/files/runs%2F.gitkeep2",
            json,
            r#"{"branch":"main","content":"","commit_message":"Created new folder runs"}"#,
        ),
        (
            "PUT",
            "/api/v4/projects/230/repository/files/isa.investigation.xlsx",
            json,
            r#"{"branch":"main","content":"eA==","encoding":"base64","commit_message":"x"}"#,
        ),
        (
            "DELETE",
            "/api/v4/projects/230/repository/files/dir%2Fold%20name.md",
            json,
            r#"{"branch":"main","commit_message":"x"}"#,
        ),
        (
            "POST",
            "/api/v4/projects/230/repository/commits",
            json,
            r#"{"branch":"main","commit_message":"ü","actions":[{"action":"create","file_path":"ä.md","content":"ß"}]}"#,
        ),
        (
            "PATCH",
            "/api/v4/projects/230/protected_branches/release%2F1.x?allow_force_push=true",
            "Content-Length: 0\r\n",
            "",
        ),
        ("POST", "/api/v4/projects/230/members", form, "user_id=137&access_level=30"),
        ("PUT", "/api/v4/projects/230/members/137?access_level=40", "", ""),
        ("GET", "/api/v4/projects/1/jobs?scope[]=success&scope[]=failed&scope%5B%5D=manual&per_page=20", "", ""),
        ("GET", "/api/v4/projects?pagination=keyset&per_page=50&order_by=id&sort=asc&id_after=42", "", ""),
        (
            "GET",
            "/api/v4/projects/230/issues?created_after=2017-10-17T23:11:13.000%2B05:30&search=a+b%20c%26d&not[labels]=x,y&labels=&",
            "",
            "",
        ),
        ("GET", "/api/v4/version?", "", ""),
        ("GET", "/api/v4/version/", "", ""),
        ("GET", "/api/v4//version", "", ""),
    ] {
        hub.clear();
        let answer = call(&browser, &gateway, method, raw, fields, body.as_bytes());
        assert!(answer.status < 500, "{method} {raw}: {} {}", answer.head, answer.text());
        let requests = hub.requests();
        let [request] = requests.as_slice() else { panic!("{method} {raw}: {} requests", requests.len()) };
        assert_eq!((request.method().as_str(), request.target().as_str()), (method, raw));
        assert_eq!(request.body, body.as_bytes(), "{method} {raw}");
        assert_eq!(request.header_values("authorization").len(), 1, "{method} {raw}");
    }
}

/// PQ-05, PQ-06, PQ-12: rows 20 and 21 of the corpus.
#[test]
fn a_target_that_leads_elsewhere_or_carries_a_credential_is_refused_here() {
    let (hub, gateway, browser) = set_up("");
    for (raw, code) in [
        ("/api/v4/projects/1/../../../oauth/token", "bad_request_target"),
        ("/api/v4/%2e%2e/%2e%2e/users/sign_in", "bad_request_target"),
        ("/api/v4/projects/..%2f..%2fadmin", "bad_request_target"),
        ("/api/v4/./user", "bad_request_target"),
        ("/api/v4/projects/x%5c..%5cy", "bad_request_target"),
        ("/api/v4/projects/%252e%252e%252fadmin", "bad_request_target"),
        ("/api/v4/user%00", "bad_request_target"),
        ("/api/v4/user%0d%0aX:%20y", "bad_request_target"),
        ("/api/v4/user?private_token=glpat-x", "credential_parameter"),
        ("/api/v4/user?access%5Ftoken=x", "credential_parameter"),
        ("/api/v4/user?a=1;access_token=x", "credential_parameter"),
        ("/api/v4/user?bearer_token[]=x", "credential_parameter"),
        ("/api/v4/user?sudo=root", "credential_parameter"),
        ("/api/v4/user/personal_access_tokens", "credential_endpoint"),
        ("/api/v4/projects/230/%61ccess_tokens/", "credential_endpoint"),
        ("/oauth/token", "not_forwarded"),
        ("/", "not_forwarded"),
        ("", "bad_request_target"),
        ("/api/graphql", "not_forwarded"),
        ("/group/project.git/info/refs?service=git-upload-pack", "not_forwarded"),
        ("//evil.test/api/v4/user", "not_forwarded"),
    ] {
        let answer = call(&browser, &gateway, "GET", raw, "", b"");
        assert_eq!(answer.code(), code, "{raw}: {}", answer.text());
    }
    assert!(hub.requests().is_empty(), "nothing was forwarded");
    gateway.wait_for_event("target_refused");
    gateway.wait_for_event("credential_refused");
    for raw in
        ["/api/v4/projects/a..b", "/api/v4/projects/1/repository/files/.gitattributes", "/api/v4/projects?search=sudo"]
    {
        let answer = call(&browser, &gateway, "GET", raw, "", b"");
        assert!(!answer.head.contains("problem+json"), "{raw}: GitLab's own answer, whatever it is");
    }
}

/// PQ-02, PQ-03.
#[test]
fn what_is_opened_is_open_and_nothing_beside_it() {
    let (hub, gateway, browser) =
        set_up("proxy.graphql = true\nproxy.allow_credential_endpoints = [\"projects/*/triggers\"]");
    let long = format!("{{\"query\":\"{{a}}\",\"variables\":{{\"a\":\"{}\"}}}}", "x".repeat(64 * 1024));
    let json = "Content-Type: application/json; charset=utf-8\r\n";
    for (method, raw, fields, body, code) in [
        (
            "POST",
            "/api/graphql",
            json,
            r#"{"query":"query($p:ID!){project(fullPath:$p){id}}","variables":{"p":"x"}}"#,
            "",
        ),
        ("POST", "/api/graphql", json, r#"{"query":"mutation{createNote(input:{}){errors}}"}"#, ""),
        ("POST", "/api/v4/projects/1/triggers", json, "{}", ""),
        ("POST", "/api/v4/projects/1/deploy_tokens", json, "{}", "credential_endpoint"),
        (
            "POST",
            "/api/graphql",
            json,
            r#"{"query":"mutation{personalAccessTokenCreate(input:{}){token}}"}"#,
            "credential_endpoint",
        ),
        ("POST", "/api/graphql", json, r#"[{"query":"{a}"}]"#, "bad_request"),
        ("POST", "/api/graphql", json, &long, "body_too_large"),
        ("POST", "/api/graphql", "Content-Type: text/plain\r\n", r#"{"query":"{a}"}"#, "bad_request"),
        ("POST", "/api/graphql", "Content-Type: application/graphql\r\n", "{a}", "bad_request"),
        ("POST", "/api/graphql?query=%7Ba%7D", json, r#"{"query":"{a}"}"#, "not_forwarded"),
        ("PUT", "/api/graphql", json, r#"{"query":"{a}"}"#, "method_not_allowed"),
        ("GET", "/api/graphql", "", "", "method_not_allowed"),
    ] {
        hub.clear();
        let answer = call(&browser, &gateway, method, raw, fields, body.as_bytes());
        if code.is_empty() {
            let requests = hub.requests();
            let [request] = requests.as_slice() else { panic!("{body}: {}", answer.text()) };
            assert_eq!((request.target().as_str(), &request.body[..]), (raw, body.as_bytes()));
        } else {
            assert_eq!(answer.code(), code, "{method} {raw} {}", &body[..body.len().min(100)]);
            assert_eq!(answer.header("allow").as_deref(), (code == "method_not_allowed").then_some("POST"), "{method}");
            assert!(hub.requests().is_empty());
        }
    }
    let chunked = format!("{FETCH}{json}Transfer-Encoding: chunked\r\n");
    let target = format!("{BASE}/datahubs/a/api/graphql");
    for (body, code) in
        [(r#"{"query":"{a}"}"#, ""), (r#"{"query":"{a""#, "bad_request"), (long.as_str(), "body_too_large")]
    {
        hub.clear();
        let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let answer = browser.send(&gateway, "POST", &target, &chunked, chunks.as_bytes());
        assert_eq!(hub.requests().len(), usize::from(code.is_empty()), "{}", answer.text());
        assert!(code.is_empty() || answer.code() == code, "{}", answer.text());
    }
    gateway.wait_for_event("credential_refused");
}

/// PQ-09, PQ-10, PQ-11, PQ-13, PQ-14.
#[test]
fn what_goes_up_is_what_is_named_and_one_bearer() {
    let (hub, gateway, browser) = set_up("");
    let fields = "Accept: application/json\r\nAccept-Encoding: gzip, br\r\nAccept-Language: de\r\nUser-Agent: test\r\n\
        If-None-Match: W/\"x\"\r\nRange: bytes=0-1\r\nOrigin: http://localhost:8000\r\nReferer: http://localhost:8000/\r\n\
        PRIVATE-TOKEN: glpat-x\r\nPrivate_Token: glpat-x\r\nJOB-TOKEN: x\r\nDeploy-Token: x\r\nSudo: root\r\nAuthorization: Basic eDp5\r\n\
        X-HTTP-Method-Override: DELETE\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-For: 10.1.2.3\r\nForwarded: for=10.1.2.3\r\n\
        X_Forwarded_For: 10.1.2.3\r\nX-Real-IP: 10.1.2.3\r\nX-Request-Id: forged\r\nVia: 1.1 x\r\nX-Gitlab-Static-Object-Token: x\r\n\
        Connection: Authorization, X-Forwarded-For\r\nTE: trailers\r\nX-Foo: bar\r\n";
    let answer = call(&browser, &gateway, "GET", "/api/v4/user", fields, b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let request = hub.requests().pop().expect("one request");
    let names: BTreeSet<_> = request.headers().into_iter().map(|(name, _)| name.to_lowercase()).collect();
    let expected = [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "host",
        "if-none-match",
        "range",
        "traceparent",
        "user-agent",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
    let one = |name: &str| {
        let values = request.header_values(name);
        assert_eq!(values.len(), 1, "{name}");
        values.into_iter().next().expect("one")
    };
    assert!(one("authorization").starts_with("Bearer ") && one("authorization").len() == "Bearer ".len() + 64);
    assert_eq!(one("host"), hub.url().trim_start_matches("http://"));
    assert_eq!((one("x-forwarded-for"), one("x-forwarded-proto")), ("127.0.0.1".to_owned(), "http".to_owned()));
    assert_eq!(Some(one("x-request-id")), answer.header("x-request-id"));
}

/// PR-01, PR-02, PR-05, PR-07.
#[test]
fn what_comes_down_cannot_act_on_our_origin() {
    let (hub, gateway, browser) = set_up("");
    let hostile = [
        ("Clear-Site-Data", "\"*\""),
        ("Strict-Transport-Security", "max-age=1"),
        ("Access-Control-Allow-Origin", "*"),
        ("X-Accel-Redirect", "/etc/passwd"),
        ("X-Sendfile", "/etc/passwd"),
        ("WWW-Authenticate", "Basic realm=x"),
        ("Service-Worker-Allowed", "/"),
        ("Refresh", "0; url=https://evil.test"),
        ("Alt-Svc", "h3=\":443\""),
        ("Set-Cookie", "__Host-Http-session-a=evil; Path=/"),
        ("Server", "nginx"),
        ("X-Runtime", "1"),
        ("Connection", "keep-alive, X-Gitlab-Of-Connection"),
        ("X-Gitlab-Of-Connection", "x"),
    ];
    hub.set(|behaviour| {
        behaviour.extra_headers = hostile.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    });
    let answer = call(&browser, &gateway, "GET", "/api/v4/projects?per_page=1", "", b"");
    for (name, value) in hostile {
        assert!(!answer.headers(name).contains(&value.to_owned()), "{name} came down");
    }
    for (name, value) in [
        ("cache-control", "private, no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("content-security-policy", "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'"),
        ("x-per-page", "1"),
    ] {
        assert_eq!(answer.header(name).as_deref(), Some(value), "{name}");
    }
    assert!(
        answer.header("x-total").is_some()
            && answer.header("etag").is_some()
            && answer.header("ratelimit-limit").is_some()
    );
    assert!(answer.header("x-upstream-request-id").is_some());
}

/// PR-05: whatever the status, and whoever gave it. HSTS, which needs HTTPS: `tests/deploy/test_nginx.py`.
#[test]
fn every_answer_is_hardened_once() {
    let (hub, gateway, browser) = set_up("");
    let is_hardened = |case: &str, answer: &Answer| {
        for (name, value) in [
            ("content-security-policy", "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(answer.headers(name), [value], "{case}: {name}");
        }
    };
    for status in [
        200, 201, 202, 204, 205, 206, 300, 302, 304, 400, 403, 404, 405, 409, 412, 413, 415, 422, 429, 500, 502, 503,
        504,
    ] {
        let reply = format!(
            "HTTP/1.1 {status} X\r\nLocation: /api/v4/user\r\nContent-Length: 0\r\nX-Content-Type-Options: x\r\n\r\n"
        );
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(reply.into_bytes()));
        let answer = call(&browser, &gateway, "GET", "/api/v4/projects", "", b"");
        assert_eq!(answer.status, status);
        is_hardened(&format!("{status}"), &answer);
    }
    hub.set(|behaviour| behaviour.api.answer = Manner::CloseWithoutAnswer);
    for (method, target, fields, status) in [
        ("GET", "/datahubs", FETCH, 200),
        ("GET", "/auth/session", FETCH, 200),
        ("GET", "/auth/login?datahub=a", NAVIGATION, 302),
        ("GET", "/auth/login?datahub=x", NAVIGATION, 404),
        ("GET", "/auth/callback", NAVIGATION, 303),
        ("POST", "/auth/login", FETCH, 405),
        ("GET", "/auth/logout", FETCH, 405),
        ("POST", "/auth/refresh?datahub=x", FETCH, 404),
        ("GET", "/auth/session", "", 403),
        ("GET", "/datahubs/a/api/v4/user", "", 403),
        ("GET", "/datahubs/a/api/v4/user", FETCH, 502),
        ("GET", "/datahubs/a/api/v4/../user", FETCH, 400),
        ("GET", "/datahubs/a/api/v4/user?sudo=1", FETCH, 400),
        ("GET", "/datahubs/a/oauth/token", FETCH, 404),
        ("GET", "/datahubs/x/api/v4/user", FETCH, 404),
        ("GET", "/nothing", FETCH, 404),
        ("OPTIONS", "/auth/session", "Origin: https://evil.test\r\nAccess-Control-Request-Method: GET\r\n", 403),
        ("TRACE", "/auth/session", FETCH, 501),
        ("GET", "/auth/session", "Upgrade: websocket\r\n", 501),
        ("GET", "/auth/session", "Host: evil.test\r\n", 421),
        ("GET", "/auth/session", "Content-Length: +1\r\n", 400),
        ("GET", "/auth/session", "Content-Length: 1\r\n", 400),
        ("POST", "/auth/logout", FETCH, 204),
    ] {
        let answer = browser.send(&gateway, method, &format!("{BASE}{target}"), fields, b"");
        assert_eq!(answer.status, status, "{method} {target} {fields}");
        is_hardened(&format!("{method} {target} {fields}"), &answer);
    }
    let long = format!("{FETCH}X-Long: {}\r\n", "a".repeat(32 * 1024));
    let answer = browser.send(&gateway, "GET", &format!("{BASE}/auth/session"), &long, b"");
    assert_eq!(answer.status, 431);
    is_hardened("431", &answer);
    let answer = call(&Browser::default(), &gateway, "GET", "/api/v4/user", "", b"");
    assert_eq!(answer.status, 401);
    is_hardened("401", &answer);
}

/// PR-03, PQ-16: where a redirect leads is for the browser to see; the gateway follows none.
#[test]
fn links_into_the_api_lead_through_the_gateway_and_paging_goes_on() {
    let (hub, gateway, browser) = set_up("");
    let mut next = "/api/v4/projects?pagination=keyset&per_page=20&order_by=id&sort=asc".to_owned();
    let mut seen = 0;
    loop {
        let answer = call(&browser, &gateway, "GET", &next, "", b"");
        seen += answer.json().as_array().expect("a list").len();
        let Some(link) = answer.header("link") else { break };
        assert!(!link.contains(hub.url()), "{link}");
        let url =
            link.split('<').nth(1).and_then(|rest| rest.split_once(">; rel=\"next\"")).map(|(url, _)| url.to_owned());
        let Some(url) = url else { break };
        next = url
            .strip_prefix("http://localhost:8000/arcmanager/api/v1/datahubs/a")
            .expect("a URL of the gateway")
            .to_owned();
    }
    assert!(seen > 40, "{seen} projects");

    let moved = call(&browser, &gateway, "GET", "/api/v4/projects/old%2Fname", "", b"");
    assert_eq!(
        (moved.status, moved.location()),
        (301, format!("http://localhost:8000{BASE}/datahubs/a/api/v4/projects/81"))
    );
    hub.clear();
    let stored = call(&browser, &gateway, "GET", "/api/v4/projects/230/jobs/9/artifacts", "", b"");
    assert_eq!(stored.status, 302);
    assert!(stored.location().starts_with("https://"), "storage elsewhere: unchanged, and not followed");
    assert_eq!(hub.requests().len(), 1);

    for (location, status) in [
        ("https://elsewhere.example/a?b=c", 302),
        ("http://elsewhere.example/a", 502),
        ("http://169.254.169.254/latest/meta-data", 502),
        ("javascript:alert(1)", 502),
        ("//evil.test/", 502),
        ("/users/sign_in", 502),
        ("/api/v4/user", 302),
    ] {
        hub.set(|behaviour| behaviour.api.answer = Manner::Redirect(location.to_owned()));
        assert_eq!(call(&browser, &gateway, "GET", "/api/v4/user", "", b"").status, status, "{location}");
    }
    // What has been made is made.
    let made = "HTTP/1.1 201 Created\r\nLocation: /users/sign_in\r\nContent-Length: 0\r\n\r\n";
    hub.set(|behaviour| behaviour.api.answer = Manner::Raw(made.as_bytes().to_vec()));
    let answer = call(&browser, &gateway, "POST", "/api/v4/projects", "", b"x");
    assert_eq!((answer.status, answer.header("location")), (201, None));
}

/// PR-02, PR-03: pages are linked, and nothing that a browser would load by itself.
#[test]
fn of_links_only_those_to_other_pages_come_down() {
    let (hub, gateway, browser) = set_up("");
    let page = format!("<{}/api/v4/projects?page=2>", hub.url());
    let here = format!("<http://localhost:8000{BASE}/datahubs/a/api/v4/projects?page=2>");
    for (link, expected) in [
        (format!("{page}; rel=\"next\""), Some(format!("{here}; rel=\"next\""))),
        (
            format!("{page}; rel=\"prev\", {page};rel=last; title=\"a, b\""),
            Some(format!("{here}; rel=\"prev\", {here};rel=last; title=\"a, b\"")),
        ),
        // The path is the call's own: nobody is led elsewhere.
        ("<https://evil.test/api/v4/projects?page=2>; rel=\"next\"".to_owned(), Some(format!("{here}; rel=\"next\""))),
        (
            format!("{page}; rel=\"next\",<https://evil.test/>; rel=\"next\", {page}; rel=\"last\""),
            Some(format!("{here}; rel=\"next\", {here}; rel=\"last\"")),
        ),
        (format!("{page}; rel=preload; as=script, {page}; rel=\"first\""), Some(format!("{here}; rel=\"first\""))),
        (format!("{page}; rel=\"preload\""), None),
        (format!("{page}; rel=\"next modulepreload\""), None),
        (format!("{page}; rel=\"next\"; rel=\"preload\""), None),
        (page.clone(), None),
        (format!("<{}/users/sign_in>; rel=\"next\"", hub.url()), None),
        ("<https://evil.test/api/v4/groups>; rel=\"next\"".to_owned(), None),
        ("<//evil.test/api/v4/projects>; rel=\"next\"".to_owned(), None),
        ("nonsense".to_owned(), None),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nLink: {link}\r\nContent-Length: 0\r\n\r\n");
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(answer.into_bytes()));
        assert_eq!(call(&browser, &gateway, "GET", "/api/v4/projects", "", b"").header("link"), expected, "{link}");
    }
}

#[test]
fn heads_ranges_and_empty_answers_stay_what_they_are() {
    let (_hub, gateway, browser) = set_up("");
    let file = "/api/v4/projects/230/repository/files/README.md";
    let head = call(&browser, &gateway, "HEAD", &format!("{file}?ref=main"), "", b"");
    let got = call(&browser, &gateway, "GET", &format!("{file}?ref=main"), "", b"");
    assert_eq!((head.status, head.header("content-length")), (200, got.header("content-length")));
    assert_eq!(head.header("x-gitlab-file-name").as_deref(), Some("README.md"));

    let raw = format!("{file}/raw?ref=main");
    let whole = call(&browser, &gateway, "GET", &raw, "", b"");
    let etag = whole.header("etag").expect("an ETag");
    let same = call(&browser, &gateway, "GET", &raw, &format!("If-None-Match: {etag}\r\n"), b"");
    assert_eq!((same.status, same.header("etag"), same.body.len()), (304, Some(etag), 0));
    let part = call(&browser, &gateway, "GET", &raw, "Range: bytes=2-5\r\n", b"");
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[2..=5]));
    assert!(part.header("content-range").expect("a range").starts_with("bytes 2-5/"));

    let deleted = call(
        &browser,
        &gateway,
        "DELETE",
        &file.replace("README", "LICENSE-none"),
        "Content-Type: application/json\r\n",
        b"{\"branch\":\"main\",\"commit_message\":\"x\"}",
    );
    assert_eq!(deleted.status, 400, "GitLab's own answer");
    call(
        &browser,
        &gateway,
        "POST",
        "/api/v4/projects/230/members",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        b"user_id=137&access_level=30",
    );
    let gone = call(&browser, &gateway, "DELETE", "/api/v4/projects/230/members/137", "", b"");
    assert_eq!((gone.status, gone.header("content-length")), (204, None));
}

/// PR-04.
#[test]
fn what_a_browser_might_run_is_an_attachment() {
    let (hub, gateway, browser) = set_up("");
    let hostile = call(
        &browser,
        &gateway,
        "GET",
        "/api/v4/projects/230/jobs/artifacts/main/raw/public/report%20(1).html?job=build%3Atest",
        "",
        b"",
    );
    assert!(hostile.header("content-disposition").expect("one").starts_with("attachment"), "{}", hostile.head);
    for (kind, is_attachment) in [
        ("Content-Type: text/html\r\n", true),
        ("Content-Type: Text/HTML; charset=utf-7\r\n", true),
        ("Content-Type: text/html; a=\u{e4}\r\n", true),
        ("Content-Type: image/svg+xml\r\n", true),
        ("Content-Type: text/xml\r\n", true),
        ("Content-Type: application/xhtml+xml\r\n", true),
        ("Content-Type: application/pdf\r\n", true),
        ("Content-Type: text/javascript\r\n", true),
        ("Content-Type: text/css\r\n", true),
        ("Content-Type: multipart/x-mixed-replace; boundary=a\r\n", true),
        ("Content-Type: application/json, text/html\r\n", true),
        ("Content-Type: text/html +json\r\n", true),
        ("Content-Type: text/html(+json\r\n", true),
        ("Content-Type: text/html, a/b+json\r\n", true),
        ("Content-Type: application/xhtml+xml +json\r\n", true),
        ("Content-Type:\r\n", true),
        ("", true),
        ("Content-Type: application/json\r\n", false),
        ("Content-Type: application/problem+json\r\n", false),
        ("Content-Type: text/plain; charset=utf-8\r\n", false),
        ("Content-Type: image/png\r\n", false),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\n{kind}Content-Disposition: inline; filename=\"x\"\r\nContent-Length: 1\r\n\r\nx"
        );
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(answer.into_bytes()));
        let answer = call(&browser, &gateway, "GET", "/api/v4/user", "", b"");
        let expected = if is_attachment { "attachment; filename=\"x\"" } else { "inline; filename=\"x\"" };
        assert_eq!(answer.header("content-disposition").as_deref(), Some(expected), "{kind}");
    }
    for (head, status, expected) in [
        ("201 Created\r\nContent-Length: 0", 201, None),
        ("200 OK\r\nContent-Type: text/plain\r\nContent-Length: 0", 200, None),
        ("200 OK\r\nContent-Type: text/plain\r\nContent-Type: text/html\r\nContent-Length: 0", 502, None),
    ] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\n");
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(answer.into_bytes()));
        let answer = call(&browser, &gateway, "GET", "/api/v4/user", "", b"");
        assert_eq!((answer.status, answer.header("content-disposition")), (status, expected), "{head}");
    }
}

/// PQ-12.
#[test]
fn credentials_in_short_bodies_are_refused_and_everything_else_passes() {
    let (hub, gateway, browser) = set_up("");
    let (json, form) =
        ("Content-Type: application/json\r\n", "Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n");
    let parts = "Content-Type: multipart/form-data; boundary=X\r\n";
    let part = |name: &str| format!("--X\r\nContent-Disposition: form-data; {name}\r\n\r\nroot\r\n--X--\r\n");
    let comma =
        |name: &str, inner: &str| part(name).replace("--X", "--X,Y").replace("root", &format!("root\r\n{inner}"));
    let comma_kind = "Content-Type: multipart/form-data; boundary=\"X,Y\"\r\n";
    for (kind, body, code) in [
        (json, r#"{"private_token":"x"}"#, "credential_parameter"),
        (json, r#"{"a":{"b":[1]},"sudo":1}"#, "credential_parameter"),
        (json, r#"{"\u0073udo":1}"#, "credential_parameter"),
        (json, r#"{"[sudo]":1}"#, "credential_parameter"),
        (json, r#"{"a":{"sudo":1},"token":"x"}"#, ""),
        (json, "[\"sudo\"]", ""),
        (json, " \"sudo\" ", ""),
        // What another parser might take.
        (json, "{\"sudo\"", "credential_parameter"),
        (json, "/**/{\"sudo\":1}", "credential_parameter"),
        (json, "{\"a\":1,//\n\"sudo\":1}", "credential_parameter"),
        (json, "\u{feff}{\"sudo\":1}", "credential_parameter"),
        (json, "{\"a\":NaN,\"sudo\":1}", "credential_parameter"),
        (json, "{\"sudo\":1,}", "credential_parameter"),
        (json, "{\"sudo\":1} x", "credential_parameter"),
        (json, "{\"su\\do\":1}", "bad_request"),
        (json, "/**/{\"\\u0073udo\":1}", "bad_request"),
        (json, "no JSON at all", ""),
        (json, "{\"\\ud800\":1,\"sudo\":1}", "credential_parameter"),
        (json, "{\"\\ud800\":1}", ""),
        ("Content-Type: application/json, text/plain\r\n", r#"{"sudo":1}"#, "credential_parameter"),
        ("Content-Type: application/vnd.api+json\r\n", r#"{"sudo":1}"#, "credential_parameter"),
        ("Content-Type: text/x-json\r\n", r#"{"sudo":1}"#, "credential_parameter"),
        (form, "a=b&sudo=root", "credential_parameter"),
        (form, "%73udo[]=root", "credential_parameter"),
        (form, "[sudo]=root", "credential_parameter"),
        (form, "a=b& sudo=root", "credential_parameter"),
        (form, "token=x&a=sudo", ""),
        ("Content-Type: application/x-www-form-urlencoded, x\r\n", "sudo=root", "credential_parameter"),
        ("", "sudo=root", "credential_parameter"),
        ("Content-Type: text/plain\r\n", "sudo=root", ""),
        ("Content-Type: text/plain\r\nContent-Type: application/json\r\n", "{}", "bad_request"),
        (parts, &part("name=\"file\"; filename=\"sudo\""), ""),
        (
            "Content-Type: multipart/form-data; boundary=----WebKitFormBoundaryX\r\n",
            &part("name=\"file\"").replace("--X", "------WebKitFormBoundaryX"),
            "",
        ),
        (parts, &part("name=file; filename=\"na\u{ef}ve.pdf\""), ""),
        (parts, &part("name=\"sudo\""), "credential_parameter"),
        (parts, &part("name=\"private_token[]\"; filename=\"a\""), "credential_parameter"),
        (parts, &part("name=sudo"), "credential_parameter"),
        (parts, &part("name=\"[sudo]\""), "credential_parameter"),
        (parts, &part("name=\"a\"; name=\"sudo\""), "credential_parameter"),
        (parts, &part("name=\"a\"; filename=\"x; name=sudo\""), "credential_parameter"),
        (parts, &part("name=\"a\"; filename=\"x; name=y\""), ""),
        (parts, &part("NAME = \"sudo\""), "bad_request"),
        (parts, &part("filename=\"a\"; name=\"b\""), ""),
        (parts, &part("name=\"su\\do\""), "bad_request"),
        (parts, &part("name=sudo/x"), "credential_parameter"),
        (parts, &part("name=\"\"; filename=\"sudo\""), "bad_request"),
        (parts, &part("name*=utf-8''sudo"), "bad_request"),
        (parts, &part("name=\"a\"; name *=utf-8''sudo"), "bad_request"),
        (parts, &part("filename=\"a\""), "bad_request"),
        (parts, &part("name=\"a\"\r\nContent-ID: sudo"), "bad_request"),
        (parts, &part("name=\"a\"\r\nX-Content-Disposition: form-data; name=\"sudo\""), "bad_request"),
        (parts, &part("name=\"a\"\n\nContent-Disposition: form-data; name=\"sudo\""), "bad_request"),
        (parts, &format!("--X--\r\n{}", part("name=\"sudo\"")), "bad_request"),
        (parts, &format!("preamble\r\n{}", part("name=\"a\"")), ""),
        (parts, &format!("{}epilogue", part("name=\"a\"")), ""),
        (parts, "--X--\r\n", ""),
        (parts, "--X\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nbroken off", "bad_request"),
        ("Content-Type: multipart/form-data\r\n", &part("name=\"a\""), "bad_request"),
        ("Content-Type: multipart/form-data; boundary=X; boundary=Y\r\n", &part("name=\"a\""), "bad_request"),
        // Rack's boundary ends at the comma.
        (comma_kind, &comma("name=\"a\"", ""), ""),
        (comma_kind, &comma("name=\"sudo\"", ""), "credential_parameter"),
        (comma_kind, &comma("name=\"a\"", "--X\r\n"), "bad_request"),
        (comma_kind, &comma("name=\"a\"", "--X \r\n"), "bad_request"),
        (comma_kind, &comma("name=\"a\"", "--X\n"), "bad_request"),
        (comma_kind, &format!("{}--X", comma("name=\"a\"", "")), "bad_request"),
        ("Content-Type: multipart/mixed; boundary=X\r\n", &part("name=\"sudo\""), "credential_parameter"),
    ] {
        hub.clear();
        let answer = call(&browser, &gateway, "POST", "/api/v4/projects/230/issues", kind, body.as_bytes());
        if code.is_empty() {
            assert_eq!(hub.requests().len(), 1, "{kind}{body}: {}", answer.text());
        } else {
            assert_eq!((answer.status, answer.code().as_str()), (400, code), "{kind}{body}");
            assert!(hub.requests().is_empty(), "{kind}{body}");
        }
    }
    for twice in ["Range: bytes=0-1\r\n", "User-Agent: a\r\n", "If-Range: \"a\"\r\n"] {
        let answer = call(&browser, &gateway, "GET", "/api/v4/user", &twice.repeat(2), b"");
        assert_eq!(answer.code(), "bad_request", "{twice}");
        assert_eq!(call(&browser, &gateway, "GET", "/api/v4/user", twice, b"").head.get(9..11), Some("20"), "{twice}");
    }
}

/// PQ-11, DS-02.
#[test]
fn nobody_gets_through_without_a_session_or_to_a_datahub_that_is_not_there() {
    let (hub, gateway, browser) =
        set_up("limits.body = \"1KiB\"\nlimits.target = \"1KiB\"\nlimits.head = \"4KiB\"\nlimits.fields = 30");
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(call(&Browser::default(), &gateway, "GET", "/api/v4/user", bearer, b"").code(), "not_logged_in");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/b/api/v4/user").code(), "unknown_datahub");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/%61/api/v4/user").code(), "unknown_datahub");
    assert_eq!(browser.fetch(&gateway, "GET", "/nothing").code(), "not_found");
    for (status, code, method, raw, fields, body) in [
        (413, "body_too_large", "POST", "/api/v4/projects".to_owned(), String::new(), vec![b'x'; 1_025]),
        (414, "target_too_long", "GET", format!("/api/v4/{}", "a".repeat(1_024)), String::new(), vec![]),
        (431, "head_too_large", "GET", "/api/v4/user".into(), format!("X-Long: {}\r\n", "a".repeat(4_096)), vec![]),
        (431, "head_too_large", "GET", "/api/v4/user".into(), "X-Many: 1\r\n".repeat(30), vec![]),
        (501, "method_not_implemented", "TRACE", "/api/v4/user".into(), String::new(), vec![]),
        (
            501,
            "upgrade_refused",
            "GET",
            "/api/v4/user".into(),
            "Connection: upgrade\r\nUpgrade: websocket\r\n".into(),
            vec![],
        ),
    ] {
        let answer = call(&browser, &gateway, method, &raw, &fields, &body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method}");
    }
    assert!(hub.requests().is_empty());
    assert_eq!(
        call(&browser, &gateway, "POST", "/api/v4/projects", "", &[b'x'; 1_024]).status,
        400,
        "GitLab's own answer"
    );
    // In chunks nobody knows before, and what was too long never looks whole.
    for (length, status) in [(1_024, 400), (1_025, 413)] {
        hub.clear();
        let chunks =
            format!("200\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(512), length - 512, "x".repeat(length - 512));
        let fields = format!("{FETCH}Transfer-Encoding: chunked\r\n");
        let answer =
            browser.send(&gateway, "POST", &format!("{BASE}/datahubs/a/api/v4/projects"), &fields, chunks.as_bytes());
        assert_eq!(answer.status, status, "{length} bytes");
        assert_eq!(hub.requests().iter().filter(|request| request.complete).count(), usize::from(status == 400));
    }
    assert_eq!(
        call(&browser, &gateway, "GET", &format!("/api/v4/{}", "a".repeat(900)), "", b"").status,
        404,
        "GitLab's own answer"
    );
}

#[test]
fn a_datahub_in_trouble_is_told_from_ours() {
    let (hub, gateway, browser) = set_up("timeouts.first_byte = \"1s\"");
    for (case, trouble, status, code) in [
        ("closed", Manner::CloseWithoutAnswer, 502, "datahub_unreachable"),
        ("hangs", Manner::Hang, 504, "datahub_timeout"),
        ("not HTTP", Manner::Raw(b"hello\r\n\r\n".to_vec()), 502, "datahub_invalid_response"),
        (
            "two lengths",
            Manner::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx".to_vec()),
            502,
            "datahub_invalid_response",
        ),
        (
            "a length and chunks",
            Manner::Raw(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            ),
            502,
            "datahub_invalid_response",
        ),
        (
            "an upgrade",
            Manner::Raw(b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec()),
            502,
            "datahub_invalid_response",
        ),
    ] {
        hub.set(|behaviour| behaviour.api.answer = trouble);
        let answer = call(&browser, &gateway, "GET", "/api/v4/user", "", b"");
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{case}");
    }
    hub.set(|behaviour| behaviour.api.answer = Manner::Html(502));
    let page = call(&browser, &gateway, "GET", "/api/v4/user", "", b"");
    assert_eq!(page.status, 502);
    assert!(page.header("content-disposition").is_some(), "GitLab's own page is passed on as a file");
    hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
    assert_eq!(call(&browser, &gateway, "GET", "/api/v4/user", "", b"").status, 200);
    drop(hub);
    assert_eq!(call(&browser, &gateway, "GET", "/api/v4/user", "", b"").code(), "datahub_unreachable");
}

/// PR-08: what is said to be wrong is one of our own sentences. What the DataHUB itself says comes down as it is.
#[test]
fn an_error_of_ours_says_nothing_of_the_datahub() {
    let (hub, gateway, browser) = set_up("timeouts.first_byte = \"500ms\"");
    let (address, url) = (hub.address().to_string(), hub.url().to_owned());
    let told = RefCell::new(BTreeMap::new());
    let judge = |case: &str, answer: &Answer, status: u16, code: &'static str| {
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{case}");
        for word in ["canary", "127.0.0.1", "localhost", &address, &url] {
            assert!(!answer.text().contains(word) && !answer.head.contains(word), "{case}: {}", answer.text());
        }
        // Whatever was wrong, a code has one answer.
        let answer = answer.without_ids();
        assert_eq!(told.borrow_mut().entry(code).or_insert_with(|| answer.clone()), &answer, "{case}");
    };
    let raw = |text: &str| Manner::Raw(text.as_bytes().to_vec());
    let json =
        "HTTP/1.1 500 canary\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"message\":\"canary\"}";
    for (case, trouble, status, code) in [
        ("closed", Manner::CloseWithoutAnswer, 502, "datahub_unreachable"),
        ("silent", Manner::Hang, 504, "datahub_timeout"),
        ("no HTTP", raw("canary\r\n\r\n"), 502, "datahub_invalid_response"),
        ("no field", raw("HTTP/1.1 200 OK\r\ncanary canary\r\n\r\n"), 502, "datahub_invalid_response"),
        ("leads away", Manner::Redirect("http://canary.test/".to_owned()), 502, "datahub_invalid_response"),
    ] {
        hub.set(|behaviour| behaviour.api.answer = trouble);
        judge(case, &call(&browser, &gateway, "GET", "/api/v4/user", "", b""), status, code);
    }
    hub.set(|behaviour| behaviour.api.answer = raw(json));
    let own = call(&browser, &gateway, "GET", "/api/v4/user", "", b"");
    assert_eq!((own.status, own.text().as_str()), (500, "{\"message\":\"canary\"}"), "the DataHUB's own");
    drop(hub);
    judge("gone", &call(&browser, &gateway, "GET", "/api/v4/user", "", b""), 502, "datahub_unreachable");

    let (hub, gateway, browser) = set_up("");
    hub.expire_access_tokens();
    hub.set(|behaviour| behaviour.token.answer = raw(json));
    judge("a refresh", &call(&browser, &gateway, "GET", "/api/v4/user", "", b""), 503, "refresh_unavailable");
}

/// An app tells a refusal of the DataHUB's from one of ours: the one is as GitLab made it, the other a problem with a code.
#[test]
fn a_refusal_of_the_datahubs_comes_down_as_it_is() {
    let (hub, gateway, browser) = set_up("");
    for status in [400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 429, 451, 500, 501, 502, 503, 504] {
        let body = format!("{{\"message\":\"{status} of GitLab's own\"}}");
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
        let answer = Manner::Raw(format!("{head}\r\n{body}").into_bytes());
        let manner = datahub::behaviour::Manner { answer, ..Default::default() };
        hub.set(|behaviour| behaviour.by_path = vec![("/api/v4/projects", manner)]);
        for method in ["GET", "POST"] {
            let answer =
                call(&browser, &gateway, method, "/api/v4/projects", "", if method == "POST" { b"x" } else { b"" });
            assert_eq!((answer.status, answer.text()), (status, body.clone()), "{method}");
            assert_eq!(answer.header("content-type").as_deref(), Some("application/json"), "{method} {status}");
        }
    }
    let nobody = Browser::default();
    for (browser, raw, status, code) in [
        (&nobody, "/api/v4/projects", 401, "not_logged_in"),
        (&browser, "/api/v4/projects/1/access_tokens", 403, "credential_endpoint"),
        (&browser, "/api/v4/projects?sudo=1", 400, "credential_parameter"),
        (&browser, "/projects", 404, "not_forwarded"),
    ] {
        let answer = call(browser, &gateway, "GET", raw, "", b"");
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{raw}");
    }
}

/// PR-07: a DataHUB's cookies are kept by nobody; neither its caller nor the next one on the same connection meets them.
#[test]
fn a_cookie_of_the_datahubs_reaches_nobody() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("server.workers = 1").start();
    let [one, other] = ["testuser", "joerg"].map(|user| {
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, user);
        // A cookie of another app on our host.
        browser.set_cookie("_gitlab_session", "mine");
        browser
    });
    hub.set(|behaviour| {
        let cookies = ["_gitlab_session=of-one; path=/; HttpOnly", "known_sign_in=x; path=/"];
        behaviour.extra_headers = cookies.map(|cookie| ("Set-Cookie".to_owned(), cookie.to_owned())).to_vec();
    });
    hub.clear();
    for (browser, user) in [(&one, "testuser"), (&other, "joerg"), (&one, "testuser")] {
        let answer = call(browser, &gateway, "GET", "/api/v4/user", "", b"");
        assert_eq!((answer.status, &answer.json()["username"]), (200, &user.into()));
        assert!(answer.headers("set-cookie").is_empty() && !answer.head.contains("of-one"), "{}", answer.head);
        assert!(answer.header("x-upstream-request-id").is_some(), "what else it says comes down");
    }
    let calls = hub.requests();
    assert_eq!((calls.len(), calls[0].connection), (3, calls[1].connection), "one after the other on one connection");
    // The back channel, too: a refresh, a login, a logout.
    hub.expire_access_tokens();
    assert_eq!(one.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(other.fetch(&gateway, "POST", "/auth/logout").status, 204);
    let requests = hub.requests();
    for path in ["/oauth/token", "/oauth/userinfo", "/oauth/revoke"] {
        assert!(requests.iter().any(|request| request.path() == path), "{path}");
    }
    assert!(requests.iter().all(|request| request.header_values("cookie").is_empty()));
}

#[test]
fn a_post_is_never_sent_twice() {
    let (hub, gateway, browser) = set_up("");
    for trouble in [Manner::Status(503), Manner::CloseWithoutAnswer, Manner::LoseAnswer] {
        hub.set(|behaviour| behaviour.api.answer = trouble);
        hub.clear();
        // On a kept connection too.
        call(&browser, &gateway, "POST", "/api/v4/projects/230/issues", "", b"x");
        assert_eq!(hub.requests().len(), 1);
    }
}

/// PR-09, PR-10.
#[test]
fn the_next_caller_gets_the_next_answer_whatever_the_one_before_was() {
    let (hub, gateway, browser) = set_up("");
    let secret = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nSECRET";
    for (case, raw) in [
        ("an interim answer", format!("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n{secret}")),
        (
            "three of them",
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n{secret}"
            ),
        ),
        ("bytes left over", format!("{secret}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nFORGED")),
        ("no framing", "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nSECRET".to_owned()),
    ] {
        for _ in 0..3 {
            hub.set(|behaviour| behaviour.api.answer = Manner::Raw(raw.clone().into_bytes()));
            assert_eq!(call(&browser, &gateway, "GET", "/api/v4/user", "", b"").text(), "SECRET", "{case}");
            hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
            assert_eq!(
                call(&browser, &gateway, "GET", "/api/v4/user", "", b"").json()["username"],
                "testuser",
                "{case}"
            );
        }
    }
}
