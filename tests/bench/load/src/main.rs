//! Loads proxies by turns, and is the DataHUB behind them at the same time: one thread that never sleeps while it measures.
//!
//! Both ends are one process because a peer that sleeps would have to be woken by whoever is measured, and would so charge
//! it for its own rest. The first line of standard input says what the DataHUB answers; each line after that is one thing
//! to measure. Every answer is one line of JSON. See [`order`] for both.

mod calls;
mod client;
mod cpu;
mod driver;
mod order;
mod transfer;
mod upstream;
mod wire;

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::driver::Driver;
use crate::order::{Hold, Order, Setup};

fn main() -> io::Result<()> {
    let mut lines = io::stdin().lines();
    let Some(first) = lines.next() else { return Ok(()) };
    let setup: Setup = serde_json::from_str(&first?)?;
    let mut driver = Driver::new(&setup)?;
    say(&json!({ "ready": true }))?;
    for line in lines {
        match serde_json::from_str(&line?)? {
            Order::Calls(order) => calls::by_turns(&mut driver, &order)?,
            Order::Repeat(order) => calls::a_number(&mut driver, &order)?,
            Order::Transfer(order) => transfer::once(&mut driver, &order)?,
            Order::Hold(order) => hold(&mut driver, &order)?,
        }
        say(&json!({ "done": true }))?;
    }
    Ok(())
}

/// Leaves connections open that made one call each, until the next order.
fn hold(driver: &mut Driver, order: &Hold) -> io::Result<()> {
    driver.hang_up();
    let mut failed = 0;
    for _ in 0..order.connections {
        let client = driver.connect(&order.target)?;
        driver.send(client)?;
        failed += usize::from(!driver.wait_for_one()?.is_success);
    }
    say(&json!({ "held": order.connections, "failed": failed }))
}

/// One line on standard output.
fn say(value: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}
