//! What to measure: one JSON document a line, an object whose only key names the kind.

use std::path::PathBuf;

use serde::Deserialize;

/// The first line: the DataHUB that stands behind every target.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// Loopback port for plain HTTP.
    pub plain: u16,
    /// And one for TLS 1.3.
    pub tls: Option<Tls>,
    /// What it answers, by the beginning of the path; the first that fits.
    pub answers: Vec<Answer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub port: u16,
    /// PEM, the server's own first.
    pub certificates: PathBuf,
    pub key: PathBuf,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub path: String,
    /// A whole response, head and body, as it goes over the wire.
    pub response: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Calls(Calls),
    Repeat(Repeat),
    Transfer(Transfer),
    Hold(Hold),
}

/// A proxy under load: where it listens, what it is sent, whose CPU time counts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub name: String,
    /// On the loopback address.
    pub port: u16,
    /// A whole request of each person, as it goes over the wire, without a body; connections have one each, in turn.
    pub requests: Vec<String>,
    pub pids: Vec<u32>,
}

/// Slices of load in turn, a slice of the first target (the reference) before every other's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calls {
    pub targets: Vec<Target>,
    /// Kept connections to each target.
    pub connections: usize,
    /// Length of a slice in seconds.
    pub slice: f64,
    /// How often each target has its turn.
    pub cycles: usize,
    /// Seconds for each target before anything counts.
    pub warm_up: f64,
    /// Calls a second, sent when they are due whatever became of earlier ones (an open loop). Without it every connection
    /// sends its next call when the last is answered.
    pub rate: Option<f64>,
}

/// An exact number of calls, for whoever counts instructions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    pub target: Target,
    pub connections: usize,
    pub calls: u64,
}

/// One large body on one connection: up if `upload` says how many bytes, else down as the request's path says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    pub target: Target,
    #[serde(default)]
    pub upload: u64,
}

/// Connections that stay open.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    pub target: Target,
    pub connections: usize,
}
