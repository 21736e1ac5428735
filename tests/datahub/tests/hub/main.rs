//! The test DataHUB over real sockets: what the gateway's tests rely on.

mod api;
mod books;
mod client;
mod login;
mod misbehaviour;
mod wire;
