"""A small W3C WebDriver client: one headless Chromium, driven through Debian's chromedriver."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

PATIENCE_S = 15
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver, section 12.3
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--window-size=1280,860"]


class Browser:
    def __init__(self, **preferences):
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not chromium or not driver:
            raise SystemExit("The browser tests need Chromium and its driver: apt-get install chromium chromium-driver")
        self.folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self.base = f"http://127.0.0.1:{self._start(driver)}/session"
        options = {"binary": chromium, "args": [*ARGUMENTS, f"--user-data-dir={self.folder.name}"], "prefs": preferences}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": logs}}
        try:
            self.base += "/" + self._send("POST", "", {"capabilities": wanted})["sessionId"]
        except BaseException:
            self.close()
            raise

    def _start(self, driver):
        """The port of a driver that runs. It ends by itself where the port it found free for IPv4 is taken for IPv6."""
        for _ in range(5):
            self.driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for line in self.driver.stdout:
                if found := re.search(r"successfully on port (\d+)", line):
                    return found[1]
            self.driver.wait()
            self.driver.stdout.close()
        raise SystemExit("chromedriver does not start: run `chromedriver --port=0` to see why")

    def close(self):
        try:
            self._send("DELETE", "")
        except OSError:
            pass  # Chromium is gone already.
        self.driver.terminate()
        self.driver.wait()
        self.driver.stdout.close()
        self.folder.cleanup()

    def open(self, url):
        self._send("POST", "/url", {"url": url})

    def back(self):
        self._send("POST", "/back", {})

    def forward(self):
        self._send("POST", "/forward", {})

    def reload(self):
        self._send("POST", "/refresh", {})

    def address(self):
        return self._send("GET", "/url")

    def tabs(self, count, url):
        """So many tabs with the same page, the present one among them."""
        tabs = [self._send("GET", "/window")]
        while len(tabs) < count:
            tabs.append(self._send("POST", "/window/new", {"type": "tab"})["handle"])
            self.switch(tabs[-1])
            self.open(url)
        return tabs

    def switch(self, tab):
        self._send("POST", "/window", {"handle": tab})

    def script(self, code, *arguments):
        return self._send("POST", "/execute/sync", {"script": code, "args": arguments})

    def cdp(self, command, **parameters):
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def cookies(self):
        """All cookies of the page, those that no script can read as well."""
        return {cookie["name"]: cookie for cookie in self._send("GET", "/cookie")}

    def log(self, kind):
        """What came since the last call: `browser` is the console, `performance` the events of the network."""
        return self._send("POST", "/se/log", {"type": kind})

    def screenshot(self):
        return base64.b64decode(self._send("GET", "/screenshot"))

    def find(self, selector, text=""):
        """Waits for an element that can be seen and holds `text`."""
        def look():
            shown = "return [...document.querySelectorAll(arguments[0])].find((one) =>" \
                    " one.checkVisibility() && (one.value ?? one.textContent).includes(arguments[1]))"
            return self.script(shown, selector, text)
        return self.wait(look, f"{selector} with “{text}”")[ELEMENT]

    def click(self, selector, text=""):
        """Presses it as a hand would: if something lies on top of it, this fails."""
        self._send("POST", f"/element/{self.find(selector, text)}/click", {})

    def type(self, selector, text):
        self._send("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def text(self, selector):
        return self.script("const one = document.querySelector(arguments[0]); return one.value ?? one.textContent", selector)

    def wait(self, look, what):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                if found := look():
                    return found
            except DriverError as error:
                if "stale element" not in str(error) and "no such window" not in str(error):
                    raise
            time.sleep(0.05)
        seen = self.script("return location.href + '\\n' + document.body.innerText")
        raise AssertionError(f"waited {PATIENCE_S} s for {what}; the page says:\n{seen}")

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise DriverError(f"{value['error']}: {value['message']}") from None


class DriverError(Exception):
    """What chromedriver refused."""
