#!/usr/bin/env python3
"""What a forwarded call costs: the gateway beside nginx and HAProxy as bare reverse proxies; one table and a picture.

All targets are connected at once and have their turn in short slices, a slice of nginx before each, so that a noisy machine
hits them alike. Figures are ratios to nginx's slice just before, and of these the median. The load generator (`load/`) is
also the DataHUB behind them; it never sleeps, for a sleeping peer would charge the proxy for waking it.

    tests/bench/run.py                                      # everything, about twelve minutes
    tests/bench/run.py --effort 0.2 --only calls,latency    # a quick look at some of it
    tests/bench/run.py --gateway old=/tmp/old --gateway new=target/release/arcmanager-gateway
    tests/bench/run.py --peers                              # Apache and Envoy as well, logged in for real
    tests/bench/run.py --docs                               # and write it into docs/
"""

import argparse
import os
import socket
import statistics
import time

import check
import peers
import report
from stage import FILE, LINKED, LINKED_BY_TLS, PAGE, RELEASE, Load, Stage, end, memory
from targets import Hub, gateway, gateway_config, haproxy, new_key, nginx, start_gateway

GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gateway", action="append", metavar="[NAME=]PATH", help="a build to measure; repeatable")
    arguments.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}")
    arguments.add_argument("--effort", type=float, default=1, help="how many slices, as a factor")
    arguments.add_argument("--peers", action="store_true", help="Apache with mod_auth_openidc and Envoy, too")
    arguments.add_argument("--docs", action="store_true", help="write the table and the picture into docs/")
    options = arguments.parse_args()
    builds = dict(build.split("=", 1) if "=" in build else ("gateway", build)
                  for build in options.gateway or [os.path.join(RELEASE, "arcmanager-gateway")])
    table = report.Table()
    with Stage() as stage:
        bench = Bench(stage, builds, options.effort, options.peers)
        for part in options.only.split(","):
            PARTS[part](bench, table)
    report.write(table, "peers" if options.peers else "bench", options.docs)


class Bench:
    """What all parts need."""

    def __init__(self, stage, builds, effort, with_peers):
        self.stage, self.builds, self.effort = stage, builds, effort
        self.load, self.hub = Load(stage), Hub(stage)
        self.with_peers = with_peers

    def targets(self, with_tls=False):
        """Nginx first, whom the others are measured by."""
        found = [proxy(self.stage, self.load, with_tls) for proxy in (nginx, haproxy)]
        found += [gateway(self.stage, self.load, self.hub, path, name, with_tls=with_tls) for name, path in self.builds.items()]
        if self.with_peers and not with_tls:
            found += peers.start(self.stage, self.load, self.hub)
        return found

    def cycles(self, number):
        return max(3, round(number * self.effort))

    def calls(self, targets, path, connections, *, cycles=30, seconds=0.2, rate=None, warm_up=1):
        """One line for each slice."""
        return self.load.ask("calls", targets=[target.asked(path) for target in targets], connections=connections,
                             slice=seconds, cycles=self.cycles(cycles), warm_up=warm_up, rate=rate)


def calls(bench, table):
    """CPU time a call, plain HTTP to the DataHUB."""
    targets = bench.targets()
    for path, what, connections in ((PAGE, "no `Link` fields", 64), (LINKED, "`Link` fields", 64), (PAGE, "no `Link` fields", 512),
                                    (LINKED, "`Link` fields", 512), (LINKED, "`Link` fields", 1), (LINKED, "`Link` fields", 1000)):
        told = bench.calls(targets, path, connections)
        table.ratios(f"CPU a call, {what}, {connections} connection{'s'[:connections - 1]}", told, cost, "µs", 1e6)
    thrifty = nginx(bench.stage, bench.load, name="nginx that keeps 256", kept=256)
    told = bench.calls([thrifty, *targets[1:]], LINKED, 512)
    table.ratios("CPU a call, `Link` fields, 512 connections, of an nginx that keeps 256", told, cost, "µs", 1e6, reference="nginx")
    stop([thrifty, *targets])


def tls(bench, table):
    """The same with TLS 1.3 to the DataHUB, which nginx and HAProxy verify, too."""
    targets = bench.targets(with_tls=True)
    for path, what, connections in ((PAGE, "no `Link` fields", 64), (LINKED_BY_TLS, "`Link` fields", 64), (LINKED_BY_TLS, "`Link` fields", 512)):
        told = bench.calls(targets, path, connections)
        table.ratios(f"CPU a call, TLS 1.3 to the DataHUB, {what}, {connections} connections", told, cost, "µs", 1e6)
    stop(targets)


def latency(bench, table):
    """From when a call was due to when it was answered, whatever became of the ones before it."""
    targets = bench.targets()
    for rate in (2_000, 10_000):
        told = bench.calls(targets, LINKED, 64, cycles=20, seconds=0.5, rate=rate)
        cells = {}
        for target in targets:
            slices = [line for line in told if line["name"] == target.name]
            cells[target.name] = " / ".join(f"{statistics.median(line[key] for line in slices):.0f}" for key in ("p50_us", "p99_us"))
        table.add(f"p50 / p99 at {rate:,} calls a second, µs", cells)
    stop(targets)


def streams(bench, table):
    """One file of 1 GiB on one connection."""
    targets = bench.targets()
    for name, upload in (("down", 0), ("up", GIB)):
        told = []
        for _ in range(bench.cycles(5)):
            for other in targets[1:]:
                for target in (targets[0], other):
                    asked = target.asked_to_take(upload) if upload else target.asked(FILE % GIB)
                    told += bench.load.ask("transfer", target=asked, upload=upload)
        table.ratios(f"CPU of 1 GiB {name}", told, lambda line: line["cpu_seconds"], "ms", 1e3)
    stop(targets)


def footprint(bench, table):
    """Memory of fresh processes: after a login, under load, with thousands of connections that each made one call."""
    targets = bench.targets()
    idle, busy, waiting = {}, {}, {}
    for target in targets:
        idle[target.name] = f"{memory(target.pids, 'Rss') / MIB:.1f}"
        bench.calls([target], LINKED, 64, cycles=10)
        busy[target.name] = f"{memory(target.pids, 'Rss') / MIB:.1f}"
    stop(targets)
    targets = bench.targets()
    for target in targets:
        if target.takes_thousands:
            # A few first, so that what is made once is there.
            bench.load.ask("hold", target=target.asked(LINKED), connections=64)
            before = memory(target.pids)
            bench.load.ask("hold", target=target.asked(LINKED), connections=64 + HELD)
            waiting[target.name] = f"{(memory(target.pids) - before) / HELD / KIB:.1f}"
    stop(targets)
    table.add("memory (RSS) after one login, MiB", idle)
    table.add("memory (RSS) with 64 busy connections, MiB", busy)
    table.add(f"memory of an idle connection, of {HELD:,}, KiB", waiting)


def start_up(bench, table):
    """From exec to the first good answer of /healthz."""
    cells = {}
    for name, path in bench.builds.items():
        times = [cold_start(bench, path) for _ in range(bench.cycles(10))]
        cells[name] = f"{statistics.median(times) * 1e3:.0f}"
    table.add("cold start, ms", cells)


def cold_start(bench, path):
    config, _, admin = gateway_config(bench.stage, bench.load, bench.hub, path)
    began = time.monotonic()
    process = start_gateway(bench.stage, path, config)
    while not is_healthy(admin):
        assert time.monotonic() < began + 10, "it does not come up"
    took = time.monotonic() - began
    end(process)
    return took


def is_healthy(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def scaling(bench, table):
    """Whether a call costs the same whatever stands in the configuration."""
    rows = {}
    for name, path in bench.builds.items():
        key = new_key(path)
        one = gateway(bench.stage, bench.load, bench.hub, path, "one", keys=[key])
        more = [
            gateway(bench.stage, bench.load, bench.hub, path, "two workers", workers=2),
            gateway(bench.stage, bench.load, bench.hub, path, "50 DataHUBs", datahubs=50),
            # The session is sealed by the last of them.
            gateway(bench.stage, bench.load, bench.hub, path, "20 keys", keys=[new_key(path) for _ in range(19)] + [key], people=one.people),
        ]
        told = bench.calls([one, *more], LINKED, 64)
        found, _ = report.ratios(told, cost)
        for target in more:
            rows.setdefault(target.name, {})[name] = f"{found[target.name]:.2f}"
        stop([one, *more])
    for what, cells in rows.items():
        table.add(f"CPU a call, {what}, of one", cells)


def counts(bench, table):
    """What no noise touches; see `check.py`, which holds the same of another build."""
    found = {name: check.count(path, bench.stage.tools) for name, path in bench.builds.items()}
    for answer in check.ANSWERS:
        cells = {}
        for name, figures in found.items():
            figures = figures[answer]
            cells[name] = f"{figures['instructions']:,.0f} · {figures['allocations']:.1f} · {figures['syscalls']:.2f}"
        table.add(f"instructions · allocations · system calls, {answer}", cells)


def cost(line):
    """CPU seconds of one call."""
    return line["cpu_seconds"] / line["calls"]


def stop(targets):
    for target in targets:
        end(target.process)


PARTS = {"calls": calls, "tls": tls, "latency": latency, "streams": streams, "memory": footprint, "start": start_up, "scaling": scaling,
         "counts": counts}
HELD = 9_900  # The gateway takes 10,000 (limits.connections), and half as many as it may open files.

if __name__ == "__main__":
    main()
