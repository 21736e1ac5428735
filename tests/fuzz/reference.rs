//! HTTP/1.1 read a second time: slowly, on bytes that are all there, and by the RFC's own words. What the gateway makes of
//! bytes that arrive in pieces must be the same.

/// The head of a request, and where it ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub method: String,
    pub target: String,
    pub is_http_1_1: bool,
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub framing: Framing,
    pub expects_continue: bool,
    pub is_persistent: bool,
    pub end: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunks,
}

/// What a body is, as far as it goes, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// After so many bytes.
    Whole(usize),
    /// More must come.
    Open,
    Malformed,
}

/// The head that `bytes` begin with: nothing if its end is not there, an error for what is none.
pub fn head(bytes: &[u8], most_bytes: usize, most_fields: usize) -> Option<Result<Head, ()>> {
    let start = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let end = start + bytes[start..].windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    Some(whole_head(&bytes[start..end - 4], end, most_fields).filter(|_| end <= most_bytes).ok_or(()))
}

fn whole_head(text: &[u8], end: usize, most_fields: usize) -> Option<Head> {
    let mut lines = lines(text).into_iter();
    let [method, target, version] = lines.next()?.split(|byte| *byte == b' ').collect::<Vec<_>>().try_into().ok()?;
    let is_http_1_1 = version == b"HTTP/1.1";
    let is_version = is_http_1_1 || version == b"HTTP/1.0";
    if !is_version || !is_token(method) || method.iter().any(|byte| b"#$%&'".contains(byte)) || !is_target(target) {
        return None;
    }
    let fields: Vec<_> = lines.map(field).collect::<Option<_>>()?;
    let values = |name: &[u8]| {
        let is_name = |field: &&(Vec<u8>, Vec<u8>)| field.0.eq_ignore_ascii_case(name);
        fields.iter().filter(is_name).map(|field| field.1.as_slice()).collect::<Vec<_>>()
    };
    let is_disguised = |field: &(Vec<u8>, Vec<u8>)| {
        let name: Vec<_> =
            field.0.to_ascii_lowercase().iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
        field.0.contains(&b'_') && (name == b"content-length" || name == b"transfer-encoding")
    };
    let framing = match (&values(b"content-length")[..], &values(b"transfer-encoding")[..]) {
        ([], []) => Framing::None,
        ([length], []) if !length.is_empty() && length.iter().all(u8::is_ascii_digit) => {
            Framing::Length(std::str::from_utf8(length).ok()?.parse().ok()?)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && is_http_1_1 => Framing::Chunks,
        _ => return None,
    };
    let (hosts, expectations) = (values(b"host").len(), values(b"expect"));
    let needs_length = method == b"POST" && !is_http_1_1;
    if fields.len() > most_fields
        || fields.iter().any(is_disguised)
        || hosts > 1
        || (hosts == 0 && is_http_1_1)
        || expectations.len() > 1
        || (needs_length && framing == Framing::None)
    {
        return None;
    }
    let options = values(b"connection").join(&b',').to_ascii_lowercase();
    let has = |option: &[u8]| options.split(|byte| *byte == b',').any(|one| one.trim_ascii() == option);
    Some(Head {
        method: String::from_utf8(method.to_vec()).ok()?,
        target: String::from_utf8(target.to_vec()).ok()?,
        is_http_1_1,
        framing,
        expects_continue: is_http_1_1 && expectations.iter().any(|value| value.eq_ignore_ascii_case(b"100-continue")),
        is_persistent: !has(b"close") && !has(b"upgrade") && (is_http_1_1 || has(b"keep-alive")),
        fields,
        end,
    })
}

fn field(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    (is_token(name) && is_text(value)).then(|| (name.to_vec(), value[start..end].to_vec()))
}

/// The data of the chunks that `bytes` begin with, and how they end.
pub fn chunks(bytes: &[u8]) -> (Vec<u8>, End) {
    let mut data = Vec::new();
    let end = read_chunks(bytes, &mut data).unwrap_or_else(|end| end);
    (data, end)
}

fn read_chunks(bytes: &[u8], data: &mut Vec<u8>) -> Result<End, End> {
    let (mut at, mut extras) = (0, 0);
    loop {
        let size = next_line(bytes, &mut at, |line, is_whole| {
            let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            let extension = &line[digits..];
            extras += extension.len().saturating_sub(1);
            (extension.is_empty() || extension[0] == b';')
                && (digits > 0 || (line.is_empty() && !is_whole))
                && digits <= MOST_DIGITS
                && is_text(extension)
                && extras <= MOST_EXTRAS
        })?;
        let digits = size.split(|byte| *byte == b';').next().expect("what stands before the first one");
        let size = usize::from_str_radix(std::str::from_utf8(digits).expect("digits"), 16).expect("15 of them");
        if size == 0 {
            break;
        }
        let there = &bytes[at..bytes.len().min(at + size)];
        data.extend_from_slice(there);
        at += there.len();
        next_line(bytes, &mut at, |line, _| line.is_empty())?;
    }
    loop {
        let trailer = next_line(bytes, &mut at, |line, is_whole| {
            let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
            extras += name.len() + value.len().saturating_sub(1);
            let is_field = is_token(name) && is_text(value) && (!value.is_empty() || !is_whole);
            (line.is_empty() || is_field) && extras <= MOST_EXTRAS
        })?;
        if trailer.is_empty() {
            return Ok(End::Whole(at));
        }
    }
}

/// The next line without its end, if `is_good` likes it, or what there is of it.
fn next_line<'a>(bytes: &'a [u8], at: &mut usize, is_good: impl FnOnce(&[u8], bool) -> bool) -> Result<&'a [u8], End> {
    let rest = &bytes[*at..];
    let (line, end) = rest.split_at(rest.iter().position(|byte| *byte == b'\r').unwrap_or(rest.len()));
    if !is_good(line, !end.is_empty()) || end.get(1).is_some_and(|byte| *byte != b'\n') {
        return Err(End::Malformed);
    }
    *at += line.len() + 2;
    if end.len() < 2 { Err(End::Open) } else { Ok(line) }
}

/// Percent-decoded once; what is no escape stays.
pub fn decoded(text: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let value = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match value.and_then(|value| u8::from_str_radix(value, 16).ok()).filter(|_| *byte == b'%') {
            Some(value) => {
                out.push(value);
                rest = &after[2..];
            }
            None => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    let (mut lines, mut start) = (Vec::new(), 0);
    for at in 0..text.len() {
        if text[at..].starts_with(b"\r\n") {
            lines.push(&text[start..at]);
            start = at + 2;
        }
    }
    lines.push(&text[start..]);
    lines
}

fn is_target(target: &[u8]) -> bool {
    let query = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let is_good = |part: &[u8], bad: &[u8]| part.iter().all(|byte| byte.is_ascii_graphic() && !bad.contains(byte));
    !target.is_empty() && is_good(&target[..query], b"#<>`") && is_good(&target[query..], b"#<>\"")
}

fn is_token(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn is_text(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

/// Of a chunk's size.
const MOST_DIGITS: usize = 15;
/// Bytes in extensions and trailers.
const MOST_EXTRAS: usize = 8 * 1024;
