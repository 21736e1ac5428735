// A search field whose text stands in the hash. What is typed counts after a pause, and at once with Enter.

import { el } from "./dom.js";

const TYPING_PAUSE_MS = 300;

/** `go(text)` is called with each new text; `show(text)` puts the hash's text into the field. */
export function searchForm(id, label, signal, go) {
  const input = el("input", { type: "search", id, placeholder: label, "aria-label": label, autocomplete: "off", oninput: searchSoon });
  const element = el("form", { role: "search", onsubmit: searchNow }, input);
  let latest = "";
  let typing;
  return { element, show };

  function show(text) {
    latest = text;
    if (input.value.trim() !== text) input.value = text;
  }

  function searchSoon() {
    clearTimeout(typing);
    typing = setTimeout(searchNow, TYPING_PAUSE_MS);
  }

  function searchNow(event) {
    event?.preventDefault();
    clearTimeout(typing);
    const text = input.value.trim();
    if (!signal.aborted && text !== latest) go(text);
  }
}
