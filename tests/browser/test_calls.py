"""Items 2 and 4: what an app may send, and how often it goes up."""

import json
import secrets
import socket
import time
import unittest

from compatibility import in_every_engine
from person import Person

CALL = """
    const [method, path, options] = arguments;
    try {
        const answer = await fetch(`/arcmanager/api/v1${path}`, { method, ...options });
        const late = new Promise((resolve) => setTimeout(resolve, 5000, 'never ends'));
        return JSON.stringify([answer.status, await Promise.race([answer.text().catch(() => 'broken'), late])]);
    } catch { return JSON.stringify([0, 'no answer']) }
"""
# Firefox and WebKit tell a page of a head with the first byte behind it.
HEAD_ALONE = [[201, "broken"], [0, "no answer"]]
CREATED = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n"
API = "/datahubs/tuebingen/api/v4"


@in_every_engine
class Calls(Person):
    """Calls of an app."""

    def call(self, method, path, **options):
        return json.loads(self.browser.script(CALL, method, path, options))

    def logs_in_and_calls(self, page, **options):
        self.log_in()
        self.browser.open(page)
        calls = [("GET", "/auth/session"), ("GET", f"{API}/user"), ("POST", f"{API}/projects/230/issues?title=t"),
                 ("PUT", f"{API}/projects/230/packages/generic/p/1/one.bin"), ("POST", "/auth/refresh"), ("POST", "/auth/logout")]
        answers = [self.call(method, path, **options, **({"body": "1"} if method != "GET" and path.startswith(API) else {}))[0]
                   for method, path in calls]
        self.assertEqual(answers, [200, 200, 201, 201, 200, 204])
        self.assertEqual(self.sessions(), [])

    def test_the_app_calls(self):
        self.logs_in_and_calls(self.world.app)

    def test_the_app_calls_by_mode_same_origin(self):
        self.logs_in_and_calls(self.world.app, mode="same-origin")

    def test_an_app_without_referrers_calls(self):
        self.page("/other/page", "<!doctype html><title>page</title><body>", Referrer_Policy="no-referrer")
        self.logs_in_and_calls(f"{self.world.origin}/other/page")

    def test_an_app_without_referrers_calls_by_mode_same_origin(self):
        """`Origin: null` beside `Sec-Fetch-Site: same-origin`."""
        self.page("/other/page", "<!doctype html><title>page</title><body>", Referrer_Policy="no-referrer")
        self.logs_in_and_calls(f"{self.world.origin}/other/page", mode="same-origin")


class Breaks(Person):
    """A DataHUB that has made a thing of a POST, and breaks off."""

    def goes_up_once(self, answer):
        """What the app has of a POST that is answered so."""
        wire, path = self.world.wires["tuebingen"], f"/api/v4/projects/230/issues/{secrets.token_hex(4)}"
        self.log_in()

        def break_off(connection):
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_RDWR)
        wire.answers[path] = break_off
        self.addCleanup(wire.answers.pop, path)
        came = json.loads(self.browser.script(CALL, "POST", f"/datahubs/tuebingen{path}", {"body": "once"}))
        time.sleep(0.5)  # Whoever sends again does so at once.
        self.assertEqual(len(wire.asked("POST", path)), 1, f"it went up again; the app has {came}")
        answers = [request.status for request in self.world.front.asked("POST", path)]
        self.assertEqual(answers, [201 if answer else 502], "what the gateway answered")
        return came

    def test_before_the_body(self):
        self.assertIn(self.goes_up_once(f"{CREATED}Content-Length: 1000\r\n\r\n".encode()), HEAD_ALONE)

    def test_within_the_body(self):
        self.assertEqual(self.goes_up_once(f"{CREATED}Content-Length: 1000\r\n\r\n{{".encode()), [201, "broken"])

    def test_before_the_first_chunk(self):
        self.assertIn(self.goes_up_once(f"{CREATED}Transfer-Encoding: chunked\r\n\r\n".encode()), HEAD_ALONE)

    def test_before_the_head(self):
        """The browser gets an answer of ours, and has no reason to send again."""
        status, body = self.goes_up_once(b"")
        self.assertEqual((status, json.loads(body)["code"]), (502, "datahub_unreachable"))


@in_every_engine
class BreaksBehindNginx(Breaks):
    """A POST whose answer breaks off, over HTTP/2."""


@in_every_engine
class BreaksDirectly(Breaks):
    """A POST whose answer breaks off, over HTTP/1.1."""

    options = {"tls": False}

    def test_the_head_of_a_slow_answer_comes_at_once(self):
        """Not behind nginx: over HTTP/2 it keeps a head until the first byte of the body (1.22)."""
        path, wire = f"/api/v4/projects/230/jobs/{self.engine}", self.world.wires["tuebingen"]
        self.log_in()

        def slowly(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n")
            time.sleep(2)
            connection.sendall(b"late")
        wire.answers[path] = slowly
        self.addCleanup(wire.answers.pop, path)
        head, whole, text = self.browser.script("""
            const begin = performance.now();
            const answer = await fetch(arguments[0]);
            const head = performance.now() - begin;
            const text = await answer.text();
            return [head, performance.now() - begin, text]""", f"/arcmanager/api/v1/datahubs/tuebingen{path}")
        self.assertEqual(text, "late")
        self.assertLess(head, 1000)
        self.assertGreater(whole, 1900)

del Breaks  # What it is for is made of it.


if __name__ == "__main__":
    unittest.main()
