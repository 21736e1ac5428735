"""The calls that proxies break (25 rows), byte for byte: at the gateway itself, behind nginx, behind HAProxy."""

import collections
import gzip
import hashlib
import http.client
import json
import socket
import subprocess
import time
import unittest

from fronts import start_haproxy, start_nginx
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, Browser, Machine, end_listening, free_port, serve_each, start_datahub, wait_until,
)

MIB = 1024 * 1024
JSON = ("Content-Type", "application/json")
FORM = ("Content-Type", "application/x-www-form-urlencoded")
BOUNDARY = "'()+_,-./:=?"
FORM_DATA = ("Content-Type", f'multipart/form-data; boundary="{BOUNDARY}"')

Request = collections.namedtuple("Request", "method target fields body")


class Witness:
    """A DataHUB that keeps every call and says what it was told to say; what is not the API's, the test DataHUB answers."""

    def __init__(self, hub_port):
        self.hub_port, self.requests, self.answers = hub_port, [], {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        serve_each(self.listener, self.serve)

    def serve(self, client):
        with client, client.makefile("rb") as stream:
            try:
                while request := read_request(stream):
                    if not request.target.startswith("/api/"):
                        client.sendall(self.hub(request))
                        return
                    self.requests.append(request)
                    answer = self.answers.get(request.target, reply("200 OK", b"{}"))
                    if callable(answer):
                        answer(client)
                    else:
                        client.sendall(answer)
            except OSError:
                pass

    def hub(self, request):
        with socket.create_connection(("127.0.0.1", self.hub_port)) as hub:
            fields = [f"{name}: {value}" for name, value in request.fields
                      if name.lower() not in ("connection", "content-length", "transfer-encoding")]
            length = [f"Content-Length: {len(request.body)}"] if request.body else []
            head = [f"{request.method} {request.target} HTTP/1.1", *fields, *length, "Connection: close", "", ""]
            hub.sendall("\r\n".join(head).encode("latin-1") + request.body)
            return b"".join(iter(lambda: hub.recv(65536), b""))

    def close(self):
        end_listening(self.listener)


def read_request(stream):
    line = stream.readline().decode("latin-1").rstrip("\r\n")
    if not line:
        return None
    method, target, version = line.split(" ")
    assert version == "HTTP/1.1", line
    fields = []
    while line := stream.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = line.partition(":")
        fields.append((name, value.strip()))
    of = {name.lower(): value for name, value in fields}
    if of.get("transfer-encoding") == "chunked":
        body = bytearray()
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            assert stream.readline() == b"\r\n"
        assert stream.readline() == b"\r\n"
    else:
        body = stream.read(int(of.get("content-length", 0)))
    return Request(method, target, fields, bytes(body))


def reply(status, body=b"", *fields):
    length = [] if status[:3] in ("204", "304") else [("Content-Length", str(len(body)))]
    if not any(name == "Content-Type" for name, _ in fields) and body:
        fields = (("Content-Type", "application/json"), *fields)
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in [*fields, *length])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Corpus:
    """What must be true at any of the three places."""

    @classmethod
    def setUpClass(cls):
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        cls.witness = Witness(start_datahub(machine, "tuebingen"))
        cls.addClassCleanup(cls.witness.close)
        cls.hub = f"http://127.0.0.1:{cls.witness.hub_port}"
        cls.port = free_port()
        cls.origin = f"{cls.scheme}://localhost:{cls.port}"
        cls.here = f"{cls.origin}{BASE}/datahubs/tuebingen"
        upstream = machine.path / "gateway.sock"
        config = machine.write("gateway.toml", f"""
            [server]
            public_url = "{cls.origin}"
            listen = ["{f'unix:{upstream}' if cls.scheme == 'https' else f'127.0.0.1:{cls.port}'}"]
            workers = 2
            [admin]
            listen = "none"
            [session]
            keys_file = "{machine.write('keys', subprocess.check_output([GATEWAY, 'key'], text=True))}"
            [proxy]
            graphql = true
            [datahubs.tuebingen]
            url = "{cls.hub}"
            connect = "127.0.0.1:{cls.witness.port}"
            client_id = "{CLIENT_ID}"
            client_secret = "{CLIENT_SECRET}"
        """)
        machine.start("gateway", GATEWAY, "--config", config)
        wait_until(lambda: "serving" in machine.log("gateway"), "the gateway listens")
        cls.browser = Browser(cls.origin, cls.start_front(upstream))
        answer = cls.browser.log_in("tuebingen")
        assert answer.status == 303 and "login_error" not in answer.headers["Location"], answer.headers["Location"]

    def call(self, method, target, fields=(), body=None, answer=None):
        """One call, answered with `answer`; gives what went up and what came down."""
        if answer:
            self.witness.answers[target] = answer
        before = len(self.witness.requests)
        down = self.browser.call(method, "/datahubs/tuebingen" + target, list(fields), body)
        self.assertEqual(len(self.witness.requests), before + 1, down.body)
        up = self.witness.requests[-1]
        self.assertEqual((up.method, up.target), (method, target))
        bearers = [value for name, value in up.fields if name.lower() == "authorization"]
        self.assertEqual([bearer[:7] for bearer in bearers], ["Bearer "])
        return up, down

    def refuse(self, method, target, fields=(), body=None):
        before = len(self.witness.requests)
        down = self.browser.call(method, "/datahubs/tuebingen" + target, list(fields), body)
        self.assertIn(down.status, [400, 403, 404], target)
        self.assertEqual(down.headers["Content-Type"], "application/problem+json")
        self.assertEqual(len(self.witness.requests), before, target)

    def field(self, up, wanted):
        return [value for name, value in up.fields if name.lower() == wanted]

    def test_01_a_list_has_links_that_lead_here(self):
        link = ", ".join(f'<{{}}/api/v4/projects?page={page}&per_page=2>; rel="{rel}"' for page, rel in
                         [(1, "prev"), (3, "next"), (1, "first"), (9, "last")])
        answer = reply("200 OK", b"[]", ("Link", link.replace("{}", self.hub)), ("X-Total-Pages", "9"), ("X-Total", "17"))
        _, down = self.call("GET", "/api/v4/projects?min_access_level=30&page=2", answer=answer)
        self.assertEqual(down.headers["Link"], link.replace("{}", self.here))
        self.assertEqual((down.headers["X-Total-Pages"], down.headers["X-Total"]), ("9", "17"))

    def test_02_head_has_the_length_and_no_body(self):
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1234\r\nX-Total-Pages: 9\r\n\r\n"
        _, down = self.call("HEAD", "/api/v4/projects", answer=answer)
        self.assertEqual((down.headers["Content-Length"], down.headers["X-Total-Pages"], down.body), ("1234", "9", b""))

    def test_03_04_05_16_18_19_targets_stay_what_they_are(self):
        for target in [
            "/api/v4/projects/lu98be%2Ftestarc?license=true",
            "/api/v4/projects/group%2fsub%2fproj%2Ename/repository/branches",
            "/api/v4/projects/230/repository/tree?path=assays%2Fassay%201%2Fdataset&ref=feature%2Fx&per_page=100&page=1&"
            "recursive=true",
            "/api/v4/projects/1/jobs?scope[]=success&scope[]=failed&scope%5B%5D=manual&per_page=20",
            "/api/v4/projects/230/issues?created_after=2017-10-17T23:11:13.000%2B05:30&search=a+b%20c%26d&"
            "not[labels]=x,y&labels=&",
            "/api/v4/version?", "/api/v4/version/", "/api/v4//version",
        ]:
            with self.subTest(target):
                _, down = self.call("GET", target, answer=reply("200 OK", target.encode()))
                self.assertEqual((down.status, down.body), (200, target.encode()))

    def test_06_names_of_files_are_bytes(self):
        answer = reply("200 OK", b"", ("X-Gitlab-Size", "100"), ("X-Gitlab-File-Name", "isa.mäße.xlsx"))
        target = "/api/v4/projects/230/repository/files/assays%2Fm%C3%A4%C3%9Fe%20%231%2Fisa.assay.xlsx?ref=main"
        _, down = self.call("HEAD", target, answer=answer)
        self.assertEqual(down.headers["X-Gitlab-File-Name"].encode("latin-1").decode(), "isa.mäße.xlsx")
        self.assertEqual(down.headers["X-Gitlab-Size"], "100")

    def test_07_not_modified(self):
        target = "/api/v4/projects/230/repository/files/100%25%20sure%252Fnot.txt/raw?ref=main"
        answer = reply("304 Not Modified", b"", ("ETag", 'W/"abc"'))
        up, down = self.call("GET", target, [("If-None-Match", 'W/"abc"')], answer=answer)
        self.assertEqual(self.field(up, "if-none-match"), ['W/"abc"'])
        self.assertEqual((down.status, down.headers["ETag"], down.body), (304, 'W/"abc"', b""))

    def test_08_a_range(self):
        target = "/api/v4/projects/230/repository/files/a+b;c,d@e!f(g)'h*~.csv/raw?ref=v1.0.0-rc.1"
        answer = reply("206 Partial Content", b"x" * 100, ("Content-Type", "text/plain"), ("Content-Range", "bytes 0-99/250"))
        up, down = self.call("GET", target, [("Range", "bytes=0-99")], answer=answer)
        self.assertEqual(self.field(up, "range"), ["bytes=0-99"])
        self.assertEqual((down.status, down.headers["Content-Range"], len(down.body)), (206, "bytes 0-99/250", 100))
        self.assertIn("sandbox", down.headers["Content-Security-Policy"])

    def test_09_10_11_files_are_written(self):
        for method, target, body, answer in [
            ("POST", "/api/v4/projects/230/repository/files/runs%2F.gitkeep",
             b'{"branch":"main","content":"","commit_message":"Created new folder runs"}', reply("201 Created", b"{}")),
            ("PUT", "/api/v4/projects/230/repository/files/isa.investigation.xlsx",
             b'{"branch":"main","encoding":"base64","content":"' + b"eHh4" * (50 * MIB // 4) + b'"}', reply("200 OK", b"{}")),
            ("DELETE", "/api/v4/projects/230/repository/files/dir%2Fold%20name.md",
             b'{"branch":"main","commit_message":"x"}', reply("204 No Content")),
        ]:
            with self.subTest(method):
                up, down = self.call(method, target, [JSON], body, answer)
                self.assertEqual(hashlib.sha256(up.body).hexdigest(), hashlib.sha256(body).hexdigest())
                self.assertEqual(f"HTTP/1.1 {down.status} ".encode(), answer[:13])
                self.assertEqual((down.headers["Content-Length"], down.body) if method == "DELETE" else (None, b""),
                                 (None, b""))

    def test_12_a_commit_in_chunks_is_made_once(self):
        body = '{"branch":"main","actions":[{"action":"move","file_path":"ä.md","previous_path":"ß.md"}]}'.encode()
        for status in ["201 Created", "503 Service Unavailable"]:
            pieces = iter([body[:7], body[7:40], body[40:]])
            up, down = self.call("POST", "/api/v4/projects/230/repository/commits", [JSON], pieces, reply(status, b"{}"))
            self.assertEqual((up.body, down.status), (body, int(status[:3])))

    def test_13_15_no_body_is_a_body_of_no_bytes(self):
        for method, target in [("PATCH", "/api/v4/projects/230/protected_branches/release%2F1.x?allow_force_push=true"),
                               ("PUT", "/api/v4/projects/230/members/137?access_level=40")]:
            up, _ = self.call(method, target, [], b"")
            self.assertEqual((self.field(up, "content-length"), self.field(up, "transfer-encoding")), (["0"], []))

    def test_14_a_form_stays_as_it_is(self):
        form = b"user_id=137&access_level=30"
        up, _ = self.call("POST", "/api/v4/projects/230/members", [FORM], form)
        self.assertEqual(up.body, form)
        self.refuse("POST", "/api/v4/projects/230/members", [FORM], form + b"&sudo=root")

    def test_17_pages_by_key(self):
        link = '<{}/api/v4/projects?id_after=92&order_by=id&pagination=keyset&per_page=50&sort=asc>; rel="next"'
        target = "/api/v4/projects?pagination=keyset&per_page=50&order_by=id&sort=asc&id_after=42"
        _, down = self.call("GET", target, answer=reply("200 OK", b"[]", ("Link", link.replace("{}", self.hub))))
        self.assertEqual(down.headers["Link"], link.replace("{}", self.here))
        following = down.headers["Link"].split(">")[0].removeprefix(f"<{self.here}")
        self.call("GET", following)

    def test_20_what_leads_elsewhere(self):
        for target in ["/api/v4/projects/1/../../../oauth/token", "/api/v4/%2e%2e/%2e%2e/users/sign_in",
                       "/api/v4/projects/..%2f..%2fadmin", "/api/v4/./user", "/api/v4/projects/x%5c..%5cy",
                       "/api/v4/projects/%252e%252e%252fadmin"]:
            self.refuse("GET", target)

    def test_21_other_credentials(self):
        for query in ["private_token=glpat-x", "access%5Ftoken=x", "a=1;access_token=x", "bearer_token[]=x", "sudo=root"]:
            self.refuse("GET", f"/api/v4/user?{query}")
        claims = [("PRIVATE-TOKEN", "glpat-x"), ("Private_Token", "glpat-x"), ("JOB-TOKEN", "x"), ("Deploy-Token", "x"),
                  ("Sudo", "root"), ("Authorization", "Basic eDp5"), ("X-HTTP-Method-Override", "DELETE"),
                  ("X-Forwarded-Host", "evil.test"), ("Connection", "Authorization")]
        # With each alone, too: one of them must not hide another.
        for fields in [claims, *([claim] for claim in claims)]:
            up, _ = self.call("GET", "/api/v4/user", fields)
            names = {name.lower() for name, _ in up.fields}
            self.assertLessEqual(names, {"host", "authorization", "x-forwarded-for", "x-forwarded-proto", "x-request-id",
                                         "traceparent"})
            self.assertNotIn("evil.test", str(up))

    def test_22_an_upload_of_many_parts(self):
        part = 'Content-Disposition: form-data; name="file"; filename="naïve ü.pdf"\r\nContent-Type: application/pdf\r\n\r\n'
        body = f"--{BOUNDARY}\r\n{part}".encode() + bytes(range(256)) * 100 + f"\r\n--{BOUNDARY}--\r\n".encode()
        up, down = self.call("POST", "/api/v4/projects/lu98be%2Ftestarc/uploads", [FORM_DATA], body, reply("201 Created", b"{}"))
        self.assertEqual((up.body, self.field(up, "content-type"), down.status), (body, [FORM_DATA[1]], 201))

    def test_23_an_upload_in_chunks_that_asks_first(self):
        target = "/api/v4/projects/230/packages/generic/my.pkg/1.0.0%2Bbuild.5/data%20set.tar.gz?select=package_file"
        self.witness.answers[target] = reply("201 Created", b"{}")
        connection = self.browser.connect()
        connection.putrequest("PUT", f"{BASE}/datahubs/tuebingen{target}", skip_accept_encoding=True)
        for name, value in [("Cookie", "; ".join(f"{name}={value}" for name, value in self.browser.cookies.items())),
                            ("X-CSRF", "1"), ("Expect", "100-continue"), ("Transfer-Encoding", "chunked")]:
            connection.putheader(name, value)
        connection.endheaders()
        interim = b""
        while not interim.endswith(b"\r\n\r\n"):
            interim += connection.sock.recv(1)
        self.assertEqual(interim[:13], b"HTTP/1.1 100 ")
        sha256, piece = hashlib.sha256(), bytes(range(256)) * 4096
        for _ in range(64):
            sha256.update(piece)
            connection.sock.sendall(b"100000\r\n" + piece + b"\r\n")
        connection.sock.sendall(b"0\r\n\r\n")
        response = http.client.HTTPResponse(connection.sock, method="PUT")
        response.begin()
        self.assertEqual(response.status, 201)
        response.close()
        connection.close()
        up = self.witness.requests[-1]
        self.assertEqual((up.target, hashlib.sha256(up.body).hexdigest()), (target, sha256.hexdigest()))
        self.assertEqual(self.field(up, "expect"), [])

    def test_24_redirects_and_pages(self):
        page = gzip.compress(b"<script>alert(1)</script>")
        answer = reply("200 OK", page, ("Content-Type", "text/html"), ("Content-Encoding", "gzip"))
        up, down = self.call("GET", "/api/v4/projects/230/jobs/artifacts/main/raw/public/report%20(1).html?job=build%3Atest",
                             [("Accept-Encoding", "gzip, br")], answer=answer)
        self.assertEqual(self.field(up, "accept-encoding"), ["gzip, br"])
        self.assertEqual((down.headers["Content-Encoding"], down.body), ("gzip", page))
        self.assertTrue(down.headers["Content-Disposition"].startswith("attachment"))
        self.assertIn("sandbox", down.headers["Content-Security-Policy"])
        storage = "https://s3.example/bucket/artifacts.zip?X-Amz-Expires=600&X-Amz-Signature=0123abcd"
        _, down = self.call("GET", "/api/v4/projects/230/jobs/9/artifacts", answer=reply("302 Found", b"", ("Location", storage)))
        self.assertEqual((down.status, down.headers["Location"]), (302, storage))
        moved = reply("301 Moved Permanently", b"", ("Location", f"{self.hub}/api/v4/projects/81"))
        _, down = self.call("GET", "/api/v4/projects/old%2Fname", answer=moved)
        self.assertEqual((down.status, down.headers["Location"]), (301, f"{self.here}/api/v4/projects/81"))

    def test_25_graphql_an_archive_and_pieces_as_they_come(self):
        query = b'{"query":"query($p:ID!){project(fullPath:$p){id}}","variables":{"p":"lu98be/testarc"}}'
        up, _ = self.call("POST", "/api/graphql", [JSON], query)
        self.assertEqual(up.body, query)

        disposition = "attachment; filename=\"arc-main.tar.gz\"; filename*=UTF-8''arc-m%C3%A4in.tar.gz"
        hostile = [("Set-Cookie", "_gitlab_session=x"), ("Access-Control-Allow-Origin", "*"),
                   ("Strict-Transport-Security", "max-age=1"), ("Clear-Site-Data", '"*"'),
                   ("X-Accel-Redirect", "/etc/passwd"), ("WWW-Authenticate", "Basic realm=x")]
        answer = reply("200 OK", b"\x1f\x8b", ("Content-Type", "application/octet-stream"),
                       ("Content-Disposition", disposition), *hostile)
        _, down = self.call("GET", "/api/v4/projects/230/repository/archive.tar.gz?sha=main", answer=answer)
        self.assertEqual((down.headers["Content-Disposition"], down.body), (disposition, b"\x1f\x8b"))
        for name, value in hostile:
            self.assertNotIn(value, down.headers.get_all(name, []), name)

        for kind in ["text/plain", "text/event-stream"]:
            with self.subTest(kind):
                self.drip(kind)

    def drip(self, kind):
        target, sent = f"/api/v4/projects/230/jobs/9/trace?{kind}", []

        def slowly(client):
            client.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for at in range(8):
                sent.append(time.monotonic())
                client.sendall(f"8\r\nline {at:2}\n\r\n".encode())
                time.sleep(0.2)
            client.sendall(b"0\r\n\r\n")

        self.witness.answers[target] = slowly
        with self.browser.open("GET", f"{BASE}/datahubs/tuebingen{target}", [("X-CSRF", "1")]) as answer:
            for at in range(8):
                self.assertEqual(answer.readline(), f"line {at:2}\n".encode())
                # Ten times what we promise: this is no benchmark.
                self.assertLess(time.monotonic() - sent[at], 1)
                self.assertEqual(len(sent), at + 1, "it came only after the next was sent")

    def test_more_what_the_datahub_says_in_trouble(self):
        limited = reply("429 Too Many Requests", b"Retry later", ("Content-Type", "text/plain"), ("Retry-After", "17"))
        _, down = self.call("GET", "/api/v4/user?429", answer=limited)
        self.assertEqual((down.status, down.headers["Retry-After"], down.body), (429, "17", b"Retry later"))
        page = reply("502 Bad Gateway", b"<h1>GitLab is not responding", ("Content-Type", "text/html"))
        _, down = self.call("GET", "/api/v4/user?502", answer=page)
        self.assertEqual((down.status, down.body), (502, b"<h1>GitLab is not responding"))

        def broken(client):
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nthe first bytes")
            time.sleep(0.2)  # They are on their way: it is too late for another status.
            client.shutdown(socket.SHUT_RDWR)

        self.witness.answers["/api/v4/user?broken"] = broken
        with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
            self.browser.call("GET", "/datahubs/tuebingen/api/v4/user?broken")


class AtTheGateway(Corpus, unittest.TestCase):
    scheme = "http"

    @classmethod
    def start_front(cls, _upstream):
        return None


class BehindNginx(Corpus, unittest.TestCase):
    scheme = "https"

    @classmethod
    def start_front(cls, upstream):
        return start_nginx(cls.machine, cls.port, upstream)


class BehindHaproxy(Corpus, unittest.TestCase):
    scheme = "https"

    @classmethod
    def start_front(cls, upstream):
        return start_haproxy(cls.machine, cls.port, upstream)


if __name__ == "__main__":
    unittest.main()
