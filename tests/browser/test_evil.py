"""PR-06: what people put into a repository never runs in our origin, whichever way it is opened."""

import unittest

from compatibility import in_every_engine
from person import API, Person

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
# How a page may open addresses; gone again after a moment. Tells whether any of them ran.
OPEN = """
    const [openings, patience] = arguments;
    const element = (name, values) => document.body.appendChild(Object.assign(document.createElement(name), values));
    const ways = {
        tab: (url) => { const tab = open(url); return { remove: () => tab?.close() } },
        iframe: (src) => element('iframe', { src }),
        object: (data, type) => element('object', { data, type }),
        embed: (src, type) => element('embed', { src, type }),
        script: (src) => element('script', { src }),
        module: (src) => element('script', { src, type: 'module' }),
        stylesheet: (href) => element('link', { rel: 'stylesheet', href }),
        manifest: (href) => element('link', { rel: 'manifest', href }),
        modulepreload: (href) => element('link', { rel: 'modulepreload', href }),
        img: (src) => element('img', { src }),
        link: (href) => { const a = element('a', { href, target: 'evil' }); a.click(); return a },
        import: (url) => { import(url).catch(() => {}) },
        Worker: (url) => { const worker = new Worker(url); return { remove: () => worker.terminate() } },
        SharedWorker: (url) => { new SharedWorker(url) },
        serviceWorker: (url) => { navigator.serviceWorker.register(url).catch(() => {}) },
    };
    const channel = new BroadcastChannel('evil');
    const ran = new Promise((resolve) => { channel.onmessage = () => resolve(true) });
    const late = new Promise((resolve) => { setTimeout(resolve, patience, false) });
    // What is cached from another way would not run again.
    const opened = openings.map(([way, address, type]) => ways[way](`${address}way=${way}`, type));
    const told = await Promise.race([ran, late]);
    opened.forEach((one) => one?.remove());
    channel.close();
    const registrations = await navigator.serviceWorker.getRegistrations();
    for (const registration of registrations) { await registration.unregister(); }
    const stored = localStorage.evil === 'ran';
    localStorage.removeItem('evil');
    return told || stored || registrations.length > 0;
"""
WAYS = ["iframe", "object", "embed", "script", "module", "import", "stylesheet", "manifest", "modulepreload", "img", "Worker",
        "SharedWorker", "serviceWorker", "tab", "link"]
RUNS = {(way, file) for way in ["tab", "link", "iframe", "object", "embed"] for file in ["evil.html", "evil.svg"]} \
    | {(way, "evil.js") for way in ["script", "module", "import", "Worker", "SharedWorker", "serviceWorker"]}


@in_every_engine
class Evil(Person):
    """What people put into a repository."""

    def setUp(self):
        super().setUp()
        self.elsewhere = self.world.site("evil")
        script = SCRIPT.replace("BEACON", f"{self.elsewhere}/beacon")
        self.files = {name: text.replace("SCRIPT", script).replace("BEACON", f"{self.elsewhere}/beacon") for name, (_, text) in FILES.items()}
        for name, text in self.files.items():
            kind = FILES[name][0]
            self.page(f"/{name}", text, kind)
            answer = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n{text}"
            self.world.wires["tuebingen"].answers[RAW.format(name)] = answer.encode()
        self.world.sites.heard.clear()

    def beacons(self):
        return [path for _, path, _ in self.world.sites.heard if path == "/beacon"]

    def address(self, name):
        return f"{self.world.origin}{API}/datahubs/tuebingen{RAW.format(name)}?ref=main"

    def test_on_a_site_of_its_own_it_runs(self):
        """The twin: these files do run where nobody hinders them."""
        self.browser.open(f"{self.elsewhere}/blank")
        # Plugins' elements are slow; where nothing would run anywhere, a moment is enough.
        ran = {(way, name) for way in WAYS for name in FILES
               if self.browser.script(OPEN, [[way, f"{self.elsewhere}/{name}?", FILES[name][0]]], 3000 if (way, name) in RUNS else 100)}
        self.assertEqual(ran, RUNS)
        self.assertTrue(self.beacons())

    def test_in_our_origin_nothing_runs(self):
        browser = self.browser
        self.log_in()
        read = "return await (await fetch(arguments[0])).text()"
        self.assertEqual(browser.script(read, self.address("evil.js")), self.files["evil.js"])
        # The policy of the demo app's page would hinder most of it; another application of this origin has none.
        browser.open(f"{self.world.origin}/other/blank")
        asked = len(self.world.front.requests)
        # Tabs come last: behind one, a page is not drawn, and what is not drawn may not be loaded.
        for ways in WAYS[:-2], WAYS[-2:]:
            openings = [[way, f"{self.address(name)}&", FILES[name][0]] for way in ways for name in FILES]
            self.assertFalse(browser.script(OPEN, openings, 2500), f"one of {ways} ran")
        self.assertGreater(len(self.world.front.requests) - asked, 40)
        for name in FILES:
            with self.subTest(f"{name}, typed"):
                browser.open(self.address(name))
                self.assertNotEqual(browser.script("return document.title"), "evil")
        browser.open(self.world.app)
        browser.find('[data-session="tuebingen"]')
        for name in FILES:
            with self.subTest(f"{name}, saved by a link"):
                save = "const a = document.createElement('a'); a.href = arguments[0]; a.download = ''; a.click()"
                browser.script(save, self.address(name))
        browser.open(self.world.app)
        browser.find('[data-session="tuebingen"]')
        self.assertIsNone(browser.script("return localStorage.evil ?? null"))
        self.assertEqual(self.beacons(), [])

    def test_a_service_workers_script_is_refused(self):
        browser = self.browser
        self.log_in()
        browser.open(f"{self.world.origin}/other/blank")
        register = "return navigator.serviceWorker.register(arguments[0]).then(() => 'registered', (error) => error.name)"
        self.assertIn(browser.script(register, self.address("evil.js")), ("SecurityError", "TypeError"))
        asked = self.world.front.asked("GET", RAW.format("evil.js"))[-1].fields
        self.assertEqual(asked["service-worker"], "script")
        # The twin: a script that may be one.
        self.page("/other/worker.js", "addEventListener('fetch', () => {})", "text/javascript")
        self.assertEqual(browser.script(register, "/other/worker.js"), "registered")


if __name__ == "__main__":
    unittest.main()
