//! What comes down: an allow-list of fields, links rewritten, content that a browser would run made a download.
//!
//! A DataHUB's answer now stands on our origin, beside our cookies. So nothing of it may act on that origin: no field but
//! the ones named here, no cookie, no content that a browser would run. The fields go from the buffer they were read into
//! straight into the one that is written.

use std::borrow::Cow;
use std::cell::Cell;

use memchr::memchr;

use crate::datahub::transport::Address;
use crate::error::{ApiError, Code};
use crate::http::body::BodyLength;
use crate::http::buffer::append;
use crate::http::client::Response;
use crate::http::head::{Field, is_name};
use crate::proxy::target::is_same_path;

/// How a DataHUB's addresses read in a browser, and what else of it comes down.
#[derive(Debug)]
pub struct UrlRewriter<'a, F> {
    /// The DataHUB's own.
    pub upstream: &'a Address,
    /// The gateway's URL for it.
    pub public: &'a str,
    /// Whether the gateway would forward a read of this target.
    pub forwards: F,
    /// The target of the call that is answered.
    pub own: &'a str,
    /// Names of fields that come down beside those of every answer, in lower case.
    pub more_fields: &'static [&'static str],
    /// Why a link or a redirect was left out, if one was; for the log.
    pub dropped: Cell<Option<&'static str>>,
}

/// Appends the fields of the DataHUB's answer as the browser gets them, its framing not included.
///
/// # Errors
/// `datahub_invalid_response` for an answer that cannot be passed on without lying or leaking.
pub(super) fn write_fields(
    response: &Response,
    rewriter: &UrlRewriter<'_, impl Fn(&str) -> bool>,
    is_head: bool,
    is_download: bool,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    let fields = response.fields();
    let is_field_name =
        |option: &[u8]| !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close");
    let has_options = fields.list("connection").any(is_field_name);
    let mut seen = Singletons::default();
    for field in fields.iter() {
        // What `Connection` names is of that connection only.
        if has_options && fields.list("connection").any(|option| option.eq_ignore_ascii_case(field.name)) {
            continue;
        }
        match Passage::of(field.name) {
            Passage::Dropped
                if rewriter.more_fields.iter().any(|name| field.name.eq_ignore_ascii_case(name.as_bytes())) =>
            {
                field.write(out);
            }
            Passage::Dropped => {}
            Passage::AsItIs => field.write(out),
            Passage::UpstreamRequestId => {
                append(out, [b"x-upstream-request-id: ", field.value, b"\r\n"]);
            }
            Passage::Link => rewriter.write_links(field.value, out),
            Passage::ContentType => seen.content_type = once(seen.content_type, field)?,
            Passage::ContentDisposition => seen.disposition = once(seen.disposition, field)?,
            Passage::Location => seen.location = once(seen.location, field)?,
        }
    }
    if let Some(field) = seen.content_type {
        field.write(out);
    }
    if let Some(location) = seen.location {
        let is_written = rewriter.write_location(&String::from_utf8_lossy(location.value), out);
        if !is_written && matches!(response.status(), 300..400) {
            // Not so a 201: what has been made is made, wherever it is.
            return Err(Code::DatahubInvalidResponse.into());
        }
    }
    let has_body = match response.length {
        BodyLength::None => is_head && response.content_length.is_some_and(|length| length > 0),
        length => !length.is_empty(),
    };
    seen.write_disposition(has_body, is_download, out);
    Ok(())
}

/// Fields of which two would mean two things.
#[derive(Default)]
struct Singletons<'a> {
    content_type: Option<Field<'a>>,
    disposition: Option<Field<'a>>,
    location: Option<Field<'a>>,
}

fn once<'a>(earlier: Option<Field<'a>>, field: Field<'a>) -> Result<Option<Field<'a>>, ApiError> {
    if earlier.is_some() { Err(Code::DatahubInvalidResponse.into()) } else { Ok(Some(field)) }
}

impl Singletons<'_> {
    /// Makes a download of whatever a browser might run, or might take for something that it runs.
    fn write_disposition(&self, has_body: bool, is_download: bool, out: &mut Vec<u8>) {
        let is_inert = self.content_type.map_or(!has_body, |field| is_inert(field.value));
        match self.disposition {
            Some(field) if is_inert && !is_download => field.write(out),
            None if is_inert && !is_download => {}
            disposition => {
                let value = disposition.map_or(&b""[..], |field| field.value);
                let parameters = memchr(b';', value).map_or(&b""[..], |at| &value[at..]);
                append(out, [b"content-disposition: attachment", parameters, b"\r\n"]);
            }
        }
    }
}

/// What becomes of a field: the allow-list.
enum Passage {
    Dropped,
    AsItIs,
    ContentType,
    ContentDisposition,
    Link,
    Location,
    UpstreamRequestId,
}

impl Passage {
    fn of(name: &[u8]) -> Self {
        let passes = match (name.len(), name[0] | 0x20) {
            (4, b'l') if is_name(name, "link") => return Self::Link,
            (8, b'l') if is_name(name, "location") => return Self::Location,
            (12, b'c') if is_name(name, "content-type") => return Self::ContentType,
            (12, b'x') if is_name(name, "x-request-id") => return Self::UpstreamRequestId,
            (19, b'c') if is_name(name, "content-disposition") => return Self::ContentDisposition,
            (4, b'e') => is_name(name, "etag"),
            (6, b's') => is_name(name, "sunset"),
            (11, b'd') => is_name(name, "deprecation"),
            (11, b'r') if is_name(name, "retry-after") => true,
            (13, b'a') => is_name(name, "accept-ranges"),
            (13, b'c') => is_name(name, "content-range"),
            (13, b'l') => is_name(name, "last-modified"),
            (16, b'c') => is_name(name, "content-encoding"),
            (17, b'x') if is_name(name, "x-accel-buffering") => true,
            (_, b'r') => begins(name, "ratelimit-"),
            (_, b'x') => {
                // Most fields of GitLab's begin so: their third letter says what is worth a look.
                let third = name.get(2).map_or(0, |byte| byte | 0x20);
                (third == b'g' && begins(name, "x-gitlab-"))
                    || (third == b't' && begins(name, "x-total"))
                    || (begins(name, "x-") && name.len() >= 6 && is_name(&name[name.len() - 4..], "page"))
            }
            _ => false,
        };
        if passes { Self::AsItIs } else { Self::Dropped }
    }
}

fn begins(name: &[u8], lower: &str) -> bool {
    name.len() >= lower.len() && is_name(&name[..lower.len()], lower)
}

impl<F: Fn(&str) -> bool> UrlRewriter<'_, F> {
    /// Writes where a browser may go: into the API, or to storage elsewhere, without our cookies and without the token.
    /// Whether there was such a place.
    fn write_location(&self, location: &str, out: &mut Vec<u8>) -> bool {
        let (prefix, rest) = match self.at_gateway(location) {
            Some(target) => (self.public, target),
            None if self.is_elsewhere(location) => ("", location),
            None => {
                self.dropped.set(Some(LOCATION_DROPPED));
                return false;
            }
        };
        append(out, [b"location: ", prefix.as_bytes(), rest.as_bytes(), b"\r\n"]);
        true
    }

    /// Writes a Link field (RFC 8288 section 3) with the links to other pages of the API rewritten and all others left out.
    fn write_links(&self, field: &[u8], out: &mut Vec<u8>) {
        let Some(mut rest) = std::str::from_utf8(field).ok().filter(|field| field.is_ascii()) else {
            self.dropped.set(Some(LINK_UNREADABLE));
            return;
        };
        let mut before = "link: <";
        while let Some(link) = rest.trim_start_matches([',', ' ', '\t']).strip_prefix('<')
            && let Some(end) = memchr(b'>', link.as_bytes())
        {
            let (url, after) = (&link[..end], &link[end + 1..]);
            let (parameters, next) = after.split_at(end_of_parameters(after.as_bytes()));
            if !is_to_a_page(parameters) {
                self.dropped.set(Some(LINK_TO_NO_PAGE));
            } else if let Some(target) = self.page(url) {
                let parts = [before, self.public, &target, ">", parameters.trim_end()];
                append(out, parts.map(str::as_bytes));
                before = ", <";
            } else {
                self.dropped.set(Some(LINK_ELSEWHERE));
            }
            rest = next;
        }
        if !rest.trim_start_matches([',', ' ', '\t']).is_empty() {
            self.dropped.set(Some(LINK_UNREADABLE));
        }
        if before == ", <" {
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The target at the gateway of a link to another page. Such a page has the path of the call itself (GitLab
    /// `lib/gitlab/pagination/offset_header_builder.rb`), whatever the DataHUB calls its host; that path is what tells.
    fn page<'a>(&self, url: &'a str) -> Option<Cow<'a, str>> {
        if let Some(target) = self.at_gateway(url) {
            return Some(Cow::Borrowed(target));
        }
        let target = split_host(url)?.1.strip_prefix(self.upstream.root())?;
        let (path, query) = split_path(target);
        let (own, _) = split_path(self.own);
        let target = if path == own {
            Cow::Borrowed(target)
        } else if is_same_path(path, own) {
            // What stands in between may have written it with other escapes; the app's own are known to work.
            Cow::Owned(format!("{own}{query}"))
        } else {
            return None;
        };
        self.passes(&target).then_some(target)
    }

    /// The target that one of the DataHUB's URLs is at the gateway, if it is one that we would forward.
    fn at_gateway<'a>(&self, url: &'a str) -> Option<&'a str> {
        let target = match self.below(url) {
            Some(target) => target,
            None if url.starts_with('/') && !url.starts_with("//") => url.strip_prefix(self.upstream.root())?,
            None => {
                let (host, target) = split_host(url)?;
                if !self.upstream.has_host(host) {
                    return None;
                }
                target.strip_prefix(self.upstream.root())?
            }
        };
        self.passes(target).then_some(target)
    }

    /// Whether we would forward a read of this target.
    fn passes(&self, target: &str) -> bool {
        is_visible(target) && (self.forwards)(target)
    }

    /// What follows the DataHUB's address in `url`, whichever of the two schemes it has: GitLab writes `http` at times.
    fn below<'a>(&self, url: &'a str) -> Option<&'a str> {
        fn schemeless(url: &str) -> Option<&str> {
            url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))
        }
        let place = schemeless(self.upstream.as_str())?;
        schemeless(url)?.strip_prefix(place).filter(|rest| rest.starts_with('/'))
    }

    /// Neither at the DataHUB nor at the gateway: to lead a browser to another call is not the DataHUB's to do.
    fn is_elsewhere(&self, url: &str) -> bool {
        url.starts_with("https://")
            && is_visible(url)
            && self.below(url).is_none()
            && url::Url::parse(url).is_ok_and(|parsed| {
                let is_here = url::Url::parse(self.public).is_ok_and(|here| here.origin() == parsed.origin());
                !is_here && !self.upstream.is_at(&parsed)
            })
    }
}

/// The host of an absolute URL, without a port, and what follows; `None` if it names a user or is not plainly such a URL.
fn split_host(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let (authority, rest) = rest.split_at(memchr(b'/', rest.as_bytes())?);
    // The colons within brackets are an IPv6 address's.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, ""),
    };
    let is_http = ["http", "https"].iter().any(|http| scheme.eq_ignore_ascii_case(http));
    let is_plain =
        !host.is_empty() && !host.contains(['@', '?', '#', '\\']) && port.bytes().all(|byte| byte.is_ascii_digit());
    (is_http && is_plain).then_some((host, rest))
}

/// A target's path, and its query with the `?`.
fn split_path(target: &str) -> (&str, &str) {
    target.split_at(memchr(b'?', target.as_bytes()).unwrap_or(target.len()))
}

/// Where a link's parameters end: at a comma that is not within quotes.
fn end_of_parameters(text: &[u8]) -> usize {
    let mut is_quoted = false;
    let is_end = |byte: &u8| {
        is_quoted ^= *byte == b'"';
        *byte == b',' && !is_quoted
    };
    text.iter().position(is_end).unwrap_or(text.len())
}

/// ASCII without control characters: what may stand in a field of ours.
fn is_visible(text: &str) -> bool {
    text.bytes().fold(true, |is, byte| is & (b' '..0x7f).contains(&byte))
}

/// Whether no browser runs content of this type, given `nosniff`. Of several behind commas a browser takes the last (Fetch, to
/// extract a MIME type).
fn is_inert(content_type: &[u8]) -> bool {
    if content_type.contains(&b',') {
        return false;
    }
    let essence = content_type[..memchr(b';', content_type).unwrap_or(content_type.len())].trim_ascii();
    INERT_TYPES.iter().any(|inert| inert.len() == essence.len() && essence.eq_ignore_ascii_case(inert.as_bytes()))
        || is_json(essence)
}

/// `application/problem+json` and its like, and nothing that only ends so.
fn is_json(essence: &[u8]) -> bool {
    let Some((start, rest)) = essence.split_first_chunk::<12>() else { return false };
    let Some((name, end)) = rest.split_last_chunk::<5>() else { return false };
    start.eq_ignore_ascii_case(b"application/")
        && end.eq_ignore_ascii_case(b"+json")
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte))
}

/// Whether a link leads to another page, and not to something that a browser would load by itself.
fn is_to_a_page(parameters: &str) -> bool {
    // As GitLab writes it.
    if matches!(parameters, "; rel=\"next\"" | "; rel=\"prev\"" | "; rel=\"first\"" | "; rel=\"last\"") {
        return true;
    }
    let mut rels = parameters.split(';').filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("rel").then(|| value.trim().trim_matches('"'))
    });
    let (Some(rel), None) = (rels.next(), rels.next()) else { return false };
    rel.split(' ').all(|rel| PAGINATION_RELS.contains(&rel))
}

/// How GitLab's links to other pages are related (`lib/gitlab/pagination/offset_header_builder.rb`).
const PAGINATION_RELS: [&str; 4] = ["first", "prev", "next", "last"];

/// What the log says of links that are dropped. It never says what the link was.
const LINK_TO_NO_PAGE: &str = "a Link leads to no other page: only first, prev, next and last come down";
const LINK_ELSEWHERE: &str = "a Link to another page has neither the call's path nor the DataHUB's host, or is not \
    forwarded: datahubs.ID.url must be what GitLab calls itself (external_url)";
const LINK_UNREADABLE: &str = "a Link is malformed";
const LOCATION_DROPPED: &str = "a Location leads neither to what is forwarded nor to https elsewhere: datahubs.ID.url must \
    be what GitLab calls itself (external_url)";

/// Types that no browser runs, given `nosniff`.
const INERT_TYPES: [&str; 14] = [
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datahub::transport::tls_config;
    use crate::http::buffer::BufferPool;
    use crate::proxy::policy::Policy;
    use crate::proxy::target::Target;

    const HERE: &str = "https://gateway.example/datahubs/a";

    fn there() -> Address {
        let url = url::Url::parse("https://hub.example/gitlab").expect("a URL");
        Address::new(url, None, tls_config(None).expect("the system's roots, or Mozilla's")).expect("an address")
    }

    fn parsed(text: &str, is_head: bool) -> Response {
        let mut read = BufferPool::default().take();
        read.extend_from_slice(text.as_bytes());
        Response::parse(&mut read, is_head, &mut 0).expect("a good answer").expect("a whole head")
    }

    /// Of the call `own` to the DataHUB `upstream`, whose policy is the default one.
    fn rewriter<'a>(upstream: &'a Address, own: &'a str) -> UrlRewriter<'a, impl Fn(&str) -> bool> {
        let policy = Policy::default();
        let forwards = move |target: &str| Target::parse("GET", target, &policy).is_ok();
        UrlRewriter { upstream, public: HERE, forwards, own, more_fields: &[], dropped: Cell::default() }
    }

    /// The lines that go down of an answer that has these fields.
    fn written(fields: &str, is_head: bool, is_download: bool) -> Result<Vec<String>, Code> {
        let response = parsed(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), is_head);
        let (there, mut out) = (there(), Vec::new());
        let rewriter = rewriter(&there, "/");
        write_fields(&response, &rewriter, is_head, is_download, &mut out).map_err(|error| error.code())?;
        Ok(String::from_utf8(out).expect("ASCII").split_terminator("\r\n").map(str::to_owned).collect())
    }

    /// PR-01, PR-02.
    #[test]
    fn only_the_fields_of_the_list_come_down() {
        for name in [
            "ETag",
            "SUNSET",
            "deprecation",
            "Retry-After",
            "Accept-Ranges",
            "Content-Range",
            "Last-Modified",
            "Content-Encoding",
            "X-Accel-Buffering",
            "RateLimit-Limit",
            "ratelimit-name",
            "X-Gitlab-Size",
            "X-Total",
            "X-Total-Pages",
            "X-Page",
            "X-Next-Page",
            "X-Per-PAGE",
        ] {
            let line = format!("{name}: a b");
            assert_eq!(written(&format!("{line}\r\nContent-Length: 0\r\n"), false, false), Ok(vec![line]));
        }
        for name in [
            "Etags",
            "Sunsets",
            "Retry-Before",
            "Accept-Range",
            "Content-Rangee",
            "Content-Language",
            "X-Accel-Redirect",
            "X-Accel-Bufferinh",
            "RateLimit",
            "X-Gitlab",
            "X_Gitlab-Size",
            "Page",
            "X-Pages",
            "X-A",
            "X",
            "XX-Page",
            "Set-Cookie",
            "Cache-Control",
            "Vary",
            "Date",
            "Age",
            "Server",
            "Links",
            "Keep-Alive",
            "Content-Security-Policy",
            "Strict-Transport-Security",
            "Access-Control-Allow-Origin",
        ] {
            assert_eq!(written(&format!("{name}: a\r\nContent-Length: 0\r\n"), false, false), Ok(vec![]), "{name}");
        }
        let renamed = written("X-Request-ID:a\r\nContent-Length: 0\r\n", false, false);
        assert_eq!(renamed, Ok(vec!["x-upstream-request-id: a".to_owned()]));
        let of_connection =
            "Connection: close, x-gitlab-a\r\nConnection: ETAG\r\nX-Gitlab-A: a\r\nETag: b\r\nX-Page: 1\r\n";
        let kept = written(&format!("{of_connection}Content-Length: 0\r\n"), false, false);
        assert_eq!(kept, Ok(vec!["X-Page: 1".to_owned()]));
    }

    /// PR-04, PR-10.
    #[test]
    fn what_has_one_meaning_is_said_once() {
        for name in ["Content-Type", "Content-Disposition", "Location"] {
            let line = format!("{name}: https://s3.example/a\r\n");
            assert!(written(&line, false, false).is_ok(), "{name}");
            assert_eq!(written(&line.repeat(2), false, false), Err(Code::DatahubInvalidResponse), "{name}");
        }
        assert_eq!(
            written("ETag: a\r\nETag: b\r\nContent-Length: 0\r\n", false, false).map(|lines| lines.len()),
            Ok(2)
        );
    }

    /// PR-04: also where there is nothing to see yet, and whatever a page asked for as a download.
    #[test]
    fn what_a_browser_might_run_is_an_attachment_whoever_asks() {
        let (plain, page) = ("Content-Type: text/plain\r\n", "Content-Type: text/html\r\n");
        let inline = "Content-Disposition: inline; filename=\"x\"\r\n";
        let (some, none) = ("Content-Length: 1\r\n", "Content-Length: 0\r\n");
        for (fields, is_head, is_download, expected) in [
            ([plain, some, ""], false, false, None),
            ([plain, some, inline], false, false, Some("Content-Disposition: inline; filename=\"x\"")),
            ([plain, some, inline], false, true, Some("content-disposition: attachment; filename=\"x\"")),
            ([plain, none, ""], false, true, Some("content-disposition: attachment")),
            ([page, some, ""], false, false, Some("content-disposition: attachment")),
            (
                ["Content-Type: text/plain;,text/html\r\n", some, ""],
                false,
                false,
                Some("content-disposition: attachment"),
            ),
            ([page, none, ""], false, false, Some("content-disposition: attachment")),
            (["", some, ""], false, false, Some("content-disposition: attachment")),
            (["", "", ""], false, false, Some("content-disposition: attachment")),
            (["", none, ""], false, false, None),
            (["", some, ""], true, false, Some("content-disposition: attachment")),
            (["", none, ""], true, false, None),
            (["", "", ""], true, false, None),
        ] {
            let lines = written(&fields.concat(), is_head, is_download).expect("a good answer");
            let disposition = lines.iter().find(|line| line.to_lowercase().starts_with("content-disposition"));
            assert_eq!(
                disposition.map(String::as_str),
                expected,
                "{fields:?}, HEAD: {is_head}, download: {is_download}"
            );
        }
    }

    /// PR-02: below a relative root, too.
    #[test]
    fn a_page_is_known_by_the_path_of_the_call() {
        let there = there();
        let own = "/api/v4/projects/a%2Fb/issues?page=1";
        let rewriter = rewriter(&there, own);
        for (url, expected) in [
            ("http://hub.example:443/gitlab/api/v4/projects/a%2Fb/issues?page=2", Some("?page=2")),
            ("http://inner/gitlab/api/v4/projects/a%2Fb/issues?page=2", Some("?page=2")),
            ("http://inner/gitlab/api/v4/projects/%61%2fb/issues", Some("")),
            ("http://inner/gitlab/api/v4/projects/a/b/issues?page=2&", Some("?page=2&")),
            ("http://inner/api/v4/projects/a%2Fb/issues?page=2", None),
            ("http://inner/gitlab/api/v4/projects/a%252Fb/issues?page=2", None),
            ("http://inner?/gitlab/api/v4/projects/a%2Fb/issues?page=2", None),
            ("http://inner\\@x/gitlab/api/v4/projects/a%2Fb/issues?page=2", None),
            ("http:///gitlab/api/v4/projects/a%2Fb/issues?page=2", None),
            ("http://[::1]/gitlab/api/v4/projects/a%2Fb/issues?page=2", Some("?page=2")),
            ("http://inner/gitlab/api/v4/projects/a%2Fb/issues?job_token=2", None),
        ] {
            let expected = expected.map(|query| format!("/api/v4/projects/a%2Fb/issues{query}"));
            assert_eq!(rewriter.page(url).map(Cow::into_owned), expected, "{url}");
        }
    }

    /// PR-03: storage may be anywhere but here.
    #[test]
    fn a_redirect_leads_into_the_api_or_elsewhere_and_never_to_ourselves() {
        let there = there();
        let rewriter = rewriter(&there, "/");
        let located = |location: &str| {
            let mut out = Vec::new();
            let is_written = rewriter.write_location(location, &mut out);
            let line = String::from_utf8(out).expect("ASCII");
            is_written.then(|| line["location: ".len()..].trim_end().to_owned())
        };
        let passed = |location: &str| Some(location.to_owned());
        for location in [
            "https://hub.example/gitlab/api/v4/a%2Fb?c=d&",
            "/gitlab/api/v4/a%2Fb?c=d&",
            "http://hub.example:443/gitlab/api/v4/a%2Fb?c=d&",
            "http://hub.example/gitlab/api/v4/a%2Fb?c=d&",
            "HTTPS://Hub.Example.:8443/gitlab/api/v4/a%2Fb?c=d&",
        ] {
            assert_eq!(located(location), passed("https://gateway.example/datahubs/a/api/v4/a%2Fb?c=d&"), "{location}");
        }
        for location in [
            "https://s3.example/a?X-Amz-Signature=b",
            "https://gateway.example:8443/",
            "https://x.gateway.example/",
            "https://hub.example:9000/bucket/a",
            "https://hub.example.evil/gitlab/api/v4/a",
        ] {
            assert_eq!(located(location), passed(location));
        }
        for location in [
            "https://gateway.example/auth/logout",
            "https://gateway.example:443/auth/logout",
            "https://a:b@GATEWAY.example/auth/logout",
            "https:///gateway.example/auth/logout",
            "https://hub.example/users/sign_in",
            "https://hub.example:443/gitlab/oauth/token",
            "https://HUB.example.:443/gitlab/oauth/token",
            "https://hub.example:80/gitlab/oauth/token",
            "https://hub.example/gitlabb/api/v4/a",
            "https://hub.example/api/v4/a",
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
