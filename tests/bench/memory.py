#!/usr/bin/env python3
"""What one process takes while many stream at once: the most memory during uploads, and during slow downloads.

    tests/bench/memory.py [--streams 200] [--upload-mib 100] [--seconds 60]
"""

import argparse
import asyncio
import os
import secrets
import signal
import subprocess
import tempfile
import time

from stage import RELEASE, free_port, peak_memory, wait_for
from targets import BASE, PEOPLE, log_in

MIB = 1 << 20
FILES = f"{BASE}/datahubs/bench/api/v4/projects/230/packages/generic"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", type=int, default=200)
    arguments.add_argument("--upload-mib", type=int, default=100)
    arguments.add_argument("--seconds", type=float, default=60)
    options = arguments.parse_args()
    for name, work in (("uploads", uploads), ("slow readers", slow_readers)):
        with tempfile.TemporaryDirectory() as folder:
            measure(name, work, options, folder)


def measure(name, work, options, folder):
    """In a process of its own, whose peak is that of this work."""
    processes = []
    try:
        gateway, people, port = start(folder, processes)
        before, begin = peak_memory(gateway.pid), time.monotonic()
        told = asyncio.run(work(port, people, options))
        peak = peak_memory(gateway.pid)
        print(f"{told}: {peak / MIB:.1f} MiB at most ({before / MIB:.1f} before) in {time.monotonic() - begin:.0f} s")
        assert peak < 128 * MIB, f"{name}: more than 128 MiB"
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def start(folder, processes):
    listen, hub, secret = free_port(), free_port(), secrets.token_urlsafe(32)
    key = subprocess.check_output([f"{RELEASE}/arcmanager-gateway", "key"], text=True).strip()
    environment = {**os.environ, "DATAHUB_CLIENT_SECRET": secret, "GATEWAY__DATAHUBS__BENCH__CLIENT_SECRET": secret,
                   "GATEWAY__SESSION__KEYS": key}
    path = os.path.join(folder, "gateway.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"""
            server.listen = ["127.0.0.1:{listen}"]
            admin.listen = "none"
            datahubs.bench = {{ url = "http://127.0.0.1:{hub}", client_id = "bench" }}
        """)
    datahub = [f"{RELEASE}/datahub", "--name", "Bench", "--listen", f"127.0.0.1:{hub}", "--client-id", "bench", "--people", str(PEOPLE)]
    processes.append(subprocess.Popen(datahub, env=environment, stdout=subprocess.DEVNULL))
    log = open(os.path.join(folder, "gateway.log"), "wb")
    gateway = subprocess.Popen([f"{RELEASE}/arcmanager-gateway", "--config", path], env=environment, stdout=log)
    processes.append(gateway)
    for port in (hub, listen):
        wait_for(port)
    return gateway, [log_in(listen, f"person{number}") for number in range(1, PEOPLE + 1)], listen


async def uploads(port, people, options):
    length = options.upload_mib * MIB
    piece = bytes(range(256)) * 1024

    async def upload(number):
        head = request("PUT", f"{FILES}/p/1.0.0/{number}.bin", people[number % PEOPLE], f"Content-Length: {length}\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        for _ in range(length // len(piece)):
            writer.write(piece)
            await writer.drain()
        status = await reader.readline()
        writer.close()
        assert b" 201 " in status, status

    await asyncio.gather(*(upload(number) for number in range(options.streams)))
    return f"{options.streams} uploads of {options.upload_mib} MiB at once"


async def slow_readers(port, people, options):
    async def read(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request("GET", f"{FILES}/blob/1.0.0/{1 << 30}.bin", people[number % PEOPLE], ""))
        status = await reader.readline()
        assert b" 200 " in status, status
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            assert await reader.read(1024), "the download broke off"
            await asyncio.sleep(1)
        writer.close()

    await asyncio.gather(*(read(number) for number in range(options.streams)))
    return f"{options.streams} readers of 1 GiB at 1 KiB/s for {options.seconds:.0f} s"


def request(method, target, cookies, fields):
    return (f"{method} {target} HTTP/1.1\r\nHost: localhost:8000\r\nCookie: {cookies}\r\nSec-Fetch-Site: same-origin\r\n"
            f"Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n{fields}\r\n").encode()


if __name__ == "__main__":
    main()
