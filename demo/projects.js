// Your projects at one DataHUB: page by page, with a search.

import { ago, el, heading, load, skeleton } from "./dom.js";
import { gateway } from "./gateway.js";
import { searchForm } from "./search.js";

const PER_PAGE = 20;

/** Stays while page and search change in the hash; `update` brings the list there. */
export function projectsView(root, route, signal) {
  const { datahub } = route;
  const search = searchForm("search", "Search your projects", signal, (text) => go({ page: 1, search: text }));
  const list = el("div", { id: "projects", class: "rows" }, skeleton(6, "row-skeleton"));
  const position = el("span", { class: "fine" });
  const previous = el("button", { type: "button", id: "previous-page", disabled: true }, "Previous");
  const next = el("button", { type: "button", id: "next-page", disabled: true }, "Next");
  root.replaceChildren(
    el("header", { class: "list-header" }, heading("Your projects"), search.element),
    list,
    el("nav", { class: "pager", "aria-label": "Pages" }, previous, position, next));

  let latest;
  let reading;
  update(route);
  return { update };

  async function update(wanted) {
    latest = wanted;
    reading?.abort();
    reading = new AbortController();
    search.show(wanted.search);
    list.setAttribute("aria-busy", "true");
    const query = new URLSearchParams({ membership: "true", order_by: "last_activity_at", per_page: PER_PAGE, page: wanted.page });
    if (wanted.search) query.set("search", wanted.search);
    await load(list, async () => {
      const response = await gateway.call(datahub, `projects?${query}`, { signal: AbortSignal.any([signal, reading.signal]) });
      const projects = await response.json();
      show(projects, wanted, response.headers);
    });
    if (latest === wanted) list.removeAttribute("aria-busy");
  }

  function show(projects, wanted, headers) {
    list.replaceChildren(projectRows(datahub, projects, wanted.search));
    const total = headers.get("X-Total-Pages");
    position.textContent = `Page ${headers.get("X-Page") || wanted.page}${total ? ` of ${Math.max(1, total)}` : ""}`;
    for (const [button, page] of [[previous, headers.get("X-Prev-Page")], [next, headers.get("X-Next-Page")]]) {
      button.disabled = !page;
      button.onclick = () => go({ page, search: wanted.search });
    }
  }

  function go(query) {
    location.hash = `#/${datahub}?${new URLSearchParams(query)}`;
  }
}

/** A list of projects, or the sentence that there are none. */
export function projectRows(datahub, projects, search) {
  const nothing = search ? `No project of yours matches “${search}”.` : "You are not a member of any project here yet.";
  return projects.length ? el("ul", {}, projects.map((project) => el("li", {}, row(datahub, project)))) : el("p", { class: "empty" }, nothing);
}

function row(datahub, { id, name, name_with_namespace, description, visibility, last_activity_at }) {
  const namespace = name_with_namespace.split(" / ").slice(0, -1).join(" / ");
  return el("a", { class: "row", href: `#/${datahub}/${id}`, "data-project": id },
    el("span", {}, el("span", { class: "namespace" }, `${namespace} / `), el("strong", {}, name)),
    el("span", { class: "row-text" }, description || "No description"),
    el("span", { class: "row-meta" }, el("span", { class: "badge" }, visibility), el("span", {}, "active ", ago(last_activity_at))));
}
