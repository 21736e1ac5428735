// Reads cookies as the app's library does: what a person's name, or any other cookie of this host, must survive.

export function cookie(wanted) {
  for (const pair of document.cookie.split("; ")) {
    const equals = pair.indexOf("=");
    if (decodeURIComponent(pair.slice(0, equals)) === wanted) {
      return opened(pair.slice(equals + 1));
    }
  }
  return null;
}

// The quotes of RFC 2068 come off; `+` is a space; an object or a list in JSON is one.
function opened(value) {
  const unquoted = value.startsWith('"') ? value.slice(1, -1).replace(/\\(["\\])/g, "$1") : value;
  const text = decodeURIComponent(unquoted.replaceAll("+", " "));
  try {
    const parsed = JSON.parse(text);
    return parsed instanceof Object ? parsed : text;
  } catch {
    return text;
  }
}
