"""docker/compose.yaml: understood by compose's own schema, and acted out: each service as it asks to be run, on a network of its
own, with its files, secrets, variables and sockets; nginx is a real one with compose's configuration.

No Docker is needed, so what is not tried is Docker itself: pulling nginx's image, building (test_container.py and long_image.py
do that), limits of memory and processes, and starting again what has ended.
"""

import importlib.resources
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import unittest

import jsonschema
import yaml

from containers import Container, Network
from fronts import make_certificate
from machine import BASE, DATAHUB, GATEWAY, ROOT, Browser, Machine, accepts, wait_until
from test_container import documented, instructions

COMPOSE = ROOT / "docker/compose.yaml"
APP = "/arcmanager/app/"


class Compose:
    """A copy of docker/, with secrets made by its own script, and the services of one profile."""

    def __init__(self, machine, profile="demo"):
        self.machine, self.profile = machine, profile
        self.folder = machine.path / "docker"
        shutil.copytree(ROOT / "docker", self.folder, ignore=shutil.ignore_patterns("secrets", ".env"))
        (machine.path / "demo").symlink_to(ROOT / "demo")
        self.said = subprocess.run([self.folder / "secrets.sh"], check=True, capture_output=True, text=True).stdout
        self.env = dict(line.split("=", 1) for line in (self.folder / ".env").read_text().splitlines())
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: self.env.get(found[1], found[2]), COMPOSE.read_text())
        self.text = yaml.safe_load(text)
        self.services = {name: service for name, service in self.text["services"].items()
                         if profile in service.get("profiles", [profile])}
        self.running = {}

    def start(self, network):
        self.network = network
        self.addresses = {name: self.network.address() for name in self.services}
        # A volume is one folder for all that mount it, with the owner and mode that the driver is told.
        self.volumes = {}
        for name, volume in self.text["volumes"].items():
            options = dict(option.split("=") for option in volume["driver_opts"]["o"].split(","))
            folder = self.volumes[name] = self.machine.path / f"volume-{name}"
            folder.mkdir()
            os.chown(folder, int(options["uid"]), int(options["gid"]))
            folder.chmod(int(options["mode"], 8))
        for name in self.services:
            self.up(name)
        for name, service in self.services.items():
            for published in service.get("ports", []):
                host, port, inside = published.split(":")
                assert host == "127.0.0.1", published
                self.network.publish(int(port), self.addresses[name], int(inside))

    def up(self, name):
        service = self.services[name]
        for right in [service["read_only"], service["cap_drop"] == ["ALL"], service["security_opt"] == ["no-new-privileges:true"]]:
            assert right, f"{name}: containers.py knows no others"
        image = image_of(service)
        env = {**image["env"], **service.get("environment", {})}
        for file in service.get("env_file", []):
            env |= dict(line.split("=", 1) for line in (self.folder / file["path"]).read_text().splitlines())
        mounts, writable = list(image["files"]), [folder.split(":")[0] for folder in service.get("tmpfs", [])]
        for config in service.get("configs", []):
            mounts.append((self.folder / self.text["configs"][config["source"]]["file"], config["target"]))
        for secret in service.get("secrets", []):
            mounts.append((self.folder / self.text["secrets"][secret]["file"], f"/run/secrets/{secret}"))
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            pair = (self.volumes.get(source) or (self.folder / source).resolve(), target)
            (mounts if mode == ["ro"] else writable).append(pair)
        self.running[name] = Container(
            self.network, name, [*service.get("entrypoint", image["entrypoint"]), *service.get("command", [])], env=env,
            user=tuple(map(int, service.get("user", image["user"]).split(":"))), mounts=mounts, writable=writable,
            hosts=self.addresses, address=self.addresses[name])


def image_of(service):
    """What the Dockerfile says of the image; nginx is this machine's."""
    if "build" not in service:
        assert service["image"].startswith("docker.io/library/nginx:"), service["image"]
        files = [(path, path) for path in ["/etc/passwd", "/etc/group"]]
        return {"env": {}, "entrypoint": None, "user": None, "files": files}
    target = service["build"]["target"]
    said = dict(instructions(target))
    env = dict(setting.split("=", 1) for setting in said.get("ENV", "").split())
    entrypoint = json.loads(said["ENTRYPOINT"])
    return {"env": env, "entrypoint": entrypoint, "user": said["USER"],
            "files": [({"gateway": GATEWAY, "datahub": DATAHUB}[target], entrypoint[0])]}


class ActedOut(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        cls.compose = compose = Compose(machine)
        network = Network(machine)
        cls.addClassCleanup(network.close)
        compose.start(network)
        cls.origin, cls.page = re.search(r"(http://localhost:\d+)(/\S+)", compose.said).groups()
        wait_until(lambda: all((compose.volumes["sockets"] / f"{number}.sock").is_socket() for number in [1, 2, 3]), "three gateways")
        front, datahub = compose.addresses["front"], compose.addresses["datahub"]
        wait_until(lambda: accepts(8080, front) and accepts(8081, datahub), "nginx and the test DataHUB")

    @classmethod
    def logs(cls):
        return "".join(cls.machine.log(name) for name in cls.compose.services)

    def test_the_printed_address_shows_a_page_and_a_click_there_ends_in_it(self):
        browser = Browser(self.origin)
        self.assertIn(b"ARC gateway demo", browser.send("GET", self.page).body)
        landed = browser.log_in("demo")
        self.assertEqual((landed.status, landed.headers["Location"]), (303, APP))
        # As a browser follows that: the click was at the DataHUB, so this navigation comes from another site.
        fetch = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]
        page = browser.send("GET", APP, fetch)
        self.assertEqual(page.status, 200, page.body)
        self.assertIn(b"<title>ARC gateway demo</title>", page.body)
        script = browser.send("GET", f"{APP}app.js")
        self.assertEqual((script.status, script.headers["X-Content-Type-Options"]), (200, "nosniff"))
        user = browser.call("GET", "/datahubs/demo/api/v4/user")
        self.assertEqual(json.loads(user.body)["username"], "testuser")
        self.assertEqual(Browser(self.origin).send("GET", "/").headers["Location"], APP)

    def test_one_of_three_may_die(self):
        browser = Browser(self.origin)
        browser.log_in("demo")
        failed, done, stop = [], [0], threading.Event()

        def call():
            own = browser.twin()
            while not stop.is_set():
                answer = own.call("GET", "/datahubs/demo/api/v4/user")
                done[0] += 1
                if answer.status != 200:
                    failed.append((answer.status, answer.body))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            # Told to end, as `docker compose stop gateway-1` does: what is under way ends well.
            first = self.compose.running["gateway-1"].process
            first.send_signal(signal.SIGTERM)
            self.assertEqual(first.wait(20), 0)
            time.sleep(0.3)
        finally:
            stop.set()
            for caller in callers:
                caller.join()
        self.assertEqual(failed, [])
        self.assertGreater(done[0], 50)
        # Killed: its socket stays behind, and nobody is behind it.
        second = self.compose.running["gateway-2"].process
        second.kill()
        second.wait()
        statuses = {browser.call("GET", "/datahubs/demo/api/v4/user").status for _ in range(30)}
        self.assertEqual(statuses, {200})
        # And back, on the sockets that were left.
        for number in ["1", "2"]:
            self.compose.up(f"gateway-{number}")
            path = self.compose.volumes["sockets"] / f"{number}.sock"
            wait_until(lambda: is_listened_to(path), f"gateway-{number} listens again")
        self.assertEqual(browser.call("GET", "/datahubs/demo/api/v4/user").status, 200)

    def test_the_health_check_of_the_image_says_whether_it_serves(self):
        check = json.loads(dict(instructions("gateway"))["HEALTHCHECK"].partition(" CMD ")[2])
        healthy = self.compose.running["gateway-3"].execute(*check)
        self.assertEqual(healthy.returncode, 0, healthy.stdout + healthy.stderr)

    def test_who_calls_is_known_behind_nginx(self):
        """By the log of failed logins: not nginx, and not all people together."""
        browser = Browser(self.origin)
        answer = browser.send("GET", f"{BASE}/auth/callback?datahub=demo&code=a&state=b")
        self.assertEqual(answer.status, 303)
        events = [json.loads(line) for name in ["gateway-1", "gateway-2", "gateway-3"] for line in self.machine.log(name).splitlines()
                  if '"event"' in line]
        # The machine's own end of the network, where the published port is.
        self.assertEqual({event["client"] for event in events if "client" in event}, {"10.20.0.1"})

    def test_no_secret_is_in_a_log(self):
        for secret in (self.compose.folder / "secrets").iterdir():
            value = secret.read_text().strip().partition("=")[2] if secret.suffix == ".env" else secret.read_text().strip()
            self.assertNotIn(value, self.logs())


def is_listened_to(path):
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
        return True
    except OSError:
        return False


class TheFile(unittest.TestCase):
    def setUp(self):
        self.text = yaml.safe_load(COMPOSE.read_text())

    def test_is_what_compose_expects(self):
        self.validate(self.text)

    def test_a_wrong_word_in_it_would_be_noticed(self):
        self.text["services"]["front"]["read_onyl"] = True
        with self.assertRaises(jsonschema.ValidationError):
            self.validate(self.text)

    def validate(self, text):
        vendor = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
        jsonschema.validate(text, json.loads(vendor.read_text()))

    def test_every_file_that_it_names_is_there_or_is_made(self):
        made = {"secrets/keys", "secrets/demo.secret"}
        for kind in ["configs", "secrets"]:
            for entry in self.text[kind].values():
                self.assertTrue(entry["file"] in made or (ROOT / "docker" / entry["file"]).exists(), entry)

    def test_three_gateways_differ_in_their_sockets_only(self):
        gateways = [self.text["services"][f"gateway-{number}"] for number in [1, 2, 3]]
        paths = {gateway.pop("environment")["GATEWAY__SERVER__LISTEN"] for gateway in gateways}
        self.assertEqual(paths, {f"unix:/run/arcmanager/{number}.sock" for number in [1, 2, 3]})
        self.assertEqual(gateways[0], gateways[1])
        self.assertEqual(gateways[0], gateways[2])
        for path in paths:
            self.assertIn(f"server {path};", (ROOT / "docker/nginx.conf").read_text())

    def test_they_are_given_the_time_they_take_to_end(self):
        shutdown = int(re.search(r'^shutdown_timeout = "(\d+)s"', (ROOT / "config/default.toml").read_text(), re.MULTILINE)[1])
        self.assertGreater(int(self.text["x-gateway"]["stop_grace_period"].removesuffix("s")), 2 * shutdown)


class TheSecrets(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.machine.write("secrets.sh", (ROOT / "docker/secrets.sh").read_text(), 0o700)

    def make(self):
        subprocess.run([self.machine.path / "secrets.sh"], check=True, capture_output=True)
        return {path.name: path.read_text() for path in (self.machine.path / "secrets").iterdir()}

    def test_are_nobody_elses_and_stay_when_they_are_there(self):
        before = self.make()
        self.assertEqual(set(before), {"keys", "demo.secret", "datahub.env"})
        self.assertEqual(before, self.make())
        for path in (self.machine.path / "secrets").iterdir():
            self.assertEqual(path.stat().st_mode & 0o777, 0o600, path.name)

    def test_what_else_is_in_the_env_file_stays(self):
        self.machine.write(".env", "ARCMANAGER_APP=/srv/app\nGATEWAY_UID=1\n")
        self.make()
        user = os.geteuid() or 65532
        group = os.getegid() if os.geteuid() else 65532
        self.assertEqual((self.machine.path / ".env").read_text(), f"ARCMANAGER_APP=/srv/app\nGATEWAY_UID={user}\nGATEWAY_GID={group}\n")

    def test_what_is_said_next_is_what_the_documentation_says(self):
        said = subprocess.check_output([self.machine.path / "secrets.sh"], text=True)
        [commands] = documented("Compose")
        first, second = commands.splitlines()
        self.assertEqual(first, "docker/secrets.sh")
        self.assertIn(second, said)

    def test_both_sides_are_given_the_same_client_and_secret(self):
        made = self.make()
        self.assertEqual(made["datahub.env"], f"DATAHUB_CLIENT_SECRET={made['demo.secret']}\n")
        client = re.search(r'client_id = "(.*)"', (ROOT / "docker/gateway.toml").read_text())[1]
        self.assertIn(f"--client-id={client}\n", COMPOSE.read_text())


class NginxConf(unittest.TestCase):
    def test_it_says_the_same_of_calls_as_the_one_for_a_host_of_its_own(self):
        own, here = (
            {line.strip() for line in (ROOT / path).read_text().splitlines()
             if re.match(r"\s*(proxy_(?!pass|temp)|gzip|client_(max|body_timeout|header)|large_client|keepalive|error_log /dev/null|error_page|return 502)", line)}
            for path in ["config/nginx/arcmanager-gateway.conf", "docker/nginx.conf"])
        self.assertEqual(own, here)
        self.assertGreater(len(own), 20)

    def test_what_it_says_of_tls_is_understood(self):
        machine = Machine()
        self.addCleanup(machine.close)
        certificate, key = make_certificate(machine)
        text = re.sub(r"# (listen 8443|ssl_)", r"\1", (ROOT / "docker/nginx.conf").read_text())
        for old, new in [("/tmp/", f"{machine.path}/"), ("/run/secrets/fullchain.pem", certificate), ("/run/secrets/privkey.pem", key)]:
            self.assertIn(old, text)
            text = text.replace(old, str(new))
        done = subprocess.run(["nginx", "-t", "-c", machine.write("nginx.conf", text)], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    unittest.main()
