//! The line of a request, written by hand: there is one for each, and `env_logger`'s way takes thirty allocations for it.
//!
//! Byte for byte the same line as [`super::line`] would write.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{AccessLine, Format};

/// One thread's: memory that is used again, and the time as text, which stays the same for a second.
#[derive(Debug)]
pub(super) struct Writer {
    line: Vec<u8>,
    start: [u8; START.len()],
    second: Option<u64>,
}

impl Writer {
    pub(super) const fn new() -> Self {
        Self { line: Vec::new(), start: *START, second: None }
    }

    /// The line, with the end of line.
    pub(super) fn write(&mut self, format: Format, line: &AccessLine<'_>, now: SystemTime) -> &[u8] {
        self.line.clear();
        match format {
            Format::Json => self.write_json(line, now),
            Format::Text => self.write_text(line),
        }
        &self.line
    }

    fn write_json(&mut self, line: &AccessLine<'_>, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second.replace(now.as_secs()) != Some(now.as_secs()) {
            let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(now.as_secs())).to_string();
            self.start[TIME..TIME + 19].copy_from_slice(&text.as_bytes()[..19]);
        }
        self.start[TIME + 20..TIME + 23].copy_from_slice(&last_digits(now.subsec_millis().into()));
        self.start[ID..ID + 32].copy_from_slice(&line.request_id.0);

        let out = &mut self.line;
        out.extend_from_slice(&self.start);
        push_quoted(out, line.method);
        out.extend_from_slice(b",\"route\":");
        push_quoted(out, line.route);
        out.extend_from_slice(b",\"datahub\":");
        push_quoted(out, line.datahub);
        out.extend_from_slice(b",\"status\":");
        push_number(out, line.status.into());
        out.extend_from_slice(b",\"code\":");
        push_quoted(out, line.code);
        out.extend_from_slice(b",\"duration_ms\":");
        push_milliseconds(out, line.duration);
        out.extend_from_slice(b",\"upstream_ms\":");
        match line.upstream {
            Some(upstream) => push_milliseconds(out, upstream),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"bytes_in\":");
        push_number(out, line.bytes_in);
        out.extend_from_slice(b",\"bytes_out\":");
        push_number(out, line.bytes_out);
        out.extend_from_slice(b",\"replay\":");
        push_number(out, line.replay.into());
        out.extend_from_slice(if line.is_anonymous { b",\"anonymous\":true}\n" } else { b"}\n" });
    }

    fn write_text(&mut self, line: &AccessLine<'_>) {
        let out = &mut self.line;
        out.extend_from_slice(b"INFO  request");
        let texts: [(&[u8], &str); 3] =
            [(b" method=", line.method), (b" route=", line.route), (b" datahub=", line.datahub)];
        for (name, text) in texts {
            push_text(out, name, text);
        }
        out.extend_from_slice(b" status=");
        push_number(out, line.status.into());
        push_text(out, b" code=", line.code);
        out.extend_from_slice(b" duration_ms=");
        push_milliseconds(out, line.duration);
        if let Some(upstream) = line.upstream {
            out.extend_from_slice(b" upstream_ms=");
            push_milliseconds(out, upstream);
        }
        out.extend_from_slice(b" bytes_in=");
        push_number(out, line.bytes_in);
        out.extend_from_slice(b" bytes_out=");
        push_number(out, line.bytes_out);
        out.extend_from_slice(b" replay=");
        push_number(out, line.replay.into());
        out.extend_from_slice(if line.is_anonymous { b" anonymous=true\n" } else { b"\n" });
    }
}

/// A field of a line for people, who do not want to read of what there is not.
fn push_text(out: &mut Vec<u8>, name: &[u8], text: &str) {
    if text.is_empty() {
        return;
    }
    out.extend_from_slice(name);
    if text.chars().any(char::is_control) {
        let quoted = serde_json::Value::from(text).to_string();
        let quoted: String = quoted.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        out.extend_from_slice(quoted.as_bytes());
    } else {
        push_quoted(out, text);
    }
}

/// A text as JSON has it.
fn push_quoted(out: &mut Vec<u8>, text: &str) {
    if text.bytes().fold(false, |is_special, byte| is_special | IS_SPECIAL[usize::from(byte)]) {
        serde_json::to_writer(out, text).expect("a text always serialises, and a Vec takes everything");
    } else {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    }
}

/// Rounded to a thousandth, and without zeros at the end but the one that a point needs.
fn push_milliseconds(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::from(duration.subsec_nanos() + 500) / 1_000;
    let micros = duration.as_secs().saturating_mul(1_000_000).saturating_add(micros);
    push_number(out, micros / 1_000);
    match last_digits(micros) {
        [tenths, b'0', b'0'] => out.extend_from_slice(&[b'.', tenths]),
        [tenths, hundredths, b'0'] => out.extend_from_slice(&[b'.', tenths, hundredths]),
        [tenths, hundredths, thousandths] => out.extend_from_slice(&[b'.', tenths, hundredths, thousandths]),
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    let digits @ [_, tens, ones] = last_digits(number);
    match number {
        0..10 => out.push(ones),
        10..100 => out.extend_from_slice(&[tens, ones]),
        100..1_000 => out.extend_from_slice(&digits),
        _ => {
            push_number(out, number / 1_000);
            out.extend_from_slice(&digits);
        }
    }
}

/// The last three digits of a number.
fn last_digits(number: u64) -> [u8; 3] {
    let last = (number % 1_000) as u16;
    [last / 100, last / 10, last].map(|number| b'0' + (number % 10) as u8)
}

const START: &[u8; 145] =
    b"{\"time\":\"2000-01-01T00:00:00.000Z\",\"level\":\"INFO\",\"target\":\"access\",\"message\":\"request\",\
    \"request_id\":\"00000000000000000000000000000000\",\"method\":";
/// Where the time is in it.
const TIME: usize = 9;
/// Where the request's id is in it.
const ID: usize = 102;
/// Which bytes JSON escapes in a text.
const IS_SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = true;
        control += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table
};

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use log::{Level, Record};

    use super::super::{RequestId, line};
    use super::*;

    #[test]
    fn a_line_is_the_one_that_env_logger_would_write() {
        let usual = AccessLine {
            request_id: RequestId::next(),
            method: "GET",
            route: "/datahubs/{datahub}/{path}",
            datahub: "tuebingen",
            status: 200,
            code: "",
            duration: Duration::from_micros(12_345),
            upstream: Some(Duration::from_millis(12)),
            bytes_in: 0,
            bytes_out: 3_010,
            replay: 0,
            is_anonymous: false,
        };
        let mut lines = vec![usual, AccessLine { is_anonymous: true, ..usual }];
        for text in [
            "",
            "-",
            "a\"b",
            "a\\b",
            "\r\n{\"level\":\"ERROR\"}",
            "\u{1b}[2J",
            "\0",
            "\u{7f}",
            "\u{85}",
            "ü{path}",
            "\u{202e}",
            "\t",
        ] {
            lines.push(AccessLine { route: text, ..usual });
            lines.push(AccessLine { method: text, ..usual });
            lines.push(AccessLine { datahub: text, code: text, upstream: None, ..usual });
        }
        for number in [0, 1, 9, 10, 99, 100, 101, 999, 1_000, 1_001, 65_535, 1_000_000, 4_294_967_296, u64::MAX / 2] {
            let duration = Duration::from_micros(number.min(1 << 50));
            let (status, replay) = (u16::try_from(number).unwrap_or(499), u8::try_from(number).unwrap_or(16));
            let (bytes_in, bytes_out, upstream) = (number, u64::MAX - number, Some(duration / 3));
            lines.push(AccessLine { status, duration, upstream, bytes_in, bytes_out, replay, ..usual });
        }
        for nanos in [1, 499, 501, 1_499, 999_400, 999_600, 999_999_499, 999_999_501, 1_999_999_999] {
            lines.push(AccessLine { duration: Duration::from_nanos(nanos), ..usual });
        }
        let mut writer = Writer::new();
        for line in &lines {
            let by_hand =
                String::from_utf8(writer.write(Format::Json, line, SystemTime::now()).to_vec()).expect("UTF-8");
            // The time is the hand's: the other one has read another clock.
            assert_eq!(untimed(&by_hand), untimed(&by_env_logger(Format::Json, line)), "{line:?}");
            let read: serde_json::Value = serde_json::from_str(&by_hand).expect(&by_hand);
            for (name, text) in
                [("method", line.method), ("route", line.route), ("datahub", line.datahub), ("code", line.code)]
            {
                assert_eq!(read[name], text, "{by_hand}");
            }
            assert_eq!((&read["bytes_in"], &read["bytes_out"]), (&line.bytes_in.into(), &line.bytes_out.into()));
            assert_eq!(by_hand.matches('\n').count(), 1);

            let by_hand =
                String::from_utf8(writer.write(Format::Text, line, SystemTime::now()).to_vec()).expect("UTF-8");
            assert_eq!(by_hand, by_env_logger(Format::Text, line), "{line:?}");
        }
    }

    #[test]
    fn a_line_has_its_own_time_in_the_same_second_and_in_another() {
        let line = AccessLine {
            request_id: RequestId::next(),
            method: "GET",
            route: "",
            datahub: "",
            status: 200,
            code: "",
            duration: Duration::ZERO,
            upstream: None,
            bytes_in: 0,
            bytes_out: 0,
            replay: 0,
            is_anonymous: false,
        };
        let mut writer = Writer::new();
        let start = UNIX_EPOCH + Duration::from_secs(1_767_225_599);
        for millis in [0, 7, 70, 999, 1_000, 1_001, 500, 86_400_000 * 59 + 12] {
            let now = start + Duration::from_millis(millis);
            let written = String::from_utf8_lossy(writer.write(Format::Json, &line, now)).into_owned();
            let time = humantime::format_rfc3339_millis(now).to_string();
            assert_eq!(serde_json::from_str::<serde_json::Value>(&written).expect(&written)["time"], time);
        }
    }

    fn untimed(line: &str) -> &str {
        line.strip_prefix("{\"time\":\"").and_then(|rest| rest.get(24..)).expect("a time first")
    }

    fn by_env_logger(format: Format, line: &AccessLine<'_>) -> String {
        let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let fields: [(&str, log::kv::Value<'_>); 12] = [
            ("request_id", line.request_id.as_str().into()),
            ("method", line.method.into()),
            ("route", line.route.into()),
            ("datahub", line.datahub.into()),
            ("status", line.status.into()),
            ("code", line.code.into()),
            ("duration_ms", milliseconds(line.duration).into()),
            ("upstream_ms", line.upstream.map_or_else(log::kv::Value::null, |upstream| milliseconds(upstream).into())),
            ("bytes_in", line.bytes_in.into()),
            ("bytes_out", line.bytes_out.into()),
            ("replay", line.replay.into()),
            ("anonymous", true.into()),
        ];
        // The last one only where it is true.
        let fields = &fields[..if line.is_anonymous { 12 } else { 11 }];
        let mut record = Record::builder();
        record.level(Level::Info).target("access").key_values(&fields);
        let (mut out, write) = match format {
            Format::Json => (Vec::new(), line::write_json as fn(&mut dyn Write, &Record<'_>) -> io::Result<()>),
            Format::Text => (Vec::new(), line::write_text as _),
        };
        write(&mut out, &record.args(format_args!("request")).build()).expect("a Vec takes everything");
        String::from_utf8(out).expect("UTF-8")
    }
}
