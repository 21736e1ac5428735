"""docs/arcmanager.md, "Replacing the Python backend", followed to the letter: all its commands and nginx lines, there, back, and for good.

Paths are those of a folder instead of the machine's, hosts the test's own, the gateway the tests' build, and `systemctl` is a small
one that starts, restarts and reloads the processes that the units describe (`services.py`).
"""

import json
import os
import re
import shutil
import socket
import subprocess
import textwrap
import unittest
from pathlib import Path

from cryptography.fernet import Fernet
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GUNICORN, ROOT, TARGET, Browser, Machine, accepts, free_port, start_datahub, wait_until,
)
from services import Services

IDS = ["tuebingen", "freiburg", "plantmicrobe", "tuebingen_testenv", "dev"]
FETCH = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]
JSON = [("Content-Type", "application/json")]
# What the app reads of `document.cookie`.
READABLE = {"logged_in", "timer", "username"}


def steps():
    """The blocks of the section, in order: each a language and a text."""
    section = (ROOT / "docs/arcmanager.md").read_text().split("\n## Replacing the Python backend\n")[1].split("\n## ")[0]
    found = [(kind, textwrap.dedent(text)) for kind, text in re.findall(r"^ *```(\w+)\n(.*?)^ *```$", section, re.M | re.S)]
    assert len(found) * 2 == section.count("```") and "~~~" not in section, "a block that the test does not see"
    return found


class Replacing(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.path = self.machine.path
        units = "etc/systemd/system"
        for folder in ["etc/nginx", f"{units}/arcmanager-gateway.service.d", "usr/local/bin", "srv/arcmanager/backend", "run", "stubs"]:
            (self.path / folder).mkdir(parents=True)
        self.port = free_port()
        self.origin = f"http://localhost:{self.port}"
        uri = f"{self.origin}{BASE}/auth/callback?datahub="
        self.datahubs = {name: start_datahub(self.machine, name, f"--redirect-uri={uri}{name}") for name in IDS}
        # Where what is to be filled in leads to.
        self.hosts = {f"https://{name.upper().replace('_', '-')}.HOST": f"http://127.0.0.1:{port}" for name, port in self.datahubs.items()}
        self.hosts["https://YOUR.HOST"] = self.origin
        self.write_original(units)
        # The admin's port may be somebody else's here.
        self.machine.write(f"{units}/arcmanager-gateway.service.d/test.conf", "[Service]\nEnvironment=GATEWAY__ADMIN__LISTEN=none\n")
        self.write_nginx(units)
        self.services = Services(self.machine)
        self.addCleanup(self.services.close)
        self.services.ask("start", "arcmanager-backend", "nginx")
        wait_until(lambda: accepts(self.port), "nginx listens")
        wait_until(self.backend_listens, f"the original listens: {self.machine.log('arcmanager-backend.service')}", 60)
        self.blocks = iter(steps())

    def write_original(self, units):
        """The backend and its unit, with its keys where they are: in `.env`."""
        openssl = lambda *command, text=None: subprocess.run(["openssl", *command], input=text, capture_output=True, text=True, check=True).stdout
        private = openssl("genrsa", "-traditional", "2048")
        public = openssl("rsa", "-pubout", text=private)
        body = lambda text: "\n".join(text.strip().splitlines()[1:-1])
        fernet = Fernet.generate_key().decode()
        env = {"PRIVATE_RSA": body(private), "PUBLIC_RSA": body(public), "FERNET": fernet, "SECRET_KEY": "of the original's login"}
        for name in IDS:
            env |= {f"{name.upper()}_CLIENT_ID": CLIENT_ID, f"{name.upper()}_CLIENT_SECRET": CLIENT_SECRET}
        env |= {"BACKEND_ORIGIN": self.origin, "BACKEND_FOLDER": str(self.path), "PYTHONPATH": str(ROOT / "tests/deploy")}
        targets = json.dumps({name: f"http://127.0.0.1:{port}" for name, port in self.datahubs.items()})
        self.machine.write("srv/arcmanager/backend/.env", "".join(f'{name}="{value}"\n' for name, value in env.items())
                           + f"BACKEND_TARGETS='{targets}'\n")
        self.backend = self.path / "run/arcmanager-backend.sock"
        command = " ".join([*GUNICORN, f"--bind unix:{self.backend}", "original:app"])
        self.machine.write(f"{units}/arcmanager-backend.service", f"""[Service]
WorkingDirectory={self.path}/srv/arcmanager/backend
ExecStart=/bin/bash -c 'set -a; . ./.env; exec {command}'
""")

    def backend_listens(self):
        with socket.socket(socket.AF_UNIX) as asking:
            return asking.connect_ex(str(self.backend)) == 0

    def write_nginx(self, units):
        """nginx as it is before, with the app and the backend."""
        config = self.path / "etc/nginx/nginx.conf"
        self.machine.write("stubs/nginx", f'#!/bin/sh\nexec {shutil.which("nginx")} -q -p {self.path} -c {config} "$@"\n', 0o755)
        self.machine.write(f"{units}/nginx.service", f"[Service]\nExecStart={self.path}/stubs/nginx\nExecReload=/bin/kill -HUP $MAINPID\n")
        self.machine.write("etc/nginx/proxy_params", "proxy_set_header Host $http_host;\nproxy_set_header X-Real-IP $remote_addr;\n"
                           "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\nproxy_set_header X-Forwarded-Proto $scheme;\n")
        self.location = next(text for kind, text in steps() if kind == "nginx")
        temporary = " ".join(f"{kind}_temp_path {self.path}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
        config.write_text(f"""
            {"user root;" if os.geteuid() == 0 else ""} daemon off; pid {self.path}/nginx.pid; error_log {self.path}/nginx-error.log; events {{ }}
            http {{
                {temporary} access_log {self.path}/nginx-access.log;
                server {{
                    listen 127.0.0.1:{self.port};
                    location /arcmanager/app/ {{ alias {ROOT}/tests/browser/arcmanager/; }}
{self.here(self.location)}
                }}
            }}""")

    # Following.

    def here(self, text):
        """The same with paths of the test's own folder, its hosts, and the program that the tests have."""
        text = re.sub(r"https://[A-Z-]+\.HOST", lambda host: self.hosts[host[0]], text)
        text = text.replace("target/release/arcmanager-gateway", str(TARGET / "debug/arcmanager-gateway"))
        return re.sub(r"(?<![\w.-])/(etc|run|srv|usr/local)/", rf"{self.path}/\1/", text)

    def block(self, kind):
        found, text = next(self.blocks)
        self.assertEqual(found, kind, text)
        return self.here(text)

    def run_block(self):
        """Runs the next block of commands; gives what it asked `systemctl` for."""
        return self.run_commands(self.block("sh"))

    def run_commands(self, text):
        self.services.asked.clear()
        paths = f"{self.path}/stubs:{self.path}/usr/local/bin:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "PATH": paths}, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for file in (self.path / "etc").rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.write_text(self.here(file.read_text()))
        return list(self.services.asked)

    def switch(self, to):
        """Runs the next block, which lets nginx ask the other one; gives its commands."""
        commands = self.block("sh")
        self.switch_by(commands, to)
        return commands

    def switch_by(self, commands, to):
        """nginx's workers of before answer some more, so this waits for them to end."""
        pid = self.services.processes["nginx.service"].pid
        workers = lambda: set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        before = workers()
        self.assertEqual(self.run_commands(commands), ["reload nginx"])
        wait_until(lambda: workers() and not before & workers(), "nginx has read its configuration")
        self.assertEqual(self.who_answers(), to)

    # Asking.

    def who_answers(self):
        return "gateway" if Browser(self.origin).send("GET", f"{BASE}/datahubs").status == 200 else "backend"

    def fetch(self, browser, method, path, headers=(), body=None):
        return browser.send(method, BASE + path, [*FETCH, *headers], body)

    def is_in(self, browser, user="testuser"):
        """Whether the backend knows who that is, whoever is asked."""
        answer = self.fetch(browser, "GET", "/projects/arc_list?owned=true&page=1")
        self.assertEqual((answer.status, answer.headers["total-pages"]), (200, "7"), answer.body)
        self.assertEqual(json.loads(answer.body)["user"], user)
        return json.loads(answer.body)

    def test_step_by_step(self):
        before = Browser(self.origin)
        self.assertEqual(before.log_in("tuebingen").status, 307)
        self.is_in(before)

        # 2 and 3: keys and configuration.
        for _ in range(3):
            self.assertEqual(self.run_block(), [])
        secrets = self.path / "etc/arcmanager-gateway/credentials"
        for name in ["keys", "bridge-private.pem", "bridge-fernet", *(f"{name}.secret" for name in IDS)]:
            self.assertEqual((secrets / name).stat().st_mode & 0o777, 0o600, name)
        written = (secrets.parent / "gateway.toml").read_text()
        self.assertNotRegex(re.sub("(?m)^#.*", "", written), r"example\.org|REPLACE|HOST")
        self.assertEqual(self.run_block(), ["daemon-reload", "enable --now arcmanager-gateway.socket arcmanager-gateway.service"])
        self.is_in(before)

        # 4: the switch. Still nobody notices.
        config = self.path / "etc/nginx/nginx.conf"
        location = self.block("nginx")
        (self.path / "etc/nginx/arcmanager").mkdir()
        self.machine.write("etc/nginx/arcmanager/python.conf", location)
        self.assertIn(location, config.read_text())
        config.write_text(config.read_text().replace(location, self.block("nginx")))
        self.switch("backend")
        self.is_in(before)

        # 5: there.
        there = self.switch("gateway")
        self.check_gateway(before)

        # 6: and back. Who was logged in before is so again, and who was not is not.
        self.switch("backend")
        self.is_in(before)
        self.assertEqual(self.fetch(self.after, "GET", "/projects/arc_list").status, 401)
        self.after.log_in("freiburg", "joerg")
        self.assertEqual(self.is_in(self.after, "joerg")["target"], "freiburg")
        # Sessions of both live side by side: the gateway's has waited.
        self.switch_by(there, "gateway")
        self.assertEqual(self.is_in(self.after)["target"], "tuebingen")

        # 7: for good. What the gateway sealed goes on, what the backend signed is over.
        data = self.after.cookies["data"]
        self.assertEqual(self.ask_backend(data), 200)
        keys = [(secrets / name).read_text() for name in ["bridge-private.pem", "bridge-fernet"]]
        self.assertEqual(self.run_block(), ["restart arcmanager-backend arcmanager-gateway"])
        wait_until(self.backend_listens, "the original listens again", 60)
        for name, old in zip(["bridge-private.pem", "bridge-fernet"], keys):
            self.assertNotEqual((secrets / name).read_text(), old, name)
        self.assertEqual(self.is_in(self.after)["target"], "tuebingen")
        self.assertEqual(self.ask_backend(data), 401)
        self.assertEqual(list(self.blocks), [], "each block was run")
        log = self.machine.log("arcmanager-gateway.service") + (self.path / "nginx-error.log").read_text()
        self.assertNotRegex(log, "code=|state=|gAAAA")

    def ask_backend(self, data):
        """The status of a call to the backend itself, with a cookie that it once signed."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(20)
            asking.connect(str(self.backend))
            asking.sendall(f"GET {BASE}/user/getUser HTTP/1.1\r\nHost: localhost\r\nCookie: data={data}\r\nConnection: close\r\n\r\n".encode())
            return int(asking.recv(4096).split()[1])

    def check_gateway(self, before):
        """A login and a call of each kind, as the app makes them."""
        refused = self.fetch(before, "GET", "/projects/arc_list")
        self.assertEqual((refused.status, json.loads(refused.body)["code"]), (401, "not_logged_in"))
        out = self.fetch(before, "GET", "/auth/logout")
        self.assertEqual((out.status, out.body), (200, b"logout successful"))
        self.assertFalse(READABLE & set(before.cookies))
        self.after = browser = Browser(self.origin)
        landed = browser.log_in("tuebingen")
        self.assertEqual((landed.status, landed.headers["Location"]), (303, "/arcmanager/app/index.html"))
        self.assertLessEqual(READABLE, set(browser.cookies))
        self.assertEqual(browser.send("GET", "/arcmanager/app/index.html").status, 200)
        self.assertEqual(self.is_in(browser)["cookies"], ["data"])
        for method, path, body in [
            ("GET", "/projects/arc_path?path=a%20b/%C3%BC&id=7&page=1&branch=main%20", None), ("POST", "/projects/createArc", {"name": "ü"}),
            ("PUT", "/tnt/saveSheet", {}), ("GET", "/user/getUser", None), ("GET", "/validate/validateArc?id=7", None),
            ("GET", "/search/getArcJson", None),
        ]:
            answer = self.fetch(browser, method, path, JSON if body is not None else (), None if body is None else json.dumps(body).encode())
            self.assertEqual((answer.status, json.loads(answer.body)["user"]), (200, "testuser"), path)
        missing = self.fetch(browser, "DELETE", "/fnf/deleteFile?id=7")
        self.assertEqual((missing.status, json.loads(missing.body)["detail"]), (404, "testuser has no such file"))
        self.assertEqual(self.fetch(Browser(self.origin), "GET", "/projects/public_arcs?target=dev").status, 200)
        parts = [("chunkNumber", "0"), ("totalChunks", "1"), ("name", "a.bin")]
        form = "".join(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts)
        form += '--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n' + "x" * (2 << 20) + "\r\n--b--\r\n"
        sent = self.fetch(browser, "POST", "/fnf/uploadFile", [("Content-Type", "multipart/form-data; boundary=b")], form.encode())
        self.assertEqual((sent.status, json.loads(sent.body)["pieces"][0]["size"]), (200, 2 << 20), sent.body)
        self.assertEqual(self.fetch(browser, "GET", "/datahubs/tuebingen/api/v4/projects?page=1").status, 200)
        self.assertEqual(self.fetch(browser, "GET", "/auth/refresh").body, b"Session refresh was successful!")


class NginxFiles(unittest.TestCase):
    def test_both_say_the_same_of_calls(self):
        """One is for a host of the gateway's own, the other for what is included in the ARCmanager's."""
        own, included = (
            {line.strip() for line in (ROOT / f"config/nginx/{name}.conf").read_text().splitlines()
             if re.match(r"\s*(proxy_(?!pass)|gzip|client_max_body_size|client_body_timeout|error_|return 502)", line)}
            for name in ["arcmanager-gateway", "arcmanager-api"])
        self.assertEqual(own, included)
        self.assertGreater(len(own), 22)

    def test_nginx_itself_never_says_504(self):
        """The app would take it for an upload that goes on. Times are shorter than the file's; nobody serves the socket, or nobody is there."""
        machine = Machine()
        self.addCleanup(machine.close)
        mute = socket.socket(socket.AF_UNIX)
        self.addCleanup(mute.close)
        path = machine.path / "mute.sock"
        included = (ROOT / "config/nginx/arcmanager-api.conf").read_text().replace("/run/arcmanager-gateway.sock", str(path))
        included = re.sub(r"(proxy_(read|send)_timeout) \d+s", r"\1 1s", included)
        port = free_port()
        temporary = " ".join(f"{kind}_temp_path {machine.path}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
        config = machine.write("nginx.conf", f"""
            {"user root;" if os.geteuid() == 0 else ""} daemon off; pid {machine.path}/pid; error_log {machine.path}/error.log; events {{ }}
            http {{ {temporary} access_log off; server {{ listen 127.0.0.1:{port}; {included} }} }}""")
        machine.start("nginx", "nginx", "-q", "-p", machine.path, "-c", config)
        wait_until(lambda: accepts(port), f"nginx listens: {machine.log('nginx')}")
        for case, body in [("nobody is there", b"x"), ("nobody serves it", b"x"), ("nobody serves it, of much", b"x" * (8 << 20))]:
            if case == "nobody serves it":
                mute.bind(str(path))
                mute.listen()
            answer = Browser(f"http://localhost:{port}").send("POST", f"{BASE}/fnf/uploadFile", FETCH, body)
            self.assertEqual((answer.status, answer.headers["Content-Type"]), (502, "application/problem+json"), case)
            self.assertIsInstance(json.loads(answer.body)["detail"], str)


if __name__ == "__main__":
    unittest.main()
