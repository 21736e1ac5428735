// All DataHUBs side by side: who you are at each, and what one search finds among your projects at all of them.

import { announce, el, heading, load, refill, skeleton } from "./dom.js";
import { gateway } from "./gateway.js";
import { projectRows } from "./projects.js";
import { searchForm } from "./search.js";
import { datahubCard } from "./sessions.js";

/** Of each DataHUB; a link leads to the rest. */
const PER_PAGE = 5;

/** Stays while the search in the hash and the sessions change; `update` brings every column there. */
export function homeView(root, route, signal) {
  const search = searchForm("search-all", "Search your projects at all DataHUBs", signal, go);
  const columns = gateway.datahubs.map((datahub) => column(datahub, signal));
  root.replaceChildren(
    el("header", { class: "intro" },
      heading("Choose a DataHUB"),
      el("p", {}, "Log in at one or several. This page never sees a token: the gateway keeps it sealed in a cookie that no script can read.")),
    search.element,
    columns.length
      ? el("ul", { class: "cards" }, columns.map(({ element }) => element))
      : el("p", { class: "empty" }, "This gateway has no DataHUBs yet."));
  update(route);
  return { update };

  async function update({ search: text }) {
    search.element.hidden = !gateway.sessions.length;
    search.show(text);
    const found = await Promise.all(columns.map((one) => one.update(text)));
    // Of a DataHUB that has failed, the status line says so already.
    if (!text || !found.some(Boolean) || found.includes(FAILED)) return;
    announce(`${found.filter(Boolean).join(", ")}.`, "info");
    signal.addEventListener("abort", () => announce("Ready.", "info"), { once: true });
  }

  function go(text) {
    location.hash = text ? `#/?${new URLSearchParams({ search: text })}` : "#/";
  }
}

const FAILED = Symbol("failed");

/** One DataHUB. `update` resolves to what was found, in words: undefined if nothing new was looked for. */
function column(datahub, signal) {
  const { id, name } = datahub;
  const card = el("article", { class: "card", "data-datahub": id });
  const list = el("section", { class: "rows", "data-found": id, "aria-label": `Your projects at ${name}` });
  let shown;
  let reading;
  return { element: el("li", {}, card, list), update };

  async function update(text) {
    refill(card, ...datahubCard(datahub));
    const user = gateway.session(id)?.user.id;
    const wanted = JSON.stringify([user, text]);
    if (wanted === shown) return undefined;
    shown = wanted;
    reading?.abort();
    list.hidden = !user;
    if (!user) return list.replaceChildren();
    reading = new AbortController();
    list.setAttribute("aria-busy", "true");
    if (!list.querySelector(".row")) list.replaceChildren(...skeleton(3, "row-skeleton"));
    let outcome = FAILED;
    await load(list, async () => { outcome = await look(text, AbortSignal.any([signal, reading.signal])); });
    if (wanted !== shown) return undefined;
    list.removeAttribute("aria-busy");
    return outcome;
  }

  async function look(text, signal) {
    const query = new URLSearchParams({ membership: "true", order_by: "last_activity_at", per_page: PER_PAGE });
    if (text) query.set("search", text);
    const response = await gateway.call(id, `projects?${query}`, { signal });
    const projects = await response.json();
    const total = Number(response.headers.get("X-Total") ?? projects.length); // GitLab counts to 10,000 and no further.
    list.replaceChildren(projectRows(id, projects, text));
    if (response.headers.get("X-Next-Page")) {
      list.append(el("a", { class: "all", href: `#/${id}?${new URLSearchParams({ search: text })}`, "aria-label": `Show all at ${name}` }, "Show all"));
    }
    return `${total} ${total === 1 ? "project" : "projects"} at ${name}`;
  }
}
