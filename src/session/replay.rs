//! The answer that sends a call to the gateway again: a 307 to oneself.
//!
//! "This call was not made, but a newer cookie exists." The browser stores the cookie and sends the same call, body
//! included, with what its jar holds then. A counter in the query ends loops; its bytes are cut off before anything else
//! looks at the target, so the DataHUB sees the original.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::header::{HeaderValue, LOCATION, SET_COOKIE};
use actix_web::web::Payload;
use futures_util::StreamExt;
use url::form_urlencoded;

use crate::error::{ApiError, Code};
use crate::metrics;
use crate::session::refresh::{MOST_REPLAYS, RETRY_AFTER};

/// A request target as the app wrote it, and how often the browser has sent it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted<'a> {
    /// Path and query without the counter.
    pub target: &'a str,
    /// 0 for the first time.
    pub replays: u8,
}

impl<'a> Counted<'a> {
    /// Cuts the counter off.
    ///
    /// # Errors
    /// [`CounterError`] if the parameter is anywhere but last, or no number from 1 to 16.
    pub fn parse(raw: &'a str) -> Result<Self, CounterError> {
        let Some((path, query)) = raw.split_once('?') else {
            return Ok(Self { target: raw, replays: 0 });
        };
        let (before, last) = query.rsplit_once('&').map_or((None, query), |(before, last)| (Some(before), last));
        let (target, replays) = match last.strip_prefix(PARAMETER).and_then(|rest| rest.strip_prefix('=')) {
            None => (raw, 0),
            Some(number) => {
                let replays = number
                    .parse()
                    .ok()
                    .filter(|count: &u8| (1..=MOST_REPLAYS).contains(count) && count.to_string() == number);
                // What was there before, with its `?` if there was a query: that is what the separator tells.
                let kept = before.map_or(path.len(), |before| path.len() + 1 + before.len());
                (&raw[..kept], replays.ok_or(CounterError)?)
            }
        };
        let rest = target.split_once('?').map_or("", |(_, query)| query);
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

    /// The answer: the same call once more, with new `cookies` if there are any, on a new connection if this one `closes`.
    ///
    /// # Errors
    /// `refresh_unavailable` if it has been round too often.
    pub fn again(
        &self,
        cookies: impl IntoIterator<Item = HeaderValue>,
        closes: bool,
    ) -> Result<HttpResponse, ApiError> {
        if self.replays >= MOST_REPLAYS {
            return Err(ApiError::from(Code::RefreshUnavailable).retry_after(RETRY_AFTER));
        }
        let query = self.query();
        let count = self.replays + 1;
        metrics::replay("again", count);
        // The query alone, so that no front proxy's prefix matters; `?` or `&` tells whether there was one.
        let location = match query {
            None => format!("?{PARAMETER}={count}"),
            Some(query) => format!("?{query}&{PARAMETER}={count}"),
        };
        let superseded = ApiError::from(Code::SessionSuperseded);
        let superseded = if closes { superseded.closing() } else { superseded };
        let mut response = HttpResponse::from_error(superseded);
        let headers = response.headers_mut();
        headers.insert(LOCATION, HeaderValue::from_str(&location).expect("a request's target is ASCII"));
        for cookie in cookies {
            headers.append(SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// Counts how a call that the browser has sent again came out.
    pub fn ended(&self, result: &'static str) {
        if self.replays > 0 {
            metrics::replay(result, self.replays);
        }
    }
}

/// Reads a body, of `length` if that is known, to its end and throws it away: Chromium makes an error of a redirect over a reset upload.
///
/// # Errors
/// `refresh_first` for more than 128 MiB or 30 s; `bad_request` for a body that breaks off.
pub async fn drain(mut body: Payload, length: Option<u64>) -> Result<(), ApiError> {
    if length.is_some_and(|length| length > MOST_DRAINED) {
        return Err(Code::RefreshFirst.into());
    }
    let reading = async {
        let mut read = 0;
        while let Some(piece) = body.next().await {
            read += piece?.len() as u64;
            if read > MOST_DRAINED {
                return Err(Code::RefreshFirst.into());
            }
        }
        Ok(())
    };
    tokio::time::timeout(LONGEST_DRAIN, reading).await.unwrap_or_else(|_| Err(Code::RefreshFirst.into()))
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
const MOST_DRAINED: u64 = 128 * 1024 * 1024;
/// How long a body is thrown away.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_goes_and_the_original_bytes_stay() {
        for target in ["/a", "/a?", "/a?b", "/a?b=1&", "/a?&&", "/a?b;c", "/a?x=_gateway_replay", "/_gateway_replay=1"]
        {
            assert_eq!(Counted::parse(target), Ok(Counted { target, replays: 0 }), "{target}");
            let mut sent = target.to_owned();
            for replays in 1..=MOST_REPLAYS {
                let counted = Counted::parse(&sent).expect("our own counter");
                let answer = counted.again(None, false).expect("not too often");
                let location = answer.headers().get(LOCATION).expect("a redirect").to_str().expect("ASCII").to_owned();
                sent = format!("{}{location}", target.split('?').next().expect("a path"));
                assert_eq!(Counted::parse(&sent), Ok(Counted { target, replays }), "{sent}");
            }
            let error = Counted::parse(&sent).expect("our own counter").again(None, false).unwrap_err();
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
            assert_eq!(Counted::parse(target), Err(CounterError), "{target}");
        }
        Counted::parse("/a?b=2&_gateway_replay=1").expect("as we write it");
    }
}
