// One row: its picture with layers over it, and everything that is known of it.

import { $, count, fetchJson, h, plural, rgb, short, size, title, toast } from "./dom.js";
import * as layers from "./layers.js";
import * as state from "./state.js";
import { viewer } from "./viewer.js";

const DEFAULT = 60;
let asked = 0;
let current = null;
let aside = null;
let steps = 0;

export const isOpen = () => !$("sample").hidden;

export async function draw(facts) {
  const key = state.get("key");
  if (!key) return close();
  const query = state.query().toString();
  const wanted = `${key}?${query}#${facts.version}`;
  $("sample").hidden = false;
  document.body.classList.add("in-sample");
  if (current && current.wanted === wanted) return current.sync();
  const mine = (asked += 1);
  try {
    const row = await fetchJson(`api/row/${encodeURIComponent(key)}?${query}`);
    if (mine !== asked) return;
    if (row.version !== facts.version) return dispatchEvent(new Event("changed"));
    build(facts, row, wanted);
  } catch (error) {
    if (mine !== asked) return;
    current = null;
    $("sample").replaceChildren(h("header", { class: "bar" }, back()), h("p", { class: "wrong", role: "alert" }, error.message));
  }
}

function close() {
  asked += 1;
  steps = 0;
  current = null;
  $("sample").hidden = true;
  $("sample").replaceChildren();
  document.body.classList.remove("in-sample");
}

const back = () => h("button", { type: "button", id: "back", onclick: () => state.go({ key: null }) }, "‹ Gallery");

// ---------------------------------------------------------------- layers of this row

// What can be laid over the picture: [{field, kind, entry}] in the order of their number keys.
function layersOf(row) {
  const found = [];
  for (const [column, facts] of Object.entries(row.columns)) {
    for (const [field, entry] of Object.entries(facts.fields)) {
      if (column === "base" && field === "image") continue;
      if (["label", "instance", "masks", "boxes", "picture", "text"].includes(entry.kind)) found.push({ field: `${column}.${field}`, kind: entry.kind, entry });
    }
  }
  const order = ["label", "instance", "masks", "boxes", "picture", "text"];
  return found.sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
}

async function load(facts, row, layer, width, height) {
  const field = encodeURIComponent(layer.field);
  const file = `file/${facts.version}/${field}/${row.row}`;
  switch (layer.kind) {
    case "label": return layers.label(file, facts.classes);
    case "instance": return layers.instance(`ids/${facts.version}/${field}/${row.row}`);
    case "masks": return layers.masks(file);
    case "boxes": return layers.boxes(layer.entry.value, width, height, facts.classes);
    case "text": return layers.caption(layer.entry.text || "");
    default: return layers.picture(file);
  }
}

function build(facts, row, wanted) {
  const base = row.columns.base;
  const width = base.scalars.width || 1, height = base.scalars.height || 1;
  const available = layersOf(row);
  const loaded = new Map();
  const stage = viewer(width, height, (x, y) => {
    const said = [...loaded.values()].filter((made) => made.element.isConnected).map((made) => made.at(x, y)).filter(Boolean);
    return [`${Math.floor(x * width)}, ${Math.floor(y * height)}`, ...said].join(" · ");
  });
  if (base.fields.image) {
    stage.frame.append(h("img", { class: "layer photo", id: "photo", alt: row.key, draggable: "false",
      src: `file/${facts.version}/base.image/${row.row}` }));
  } else stage.frame.append(h("p", { class: "absent" }, base.tombstone ? base.tombstone.reason : "no image"));

  const panel = { legend: h("div"), masks: h("div"), boxes: h("div") };
  const switches = available.map((layer, place) => layerSwitch(layer, place));
  const sync = async () => {
    const on = state.shown();
    for (const [place, layer] of available.entries()) {
      const percent = on.get(layer.field);
      switches[place].set(percent);
      if (percent === undefined) {
        if (loaded.has(layer.field)) loaded.get(layer.field).element.remove();
        continue;
      }
      if (!loaded.has(layer.field)) {
        try {
          const made = await load(facts, row, layer, width, height);
          if (!current || current.wanted !== wanted) return;
          loaded.set(layer.field, made);
          if (layer.kind === "label") panel.legend.replaceChildren(...legend(facts, made));
          if (layer.kind === "masks") panel.masks.replaceChildren(...maskList(layer.field, made));
          if (layer.kind === "boxes") panel.boxes.replaceChildren(...boxList(layer.field, made));
        } catch (error) {
          switches[place].fail(error.message);
          continue;
        }
      }
      // The address may have changed while this layer was on its way.
      const now = state.shown().get(layer.field);
      const { element } = loaded.get(layer.field);
      if (now === undefined) continue;
      element.style.opacity = now / 100;
      element.style.zIndex = available.length - place + (layer.kind === "text" || layer.kind === "boxes" ? 20 : 0);
      if (!element.isConnected) stage.frame.append(element);
    }
    for (const [kind, part] of [["label", panel.legend], ["masks", panel.masks], ["boxes", panel.boxes]]) {
      part.hidden = !available.some((layer) => layer.kind === kind && on.has(layer.field));
    }
  };
  current = { wanted, row, available, sync, stage };
  $("sample").replaceChildren(
    bar(row),
    h("div", { class: "split" }, stage.element,
      h("div", { class: "panel" },
        failures(row), captions(row),
        available.length ? h("section", {}, h("h2", {}, "Layers"), switches.map((item) => item.element)) : null,
        panel.legend, panel.masks, panel.boxes,
        scalars(row, facts), json(row), files(row, facts), provenance(row, facts))));
  sync();
  const more = steps;
  steps = 0;
  if (more) step(more);
  $("sample").focus({ preventScroll: true });
  for (const near of [row.next, row.previous]) if (near) new Image().src = `file/${facts.version}/base.image/${near.row}`;
}

// To a neighbour. Keys that come while a row is on its way are counted and followed when it is there.
function step(by) {
  const { row } = current;
  if (state.get("key") !== row.key) { steps += by; return; }
  const near = by > 0 ? row.next : row.previous;
  if (!near) return;
  steps = by - Math.sign(by);
  state.go({ key: near.key }, { replace: true });
}

function bar(row) {
  const near = (to, by, words, label) => h("button", { type: "button", disabled: !to, "aria-label": label, title: label,
    onclick: () => step(by) }, words);
  const place = row.position === null ? "not among the rows found" : `${count(row.position + 1)} of ${count(row.total)}`;
  return h("header", { class: "bar" }, back(),
    h("code", { id: "key" }, row.key), h("button", { type: "button", id: "copy", onclick: copy }, "Copy key"),
    h("span", { class: "grow" }), h("span", { class: "soft", id: "position" }, place),
    near(row.previous, -1, "‹", "the one before"), near(row.next, 1, "›", "the one after"));
}

async function copy() {
  const { key } = current.row;
  try {
    await navigator.clipboard.writeText(key);
  } catch {
    // No permission, or no clipboard: the old way, by selection.
    const area = h("textarea", { class: "hidden" });
    area.value = key;
    $("sample").append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(`Copied ${key}`);
}

// ---------------------------------------------------------------- the panel

function layerSwitch(layer, place) {
  const set = (percent) => {
    const on = state.shown();
    if (percent === null) on.delete(layer.field);
    else on.set(layer.field, percent);
    state.go({ show: state.showing(on) }, { replace: true });
  };
  const box = h("input", { type: "checkbox", id: `layer-${layer.field}`, onchange: () => set(box.checked ? standard(layer) : null) });
  const slider = h("input", { type: "range", min: 0, max: 100, "aria-label": `opacity of ${layer.field}`, id: `opacity-${layer.field}`,
    oninput: () => set(Number(slider.value)) });
  const number = h("output", {});
  const wrong = h("span", { class: "wrong" });
  const element = h("div", { class: "switch" },
    h("label", {}, box, " ", h("span", {}, title(layer.field))),
    place < 9 ? h("kbd", {}, place + 1) : null, slider, number, wrong);
  return {
    element,
    set(percent) {
      box.checked = percent !== undefined;
      slider.disabled = percent === undefined;
      slider.value = percent === undefined ? standard(layer) : percent;
      number.textContent = percent === undefined ? "" : `${percent} %`;
    },
    fail(message) { wrong.textContent = message; },
  };
}

const standard = (layer) => (layer.kind === "text" || layer.kind === "boxes" ? 100 : DEFAULT);

function legend(facts, made) {
  const present = facts.classes.map((spec, id) => ({ ...spec, id, share: made.shares[id] }))
    .filter((spec) => spec.share > 0).sort((a, b) => b.share - a.share);
  const buttons = new Map();
  const redraw = () => {
    made.draw();
    for (const [id, button] of buttons) button.setAttribute("aria-pressed", String(!made.hidden.has(id)));
  };
  const only = (id) => {
    const alone = present.every((spec) => made.hidden.has(spec.id) === (spec.id !== id));
    made.hidden.clear();
    if (!alone) present.forEach((spec) => { if (spec.id !== id) made.hidden.add(spec.id); });
    redraw();
  };
  const flip = (id) => { if (!made.hidden.delete(id)) made.hidden.add(id); redraw(); };
  const lines = present.map((spec) => {
    const button = h("button", { type: "button", class: "value class", "aria-pressed": "true", title: "show or hide; with Shift: this one alone",
      "data-class": spec.name, onclick: (event) => (event.shiftKey ? only(spec.id) : flip(spec.id)), ondblclick: () => only(spec.id) },
      h("i", { class: "swatch", css: { background: rgb(spec.color) } }), h("span", { class: "text" }, spec.name),
      h("span", { class: "share" }, h("i", { css: { width: `${spec.share * 100}%` } })),
      h("span", { class: "number" }, `${(spec.share * 100).toFixed(1)} %`));
    buttons.set(spec.id, button);
    return button;
  });
  const rest = 1 - present.reduce((sum, spec) => sum + spec.share, 0);
  return [h("section", {}, h("h2", {}, "Classes"), h("div", { class: "values", id: "legend" }, lines),
    rest > 1e-9 ? h("p", { class: "soft" }, `${(rest * 100).toFixed(1)} % without a class`) : null)];
}

function maskList(field, made) {
  const area = made.items.reduce((sum, item) => Math.max(sum, item.area || 0), 1);
  const lines = made.items.map((item, number) => h("button", { type: "button", class: "value class",
    onmouseenter: () => made.draw(number), onfocus: () => made.draw(number), onmouseleave: () => made.draw(), onblur: () => made.draw() },
    h("i", { class: "swatch", css: { background: rgb(layers.numberColour(number + 1)) } }),
    h("span", { class: "text" }, item.label ? String(item.label) : `mask ${number + 1}`),
    h("span", { class: "share" }, h("i", { css: { width: `${(100 * (item.area || 0)) / area}%` } })),
    h("span", { class: "number" }, typeof item.score === "number" ? `score ${short(item.score)}` : `${count(item.area || 0)} px`)));
  return [h("section", {}, h("h2", {}, `${title(field)}: ${plural(made.items.length, "mask")}`),
    made.damaged ? h("p", { class: "wrong" }, `${made.damaged} damaged`) : null, h("div", { class: "values scroll" }, lines))];
}

function boxList(field, made) {
  const tally = new Map();
  for (const item of made.items) tally.set(String(item.label), (tally.get(String(item.label)) || 0) + 1);
  return [h("section", {}, h("h2", {}, `${title(field)}: ${made.items.length}`), h("div", { class: "values" },
    [...tally].sort((a, b) => b[1] - a[1]).map(([name, rows]) => h("div", { class: "value" },
      h("i", { class: "swatch", css: { background: made.colour(name) } }), h("span", { class: "text" }, name), h("span", { class: "number" }, count(rows))))))];
}

function failures(row) {
  const found = Object.entries(row.columns).flatMap(([column, facts]) => [
    facts.tombstone && h("p", { class: `tombstone ${facts.tombstone.kind}` }, h("b", {}, `${column} failed${facts.tombstone.kind === "retry" ? " for now" : ""}: `), facts.tombstone.reason || "no reason given"),
    facts.error && h("p", { class: "tombstone permanent" }, h("b", {}, `${column}: `), facts.error)]);
  return found.some(Boolean) ? h("section", { id: "tombstones" }, found) : null;
}

function captions(row) {
  const found = [];
  for (const [column, facts] of Object.entries(row.columns)) {
    for (const [field, entry] of Object.entries(facts.fields)) {
      if (entry.kind === "text") found.push(h("blockquote", { "data-field": `${column}.${field}` }, h("p", {}, entry.text), h("cite", {}, title(`${column}.${field}`))));
    }
  }
  return found.length ? h("section", { id: "captions" }, found) : null;
}

const table = (id, heading, lines) => (lines.length ? h("section", { id }, h("h2", {}, heading), h("table", {}, h("tbody", {}, lines))) : null);
const line = (name, ...values) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, ...values));

function scalars(row, facts) {
  const lines = [], measured = [];
  const shares = new Set(Object.values(facts.shares));
  for (const [column, found] of Object.entries(row.columns)) {
    for (const [name, value] of Object.entries(found.scalars)) {
      if (value === null || value === undefined) continue;
      const scalar = `${column}.${name}`;
      if (found.fields[name] && found.fields[name].kind === "text") continue; // its whole text stands above
      if (shares.has(scalar)) {
        measured.push([value, line(name.replace("share.", ""), `${(value * 100).toFixed(2)} %`)]);
        continue;
      }
      const like = facts.choices[scalar] ? h("a", { href: state.address({ key: null, page: null, [`in.${scalar}`]: String(value) }), title: "rows like this", class: "like", onclick: inside }, String(value)) : typeof value === "number" ? short(value) : String(value);
      lines.push(line(title(scalar), like));
    }
  }
  measured.sort((a, b) => b[0] - a[0]);
  const more = measured.length ? h("details", {}, h("summary", {}, "Shares of classes"), h("table", {}, h("tbody", {}, measured.map((one) => one[1])))) : null;
  return [table("scalars", "Scalars", lines), more];
}

function inside(event) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const wanted = new URL(event.currentTarget.href).searchParams;
  const changes = Object.fromEntries([...state.params().keys()].map((name) => [name, null]));
  for (const name of wanted.keys()) changes[name] = wanted.getAll(name);
  state.go(changes);
}

function json(row) {
  const found = [];
  for (const [column, facts] of Object.entries(row.columns)) {
    for (const [field, entry] of Object.entries(facts.fields)) {
      if (entry.kind !== "json") continue;
      const text = entry.text !== undefined ? entry.text : JSON.stringify(entry.value, null, 2);
      found.push(h("details", {}, h("summary", {}, title(`${column}.${field}`)), h("pre", {}, text)));
    }
  }
  return found.length ? h("section", {}, found) : null;
}

function files(row, facts) {
  const lines = [];
  for (const [column, found] of Object.entries(row.columns)) {
    for (const [field, entry] of Object.entries(found.fields)) {
      const address = `file/${facts.version}/${encodeURIComponent(`${column}.${field}`)}/${row.row}`;
      lines.push(line(title(`${column}.${field}`), h("a", { href: `${address}?save=1`, download: "" }, `.${entry.ext}`), h("span", { class: "soft" }, ` ${size(entry.bytes)}`)));
    }
  }
  return table("files", "Files", lines);
}

function provenance(row, facts) {
  const blocks = Object.entries(facts.columns).map(([column, made]) => {
    const found = row.columns[column] || {};
    const stage = made.stage ? `${made.stage.name}, version ${made.stage.version}` : "–";
    const parents = Object.entries(found.parents || {}).map(([name, parent]) => h("div", {}, `${name} `, h("code", {}, parent.revision), " ", h("code", { class: "cut", title: parent.sha256 }, parent.sha256)));
    return h("details", { open: column !== "base" }, h("summary", {}, column, h("code", {}, made.revision)),
      h("table", {}, h("tbody", {},
        line("stage", stage),
        line("arguments", h("pre", {}, JSON.stringify((made.stage && made.stage.args) || {}, null, 1).replace(/[{}"]/g, "").trim() || "none")),
        line("model", made.model ? h("code", { class: "cut", title: made.model }, made.model) : "none"),
        line("execution", (made.executions || []).map((one) => h("div", {}, Object.entries(one).map(([k, v]) => `${k} ${v}`).join(", ")))),
        parents.length ? line("made from", parents) : null,
        line("shard", `${row.shard}, row ${row.place}`),
        found.sha256 ? line("sha256", h("code", { class: "cut", title: found.sha256 }, found.sha256)) : null)));
  });
  return h("section", { id: "provenance" }, h("h2", {}, "Provenance"), blocks);
}

// ---------------------------------------------------------------- keyboard

export function key(event) {
  if (!current) {
    if (event.key === "Escape") { state.go({ key: null }); return true; }
    return false;
  }
  const { available, stage } = current;
  const on = state.shown();
  const show = (map) => state.go({ show: state.showing(map) }, { replace: true });
  switch (event.key) {
    case "Escape": state.go({ key: null }); return true;
    case "ArrowLeft": step(-1); return true;
    case "ArrowRight": step(1); return true;
    case "c": copy(); return true;
    case "z": stage.flip(); return true;
    case "0":
      if (on.size) { aside = on; show(new Map()); } else if (aside) { show(aside); aside = null; }
      return true;
    case "-": case "+": case "=": {
      const step = event.key === "-" ? -10 : 10;
      show(new Map([...on].map(([field, percent]) => [field, Math.min(100, Math.max(0, percent + step))])));
      return true;
    }
    default: {
      const layer = /^[1-9]$/.test(event.key) ? available[Number(event.key) - 1] : null;
      if (!layer) return false;
      if (!on.delete(layer.field)) on.set(layer.field, standard(layer));
      show(on);
      return true;
    }
  }
}
