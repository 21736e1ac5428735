//! How a line of the log is written.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::SystemTime;

use log::Record;
use log::kv::{self, Key, Value, VisitSource, VisitValue};

use super::{CURRENT, chain};

/// As one JSON object.
pub(super) fn write_json(out: &mut dyn Write, record: &Record<'_>) -> io::Result<()> {
    let mut line = String::with_capacity(512);
    line.push_str("{\"time\":\"");
    line.push_str(&humantime::format_rfc3339_millis(SystemTime::now()).to_string());
    line.push_str("\",\"level\":\"");
    line.push_str(record.level().as_str());
    line.push('"');
    let mut fields = JsonFields { line: &mut line, has_request_id: false };
    fields.put("target", record.target());
    fields.put("message", record.args().to_string());
    let visited = record.key_values().visit(&mut fields);
    if !fields.has_request_id {
        let _ = CURRENT.try_with(|id| fields.put("request_id", id.as_str()));
    }
    visited.map_err(io::Error::other)?;
    line.push_str("}\n");
    out.write_all(line.as_bytes())
}

/// For people.
pub(super) fn write_text(out: &mut dyn Write, record: &Record<'_>) -> io::Result<()> {
    let mut line = format!("{:5} {}", record.level(), record.args());
    let visited = record.key_values().visit(&mut TextFields(&mut line));
    visited.map_err(io::Error::other)?;
    // A line is a line, whatever a library puts into its message.
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    writeln!(out, "{line}")
}

struct JsonFields<'a> {
    line: &'a mut String,
    has_request_id: bool,
}

impl JsonFields<'_> {
    fn put(&mut self, name: &str, value: impl serde::Serialize) {
        self.line.push(',');
        self.line.push_str(&serde_json::to_string(name).expect("a string always serialises"));
        self.line.push(':');
        self.line.push_str(&serde_json::to_string(&value).expect("a plain value always serialises"));
    }
}

impl<'kvs> VisitSource<'kvs> for JsonFields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.has_request_id |= key.as_str() == "request_id";
        let mut plain = Plain(serde_json::Value::Null);
        value.visit(&mut plain)?;
        self.put(key.as_str(), plain.0);
        Ok(())
    }
}

/// A field's value, as JSON has it.
struct Plain(serde_json::Value);

impl VisitValue<'_> for Plain {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_error(&mut self, error: &(dyn std::error::Error + 'static)) -> Result<(), kv::Error> {
        self.0 = chain(error).into();
        Ok(())
    }
}

struct TextFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for TextFields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut plain = Plain(serde_json::Value::Null);
        value.visit(&mut plain)?;
        if key.as_str() != "request_id" && !plain.0.is_null() && plain.0 != "" {
            let _ = write!(self.0, " {key}={}", plain.0);
        }
        Ok(())
    }
}
