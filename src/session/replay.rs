//! The answer that sends a call to the gateway again: a 307 to the call's own path.
//!
//! It says: this call was not made, but there may be a newer cookie. The browser stores the cookie that comes with it and
//! sends the same call, body included, with the cookies it has then. A counter in the query ends loops. It is cut off
//! before anything else looks at the target, so the DataHUB gets the original bytes.

use std::time::Duration;

use actix_web::http::header::HeaderValue;
use memchr::{memchr, memchr2_iter, memrchr};
use url::form_urlencoded;

use crate::error::{ApiError, Code};
use crate::metrics;
use crate::session::decision::MAX_REPLAYS;
use crate::session::decision::RETRY_AFTER;

/// A request's target without the counter, and how often the browser has sent the call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayTarget<'a> {
    /// Path and query without the counter.
    pub target: &'a str,
    /// 0 for the first time.
    pub replays: u8,
}

impl<'a> ReplayTarget<'a> {
    /// Cuts the counter off.
    ///
    /// # Errors
    /// [`CounterError`] if the parameter is anywhere but last, or no number from 1 to 16.
    pub fn parse(raw: &'a str) -> Result<Self, CounterError> {
        match memchr(b'?', raw.as_bytes()) {
            Some(at) if may_have_counter(&raw.as_bytes()[at + 1..]) => Self::parse_counter(raw, at),
            _ => Ok(Self { target: raw, replays: 0 }),
        }
    }

    /// Reads every parameter of the query, which begins after the `?` at `path_length`.
    fn parse_counter(raw: &'a str, path_length: usize) -> Result<Self, CounterError> {
        let query = &raw[path_length + 1..];
        let last = memrchr(b'&', query.as_bytes()).map_or(0, |at| at + 1);
        let (target, replays) = match query[last..].strip_prefix(PARAMETER).and_then(|rest| rest.strip_prefix('=')) {
            None => (raw, 0),
            Some(number) => {
                let replays = number.parse().ok().filter(|count: &u8| count.to_string() == number);
                let replays = replays.filter(|count| (1..=MAX_REPLAYS).contains(count)).ok_or(CounterError)?;
                // With it goes the separator before it, a `?` if the call had no query.
                (&raw[..path_length + last], replays)
            }
        };
        let rest = target.get(path_length + 1..).unwrap_or_default();
        let mut names = rest.split(['&', ';']).flat_map(|piece| form_urlencoded::parse(piece.as_bytes()));
        if names.any(|(name, _)| name == PARAMETER) {
            return Err(CounterError);
        }
        Ok(Self { target, replays })
    }

    /// The query, without the counter.
    pub fn query(&self) -> Option<&'a str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// The 307 that asks for the same call once more, with new `cookies` if there are any; on a new connection if this one
    /// `closes`. A call that was sent again too often gets `refresh_unavailable` instead.
    pub fn retry_response(&self, cookies: impl IntoIterator<Item = HeaderValue>, closes: bool) -> ApiError {
        if self.replays >= MAX_REPLAYS {
            return ApiError::from(Code::RefreshUnavailable).retry_after(RETRY_AFTER);
        }
        let count = self.replays + 1;
        metrics::replay("again", count);
        // The query alone, so that no front proxy's prefix matters; `?` or `&` tells whether there was one.
        let location = match self.query() {
            None => format!("?{PARAMETER}={count}"),
            Some(query) => format!("?{query}&{PARAMETER}={count}"),
        };
        let retry = ApiError::from(Code::SessionSuperseded).with_field("location", location);
        let retry = cookies.into_iter().fold(retry, |retry, cookie| {
            retry.with_field("set-cookie", cookie.to_str().expect("a cookie of ours is visible ASCII"))
        });
        if closes { retry.closing() } else { retry }
    }

    /// Counts how a call that the browser has sent again came out.
    pub fn record_outcome(&self, result: &'static str) {
        if self.replays > 0 {
            metrics::replay(result, self.replays);
        }
    }
}

/// Whether a parameter begins with the counter's first letter, plain or percent-encoded. Hardly any query has one, and all
/// others need no decoding.
fn may_have_counter(query: &[u8]) -> bool {
    let begins_so = |at: usize| matches!(query[at..], [b'_', ..] | [b'%', b'5', b'F' | b'f', ..]);
    begins_so(0) || memchr2_iter(b'&', b';', query).any(|at| begins_so(at + 1))
}

/// Reads a body, of `length` bytes if that is known, to its end and throws it away: Chromium makes an error of a redirect
/// whose upload was cut off. `next_piece` reads on and gives the number of bytes, or `None` at the end.
///
/// # Errors
/// `refresh_first` for more than 128 MiB or 30 s; the error of `next_piece` for a body that breaks off.
pub async fn discard_body<E, F>(
    length: Option<u64>,
    mut next_piece: impl AsyncFnMut() -> Result<Option<usize>, E>,
) -> Result<(), F>
where
    F: From<Code> + From<E>,
{
    if length.is_some_and(|length| length > MAX_DISCARDED) {
        return Err(Code::RefreshFirst.into());
    }
    let reading = async {
        let mut read = 0;
        while let Some(bytes) = next_piece().await? {
            read += bytes as u64;
            if read > MAX_DISCARDED {
                return Err(Code::RefreshFirst.into());
            }
        }
        Ok(())
    };
    tokio::time::timeout(DISCARD_TIMEOUT, reading).await.unwrap_or_else(|_| Err(Code::RefreshFirst.into()))
}

/// The counter's parameter is used in some other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{PARAMETER}` belongs to the gateway")]
pub struct CounterError;

impl From<CounterError> for ApiError {
    fn from(error: CounterError) -> Self {
        Self::because(Code::BadRequestTarget, error)
    }
}

/// The counter's name in a query.
const PARAMETER: &str = "_gateway_replay";
/// How much of a body is thrown away, in bytes.
const MAX_DISCARDED: u64 = 128 * 1024 * 1024;
/// How long a body is thrown away.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn the_counter_goes_and_the_original_bytes_stay() {
        for target in ["/a", "/a?", "/a?b", "/a?b=1&", "/a?&&", "/a?b;c", "/a?x=_gateway_replay", "/_gateway_replay=1"]
        {
            assert_eq!(ReplayTarget::parse(target), Ok(ReplayTarget { target, replays: 0 }), "{target}");
            let mut sent = target.to_owned();
            for replays in 1..=MAX_REPLAYS {
                let counted = ReplayTarget::parse(&sent).expect("our own counter");
                let retry = counted.retry_response(None, false);
                let [("location", location)] = retry.fields() else { panic!("a redirect and nothing else: {retry:?}") };
                sent = format!("{}{location}", target.split('?').next().expect("a path"));
                assert_eq!(ReplayTarget::parse(&sent), Ok(ReplayTarget { target, replays }), "{sent}");
            }
            let error = ReplayTarget::parse(&sent).expect("our own counter").retry_response(None, false);
            assert_eq!(error.code(), Code::RefreshUnavailable, "round it went often enough");
        }
    }

    #[test]
    fn any_other_use_of_the_counter_is_refused() {
        for target in [
            "/a?_gateway_replay=0",
            "/a?_gateway_replay=17",
            "/a?_gateway_replay=01",
            "/a?_gateway_replay=+1",
            "/a?_gateway_replay=",
            "/a?_gateway_replay",
            "/a?_gateway_replay=1&b=2",
            "/a?_gateway_replay=1&_gateway_replay=2",
            "/a?%5Fgateway_replay=1",
            "/a?b;_gateway_replay=1",
        ] {
            assert_eq!(ReplayTarget::parse(target), Err(CounterError), "{target}");
        }
        ReplayTarget::parse("/a?b=2&_gateway_replay=1").expect("as we write it");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4_096, ..ProptestConfig::default() })]

        #[test]
        fn a_query_that_is_not_read_whole_has_no_counter(
            query in "([_%5Ffg&;=+ab1]|&|[?]|_gateway_replay|%5[Ff]gateway_replay|_gat%65way%5freplay|=1|=16|=17){0,9}",
        ) {
            let raw = format!("/a?{query}");
            prop_assert_eq!(ReplayTarget::parse(&raw), ReplayTarget::parse_counter(&raw, 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_thrown_away_up_to_a_length_and_for_a_time() {
        let code = async |length, pieces: usize, piece: usize, pause| {
            let left = Cell::new(pieces);
            let next_piece = async || {
                tokio::time::sleep(pause).await;
                left.set(left.get().checked_sub(1).ok_or(Code::BadRequest)?);
                Ok::<_, Code>((left.get() > 0).then_some(piece))
            };
            (discard_body::<Code, ApiError>(length, next_piece).await.err().map(|error| error.code()), left.get())
        };
        let (mebibyte, instant) = (1024 * 1024, Duration::ZERO);
        assert_eq!(code(None, 129, mebibyte, instant).await, (None, 0), "as much as there may be");
        assert_eq!(code(None, 130, mebibyte, instant).await, (Some(Code::RefreshFirst), 1), "one too much");
        assert_eq!(code(Some(MAX_DISCARDED), 2, 1, instant).await, (None, 0));
        assert_eq!(
            code(Some(MAX_DISCARDED + 1), 2, 1, instant).await,
            (Some(Code::RefreshFirst), 2),
            "not read at all"
        );
        assert_eq!(code(None, 29, 1, Duration::from_secs(1)).await, (None, 0), "just in time");
        assert_eq!(code(None, 31, 1, Duration::from_secs(1)).await.0, Some(Code::RefreshFirst), "too slow");
        assert_eq!(code(None, 0, 1, instant).await.0, Some(Code::BadRequest), "it breaks off");
    }
}
