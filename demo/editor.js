// One file: its text, edits that are shown as a diff and become commits, and what happens if someone else was faster.

import { diffView } from "./diff.js";
import { announce, bytes, el, errorNotice, load, skeleton } from "./dom.js";
import { gateway } from "./gateway.js";
import { setUnsaved } from "./unsaved.js";

/** Larger files are offered as a download only. */
const MAX_TEXT_BYTES = 1_000_000;

/** The name of this piece of work, for `unsaved.js`. */
export const EDITS = "your edits";

/** `project` is `{ datahub, id, branch }`. */
export function fileEditor(project, signal) {
  const element = el("section", { class: "viewer", "aria-label": "File" });
  let file; // What is shown: path, size, text, lineEnd, lastCommit, isLfs.
  showNothing();
  return { element, open, showNothing };

  function showNothing() {
    file = undefined;
    element.replaceChildren(el("p", { class: "empty" }, "Choose a file to read it here."));
  }

  async function open(path) {
    const wanted = (file = { path });
    const body = el("div", { class: "file-body" }, skeleton(9));
    element.replaceChildren(header(), body);
    element.firstChild.scrollIntoView({ block: "nearest" });
    await load(body, async () => {
      const loaded = await read(path);
      if (file !== wanted) return; // Another file has been opened since.
      file = loaded;
      if (file.text === undefined) showDownload();
      else showText();
    });
  }

  /** Asks for the size first, so that a file of gigabytes does not come as base64. */
  async function read(path) {
    const url = filePath(project, path) + onBranch(project);
    const { headers } = await gateway.call(project.datahub, url, { method: "HEAD", signal });
    const size = Number(headers.get("X-Gitlab-Size"));
    if (size > MAX_TEXT_BYTES) return { path, size };
    const answer = await (await gateway.call(project.datahub, url, { signal })).json();
    return { path, size: answer.size, lastCommit: answer.last_commit_id, ...decode(answer.content) };
  }

  function header(...actions) {
    const folders = file.path.split("/");
    const name = folders.pop();
    const facts = [file.size !== undefined && bytes(file.size), file.lastCommit && `commit ${file.lastCommit.slice(0, 8)}`];
    return el("header", { class: "file-header" },
      el("div", {},
        el("h2", {}, el("span", { class: "namespace" }, folders.map((folder) => `${folder} / `)), name),
        el("p", { class: "fine" }, facts.filter(Boolean).join(" · ") || "Loading …")),
      el("div", { class: "actions" }, actions));
  }

  function downloadLink(className) {
    const path = `${filePath(project, file.path)}/raw${onBranch(project, file.isLfs && { lfs: "true" })}`;
    return el("a", { class: `button ${className}`, id: "download", href: gateway.apiUrl(project.datahub, path), download: file.path.split("/").at(-1) }, "Download");
  }

  function showDownload() {
    const reason = file.isLfs ? "is kept in Git LFS" : file.size > MAX_TEXT_BYTES ? "is too large to read here" : "is not text";
    element.replaceChildren(header(), el("div", { class: "empty" },
      el("p", {}, `This file ${reason} (${bytes(file.size)}).`),
      downloadLink("primary")));
  }

  function showText() {
    const text = el("textarea", {
      id: "file-text", class: "file-body", readonly: true, spellcheck: "false", wrap: "off",
      "aria-label": `Text of ${file.path}`, oninput: noteEdits,
    });
    const edit = el("button", { type: "button", id: "edit", onclick: startEditing }, "Edit");
    const changes = el("section", { id: "diff", class: "diff", "aria-label": "Your changes", hidden: true });
    const message = el("input", { id: "commit-message", required: true, value: `Update ${file.path}` });
    const save = el("button", { type: "submit", id: "save", class: "primary", disabled: true, "aria-describedby": "diff-count" }, "Commit");
    const cancel = el("button", { type: "button", class: "quiet", onclick: dropEdits }, "Cancel");
    const form = el("form", { class: "commit", hidden: true, onsubmit: commit },
      el("label", { for: "commit-message" }, "What did you change?"), message, save, cancel);
    const trouble = el("div", { class: "trouble" });
    text.value = file.text;
    element.replaceChildren(header(downloadLink("quiet"), edit), trouble, text, changes, form);

    function startEditing() {
      edit.hidden = true;
      text.readOnly = form.hidden = false;
      text.setSelectionRange(0, 0);
      text.focus();
    }

    function noteEdits() {
      const before = asInTextarea(file.text);
      const isSame = text.value === before;
      save.disabled = changes.hidden = isSame;
      changes.replaceChildren(...(isSame ? [] : diffView(before, text.value)));
      setUnsaved(EDITS, isSame ? undefined : () => {});
    }

    function dropEdits() {
      setUnsaved(EDITS);
      showText();
      returnFocus();
    }

    async function commit(event) {
      event?.preventDefault();
      const { path, lineEnd, lastCommit } = file;
      const json = {
        branch: project.branch,
        content: text.value.replaceAll("\n", lineEnd),
        encoding: "text",
        commit_message: message.value,
        last_commit_id: lastCommit,
      };
      announce(`Saving ${path} …`, "info");
      trouble.replaceChildren();
      text.readOnly = save.disabled = cancel.disabled = true;
      try {
        await gateway.call(project.datahub, filePath(project, path), { method: "PUT", json });
      } catch (error) {
        text.readOnly = save.disabled = cancel.disabled = false;
        showTrouble(error);
        return;
      }
      setUnsaved(EDITS);
      announce(`Committed ${path} to ${project.branch}.`);
      if (!text.isConnected) return;
      await open(path);
      returnFocus();
    }

    /** What had the focus went with the form. */
    function returnFocus() {
      if (document.activeElement === document.body) element.querySelector("#edit")?.focus();
    }

    /** The text stays. If the session has ended, the bar above the view asks to log in. */
    function showTrouble(error) {
      announce(`Not saved: ${error.message}`, "error");
      if (isConflict(error)) trouble.replaceChildren(conflictNotice());
      else if (gateway.session(project.datahub)) trouble.replaceChildren(errorNotice(error));
    }

    function conflictNotice() {
      return el("div", { id: "conflict", class: "notice warning", role: "alert" },
        el("p", {}, "Someone committed to this file while you were editing. Your text is still below, not yet saved."),
        el("button", { type: "button", onclick: takeTheirs }, "Drop mine, show the new version"),
        el("button", { type: "button", onclick: compare }, "Compare mine with it"));
    }

    async function takeTheirs() {
      setUnsaved(EDITS);
      await open(file.path);
    }

    /** From now on the edit is one of the new version; the next commit goes on top of it. */
    async function compare() {
      await load(trouble, async () => {
        const theirs = await read(file.path);
        if (theirs.text === undefined) throw new Error("The new version is not text, so yours cannot be compared with it.");
        file = theirs;
        trouble.replaceChildren();
        noteEdits();
        announce(save.disabled ? "The new version is the same as yours." : "Below is what yours changes in the new version. Commit to put it on top.", "info");
        text.focus();
      });
    }
  }
}

/** The path of the files API; GitLab wants the whole file path as one segment. */
export function filePath({ id }, path) {
  return `projects/${id}/repository/files/${encodeURIComponent(path)}`;
}

export function onBranch({ branch }, more) {
  return `?${new URLSearchParams({ ref: branch, ...more })}`;
}

/** `text` stays undefined for what is not UTF-8 text. A byte order mark and the line ends survive an edit. */
function decode(base64) {
  const content = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(content);
  } catch {
    return {};
  }
  if (text.includes("\0")) return {};
  if (text.startsWith("version https://git-lfs.github.com/spec/")) {
    return { isLfs: true, size: Number(/^size (\d+)$/m.exec(text)?.[1]) };
  }
  return { text, lineEnd: text.includes("\r\n") ? "\r\n" : "\n" };
}

function asInTextarea(text) {
  return text.replace(/\r\n?/g, "\n");
}

/** GitLab answers 400 with this sentence if `last_commit_id` is no longer the file's last commit. */
function isConflict({ status, message }) {
  return status === 409 || (status === 400 && /has changed since you started editing/i.test(message));
}
