/** What an app calls. `datahub` is always an id from {@link Gateway.datahubs}, and not an alias. */
export interface Gateway {
  /**
   * Leaves this page to log in at a DataHUB.
   * A failure comes back as `?login_error=` in the address of the app.
   */
  login(datahub: string, options?: LoginOptions): void;

  /** The address where {@link Gateway.login} goes, for a link. */
  loginUrl(datahub: string, options?: LoginOptions): string;

  /** Logs out at one DataHUB, or without an argument at all, and tells every tab. */
  logout(datahub?: string): Promise<void>;

  /**
   * Calls the listener whenever a tab of this browser has logged out, this one included, with the DataHUB's id or
   * `undefined` for all. Gives a function that ends it.
   */
  onsignout(listener: (datahub: string | undefined) => void): () => void;

  /** Where one can log in. Needs no session. */
  datahubs(): Promise<DataHub[]>;

  /** Who is logged in, and where; nobody is an empty list. Asks no DataHUB. */
  sessions(): Promise<Session[]>;

  /**
   * Renews the session's tokens unless they last for `seconds` more. One tab does so for all (Web Locks).
   * Calls need no such care, and an upload that is under way fails if its token is renewed. `Infinity` asks for newer ones in
   * any case; the gateway keeps those that are new. A personal access token stays as it is.
   */
  ensureFresh(datahub: string, seconds: number): Promise<Session>;

  /**
   * Calls a DataHUB as the browser's own `fetch` does. `path` is as GitLab's documentation has it, with `/api/v4/`. A body that
   * is a text is JSON unless `headers` say otherwise. A status from 400 is a {@link GatewayError}, and so is no answer at all.
   */
  fetch(datahub: string, path: string, init?: RequestInit): Promise<Response>;

  /** A list, page by page, for as long as `Link` leads on. */
  pages<Item = unknown>(datahub: string, path: string, init?: RequestInit): AsyncGenerator<Item[], void, undefined>;

  /**
   * Sends a body of any size, with tokens that are not about to expire. Several may be under way: none of them renews the
   * tokens of another. The response has no `url`.
   */
  upload(datahub: string, path: string, options: UploadOptions): Promise<Response>;

  /** The address for `<a download href>`: what is there comes as a file, never as a page. */
  downloadUrl(datahub: string, path: string): string;
}

export interface LoginOptions {
  /** Where to come back to: a path of this origin with its query. Without it this page. */
  returnTo?: string;
  /** What the DataHUB is to ask the person. `login` for another account. */
  prompt?: "login" | "select_account" | "consent";
}

export interface UploadOptions {
  /** `POST` if there is none. */
  method?: string;
  headers?: HeadersInit;
  body: XMLHttpRequestBodyInit;
  /** Cancels. The promise is rejected with its reason, an `AbortError` if none was given. */
  signal?: AbortSignal;
  onprogress?: (progress: { readonly loaded: number; readonly total: number }) => void;
}

export interface DataHub {
  id: string;
  name: string;
  description: string;
  url: string;
  /** What is public there can be read without a login. */
  anonymous?: true;
}

export interface Session {
  datahub: string;
  user: { id: string; username: string; name: string };
  scopes: string[];
  /** When the access token ends (RFC 3339). It is renewed before, as long as the session lasts. */
  expires_at: string;
  /** How many seconds that was away when the gateway answered; the browser's clock may be wrong. */
  expires_in: number;
  /** When the person has to log in again (RFC 3339). */
  session_ends_at: string;
}

/** A call that failed, with a sentence in `message`. */
export class GatewayError extends Error {
  /** What the gateway refused for. `undefined`: the DataHUB's own answer, or with `status` 0 no answer at all. */
  readonly code: Code | undefined;
  /** The HTTP status; 0 without an answer. */
  readonly status: number;
  /** The answer's JSON, or its text. */
  readonly body: any;
  /** By which the gateway's log knows the call. */
  readonly requestId: string | null | undefined;
}

/** The README's table says what to do about each. */
export type Code =
  | "bad_request"
  | "bad_request_target"
  | "body_too_large"
  | "credential_endpoint"
  | "credential_parameter"
  | "cross_site_request"
  | "datahub_invalid_response"
  | "datahub_timeout"
  | "datahub_unreachable"
  | "head_too_large"
  | "internal"
  | "method_not_allowed"
  | "method_not_implemented"
  | "not_forwarded"
  | "not_found"
  | "not_logged_in"
  | "overloaded"
  | "pat_refused"
  | "prefetch_refused"
  | "rate_limited"
  | "refresh_first"
  | "refresh_unavailable"
  | "request_timeout"
  | "session_expired"
  | "session_superseded"
  | "target_too_long"
  | "unknown_datahub"
  | "upgrade_refused"
  | "wrong_host";

/** The functions for a gateway elsewhere than beside this file: for a bundle, which has a copy of it. `base` is its `server.base_path`. */
export function gateway(base: string | URL): Gateway;

export const login: Gateway["login"];
export const loginUrl: Gateway["loginUrl"];
export const logout: Gateway["logout"];
export const onsignout: Gateway["onsignout"];
export const datahubs: Gateway["datahubs"];
export const sessions: Gateway["sessions"];
export const ensureFresh: Gateway["ensureFresh"];
export const fetch: Gateway["fetch"];
export const pages: Gateway["pages"];
export const upload: Gateway["upload"];
export const downloadUrl: Gateway["downloadUrl"];
