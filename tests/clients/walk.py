"""python-gitlab, unmodified: what an app does, told as JSON. On standard input: the address, the headers, a name."""

import json
import sys

import gitlab
import requests

asked = json.load(sys.stdin)
session = requests.Session()
session.headers.update(asked["headers"])
client = gitlab.Gitlab(asked["url"], session=session)
name, seen = asked["name"], {}

seen["offset"] = [project.path_with_namespace for project in client.projects.list(iterator=True, per_page=7)]
keyset = client.projects.list(iterator=True, pagination="keyset", order_by="id", per_page=7)
seen["keyset"] = [project.id for project in keyset]
page = client.projects.list(page=2, per_page=5, get_all=False, iterator=True)
seen["page"] = [page.current_page, page.prev_page, page.next_page, page.per_page, page.total_pages, page.total]

project = client.projects.get("lu98be/testarc")
seen["project"] = [project.id, project.web_url, project.default_branch]
seen["tree"] = [entry["path"] for entry in project.repository_tree(recursive=True, iterator=True, per_page=3)]
readme = project.files.get("README.md", ref="main")
seen["readme"] = [readme.decode().decode(), readme.size]
try:
    project.files.get("no/such file.md", ref="main")
except gitlab.exceptions.GitlabGetError as error:
    seen["missing"] = [error.response_code, error.error_message]

path = f"runs/{name} ä+b.md"
project.files.create({"file_path": path, "branch": "main", "content": "one", "commit_message": "Create"})
file = project.files.get(path, ref="main")
file.content = "two"
file.save(branch="main", commit_message="Update")
seen["updated"] = project.files.raw(path, ref="main").decode()
commit = project.commits.create({"branch": "main", "commit_message": "Move it", "actions": [
    {"action": "move", "file_path": f"runs/{name}.md", "previous_path": path, "content": "three"}]})
seen["committed"] = [commit.title, project.files.raw(f"runs/{name}.md", ref="main").decode()]
project.files.delete(f"runs/{name}.md", branch="main", commit_message="Delete")

seen["uploaded"] = project.upload("naïve ü.pdf", filedata=bytes(range(256)) * 50)["alt"]
seen["trace"] = b"".join(project.jobs.get(9, lazy=True).trace(streamed=True, iterator=True)).decode()
print(json.dumps(seen))
