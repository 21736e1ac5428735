//! One large body, up or down.

use std::io;
use std::time::Instant;

use serde_json::json;

use crate::cpu;
use crate::driver::Driver;
use crate::order::Transfer;
use crate::say;

/// One line: how long it took, and what it cost the target.
pub fn once(driver: &mut Driver, order: &Transfer) -> io::Result<()> {
    driver.hang_up();
    let client = driver.connect(&order.target)?;
    let cpu = cpu::time_of(&order.target.pids)?;
    let start = Instant::now();
    driver.send_body(client, start, order.upload)?;
    let outcome = driver.wait_for_one()?;
    let took = start.elapsed();
    // The target falls asleep a moment after its last byte.
    std::thread::sleep(std::time::Duration::from_millis(20));
    say(&json!({
        "name": order.target.name,
        "seconds": took.as_secs_f64(),
        "cpu_seconds": cpu::time_of(&order.target.pids)?.saturating_sub(cpu).as_secs_f64(),
        "failed": u64::from(!outcome.is_success),
    }))
}
