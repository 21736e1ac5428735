"""What is measured: the gateway, and beside it nginx and HAProxy as bare reverse proxies. One worker each."""

import dataclasses
import os
import secrets
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from stage import FILE, MEASURED, free_port, wait_for

BASE = "/arcmanager/api/v1"
HOST = "localhost:8000"
BROWSER = {
    "Host": HOST,
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
    "Accept": "application/json, text/plain, */*",
    "Accept-Language": "de,en-US;q=0.7,en;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": f"http://{HOST}/arcmanager/app/",
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin",
}


@dataclasses.dataclass
class Target:
    """A proxy that runs."""

    name: str
    port: int
    pids: list
    prefix: str  # before a DataHUB's path
    people: list  # what the requests of each person carry beside the browser's own fields
    process: subprocess.Popen
    takes_thousands: bool = True  # of connections, with the file descriptors that a process gets here

    def asked(self, path, method="GET", more=None):
        """An order's target: this one, sent this request."""
        def request(person):
            fields = {**BROWSER, **person, **(more or {})}
            lines = [f"{method} {self.prefix}{path} HTTP/1.1"] + [f"{name}: {value}" for name, value in fields.items()]
            return "\r\n".join(lines) + "\r\n\r\n"
        return {"name": self.name, "port": self.port, "requests": [request(person) for person in self.people], "pids": self.pids}

    def asked_to_take(self, length):
        return self.asked(FILE % length, "PUT", {"Content-Length": length, "Content-Type": "application/octet-stream"})


# One person has an eighth of the places at a DataHUB: so many share a thousand connections.
PEOPLE = 16

# The bare proxies get the same request, and the token that the gateway puts there in their place.
BARE = {"Authorization": "Bearer " + "0" * 64, "Cookie": "__Host-Http-sid-bench=" + "A" * 22 + "; __Host-Http-session-bench=" + "B" * 198}


def nginx(stage, load, with_tls=False, *, name="nginx", kept=1024):
    """No access log, nothing buffered to disk, kept connections on both sides; large files pass without being buffered."""
    port = free_port()
    folder = stage.path(f"nginx-{port}")
    os.mkdir(folder)
    scratch = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    trust = f"proxy_ssl_trusted_certificate {load.ca_file}; proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_protocols TLSv1.3;"
    config = stage.write(f"nginx-{port}.conf", f"""
        worker_processes 1; daemon off; master_process off; pid {folder}/pid; error_log {folder}/log warn;
        worker_rlimit_nofile 20000;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 3600s; client_max_body_size 0; {scratch}
            upstream datahub {{ server 127.0.0.1:{load.tls if with_tls else load.plain};
                keepalive {kept}; keepalive_requests 1000000000; keepalive_timeout 3600s; }}
            proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
            {trust if with_tls else ""}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location / {{ proxy_pass {"https" if with_tls else "http"}://datahub; }}
                location ~ /packages/ {{ proxy_pass {"https" if with_tls else "http"}://datahub;
                    proxy_buffering off; proxy_request_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k; client_body_buffer_size 64k; }}
            }}
        }}""")
    process = stage.start(["nginx", "-c", config], core=MEASURED)
    wait_for(port, process)
    return Target(name, port, [process.pid], "", [BARE], process)


def haproxy(stage, load, with_tls=False):
    """No log, one thread, connections to the DataHUB shared by all."""
    port = free_port()
    server = f"127.0.0.1:{load.tls} ssl verify required verifyhost localhost ca-file {load.ca_file}" if with_tls else f"127.0.0.1:{load.plain}"
    config = stage.write(f"haproxy-{port}.cfg", f"""
        global
            nbthread 1
            maxconn 9900
            ssl-default-server-options ssl-min-ver TLSv1.3
        defaults
            mode http
            option http-keep-alive
            http-reuse always
            timeout connect 5s
            timeout client 3600s
            timeout server 3600s
            timeout http-keep-alive 3600s
        frontend all
            bind 127.0.0.1:{port} backlog 4096
            default_backend datahub
        backend datahub
            server datahub {server} pool-max-conn 4096 pool-purge-delay 3600s
        """.replace("\n        ", "\n"))
    process = stage.start(["haproxy", "-db", "-f", config], core=MEASURED)
    wait_for(port, process)
    return Target("HAProxy", port, [process.pid], "", [BARE], process, takes_thousands=False)


class Hub:
    """The test DataHUB, for logins: an OpenID provider like GitLab."""

    def __init__(self, stage):
        self.port, self.secret = free_port(), secrets.token_urlsafe(32)
        command = [os.path.join(stage.tools, "datahub"), "--name", "Bench", "--listen", f"127.0.0.1:{self.port}", "--client-id", "bench",
                   "--people", str(PEOPLE)]
        process = stage.start(command, env={**os.environ, "DATAHUB_CLIENT_SECRET": self.secret})
        wait_for(self.port, process)


def gateway(stage, load, hub, binary, name="gateway", *, people=None, wrapper=(), core=MEASURED, **settings):
    """With all its checks, its log (a file) and its metrics on, after real logins unless `people` are logged in already."""
    config, port, _ = gateway_config(stage, load, hub, binary, **settings)
    process = start_gateway(stage, binary, config, wrapper, core)
    wait_for(port, process)
    people = people or [{"Cookie": log_in(port, f"person{number}")} for number in range(1, PEOPLE + 1)]
    return Target(name, port, [process.pid], f"{BASE}/datahubs/bench", people, process)


def start_gateway(stage, binary, config, wrapper=(), core=MEASURED):
    with open(f"{config}.log", "wb") as log:
        return stage.start([*wrapper, binary, "--config", config], core=core, stdout=log)


def gateway_config(stage, load, hub, binary, *, with_tls=False, workers=1, datahubs=1, keys=None):
    """A file's path, and the ports that it names: for browsers, for operators."""
    port, admin = free_port(), free_port()
    url = f"https://localhost:{load.tls}" if with_tls else f"http://127.0.0.1:{load.plain}"
    section = f"""
        url = "{url}"
        issuer = "http://127.0.0.1:{hub.port}"
        client_id = "bench"
        client_secret = "{hub.secret}"
        """ + (f'ca_file = "{load.ca_file}"' if with_tls else "")
    sections = "".join(f"\n[datahubs.{id}]{section}" for id in ["bench", *(f"other{number}" for number in range(1, datahubs))])
    config = stage.write(f"gateway-{port}.toml", f"""
        server.listen = ["127.0.0.1:{port}"]
        server.workers = {workers}
        admin.listen = "127.0.0.1:{admin}"
        session.keys = {list(keys or [new_key(binary)])}
        {sections}
        """)
    return config, port, admin


def new_key(binary):
    return subprocess.check_output([binary, "key"], text=True).strip()


def log_in(port, user="testuser"):
    """The cookies of a session."""
    login = fetch(f"http://127.0.0.1:{port}{BASE}/auth/login?datahub=bench")
    pending = login.headers["Set-Cookie"].split(";")[0]
    signed_in = fetch(login.headers["Location"] + f"&user={user}", data=b"")
    callback = urllib.parse.urlsplit(signed_in.headers["Location"])
    back = fetch(f"http://127.0.0.1:{port}{callback.path}?{callback.query}", headers={"Cookie": pending})
    cookies = [cookie.split(";")[0] for cookie in back.headers.get_all("Set-Cookie")]
    return "; ".join(cookie for cookie in cookies if not cookie.startswith("__Host-Http-login"))


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def fetch(url, data=None, headers=None):
    """The answer, whatever its status, and no redirect followed."""
    try:
        return urllib.request.build_opener(Stay).open(urllib.request.Request(url, data, {"Host": HOST, **(headers or {})}))
    except urllib.error.HTTPError as response:
        return response
