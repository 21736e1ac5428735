#!/usr/bin/env python3
"""Every suite in every engine, and what is known to fail there.

Prints the table; with `--docs` it is put into the README, where test_compatibility.py holds it.
"""

import functools
import re
import subprocess
import sys
import unittest
from pathlib import Path

from webdriver import ENGINES

README = Path(__file__).resolve().parents[2] / "README.md"

# What an engine has no way to do, or none that a test can reach: of an engine and a test, the reason and how the test fails.
CANNOT = {
    ("webkit", "App.test_nothing_in_the_console_but_silence"): (
        "WebKitGTK writes the console of a private window nowhere, and one that is driven is always private", "^Unable: "),
}

# What the gateway does not do yet: the same, each with the number of its item in the issue about browsers.
UNTIL = {}


def in_every_engine(suite):
    """Makes of a suite one for each engine, in its module. What is known to fail must fail, and as the tables say."""
    module = sys.modules[suite.__module__]
    for engine in ENGINES:
        members = {"engine": engine, "__doc__": suite.__doc__, "__module__": suite.__module__}
        for name in unittest.defaultTestLoader.getTestCaseNames(suite):
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
