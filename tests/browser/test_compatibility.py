"""The table of what runs in which engine says what is so."""

import re
import unittest

import compatibility


class Compatibility(unittest.TestCase):
    def test_the_document_has_the_table(self):
        """But for versions: those are of the run that made it."""
        table, written = (re.sub(r"(Chromium|Firefox|WebKitGTK) [\d.]+", r"\1", text) for text in (compatibility.table(), compatibility.written()))
        self.assertEqual(written, table, "tests/browser/compatibility.py --docs writes it")

    def test_what_is_known_is_of_a_test_that_runs(self):
        tests = {(engine, f"{suite.__name__}.{name}") for suite, engines in compatibility.suites().items() for engine, names in engines.items()
                 for name in names}
        self.assertLessEqual(set(compatibility.CANNOT), tests)
        self.assertLessEqual(set(compatibility.UNTIL), tests)

    def test_nothing_is_known_twice(self):
        self.assertEqual(set(compatibility.CANNOT) & set(compatibility.UNTIL), set())


if __name__ == "__main__":
    unittest.main()
