"""What stands for systemd and its `systemctl` in a test: the processes that unit files describe, in a folder instead of the machine.

It reads units when it begins and at a `daemon-reload`, with their drop-ins, and knows of them what starts a process: ExecStart,
ExecReload, WorkingDirectory, Environment, LoadCredential (copied at each start and at no other time; of a folder all files) and ListenStream (held from its
start on, so that connections wait while its service restarts). Sandbox, user and order are left out. What it does not know fails.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

from machine import end, end_listening
from units import copy_credentials

STUB = """#!{python}
import socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({path!r})
    asked.sendall("\\0".join(sys.argv[1:]).encode())
    asked.shutdown(socket.SHUT_WR)
    said = b"".join(iter(lambda: asked.recv(4096), b""))
sys.exit(said.decode() or 0)
"""


class Services:
    """`systemctl` is `stubs/systemctl` of the machine's folder; `asked` is what it has been asked for."""

    def __init__(self, machine):
        self.machine, self.path = machine, machine.path
        self.units, self.processes, self.sockets, self.asked = {}, {}, {}, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path / "systemd"))
        self.listener.listen()
        machine.write("stubs/systemctl", STUB.format(python=sys.executable, path=str(self.path / "systemd")), 0o755)
        threading.Thread(target=self.serve, daemon=True).start()
        self.reload_units()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                words = b"".join(iter(lambda: client.recv(4096), b"")).decode().split("\0")
                self.asked.append(" ".join(words))
                try:
                    self.ask(*words)
                except Exception as error:
                    client.sendall(f"systemctl {' '.join(words)}: {error!r}".encode())

    def ask(self, verb, *words):
        names = [word if "." in word else f"{word}.service" for word in words if word != "--now"]
        if verb == "enable" and "--now" not in words or verb not in ("daemon-reload", "enable", "start", "restart", "reload"):
            raise ValueError("no test needs that")
        if verb == "daemon-reload":
            self.reload_units()
        for name in names:
            if verb == "reload":
                process = self.processes[name]
                subprocess.run(["bash", "-c", self.one(name, "ExecReload")], env={**os.environ, "MAINPID": str(process.pid)}, check=True)
            elif name.endswith(".socket"):
                self.listen(name)
            elif verb == "restart" or name not in self.processes:
                self.start(name)

    def reload_units(self):
        """A unit is its lines, a key and a value each, followed by those of its drop-ins. An empty value forgets those before."""
        folder, self.units = self.path / "etc/systemd/system", {}
        for file in [*folder.glob("*.service"), *folder.glob("*.socket")]:
            lines = []
            for part in [file, *sorted((folder / f"{file.name}.d").glob("*.conf"))]:
                for key, value in re.findall(r"^(\w+)=(.*)$", part.read_text(), re.M):
                    lines = [*lines, (key, value)] if value else [line for line in lines if line[0] != key]
            self.units[file.name] = lines

    def all(self, name, key):
        return [value for other, value in self.units[name] if other == key]

    def one(self, name, key):
        value, = self.all(name, key)
        return value

    def listen(self, name):
        if name not in self.sockets:
            path = self.one(name, "ListenStream")
            self.sockets[name] = listening = socket.socket(socket.AF_UNIX)
            listening.bind(path)
            os.chmod(path, int(self.one(name, "SocketMode"), 8))
            listening.listen(int(self.one(name, "Backlog")))

    def start(self, name):
        if name in self.processes:
            end(self.processes.pop(name))
        credentials = self.path / "run/credentials" / name
        settings = [setting.partition(":") for setting in self.all(name, "LoadCredential")]
        copy_credentials({to: Path(source) for to, _, source in settings}, credentials)
        environment = dict(line.replace("%d", str(credentials)).split("=", 1) for line in self.all(name, "Environment"))
        # Where systemd looks for a program that is named without a path.
        environment |= {"CREDENTIALS_DIRECTORY": str(credentials), "PATH": f"{self.path}/usr/local/bin:{os.environ['PATH']}"}
        command, passed = shlex.split(self.one(name, "ExecStart")), ()
        if held := self.sockets.get(name.replace(".service", ".socket")):
            # systemd passes the first one as descriptor 3, to exactly the process it starts.
            passed = [held.fileno()]
            command = ["bash", "-c", f'exec 3<&{held.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "systemd", *command]
        folder = (self.all(name, "WorkingDirectory") or [None])[-1]
        self.processes[name] = self.machine.start(name, *command, env=environment, pass_fds=passed, cwd=folder)

    def close(self):
        """Before the machine ends what was started."""
        end_listening(self.listener)
        for held in self.sockets.values():
            held.close()
