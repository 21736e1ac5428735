//! HTTP/1.1 (RFC 9110, RFC 9112) for both sides: how bytes become requests and answers. Imports nothing of ours.
//!
//! A browser's connection is a [`server::ServerConnection`], one to a DataHUB is a [`client::ClientConnection`]. Both read
//! [`head`]s and [`body`]s by the same strict rules. Neither knows what is asked or answered. A connection through a proxy is
//! a [`tunnel`].

pub mod admission;
pub mod body;
pub mod buffer;
pub mod client;
pub mod date;
pub mod head;
pub mod server;
pub mod timer;
pub mod tunnel;
mod turn;
