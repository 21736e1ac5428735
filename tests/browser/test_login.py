"""Logins in Chromium, where the gateway, the DataHUBs and an attacker's page are sites of their own."""

import http.server
import json
import threading
import unittest

from person import Person

OURS = "__Host-Http-"


class Login(Person):
    apart = True

    def is_in(self, *datahubs):
        """Whether this browser has exactly these sessions, in an app that complains of nothing."""
        for datahub in datahubs:
            self.browser.find(f'[data-session="{datahub}"]')
        self.assertEqual(self.sessions(), sorted(datahubs))
        self.assertTrue(self.browser.script("return document.querySelector('#banner').hidden"), "the app complains")
        self.assertNotIn("login_error", self.browser.address())

    def events(self, method):
        """What the network told of this kind since the last call."""
        entries = (json.loads(entry["message"])["message"] for entry in self.browser.log("performance"))
        return [entry["params"] for entry in entries if entry["method"] == method]

    def callback(self):
        """The address of the last callback."""
        urls = [sent["request"]["url"] for sent in self.events("Network.requestWillBeSent")]
        return [url for url in urls if "/auth/callback?" in url][-1]

    def test_the_way_back_brings_the_pending_login_and_not_the_session(self):
        """CB-08, AR-03: what the callback can see of a browser that comes from a DataHUB."""
        self.log_in()
        self.events("")
        revoked = self.revocations()
        self.browser.open(f"{self.world.origin}/arcmanager/api/v1/auth/login?datahub=tuebingen")
        self.browser.click("#sign-in-joerg")
        self.browser.find('[data-session="tuebingen"]', "Jörg")
        sent = self.events("Network.requestWillBeSentExtraInfo")
        seen = {}
        for one in sent:
            cookies = {cookie["cookie"]["name"]: cookie["blockedReasons"] for cookie in one["associatedCookies"]}
            if f"{OURS}login" in cookies and one["headers"].get("Sec-Fetch-Site") == "cross-site":
                seen = cookies
        self.assertEqual(seen[f"{OURS}login"], [], "the way back is a navigation from elsewhere")
        for name in ("session", "sid"):
            self.assertRegex("".join(seen[f"{OURS}{name}-tuebingen"]), "SameSiteStrict$")
        self.is_in("tuebingen")
        # The first session's tokens are over at the DataHUB, though the callback did not see its cookie.
        self.assertEqual(self.revocations(), revoked + 1)

    def test_two_tabs_log_in_at_once(self):
        browser = self.browser
        first, second = browser.tabs(2, self.world.app)
        browser.switch(first)
        self.go_to_sign_in("tuebingen")
        browser.switch(second)
        self.go_to_sign_in("freiburg")
        browser.switch(first)
        browser.click("#sign-in-testuser")
        browser.find('[data-session="tuebingen"]')
        browser.switch(second)
        browser.click("#sign-in-joerg")
        self.is_in("tuebingen", "freiburg")

    def test_two_tabs_log_in_at_the_same_datahub_and_the_later_one_stays(self):
        browser = self.browser
        first, second = browser.tabs(2, self.world.app)
        for tab in (first, second):
            browser.switch(tab)
            self.go_to_sign_in()
        browser.click("#sign-in-testuser")
        browser.find('[data-session="tuebingen"]', "Test")
        browser.switch(first)
        browser.click("#sign-in-joerg")
        browser.find('[data-session="tuebingen"]', "Jörg")
        self.is_in("tuebingen")

    def test_back_and_forward_stay_in_the_app(self):
        browser = self.browser
        self.log_in()
        browser.back()
        browser.find("#sign-in-testuser")
        browser.forward()
        self.is_in("tuebingen")
        # Back once more, and the same button again: the DataHUB gives another code, for a login that is spent.
        browser.back()
        browser.click("#sign-in-testuser")
        self.is_in("tuebingen")

    def test_a_callback_that_is_opened_again_leads_into_the_app(self):
        browser = self.browser
        self.events("")
        self.log_in()
        callback = self.callback()
        for open_again in (lambda: browser.open(callback), browser.reload, lambda: browser.script("location.href = arguments[0]", callback)):
            open_again()
            browser.find('[data-session="tuebingen"]')
            self.is_in("tuebingen")
        # Somebody who is not logged in hears why.
        self.browser = self.start_browser()
        self.browser.open(callback)
        self.browser.find("#banner", "blocked")

    def test_works_where_third_party_cookies_are_blocked(self):
        self.browser = self.start_browser(**{"profile.block_third_party_cookies": True, "profile.cookie_controls_mode": 1})
        self.log_in()
        self.is_in("tuebingen")

    def test_says_so_where_all_cookies_are_blocked(self):
        self.browser = self.start_browser(**{"profile.default_content_setting_values.cookies": 2})
        self.go_to_sign_in()
        self.browser.click("#sign-in-testuser")
        self.browser.find("#banner", "Your browser blocked")

    def test_another_site_can_neither_log_in_nor_out(self):
        """AR-06, CS-01: links, pictures, frames, forms and scripts of another site."""
        browser, base = self.browser, f"{self.world.origin}/arcmanager/api/v1"
        self.log_in()
        before, revoked = self.cookies(), self.revocations()
        tries = f"""<!doctype html><title>evil</title><body>
            <a id=in href="{base}/auth/login?datahub=tuebingen">log in</a> <a id=out href="{base}/auth/logout">log out</a>
            <form id=post method=post action="{base}/auth/logout"><button>log out</button></form>
            <img src="{base}/auth/login?datahub=tuebingen"><iframe src="{base}/auth/login?datahub=tuebingen"></iframe>
            <img src="{base}/auth/logout"><iframe src="{base}/auth/logout"></iframe><script src="{base}/auth/session"></script>
            <link rel=prefetch href="{base}/auth/login?datahub=tuebingen">
            <script>
            window.tried = Promise.allSettled(["GET", "POST"].flatMap((method) => ["login?datahub=tuebingen", "logout", "refresh"].map((path) =>
                fetch("{base}/auth/" + path, {{ method, mode: "no-cors", credentials: "include", redirect: "manual" }}))));
            </script>"""
        with Site(tries) as evil:
            for press in ("#in", "#out", "#post button"):
                browser.open(evil.url)
                browser.script("await window.tried; return true")
                browser.click(press)
                if press == "#in":
                    browser.find('[data-session="tuebingen"]')  # They land in the app, and nothing has begun.
                else:
                    browser.wait(lambda: base in browser.address(), "the gateway's refusal")
        self.assertEqual(self.cookies(), before)
        browser.open(self.world.app)
        self.is_in("tuebingen")
        self.assertEqual(self.revocations(), revoked)

    def test_a_logout_removes_our_cookies_and_no_others(self):
        """LO-02."""
        browser = self.browser
        self.log_in()
        for url, name in ((self.world.origin, "another-app"), ("http://sibling.localhost", "sibling")):
            browser.cdp("Network.setCookie", url=url, name=name, value="1")
        browser.click("#logout-all")
        browser.find('[data-login="tuebingen"]')
        left = self.cookies()
        self.assertEqual([name for name in left if name.startswith(OURS)], [])
        self.assertLessEqual({"another-app", "sibling"}, set(left))

    def revocations(self):
        return bytes(self.world.wires["tuebingen"].passed).count(b"POST /oauth/revoke")

    def cookies(self):
        """The whole jar, whoever's the cookies are."""
        return {cookie["name"]: cookie["value"] for cookie in self.browser.cdp("Storage.getCookies")["cookies"]}


class Site:
    """One page, at a site of its own."""

    def __init__(self, page):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://evil.localhost:{self.server.server_port}/"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    unittest.main()
