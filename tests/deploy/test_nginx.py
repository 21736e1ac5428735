"""The seed deployment: nginx with TLS, one unix socket that systemd holds, four gateways on it, a DataHUB."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import unittest

from fronts import start_nginx
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, Browser, Machine, Recorder, accepts, end, free_port, start_datahub,
    wait_until,
)

MIB = 1024 * 1024
COUNT = 4
TUEBINGEN = "/datahubs/tuebingen/api/v4"


class FourGatewaysBehindNginx(unittest.TestCase):
    """Each test finds four gateways alive and a browser that is logged in."""

    @classmethod
    def setUpClass(cls):
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        cls.recorder = Recorder(start_datahub(machine, "tuebingen"))
        cls.addClassCleanup(cls.recorder.close)
        # Tokens of 8 s are stale after 6: they are renewed in their last quarter.
        freiburg = start_datahub(machine, "freiburg", "--token-lifetime=8")
        cls.port = free_port()
        cls.origin = f"https://localhost:{cls.port}"
        cls.socket = machine.path / "gateway.sock"
        cls.config = machine.write("gateway.toml", f"""
            [server]
            public_url = "{cls.origin}"
            workers = 1
            [admin]
            listen = "none"
            [session]
            keys_file = "{machine.write('keys', subprocess.check_output([GATEWAY, 'key'], text=True))}"
            [datahubs.tuebingen]
            url = "http://127.0.0.1:{cls.recorder.upstream_port}"
            connect = "127.0.0.1:{cls.recorder.port}"
            client_id = "{CLIENT_ID}"
            client_secret = "{CLIENT_SECRET}"
            [datahubs.freiburg]
            url = "http://127.0.0.1:{freiburg}"
            client_id = "{CLIENT_ID}"
            client_secret = "{CLIENT_SECRET}"
        """)
        cls.start_four()
        cls.certificate = start_nginx(machine, cls.port, cls.socket)
        cls.browser = cls.new_browser()
        answer = cls.browser.log_in("tuebingen")
        assert answer.status == 303 and "login_error" not in answer.headers["Location"], answer.headers["Location"]

    @classmethod
    def start_four(cls):
        for path in [cls.socket, *cls.machine.path.glob("gateway-*.pid")]:
            path.unlink(missing_ok=True)
        cls.four = cls.machine.start(
            "systemd-socket-activate", "systemd-socket-activate", f"--listen={cls.socket}",
            "--fdname=arcmanager-gateway.socket", sys.executable, ROOT / "tests/deploy/four.py", COUNT, cls.machine.path,
            GATEWAY, "--config", cls.config,
        )
        wait_until(cls.socket.is_socket, "systemd-socket-activate listens")

    @classmethod
    def new_browser(cls, source=None):
        return Browser(cls.origin, cls.certificate, source)

    def setUp(self):
        if self.gone():
            end(self.four)
            self.start_four()
            # The first connection starts them.
            self.assertEqual(self.browser.call("GET", "/datahubs").status, 200)

    # What they are asked.

    def test_a_login_at_one_is_a_session_at_all(self):
        before = self.answered()
        self.call_until_each_has_answered(before)
        self.assertEqual(self.gone(), [])

    def test_what_is_no_call_stays_with_the_gateway(self):
        before = len(self.recorder.heads)
        for target in ["/api/v4/../../oauth/token", "/api/v4/%2e%2e/%2e%2e/users", "/api/v4/projects/..%2f..%2fadmin"]:
            with self.subTest(target):
                answer = self.browser.call("GET", "/datahubs/tuebingen" + target)
                self.assertIn(answer.status, [400, 403, 404])
                self.assertEqual(answer.headers["Content-Type"], "application/problem+json")
        self.assertEqual(len(self.recorder.heads), before)

    def test_64_mib_go_up(self):
        pieces = [bytes([at]) * MIB for at in range(64)]
        sha256 = hashlib.sha256(b"".join(pieces)).hexdigest()
        for name, body in [("with a length", b"".join(pieces)), ("in chunks", iter(pieces))]:
            with self.subTest(name):
                target = f"{TUEBINGEN}/projects/230/packages/generic/up/1.0.0/data.bin"
                answer = self.browser.call("PUT", target, [("Content-Type", "application/octet-stream")], body)
                self.assertEqual(answer.status, 201, answer.body)
                stored = json.loads(answer.body)
                self.assertEqual((stored["size"], stored["file_sha256"]), (64 * MIB, sha256))

    def test_64_mib_come_down(self):
        answer = self.browser.call("GET", f"{TUEBINGEN}/projects/230/packages/generic/blob/1.0.0/{64 * MIB}.bin")
        period = bytes(range(251))
        self.assertEqual(answer.status, 200)
        self.assertEqual(len(answer.body), 64 * MIB)
        self.assertTrue(answer.body == (period * (64 * MIB // 251 + 1))[:64 * MIB])

    def test_a_trace_appears_line_by_line(self):
        times = [at for at, _ in self.trace()]
        self.assertGreater(len(times), 10, "lines came together")
        self.assertGreater(times[-1] - times[0], 1.5, "all lines came at once")

    def test_an_upload_without_a_session_is_refused_in_words(self):
        # The twin of the 64 MiB that go up. The answer, not a broken connection, is what an app can act on.
        pieces = iter([b"x" * MIB] * 8)
        answer = self.new_browser().call("PUT", f"{TUEBINGEN}/projects/230/packages/generic/up/1/a", [], pieces)
        self.assertEqual((answer.status, json.loads(answer.body)["code"]), (401, "not_logged_in"))

    # What is said about who asks.

    def test_the_address_that_nginx_saw_goes_up_and_none_that_a_client_claims(self):
        claims = [("X-Forwarded-For", "203.0.113.9"), ("Forwarded", "for=203.0.113.9"), ("X-Real-IP", "203.0.113.9"),
                  ("X_Forwarded_For", "203.0.113.9"), ("X-Forwarded-Host", "evil.example"), ("Via", "1.1 evil.example")]
        for source in ["127.0.0.1", "127.0.0.5"]:
            for headers in [], claims:
                with self.subTest(source=source, headers=len(headers)):
                    browser = self.new_browser(source)
                    browser.cookies = self.browser.cookies
                    target = f"/api/v4/version?from={source}&claims={len(headers)}".encode()
                    answer = browser.call("GET", f"/datahubs/tuebingen{target.decode()}", headers)
                    self.assertEqual(answer.status, 200)
                    self.assertEqual(self.recorder.fields(target, b"X-Forwarded-For"), [source.encode()])
                    self.assertEqual(self.recorder.fields(target, b"X-Forwarded-Proto"), [b"https"])
                    head = next(head for head in reversed(self.recorder.heads) if target in head)
                    self.assertNotIn(b"203.0.113.9", head)
                    self.assertNotIn(b"evil.example", head)

    def test_no_cookie_goes_up_and_none_of_the_datahubs_comes_down(self):
        answer = self.browser.call("GET", f"{TUEBINGEN}/user?cookies")
        self.assertEqual(self.recorder.fields(b"/api/v4/user?cookies", b"Cookie"), [])
        self.assertIsNone(answer.headers["Set-Cookie"])

    def test_every_answer_has_hsts_exactly_once(self):
        for target in ["/datahubs", "/auth/session", f"{TUEBINGEN}/user", "/nowhere"]:
            with self.subTest(target):
                answer = self.browser.call("GET", target)
                self.assertEqual(answer.headers.get_all("Strict-Transport-Security"), ["max-age=31536000"])
                self.assertEqual(len(answer.headers.get_all("X-Request-Id")), 1)

    def test_cookies_of_20_kib_pass(self):
        browser = self.browser.twin()
        browser.cookies = {**browser.cookies, **{f"other-app-{at}": "x" * 4000 for at in range(5)}}
        self.assertEqual(browser.call("GET", "/auth/session").status, 200)

    # What happens over time.

    def test_a_stale_token_is_renewed_by_a_redirect_to_oneself(self):
        browser = self.new_browser()
        self.assertNotIn("login_error", browser.log_in("freiburg").headers["Location"])
        old = dict(browser.cookies)
        target = f"{BASE}/datahubs/freiburg/api/v4/projects/lu98be%2Ftestarc?license=true"
        self.assertEqual(browser.send("GET", target, [("X-CSRF", "1")]).status, 200)
        time.sleep(6.3)
        again = browser.send("GET", target, [("X-CSRF", "1")])
        self.assertEqual(again.status, 307)
        # As the gateway wrote it: nginx must not make it absolute.
        self.assertEqual(again.headers["Location"], "?license=true&_gateway_replay=1")
        self.assertNotEqual(browser.cookies, old)
        replayed = browser.send("GET", target + "&_gateway_replay=1", [("X-CSRF", "1")])
        self.assertEqual(replayed.status, 200)

    def test_when_one_of_four_ends_nobody_notices(self):
        self.call_until_each_has_answered()
        victim = self.pids()[0]
        outcomes, traces, is_over = [], [], threading.Event()

        def call(method, target):
            browser = self.browser.twin()
            while not is_over.is_set():
                try:
                    outcomes.append((method, browser.call(method, target, [], b"" if method == "POST" else None).status))
                except OSError as error:
                    outcomes.append((method, repr(error)))

        calls = [("GET", f"{TUEBINGEN}/user"), ("GET", f"{TUEBINGEN}/projects"), ("POST", "/auth/refresh")]
        threads = [threading.Thread(target=call, args=each) for each in calls]
        # More of them than gateways, so that the one that ends is in the middle of some.
        threads += [threading.Thread(target=lambda: traces.append(self.trace())) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        begun = time.monotonic()
        os.kill(victim, signal.SIGTERM)
        wait_until(lambda: victim in self.gone(), "the gateway that was told to end has ended", 40)
        took = time.monotonic() - begun
        time.sleep(0.5)
        is_over.set()
        for thread in threads:
            thread.join(30)
        self.assertEqual({outcome for outcome in outcomes if outcome[1] != 200}, set())
        self.assertGreater(len(outcomes), 20)
        self.assertEqual([len(b"".join(piece for _, piece in trace).splitlines()) for trace in traces], [20] * 8)
        self.assertEqual(self.gone(), [victim])
        self.assertTrue(self.socket.is_socket(), "whoever ends must leave the others' socket where it is")
        self.assertLess(took, 10, "a gateway waits for its calls, not for connections on which nothing happens")
        self.call_until_each_has_answered()

    def test_nginx_logs_neither_queries_nor_paths(self):
        self.browser.call("GET", f"{TUEBINGEN}/projects/lu98be%2Ftestarc?search=plants")
        log = wait_until(lambda: self.machine.log("nginx-access"), "nginx has logged")
        for word in ["search", "testarc", "code=", "state=", "/auth/"]:
            self.assertNotIn(word, log)
        self.assertRegex(log, r"GET 200 in=\d+ out=\d+ seconds=[\d.]+ gateway=[\d.]+ id=[0-9a-f]{32}\n")

    # How it is seen.

    def trace(self):
        """The pieces of a job's trace and when each came."""
        pieces = []
        with self.browser.twin().open("GET", f"{BASE}{TUEBINGEN}/projects/230/jobs/9/trace", [("X-CSRF", "1")]) as answer:
            while piece := answer.read1():
                pieces.append((time.monotonic(), piece))
        return pieces

    def pids(self):
        paths = [self.machine.path / f"gateway-{number}.pid" for number in range(1, COUNT + 1)]
        wait_until(lambda: all(path.exists() and path.read_text() for path in paths), "the four have started")
        return [int(path.read_text()) for path in paths]

    def gone(self):
        return [pid for pid in self.pids() if not pathlib.Path(f"/proc/{pid}").exists()]

    def answered(self):
        """How many calls each gateway has answered with success: what its own log says."""
        logs = [self.machine.log(f"gateway-{number}") for number in range(1, COUNT + 1)]
        return [len(re.findall(r'"route":"[^"]*/datahubs/\{datahub\}[^\n]*"status":200', log)) for log in logs]

    def call_until_each_has_answered(self, before=None):
        """nginx keeps its connections, and so the gateways behind them; so one that has answered is held until all have."""
        before = before or self.answered()
        alive = [pid not in self.gone() for pid in self.pids()]
        statuses, threads, held = [], [], set()

        def call():
            statuses.append(self.browser.twin().call("GET", f"{TUEBINGEN}/user").status)

        deadline = time.monotonic() + 20
        try:
            while any(lives and now == then for lives, now, then in zip(alive, self.answered(), before)):
                self.assertLess(time.monotonic(), deadline, f"calls answered: {before}, then {self.answered()}")
                for pid, lives, now, then in zip(self.pids(), alive, self.answered(), before):
                    if lives and now > then and pid not in held:
                        os.kill(pid, signal.SIGSTOP)
                        held.add(pid)
                threads += [threading.Thread(target=call) for _ in range(4)]
                for thread in threads[-4:]:
                    thread.start()
                time.sleep(0.1)
        finally:
            for pid in held:
                os.kill(pid, signal.SIGCONT)
            for thread in threads:
                thread.join()
        self.assertEqual(statuses, [200] * len(threads))


if __name__ == "__main__":
    unittest.main()
