//! Drives the real gateway over HTTP, against the test DataHUB: one file for each room.
//!
//! When a gateway ends, everything it has written at `RUST_LOG=trace` is searched for every secret of the test. When the last
//! one of a test ends, every token that lives must be in a cookie, or be expected as an orphan.

#![expect(unreachable_pub, reason = "nobody depends on tests")]

mod access;
mod access_log;
mod anonymous;
mod arcmanager;
mod bodies;
mod books;
mod bridge;
mod browser;
mod callback;
mod check;
mod client;
mod clock;
mod config;
mod connection;
mod crossing;
mod crowd;
mod datahubs;
mod docs;
mod drain;
mod far_end;
mod faults;
mod files;
mod framing;
mod gateway;
mod hardening;
mod health;
mod hostile;
mod keys;
mod leaving;
mod links;
mod login;
mod logout;
mod metrics;
mod nginx;
mod odd_bytes;
mod origin;
mod panics;
mod paths;
mod personal_token;
mod pieces;
mod policy;
mod process;
mod provider;
mod proxy;
mod reach;
mod refresh;
mod refusals;
mod return_to;
mod revocation;
mod session;
mod shares;
mod soak;
mod sockets;
mod stateful;
mod storm;
mod streams;
mod tls;
mod token_endpoint;
mod trouble;
mod uploads;
mod upstream;
mod via;
mod watching;
mod wire;
