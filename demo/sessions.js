// Who you are and where: the header's chips, the session bar of the DataHUB in view, and each DataHUB's card.

import { announce, clock, dateAndTime, el, heading, icon, initials, refill } from "./dom.js";
import { gateway } from "./gateway.js";
import { hasUnsaved, mayDiscard } from "./unsaved.js";

/** Less than this left: the countdown takes a warm colour. */
const SOON_MS = 5 * 60 * 1000;

/** A chip for each session; the one in view is marked. */
export function renderChips(current) {
  const chips = gateway.sessions.map(({ datahub, user }) =>
    el("a", { class: "chip", href: `#/${datahub}`, "data-session": datahub, "aria-current": datahub === current && "true" },
      el("span", { class: "avatar", "aria-hidden": "true" }, initials(displayName(user))),
      el("span", { class: "chip-name" }, displayName(user)),
      el("span", { class: "chip-hub" }, gateway.datahub(datahub)?.name ?? datahub)));
  const everywhere = el("button", { type: "button", id: "logout-all", class: "quiet", onclick: () => logOut() }, "Log out everywhere");
  refill(document.querySelector("#chips"), ...chips, ...(chips.length ? [everywhere] : []));
}

/** The bar above a DataHUB's views. Without a session it asks to log in and leaves the view below as it is. */
export function renderSessionBar(current, { viewHasContent }) {
  const bar = document.querySelector("#session-bar");
  const datahub = gateway.datahub(current);
  const session = gateway.session(current);
  bar.hidden = !datahub || (!session && !viewHasContent);
  bar.classList.toggle("ended", !session);
  refill(bar, ...(bar.hidden ? [] : session ? sessionFacts(datahub, session) : endedSession(datahub)));
  tick();
}

function sessionFacts({ id, name }, session) {
  return [
    el("div", { class: "who" },
      el("span", { class: "avatar large", "aria-hidden": "true" }, initials(displayName(session.user))),
      el("div", {},
        el("strong", {}, displayName(session.user)),
        el("p", { class: "fine" }, `@${session.user.username} at ${name}`))),
    el("dl", { class: "facts" },
      el("div", {}, el("dt", {}, "Access token expires in"),
        el("dd", { id: "countdown", "data-datahub": id })),
      el("div", {}, el("dt", {}, "Session ends"), el("dd", {}, dateAndTime(session.session_ends_at))),
      el("div", { class: "scopes" }, el("dt", {}, "Scopes"), el("dd", {}, session.scopes.join(" ")))),
    el("div", { class: "actions" },
      el("button", { type: "button", id: "refresh", onclick: () => refreshNow(id) }, "Refresh now"),
      el("button", { type: "button", class: "quiet", "data-logout": id, onclick: () => logOut(id) }, "Log out")),
  ];
}

function endedSession(datahub) {
  return [
    el("p", { role: "alert" }, `You are not logged in at ${datahub.name} any more. Please log in again; what you see here stays.`),
    loginLink(datahub),
  ];
}

/** What a DataHUB's card holds: what it is, who you are there, and what you can do about it. */
export function datahubCard(datahub) {
  const session = gateway.session(datahub.id);
  return [
    el("h2", {}, datahub.name),
    el("p", { class: "description" }, datahub.description || "A GitLab instance for research data."),
    el("p", { class: "address" }, el("a", { href: datahub.url, target: "_blank", rel: "noreferrer" }, new URL(datahub.url).host, icon("external"))),
    el("p", { class: session ? "state in" : "state" }, session ? `Logged in as ${displayName(session.user)}` : "Not logged in"),
    el("div", { class: "actions" }, session
      ? [
          el("a", { class: "button primary", href: `#/${datahub.id}` }, "Open projects"),
          anotherAccountLink(datahub),
          el("button", { type: "button", class: "quiet", "data-logout": datahub.id, onclick: () => logOut(datahub.id) }, "Log out"),
        ]
      : loginLink(datahub)),
  ];
}

/** What stands in the place of a DataHUB's views as long as nobody is logged in there. */
export function loginView(root, { datahub }) {
  const { name, description } = gateway.datahub(datahub);
  root.replaceChildren(el("div", { class: "empty" },
    heading(name),
    el("p", {}, description || "A GitLab instance for research data."),
    el("p", {}, "Log in to see your projects here."),
    loginLink(gateway.datahub(datahub))));
}

/** A plain navigation. With unsaved work on the page it opens a new tab, so that nothing is lost. */
function loginLink({ id, name }) {
  return el("a", {
    class: "button primary",
    "data-login": id,
    "aria-label": `Log in at ${name}`,
    href: gateway.loginUrl(id),
    onclick: ({ currentTarget }) => leaveFor(currentTarget, id),
  }, "Log in");
}

/** The same, and the DataHUB asks who one is, even if it knows. The new session takes the place of this one. */
function anotherAccountLink({ id, name }) {
  return el("a", {
    class: "button quiet",
    "data-another-account": id,
    "aria-label": `Use another account at ${name}`,
    href: gateway.loginUrl(id, { prompt: "login" }),
    onclick: ({ currentTarget }) => leaveFor(currentTarget, id),
  }, "Use another account");
}

function leaveFor(link, datahub) {
  link.target = hasUnsaved() ? "_blank" : "";
  if (!hasUnsaved()) rememberRoute(datahub);
}

/** The hash is all that is ever stored: a login comes back to the same place. */
function rememberRoute(datahub) {
  const here = location.hash.split(/[/?]/)[1] === datahub;
  storage()?.setItem("route", here ? location.hash : `#/${datahub}`);
}

export function takeRememberedRoute() {
  const route = storage()?.getItem("route");
  storage()?.removeItem("route");
  return route;
}

/** None where the browser blocks all cookies: even a look at it throws there. */
function storage() {
  try {
    return sessionStorage;
  } catch {
    return undefined;
  }
}

async function refreshNow(datahub) {
  announce("Asking for a fresh token …", "info");
  try {
    await gateway.refresh(datahub);
    announce(`Your access token at ${gateway.datahub(datahub).name} is fresh.`);
  } catch (error) {
    announce(error.message, "error");
  }
}

async function logOut(datahub) {
  if (!mayDiscard()) return;
  try {
    await gateway.logout(datahub);
    announce(datahub ? `Logged out at ${gateway.datahub(datahub).name}.` : "Logged out everywhere.");
  } catch (error) {
    announce(error.message, "error");
  }
}

function displayName({ name, username }) {
  return name || username;
}

function tick() {
  const countdown = document.querySelector("#countdown");
  const session = countdown && gateway.session(countdown.dataset.datahub);
  if (!session) return;
  const left = gateway.millisecondsLeft(session);
  countdown.textContent = clock(left);
  countdown.classList.toggle("soon", left < SOON_MS);
}

setInterval(tick, 1000);
