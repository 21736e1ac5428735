//! Lines on their way to standard output. Whoever adds one never waits for whoever reads them.
//!
//! One thread writes, everything that has come since its last write at once, so that a line costs its caller a short lock and
//! a copy, and no system call while others come, too. A reader that stalls fills the queue, then lines are dropped. Those that
//! matter most are written at once, and the last part of the queue is kept for them.

use std::io::{ErrorKind, Write};
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use memchr::memchr_iter;

use crate::metrics;

/// Which lines are dropped first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// What there is much of: a line for each request, and whatever is not a warning.
    Low,
    /// Warnings, errors and security events.
    High,
}

/// Lines that wait to be written, in the order in which they came.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    /// Wakes the thread that writes.
    filled: Condvar,
    /// Wakes those that wait until something is written.
    emptied: Condvar,
}

// The panic hook needs it, too: nothing that may panic is done while it is locked.
#[derive(Debug)]
struct QueueState {
    lines: Vec<u8>,
    /// Bytes that were ever added.
    added: u64,
    /// Of these, bytes that are written or given up.
    done: u64,
    /// Lines dropped since the log last said so.
    dropped: u64,
    /// How many wait until something is written.
    flushes: u32,
    /// Whether the thread that writes is to do so now.
    is_hurried: bool,
    /// Whether the thread that writes sleeps until it is woken.
    is_idle: bool,
}

impl Queue {
    pub(super) const fn new() -> Self {
        let state = QueueState {
            lines: Vec::new(),
            added: 0,
            done: 0,
            dropped: 0,
            flushes: 0,
            is_hurried: false,
            is_idle: false,
        };
        Self { state: Mutex::new(state), filled: Condvar::new(), emptied: Condvar::new() }
    }

    /// Adds a whole line, or drops it where there is no room.
    pub(super) fn push(&self, line: &[u8], priority: Priority) {
        let limit = match priority {
            Priority::Low => MAX_BYTES - RESERVED_BYTES,
            Priority::High => MAX_BYTES,
        };
        let mut state = self.lock();
        if state.added - state.done + line.len() as u64 > limit {
            state.dropped += 1;
            drop(state);
            metrics::log_dropped(1);
            return;
        }
        state.lines.extend_from_slice(line);
        state.added += line.len() as u64;
        let is_urgent = priority == Priority::High || state.lines.len() >= BATCH_BYTES;
        let must_wake = mem::take(&mut state.is_idle) || (is_urgent && !state.is_hurried);
        state.is_hurried |= is_urgent;
        drop(state);
        if must_wake {
            self.filled.notify_one();
        }
    }

    /// Waits until what was added before is written, but for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        // Twice, since the line about those that were dropped comes after what is written first.
        for _ in 0..2 {
            let mut state = self.lock();
            let until = state.added;
            state.flushes += 1;
            state.is_hurried = true;
            self.filled.notify_one();
            let rest = end.saturating_duration_since(Instant::now());
            let waited = self.emptied.wait_timeout_while(state, rest, |state| state.done < until);
            waited.unwrap_or_else(PoisonError::into_inner).0.flushes -= 1;
        }
    }

    /// Writes to `out` whatever comes, for ever. `report` makes the line which says how many lines were dropped.
    pub(super) fn run(&self, mut out: impl Write, report: impl Fn(u64) -> Vec<u8>) -> ! {
        let mut batch = Vec::new();
        let mut is_torn = false;
        loop {
            self.take(&mut batch);
            // A line that broke off ends here, so that the next one has a line of its own.
            if is_torn && out.write_all(b"\n").is_ok() {
                is_torn = false;
            }
            let written = self.write(&batch, &mut out);
            if let Some(last) = batch[..written].last() {
                is_torn = *last != b'\n';
            }
            self.settle(&batch[written..], &report);
        }
    }

    /// Waits for lines and takes all that are there.
    fn take(&self, batch: &mut Vec<u8>) {
        batch.clear();
        batch.shrink_to(BATCH_BYTES);
        // If more comes, it comes soon: one write for all of it.
        let paused = self.filled.wait_timeout_while(self.lock(), WRITE_INTERVAL, |state| !state.is_hurried);
        let mut state = paused.unwrap_or_else(PoisonError::into_inner).0;
        while state.lines.is_empty() {
            state.is_idle = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.is_idle, state.is_hurried) = (false, false);
        mem::swap(&mut state.lines, batch);
    }

    /// Writes `batch` and returns how many bytes of it: fewer than all if no more can be written.
    fn write(&self, batch: &[u8], out: &mut impl Write) -> usize {
        let mut written = 0;
        while written < batch.len() {
            match out.write(&batch[written..]) {
                Ok(0) => break,
                Ok(count) => {
                    written += count;
                    self.lock().done += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Somebody else has opened it so.
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WRITE_INTERVAL),
                Err(_) => break,
            }
        }
        written
    }

    /// Gives up what was not written of a batch; if that is nothing, lines flow, and the log says how many did not.
    fn settle(&self, lost: &[u8], report: &impl Fn(u64) -> Vec<u8>) {
        let lines = memchr_iter(b'\n', lost).count() as u64;
        metrics::log_dropped(lines);
        let mut state = self.lock();
        state.done += lost.len() as u64;
        state.dropped += lines;
        if lost.is_empty() && state.dropped > 0 {
            let line = report(mem::take(&mut state.dropped));
            state.added += line.len() as u64;
            state.lines.extend_from_slice(&line);
        }
        if state.flushes > 0 {
            self.emptied.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much may wait, in bytes.
const MAX_BYTES: u64 = 8 << 20;
/// Of these, what is kept for lines of high priority.
const RESERVED_BYTES: u64 = 1 << 20;
/// So many bytes are written without a pause, and so many are kept allocated.
const BATCH_BYTES: usize = 256 << 10;
/// How long a line may wait for others to be written with, and how long standard output is left alone that takes none.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::sync::mpsc::{self, Receiver};

    use super::*;

    #[test]
    fn lines_are_written_in_their_order_and_many_at_once() {
        let queue = Arc::new(Queue::new());
        let lines: Vec<String> = (0..1_000).map(|number| format!("line {number}\n")).collect();
        for line in &lines {
            queue.push(line.as_bytes(), Priority::Low);
        }
        let writes = written(&queue, |bytes| Ok(bytes.len()));
        queue.flush(LONG);
        assert_eq!(writes.try_iter().collect::<Vec<_>>(), [lines.concat()]);
        queue.push(b"another\n", Priority::Low);
        queue.flush(LONG);
        assert_eq!(writes.try_recv().as_deref(), Ok("another\n"));
    }

    #[test]
    fn a_line_is_written_soon_though_nobody_asks_for_it() {
        let queue = Arc::new(Queue::new());
        let writes = written(&queue, |bytes| Ok(bytes.len()));
        for pause in [0, 1, 60] {
            thread::sleep(Duration::from_millis(pause));
            queue.push(b"a line\n", Priority::Low);
            assert_eq!(writes.recv_timeout(LONG).as_deref(), Ok("a line\n"));
        }
    }

    #[test]
    fn what_there_is_much_of_is_dropped_first_and_that_is_said_once() {
        let queue = Arc::new(Queue::new());
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let (fits, reserve) = (7 * 1024, 1024);
        for _ in 0..fits + 5 {
            queue.push(&line, Priority::Low);
        }
        for number in 0..reserve {
            let mut warning = format!("warning {number} ").into_bytes();
            warning.extend_from_slice(&line[warning.len()..]);
            queue.push(&warning, Priority::High);
        }
        queue.push(b"one warning too many\n", Priority::High);

        let writes = written(&queue, |bytes| Ok(bytes.len()));
        queue.flush(LONG);
        queue.push(b"the next line\n", Priority::Low);
        queue.flush(LONG);
        let all: String = writes.try_iter().collect();
        let lines: Vec<&str> = all.lines().collect();
        assert_eq!(lines.len(), fits + reserve + 2);
        assert!(lines[fits - 1].starts_with('x') && lines[fits].starts_with("warning 0 "), "{}", lines[fits]);
        assert!(lines[lines.len() - 3].starts_with("warning 1023 "));
        assert_eq!(lines[lines.len() - 2..], ["6 dropped", "the next line"]);
    }

    #[test]
    fn an_end_that_takes_nothing_costs_lines_and_no_more() {
        let queue = Arc::new(Queue::new());
        let mut answers =
            [Ok(3), Err(ErrorKind::BrokenPipe), Err(ErrorKind::BrokenPipe), Err(ErrorKind::StorageFull)].into_iter();
        let writes = written(&queue, move |bytes| answers.next().unwrap_or(Ok(bytes.len())));
        for lines in ["torn\nlost\n", "lost\n", "taken\n"] {
            queue.push(lines.as_bytes(), Priority::Low);
            queue.flush(LONG);
        }
        queue.push(b"taken, too\n", Priority::Low);
        queue.flush(LONG);
        let all: String = writes.try_iter().collect();
        assert_eq!(all, "tor\ntaken\n3 dropped\ntaken, too\n");
    }

    #[test]
    fn an_end_that_takes_little_is_waited_for() {
        let queue = Arc::new(Queue::new());
        let mut is_odd = false;
        let writes = written(&queue, move |bytes| {
            is_odd = !is_odd;
            if is_odd { Err(ErrorKind::WouldBlock) } else { Ok(bytes.len().min(7)) }
        });
        queue.push(b"a line of twenty-five\n", Priority::Low);
        queue.flush(LONG);
        assert_eq!(writes.try_iter().collect::<String>(), "a line of twenty-five\n");
    }

    #[test]
    fn nobody_waits_for_long() {
        let queue = Arc::new(Queue::new());
        queue.push(b"a line\n", Priority::Low);
        let begun = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(begun.elapsed() >= Duration::from_millis(50), "nobody writes");
        assert!(begun.elapsed() < LONG);
        let writes = written(&queue, |bytes| Ok(bytes.len()));
        queue.flush(LONG);
        assert!(begun.elapsed() < LONG);
        assert_eq!(writes.try_recv().as_deref(), Ok("a line\n"));
    }

    const LONG: Duration = Duration::from_secs(10);

    /// What is written from now on, write by write, to an end that takes as many bytes of each as `answer` says.
    fn written(
        queue: &Arc<Queue>,
        mut answer: impl FnMut(&[u8]) -> Result<usize, ErrorKind> + Send + 'static,
    ) -> Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        let queue = Arc::clone(queue);
        let take = move |bytes: &[u8]| {
            let count = answer(bytes)?;
            let _ = sender.send(String::from_utf8_lossy(&bytes[..count]).into_owned());
            Ok(count)
        };
        thread::spawn(move || queue.run(Out(take), |dropped| format!("{dropped} dropped\n").into_bytes()));
        receiver
    }

    struct Out<F>(F);

    impl<F: FnMut(&[u8]) -> io::Result<usize>> Write for Out<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            (self.0)(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
