// Building blocks of the page: elements, icons, notices, and how numbers and times are written.

/** Makes an element. Functions become listeners (`onclick`), booleans set or leave out, the rest are attributes. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** One of the symbols in index.html; always beside a text, so it is hidden from readers. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.setAttribute("class", `icon ${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A view's heading, to which the focus goes when the view has come. */
export function heading(text) {
  return el("h1", { tabindex: "-1" }, text);
}

/** Fills a place anew. The focus stays on what is there again, and goes to the view's heading if nothing like it is. */
export function refill(place, ...children) {
  const focused = place.contains(document.activeElement) && document.activeElement.outerHTML;
  place.replaceChildren(...children);
  if (!focused) return;
  const again = [...place.querySelectorAll("a, button")].find((one) => one.outerHTML === focused);
  (again ?? document.querySelector("h1"))?.focus();
}

/** Writes the last outcome into the status line, which screen readers follow. Kind: `ok`, `error` or `info`. */
export function announce(text, kind = "ok") {
  const status = document.querySelector("#status");
  status.textContent = text;
  status.dataset.kind = kind;
}

/** An error is old once another page, or another try, has begun. */
export function forgetError() {
  if (document.querySelector("#status").dataset.kind === "error") announce("Ready.", "info");
}

/** A box that says what went wrong, with a way to try again. */
export function errorNotice(error, retry) {
  return el("div", { class: "notice error", role: "alert" },
    el("p", {}, error.message),
    error.requestId && el("p", { class: "fine" }, `Request ${error.requestId}`),
    retry && el("button", { type: "button", onclick: retry }, "Try again"));
}

/** Runs what fills `place`; a failure is shown there, with a way to try again. A view that is gone says nothing. */
export async function load(place, fill) {
  try {
    await fill();
  } catch (error) {
    if (error.name === "AbortError" || !place.isConnected) return;
    announce(error.message, "error");
    place.replaceChildren(errorNotice(error, tryAgain));
  }

  function tryAgain() {
    forgetError();
    load(place, fill);
  }
}

/** Grey bars in the place of what is being loaded. */
export function skeleton(count, className = "line") {
  return Array.from({ length: count }, () => el("div", { class: `skeleton ${className}`, "aria-hidden": "true" }));
}

export function initials(name) {
  const words = name.split(/\s+/).filter(Boolean);
  return [words.at(0), words.length > 1 ? words.at(-1) : ""].map((word = "") => [...word][0] ?? "").join("").toUpperCase();
}

export function bytes(size) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = size < 1000 ? 0 : Math.min(Math.floor(Math.log10(size) / 3), units.length - 1);
  return `${(size / 1000 ** power).toLocaleString("en", { maximumFractionDigits: power && 1 })} ${units[power]}`;
}

/** `1:59:07` or `4:31`; never below `0:00`. */
export function clock(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (number) => String(number).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

export function dateAndTime(rfc3339) {
  const text = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  return el("time", { datetime: rfc3339 }, text.format(new Date(rfc3339)));
}

/** `3 days ago`, `in 2 months`, in the largest unit that fits. */
export function ago(rfc3339) {
  const seconds = (Date.parse(rfc3339) - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? ["second", 1];
  const text = new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(Math.trunc(seconds / length), unit);
  return el("time", { datetime: rfc3339, title: rfc3339 }, text);
}

const UNITS = [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]];
