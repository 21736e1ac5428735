// Shows the gateway's OpenAPI document, and makes its calls as the app would: by same-origin fetch, with the session's cookie.
// What comes from elsewhere becomes text and never HTML.

const base = new URL("../", location.href);
const main = document.getElementById("main");
let api, datahubs = [];

/** An element with its properties and what it holds. */
function el(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.filter((child) => child !== undefined));
  return element;
}

/** Text with what stands between backquotes as code. */
function prose(text = "") {
  return text.split("\n\n").filter(Boolean).map((paragraph) =>
    el("p", {}, ...paragraph.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part))));
}

function table(heads, rows) {
  const cells = (kind, values) => el("tr", {}, ...values.map((value) => el(kind, kind === "th" ? { scope: "col" } : {}, value)));
  const whole = el("table", {}, el("thead", {}, cells("th", heads)), el("tbody", {}, ...rows.map((row) => cells("td", row))));
  return el("div", { className: "scroll", tabIndex: 0 }, whole);
}

/** What a `$ref` means. */
function resolve(value) {
  if (!value?.$ref) return value;
  return value.$ref.slice(2).split("/").reduce((place, name) => place[name], api);
}

function json(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}

/** Who is logged in, and where one can be. */
async function showSession() {
  const bar = document.getElementById("session");
  const answer = await fetch(new URL("auth/session", base), { cache: "no-store" });
  if (!answer.ok) return bar.replaceChildren("Calls from this page are refused: ", el("a", { href: "check" }, "find out why"));
  const { sessions } = await answer.json();
  const here = new Map(sessions.map((session) => [session.datahub, session]));
  const places = datahubs.map(({ id, name }) => {
    const session = here.get(id);
    if (!session) {
      const login = new URL("auth/login", base);
      login.search = new URLSearchParams({ datahub: id, return_to: location.pathname });
      return el("a", { href: login.href }, `Log in at ${name}`);
    }
    const leave = el("button", { type: "button" }, "Log out");
    leave.onclick = async () => {
      await fetch(new URL(`auth/logout?datahub=${encodeURIComponent(id)}`, base), { method: "POST" });
      await showSession();
    };
    return el("span", {}, `${session.user.name || session.user.username} at ${name} `, leave);
  });
  bar.replaceChildren(...places.flatMap((place, index) => (index ? [" · ", place] : [place])));
}

/** One field of a call's form. */
function field(parameter) {
  const { name, required, description, schema = {}, example } = parameter;
  let input;
  if (schema.enum) {
    input = el("select", {}, el("option", { value: "" }, "–"), ...schema.enum.map((word) => el("option", {}, word)));
  } else if (name === "datahub") {
    const none = required ? [] : [el("option", { value: "" }, "–")];
    input = el("select", {}, ...none, ...datahubs.map(({ id }) => el("option", {}, id)));
  } else {
    input = el("input", { type: "text", autocomplete: "off", spellcheck: false, value: parameter.in === "path" ? example : "" });
  }
  input.required = Boolean(required);
  const label = el("label", {}, el("code", {}, name), ` (${parameter.in}${required ? ", required" : ""}) `, description, input);
  return { parameter, input, label };
}

/** Where a filled form leads. */
function target(path, fields) {
  const query = new URLSearchParams();
  for (const { parameter, input } of fields) {
    const value = input.value;
    if (parameter.in === "path") {
      const raw = parameter.name === "path" ? value.replace(/^\//, "") : encodeURIComponent(value);
      path = path.replace(`{${parameter.name}}`, () => raw);
    } else if (parameter.in === "query" && value) {
      query.append(parameter.name, value);
    }
  }
  const url = new URL(path.slice(1), base);
  return query.size ? `${url}?${query}` : url.href;
}

/** The answer to a call, as it came. */
async function show(result, send) {
  const began = performance.now();
  try {
    const answer = await send();
    const kind = answer.headers.get("content-type") ?? "";
    const bytes = await answer.arrayBuffer();
    const isText = /json|text|xml|javascript/.test(kind);
    let text = isText ? json(new TextDecoder().decode(bytes)) : `${bytes.byteLength} bytes of ${kind || "no media type"}`;
    if (text.length > 200000) text = `${text.slice(0, 200000)}\n… ${text.length} letters in all`;
    const fields = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    const line = `${answer.status} ${answer.statusText} in ${Math.round(performance.now() - began)} ms${answer.redirected ? ", sent again after a 307" : ""}`;
    result.replaceChildren(
      el("p", { className: answer.ok ? "good" : "bad" }, line),
      el("pre", { tabIndex: 0, ariaLabel: "Fields of the answer" }, fields),
      ...(bytes.byteLength ? [el("pre", { tabIndex: 0, ariaLabel: "Body of the answer" }, text)] : []),
    );
  } catch (error) {
    result.replaceChildren(el("p", { className: "bad" }, `No answer: ${error.message}`));
  }
}

/** The form by which a call is tried. */
function attempt(method, path, operation) {
  const isLink = "302" in operation.responses;
  if (!isLink && "303" in operation.responses) return prose("The DataHUB sends people here; it cannot be tried by itself.");
  const fields = (operation.parameters ?? []).map(resolve).sort((a, b) => (a.in === "header") - (b.in === "header")).map(field);
  const content = operation.requestBody?.content;
  const kind = content && Object.keys(content)[0];
  const media = el("input", { type: "text", value: kind === "*/*" ? "application/json" : kind });
  const example = content?.[kind]?.example;
  const body = el("textarea", { spellcheck: false, value: example ? JSON.stringify(example, null, 2) : "" });
  const button = el("button", { type: "submit" }, isLink ? "Open" : "Send");
  const result = el("div", { ariaLive: "polite" });
  const form = el("form", {}, ...fields.map(({ label }) => label));
  if (content) form.append(el("label", {}, "Content-Type", media), el("label", {}, "Body", body));
  form.append(button);
  form.onsubmit = async (event) => {
    event.preventDefault();
    const url = target(path, fields);
    if (isLink) return location.assign(url);
    const headers = new Headers();
    for (const { parameter, input } of fields) {
      if (parameter.in === "header" && input.value) headers.set(parameter.name, input.value);
    }
    const init = { method: method.toUpperCase(), headers, cache: "no-store" };
    if (content && body.value) {
      headers.set("Content-Type", media.value);
      init.body = body.value;
    }
    button.disabled = true;
    await show(result, () => fetch(url, init));
    button.disabled = false;
    if (path.startsWith("/auth/")) await showSession();
  };
  return [form, result];
}

/** How a call is answered: a row for each status. */
function responses(operation) {
  const rows = Object.entries(operation.responses).map(([status, reference]) => {
    const response = resolve(reference);
    const examples = Object.values(response.content ?? {}).filter((media) => media.example);
    const shown = examples.map(({ example }) =>
      el("pre", { tabIndex: 0, ariaLabel: "Example" }, typeof example === "string" ? example : JSON.stringify(example, null, 2)));
    return [status, el("div", {}, ...prose(response.description), ...shown)];
  });
  return table(["Status", "Meaning"], rows);
}

function call(path, method, operation) {
  const inside = el("div", {});
  const details = el("details", { id: `${method}${path}` },
    el("summary", {}, el("span", { className: "method" }, method.toUpperCase()), el("span", { className: "path" }, path), el("span", {}, operation.summary)),
    inside);
  details.addEventListener("toggle", () => {
    if (!details.open || inside.hasChildNodes()) return;
    inside.append(...prose(operation.description), el("h3", {}, "Try it"), ...attempt(method, path, operation), el("h3", {}, "Answers"), responses(operation));
  });
  return details;
}

function showDocument() {
  const calls = Object.entries(api.paths).flatMap(([path, item]) => Object.entries(item).map(([method, operation]) => ({ path, method, operation })));
  const parts = [...prose(api.info.description)];
  for (const { name, description } of api.tags) {
    parts.push(el("h2", { id: name }, name), ...prose(description));
    parts.push(...calls.filter(({ operation }) => operation.tags.includes(name)).map(({ path, method, operation }) => call(path, method, operation)));
  }
  parts.push(el("h2", { id: "codes" }, "Codes of failures"));
  parts.push(table(["Code", "Status", "Meaning"], Object.values(api.components.examples).map(({ value }) => [el("code", {}, value.code), String(value.status), value.detail])));
  parts.push(el("h2", { id: "cookies" }, "Cookies"));
  parts.push(table(["Cookie", "Holds", "Attributes"], api["x-cookies"].map(({ name, holds, attributes }) => [el("code", {}, name), holds, attributes])));
  parts.push(el("h2", { id: "types" }, "JSON"));
  for (const [name, schema] of Object.entries(api.components.schemas).filter(([, schema]) => schema.properties)) {
    const rows = Object.entries(schema.properties).map(([member, { description = "" }]) => [el("code", {}, member), schema.required?.includes(member) ? "always" : "sometimes", el("div", {}, ...prose(description))]);
    parts.push(el("h3", {}, name), ...prose(schema.description), table(["Member", "There", "Meaning"], rows));
  }
  main.replaceChildren(...parts);
}

try {
  [api, datahubs] = await Promise.all(["openapi.json", "datahubs"].map(async (path) => {
    const answer = await fetch(new URL(path, base));
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }));
  showDocument();
  await showSession();
} catch (error) {
  main.replaceChildren(el("p", { className: "bad" }, `The gateway did not answer as it should: ${error.message}. `, el("a", { href: "check" }, "Find out why")));
}
