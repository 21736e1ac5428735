//! What a request costs that is counted and has its line in the log, and nothing else: `log N` makes N of them.
//!
//! For callgrind, which counts instructions: those of 2N less those of N, divided by N.

use std::rc::Rc;
use std::time::Duration;

use actix_web::http::Method;
use arcmanager_gateway::access_log::{self, Format};
use arcmanager_gateway::context::{Client, RequestContext};
use arcmanager_gateway::metrics::worker::WorkerMetrics;
use log::LevelFilter;

fn main() {
    let count = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(10_000_u32);
    access_log::start(Format::Json, LevelFilter::Info);
    let metrics = WorkerMetrics::new(["freiburg", "plantmicrobe", "tuebingen"]);
    for _ in 0..count {
        let client = Client { address: None, is_local: false };
        let context = RequestContext::new(Method::GET, client, Rc::clone(&metrics));
        context.set_route("/datahubs/{datahub}/{path}");
        context.set_datahub("tuebingen");
        context.upstream.set(Some(Duration::from_micros(1_234)));
        context.count_out(3_010);
        context.record_answer(200, None);
    }
}
