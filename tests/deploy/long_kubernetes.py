"""config/kubernetes/ acted out: three pods, each on an address of its own, as the Deployment asks for them; what a kubelet, a
Service and a rolling update do is done here with the Deployment's own periods, thresholds and times. HAProxy stands for the
Service and whatever is in front of it.

No cluster is here, so what is not tried is a cluster: scheduling, the autoscaler, the network policy, the Secret's way to a node.
"""

import collections
import http.client
import json
import os
import re
import socket
import threading
import time
import unittest
import urllib.parse

from containers import Container, Network
from machine import BASE, CLIENT_ID, CLIENT_SECRET, DATAHUB, GATEWAY, Browser, Machine, accepts, end, new_key, wait_until
from test_container import instructions
from test_kubernetes import FOLDER, base, pod

SPEC = base("deployment")["spec"]
POD = pod()
CONTAINER = POD["containers"][0]
PORTS = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
# How long it takes until a Service's change has come to every node: the reason for the sleep before the end.
PROPAGATION = 1.0


class Volume:
    """A mounted Secret as a kubelet writes it: the names lead through one link, which is swapped when all is there."""

    def __init__(self, path, gid):
        self.path, self.gid, self.version = path, gid, 0
        path.mkdir()

    def write(self, files):
        self.version += 1
        data = self.path / f"..version-{self.version}"
        data.mkdir()
        for name, text in files.items():
            (data / name).write_text(text)
            os.chown(data / name, 0, self.gid)
            (data / name).chmod(next(volume["secret"]["defaultMode"] for volume in POD["volumes"] if "secret" in volume))
            link = self.path / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        (self.path / "..data_tmp").symlink_to(data.name)
        os.rename(self.path / "..data_tmp", self.path / "..data")


class Service:
    """HAProxy with a slot for each pod that there may be; which pods are behind it is said to its socket."""

    def __init__(self, machine, port, slots):
        self.socket = machine.path / "haproxy.sock"
        servers = "\n".join(f"server slot-{slot} 127.0.0.1:1 disabled" for slot in range(slots))
        config = machine.write("haproxy.cfg", f"""
global
    stats socket {self.socket} level admin
defaults
    mode http
    timeout connect 5s
    timeout client 120s
    timeout server 200s
frontend front
    bind 127.0.0.1:{port}
    http-request set-header X-Forwarded-For %[src]
    default_backend pods
backend pods
    balance roundrobin
    {servers}
""")
        machine.start("haproxy", "haproxy", "-db", "-f", config)
        wait_until(lambda: accepts(port), f"HAProxy listens {machine.log('haproxy')}")
        self.free = list(range(slots))

    def say(self, command):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(command.encode() + b"\n")
            return connection.makefile().read()

    def add(self, address):
        slot = self.free.pop(0)
        self.say(f"set server pods/slot-{slot} addr {address} port {PORTS['http']}")
        self.say(f"set server pods/slot-{slot} state ready")
        return slot

    def drain(self, slot):
        """No new call; those under way go on."""
        self.say(f"set server pods/slot-{slot} state drain")

    def remove(self, slot):
        self.say(f"set server pods/slot-{slot} state maint")
        self.free.append(slot)


class Pod:
    """One pod, its kubelet's probes, and its place in the Service."""

    def __init__(self, deployment, name):
        self.service, self.name, self.slot, self.ended = deployment.service, name, None, False
        self.failures = []
        image = dict(instructions("gateway"))
        env = dict(setting.split("=", 1) for setting in image["ENV"].split())
        env |= {setting["name"]: setting["value"] for setting in CONTAINER["env"]}
        sources = {"configuration": deployment.configuration, "secrets": deployment.secrets.path}
        mounts = [(sources[mount["name"]], mount["mountPath"]) for mount in CONTAINER["volumeMounts"]]
        entrypoint = json.loads(image["ENTRYPOINT"])
        self.container = Container(
            deployment.network, name, [*entrypoint, *CONTAINER["args"]], env=env, mounts=[(GATEWAY, entrypoint[0]), *mounts],
            user=(POD["securityContext"]["runAsUser"], POD["securityContext"]["runAsGroup"]), hosts=deployment.hosts)
        startup = CONTAINER["startupProbe"]
        for _ in range(startup["failureThreshold"]):
            time.sleep(startup["periodSeconds"])
            if self.probe(startup):
                break
        else:
            raise AssertionError(f"{name} does not start: {deployment.machine.log(name)}")
        self.threads = [threading.Thread(target=self.watch, args=each, daemon=True)
                        for each in [(CONTAINER["readinessProbe"], self.set_ready), (CONTAINER["livenessProbe"], self.set_alive)]]
        for thread in self.threads:
            thread.start()
        wait_until(lambda: self.slot is not None, f"{name} is ready")

    def get(self, path, timeout):
        connection = http.client.HTTPConnection(self.container.address, PORTS["admin"], timeout=timeout)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def probe(self, probe):
        assert probe["httpGet"]["port"] == "admin"
        try:
            return self.get(probe["httpGet"]["path"], probe.get("timeoutSeconds", 1))[0] == 200
        except OSError:
            return False

    def watch(self, probe, tell):
        failed = 0
        while not self.ended:
            failed = 0 if self.probe(probe) else failed + 1
            if failed == 0 or failed == probe["failureThreshold"]:
                tell(failed == 0)
            time.sleep(probe["periodSeconds"])

    def set_ready(self, is_ready):
        if self.ended:
            return
        if is_ready and self.slot is None:
            self.slot = self.service.add(self.container.address)
        elif not is_ready:
            self.failures.append("not ready")

    def set_alive(self, is_alive):
        if not is_alive and not self.ended:
            self.failures.append("not alive")

    def delete(self):
        """What becomes of a pod that is deleted; gives its exit status and how long it took to end."""
        self.ended = True
        begun = time.monotonic()
        drain = threading.Timer(PROPAGATION, self.service.drain, [self.slot])
        drain.start()
        time.sleep(CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"])
        status = end(self.container.process, POD["terminationGracePeriodSeconds"] - (time.monotonic() - begun))
        drain.join()
        self.service.remove(self.slot)
        return status, time.monotonic() - begun


class Deployment(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        cls.network = Network(machine)
        cls.addClassCleanup(cls.network.close)
        cls.replicas = base("autoscaler")["spec"]["minReplicas"]
        surge = SPEC["strategy"]["rollingUpdate"]["maxSurge"]
        cls.service = Service(machine, 8000, cls.replicas + surge)
        cls.origin = "http://localhost:8000"
        hub = Container(cls.network, "datahub", [
            "/datahub", "--listen=0.0.0.0:8081", "--public-url=http://localhost:8081", f"--client-id={CLIENT_ID}", "--token-lifetime=12"],
            env={"DATAHUB_CLIENT_SECRET": CLIENT_SECRET}, user=(65532, 65532), mounts=[(DATAHUB, "/datahub")])
        wait_until(lambda: accepts(8081, hub.address), "the DataHUB listens")
        cls.network.publish(8081, hub.address, 8081)
        cls.hosts = {"datahub": hub.address}
        cls.secrets = Volume(machine.path / "secrets", POD["securityContext"]["fsGroup"])
        cls.key = new_key()
        cls.secrets.write({"keys": cls.key, "tuebingen.secret": CLIENT_SECRET + "\n"})
        # The overlay's, for the DataHUB and the address of here.
        text = (FOLDER / "overlays/example/gateway.toml").read_text()
        for old, new in [('"https://arcmanager.example.org"', f'"{cls.origin}"'), ("REPLACE-application-id-tuebingen", CLIENT_ID),
                         ('"https://tuebingen.example.org"', '"http://localhost:8081"\nconnect = "datahub:8081"')]:
            assert old in text, old
            text = text.replace(old, new)
        cls.configuration = machine.path / "configuration"
        cls.configuration.mkdir()
        (cls.configuration / "gateway.toml").write_text(text)
        cls.pods = [Pod(cls, f"pod-{number}") for number in range(cls.replicas)]

    def test_every_pod_is_replaced_and_no_call_fails(self):
        browser = Browser(self.origin)
        self.assertEqual(browser.log_in("tuebingen").status, 303)
        outcomes, is_over = [], threading.Event()

        def load(make):
            while not is_over.is_set():
                try:
                    outcomes.append(make())
                except Exception as error:
                    outcomes.append((make.__name__, repr(error)))

        # All with the cookies of one browser: tokens last 12 s, so they are renewed on the way, by whichever pod is asked.
        def short():
            time.sleep(0.005)
            return "GET", follow(browser.twin(), "/datahubs/tuebingen/api/v4/user").status

        def trace():
            answer = follow(browser.twin(), "/datahubs/tuebingen/api/v4/projects/230/jobs/9/trace")
            return "a trace of 2 s", 200 if (answer.status, len(answer.body.splitlines())) == (200, 20) else (answer.status, answer.body)

        def upload():
            def pieces():
                for _ in range(12):
                    time.sleep(0.4)
                    yield b"x" * 65536

            answer = follow(browser.twin(), "/datahubs/tuebingen/api/v4/projects/230/packages/generic/up/1.0.0/data.bin", "PUT",
                            [("Content-Type", "application/octet-stream")], pieces)
            return "an upload of 5 s", 200 if answer.status == 201 else (answer.status, answer.body)

        threads = [threading.Thread(target=load, args=[make]) for make in [short] * 4 + [trace] * 3 + [upload] * 3]
        for thread in threads:
            thread.start()
        took = []
        try:
            for number, old in enumerate(list(self.pods)):
                new = Pod(self, f"pod-{number}-new")
                time.sleep(SPEC["minReadySeconds"])
                self.pods.append(new)
                self.pods.remove(old)
                status, seconds = old.delete()
                took.append(seconds)
                self.assertEqual(status, 0, self.machine.log(old.name))
            time.sleep(1)
        finally:
            is_over.set()
            for thread in threads:
                thread.join(30)
        counts = {kind: sum(1 for outcome in outcomes if outcome[0] == kind) for kind in {outcome[0] for outcome in outcomes}}
        failed = collections.Counter(outcome for outcome in outcomes if outcome[1] != 200)
        print(f"{counts}, {sum(failed.values())} failed; each pod ended within {max(took):.1f} s", flush=True)
        self.assertEqual(failed, {})
        self.assertGreater(counts["GET"], 1000)
        self.assertGreater(counts["a trace of 2 s"], 10)
        self.assertGreater(counts["an upload of 5 s"], 5)
        self.assertEqual([pod.failures for pod in self.pods], [[]] * self.replicas)
        for new in self.pods:
            self.assertIn('"status":200', self.machine.log(new.name))

    def test_new_keys_in_the_secret_come_to_all(self):
        key, new = self.key, new_key()
        secret = {"tuebingen.secret": CLIENT_SECRET + "\n"}
        [old_id] = self.roles(self.pods[0])
        browser = Browser(self.origin)
        self.assertEqual(browser.log_in("tuebingen").status, 303)

        # docs/operate.md: add, promote, retire.
        self.secrets.write({"keys": key + new, **secret})
        wait_until(lambda: all(len(self.roles(each)) == 2 for each in self.pods), "all show both keys", 15)
        [new_id] = set(self.roles(self.pods[0])) - {old_id}
        self.assertEqual([self.roles(each) for each in self.pods], [{old_id: "seal", new_id: "unseal"}] * self.replicas)
        self.secrets.write({"keys": new + key, **secret})
        wait_until(lambda: all(self.roles(each).get(new_id) == "seal" for each in self.pods), "the new one seals everywhere", 15)
        self.assertEqual(follow(browser, "/datahubs/tuebingen/api/v4/user").status, 200)
        self.assertEqual(browser.call("POST", "/auth/refresh", body=b"").status, 200)
        self.secrets.write({"keys": new, **secret})
        wait_until(lambda: all(set(self.roles(each)) == {new_id} for each in self.pods), "the old one is gone", 15)
        self.assertEqual([follow(browser, "/datahubs/tuebingen/api/v4/user").status for _ in range(6)], [200] * 6)

    def roles(self, each):
        """The ids of a pod's keys, and what each does."""
        return dict(re.findall(r'gateway_key_info\{key="([^"]+)",role="([^"]+)"', each.get("/metrics", 5)[1]))


def follow(browser, target, method="GET", headers=(), make_body=lambda: None):
    """As `fetch` does: a 307 leads to the same place with a new cookie."""
    target = BASE + target
    for _ in range(3):
        answer = browser.call(method, target, headers, make_body(), base="")
        if answer.status != 307:
            break
        target = urllib.parse.urljoin(target, answer.headers["Location"])
    return answer


if __name__ == "__main__":
    unittest.main()
