// Everything a provider can get wrong, one row each: what it answers, and what the gateway makes of it.
//
// `told` is the word that the app gets; without it the login succeeds. `event` is the security event, if it has a name of
// its own; `reason` is what the log says, in pieces. A row that `isFresh` bends what a gateway caches, and wants one that has
// cached nothing.

import { constants } from "node:crypto";

import { jws, ownPem, publicKeys, strangeKey } from "./keys.js";

const TOKEN = "/oauth/token";
const USERINFO = "/oauth/userinfo";
const KEYS = "/oauth/discovery/keys";
const DISCOVERY = "/.well-known/openid-configuration";
const AUTHORIZE = "/oauth/authorize(/.*)?";
const now = () => Math.floor(Date.now() / 1000);
const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });

const claimsOf = (ctx) => JSON.parse(Buffer.from(ctx.body.id_token.split(".")[1], "base64url"));

/** An ID token with other claims, rightly signed. A text is taken as the claims' JSON. */
function claims(id, name, change, told = "failed", event, reason) {
  const bend = (ctx, world) => {
    const changed = change(claimsOf(ctx), world);
    ctx.body.id_token = jws({ alg: "RS256", kid: "own" }, changed);
  };
  return { id, name, told, event, reason, path: TOKEN, bend };
}

/** An ID token whose times are wrong, and what the log says of it. */
const times = (name, change, reason) => claims("ID-05", name, change, "failed", undefined, reason);

/** An ID token with the right claims, wrongly signed. */
function signed(name, make, told = "failed", id = "ID-01") {
  const bend = (ctx, world) => { ctx.body.id_token = make(JSON.stringify(claimsOf(ctx)), world, ctx.body.id_token); };
  return { id, name, told, path: TOKEN, bend };
}

/** Another answer than the endpoint's own. */
function answer(id, name, path, change, told = "failed", more = {}) {
  return { id, name, told, path, bend: change, ...more };
}

const json = (change) => (ctx, world) => { ctx.body = { ...ctx.body, ...change(world) }; };
const without = (name) => (ctx) => { ctx.body = Object.fromEntries(Object.entries(ctx.body).filter(([key]) => key !== name)); };
const html = (ctx) => { ctx.type = "html"; ctx.body = "<!doctype html><title>GitLab is not responding</title>"; };
const huge = (ctx) => { ctx.body = { ...ctx.body, padding: "a".repeat(10 << 20) }; };
const broken = (ctx) => { ctx.status = 500; ctx.body = { error: "server_error" }; };
const slow = async () => { await pause(3000); };
const elsewhere = (status) => (ctx, { trapUrl }) => { ctx.status = status; ctx.set("Location", `${trapUrl}/`); ctx.body = ""; };

const lacking = (name) => ({ [name]: _, ...rest }) => rest;

const trouble = (id, what, path, more) => [
  answer(id, `${what}: a page`, path, html, more?.told ?? "failed", more),
  answer(id, `${what}: ten megabytes`, path, huge, more?.told ?? "failed", more),
  answer(id, `${what}: leads away`, path, elsewhere(302), more?.told ?? "failed", more),
  answer(id, `${what}: leads away, body and all`, path, elsewhere(307), more?.told ?? "failed", more),
  answer(id, `${what}: out of order`, path, broken, "unavailable", more),
  answer(id, `${what}: slow`, path, slow, "unavailable", more),
];

const CACHED = { told: "unavailable", isFresh: true };
const endpoint = (name) =>
  answer("ID-08", `discovery: ${name} elsewhere`, DISCOVERY, json(({ trapUrl }) => ({ [name]: `${trapUrl}/x` })), "unavailable", CACHED);

export const rows = [
  signed("alg none", (payload) => jws({ alg: "none" }, payload, { none: true })),
  signed("alg none, with a signature", (payload) => jws({ alg: "none", kid: "own" }, payload)),
  signed("no alg", (payload) => jws({ kid: "own" }, payload)),
  signed("HS256 with the public key", (payload) => jws({ alg: "HS256", kid: "own" }, payload, { secret: ownPem })),
  signed("HS256 with the client secret", (payload, { client }) => jws({ alg: "HS256" }, payload, { secret: client.secret })),
  signed("ES256 on the RSA key", (payload) => jws({ alg: "ES256", kid: "own" }, payload)),
  signed("ES256, with a key that is published", (payload) => jws({ alg: "ES256", kid: "elliptic" }, payload, { key: "elliptic" })),
  signed("RS256 on the elliptic key", (payload) => jws({ alg: "RS256", kid: "elliptic" }, payload, { key: "elliptic" })),
  signed("RS512", (payload) => jws({ alg: "RS512", kid: "own" }, payload, { hash: "sha512" })),
  signed("PS256", (payload) => jws({ alg: "PS256", kid: "own" }, payload, { padding: constants.RSA_PKCS1_PSS_PADDING })),
  signed("a signature of other claims", (payload, _, token) => `${jws({ alg: "RS256", kid: "own" }, payload.replace('"7"', '"8"')).split(".").slice(0, 2).join(".")}.${token.split(".")[2]}`),
  signed("a signature with one bit changed", (_, __, token) => token.slice(0, -40) + (token.at(-40) === "A" ? "B" : "A") + token.slice(-39)),
  signed("half a signature", (_, __, token) => token.slice(0, -170)),
  signed("no signature", (_, __, token) => `${token.split(".").slice(0, 2).join(".")}.`),
  signed("two parts", (_, __, token) => token.split(".").slice(0, 2).join(".")),
  signed("five parts", (_, __, token) => `${token}.a.a`),
  signed("no JSON", () => jws("{", "{")),
  signed("nothing", () => ""),
  signed("no kid, and two keys that fit", (payload) => jws({ alg: "RS256" }, payload)),
  answer("ID-01", "no kid, and one key only", `(${KEYS}|${TOKEN})`, (ctx) => {
    if (ctx.body.keys) ctx.body = { keys: [publicKeys[0]] };
    else ctx.body.id_token = jws({ alg: "RS256" }, claimsOf(ctx));
  }, null, { isFresh: true }),
  signed("as it should be", (payload) => jws({ alg: "RS256", kid: "own" }, payload), null),

  signed("a strange key", (payload) => jws({ alg: "RS256", kid: "strange" }, payload, { key: "strange" }), "failed", "ID-02"),
  signed("a strange key under our kid", (payload) => jws({ alg: "RS256", kid: "own" }, payload, { key: "strange" }), "failed", "ID-02"),
  signed("a strange key that comes along", (payload) => jws({ alg: "RS256", kid: "strange", jwk: strangeKey }, payload, { key: "strange" }), "failed", "ID-02"),
  signed("a strange key to be fetched", (payload, { trapUrl }) => jws({ alg: "RS256", kid: "strange", jku: trapUrl }, payload, { key: "strange" }), "failed", "ID-02"),
  signed("a certificate to be fetched", (payload, { trapUrl }) => jws({ alg: "RS256", x5u: trapUrl }, payload, { key: "strange" }), "failed", "ID-02"),
  signed("a certificate that comes along", (payload) => jws({ alg: "RS256", x5c: ["MIIB"] }, payload, { key: "strange" }), "failed", "ID-02"),
  signed("something critical", (payload) => jws({ alg: "RS256", kid: "own", crit: ["exp"], exp: 1 }, payload), "failed", "ID-02"),
  signed("our key, and one to be fetched", (payload, { trapUrl }) => jws({ alg: "RS256", kid: "own", jku: trapUrl }, payload), null, "ID-02"),

  claims("ID-03", "iss with a slash", (all, { url }) => ({ ...all, iss: `${url}/` }), "failed", "issuer_mismatch"),
  claims("ID-03", "iss in capitals", (all, { url }) => ({ ...all, iss: url.toUpperCase() }), "failed", "issuer_mismatch"),
  claims("ID-03", "another iss", (all, { trapUrl }) => ({ ...all, iss: trapUrl }), "failed", "issuer_mismatch"),
  claims("ID-03", "no iss", lacking("iss")),
  claims("ID-03", "a list of iss", (all) => ({ ...all, iss: [all.iss] })),
  claims("ID-03", "the right iss", (all, { url }) => ({ ...all, iss: url }), null),

  claims("ID-04", "another aud", (all) => ({ ...all, aud: "other" })),
  claims("ID-04", "one aud more", (all) => ({ ...all, aud: [all.aud, "other"] })),
  claims("ID-04", "an empty list of aud", (all) => ({ ...all, aud: [] })),
  claims("ID-04", "no aud", lacking("aud")),
  claims("ID-04", "another azp", (all) => ({ ...all, azp: "other" })),
  claims("ID-04", "an empty azp", (all) => ({ ...all, azp: "" })),
  claims("ID-04", "a list of one aud", (all) => ({ ...all, aud: [all.aud] }), null),
  claims("ID-04", "our azp", (all) => ({ ...all, azp: all.aud }), null),

  claims("ID-05", "no exp", lacking("exp")),
  times("exp 65 s ago", (all) => ({ ...all, exp: now() - 65 }), ["expired 6", " s ago: the DataHUB's clock and this machine's agree ("]),
  claims("ID-05", "exp as a text", (all) => ({ ...all, exp: String(all.exp) })),
  claims("ID-05", "exp after the end of days", (all) => JSON.stringify({ ...all, exp: 0 }).replace('"exp":0', '"exp":1e300')),
  claims("ID-05", "exp beyond what 64 bits hold", (all) => JSON.stringify({ ...all, exp: 0 }).replace('"exp":0', '"exp":99999999999999999999')),
  claims("ID-05", "exp before the beginning", (all) => ({ ...all, exp: -1 })),
  claims("ID-05", "exp long ago, with a fraction", (all) => ({ ...all, exp: 1.5 })),
  claims("ID-05", "exp as nothing", (all) => ({ ...all, exp: null })),
  times("iat 11 min ago", (all) => ({ ...all, iat: now() - 660 }), ["issued 66", " s ago, 600 s at most: the DataHUB's clock and"]),
  times("iat in 2 min", (all) => ({ ...all, iat: now() + 120 }), ["issued 1", " s in the future: the DataHUB's clock and"]),
  answer("ID-05", "iat in 2 min, by a clock that is ahead", TOKEN, (ctx) => {
    ctx.set("Date", new Date(Date.now() + 120e3).toUTCString());
    ctx.body.id_token = jws({ alg: "RS256", kid: "own" }, { ...claimsOf(ctx), iat: now() + 120 });
  }, "failed", { reason: ["issued 1", " s in the future: this machine's clock is behind the DataHUB's (20", "Z there, 20", "Z here)"] }),
  times("iat in milliseconds", (all) => ({ ...all, iat: Date.now() }), ["its iat is in milliseconds"]),
  times("exp in milliseconds", (all) => ({ ...all, exp: Date.now() + 120e3 }), ["its exp is in milliseconds"]),
  times("nbf in milliseconds", (all) => ({ ...all, nbf: Date.now() }), ["its nbf is in milliseconds"]),
  claims("ID-05", "times with fractions", (all) => ({ ...all, exp: all.exp + 0.25, nbf: now() - 0.5, iat: all.iat + 0.125 }), null),
  claims("ID-05", "no iat", lacking("iat")),
  claims("ID-05", "iat as a text", (all) => ({ ...all, iat: String(all.iat) })),
  claims("ID-05", "iat before the beginning", (all) => ({ ...all, iat: -1e300 })),
  times("nbf in 2 min", (all) => ({ ...all, nbf: now() + 120 }), ["not valid for another 1", " s: the DataHUB's clock and"]),
  claims("ID-05", "nbf as a text", (all) => ({ ...all, nbf: String(now()) })),
  claims("ID-05", "nbf after the end of days", (all) => JSON.stringify({ ...all, nbf: 0 }).replace('"nbf":0', '"nbf":1e300')),
  claims("ID-05", "clocks that differ by 30 s", (all) => ({ ...all, exp: now() - 30, nbf: now() + 30, iat: now() + 30 }), null),

  claims("ID-06", "no nonce", lacking("nonce"), "failed", "nonce_mismatch"),
  claims("ID-06", "an empty nonce", (all) => ({ ...all, nonce: "" }), "failed", "nonce_mismatch"),
  claims("ID-06", "another login's nonce", (all) => ({ ...all, nonce: "AAAAAAAAAAAAAAAAAAAAAA" }), "failed", "nonce_mismatch"),
  claims("ID-06", "the nonce with more after it", (all) => ({ ...all, nonce: `${all.nonce}A` }), "failed", "nonce_mismatch"),
  claims("ID-06", "a list of nonces", (all) => ({ ...all, nonce: [all.nonce] })),

  claims("ID-07", "no sub", lacking("sub")),
  claims("ID-07", "an empty sub", (all) => ({ ...all, sub: "" })),
  claims("ID-07", "sub as a number", (all) => ({ ...all, sub: 7 })),
  claims("ID-07", "a sub of 300 letters", (all) => ({ ...all, sub: "7".repeat(300) })),
  claims("ID-07", "another sub than userinfo's", (all) => ({ ...all, sub: "8" })),
  answer("ID-07", "userinfo of another person", USERINFO, json(() => ({ sub: "8" }))),
  answer("ID-07", "userinfo of nobody", USERINFO, without("sub")),
  answer("ID-07", "userinfo of a number", USERINFO, json(() => ({ sub: 7 }))),
  answer("ID-07", "userinfo as a list", USERINFO, (ctx) => { ctx.body = [ctx.body]; }),
  answer("ID-07", "userinfo with a strange e-mail address", USERINFO, json(() => ({ email: "a@evil@corp", email_verified: true })), null),
  ...trouble("ID-07", "userinfo", USERINFO),

  answer("ID-08", "discovery: another issuer", DISCOVERY, json(({ trapUrl }) => ({ issuer: trapUrl })), "unavailable", CACHED),
  answer("ID-08", "discovery: the issuer with a slash", DISCOVERY, json(({ url }) => ({ issuer: `${url}/` })), "unavailable", CACHED),
  answer("ID-08", "discovery: no issuer", DISCOVERY, without("issuer"), "unavailable", CACHED),
  answer("ID-08", "discovery: no token endpoint", DISCOVERY, without("token_endpoint"), "unavailable", CACHED),
  ...["authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri", "revocation_endpoint"].map(endpoint),
  answer("ID-08", "discovery: a token endpoint inside", DISCOVERY, json(() => ({ token_endpoint: "http://169.254.169.254/t" })), "unavailable", CACHED),
  answer("ID-08", "discovery: a token endpoint that is a file", DISCOVERY, json(() => ({ token_endpoint: "file:///etc/passwd" })), "unavailable", CACHED),
  ...trouble("ID-08", "discovery", DISCOVERY, CACHED),

  answer("ID-09", "keys: none", KEYS, (ctx) => { ctx.body = { keys: [] }; }, "unavailable", CACHED),
  answer("ID-09", "keys: a strange one only", KEYS, (ctx) => { ctx.body = { keys: [strangeKey] }; }, "failed", { isFresh: true }),
  answer("ID-09", "keys: one that nobody understands beside ours", KEYS, (ctx) => { ctx.body = { keys: [{ kty: "new", kid: "x" }, ...publicKeys] }; }, null, { isFresh: true }),
  ...trouble("ID-09", "keys", KEYS, CACHED),

  answer("CB-04", "the answer names no issuer", AUTHORIZE, location((to) => to.searchParams.delete("iss")), "failed", { event: "issuer_mismatch" }),
  answer("CB-04", "the answer names another issuer", AUTHORIZE, location((to) => to.searchParams.set("iss", "http://127.0.0.1:9")), "failed", { event: "issuer_mismatch" }),

  ...trouble("CB-07", "token", TOKEN),
  answer("CB-07", "token: of another kind", TOKEN, json(() => ({ token_type: "mac" }))),
  answer("CB-07", "token: of no kind", TOKEN, without("token_type")),
  answer("CB-07", "token: none", TOKEN, without("access_token")),
  answer("CB-07", "token: an empty one", TOKEN, json(() => ({ access_token: "" }))),
  answer("CB-07", "token: a number", TOKEN, json(() => ({ access_token: 7 }))),
  answer("CB-07", "token: with a line break", TOKEN, json(() => ({ access_token: "a\r\nX-Evil: 1" }))),
  answer("CB-07", "token: beyond ASCII", TOKEN, json(() => ({ access_token: "tökén" }))),
  answer("CB-07", "token: of 10 KiB", TOKEN, json(() => ({ access_token: "a".repeat(10 << 10) }))),
  answer("CB-07", "token: a refresh token with a line break", TOKEN, json(() => ({ refresh_token: "a\nb" }))),
  answer("CB-07", "token: no ID token", TOKEN, without("id_token")),
  answer("CB-07", "token: expired before it was born", TOKEN, json(() => ({ expires_in: -1 }))),
  answer("CB-07", "token: for a time in words", TOKEN, json(() => ({ expires_in: "two hours" }))),
  answer("CB-07", "token: for 0 s", TOKEN, json(() => ({ expires_in: 0 }))),
  answer("CB-07", "token: for ever", TOKEN, (ctx) => { ctx.type = "json"; ctx.body = JSON.stringify({ ...ctx.body, expires_in: 0 }).replace('"expires_in":0', '"expires_in":1e30'); }),
  answer("CB-07", "token: a list", TOKEN, (ctx) => { ctx.body = [ctx.body]; }),
  answer("CB-07", "token: half an answer", TOKEN, (ctx) => { ctx.type = "json"; ctx.body = JSON.stringify(ctx.body).slice(0, -20); }),
  answer("CB-07", "token: an error beside the token", TOKEN, (ctx) => { ctx.status = 400; ctx.body = { ...ctx.body, error: "invalid_grant" }; }),
  answer("CB-07", "token: of a kind in lower case", TOKEN, json(() => ({ token_type: "bearer" })), null),
  answer("CB-07", "token: without a lifetime", TOKEN, without("expires_in"), null),
  answer("CB-07", "token: scopes with a space too many", TOKEN, json(() => ({ scope: "openid profile api " })), null),
  answer("CB-07", "token: scopes that are spaced and ordered oddly", TOKEN, json(() => ({ scope: " api  openid\tprofile x" })), null),
  answer("CB-07", "token: scopes of nothing but a space", TOKEN, json(() => ({ scope: " " })), null),
  answer("ID-07", "userinfo of a username that begins the name", USERINFO, json(() => ({ preferred_username: "u".repeat(64), name: "u".repeat(70) })), null),
  answer("ID-07", "userinfo of a person in 3,000 groups", USERINFO, json(() => ({ groups: Array(3000).fill("a group with a path of some eighty characters".padEnd(80, "/x")) })), null),
];

/** Changes where the browser is sent back to. */
function location(change) {
  return (ctx) => {
    const to = ctx.response.get("location");
    if (!to.includes("code=")) return;
    const target = new URL(to);
    change(target);
    ctx.set("Location", target.href);
  };
}
