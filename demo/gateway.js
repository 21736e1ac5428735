// What the demo knows of the gateway: the DataHUBs and the sessions this browser holds. Calls are the client's.

import * as client from "/arcmanager/api/v1/client.js";

/** Emits `sessions` when they changed, `loggedout` after a logout, `renewed` when a call had its token refreshed on the way. */
class Gateway extends EventTarget {
  datahubs = [];
  #sessions = new Map();

  async start() {
    this.datahubs = await client.datahubs();
    await this.readSessions();
    client.onsignout((datahub) => this.#forget(datahub));
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
  millisecondsLeft({ expires_in, readAt }) {
    return expires_in * 1000 - (Date.now() - readAt);
  }

  /** Where to go to log in. The gateway comes back to this page; a fragment may not travel along. */
  loginUrl(datahub, more) {
    return client.loginUrl(datahub, { returnTo: location.pathname, ...more });
  }

  apiUrl(datahub, path) {
    return client.downloadUrl(datahub, `/api/v4/${path}`);
  }

  async readSessions() {
    const sessions = await client.sessions();
    this.#sessions.clear();
    this.#learn(sessions);
  }

  async refresh(datahub) {
    this.#learn([await this.#watch(datahub, client.ensureFresh(datahub, Infinity))]);
  }

  /** Logs out at one DataHUB, or without an argument at all of them. */
  async logout(datahub) {
    await client.logout(datahub);
    this.#forget(datahub);
    this.dispatchEvent(new Event("loggedout"));
  }

  /** Calls GitLab's API at one DataHUB: resolves to the Response if it is a success, else throws a GatewayError. */
  call(datahub, path, { json, ...init } = {}) {
    if (json) init.body = JSON.stringify(json);
    return this.#watch(datahub, client.fetch(datahub, `/api/v4/${path}`, init));
  }

  /** Sends a body that may be large; `onProgress` is told a share from 0 to 1. */
  upload(datahub, path, { onProgress, ...init }) {
    const onprogress = ({ loaded, total }) => onProgress(loaded / total);
    return this.#watch(datahub, client.upload(datahub, `/api/v4/${path}`, { onprogress, ...init }));
  }

  /** What this tab has logged out of is heard of a second time, from the client. */
  #forget(datahub) {
    const before = this.#sessions.size;
    if (datahub) this.#sessions.delete(datahub);
    else this.#sessions.clear();
    if (this.#sessions.size < before) this.dispatchEvent(new Event("sessions"));
  }

  #learn(sessions) {
    for (const session of sessions) this.#sessions.set(session.datahub, { ...session, readAt: Date.now() });
    this.dispatchEvent(new Event("sessions"));
  }

  /** Learns from a call's end what became of the session. */
  async #watch(datahub, sent) {
    try {
      const answer = await sent;
      // A token that is due is refreshed first; then the gateway has the browser send the call again (a 307).
      if (answer.url?.includes("_gateway_replay=")) {
        this.dispatchEvent(new Event("renewed"));
        this.readSessions().catch(() => {}); // Only the countdown depends on it.
      }
      return answer;
    } catch (error) {
      const needsLogin = ["not_logged_in", "session_expired"].includes(error.code);
      if (needsLogin && this.#sessions.delete(datahub)) this.dispatchEvent(new Event("sessions"));
      explain(error);
      throw error;
    }
  }
}

/** GitLab says no more than `403 Forbidden` where it refuses. */
function explain(error) {
  if (/^\d{3} /.test(error.message)) error.message = `${REASONS[error.status] ?? "The DataHUB cannot do this."} It says “${error.message}”.`;
}

const REASONS = {
  401: "The DataHUB does not accept your login for this.",
  403: "You may not do this here.",
  404: "This is not there, or you may not see it.",
};

export const gateway = new Gateway();
