// Where everything begins: asks for the dataset, waits for its index, draws what the address says.

import { $, count, fetchJson, h, plural, rgb, title } from "./dom.js";
import * as gallery from "./gallery.js";
import * as sample from "./sample.js";
import * as state from "./state.js";

const POLL_MS = 500;
let facts = null;
let lastKey = "";

async function start() {
  let answer;
  try {
    answer = await fetchJson("api/dataset");
  } catch (error) {
    $("main").replaceChildren(h("p", { class: "wrong", role: "alert" }, `The gallery does not answer: ${error.message}`));
    return setTimeout(start, 4 * POLL_MS);
  }
  $("name").textContent = answer.name;
  document.title = `${answer.name} · Semiocity`;
  if (answer.dataset && (!facts || facts.version !== answer.dataset.version)) {
    facts = answer.dataset;
    $("name").textContent = facts.name;
    document.title = `${facts.name} · Semiocity`;
    picks();
    draw();
  }
  if (answer.building) {
    if (!facts) $("main").replaceChildren(progress(answer.building));
    return setTimeout(start, POLL_MS);
  }
  if (answer.error && !facts) $("main").replaceChildren(h("p", { class: "wrong", role: "alert" }, answer.error));
}

function progress({ done, shards, elapsed_s: elapsed }) {
  const left = done ? ` · about ${Math.ceil((elapsed / done) * (shards - done))} s left` : "";
  return h("div", { class: "progress" }, h("p", {}, "The index of this dataset is being built. It is kept for the next time."),
    h("progress", { max: shards || 1, value: done }), h("p", { class: "soft" }, `${count(done)} of ${plural(shards, "shard")}${left}`));
}

function draw() {
  if (!facts) return;
  const key = state.get("key");
  if (document.activeElement !== $("q")) $("q").value = state.get("q");
  $("sort").value = state.get("sort");
  $("view").value = state.get("view");
  $("layer").value = state.get("layer") || "base.image";
  $("tile").value = state.get("tile") || 2;
  sample.draw(facts);
  Promise.resolve(gallery.draw(facts)).then(() => {
    if (!key && lastKey) gallery.focus(lastKey);
    lastKey = key;
  });
}

// ---------------------------------------------------------------- the bar on top

function picks() {
  const option = (value, text) => h("option", { value }, text);
  const both = (name, text) => [option(name, `${text} ↑`), option(`-${name}`, `${text} ↓`)];
  $("sort").replaceChildren(option("", "by key"), ...both("name", "name"),
    ...Object.entries(facts.ranges).filter(([, range]) => range.bins).flatMap(([name]) => both(name, title(name))),
    ...Object.keys(facts.choices).filter((name) => !name.endsWith(".tombstone")).flatMap((name) => both(name, title(name))),
    h("optgroup", { label: "share of a class" }, Object.entries(facts.shares).map(([id, name]) => option(`-${name}`, `share of ${facts.classes[id].name} ↓`))));
  $("pick-view").hidden = !facts.views.length;
  $("view").replaceChildren(option("", "all rows"), ...facts.views.map((view) => h("option", { value: view.name,
    disabled: Boolean(view.error), title: view.error || `${count(view.rows)} rows` }, view.error ? `${view.name} (stale)` : view.name)));
  $("layer").replaceChildren(...facts.layers.map((layer) => option(layer.name, title(layer.title))));
}

$("sort").addEventListener("change", (event) => state.filter({ sort: event.target.value || null }));
$("view").addEventListener("change", (event) => state.filter({ view: event.target.value || null, key: null }));
$("layer").addEventListener("change", (event) => state.go({ layer: event.target.value === "base.image" ? null : event.target.value }));
$("tile").addEventListener("change", (event) => state.filter({ tile: event.target.value === "2" ? null : event.target.value }));
let typing;
$("q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => state.filter({ q: $("q").value.trim() || null, key: null }, { replace: true }), 250);
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  state.filter({ q: $("q").value.trim() || null, key: null });
});
$("brand").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  state.go(Object.fromEntries([...state.params().keys()].map((name) => [name, null])));
});
const flipFilters = () => {
  const open = document.body.classList.toggle("with-filters");
  $("toggle-filters").setAttribute("aria-expanded", String(open));
};
$("toggle-filters").addEventListener("click", flipFilters);
$("open-keys").addEventListener("click", () => $("keys").showModal());
$("open-about").addEventListener("click", about);

// ---------------------------------------------------------------- about

async function about() {
  if (!facts) return;
  const row = (name, ...values) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, ...values));
  const columns = Object.entries(facts.columns).map(([name, column]) => row(name, h("code", {}, column.revision), " ",
    column.stage ? `${column.stage.name} ${Object.values(column.stage.args || {}).filter((value) => typeof value === "string")[0] || ""}` : "",
    h("div", { class: "soft" }, [...Object.keys(column.fields), ...Object.keys(column.scalars)].join(", ")),
    column.tombstones.permanent || column.tombstones.retry ? h("div", {}, `${plural(column.tombstones.permanent, "row")} failed for good, ${count(column.tombstones.retry)} for now`) : null));
  const stale = Object.entries(facts.stale).map(([name, revision]) => row(name, h("code", {}, revision), " out of date: its parents have changed; run its job again"));
  const lost = h("div");
  $("about").replaceChildren(h("div", {},
    h("h2", {}, facts.name), facts.note ? h("p", {}, facts.note) : null,
    h("table", {}, h("tbody", {},
      row("rows", `${count(facts.of)}: `, Object.entries(facts.splits).map(([name, rows]) => `${name} ${count(rows)}`).join(", ")),
      row("licence", facts.license || "not given"), row("source", facts.source.kind || "–"), row("digest", h("code", { class: "cut", title: facts.digest }, facts.digest)))),
    h("h3", {}, "Columns"), h("table", {}, h("tbody", {}, columns, stale)),
    facts.classes.length ? h("h3", {}, "Classes") : null,
    h("div", { class: "swatches" }, facts.classes.map((spec) => h("span", {}, h("i", { class: "swatch", css: { background: rgb(spec.color) } }), spec.name))),
    facts.rejected.length ? h("h3", {}, "Not packed") : null,
    facts.rejected.length ? h("table", {}, h("tbody", {}, facts.rejected.map((item) => row(item.reason, count(item.rows), h("span", { class: "soft" }, ` ${item.means}`))))) : null,
    lost,
    h("form", { method: "dialog" }, h("button", {}, "Close"))));
  $("about").showModal();
  if (!facts.rejected.length) return;
  const { files } = await fetchJson("api/rejected");
  lost.replaceChildren(h("details", {}, h("summary", {}, `The first ${plural(files.length, "file")}`),
    h("table", { class: "files" }, h("tbody", {}, files.map((file) => h("tr", {}, h("td", {}, file.id), h("td", {}, file.reason), h("td", {}, file.detail)))))));
}

// ---------------------------------------------------------------- keyboard

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector("dialog[open]")) return;
  const field = event.target.closest && event.target.closest("input, select, textarea");
  if (field) {
    if (event.key === "Escape") field.blur();
    if (field.type !== "checkbox" || event.key === " ") return;
  }
  if (event.key === "/") { $("q").focus(); $("q").select(); }
  else if (event.key === "?") $("keys").showModal();
  else if (sample.isOpen()) { if (!sample.key(event)) return; }
  else if (event.key === "f") flipFilters();
  else if (!gallery.key(event)) return;
  event.preventDefault();
});

// The server shows another state of the dataset than this page knows.
addEventListener("changed", start);
state.onChange(draw);
start();
