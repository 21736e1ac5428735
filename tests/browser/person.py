"""A person in a browser: what every test of the browsers does."""

import atexit
import functools
import unittest

from webdriver import Browser, DriverError
from world import World

API = "/arcmanager/api/v1"
OURS = "__Host-Http-"


@functools.cache
def shared_world(**options):
    """One world for all tests that want it so, in whichever engine."""
    world = World(**{"tls": True, **options})
    atexit.register(world.close)
    return world


def empty_browser(engine):
    """A browser that knows nobody: the last one, made empty, or one more."""
    kept = _kept.get(engine)
    try:
        if kept and kept.empty():
            return kept
    except (OSError, DriverError):
        pass  # The last test has broken it.
    if kept:
        kept.close()
    _kept[engine] = Browser(engine)
    return _kept[engine]


_kept = {}
atexit.register(lambda: [browser.close() for browser in _kept.values()])


class Person(unittest.TestCase):
    """Each test has an empty browser. `engine` comes by `in_every_engine`."""

    engine = None
    options = {}  # See World.

    @classmethod
    def setUpClass(cls):
        cls.world = shared_world(**cls.options)

    @functools.cached_property
    def browser(self):
        return empty_browser(self.engine)

    def start_browser(self, **options):
        browser = Browser(self.engine, **options)
        self.addCleanup(browser.close)
        return browser

    def go_to_sign_in(self, datahub="tuebingen"):
        self.browser.open(self.world.app)
        self.begins_login(lambda: self.browser.click(f'[data-login="{datahub}"]'))

    def begins_login(self, act):
        """Does what brings a person to a DataHUB's sign-in page."""
        asked = lambda: [request.status for request in self.world.front.asked("GET", "/auth/login?") if request.status]
        before = len(asked())
        act()
        self.browser.wait(lambda: len(asked()) > before, "the answer to the login")
        self.assertEqual(asked()[before:], [302], "what the gateway answered to the login")
        self.browser.find("#sign-in-testuser")

    def log_in(self, datahub="tuebingen", user="testuser"):
        self.go_to_sign_in(datahub)
        self.browser.click(f"#sign-in-{user}")
        self.browser.find(f'[data-session="{datahub}"], #banner')
        complaint = self.browser.script("const banner = document.querySelector('#banner'); return banner.hidden ? '' : banner.innerText")
        self.assertEqual(complaint, "", "the app complains of the login")
        self.browser.find(f'[data-session="{datahub}"]')

    def is_in(self, *datahubs):
        """Whether this browser has exactly these sessions, in an app that complains of nothing."""
        for datahub in datahubs:
            self.browser.find(f'[data-session="{datahub}"]')
        self.assertEqual(self.sessions(), sorted(datahubs))
        self.assertTrue(self.browser.script("return document.querySelector('#banner').hidden"), "the app complains")
        self.assertNotIn("login_error", self.browser.address())

    def sessions(self):
        answer = self.browser.script(f"return await (await fetch('{API}/auth/session')).json()")
        return [session["datahub"] for session in answer["sessions"]]

    def cookies(self):
        """What this browser sends with a call of the page, by name: all that it holds for the gateway."""
        self.sessions()
        sent = self.world.front.asked("GET", "/auth/session")[-1].fields.get("cookie", "")
        return dict(cookie.split("=", 1) for cookie in sent.split("; ") if cookie)

    def page(self, path, text, kind="text/html", **fields):
        """Another application's page, at every site and below the gateway's `/other/`."""
        self.world.sites.pages[path] = (kind, text, fields)
        self.addCleanup(self.world.sites.pages.pop, path)

    def revocations(self):
        return len(self.world.wires["tuebingen"].asked("POST", "/oauth/revoke"))
