"""The container image: made by docker/build.sh with buildah, looked into, and run as root of a file system of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import time
import unittest
import urllib.parse

from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, Browser, Machine, accepts, free_port, start_datahub, wait_until,
)


class TheImage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not shutil.which("buildah"):
            raise unittest.SkipTest("THE IMAGE IS NOT TESTED: buildah is not installed (apt-get install buildah)")
        if os.geteuid() != 0:
            raise unittest.SkipTest("THE IMAGE IS NOT TESTED: only root may mount it and change its root")
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        # Images and containers of this test only; vfs is what works everywhere, in a container too.
        storage = machine.write("storage.conf", f"""
            [storage]
            driver = "vfs"
            graphroot = "{machine.path}/storage"
            runroot = "{machine.path}/run"
        """)
        cls.env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}
        begun = time.monotonic()
        built = subprocess.run([ROOT / "docker/build.sh"], env={**cls.env, "BUILDER": "buildah"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert built.returncode == 0, built.stdout
        print(f"{built.stdout.strip().splitlines()[-1]}; made in {time.monotonic() - begun:.0f} s", flush=True)
        cls.config = json.loads(cls.buildah("inspect", "--type", "image", "arcmanager-gateway:latest"))["Docker"]
        cls.container = cls.buildah("from", "arcmanager-gateway:latest").strip()
        cls.addClassCleanup(cls.buildah, "rm", cls.container)
        cls.root = pathlib.Path(cls.buildah("mount", cls.container).strip())
        cls.addClassCleanup(cls.buildah, "umount", cls.container)

    @classmethod
    def buildah(cls, *command):
        return subprocess.run(["buildah", *command], env=cls.env, check=True, capture_output=True, text=True).stdout

    def test_it_is_one_file_in_one_layer(self):
        files = [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if not path.is_dir()]
        # The folders that buildah makes in a container for what it would mount there are empty, and not in the image.
        self.assertEqual(files, ["arcmanager-gateway"])
        self.assertEqual(len(self.config["rootfs"]["diff_ids"]), 1)
        self.assertEqual((self.root / "arcmanager-gateway").stat().st_mode & 0o7777, 0o755)

    def test_it_is_small(self):
        size = (self.root / "arcmanager-gateway").stat().st_size
        self.assertLess(size, 20 * 1024 * 1024)

    def test_it_needs_no_library_of_any_system(self):
        told = subprocess.run(["ldd", self.root / "arcmanager-gateway"], capture_output=True, text=True)
        self.assertRegex(told.stdout + told.stderr, "statically linked|not a dynamic executable")

    def test_it_says_how_it_is_run(self):
        config = self.config["config"]
        self.assertEqual(config["User"], "65532:65532")
        self.assertEqual(config["Entrypoint"], ["/arcmanager-gateway"])
        self.assertEqual(config["Healthcheck"]["Test"], ["CMD", "/arcmanager-gateway", "health"])
        self.assertEqual(config["StopSignal"], "SIGTERM")
        self.assertEqual(list(config["ExposedPorts"]), ["8000"])

    def test_no_variable_of_it_is_a_secret(self):
        self.assertEqual(self.config["config"]["Env"], ["GATEWAY__SERVER__LISTEN=0.0.0.0:8000"])

    def test_the_dockerfile_says_the_same(self):
        text = (ROOT / "docker/Dockerfile").read_text()
        gateway = text[text.index("FROM scratch AS gateway"):]
        for line in ["USER 65532:65532", "ENV GATEWAY__SERVER__LISTEN=0.0.0.0:8000", "EXPOSE 8000", "STOPSIGNAL SIGTERM",
                     'CMD ["/arcmanager-gateway", "health"]', 'ENTRYPOINT ["/arcmanager-gateway"]']:
            self.assertIn(line, gateway)

    def test_it_serves_in_an_empty_root_as_nobody(self):
        """With nothing but the binary: no /dev, /proc or /etc, and no way to write."""
        hub = start_datahub(self.machine, "datahub")
        port, admin = free_port(), free_port()
        # From variables alone, as a container has them; and nothing of this process's own.
        env = {
            "GATEWAY__SERVER__LISTEN": f"127.0.0.1:{port}",
            "GATEWAY__SERVER__PUBLIC_URL": f"http://localhost:{port}",
            "GATEWAY__ADMIN__LISTEN": f"127.0.0.1:{admin}",
            "GATEWAY__SESSION__KEYS": subprocess.check_output([GATEWAY, "key"], text=True).strip(),
            "GATEWAY__DATAHUBS__DEMO__URL": f"http://127.0.0.1:{hub}",
            "GATEWAY__DATAHUBS__DEMO__CLIENT_ID": CLIENT_ID,
            "GATEWAY__DATAHUBS__DEMO__CLIENT_SECRET": CLIENT_SECRET,
        }
        inside = ["chroot", "--userspec=65532:65532", self.root, "/arcmanager-gateway"]
        with open(self.machine.path / "image.log", "ab") as log:
            process = subprocess.Popen(inside, env={**env, "PATH": os.environ["PATH"]}, stdout=log, stderr=log)
        self.machine.processes.append(process)
        wait_until(lambda: process.poll() is not None or accepts(port), "the image serves")
        self.assertIsNone(process.poll(), self.machine.log("image"))

        self.assertEqual(os.stat(f"/proc/{process.pid}").st_uid, 65532)
        healthz = Browser(f"http://localhost:{admin}").send("GET", "/healthz")
        self.assertEqual((healthz.status, healthz.body), (200, b"alive\n"))
        health = subprocess.run([*inside, "health"], env={**env, "PATH": os.environ["PATH"]}, timeout=10)
        self.assertEqual(health.returncode, 0)

        browser = Browser(f"http://localhost:{port}")
        datahubs = browser.send("GET", f"{BASE}/datahubs")
        self.assertEqual([datahub["id"] for datahub in json.loads(datahubs.body)], ["demo"])
        asked = browser.send("GET", f"{BASE}/auth/login?datahub=demo")
        self.assertEqual(asked.status, 302)
        there = urllib.parse.urlsplit(asked.headers["Location"])
        self.assertEqual(f"{there.scheme}://{there.netloc}{there.path}", f"http://127.0.0.1:{hub}/oauth/authorize")

        self.assertEqual(browser.log_in("demo").status, 303)
        user = browser.call("GET", "/datahubs/demo/api/v4/user")
        self.assertEqual(json.loads(user.body)["username"], "testuser")

        process.terminate()
        self.assertEqual(process.wait(10), 0)
        unhealthy = subprocess.run([*inside, "health"], env={**env, "PATH": os.environ["PATH"]}, timeout=10,
                                   capture_output=True)
        self.assertEqual(unhealthy.returncode, 1)


if __name__ == "__main__":
    unittest.main()
