"""The recipe of docs/apps.md for development, with a real Vite in front of the gateway."""

import json
import pathlib
import re
import sys
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "deploy")]

from machine import (  # noqa: E402
    CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, Browser, Machine, accepts, free_port, new_key, start_datahub, wait_until,
)

NODE = HERE.parent / "provider/node_modules/.bin/node"
VITE = HERE / "node_modules/vite/bin/vite.js"


class Vite(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        self.datahub, self.port, self.gateway = start_datahub(self.machine, "datahub"), free_port(), free_port()
        self.machine.start("gateway", GATEWAY, "--config", self.machine.write("gateway.toml", f"""
            server.listen = ["127.0.0.1:{self.gateway}"]
            server.public_url = "http://localhost:{self.port}"
            admin.listen = "none"
            session.keys = ["{new_key().strip()}"]
            datahubs.a = {{ url = "http://127.0.0.1:{self.datahub}", client_id = "{CLIENT_ID}", client_secret = "{CLIENT_SECRET}" }}
            """))

    def start(self, change=lambda text: text):
        """Vite with the configuration of docs/apps.md, but for the gateway's port."""
        text = re.search(r"```js\n(// vite\.config\.js\n.*?)```", (ROOT / "docs/apps.md").read_text(), re.S)[1]
        self.assertIn("http://127.0.0.1:8000", text)
        self.machine.write("vite.config.js", change(text.replace(":8000", f":{self.gateway}")))
        self.machine.write("index.html", "<h1>The page of the development server</h1>")
        self.machine.start("vite", NODE, VITE, self.machine.path, "--host", "127.0.0.1", "--port", str(self.port), "--strictPort")
        for name, port in (("vite", self.port), ("gateway", self.gateway)):
            wait_until(lambda: accepts(port), f"{name} listens: {self.machine.log(name)}", 60)

    def test_the_recipe(self):
        self.start()
        browser = Browser(f"http://localhost:{self.port}")
        self.assertIn(b"The page of the development server", browser.send("GET", "/arcmanager/app/", [("Accept", "text/html")]).body)
        back = browser.log_in("a")
        self.assertEqual((back.status, back.headers["Location"]), (303, "/arcmanager/app/"))
        user = browser.call("GET", "/datahubs/a/api/v4/user")
        self.assertEqual((user.status, json.loads(user.body)["username"]), (200, "testuser"))
        page = browser.call("GET", "/datahubs/a/api/v4/projects?per_page=2")
        self.assertIn(f"<http://localhost:{self.port}/arcmanager/api/v1/datahubs/a/api/v4/projects?", page.headers["Link"])
        fetched = [("Origin", browser.origin), ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]
        self.assertEqual(browser.send("POST", "/arcmanager/api/v1/auth/logout", fetched).status, 204)

    def test_another_host_field_is_told_of(self):
        """The twin of what passes: what `changeOrigin` does."""
        self.start(lambda text: text.replace("changeOrigin: false", "changeOrigin: true"))
        answer = Browser(f"http://localhost:{self.port}").call("GET", "/datahubs")
        self.assertEqual((answer.status, json.loads(answer.body)["code"]), (421, "wrong_host"))


if __name__ == "__main__":
    unittest.main()
