"""Items 3, 5, 6, 8 and 9: what browsers do with pages besides opening them."""

import tempfile
import time
import unittest
import urllib.parse
import urllib.request

from compatibility import in_every_engine
from person import API, OURS, Person

PAGE = "<!doctype html><title>{}</title><body>"


@in_every_engine
class History(Person):
    """Back and forward, bookmarks, restored and private windows."""

    def test_a_bookmarked_sign_in_page_ends_in_the_app_and_a_login_from_there_works(self):
        browser = self.browser
        self.go_to_sign_in()
        bookmark = browser.address()
        browser.click("#sign-in-testuser")
        self.is_in("tuebingen")
        # Days later, in this browser: the login that the page belongs to is spent, and the session is there.
        browser.open(bookmark)
        browser.click("#sign-in-testuser")
        self.is_in("tuebingen")
        # And in another one.
        browser = self.browser = self.start_browser()
        browser.open(bookmark)
        browser.click("#sign-in-testuser")
        browser.find("#banner", "blocked")
        self.assertEqual(self.sessions(), [])
        browser.click('[data-login="tuebingen"]')
        browser.click("#sign-in-testuser")
        browser.find('[data-session="tuebingen"]')
        self.assertEqual(self.sessions(), ["tuebingen"])

    def test_a_bookmarked_login_link_logs_in(self):
        self.browser.open(f"{self.world.origin}{API}/auth/login?datahub=tuebingen")
        self.browser.click("#sign-in-testuser")
        self.is_in("tuebingen")

    def test_back_after_a_logout_shows_nobody(self):
        """From the back-forward cache, too: the page that comes back is the one that was left."""
        browser = self.browser = self.start_browser(goes_back=True)
        self.log_in()
        browser.open(f"{self.world.origin}/other/page")
        browser.script(f"await fetch('{API}/auth/logout', {{ method: 'POST' }})")
        self.assertEqual(self.sessions(), [])
        browser.back()
        browser.wait(lambda: self.world.app in browser.address(), "the app")
        self.assertEqual(self.sessions(), [])
        browser.find('[data-login="tuebingen"]')
        self.assertIsNone(browser.script("return document.querySelector('[data-session]')"), "the app shows a session that has ended")

    def test_back_to_a_page_whose_token_has_expired_goes_on(self):
        browser = self.browser = self.start_browser(goes_back=True)
        self.log_in()
        browser.open(f"{self.world.app}#/tuebingen/230")
        browser.find('#tree [data-path="README.md"]')
        browser.open(f"{self.world.origin}/other/page")
        browser.back()
        browser.click('#tree [data-path="README.md"]')
        browser.find("#edit")
        browser.forward()
        browser.back()
        self.is_in("tuebingen")

    def test_closed_and_opened_again_it_is_logged_in(self):
        with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
            self.browser = self.start_browser(folder=folder)
            self.log_in()
            held = self.cookies()
            self.browser.close()
            self.browser = self.start_browser(folder=folder)
            self.browser.open(self.world.app)
            self.is_in("tuebingen")
            self.assertEqual(self.cookies(), held)

    def test_a_restored_tab_is_logged_in(self):
        with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
            self.browser = self.start_browser(folder=folder)
            self.log_in()
            self.browser.close()
            self.browser = self.start_browser(folder=folder, restores=True)
            self.browser.wait(lambda: self.browser.switch_to(self.world.app), "the tab that was open")
            self.is_in("tuebingen")

    def test_a_private_window_logs_in_and_forgets(self):
        self.browser = self.start_browser(private=True)
        self.log_in()
        self.is_in("tuebingen")
        self.assertEqual({name for name in self.cookies() if name.startswith(OURS)}, {f"{OURS}{name}" for name in ("session-tuebingen", "sid-tuebingen", "login")})
        self.browser.close()
        self.browser = self.start_browser(private=True)
        self.browser.open(self.world.app)
        self.browser.find('[data-login="tuebingen"]')
        self.assertEqual(self.sessions(), [])


@in_every_engine
class ServiceWorker(Person):
    """A service worker that every request of the origin goes through, with access tokens of four seconds."""

    options = {"token_lifetime_s": 4}

    def install(self):
        self.page("/other/worker.js", """
            addEventListener('install', () => skipWaiting());
            addEventListener('activate', (event) => event.waitUntil(clients.claim()));
            addEventListener('fetch', (event) => event.respondWith(fetch(event.request)));""", "text/javascript", Service_Worker_Allowed="/")
        self.browser.open(f"{self.world.origin}/other/page")
        self.browser.script("""
            await navigator.serviceWorker.register('/other/worker.js', { scope: '/' });
            if (!navigator.serviceWorker.controller) {
                await new Promise((done) => navigator.serviceWorker.addEventListener('controllerchange', done));
            }""")

    def test_logs_in(self):
        self.install()
        self.log_in()
        self.is_in("tuebingen")

    def test_comes_back_from_a_login_calls_and_logs_out(self):
        browser = self.browser
        self.go_to_sign_in()
        sign_in = browser.address()
        self.install()
        browser.open(sign_in)
        browser.click("#sign-in-testuser")
        self.is_in("tuebingen")
        self.assertTrue(browser.script("return navigator.serviceWorker.controller !== null"))
        call = """const [path, method, body] = arguments;
            return (await fetch('/arcmanager/api/v1/datahubs/tuebingen/api/v4/' + path, { method, body })).status"""
        self.assertEqual(browser.script(call, "user", "GET"), 200)
        for path, method, body, status in [("user", "GET", None, 200), ("projects/230/issues?title=t", "POST", "x" * 100_000, 201)]:
            time.sleep(3.2)  # Stale by now: it is sent again.
            before = len(self.world.front.requests)
            self.assertEqual(browser.script(call, path, method, body), status)
            self.assertIn(307, [request.status for request in self.world.front.requests[before:]])
        browser.open(f"{self.world.app}#/")
        browser.click("#logout-all")
        browser.find('[data-login="tuebingen"]')
        self.assertEqual(self.sessions(), [])


@in_every_engine
class DeepLinks(Person):
    """Where a login lands."""

    def lands(self, target):
        """Logs in by a link as an app makes it, and gives where the person is then."""
        query = urllib.parse.urlencode({"datahub": "tuebingen", "return_to": target})
        self.browser.open(f"{self.world.origin}/other/page")
        self.begins_login(lambda: self.browser.script("location.href = arguments[0]", f"{API}/auth/login?{query}"))
        self.browser.click("#sign-in-testuser")
        self.browser.wait(lambda: self.world.origin in self.browser.address(), "the way back")
        return self.browser.script("return location.href.slice(location.origin.length)")

    def test_a_path_with_a_plain_query(self):
        self.assertEqual(self.lands("/other/deep/link?project=230&tab=files"), "/other/deep/link?project=230&tab=files")

    def test_a_query_as_urlsearchparams_writes_it(self):
        target = "/other/page?" + urllib.parse.urlencode({"project": "lu98be/testarc", "words": "100 % & more", "name": "Jörg"})
        self.assertEqual(self.lands(target), target)

    def test_another_site_is_no_place_to_land(self):
        self.assertTrue(self.lands(f"{self.world.site('evil')}/page").startswith("/arcmanager/app/"))

    def test_a_path_of_the_apps_own_router_opens_the_app(self):
        self.browser.open(f"{self.world.app}tuebingen/230")
        self.assertEqual(self.browser.script("return document.title"), "ARC gateway demo")


@in_every_engine
class Prefetch(Person):
    """Pages that ask for what nobody has clicked yet, by speculation rules or by a link."""

    def ask_ahead(self, target):
        """A page with a link, whose target is asked for ahead, by each way that this engine knows."""
        self.page("/other/ahead", f"""{PAGE.format('ahead')}<a id="link" href="{target}">link</a>
            <script type="speculationrules">{{"prefetch": [{{"urls": ["{target}"], "eagerness": "immediate"}}]}}</script>""")
        self.browser.open(f"{self.world.origin}/other/ahead")
        time.sleep(1)

    def test_a_login_asked_for_ahead_works_by_a_click(self):
        self.ask_ahead(f"{API}/auth/login?datahub=tuebingen")
        self.browser.click("#link")
        self.browser.wait(lambda: "/other/ahead" not in self.browser.address(), "the link is followed")
        self.assertIn("/oauth/authorize?", self.browser.address())
        self.browser.click("#sign-in-testuser")
        self.is_in("tuebingen")

    def test_a_callback_asked_for_ahead_spends_nothing(self):
        self.go_to_sign_in()
        callback = self.sign_in_outside(self.browser.address())
        self.ask_ahead(callback)
        self.assertEqual(self.sessions(), [])
        self.browser.click("#link")
        self.is_in("tuebingen")

    def test_a_login_by_a_prefetching_link_begins_nothing(self):
        self.page("/other/ahead", f"""{PAGE.format('ahead')}<link rel="prefetch" href="{API}/auth/login?datahub=tuebingen">
            <a id="link" href="{API}/auth/login?datahub=tuebingen">link</a>""")
        self.browser.open(f"{self.world.origin}/other/ahead")
        time.sleep(1)
        self.assertNotIn(f"{OURS}login", self.cookies())
        self.browser.click("#link")
        self.browser.click("#sign-in-testuser")
        self.is_in("tuebingen")

    def sign_in_outside(self, address):
        """The callback that the sign-in page at this address leads to, before any browser has opened it."""
        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_):
                return None
        port = urllib.parse.urlsplit(address).port
        here = address.replace(urllib.parse.urlsplit(address).netloc, f"127.0.0.1:{port}")
        try:
            urllib.request.build_opener(Stay).open(here, b"user=testuser", timeout=10)
        except urllib.error.HTTPError as error:
            self.addCleanup(error.close)
            return error.headers["Location"]


@in_every_engine
class DevelopmentOrigin(Person):
    """An app that a development server serves, at another port, with access tokens of four seconds."""

    options = {"token_lifetime_s": 4, "dev": True}

    def lands(self):
        self.browser.click("#sign-in-testuser")
        self.browser.wait(lambda: self.browser.address().startswith(f"{self.world.dev}/page"), "the development server's page")

    def call(self, path, method="GET"):
        """As an app there calls: `refresh_first` is heeded."""
        return self.browser.script("""
            const [base, path, method] = arguments;
            const headers = method === 'GET' ? {} : { 'Content-Type': 'application/json' };  // Which asks for a preflight.
            const body = method === 'GET' ? undefined : '{"title":"t"}';
            const send = (path, method) => fetch(base + path, { method, credentials: 'include', headers, body });
            try {
                let answer = await send(path, method);
                if (answer.status === 409) {
                    await fetch(`${base}/auth/refresh`, { method: 'POST', credentials: 'include' });
                    answer = await send(path, method);
                }
                return [answer.status, await answer.json()];
            } catch (error) { return [0, error.message] }""", f"{self.world.origin}{API}", path, method)

    def test_a_link_of_the_page_logs_in(self):
        self.browser.open(f"{self.world.dev}/page")
        link = f"{self.world.origin}{API}/auth/login?datahub=tuebingen"
        self.begins_login(lambda: self.browser.script("location.href = arguments[0]", link))
        self.lands()
        status, answer = self.call("/auth/session")
        self.assertEqual((status, [session["datahub"] for session in answer["sessions"]]), (200, ["tuebingen"]))

    def test_calls_and_goes_on_calling_when_tokens_expire(self):
        self.begins_login(lambda: self.browser.open(f"{self.world.origin}{API}/auth/login?datahub=tuebingen"))
        self.lands()
        self.assertEqual(self.call("/datahubs/tuebingen/api/v4/user")[0], 200)
        for path, method, status in [("user", "GET", 200), ("projects/230/issues", "POST", 201)]:
            time.sleep(3.2)
            before = len(self.world.front.requests)
            self.assertEqual(self.call(f"/datahubs/tuebingen/api/v4/{path}", method)[0], status)
            self.assertTrue({307, 409} & {request.status for request in self.world.front.requests[before:]}, "no token expired")

    def test_another_port_calls_in_vain(self):
        """The twin: a neighbour that nobody has named."""
        self.begins_login(lambda: self.browser.open(f"{self.world.origin}{API}/auth/login?datahub=tuebingen"))
        self.lands()
        self.browser.open(f"{self.world.site('sibling.gateway')}/page")
        self.assertEqual(self.call("/datahubs/tuebingen/api/v4/user")[0], 0)


@in_every_engine
class Localhost(Person):
    """The gateway at `http://localhost`, as `make demo` starts it."""

    options = {"tls": False}

    def test_logs_in(self):
        self.log_in()
        self.is_in("tuebingen")

    def test_logs_in_or_says_why_not(self):
        self.go_to_sign_in()
        self.browser.click("#sign-in-testuser")
        self.browser.find('[data-session="tuebingen"], #banner')
        if not self.sessions():
            self.browser.find("#banner", "blocked")


if __name__ == "__main__":
    unittest.main()
