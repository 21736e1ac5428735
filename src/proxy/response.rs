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

use crate::datahub::transport::Address;
use crate::error::{ApiError, Code};
use crate::proxy::target::{Policy, Target};
use crate::proxy::upstream::answer::{Answer, AnswerBody};
use crate::proxy::upstream::connection::Head;

/// How a DataHUB's addresses read in a browser.
pub struct Addresses<'a> {
    /// The DataHUB's own.
    pub there: &'a Address,
    /// The gateway's URL for it.
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
    addresses.rewrite(status, headers)?;
    neutralise(headers, has_body, is_download);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    headers.insert(VARY, HeaderValue::from_static("Cookie, Accept-Encoding"));
    // Of a HEAD or a 304: what the body would be, which actix-web does not derive from a body that is not there.
    if let Some(length) = announced.filter(|_| status == StatusCode::NOT_MODIFIED) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// Copies what the allow-list names, byte for byte, but for what `Connection` says is of that connection only.
fn copy(head: &Head, headers: &mut HeaderMap) -> Result<(), ApiError> {
    let of_connection: Vec<&[u8]> = head.options().collect();
    for (name, value) in head.fields() {
        if of_connection.iter().any(|option| option.eq_ignore_ascii_case(name)) {
            continue;
        }
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
    fn rewrite(&self, status: StatusCode, headers: &mut HeaderMap) -> Result<(), ApiError> {
        if let Some(location) = headers.remove(LOCATION).next() {
            if let Some(to) = location.to_str().ok().and_then(|location| self.located(location)) {
                headers.insert(LOCATION, to);
            } else if status.is_redirection() {
                // Not so a 201: what has been made is made, wherever it is.
                return Err(Code::DatahubInvalidResponse.into());
            }
        }
        let links: Vec<HeaderValue> = headers.get_all(LINK).filter_map(|link| self.relinked(link)).collect();
        headers.remove(LINK);
        for link in links {
            headers.append(LINK, link);
        }
        Ok(())
    }

    /// Where a browser may go: into the API, or to storage elsewhere, without our cookies and without the token.
    fn located(&self, location: &str) -> Option<HeaderValue> {
        match self.at_gateway(location) {
            Some(to) => HeaderValue::from_str(&to).ok(),
            None if self.is_elsewhere(location) => HeaderValue::from_str(location).ok(),
            None => None,
        }
    }

    /// A Link field (RFC 8288 section 3) with the links to other pages of the API rewritten and all others left out.
    fn relinked(&self, field: &HeaderValue) -> Option<HeaderValue> {
        let mut rest = field.to_str().ok()?;
        let mut links = Vec::new();
        while let Some((url, after)) =
            rest.trim_start_matches([',', ' ', '\t']).strip_prefix('<').and_then(|rest| rest.split_once('>'))
        {
            let mut is_quoted = false;
            let end = after.find(|letter| {
                is_quoted ^= letter == '"';
                letter == ',' && !is_quoted
            });
            let (parameters, next) = after.split_at(end.unwrap_or(after.len()));
            if let (true, Some(to)) = (is_to_a_page(parameters), self.at_gateway(url)) {
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
            None if url.starts_with('/') && !url.starts_with("//") => url.strip_prefix(self.there.root())?,
            None => return None,
        };
        Target::parse(target, self.policy).ok().map(|target| format!("{}{}", self.here, target.as_str()))
    }

    /// What follows the DataHUB's address in `url`, whichever of the two schemes it has: GitLab writes `http` at times.
    fn below<'a>(&self, url: &'a str) -> Option<&'a str> {
        fn schemeless(url: &str) -> Option<&str> {
            url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))
        }
        let place = schemeless(self.there.as_str())?;
        schemeless(url)?.strip_prefix(place).filter(|rest| rest.starts_with('/'))
    }

    /// Neither at the DataHUB nor at the gateway: to lead a browser to another call is not the DataHUB's to do.
    fn is_elsewhere(&self, url: &str) -> bool {
        url.starts_with("https://")
            && self.below(url).is_none()
            && url::Url::parse(url).is_ok_and(|parsed| {
                let is_here = url::Url::parse(self.here).is_ok_and(|here| here.origin() == parsed.origin());
                !is_here && !self.there.is_origin_of(&parsed)
            })
    }
}

/// Makes a download of whatever a browser might run, or might take for something that it runs.
fn neutralise(headers: &mut HeaderMap, has_body: bool, is_download: bool) {
    let is_inert = match headers.get(CONTENT_TYPE) {
        Some(value) => value.to_str().is_ok_and(|value| {
            let essence = value.split(';').next().unwrap_or(value).trim().to_ascii_lowercase();
            INERT.contains(&&*essence) || is_json(&essence)
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

/// `application/problem+json` and its like, and nothing that only ends so.
fn is_json(essence: &str) -> bool {
    let name = essence.strip_prefix("application/").and_then(|rest| rest.strip_suffix("+json"));
    name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)))
}

/// Whether a link leads to another page, and not to something that a browser would load by itself.
fn is_to_a_page(parameters: &str) -> bool {
    let mut rels = parameters.split(';').filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("rel").then(|| value.trim().trim_matches('"'))
    });
    let (Some(rel), None) = (rels.next(), rels.next()) else { return false };
    rel.split(' ').all(|rel| PAGES.contains(&rel))
}

/// How GitLab's links to other pages are related (`lib/gitlab/pagination/offset_header_builder.rb`).
const PAGES: [&str; 4] = ["first", "prev", "next", "last"];

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datahub::transport::tls_config;

    /// PR-03: storage may be anywhere but here.
    #[test]
    fn a_redirect_leads_into_the_api_or_elsewhere_and_never_to_ourselves() {
        let url = url::Url::parse("https://hub.example/gitlab").expect("a URL");
        let there =
            Address::new(url, None, tls_config(None).expect("the system's roots, or Mozilla's")).expect("an address");
        let here = "https://gateway.example/datahubs/a";
        let addresses = Addresses { there: &there, here, policy: &Policy::default() };
        let located = |location: &str| addresses.located(location).and_then(|to| to.to_str().ok().map(str::to_owned));
        let passed = |location: &str| Some(location.to_owned());
        for location in ["https://hub.example/gitlab/api/v4/a%2Fb?c=d&", "/gitlab/api/v4/a%2Fb?c=d&"] {
            assert_eq!(located(location), passed("https://gateway.example/datahubs/a/api/v4/a%2Fb?c=d&"), "{location}");
        }
        for location in
            ["https://s3.example/a?X-Amz-Signature=b", "https://gateway.example:8443/", "https://x.gateway.example/"]
        {
            assert_eq!(located(location), passed(location));
        }
        for location in [
            "https://gateway.example/auth/logout",
            "https://gateway.example:443/auth/logout",
            "https://a:b@GATEWAY.example/auth/logout",
            "https:///gateway.example/auth/logout",
            "https://hub.example/users/sign_in",
            "https://hub.example:443/gitlab/oauth/token",
            "https://",
            "//s3.example/a",
            "https:\\\\gateway.example",
            "http://s3.example/a",
            "javascript:alert(1)",
            "data:text/html,a",
            "",
        ] {
            assert_eq!(located(location), None, "{location}");
        }
    }
}
