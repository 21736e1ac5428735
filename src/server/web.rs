//! Our own routes and the app's files: an actix-web App that is called as a service and sees no connection.
//!
//! It gets requests that have been read whole and checked, and returns answers that are not written yet.

use std::net::SocketAddr;
use std::rc::Rc;

use actix_files::Files;
use actix_http::Request;
use actix_http::h1::Payload;
use actix_service::{IntoServiceFactory as _, Service as _, ServiceFactory as _, map_config};
use actix_web::body::BoxBody;
use actix_web::dev::{AppConfig, ServiceResponse, Url};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode, Uri, Version};
use actix_web::web::{self, Bytes, Data, ServiceConfig};
use actix_web::{App, HttpMessage as _, HttpResponse};
use futures_util::future::LocalBoxFuture;

use crate::auth::{self, Auth};
use crate::config::Config;
use crate::context::RequestContext;
use crate::error::{ApiError, Code};
use crate::http::head::RequestHead;

/// One worker's own routes and files.
pub(super) struct Web(Box<dyn Fn(Request) -> LocalBoxFuture<'static, Result<ServiceResponse, actix_web::Error>>>);

/// A request as actix-web takes it, and its path decoded, as the guard and the router both read it.
pub(super) struct WebRequest {
    request: Request,
    path: Url,
}

impl Web {
    /// Our own routes, `more` besides, and the app's files.
    pub(super) async fn new(config: &Config, auth: &Data<Auth>, more: fn(&mut ServiceConfig)) -> Self {
        let app = App::new()
            .app_data(auth.clone())
            .service(
                web::scope(&config.server.base_path)
                    .configure(|routes| auth::routes(routes, auth))
                    .default_service(web::to(not_found)),
            )
            .configure(more)
            .default_service(web::to(not_found));
        let app = match &config.app.files {
            // Relative links of the app's page need the slash.
            Some((path, dir)) if !path.is_empty() => app
                .service(web::redirect(path.clone(), format!("{path}/")))
                .service(Files::new(path, dir).index_file("index.html")),
            Some((_, dir)) => app.service(Files::new("/", dir).index_file("index.html")),
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
    /// The request that `head` is, sent by `peer`.
    ///
    /// # Errors
    /// `bad_request` for what is no URI to actix-web.
    pub(super) fn new(head: &RequestHead, peer: Option<SocketAddr>) -> Result<Self, ApiError> {
        let mut request = Request::new();
        let message = request.head_mut();
        let malformed = || ApiError::from(Code::BadRequest).closing();
        message.method = Method::from_bytes(head.method().as_bytes()).map_err(|_| malformed())?;
        message.uri = Uri::try_from(head.target()).map_err(|_| malformed())?;
        message.version = if head.is_http_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
        message.peer_addr = peer;
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
