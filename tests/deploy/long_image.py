"""The container image: made by the Dockerfile's own steps, looked into, and run from a root that can only be read.

buildah runs the steps in a base image that holds this machine's toolchain, since no registry of images is reached here, and with
the crates that cargo has fetched already. Link-time optimisation is off: the same steps in a third of the time.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import time
import unittest
import urllib.parse

from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, Browser, Machine, accepts, free_port, start_datahub, user_of, wait_until,
)

MIB = 1024 * 1024


class TheImage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not shutil.which("buildah"):
            raise AssertionError("the image is built by buildah: apt-get install buildah")
        if os.geteuid() != 0:
            raise unittest.SkipTest("NOT RUN: only root may mount the image and change its root")
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        # Images and containers of this test only; vfs is what works everywhere, in a container too.
        storage = machine.write("storage.conf", f"""
            [storage]
            driver = "vfs"
            graphroot = "{machine.path}/storage"
            runroot = "{machine.path}/run"
        """)
        cls.env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot", "BUILDAH_FORMAT": "docker"}
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        cls.revision = git.stdout.strip() or "unknown"
        cls.make_toolchain()
        cls.build()
        cls.image = json.loads(cls.buildah("inspect", "--type", "image", "arcmanager-gateway:latest"))
        cls.config = cls.image["Docker"]
        cls.container = cls.buildah("from", "arcmanager-gateway:latest").strip()
        cls.addClassCleanup(cls.buildah, "rm", cls.container)
        cls.root = pathlib.Path(cls.buildah("mount", cls.container).strip())
        cls.addClassCleanup(cls.buildah, "umount", cls.container)

    @classmethod
    def buildah(cls, *command):
        return subprocess.run(["buildah", *command], env=cls.env, check=True, capture_output=True, text=True).stdout

    @classmethod
    def make_toolchain(cls):
        """An image of names only; what they stand for is mounted while a step runs."""
        folder = cls.machine.path / "toolchain"
        (folder / "tmp").mkdir(parents=True)
        for name in ["bin", "lib", "lib64"]:
            (folder / name).symlink_to(f"usr/{name}")
        file = cls.machine.write("toolchain.Dockerfile", """
            FROM scratch
            COPY . /
            ENV PATH=/rust/bin:/usr/bin CARGO_HOME=/cargo CARGO_NET_OFFLINE=true CARGO_PROFILE_RELEASE_LTO=off
        """)
        cls.buildah("bud", "--file", str(file), "--tag", "toolchain", str(folder))
        sysroot = subprocess.check_output(["rustc", "--print", "sysroot"], cwd=ROOT, text=True).strip()
        cargo_home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
        mounts = {sysroot: "/rust", cargo_home / "registry": "/cargo/registry"}
        mounts |= {path: path for path in ["/usr/bin", "/usr/lib", "/usr/lib64", "/usr/include", "/usr/libexec", "/etc/alternatives"]
                   if pathlib.Path(path).is_dir()}
        cls.volumes = [f"--volume={source}:{target}:ro" for source, target in mounts.items()]

    @classmethod
    def build(cls, *more, env=None):
        begun = time.monotonic()
        built = subprocess.run(
            [ROOT / "docker/build.sh", "--pull-never", "--build-arg=RUST_IMAGE=localhost/toolchain", *cls.volumes, *more],
            env={**cls.env, "BUILDER": "buildah", **(env or {})}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert built.returncode == 0, built.stdout[-4000:]
        print(f"made in {time.monotonic() - begun:.0f} s", flush=True)
        return built.stdout

    def test_it_is_one_file_in_one_layer(self):
        files = [path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if not path.is_dir()]
        # The folders that buildah makes in a container for what it would mount there are empty, and not in the image.
        self.assertEqual(files, ["arcmanager-gateway"])
        self.assertEqual(len(self.config["rootfs"]["diff_ids"]), 1)
        self.assertEqual((self.root / "arcmanager-gateway").stat().st_mode & 0o7777, 0o755)

    def test_it_is_small(self):
        size = (self.root / "arcmanager-gateway").stat().st_size
        print(f"{size / MIB:.1f} MiB without link-time optimisation", flush=True)
        self.assertLess(size, 16 * MIB)

    def test_it_needs_no_library_of_any_system(self):
        told = subprocess.run(["ldd", self.root / "arcmanager-gateway"], capture_output=True, text=True)
        self.assertRegex(told.stdout + told.stderr, "statically linked|not a dynamic executable")

    def test_it_says_how_it_is_run(self):
        config = self.config["config"]
        self.assertEqual(config["User"], "65532:65532")
        self.assertEqual(config["Entrypoint"], ["/arcmanager-gateway"])
        self.assertEqual(config["Healthcheck"]["Test"], ["CMD", "/arcmanager-gateway", "health"])
        self.assertEqual(config["StopSignal"], "SIGTERM")
        self.assertEqual(list(config["ExposedPorts"]), ["8000/tcp"])

    def test_no_variable_of_it_is_a_secret(self):
        self.assertEqual({setting for setting in self.config["config"]["Env"] if not setting.startswith("PATH=")},
                         {"GATEWAY__SERVER__LISTEN=0.0.0.0:8000", "GATEWAY__ADMIN__LISTEN=127.0.0.1:9000"})

    def test_it_says_what_it_is(self):
        labels = {name.removeprefix("org.opencontainers.image."): value for name, value in self.config["config"]["Labels"].items()
                  if name.startswith("org.opencontainers.")}
        self.assertEqual(labels["revision"], self.revision)
        self.assertEqual(labels["licenses"], "MIT OR Apache-2.0")
        self.assertEqual(set(labels), {"title", "description", "licenses", "version", "revision"})

    def test_what_is_in_it_is_listed_beside_it(self):
        listed = json.loads((ROOT / "target/image/arcmanager-gateway-0.1.0.cdx.json").read_text())
        self.assertEqual((listed["bomFormat"], listed["specVersion"]), ("CycloneDX", "1.5"))
        self.assertEqual(listed["metadata"]["component"]["name"], "arcmanager-gateway")
        host = next(line.split()[1] for line in subprocess.check_output(["rustc", "-vV"], text=True).splitlines() if line.startswith("host"))
        tree = subprocess.check_output(
            ["cargo", "tree", "--locked", "--offline", "--package=arcmanager-gateway", "--edges=normal,build", "--prefix=none",
             f"--target={host}", "--format={p}"], cwd=ROOT, text=True)
        needed = {tuple(line.split()[:2]) for line in tree.splitlines()} - {("arcmanager-gateway", "v0.1.0")}
        # Some more than are compiled: cargo's metadata has those of features that nobody asks for.
        self.assertLessEqual(needed, {(component["name"], f"v{component['version']}") for component in listed["components"]})
        for component in listed["components"]:
            self.assertTrue(component["purl"].startswith("pkg:cargo/"), component)
            self.assertTrue(component.get("licenses"), component["name"])
        self.assertFalse({"datahub", "load", "fuzz", "proptest", "rcgen"} & {component["name"] for component in listed["components"]})
        self.assertNotIn("/tmp/", json.dumps(listed))

    def test_built_again_it_is_the_same(self):
        first = hashlib.sha256((self.root / "arcmanager-gateway").read_bytes()).hexdigest()
        self.build("--tag=again", env={"SBOM": "no"})
        again = json.loads(self.buildah("inspect", "--type", "image", "again"))
        container = self.buildah("from", "again").strip()
        self.addCleanup(self.buildah, "rm", container)
        root = pathlib.Path(self.buildah("mount", container).strip())
        self.addCleanup(self.buildah, "umount", container)
        self.assertEqual(hashlib.sha256((root / "arcmanager-gateway").read_bytes()).hexdigest(), first)
        self.assertEqual(again["Docker"]["rootfs"], self.config["rootfs"])
        self.assertEqual(settings(again), settings(self.image))

    def test_a_binary_that_is_there_already_can_be_put_into_it(self):
        """Without a base image, as where no registry is reached."""
        self.build("--tag=given", env={"SBOM": "no", "BINARY": str(self.root / "arcmanager-gateway")})
        given = json.loads(self.buildah("inspect", "--type", "image", "given"))
        self.assertEqual(settings(given), settings(self.image))
        self.assertEqual(given["Docker"]["rootfs"], self.config["rootfs"])

    def test_it_serves_in_an_empty_root_as_nobody(self):
        """With nothing but the binary: no /dev, /proc or /etc, and no way to write."""
        hub = start_datahub(self.machine, "datahub")
        port, admin = free_port(), free_port()
        # From a file, mounted as a container's is; the ports are the test's own, where the image has its own.
        config = self.machine.write("gateway.toml", f"""
            [server]
            public_url = "http://localhost:{port}"
            [session]
            keys = ["{subprocess.check_output([GATEWAY, 'key'], text=True).strip()}"]
            [datahubs.demo]
            url = "http://127.0.0.1:{hub}"
            client_id = "{CLIENT_ID}"
            client_secret = "{CLIENT_SECRET}"
        """)
        os.chown(config, 65532, 65532)
        env = {"GATEWAY__SERVER__LISTEN": f"127.0.0.1:{port}", "GATEWAY__ADMIN__LISTEN": f"127.0.0.1:{admin}"}
        copy = self.machine.path / "read-only"
        copy.mkdir()
        script = (f"mount --bind {self.root} {copy} && touch {copy}/gateway.toml && mount --bind {config} {copy}/gateway.toml && "
                  f"mount -o remount,bind,ro {copy} && exec chroot --userspec=65532:65532 {copy} "
                  "/arcmanager-gateway --config /gateway.toml")
        with open(self.machine.path / "image.log", "ab") as log:
            process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], env={**env, "PATH": os.environ["PATH"]},
                                       stdout=log, stderr=log)
        self.addCleanup((self.root / "gateway.toml").unlink)
        inside = ["chroot", "--userspec=65532:65532", self.root, "/arcmanager-gateway"]
        self.machine.processes.append(process)
        wait_until(lambda: process.poll() is not None or accepts(port), "the image serves")
        self.assertIsNone(process.poll(), self.machine.log("image"))

        self.assertEqual(user_of(process.pid), 65532)
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


def settings(image):
    """All but the name of the container in which buildah made it, and the labels: somebody may have committed meanwhile."""
    return {name: value for name, value in image["Docker"]["config"].items() if name not in {"Hostname", "Labels"}}


if __name__ == "__main__":
    unittest.main()
