//! What is counted, for `/metrics`: process-wide, since operators ask a process and not a worker.
//!
//! Each room says what happened by one function here; no label ever holds what a request chose. What happens with every
//! request is counted by its [`worker`].

mod process;
pub mod worker;

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use self::process::Process;
use self::worker::Sums;

/// A text was sealed under the key of this id.
pub fn sealed(key: String) {
    METRICS.1.seals.get_or_create(&KeyLabel { key }).inc();
}

/// A cookie of ours did not unseal.
pub fn unseal_failed() {
    METRICS.1.unseal_failures.inc();
}

/// The ring holds the keys of these ids; the first seals.
pub fn key_ring(keys: impl IntoIterator<Item = String>) {
    let roles = std::iter::once("seal").chain(std::iter::repeat("unseal"));
    let ring: Vec<_> = keys.into_iter().zip(roles).map(|(key, role)| KeyRole { key, role }).collect();
    for label in &ring {
        drop(METRICS.1.seals.get_or_create(&KeyLabel { key: label.key.clone() }));
        METRICS.1.key_info.get_or_create(label).set(1);
    }
    // What is gone goes last: whoever asks meanwhile never finds a key missing.
    let mut shown = RING.lock().unwrap_or_else(PoisonError::into_inner);
    for gone in std::mem::replace(&mut *shown, ring.clone()).iter().filter(|label| !ring.contains(label)) {
        METRICS.1.key_info.remove(gone);
    }
}

/// Keys and cut-offs were read anew.
pub fn reloaded(is_good: bool) {
    METRICS.1.reloads.get_or_create(&ResultLabel { result: if is_good { "ok" } else { "failed" } }).inc();
}

/// A refresh ended, or a call met one, like this: `refreshed` and `failed` count what was asked of DataHUBs, `joined`,
/// `remembered` and `lost` calls.
pub fn refresh(result: &'static str) {
    METRICS.1.refreshes.get_or_create(&ResultLabel { result }).inc();
}

/// A browser was told to send a call again (`again`), or a call that it sent for the `number`th time went up (`passed`) or
/// ended (`lost`).
pub fn replay(result: &'static str, number: u8) {
    METRICS.1.replays.get_or_create(&ReplayLabel { result, number: number.into() }).inc();
}

/// A login ended like this: `ok`, the word that the app was told, or `late` for a callback after another login that ended well.
pub fn login(result: &'static str) {
    METRICS.1.logins.get_or_create(&ResultLabel { result }).inc();
}

/// A revocation ended: `ok`, or `failed` after all tries.
pub fn revocation(result: &'static str) {
    METRICS.1.revocations.get_or_create(&ResultLabel { result }).inc();
}

/// A call without a login `passed`, or was `client_limited` or `datahub_limited`.
pub fn anonymous_call(datahub: &str, result: &'static str) {
    METRICS.1.anonymous_calls.get_or_create(&AnonymousLabel { datahub: datahub.to_owned(), result }).inc();
}

/// A DataHUB refused our own client: its id or its secret is wrong there.
pub fn client_refused(datahub: &str) {
    METRICS.1.clients_refused.get_or_create(&DataHubLabel { datahub: datahub.to_string() }).inc();
}

/// A DataHUB sent something that nobody had asked for.
pub fn upstream_desync(datahub: &str) {
    METRICS.1.upstream_desyncs.get_or_create(&DataHubLabel { datahub: datahub.to_owned() }).inc();
}

/// A peer that is no trusted proxy sent forwarding headers.
pub fn untrusted_forwarded_for() {
    METRICS.1.untrusted_forwarded_for.inc();
}

/// Whether a DataHUB of the configuration is up, and whether the last call of each kind to it was good.
pub fn datahub(datahub: &str, is_up: bool, kinds: impl IntoIterator<Item = (&'static str, bool)>) {
    let label = DataHubLabel { datahub: datahub.to_owned() };
    METRICS.1.datahub_up.get_or_create(&label).set(is_up.into());
    // From the beginning, so that whoever watches them sees the first time.
    drop(METRICS.1.upstream_desyncs.get_or_create(&label));
    drop(METRICS.1.clients_refused.get_or_create(&label));
    for (kind, is_good) in kinds {
        let label = CallLabel { datahub: datahub.to_owned(), kind };
        METRICS.1.datahub_calls.get_or_create(&label).set(is_good.into());
    }
}

/// The gateway met a defect of its own.
pub fn panicked() {
    METRICS.1.panics.inc();
}

/// A connection was closed to make room (an `unfinished_head`, an `unfinished_body`, an `idle` one), or had none: the new one, `full`.
pub fn connection_refused(reason: &'static str) {
    METRICS.1.connections_refused.get_or_create(&ReasonLabel { reason }).inc();
}

/// So many lines of the log were dropped.
pub fn log_dropped(lines: u64) {
    METRICS.1.log_dropped.inc_by(lines);
}

/// Everything, and its media type: in `OpenMetrics` 1.0 for whoever `accept`s that by name, as Prometheus does, else in the
/// older text format 0.0.4, which everything reads.
pub fn exposition(accept: &str) -> (&'static str, String) {
    let mut text = String::new();
    encode(&mut text, &METRICS.0).expect("a String takes everything");
    if accepts_openmetrics(accept) { (OPENMETRICS, text) } else { (TEXT, plain(&text)) }
}

/// Whether an Accept field names `OpenMetrics`, in a version that we speak, and wants the older text no more than that.
fn accepts_openmetrics(accept: &str) -> bool {
    let openmetrics = weight(accept, "application/openmetrics-text", "1.0.0");
    openmetrics > 0.0 && openmetrics >= weight(accept, "text/plain", "0.0.4")
}

/// How much an Accept field wants what it names so (RFC 9110 section 12.4.2), 0 if it does not name it.
fn weight(accept: &str, media_type: &str, spoken: &str) -> f32 {
    let weights = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let mut weight = parts.next().filter(|range| range.eq_ignore_ascii_case(media_type)).map(|_| 1.0)?;
        for parameter in parts {
            match parameter.split_once('=') {
                Some(("version", version)) if version != spoken => return None,
                Some(("q" | "Q", text)) => weight = text.parse().ok().filter(|weight| (0.0..=1.0).contains(weight))?,
                _ => {}
            }
        }
        Some(weight)
    });
    weights.fold(0.0, f32::max)
}

/// `OpenMetrics` as the older text: there a family of counters is named as its samples are, an info is a gauge, and units and
/// an end are unknown.
fn plain(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match [words.next(), words.next(), words.next(), words.next()].map(Option::unwrap_or_default) {
            ["#", "HELP", _, words] => help = words,
            ["#", "TYPE", name, kind] => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    _ => ("", kind),
                };
                for words in [["# HELP ", name, suffix, " ", help, "\n"], ["# TYPE ", name, suffix, " ", kind, "\n"]] {
                    text.extend(words);
                }
            }
            ["#", ..] => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Default)]
struct Metrics {
    seals: Family<KeyLabel, Counter>,
    unseal_failures: Counter,
    key_info: Family<KeyRole, Gauge>,
    reloads: Family<ResultLabel, Counter>,
    refreshes: Family<ResultLabel, Counter>,
    replays: Family<ReplayLabel, Counter>,
    logins: Family<ResultLabel, Counter>,
    revocations: Family<ResultLabel, Counter>,
    anonymous_calls: Family<AnonymousLabel, Counter>,
    clients_refused: Family<DataHubLabel, Counter>,
    upstream_desyncs: Family<DataHubLabel, Counter>,
    untrusted_forwarded_for: Counter,
    datahub_up: Family<DataHubLabel, Gauge>,
    datahub_calls: Family<CallLabel, Gauge>,
    panics: Counter,
    connections_refused: Family<ReasonLabel, Counter>,
    log_dropped: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DataHubLabel {
    datahub: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnonymousLabel {
    datahub: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    datahub: String,
    kind: &'static str,
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplayLabel {
    result: &'static str,
    number: u32,
}

/// What was last said of the ring.
static RING: Mutex<Vec<KeyRole>> = Mutex::new(Vec::new());

/// The version of this gateway.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from, with `-dirty` if files had changed since; `unknown` where nobody said (`build.rs`).
pub const REVISION: &str = match option_env!("GATEWAY_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

static METRICS: LazyLock<(Registry, Metrics)> = LazyLock::new(|| {
    let mut all = Registry::default();
    all.register_collector(Box::new(Process { started_at: SystemTime::now() }));
    let registry = all.sub_registry_with_prefix("gateway");
    registry.register_collector(Box::new(Sums));
    registry.register("build", "Which gateway this is", Info::new([("version", VERSION), ("revision", REVISION)]));
    let metrics = Metrics::default();
    let Metrics {
        seals,
        unseal_failures,
        key_info,
        reloads,
        refreshes,
        replays,
        logins,
        revocations,
        anonymous_calls,
        clients_refused,
        upstream_desyncs,
        untrusted_forwarded_for,
        datahub_up,
        datahub_calls,
        panics,
        connections_refused,
        log_dropped,
    } = metrics.clone();
    // From the beginning, so that whoever watches them sees the first time.
    for (family, results) in [
        (&reloads, &["ok", "failed"][..]),
        (&refreshes, &["refreshed", "failed", "joined", "remembered", "lost", "unavailable"]),
        (&logins, &["ok", "denied", "expired", "unavailable", "cookies_blocked", "busy", "failed", "late"]),
        (&revocations, &["ok", "failed"]),
    ] {
        for result in results {
            drop(family.get_or_create(&ResultLabel { result }));
        }
    }
    for result in ["again", "passed"] {
        drop(replays.get_or_create(&ReplayLabel { result, number: 1 }));
    }
    registry.register("seals", "Cookies sealed, by key", seals);
    registry.register("unseal_failures", "Cookies of ours that did not unseal", unseal_failures);
    registry.register("key_info", "The keys on the ring; the one of role seal seals", key_info);
    registry.register("reloads", "Keys and cut-offs read anew, by result", reloads);
    registry.register("refresh", "Refreshes, and calls that met one, by result", refreshes);
    registry.register("replay", "Calls that browsers were told to send again, by result and how often", replays);
    registry.register("logins", "Logins that ended, by result", logins);
    registry.register("revocations", "Tokens that nobody holds any more, by what became of revoking them", revocations);
    registry.register("anonymous_calls", "Calls without a login, by whether they were let through", anonymous_calls);
    registry.register("client_refused", "Refreshes by which a DataHUB refused the gateway's client", clients_refused);
    registry.register("upstream_desync", "Times a DataHUB sent what nobody had asked for", upstream_desyncs);
    let help = "Requests whose forwarding headers were not believed";
    registry.register("untrusted_forwarded_for", help, untrusted_forwarded_for);
    registry.register("datahub_up", "Whether the last call of each kind to a DataHUB was good", datahub_up);
    registry.register("datahub_last_outcome", "Whether the last call of this kind was good", datahub_calls);
    registry.register("panics", "Defects of the gateway that it met", panics);
    for reason in ["unfinished_head", "unfinished_body", "idle", "full"] {
        drop(connections_refused.get_or_create(&ReasonLabel { reason }));
    }
    registry.register(
        "connections_refused",
        "Connections closed to make room for others, by reason",
        connections_refused,
    );
    registry.register("log_dropped", "Lines of the log that nobody read in time", log_dropped);
    (all, metrics)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_whoever_names_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
            text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        for (accept, is_openmetrics) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("text/plain, Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", true),
            ("text/plain;q=0.5, application/openmetrics-text;q=0.5", true),
            ("text/plain;q=1,application/openmetrics-text;q=0.1", false),
            ("application/openmetrics-text;q=0.9, text/plain", false),
            ("text/plain;version=0.0.5, application/openmetrics-text;q=0.1", true),
            ("text/html, application/openmetrics-text;q=0.1", true),
            ("application/openmetrics-text;q=NaN", false),
            ("", false),
            ("*/*", false),
            ("application/*", false),
            ("text/plain;version=0.0.4", false),
            ("application/openmetrics-text;version=0.0.1", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=canary", false),
            ("application/openmetrics-textile", false),
        ] {
            let (media_type, text) = exposition(accept);
            let found = (media_type.starts_with("application/"), text.ends_with("# EOF\n"), text.contains("# UNIT "));
            assert_eq!(found, (is_openmetrics, is_openmetrics, is_openmetrics), "{accept}");
        }
    }

    #[test]
    fn the_older_text_names_families_as_their_samples_are() {
        let given = "# HELP a A counter.\n# TYPE a counter\n# UNIT a seconds\na_total{b=\"# HELP c\"} 1\n# HELP d Which.\n\
            # TYPE d info\nd_info{e=\"f\"} 1\n# HELP g A gauge.\n# TYPE g gauge\ng 2\n# EOF\n";
        let expected = "# HELP a_total A counter.\n# TYPE a_total counter\na_total{b=\"# HELP c\"} 1\n# HELP d_info Which.\n\
            # TYPE d_info gauge\nd_info{e=\"f\"} 1\n# HELP g A gauge.\n# TYPE g gauge\ng 2\n";
        assert_eq!(plain(given), expected);
    }
}
