//! Drives the real gateway over HTTP, against the test DataHUB: one file for each room.
//!
//! When a gateway ends, everything it has written at `RUST_LOG=trace` is searched for every secret of the test.

#![expect(unreachable_pub, reason = "nobody depends on tests")]

mod access_log;
mod browser;
mod callback;
mod config;
mod framing;
mod gateway;
mod keys;
mod login;
mod logout;
mod metrics;
mod origin;
mod process;
mod provider;
mod proxy;
mod refresh;
mod return_to;
mod session;
mod storm;
mod streams;
mod tls;
mod upstream;
