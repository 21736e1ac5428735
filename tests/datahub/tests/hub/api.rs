//! GitLab's REST API, as far as the gateway and the ARCmanager app use it.

use datahub::DataHub;
use serde_json::json;

use crate::client::{bearer, form, get, hub, json as send_json, send, token};

const FILES: &str = "/api/v4/projects/230/repository/files";

#[test]
fn the_user_is_who_signed_in() {
    let hub = hub();
    let answer = get(&hub, "/api/v4/user", &bearer(&token(&hub, "joerg")));
    assert_eq!((&answer.json()["username"], &answer.json()["id"]), (&"joerg".into(), &8.into()));
    for name in ["set-cookie", "strict-transport-security", "x-request-id", "x-gitlab-meta", "etag", "ratelimit-limit"]
    {
        assert!(answer.header(name).is_some(), "{name}");
    }
}

#[test]
fn a_second_page_links_to_all_others_and_repeats_every_parameter() {
    let hub = hub();
    let answer = get(&hub, "/api/v4/projects?min_access_level=30&page=2", &bearer(&token(&hub, "testuser")));
    let link = answer.header("link").expect("a link");
    for (page, rel) in [(1, "prev"), (3, "next"), (1, "first"), (3, "last")] {
        let expected =
            format!("<{}/api/v4/projects?min_access_level=30&page={page}&per_page=20>; rel=\"{rel}\"", hub.url());
        assert!(link.contains(&expected), "{expected} is not in {link}");
    }
    assert_eq!((answer.header("x-page"), answer.header("x-next-page")), (Some("2"), Some("3")));
    assert_eq!(answer.header("x-total-pages"), Some("3"));
}

#[test]
fn following_keyset_links_visits_every_project_once() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    let mut target = "/api/v4/projects?pagination=keyset&per_page=10&order_by=id&sort=asc".to_owned();
    let mut ids = Vec::new();
    loop {
        let answer = get(&hub, &target, &token);
        assert_eq!(answer.header("x-total"), None);
        ids.extend(answer.json().as_array().expect("a list").iter().filter_map(|project| project["id"].as_u64()));
        let Some(link) = answer.header("link") else {
            break;
        };
        let url = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("one next link");
        target = url.replace(hub.url(), "");
    }
    assert!(ids.is_sorted() && ids.len() > 45 && ids.last() == Some(&230), "{ids:?}");
}

#[test]
fn a_project_is_found_by_number_and_by_path_but_not_by_strangers() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    for id in ["230", "lu98be%2Ftestarc", "lu98be%2ftestarc"] {
        assert_eq!(get(&hub, &format!("/api/v4/projects/{id}"), &token).json()["id"], 230, "{id}");
    }
    let missing = json!({ "message": "404 Project Not Found" });
    assert_eq!(get(&hub, "/api/v4/projects/joerg%2Fnotes", &token).json(), missing);
    assert_eq!(get(&hub, "/api/v4/projects/230", "").json(), missing);
    assert_eq!(get(&hub, "/api/v4/projects/1", "").status, 200);
}

#[test]
fn a_file_comes_as_json_as_facts_and_as_bytes() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    let file = format!("{FILES}/assays%2Fm%C3%A4%C3%9Fe%20%231%2Fisa.assay.xlsx");
    assert_eq!(get(&hub, &format!("{file}?ref=main"), &token).json()["encoding"], "base64");
    let head = send(&hub, "HEAD", &format!("{file}?ref=main"), &token, "");
    assert_eq!((head.status, head.header("x-gitlab-file-path")), (200, Some("assays/mäße #1/isa.assay.xlsx")));
    let raw = get(&hub, &format!("{file}/raw?ref=main"), &token);
    assert_eq!(head.header("x-gitlab-size"), Some(raw.body.len().to_string().as_str()));
    assert!(raw.body.starts_with(b"PK\x03\x04"));
}

#[test]
fn raw_files_know_ranges_and_etags() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    let raw = format!("{FILES}/a+b;c,d@e!f(g)'h*~.csv/raw?ref=v1.0.0-rc.1");
    let whole = get(&hub, &raw, &token);
    for (range, status, bytes) in [
        ("bytes=0-99", 206, &whole.body[..100]),
        ("bytes=100-", 206, &whole.body[100..]),
        ("bytes=-5", 206, &whole.body[whole.body.len() - 5..]),
        ("bytes=99999-", 416, &[]),
        ("bytes=5-1", 200, &whole.body),
    ] {
        let answer = get(&hub, &raw, &format!("{token}Range: {range}\r\n"));
        assert_eq!((answer.status, answer.body.as_slice()), (status, bytes), "{range}");
    }
    let etag = whole.header("etag").expect("an ETag");
    let unchanged = get(&hub, &raw, &format!("{token}If-None-Match: {etag}\r\n"));
    assert_eq!((unchanged.status, unchanged.header("content-length")), (304, None));
}

#[test]
fn a_tree_lists_folders_and_files() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    let names = |query: &str| -> Vec<String> {
        let answer = get(&hub, &format!("/api/v4/projects/230/repository/tree?{query}"), &token).json();
        answer.as_array().expect("a list").iter().filter_map(|entry| Some(entry["path"].as_str()?.to_owned())).collect()
    };
    assert_eq!(
        names("path=assays%2Fproteomics"),
        ["assays/proteomics/dataset", "assays/proteomics/protocols", "assays/proteomics/isa.assay.xlsx"]
    );
    assert_eq!(
        names("path=assays%2Fassay%201%2Fdataset&ref=feature%2Fx&recursive=true"),
        ["assays/assay 1/dataset/reads 1.fastq"]
    );
    assert_eq!(get(&hub, "/api/v4/projects/230/repository/tree?path=nowhere", &token).status, 404);
}

#[test]
fn files_are_created_changed_and_deleted_by_commits() {
    let hub = hub();
    let token = token(&hub, "joerg");
    let file = format!("{FILES}/runs%2Fnew.txt");
    let body = |content: &str| json!({ "branch": "main", "content": content, "commit_message": "A change" });
    let raw = || get(&hub, &format!("{file}/raw"), &bearer(&token));
    assert_eq!(send_json(&hub, "POST", &file, &token, &body("one")).status, 201);
    assert_eq!(
        send_json(&hub, "POST", &file, &token, &body("one")).json(),
        json!({ "message": "A file with this name already exists" })
    );
    let coded = json!({ "branch": "main", "content": "dHdv", "encoding": "base64", "commit_message": "A change" });
    assert_eq!(
        send_json(&hub, "PUT", &file, &token, &coded).json(),
        json!({ "file_path": "runs/new.txt", "branch": "main" })
    );
    assert_eq!(raw().text(), "two");
    assert_eq!(send_json(&hub, "DELETE", &file, &token, &body("")).status, 204);
    assert_eq!(raw().status, 404);
    let commits = get(&hub, "/api/v4/projects/230/repository/commits?ref_name=main", &bearer(&token)).json();
    assert_eq!((commits.as_array().map(Vec::len), &commits[0]["author_name"]), (Some(4), &"Jörg 100% Müller".into()));
}

#[test]
fn a_commit_that_knows_an_older_version_is_refused() {
    let hub = hub();
    let token = token(&hub, "joerg");
    let file = format!("{FILES}/README.md");
    let last = || get(&hub, &format!("{file}?ref=main"), &bearer(&token)).json()["last_commit_id"].clone();
    let change = |known: &serde_json::Value| {
        let body = json!({ "branch": "main", "content": "x", "commit_message": "A change", "last_commit_id": known });
        send_json(&hub, "PUT", &file, &token, &body)
    };
    let first = last();
    assert_eq!(change(&first).status, 200);
    let why = "You are attempting to update a file that has changed since you started editing it.";
    let refused = change(&first);
    assert_eq!((refused.status, refused.json()), (400, json!({ "message": why })));
    assert_eq!(change(&last()).status, 200);
}

#[test]
fn a_job_begins_with_each_minute_and_its_log_grows() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    let jobs = get(&hub, "/api/v4/projects/230/jobs", &token);
    assert_eq!(jobs.header("x-total"), Some("7"));
    let (jobs, path) = (jobs.json(), "/api/v4/projects/230/jobs");
    assert_eq!(get(&hub, &format!("{path}/{}", jobs[1]["id"]), &token).json()["status"], jobs[1]["status"]);
    let lines = |job: usize| get(&hub, &format!("{path}/{}/trace", jobs[job]["id"]), &token).text().lines().count();
    assert_eq!((lines(1), lines(6)), (42, 20));
    assert!(lines(0) <= 42);
    for target in ["500", "500/trace", "99999999999", "x"] {
        assert_eq!(get(&hub, &format!("{path}/{target}"), &token).status, 404, "{target}");
    }
}

#[test]
fn a_commit_does_all_its_actions_or_none() {
    let hub = hub();
    let token = token(&hub, "testuser");
    let commit = |last: &str| {
        let actions = json!([
            { "action": "create", "file_path": "größe/ü.txt", "content": "x" },
            { "action": "move", "previous_path": "README.md", "file_path": "docs/README.md" },
            { "action": "delete", "file_path": last },
        ]);
        let body = json!({ "branch": "main", "commit_message": "Tidy up", "actions": actions });
        send_json(&hub, "POST", "/api/v4/projects/230/repository/commits", &token, &body)
    };
    assert_eq!(commit("no such file").status, 400);
    assert_eq!(get(&hub, &format!("{FILES}/README.md?ref=main"), &bearer(&token)).status, 200);
    let made = commit("LICENSE");
    assert_eq!((made.status, &made.json()["title"]), (201, &"Tidy up".into()));
    assert_eq!(get(&hub, &format!("{FILES}/README.md?ref=main"), &bearer(&token)).status, 404);
}

#[test]
fn members_come_go_and_change() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    let members = "/api/v4/projects/230/members";
    assert_eq!(form(&hub, members, &token, "user_id=137&access_level=30").status, 201);
    assert_eq!(send(&hub, "PUT", &format!("{members}/137?access_level=40"), &token, "").json()["access_level"], 40);
    assert_eq!(send(&hub, "DELETE", &format!("{members}/137"), &token, "").status, 204);
    assert_eq!(send(&hub, "DELETE", &format!("{members}/137"), &token, "").status, 404);
    assert_eq!(get(&hub, members, &token).json().as_array().map(Vec::len), Some(2));
}

#[test]
fn a_new_project_can_be_committed_to() {
    let hub = hub();
    let token = token(&hub, "joerg");
    let body = json!({ "name": "My ARC", "visibility": "private", "initialize_with_readme": false });
    let project = send_json(&hub, "POST", "/api/v4/projects", &token, &body).json();
    assert_eq!(project["path_with_namespace"], "joerg/my-arc");
    let file = "/api/v4/projects/joerg%2Fmy-arc/repository/files/isa.txt";
    let body = json!({ "branch": "main", "content": "", "commit_message": "First" });
    assert_eq!(send_json(&hub, "POST", file, &token, &body).status, 201);
}

#[test]
fn an_attachment_is_answered_with_its_name() {
    let hub = hub();
    let fields =
        format!("{}Content-Type: multipart/form-data; boundary=\"'()+_,-./:=?\"\r\n", bearer(&token(&hub, "testuser")));
    let body = "--'()+_,-./:=?\r\nContent-Disposition: form-data; name=\"file\"; filename=\"naïve ü.pdf\"\r\n\r\nx\r\n--'()+_,-./:=?--\r\n";
    let answer = send(&hub, "POST", "/api/v4/projects/lu98be%2Ftestarc/uploads", &fields, body);
    assert_eq!((answer.status, &answer.json()["alt"]), (201, &"naïve ü.pdf".into()));
}

#[test]
fn an_archive_is_a_tar_that_other_programs_unpack() {
    let hub = hub();
    let archive =
        get(&hub, "/api/v4/projects/230/repository/archive.tar.gz?sha=main", &bearer(&token(&hub, "testuser")));
    assert_eq!((archive.header("content-length"), archive.header("transfer-encoding")), (None, Some("chunked")));
    let path = std::env::temp_dir().join(format!("datahub-{}.tar.gz", std::process::id()));
    std::fs::write(&path, &archive.body).expect("a file in the temporary directory");
    let listing = std::process::Command::new("tar").arg("-tzf").arg(&path).output().expect("tar runs");
    std::fs::remove_file(&path).expect("the file just written");
    assert!(listing.status.success() && String::from_utf8_lossy(&listing.stdout).contains("/isa.investigation.xlsx\n"));
}

/// The rows of the proxy-fidelity corpus that name no other answer.
#[test]
fn every_call_of_the_corpus_gets_a_sensible_answer() {
    let hub = hub();
    let token = bearer(&token(&hub, "testuser"));
    for (row, method, target, status) in [
        (2, "HEAD", "/api/v4/projects", 200),
        (3, "GET", "/api/v4/projects/lu98be%2Ftestarc?license=true", 200),
        (4, "GET", "/api/v4/projects/group%2fsub%2fproj%2Ename/repository/branches", 200),
        (7, "GET", "/api/v4/projects/230/repository/files/100%25%20sure%252Fnot.txt/raw?ref=main", 200),
        (13, "PATCH", "/api/v4/projects/230/protected_branches/release%2F1.x?allow_force_push=true", 200),
        (16, "GET", "/api/v4/projects/1/jobs?scope[]=success&scope[]=failed&scope%5B%5D=manual&per_page=20", 200),
        (17, "GET", "/api/v4/projects?pagination=keyset&per_page=50&order_by=id&sort=asc&id_after=42", 200),
        (
            18,
            "GET",
            "/api/v4/projects/230/issues?created_after=2017-10-17T23:11:13.000%2B05:30&not[labels]=x,y&labels=&",
            200,
        ),
        (19, "GET", "/api/v4/version?", 200),
        (19, "GET", "/api/v4/version/", 200),
        (19, "GET", "/api/v4//version", 404),
        (24, "GET", "/api/v4/projects/230/jobs/artifacts/main/raw/public/report%20(1).html?job=build%3Atest", 200),
        (24, "GET", "/api/v4/projects/230/jobs/9/artifacts", 302),
        (24, "GET", "/api/v4/projects/old%2Fname", 301),
        (25, "POST", "/api/graphql", 200),
        (0, "PUT", "/api/v4/projects/230/merge_requests/1/merge", 401),
        (0, "GET", "/api/v4/nowhere", 404),
    ] {
        assert_eq!(send(&hub, method, target, &token, "").status, status, "row {row}: {method} {target}");
    }
}

#[test]
fn strangers_may_look_at_what_is_public_and_change_nothing() {
    let hub: DataHub = hub();
    assert_eq!(get(&hub, "/api/v4/projects", "").status, 200);
    for target in ["/api/v4/user", "/api/v4/version", "/api/v4/users", "/api/v4/groups"] {
        assert_eq!(get(&hub, target, "").json(), json!({ "message": "401 Unauthorized" }), "{target}");
    }
    let file = "/api/v4/projects/1/repository/files/README.md";
    let body = r#"{"branch":"main","commit_message":"x","content":"x"}"#;
    assert_eq!(send(&hub, "PUT", file, "Content-Type: application/json\r\n", body).status, 401);
}
