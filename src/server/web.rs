//! Our own routes and the app's files: an actix-web App that is called as a service and sees no connection.
//!
//! It gets requests that have been read whole and checked, and returns answers that are not written yet.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use actix_files::{Files, NamedFile};
use actix_http::Request;
use actix_http::h1::Payload;
use actix_service::{IntoServiceFactory as _, Service as _, ServiceFactory as _, fn_service, map_config};
use actix_web::body::BoxBody;
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse, Url};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{StatusCode, Uri, Version};
use actix_web::web::{self, Bytes, Data, ServiceConfig};
use actix_web::{App, HttpMessage as _, HttpResponse};
use futures_util::future::LocalBoxFuture;

use crate::auth::{self, Auth};
use crate::config::Config;
use crate::context::RequestContext;
use crate::docs;
use crate::error::{ApiError, Code};
use crate::guard::AppFiles;
use crate::http::head::RequestHead;

/// One worker's own routes and files.
pub(super) struct Web(Box<dyn Fn(Request) -> LocalBoxFuture<'static, Result<ServiceResponse, actix_web::Error>>>);

/// A request as actix-web takes it, and its path decoded, as the guard and the router both read it.
pub(super) struct WebRequest {
    request: Request,
    path: Url,
}

impl Web {
    /// Our own routes, the API's `document` among them, `more` besides, and the app's files.
    pub(super) async fn new(
        config: &Config,
        auth: &Data<Auth>,
        document: &docs::File,
        more: fn(&mut ServiceConfig),
    ) -> Self {
        let app = App::new()
            .app_data(auth.clone())
            .service(
                web::scope(&config.server.base_path)
                    .configure(|routes| auth::routes(routes, auth))
                    .configure(|routes| docs::routes(routes, document))
                    .default_service(web::to(not_found)),
            )
            .configure(more)
            .default_service(web::to(not_found));
        let app = match &config.app.files {
            // Relative links of the app's page need the slash.
            Some(AppFiles { path, dir, .. }) if !path.is_empty() => {
                app.service(web::redirect(path.clone(), format!("{path}/"))).service(files(path, dir))
            }
            Some(AppFiles { dir, .. }) => app.service(files("/", dir)),
            None => app,
        };
        let service = map_config(app.into_factory(), |()| AppConfig::default()).new_service(()).await;
        let service = service.expect("routes, files and what they hold need nothing that could fail");
        Self(Box::new(move |request| Box::pin(service.call(request))))
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// [`ApiError`]: what a route says, or for a failure of a library's own what fits its status.
    pub(super) async fn call(
        &self,
        request: WebRequest,
        body: Bytes,
        context: &Rc<RequestContext>,
    ) -> Result<HttpResponse<BoxBody>, ApiError> {
        let request = request.request;
        request.extensions_mut().insert(Rc::clone(context));
        let (_, mut payload) = Payload::create(true);
        payload.unread_data(body);
        let (request, _) = request.replace_payload(payload.into());
        let response = (self.0)(request).await.map_err(|error| api_error(&error))?;
        if let Some(route) = response.request().match_pattern() {
            context.set_route(route);
        }
        match response.response().error() {
            Some(error) => Err(api_error(error)),
            None => Ok(response.into_parts().1),
        }
    }
}

impl WebRequest {
    /// The request that `head` is.
    ///
    /// # Errors
    /// `bad_request` for what is no URI to actix-web.
    pub(super) fn new(head: &RequestHead) -> Result<Self, ApiError> {
        let mut request = Request::new();
        let message = request.head_mut();
        let malformed = || ApiError::from(Code::BadRequest).closing();
        message.method = head.method().clone();
        message.uri = Uri::try_from(head.target()).map_err(|_| malformed())?;
        message.version = if head.is_http_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
        for field in head.fields().iter() {
            let name = HeaderName::from_bytes(field.name).map_err(|_| malformed())?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| malformed())?;
            message.headers.append(name, value);
        }
        let path = Url::new(message.uri.clone());
        Ok(Self { request, path })
    }

    /// The path that the router goes by: a decoded copy.
    pub(super) fn path(&self) -> &str {
        self.path.path()
    }
}

/// The app's files at `path`. What is no file and has no extension is a route of the app's own, which its page knows.
fn files(path: &str, dir: &Path) -> Files {
    let (inside, page) = (dir.to_owned(), dir.to_owned());
    Files::new(path, dir)
        .index_file(INDEX)
        .path_filter(move |path, _| is_inside(&inside, path))
        .default_handler(fn_service(move |req: ServiceRequest| app_route(req, page.clone())))
}

/// Whether the file that is served for a path is there and, behind all links, in the folder. A pipe is none: whoever opens it
/// waits for ever.
fn is_inside(dir: &Path, path: &Path) -> bool {
    let file = dir.join(path);
    let file = if file.is_dir() { file.join(INDEX) } else { file };
    let is_pipe = file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    !is_pipe && dir.canonicalize().and_then(|dir| Ok(file.canonicalize()?.starts_with(dir))).unwrap_or(false)
}

/// The app's page, for a path that its script will read.
async fn app_route(req: ServiceRequest, dir: PathBuf) -> Result<ServiceResponse, actix_web::Error> {
    let path = Url::new(req.uri().clone());
    let mut segments = path.path().rsplit('/');
    let has_extension = segments.next().is_some_and(|name| name.contains('.'));
    if has_extension || segments.any(|segment| segment == "..") || !is_inside(&dir, Path::new(INDEX)) {
        return Ok(req.error_response(ApiError::from(Code::NotFound)));
    }
    match NamedFile::open_async(dir.join(INDEX)).await {
        Ok(page) => {
            let response = page.into_response(req.request());
            Ok(req.into_response(response))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(req.error_response(ApiError::from(Code::NotFound))),
        Err(error) => Ok(req.error_response(ApiError::because(Code::Internal, error))),
    }
}

/// How long a browser may keep a file, by the path it was asked for. A page is asked for again each time; a file that has a
/// hash in its name never changes, since its successor has another.
pub(super) fn caching(target: &str) -> &'static [u8] {
    let path = target.split('?').next().unwrap_or(target);
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rsplit_once('.') {
        None | Some((_, "html" | "htm")) => b"cache-control: no-cache\r\n",
        // What stands first is the file's own name.
        Some((stem, _)) if stem.split(['.', '-']).skip(1).any(is_hash) => {
            b"cache-control: public, max-age=31536000, immutable\r\n"
        }
        Some(_) => b"",
    }
}

/// Whether a part of a file's name is one of the hashes that bundlers write: hex digits, eight letters of Base64, or of
/// Base32. A word is none, nor a word and a number, whatever their length.
fn is_hash(part: &str) -> bool {
    let is_all = |is: fn(&u8) -> bool| part.bytes().all(|byte| is(&byte));
    let is_border = |pair: &&[u8]| pair[0].is_ascii_digit() != pair[1].is_ascii_digit();
    let is_mixed = part.as_bytes().windows(2).filter(is_border).count() > 1;
    let is_hex = part.len() >= 8 && is_all(u8::is_ascii_hexdigit);
    let is_short = part.len() == 8 && is_all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    is_mixed && (is_hex || is_short && part.bytes().any(|byte| byte.is_ascii_uppercase()))
}

async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(Code::NotFound.into())
}

/// A failure of a route's; one that is a library's own gets the code that fits its status.
fn api_error(error: &actix_web::Error) -> ApiError {
    let status = error.as_response_error().status_code();
    match error.as_error::<ApiError>() {
        Some(error) => error.clone(),
        None => ApiError::from(match status {
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
            status if status.is_client_error() => Code::BadRequest,
            _ => Code::Internal,
        }),
    }
}

/// The app's page.
const INDEX: &str = "index.html";

#[cfg(test)]
mod tests {
    #[test]
    fn what_never_changes_is_kept_and_pages_are_asked_for_again() {
        let (asked, kept) =
            (&b"cache-control: no-cache\r\n"[..], &b"cache-control: public, max-age=31536000, immutable\r\n"[..]);
        for (target, caching) in [
            ("/app/", asked),
            ("/app/index.html?x=index-3f2a1b9c.js", asked),
            ("/app/projects/230", asked),
            // Vite, webpack, esbuild.
            ("/app/assets/index-BfXk2a9Z.js", kept),
            ("/app/main.8e4c4b5d5dbf3b1a.js?x", kept),
            ("/app/chunk-7Q2PB6XT.js.map", kept),
            ("/app/logo.svg", b""),
            ("/app/jquery-validation.js", b""),
            ("/app/app-version2.js", b""),
            ("/app/report-20241126.pdf", b""),
            ("/app/deadbeef.js", b""),
            ("/app/Assay2Chart.js", b""),
            ("/app/Figure01.png", b""),
            ("/app/Chapter1.pdf", b""),
            ("/app/paper-Figure01.png", b""),
            ("/app/Figure01-large.png", b""),
            ("/app/cafe2024.js", b""),
            ("/app/menu-cafe2024.js", b""),
            ("/app/protocol-20241126a.pdf", b""),
            ("/app/7Q2PB6XT.pdf", b""),
        ] {
            assert_eq!(super::caching(target), caching, "{target}");
        }
    }
}
