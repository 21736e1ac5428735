//! Accepts connections, answers request after request on each, and misbehaves where a test said so.

use std::io;
use std::sync::Arc;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::behaviour::Answer;
use crate::http::body::Body;
use crate::http::response::{Content, Response};
use crate::http::{Connection, Request};
use crate::hub::Hub;
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
        let jitter = hub.behaviour().jitter;
        jitter.pass().await;
        let reply = reply(hub, &request, &mut body).await?;
        jitter.pass().await;
        let close = request.wants_close() || body.may_never_come();
        if !body.may_never_come() {
            body.drain().await?;
        }
        match reply {
            Reply::Response(response) => connection.send(&request, response, close).await?,
            Reply::Raw(bytes) => return connection.send_raw(&bytes).await,
            Reply::Hang => return connection.hang().await,
            Reply::Nothing => return Ok(()),
        }
        if close {
            break;
        }
    }
    Ok(())
}

enum Reply {
    Response(Response),
    Raw(Vec<u8>),
    Hang,
    Nothing,
}

async fn reply(hub: &Hub, request: &Request, body: &mut Body<'_>) -> io::Result<Reply> {
    let manner = hub.behaviour().manner(request.path()).clone();
    if !manner.delay.is_zero() {
        tokio::time::sleep(manner.delay).await;
    }
    if !matches!(manner.answer, Answer::Normal | Answer::LoseAnswer) {
        body.drain().await?;
    }
    Ok(match manner.answer {
        Answer::Normal => Reply::Response(route(hub, request, body).await?),
        Answer::LoseAnswer => {
            route(hub, request, body).await?;
            Reply::Nothing
        }
        Answer::Status(429) => Reply::Response(
            Response::new(429)
                .header("Content-Type", "text/plain")
                .header("Retry-After", "60")
                .content(Content::Bytes(b"Retry later\n".to_vec())),
        ),
        Answer::Status(status) => Reply::Response(Response::json(status, &json!({ "message": status.to_string() }))),
        Answer::Html(status) => Reply::Response(Response::html(status, pages::upgrade(hub))),
        Answer::Redirect(location) => Reply::Response(Response::redirect(302, &location)),
        Answer::Raw(bytes) => Reply::Raw(bytes),
        Answer::Hang => Reply::Hang,
        Answer::CloseWithoutAnswer => Reply::Nothing,
    })
}

async fn route(hub: &Hub, request: &Request, body: &mut Body<'_>) -> io::Result<Response> {
    let path = request.path();
    if path == "/" {
        Ok(Response::html(200, pages::status(hub)))
    } else if path.starts_with("/api/") {
        api::answer(hub, request, body).await
    } else if path.starts_with("/oauth/") || path.starts_with("/.well-known/") {
        oauth::answer(hub, request, body).await
    } else {
        Ok(Response::html(404, pages::not_found(hub)))
    }
}
