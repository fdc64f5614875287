// The search on the screen as a command and as a program.

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const python = (value) => JSON.stringify(value).replace(/\bnull\b/g, "None")
  .replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False");

export function asCurl({id, k, filter}, withKey) {
  const fields = {k: String(k)};
  if (Object.keys(filter).length) fields.filter = JSON.stringify(filter);
  const subject = id !== null ? `-F ${shell("id=" + id)}` : "-F image=@picture.jpg";
  const others = Object.entries(fields).map(([name, value]) => `-F ${shell(`${name}=${value}`)}`);
  const auth = withKey ? ['-H "Authorization: Bearer $DQ_API_KEY"'] : [];
  const where = new URL("v1/search", document.baseURI).href.split("?")[0];
  return ["curl", ...auth, subject, ...others, where].join(" ");
}

export function asPython({id, k, filter}, withKey) {
  const where = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const number = id !== null && /^-?\d+$/.test(id) && numeric;
  const subject = id !== null ? `id=${number ? id : python(id)}` : 'image=Path("picture.jpg")';
  const narrowed = Object.keys(filter).length ? `, filter=${python(filter)}` : "";
  const auth = withKey ? ', api_key=os.environ["DQ_API_KEY"]' : "";
  return [
    ...(withKey ? ["import os"] : []),
    ...(id === null ? ["from pathlib import Path"] : []),
    "from dq_cluster import Client",
    "",
    `with Client(${python(where)}${auth}) as client:`,
    `    for hit in client.search(${subject}, k=${k}${narrowed}).hits[0]:`,
    "        print(hit.id, hit.score)",
  ].join("\n");
}

// Whether the ids of the index are numbers; known from its answers.
let numeric = true;
export const idsAreNumbers = (value) => { numeric = value; };
