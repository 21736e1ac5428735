//! Sockets and workers: each worker serves the connections of [`socket`]s by [`dispatch`].

mod dispatch;
pub mod socket;
mod web;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use actix_server::Server;
use actix_service::{ServiceFactory, fn_factory, fn_service};
use actix_web::web::{Data, ServiceConfig};
use actix_web::{App, HttpServer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use crate::admin::{self, ProcessHealth};
use crate::auth::pending::PendingLogins;
use crate::auth::{self, Auth};
use crate::bridge::{self, Bridge, SharedBridge};
use crate::config::Config;
use crate::datahub::tasks::{TaskRunner, Tasks};
use crate::docs;
use crate::guard::Guard;
use crate::http::buffer::BufferPool;
use crate::http::date::DateClock;
use crate::http::server::AcceptedStream;
use crate::metrics::worker::WorkerMetrics;
use crate::proxy::{Proxy, SharedProxy};
use crate::rate::RateLimiter;
use crate::server::dispatch::{Connections, Worker};
use crate::server::socket::Socket;
use crate::server::web::Web;
use crate::session::refresh::Refresher;

/// The gateway on `sockets`, with `more` routes if a test adds any, and the tasks that it leaves to whoever runs it.
///
/// # Errors
/// A socket that cannot be listened on.
pub fn gateway(
    config: &Arc<Config>,
    sockets: Vec<Socket>,
    health: &ProcessHealth,
    more: fn(&mut ServiceConfig),
) -> io::Result<(Server, TaskRunner)> {
    let (tasks, runner) = Tasks::new();
    let new_worker = worker_factory(config, &tasks, health, more);
    let (workers, shutdown) = (config.server.workers, config.server.shutdown_timeout);
    health.workers.expect(workers);
    let server = Server::build().workers(workers).shutdown_timeout(shutdown.as_secs().max(1)).disable_signals();
    // The bound is ours, over all workers. Here a worker would take no more, and say nothing.
    let server = server.max_concurrent_connections(config.connections.saturating_mul(2));
    let server = sockets.into_iter().try_fold(server, |server, socket| {
        let (new_worker, address) = (new_worker.clone(), socket.address());
        match socket {
            Socket::Tcp(socket) => server.listen(address, socket, move || {
                service(new_worker.clone(), |stream: TcpStream| {
                    // An answer's last packet must not wait for the one before to be acknowledged.
                    let _ = stream.set_nodelay(true);
                    let peer = stream.peer_addr().ok();
                    (Either::Left(stream), peer)
                })
            }),
            Socket::Unix(socket) => server.listen_uds(address, socket, move || {
                service(new_worker.clone(), |stream: UnixStream| (Either::Right(stream), None))
            }),
        }
    })?;
    Ok((server.run(), runner))
}

/// What makes a worker on each thread: what they share is made now, what one has for itself then.
fn worker_factory(
    config: &Arc<Config>,
    tasks: &Tasks,
    health: &ProcessHealth,
    more: fn(&mut ServiceConfig),
) -> impl AsyncFn() -> Worker + Clone + Send + 'static {
    let (server, origins) = (&config.server, &config.app.origins);
    let sessions = Arc::new(config.sessions());
    let refresher = Refresher::new(&config.datahubs, config.session.clone(), tasks.clone());
    let auth = Data::new(Auth {
        datahubs: config.datahubs.clone(),
        sessions: Arc::clone(&sessions),
        refresher: refresher.clone(),
        tasks: tasks.clone(),
        pending: PendingLogins::new(config.keyring.clone(), &origins.own, config.login_timeout),
        logins: RateLimiter::new(config.login_rate),
        callbacks: RateLimiter::new(config.callback_rate),
        app_url: config.app.url.clone(),
        origins: origins.clone(),
    });
    let bridge = config.bridge.clone().map(|settings| {
        Arc::new(SharedBridge::new(&server.public_url, settings, &config.proxy, Arc::clone(&sessions)))
    });
    let proxy = Arc::new(SharedProxy::new(
        &server.public_url,
        &server.base_path,
        config.proxy.clone(),
        config.datahubs.clone(),
        sessions,
        refresher,
    ));
    let (base_path, files) = (server.base_path.clone(), config.app.files.clone());
    let guard = Guard::new(origins.clone(), base_path, files, server.trusted_proxies.clone());
    let description = config.description();
    let document = docs::File::new(move || {
        let document = docs::document::document(&description, auth::schemas());
        document.to_json().expect("it has nothing that JSON lacks").into()
    });
    let (config, guard, health) = (Arc::clone(config), Arc::new(guard), health.clone());
    let connections = Arc::new(Connections::new(max_connections(config.connections)));
    async move || {
        health.workers.join();
        let pool = BufferPool::default();
        let bridge = bridge.clone().map(|shared| Bridge::new(shared, pool.clone(), config.server.workers));
        let names = config.datahubs.iter().map(|datahub| datahub.id.as_str());
        let metrics = WorkerMetrics::new(names.chain(bridge.iter().map(|_| bridge::NAME)));
        Worker {
            settings: Rc::new(config.client),
            connections: Arc::clone(&connections),
            guard: Arc::clone(&guard),
            auth: auth.clone(),
            proxy: Proxy::new(Arc::clone(&proxy), Arc::clone(&guard), pool.clone(), config.server.workers),
            bridge,
            web: Web::new(&config, &auth, &document, more).await,
            shutdown: health.draining.shutdown(),
            health: health.clone(),
            health_path: config.server.is_health_shown.then(|| config.server.base_path.clone()),
            pool,
            clock: DateClock::default(),
            metrics,
        }
    }
}

/// How many connections there may be: as many as are `wanted`, if the system lets us open as many files. Each connection may
/// need two: one for its client, one to its DataHUB.
fn max_connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    // What a process begins with is mostly less than what it may ask for.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let max = wanted.min((files / 2).max(1));
    if max < wanted {
        log::warn!(files, connections = max; "fewer connections than limits.connections says: raise the limit of open files (LimitNOFILE, ulimit -n)");
    }
    max
}

/// What serves the connections of one listener: a worker on each thread.
fn service<S: 'static>(
    new_worker: impl AsyncFn() -> Worker + Clone + 'static,
    accept: fn(S) -> (AcceptedStream, Option<std::net::SocketAddr>),
) -> impl ServiceFactory<S, Config = (), Response = (), Error = (), InitError = ()> {
    fn_factory(move || {
        let new_worker = new_worker.clone();
        async move {
            let worker = Rc::new(new_worker().await);
            Ok(fn_service(move |stream: S| {
                let worker = Rc::clone(&worker);
                async move {
                    let (stream, peer) = accept(stream);
                    worker.serve(stream, peer).await;
                    Ok(())
                }
            }))
        }
    })
}

/// The server of the operators' routes, on a listener of its own.
///
/// # Errors
/// A socket that cannot be listened on.
pub fn admin_server(socket: Socket, health: &ProcessHealth) -> io::Result<Server> {
    let health = health.clone();
    let server = HttpServer::new(move || App::new().app_data(Data::new(health.clone())).configure(admin::routes));
    let server = server.workers(1).shutdown_timeout(1).disable_signals();
    let server = match socket {
        Socket::Tcp(socket) => server.listen(socket),
        Socket::Unix(socket) => server.listen_uds(socket),
    }?;
    Ok(server.run())
}
