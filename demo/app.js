// The demo app of arcmanager-gateway: starts the page, follows the hash, and keeps header and session bar current.
//
// Hooks for tests: [data-login=ID] [data-logout=ID] [data-session=ID] (text holds the user's name), #logout-all,
// [data-another-account=ID], #countdown, #refresh, #search-all, [data-found=ID] [data-project=NUMBER], #search,
// #projects [data-project=NUMBER], #previous-page, #next-page, [data-room=files|jobs], #tree [data-path=PATH],
// #file-text (a textarea, readonly until #edit), #edit, #diff, #commit-message, #save, #conflict, #download, #upload-input,
// #upload-folder, #upload-progress, #upload-cancel, #upload-result, #jobs [data-job=NUMBER], #trace, #trace-state,
// #banner (login errors), #status (last outcome; data-kind=ok|info|error).
// Routes: #/?search=TEXT · #/DATAHUB?page=N&search=TEXT · #/DATAHUB/PROJECT?path=PATH · #/DATAHUB/PROJECT/jobs/JOB

import { announce, el, forgetError, load, skeleton } from "./dom.js";
import { EDITS } from "./editor.js";
import { gateway } from "./gateway.js";
import { homeView } from "./home.js";
import { projectView } from "./project.js";
import { projectsView } from "./projects.js";
import { loginView, renderChips, renderSessionBar, takeRememberedRoute } from "./sessions.js";
import { mayDiscard } from "./unsaved.js";

/** Where no setting helps: only a gateway that is tried out on one machine is reached by http. */
const WEBKIT = location.protocol === "http:"
  ? " Safari and other browsers made of WebKit keep no secure cookie without https, not even of localhost: use Chromium or Firefox here."
  : "";

const LOGIN_ERRORS = {
  busy: "Too many people are logging in from your network right now. Please try again in a minute.",
  denied: "You did not allow access at the DataHUB, so you are not logged in.",
  expired: "This login took too long or was used before. Please start again.",
  unavailable: "The DataHUB cannot be reached right now. Please try again in a few minutes.",
  cookies_blocked: `Your browser blocked the gateway's cookie. Please allow cookies for this site and log in again.${WEBKIT}`,
  failed: "The login did not work. Please try again.",
};

const root = document.querySelector("#view");

/** What is on the page: the view with its key, route, hash and user, and the controller that ends its calls. */
let shown;

const comesFromLogin = restoreRoute();
document.querySelector("#skip").addEventListener("click", skipToContent);
start();

async function start() {
  root.replaceChildren(el("div", { class: "loading", "aria-busy": "true" }, skeleton(1, "title-skeleton"), skeleton(3, "card-skeleton")));
  await load(root, begin);
}

async function begin() {
  await gateway.start();
  showLoginError();
  gateway.addEventListener("sessions", sessionsChanged);
  gateway.addEventListener("loggedout", leaveIfLoggedOut);
  gateway.addEventListener("renewed", () => announce("The gateway renewed your access token during that call.", "info"));
  window.addEventListener("hashchange", followHash);
  document.addEventListener("visibilitychange", readSessionsWhenSeen);
  show(parseRoute(location.hash));
}

/** Shows a route: the view in place is told if it can go there itself, otherwise another one takes its place. */
function show(route) {
  const isFirst = !shown;
  if (!isFirst) forgetErrors();
  const user = gateway.session(route.datahub)?.user.id;
  const key = [route.datahub, route.project, route.room, user].join("/");
  if (shown?.key === key) {
    Object.assign(shown, { route, hash: location.hash });
    shown.view?.update(route);
    return;
  }
  shown?.controller.abort();
  const controller = new AbortController();
  shown = { key, user, route, controller, hash: location.hash };
  document.title = "ARC gateway demo";
  shown.view = viewFor(route, user)(root, route, controller.signal);
  renderSessions();
  if (isFirst && !comesFromLogin) return;
  // A project's heading is not there yet, and takes the focus from here.
  (root.querySelector("h1") ?? root).focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function viewFor(route, user) {
  if (!route.datahub) return homeView;
  if (!user) return loginView;
  return route.project ? projectView : projectsView;
}

function followHash() {
  const route = parseRoute(location.hash);
  if (location.hash === shown.hash) return;
  const staysInRoom = ["datahub", "project", "room"].every((part) => route[part] === shown.route[part]);
  if (mayDiscard(staysInRoom ? EDITS : undefined)) show(route);
  else history.replaceState(null, "", shown.hash || "#/");
}

/** A view that has content stays when its session ends, edits and all; the bar above it asks to log in again. */
function sessionsChanged() {
  const { route, user } = shown;
  const now = gateway.session(route.datahub)?.user.id;
  const isOther = now && now !== user;
  if (!route.datahub) shown.view.update(route);
  if (isOther && mayDiscard()) show(shown.route);
  else renderSessions();
}

function leaveIfLoggedOut() {
  if (shown.route.datahub && !gateway.session(shown.route.datahub)) location.hash = "#/";
}

function renderSessions() {
  renderChips(shown.route.datahub);
  renderSessionBar(shown.route.datahub, { viewHasContent: Boolean(shown.user) });
}

/** Perhaps the user has logged in, or out, in another tab. */
function readSessionsWhenSeen() {
  if (document.visibilityState === "visible") gateway.readSessions().catch((error) => announce(error.message, "error"));
}

/** An unknown DataHUB leads to all of them. */
function parseRoute(hash) {
  const [path, query] = hash.slice(2).split("?");
  const [datahub, project, room, job] = path.split("/");
  const { page, search = "", path: file = "" } = Object.fromEntries(new URLSearchParams(query));
  if (!gateway.datahub(datahub)) return { search };
  if (!/^\d+$/.test(project)) return { datahub, page: Number(page) || 1, search };
  if (room === "jobs") return { datahub, project, room, job: /^\d+$/.test(job) ? job : undefined };
  return { datahub, project, room: "files", path: file };
}

/** By script, because the hash is the route. */
function skipToContent(event) {
  event.preventDefault();
  root.focus();
}

/** Whether a login began on this page, as it tells by the place it left. */
function restoreRoute() {
  const route = takeRememberedRoute();
  if (route && !location.hash) history.replaceState(null, "", route);
  return Boolean(route);
}

/** An error goes with the page that it was about. */
function forgetErrors() {
  document.querySelector("#banner").hidden = true;
  forgetError();
}

function showLoginError() {
  const url = new URL(location.href);
  const code = url.searchParams.get("login_error");
  if (!code) return;
  url.searchParams.delete("login_error");
  history.replaceState(null, "", url);
  // A callback that was opened again, by going back or reloading, brings no cookie: whoever is logged in need not hear of it.
  if (code === "cookies_blocked" && gateway.sessions.length > 0) return;
  const text = Object.hasOwn(LOGIN_ERRORS, code) ? LOGIN_ERRORS[code] : LOGIN_ERRORS.failed;
  const banner = document.querySelector("#banner");
  const close = el("button", { type: "button", class: "quiet", onclick: () => { banner.hidden = true; } }, "Close");
  banner.replaceChildren(el("p", {}, text), close);
  banner.hidden = false;
}
