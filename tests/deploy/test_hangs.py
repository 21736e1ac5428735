"""A thread that hangs does not keep the process from ending: held by ptrace, as a defect or a file server that is away would."""

import contextlib
import ctypes
import errno
import os
import pathlib
import signal
import time
import unittest

from machine import CLIENT_ID, CLIENT_SECRET, GATEWAY, Machine, accepts, free_port, new_key, wait_until

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH = 16
WALL = 0x40000000


class Hangs(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.close)
        port = free_port()
        keys = self.machine.write("keys", new_key())
        config = self.machine.write("gateway.toml", f"""
            server = {{ listen = ["127.0.0.1:{port}"], public_url = "http://localhost:{port}", workers = 2, shutdown_timeout = "1s" }}
            admin.listen = "none"
            session.keys_file = "{keys}"
            [datahubs.a]
            url = "http://127.0.0.1:9"
            client_id = "{CLIENT_ID}"
            client_secret = "{CLIENT_SECRET}"
        """)
        self.gateway = self.machine.start("gateway", GATEWAY, "--config", config)
        wait_until(lambda: accepts(port), "the gateway listens")

    def threads(self, name):
        """Those with this name. Some last for a moment only."""
        tasks = pathlib.Path(f"/proc/{self.gateway.pid}/task").iterdir()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return [int(task.name) for task in tasks if (task / "comm").read_text().strip() == name]
        return []

    def hold(self, name):
        """Stops one of the threads with this name."""
        thread = wait_until(lambda: self.threads(name), f"a thread {name}")[0]
        return self.stop(thread) or self.fail(f"{name} has ended")

    def hold_reader(self):
        """Stops the thread that reads the files anew, while it does."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            self.gateway.send_signal(signal.SIGHUP)
            soon = time.monotonic() + 0.5
            while time.monotonic() < soon:
                for thread in self.threads("reload"):
                    if self.stop(thread):
                        return thread
        self.fail("no file was read in 20 s")

    def stop(self, thread):
        """Stops a thread; None if it has ended meanwhile."""
        if LIBC.ptrace(PTRACE_ATTACH, thread, None, None) != 0:
            if ctypes.get_errno() == errno.ESRCH:
                return None
            self.fail(f"ptrace is needed here, and not permitted ({os.strerror(ctypes.get_errno())}): run this as root, or with "
                      "kernel.yama.ptrace_scope at most 1 and a container's seccomp profile that has ptrace")
        os.waitpid(thread, WALL)
        self.addCleanup(self.let_go, thread)
        return thread

    def let_go(self, thread):
        """The process is not gone before whoever holds one of its threads has heard of that thread's end."""
        self.gateway.kill()
        try:
            while True:
                os.waitpid(thread, WALL)
        except ChildProcessError:
            pass

    def seconds_to_end(self, thread):
        begun = time.monotonic()
        self.gateway.terminate()

        def has_ended():
            try:
                os.waitpid(thread, WALL | os.WNOHANG)
            except ChildProcessError:
                pass
            return self.gateway.poll() is not None

        wait_until(has_ended, "the end of the process", 20)
        return time.monotonic() - begun

    def test_a_worker_that_hangs_is_given_up(self):
        thread = self.hold("actix-rt|system")
        self.assertLess(self.seconds_to_end(thread), 10)
        self.assertEqual(self.gateway.returncode, 1, self.machine.log("gateway"))
        self.assertRegex(self.machine.log("gateway"), r'"level":"WARN"[^\n]*workers have not ended in time[^\n]*"hung":1')

    def test_a_file_that_cannot_be_read_to_its_end_is_not_waited_for(self):
        thread = self.hold_reader()
        self.assertLess(self.seconds_to_end(thread), 5)
        self.assertEqual(self.gateway.returncode, 0, self.machine.log("gateway"))


if __name__ == "__main__":
    unittest.main()
