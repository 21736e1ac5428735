"""The Dockerfile's steps, run with exactly what `.dockerignore` lets into a build. Only the compiler's long work is left to
long_image.py, which has buildah run the same file."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import unittest

from containers import Container, Network
from machine import BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, Browser, Machine, accepts, end, wait_until

DOCKERFILE = ROOT / "docker/Dockerfile"


def operate(heading):
    """What docs/operate.md says below a heading."""
    return (ROOT / "docs/operate.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def documented(heading):
    """The commands there, block by block."""
    return re.findall(r"^```sh\n(.*?)^```$", operate(heading), re.MULTILINE | re.DOTALL)


def instructions(stage):
    """Those of a stage and of the ones that it begins from: pairs of a word and the rest, lines joined and comments gone."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages, parents = {}, {}
    for word, rest in (line.split(None, 1) for line in text.splitlines() if line.strip()):
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            parents[name], stages[name] = parent, []
        elif stages:
            stages[name].append((word, rest))
    found = []
    while stage in stages:
        found, stage = stages[stage] + found, parents[stage]
    return found


def make_context(folder):
    """What a build is given: `.dockerignore` shuts out all and then names what may come in."""
    first, *others = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert first == "*", first
    for line in others:
        assert re.fullmatch(r"![\w./-]+", line), f"{line}: a name after `!`, and no pattern"
        source, target = ROOT / line[1:], folder / line[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def targets(manifest):
    """What cargo makes of the gateway: kinds and names, tests and benches left out."""
    command = ["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version=1", "--manifest-path", manifest]
    packages = json.loads(subprocess.check_output(command))["packages"]
    gateway = next(package for package in packages if package["name"] == "arcmanager-gateway")
    return {(kind, target["name"]) for target in gateway["targets"] for kind in target["kind"]} & {
        ("lib", "arcmanager_gateway"), ("bin", "arcmanager-gateway"), ("custom-build", "build-script-build")}


class TheBuild(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.root = self.machine.path / "root"
        self.context = self.machine.path / "context"
        self.root.mkdir()
        make_context(self.context)
        # Reads what the real one reads, and compiles one small crate instead of three hundred.
        (self.machine.path / "stubs").mkdir()
        self.machine.write("stubs/cargo", f"""#!/bin/sh
            set -eu
            echo "$*" >> {self.machine.path}/asked
            PATH=${{PATH#*:}}
            host=$(rustc -vV | sed -n 's/^host: //p')
            cargo metadata --locked --offline --format-version=1 --filter-platform "$host" > {self.machine.path}/metadata
            RUSTFLAGS= cargo check --quiet --locked --offline --release --package cfg-if
            mkdir -p "target/$host/release"
            touch "target/$host/release/arcmanager-gateway" "target/$host/release/datahub"
        """, 0o755)

    def run_stage(self, name):
        """Gives the commands of cargo."""
        workdir, env = self.root, {}
        for word, rest in instructions(name):
            if word == "WORKDIR":
                workdir = self.root / rest.lstrip("/")
                workdir.mkdir(exist_ok=True)
            elif word == "COPY":
                *sources, target = rest.split()
                for source in sources:
                    self.copy(self.context / source, workdir / target, target.endswith("/"))
            elif word == "RUN":
                self.run_command(rest, workdir, env)
            elif word == "ENV":
                env |= dict(setting.split("=", 1) for setting in shlex.split(rest))
            else:
                self.assertEqual(word, "ARG")
        return (self.machine.path / "asked").read_text().splitlines()

    def copy(self, source, target, is_folder):
        self.assertTrue(source.exists(), f"COPY {source.relative_to(self.context)}: not in the context")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            target = target / source.name if is_folder else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)

    def run_command(self, command, workdir, env):
        # Folders at the root of the image are below the test's own.
        command = re.sub(r"(?<![\w./-])/(target|out)\b", rf"{self.root}/\1", command)
        paths = f"{self.machine.path}/stubs:{os.environ['PATH']}"
        inherited = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
        done = subprocess.run(["sh", "-c", command], cwd=workdir, env={**inherited, **env, "PATH": paths}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}{done.stderr}")

    def test_of_the_gateway_has_all_that_cargo_wants(self):
        asked = self.run_stage("builder")
        for command in asked:
            self.assertRegex(command, r"^build --release --locked -p arcmanager-gateway --target \S+$")
        self.assertTrue((self.root / "out/arcmanager-gateway").exists())
        packages = json.loads((self.machine.path / "metadata").read_text())["packages"]
        self.assertIn("arcmanager-gateway", {package["name"] for package in packages})
        # A build script that stayed outside would not be missed by cargo.
        self.assertEqual(targets(self.root / "build/Cargo.toml"), targets(ROOT / "Cargo.toml"))

    def test_of_the_test_datahub_has_all_that_cargo_wants(self):
        asked = self.run_stage("datahub-builder")
        for command in asked:
            self.assertRegex(command, r"^build --release --locked -p datahub --target \S+$")
        self.assertTrue((self.root / "out/datahub").exists())

    def test_with_a_member_of_the_workspace_left_out_would_fail(self):
        shutil.rmtree(self.context / "tests/bench/load")
        with self.assertRaisesRegex(AssertionError, "tests/bench/load"):
            self.run_stage("builder")

    def test_is_given_sources_and_nothing_else(self):
        files = {path.relative_to(self.context).as_posix() for path in self.context.rglob("*") if path.is_file()}
        others = {file for file in files if not file.startswith(("src/", "tests/datahub/", "tests/bench/load/"))}
        self.assertEqual(others, {"Cargo.toml", "Cargo.lock", "build.rs", "client/client.js", "client/client.d.ts",
                                  "config/default.toml", "tests/fuzz/Cargo.toml"})


class TheDocumentation(unittest.TestCase):
    """The commands of "A container", with a `docker` that notes how it is asked to run the image, and `containers.py` to do it."""

    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        (self.machine.path / "etc").mkdir()
        (self.machine.path / "stubs").mkdir()
        self.machine.write("stubs/make", '#!/bin/sh\n[ "$*" = image ]\n', 0o755)
        self.machine.write("stubs/docker", f"""#!{sys.executable}
import json, os, sys
if sys.argv[1:4] == ["run", "--rm", "arcmanager-gateway"]:
    os.execv("{GATEWAY}", ["arcmanager-gateway", *sys.argv[4:]])
print(json.dumps(sys.argv[1:]), file=open("{self.machine.path}/asked", "a"))
""", 0o755)

    def follow(self, text):
        """Runs commands; gives those of `docker` that were only noted."""
        asked = self.machine.path / "asked"
        asked.unlink(missing_ok=True)
        text = re.sub(r"(?<![\w:])/etc/arcmanager-gateway(?!:)", f"{self.machine.path}/etc/arcmanager-gateway", text)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{self.machine.path}/stubs:{os.environ['PATH']}"})
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []

    def test_its_commands_make_a_container_that_serves(self):
        network = Network(self.machine)
        self.addCleanup(network.close)
        prepare, start = documented("A container")
        self.assertEqual(self.follow(prepare), [])
        folder = self.machine.path / "etc/arcmanager-gateway"
        (folder / "tuebingen.secret").write_text(CLIENT_SECRET)
        (folder / "gateway.toml").write_text(f"""
            [server]
            public_url = "http://localhost:8000"
            trusted_proxies = ["172.17.0.1"]
            [session]
            keys_file = "/etc/arcmanager-gateway/keys"
            [datahubs.tuebingen]
            url = "http://localhost:8081"
            client_id = "{CLIENT_ID}"
            client_secret_file = "/etc/arcmanager-gateway/tuebingen.secret"
        """)
        run, execute, stop = self.follow(start)
        for path in folder.iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o640, path.name)

        options = argparse.ArgumentParser()
        for flag in ["--detach", "--read-only"]:
            options.add_argument(flag, action="store_true")
        for name in ["name", "restart", "cap-drop", "security-opt", "memory", "stop-timeout", "publish", "volume"]:
            options.add_argument(f"--{name}")
        options.add_argument("--ulimit", action="append")
        asked, [image, *command] = options.parse_known_args(run[1:])
        self.assertEqual((image, asked.read_only, asked.cap_drop, asked.security_opt), ("arcmanager-gateway", True, "ALL", "no-new-privileges"))
        source, target, mode = asked.volume.split(":")
        self.assertEqual((source, mode), (target, "ro"))
        said = dict(instructions("gateway"))
        entrypoint = json.loads(said["ENTRYPOINT"])
        container = Container(
            network, asked.name, [*entrypoint, *(word.replace(str(self.machine.path), "") for word in command)],
            env=dict(setting.split("=", 1) for setting in said["ENV"].split()), user=tuple(map(int, said["USER"].split(":"))),
            mounts=[(GATEWAY, entrypoint[0]), (folder, target)])
        wait_until(lambda: accepts(8000, container.address) or container.process.poll() is not None, "the gateway listens")
        self.assertIsNone(container.process.poll(), self.machine.log(asked.name))
        address, port, inside = asked.publish.split(":")
        network.publish(int(port), container.address, int(inside))
        browser = Browser(f"http://localhost:{port}")
        self.assertEqual(browser.send("GET", f"{BASE}/datahubs").status, 200)
        self.assertFalse(accepts(9000, container.address), "what is for operators is not for the network")

        self.assertEqual(execute[:2], ["exec", asked.name])
        healthy = container.execute(*execute[2:])
        self.assertEqual(healthy.returncode, 0, healthy.stderr)
        self.assertEqual(stop, ["stop", asked.name])
        shutdown = tomllib.loads((ROOT / "config/default.toml").read_text())["server"]["shutdown_timeout"]
        self.assertGreater(int(asked.stop_timeout), 2 * int(shutdown.removesuffix("s")))
        self.assertEqual(said["STOPSIGNAL"], "SIGTERM")
        self.assertEqual(end(container.process), 0)


class TheLabels(unittest.TestCase):
    def test_say_what_cargo_says(self):
        package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
        labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE.read_text()))
        self.assertEqual(labels["version"], package["version"])
        self.assertEqual(labels["licenses"], package["license"])
        self.assertEqual(labels["revision"], "${GATEWAY_REVISION}")
        # Nothing is known of where the source will be.
        self.assertNotIn("source", labels)


if __name__ == "__main__":
    unittest.main()
