// The side of the page that narrows the rows down: classes, choices, ranges; and chips that say what is narrowed.

import { $, count, h, rgb, short, svg, title } from "./dom.js";
import * as state from "./state.js";

const FEW = 8;
const opened = new Set();

export function draw(facts, counts) {
  const active = state.params();
  const groups = [];
  if (Object.keys(facts.shares).length) groups.push(classes(facts, counts, active));
  const names = [...Object.keys(facts.choices)].sort((a, b) => rank(a) - rank(b));
  for (const name of names) if (tells(name, facts, counts) || active.has(`in.${name}`)) groups.push(choice(name, facts, counts, active));
  for (const [name, range] of Object.entries(facts.ranges)) {
    if (range.bins && range.low !== range.high) groups.push(span(name, range, counts, active));
  }
  groups.push(expression(facts, active));
  const focused = document.activeElement && document.activeElement.id;
  $("filters").replaceChildren(
    h("div", { class: "side-head" }, h("h2", {}, "Filters"),
      chips(facts).length ? h("button", { type: "button", class: "quiet", onclick: clear }, "Clear all") : null),
    ...groups,
  );
  if (focused && $(focused)) $(focused).focus();
}

// A choice between one value and nothing else is none.
function tells(name, facts, counts) {
  const none = counts.choices[name][facts.choices[name].length] > 0;
  return facts.choices[name].length + none > 1 || name.endsWith(".tombstone");
}

const rank = (name) => (name === "base.split" ? 0 : name.endsWith(".tombstone") ? 2 : 1);

function group(name, heading, ...content) {
  return h("section", { class: "facet", "data-name": name }, h("h3", {}, heading), ...content);
}

function classes(facts, counts, active) {
  const wanted = active.getAll("with"), unwanted = active.getAll("without");
  const order = Object.keys(facts.shares).map(Number).sort((a, b) => counts.classes[b] - counts.classes[a]);
  const all = opened.has("classes") || order.length <= FEW + 4;
  const chosen = (id) => wanted.includes(String(id)) || unwanted.includes(String(id));
  const lines = order.filter((id, place) => all || place < FEW || chosen(id)).map((id) => {
    const key = String(id);
    const now = wanted.includes(key) ? "with" : unwanted.includes(key) ? "without" : "";
    const next = () => {
      if (now === "") state.filter({ with: [...wanted, key] });
      else if (now === "with") state.filter({ with: wanted.filter((c) => c !== key), without: [...unwanted, key] });
      else state.filter({ without: unwanted.filter((c) => c !== key) });
    };
    return h("button", { type: "button", class: `value class ${now}`, id: `class-${id}`, onclick: next,
      "aria-pressed": now === "with" ? "true" : now === "without" ? "mixed" : "false",
      title: now === "with" ? "with: click again for without" : now === "without" ? "without: click again for either" : "click for pictures with it" },
      h("i", { class: "swatch", css: { background: rgb(facts.classes[id].color) } }),
      h("span", { class: "text" }, now === "without" ? "no " : "", facts.classes[id].name),
      h("span", { class: "number" }, count(counts.classes[id])));
  });
  const least = h("label", { class: "least" }, "at least ",
    h("input", { id: "least-share", type: "number", min: 0, max: 100, step: "any", inputmode: "decimal",
      value: active.get("share") ? Number((Number(active.get("share")) * 100).toPrecision(6)) : "", placeholder: "0",
      onchange: (event) => state.filter({ share: event.target.value ? String(Number(event.target.value) / 100) : null }) }),
    " % of the picture");
  return group("classes", "Classes", h("div", { class: "values" }, lines), more("classes", all, order.length, facts, counts), least);
}

function more(name, all, length, facts, counts) {
  if (length <= FEW + 4) return null;
  const flip = () => { if (all) opened.delete(name); else opened.add(name); draw(facts, counts); };
  return h("button", { type: "button", class: "quiet", onclick: flip }, all ? "Fewer" : `All ${length}`);
}

function choice(name, facts, counts, active) {
  const values = facts.choices[name], tally = counts.choices[name];
  const chosen = active.getAll(`in.${name}`);
  const all = opened.has(name) || values.length <= FEW + 4;
  const lines = [...values.keys(), values.length]
    .map((place) => ({ value: place < values.length ? values[place] : "", rows: tally[place] }))
    .filter(({ value, rows }, place) => chosen.includes(value) || ((value || rows) && (all || place < FEW)))
    .map(({ value, rows }) => h("label", { class: `value ${rows ? "" : "none"}` },
      h("input", { type: "checkbox", id: `in-${name}-${value}`, checked: chosen.includes(value),
        onchange: () => state.filter({ [`in.${name}`]: state.toggled(`in.${name}`, value) }) }),
      h("span", { class: "text" }, value || (name.endsWith(".tombstone") ? "made" : "no value")),
      h("span", { class: "number" }, count(rows))));
  const heading = name.endsWith(".tombstone") ? `${name.slice(0, -10)} failed` : title(name);
  return group(name, heading, h("div", { class: "values" }, lines), more(name, all, values.length, facts, counts));
}

// The same expressions as in views and on the command line; the server says what is wrong with one.
function expression(facts, active) {
  const field = h("textarea", { id: "where", rows: 3, spellcheck: "false", "aria-label": "filter expression",
    placeholder: 'width >= 512 and "car" in caption.text', onchange: () => state.filter({ where: field.value.trim() || null }),
    onkeydown: (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); field.blur(); } } });
  field.value = active.get("where") || "";
  const names = Object.entries(facts.scalars).map(([column, scalars]) => h("p", {}, h("b", {}, column), " ",
    Object.entries(scalars).map(([name, kind]) => [h("code", { title: kind }, name), " "])));
  return group("where", "Expression", field, h("details", { class: "names" }, h("summary", {}, "Names"), names));
}

// A histogram of all rows with those that are left inside it; dragging over it chooses a range.
function span(name, range, counts, active) {
  const low = active.get(`min.${name}`) || "", high = active.get(`max.${name}`) || "";
  const tally = counts.ranges[name];
  const most = Math.max(1, ...tally);
  const width = (range.end - range.low) / range.bins;
  const inside = (bin) => (low === "" || range.low + (bin + 1) * width > Number(low)) && (high === "" || range.low + bin * width <= Number(high));
  // Heights by square root: rare values stay visible beside frequent ones.
  const bars = tally.map((rows, bin) => svg("rect", { x: bin, width: 0.86, y: 30 - 30 * Math.sqrt(rows / most),
    height: 30 * Math.sqrt(rows / most), class: inside(bin) ? "in" : "out" },
    svg("title", {}, `${short(range.low + bin * width)} … ${short(range.low + (bin + 1) * width)}: ${count(rows)}`)));
  const chart = svg("svg", { viewBox: `0 0 ${range.bins} 30`, preserveAspectRatio: "none", class: "histogram", role: "img",
    "aria-label": `histogram of ${title(name)}` }, svg("rect", { width: range.bins, height: 30, class: "ground" }), bars);
  const whole = Number.isInteger(range.low) && Number.isInteger(range.high) && width === 1;
  drag(chart, (from, to) => {
    const first = Math.floor(Math.min(from, to) * range.bins), last = Math.ceil(Math.max(from, to) * range.bins);
    const ends = whole ? [range.low + first, range.low + last - 1] : [range.low + first * width, range.low + last * width];
    state.filter({ [`min.${name}`]: tidy(ends[0]), [`max.${name}`]: tidy(Math.min(ends[1], range.high)) });
  });
  const field = (which, value, placeholder) => h("input", { type: "number", step: "any", value, placeholder,
    id: `${which}-${name}`, "aria-label": `${which} of ${title(name)}`,
    onchange: (event) => state.filter({ [`${which}.${name}`]: event.target.value || null }) });
  return group(name, title(name), chart,
    h("div", { class: "ends" }, field("min", low, short(range.low)), h("span", {}, "to"), field("max", high, short(range.high))));
}

const tidy = (value) => String(Number(value.toPrecision(6)));

function drag(chart, done) {
  let from = null;
  const place = (event) => {
    const box = chart.getBoundingClientRect();
    return Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
  };
  chart.addEventListener("pointerdown", (event) => { from = place(event); chart.setPointerCapture(event.pointerId); });
  chart.addEventListener("pointerup", (event) => { if (from !== null) done(from, place(event)); from = null; });
}

// What is narrowed, as [words, the change that lifts it].
export function chips(facts) {
  const found = [];
  const active = state.params();
  const without = (name, value) => ({ [name]: active.getAll(name).filter((item) => item !== value) });
  if (active.get("q")) found.push([`“${active.get("q")}”`, { q: null }]);
  const view = facts.views.find((one) => one.name === active.get("view"));
  if (active.get("view")) found.push([`view ${active.get("view")}${view && view.other.length ? `, which pins another ${view.other.join(", ")}` : ""}`, { view: null }]);
  if (active.get("where")) found.push([active.get("where"), { where: null }]);
  for (const [name, value] of active) {
    const scalar = name.slice(name.indexOf(".") + 1);
    if (name === "with" || name === "without") {
      const spec = facts.classes[Number(value)];
      found.push([`${name} ${spec ? spec.name : value}`, without(name, value)]);
    } else if (name.startsWith("in.")) found.push([`${title(scalar)}: ${value || "no value"}`, without(name, value)]);
    else if (name.startsWith("min.") && value) found.push([`${title(scalar)} ≥ ${value}`, { [name]: null }]);
    else if (name.startsWith("max.") && value) found.push([`${title(scalar)} ≤ ${value}`, { [name]: null }]);
    else if (name === "share" && value && active.has("with")) found.push([`at least ${Number((value * 100).toPrecision(6))} %`, { share: null }]);
  }
  return found;
}

export function clear() {
  const gone = {};
  for (const name of state.params().keys()) if (!["layer", "tile", "sort", "show"].includes(name)) gone[name] = null;
  state.filter(gone);
}
