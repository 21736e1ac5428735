"""The client for apps, loaded from the gateway, in a page that has nothing else."""

import json
import re
import unittest

from compatibility import in_every_engine
from person import API, Person
from test_downloads import FILE, LINK, WORDS
from world import ROOT

CLIENT = f'const client = await import("{API}/client.js");'
MIB = 1 << 20


@in_every_engine
class Client(Person):
    """The client for apps."""

    def setUp(self):
        self.page("/other/client", "<!doctype html><title>client</title><body><h1>An app</h1><div id=told></div>")
        self.app = f"{self.world.origin}/other/client"

    def run_client(self, code, *arguments):
        """What some code gives that has the client; of a GatewayError its code, status and name."""
        return json.loads(self.browser.script(f"""
            {CLIENT}
            try {{
                return JSON.stringify(await (async (...given) => {{ {code} }})(...arguments) ?? null);
            }} catch (error) {{
                return JSON.stringify([error.code ?? null, error.status ?? null, error.name]);
            }}
        """, *arguments))

    def logs_in(self):
        self.browser.open(f"{self.app}?tab=2&login_error=denied")
        self.begins_login(lambda: self.browser.script(f"{CLIENT} setTimeout(() => client.login('tuebingen', {{ prompt: 'login' }}))"))
        self.browser.click("#sign-in-testuser")
        self.browser.find("h1", "An app")

    def test_from_login_to_logout(self):
        self.browser.open(self.app)
        self.assertEqual(self.run_client("return client.sessions()"), [])
        self.assertEqual(self.run_client("return client.fetch('tuebingen', '/api/v4/user')"), ["not_logged_in", 401, "GatewayError"])
        self.assertEqual([datahub["id"] for datahub in self.run_client("return client.datahubs()")], ["freiburg", "tuebingen"])
        self.logs_in()
        self.assertEqual(self.browser.address(), f"{self.app}?tab=2")
        [session] = self.run_client("return client.sessions()")
        self.assertEqual((session["datahub"], session["user"]["username"]), ("tuebingen", "testuser"))
        user = self.run_client("return (await client.fetch('tuebingen', '/api/v4/user')).json()")
        self.assertEqual(user["username"], "testuser")
        self.assertEqual(self.run_client("return client.fetch('tuebingen', '/api/v4/projects/4711')"), [None, 404, "GatewayError"])
        self.run_client("return client.logout('tuebingen')")
        self.assertEqual(self.run_client("return client.sessions()"), [])

    def test_the_example_of_the_documents(self):
        documents = "".join(file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
        [example] = re.findall(r"^```js\n(import [^\n]*/client\.js\";\n.*?)^```", documents, re.M | re.S)
        self.page("/other/example.js", example, kind="text/javascript")
        self.page("/other/example", """<!doctype html><title>example</title><body><button></button><ul></ul>
            <script type="module" src="/other/example.js"></script>""")
        offers = lambda text: self.browser.wait(
            lambda: self.browser.script("return document.querySelector('button')?.textContent") == text, f"the button “{text}”")
        self.browser.open(f"{self.world.origin}/other/example")
        offers("Log in")
        self.browser.find("ul", "not_logged_in: ")
        self.begins_login(lambda: self.browser.click("button"))
        self.browser.click("#sign-in-testuser")
        offers("Log out")
        self.assertEqual(self.browser.address(), f"{self.world.origin}/other/example")
        self.assertGreater(self.browser.script("return document.querySelectorAll('li').length"), 1)
        self.browser.click("button")
        offers("Log in")

    def test_every_page_of_a_list(self):
        self.logs_in()
        ids = self.run_client("""
            const pages = [];
            for await (const projects of client.pages('tuebingen', '/api/v4/projects?per_page=1')) pages.push(projects.map(({ id }) => id));
            return pages;
        """)
        self.assertGreater(len(ids), 1)
        self.assertTrue(all(len(page) == 1 for page in ids), ids)
        self.assertEqual(len({page[0] for page in ids}), len(ids))

    def test_a_logout_is_known_in_every_tab(self):
        self.logs_in()
        here, there = self.browser.tabs(2, self.app)
        listen = f"{CLIENT} client.onsignout((datahub) => {{ document.querySelector('#told').textContent = `out of ${{datahub}}`; }})"
        for tab in (there, here):
            self.browser.switch(tab)
            self.browser.script(listen)
        self.run_client("return client.logout('tuebingen')")
        for tab in (here, there):
            self.browser.switch(tab)
            self.browser.find("#told", "out of tuebingen")

    def test_one_tab_refreshes_for_all(self):
        self.logs_in()
        wire, tabs = self.world.wires["tuebingen"], self.browser.tabs(2, self.app)
        # More than the token has left, and less than a new one will have.
        seconds = self.run_client("""
            await new Promise((resolve) => setTimeout(resolve, 4000));
            const [session] = await client.sessions();
            return (Date.parse(session.expires_at) - Date.now()) / 1000 + 1;
        """)
        refreshes = lambda: (len(self.world.front.asked("POST", "/auth/refresh")), len(wire.asked("POST", "/oauth/token")))
        before = refreshes()
        wire.bytes_per_second = 1500  # So that the second tab asks while the first refreshes.
        self.addCleanup(setattr, wire, "bytes_per_second", None)
        for tab in tabs:
            self.browser.switch(tab)
            self.browser.script(f"{CLIENT} window.fresh = client.ensureFresh('tuebingen', arguments[0])", seconds)
        ends = []
        for tab in tabs:
            self.browser.switch(tab)
            ends.append(self.browser.script("return (await window.fresh).expires_at"))
        self.assertEqual(len(set(ends)), 1, ends)
        self.assertEqual([after - before for after, before in zip(refreshes(), before)], [1, 1])

    def test_uploads_side_by_side_with_progress_and_cancel(self):
        self.logs_in()
        wire, path = self.world.wires["tuebingen"], "/api/v4/projects/230/packages/generic/p/1/client.bin"
        seen, status = self.run_client("""
            const seen = [];
            const body = new Blob([new Uint8Array(given[1])]);
            const onprogress = ({ loaded, total }) => seen.push([loaded, total]);
            const response = await client.upload('tuebingen', given[0], { method: 'PUT', body, onprogress });
            return [seen, response.status];
        """, path, 4 * MIB)
        self.assertEqual((status, seen[-1]), (201, [4 * MIB, 4 * MIB]))
        # The tokens last for ten minutes, so each upload alone would renew them; one that finds another under way must not.
        refreshes = lambda: len(self.world.front.asked("POST", "/auth/refresh"))
        before = refreshes()
        statuses = self.run_client("""
            const body = new Blob([new Uint8Array(given[1])]);
            const upload = (n) => client.upload('tuebingen', `${given[0]}${n}`, { method: 'PUT', body });
            return (await Promise.all([upload(1), upload(2), upload(3)])).map(({ status }) => status);
        """, path, MIB)
        self.assertEqual((statuses, refreshes() - before), ([201] * 3, 1))
        wire.bytes_per_second = 4 * MIB
        self.addCleanup(setattr, wire, "bytes_per_second", None)
        cancelled = self.run_client("""
            const controller = new AbortController();
            const body = new Blob([new Uint8Array(given[1])]);
            const onprogress = () => controller.abort();
            return client.upload('tuebingen', given[0], { method: 'PUT', body, onprogress, signal: controller.signal });
        """, path, 64 * MIB)
        self.assertEqual(cancelled[2], "AbortError")

    def test_a_download(self):
        self.logs_in()
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: {len(WORDS)}\r\n\r\n{WORDS}"
        self.world.wires["tuebingen"].answers[FILE] = answer.encode()
        self.addCleanup(self.world.wires["tuebingen"].answers.pop, FILE)
        url = self.run_client("return client.downloadUrl('tuebingen', given[0])", f"{FILE}?ref=main")
        self.browser.script(LINK, url, True)
        self.browser.click("#link")
        self.browser.wait(self.browser.downloaded, "a saved file")
        self.assertEqual(list(self.browser.downloaded().values()), [WORDS.encode()])


if __name__ == "__main__":
    unittest.main()
