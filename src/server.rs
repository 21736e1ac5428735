//! Listeners, routes and middleware, in the order a request meets them.
//!
//! A connection is guarded by [`connection`], below HTTP. Every request gets an id and a line in the log, whatever becomes of
//! it; then the [`door`] asks whether our own script sent it. On its way back every answer gets the hardening headers, and
//! every failure its body.

mod connection;
mod door;
mod flow;
mod head;

use std::fmt::Debug;
use std::fs;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_files::Files;
use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive, Request};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::{ConnectionType, Version};
use actix_web::web::{self, Data};
use actix_web::{App, Error, HttpMessage, HttpResponse, HttpServer};
use futures_util::future::Either;
use futures_util::{FutureExt, TryFutureExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use self::connection::{Connection, LINGER};
use self::door::Door;
use self::flow::{Answer, Flow};
use crate::admin::{self, Draining};
use crate::auth::pending::PendingLogins;
use crate::auth::rate::Limiter;
use crate::auth::{self, Auth};
use crate::config::Config;
use crate::datahub::transport::Endpoint;
use crate::error::{ApiError, Code};
use crate::proxy::{self, Proxy};
use crate::session::refresh::{Refresher, Tasks};

/// A socket to take connections from.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl Socket {
    /// Listens at `endpoint`. A unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// What the system said.
    pub fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Endpoint::Unix(path) => {
                if std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                {
                    fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }

    /// Where it listens, for people to read.
    pub fn place(&self) -> String {
        match self {
            Self::Tcp(socket) => socket.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(socket) => {
                let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

/// The gateway on `sockets`, and the tasks that it leaves to whoever runs it.
///
/// # Errors
/// A socket that cannot be listened on.
pub fn gateway(config: &Arc<Config>, sockets: Vec<Socket>, draining: &Draining) -> io::Result<(Server, Tasks)> {
    let (refresher, tasks) = Refresher::new(config.session.remember);
    let origin = &config.app.origins.own;
    let datahubs = &config.datahubs;
    let sessions = Arc::new(config.sessions());
    let auth = Data::new(Auth {
        datahubs: datahubs.clone(),
        sessions: Arc::clone(&sessions),
        refresher: refresher.clone(),
        pending: PendingLogins::new(config.keyring.clone(), origin),
        logins: Limiter::new(config.login_rate),
        callbacks: Limiter::new(config.callback_rate),
        app_url: config.app.url.clone(),
    });
    let shared = Arc::new(proxy::Shared::new(
        &config.server.public_url,
        &config.server.base_path,
        config.proxy.clone(),
        datahubs.clone(),
        sessions,
        refresher,
    ));

    let (workers, shutdown) = (config.server.workers, config.server.shutdown_timeout);
    let (config, draining) = (Arc::clone(config), draining.clone());
    let app = move |door: Rc<Door>| {
        let base_path = door.config.server.base_path.clone();
        let files = door.config.app.files.clone();
        let app = App::new()
            .app_data(auth.clone())
            .app_data(Data::new(Proxy::new(Arc::clone(&shared))))
            .wrap_fn(move |req, next| pass(&door, req, next))
            .service(
                web::scope(&base_path)
                    .configure(|routes| auth::routes(routes, &auth))
                    // Not a pattern: the router would match a decoded copy, by regular expressions.
                    .default_service(web::to(proxy::forward)),
            )
            .default_service(web::to(|| async { Err::<HttpResponse, _>(ApiError::from(Code::NotFound)) }));
        match &files {
            // Relative links of the app's page need the slash.
            Some((path, dir)) if !path.is_empty() => app
                .service(web::redirect(path.clone(), format!("{path}/")))
                .service(Files::new(path, dir).index_file("index.html")),
            Some((_, dir)) => app.service(Files::new("/", dir).index_file("index.html")),
            None => app,
        }
    };
    let door = move || Rc::new(Door::new(Arc::clone(&config), draining.clone()));
    let server = Server::build().workers(workers).shutdown_timeout(shutdown.as_secs().max(1)).disable_signals();
    let server = sockets.into_iter().try_fold(server, |server, socket| {
        let (app, door, place) = (app.clone(), door.clone(), socket.place());
        match socket {
            Socket::Tcp(socket) => server.listen(place, socket, move || {
                let door = door();
                http(app(Rc::clone(&door)).into_factory(), door, |stream: &TcpStream| {
                    // An answer's last packet must not wait for the one before to be acknowledged.
                    let _ = stream.set_nodelay(true);
                    stream.peer_addr().ok()
                })
            }),
            Socket::Unix(socket) => server.listen_uds(place, socket, move || {
                let door = door();
                http(app(Rc::clone(&door)).into_factory(), door, |_: &UnixStream| None)
            }),
        }
    })?;
    Ok((server.run(), tasks))
}

/// The operators' listener.
///
/// # Errors
/// A socket that cannot be listened on.
pub fn operators(socket: Socket, draining: &Draining) -> io::Result<Server> {
    let draining = draining.clone();
    let server = HttpServer::new(move || App::new().app_data(Data::new(draining.clone())).configure(admin::routes));
    let server = server.workers(1).shutdown_timeout(1).disable_signals();
    let server = match socket {
        Socket::Tcp(socket) => server.listen(socket),
        Socket::Unix(socket) => server.listen_uds(socket),
    }?;
    Ok(server.run())
}

/// `app` over HTTP/1.1 on guarded connections, and nothing else: no upgrade, no HTTP/2.
fn http<S, A, B>(
    app: A,
    door: Rc<Door>,
    peer: fn(&S) -> Option<SocketAddr>,
) -> impl ServiceFactory<S, Config = (), Response = (), Error = impl Debug, InitError = impl Debug>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = Error> + 'static,
    A::InitError: Debug,
    B: MessageBody + 'static,
{
    let http = HttpService::build()
        // The connection's own.
        .client_request_timeout(Duration::ZERO)
        .keep_alive(KeepAlive::Os)
        .client_disconnect_timeout(LINGER)
        // A client that leaves takes its call with it.
        .h1_allow_half_closed(false)
        .on_connect_ext(|connection: &Connection<S>, data| {
            data.insert(connection.flow());
        })
        .h1(map_config(app, |()| AppConfig::default()));
    fn_service(move |stream: S| {
        let peer = peer(&stream);
        ready(Ok::<_, DispatchError>((
            Connection::new(stream, peer.map(|peer| peer.ip().to_canonical()), Rc::clone(&door)),
            peer,
        )))
    })
    .and_then(http)
}

/// Takes a request through the door to whoever is behind it, and the answer back.
fn pass<S>(
    door: &Rc<Door>,
    mut req: ServiceRequest,
    next: &S,
) -> impl Future<Output = Result<ServiceResponse<Answer<impl MessageBody + use<S>>>, Error>> + use<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error>,
{
    let door = Rc::clone(door);
    let flow = follow(&mut req);
    let context = door.begin(&req);
    req.extensions_mut().insert(Rc::clone(&context));
    let begun = catch_unwind(AssertUnwindSafe(|| match door.admit(&req, &context) {
        Ok(None) => Either::Left(next.call(req)),
        Ok(Some(answer)) => Either::Right(ready(Ok(req.into_response(answer)))),
        Err(error) => Either::Right(ready(Ok(req.error_response(error)))),
    }));
    async move {
        let ended = match begun {
            Ok(work) => {
                let work = work.map_ok(|response| finish(door.leave(response, &context), Rc::clone(&flow)));
                AssertUnwindSafe(context.id.scope(work)).catch_unwind().await
            }
            Err(panic) => Err(panic),
        };
        ended.unwrap_or_else(|_| {
            // The request is gone with whoever held it, so that this answer passes none of the layers.
            flow.close();
            let answer = door.failure(Code::Internal, &context).map_body(|_, body| Answer::new(body, flow));
            Err(InternalError::from_response("a panic", answer.map_into_boxed_body()).into())
        })
    }
}

/// What its connection and a request know of each other, from here to the end of the answer.
fn follow(req: &mut ServiceRequest) -> Rc<Flow> {
    let flow = Rc::clone(req.conn_data::<Rc<Flow>>().expect("`http` gives every connection one"));
    flow.reach();
    if door::has_body(req) {
        let body = flow.body(req.take_payload());
        req.set_payload(body);
    }
    flow
}

/// Ends an answer as its connection needs it.
fn finish<B: MessageBody>(mut response: ServiceResponse<B>, flow: Rc<Flow>) -> ServiceResponse<Answer<B>> {
    let request = response.request();
    // Chunks came with HTTP/1.1: to an older client the end of the connection is the end of the body (RFC 9112 section 6.1).
    let is_endless =
        request.version() < Version::HTTP_11 && matches!(response.response().body().size(), BodySize::Stream);
    // An `upgrade` alone is to actix-http the end of the connection, of which it says nothing.
    let is_last = request.head().connection_type() != ConnectionType::KeepAlive;
    let head = response.response_mut().head_mut();
    head.no_chunking(is_endless);
    if is_last || is_endless || flow.must_close() {
        head.set_connection_type(ConnectionType::Close);
    }
    // Heads are used again, so that an HTTP/1.0 of before would stand for a close.
    head.version = Version::HTTP_11;
    if head.connection_type() == ConnectionType::Close {
        flow.close();
    }
    response.map_body(|_, body| Answer::new(body, flow))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// EL-05.
    #[test]
    fn a_panic_is_a_500_for_one_request_and_the_worker_goes_on() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("it is bound");
        let config = Arc::new(config(&format!("http://{address}")));
        let door = move || Rc::new(Door::new(Arc::clone(&config), Draining::default()));
        let app = |door: Rc<Door>| {
            App::new()
                .wrap_fn(|req, next| {
                    assert_ne!(req.path(), "/worse", "this panic is expected");
                    next.call(req)
                })
                .wrap_fn(move |req, next| pass(&door, req, next))
                .route("/good", web::get().to(async || "good"))
                .route("/bad", web::get().to(async || -> &str { panic!("this panic is expected") }))
        };
        actix_web::rt::System::new().block_on(async {
            let server = Server::build().workers(1).disable_signals().listen("", socket, move || {
                let door = door();
                http(app(Rc::clone(&door)).into_factory(), door, |stream: &tokio::net::TcpStream| {
                    stream.peer_addr().ok()
                })
            });
            let server = server.expect("it listens").run();
            let handle = server.handle();
            let client = actix_web::rt::task::spawn_blocking(move || {
                let ask = |mut stream: &TcpStream, path: &str, end: &str| {
                    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nX-CSRF: 1\r\n\r\n");
                    stream.write_all(head.as_bytes()).expect("it listens");
                    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
                    while !answer.ends_with(end) {
                        let count = stream.read(&mut buffer).expect("it answers");
                        assert_ne!(count, 0, "it ends: {answer}");
                        answer.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
                    }
                    answer
                };
                let open = || TcpStream::connect(address).expect("it listens");
                let neighbour = open();
                assert!(ask(&neighbour, "/good", "good").starts_with("HTTP/1.1 200 "));
                // While it is worked on, and before there is a future of it.
                for bad in ["/bad", "/worse"] {
                    let unlucky = open();
                    assert!(ask(&unlucky, "/good", "good").starts_with("HTTP/1.1 200 "));
                    let answer = ask(&unlucky, bad, "}").to_ascii_lowercase();
                    for part in [
                        "http/1.1 500 ",
                        "\r\ncontent-type: application/problem+json\r\n",
                        "\r\nx-content-type-options: nosniff\r\n",
                        "\r\ncache-control: no-store\r\n",
                        "\r\nconnection: close\r\n",
                        "\"code\":\"internal\"",
                    ] {
                        assert_eq!(answer.matches(part).count(), 1, "{bad}, {part}: {answer}");
                    }
                    let id = answer.split("x-request-id: ").nth(1).and_then(|rest| rest.get(..32)).expect("an id");
                    assert!(answer.contains(&format!("\"request_id\":\"{id}\"")), "{bad}: {answer}");
                    assert_eq!((&unlucky).read(&mut [0]).expect("it is closed in peace"), 0, "{bad}");
                    assert!(ask(&neighbour, "/good", "good").starts_with("HTTP/1.1 200 "), "{bad}");
                    assert!(ask(&open(), "/good", "good").starts_with("HTTP/1.1 200 "), "{bad}");
                }
            });
            let (_, client) = tokio::join!(server, async {
                let client = client.await;
                handle.stop(false).await;
                client
            });
            client.expect("no panic");
        });
    }

    fn config(public_url: &str) -> Config {
        let file = std::env::temp_dir().join(format!("gateway-{}-{}.toml", std::process::id(), line!()));
        let key = crate::seal::Key::generate();
        let settings = format!(
            "server.public_url = {public_url:?}\nsession.keys = [{:?}]\n[datahubs.a]\nurl = \"http://127.0.0.1:9\"\n\
             client_id = \"a\"\nclient_secret = \"no secret at all\"\n",
            *key
        );
        fs::write(&file, settings).expect("a folder for files");
        let config = Config::load(std::slice::from_ref(&file)).expect("a good configuration");
        fs::remove_file(&file).expect("it was there");
        config
    }
}
