//! The answer that sends a call to the gateway again: a 307 to the call's own path.
//!
//! It says: this call was not made, but there may be a newer cookie. The browser stores the cookie that comes with it and
//! sends the same call, body included, with the cookies it has then. A counter in the query ends loops. Its name is ours
//! alone: it is cut out before anything else looks at the target, so the DataHUB gets the original bytes.

use std::borrow::Cow;
use std::time::Duration;

use actix_web::http::header::HeaderValue;
use memchr::{memchr, memchr2_iter};

use crate::error::{ApiError, Code};
use crate::metrics;
use crate::session::decision::{MAX_REPLAYS, RETRY_AFTER};

/// A request's target without the counter, and how often the browser has sent the call again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayTarget<'a> {
    /// Path and query without the counter.
    pub target: Cow<'a, str>,
    /// 0 for the first time.
    pub replays: u8,
}

impl<'a> ReplayTarget<'a> {
    /// Cuts out every parameter of the counter's name. Only one that stands last, as we append it, is a count: an app that
    /// appends to `response.url` sends an old one on with a new call. Another spelling of the name is another name.
    pub fn parse(raw: &'a str) -> Self {
        match memchr(b'?', raw.as_bytes()) {
            Some(at) if has_counter(&raw.as_bytes()[at + 1..]) => Self::without_counters(raw, at),
            _ => Self { target: Cow::Borrowed(raw), replays: 0 },
        }
    }

    /// The same for a query that begins with the `?` at `path_length` and is read whole. Each counter goes with the separator
    /// before it; if nothing is left, so does the `?`, since a call with a bare one has a separator behind it.
    fn without_counters(raw: &str, path_length: usize) -> Self {
        let (mut target, mut replays) = (raw[..path_length].to_owned(), 0);
        let mut rest = &raw[path_length..];
        while !rest.is_empty() {
            let (separator, parameter) = rest.split_at(1);
            let is_counter = is_counter(parameter.as_bytes());
            // Behind a counter an app may have begun what it took for the query.
            let ends: &[char] = if is_counter { &['&', ';', '?'] } else { &['&', ';'] };
            let (parameter, next) = parameter.split_at(parameter.find(ends).unwrap_or(parameter.len()));
            if is_counter {
                let is_as_appended = next.is_empty() && separator != ";";
                replays = if is_as_appended { count(parameter) } else { 0 };
            } else {
                target.push_str(if target.len() == path_length { "?" } else { separator });
                target.push_str(parameter);
            }
            rest = next;
        }
        Self { target: Cow::Owned(target), replays }
    }

    /// The query, without the counter.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }

    /// The 307 that asks for the same call once more, with new `cookies` if there are any; on a new connection if this one
    /// `closes`. A call that was sent again too often gets `refresh_unavailable` instead, and the cookies: nobody else has them.
    pub fn retry_response(&self, cookies: impl IntoIterator<Item = HeaderValue>, closes: bool) -> ApiError {
        let with_cookies = |answer: ApiError| {
            cookies.into_iter().fold(answer, |answer, cookie| {
                answer.with_field("set-cookie", cookie.to_str().expect("a cookie of ours is visible ASCII"))
            })
        };
        if self.replays >= MAX_REPLAYS {
            return with_cookies(ApiError::from(Code::RefreshUnavailable).retry_after(RETRY_AFTER));
        }
        let count = self.replays + 1;
        metrics::replay("again", count);
        // The query alone, so that no front proxy's prefix matters; `?` or `&` tells whether there was one.
        let location = match self.query() {
            None => format!("?{PARAMETER}={count}"),
            Some(query) => format!("?{query}&{PARAMETER}={count}"),
        };
        let retry = with_cookies(ApiError::from(Code::SessionSuperseded).with_field("location", location));
        if closes { retry.closing() } else { retry }
    }

    /// Counts how a call that the browser has sent again came out.
    pub fn record_outcome(&self, result: &'static str) {
        if self.replays > 0 {
            metrics::replay(result, self.replays);
        }
    }
}

/// Whether a parameter of this query may have the counter's name. Hardly any query has one.
fn has_counter(query: &[u8]) -> bool {
    query.starts_with(PARAMETER.as_bytes())
        || memchr2_iter(b'&', b';', query).any(|at| query[at + 1..].starts_with(PARAMETER.as_bytes()))
}

/// Whether a parameter that begins so has the counter's name.
fn is_counter(parameter: &[u8]) -> bool {
    let rest = parameter.strip_prefix(PARAMETER.as_bytes());
    rest.is_some_and(|rest| matches!(rest, [] | [b'=' | b'&' | b';' | b'?', ..]))
}

/// How often the call has been sent again; 0 for what we would not write.
fn count(parameter: &str) -> u8 {
    let number = parameter.get(PARAMETER.len() + 1..).unwrap_or_default();
    number
        .parse()
        .ok()
        .filter(|count: &u8| (1..=MAX_REPLAYS).contains(count) && count.to_string() == number)
        .unwrap_or(0)
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

    fn parsed(raw: &str) -> (String, u8) {
        let ReplayTarget { target, replays } = ReplayTarget::parse(raw);
        (target.into_owned(), replays)
    }

    #[test]
    fn the_counter_goes_and_the_original_bytes_stay() {
        for target in ["/a", "/a?", "/a?b", "/a?b=1&", "/a?&&", "/a?b;c", "/a?x=_gateway_replay", "/_gateway_replay=1"]
        {
            assert_eq!(ReplayTarget::parse(target), ReplayTarget { target: Cow::Borrowed(target), replays: 0 });
            let mut sent = target.to_owned();
            for replays in 1..=MAX_REPLAYS {
                let retry = ReplayTarget::parse(&sent).retry_response(None, false);
                let [("location", location)] = retry.fields() else { panic!("a redirect and nothing else: {retry:?}") };
                sent = format!("{}{location}", target.split('?').next().expect("a path"));
                assert_eq!(parsed(&sent), (target.to_owned(), replays), "{sent}");
            }
            let error = ReplayTarget::parse(&sent).retry_response(None, false);
            assert_eq!(error.code(), Code::RefreshUnavailable, "round it went often enough");
        }
    }

    #[test]
    fn the_name_is_cut_out_wherever_it_stands_and_counts_only_where_we_append_it() {
        for (raw, target, replays) in [
            // What apps make of `response.url`.
            ("/a?_gateway_replay=1&page=2", "/a?page=2", 0),
            ("/a?_gateway_replay=1?page=2", "/a?page=2", 0),
            ("/a?b=c&_gateway_replay=3&page=2", "/a?b=c&page=2", 0),
            ("/a?b=c&_gateway_replay=3;page=2", "/a?b=c;page=2", 0),
            ("/a?b=c&_gateway_replay=3?page=2", "/a?b=c?page=2", 0),
            ("/a?_gateway_replay=1&", "/a?", 0),
            ("/a?&_gateway_replay=1&", "/a?&", 0),
            ("/a?_gateway_replay=9&page=2&_gateway_replay=1", "/a?page=2", 1),
            ("/a?_gateway_replay=9&_gateway_replay=2", "/a", 2),
            ("/a?_gateway_replay=9&_gateway_replay=2&b", "/a?b", 0),
            ("/a?b;_gateway_replay=1;c", "/a?b;c", 0),
            // As we append it, and nearly so.
            ("/a?b=c&_gateway_replay=16", "/a?b=c", 16),
            ("/a?b=c;_gateway_replay=3", "/a?b=c", 0),
            ("/a?b&_gateway_replay=0", "/a?b", 0),
            ("/a?b&_gateway_replay=17", "/a?b", 0),
            ("/a?b&_gateway_replay=01", "/a?b", 0),
            ("/a?b&_gateway_replay=+1", "/a?b", 0),
            ("/a?b&_gateway_replay=1=1", "/a?b", 0),
            ("/a?b&_gateway_replay=", "/a?b", 0),
            ("/a?b&_gateway_replay", "/a?b", 0),
            ("/a?_gateway_replay", "/a", 0),
            ("/a?_gateway_replay&b", "/a?b", 0),
            // Other names.
            ("/a?%5Fgateway_replay=1", "/a?%5Fgateway_replay=1", 0),
            ("/a?_GATEWAY_REPLAY=1", "/a?_GATEWAY_REPLAY=1", 0),
            ("/a?_gateway_replays=1", "/a?_gateway_replays=1", 0),
            ("/a?_gateway_replay[]=1", "/a?_gateway_replay[]=1", 0),
            ("/a?b=%26_gateway_replay=1", "/a?b=%26_gateway_replay=1", 0),
            ("/a?x_gateway_replay=1&b", "/a?x_gateway_replay=1&b", 0),
            ("/a?b?_gateway_replay=1", "/a?b?_gateway_replay=1", 0),
        ] {
            assert_eq!(parsed(raw), (target.to_owned(), replays), "{raw}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4_096, ..ProptestConfig::default() })]

        #[test]
        fn what_is_left_has_no_counter_and_what_had_none_is_left_whole(
            query in "([_%5Ffg&;=+ab1]|&|[?]|_gateway_replay|%5[Ff]gateway_replay|=1|=16|=17){0,9}",
        ) {
            let raw = format!("/a?{query}");
            let ReplayTarget { target, replays } = ReplayTarget::parse(&raw);
            prop_assert_eq!(&ReplayTarget::parse(&target), &ReplayTarget { target: target.clone(), replays: 0 });
            prop_assert_eq!(ReplayTarget::without_counters(&raw, 2), ReplayTarget { target: target.clone(), replays });
            let names = query.split(['&', ';']).map(|parameter| parameter.split(['=', '?']).next().unwrap_or_default());
            prop_assert_eq!(target == raw, names.into_iter().all(|name| name != PARAMETER));
        }
    }

    /// Nobody else has the newest tokens, perhaps.
    #[test]
    fn the_answer_after_too_many_brings_the_cookies_too() {
        for (raw, code) in
            [("/a?_gateway_replay=15", Code::SessionSuperseded), ("/a?_gateway_replay=16", Code::RefreshUnavailable)]
        {
            let answer = ReplayTarget::parse(raw).retry_response([HeaderValue::from_static("a=b")], false);
            let cookies: Vec<_> = answer.fields().iter().filter(|(name, _)| *name == "set-cookie").collect();
            assert_eq!((answer.code(), cookies.len()), (code, 1), "{raw}");
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
