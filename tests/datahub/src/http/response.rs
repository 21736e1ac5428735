//! A response, until it is written.

use std::time::Duration;

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub content: Content,
}

pub enum Content {
    Bytes(Vec<u8>),
    /// So many bytes; the one at offset `i` is `i % 251`.
    Blob(u64),
    /// Of unknown length: a chunk each, with a pause after it.
    Pieces {
        pieces: Vec<Vec<u8>>,
        pause: Duration,
    },
}

impl Response {
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), content: Content::Bytes(Vec::new()) }
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status).header("Content-Type", "application/json").content(Content::Bytes(body.to_string().into()))
    }

    pub fn html(status: u16, page: String) -> Self {
        Self::new(status).header("Content-Type", "text/html; charset=utf-8").content(Content::Bytes(page.into()))
    }

    pub fn redirect(status: u16, location: &str) -> Self {
        Self::new(status).header("Location", location)
    }

    /// As Rack::Attack does.
    pub fn throttled(retry_after: &str) -> Self {
        let told = Self::new(429).header("Content-Type", "text/plain").header("Retry-After", retry_after);
        told.content(Content::Bytes(b"Retry later\n".to_vec()))
    }

    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Adds a field unless there is one of this name.
    pub fn default_header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let given = self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if given { self } else { self.header(name, value) }
    }

    pub fn content(mut self, content: Content) -> Self {
        self.content = content;
        self
    }
}

pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}
