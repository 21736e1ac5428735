"""Containers without an engine: processes that have a file system, a network and rights of their own, as compose.yaml and the
Kubernetes files ask for.

The test's thread moves into a network of its own, whose ports are all free and whose addresses nobody else knows. It is gone
with the processes in it. What is not as in an engine: all containers see the machine's /usr (tests have no static binary, and
nginx is the machine's), and seccomp and memory limits are not set.
"""

import ctypes
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import unittest

from machine import end_listening, relay, serve_each, wait_until

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000


class Network:
    """A bridge in a network namespace in which the calling thread, and those it starts, are until it is closed."""

    def __init__(self, machine):
        if not shutil.which("ip"):
            raise AssertionError("a network of its own needs `ip`: apt-get install iproute2")
        self.machine = machine
        self.outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.count = 1
        self.listeners = []
        if LIBC.unshare(CLONE_NEWNET):
            os.close(self.outside)
            reason = f"NOT RUN: no network namespace can be made here ({os.strerror(ctypes.get_errno())}); it takes CAP_SYS_ADMIN"
            print(reason, flush=True)
            raise unittest.SkipTest(reason)
        run("ip link set lo up")
        # With an address of its own: else it takes that of a container, and is another one when that ends.
        run("ip link add br0 address 02:00:00:00:00:01 type bridge")
        run("ip addr add 10.20.0.1/24 dev br0")
        run("ip link set br0 up")

    def close(self):
        """Brings the thread back. The processes in it end with the test's machine."""
        for listener in self.listeners:
            end_listening(listener)
        LIBC.setns(self.outside, CLONE_NEWNET)
        os.close(self.outside)

    def address(self):
        """One that no other container has."""
        self.count += 1
        return f"10.20.0.{self.count}"

    def publish(self, port, address, to):
        """As an engine does with `ports`: who connects to this port of the host is connected to that of the container."""
        listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.listeners.append(listener)

        def serve(client):
            try:
                relay(client, socket.create_connection((address, to)))
            except OSError:
                client.close()

        serve_each(listener, serve)


def run(command):
    subprocess.run(command.split(), check=True, capture_output=True)


class Container:
    """A process on the network, in a root of its own that can only be read, without any capability.

    `mounts` are pairs of a path of the machine and one in the container; `writable` are folders in memory, or pairs."""

    def __init__(self, network, name, command, *, env, user, mounts, writable=(), hosts=None, address=None):
        self.network, self.name, self.env, self.user = network, name, env, user
        self.address = address or network.address()
        machine = network.machine
        root = machine.path / "roots" / name
        root.mkdir(parents=True, exist_ok=True)
        known = "".join(f"{where} {host}\n" for host, where in {"localhost": "127.0.0.1", **(hosts or {})}.items())
        hosts_file = machine.write(f"{name}.hosts", known, 0o644)
        mounts = [("/usr", "/usr"), ("/dev", "/dev"), (hosts_file, "/etc/hosts"), *mounts]
        script = ["set -eu", "read -r _", "ip link set lo up", f"ip addr add {self.address}/24 dev eth0", "ip link set eth0 up",
                  "ip route add default via 10.20.0.1", f"mount -t tmpfs -o mode=755 root {root}", f"mkdir {root}/proc",
                  f"mount -t proc proc {root}/proc"]
        script += [f"ln -s usr/{folder} {root}/{folder}" for folder in ["bin", "lib", "lib64"]]
        for source, target in [*mounts, *(pair for pair in writable if isinstance(pair, tuple))]:
            inside = f"{root}{target}"
            make = f"mkdir -p {inside}" if pathlib.Path(source).is_dir() else f"mkdir -p $(dirname {inside}); touch {inside}"
            script += [make, f"mount --bind {source} {inside}"]
            if (source, target) in mounts:
                script.append(f"mount -o remount,bind,ro {inside}")
        for folder in (folder for folder in writable if isinstance(folder, str)):
            script += [f"mkdir -p {root}{folder}", f"mount -t tmpfs -o mode=1777 tmpfs {root}{folder}"]
        script += [f"mount -o remount,ro {root}",
                   f"exec chroot {root} /usr/bin/setpriv --reuid {user[0]} --regid {user[1]} --clear-groups --inh-caps=-all "
                   f"--bounding-set=-all --no-new-privs {shlex.join(map(str, command))} < /dev/null"]
        with open(machine.path / f"{name}.log", "ab") as log:
            os.fchown(log.fileno(), *user)
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-c", "\n".join(script)], stdin=subprocess.PIPE, stdout=log, stderr=log,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env})
        machine.processes.append(self.process)
        self.connect()

    def connect(self):
        """Gives it one end of a cable, and the word to begin."""
        own = os.stat("/proc/thread-self/ns/net").st_ino
        wait_until(lambda: os.stat(f"/proc/{self.process.pid}/ns/net").st_ino != own, f"{self.name} has a network of its own")
        end_here = f"to-{self.process.pid}"
        run(f"ip link add {end_here} type veth peer name eth0 netns {self.process.pid}")
        run(f"ip link set {end_here} master br0 up")
        self.process.stdin.write(b"go\n")
        self.process.stdin.close()

    def execute(self, *command):
        """Runs another command in it, as a health check is."""
        into = ["nsenter", "--target", str(self.process.pid), "--mount", "--net", "--root", "--wd=/",
                f"--setuid={self.user[0]}", f"--setgid={self.user[1]}"]
        return subprocess.run([*into, *map(str, command)], env={"PATH": "/usr/bin", **self.env}, capture_output=True, text=True, timeout=20)
