//! Projects, their members, and what else a project has that nobody looks at closely.

use std::collections::BTreeMap;
use std::time::SystemTime;

use humantime::format_rfc3339_millis;
use serde_json::{Value, json};

use super::{Call, Outcome, find, jobs, message, missing, needs_level, no_route, paging, unauthorized, user_json};
use crate::http::response::Response;
use crate::repository::{DEFAULT_BRANCH, Repository};
use crate::seed;
use crate::world::{Project, User, World};

pub fn list(call: &Call) -> Outcome {
    let params = &call.params;
    let world = call.hub.world();
    let level = params.number("min_access_level").unwrap_or_else(|| params.flag("membership").into());
    let search = params.text("search").unwrap_or_default().to_lowercase();
    let mut projects: Vec<&Project> = world
        .projects
        .iter()
        .filter(|project| project.is_visible_to(call.user))
        .filter(|project| project.level_of(call.user) >= level)
        .filter(|project| {
            project.path_with_namespace.contains(&search) || project.name.to_lowercase().contains(&search)
        })
        .collect();
    let ascending = params.text("sort") == Some("asc");
    projects.sort_by_key(|project| project.id);
    if !ascending {
        projects.reverse();
    }
    let to_json = |project: &&Project| project_json(project, &call.hub.url, call.user);
    if params.text("pagination") != Some("keyset") {
        return paging::by_number(call, &projects, to_json);
    }
    if params.text("order_by") != Some("id") {
        let error = "Keyset pagination is not yet available for this type of request";
        return Err(Response::json(405, &json!({ "error": error })));
    }
    projects.retain(|project| params.number("id_after").is_none_or(|id| project.id > id));
    projects.retain(|project| params.number("id_before").is_none_or(|id| project.id < id));
    let parameter = if ascending { "id_after" } else { "id_before" };
    paging::by_id(call, &projects, parameter, |project| project.id, to_json)
}

pub fn create(call: &Call) -> Outcome {
    let user = call.needs_user()?;
    let name = call.needs("name")?;
    let mut world = call.hub.world();
    let path = call.params.text("path").unwrap_or(name).to_lowercase().replace([' ', '/'], "-");
    let path_with_namespace = format!("{}/{path}", user.username);
    if world.projects.iter().any(|project| project.path_with_namespace == path_with_namespace) {
        let taken = json!({ "message": { "path": ["has already been taken"], "name": ["has already been taken"] } });
        return Err(Response::json(400, &taken));
    }
    let project = Project {
        id: world.projects.iter().map(|project| project.id).max().unwrap_or_default() + 1,
        path_with_namespace,
        name: name.to_owned(),
        description: call.params.text("description").unwrap_or_default().to_owned(),
        public: call.params.text("visibility") == Some("public"),
        members: BTreeMap::from([(user.id, 50)]),
        repository: match call.params.flag("initialize_with_readme") {
            true => seed::readme(name),
            false => Repository::default(),
        },
        created: SystemTime::now(),
    };
    let response = Response::json(201, &project_json(&project, &call.hub.url, call.user));
    world.projects.push(project);
    Ok(response)
}

pub fn members(call: &Call, world: &mut World, id: &str, rest: &[&str]) -> Outcome {
    let (users, url) = (world.users.clone(), &call.hub.url);
    let project = find(world, id, call.user)?;
    let member_json = |user: u64, level: u64| {
        let mut member = users.iter().find(|known| known.id == user).map(|user| user_json(user, url))?;
        member["access_level"] = level.into();
        Some(member)
    };
    let level = || call.params.number("access_level").ok_or_else(|| missing("access_level"));
    let member = |text: &str| text.parse().ok().filter(|user| project.members.contains_key(user));
    let unknown_member = || message(404, "404 Member Not Found");
    match (call.method(), rest) {
        ("GET", ["members"] | ["members", "all"]) => {
            let all: Vec<Value> =
                project.members.iter().filter_map(|(user, level)| member_json(*user, *level)).collect();
            paging::by_number(call, &all, Value::clone)
        }
        ("POST", ["members"]) => {
            needs_level(project, call.user, 40)?;
            let user = call.params.number("user_id").unwrap_or_default();
            let added = member_json(user, level()?).ok_or_else(|| message(404, "404 User Not Found"))?;
            if project.members.contains_key(&user) {
                return Err(message(409, "Member already exists"));
            }
            project.members.insert(user, level()?);
            Ok(Response::json(201, &added))
        }
        ("GET", ["members", user]) => {
            let user = member(user).ok_or_else(unknown_member)?;
            Ok(Response::json(200, &member_json(user, project.members[&user]).unwrap_or_default()))
        }
        ("PUT", ["members", user]) => {
            needs_level(project, call.user, 40)?;
            let user = member(user).ok_or_else(unknown_member)?;
            project.members.insert(user, level()?);
            Ok(Response::json(200, &member_json(user, level()?).unwrap_or_default()))
        }
        ("DELETE", ["members", user]) => {
            needs_level(project, call.user, 40)?;
            let user = member(user).ok_or_else(unknown_member)?;
            project.members.remove(&user);
            Ok(Response::new(204))
        }
        _ => Err(no_route()),
    }
}

/// Enough of issues, merge requests and protected branches that a proxied call gets a plausible answer.
pub fn side_show(call: &Call, project: &Project, rest: &[&str]) -> Outcome {
    let url = &call.hub.url;
    match (call.method(), rest) {
        ("GET", ["issues" | "merge_requests" | "pipelines" | "protected_branches"]) => {
            paging::by_number(call, &[] as &[Value], Value::clone)
        }
        ("POST", ["issues"]) => {
            let author = call.needs_user()?;
            let title = call.needs("title")?;
            let issue = json!({ "id": 1, "iid": 1, "project_id": project.id, "title": title, "state": "opened",
                "author": user_json(author, url) });
            Ok(Response::json(201, &issue))
        }
        // Even the owner may not: that is what GitLab says to somebody who is logged in and not allowed to merge.
        ("PUT", ["merge_requests", _, "merge"]) => Err(unauthorized()),
        ("PATCH" | "PUT", ["protected_branches", name]) => {
            needs_level(project, call.user, 40)?;
            Ok(Response::json(200, &protected_branch(name, call.params.flag("allow_force_push"))))
        }
        ("POST", ["protected_branches"]) => {
            needs_level(project, call.user, 40)?;
            let name = call.needs("name")?;
            Ok(Response::json(201, &protected_branch(name, call.params.flag("allow_force_push"))))
        }
        ("GET", ["jobs"]) => jobs::list(call, project),
        ("GET", ["jobs", id]) => jobs::show(call, project, id),
        ("GET", ["jobs", id, "trace"]) => jobs::trace(id),
        ("GET", ["jobs", _, "artifacts"]) => Ok(Response::redirect(
            302,
            "https://s3.example/artifacts/9/artifacts.zip?X-Amz-Expires=600&X-Amz-Signature=0123456789abcdef",
        )),
        ("GET", ["jobs", "artifacts", _, "raw", ..]) => Ok(Response::html(
            200,
            "<!doctype html><title>Report</title><script>alert(document.domain)</script>".to_owned(),
        )),
        _ => Err(no_route()),
    }
}

fn protected_branch(name: &str, allow_force_push: bool) -> Value {
    let maintainers = json!([{ "id": 1, "access_level": 40, "access_level_description": "Maintainers" }]);
    json!({ "id": 1, "name": name, "push_access_levels": maintainers, "merge_access_levels": maintainers,
        "allow_force_push": allow_force_push })
}

pub fn project_json(project: &Project, url: &str, user: Option<&User>) -> Value {
    let path = &project.path_with_namespace;
    let web_url = format!("{url}/{path}");
    let created_at = format_rfc3339_millis(project.created).to_string();
    let access = match project.level_of(user) {
        0 => Value::Null,
        level => json!({ "access_level": level, "notification_level": 3 }),
    };
    json!({
        "id": project.id,
        "description": project.description,
        "name": project.name,
        "name_with_namespace": format!("{} / {}", project.namespace(), project.name),
        "path": project.path(),
        "path_with_namespace": path,
        "created_at": created_at,
        "default_branch": DEFAULT_BRANCH,
        "tag_list": [],
        "topics": [],
        "ssh_url_to_repo": format!("git@{}:{path}.git", url.trim_start_matches("http://").trim_start_matches("https://")),
        "http_url_to_repo": format!("{web_url}.git"),
        "web_url": web_url,
        "readme_url": format!("{web_url}/-/blob/{DEFAULT_BRANCH}/README.md"),
        "avatar_url": null,
        "forks_count": 0,
        "star_count": 0,
        "last_activity_at": created_at,
        "namespace": namespace_json(project.namespace(), url),
        "visibility": if project.public { "public" } else { "private" },
        "permissions": { "project_access": access, "group_access": null },
    })
}

pub fn namespace_json(path: &str, url: &str) -> Value {
    json!({ "id": 5, "name": path, "path": path.rsplit('/').next(), "kind": "group", "full_path": path,
        "parent_id": null, "avatar_url": null, "web_url": format!("{url}/groups/{path}") })
}
