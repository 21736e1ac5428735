//! What comes down: an allow-list of headers, links rewritten, content neutralised.
//!
//! A DataHUB's answer now stands on our origin, beside our cookies. So nothing of it may act on that origin: no header
//! but the ones named here, no cookie, no content that a browser would run.

use actix_web::HttpResponse;
use actix_web::body::{BodySize, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK,
    LOCATION, VARY,
};

use crate::datahub::DataHub;
use crate::error::{ApiError, Code};
use crate::proxy::target::{Policy, Target};
use crate::proxy::upstream::answer::{Answer, AnswerBody};
use crate::proxy::upstream::connection::Head;

/// How a DataHUB's addresses read in a browser.
pub struct Addresses<'a> {
    /// Whose they are.
    pub datahub: &'a DataHub,
    /// The gateway's own URL of the DataHUB.
    pub here: &'a str,
    /// What the gateway would forward.
    pub policy: &'a Policy,
}

/// The DataHUB's answer as the browser gets it.
///
/// # Errors
/// `datahub_invalid_response` for an answer that cannot be passed on without lying or leaking.
pub fn inbound(
    answer: Answer,
    addresses: &Addresses<'_>,
    is_download: bool,
) -> Result<HttpResponse<AnswerBody>, ApiError> {
    let Answer { head, body, .. } = answer;
    let status = StatusCode::from_u16(head.status).map_err(|_| Code::DatahubInvalidResponse)?;
    let mut response = HttpResponse::with_body(status, body);
    let is_bodiless = response.body().is_none();
    let announced = response.body().announced().filter(|_| is_bodiless);
    let has_body = !matches!(response.body().size(), BodySize::None | BodySize::Sized(0));

    let headers = response.headers_mut();
    copy(&head, headers)?;
    addresses.rewrite(headers)?;
    neutralise(headers, has_body, is_download);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(VARY, HeaderValue::from_static("Cookie, Accept-Encoding"));
    // Of a HEAD or a 304: what the body would be, which actix-web does not derive from a body that is not there.
    if let Some(length) = announced.filter(|_| status == StatusCode::NOT_MODIFIED) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// Copies what the allow-list names, byte for byte.
fn copy(head: &Head, headers: &mut HeaderMap) -> Result<(), ApiError> {
    for (name, value) in head.fields() {
        let Ok(name) = HeaderName::from_bytes(name) else { continue };
        let name = match name.as_str() {
            "x-request-id" => UPSTREAM_REQUEST_ID,
            name_text if passes(name_text) => name,
            _ => continue,
        };
        let value = HeaderValue::from_bytes(value).map_err(|_| Code::DatahubInvalidResponse)?;
        if ONCE.contains(&name) && headers.contains_key(&name) {
            return Err(Code::DatahubInvalidResponse.into());
        }
        headers.append(name, value);
    }
    Ok(())
}

/// The allow-list; `name` is lower-case.
fn passes(name: &str) -> bool {
    match name {
        "content-type"
        | "content-encoding"
        | "content-disposition"
        | "content-range"
        | "accept-ranges"
        | "etag"
        | "last-modified"
        | "link"
        | "location"
        | "retry-after"
        | "deprecation"
        | "sunset"
        | "x-accel-buffering" => true,
        _ => {
            name.starts_with("x-gitlab-")
                || name.starts_with("ratelimit-")
                || name.starts_with("x-total")
                || (name.starts_with("x-") && name.ends_with("page"))
        }
    }
}

impl Addresses<'_> {
    /// Points Location and Link at the gateway where they lead to the DataHUB's API.
    fn rewrite(&self, headers: &mut HeaderMap) -> Result<(), ApiError> {
        if let Some(location) = headers.get(LOCATION) {
            let text = location.to_str().map_err(|_| Code::DatahubInvalidResponse)?;
            let to = match self.at_gateway(text) {
                Some(to) => to,
                // Storage elsewhere: the browser may go there, without our cookies and without the token.
                None if self.is_elsewhere(text) => text.to_owned(),
                None => return Err(Code::DatahubInvalidResponse.into()),
            };
            headers.insert(LOCATION, HeaderValue::from_str(&to).map_err(|_| Code::DatahubInvalidResponse)?);
        }
        let links: Vec<HeaderValue> = headers.get_all(LINK).filter_map(|link| self.relinked(link)).collect();
        headers.remove(LINK);
        for link in links {
            headers.append(LINK, link);
        }
        Ok(())
    }

    /// A Link field (RFC 8288 section 3) with the links into the API rewritten and the others left out.
    fn relinked(&self, field: &HeaderValue) -> Option<HeaderValue> {
        let mut rest = field.to_str().ok()?;
        let mut links = Vec::new();
        while let Some((url, after)) =
            rest.trim_start_matches([',', ' ', '\t']).strip_prefix('<').and_then(|rest| rest.split_once('>'))
        {
            let end = after.find(", <").or_else(|| after.find(",<")).unwrap_or(after.len());
            let (parameters, next) = after.split_at(end);
            if let Some(to) = self.at_gateway(url) {
                links.push(format!("<{to}>{}", parameters.trim_end()));
            }
            rest = next;
        }
        if links.is_empty() { None } else { HeaderValue::from_str(&links.join(", ")).ok() }
    }

    /// The gateway's URL for one of the DataHUB's, if it is one that we would forward.
    fn at_gateway(&self, url: &str) -> Option<String> {
        let target = match self.below(url) {
            Some(target) => target,
            None if url.starts_with('/') && !url.starts_with("//") => url.strip_prefix(self.datahub.address.root())?,
            None => return None,
        };
        Target::parse(target, self.policy).ok().map(|target| format!("{}{}", self.here, target.as_str()))
    }

    /// What follows the DataHUB's address in `url`, whichever of the two schemes it has: GitLab writes `http` at times.
    fn below<'a>(&self, url: &'a str) -> Option<&'a str> {
        fn schemeless(url: &str) -> Option<&str> {
            url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))
        }
        let place = schemeless(self.datahub.address.as_str())?;
        schemeless(url)?.strip_prefix(place).filter(|rest| rest.starts_with('/'))
    }

    fn is_elsewhere(&self, url: &str) -> bool {
        url.starts_with("https://")
            && url::Url::parse(url).is_ok_and(|parsed| !self.datahub.address.is_origin_of(&parsed))
            && self.below(url).is_none()
    }
}

/// Makes a download of whatever a browser might run, or might take for something that it runs.
fn neutralise(headers: &mut HeaderMap, has_body: bool, is_download: bool) {
    let is_inert = match headers.get(CONTENT_TYPE) {
        Some(value) => value.to_str().is_ok_and(|value| {
            let essence = value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase();
            INERT.contains(&&*essence) || essence.ends_with("+json")
        }),
        None => !has_body,
    };
    if is_inert && !is_download {
        return;
    }
    let parameters = headers
        .get(CONTENT_DISPOSITION)
        .and_then(|value| {
            value.as_bytes().iter().position(|byte| *byte == b';').map(|at| value.as_bytes()[at..].to_vec())
        })
        .unwrap_or_default();
    let attachment = HeaderValue::from_bytes(&[b"attachment", parameters.as_slice()].concat());
    headers.insert(CONTENT_DISPOSITION, attachment.unwrap_or(HeaderValue::from_static("attachment")));
}

/// Types that no browser runs, given `nosniff`.
const INERT: [&str; 14] = [
    "application/json",
    "application/octet-stream",
    "application/zip",
    "application/gzip",
    "application/x-gzip",
    "application/x-tar",
    "application/x-bzip2",
    "text/plain",
    "text/csv",
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "text/event-stream",
];

/// Fields of which two would mean two things.
const ONCE: [HeaderName; 3] = [CONTENT_TYPE, LOCATION, CONTENT_DISPOSITION];

const UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("x-upstream-request-id");
