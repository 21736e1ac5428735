//! For operators: whether the process lives, whether it is ready, and what it has counted.
//!
//! On a listener of its own, so that none of it can be reached from outside by mistake. Systemd hears the same by itself.

pub mod ask;
pub mod systemd;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::http::header::{ACCEPT, CACHE_CONTROL, VARY};
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Responder};

use tokio_util::sync::CancellationToken;

use crate::admin::workers::Workers;
use crate::metrics;

/// How the process does. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub struct ProcessHealth {
    /// Whether it is on its way out.
    pub draining: Draining,
    /// The threads that serve.
    pub workers: Workers,
}

/// An answer to whoever asks how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether all is as it should be.
    pub is_good: bool,
    /// The same in words, a line.
    pub text: String,
}

impl ProcessHealth {
    /// Whether every worker answers, within two seconds: the process is of use to nobody if none does.
    pub async fn alive(&self) -> Verdict {
        let (answered, asked) = self.workers.ask().await;
        // At the end workers go one by one.
        let is_complete = asked >= self.workers.expected() || self.draining.has_begun();
        let is_good = answered == asked && is_complete;
        let text = if is_good {
            "alive\n".to_owned()
        } else {
            format!("{answered} of {} workers answered\n", asked.max(self.workers.expected()))
        };
        Verdict { is_good, text }
    }

    /// Whether a balancer should send something new.
    pub fn ready(&self) -> Verdict {
        let is_good = !self.draining.has_begun();
        Verdict { is_good, text: if is_good { "ready\n" } else { "draining\n" }.to_owned() }
    }
}

/// Whether the process is on its way out, and how many connections are still open.
///
/// A server that closes a kept connection may meet a request that is on its way there, and a proxy does not send a POST
/// twice. So each connection is told with its next answer that it is the last; only those that stay silent are closed.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<DrainState>);

#[derive(Debug, Default)]
struct DrainState {
    has_begun: Arc<AtomicBool>,
    connections: AtomicUsize,
    close_idle: CancellationToken,
}

impl Draining {
    /// From now on a balancer should send nothing new, and every answer closes its connection.
    pub fn begin(&self) {
        self.0.has_begun.store(true, Ordering::Relaxed);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Relaxed)
    }

    /// The same, for whoever asks again and again.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.has_begun)
    }

    /// Counts a connection until what is returned is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.clone())
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// From now on a connection is closed once nothing is under way on it.
    pub fn close_idle(&self) {
        self.0.close_idle.cancel();
    }

    /// Cancelled by [`close_idle`](Self::close_idle). One for each worker, so that they do not contend for it.
    pub fn shutdown(&self) -> CancellationToken {
        self.0.close_idle.child_token()
    }

    /// Waits until no connection is open, but a second at most.
    pub async fn wait_for_connections(&self) {
        for _ in 0..100 {
            if self.connections() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct OpenConnection(Draining);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `/healthz`, `/readyz` and `/metrics`, exactly.
pub fn routes(config: &mut ServiceConfig) {
    config
        .route(HEALTHZ, web::get().to(healthz))
        .route(READYZ, web::get().to(readyz))
        .route("/metrics", web::get().to(metrics));
}

async fn healthz(health: Data<ProcessHealth>) -> impl Responder {
    respond(health.alive().await)
}

async fn readyz(health: Data<ProcessHealth>) -> impl Responder {
    respond(health.ready())
}

fn respond(Verdict { is_good, text }: Verdict) -> HttpResponse {
    let mut response = if is_good { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    response.insert_header((CACHE_CONTROL, "no-store")).body(text)
}

async fn metrics(req: HttpRequest) -> impl Responder {
    let accept: Vec<_> = req.headers().get_all(ACCEPT).filter_map(|value| value.to_str().ok()).collect();
    let (media_type, text) = metrics::exposition(&accept.join(","));
    let mut response = HttpResponse::Ok();
    response
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((VARY, "Accept"))
        .content_type(media_type)
        .body(text)
}

/// Where to ask whether the process lives.
pub const HEALTHZ: &str = "/healthz";
/// Where to ask whether it takes something new.
pub const READYZ: &str = "/readyz";
