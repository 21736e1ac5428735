// The log of one job, live: what GitLab sends is shown as it comes, and as long as the job runs it is asked again.

import { ago, announce, el, load } from "./dom.js";
import { gateway } from "./gateway.js";

/** Pause between two looks at a job that runs. GitLab pushes no logs. */
const PAUSE_MS = 2000;

/** In which a job may still write something. */
const ALIVE = ["created", "waiting_for_resource", "preparing", "pending", "running", "canceling"];

/** Fills `place` until the job is over or `signal` says so; `onJob` hears of the job each time it was read. */
export function followTrace(place, { datahub, id }, number, signal, onJob) {
  const header = el("header", { class: "file-header" }, el("h2", {}, `Job #${number}`));
  const trouble = el("div", { class: "trouble" });
  const state = el("p", { id: "trace-state", class: "fine" }, "Loading …");
  const log = el("pre", { id: "trace", class: "file-body", role: "log", tabindex: "0", "aria-label": `Log of job ${number}` });
  const path = `projects/${id}/jobs/${number}`;
  let shown = 0; // Characters of GitLab's text that are in the log, or were left out.
  place.replaceChildren(header, trouble, state, log);
  load(trouble, follow);

  async function follow() {
    trouble.replaceChildren();
    for (;;) {
      // The job first: what it wrote before it ended is in the log that is read after.
      const job = await (await gateway.call(datahub, path, { signal })).json();
      const isAlive = ALIVE.includes(job.status);
      showJob(job, isAlive);
      await read(isAlive);
      if (!shown) state.textContent = isAlive ? "Live. The job has written nothing yet." : "This job has written no log.";
      if (!isAlive) return announce(`Job #${number}: ${job.status}.`, "info");
      await pause();
    }
  }

  function showJob(job, isAlive) {
    header.replaceChildren(
      el("div", {},
        el("h2", {}, job.name),
        el("p", { class: "fine" }, `#${number} · ${job.stage} · ${job.ref}`, job.started_at && [" · started ", ago(job.started_at)])),
      statusBadge(job.status));
    state.textContent = isAlive ? "Live: what the job writes appears here." : "The job has ended; this is all it wrote.";
    onJob(job);
  }

  async function read(isAlive) {
    const { body } = await gateway.call(datahub, `${path}/trace`, { signal });
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      write(text, text.lastIndexOf("\n") + 1);
    }
    if (text.length < shown) { // Somebody erased it, or the job began anew.
      log.textContent = "";
      shown = 0;
    }
    write(text, isAlive ? text.lastIndexOf("\n") + 1 : text.length);
  }

  /** Appends what is new, in whole lines. Whoever reads further above stays there. */
  function write(text, end) {
    if (end <= shown) return;
    const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(plain(text.slice(shown, end)));
    shown = end;
    if (isAtEnd) log.scrollTop = log.scrollHeight;
  }

  function pause() {
    return new Promise((resolve, reject) => {
      setTimeout(resolve, PAUSE_MS);
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }
}

/** GitLab's own word for it, such as `running`. */
export function statusBadge(status) {
  return el("span", { class: "badge", "data-status": status }, status.replaceAll("_", " "));
}

/** Without a terminal's colours, GitLab's marks of sections, and what a line wrote over itself. */
function plain(text) {
  return text
    .replace(/\x1b\[[\d;?]*[A-Za-z]/g, "")
    .replace(/section_(start|end):\d+:[^\r\n]*\r/g, "")
    .replace(/\r\n/g, "\n")
    .replace(/[^\n]*\r(?!$)/g, "");
}
