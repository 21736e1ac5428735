//! Many small calls: slices of load in turn, so that the noise of a machine hits every target alike.

use std::io;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cpu;
use crate::driver::Driver;
use crate::order::{Calls, Repeat, Target};
use crate::say;

/// One line for each slice.
pub fn by_turns(driver: &mut Driver, order: &Calls) -> io::Result<()> {
    driver.hang_up();
    let mut lanes = Vec::new();
    for target in &order.targets {
        lanes.push(Lane::open(driver, target, order.connections)?);
    }
    for lane in &mut lanes {
        lane.run(driver, &Pace { goal: Goal::Time(seconds(order.warm_up)), rate: order.rate })?;
    }
    let pace = Pace { goal: Goal::Time(seconds(order.slice)), rate: order.rate };
    for cycle in 0..order.cycles {
        let mut others: Vec<_> = (1..lanes.len()).collect();
        if cycle % 2 == 1 {
            others.reverse();
        }
        if others.is_empty() {
            lanes[0].run(driver, &pace)?.tell(cycle)?;
        }
        for other in others {
            for at in [0, other] {
                lanes[at].run(driver, &pace)?.tell(cycle)?;
            }
        }
    }
    Ok(())
}

/// One line for them all.
pub fn a_number(driver: &mut Driver, order: &Repeat) -> io::Result<()> {
    driver.hang_up();
    let mut lane = Lane::open(driver, &order.target, order.connections)?;
    lane.run(driver, &Pace { goal: Goal::Calls(order.calls), rate: None })?.tell(0)
}

/// The connections to one target.
struct Lane<'a> {
    target: &'a Target,
    idle: Vec<usize>,
    connections: usize,
}

struct Pace {
    goal: Goal,
    /// Calls a second, whatever became of earlier ones.
    rate: Option<f64>,
}

enum Goal {
    Time(Duration),
    Calls(u64),
}

struct Slice<'a> {
    target: &'a Target,
    took: Duration,
    cpu: Duration,
    /// From when each was due to when it was answered whole.
    latencies: Vec<Duration>,
    failed: u64,
    authorized: u64,
    reconnects: u64,
}

impl<'a> Lane<'a> {
    fn open(driver: &mut Driver, target: &'a Target, connections: usize) -> io::Result<Self> {
        let idle = (0..connections).map(|_| driver.connect(target)).collect::<io::Result<_>>()?;
        Ok(Self { target, idle, connections })
    }

    /// Loads the target until the goal is reached, and waits until it has answered everything.
    fn run(&mut self, driver: &mut Driver, pace: &Pace) -> io::Result<Slice<'a>> {
        let (authorized, reconnects) = (driver.authorized(), driver.reconnects);
        let cpu = cpu::time_of(&self.target.pids)?;
        let start = Instant::now();
        let (mut sent, mut failed) = (0, 0);
        let mut latencies = Vec::new();
        let mut finished = Vec::new();
        let mut now = start;
        loop {
            while !self.idle.is_empty() && pace.wants(sent, now - start) {
                let due = pace.due(sent).map_or(now, |after| start + after);
                driver.send_body(self.idle.pop().expect("it is not empty"), due, 0)?;
                sent += 1;
            }
            if self.idle.len() == self.connections && pace.is_over(sent, now - start) {
                break;
            }
            driver.turn(&mut finished)?;
            now = Instant::now();
            for (client, outcome) in finished.drain(..) {
                latencies.push(now - driver.due(client));
                failed += u64::from(!outcome.is_success);
                self.idle.push(client);
            }
            if now - start > pace.length() + PATIENCE {
                return Err(io::Error::other(format!("{} does not answer", self.target.name)));
            }
        }
        Ok(Slice {
            target: self.target,
            took: now - start,
            cpu: cpu::time_of(&self.target.pids)?.saturating_sub(cpu),
            latencies,
            failed,
            authorized: driver.authorized() - authorized,
            reconnects: driver.reconnects - reconnects,
        })
    }
}

impl Pace {
    /// Whether another call is to be sent.
    fn wants(&self, sent: u64, after: Duration) -> bool {
        match self.goal {
            Goal::Calls(calls) => sent < calls,
            Goal::Time(length) => match self.due(sent) {
                None => after < length,
                Some(due) => due < length && due <= after,
            },
        }
    }

    fn is_over(&self, sent: u64, after: Duration) -> bool {
        match self.goal {
            Goal::Calls(calls) => sent == calls,
            Goal::Time(length) => after >= length && self.due(sent).is_none_or(|due| due >= length),
        }
    }

    fn due(&self, sent: u64) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "a slice has far fewer than 2^52 calls")]
        self.rate.map(|rate| Duration::from_secs_f64(sent as f64 / rate))
    }

    fn length(&self) -> Duration {
        match self.goal {
            Goal::Time(length) => length,
            Goal::Calls(_) => Duration::from_mins(5),
        }
    }
}

impl Slice<'_> {
    fn tell(mut self, cycle: usize) -> io::Result<()> {
        self.latencies.sort_unstable();
        let microseconds = |hundredths: usize| {
            let last = self.latencies.len().saturating_sub(1);
            self.latencies.get(last * hundredths / 100).map(|latency| latency.as_secs_f64() * 1e6)
        };
        say(&json!({
            "name": self.target.name,
            "cycle": cycle,
            "calls": self.latencies.len(),
            "seconds": self.took.as_secs_f64(),
            "cpu_seconds": self.cpu.as_secs_f64(),
            "p50_us": microseconds(50),
            "p99_us": microseconds(99),
            "failed": self.failed,
            "authorized": self.authorized,
            "reconnects": self.reconnects,
        }))
    }
}

fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number)
}

/// Beyond the end of a slice, for what is still under way.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::{Duration, Goal, Pace};

    #[test]
    fn an_open_loop_sends_what_is_due_and_owes_what_is_late() {
        let pace = Pace { goal: Goal::Time(Duration::from_millis(10)), rate: Some(1000.0) };
        assert!(pace.wants(0, Duration::ZERO));
        assert!(!pace.wants(1, Duration::from_micros(999)));
        assert!(pace.wants(1, Duration::from_millis(1)));
        // Late, but due within the slice; and what is due at its end belongs to the next.
        assert!(pace.wants(9, Duration::from_millis(50)));
        assert!(!pace.wants(10, Duration::from_millis(50)));
        assert!(!pace.is_over(9, Duration::from_millis(50)));
        assert!(pace.is_over(10, Duration::from_millis(10)));
    }

    #[test]
    fn a_closed_loop_ends_with_its_time_or_its_number() {
        let timed = Pace { goal: Goal::Time(Duration::from_millis(10)), rate: None };
        assert!(timed.wants(7, Duration::from_millis(9)) && !timed.is_over(7, Duration::from_millis(9)));
        assert!(!timed.wants(7, Duration::from_millis(10)) && timed.is_over(7, Duration::from_millis(10)));
        let counted = Pace { goal: Goal::Calls(3), rate: None };
        assert!(counted.wants(2, Duration::from_mins(1)) && !counted.is_over(2, Duration::from_mins(1)));
        assert!(!counted.wants(3, Duration::ZERO) && counted.is_over(3, Duration::ZERO));
    }
}
