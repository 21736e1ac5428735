"""Item 1: `<a download>`, and nothing but it, saves a file."""

import time
import unittest

from compatibility import in_every_engine
from person import API, Person

# A name that is no other test's; what it says is in no page of ours.
FILE = "/api/v4/projects/230/repository/files/table.csv/raw"
WORDS = "gene,fold\nHSP70,42.0\n"
# Whatever another page may try; what it gets hold of is told.
STEAL = """
    const [url, words] = arguments;
    const element = (name, values) => document.body.appendChild(Object.assign(document.createElement(name), values));
    const seen = [];
    const loads = (name, values) => new Promise((done) => {
        const one = element(name, values);
        one.onload = () => { seen.push(`${name} loaded`); done() };
        one.onerror = done;
        setTimeout(done, 1500);
        if (name === 'iframe' || name === 'object') {
            one.onload = () => { try { if (one.contentDocument?.body?.textContent.includes(words)) seen.push(name) } catch {} done() };
        }
    });
    const reads = async (mode) => {
        try {
            const answer = await fetch(url, { mode, credentials: 'include' });
            if ((await answer.text()).includes(words)) seen.push(`fetch ${mode}`);
        } catch {}
    };
    await Promise.all([loads('script', { src: url }), loads('img', { src: url }), loads('iframe', { src: url }),
        loads('object', { data: url, type: 'text/csv' }), loads('link', { rel: 'stylesheet', href: url }),
        loads('video', { src: url }), reads('cors'), reads('no-cors'), reads('same-origin')]);
    return seen;
"""
LINK = """
    const [href, download] = arguments;
    const link = Object.assign(document.createElement('a'), { href, id: 'link', textContent: 'this' });
    if (download) link.download = download;
    document.body.append(link);
"""


@in_every_engine
class Downloads(Person):
    """Downloads by a link."""

    def setUp(self):
        answer = f"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: {len(WORDS)}\r\n\r\n{WORDS}"
        self.world.wires["tuebingen"].answers[FILE] = answer.encode()
        self.address = f"{self.world.origin}{API}/datahubs/tuebingen{FILE}?ref=main"
        self.earlier = len(self.world.front.asked("GET", "/repository/files/"))

    def saved(self):
        """What is saved in the end, unless the gateway refuses it."""
        statuses = lambda: [call.status for call in self.world.front.asked("GET", "/repository/files/")[self.earlier:]]
        self.browser.wait(lambda: self.browser.downloaded() or 403 in statuses(), "a saved file")
        self.assertEqual(statuses()[-1:], [200])
        return self.browser.downloaded()

    def link(self, href, download=None):
        """Follows a link on the page that is open."""
        self.browser.script(LINK, href, download)
        self.browser.click("#link")

    def test_a_link_of_the_app_saves_the_file(self):
        self.log_in()
        self.link(self.address, "table.csv")
        self.assertEqual(self.saved(), {"table.csv": WORDS.encode()})
        self.is_in("tuebingen")

    def test_the_apps_own_button_saves_the_file(self):
        self.log_in()
        self.browser.open(f"{self.world.app}#/tuebingen/230")
        self.browser.click('#tree [data-path="README.md"]')
        self.browser.click("#download")
        self.assertEqual(self.saved(), {"README.md": self.world.file("tuebingen", 230, "README.md")})

    def test_a_link_saves_a_large_file_whole(self):
        """Larger than whatever lies in between would hold."""
        file, content = FILE.replace("table.csv", "large.bin"), bytes(range(251)) * (1 << 17)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        answers = self.world.wires["tuebingen"].answers
        answers[file] = head.encode() + content
        self.addCleanup(answers.pop, file)
        self.log_in()
        self.link(self.address.replace(FILE, file), "large.bin")
        saved = self.saved()
        self.assertEqual(list(saved), ["large.bin"])
        self.assertTrue(saved["large.bin"] == content, "other bytes")

    def test_another_application_of_the_origin_can_save_it_too(self):
        """It is same-origin: there a script could read it anyway."""
        self.log_in()
        self.browser.open(f"{self.world.origin}/other/page")
        self.link(self.address, "table.csv")
        self.assertEqual(self.saved(), {"table.csv": WORDS.encode()})

    def test_no_other_page_can_read_or_run_it(self):
        browser = self.browser
        self.log_in()
        read = "return await (await fetch(arguments[0])).text()"
        self.assertEqual(browser.script(read, self.address), WORDS, "the twin")
        for site in ("evil", "sibling.gateway"):
            with self.subTest(site):
                asked = len(self.world.front.asked("GET", FILE))
                browser.open(f"{self.world.site(site)}/page")
                self.assertEqual(browser.script(STEAL, self.address, "HSP70"), [])
                self.assertGreater(len(self.world.front.asked("GET", FILE)), asked + 4)

    def test_a_link_from_elsewhere_gets_no_data(self):
        browser = self.browser
        self.log_in()
        for site in ("evil", "sibling.gateway"):
            for download in (None, "table.csv"):
                with self.subTest(site, download=download):
                    browser.open(f"{self.world.site(site)}/page")
                    asked = len(self.world.front.asked("GET", FILE))
                    self.link(self.address, download)
                    browser.wait(lambda: len(self.world.front.asked("GET", FILE)) > asked, "the link is followed")
        self.gets_no_data()

    def test_a_typed_address_and_a_bookmark_get_no_data(self):
        self.log_in()
        self.browser.open(self.address)
        self.gets_no_data()

    def gets_no_data(self):
        time.sleep(0.3)
        self.assertNotIn(WORDS.encode(), self.browser.downloaded().values())
        self.assertNotIn("HSP70", self.browser.script("return document.documentElement.outerHTML"))


if __name__ == "__main__":
    unittest.main()
