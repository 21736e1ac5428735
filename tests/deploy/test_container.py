"""The Dockerfile's steps, run with exactly what `.dockerignore` lets into a build. Only the compiler's long work is left to
long_image.py, which has buildah run the same file."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
import unittest

from machine import ROOT, Machine

DOCKERFILE = ROOT / "docker/Dockerfile"


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
        self.assertEqual(others, {"Cargo.toml", "Cargo.lock", "config/default.toml", "tests/fuzz/Cargo.toml"})


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
