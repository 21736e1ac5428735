// Tells an app developer what stands between this browser and the gateway. It changes nothing: what it asks by POST has no such
// method, and the cookie that it sets is removed at once.

const base = new URL("../", location.href);
const list = document.getElementById("checks");
const address = document.getElementById("address");
const localHost = /^(localhost|.*\.localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

/** One line of the list; a bad one says what to do. */
function say(isGood, title, ...todo) {
  const item = document.createElement("li");
  item.className = isGood ? "good" : "bad";
  const head = document.createElement("strong");
  head.textContent = `${isGood ? "✓" : "✗"} ${title}`;
  item.append(head, ...todo.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
  list.append(item);
  return isGood;
}

/** What the gateway answers: status, code of a failure, JSON. */
async function ask(path, init) {
  try {
    const answer = await fetch(new URL(path, base), { cache: "no-store", ...init });
    const isOurs = answer.headers.get("content-type")?.startsWith("application/problem+json");
    const body = await answer.json().catch(() => undefined);
    return { status: answer.status, code: isOurs ? body?.code : undefined, body };
  } catch (error) {
    return { status: 0, code: undefined, body: undefined, reason: error.message };
  }
}

function checkPlace() {
  const isLocal = localHost.test(location.hostname);
  say(isSecureContext, isSecureContext ? `${location.origin} is a place where cookies can be Secure` : `${location.origin} has no HTTPS`,
    ...(isSecureContext ? [] : ["Browsers drop the gateway's cookies here, and send no Fetch Metadata. Use https://, or http://localhost on this machine, and set server.public_url to the same address."]));
  const name = "__Host-gateway-check";
  document.cookie = `${name}=1; Secure; SameSite=Strict; Path=/`;
  const isKept = document.cookie.split("; ").includes(`${name}=1`);
  document.cookie = `${name}=; Secure; SameSite=Strict; Path=/; Max-Age=0`;
  say(isKept, isKept ? "This browser keeps Secure cookies here" : "This browser refuses Secure cookies here",
    ...(isKept ? [] : [
      navigator.cookieEnabled ? "" : "Cookies are blocked in its settings.",
      isLocal && location.protocol === "http:" ? "Safari and other WebKit browsers keep no Secure cookie of http://localhost: use another browser, or https." : "",
    ].filter(Boolean)));
}

function checkApp() {
  if (!URL.canParse(address.value)) return say(false, "The address of your app is none", "Write it as in the browser's bar, such as https://app.example.org/.");
  const app = new URL(address.value);
  const isHere = app.origin === location.origin;
  say(isHere, isHere ? "Your app is on the same origin as this page" : `Your app is on ${app.origin}, this page on ${location.origin}`,
    ...(isHere ? [] : ["Its calls would be cross-origin, and there is no CORS for them. Let one front or the development server serve both, or let the gateway serve the app (app.dir). On the host of public_url, which must be this machine, a development server's origin can be named in app.dev_origins."]));
}

/** Whether calls of this page pass; gives the answer of the first. */
async function checkCalls() {
  const session = await ask("auth/session");
  if (session.status === 200) {
    say(true, "Calls by fetch pass: the gateway sees Fetch Metadata");
  } else if (session.code === "wrong_host") {
    say(false, "The gateway is asked under another name than server.public_url", `A proxy in front must pass Host on: nginx by "proxy_set_header Host $http_host", a development server by its option changeOrigin, which must fit: true if public_url is the gateway's own address, false if it is the development server's.`);
  } else if (session.code === "cross_site_request") {
    const marked = await ask("auth/session", { headers: { "X-CSRF": "1" } });
    const isMissing = marked.status === 200;
    say(false, isMissing ? "Fetch Metadata is missing" : "The gateway takes calls of this page for another site's",
      isMissing ? "This browser is older than 2023, the address has no HTTPS, or a proxy in front drops Sec-Fetch-Site, -Mode and -Dest. Mend that, or send the header X-CSRF: 1 with each call." : `A proxy in front changes Origin or Fetch Metadata, or server.public_url is not ${location.origin}.`);
    return marked;
  } else {
    say(false, `The gateway does not answer as it should: ${session.code ?? (session.status || session.reason)}`, session.body?.detail ?? "Something else answers at this path, or nothing does. Look at the front's log, then the gateway's.");
  }
  return session;
}

async function checkOrigin() {
  // No route takes this, so nothing happens; but it has an Origin, as what changes something has.
  const { code } = await ask("auth/session", { method: "POST", headers: { "X-CSRF": "1" } });
  const isTaken = code === "method_not_allowed";
  say(isTaken, isTaken ? "What changes something passes, too: Origin is as it should be" : "What changes something is refused",
    ...(isTaken ? [] : [`The gateway expects another Origin than ${location.origin}. Set server.public_url to this address; or for a development server name its origin in app.dev_origins. A proxy that changes Host alone (changeOrigin) hides that from what only reads.`]));
}

function checkClock(now, received) {
  const seconds = Math.round((received - Date.parse(now)) / 1000);
  const isGood = Math.abs(seconds) <= 30;
  say(isGood, isGood ? "The clocks of this machine and the gateway agree" : `This machine's clock is ${Math.abs(seconds)} s ${seconds > 0 ? "ahead" : "behind"}`,
    ...(isGood ? [] : ["Take \"now\" of /auth/session for the time of expires_at and session_ends_at, and set the clock that is wrong."]));
}

async function checkSessions({ sessions, login_error: error }) {
  if (error) say(false, "The last login came back without its cookie", "The browser blocks cookies, or drops them without HTTPS; or the login began at another address than server.public_url.");
  const { status, body: datahubs } = await ask("datahubs");
  if (!say(status === 200, status === 200 ? `There are ${datahubs.length} DataHUBs to log in at` : "The list of DataHUBs does not come")) return;
  for (const { id, name } of datahubs) {
    if (!sessions.some(({ datahub }) => datahub === id)) {
      say(false, `Not logged in at ${name}`, `Open auth/login?datahub=${id} as a link, not by fetch. Until then nobody asks whether it can be reached.`);
      continue;
    }
    const { status, code, body } = await ask(`datahubs/${encodeURIComponent(id)}/api/v4/user`);
    say(status === 200, status === 200 ? `${name} answers` : `${name} does not: ${code ?? status}`, ...(status === 200 ? [] : [body?.detail ?? "What it says is its own; see its log."]));
  }
}

async function check() {
  list.replaceChildren();
  checkPlace();
  checkApp();
  const session = await checkCalls();
  const received = Date.now();
  if (session.status !== 200 || !session.body?.now) return;
  await checkOrigin();
  checkClock(session.body.now, received);
  await checkSessions(session.body);
}

document.getElementById("app").addEventListener("submit", (event) => {
  event.preventDefault();
  void check();
});
address.value = new URL("/", location.href).href;
await check();
