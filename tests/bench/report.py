"""The table and the picture of what was measured."""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess

from stage import ROOT, TARGET


class Table:
    """A row for each thing measured, a column for each target."""

    def __init__(self):
        self.rows = []

    def add(self, name, cells, bars=None):
        """`cells` are texts; `bars`, if any, the same as numbers for the picture."""
        self.rows.append({"name": name, "cells": cells, "bars": bars})
        print(f"{name}: " + ", ".join(f"{target} {cell}" for target, cell in cells.items()), flush=True)

    def ratios(self, name, told, cost, unit, factor, reference=None):
        found, base = ratios(told, cost)
        own = told[0]["name"]
        cells = {target: f"{value:.2f}" for target, value in found.items()}
        cells = {reference or own: f"{base * factor:.1f} {unit}", **cells}
        self.add(name, cells, {} if reference else {own: 1.0, **found})


def ratios(told, cost):
    """The median of each target's ratios to the reference's slice just before; the reference's own median cost."""
    reference, found = told[0]["name"], {}
    for before, line in zip(told, told[1:]):
        if line["name"] != reference:
            assert before["name"] == reference, "each slice follows one of the reference"
            found.setdefault(line["name"], []).append(cost(line) / cost(before))
    base = statistics.median(cost(line) for line in told if line["name"] == reference)
    return {name: statistics.median(values) for name, values in found.items()}, base


def write(table, name, with_docs):
    """Prints it, keeps it in target/bench/, and with `with_docs` puts it into the documentation."""
    folder = os.path.join(TARGET, "bench")
    os.makedirs(folder, exist_ok=True)
    text = f"{markdown(table.rows)}\n\n{machine()}\n"
    picture = svg([row for row in table.rows if row["bars"]])
    print("\n" + text)
    for ending, content in (("md", text), ("svg", picture), ("json", json.dumps(table.rows, indent=1, ensure_ascii=False))):
        save(os.path.join(folder, f"{name}.{ending}"), content)
    if with_docs:
        save(os.path.join(ROOT, "docs", {"bench": "speed", "peers": "speed-peers"}[name] + ".svg"), picture)
        replace_block(os.path.join(ROOT, "docs/speed.md"), name, text)


def markdown(rows):
    targets = columns(rows)
    lines = [["", *targets]] + [[row["name"], *(row["cells"].get(target, "") for target in targets)] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(targets) + 1)]
    padded = [[cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths))] for line in lines]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def columns(rows):
    """Every target once, in the order of their first appearance."""
    return list(dict.fromkeys(target for row in rows for target in row["cells"]))


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    busy = os.getloadavg()[2]
    return (f"Measured {datetime.date.today()} at {commit or 'no commit'}: {model.group(1) if model else platform.machine()}, {os.cpu_count()} cores, "
            f"Linux {platform.release().split('-')[0]}, load average of 15 minutes {busy:.1f}. Of nginx, if no unit is named: less is better.")


def replace_block(path, name, text):
    """What stands between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    with open(path, encoding="utf-8") as file:
        page = file.read()
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(begin, 1)
    save(path, before + begin + text + rest[rest.index(end):])


def save(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def svg(rows):
    """Bars, a group for each row; the line is nginx. Readable on light and on dark pages."""
    targets = [target for target in columns(rows) if any(target in row["bars"] for row in rows)] if rows else []
    shown = targets[1:]
    top, left, width, bar = 40, 350, 400, 12
    height_of_group = len(shown) * bar + 14
    most = max((row["bars"].get(target, 0) for row in rows for target in shown), default=1)
    scale = width / max(1.2, most * 1.08)
    parts = []
    for at, target in enumerate(shown):
        x = left + at * 85
        parts.append(f'<rect class="c{at % len(COLOURS)}" x="{x}" y="12" width="10" height="10"/><text x="{x + 15}" y="21">{plain(target)}</text>')
    for number, row in enumerate(rows):
        y = top + number * height_of_group
        parts.append(f'<text class="name" x="{left - 10}" y="{y + len(shown) * bar / 2 + 4:.0f}">{plain(row["name"].removeprefix("CPU a call, "))}</text>')
        for at, target in enumerate(shown):
            value = row["bars"].get(target)
            if value is None:
                continue
            level = y + at * bar
            parts.append(f'<rect class="c{at % len(COLOURS)}" x="{left}" y="{level}" width="{value * scale:.1f}" height="{bar - 2}"/>'
                         f'<text class="value" x="{left + value * scale + 4:.1f}" y="{level + 9}">{value:.2f}</text>')
    bottom = top + len(rows) * height_of_group
    line = left + scale
    parts.append(f'<line x1="{line:.1f}" y1="{top - 8}" x2="{line:.1f}" y2="{bottom}"/><text class="mark" x="{line:.1f}" y="{bottom + 14}">nginx = 1</text>')
    colours = "".join(f".c{at}{{fill:{light}}}" for at, (light, _) in enumerate(COLOURS))
    dark = "".join(f".c{at}{{fill:{dark}}}" for at, (_, dark) in enumerate(COLOURS))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {bottom + 24}" role="img" aria-label="CPU time as a ratio to nginx">'
            f"<style>text{{font:12px system-ui,sans-serif;fill:#24292f}}.name{{text-anchor:end}}.value{{font-size:10px}}.mark{{text-anchor:middle;font-size:11px}}"
            f"line{{stroke:#57606a;stroke-dasharray:4 3}}{colours}@media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}line{{stroke:#9198a1}}{dark}}}</style>"
            + "".join(parts) + "</svg>\n")


def plain(text):
    return text.replace("`", "").replace("&", "&amp;").replace("<", "&lt;")


# On light, on dark.
COLOURS = [("#8c959f", "#6e7681"), ("#0969da", "#58a6ff"), ("#bf8700", "#d29922"), ("#8250df", "#bc8cff"), ("#cf222e", "#ff7b72")]
