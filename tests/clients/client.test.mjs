// The client for apps, one function after the other, in a browser made of fakes.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { GatewayError, gateway } from "../../client/client.js";

const BASE = "https://app.test/arcmanager/api/v1/";
const client = gateway(BASE);

let asked, answers;

/** Answers the calls to come, one after the other; a function is called with the request. */
function answer(...more) {
  answers.push(...more);
}

const json = (body, status = 200, headers = {}) => Response.json(body, { status, headers });
const problem = (code, status, more = {}) =>
  json({ code, detail: `about ${code}`, status, ...more }, status, { "Content-Type": "application/problem+json", "X-Request-Id": "r1" });
const session = (datahub, secondsLeft) => ({ datahub, expires_at: new Date(1.8e12 + secondsLeft * 1000).toISOString() });
const seen = (datahub, secondsLeft) => ({ ...session(datahub, secondsLeft), expires_in: secondsLeft });
const status = (...sessions) => json({ sessions, now: new Date(1.8e12).toISOString() });
const asks = () => asked.map(({ method, url }) => `${method} ${url.replace(BASE, "")}`);

globalThis.fetch = async (url, init = {}) => {
  const request = new Request(url, { ...init, ...(init.body instanceof ReadableStream && { duplex: "half" }) });
  asked.push({ method: request.method, url, headers: request.headers, body: init.body, credentials: request.credentials });
  const next = answers.shift();
  assert.ok(next, `${url} is asked, and no answer is left`);
  return typeof next === "function" ? next(request) : next;
};

/** Who shares a lock with its holders has it at once; others wait for those before them. */
const held = new Map();
const locks = {
  request(name, { mode = "exclusive", ifAvailable }, work) {
    const holders = held.get(name) ?? held.set(name, new Set()).get(name);
    const before = [...holders].filter((holder) => mode === "exclusive" || holder.mode === "exclusive");
    if (before.length && ifAvailable) return Promise.resolve(work(null));
    const mine = { mode, end: Promise.all(before.map(({ end }) => end.catch(() => {}))).then(() => work({ name, mode })) };
    holders.add(mine);
    mine.end.catch(() => {}).finally(() => holders.delete(mine));
    return mine.end;
  },
};
Object.defineProperty(globalThis, "navigator", { value: { locks }, configurable: true });

beforeEach(() => {
  [asked, answers] = [[], []];
  globalThis.location = { href: "https://app.test/app/page?tab=2&login_error=denied#part", assign: (url) => (location.went = url) };
});

const refusal = (promise) => promise.then(() => assert.fail("it was not refused"), (error) => error);

test("login leaves for the DataHUB and comes back to this page, without its last failure", () => {
  client.login("tuebingen");
  assert.equal(location.went, `${BASE}auth/login?datahub=tuebingen&return_to=%2Fapp%2Fpage%3Ftab%3D2`);
});

test("login comes back where the app says, and asks what it says", () => {
  client.login("a&b", { returnTo: "/app/?x=1&y", prompt: "login" });
  const { pathname, searchParams } = new URL(location.went);
  assert.equal(pathname, "/arcmanager/api/v1/auth/login");
  assert.deepEqual([...searchParams], [["datahub", "a&b"], ["return_to", "/app/?x=1&y"], ["prompt", "login"]]);
});

test("a link may lead where login goes", () => {
  client.login("a", { prompt: "login" });
  assert.equal(client.loginUrl("a", { prompt: "login" }), location.went);
});

test("a query without a failure stays as it is", () => {
  location.href = "https://app.test/app?q=a%20b&c";
  client.login("a");
  assert.equal(new URL(location.went).searchParams.get("return_to"), "/app?q=a%20b&c");
});

test("logout tells each listener of this and other tabs, at one DataHUB or at all", async (t) => {
  const told = [];
  const enough = (count) => new Promise((resolve) => {
    const look = () => (told.length >= count ? resolve() : setTimeout(look, 1));
    look();
  });
  const ends = [client.onsignout((datahub) => told.push(["one", datahub])), client.onsignout((datahub) => told.push(["two", datahub]))];
  const elsewhere = gateway("https://app.test/other/").onsignout(() => told.push("another gateway"));
  t.after(() => [...ends, elsewhere].forEach((end) => end()));
  answer(new Response(null, { status: 204 }), new Response(null, { status: 204 }), new Response(null, { status: 204 }));
  await client.logout("a");
  await enough(2);
  ends[1]();
  await client.logout();
  await enough(3);
  assert.deepEqual(told.map(String).sort(), ["one,", "one,a", "two,a"]);
  assert.deepEqual(asks(), ["POST auth/logout?datahub=a", "POST auth/logout"]);
});

test("where a browser has no channel, a logout is one all the same", async (t) => {
  const { BroadcastChannel } = globalThis;
  t.after(() => { globalThis.BroadcastChannel = BroadcastChannel; });
  globalThis.BroadcastChannel = function () { throw new DOMException("The operation is insecure.", "SecurityError"); };
  answer(new Response(null, { status: 204 }));
  client.onsignout(() => {})();
  await client.logout();
  assert.deepEqual(asks(), ["POST auth/logout"]);
});

test("a logout that fails tells nobody", async (t) => {
  let told = 0;
  t.after(client.onsignout(() => told++));
  answer(problem("overloaded", 503));
  assert.equal((await refusal(client.logout())).code, "overloaded");
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(told, 0);
});

test("sessions and datahubs are the gateway's lists", async () => {
  answer(status(session("a", 60)), json([{ id: "a" }]));
  assert.deepEqual(await client.sessions(), [seen("a", 60)]);
  assert.deepEqual(await client.datahubs(), [{ id: "a" }]);
  assert.deepEqual(asks(), ["GET auth/session", "GET datahubs"]);
});

test("fetch calls the DataHUB with what proves that this origin calls", async () => {
  answer(json({ id: 1 }, 201), json({}), json({}), new Response(null, { status: 304 }));
  const response = await client.fetch("a", "/api/v4/projects?x=../y", { method: "POST", body: '{"name":"n"}', headers: { "X-CSRF": "0", Accept: "b" } });
  assert.deepEqual([response.status, await response.json()], [201, { id: 1 }]);
  const [{ headers, credentials }] = asked;
  assert.deepEqual(["x-csrf", "content-type", "accept"].map((name) => headers.get(name)), ["1", "application/json", "b"]);
  assert.equal(credentials, "include");
  await client.fetch("a", "api/v4/projects", { method: "POST", body: "a", headers: new Headers({ "Content-Type": "text/plain" }) });
  assert.equal(asked[1].headers.get("content-type"), "text/plain");
  await client.fetch("a", "api/v4/projects", { method: "POST", body: new URLSearchParams({ a: "b" }) });
  assert.match(asked[2].headers.get("content-type"), /^application\/x-www-form-urlencoded/);
  assert.equal((await client.fetch("a", "api/v4/projects", { headers: { "If-None-Match": "x" } })).status, 304);
  assert.deepEqual(asks(), ["POST datahubs/a/api/v4/projects?x=../y", "POST datahubs/a/api/v4/projects", "POST datahubs/a/api/v4/projects", "GET datahubs/a/api/v4/projects"]);
});

test("no path leads to another route, and none is cut off", async () => {
  for (const [datahub, path] of [
    ["a", "../../auth/logout"], ["a", "/api/v4/projects/../user"], ["a", "api/%2E%2e/x"], ["a", "api/.%2e?x"], ["a", ".."],
    ["a", "api\\..\\x"], ["a", "api/.\t./x"], ["..", "auth/logout"], ["a", "api/v4/projects/one#two"], ["a", "api?search=C#"],
  ]) {
    assert.throws(() => client.downloadUrl(datahub, path), TypeError, path);
    await assert.rejects(client.fetch(datahub, path), TypeError, path);
    await assert.rejects(client.upload(datahub, path, { body: "" }), TypeError, path);
    await assert.rejects(client.pages(datahub, path).next(), TypeError, path);
  }
  assert.deepEqual(asked, []);
  for (const path of ["api/v4/projects/a%2F..%2Fb/files/..x/.y", "api?path=/../x", "api/%2523"]) {
    assert.equal(client.downloadUrl("a", path), `${BASE}datahubs/a/${path}`);
  }
  assert.equal(client.downloadUrl("a/b", "/x"), `${BASE}datahubs/a%2Fb/x`);
});

test("an error of the gateway has its code", async () => {
  answer(problem("not_logged_in", 401));
  const error = await refusal(client.fetch("a", "api/v4/user"));
  assert.ok(error instanceof GatewayError && error instanceof Error);
  const { name, message, code, status, requestId, body } = error;
  assert.deepEqual([name, message, code, status, requestId, body.code], ["GatewayError", "about not_logged_in", "not_logged_in", 401, "r1", "not_logged_in"]);
});

test("an error of the DataHUB has no code, whatever it says", async () => {
  for (const [body, message] of [
    [{ message: "404 Project Not Found", code: "not_logged_in" }, "404 Project Not Found"],
    [{ message: { name: ["is taken", "is short"], path: "is odd" } }, "name is taken,is short; path is odd"],
    [{ message: ["one", "two"] }, "one; two"],
    [{ error: "invalid", error_description: "a sentence" }, "a sentence"],
    [null, "The answer has status 404."],
  ]) {
    answer(json(body, 404));
    const error = await refusal(client.fetch("a", "api/v4/x"));
    assert.deepEqual([error.code, error.status, error.message, error.body], [undefined, 404, message, body]);
  }
  answer(new Response("<h1>Bad gateway</h1>", { status: 502, headers: { "Content-Type": "text/html" } }));
  const { code, message, body } = await refusal(client.fetch("a", "api/v4/x"));
  assert.deepEqual([code, message, body], [undefined, "The answer has status 502.", "<h1>Bad gateway</h1>"]);
});

test("no answer is an error with status 0, and a cancelled call is what the browser says", async () => {
  const cause = new TypeError("network");
  answer(() => Promise.reject(cause));
  const error = await refusal(client.fetch("a", "api/v4/x"));
  assert.deepEqual([error instanceof GatewayError, error.status, error.code, error.message, error.cause], [true, 0, undefined, "The gateway did not answer.", cause]);
  const controller = new AbortController();
  answer(({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))));
  const call = refusal(client.fetch("a", "api/v4/x", { signal: controller.signal }));
  controller.abort();
  assert.equal((await call).name, "AbortError");
});

test("what needs newer tokens first is sent again, once", async () => {
  answer(problem("refresh_first", 409), status(session("a", 30)), status(session("a", 7200)), json({ id: 2 }));
  const response = await client.fetch("a", "api/v4/projects", { method: "POST", body: "{}" });
  assert.equal((await response.json()).id, 2);
  const sent = "POST datahubs/a/api/v4/projects";
  assert.deepEqual(asks(), [sent, "GET auth/session", "POST auth/refresh?datahub=a", sent]);
  answer(problem("refresh_first", 409), status(), status(session("a", 7200)), problem("refresh_first", 409));
  assert.equal((await refusal(client.fetch("a", "api/v4/projects"))).code, "refresh_first");
});

test("a conflict of the DataHUB's own is not sent again", async () => {
  answer(json({ message: "refresh_first", code: "refresh_first" }, 409));
  assert.equal((await refusal(client.fetch("a", "api/v4/projects", { method: "POST" }))).status, 409);
  assert.equal(asked.length, 1);
});

test("a stream, which nobody can send twice, goes up with tokens that last", async () => {
  answer(status(session("a", 60)), status(session("a", 7200)), json({}, 201));
  await client.fetch("a", "api/v4/x", { method: "PUT", body: new ReadableStream(), duplex: "half" });
  assert.deepEqual(asks(), ["GET auth/session", "POST auth/refresh?datahub=a", "PUT datahubs/a/api/v4/x"]);
  answer(status(session("a", 7200)), problem("refresh_first", 409));
  assert.equal((await refusal(client.fetch("a", "api/v4/x", { method: "PUT", body: new ReadableStream(), duplex: "half" }))).code, "refresh_first");
  assert.equal(answers.length, 0);
});

test("pages go on for as long as Link leads on", async () => {
  const url = `${BASE}datahubs/a/api/v4/projects?page=`;
  answer(
    json([1, 2], 200, { Link: `<${url}1>; rel="first", <${url}2>; rel="next", <${url}3>; rel="last"` }),
    json([3, 4], 200, { Link: `<${url}1>; rel="prev", <${url}3>; rel="next"` }),
    json([5], 200, { Link: `<${url}2>; rel="prev", <${url}1>; rel="first"` }),
    json([]),
  );
  const lists = [];
  for await (const page of client.pages("a", "/api/v4/projects", { headers: { Accept: "application/json" } })) lists.push(page);
  assert.deepEqual(lists, [[1, 2], [3, 4], [5]]);
  assert.deepEqual(asks(), ["GET datahubs/a/api/v4/projects", "GET datahubs/a/api/v4/projects?page=2", "GET datahubs/a/api/v4/projects?page=3"]);
  assert.ok(asked.every(({ headers }) => headers.get("accept") === "application/json"));
  for await (const page of client.pages("a", "api/v4/projects")) assert.deepEqual(page, []);
});

test("whoever stops reading asks for no more pages", async () => {
  answer(json([1], 200, { Link: `<${BASE}datahubs/a/api/v4/projects?page=2>; rel="next"` }));
  for await (const page of client.pages("a", "api/v4/projects")) { assert.deepEqual(page, [1]); break; }
  assert.equal(asked.length, 1);
});

test("tokens that last are not renewed", async () => {
  answer(status(session("b", 1), session("a", 60)));
  assert.deepEqual(await client.ensureFresh("a", 60), seen("a", 60));
  answer(status(session("a", 59)), status(session("a", 7200)));
  assert.deepEqual(await client.ensureFresh("a", 60), seen("a", 7200));
  assert.deepEqual(asks(), ["GET auth/session", "GET auth/session", "POST auth/refresh?datahub=a"]);
});

test("of two tabs one refreshes for both, and another DataHUB waits for neither", async () => {
  const other = gateway(BASE);
  let release;
  answer(status(session("a", 1)), () => new Promise((resolve) => (release = resolve)));
  const first = client.ensureFresh("a", 60);
  const second = other.ensureFresh("a", 60);
  while (!release) await new Promise((resolve) => setTimeout(resolve, 1));
  answer(status(session("b", 99)));
  assert.equal((await client.ensureFresh("b", 60)).datahub, "b");
  answer(status(session("a", 7200)));
  release(status(session("a", 7200)));
  assert.deepEqual(await Promise.all([first, second]), [seen("a", 7200), seen("a", 7200)]);
  assert.equal(asks().filter((ask) => ask.startsWith("POST")).length, 1);
});

test("who is not logged in has nothing to refresh, and says so", async () => {
  answer(status(), problem("not_logged_in", 401));
  assert.equal((await refusal(client.ensureFresh("a", 60))).code, "not_logged_in");
});

test("a browser without Web Locks refreshes all the same", async () => {
  Object.defineProperty(globalThis, "navigator", { value: {}, configurable: true });
  answer(status(session("a", 1)), status(session("a", 7200)));
  assert.deepEqual(await client.ensureFresh("a", 60), seen("a", 7200));
  FakeRequest.end = (request) => request.finish(201);
  answer(status(session("a", 1)), status(session("a", 7200)));
  assert.equal((await client.upload("a", "api/v4/x", { body: "" })).status, 201);
  Object.defineProperty(globalThis, "navigator", { value: { locks }, configurable: true });
});

/** As much of XMLHttpRequest as is used. */
class FakeRequest {
  static sent = [];
  static end = (request) => request.finish(201, '{"id":3}');
  upload = {};
  headers = {};
  open(method, url) { Object.assign(this, { method, url }); }
  setRequestHeader(name, value) { this.headers[name] = value; }
  getAllResponseHeaders() { return this.fields; }
  send(body) {
    this.body = body;
    FakeRequest.sent.push(this);
    setTimeout(() => FakeRequest.end(this));
  }
  abort() { this.onabort(); this.onloadend(); }
  finish(status, text = "", kind = "application/json") {
    this.fields = `content-type: ${kind}\r\nx-empty: \r\nx-request-id: r2\r\n`;
    Object.assign(this, { status, response: new Blob([text]) });
    this.onload();
    this.onloadend();
  }
}
globalThis.XMLHttpRequest = FakeRequest;

async function uploads(end, options = {}) {
  FakeRequest.sent = [];
  FakeRequest.end = end;
  answer(status(session("a", 7200)));
  return client.upload("a", "api/v4/x", { body: "{}", ...options });
}

test("upload renews tokens that are about to end, tells how far it is, and gives a response", async () => {
  FakeRequest.sent = [];
  FakeRequest.end = (request) => {
    request.upload.onprogress({ loaded: 1, total: 2 });
    request.finish(201, '{"id":3}');
  };
  const told = [];
  answer(status(session("a", 899)), status(session("a", 7200)));
  const response = await client.upload("a", "api/v4/x", { method: "PUT", body: "{}", headers: { Accept: "c" }, onprogress: (at) => told.push(at) });
  assert.deepEqual([response.status, await response.json(), response.headers.get("X-Request-Id")], [201, { id: 3 }, "r2"]);
  assert.deepEqual(told, [{ loaded: 1, total: 2 }]);
  assert.deepEqual(asks(), ["GET auth/session", "POST auth/refresh?datahub=a"]);
  const [{ method, url, headers, withCredentials }] = FakeRequest.sent;
  assert.deepEqual([method, url, withCredentials], ["PUT", `${BASE}datahubs/a/api/v4/x`, true]);
  assert.deepEqual(headers, { accept: "c", "content-type": "application/json", "x-csrf": "1" });
});

test("an upload that is answered without a body, refused or not answered", async () => {
  assert.equal((await uploads((request) => request.finish(204))).status, 204);
  const refused = await refusal(uploads((request) => request.finish(413, '{"code":"body_too_large"}', "application/problem+json")));
  assert.deepEqual([refused.code, refused.status, refused.requestId], ["body_too_large", 413, "r2"]);
  const silent = await refusal(uploads((request) => request.onerror()));
  assert.deepEqual([silent instanceof GatewayError, silent.status], [true, 0]);
});

test("an upload is cancelled under way, or before it begins", async () => {
  const controller = new AbortController();
  const cancelled = await refusal(uploads(() => controller.abort(), { signal: controller.signal }));
  assert.equal(cancelled.name, "AbortError");
  assert.equal(FakeRequest.sent.length, 1);
  const again = await refusal(uploads(() => {}, { signal: AbortSignal.abort("enough") }));
  assert.deepEqual([again, FakeRequest.sent.length], ["enough", 0]);
});

test("an upload that needs newer tokens after all is sent again, once", async () => {
  answer();
  const ends = [
    (request) => {
      answer(status(session("a", 7200)), status(session("a", 7200)));
      request.finish(409, '{"code":"refresh_first"}', "application/problem+json");
    },
    (request) => request.finish(201),
  ];
  assert.equal((await uploads((request) => ends.shift()(request))).status, 201);
  assert.equal(FakeRequest.sent.length, 2);
});

test("an upload renews no tokens that another one is on its way up with", async () => {
  FakeRequest.sent = [];
  const running = [];
  FakeRequest.end = (request) => running.push(request);
  const until = async (count) => { while (running.length < count) await new Promise((resolve) => setTimeout(resolve, 1)); };
  answer(status(session("a", 901)));
  const first = client.upload("a", "api/v4/one", { body: "1" });
  await until(1);
  const second = gateway(BASE).upload("a", "api/v4/two", { body: "2" });
  await until(2);
  assert.deepEqual(asks(), ["GET auth/session"]);
  answer(status(session("b", 7200)));
  const elsewhere = client.upload("b", "api/v4/x", { body: "3" });
  await until(3);
  assert.deepEqual(asks(), ["GET auth/session", "GET auth/session"]);
  for (const request of running) request.finish(201);
  await Promise.all([first, second, elsewhere]);
  // Its twin: nothing is under way any more.
  answer(status(session("a", 899)), status(session("a", 7200)));
  FakeRequest.end = (request) => request.finish(201);
  await client.upload("a", "api/v4/three", { body: "4" });
  assert.deepEqual(asks().slice(-1), ["POST auth/refresh?datahub=a"]);
});

test("a gateway is named by its base path, with or without a slash", () => {
  for (const base of ["/gw", "/gw/", new URL("https://app.test/gw")]) {
    assert.equal(gateway(base).downloadUrl("a", "x"), "https://app.test/gw/datahubs/a/x");
  }
});

test("loaded from a gateway the module calls that one", async () => {
  const { downloadUrl } = await import("../../client/client.js");
  assert.equal(downloadUrl("a", "x"), new URL("../../client/datahubs/a/x", import.meta.url).href);
});
