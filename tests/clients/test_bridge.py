"""The bridge to a real FastAPI application: nginx, four gateway processes, gunicorn with four workers, two test DataHUBs."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import sys
import time
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "deploy")]

from cryptography.fernet import Fernet  # noqa: E402
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402
from machine import (  # noqa: E402
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, GUNICORN, Browser, Machine, accepts, free_port, new_key, start_datahub, wait_until,
)

PIECE = 100 << 20
FETCH = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]
JSON = [("Content-Type", "application/json")]


class Bridge(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        cls.datahubs = {name: start_datahub(machine, name) for name in ("tuebingen", "freiburg")}
        cls.port, cls.backend, cls.ports = free_port(), free_port(), [free_port() for _ in range(4)]
        key = rsa.generate_private_key(65537, 2048)
        # PKCS #1, as `openssl genrsa` of the original's time wrote it; tests/api has PKCS #8.
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        fernet = Fernet.generate_key().decode()
        files = {name: machine.write(name, text) for name, text in [("private.pem", private.decode()), ("fernet", fernet + "\n")]}
        environment = {
            "PUBLIC_RSA": "\n".join(public.decode().splitlines()[1:-1]), "FERNET": fernet,
            "BACKEND_FOLDER": str(machine.path), "TMPDIR": str(machine.path), "PYTHONPATH": str(HERE),
            "BACKEND_TARGETS": json.dumps({name: f"http://127.0.0.1:{port}" for name, port in cls.datahubs.items()}),
        }
        machine.start("backend", *GUNICORN, "--bind", f"127.0.0.1:{cls.backend}", "backend:app", env=environment)
        sessions = new_key().strip()
        cls.gateways = [machine.start(f"gateway-{port}", GATEWAY, "--config", machine.write(f"{port}.toml", f"""
            server = {{ listen = ["127.0.0.1:{port}"], public_url = "http://localhost:{cls.port}", workers = 1, trusted_proxies = ["127.0.0.1"] }}
            admin.listen = "none"
            session.keys = ["{sessions}"]
            bridge = {{ url = "http://127.0.0.1:{cls.backend}", jwt_key_file = "{files['private.pem']}", fernet_key_file = "{files['fernet']}" }}
            """ + "".join(
            f'datahubs.{name} = {{ url = "http://127.0.0.1:{hub}", client_id = "{CLIENT_ID}", client_secret = "{CLIENT_SECRET}" }}\n'
            for name, hub in cls.datahubs.items()))) for port in cls.ports]
        # A connection for each call, so that calls go to all four by turns.
        machine.start("nginx", "nginx", "-p", machine.path, "-c", machine.write("nginx.conf", f"""
            daemon off; pid {machine.path}/nginx.pid; error_log {machine.path}/nginx-error.log; worker_processes 1; events {{ }}
            http {{
                access_log off; client_max_body_size 0; client_body_temp_path {machine.path}/body; proxy_temp_path {machine.path}/proxy;
                fastcgi_temp_path {machine.path}/f; uwsgi_temp_path {machine.path}/u; scgi_temp_path {machine.path}/s;
                upstream gateways {{ {' '.join(f'server 127.0.0.1:{port};' for port in cls.ports)} }}
                server {{
                    listen 127.0.0.1:{cls.port};
                    location /arcmanager/api {{
                        proxy_pass http://gateways; proxy_http_version 1.1; proxy_set_header Host $http_host;
                        proxy_set_header X-Forwarded-For $remote_addr; proxy_request_buffering off; proxy_read_timeout 200s;
                    }}
                }}
            }}"""))
        for name, port in [("nginx", cls.port), ("backend", cls.backend), *((f"gateway-{port}", port) for port in cls.ports)]:
            wait_until(lambda: accepts(port), f"{name} listens: {machine.log(name)}", 60)
        wait_until(lambda: machine.log("backend").count("Application startup complete") == 4, "four workers")

    def setUp(self):
        self.browser = Browser(f"http://localhost:{self.port}")

    def log_in(self, datahub="tuebingen", user="testuser"):
        answer = self.browser.log_in(datahub, user)
        self.assertEqual(answer.status, 303)
        self.assertNotIn("login_error", answer.headers["Location"])

    def fetch(self, method, path, headers=(), body=None):
        return self.browser.send(method, BASE + path, [*FETCH, *headers], body)

    def test_each_group_of_paths(self):
        self.log_in()
        refreshes = set()
        for method, path, body in [
            ("GET", "/projects/arc_list?owned=true&page=1", None),
            ("GET", "/projects/arc_path?path=a%20b/%C3%BC+d&id=7&page=1&branch=main%20", None),
            ("GET", "/projects/getBanner", None),
            ("POST", "/projects/createArc", {"name": "\u00fc"}),
            ("PATCH", "/projects/syncAssay", {"id": 7}),
            ("PUT", "/tnt/saveSheet", {"sheet": [["x"] * 1_000] * 100}),
            ("GET", "/tnt/getSheets", None),
            ("GET", "/user/getUser", None),
            ("PUT", "/user/editUser", {}),
            ("GET", "/validate/validateArc?id=7", None),
            ("GET", "/search/getArcJson", None),
        ]:
            answer = self.fetch(method, path, JSON if body is not None else (), None if body is None else json.dumps(body).encode())
            self.assertEqual(answer.status, 200, (path, answer.body))
            seen = json.loads(answer.body)
            raw, _, query = (BASE + path).partition("?")
            self.assertEqual((seen["user"], seen["target"], seen["raw"], seen["query"], seen.get("body")),
                             ("testuser", "tuebingen", raw, query, body))
            self.assertEqual((seen["claims"], seen["cookies"]), (["gitlab", "refresh", "target"], ["data"]))
            self.assertIsNone(answer.headers["Set-Cookie"])
            refreshes.add(seen["refresh"])
        self.assertEqual(len(refreshes), 11, "a random text, and never the refresh token")
        self.assertEqual(self.fetch("HEAD", "/projects/arc_list").headers["total-pages"], "7")
        missing = self.fetch("DELETE", "/fnf/deleteFile?id=7")
        self.assertEqual((missing.status, json.loads(missing.body)["detail"]), (404, "testuser has no such file"))
        self.browser.log_in("freiburg", "joerg")
        seen = json.loads(self.fetch("GET", "/user/getUser").body)
        self.assertEqual((seen["user"], seen["target"]), ("joerg", "freiburg"))

    def test_what_needs_no_login(self):
        for path in ["/projects/public_arcs?target=freiburg&page=1", "/tnt/getTerms?input=x", "/tnt/getTermSuggestions", "/tnt/getTemplates"]:
            answer = self.fetch("GET", path)
            self.assertEqual((answer.status, json.loads(answer.body)["cookies"]), (200, []), path)
        self.assertEqual(self.fetch("GET", "/projects/public_arcs?target=freiburg").headers["total-pages"], "1")
        self.assertEqual(json.loads(self.fetch("GET", "/projects/arc_list").body)["code"], "not_logged_in")

    def test_three_pieces_of_100_mebibytes(self):
        self.log_in()
        start = {process.pid: memory(process.pid) for process in self.gateways}
        content = os.urandom(1 << 20)
        digest = hashlib.sha256()
        for _ in range(PIECE >> 20):
            digest.update(content)
        for number in range(3):
            answer = self.upload("large", number, 3, content)
            if number < 2:
                self.assertEqual((answer.status, json.loads(answer.body)), (202, f"Received chunk {number + 1} of 3"))
        self.assertEqual(answer.status, 200, answer.body)
        done = json.loads(answer.body)
        self.assertEqual(done["user"], "testuser")
        self.assertEqual({(piece["size"], piece["sha256"]) for piece in done["pieces"]}, {(PIECE, digest.hexdigest())})
        for process in self.gateways:
            more = memory(process.pid) - start[process.pid]
            self.assertLess(more, 16 << 20, "the body was held")
        lost = self.upload("lost", 1, 2, b"x")
        self.assertEqual((lost.status, lost.headers["missing-package"]), (409, "0"))

    def upload(self, name, number, total, content):
        """As the app does it: a form, whose length is known."""
        fields = [("chunkNumber", number), ("totalChunks", total), ("name", name), ("id", 7), ("branch", "main"), ("path", "assays"),
                  ("namespace", "g/p"), ("lfs", "true")]
        parts = "".join(f'--b\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields)
        head = (parts + f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n").encode()
        tail, count = b"\r\n--b--\r\n", PIECE // len(content) if len(content) > 1 else 1
        connection = self.browser.connect()
        connection.putrequest("POST", f"{BASE}/fnf/uploadFile", skip_accept_encoding=True)
        for key, value in [*FETCH, ("Content-Type", "multipart/form-data; boundary=b"),
                           ("Content-Length", str(len(head) + count * len(content) + len(tail))),
                           ("Cookie", "; ".join(f"{key}={value}" for key, value in self.browser.cookies.items()))]:
            connection.putheader(key, value)
        connection.endheaders(head)
        for _ in range(count):
            connection.send(content)
        connection.send(tail)
        with connection.getresponse() as response:
            return type("Answer", (), {"status": response.status, "headers": response.headers, "body": response.read()})

    def test_all_four_gateways_and_all_four_workers(self):
        self.log_in()
        def call(_):
            answer = self.browser.twin().send("GET", BASE + "/user/getUser", FETCH)
            self.assertEqual(answer.status, 200, answer.body)
            return json.loads(answer.body)["pid"]
        workers, end = set(), time.monotonic() + 20
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            while len(workers) < 4 and time.monotonic() < end:
                workers.update(pool.map(call, range(48)))
        self.assertEqual(len(workers), 4)
        for port in self.ports:
            self.assertIn('"route":"/user/{path}","datahub":"bridge","status":200', self.machine.log(f"gateway-{port}"))
            self.assertNotIn("gAAAA", self.machine.log(f"gateway-{port}"))


def memory(pid):
    """Highest resident memory so far, in bytes."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    unittest.main()
