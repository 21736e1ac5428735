// The gateway's client for apps. What each function does stands in client.d.ts.

/** A token with less than this left is renewed before a long body, which would otherwise go up twice. */
const UPLOAD_AHEAD_S = 15 * 60;

export class GatewayError extends Error {
  name = "GatewayError";

  constructor(status, body, { code, requestId, cause } = {}) {
    const { detail, message, error_description, error } = Object(body);
    const silence = status ? `The answer has status ${status}.` : "The gateway did not answer.";
    super(sentence(detail ?? message ?? error_description ?? error ?? silence), { cause });
    Object.assign(this, { status, body, code, requestId });
  }
}

/** The functions for the gateway at `base`. */
export function gateway(base) {
  base = new URL(base, globalThis.location?.href).href.replace(/\/?$/, "/");

  const login = (datahub, options) => location.assign(loginUrl(datahub, options));

  const loginUrl = (datahub, { returnTo = here(), prompt } = {}) =>
    route("auth/login", { datahub, return_to: returnTo, prompt });

  const logout = async (datahub) => {
    await send(route("auth/logout", { datahub }), { method: "POST" });
    const channel = open();
    channel?.postMessage({ datahub });
    channel?.close();
  };

  /** None where Firefox blocks all cookies; nobody is logged in there. */
  const open = () => {
    try {
      return new BroadcastChannel(base);
    } catch {}
  };

  // Not the object that tells, so this tab is told, too.
  const onsignout = (listener) => {
    const channel = open();
    channel?.addEventListener("message", ({ data }) => listener(data.datahub));
    return () => channel?.close();
  };

  const datahubs = () => json(route("datahubs"));

  const sessions = () => entries(route("auth/session"));

  // Who had to wait for another tab sees what that one has brought.
  const ensureFresh = (datahub, seconds) =>
    locked(base + datahub, {}, async () => {
      const entry = async (...request) => (await entries(...request)).find((session) => session.datahub === datahub);
      const session = await entry(route("auth/session"));
      return session?.expires_in >= seconds ? session : entry(route("auth/refresh", { datahub }), { method: "POST" });
    });

  const fetch = async (datahub, path, init) => {
    const url = downloadUrl(datahub, path);
    const isStream = init?.body instanceof ReadableStream; // It cannot be sent twice.
    return isStream ? long(datahub, () => send(url, init)) : twice(datahub, () => send(url, init));
  };

  async function* pages(datahub, path, init) {
    let url = downloadUrl(datahub, path);
    while (url) {
      const response = await twice(datahub, () => send(url, init));
      yield await response.json();
      url = response.headers.get("Link")?.match(/<([^>]+)>;[^<]*\brel="?next\b/)?.[1];
    }
  }

  const upload = async (datahub, path, init) => {
    const url = downloadUrl(datahub, path);
    return long(datahub, () => twice(datahub, async () => check(await sendWithProgress(url, init))));
  };

  // No path leads to another route or DataHUB.
  const downloadUrl = (datahub, path) => {
    const target = `/${encodeURIComponent(datahub)}/${path.replace(/^\//, "")}`;
    if (/#|^[^?]*([\\\t\r\n]|\/(\.|%2e){1,2}(\/|\?|$))/i.test(target)) throw new TypeError(`${path} is no path of a DataHUB`);
    return `${base}datahubs${target}`;
  };

  const route = (path, parameters = {}) => {
    const given = Object.entries(parameters).filter(([, value]) => value !== undefined);
    return `${base}${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
  };

  const json = async (...request) => (await send(...request)).json();

  /** By the gateway's clock, whatever the browser's says. */
  const entries = async (...request) => {
    const { sessions, now } = await json(...request);
    const secondsLeft = ({ expires_at }) => (Date.parse(expires_at) - Date.parse(now)) / 1000;
    return sessions.map((session) => ({ ...session, expires_in: secondsLeft(session) }));
  };

  /** Renews tokens, unless a long body is on its way up with them. */
  const long = async (datahub, work) => {
    const uploads = `${base}${datahub}#uploads`;
    await locked(uploads, { ifAvailable: true }, (isFree) => isFree && ensureFresh(datahub, UPLOAD_AHEAD_S));
    return locked(uploads, { mode: "shared" }, work);
  };

  /** Once more, where the gateway wants newer tokens and cannot replay the call by itself. */
  const twice = async (datahub, attempt) => {
    try {
      return await attempt();
    } catch (error) {
      if (error.code !== "refresh_first") throw error;
      await ensureFresh(datahub, Infinity);
      return attempt();
    }
  };

  return { login, loginUrl, logout, onsignout, datahubs, sessions, ensureFresh, fetch, pages, upload, downloadUrl };
}

/** GitLab gives a reason as a text, a list, or an object of lists. */
function sentence(reason) {
  if (Array.isArray(reason)) return reason.join("; ");
  if (Object(reason) !== reason) return reason;
  return Object.entries(reason).map(([field, faults]) => `${field} ${faults}`).join("; ");
}

/** This page, but for the word about a login that failed. */
function here() {
  const url = new URL(location.href);
  if (url.searchParams.has("login_error")) url.searchParams.delete("login_error");
  return url.pathname + url.search;
}

/** Of all tabs. */
function locked(name, options, work) {
  return navigator.locks ? navigator.locks.request(name, options, work) : work(true);
}

/** X-CSRF is for browsers without Fetch Metadata; a text is JSON to GitLab. */
function fields({ headers, body } = {}) {
  const all = new Headers(headers);
  all.set("X-CSRF", "1");
  if (typeof body === "string" && !all.has("Content-Type")) all.set("Content-Type", "application/json");
  return all;
}

async function send(url, init) {
  const sent = globalThis.fetch(url, { credentials: "include", ...init, headers: fields(init) });
  const failed = (cause) => Promise.reject(init?.signal?.aborted ? cause : new GatewayError(0, undefined, { cause }));
  return check(await sent.catch(failed));
}

/** By XMLHttpRequest, because fetch does not tell how much has been sent. */
function sendWithProgress(url, { method = "POST", body, signal, onprogress, ...init }) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const request = new XMLHttpRequest();
    const cancel = () => request.abort();
    request.open(method, url);
    request.responseType = "blob";
    request.withCredentials = true;
    fields({ ...init, body }).forEach((value, name) => request.setRequestHeader(name, value));
    if (onprogress) request.upload.onprogress = onprogress;
    request.onload = () => {
      const { status, response } = request;
      const headers = [...request.getAllResponseHeaders().matchAll(/^(.+?): ?(.*)$/gm)].map(([, ...field]) => field);
      resolve(new Response(response.size ? response : null, { status, headers }));
    };
    request.onerror = () => reject(new GatewayError(0));
    request.onabort = () => reject(signal?.reason);
    request.onloadend = () => signal?.removeEventListener("abort", cancel);
    signal?.addEventListener("abort", cancel);
    request.send(body);
  });
}

async function check(response) {
  if (response.status < 400) return response;
  const { status, headers } = response;
  let body = await response.text().catch(() => "");
  try {
    body = JSON.parse(body);
  } catch {} // A text, then.
  const isOurs = headers.get("Content-Type")?.startsWith("application/problem+json");
  throw new GatewayError(status, body, { code: isOurs ? body.code : undefined, requestId: headers.get("X-Request-Id") });
}

/** Of the gateway that has served this file. In one expression bundlers would take it for a file to copy. */
const ownUrl = import.meta.url;
export const { login, loginUrl, logout, onsignout, datahubs, sessions, ensureFresh, fetch, pages, upload, downloadUrl } =
  gateway(new URL(".", ownUrl));
