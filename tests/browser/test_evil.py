"""PR-06: what people put into a repository never runs in our origin, whichever way it is opened."""

import threading
import unittest
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from person import Person

RAW = "/api/v4/projects/230/repository/files/{}/raw"
# Whoever runs it says so: to all of its own origin, in its storage, and to the beacon.
SCRIPT = """
    try { new BroadcastChannel('evil').postMessage('ran') } catch {}
    try { localStorage.evil = 'ran' } catch {}
    try { fetch('BEACON', { mode: 'no-cors' }).catch(() => {}) } catch {}
    try { new Image().src = 'BEACON' } catch {}
"""
FILES = {
    "evil.html": ("text/html", "<!doctype html><title>evil</title><script>SCRIPT</script>"),
    "evil.svg": ("image/svg+xml", '<svg xmlns="http://www.w3.org/2000/svg"><script>//<![CDATA[\nSCRIPT\n//]]></script></svg>'),
    "evil.js": ("text/javascript", "SCRIPT"),
    "evil.pdf": ("application/pdf", "%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.launchURL\\('BEACON'\\))>>>>"
                 "endobj 2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj 3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\n"
                 "trailer<</Root 1 0 R>>\n%%EOF"),
}
# How a page may open an address; gone again after a moment.
OPEN = """
    const [way, address, type, patience] = arguments;
    const url = `${address}way=${way}`;  // What is cached from another way would not run again.
    const element = (name, values) => document.body.appendChild(Object.assign(document.createElement(name), values));
    const ways = {
        tab: () => { const tab = open(url); return { remove: () => tab?.close() } },
        iframe: () => element('iframe', { src: url }),
        object: () => element('object', { data: url, type }),
        embed: () => element('embed', { src: url, type }),
        script: () => element('script', { src: url }),
        module: () => element('script', { src: url, type: 'module' }),
        stylesheet: () => element('link', { rel: 'stylesheet', href: url }),
        manifest: () => element('link', { rel: 'manifest', href: url }),
        modulepreload: () => element('link', { rel: 'modulepreload', href: url }),
        img: () => element('img', { src: url }),
        link: () => { const a = element('a', { href: url, target: 'evil' }); a.click(); return a },
        import: () => { import(url).catch(() => {}) },
        Worker: () => { const worker = new Worker(url); return { remove: () => worker.terminate() } },
        SharedWorker: () => { new SharedWorker(url) },
        serviceWorker: () => { navigator.serviceWorker.register(url).catch(() => {}) },
    };
    const channel = new BroadcastChannel('evil');
    const ran = new Promise((resolve) => { channel.onmessage = () => resolve(true) });
    const late = new Promise((resolve) => { setTimeout(resolve, patience, false) });
    const opened = ways[way]();
    const told = await Promise.race([ran, late]);
    opened?.remove();
    channel.close();
    const registrations = await navigator.serviceWorker.getRegistrations();
    for (const registration of registrations) { await registration.unregister(); }
    const stored = localStorage.evil === 'ran';
    localStorage.removeItem('evil');
    return told || stored || registrations.length > 0;
"""
# Tabs come last: behind one, a page is not drawn, and what is not drawn may not be loaded.
WAYS = ["iframe", "object", "embed", "script", "module", "import", "stylesheet", "manifest", "modulepreload", "img", "Worker",
        "SharedWorker", "serviceWorker", "tab", "link"]
RUNS = {(way, file) for way in ["tab", "link", "iframe", "object", "embed"] for file in ["evil.html", "evil.svg"]} \
    | {(way, "evil.js") for way in ["script", "module", "import", "Worker", "SharedWorker", "serviceWorker"]}


class Beacon:
    """A site that hears of every script that ran, and that has the same files to run them itself."""

    def __init__(self):
        self.heard = heard = []
        beacon = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.split("?")[0].strip("/")
                if name == "beacon":
                    heard.append(self.headers.get("Origin"))
                kind, body = ("text/html", "<body>") if name == "page" else beacon.files.get(name, ("text/plain", ""))
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body.encode())
                except ConnectionError:
                    pass  # It was taken away again.

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_address[1]}"
        script = SCRIPT.replace("BEACON", f"{self.origin}/beacon")
        self.files = {name: (kind, text.replace("SCRIPT", script).replace("BEACON", f"{self.origin}/beacon"))
                      for name, (kind, text) in FILES.items()}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Evil(Person):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.beacon = Beacon()
        cls.addClassCleanup(cls.beacon.close)
        for name, (kind, body) in cls.beacon.files.items():
            answer = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            cls.world.wires["tuebingen"].answers[RAW.format(name)] = answer.encode()
        cls.base = f"{cls.world.origin}/arcmanager/api/v1/datahubs/tuebingen"

    def address(self, name):
        return f"{self.base}{RAW.format(name)}?ref=main"

    def open_in_every_way(self, address):
        # Plugins' elements are slow; where nothing would run anywhere, a moment is enough.
        return {(way, name) for way in WAYS for name in FILES
                if self.browser.script(OPEN, way, address(name), FILES[name][0], 1500 if (way, name) in RUNS else 200)}

    def test_on_a_site_of_its_own_it_runs(self):
        """The twin: these files do run where nobody hinders them."""
        self.browser.open(f"{self.beacon.origin}/page")
        self.assertEqual(self.open_in_every_way(lambda name: f"{self.beacon.origin}/{name}?"), RUNS)
        self.assertGreater(len(self.beacon.heard), len(RUNS))

    def test_in_our_origin_nothing_runs(self):
        self.log_in()
        read = "return await (await fetch(arguments[0])).text()"
        self.assertEqual(self.browser.script(read, self.address("evil.js")), self.beacon.files["evil.js"][1])
        # The policy of the demo app's page would hinder most of it; another app's might not.
        self.browser.cdp("Page.setBypassCSP", enabled=True)
        self.browser.open(self.world.app)
        self.browser.find('[data-session="tuebingen"]')
        del self.beacon.heard[:]
        self.assertEqual(self.open_in_every_way(lambda name: f"{self.address(name)}&"), set())
        self.assertEqual(self.beacon.heard, [])

        for name in FILES:
            with self.subTest(f"{name}, typed"):
                self.browser.open(self.address(name))
                self.assertNotEqual(self.browser.script("return document.title"), "evil")
        self.browser.open(self.world.app)
        self.browser.find('[data-session="tuebingen"]')
        for name in FILES:
            with self.subTest(f"{name}, saved by a link"):
                save = "const a = document.createElement('a'); a.href = arguments[0]; a.download = ''; a.click()"
                self.browser.script(save, self.address(name))
                self.browser.find('[data-session="tuebingen"]')
        self.assertIsNone(self.browser.script("return localStorage.evil ?? null"))
        self.assertEqual(self.beacon.heard, [])

    def test_a_service_workers_script_is_refused(self):
        self.log_in()
        cookies = "; ".join(f"{name}={cookie['value']}" for name, cookie in self.browser.cookies().items())
        metadata = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "same-origin", "Sec-Fetch-Dest": "empty"}
        for more, status in [({}, 200), ({"Service-Worker": "script", "Sec-Fetch-Dest": "serviceworker"}, 403)]:
            headers = {"Cookie": cookies, **metadata, **more}
            try:
                with urllib.request.urlopen(urllib.request.Request(self.address("evil.js"), headers=headers)) as answer:
                    self.assertEqual(answer.status, status)
            except urllib.error.HTTPError as error:
                self.assertEqual(error.code, status)
                error.close()


if __name__ == "__main__":
    unittest.main()
