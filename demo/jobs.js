// A project's CI jobs, and the log of one of them.

import { ago, el, load, skeleton } from "./dom.js";
import { gateway } from "./gateway.js";
import { followTrace, statusBadge } from "./trace.js";

const PER_PAGE = 20;

/** `open` follows the job of a route. */
export function jobsRoom(project, signal) {
  const { datahub, id } = project;
  const list = el("div", { id: "jobs" }, skeleton(4));
  const viewer = el("section", { class: "viewer", "aria-label": "Log" });
  const element = el("div", { class: "columns" }, el("section", { class: "side panel", "aria-label": "Jobs" }, el("h2", {}, "Jobs"), list), viewer);
  let wanted;
  let following;
  load(list, read);
  return { element, open };

  function open(route) {
    wanted = route;
    following?.abort();
    following = new AbortController();
    markOpen();
    if (wanted.job) followTrace(viewer, project, wanted.job, AbortSignal.any([signal, following.signal]), showStatus);
    else viewer.replaceChildren(el("p", { class: "empty" }, "Choose a job to read its log here, live while it runs."));
  }

  async function read() {
    const response = await gateway.call(datahub, `projects/${id}/jobs?per_page=${PER_PAGE}`, { signal });
    const jobs = await response.json();
    list.replaceChildren(jobs.length
      ? el("ul", {}, jobs.map((job) => el("li", {}, row(job))))
      : el("p", { class: "fine" }, "No job has run here yet."));
    markOpen();
  }

  function row({ id: job, name, stage, status, created_at }) {
    return el("a", { class: "job", href: `#/${datahub}/${id}/jobs/${job}`, "data-job": job },
      el("strong", {}, name),
      statusBadge(status),
      el("span", { class: "fine" }, `#${job} · ${stage}`, created_at && [" · ", ago(created_at)]));
  }

  function markOpen() {
    for (const link of list.querySelectorAll("[data-job]")) {
      if (link.dataset.job === wanted?.job) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  /** The open job is read again and again, the list is not. */
  function showStatus({ id: job, status }) {
    list.querySelector(`[data-job="${job}"] .badge`)?.replaceWith(statusBadge(status));
  }
}
