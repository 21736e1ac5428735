//! The wall clock of a worker, and how it is written in a Date field.

use std::cell::RefCell;
use std::time::SystemTime;

/// Writes the time as HTTP does (RFC 9110 section 5.6.7), a new text a second.
#[derive(Debug, Default)]
pub struct DateClock(RefCell<(u64, String)>);

impl DateClock {
    /// Appends `now` to `out`.
    pub fn write(&self, now: SystemTime, out: &mut Vec<u8>) {
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut date = self.0.borrow_mut();
        if date.0 != second || date.1.is_empty() {
            *date = (second, httpdate::fmt_http_date(now));
        }
        out.extend_from_slice(date.1.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_second_has_its_text() {
        let clock = DateClock::default();
        for (seconds, text) in [(0, "Thu, 01 Jan 1970 00:00:00 GMT"), (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT")] {
            for _ in 0..2 {
                let mut out = Vec::new();
                clock.write(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), &mut out);
                assert_eq!(out, text.as_bytes());
            }
        }
    }
}
