// What the app's libraries need of the page's policy: of each, whether it works.

const PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

export async function look() {
  const bytes = Uint8Array.from(atob(PIXEL), (letter) => letter.charCodeAt(0));
  const blob = (part, type) => URL.createObjectURL(new Blob([part], { type }));
  return {
    "a style attribute in what `v-html` shows": isRed(`<p style="color: rgb(255, 0, 0)">red</p>`),
    "a style element that a script adds": isRed(`<style>.red { color: rgb(255, 0, 0) }</style><p class="red">red</p>`),
    "an image from data": await loads(`data:image/png;base64,${PIXEL}`),
    "an image from a blob": await loads(blob(bytes, "image/png")),
    "a worker from a file": await answers("worker.js"),
    "a worker from a blob": await answers(blob("onmessage = () => postMessage('here')", "text/javascript")),
  };
}

function isRed(markup) {
  const place = document.body.appendChild(document.createElement("div"));
  place.innerHTML = markup;
  const color = getComputedStyle(place.querySelector("p")).color;
  place.remove();
  return color === "rgb(255, 0, 0)";
}

function loads(src) {
  return new Promise((done) => Object.assign(new Image(), { onload: () => done(true), onerror: () => done(false), src }));
}

function answers(url) {
  return new Promise((done) => {
    try {
      const worker = new Worker(url);
      worker.onmessage = () => { worker.terminate(); done(true); };
      worker.onerror = () => done(false);
      worker.postMessage("there?");
    } catch {
      done(false); // Firefox says so at once.
    }
  });
}
