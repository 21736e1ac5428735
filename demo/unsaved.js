// Work that would be lost if the page went away now: edits and running uploads. The browser asks before it closes.

const work = new Map();

/** Notes or, with `discard` left out, forgets a piece of work. `discard` drops it when the user agrees. */
export function setUnsaved(name, discard) {
  if (discard) work.set(name, discard);
  else work.delete(name);
}

export function hasUnsaved(name) {
  return name ? work.has(name) : work.size > 0;
}

/** True if there is nothing to lose (of this name, or at all), or if the user says that it may go. */
export function mayDiscard(name) {
  const pieces = [...work.keys()].filter((key) => !name || key === name);
  if (!pieces.length) return true;
  if (!confirm(`Discard ${pieces.join(" and ")}?`)) return false;
  for (const key of pieces) {
    work.get(key)();
    work.delete(key);
  }
  return true;
}

window.addEventListener("beforeunload", (event) => {
  if (hasUnsaved()) event.preventDefault();
});
