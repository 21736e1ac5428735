//! What a request asks for, as Rack sees it: its query and its form or JSON body in one map.

use std::io;

use serde_json::{Map, Value};

use crate::http::Request;
use crate::http::body::Body;

#[derive(Default)]
pub struct Params(Map<String, Value>);

impl Params {
    /// Reads the body too. `None` if it is not what its `Content-Type` says, or too long to hold.
    pub async fn read(request: &Request, body: &mut Body<'_>) -> io::Result<Option<Self>> {
        let mut params = Self::default();
        params.add_pairs(request.query().as_bytes());
        let Some(bytes) = body.read(MAX_BODY_BYTES).await? else {
            return Ok(None);
        };
        let content_type = request.header("content-type").unwrap_or_default();
        if content_type.starts_with("application/x-www-form-urlencoded") {
            params.add_pairs(&bytes);
        } else if content_type.starts_with("application/json") && !bytes.is_empty() {
            match serde_json::from_slice(&bytes) {
                Ok(Value::Object(object)) => params.0.extend(object),
                _ => return Ok(None),
            }
        }
        Ok(Some(params))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(Value::Bool(true))) || matches!(self.text(name), Some("true" | "1"))
    }

    pub fn list(&self, name: &str) -> Option<&Vec<Value>> {
        self.0.get(name)?.as_array()
    }

    fn add_pairs(&mut self, encoded: &[u8]) {
        for (name, value) in form_urlencoded::parse(encoded) {
            self.0.insert(name.into_owned(), Value::String(value.into_owned()));
        }
    }
}

impl From<Map<String, Value>> for Params {
    fn from(map: Map<String, Value>) -> Self {
        Self(map)
    }
}

/// Holds a file of 50 MiB in base64.
const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;
