"""The README's app of twenty lines, as it stands in docs/first-app/."""

import re
import unittest

from compatibility import in_every_engine
from person import Person
from world import ROOT

FOLDER = ROOT / "docs/first-app"


@in_every_engine
class FirstApp(Person):
    """The README's app of twenty lines."""

    options = {"GATEWAY__APP__DIR": str(FOLDER)}

    def test_logs_in_lists_projects_and_logs_out(self):
        browser = self.browser
        browser.open(self.world.app)
        self.begins_login(lambda: browser.click("#who a", "Log in"))
        browser.click("#sign-in-testuser")
        browser.find("#who", "Log out Test")
        browser.find("#projects", "testarc")
        self.assertEqual(self.sessions(), ["tuebingen"])
        browser.click("#who button")
        browser.find("#who a", "Log in")
        self.assertEqual(self.sessions(), [])
        self.assertEqual(browser.text("#projects"), "")


class Shown(unittest.TestCase):
    def test_the_readme_has_both_files_as_they_are(self):
        shown = re.findall(r"```(html|js)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
        files = {kind: (FOLDER / name).read_text() for kind, name in (("html", "index.html"), ("js", "app.js"))}
        self.assertEqual(shown, list(files.items()))
        self.assertLessEqual(sum(text.count("\n") for text in files.values()), 20)


if __name__ == "__main__":
    unittest.main()
