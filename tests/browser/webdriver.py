"""A small W3C WebDriver client of Chromium, Firefox and WebKit.

Debian has the three: Chromium and its chromedriver, Firefox (geckodriver is a crate), and WebKit as WebKitGTK's MiniBrowser
with its WebKitWebDriver. What they differ in stands at the end, once for each.
"""

import atexit
import base64
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import types
import urllib.error
import urllib.request

PATIENCE_S = 20
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver, section 12.3
TOOLS = pathlib.Path(__file__).resolve().parents[2] / ".tools" / "bin"


class Browser:
    """A browser that knows nobody. `cookies` is what it takes: `all`, `first-party` or `none`. With a `folder` it lives on there,
    and one that `restores` opens the tabs that were open.

    One that `goes_back` may be sent back and forward: WebKit's driver loses a page that comes back into another process, so
    WebKit then does not heed Cross-Origin-Opener-Policy, which asks for one.
    """

    def __init__(self, engine, cookies="all", private=False, folder=None, goes_back=False, restores=False):
        self.engine = engine
        self.temporary = None if folder else tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        self.folder = pathlib.Path(folder or self.temporary.name)
        self.downloads = self.folder / "downloads"
        self.downloads.mkdir(exist_ok=True)
        self.driver = None
        wishes = types.SimpleNamespace(cookies=cookies, private=private, is_kept=bool(folder), goes_back=goes_back, restores=restores)
        try:
            command, capabilities, environment = STARTS[engine](self.folder, wishes)
            self.base = f"http://127.0.0.1:{self._start(command, environment)}/session"
            capabilities = {"acceptInsecureCerts": True, "pageLoadStrategy": "normal", **capabilities}
            self.base += "/" + self._send("POST", "", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]
            self.resize(1280, 960)
        except BaseException:
            self.close()
            raise

    def _start(self, command, environment):
        """The port of a driver that runs. One ends by itself where the port that was free is taken by now."""
        for _ in range(5):
            port = free_port()
            command = [*command, f"--port={port}"]
            self.driver = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            end = time.monotonic() + PATIENCE_S
            while self.driver.poll() is None and time.monotonic() < end:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    return port
                except OSError:
                    time.sleep(0.02)
        raise SystemExit(f"this does not start: {' '.join(map(str, command))}")

    def close(self):
        try:
            self._send("DELETE", "")
        except (OSError, ValueError, AttributeError, DriverError):
            pass  # It is gone already, or never was there.
        if self.driver:
            self.driver.terminate()
            self.driver.wait()
        if self.temporary:
            self.temporary.cleanup()

    def resize(self, width, height):
        self._send("POST", "/window/rect", {"width": width, "height": height})

    def empty(self):
        """Makes it as it was when it started, where that is possible and quicker than another start. Tells whether it did."""
        if self.engine not in EMPTIES:
            return False
        for file in self.downloads.iterdir():
            file.unlink()
        first, *others = self.all_tabs()
        for tab in others:
            self.switch(tab)
            self.close_tab()
        self.switch(first)
        self.resize(1280, 960)
        self.open("about:blank")
        EMPTIES[self.engine](self)
        return True

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
        tabs = [self.tab()]
        while len(tabs) < count:
            tabs.append(self._send("POST", "/window/new", {"type": "tab"})["handle"])
            self.switch(tabs[-1])
            self.open(url)
        return tabs

    def tab(self):
        return self._send("GET", "/window")

    def all_tabs(self):
        return self._send("GET", "/window/handles")

    def switch(self, tab):
        self._send("POST", "/window", {"handle": tab})

    def close_tab(self):
        self._send("DELETE", "/window")

    def switch_to(self, address):
        """Goes to a tab with such an address, if there is one."""
        for tab in self.all_tabs():
            self.switch(tab)
            if self.address().startswith(address):
                return True
        return False

    def script(self, code, *arguments):
        """What the code returns; it may `await`."""
        code = f"return (async () => {{\n{code}\n}})()"
        return self._send("POST", "/execute/sync", {"script": code, "args": arguments})

    def privileged(self, code):
        """A script of Firefox itself."""
        self._send("POST", "/moz/context", {"context": "chrome"})
        try:
            return self.script(code)
        finally:
            self._send("POST", "/moz/context", {"context": "content"})

    def cdp(self, command, **parameters):
        """Chromium's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def cookies(self):
        """All cookies of the page, those that no script can read as well."""
        return {cookie["name"]: cookie for cookie in self._send("GET", "/cookie")}

    def complaints(self):
        """Warnings and errors of the console since the last call, each a line."""
        return CONSOLES[self.engine](self)

    def downloaded(self):
        """What has been saved whole, by name."""
        partial = (".crdownload", ".part", ".wkdownload", ".tmp")
        files = [file for file in self.downloads.iterdir() if file.suffix not in partial and not file.name.startswith(".")]
        # While Firefox saves a file, an empty one holds its name.
        return {file.name: file.read_bytes() for file in files if file.stat().st_size}

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
        """Presses it as a hand would, which scrolls first: if something lies on top of it even then, this fails."""
        element = self.find(selector, text)
        self.script("arguments[0].scrollIntoView({ block: 'nearest', behavior: 'instant' })", {ELEMENT: element})
        self._send("POST", f"/element/{element}/click", {})

    def type(self, selector, text):
        self._send("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def choose_file(self, selector, path):
        """Types a path into an input that may be hidden behind a styled label."""
        element = self.script("return document.querySelector(arguments[0])", selector)
        self._send("POST", f"/element/{element[ELEMENT]}/value", {"text": str(path)})

    def text(self, selector):
        return self.script("const one = document.querySelector(arguments[0]); return one.value ?? one.textContent", selector)

    def alert(self):
        """Waits for an alert, closes it and gives its text."""
        text = self.wait(self._alert, "an alert")
        self._send("POST", "/alert/accept", {})
        # WebKit closes it a moment later.
        self.wait(lambda: self._alert() is None, "the end of the alert")
        return text

    def _alert(self):
        """The text of the alert that is open, if there is one."""
        try:
            return self._send("GET", "/alert/text")
        except DriverError as error:
            if "no such alert" not in str(error):
                raise

    def wait(self, look, what):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                if found := look():
                    return found
            except DriverError as error:
                if not re.search(PASSING, str(error)):
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
    """What a driver refused."""


class Unable(Exception):
    """What an engine, as it is driven here, has no way to do."""


# What a driver says while one page gives way to the next.
PASSING = "stale element|no such window|detached|javascript error|unloaded|aborted by navigation|no such frame"


# How each starts: its driver, its capabilities, its environment.

def start_chromium(folder, wishes):
    chromium, driver = need("chromium"), need("chromedriver")
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                 "--disable-background-networking", "--disable-component-update", "--window-size=1280,860",
                 # A certificate that was waved through keeps service workers and the cache out.
                 "--ignore-certificate-errors", f"--user-data-dir={folder}/profile"]
    preferences = {"download.default_directory": f"{folder}/downloads", "download.prompt_for_download": False,
                   "plugins.always_open_pdf_externally": False}
    if wishes.cookies == "first-party":
        preferences |= {"profile.block_third_party_cookies": True, "profile.cookie_controls_mode": 1}
    if wishes.cookies == "none":
        preferences |= {"profile.default_content_setting_values.cookies": 2}
    arguments += [*["--incognito"] * wishes.private, *["--restore-last-session"] * wishes.restores]
    options = {"binary": chromium, "args": arguments, "prefs": preferences}
    return [driver], {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}, {}


def start_firefox(folder, wishes):
    firefox, driver = need("firefox-esr"), need("geckodriver")
    preferences = {"browser.download.folderList": 2, "browser.download.dir": f"{folder}/downloads",
                   "browser.download.manager.showWhenStarting": False, "browser.privatebrowsing.autostart": wishes.private,
                   "browser.startup.page": 3 if wishes.restores else 0,
                   "network.cookie.cookieBehavior": {"all": 5, "first-party": 1, "none": 2}[wishes.cookies]}
    arguments = ["-headless", "-profile", f"{folder}/profile"]
    (folder / "profile").mkdir(exist_ok=True)
    options = {"binary": firefox, "args": arguments, "prefs": preferences}
    # Only so can the console be read.
    return [driver, "--allow-system-access", "--websocket-port=0"], {"moz:firefoxOptions": options}, {"HOME": str(folder)}


def start_webkit(folder, wishes):
    driver, browser = need("WebKitWebDriver"), need("MiniBrowser")
    if wishes.is_kept:
        raise Unable("a WebKit that is driven keeps nothing when it is closed")
    (folder / ".config").mkdir(exist_ok=True)
    (folder / ".config/user-dirs.dirs").write_text(f'XDG_DOWNLOAD_DIR="{folder}/downloads"\n')
    policy = {"all": "always", "first-party": "no-third-party", "none": "never"}[wishes.cookies]
    arguments = ["--automation", f"--cookies-policy={policy}", "--javascript-can-open-windows-automatically=true",
                 *["--private"] * wishes.private, *["--features=!CrossOriginOpenerPolicy"] * wishes.goes_back]
    options = {"binary": browser, "args": arguments}
    environment = {"DISPLAY": display(), "GDK_BACKEND": "x11", "HOME": str(folder), "XDG_CONFIG_HOME": f"{folder}/.config",
                   "XDG_DATA_HOME": f"{folder}/data", "XDG_CACHE_HOME": f"{folder}/cache"}
    return [driver], {"webkitgtk:browserOptions": options}, environment


STARTS = {"chromium": start_chromium, "firefox": start_firefox, "webkit": start_webkit}
ENGINES = list(STARTS)


def version(engine):
    """As the engine says it, without what Debian's own updates change."""
    program = need({"chromium": "chromium", "firefox": "firefox-esr", "webkit": "MiniBrowser"}[engine])
    environment = {**os.environ, **({"DISPLAY": display()} if engine == "webkit" else {})}
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, env=environment).stdout
    return re.search(r"\d+(\.\d+)?", said)[0]


def need(program):
    """The path of a program that `make browser-tools` installs."""
    folders = [TOOLS, *os.environ["PATH"].split(":"), *pathlib.Path("/usr/lib").glob("*/webkit2gtk-4.1")]
    found = shutil.which(program, path=":".join(map(str, folders)))
    if not found:
        raise SystemExit(f"The browser tests need {program}: make browser-tools")
    return found


def display():
    """A screen without a monitor, one for as long as the tests run: WebKitGTK draws nowhere else."""
    global _xvfb
    if not _xvfb:
        read, write = os.pipe()
        process = subprocess.Popen([need("Xvfb"), "-displayfd", str(write), "-screen", "0", "1400x1000x24", "-nolisten", "tcp"],
                                   pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(write)
        with os.fdopen(read) as told:
            _xvfb = process, f":{told.readline().strip()}"
        atexit.register(end, process)
    return _xvfb[1]


def end(process):
    process.terminate()
    process.wait()


_xvfb = None


# How one becomes empty again. Firefox takes seconds to start, the others do not.

def empty_firefox(browser):
    browser.privileged("""
        await new Promise((onDataDeleted) => Services.clearData.deleteData(Ci.nsIClearDataService.CLEAR_ALL, { onDataDeleted }));
        Services.console.reset()""")


EMPTIES = {"firefox": empty_firefox}


# What each has in its console.

def console_of_chromium(browser):
    told = browser._send("POST", "/se/log", {"type": "browser"})
    return [entry["message"] for entry in told if entry["level"] in ("SEVERE", "WARNING")]


def console_of_firefox(browser):
    """That of the whole browser; its own windows have theirs in it, too."""
    return browser.privileged("""
        const told = Services.console.getMessageArray().filter((one) => one instanceof Ci.nsIScriptError);
        Services.console.reset();
        return told.map((one) => `${one.sourceName}: ${one.errorMessage}`)""")


def console_of_webkit(_):
    raise Unable("WebKit writes the console of a private session nowhere, and one that is driven always is private")


CONSOLES = {"chromium": console_of_chromium, "firefox": console_of_firefox, "webkit": console_of_webkit}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
