"""The API's document, read by tools: it holds to OpenAPI 3.1, and the gateway to it."""

import json
import pathlib
import re
import subprocess
import sys
import unittest

from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "browser"), str(HERE.parent / "deploy")]

from machine import Browser  # noqa: E402
from world import BIN, World  # noqa: E402

API = "/arcmanager/api/v1"
# A method that nobody has is a 501, as RFC 9110 section 15.6.2 has it, and no fault of the server's. That any other is a 405 is
# held by tests/api/docs.rs.
SETTINGS = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", "501"]\n'
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
          "response_schema_conformance,allow_header_conformance")


class Document(unittest.TestCase):
    def test_it_holds_to_openapi_3_1(self):
        printed = subprocess.run([BIN / "arcmanager-gateway", "openapi"], capture_output=True, check=True, env={}).stdout
        document = json.loads(printed)
        self.assertRegex(document["openapi"], r"^3\.1\.")
        validate(document, cls=OpenAPIV31SpecValidator)
        del document["info"]["title"]
        with self.assertRaises(OpenAPIValidationError):
            validate(document, cls=OpenAPIV31SpecValidator)


class Answers(unittest.TestCase):
    """schemathesis makes calls of what the document says, good and bad ones, and holds the answers to it."""

    @classmethod
    def setUpClass(cls):
        cls.world = World(GATEWAY__APP__ARCMANAGER="true")  # With all routes that there are.
        cls.addClassCleanup(cls.world.close)

    def hold(self, seconds, leave_out, *fields, finding=None):
        """For so long, with these fields beside what makes it a call of the app. What a DataHUB answers is in its own document."""
        settings = self.world.machine.write("schemathesis.toml", SETTINGS)
        fields = [word for field in ("X-CSRF: 1", *fields) for word in ("--header", field)]
        command = [pathlib.Path(sys.executable).parent / "schemathesis", "--config-file", settings, "run",
                   f"{self.world.origin}{API}/openapi.json", "--checks", CHECKS, "--exclude-path-regex", leave_out,
                   "--max-time", str(seconds), "--max-redirects", "0", "--seed", "1", "--no-color", *fields]
        done = subprocess.run(command, cwd=self.world.machine.path, capture_output=True, text=True, timeout=seconds + 60)
        self.assertEqual(done.returncode, 1 if finding else 0, done.stdout[-6000:] + done.stderr[-2000:])
        if finding:
            return self.assertIn(finding, done.stdout)
        tested = int(re.search(r"Tested: (\d+)", done.stdout)[1])
        self.assertGreater(tested, 10)
        self.assertGreater(int(re.search(r"(\d+) generated", done.stdout)[1]), 100)

    def test_of_somebody_who_is_logged_in(self):
        browser = Browser(self.world.origin)
        browser.log_in("tuebingen")
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        self.hold(12, "^/datahubs/|/auth/logout", f"Cookie: {cookies}")
        # The session was there until the end; its tokens may be newer by now than these cookies.
        self.assertIn(browser.call("GET", "/datahubs/tuebingen/api/v4/user").status, (200, 307))

    def test_a_document_that_is_wrong_is_found_out(self):
        self.world.front.replaced[b'"302":'] = b'"299":'
        self.addCleanup(self.world.front.replaced.clear)
        self.hold(3, "^/(datahubs|docs|openapi|auth/[^l])", finding="Undocumented status code")

    def test_of_nobody(self):
        self.hold(5, "^/datahubs/")


if __name__ == "__main__":
    unittest.main()
