//! CPU time of other processes, to the nanosecond.

use std::fs;
use std::io;
use std::time::Duration;

/// What all living threads of these processes have run so far.
///
/// The kernel brings a thread's figure up to date when the thread falls asleep: ask once the work is done.
///
/// # Errors
///
/// If a process is no more, or /proc is not Linux's.
pub fn time_of(pids: &[u32]) -> io::Result<Duration> {
    let mut total = 0;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end between the listing and the reading.
            let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let nanoseconds = schedstat.split(' ').next().and_then(|word| word.parse::<u64>().ok());
            total += nanoseconds.ok_or(io::ErrorKind::InvalidData)?;
        }
    }
    Ok(Duration::from_nanos(total))
}
