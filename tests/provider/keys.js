// The provider's key, two that it publishes and does not sign with, and one that is nobody's.

import { createHmac, generateKeyPairSync, sign } from "node:crypto";

const RSA = { modulusLength: 2048 };
const pairs = {
  own: generateKeyPairSync("rsa", RSA),
  elliptic: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  spare: generateKeyPairSync("rsa", RSA),
  strange: generateKeyPairSync("rsa", RSA),
};

export const signingKey = { ...pairs.own.privateKey.export({ format: "jwk" }), kid: "own", alg: "RS256", use: "sig" };
export const publicKeys = [
  { ...pairs.own.publicKey.export({ format: "jwk" }), kid: "own", alg: "RS256", use: "sig" },
  { ...pairs.elliptic.publicKey.export({ format: "jwk" }), kid: "elliptic", alg: "ES256", use: "sig" },
  { ...pairs.spare.publicKey.export({ format: "jwk" }), kid: "spare", alg: "RS256", use: "sig" },
];
export const strangeKey = { ...pairs.strange.publicKey.export({ format: "jwk" }), kid: "strange", alg: "RS256", use: "sig" };
export const ownPem = pairs.own.publicKey.export({ format: "pem", type: "spki" });

/** A JSON web signature of any header and any payload, however wrong; `how` is what is really done. */
export function jws(header, payload, how = {}) {
  const encode = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");
  const signed = `${encode(header)}.${encode(payload)}`;
  return `${signed}.${signature(signed, how)}`;
}

function signature(signed, { key = "own", hash = "sha256", secret, padding, none }) {
  if (none) return "";
  if (secret) return createHmac("sha256", secret).update(signed).digest("base64url");
  const options = { key: pairs[key].privateKey, dsaEncoding: "ieee-p1363", padding };
  return sign(hash, Buffer.from(signed), options).toString("base64url");
}
