"""Clients of GitLab's API, through the gateway and without it: they see the same."""

import json
import pathlib
import subprocess
import sys
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "browser"), str(HERE.parent / "deploy")]

from machine import Browser  # noqa: E402
from world import World  # noqa: E402

# That of `make node-tools`: the system's may be older than gitbeaker wants.
NODE = HERE.parent / "provider/node_modules/.bin/node"
METADATA = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = World()
        cls.addClassCleanup(cls.world.close)
        browser = Browser(cls.world.origin)
        answer = browser.log_in("tuebingen")
        assert answer.status == 303 and "login_error" not in answer.headers["Location"], answer.headers["Location"]
        assert browser.call("GET", "/datahubs/tuebingen/api/v4/user").status == 200
        wire = cls.world.wires["tuebingen"]
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        cls.through = {"url": f"{cls.world.origin}/arcmanager/api/v1/datahubs/tuebingen",
                       "headers": {"Cookie": cookies, **METADATA}}
        cls.direct = {"url": wire.url, "headers": {"Authorization": f"Bearer {wire.bearer()}"}}

    def walk(self, command, way, name):
        done = subprocess.run(command, cwd=HERE, input=json.dumps({**way, "name": name}), capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        return json.loads(done.stdout)

    def compare(self, *command):
        before = bytes(self.world.wires["tuebingen"].passed).count(b" HTTP/1.1\r\nHost:")
        through, direct = self.walk(command, self.through, "through"), self.walk(command, self.direct, "direct")
        self.assertEqual(through, direct)
        self.assertGreater(len(through["keyset"]), 40)
        self.assertEqual((through["updated"], through["committed"][1]), ("two", "three"))
        self.assertGreater(bytes(self.world.wires["tuebingen"].passed).count(b" HTTP/1.1\r\nHost:"), before + 20)

    def test_python_gitlab(self):
        self.compare(sys.executable, "walk.py")

    def test_gitbeaker(self):
        self.compare(NODE, "walk.mjs")

    def test_behind_tls_that_the_datahub_does_not_know_of(self):
        """Its links say http://HOST:443 then; whoever is not led on by them reads the first page only."""
        wire = self.world.wires["tuebingen"]
        wire.replaced[f"<{wire.url}/".encode()] = f"<{wire.url.rsplit(':', 1)[0]}:443/".encode()
        self.addCleanup(wire.replaced.clear)
        self.compare(sys.executable, "walk.py")
        self.compare(NODE, "walk.mjs")
        self.assertNotIn("link_dropped", self.world.output())

    def test_without_a_session_they_are_told_so(self):
        """The twin of what passes."""
        nobody = {**self.through, "headers": METADATA}
        for command in [sys.executable, "walk.py"], [NODE, "walk.mjs"]:
            with self.assertRaisesRegex(AssertionError, "401|Unauthorized"):
                self.walk(command, nobody, "nobody")


if __name__ == "__main__":
    unittest.main()
