//! What app developers are given: the API's document, a page that shows it and makes its calls, and the client for apps.
//!
//! The pages stand on our origin, beside our cookies, so they hold to the strictest policy that a page with a script can: no
//! script but the file beside it, no connection but to us, no frame, no HTML made of text. They know nothing that the app does
//! not know, and any of their links are relative, so that a front may serve all of it below a path of its own.

pub mod document;
mod failures;
mod paths;

use std::sync::{Arc, LazyLock};

use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, ETag, EntityTag, IfNoneMatch, LOCATION};
use actix_web::web::{self, Bytes, Header, ServiceConfig};
use actix_web::{HttpResponse, Resource, Route};
use sha2::{Digest as _, Sha256};

use crate::error::ApiError;

/// The routes below the gateway's base path; `document` is `/openapi.json`.
pub fn routes(config: &mut ServiceConfig, document: &File) {
    config
        .service(route(web::resource("/openapi.json"), "application/json", document.clone()))
        .service(route(web::resource("/docs/"), HTML, File::of(PAGE)))
        .service(web::resource("/docs").get(to_the_page).head(to_the_page).default_service(method_not_allowed()))
        .service(route(web::resource("/docs/page.css"), CSS, File::of(STYLE)))
        .service(route(web::resource("/docs/page.js"), SCRIPT, File::of(PAGE_SCRIPT)))
        .service(route(web::resource("/docs/check"), HTML, File::of(CHECK)))
        .service(route(web::resource("/docs/check.js"), SCRIPT, File::of(CHECK_SCRIPT)))
        .service(route(web::resource("/client.js"), SCRIPT, File::of(CLIENT)))
        .service(route(web::resource("/client.d.ts"), "text/plain; charset=utf-8", File::of(CLIENT_TYPES)));
}

/// A text with its tag. Both are made when somebody asks for them: the API's document takes a megabyte while it is made, and most
/// gateways are never asked for it.
#[derive(Clone)]
pub struct File(Arc<LazyLock<Tagged, Box<dyn FnOnce() -> Tagged + Send>>>);

type Tagged = (EntityTag, Bytes);

impl File {
    /// The file that `make` makes.
    pub fn new(make: impl FnOnce() -> Bytes + Send + 'static) -> Self {
        let make_tagged = || {
            let text = make();
            let hash: String = Sha256::digest(&text)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            (EntityTag::new_strong(hash), text)
        };
        Self(Arc::new(LazyLock::new(Box::new(make_tagged))))
    }

    fn of(text: &'static [u8]) -> Self {
        Self::new(move || Bytes::from_static(text))
    }
}

/// A route that is one file. A browser asks for it again each time, since it changes with the gateway, and gets it only if it has
/// changed.
fn route(resource: Resource, kind: &'static str, file: File) -> Resource {
    let answer = move |known: Option<Header<IfNoneMatch>>| {
        let (tag, text) = &**file.0;
        // Weakly, because a front that compresses makes the tag a weak one.
        let is_known = known.is_some_and(|known| match &known.0 {
            IfNoneMatch::Any => true,
            IfNoneMatch::Items(tags) => tags.iter().any(|other| other.weak_eq(tag)),
        });
        let status = if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        let mut response = HttpResponse::build(status);
        response.insert_header(ETag(tag.clone())).insert_header((CACHE_CONTROL, "no-cache"));
        let response = if is_known { response.finish() } else { response.content_type(kind).body(text.clone()) };
        async move { response }
    };
    resource.get(answer.clone()).head(answer).default_service(method_not_allowed())
}

/// What people type. The page's links need the slash; a front may have put something before the path.
async fn to_the_page() -> HttpResponse {
    HttpResponse::TemporaryRedirect().insert_header((LOCATION, "docs/")).finish()
}

fn method_not_allowed() -> Route {
    web::to(|| async { Err::<HttpResponse, _>(ApiError::method_not_allowed("GET, HEAD")) })
}

const PAGE: &[u8] = include_bytes!("docs/page.html");
const STYLE: &[u8] = include_bytes!("docs/page.css");
const PAGE_SCRIPT: &[u8] = include_bytes!("docs/page.js");
const CHECK: &[u8] = include_bytes!("docs/check.html");
const CHECK_SCRIPT: &[u8] = include_bytes!("docs/check.js");
/// An ES module, and its types.
const CLIENT: &[u8] = include_bytes!("../client/client.js");
const CLIENT_TYPES: &[u8] = include_bytes!("../client/client.d.ts");

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_small_and_hold_to_their_policy() {
        let files = [PAGE, STYLE, PAGE_SCRIPT, CHECK, CHECK_SCRIPT];
        assert!(files.iter().map(|file| file.len()).sum::<usize>() < 40_000);
        for page in [PAGE, CHECK] {
            let page = std::str::from_utf8(page).expect("a text");
            assert!(!page.contains("style=") && !page.contains(" on") && !page.contains("://"), "{page}");
            assert_eq!(page.matches("<script").count(), page.matches("<script type=\"module\" src=").count());
        }
        for script in [PAGE_SCRIPT, CHECK_SCRIPT] {
            let script = std::str::from_utf8(script).expect("a text");
            for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
                assert!(!script.contains(sink), "{sink}");
            }
        }
    }
}
