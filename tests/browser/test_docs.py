"""The API's page and the check of a browser, behind nginx: by hand, by ear, in light and dark."""

import unittest

from compatibility import in_every_engine
from person import API, Person
from test_demo import AXE, FINDINGS, SCHEME


def answer(status, code, body=b""):
    """A failure of the gateway's, or with a body what is none."""
    kind = b"application/json" if body else b"application/problem+json"
    body = body or b'{"code":"%s"}' % code
    return b"HTTP/1.1 %d X\r\nContent-Type: %s\r\nCache-Control: no-store\r\nContent-Length: %d\r\n\r\n%s" % (status, kind, len(body), body)


@in_every_engine
class Docs(Person):
    """The API's page and the check of a browser."""

    def open(self, page):
        self.browser.open(f"{self.world.origin}{API}/docs/{page}")

    def open_call(self, name):
        self.browser.script("const call = document.getElementById(arguments[0]); call.open = true; call.scrollIntoView()", name)
        return f"[id='{name}']"

    def try_call(self, name, **values):
        call = self.open_call(name)
        self.browser.find(f"{call} button")
        for label, value in values.items():
            self.browser.script("""
                const [call, name, value] = arguments;
                const label = [...document.querySelectorAll(`${call} label`)].find((one) => one.textContent.startsWith(name));
                label.querySelector("input, select, textarea").value = value;
            """, call, label, value)
        self.browser.script("document.querySelector(arguments[0]).click()", f"{call} button")
        return call

    def log_in_from_the_page(self):
        self.browser.click("#session a", "Tübingen")
        self.browser.click("#sign-in-testuser")
        self.browser.find("#session span", "Tübingen")

    def test_it_logs_in_and_makes_calls_and_logs_out(self):
        browser = self.browser
        self.open("")
        browser.find("#session a", "Log in at DataHUB Tübingen")
        call = self.try_call("get/auth/session")
        browser.find(f"{call} pre", '"sessions": []')
        self.log_in_from_the_page()
        self.assertTrue(browser.address().endswith(f"{API}/docs/"), browser.address())
        call = self.try_call("get/datahubs/{datahub}/{path}", datahub="tuebingen", path="api/v4/user?x=1")
        browser.find(f"{call} .good", "200")
        browser.find(f"{call} pre", '"username": "testuser"')
        browser.find(f"{self.try_call('post/auth/refresh')} .good", "200")
        call = self.try_call("get/auth/login", datahub="freiburg", return_to=f"{API}/docs/")
        browser.click("#sign-in-joerg")
        browser.find("#session span", "Freiburg")
        self.assertEqual(self.sessions(), ["freiburg", "tuebingen"])
        call = self.try_call("post/auth/logout", datahub="freiburg")
        browser.find(f"{call} .good", "204")
        browser.find("#session a", "Log in at DataHUB Freiburg")
        browser.click("#session button")
        browser.find("#session a", "Log in at DataHUB Tübingen")
        self.assertEqual(self.sessions(), [])
        call = self.try_call("get/datahubs/{datahub}/{path}", datahub="tuebingen")
        browser.find(f"{call} .bad", "401")
        browser.find(f"{call} pre", "not_logged_in")

    def test_every_call_of_the_document_can_be_opened(self):
        self.open("")
        self.browser.find("main details")
        shown = self.browser.script("""
            const calls = [...document.querySelectorAll("main details")];
            calls.forEach((call) => { call.open = true; });
            await new Promise((done) => setTimeout(done, 200));
            const document_ = await (await fetch("../openapi.json")).json();
            const all = Object.entries(document_.paths).flatMap(([path, item]) => Object.keys(item).map((method) => method + path));
            const codes = Object.keys(document_.components.examples);
            return {
                missing: all.filter((name) => !document.getElementById(name)?.querySelector("table tbody tr")),
                count: all.length === calls.length,
                codes: codes.filter((code) => !document.body.textContent.includes(code)),
            };
        """)
        self.assertEqual(shown, {"missing": [], "count": True, "codes": []})

    def test_the_check_says_what_is_well_and_what_is_not(self):
        browser = self.browser
        self.open("check")
        browser.find("#checks .bad strong", "Not logged in at DataHUB Tübingen")
        for text in ("cookies can be Secure", "keeps Secure cookies", "the same origin", "sees Fetch Metadata", "Origin is as it should be", "clocks"):
            browser.find("#checks .good strong", text)
        self.assertEqual(browser.script("return document.cookie"), "")
        self.log_in()
        self.open("check")
        browser.find("#checks .good strong", "DataHUB Tübingen answers")
        # An app elsewhere, and a gateway whose clock is wrong.
        front = self.world.front
        self.addCleanup(front.replaced.clear)
        front.replaced[b'"now":"20'] = b'"now":"19'
        browser.script("document.getElementById('address').value = 'https://app.example.org/'")
        browser.click("button")
        browser.find("#checks .bad strong", "Your app is on https://app.example.org")
        browser.find("#checks .bad strong", "ahead")
        front.replaced.clear()

    def test_the_check_says_why_calls_are_refused(self):
        browser, front = self.browser, self.world.front
        self.addCleanup(front.answers.clear)
        nobody = answer(200, b"", b'{"sessions":[],"now":"2026-01-31T12:00:00Z"}')
        refused = answer(403, b"cross_site_request")
        wrong_host = answer(421, b"wrong_host")  # Browsers ask a second time, by another connection.
        for answers, title, todo in (
            ([wrong_host] * 2, "another name than server.public_url", "changeOrigin"),
            ([refused, nobody], "Fetch Metadata is missing", "X-CSRF: 1"),
            ([refused, refused], "for another site's", "server.public_url is not"),
            ([nobody, refused], "What changes something is refused", "app.dev_origins"),
            ([answer(502, b"", b"<html>")], "does not answer as it should: 502", "front's log"),
        ):
            with self.subTest(title):
                left = list(answers)
                front.answers[f"{API}/auth/session"] = lambda near: near.sendall(left.pop(0) if left else refused)
                self.open("check")
                browser.find("#checks .bad strong", title)
                browser.find("#checks .bad p", todo)

    def test_a_checker_finds_nothing_of_weight(self):
        browser, found = self.browser, []
        for page in ("", "check"):
            self.open(page)
            browser.find("main details, #checks .bad strong")
            if not page:
                browser.find(f"{self.try_call('get/auth/session')} .good")
            browser.script(AXE.read_text())
            for scheme in ("light", "dark"):
                browser.script(SCHEME, scheme)
                found.extend(f"{page}, {scheme}: {finding}" for finding in browser.script(FINDINGS, scheme))
        self.assertEqual(found, [])

    def test_nothing_is_wider_than_a_phone(self):
        browser = self.browser
        browser.resize(360, 740)
        self.addCleanup(browser.resize, 1280, 960)
        for page in ("", "check"):
            self.open(page)
            browser.find("main details, #checks .bad strong")
            if not page:
                browser.find(f"{self.open_call('get/auth/session')} table")
            self.assertLessEqual(browser.script("return document.documentElement.scrollWidth - innerWidth"), 0, page)


if __name__ == "__main__":
    unittest.main()
