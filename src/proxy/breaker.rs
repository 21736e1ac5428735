//! A circuit breaker for one DataHUB, so that a dead one costs nobody any time.
//!
//! It goes by one thing: whether the host can be reached, which means a connection, TLS included. What becomes of a call on
//! its connection is the business of that call: an endpoint that is silent, or closes its connections, must not keep anybody
//! from the others. While the breaker is open the gateway itself tries to connect, a second after each try, and no caller has
//! to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use crate::datahub::DataHubId;
use crate::datahub::health::{CallKind, Health, Outcome};
use crate::datahub::transport::{Address, ConnectError};
use crate::error::{ApiError, Code};

/// Whether a DataHUB can be reached, as far as the calls of all workers have found.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    datahub: DataHubId,
    health: Arc<Health>,
    /// How many tries to connect failed in a row. It is open from [`FAILURE_THRESHOLD`] on, until the gateway has reached it.
    failures: AtomicU32,
}

impl CircuitBreaker {
    /// A breaker that lets calls to `datahub` pass, and reports to its `health`.
    pub(super) fn new(datahub: DataHubId, health: Arc<Health>) -> Self {
        Self { datahub, health, failures: AtomicU32::new(0) }
    }

    /// What is known of the DataHUB besides.
    pub(super) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Whether a call may go up.
    ///
    /// # Errors
    /// [`CircuitOpen`]; nothing is sent then.
    pub(super) fn check(&self) -> Result<(), CircuitOpen> {
        if self.failures.load(Ordering::Relaxed) < FAILURE_THRESHOLD { Ok(()) } else { Err(CircuitOpen) }
    }

    /// The DataHUB has been reached: by a connection, or by an answer on one that was kept.
    pub(super) fn record_success(&self) {
        let failures = self.failures.load(Ordering::Relaxed);
        // Once the breaker is open, only `Attempts` closes it and says so. What comes late is an old answer.
        if failures >= FAILURE_THRESHOLD {
            return;
        }
        self.health.report(CallKind::Api, Outcome::Good);
        // Nearly always the count is 0 already. Then it is not written, since all workers share it.
        if failures > 0 {
            let _ = self.failures.compare_exchange(failures, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// A call got no connection to `address`. Our own want of something is not counted; where this is one failure too many,
    /// the gateway begins to try by itself, each time for at most `limit`.
    pub(super) fn record_failure(self: &Arc<Self>, error: &ConnectError, address: &Address, limit: Duration) {
        if matches!(error, ConnectError::OutOfResources(_)) {
            return;
        }
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURE_THRESHOLD {
            self.health.report(CallKind::Api, Outcome::Unreachable);
            log::warn!(datahub = self.datahub.as_str(); "a DataHUB cannot be reached; the gateway goes on trying");
            let attempts = Attempts(Arc::clone(self));
            actix_web::rt::spawn(attempts.close_when_reached(address.clone(), limit));
        }
    }
}

/// The gateway's own attempts to connect, on the thread of one worker.
struct Attempts(Arc<CircuitBreaker>);

impl Attempts {
    async fn close_when_reached(self, address: Address, limit: Duration) {
        loop {
            sleep(RETRY_INTERVAL).await;
            if address.connect(limit).await.is_ok() {
                break;
            }
        }
        let CircuitBreaker { datahub, health, failures } = &*self.0;
        failures.store(0, Ordering::Relaxed);
        health.report(CallKind::Api, Outcome::Good);
        log::info!(datahub = datahub.as_str(); "a DataHUB can be reached again");
    }
}

/// If the worker ends before, the next call that fails begins anew.
impl Drop for Attempts {
    fn drop(&mut self) {
        self.0.failures.fetch_min(FAILURE_THRESHOLD - 1, Ordering::Relaxed);
    }
}

/// The DataHUB could not be reached for a while; the call does not go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DataHUB could not be reached by the last calls")]
pub struct CircuitOpen;

impl From<CircuitOpen> for ApiError {
    fn from(error: CircuitOpen) -> Self {
        Self::because(Code::DatahubUnreachable, error).retry_after(RETRY_INTERVAL)
    }
}

/// After how many failures in a row calls are refused.
const FAILURE_THRESHOLD: u32 = 5;
/// How long the gateway waits after a try before the next one.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::TcpListener;

    use super::*;
    use crate::datahub::transport::tls_config;

    fn failed() -> ConnectError {
        ConnectError::Failed(io::ErrorKind::ConnectionRefused.into())
    }

    /// A breaker, and where its DataHUB would be: `listener` has no TLS, so that it takes connections and cannot be reached.
    fn breaker(id: &str, listener: &TcpListener) -> (Arc<CircuitBreaker>, Address) {
        let url = format!("https://{}", listener.local_addr().expect("it is bound"));
        listener.set_nonblocking(true).expect("sockets can be");
        let tls = tls_config(None).expect("roots");
        let address = Address::new(url::Url::parse(&url).expect("a URL"), None, tls).expect("an address");
        let datahub: DataHubId = id.parse().expect("an id");
        (Arc::new(CircuitBreaker::new(datahub.clone(), Arc::new(Health::new(datahub)))), address)
    }

    const LIMIT: Duration = Duration::from_millis(100);

    #[test]
    fn it_opens_after_a_few_failures_in_a_row_and_the_gateway_alone_tries_then() {
        actix_web::rt::System::new().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let (breaker, address) = breaker("breaker", &listener);
            let fail = |error: &ConnectError| breaker.record_failure(error, &address, LIMIT);
            for _ in 1..FAILURE_THRESHOLD {
                fail(&failed());
            }
            breaker.record_success();
            for _ in 0..FAILURE_THRESHOLD {
                assert_eq!(breaker.check(), Ok(()), "a success begins the count again");
                fail(&ConnectError::OutOfResources(io::ErrorKind::OutOfMemory.into()));
                fail(&failed());
            }
            sleep(RETRY_INTERVAL * 5 / 2).await;
            breaker.record_success();
            assert_eq!(breaker.check(), Err(CircuitOpen), "a late answer does not close it");
            let (_, metrics) = crate::metrics::exposition("");
            assert!(metrics.contains("gateway_datahub_up{datahub=\"breaker\"} 0"), "nor does it look so: {metrics}");
            let tries = listener.incoming().take_while(Result::is_ok).count();
            assert!((1..=2).contains(&tries), "{tries} tries");
        });
    }

    #[test]
    fn where_the_worker_that_tries_ends_the_next_call_that_fails_begins_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (breaker, address) = breaker("a", &listener);
        let fail = || breaker.record_failure(&failed(), &address, LIMIT);
        actix_web::rt::System::new().block_on(async { (0..FAILURE_THRESHOLD).for_each(|_| fail()) });
        assert_eq!(breaker.check(), Ok(()), "nobody tries any more, and it is open for ever");
        actix_web::rt::System::new().block_on(async {
            fail();
            assert_eq!(breaker.check(), Err(CircuitOpen));
            sleep(RETRY_INTERVAL * 3 / 2).await;
        });
        assert!(listener.accept().is_ok(), "it is tried again");
    }
}
