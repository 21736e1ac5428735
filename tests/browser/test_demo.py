"""The demo app for everybody: by keyboard, by ear, on a phone, in light and dark."""

import hashlib
import json
import time
import unittest

from compatibility import in_every_engine
from person import API, Person
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
# What of a log is there first.
FIRST_WORDS = """
    document.querySelector('#jobs [data-job="9"]').click();
    for (;;) {
        await new Promise((go) => setTimeout(go, 10));
        const log = document.querySelector("#trace");
        if (log?.textContent) return log.textContent;
    }
"""
LARGE = 24_000_000  # Bytes: more than a commit of the demo takes.
DROP = """
    const dataTransfer = new DataTransfer();
    for (const [name, size] of arguments[0]) dataTransfer.items.add(new File([new Uint8Array(size)], name));
    document.querySelector(".dropzone").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
"""
JOB = {"id": 77, "name": "build", "stage": "test", "ref": "main", "created_at": "2026-01-01T00:00:00.000Z", "started_at": None}


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
        self.open("#/?search=barley")
        browser.find('[data-found="tuebingen"] .row')
        browser.find('[data-found="freiburg"] .row')
        check("both DataHUBs, with a search")
        self.open("#/tuebingen")
        browser.find("#projects [data-project]")
        check("projects")
        self.open("#/tuebingen?search=nothing-is-called-so")
        browser.find("#projects .empty")
        check("no projects")
        self.open("#/tuebingen/230/jobs/9")
        browser.find("#trace", "line 1 of 20")
        browser.find("#jobs .job")
        check("the log of a job")
        self.open("#/tuebingen/230/jobs/500")
        browser.find(".trouble .notice.error")
        check("the log of no job")
        self.open_project()
        browser.click('#tree [aria-expanded="false"]')
        browser.find("#tree li li .item")
        check("tree")
        self.open("#/tuebingen/230?path=README.md")
        browser.find("#edit")
        check("file")
        browser.click("#edit")
        browser.type("#file-text", "Seen by a checker.\n")
        browser.find("#diff ins")
        check("editor, with a diff")
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
            browser.resize(1280, 860)
            log_in()
            browser.resize(390, 844)
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
        for route, found in [("#/?search=barley", '[data-found="freiburg"] .row'), ("#/tuebingen/230?path=LICENSE", "#edit"),
                             ("#/tuebingen/230/jobs/9", "#trace")]:
            self.open(route)
            browser.find(found)
            with self.subTest(route=route):
                self.assertLessEqual(browser.script(PHONE)["overflow"], 0, "nothing is wider than the screen")

    def test_blocked_cookies_are_explained(self):
        self.browser.open(f"{self.world.app}?login_error=cookies_blocked")
        self.browser.find("#banner", "Your browser blocked")
        is_told = "WebKit" in self.browser.text("#banner")
        self.assertEqual(is_told, self.world.origin.startswith("http:"), "that WebKit takes https alone")


@in_every_engine
class Showcase(Person):
    """The demo app's search, diff, uploads, logs and session panel."""

    def open(self, route, found):
        self.browser.script("location.hash = arguments[0]", route)
        self.browser.find(found)

    def answers(self, path, body, status="200 OK", datahub="tuebingen"):
        """What a DataHUB answers to a path from now on."""
        answers = self.world.wires[datahub].answers
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/plain" if isinstance(body, str) else "application/json"
        answers[path] = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        self.addCleanup(answers.pop, path, None)

    def drops(self, *files):
        """Drags files onto the page: name, size in bytes."""
        self.browser.script(DROP, files)

    def found(self, datahub):
        return self.browser.script("""
            return [...document.querySelectorAll(`[data-found="${arguments[0]}"] strong`)].map((one) => one.textContent)""", datahub)

    def test_one_search_goes_to_both_datahubs(self):
        browser = self.browser
        self.log_in()
        self.open("#/", '[data-found="tuebingen"] .row')
        self.assertTrue(browser.script("return document.querySelector('[data-found=freiburg]').hidden"), "nobody is logged in there")
        self.log_in("freiburg", "joerg")
        self.open("#/", '[data-found="freiburg"] .row')
        browser.type("#search-all", "barley")
        browser.find("#status", "7 projects at DataHUB Freiburg, 6 projects at DataHUB Tübingen.")
        self.assertIn("barley-roots", self.found("freiburg"))
        for datahub in ("tuebingen", "freiburg"):
            self.assertEqual(len(self.found(datahub)), 5)
            self.assertTrue(all("barley" in name.lower() for name in self.found(datahub)))
        left, right = browser.script("return [...document.querySelectorAll('.card')].map((one) => one.getBoundingClientRect().top)")
        self.assertEqual(left, right, "side by side")
        self.assertTrue(browser.address().endswith("#/?search=barley"))
        self.click('[data-found="tuebingen"] .all')
        browser.find("#projects [data-project]")
        self.assertEqual(browser.text("#search"), "barley")
        self.open("#/?search=nothing-is-called-so", '[data-found="freiburg"] .empty')
        browser.find('[data-found="tuebingen"] .empty', "No project of yours matches")
        # Where one DataHUB fails, the other's answer is there all the same.
        self.answers("/api/v4/projects", {"message": "500 Internal Server Error"}, "500 Internal Server Error", "freiburg")
        self.open("#/?search=rye", '[data-found="tuebingen"] .row')
        browser.find('[data-found="freiburg"] .notice.error', "The DataHUB cannot do this.")
        browser.find("#status[data-kind=error]")
        self.world.wires["freiburg"].answers.clear()
        self.click('[data-found="freiburg"] .notice.error button')
        browser.find('[data-found="freiburg"] .row')
        browser.find("#status", "Ready.")

    def test_the_session_panel_says_who_where_what_and_until_when(self):
        browser = self.browser
        self.log_in()
        self.open("#/tuebingen", "#refresh")
        for words in ("@testuser at DataHUB Tübingen", "openid profile api", "Session ends", "Access token expires in"):
            browser.find("#session-bar", words)
        browser.script("window.real = fetch; window.fetch = () => Promise.reject(new TypeError('no network'))")
        browser.click("#refresh")
        browser.find("#status[data-kind=error]", "The gateway did not answer.")
        browser.script("window.fetch = real")
        browser.click("#refresh")
        browser.find("#status[data-kind=ok]", "is fresh")

    def test_a_diff_stands_before_the_commit(self):
        browser = self.browser
        self.log_in()
        path, words = "dir/diff.md", f"Seen in {self.engine} at {time.time()}."
        self.commit(path, "one\ntwo\nthree\nfour\nfive\nsix")
        self.edit(230, path)
        nothing = "return document.querySelector('#diff').hidden && document.querySelector('#save').disabled"
        self.assertTrue(browser.script(nothing))
        self.write(f"one\ntwo\nthree\nfour\n{words}\nsix")
        browser.find("#diff", "What you changed: 1 line added, 1 line removed")
        self.assertEqual(self.changes(), [["P", "…"], ["SPAN", " two"], ["SPAN", " three"], ["SPAN", " four"], ["DEL", "−Removed: five"],
                                          ["INS", f"+Added: {words}"], ["SPAN", " six (no line end)"]])
        self.click("#save")
        browser.find("#status[data-kind=ok]", "Committed")
        self.assertIn(words.encode(), self.world.file("tuebingen", 230, path))
        # What is taken back is nothing to commit; a line end is something.
        self.click("#edit")
        before = browser.text("#file-text")
        self.write(f"{before}\n")
        self.assertEqual([tag for tag, _ in self.changes() if tag in ("INS", "DEL")], ["DEL", "INS"])
        self.write(before)
        self.assertTrue(browser.script(nothing))
        # Where somebody was faster, it is a diff to theirs.
        self.write(f"{before}, mine")
        self.commit(path, "theirs")
        self.click("#save")
        browser.find("#conflict", "Someone committed")
        self.click("#conflict button:last-child")
        browser.find("#diff del", "theirs")
        self.click("#save")
        browser.find("#status[data-kind=ok]", "Committed")
        self.assertEqual(self.world.file("tuebingen", 230, path).decode(), f"{before}, mine")
        # Who may only read keeps what was written.
        self.edit(8, "README.md")
        self.write("mine\n")
        self.click("#save")
        browser.find("#status[data-kind=error]", "Not saved: You may not do this here.")
        self.assertEqual((browser.text("#file-text"), browser.text("#diff ins")), ("mine\n", "+Added: mine"))

    def test_files_of_any_size_are_dropped(self):
        browser, wire = self.browser, self.world.wires["tuebingen"]
        self.log_in()
        self.open("#/tuebingen/230", "#tree .item")
        names = [f"{self.engine}-{letter}.bin" for letter in "ab"]
        self.drops([names[0], 1000], [names[1], 2000])
        browser.find(f'#tree [data-path="{names[1]}"]')
        for name, size in zip(names, (1000, 2000)):
            self.assertEqual(self.world.file("tuebingen", 230, name), bytes(size))
        # A large one is a package.
        self.drops([f"{self.engine} large ä.bin", LARGE])
        browser.find("#upload-result", hashlib.sha256(bytes(LARGE)).hexdigest())
        browser.find("#status[data-kind=ok]", "as a package")
        uploads = lambda: [one.status for one in wire.asked("PUT", f"/{self.engine}_large_.bin")]
        browser.wait(lambda: uploads() == [201], "the answer to the upload")
        self.assertEqual(browser.script("return document.querySelector('.meter').getClientRects().length"), 0)
        # Those that wait are cancelled with it.
        wire.bytes_per_second = 8 << 20
        self.addCleanup(setattr, wire, "bytes_per_second", None)
        self.drops([f"{self.engine}-slow.bin", 4 * LARGE], ["after.bin", 1000])
        browser.wait(lambda: 0 < browser.script("return document.querySelector('#upload-progress').value") < 1, "some progress")
        self.assertRegex(browser.text(".meter .fine"), r"^\d+ % · 1 more$")
        self.click("#upload-cancel")
        browser.find("#status", "Upload cancelled.")
        browser.wait(lambda: browser.script("return document.activeElement.id") == "upload-input", "the focus")
        wire.bytes_per_second = None
        self.assertEqual(browser.script("return document.querySelectorAll('[data-path=\"after.bin\"]').length"), 0)
        self.assertEqual([one.status for one in wire.asked("PUT", f"/{self.engine}-slow.bin") if one.status], [])
        # Who may only read is told so, whatever the size.
        self.open("#/tuebingen/8", '#tree [data-path="README.md"]')
        browser.wait(lambda: browser.script("return document.querySelectorAll('#tree [data-path]').length") == 1, "the other project")
        for size in (1000, LARGE):
            self.drops(["refused.bin", size])
            browser.find("#status[data-kind=error]", "refused.bin was not uploaded: You may not do this here.")
            browser.script("document.querySelector('#status').textContent = ''")

    def test_the_log_of_a_job_comes_while_it_is_written(self):
        browser, jobs = self.browser, "/api/v4/projects/230/jobs"
        self.log_in()
        self.open("#/tuebingen/230", "#tree .item")
        browser.click('[data-room="jobs"]')
        browser.find('#jobs [data-job="9"]')
        self.assertNotIn("line 20 of 20", browser.script(FIRST_WORDS), "it takes two seconds")
        browser.find("#trace", "line 20 of 20")
        browser.find("#trace-state", "has ended")
        # GitLab ends its answer where the log is at; more of it is asked for as long as the job runs.
        begin = "section_start:1:build\r\x1b[0K\x1b[32;1mgreen\x1b[0;m\n10 %\r20 %\nhalf a li"
        self.answers(f"{jobs}/77", JOB | {"status": "running"})
        self.answers(f"{jobs}/77/trace", begin)
        self.open("#/tuebingen/230/jobs/77", "#trace-state")
        browser.find("#trace", "20 %")
        self.assertEqual(browser.text("#trace"), "green\n20 %\n")
        browser.find("#trace-state", "Live")
        self.answers(f"{jobs}/77/trace", f"{begin}ne\nend")
        self.answers(f"{jobs}/77", JOB | {"status": "failed"})
        browser.find("#status", "Job #77: failed.")
        browser.find(".viewer .badge", "failed")
        self.assertEqual(browser.text("#trace"), "green\n20 %\nhalf a line\nend")
        # What is not there, or not yet.
        self.open("#/tuebingen/230/jobs/500", ".trouble .notice.error")
        browser.find("#status[data-kind=error]", "This is not there, or you may not see it.")
        self.answers(f"{jobs}/500", JOB | {"status": "success"})
        self.answers(f"{jobs}/500/trace", "")
        self.click(".trouble .notice.error button")
        browser.find("#trace-state", "This job has written no log.")
        self.answers("/api/v4/projects/81/jobs", [])
        self.open("#/tuebingen/81/jobs", ".viewer .empty")
        browser.find("#jobs", "No job has run here yet.")
        self.answers("/api/v4/projects/229/jobs", {"message": "403 Forbidden"}, "403 Forbidden")
        self.open("#/tuebingen/229/jobs", "#jobs .notice.error")

    def edit(self, project, path):
        self.open(f"#/tuebingen/{project}?path={path}", "#edit")
        self.browser.wait(lambda: path.split("/")[-1] in self.browser.text(".viewer h2"), path)
        self.click("#edit")

    def click(self, selector):
        """On what the status line may cover."""
        self.browser.find(selector)
        self.browser.script("document.querySelector(arguments[0]).scrollIntoView({ block: 'center', behavior: 'instant' })", selector)
        self.browser.click(selector)

    def write(self, text):
        self.browser.script("""
            const place = document.querySelector("#file-text");
            place.value = arguments[0];
            place.dispatchEvent(new Event("input"))""", text)

    def changes(self):
        return self.browser.script("return [...document.querySelectorAll('#diff .lines > *')].map((one) => [one.tagName, one.textContent])")

    def commit(self, path, content):
        """By the page's session, past the page."""
        status = self.browser.script("""
            const [url, json] = arguments;
            const send = (method) => fetch(url, { method, headers: { "Content-Type": "application/json" }, body: json });
            return (await send("PUT")).ok || (await send("POST")).ok""",
            f"{API}/datahubs/tuebingen/api/v4/projects/230/repository/files/{path.replace('/', '%2F')}",
            json.dumps({"branch": "main", "content": content, "commit_message": "By somebody else"}))
        self.assertTrue(status)


@in_every_engine
class DemoAtLocalhost(Person):
    """The demo app at `http://localhost`, as `make demo` starts it."""

    options = {"tls": False}

    def test_that_webkit_keeps_no_cookie_is_explained(self):
        self.browser.open(f"{self.world.app}?login_error=cookies_blocked")
        self.browser.find("#banner", "WebKit")


if __name__ == "__main__":
    unittest.main()
