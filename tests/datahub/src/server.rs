//! Accepts connections, answers request after request on each, and misbehaves where a test said so.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::behaviour::{Answer, Framing};
use crate::http::body::Body;
use crate::http::response::Response;
use crate::http::{Connection, Request};
use crate::hub::Hub;
use crate::params::Params;
use crate::{api, oauth, pages};

pub async fn run(listener: TcpListener, hub: Arc<Hub>) {
    for number in 1.. {
        // An error here is a peer that went away, or too few descriptors for a moment.
        if let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, number, hub.clone()));
        }
    }
}

async fn serve(stream: TcpStream, number: u64, hub: Arc<Hub>) {
    stream.set_nodelay(true).ok();
    let mut connection = Connection::new(stream, number);
    if let Err(error) = converse(&mut connection, &hub).await
        && error.kind() == io::ErrorKind::InvalidData
    {
        connection.send_raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.ok();
    }
}

async fn converse(connection: &mut Connection, hub: &Hub) -> io::Result<()> {
    while let Some((request, mut body)) = connection.receive(&hub.recorder).await? {
        let params = if oauth::serves(request.path()) { Params::read(&request, &mut body).await? } else { None };
        let _under_way = oauth::is_token_request(&request).then(|| {
            let grant_type = params.as_ref().and_then(|params| params.text("grant_type"));
            hub.begin_token_request(grant_type == Some("refresh_token"))
        });
        let (manner, jitter) = {
            let behaviour = hub.behaviour();
            (behaviour.manner(request.path()).clone(), behaviour.jitter)
        };
        jitter.pass().await;
        pass(manner.delay).await;
        let reply = reply(hub, &request, params.as_ref(), &mut body, manner.answer).await?;
        pass(manner.answer_delay).await;
        jitter.pass().await;
        let close = request.wants_close() || body.may_never_come() || manner.framing == Framing::UntilClose;
        if !body.may_never_come() {
            body.drain().await?;
        }
        match reply {
            Reply::Response(response) => {
                if manner.early_hints {
                    connection.send_raw(EARLY_HINTS).await?;
                }
                connection.send(&request, response, manner.framing, close).await?;
            }
            Reply::Raw(bytes) => return connection.send_raw(&bytes).await,
            Reply::Endless { begin, again } => {
                connection.send_raw(&begin).await?;
                loop {
                    connection.send_raw(&again).await?;
                    // A socket that always takes more would keep a thread from all other connections.
                    tokio::task::yield_now().await;
                }
            }
            Reply::Hang => return connection.hang().await,
            Reply::Nothing => return Ok(()),
        }
        if close {
            break;
        }
    }
    Ok(())
}

async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

enum Reply {
    Response(Response),
    Raw(Vec<u8>),
    Endless { begin: Vec<u8>, again: Vec<u8> },
    Hang,
    Nothing,
}

async fn reply(
    hub: &Hub,
    request: &Request,
    params: Option<&Params>,
    body: &mut Body<'_>,
    answer: Answer,
) -> io::Result<Reply> {
    if !matches!(answer, Answer::Normal | Answer::LoseAnswer) {
        body.drain().await?;
    }
    Ok(match answer {
        Answer::Normal => Reply::Response(route(hub, request, params, body).await?),
        Answer::LoseAnswer => {
            route(hub, request, params, body).await?;
            Reply::Nothing
        }
        Answer::Status(429) => Reply::Response(Response::throttled("60")),
        Answer::Throttled { retry_after } => Reply::Response(Response::throttled(&retry_after)),
        Answer::OauthError { status, error } => Reply::Response(oauth::error(status, &error, &error)),
        Answer::Status(status) => Reply::Response(Response::json(status, &json!({ "message": status.to_string() }))),
        Answer::Html(status) => Reply::Response(Response::html(status, pages::upgrade(hub))),
        Answer::Redirect(location) => Reply::Response(Response::redirect(302, &location)),
        Answer::Raw(bytes) => Reply::Raw(bytes),
        Answer::Endless { begin, again } => Reply::Endless { begin, again },
        Answer::Hang => Reply::Hang,
        Answer::CloseWithoutAnswer => Reply::Nothing,
    })
}

async fn route(hub: &Hub, request: &Request, params: Option<&Params>, body: &mut Body<'_>) -> io::Result<Response> {
    let path = request.path();
    if path == "/" {
        Ok(Response::html(200, pages::status(hub)))
    } else if path.starts_with("/api/") {
        api::answer(hub, request, body).await
    } else if oauth::serves(path) {
        Ok(oauth::answer(hub, request, params).await)
    } else {
        Ok(Response::html(404, pages::not_found(hub)))
    }
}

const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload; as=style\r\n\r\n";
