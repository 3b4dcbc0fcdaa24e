// Pages of thumbnails.

import { $, count, fetchJson, h, plural } from "./dom.js";
import * as filters from "./filters.js";
import * as state from "./state.js";

const TILES = [{ px: 112, rows: 160 }, { px: 168, rows: 96 }, { px: 248, rows: 60 }, { px: 380, rows: 30 }];
const SIZES = [160, 240, 360, 540];
let asked = 0;
let showing = "";

const tile = () => TILES[Number(state.get("tile") || 2)] || TILES[2];

export async function draw(facts, { force = false } = {}) {
  const query = state.query();
  query.set("size", tile().rows);
  const address = `api/rows?${query}`;
  const look = `${address} ${state.get("layer")} ${facts.version}`;
  if (look === showing && !force) return;
  const mine = (asked += 1);
  $("main").classList.add("busy");
  try {
    const page = await fetchJson(address);
    if (mine !== asked) return;
    if (page.version !== facts.version) return dispatchEvent(new Event("changed"));
    showing = look;
    filters.draw(facts, page.counts);
    $("main").replaceChildren(head(facts, page), grid(facts, page), pager(page));
    $("main").scrollTop = 0;
  } catch (error) {
    if (mine !== asked) return;
    showing = "";
    $("main").replaceChildren(h("p", { class: "wrong", role: "alert" }, error.message),
      h("p", {}, h("button", { type: "button", onclick: filters.clear }, "Clear all filters")));
  } finally {
    if (mine === asked) $("main").classList.remove("busy");
  }
}

function head(facts, page) {
  const chips = filters.chips(facts).map(([words, change]) =>
    h("button", { type: "button", class: "chip", title: "remove", onclick: () => state.filter(change) }, words, h("span", { "aria-hidden": "true" }, " ×")));
  const total = page.total === facts.rows ? plural(facts.rows, "row") : `${count(page.total)} of ${plural(facts.rows, "row")}`;
  const part = facts.rows < facts.of ? ` (of ${count(facts.of)} in the dataset)` : "";
  return h("div", { class: "head" }, h("span", { id: "total" }, total + part), h("span", { class: "chips" }, chips), pager(page, true));
}

function grid(facts, page) {
  if (!page.rows.length) return h("p", { class: "nothing" }, "No row is like that.");
  const { px } = tile();
  const size = SIZES.find((side) => side >= px * Math.min(2, devicePixelRatio)) || SIZES.at(-1);
  const layer = state.get("layer") || "base.image";
  const aspect = facts.size ? `${facts.size[0]} / ${facts.size[1]}` : "4 / 3";
  return h("div", { id: "grid", css: { "--tile": `${px}px`, "--aspect": aspect } }, page.rows.map((row) => one(row, facts, layer, size, px)));
}

function one(row, facts, layer, size, px) {
  const address = state.address({ key: row.key });
  const open = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    state.go({ key: row.key });
  };
  const small = Math.max(row.width || 0, row.height || 0) * 2 <= px;
  const image = h("img", { src: `thumb/${facts.version}/${encodeURIComponent(layer)}/${size}/${row.row}`, loading: "lazy",
    decoding: "async", alt: row.caption || row.key, class: small ? "small" : null });
  const frame = h("span", { class: "frame" }, image);
  image.addEventListener("error", () => {
    const column = layer.split(".")[0];
    frame.replaceChildren(h("span", { class: "absent" }, row.failed[column] || row.failed.base ? "failed" : "none"));
  });
  const failed = Object.entries(row.failed).map(([column, kind]) =>
    h("span", { class: `badge failed ${kind}`, title: `${column}: ${kind === "retry" ? "failed for now" : "failed for good"}` }, column));
  return h("a", { class: "tile", href: address, onclick: open, "data-key": row.key, title: row.caption || row.key }, frame,
    px > 120 ? h("span", { class: "caption" }, row.caption || h("span", { class: "soft" }, name(row.key))) : null,
    px > 160 || failed.length ? h("span", { class: "meta" }, h("span", { class: "badge" }, row.split || "–"), failed, h("code", {}, name(row.key))) : null);
}

const name = (key) => key.replace(/^[0-9a-f]+-/, "");

function pager(page, small = false) {
  if (page.pages < 2) return h("nav", { class: "pager" });
  const link = (to, words, label) => h("button", { type: "button", disabled: to < 1 || to > page.pages || to === page.page,
    "aria-label": label, onclick: () => turn(to) }, words);
  const field = h("input", { type: "number", min: 1, max: page.pages, value: page.page, "aria-label": "page",
    onchange: (event) => turn(Math.min(page.pages, Math.max(1, Math.round(Number(event.target.value)) || 1))) });
  return h("nav", { class: `pager ${small ? "small" : ""}`, "aria-label": "pages", "data-page": page.page, "data-pages": page.pages },
    small ? null : link(1, "«", "first page"), link(page.page - 1, "‹", "page before"), field, h("span", {}, `of ${count(page.pages)}`),
    link(page.page + 1, "›", "page after"), small ? null : link(page.pages, "»", "last page"));
}

const turn = (page) => state.go({ page: page > 1 ? page : null });

export function key(event) {
  const pages = document.querySelector("nav.pager[data-page]");
  if ((event.key === "[" || event.key === "]") && pages) {
    const to = Number(pages.dataset.page) + (event.key === "]" ? 1 : -1);
    if (to >= 1 && to <= Number(pages.dataset.pages)) turn(to);
    return true;
  }
  const tiles = [...document.querySelectorAll("#grid .tile")];
  const across = tiles.findIndex((item) => item.offsetTop !== tiles[0].offsetTop);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across < 0 ? 0 : across, ArrowUp: across < 0 ? 0 : -across };
  if (!(event.key in steps) || !tiles.length) return false;
  const now = tiles.indexOf(document.activeElement);
  const next = now < 0 ? 0 : now + steps[event.key];
  if (tiles[next]) tiles[next].focus();
  return true;
}

// Back from a sample: its tile has the focus.
export function focus(sampleKey) {
  const found = [...document.querySelectorAll("#grid .tile")].find((item) => item.dataset.key === sampleKey);
  if (found) found.focus();
}
