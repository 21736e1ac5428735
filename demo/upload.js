// The upload of files into the current folder: chosen or dropped, one after the other, with progress, cancelled at any time.

import { announce, bytes, el, icon } from "./dom.js";
import { filePath, onBranch } from "./editor.js";
import { gateway } from "./gateway.js";
import { setUnsaved } from "./unsaved.js";

/** A commit carries the file as base64 in JSON, which is not made for more. */
const MAX_COMMIT_BYTES = 20_000_000;

/** Of the generic packages that hold what is larger. */
const PACKAGE = "uploads";

const UPLOAD = "the running upload";

/** `onDone(folder, path)` is called after each commit. */
export function uploadPanel(project, signal, onDone) {
  const waiting = [];
  let folder = "";
  let running;
  const input = el("input", { type: "file", id: "upload-input", multiple: true, onchange: () => add(input.files) });
  const zone = el("label", { class: "dropzone", ondragover: drag, ondragleave: drag, ondrop: drop },
    input, icon("upload"), el("span", {}, el("strong", {}, "Choose"), " or drop files"));
  const progress = el("progress", { id: "upload-progress", max: "1", value: "0", "aria-label": "Upload progress" });
  const stage = el("span", { class: "fine" });
  const cancel = el("button", { type: "button", id: "upload-cancel", class: "quiet", onclick: stop }, "Cancel");
  const meter = el("div", { class: "meter idle" }, progress, stage, cancel);
  const place = el("p", { class: "place" });
  const result = el("p", { id: "upload-result", class: "fine", hidden: true });
  const element = el("section", { class: "upload panel", "aria-label": "Upload" }, el("h2", {}, "Upload"), place, zone, meter, result,
    el("p", { class: "fine" }, `A file of up to ${bytes(MAX_COMMIT_BYTES)} becomes a commit. A larger one, of any size, becomes a generic package`
      + " of this project: GitLab takes commits as base64 in JSON, and packages as they are."));
  signal.addEventListener("abort", stop);
  into("");
  return { element, into };

  function into(path) {
    folder = path;
    place.replaceChildren("into ", el("code", { id: "upload-folder" }, `/${folder}`));
    if (folder) place.append(" ", el("button", { type: "button", class: "link", onclick: () => into("") }, "use the root"));
  }

  async function add(files) {
    waiting.push(...[...files].map((file) => ({ file, folder })));
    input.value = "";
    if (running || !waiting.length) return;
    result.hidden = true;
    meter.classList.remove("idle");
    while (waiting.length) await upload(waiting.shift());
    if (document.activeElement === cancel) input.focus(); // It goes out of sight.
    meter.classList.add("idle");
  }

  function stop() {
    waiting.length = 0;
    running?.abort();
  }

  async function upload({ file, folder }) {
    const path = folder ? `${folder}/${file.name}` : file.name;
    running = new AbortController();
    setUnsaved(UPLOAD, stop);
    showProgress(0);
    announce(`Uploading ${path} …`, "info");
    try {
      const isCommit = file.size <= MAX_COMMIT_BYTES;
      announce(await (isCommit ? commit : putPackage)(path, file, running.signal));
      if (isCommit && !signal.aborted) onDone(folder, path);
    } catch (error) {
      if (error.name === "AbortError") announce("Upload cancelled.", "info");
      else announce(`${path} was not uploaded: ${error.message}`, "error");
    } finally {
      running = undefined;
      setUnsaved(UPLOAD);
    }
  }

  /** Resolves to what was done, in words; so does `putPackage`. */
  async function commit(path, file, signal) {
    const [exists, content] = await Promise.all([isThere(path, signal), base64(file)]);
    const json = { branch: project.branch, content, encoding: "base64", commit_message: `${exists ? "Replace" : "Add"} ${path}` };
    await gateway.upload(project.datahub, filePath(project, path), {
      method: exists ? "PUT" : "POST", body: JSON.stringify(json), onProgress: showProgress, signal,
    });
    return exists ? `Uploaded ${path}; the version before stays in the history.` : `Uploaded ${path}.`;
  }

  /** The browser reads the file from disk as it goes. Each upload has a version of its own, so none takes another's place. */
  async function putPackage(path, file, signal) {
    const version = new Date().toISOString().replace(/\D/g, "");
    const name = file.name.replace(/[^\w.+-]+/g, "_"); // GitLab takes no other characters.
    const url = `projects/${project.id}/packages/generic/${PACKAGE}/${version}/${encodeURIComponent(name)}?select=package_file`;
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await gateway.upload(project.datahub, url, { method: "PUT", headers, body: file, onProgress: showProgress, signal });
    const { file_sha256 } = await answer.json();
    result.replaceChildren("Kept as ", el("code", {}, `${PACKAGE}/${version}/${name}`), ` (${bytes(file.size)}).`,
      ...(file_sha256 ? [" SHA-256 ", el("code", {}, file_sha256)] : []));
    result.hidden = false;
    return `Uploaded ${file.name} as a package.`;
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
    const now = share < 1 ? `${Math.floor(share * 100)} %` : "GitLab is storing it …";
    stage.textContent = waiting.length ? `${now} · ${waiting.length} more` : now;
  }

  function drag(event) {
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
  }

  function drop(event) {
    drag(event);
    add(event.dataTransfer.files);
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
