//! What is counted, for `/metrics`: process-wide, since operators ask a process and not a worker.
//!
//! Each room says what happened by one function here; no label ever holds what a request chose.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A text was sealed under the key of this id.
pub fn sealed(key: String) {
    METRICS.seals.get_or_create(&KeyLabel { key }).inc();
}

/// A cookie of ours did not unseal.
pub fn unseal_failed() {
    METRICS.unseal_failures.inc();
}

/// The ring holds the keys of these ids; the first seals.
pub fn key_ring(keys: impl IntoIterator<Item = String>) {
    METRICS.key_info.clear();
    for (key, role) in keys.into_iter().zip(std::iter::once("seal").chain(std::iter::repeat("unseal"))) {
        METRICS.key_info.get_or_create(&KeyRole { key, role }).set(1);
    }
}

/// Keys and cut-offs were read anew.
pub fn reloaded(is_good: bool) {
    METRICS.reloads.get_or_create(&ResultLabel { result: if is_good { "ok" } else { "failed" } }).inc();
}

/// Everything, as text for Prometheus.
pub fn text() -> String {
    let mut text = String::new();
    encode(&mut text, &METRICS.registry).expect("a String takes everything");
    text
}

/// The media type of [`text`].
pub const TEXT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Metrics {
    registry: Registry,
    seals: Family<KeyLabel, Counter>,
    unseal_failures: Counter,
    key_info: Family<KeyRole, Gauge>,
    reloads: Family<ResultLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabel {
    key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyRole {
    key: String,
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let mut registry = Registry::with_prefix("gateway");
    let (seals, unseal_failures, key_info, reloads) =
        (Family::default(), Counter::default(), Family::default(), Family::default());
    registry.register("seals", "Cookies sealed, by key", Clone::clone(&seals));
    registry.register("unseal_failures", "Cookies of ours that did not unseal", Clone::clone(&unseal_failures));
    registry.register("key_info", "The keys on the ring; the one of role seal seals", Clone::clone(&key_info));
    registry.register("reloads", "Keys and cut-offs read anew, by result", Clone::clone(&reloads));
    Metrics { registry, seals, unseal_failures, key_info, reloads }
});
