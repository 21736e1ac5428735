"""What stands behind the page: two test DataHUBs and the gateway, as `make demo` starts them, on free ports.

The gateway reaches the DataHUBs through a wire that keeps what passes, so that the tests know the real tokens.
"""

import os
import re
import secrets
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "debug"
NAMES = {"tuebingen": "DataHUB Tübingen", "freiburg": "DataHUB Freiburg"}


class World:
    def __init__(self, token_lifetime_s=600, apart=False, **environment):
        """`apart`: the gateway and the DataHUBs are three sites, as far as a browser can tell."""
        missing = [name for name in ("arcmanager-gateway", "datahub") if not (BIN / name).exists()]
        if missing:
            raise SystemExit(f"{BIN} lacks {' and '.join(missing)}: cargo build -p arcmanager-gateway -p datahub")
        self.processes, self.wires, self.client_secrets = [], {}, []
        self.log = tempfile.TemporaryFile()
        try:
            self._start(token_lifetime_s, apart, environment)
        except BaseException:
            self.close()
            raise

    def _start(self, token_lifetime_s, apart, more):
        self.session_key = make_key()
        port = free_port()
        self.host = f"{'gateway.' if apart else ''}localhost:{port}"
        self.origin = f"http://{self.host}"
        self.app = f"{self.origin}/arcmanager/app/"
        environment = {
            "RUST_LOG": "trace",  # The log is searched for secrets.
            "GATEWAY__SERVER__LISTEN": f"127.0.0.1:{port}",
            "GATEWAY__SERVER__PUBLIC_URL": self.origin,
            "GATEWAY__SESSION__KEYS": self.session_key,
            "GATEWAY__SESSION__REMEMBER": "1s",
        }
        for datahub, name in NAMES.items():
            secret = secrets.token_hex(32)  # As GitLab makes them.
            address = f"127.0.0.1:{free_port()}"
            url = f"http://{datahub}.localhost:{address.split(':')[1]}" if apart else f"http://{address}"
            arguments = ["--name", name, "--listen", address, "--public-url", url, "--client-id", "demo",
                         "--token-lifetime", str(token_lifetime_s)]
            process = self._run("datahub", *arguments, stdout=subprocess.PIPE, env={"DATAHUB_CLIENT_SECRET": secret})
            process.stdout.readline()  # It is up.
            self.wires[datahub] = Wire(f"http://{address}")
            self.client_secrets.append(secret)
            section = f"GATEWAY__DATAHUBS__{datahub.upper()}__"
            environment |= {f"{section}URL": url, f"{section}CONNECT": self.wires[datahub].address,
                            f"{section}CLIENT_SECRET": secret}
        gateway = self._run("arcmanager-gateway", "--config", "config/demo.toml", stdout=self.log, env=environment | more)
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

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
            if process.stdout:
                process.stdout.close()
        for wire in self.wires.values():
            wire.close()
        self.log.close()

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


class Wire:
    """Passes bytes between the gateway and one DataHUB, and keeps them."""

    def __init__(self, url):
        self.url = url
        self.passed = bytearray()
        self.answers = {}  # Of a path: what is answered here, the DataHUB unasked.
        self.replaced = {}  # In what the DataHUB writes: one text by another.
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def tokens(self):
        """Access and refresh tokens, as the token endpoint gave them out."""
        return [token.decode() for token in re.findall(rb'"(?:access|refresh|id)_token":\s*"([^"]+)"', bytes(self.passed))]

    def bearer(self):
        """The access token that was used last."""
        return re.findall(rb"(?i)authorization: bearer (\S+)", bytes(self.passed))[-1].decode()

    def close(self):
        self.listener.close()

    def _accept(self):
        host, port = self.url.removeprefix("http://").split(":")
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection((host, int(port)))
            except OSError:
                return  # Closed.
            for source, target, replaced in ((near, far, {}), (far, near, self.replaced)):
                threading.Thread(target=self._pump, args=(source, target, replaced), daemon=True).start()

    def _pump(self, source, target, replaced):
        try:
            while piece := source.recv(65536):
                self.passed += piece
                for old, new in replaced.items():
                    piece = piece.replace(old, new)
                # The gateway writes a head in one go.
                asked = re.match(rb"(?:GET|HEAD) ([^ ?]+)", piece)
                if asked and (answer := self.answers.get(asked[1].decode())):
                    source.sendall(answer)
                else:
                    target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()


def make_key():
    return subprocess.run([BIN / "arcmanager-gateway", "key"], check=True, capture_output=True, text=True).stdout.strip()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
