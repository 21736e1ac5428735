"""Our systemd units, acted out where systemd itself does not run: what systemd.exec(5) and systemd.socket(5) say of the settings that
decide whether the gateway starts. A folder stands for the machine's root.

`systemd-socket-activate` holds the socket, which is systemd's own program. The user is one that owns nothing, if the test is root's; the
credentials are copies that nobody else reads; nothing of the test's environment goes along. What is not acted out: the rest of the
sandbox, for which there is `systemd-analyze security`, and restarts.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from machine import GATEWAY, ROOT, wait_until

SHIPPED = ROOT / "config/systemd"
# Of the range from which systemd takes dynamic users.
DYNAMIC_USER = 61184
IS_ROOT = os.geteuid() == 0


class Unit:
    """The settings of a unit and of its drop-ins: each may stand there several times, and an empty one forgets those before it."""

    def __init__(self, *paths):
        self.settings = {}
        for path in paths:
            for line in path.read_text().splitlines():
                if line.startswith(("#", ";", "[")) or not line.strip():
                    continue
                key, _, value = line.partition("=")
                self.settings[key] = [*self.settings.get(key, []), value] if value else []

    def all(self, key):
        return self.settings.get(key, [])

    def last(self, key):
        """Of a setting that has one value."""
        return self.all(key)[-1]


class Acted:
    """The service of `paths` on the socket of `socket`. Every path in them is one below `root`, where the program is, too."""

    def __init__(self, machine, root, socket, *paths, name="arcmanager-gateway", instance=""):
        self.machine, self.root, self.name, self.instance = machine, root, name, instance
        self.service, self.socket = Unit(*paths), Unit(*socket)
        self.path = self.here(self.socket.last("ListenStream"))
        self.credentials = self.here(f"/run/credentials/{name}.service")

    def here(self, path):
        return Path(path) if path.startswith(f"{self.root}/") else self.root / path.lstrip("/")

    def expand(self, text):
        """The specifiers (systemd.unit(5)) that we use."""
        return text.replace("%d", str(self.credentials)).replace("%i", self.instance)

    def load_credentials(self):
        """For the service's user alone."""
        settings = [setting.partition(":") for setting in self.service.all("LoadCredential")]
        copy_credentials({name: self.here(source) for name, _, source in settings}, self.credentials)
        if IS_ROOT:
            for path in [self.credentials, *self.credentials.iterdir()]:
                os.chown(path, DYNAMIC_USER, DYNAMIC_USER)
        self.credentials.chmod(0o500)

    def environment(self):
        settings = [word for line in self.service.all("Environment") for word in shlex.split(line)]
        settings = dict(self.expand(setting).split("=", 1) for setting in settings)
        return {**settings, "CREDENTIALS_DIRECTORY": str(self.credentials)}

    def command(self, more):
        """What is started, as whom, with which environment, `more` of it among others; paths are those below `root`."""
        program, *arguments = shlex.split(self.expand(self.service.last("ExecStart")))
        found = [folder for folder in ["usr/local/bin", "usr/bin"] if (self.root / folder / program).is_file()]
        assert found, f"{program} is not where systemd looks for it"
        arguments = [str(self.here(word)) if word.startswith("/") else word for word in arguments]
        become = ["setpriv", f"--reuid={DYNAMIC_USER}", f"--regid={DYNAMIC_USER}", "--clear-groups", "--no-new-privs",
                  "--bounding-set=-all"] if IS_ROOT and self.service.last("DynamicUser") == "yes" else []
        environment = [f"{name}={value}" for name, value in {**self.environment(), **more}.items()]
        return [*become, "env", *environment, str(self.root / found[0] / program), *arguments]

    def start(self, environment, *around):
        """Holds the socket, and starts the service as soon as somebody knocks; `around` is what the service is started by."""
        self.machine.path.chmod(0o711)  # as / is
        self.load_credentials()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        process = self.machine.start(self.name, "systemd-socket-activate", f"--listen={self.path}", "--fdname=arcmanager-gateway.socket",
                                     *around, *self.command(environment))
        wait_until(self.path.is_socket, "systemd-socket-activate listens")
        self.path.chmod(int(self.socket.last("SocketMode"), 8))
        if IS_ROOT:
            shutil.chown(self.path, self.socket.last("SocketUser"), self.socket.last("SocketGroup"))
        return process


def copy_credentials(sources, folder):
    """A copy of each file by its credential's name; of a folder, each file below it by that name and its own, but for links."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = 0
    for name, source in sources.items():
        # systemd does not start a service without a credential that it names.
        assert source.exists(), f"no {source}"
        files = {name: source}
        if source.is_dir():
            files = {f"{name}_{file.relative_to(source).as_posix().replace('/', '_')}": file
                     for file in source.rglob("*") if file.is_file() and not file.is_symlink()}
        for name, file in files.items():
            copy = folder / name
            copy.write_bytes(file.read_bytes())
            copy.chmod(0o400)
            total += copy.stat().st_size
    assert total <= 1 << 20, "systemd takes 1 MiB"


def install_gateway(folder):
    """The binary of the tests, where the unit looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GATEWAY, folder / "arcmanager-gateway")


def allowed_system_calls(unit):
    """The names that a unit's SystemCallFilter lets through: as systemd expands them."""
    allowed = set()
    for setting in unit.all("SystemCallFilter"):
        names = [name for word in setting.removeprefix("~").split() for name in system_calls(word)]
        allowed = allowed - set(names) if setting.startswith("~") else allowed | set(names)
    return allowed


def system_calls(word):
    if not word.startswith("@"):
        return [word]
    listed = subprocess.check_output(["systemd-analyze", "syscall-filter", "--no-pager", word], text=True)
    names = [line.strip() for line in listed.splitlines()[1:]]
    return [call for name in names if name and not name.startswith("#") for call in system_calls(name)]
