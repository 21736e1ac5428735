"""The demo app for everybody: by keyboard, by ear, on a phone, in light and dark."""

import unittest

from compatibility import in_every_engine
from person import Person
from world import ROOT

AXE = ROOT / "tests/browser/node_modules/axe-core/axe.min.js"
# In every engine; the emulation of a scheme is Chromium's alone.
SCHEME = """
    const [scheme] = arguments;
    for (const { cssRules } of document.styleSheets)
        for (const { media } of cssRules)
            if (media?.mediaText.includes("prefers-color-scheme"))
                media.mediaText = scheme === "dark" ? "(prefers-color-scheme: dark), all" : "(prefers-color-scheme: dark)";
    document.documentElement.style.colorScheme = scheme;
    await Promise.allSettled(document.getAnimations().filter((one) => one.effect.getTiming().iterations === 1).map((one) => one.finished));
"""
# "moderate" and above; a rule that axe-core cannot decide is a finding of nobody's.
FINDINGS = """
    const runOnly = arguments[0] === "dark" ? { runOnly: ["color-contrast"] } : {}; // All that a scheme changes.
    const { violations } = await axe.run(document, { resultTypes: ["violations"], preload: false, ...runOnly });
    return violations.filter(({ impact }) => impact !== "minor")
        .flatMap(({ id, impact, nodes }) => nodes.map(({ target }) => `${id} (${impact}) at ${target}`));
"""
KEYS = {"Home": "\ue011", "End": "\ue010", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015", "Enter": "\ue007",
        "Tab": "\ue004", "Space": " "}
FOCUS = "const { dataset, textContent } = document.activeElement; return dataset.path ?? textContent"
# As narrow as a phone, or as the engine's window can be.
PHONE = """
    const header = document.querySelector(".top");
    const centres = [...header.querySelectorAll("img, .chip, button")].map((one) => one.getBoundingClientRect())
        .map(({ top, bottom }) => (top + bottom) / 2);
    return {
        width: innerWidth,
        overflow: document.documentElement.scrollWidth - innerWidth,
        height: header.getBoundingClientRect().height,
        bend: Math.max(...centres) - Math.min(...centres),
        names: [...header.querySelectorAll(".chip")].map((one) => one.innerText),
        cut: header.querySelector("#logout-all")?.getBoundingClientRect().right > innerWidth,
    };
"""
# A commit that does not end.
STALLED_UPLOAD = """
    XMLHttpRequest.prototype.send = () => {};
    const chosen = new DataTransfer();
    chosen.items.add(new File(["gene"], "stalled.csv"));
    const input = document.querySelector("#upload-input");
    input.files = chosen.files;
    input.dispatchEvent(new Event("change"));
"""


@in_every_engine
class Demo(Person):
    """The demo app by keyboard, by ear and on a phone."""

    def open(self, route):
        self.browser.script("location.hash = arguments[0]", route)

    def open_project(self):
        self.open("#/tuebingen/230")
        self.browser.find('#tree [data-path="README.md"]')

    def press(self, *keys):
        """On the keyboard, wherever the focus is."""
        strokes = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self.browser._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def has_focus(self, wanted):
        """The path of an item of the tree, or an element's text."""
        self.browser.wait(lambda: self.browser.script(FOCUS) == wanted, f"the focus at {wanted}, not at {self.browser.script(FOCUS)}")

    def test_a_checker_finds_nothing_of_weight_in_any_view(self):
        browser, found = self.browser, []

        def check(view):
            if not browser.script("return Boolean(window.axe)"):
                browser.script(AXE.read_text())
            for scheme in ("light", "dark"):
                browser.script(SCHEME, scheme)
                found.extend(f"{view}, {scheme}: {finding}" for finding in browser.script(FINDINGS, scheme))

        browser.open(f"{self.world.app}?login_error=denied")
        browser.find("#banner")
        check("logged out, with an error")
        self.open("#/tuebingen")
        browser.find(".empty [data-login]")
        check("logged out, at a DataHUB")
        self.log_in("freiburg", "joerg")
        self.log_in()
        self.open("#/")
        browser.find('[data-another-account="tuebingen"]')
        check("sessions")
        self.open("#/tuebingen")
        browser.find("#projects [data-project]")
        check("projects")
        self.open("#/tuebingen?search=nothing-is-called-so")
        browser.find("#projects .empty")
        check("no projects")
        self.open_project()
        browser.click('#tree [aria-expanded="false"]')
        browser.find("#tree li li .item")
        check("tree")
        self.open("#/tuebingen/230?path=README.md")
        browser.find("#edit")
        check("file")
        browser.click("#edit")
        browser.find("#save")
        check("editor")
        browser.script(STALLED_UPLOAD)
        browser.find(".meter:not(.idle)")
        check("upload")
        browser.script("return await (await fetch('/arcmanager/api/v1/auth/logout', { method: 'POST' })).text()")
        browser.click("#refresh")
        browser.find(".session-bar.ended")
        check("a session that has ended")
        self.assertEqual(found, [])

    def test_arrow_keys_move_in_the_tree(self):
        self.log_in()
        self.open_project()
        # Folders come first, and other tests add files.
        paths = self.browser.script("return [...document.querySelectorAll('#tree [data-path]')].map((one) => one.dataset.path)")
        first, second, last = paths[0], paths[1], paths[-1]
        self.browser.script("document.querySelector('#tree [tabindex=\"0\"]').focus()")
        for keys, wanted in [
            (["Home"], first),
            (["Down"], second),
            (["Up", "Up"], first),
            (["End"], last),
            (["Down"], last),
            (["Home", "Left"], first),
        ]:
            self.press(*keys)
            self.has_focus(wanted)
        self.press("Right")
        self.browser.find(f'#tree [data-path^="{first}/"]')
        self.has_focus(first)
        self.press("Right")
        inside = self.browser.script(FOCUS)
        self.assertTrue(inside.startswith(f"{first}/"), inside)
        self.press("Left")
        self.has_focus(first)
        self.press("Left", "Down")
        self.has_focus(second)
        self.press("Up", "Right", "Right")
        self.has_focus(inside)
        # A folder that is closed takes the Tab key's one stop from what is in it.
        stops = "return [...document.querySelectorAll('#tree [tabindex=\"0\"]')].map((one) => one.dataset.path)"
        self.assertEqual(self.browser.script(stops), [inside])
        self.browser.script("document.querySelector('#tree [aria-expanded=true]').click()")
        self.assertEqual(self.browser.script(stops), [first])
        for key in ("Enter", "Space"):
            self.browser.script("document.querySelector('#tree [data-path=\"README.md\"]').focus()")
            self.press(key)
            self.browser.find("#edit")
            self.has_focus("README.md")
            self.open("#/tuebingen/230")
            self.browser.find(".viewer .empty")

    def test_a_key_that_belongs_to_the_browser_stays_the_browsers(self):
        self.log_in()
        self.open_project()
        heard = self.browser.script("""
            const item = document.querySelector('#tree [tabindex="0"]');
            item.focus();
            const press = (more) => item.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true, cancelable: true, ...more }));
            return [press({ altKey: true }), press({ ctrlKey: true }), press({ metaKey: true }), press({ shiftKey: true }), press({})]""")
        self.assertEqual(heard, [True, True, True, True, False])

    def test_the_focus_goes_to_the_heading(self):
        self.log_in()
        self.has_focus("Your projects")
        self.open("#/")
        self.has_focus("Choose a DataHUB")
        self.open("#/tuebingen/230")
        self.browser.find("#tree .item")
        self.has_focus(self.browser.text("h1"))
        # A link to one project, opened by somebody who is not logged in.
        self.browser.click("#logout-all")
        self.browser.find('[data-login="tuebingen"]')
        self.has_focus("Choose a DataHUB")
        self.open("#/tuebingen/230")
        self.browser.click('.empty [data-login="tuebingen"]')
        self.browser.click("#sign-in-testuser")
        self.browser.find("#tree .item")
        self.has_focus(self.browser.text("h1"))
        # A visit that is no login leaves the focus at the top.
        self.browser.reload()
        self.browser.find("#tree .item")
        self.assertEqual(self.browser.script("return document.activeElement.localName"), "body")

    def test_the_focus_goes_from_the_editor_to_its_button(self):
        self.log_in()
        self.open("#/tuebingen/230?path=README.md")
        self.browser.click("#edit")
        self.browser.click(".commit .quiet")
        self.has_focus("Edit")
        self.browser.click("#edit")
        self.browser.type("#file-text", "Seen by ear.\n")
        self.browser.click("#save")
        self.browser.find("#status[data-kind=ok]")
        self.browser.find("#edit")
        self.has_focus("Edit")

    def test_the_focus_stays_where_it_is_while_sessions_are_read_again(self):
        self.log_in()
        for route, selector in [("#/", '#view [data-logout="tuebingen"]'), ("#/tuebingen", "#refresh"), ("#/tuebingen", "#logout-all")]:
            self.open(route)
            self.browser.find(selector)
            self.browser.script("window.before = document.querySelector(arguments[0]); before.focus();"
                                " document.dispatchEvent(new Event('visibilitychange'))", selector)
            self.browser.wait(lambda: self.browser.script("return !before.isConnected"), "the sessions")
            self.assertTrue(self.browser.script("return document.activeElement.matches(arguments[0])", selector), selector)

    def test_an_old_error_goes_with_its_page(self):
        browser = self.browser
        browser.open(f"{self.world.app}?login_error=denied")
        browser.find("#banner", "You did not allow access")
        self.open("#/tuebingen")
        browser.find(".empty [data-login]")
        self.assertTrue(browser.script("return document.querySelector('#banner').hidden"))
        self.log_in()
        for route, there, then, found in [
            ("#/tuebingen/999999", ".notice.error", "#/tuebingen", "[data-project]"),
            ("#/tuebingen/230?path=nothing", ".viewer .notice.error", "#/tuebingen/230?path=README.md", "#edit"),
        ]:
            self.open(route)
            browser.find(there)
            browser.find("#status[data-kind=error]")
            self.open(then)
            browser.find(found)
            browser.find("#status[data-kind=info]", "Ready.")
            self.assertEqual(browser.script("return document.querySelectorAll('.notice.error').length"), 0)
        # What went well is told for longer.
        browser.click("#logout-all")
        browser.find("#status[data-kind=ok]", "Logged out everywhere.")
        browser.find('[data-login="tuebingen"]')
        browser.find("#status[data-kind=ok]", "Logged out everywhere.")

    def test_an_error_that_is_mended_goes(self):
        self.log_in()
        self.browser.script("""
            const real = fetch;
            window.fetch = () => Promise.reject(new TypeError("no network"));
            window.mend = () => { window.fetch = real };""")
        self.open("#/tuebingen/230")
        self.browser.find("#status[data-kind=error]", "did not answer")
        self.browser.script("mend()")
        self.browser.click(".notice.error button")
        self.browser.find("#tree .item")
        self.browser.find("#status[data-kind=info]", "Ready.")

    def test_an_error_of_a_page_that_is_gone_is_not_told(self):
        self.log_in()
        self.open_project()
        self.browser.script("""
            const real = fetch;
            window.late = [];
            window.fetch = (url, init) => !url.includes("nothing") && !url.includes("search=") ? real(url, init) : new Promise((_, fail) => {
                late.push(() => fail(new TypeError("no network")));
                init.signal.addEventListener("abort", () => fail(init.signal.reason));
            });""")
        for gone, then, found in [
            ("#/tuebingen/230?path=nothing", "#/tuebingen/230?path=README.md", "#edit"),
            ("#/tuebingen?search=nothing", "#/tuebingen", "[data-project]"),
        ]:
            self.open(gone)
            self.browser.wait(lambda: self.browser.script("return late.length > 0"), "a call")
            self.open(then)
            self.browser.find(found)
            self.browser.script("late.splice(0).forEach((fail) => fail()); await new Promise((go) => setTimeout(go, 50))")
            self.browser.find(found)
            self.assertNotIn("did not answer", self.browser.text("body"))

    def test_the_header_is_one_row_on_a_phone(self):
        browser = self.browser
        browser.open(self.world.app)
        for sessions, log_in in [(0, lambda: None), (1, self.log_in), (2, lambda: self.log_in("freiburg", "joerg"))]:
            browser._send("POST", "/window/rect", {"width": 1280, "height": 860})
            log_in()
            browser._send("POST", "/window/rect", {"width": 390, "height": 844})
            browser.find("h1")
            seen = browser.script(PHONE)
            with self.subTest(sessions=sessions):
                self.assertLess(seen["width"], 520)
                self.assertLessEqual(seen["overflow"], 0, "nothing is wider than the screen")
                self.assertLess(seen["bend"], 3)
                self.assertLess(seen["height"], 64)
                self.assertFalse(seen["cut"])
                self.assertEqual(len(seen["names"]), sessions)
                for name in seen["names"]:
                    self.assertIn("DataHUB", name, "is read out all the same")

    def test_blocked_cookies_are_explained(self):
        self.browser.open(f"{self.world.app}?login_error=cookies_blocked")
        self.browser.find("#banner", "Your browser blocked")
        is_told = "WebKit" in self.browser.text("#banner")
        self.assertEqual(is_told, self.world.origin.startswith("http:"), "that WebKit takes https alone")


@in_every_engine
class DemoAtLocalhost(Person):
    """The demo app at `http://localhost`, as `make demo` starts it."""

    options = {"tls": False}

    def test_that_webkit_keeps_no_cookie_is_explained(self):
        self.browser.open(f"{self.world.app}?login_error=cookies_blocked")
        self.browser.find("#banner", "WebKit")


if __name__ == "__main__":
    unittest.main()
