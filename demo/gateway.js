// A small client of the gateway: calls to DataHUBs, the sessions this browser holds, uploads with progress.

const BASE = document.querySelector('meta[name="gateway"]').content;

/** An upload refreshes a token with less than this left, so that the gateway need not ask for the body twice. */
const UPLOAD_AHEAD_MS = 15 * 60 * 1000;

/** Shows browsers without Fetch Metadata to be this origin's own script; the others need nothing. */
const PROOF = { "X-CSRF": "1" };

/** Emits `sessions` when they changed, `loggedout` after a logout, `renewed` when a call had its token refreshed on the way. */
class Gateway extends EventTarget {
  datahubs = [];
  #sessions = new Map();
  #clockSkewMs = 0;

  async start() {
    this.datahubs = await (await send(`${BASE}/datahubs`)).json();
    await this.readSessions();
  }

  datahub(id) {
    return this.datahubs.find((datahub) => datahub.id === id);
  }

  /** The session at one DataHUB, or undefined. */
  session(datahub) {
    return this.#sessions.get(datahub);
  }

  get sessions() {
    return [...this.#sessions.values()];
  }

  /** Milliseconds until the access token expires, by the gateway's clock. */
  millisecondsLeft({ expires_at }) {
    return Date.parse(expires_at) - (Date.now() + this.#clockSkewMs);
  }

  /** Where to go to log in. The gateway comes back to this page; a fragment may not travel along. */
  loginUrl(datahub, more = {}) {
    return `${BASE}/auth/login?${new URLSearchParams({ datahub, return_to: location.pathname, ...more })}`;
  }

  apiUrl(datahub, path) {
    return `${BASE}/datahubs/${datahub}/api/v4/${path}`;
  }

  async readSessions() {
    const response = await send(`${BASE}/auth/session`);
    const answer = await response.json();
    this.#sessions.clear();
    this.#learn(answer);
  }

  async refresh(datahub) {
    const response = await this.#watch(datahub, send(`${BASE}/auth/refresh?datahub=${datahub}`, { method: "POST" }));
    this.#learn(await response.json());
  }

  /** Logs out at one DataHUB, or without an argument at all of them. */
  async logout(datahub) {
    await send(`${BASE}/auth/logout${datahub ? `?datahub=${datahub}` : ""}`, { method: "POST" });
    await this.readSessions();
    this.dispatchEvent(new Event("loggedout"));
  }

  /** Calls GitLab's API at one DataHUB: resolves to the Response if it is a success, else throws a CallError. */
  call(datahub, path, { json, ...init } = {}) {
    if (json) Object.assign(init, { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } });
    return this.#watch(datahub, send(this.apiUrl(datahub, path), init));
  }

  /** Sends a JSON body that may be large; `onProgress` is told a share from 0 to 1. */
  async upload(datahub, path, { json, ...options }) {
    const session = this.session(datahub);
    if (session && this.millisecondsLeft(session) < UPLOAD_AHEAD_MS) await this.refresh(datahub);
    const body = new Blob([JSON.stringify(json)], { type: "application/json" });
    await this.#watch(datahub, sendWithProgress(this.apiUrl(datahub, path), { body, ...options }));
  }

  #learn({ sessions, now }) {
    this.#clockSkewMs = Date.parse(now) - Date.now();
    for (const session of sessions) this.#sessions.set(session.datahub, session);
    this.dispatchEvent(new Event("sessions"));
  }

  /** Learns from a call's end what became of the session. */
  async #watch(datahub, sent) {
    try {
      const response = await sent;
      // A token that is due is refreshed first; then the gateway has the browser send the call again (a 307).
      if (response.url.includes("_gateway_replay=")) {
        this.dispatchEvent(new Event("renewed"));
        this.readSessions().catch(() => {}); // Only the countdown depends on it.
      }
      return response;
    } catch (error) {
      if (error.needsLogin && this.#sessions.delete(datahub)) this.dispatchEvent(new Event("sessions"));
      throw error;
    }
  }
}

/** A call that did not succeed, with a sentence for people in `message`. Status 0: no answer at all. */
export class CallError extends Error {
  constructor(status, body = "") {
    const answer = parseObject(body);
    super(sentence(status, answer));
    this.status = status;
    this.requestId = answer.request_id;
    this.needsLogin = ["not_logged_in", "session_expired"].includes(answer.code);
  }
}

/** The gateway says `detail`; GitLab says `message` (a text, a list, or an object of lists), or `error`. */
function sentence(status, { detail, message, error_description, error }) {
  if (status === 0) return "The gateway did not answer. Please check your connection.";
  if (Array.isArray(message)) return message.join("; ");
  if (Object(message) === message) return Object.entries(message).map(([field, faults]) => `${field} ${faults}`).join("; ");
  return detail || message || error_description || error || `The DataHUB answered with status ${status}.`;
}

function parseObject(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}

async function send(url, init = {}) {
  let response;
  try {
    response = await fetch(url, { ...init, headers: { ...PROOF, ...init.headers } });
  } catch (cause) {
    throw cause.name === "AbortError" ? cause : new CallError(0);
  }
  if (!response.ok) throw new CallError(response.status, await response.text());
  return response;
}

/** XMLHttpRequest, because fetch does not tell how much has been sent. Resolves to the final URL. */
function sendWithProgress(url, { method, body, onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    for (const [name, value] of Object.entries(PROOF)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded, total }) => onProgress(loaded / total);
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) resolve({ url: request.responseURL });
      else reject(new CallError(request.status, request.responseText));
    };
    request.onerror = () => reject(new CallError(0));
    request.onabort = () => reject(signal.reason);
    signal.throwIfAborted();
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

export const gateway = new Gateway();
