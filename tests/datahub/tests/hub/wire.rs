//! HTTP/1.1 as it is on the wire, and what is recorded of it.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::client::{Client, bearer, get, hub, send, token};

#[test]
fn a_request_is_recorded_byte_for_byte() {
    let hub = hub();
    let mut client = Client::connect(&hub);
    let head =
        "POST /api/v4/x%2fy/?a=b+c&& HTTP/1.1\r\nhOsT: hub\r\nX-Twice: 1\r\nx-twice:  2\r\nContent-Length: 5\r\n\r\n";
    client.write(format!("{head}hello"));
    client.answer(true);
    let [request] = &hub.requests()[..] else { panic!("one request") };
    assert_eq!(request.head, head.as_bytes());
    assert_eq!((request.method().as_str(), request.target().as_str()), ("POST", "/api/v4/x%2fy/?a=b+c&&"));
    assert_eq!(request.header_values("X-TWICE"), ["1", "2"]);
    assert_eq!((request.body.as_slice(), request.body_length, request.complete), (&b"hello"[..], 5, true));
    assert_eq!(request.body_sha256(), sha256("hello"));
    hub.clear();
    assert!(hub.requests().is_empty());
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let hub = hub();
    let mut client = Client::connect(&hub);
    client.write(
        "GET / HTTP/1.1\r\nHost: hub\r\n\r\nHEAD / HTTP/1.1\r\nHost: hub\r\n\r\nGET / HTTP/1.1\r\nHost: hub\r\n\r\n",
    );
    let (first, head, last) = (client.answer(true), client.answer(false), client.answer(true));
    assert_eq!(head.header("content-length"), first.header("content-length"));
    assert_eq!(first.body, last.body);
    assert!(hub.requests().iter().all(|request| request.connection == 1));
}

#[test]
fn a_chunked_body_arrives_without_its_chunks() {
    let hub = hub();
    let mut client = Client::connect(&hub);
    client.write("POST / HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n");
    client.write("GET /again HTTP/1.1\r\nHost: hub\r\n\r\n");
    client.answer(true);
    client.answer(true);
    let requests = hub.requests();
    assert_eq!((requests[0].body.as_slice(), requests[1].target().as_str()), (&b"hello!"[..], "/again"));
}

#[test]
fn ambiguous_or_broken_requests_are_refused_and_recorded() {
    let hub = hub();
    for (name, head) in [
        ("length and coding", "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("two lengths", "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
        ("signed length", "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n"),
        ("unknown coding", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        ("bad chunk size", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n"),
        ("no HTTP", "hello\0\r\n\r\n"),
    ] {
        hub.clear();
        let mut client = Client::connect(&hub);
        client.write(head);
        assert_eq!(client.answer(true).status, 400, "{name}");
        assert_eq!(hub.requests().len(), 1, "{name}");
    }
}

#[test]
fn continue_is_sent_only_if_the_body_is_wanted() {
    let hub = hub();
    let target = "/api/v4/projects/230/packages/generic/p/1/f";
    let put = |token: &str| {
        format!("PUT {target} HTTP/1.1\r\n{}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", bearer(token))
    };
    let mut wanted = Client::connect(&hub);
    wanted.write(put(&token(&hub, "testuser")));
    assert_eq!(wanted.answer(false).status, 100);
    wanted.write("hello");
    assert_eq!(wanted.answer(true).json()["file_sha256"], sha256("hello"));

    let mut unwanted = Client::connect(&hub);
    unwanted.write(put("unknown"));
    let answer = unwanted.answer(true);
    assert_eq!((answer.status, answer.header("connection")), (401, Some("close")));
    assert!(unwanted.rest().is_empty());
}

#[test]
fn a_big_upload_is_hashed_and_counted_while_it_comes() {
    let hub = hub();
    let piece = vec![b'x'; 1 << 20];
    let mut client = Client::connect(&hub);
    let token = token(&hub, "testuser");
    client.write(format!(
        "PUT /api/v4/projects/230/packages/generic/p/1/f HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n",
        bearer(&token)
    ));
    for _ in 0..16 {
        client.write(format!("{:x}\r\n", piece.len()));
        client.write(&piece);
        client.write("\r\n");
    }
    client.write("0\r\n\r\n");
    let answer = client.answer(true).json();
    assert_eq!((answer["size"].as_u64(), &answer["file_sha256"]), (Some(16 << 20), &sha256(piece.repeat(16)).into()));
    let recorded = hub.requests().pop().expect("the upload");
    assert_eq!((recorded.body_length, recorded.body.len()), (16 << 20, 64 << 10));
}

#[test]
fn a_generated_blob_is_its_offsets_modulo_251() {
    let hub = hub();
    let target = "/api/v4/projects/230/packages/generic/blob/1.0.0/1000003.bin";
    let expected: Vec<u8> = (0..1_000_003u32).map(|i| (i % 251) as u8).collect();
    assert!(get(&hub, target, &bearer(&token(&hub, "testuser"))).body == expected);
}

#[test]
fn a_trace_drips_line_by_line() {
    let hub = hub();
    let mut client = Client::connect(&hub);
    let token = token(&hub, "testuser");
    client.write(format!("GET /api/v4/projects/230/jobs/9/trace HTTP/1.1\r\n{}\r\n", bearer(&token)));
    client.answer(false);
    let start = Instant::now();
    let lines: Vec<_> = (0..4).filter_map(|_| client.chunk()).collect();
    assert_eq!(lines[3], b"line 4 of 20\n");
    assert!(start.elapsed() > Duration::from_millis(200));
}

#[test]
fn a_file_name_never_starts_a_new_field() {
    let hub = hub();
    let target = "/api/v4/projects/230/repository/files/a%0D%0AX-Evil:%201";
    let token = token(&hub, "testuser");
    let fields = format!("{}Content-Type: application/json\r\n", bearer(&token));
    send(&hub, "POST", target, &fields, r#"{"branch":"main","content":"","commit_message":"x"}"#);
    let answer = send(&hub, "HEAD", &format!("{target}?ref=main"), &fields, "");
    assert_eq!((answer.status, answer.header("x-evil")), (200, None));
    assert_eq!(answer.header("x-gitlab-file-name"), Some("a??X-Evil: 1"));
}

fn sha256(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
