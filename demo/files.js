// A project's files: the tree, the file that is open, and the upload.

import { el, load } from "./dom.js";
import { EDITS, fileEditor } from "./editor.js";
import { gateway } from "./gateway.js";
import { fileTree } from "./tree.js";
import { hasUnsaved } from "./unsaved.js";
import { uploadPanel } from "./upload.js";

const PER_PAGE = 100;

/** `open` shows the file of a route as soon as the tree is there. */
export function filesRoom(project, signal) {
  const { datahub, id, branch } = project;
  const editor = fileEditor(project, signal);
  const upload = uploadPanel(project, signal, afterUpload);
  const tree = fileTree({ loadFolder, fileHref, onFolder: upload.into });
  const element = el("div", { class: "columns" },
    el("section", { class: "side panel", "aria-label": "Files" }, el("h2", {}, "Files"), tree.element),
    editor.element,
    upload.element);
  let { isEmpty } = project;
  let wanted;
  const isThere = load(tree.element, tree.load);
  return { element, open };

  async function open(route) {
    wanted = route;
    await isThere;
    if (wanted !== route) return;
    tree.select(route.path);
    if (!route.path) return editor.showNothing();
    upload.into(route.path.split("/").slice(0, -1).join("/"));
    editor.open(route.path);
  }

  async function loadFolder(path, page) {
    if (isEmpty) return { entries: [] };
    const query = new URLSearchParams({ path, ref: branch, per_page: PER_PAGE, page });
    const response = await gateway.call(datahub, `projects/${id}/repository/tree?${query}`, { signal });
    return { entries: await response.json(), nextPage: response.headers.get("X-Next-Page") };
  }

  function fileHref(path) {
    return `#/${datahub}/${id}?${new URLSearchParams({ path })}`;
  }

  async function afterUpload(folder, path) {
    isEmpty = false;
    if (path === wanted.path && !hasUnsaved(EDITS)) editor.open(path);
    await tree.reload(folder);
    tree.select(wanted.path);
  }
}
