"""Processes that a test starts and ends, and a browser that sends exactly what it is told."""

import collections
import http.client
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
GATEWAY = TARGET / "debug" / "arcmanager-gateway"
DATAHUB = TARGET / "debug" / "datahub"
CLIENT_ID = "client-of-tests-deploy"
CLIENT_SECRET = "gloas-secret-of-tests-deploy"
BASE = "/arcmanager/api/v1"
# What runs the ARCmanager's old backend; then come `--bind ADDRESS MODULE:app`. Its control socket would be in somebody's home.
GUNICORN = [sys.executable, "-W", "ignore", "-m", "gunicorn", "-w", "4", "-k", "uvicorn.workers.UvicornWorker", "--keep-alive", "75",
            "--no-control-socket"]


class Machine:
    """A folder and processes, all gone when the test is over. Processes are ended by their own id and by nothing else."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="deploy-")
        self.path = pathlib.Path(self.folder.name)
        self.processes = []

    def write(self, name, text, mode=0o600):
        path = self.path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def start(self, name, *command, env=None, **more):
        """Starts a program; its output goes into `name`.log."""
        with open(self.path / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})}, **more,
            )
        self.processes.append(process)
        return process

    def log(self, name):
        path = self.path / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def close(self):
        for process in reversed(self.processes):
            end(process)
        self.folder.cleanup()


def end(process, seconds=15):
    """SIGTERM; SIGKILL for one that does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def wait_until(condition, what, seconds=20):
    """Looks every 20 ms until `condition` is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return result


def user_of(pid):
    """As whom a process runs. The owner of its folder in /proc tells nothing: it is root where a process leaves no core dump."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[2])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end_listening(listener):
    """Ends the `accept` that a thread is in, too: it would go on listening without the descriptor."""
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def serve_each(listener, serve):
    """Hands each connection that comes to `serve`, on a thread of its own, until the listener is ended."""
    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def new_key():
    """A line for `session.keys_file`."""
    return subprocess.check_output([GATEWAY, "key"], text=True, stderr=subprocess.DEVNULL)


def accepts(port, address="127.0.0.1"):
    try:
        socket.create_connection((address, port), 1).close()
        return True
    except OSError:
        return False


def start_datahub(machine, name, *more):
    """A test DataHUB; gives its port."""
    port = free_port()
    machine.start(
        name, DATAHUB, f"--listen=127.0.0.1:{port}", f"--client-id={CLIENT_ID}", f"--name={name}", *more,
        env={"DATAHUB_CLIENT_SECRET": CLIENT_SECRET},
    )
    wait_until(lambda: "is up at" in machine.log(name), f"{name} listens")
    return port


Answer = collections.namedtuple("Answer", "status headers body")


class Browser:
    """One cookie jar for one origin. Targets go out as they are written, byte for byte."""

    def __init__(self, origin, trust=None, source=None):
        url = urllib.parse.urlsplit(origin)
        self.origin, self.host, self.port = origin, url.hostname, url.port
        self.tls = ssl.create_default_context(cafile=trust) if url.scheme == "https" else None
        self.source = (source, 0) if source else None
        self.cookies = {}

    def twin(self):
        """Another connection of the same browser."""
        other = Browser.__new__(Browser)
        other.__dict__.update(self.__dict__)
        return other

    def connect(self):
        if self.tls:
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=30, context=self.tls, source_address=self.source)
        return http.client.HTTPConnection(self.host, self.port, timeout=30, source_address=self.source)

    def open(self, method, target, headers=(), body=None):
        """Sends a request on a connection of its own; gives the answer with its body unread. `body`: bytes or pieces."""
        connection = self.connect()
        connection.putrequest(method, target, skip_accept_encoding=True)
        if self.cookies:
            connection.putheader("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        headers = [*headers, ("Connection", "close")]
        is_stream = body is not None and not isinstance(body, bytes)
        if body is not None:
            headers.append(("Transfer-Encoding", "chunked") if is_stream else ("Content-Length", str(len(body))))
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body, encode_chunked=is_stream)
        response = connection.getresponse()
        for cookie in response.headers.get_all("Set-Cookie", []):
            name, _, value = cookie.split(";")[0].partition("=")
            gone = "max-age=0" in cookie.lower().replace(" ", "") or not value
            self.cookies.pop(name, None) if gone else self.cookies.__setitem__(name, value)
        return response

    def send(self, method, target, headers=(), body=None):
        with self.open(method, target, headers, body) as response:
            return Answer(response.status, response.headers, response.read())

    def call(self, method, target, headers=(), body=None, base=BASE):
        """What the app's script sends."""
        return self.send(method, base + target, [("X-CSRF", "1"), *headers], body)

    def log_in(self, datahub, user="testuser"):
        """Clicks through: the gateway, the DataHUB's sign-in page, the gateway again."""
        asked = self.send("GET", f"{BASE}/auth/login?datahub={datahub}")
        assert asked.status == 302, (asked.status, asked.headers["Location"], asked.body)
        there = urllib.parse.urlsplit(asked.headers["Location"])
        hub = Browser(f"{there.scheme}://{there.netloc}")
        form = [("Content-Type", "application/x-www-form-urlencoded")]
        signed_in = hub.send("POST", f"{there.path}?{there.query}", form, f"user={user}".encode())
        assert signed_in.status == 302, (signed_in.status, signed_in.body)
        back = signed_in.headers["Location"]
        assert back.startswith(self.origin + BASE), back.split("?")[0]
        return self.send("GET", back.removeprefix(self.origin))


class Recorder:
    """Stands before a DataHUB, passes on all bytes and counts them, and remembers the heads of the requests."""

    def __init__(self, upstream_port):
        self.upstream_port = upstream_port
        self.heads = []
        self.up = self.down = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        serve_each(self.listener, self.serve)

    def serve(self, client):
        relay(client, socket.create_connection(("127.0.0.1", self.upstream_port)), self.note, self.note_answer)

    def note(self, piece):
        # The gateway writes a head in one go, and its next request only after the answer: a head begins a piece.
        head, end_of_head, _ = piece.partition(b"\r\n\r\n")
        with self.lock:
            self.up += len(piece)
            if end_of_head and head.split(b"\r\n")[0].endswith(b" HTTP/1.1"):
                self.heads.append(head)

    def note_answer(self, piece):
        with self.lock:
            self.down += len(piece)

    def fields(self, target, name):
        """All values of a field of the last request for `target`."""
        head = next(head for head in reversed(self.heads) if head.split(b" ")[1] == target)
        fields = [line.split(b":", 1) for line in head.split(b"\r\n")[1:]]
        return [value.strip() for field, value in fields if field.lower() == name.lower()]

    def close(self):
        end_listening(self.listener)


def relay(client, upstream, note=bool, note_answer=bool):
    """Passes on all bytes, both ways, until both have ended; each piece is told to `note`, or `note_answer`."""
    for source, sink, told, is_last in [(client, upstream, note, False), (upstream, client, note_answer, True)]:
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=pump, args=(source, sink, told, is_last), daemon=True).start()


def pump(source, sink, note, is_last):
    try:
        while piece := source.recv(256 * 1024):
            note(piece)
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    finally:
        if is_last:
            source.close()
            sink.close()
