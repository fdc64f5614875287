// The search on the screen as a command and as a program.

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const python = (value) => JSON.stringify(value).replace(/\bnull\b/g, "None")
  .replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False");

export function asCurl({id, image, text, k, filter}, withKey) {
  const fields = {k: String(k)};
  if (Object.keys(filter).length) fields.filter = JSON.stringify(filter);
  const subject = [
    ...(id !== null ? [`-F ${shell("id=" + id)}`] : []),
    ...(image ? ["-F image=@picture.jpg"] : []),
    ...(text !== null ? [`--form-string ${shell("text=" + text)}`] : []),
  ];
  const others = Object.entries(fields).map(([name, value]) => `-F ${shell(`${name}=${value}`)}`);
  const auth = withKey ? ['-H "Authorization: Bearer $DQ_API_KEY"'] : [];
  const where = new URL("v1/search", document.baseURI).href.split("?")[0];
  return ["curl", ...auth, ...subject, ...others, where].join(" ");
}

export function asPython({id, image, text, k, filter}, withKey) {
  const where = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const number = id !== null && /^-?\d+$/.test(id) && numeric;
  const subject = [
    ...(id !== null ? [`id=${number ? id : python(id)}`] : []),
    ...(image ? ['image=Path("picture.jpg")'] : []),
    ...(text !== null ? [`text=${python(text)}`] : []),
  ].join(", ");
  const narrowed = Object.keys(filter).length ? `, filter=${python(filter)}` : "";
  const auth = withKey ? ', api_key=os.environ["DQ_API_KEY"]' : "";
  return [
    ...(withKey ? ["import os"] : []),
    ...(image ? ["from pathlib import Path"] : []),
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
