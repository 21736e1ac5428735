"""A page that does what the ARCmanager's app of today does, as `app.dir` of a gateway with config/arcmanager.toml."""

import http.client
import json
import re
import time
import unittest

from compatibility import in_every_engine
from person import API, Person

# Titles of commits, as the app shows them: whoever may commit to an ARC writes them. Each tells that it ran.
RAN = "(window.ran ??= []).push"
EVIL = f"""<img src="/nowhere" onerror="{RAN}('img')"><br/><script>{RAN}('script')</script><br/><svg onload="{RAN}('svg')"></svg><br/>
    <iframe srcdoc="<script>(parent.ran ??= []).push('iframe')</script>"></iframe><br/>
    <a id="evil-link" href="javascript:void({RAN}('link'))">a link</a><br/><b style="color: rgb(255, 0, 0)">bold</b>"""

# What a DataHUB says of a personal access token of testuser's.
TOKEN = {
    "/api/v4/user": {"id": 7, "username": "testuser", "name": "Test", "state": "active"},
    "/api/v4/personal_access_tokens/self": {"id": 3, "user_id": 7, "name": "for the ARCmanager", "active": True, "revoked": False,
                                            "scopes": ["api"], "expires_at": "2099-01-01", "created_at": "2026-01-01T00:00:00.000Z"},
}


class ArcmanagerPerson(Person):
    """Somebody with the ARCmanager. Access tokens live for eight seconds, and are renewed ahead in the last two."""

    options = {"arcmanager": True, "token_lifetime_s": 8}

    def setUp(self):
        self.backend("projects/getBanner", {"message": "Welcome"})

    def backend(self, path, answer, kind="application/json", **fields):
        """What the old backend answers."""
        self.page(f"{API}/{path}", json.dumps(answer) if kind == "application/json" else answer, kind, **fields)

    def log_in(self, datahub="tuebingen", user="testuser"):
        self.go_to_sign_in(datahub)
        self.browser.click(f"#sign-in-{user}")
        self.browser.find("#call")

    def is_shown(self, *selectors):
        """Whether all of these are, or none."""
        shown = {self.browser.script("return document.querySelector(arguments[0]).checkVisibility()", one) for one in selectors}
        self.assertEqual(len(shown), 1, selectors)
        return shown.pop()

    def add_personal_token(self, token):
        self.browser.script("document.querySelector('#message').textContent = ''; document.querySelector('#pat').value = arguments[0]", token)
        self.browser.click("#add-pat")

    def call(self, path):
        """What the page says of a call."""
        self.browser.script("document.querySelector('#message').textContent = ''; document.querySelector('#path').value = arguments[0]", path)
        self.browser.click("#call")
        return self.browser.wait(lambda: self.browser.text("#message"), "an answer")

    def check_countdown(self):
        """The page's countdown ends when the token does."""
        shown, now, sessions = self.browser.script(f"""
            const sessions = await (await fetch('{API}/auth/session')).json();
            return [document.querySelector('#countdown').textContent, Date.now() / 1000,
                sessions.sessions.map((session) => Date.parse(session.expires_at) / 1000)]""")
        # The page takes 970 ms for a second, and the gateway tells whole ones.
        self.assertAlmostEqual(now + float(shown), max(sessions), delta=2)
        return max(sessions)


@in_every_engine
class Arcmanager(ArcmanagerPerson):
    """The ARCmanager's app of today, with access tokens of eight seconds"""

    def log_in(self, *who):
        super().log_in(*who)
        self.browser.find("#logout")

    def test_logs_in_at_each_datahub_and_shows_the_name(self):
        browser = self.browser
        for datahub, user, name in [("tuebingen", "testuser", "Test"), ("freiburg", "joerg", "Jörg 100% Müller"), ("tübingen", "joerg", "Jörg 100% Müller")]:
            with self.subTest(datahub):
                self.log_in(datahub, user)
                self.assertEqual((browser.text("#name"), browser.address()), (name, f"{self.world.app}index.html"))
                self.assertEqual(self.sessions(), [datahub.replace("ü", "ue")])
                browser.find("#banner", "Welcome")
                self.check_countdown()
                browser.click("#logout")
                browser.wait(lambda: not browser.script("return document.cookie"), "that nobody is logged in")

    def test_the_countdown_is_right_after_the_refresh_button(self):
        self.log_in()
        before = self.check_countdown()
        time.sleep(1.2)  # A token younger than `session.remember` stays.
        self.browser.click("#refresh")
        self.browser.find("#message", "Session refresh was successful!")
        self.assertGreater(self.check_countdown(), before)

    def test_the_countdown_is_right_after_a_refresh_in_the_background(self):
        self.backend("projects/arc_list", {"projects": []})
        self.log_in()
        before = self.check_countdown()
        time.sleep(6.2)
        self.assertEqual(self.call("projects/arc_list?owned=true&page=1"), '{"projects":[]}')
        self.assertEqual([call.status for call in self.world.front.asked("GET", "projects/arc_list")[-2:]], [307, 200])
        self.browser.reload()
        self.browser.find("#logout")
        self.assertGreater(self.check_countdown(), before)

    def test_a_personal_access_token_takes_the_place_of_countdown_and_refresh(self):
        browser, revoked = self.browser, self.revocations()
        self.backend("projects/arc_list", {"projects": []})
        self.log_in()
        self.assertTrue(self.is_shown("#countdown", "#refresh"))
        # The DataHUB knows no such token: the session stays.
        self.add_personal_token("glpat-unknown")
        browser.find("#message", "oken")
        self.assertTrue(self.is_shown("#countdown", "#refresh"))
        self.check_countdown()
        for path, value in TOKEN.items():
            body = json.dumps(value)
            self.world.wires["tuebingen"].answers[path] = \
                f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            self.addCleanup(self.world.wires["tuebingen"].answers.pop, path)
        self.add_personal_token("glpat-of-testuser")
        browser.find("#message", "Your Personal Access token was added successfully!")
        self.assertFalse(self.is_shown("#countdown", "#refresh"))
        browser.wait(lambda: self.revocations() > revoked, "the end of the tokens of the login")
        browser.reload()
        browser.find("#logout")
        self.assertEqual((browser.text("#name"), self.is_shown("#countdown", "#refresh")), ("Test", False))
        self.assertEqual(self.call("projects/arc_list?owned=true&page=1"), '{"projects":[]}')
        self.assertNotIn("glpat-of-testuser", browser.script("return document.cookie") + self.world.output())

    def test_logged_out_nobody_is_there_after_a_reload(self):
        browser = self.browser
        self.log_in()
        browser.click("#logout")
        browser.wait(lambda: not browser.script("return document.cookie"), "that nobody is logged in")
        browser.reload()
        browser.find('[data-login="tuebingen"]')
        self.assertEqual((browser.text("#name"), browser.text("#banner"), self.sessions()), ("", "", []))
        self.assertFalse(browser.script("return document.querySelector('#logout').checkVisibility()"))

    def test_an_error_alerts_until_its_cookie_expires(self):
        """The app cannot delete it. It expires within a minute; here browsers are told two seconds, so that no test waits for it."""
        browser = self.browser
        asked = http.client.HTTPConnection(self.world.front.address)
        self.addCleanup(asked.close)
        asked.request("GET", f"{API}/auth/login?datahub=plantmicrobe", headers={"Host": self.world.host})
        cookie = next(one for one in asked.getresponse().headers.get_all("Set-Cookie") if one.startswith("error="))
        seconds = re.search("Max-Age=([0-9]+)", cookie)
        self.assertIn(int(seconds[1]), range(1, 61))
        self.world.front.replaced[cookie.encode()] = cookie.replace(seconds[0], "Max-Age=2").encode()
        self.addCleanup(self.world.front.replaced.clear)
        browser.open(f"{self.world.app}index.html")
        browser.click('[data-login="plantmicrobe"]')
        self.assertIn("DataHUB", browser.alert())
        browser.find('[data-login="plantmicrobe"]')
        time.sleep(3.1)  # WebKit counts whole seconds.
        browser.open(f"{self.world.app}index.html")
        browser.find('[data-login="plantmicrobe"]')
        self.assertEqual(browser.script("return document.cookie"), "")

    def test_what_fails_says_why(self):
        self.backend("projects/arc_tree", {"detail": "Couldn't find ARC with ID 7"}, Status="404")
        self.log_in()
        # HTTP/2 has no reason phrase. WebKit has one of its own; elsewhere the text begins with the comma.
        self.assertRegex(self.call("projects/arc_tree?id=7&branch=main"), "^[A-Za-z ]*, Couldn't find ARC with ID 7$")
        for path in ["projects/publishArc", "projects/arc_tree?id=7&branch=main%26sudo=1", "datahubs/tuebingen/api/v4/user/keys"]:
            self.assertRegex(self.call(path), "^[A-Za-z ]*, [A-Z][^<>]+$", path)
        self.browser.script(f"await fetch('{API}/auth/logout', {{ method: 'POST' }})")
        self.assertRegex(self.call("projects/arc_list"), "^[A-Za-z ]*, .*[Ll]og in")


@in_every_engine
class Policy(ArcmanagerPerson):
    """What the ARCmanager's app needs of its Content-Security-Policy, and what it must not get"""

    def test_all_that_the_app_needs_works(self):
        self.browser.open(f"{self.world.app}index.html")
        self.browser.find('[data-login="tuebingen"]')
        looks = self.browser.script("return await window.look()")
        self.assertEqual([what for what, works in looks.items() if not works], [])
        self.assertEqual(len(looks), 6)

    def test_pages_of_a_pdf_are_shown(self):
        page = "<img id='page-1' src='data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==' style='width: 321px'>"
        self.backend("projects/arc_file", page, "text/html")
        self.log_in()
        self.browser.click("#show-file")
        seen = "const page = document.querySelector('#page-1'); return [page.naturalWidth, page.width]"
        self.browser.wait(lambda: self.browser.script(seen) == [1, 321], "the page")

    def test_the_title_of_a_commit_runs_nothing(self):
        browser = self.browser
        self.backend("projects/getChanges", EVIL)
        self.log_in()
        browser.click("#show-changes")
        browser.find("#changes b", "bold")
        browser.click("#evil-link")
        time.sleep(0.5)
        self.assertIsNone(browser.script("return window.ran ?? null"))
        self.assertEqual(browser.script("return getComputedStyle(document.querySelector('#changes b')).color"), "rgb(255, 0, 0)")

    def test_without_the_policy_it_runs(self):
        """The twin: another application of this origin, which has none."""
        self.browser.open(f"{self.world.origin}/other/blank")
        self.browser.script("document.body.innerHTML = arguments[0]", EVIL)
        self.browser.click("#evil-link")
        self.browser.wait(lambda: {"img", "iframe", "link"} <= set(self.browser.script("return window.ran ?? []")), "titles that run")


if __name__ == "__main__":
    unittest.main()
