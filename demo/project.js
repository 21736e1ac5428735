// One project: its file tree, the file that is open, and the upload.

import { el, heading, icon, load, skeleton } from "./dom.js";
import { EDITS, fileEditor } from "./editor.js";
import { gateway } from "./gateway.js";
import { fileTree } from "./tree.js";
import { hasUnsaved } from "./unsaved.js";
import { uploadPanel } from "./upload.js";

const PER_PAGE = 100;

/** Stays while the file in the hash changes; `update` opens it. */
export function projectView(root, route, signal) {
  const { datahub } = route;
  let wanted = route;
  let open = () => {}; // Until the tree is there.
  root.replaceChildren(el("div", { class: "loading", "aria-busy": "true" }, skeleton(1, "title-skeleton"), skeleton(6)));
  load(root, async () => {
    const response = await gateway.call(datahub, `projects/${route.project}`, { signal });
    render(await response.json());
  });
  return {
    update(newRoute) {
      wanted = newRoute;
      open();
    },
  };

  async function render(details) {
    const project = { datahub, id: details.id, branch: details.default_branch ?? "main" };
    const editor = fileEditor(project, signal);
    const upload = uploadPanel(project, signal, afterUpload);
    const tree = fileTree({ loadFolder, fileHref, onFolder: upload.into });
    const hasFocus = document.activeElement === root;
    root.replaceChildren(
      header(datahub, details, project.branch),
      el("div", { class: "columns" },
        el("section", { class: "files panel", "aria-label": "Files" }, el("h2", {}, "Files"), tree.element),
        editor.element,
        upload.element));
    if (hasFocus) root.querySelector("h1").focus({ preventScroll: true });
    document.title = `${details.name} – ARC gateway demo`;
    await load(tree.element, tree.load);
    open = openFile;
    open();

    async function loadFolder(path, page) {
      if (details.empty_repo) return { entries: [] };
      const query = new URLSearchParams({ path, ref: project.branch, per_page: PER_PAGE, page });
      const response = await gateway.call(datahub, `projects/${project.id}/repository/tree?${query}`, { signal });
      return { entries: await response.json(), nextPage: response.headers.get("X-Next-Page") };
    }

    function fileHref(path) {
      return `#/${datahub}/${project.id}?${new URLSearchParams({ path })}`;
    }

    function openFile() {
      const { path } = wanted;
      tree.select(path);
      if (!path) return editor.showNothing();
      upload.into(path.split("/").slice(0, -1).join("/"));
      return editor.open(path);
    }

    async function afterUpload(folder, path) {
      details.empty_repo = false;
      if (path === wanted.path && !hasUnsaved(EDITS)) editor.open(path);
      await tree.reload(folder);
      tree.select(wanted.path);
    }
  }
}

function header(datahub, details, branch) {
  const { name, url } = gateway.datahub(datahub);
  const namespace = details.name_with_namespace.split(" / ").slice(0, -1).join(" / ");
  return el("header", { class: "project-header" },
    el("nav", { "aria-label": "Breadcrumb", class: "fine" }, el("a", { href: `#/${datahub}` }, "Your projects"), ` / ${namespace}`),
    el("div", { class: "project-title" },
      heading(details.name),
      el("span", { class: "badge" }, branch),
      el("a", { class: "fine", href: `${url.replace(/\/$/, "")}/${details.path_with_namespace}`, target: "_blank", rel: "noreferrer" },
        `Open at ${name}`, icon("external"))),
    details.description && el("p", { class: "description" }, details.description));
}
