"""How a call ended is in its line of the log: behind nginx and HAProxy as we ship them, in both formats."""

import concurrent.futures
import http.client
import json
import re
import socket
import threading
import unittest

from fronts import start_haproxy, start_nginx
from machine import (
    BASE, CLIENT_ID, CLIENT_SECRET, GATEWAY, Browser, Machine, end_listening, free_port, new_key, serve_each, wait_until,
)

OWN = "/api/v4/own/"


class FarEnd:
    """In a DataHUB's place: answers what is below `OWN` as its name says."""

    def __init__(self):
        self.asked = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.ends = threading.Event()
        serve_each(self.listener, self.serve)

    def serve(self, client):
        with client:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (piece := client.recv(65536)):
                    return
                head += piece
            name = head.split(b" ")[1].decode().removeprefix(OWN)
            self.asked.add(name)
            try:
                if name == "whole":
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nwell")
                if name in ["broken", "stalled"]:
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
                if name in ["left", "not-taken"]:
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                    while not self.ends.is_set():
                        client.sendall(bytes(65536))
                if name in ["stalled", "silent"]:
                    # Until the gateway closes it.
                    client.recv(1)
            except OSError:
                pass

    def close(self):
        self.ends.set()
        end_listening(self.listener)


class Ends(unittest.TestCase):
    def test_a_line_says_how_its_call_ended_behind_each_front_in_each_format(self):
        cases = [(front, form) for front in [start_nginx, start_haproxy] for form in ["json", "text"]]
        with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
            outcomes = list(pool.map(lambda case: self.ends_behind(*case), cases))
        expected = {
            "whole": ("200", ""),
            "broken": ("200", "upstream_broke"),
            "stalled": ("200", "upstream_stalled"),
            "left": ("200", "client_gone"),
            "not-taken": ("200", "response_timeout"),
            "silent": ("499", "client_gone"),
        }
        for case, outcome in zip(cases, outcomes):
            with self.subTest(front=case[0].__name__, format=case[1]):
                self.assertEqual(outcome, expected)

    def ends_behind(self, start_front, form):
        machine, far = Machine(), FarEnd()
        try:
            port, path = free_port(), machine.path / "gateway.sock"
            keys = machine.write("keys", new_key())
            config = machine.write("gateway.toml", f"""
                server = {{ listen = ["unix:{path}"], public_url = "https://localhost:{port}" }}
                admin.listen = "none"
                log.format = "{form}"
                timeouts.idle = "1s"
                session.keys_file = "{keys}"
                [datahubs.a]
                url = "http://127.0.0.1:{far.port}"
                client_id = "{CLIENT_ID}"
                client_secret = "{CLIENT_SECRET}"
                anonymous = true
            """)
            machine.start("gateway", GATEWAY, "--config", config)
            wait_until(path.is_socket, "the gateway listens")
            browser = Browser(f"https://localhost:{port}", start_front(machine, port, path))
            return {name: self.end_of(machine, browser, far, name, form)
                    for name in ["whole", "broken", "stalled", "left", "not-taken", "silent"]}
        finally:
            far.close()
            machine.close()

    def end_of(self, machine, browser, far, name, form):
        """Status and code in the line of this call."""
        before = len(self.lines(machine, form))
        target = f"{BASE}/datahubs/a{OWN}{name}"
        if name == "silent":
            connection = browser.connect()
            connection.request("GET", target, headers={"X-CSRF": "1"})
            wait_until(lambda: name in far.asked, "the far end is asked")
            connection.close()
        else:
            response = browser.open("GET", target, [("X-CSRF", "1")])
            if name == "left":
                response.read(1000)
                response.close()
            elif name != "not-taken":
                try:
                    response.read()
                except (http.client.HTTPException, OSError):
                    pass
        lines = wait_until(lambda: self.lines(machine, form)[before:], f"a line about {name}")
        if name == "not-taken":
            response.close()
        assert len(lines) == 1, lines
        return lines[0]

    def lines(self, machine, form):
        """Status and code of each request in the log, whose last line may be half written."""
        lines = machine.log("gateway").split("\n")[:-1]
        if form == "json":
            read = [json.loads(line) for line in lines if line.startswith("{")]
            return [(str(line["status"]), line["code"]) for line in read if line["target"] == "access"]
        return re.findall(r'^INFO  request method="GET" route=\S+ datahub="a" status=(\d+)(?: code="(\w+)")? ', "\n".join(lines), re.M)


if __name__ == "__main__":
    unittest.main()
