// A certified OpenID provider (npm oidc-provider) with GitLab's routes, scopes and rotation. It signs everybody in as user 7.
//
// The first line on standard output says where it is and how it can be bent. `POST /test/bend` with the name of a row bends
// it, with nothing straightens it; `GET /test/trapped` counts connections to an address that nobody has any business at.

import { createServer } from "node:http";
import { Provider } from "oidc-provider";

import { publicKeys, signingKey } from "./keys.js";
import { rows } from "./rows.js";

const CLIENT = { id: "gateway", secret: "a-secret-of-a-client-that-tests-look-for" };
let bent;
let trapped = 0;

const trap = createServer((_, res) => res.end("{}"));
trap.on("connection", () => { trapped += 1; });
const trapUrl = await listen(trap);

const server = createServer();
const url = await listen(server);
const provider = new Provider(url, {
  clients: [{
    client_id: CLIENT.id,
    client_secret: CLIENT.secret,
    redirect_uris: [process.argv[2]],
    grant_types: ["authorization_code", "refresh_token"],
    token_endpoint_auth_method: "client_secret_basic",
  }],
  claims: { openid: ["sub"], profile: ["name", "preferred_username"] },
  cookies: { keys: ["of no importance"] },
  features: { devInteractions: { enabled: false }, revocation: { enabled: true } },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, name: "Test", preferred_username: "testuser" }) }),
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  issueRefreshToken: () => true,
  jwks: { keys: [signingKey] },
  loadExistingGrant: consent,
  pkce: { required: () => true },
  rotateRefreshToken: true,
  routes: {
    authorization: "/oauth/authorize",
    jwks: "/oauth/discovery/keys",
    revocation: "/oauth/revoke",
    token: "/oauth/token",
    userinfo: "/oauth/userinfo",
  },
  scopes: ["openid", "profile", "api"],
  ttl: { AccessToken: 7200, IdToken: 120 },
});
provider.use(bend);
const answer = provider.callback();
server.on("request", (req, res) => {
  if (req.url === "/test/bend") return setBent(req, res);
  if (req.url === "/test/trapped") return res.end(String(trapped));
  if (req.url.startsWith("/interaction/")) return provider.interactionFinished(req, res, { login: { accountId: "7" } });
  return answer(req, res);
});
const told = rows.map(({ name, id, told = null, event = null, reason = [], isFresh = false }) => ({ name, id, told, event, reason, isFresh }));
console.log(JSON.stringify({ url, client_id: CLIENT.id, client_secret: CLIENT.secret, rows: told }));

async function listen(server) {
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return `http://127.0.0.1:${server.address().port}`;
}

async function consent(ctx) {
  const { client, session } = ctx.oidc;
  const grant = new ctx.oidc.provider.Grant({ clientId: client.clientId, accountId: session.accountId });
  grant.addOIDCScope("openid profile api");
  await grant.save();
  return grant;
}

/** Lets the provider do its work, then spoils it as the row says. */
async function bend(ctx, next) {
  await next();
  if (ctx.path.endsWith("/keys") && ctx.body?.keys) ctx.body = { keys: publicKeys };
  if (bent && new RegExp(`^${bent.path}$`).test(ctx.path)) await bent.bend(ctx, { url, trapUrl, client: CLIENT });
}

async function setBent(req, res) {
  let name = "";
  for await (const piece of req) name += piece;
  bent = rows.find((row) => row.name === name);
  res.writeHead(bent || !name ? 204 : 404).end();
}
