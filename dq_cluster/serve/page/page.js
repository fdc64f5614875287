// The page: what is asked, the answer, and the way from one to the next.

import * as api from "./api.js";
import {asCurl, asPython, idsAreNumbers} from "./code.js";
import {croppable} from "./crop.js";
import {fromAddress, toAddress} from "./state.js";

const MORE = 24; // neighbours that scrolling adds
const FEW = 12; // values of a column that are offered as filters
const $ = (id) => document.getElementById(id);
let about = null;
let now = {id: null, image: null, text: null, k: 12, filter: {}};
let asked = 0; // the last question counts, whatever order the answers come in
let shown = 0, ended = true;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function fail(error) {
  if (error.status === 401) $("key").hidden = false;
  $("error").textContent = error.message;
}

async function start() {
  try {
    about = await api.index();
    $("about").textContent = `version ${about.version} · ${about.rows.toLocaleString()} images · ` +
      `${about.bits} bits each · ${about.shards} shards`;
    $("file").parentElement.hidden = !about.images;
    $("text").hidden = !about.text;
    $("error").textContent = "";
    await back();
  } catch (error) { fail(error); }
}

// ---- pictures

const hasPictures = () => Boolean(about && about.pictures);

async function thumbnail(id, parent, onImage = (image) => image) {
  const empty = element("div", undefined, "none");
  parent.append(empty);
  const url = hasPictures() ? await api.picture(id) : null;
  if (!url) return;
  const image = element("img");
  image.alt = `image ${id}`;
  image.src = url;
  empty.replaceWith(onImage(image));
}

function showQuery() {
  const box = $("query");
  if (now.image) {
    const image = element("img");
    image.alt = "your picture";
    image.src = now.image;
    box.replaceChildren(croppable(image, searchImage));
  } else if (now.id !== null) {
    const place = element("div");
    box.replaceChildren(place, `image ${now.id}`);
    if (hasPictures()) thumbnail(now.id, place, (image) => about.images ? croppable(image, searchImage) : image);
  } else box.replaceChildren();
  if (now.text !== null) box.append(element("q", now.text));
}

// ---- searching

const question = (k) => ({
  ...(now.image ? {image: now.image.slice(now.image.indexOf(",") + 1)} : {}),
  ...(now.text !== null ? {text: now.text} : {}),
  ...(now.id !== null ? {id: now.id} : {}),
  ...(Object.keys(now.filter).length ? {filter: now.filter} : {}),
  k, include: about ? about.columns : [], min_coverage: 0,
});

async function search() {
  const mine = ++asked;
  $("error").textContent = "";
  try {
    const begin = performance.now();
    const answer = await api.search(question(now.k));
    if (mine !== asked) return;
    showQuery();
    showFacts(answer, performance.now() - begin);
    $("hits").replaceChildren();
    showHits(answer.hits[0]);
    showFilters(answer.hits[0]);
    showCode();
    ended = shown < now.k;
  } catch (error) {
    if (mine === asked) fail(error);
  }
}

function go(change) {
  now = {...now, k: Math.max(1, Number($("k").value) || 12), ...change};
  toAddress(now);
  return search();
}

const searchId = (id) => {
  $("id").value = id;
  $("text").value = "";
  return go({id: String(id), image: null, text: null});
};

// Words alone, or beside the picture that is being searched for.
const searchText = (text) => {
  $("id").value = "";
  return go({id: null, text});
};

const searchImage = (image) => {
  $("id").value = "";
  return go({id: null, image, text: $("text").value || null});
};

function searchFile(file) {
  const reader = new FileReader();
  reader.onload = () => searchImage(reader.result);
  reader.readAsDataURL(file);
}

// To where the address points: at the start, and when the user goes back.
async function back() {
  now = fromAddress();
  $("k").value = now.k;
  $("id").value = now.id || "";
  $("text").value = now.text || "";
  if (now.id !== null || now.image || now.text !== null) await search();
}

async function more() {
  if (ended || (now.id === null && !now.image && now.text === null)) return;
  ended = true; // one at a time
  const mine = asked;
  $("more").textContent = "more …";
  try {
    const answer = await api.search(question(shown + MORE));
    if (mine !== asked) return;
    const before = shown;
    showHits(answer.hits[0].slice(before));
    ended = shown === before;
    $("more").textContent = ended ? "no more neighbours" : "";
  } catch (error) {
    $("more").textContent = error.message;
  }
}

async function randomImage() { // the neighbours of a random direction, and one of them
  if (!about) return;
  const embedding = Array.from({length: about.dim}, () => Math.random() - 0.5);
  try {
    const answer = await api.search({embedding, k: 50, min_coverage: 0});
    const hits = answer.hits[0];
    if (hits.length) await searchId(hits[Math.floor(Math.random() * hits.length)].id);
  } catch (error) { fail(error); }
}

// ---- the answer

function showFacts(answer, elapsed) {
  const facts = $("facts");
  facts.replaceChildren();
  const fact = (name, value, kind) => {
    const span = element("span", name + " ", kind || "dim");
    span.append(element("b", value));
    facts.append(span);
  };
  const failed = answer.failed_shards.length;
  const partial = answer.coverage < 1 ? "warn" : "";
  fact("version", answer.version);
  fact("shards", `${answer.shards - failed} of ${answer.shards}` + (answer.timed_out ? ", some too slow" : ""), partial);
  fact("coverage", (100 * answer.coverage).toFixed(answer.coverage < 1 ? 2 : 0) + " %", partial);
  for (const [step, ms] of Object.entries(answer.ms)) fact(step, ms.toFixed(1) + " ms");
  fact("here", elapsed.toFixed(1) + " ms");
}

function showHits(hits) {
  if (hits.length) idsAreNumbers(hits.every((hit) => /^-?\d+$/.test(String(hit.id))));
  for (const hit of hits) {
    const item = element("li"), button = element("button");
    button.type = "button";
    item.dataset.id = hit.id;
    thumbnail(hit.id, button);
    const text = element("span", undefined, "text");
    text.append(element("b", hit.score.toFixed(4)), " ", element("span", String(hit.id), "dim"));
    for (const [name, value] of Object.entries(hit.columns)) {
      if (name !== "uri" && value !== null) text.append(element("br"), `${name}: ${value}`);
    }
    button.append(text);
    button.onclick = () => searchId(hit.id);
    item.append(button);
    $("hits").append(item);
  }
  shown = $("hits").children.length;
  $("more").textContent = shown ? "" : "no neighbours";
}

// Values that few images of the answer share, with their counts in it, and the filters that are on.
function showFilters(hits) {
  const buttons = Object.entries(now.filter).map(([name, value]) => {
    const button = element("button", `${name}: ${value} ×`);
    button.ariaPressed = "true";
    button.onclick = () => {
      const {[name]: _, ...filter} = now.filter;
      go({filter});
    };
    return button;
  });
  for (const name of about ? about.columns : []) {
    if (name === "uri" || name in now.filter) continue;
    const counts = new Map();
    for (const hit of hits) {
      const value = hit.columns[name];
      if (["string", "number", "boolean"].includes(typeof value)) counts.set(value, (counts.get(value) || 0) + 1);
    }
    if (counts.size < 2 || counts.size > FEW || counts.size === hits.length) continue;
    for (const [value, count] of [...counts].sort((a, b) => b[1] - a[1])) {
      const button = element("button", `${name}: ${value} (${count})`);
      button.ariaPressed = "false";
      button.onclick = () => go({filter: {...now.filter, [name]: value}});
      buttons.push(button);
    }
  }
  $("filters").replaceChildren(...buttons);
}

function showCode() {
  const withKey = Boolean(api.key.get());
  $("curl").textContent = asCurl(now, withKey);
  $("python").textContent = asPython(now, withKey);
  $("code").hidden = false;
}

async function showVersions() {
  if (!$("versions").open) return;
  try {
    const items = (await api.versions()).map(({version, current, serving}) => {
      const item = element("li"), button = element("button", `version ${version}`);
      button.type = "button";
      button.disabled = serving;
      button.onclick = () => serveVersion(version);
      const notes = [...(serving ? ["served"] : []), ...(current ? ["current"] : [])].join(", ");
      item.append(button, notes && ` ${notes}`);
      return item;
    });
    $("versions").querySelector("ul").replaceChildren(...items);
  } catch (error) { fail(error); }
}

async function serveVersion(version) {
  if (!confirm(`Serve version ${version} to everybody who uses this service?`)) return;
  try {
    await api.refresh(version);
    await start();
    await showVersions();
  } catch (error) { fail(error); }
}

// ---- what the user does

// Of the two boxes, the one that says something new.
function ask() {
  const id = $("id").value, text = $("text").value;
  if (text && text !== now.text) searchText(text);
  else if (id) searchId(id);
  else if (text) searchText(text);
  else if (now.image) searchImage(now.image);
}

$("key").value = api.key.get();
$("key").onchange = () => { api.key.set($("key").value); start(); };
$("ask").onsubmit = (event) => { event.preventDefault(); ask(); };
$("random").onclick = randomImage;
$("file").onchange = () => { if ($("file").files[0]) searchFile($("file").files[0]); };
$("versions").ontoggle = showVersions;
document.ondragover = (event) => { event.preventDefault(); $("drop").classList.add("over"); };
document.ondragleave = () => $("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) searchFile(event.dataTransfer.files[0]);
};
document.onpaste = (event) => { const file = event.clipboardData.files[0]; if (file) searchFile(file); };
addEventListener("popstate", back);
addEventListener("scroll", () => {
  if (innerHeight + scrollY > document.documentElement.scrollHeight - 400) more();
}, {passive: true});
document.onkeydown = (event) => {
  if (event.target.matches("input")) return;
  if (event.key === "/") { event.preventDefault(); $("id").focus(); }
  const hit = event.target.closest("#hits li");
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (hit && step) {
    const next = step > 0 ? hit.nextElementSibling : hit.previousElementSibling;
    if (next) next.firstElementChild.focus();
  }
};
start();
