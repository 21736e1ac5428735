"""nginx and HAProxy as we ship them, before a gateway that listens on a unix socket."""

import os
import subprocess

from machine import ROOT, accepts, free_port, wait_until


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


def start_haproxy(machine, port, upstream):
    """HAProxy on this port; gives the certificate to trust."""
    certificate, key = make_certificate(machine)
    both = machine.write("haproxy.pem", certificate.read_text() + key.read_text())
    config = machine.write("haproxy.cfg", shipped("haproxy/haproxy.cfg", [
        ("bind :80", f"bind 127.0.0.1:{free_port()}"),
        ("bind :443", f"bind 127.0.0.1:{port}"),
        ("/etc/ssl/arcmanager/haproxy.pem", str(both)),
        ("unix@/run/arcmanager-gateway.sock", f"unix@{upstream}"),
        ("log /dev/log local0", "log stdout format raw local0"),
    ]))
    subprocess.run(["haproxy", "-c", "-q", "-f", config], check=True)
    machine.start("haproxy", "haproxy", "-db", "-f", config)
    wait_until(lambda: accepts(port), "HAProxy listens")
    return str(certificate)


def start_nginx(machine, port, upstream, host="localhost", others=None, others_port=None):
    """nginx with the configuration that we ship, on this port; gives the certificate to trust. `upstream` is a socket's path,
    or host and port. What `others` answers stands at all other hosts, below `/other/` at this one, and at `others_port`."""
    certificate, key = make_certificate(machine)
    machine.write("site.conf", shipped("nginx/arcmanager-gateway.conf", [
        ("    listen 80;\n", f"    listen 127.0.0.1:{free_port()};\n"),
        ("    listen [::]:80;\n", ""),
        ("    listen 443 ssl http2;\n", f"    listen 127.0.0.1:{port} ssl http2;\n"),
        ("    listen [::]:443 ssl http2;\n", ""),
        ("server_name arcmanager.example.org", f"server_name {host}"),
        ("unix:/run/arcmanager-gateway.sock", f"unix:{upstream}" if str(upstream).startswith("/") else upstream),
        ("/etc/ssl/arcmanager/fullchain.pem", str(certificate)),
        ("/etc/ssl/arcmanager/privkey.pem", str(key)),
        ("/var/log/nginx/arcmanager-gateway.log", str(machine.path / "nginx-access.log")),
        *([("    location = / {\n", f"    location /other/ {{ proxy_pass http://{others}; }}\n    location = / {{\n")] if others else []),
    ]))
    elsewhere = f"""
        server {{
            listen 127.0.0.1:{port} ssl http2 default_server;
            {f"listen 127.0.0.1:{others_port} ssl http2;" if others_port else ""}
            ssl_certificate {certificate};
            ssl_certificate_key {key};
            location / {{ proxy_pass http://{others}; proxy_set_header Host $http_host; }}
        }}""" if others else ""
    # Workers as whoever runs the test: the socket and the folder are theirs.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"{kind}_temp_path {machine.path}/{kind};" for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    main = machine.write("nginx.conf", f"""
        {user}
        daemon off;
        worker_processes 2;
        pid {machine.path}/nginx.pid;
        error_log {machine.path}/nginx-error.log notice;
        events {{}}
        http {{ {temporary} include site.conf; {elsewhere} }}
    """)
    subprocess.run(["nginx", "-t", "-q", "-p", machine.path, "-c", main], check=True)
    machine.start("nginx", "nginx", "-p", machine.path, "-c", main)
    wait_until(lambda: accepts(port), "nginx listens")
    return str(certificate)
