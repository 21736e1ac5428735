//! What the system says about the process, under the names that Prometheus' own libraries have for it.

use std::fmt;
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// Asked anew each time. What `/proc` does not tell is left out.
#[derive(Debug)]
pub(super) struct Process {
    /// When it began. In a unit with `ProcSubset=pid` the system does not say, since that is counted from its own start.
    pub(super) started_at: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Ok(cpu) = cpu() {
            let help = "Time on processors, in seconds.";
            let mut metric =
                encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&cpu.as_secs_f64(), None)?;
        }
        let started_at = self.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let help = "When the process began, in seconds since 1970.";
        let mut metric =
            encoder.encode_descriptor("process_start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        metric.encode_gauge(&started_at.as_secs_f64())?;
        let numbers = [
            ("process_resident_memory", "Memory in use, in bytes.", Some(Unit::Bytes), resident()),
            ("process_virtual_memory", "Memory that is mapped, in bytes.", Some(Unit::Bytes), mapped()),
            ("process_open_fds", "Files and sockets that are open.", None, open_files()),
            ("process_max_fds", "How many may be open.", None, max_files()),
            ("process_threads", "Threads.", None, threads()),
        ];
        for (name, help, unit, number) in numbers {
            if let Ok(number) = number {
                encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&number)?;
            }
        }
        Ok(())
    }
}

fn cpu() -> io::Result<Duration> {
    // User and system time are its 14th and 15th field (proc_pid_stat(5)), in hundredths of a second wherever we build for.
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    let ticks: Vec<u64> = rest.split_whitespace().skip(11).take(2).map_while(|field| field.parse().ok()).collect();
    Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}

fn resident() -> io::Result<u64> {
    Ok(1024 * field("/proc/self/status", "VmRSS:")?)
}

fn mapped() -> io::Result<u64> {
    Ok(1024 * field("/proc/self/status", "VmSize:")?)
}

fn threads() -> io::Result<u64> {
    field("/proc/self/status", "Threads:")
}

fn open_files() -> io::Result<u64> {
    // One of them is open to count the others.
    Ok(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64)
}

fn max_files() -> io::Result<u64> {
    field("/proc/self/limits", "Max open files")
}

/// The first number in the line of a file that begins with `name`.
fn field(path: &str, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or(io::ErrorKind::NotFound)?;
    let number = line.split_whitespace().next().ok_or(io::ErrorKind::InvalidData)?;
    number.parse().map_err(io::Error::other)
}
