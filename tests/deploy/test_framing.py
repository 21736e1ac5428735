"""What h11, another strict reader of HTTP/1.1, makes of the requests that tests/api/framing.rs and odd_bytes.rs send.

Whatever it refuses we refuse, too; where we refuse more, the file says so.
"""

import json
import unittest

import h11
from machine import ROOT

FILE = json.loads((ROOT / "tests/api/framing.json").read_text())
ODD = json.loads((ROOT / "tests/api/odd_bytes.json").read_text())
# RFC 9112 section 2.2 asks servers to pass over an empty line before a request.
MORE_LENIENT = {("FR-05", "an empty line before")}
# The answers to what is no request to us; what has any other has been taken for one.
NO_REQUEST = {"400 bad_request", "400 bad_request_target", "nothing"}


def verdict(request):
    """Whether a server takes `request` for one whole request."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request.encode("latin-1"))
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event in (h11.NEED_DATA, h11.PAUSED):
                return "refuses"
    except h11.RemoteProtocolError:
        return "refuses"
    return "takes"


class SecondOpinion(unittest.TestCase):
    def rows(self):
        for requirement, rows in FILE.items():
            if "-" in requirement:
                for case, good, old, new, status, expected in rows:
                    yield requirement, case, FILE["requests"][good], old, new, status, expected

    def fill(self, request):
        return request.replace("{api}", "/api").replace("{session}", "X-CSRF: 1\r\n")

    def fill_odd(self, request):
        request = request.replace("{base}", "/base").replace("{1000}", 1000 * "a")
        return self.fill(request.replace("{session}", "Host: a\r\n{session}"))

    def test_it_takes_every_good_request(self):
        for name, request in FILE["requests"].items():
            with self.subTest(name):
                self.assertEqual(verdict(self.fill(request)), "takes")

    def test_it_says_what_the_file_says(self):
        for requirement, case, good, old, new, status, expected in self.rows():
            with self.subTest(requirement, case=case):
                self.assertIn(old, good)
                self.assertEqual(verdict(self.fill(good.replace(old, new, 1))), expected)

    def test_what_it_refuses_we_refuse(self):
        more_lenient = {(requirement, case) for requirement, case, _, _, _, status, expected in self.rows()
                        if expected == "refuses" and status < 300}
        self.assertEqual(more_lenient, MORE_LENIENT)

    def test_no_odd_byte_is_taken_that_it_refuses(self):
        taken = 0
        for place, (template, answers) in ODD["bytes"].items():
            ranges = " ".join(ranges for answer, ranges in answers.items() if answer not in NO_REQUEST)
            for ends in ranges.split():
                first, last = int(ends[:2], 16), int(ends[-2:], 16)
                for byte in range(first, last + 1):
                    with self.subTest(place, byte=byte):
                        self.assertEqual(verdict(self.fill_odd(template).replace("{byte}", chr(byte))), "takes")
                    taken += 1
        self.assertGreater(taken, 1000)

    def test_no_odd_line_is_taken_that_it_refuses(self):
        more_lenient = {case for case, request, answer in ODD["lines"]
                        if answer not in NO_REQUEST and verdict(self.fill_odd(request)) == "refuses"}
        self.assertEqual(more_lenient, {"one empty line before"})

    def test_there_are_enough(self):
        refused = [case for _, case, _, _, _, status, _ in self.rows() if status >= 400]
        self.assertGreaterEqual(len(refused), 120)


if __name__ == "__main__":
    unittest.main()
