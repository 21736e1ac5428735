"""What a measurement needs to run: processes in a scratch folder, each on its core.

The load generator, which is also the DataHUB behind everything, has core 0 for itself; whatever is measured runs on core 1.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
RELEASE = os.path.join(TARGET, "release")
LOADS, MEASURED = 0, 1

# What is asked for at the DataHUB. The answer has no Link field; one with the DataHUB's own addresses, which the gateway
# rewrites; one with another's, which it drops.
PAGE = "/api/v4/groups?per_page=20&page=1"
LINKED = "/api/v4/projects?per_page=20&page=1"
ELSEWHERE = "/api/v4/groups/7/projects?per_page=20&page=1"
LINKED_BY_TLS = "/api/v4/users/7/projects?per_page=20&page=1"
FILE = "/api/v4/projects/230/packages/generic/reads/1.0.0/%d.bin"


class Stage:
    """Ends its processes and removes its folder when it is left."""

    def __init__(self, tools=RELEASE):
        self.folder = tempfile.mkdtemp(prefix="bench-")
        self.processes = []
        self.tools = tools  # the folder of `load` and `datahub`

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, command, core=None, **more):
        pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
        more.setdefault("stdout", subprocess.DEVNULL)
        process = subprocess.Popen(command, preexec_fn=pin, **more)
        self.processes.append(process)
        return process

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)
        return self.path(name)


class Load:
    """The load generator, and the DataHUB's two ports."""

    def __init__(self, stage, core=LOADS):
        self.plain, self.tls = free_port(), free_port()
        self.ca_file, key = certificate(stage)
        answers = {
            ELSEWHERE: answer("https://git.example.org"),
            PAGE: answer(None),
            LINKED: answer(f"http://127.0.0.1:{self.plain}"),
            LINKED_BY_TLS: answer(f"https://localhost:{self.tls}"),
        }
        command = [os.path.join(stage.tools, "load")]
        self.process = stage.start(command, core=core, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._say({
            "plain": self.plain,
            "tls": {"port": self.tls, "certificates": self.ca_file, "key": key},
            "answers": [{"path": path.split("?")[0], "response": response} for path, response in answers.items()],
        })
        self._hear()

    def ask(self, kind, **order):
        """What it tells, a dictionary a line; see `load/src/order.rs` for what to ask."""
        self._say({kind: order})
        told = []
        while "done" not in (line := self._hear()):
            told.append(line)
        for line in told:
            calls = line.get("calls", 0)
            assert not line.get("failed"), f"{line['name']}: {line['failed']} of {calls} answers are none of 2xx"
            assert line.get("authorized", calls) == calls, f"{line['name']}: calls reached the DataHUB without a token"
        return told

    def _say(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def _hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the load generator has ended")
        return json.loads(line)


def answer(datahub):
    """GitLab's answer to a page of projects, as it goes over the wire."""
    with open(os.path.join(HERE, "answer.http"), encoding="utf-8") as file:
        head, body = file.read().split("\n\n")
    lines = [line for line in head.split("\n") if datahub or not line.startswith("Link:")]
    head = "\r\n".join(lines).replace("@LENGTH@", str(len(body)))
    return (head + "\r\n\r\n" + body).replace("@DATAHUB@", datahub or "")


def certificate(stage):
    """Paths of one for localhost, signed by itself, and of its key."""
    paths = stage.path("datahub.pem"), stage.path("datahub.key")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-addext", "basicConstraints=critical,CA:FALSE", "-out", paths[0], "-keyout", paths[1]],
                   check=True, stderr=subprocess.DEVNULL)
    return paths


def end(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def memory(pids, what="Pss"):
    """Of these processes together, in bytes: `Pss` or `Rss`."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += int(re.search(rf"^{what}:\s+(\d+)", file.read(), re.M).group(1)) * 1024
    return total


def peak_memory(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) * 1024


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(port, process=None):
    for _ in range(400):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process and process.poll() is not None:
                break
            time.sleep(0.05)
    raise SystemExit(f"nothing listens at port {port}")
