// What the ARCmanager's app does when it is loaded, and what its buttons do. Whatever throws here leaves the page blank, as there.
import { cookie } from "./cookies.js";
import { look } from "./looks.js";

// A constant in the app's bundle.
const backend = `${location.origin}/arcmanager/api/v1/`;
const DATAHUBS = ["tuebingen", "freiburg", "plantmicrobe", "tübingen"];

sessionStorage.clear();

// Any cookie's name or value that has the word in it.
if (document.cookie.includes("error")) {
  alert(document.cookie.slice(document.cookie.indexOf("error=") + "error=".length));
}

// Seen once, when the page is loaded.
const isLoggedIn = cookie("logged_in") != null;
if (isLoggedIn) {
  sessionStorage.setItem("username", decodedAgain(`${cookie("username")}`));
}

const page = document.querySelector("#app");
page.innerHTML = `
  <header id="banner"></header>
  <p id="name"></p> <p id="countdown"></p> <p id="message"></p> <div id="changes"></div> <div id="file"></div>
  <nav>${DATAHUBS.map((id) => `<button data-login="${id}">${id}</button>`).join(" ")}</nav>
  <button id="refresh">Refresh</button> <button id="logout">Log out</button>
  <input id="pat"> <button id="add-pat">Add</button>
  <input id="path" value="projects/arc_list?owned=true&amp;page=1"> <button id="call">Call</button>
  <button id="show-changes">Changes</button> <button id="show-file">File</button>`;
const one = (id) => page.querySelector(`#${id}`);
const say = (text) => { one("message").textContent = text; };

let left = 0;
let ticking;
one("name").textContent = sessionStorage.getItem("username") ?? "";
one("logout").hidden = !isLoggedIn;
showPersonalToken();
count();

if (isLoggedIn && cookie("timer") != null) {
  call("projects/getBanner").then((banner) => { one("banner").textContent = banner?.message ?? ""; }, (error) => say(error.message));
}

for (const button of page.querySelectorAll("[data-login]")) {
  button.onclick = () => {
    // Without a path, so that this is of the page's folder, and what the gateway set stays.
    document.cookie = "error=; expires=Thu, 01 Jan 1970 00:00:00 UTC";
    location.assign(`${backend}auth/login?datahub=${button.dataset.login}`);
  };
}
one("logout").onclick = async () => {
  await fetch(`${backend}auth/logout`, { credentials: "include" });
  location.reload();
};
one("refresh").onclick = async () => {
  const answer = await fetch(`${backend}auth/refresh`, { credentials: "include" });
  if (!answer.ok) {
    say("Error refreshing your Session! Try to login again!");
    return;
  }
  say(await answer.text());
  count();
};
one("add-pat").onclick = async () => {
  const answer = await fetch(`${backend}auth/addPAT`, {
    credentials: "include",
    method: "PUT",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ pat: one("pat").value }),
  });
  say(answer.ok ? await answer.text() : (await answer.json()).detail.slice(0, 300));
  showPersonalToken();
};
one("call").onclick = () => call(one("path").value).then((data) => say(JSON.stringify(data)), (error) => say(error.message));
one("show-changes").onclick = async () => { one("changes").innerHTML = await call("projects/getChanges?id=230&branch=main"); };
one("show-file").onclick = async () => {
  const answer = await fetch(`${backend}projects/arc_file?path=a.pdf&id=230&branch=main`, { credentials: "include" });
  one("file").innerHTML = await answer.text();
};
// For the tests: what the app's libraries do besides.
window.look = look;

// Every call but those above.
async function call(path) {
  const answer = await fetch(`${backend}${path}`, { credentials: "include" });
  const data = await answer.json();
  if (!answer.ok) {
    throw new Error(`${answer.statusText}, ${data["detail"].slice(0, 300)}`);
  }
  return data;
}

// The cookie's value has been decoded once by now.
function decodedAgain(name) {
  try {
    return decodeURI(name);
  } catch {
    return decodeURI(name.split('"')[0]);
  }
}

// A token's life is taken for two hours, and what is left of it for 970 ms less with each turn.
function count() {
  clearInterval(ticking);
  if (cookie("timer") == null) {
    return;
  }
  left = Number(cookie("timer")) + 7200 - Date.now() / 1000;
  const show = () => { one("countdown").textContent = Math.max(0, left).toFixed(1); };
  show();
  ticking = setInterval(() => { left -= 1; show(); }, 970);
}

// Who has one neither sees the countdown nor can refresh.
function showPersonalToken() {
  const hasPersonalToken = cookie("pat") == "true";
  one("countdown").hidden = !isLoggedIn || hasPersonalToken;
  one("refresh").hidden = !isLoggedIn || hasPersonalToken;
}
