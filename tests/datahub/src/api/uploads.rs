//! What may be larger than memory: attachments and generic packages. Their bytes are hashed and counted, not kept.
//!
//! The token is looked at twice, before the body and after it: Workhorse takes the body and sends the same request on to
//! Rails.

use std::io;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Call, Outcome, authenticate, find, message, missing, needs_level, record_execution};
use crate::hex;
use crate::http::Request;
use crate::http::body::Body;
use crate::http::response::{Content, Response};
use crate::hub::Hub;
use crate::world::{StoredFile, User, World};

/// `POST uploads`, multipart. The file's name must stand in the first piece.
pub async fn attach(
    hub: &Hub,
    request: &Request,
    body: &mut Body<'_>,
    user: Option<&User>,
    id: &str,
) -> io::Result<Response> {
    let project = match find(&mut hub.world(), id, user).and_then(|p| needs_level(p, user, 10).map(|_| p.id)) {
        Ok(project) => project,
        Err(refusal) => return Ok(refusal),
    };
    let multipart = request.header("content-type").is_some_and(|value| value.starts_with("multipart/form-data"));
    let mut start = Vec::new();
    while start.len() < MAX_PART_HEAD_BYTES
        && let Some(piece) = body.next().await?
    {
        start.extend_from_slice(&piece);
    }
    body.drain().await?;
    if let Err(refusal) = authenticate(hub, request) {
        return Ok(refusal);
    }
    record_execution(hub, request);
    let Some(name) = file_name(&start).filter(|_| multipart) else {
        return Ok(missing("file"));
    };
    let secret = &hex::digest(format!("{project}/{name}"))[..32];
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() || ".-_".contains(c) { c } else { '_' }).collect();
    let url = format!("/uploads/{secret}/{plain}");
    let body = json!({
        "id": 1,
        "alt": name,
        "url": url,
        "full_path": format!("/-/project/{project}{url}"),
        "markdown": format!("[{name}]({url})"),
    });
    Ok(Response::json(201, &body))
}

/// `PUT packages/generic/:name/:version/:file`.
pub async fn put_package(
    hub: &Hub,
    request: &Request,
    body: &mut Body<'_>,
    user: Option<&User>,
    id: &str,
    file: &[&str],
) -> io::Result<Response> {
    let project = match find(&mut hub.world(), id, user).and_then(|p| needs_level(p, user, 30).map(|_| p.id)) {
        Ok(project) => project,
        Err(refusal) => return Ok(refusal),
    };
    let [_, version, name] = file else {
        return Ok(message(404, "404 Not Found"));
    };
    let (mut hash, mut size) = (Sha256::new(), 0);
    while let Some(piece) = body.next().await? {
        hash.update(&piece);
        size += piece.len() as u64;
    }
    if let Err(refusal) = authenticate(hub, request) {
        return Ok(refusal);
    }
    record_execution(hub, request);
    let sha256 = hex::encode(&hash.finalize());
    let answer =
        json!({ "id": 1, "package_id": 1, "file_name": name, "version": version, "size": size, "file_sha256": sha256 });
    hub.world().packages.insert((project, file.join("/")), StoredFile { size, sha256 });
    Ok(Response::json(201, &answer))
}

/// `blob/1.0.0/{n}.bin` is made on the way; of what was put there, only size and digest are left to tell.
pub fn get_package(call: &Call, world: &mut World, id: &str, file: &[&str]) -> Outcome {
    let project = find(world, id, call.user)?.id;
    if let ["blob", _, name] = file
        && let Some(length) = name.strip_suffix(".bin").and_then(|digits| digits.parse().ok())
    {
        return Ok(Response::new(200)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Disposition", format!("attachment; filename=\"{length}.bin\""))
            .content(Content::Blob(length)));
    }
    let stored = world.packages.get(&(project, file.join("/"))).ok_or_else(|| message(404, "404 Not found"))?;
    Ok(Response::json(200, &json!({ "size": stored.size, "file_sha256": stored.sha256 })))
}

/// As browsers write it: `filename="…"` in UTF-8, with `%22` for a quote.
fn file_name(start: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(start);
    let (_, rest) = text.split_once("filename=\"")?;
    rest.split_once('"').map(|(name, _)| name.to_owned())
}

/// Of everything before the file's bytes, as far as it is looked at.
const MAX_PART_HEAD_BYTES: usize = 8 * 1024;
