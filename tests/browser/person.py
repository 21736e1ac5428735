"""A person in Chromium: what every test of the browser does."""

import unittest

from webdriver import Browser
from world import World


class Person(unittest.TestCase):
    """Each test begins with an empty browser; the world is one for all of a class."""

    apart = False  # See World.

    @classmethod
    def setUpClass(cls):
        cls.world = World(apart=cls.apart)
        cls.addClassCleanup(cls.world.close)

    def setUp(self):
        self.browser = self.start_browser()

    def start_browser(self, **preferences):
        browser = Browser(**preferences)
        self.addCleanup(browser.close)
        return browser

    def go_to_sign_in(self, datahub="tuebingen", world=None):
        self.browser.open((world or self.world).app)
        self.browser.click(f'[data-login="{datahub}"]')
        self.browser.find("#sign-in-testuser")

    def log_in(self, datahub="tuebingen", user="testuser", world=None):
        self.go_to_sign_in(datahub, world)
        self.browser.click(f"#sign-in-{user}")
        self.browser.find(f'[data-session="{datahub}"]')

    def sessions(self):
        answer = self.browser.script("return await (await fetch('/arcmanager/api/v1/auth/session')).json()")
        return [session["datahub"] for session in answer["sessions"]]
