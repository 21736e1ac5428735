#!/usr/bin/env python3
"""Every suite in every engine, and what is known to fail there.

Runs them, the engines side by side, and prints the table of what ran where; with `--docs` it is put into docs/apps.md, where
test_compatibility.py holds it.
"""

import functools
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from webdriver import ENGINES, version

PAGE = Path(__file__).resolve().parents[2] / "docs/apps.md"

# What an engine has no way to do, or none that a test can reach: of an engine and a test, the reason and how the test fails.
CANNOT = {
    ("webkit", "App.test_nothing_in_the_console_but_silence"): (
        "the console of a private window is written nowhere, and one that is driven is always private", "^Unable: "),
    ("webkit", "BreaksBehindNginx.test_within_the_body"): (
        "a page never hears that an HTTP/2 stream broke; the body does not end", "never ends"),
    ("firefox", "BreaksDirectly.test_the_head_of_a_slow_answer_comes_at_once"): (
        "a page hears of an answer's head with the first byte of its body", "not less than 1000"),
    **{("webkit", f"History.test_{test}"): ("a browser that is driven keeps nothing when it is closed", "^Unable: ")
       for test in ("closed_and_opened_again_it_is_logged_in", "a_restored_tab_is_logged_in")},
    **{("webkit", test): (
        "no Secure cookie of `http://localhost` is kept, so nobody can log in there", "complains of the login")
       for test in ("Localhost.test_logs_in", *(f"BreaksDirectly.test_{test}" for test in (
           "before_the_body", "within_the_body", "before_the_first_chunk", "before_the_head", "the_head_of_a_slow_answer_comes_at_once")))},
}

# What the gateway does not do: the same.
UNTIL = {
    ("firefox", "ServiceWorker.test_logs_in"): (
        "a login through a service worker comes as `same-origin` and `empty`, like any script's call, and is not begun", "303.*302"),
}


def in_every_engine(suite):
    """Makes of a suite one for each engine, in its module. What is known to fail must fail, and as the tables say."""
    module = sys.modules[suite.__module__]
    for engine in ENGINES:
        members = {"engine": engine, "__doc__": suite.__doc__, "__module__": suite.__module__}
        for name in unittest.TestLoader().getTestCaseNames(suite):
            known = (CANNOT | UNTIL).get((engine, f"{suite.__name__}.{name}"))
            if known:
                members[name] = fails(getattr(suite, name), *known)
        name = f"{suite.__name__}In{engine.capitalize()}"
        setattr(module, name, type(name, (suite,), members))


def fails(test, reason, pattern):
    """The test, which passes by failing like this. If it does not fail, that is a failure, and so is another error."""
    @unittest.expectedFailure
    @functools.wraps(test)
    def run(self):
        try:
            test(self)
        except unittest.SkipTest:
            raise
        except Exception as error:
            if not re.search(pattern, f"{type(error).__name__}: {error}", re.S):
                # Cleanups are not expected to fail.
                self.addCleanup(self.fail, f"should fail, but not so: {error!r}; known is: {reason}")
            raise
    return run


def suites():
    """Every suite by name, with its classes for each engine."""
    found = {}
    for test in flat(unittest.TestLoader().discover(str(Path(__file__).parent))):
        if engine := getattr(test, "engine", None):
            found.setdefault(type(test).__bases__[0], {}).setdefault(engine, []).append(test._testMethodName)
    return found


def flat(suite):
    for one in suite:
        yield from flat(one) if isinstance(one, unittest.TestSuite) else [one]


def table():
    """What runs where, and what is known to fail."""
    lines = [f"| | {' | '.join(f'{NAMES[engine]} {version(engine)}' for engine in ENGINES)} |", f"|---|{'---|' * len(ENGINES)}"]
    for suite, tests in sorted(suites().items(), key=lambda item: item[0].__name__):
        cells = []
        for engine in ENGINES:
            known = sum((engine, f"{suite.__name__}.{test}") in CANNOT | UNTIL for test in tests[engine])
            cells.append(f"{len(tests[engine]) - known} of {len(tests[engine])}" if known else str(len(tests[engine])))
        lines.append(f"| {suite.__doc__.splitlines()[0].rstrip('.')} | {' | '.join(cells)} |")
    for title, known in (("What an engine cannot do, or no test can reach there", CANNOT), ("What the gateway does not do", UNTIL)):
        reasons = {}
        for (engine, test), (reason, _) in known.items():
            reasons.setdefault(reason, {}).setdefault(test, []).append(NAMES[engine])
        if reasons:
            lines += ["", f"{title} ({len(known)}):", ""]
        for reason, tests in reasons.items():
            engines = dict.fromkeys(engine for names in tests.values() for engine in names)
            lines.append(f"- {', '.join(engines)}: {reason} ({sum(map(len, tests.values()))})")
    return "\n".join(lines) + "\n"


NAMES = {"chromium": "Chromium", "firefox": "Firefox", "webkit": "WebKitGTK"}
BEGIN, END = "<!-- browsers -->\n", "<!-- end of browsers -->\n"


def written():
    """The table in docs/apps.md."""
    page = PAGE.read_text()
    return page[page.index(BEGIN) + len(BEGIN):page.index(END)]


def main():
    failed = run(*(f"In{engine.capitalize()}" for engine in ENGINES))
    text = table()
    print(text)
    if "--docs" in sys.argv[1:] and not failed:
        PAGE.write_text(PAGE.read_text().replace(BEGIN + written(), BEGIN + text))
    sys.exit(run("Compatibility") or failed)


def run(*parts):
    """Runs these parts of the suites side by side, prints what they say, and tells whether one has failed."""
    runs = []
    for part in parts:
        command = [sys.executable, "-W", "ignore", "-m", "unittest", "discover", "-s", str(Path(__file__).parent), "-v", "-k", part]
        output = tempfile.TemporaryFile()
        runs.append((subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT), output))
    for process, output in runs:
        process.wait()
        output.seek(0)
        print(output.read().decode(errors="replace"), flush=True)
    return any(process.returncode for process, _ in runs)


if __name__ == "__main__":
    main()
