"""One GET in HTTP/2, by frames of our own: curl sends no head of over 64 KiB."""

import re
import socket
import ssl

SETTINGS, HEADERS, CONTINUATION, RST_STREAM, GOAWAY = 4, 1, 9, 3, 7
END_STREAM, END_HEADERS = 1, 4
FRAME_BYTES = 16_384


def status_of(port, certificate, target, fields):
    """The status of the answer, as far as it is no entry of HPACK's table (RFC 7541, appendix A); or None if there was no answer."""
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2"])
    head = [(":method", "GET"), (":scheme", "https"), (":authority", f"localhost:{port}"), (":path", target), *fields]
    block = b"".join(b"\0" + text(name) + text(value) for name, value in head)
    pieces = [block[at:at + FRAME_BYTES] for at in range(0, len(block), FRAME_BYTES)]
    last = len(pieces) - 1
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
    for at, piece in enumerate(pieces):
        kind, flags = (CONTINUATION, 0) if at else (HEADERS, END_STREAM)
        sent += frame(kind, flags | (END_HEADERS if at == last else 0), 1, piece)
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain, server_hostname="localhost") as tls:
        try:
            tls.sendall(sent)
            with tls.makefile("rb") as answer:
                while start := answer.read(9):
                    payload = answer.read(int.from_bytes(start[:3], "big"))
                    if start[3] == HEADERS:
                        return int(re.search(rb"\x48\x03(\d{3})", payload)[1])
                    if start[3] in [RST_STREAM, GOAWAY]:
                        return None
        except OSError:
            return None


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def text(value):
    """A text with its length, as HPACK writes it: seven bits, and more behind them (RFC 7541, section 5.1)."""
    value = value.encode()
    rest = len(value) - 127
    length = bytes([min(len(value), 127)])
    while rest >= 128:
        length, rest = length + bytes([rest % 128 + 128]), rest // 128
    return length + (bytes([rest]) if rest >= 0 else b"") + value
