//! What is counted of every request, by each worker on its own; whoever asks adds it all up.
//!
//! A request that is counted costs no locked instruction and shares no cache line with another worker: only the worker's own
//! thread writes its numbers. They stay when the thread has ended, since counters never go down.

use std::fmt;
use std::iter;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// One worker's numbers. It stays on its thread.
#[derive(Debug)]
pub struct WorkerMetrics {
    numbers: Arc<Numbers>,
    is_of_one_thread: PhantomData<Rc<()>>,
}

/// Which of a worker's DataHUBs a request is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DataHubIndex(usize);

impl WorkerMetrics {
    /// A worker that serves the DataHUBs of these ids.
    pub fn new<'a>(datahubs: impl IntoIterator<Item = &'a str>) -> Rc<Self> {
        let mut ids: Vec<Box<str>> = datahubs.into_iter().map(Box::from).collect();
        ids.sort_unstable();
        // The first stands for none.
        let datahubs = iter::once(Box::default()).chain(ids).map(DataHubNumbers::new).collect();
        let numbers = Arc::new(Numbers { in_flight: AtomicU64::new(0), datahubs });
        WORKERS.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&numbers));
        Rc::new(Self { numbers, is_of_one_thread: PhantomData })
    }

    /// The place of a DataHUB; of none if there is none of this id.
    pub fn datahub(&self, id: &str) -> DataHubIndex {
        DataHubIndex(self.numbers.datahubs.binary_search_by(|datahub| (*datahub.id).cmp(id)).unwrap_or_default())
    }

    /// The id of a DataHUB, empty for none.
    pub fn datahub_id(&self, datahub: DataHubIndex) -> &str {
        &self.numbers.datahubs[datahub.0].id
    }

    /// A request has come in.
    pub fn record_start(&self) {
        add(&self.numbers.in_flight, 1);
    }

    /// A request has ended like this. `duration` is all of its time, `upstream` that of the DataHUB alone.
    pub fn record_end(
        &self,
        datahub: DataHubIndex,
        method: &str,
        status: u16,
        duration: Duration,
        upstream: Option<Duration>,
    ) {
        add(&self.numbers.in_flight, u64::MAX);
        let datahub = &self.numbers.datahubs[datahub.0];
        let method = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len());
        let status = STATUS_INDEX.get(usize::from(status)).copied().unwrap_or(OTHER_STATUS);
        add(&datahub.requests[method][usize::from(status)], 1);
        datahub.duration.observe(duration);
        if let Some(upstream) = upstream {
            datahub.upstream.observe(upstream);
        }
    }
}

#[derive(Debug)]
struct Numbers {
    in_flight: AtomicU64,
    /// In the order of their ids.
    datahubs: Box<[DataHubNumbers]>,
}

struct DataHubNumbers {
    id: Box<str>,
    /// By method and status; the last of each stands for all others.
    requests: [[AtomicU64; STATUSES.len() + 1]; METHODS.len() + 1],
    duration: Histogram,
    upstream: Histogram,
}

impl DataHubNumbers {
    fn new(id: Box<str>) -> Self {
        let requests = [const { [const { AtomicU64::new(0) }; STATUSES.len() + 1] }; METHODS.len() + 1];
        Self { id, requests, duration: Histogram::default(), upstream: Histogram::default() }
    }

    fn requests(&self) -> impl Iterator<Item = &AtomicU64> {
        self.requests.as_flattened().iter()
    }
}

impl fmt::Debug for DataHubNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataHubNumbers").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How many took how long.
#[derive(Default)]
struct Histogram {
    /// All of them together, in nanoseconds.
    sum: AtomicU64,
    /// How many took at most so long, and longer than what comes before.
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let nanos = duration.as_secs().wrapping_mul(1_000_000_000).wrapping_add(duration.subsec_nanos().into());
        add(&self.sum, nanos);
        add(&self.buckets[BOUNDS.partition_point(|bound| *bound < nanos)], 1);
    }
}

/// For numbers that nobody else writes; `u64::MAX` is one less.
fn add(number: &AtomicU64, more: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// The sums over all workers, for `/metrics`.
#[derive(Debug)]
pub(super) struct Sums;

impl Collector for Sums {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let in_flight: u64 = workers.iter().map(|worker| read(&worker.in_flight)).fold(0, u64::wrapping_add);
        let help = "Requests that are worked on now.";
        encoder.encode_descriptor("inflight", help, None, MetricType::Gauge)?.encode_gauge(&in_flight)?;

        let mut datahubs: Vec<&DataHubNumbers> = workers.iter().flat_map(|worker| &worker.datahubs).collect();
        datahubs.sort_by_key(|datahub| &datahub.id);
        let datahubs: Vec<&[&DataHubNumbers]> = datahubs.chunk_by(|one, other| one.id == other.id).collect();

        let help = "Requests that ended, by DataHUB, method and status.";
        let mut requests = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for datahub in &datahubs {
            let mut sums = vec![0; (METHODS.len() + 1) * (STATUSES.len() + 1)];
            for numbers in *datahub {
                sums.iter_mut().zip(numbers.requests()).for_each(|(sum, number)| *sum += read(number));
            }
            for (at, sum) in sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0) {
                let method = METHODS.get(at / (STATUSES.len() + 1)).copied().unwrap_or("other");
                let status = STATUSES.get(at % (STATUSES.len() + 1)).map_or("other".to_owned(), u16::to_string);
                let labels = [("datahub", &*datahub[0].id), ("method", method), ("status", &status)];
                requests.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&sum, None)?;
            }
        }

        let help = "How long requests took, from the whole head to the last byte out, by DataHUB.";
        histogram(&mut encoder, "request_duration", help, &datahubs, |datahub| &datahub.duration)?;
        let help = "How long a DataHUB took, from the end of the request to the head of its answer.";
        histogram(&mut encoder, "upstream_duration", help, datahubs.get(1..).unwrap_or_default(), |datahub| {
            &datahub.upstream
        })
    }
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    datahubs: &[&[&DataHubNumbers]],
    part: impl Fn(&DataHubNumbers) -> &Histogram,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for datahub in datahubs {
        let (mut sum, mut buckets) = (Duration::ZERO, [0; BOUNDS.len() + 1]);
        for histogram in datahub.iter().map(|numbers| part(numbers)) {
            sum += Duration::from_nanos(read(&histogram.sum));
            buckets.iter_mut().zip(&histogram.buckets).for_each(|(sum, number)| *sum += read(number));
        }
        let bounds = BOUNDS.iter().map(|bound| Duration::from_nanos(*bound).as_secs_f64());
        let buckets: Vec<_> = bounds.chain(iter::once(f64::INFINITY)).zip(buckets).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let labels = [("datahub", &*datahub[0].id)];
        metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)?;
    }
    Ok(())
}

fn read(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

/// Every worker that ever was.
static WORKERS: Mutex<Vec<Arc<Numbers>>> = Mutex::new(Vec::new());

/// Methods with a label of their own: those that we take. The others are chosen by whoever sends them.
const METHODS: [&str; 7] = ["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// Statuses with a label of their own: the registered ones (RFC 9110 section 16.2), and 499, which is only in our log.
const STATUSES: [u16; OTHER_STATUS as usize] = [
    100, 101, 102, 103, 200, 201, 202, 203, 204, 205, 206, 207, 208, 226, 300, 301, 302, 303, 304, 305, 307, 308, 400,
    401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 421, 422, 423, 424, 425,
    426, 428, 429, 431, 451, 499, 500, 501, 502, 503, 504, 505, 506, 507, 508, 510, 511,
];
/// How many they are, and so the place of all others.
const OTHER_STATUS: u8 = 63;
/// Where each status is among them.
const STATUS_INDEX: [u8; 512] = {
    let mut table = [OTHER_STATUS; 512];
    let mut index = 0;
    while index < OTHER_STATUS {
        table[STATUSES[index as usize] as usize] = index;
        index += 1;
    }
    table
};
/// Bounds of the histograms, in nanoseconds: a millisecond to a minute.
const BOUNDS: [u64; 15] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::metrics::exposition;

    #[test]
    fn the_numbers_of_all_workers_are_added_up_also_when_they_have_ended() {
        let work = |took: u64| {
            let worker = WorkerMetrics::new(["sums-b", "sums-a"]);
            worker.record_start();
            worker.record_start();
            let (datahub, took) = (worker.datahub("sums-a"), Duration::from_millis(took));
            assert_eq!(worker.datahub_id(datahub), "sums-a");
            worker.record_end(datahub, "GET", 200, took, Some(took / 2));
            worker.record_end(worker.datahub("sums-b"), "PUT", 499, took, None);
        };
        for took in [3, 40] {
            thread::spawn(move || work(took)).join().expect("it does not panic");
        }
        work(70_000);
        let (_, text) = exposition("");
        for line in [
            "gateway_requests_total{datahub=\"sums-a\",method=\"GET\",status=\"200\"} 3",
            "gateway_requests_total{datahub=\"sums-b\",method=\"PUT\",status=\"499\"} 3",
            "gateway_request_duration_seconds_count{datahub=\"sums-a\"} 3",
            "gateway_request_duration_seconds_sum{datahub=\"sums-a\"} 70.043",
            "gateway_request_duration_seconds_bucket{le=\"0.0025\",datahub=\"sums-a\"} 0",
            "gateway_request_duration_seconds_bucket{le=\"0.005\",datahub=\"sums-a\"} 1",
            "gateway_request_duration_seconds_bucket{le=\"0.05\",datahub=\"sums-a\"} 2",
            "gateway_request_duration_seconds_bucket{le=\"60.0\",datahub=\"sums-a\"} 2",
            "gateway_request_duration_seconds_bucket{le=\"+Inf\",datahub=\"sums-a\"} 3",
            "gateway_upstream_duration_seconds_count{datahub=\"sums-a\"} 3",
            "gateway_upstream_duration_seconds_sum{datahub=\"sums-a\"} 35.0215",
            "gateway_upstream_duration_seconds_count{datahub=\"sums-b\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }

    #[test]
    fn no_label_holds_what_a_request_chose() {
        let worker = WorkerMetrics::new(["labels"]);
        let datahub = worker.datahub("labels");
        for (method, status) in [("CANARY", 200), ("get", 200), ("GET", 299), ("GET", 999), ("GET", 0), ("GET", 200)] {
            worker.record_start();
            worker.record_end(datahub, method, status, Duration::ZERO, None);
        }
        assert_eq!(worker.datahub("canary"), DataHubIndex::default());
        assert_eq!(worker.datahub_id(DataHubIndex::default()), "");
        let (_, text) = exposition("");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("requests_total{datahub=\"labels\"")).collect();
        let expected = [("GET", "200", 1), ("GET", "other", 3), ("other", "200", 2)];
        let expected = expected.map(|(method, status, count)| {
            format!("gateway_requests_total{{datahub=\"labels\",method=\"{method}\",status=\"{status}\"}} {count}")
        });
        assert_eq!(lines, expected, "{text}");
    }

    #[test]
    fn a_request_is_under_way_until_it_has_ended() {
        let worker = WorkerMetrics::new(["under-way"]);
        let count = || worker.numbers.in_flight.load(Ordering::Relaxed);
        worker.record_start();
        worker.record_start();
        assert_eq!(count(), 2);
        worker.record_end(worker.datahub("under-way"), "GET", 200, Duration::ZERO, None);
        assert_eq!(count(), 1);
    }

    #[test]
    fn a_bound_belongs_to_what_is_below_it() {
        let histogram = Histogram::default();
        for nanos in [0, 1_000_000, 1_000_001, 60_000_000_000, 60_000_000_001] {
            histogram.observe(Duration::from_nanos(nanos));
        }
        let counts: Vec<u64> = histogram.buckets.iter().map(read).collect();
        assert_eq!((&counts[..2], &counts[2..14], &counts[14..]), (&[2, 1][..], &[0; 12][..], &[1, 1][..]));
    }
}
