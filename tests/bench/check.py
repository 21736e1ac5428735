#!/usr/bin/env python3
"""Instructions, allocations and system calls of one forwarded call: what no noise touches, held against what was recorded.

What N calls take is subtracted from what 2N take, all over one kept connection, so that whatever is not of a call cancels.
Instructions and allocations are callgrind's, system calls strace's. `epoll_wait` stands by itself: one connection needs it for
each event, a busy worker once for many.

    tests/bench/check.py                    # exit status 1 if a figure is more than 3 % above expected.json
    tests/bench/check.py --record           # these are the figures from now on
    tests/bench/check.py --gateway target/release/arcmanager-gateway    # how another build fares

The build that is held is quick to make: the libraries as the tests have them, our own code optimised. Its figures are about a
third above those of a release; they move together.
"""

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time

from stage import ELSEWHERE, HERE, LINKED, PAGE, TARGET, Load, Stage, end
from targets import Hub, gateway

EXPECTED = os.path.join(HERE, "expected.json")
ANSWERS = {"no links": PAGE, "links": LINKED, "links elsewhere": ELSEWHERE}
# Above what was recorded. How many events a wait brings depends on how fast the other side is, a little.
TOLERANCE = {"instructions": 0.03, "allocations": 0.03, "syscalls": 0.03, "epoll_wait": 0.10}
CALLS, TRACED = 300, 2_000
# The log's thread wakes and writes so often a second, whatever a call does; how many calls come in a second is no figure of ours.
OF_THE_CLOCK = ("write", "futex", "sched_yield", "madvise")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gateway", metavar="PATH", default=os.path.join(TARGET, "bench", "arcmanager-gateway"))
    arguments.add_argument("--tools", metavar="FOLDER", default=os.path.join(TARGET, "debug"), help="where `load` and `datahub` are")
    arguments.add_argument("--record", action="store_true")
    arguments.add_argument("--verbose", action="store_true", help="which system calls, too")
    options = arguments.parse_args()
    found = count(options.gateway, options.tools, options.verbose)
    if options.record:
        with open(EXPECTED, "w", encoding="utf-8") as file:
            json.dump({"made by": versions(), "a call": found}, file, indent=2)
            file.write("\n")
    with open(EXPECTED, encoding="utf-8") as file:
        expected = json.load(file)
    worse, better = compare(found, expected["a call"])
    if worse:
        print(f"Above what was recorded: {', '.join(worse)}.\n"
              f"If that is the price of something, say so in the commit, with `make bench-record`. "
              f"Another compiler counts, too: recorded by {expected['made by']}, this is {versions()}.", file=sys.stderr)
    elif better:
        print(f"Better than recorded: {', '.join(better)}. `make bench-record` holds it there.")
    sys.exit(1 if worse else 0)


def count(binary, tools, is_verbose=False):
    """For each answer the figures of one call."""
    with concurrent.futures.ThreadPoolExecutor(2) as two:  # one for each core
        counted, traced = two.submit(callgrind, binary, tools), two.submit(strace, binary, tools)
        counted, traced = counted.result(), traced.result()
    found = {}
    for answer, names in traced.items():
        if is_verbose:
            print(f"{answer}:", ", ".join(f"{name} {number:.3f}" for name, number in sorted(names.items()) if abs(number) > 0.002))
        waits = names.pop("epoll_wait")
        for name in OF_THE_CLOCK:
            names.pop(name, None)
        found[answer] = {**counted[answer], "syscalls": round(sum(names.values()), 3), "epoll_wait": waits}
    return found


def compare(found, expected):
    """Prints the table; the figures that are above, and those below."""
    worse, better = [], []
    print(f"| {'a call':36} | {'now':>9} | {'recorded':>9} |         |\n| {'-' * 36} | {'-' * 8}: | {'-' * 8}: | ------: |")
    for kind, tolerance in TOLERANCE.items():
        for answer in ANSWERS:
            now, then = found[answer][kind], expected[answer][kind]
            ratio = now / then if then else 1.0
            name = f"{kind}, {answer}"
            if ratio > 1 + tolerance:
                worse.append(name)
            elif ratio < 1 - tolerance:
                better.append(name)
            form = ",.0f" if kind == "instructions" else ".2f"
            print(f"| {name:36} | {now:>9{form}} | {then:>9{form}} | {ratio - 1:+7.1%} |")
    return worse, better


def callgrind(binary, tools):
    """What a call adds, for each answer: one process, whose counters are dumped and so cleared in between."""
    with Stage(tools) as stage:
        out = stage.path("counted")
        load, target = start(stage, binary, ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"])
        dumps = 0

        def dump_after(path, calls):
            nonlocal dumps
            load.ask("repeat", target=target.asked(path), connections=1, calls=calls)
            subprocess.run(["vgdb", f"--pid={target.process.pid}", "dump"], check=True, capture_output=True)
            dumps += 1
            with open(f"{out}.{dumps}", encoding="utf-8", errors="replace") as file:
                text = file.read()
            return {"instructions": int(re.search(r"^totals: (\d+)", text, re.M).group(1)), "allocations": allocations(text)}

        for path in ANSWERS.values():
            dump_after(path, 100)
        return {answer: a_call(dump_after(path, CALLS), dump_after(path, 2 * CALLS), CALLS) for answer, path in ANSWERS.items()}


def strace(binary, tools):
    """The same of each system call: a process each, because strace counts until the end."""
    def total(more):
        with Stage(tools) as stage:
            out = stage.path("counted")
            load, target = start(stage, binary, ["strace", "-D", "-f", "-c", "-o", out])
            for path in ANSWERS.values():
                calls = TRACED * (2 if path == more else 1)
                load.ask("repeat", target=target.asked(path), connections=1, calls=calls)
            end(target.process)
            for _ in range(100):  # strace ends after what it traced
                if os.path.exists(out):
                    with open(out, encoding="utf-8") as file:
                        rows = [line.split() for line in file]
                    if rows and rows[-1][-1] == "total":
                        return {row[-1]: int(row[3]) for row in rows[2:-2]}
                time.sleep(0.05)
        raise SystemExit("strace left no figures: may it trace processes here?")

    base = total(None)
    return {answer: a_call(base, total(path), TRACED) for answer, path in ANSWERS.items()}


def start(stage, binary, wrapper):
    load = Load(stage, core=None)
    return load, gateway(stage, load, Hub(stage), binary, wrapper=wrapper, core=None)


def a_call(fewer, more, calls):
    return {name: round((more[name] - fewer.get(name, 0)) / calls, 3) for name in more}


def allocations(text):
    """Calls of the Rust allocator, whichever stands behind it; where it was inlined (LTO), calls of the C library's."""
    names, numbers, called = {}, {}, None
    for line in text.splitlines():
        if line.startswith(("fn=(", "cfn=(")):
            number, _, name = line.split("=", 1)[1].partition(")")
            if name:
                names[number] = name.strip()
            called = number if line.startswith("cfn") else None
        elif line.startswith("calls=") and called:
            numbers[called] = numbers.get(called, 0) + int(line.split()[0].removeprefix("calls="))
    by_name = {}
    for number, count in numbers.items():
        by_name[names[number]] = by_name.get(names[number], 0) + count
    for family in (RUST, C):
        if total := sum(count for name, count in by_name.items() if name in family):
            return total
    return 0


def versions():
    def first_line(*command):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]

    return f"{' '.join(first_line('rustc', '--version').split()[:2])}, {first_line('valgrind', '--version')}"


RUST = {"__rustc::__rust_alloc", "__rustc::__rust_alloc_zeroed", "__rustc::__rust_realloc"}
C = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"}

if __name__ == "__main__":
    main()
