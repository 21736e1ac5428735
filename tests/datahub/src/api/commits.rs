//! Commits and branches, and the single files that are changed by a commit each.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use humantime::format_rfc3339_millis;
use serde_json::{Value, json};

use super::{Call, Outcome, message, missing, needs_level, paging};
use crate::http::response::Response;
use crate::params::Params;
use crate::repository::{Action, Author, Commit, DEFAULT_BRANCH};
use crate::world::Project;

/// POST, PUT and DELETE of one file.
pub fn change_file(call: &Call, project: &mut Project, path: &str) -> Outcome {
    let path = path.to_owned();
    let action = match call.method() {
        "DELETE" => Action::Delete { path: path.clone() },
        "PUT" => Action::Update { path: path.clone(), content: needed_content(&call.params)? },
        _ => Action::Create { path: path.clone(), content: needed_content(&call.params)? },
    };
    refuse_outdated(call, project, &path)?;
    let branch = commit(call, project, vec![action])?;
    Ok(match call.method() {
        "DELETE" => Response::new(204),
        "PUT" => Response::json(200, &json!({ "file_path": path, "branch": branch })),
        _ => Response::json(201, &json!({ "file_path": path, "branch": branch })),
    })
}

/// What is based on a version that is not the file's last one is not written.
fn refuse_outdated(call: &Call, project: &Project, path: &str) -> Result<(), Response> {
    let Some(known) = call.params.text("last_commit_id") else {
        return Ok(());
    };
    let branch = call.params.text("branch").and_then(|branch| project.repository.resolve(branch));
    if branch.and_then(|commit| commit.tree.get(path)).is_some_and(|file| file.last_commit != known) {
        let why = "You are attempting to update a file that has changed since you started editing it.";
        return Err(message(400, why));
    }
    Ok(())
}

/// Several actions at once.
pub fn create(call: &Call, project: &mut Project) -> Outcome {
    let listed = call.params.list("actions").ok_or_else(|| missing("actions"))?;
    let actions = listed.iter().map(action).collect::<Result<Vec<_>, _>>()?;
    let branch = commit(call, project, actions)?;
    let made = project.repository.resolve(&branch).ok_or_else(|| message(404, "404 Commit Not Found"))?;
    let mut body = commit_json(made, project, &call.hub.url);
    body["project_id"] = project.id.into();
    body["status"] = Value::Null;
    Ok(Response::json(201, &body))
}

pub fn list(call: &Call, project: &Project) -> Outcome {
    let commits = project.repository.history(call.params.text("ref_name").unwrap_or("HEAD"));
    if commits.is_empty() {
        return Err(message(404, "404 Commit Not Found"));
    }
    paging::by_number(call, &commits, |commit| commit_json(commit, project, &call.hub.url))
}

pub fn branches(call: &Call, project: &Project) -> Outcome {
    let (url, can_push) = (&call.hub.url, project.level_of(call.user) >= 30);
    let all: Vec<(&String, &Commit)> = project.repository.branches().collect();
    paging::by_number(call, &all, |(name, commit)| {
        json!({
            "name": name,
            "merged": false,
            "protected": *name == DEFAULT_BRANCH,
            "default": *name == DEFAULT_BRANCH,
            "developers_can_push": false,
            "developers_can_merge": false,
            "can_push": can_push,
            "web_url": format!("{url}/{}/-/tree/{name}", project.path_with_namespace),
            "commit": commit_json(commit, project, url),
        })
    })
}

/// The branch that was committed to.
fn commit(call: &Call, project: &mut Project, actions: Vec<Action>) -> Result<String, Response> {
    let user = needs_level(project, call.user, 30)?;
    let (branch, text) = (call.needs("branch")?, call.needs("commit_message")?);
    let author = Author { name: user.name.clone(), email: user.email() };
    match project.repository.commit(branch, author, text, SystemTime::now(), actions) {
        Ok(_) => Ok(branch.to_owned()),
        Err(error) => Err(message(400, error.message())),
    }
}

fn action(value: &Value) -> Result<Action, Response> {
    let params = Params::from(value.as_object().cloned().unwrap_or_default());
    let path = params.text("file_path").ok_or_else(|| missing("actions[file_path]"))?.to_owned();
    match params.text("action") {
        Some("create") => Ok(Action::Create { path, content: content(&params)?.unwrap_or_default() }),
        Some("update") => Ok(Action::Update { path, content: content(&params)?.unwrap_or_default() }),
        Some("move") => {
            let from = params.text("previous_path").ok_or_else(|| missing("actions[previous_path]"))?.to_owned();
            Ok(Action::Move { from, path, content: content(&params)? })
        }
        Some("delete") => Ok(Action::Delete { path }),
        _ => Err(Response::json(400, &json!({ "error": "actions[action] does not have a valid value" }))),
    }
}

fn needed_content(params: &Params) -> Result<Vec<u8>, Response> {
    content(params)?.ok_or_else(|| missing("content"))
}

fn content(params: &Params) -> Result<Option<Vec<u8>>, Response> {
    let not_base64 = |_| message(400, "The content is not valid base64");
    match (params.text("content"), params.text("encoding")) {
        (Some(content), Some("base64")) => STANDARD.decode(content).map(Some).map_err(not_base64),
        (content, _) => Ok(content.map(|content| content.as_bytes().to_vec())),
    }
}

fn commit_json(commit: &Commit, project: &Project, url: &str) -> Value {
    let at = format_rfc3339_millis(commit.at).to_string();
    let parents: Vec<&str> = project.repository.parent_id(commit).into_iter().collect();
    json!({
        "id": commit.id,
        "short_id": &commit.id[..8],
        "created_at": at,
        "parent_ids": parents,
        "title": commit.message.lines().next(),
        "message": commit.message,
        "author_name": commit.author.name,
        "author_email": commit.author.email,
        "authored_date": at,
        "committer_name": commit.author.name,
        "committer_email": commit.author.email,
        "committed_date": at,
        "web_url": format!("{url}/{}/-/commit/{}", project.path_with_namespace, commit.id),
    })
}
