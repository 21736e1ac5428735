"""What stands behind the page: two test DataHUBs and the gateway, as `make demo` starts them, on free ports.

The gateway reaches the DataHUBs through a wire that keeps what passes, so that the tests know the real tokens; another one
stands before it and has what browsers send, and what they get. With `tls` the nginx that we ship stands before that.
"""

import base64
import collections
import dataclasses
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/deploy"))

from fronts import start_nginx  # noqa: E402
from machine import Machine  # noqa: E402

BIN = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"
NAMES = {"tuebingen": "DataHUB Tübingen", "freiburg": "DataHUB Freiburg"}
HOST = "gateway.localhost"


class World:
    def __init__(self, token_lifetime_s=600, tls=False, dev=False, arcmanager=False, **environment):
        """With `tls` the gateway, the DataHUBs and all `sites` are sites of their own, as far as a browser can tell; with `dev`
        the app is at the `dev` origin, another port of the gateway's host. With `arcmanager` it is the ARCmanager's, by
        config/arcmanager.toml; its old backend is the last of `sites`, and `plantmicrobe` a DataHUB that is away."""
        missing = [name for name in ("arcmanager-gateway", "datahub") if not (BIN / name).exists()]
        if missing:
            raise SystemExit(f"{BIN} lacks {' and '.join(missing)}: cargo build -p arcmanager-gateway -p datahub")
        self.machine, self.processes, self.wires, self.client_secrets = Machine(), [], {}, []
        self.log = tempfile.TemporaryFile()
        self.sites = self.front = None
        try:
            self._start(token_lifetime_s, tls, dev, arcmanager, environment)
        except BaseException:
            self.close()
            raise

    def _start(self, token_lifetime_s, tls, dev, arcmanager, more):
        self.session_key = make_key()
        port = free_port()
        self.front = Wire(f"127.0.0.1:{port}")
        self.host = f"{HOST}:{free_port()}" if tls else f"localhost:{self.front.address.split(':')[1]}"
        self.origin = f"{'https' if tls else 'http'}://{self.host}"
        self.app = f"{self.origin}/arcmanager/app/"
        self.dev = f"https://{HOST}:{free_port()}" if dev else None
        environment = {
            "RUST_LOG": "trace",  # The log is searched for secrets.
            "GATEWAY__SERVER__LISTEN": f"127.0.0.1:{port}",
            "GATEWAY__SERVER__PUBLIC_URL": self.origin,
            "GATEWAY__SERVER__TRUSTED_PROXIES": "127.0.0.1",
            "GATEWAY__SESSION__KEYS": self.session_key,
            "GATEWAY__SESSION__REMEMBER": "1s",
        }
        if dev:
            environment |= {"GATEWAY__APP__DEV_ORIGINS": self.dev, "GATEWAY__APP__URL": f"{self.dev}/page"}
        for datahub, name in NAMES.items():
            secret = secrets.token_hex(32)  # As GitLab makes them.
            address = f"127.0.0.1:{free_port()}"
            url = f"http://{datahub}.localhost:{address.split(':')[1]}" if tls else f"http://{address}"
            arguments = ["--name", name, "--listen", address, "--public-url", url, "--client-id", "demo",
                         "--token-lifetime", str(token_lifetime_s)]
            process = self._run("datahub", *arguments, stdout=subprocess.PIPE, env={"DATAHUB_CLIENT_SECRET": secret})
            process.stdout.readline()  # It is up.
            self.wires[datahub] = Wire(address)
            self.client_secrets.append(secret)
            section = f"GATEWAY__DATAHUBS__{datahub.upper()}__"
            environment |= {f"{section}URL": url, f"{section}CONNECT": self.wires[datahub].address,
                            f"{section}CLIENT_SECRET": secret}
        configs = ["config/demo.toml"]
        if tls:
            self.sites = Sites()
        if arcmanager:
            configs.append("config/arcmanager.toml")
            environment |= self._arcmanager()
        arguments = [word for config in configs for word in ("--config", config)]
        gateway = self._run("arcmanager-gateway", *arguments, stdout=self.log, env=environment | more)
        if tls:
            start_nginx(self.machine, int(self.host.split(":")[1]), self.front.address, HOST,
                        others=self.sites.address, others_port=self.dev and int(self.dev.split(":")[2]))
        for _ in range(100):
            if gateway.poll() is not None:
                break
            try:
                datahubs = f"http://127.0.0.1:{port}/arcmanager/api/v1/datahubs"
                urllib.request.urlopen(urllib.request.Request(datahubs, headers={"Host": self.host}), timeout=5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"the gateway did not come up:\n{self.output()}")

    def _arcmanager(self):
        """What an operator adds to config/arcmanager.toml."""
        rsa = self.machine.path / "rsa.pem"
        subprocess.run(["openssl", "genrsa", "-out", rsa, "2048"], check=True, capture_output=True)
        away = "GATEWAY__DATAHUBS__PLANTMICROBE__"
        return {
            "GATEWAY__APP__DIR": "tests/browser/arcmanager",
            "GATEWAY__DATAHUBS__TUEBINGEN__ALIASES": "tübingen",
            "GATEWAY__BRIDGE__URL": f"http://{self.sites.address}",
            "GATEWAY__BRIDGE__JWT_KEY_FILE": str(rsa),
            "GATEWAY__BRIDGE__FERNET_KEY_FILE": str(self.machine.write("fernet", base64.urlsafe_b64encode(os.urandom(32)).decode())),
            f"{away}URL": f"http://127.0.0.1:{free_port()}", f"{away}CLIENT_ID": "demo", f"{away}CLIENT_SECRET": secrets.token_hex(32),
        }

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
            if process.stdout:
                process.stdout.close()
        self.machine.close()
        for one in [*self.wires.values(), self.front, self.sites]:
            if one:
                one.close()
        self.log.close()

    def site(self, name):
        """The origin of another site, or with a name below `gateway` that of a sibling."""
        return f"https://{name}.localhost:{self.host.split(':')[1]}"

    def secrets(self):
        """Every token and client secret so far, and the session key."""
        return self.client_secrets + [self.session_key] + [token for wire in self.wires.values() for token in wire.tokens()]

    def file(self, datahub, project, path):
        """A file's bytes as the DataHUB has them, not through the gateway."""
        wire = self.wires[datahub]
        url = f"{wire.url}/api/v4/projects/{project}/repository/files/{path.replace('/', '%2F')}/raw?ref=main"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {wire.bearer()}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def output(self):
        """The gateway's log so far."""
        self.log.seek(0)
        return self.log.read().decode()

    def _run(self, program, *arguments, stdout, env):
        environment = {"PATH": os.environ["PATH"], **env}
        process = subprocess.Popen([BIN / program, *arguments], cwd=ROOT, env=environment, stdout=stdout, stderr=self.log)
        self.processes.append(process)
        return process


@dataclasses.dataclass
class Request:
    method: str
    target: str
    fields: dict
    status: int = 0  # Of its answer, once there is one.


class Wire:
    """Passes bytes to an address and back, and keeps them."""

    def __init__(self, address):
        self.url = f"http://{address}"
        self.passed = bytearray()
        self.requests = []  # As they came.
        self.answered = bytearray()
        self.answers = {}  # Of a path: what is answered here, the far end unasked. Bytes, or who is given the connection.
        self.replaced = {}  # In what the far end writes: one text by another.
        self.bytes_per_second = None
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, args=address.split(":"), daemon=True).start()

    def asked(self, method, part):
        """The requests so far whose target has this part."""
        return [request for request in self.requests if request.method == method and part in request.target]

    def tokens(self):
        """Access and refresh tokens, as the token endpoint gave them out."""
        return [token.decode() for token in re.findall(rb'"(?:access|refresh|id)_token":\s*"([^"]+)"', bytes(self.passed))]

    def bearer(self):
        """The access token that was used last."""
        return re.findall(rb"(?i)authorization: bearer (\S+)", bytes(self.passed))[-1].decode()

    def close(self):
        self.listener.close()

    def _accept(self, host, port):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection((host, int(port)))
            except OSError:
                return  # Closed.
            open_requests = collections.deque()
            for source, target, note, replaced in ((near, far, self._note_request, {}), (far, near, self._note_answer, self.replaced)):
                threading.Thread(target=self._pump, args=(source, target, note, open_requests, replaced), daemon=True).start()

    def _note_request(self, piece, open_requests):
        # Whoever asks writes a head in one go.
        head = re.match(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n((?:[^\r\n]+\r\n)*)\r\n", piece)
        if head:
            fields = dict(line.decode("latin-1").lower().split(": ", 1) for line in head[3].split(b"\r\n") if b": " in line)
            cookie = re.search(rb"(?im)^cookie: (.*)\r$", head[3])
            request = Request(head[1].decode(), head[2].decode(), fields | ({"cookie": cookie[1].decode()} if cookie else {}))
            self.requests.append(request)
            open_requests.append(request)

    def _note_answer(self, piece, open_requests):
        self.answered += piece
        head = re.match(rb"HTTP/1\.1 ([2-5]\d\d) ", piece)
        if head and open_requests:
            open_requests.popleft().status = int(head[1])

    def _pump(self, source, target, note, open_requests, replaced):
        try:
            while piece := source.recv(65536):
                self.passed += piece
                note(piece, open_requests)
                for old, new in replaced.items():
                    piece = piece.replace(old, new)
                asked = re.match(rb"[A-Z]+ ([^ ?]+)", piece)
                if asked and (answer := self.answers.get(asked[1].decode())):
                    # The far end's next answer on this connection is not that of this request.
                    request = open_requests.pop()
                    if callable(answer):
                        answer(source)
                    else:
                        self._note_answer(answer, collections.deque([request]))
                        source.sendall(answer)
                    continue
                target.sendall(piece)
                if self.bytes_per_second:
                    time.sleep(len(piece) / self.bytes_per_second)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()


class Sites:
    """What every host but the gateway's answers, and at the gateway's another application below `/other/`."""

    def __init__(self):
        self.pages = {}  # Of a path: its type, its text and further fields; among these its `Status`, if that is not 200.
        self.heard = []  # Of requests: host, path, Origin.
        sites = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                length = int(self.headers.get("Content-Length", 0))
                self.rfile.read(length)
                path = self.path.split("?")[0]
                sites.heard.append((self.headers["Host"].split(":")[0], path, self.headers.get("Origin")))
                kind, text, fields = sites.pages.get(path, ("text/html", "<!doctype html><title>blank</title><body>", {}))
                body = text.encode()
                self.send_response(int(fields.get("Status", 200)))
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in fields.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except ConnectionError:
                    pass  # Nobody wants it any more.

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def make_key():
    return subprocess.run([BIN / "arcmanager-gateway", "key"], check=True, capture_output=True, text=True).stdout.strip()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
