//! Which calls are forwarded: through the real gateway, and as the command `policy` says it.

use crate::browser::FETCH;
use crate::gateway::{BASE, Folder, run};
use crate::proxy::set_up;

/// Whether each call reached the DataHUB; if not, with the code that the app was told.
fn judge(lines: &str, rows: &[(&str, &str, &str)]) {
    let (hub, gateway, browser) = set_up(lines);
    let mut wrong = Vec::new();
    for (method, raw, expected) in rows {
        hub.clear();
        let length = if matches!(*method, "GET" | "HEAD") { "" } else { "Content-Length: 0\r\n" };
        let path = format!("{BASE}/datahubs/a/api/v4/{raw}");
        let answer = browser.send(&gateway, method, &path, &format!("{FETCH}{length}"), b"");
        let told = match hub.requests().as_slice() {
            [request] if request.method() == *method => "forwarded".to_owned(),
            [] => answer.code(),
            _ => "something else".to_owned(),
        };
        if told != *expected {
            wrong.push(format!("({method:?}, {raw:?}, {told:?}),"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// PQ-02: rows of each class beside their neighbours; `proxy::policy` holds all of GitLab's routes.
#[test]
fn a_call_is_judged_by_its_method_and_its_path() {
    judge(
        "",
        &[
            ("POST", "user/personal_access_tokens", "credential_endpoint"),
            ("GET", "personal_access_tokens/self", "credential_endpoint"),
            ("POST", "projects/1/access_tokens", "credential_endpoint"),
            ("POST", "groups/1/access_tokens", "credential_endpoint"),
            ("POST", "projects/1/deploy_tokens", "credential_endpoint"),
            ("POST", "groups/1/deploy_tokens", "credential_endpoint"),
            ("POST", "user/keys", "credential_endpoint"),
            ("POST", "applications", "credential_endpoint"),
            ("POST", "projects/1/secrets_manager/access_token", "credential_endpoint"),
            ("POST", "ai/third_party_agents/direct_access", "credential_endpoint"),
            ("PATCH", "groups/1/saml/7", "credential_endpoint"),
            ("GET", "groups/1/saml/identities", "forwarded"),
            ("PATCH", "projects/1/job_token_scope", "credential_endpoint"),
            ("GET", "projects/1/job_token_scope", "forwarded"),
            ("POST", "users", "not_forwarded"),
            ("GET", "users", "forwarded"),
            ("PUT", "users/7", "not_forwarded"),
            ("POST", "users/7/follow", "forwarded"),
            ("GET", "geo_nodes", "not_forwarded"),
            ("POST", "broadcast_messages", "not_forwarded"),
            ("GET", "broadcast_messages", "forwarded"),
            ("GET", "job", "not_forwarded"),
            ("GET", "jobs/7/artifacts", "not_forwarded"),
            ("GET", "projects/1/jobs/7/artifacts", "forwarded"),
            ("POST", "projects/1/uploads/authorize", "not_forwarded"),
            ("POST", "projects/1/uploads", "forwarded"),
            // Refused once, and needlessly.
            ("DELETE", "projects/1/pipeline_schedules/7", "forwarded"),
            ("POST", "projects/1/pipeline_schedules/7/play", "forwarded"),
            ("POST", "projects/1/pipeline_schedules/7/take_ownership", "forwarded"),
            ("GET", "projects/1/pipeline_schedules/7/pipelines", "forwarded"),
            ("GET", "projects/1/pipeline_schedules/7", "credential_endpoint"),
            // In no row.
            ("POST", "projects/1/robots/7/rotate", "credential_endpoint"),
            ("GET", "projects/1/robots/7/rotate", "forwarded"),
            ("POST", "projects/1/robots/7/start", "forwarded"),
            ("PUT", "projects/1/repository/files/keys", "forwarded"),
            ("DELETE", "projects/1/repository/branches/token", "forwarded"),
            // However it is spelled.
            ("GET", "user/keys%23/x", "credential_endpoint"),
            ("GET", "user/keys%2523/x", "credential_endpoint"),
            ("GET", "user/%256Beys", "credential_endpoint"),
            ("GET", "USER/Keys.json", "credential_endpoint"),
            ("GET", "user%23/x", "forwarded"),
        ],
    );
}

#[test]
fn proxy_only_leaves_what_it_lists() {
    judge(
        "proxy.only = [\"GET|HEAD projects/**\", \"PUT projects/*/repository/files/*\", \"* user/**\"]",
        &[
            ("GET", "projects/1/issues", "forwarded"),
            ("PUT", "projects/1/repository/files/a%2Fb", "forwarded"),
            ("PUT", "projects/1", "not_forwarded"),
            ("GET", "groups", "not_forwarded"),
            ("GET", "user", "forwarded"),
            ("GET", "user/keys", "credential_endpoint"),
            ("GET", "projects/1/triggers", "credential_endpoint"),
            ("GET", "user%3F/x", "forwarded"),
            ("GET", "projects%23/1", "forwarded"),
            ("GET", "groups%23/1", "not_forwarded"),
        ],
    );
}

/// `config/arcmanager.toml` beside every call that the ARCmanager makes.
#[test]
fn the_list_for_the_arcmanager_is_what_it_calls() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/arcmanager.toml");
    let told = |method: &str, target: &str| {
        let output = run(&["policy", "--config", file, method, &format!("/api/v4/{target}")], &[]);
        String::from_utf8(output.stdout).expect("a text")
    };
    let files = "projects/1/repository/files/assays%2Fa%20b.xlsx";
    for (methods, target) in [
        ("GET HEAD", "projects?min_access_level=30&page=2"),
        ("GET", "projects/1?license=true"),
        ("POST", "projects"),
        ("PATCH", "projects/1/protected_branches/release%2F1?allow_force_push=true"),
        ("GET HEAD", "projects/1/repository/tree?per_page=100&ref=main"),
        ("GET HEAD POST PUT DELETE", files),
        ("GET", "projects/1/repository/files/a/raw?ref=main"),
        ("GET POST", "projects/1/repository/commits"),
        ("GET", "projects/1/repository/branches"),
        ("GET HEAD", "users?per_page=100"),
        ("GET POST", "projects/1/members"),
        ("PUT DELETE", "projects/1/members/7"),
        ("GET", "groups"),
        ("GET", "broadcast_messages"),
    ] {
        for method in methods.split(' ') {
            let told = told(method, target);
            assert!(told.starts_with("forwarded: proxy.only has `"), "{method} {target}: {told}");
        }
    }
    for (method, target) in
        [("DELETE", "projects/1"), ("POST", "projects/1/hooks"), ("GET", "users/7"), ("GET", "user")]
    {
        let told = told(method, target);
        assert_eq!(told, "404 not_forwarded: not forwarded: proxy.only has no rule for it\n", "{method} {target}");
    }
}

#[test]
fn the_command_says_what_becomes_of_a_call_and_by_which_row() {
    let folder = Folder::default();
    let file = folder.file(
        "gateway.toml",
        "proxy = { graphql = true, allow_credential_endpoints = [\"user/keys\"] }\nsession.max_age = \"wrong\"\n",
    );
    let file = file.to_str().expect("a plain path");
    for (method, target, told) in [
        ("GET", "/api/v4/projects?page=2", "forwarded: no row refuses it"),
        ("POST", "/api/v4/users/7/follow", "forwarded: row `POST users/*/follow`: "),
        ("POST", "/api/v4/user/keys", "forwarded: proxy.allow_credential_endpoints opens row `* user/keys/**`"),
        ("POST", "/api/graphql", "forwarded: proxy.graphql, if its body passes"),
        (
            "POST",
            "/api/v4/projects/1/triggers",
            "403 credential_endpoint: not forwarded: row `* projects/*/triggers/**`: ",
        ),
        ("POST", "/api/v4/users", "404 not_forwarded: not forwarded: row `POST|PUT|PATCH|DELETE users/**`: "),
        (
            "POST",
            "/api/v4/robots/tokens",
            "403 credential_endpoint: not forwarded: a write whose last segments say `tokens`",
        ),
        ("GET", "/oauth/token", "404 not_forwarded: not forwarded: only /api/v4/"),
        ("GET", "/api/v4/../x", "400 bad_request_target: "),
        ("GET", "/api/v4/user?sudo=1", "400 credential_parameter: "),
    ] {
        let output = run(&["policy", method, target, "--config", file], &[]);
        let text = String::from_utf8(output.stdout).expect("a text");
        assert!(
            text.starts_with(told) && text.ends_with('\n') && text.lines().count() == 1,
            "{method} {target}: {text}"
        );
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{method} {target}");
    }
    // Without a configuration: the defaults, and what the environment says.
    let output = run(&["policy", "GET", "/api/v4/groups"], &[("GATEWAY__PROXY__ONLY", "GET projects/**,* user")]);
    assert_eq!(output.stdout, b"404 not_forwarded: not forwarded: proxy.only has no rule for it\n");
    for (arguments, words) in [
        (&["policy", "get", "/api/v4/user"][..], "possible values: GET, HEAD, POST"),
        (&["policy", "GET", "api/v4/user"], "must be a path such as /api/v4/projects"),
        (&["policy", "GET", "/api/v4/a b"], "must be a path such as /api/v4/projects"),
        (&["policy", "GET"], "<TARGET>"),
        (&["policy"], "<METHOD>"),
    ] {
        let output = run(arguments, &[]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains(words), "{arguments:?}: {told}");
    }
    let help = run(&["policy", "--help"], &[]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("Say what becomes of a call") && help.contains("<METHOD> <TARGET>"), "{help}");
}

/// CF-02: by key, by its place in the list, and never by its value.
#[test]
fn a_wrong_rule_is_told_by_its_key_and_place() {
    let told = |key: &str, value: &str| {
        let output = run(&["policy", "GET", "/api/v4/user"], &[(key, value)]);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let only = "GATEWAY__PROXY__ONLY";
    for (value, words) in [
        ("GET user,canary", "proxy.only rule 2 must be methods, a space and a pattern"),
        ("CANARY user", "proxy.only rule 1 must begin with `*` or with methods"),
        ("GET user,* **,GET /canary", "proxy.only rule 3 must have a pattern of segments below /api/v4"),
        ("GET canary.json", "proxy.only rule 1 must have a pattern"),
        ("GET **/canary", "proxy.only rule 1 must have a pattern"),
    ] {
        let (code, told) = told(only, value);
        assert!(code == Some(78) && told.contains(words) && !told.to_lowercase().contains("canary"), "{value}: {told}");
    }
    let (code, wrong) = told("GATEWAY__PROXY__ALLOW_CREDENTIAL_ENDPOINTS", "user/keys,jobs/canary");
    let words = "proxy.allow_credential_endpoints must be one of personal_access_tokens, user/personal_access_tokens, ";
    assert!(code == Some(78) && wrong.contains(words) && !wrong.contains("canary"), "{wrong}");
    for (key, value) in
        [(only, "GET|HEAD user/**,POST projects"), ("GATEWAY__PROXY__ALLOW_CREDENTIAL_ENDPOINTS", "user/keys/**")]
    {
        let (code, told) = told(key, value);
        assert!(code == Some(0) && told.starts_with("forwarded: "), "{value}: {told}");
    }
}
