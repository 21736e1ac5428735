// One project: what it is, and below that one of its rooms, its files or its jobs.

import { el, heading, icon, load, skeleton } from "./dom.js";
import { filesRoom } from "./files.js";
import { gateway } from "./gateway.js";
import { jobsRoom } from "./jobs.js";

const ROOMS = { files: filesRoom, jobs: jobsRoom };

/** Stays while the file or the job in the hash changes; `update` opens it. */
export function projectView(root, route, signal) {
  const { datahub, room } = route;
  let wanted = route;
  let shown;
  root.replaceChildren(el("div", { class: "loading", "aria-busy": "true" }, skeleton(1, "title-skeleton"), skeleton(6)));
  load(root, async () => {
    const response = await gateway.call(datahub, `projects/${route.project}`, { signal });
    render(await response.json());
  });
  return {
    update(newRoute) {
      wanted = newRoute;
      shown?.open(wanted);
    },
  };

  function render(details) {
    const project = { datahub, id: details.id, branch: details.default_branch ?? "main", isEmpty: details.empty_repo };
    const hasFocus = document.activeElement === root;
    shown = ROOMS[room](project, signal);
    root.replaceChildren(header(project, details, room), shown.element);
    if (hasFocus) root.querySelector("h1").focus({ preventScroll: true });
    document.title = `${details.name} – ARC gateway demo`;
    shown.open(wanted);
  }
}

function header({ datahub, id, branch }, details, room) {
  const { name, url } = gateway.datahub(datahub);
  const namespace = details.name_with_namespace.split(" / ").slice(0, -1).join(" / ");
  const roomLink = (one, text, href) => el("a", { href, "data-room": one, "aria-current": one === room && "page" }, text);
  return el("header", { class: "project-header" },
    el("nav", { "aria-label": "Breadcrumb", class: "fine" }, el("a", { href: `#/${datahub}` }, "Your projects"), ` / ${namespace}`),
    el("div", { class: "project-title" },
      heading(details.name),
      el("span", { class: "badge" }, branch),
      el("a", { class: "fine", href: `${url.replace(/\/$/, "")}/${details.path_with_namespace}`, target: "_blank", rel: "noreferrer" },
        `Open at ${name}`, icon("external"))),
    details.description && el("p", { class: "description" }, details.description),
    el("nav", { class: "rooms", "aria-label": "Project" },
      roomLink("files", "Files", `#/${datahub}/${id}`),
      roomLink("jobs", "Jobs", `#/${datahub}/${id}/jobs`)));
}
