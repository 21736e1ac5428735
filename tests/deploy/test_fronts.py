"""nginx and HAProxy as we ship them, with TLS and HTTP/2: before one gateway on a socket, and before two on ports, of which one dies."""

import hashlib
import os
import pathlib
import signal
import subprocess
import threading
import time
import unittest

from fronts import give_to_haproxy, start_haproxy, start_nginx
from http2 import status_of
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, Browser, Machine, Recorder, free_port, new_key, start_datahub, wait_until,
)

MIB = 1024 * 1024
HUNDRED_MIB = 100 * MIB
API = f"{BASE}/datahubs/tuebingen/api/v4"
TARGETS = [
    "/projects/lu98be%2Ftestarc?search=a%20b+c&x=%2f",
    "/projects/lu98be%2ftestarc/repository/files/runs%2Fa%20b%2F%C3%BC.txt?ref=main",
    "/projects/230/repository/files/100%25%2Fx?ref=a%252Fb",
    "/projects?",
]


class Behind:
    """A front, gateways, each with a way of its own to one DataHUB, and a browser that is logged in."""

    @classmethod
    def setUpClass(cls):
        cls.machine = Machine()
        cls.addClassCleanup(cls.machine.close)
        cls.hub = start_datahub(cls.machine, "tuebingen")
        cls.port = free_port()
        cls.origin = f"https://localhost:{cls.port}"
        cls.start()
        cls.browser = Browser(cls.origin, cls.certificate)
        answer = cls.browser.log_in("tuebingen")
        assert answer.status == 303 and "login_error" not in answer.headers["Location"], answer.headers["Location"]

    @classmethod
    def start_gateway(cls, name, listen):
        """Gives its process and what it asks the DataHUB."""
        recorder = Recorder(cls.hub)
        cls.addClassCleanup(recorder.close)
        more = f'datahubs.tuebingen.connect = "127.0.0.1:{recorder.port}"'
        return start_gateway(cls.machine, name, cls.hub, cls.origin, listen, "127.0.0.1", more), recorder


def start_gateway(machine, name, hub, origin, listen, trusted, more):
    keys = machine.path / "keys"
    if not keys.exists():
        machine.write("keys", new_key())
    config = machine.write(f"{name}.toml", f"""
        server = {{ public_url = "{origin}", listen = ["{listen}"], trusted_proxies = ["{trusted}"], health = true }}
        admin.listen = "none"
        session.keys_file = "{keys}"
        datahubs.tuebingen.url = "http://127.0.0.1:{hub}"
        datahubs.tuebingen.client_id = "{CLIENT_ID}"
        datahubs.tuebingen.client_secret = "{CLIENT_SECRET}"
        {more}
    """)
    before = machine.log(name).count('"message":"serving"')
    process = machine.start(name, GATEWAY, "--config", config)
    wait_until(lambda: machine.log(name).count('"message":"serving"') > before, f"{name} serves: {machine.log(name)}")
    return process


class OneGateway(Behind):
    @classmethod
    def start(cls):
        cls.socket = cls.machine.path / "gateway.sock"
        cls.process, cls.recorder = cls.start_gateway("gateway", f"unix:{cls.socket}")
        cls.certificate = cls.start_front(cls.machine, cls.port, cls.socket)

    def curl(self, target, *options, **more):
        """As a browser calls, in HTTP/2; what curl says of it is its version, status and body's size."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.browser.cookies.items())
        return subprocess.Popen(
            ["curl", "-sS", "--http2", "--path-as-is", "--globoff", "--cacert", self.certificate, "--max-time", "60", "-H", "X-CSRF: 1",
             "-H", f"Cookie: {cookies}", "-w", "%{stderr}%{http_version} %{http_code} %{size_upload} %{size_download}", *options,
             f"{self.origin}{API}{target}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)

    def test_http2_ends_here_and_a_target_goes_on_byte_for_byte(self):
        for target in TARGETS:
            with self.subTest(target):
                _, told = self.curl(target, "-o", "/dev/null").communicate()
                self.assertEqual(told.decode().split()[0], "2", told)
                head = self.recorder.heads[-1].split(b"\r\n")
                self.assertEqual(head[0], f"GET /api/v4{target} HTTP/1.1".encode())

    def test_100_mib_go_up_while_they_come(self):
        """The DataHUB has the first half before the second is sent."""
        half = bytes(range(256)) * (HUNDRED_MIB // 512)
        sha256 = hashlib.sha256(half + half).hexdigest().encode()
        target = "/projects/230/packages/generic/up/1.0.0/data.bin"
        whole = self.machine.path / "data.bin"
        whole.write_bytes(half + half)
        answer, told = self.curl(target, "-T", whole).communicate()
        self.assertEqual(told.decode().split()[:3], ["2", "201", str(HUNDRED_MIB)], told)
        self.assertIn(sha256, answer)

        # Through a pipe, so that nobody knows the length.
        before = self.recorder.up
        curl = self.curl(target, "-T", "-")
        curl.stdin.write(half)
        curl.stdin.flush()
        wait_until(lambda: self.recorder.up - before > len(half) - MIB, "the DataHUB has the first half")
        answer, told = curl.communicate(half)
        self.assertEqual(told.decode().split()[:3], ["2", "201", str(HUNDRED_MIB)], told)
        self.assertIn(sha256, answer)

    def test_100_mib_come_down_while_they_come(self):
        """Whoever stops reading is waited for: nobody takes all of it in the meantime."""
        before = self.recorder.down
        curl = self.curl(f"/projects/230/packages/generic/blob/1.0.0/{HUNDRED_MIB}.bin")
        first = curl.stdout.read(MIB)
        down = 0
        while self.recorder.down > down:
            down = self.recorder.down
            time.sleep(0.2)
        rest, told = curl.communicate()
        self.assertEqual(told.decode().split(), ["2", "200", "0", str(HUNDRED_MIB)], told)
        period = bytes(range(251))
        self.assertTrue(first + rest == (period * (HUNDRED_MIB // 251 + 1))[:HUNDRED_MIB])
        self.assertLess(down - before, HUNDRED_MIB // 2, "taken before anybody read it")

    def test_a_trace_appears_line_by_line(self):
        begun, times = time.monotonic(), []
        curl = self.curl("/projects/230/jobs/9/trace", "-N")
        for _ in curl.stdout:
            times.append(time.monotonic() - begun)
        curl.communicate()
        self.assertEqual(len(times), 20)
        self.assertGreater(times[-1] - times[0], 1.5, "all lines came at once")


    def test_a_callback_that_is_refused_leaves_no_code_in_the_address(self):
        """Script can set as many cookies as it likes: what they make too large leads to the app, whoever refuses it."""
        self.refuse(self.port, self.certificate, "/datahubs", {0: 200, 38: 431})

    def test_nor_does_one_that_finds_no_gateway(self):
        machine, port = Machine(), free_port()
        self.addCleanup(machine.close)
        certificate = type(self).start_front(machine, port, [f"127.0.0.1:{free_port()}"])
        self.refuse(port, certificate, "/datahubs", {0: self.gone, 38: self.gone})

    def refuse(self, port, certificate, elsewhere, twins):
        """A callback with so many cookies, by both versions; and what another path is answered, so that it is the path that decides."""
        browser = Browser(f"https://localhost:{port}", certificate)
        callback = f"{BASE}/auth/callback?datahub=tuebingen&code=canary&state=canary"
        for count in [0, 12, 38, 175]:
            with self.subTest(count):
                cookies = [f"b{at}={'x' * 4_000}" for at in range(count)]
                field = [("Cookie", "; ".join(cookies))] if cookies else []
                answer = browser.send("GET", callback, field)
                location = answer.headers["Location"]
                self.assertEqual(answer.status, 303, answer.body)
                self.assertRegex(location, r"^/arcmanager/app/\?login_error=[a-z_]+$")
                self.assertEqual(answer.headers["Referrer-Policy"], "no-referrer")
                self.assertEqual(answer.headers["Cache-Control"], "no-store")
                self.assertNotIn("canary", str(answer.headers) + answer.body.decode())
                self.assertEqual(status_of(port, certificate, callback, [("cookie", cookie) for cookie in cookies]), 303)
                if count in twins:
                    self.assertEqual(browser.send("GET", BASE + elsewhere, field).status, twins[count])
                    if twins[count] not in [200, 400]:  # of HPACK's table
                        self.assertEqual(
                            status_of(port, certificate, BASE + elsewhere, [("cookie", cookie) for cookie in cookies]), twins[count])


class OneBehindNginx(OneGateway, unittest.TestCase):
    gone = 502
    start_front = staticmethod(start_nginx)

    def test_no_body_touches_the_disk(self):
        """nginx says so in its log when it does that."""
        self.assertNotIn("buffered to a temporary file", (self.machine.path / "nginx-error.log").read_text())


class OneBehindHaproxy(OneGateway, unittest.TestCase):
    gone = 503
    start_front = staticmethod(start_haproxy)

    @unittest.skipUnless(os.geteuid() == 0, "HAPROXY'S USER IS NOT TESTED: only root can start it as somebody else")
    def test_it_runs_as_debians_user_to_whom_the_socket_is_given(self):
        haproxy = next(process for process in self.machine.processes if "haproxy" in process.args[0])
        self.assertEqual(pathlib.Path(f"/proc/{haproxy.pid}").owner(), "haproxy")
        self.assertEqual(self.browser.call("GET", "/datahubs").status, 200)
        # The twin: the socket as it is for nginx.
        os.chown(self.socket, 0, 33)
        self.addCleanup(give_to_haproxy, self.socket)
        wait_until(lambda: self.browser.call("GET", "/datahubs").status == 503, "the kept connections are gone")


class TwoGateways(Behind):
    @classmethod
    def start(cls):
        cls.ports = [free_port(), free_port()]
        cls.gateways = [cls.start_gateway(f"gateway-{at}", f"127.0.0.1:{port}") for at, port in enumerate(cls.ports)]
        cls.certificate = cls.start_front(cls.machine, cls.port, [f"127.0.0.1:{port}" for port in cls.ports])

    def setUp(self):
        """Both are there, and the front knows."""
        for at, (process, _) in enumerate(self.gateways):
            if process.poll() is not None:
                self.gateways[at] = self.start_gateway(f"gateway-{at}", f"127.0.0.1:{self.ports[at]}")
        before = [len(recorder.heads) for _, recorder in self.gateways]

        def is_so():
            self.browser.call("GET", "/datahubs/tuebingen/api/v4/version")
            return all(len(recorder.heads) > then for (_, recorder), then in zip(self.gateways, before))

        wait_until(is_so, "both gateways answer")

    def asked(self, target):
        """How often the DataHUB was asked for it, by each."""
        return [sum(head.split(b" ")[1] == target for head in recorder.heads) for _, recorder in self.gateways]

    def call_while_its_gateway_dies(self, method):
        """The DataHUB stands still while it is asked; the gateway that asks is killed; the DataHUB goes on."""
        target = f"/api/v4/version?{method}{time.monotonic_ns()}".encode()
        hub = next(process for process in self.machine.processes if "datahub" in process.args[0])
        answers = []
        body = b'{"name":"x"}' if method == "POST" else None
        headers = [("Content-Type", "application/json")] if body else []
        call = threading.Thread(target=lambda: answers.append(
            self.browser.twin().call(method, f"/datahubs/tuebingen{target.decode()}", headers, body).status))
        os.kill(hub.pid, signal.SIGSTOP)
        try:
            call.start()
            asked = wait_until(lambda: any(self.asked(target)) and self.asked(target), "the DataHUB is asked")
            process, _ = self.gateways[asked.index(1)]
            process.kill()
            process.wait()
            if method == "GET":
                wait_until(lambda: sum(self.asked(target)) == 2, "the other gateway asks")
        finally:
            os.kill(hub.pid, signal.SIGCONT)
        call.join(30)
        return answers[0], sum(self.asked(target))

    def test_a_call_that_only_reads_is_made_again_by_the_other(self):
        self.assertEqual(self.call_while_its_gateway_dies("GET"), (200, 2))

    def test_a_post_that_was_sent_is_not_sent_again(self):
        self.assertEqual(self.call_while_its_gateway_dies("POST"), (502, 1))

    def test_when_one_of_two_is_killed_reads_go_on(self):
        statuses, is_over = [], threading.Event()

        def call():
            browser = self.browser.twin()
            while not is_over.is_set():
                statuses.append(browser.call("GET", "/datahubs/tuebingen/api/v4/user").status)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        process, _ = self.gateways[0]
        process.kill()
        process.wait()
        before = len(statuses)
        wait_until(lambda: len(statuses) > before + 60, "calls go on")
        is_over.set()
        for thread in threads:
            thread.join(30)
        self.assertEqual(set(statuses), {200})
        # And so do writes, once it is known to be away.
        self.assertEqual(self.browser.call("POST", "/auth/refresh", [], b"").status, 200)


class TwoBehindNginx(TwoGateways, unittest.TestCase):
    start_front = staticmethod(start_nginx)


class TwoBehindHaproxy(TwoGateways, unittest.TestCase):
    start_front = staticmethod(start_haproxy)

    def test_one_that_is_about_to_end_gets_nothing_new(self):
        """It still finishes a call, and would take others; its front has been told."""
        process, recorder = self.gateways[0]
        target = f"/projects/230/jobs/9/trace?{time.monotonic_ns()}"
        calls = [threading.Thread(target=lambda: self.browser.twin().call("GET", f"/datahubs/tuebingen/api/v4{target}")) for _ in range(4)]
        for call in calls:
            call.start()
        wait_until(lambda: sum(self.asked(f"/api/v4{target}".encode())) == 4, "calls are under way")
        downs = lambda: self.machine.log("haproxy").count("gateway/one is DOWN")
        known = downs()
        process.terminate()
        wait_until(lambda: downs() > known, "HAProxy has asked and heard")
        self.assertIsNone(process.poll(), "it ended before the check")
        before = len(recorder.heads)
        statuses = {self.browser.call("GET", "/datahubs/tuebingen/api/v4/user").status for _ in range(10)}
        self.assertEqual((statuses, len(recorder.heads)), ({200}, before))
        for call in calls:
            call.join()
        self.assertEqual(process.wait(20), 0)


class WhoeverAsks(unittest.TestCase):
    """A front that connects over TCP: the limit of logins is each client's if the front is believed, and else all clients' together.
    HAProxy notices: a gateway that does not believe it does not tell it its health, either."""

    def begin(self, start_front, trusted):
        """Gives a login's start, at this front and from this address: 302 to the DataHUB, or 303 to the app: too many."""
        machine, port = Machine(), free_port()
        self.addCleanup(machine.close)
        origin, listen = f"https://localhost:{port}", f"127.0.0.1:{free_port()}"
        start_gateway(machine, "gateway", start_datahub(machine, "tuebingen"), origin, listen, trusted, 'rate_limit.login = "3/1h"')
        certificate = start_front(machine, port, [listen])
        return lambda source: Browser(origin, certificate, source).send("GET", f"{BASE}/auth/login?datahub=tuebingen").status

    def statuses(self, start_front, trusted):
        begin = self.begin(start_front, trusted)
        return [begin(source) for source in 4 * ["127.0.0.2"] + ["127.0.0.3"]]

    def test_a_front_that_is_trusted_tells_them_apart(self):
        for start_front in [start_nginx, start_haproxy]:
            with self.subTest(start_front.__name__):
                self.assertEqual(self.statuses(start_front, "127.0.0.1"), [302, 302, 302, 303, 302])
        self.assertEqual(self.statuses(start_nginx, "192.0.2.1"), [302, 302, 302, 303, 303])

    def test_haproxy_asks_none_that_does_not_trust_it(self):
        begin = self.begin(start_haproxy, "192.0.2.1")
        wait_until(lambda: begin("127.0.0.2") == 503, "the check fails")


if __name__ == "__main__":
    unittest.main()
