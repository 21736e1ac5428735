"""A person, in Chromium, in front of the demo app, the gateway and two DataHUBs."""

import json
import tempfile
import time
import unittest
from pathlib import Path

from person import Person
from world import World

# What a script of the page can get hold of, short of the answers it is given.
WITHIN_REACH = """
    const storage = (one) => Object.keys(one).map((key) => [key, one.getItem(key)]);
    return JSON.stringify([document.cookie, storage(localStorage), storage(sessionStorage), location.href,
        document.documentElement.outerHTML, performance.getEntries().map((entry) => entry.name)])"""


class App(Person):
    def open_project(self, datahub="tuebingen", world=None):
        self.browser.open(f"{(world or self.world).app}#/{datahub}/230")
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
        browser, words = self.browser, f"Written in Chromium at {time.time()}\n"
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
            # The input is behind a styled label: chromedriver types a path into it all the same.
            element = browser.script("return document.querySelector('#upload-input')")
            browser._send("POST", f"/element/{list(element.values())[0]}/value", {"text": file.name})
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
        browser = self.browser
        self.log_in()
        self.open_project()
        browser.click('#tree [data-path="README.md"]')
        browser.find("#edit")
        browser.click("#refresh")
        cookies = {name: cookie for name, cookie in browser.cookies().items() if name.startswith("__Host-Http-")}
        self.assertEqual(set(cookies), {"__Host-Http-session-tuebingen", "__Host-Http-sid-tuebingen", "__Host-Http-login"})
        # A login's own cookie comes back from the DataHUB; what is left of it says that the login has ended.
        self.assertEqual(cookies.pop("__Host-Http-login")["sameSite"], "Lax")
        for cookie in cookies.values():
            self.assertEqual((cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]), (True, True, "Strict", "/"))
        secrets = self.world.secrets() + [cookie["value"] for cookie in cookies.values()]
        self.assertGreater(len(secrets), 6)
        within_reach = browser.script(WITHIN_REACH) + self.answers()
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
        told = [entry for entry in self.browser.log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        self.assertEqual([entry["message"] for entry in told if self.world.origin in entry["message"]], [])

    def test_works_on_while_the_token_is_renewed_again_and_again(self):
        world = World(token_lifetime_s=4)
        self.addCleanup(world.close)
        browser = self.browser
        self.log_in(world=world)
        cookie = lambda: browser.cookies()["__Host-Http-session-tuebingen"]["value"]
        first = cookie()
        for _ in range(3):
            # Stale by now; the call goes round by a 307, its body with it.
            time.sleep(3.2)
            status = browser.script("""
                const call = (method, path, body) => fetch(`/arcmanager/api/v1/datahubs/tuebingen/api/v4/${path}`, { method, body });
                const answers = await Promise.all([call("GET", "user"), call("GET", "projects"), call("POST", "projects/230/uploads", new FormData())]);
                return answers.map((answer) => [answer.status, answer.redirected])""")
            self.assertEqual(status[0], [200, True])
            self.assertEqual(status[1], [200, True])
            self.assertLess(status[2][0], 500)
        self.assertNotEqual(cookie(), first)

    def test_three_tabs_of_forty_calls_lose_none_while_tokens_expire_under_them(self):
        world = World(token_lifetime_s=4)
        self.addCleanup(world.close)
        browser = self.browser
        self.log_in(world=world)
        first = browser.cookies()["__Host-Http-session-tuebingen"]["value"]
        tabs = browser.tabs(3, world.app)
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
        self.assertNotEqual(browser.cookies()["__Host-Http-session-tuebingen"]["value"], first)

    def test_forty_megabytes_over_a_slow_link_are_sent_again(self):
        world = World(token_lifetime_s=4)
        self.addCleanup(world.close)
        browser = self.browser
        self.log_in(world=world)
        browser.cdp("Network.enable")
        browser.cdp("Network.emulateNetworkConditions", offline=False, latency=20, downloadThroughput=-1, uploadThroughput=16 << 20)
        time.sleep(3.2)
        answer = browser.script("""
            const target = "/arcmanager/api/v1/datahubs/tuebingen/api/v4/projects/230/packages/generic/p/1/forty.bin";
            const answer = await fetch(target, { method: "PUT", body: new Blob([new Uint8Array(40 << 20)]) });
            return [answer.status, answer.redirected, (await answer.json()).size]""")
        self.assertEqual(answer, [201, True, 40 << 20])

    def answers(self):
        """Head and body of every answer that the page has fetched, as DevTools has them."""
        seen = ""
        for entry in self.browser.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] != "Network.responseReceived" or "/api/v1/" not in message["params"]["response"]["url"]:
                continue
            response = message["params"]["response"]
            # The network's own view has Set-Cookie; a script's does not.
            seen += json.dumps({name: value for name, value in response["headers"].items() if name.lower() != "set-cookie"})
            try:
                seen += self.browser.cdp("Network.getResponseBody", requestId=message["params"]["requestId"])["body"]
            except Exception:  # Of a navigation, or gone with its page.
                pass
        return seen


if __name__ == "__main__":
    unittest.main()
