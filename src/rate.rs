//! How often one client may do something.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::{Duration, Instant};

use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, NotUntil, Quota};

use crate::context::Client;
use crate::error::{ApiError, Code};

/// So many times in so long, such as `300/1m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    period: Duration,
}

impl Rate {
    /// The whole of it may come at once; then it comes back bit by bit.
    fn quota(self) -> Quota {
        let each = (self.period / self.count.get()).max(Duration::from_nanos(1));
        Quota::with_period(each).expect("longer than nothing").allow_burst(self.count)
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (count, period) = text.split_once('/').ok_or(RateError)?;
        let period = humantime::parse_duration(period)
            .ok()
            .filter(|period| !period.is_zero() && *period <= MAX_PERIOD)
            .ok_or(RateError)?;
        Ok(Self { count: count.parse().map_err(|_| RateError)?, period })
    }
}

/// A text that is no rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a rate such as 300/1m")]
pub struct RateError;

/// Counts per client, in memory and over all workers.
#[derive(Debug)]
pub struct RateLimiter(DefaultKeyedRateLimiter<IpAddr>);

impl RateLimiter {
    /// Each client may come at `rate`.
    pub fn new(rate: Rate) -> Self {
        Self(governor::RateLimiter::keyed(rate.quota()))
    }

    /// Counts one more of `client`; one on this machine, or of no known address, is never limited.
    ///
    /// # Errors
    /// [`RateLimited`] if it has come too often.
    pub fn check(&self, client: Client) -> Result<(), RateLimited> {
        let Some(address) = client.address.filter(|_| !client.is_local) else { return Ok(()) };
        if self.0.len() > MAX_CLIENTS {
            self.0.retain_recent();
        }
        self.0.check_key(&network(address)).map_err(|until| RateLimited::new(&until, self.0.clock().now()))
    }
}

/// Counts all clients together, over all workers.
#[derive(Debug)]
pub struct TotalRateLimiter(DefaultDirectRateLimiter);

impl TotalRateLimiter {
    /// All of them may come at `rate`.
    pub fn new(rate: Rate) -> Self {
        Self(governor::RateLimiter::direct(rate.quota()))
    }

    /// Counts one more.
    ///
    /// # Errors
    /// [`RateLimited`] if too many have come.
    pub fn check(&self) -> Result<(), RateLimited> {
        self.0.check().map_err(|until| RateLimited::new(&until, self.0.clock().now()))
    }
}

/// Somebody comes too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many calls")]
pub struct RateLimited {
    /// How long until one more may come.
    pub retry_after: Duration,
}

impl RateLimited {
    fn new(until: &NotUntil<Instant>, now: Instant) -> Self {
        Self { retry_after: until.wait_time_from(now) }
    }
}

impl From<RateLimited> for ApiError {
    fn from(error: RateLimited) -> Self {
        Self::from(Code::RateLimited).retry_after(error.retry_after)
    }
}

/// What counts as one client: an address of IPv4, but a /64 of IPv6, since each host has one to itself (RFC 7421).
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// The longest period: nobody comes so seldom.
const MAX_PERIOD: Duration = Duration::from_hours(24 * 366);
/// With more clients than this in memory, those that have not come lately are forgotten.
const MAX_CLIENTS: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_is_limited_and_another_is_not() {
        let limiter = RateLimiter::new("2/1h".parse().expect("a rate"));
        let client = |ip: [u8; 4], is_local| Client { address: Some(ip.into()), is_local };
        let (one, other) = (client([192, 0, 2, 1], false), client([192, 0, 2, 2], false));
        assert!(limiter.check(one).is_ok() && limiter.check(one).is_ok());
        let refused = limiter.check(one).expect_err("a third time");
        assert!((1_790..=1_800).contains(&refused.retry_after.as_secs()), "{refused:?}");
        assert!(limiter.check(other).is_ok());
        assert!((0..100).all(|_| limiter.check(client([127, 0, 0, 1], true)).is_ok()));
    }

    #[test]
    fn all_clients_together_are_limited() {
        let limiter = TotalRateLimiter::new("2/1h".parse().expect("a rate"));
        assert!(limiter.check().is_ok() && limiter.check().is_ok());
        let refused = limiter.check().expect_err("a third time");
        assert!((1_790..=1_800).contains(&refused.retry_after.as_secs()), "{refused:?}");
    }

    #[test]
    fn all_addresses_of_one_ipv6_host_are_one_client() {
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("192.0.2.1", "192.0.2.2", false),
        ] {
            let [one, other] = [one, other].map(|text| network(text.parse().expect("an address")));
            assert_eq!(one == other, same, "{one} {other}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in ["", "30", "30/", "/1m", "0/1m", "30/0s", "-1/1m", "30/1m/1m", "1/100000000000d"] {
            assert_eq!(text.parse::<Rate>(), Err(RateError), "{text}");
        }
    }
}
