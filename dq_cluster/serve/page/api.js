// Calls of the query API. The key stays in this tab.

export class ApiError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

export const key = {
  get: () => sessionStorage.getItem("key") || "",
  set: (value) => sessionStorage.setItem("key", value),
};

const headers = () => (key.get() ? {Authorization: "Bearer " + key.get()} : {});

async function call(path, options = {}) {
  const answer = await fetch(path, {...options, headers: {...headers(), ...options.headers}});
  // A number in JavaScript is exact up to 2^53 only: longer ids are kept as text.
  const text = (await answer.text()).replace(/"id":(-?\d{16,})(?=[,}])/g, '"id":"$1"');
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new ApiError(text.slice(0, 200) || answer.statusText, answer.status);
  }
  if (!answer.ok) throw new ApiError(body.error || answer.statusText, answer.status);
  return body;
}

const post = (path, body) => call(path, {
  method: "POST",
  headers: {"Content-Type": "application/json"},
  body: JSON.stringify(body),
});

export const index = () => call("v1/index");
export const versions = () => call("v1/index/versions");
export const refresh = (version) => post("v1/index/refresh", {version});
export const search = (question) => post("v1/search", question);

// The URL of a small picture, or null; fetched, not linked: an <img> cannot send the key.
export async function picture(id) {
  const answer = await fetch(`v1/items/${encodeURIComponent(id)}/image`, {headers: headers()});
  return answer.ok ? URL.createObjectURL(await answer.blob()) : null;
}
