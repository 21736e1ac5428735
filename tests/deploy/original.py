"""The ARCmanager's old backend before the gateway replaces it: the application behind the bridge, with a login of its own.

Its login does what the original's does with cookies. Keys and clients come from `.env`, whose variables are in its environment.
"""

import json
import os
import pathlib
import secrets
import sys
import time
import urllib.parse
import urllib.request

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "clients"))

import jwt  # noqa: E402
from backend import FERNET, TARGETS, app  # noqa: E402
from fastapi import APIRouter, Request, Response  # noqa: E402
from fastapi.responses import RedirectResponse  # noqa: E402

ORIGIN = os.environ["BACKEND_ORIGIN"]
PRIVATE_KEY = f"-----BEGIN RSA PRIVATE KEY-----\n{os.environ['PRIVATE_RSA']}\n-----END RSA PRIVATE KEY-----"
STRICT = {"secure": True, "samesite": "strict"}

login = APIRouter(prefix="/arcmanager/api/v1/auth")


def client(datahub):
    return {name: os.environ[f"{datahub.upper()}_{name.upper()}"] for name in ("client_id", "client_secret")}


def redirect_uri(datahub):
    return f"{ORIGIN}/arcmanager/api/v1/auth/callback?datahub={datahub}"


@login.get("/login")
def begin(datahub: str):
    state = secrets.token_urlsafe(16)
    query = {"response_type": "code", "client_id": client(datahub)["client_id"], "redirect_uri": redirect_uri(datahub),
             "scope": "openid profile api", "state": state}
    answer = RedirectResponse(f"{TARGETS[datahub]}/oauth/authorize?{urllib.parse.urlencode(query)}", 302)
    answer.set_cookie("session", state, httponly=True)
    return answer


@login.get("/callback")
def end(request: Request, datahub: str, code: str, state: str):
    assert request.cookies["session"] == state
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri(datahub), **client(datahub)}
    with urllib.request.urlopen(f"{TARGETS[datahub]}/oauth/token", urllib.parse.urlencode(form).encode(), timeout=20) as told:
        tokens = json.load(told)
    sealed = {name: FERNET.encrypt(tokens[f"{kind}_token"].encode()).decode() for name, kind in [("gitlab", "access"), ("refresh", "refresh")]}
    answer = RedirectResponse(f"{ORIGIN}/arcmanager/app/index.html")
    data = jwt.encode({**sealed, "target": datahub}, PRIVATE_KEY, algorithm="RS256")
    answer.set_cookie("data", data, httponly=True, path="/arcmanager/api", **STRICT)
    for name, value in [("logged_in", "true"), ("timer", str(time.time())), ("username", "user")]:
        answer.set_cookie(name, value, **STRICT)
    answer.delete_cookie("session")
    return answer


@login.get("/logout")
def logout():
    answer = Response("logout successful", media_type="text/plain")
    answer.delete_cookie("data", path="/arcmanager/api")
    for name in ["logged_in", "timer", "username"]:
        answer.delete_cookie(name)
    return answer


app.include_router(login)
