"""A person in front of the demo app, the gateway and two DataHUBs."""

import re
import tempfile
import time
import unittest
from pathlib import Path

from compatibility import in_every_engine
from person import OURS, Person

# What a script of the page can get hold of, short of the answers it is given.
WITHIN_REACH = """
    const storage = (one) => Object.keys(one).map((key) => [key, one.getItem(key)]);
    return JSON.stringify([document.cookie, storage(localStorage), storage(sessionStorage), location.href,
        document.documentElement.outerHTML, performance.getEntries().map((entry) => entry.name)])"""


@in_every_engine
class App(Person):
    """The demo app."""

    def open_project(self, datahub="tuebingen"):
        self.browser.open(f"{self.world.app}#/{datahub}/230")
        self.browser.find('#tree [data-path="README.md"]')

    def test_logs_in_by_clicking_and_sees_projects_page_by_page(self):
        browser = self.browser
        self.log_in()
        browser.find('[data-session="tuebingen"]', "Test")
        browser.open(f"{self.world.app}#/tuebingen")
        browser.find("#projects [data-project]")
        first = browser.text("#projects")
        browser.script("document.querySelector('#next-page').scrollIntoView({ block: 'center' })")
        browser.click("#next-page")
        browser.wait(lambda: browser.text("#projects") != first and browser.find("#projects [data-project]"), "another page")
        self.assertRegex(browser.text("#countdown"), r"\d+:\d\d")

    def test_edits_a_file_and_uploads_one(self):
        browser, words = self.browser, f"Written in {self.engine} at {time.time()}\n"
        self.log_in()
        self.open_project()
        browser.click('#tree [data-path="README.md"]')
        browser.click("#edit")
        browser.type("#file-text", words)
        browser.click("#save")
        browser.find("#status[data-kind=ok]")
        self.assertIn(words.strip(), self.world.file("tuebingen", 230, "README.md").decode())

        with tempfile.NamedTemporaryFile(suffix=".csv") as file:
            file.write(b"gene,fold\n" * 20_000)
            file.flush()
            name = Path(file.name).name
            browser.choose_file("#upload-input", file.name)
            browser.find(f'#tree [data-path="{name}"]')
        self.assertEqual(self.world.file("tuebingen", 230, name), b"gene,fold\n" * 20_000)

    def test_is_two_people_at_two_datahubs_and_logs_out_of_one_and_of_all(self):
        browser = self.browser
        self.log_in("tuebingen", "testuser")
        self.log_in("freiburg", "joerg")
        browser.find('[data-session="tuebingen"]', "Test")
        browser.find('[data-session="freiburg"]', "Jörg 100% Müller")
        browser.open(f"{self.world.app}#/")
        browser.click('[data-logout="tuebingen"]')
        browser.find('[data-login="tuebingen"]')
        self.assertEqual(self.sessions(), ["freiburg"])
        self.log_in("tuebingen", "testuser")
        browser.click("#logout-all")
        browser.find('[data-login="freiburg"]')
        self.assertEqual(self.sessions(), [])

    def test_another_account_takes_the_place_of_the_one_that_is_there(self):
        browser = self.browser
        self.log_in()
        browser.open(f"{self.world.app}#/")
        browser.click('[data-another-account="tuebingen"]')
        browser.find("#sign-in-joerg")
        self.assertIn("prompt=login", browser.address())
        browser.click("#sign-in-joerg")
        browser.find('[data-session="tuebingen"]', "Jörg 100% Müller")
        self.assertEqual(self.sessions(), ["tuebingen"])

    def test_a_login_denied_says_so(self):
        browser = self.browser
        browser.open(self.world.app)
        browser.click('[data-login="tuebingen"]')
        browser.click("#deny")
        browser.find("#banner", "You did not allow access")
        self.assertNotIn("login_error", browser.script("return location.href"))

    def test_no_script_can_see_a_token_or_a_session_cookie(self):
        browser, before = self.browser, len(self.world.front.answered)
        self.log_in()
        self.open_project()
        browser.click('#tree [data-path="README.md"]')
        browser.find("#edit")
        browser.click("#refresh")
        cookies = {name: value for name, value in self.cookies().items() if name.startswith(OURS)}
        self.assertEqual(set(cookies), {f"{OURS}session-tuebingen", f"{OURS}sid-tuebingen", f"{OURS}login"})
        answered = bytes(self.world.front.answered[before:]).decode("utf-8", "replace")
        for name, attributes in re.findall(rf"(?im)^set-cookie: ({OURS}[a-z-]+)=[^;]*; *(.*?)\r$", answered):
            attributes = set(attributes.lower().split("; "))
            # A login's own cookie comes back from the DataHUB; what is left of it says that the login has ended.
            self.assertLessEqual({"httponly", "secure", "path=/", f"samesite={'lax' if name.endswith('login') else 'strict'}"}, attributes)
        del cookies[f"{OURS}login"]
        secrets = self.world.secrets() + list(cookies.values())
        self.assertGreater(len(secrets), 6)
        # Every answer as it came in; scripts do not see this field.
        within_reach = browser.script(WITHIN_REACH) + re.sub(r"(?im)^set-cookie: .*$", "", answered)
        self.assertIn("README.md", within_reach)
        for secret in secrets:
            self.assertNotIn(secret, within_reach)
        # The log of the gateway, at `trace`, has none of them either.
        output = self.world.output()
        self.assertIn('"serving"' if output.startswith("{") else "serving", output)
        for secret in secrets:
            self.assertNotIn(secret, output)

    def test_nothing_in_the_console_but_silence(self):
        self.log_in()
        self.open_project()
        self.browser.click('#tree [data-path="README.md"]')
        self.browser.find("#edit")
        # The DataHUB's own page asks for an icon that is not there; that is its affair.
        self.assertEqual([line for line in self.browser.complaints() if self.world.origin in line], [])


@in_every_engine
class Expiry(Person):
    """The demo app, with access tokens of four seconds."""

    options = {"token_lifetime_s": 4}

    def session(self):
        return self.cookies()[f"{OURS}session-tuebingen"]

    def test_works_on_while_the_token_is_renewed_again_and_again(self):
        browser = self.browser
        self.log_in()
        first = self.session()
        for _ in range(3):
            # Stale by now; the call goes round by a 307, its body with it.
            time.sleep(3.2)
            status = browser.script("""
                const call = (method, path, body) => fetch(`/arcmanager/api/v1/datahubs/tuebingen/api/v4/${path}`, { method, body });
                const answers = await Promise.all([call("GET", "user"), call("GET", "projects"), call("POST", "projects/230/uploads", new FormData())]);
                return answers.map((answer) => [answer.status, answer.redirected])""")
            self.assertEqual([status[0][0], status[1][0]], [200, 200])
            # Whichever of them was first brought the new cookie; the other may have been sent with it.
            self.assertIn(True, [status[0][1], status[1][1]])
            self.assertLess(status[2][0], 500)
        self.assertNotEqual(self.session(), first)

    def test_a_call_that_follows_no_redirect_is_not_made_and_the_next_one_is(self):
        """What docs/apps.md says of `redirect`."""
        browser = self.browser
        self.log_in()
        time.sleep(3.2)
        seen = browser.script("""
            const [engine] = arguments;
            const call = (redirect) => fetch(`/arcmanager/api/v1/datahubs/tuebingen/api/v4/user?${engine}=${redirect}`, { redirect })
                .then(({ type, status, redirected }) => [type, status, redirected], (error) => [error.name]);
            const refused = await Promise.all([call("error"), call("manual")]);
            return [...refused, await call("follow")]""", self.engine)
        self.assertEqual(seen[:2], [["TypeError"], ["opaqueredirect", 0, False]])
        self.assertEqual(seen[2][:2], ["basic", 200])
        went_up = [request.target.split("=")[1] for request in self.world.wires["tuebingen"].asked("GET", f"/user?{self.engine}=")]
        self.assertEqual(went_up, ["follow"])

    def test_three_tabs_of_forty_calls_lose_none_while_tokens_expire_under_them(self):
        browser = self.browser
        self.log_in()
        first = self.session()
        tabs = browser.tabs(3, self.world.app)
        for tab in tabs:
            browser.switch(tab)
            browser.script("""
                const pause = () => new Promise((go) => setTimeout(go, Math.random() * 9000));
                const call = async (_, n) => {
                    await pause();
                    const target = `/arcmanager/api/v1/datahubs/tuebingen/api/v4/projects/230/issues?title=storm&n=${n}`;
                    const answer = await fetch(target, { method: "POST", headers: { "Content-Type": "text/plain" }, body: "x".repeat(100_000) });
                    return [answer.status, answer.redirected];
                };
                window.storm = Promise.all(Array.from({ length: 40 }, call));""")
        answers = []
        for tab in tabs:
            browser.switch(tab)
            answers += browser.script("return await window.storm")
        self.assertEqual([status for status, _ in answers], [201] * 120)
        self.assertTrue(any(redirected for _, redirected in answers), "no token expired")
        self.assertNotEqual(self.session(), first)

    def test_forty_megabytes_over_a_slow_link_are_sent_again(self):
        browser = self.browser
        self.log_in()
        self.world.front.bytes_per_second = 16 << 20
        self.addCleanup(setattr, self.world.front, "bytes_per_second", None)
        time.sleep(3.2)
        answer = browser.script("""
            const target = "/arcmanager/api/v1/datahubs/tuebingen/api/v4/projects/230/packages/generic/p/1/forty.bin";
            const answer = await fetch(target, { method: "PUT", body: new Blob([new Uint8Array(40 << 20)]) });
            return [answer.status, answer.redirected, (await answer.json()).size]""")
        self.assertEqual(answer, [201, True, 40 << 20])


if __name__ == "__main__":
    unittest.main()
