"""The README's "Replacing the Python backend", followed to the letter: its commands and its nginx lines, there and back.

Paths are those of a folder instead of the machine's, and `systemctl` is one that only notes what it is asked.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import unittest
from pathlib import Path

from cryptography.fernet import Fernet
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, TARGET, Browser, Machine, accepts, free_port, start_datahub, wait_until,
)

IDS = ["tuebingen", "freiburg", "plantmicrobe", "tuebingen_testenv", "dev"]
FETCH = [("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]
JSON = [("Content-Type", "application/json")]
# What the app reads of `document.cookie`.
READABLE = {"logged_in", "timer", "username"}


def steps():
    """The blocks of the section, in order: each a language and a text."""
    section = (ROOT / "README.md").read_text().split("\n## Replacing the Python backend\n")[1].split("\n## ")[0]
    return [(kind, textwrap.dedent(text)) for kind, text in re.findall(r"^ *```(\w+)\n(.*?)^ *```$", section, re.M | re.S)]


class Replacing(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.path = self.machine.path
        for folder in ["etc/nginx", "etc/systemd/system", "usr/local/bin", "srv/arcmanager/backend", "run", "stubs"]:
            (self.path / folder).mkdir(parents=True)
        self.port = free_port()
        self.origin = f"http://localhost:{self.port}"
        uri = f"{self.origin}{BASE}/auth/callback?datahub="
        self.datahubs = {name: start_datahub(self.machine, name, f"--redirect-uri={uri}{name}") for name in IDS}
        self.start_original()
        self.machine.write("stubs/systemctl", f'#!/bin/sh\necho "$*" >> {self.path}/asked\n', 0o755)
        config = self.path / "etc/nginx/nginx.conf"
        self.machine.write("stubs/nginx", f'#!/bin/sh\nexec {shutil.which("nginx")} -q -p {self.path} -c {config} "$@"\n', 0o755)
        self.start_nginx(config)
        self.blocks = iter(steps())

    def start_original(self):
        """The backend, with its keys where they are: in `.env`."""
        openssl = lambda *command, text=None: subprocess.run(["openssl", *command], input=text, capture_output=True, text=True, check=True).stdout
        private = openssl("genrsa", "-traditional", "2048")
        public = openssl("rsa", "-pubout", text=private)
        body = lambda text: "\n".join(text.strip().splitlines()[1:-1])
        fernet = Fernet.generate_key().decode()
        env = {"PRIVATE_RSA": body(private), "PUBLIC_RSA": body(public), "FERNET": fernet, "SECRET_KEY": "of the original's login"}
        for name in IDS:
            env |= {f"{name.upper()}_CLIENT_ID": CLIENT_ID, f"{name.upper()}_CLIENT_SECRET": CLIENT_SECRET}
        self.machine.write("srv/arcmanager/backend/.env", "".join(f'{name}="{value}"\n' for name, value in env.items()))
        socket = self.path / "run/arcmanager-backend.sock"
        self.machine.start(
            "original", sys.executable, "-m", "uvicorn", "original:app", "--uds", socket, "--timeout-keep-alive", "75",
            env=env | {
                "PYTHONPATH": str(ROOT / "tests/deploy"), "BACKEND_ORIGIN": self.origin, "BACKEND_FOLDER": str(self.path),
                "BACKEND_PUBLIC_KEY": str(self.machine.write("public.pem", public)),
                "BACKEND_FERNET_KEY": str(self.machine.write("fernet", fernet)),
                "BACKEND_TARGETS": json.dumps({name: f"http://127.0.0.1:{port}" for name, port in self.datahubs.items()}),
            })
        wait_until(socket.is_socket, f"the original listens: {self.machine.log('original')}", 60)

    def start_nginx(self, config):
        """nginx as it is before, with the app and the backend."""
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
        self.nginx = self.machine.start("nginx", self.path / "stubs/nginx")
        wait_until(lambda: accepts(self.port), "nginx listens")

    # Following.

    def here(self, text):
        """The same with paths of the test's own folder, and the program that the tests have."""
        text = text.replace("target/release/arcmanager-gateway", str(TARGET / "debug/arcmanager-gateway"))
        return re.sub(r"(?<![\w.-])/(etc|run|srv|usr/local)/", rf"{self.path}/\1/", text)

    def block(self, kind):
        found, text = next(self.blocks)
        self.assertEqual(found, kind, text)
        return self.here(text)

    def run_block(self):
        """Runs the next block of commands; gives what it asked `systemctl` for."""
        asked = self.path / "asked"
        asked.unlink(missing_ok=True)
        paths = f"{self.path}/stubs:{self.path}/usr/local/bin:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", self.block("sh")], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "PATH": paths}, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for file in (self.path / "etc").rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.write_text(self.here(file.read_text()))
        return asked.read_text().splitlines() if asked.exists() else []

    def edit_configuration(self):
        """What the README leaves to whoever knows the installation."""
        config = self.path / "etc/arcmanager-gateway/gateway.toml"
        text = config.read_text().replace('public_url = "https://arcmanager.example.org"', f'public_url = "{self.origin}"')
        for name in IDS:
            host = name.replace("_", "-")
            text = text.replace(f'"https://{host}.example.org"', f'"http://127.0.0.1:{self.datahubs[name]}"')
            text = text.replace(f'"REPLACE-application-id-{host}"', f'"{CLIENT_ID}"')
            self.machine.write(f"etc/arcmanager-gateway/{name}.secret", CLIENT_SECRET)
        self.assertNotRegex(re.sub("(?m)^#.*", "", text), "example.org|REPLACE")
        config.write_text(text + "\n" + self.block("toml"))

    def start_service(self):
        """What systemd would start: the unit and its drop-in."""
        units = self.path / "etc/systemd/system"
        command, environment, credentials = None, {}, self.path / "etc/arcmanager-gateway"
        for file in ["arcmanager-gateway.service", "arcmanager-gateway.service.d/arcmanager.conf"]:
            for line in (units / file).read_text().splitlines():
                key, _, value = line.partition("=")
                if key == "ExecStart":
                    command = value
                elif key == "Environment":
                    name, _, value = value.partition("=")
                    environment[name] = value.replace("%d", str(credentials))
                elif key == "LoadCredential":
                    name, _, source = value.partition(":")
                    self.assertEqual(source, str(credentials / name))
                    self.assertTrue((credentials / name).is_file(), name)
        self.machine.start("gateway", *shlex.split(command), env=environment | {"GATEWAY__ADMIN__LISTEN": "none"})
        wait_until((self.path / "run/arcmanager-gateway.sock").is_socket, f"the gateway listens: {self.machine.log('gateway')}")

    def switch(self, to):
        """Runs the next block, which lets nginx ask the other one."""
        self.assertEqual(self.run_block(), ["reload nginx"])
        self.reload_nginx()
        self.assertEqual(self.who_answers(), to)

    def reload_nginx(self):
        """As `systemctl` does; then waits for the workers of before to end, which answer some more."""
        workers = lambda: set(Path(f"/proc/{self.nginx.pid}/task/{self.nginx.pid}/children").read_text().split())
        before = workers()
        self.nginx.send_signal(signal.SIGHUP)
        wait_until(lambda: workers() and not before & workers(), "nginx has read its configuration")

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
        self.assertEqual(self.run_block(), [])
        self.assertEqual(self.run_block(), [])
        self.edit_configuration()
        for name in ["keys", "bridge-private.pem", "bridge-fernet"]:
            self.assertEqual((self.path / "etc/arcmanager-gateway" / name).stat().st_mode & 0o777, 0o600, name)
        self.assertEqual(self.run_block(), ["daemon-reload", "enable --now arcmanager-gateway.socket arcmanager-gateway.service"])
        self.start_service()
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
        self.switch("gateway")
        self.check_gateway(before)

        # 6: and back. Who was logged in before is so again, and who was not is not.
        self.switch("backend")
        self.is_in(before)
        self.assertEqual(self.fetch(self.after, "GET", "/projects/arc_list").status, 401)
        self.after.log_in("freiburg", "joerg")
        self.assertEqual(self.is_in(self.after, "joerg")["target"], "freiburg")
        self.assertEqual(list(self.blocks), [])

        # Sessions of both live side by side: the gateway's has waited.
        link = self.path / "etc/nginx/arcmanager/api.conf"
        link.unlink()
        link.symlink_to("gateway.conf")
        self.reload_nginx()
        self.assertEqual(self.is_in(self.after)["target"], "tuebingen")
        self.assertNotRegex(self.machine.log("gateway") + (self.path / "nginx-error.log").read_text(), "code=|state=|gAAAA")

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
