//! How often one client may do something.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::{DashMapStateStore, ShrinkableKeyedStateStore};
use governor::{DefaultDirectRateLimiter, NotUntil, Quota};

use crate::access_log::LastSaid;
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
pub struct RateLimiter {
    limiter: governor::RateLimiter<IpAddr, Clients, DefaultClock>,
    /// When those that have not come lately were last forgotten.
    swept: LastSaid,
}

impl RateLimiter {
    /// Each client may come at `rate`.
    pub fn new(rate: Rate) -> Self {
        let limiter = governor::RateLimiter::new(rate.quota(), Clients::default(), DefaultClock::default());
        Self { limiter, swept: LastSaid::default() }
    }

    /// Counts one more of `client`; one on this machine, or of no known address, is never limited.
    ///
    /// # Errors
    /// [`RateLimited`] if it has come too often.
    pub fn check(&self, client: Client) -> Result<(), RateLimited> {
        let Some(address) = client.address.filter(|_| !client.is_local) else { return Ok(()) };
        let limiter = &self.limiter;
        if limiter.len() >= MAX_CLIENTS && self.swept.is_due(SWEEP_INTERVAL, Instant::now()) {
            limiter.retain_recent();
        }
        limiter.check_key(&network(address)).map_err(|until| RateLimited::new(&until, limiter.clock().now()))
    }
}

/// What is known of each client. Where too many are, those that come anew are counted as one.
#[derive(Debug, Default)]
struct Clients(DashMapStateStore<IpAddr>);

impl StateStore for Clients {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, client: &IpAddr, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let has_room = self.0.len() < MAX_CLIENTS || self.0.contains_key(client);
        self.0.measure_and_replace(if has_room { client } else { &NEWCOMERS }, measure)
    }
}

impl ShrinkableKeyedStateStore<IpAddr> for Clients {
    fn retain_recent(&self, drop_below: Nanos) {
        self.0.retain_recent(drop_below);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
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
/// With so many clients in memory, those that have not come lately are forgotten, and new ones are counted as one. One
/// site's share of IPv6, a /48, does not fill it.
const MAX_CLIENTS: usize = 100_000;
/// How often they are forgotten at most, since all have to be looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// All that come anew then. Nobody has this address.
const NEWCOMERS: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

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
    fn beyond_so_many_clients_new_ones_are_one_and_known_ones_are_not() {
        let limiter = RateLimiter::new("2/1h".parse().expect("a rate"));
        let client = |number: u32| Client { address: Some(Ipv4Addr::from_bits(number).into()), is_local: false };
        let most = u32::try_from(MAX_CLIENTS).expect("a small one");
        let begun = Instant::now();
        assert!((1..=most).all(|number| limiter.check(client(number)).is_ok()));
        let passed = (1..=1_000).filter(|more| limiter.check(client(most + more)).is_ok()).count();
        assert_eq!((passed, limiter.limiter.len()), (2, MAX_CLIENTS + 1));
        assert!(limiter.check(client(1)).is_ok() && limiter.check(client(1)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: not all are looked at each time", begun.elapsed());
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
