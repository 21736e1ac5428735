// The upload of one file into the current folder: chosen or dropped, with progress, cancelled at any time.

import { announce, bytes, el, icon } from "./dom.js";
import { filePath, onBranch } from "./editor.js";
import { gateway } from "./gateway.js";
import { setUnsaved } from "./unsaved.js";

/** A commit carries the file as base64 in JSON, which is not made for more. */
const MAX_BYTES = 20_000_000;

const UPLOAD = "the running upload";

/** `onDone(folder, path)` is called after each upload. */
export function uploadPanel(project, signal, onDone) {
  let folder = "";
  let running;
  const input = el("input", { type: "file", id: "upload-input", onchange: () => start(input.files[0]) });
  const zone = el("label", { class: "dropzone", ondragover: drag, ondragleave: drag, ondrop: drop },
    input, icon("upload"), el("span", {}, el("strong", {}, "Choose"), " or drop a file"));
  const progress = el("progress", { id: "upload-progress", max: "1", value: "0", "aria-label": "Upload progress" });
  const stage = el("span", { class: "fine" });
  const cancel = el("button", { type: "button", id: "upload-cancel", class: "quiet", onclick: () => running.abort() }, "Cancel");
  const meter = el("div", { class: "meter idle" }, progress, stage, cancel);
  const place = el("p", { class: "place" });
  const element = el("section", { class: "upload panel", "aria-label": "Upload" }, el("h2", {}, "Upload"), place, zone, meter);
  signal.addEventListener("abort", () => running?.abort());
  into("");
  return { element, into };

  function into(path) {
    folder = path;
    place.replaceChildren("into ", el("code", { id: "upload-folder" }, `/${folder}`));
    if (folder) place.append(" ", el("button", { type: "button", class: "link", onclick: () => into("") }, "use the root"));
  }

  async function start(file) {
    input.value = "";
    if (!file || running) return;
    if (file.size > MAX_BYTES) {
      announce(`${file.name} has ${bytes(file.size)}; this demo uploads up to ${bytes(MAX_BYTES)}.`, "error");
      return;
    }
    const target = folder;
    const path = target ? `${target}/${file.name}` : file.name;
    running = new AbortController();
    setUnsaved(UPLOAD, () => running?.abort());
    meter.classList.remove("idle");
    showProgress(0);
    try {
      const replaced = await send(path, file, running.signal);
      announce(replaced ? `Uploaded ${path}; the version before stays in the history.` : `Uploaded ${path}.`);
      if (!signal.aborted) onDone(target, path);
    } catch (error) {
      if (error.name === "AbortError") announce("Upload cancelled.", "info");
      else announce(`${path} was not uploaded: ${error.message}`, "error");
    } finally {
      running = undefined;
      setUnsaved(UPLOAD);
      meter.classList.add("idle");
    }
  }

  /** Resolves to whether the file was there before. */
  async function send(path, file, signal) {
    announce(`Uploading ${path} …`, "info");
    const [exists, content] = await Promise.all([isThere(path, signal), base64(file)]);
    await gateway.upload(project.datahub, filePath(project, path), {
      method: exists ? "PUT" : "POST",
      json: { branch: project.branch, content, encoding: "base64", commit_message: `${exists ? "Replace" : "Add"} ${path}` },
      onProgress: showProgress,
      signal,
    });
    return exists;
  }

  async function isThere(path, signal) {
    try {
      await gateway.call(project.datahub, filePath(project, path) + onBranch(project), { method: "HEAD", signal });
      return true;
    } catch (error) {
      if (error.status === 404) return false;
      throw error;
    }
  }

  function showProgress(share) {
    progress.value = share;
    stage.textContent = share < 1 ? `${Math.floor(share * 100)} %` : "Writing the commit …";
  }

  function drag(event) {
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
  }

  function drop(event) {
    drag(event);
    start(event.dataTransfer.files[0]);
  }
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
