"""Starts one program several times on the sockets that systemd passed, as several units with one `Sockets=` are.

usage: four.py COUNT FOLDER PROGRAM ARGUMENT…  Each one's output goes into FOLDER/gateway-N.log, its process id into
FOLDER/gateway-N.pid. SIGTERM ends them all.
"""

import os
import pathlib
import signal
import sys

count, folder, program = int(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]
children = []
for number in range(1, count + 1):
    child = os.fork()
    if child == 0:
        # The receiver compares it with its own id, so it must be set by the very process that becomes it.
        os.environ["LISTEN_PID"] = str(os.getpid())
        log = os.open(folder / f"gateway-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execv(program[0], program)
    (folder / f"gateway-{number}.pid").write_text(str(child))
    children.append(child)


def end(*_):
    for child in children:
        os.kill(child, signal.SIGTERM)


signal.signal(signal.SIGTERM, end)
while children:
    child, _ = os.wait()
    children.remove(child)
