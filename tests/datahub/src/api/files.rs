//! Files and folders, as they are in one commit.

use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{Call, Outcome, message, paging};
use crate::archive;
use crate::hex;
use crate::http::response::{Content, Response};
use crate::repository::{Commit, File, TreeEntry, list, short_digest};
use crate::world::Project;

pub fn tree(call: &Call, project: &Project) -> Outcome {
    let path = call.params.text("path").unwrap_or_default();
    let commit = commit(project, call.params.text("ref").unwrap_or("HEAD"), "404 Tree Not Found")?;
    let entries = list(&commit.tree, path, call.params.flag("recursive"));
    let entries = entries.ok_or_else(|| message(404, "404 invalid revision or path Not Found"))?;
    paging::by_number(call, &entries, |entry| entry_json(entry, commit))
}

/// As JSON with the content in base64, and the same facts as `X-Gitlab-*` fields: those are all that HEAD gets.
pub fn show(call: &Call, project: &Project, path: &str) -> Outcome {
    let reference = call.needs("ref")?;
    let commit = commit(project, reference, "404 Commit Not Found")?;
    let file = file(commit, path)?;
    let body = json!({
        "file_name": name(path),
        "file_path": path,
        "size": file.content.len(),
        "encoding": "base64",
        "content": STANDARD.encode(&file.content),
        "content_sha256": hex::digest(&file.content),
        "ref": reference,
        "blob_id": file.blob_id(),
        "commit_id": commit.id,
        "last_commit_id": file.last_commit,
        "execute_filemode": false,
    });
    Ok(with_facts(Response::json(200, &body), commit, file, path, reference))
}

/// The bytes, or a range of them.
pub fn raw(call: &Call, project: &Project, path: &str) -> Outcome {
    let reference = call.params.text("ref").unwrap_or("HEAD");
    let commit = commit(project, reference, "404 Commit Not Found")?;
    let file = file(commit, path)?;
    let etag = format!("W/\"{}\"", &hex::digest(&file.content)[..32]);
    let known = call.request.header("if-none-match").unwrap_or_default();
    let response = |status| {
        with_facts(Response::new(status), commit, file, path, reference)
            .header("ETag", &etag)
            .header("Accept-Ranges", "bytes")
    };
    if known.split(',').any(|tag| tag.trim() == etag || tag.trim() == "*") {
        return Ok(response(304));
    }
    let text = std::str::from_utf8(&file.content).is_ok();
    let content_type = if text { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    let response = |status| {
        response(status)
            .header("Content-Type", content_type)
            .header("Content-Disposition", disposition("inline", name(path)))
    };
    let size = file.content.len();
    Ok(match call.request.header("range").map(|range| parse_range(range, size)) {
        None | Some(RangeHeader::Ignored) => response(200).content(Content::Bytes(file.content.to_vec())),
        Some(RangeHeader::Unsatisfiable) => response(416).header("Content-Range", format!("bytes */{size}")),
        Some(RangeHeader::Bytes(range)) => response(206)
            .header("Content-Range", format!("bytes {}-{}/{size}", range.start, range.end - 1))
            .content(Content::Bytes(file.content[range].to_vec())),
    })
}

/// Of unknown length, as Gitaly makes it.
pub fn archive(call: &Call, project: &Project) -> Outcome {
    let commit = commit(project, call.params.text("sha").unwrap_or("HEAD"), "404 File Not Found")?;
    let folder = format!("{}-{}", project.path(), &commit.id[..8]);
    Ok(Response::new(200)
        .header("Content-Type", "application/octet-stream")
        .header("Content-Disposition", disposition("attachment", &format!("{folder}.tar.gz")))
        .content(Content::Pieces { pieces: archive::tar_gz(&commit.tree, &folder), pause: Duration::ZERO }))
}

fn commit<'p>(project: &'p Project, reference: &str, otherwise: &str) -> Result<&'p Commit, Response> {
    project.repository.resolve(reference).ok_or_else(|| message(404, otherwise))
}

fn file<'c>(commit: &'c Commit, path: &str) -> Result<&'c File, Response> {
    commit.tree.get(path).ok_or_else(|| message(404, "404 File Not Found"))
}

fn with_facts(response: Response, commit: &Commit, file: &File, path: &str, reference: &str) -> Response {
    response
        .header("X-Gitlab-Blob-Id", file.blob_id())
        .header("X-Gitlab-Commit-Id", &commit.id)
        .header("X-Gitlab-Content-Sha256", hex::digest(&file.content))
        .header("X-Gitlab-Encoding", "base64")
        .header("X-Gitlab-Execute-Filemode", "false")
        .header("X-Gitlab-File-Name", name(path))
        .header("X-Gitlab-File-Path", path)
        .header("X-Gitlab-Last-Commit-Id", &file.last_commit)
        .header("X-Gitlab-Ref", reference)
        .header("X-Gitlab-Size", file.content.len().to_string())
}

fn entry_json(entry: &TreeEntry, commit: &Commit) -> Value {
    let (id, kind, mode) = match commit.tree.get(&entry.path).filter(|_| entry.is_file) {
        Some(file) => (file.blob_id(), "blob", "100644"),
        None => (short_digest(&entry.path), "tree", "040000"),
    };
    json!({ "id": id, "name": name(&entry.path), "type": kind, "path": entry.path, "mode": mode })
}

enum RangeHeader {
    Bytes(Range<usize>),
    Unsatisfiable,
    /// Several ranges, another unit, or nonsense: the whole file is a right answer (RFC 9110 § 14.2).
    Ignored,
}

fn parse_range(header: &str, size: usize) -> RangeHeader {
    let bounds = header.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let (first, last) = match bounds.map(|(first, last)| (first.parse::<usize>(), last.parse::<usize>(), last)) {
        Some((Ok(first), Ok(last), _)) if first <= last => (first, last),
        Some((Ok(first), Err(_), "")) => (first, usize::MAX),
        Some((Err(_), Ok(length), _)) if header.starts_with("bytes=-") && length > 0 => {
            (size.saturating_sub(length), usize::MAX)
        }
        _ => return RangeHeader::Ignored,
    };
    if first < size { RangeHeader::Bytes(first..last.saturating_add(1).min(size)) } else { RangeHeader::Unsatisfiable }
}

/// Plain for old clients, and as UTF-8 (RFC 6266).
fn disposition(kind: &str, name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii() && c != '"' { c } else { '_' }).collect();
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
