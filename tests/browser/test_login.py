"""Logins, where the gateway, the DataHUBs and an attacker's page are sites of their own."""

import unittest

from compatibility import in_every_engine
from person import API, OURS, Person


@in_every_engine
class Login(Person):
    """Logging in and out."""

    def test_the_way_back_brings_the_pending_login_and_not_the_session(self):
        """CB-08, AR-03: what the callback can see of a browser that comes from a DataHUB."""
        self.log_in()
        revoked = self.revocations()
        self.browser.open(f"{self.world.origin}{API}/auth/login?datahub=tuebingen")
        self.browser.click("#sign-in-joerg")
        self.browser.find('[data-session="tuebingen"]', "Jörg")
        way_back = self.world.front.asked("GET", "/auth/callback")[-1].fields
        self.assertEqual((way_back["sec-fetch-site"], way_back["sec-fetch-mode"]), ("cross-site", "navigate"))
        self.assertEqual([cookie.split("=")[0] for cookie in way_back["cookie"].split("; ")], [f"{OURS}login"])
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
        browser = self.browser = self.start_browser(goes_back=True)
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
        self.log_in()
        callback = self.world.origin + self.world.front.asked("GET", "/auth/callback")[-1].target
        # Emptied, so that what is found is the next page's.
        go = "document.body.replaceChildren(); location.href = arguments[0]"
        for open_again in (lambda: browser.open(callback), browser.reload, lambda: browser.script(go, callback)):
            open_again()
            browser.find('[data-session="tuebingen"]')
            self.is_in("tuebingen")
        # Somebody who is not logged in hears why.
        self.browser = self.start_browser()
        self.browser.open(callback)
        self.browser.find("#banner", "blocked")

    def test_works_where_third_party_cookies_are_blocked(self):
        self.browser = self.start_browser(cookies="first-party")
        self.log_in()
        self.is_in("tuebingen")

    def test_says_so_where_all_cookies_are_blocked(self):
        self.browser = self.start_browser(cookies="none")
        self.go_to_sign_in()
        self.browser.click("#sign-in-testuser")
        self.browser.find("#banner", "Your browser blocked")

    def test_another_site_can_neither_log_in_nor_out(self):
        """AR-06, CS-01: links, pictures, frames, forms and scripts of another site."""
        browser, base = self.browser, f"{self.world.origin}{API}"
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
        self.page("/tries", tries)
        for press in ("#in", "#out", "#post button"):
            browser.open(f"{self.world.site('evil')}/tries")
            browser.script("await window.tried; return true")
            browser.click(press)
            if press == "#in":
                browser.find('[data-session="tuebingen"]')  # They land in the app, and nothing has begun.
            else:
                browser.wait(lambda: base in browser.address(), "the gateway's refusal")
        browser.open(self.world.app)
        self.is_in("tuebingen")
        self.assertEqual(self.cookies(), before)
        self.assertEqual(self.revocations(), revoked)

    def test_a_logout_removes_our_cookies_and_no_others(self):
        """LO-02."""
        browser = self.browser
        self.log_in()
        neighbours = [f"{self.world.origin}/other/", f"{self.world.site('sibling.gateway')}/"]
        for url in neighbours:
            browser.open(url)
            browser.script("document.cookie = 'neighbour=1; Secure; Max-Age=600'")
        browser.open(self.world.app)
        browser.click("#logout-all")
        browser.find('[data-login="tuebingen"]')
        self.assertEqual([name for name in self.cookies() if name.startswith(OURS)], [])
        for url in neighbours:
            browser.open(url)
            self.assertEqual(browser.script("return document.cookie"), "neighbour=1")


if __name__ == "__main__":
    unittest.main()
