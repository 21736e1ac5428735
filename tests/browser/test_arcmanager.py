"""A page that does what the ARCmanager's app of today does, as `app.dir` of a gateway with config/arcmanager.toml."""

import json
import time
import unittest

from compatibility import in_every_engine
from person import API, Person

# Titles of commits, as the app shows them: whoever may commit to an ARC writes them. Each tells that it ran.
RAN = "(window.ran ??= []).push"
EVIL = f"""<img src="/nowhere" onerror="{RAN}('img')"><br/><script>{RAN}('script')</script><br/><svg onload="{RAN}('svg')"></svg><br/>
    <iframe srcdoc="<script>(parent.ran ??= []).push('iframe')</script>"></iframe><br/>
    <a id="evil-link" href="javascript:void({RAN}('link'))">a link</a><br/><b style="color: rgb(255, 0, 0)">bold</b>"""


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
