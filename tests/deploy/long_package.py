"""The Debian package: built by `make deb`, installed below a folder, its service started as its unit says, and removed again."""

import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest

from machine import ROOT
from test_operate import Scratch
from units import Acted

FOLDER = ROOT / "target/package"


# Not as small and fast as what is shipped, but built in a few minutes.
QUICKLY = {**os.environ, "CARGO_TARGET_DIR": str(FOLDER), "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
           "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1"}


def commit():
    """What the binary should say that it was built from."""
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


@unittest.skipUnless(shutil.which("dpkg") and os.geteuid() == 0, "THE PACKAGE IS NOT TESTED: only root may install one, on a Debian")
class ThePackage(Scratch):
    @classmethod
    def setUpClass(cls):
        begun = time.monotonic()
        shutil.rmtree(FOLDER / "debian", ignore_errors=True)
        built = subprocess.run(["make", "--silent", "deb"], cwd=ROOT, env=QUICKLY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert built.returncode == 0, built.stdout
        (cls.package,) = (FOLDER / "debian").glob("*.deb")
        print(f"{cls.package.name}, {cls.package.stat().st_size / 2**20:.1f} MiB; made in {time.monotonic() - begun:.0f} s", flush=True)

    def dpkg(self, *command):
        done = subprocess.run(["dpkg", f"--root={self.path}", "--force-script-chrootless", "--force-depends", "--force-confold", *command],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_it_is_installed_started_and_removed(self):
        for folder in ["info", "updates", "triggers"]:
            (self.path / "var/lib/dpkg" / folder).mkdir(parents=True)
        (self.path / "var/lib/dpkg/status").touch()
        self.dpkg("--install", self.package)
        etc = self.path / "etc/arcmanager-gateway"
        self.assertEqual((etc / "credentials").stat().st_mode & 0o777, 0o700)
        self.assertEqual((etc / "gateway.toml").read_text(), (ROOT / "config/production.toml").read_text())

        # As docs/operate.md goes on from here.
        (etc / "gateway.toml").write_text(self.configuration())
        self.prepare()
        shutil.rmtree(self.path / "usr/local")
        units = self.path / "usr/lib/systemd/system"
        process = self.start(Acted(self.machine, self.path, [units / "arcmanager-gateway.socket"], units / "arcmanager-gateway.service"))
        process.terminate()
        self.assertEqual(process.wait(20), 0)

        # An upgrade keeps the configuration, a removal too; a purge keeps nothing.
        self.dpkg("--install", self.package)
        self.assertEqual((etc / "gateway.toml").read_text(), self.configuration())
        self.dpkg("--remove", "arcmanager-gateway")
        self.assertFalse((self.path / "usr/bin/arcmanager-gateway").exists())
        self.assertTrue((etc / "credentials/keys").exists())
        self.dpkg("--purge", "arcmanager-gateway")
        self.assertFalse(etc.exists())

    def test_it_says_what_it_is(self):
        told = subprocess.run(["dpkg-deb", "--field", self.package], check=True, capture_output=True, text=True).stdout
        self.assertRegex(told, "(?m)^Package: arcmanager-gateway$")
        self.assertRegex(told, "(?m)^Depends: .*libc6")
        listed = subprocess.run(["dpkg-deb", "--contents", self.package], check=True, capture_output=True, text=True).stdout
        for line in listed.splitlines():
            self.assertRegex(line, r"^(drwxr-xr-x|-rwxr-xr-x|-rw-r--r--) (root/root|0/0) ", line)
        subprocess.run(["dpkg-deb", "--extract", self.package, self.path], check=True)
        version = subprocess.run([self.path / "usr/bin/arcmanager-gateway", "--version"], check=True, capture_output=True, text=True).stdout
        self.assertIn(f"(commit {commit()}", version)

    def test_the_manual_has_a_page_for_each_command_and_no_fault(self):
        subprocess.run(["dpkg-deb", "--extract", self.package, self.path], check=True)
        pages = sorted((self.path / "usr/share/man/man1").iterdir())
        commands = re.findall(r"(?m)^  (\w+) ", subprocess.check_output([self.path / "usr/bin/arcmanager-gateway", "--help"], text=True))
        expected = ["arcmanager-gateway", *(f"arcmanager-gateway-{command}" for command in commands if command != "help")]
        self.assertEqual([page.name for page in pages], sorted(f"{name}.1.gz" for name in expected))
        for page in pages:
            shown = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8"})
            self.assertEqual((shown.returncode, shown.stderr), (0, ""), page.name)
            self.assertIn("gateway", shown.stdout)

    def test_debians_own_check_finds_no_error(self):
        # Not for a distribution: whoever builds it for others says who they are (cargo deb --maintainer), and its changelog is the
        # project's.
        tags = "bogus-mail-host,initial-upload-closes-no-bugs,no-changelog"
        done = subprocess.run(["lintian", "--allow-root", "--fail-on", "error", "--suppress-tags", tags, self.package], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class CargoInstall(unittest.TestCase):
    def test_it_installs_a_program_that_says_its_version_and_commit(self):
        with tempfile.TemporaryDirectory() as root:
            done = subprocess.run(["cargo", "install", "--locked", "--path", ".", "--root", root], cwd=ROOT, env=QUICKLY,
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(os.listdir(f"{root}/bin"), ["arcmanager-gateway"])
            version = subprocess.check_output([f"{root}/bin/arcmanager-gateway", "-V"], text=True)
            self.assertRegex(version, rf"^arcmanager-gateway \d+\.\d+\.\d+ \(commit {commit()}(-dirty)?\)\n$")


if __name__ == "__main__":
    unittest.main()
