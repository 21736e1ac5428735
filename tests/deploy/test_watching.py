"""What is counted and what watches it: /metrics, the rules, the dashboard and the tables of docs/operate.md name the same things."""

import json
import re
import shutil
import subprocess
import unittest
import urllib.request

from machine import (
    CLIENT_ID, CLIENT_SECRET, GATEWAY, ROOT, Browser, Machine, accepts, free_port, new_key, start_datahub, wait_until,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older_text

RULES = ROOT / "config/prometheus/rules.yml"
DASHBOARD = ROOT / "config/grafana/dashboard.json"
PROMTOOL = shutil.which("promtool") or ROOT / ".tools/bin/promtool"
# As Prometheus sends it.
PROMETHEUS = ("application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
              "text/plain;version=0.0.4;q=0.4,*/*;q=0.1")
NAME = re.compile(r"\b(?:gateway|process)_[a-z_]+\b")


def section(title):
    """The part of docs/operate.md below this heading."""
    document = (ROOT / "docs/operate.md").read_text()
    return re.search(rf"^### {title}\n(.*?)(?=^##)", document, re.MULTILINE | re.DOTALL)[1]


def first_cells(title):
    """All names in the first column of a section's table."""
    rows = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)[^`]*`", row)]


class Metrics(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.machine = machine = Machine()
        cls.addClassCleanup(machine.close)
        hub, port, cls.admin = start_datahub(machine, "a"), free_port(), free_port()
        keys = machine.write("keys", new_key())
        config = machine.write("gateway.toml", f"""
            server = {{ listen = ["127.0.0.1:{port}"], public_url = "http://localhost:{port}" }}
            admin.listen = "127.0.0.1:{cls.admin}"
            session.keys_file = "{keys}"
            [datahubs.a]
            url = "http://127.0.0.1:{hub}"
            client_id = "{CLIENT_ID}"
            client_secret = "{CLIENT_SECRET}"
            anonymous = true
        """)
        machine.start("gateway", GATEWAY, "--config", config)
        wait_until(lambda: accepts(port), "the gateway listens")
        browser = Browser(f"http://localhost:{port}")
        assert browser.call("GET", "/datahubs/a/api/v4/projects").status == 200
        assert browser.log_in("a").status == 303
        assert browser.call("GET", "/datahubs/a/api/v4/user").status == 200

    def scrape(self, accept):
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    def test_openmetrics_is_what_its_own_parser_takes(self):
        kind, text = self.scrape(PROMETHEUS)
        self.assertEqual(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        families = {family.name: family for family in openmetrics(text)}
        self.assertTrue(text.endswith("# EOF\n"))
        for name, family in families.items():
            self.assertTrue(family.documentation and family.samples, name)
            self.assertIn(family.type, ["counter", "gauge", "histogram", "info"], name)
            self.assertEqual(family.unit, next((unit for unit in ["seconds", "bytes"] if name.endswith(f"_{unit}")), ""), name)
        self.assertEqual(families["gateway_requests"].type, "counter")
        # The parser is a strict one.
        for spoilt in [text.removesuffix("# EOF\n"), text.replace("gateway_panics_total", "gateway_panics"),
                       text.replace("# UNIT process_cpu_seconds seconds", "# UNIT process_cpu_seconds bytes")]:
            with self.assertRaises(ValueError):
                list(openmetrics(spoilt))

    def test_the_older_text_is_for_everybody_else_and_has_the_same_samples(self):
        _, new = self.scrape(PROMETHEUS)
        for accept in ["*/*", "text/plain;version=0.0.4", "text/html"]:
            kind, text = self.scrape(accept)
            self.assertEqual(kind, "text/plain; version=0.0.4; charset=utf-8")
            self.assertEqual({sample.name for family in older_text(text) for sample in family.samples},
                             {sample.name for family in openmetrics(new) for sample in family.samples})
        checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
        self.assertEqual((checked.returncode, checked.stdout + checked.stderr), (0, ""))
        bad = subprocess.run([PROMTOOL, "check", "metrics"], input=new, capture_output=True, text=True)
        self.assertNotEqual(bad.returncode, 0, "it knows no infos")

    def test_the_table_has_every_metric_and_its_labels(self):
        _, text = self.scrape("")
        labels = {}
        for family in older_text(text):
            found = {label for sample in family.samples for label in sample.labels} - {"le"}
            # This parser takes the ending of a counter for no part of its name.
            labels[family.name + ("_total" if family.type == "counter" else "")] = found
        told = {name: set(filter(None, names.split(",")))
                for name, names in re.findall(r"`((?:gateway|process)_\w+)(?:\{([\w,]+)\})?`", section("Metrics"))}
        self.assertEqual(told, labels)

    def test_whatever_is_watched_is_counted(self):
        _, text = self.scrape("")
        counted = {sample.name for family in older_text(text) for sample in family.samples}
        dashboard = json.loads(DASHBOARD.read_text())
        panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        for place, expressions in [("rules", re.findall(r"^        expr: (.*?)(?=^        \w+:)", RULES.read_text(), re.M | re.S)),
                                   ("dashboard", [*panels, *(one.get("query", "") for one in dashboard["templating"]["list"])])]:
            named = {name for expression in expressions for name in NAME.findall(expression)}
            self.assertGreater(len(named), 10, place)
            self.assertEqual(named - counted, set(), place)
        # Each panel asks what Prometheus understands.
        filled = [panel.replace("$__rate_interval", "5m").replace("$instance", ".*") for panel in panels]
        rules = [{"record": f"panel:{at}", "expr": panel} for at, panel in enumerate(filled)]
        file = self.machine.write("panels.json", json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
        checked = subprocess.run([PROMTOOL, "check", "rules", file], capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        # And whatever is counted is on the dashboard, but for what is not for looking at.
        shown = {name.removesuffix("_bucket") for panel in panels for name in NAME.findall(panel)}
        families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in counted}
        self.assertEqual(families - shown, {"process_threads", "process_start_time_seconds", "process_virtual_memory_bytes"})


class Rules(unittest.TestCase):
    def promtool(self, *arguments):
        return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, cwd=ROOT)

    def test_prometheus_understands_them(self):
        checked = self.promtool("check", "rules", RULES)
        self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_each_fires_when_it_should_and_is_silent_otherwise(self):
        tested = self.promtool("test", "rules", "tests/deploy/rules_test.yml")
        self.assertEqual(tested.returncode, 0, tested.stdout + tested.stderr)
        cases = re.findall(r"- name: (\w+) (fires|is silent)\n", (ROOT / "tests/deploy/rules_test.yml").read_text())
        names = re.findall(r"- alert: (\w+)\n", RULES.read_text())
        self.assertEqual(sorted(cases), sorted((name, case) for name in names for case in ["fires", "is silent"]))

    def test_each_has_a_row_that_says_what_to_do(self):
        self.assertEqual(sorted(first_cells("Alerts")), sorted(re.findall(r"- alert: (\w+)\n", RULES.read_text())))


class Events(unittest.TestCase):
    def test_each_has_a_row(self):
        names = re.findall(r'Self::\w+ => "(\w+)",', (ROOT / "src/access_log.rs").read_text())
        self.assertGreater(len(names), 20)
        self.assertEqual(sorted(first_cells("Security events")), sorted(names))


if __name__ == "__main__":
    unittest.main()
