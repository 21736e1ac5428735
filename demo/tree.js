// A file tree that loads a folder when it is first opened; nested lists of buttons (folders) and links (files).

import { announce, el, icon, skeleton } from "./dom.js";

/**
 * `loadFolder(path, page)` resolves to `{ entries, nextPage }`, `fileHref(path)` is where a file leads, and
 * `onFolder(path)` is told the folder that the user is in now; "" is the root.
 */
export function fileTree({ loadFolder, fileHref, onFolder }) {
  const root = el("ul", { "data-folder": "" });
  const element = el("div", { id: "tree" });
  return { element, load, select, reload };

  async function load() {
    element.replaceChildren(root);
    await fill(root);
  }

  /** Opens the folders above a file and marks it. */
  async function select(path) {
    root.querySelector("[aria-current]")?.removeAttribute("aria-current");
    const names = path.split("/");
    for (let depth = 1; depth < names.length; depth++) {
      const folder = item(names.slice(0, depth).join("/"));
      if (folder) await expand(folder);
    }
    item(path)?.setAttribute("aria-current", "page");
  }

  async function reload(folder) {
    const list = folder ? item(folder)?.nextElementSibling : root;
    if (list) await tryToFill(list);
  }

  async function fill(list, page = 1) {
    if (!list.children.length) list.append(el("li", {}, skeleton(list === root ? 6 : 1)));
    const { entries, nextPage } = await loadFolder(list.dataset.folder, page);
    const rows = entries.map((entry) => el("li", {}, entry.type === "tree" ? folderRow(entry) : fileRow(entry)));
    if (nextPage) rows.push(moreRow(list, nextPage));
    if (page === 1) list.replaceChildren();
    list.append(...rows);
    if (!list.children.length) list.append(el("li", { class: "fine" }, list === root ? "No files yet." : "Empty folder."));
  }

  function fileRow({ name, path }) {
    return el("a", { class: "item", href: fileHref(path), "data-path": path, title: name }, icon("file"), el("span", {}, name));
  }

  function folderRow({ name, path }) {
    const attributes = { type: "button", class: "item", "data-path": path, "aria-expanded": "false", title: name, onclick: toggle };
    return [
      el("button", attributes, icon("chevron"), icon("folder"), el("span", {}, name)),
      el("ul", { "data-folder": path, "aria-label": name }),
    ];
  }

  function moreRow(list, page) {
    const row = el("li", {}, el("button", { type: "button", class: "item more", onclick: showMore }, "Show more …"));
    return row;

    async function showMore() {
      if (await tryToFill(list, page)) row.remove();
    }
  }

  function toggle({ currentTarget: folder }) {
    const { path } = folder.dataset;
    const isOpen = folder.getAttribute("aria-expanded") === "true";
    onFolder(isOpen ? path.split("/").slice(0, -1).join("/") : path);
    if (isOpen) folder.setAttribute("aria-expanded", "false");
    else expand(folder);
  }

  async function expand(folder) {
    const list = folder.nextElementSibling;
    folder.setAttribute("aria-expanded", "true");
    if (list.children.length || (await tryToFill(list))) return;
    folder.setAttribute("aria-expanded", "false");
    list.replaceChildren();
  }

  async function tryToFill(list, page) {
    try {
      await fill(list, page);
      return true;
    } catch (error) {
      if (error.name !== "AbortError") announce(error.message, "error");
      return false;
    }
  }

  function item(path) {
    return root.querySelector(`[data-path="${CSS.escape(path)}"]`);
  }
}
