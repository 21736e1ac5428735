#!/usr/bin/env python3
"""What a forwarded call costs beside a bare nginx: CPU time as a ratio, p99, memory.

One worker each on one core; wrk and the canned DataHUB on the other. The two take turns in short slices, so that a noisy
machine hits both alike; the figure is the median of the slices' ratios.

    tests/bench/run.py [--slices 20] [--seconds 1]
"""

import argparse
import json
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RELEASE = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release")
BASE = "/arcmanager/api/v1"
CALL = "/api/v4/projects?per_page=20&page=1"
UPSTREAM_HEADERS = {
    "Link": '<http://127.0.0.1:%UP%/api/v4/projects?page=2&per_page=20>; rel="next"',
    "Etag": 'W/"7b2f3c1d9e8a4b6f0c5d1e2f3a4b5c6d"',
    "X-Page": "1", "X-Per-Page": "20", "X-Next-Page": "2", "X-Total": "331", "X-Total-Pages": "17",
    "X-Request-Id": "01JDABCDEFGHJKMNPQRSTVWXYZ", "X-Runtime": "0.142251", "Vary": "Origin",
    "Strict-Transport-Security": "max-age=63072000", "RateLimit-Limit": "2000", "RateLimit-Remaining": "1993",
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slices", type=int, default=20)
    arguments.add_argument("--seconds", type=float, default=1)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        try:
            measure(options, folder, processes)
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait()


def measure(options, folder, processes):
    up, reference, listen, hub = (free_port() for _ in range(4))
    start_nginx(folder, "upstream", canned(folder, up), processes, core=0)
    start_nginx(folder, "reference", proxying(folder, reference, up), processes, core=1)
    gateway = start_gateway(folder, listen, up, hub, processes)
    cookies = log_in(listen, hub)
    targets = {
        "nginx": (processes[1], f"http://127.0.0.1:{reference}{CALL}", {"Authorization": "Bearer " + "0" * 64}),
        "gateway": (gateway, f"http://127.0.0.1:{listen}{BASE}/datahubs/bench{CALL}", {}),
    }
    headers = {"Host": "localhost:8000", "Cookie": cookies, "Accept": "application/json", "Accept-Encoding": "gzip, br",
               "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    ratios, found = [], {"nginx": [], "gateway": []}
    for at in range(options.slices + 1):
        costs = {}
        for name, (process, url, more) in targets.items():
            before = cpu_seconds(process.pid)
            requests, p99, failed = load(url, {**headers, **more}, options.seconds)
            costs[name] = (cpu_seconds(process.pid) - before) / requests * 1e6
            assert not failed, f"{name}: {failed} answers other than 2xx"
            if at:  # the first slice warms up
                found[name].append((costs[name], p99))
        if at:
            ratios.append(costs["gateway"] / costs["nginx"])
    for name, rows in found.items():
        process = targets[name][0]
        cpu, p99 = (statistics.median(column) for column in zip(*rows))
        print(f"{name:8} {cpu:7.1f} us CPU a call   p99 {p99:6.2f} ms   {peak_memory(process.pid) / 2**20:6.1f} MiB at most")
    low, high = min(ratios), max(ratios)
    print(f"ratio    {statistics.median(ratios):7.2f} CPU, gateway to nginx (median of {len(ratios)}; {low:.2f} to {high:.2f})")


def canned(folder, port):
    """An nginx that answers as GitLab does to a page of projects."""
    headers = "".join(f"add_header {name} '{value}';" for name, value in UPSTREAM_HEADERS.items()).replace("%UP%", str(port))
    body = json.dumps([{"id": n, "name": f"HeatStress{n}", "description": "Proteome response to heat stress"} for n in range(22)])
    return nginx(folder, "upstream", f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ default_type application/json; {headers} return 200 '{body}'; }} }}")


def proxying(folder, port, up):
    return nginx(folder, "reference", f"""
        upstream datahub {{ server 127.0.0.1:{up}; keepalive 256; keepalive_requests 1000000000; }}
        server {{ listen 127.0.0.1:{port} backlog=4096;
            location / {{ proxy_pass http://datahub; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }} }}""")


def nginx(folder, name, servers):
    scratch = "".join(f"{kind}_temp_path {folder}/{name}-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""worker_processes 1; daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.log warn;
        events {{ worker_connections 4096; }}
        http {{ access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 3600s; {scratch} {servers} }}"""


def start_nginx(folder, name, config, processes, core):
    path = os.path.join(folder, f"{name}.conf")
    with open(path, "w", encoding="utf-8") as file:
        file.write(config)
    processes.append(subprocess.Popen(["taskset", "-c", str(core), "nginx", "-c", path]))


def start_gateway(folder, listen, up, hub, processes):
    secret = secrets.token_urlsafe(32)
    environment = {**os.environ, "DATAHUB_CLIENT_SECRET": secret, "GATEWAY__DATAHUBS__BENCH__CLIENT_SECRET": secret,
                   "GATEWAY__SESSION__KEYS": subprocess.check_output([f"{RELEASE}/arcmanager-gateway", "key"], text=True).strip()}
    path = os.path.join(folder, "gateway.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"""
            server.listen = ["127.0.0.1:{listen}"]
            server.workers = 1
            admin.listen = "none"
            [datahubs.bench]
            url = "http://127.0.0.1:{up}"
            issuer = "http://127.0.0.1:{hub}"
            client_id = "bench"
        """)
    processes.append(subprocess.Popen([f"{RELEASE}/datahub", "--name", "Bench", "--listen", f"127.0.0.1:{hub}", "--client-id", "bench"],
                                      env=environment, stdout=subprocess.DEVNULL))
    processes.append(subprocess.Popen(["taskset", "-c", "1", f"{RELEASE}/arcmanager-gateway", "--config", path],
                                      env=environment, stdout=open(os.path.join(folder, "gateway.log"), "wb")))
    for port in (listen, hub):
        wait_for(port)
    return processes[-1]


def log_in(listen, hub):
    """The cookies of a session."""
    login = fetch(f"http://127.0.0.1:{listen}{BASE}/auth/login?datahub=bench")
    pending = login.headers["Set-Cookie"].split(";")[0]
    signed_in = fetch(login.headers["Location"] + "&user=testuser", data=b"")
    callback = urllib.parse.urlsplit(signed_in.headers["Location"])
    back = fetch(f"http://127.0.0.1:{listen}{callback.path}?{callback.query}", headers={"Cookie": pending})
    cookies = [cookie.split(";")[0] for cookie in back.headers.get_all("Set-Cookie")]
    return "; ".join(cookie for cookie in cookies if not cookie.startswith("__Host-Http-login"))


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def fetch(url, data=None, headers=None):
    try:
        return urllib.request.build_opener(Stay).open(urllib.request.Request(url, data, {"Host": "localhost:8000", **(headers or {})}))
    except urllib.error.HTTPError as answer:
        return answer


def load(url, headers, seconds):
    """Requests done, 99th percentile in ms, answers other than 2xx."""
    fields = [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    command = ["taskset", "-c", "0", "wrk", "-t1", "-c64", f"-d{seconds}s", "--latency", *fields, url]
    told = subprocess.check_output(command, text=True)
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", told).groups()
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    requests = int(re.search(r"(\d+) requests in", told).group(1))
    return requests, float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit], int(failed.group(1)) if failed else 0


def cpu_seconds(pid):
    """CPU time of all threads so far, to the nanosecond."""
    tasks = f"/proc/{pid}/task"
    return sum(int(open(f"{tasks}/{task}/schedstat").read().split()[0]) for task in os.listdir(tasks)) / 1e9


def peak_memory(pid):
    return int(re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{pid}/status").read()).group(1)) * 1024


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def wait_for(port):
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens at port {port}")


if __name__ == "__main__":
    main()
