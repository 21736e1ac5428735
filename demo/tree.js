// A file tree that loads a folder when it is first opened; nested lists of buttons (folders) and links (files).
//
// The Tab key stops at one item; from there the arrow keys move, as in the tree view of the ARIA Authoring Practices Guide.

import { announce, el, forgetError, icon, skeleton } from "./dom.js";

/**
 * `loadFolder(path, page)` resolves to `{ entries, nextPage }`, `fileHref(path)` is where a file leads, and
 * `onFolder(path)` is told the folder that the user is in now; "" is the root.
 */
export function fileTree({ loadFolder, fileHref, onFolder }) {
  const root = el("ul", { "data-folder": "", role: "tree", "aria-label": "Files", onkeydown: move, onfocusin: ({ target }) => stopAt(target) });
  const element = el("div", { id: "tree" });
  let folders = 0;
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
    const file = item(path);
    file?.setAttribute("aria-current", "page");
    if (file && !root.contains(document.activeElement)) stopAt(file);
  }

  async function reload(folder) {
    const list = folder ? item(folder)?.nextElementSibling : root;
    if (list) await tryToFill(list);
  }

  async function fill(list, page = 1) {
    list.setAttribute("aria-busy", "true");
    if (!list.children.length) list.append(row(skeleton(list === root ? 6 : 1)));
    const { entries, nextPage } = await loadFolder(list.dataset.folder, page).finally(() => list.removeAttribute("aria-busy"));
    const rows = entries.map((entry) => row(entry.type === "tree" ? folderRow(entry) : fileRow(entry)));
    if (nextPage) rows.push(moreRow(list, nextPage));
    if (page === 1) list.replaceChildren();
    list.append(...rows);
    if (!list.children.length) list.append(row(el("span", { ...ITEM, class: "item fine" }, list === root ? "No files yet." : "Empty folder.")));
    keepStop();
  }

  function row(...content) {
    return el("li", { role: "none" }, ...content);
  }

  function fileRow({ name, path }) {
    return el("a", { ...ITEM, href: fileHref(path), "data-path": path, title: name }, icon("file"), el("span", {}, name));
  }

  function folderRow({ name, path }) {
    const id = `folder-${folders++}`;
    const attributes = { ...ITEM, type: "button", "data-path": path, "aria-expanded": "false", "aria-owns": id, title: name, onclick: toggle };
    return [
      el("button", attributes, icon("chevron"), icon("folder"), el("span", {}, name)),
      el("ul", { id, role: "group", "data-folder": path, "aria-label": name }),
    ];
  }

  function moreRow(list, page) {
    const more = row(el("button", { ...ITEM, type: "button", class: "item more", onclick: showMore }, "Show more …"));
    return more;

    async function showMore() {
      forgetError();
      if (!(await tryToFill(list, page))) return;
      if (more.contains(document.activeElement)) (more.nextElementSibling ?? more.previousElementSibling).querySelector(".item").focus();
      more.remove();
      keepStop();
    }
  }

  function toggle({ currentTarget: folder }) {
    const { path } = folder.dataset;
    forgetError();
    const isOpen = folder.getAttribute("aria-expanded") === "true";
    onFolder(isOpen ? path.split("/").slice(0, -1).join("/") : path);
    if (isOpen) folder.setAttribute("aria-expanded", "false");
    else expand(folder);
    keepStop();
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

  function move(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const here = event.target;
    const shown = items();
    const at = shown.indexOf(here);
    const isOpen = here.getAttribute("aria-expanded"); // "true", "false", or null of what is no folder.
    const inside = here.nextElementSibling?.querySelector(".item");
    const above = here.parentElement.parentElement.previousElementSibling;
    const go = {
      ArrowDown: () => shown[at + 1]?.focus(),
      ArrowUp: () => shown[at - 1]?.focus(),
      ArrowRight: () => (isOpen === "false" ? here.click() : inside?.focus()),
      ArrowLeft: () => (isOpen === "true" ? here.click() : above?.focus()),
      Home: () => shown[0].focus(),
      End: () => shown.at(-1).focus(),
      ...(here.localName === "a" && { " ": () => here.click() }), // A button has it from the browser.
    }[event.key];
    if (!go) return;
    event.preventDefault();
    go();
  }

  /** Those that can be seen. */
  function items() {
    return [...root.querySelectorAll(".item")].filter((one) => !one.closest('[aria-expanded="false"] + ul'));
  }

  function stopAt(item) {
    for (const one of root.querySelectorAll('[tabindex="0"]')) one.tabIndex = -1;
    item.tabIndex = 0;
  }

  /** The Tab key always has a place to stop: if that is gone or out of sight, the folder around it or the first item. */
  function keepStop() {
    const shown = items();
    const stop = root.querySelector('[tabindex="0"]');
    if (shown.length && !shown.includes(stop)) stopAt(shown.findLast((one) => one.nextElementSibling?.contains(stop)) ?? shown[0]);
  }
}

/** What every item of the tree is; the arrow keys give it the focus. */
const ITEM = { class: "item", role: "treeitem", tabindex: "-1" };
