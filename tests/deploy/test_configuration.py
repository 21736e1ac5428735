"""What we ship for operators is understood by those it is meant for: the gateway, systemd, and, in test_nginx, nginx."""

import os
import re
import subprocess
import tomllib
import unittest
from fnmatch import fnmatch

from machine import CLIENT_SECRET, GATEWAY, ROOT, Machine, new_key

UNITS = ROOT / "config/systemd"
DROP_INS = {name: f"arcmanager-gateway.{unit}.d/{name}" for name, unit in [("arcmanager.conf", "service"), ("haproxy.conf", "socket")]}
IDS = ["tuebingen", "freiburg", "plantmicrobe", "tuebingen_testenv", "dev"]


class ProductionToml(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)

    def check(self, text):
        """Nothing at example.org answers, so each DataHUB gets a closed port here: what is wrong otherwise is a fault."""
        text = re.sub(r'^url = "https://.*$', r'\g<0>\nconnect = "127.0.0.1:1"', text, flags=re.MULTILINE)
        config = self.machine.write("gateway.toml", text)
        return subprocess.run([GATEWAY, "check", "--config", config], capture_output=True, text=True, timeout=60,
                              env={"CREDENTIALS_DIRECTORY": str(self.machine.path)})

    def test_it_lacks_nothing_but_the_files_with_secrets(self):
        shipped = (ROOT / "config/production.toml").read_text()
        missing = self.check(shipped)
        self.assertEqual(missing.returncode, 78)
        self.assertIn("session.keys_file", missing.stderr)
        self.assertEqual(len(re.findall(r"client_secret_file", missing.stderr)), len(IDS))
        self.assertEqual(len(missing.stderr.strip().splitlines()), 1 + 1 + len(IDS), missing.stderr)

        self.machine.write("keys", new_key())
        for name in IDS:
            self.machine.write(f"{name}.secret", CLIENT_SECRET + "\n")
        good = self.check(shipped)
        self.assertIn("configuration: good", good.stdout, good.stderr)
        for name in IDS:
            self.assertIn(f"{name}: ", good.stdout)

    def test_it_holds_no_secret_and_names_no_real_host(self):
        shipped = (ROOT / "config/production.toml").read_text()
        self.assertNotRegex(shipped, r"(?m)^\s*(client_secret|keys)\s*=")
        hosts = re.findall(r"https?://([^/\"?\s]+)", shipped)
        self.assertEqual([host for host in hosts if not host.endswith("example.org")], [])


class SystemdUnits(unittest.TestCase):
    def test_systemd_understands_them(self):
        good = self.verify(lambda text: text)
        self.assertEqual((good.returncode, good.stdout + good.stderr), (0, ""))

    def test_a_wrong_word_in_them_would_be_noticed(self):
        for good, wrong in [("NoNewPrivileges=yes", "NoNewPrivilege=yes"), ("SocketGroup=haproxy", "SocketsGroup=haproxy")]:
            bad = self.verify(lambda text: text.replace(good, wrong))
            self.assertIn(wrong.split("=")[0], bad.stdout + bad.stderr)

    def test_the_service_is_locked_down(self):
        with units(lambda text: text) as folder:
            command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager"]
            for unit in ["arcmanager-gateway.service", "arcmanager-gateway@1.service"]:
                done = subprocess.run([*command, folder.path / unit], capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, done.stdout[-200:] + done.stderr)

    def test_one_of_several_differs_from_the_only_one_in_its_socket_and_ports(self):
        one, several = (settings(UNITS / name) for name in ["arcmanager-gateway.service", "arcmanager-gateway@.service"])
        self.assertEqual(one - several, {"Description=ARCmanager gateway"})
        self.assertEqual(several - one, {
            "Description=ARCmanager gateway, process %i",
            "Sockets=arcmanager-gateway.socket",
            "Environment=GATEWAY__ADMIN__LISTEN=127.0.0.1:900%i",
        })

    def test_no_datahub_stands_in_them(self):
        for unit in ["arcmanager-gateway.service", "arcmanager-gateway@.service"]:
            text = (UNITS / unit).read_text().lower()
            self.assertEqual([name for name in IDS if re.search(rf"\b{name}\b", text.replace("/dev/", ""))], [])
            folders = [line for line in settings(UNITS / unit) if line.startswith("LoadCredential=")]
            self.assertEqual(folders, ["LoadCredential=gateway:/etc/arcmanager-gateway/credentials"])

    def test_they_give_it_the_time_it_takes_to_end(self):
        defaults = (ROOT / "config/default.toml").read_text()
        shutdown = int(re.search(r'^shutdown_timeout = "(\d+)s"', defaults, re.MULTILINE)[1])
        stop = next(line for line in settings(UNITS / "arcmanager-gateway.service") if line.startswith("TimeoutStopSec="))
        # Calls under way, then refreshes: each may take that long.
        self.assertGreater(int(stop.removeprefix("TimeoutStopSec=").removesuffix("s")), 2 * shutdown)

    def verify(self, change):
        with units(change) as folder:
            names = ["arcmanager-gateway.socket", "arcmanager-gateway.service", "arcmanager-gateway@1.service"]
            return subprocess.run(
                ["systemd-analyze", "verify", "--man=no", *(folder.path / name for name in names)],
                capture_output=True, text=True, timeout=60)


class Package(unittest.TestCase):
    def test_the_pages_of_the_debian_package_lead_to_what_it_brings(self):
        """Seen: docs/operate.md led to rules, a dashboard and manifests that were in no package."""
        package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]
        self.assertNotRegex(package["maintainer"], "localhost")
        doc = "usr/share/doc/arcmanager-gateway/"
        # Nothing of a container is of use on a machine with a package, nor are sources.
        others = re.compile(r"(docker|tests|src|demo|LICENSE|CONTRIBUTING|\.ci|Makefile|Cargo)")
        paths = [path for pattern in ["*", "client/*", "docs/**/*", "config/**/*"] for path in ROOT.glob(pattern) if path.is_file()]
        there = [str(path.relative_to(ROOT)) for path in paths]
        brought = set()
        for pattern, to, _ in package["assets"]:
            files = [name for name in there if fnmatch(name, pattern) and name.count("/") == pattern.count("/")]
            self.assertTrue(files or pattern.startswith("target/"), pattern)
            if to.startswith(doc):
                brought |= {to.removeprefix(doc) + os.path.basename(name) for name in files}
        self.assertLessEqual({name for name in there if name.startswith("config/") and not name.startswith("config/debian/")}, brought)
        folders = {name[:at.start()] for name in brought for at in re.finditer("/", name)}
        pages = [name for name in brought if name.endswith(".md")]
        self.assertGreater(len(pages), 10)
        for page in pages:
            for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / page).read_text()):
                place = os.path.normpath(os.path.join(os.path.dirname(page), link))
                self.assertTrue(place in brought | folders or others.match(place), f"{page} leads to {place}")


class units:
    """A copy of the units and their drop-ins whose program exists."""

    def __init__(self, change):
        self.change = change

    def __enter__(self):
        self.machine = Machine()
        for source in UNITS.iterdir():
            text = source.read_text().replace("ExecStart=arcmanager-gateway", f"ExecStart={GATEWAY}")
            name = DROP_INS.get(source.name) or source.name.replace("@.", "@1.")
            (self.machine.path / name).parent.mkdir(exist_ok=True)
            self.machine.write(name, self.change(text), 0o644)
        return self.machine

    def __exit__(self, *_):
        self.machine.close()


def settings(path):
    lines = path.read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


if __name__ == "__main__":
    unittest.main()
