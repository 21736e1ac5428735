//! Anything as what a browser's connection carries: the requests and bodies are those that a second reader finds, whichever
//! way they arrive, and however long they take the connection ends.
//!
//! Both ends run as one task on a pair of sockets, by a clock that goes on to the next deadline whenever both wait. An input
//! begins with a byte that says how it is sent, and one from which the pieces follow.
#![no_main]

use std::num::NonZeroU64;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use arcmanager_gateway::http::admission::ConnectionLimit;
use arcmanager_gateway::http::buffer::BufferPool;
use arcmanager_gateway::http::date::DateClock;
use arcmanager_gateway::http::head::HeadLimits;
use arcmanager_gateway::http::server::{BodyError, ClientTimeouts, RequestError, ServerConnection, ServerSettings};
use libfuzzer_sys::fuzz_target;
use reference::{End, Framing};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (manner, seed, bytes) = input;
    let manner =
        Manner { is_slow: manner & 1 > 0, stays: manner & 2 > 0, reads: manner & 4 == 0, works: manner & 8 > 0 };
    let bytes = &bytes[..bytes.len().min(4_000)];
    let (served, answers) = RUNTIME.with(|runtime| runtime.block_on(exchange(manner, seed, bytes)));
    let expected = expected(manner, bytes);
    if manner.is_slow {
        // A deadline may end it anywhere.
        let count = served.requests.len();
        let is_end = |(served, expected): (&Request, &Request)| {
            served == expected || (served.0 == expected.0 && !matches!(served.1, Body::Whole(_)))
        };
        assert!(count <= expected.requests.len() && served.requests.iter().zip(&expected.requests).all(is_end));
    } else {
        assert_eq!(served.requests, expected.requests, "{manner:?}");
        assert!(served.is_refused || !expected.is_refused, "{manner:?}");
    }
    assert_eq!(answers, served.requests.len() + usize::from(served.is_refused), "{manner:?}");
});

/// How a client sends, and what is done with what it sends.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// With pauses of up to a minute.
    is_slow: bool,
    /// It does not close its half in the end.
    stays: bool,
    /// Bodies are read.
    reads: bool,
    /// An answer takes a while.
    works: bool,
}

/// What was asked, and the body.
type Request = ((String, String), Body);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    Whole(Vec<u8>),
    Unread,
    TooLarge,
    Malformed,
    Broken,
}

#[derive(Debug, Default)]
struct Served {
    requests: Vec<Request>,
    /// Whether what came then was no request.
    is_refused: bool,
}

/// What a server made of `bytes`, and how many answers the client has had.
async fn exchange(manner: Manner, seed: u8, bytes: &[u8]) -> (Served, usize) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let shutdown = CancellationToken::new().cancelled_owned();
    let settings =
        ServerSettings { head: HEAD, body: MOST_BODY as u64, body_rate: NonZeroU64::MIN, timeouts: TIMEOUTS };
    let (settings, pool) = (Rc::new(settings), BufferPool::default());
    let admission = ConnectionLimit::new(1).admit(None).expect("the first");
    let connection = ServerConnection::new(Either::Right(ours), settings, admission, pool, shutdown, Arc::default());
    let begun = Instant::now();
    let (mut read, mut write) = theirs.into_split();
    let sending = async {
        let (mut random, mut rest) = (u64::from(seed) + 1, bytes);
        while !rest.is_empty() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (length, pause) = (1 + (random >> 40) % [1, 5, 100, 4_000][usize::from(seed) % 4], random >> 60);
            let (piece, others) = rest.split_at((length as usize).min(rest.len()));
            rest = others;
            if write.write_all(piece).await.is_err() {
                break;
            }
            if manner.is_slow && pause == 0 {
                sleep(Duration::from_secs((random >> 50) % 60)).await;
            } else if pause < 12 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        if !manner.stays {
            let _ = write.shutdown().await;
        }
        write
    };
    let hearing = async {
        let mut answers = Vec::new();
        let _ = read.read_to_end(&mut answers).await;
        String::from_utf8(answers).expect("our own answers")
    };
    let (_write, text, served) = tokio::join!(sending, hearing, serve(connection, manner));
    assert!(begun.elapsed() < Duration::from_hours(24), "it has ended");
    let answers = text.split_inclusive("\r\n\r\n").filter(|answer| *answer != "HTTP/1.1 100 Continue\r\n\r\n");
    let answers = answers.inspect(|answer| assert!(answer.ends_with("\r\n\r\n"))).count();
    (served, answers)
}

/// Answers whatever comes, as the gateway does.
async fn serve(mut connection: ServerConnection, manner: Manner) -> Served {
    let mut served = Served::default();
    loop {
        let request = match connection.next_request().await {
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(RequestError::Head(_) | RequestError::Timeout) => {
                connection.decide_persistence(true, false);
                answer(&mut connection).await;
                served.is_refused = true;
                break;
            }
            Err(RequestError::Displaced(_)) => unreachable!("there is no other connection"),
        };
        let is_read = manner.reads || request.body.is_empty();
        let body = if is_read { read(&mut connection).await } else { Body::Unread };
        served.requests.push(((request.method().to_string(), request.target().to_owned()), body));
        if manner.works {
            // Whoever seems to leave has only said all.
            let _ = connection.unless_client_leaves(pin!(sleep(Duration::from_millis(7)))).await;
        }
        connection.decide_persistence(false, false);
        answer(&mut connection).await;
    }
    connection.close().await;
    served
}

async fn answer(connection: &mut ServerConnection) {
    let mut head = Vec::new();
    connection.write_status_line(StatusCode::NO_CONTENT, &mut head);
    connection.end_head(b"id", &DateClock::default(), &mut head);
    connection.write_piece(&mut head, b"").await.expect("the client reads");
}

async fn read(connection: &mut ServerConnection) -> Body {
    let mut body = Vec::new();
    loop {
        match connection.next_piece().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Body::Whole(body),
            Err(BodyError::TooLarge) => return Body::TooLarge,
            Err(BodyError::Malformed) => return Body::Malformed,
            Err(BodyError::Timeout | BodyError::Gone(_) | BodyError::Displaced(_)) => return Body::Broken,
        }
    }
}

/// What a second reader finds in `bytes` that are all there.
fn expected(manner: Manner, bytes: &[u8]) -> Served {
    let (mut served, mut rest) = (Served::default(), bytes);
    loop {
        let head = match reference::head(rest, HEAD.length, HEAD.fields) {
            None => return served,
            Some(Err(())) => return Served { is_refused: true, ..served },
            Some(Ok(head)) => head,
        };
        rest = &rest[head.end..];
        let (data, end) = match head.framing {
            Framing::None => (Vec::new(), End::Whole(0)),
            Framing::Chunks => reference::chunks(rest),
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= rest.len() => (rest[..length].to_vec(), End::Whole(length)),
                _ => (rest.to_vec(), End::Open),
            },
        };
        let is_empty = matches!(head.framing, Framing::None | Framing::Length(0));
        let body = match &end {
            _ if !manner.reads && !is_empty => Body::Unread,
            _ if data.len() > MOST_BODY => Body::TooLarge,
            End::Whole(_) => Body::Whole(data),
            End::Open => Body::Broken,
            End::Malformed => Body::Malformed,
        };
        let goes_on = head.is_persistent && matches!(body, Body::Whole(_));
        served.requests.push(((head.method, head.target), body));
        match end {
            End::Whole(end) if goes_on => rest = &rest[end..],
            _ => return served,
        }
    }
}

thread_local! {
    static RUNTIME: Runtime =
        Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
}

const HEAD: HeadLimits = HeadLimits { length: 512, fields: 8 };
const MOST_BODY: usize = 200;
const TIMEOUTS: ClientTimeouts =
    ClientTimeouts { head: Duration::from_secs(10), body: Duration::from_secs(30), answer: Duration::from_secs(60) };
