"""docs/operate.md, "systemd and nginx" and "HAProxy", followed to the letter, with the README's configuration of one DataHUB; the
README's own commands; and the units themselves.

Paths are those of a folder instead of the machine's, `systemctl` is one that only notes what it is asked, and the units are acted out.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import textwrap
import unittest
from pathlib import Path

from fronts import haproxy_config, make_certificate, nginx_main, nginx_site
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, ROOT, TARGET, Browser, Machine, accepts, end, free_port, new_key, start_datahub,
    user_of, wait_until,
)
from units import DYNAMIC_USER, IS_ROOT, SHIPPED, Acted, allowed_system_calls, install_gateway, system_calls

API = "/datahubs/tuebingen/api/v4"


def blocks(file, heading):
    """The fenced blocks below a heading: each a language and a text."""
    section = (ROOT / file).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [(kind, textwrap.dedent(text)) for kind, text in re.findall(r"^ *```(\w+(?: test)?)\n(.*?)^ *```$", section, re.M | re.S)]


class Scratch(unittest.TestCase):
    """A folder that stands for the machine's root, a DataHUB, and the README's configuration of it."""

    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.path, self.port, self.admin = self.machine.path, free_port(), free_port()
        self.origin = f"https://localhost:{self.port}"
        self.hub = start_datahub(self.machine, "tuebingen", f"--redirect-uri={self.origin}{BASE}/auth/callback?datahub=tuebingen")
        for folder in ["etc/haproxy", "etc/nginx/conf.d", "etc/systemd/system", "usr/local/bin", "run", "stubs"]:
            (self.path / folder).mkdir(parents=True)

    def here(self, text):
        """The same with paths of the test's own folder, and the program that the tests have."""
        text = text.replace("target/release/arcmanager-gateway", str(TARGET / "debug/arcmanager-gateway"))
        return re.sub(r"(?<![\w.-])/(etc|run|usr/local)/", rf"{self.path}/\1/", text)

    def configuration(self):
        """What the README shows, with what is each operator's own."""
        (text,) = [text for kind, text in blocks("README.md", "Point it at a real GitLab") if kind == "toml"]
        for old, new in [("https://YOUR.HOST", self.origin), ("https://GITLAB.HOST", f"http://127.0.0.1:{self.hub}"),
                         ('client_id = "…"', f'client_id = "{CLIENT_ID}"')]:
            self.assertIn(old, text)
            text = text.replace(old, new)
        return text

    def prepare(self, secrets=("keys", "tuebingen.secret")):
        """What the commands below come to, for tests of the units alone."""
        install_gateway(self.path / "usr/local/bin")
        folder = self.path / "etc/arcmanager-gateway/credentials"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        (folder.parent / "gateway.toml").write_text(self.configuration())
        for name in secrets:
            text = CLIENT_SECRET if name.endswith(".secret") else new_key()
            self.machine.write(folder / name, text + "\n")

    def act(self, **more):
        service = SHIPPED / f"arcmanager-gateway{'@' if more else ''}.service"
        return Acted(self.machine, self.path, [SHIPPED / "arcmanager-gateway.socket"], service, **more)

    def start(self, acted, *around):
        process = acted.start({"GATEWAY__ADMIN__LISTEN": f"127.0.0.1:{self.admin}"}, *around)
        told = self.curl(acted, "/datahubs")
        self.assertIn('"id":"tuebingen"', told, self.machine.log(acted.name))
        return process


    def curl(self, acted, *targets):
        """What the gateway answers on its socket, as to a front."""
        return subprocess.run(["curl", "-sS", "--max-time", "20", "--unix-socket", acted.path, "-H", f"Host: localhost:{self.port}",
                               "-H", "X-CSRF: 1", *(f"http://gateway{BASE}{target}" for target in targets)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


class Readme(Scratch):
    def test_its_commands_make_a_key_keep_a_secret_and_check(self):
        install_gateway(self.path / "usr/local/bin")
        self.machine.write("gateway.toml", self.configuration())
        (text,) = [text for kind, text in blocks("README.md", "Point it at a real GitLab") if kind == "sh test"]
        marked = sum(page.read_text().count("```sh test\n") for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
        self.assertEqual(marked, 1, "a block that says it is tested, and no test knows it")
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=self.path, capture_output=True, text=True, timeout=60,
                              input=CLIENT_SECRET + "\n", env={"PATH": f"{self.path}/usr/local/bin:{os.environ['PATH']}",
                                                               "GATEWAY__ADMIN__LISTEN": f"127.0.0.1:{self.admin}"})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for line in ("configuration: good\n", "tuebingen: good\n"):
            self.assertIn(line, done.stdout)
        self.assertEqual({path.name: path.stat().st_mode & 0o777 for path in (self.path / "credentials").iterdir()},
                         {"keys": 0o600, "tuebingen.secret": 0o600})


class StepByStep(Scratch):
    def run_block(self, kind="sh", typed=None):
        """Runs the next block of commands; gives what it asked `systemctl` for."""
        found, text = next(self.blocks)
        self.assertEqual(found, kind, text)
        asked = self.path / "asked"
        asked.unlink(missing_ok=True)
        paths = f"{self.path}/stubs:{self.path}/usr/local/bin:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"umask 022\n{self.here(text)}"], cwd=ROOT, capture_output=True, text=True,
                              input=typed, env={"PATH": paths, "GATEWAY__ADMIN__LISTEN": f"127.0.0.1:{self.admin}"}, timeout=60)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.told = done.stdout
        return asked.read_text().splitlines() if asked.exists() else []

    def install(self):
        """The first blocks of "systemd and nginx", up to the start."""
        self.blocks = iter(blocks("docs/operate.md", "systemd and nginx"))
        self.machine.write("stubs/systemctl", f'#!/bin/sh\necho "$*" >> {self.path}/asked\n', 0o755)
        self.assertEqual(self.run_block(), [])
        etc = self.path / "etc/arcmanager-gateway"
        self.assertEqual((etc / "gateway.toml").read_text(), (ROOT / "config/production.toml").read_text())
        (etc / "gateway.toml").write_text(self.configuration())
        self.assertEqual(self.run_block(typed=CLIENT_SECRET + "\n"), [])
        self.assertEqual({path.name: path.stat().st_mode & 0o777 for path in (etc / "credentials").iterdir()},
                         {"keys": 0o600, "tuebingen.secret": 0o600})
        self.assertEqual((etc / "credentials").stat().st_mode & 0o777, 0o700)
        self.assertEqual((etc / "gateway.toml").stat().st_mode & 0o777, 0o644)
        self.assertEqual(self.run_block(), ["daemon-reload", "enable --now arcmanager-gateway.socket arcmanager-gateway.service"])
        self.assertIn("configuration: good\n", self.told)
        self.assertIn("tuebingen: good\n", self.told)

    def start_units(self, *drop_ins):
        units = self.path / "etc/systemd/system"
        acted = Acted(self.machine, self.path, [units / "arcmanager-gateway.socket", *(units / path for path in drop_ins)],
                      units / "arcmanager-gateway.service")
        self.start(acted)
        return acted.path

    def edit(self, path, shipped, text):
        """What an operator does with a file that was copied."""
        copied = self.path / path
        self.assertEqual(copied.read_text(), (ROOT / "config" / shipped).read_text())
        copied.write_text(text)
        return copied

    def log_in(self, certificate):
        wait_until(lambda: accepts(self.port), "the front listens")
        browser = Browser(self.origin, certificate)
        landed = browser.log_in("tuebingen")
        self.assertEqual((landed.status, landed.headers["Location"]), (303, "/arcmanager/app/"))
        self.assertEqual(json.loads(browser.call("GET", f"{API}/user").body)["username"], "testuser")

    def test_systemd_and_nginx(self):
        self.install()
        socket, (certificate, key) = self.start_units(), make_certificate(self.machine)
        self.assertEqual(self.run_block(), [])
        site = self.edit("etc/nginx/conf.d/arcmanager-gateway.conf", "nginx/arcmanager-gateway.conf",
                         nginx_site(self.machine, self.port, socket, certificate, key))
        command = ["nginx", "-q", "-p", self.path, "-c", nginx_main(self.machine, f"include {site};")]
        self.machine.write("stubs/nginx", f'#!/bin/sh\nexec {shutil.which("nginx")} {" ".join(map(str, command[1:]))} "$@"\n', 0o755)
        self.assertEqual(self.run_block(), ["reload nginx"])
        self.assertEqual(list(self.blocks), [])
        self.machine.start("nginx", *command)
        self.log_in(certificate)

    @unittest.skipUnless(IS_ROOT, "HAPROXY'S USER IS NOT TESTED: only root can start it as somebody else")
    def test_haproxy(self):
        self.install()
        self.blocks = iter(blocks("docs/operate.md", "HAProxy"))
        self.assertEqual(self.run_block(), ["daemon-reload", "restart arcmanager-gateway.socket arcmanager-gateway.service"])
        socket, (certificate, key) = self.start_units("arcmanager-gateway.socket.d/haproxy.conf"), make_certificate(self.machine)
        config = self.edit("etc/haproxy/haproxy.cfg", "haproxy/haproxy.cfg",
                           haproxy_config(self.machine, self.port, socket, certificate, key))
        self.assertEqual(self.run_block(), ["reload haproxy"])
        self.assertEqual([kind for kind, _ in self.blocks], ["toml"])
        haproxy = self.machine.start("haproxy", "haproxy", "-db", "-f", config)
        self.log_in(certificate)
        self.assertEqual(Path(f"/proc/{haproxy.pid}").owner(), "haproxy")


class Units(Scratch):
    def test_it_starts_with_the_readmes_configuration_of_one_datahub(self):
        self.prepare()
        process = self.start(self.act())
        if IS_ROOT:
            self.assertEqual(user_of(process.pid), DYNAMIC_USER)
            # What it was started from is not its to read.
            told = subprocess.run(["setpriv", f"--reuid={DYNAMIC_USER}", "--clear-groups", "ls",
                                   self.path / "etc/arcmanager-gateway/credentials"], capture_output=True)
            self.assertNotEqual(told.returncode, 0)

    def test_one_of_several_does_so_too(self):
        self.prepare()
        (self.path / "etc/arcmanager-gateway/credentials/another.secret").write_text("of a DataHUB that is gone")
        self.start(self.act(name="arcmanager-gateway@1", instance="1"))

    def test_without_a_secret_it_ends_with_78_and_says_which(self):
        self.prepare(secrets=["keys"])
        acted = self.act()
        process = acted.start({"GATEWAY__ADMIN__LISTEN": "none"})
        self.curl(acted, "/datahubs")
        self.assertEqual(process.wait(20), 78)
        self.assertIn("datahubs.tuebingen.client_secret", self.machine.log(acted.name))
        self.assertIn("tuebingen.secret", self.machine.log(acted.name))
        self.assertIn("78", acted.service.last("RestartPreventExitStatus").split())

    def test_it_says_what_a_unit_of_its_type_waits_for(self):
        self.prepare()
        acted = self.act()
        self.assertEqual((acted.service.last("Type"), acted.service.last("NotifyAccess")), ("notify", "main"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            path = self.path / "run/notify"
            systemd.bind(str(path))
            path.chmod(0o777)
            systemd.settimeout(20)
            # As often as the unit would have it, but for how long that is.
            self.assertTrue(acted.service.last("WatchdogSec"))
            acted.start({"GATEWAY__ADMIN__LISTEN": "none", "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"})
            self.curl(acted, "/datahubs")
            said = ""
            while "READY=1" not in said or said.count("WATCHDOG=1") < 2:
                said += systemd.recv(4096).decode() + "\n"

    def test_keys_among_the_credentials_are_watched(self):
        """systemd never changes them; whoever sets the variable by hand may."""
        self.prepare()
        acted = self.act()
        self.start(acted)
        keys = acted.credentials / "gateway_keys"
        keys.chmod(0o600)
        keys.write_text(keys.read_text() + new_key())
        wait_until(lambda: '"event":"keys_reloaded"' in self.machine.log(acted.name), "the new key is taken over")

    @unittest.skipUnless(shutil.which("strace"), "THE FILTER OF SYSTEM CALLS IS NOT TESTED: strace is not installed")
    def test_every_system_call_that_it_makes_passes_the_units_filter(self):
        self.prepare()
        acted = self.act()
        trace = self.path / "trace"
        # -D: the gateway keeps its process id, which LISTEN_PID names.
        process = self.start(acted, "strace", "-D", "-f", "-qq", "-o", trace)
        told = self.curl(acted, "/auth/login?datahub=tuebingen", "/auth/session", f"{API}/user", "/nowhere")
        self.assertIn("not_logged_in", told)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: '"event":"keys_reloaded"' in self.machine.log(acted.name), "the keys are read again")
        self.assertEqual(end(process), 0, self.machine.log(acted.name))
        wait_until(lambda: "exit_group" in trace.read_text(), "strace has written all")
        lines = trace.read_text().splitlines()
        begin = next(at for at, line in enumerate(lines) if re.search(r'execve\("[^"]*/arcmanager-gateway"', line))
        made = {found[1] for line in lines[begin:] if (found := re.match(r"\d+ +(?:<\.\.\. )?([a-z_0-9]+)[( ]", line))}
        self.assertGreater(len(made), 30)
        self.assertEqual(made - allowed_system_calls(acted.service), set())
        # The twin: a filter without networks would be noticed.
        self.assertIn("accept4", made & set(system_calls("@network-io")))


if __name__ == "__main__":
    unittest.main()
