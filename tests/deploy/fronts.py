"""nginx and HAProxy as we ship them, before a gateway that listens on a unix socket, or before several on ports."""

import itertools
import os
import re
import shutil
import subprocess

from machine import ROOT, accepts, free_port, wait_until
from units import SHIPPED, Unit


def make_certificate(machine):
    """For localhost; gives the certificate and its key."""
    certificate, key = machine.path / "certificate.pem", machine.path / "certificate.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    return certificate, key


def shipped(path, changes):
    """A configuration of ours, with what every operator changes changed."""
    text = (ROOT / "config" / path).read_text()
    for old, new in changes:
        assert old in text, f"config/{path} has no {old!r} to replace"
        text = text.replace(old, new)
    return text


def behind(text, socket, upstream):
    """A configuration of ours with another upstream: a socket's path in our `socket`'s place, or host and port of several gateways in
    the lines that stand there for them."""
    if not isinstance(upstream, list):
        assert socket in text
        return text.replace(socket, f"{socket[:5]}{upstream}" if str(upstream).startswith("/") else upstream)
    text, count = re.subn(r"(?m)^    server .*/run/arcmanager-gateway\.sock;?\n", "", text)
    assert count == 1, text
    text = re.sub(r"(?m)^    # (?=(server|zone|option httpchk|http-check) )", "    ", text)
    for example, address in itertools.zip_longest(["192.0.2.11:8000", "192.0.2.12:8000"], upstream):
        assert example in text, f"no line for {address}"
        text = text.replace(example, address) if address else re.sub(rf"(?m)^.*{re.escape(example)}.*\n", "", text)
    return text


def give_to_haproxy(socket):
    """What config/systemd/haproxy.conf has systemd do."""
    shutil.chown(socket, "root", Unit(SHIPPED / "haproxy.conf").last("SocketGroup"))
    socket.chmod(0o660)


def start_haproxy(machine, port, upstream):
    """HAProxy on this port; gives the certificate to trust. Where root runs the test, root starts it, and it goes on as Debian's
    user, which must be let in."""
    certificate, key = make_certificate(machine)
    if os.geteuid() == 0:
        machine.path.chmod(0o711)  # as / is
        if not isinstance(upstream, list):
            give_to_haproxy(upstream)
    config = machine.write("haproxy.cfg", haproxy_config(machine, port, upstream, certificate, key))
    subprocess.run(["haproxy", "-c", "-q", "-f", config], check=True)
    machine.start("haproxy", "haproxy", "-db", "-f", config)
    wait_until(lambda: accepts(port), "HAProxy listens")
    return str(certificate)


def haproxy_config(machine, port, upstream, certificate, key):
    """The file that we ship, with what each operator changes changed. Only root can start it as somebody else."""
    both = machine.write("haproxy.pem", certificate.read_text() + key.read_text())
    return behind(shipped("haproxy/haproxy.cfg", [
        ("bind :80", f"bind 127.0.0.1:{free_port()}"),
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("/etc/ssl/arcmanager/haproxy.pem", str(both)),
        ("log /dev/log local0", "log stdout format raw local0"),
        *([] if os.geteuid() == 0 else [("    user haproxy\n    group haproxy\n", "")]),
    ]), "unix@/run/arcmanager-gateway.sock", upstream)


def start_nginx(machine, port, upstream, host="localhost", others=None, others_port=None):
    """nginx with the configuration that we ship, on this port; gives the certificate to trust. `upstream` is a socket's path,
    host and port, or a list of the latter. What `others` answers stands at all other hosts, below `/other/` at this one, and at
    `others_port`."""
    certificate, key = make_certificate(machine)
    site = nginx_site(machine, port, upstream, certificate, key, host)
    elsewhere = ""
    if others:
        here = "    location = / {\n"
        assert here in site
        site = site.replace(here, f"    location /other/ {{ proxy_pass http://{others}; }}\n{here}")
        elsewhere = f"""
            server {{
                listen 127.0.0.1:{port} ssl http2 default_server;
                {f"listen 127.0.0.1:{others_port} ssl http2;" if others_port else ""}
                ssl_certificate {certificate};
                ssl_certificate_key {key};
                location / {{ proxy_pass http://{others}; proxy_set_header Host $http_host; }}
            }}"""
    machine.write("site.conf", site)
    main = nginx_main(machine, f"include site.conf; {elsewhere}")
    subprocess.run(["nginx", "-t", "-q", "-p", machine.path, "-c", main], check=True)
    machine.start("nginx", "nginx", "-p", machine.path, "-c", main)
    wait_until(lambda: accepts(port), "nginx listens")
    return str(certificate)


def nginx_site(machine, port, upstream, certificate, key, host="localhost"):
    """The file that we ship, with what each operator changes changed."""
    return behind(shipped("nginx/arcmanager-gateway.conf", [
        ("    listen 80;\n", f"    listen 127.0.0.1:{free_port()};\n"),
        ("    listen [::]:80;\n", ""),
        ("    listen 443 ssl http2;\n", f"    listen 127.0.0.1:{port} ssl http2;\n"),
        ("    listen [::]:443 ssl http2;\n", ""),
        ("server_name arcmanager.example.org", f"server_name {host}"),
        ("/etc/ssl/arcmanager/fullchain.pem", str(certificate)),
        ("/etc/ssl/arcmanager/privkey.pem", str(key)),
        ("/var/log/nginx/arcmanager-gateway.log", str(machine.path / "nginx-access.log")),
    ]), "unix:/run/arcmanager-gateway.sock", upstream)


def nginx_main(machine, http):
    """What stands around a site, for whoever runs the test."""
    # Workers as whoever runs the test: the socket and the folder are theirs.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"{kind}_temp_path {machine.path}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    return machine.write("nginx.conf", f"""
        {user}
        daemon off;
        worker_processes 2;
        pid {machine.path}/nginx.pid;
        error_log {machine.path}/nginx-error.log notice;
        events {{}}
        http {{ {temporary} {http} }}
    """)
