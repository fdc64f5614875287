// What is searched for, in the address of the page, so that it can be shared and gone back to.
//
// A search by id or in words is all in the address: ?id=…&k=…&filter={"label":"cat"}. A picture of the user's
// is not: it is kept in memory, by the number that the history has.

const pictures = new Map();

export function fromAddress() {
  const asked = new URLSearchParams(location.search);
  let filter = {};
  try {
    filter = JSON.parse(asked.get("filter") || "{}");
  } catch { /* an address that somebody changed: no filter */ }
  const number = history.state && history.state.picture;
  const image = number === undefined || number === null ? null : pictures.get(number) || null;
  return {id: asked.get("id"), image, text: asked.get("text"), k: Number(asked.get("k")) || 12, filter};
}

export function toAddress({id, image, text, k, filter}) {
  const asked = new URLSearchParams();
  if (id !== null) asked.set("id", id);
  if (text !== null) asked.set("text", text);
  asked.set("k", k);
  if (Object.keys(filter).length) asked.set("filter", JSON.stringify(filter));
  let picture = null;
  if (image) {
    picture = pictures.size;
    pictures.set(picture, image);
  }
  history.pushState({picture}, "", "?" + asked);
}
