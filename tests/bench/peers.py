"""Others that log people in at an OpenID provider and forward calls with a token: Apache with mod_auth_openidc, Envoy with its
OAuth2 filter. Both keep the session in a cookie, as the gateway does, and both are logged in for real at the test DataHUB.

Neither writes an access log here, and neither looks at what it forwards: they are spared what the gateway does beside.
"""

import importlib.util
import os
import secrets
import urllib.parse

from stage import LINKED, MEASURED, free_port, wait_for
from targets import HOST, Target, fetch


def start(stage, load, hub):
    """Those that are installed."""
    found = []
    if os.path.exists(f"{APACHE_MODULES}/mod_auth_openidc.so"):
        found.append(apache(stage, load, hub))
    if importlib.util.find_spec("envoy"):
        found.append(envoy(stage, load, hub))
    return found


def apache(stage, load, hub):
    """One process of the event MPM; the session in an encrypted cookie (`client-cookie`)."""
    port = free_port()
    folder = stage.path(f"apache-{port}")
    os.mkdir(folder)
    modules = "".join(f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so\n" for name in
                      ("mpm_event", "authn_core", "authz_core", "authz_user", "headers", "proxy", "proxy_http", "auth_openidc"))
    config = stage.write(f"apache-{port}.conf", f"""
{modules}
ServerRoot {folder}
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/log
LogLevel error
{PERSON if os.geteuid() == 0 else ""}
ServerName {HOST}
Listen 127.0.0.1:{port}
ListenBacklog 4096
ServerLimit 1
StartServers 1
ThreadLimit 1024
ThreadsPerChild 1024
MaxRequestWorkers 1024
AsyncRequestWorkerFactor 2
MaxConnectionsPerChild 0
KeepAlive On
KeepAliveTimeout 3600
MaxKeepAliveRequests 0
OIDCProviderMetadataURL http://127.0.0.1:{hub.port}/.well-known/openid-configuration
OIDCClientID bench
OIDCClientSecret {hub.secret}
OIDCProviderTokenEndpointAuth client_secret_basic
OIDCRedirectURI http://{HOST}/callback
OIDCScope "openid profile api"
OIDCPKCEMethod S256
OIDCCryptoPassphrase {secrets.token_urlsafe(32)}
OIDCSessionType client-cookie
OIDCSessionInactivityTimeout 86400
OIDCPassClaimsAs environment
<Location />
    AuthType openid-connect
    Require valid-user
    RequestHeader set Authorization "Bearer %{{OIDC_access_token}}e"
    RequestHeader unset Cookie
    ProxyPreserveHost On
    ProxyPass http://127.0.0.1:{load.plain}/ ttl=3600 keepalive=On flushpackets=off
</Location>
""")
    process = stage.start(["apache2", "-D", "FOREGROUND", "-f", config], core=MEASURED)
    wait_for(port, process)
    cookies = log_in(port)
    with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
        children = [int(pid) for pid in file.read().split()]
    return Target("Apache", port, [process.pid, *children], "", [{"Cookie": cookies}], process, takes_thousands=False)


def envoy(stage, load, hub):
    """One worker; the session in encrypted and signed cookies."""
    port = free_port()
    config = stage.write(f"envoy-{port}.yaml", f"""
static_resources:
  secrets:
  - {{name: token, generic_secret: {{secret: {{inline_string: "{hub.secret}"}}}}}}
  - {{name: hmac, generic_secret: {{secret: {{inline_string: "{secrets.token_urlsafe(32)}"}}}}}}
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          stream_idle_timeout: 3600s
          common_http_protocol_options: {{idle_timeout: 3600s}}
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: datahub, timeout: 0s}}}}]}}
          http_filters:
          - name: envoy.filters.http.oauth2
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2
              config:
                token_endpoint: {{cluster: hub, uri: "http://127.0.0.1:{hub.port}/oauth/token", timeout: 5s}}
                authorization_endpoint: "http://127.0.0.1:{hub.port}/oauth/authorize"
                redirect_uri: "http://{HOST}/callback"
                redirect_path_matcher: {{path: {{exact: /callback}}}}
                signout_path: {{path: {{exact: /signout}}}}
                forward_bearer_token: true
                use_refresh_token: false
                auth_scopes: [openid, profile, api]
                auth_type: BASIC_AUTH
                credentials: {{client_id: bench, token_secret: {{name: token}}, hmac_secret: {{name: hmac}}}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - {cluster("datahub", load.plain)}
  - {cluster("hub", hub.port)}
""")
    binary = os.path.join(importlib.util.find_spec("envoy").submodule_search_locations[0], "_bin", "envoy")
    command = [binary, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    process = stage.start(command, core=MEASURED)
    wait_for(port, process)
    return Target("Envoy", port, [process.pid], "", [{"Cookie": log_in(port)}], process)


def cluster(name, port):
    limits = "max_connections: 4096, max_pending_requests: 4096, max_requests: 4096"
    return (f"{{name: {name}, type: STATIC, connect_timeout: 5s, circuit_breakers: {{thresholds: [{{{limits}}}]}}, load_assignment: "
            f"{{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: "
            f"{{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}}}")


def log_in(port):
    """The cookies of a session, after the way that a browser takes."""
    cookies = {}

    def visit(path):
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()), "Accept": "text/html"}
        response = fetch(f"http://127.0.0.1:{port}{path}", headers=headers)
        for cookie in response.headers.get_all("Set-Cookie") or []:
            name, value = cookie.split(";")[0].split("=", 1)
            cookies[name] = value
        return response

    asked = visit(LINKED)
    signed_in = fetch(asked.headers["Location"] + "&user=testuser", data=b"")
    callback = urllib.parse.urlsplit(signed_in.headers["Location"])
    back = visit(f"{callback.path}?{callback.query}")
    assert back.status in (302, 303), f"the callback was answered with {back.status}: {back.read()[:200]}"
    spent = ("state", "nonce", "verifier")  # of the login that is over
    return "; ".join(f"{name}={value}" for name, value in cookies.items() if not any(word in name.lower() for word in spent))


APACHE_MODULES = "/usr/lib/apache2/modules"
PERSON = "User nobody\nGroup nogroup"
