"""The ARCmanager's old backend, as far as the gateway has to do with it: a FastAPI application that opens its cookie as it does.

Run as the original is, by gunicorn with four of uvicorn's workers (`GUNICORN` of tests/deploy/machine.py). Keys are in its environment by the original's names,
the DataHUBs' addresses and a folder for pieces of uploads by names of ours.
"""

import asyncio
import hashlib
import json
import os
import pathlib
import typing
import urllib.request

import jwt
from cryptography.fernet import Fernet
from fastapi import APIRouter, Cookie, FastAPI, File, Form, HTTPException, Request, Response, UploadFile

PUBLIC_KEY = f"-----BEGIN PUBLIC KEY-----\n{os.environ['PUBLIC_RSA']}\n-----END PUBLIC KEY-----"
FERNET = Fernet(os.environ["FERNET"])
TARGETS = json.loads(os.environ["BACKEND_TARGETS"])
FOLDER = pathlib.Path(os.environ["BACKEND_FOLDER"])

app = FastAPI()
routes = APIRouter(prefix="/arcmanager/api/v1")
Data = typing.Annotated[str | None, Cookie()]


def get_data(data):
    """As `getData` of the original: one call for both algorithms, then Fernet for both tokens."""
    try:
        opened = jwt.decode(data, PUBLIC_KEY, algorithms=["RS256", "HS256"])
        return {
            "gitlab": FERNET.decrypt(opened["gitlab"].encode()).decode(),
            "target": opened["target"],
            "refresh": FERNET.decrypt(opened["refresh"].encode()).decode(),
            "claims": sorted(opened),
        }
    except Exception:
        raise HTTPException(401, "You are not logged in!") from None


def ask(token, path):
    request = urllib.request.Request(TARGETS[token["target"]] + path, headers={"Authorization": f"Bearer {token['gitlab']}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def seen(request, data):
    """What came, and whose token it is; the token itself is told by its hash."""
    token = get_data(data)
    return {
        "user": ask(token, "/api/v4/user")["username"], "target": token["target"], "claims": token["claims"],
        "refresh": hashlib.sha256(token["refresh"].encode()).hexdigest(), "raw": request.scope["raw_path"].decode(),
        "query": request.scope["query_string"].decode(), "cookies": sorted(request.cookies), "pid": os.getpid(),
    }


@routes.get("/projects/arc_list")
@routes.head("/projects/arc_list")
def arc_list(request: Request, response: Response, data: Data = None):
    response.headers["total-pages"] = "7"
    return seen(request, data)


@routes.get("/projects/public_arcs")
def public_arcs(request: Request, target: str, response: Response):
    response.headers["total-pages"] = "1"
    if target not in TARGETS:
        raise HTTPException(404, "No such DataHUB")
    return {"projects": [], "target": target, "cookies": sorted(request.cookies)}


@routes.get("/projects/arc_path")
@routes.get("/projects/getBanner")
@routes.get("/user/getUser")
@routes.get("/validate/validateArc")
@routes.get("/search/getArcJson")
@routes.get("/tnt/getSheets")
def read(request: Request, data: Data = None):
    return seen(request, data)


@routes.patch("/projects/syncAssay")
@routes.put("/tnt/saveSheet")
@routes.put("/user/editUser")
@routes.post("/projects/createArc")
async def write(request: Request, data: Data = None):
    body = await request.json()
    return await asyncio.to_thread(seen, request, data) | {"body": body}


@routes.delete("/fnf/deleteFile")
def delete(request: Request, data: Data = None):
    raise HTTPException(404, seen(request, data)["user"] + " has no such file")


@routes.get("/tnt/getTerms")
@routes.get("/tnt/getTermSuggestions")
@routes.get("/tnt/getTemplates")
def terms(request: Request):
    return {"cookies": sorted(request.cookies)}


@routes.post("/fnf/uploadFile")
async def upload(
    request: Request, response: Response, file: typing.Annotated[UploadFile, File()], name: typing.Annotated[str, Form()],
    chunkNumber: typing.Annotated[int, Form()], totalChunks: typing.Annotated[int, Form()], data: Data = None,
):
    """Keeps pieces on disk, for whichever worker gets the last one; says which is missing, as the original does."""
    token = get_data(data)
    digest, size = hashlib.sha256(), 0
    while piece := await file.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    (FOLDER / f"{name}.{chunkNumber}").write_text(json.dumps({"size": size, "sha256": digest.hexdigest(), "pid": os.getpid()}))
    if chunkNumber + 1 < totalChunks:
        response.status_code = 202
        return f"Received chunk {chunkNumber + 1} of {totalChunks}"
    pieces = [FOLDER / f"{name}.{number}" for number in range(totalChunks)]
    for number, path in enumerate(pieces):
        if not path.exists():
            raise HTTPException(409, "A piece is missing", headers={"missing-package": str(number)})
    user = await asyncio.to_thread(ask, token, "/api/v4/user")
    return {"user": user["username"], "pieces": [json.loads(path.read_text()) for path in pieces]}


app.include_router(routes)
