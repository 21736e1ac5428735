// What an edit changes, line by line, as it stands before a commit.

import { el } from "./dom.js";

/** Lines around a change that are shown with it. */
const CONTEXT = 3;

/** Up to so many pairs of lines are compared; beyond, a change is all that was there and all that is. */
const MAX_PAIRS = 2_000_000;

/** The changes with a heading that counts them. */
export function diffView(before, after) {
  const lines = diff(linesOf(before), linesOf(after));
  const count = (kind) => lines.filter((line) => line.kind === kind).length;
  const isNear = lines.map((_, at) => lines.slice(Math.max(0, at - CONTEXT), at + CONTEXT + 1).some(({ kind }) => kind !== "same"));
  const rows = lines.flatMap((line, at) => (isNear[at] ? row(line) : isNear[at - 1] || at === 0 ? el("p", { class: "gap" }, "…") : []));
  return [
    el("h3", { id: "diff-count" }, `What you changed: ${inLines(count("added"))} added, ${inLines(count("removed"))} removed`),
    el("div", { class: "lines", role: "region", tabindex: "0", "aria-label": "Changes" }, rows),
  ];
}

/** Each with its line end, so that a last line without one is seen to differ. */
function linesOf(text) {
  return text.match(/[^\n]*\n|[^\n]+$/g) ?? [];
}

function inLines(count) {
  return `${count} ${count === 1 ? "line" : "lines"}`;
}

function row({ kind, text }) {
  const [tag, sign, word] = { added: ["ins", "+", "Added: "], removed: ["del", "−", "Removed: "], same: ["span", " ", ""] }[kind];
  return el(tag, {},
    el("span", { class: "sign", "aria-hidden": "true" }, sign),
    word && el("span", { class: "heard" }, word),
    text.replace(/\n$/, ""),
    !text.endsWith("\n") && el("span", { class: "fine" }, " (no line end)"));
}

/** The lines of both with their kind: `same`, `removed` or `added`. */
function diff(before, after) {
  let start = 0;
  while (start < Math.min(before.length, after.length) && before[start] === after[start]) start++;
  let [endBefore, endAfter] = [before.length, after.length];
  while (endBefore > start && endAfter > start && before[endBefore - 1] === after[endAfter - 1]) [endBefore, endAfter] = [endBefore - 1, endAfter - 1];
  return [
    ...of("same", before.slice(0, start)),
    ...between(before.slice(start, endBefore), after.slice(start, endAfter)),
    ...of("same", before.slice(endBefore)),
  ];
}

function of(kind, lines) {
  return lines.map((text) => ({ kind, text }));
}

/** By the longest common subsequence. */
function between(before, after) {
  if (before.length * after.length > MAX_PAIRS) return [...of("removed", before), ...of("added", after)];
  const width = after.length + 1;
  const common = new Uint32Array((before.length + 1) * width); // How many lines the rests from here have in common.
  for (let b = before.length - 1; b >= 0; b--) {
    for (let a = after.length - 1; a >= 0; a--) {
      common[b * width + a] = before[b] === after[a]
        ? common[(b + 1) * width + a + 1] + 1
        : Math.max(common[(b + 1) * width + a], common[b * width + a + 1]);
    }
  }
  const lines = [];
  let [b, a] = [0, 0];
  while (b < before.length || a < after.length) {
    if (b < before.length && before[b] === after[a]) lines.push({ kind: "same", text: before[b++] }), a++;
    else if (a === after.length || (b < before.length && common[(b + 1) * width + a] >= common[b * width + a + 1])) lines.push({ kind: "removed", text: before[b++] });
    else lines.push({ kind: "added", text: after[a++] });
  }
  return lines;
}
